"""The stream of a run: its readers, its writers, and the log between them."""

from __future__ import annotations

import asyncio
import inspect
import weakref

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sluicegate import (
    Context,
    Event,
    EventStream,
    HumanResponseEvent,
    InputRequiredEvent,
    InternalEvent,
    StartEvent,
    StepStateChanged,
    StopEvent,
    StreamSender,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowIdleEvent,
    WorkflowRuntimeError,
    WorkflowTimedOutEvent,
    step,
    workflow_scope,
)
from sluicegate._streams import EventLog
from tests.helpers import (
    Catch,
    Done,
    Driven,
    Item,
    Line,
    Mine,
    Note,
    Sender,
    Single,
    Stuck,
    all_blocked,
    counting,
    limit,
    live_tasks,
    numbers,
    on_asyncio,
    wait_until_idle,
)


class Counter(Workflow):
    """Publishes ``count`` items without ever waiting, then what it is told to, and stops."""

    def __init__(self, count: int, **options):
        super().__init__(**options)
        self.count = count

    @step
    async def count_up(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(self.count):
            ctx.write_event_to_stream(Item(number=n))
        return StopEvent(result=self.count)


# -- many readers -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_reader_that_comes_late_starts_at_the_beginning():
    """P6: a reader that comes in the middle gets what was published before it."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        workflow.write(0)
        workflow.write(1)
        stream = handler.stream_events()
        assert stream.missed == 0
        assert (await stream.receive()).number == 0
        workflow.write(2)
        workflow.end.set()
        assert numbers([event async for event in stream]) == [1, 2, None]


@pytest.mark.anyio
async def test_readers_at_different_speeds_do_not_disturb_each_other():
    """P6: each reader has its own position, in whatever order they read."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        fast, slow = handler.stream_events(), handler.stream_events()
        for n in range(3):
            workflow.write(n)
            assert (await fast.receive()).number == n
        assert (await slow.receive()).number == 0
        assert (fast.sequence, slow.sequence) == (3, 1)
        workflow.end.set()
        assert numbers([event async for event in fast]) == [None]
        assert numbers([event async for event in slow]) == [1, 2, None]


@pytest.mark.anyio
async def test_after_starts_behind_the_event_of_that_number():
    """P6: with the number of the last event taken a new reader continues where another was."""
    handler = Counter(5).run()
    await handler
    first = handler.stream_events()
    for _ in range(3):
        await first.receive()

    second = handler.stream_events(after=first.sequence)

    assert first.sequence == 3
    assert second.missed == 0
    assert numbers([event async for event in second]) == [3, 4, None]
    assert second.sequence == 6


@pytest.mark.anyio
async def test_after_the_last_event_is_the_end():
    """P4: a reader that has seen everything before it came ends at once."""
    handler = Counter(2).run()
    await handler

    assert [event async for event in handler.stream_events(after=3)] == []


@pytest.mark.anyio
async def test_after_that_is_negative_is_refused():
    """A message says what after is."""
    handler = Counter(2).run()
    await handler

    with pytest.raises(ValueError, match=r"after is -1; expected the `stream\.cursor` of a reader"):
        handler.stream_events(after=-1)


@pytest.mark.anyio
async def test_after_in_the_future_skips_what_comes_before_it():
    """P6: a reader may start behind an event that has not been published yet."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events(after=2)
        for n in range(4):
            workflow.write(n)
        workflow.end.set()
        assert numbers([event async for event in stream]) == [2, 3, None]


@pytest.mark.anyio
async def test_reader_that_comes_after_the_history_was_cut_is_told_what_it_missed():
    """P6: the oldest event kept is the first one seen; missed counts the others."""
    handler = Counter(20, stream_history=5).run()
    await handler

    stream = handler.stream_events()
    assert stream.missed == 16
    assert numbers([event async for event in stream]) == [16, 17, 18, 19, None]

    later = handler.stream_events(after=10)
    assert later.missed == 6
    assert numbers([event async for event in later]) == [16, 17, 18, 19, None]

    near = handler.stream_events(after=16)
    assert near.missed == 0


@pytest.mark.anyio
async def test_slow_reader_keeps_what_it_has_not_taken_beyond_the_history():
    """P6: the history is for those who come late; one that is attached loses nothing."""
    workflow = Driven(stream_history=3)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        slow = handler.stream_events()
        for n in range(50):
            workflow.write(n)
        late = handler.stream_events()
        workflow.end.set()
        assert numbers([event async for event in slow]) == [*range(50), None]
        assert slow.missed == 0
        # What the slow one kept was there for the late one as well.
        assert numbers([event async for event in late]) == [*range(50), None]
        after = handler.stream_events()
        assert after.missed == 48
        assert numbers([event async for event in after]) == [48, 49, None]


@pytest.mark.anyio
async def test_history_and_slow_readers_bound_what_is_kept():
    """P7: an event that every reader has taken and that is too old is dropped at once."""
    alive: weakref.WeakSet[Event] = weakref.WeakSet()

    class Remembering(Driven):
        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
            self.ctx = ctx
            self.ready.set()
            await self.end.wait()
            return StopEvent()

        def write(self, n: int) -> None:
            item = Item(number=n)
            alive.add(item)
            self.ctx.write_event_to_stream(item)

    workflow = Remembering(stream_history=3)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        for n in range(10):
            workflow.write(n)
        assert {item.number for item in alive} == {7, 8, 9}
        stream = handler.stream_events()
        for n in range(10, 20):
            workflow.write(n)
        assert {item.number for item in alive} == set(range(7, 20))
        for _ in range(4):
            await stream.receive()
        assert {item.number for item in alive} == set(range(11, 20))
        stream.close()
        assert {item.number for item in alive} == {17, 18, 19}
        workflow.end.set()


# -- waiting, and being cancelled while waiting --------------------------------------------------------


@pytest.mark.anyio
async def test_reader_waits_for_what_is_published_later():
    """P6: receive waits, and wakes with the event."""
    workflow = Driven()
    got = []
    async with workflow.run() as handler, anyio.create_task_group() as nursery:
        await workflow.ready.wait()

        async def read() -> None:
            got.extend([event async for event in handler.stream_events()])

        nursery.start_soon(read)
        for n in range(3):
            await all_blocked()
            workflow.write(n)
        await all_blocked()
        workflow.end.set()

    assert numbers(got) == [0, 1, 2, None]


@pytest.mark.anyio
async def test_reader_cancelled_while_it_waits_can_continue():
    """P6: a cancelled receive has taken nothing."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        with anyio.move_on_after(0) as scope:
            await stream.receive()
        assert scope.cancelled_caught
        workflow.write(0)
        workflow.end.set()
        assert numbers([event async for event in stream]) == [0, None]


@pytest.mark.anyio
async def test_receive_in_a_cancelled_scope_takes_nothing():
    """P6: receive is a checkpoint also where an event is ready, and then leaves it there."""
    handler = Counter(2).run()
    await handler
    stream = handler.stream_events()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.receive()

    assert scope.cancelled_caught
    assert stream.sequence == 0
    assert numbers([event async for event in stream]) == [0, 1, None]


@pytest.mark.anyio
@pytest.mark.parametrize("publish_first", [True, False])
async def test_reader_cancelled_by_a_scope_in_the_moment_of_the_wake_loses_nothing(publish_first):
    """P6: an event published in the same turn as the cancellation is taken, or still there."""
    workflow = Driven()
    got = []
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        scope = anyio.CancelScope()

        async def read() -> None:
            with scope:
                async for event in stream:
                    got.append(event)

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(read)
            await all_blocked()
            # No await between the two: the reader has not resumed when it is cancelled.
            if publish_first:
                workflow.write(0)
                scope.cancel()
            else:
                scope.cancel()
                workflow.write(0)
        workflow.end.set()
        got += [event async for event in stream]

    assert numbers(got) == [0, None]


@pytest.mark.anyio
@on_asyncio
@pytest.mark.parametrize("publish_first", [True, False])
@pytest.mark.parametrize("events", [1, 3])
async def test_reader_cancelled_natively_in_the_moment_of_the_wake_loses_nothing(
    anyio_backend, publish_first, events
):
    """P6: the same with task.cancel(), which arrives although the reader was woken."""
    workflow = Driven()
    got = []
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()

        async def read() -> None:
            async for event in stream:
                got.append(event)

        task = asyncio.create_task(read())
        await all_blocked()
        if not publish_first:
            task.cancel()
        for n in range(events):
            workflow.write(n)
        if publish_first:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert got == []
        workflow.end.set()
        got += [event async for event in stream]

    assert numbers(got) == [*range(events), None]


@pytest.mark.anyio
@on_asyncio
async def test_asyncio_timeout_in_the_moment_of_the_wake_loses_nothing(anyio_backend):
    """P6: the same with asyncio.timeout, rescheduled to expire when the event is published."""
    workflow = Driven()
    got = []
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        loop = asyncio.get_running_loop()
        timed_out = False

        def publish_and_expire(limit: asyncio.Timeout) -> None:
            workflow.write(0)
            limit.reschedule(loop.time() - 1)

        try:
            async with asyncio.timeout(None) as limit:
                loop.call_soon(publish_and_expire, limit)
                async for event in stream:
                    got.append(event)
        except TimeoutError:
            timed_out = True
        workflow.end.set()
        got += [event async for event in stream]

    assert timed_out
    assert numbers(got) == [0, None]


@pytest.mark.anyio
@on_asyncio
async def test_sweep_of_native_cancellation_over_a_reader_loses_nothing(anyio_backend):
    """P6: cancelled natively at any turn of the event loop, a reader can continue without a gap."""
    positions = 0
    for turn in range(40):
        workflow = Driven()
        got = []
        async with workflow.run() as handler:
            await workflow.ready.wait()
            stream = handler.stream_events()

            async def read(stream=stream, got=got) -> None:
                async for event in stream:
                    got.append(event)

            task = asyncio.create_task(read())
            for now in range(12):
                if now == turn:
                    positions += task.cancel()
                if now % 3 == 1:
                    workflow.write(now // 3)
                await asyncio.sleep(0)
            if turn < 12:
                with pytest.raises(asyncio.CancelledError):
                    await task
            workflow.end.set()
            if turn >= 12:
                await task
                assert numbers(got) == [0, 1, 2, 3, None]
                break
            got += [event async for event in stream]
        assert numbers(got) == [0, 1, 2, 3, None]

    assert positions == 12


# -- closing -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_reader_is_closed_in_another_task():
    """P5: a reader closed in another task while it waits gets an error that says so."""
    workflow = Driven()
    caught = []
    async with workflow.run() as handler, anyio.create_task_group() as nursery:
        await workflow.ready.wait()
        stream = handler.stream_events()

        async def read() -> None:
            try:
                async for _ in stream:
                    pass
            except trio.ClosedResourceError as error:
                caught.append(error)

        nursery.start_soon(read)
        await all_blocked()
        stream.close()
        stream.close()  # again, and from here
        await stream.aclose()
        await all_blocked()
        assert len(caught) == 1
        workflow.end.set()

    assert "handler.stream_events() gives a new one" in str(caught[0])


@pytest.mark.anyio
async def test_reader_moves_between_tasks():
    """P5: it is iterated in one task, then in another, then closed in a third."""
    handler = Counter(4).run()
    await handler
    stream = handler.stream_events()
    got = []

    async def read_two() -> None:
        got.extend([(await stream.receive()).number for _ in range(2)])

    for function in (read_two, read_two, stream.aclose):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(function)

    assert got == [0, 1, 2, 3]
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive()


@pytest.mark.anyio
async def test_closing_twice_and_closing_after_the_end_are_nothing_special():
    """P5: close and aclose may be called by anyone, at any time, again."""
    handler = Counter(1).run()
    await handler
    stream = handler.stream_events()

    stream.close()
    stream.close()
    await stream.aclose()

    with pytest.raises(trio.ClosedResourceError):
        await anext(stream)


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["with", "async with"])
async def test_reader_is_a_context_manager_of_both_kinds(form):
    """P5: leaving the block closes it, and what was taken stays taken."""
    handler = Counter(2).run()
    await handler

    if form == "with":
        with handler.stream_events() as stream:
            assert (await stream.receive()).number == 0
    else:
        async with handler.stream_events() as stream:
            assert (await stream.receive()).number == 0

    with pytest.raises(trio.ClosedResourceError):
        await stream.receive()


@pytest.mark.anyio
async def test_aclose_is_a_checkpoint_that_closes_first():
    """P5: cancelled, aclose has closed all the same."""
    handler = Counter(1).run()
    await handler
    stream = handler.stream_events()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()

    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive()


@pytest.mark.anyio
async def test_closing_one_reader_leaves_the_others_alone():
    """P6: readers are independent, at their end too."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        one, other = handler.stream_events(), handler.stream_events()
        workflow.write(0)
        one.close()
        workflow.end.set()
        assert numbers([event async for event in other]) == [0, None]


@pytest.mark.anyio
async def test_leaving_the_block_makes_the_readers_lossy():
    """P7: a reader that outlives its block holds up no sender, and reads on."""
    workflow = Sender(10, stream_buffer=2)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        assert (await stream.receive()).number == 0

    assert workflow.sent == 10
    assert await handler == 10
    assert numbers([event async for event in stream]) == [*range(1, 10), None]
    assert stream.missed == 0


@pytest.mark.anyio
async def test_lossy_reader_does_not_make_the_others_lossy():
    """P6: each reader has its own contract with the log."""
    workflow = Driven(stream_history=1)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        whole, lossy = handler.stream_events(), handler.stream_events(lossy=True)
        for n in range(5):
            workflow.write(n)
        # What another reader keeps is there for the lossy one as well.
        assert (await lossy.receive()).number == 0
        assert numbers([await whole.receive() for _ in range(5)]) == [0, 1, 2, 3, 4]
        assert (await lossy.receive()).number == 4
        assert lossy.missed == 3
        assert lossy.sequence == 5
        assert repr(lossy) == "<EventStream open, 5 taken, 5 published, 3 missed>"
        workflow.end.set()

    assert numbers([event async for event in lossy]) == [None]


@pytest.mark.anyio
async def test_lossy_reader_starts_behind_the_event_it_names():
    """P6: ``after`` and ``lossy`` together; what came before it was not missed."""
    workflow = Driven(stream_history=2)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        for n in range(3):
            workflow.write(n)
        lossy = handler.stream_events(after=3, lossy=True)
        assert lossy.missed == 0
        for n in range(3, 9):
            workflow.write(n)
        assert lossy.missed == 4
        assert (await lossy.receive()).number == 7
        workflow.write(9)
        workflow.write(10)
        workflow.write(11)
        lossy.close()
        assert lossy.missed == 6  # and it stays, whatever comes
        workflow.write(12)
        assert lossy.missed == 6
        workflow.end.set()


# -- breaking off, and going on ------------------------------------------------------------------------


@pytest.mark.anyio
async def test_breaks_and_further_loops_see_every_event_once():
    """P5: any number of loops over one reader are one iteration."""
    handler = Counter(6).run()
    await handler
    stream = handler.stream_events()
    got = []

    for _ in range(10):
        async for event in stream:
            got.append(event)
            if len(got) % 2:
                break

    assert numbers(got) == [0, 1, 2, 3, 4, 5, None]


@pytest.mark.anyio
async def test_reader_at_its_end_stays_there():
    """P4: after the terminal event every further receive says that it is over."""
    handler = Counter(1).run()
    await handler
    stream = handler.stream_events()
    assert len([event async for event in stream]) == 2

    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await stream.receive()
        assert [event async for event in stream] == []


# -- the end -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["completed", "failed", "timed_out", "cancelled"])
async def test_terminal_event_comes_last_and_once_and_nothing_runs_then(how):
    """P4: on every way out, everything before, one terminal event, then the end."""
    kinds = {
        "completed": StopEvent,
        "failed": WorkflowFailedEvent,
        "timed_out": WorkflowTimedOutEvent,
        "cancelled": WorkflowCancelledEvent,
    }
    state = []
    published = anyio.Event()

    class Ending(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(number=0), Item(number=1)]

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            if ev.number == 1:
                state.append("in")
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.lowlevel.checkpoint()
                    ctx.write_event_to_stream(Item(number=99))
                    state.append("out")
            while not state:
                await anyio.lowlevel.checkpoint()
            ctx.write_event_to_stream(Item(number=10))
            published.set()
            if how == "completed":
                return StopEvent(result="done")
            if how == "failed":
                msg = "on purpose"
                raise ValueError(msg)
            await anyio.sleep_forever()
            return StopEvent()

    seen = []
    async with Ending(timeout=0.05 if how == "timed_out" else None).run() as handler:

        async def read() -> None:
            stream = handler.stream_events()
            async for event in stream:
                if isinstance(event, StopEvent):
                    seen.append((list(state), handler.is_done(), handler.status))
                seen.append(event)
            with pytest.raises(trio.EndOfChannel):
                await stream.receive()

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
            with limit():
                await published.wait()
            if how == "cancelled":
                handler.cancel("on purpose")
        assert handler.exceptions == () or how != "completed"

    events = [event for event in seen if isinstance(event, Event)]
    assert len([e for e in events if isinstance(e, StopEvent)]) == 2
    assert {type(e) for e in events if isinstance(e, StopEvent)} == {kinds[how]}
    assert numbers(events).count(10) == 2
    assert numbers(events).count(99) == 2
    assert [s for s in seen if isinstance(s, tuple)] == [(["in", "out"], True, how)] * 2
    again = [event async for event in handler.stream_events()]
    assert numbers(again) == [10, 99, None]


@pytest.mark.anyio
async def test_sender_outside_of_the_steps_is_told_that_the_run_is_over():
    """P2: who sends from a task of its own is not left waiting for readers of a run that ended."""
    workflow = Driven(stream_buffer=1)
    caught = []
    async with anyio.create_task_group() as nursery, workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        workflow.write(0)

        async def send() -> None:
            with pytest.raises(WorkflowRuntimeError, match="the run is over") as error:
                await workflow.ctx.stream.send(Item(number=1))
            caught.append(error.value)

        nursery.start_soon(send)
        await all_blocked()
        assert caught == []
        workflow.end.set()
        with limit():
            # Not by taking an event: the stream stays as full as it is.
            while not caught:
                await anyio.lowlevel.checkpoint()
        assert numbers([event async for event in stream]) == [0, None]


@pytest.mark.anyio
async def test_publishing_after_the_end_is_an_error():
    """P4: a writer that is too late gets an error that says so, in each of the three forms."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        workflow.end.set()
        await handler

    late = Item(number=0)
    with pytest.raises(WorkflowRuntimeError, match="the run is over, so Item cannot be published"):
        workflow.ctx.write_event_to_stream(late)
    with pytest.raises(WorkflowRuntimeError, match="the run is over, so Item cannot be published"):
        workflow.ctx.stream.send_nowait(late)
    with pytest.raises(WorkflowRuntimeError, match="the run is over, so Item cannot be published"):
        await workflow.ctx.stream.send(late)
    assert [type(event) async for event in handler.stream_events()] == [StopEvent]


@pytest.mark.anyio
async def test_closing_the_sending_end_does_not_end_the_stream():
    """P4: the stream ends when its run does, and ``async with ctx.stream`` is harmless."""

    class Closing(Workflow):
        @step
        async def close(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async with ctx.stream as sender:
                await sender.send(Item(number=0))
            await sender.send(Item(number=1))
            return StopEvent()

    async with Closing().run() as handler:
        assert numbers([event async for event in handler.stream_events()]) == [0, 1, None]


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["text", 3, Item])
async def test_publishing_what_is_no_event_is_an_error(wrong):
    """P13: the message shows what it was."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        for write in (workflow.ctx.write_event_to_stream, workflow.ctx.stream.send_nowait):
            with pytest.raises(WorkflowRuntimeError, match="is not an event; expected an instance"):
                write(wrong)
        workflow.end.set()
        assert numbers([event async for event in handler.stream_events()]) == [None]


@pytest.mark.anyio
async def test_writing_none_is_nothing():
    """write_event_to_stream ignores None, as in LlamaIndex Workflows."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        workflow.ctx.write_event_to_stream(None)
        workflow.end.set()
        assert numbers([event async for event in handler.stream_events()]) == [None]


# -- the errors, by name -------------------------------------------------------------------------------------


@pytest.mark.anyio
@on_asyncio
async def test_errors_under_asyncio_carry_the_names_of_both_libraries(anyio_backend):
    """P20: under asyncio ``except trio.X`` and ``except anyio.X`` both catch."""
    workflow = Driven(stream_buffer=1)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        workflow.write(0)
        with pytest.raises(trio.WouldBlock) as full:
            workflow.ctx.stream.send_nowait(Item(number=1))
        await stream.receive()
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(stream.__anext__)
            await all_blocked()
            with pytest.raises(trio.BusyResourceError) as busy:
                await stream.receive()
            workflow.write(1)
        workflow.end.set()
        await stream.receive()
        with pytest.raises(trio.EndOfChannel) as ended:
            await stream.receive()
        stream.close()
        with pytest.raises(trio.ClosedResourceError) as closed:
            await stream.receive()

    assert isinstance(full.value, anyio.WouldBlock)
    assert isinstance(busy.value, anyio.BusyResourceError)
    assert isinstance(ended.value, anyio.EndOfStream)
    assert isinstance(closed.value, anyio.ClosedResourceError)
    assert "call handler.stream_events() once more" in str(busy.value)
    assert "handler.stream_events() gives a new one" in str(closed.value)


@pytest.mark.trio
async def test_errors_under_trio_are_trio_s_own():
    """P20: under Trio the exceptions are Trio's classes, not subclasses."""
    workflow = Driven(stream_buffer=1)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        workflow.write(0)
        with pytest.raises(trio.WouldBlock) as full:
            workflow.ctx.stream.send_nowait(Item(number=1))
        await stream.receive()
        workflow.end.set()
        await stream.receive()
        with pytest.raises(trio.EndOfChannel) as ended:
            await stream.receive()
        stream.close()
        with pytest.raises(trio.ClosedResourceError) as closed:
            await stream.receive()

    assert type(full.value) is trio.WouldBlock
    assert type(ended.value) is trio.EndOfChannel
    assert type(closed.value) is trio.ClosedResourceError


@pytest.mark.anyio
async def test_second_task_at_one_reader_is_refused_and_the_first_is_not_disturbed():
    """P5, P6: two tasks at one reader would split the events; each needs its own."""
    workflow = Driven()
    got = []
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()

        async def read() -> None:
            got.extend([event async for event in stream])

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(read)
            await all_blocked()
            with pytest.raises(trio.BusyResourceError, match=r"stream_events\(\)"):
                await stream.receive()
            workflow.write(0)
            workflow.end.set()

    assert numbers(got) == [0, None]


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_reading_what_is_there_gives_other_tasks_a_turn():
    """P3: a loop over a long backlog lets others run before it is done."""
    handler = Counter(20_000, stream_history=30_000).run()
    await handler
    turns = 0
    async with trio.open_nursery() as nursery:

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(count)
        async for _ in handler.stream_events():
            pass
        nursery.cancel_scope.cancel()

    assert turns > 3


@pytest.mark.anyio
async def test_endless_loop_over_ready_events_can_be_cancelled():
    """P3: a cancellation is seen at the next receive, also where it would not have waited."""
    handler = Counter(10).run()
    await handler
    stream = handler.stream_events()
    taken = 0

    with anyio.CancelScope() as scope:
        async for _ in stream:
            taken += 1
            if taken == 4:
                scope.cancel()

    assert scope.cancelled_caught
    assert taken == 4
    assert stream.sequence == 4


@pytest.mark.anyio
async def test_endless_sender_can_be_cancelled():
    """P3: a step that only sends, with no one reading, is stopped by its run's timeout."""

    class Endless(Workflow):
        @step
        async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
            while True:
                await ctx.stream.send(Item(number=0))

    with pytest.raises(TimeoutError):
        await Endless(timeout=0.05, stream_history=10).run()


# -- internal events -------------------------------------------------------------------------------------------


class Chain(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(number=1)

    @step
    async def end(self, ctx: Context, ev: Item) -> StopEvent:
        ctx.write_event_to_stream(ev)
        return StopEvent()


@pytest.mark.anyio
async def test_internal_events_are_for_readers_that_ask_for_them():
    """Engine events tell what each step does; the others do not see them."""
    async with Chain().run() as handler:
        plain = handler.stream_events()
        full = handler.stream_events(expose_internal=True)
        told = [event async for event in full]
        seen = [event async for event in plain]

    assert [type(event) for event in seen] == [Item, StopEvent]
    states = [
        (e.name, e.state, e.input_event_name, e.output_event_name)
        for e in told
        if isinstance(e, StepStateChanged)
    ]
    assert states == [
        ("begin", "running", "StartEvent", None),
        ("begin", "done", "StartEvent", "Item"),
        ("end", "running", "Item", None),
        ("end", "done", "Item", "StopEvent"),
    ]
    assert [event for event in told if not isinstance(event, InternalEvent)] == seen


@pytest.mark.anyio
async def test_internal_events_are_not_made_while_nobody_asks():
    """P16: nothing is built for readers that are not there."""
    async with Chain().run() as handler:
        seen = [event async for event in handler.stream_events()]
        late = [event async for event in handler.stream_events(expose_internal=True)]

    assert late == seen
    assert handler.stream_events(after=0).missed == 0


@pytest.mark.anyio
async def test_idle_run_tells_readers_of_internal_events():
    """A run that waits for an answer says so."""

    class Asking(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent(prefix="well?")

        @step
        async def end(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=ev.response)

    async with Asking().run() as handler:
        async for event in handler.stream_events(expose_internal=True):
            if isinstance(event, WorkflowIdleEvent):
                assert handler.status == "idle"
                handler.send_event(HumanResponseEvent(response="yes"))
        assert await handler == "yes"


# -- the objects -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_ends_of_the_stream_are_channels():
    """The two ends are a send and a receive channel, and the reader no async generator."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        assert isinstance(stream, EventStream)
        assert isinstance(stream, trio.abc.ReceiveChannel)
        assert aiter(stream) is stream
        assert isinstance(workflow.ctx.stream, StreamSender)
        assert isinstance(workflow.ctx.stream, trio.abc.SendChannel)
        workflow.end.set()


@pytest.mark.anyio
async def test_repr_of_a_reader_tells_where_it_is():
    """State in one line, with counts."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        workflow.write(0)
        workflow.write(1)
        await stream.receive()
        assert repr(stream) == "<EventStream open, 1 taken, 2 published>"
        workflow.end.set()
        await handler
        assert repr(stream) == "<EventStream ended, 1 taken, 3 published>"
        stream.close()
        assert repr(stream) == "<EventStream closed, 1 taken, 3 published>"


@pytest.mark.anyio
async def test_reading_an_unstarted_run_shows_how_to_start_it():
    """P13: without an owner there is nothing to read, and the message has the spellings."""
    handler = Counter(1).run()

    with pytest.raises(WorkflowRuntimeError, match=r"async with workflow\.run") as caught:
        handler.stream_events()

    assert "start_soon(nursery)" in str(caught.value)
    assert await handler == 1


@pytest.mark.anyio
async def test_reading_in_a_scope_starts_the_run():
    """A scope owns what is used inside it, and reading is a use."""
    async with workflow_scope():
        handler = Counter(2).run()
        assert numbers([event async for event in handler.stream_events()]) == [0, 1, None]
        assert await handler == 2


# -- the log, against a list --------------------------------------------------------------------------------------


class Ticket(Event):
    n: int


class Hidden(InternalEvent):
    n: int


# With a lambda Hypothesis up to 6.100 reads this whole file at every draw.
def is_open(machine):
    return not machine.ended


def has_readers(machine):
    return machine.readers


class LogAgainstList(RuleBasedStateMachine):
    """Any interleaving of publishing, attaching, reading and closing, compared with a list.

    Some readers are lossy, or become so. The model keeps everything ever published, and for each reader where it is. A reader is
    read by one event at a time, or by a loop until it waits.
    """

    @initialize(window=st.integers(1, 4), history=st.integers(1, 6) | st.just(200))
    def begin(self, window, history):
        self.window = window
        self.history = history
        self.log = EventLog(window=window, history=history)
        self.published: list[Event] = []
        self.kept_from = 0
        self.readers: list[tuple[EventStream, dict]] = []
        self.ended = False

    def _choose(self, data):
        # By number: what is drawn itself would be kept alive by whoever draws.
        return self.readers[data.draw(st.integers(0, len(self.readers) - 1))]

    def _cut(self):
        """Forget, in the model, what is old and has been taken by all."""
        keep = len(self.published) - self.history
        for _, model in self.readers:
            if not model["lossy"]:
                keep = min(keep, model["at"])
        self.kept_from = max(self.kept_from, keep)

    def _go_on(self, model):
        """Have a lossy reader, in the model, miss what is no longer kept."""
        if model["lossy"]:
            model["missed"] += max(0, self.kept_from - model["at"])
            model["at"] = max(self.kept_from, model["at"])

    @precondition(is_open)
    @rule(hidden=st.booleans(), count=st.sampled_from([1, 1, 1, 150]))
    def publish(self, hidden, count):
        for _ in range(count):
            event = (Hidden if hidden else Ticket)(n=len(self.published))
            self.log.append(event)
            self.published.append(event)
            self._cut()

    @precondition(is_open)
    @rule()
    def end(self):
        event = StopEvent()
        self.log.close(event)
        self.published.append(event)
        self.ended = True
        self._cut()

    @rule(after=st.integers(0, 12), internal=st.booleans(), lossy=st.sampled_from([False, True]))
    def attach(self, after, internal, lossy):
        stream = EventStream(self.log, after=after, expose_internal=internal, lossy=lossy)
        missed = max(0, self.kept_from - after)
        model = {"at": max(after, self.kept_from), "internal": internal, "rests": False}
        self.readers.append((stream, model | {"lossy": lossy, "missed": missed}))

    @rule()
    def leave_the_block(self):
        """Readers of a run that goes on become lossy; one that is over lets nobody go."""
        self.log.detach_all()
        if not self.ended:
            for _, model in self.readers:
                model["lossy"] = True
            self._cut()

    @precondition(has_readers)
    @rule(data=st.data())
    def rest_or_read_on(self, data):
        """The task of a reader turns to something else, or comes back to it."""
        stream, model = self._choose(data)
        position = stream._position
        if model["rests"]:
            self.log.read_on([position])
        else:
            position.read_by(object())
            assert self.log.rest(position.task) == ([] if model["lossy"] else [position])
        model["rests"] = not model["rests"]

    @precondition(has_readers)
    @rule(data=st.data())
    def take(self, data):
        stream, model = self._choose(data)
        self._go_on(model)
        ahead = enumerate(self.published[model["at"] :], model["at"] + 1)
        number, expected = next(
            (
                (number, event)
                for number, event in ahead
                if model["internal"] or not isinstance(event, Hidden)
            ),
            (0, None),
        )
        if stream._position.at >= self.log.next:
            assert model["at"] >= len(self.published)
        if expected is None:
            if not model["lossy"]:
                assert stream.sequence == model["at"]
            return
        assert trio.run(stream.receive) is expected
        model["at"], model["rests"] = number, False
        assert stream.sequence == number
        self._cut()

    @precondition(has_readers)
    @rule(data=st.data())
    def read_to_the_end_of_what_is_there(self, data):
        stream, model = self._choose(data)
        self._go_on(model)
        expected = [
            event
            for event in self.published[model["at"] :]
            if model["internal"] or not isinstance(event, Hidden)
        ]
        got, how = trio.run(_read_what_is_there, stream)
        assert len(got) == len(expected)
        assert all(one is other for one, other in zip(got, expected, strict=True))
        assert how == ("ended" if self.ended else "waits")
        model["at"], model["rests"] = max(model["at"], len(self.published)), False
        self._cut()

    @precondition(has_readers)
    @rule(data=st.data(), drop=st.booleans())
    def close(self, data, drop):
        index = data.draw(st.integers(0, len(self.readers) - 1))
        stream, _ = self.readers.pop(index)
        if not drop:
            stream.close()
            stream.close()
            with pytest.raises(trio.ClosedResourceError):
                trio.run(stream.receive)
        del stream
        self._cut()

    @invariant()
    def log_keeps_what_the_model_keeps_and_little_more(self):
        if not hasattr(self, "log"):
            return
        assert self.log.oldest() == self.kept_from + 1
        assert self.log.next == len(self.published) + 1
        held = self.log._events
        kept = self.published[self.kept_from :]
        assert held[len(held) - len(kept) :] == kept
        most = max(len(kept), self.history)
        assert len(held) <= most + (most >> 6)
        assert self.log.has_readers == bool(self.readers)
        assert self.log.internal_readers == sum(model["internal"] for _, model in self.readers)

    @invariant()
    def each_reader_knows_what_it_missed(self):
        for stream, model in getattr(self, "readers", ()):
            behind = max(0, self.kept_from - model["at"]) if model["lossy"] else 0
            assert stream.missed == model["missed"] + behind

    @invariant()
    def log_is_full_when_the_slowest_reader_is_a_window_behind(self):
        if not hasattr(self, "log"):
            return
        behind = [
            len(self.published) - model["at"]
            for _, model in self.readers
            if not (model["rests"] or model["lossy"])
        ]
        assert self.log.is_full() == any(lag >= self.window for lag in behind)


async def _read_what_is_there(stream: EventStream) -> tuple[list[Event], str]:
    got = []
    async with trio.open_nursery() as nursery:

        async def stop_waiting() -> None:
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()

        with trio.CancelScope() as scope:
            nursery.start_soon(stop_waiting)
            async for event in stream:
                got.append(event)
        nursery.cancel_scope.cancel()
    return got, "waits" if scope.cancelled_caught else "ended"


TestLogAgainstList = pytest.mark.slow(LogAgainstList.TestCase)


ENDINGS = {
    "completed": StopEvent,
    "failed": WorkflowFailedEvent,
    "timed_out": WorkflowTimedOutEvent,
    "cancelled": WorkflowCancelledEvent,
}


on_each_ending = pytest.mark.parametrize("ending", ENDINGS)


class Story(Workflow):
    """Publishes notes, also while it unwinds, and ends as it is told."""

    def __init__(self, ending, **options):
        super().__init__(timeout=0.05 if ending == "timed_out" else None, **options)
        self.ending = ending
        self.error = Mine()
        self.stop = StopEvent(result="result")
        self.busy = 0
        #: What each branch has published, in its order.
        self.written = {n: [] for n in (0, 1, 2, 9)}
        self.told = []

    def note(self, branch):
        return Note(number=100 * branch + len(self.written[branch]))

    def write(self, ctx, branch):
        note = self.note(branch)
        ctx.write_event_to_stream(note)
        self.written[branch].append(note)

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        self.write(ctx, 9)
        return [Item(number=n) for n in range(3)]

    @step
    async def work(self, ctx: Context, ev: Item) -> StopEvent:
        self.busy += 1
        try:
            self.write(ctx, ev.number)
            await wait_until_idle(5)
            self.write(ctx, ev.number)
            note = self.note(ev.number)
            await ctx.stream.send(note)
            self.written[ev.number].append(note)
            if ev.number == 2:
                if self.ending == "completed":
                    return self.stop
                if self.ending == "failed":
                    raise self.error
                self.told.append("may be cancelled")
            await anyio.sleep_forever()
        finally:
            self.write(ctx, ev.number)
            with anyio.CancelScope(shield=True):
                await wait_until_idle(5)
            self.write(ctx, ev.number)
            self.busy -= 1
        raise AssertionError


def check_story(workflow, events):
    *notes, last = events
    for branch, written in workflow.written.items():
        assert [e for e in notes if e.number // 100 == branch] == written
    assert len(notes) == sum(map(len, workflow.written.values()))
    assert type(last) is ENDINGS[workflow.ending]


@pytest.mark.anyio
@on_each_ending
@pytest.mark.parametrize("form", ["block", "nursery", "scope"])
async def test_stream_ends_on_every_path(ending, form):
    """P4: everything published, in order, then one terminal event, then a clean stop."""
    workflow = Story(ending)
    handler = workflow.run()
    events = []
    busy_at_the_end = []

    async def read():
        reader = handler.stream_events()
        async for event in reader:
            events.append(event)
            if isinstance(event, StopEvent):
                busy_at_the_end.append(workflow.busy)
                assert handler.is_done()
        _ = handler.exceptions
        for _ in range(2):  # the end is lasting
            with pytest.raises(trio.EndOfChannel):
                await reader.receive()

    async def steer():
        while ending == "cancelled" and not workflow.told:
            await anyio.lowlevel.checkpoint()
        if ending == "cancelled":
            handler.cancel("enough")

    async with anyio.create_task_group() as group:
        if form == "block":
            async with handler:
                group.start_soon(steer)
                await read()
        elif form == "nursery":
            handler.start_soon(group)
            group.start_soon(steer)
            await read()
        else:
            async with workflow_scope():
                handler.stream_events().close()
                group.start_soon(steer)
                await read()

    check_story(workflow, events)
    assert busy_at_the_end == [0]
    last = events[-1]
    if ending == "completed":
        assert last is workflow.stop
    elif ending == "failed":
        assert last.exception is workflow.error
        assert last.step_name == "work"
    elif ending == "timed_out":
        assert last.timeout == 0.05
        assert last.active_steps == ("work", "work", "work")
    else:
        assert last.reason == "enough"


@pytest.mark.anyio
@on_each_ending
@pytest.mark.peer("edge 28", "edge 29")
async def test_late_reader_gets_the_same_story(ending):
    """P4, P6: a reader that comes after the end gets all of it, as often as one likes."""
    workflow = Story(ending)
    handler = workflow.run()
    with Catch():
        async with handler:
            while ending == "cancelled" and not workflow.told:
                await anyio.lowlevel.checkpoint()
            if ending == "cancelled":
                await handler.cancel()

    for _ in range(2):
        reader = handler.stream_events()
        check_story(workflow, [event async for event in reader])
        assert reader.missed == 0


@pytest.mark.anyio
async def test_stream_ends_when_the_run_is_cancelled_from_outside():
    """P4: a reader outside of what was cancelled sees the terminal event too."""
    workflow = Story("cancelled")
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        handler = workflow.run()

        async def own():
            with scope:
                async with handler:
                    await anyio.sleep_forever()

        group.start_soon(own)
        while not workflow.told:
            await anyio.lowlevel.checkpoint()
        reader = handler.stream_events()
        scope.cancel()
        events = [event async for event in reader]

    check_story(workflow, events)
    assert reader.missed == 0


@pytest.mark.anyio
@pytest.mark.peer("edge 21")
async def test_terminal_event_is_published_once_and_only_by_the_run():
    """P4: a step cannot publish a stop event itself."""

    async def work(ctx):
        for event in (StopEvent(result="early"), WorkflowCancelledEvent()):
            with pytest.raises(WorkflowRuntimeError, match="expected the step to return it"):
                ctx.write_event_to_stream(event)
            with pytest.raises(WorkflowRuntimeError, match="expected the step to return it"):
                await ctx.stream.send(event)
            with pytest.raises(WorkflowRuntimeError, match="expected the step to return it"):
                ctx.stream.send_nowait(event)

    async with Single(work).run() as handler:
        events = [event async for event in handler.stream_events()]

    assert [type(e) for e in events] == [StopEvent]


@pytest.mark.anyio
async def test_stream_is_a_plain_object_over_a_channel():
    """P5: never an async generator; a receive channel that can be closed synchronously."""
    async with counting(1).run() as handler:
        with handler.stream_events() as reader:
            assert isinstance(reader, trio.abc.ReceiveChannel)
            assert not inspect.isasyncgen(reader)
            assert not hasattr(reader, "asend")
            assert reader.__aiter__() is reader
            assert not inspect.isasyncgen(reader.__aiter__())
        async with handler.stream_events() as other:
            assert (await other.receive()).number == 0


@pytest.mark.anyio
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.peer("edge 31")
async def test_second_loop_continues_where_the_first_stopped(at):
    """P5: after a ``break`` nothing is lost and nothing comes twice."""
    async with counting(5).run() as handler:
        reader = handler.stream_events()
        first = []
        async for event in reader:
            first.append(event.number)
            if event.number == at:
                break
        second = [event.get("number") async for event in reader]

    assert first == list(range(at + 1))
    assert second == [*range(at + 1, 5), None]


@pytest.mark.anyio
async def test_only_closing_a_reader_closes_it():
    """P4, P5: a reader outlives the block of its run; its own ``close`` ends it, nothing else."""
    async with counting(3).run() as handler:
        reader = handler.stream_events()
        await reader.receive()

    assert [e.get("number") async for e in reader] == [1, 2, None]
    reader.close()
    with pytest.raises(trio.ClosedResourceError):
        await reader.receive()


@pytest.mark.slow_for("timed_out")
@pytest.mark.anyio
@on_each_ending
@pytest.mark.parametrize("turns", [0, 1, 20])
async def test_reader_beside_the_block_gets_the_whole_story(ending, turns):
    """P4: a run that is over lets no reader go, so one in a nursery around the block ends cleanly."""
    for _ in range(10):  # Trio shuffles
        workflow = Story(ending)
        handler = workflow.run()
        events = []

        async def read(events=events, handler=handler):
            async for event in handler.stream_events():
                events.append(event)
                await wait_until_idle(turns)

        async with anyio.create_task_group() as group:
            with Catch():
                async with handler:
                    group.start_soon(read)
                    while ending == "cancelled" and not workflow.told:
                        await anyio.lowlevel.checkpoint()
                    if ending == "cancelled":
                        handler.cancel("enough")
                    await handler

        check_story(workflow, events)


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["block", "scope"])
async def test_reader_of_a_run_that_continues_is_lossy_once_its_owner_waits(form):
    """P4, P6, P7: it blocks no one, is told what it missed, gets the terminal event, and stops."""
    handler = counting(50, stream_buffer=2, stream_history=10).run()
    async with handler if form == "block" else workflow_scope():
        reader = handler.stream_events()
        assert (await reader.receive()).number == 0

    assert handler.is_done()
    assert [e.get("number") async for e in reader] == [*range(41, 50), None]
    assert reader.missed == 40


@pytest.mark.anyio
async def test_reader_that_waits_when_its_owner_leaves_continues_receiving():
    """P4: becoming lossy wakes no reader and costs it no event that the history has."""
    got = []

    async def work(ctx):
        for n in range(10):
            await wait_until_idle(4)
            ctx.write_event_to_stream(Note(number=n))

    async def read(reader):
        got.extend([event async for event in reader])

    async with anyio.create_task_group() as group, Single(work, stream_history=2).run() as handler:
        group.start_soon(read, handler.stream_events())
        await wait_until_idle(3)

    assert [e.get("number") for e in got] == [*range(10), None]


@pytest.mark.anyio
@pytest.mark.peer("edge 30")
async def test_every_reader_gets_every_event_once():
    """P6: readers of different speed, early and late, each get the same objects in order."""
    got = []

    async def read(reader, turns):
        events = []
        async for event in reader:
            events.append(event)
            await wait_until_idle(turns)
        got.append(events)

    handler = counting(30, stream_buffer=4).run()
    async with handler, anyio.create_task_group() as group:
        for turns in (0, 1, 7):
            group.start_soon(read, handler.stream_events(), turns)
        await wait_until_idle(10)
        group.start_soon(read, handler.stream_events(), 0)

    assert len(got) == 4
    assert [e.get("number") for e in got[0]] == [*range(30), None]
    for events in got[1:]:
        assert all(a is b for a, b in zip(events, got[0], strict=True))


@pytest.mark.anyio
@pytest.mark.parametrize("publish_first", [True, False])
async def test_reader_that_is_cancelled_while_waiting_loses_nothing(publish_first):
    """P6: in the tick in which an event comes, before it and after it."""
    send = []

    async def work(ctx):
        send.append(ctx.write_event_to_stream)
        await anyio.sleep_forever()

    got = []
    async with Single(work).run() as handler:
        reader = handler.stream_events()
        while not send:
            await anyio.lowlevel.checkpoint()
        for number in range(20):
            async with anyio.create_task_group() as group:

                async def read():
                    got.append((await reader.receive()).number)

                group.start_soon(read)
                await wait_until_idle(number % 4)
                if publish_first:
                    send[0](Note(number=number))
                    group.cancel_scope.cancel()
                else:
                    group.cancel_scope.cancel()
                    send[0](Note(number=number))
            if len(got) == number:  # or the next one would not have to wait
                got.append((await reader.receive()).number)
        handler.cancel()
        assert [type(e) async for e in reader] == [WorkflowCancelledEvent]

    assert got == list(range(20))


@pytest.mark.anyio
@pytest.mark.parametrize(("history", "missed"), [(1, 12), (5, 8), (13, 0), (10_000, 0)])
async def test_late_reader_starts_at_the_oldest_event_kept(history, missed):
    """P6: and is told how many it missed; the terminal event counts as one."""
    handler = counting(12, stream_history=history).run()
    await handler

    reader = handler.stream_events()
    events = [event.get("number") async for event in reader]

    assert reader.missed == missed
    assert events == [*range(12), None][missed:]


@pytest.mark.anyio
async def test_history_is_ten_thousand_by_default():
    """P6: 10,000 events are kept, the terminal one included."""

    async def work(ctx):
        for n in range(10_010):
            ctx.write_event_to_stream(Note(number=n))

    handler = Single(work).run()
    await handler

    reader = handler.stream_events()
    first = await reader.receive()
    assert reader.missed == 11
    assert first.number == 11
    assert [e async for e in reader][-2].number == 10_009


@pytest.mark.anyio
@on_each_ending
async def test_lossy_reader_is_told_what_it_missed_on_every_path(ending):
    """P6: however far behind it is, it gets what is kept, the terminal event and a clean stop."""
    workflow = Story(ending, stream_history=3)
    async with anyio.create_task_group() as group:
        handler = workflow.run().start_soon(group, keep_failure=True)
        reader = handler.stream_events(lossy=True)
        whole = handler.stream_events()
        while ending == "cancelled" and not workflow.told:
            await anyio.lowlevel.checkpoint()
        if ending == "cancelled":
            handler.cancel("enough")
        everything = [event async for event in whole]
    whole.close()
    _ = handler.exceptions

    assert reader.missed == len(everything) - 3
    assert [event async for event in reader] == everything[-3:]
    assert reader.missed == len(everything) - 3


@pytest.mark.anyio
async def test_lossy_reader_that_keeps_up_misses_nothing():
    """P6: being lossy costs a reader nothing while it is no more than the history behind."""
    async with counting(100, stream_history=3).run() as handler:
        reader = handler.stream_events(lossy=True)
        events = [event.get("number") async for event in reader]

    assert events == [*range(100), None]
    assert reader.missed == 0


@pytest.mark.anyio
@pytest.mark.peer("edge 15")
async def test_reader_in_another_task_sees_the_end_when_the_owner_is_cancelled():
    """P4: whoever reads gets all that was published and a terminal event, then the end."""
    workflow = Stuck()
    handler = workflow.run()
    events = []

    async def own() -> None:
        with scope:
            await handler

    async def read() -> None:
        events.extend([event async for event in handler.stream_events()])
        # Nothing of the run is left when its end is seen.
        assert workflow.seen == ["cancelled", "cleaned up"]
        assert handler.is_done()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(own)
        await workflow.in_step.wait()
        nursery.start_soon(read)
        await all_blocked()
        scope.cancel()

    assert [type(event) for event in events] == [Line, Line, WorkflowCancelledEvent]


class Gated(Workflow):
    """Publishes an item before and one after its gate opens."""

    def __init__(self):
        super().__init__()
        self.gate = anyio.Event()

    @step
    async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Item(number=0))
        await self.gate.wait()
        ctx.write_event_to_stream(Item(number=1))
        return StopEvent(result="owned")


@pytest.mark.anyio
@pytest.mark.peer("edge 18c")
async def test_scope_around_the_stream_loop_alone_leaves_the_run_and_loses_nothing():
    """P6: a reader that gives up leaves an owned run, and can continue reading."""
    workflow = Gated()
    async with workflow.run() as handler:
        stream = handler.stream_events()
        events = []
        with anyio.move_on_after(0.03) as scope:
            async for event in stream:
                events.append(event)
        assert scope.cancelled_caught
        assert handler.status == "running"
        workflow.gate.set()
        events += [event async for event in stream]
        assert await handler == "owned"

    assert [event.get("number") for event in events] == [0, 1, None]


@pytest.mark.anyio
@on_asyncio
@pytest.mark.peer("edge 18c")
async def test_asyncio_timeout_around_the_stream_loop_alone_loses_nothing(anyio_backend):
    """P6: the same with asyncio's own timeout."""
    workflow = Gated()
    async with workflow.run() as handler:
        stream = handler.stream_events()
        events = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                async for event in stream:
                    events.append(event)
        workflow.gate.set()
        events += [event async for event in stream]
        assert await handler == "owned"

    assert [event.get("number") for event in events] == [0, 1, None]


@pytest.mark.anyio
@pytest.mark.peer("edge 32")
async def test_reader_that_raises_ends_the_run_with_the_block():
    """An exception of the loop's body cancels the run, and leaves the block itself."""
    workflow = Stuck()
    error = LookupError("in the body")
    before = len(live_tasks())
    with pytest.raises(LookupError) as caught:
        async with workflow.run() as handler:
            async for event in handler.stream_events():
                if event.text == "waiting":
                    raise error

    assert caught.value is error
    assert workflow.seen == ["cancelled", "cleaned up"]
    assert handler.status == "cancelled"
    assert len(live_tasks()) == before


@pytest.mark.anyio
@pytest.mark.peer("edge 37")
async def test_stream_is_in_the_order_in_which_it_was_written():
    """P4: one order for all readers, the order of publishing."""
    written = []

    class Parallel(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step(num_workers=3)
        async def talk(self, ctx: Context, ev: Item) -> Done:
            for k in range(5):
                note = Line(text=f"{ev.number}.{k}")
                ctx.write_event_to_stream(note)
                written.append(note)
                await anyio.lowlevel.checkpoint()
            return Done(number=ev.number)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    async with Parallel().run() as handler:
        first = [event async for event in handler.stream_events()]
        second = [event async for event in handler.stream_events()]

    assert len(written) == 15
    assert all(one is other for one, other in zip(first[:-1], written, strict=True))
    assert first == second
    for n in range(3):
        assert [e.text for e in written if e.text.startswith(f"{n}.")] == [
            f"{n}.{k}" for k in range(5)
        ]


@pytest.mark.anyio
@pytest.mark.peer("note 1.6")
async def test_internal_events_name_the_input_in_one_way():
    """The class of the input has the same name when a step begins and when it ends."""

    async def nothing(ctx): ...

    async with Single(nothing).run() as handler:
        changes = [
            (event.state, event.input_event_name, event.output_event_name)
            async for event in handler.stream_events(expose_internal=True)
            if isinstance(event, StepStateChanged)
        ]

    assert changes == [("running", "StartEvent", None), ("done", "StartEvent", "StopEvent")]
