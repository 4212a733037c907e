"""Branches and joins in real runs: what is cancelled, what is waited for, what is left.

Nothing here depends on time: what has to wait waits for an event of the test, or for ever.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from typing import Annotated, Any

import anyio
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Take,
    Workflow,
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    catch_error,
    step,
)
from sluicegate._context import Branch
from sluicegate._engine.lineage import BranchNode, CancelRecord
from tests.helpers import (
    Catch,
    Done,
    Item,
    Mine,
    Note,
    cancelled_class,
    is_trio,
    live_tasks,
    nothing_left,
    on_each_backend,
    run_virtually,
    wait_until_idle,
)


anywhere = pytest.mark.anyio

#: Seconds, where it is never to be over.
NEVER = 1000.0


class Task(Event):
    n: int = 0


class Part(Event):
    n: int = 0


class Answer(Event):
    n: int = 0


class Other(Event):
    n: int = 0


async def result_of(workflow: Workflow[Any], **fields: Any) -> Any:
    """Run a workflow, which leaves nothing behind and does not hang."""
    with nothing_left(), anyio.fail_after(5):
        return await workflow.run(**fields)


async def failure_of(workflow: Workflow[Any], **fields: Any) -> BaseException:
    """Return what a run raises."""
    with Catch() as caught:
        await result_of(workflow, **fields)
    assert caught.error is not None
    return caught.error


async def clean_up(log: list[Any], n: int) -> None:
    """Take a while, shielded."""
    with anyio.CancelScope(shield=True):
        await wait_until_idle()
        log.append(n)


# -- the first few ----------------------------------------------------------------------------


class Race(Workflow):
    """``count`` tasks, of which those below ``quick`` answer and the others wait for ever."""

    def __init__(self, count: int, quick: int, **options: Any) -> None:
        super().__init__(**options)
        self.count = count
        self.quick = quick
        self.started: list[int] = []
        self.cleaned: list[int] = []
        self.ended: list[list[int]] = []

    @step
    async def begin(self, ev: StartEvent) -> list[Task]:
        return [Task(n=n) for n in range(self.count)]

    @step(num_workers=100)
    async def work(self, ctx: Context, ev: Task) -> Answer | None:
        self.started.append(ev.n)
        if ev.n < self.quick:
            return Answer(n=ev.n)
        return await self.lose(ctx, ev)

    async def lose(self, ctx: Context, ev: Task) -> Answer | None:
        try:
            await anyio.sleep_forever()
        finally:
            await clean_up(self.cleaned, ev.n)
        return None

    @step
    async def end(self, evs: Annotated[list[Answer], Take(2)]) -> StopEvent:
        self.ended.append([ev.n for ev in evs])
        return StopEvent(result=sorted(ev.n for ev in evs))


@anywhere
@pytest.mark.parametrize(("count", "quick"), [(2, 2), (3, 2), (30, 2)])
async def test_join_runs_with_the_first_few_and_the_losers_unwind(count, quick):
    """With Take(2) the join runs once, and each loser's `finally` runs to its end, shielded too."""
    race = Race(count, quick)

    assert await result_of(race) == [0, 1]
    assert len(race.ended) == 1
    # A loser that had not begun yet never does.
    assert sorted(race.cleaned) == sorted(n for n in race.started if n >= quick)


@anywhere
@pytest.mark.parametrize("count", [0, 1])
async def test_join_of_the_first_few_runs_with_fewer_when_no_more_come(count):
    """Where fewer come than Take says, the join runs with these; of an empty list with none."""
    assert await result_of(Race(count, count)) == list(range(count))


@anywhere
async def test_losers_that_had_no_winner_to_lose_to_end_by_themselves():
    """A task that ends without an event counts as ended, and the join runs with what there is."""

    class Ending(Race):
        async def lose(self, ctx, ev):
            await wait_until_idle(1)

    assert await result_of(Ending(5, 1)) == [0]


@anywhere
async def test_more_answers_than_are_taken_at_once_make_one_join():
    """Where all answer at once, the join gets the first two and runs once."""
    race = Race(20, 20)

    assert len(await result_of(race)) == 2
    assert len(race.ended) == 1


@anywhere
async def test_join_continues_while_the_losers_clean_up():
    """The winners are not held up by the losers; the run ends when these have unwound."""

    class Slow(Race):
        async def lose(self, ctx, ev):
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await self.joined.wait()
                    self.cleaned.append(ev.n)

        @step
        async def end(self, evs: Annotated[list[Answer], Take(2)]) -> StopEvent:
            assert not self.cleaned
            self.joined.set()
            return StopEvent()

    race = Slow(5, 2)
    race.joined = anyio.Event()
    await result_of(race)

    assert set(race.cleaned) == set(race.started) - {0, 1}


@anywhere
async def test_loser_that_fails_in_its_clean_up_fails_the_run():
    """P9: nothing is silent, also not the failure of who has lost."""
    error = Mine()

    class Failing(Race):
        async def lose(self, ctx, ev):
            self.reached.set()
            try:
                await anyio.sleep_forever()
            finally:
                raise error

        @step(num_workers=100)
        async def work(self, ctx: Context, ev: Task) -> Answer | None:
            if ev.n == 1:
                await self.reached.wait()
            return await super().work(ctx, ev)

    race = Failing(3, 2)
    race.reached = anyio.Event()

    assert await failure_of(race) is error


@anywhere
async def test_loser_that_swallows_its_cancellation_comes_too_late():
    """What a loser returns, sends or collects afterwards is dropped; what it publishes is out."""

    class Stubborn(Race):
        async def lose(self, ctx, ev):
            try:
                await anyio.sleep_forever()
            except cancelled_class():
                branch = ctx.send_event(Answer(n=ev.n))
                assert branch.is_done
                assert branch.is_cancelled
                ctx.write_event_to_stream(Other(n=ev.n))
                return Answer(n=ev.n)

    race = Stubborn(4, 2)
    with nothing_left(), anyio.fail_after(5):
        async with race.run() as handler:
            seen = [event.n async for event in handler.stream_events() if type(event) is Other]
            assert await handler == [0, 1]

    assert len(race.ended) == 1
    assert sorted(seen) == sorted(n for n in race.started if n > 1)


@anywhere
async def test_losers_that_wait_for_a_worker_never_start():
    """P14: with one worker the winner's event ends the race before a second one begins."""

    class Narrow(Workflow):
        started: list[int]

        @step
        async def begin(self, ev: StartEvent) -> list[Task]:
            return [Task(n=n) for n in range(10)]

        @step(num_workers=1)
        async def work(self, ev: Task) -> Answer:
            self.started.append(ev.n)
            await wait_until_idle(2)
            return Answer(n=ev.n)

        @step
        async def end(self, evs: Annotated[list[Answer], Take(1)]) -> StopEvent:
            await wait_until_idle()
            return StopEvent(result=evs[0].n)

    narrow = Narrow()
    narrow.started = []

    assert await result_of(narrow) == 0
    assert narrow.started == [0]


@anywhere
async def test_loser_that_waits_for_its_next_attempt_is_not_waited_for():
    """A retry that is far off ends with the race."""

    class Retrying(Workflow):
        failed = False

        @step
        async def begin(self, ev: StartEvent) -> list[Task | Other]:
            return [Task(), Other()]

        @step(retry=Retry(wait=NEVER))
        async def fails(self, ev: Task) -> Answer:
            self.failed = True
            raise OSError

        @step
        async def wins(self, ev: Other) -> Answer:
            while not self.failed:
                await anyio.lowlevel.checkpoint()
            await wait_until_idle()
            return Answer()

        @step
        async def join(self, evs: Annotated[list[Answer], Take(1)]) -> Part:
            await wait_until_idle()
            return Part()

        @step
        async def end(self, ctx: Context, ev: Part) -> StopEvent:
            return StopEvent(result=len(live_tasks()))

    before = len(live_tasks())

    assert await result_of(Retrying()) <= before + 1


@anywhere
async def test_race_inside_a_loop_is_run_anew_each_time():
    """A loop through a race leaves nothing of one round in the next."""

    class Rounds(Workflow):
        rounds: list[int]

        @step
        async def begin(self, ev: StartEvent | Other) -> list[Task]:
            return [Task(n=n) for n in range(5)]

        @step(num_workers=5)
        async def work(self, ev: Task) -> Answer:
            if ev.n != len(self.rounds):
                await anyio.sleep_forever()
            return Answer(n=ev.n)

        @step
        async def join(self, evs: Annotated[list[Answer], Take(1)]) -> Other | StopEvent:
            self.rounds.append(evs[0].n)
            return StopEvent(result=self.rounds) if len(self.rounds) == 4 else Other()

    rounds = Rounds()
    rounds.rounds = []

    assert await result_of(rounds) == [0, 1, 2, 3]


class Outer(Event):
    n: int = 0


@anywhere
async def test_race_inside_a_fan_out_cancels_its_own_losers_only():
    """Each race ends for itself, and the join around them gets a winner of each."""

    class Races(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Outer]:
            return [Outer(n=n) for n in range(6)]

        @step
        async def race(self, ev: Outer) -> list[Task]:
            return [Task(n=10 * ev.n + k) for k in range(3)]

        @step(num_workers=100)
        async def work(self, ev: Task) -> Answer:
            if ev.n % 10 != 1:
                await anyio.sleep_forever()
            await wait_until_idle(ev.n // 10)
            return Answer(n=ev.n)

        @step
        async def first(self, evs: Annotated[list[Answer], Take(1)]) -> Part:
            return Part(n=evs[0].n)

        @step
        async def end(self, evs: list[Part]) -> StopEvent:
            return StopEvent(result=sorted(ev.n for ev in evs))

    assert await result_of(Races()) == [1, 11, 21, 31, 41, 51]


class Nested(Workflow):
    """Two contenders that each fan out once more; the join inside of the loser never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: list[int] = []

    @step
    async def begin(self, ev: StartEvent) -> list[Outer]:
        return [Outer(n=0), Outer(n=1)]

    @step
    async def split(self, ev: Outer) -> list[Task]:
        return [Task(n=ev.n) for _ in range(3)]

    @step(num_workers=100)
    async def work(self, ev: Task) -> Part | None:
        if ev.n == 0:
            return Part(n=0)
        await anyio.sleep_forever()
        return None

    @step
    async def gather(self, evs: list[Part]) -> Answer:
        self.inner.append(len(evs))
        return Answer(n=evs[0].n)

    @step
    async def end(self, evs: Annotated[list[Answer], Take(1)]) -> Other:
        await wait_until_idle()
        return Other(n=evs[0].n)

    @step
    async def last(self, ev: Other) -> StopEvent:
        return StopEvent(result=ev.n)


@anywhere
async def test_fan_out_of_a_loser_is_dropped_with_its_join():
    """The join of what was cancelled does not run with what it has."""
    nested = Nested()

    assert await result_of(nested) == 0
    assert nested.inner == [3]


# -- branches: the workflow of the tests --------------------------------------------------------


class Lead(Workflow):
    """``lead(ctx)`` sends tasks, ``work(ctx, ev)`` does them."""

    def __init__(self, lead: Any, work: Any, **options: Any) -> None:
        super().__init__(**options)
        self.do_lead = lead
        self.do_work = work
        self.log: list[Any] = []

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
        return StopEvent(result=await self.do_lead(self, ctx))

    @step(num_workers=3)
    async def work(self, ctx: Context, ev: Task) -> Task | Answer | list[Part] | None:
        return await self.do_work(self, ctx, ev)

    @step
    async def part(self, ctx: Context, ev: Part) -> Answer | None:
        self.log.append(("part", ev.n))
        await anyio.sleep_forever()

    @step
    async def join(self, evs: list[Answer]) -> Other:
        self.log.append(("join", len(evs)))
        return Other()

    @step
    async def after(self, ctx: Context, ev: Other) -> None:
        self.log.append("after")


async def never(flow, ctx, ev):
    """Work that ends only by being cancelled, and says so."""
    flow.log.append("began")
    try:
        await anyio.sleep_forever()
    finally:
        await clean_up(flow.log, ev.n)


async def until(condition: Any) -> None:
    """Let the others go on until something holds."""
    while not condition():
        await anyio.lowlevel.checkpoint()


# -- cancelling ----------------------------------------------------------------------------------


@anywhere
async def test_branch_that_runs_is_cancelled_and_cleans_up():
    """The step is cancelled, its shielded clean-up runs to its end, and wait() waits for that."""

    async def lead(flow, ctx):
        branch = ctx.send_event(Task(n=7))
        await until(lambda: flow.log)
        branch.cancel("enough")
        assert (branch.is_done, branch.is_cancelled) == (False, True)
        await branch.wait()
        assert (branch.is_done, branch.is_cancelled) == (True, True)
        return flow.log

    assert await result_of(Lead(lead, never)) == ["began", 7]


@anywhere
async def test_branch_that_has_not_begun_never_does():
    """Cancelled in the same breath as it was sent, an event reaches no step."""

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        branch.cancel()
        assert branch.is_done
        await branch.wait()
        await wait_until_idle()
        return flow.log

    assert await result_of(Lead(lead, never)) == []


@anywhere
async def test_branch_cancelled_at_the_checkpoint_before_its_step_never_begins(monkeypatch):
    """Wherever the worker is between taking an event and running its step."""
    monkeypatch.setattr("sluicegate._engine.runner.TURN", -1.0)  # a checkpoint at every hop
    begun = []

    async def work(flow, ctx, ev):
        begun.append(flow.branch.is_cancelled)

    async def lead(flow, ctx):
        for turns in range(8):
            flow.branch = ctx.send_event(Task())
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            flow.branch.cancel()
            await flow.branch.wait()

    await result_of(Lead(lead, work))

    assert not any(begun)
    assert 0 < len(begun) < 8


@anywhere
async def test_branch_that_waits_for_a_worker_is_dropped_out_of_its_inbox():
    """What waits at a busy step is taken back, the others keep their order."""
    started = []

    async def work(flow, ctx, ev):
        started.append(ev.n)
        await flow.gate.wait()

    async def lead(flow, ctx):
        branches = [ctx.send_event(Task(n=n)) for n in range(8)]
        await until(lambda: len(started) == 3)
        for n in (3, 5, 7):
            branches[n].cancel()
            assert branches[n].is_done
        flow.gate.set()
        for branch in branches:
            await branch.wait()
        return sorted(started[3:])

    flow = Lead(lead, work)
    flow.gate = anyio.Event()

    assert await result_of(flow) == [4, 6]


@anywhere
async def test_branch_that_waits_for_an_answer_lets_others_have_it():
    """A wait that was cancelled takes no answer: the next one who waits gets it."""

    async def work(flow, ctx, ev):
        flow.log.append(ev.n)
        answer = await ctx.wait_for_event(HumanResponseEvent)
        flow.log.append((ev.n, answer.response))

    async def lead(flow, ctx):
        first, second = (ctx.send_event(Task(n=n)) for n in (1, 2))
        await until(lambda: len(flow.log) == 2)
        first.cancel()
        await first.wait()
        flow.ready.set()
        await second.wait()
        return flow.log[2:]

    flow = Lead(lead, work)
    flow.ready = anyio.Event()
    with nothing_left(), anyio.fail_after(5):
        async with flow.run() as handler:
            await flow.ready.wait()
            handler.send_event(HumanResponseEvent(response="yes"))
            assert await handler == [(2, "yes")]


class Retried(Workflow):
    """``begin`` sends a task whose step fails, and has its next attempt far off."""

    tries = 0

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
        branch = ctx.send_event(Task())
        await until(lambda: self.tries)
        if ev.get("settled"):
            await wait_until_idle()
        branch.cancel()
        await branch.wait()
        return StopEvent(result=self.tries)

    @step(retry=Retry(wait=NEVER))
    async def work(self, ev: Task) -> None:
        self.tries += 1
        raise OSError


@anywhere
@pytest.mark.parametrize("settled", [True, False])
async def test_branch_that_waits_for_its_next_attempt_ends_at_once(settled):
    """The attempt does not come, and its time is not waited for: not even if it was just set."""
    assert await result_of(Retried(), settled=settled) == 1


@anywhere
async def test_child_workflow_in_a_branch_is_cancelled_with_it():
    """A child lives no longer than the step, which lives no longer than its branch."""

    class Child(Workflow):
        log: list[str]

        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            self.log.append("began")
            try:
                await anyio.sleep_forever()
            finally:
                await clean_up(self.log, 1)

    child = Child()
    child.log = []

    async def work(flow, ctx, ev):
        await ctx.run_child(child)

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        await until(lambda: child.log)
        branch.cancel()
        await branch.wait()
        return list(child.log)

    assert await result_of(Lead(lead, work)) == ["began", 1]


@anywhere
async def test_thread_in_a_branch_is_told_and_waited_for():
    """A synchronous step that asks hears of the cancellation; its thread ends before wait() does."""

    class InThread(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
            branch = ctx.send_event(Task())
            await until(self.began.is_set)
            branch.cancel()
            await branch.wait()
            return StopEvent(result=self.ended.is_set())

        @step
        def work(self, ctx: Context, ev: Task) -> None:
            self.began.set()
            try:
                while ctx.is_running:
                    threading.Event().wait(0.001)
            finally:
                self.ended.set()

    flow = InThread()
    flow.began, flow.ended = threading.Event(), threading.Event()

    assert await result_of(flow) is True


@anywhere
async def test_synchronous_step_may_cancel_and_wait_for_what_it_sends():
    """In a thread, cancel() is called as it is, and wait() through ctx.from_thread."""

    class FromThread(Workflow):
        log: list[str]

        @step
        def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
            branches = [ctx.send_event(Task(n=n)) for n in range(2)]
            while len(self.log) < 2:
                threading.Event().wait(0.001)
            branches[0].cancel()
            ctx.from_thread.run(branches[0].wait)
            self.goes_on = True
            ctx.from_thread.run(branches[1].wait)
            return StopEvent(result=[b.is_cancelled for b in branches])

        @step
        async def work(self, ev: Task) -> None:
            self.log.append("began")
            if ev.n == 0:
                await anyio.sleep_forever()
            await until(lambda: self.goes_on)

    flow = FromThread()
    flow.log, flow.goes_on = [], False

    assert await result_of(flow) == [True, False]


@anywhere
async def test_fan_out_inside_a_branch_is_cancelled_with_its_join():
    """All that came from the event goes: what waits, what runs, and the join that lacks them."""

    async def work(flow, ctx, ev):
        return [Part(n=n) for n in range(20)]

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        await until(lambda: len(flow.log) == 4)
        branch.cancel()
        await branch.wait()
        await wait_until_idle()
        return Counter(what for what, _ in flow.log)

    assert await result_of(Lead(lead, work)) == {"part": 4}


@anywhere
async def test_branches_inside_a_branch_are_cancelled_with_it():
    """What a branch has sent belongs to it, whether someone holds it or not."""

    async def work(flow, ctx, ev):
        flow.log.append(ev.n)
        if ev.n < 2:
            kept = ctx.send_event(Task(n=ev.n + 1))
            if ev.n == 0:
                await anyio.sleep_forever()
            flow.kept = kept
            return
        await anyio.sleep_forever()

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        await until(lambda: len(flow.log) == 3)
        branch.cancel()
        await branch.wait()
        assert flow.kept.is_cancelled
        assert flow.kept.is_done
        return flow.log

    assert await result_of(Lead(lead, work)) == [0, 1, 2]


@anywhere
async def test_cancelled_branch_of_a_fan_out_counts_as_ended():
    """The join runs with what came from the others."""

    class Wide(Workflow):
        branches: dict[int, Branch]

        @step
        async def begin(self, ev: StartEvent) -> list[Outer]:
            return [Outer(n=n) for n in range(4)]

        @step
        async def send(self, ctx: Context, ev: Outer) -> Task | None:
            self.branches[ev.n] = ctx.send_event(Task(n=ev.n))

        @step(num_workers=2)
        async def work(self, ctx: Context, ev: Task) -> Answer:
            if len(self.branches) == 4:
                for n in (2, 3):
                    self.branches[n].cancel()
            await until(lambda: len(self.branches) == 4)
            return Answer(n=ev.n)

        @step
        async def join(self, evs: list[Answer]) -> StopEvent:
            return StopEvent(result=len(evs))

    wide = Wide()
    wide.branches = {}

    assert await result_of(wide) in (2, 3)  # one of those two may have been done already


@anywhere
async def test_join_starts_though_the_last_of_its_fan_out_is_cancelled_from_elsewhere():
    """Who cancels need not end, or be a step, for the join to run."""

    class Elsewhere(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> list[Outer] | Task:
            ctx.send_event(Task())  # has the only worker, and is in no fan-out
            await self.began.wait()
            return [Outer()]

        @step
        async def send(self, ctx: Context, ev: Outer) -> Task | None:
            self.branch = ctx.send_event(Task())
            self.sent.set()

        @step(num_workers=1)
        async def work(self, ev: Task) -> Answer | None:
            self.began.set()
            await anyio.sleep_forever()

        @step
        async def join(self, evs: list[Answer]) -> StopEvent:
            return StopEvent(result=evs)

    flow = Elsewhere()
    flow.began, flow.sent = anyio.Event(), anyio.Event()
    with nothing_left(), anyio.fail_after(5):
        async with flow.run() as handler:
            await flow.sent.wait()
            await wait_until_idle()
            flow.branch.cancel()
            assert await handler == []


class Released(Workflow):
    """Branches that are cancelled from outside the run before they could begin."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task | None:
        self.branches = [ctx.send_event(Task()) for _ in range(3)]
        self.sent.set()

    @step
    async def work(self, ev: Task) -> None:
        self.worked = True


@anywhere
async def test_run_of_which_all_was_cancelled_is_stalled():
    """P12: it says so at once, whoever cancelled what was left of it."""
    for _ in range(20):  # whether the work begins before it is cancelled is Trio's choice
        flow = Released()
        flow.sent = anyio.Event()
        with nothing_left(), anyio.fail_after(5), pytest.raises(WorkflowStalledError):
            async with flow.run() as handler:
                await flow.sent.wait()
                for branch in flow.branches:
                    branch.cancel()
                await handler


@anywhere
async def test_step_may_cancel_the_branch_that_it_is_in():
    """It is cancelled at its next checkpoint; what it returns or sends is dropped."""

    async def work(flow, ctx, ev):
        flow.branch.cancel("that will do")
        assert ctx.send_event(Task()).is_done
        if ev.n:
            return Task(n=5)
        await anyio.lowlevel.checkpoint()
        flow.log.append("not reached")
        return None

    async def lead(flow, ctx):
        for n in range(2):
            flow.branch = ctx.send_event(Task(n=n))
            await flow.branch.wait()
            assert flow.branch.is_cancelled
        await wait_until_idle()
        return flow.log

    assert await result_of(Lead(lead, work)) == []


@anywhere
async def test_cancelling_twice_or_too_late_changes_nothing():
    """A branch that is over was not cancelled, and one cancellation is enough."""

    async def work(flow, ctx, ev):
        if ev.n:
            await never(flow, ctx, ev)

    async def lead(flow, ctx):
        done, running = ctx.send_event(Task(n=0)), ctx.send_event(Task(n=1))
        await done.wait()
        done.cancel()
        assert repr(done) == "<Branch, done>"
        assert not done.is_cancelled
        await until(lambda: flow.log)
        assert repr(running) == "<Branch, alive>"
        running.cancel("one")
        running.cancel("two")
        assert repr(running) == "<Branch, cancelled>"
        await running.wait()
        await running.wait()
        return flow.log

    assert await result_of(Lead(lead, work)) == ["began", 1]


@anywhere
async def test_what_a_cancelled_branch_published_is_out_and_what_it_sends_is_not():
    """The stream keeps what was said; events of a cancelled branch go nowhere."""

    async def work(flow, ctx, ev):
        try:
            await never(flow, ctx, ev)
        except cancelled_class():
            ctx.write_event_to_stream(Other(n=1))
            assert ctx.send_event(Task(n=2)).is_cancelled
            raise

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        await until(lambda: flow.log)
        branch.cancel()
        await branch.wait()
        await wait_until_idle()
        return flow.log

    with nothing_left(), anyio.fail_after(5):
        async with Lead(lead, work).run() as handler:
            seen = [event async for event in handler.stream_events()]
            assert await handler == ["began", 0]

    assert [type(event) for event in seen] == [Other, StopEvent]


@anywhere
async def test_cancelled_branch_that_fails_in_its_clean_up_fails_the_run():
    """P9: its failure counts as any other, where no one waits for it."""
    error = Mine()

    async def work(flow, ctx, ev):
        try:
            await never(flow, ctx, ev)
        finally:
            raise error

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        await until(lambda: flow.log)
        branch.cancel()
        await anyio.sleep_forever()

    assert await failure_of(Lead(lead, work)) is error


@anywhere
async def test_branch_is_not_cancelled_from_another_thread():
    """The message names the way into the event loop."""

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        try:
            await anyio.to_thread.run_sync(branch.cancel)
        finally:
            branch.cancel()

    error = await failure_of(Lead(lead, never))

    assert isinstance(error, WorkflowRuntimeError)
    assert "Branch.cancel was called from another thread" in str(error)


@pytest.mark.trio
async def test_reason_shows_in_trios_cancelled():
    """Who reads a traceback finds out why."""
    reasons = []

    async def work(flow, ctx, ev):
        flow.log.append(1)
        try:
            await anyio.sleep_forever()
        except cancelled_class() as error:
            reasons.append(error.reason)
            raise

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        await until(lambda: flow.log)
        branch.cancel("the other one was better")
        await branch.wait()

    await result_of(Lead(lead, work))

    assert reasons == ["the other one was better"]


# -- waiting ---------------------------------------------------------------------------------------


@anywhere
async def test_wait_returns_when_all_that_came_of_the_event_is_done():
    """Loops, sends and what follows them belong to the branch."""

    async def work(flow, ctx, ev):
        await wait_until_idle(2)
        flow.log.append(ev.n)
        if ev.n < 3:
            ctx.send_event(Task(n=10 + ev.n))
            return Task(n=ev.n + 1)
        return None

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        assert not branch.is_done
        assert await branch.wait() is None
        assert branch.is_done
        return sorted(flow.log)

    assert await result_of(Lead(lead, work)) == [0, 1, 2, 3, 10, 11, 12]


@anywhere
async def test_wait_is_a_checkpoint_also_when_the_branch_is_over():
    """A loop around it lets others continue."""

    async def work(flow, ctx, ev):
        pass

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        await branch.wait()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await branch.wait()
        return scope.cancelled_caught

    assert await result_of(Lead(lead, work)) is True


@anywhere
async def test_failure_is_raised_where_the_branch_is_waited_for():
    """P8: it is the same object, it says where it came up, and the run continues."""
    error = Mine("work")

    async def work(flow, ctx, ev):
        raise error

    async def lead(flow, ctx):
        branch = ctx.send_event(Task(n=4))
        with Catch() as caught:
            await branch.wait()
        assert caught.error is error
        with Catch() as caught:
            await branch.wait()
        assert caught.error is error
        assert branch.is_done
        assert branch.is_cancelled  # what was left of it
        return error.__notes__

    (note,) = await result_of(Lead(lead, work))

    assert note.startswith("in the step Lead.work, handling Task(n=4), in the run ")


@anywhere
async def test_rest_of_a_failed_branch_unwinds_before_wait_raises():
    """What else the branch has is cancelled, cleans up, and its failures become notes."""
    errors = [Mine(str(n)) for n in range(3)]

    async def work(flow, ctx, ev):
        if ev.n == 0:
            ctx.send_event(Task(n=1))
            ctx.send_event(Task(n=2))
            await until(lambda: flow.log.count("began") == 2)
        else:
            try:
                await never(flow, ctx, ev)
            finally:
                raise errors[ev.n]
        raise errors[0]

    async def lead(flow, ctx):
        branch = ctx.send_event(Task(n=0))
        with Catch() as caught:
            await branch.wait()
        assert caught.error is errors[0]
        return sorted(flow.log[2:])

    assert await result_of(Lead(lead, work)) == [1, 2]
    notes = errors[0].__notes__[1:]
    assert sorted(notes) == [
        f"and another failure in the same branch: {errors[n]!r}" for n in (1, 2)
    ]


@anywhere
async def test_failure_that_nobody_catches_fails_the_run():
    """P8: through the step that waited it comes out as itself."""
    error = Mine()

    async def work(flow, ctx, ev):
        raise error

    async def lead(flow, ctx):
        await ctx.send_event(Task()).wait()

    assert await failure_of(Lead(lead, work)) is error
    assert len(error.__notes__) == 2


@anywhere
async def test_failure_of_a_branch_whose_waiter_went_away_fails_the_run():
    """P9: the waiter was cancelled while the branch unwound, and so no one could catch it."""
    error = Mine()

    async def work(flow, ctx, ev):
        if ev.n == 0:
            ctx.send_event(Task(n=1))
            await until(lambda: flow.log)
            raise error
        try:
            await never(flow, ctx, ev)
        finally:
            with anyio.CancelScope(shield=True):
                flow.scope.cancel()
                await flow.is_gone.wait()

    async def lead(flow, ctx):
        branch = ctx.send_event(Task(n=0))
        try:
            with anyio.CancelScope() as flow.scope:
                await branch.wait()
            await anyio.sleep_forever()
        finally:
            flow.is_gone.set()

    flow = Lead(lead, work)
    flow.is_gone = anyio.Event()

    assert await failure_of(flow) is error


@anywhere
async def test_failure_of_a_branch_is_not_lost_in_the_tick_in_which_its_waiter_is_cancelled():
    """P9: either wait() raises it, or the run fails with it."""
    error = Mine()

    async def work(flow, ctx, ev):
        flow.scope.cancel()
        raise error

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        with anyio.CancelScope() as flow.scope:
            await branch.wait()
        await anyio.sleep_forever()

    assert await failure_of(Lead(lead, work)) is error


@anywhere
async def test_cancelled_wait_leaves_the_branch_alone():
    """Who stops waiting may wait again."""

    async def work(flow, ctx, ev):
        await flow.gate.wait()
        flow.log.append(ev.n)

    async def lead(flow, ctx):
        branch = ctx.send_event(Task(n=3))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await branch.wait()
        assert scope.cancelled_caught
        assert not branch.is_cancelled
        flow.gate.set()
        await branch.wait()
        return flow.log

    flow = Lead(lead, work)
    flow.gate = anyio.Event()

    assert await result_of(flow) == [3]


@anywhere
@pytest.mark.parametrize("fails", [False, True])
async def test_several_tasks_may_wait_for_one_branch(fails):
    """Each of them is told, of a failure too."""
    error = Mine()
    told = []

    async def work(flow, ctx, ev):
        await wait_until_idle()
        if fails:
            raise error

    async def wait(branch):
        with Catch() as caught:
            await branch.wait()
        told.append(caught.error)

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        async with anyio.create_task_group() as node:
            for _ in range(3):
                node.start_soon(wait, branch)

    await result_of(Lead(lead, work))

    assert told == [error if fails else None] * 3


@anywhere
async def test_one_waiter_that_was_told_is_enough():
    """Another one that is cancelled in the same tick does not make it a failure of the run."""
    error = Mine()
    told = []

    async def work(flow, ctx, ev):
        await wait_until_idle()
        raise error

    async def wait(flow, branch):
        with Catch() as caught:
            await branch.wait()
        told.append(caught.error)
        if is_trio():
            flow.scope.cancel()
        else:
            flow.task.cancel()  # it has been woken, and does not know yet

    async def lead(flow, ctx):
        branch = ctx.send_event(Task())
        flow.task = None if is_trio() else asyncio.current_task()
        async with anyio.create_task_group() as node:
            node.start_soon(wait, flow, branch)
            await anyio.lowlevel.checkpoint()
            with anyio.CancelScope() as flow.scope, Catch():
                await branch.wait()
            if flow.task is not None:
                flow.task.uncancel()
        await wait_until_idle()

    await result_of(Lead(lead, work))

    assert told == [error]


@anywhere
async def test_failure_that_was_recovered_is_none_of_the_branch():
    """What a handler makes of it continues in the branch, and wait() waits for it."""

    class Caught(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
            branch = ctx.send_event(Task())
            await branch.wait()
            return StopEvent(result=self.done)

        @step
        async def work(self, ev: Task) -> Answer:
            raise Mine

        @step
        async def after(self, ev: Answer) -> None:
            await wait_until_idle()
            self.done = ev.n

        @catch_error(for_steps=["work"])
        async def caught(self, ev: StepFailedEvent) -> Answer:
            await wait_until_idle()
            return Answer(n=9)

    assert await result_of(Caught()) == 9


@anywhere
async def test_handler_of_a_cancelled_branch_is_cancelled():
    """A recovery is part of what it recovers."""

    class Caught(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
            branch = ctx.send_event(Task())
            await self.began.wait()
            branch.cancel()
            await branch.wait()
            return StopEvent(result=self.unwound)

        @step
        async def work(self, ev: Task) -> None:
            raise Mine

        @catch_error(for_steps=["work"])
        async def caught(self, ev: StepFailedEvent) -> None:
            self.began.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.unwound = True

    flow = Caught()
    flow.began = anyio.Event()

    assert await result_of(flow) is True


@anywhere
async def test_step_may_not_wait_for_the_branch_that_it_is_in():
    """It could never end; the message says who should wait."""

    async def work(flow, ctx, ev):
        await flow.branch.wait()

    async def lead(flow, ctx):
        flow.branch = ctx.send_event(Task())
        await anyio.sleep_forever()

    error = await failure_of(Lead(lead, work))

    assert isinstance(error, WorkflowRuntimeError)
    assert "waits for the branch that it is itself a part of" in str(error)


class Greedy(Workflow):
    """A step that waits for events to itself, and has all workers."""

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: StartEvent | Task) -> Task | StopEvent | None:
        if isinstance(ev, StartEvent):
            branches = [ctx.send_event(Task(n=1)) for _ in range(3)]
            for branch in branches:
                await branch.wait()
            return StopEvent()
        await ctx.send_event(Task(n=2)).wait()
        return None


@anywhere
async def test_wait_for_what_no_worker_is_free_for_stalls_the_run():
    """P12: it says so at once, and why."""
    error = await failure_of(Greedy())

    assert isinstance(error, WorkflowStalledError)
    assert error.missing == ("2 waiting for branches that no worker is free for",)


@anywhere
async def test_two_branches_that_wait_for_each_other_stall_the_run():
    """P12: a circle of waits is found, whoever sent the branches."""

    class Circle(Workflow):
        branches: dict[int, Branch]

        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task | None:
            self.branches = {n: ctx.send_event(Task(n=n)) for n in range(2)}

        @step
        async def work(self, ev: Task) -> None:
            await self.branches[1 - ev.n].wait()

    error = await failure_of(Circle())

    assert isinstance(error, WorkflowStalledError)


@anywhere
async def test_wait_for_what_others_still_work_at_is_no_stall():
    """P12: a branch that waits in line behind steps that get on is none that is stuck."""

    class Line(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task | None:
            branches = [ctx.send_event(Task(n=n)) for n in range(6)]
            for branch in reversed(branches):
                await branch.wait()
            return StopEvent(result="done")

        @step(num_workers=1)
        async def work(self, ev: Task) -> None:
            await wait_until_idle(3)

    assert await result_of(Line()) == "done"


@anywhere
async def test_event_that_is_kept_back_cannot_be_waited_for_by_who_keeps_it():
    """In a step with retries it is out only when the step has ended; the message names the option."""

    class Keeping(Workflow):
        @step(retry=Retry(stop=1))
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
            await ctx.send_event(Task()).wait()
            return StopEvent()

        @step
        async def work(self, ev: Task) -> None: ...

    error = await failure_of(Keeping())

    assert isinstance(error, WorkflowRuntimeError)
    assert "send_at_once=True" in str(error)


@anywhere
async def test_event_that_is_sent_at_once_can_be_waited_for():
    """`send_at_once` lets an event out of a step with retries."""

    class AtOnce(Workflow):
        @step(retry=Retry(stop=1), send_at_once=True)
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
            await ctx.send_event(Task()).wait()
            return StopEvent(result=self.worked)

        @step
        async def work(self, ev: Task) -> None:
            self.worked = True

    assert await result_of(AtOnce()) is True


class KeptBack(Workflow):
    """A step with retries sends, fails, and another step waits for what was never sent."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.tries = 0
        self.branches: list[Branch] = []
        self.worked: list[int] = []

    @step
    async def begin(self, ev: StartEvent) -> list[Task | Other]:
        return [Task(), Other()]

    @step(retry=Retry(stop=2))
    async def tries_twice(self, ctx: Context, ev: Task) -> Part | Answer:
        self.tries += 1
        self.branches.append(ctx.send_event(Part(n=self.tries)))
        if self.how == "cancelled":
            self.branches[-1].cancel()
        if self.tries == 1:
            await self.waits.wait()
            raise OSError
        return Answer(n=0)

    @step
    async def work(self, ev: Part) -> None:
        self.worked.append(ev.n)

    @step
    async def looks_on(self, ctx: Context, ev: Other) -> Answer:
        await until(lambda: self.branches)
        async with anyio.create_task_group() as node:
            node.start_soon(self.branches[0].wait)
            await wait_until_idle()
            assert self.branches[0].is_done is False
            self.waits.set()
        return Answer(n=1)

    @step
    async def end(self, evs: list[Answer]) -> StopEvent:
        return StopEvent(result=self.worked)


@anywhere
@pytest.mark.parametrize(("how", "worked"), [("plain", [2]), ("cancelled", [])])
async def test_event_that_a_failed_attempt_kept_back_ends_who_waits_for_it(how, worked):
    """It was never sent, so its branch is over; one that was cancelled while kept never is."""
    flow = KeptBack(how)
    flow.waits = anyio.Event()

    assert await result_of(flow) == worked
    assert all(branch.is_done for branch in flow.branches)


@anywhere
async def test_branch_is_waited_for_in_the_run_alone():
    """Outside, the wait could outlive the run; a branch that is over may be looked at anywhere."""

    async def work(flow, ctx, ev):
        if ev.n:
            await never(flow, ctx, ev)

    async def lead(flow, ctx):
        flow.branches = [ctx.send_event(Task(n=n)) for n in range(2)]
        await flow.branches[0].wait()
        flow.sent.set()
        await flow.gate.wait()
        return "fine"

    flow = Lead(lead, work)
    flow.sent, flow.gate = anyio.Event(), anyio.Event()
    with nothing_left(), anyio.fail_after(5):
        async with flow.run() as handler:
            await flow.sent.wait()
            await flow.branches[0].wait()
            with pytest.raises(WorkflowRuntimeError, match="outside of the steps of Lead"):
                await flow.branches[1].wait()
            flow.gate.set()
            assert await handler == "fine"
        await flow.branches[0].wait()
        with pytest.raises(WorkflowRuntimeError, match="outside of the steps of Lead"):
            await flow.branches[1].wait()
        flow.branches[1].cancel()


# -- the end of the run ---------------------------------------------------------------------------


def lead_of_all(flow, ctx):
    """Send branches of all kinds, and wait for one of them."""

    async def lead():
        branches = [ctx.send_event(Task(n=n)) for n in range(8)]
        await branches[1].wait()

    return lead()


async def work_of_all(flow, ctx, ev):
    """Wait in many ways."""
    if ev.n == 0:
        return [Part(n=n) for n in range(10)]
    if ev.n == 1:
        await ctx.wait_for_event(HumanResponseEvent)
    if ev.n == 2:
        await ctx.send_event(Task(n=9)).wait()
    await never(flow, ctx, ev)
    return None


@on_each_backend
def test_timeout_with_branches_under_way_leaves_nothing(backend):
    """P1: all that waits or runs ends with the run, shielded clean-up included."""

    async def main():
        flow = Lead(lead_of_all, work_of_all, timeout=5)
        with nothing_left(), pytest.raises(WorkflowTimeoutError) as caught:
            await flow.run()
        assert "waiting for branches" in str(caught.value)
        assert "no worker" not in str(caught.value)
        assert flow.log.count("began") == sum(isinstance(entry, int) for entry in flow.log)

    run_virtually(backend, main)


@anywhere
@pytest.mark.parametrize("how", ["scope", "handler", "native", "break"])
async def test_cancellation_with_branches_under_way_leaves_nothing(how):
    """P2: whatever it comes from, all branches unwind before it continues outward."""
    flow = Lead(lead_of_all, work_of_all)

    async def begin(handler):
        await until(lambda: len(flow.log) > 4)

    with nothing_left():
        if how == "handler":
            async with flow.run() as handler:
                await begin(handler)
                await handler.cancel("enough")
                with pytest.raises(WorkflowCancelledError):
                    await handler
        elif how == "break":
            with pytest.raises(Mine):
                async with flow.run() as handler:
                    await begin(handler)
                    raise Mine
        elif how == "scope" or is_trio():
            with anyio.CancelScope() as scope:
                async with flow.run() as handler:
                    await begin(handler)
                    scope.cancel()
                    await handler
            assert scope.cancelled_caught
        else:

            async def run():
                await flow.run()

            task = asyncio.create_task(run())
            await begin(None)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    assert flow.log.count("began") == sum(isinstance(entry, int) for entry in flow.log)


@anywhere
async def test_stop_event_ends_branches_that_are_still_under_way():
    """P1: the run is over when they have unwound."""

    async def lead(flow, ctx):
        ctx.send_event(Task(n=5))
        await until(lambda: flow.log)
        return "stopped"

    flow = Lead(lead, never)

    assert await result_of(flow) == "stopped"
    assert flow.log == ["began", 5]


@anywhere
async def test_branch_sent_while_the_run_unwinds_goes_nowhere():
    """It is over from the start, and waiting for it is a checkpoint that raises the cancellation."""
    seen = []

    async def work(flow, ctx, ev):
        try:
            await never(flow, ctx, ev)
        finally:
            branch = ctx.send_event(Task())
            seen.append(branch.is_done)
            try:
                await branch.wait()
            except cancelled_class():
                seen.append("cancelled")
                raise

    async def lead(flow, ctx):
        ctx.send_event(Task())
        await until(lambda: flow.log)

    await result_of(Lead(lead, work))

    assert seen == [True, "cancelled"]


# -- memory ---------------------------------------------------------------------------------------


class Hop(Event):
    n: int


class Hopping(Workflow):
    """A loop of steps that send; ``keeps`` says what they do with the branch."""

    def __init__(self, hops: int, keeps: str) -> None:
        super().__init__()
        self.hops = hops
        self.keeps = keeps
        self.counts: list[int] = []
        self.last: Branch | None = None
        self.begun = 0

    @step
    async def hop(self, ctx: Context, ev: StartEvent | Hop) -> Hop | StopEvent | None:
        n = self.begun = ev.get("n", 0)
        if n in (0, self.hops // 10, self.hops - 1):
            gc.collect()
            kinds = (BranchNode, CancelRecord, Branch, Context, Hop)
            self.counts.append(sum(type(o) in kinds for o in gc.get_objects()))
        if n == self.hops:
            return StopEvent()
        sent = Hop(n=n + 1)
        if self.keeps == "nothing":
            ctx.send_event(sent)
        elif self.keeps == "local":
            branch = ctx.send_event(sent)
            await anyio.lowlevel.checkpoint()
            assert branch is not None
        elif self.keeps == "overlap":
            # The handle is there until the next but one has begun.
            branch = ctx.send_event(sent)
            await until(lambda: self.begun >= min(n + 2, self.hops))
            assert branch is not None
        elif self.keeps == "last":
            self.last = ctx.send_event(sent)
            await anyio.lowlevel.checkpoint()
        elif self.last is None:
            self.last = ctx.send_event(sent)
        else:
            ctx.send_event(sent)
        return None


@pytest.mark.slow
@anywhere
@pytest.mark.parametrize("keeps", ["nothing", "local", "overlap", "last", "first"])
async def test_long_loop_of_sends_leaves_nothing_behind(keeps):
    """P16: what has been handled takes no memory, whoever holds which branch."""
    flow = Hopping(10_000 if keeps in ("nothing", "local") else 2_000, keeps)
    with nothing_left():
        await flow.run()

    begun, early, late = flow.counts
    # A few for each worker; which of them have ended when, is the event loop's choice.
    assert early - begun < 200
    assert late - begun < 200


# -- joins of one each ------------------------------------------------------------------------------


@anywhere
async def test_one_of_each_meets_across_branches_and_fan_outs():
    """Parts from different branches meet in the fan-out around them, and each pair is made once."""

    class Pairs(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Outer]:
            return [Outer(n=n) for n in range(5)]

        @step
        async def send(self, ctx: Context, ev: Outer) -> Task | Part | None:
            ctx.send_event(Task(n=ev.n))
            ctx.send_event(Part(n=ev.n))

        @step
        async def left(self, ev: Task) -> Answer:
            await wait_until_idle(ev.n)
            return Answer(n=ev.n)

        @step
        async def right(self, ev: Part) -> Other:
            await wait_until_idle(5 - ev.n)
            return Other(n=ev.n)

        @step
        async def pair(self, a: Answer, b: Other) -> Hop:
            return Hop(n=a.n)

        @step
        async def join(self, evs: list[Hop]) -> StopEvent:
            return StopEvent(result=sorted(ev.n for ev in evs))

    assert await result_of(Pairs()) == [0, 1, 2, 3, 4]


@anywhere
async def test_pair_belongs_to_the_branch_that_both_parts_came_from():
    """Cancelling it cancels what became of the pair."""

    class Paired(Workflow):
        log: list[str]

        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Task:
            branch = ctx.send_event(Task())
            await until(lambda: self.log)
            assert not branch.is_done
            branch.cancel()
            await branch.wait()
            return StopEvent(result=self.log)

        @step
        async def split(self, ctx: Context, ev: Task) -> Part | Other | None:
            ctx.send_event(Part())
            ctx.send_event(Other())

        @step
        async def pair(self, a: Part, b: Other) -> None:
            self.log.append("began")
            try:
                await anyio.sleep_forever()
            finally:
                self.log.append("unwound")

    flow = Paired()
    flow.log = []

    assert await result_of(flow) == ["began", "unwound"]


@anywhere
async def test_part_that_has_arrived_has_left_its_branch():
    """A branch ends when its event waits in a join; cancelling it then changes nothing."""

    class Arrived(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Other | Task:
            branch = ctx.send_event(Task())
            await branch.wait()
            branch.cancel()
            assert not branch.is_cancelled
            return Other()

        @step
        async def work(self, ev: Task) -> Part:
            return Part()

        @step
        async def pair(self, a: Part, b: Other) -> StopEvent:
            return StopEvent(result="paired")

    assert await result_of(Arrived()) == "paired"


@anywhere
async def test_part_that_lacks_its_partner_is_told_unless_it_was_cancelled():
    """P12: what lies unmatched in a fan-out is named when the run stalls."""

    class Lacking(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Task | Part]:
            return [Task()] if ev.lacks else [Task(), Part()]

        @step
        async def left(self, ev: Task) -> Answer:
            return Answer()

        @step
        async def right(self, ev: Part) -> Other:
            return Other()

        @step
        async def pair(self, a: Answer, b: Other) -> Hop | StopEvent:
            return StopEvent() if False else Hop(n=1)

        @step
        async def join(self, evs: list[Hop]) -> StopEvent | None:
            return StopEvent(result=len(evs)) if evs else None

    error = await failure_of(Lacking(), lacks=True)

    assert isinstance(error, WorkflowStalledError)
    assert error.missing == ("Lacking.pair lacks Other",)
    assert await result_of(Lacking(), lacks=False) == 1


# -- collecting --------------------------------------------------------------------------------------


class Collecting(Workflow):
    """Collects four answers; the step fails in the attempts that ``fails`` names."""

    def __init__(self, fails: set[int]) -> None:
        super().__init__()
        self.fails = fails
        self.attempts: Counter[int] = Counter()
        self.rounds: list[list[int]] = []

    @step
    async def begin(self, ev: StartEvent) -> list[Task]:
        return [Task(n=n) for n in range(8)]

    @step
    async def work(self, ev: Task) -> Answer:
        return Answer(n=ev.n)

    @step(retry=Retry(stop=3), num_workers=3)
    async def collect(self, ctx: Context, ev: Answer) -> StopEvent | None:
        self.attempts[ev.n] += 1
        got = ctx.collect_events(ev, [Answer] * 4)
        await wait_until_idle(ev.n % 3)
        if ev.n in self.fails and self.attempts[ev.n] < 3:
            raise OSError
        if got is None:
            return None
        self.rounds.append([answer.n for answer in got])
        return StopEvent(result=self.rounds) if len(self.rounds) == 2 else None


@anywhere
@pytest.mark.parametrize(
    "fails", [set(), {0}, {3}, {7}, {3, 4}, {0, 1, 2, 3, 4, 5, 7}, set(range(8))], ids=str
)
async def test_event_of_a_failed_attempt_is_counted_once(fails):
    """Each answer is in one round, however often the step that collects it is tried."""
    flow = Collecting(fails)

    rounds = await result_of(flow)

    assert sorted(n for got in rounds for n in got) == list(range(8))
    assert [len(got) for got in rounds] == [4, 4]


# -- joins in loops -----------------------------------------------------------------------------------


@anywhere
async def test_join_in_a_loop_starts_from_nothing_each_time():
    """A fan-out in a loop has its own join in each round; one in a branch has its own too."""

    class Rounds(Workflow):
        sizes: list[int]

        @step
        async def begin(self, ev: StartEvent | Other) -> list[Task]:
            return [Task(n=n) for n in range(len(self.sizes))]

        @step
        async def work(self, ev: Task) -> Answer | None:
            return Answer() if ev.n % 2 else None

        @step
        async def join(self, evs: list[Answer]) -> Other | StopEvent:
            self.sizes.append(len(evs))
            return Other() if len(self.sizes) < 6 else StopEvent(result=self.sizes)

    flow = Rounds()
    flow.sizes = []

    assert await result_of(flow) == [0, 0, 1, 1, 2, 2]


@anywhere
async def test_branches_run_their_fan_outs_side_by_side():
    """Each branch has fan-outs and joins of its own, and wait() waits for its join's step."""

    class Sides(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Outer:
            branches = [ctx.send_event(Outer(n=n)) for n in range(4)]
            for branch in branches:
                await branch.wait()
            return StopEvent(result=sorted(self.sizes))

        @step
        async def split(self, ev: Outer) -> list[Task]:
            return [Task(n=ev.n) for _ in range(ev.n)]

        @step
        async def work(self, ev: Task) -> Answer:
            await wait_until_idle(ev.n)
            return Answer(n=ev.n)

        @step
        async def join(self, evs: list[Answer]) -> None:
            await wait_until_idle(2)
            assert len({ev.n for ev in evs}) <= 1
            self.sizes.append(len(evs))

    flow = Sides()
    flow.sizes = []

    assert await result_of(flow) == [0, 1, 2, 3]


@pytest.mark.anyio
async def test_a_step_with_a_timer_of_its_own_is_not_stuck():
    """P12: while a timer is set that may free the worker, nothing is stalled."""

    class Timed(Workflow):
        @step(num_workers=1)
        async def only(self, ctx: Context, ev: StartEvent | Task) -> Task | StopEvent:
            if isinstance(ev, Task):
                return StopEvent(result="later")
            with anyio.move_on_after(0.01) as scope:
                await ctx.send_event(Task(n=1)).wait()
            return StopEvent(result=scope.cancelled_caught)

    assert await Timed().run() is True


@pytest.mark.anyio
@pytest.mark.peer("note 1.2")
async def test_losers_of_a_race_are_cancelled_and_cleaned_up():
    """When the first have come, what is left of the fan-out ends before the run continues."""
    cleaned: list[int] = []

    class Race(Workflow[list[int]]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(4)]

        @step(num_workers=4)
        async def work(self, ev: Item) -> Done:
            if ev.number != 2:
                try:
                    await anyio.sleep_forever()
                finally:
                    cleaned.append(ev.number)
            await wait_until_idle()  # the others have begun
            return Done(number=ev.number)

        @step
        async def end(self, evs: Annotated[list[Done], Take(1)]) -> StopEvent:
            await wait_until_idle()
            return StopEvent(result=([ev.number for ev in evs], sorted(cleaned)))

    with nothing_left():
        assert await Race().run() == ([2], [0, 1, 3])


@pytest.mark.anyio
@pytest.mark.peer("note 1.2")
async def test_what_a_branch_sends_belongs_to_its_fan_out():
    """An event sent in a fan-out is one of its members, and the join waits for it."""

    class Wide(Workflow[list[int]]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=1), Item(number=2)]

        @step
        async def work(self, ctx: Context, ev: Item) -> Done | Note:
            ctx.send_event(Note(number=ev.number * 10))
            return Done(number=ev.number)

        @step
        async def late(self, ev: Note) -> Done:
            await wait_until_idle()
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    assert await Wide().run() == [1, 2, 10, 20]


@pytest.mark.anyio
@pytest.mark.peer("users 19")
async def test_step_cancels_another_branch():
    """The branch that an event began is cancelled by who sent it, alone."""
    ended: list[int] = []

    class Two(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            one, two = (ctx.send_event(Item(number=n)) for n in (1, 2))
            await wait_until_idle()
            one.cancel("not needed")
            await one.wait()
            assert (one.is_cancelled, two.is_done) == (True, False)
            two.cancel()
            await two.wait()
            return StopEvent(result="went on")

        @step
        async def work(self, ev: Item) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(ev.number)

    assert await Two().run() == "went on"
    assert ended == [1, 2]


@pytest.mark.anyio
@pytest.mark.peer("note 2")
async def test_events_beyond_the_expected_ones_make_the_next_batch():
    """The code after ``collect_events`` runs once for each batch, and each batch is whole."""
    batches: list[list[int]] = []

    class Batches(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            for number in range(5):
                ctx.send_event(Item(number=number))
            return Item(number=5)

        @step
        async def gather(self, ctx: Context, ev: Item) -> StopEvent | None:
            some = ctx.collect_events(ev, [Item] * 2)
            if some is None:
                return None
            batches.append([each.number for each in some])
            await wait_until_idle()
            return StopEvent() if len(batches) == 3 else None

    await Batches().run()

    assert all(len(batch) == 2 for batch in batches)
    assert sorted(number for batch in batches for number in batch) == [0, 1, 2, 3, 4, 5]
