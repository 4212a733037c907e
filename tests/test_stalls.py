"""Stalls: a run that can never end says so at once, and says what is missing (P12)."""

from __future__ import annotations

import contextlib

import anyio
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    step,
)
from tests.helpers import Done, Item, nothing_left, on_each_backend, run_virtually


class Left(Event):
    pass


class Right(Event):
    pass


class Lonely(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Left | Right:
        return Left()

    @step
    async def both(self, a: Left, b: Right) -> StopEvent:
        return StopEvent()


class Collecting(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Left | Right | None:
        for _ in range(2):
            ctx.send_event(Left())

    @step
    async def collect(self, ctx: Context, ev: Left | Right) -> StopEvent | None:
        if ctx.collect_events(ev, [Left, Left, Left, Right]) is None:
            return None
        return StopEvent()


class Ending(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(number=1)

    @step
    async def end(self, ev: Item) -> StopEvent | None:
        return None


class LonelyInFan(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=1), Item(number=2)]

    @step
    async def split(self, ev: Item) -> Left | Right:
        return Left()

    @step
    async def both(self, a: Left, b: Right) -> Done:
        return Done(number=1)

    @step
    async def end(self, evs: list[Done]) -> StopEvent | None:
        return None if not evs else StopEvent()


@on_each_backend
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Lonely, ["Lonely.both", "Right"]),
        (Collecting, ["Collecting.collect", "1 x Left", "1 x Right"]),
        (Ending, []),
        (LonelyInFan, ["LonelyInFan.both", "Right"]),
    ],
)
def test_stuck_run_says_so_at_once_and_what_is_lacking(backend, kind, told):
    """P12: without waiting for its timeout, and it names each join that still waits."""

    async def main():
        handler = kind(timeout=1_000).run(run_id="r-4")
        with nothing_left(), pytest.raises(WorkflowStalledError) as caught:
            await handler

        assert anyio.current_time() == 0
        assert "r-4" in str(caught.value)
        for part in told:
            assert part in str(caught.value)
            assert part in "; ".join(caught.value.missing)
        assert bool(caught.value.missing) == bool(told)
        assert handler.status == "failed"
        assert isinstance(caught.value, WorkflowRuntimeError)

    run_virtually(backend, main)


class Asking(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prompt="?")

    @step
    async def end(self, ev: HumanResponseEvent) -> StopEvent | None:
        return StopEvent(result=ev.answer) if ev.answer else None


@on_each_backend
def test_run_that_waits_for_a_person_is_not_stuck_and_may_become_so(backend):
    """P12: what can come from outside is waited for; once it has come, nothing is."""

    async def main():
        async with Asking(timeout=1_000).run() as handler:
            await anyio.sleep(500)
            assert handler.status == "idle"
            handler.send_event(HumanResponseEvent(answer="yes"))
            assert await handler == "yes"

        began = anyio.current_time()
        async with Asking(timeout=1_000).run() as handler:
            await anyio.sleep(500)
            handler.send_event(HumanResponseEvent(answer=""))
            with pytest.raises(WorkflowStalledError):
                await handler
        assert anyio.current_time() - began == pytest.approx(500)

        with pytest.raises(WorkflowTimeoutError, match="answer from outside"):
            await Asking(timeout=10).run()

    run_virtually(backend, main)


@on_each_backend
def test_run_with_a_step_at_work_is_not_stuck(backend):
    """P12: as long as anything runs, however slowly, something can still come from it."""

    async def main():
        class Slow(Workflow):
            @step
            async def begin(self, ctx: Context, ev: StartEvent) -> Left | Right | None:
                ctx.send_event(Left())
                await anyio.sleep(100)
                ctx.send_event(Right())

            @step
            async def both(self, a: Left, b: Right) -> StopEvent:
                return StopEvent(result="result")

        assert await Slow().run() == "result"

    run_virtually(backend, main)


@pytest.mark.anyio
@pytest.mark.peer("edge 24")
async def test_run_that_can_never_end_fails_at_once_without_a_timeout():
    """P12: nothing pending and no one asked is an error, not a hang."""

    class Ending(Workflow):
        @step
        async def end(self, ev: StartEvent) -> StopEvent | None:
            return None

    async with Ending(timeout=None).run() as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(WorkflowStalledError, match="can never end"):
            await handler

    assert [type(event) for event in events] == [WorkflowFailedEvent]


class Mid(Event):
    pass


class Answer(HumanResponseEvent):
    pass


@pytest.mark.anyio
async def test_start_event_that_starts_no_step_stalls_the_run():
    """P12: a start event that only fills a place of a join leaves nothing that could happen."""

    class Lonely(Workflow[None]):
        @step
        async def pair(self, a: StartEvent, b: Mid) -> Mid | StopEvent:
            return StopEvent()

    with anyio.fail_after(2), pytest.raises(WorkflowStalledError) as caught:
        await Lonely().run()

    assert caught.value.missing == ("Lonely.pair lacks Mid",)


@pytest.mark.anyio
async def test_answer_too_many_answers_no_later_question():
    """P12: a run that has just asked is idle, however often it was answered before."""

    class Twice(Workflow[str]):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent(n=1)

        @step
        async def hear(self, ev: Answer) -> InputRequiredEvent | StopEvent | None:
            if ev.text == "first":
                return InputRequiredEvent(n=2)
            return StopEvent(result=ev.text) if ev.text == "second" else None

    async with Twice().run() as handler:
        async for event in handler.stream_events():
            if not isinstance(event, InputRequiredEvent):
                continue
            if event.n == 1:
                handler.send_event(Answer(text="noise"))
                handler.send_event(Answer(text="first"))
            else:
                await anyio.wait_all_tasks_blocked()
                assert handler.status == "idle"
                handler.send_event(Answer(text="second"))

        assert await handler == "second"


@on_each_backend
def test_a_question_that_nobody_will_answer_any_more_keeps_no_run_alive(backend):
    """P12: neither a wait that has timed out, nor one whose answer came before the question."""

    class Patient(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            if ev.early:
                await anyio.sleep(1)
            with contextlib.suppress(WorkflowTimeoutError):
                question = InputRequiredEvent(prefix="?")
                await ctx.wait_for_event(HumanResponseEvent, question, timeout=1)

    async def main():
        with pytest.raises(WorkflowStalledError):
            await Patient().run(early=False)
        with pytest.raises(WorkflowStalledError):
            async with Patient().run(early=True) as handler:
                await anyio.sleep(0.5)
                handler.send_event(HumanResponseEvent(response="x"))
                await handler

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_a_branch_that_another_task_of_the_step_cancels_is_no_stall():
    """P12: a step that still runs can free itself."""

    class Cancelling(Workflow):
        @step(num_workers=1)
        async def only(self, ctx: Context, ev: StartEvent | Item) -> Item | StopEvent | None:
            if isinstance(ev, Item):
                return None
            branch = ctx.send_event(Item(number=1))
            async with anyio.create_task_group() as group:
                group.start_soon(branch.wait)
                await anyio.sleep(0.005)
                branch.cancel()
            return StopEvent(result="free")

    assert await Cancelling().run() == "free"


class Question(InputRequiredEvent):
    pass


class Early(HumanResponseEvent):
    pass


@on_each_backend
def test_an_answer_to_somebody_else_leaves_the_question_open(backend):
    """P12: an answer that no one waits for yet is kept, and the run still waits for its own."""

    class Form(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Question:
            return Question()

        @step
        async def listen(self, ctx: Context, ev: Answer) -> StopEvent:
            early = await ctx.wait_for_event(Early)
            return StopEvent(result=(ev.text, early.text))

    async def main():
        async with Form().run() as handler:
            await anyio.sleep(1)
            handler.send_event(Early(text="known"))
            await anyio.sleep(1)
            handler.send_event(Answer(text="ann"))

        assert handler.result() == ("ann", "known")

    run_virtually(backend, main)
