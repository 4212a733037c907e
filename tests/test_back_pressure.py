"""Back-pressure: who waits for a slow reader, and who does not (P7)."""

from __future__ import annotations

import gc
import threading
import weakref

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    step,
    workflow_scope,
)
from sluicegate._loop import current_backend
from sluicegate._streams import EventLog
from tests.helpers import (
    Driven,
    Fan,
    Item,
    Mine,
    Note,
    Sender,
    Single,
    all_blocked,
    counting,
    limit,
    nothing_left,
    numbers,
    on_each_backend,
    run_virtually,
    wait_until_idle,
)


@pytest.mark.anyio
async def test_sender_that_waits_is_released_by_every_end():
    """P4, P7: a step that waits for a slow reader when its run ends does not hold it up."""

    async def work(ctx, number):
        if number == 0:
            await wait_until_idle()
            raise Mine
        while True:
            await ctx.stream.send(Note(number=number))

    handler = Fan(work, stream_buffer=1).run()
    with nothing_left(), pytest.raises(Mine):
        async with handler:
            reader = handler.stream_events()
            while not handler.is_done():
                await anyio.lowlevel.checkpoint()
            events = [event async for event in reader]
            await handler

    assert type(events[-1]) is WorkflowFailedEvent


@pytest.mark.anyio
@pytest.mark.parametrize("buffer", [1, 2, 64])
@pytest.mark.peer("edge 27")
async def test_sending_waits_while_the_slowest_reader_is_a_buffer_behind(buffer):
    """P7: never more than a buffer ahead of the slowest, whatever the fast ones do."""
    sent = []
    taken = []

    async def work(ctx):
        for n in range(200):
            await ctx.stream.send(Note(number=n))
            sent.append(n)
            assert len(sent) - len(taken) <= buffer

    async with Single(work, stream_buffer=buffer).run() as handler:
        slow = handler.stream_events()
        async with anyio.create_task_group() as group:

            async def read_fast():
                return [event async for event in handler.stream_events()]

            group.start_soon(read_fast)
            await wait_until_idle(3 * buffer + 30)
            # As far as it may go and no further.
            assert len(sent) == buffer
            taken.append(await slow.receive())
            await wait_until_idle(10)
            assert len(sent) == buffer + 1
            async for event in slow:
                taken.append(event)

    assert [e.get("number") for e in taken] == [*range(200), None]


@pytest.mark.anyio
async def test_lossy_reader_that_is_stuck_holds_up_nobody_and_keeps_nothing():
    """P7: neither a sender nor memory waits for it, whether or not others read."""
    alive = weakref.WeakSet()

    async def work(ctx):
        for n in range(200):
            note = Note(number=n)
            alive.add(note)
            await ctx.stream.send(note)
            del note
            gc.collect(0)
            assert len(alive) <= 6

    got = []
    async with Single(work, stream_buffer=2, stream_history=4).run() as handler:
        stuck = [handler.stream_events(lossy=True) for _ in range(3)]
        async for event in handler.stream_events():
            got.append(event.get("number"))
            del event

    assert got == [*range(200), None]
    assert [reader.missed for reader in stuck] == [197] * 3


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["close", "drop", "leave"])
async def test_reader_that_goes_holds_nobody_up(how):
    """P7: closed, dropped or left with its block, a reader is no longer waited for."""
    sent = []

    async def work(ctx):
        for n in range(20):
            await ctx.stream.send(Note(number=n))
            sent.append(n)

    async with Single(work, stream_buffer=2).run() as handler:
        reader = handler.stream_events()
        await wait_until_idle()
        assert len(sent) == 2
        if how == "close":
            reader.close()
        elif how == "drop":
            del reader
            gc.collect()
        if how != "leave":
            await handler

    assert len(sent) == 20
    assert handler.status == "completed"


@pytest.mark.anyio
async def test_sender_that_is_cancelled_has_published_nothing():
    """P7: a ``send`` that raises its cancellation did nothing."""
    outcomes = []

    async def work(ctx):
        await ctx.stream.send(Note(number=0))
        with anyio.CancelScope() as scope:
            cancel.append(scope)
            await ctx.stream.send(Note(number=1))
            outcomes.append("sent")
        outcomes.append(scope.cancelled_caught)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ctx.stream.send(Note(number=2))
        outcomes.append(scope.cancelled_caught)
        ctx.write_event_to_stream(Note(number=3))

    cancel = []
    async with Single(work, stream_buffer=1).run() as handler:
        reader = handler.stream_events()
        while not cancel:
            await anyio.lowlevel.checkpoint()
        await wait_until_idle()
        cancel[0].cancel()
        while len(outcomes) < 2:
            await anyio.lowlevel.checkpoint()
        events = [event.get("number") async for event in reader]

    assert outcomes == [True, True]
    assert events == [0, 3, None]


@pytest.mark.anyio
async def test_several_senders_at_once_stay_within_the_buffer():
    """P7: steps that wait for one reader do not overshoot together, and each event arrives once."""
    buffer = 3
    sent = []
    taken = []
    most = 0

    async def work(ctx, number):
        nonlocal most
        for k in range(10):
            await ctx.stream.send(Note(number=10 * number + k))
            sent.append(number)
            most = max(most, len(sent) - len(taken))

    async with Fan(work, 8, stream_buffer=buffer).run() as handler:
        reader = handler.stream_events()
        await wait_until_idle(60)
        async for event in reader:
            taken.append(event)
            await wait_until_idle(3)

    assert most <= buffer
    assert len(sent) == 80
    assert len(taken) == 81
    for n in range(8):
        mine = [event.number for event in taken[:-1] if event.number // 10 == n]
        assert mine == [*range(10 * n, 10 * n + 10)]


@pytest.mark.anyio
async def test_timeout_ends_a_run_that_waits_for_its_reader():
    """P4, P7: back-pressure is no way to sit out a deadline."""

    async def work(ctx):
        while True:
            await ctx.stream.send(Note(number=0))

    async with Single(work, timeout=0.05, stream_buffer=1).run() as handler:
        reader = handler.stream_events()
        with pytest.raises(WorkflowTimeoutError):
            await anyio_sleep_and_result(handler)
        assert type([e async for e in reader][-1]) is WorkflowTimedOutEvent


async def anyio_sleep_and_result(handler):
    while not handler.is_done():
        await anyio.sleep(0.001)
    return handler.result()


@on_each_backend
def test_slow_reader_slows_the_run_by_the_clock(backend):
    """P7: with a buffer of one, ten events read one a second take the run ten seconds."""

    async def main():
        async with counting(10, stream_buffer=1).run() as handler:
            async for _ in handler.stream_events():
                await anyio.sleep(1)

        assert anyio.current_time() == pytest.approx(11)

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_loop_that_breaks_and_drops_its_reader_holds_up_nobody():
    """P7: ``async for ... break`` over a fresh reader leaves nothing that senders wait for."""
    workflow = Sender(20, stream_buffer=2)
    async with workflow.run() as handler:
        async for event in handler.stream_events():
            assert event.number == 0
            break
        gc.collect()
        with limit():
            assert await handler == 20


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_reader_collected_just_before_its_sender_sleeps_holds_up_nobody(monkeypatch):
    """P7: a collection may come at any line, also between the look for room and the wait."""
    waiter = type(current_backend().waiter())
    readers = []

    def wait(self, *task, own=waiter.wait):
        if handler._run.log._senders:
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
            log.append(Item(number=n))
        first.at, last.at = Collecting(4), 5  # the second has taken none
        assert look(log) == expected
        assert log._readers.attached == 2


@pytest.mark.anyio
async def test_reader_kept_but_left_for_the_result_holds_up_nobody():
    """P7: who reads some events and then awaits the handler from the same task gets the result."""
    workflow = Sender(20, stream_buffer=2)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        assert (await stream.receive()).number == 0
        with limit():
            assert await handler == 20
        # And the reader is as good as before.
        assert numbers([event async for event in stream]) == [*range(1, 20), None]


@pytest.mark.anyio
async def test_reader_kept_but_never_read_holds_up_nobody():
    """P7: nor does a reader that was made and never asked for an event, once its maker waits."""
    workflow = Sender(20, stream_buffer=2)
    async with workflow.run() as handler:
        stream = handler.stream_events()
        with limit():
            assert await handler == 20
        assert numbers([event async for event in stream]) == [*range(20), None]


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_send_waits_while_the_slowest_reader_is_a_buffer_behind():
    """P7: the sender continues one by one, as the slowest of the readers does."""
    workflow = Sender(10, stream_buffer=3)
    async with workflow.run() as handler:
        slow, fast = handler.stream_events(), handler.stream_events()
        await all_blocked()
        assert workflow.sent == 3
        for n in range(3):
            assert (await fast.receive()).number == n
        await all_blocked()
        assert workflow.sent == 3
        sent = []
        for n in range(5):
            assert (await slow.receive()).number == n
            await all_blocked()
            sent.append(workflow.sent)
        # From the third on it is the other one that is a buffer behind.
        assert sent == [4, 5, 6, 6, 6]


@pytest.mark.schedule_fuzz(seeds=20)
async def test_readers_continue_before_a_sender_that_gives_way():
    """P3: a sender that has had its time lets readers have the event before it does more (on Trio)."""
    order = []

    class Sends(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await trio.sleep(0.01)
            await ctx.stream.send(Item(number=1))
            order.append("sender")
            return StopEvent()

    async with Sends().run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, Item):
                order.append("reader")

    assert order == ["reader", "sender"]


@pytest.mark.anyio
async def test_send_in_a_cancelled_scope_publishes_nothing():
    """P7: send is a checkpoint also where there is room."""
    outcome = []

    class Cancelled(Workflow):
        @step
        async def send(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await ctx.stream.send(Item(number=0))
            outcome.append(scope.cancelled_caught)
            return StopEvent()

    async with Cancelled().run() as handler:
        assert numbers([event async for event in handler.stream_events()]) == [None]

    assert outcome == [True]


@pytest.mark.anyio
async def test_write_event_never_waits_for_any_reader():
    """P7: the synchronous form publishes whatever the readers do."""
    workflow = Driven(stream_buffer=1)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        stream = handler.stream_events()
        for n in range(100):
            assert workflow.ctx.write_event_to_stream(Item(number=n)) is None
        workflow.end.set()
        assert await handler == "ended"
        assert numbers([event async for event in stream]) == [*range(100), None]


@pytest.mark.anyio
async def test_send_nowait_raises_where_send_would_wait():
    """P7: it publishes or raises WouldBlock, at once; with no reader it always publishes."""
    workflow = Driven(stream_buffer=2)
    async with workflow.run() as handler:
        await workflow.ready.wait()
        sender = workflow.ctx.stream
        for n in range(5):
            sender.send_nowait(Item(number=n))
        stream = handler.stream_events(after=5)
        sender.send_nowait(Item(number=5))
        sender.send_nowait(Item(number=6))
        with pytest.raises(trio.WouldBlock):
            sender.send_nowait(Item(number=7))
        assert (await stream.receive()).number == 5
        sender.send_nowait(Item(number=8))
        workflow.end.set()
        assert numbers([event async for event in stream]) == [6, 8, None]


@pytest.mark.anyio
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
            driven.ctx.stream.send_nowait(Item(number=10))
        for _ in range(7):
            await stream.receive()
        driven.ctx.stream.send_nowait(Item(number=10))
        driven.end.set()
    assert await workflow.run() == 10


@pytest.mark.anyio
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


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["write", "send"])
@pytest.mark.peer("edge 26")
async def test_stream_that_nobody_reads_blocks_nobody_and_stays_bounded(how):
    """P7: with no reader nothing waits, and only the history is kept."""
    alive: weakref.WeakSet[Event] = weakref.WeakSet()
    most = 0

    class Talkative(Workflow):
        @step
        async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
            nonlocal most
            for n in range(3000):
                item = Item(number=n)
                alive.add(item)
                if how == "write":
                    ctx.write_event_to_stream(item)
                else:
                    await ctx.stream.send(item)
                most = max(most, len(alive))
            return StopEvent()

    handler = Talkative(stream_history=50, stream_buffer=8).run()
    await handler

    assert most <= 52
    assert len(alive) <= 50


@pytest.mark.anyio
async def test_reader_broken_off_holds_up_no_second_one_of_its_task():
    """P7: a task that reads a second stream of the run cannot be reading the first one."""
    async with Sender(200).run() as handler:
        first = handler.stream_events()
        async for _ in first:
            break
        with anyio.fail_after(5):
            events = [event async for event in handler.stream_events()]

        assert len(events) == 201
        assert len([event async for event in first]) == 200
