"""``ctx.sleep``: timers of steps that another attempt, or a resumed run, continues."""

from __future__ import annotations

import math

import anyio
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    Observer,
    Retry,
    SnapshotError,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    step,
)
from sluicegate.records import WaitEnded, WaitStarted
from tests.helpers import (
    BACKENDS,
    Single,
    cancelled_class,
    nothing_left,
    on_each_backend,
    run_virtually,
    through_json,
    timers_left,
    wait_until_idle,
)


class Retried(Single):
    """The same with three attempts, two seconds apart."""

    @step(retry=Retry(stop=3, wait=2))
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.function(ctx))


class Clock:
    """Notes when something was, in seconds since it was made, on one event loop."""

    def __init__(self):
        self.began = anyio.current_time()
        self.times = []

    def note(self):
        self.times.append(round(anyio.current_time() - self.began, 3))


async def snapshot_at(handler, seconds):
    """Return a snapshot of a run after so many seconds, and cancel it."""
    async with handler:
        await anyio.sleep(seconds)
        snapshot = through_json(handler.snapshot())
        handler.cancel()
    return snapshot


def sleeps_of(snapshot):
    (delivery,) = snapshot["run"]["steps"]["only"]["deliveries"]
    return [tuple(each) for each in delivery.get("sleeps", [])]


# -- continued ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", BACKENDS)
@on_each_backend
def test_a_resumed_run_sleeps_on(backend, other):
    """D6: with the seconds that were left; a sleep that was over ends at once."""

    async def function(ctx):
        clock = Clock()
        await ctx.sleep(10)
        clock.note()
        await ctx.sleep(20)
        clock.note()
        await ctx.sleep(10)
        clock.note()
        return clock.times

    async def begin():
        return await snapshot_at(Single(function).run(), 25)

    snapshot = run_virtually(backend, begin)

    assert sleeps_of(snapshot) == [(10, 1, []), (20, 0, [pytest.approx(5, abs=0.01)])]

    async def go_on():
        with nothing_left():
            return await Single(function).resume(snapshot)

    assert run_virtually(other, go_on) == pytest.approx([0, 5, 15], abs=0.01)


@on_each_backend
def test_equal_sleeps_of_tasks_are_told_apart_by_their_order(backend):
    """Each continues one of them, the earliest first, in whatever order the tasks start."""
    orders = [["a", "b", "c"], ["c", "b", "a"]]
    delays = {"a": 0, "b": 3, "c": 6}
    over = []

    async def function(ctx):
        order = orders.pop(0)
        began = anyio.current_time()

        async def one(name):
            if orders:  # in the first life they start one after the other
                await anyio.sleep(delays[name])
            await ctx.sleep(10)
            over.append(round(anyio.current_time() - began))

        async with anyio.create_task_group() as group:
            for name in order:
                group.start_soon(one, name)

    async def main():
        snapshot = await snapshot_at(Single(function).run(), 8)

        assert [round(left) for left in sleeps_of(snapshot)[0][2]] == [2, 5, 8]

        await Single(function).resume(snapshot)

    run_virtually(backend, main)

    assert sorted(over) == [2, 5, 8]


@on_each_backend
def test_a_retry_sleeps_on(backend):
    """D6: time goes on between two attempts, and a sleep that is due ends at once."""

    async def function(ctx):
        clock = clocks[0]
        await ctx.sleep(10)
        clock.note()
        if ctx.step.attempt == 1:
            raise OSError("once")
        if ctx.step.attempt == 2:
            async with anyio.create_task_group() as group:
                group.start_soon(ctx.sleep, 20)
                await anyio.sleep(5)
                raise OSError("twice")
        await ctx.sleep(20)
        clock.note()
        return clock.times

    clocks = []

    async def main():
        clocks.append(Clock())
        return await Retried(function).run()

    # 10; 12 after the delay; the sleep of 20 began at 12, was cut short at 17, and continued at 19
    assert run_virtually(backend, main) == pytest.approx([10, 12, 19, 32], abs=0.01)


@on_each_backend
def test_the_timeout_of_a_step_interrupts_a_sleep_which_the_next_attempt_continues(backend):
    """Three attempts of 4 seconds, with 2 between them, are enough for a sleep of 14."""

    class Short(Workflow):
        @step(timeout=4, retry=Retry(stop=4, wait=2, when=StepTimeoutError))
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.sleep(14)
            return StopEvent(result=ctx.step.attempt)

    async def main():
        began = anyio.current_time()
        return await Short().run(), anyio.current_time() - began

    assert run_virtually(backend, main) == (3, pytest.approx(14, abs=0.01))


@on_each_backend
def test_what_a_step_does_not_ask_for_stays(backend):
    """Sleeps of two lives and a failed attempt are all found by a later one."""
    lives = []

    async def function(ctx):
        lives.append(len(lives))
        if len(lives) != 2:
            await ctx.sleep(10)
        if len(lives) == 2:
            await anyio.sleep(1)
            raise OSError("another attempt")
        return len(lives)

    async def main():
        snapshot = await snapshot_at(Retried(function).run(), 4)
        began = anyio.current_time()
        return await Retried(function).resume(snapshot), anyio.current_time() - began

    assert run_virtually(backend, main) == (3, pytest.approx(6, abs=0.01))


@pytest.mark.parametrize("ending", ["cancelled", "outside", "timed out", "failed", "drained"])
@on_each_backend
def test_the_snapshot_after_the_end_of_a_run_has_what_is_left(backend, ending):
    """However the run has ended, a resumed one sleeps on."""

    class Two(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Part]:
            return [Part(kind="sleeps"), Part(kind="fails")]

        @step
        async def work(self, ctx: Context, ev: Part) -> Done:
            if ev.kind == "sleeps":
                await ctx.sleep(10)
            elif failing:
                await anyio.sleep(6)
                raise ValueError("failed")
            return Done()

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    failing = ending == "failed"

    async def main():
        nonlocal failing
        handler = Two(timeout=6 if ending == "timed out" else None).run()
        with anyio.move_on_after(6 if ending == "outside" else math.inf):
            try:
                async with handler:
                    if ending in ("cancelled", "drained"):
                        await anyio.sleep(6)
                        handler.cancel(after="steps" if ending == "drained" else "now")
                        await wait_until_idle()

                        assert handler.is_done()
                    await anyio.sleep(60)
            except (ValueError, WorkflowTimeoutError):
                pass
        failing = False
        snapshot = through_json(handler.snapshot())
        began = anyio.current_time()
        return await Two().resume(snapshot), anyio.current_time() - began

    assert run_virtually(backend, main) == (2, pytest.approx(4, abs=0.01))


class Part(Event):
    kind: str


class Done(Event):
    pass


# -- cancelled --------------------------------------------------------------------------------------------


@on_each_backend
def test_a_sleep_that_the_step_cancels_itself_is_forgotten_when_it_goes_on(backend):
    """A reminder that came too late is not sent at once in the next attempt."""
    reminders = []

    async def function(ctx):
        async with anyio.create_task_group() as group:

            async def remind():
                await ctx.sleep(10)
                reminders.append(ctx.step.attempt)

            group.start_soon(remind)
            await ctx.sleep(5)  # what it waits for comes before
            group.cancel_scope.cancel()
        await ctx.sleep(7)
        if ctx.step.attempt == 1:
            raise OSError("after the reminder would have been due")
        return ctx.step.attempt

    async def main():
        return await Retried(function).run()

    assert run_virtually(backend, main) == 2
    assert reminders == []


@pytest.mark.parametrize("at", [0, 0.5, 2])
@on_each_backend
def test_a_cancelled_sleep_leaves_nothing_behind(backend, at):
    """No timer, no place that is missing, no step that counts as asleep."""

    async def function(ctx):
        with anyio.move_on_after(at) as scope:
            await ctx.sleep(1)
        run = ctx._run.run

        assert not run.sleeping
        assert run.machine.queues[0].running == 1
        return scope.cancelled_caught, cancelled_class().__name__

    async def main():
        before = timers_left()
        with nothing_left():
            caught, _ = await Single(function).run()
        assert timers_left() == before
        return caught

    assert run_virtually(backend, main) is (at < 1)


@pytest.mark.anyio
async def test_a_sleep_of_no_time_is_a_checkpoint():
    """It lets others run, and is cancelled like any other."""
    seen = []

    async def function(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(wait_until_idle, 1)
            group.start_soon(anyio.lowlevel.checkpoint)
            await ctx.sleep(0)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ctx.sleep(0)
            seen.append("not cancelled")
        return scope.cancelled_caught

    assert await Single(function).run()
    assert seen == []


# -- places, stalls, idle, draining -----------------------------------------------------------------------


class Sleepers(Workflow):
    """Four parts of one worker, each of which sleeps for 10 seconds."""

    def __init__(self, **options):
        super().__init__(**options)
        self.most = self.awake = 0

    @step
    async def begin(self, ev: StartEvent) -> list[Part]:
        return [Part(kind=str(n)) for n in range(4)]

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Part) -> Done:
        await ctx.sleep(10)
        self.awake += 1
        self.most = max(self.most, self.awake)
        await anyio.sleep(1)
        self.awake -= 1
        return Done()

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


class Keepers(Sleepers):
    """They keep their places."""

    @step(num_workers=1, release_while_waiting=False)
    async def work(self, ctx: Context, ev: Part) -> Done:
        await ctx.sleep(10)
        return Done()


@pytest.mark.parametrize(("kind", "seconds"), [(Sleepers, 14), (Keepers, 40)])
@on_each_backend
def test_a_sleeping_step_gives_up_its_place(backend, kind, seconds):
    """As one does that waits for an answer: others sleep meanwhile, but one at a time is awake."""
    workflow = kind()

    async def main():
        began = anyio.current_time()
        return await workflow.run(), anyio.current_time() - began

    assert run_virtually(backend, main) == (4, pytest.approx(seconds, abs=0.01))
    assert workflow.most == (kind is Sleepers)


@on_each_backend
def test_a_sleeping_step_gives_up_its_limiter(backend):
    """And has it again afterwards."""
    limiter = anyio.CapacityLimiter(1)
    held = []

    class Limited(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Part]:
            return [Part(kind="") for _ in range(3)]

        @step(limiter=limiter)
        async def work(self, ctx: Context, ev: Part) -> Done:
            await ctx.sleep(10)
            held.append(limiter.borrowed_tokens)
            await anyio.sleep(1)
            return Done()

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    async def main():
        began = anyio.current_time()
        await Limited().run()
        return anyio.current_time() - began

    assert run_virtually(backend, main) == pytest.approx(13, abs=0.01)
    assert held == [1, 1, 1]


class Blocks(Workflow):
    """One part sleeps, one waits for an event that only a third step could send."""

    @step
    async def begin(self, ev: StartEvent) -> list[Part]:
        return [Part(kind="sleeps"), Part(kind="waits")]

    @step
    async def work(self, ctx: Context, ev: Part) -> Done | Note | None:
        if ev.kind == "waits":
            await ctx.wait_for_event(Note)
            return Done()
        await ctx.sleep(10)
        return None if self.stalls else Note()

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))

    def __init__(self, *, stalls):
        super().__init__(skip_graph_checks=())
        self.stalls = stalls


class Note(Event):
    pass


@on_each_backend
def test_a_run_that_sleeps_is_not_stalled(backend):
    """The step may still do what others wait for; once it has not, the stall is found."""

    async def main():
        assert await Blocks(stalls=False).run() == 1
        with pytest.raises(WorkflowStalledError):
            await Blocks(stalls=True).run()

    run_virtually(backend, main)


@on_each_backend
def test_a_run_that_sleeps_is_not_idle(backend):
    """It waits for no event from outside, so its timeout counts, and its status says running."""

    class Both(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Part]:
            return [Part(kind="sleeps"), Part(kind="asks")]

        @step
        async def work(self, ctx: Context, ev: Part) -> Done:
            if ev.kind == "sleeps":
                await ctx.sleep(10)
            else:
                await ctx.wait_for_event(HumanResponseEvent)
            return Done()

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    async def main():
        statuses = []
        async with Both(timeout=15, timeout_excludes_waiting=True).run() as handler:
            await anyio.sleep(5)
            statuses.append(handler.status)
            await anyio.sleep(10)
            statuses.append(handler.status)
            await anyio.sleep(100)
            handler.send_event(HumanResponseEvent())
            await handler
        return statuses, handler.snapshot()["elapsed"]

    assert run_virtually(backend, main) == (["running", "idle"], pytest.approx(10, abs=0.01))


@pytest.mark.parametrize("depth", [0, 1, 2])
@on_each_backend
def test_a_graceful_end_does_not_wait_for_a_sleep(backend, depth):
    """``cancel(after="steps")`` of a run, and of the parents of one, that sleeps for a week."""
    week = 7 * 24 * 3600

    async def sleeps(ctx):
        await anyio.sleep(2)  # a step at work is waited for
        await ctx.sleep(week)
        return "slept"

    workflow = Single(sleeps)
    for _ in range(depth):
        workflow = Single(lambda ctx, child=workflow: ctx.run_child(child))

    async def main():
        async with workflow.run() as handler:
            await anyio.sleep(1)
            began = anyio.current_time()
            await handler.cancel(after="steps")

            assert anyio.current_time() - began == pytest.approx(1, abs=0.01)
        snapshot = handler.snapshot()
        began = anyio.current_time()

        assert await workflow.resume(snapshot) == "slept"

        return anyio.current_time() - began

    # the time that is left runs on while the step gets to its sleep again
    assert run_virtually(backend, main) == pytest.approx(week, abs=0.01)


# -- in threads, as records, and refusals -----------------------------------------------------------------


class InThread(Workflow):
    @step
    def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for _ in range(3):
            ctx.from_thread.run(ctx.sleep, 0.001)
        return StopEvent(result="slept")


@pytest.mark.anyio
async def test_a_def_step_sleeps_through_from_thread():
    """Its snapshot has the sleeps of its thread."""
    assert await InThread().run() == "slept"


@on_each_backend
def test_a_sleep_is_recorded_as_a_wait(backend):
    """Observers see what a step waits for, and until when."""
    told = []

    class Listener(Observer):
        def listen(self, run):
            return told.append

    async def function(ctx):
        await ctx.sleep(10)
        with anyio.move_on_after(1):
            await ctx.sleep(20)

    async def main():
        began = anyio.current_time()
        await Single(function, observers=[Listener()]).run()
        started = [record for record in told if isinstance(record, WaitStarted)]
        ended = [record for record in told if isinstance(record, WaitEnded)]

        assert [(wait.kind, wait.subject) for wait in started] == [("sleep", "")] * 2
        assert [wait.until - began for wait in started] == pytest.approx([10, 30], abs=0.01)
        assert [wait.outcome for wait in ended] == ["done", "cancelled"]

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_what_is_no_length_of_time_is_refused():
    """Each message says what is expected."""
    messages = []

    async def function(ctx):
        for seconds in (-1, math.inf, math.nan, 1e13, "3", True, None):
            with pytest.raises((TypeError, ValueError)) as caught:
                await ctx.sleep(seconds)
            messages.append(str(caught.value))

    handler = Single(function).run()
    await handler
    with pytest.raises(WorkflowRuntimeError, match="sleep was called outside of a step"):
        await handler.ctx.sleep(1)

    assert messages == [
        "sleep was given -1 seconds; expected 0 to 1e+12",
        "sleep was given inf seconds; expected 0 to 1e+12",
        "sleep was given nan seconds; expected 0 to 1e+12",
        "sleep was given 10000000000000.0 seconds; expected 0 to 1e+12",
        "sleep was given '3'; expected seconds: `await ctx.sleep(60)`",
        "sleep was given True; expected seconds: `await ctx.sleep(60)`",
        "sleep was given None; expected seconds: `await ctx.sleep(60)`",
    ]


@pytest.mark.parametrize("sleeps", [[[10, -1, []]], [[10, 0, [-1.0]]], [[10]], {"10": 1}])
@pytest.mark.anyio
async def test_damaged_sleeps_are_refused(sleeps):
    """The message names the place in the snapshot."""
    workflow = Single(lambda ctx: ctx.sleep(3600))
    async with workflow.run() as handler:
        await wait_until_idle()
        snapshot = handler.snapshot()
        handler.cancel()
    snapshot["run"]["steps"]["only"]["deliveries"][0]["sleeps"] = sleeps

    with pytest.raises(SnapshotError, match=r"deliveries\[0\]\.sleeps"):
        workflow.resume(snapshot)
