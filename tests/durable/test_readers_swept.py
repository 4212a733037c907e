"""Readers of durable runs under the sweep: crashed and cancelled at every moment, they miss nothing (D3)."""

from __future__ import annotations

import anyio
import pytest

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate._cursors import read_after
from sluicegate.durable import open_run_store
from sluicegate.testing import sweep
from tests.durable.stored import Stores
from tests.helpers import on_each_backend


class Part(Event):
    n: int


class Parts(Workflow[str]):
    """Sends in two steps, with live events in between."""

    def __init__(self):
        super().__init__(stream="durable", serializable=[Part], stream_history=2)

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Part:
        ctx.write_event_to_stream(Part(n=100))
        await ctx.stream.send(Part(n=1))
        ctx.write_event_to_stream(Part(n=101))
        ctx.stream.send_nowait(Part(n=2))
        await anyio.sleep(1)
        return Part(n=0)

    @step
    async def second(self, ctx: Context, ev: Part) -> StopEvent:
        await ctx.stream.send(Part(n=3))
        ctx.write_event_to_stream(Part(n=102))
        await anyio.sleep(1)
        await ctx.stream.send(Part(n=4))
        return StopEvent(result="sent")


def durable_of(cursor):
    return read_after(cursor, is_durable=True).durable


async def read(handler, took):
    """Read on from where the list of what was taken ends; a cursor is kept with its event."""
    after = [("0", None), *took][-1][0]
    with handler.stream_events(after=after) as stream:
        async for event in stream:
            took.append((stream.cursor, event.get("n")))


def check_taken(took, everything):
    """Compare what was taken over all lives with the durable stream: each event once, in order."""
    cursors = [int(cursor) for cursor, _ in took]
    assert cursors == sorted(set(cursors))
    durable = {}
    for cursor, n in took:
        if read_after(cursor, is_durable=True).live == 0 and n is not None and n < 100:
            durable[durable_of(cursor)] = n
    assert durable == {number: n for number, n in enumerate(everything, 1) if n is not None}


@on_each_backend
@pytest.mark.slow
def test_reader_that_crashes_at_every_moment(backend):
    """What it did with an event is in its ledger with the cursor: each durable event exactly once."""

    async def scenario(trial):
        async with open_run_store(trial.crash.store.open(), wall=trial.crash.wall) as runs:
            handler = runs.run(Parts().run(), run_id="a")
            async with handler:
                await read(handler, trial.crash.ledger)
            async with await runs.attach("a") as other:
                everything = [event.get("n") async for event in other.stream_events(after="0")]
        check_taken([*trial.crash.ledger], everything)

    report = sweep(scenario, kinds="crash", backends=backend, limit=60)

    assert report.runs > 30


@on_each_backend
@pytest.mark.slow
def test_reader_that_is_cancelled_at_every_moment(backend):
    """It goes on by its cursor in the next owner; the run goes on from its store."""
    lives = {}

    async def scenario(trial):
        lives["stores"], lives["took"] = Stores(), []
        async with lives["stores"].open() as runs, runs.run(Parts().run(), run_id="a") as handler:
            await read(handler, lives["took"])

    async def check(outcome):
        async with lives["stores"].open() as runs:
            async with runs.run(Parts().run(), run_id="a") as handler:
                await read(handler, lives["took"])
            async with await runs.attach("a") as other:
                everything = [event.get("n") async for event in other.stream_events(after="0")]
        check_taken(lives["took"], everything)

    report = sweep(scenario, backends=backend, check=check, limit=60)

    assert report.runs > 30
