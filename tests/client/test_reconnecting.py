"""Connections that break: a reader connects again by its cursor, and gets each event once.

Time is virtual: the delays between attempts cost nothing.
"""

from __future__ import annotations

import json
from itertools import pairwise

import anyio
import pytest

from sluicegate import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
    step,
)
from sluicegate.client import (
    ClientError,
    NotFoundError,
    ServerUnreachableError,
    UnavailableError,
)
from sluicegate.serve import asgi_app
from tests.client.in_process import connected, network
from tests.helpers import on_each_backend, run_virtually
from tests.serve.flows import Essay, Progress, Waiting


class Slow(Workflow[str]):
    """Publishes an event a second, and knows how it ended."""

    def __init__(self, times=6, **options):
        super().__init__(**options)
        self.times = times
        self.runs = 0

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.runs += 1
        for number in range(self.times):
            await anyio.sleep(1)
            ctx.write_event_to_stream(Progress(message=str(number)))
        return StopEvent(result="done")


def virtually(test):
    """Run an async test with virtual time, on each backend."""

    @on_each_backend
    def run(backend):
        run_virtually(backend, test)

    run.__doc__ = test.__doc__
    return run


async def read(stream):
    return [event.get("message") async for event in stream]


EXPECTED = [*map(str, range(6)), None]


@on_each_backend
@pytest.mark.parametrize("cut", range(8))
def test_a_connection_that_is_lost_anywhere(backend, cut):
    """P5: whatever piece was the last, each event arrives once, in order, and then the terminal one."""

    async def main():
        async with connected(asgi_app({"slow": Slow()}), events=[Progress]) as client:
            handler = await client.submit("slow")
            client.network.lose_after = [cut, 1, 0, 1]
            stream = handler.stream_events()
            assert await read(stream) == EXPECTED
            assert stream.cursor == "7"
            assert stream.missed == 0

    run_virtually(backend, main)


@virtually
async def test_all_connections_are_lost_again_and_again():
    """P5: several readers of several runs, whose connections break once in a while."""
    async with connected(asgi_app({"slow": Slow(30)}), events=[Progress]) as client:
        found = []

        async def follow():
            handler = await client.submit("slow")
            found.append(await read(handler.stream_events()))
            assert await handler == "done"

        async with anyio.create_task_group() as nursery:
            for _ in range(5):
                nursery.start_soon(follow)
            for _ in range(15):
                await anyio.sleep(1.7)
                client.network.lose_all()
        assert found == [[*map(str, range(30)), None]] * 5


@virtually
async def test_the_delays_grow_and_are_bounded():
    """A server that is away is asked at growing intervals, each half by chance, of at most 5 seconds."""
    async with connected(asgi_app({"slow": Slow()}), reconnect_for=120) as client:
        handler = await client.submit("slow")
        times = []
        answer = client.network.handle_async_request

        async def watched(request):
            times.append(anyio.current_time())
            return await answer(request)

        client.network.handle_async_request = watched
        stream = handler.stream_events()
        await stream.receive()
        client.network.refuse = 20
        client.network.lose_all()
        assert len(await read(stream)) == 6
    delays = [later - earlier for earlier, later in pairwise(times[1:])]
    assert len(delays) == 20
    for number, delay in enumerate(delays, 1):
        longest = min(5, 0.1 * 2**number)
        assert longest / 2 <= delay <= longest
    assert len(set(delays)) == 20


@virtually
async def test_a_server_that_does_not_come_back():
    """After so many seconds the reader raises, with the line to read on with."""
    async with connected(asgi_app({"slow": Slow()}), reconnect_for=30, events=[Progress]) as client:
        handler = await client.submit("slow", run_id="mine")
        stream = handler.stream_events()
        await stream.receive()
        client.network.refuse = 1_000
        client.network.lose_all()
        begun = anyio.current_time()
        with pytest.raises(
            ServerUnreachableError, match="could not be followed for 30 s"
        ) as caught:
            await stream.receive()
        assert 20 < anyio.current_time() - begun <= 30
        assert isinstance(caught.value, ConnectionError)
        assert "client.attach('mine').stream_events(after='1')" in str(caught.value)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

        client.network.refuse = 0
        again = client.attach("mine").stream_events(after=stream.cursor)
        assert await read(again) == EXPECTED[1:]


@virtually
async def test_no_server():
    """A first request is repeated twice, in less than a second, and then raised."""
    async with connected(asgi_app({"slow": Slow()})) as client:
        client.network.refuse = 1_000
        begun = anyio.current_time()
        for call in (
            client.list_workflows,
            lambda: client.submit("slow"),
            lambda: client.run("slow").__aenter__(),
            lambda: client.attach("x").stream_events().receive(),
        ):
            client.network.requests.clear()
            with pytest.raises(
                ServerUnreachableError, match="there is no server at http://localhost"
            ):
                await call()
            assert len(client.network.requests) == 3
        assert anyio.current_time() - begun < 4


@virtually
async def test_a_start_that_is_repeated():
    """A run whose request was lost on its way, there or back, is started once."""
    flow = Slow()
    async with connected(asgi_app({"slow": flow}), events=[Progress]) as client:
        client.network.refuse = 2
        assert await client.run("slow") == "done"
        client.network.refuse = 1
        client.network.lose_after = [0]  # the answer to the next request, which starts it
        handler = await client.submit("slow")
        assert await handler == "done"
        assert flow.runs == 2


@virtually
async def test_an_owned_run_whose_connection_is_lost():
    """The server cancels it, as if its client had gone; the client is told how it ended, and why."""
    flow = Waiting()
    async with connected(asgi_app({"waiting": flow})) as client:
        with pytest.raises(WorkflowCancelledError, match="the client disconnected") as caught:
            async with client.run("waiting") as handler:
                stream = handler.stream_events()
                await stream.receive()
                client.network.lose_all()
                assert [type(event) async for event in stream] == [WorkflowCancelledEvent]
                await handler
        assert "client.submit" in caught.value.__notes__[0]
        assert flow.seen == ["cancelled", "cleaned up"]


@virtually
async def test_an_owned_run_that_goes_on():
    """Where the server keeps the runs of clients that have gone, it is read on and awaited."""
    app = asgi_app({"slow": Slow()}, on_disconnect="continue")
    async with connected(app, events=[Progress]) as client, client.run("slow") as handler:
        stream = handler.stream_events()
        await stream.receive()
        client.network.lose_all()
        assert await read(stream) == EXPECTED[1:]
        assert await handler == "done"


@virtually
async def test_waiting_survives_lost_connections():
    """``await handler`` of a run that the server owns connects again, and asks for the result in the end."""
    async with connected(asgi_app({"slow": Slow()})) as client:
        handler = await client.submit("slow")
        async with anyio.create_task_group() as nursery:

            async def wait():
                assert await handler == "done"
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait)
            while True:
                await anyio.sleep(0.9)
                client.network.lose_all()


@virtually
async def test_a_run_that_the_server_forgot():
    """A server that was restarted without a store does not know the run: that is raised at once."""
    async with (
        network(asgi_app({"slow": Slow(1_000)}, shutdown_grace=0)) as net,
        net.client() as client,
    ):
        handler = await client.submit("slow")
        stream = handler.stream_events()
        await stream.receive()
        net.app = asgi_app({"slow": Slow()})
        net.lose_all()
        with pytest.raises(NotFoundError, match="there is no run"):
            await stream.receive()


@virtually
async def test_a_reader_of_the_end_that_is_cut_off_before_its_first_event():
    """``after="now"`` is the moment of the first request, also where the connection is made again later."""
    async with connected(asgi_app({"slow": Slow()}), events=[Progress]) as client:
        handler = await client.submit("slow")
        await anyio.sleep(2.5)
        stream = handler.stream_events(after="now")
        await anyio.sleep(0.1)
        client.network.refuse = 5
        client.network.lose_all()
        assert await read(stream) == EXPECTED[2:]


@virtually
async def test_a_reader_that_is_cancelled():
    """P6: a wait that is cancelled takes no event, and costs no connection."""
    async with connected(asgi_app({"slow": Slow()}), events=[Progress]) as client:
        handler = await client.submit("slow")
        stream, found = handler.stream_events(), []
        while None not in found:
            with anyio.move_on_after(0.3):
                found.append((await stream.receive()).get("message"))
        assert found == EXPECTED
        assert len(client.network.requests) == 2


@virtually
async def test_a_reader_that_is_dropped():
    """A reader without a reference closes its connection; one that is closed does so before it returns."""
    async with connected(asgi_app({"slow": Slow()})) as client:
        handler = await client.submit("slow")
        async for _ in handler.stream_events():
            break
        await anyio.sleep(0.1)
        assert client.network.open == 0
        async with handler.stream_events() as stream:
            await stream.receive()
            assert client.network.open == 1
        assert client.network.open == 0
        assert await handler.status() == "running"


@virtually
async def test_a_slow_reader_is_told_what_it_missed():
    """P7: the server drops what it cannot keep, the run goes on, and the reader knows how many events it has missed."""
    flow = Waiting(stream_history=100)
    async with connected(asgi_app({"flood": flow}), events=[Progress]) as client:
        async with client.run("flood", flood=2_000) as handler:
            stream = handler.stream_events()
            await stream.receive()
            await flow.over.wait()
            events = [event async for event in stream]
            assert await handler == "done"
        assert stream.missed > 1_000
        assert 1 + len(events) + stream.missed == 2_002
        assert type(events[-1]) is StopEvent


@virtually
async def test_an_early_part_that_the_block_does_not_keep():
    """A late reader of a long run gets the beginning from the server."""
    async with connected(asgi_app({"essay": Essay()}), events=[Progress]) as client:
        async with client.run("essay", topic="a", times=3_000) as handler:
            await handler
            assert len([event async for event in handler.stream_events()]) == 3_001
            late = handler.stream_events(after=2_990)
            assert len([event async for event in late]) == 11
        assert sum(request.startswith("GET") for request in client.network.requests) == 2


# -- what servers send --------------------------------------------------------------------------------------


class Script:
    """A server that sends each time the next part of a script, and then ends the response, or is silent."""

    def __init__(self, *parts, status=200, kind=b"text/event-stream", headers=()):
        self.parts = list(parts)
        self.status = status
        self.headers = [(b"content-type", kind), *headers]
        self.times = []

    async def __call__(self, scope, receive, send):
        self.times.append(anyio.current_time())
        part = self.parts.pop(0)
        await receive()
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        if isinstance(part, bytes):
            part = [part]
        for piece in part:
            if piece is None:
                await receive()
                return
            if isinstance(piece, float):
                await anyio.sleep(piece)
                continue
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def block(number, name="Progress", types=(), **value):
    head = f"id: {number}\n" if number else ""
    data = json.dumps({"type": name, "types": list(types) or None, "value": value})
    return f"{head}event: {name}\ndata: {data}\n\n".encode()


STOP = block(9, "StopEvent", result=1)


@virtually
async def test_events_that_come_twice():
    """P5: an event at or before the cursor is left out, even if a server repeats it."""
    script = Script(
        block(1, message="a") + block(2, message="b") + b"id: 3\nevent: Pro",
        block(2, message="b") + block(3, message="c") + STOP,
    )
    async with connected(script, events=[Progress]) as client:
        assert await read(client.attach("x").stream_events()) == ["a", "b", "c", None]
    assert client.network.requests[1].endswith("after_sequence=2")


@virtually
async def test_notices_of_the_server():
    """A gap is counted, a notice that the server stops is no event, and a detachment is not the end."""
    script = Script(
        block(1, message="a")
        + block(0, "StreamGap", ["InternalEvent"], missed=5)
        + block(7, message="b"),
        block(0, "ServerStopping", ["InternalEvent"], grace=3.0)
        + block(8, "WorkflowDetachedEvent", ["StopEvent"], reason="the server stops"),
        STOP,
    )
    async with connected(script, events=[Progress]) as client:
        stream = client.attach("x").stream_events()
        assert (await stream.receive()).message == "a"
        assert stream.missed == 0
        assert (await stream.receive()).message == "b"
        assert stream.missed == 5
        assert [type(event) async for event in stream] == [StopEvent]
        assert client.network.requests[2].endswith("after_sequence=7")


@virtually
async def test_silence():
    """A stream without a heartbeat counts as lost after the idle timeout; heartbeats keep it."""
    heart = [b": heartbeat\n\n", 15.0] * 20
    script = Script([block(1, message="a"), *heart, block(2, message="b"), None], STOP)
    async with connected(script, events=[Progress], idle_timeout=60) as client:
        begun = anyio.current_time()
        assert await read(client.attach("x").stream_events()) == ["a", "b", None]
    assert 360 <= script.times[1] - begun <= 362


@virtually
async def test_a_server_that_accepts_and_hangs_up():
    """It is asked at growing intervals, too, and given up in the end."""
    script = Script(*[b": hello\n\n"] * 1_000)
    async with connected(script, reconnect_for=60) as client:
        with pytest.raises(ServerUnreachableError, match="ended before the run"):
            await client.attach("x").stream_events().receive()
    assert 10 < len(script.times) < 30


@virtually
async def test_what_is_no_event():
    """What is not of the protocol is shown, and ends the reader."""
    for data, text in [
        (b"id: 1\ndata: hello\n\n", "'hello'"),
        (b"id: 1\ndata: {}\n\n", "'{}'"),
        (b"id: 1\ndata: " + b"[" * 100_000 + b"\n\n", "which is no event"),
        (b'id: x\ndata: {"type": "A", "value": {}}\n\n', "the cursor 'x'"),
        (b"id: " + b"1" * 200 + b'\ndata: {"type": "A", "value": {}}\n\n', "expected digits"),
    ]:
        async with connected(Script(data)) as client:
            with pytest.raises(ClientError) as caught:
                await client.attach("x").stream_events().receive()
            assert text in str(caught.value)
            assert client.network.open == 0


@virtually
async def test_a_server_that_is_being_restarted():
    """A proxy that answers 502, or a server 503 with Retry-After, is asked again after that time."""
    busy = Script(b"{}", status=503, headers=[(b"retry-after", b"7")])
    async with connected(busy) as client:
        stream = client.attach("x").stream_events()
        begun = anyio.current_time()
        client.network.nursery.start_soon(_replace, client, Script(STOP))
        assert len([event async for event in stream]) == 1
        assert anyio.current_time() - begun == pytest.approx(7)
        client.network.app = Script(*[b"<html>"] * 3, status=502, kind=b"text/html")
        with pytest.raises(UnavailableError, match="<html>"):
            await client.list_workflows()


async def _replace(client, app):
    await anyio.sleep(1)
    client.network.app = app
