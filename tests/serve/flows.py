"""The workflows that the tests of the server run."""

from __future__ import annotations

import anyio
import anyio.lowlevel

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
from tests.helpers import witnessed


class Topic(StartEvent):
    topic: str
    times: int = 1


class Progress(Event):
    message: str


class Question(InputRequiredEvent):
    text: str


class Approval(HumanResponseEvent):
    yes: bool


class Essay(Workflow[str]):
    """Writes on a topic."""

    @step
    async def write(self, ctx: Context, ev: Topic) -> StopEvent:
        for number in range(ev.times):
            await ctx.stream.send(Progress(message=f"{ev.topic} {number}"))
        return StopEvent(result=ev.topic.upper())


class Asking(Workflow[str]):
    """Asks whether to go on."""

    @step
    async def ask(self, ctx: Context, ev: Topic) -> StopEvent:
        found = await ctx.wait_for_event(Approval, Question(text=ev.topic))
        return StopEvent(result="published" if found.yes else "dropped")


class Sleeping(Workflow[str]):
    """Sleeps for an hour."""

    @step
    async def sleep(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.sleep(3600)
        return StopEvent(result="awake")


class Failing(Workflow[str]):
    """Fails, with a text that nobody outside may see."""

    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        msg = "the password is hunter2"
        raise LookupError(msg)


class Waiting(Workflow[str]):
    """Waits until it is let go, or floods its stream; cleans up with a shielded await."""

    def __init__(self, **options):
        super().__init__(**options)
        self.began = anyio.Event()
        self.go_on = anyio.Event()
        self.over = anyio.Event()
        self.seen = []
        self.sent = 0

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Progress(message="begun"))
        self.began.set()
        try:
            async with witnessed(self.seen):
                if ev.get("flood"):
                    for _ in range(ev.flood):
                        await ctx.stream.send(Progress(message="x" * ev.get("size", 10)))
                        self.sent += 1
                else:
                    await self.go_on.wait()
        finally:
            self.over.set()
        return StopEvent(result="done")
