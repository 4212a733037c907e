"""The edges at which other workflow engines are known to fail, one test or more for each.

The numbers are the rows of a table of observed behaviour: hanging streams, orphaned steps, lost
failures, results that came too late. Rows that need what does not exist yet come with it: 8 and 9
(synchronous steps), 19 (a limit on the runs of one workflow at a time). Of rows 12 and 13 (child
workflows) only a run in place within a step is looked at here.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
import weakref

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

import sluicegate
from sluicegate import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    step,
    workflow_scope,
)


pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)


class Note(Event):
    text: str


class Item(Event):
    n: int


class Done(Event):
    n: int


def living_tasks() -> int:
    """Return how many tasks the event loop has, this one included."""
    if trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


async def all_blocked() -> None:
    """Let all other tasks run until they wait; AnyIO's own would sleep for 0.1 s under asyncio."""
    if trio.lowlevel.in_trio_run():
        await trio.testing.wait_all_tasks_blocked()
    else:
        for _ in range(50):
            await asyncio.sleep(0)


async def several_checkpoints(count: int = 5) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


class Stuck(Workflow[str]):
    """A chain of two steps, of which the second waits for ever and cleans up with an await."""

    def __init__(self, **options):
        super().__init__(**options)
        self.in_step = anyio.Event()
        self.seen: list[str] = []

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item:
        ctx.write_event_to_stream(Note(text="begun"))
        return Item(n=1)

    @step
    async def wait(self, ctx: Context, ev: Item) -> StopEvent:
        ctx.write_event_to_stream(Note(text="waiting"))
        self.in_step.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.seen.append("cancelled")
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await several_checkpoints()
                self.seen.append("cleaned up")
        return StopEvent()


class Quick(Workflow[str]):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(3):
            ctx.write_event_to_stream(Item(n=n))
        return StopEvent(result="quick")


# -- failures ------------------------------------------------------------------------------------


async def test_step_that_raises_ends_the_stream_and_arrives_as_itself():
    """Row 1, P4, P8: the stream ends with one failure event; the very exception is raised."""
    error = ValueError("boom")

    class Failing(Workflow):
        @step
        async def fail(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Note(text="before"))
            raise error

    async with Failing().run(run_id="r1") as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(ValueError, match="boom") as caught:
            await handler

    assert caught.value is error
    assert [type(event) for event in events] == [Note, WorkflowFailedEvent]
    assert events[-1].exception is error
    assert events[-1].step_name == "fail"
    [note] = error.__notes__
    assert "Failing.fail" in note
    assert "StartEvent()" in note
    assert "r1" in note
    assert handler.exceptions == (error,)


async def test_two_steps_that_fail_at_once_lose_neither_failure():
    """Row 2, P8: the first failure is raised, the second is kept and counted in a note."""
    gate = anyio.Event()
    both = anyio.Event()
    arrived: list[int] = []

    class Parallel(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=1), Item(n=2)]

        @step(num_workers=2)
        async def fail(self, ev: Item) -> Done:
            arrived.append(ev.n)
            if len(arrived) == 2:
                both.set()
            await gate.wait()
            raise ValueError(ev.n)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    async with Parallel().run() as handler:
        await both.wait()
        gate.set()
        with pytest.raises(ValueError) as caught:
            await handler

    assert len(handler.exceptions) == 2
    assert caught.value is handler.exceptions[0]
    assert {error.args for error in handler.exceptions} == {(1,), (2,)}
    assert any("1 more failure" in note for note in caught.value.__notes__)


async def test_failure_in_the_clean_up_of_a_sibling_of_the_stop_is_raised():
    """Row 3, P8: a run whose clean-up failed did not complete, whatever the stop event said."""
    error = OSError("the disk is full")
    waiting = anyio.Event()

    class Racing(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item | Done]:
            return [Item(n=1), Done(n=2)]

        @step
        async def slow(self, ev: Item) -> StopEvent:
            try:
                waiting.set()
                await anyio.sleep_forever()
            finally:
                raise error
            return StopEvent(result="slow")

        @step
        async def fast(self, ev: Done) -> StopEvent:
            await waiting.wait()
            return StopEvent(result="fast")

    async with Racing().run() as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(OSError, match="full") as caught:
            await handler

    assert caught.value is error
    assert handler.status == "failed"
    assert handler.stop_event is not None
    assert handler.stop_event.result == "fast"
    assert [type(event) for event in events] == [WorkflowFailedEvent]


class Failing(Workflow):
    def __init__(self):
        super().__init__()
        self.error = ValueError("nobody looked")

    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise self.error


async def test_failure_that_nobody_awaits_is_raised_when_the_block_is_left():
    """Row 4, P9: the owner of the run raises the failure that nobody observed."""
    workflow = Failing()
    with pytest.raises(ValueError, match="nobody looked") as caught:
        async with workflow.run():
            pass

    assert caught.value is workflow.error


async def test_failure_that_nobody_awaits_is_raised_by_the_scope():
    """Row 4, P9: a scope raises the failure of a run that was only started."""
    workflow = Failing()
    with pytest.raises(ValueError, match="nobody looked") as caught:
        async with workflow_scope():
            workflow.run().stream_events().close()

    assert caught.value is workflow.error


async def test_failure_that_nobody_awaits_is_raised_into_the_nursery():
    """Row 4, P9: a nursery gets the failure, in the group that every nursery makes."""
    workflow = Failing()
    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as nursery:
            workflow.run().start_soon(nursery)

    assert caught.value.exceptions == (workflow.error,)


def drop(kept):
    kept.clear()
    gc.collect()


async def test_failure_kept_from_the_nursery_and_never_looked_at_warns():
    """Row 4, P9: a failure kept in the handler and dropped with it is at least a warning."""
    workflow = Failing()
    async with anyio.create_task_group() as nursery:
        handler = workflow.run().start_soon(nursery, keep_failure=True)

    assert handler.status == "failed"
    kept = [handler]
    del handler, workflow  # which keeps the error, and so its traceback
    with pytest.warns(RuntimeWarning, match="nobody looked at it: ValueError"):
        drop(kept)


# -- timeouts --------------------------------------------------------------------------------------


async def test_timeout_reaches_the_step_the_stream_and_the_caller():
    """Row 5, P4, P11: the step is cancelled, the stream says so, and both names catch it."""
    workflow = Stuck(timeout=0.05)
    async with workflow.run() as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(WorkflowTimeoutError) as caught:
            await handler

    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, trio.TooSlowError)
    assert caught.value.active_steps == ("wait",)
    assert workflow.seen == ["cancelled", "cleaned up"]
    assert [type(event) for event in events] == [Note, Note, WorkflowTimedOutEvent]
    assert events[-1].active_steps == ("wait",)


async def test_timeout_does_not_cut_the_clean_up_short():
    """Row 6, P2: a shielded clean-up runs to its end, however long after the timeout it takes."""
    release = anyio.Event()
    cleaning = anyio.Event()
    seen = []

    class Careful(Workflow):
        @step
        async def wait(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    cleaning.set()
                    await release.wait()
                    await several_checkpoints()
                    seen.append("cleaned up")
            return StopEvent()

    async with Careful(timeout=0.05).run() as handler:
        with anyio.fail_after(2):  # rather than hang, should the step not even have begun
            await cleaning.wait()
        await anyio.sleep(0.01)
        assert not handler.is_done()
        release.set()
        with pytest.raises(WorkflowTimeoutError):
            await handler

        assert seen == ["cleaned up"]


async def test_step_that_blocks_the_loop_cannot_bring_a_late_result():
    """Row 7, P10: a result that comes after the deadline is a timeout."""

    class Blocking(Workflow):
        @step
        async def block(self, ev: StartEvent) -> StopEvent:
            time.sleep(0.008)
            return StopEvent(result="too late")

    with pytest.raises(WorkflowTimeoutError):
        await Blocking(timeout=0.002).run()


# -- cancellation of the owner -----------------------------------------------------------------------


async def test_scope_cancelled_around_a_run_in_place_orphans_nothing():
    """Row 10, P1, P2: the running step of a chain sees the cancellation and is waited for."""
    workflow = Stuck()
    before = living_tasks()
    async with anyio.create_task_group() as nursery:

        async def cancel() -> None:
            await workflow.in_step.wait()
            scope.cancel()

        with anyio.CancelScope() as scope:
            nursery.start_soon(cancel)
            await workflow.run()
        assert workflow.seen == ["cancelled", "cleaned up"]

    assert scope.cancelled_caught
    assert living_tasks() == before


@on_asyncio
@pytest.mark.parametrize("how", ["cancel", "timeout", "wait_for"])
async def test_native_cancellation_of_a_run_in_place_orphans_nothing(anyio_backend, how):
    """Row 10, P1, P2: asyncio's own ways to cancel end the run like a scope does."""
    workflow = Stuck()
    before = living_tasks()

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
    assert living_tasks() == before


async def test_cancellation_reaches_old_and_new_steps_alike():
    """Row 11, P2: steps are cancelled whether or not another one has finished since they began."""
    seen = []
    running = anyio.Event()

    class Mixed(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(4)]

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done:
            if ev.n in {1, 2}:
                return Done(n=ev.n)
            seen.append(ev.n)
            if len(seen) == 2:
                running.set()
            try:
                await anyio.sleep_forever()
            finally:
                seen.append(-ev.n)
            return Done(n=ev.n)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    before = living_tasks()
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(_in_place, Mixed())
        await running.wait()
        nursery.cancel_scope.cancel()

    assert sorted(seen) == [-3, 0, 0, 3]
    assert living_tasks() == before


async def _in_place(workflow: Workflow) -> None:
    await workflow.run()


class Parent(Workflow):
    def __init__(self, child, **options):
        super().__init__(**options)
        self.child = child

    @step
    async def call(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.child.run())


async def test_run_in_place_within_a_step_ends_with_its_parent_s_timeout():
    """Row 12, P1: a run awaited by a step is cancelled when the parent times out."""
    child = Stuck()
    with pytest.raises(WorkflowTimeoutError) as caught:
        await Parent(child, timeout=0.05).run()

    assert caught.value.active_steps == ("call",)
    assert child.seen == ["cancelled", "cleaned up"]


async def test_run_in_place_within_a_step_ends_with_its_parent_s_cancellation():
    """Row 12, P1: a run awaited by a step is cancelled when the parent is."""
    child = Stuck()
    before = living_tasks()
    async with Parent(child).run() as handler:
        await child.in_step.wait()
        await handler.cancel("enough")
        assert child.seen == ["cancelled", "cleaned up"]

    assert living_tasks() == before


async def test_run_that_a_step_does_not_await_never_starts_and_warns():
    """Row 13, P1: a run without an owner cannot outlive anything, for it does not start."""
    child = Stuck()

    class Careless(Workflow):
        @step
        async def call(self, ev: StartEvent) -> StopEvent:
            child.run()
            return StopEvent(result="done")

    with pytest.warns(RuntimeWarning, match="a run of Stuck was never started"):
        assert await Careless().run() == "done"
    await several_checkpoints()

    assert not child.in_step.is_set()


async def test_cancelling_one_of_two_waiters_leaves_the_run_to_the_other():
    """Row 14: a cancelled waiter is only a cancelled waiter."""
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


@on_asyncio
async def test_natively_cancelled_waiter_leaves_the_run_to_the_other(anyio_backend):
    """Row 14: the same with asyncio's own cancellation."""
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


async def test_reader_in_another_task_sees_the_end_when_the_owner_is_cancelled():
    """Row 15, P4: whoever reads gets all that was published and a terminal event, then the end."""
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

    assert [type(event) for event in events] == [Note, Note, WorkflowCancelledEvent]


# -- odd exceptions ----------------------------------------------------------------------------------


async def test_step_that_raises_a_cancellation_of_its_own_fails_the_run():
    """Row 16, P12: a stray cancellation is a failure that names the step, never a hang."""

    class Stray(Workflow):
        @step
        async def leak(self, ev: StartEvent) -> StopEvent:
            kept = None
            with anyio.CancelScope() as scope:
                scope.cancel()
                try:
                    await anyio.lowlevel.checkpoint()
                except anyio.get_cancelled_exc_class() as error:
                    kept = error
                    raise
            raise kept

    with pytest.raises(WorkflowRuntimeError, match=r"the step Stray\.leak raised Cancelled"):
        await Stray().run()


@on_asyncio
@pytest.mark.parametrize("spread", [False, True])
async def test_step_that_awaits_a_cancelled_future_fails_the_run(anyio_backend, spread):
    """Row 16, P12: so does awaiting a future that somebody cancelled, in any worker."""

    class Stray(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(2 if spread else 1)]

        @step
        async def leak(self, ev: Item) -> Done:
            if ev.n == 1:
                await anyio.sleep_forever()
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.cancel)
            await future
            return Done(n=0)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowRuntimeError, match="CancelledError") as caught:
        await Stray().run()

    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert asyncio.current_task().cancelling() == 0


class Weird(BaseException):
    pass


@pytest.mark.parametrize("kind", [Weird, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("spread", [False, True])
async def test_any_base_exception_of_a_step_comes_out_bare(kind, spread):
    """Row 17, P8, P17: whatever a step raises is raised by the await, itself and alone."""
    error = kind("odd")
    seen = []
    waiting = anyio.Event()

    class Odd(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(2 if spread else 1)]

        @step
        async def fail(self, ev: Item) -> Done:
            if ev.n == 0:
                if spread:
                    await waiting.wait()
                raise error
            try:
                waiting.set()
                await anyio.sleep_forever()
            finally:
                seen.append("cleaned up")
            return Done(n=1)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    handler = Odd().run()
    with pytest.raises(kind) as caught:
        await handler

    assert caught.value is error
    assert seen == (["cleaned up"] if spread else [])
    assert handler.exceptions == (error,)


# -- asking a run to end -----------------------------------------------------------------------------


async def test_cancel_run_has_one_clear_outcome():
    """Row 18: the stream, the await and the status agree, as soon as the cancel is awaited."""
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

    assert [type(event) for event in events] == [Note, Note, WorkflowCancelledEvent]
    assert events[-1].reason == "asked to"
    assert workflow.seen == ["cancelled", "cleaned up"]


async def test_failure_during_cancel_run_is_kept():
    """Row 18, P9: what fails while a cancelled run unwinds is not swallowed."""
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


async def test_run_is_not_over_while_a_step_ignores_the_cancellation():
    """Row 18b, P1: a stubborn step is waited for; the handler never says done before it is."""
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
        await several_checkpoints()
        assert not handler.is_done()
        assert handler.status == "running"
        released.set()
        await cancellation
        assert seen == ["finished"]
        assert handler.is_done()
        with pytest.raises(WorkflowCancelledError):
            await handler


async def test_scope_around_the_stream_loop_alone_leaves_the_run_and_loses_nothing():
    """Row 18c, P6: a reader that gives up leaves an owned run, and can go on reading."""
    gate = anyio.Event()

    class Gated(Workflow):
        @step
        async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Item(n=0))
            await gate.wait()
            ctx.write_event_to_stream(Item(n=1))
            return StopEvent(result="owned")

    async with Gated().run() as handler:
        stream = handler.stream_events()
        events = []
        with anyio.move_on_after(0.03) as scope:
            async for event in stream:
                events.append(event)
        assert scope.cancelled_caught
        assert handler.status == "running"
        gate.set()
        events += [event async for event in stream]
        assert await handler == "owned"

    assert [event.get("n") for event in events] == [0, 1, None]


@on_asyncio
async def test_asyncio_timeout_around_the_stream_loop_alone_loses_nothing(anyio_backend):
    """Row 18c, P6: the same with asyncio's own timeout."""
    gate = asyncio.Event()

    class Gated(Workflow):
        @step
        async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Item(n=0))
            await gate.wait()
            ctx.write_event_to_stream(Item(n=1))
            return StopEvent(result="owned")

    async with Gated().run() as handler:
        stream = handler.stream_events()
        events = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                async for event in stream:
                    events.append(event)
        gate.set()
        events += [event async for event in stream]
        assert await handler == "owned"

    assert [event.get("n") for event in events] == [0, 1, None]


async def test_first_stop_event_wins_and_the_others_are_cancelled():
    """Row 20: the first stop event is the result; what still runs is cancelled and waited for."""
    seen = []
    running = anyio.Event()

    class Racing(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(num_workers=3)
        async def race(self, ev: Item) -> StopEvent:
            seen.append(ev.n)
            if len(seen) == 3:
                running.set()
            try:
                await running.wait()
                if ev.n != 1:
                    await anyio.sleep_forever()
            finally:
                seen.append(f"{ev.n} over")
            return StopEvent(result=ev.n)

    async with Racing().run() as handler:
        events = [event async for event in handler.stream_events()]
        assert await handler == 1

    assert sorted(map(str, seen[3:])) == ["0 over", "1 over", "2 over"]
    assert [event.result for event in events] == [1]


# -- wrong events ------------------------------------------------------------------------------------


async def test_stop_event_written_to_the_stream_is_refused():
    """Row 21, P4: nobody can end a stream early; the terminal event comes once, at the end."""

    class Impatient(Workflow):
        @step
        async def write(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(WorkflowRuntimeError, match="expected the step to return it"):
                ctx.write_event_to_stream(StopEvent(result="early"))
            with pytest.raises(WorkflowRuntimeError, match="expected the step to return it"):
                await ctx.stream.send(StopEvent(result="early"))
            ctx.write_event_to_stream(Note(text="goes on"))
            return StopEvent(result="in time")

    async with Impatient().run() as handler:
        events = [event async for event in handler.stream_events()]
        assert await handler == "in time"

    assert [type(event) for event in events] == [Note, StopEvent]


async def test_event_that_no_step_takes_is_an_error_where_it_is_sent():
    """Row 22, P13: sending an event that nobody takes raises in the step that sends it."""

    class Loose(Workflow):
        @step
        async def send(self, ctx: Context, ev: StartEvent) -> Note | StopEvent:
            ctx.send_event(Note(text="lost"))
            return StopEvent()

    with pytest.raises(WorkflowRuntimeError, match=r"Loose\.send .* Note, which no step takes"):
        await Loose(skip_graph_checks=["terminal_event"]).run()


async def test_event_from_outside_that_no_step_takes_is_an_error():
    """Row 22, P13: so does sending it from outside, which leaves the run alone."""
    workflow = Stuck()
    async with workflow.run() as handler:
        await workflow.in_step.wait()
        with pytest.raises(WorkflowRuntimeError, match="no step of Stuck takes Note from outside"):
            handler.send_event(Note(text="lost"))
        assert handler.status == "running"
        handler.cancel()


async def test_undeclared_event_is_an_error_at_the_return():
    """Row 23, P13: returning what the signature does not say fails at once and shows the fix."""

    class Lying(Workflow):
        @step
        async def lie(self, ev: StartEvent) -> StopEvent:
            return Item(n=1)

    with pytest.raises(
        WorkflowRuntimeError, match=r"Lying\.lie .* Item, .* `-> StopEvent \| Item`"
    ):
        await Lying().run()


async def test_run_that_can_never_end_fails_at_once_without_a_timeout():
    """Row 24, P12: nothing pending and nobody asked is an error, not a hang."""

    class Ending(Workflow):
        @step
        async def end(self, ev: StartEvent) -> StopEvent | None:
            return None

    async with Ending(timeout=None).run() as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(WorkflowStalledError, match="can never end"):
            await handler

    assert [type(event) for event in events] == [WorkflowFailedEvent]


@pytest.mark.parametrize(
    ("value", "shown"), [("text", "a str"), (7, "a int"), (StopEvent, "a class"), ({}, "a dict")]
)
async def test_return_of_a_non_event_is_an_error(value, shown):
    """Row 25, P13: returning anything but an event names the step and what it got."""

    class Odd(Workflow):
        @step
        async def odd(self, ev: StartEvent) -> StopEvent:
            return value

    with pytest.raises(
        WorkflowRuntimeError, match=f"Odd.odd returned or sent {shown}.*expected .*StopEvent"
    ):
        await Odd().run()


# -- streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["write", "send"])
async def test_stream_that_nobody_reads_blocks_nobody_and_stays_bounded(how):
    """Row 26, P7: with no reader nothing waits, and only the history is kept."""
    alive: weakref.WeakSet[Event] = weakref.WeakSet()
    most = 0

    class Talkative(Workflow):
        @step
        async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
            nonlocal most
            for n in range(3000):
                item = Item(n=n)
                alive.add(item)
                if how == "write":
                    ctx.write_event_to_stream(item)
                else:
                    await ctx.stream.send(item)
                most = max(most, len(alive))
            return StopEvent()

    await Talkative(stream_history=50, stream_buffer=8).run()

    assert most <= 52


async def test_slow_reader_holds_the_sender_back():
    """Row 27, P7: a sender is never more than a buffer ahead of the slowest reader."""
    ahead = []

    class Talkative(Workflow):
        @step
        async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for n in range(40):
                await ctx.stream.send(Item(n=n))
                ahead.append(n + 1 - stream.sequence)
            return StopEvent()

    async with Talkative(stream_buffer=4).run() as handler:
        stream = handler.stream_events()
        count = 0
        async for _ in stream:
            count += 1
            await all_blocked()

    assert count == 41
    assert max(ahead) == 4


async def test_stream_can_be_read_after_the_end_and_any_number_of_times():
    """Rows 28 and 29, P6: late readers, one after the other, get everything from the start."""
    handler = Quick().run()
    assert await handler == "quick"

    for _ in range(3):
        events = [event async for event in handler.stream_events()]
        assert [event.get("n") for event in events] == [0, 1, 2, None]
        assert events[-1] is handler.stop_event


async def test_concurrent_readers_each_get_everything():
    """Row 30, P6: readers at the same time share nothing and lose nothing."""
    got: dict[int, list] = {}
    async with Quick().run() as handler, anyio.create_task_group() as nursery:

        async def read(reader: int) -> None:
            got[reader] = [event async for event in handler.stream_events()]

        for reader in range(3):
            nursery.start_soon(read, reader)
        await handler

    assert len(got) == 3
    assert all([event.get("n") for event in events] == [0, 1, 2, None] for events in got.values())


async def test_second_loop_goes_on_where_the_first_one_broke_off():
    """Row 31, P5: a break leaves the reader where it is."""
    async with Quick().run() as handler:
        stream = handler.stream_events()
        async for event in stream:
            assert event.n == 0
            break
        rest = [event async for event in stream]

    assert [event.get("n") for event in rest] == [1, 2, None]


async def test_reader_that_raises_ends_the_run_with_the_block():
    """Row 32: an exception of the loop's body cancels the run, and leaves the block itself."""
    workflow = Stuck()
    error = LookupError("in the body")
    before = living_tasks()
    with pytest.raises(LookupError) as caught:
        async with workflow.run() as handler:
            async for event in handler.stream_events():
                if event.text == "waiting":
                    raise error

    assert caught.value is error
    assert workflow.seen == ["cancelled", "cleaned up"]
    assert handler.status == "cancelled"
    assert living_tasks() == before


async def test_task_that_outlives_its_step_cannot_write_unseen():
    """Row 33: what a leaked task sends or writes too late raises in that task; nothing is lost."""
    kept = []

    class Leaky(Workflow):
        @step
        async def leak(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            kept.append(ctx)
            return Item(n=1)

        @step
        async def end(self, ev: Item) -> StopEvent:
            # The step before has ended, the run has not.
            with pytest.raises(WorkflowRuntimeError, match="leak has ended"):
                kept[0].send_event(Item(n=2))
            return StopEvent(result="ended")

    assert await Leaky().run() == "ended"

    for write in (kept[0].write_event_to_stream, kept[0].stream.send_nowait):
        with pytest.raises(WorkflowRuntimeError, match="the run is over"):
            write(Note(text="lost"))
    with pytest.raises(WorkflowRuntimeError, match="the run is over"):
        await kept[0].stream.send(Note(text="lost"))
    with pytest.raises(WorkflowRuntimeError, match="leak has ended"):
        kept[0].send_event(Item(n=2))
    assert not kept[0].is_running


# -- memory, clocks, threads, order ------------------------------------------------------------------


async def test_events_that_were_handled_are_not_kept():
    """Row 34, P16: a long chain keeps nothing of what it has passed."""
    alive: weakref.WeakSet[Event] = weakref.WeakSet()
    most = 0

    class Chain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(n=0)

        @step
        async def go_on(self, ev: Item) -> Item | StopEvent:
            nonlocal most
            alive.add(ev)
            most = max(most, len(alive))
            return Item(n=ev.n + 1) if ev.n < 1000 else StopEvent(result=ev.n)

    async with Chain().run() as handler:
        assert await handler == 1000

    assert most <= 4
    del handler
    assert len(alive) == 0


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_wall_clock_that_jumps_changes_no_timeout(monkeypatch, jump):
    """Row 35, P10: time is the event loop's clock, which no one can set."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)

    assert await Quick(timeout=30).run() == "quick"
    with pytest.raises(WorkflowTimeoutError):
        await Stuck(timeout=0.05).run()


def test_run_needs_no_event_loop_until_it_is_started():
    """Row 36: run() works anywhere; starting it without a loop is one clear error."""
    caught = []

    def work() -> None:
        handler = Quick().run()
        assert handler.status == "unstarted"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                handler.__await__().send(None)
            except RuntimeError as error:
                caught.append(error)
            gc.collect()
        assert handler.status == "unstarted"  # it may still be run in a loop
        handler.cancel()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    [error] = caught
    assert "a workflow runs in an event loop, and there is none here" in str(error)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_run_made_outside_an_event_loop_can_be_run_in_one(backend):
    """Row 36: a handler belongs to the loop that starts it."""
    handler = Quick().run()

    async def main() -> str:
        return await handler

    assert sluicegate.run(main, backend=backend) == "quick"


async def test_stream_is_in_the_order_in_which_it_was_written():
    """Row 37, P4: one order for all readers, the order of publishing."""
    written = []

    class Parallel(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(num_workers=3)
        async def talk(self, ctx: Context, ev: Item) -> Done:
            for k in range(5):
                note = Note(text=f"{ev.n}.{k}")
                ctx.write_event_to_stream(note)
                written.append(note)
                await anyio.lowlevel.checkpoint()
            return Done(n=ev.n)

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


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("awaits", [False, True])
async def test_invocations_of_a_step_begin_in_the_order_of_their_events(
    monkeypatch, workers, awaits
):
    """Row 37, P14: whatever number of workers a step has, no event overtakes an older one."""
    # A worker whose turn is over yields once more between taking its event and beginning (P3);
    # how often that happens is a matter of time, and must not be one of this test.
    monkeypatch.setattr("sluicegate._engine.runner.TURN", 3600.0)
    begun = []

    class Parallel(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(12)]

        @step(num_workers=workers)
        async def work(self, ev: Item) -> Done:
            begun.append(ev.n)
            if awaits:
                await several_checkpoints(1 + ev.n % 3)
            return Done(n=ev.n)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    assert await Parallel().run() == 12
    assert begun == list(range(12))
