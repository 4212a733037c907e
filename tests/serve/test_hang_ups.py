"""The matrix of hang-ups: every server, every way in which a client leaves, and both owners of a run.

Each server serves all of its cells, in an event loop of its own, in which the clients are tasks too.
"""

from __future__ import annotations

import contextlib
import json

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.serve import asgi_app
from tests.helpers import live_tasks, witnessed
from tests.serve.hosting import (
    SERVERS,
    connected,
    head,
    hosted,
    read_all,
    read_until,
    reset_on_close,
)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*httptools:DeprecationWarning"),
]

SITUATIONS = ("idle", "busy", "slow reader", "reset", "half-closed", "plain request")


class Piece(Event):
    padding: str = ""


class Job(StartEvent):
    key: str
    how: str


class Seen:
    """What one run has seen."""

    def __init__(self):
        self.lines = []
        self.sent = 0
        self.began = anyio.Event()
        self.released = anyio.Event()
        self.over = anyio.Event()


class Working(Workflow[str]):
    """Waits, sends, or sends more than its reader takes; cleans up with a shielded await."""

    def __init__(self):
        super().__init__(stream_buffer=2, stream_history=4)
        self.seen = {}

    @step
    async def work(self, ctx: Context, ev: Job) -> StopEvent:
        seen = self.seen[ev.key]
        ctx.write_event_to_stream(Piece())
        seen.began.set()
        padding = {"busy": "x", "slow reader": "x" * 50_000}.get(ev.how)
        try:
            async with witnessed(seen.lines):
                while padding is not None and not seen.released.is_set():
                    await ctx.stream.send(Piece(padding=padding))
                    seen.sent += 1
                    await anyio.sleep(0)
                await seen.released.wait()
        finally:
            seen.over.set()
        return StopEvent(result="done")


class Host:
    """A server, with the application twice on it: below ``/on`` a client that leaves ends no run."""

    def __init__(self, name):
        self.name = name
        self.workflow = Working()
        self.tasks = 0
        options = {"heartbeat": 3600}
        self.app = asgi_app({"job": self.workflow}, **options)
        self.going_on = asgi_app({"job": self.workflow}, on_disconnect="continue", **options)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app=None):
        async with self.app.lifespan(), self.going_on.lifespan():
            yield

    @contextlib.asynccontextmanager
    async def open(self):
        routes = [Mount("/on", self.going_on), Mount("/", self.app)]
        parent = Starlette(routes=routes, lifespan=self.lifespan)
        async with hosted(self.name, parent, self.lifespan) as (self.port, self.connections):
            async with connected(self.port) as client:
                await client.send(head("GET", "/health", connection="close"))
                await read_all(client)
            await wait_until(lambda: not self.connections())
            yield self


@pytest.fixture(scope="module", params=SERVERS)
def host(request):
    """A server that all of its cells share, and the event loop that it runs in."""
    backend, options = SERVERS[request.param]
    if options:
        pytest.importorskip("uvloop", reason="uvloop does not exist on this platform")
    with (
        anyio.from_thread.start_blocking_portal(backend, options) as portal,
        portal.wrap_async_context_manager(portal.call(Host, request.param).open()) as opened,
    ):
        opened.tasks = portal.call(lambda: len(live_tasks()))
        yield opened, portal


async def wait_until(condition):
    while not condition():
        await anyio.sleep(0.001)


@pytest.mark.parametrize("owner", ["request", "server"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_client_hangs_up(host, situation, owner):
    """A run ends with the client that waits for it, and only with that one; nothing is left."""
    opened, portal = host

    async def limited():
        with anyio.fail_after(10):
            await Cell(opened, situation, owner).check()

    portal.call(limited)


class Cell:
    """One cell of the matrix."""

    def __init__(self, host, situation, owner):
        self.host, self.situation, self.owner = host, situation, owner
        self.key = f"{situation}, {owner}"
        self.seen = host.workflow.seen[self.key] = Seen()
        self.body = json.dumps({"start_event": {"key": self.key, "how": situation}}).encode()

    async def check(self):
        request = await self.request()
        async with connected(self.host.port) as client, anyio.create_task_group() as reading:
            await client.send(request)
            await self.get_going(client, reading)
            assert self.seen.lines == []
            if self.situation == "half-closed":
                await client.send_eof()
            else:
                if self.situation == "reset":
                    reset_on_close(client)
                await client.aclose()
            await self.check_run()
            reading.cancel_scope.cancel()
        await wait_until(lambda: not self.host.connections())
        await wait_until(lambda: len(live_tasks()) <= self.host.tasks)
        assert self.seen.lines[-1] == "cleaned up"

    async def request(self):
        """Return the request whose client hangs up."""
        is_plain = self.situation == "plain request"
        if self.owner == "server" and not is_plain:
            async with connected(self.host.port) as client:
                start = head("POST", "/workflows/job/run-nowait", self.body, connection="close")
                await client.send(start)
                text = await read_all(client)
            run_id = json.loads(text.partition(b"\r\n\r\n")[2])["handler_id"]
            return head("GET", f"/events/{run_id}?after_sequence=-1")
        accept = "application/json" if is_plain else "text/event-stream"
        prefix = "/on" if self.owner == "server" else ""
        return head("POST", f"{prefix}/workflows/job/run", self.body, accept=accept)

    async def get_going(self, client, reading):
        """Wait until the situation is reached."""
        seen = self.seen
        if self.situation == "slow reader":
            sent = -1
            while not 0 < seen.sent == sent and seen.sent < 500:
                sent = seen.sent
                await anyio.sleep(0.01)
        elif self.situation == "busy":
            reading.start_soon(read_on, client)
            await wait_until(lambda: seen.sent > 20)
        else:
            if self.situation != "plain request":
                await read_until(client, b"event: Piece")
            await seen.began.wait()

    async def check_run(self):
        """Wait until the server has noticed, and check what the run has."""
        seen = self.seen
        if self.owner == "request":
            await seen.over.wait()
            assert seen.lines == ["cancelled", "cleaned up"]
            return
        await wait_until(lambda: not self.host.connections())
        for _ in range(3):
            await anyio.sleep(0.01)
        assert seen.lines == []
        seen.released.set()
        await seen.over.wait()
        assert seen.lines == ["cleaned up"]


async def read_on(client):
    with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError):
        while True:
            await client.receive()
