"""A step that returns None without declaring it: its branch ends, and that is told, once."""

# ruff: noqa: RET502, RET503, RET505 - these are the functions that are tried
from __future__ import annotations

import contextlib
import logging

import pytest

from sluicegate import (
    Context,
    Event,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowStalledError,
    catch_error,
    step,
)
from sluicegate._definition.graph import graph_of
from sluicegate._definition.silent_ends import silent_end


pytestmark = pytest.mark.filterwarnings("error")


class Part(Event):
    n: int


class Done(Event):
    n: int


class Other(Event):
    n: int


class Late(Event):
    n: int


class Keeps(Workflow):
    """A fan-out of which odd members end in silence."""

    @step
    async def split(self, ev: StartEvent) -> list[Part]:
        return [Part(n=n) for n in range(ev.count)]

    @step(num_workers=2)
    async def work(self, ev: Part) -> Done:
        if ev.n % 2 == 0:
            return Done(n=ev.n)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


def told(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "sluicegate"]


@pytest.mark.anyio
@pytest.mark.parametrize(("count", "kept"), [(5, [0, 2, 4]), (2, [0]), (0, [])])
async def test_none_ends_the_branch_and_the_join_counts_it_as_ended(count, kept):
    """In a fan-out the join gets what the other members made, as with a declared None."""
    assert await Keeps().run(count=count) == kept


@pytest.mark.anyio
async def test_it_is_logged_once_for_each_step_and_run(caplog):
    """One line on the logger ``sluicegate`` names the step, the run and the two ways to write it."""
    workflow = Keeps()
    with caplog.at_level(logging.WARNING, "sluicegate"):
        for name in ("first", "second"):
            await workflow.run(count=9, run_id=name)

    assert told(caplog) == [
        f"the step Keeps.work of the run {name} returned None, which its signature does not "
        "declare: its branch ends there; expected one of its events, or `| None` in the signature"
        for name in ("first", "second")
    ]


@pytest.mark.anyio
async def test_a_declared_none_is_not_logged(caplog):
    """What a signature allows is told nowhere."""

    class Allowed(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Part] | None:
            return [Part(n=1), Part(n=2)]

        @step
        async def work(self, ev: Part) -> StopEvent | None:
            return StopEvent() if ev.n == 2 else None

    await Allowed().run()

    assert told(caplog) == []


class Chain(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Part:
        return Part(n=ev.n)

    @step
    async def middle(self, ev: Part) -> Done:
        if ev.n:
            return Done(n=ev.n)

    @step
    async def end(self, ev: Done) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.anyio
async def test_a_stall_names_the_steps_that_ended_in_silence():
    """P12: where nothing is left, the error tells which step ended its branch so."""
    with pytest.raises(WorkflowStalledError) as caught:
        await Chain().run(n=0)

    assert caught.value.missing == (
        "Chain.middle returned None, which its signature does not declare, and so ended its branch",
    )
    assert "Chain.middle returned None" in str(caught.value)


@pytest.mark.anyio
async def test_a_stall_counts_how_often():
    """A step that did so several times is named once, beside what the join of it lacks."""

    class Pairs(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Part | Other]:
            return [Part(n=1), Other(n=1), Other(n=2)]

        @step
        async def left(self, ev: Part) -> Done:
            return Done(n=ev.n)

        @step
        async def right(self, ev: Other) -> Late:
            pass

        @step
        async def both(self, a: Done, b: Late) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowStalledError) as caught:
        await Pairs().run()

    assert caught.value.missing[-1] == (
        "Pairs.right returned None 2 times, which its signature does not declare, and so ended its "
        "branch"
    )
    assert caught.value.missing[0].startswith("Pairs.both lacks Late")


@pytest.mark.anyio
async def test_strict_none_fails_the_run():
    """``strict_none=True`` has such a None fail the run, which no retry and no handler prevents."""

    class Strict(Workflow):
        @step(retry=Retry(stop=3))
        async def only(self, ev: StartEvent) -> StopEvent:
            pass

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="handled")

    expected = (
        "Strict.only returned None, which it does not declare; expected it to return one of its "
        "events, or `| None` in its signature"
    )
    with pytest.raises(WorkflowRuntimeError) as caught:
        await Strict(strict_none=True).run()
    with pytest.raises(WorkflowStalledError):  # of the same class, and lenient
        await Strict().run()

    assert str(caught.value) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["thread", "handler", "sender"])
async def test_it_is_the_same_for_every_kind_of_step(what, caplog):
    """A plain ``def``, a handler of failures and a step that sends end in silence as well."""

    class Thread(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Part]:
            return [Part(n=1), Part(n=2)]

        @step
        def work(self, ev: Part) -> StopEvent:
            return StopEvent() if ev.n == 2 else None  # type: ignore[return-value]

    class Handler(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Part]:
            return [Part(n=1), Part(n=2)]

        @step
        async def work(self, ev: Part) -> StopEvent:
            if ev.n == 1:
                raise ValueError(ev.n)
            return StopEvent()

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            pass

    class Sender(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Part:
            ctx.send_event(Part(n=2))

        @step
        async def work(self, ev: Part) -> StopEvent:
            return StopEvent()

    await {"thread": Thread, "handler": Handler, "sender": Sender}[what]().run()

    assert len(told(caplog)) <= 1  # the run may be over before the other member ends


# -- as the source has it ------------------------------------------------------------------------


async def falls(self, ev: StartEvent) -> StopEvent:
    if ev.x:
        return StopEvent()


async def bare(self, ev: StartEvent) -> StopEvent:
    if not ev.x:
        return
    return StopEvent()


async def conditional(self, ev: StartEvent) -> StopEvent:
    return StopEvent() if ev.x else None


async def collects(self, ctx: Context, ev: StartEvent) -> list[Part]:
    return ctx.collect_events(ev, [Part] * 2)


async def some_cases(self, ev: StartEvent) -> StopEvent:
    match ev.x:
        case 1:
            return StopEvent()
        case 2:
            raise ValueError


async def leaves_a_loop(self, ev: StartEvent) -> StopEvent:
    while True:
        if ev.x:
            break


async def suppresses(self, ev: StartEvent) -> StopEvent:
    with contextlib.suppress(KeyError):
        return StopEvent(result=ev["x"])


async def excepts(self, ev: StartEvent) -> StopEvent:
    try:
        return StopEvent(result=ev["x"])
    except KeyError:
        pass


async def runs_out(self, ev: StartEvent) -> StopEvent:
    for each in ev.x:
        if each:
            return StopEvent()


@pytest.mark.parametrize(
    ("function", "where"),
    [
        (falls, "(at its end)"),
        (bare, "(in line "),
        (conditional, "(in line "),
        (collects, "(in line "),
        (some_cases, "(at its end)"),
        (leaves_a_loop, "(at its end)"),
        (suppresses, "(at its end)"),
        (excepts, "(at its end)"),
        (runs_out, "(at its end)"),
    ],
)
def test_each_way_to_return_an_undeclared_none_is_found(function, where):
    """`check` reads the source: a bare return, a None among others, an end that can be reached."""
    told = silent_end(step_of(function))

    assert told is not None
    assert told.startswith(f"the step only may return None {where}")
    if where == "(in line ":
        first = function.__code__.co_firstlineno
        lines = function.__code__.co_lines()
        assert (
            first
            < int(told.partition("line ")[2].partition(")")[0])
            <= max(line for _, _, line in lines if line)
        )


async def returns(self, ev: StartEvent) -> StopEvent:
    return StopEvent()


async def raises(self, ev: StartEvent) -> StopEvent:
    raise ValueError


async def both_ways(self, ev: StartEvent) -> StopEvent:
    if ev.x:
        return StopEvent(result=1)
    else:
        raise ValueError


async def every_case(self, ev: StartEvent) -> StopEvent:
    match ev.x:
        case 1:
            return StopEvent(result=1)
        case _:
            return StopEvent(result=2)


async def for_ever(self, ev: StartEvent) -> StopEvent:
    while True:
        for each in ev.x:
            if each:
                break
        if ev.y:
            return StopEvent()


async def with_finally(self, ev: StartEvent) -> StopEvent:
    try:
        ev.x()
    except KeyError as error:
        raise ValueError from error
    else:
        return StopEvent()
    finally:
        ev.y()


async def in_a_block(self, ev: StartEvent) -> StopEvent:
    async with ev.x as x:
        text = """
flush left
"""
        return StopEvent(result=x + text)


async def inner_function(self, ev: StartEvent) -> StopEvent:
    def inner():
        return None

    async def other():
        return

    return StopEvent(result=(inner, other, lambda: None))


async def declared(self, ev: StartEvent) -> StopEvent | None:
    pass


@pytest.mark.parametrize(
    "function",
    [
        returns,
        raises,
        both_ways,
        every_case,
        for_ever,
        with_finally,
        in_a_block,
        inner_function,
        declared,
    ],
)
def test_a_step_that_always_makes_an_event_is_not_blamed(function):
    """Where no way leads to None, or the signature allows it, there is nothing to tell."""
    assert silent_end(step_of(function)) is None


def step_of(function):
    members = {"only": step(function), "__qualname__": "Flow"}
    return graph_of(type("Flow", (Workflow,), members)).steps[0]
