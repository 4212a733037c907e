"""The open questions of children whose process has died, which their records alone say."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

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
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    step,
)
from tests.durable.rebuilt import run_watched, watch_over
from tests.helpers import on_each_backend


class Ask(InputRequiredEvent):
    name: str


class Given(HumanResponseEvent):
    name: str


class Passed(HumanResponseEvent):
    """An answer that a step takes, rather than a wait."""

    name: str


class Next(Event):
    path: str
    left: int


class Begin(StartEvent):
    path: str
    depth: int


KINDS = ["wait", "bare", "early", "timeout", "late", "return", "publish", "child", "twins", "race"]


class Kid(Workflow[int]):
    """Asks in every way, in an order that depends on its path, and calls children that do so, too."""

    def __init__(self, seed: int, left: int) -> None:
        super().__init__(serializable=[Ask, Given, Passed, Next])
        self.seed = seed
        self.left = left

    @step
    async def begin(self, ctx: Context, ev: Begin) -> Next:
        await ctx.store.set("depth", ev.depth)
        return Next(path=ev.path, left=self.left)

    @step
    async def go_on(self, ctx: Context, ev: Next) -> Next | Ask | StopEvent:
        if not ev.left:
            return StopEvent(result=1)
        way = random.Random(f"{self.seed} {ev.path} {ev.left}").choice(KINDS)
        following = Next(path=ev.path, left=ev.left - 1)
        name = f"{ev.path}{ev.left}"
        if way == "return":
            return Ask(name=name)
        await self.ask(ctx, way, name)
        return following

    async def ask(self, ctx: Context, way: str, name: str) -> None:
        depth = await ctx.store.get("depth")
        match way:
            case "publish":
                ctx.write_event_to_stream(Ask(name=name))
            case "bare":
                await ctx.wait_for_event(Given)
            case "early":
                await anyio.sleep(0.05)  # an answer may arrive before the wait
                await ctx.wait_for_event(Given, Ask(name=name))
            case "timeout" | "late":
                kind = Given if way == "timeout" else Passed
                try:
                    await ctx.wait_for_event(kind, Ask(name=name), timeout=0.02)
                except WorkflowTimeoutError:
                    await anyio.sleep(0.01)
            case "child" | "twins" if depth:
                async with anyio.create_task_group() as group:
                    for n in range(1 + (way == "twins")):
                        group.start_soon(self.call, ctx, f"{name}.{n}.", depth - 1)
            case "race":
                async with anyio.create_task_group() as group:
                    for n in range(2):
                        group.start_soon(self.race, ctx, f"{name}{n}", group)
            case _:
                await ctx.wait_for_event(Given, Ask(name=name))

    async def call(self, ctx: Context, path: str, depth: int) -> None:
        await ctx.run_child(Kid(self.seed, 2), path=path, depth=depth)

    async def race(self, ctx: Context, name: str, group: Any) -> None:
        await ctx.wait_for_event(Given, Ask(name=name))
        group.cancel_scope.cancel()

    @step
    async def take(self, ctx: Context, ev: Passed) -> Next:
        return Next(path=ev.name, left=1)


class Parent(Workflow[int]):
    def __init__(self, seed: int) -> None:
        super().__init__(serializable=[Ask, Given, Passed])
        self.seed = seed

    @step
    async def call(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async with anyio.create_task_group() as group:
            for n in range(2):
                group.start_soon(self.begin, ctx, f"{n}.")
        return StopEvent(result=1)

    async def begin(self, ctx: Context, path: str) -> None:
        await ctx.run_child(Kid(self.seed, 4), path=path, depth=2)


async def answer(handler: Any, chance: random.Random) -> None:
    """Answer whatever is asked, by its id or not, of either class, or before anybody asks."""
    while True:
        await anyio.sleep(chance.choice((0.0, 0.001, 0.01, 0.05)))
        given = chance.choice((Given, Given, Passed))(name="x")
        asked = handler.questions
        one = chance.choice(asked).id if asked and chance.random() < 0.6 else None
        with suppress(WorkflowRuntimeError):  # it answers none, or too late
            handler.send_event(given, question=one)


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("seed", [0, 5, 26, 30])
def test_their_records_alone_say_what_they_ask(backend, seed):
    """After every turn of a task: the questions that are open are those that the records give."""
    most = 0

    async def main():
        nonlocal most
        handler = Parent(seed).run()
        async with watch_over(handler, seed) as twin, anyio.create_task_group() as group:
            async with handler:
                group.start_soon(answer, handler, random.Random(seed))
                with anyio.move_on_after(1):
                    await handler
                handler.cancel()
            group.cancel_scope.cancel()
        most = twin.compared

    run_watched(backend, main, seed)
    assert most > 20
