"""Waiting in a step: ``ctx.wait_for_event``, answered from outside or by other steps."""

from __future__ import annotations

import asyncio
from contextlib import suppress

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
    UnhandledEvent,
    Workflow,
    WorkflowIdleEvent,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
    step,
)
from tests.helpers import Asked, Fan, Said, Single, wait_until_idle


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
async def test_step_continues_where_it_waited():
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


@pytest.mark.anyio
async def test_wait_for_any_event_is_answered_from_outside():
    """A6: an open wait takes an event of its class from outside, whatever class that is."""
    async with Plain().run() as handler:
        await until(lambda: handler.status == "idle")
        handler.send_event(Approved(by="ann"))

        assert await handler == "ann"


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_declared_event_may_come_early():
    """A6: an event of a class in `waits_for` is kept until a step waits for it."""
    async with Declared().run() as handler:
        handler.send_event(Tick(n=3))

        assert await handler == 3


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_wait_is_answered_by_another_step():
    """A6: the graph knows a wait by the source of its step, and the other step's event comes."""
    assert await Inner().run() == 7


@pytest.mark.anyio
async def test_wait_that_nothing_can_end_stalls_at_once():
    """A6, P12: where no step is left that could make the event, the run stalls and says for what."""
    with pytest.raises(WorkflowStalledError, match=r"1 waiting for Tick\(\)"):
        await Fruitless().run()


@pytest.mark.anyio
async def test_event_that_came_before_the_wait_is_told_when_the_run_stalls():
    """A8, P12: an event of a step never goes to a wait begun later; the stall says that it came."""

    class TooSoon(Workflow[int]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Tick:
            ctx.send_event(Tick(n=1))
            return StopEvent(result=(await ctx.wait_for_event(Tick)).n)

    with pytest.raises(WorkflowStalledError, match="Tick was sent once when no wait for it was"):
        await TooSoon().run()


@pytest.mark.anyio
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


@pytest.mark.anyio
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


@pytest.mark.anyio
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


@pytest.mark.anyio
@pytest.mark.parametrize(
    "wrong", [Approved, [int], "Approved", [StopEvent], [StartEvent], None, [None]]
)
async def test_wrong_declaration_of_a_wait_is_refused(wrong):
    """P13: `waits_for` takes a list of event classes, which neither begin nor end a run."""
    with pytest.raises(WorkflowValidationError, match="waits_for"):
        step(waits_for=wrong)


@pytest.mark.anyio
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


@pytest.mark.anyio
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


@pytest.mark.anyio
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


@pytest.mark.anyio
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


@pytest.mark.anyio
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
@pytest.mark.anyio
async def test_an_event_of_any_class_reaches_the_wait_of_a_child():
    """A6: what is sent to a run goes to a wait of a child, or of its child, if it is open and fits."""
    async with Top().run() as handler:
        await wait_until_idle()
        with pytest.raises(WorkflowRuntimeError, match="Parcel"):
            handler.send_event(Parcel(text="of another"))
        handler.send_event(Parcel(text="mine"))

        assert await handler == "mine"


@pytest.mark.anyio
@pytest.mark.peer("note 2")
async def test_wait_is_no_exception_that_a_step_could_catch():
    """``try ... except Exception`` around a wait catches nothing, and the wait continues."""
    caught: list[Exception] = []

    async def ask(ctx):
        try:
            return (await ctx.wait_for_event(Said, Asked(name="ann"))).text
        except Exception as error:
            caught.append(error)
            raise

    async with Single(ask).run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, Asked):
                await wait_until_idle()
                handler.send_event(Said(name="ann", text="aye"))
        assert await handler == "aye"

    assert caught == []


@pytest.mark.anyio
@pytest.mark.peer("note 2")
async def test_two_waits_in_a_group_get_answers_in_any_order():
    """Waits in tasks of a group register at once; the answer to the second may come first."""
    got: dict[str, str] = {}

    async def ask(ctx):
        async def one(name):
            got[name] = (await ctx.wait_for_event(Said, requirements={"name": name})).text

        async with anyio.create_task_group() as group:
            group.start_soon(one, "ann")
            group.start_soon(one, "bob")

    async with Single(ask).run() as handler:
        handler.send_event(Said(name="bob", text="second"))
        handler.send_event(Said(name="ann", text="first"))
        await handler

    assert got == {"ann": "first", "bob": "second"}


@pytest.mark.anyio
@pytest.mark.peer("users 37", "users 38")
async def test_parallel_invocations_of_a_step_wait_each_for_its_own():
    """A wait belongs to its task; none shares an identity with another."""

    async def ask(ctx, number):
        answer = await ctx.wait_for_event(
            Said, Asked(name=str(number)), requirements={"name": str(number)}
        )
        assert answer.text == f"to {number}"

    async with Fan(ask, count=5).run() as handler:
        asked = []
        async for event in handler.stream_events():
            if isinstance(event, Asked):
                asked.append(event.name)
                if len(asked) == 5:
                    for name in reversed(asked):
                        handler.send_event(Said(name=name, text=f"to {name}"))

        assert sorted(asked) == ["0", "1", "2", "3", "4"]
        assert await handler == [0, 1, 2, 3, 4]


@pytest.mark.anyio
@pytest.mark.peer("row 22")
async def test_answer_that_nobody_waits_for_is_told_and_kept():
    """Who reads internal events sees it; who waits for it later gets it."""

    async def ask(ctx):
        await ctx.wait_for_event(Said, requirements={"name": "go"})
        return (await ctx.wait_for_event(Said)).text

    async with Single(ask).run() as handler:
        with handler.stream_events(expose_internal=True) as reader:
            handler.send_event(Said(name="early", text="kept"))
            await wait_until_idle()
            handler.send_event(Said(name="go", text=""))
            told = [event async for event in reader if isinstance(event, UnhandledEvent)]

        assert await handler == "kept"
        assert [event.event.name for event in told] == ["early"]
