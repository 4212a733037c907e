"""Waiting for any event: answers from outside, events of other steps, and runs that can end no more."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    UnhandledEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
    step,
)
from tests.helpers import wait_until_idle


pytestmark = pytest.mark.anyio


class Approved(Event):
    by: str


class Part(Event):
    n: int


class Tick(Event):
    n: int


async def until(condition):
    """Give the others turns until something is so."""
    for _ in range(1000):
        if condition():
            return
        await anyio.lowlevel.checkpoint()
    pytest.fail("it never came to be")


# -- answers from outside --------------------------------------------------------------------------


class Plain(Workflow[str]):
    """Waits for an event that is no HumanResponseEvent, and that no step takes or makes."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        approved = await ctx.wait_for_event(Approved, InputRequiredEvent(prefix="well?"))
        return StopEvent(result=approved.by)


class Declared(Workflow[str]):
    """Waits for an event that another step makes as well, and says that it comes from outside."""

    @step(waits_for=[Tick])
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent | Part:
        tick = await ctx.wait_for_event(Tick)
        return StopEvent(result=tick.n)

    @step
    async def make(self, ev: Part) -> Tick: ...


async def test_wait_for_any_event_is_answered_from_outside():
    """A6: an open wait takes an event of its class from outside, whatever class that is."""
    async with Plain().run() as handler:
        await until(lambda: handler.status == "idle")
        handler.send_event(Approved(by="ann"))

        assert await handler == "ann"


@pytest.mark.parametrize("kind", [Approved, Tick])
async def test_event_without_a_taker_is_refused_with_the_way_to_declare_it(kind):
    """A6: not declared and no wait open, it is an error that says `waits_for`."""

    class Later(Workflow[None]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await anyio.sleep_forever()
            await ctx.wait_for_event(kind)
            return StopEvent()

    event = kind(by="ann") if kind is Approved else kind(n=1)
    async with Later().run() as handler:
        for _ in range(2):  # before the run has begun, and after
            with pytest.raises(WorkflowRuntimeError, match=rf"waits_for=\[{kind.__name__}\]"):
                handler.send_event(event)
            await until(lambda: handler.status == "running")
            await anyio.wait_all_tasks_blocked()
        await handler.cancel()
        with suppress(WorkflowRuntimeError):
            await handler


async def test_declared_event_may_come_early():
    """A6: an event of a class in `waits_for` is kept until a step waits for it."""
    async with Declared().run() as handler:
        handler.send_event(Tick(n=3))

        assert await handler == 3


async def test_wait_for_a_declared_class_keeps_the_run_idle():
    """A6, P12: a declared class may come from outside, though a step of the run makes it too."""
    async with Declared().run() as handler:
        await until(lambda: handler.status == "idle")
        handler.send_event(Tick(n=1))

        assert await handler == 1


class Inner(Workflow[int]):
    """Two steps: one waits for what only the other one makes."""

    makes = True

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Part]:
        return [Part(n=0), Part(n=1)]

    @step
    async def work(self, ctx: Context, ev: Part) -> Tick | StopEvent | None:
        if ev.n == 0:
            return StopEvent(result=(await ctx.wait_for_event(Tick)).n)
        await anyio.wait_all_tasks_blocked()
        return Tick(n=7) if self.makes else None


class Fruitless(Inner):
    makes = False


async def test_wait_is_answered_by_another_step():
    """A6: the graph knows a wait by the source of its step, and the other step's event comes."""
    assert await Inner().run() == 7


async def test_wait_that_nothing_can_end_stalls_at_once():
    """A6, P12: where no step is left that could make the event, the run stalls and says for what."""
    with pytest.raises(WorkflowStalledError, match=r"1 waiting for Tick\(\)"):
        await Fruitless().run()


async def test_event_that_came_before_the_wait_is_told_when_the_run_stalls():
    """A8, P12: an event of a step never goes to a wait begun later; the stall says that it came."""

    class TooSoon(Workflow[int]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Tick:
            ctx.send_event(Tick(n=1))
            return StopEvent(result=(await ctx.wait_for_event(Tick)).n)

    with pytest.raises(WorkflowStalledError, match="Tick was sent once when no wait for it was"):
        await TooSoon().run()


async def test_inner_wait_takes_an_answer_from_outside_while_it_is_open():
    """A6: a wait for what a step makes takes such an event from outside too."""

    class Slow(Workflow[int]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> list[Part]:
            return [Part(n=0), Part(n=1)]

        @step
        async def work(self, ctx: Context, ev: Part) -> Tick | StopEvent | None:
            if ev.n:
                await anyio.sleep_forever()
            return StopEvent(result=(await ctx.wait_for_event(Tick)).n)

    async with Slow().run() as handler:
        await anyio.wait_all_tasks_blocked()
        assert handler.status == "running"
        handler.send_event(Tick(n=5))

        assert await handler == 5


@pytest.mark.parametrize("how", ["task", "timeout", "person", "native"])
async def test_wait_that_something_may_yet_end_does_not_stall(how):
    """A6: another task of the step, a timer or a person may yet bring the event about."""

    class Busy(Workflow[int]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Tick | Part | StopEvent:
            async def shout():
                await anyio.wait_all_tasks_blocked()
                ctx.send_event(Tick(n=1))

            if how == "timeout":
                with suppress(WorkflowTimeoutError):
                    await ctx.wait_for_event(Tick, timeout=0.005)
                return StopEvent(result=1)
            if how == "person":
                ctx.send_event(Part(n=1))
                return StopEvent(result=(await ctx.wait_for_event(Tick)).n)
            if how == "native":
                with suppress(RuntimeError):
                    asyncio.get_running_loop()
                    task = asyncio.create_task(shout())
                    tick = await ctx.wait_for_event(Tick)
                    await task
                    return StopEvent(result=tick.n)
            async with anyio.create_task_group() as group:
                group.start_soon(shout)
                tick = await ctx.wait_for_event(Tick)
            return StopEvent(result=tick.n)

        @step
        async def ask(self, ctx: Context, ev: Part) -> Tick:
            return Tick(n=(await ctx.wait_for_event(HumanResponseEvent)).n)

    async with Busy().run() as handler:
        if how == "person":
            await until(lambda: handler.status == "idle")
            handler.send_event(HumanResponseEvent(n=1))
        assert await handler == 1


async def test_undeclared_event_of_a_step_reaches_an_open_wait():
    """A6: a declared send of a class that only a wait takes, which no source shows, is delivered."""

    async def wait(ctx, kind):
        return await ctx.wait_for_event(kind)

    class Helped(Workflow[int]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> list[Part]:
            return [Part(n=0), Part(n=1)]

        @step
        async def work(self, ctx: Context, ev: Part) -> Tick | StopEvent | None:
            if ev.n == 0:
                return StopEvent(result=(await wait(ctx, Tick)).n)
            await anyio.wait_all_tasks_blocked()
            ctx.send_event(Tick(n=2))
            return None

    with pytest.raises(WorkflowValidationError, match="Tick, which the step work makes"):
        Helped()
    assert await Helped(skip_graph_checks=["terminal_event"]).run() == 2


@pytest.mark.parametrize(
    "wrong", [Approved, [int], "Approved", [StopEvent], [StartEvent], None, [None]]
)
async def test_wrong_declaration_of_a_wait_is_refused(wrong):
    """P13: `waits_for` takes a list of event classes, which neither begin nor end a run."""
    with pytest.raises(WorkflowValidationError, match="waits_for"):
        step(waits_for=wrong)


# -- events of steps -------------------------------------------------------------------------------


async def test_join_and_wait_both_get_the_event_of_a_member():
    """A8: an event sent by a step goes to its steps and to every open wait; the join counts it once."""
    got = []

    class Joins(Workflow[list[int]]):
        @step
        async def begin(self, ev: StartEvent) -> list[Part]:
            return [Part(n=n) for n in range(4)]

        @step
        async def work(self, ctx: Context, ev: Part) -> Tick:
            if ev.n < 2:  # two waits for one and the same event
                got.append(await ctx.wait_for_event(Tick, requirements={"n": 3}))
            elif ev.n == 3:
                await anyio.wait_all_tasks_blocked()
            return Tick(n=ev.n)

        @step
        async def end(self, evs: list[Tick]) -> StopEvent:
            return StopEvent(result=sorted(ev.n for ev in evs))

    assert await Joins().run() == [0, 1, 2, 3]
    assert [event.n for event in got] == [3, 3]
    assert got[0] is got[1]


async def test_answer_from_outside_goes_to_the_first_wait_that_fits():
    """A8: one answer answers one wait, the first, and no step that takes its class."""
    heard = []

    class Both(Workflow[list[str]]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            says = []

            async def ask(name):
                says.append((name, (await ctx.wait_for_event(HumanResponseEvent)).says))

            async with anyio.create_task_group() as group:
                for name in ("a", "b"):
                    group.start_soon(ask, name)
                    await anyio.wait_all_tasks_blocked()
            return StopEvent(result=says)

        @step
        async def hear(self, ev: HumanResponseEvent) -> None:
            heard.append(ev)

    async with Both().run() as handler:
        for says in ("one", "two"):
            await anyio.wait_all_tasks_blocked()
            handler.send_event(HumanResponseEvent(says=says))
        assert await handler == [("a", "one"), ("b", "two")]
    assert heard == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_answer_that_a_cancelled_wait_did_not_take_goes_to_the_steps():
    """An answer from outside is never lost: the next wait, or else a step, takes it."""

    class GivesUp(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> None:
            task = asyncio.create_task(ctx.wait_for_event(HumanResponseEvent))
            await anyio.wait_all_tasks_blocked()
            handler.send_event(HumanResponseEvent(says="late"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        @step
        async def hear(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=ev.says)

    async with GivesUp().run() as handler:
        assert await handler == "late"


async def test_person_is_awaited_through_a_branch():
    """A run whose steps wait for a person, or for the branch that does, is idle."""

    class Outer(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Part | StopEvent:
            await ctx.send_event(Part(n=1)).wait()
            return StopEvent(result=self.says)

        @step
        async def ask(self, ctx: Context, ev: Part) -> None:
            self.says = (await ctx.wait_for_event(HumanResponseEvent)).says

    async with Outer().run() as handler:
        await until(lambda: handler.status == "idle")
        handler.send_event(HumanResponseEvent(says="aye"))

        assert await handler == "aye"


async def test_answer_that_nothing_takes_yet_is_told_to_readers():
    """A6: an event of a declared class that comes too early is told to readers who ask."""

    class Late(Workflow[int]):
        @step(waits_for=[Tick])
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await anyio.wait_all_tasks_blocked()
            handler.send_event(Tick(n=1))
            return StopEvent(result=(await ctx.wait_for_event(Tick)).n)

    async with Late().run() as handler:
        events = handler.stream_events(expose_internal=True)
        told = [event.event.n async for event in events if isinstance(event, UnhandledEvent)]

        assert await handler == 1
    assert told == [1]


# -- through a parent ---------------------------------------------------------------------------------


class Parcel(Event):
    text: str


class Deeper(Workflow):
    @step(waits_for=[Parcel])
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        parcel = await ctx.wait_for_event(Parcel, requirements={"text": "mine"})
        return StopEvent(result=parcel.text)


class Deep(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(Deeper()))


class Top(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(Deep()))


@pytest.mark.anyio
async def test_an_event_of_any_class_reaches_the_wait_of_a_child():
    """A6: what is sent to a run goes to a wait of a child, or of its child, if it is open and fits."""
    async with Top().run() as handler:
        await wait_until_idle()
        with pytest.raises(WorkflowRuntimeError, match="Parcel"):
            handler.send_event(Parcel(text="of another"))
        handler.send_event(Parcel(text="mine"))

        assert await handler == "mine"
