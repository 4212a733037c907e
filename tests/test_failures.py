"""What becomes of a failed step: retries, the handlers of failures, and who gets the exception."""

from __future__ import annotations

import asyncio
import gc

import anyio
import pytest
import tenacity

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StepFailedEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    WorkflowValidationError,
    catch_error,
    step,
)
from sluicegate._engine.lineage import BranchNode
from sluicegate.testing import jump_clock
from tests.helpers import (
    Catch,
    Done,
    Item,
    Mine,
    MineBase,
    Note,
    nothing_left,
    on_each_backend,
    run_virtually,
)


class Question(InputRequiredEvent):
    pass


class Answer(HumanResponseEvent):
    number: int


class Left(Event):
    number: int


class Right(Event):
    number: int


def retrying(function, retry, *, options=None, **of_step):
    """Return a workflow of one step, which runs ``await function(ctx)``."""

    class Retrying(Workflow):
        @step(retry=retry, **of_step)
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await function(ctx))

    return Retrying(**(options or {}))


def failing(times, error=Mine):
    """Return a function that notes when it is called, and fails so many times."""
    called = []

    async def function(ctx):
        called.append(anyio.current_time())
        await anyio.lowlevel.checkpoint()
        if len(called) <= times:
            raise error(f"number {len(called)}")
        return [at - called[0] for at in called]

    return function


# -- retries --------------------------------------------------------------------------------------


@on_each_backend
def test_failed_step_is_tried_again_after_its_delay(backend):
    """Attempts follow each other by the policy, on the clock of the event loop."""

    async def main():
        assert await retrying(failing(2), Retry(stop=3, wait=20)).run() == [0, 20, 40]
        grows = Retry(stop=4, wait=tenacity.wait_exponential(multiplier=1))
        assert await retrying(failing(3), grows).run() == [0, 1, 3, 7]
        assert await retrying(failing(2), Retry(stop=3)).run() == [0, 0, 0]

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_what_comes_out_in_the_end_is_the_last_exception_with_a_note():
    """The last attempt's own exception leaves the run; a note names the attempts before it."""
    raised = []

    async def function(ctx):
        raised.append(Mine(len(raised)))
        raise raised[-1]

    with pytest.raises(Mine) as caught:
        await retrying(function, Retry(stop=3)).run(n=7)

    assert len(raised) == 3
    assert caught.value is raised[-1]
    attempts, where = caught.value.__notes__
    assert attempts.startswith("attempt 3 of the step Retrying.only; earlier attempts: 1. Mine(0)")
    assert "2. Mine(1)" in attempts
    assert where.startswith("in the step Retrying.only, handling StartEvent(n=7), in the run ")


@pytest.mark.anyio
async def test_failure_that_the_policy_does_not_name_is_not_tried_again():
    """``when`` says what is tried again; all else fails the run at once, and has no note of attempts."""
    error = Mine()
    called = []

    async def function(ctx):
        called.append(1)
        raise error

    with pytest.raises(Mine) as caught:
        await retrying(function, Retry(stop=3, when=OSError)).run()

    assert caught.value is error
    assert len(called) == 1
    assert len(error.__notes__) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MineBase])
async def test_only_an_exception_is_tried_again(kind):
    """What is no Exception goes through every policy and every handler."""
    error = kind()
    called = []

    class Urgent(Workflow):
        @step(retry=Retry(stop=3))
        async def only(self, ev: StartEvent) -> StopEvent:
            called.append(1)
            raise error

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            called.append(2)
            return StopEvent()

    with Catch() as caught:
        await Urgent().run()

    assert caught.error is error
    assert called == [1]


@on_each_backend
def test_delayed_attempt_holds_no_worker(backend):
    """While an attempt waits for its time, the one worker of its step takes other events."""
    log = []

    class Busy(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step(num_workers=1, retry=Retry(wait=10))
        async def work(self, ctx: Context, ev: Item) -> Done:
            await anyio.sleep(1)
            log.append((ev.number, anyio.current_time() - self.began))
            if ev.number == 0 and ctx.step.attempt == 1:
                raise Mine
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    async def main():
        workflow = Busy()
        workflow.began = anyio.current_time()
        assert await workflow.run() == [0, 1, 2]

    run_virtually(backend, main)
    assert log == [(0, 1), (1, 2), (2, 3), (0, 12)]


@on_each_backend
def test_jitter_is_that_of_the_run_id(backend):
    """A run with the same identifier waits equally long again; another one does not."""
    policy = Retry(stop=4, wait=tenacity.wait_random(1, 100))

    async def main():
        one, again, other = [
            await retrying(failing(3), policy).run(run_id=name) for name in ("a", "a", "b")
        ]
        assert one == pytest.approx(again)
        assert one != pytest.approx(other)
        assert one[1] >= 1

    run_virtually(backend, main)


@pytest.mark.anyio
@pytest.mark.parametrize("at_once", [False, True])
async def test_what_a_failed_attempt_sent(at_once):
    """It is dropped, so nothing is done twice; with ``send_at_once`` it is out, and is done again.

    What it wrote to the stream is out in both cases.
    """
    received = []

    class Sends(Workflow):
        @step(retry=Retry(stop=3), send_at_once=at_once)
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | Done:
            attempt = ctx.step.attempt
            ctx.send_event(Item(number=attempt))
            ctx.write_event_to_stream(Note(number=attempt))
            await anyio.wait_all_tasks_blocked()
            if attempt < 3:
                raise Mine
            return Done(number=attempt)

        @step
        async def take(self, ev: Item) -> None:
            received.append(ev.number)

        @step
        async def end(self, ev: Done) -> StopEvent:
            await anyio.wait_all_tasks_blocked()
            return StopEvent()

    async with Sends().run() as handler:
        seen = [ev.number async for ev in handler.stream_events() if isinstance(ev, Note)]

    assert received == ([1, 2, 3] if at_once else [3])
    assert seen == [1, 2, 3]


@pytest.mark.anyio
async def test_branch_that_is_kept_back_cannot_be_waited_for():
    """It would never begin; the error says what to do. One of a failed attempt is over."""
    branches = []

    class Waits(Workflow):
        @step(retry=Retry(stop=2))
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            branches.append(ctx.send_event(Item(number=1)))
            await branches[-1].wait()
            return StopEvent()

        @step
        async def take(self, ev: Item) -> None:
            pytest.fail("nothing was sent")

    with pytest.raises(WorkflowRuntimeError, match=r"`@step\(retry=\.\.\., send_at_once=True\)`"):
        await Waits().run()

    assert [branch.is_done for branch in branches] == [True, True]


@on_each_backend
def test_each_attempt_is_told_of_the_others(backend):
    """``ctx.retry_info()`` knows the attempts before it: how many, when, and what they raised."""
    errors = [Mine(1), Mine(2)]
    infos = []

    async def function(ctx):
        await anyio.sleep(1)
        infos.append(ctx.retry_info())
        assert ctx.step.attempt == len(infos)
        if len(infos) < 3:
            raise errors[len(infos) - 1]

    async def main():
        await retrying(function, Retry(wait=4)).run()

    run_virtually(backend, main)

    assert [info.retry_number for info in infos] == [0, 1, 2]
    assert [info.attempt for info in infos] == [1, 2, 3]
    assert [info.elapsed_seconds for info in infos] == [1, 6, 11]
    assert [info.last_failed_at for info in infos] == [None, 1, 6]
    assert [info.last_exception for info in infos] == [None, *errors]
    assert infos[2].exceptions == tuple(errors)


@on_each_backend
def test_join_waits_for_the_branch_that_is_tried_again(backend):
    """Every branch comes once to the join, however often it was tried; the join runs once."""
    log = []

    class Wide(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(20)]

        @step(num_workers=3, retry=Retry(stop=20, wait=1))
        async def work(self, ctx: Context, ev: Item) -> Done:
            await anyio.sleep(0.1)
            if ctx.step.attempt <= ev.number % 4:
                raise Mine
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            log.append(1)
            return StopEvent(result=sorted(ev.number for ev in evs))

    async def main():
        with nothing_left():
            assert await Wide().run() == list(range(20))

    run_virtually(backend, main)
    assert log == [1]


@on_each_backend
def test_step_timeout_is_tried_again(backend):
    """A timeout counts as a failure of the attempt, and each attempt has the whole timeout."""
    log = []

    async def function(ctx):
        log.append(anyio.current_time())
        await anyio.sleep(4 if len(log) == 3 else 100)
        return ctx.retry_info().exceptions

    async def main():
        workflow = retrying(function, Retry(wait=2), timeout=5)
        first, second = await workflow.run()

        assert type(first) is type(second) is StepTimeoutError
        assert [at - log[0] for at in log] == pytest.approx([0, 7, 14])

        log[:] = [0] * 5
        with pytest.raises(StepTimeoutError) as caught:
            await workflow.run()
        assert caught.value.__notes__[0].startswith("attempt 3 of the step Retrying.only")

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_strategy_that_raises_fails_the_run():
    """Its own exception comes out, with the step's as context, and no handler is asked."""
    fault, error = Mine("strategy"), Mine("step")

    def wait(state):
        raise fault

    class Bad(Workflow):
        @step(retry=Retry(wait=wait))
        async def only(self, ev: StartEvent) -> StopEvent:
            raise error

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="recovered")

    with pytest.raises(Mine) as caught:
        await Bad().run()

    assert caught.value is fault
    assert fault.__context__ is error
    assert any("wait=" in note for note in fault.__notes__)


class Delayed(Workflow):
    """One step that fails at once and would be tried again in an hour."""

    tried = 0

    @step(retry=Retry(wait=3600))
    async def only(self, ev: StartEvent) -> StopEvent:
        self.tried += 1
        raise Mine


@on_each_backend
def test_run_ends_in_the_middle_of_a_delay(backend):
    """Timeout, cancellation by the handler and from outside: nothing waits for the next attempt."""

    async def main():
        began = anyio.current_time()
        with nothing_left():
            with pytest.raises(WorkflowTimeoutError, match=r"only: 1 waiting for another attempt$"):
                await Delayed(timeout=5).run()
            async with Delayed().run() as handler:
                await anyio.sleep(5)
                assert handler.status == "running"
                await handler.cancel("enough")
                assert handler.status == "cancelled"
            with anyio.move_on_after(5) as scope:
                await Delayed().run()
            assert scope.cancelled_caught
        assert anyio.current_time() - began < 20

    run_virtually(backend, main)


@on_each_backend
def test_cancellation_among_delays_is_not_taken_for_the_timeout(backend):
    """A run with a timeout, some steps of which wait for an attempt, is cancelled from outside."""

    class Wide(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(20)]

        @step(num_workers=20, retry=Retry(wait=100))
        async def work(self, ev: Item) -> Done:
            if ev.number % 2:
                raise Mine
            await anyio.sleep(100)
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    async def main():
        for _ in range(5):
            with nothing_left(), anyio.move_on_after(5) as scope:
                async with Wide(timeout=10).run() as handler:
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert handler.status == "cancelled"

    run_virtually(backend, main)


def test_cancelled_delay_fails_the_run():
    """Whoever cancels the task of a delay, and no more, makes the run fail instead of hang."""

    async def main():
        with nothing_left():
            async with Delayed().run() as handler:
                await asyncio.sleep(5)
                for task in asyncio.all_tasks():
                    if task.get_name().endswith("waiting for attempt 2"):
                        task.cancel()
                with pytest.raises(
                    WorkflowRuntimeError, match=r"attempt 2 of the step Delayed\.only"
                ):
                    await handler

    run_virtually("asyncio", main)


def test_native_cancellation_in_the_middle_of_a_delay():
    """``Task.cancel()`` of the task that runs the run ends it, and leaves nothing."""

    async def main():
        with nothing_left():
            workflow = Delayed()
            task = asyncio.create_task(workflow.run()._await())
            await asyncio.sleep(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert workflow.tried == 1

    run_virtually("asyncio", main)


@on_each_backend
def test_stop_event_does_not_wait_for_a_delayed_attempt(backend):
    """When another step returns the stop event, the run is over."""

    class Stops(Delayed):
        @step
        async def other(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(5)
            return StopEvent(result="over")

    async def main():
        began = anyio.current_time()
        with nothing_left():
            assert await Stops().run() == "over"
        assert anyio.current_time() - began == 5

    run_virtually(backend, main)


@on_each_backend
def test_branch_is_cancelled_in_the_middle_of_a_delay(backend):
    """The attempt is not made, and who waits for the branch continues at once."""
    tried = []

    class Sender(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            branch = ctx.send_event(Item(number=1))
            await anyio.sleep(5)
            branch.cancel("enough")
            await branch.wait()
            return StopEvent(result=anyio.current_time() - self.began)

        @step(retry=Retry(wait=3600))
        async def work(self, ev: Item) -> None:
            tried.append(1)
            raise Mine

    async def main():
        workflow = Sender()
        workflow.began = anyio.current_time()
        with nothing_left():
            assert await workflow.run() == 5

    run_virtually(backend, main)
    assert tried == [1]


@on_each_backend
def test_who_waits_for_a_branch_waits_for_its_attempts(backend):
    """A failure that is tried again is none yet; the last one is raised where the branch is awaited."""
    error = Mine("last")

    class Sender(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            began = anyio.current_time()
            await ctx.send_event(Item(number=2)).wait()
            assert anyio.current_time() - began == 10
            with pytest.raises(Mine) as caught:
                await ctx.send_event(Item(number=9)).wait()
            return StopEvent(result=(caught.value, anyio.current_time() - began))

        @step(retry=Retry(stop=3, wait=10))
        async def work(self, ctx: Context, ev: Item) -> None:
            if ctx.step.attempt < ev.number:
                raise error if ctx.step.attempt == 3 else Mine

    async def main():
        with nothing_left():
            result, after = await Sender().run()
        assert result is error
        assert after == 30
        assert error.__notes__[0].startswith("attempt 3 of the step Sender.work")

    run_virtually(backend, main)


@on_each_backend
def test_attempts_without_delay_do_not_keep_the_event_loop_to_themselves(backend):
    """A step that fails for ever, without a delay and without awaiting, ends by its run's timeout."""
    tried = []

    class Endless(Workflow):
        @step(retry=Retry(stop=tenacity.stop_never))
        async def only(self, ev: StartEvent) -> StopEvent:
            tried.append(1)
            if len(tried) == 500:
                jump_clock(20)
            if len(tried) > 5000:
                pytest.fail("nobody looked at the clock")
            raise Mine

    async def main():
        with pytest.raises(WorkflowTimeoutError):
            await Endless(timeout=10).run()

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_event_given_to_a_buffer_is_taken_back():
    """An attempt that collects and fails leaves the buffer as it was: nothing is lost or twice."""

    class Collects(Workflow):
        failed = 0

        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(6):
                ctx.send_event(Item(number=n))

        @step(num_workers=1, retry=Retry(stop=2))
        async def collect(self, ctx: Context, ev: Item) -> StopEvent | None:
            evs = ctx.collect_events(ev, [Item] * 6)
            if ctx.step.attempt == 1:
                self.failed += 1
                raise Mine
            return evs and StopEvent(result=sorted(ev.number for ev in evs))

    workflow = Collects()

    assert await workflow.run() == list(range(6))
    assert workflow.failed == 6


@pytest.mark.anyio
async def test_answer_is_not_asked_for_again():
    """What an attempt waited for and received is there for the next: the question goes out once."""

    async def function(ctx):
        answer = await ctx.wait_for_event(Answer, Question())
        if ctx.step.attempt < 3:
            raise Mine
        return answer.number

    async with retrying(function, Retry()).run() as handler:
        asked = 0
        async for event in handler.stream_events():
            if isinstance(event, Question):
                asked += 1
                handler.send_event(Answer(number=42))

        assert await handler == 42
    assert asked == 1


@pytest.mark.anyio
async def test_two_answers_at_once_are_kept_for_the_next_attempt():
    """Two tasks of a step that wait for the same class get one answer each, in every attempt."""

    async def function(ctx):
        numbers = []

        async def ask():
            numbers.append((await ctx.wait_for_event(Answer, Question())).number)

        async with anyio.create_task_group() as node:
            node.start_soon(ask)
            node.start_soon(ask)
        if ctx.step.attempt == 1:
            raise Mine
        return sorted(numbers)

    async with retrying(function, Retry()).run() as handler:
        await anyio.wait_all_tasks_blocked()
        handler.send_event(Answer(number=1))
        handler.send_event(Answer(number=2))

        assert await handler == [1, 2]


@pytest.mark.anyio
async def test_kept_answer_that_a_cancelled_wait_did_not_take_is_there_for_the_next():
    """A wait that is cancelled has taken no event, in a further attempt too."""

    async def function(ctx):
        if ctx.step.attempt == 2:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await ctx.wait_for_event(Answer, Question())
        answer = await ctx.wait_for_event(Answer, Question())
        if ctx.step.attempt == 1:
            raise Mine
        return answer.number

    async with retrying(function, Retry()).run() as handler:
        await anyio.wait_all_tasks_blocked()
        handler.send_event(Answer(number=3))

        assert await handler == 3


@pytest.mark.anyio
async def test_join_is_tried_again_with_all_its_events():
    """Each attempt of a join gets a list of its own; what the one before did to it is not seen."""

    class Joins(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step(retry=Retry())
        async def end(self, ctx: Context, evs: list[Item]) -> StopEvent:
            numbers = [evs.pop().number for _ in range(3)]
            if ctx.step.attempt < 3:
                raise Mine
            return StopEvent(result=sorted(numbers))

    assert await Joins().run() == [0, 1, 2]


@pytest.mark.anyio
async def test_step_of_one_of_each_is_tried_again_with_both():
    """A step of several events has them all in every attempt."""

    class Pairs(Workflow):
        @step
        async def left(self, ev: StartEvent) -> Left:
            return Left(number=1)

        @step
        async def right(self, ev: StartEvent) -> Right:
            return Right(number=2)

        @step(retry=Retry())
        async def both(self, a: Left, ctx: Context, b: Right) -> StopEvent:
            if ctx.step.attempt < 3:
                raise Mine
            return StopEvent(result=(a.number, b.number))

    assert await Pairs().run() == (1, 2)


@pytest.mark.anyio
async def test_synchronous_step_is_tried_again():
    """A plain ``def`` has retries as well, and its context knows the attempt."""
    attempts = []

    class Plain(Workflow):
        @step(retry=Retry(stop=3))
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            ctx.send_event(Item(number=ctx.step.attempt))
            attempts.append((ctx.step.attempt, ctx.retry_info().retry_number))
            if len(attempts) < 3:
                raise Mine
            return None or Item(number=0)

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent | None:
            evs = ctx.collect_events(ev, [Item, Item])
            return evs and StopEvent(result=sorted(ev.number for ev in evs))

    assert await Plain().run() == [0, 3]
    assert attempts == [(1, 0), (2, 1), (3, 2)]


@pytest.mark.anyio
async def test_note_of_a_later_attempt_names_the_event():
    """What a step was handling is told by the event that the user knows."""
    with pytest.raises(Mine) as caught:
        await retrying(failing(9), Retry(stop=2, when=tenacity.retry_always)).run(text="abc")

    assert "handling StartEvent(text='abc')" in caught.value.__notes__[-1]


@on_each_backend
def test_cancellation_is_not_tried_again(backend):
    """A cancelled attempt is no failed one: the step begins once."""
    begun = []

    async def function(ctx):
        begun.append(1)
        await anyio.sleep_forever()

    async def main():
        with anyio.move_on_after(5):
            await retrying(function, Retry()).run()
        with pytest.raises(WorkflowTimeoutError):
            await retrying(function, Retry(), options={"timeout": 5}).run()

    run_virtually(backend, main)
    assert begun == [1, 1]


@on_each_backend
def test_failure_of_clean_up_is_not_tried_again(backend):
    """What fails while the run unwinds is kept, and begins nothing anew."""
    error = Mine()
    begun = []

    async def function(ctx):
        begun.append(1)
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    async def main():
        async with retrying(function, Retry(wait=1)).run() as handler:
            await anyio.sleep(5)
            await handler.cancel()
            assert handler.exceptions == (error,)

    run_virtually(backend, main)
    assert begun == [1]


# -- handlers of failures ------------------------------------------------------------------------


@pytest.mark.anyio
async def test_handler_is_told_everything_of_the_failure():
    """The event names the step, its input, every exception and the number of attempts."""
    errors = [Mine(1), Mine(2)]
    seen = []

    class Recovers(Workflow):
        @step(retry=Retry(stop=2))
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            raise errors[ctx.step.attempt - 1]

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            seen.append(ev)
            return StopEvent(result="recovered")

    assert await Recovers().run(n=1) == "recovered"

    (ev,) = seen
    assert ev.step_name == "only"
    assert ev.input_event.n == 1
    assert ev.exception is errors[1]
    assert ev.exceptions == tuple(errors)
    assert ev.attempts == 2
    assert ev.elapsed_seconds >= 0


@on_each_backend
def test_handler_is_told_how_long_it_took(backend):
    """Seconds count from the beginning of the first attempt, its delays included."""

    class Slow(Workflow):
        @step(retry=Retry(stop=2, wait=10))
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1)
            raise Mine

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result=ev.elapsed_seconds)

    async def main():
        assert await Slow().run() == 12

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_named_handler_comes_before_the_general_one():
    """``for_steps`` names whose failures a handler gets; the other handler gets the rest."""

    class Two(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            raise Mine("begin")

        @step
        async def work(self, ev: Item) -> Done:
            raise Mine("work")

        @step
        async def end(self, ev: Done) -> StopEvent:
            return StopEvent(result=ev.number)

        @catch_error(for_steps=["work"])
        async def named(self, ev: StepFailedEvent) -> Done:
            assert (ev.step_name, str(ev.exception)) == ("work", "work")
            return Done(number=ev.input_event.number + 1)

        @catch_error
        async def general(self, ev: StepFailedEvent) -> Item:
            assert (ev.step_name, str(ev.exception)) == ("begin", "begin")
            return Item(number=10)

    assert await Two().run() == 11


@pytest.mark.anyio
@pytest.mark.parametrize("most", [1, 2, 5])
async def test_failure_after_the_last_recovery_is_raised_as_it_is(most):
    """A handler recovers what came from one event so often; the next exception fails the run."""
    errors = []

    class Loop(Workflow):
        @step
        async def begin(self, ev: StartEvent | Item) -> StopEvent:
            errors.append(Mine(len(errors)))
            raise errors[-1]

        @catch_error(max_recoveries=most)
        async def handle(self, ev: StepFailedEvent) -> Item:
            return Item(number=1)

    with pytest.raises(Mine) as caught:
        await Loop().run()

    assert len(errors) == most + 1
    assert caught.value is errors[-1]


@pytest.mark.anyio
async def test_recoveries_count_along_the_way_an_event_took():
    """Steps between two failures, sent events and fan-outs do not give a new budget."""
    failures = []

    class Long(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(number=0)

        @step
        async def middle(self, ctx: Context, ev: Item) -> Left | None:
            ctx.send_event(Left(number=1))

        @step
        async def wide(self, ev: Left) -> list[Right]:
            return [Right(number=1)]

        @step
        async def fails(self, ev: Right) -> Note:
            failures.append(Mine(len(failures)))
            raise failures[-1]

        @step
        async def join(self, evs: list[Note]) -> StopEvent:
            return StopEvent()

        @catch_error(max_recoveries=2)
        async def handle(self, ev: StepFailedEvent) -> Item:
            return Item(number=2)

    with pytest.raises(Mine) as caught:
        await Long().run()

    assert len(failures) == 3
    assert caught.value is failures[2]


@pytest.mark.anyio
async def test_branches_have_budgets_of_their_own():
    """Each item of a fan-out may be recovered; what handlers return goes to the join."""

    class Fan(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(10)]

        @step(num_workers=10)
        async def work(self, ev: Item) -> Done:
            await anyio.lowlevel.checkpoint()
            if ev.number % 2:
                raise Mine
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> Done | None:
            return Done(number=100 + ev.input_event.number) if ev.input_event.number > 1 else None

    # The one that was recovered by nothing counts as ended.
    assert await Fan().run() == [0, 2, 4, 6, 8, 103, 105, 107, 109]


@pytest.mark.anyio
async def test_handlers_have_budgets_of_their_own():
    """What one handler has recovered does not count for another."""

    class Two(Workflow):
        failed: int = 0

        @step
        async def begin(self, ev: StartEvent) -> Item:
            raise Mine("begin")

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise Mine("work")

        @catch_error(for_steps=["begin"])
        async def first(self, ev: StepFailedEvent) -> Item:
            return Item(number=1)

        @catch_error(for_steps=["work"])
        async def second(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="both")

    assert await Two().run() == "both"


@pytest.mark.anyio
async def test_failure_of_a_handler_fails_the_run():
    """A handler gets no failures of handlers, its own included."""
    error = Mine("handler")

    class Bad(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise Mine("step")

        @catch_error(max_recoveries=5)
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            raise error from ev.exception

    with pytest.raises(Mine) as caught:
        await Bad().run()

    assert caught.value is error
    assert str(error.__cause__) == "step"
    assert "in the step Bad.handle, handling StepFailedEvent(" in error.__notes__[0]


@on_each_backend
def test_step_timeout_goes_to_the_handler(backend):
    """A step that took too long has failed; both kinds of its timeouts are recovered."""

    class Slow(Workflow):
        @step(timeout=5)
        async def begin(self, ev: StartEvent) -> Item:
            await anyio.sleep_forever()
            raise AssertionError

        @step(idle_timeout=5)
        async def work(self, ev: Item) -> StopEvent:
            await anyio.sleep_forever()
            raise AssertionError

        @catch_error(for_steps=["begin"])
        async def first(self, ev: StepFailedEvent) -> Item:
            assert type(ev.exception) is StepTimeoutError
            return Item(number=1)

        @catch_error
        async def second(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result=type(ev.exception))

    async def main():
        assert await Slow().run() is StepTimeoutError

    run_virtually(backend, main)


@on_each_backend
def test_end_of_the_run_does_not_go_to_the_handler(backend):
    """The run's timeout and its cancellation are no failures of a step."""
    handled = []

    class Hangs(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep_forever()
            finally:
                handled.append("unwound")
            raise AssertionError

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            handled.append(ev)
            return StopEvent()

    async def main():
        with nothing_left():
            with pytest.raises(WorkflowTimeoutError):
                await Hangs(timeout=5).run()
            async with Hangs().run() as handler:
                await anyio.sleep(1)
                await handler.cancel()
                with pytest.raises(WorkflowCancelledError):
                    await handler
            with anyio.move_on_after(1):
                await Hangs().run()

    run_virtually(backend, main)
    assert handled == ["unwound"] * 3


@pytest.mark.anyio
async def test_failure_in_a_branch_is_recovered_before_anybody_hears_of_it():
    """Who waits for a branch waits for its recovery as well, and is told of no failure."""

    class Sender(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            branch = ctx.send_event(Item(number=1))
            await branch.wait()
            return StopEvent(result=self.done)

        @step
        async def work(self, ev: Item) -> Done:
            raise Mine

        @step
        async def end(self, ev: Done) -> None:
            await anyio.lowlevel.checkpoint()
            self.done = ev.number

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> Done:
            return Done(number=5)

    assert await Sender().run() == 5


@pytest.mark.anyio
async def test_step_of_a_cancelled_branch_is_not_recovered():
    """A failure of the clean-up of a cancelled branch is a failure of the run."""
    error = Mine()

    class Sender(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            branch = ctx.send_event(Item(number=1))
            await anyio.wait_all_tasks_blocked()
            branch.cancel()
            await anyio.sleep_forever()
            raise AssertionError

        @step(retry=Retry())
        async def work(self, ev: Item) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise error

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="recovered")

    with pytest.raises(Mine) as caught:
        await Sender().run()

    assert caught.value is error


@pytest.mark.slow_for("asyncio")
@on_each_backend
@pytest.mark.parametrize("held_for", [0, 1])
def test_loop_of_recoveries_keeps_nothing(backend, held_for):
    """However often a handler has recovered, what the run keeps of it stays the same.

    Also where a step still holds the branch that it sent while that continues.
    """
    counts = []

    class Loop(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent | Item) -> StopEvent | Item | None:
            number = ev.get("number", 0)
            if number % 1000 == 0:
                gc.collect()
                counts.append(sum(isinstance(found, BranchNode) for found in gc.get_objects()))
            if number == 3000:
                return StopEvent(result=number)
            if number % 2:
                branch = ctx.send_event(Item(number=number + 1))
                await anyio.sleep(held_for)
                assert not branch.is_done
                return None
            await anyio.sleep(2)
            raise Mine

        @catch_error(max_recoveries=10_000)
        async def handle(self, ev: StepFailedEvent) -> Item:
            return Item(number=ev.input_event.get("number", 0) + 1)

    async def main():
        assert await Loop().run() == 3000

    run_virtually(backend, main)
    assert len(counts) == 4
    assert max(counts) <= counts[0] + 8


def faults_of(make):
    with pytest.raises(WorkflowValidationError) as caught:
        make()
    return str(caught.value)


class Plain(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


def test_handlers_that_overlap_are_refused():
    """Two general handlers, or two for one step, are a fault of the graph."""

    class Both(Plain):
        @catch_error
        async def one(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

        @catch_error
        async def two(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    class Twice(Plain):
        @catch_error(for_steps=["begin"])
        async def one(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["begin"])
        async def two(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    assert "two and one both catch the failures of all steps; expected `for_steps" in faults_of(
        Both
    )
    assert (
        "two and one both catch the failures of begin; expected its name in only one"
        in faults_of(Twice)
    )


def test_handler_of_what_is_no_step_is_refused():
    """``for_steps`` names steps of the workflow, and no handler."""

    class Unknown(Plain):
        @catch_error(for_steps=["start"])
        async def one(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    class Handler(Plain):
        @catch_error(for_steps=["begin"])
        async def one(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["one"])
        async def two(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    assert (
        "catches the failures of 'start', but there is no such step; expected one or more of begin"
        in (faults_of(Unknown))
    )
    assert "two catches the failures of one, which is a handler itself" in faults_of(Handler)


def test_handler_takes_a_failure_and_a_step_does_not():
    """Only what is marked ``@catch_error`` takes StepFailedEvent, and it must."""

    class Deaf(Plain):
        @catch_error
        async def one(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    class Step(Plain):
        @step
        async def one(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    class Many(Plain):
        @catch_error
        async def one(self, evs: list[StepFailedEvent]) -> StopEvent:
            return StopEvent()

    assert "one handles failures but takes none; expected a parameter" in faults_of(Deaf)
    assert "expected `@catch_error` instead of `@step`" in faults_of(Step)
    assert "one handles failures but takes none; expected a parameter" in faults_of(Many)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"for_steps": "begin"}, "for_steps is 'begin'; expected a list of names: ['begin']"),
        ({"max_recoveries": 0}, "max_recoveries is 0; expected an int of at least 1"),
        ({"max_recoveries": True}, "max_recoveries is True; expected an int of at least 1"),
        ({"max_recoveries": 1.5}, "max_recoveries is 1.5; expected an int of at least 1"),
    ],
)
def test_options_of_a_handler_are_checked(options, message):
    """A bad option is refused where it is written, and the message shows a good one."""
    assert faults_of(lambda: catch_error(**options)) == message


@pytest.mark.anyio
async def test_failed_run_is_collected_with_its_exception():
    """A retried failure that was looked at leaves no cycle that keeps the workflow."""

    class Here(Exception):
        pass

    async def function(ctx):
        raise Here

    gc.collect()
    with pytest.raises(Here):
        await retrying(function, Retry(stop=3)).run()
    await anyio.lowlevel.checkpoint()
    gc.collect()

    assert not [found for found in gc.get_objects() if type(found) is Here]
