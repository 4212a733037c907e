"""What a step that begins again finds: its sends, buffers and answers, by content and by no order."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import anyio
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    catch_error,
    step,
)
from sluicegate.testing import jump_clock
from tests.helpers import on_each_backend, run_virtually, through_json


class Job(Event):
    name: str


class Made(Event):
    name: str


# -- sends ----------------------------------------------------------------------------------------


class Swapped(Workflow):
    """Two tasks of one step send; in which order depends on ``first``, which differs each time."""

    def __init__(self, first: str, **options: Any) -> None:
        super().__init__(**options)
        self.first = first
        self.worked: Counter[str] = Counter()

    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> Job | Made:
        async def send(name: str) -> None:
            await anyio.sleep(1 if name == self.first else 2)
            ctx.send_event(Job(name=name))
            ctx.send_event(Job(name=name))  # equal ones are told apart by their number

        async with anyio.create_task_group() as group:
            group.start_soon(send, "a")
            group.start_soon(send, "b")
        await anyio.sleep(1)
        return Made(name="led")

    @step
    async def work(self, ctx: Context, ev: Job | Made) -> StopEvent | None:
        self.worked[ev.name] += 1
        found = ctx.collect_events(ev, [Job, Job, Job, Job, Made])
        return None if found is None else StopEvent(result=sorted(job.name for job in found[:4]))


@on_each_backend
@pytest.mark.parametrize("seconds", [1.5, 2.5])
@pytest.mark.parametrize("first", ["a", "b"])
def test_a_send_is_found_by_what_was_sent(backend, first, seconds):
    """No send is lost or doubled, in whatever order the tasks of a step send the next time."""

    async def main() -> None:
        before = Swapped("b")
        async with before.run() as handler:
            await anyio.sleep(seconds)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        after = Swapped(first)

        assert await after.resume(snapshot) == ["a", "a", "b", "b"]
        assert before.worked + after.worked == {"a": 2, "b": 2, "led": 1}

    run_virtually(backend, main)


class Live:
    """Something that no snapshot keeps."""


class Token(Event):
    live: Any = None


class Many(Workflow):
    """One step sends far more than it keeps, some of which no snapshot could hold."""

    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> Job | Token | Made | None:
        for number in range(600):
            ctx.send_event(Job(name=str(number % 450)))
            ctx.send_event(Token(live=Live()))
            if not number % 50:
                await anyio.sleep(0.01)
        await anyio.sleep(1)
        return Made(name="all")

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Job | Token) -> None:
        seen = Counter(await ctx.store.get("seen", {}))
        seen[ev.name if isinstance(ev, Job) else "token"] += 1
        await ctx.store.set("seen", dict(seen))

    @step
    async def end(self, ctx: Context, ev: Made) -> StopEvent:
        return StopEvent(result=await ctx.store.get("seen"))


@on_each_backend
def test_many_sends_are_found_too(backend):
    """A step that sends many events, some of which cannot be kept, sends none of them twice."""

    async def main() -> None:
        async with Many().run() as handler:
            await anyio.sleep(0.5)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        workflow = Many()
        seen = await workflow.resume(snapshot)

        names = Counter(str(number % 450) for number in range(600))

        assert seen == {**names, "token": 600}

    run_virtually(backend, main)


# -- a second life that is cut short --------------------------------------------------------------


class Lead(Workflow):
    """A step with a branch that is alive for long."""

    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> Job | StopEvent:
        branch = ctx.send_event(Job(name="long"))
        await branch.wait()
        return StopEvent(result="led")

    @step
    async def work(self, ev: Job) -> None:
        await anyio.sleep(5)


@on_each_backend
@pytest.mark.parametrize("turns", range(4))
def test_a_resumed_run_can_be_saved_before_its_steps_begin(backend, turns):
    """What waits to begin again keeps its branches, however early the next snapshot comes."""

    async def main() -> None:
        async with Lead().run() as handler:
            await anyio.sleep(1)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        for _ in range(2):
            async with Lead().resume(snapshot) as handler:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                handler.cancel(after="steps")
            snapshot = through_json(handler.snapshot())
            if snapshot["status"] == "completed":  # the steps had begun, and came to their end
                return

        assert await Lead().resume(snapshot) == "led"

    run_virtually(backend, main)


# -- branches that unwind -------------------------------------------------------------------------


class Side(Event):
    name: str


class Unwinding(Workflow):
    """The members of a fan-out cancel a branch, which is long in unwinding, and end."""

    def __init__(self, first: float, **options: Any) -> None:
        super().__init__(**options)
        self.first = first

    @step
    async def begin(self, ev: StartEvent) -> list[Job]:
        return [Job(name="a"), Job(name="b")]

    @step
    async def work(self, ctx: Context, ev: Job) -> Made | Side:
        branches = [ctx.send_event(Side(name=ev.name)) for _ in range(2)]
        await anyio.sleep(1 if ev.name == "a" else self.first)
        for branch in branches:
            branch.cancel()
        return Made(name=ev.name)

    @step(num_workers=1)
    async def side(self, ev: Side) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)

    @step
    async def end(self, evs: list[Made]) -> StopEvent:
        return StopEvent(result=sorted(ev.name for ev in evs))


@on_each_backend
@pytest.mark.parametrize("seconds", [1.5, 3.5])
@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("is_over", [False, True])
def test_a_fan_out_of_which_only_cancelled_branches_are_left_is_kept(
    backend, first, seconds, is_over
):
    """What a join has got is in the snapshot, also while only cancelled branches unwind."""

    async def main() -> None:
        async with Unwinding(first).run() as handler:
            await anyio.sleep(seconds)
            if not is_over:
                snapshot = through_json(handler.snapshot())
            handler.cancel()
        if is_over:
            snapshot = through_json(handler.snapshot())

        assert await Unwinding(first).resume(snapshot) == ["a", "b"]

    run_virtually(backend, main)


# -- answers --------------------------------------------------------------------------------------


class Questions(Workflow):
    """Two tasks of one step ask; in which order depends on ``first``, which differs each time."""

    def __init__(self, first: str, **options: Any) -> None:
        super().__init__(**options)
        self.first = first
        self.retried = False

    @step(retry=Retry(stop=2, wait=1))
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answers: dict[str, str] = {}

        async def one(name: str) -> None:
            await anyio.sleep(1 if name == self.first else 2)
            question = InputRequiredEvent(prefix=name)
            answer = await ctx.wait_for_event(HumanResponseEvent, question)
            answers[name] = answer.response

        async with anyio.create_task_group() as group:
            group.start_soon(one, "name")
            group.start_soon(one, "town")
        if ev.get("fails") and ctx.retry_info().attempt == 1:
            self.first = "town"
            raise OSError
        return StopEvent(result=answers)


async def answer_all(handler: Any, asked: list[str], until: float = math.inf) -> None:
    """Answer each question by its name in capitals, until the given time."""
    with anyio.CancelScope(deadline=until):
        async for event in handler.stream_events():
            if isinstance(event, InputRequiredEvent):
                asked.append(event.prefix)
                handler.send_event(HumanResponseEvent(response=event.prefix.upper()))


@on_each_backend
@pytest.mark.parametrize("seconds", [1.5, 2.5])
@pytest.mark.parametrize("first", ["name", "town"])
def test_an_answer_is_found_by_its_question(backend, first, seconds):
    """An answer goes to the question it was given to, in whatever order they are asked again."""

    async def main() -> None:
        asked: list[str] = []
        async with Questions("name", serializable=[HumanResponseEvent]).run(fails=True) as handler:
            await answer_all(handler, asked, anyio.current_time() + seconds)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        async with Questions(first).resume(snapshot) as handler:
            await answer_all(handler, asked)

            assert await handler == {"name": "NAME", "town": "TOWN"}
        assert sorted(asked) == ["name", "town"]

    run_virtually(backend, main)


class Patient(Workflow):
    """A step whose question gives up after ten seconds."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        began = anyio.current_time()
        with pytest.raises(WorkflowTimeoutError, match="within 10 s"):
            await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent(prefix="?"), timeout=10)
        return StopEvent(result=anyio.current_time() - began)


@on_each_backend
def test_an_open_question_keeps_its_timeout(backend):
    """The timeout of a wait does not begin anew; each life has what the one before has left."""

    async def main() -> None:
        handler = Patient().run()
        for seconds in (4, 3):
            async with handler:
                await anyio.sleep(seconds)
                snapshot = through_json(handler.snapshot())
                handler.cancel()
            handler = Patient().resume(snapshot)

        assert await handler == 10 - 4 - 3

    run_virtually(backend, main)


# -- buffers ----------------------------------------------------------------------------------------


class Twice(Workflow):
    """One event object goes into a buffer twice; the attempt that completes it fails once."""

    def __init__(self, failures: int, **options: Any) -> None:
        super().__init__(**options)
        self.failures = failures

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Job | None:
        same = Job(name="same")
        for event in (same, Job(name="same"), same):
            ctx.send_event(event)

    @step(num_workers=1, retry=Retry(stop=5))
    async def collect(self, ctx: Context, ev: Job) -> StopEvent | None:
        found = ctx.collect_events(ev, [Job] * 3)
        if found is None:
            return None
        if self.failures:
            self.failures -= 1
            raise OSError
        return StopEvent(result=[event.name for event in found])


@on_each_backend
@pytest.mark.parametrize("failures", [0, 1, 3])
def test_one_event_stands_in_a_buffer_as_often_as_it_was_given(backend, failures):
    """A buffer goes by what it was given and not by which object it was; nothing is lost."""

    async def main() -> None:
        assert await Twice(failures).run() == ["same"] * 3

    run_virtually(backend, main)


# -- an undeclared result -----------------------------------------------------------------------------


class Held(Workflow):
    """Sends are held until the step has succeeded; what it returns was not declared."""

    def __init__(self, result: Any, **options: Any) -> None:
        super().__init__(**options)
        self.result = result
        self.worked = 0

    @step(retry=Retry(stop=1))
    async def lead(self, ctx: Context, ev: StartEvent) -> Job | StopEvent:
        ctx.send_event(Job(name="held"))
        return self.result

    @step
    async def work(self, ev: Job) -> StopEvent:
        self.worked += 1
        return StopEvent(result="worked")


@on_each_backend
@pytest.mark.parametrize(
    "result", [Made(name="x"), [Job(name="y")], 3], ids=["event", "list", "int"]
)
def test_a_result_is_checked_before_the_sends_are_out(backend, result):
    """A step whose result is refused has sent nothing, and begins again alone."""

    async def main() -> None:
        workflow = Held(result)
        handler = workflow.run()
        with pytest.raises(WorkflowRuntimeError):
            await handler
        steps = through_json(handler.snapshot())["run"]["steps"]

        assert list(steps) == ["lead"]
        assert workflow.worked == 0

        mended = Held(None)
        mended.result = Job(name="mended")

        assert await mended.resume(handler.snapshot()) == "worked"

    run_virtually(backend, main)


# -- one reading of the clock ---------------------------------------------------------------------------


class Slow(Exception):
    """Has a note added while time passes."""

    def __repr__(self) -> str:
        jump_clock(1)
        return "Slow()"


class Timed(Workflow):
    @step(retry=Retry(stop=2, wait=5))
    async def fail(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await anyio.sleep(2)
        raise Slow

    @catch_error
    async def recover(self, ctx: Context, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=ev)


@on_each_backend
def test_a_failure_is_dated_once(backend):
    """Everything that is decided about a failure goes by one reading of the clock."""

    async def main() -> None:
        failed = await Timed().run()

        assert failed.elapsed_seconds == 2 + 5 + 2

    run_virtually(backend, main)


# -- many events that had arrived -------------------------------------------------------------------------


class Late(Workflow):
    """Counts what came in before it had begun."""

    @step
    async def begin(self, ev: StartEvent) -> Job | None:
        return None

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Job) -> StopEvent | None:
        found = ctx.collect_events(ev, [Job] * 300)
        return None if found is None else StopEvent(result=[job.name for job in found])


@on_each_backend
def test_what_had_arrived_is_there_in_order(backend):
    """Events that were sent before the run began come with its snapshot, in their order."""

    async def main() -> None:
        workflow = Late()
        async with workflow.run() as handler:
            for number in range(300):
                handler.send_event(Job(name=str(number)))
            snapshot = through_json(handler.snapshot())
            handler.cancel()

        assert len(snapshot["arrived"]) == 300
        assert await workflow.resume(snapshot) == [str(number) for number in range(300)]

    run_virtually(backend, main)
