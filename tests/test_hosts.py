"""Workflows in the programs that people put them into: test plug-ins and web servers.

The servers are real ones on the loopback, and their clients hang up. How to serve a run is shown
here twice over: a response that owns its run, and a run that the application owns while responses
only read it. Neither hands an async generator to the server, and neither polls for a disconnect.
"""

from __future__ import annotations

import contextlib
import socket

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import trio
import trio.testing
from hypercorn.asyncio import serve as serve_on_asyncio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_on_trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from sluicegate import (
    Context,
    Event,
    EventStream,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    step,
)
from tests.helpers import limit, live_tasks, witnessed


class Item(Event):
    n: int
    padding: str = ""


# -- pytest-trio -------------------------------------------------------------------------------------


class Slow(Workflow[str]):
    """Takes three hours."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item:
        for n in range(3):
            await trio.sleep(3600)
            ctx.write_event_to_stream(Item(n=n))
        return Item(n=3)

    @step
    async def end(self, ev: Item) -> StopEvent:
        return StopEvent(result="slowly")


@pytest.mark.trio
async def test_hours_pass_in_no_time_under_autojump_clock(autojump_clock):
    """P10: with a mock clock a long run takes the mock clock's time, and no other."""
    begin = trio.current_time()
    seen = []
    async with Slow(timeout=4 * 3600).run() as handler:
        async for event in handler.stream_events():
            seen.append((event.get("n"), trio.current_time() - begin))

        assert await handler == "slowly"

    assert seen == [(0, 3600), (1, 7200), (2, 10800), (None, 10800)]


@pytest.mark.trio
async def test_timeout_is_the_mock_clock_s(autojump_clock):
    """P10: a run is timed out at its deadline on the mock clock, to the tick."""
    begin = trio.current_time()
    async with Slow(timeout=5000).run() as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(WorkflowTimeoutError):
            await handler

    assert trio.current_time() - begin == pytest.approx(5000)
    assert [type(event) for event in events] == [Item, WorkflowTimedOutEvent]


@pytest.mark.trio
async def test_result_at_the_very_deadline_wins(autojump_clock):
    """P10: a stop event and a deadline in the same tick give the result, every time."""
    for _ in range(20):
        assert await Slow(timeout=3 * 3600).run() == "slowly"


@pytest.mark.trio
async def test_step_timeout_is_the_mock_clock_s(autojump_clock):
    """P10, P15: so is a step's own timeout."""
    begin = trio.current_time()

    class Hasty(Workflow):
        @step(timeout=60)
        async def wait(self, ev: StartEvent) -> StopEvent:
            await trio.sleep(61)
            return StopEvent()

    with pytest.raises(StepTimeoutError):
        await Hasty().run()

    assert trio.current_time() - begin == pytest.approx(60)


@pytest.mark.trio
async def test_idle_run_lets_the_clock_jump(autojump_clock):
    """P10: the engine itself has no timer that keeps a mock clock from jumping."""
    handler = None
    with trio.move_on_after(86_400) as scope:
        async with _Waiting().run() as handler:
            await handler

    assert scope.cancelled_caught
    assert handler.status == "cancelled"


class _Waiting(Workflow):
    @step
    async def wait(self, ev: StartEvent) -> StopEvent:
        await trio.sleep_forever()
        return StopEvent()


@pytest.mark.trio
async def test_run_in_the_nursery_of_pytest_trio(nursery, autojump_clock):
    """P1: the nursery fixture owns a run like any other nursery; the test waits beside it."""
    handler = Slow().run().start_soon(nursery)

    assert await handler == "slowly"


@pytest.mark.trio
async def test_run_in_the_nursery_of_pytest_trio_ends_with_the_test(nursery):
    """P1: pytest-trio cancels the fixture's nursery when the test is over, and the run with it."""
    handler = _Waiting().run().start_soon(nursery)
    await trio.testing.wait_all_tasks_blocked()

    assert handler.status == "running"


# -- the AnyIO plug-in ---------------------------------------------------------------------------------


class Driven(Workflow[str]):
    def __init__(self):
        super().__init__()
        self.go_on = anyio.Event()

    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Item(n=1))
        await self.go_on.wait()
        return StopEvent(result="driven")


@pytest.fixture
async def driven(anyio_backend):
    """A run whose block is entered before the test and left after it."""
    workflow = Driven()
    async with workflow.run() as handler:
        yield workflow, handler
        workflow.go_on.set()
    assert handler.status == "completed"


@pytest.mark.anyio
async def test_run_may_be_owned_by_a_fixture_of_the_anyio_plugin(driven):
    """P1: AnyIO's fixtures enter and leave a block in one task, so they may own a run."""
    _, handler = driven

    assert (await handler.stream_events().receive()).n == 1
    assert handler.status == "running"


@pytest.mark.anyio
async def test_result_of_a_run_that_a_fixture_owns(driven):
    """P5: its stream and result are there for the test, whatever task the plug-in uses."""
    workflow, handler = driven
    workflow.go_on.set()

    assert await handler == "driven"
    assert [type(event) async for event in handler.stream_events()] == [Item, StopEvent]


# -- a web server --------------------------------------------------------------------------------------


class Serving(Workflow[str]):
    """Says something, then does what the test wants; cleans up with a shielded await."""

    def __init__(self, *, after: str = "wait", **options):
        super().__init__(**options)
        self.after = after
        self.began = anyio.Event()
        self.released = anyio.Event()
        self.over = anyio.Event()
        self.seen: list[str] = []
        self.sent = 0

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item:
        ctx.write_event_to_stream(Item(n=0))
        return Item(n=1)

    @step
    async def work(self, ctx: Context, ev: Item) -> StopEvent:
        self.began.set()
        try:
            async with witnessed(self.seen):
                await self.go(ctx)
        finally:
            self.over.set()
        return StopEvent(result="served")

    async def go(self, ctx: Context) -> None:
        if self.after == "wait":
            await self.released.wait()
        elif self.after == "flood":
            while True:
                await ctx.stream.send(Item(n=2, padding="x" * 50_000))
                self.sent += 1
        elif self.after == "fail":
            msg = "inside a step"
            raise LookupError(msg)
        else:
            for n in range(1, 100):
                await ctx.stream.send(Item(n=n))


class Lines:
    """The events of a stream as lines of text: a plain iterator, no generator."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> bytes:
        event = await anext(self._stream)
        shown = f"{type(event).__name__} {event.get('n', '-')} {event.get('padding', '')}"
        return f"{self._stream.sequence}: {shown}\n".encode()


class OwnedByResponse:
    """A response that owns its run, as a plain ASGI application: it watches the connection."""

    def __init__(self, workflow: Serving) -> None:
        self.workflow = workflow
        self.handlers: list[WorkflowHandler[str]] = []

    async def __call__(self, scope, receive, send) -> None:
        async with self.workflow.run() as handler, anyio.create_task_group() as nursery:
            self.handlers.append(handler)

            async def hang_up() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()
                handler.cancel("the client hung up")

            nursery.start_soon(hang_up)
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for line in Lines(handler.stream_events()):
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()


class OwnedByStreamingResponse(OwnedByResponse):
    """The same with Starlette's own response, which comes back when the client has gone."""

    async def __call__(self, scope, receive, send) -> None:
        async with self.workflow.run() as handler:
            self.handlers.append(handler)
            response = StreamingResponse(Lines(handler.stream_events()), media_type="text/plain")
            await response(scope, receive, send)
            handler.cancel("the client hung up")


@contextlib.asynccontextmanager
async def served(app):
    """Serve ``app`` with Hypercorn on a free port of the loopback; yields the port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.01
    stop = anyio.Event()
    serve = serve_on_trio if trio.lowlevel.in_trio_run() else serve_on_asyncio
    async with anyio.create_task_group() as nursery:

        async def run_server() -> None:
            await serve(app, config, shutdown_trigger=stop.wait, mode="asgi")

        nursery.start_soon(run_server)
        try:
            yield port
        finally:
            stop.set()


@contextlib.asynccontextmanager
async def request(port: int, path: str, method: str = "GET"):
    """Send a request by hand, and hang up at the end of the block whatever may come still."""
    while True:
        try:
            client = await anyio.connect_tcp("127.0.0.1", port)
            break
        except OSError:  # the server does not listen yet
            await anyio.sleep(0.001)
    async with client:
        head = f"{method} {path} HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"
        await client.send(head.encode())
        yield client


async def read_until(client: anyio.abc.SocketStream, marker: bytes) -> bytes:
    data = b""
    while marker not in data:
        data += await client.receive()
    return data


END_OF_BODY = b"\r\n0\r\n\r\n"

owners = pytest.mark.parametrize("owner", [OwnedByResponse, OwnedByStreamingResponse])


@pytest.mark.anyio
@owners
async def test_client_that_stays_gets_the_whole_stream(owner):
    """P4: served to its end, the response has every event, the terminal one last."""
    workflow = Serving(after="talk")
    app = owner(workflow)
    before = len(live_tasks())
    with limit():
        async with (
            served(Starlette(routes=[Route("/", app)])) as port,
            request(port, "/") as client,
        ):
            text = (await read_until(client, END_OF_BODY)).decode()

    assert [f"{n + 1}: Item {n} " in text for n in range(100)] == [True] * 100
    assert text.index("101: StopEvent -") > text.index("100: Item 99")
    assert [handler.status for handler in app.handlers] == ["completed"]
    assert workflow.seen == ["cleaned up"]
    assert len(live_tasks()) == before


@pytest.mark.anyio
@owners
async def test_client_that_hangs_up_cancels_the_step(owner):
    """P1, P2: also on an idle stream the step sees the cancellation; its clean-up finishes."""
    workflow = Serving(after="wait")
    app = owner(workflow)
    before = len(live_tasks())
    with limit():
        async with served(Starlette(routes=[Route("/", app)])) as port:
            async with request(port, "/") as client:
                await read_until(client, b"1: Item 0")
                await workflow.began.wait()
                assert workflow.seen == []
            await workflow.over.wait()
            while not app.handlers[0].is_done():
                await anyio.lowlevel.checkpoint()

    assert workflow.seen == ["cancelled", "cleaned up"]
    assert [handler.status for handler in app.handlers] == ["cancelled"]
    assert len(live_tasks()) == before


@pytest.mark.anyio
async def test_client_that_does_not_read_and_hangs_up_cancels_the_step():
    """P2, P7: also while the response itself is stuck in sending to a client that reads nothing."""
    workflow = Serving(after="flood", stream_buffer=2, stream_history=4)
    app = OwnedByResponse(workflow)
    before = len(live_tasks())
    with limit():
        async with served(Starlette(routes=[Route("/", app)])) as port:
            async with request(port, "/"):
                await workflow.began.wait()
                sent = -1
                while not 0 < workflow.sent == sent:
                    sent = workflow.sent
                    await anyio.sleep(0.01)
                assert workflow.seen == []
            await workflow.over.wait()
            while not app.handlers[0].is_done():
                await anyio.lowlevel.checkpoint()

    assert workflow.seen == ["cancelled", "cleaned up"]
    assert [handler.status for handler in app.handlers] == ["cancelled"]
    assert len(live_tasks()) == before


@pytest.mark.anyio
async def test_many_clients_that_hang_up_leave_nothing_behind():
    """P1, P18: one workflow object serves them all, and each run ends with its own client."""
    workflow = Serving(after="wait")
    app = OwnedByResponse(workflow)
    before = len(live_tasks())

    async def visit(port: int) -> None:
        async with request(port, "/") as client:
            await read_until(client, b"1: Item 0")

    with limit():
        async with served(Starlette(routes=[Route("/", app)])) as port:
            async with anyio.create_task_group() as nursery:
                for _ in range(10):
                    nursery.start_soon(visit, port)
            while not all(handler.is_done() for handler in app.handlers):
                await anyio.lowlevel.checkpoint()

    assert [handler.status for handler in app.handlers] == ["cancelled"] * 10
    assert workflow.seen.count("cleaned up") == workflow.seen.count("cancelled")
    assert len(live_tasks()) == before


# -- runs that the application owns ----------------------------------------------------------------------


class Application:
    """Runs live in the lifespan's nursery; endpoints start them, and read them by number."""

    def __init__(self, workflow: Serving) -> None:
        self.workflow = workflow
        self.runs: list[WorkflowHandler[str]] = []
        routes = [
            Route("/runs", self.start, methods=["POST"]),
            Route("/runs/{number:int}", self.read),
        ]
        self.app = Starlette(routes=routes, lifespan=self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        async with anyio.create_task_group() as self.nursery:
            yield
            self.nursery.cancel_scope.cancel()

    async def start(self, request: Request) -> PlainTextResponse:
        self.runs.append(self.workflow.run().start_soon(self.nursery, keep_failure=True))
        return PlainTextResponse(f"run {len(self.runs) - 1}\n")

    async def read(self, request: Request) -> StreamingResponse:
        handler = self.runs[request.path_params["number"]]
        after = int(request.query_params.get("after", 0))
        return StreamingResponse(Lines(handler.stream_events(after=after)))


@pytest.mark.anyio
async def test_run_of_the_application_continues_when_its_reader_hangs_up():
    """P5, P6, P7: a client that has gone blocks no one, and comes back where it was."""
    workflow = Serving(after="talk", stream_buffer=2)
    application = Application(workflow)
    before = len(live_tasks())
    with limit():
        async with served(application.app) as port:
            async with request(port, "/runs", "POST") as client:
                await read_until(client, b"run 0")
            async with request(port, "/runs/0") as client:
                await read_until(client, b"1: Item 0")
            assert await application.runs[0] == "served"
            async with request(port, "/runs/0?after=40") as client:
                text = (await read_until(client, END_OF_BODY)).decode()
            async with request(port, "/runs/0") as client:
                whole = (await read_until(client, END_OF_BODY)).decode()

    assert "\n40: " not in text
    assert [f"{n + 1}: Item {n} " in text for n in range(40, 100)] == [True] * 60
    assert "101: StopEvent" in text
    assert [f"{n + 1}: Item {n} " in whole for n in range(100)] == [True] * 100
    assert workflow.seen == ["cleaned up"]
    assert len(live_tasks()) == before


@pytest.mark.anyio
async def test_reader_of_a_run_of_the_application_only_leaves_a_waiting_run_alone():
    """P6: hanging up on an idle stream ends the response and not the run."""
    workflow = Serving(after="wait")
    application = Application(workflow)
    with limit():
        async with served(application.app) as port:
            async with request(port, "/runs", "POST") as client:
                await read_until(client, b"run 0")
            for _ in range(3):
                async with request(port, "/runs/0") as client:
                    await read_until(client, b"1: Item 0")
            await workflow.began.wait()
            assert application.runs[0].status == "running"
            workflow.released.set()
            assert await application.runs[0] == "served"

    assert workflow.seen == ["cleaned up"]


@pytest.mark.anyio
async def test_runs_of_the_application_end_with_the_server():
    """P1, P2: the lifespan's nursery takes its runs with it, clean-up included."""
    workflow = Serving(after="wait")
    application = Application(workflow)
    before = len(live_tasks())
    with limit():
        async with served(application.app) as port:
            async with request(port, "/runs", "POST") as client:
                await read_until(client, b"run 0")
            await workflow.began.wait()

    assert workflow.seen == ["cancelled", "cleaned up"]
    assert application.runs[0].status == "cancelled"
    assert len(live_tasks()) == before


@pytest.mark.anyio
async def test_failed_run_does_not_take_the_server_down():
    """P4, P9: with keep_failure a failure is the handler's, and the reader's to see."""
    workflow = Serving(after="fail")
    application = Application(workflow)
    with limit():
        async with served(application.app) as port:
            for number in range(2):
                async with request(port, "/runs", "POST") as client:
                    await read_until(client, b"run %d" % number)
                async with request(port, f"/runs/{number}") as client:
                    text = await read_until(client, END_OF_BODY)
                assert b"2: WorkflowFailedEvent" in text

    for handler in application.runs:
        with pytest.raises(LookupError, match="inside a step"):
            handler.result()
