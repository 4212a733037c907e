"""A workflow whose events are durable, each with an id of its own."""

from __future__ import annotations

from uuid import uuid4

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate._loop import current_backend


class Count(StartEvent):
    total: int
    pause: float


class Hop(Event):
    n: int
    total: int
    pause: float


class Piece(Event):
    n: int
    uid: str


class Counting(Workflow[int]):
    """Sends one event in each hop; a hop that begins again sends one with another id."""

    def __init__(self) -> None:
        super().__init__(stream="durable", serializable=[Piece])

    @step
    async def begin(self, ev: Count) -> Hop:
        return Hop(n=0, total=ev.total, pause=ev.pause)

    @step
    async def hop(self, ctx: Context, ev: Hop) -> Hop | StopEvent:
        await ctx.stream.send(Piece(n=ev.n, uid=uuid4().hex))
        await current_backend().sleep(ev.pause)
        if ev.n + 1 == ev.total:
            return StopEvent(result=ev.total)
        return Hop(n=ev.n + 1, total=ev.total, pause=ev.pause)
