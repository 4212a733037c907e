"""The page "Web servers" on real servers: uvicorn, and Hypercorn on asyncio and on Trio.

Loopback and port 0 only. The servers are started by the tests, and are over when they end.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys

import anyio
import anyio.lowlevel
import pytest
import trio
import uvicorn
from hypercorn.asyncio import serve as serve_on_asyncio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_on_trio

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.responses import EventStreamResponse, server_sent_event
from tests.test_documentation import ROOT, programs


pytestmark = pytest.mark.filterwarnings("ignore:.*httptools:DeprecationWarning")

#: Since Python 3.12 closing a server waits for its connections, and Hypercorn does so before its grace.
WAITS_FOR_CLIENTS = sys.version_info >= (3, 12)

SERVERS = ["uvicorn", "hypercorn-asyncio", "hypercorn-trio"]
of_each_server = pytest.mark.parametrize("server", SERVERS)


def run_on(server, main):
    """Run a test in the event loop of a server."""
    backend = "trio" if server.endswith("trio") else "asyncio"

    async def limited():
        with anyio.fail_after(10):
            await main()

    anyio.run(limited, backend=backend)


@contextlib.asynccontextmanager
async def served(server, app, grace=0.01):
    """Serve an application; give the port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    async with anyio.create_task_group() as nursery:
        if server == "uvicorn":
            config = uvicorn.Config(
                app, log_config=None, lifespan="on", timeout_graceful_shutdown=0, ws="none"
            )
            running = uvicorn.Server(config)
            nursery.start_soon(running.serve, [listener])
            try:
                yield port
            finally:
                running.should_exit = True
        else:
            config = Config()
            config.bind = [f"fd://{listener.detach()}"]
            config.accesslog = config.errorlog = None
            config.graceful_timeout = grace
            stop = anyio.Event()
            serve = serve_on_trio if server.endswith("trio") else serve_on_asyncio

            async def run_server():
                await serve(app, config, shutdown_trigger=stop.wait, mode="asgi")

            nursery.start_soon(run_server)
            try:
                yield port
            finally:
                stop.set()


@contextlib.asynccontextmanager
async def request(port, path, method="GET", headers=""):
    """Send a request by hand, and hang up at the end of the block whatever may come still."""
    async with await anyio.connect_tcp("127.0.0.1", port) as client:
        head = f"{method} {path} HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n{headers}\r\n"
        await client.send(head.encode())
        yield client


async def read_until(client, marker):
    data = b""
    while marker not in data:
        data += await client.receive()
    return data.decode()


async def call(port, path, method="GET"):
    """Send a request, and give the JSON of the answer."""
    async with request(port, path, method, "Connection: close\r\n") as client:
        data = b""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                data += await client.receive()
    body = data.decode().partition("\r\n\r\n")[2]
    return json.loads(body[body.index("{") : body.rindex("}") + 1])


END = b"\r\n0\r\n\r\n"


@pytest.fixture
def page():
    """The names of the page "Web servers"."""
    namespace = {"__name__": "__main__"}
    for _, code, _ in programs(ROOT / "docs/web-servers.md"):
        exec(compile(code, "web-servers.md", "exec"), namespace)
    return namespace


# -- the page --------------------------------------------------------------------------------------------


@of_each_server
def test_the_page_s_application(server, page):
    """D3: a run of one request, and one that is begun, read, answered and stopped by several."""

    async def main():
        async with served(server, page["app"]) as port:
            async with request(port, "/write/locks") as client:
                text = await read_until(client, END)
            assert 'id: 1\nevent: Progress\ndata: {"message":"drafting locks"}\n' in text
            assert 'event: StopEvent\ndata: {"result":"LOCKS"}' in text

            run = (await call(port, "/runs/keys", "POST"))["run"]
            async with request(port, f"/runs/{run}/events") as client:
                text = await read_until(client, b"Approval")
                assert "id: 1\nevent: Progress" in text
            async with request(
                port, f"/runs/{run}/events", headers="Last-Event-ID: 1\r\n"
            ) as client:
                text = await read_until(client, b"Approval")
                assert "Progress" not in text
            answer = await call(port, f"/runs/{run}/approval?yes=true", "POST")
            assert answer == {"result": "published"}

            run = (await call(port, "/runs/keys", "POST"))["run"]
            assert await call(port, f"/runs/{run}", "DELETE") == {"status": "cancelled"}
            assert "no run" in (await call(port, "/runs/none", "DELETE"))["detail"]
            run = (await call(port, "/runs/keys", "POST"))["run"]
        # The server has stopped, and the run with it.
        assert page["handlers"][run].status == "cancelled"

    run_on(server, main)


# -- the response ------------------------------------------------------------------------------------------


class Piece(Event):
    n: int
    padding: str = ""


class Working(Workflow[str]):
    """Waits, floods or fails; cleans up with a shielded await."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.began = anyio.Event()
        self.over = anyio.Event()
        self.seen = []
        self.failure = LookupError("a secret")

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Piece(n=0))
        self.began.set()
        try:
            if self.how == "wait":
                await anyio.sleep_forever()
            while self.how == "flood":
                await ctx.stream.send(Piece(n=1, padding="x" * 50_000))
            raise self.failure
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
            self.seen.append("cleaned up")
            self.over.set()


class App:
    """An application that is one response, and keeps what came of it."""

    def __init__(self, workflow):
        self.workflow = workflow
        self.handlers = []
        self.left = []
        self.ended = anyio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        handler = self.workflow.run()
        self.handlers.append(handler)
        try:
            await EventStreamResponse(handler)(scope, receive, send)
        except BaseException as error:
            self.left.append(error)
            if not isinstance(error, LookupError):
                raise
        finally:
            self.ended.set()


@of_each_server
@pytest.mark.parametrize("how", ["wait", "flood"])
def test_a_client_that_goes_away_ends_the_run(server, how):
    """D3, P1, P2: idle or in the middle of a send; the clean-up is done when the response ends."""

    async def main():
        workflow = Working(how)
        app = App(workflow)
        async with served(server, app) as port:
            async with request(port, "/") as client:
                await read_until(client, b"event: Piece")
                await workflow.began.wait()
            await app.ended.wait()
            assert workflow.seen == ["cleaned up"]
            assert app.handlers[0].status == "cancelled"
            assert app.left == []

    run_on(server, main)


@of_each_server
def test_a_server_that_stops_ends_the_run(server):
    """D3, P1, P2: after its grace it cancels the response, and the run with it."""
    if server == "hypercorn-asyncio" and WAITS_FOR_CLIENTS:
        pytest.skip("Hypercorn on this Python waits for its clients before its grace begins")

    async def main():
        workflow = Working("wait")
        app = App(workflow)
        async with contextlib.AsyncExitStack() as stack:
            client = None
            async with served(server, app) as port:
                client = await stack.enter_async_context(request(port, "/"))
                await read_until(client, b"event: Piece")
            await app.ended.wait()  # uvicorn cancels the response, and leaves it to the event loop
            assert workflow.seen == ["cleaned up"]
            assert app.handlers[0].status == "cancelled"

    run_on(server, main)


@of_each_server
def test_a_failure_is_told_to_the_server_and_named_to_the_client(server):
    """D3, P9: its text does not go out."""

    async def main():
        workflow = Working("fail")
        app = App(workflow)
        async with served(server, app) as port, request(port, "/") as client:
            text = await read_until(client, END)
            await app.ended.wait()
        assert "event: WorkflowFailedEvent" in text
        assert '"exception":"LookupError"' in text
        assert "secret" not in text
        assert app.left == [workflow.failure]

    run_on(server, main)


# -- the response without a server -----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("error", [OSError("gone"), ConnectionResetError()])
async def test_a_send_that_fails_ends_the_run(error):
    """D3: so some servers say that the client has gone."""
    workflow = Working("wait")
    app = App(workflow)

    async def receive():
        await anyio.sleep_forever()

    async def send(message):
        if message["type"] == "http.response.body":
            raise error

    await app({"type": "http"}, receive, send)

    assert app.handlers[0].status == "cancelled"
    assert workflow.seen == ["cleaned up"]


@pytest.mark.anyio
async def test_another_error_of_send_leaves_bare():
    """P8: what is no disconnect comes out as itself, when the run is over."""
    workflow = Working("wait")
    error = KeyError("mine")
    handler = workflow.run()

    async def receive():
        await anyio.sleep_forever()

    async def send(message):
        raise error

    with pytest.raises(KeyError) as caught:
        await EventStreamResponse(handler)({"type": "http"}, receive, send)

    assert caught.value is error
    assert handler.status == "cancelled"


@pytest.mark.anyio
async def test_a_response_that_only_reads_leaves_the_run_alone():
    """D3: given a stream, it lets go of the stream and of nothing else."""
    workflow = Working("wait")

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        await anyio.lowlevel.checkpoint()

    async with workflow.run() as handler:
        await EventStreamResponse(handler.stream_events())({"type": "http"}, receive, send)
        assert handler.status == "running"
        handler.cancel()


@pytest.mark.anyio
async def test_a_response_is_served_once():
    """D3: a second time it says so."""

    async def work():
        response = EventStreamResponse(Working("fail").run())

        async def receive():
            await anyio.sleep_forever()

        async def send(message):
            await anyio.lowlevel.checkpoint()

        with pytest.raises(LookupError):
            await response({"type": "http"}, receive, send)
        with pytest.raises(RuntimeError, match="served twice"):
            await response({"type": "http"}, receive, send)

    await work()


def test_an_event_as_text():
    """D3: private fields stay, and what JSON cannot hold is shown."""

    class Shown(Event):
        text: str
        thing: object
        _hidden: int = 1

    assert server_sent_event(Shown(text="two\nlines", thing=trio), "3").decode() == (
        f'id: 3\nevent: Shown\ndata: {{"text":"two\\nlines","thing":{json.dumps(repr(trio))}}}\n\n'
    )
