"""How a run is ended, and that nothing is left of it then (P1, P2)."""

from __future__ import annotations

import asyncio
import threading

import anyio
import anyio.to_thread
import pytest
import trio

from sluicegate import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
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
    Line,
    Mine,
    Note,
    One,
    Single,
    Stuck,
    all_blocked,
    cancelled_class,
    live_tasks,
    nothing_left,
    on_asyncio,
    on_each_backend,
    own_run,
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
        self.begun = 0
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
        self.begun += 1
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
            await own_run(form, handler)
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

        assert (workflow.busy, workflow.cleaned) == (0, workflow.begun)
        # A busy machine may have begun no step when the timeout strikes.
        assert workflow.begun == 3 or ending == "timed_out"
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
    """P1: when a run is over its readers have ended, and no one waits to send."""

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


@pytest.mark.anyio
async def test_step_cancels_itself_without_touching_another():
    """P15: a scope or a timeout within one invocation is its own affair."""
    ends = []

    async def work(ctx, number):
        with anyio.move_on_after(0.02 if number == 1 else 10) as scope:
            if number == 1:
                await anyio.sleep_forever()
            while not ends:
                await anyio.lowlevel.checkpoint()
        ends.append((number, scope.cancelled_caught))

    assert await Fan(work).run() == [0, 1, 2]
    assert sorted(ends) == [(0, False), (1, True), (2, False)]


@pytest.mark.anyio
@pytest.mark.peer("edge 10")
async def test_scope_cancelled_around_a_run_in_place_orphans_nothing():
    """P1, P2: the running step of a chain sees the cancellation and is waited for."""
    workflow = Stuck()
    before = len(live_tasks())
    async with anyio.create_task_group() as nursery:

        async def cancel() -> None:
            await workflow.in_step.wait()
            scope.cancel()

        with anyio.CancelScope() as scope:
            nursery.start_soon(cancel)
            await workflow.run()
        assert workflow.seen == ["cancelled", "cleaned up"]

    assert scope.cancelled_caught
    assert len(live_tasks()) == before


@pytest.mark.anyio
@on_asyncio
@pytest.mark.parametrize("how", ["cancel", "timeout", "wait_for"])
@pytest.mark.peer("edge 10")
async def test_native_cancellation_of_a_run_in_place_orphans_nothing(anyio_backend, how):
    """P1, P2: asyncio's own ways to cancel end the run like a scope does."""
    workflow = Stuck()
    before = len(live_tasks())

    limits = []

    async def own() -> None:
        if how == "timeout":
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                await workflow.run()
        elif how == "wait_for":
            await asyncio.wait_for(workflow.run(), 0.01)
        else:
            await workflow.run()

    task = asyncio.create_task(own())
    if how == "wait_for":
        with pytest.raises(TimeoutError):
            await task
    elif how == "timeout":
        await workflow.in_step.wait()
        limits[0].reschedule(asyncio.get_running_loop().time())
        with pytest.raises(TimeoutError) as caught:
            await task
        assert not isinstance(caught.value, WorkflowTimeoutError)
    else:
        await workflow.in_step.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert workflow.seen == ["cancelled", "cleaned up"]
    assert len(live_tasks()) == before


@pytest.mark.anyio
@pytest.mark.peer("edge 11")
async def test_cancellation_reaches_old_and_new_steps_alike():
    """P2: steps are cancelled whether or not another one has finished since they began."""
    seen = []
    running = anyio.Event()

    class Mixed(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(4)]

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done:
            if ev.number in {1, 2}:
                return Done(number=ev.number)
            seen.append(ev.number)
            if len(seen) == 2:
                running.set()
            try:
                await anyio.sleep_forever()
            finally:
                seen.append(-ev.number)
            return Done(number=ev.number)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    before = len(live_tasks())
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(_in_place, Mixed())
        await running.wait()
        nursery.cancel_scope.cancel()

    assert sorted(seen) == [-3, 0, 0, 3]
    assert len(live_tasks()) == before


async def _in_place(workflow: Workflow) -> None:
    await workflow.run()


class Parent(Workflow):
    def __init__(self, child, **options):
        super().__init__(**options)
        self.child = child

    @step
    async def call(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.child.run())


@pytest.mark.anyio
@pytest.mark.peer("edge 12")
async def test_run_in_place_within_a_step_ends_with_its_parent_s_timeout():
    """P1: a run awaited by a step is cancelled when the parent times out."""
    child = Stuck()
    with pytest.raises(WorkflowTimeoutError) as caught:
        await Parent(child, timeout=0.05).run()

    assert caught.value.active_steps == ("call",)
    assert child.seen == ["cancelled", "cleaned up"]


@pytest.mark.anyio
@pytest.mark.peer("edge 12")
async def test_run_in_place_within_a_step_ends_with_its_parent_s_cancellation():
    """P1: a run awaited by a step is cancelled when the parent is."""
    child = Stuck()
    before = len(live_tasks())
    async with Parent(child).run() as handler:
        await child.in_step.wait()
        await handler.cancel("enough")
        assert child.seen == ["cancelled", "cleaned up"]

    assert len(live_tasks()) == before


@pytest.mark.anyio
@pytest.mark.peer("edge 13")
async def test_run_that_a_step_does_not_await_never_starts_and_warns():
    """P1: a run without an owner cannot outlive anything, because it does not start."""
    child = Stuck()

    class Careless(Workflow):
        @step
        async def call(self, ev: StartEvent) -> StopEvent:
            child.run()
            return StopEvent(result="done")

    with pytest.warns(RuntimeWarning, match="a run of Stuck was never started"):
        assert await Careless().run() == "done"
    await wait_until_idle(5)

    assert not child.in_step.is_set()


@pytest.mark.anyio
@pytest.mark.peer("edge 14")
async def test_cancelling_one_of_two_waiters_leaves_the_run_to_the_other():
    """A cancelled waiter is only a cancelled waiter."""
    gate = anyio.Event()

    class Gated(Workflow):
        @step
        async def wait(self, ev: StartEvent) -> StopEvent:
            await gate.wait()
            return StopEvent(result="kept")

    results = []
    async with anyio.create_task_group() as nursery:
        handler = Gated().run().start_soon(nursery)
        first = anyio.CancelScope()

        async def wait(scope: anyio.CancelScope) -> None:
            with scope:
                results.append(await handler)

        nursery.start_soon(wait, first)
        nursery.start_soon(wait, anyio.CancelScope())
        await all_blocked()
        first.cancel()
        await all_blocked()
        assert first.cancelled_caught
        assert handler.status == "running"
        gate.set()

    assert results == ["kept"]


@pytest.mark.anyio
@on_asyncio
@pytest.mark.peer("edge 14")
async def test_natively_cancelled_waiter_leaves_the_run_to_the_other(anyio_backend):
    """The same with asyncio's own cancellation."""
    gate = asyncio.Event()

    class Gated(Workflow):
        @step
        async def wait(self, ev: StartEvent) -> StopEvent:
            await gate.wait()
            return StopEvent(result="kept")

    async def wait() -> str:
        return await handler

    async with Gated().run() as handler:
        first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
        await all_blocked()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert await second == "kept"


@pytest.mark.anyio
@pytest.mark.peer("edge 18")
async def test_cancel_run_has_one_clear_outcome():
    """The stream, the await and the status agree, as soon as the cancel is awaited."""
    workflow = Stuck()
    async with workflow.run() as handler:
        stream = handler.stream_events()
        await workflow.in_step.wait()
        await handler.cancel_run("asked to")
        assert handler.is_done()
        assert handler.status == "cancelled"
        assert handler.stop_event is None
        for _ in range(2):
            with pytest.raises(WorkflowCancelledError, match="asked to") as caught:
                await handler
            assert caught.value.reason == "asked to"
        events = [event async for event in stream]

    assert [type(event) for event in events] == [Line, Line, WorkflowCancelledEvent]
    assert events[-1].reason == "asked to"
    assert workflow.seen == ["cancelled", "cleaned up"]


@pytest.mark.anyio
@pytest.mark.peer("edge 18")
async def test_failure_during_cancel_run_is_kept():
    """P9: what fails while a cancelled run unwinds is not swallowed."""
    error = OSError("cannot roll back")
    waiting = anyio.Event()

    class Breaking(Workflow):
        @step
        async def wait(self, ev: StartEvent) -> StopEvent:
            try:
                waiting.set()
                await anyio.sleep_forever()
            finally:
                raise error
            return StopEvent()

    with pytest.raises(OSError, match="roll back") as caught:
        async with Breaking().run() as handler:
            await waiting.wait()
            await handler.cancel()

    assert caught.value is error
    assert handler.exceptions == (error,)
    assert handler.status == "cancelled"


@pytest.mark.anyio
@pytest.mark.peer("edge 18b")
async def test_run_is_not_over_while_a_step_ignores_the_cancellation():
    """P1: a stubborn step is waited for; the handler never says done before it is."""
    waiting = anyio.Event()
    released = anyio.Event()
    seen = []

    class Stubborn(Workflow):
        @step
        async def ignore(self, ev: StartEvent) -> StopEvent:
            waiting.set()
            with anyio.CancelScope(shield=True):
                await released.wait()
                seen.append("finished")
            return StopEvent(result="ignored")

    async with Stubborn().run() as handler:
        await waiting.wait()
        cancellation = handler.cancel()
        await wait_until_idle(5)
        assert not handler.is_done()
        assert handler.status == "running"
        released.set()
        await cancellation
        assert seen == ["finished"]
        assert handler.is_done()
        with pytest.raises(WorkflowCancelledError):
            await handler


@pytest.mark.anyio
@pytest.mark.peer("users 23")
async def test_reader_of_events_stops_the_run():
    """Whoever reads the stream may cancel the run right there, and reads its end."""

    async def chatter(ctx):
        for number in range(1000):
            await ctx.stream.send(Note(number=number))

    seen = []
    with nothing_left():
        async with Single(chatter, stream_buffer=1).run() as handler:
            async for event in handler.stream_events():
                seen.append(type(event).__name__)
                if len(seen) == 3:
                    await handler.cancel("seen enough")

    assert seen[:3] == ["Note"] * 3
    assert seen[-1] == "WorkflowCancelledEvent"


@pytest.mark.trio
async def test_nursery_that_takes_no_task_leaves_the_run_unstarted():
    """A start that was refused is no start: the handler can be started elsewhere."""
    async with trio.open_nursery() as closed:
        pass
    handler = One().run()
    with pytest.raises(RuntimeError, match="closed"):
        handler.start_soon(closed)
    with pytest.raises(TypeError, match="was given None; expected a Trio nursery"):
        handler.start_soon(None)

    assert handler.status == "unstarted"
    assert await handler == 1


@pytest.mark.anyio
async def test_a_run_is_cancelled_from_threads_and_from_callbacks_of_the_loop():
    """What comes from outside of any task, a signal's handler too, reaches the run."""
    ended = []

    class Endless(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(1)

    async with Endless().run() as handler:
        await anyio.sleep(0.005)
        from_thread = handler.from_thread
        await anyio.to_thread.run_sync(from_thread.cancel, "from a thread")
        with pytest.raises(WorkflowCancelledError, match="from a thread"):
            await handler
    if trio.lowlevel.in_trio_task():
        call_soon = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        call_soon = asyncio.get_running_loop().call_soon
    async with Endless(timeout=50, timeout_excludes_waiting=True).run() as handler:
        await anyio.sleep(0.005)
        call_soon(handler.cancel, "from a callback")
        with pytest.raises(WorkflowCancelledError, match="from a callback"):
            await handler

    assert ended == [1, 1]
