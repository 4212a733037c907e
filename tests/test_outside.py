"""Events from outside: into a run that is early, idle, busy or over, and from any place."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext
from functools import partial

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    step,
    workflow_scope,
)


class Answer(HumanResponseEvent):
    text: str


class Asks(Workflow[str]):
    """Asks once, and ends with the answer."""

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="well?")

    @step
    async def listen(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


class Waits(Workflow[str]):
    """A step goes on while the answer is awaited by another one."""

    def __init__(self):
        super().__init__()
        self.heard = anyio.Event()

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent | StopEvent:
        ctx.send_event(InputRequiredEvent())
        await self.heard.wait()
        return StopEvent(result="heard while it ran")

    @step
    async def listen(self, ev: Answer) -> None:
        self.heard.set()


async def first_question(handler):
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            return


@pytest.mark.anyio
async def test_idle_run_continues_with_the_answer():
    """A run that has asked is idle, and continues when it is answered."""
    async with Asks().run() as handler:
        await first_question(handler)
        await anyio.wait_all_tasks_blocked()

        assert handler.status == "idle"

        handler.send_event(Answer(text="yes"))

        assert handler.status == "running"
        assert await handler == "yes"


@pytest.mark.anyio
async def test_event_that_comes_before_the_run_has_begun():
    """The handler takes events as soon as its run is started, even before the first step runs."""
    async with Asks().run() as handler:
        handler.send_event(Answer(text="at once"))

        assert await handler == "at once"


@pytest.mark.anyio
async def test_wrong_event_before_the_run_has_begun():
    """What the run would refuse is refused before it has begun as well, and harms it not."""
    async with Asks().run() as handler:
        with pytest.raises(WorkflowRuntimeError, match="no step 'hear'"):
            handler.send_event(Answer(text="x"), step="hear")
        with pytest.raises(WorkflowRuntimeError, match="no step of Asks takes Event"):
            handler.send_event(Event())
        handler.send_event(Answer(text="right"), step="listen")

        assert await handler == "right"


@pytest.mark.anyio
async def test_event_for_a_run_that_is_busy():
    """An answer reaches its step while another step still runs."""
    async with Waits().run() as handler:
        await first_question(handler)
        handler.send_event(Answer(text="now"))

        assert await handler == "heard while it ran"


def test_answer_from_a_callback_of_asyncio():
    """``call_soon`` and its like run outside any task; what they send arrives all the same."""

    async def main():
        async with Asks(timeout=5).run() as handler:
            await first_question(handler)
            asyncio.get_running_loop().call_soon(handler.send_event, Answer(text="called"))
            return await handler

    assert asyncio.run(main()) == "called"


@pytest.mark.trio
async def test_answer_from_a_callback_of_trio():
    """The same for ``TrioToken.run_sync_soon``."""
    async with Asks(timeout=5).run() as handler:
        await first_question(handler)
        trio.lowlevel.current_trio_token().run_sync_soon(handler.send_event, Answer(text="called"))

        assert await handler == "called"


@pytest.mark.anyio
async def test_answer_from_a_thread_goes_through_the_event_loop():
    """A foreign thread is refused, with the way to go; that way works."""

    def wrong(handler):
        with pytest.raises(WorkflowRuntimeError, match=r"from_thread\.run_sync"):
            handler.send_event(Answer(text="wrong"))

    def right(handler):
        anyio.from_thread.run_sync(handler.send_event, Answer(text="right"))

    async with Asks().run() as handler:
        await first_question(handler)
        await anyio.to_thread.run_sync(wrong, handler)
        await anyio.to_thread.run_sync(right, handler)

        assert await handler == "right"


@pytest.mark.anyio
async def test_event_that_nobody_takes_is_refused():
    """What no step takes is refused where it is sent, and the run continues."""

    class Stray(Event):
        pass

    async with Asks().run() as handler:
        await first_question(handler)
        with pytest.raises(WorkflowRuntimeError, match="expected an event of Answer, StartEvent"):
            handler.send_event(Stray())
        with pytest.raises(
            WorkflowRuntimeError, match="no step 'hear'; expected one of ask, listen"
        ):
            handler.send_event(Answer(text="x"), step="hear")
        with pytest.raises(WorkflowRuntimeError, match="the step ask of Asks does not take Answer"):
            handler.send_event(Answer(text="x"), step="ask")
        handler.send_event(Answer(text="x"), step="listen")

        assert await handler == "x"


@pytest.mark.anyio
async def test_event_for_a_run_that_is_over_is_refused():
    """Nothing is accepted and lost."""
    async with Asks().run() as handler:
        await first_question(handler)
        handler.send_event(Answer(text="x"))
        await handler
        with pytest.raises(WorkflowRuntimeError, match="is over"):
            handler.send_event(Answer(text="y"))


# -- other threads ---------------------------------------------------------------------------------


class Number(Event):
    n: int


class Sends(Workflow[int]):
    """Sends ``count`` numbers, each when there is room; then waits to be told to end."""

    def __init__(self, count, **options):
        super().__init__(**options)
        self.count = count
        self.sent = 0
        self.may_end = anyio.Event()
        self.ctx = None

    @step
    async def send(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.ctx = ctx
        for n in range(self.count):
            await ctx.stream.send(Number(n=n))
            self.sent += 1
        await self.may_end.wait()
        return StopEvent(result=self.sent)


def in_other_thread(function, *args):
    """Call a function in a thread of its own while the event loop stands still; return its error."""
    raised = []

    def call():
        try:
            function(*args)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return raised[0] if raised else None


def in_other_loop(backend, function):
    """Await ``function()`` in an event loop of another thread; return what it raised."""
    return in_other_thread(partial(anyio.run, function, backend=backend))


def start(form, handler, group):
    """Return what owns the run; nothing of it has had a turn when the owner is entered."""
    if form == "block":
        return handler
    if form == "nursery":
        handler.start_soon(group)
        return nullcontext()
    return workflow_scope()


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["block", "nursery", "scope"])
@pytest.mark.parametrize("taken", ["before the start", "before the first turn", "later"])
async def test_the_way_from_a_thread_works_whenever_it_is_taken(form, taken):
    """``handler.from_thread`` asks for the run's loop at each call, not when it is taken."""
    async with anyio.create_task_group() as group:
        handler = Asks().run()
        way = handler.from_thread
        async with start(form, handler, group):
            if form == "scope":
                handler.stream_events().close()
            if taken == "before the first turn":
                way = handler.from_thread
            elif taken == "later":
                await first_question(handler)
                way = handler.from_thread
            await anyio.to_thread.run_sync(way.send_event, Answer(text=taken))

            assert await handler == taken


@pytest.mark.anyio
async def test_the_way_from_a_thread_starts_a_run_in_its_own_loop():
    """In the thread of an event loop it is an ordinary call, which may start the run in a scope."""
    async with workflow_scope():
        handler = Asks().run()
        handler.from_thread.send_event(Answer(text="here"))

        assert await handler == "here"


@pytest.mark.anyio
async def test_the_way_from_a_thread_says_when_the_run_was_not_started():
    """Without an owner there is no loop to go to, whoever asks."""
    handler = Asks().run()
    way = handler.from_thread
    error = in_other_thread(way.send_event, Answer(text="too early"))

    assert type(error) is WorkflowRuntimeError
    assert "before the run was started" in str(error)

    with pytest.raises(WorkflowRuntimeError, match="has no owner"):
        way.send_event(Answer(text="no owner"))
    handler.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["block", "nursery", "scope"])
@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_another_thread_is_refused_from_the_start_of_the_run(form, turns):
    """P7: what belongs to the loop is refused elsewhere, also before the run's first turn."""
    async with anyio.create_task_group() as group:
        handler = Sends(1).run()
        async with start(form, handler, group):
            if form == "scope":
                handler.stream_events().close()
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            for use in (
                handler.stream_events,
                partial(handler.send_event, Answer(text="x")),
                handler.cancel,
                partial(handler.cancel, after="steps"),
                handler.snapshot,
            ):
                error = in_other_thread(use)
                assert type(error) is WorkflowRuntimeError, use
                assert "another thread" in str(error), use
            assert not handler._run.log.has_readers
            handler.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("other", ["trio", "asyncio"])
async def test_a_stream_is_read_in_the_loop_of_its_run(other):
    """P7: read or awaited in another loop, it refuses at once; the run and its readers continue."""
    workflow = Sends(3, stream_buffer=1)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        while not workflow.sent:
            await anyio.lowlevel.checkpoint()

        async def wait():
            await handler

        async def send():
            await workflow.ctx.stream.send(Number(n=9))

        async def send_nowait():
            workflow.ctx.stream.send_nowait(Number(n=9))

        for use in (stream.receive, stream.__anext__, wait, send, send_nowait):
            error = in_other_loop(other, use)
            assert type(error) is WorkflowRuntimeError, use
            assert "another thread" in str(error)
        assert "run(stream.receive)" in str(in_other_loop(other, stream.receive))

        # The way that the message tells.
        def take():
            return anyio.from_thread.run(stream.receive)

        assert [(await anyio.to_thread.run_sync(take)).n for _ in range(3)] == [0, 1, 2]
        workflow.may_end.set()
        assert [type(e) async for e in stream] == [StopEvent]


@pytest.mark.anyio
@pytest.mark.parametrize("lossy", [False, True])
async def test_a_reader_closed_in_another_thread_holds_up_nobody(lossy):
    """P7: closing is for any thread, while a sender waits and while a task reads it."""
    workflow = Sends(10, stream_buffer=1)
    async with workflow.run() as handler, anyio.create_task_group() as group:
        slow, read = handler.stream_events(), handler.stream_events(lossy=lossy)
        left = []

        async def read_all():
            try:
                async for _ in read:
                    pass
            except trio.ClosedResourceError as error:
                left.append(error)

        group.start_soon(read_all)
        while not workflow.sent:
            await anyio.lowlevel.checkpoint()
        assert in_other_thread(slow.close) is None
        with anyio.fail_after(5):
            while workflow.sent < 10:
                await anyio.sleep(0.001)
            assert in_other_thread(read.close) is None
            while not left:
                await anyio.sleep(0.001)
        assert in_other_thread(read.close) is None
        workflow.may_end.set()


@pytest.mark.parametrize("first", ["trio", "asyncio"])
@pytest.mark.parametrize("second", ["trio", "asyncio"])
@pytest.mark.parametrize("thread", ["the same thread", "another thread"])
def test_a_stream_is_read_anywhere_once_its_run_is_over(first, second, thread):
    """P6: a reader begun in one event loop continues in another one, of either kind."""

    async def run():
        workflow = Sends(3)
        workflow.may_end.set()
        async with workflow.run() as handler:
            stream = handler.stream_events()
            await handler
        assert (await stream.receive()).n == 0
        streams.extend((stream, handler.stream_events()))

    async def read():
        got.append([event.get("n") async for event in streams[0]])
        got.append([event.get("n") async for event in streams[1]])
        with pytest.raises(trio.EndOfChannel):
            await streams[1].receive()
        await streams[1].aclose()

    streams, got = [], []
    anyio.run(run, backend=first)
    if thread == "the same thread":
        anyio.run(read, backend=second)
    else:
        assert in_other_loop(second, read) is None

    assert got == [[1, 2, None], [0, 1, 2, None]]


@pytest.mark.anyio
async def test_a_plain_step_sends_without_waiting_through_the_loop():
    """P7: ``ctx.stream.send_nowait`` of a ``def`` step looks for room in the loop's thread."""

    class Plain(Workflow[int]):
        @step
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for n in range(5):
                try:
                    ctx.stream.send_nowait(Number(n=n))
                except trio.WouldBlock:
                    return StopEvent(result=n)
            return StopEvent(result=-1)

    async with Plain(stream_buffer=3).run() as handler:
        stream = handler.stream_events()
        while not handler.is_done():
            await anyio.sleep(0.001)

        assert await handler == 3
        assert [e.get("n") async for e in stream] == [0, 1, 2, None]
