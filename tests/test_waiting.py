"""Waiting in the middle of a step: ``ctx.wait_for_event``."""

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
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowIdleEvent,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    step,
)


class Answer(HumanResponseEvent):
    to: str
    text: str


class Question(InputRequiredEvent):
    to: str


class Noise(Event):
    n: int


class Asks(Workflow[list[str]]):
    """One step that asks several people at once, and counts how often its body runs."""

    def __init__(self, *people, **options):
        super().__init__(**options)
        self.people = people
        self.begun = 0

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.begun += 1
        texts = {}

        async def ask_one(name):
            answer = await ctx.wait_for_event(Answer, Question(to=name), requirements={"to": name})
            texts[name] = answer.text

        async with anyio.create_task_group() as group:
            for name in self.people:
                group.start_soon(ask_one, name)
        return StopEvent(result=[texts[name] for name in self.people])


async def answer_all(handler, order=None):
    asked = []
    async for event in handler.stream_events():
        if isinstance(event, Question):
            asked.append(event.to)
            if order is None:
                handler.send_event(Answer(to=event.to, text=f"{event.to} says yes"))
            elif sorted(asked) == sorted(order):
                for name in order:
                    handler.send_event(Answer(to=name, text=f"{name} says yes"))


@pytest.mark.anyio
async def test_step_goes_on_where_it_waited():
    """A wait is a suspension: the body of the step runs once, and gets the answer in its middle."""
    workflow = Asks("ann")
    async with workflow.run() as handler:
        await answer_all(handler)

        assert await handler == ["ann says yes"]
    assert workflow.begun == 1


@pytest.mark.anyio
async def test_several_waits_in_one_step_get_each_its_own():
    """Requirements tell the answers apart, in whatever order they come."""
    workflow = Asks("ann", "bob", "cy")
    async with workflow.run() as handler:
        await answer_all(handler, ["cy", "ann", "bob"])

        assert await handler == ["ann says yes", "bob says yes", "cy says yes"]
    assert workflow.begun == 1


@pytest.mark.anyio
async def test_run_is_idle_while_a_step_waits():
    """Nothing else runs: the run is idle, says so to who asks, and is not stalled."""
    async with Asks("ann").run() as handler:
        events = handler.stream_events(expose_internal=True)
        await anyio.wait_all_tasks_blocked()

        assert handler.status == "idle"

        handler.send_event(Answer(to="ann", text="x"))
        assert await handler == ["x"]
        assert [type(event) async for event in events].count(WorkflowIdleEvent) == 1


@pytest.mark.anyio
async def test_answer_that_comes_early_is_kept():
    """An answer of a class that only waits take is there for the first one that fits."""
    async with Asks("ann").run() as handler:
        handler.send_event(Answer(to="bob", text="for nobody"))
        handler.send_event(Answer(to="ann", text="early"))

        assert await handler == ["early"]


@pytest.mark.anyio
async def test_nobody_answers_in_time():
    """A wait has a timeout of its own, catchable in the step, and says what it waited for."""

    class Patient(Workflow[str]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                await ctx.wait_for_event(Answer, requirements={"to": "ann"}, timeout=0.005)
            except WorkflowTimeoutError as error:
                return StopEvent(result=str(error))

    assert await Patient().run() == "no Answer(to='ann') came within 0.005 s"


@pytest.mark.trio
async def test_timeout_is_on_the_clock_of_the_event_loop(autojump_clock):
    """P10: an hour of waiting passes at once under a mock clock."""

    class Patient(Workflow[float]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(TimeoutError):
                await ctx.wait_for_event(Answer, timeout=3600)
            return StopEvent(result=trio.current_time())

    began = trio.current_time()

    assert await Patient().run() == began + 3600


class Hears(Workflow[int]):
    """A step waits for what another one sends, though a third takes that class too."""

    @step
    async def listen(self, ctx: Context, ev: StartEvent) -> StopEvent | Noise:
        ctx.send_event(Noise(n=1))
        noise = await ctx.wait_for_event(Noise, requirements={"n": 2})
        return StopEvent(result=noise.n)

    @step
    async def shout(self, ev: Noise) -> Noise | None:
        return Noise(n=ev.n + 1) if ev.n < 9 else None


@pytest.mark.anyio
async def test_event_from_within_the_run():
    """Who waits gets a fitting event before the steps that take its class; others go their way."""
    assert await Hears().run() == 2


async def cancelled_in_its_wait(cancel):
    """Cancel a wait when its answer has come; return what it got, and what the step got at last."""
    told = []

    class Twice(Workflow[str]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async def first():
                told.append((await ctx.wait_for_event(Answer)).text)

            await cancel(first, handler)
            if told:
                return StopEvent(result=told[0])
            return StopEvent(result=(await ctx.wait_for_event(Answer, timeout=1)).text)

    handler = Twice().run()
    async with handler:
        result = await handler
    return told, result


@pytest.mark.anyio
async def test_wait_cancelled_by_a_scope_loses_no_answer():
    """The answer came, and the wait is cancelled in that tick: this wait has it, or the next."""

    async def cancel(first, handler):
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.wait_all_tasks_blocked()
            handler.send_event(Answer(to="x", text="once"))
            group.cancel_scope.cancel()

    _, result = await cancelled_in_its_wait(cancel)

    assert result == "once"


def test_wait_cancelled_natively_loses_no_answer():
    """The same for ``Task.cancel()``, which also reaches a task that is woken already."""

    async def cancel(first, handler):
        task = asyncio.create_task(first())
        await anyio.wait_all_tasks_blocked()
        handler.send_event(Answer(to="x", text="once"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main():
        return await cancelled_in_its_wait(cancel)

    told, result = asyncio.run(main())

    assert told == []
    assert result == "once"


@pytest.mark.anyio
async def test_wait_after_the_end_of_its_step_is_refused():
    """A task that outlives its step cannot wait in its name."""
    kept = []

    class Keeps(Workflow[None]):
        @step
        async def keep(self, ctx: Context, ev: StartEvent) -> StopEvent:
            kept.append(ctx)
            return StopEvent()

    await Keeps().run()

    with pytest.raises(
        WorkflowRuntimeError, match="the step keep has ended, so it cannot wait for"
    ):
        await kept[0].wait_for_event(Answer)


@pytest.mark.schedule_fuzz(backends=("trio", "asyncio"), seeds=range(12))
async def test_timeout_of_the_run_tells_what_was_waited_for():
    """P11: the message of the run's timeout names the step and what it waits for.

    Whichever of the run's tasks its cancellation reaches first.
    """

    class Patient(Workflow[None]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Answer, requirements={"to": "ann"})
            return StopEvent()

    with pytest.raises(
        WorkflowTimeoutError, match=r"running: ask; 1 waiting for Answer\(to='ann'\)"
    ):
        await Patient(timeout=1).run()


@pytest.mark.anyio
async def test_step_that_awaits_its_own_run_is_told_so():
    """P12: a wait that could never end is an error where it begins."""
    handlers = []

    class Own(Workflow[None]):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await handlers[0])

    async with Own().run() as handler:
        handlers.append(handler)
        with pytest.raises(WorkflowRuntimeError, match="awaits its own run"):
            await handler
