"""Time: timeouts of steps and runs, the clock of a run, and the graceful stop (P10, P11)."""

from __future__ import annotations

import asyncio
import time
from math import inf

import anyio
import pytest
import trio
import trio.testing

from sluicegate import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    step,
    workflow_scope,
)
from sluicegate.testing import jump_clock
from tests.helpers import (
    Asked,
    Catch,
    Done,
    Item,
    Line,
    Mine,
    Note,
    Said,
    Single,
    Stuck,
    fanning,
    nothing_left,
    on_each_backend,
    run_virtually,
    stepping,
    timers_left,
    wait_until_idle,
)


class Question(InputRequiredEvent):
    pass


class Answer(HumanResponseEvent):
    number: int = 0


# -- timeouts of steps -----------------------------------------------------------------------------


@on_each_backend
def test_step_that_takes_too_long_fails(backend):
    """It is cancelled at its timeout, unwinds, and fails with an error that is three in one."""
    unwound = []

    async def function(ctx):
        try:
            await anyio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            unwound.append(anyio.current_time())

    async def main():
        began = anyio.current_time()
        with nothing_left(), pytest.raises(StepTimeoutError) as caught:
            await stepping(function, timeout=5)(timeout=60).run()

        error = caught.value
        assert isinstance(error, WorkflowTimeoutError)
        assert isinstance(error, TimeoutError)
        assert isinstance(error, trio.TooSlowError)
        assert (error.timeout, error.active_steps) == (5, ("only",))
        assert str(error) == "the step Stepping.only did not end within its timeout of 5 s"
        assert [at - began for at in unwound] == pytest.approx([6])
        assert not timers_left()

    run_virtually(backend, main)


@on_each_backend
def test_end_at_the_very_timeout_is_in_time(backend):
    """The deadline itself still belongs to the step; what comes after it does not."""

    async def exactly(ctx):
        await anyio.sleep_until(began[0] + 5)
        return "in time"

    async def late(ctx):
        jump_clock(6)
        return "late"

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        assert await stepping(exactly, timeout=5)().run() == "in time"
        with pytest.raises(StepTimeoutError):
            await stepping(late, timeout=5)().run()
        with pytest.raises(StepTimeoutError):
            await stepping(late, idle_timeout=5)().run()

    run_virtually(backend, main)


@on_each_backend
def test_timeout_of_a_step_touches_no_other_invocation(backend):
    """Each invocation has its own; the first that passes fails the run, and names one step."""
    ended = []

    async def function(ctx, number):
        try:
            await anyio.sleep(number * 2)
        finally:
            ended.append((number, anyio.current_time() - began[0]))

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        with pytest.raises(StepTimeoutError) as caught:
            await fanning(function, 4, timeout=5, num_workers=2).run()
        assert caught.value.active_steps == ("work",)

    run_virtually(backend, main)
    # Two at a time: the last one begins at 2, and is given up at 7.
    assert ended == [(0, 0), (1, 2), (2, 4), (3, pytest.approx(7))]


CALLS = {
    "progress": lambda ctx: ctx.progress(1),
    "report_progress": lambda ctx: ctx.report_progress(),
    "write_event_to_stream": lambda ctx: ctx.write_event_to_stream(Note(number=1)),
    "stream": lambda ctx: ctx.stream.send(Note(number=1)),
    "send_event": lambda ctx: ctx.send_event(Item(number=1)),
    "store": lambda ctx: ctx.store.get("x", default=1),
    "retry_info": lambda ctx: ctx.retry_info(),
    "step": lambda ctx: ctx.step,
    "step_name": lambda ctx: ctx.step_name,
    "deadline": lambda ctx: ctx.deadline,
    "collect_events": lambda ctx: ctx.collect_events(Note(number=1), [Note] * 1000),
}


@on_each_backend
@pytest.mark.parametrize("name", CALLS)
def test_each_call_of_the_context_is_progress(backend, name):
    """The idle timeout begins anew with whatever the step does through its context."""

    async def function(ctx):
        for _ in range(4):
            await anyio.sleep(4)
            again = CALLS[name](ctx)
            if hasattr(again, "__await__"):
                await again
        return "got on"

    async def main():
        assert await stepping(function, idle_timeout=5)().run() == "got on"

    run_virtually(backend, main)


@on_each_backend
def test_step_without_progress_fails(backend):
    """It fails when its last call of the context is so long ago; the error says so."""

    async def function(ctx):
        await anyio.sleep(4)
        ctx.report_progress()
        await anyio.sleep(100)

    async def main():
        began = anyio.current_time()
        with nothing_left(), pytest.raises(StepTimeoutError) as caught:
            await stepping(function, idle_timeout=5)().run()
        assert anyio.current_time() - began == pytest.approx(9)
        assert str(caught.value) == "the step Stepping.only made no progress for 5 s"
        assert caught.value.timeout == 5

    run_virtually(backend, main)


@on_each_backend
def test_progress_does_not_prolong_the_timeout(backend):
    """A step with both ends at the nearer one."""

    async def function(ctx):
        while True:
            await anyio.sleep(1)
            ctx.report_progress()

    async def main():
        with pytest.raises(StepTimeoutError, match="did not end within its timeout of 10 s"):
            await stepping(function, idle_timeout=5, timeout=10)().run()

    run_virtually(backend, main)


@on_each_backend
def test_waiting_for_an_answer_is_no_progress(backend):
    """What a step waits for does not count as getting on."""

    async def function(ctx):
        await ctx.wait_for_event(Answer, Question())

    async def main():
        with pytest.raises(StepTimeoutError, match="made no progress"):
            await stepping(function, idle_timeout=5)().run()

    run_virtually(backend, main)


def test_progress_of_a_synchronous_step():
    """From a thread each call of the context is progress too."""

    class Threaded(Workflow):
        @step(idle_timeout=5)
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for _ in range(4):
                ctx.from_thread.run_sync(jump_clock, 4)
                ctx.report_progress()
            return StopEvent(result="got on")

    async def main():
        return await Threaded().run()

    # The clock stands still but for the jumps: a thread that works is not waited for.
    assert trio.run(main, clock=trio.testing.MockClock()) == "got on"


@on_each_backend
@pytest.mark.parametrize("option", ["timeout", "idle_timeout"])
def test_timeout_of_a_synchronous_step(backend, option):
    """The thread learns of it at its next call of the context, and is waited for."""
    ended = []

    class Threaded(Workflow):
        @step(**{option: 5})
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                while True:
                    time.sleep(0.001)
                    ctx.from_thread.check_cancelled()
            finally:
                ended.append(1)

    async def main():
        with nothing_left(), pytest.raises(StepTimeoutError):
            await Threaded().run()

        assert ended == [1]

    run_virtually(backend, main)


@on_each_backend
def test_deadline_is_the_nearest_one(backend):
    """``ctx.deadline`` knows the step's timeout, the run's, and what is around the run."""

    async def function(ctx):
        return ctx.deadline - anyio.current_time()

    async def main():
        assert await stepping(function)().run() == inf
        assert await stepping(function, timeout=5)(timeout=9).run() == pytest.approx(5)
        assert await stepping(function, timeout=9)(timeout=5).run() == pytest.approx(5)
        assert await stepping(function, timeout=9, idle_timeout=2)().run() == pytest.approx(2)
        with anyio.fail_after(3):
            assert await stepping(function, timeout=9)(timeout=5).run() == pytest.approx(3)

    run_virtually(backend, main)


@on_each_backend
def test_cancellation_that_comes_with_the_timeout_continues_outward(backend):
    """What is around the run is cancelled at the step's deadline: that is no failure of the step."""

    async def function(ctx):
        await anyio.sleep_forever()

    async def main():
        with nothing_left(), anyio.move_on_after(5) as scope:
            await stepping(function, timeout=5)().run()
        assert scope.cancelled_caught

    run_virtually(backend, main)


def test_native_cancellation_that_comes_with_the_timeout():
    """``Task.cancel()`` at the step's deadline is not swallowed."""

    async def function(ctx):
        await anyio.sleep_forever()

    async def main():
        with nothing_left():
            task = asyncio.create_task(stepping(function, timeout=5)().run()._await())
            asyncio.get_running_loop().call_later(5, task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task

    run_virtually("asyncio", main)


# -- the clock of a run ----------------------------------------------------------------------------


async def ask(ctx):
    await anyio.sleep(4)
    await ctx.wait_for_event(Answer, Question())
    await anyio.sleep(4)
    return "answered"


class Asks(Workflow):
    """Asks by an event, with four seconds of work before and after."""

    @step
    async def begin(self, ev: StartEvent) -> Question:
        await anyio.sleep(4)
        return Question()

    @step
    async def end(self, ev: Answer) -> StopEvent:
        await anyio.sleep(4)
        return StopEvent(result="answered")


class Parent(Workflow):
    """Runs a child, and works a second before and after."""

    def __init__(self, child, **options):
        super().__init__(**options)
        self.child = child

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await anyio.sleep(1)
        result = await ctx.run_child(self.child)
        await anyio.sleep(1)
        return StopEvent(result=result)


ASKING = {
    "in a step": lambda **options: Single(ask, **options),
    "by an event": Asks,
    "in a child's step": lambda **options: Parent(Single(ask), **options),
    "by a child's event": lambda **options: Parent(Asks(), **options),
    "in a grandchild": lambda **options: Parent(Parent(Asks()), **options),
}


@on_each_backend
@pytest.mark.parametrize("how", ASKING)
def test_time_spent_waiting_for_a_person_can_be_left_out(backend, how):
    """With ``timeout_excludes_waiting`` an hour of waiting costs nothing; without, it counts."""

    async def run(**options):
        async with ASKING[how](timeout=13, **options).run() as handler:
            await anyio.sleep(3600)
            assert handler.status in ("idle", "timed_out")
            if handler.status == "idle":
                handler.send_event(Answer())
            return await handler

    async def main():
        with nothing_left():
            assert await run(timeout_excludes_waiting=True) == "answered"
            with pytest.raises(WorkflowTimeoutError):
                await run()

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("how", ASKING)
def test_time_spent_working_still_counts(backend, how):
    """The clock continues as soon as the answer is there."""

    async def main():
        began = anyio.current_time()
        workflow = ASKING[how](timeout=7, timeout_excludes_waiting=True)
        async with workflow.run() as handler:
            await anyio.sleep(1000)
            handler.send_event(Answer())
            with pytest.raises(WorkflowTimeoutError):
                await handler
        assert anyio.current_time() - began < 1007

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("is_child", [False, True])
def test_clock_stands_still_only_while_nothing_runs(backend, is_child):
    """While another step works, waiting is not left out; when that step ends, it is."""

    async def function(ctx, number):
        if number:
            await anyio.sleep(6)
        else:
            await ctx.wait_for_event(Answer, Question())

    async def run(timeout):
        options = {"timeout": timeout, "timeout_excludes_waiting": True}
        if is_child:
            workflow = Parent(fanning(function, 2), **options)
        else:
            workflow = type(fanning(function, 2))(**options)
        async with workflow.run() as handler:
            await anyio.sleep(1000)
            if not handler.is_done():
                handler.send_event(Answer())
            return await handler

    async def main():
        assert await run(9) == [0, 1]
        with pytest.raises(WorkflowTimeoutError):
            await run(5)

    run_virtually(backend, main)


@on_each_backend
def test_clock_continues_when_a_child_that_waits_is_given_up(backend):
    """A child that timed out while it waited for a person leaves its parent to work."""

    class Catches(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(WorkflowTimeoutError):
                await ctx.run_child(Asks(timeout=10))
            await anyio.sleep(1000)
            return StopEvent()

    async def main():
        began = anyio.current_time()
        with pytest.raises(WorkflowTimeoutError) as caught:
            await Catches(timeout=9, timeout_excludes_waiting=True).run()
        # Four seconds of the child's work, six of waiting, and five more.
        assert anyio.current_time() - began == pytest.approx(15)
        assert caught.value.timeout == 9

    run_virtually(backend, main)


# -- how many runs at a time ------------------------------------------------------------------------


@pytest.mark.anyio
async def test_graceful_stop_of_a_run_that_waits_for_its_turn():
    """Nothing of it runs, so it ends at once."""

    async def function(ctx):
        await ctx.wait_for_event(Answer, Question())

    workflow = stepping(function)(num_concurrent_runs=1)
    async with workflow.run() as first:
        await anyio.wait_all_tasks_blocked()
        async with workflow.run() as second:
            await anyio.wait_all_tasks_blocked()
            await second.cancel(after="steps")
            assert second.status == "cancelled"
        first.send_event(Answer())
        await first
    assert is_empty(workflow)


def is_empty(workflow):
    """Whether no run holds a workflow's slots, or waits for one."""
    limit = workflow._Workflow__options.run_limit
    return all(not slots.inside and not slots.waiting for slots in limit._slots._things.values())


# -- the graceful stop ---------------------------------------------------------------------------------


@on_each_backend
def test_steps_in_flight_end_and_nothing_more_starts(backend):
    """``cancel(after="steps")`` lets run what runs; then the run is cancelled."""
    log = []

    async def function(ctx, number):
        log.append(("begins", number))
        await anyio.sleep(10)
        log.append(("ends", number))

    async def main():
        began = anyio.current_time()
        with nothing_left():
            async with fanning(function, 5, num_workers=2).run() as handler:
                await anyio.sleep(5)
                ended = handler.cancel("shutting down", after="steps")
                assert handler.status == "running"
                await ended
                assert anyio.current_time() - began == 10
                with pytest.raises(WorkflowCancelledError) as caught:
                    await handler
        assert caught.value.reason == "shutting down"

    run_virtually(backend, main)
    assert sorted(log) == [("begins", 0), ("begins", 1), ("ends", 0), ("ends", 1)]


@on_each_backend
def test_step_in_flight_may_still_complete_the_run(backend):
    """A stop event that comes from a step in flight is the result."""

    async def function(ctx):
        await anyio.sleep(10)
        return "done"

    async def main():
        async with stepping(function)().run() as handler:
            await anyio.sleep(5)
            await handler.cancel(after="steps")
            assert handler.status == "completed"
            assert await handler == "done"

    run_virtually(backend, main)


@on_each_backend
def test_failure_of_a_step_in_flight_still_counts(backend):
    """It fails the run; a retry of it is not begun."""
    error = Mine()
    tried = []

    async def function(ctx):
        tried.append(1)
        await anyio.sleep(10)
        raise error

    async def main():
        async with stepping(function)().run() as handler:
            await anyio.sleep(5)
            await handler.cancel(after="steps")
            with pytest.raises(Mine) as caught:
                await handler
            assert caught.value is error
        for wait in (0, 100):
            tried.clear()
            async with stepping(function, retry=Retry(wait=wait))().run() as handler:
                await anyio.sleep(5)
                await handler.cancel(after="steps")
                assert handler.status == "cancelled"
            assert tried == [1]

    run_virtually(backend, main)


WAITING = {
    "event": lambda ctx: ctx.wait_for_event(Answer, Question()),
    "branch": lambda ctx: ctx.send_event(Item(number=1)).wait(),
    "child": lambda ctx: ctx.run_child(Asks()),
    "child's step": lambda ctx: ctx.run_child(Single(ask)),
    "grandchild": lambda ctx: ctx.run_child(Parent(Asks())),
}


@on_each_backend
@pytest.mark.parametrize("what", WAITING)
@pytest.mark.parametrize("is_first", [False, True])
def test_step_that_waits_is_cancelled_by_a_graceful_stop(backend, what, is_first):
    """What waits for someone would never end: it is cancelled when nothing else runs.

    It does not matter whether it waits before the stop or comes to wait after it.
    """
    unwound = []

    class Waits(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            try:
                await anyio.sleep(20)
                await WAITING[what](ctx)
            finally:
                unwound.append(1)
            return StopEvent()

        @step
        async def work(self, ctx: Context, ev: Item) -> None:
            await ctx.wait_for_event(Answer, Question())

    async def main():
        with nothing_left():
            async with Waits(timeout=600).run() as handler:
                await anyio.sleep(10 if is_first else 200)
                await handler.cancel(after="steps")
                assert handler.status == "cancelled"

    run_virtually(backend, main)
    assert unwound == [1]


@on_each_backend
def test_graceful_stop_is_no_stall(backend):
    """A step that waits for a branch that is not started any more is cancelled: nothing is wrong."""

    class Waits(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            ctx.send_event(Item(number=1))
            await ctx.send_event(Item(number=2)).wait()
            return StopEvent()

        @step(num_workers=1)
        async def work(self, ev: Item) -> None:
            await anyio.sleep(10)

    async def main():
        began = anyio.current_time()
        async with Waits().run() as handler:
            await anyio.sleep(5)
            await handler.cancel(after="steps")
            assert handler.status == "cancelled"
        assert anyio.current_time() - began == 10

    run_virtually(backend, main)


@on_each_backend
def test_events_keep_their_order_in_a_graceful_stop(backend):
    """P14: one that comes while nothing starts any more is behind those that wait, in a snapshot too."""

    class Ordered(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | Done:
            ctx.send_event(Item(number=1))
            ctx.send_event(Item(number=2))
            return Done(number=0)

        @step(num_workers=1)
        async def work(self, ev: Item) -> None:
            await anyio.sleep(10)

        @step
        async def late(self, ev: Done) -> Item | StopEvent:
            await anyio.sleep(20)
            return Item(number=3)

    async def main():
        async with Ordered().run() as handler:
            await anyio.sleep(5)
            await handler.cancel(after="steps")
        return [
            delivery["event"]["v"]["number"]
            for delivery in handler.snapshot()["run"]["steps"]["work"]["deliveries"]
        ]

    assert run_virtually(backend, main) == [2, 3]


@on_each_backend
def test_child_at_work_is_let_end_by_a_graceful_stop(backend):
    """A child is part of the step in flight: all of it runs to its end."""

    class Chain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            await anyio.sleep(10)
            return Item(number=1)

        @step
        async def end(self, ev: Item) -> StopEvent:
            await anyio.sleep(10)
            return StopEvent(result="all of it")

    async def main():
        async with Parent(Chain()).run() as handler:
            await anyio.sleep(5)
            await handler.cancel(after="steps")
            assert await handler == "all of it"

    run_virtually(backend, main)


@on_each_backend
def test_step_that_waits_for_a_limiter_has_not_begun(backend):
    """A graceful stop does not let it begin, and is not held up by it."""
    limiter = anyio.CapacityLimiter(1)
    begun = []

    async def function(ctx, number):
        begun.append(number)
        await anyio.sleep(10)

    async def main():
        began = anyio.current_time()
        async with fanning(function, 3, limiter=limiter).run() as handler:
            await anyio.sleep(5)
            await handler.cancel(after="steps")
            assert anyio.current_time() - began == 10
        # Somebody else has the only place, for as long as he likes.
        async with limiter, fanning(function, 3, limiter=limiter).run() as handler:
            await anyio.sleep(5)
            await handler.cancel(after="steps")
            assert handler.status == "cancelled"
        assert limiter.borrowed_tokens == 0

    run_virtually(backend, main)
    assert len(begun) == 1


@on_each_backend
def test_graceful_stop_of_a_run_in_which_nothing_runs(backend):
    """One that is idle, or waits for the time of an attempt, ends at once."""

    async def function(ctx):
        raise Mine

    async def main():
        began = anyio.current_time()
        with nothing_left():
            async with Asks().run() as handler:
                await anyio.sleep(5)
                await handler.cancel(after="steps")
                assert handler.status == "cancelled"
            async with stepping(function, retry=Retry(wait=3600))().run() as handler:
                await anyio.sleep(5)
                await handler.cancel(after="steps")
                assert handler.status == "cancelled"
        assert anyio.current_time() - began == 10

    run_virtually(backend, main)


@on_each_backend
def test_graceful_stop_may_be_asked_for_again_and_overtaken(backend):
    """Again it changes nothing; a plain ``cancel()`` ends the run at once, for its own reason."""
    unwound = []

    async def function(ctx):
        try:
            await anyio.sleep(10)
        finally:
            unwound.append(anyio.current_time() - began[0])

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        async with stepping(function)().run() as handler:
            await anyio.sleep(2)
            handler.cancel("first", after="steps")
            handler.cancel("second", after="steps")
            await anyio.sleep(2)
            await handler.cancel("now")
            with pytest.raises(WorkflowCancelledError) as caught:
                await handler
            assert caught.value.reason == "now"
            await handler.cancel(after="steps")
            assert handler.status == "cancelled"

    run_virtually(backend, main)
    assert unwound == [4]


@on_each_backend
def test_timeout_still_strikes_during_a_graceful_stop(backend):
    """The time of a run continues; so does a cancellation from outside."""

    async def function(ctx):
        await anyio.sleep(3600)

    async def main():
        async with stepping(function)(timeout=10).run() as handler:
            await anyio.sleep(2)
            await handler.cancel(after="steps")
            with pytest.raises(WorkflowTimeoutError):
                await handler
        with nothing_left(), anyio.move_on_after(10) as scope:
            async with stepping(function)().run() as handler:
                await anyio.sleep(2)
                await handler.cancel(after="steps")
        assert scope.cancelled_caught

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_graceful_stop_of_an_unstarted_run():
    """It never starts."""

    async def function(ctx):
        pytest.fail("it was started")

    handler = stepping(function)().run()
    await handler.cancel(after="steps")

    assert handler.status == "cancelled"
    with pytest.raises(WorkflowCancelledError):
        await handler


@pytest.mark.anyio
async def test_step_may_ask_for_the_graceful_stop_of_its_own_run():
    """The step itself continues to its end; what it returns starts nothing."""
    log = []

    class Stops(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            ev.handlers[0].cancel("enough", after="steps")
            await anyio.lowlevel.checkpoint()
            log.append("ended")
            return Item(number=1)

        @step
        async def work(self, ev: Item) -> StopEvent:
            log.append("started")
            return StopEvent()

    handlers = []
    handlers.append(Stops().run(handlers=handlers))
    with pytest.raises(WorkflowCancelledError, match="enough"):
        await handlers[0]
    handlers.clear()

    assert log == ["ended"]


class Late(Workflow):
    """Takes ``seconds``, and never minds a cancellation."""

    def __init__(self, take, **options):
        super().__init__(**options)
        self.take = take

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await self.take()
        return StopEvent(result="result")


async def sleep_shielded(seconds):
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)


@on_each_backend
@pytest.mark.parametrize("how", ["shielded", "blocking"])
@pytest.mark.parametrize(("seconds", "status"), [(9, "completed"), (11, "timed_out")])
@pytest.mark.peer("edge 7")
def test_step_that_is_late_cannot_turn_a_timeout_into_a_result(backend, how, seconds, status):
    """P10: neither by shielding itself nor by blocking, with no checkpoint after the deadline."""

    async def main():
        async def take():
            if how == "shielded":
                await sleep_shielded(seconds)
            else:
                jump_clock(seconds)

        with nothing_left(), Catch() as left:
            handler = Late(take, timeout=10).run()
            await handler

        assert handler.status == status
        assert (type(left.error) is WorkflowTimeoutError) == (status == "timed_out")

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize(("seconds", "fails"), [(9, False), (11, True)])
@pytest.mark.parametrize("how", ["shielded", "blocking"])
def test_step_that_is_late_for_its_own_timeout_has_failed(backend, how, seconds, fails):
    """P10: the same for ``@step(timeout=...)``."""

    class Timed(Workflow):
        @step(timeout=10)
        async def only(self, ev: StartEvent) -> StopEvent:
            if how == "shielded":
                await sleep_shielded(seconds)
            else:
                jump_clock(seconds)
            return StopEvent(result="result")

    async def main():
        with nothing_left(), Catch() as left:
            assert await Timed().run() == "result"

        assert (type(left.error) is StepTimeoutError) == fails

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("how", ["sleeping", "shielded", "blocking"])
@pytest.mark.parametrize("hops", [0, 1, 5])
@pytest.mark.parametrize("whose", ["run", "step"])
def test_stop_event_in_the_tick_of_the_deadline_wins_always(backend, how, hops, whose):
    """P10: at the very moment of the deadline the result wins, each of fifty times."""

    class Exact(Workflow):
        @step(timeout=10 if whose == "step" else None)
        async def begin(self, ev: StartEvent) -> Item | StopEvent:
            if how == "sleeping":
                await anyio.sleep(10)
            elif how == "shielded":
                await sleep_shielded(10)
            else:
                jump_clock(10)
            return Item(number=hops) if hops else StopEvent(result="result")

        @step
        async def hop(self, ev: Item) -> Item | StopEvent:
            if ev.number == 1:
                return StopEvent(result="result")
            return Item(number=ev.number - 1)

    async def main():
        workflow = Exact(timeout=10 if whose == "run" else None)
        for _ in range(50):
            assert await workflow.run() == "result"

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.peer("edge 35")
def test_every_timer_is_the_backends(backend, monkeypatch):
    """P10: hours pass in no time; a wall clock that jumps back and forth is not looked at."""
    monkeypatch.setattr(time, "time", iter([1e9, -1e9, 3e9] * 10_000).__next__)

    class Timed(Workflow):
        @step(timeout=3_600)
        async def begin(self, ev: StartEvent) -> Item:
            await anyio.sleep(3_599)
            return Item(number=1)

        @step(timeout=1)
        async def end(self, ev: Item) -> StopEvent:
            await anyio.sleep(2)
            return StopEvent()

    async def main():
        with pytest.raises(StepTimeoutError) as caught:
            await Timed(timeout=7_200).run()

        assert caught.value.active_steps == ("end",)
        assert anyio.current_time() == pytest.approx(3_600)
        began = anyio.current_time()
        with pytest.raises(WorkflowTimeoutError) as caught:
            await Timed(timeout=50).run()

        assert type(caught.value) is WorkflowTimeoutError
        assert anyio.current_time() - began == pytest.approx(50)

    run_virtually(backend, main)


@pytest.mark.trio
async def test_mock_clock_drives_the_timeout(autojump_clock):
    """P10: under ``autojump_clock`` the deadline is hit exactly."""

    async def work(ctx):
        await trio.sleep_forever()

    began = trio.current_time()
    with pytest.raises(trio.TooSlowError):
        await Single(work, timeout=1e6).run()

    assert trio.current_time() - began == pytest.approx(1e6)


@on_each_backend
def test_the_timeout_of_a_run_counts_from_its_start(backend):
    """P10: not from when it was made."""

    async def main():
        async def work(ctx):
            await anyio.sleep(5)
            return "result"

        handler = Single(work, timeout=10).run()
        await anyio.sleep(100)
        assert await handler == "result"

    run_virtually(backend, main)


@on_each_backend
def test_deadline_around_a_foreign_nursery_does_not_bind_its_runs(backend):
    """P10: a run started in a nursery has the deadlines of that nursery, and its own."""

    async def main():
        async def work(ctx):
            await anyio.sleep(50)
            return "result"

        async with anyio.create_task_group() as group:
            with anyio.move_on_after(5):
                slow = Single(work).run().start_soon(group)
                fast = Single(work, timeout=10).run().start_soon(group)
                await anyio.sleep_forever()
            with pytest.raises(WorkflowTimeoutError):
                await fast
            assert anyio.current_time() == pytest.approx(10)
            assert await slow == "result"

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("catch", [TimeoutError, trio.TooSlowError, WorkflowTimeoutError])
@pytest.mark.parametrize("form", ["in place", "block", "nursery", "scope"])
def test_timeout_is_caught_where_one_is(backend, catch, form):
    """P11: right around the await, by the name that is common there."""

    async def main():
        class Two(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> list[Item | Done]:
                return [Item(number=1), Item(number=2), Done(number=3)]

            @step
            async def slow(self, ev: Item) -> StopEvent:
                await anyio.sleep_forever()
                raise AssertionError

            @step
            async def quick(self, ev: Done) -> None:
                return None

        async def check(handler):
            with pytest.raises(catch) as caught:
                await handler

            error = caught.value
            assert type(error) is WorkflowTimeoutError
            assert error.timeout == 7
            assert error.active_steps == ("slow", "slow")
            assert all(part in str(error) for part in ("slow", "7 s", "r-3"))
            assert "quick" not in str(error)

        handler = Two(timeout=7).run(run_id="r-3")
        with nothing_left():
            if form == "in place":
                await check(handler)
            elif form == "block":
                async with handler:
                    await check(handler)
            elif form == "scope":
                async with workflow_scope():
                    await check(handler)
            else:
                async with anyio.create_task_group() as group:
                    handler.start_soon(group)
                    await check(handler)

    run_virtually(backend, main)


@on_each_backend
def test_timeout_of_a_step_is_one_too_and_names_it(backend):
    """P11: ``StepTimeoutError`` is a ``WorkflowTimeoutError`` that names the step."""

    class Timed(Workflow):
        @step(timeout=3)
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep_forever()
            raise AssertionError

    async def main():
        with pytest.raises(TimeoutError) as caught:
            await Timed().run()

        assert isinstance(caught.value, StepTimeoutError | trio.TooSlowError)
        assert caught.value.active_steps == ("only",)
        assert "Timed.only" in str(caught.value)

    run_virtually(backend, main)


@on_each_backend
def test_timeout_of_a_step_is_for_one_invocation_of_it(backend):
    """P15: each invocation has its own time; of several only the late one is timed out."""

    class Timed(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in (4, 1, 3, 2)]

        @step(timeout=5, num_workers=2)
        async def work(self, ev: Item) -> Done:
            await anyio.sleep(ev.number)
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=[ev.number for ev in evs])

    async def main():
        # Two at a time, ten seconds of work in all: no less than five, and none is late.
        assert sorted(await Timed().run()) == [1, 2, 3, 4]
        assert anyio.current_time() >= 5

    run_virtually(backend, main)


@on_each_backend
def test_step_that_times_out_is_cancelled_alone_and_fails_its_run(backend):
    """P15: the others see the failure of the run, not the timeout of their sibling."""
    seen = []

    class Timed(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item | Note]:
            return [Item(number=1), Note(number=2)]

        @step(timeout=5)
        async def late(self, ev: Item) -> StopEvent:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(2)
                seen.append(("late", anyio.current_time()))
            raise AssertionError

        @step
        async def other(self, ev: Note) -> StopEvent:
            try:
                await anyio.sleep_forever()
            finally:
                seen.append(("other", anyio.current_time()))
            raise AssertionError

    async def main():
        with nothing_left(), pytest.raises(StepTimeoutError):
            await Timed().run()

        assert [name for name, _ in seen] == ["late", "other"]
        assert [when for _, when in seen] == pytest.approx([7, 7])

    run_virtually(backend, main)


@pytest.mark.anyio
@pytest.mark.peer("edge 5")
async def test_timeout_reaches_the_step_the_stream_and_the_caller():
    """P4, P11: the step is cancelled, the stream says so, and both names catch it."""
    workflow = Stuck(timeout=0.05)
    async with workflow.run() as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(WorkflowTimeoutError) as caught:
            await handler

    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, trio.TooSlowError)
    assert caught.value.active_steps == ("wait",)
    assert workflow.seen == ["cancelled", "cleaned up"]
    assert [type(event) for event in events] == [Line, Line, WorkflowTimedOutEvent]
    assert events[-1].active_steps == ("wait",)


@pytest.mark.anyio
@pytest.mark.peer("edge 6")
async def test_timeout_does_not_cut_the_clean_up_short():
    """P2: a shielded clean-up runs to its end, however long after the timeout it takes."""
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
                    await wait_until_idle(5)
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


@on_each_backend
@pytest.mark.peer("note 3.3")
def test_time_that_a_person_takes_is_left_out_of_the_timeout(backend):
    """With ``timeout_excludes_waiting`` the clock stands still while a run is idle."""

    async def ask(ctx):
        await anyio.sleep(3)
        await ctx.wait_for_event(Said, Asked(name="ann"))
        await anyio.sleep(3)
        return "done"

    async def take_a_day(seconds):
        workflow = Single(ask, timeout=seconds, timeout_excludes_waiting=True)
        async with workflow.run() as handler:
            async for event in handler.stream_events():
                if isinstance(event, Asked):
                    await anyio.sleep(86_400)
                    handler.send_event(Said(name="ann", text="aye"))
            return await handler

    async def main():
        assert await take_a_day(7) == "done"
        with pytest.raises(WorkflowTimeoutError):
            await take_a_day(5)

    run_virtually(backend, main)


@on_each_backend
def test_the_clock_continues_while_one_of_two_children_works(backend):
    """A run is idle only when all of it waits for a person."""

    class Asking(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent(prefix="?"))
            return StopEvent()

    class Busy(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(100)
            return StopEvent()

    class Both(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async with anyio.create_task_group() as group:
                group.start_soon(ctx.run_child, Asking())
                group.start_soon(ctx.run_child, Busy())
            return StopEvent()

    async def main():
        with pytest.raises(WorkflowTimeoutError):
            await Both(timeout=5, timeout_excludes_waiting=True).run()
        assert anyio.current_time() < 50

    run_virtually(backend, main)


@on_each_backend
def test_a_timeout_that_passes_while_a_step_blocks_is_the_timeout(backend):
    """P11: also where the step had slept before, and its sleep was ended by a cancellation."""

    class Slow(Workflow):
        @step
        async def slow(self, ev: StartEvent) -> Item:
            await anyio.sleep(1)
            until = time.perf_counter() + 0.002  # so that the next hop is a whole checkpoint
            while time.perf_counter() < until:
                pass
            jump_clock(20)
            return Item(number=1)

        @step
        async def last(self, ev: Item) -> StopEvent:
            return StopEvent()

    async def main():
        with pytest.raises(WorkflowTimeoutError):
            await Slow(timeout=5).run()

    run_virtually(backend, main)
