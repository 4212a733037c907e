"""The records of a run that do not go through the machine: resources, edits of the state, snapshots."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import pytest

from sluicegate import Context, Event, Observer, Resource, StartEvent, StopEvent, Workflow, step
from sluicegate._engine.record_writer import RecordWriter
from sluicegate.records import (
    InvocationQueued,
    ResourceClosed,
    ResourceFailed,
    ResourceOpened,
    RunEnded,
    RunStarted,
    SnapshotTaken,
    StateEditEnded,
    StateEditStarted,
    WaitEnded,
    WaitStarted,
)
from tests.helpers import on_each_backend, run_virtually


KINDS = (
    ResourceOpened, ResourceClosed, ResourceFailed, StateEditStarted, StateEditEnded, SnapshotTaken,
)  # fmt: skip


class Records(Observer):
    """Keeps the records of every run, by its identifier."""

    def __init__(self):
        self.runs = {}

    def listen(self, run):
        return self.runs.setdefault(run.run_id, []).append

    @property
    def only(self):
        (records,) = self.runs.values()
        assert type(records[0]) is RunStarted
        assert type(records[-1]) is RunEnded
        return records


def told(records):
    """Return the records of this module's subject in short form, with steps instead of numbers."""
    times = [r.at for r in records]
    assert times == sorted(times)
    steps = {r.invocation: r.step for r in records if type(r) is InvocationQueued}
    waits = {r.wait: r for r in records if type(r) is WaitStarted and r.kind == "state"}
    found = []
    for r in records:
        match r:
            case ResourceOpened():
                by = steps.get(r.invocation)
                found.append(f"{r.resource} {r.name} opened, {r.lifetime}, {by}, {r.took:g} s")
            case ResourceClosed():
                found.append(f"{r.resource} closed, {r.took:g} s")
            case ResourceFailed():
                error = type(r.error).__name__.replace("CancelledError", "Cancelled")
                found.append(f"{r.resource} {r.name} failed {r.during}: {error}")
            case StateEditStarted():
                found.append(f"edit {r.edit} by {steps.get(r.invocation)}")
            case StateEditEnded():
                found.append(f"edit {r.edit} {r.outcome}")
            case SnapshotTaken():
                found.append("snapshot")
            case WaitStarted() if r.wait in waits:
                found.append(f"{steps.get(r.invocation)} waits")
            case WaitEnded() if r.wait in waits:
                found.append(f"{steps.get(waits[r.wait].invocation)} waited: {r.outcome}")
    return found


# -- resources ----------------------------------------------------------------------------------


def managed(*, opening=2.0, closing=1.0, fails=None):
    """Return a factory whose manager takes so many seconds, and raises while ``fails``."""

    @asynccontextmanager
    async def connect():
        await anyio.sleep(opening)
        if fails == "opening":
            raise KeyError("no connection")
        yield "connection"
        await anyio.sleep(closing)
        if fails == "closing":
            raise KeyError("no goodbye")

    return connect


def plain():
    async def make():
        await anyio.sleep(2)
        return "value"

    return make


def broken():
    def make():
        raise KeyError("at once")

    return make


def user_of(factory, lifetime):
    """Return a workflow whose one step uses a resource for 3 seconds."""

    class Uses(Workflow[str]):
        @step
        async def use(
            self, ev: StartEvent, x: Annotated[Any, Resource(factory, scope=lifetime)]
        ) -> StopEvent:
            await anyio.sleep(3)
            return StopEvent(result=x)

    return Uses


async def use(workflow, cancel_after=None):
    """Run it in its scope; return the error of the run, or None."""
    async with workflow:
        with anyio.move_on_after(cancel_after or 1000) as scope:
            try:
                await workflow.run()
            except Exception as error:
                return error
        assert scope.cancelled_caught == (cancel_after is not None)
        return None


OPENED = "1 {name} opened, {lifetime}, use, 2 s"

LIVES = {
    "opened and closed": (managed(), None, [OPENED, "1 closed, 1 s"]),
    "cancelled in use": (managed(), 3, [OPENED, "1 closed, 0 s"]),
    "fails to open": (managed(fails="opening"), None, ["1 {name} failed opening: KeyError"]),
    "cancelled in the factory": (managed(), 1, ["1 {name} failed opening: Cancelled"]),
    "fails to close": (
        managed(fails="closing"),
        None,
        [OPENED, "1 {name} failed closing: KeyError"],
    ),
    "needs no closing": (plain(), None, [OPENED]),
    "raises at once": (broken(), None, ["1 {name} failed opening: KeyError"]),
}


@on_each_backend
@pytest.mark.parametrize("lifetime", ["step", "run"])
@pytest.mark.parametrize("name", LIVES)
def test_resource(backend, lifetime, name):
    """A resource is recorded when it opens, closes or fails, with the step that needed it first."""
    factory, cancel_after, expected = LIVES[name]
    records = Records()
    workflow = user_of(factory, lifetime)(timeout=None, observers=[records])
    run_virtually(backend, use, workflow, cancel_after)
    of = factory.__name__
    assert told(records.only) == [e.format(name=of, lifetime=lifetime) for e in expected]


@on_each_backend
def test_resource_of_workflow(backend):
    """The run that needs a workflow's resource first records its opening, and none its closing."""
    records = Records()

    async def main():
        workflow = user_of(managed(), "workflow")(timeout=None, observers=[records])
        async with workflow:
            await workflow.run(run_id="first")
            await workflow.run(run_id="second")

    run_virtually(backend, main)
    assert told(records.runs["first"]) == ["1 connect opened, workflow, use, 2 s"]
    assert told(records.runs["second"]) == []


@on_each_backend
def test_resource_of_workflow_opens_after_its_run(backend):
    """A workflow's resource that opens after the end of its run adds nothing to its records."""
    records = Records()

    async def main():
        async with user_of(managed(), "workflow")(timeout=None, observers=[records]) as workflow:
            with anyio.move_on_after(1):
                await workflow.run(run_id="first")
            assert type(records.runs["first"][-1]) is RunEnded
            assert await workflow.run(run_id="second") == "connection"

    run_virtually(backend, main)
    assert type(records.runs["first"][-1]) is RunEnded
    assert told(records.runs["first"]) == told(records.runs["second"]) == []


# -- edits of the state -------------------------------------------------------------------------


class Part(Event):
    number: int


class Edits(Workflow[int]):
    """Two steps edit the state, the second while the first holds it; ``bad`` decides how it ends."""

    def __init__(self, bad=None, **options):
        super().__init__(timeout=None, **options)
        self.bad = bad
        self.holding = anyio.Event()

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Part:
        ctx.send_event(Part(number=1))
        async with ctx.store.edit_state() as state:
            state.count = 1
            self.holding.set()
            await anyio.sleep(5)
            if self.bad == "raises":
                raise KeyError("in the block")
        return Part(number=2)

    @step
    async def second(self, ctx: Context, ev: Part) -> StopEvent | None:
        if ev.number == 2:
            return None
        await self.holding.wait()
        await ctx.store.set("other", 2)
        return StopEvent(result=await ctx.store.get("count", 0))


EDITS = {
    "one after the other": (None, None, [
        "edit 1 by first", "second waits", "edit 1 committed", "second waited: done",
        "edit 2 by second", "edit 2 committed",
    ]),
    "cancelled in the edit": (None, 1, {
        "edit 1 by first", "second waits", "edit 1 discarded", "second waited: cancelled",
    }),
    "raises in the edit": ("raises", None, [
        "edit 1 by first", "second waits", "edit 1 discarded", "second waited: done",
        "edit 2 by second", "edit 2 committed",
    ]),
}  # fmt: skip


@on_each_backend
@pytest.mark.parametrize("name", EDITS)
def test_edit(backend, name):
    """An edit is recorded from its turn to its end, and the wait for the turn; ``set`` is an edit."""
    bad, cancel_after, expected = EDITS[name]
    records = Records()

    async def main():
        return await use(Edits(bad, observers=[records]), cancel_after)

    error = run_virtually(backend, main)
    assert isinstance(error, KeyError) == (bad is not None)
    found = told(records.only)
    if isinstance(expected, set):  # which of the tasks unwinds first is up to the event loop
        assert found[:2] == ["edit 1 by first", "second waits"]
        assert len(found) == len(expected)
        found = {*found}
    assert found == expected


class Writes(Workflow[None]):
    """One step, which calls every method that writes, well and badly."""

    @step
    async def write(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("a", 1)
        with pytest.raises(LookupError):
            await ctx.store.set("a.b.c", 1)
        await ctx.store.set_state(await ctx.store.get_state())
        with pytest.raises(TypeError):
            await ctx.store.set_state(7)
        await ctx.store.clear()
        return StopEvent()


@on_each_backend
def test_writes(backend):
    """Each method that writes is an edit, and one that raises is discarded."""
    records = Records()

    async def main():
        await Writes(observers=[records]).run()

    run_virtually(backend, main)
    outcomes = [r.outcome for r in records.only if type(r) is StateEditEnded]
    assert outcomes == ["committed", "discarded", "committed", "discarded", "committed"]


class Counts(Workflow[int]):
    """Adds one to the state, and waits at the end."""

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> Part:
        async with ctx.store.edit_state() as state:
            state.count = state.get("count", 0) + 1
        return Part(number=state.count)

    @step
    async def add(self, ctx: Context, ev: Part) -> StopEvent:
        await anyio.sleep(2)
        await ctx.store.set("count", ev.number + 1)
        return StopEvent(result=ev.number + 1)


@on_each_backend
def test_snapshot_and_edits_of_resumed_run(backend):
    """A snapshot is recorded; the state that a resumed run gets from it records its edits there."""
    records = Records()

    async def main():
        workflow = Counts(observers=[records])
        async with workflow.run(run_id="first") as handler:
            await anyio.sleep(1)
            saved = handler.snapshot()
            await handler.ctx.store.set("count", 0)
            handler.cancel()
        handler.snapshot()  # the run is over
        assert await workflow.resume(saved, run_id="second") == 2

    run_virtually(backend, main)
    assert told(records.runs["first"]) == [
        "edit 1 by count", "edit 1 committed", "snapshot", "edit 2 by None", "edit 2 committed",
    ]  # fmt: skip
    assert told(records.runs["second"]) == ["edit 1 by add", "edit 1 committed"]


@on_each_backend
def test_edits_with_one_context(backend):
    """Runs with one state record their own edits, and an edit after the run is in no record."""
    records = Records()

    async def main():
        workflow = Counts(observers=[records])
        context = Context(workflow)
        async with (
            workflow.run(ctx=context, run_id="one") as one,
            workflow.run(ctx=context, run_id="two") as two,
        ):
            await one
            await two
        await one.ctx.store.set("count", 0)

    run_virtually(backend, main)
    expected = ["edit 1 by count", "edit 1 committed", "edit 2 by add", "edit 2 committed"]
    assert {name: told(found) for name, found in records.runs.items()} == {
        "one": expected,
        "two": expected,
    }
    assert all(type(found[-1]) is RunEnded for found in records.runs.values())


@on_each_backend
def test_unobserved(backend, monkeypatch):
    """A run that is not observed makes no record of any of these."""
    made = []
    for kind in KINDS:
        name = f"sluicegate._engine.record_writer.{kind.__name__}"
        monkeypatch.setattr(name, lambda *a: made.append(a))
    monkeypatch.setattr(RecordWriter, "__init__", lambda *a, **k: made.append(a))

    async def main():
        assert await use(Edits()) is None
        assert await use(user_of(managed(), "step")(timeout=None)) is None
        assert await use(user_of(managed(), "run")(timeout=None)) is None
        handler = Counts().run()
        assert await handler == 2
        handler.snapshot()

    run_virtually(backend, main)
    assert not made
