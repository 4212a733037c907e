"""The stream of a run: its readers, its writers, and the log between them."""

from __future__ import annotations

import asyncio
import gc
import threading
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
from sluicegate._loop import current_backend
from sluicegate._streams import EventLog


on_all = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)


class Item(Event):
    n: int


class Done(Event):
    pass


async def all_blocked() -> None:
    """Let all other tasks run until they wait; AnyIO's own would sleep for 0.1 s under asyncio."""
    if trio.lowlevel.in_trio_run():
        await trio.testing.wait_all_tasks_blocked()
    else:
        for _ in range(50):
            await asyncio.sleep(0)


def limit() -> anyio.CancelScope:
    """Fail, rather than hang, where a test waits for what never comes; no test measures it."""
    return anyio.fail_after(2)


def numbers(events) -> list:
    """Return the numbers of the items, with a None for each other event."""
    return [event.get("n") for event in events]


class Counter(Workflow):
    """Publishes ``count`` items without ever waiting, then what it is told to, and stops."""

    def __init__(self, count: int, **options):
        super().__init__(**options)
        self.count = count

    @step
    async def count_up(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(self.count):
            ctx.write_event_to_stream(Item(n=n))
        return StopEvent(result=self.count)


class Sender(Workflow):
    """Sends ``count`` items, each only when there is room."""

    def __init__(self, count: int, **options):
        super().__init__(**options)
        self.count = count
        self.sent = 0

    @step
    async def send_all(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(self.count):
            await ctx.stream.send(Item(n=n))
            self.sent = n + 1
        return StopEvent(result=self.sent)


class Driven(Workflow):
    """Publishes what a test puts into it; ends when told to."""

    def __init__(self, **options):
        super().__init__(**options)
        self.ctx: Context | None = None
        self.ready = anyio.Event()
        self.end = anyio.Event()

    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.ctx = ctx
        self.ready.set()
        await self.end.wait()
        return StopEvent(result="ended")

    def write(self, n: int) -> None:
        self.ctx.write_event_to_stream(Item(n=n))


# -- many readers -----------------------------------------------------------------------------------


@on_all
async def test_reader_that_comes_late_starts_at_the_beginning():
    """P6: a reader that comes in the middle gets what was published before it."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        workflow.write(0)
        workflow.write(1)
        stream = handler.stream_events()
        assert stream.missed == 0
        assert (await stream.receive()).n == 0
        workflow.write(2)
        workflow.end.set()
        assert numbers([event async for event in stream]) == [1, 2, None]


@on_all
async def test_readers_at_different_speeds_do_not_disturb_each_other():
    """P6: each reader has its own position, in whatever order they read."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        fast, slow = handler.stream_events(), handler.stream_events()
        for n in range(3):
            workflow.write(n)
            assert (await fast.receive()).n == n
        assert (await slow.receive()).n == 0
        assert (fast.sequence, slow.sequence) == (3, 1)
        workflow.end.set()
        assert numbers([event async for event in fast]) == [None]
        assert numbers([event async for event in slow]) == [1, 2, None]


@on_all
async def test_every_reader_gets_the_same_objects():
    """P6: broadcasting copies nothing."""
    handler = Counter(3).run()
    await handler

    first = [event async for event in handler.stream_events()]
    second = [event async for event in handler.stream_events()]

    assert all(one is other for one, other in zip(first, second, strict=True))


@on_all
async def test_after_starts_behind_the_event_of_that_number():
    """P6: with the number of the last event taken a new reader goes on where another was."""
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


@on_all
async def test_after_the_last_event_is_the_end():
    """P4: a reader that has seen everything before it came ends at once."""
    handler = Counter(2).run()
    await handler

    assert [event async for event in handler.stream_events(after=3)] == []


@on_all
async def test_after_that_is_negative_is_refused():
    """A message says what after is."""
    handler = Counter(2).run()
    await handler

    with pytest.raises(ValueError, match="after is -1; expected the number of an event"):
        handler.stream_events(after=-1)


@on_all
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


@on_all
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


@on_all
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


@on_all
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
            item = Item(n=n)
            alive.add(item)
            self.ctx.write_event_to_stream(item)

    workflow = Remembering(stream_history=3)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        for n in range(10):
            workflow.write(n)
        assert {item.n for item in alive} == {7, 8, 9}
        stream = handler.stream_events()
        for n in range(10, 20):
            workflow.write(n)
        assert {item.n for item in alive} == set(range(7, 20))
        for _ in range(4):
            await stream.receive()
        assert {item.n for item in alive} == set(range(11, 20))
        stream.close()
        assert {item.n for item in alive} == {17, 18, 19}
        workflow.end.set()


# -- waiting, and being cancelled while waiting --------------------------------------------------------


@on_all
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


@on_all
async def test_reader_cancelled_while_it_waits_can_go_on():
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


@on_all
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


@on_all
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
    """P6: cancelled natively at any turn of the event loop, a reader can go on without a gap."""
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


@on_all
async def test_reader_is_closed_in_another_task():
    """P5: a reader that waits in one task and is closed in another is told so."""
    workflow = Driven()
    caught = []
    async with workflow.run() as handler, anyio.create_task_group() as nursery:
        await workflow.ready.wait()
        stream = handler.stream_events()

        async def read() -> None:
            try:
                await stream.receive()
            except trio.ClosedResourceError as error:
                caught.append(error)

        nursery.start_soon(read)
        await all_blocked()
        stream.close()
        await all_blocked()
        assert len(caught) == 1
        workflow.end.set()

    assert "handler.stream_events() gives a new one" in str(caught[0])


@on_all
async def test_reader_moves_between_tasks():
    """P5: it is iterated in one task, then in another, then closed in a third."""
    handler = Counter(4).run()
    await handler
    stream = handler.stream_events()
    got = []

    async def read_two() -> None:
        got.extend([(await stream.receive()).n for _ in range(2)])

    for function in (read_two, read_two, stream.aclose):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(function)

    assert got == [0, 1, 2, 3]
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive()


@on_all
async def test_closing_twice_and_closing_after_the_end_are_nothing_special():
    """P5: close and aclose may be called by anybody, at any time, again."""
    handler = Counter(1).run()
    await handler
    stream = handler.stream_events()

    stream.close()
    stream.close()
    await stream.aclose()

    with pytest.raises(trio.ClosedResourceError):
        await anext(stream)


@on_all
@pytest.mark.parametrize("form", ["with", "async with"])
async def test_reader_is_a_context_manager_of_both_kinds(form):
    """P5: leaving the block closes it, and what was taken stays taken."""
    handler = Counter(2).run()
    await handler

    if form == "with":
        with handler.stream_events() as stream:
            assert (await stream.receive()).n == 0
    else:
        async with handler.stream_events() as stream:
            assert (await stream.receive()).n == 0

    with pytest.raises(trio.ClosedResourceError):
        await stream.receive()


@on_all
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


@on_all
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


@on_all
async def test_leaving_the_block_makes_the_readers_lossy():
    """P7: a reader that outlives its block holds up no sender, and reads on."""
    workflow = Sender(10, stream_buffer=2)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        assert (await stream.receive()).n == 0

    assert workflow.sent == 10
    assert await handler == 10
    assert numbers([event async for event in stream]) == [*range(1, 10), None]
    assert stream.missed == 0


@on_all
async def test_lossy_reader_does_not_make_the_others_lossy():
    """P6: each reader has its own contract with the log."""
    workflow = Driven(stream_history=1)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        whole, lossy = handler.stream_events(), handler.stream_events(lossy=True)
        for n in range(5):
            workflow.write(n)
        # What another reader keeps is there for the lossy one as well.
        assert (await lossy.receive()).n == 0
        assert numbers([await whole.receive() for _ in range(5)]) == [0, 1, 2, 3, 4]
        assert (await lossy.receive()).n == 4
        assert lossy.missed == 3
        assert lossy.sequence == 5
        assert repr(lossy) == "<EventStream open, 5 taken, 5 published, 3 missed>"
        workflow.end.set()

    assert numbers([event async for event in lossy]) == [None]


@on_all
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
        assert (await lossy.receive()).n == 7
        workflow.write(9)
        workflow.write(10)
        workflow.write(11)
        lossy.close()
        assert lossy.missed == 6  # and it stays, whatever comes
        workflow.write(12)
        assert lossy.missed == 6
        workflow.end.set()


# -- breaking off, and going on ------------------------------------------------------------------------


@on_all
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


@on_all
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


# -- abandoned readers -----------------------------------------------------------------------------------


@on_all
async def test_reader_whose_reference_was_dropped_holds_up_nobody():
    """P7: a reader that nobody can read any more is no reader."""
    workflow = Sender(20, stream_buffer=2)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        await stream.receive()
        await all_blocked()
        assert workflow.sent < 20
        del stream
        gc.collect()
        with limit():
            assert await handler == 20


@on_all
async def test_loop_that_breaks_and_drops_its_reader_holds_up_nobody():
    """P7: ``async for ... break`` over a fresh reader leaves nothing that senders wait for."""
    workflow = Sender(20, stream_buffer=2)
    async with workflow.run() as handler:
        async for event in handler.stream_events():
            assert event.n == 0
            break
        gc.collect()
        with limit():
            assert await handler == 20


@on_all
@pytest.mark.parametrize("parked", [False, True])
async def test_reader_dropped_in_another_thread_holds_up_nobody(parked):
    """P7: the last reference may be dropped anywhere, also while a sender already waits for it."""
    workflow = Sender(20, stream_buffer=2)
    async with workflow_scope():
        readers = [workflow.run().stream_events()]
        await readers[0].receive()
        if parked:
            await all_blocked()
            assert workflow.sent < 20
        thread = threading.Thread(target=readers.clear)
        thread.start()
        thread.join()
        gc.collect()
        with limit():
            while workflow.sent < 20:
                await anyio.sleep(0.001)


@on_all
async def test_reader_collected_just_before_its_sender_sleeps_holds_up_nobody(monkeypatch):
    """P7: a collection may come at any line, also between the look for room and the wait."""
    waiter = type(current_backend().waiter())
    readers = []

    def wait(self, *task, own=waiter.wait):
        if handler._runner.log._senders:
            readers.clear()
        return own(self, *task)

    async with workflow_scope():
        handler = Sender(20, stream_buffer=2).run()
        readers.append(handler.stream_events())
        monkeypatch.setattr(waiter, "wait", wait)
        with limit():
            while not handler.is_done():
                await anyio.sleep(0.001)
    assert readers == []


def test_collection_in_the_midst_of_a_look_through_the_readers_skips_none():
    """P6: what another reader has not taken stays, when one goes while the log looks at each."""

    class Collecting(int):
        """A position at which a collection comes when it is compared."""

        def __lt__(self, other):
            log.detach(first)
            return int(self) < other

        __le__ = __lt__

    for look, expected in ((EventLog.oldest, 1), (EventLog.is_full, True)):
        log = EventLog(window=4, history=2)
        first, _, last = [log.attach(0, internal=False) for _ in range(3)]
        for n in range(4):
            log.append(Item(n=n))
        first.at, last.at = Collecting(4), 5  # the second has taken none
        assert look(log) == expected
        assert log._readers.attached == 2


@on_all
async def test_reader_kept_but_left_for_the_result_holds_up_nobody():
    """P7: who reads some events and then awaits the handler from the same task gets the result."""
    workflow = Sender(20, stream_buffer=2)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        assert (await stream.receive()).n == 0
        with limit():
            assert await handler == 20
        # And the reader is as good as before.
        assert numbers([event async for event in stream]) == [*range(1, 20), None]


@on_all
async def test_reader_kept_but_never_read_holds_up_nobody():
    """P7: nor does a reader that was made and never asked for an event, once its maker waits."""
    workflow = Sender(20, stream_buffer=2)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        with limit():
            assert await handler == 20
        assert numbers([event async for event in stream]) == [*range(20), None]


@on_all
async def test_reader_of_another_task_still_counts_while_the_maker_waits():
    """P7: waiting for the result in one task does not make the readers of others lossy or free."""
    workflow = Sender(20, stream_buffer=2)
    got = []
    most = 0
    async with workflow.run() as handler, anyio.create_task_group() as nursery:

        async def read() -> None:
            nonlocal most
            async for event in stream:
                got.append(event)
                most = max(most, workflow.sent - len(got))
                await all_blocked()

        stream = handler.stream_events()
        nursery.start_soon(read)
        await all_blocked()
        with limit():
            assert await handler == 20

    assert numbers(got) == [*range(20), None]
    assert most <= 2


# -- back-pressure ---------------------------------------------------------------------------------------


@on_all
async def test_send_waits_while_the_slowest_reader_is_a_buffer_behind():
    """P7: the sender goes on one by one, as the slowest of the readers does."""
    workflow = Sender(10, stream_buffer=3)
    async with workflow.run() as handler:
        slow, fast = handler.stream_events(), handler.stream_events()
        await all_blocked()
        assert workflow.sent == 3
        for n in range(3):
            assert (await fast.receive()).n == n
        await all_blocked()
        assert workflow.sent == 3
        sent = []
        for n in range(5):
            assert (await slow.receive()).n == n
            await all_blocked()
            sent.append(workflow.sent)
        # From the third on it is the other one that is a buffer behind.
        assert sent == [4, 5, 6, 6, 6]


@on_all
async def test_closing_the_slowest_reader_lets_the_senders_go_on():
    """P7: a sender that waits for a reader goes on when that one leaves."""
    workflow = Sender(10, stream_buffer=3)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        await all_blocked()
        assert workflow.sent == 3
        stream.close()
        assert await handler == 10


@pytest.mark.schedule_fuzz(seeds=20)
async def test_readers_go_on_before_a_sender_that_gives_way():
    """P3: a sender that has had its time lets readers have the event before it does more (on Trio)."""
    order = []

    class Sends(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await trio.sleep(0.01)
            await ctx.stream.send(Item(n=1))
            order.append("sender")
            return StopEvent()

    async with Sends().run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, Item):
                order.append("reader")

    assert order == ["reader", "sender"]


@on_all
async def test_send_that_is_cancelled_while_it_waits_has_published_nothing():
    """P7: a cancelled send did nothing, a send that returned did all."""
    outcome = []

    class Impatient(Workflow):
        @step
        async def send(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.stream.send(Item(n=0))
            with anyio.move_on_after(0.02) as scope:
                await ctx.stream.send(Item(n=1))
            outcome.append(scope.cancelled_caught)
            ctx.write_event_to_stream(Item(n=2))
            return StopEvent()

    async with Impatient(stream_buffer=1).run() as handler:
        stream = handler.stream_events()
        await all_blocked()
        while not outcome:
            await anyio.sleep(0.001)
        assert numbers([event async for event in stream]) == [0, 2, None]

    assert outcome == [True]


@on_all
async def test_send_in_a_cancelled_scope_publishes_nothing():
    """P7: send is a checkpoint also where there is room."""
    outcome = []

    class Cancelled(Workflow):
        @step
        async def send(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await ctx.stream.send(Item(n=0))
            outcome.append(scope.cancelled_caught)
            return StopEvent()

    async with Cancelled().run() as handler:
        assert numbers([event async for event in handler.stream_events()]) == [None]

    assert outcome == [True]


@on_all
async def test_several_senders_wait_and_all_go_on():
    """P7: no sender is forgotten, and nothing of what they send is lost or doubled."""

    class Many(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(4)]

        @step(num_workers=4)
        async def talk(self, ctx: Context, ev: Item) -> Done:
            for k in range(5):
                await ctx.stream.send(Item(n=10 * ev.n + k))
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    async with Many(stream_buffer=1).run() as handler:
        got = numbers([event async for event in handler.stream_events()])

    assert got[-1] is None
    assert sorted(got[:-1]) == sorted(10 * n + k for n in range(4) for k in range(5))
    for n in range(4):
        assert [m for m in got[:-1] if m // 10 == n] == [10 * n + k for k in range(5)]


@on_all
async def test_write_event_never_waits_for_any_reader():
    """P7: the synchronous form publishes whatever the readers do."""
    workflow = Driven(stream_buffer=1)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        for n in range(100):
            workflow.write(n)
        workflow.end.set()
        assert await handler == "ended"
        assert numbers([event async for event in stream]) == [*range(100), None]


@on_all
async def test_send_nowait_raises_where_send_would_wait():
    """P7: it publishes or raises WouldBlock, at once; with no reader it always publishes."""
    workflow = Driven(stream_buffer=2)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        sender = workflow.ctx.stream
        for n in range(5):
            sender.send_nowait(Item(n=n))
        stream = handler.stream_events(after=5)
        sender.send_nowait(Item(n=5))
        sender.send_nowait(Item(n=6))
        with pytest.raises(trio.WouldBlock):
            sender.send_nowait(Item(n=7))
        assert (await stream.receive()).n == 5
        sender.send_nowait(Item(n=8))
        workflow.end.set()
        assert numbers([event async for event in stream]) == [6, 8, None]


@on_all
async def test_late_reader_of_a_long_history_holds_the_senders_back_until_it_is_near():
    """P7: a reader that starts far behind counts like any other."""
    workflow = Sender(10, stream_buffer=4)
    driven = Driven(stream_buffer=4)
    async with driven.run() as handler:
        await driven.ready.wait()
        for n in range(10):
            driven.write(n)
        stream = handler.stream_events()
        with pytest.raises(trio.WouldBlock):
            driven.ctx.stream.send_nowait(Item(n=10))
        for _ in range(7):
            await stream.receive()
        driven.ctx.stream.send_nowait(Item(n=10))
        driven.end.set()
    assert await workflow.run() == 10


# -- the end -----------------------------------------------------------------------------------------------


@on_all
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
            return [Item(n=0), Item(n=1)]

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            if ev.n == 1:
                state.append("in")
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.lowlevel.checkpoint()
                    ctx.write_event_to_stream(Item(n=99))
                    state.append("out")
            while not state:
                await anyio.lowlevel.checkpoint()
            ctx.write_event_to_stream(Item(n=10))
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


@on_all
async def test_waiting_senders_unwind_when_the_run_ends():
    """P2, P7: a sender that waits for a reader that never comes does not outlive the run."""
    workflow = Sender(10, stream_buffer=1)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        await all_blocked()
        assert workflow.sent == 1
        await handler.cancel()
        assert handler.is_done()
        assert [type(event) async for event in stream] == [Item, WorkflowCancelledEvent]


@on_all
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
                await workflow.ctx.stream.send(Item(n=1))
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


@on_all
async def test_publishing_after_the_end_is_an_error():
    """A writer that is too late is told so, in each of the three forms."""
    workflow = Driven()
    async with workflow.run() as handler:
        await workflow.ready.wait()
        workflow.end.set()
        await handler

    late = Item(n=0)
    with pytest.raises(WorkflowRuntimeError, match="the run is over, so Item cannot be published"):
        workflow.ctx.write_event_to_stream(late)
    with pytest.raises(WorkflowRuntimeError, match="the run is over, so Item cannot be published"):
        workflow.ctx.stream.send_nowait(late)
    with pytest.raises(WorkflowRuntimeError, match="the run is over, so Item cannot be published"):
        await workflow.ctx.stream.send(late)


@on_all
async def test_closing_the_sending_end_does_not_end_the_stream():
    """P4: the stream ends when its run does, and ``async with ctx.stream`` is harmless."""

    class Closing(Workflow):
        @step
        async def close(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async with ctx.stream as sender:
                await sender.send(Item(n=0))
            await sender.send(Item(n=1))
            return StopEvent()

    async with Closing().run() as handler:
        assert numbers([event async for event in handler.stream_events()]) == [0, 1, None]


@on_all
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


@on_all
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
            workflow.ctx.stream.send_nowait(Item(n=1))
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
            workflow.ctx.stream.send_nowait(Item(n=1))
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


@on_all
async def test_second_task_at_one_reader_is_refused_and_the_first_is_not_disturbed():
    """P6: two tasks at one reader would split the events; each needs its own."""
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
            with pytest.raises(trio.BusyResourceError):
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


@on_all
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


@on_all
async def test_endless_sender_can_be_cancelled():
    """P3: a step that only sends, with nobody reading, is stopped by its run's timeout."""

    class Endless(Workflow):
        @step
        async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
            while True:
                await ctx.stream.send(Item(n=0))

    with pytest.raises(TimeoutError):
        await Endless(timeout=0.05, stream_history=10).run()


# -- internal events -------------------------------------------------------------------------------------------


class Chain(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(n=1)

    @step
    async def end(self, ctx: Context, ev: Item) -> StopEvent:
        ctx.write_event_to_stream(ev)
        return StopEvent()


@on_all
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


@on_all
async def test_internal_events_are_not_made_while_nobody_asks():
    """P16: nothing is built for readers that are not there."""
    async with Chain().run() as handler:
        seen = [event async for event in handler.stream_events()]
        late = [event async for event in handler.stream_events(expose_internal=True)]

    assert late == seen
    assert handler.stream_events(after=0).missed == 0


@on_all
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


@on_all
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


@on_all
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


@on_all
async def test_reading_an_unstarted_run_shows_how_to_start_it():
    """P13: without an owner there is nothing to read, and the message has the spellings."""
    handler = Counter(1).run()

    with pytest.raises(WorkflowRuntimeError, match=r"async with workflow\.run") as caught:
        handler.stream_events()

    assert "start_soon(nursery)" in str(caught.value)
    assert await handler == 1


@on_all
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
