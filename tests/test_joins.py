"""Joins of one event for each parameter, ``a: A, b: B``: which event goes to which parameter."""

from __future__ import annotations

import json

import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowStalledError,
    step,
)
from tests.helpers import wait_until_idle


class Part(Event):
    n: int


class Special(Part):
    pass


class Other(Event):
    n: int


class Joined(Event):
    parts: tuple[int, ...]


class Sends(Workflow):
    """Sends the parts whose numbers it is given, one after the other."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Part | None:
        for n in ev.numbers:
            ctx.send_event(Part(n=n))
        return None


class Two(Sends):
    @step
    async def join(self, first: Part, second: Part) -> StopEvent:
        return StopEvent(result=(first.n, second.n))


class Three(Sends):
    @step
    async def join(self, a: Part, b: Part, c: Part) -> StopEvent:
        return StopEvent(result=(a.n, b.n, c.n))


@pytest.mark.anyio
@pytest.mark.parametrize(("workflow", "numbers"), [(Two, (1, 2)), (Three, (3, 1, 2))])
async def test_parameters_of_one_class_get_the_events_in_the_order_of_arrival(workflow, numbers):
    """Each event goes to one parameter, the first to come to the first one."""
    assert await workflow().run(numbers=numbers) == numbers


@pytest.mark.anyio
async def test_one_event_does_not_fill_two_parameters():
    """P12: with one event of the two the run is stalled, and the join lacks the other."""
    with pytest.raises(WorkflowStalledError) as caught:
        await Two().run(numbers=[1])

    assert caught.value.missing == ("Two.join lacks Part",)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("numbers", "rounds"), [([1, 2, 3, 4], [(1, 2), (3, 4)]), ([1, 2, 3], [(1, 2)]), ([], [])]
)
async def test_further_events_make_further_rounds(numbers, rounds):
    """Every second event runs the join of two; what is left over waits."""
    seen = []

    class Rounds(Sends):
        @step(num_workers=1)
        async def join(self, first: Part, second: Part) -> StopEvent | None:
            seen.append((first.n, second.n))
            return None

    with pytest.raises(WorkflowStalledError):
        await Rounds().run(numbers=numbers)

    assert seen == rounds


@pytest.mark.anyio
@pytest.mark.parametrize("order", ["pso", "spo", "ops", "sos", "oss"])
async def test_subclasses_take_what_place_there_is(order):
    """An event of a subclass goes to the parameter of its class, else to one of a parent."""

    class Mixed(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Part | Special | Other | None:
            kinds = {"p": Part, "s": Special, "o": Other}
            for n, kind in enumerate(ev.order):
                ctx.send_event(kinds[kind](n=n))
            return None

        @step
        async def join(self, any_part: Part, other: Other, special: Special) -> StopEvent:
            return StopEvent(result=(any_part.n, other.n, special.n))

    any_part, other, special = await Mixed().run(order=order)

    assert (order[other], order[special]) == ("o", "s")
    assert sorted((any_part, other, special)) == [0, 1, 2]
    if "p" not in order:
        assert special < any_part  # the older one has its own place


@pytest.mark.anyio
async def test_no_event_is_kept_from_a_place_that_it_could_take():
    """Two of each class are there for `a: A, b: A, c: B`, however many rounds went before."""

    class Rounds(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Part | Other | None:
            for n in range(4):
                ctx.send_event(Part(n=n))
            for n in range(2):
                ctx.send_event(Other(n=n))
            return None

        @step(num_workers=1)
        async def join(self, a: Part, b: Part, c: Other) -> Joined:
            return Joined(parts=(a.n, b.n, c.n))

        @step
        async def end(self, a: Joined, b: Joined) -> StopEvent:
            return StopEvent(result=[a.parts, b.parts])

    assert await Rounds().run() == [(0, 1, 0), (2, 3, 1)]


@pytest.mark.anyio
async def test_within_a_fan_out_the_events_of_each_member_meet():
    """Members of a fan-out that is joined further on fill the parameters of one join in it."""

    class Inside(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Part]:
            return [Part(n=n) for n in range(6)]

        @step(num_workers=1)
        async def pair(self, first: Part, second: Part) -> Joined:
            return Joined(parts=(first.n, second.n))

        @step
        async def end(self, evs: list[Joined]) -> StopEvent:
            return StopEvent(result=[ev.parts for ev in evs])

    assert await Inside().run() == [(0, 1), (2, 3), (4, 5)]


@pytest.mark.anyio
async def test_a_further_attempt_gets_the_same_events():
    """A retry binds nothing anew."""
    seen = []

    class Tries(Sends):
        @step(retry=Retry(stop=3))
        async def join(self, first: Part, second: Part) -> StopEvent:
            seen.append((first.n, second.n))
            if len(seen) < 3:
                raise OSError
            return StopEvent(result=seen)

    assert await Tries().run(numbers=[1, 2]) == [(1, 2)] * 3


class Asked(Workflow):
    """A join of two parts and an answer."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Part | Special | None:
        ctx.send_event(Part(n=1))
        ctx.send_event(Special(n=2))
        ctx.send_event(Part(n=3))
        return None

    @step
    async def join(self, first: Part, second: Part, answer: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=(first.n, second.n, answer.n))


@pytest.mark.anyio
async def test_a_snapshot_keeps_what_waits_for_which_parameter():
    """What waits in a join is the same in a run that continues, whatever classes repeat."""
    workflow = Asked()
    async with workflow.run() as handler:
        await wait_until_idle()
        saved = json.loads(json.dumps(handler.snapshot()))
        await handler.cancel("saved")

    async with workflow.resume(saved) as resumed:
        resumed.send_event(HumanResponseEvent(n=9))

        assert await resumed == (1, 2, 9)
