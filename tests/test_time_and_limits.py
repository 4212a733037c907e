"""Time and limits: timeouts of steps, the clock of a run, shared limits, and the graceful stop."""

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
    RateLimiter,
    Retry,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
    step,
)
from sluicegate.testing import jump_clock
from tests.helpers import (
    Done,
    Item,
    Mine,
    Note,
    Single,
    nothing_left,
    on_each_backend,
    run_virtually,
    timers_left,
    wait_until_idle,
)


class Question(InputRequiredEvent):
    pass


class Answer(HumanResponseEvent):
    number: int = 0


def stepping(function, **of_step):
    """Return the class of a workflow of one step, which runs ``await function(ctx)``."""

    class Stepping(Workflow):
        @step(**of_step)
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            return StopEvent(result=await function(ctx))

        @step
        async def take(self, ev: Item) -> None:
            pass

    return Stepping


def fanning(function, count=3, **of_step):
    """Return a workflow that runs ``await function(ctx, n)`` for each number, and joins them."""

    class Fanning(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(count)]

        @step(**of_step)
        async def work(self, ctx: Context, ev: Item) -> Done:
            await function(ctx, ev.number)
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    return Fanning()


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
def test_cancellation_that_comes_with_the_timeout_goes_on_outward(backend):
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
    """The clock goes on as soon as the answer is there."""

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
def test_clock_goes_on_when_a_child_that_waits_is_given_up(backend):
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


@on_each_backend
def test_runs_of_a_workflow_go_on_so_many_at_a_time(backend):
    """Further ones wait in the order in which they came; their timeouts begin when they do."""
    log = []

    class Slow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            log.append((ev.n, anyio.current_time() - began[0]))
            await anyio.sleep(10)
            return StopEvent(result=ev.n)

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        workflow = Slow(num_concurrent_runs=2, timeout=15)
        handlers = []
        with nothing_left():
            async with anyio.create_task_group() as group:
                for n in range(5):
                    handlers.append(workflow.run(n=n).start_soon(group))
                    await wait_until_idle()
            assert [handler.result() for handler in handlers] == list(range(5))
        assert not timers_left()

    run_virtually(backend, main)
    assert log == [(0, 0), (1, 0), (2, 10), (3, 10), (4, 20)]


@on_each_backend
def test_run_is_cancelled_while_it_waits_for_its_turn(backend):
    """It never begins, its stream ends, and those behind it move up."""
    log = []

    async def function(ctx):
        log.append(anyio.current_time() - began[0])
        await anyio.sleep(10)

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        workflow = stepping(function)(num_concurrent_runs=1)
        with nothing_left():
            async with anyio.create_task_group() as group:
                first, second, third = (workflow.run() for _ in range(3))
                for handler in (first, second, third):
                    handler.start_soon(group)
                    await wait_until_idle()
                stream = second.stream_events()
                await anyio.sleep(1)
                assert second.status == "running"
                await second.cancel("not needed")
                assert second.status == "cancelled"
                assert [type(ev).__name__ async for ev in stream] == ["WorkflowCancelledEvent"]
            assert first.status == third.status == "completed"

    run_virtually(backend, main)
    assert log == [0, 10]


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


def test_native_cancellation_of_a_run_that_waits_for_its_turn():
    """``Task.cancel()`` of the one that waits takes no turn from those behind it."""

    async def function(ctx):
        await anyio.sleep(10)
        return "done"

    async def main():
        workflow = stepping(function)(num_concurrent_runs=1)
        with nothing_left():
            tasks = [asyncio.create_task(workflow.run()._await()) for _ in range(3)]
            await asyncio.sleep(1)
            tasks[1].cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert ended[0] == ended[2] == "done"
        assert isinstance(ended[1], asyncio.CancelledError)
        assert asyncio.get_running_loop().time() == 20

    run_virtually("asyncio", main)


# -- limits that steps share -------------------------------------------------------------------------


@pytest.mark.anyio
async def test_capacity_is_shared_by_workflows():
    """Two workflows whose steps name one limiter have so many invocations at a time, together."""
    limiter = anyio.CapacityLimiter(2)
    inside = []
    most = []

    async def function(ctx, number):
        inside.append(number)
        most.append(len(inside))
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        inside.remove(number)

    one, two = (fanning(function, 10, limiter=limiter, num_workers=10) for _ in range(2))
    async with one.run() as first, two.run() as second:
        assert await first == await second == list(range(10))

    assert max(most) == 2
    assert limiter.borrowed_tokens == 0


def test_capacity_limiter_of_trio():
    """Trio's own limiter serves as well; a cancelled step gives its place back."""
    limiter = trio.CapacityLimiter(1)

    async def function(ctx, number):
        await trio.sleep(10)

    async def main():
        workflow = fanning(function, 3, limiter=limiter)
        assert await workflow.run() == [0, 1, 2]
        assert trio.current_time() - began == 30
        with trio.move_on_after(5):
            await workflow.run()
        assert limiter.borrowed_tokens == 0

    async def start():
        nonlocal began
        began = trio.current_time()
        await main()

    began = 0.0
    run_virtually("trio", start)


@on_each_backend
def test_rate_is_shared_by_workflows(backend):
    """Invocations of both begin at the rate of the limiter."""
    limiter = RateLimiter(1, per=10)
    begun = []

    async def function(ctx, number):
        begun.append(anyio.current_time() - began[0])

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        one, two = (fanning(function, 2, limiter=limiter) for _ in range(2))
        async with one.run() as first, two.run() as second:
            await first
            await second

    run_virtually(backend, main)
    assert begun == pytest.approx([0, 10, 20, 30])


@on_each_backend
def test_waiting_for_a_limiter_is_no_time_of_the_step(backend):
    """The timeouts of a step begin when it does."""
    limiter = anyio.CapacityLimiter(1)

    async def function(ctx, number):
        await anyio.sleep(4)

    async def main():
        workflow = fanning(function, 3, limiter=limiter, timeout=5, idle_timeout=5)
        assert await workflow.run() == [0, 1, 2]

    run_virtually(backend, main)


@on_each_backend
def test_delayed_attempt_holds_no_limiter(backend):
    """Between two attempts others may enter."""
    limiter = anyio.CapacityLimiter(1)
    log = []

    async def function(ctx, number):
        log.append(number)
        if number == 0 and ctx.step.attempt == 1:
            raise Mine

    async def main():
        workflow = fanning(function, 2, limiter=limiter, retry=Retry(wait=100), num_workers=1)
        assert await workflow.run() == [0, 1]

    run_virtually(backend, main)
    assert log == [0, 1, 0]


@pytest.mark.anyio
async def test_limiter_is_entered_around_a_synchronous_step():
    """A plain ``def`` is limited in the same way."""
    limiter = anyio.CapacityLimiter(1)
    borrowed = []

    class Threaded(Workflow):
        @step(limiter=limiter)
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            borrowed.append(ctx.from_thread.run_sync(lambda: limiter.borrowed_tokens))
            return StopEvent()

    await Threaded().run()

    assert borrowed == [1]
    assert limiter.borrowed_tokens == 0


@pytest.mark.anyio
async def test_step_and_step_of_its_child_may_share_a_limiter():
    """Each invocation counts for one, whatever task runs it."""
    limiter = anyio.CapacityLimiter(2)

    class Inner(Workflow):
        @step(limiter=limiter)
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=limiter.borrowed_tokens)

    class Outer(Workflow):
        @step(limiter=limiter)
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.run_child(Inner()))

    assert await Outer().run() == 2
    assert limiter.borrowed_tokens == 0


@pytest.mark.anyio
async def test_limiter_that_fails_fails_the_step():
    """An error of the limiter is the step's: it is tried again."""

    class Moody:
        entered = 0

        async def __aenter__(self):
            self.entered += 1
            if self.entered < 3:
                raise Mine

        async def __aexit__(self, *_):
            pass

    async def function(ctx):
        return ctx.step.attempt

    assert await stepping(function, limiter=Moody(), retry=Retry(stop=3))().run() == 3


@pytest.mark.parametrize("limiter", [RateLimiter, anyio.CapacityLimiter, object()])
def test_limiter_is_an_object_that_can_be_entered(limiter):
    """A class, or what is no async context manager, is refused where it is written."""
    with pytest.raises(WorkflowValidationError, match="expected an async context manager like"):
        step(limiter=limiter)(test_step_that_waits_is_cancelled_by_a_graceful_stop)


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
    """A stop event that comes of a step in flight is the result."""

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
    """What waits for somebody would never end: it is cancelled when nothing else runs.

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
    """The time of a run goes on; so does a cancellation from outside."""

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
    """The step itself goes on to its end; what it returns starts nothing."""
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
