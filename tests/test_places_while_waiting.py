"""A step that waits for an event from outside gives its worker's place to others meanwhile."""

from __future__ import annotations

import asyncio

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    RateLimiter,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowIdleEvent,
    WorkflowTimeoutError,
    step,
    testing,
)
from sluicegate._engine import runner
from sluicegate.testing import step_through
from tests.helpers import is_trio, on_each_backend, run_virtually, wait_until_idle


MEMBERS = 10
WORKERS = 4


class Question(InputRequiredEvent):
    n: int


class Answer(HumanResponseEvent):
    n: int


class Member(Event):
    n: int


class Said(Event):
    n: int


class Meeting(Workflow):
    """Ten members, each of whom is asked; ``after`` runs when the answer is there."""

    def __init__(self, after=None, *, ask=None, members=MEMBERS, **options):
        super().__init__(**options)
        self.after = after
        self.ask = ask or self.wait
        self.members = members
        self.at_work = self.most = 0
        self.begun: list[int] = []
        self.continued: list[int] = []

    async def wait(self, ctx, n):
        return await ctx.wait_for_event(Answer, Question(n=n), requirements={"n": n})

    def enter(self):
        self.at_work += 1
        self.most = max(self.most, self.at_work)

    def leave(self):
        self.at_work -= 1

    async def work_at(self, ctx, n):
        self.begun.append(n)
        self.enter()
        try:
            await anyio.lowlevel.checkpoint()
            self.leave()
            try:
                await self.ask(ctx, n)
            finally:
                self.enter()
            self.continued.append(n)
            if self.after is not None:
                await self.after(ctx, n)
        finally:
            self.leave()
        return Said(n=n)

    @step
    async def begin(self, ev: StartEvent) -> list[Member]:
        return [Member(n=n) for n in range(self.members)]

    @step(num_workers=WORKERS, waits_for=[Answer])
    async def work(self, ctx: Context, ev: Member) -> Said:
        return await self.work_at(ctx, ev.n)

    @step
    async def end(self, evs: list[Said]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


def limited(limiter, **options):
    """Make a meeting whose step has a limiter."""

    class Limited(Meeting):
        @step(num_workers=WORKERS, limiter=limiter, **options)
        async def work(self, ctx: Context, ev: Member) -> Said:
            return await self.work_at(ctx, ev.n)

    return Limited


async def until_asked(handler, count=MEMBERS):
    """Let all members begin."""
    await anyio.sleep(1)
    assert len(handler.questions) == count


def check_places(handler, *, running=0, away=0):
    """Look into the books of the step that asks."""
    machine = handler._run.machine
    queue = next(s for s in machine.queues if s.step.name == "work")
    assert (queue.running, queue.away) == (running, away)
    assert machine.held_up == sum(w.is_queued for w in machine.answered)


@on_each_backend
@pytest.mark.parametrize("excludes", [True, False])
def test_fan_out_wider_than_its_workers_asks_everyone(backend, excludes):
    """Ten members, four workers: ten questions, the run is idle, four bodies at a time, and a
    timeout that excludes waiting does not pass while people think."""

    async def after(ctx, n):
        await anyio.sleep(1)

    async def main():
        workflow = Meeting(after, timeout=60, timeout_excludes_waiting=excludes)
        async with workflow.run() as handler:
            events = handler.stream_events(expose_internal=True)
            await until_asked(handler)
            assert handler.status == "idle"
            check_places(handler, away=MEMBERS)
            await anyio.sleep(3600 if excludes else 10)
            assert handler.status == "idle"
            for n in range(MEMBERS):
                handler.send_event(Answer(n=n))
            assert handler.status == "running"
            assert await handler == [*range(MEMBERS)]
            told = [type(event) async for event in events]
        assert told.count(WorkflowIdleEvent) == 1
        assert workflow.most == WORKERS

    run_virtually(backend, main)


@on_each_backend
def test_continuations_come_first_in_the_order_of_the_answers(backend):
    """What was answered continues before new events begin, the first answer first."""
    order = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]

    class Alone(Meeting):
        @step(num_workers=1)
        async def work(self, ctx: Context, ev: Member) -> Said:
            return await self.work_at(ctx, ev.n)

    async def after(ctx, n):
        if n < MEMBERS:
            await anyio.sleep(1)

    async def main():
        workflow = Alone(after)
        async with workflow.run() as handler:
            await until_asked(handler)
            for n in order[:5]:
                handler.send_event(Answer(n=n))
            await anyio.sleep(0.1)
            handler.send_event(Member(n=10))
            await anyio.sleep(0.5)
            check_places(handler, running=1, away=MEMBERS - 1)
            for n in order[5:9]:
                handler.send_event(Answer(n=n))
            await anyio.sleep(6)
            assert workflow.begun[-1] != 10
            await anyio.sleep(20)
            assert workflow.continued == order[:9]
            assert workflow.begun[-1] == 10
            assert workflow.most == 1
            handler.cancel()

    run_virtually(backend, main)


@on_each_backend
def test_step_may_keep_its_place(backend):
    """``release_while_waiting=False``: as many questions as workers, the next after an answer."""

    class Locked(Meeting):
        @step(num_workers=WORKERS, release_while_waiting=False)
        async def work(self, ctx: Context, ev: Member) -> Said:
            return await self.work_at(ctx, ev.n)

    async def main():
        async with Locked().run() as handler:
            await until_asked(handler, WORKERS)
            assert handler.status == "idle"
            handler.send_event(Answer(n=0))
            await until_asked(handler, WORKERS)
            assert sorted(q.event.n for q in handler.questions) == [1, 2, 3, 4]
            for n in range(1, MEMBERS):
                handler.send_event(Answer(n=n))
                await anyio.sleep(1)
            await handler

    run_virtually(backend, main)


class Word(Event):
    n: int


@on_each_backend
def test_only_waits_for_events_from_outside_give_the_place(backend):
    """A wait for what a step makes keeps its place; so does one in a task of the step's own."""

    class Inner(Meeting):
        @step(num_workers=WORKERS)
        async def work(self, ctx: Context, ev: Member) -> Said | Word:
            return await self.work_at(ctx, ev.n)

        @step
        async def hear(self, ev: Word) -> None: ...

    async def ask(ctx, n):
        await ctx.wait_for_event(Word, timeout=1)

    async def ask_in_a_task(ctx, n):
        async with anyio.create_task_group() as node:
            node.start_soon(Meeting.wait, None, ctx, n)
            await anyio.sleep(0.1)

    async def main():
        workflow = Inner(ask=ask)
        async with workflow.run() as handler:
            await anyio.sleep(0.5)
            assert len(workflow.begun) == WORKERS
            handler.cancel()
        workflow = Meeting(ask=ask_in_a_task)
        async with workflow.run() as handler:
            await until_asked(handler, WORKERS)
            assert handler.status == "idle"
            check_places(handler, running=WORKERS)
            handler.cancel()

    run_virtually(backend, main)


def make_limiter(kind):
    """Make a limiter of the running loop, for one."""
    if kind == "lock":
        return trio.Lock() if is_trio() else asyncio.Lock()
    if kind == "semaphore":
        return trio.Semaphore(1) if is_trio() else asyncio.Semaphore(1)
    return anyio.CapacityLimiter(1)


@on_each_backend
@pytest.mark.parametrize("kind", ["capacity", "semaphore", "lock"])
def test_limiter_of_the_step_goes_with_the_place(backend, kind):
    """A limiter of one: all ask; one at a time continues; one that is left keeps nothing."""
    inside = []

    async def after(ctx, n):
        inside.append(n)
        await anyio.sleep(1)
        assert inside == [n]
        inside.remove(n)

    async def main():
        limiter = make_limiter(kind)
        workflow = limited(limiter)(after)
        async with workflow.run() as handler:
            await until_asked(handler)
            assert handler.status == "idle"
            for n in range(MEMBERS):
                handler.send_event(Answer(n=n))
            assert await handler == [*range(MEMBERS)]
        with anyio.fail_after(1):
            async with limiter:
                pass
        # Cancelled while some wait, and some for the limiter.
        async with limited(limiter)(after).run() as handler:
            await until_asked(handler)
            for n in range(5):
                handler.send_event(Answer(n=n))
            await anyio.sleep(0.5)
            inside.clear()
            handler.cancel()
        with anyio.fail_after(1):
            async with limiter:
                pass

    run_virtually(backend, main)


@on_each_backend
def test_limiter_that_the_body_takes_stays_with_it(backend):
    """What a body has entered itself is the body's, also while it waits.

    The others wait for it within their bodies, and have places meanwhile. So a step that holds
    what others need keeps its place.
    """

    class Keeping(Meeting):
        @step(num_workers=WORKERS, release_while_waiting=False)
        async def work(self, ctx: Context, ev: Member) -> Said:
            return await self.work_at(ctx, ev.n)

    async def main():
        limiter = anyio.CapacityLimiter(1)

        async def ask(ctx, n):
            async with limiter:
                await Meeting.wait(None, ctx, n)

        async with Keeping(ask=ask).run() as handler:
            for _ in range(MEMBERS):
                await until_asked(handler, 1)
                handler.send_event(Answer(n=handler.questions[0].event.n))
                await wait_until_idle()
            await handler

    run_virtually(backend, main)


@on_each_backend
def test_timeouts_do_not_count_the_wait_for_a_place(backend):
    """The wait's own timeout ends when the answer is there; the step's stands while it queues."""

    async def ask(ctx, n):
        await ctx.wait_for_event(Answer, Question(n=n), requirements={"n": n}, timeout=5)

    async def after(ctx, n):
        await anyio.sleep(6)

    class Timed(Meeting):
        @step(num_workers=1, timeout=8)
        async def work(self, ctx: Context, ev: Member) -> Said:
            return await self.work_at(ctx, ev.n)

    async def main():
        async with Timed(after, ask=ask, members=5).run() as handler:
            await until_asked(handler, 5)
            for n in range(5):
                handler.send_event(Answer(n=n))
            assert await handler == [*range(5)]  # the last one has waited for 24 s

        async def too_long(ctx, n):
            await anyio.sleep(7.5)

        with pytest.raises(StepTimeoutError):
            async with Timed(too_long, ask=ask, members=5).run() as handler:
                await until_asked(handler, 5)
                handler.send_event(Answer(n=0))
                await handler

    run_virtually(backend, main)


@on_each_backend
def test_wait_that_times_out_takes_its_place_in_the_line(backend):
    """Ten waits that no one answers in time: four bodies at a time continue."""
    failed = []

    async def ask(ctx, n):
        with pytest.raises(WorkflowTimeoutError):
            await ctx.wait_for_event(Answer, requirements={"n": n}, timeout=5)
        failed.append(n)

    async def after(ctx, n):
        await anyio.sleep(1)

    async def main():
        workflow = Meeting(after, ask=ask)
        assert await workflow.run() == [*range(MEMBERS)]
        assert workflow.most == WORKERS
        assert len(failed) == MEMBERS

    run_virtually(backend, main)


async def cancel_by_scope(handler, scopes, n):
    scopes[n].cancel()


@on_each_backend
@pytest.mark.parametrize("moment", ["waits", "answered", "queues"])
@pytest.mark.parametrize("how", ["scope", "handler", "steps", "native"])
def test_cancelled_wait_leaves_the_books_balanced(backend, moment, how):
    """Whenever it is cancelled, its clean-up runs at once, and no place or answer is lost."""
    if how == "native" and backend == "trio":
        pytest.skip("Trio has no native cancellation of a task")
    scopes, tasks, gave_up = {}, {}, []

    async def ask(ctx, n):
        with anyio.CancelScope() as scope:
            scopes[n] = scope
            tasks[n] = None if is_trio() else asyncio.current_task()
            try:
                await Meeting.wait(None, ctx, n)
            except BaseException:
                gave_up.append(n)
                raise

    async def after(ctx, n):
        await anyio.sleep(2)

    async def main():
        workflow = Meeting(after, ask=ask)
        handler = workflow.run()
        with anyio.CancelScope():
            async with handler:
                await until_asked(handler)
                if moment == "queues":
                    for n in range(6):
                        handler.send_event(Answer(n=n))
                    await anyio.sleep(0.1)
                    check_places(handler, running=WORKERS, away=6)
                elif moment == "answered":
                    handler.send_event(Answer(n=5))
                if how == "scope":
                    scopes[5].cancel()
                    await anyio.sleep(0.1)
                    assert gave_up in ([5], [])
                    kept = [*handler._run.machine.early]
                    assert len(kept) == (bool(gave_up) and moment != "waits")
                    for n in range(6 if moment == "queues" else 0, MEMBERS):
                        if n != 5:
                            handler.send_event(Answer(n=n))
                    assert await handler == [*range(MEMBERS)]
                    assert workflow.most <= WORKERS + 1
                elif how == "handler":
                    handler.cancel()
                elif how == "steps":
                    handler.cancel(after="steps")
                    await anyio.sleep(60)
                    assert handler.is_done()
                    # What had its answer was finished; the others wait in a snapshot.
                    wanted = {"waits": 0, "answered": 1, "queues": 6}[moment]
                    assert len(workflow.continued) == wanted
                else:
                    tasks[5].cancel()
                    await handler
        if how == "scope":
            return
        assert handler.status == "cancelled" or how == "native"
        for queue in handler._run.machine.queues:
            assert queue.away == 0
            assert queue.returning is None
        assert handler._run.machine.held_up == 0

    if how == "native":
        with pytest.raises(BaseException):  # noqa: B017 - whatever the run makes of it
            run_virtually(backend, main)
    else:
        run_virtually(backend, main)


class Branching(Meeting):
    """The members are branches of a step, which cancels one of them."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Member | StopEvent:
        branches = [ctx.send_event(Member(n=n)) for n in range(6)]
        await anyio.sleep(ev.cancel_at)
        branches[ev.which].cancel()
        await anyio.sleep(10)
        return StopEvent(result=sorted(self.continued))

    @step
    async def end(self, ev: Said) -> None:
        pass


@on_each_backend
@pytest.mark.parametrize(("cancel_at", "which"), [(1, 5), (3, 4), (3, 0)])
def test_cancelled_branch_gives_back_what_it_had(backend, cancel_at, which):
    """A branch is cancelled while it waits, while it queues for its place, and while it runs."""

    async def after(ctx, n):
        await anyio.sleep(2)

    async def main():
        workflow = Branching(after)
        async with workflow.run(cancel_at=cancel_at, which=which) as handler:
            await anyio.sleep(2)
            open_now = 6 - (cancel_at == 1)
            assert len(handler.questions) == open_now
            for question in handler.questions:
                handler.send_event(Answer(n=question.event.n))
            await anyio.sleep(9)
            check_places(handler)
            result = await handler
        gone = which in (4, 5)
        assert result == [n for n in range(6) if not (gone and n == which)]

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("moment", ["waits", "answered", "queues"])
def test_snapshot_continues_in_every_state(backend, moment):
    """A step that is away is in flight: it begins again, and what it was told it gets again."""

    async def after(ctx, n):
        await anyio.sleep(2)

    async def main():
        async with Meeting(after).run() as handler:
            await until_asked(handler)
            answered = {"waits": 0, "answered": 3, "queues": 7}[moment]
            for n in range(answered):
                handler.send_event(Answer(n=n))
            if moment == "queues":
                await anyio.sleep(0.5)
                check_places(handler, running=WORKERS, away=6)
            snapshot = handler.snapshot()
            handler.cancel()
        workflow = Meeting(after)
        async with workflow.resume(snapshot) as handler:
            await anyio.sleep(1)
            assert len(handler.questions) == MEMBERS - answered
            for n in range(answered, MEMBERS):
                handler.send_event(Answer(n=n))
            assert await handler == [*range(MEMBERS)]
        assert workflow.most == WORKERS

    run_virtually(backend, main)


class Threaded(Meeting):
    @step(num_workers=WORKERS)
    def work(self, ctx: Context, ev: Member) -> Said:
        ctx.from_thread.run(Meeting.wait, self, ctx, ev.n)
        return Said(n=ev.n)


@pytest.mark.anyio
async def test_step_in_a_thread_gives_its_place():
    """A plain ``def`` follows the same rule."""
    async with Threaded().run() as handler:
        with anyio.fail_after(10):
            while len(handler.questions) < MEMBERS:
                await anyio.sleep(0.001)
        for n in range(MEMBERS):
            handler.send_event(Answer(n=n))
        assert await handler == [*range(MEMBERS)]


class Asking(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, Question(n=ev.n), requirements={"n": ev.n})
        await anyio.sleep(1)
        return StopEvent(result=answer.n)


@on_each_backend
def test_child_that_asks_gives_the_place_of_its_step(backend):
    """Ten steps that each run a child which asks, four workers: ten questions, and idle."""

    async def ask(ctx, n):
        assert await ctx.run_child(Asking(), n=n) == n

    async def after(ctx, n):
        await anyio.sleep(1)

    async def main():
        workflow = Meeting(after, ask=ask, timeout=60, timeout_excludes_waiting=True)
        async with workflow.run() as handler:
            await until_asked(handler)
            assert handler.status == "idle"
            check_places(handler, away=MEMBERS)
            await anyio.sleep(3600)
            for n in range(MEMBERS):
                handler.send_event(Answer(n=n))
            assert await handler == [*range(MEMBERS)]
        assert workflow.most == WORKERS

    run_virtually(backend, main)


class Kept:
    """A limiter of the user's own, of which nothing is known but how it is entered."""

    def __init__(self):
        self.lock = anyio.Lock()

    async def __aenter__(self):
        await self.lock.acquire()

    async def __aexit__(self, *exception):
        self.lock.release()


async def answer_one_by_one(handler, count=MEMBERS):
    for _ in range(count):
        await until_asked(handler, 1)
        assert handler.status in ("idle", "running")
        handler.send_event(Answer(n=handler.questions[0].event.n))
    assert await handler == [*range(count)]


@on_each_backend
def test_step_keeps_its_place_while_it_holds_what_others_wait_for(backend):
    """They would wait for that in its place, and it for a place: nothing would ever continue."""

    async def edit(ctx, n):
        async with ctx.store.edit_state():
            await Meeting.wait(None, ctx, n)

    async def main():
        async with limited(Kept())().run() as handler:
            await answer_one_by_one(handler)
        async with Meeting(ask=edit).run() as handler:
            await answer_one_by_one(handler)

    run_virtually(backend, main)


@on_each_backend
def test_rate_limiter_counts_what_begins(backend):
    """One that continues takes no second token."""

    async def main():
        began = anyio.current_time()
        async with limited(RateLimiter(1, per=10))().run() as handler:
            await anyio.sleep(95)
            assert len(handler.questions) == MEMBERS
            for n in range(MEMBERS):
                handler.send_event(Answer(n=n))
            assert await handler == [*range(MEMBERS)]
        assert anyio.current_time() - began == 95

    run_virtually(backend, main)


@on_each_backend
def test_run_that_is_stepped_through_gives_places_too(backend):
    """What the gates of the tests count agrees with what is away."""

    async def main():
        begun = []
        answers = {Question: lambda question: Answer(n=question.n)}
        async with step_through(Meeting(), answers=answers) as steps:
            begun = [call.step async for call in steps]
        assert begun.count("work") == MEMBERS
        assert steps.result.result == [*range(MEMBERS)]

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("kind", ["capacity", "semaphore", "lock"])
def test_limiter_goes_with_the_place_while_a_child_asks(backend, kind):
    """But for a lock, which only the task that has it may give up: its step keeps its place."""

    async def ask(ctx, n):
        assert await ctx.run_child(Asking(), n=n) == n

    async def main():
        limiter = make_limiter(kind)
        async with limited(limiter)(ask=ask).run() as handler:
            if kind == "lock":
                for _ in range(MEMBERS):
                    await anyio.sleep(2)
                    [question] = handler.questions
                    handler.send_event(Answer(n=question.event.n))
            else:
                await until_asked(handler)
                assert handler.status == "idle"
                for n in range(MEMBERS):
                    handler.send_event(Answer(n=n))
            assert await handler == [*range(MEMBERS)]

    run_virtually(backend, main)


@on_each_backend
def test_child_that_queues_behind_idle_ones_waits_for_people_too(backend):
    """``num_concurrent_runs`` of the child: its parent is idle as long as those inside are."""

    async def main():
        asking = Asking(num_concurrent_runs=2)

        async def ask(ctx, n):
            assert await ctx.run_child(asking, n=n) == n

        options = {"timeout": 60, "timeout_excludes_waiting": True}
        workflow = Meeting(ask=ask, **options)
        async with workflow.run() as handler:
            events = handler.stream_events(expose_internal=True)
            for left in range(MEMBERS, 0, -2):
                await until_asked(handler, 2)
                assert handler.status == "idle"
                assert len(workflow.begun) == MEMBERS
                await anyio.sleep(3600)
                first, second = (question.event.n for question in handler.questions)
                handler.send_event(Answer(n=first))
                assert handler.status == "running"
                await anyio.sleep(0.5)
                assert handler.status == "running"
                handler.send_event(Answer(n=second))
                await anyio.sleep(1.5)
                assert handler.status == ("idle" if left > 2 else "completed")
            assert await handler == [*range(MEMBERS)]
            told = [type(event) async for event in events]
        assert told.count(WorkflowIdleEvent) >= MEMBERS / 2
        slots = asking._Workflow__options.run_limit.here()
        assert (slots.inside, slots.waiting, slots.idle, slots.queued) == (0, 0, set(), {})
        # Cancelled while it queues, it leaves nothing behind.
        async with workflow.run() as handler:
            await until_asked(handler, 2)
            handler.cancel()
        assert (slots.inside, slots.waiting, slots.idle, slots.queued) == (0, 0, set(), {})

    run_virtually(backend, main)


# -- a graceful stop between two steps ------------------------------------------------------------------


class Next(Event):
    pass


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("owner", ["own", "held"])
def test_a_step_that_comes_to_its_limiter_when_the_run_is_drained_does_not_hold_it_up(
    backend, seed, owner, monkeypatch
):
    """A step that is about to begin when the run is stopped gracefully does not begin, nor hang."""
    monkeypatch.setattr(runner, "TURN", -1)  # a checkpoint before each step

    async def main():
        limiter = anyio.CapacityLimiter(1)
        began = anyio.Event()

        class Between(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> Next:
                began.set()
                return Next()

            @step(limiter=limiter)
            async def limited(self, ev: Next) -> StopEvent:
                await anyio.sleep(1)
                return StopEvent()

        if owner == "held":
            limiter.acquire_on_behalf_of_nowait(main)
        with anyio.fail_after(1000):
            async with Between().run() as handler:
                await began.wait()
                await handler.cancel(after="steps")

        assert handler.is_done()

    testing.run_virtually(main, backend=backend, seed=seed)
