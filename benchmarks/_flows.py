"""Workflows that are both timed and counted.

`_counts` has more of its own, beside those in `works`: with a meter or a gate in a step, or with an
answer that takes no memory.
"""

from typing import Any

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)


class Ping(Event):
    i: int


class Pong(Event):
    i: int


class Chain(Workflow[int]):
    """Two steps pass one event to and fro, *n* hops."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    @step
    async def begin(self, ev: StartEvent) -> Ping:
        return Ping(i=0)

    @step
    async def ping(self, ev: Ping) -> Pong | StopEvent:
        return Pong(i=ev.i + 1) if ev.i < self.n else StopEvent(result=ev.i)

    @step
    async def pong(self, ev: Pong) -> Ping | StopEvent:
        return Ping(i=ev.i + 1) if ev.i < self.n else StopEvent(result=ev.i)


class Ask(Workflow[Any]):
    """Asks in one step and takes the answer in another."""

    asked = 0

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        self.asked += 1
        return InputRequiredEvent(prefix="?")

    @step
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class AskInside(Workflow[Any]):
    """Waits for the answer in the middle of a step."""

    asked = 0

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.asked += 1
        question = InputRequiredEvent(prefix="?")
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=question)
        return StopEvent(result=answer.response)
