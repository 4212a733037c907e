"""P1, P2, P3: a run ends, all of it, and in time."""

from __future__ import annotations

import threading
from time import perf_counter

import anyio
import anyio.to_thread
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowTimeoutError,
    step,
    workflow_scope,
)
from sluicegate._loop.cleanup import current_cleanup
from tests.helpers import (
    Catch,
    Done,
    Fan,
    Item,
    Mine,
    Single,
    cancelled_class,
    nothing_left,
    on_each_backend,
    run_virtually,
    timers_left,
    wait_until_idle,
)


ENDINGS = ("completed", "failed", "timed_out", "cancelled", "cancelled from outside")
on_each_ending = pytest.mark.parametrize("ending", ENDINGS)
on_each_form = pytest.mark.parametrize("form", ["in place", "block", "nursery", "scope"])


class Ends(Workflow):
    """Three steps in flight, of which one ends the run as it is told, while the others go on."""

    def __init__(self, ending, in_flight, **options):
        super().__init__(timeout=0.05 if ending == "timed_out" else None, **options)
        self.ending = ending
        self.in_flight = in_flight
        self.busy = 0
        self.cleaned = 0
        self.all_here = anyio.Event()
        self.error = Mine()
        #: What else must hold before the run is ended.
        self.is_ready = lambda: True

    async def ready(self):
        await self.all_here.wait()
        while not self.is_ready():
            await anyio.lowlevel.checkpoint()

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(3)]

    @step
    async def work(self, ctx: Context, ev: Item) -> StopEvent:
        self.busy += 1
        if self.busy == 3:
            self.all_here.set()
        try:
            await self.all_here.wait()
            if ev.number == 1 and self.ending in ("completed", "failed"):
                await self.ready()
                if self.ending == "completed":
                    return StopEvent(result="result")
                raise self.error
            await self.in_flight(ctx)
        finally:
            with anyio.CancelScope(shield=True):
                await wait_until_idle(3)
            self.busy -= 1
            self.cleaned += 1
        raise AssertionError


async def end(form, workflow, handler):
    """Own a run until it ends as its workflow was told."""

    async def steer():
        await workflow.ready()
        if workflow.ending == "cancelled":
            handler.cancel("enough")
        elif workflow.ending == "cancelled from outside":
            outer.cancel()

    seen = Catch()
    with anyio.CancelScope() as outer, seen:
        async with anyio.create_task_group() as group:
            group.start_soon(steer)
            if form == "in place":
                await handler
            elif form == "block":
                async with handler:
                    await handler
            elif form == "scope":
                async with workflow_scope():
                    await handler
            else:
                async with anyio.create_task_group() as owner:
                    handler.start_soon(owner)
                    await handler
    kinds = {
        "completed": type(None),
        "failed": Mine,
        "timed_out": WorkflowTimeoutError,
        "cancelled": WorkflowCancelledError,
        "cancelled from outside": cancelled_class(),
    }
    arrived = seen.error if seen.error is None else seen.one
    assert isinstance(arrived, kinds[workflow.ending] | type(None))
    assert handler.status == workflow.ending.partition(" ")[0]


# -- P1 -------------------------------------------------------------------------------------------


@pytest.mark.anyio
@on_each_ending
@on_each_form
async def test_no_task_is_left(ending, form):
    """P1: when the owner is left, no task of the run remains, and every clean-up has run."""

    async def in_flight(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            group.start_soon(anyio.sleep_forever)

    workflow = Ends(ending, in_flight)
    handler = workflow.run()
    with nothing_left():
        await end(form, workflow, handler)

        assert (workflow.busy, workflow.cleaned) == (0, 3)
        assert handler.is_done()


@on_each_ending
@on_each_form
@on_each_backend
def test_no_timer_is_left(backend, ending, form):
    """P1: when the owner is left, no timer of the run is set any more."""

    async def main():
        async def in_flight(ctx):
            with anyio.move_on_after(1_000):
                await anyio.sleep(2_000)

        workflow = Ends(ending, in_flight)
        # Beside what the run sets itself, each step has a timeout of its own.
        await end(form, workflow, workflow.run())

        assert timers_left() == 0

    run_virtually(backend, main)


@on_each_backend
def test_no_timer_of_a_step_timeout_is_left(backend):
    """P1: the timeouts of a run and of its steps go with what they watched."""

    class Timed(Workflow):
        @step(timeout=1_000)
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent()

    async def main():
        await Timed(timeout=2_000).run()

        assert timers_left() == 0
        assert anyio.current_time() == pytest.approx(1)

    run_virtually(backend, main)


@pytest.mark.anyio
@on_each_ending
@on_each_form
async def test_no_thread_is_left(ending, form):
    """P1: a thread that a step waits for has ended before the owner is left."""
    began = []
    ended = []
    may_end = threading.Event()

    def block():
        began.append(threading.get_ident())
        may_end.wait(10)
        ended.append(threading.get_ident())

    async def in_flight(ctx):
        await anyio.to_thread.run_sync(block)
        await anyio.sleep_forever()  # the thread's end is no end of the step

    async def release():
        while len(began) < 2:
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.008)  # by now the run is ending, and waits for its threads
        may_end.set()

    workflow = Ends(ending, in_flight)
    workflow.is_ready = lambda: len(began) >= 2
    async with anyio.create_task_group() as group:
        group.start_soon(release)
        await end(form, workflow, workflow.run())

        assert sorted(began) == sorted(ended)
        assert len(began) >= 2


@pytest.mark.anyio
@on_each_ending
async def test_no_stream_is_left_open(ending):
    """P1: when a run is over its readers have ended, and nobody waits to send."""

    async def in_flight(ctx):
        while True:
            await ctx.stream.send(Item(number=0))
            await anyio.lowlevel.checkpoint()

    workflow = Ends(ending, in_flight, stream_buffer=1)
    handler = workflow.run()
    ends = []
    with nothing_left():
        async with anyio.create_task_group() as group:

            async def read():
                while handler.status == "unstarted":
                    await anyio.lowlevel.checkpoint()
                with Catch() as left:
                    async for event in handler.stream_events():
                        last = event
                # Ended by the terminal event, or detached because the block was left.
                assert isinstance(left.error, trio.ClosedResourceError | None)
                ends.append(left.error or last)

            group.start_soon(read)
            group.start_soon(read)
            await end("block", workflow, handler)

    assert len(ends) == 2
    assert all(isinstance(e, StopEvent | trio.ClosedResourceError) for e in ends)
    assert isinstance([e async for e in handler.stream_events()][-1], StopEvent)


@pytest.mark.anyio
@on_each_ending
@on_each_form
async def test_no_resource_is_left_open(ending, form):
    """P1: what a step opened and did not close is closed before the owner is left, once."""
    closed = []

    class Opened:
        async def aclose(self):
            await anyio.lowlevel.checkpoint()
            closed.append(self)

    opened = []

    async def in_flight(ctx):
        cleanup = current_cleanup.get()
        assert cleanup is not None
        for _ in range(2):
            opened.append(Opened())
            cleanup.add(opened[-1])
        forgotten = Opened()
        cleanup.add(forgotten)
        cleanup.discard(forgotten)
        await anyio.sleep_forever()

    workflow = Ends(ending, in_flight)
    await end(form, workflow, workflow.run())

    assert len(closed) == len(opened)
    assert set(closed) == set(opened)


@pytest.mark.anyio
async def test_resource_is_closed_when_its_step_ends_not_when_its_run_does():
    """P1: what a step opened lives as long as the step."""
    closed = []

    class Opened:
        async def aclose(self):
            await anyio.lowlevel.checkpoint()
            closed.append(self)

    class Two(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Item:
            current_cleanup.get().add(Opened())
            return Item(number=1)

        @step
        async def second(self, ev: Item) -> StopEvent:
            return StopEvent(result=len(closed))

    assert await Two().run() == 1


@on_each_backend
def test_resource_that_does_not_close_holds_a_cancelled_run_for_a_limited_time(backend):
    """P1, P2: closing is shielded, and bounded by the backend's clock."""

    async def main():
        class Stuck:
            async def aclose(self):
                await anyio.sleep_forever()

        async def work(ctx):
            current_cleanup.get().add(Stuck())
            await anyio.sleep_forever()

        with nothing_left(), anyio.move_on_after(1) as scope:
            await Single(work).run()

        assert scope.cancelled_caught
        assert anyio.current_time() == pytest.approx(6)

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_many_runs_at_once_leave_nothing():
    """P1: a hundred runs in one nursery, cancelled together, leave no task."""
    workflows = [Fan(lambda ctx, n: anyio.sleep_forever()) for _ in range(100)]
    with nothing_left():
        async with anyio.create_task_group() as group:
            handlers = [workflow.run().start_soon(group) for workflow in workflows]
            while not all(len(w.running) == 3 for w in workflows):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()

    assert {h.status for h in handlers} == {"cancelled"}
    assert not any(w.running for w in workflows)


@pytest.mark.anyio
async def test_run_that_a_step_starts_is_inside_the_run_of_that_step():
    """P1: a run within a step ends with it."""
    inner = Fan(lambda ctx, n: anyio.sleep_forever())

    async def outer(ctx):
        await inner.run()

    with nothing_left(), anyio.CancelScope() as scope:
        async with Single(outer).run():
            while len(inner.running) < 3:
                await anyio.lowlevel.checkpoint()
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    assert inner.running == set()


# -- P2 -------------------------------------------------------------------------------------------


@pytest.mark.anyio
@on_each_form
async def test_every_step_in_flight_sees_the_cancellation_at_its_next_checkpoint(form):
    """P2: each step gets to no further line, and each finally block runs to its end."""
    went_on = []
    finished = []

    async def work(ctx, number):
        try:
            scope = anyio.CancelScope()
            with scope:  # a scope of the step's own does not catch it
                await anyio.sleep_forever()
            went_on.append(number)
        finally:
            with pytest.raises(cancelled_class()):
                # Cancellation is a state: unshielded, the next checkpoint raises again. Under
                # asyncio that holds for the tasks that AnyIO cancels, and all of these are.
                await anyio.sleep_forever()
            with anyio.CancelScope(shield=True):
                await wait_until_idle()
            finished.append(number)

    workflow = Fan(work, 20)
    handler = workflow.run()
    seen = []
    with nothing_left(), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cancel():
                while len(workflow.running) < 20:
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

            group.start_soon(cancel)
            try:
                if form == "in place":
                    await handler
                elif form == "block":
                    async with handler:
                        await anyio.sleep_forever()
                elif form == "scope":
                    async with workflow_scope():
                        await handler
                else:
                    handler.start_soon(group)
                    await handler
            except BaseException as error:
                seen.append(error)
                raise

    assert scope.cancelled_caught
    assert [type(e) for e in seen] == [cancelled_class()]
    assert went_on == []
    assert sorted(finished) == list(range(20))


@pytest.mark.anyio
async def test_events_that_wait_for_a_worker_are_not_begun_after_a_cancellation():
    """P2: what is pending when a run is cancelled never starts."""
    started = []

    class Queue(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(50)]

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done:
            started.append(ev.number)
            try:
                await anyio.sleep_forever()
            except BaseException:
                # Even a step that swallows its cancellation frees no place for the next one.
                return Done(number=ev.number)
            raise AssertionError

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            started.append("join")
            return StopEvent()

    async with Queue().run() as handler:
        while len(started) < 2:
            await anyio.lowlevel.checkpoint()
        await handler.cancel()

    assert sorted(started) == [0, 1]
    assert handler.status == "cancelled"


@pytest.mark.anyio
async def test_step_that_swallows_its_cancellation_completes_nothing():
    """P2: a cancelled run stays cancelled, though a step returns a stop event after all."""

    async def work(ctx):
        try:
            await anyio.sleep_forever()
        except cancelled_class():
            return "swallowed"

    async with Single(work).run() as handler:
        await wait_until_idle()
        await handler.cancel("enough")

    assert handler.status == "cancelled"
    with pytest.raises(WorkflowCancelledError, match="enough"):
        handler.result()


@pytest.mark.anyio
async def test_steps_that_never_await_are_cancelled_between_them():
    """P2, P3: a cancellation asked for inside a step is seen at the very next hop."""

    class Chain(Workflow):
        hops = 0

        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(number=0)

        @step
        async def go(self, ev: Item) -> Item | StopEvent:
            Chain.hops += 1
            if ev.number == 7:
                stop()
            return StopEvent() if ev.number == 1_000 else Item(number=ev.number + 1)

    with anyio.CancelScope() as scope:
        stop = scope.cancel
        await Chain().run()
    assert scope.cancelled_caught
    assert Chain.hops == 8

    Chain.hops = 0
    handler = Chain().run()
    stop = handler.cancel
    with pytest.raises(WorkflowCancelledError):
        await handler
    assert Chain.hops == 8


# -- P3 -------------------------------------------------------------------------------------------


#: Seconds that a step of these tests keeps the event loop to itself, at least.
BUSY = 0.00025


def be_busy():
    end = perf_counter() + BUSY
    while perf_counter() < end:
        pass


class Hop(Event):
    number: int


class Endless(Workflow):
    """A chain of steps that never await. They may take longer than said, which only helps."""

    def __init__(self, hops=None, **options):
        super().__init__(skip_graph_checks=["dead_end"], **options)
        self.hops = hops
        self.times: list[float] = []
        self.on_hop = lambda: None

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(number=0)

    @step
    async def here(self, ev: Item) -> Hop | StopEvent:
        return self._go(ev, Hop)

    @step
    async def there(self, ev: Hop) -> Item | StopEvent:
        return self._go(ev, Item)

    def _go(self, ev, following):
        self.times.append(anyio.current_time())
        be_busy()
        self.on_hop()
        if ev.number == self.hops:
            return StopEvent(result="done")
        return following(number=ev.number + 1)


async def await_it(handler):
    await handler


class EndlessDrain(Endless):
    """The same from one inbox: a step with one worker and a long queue."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(self.hops + 1 if self.hops else 100)]

    @step(num_workers=1)
    async def here(self, ev: Item) -> Hop | StopEvent:
        return self._go(ev, Hop)

    @step(num_workers=1)
    async def there(self, ev: Hop) -> Item | StopEvent | None:
        return None


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Endless, EndlessDrain])
async def test_other_tasks_get_a_turn_at_least_every_millisecond(kind):
    """P3: of steps that take a quarter of a millisecond, no more than four run between turns."""
    workflow = kind(60)
    turns = 0
    most = 0
    since = 0

    def count():
        nonlocal since, most
        since += 1
        most = max(most, since)

    workflow.on_hop = count
    async with anyio.create_task_group() as group:

        async def other():
            nonlocal turns, since
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1
                since = 0

        group.start_soon(other)
        await wait_until_idle(3)
        assert await workflow.run() == "done"
        group.cancel_scope.cancel()

    assert len(workflow.times) == 61
    assert most <= 4
    assert turns >= 15


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Endless, EndlessDrain])
@pytest.mark.parametrize("whose", ["the run's", "the caller's"])
async def test_endless_chain_stops_after_its_deadline(kind, whose):
    """P3: within 5 ms of its deadline, that is after at most twenty more steps of 1/4 ms."""
    reached = 0
    while reached < 3:  # a machine that is busy elsewhere may get to no step in time
        workflow = kind(timeout=0.005 if whose == "the run's" else None)
        deadline = anyio.current_time() + 0.005
        if whose == "the run's":
            with pytest.raises(WorkflowTimeoutError):
                await workflow.run()
        else:
            with anyio.CancelScope(deadline=deadline) as scope:
                await workflow.run()
            assert scope.cancelled_caught
        reached += bool(workflow.times)
        # The run's own deadline is set when it starts, a moment after the other.
        late = [t for t in workflow.times if t > deadline + 0.0005]
        assert len(late) <= 20


@pytest.mark.anyio
async def test_many_chains_at_once_share_the_budget():
    """P3: ten chains in ten tasks leave others their turn as one does."""
    workflow = Endless(12)
    since = 0
    most = 0

    def count():
        nonlocal since, most
        since += 1
        most = max(most, since)

    workflow.on_hop = count
    async with anyio.create_task_group() as group:

        async def other():
            nonlocal since
            while True:
                await anyio.lowlevel.checkpoint()
                since = 0

        group.start_soon(other)
        await wait_until_idle(3)
        async with anyio.create_task_group() as runs:
            for _ in range(10):
                runs.start_soon(await_it, workflow.run())
        group.cancel_scope.cancel()

    # Each of the ten has its own budget of four steps in one pass of the event loop.
    assert most <= 40


@pytest.mark.trio
async def test_chain_without_awaits_is_rescheduled_by_trio():
    """P3: counted by an instrument, the run's task is stepped again and again."""

    class Steps(trio.abc.Instrument):
        def __init__(self):
            self.count = 0

        def before_task_step(self, task):
            self.count += task is root

    root = trio.lowlevel.current_task()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await Endless(60).run()
    trio.lowlevel.remove_instrument(steps)

    assert steps.count >= 15
