"""P4, P5, P6, P7: the stream, its ends, its readers and its back-pressure."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowRuntimeError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    step,
    workflow_scope,
)
from tests.helpers import (
    Catch,
    Fan,
    Item,
    Mine,
    Note,
    Single,
    nothing_left,
    on_each_backend,
    run_virtually,
    wait_until_idle,
)


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


# -- P4 -------------------------------------------------------------------------------------------


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
async def test_terminal_event_is_published_once_and_only_by_the_run():
    """P4: a step cannot publish a stop event itself."""

    async def work(ctx):
        for event in (StopEvent(), WorkflowCancelledEvent()):
            with pytest.raises(WorkflowRuntimeError, match="return"):
                ctx.write_event_to_stream(event)
            with pytest.raises(WorkflowRuntimeError, match="return"):
                await ctx.stream.send(event)
            with pytest.raises(WorkflowRuntimeError, match="return"):
                ctx.stream.send_nowait(event)

    async with Single(work).run() as handler:
        events = [event async for event in handler.stream_events()]

    assert [type(e) for e in events] == [StopEvent]


@pytest.mark.anyio
async def test_nothing_is_published_after_the_end():
    """P4: a context that was kept beyond the run publishes nothing more."""
    kept = []

    async def work(ctx):
        kept.append(ctx)

    handler = Single(work).run()
    await handler
    with pytest.raises(WorkflowRuntimeError, match="over"):
        kept[0].write_event_to_stream(Note(number=1))
    with pytest.raises(WorkflowRuntimeError, match="over"):
        await kept[0].stream.send(Note(number=1))

    assert [type(e) async for e in handler.stream_events()] == [StopEvent]


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


# -- P5 -------------------------------------------------------------------------------------------


def counting(count, **options):
    async def work(ctx):
        for n in range(count):
            await ctx.stream.send(Note(number=n))
            await anyio.lowlevel.checkpoint()

    return Single(work, **options)


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
async def test_stream_is_iterated_in_one_task_and_closed_in_another():
    """P5: the task that waits at a reader closed elsewhere learns of it; nothing hangs."""
    outcomes = []

    async def work(ctx):
        ctx.write_event_to_stream(Note(number=0))
        await anyio.sleep_forever()

    async with Single(work).run() as handler, anyio.create_task_group() as group:
        reader = handler.stream_events()

        async def read():
            with Catch() as left:
                async for event in reader:
                    outcomes.append(event.number)
            outcomes.append(type(left.error))

        group.start_soon(read)
        while not outcomes:
            await anyio.lowlevel.checkpoint()
        await wait_until_idle(3)
        reader.close()
        reader.close()  # again, and from here
        await reader.aclose()
        await wait_until_idle(3)
        handler.cancel()

    assert outcomes[0] == 0
    assert issubclass(outcomes[1], trio.ClosedResourceError)
    assert len(outcomes) == 2


@pytest.mark.anyio
async def test_stream_moves_from_task_to_task():
    """P5: each event is taken in another task, which then ends."""
    taken = []
    async with counting(5).run() as handler:
        reader = handler.stream_events()

        async def take():
            taken.append(await reader.receive())

        for _ in range(6):
            async with anyio.create_task_group() as group:
                group.start_soon(take)

    assert [e.get("number") for e in taken] == [0, 1, 2, 3, 4, None]


@pytest.mark.anyio
@pytest.mark.parametrize("at", [0, 1, 3])
async def test_second_loop_goes_on_where_the_first_stopped(at):
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
async def test_reader_of_a_run_that_goes_on_is_lossy_once_its_owner_waits(form):
    """P4, P6, P7: it holds up nobody, is told what it missed, gets the terminal event, and stops."""
    handler = counting(50, stream_buffer=2, stream_history=10).run()
    async with handler if form == "block" else workflow_scope():
        reader = handler.stream_events()
        assert (await reader.receive()).number == 0

    assert handler.is_done()
    assert [e.get("number") async for e in reader] == [*range(41, 50), None]
    assert reader.missed == 40


@pytest.mark.anyio
async def test_reader_that_waits_when_its_owner_leaves_goes_on_receiving():
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
async def test_two_tasks_at_one_reader_are_told_so():
    """P5, P6: a second task does not split the events of a reader; it gets an error."""

    async def work(ctx):
        await anyio.sleep_forever()

    async with Single(work).run() as handler, anyio.create_task_group() as group:
        reader = handler.stream_events()
        with Catch() as left:
            group.start_soon(wait_for_cancellation, reader)
            await wait_until_idle(3)
            await reader.receive()
        group.cancel_scope.cancel()
        handler.cancel()

    assert isinstance(left.error, trio.BusyResourceError)
    assert "stream_events()" in str(left.error)


async def wait_for_cancellation(reader):
    await reader.receive()


# -- P6 -------------------------------------------------------------------------------------------


@pytest.mark.anyio
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
@pytest.mark.parametrize("publish_first", [True, False])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_reader_that_is_cancelled_natively_loses_nothing(publish_first, anyio_backend):
    """P6: ``task.cancel()`` and ``asyncio.timeout`` in the tick in which an event comes."""
    send = []

    async def work(ctx):
        send.append(ctx.write_event_to_stream)
        await anyio.sleep_forever()

    got = []
    cancelled = 0
    async with Single(work).run() as handler:
        reader = handler.stream_events()
        while not send:
            await asyncio.sleep(0)
        for number in range(20):

            async def read():
                got.append((await reader.receive()).number)

            async def read_with_timeout(limit):
                async with limit:
                    got.append((await reader.receive()).number)

            limit = asyncio.timeout(None)
            reads = read() if number % 2 else read_with_timeout(limit)
            task = asyncio.create_task(reads)
            await wait_until_idle(number % 5 + 1)
            acts = [lambda n=number: send[0](Note(number=n)), task.cancel]
            if not number % 2:
                acts[1] = lambda moment=limit: moment.reschedule(asyncio.get_running_loop().time())
            for act in acts if publish_first else reversed(acts):
                act()
            with Catch():
                await task
            cancelled += len(got) == number
            if len(got) == number:  # or the next one would not have to wait
                got.append((await reader.receive()).number)
        handler.cancel()
        assert [type(e) async for e in reader] == [WorkflowCancelledEvent]

    assert got == list(range(20))
    assert cancelled >= 5


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
async def test_reader_that_is_attached_loses_nothing_to_the_history():
    """P6: what an attached reader has not taken is kept, however much is published."""

    async def work(ctx):
        for n in range(200):
            ctx.write_event_to_stream(Note(number=n))

    async with Single(work, stream_history=3, stream_buffer=2).run() as handler:
        reader = handler.stream_events()
        while not handler.is_done():
            await anyio.lowlevel.checkpoint()
        late = handler.stream_events()
        events = [event.get("number") async for event in reader]

    assert events == [*range(200), None]
    assert late.missed in (0, 198)


@pytest.mark.anyio
async def test_reader_resumes_behind_an_event_that_was_seen():
    """P6: ``after`` takes the sequence number of another reader."""
    handler = counting(10).run()
    await handler
    first = handler.stream_events()
    for _ in range(4):
        await first.receive()

    second = handler.stream_events(after=first.sequence)

    assert [e.get("number") async for e in second] == [4, 5, 6, 7, 8, 9, None]
    assert second.missed == 0


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


# -- P7 -------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("buffer", [1, 2, 64])
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
async def test_sending_without_waiting_says_where_it_would_wait():
    """P7: ``send_nowait`` raises WouldBlock, and has published nothing then."""
    outcomes = []

    async def work(ctx):
        await started.wait()
        for n in range(3):
            with Catch() as left:
                ctx.stream.send_nowait(Note(number=n))
            outcomes.append(left.error)

    started = anyio.Event()
    async with Single(work, stream_buffer=2).run() as handler:
        reader = handler.stream_events()
        started.set()
        while len(outcomes) < 3:
            await anyio.lowlevel.checkpoint()
        events = [event.get("number") async for event in reader]

    assert outcomes[:2] == [None, None]
    assert isinstance(outcomes[2], trio.WouldBlock)
    assert events == [0, 1, None]


@pytest.mark.anyio
async def test_writing_never_waits():
    """P7: ``write_event_to_stream`` publishes past any reader, with no checkpoint."""
    began = anyio.Event()
    done = []

    async def work(ctx):
        await began.wait()
        for n in range(1_000):
            assert ctx.write_event_to_stream(Note(number=n)) is None
        done.append(True)

    async with Single(work, stream_buffer=1).run() as handler:
        reader = handler.stream_events()
        began.set()
        while not done:
            await anyio.lowlevel.checkpoint()
        count = 0
        async for _ in reader:
            count += 1

    assert count == 1_001


@pytest.mark.anyio
async def test_with_no_reader_nobody_is_blocked_and_memory_is_bounded():
    """P7: of ten thousand events no more are alive than the history keeps."""
    alive = weakref.WeakSet()
    most = 0

    async def work(ctx):
        nonlocal most
        for n in range(10_000):
            event = Note(number=n)
            alive.add(event)
            await ctx.stream.send(event)
            most = max(most, len(alive))

    gc.collect()
    handler = Single(work, stream_history=10, stream_buffer=1).run()
    await handler

    assert most <= 12
    assert len(alive) <= 10


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
async def test_reader_in_the_task_that_awaits_the_run_holds_nobody_up():
    """P7: after a ``break``, ``await handler`` in the same task cannot wait for itself."""
    async with counting(50, stream_buffer=2).run() as handler:
        async for event in handler.stream_events():
            assert event.number == 0
            break
        reader = handler.stream_events()
        await reader.receive()
        assert await handler is None
        # And what it had not read is still there.
        assert [e.get("number") async for e in reader] == [*range(1, 50), None]


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
    """P7: steps that wait for the same reader do not overshoot together when it moves on."""
    buffer = 3
    sent = []
    taken = []
    most = 0

    async def work(ctx, number):
        nonlocal most
        for _ in range(10):
            await ctx.stream.send(Note(number=number))
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
