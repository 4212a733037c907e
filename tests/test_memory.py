"""What a run costs, and what is kept of it (P16)."""

from __future__ import annotations

import gc
import sys
import weakref

import anyio
import pytest
import trio

from sluicegate import Context, StartEvent, StopEvent, Workflow, step, workflow_scope
from tests.helpers import Fan, Item, Note, Single


class Chain(Workflow):
    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length
        self.alive = weakref.WeakSet()
        self.most = 0

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(number=0)

    @step
    async def go(self, ev: Item) -> Item | StopEvent:
        self.alive.add(ev)
        self.most = max(self.most, len(self.alive))
        return StopEvent() if ev.number == self.length else Item(number=ev.number + 1)


class Drain(Workflow):
    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length
        self.alive = weakref.WeakSet()
        self.handled = 0
        self.kept = 0

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item:
        for n in range(self.length - 1):
            self.send(ctx, n)
        last = Item(number=self.length - 1)
        self.alive.add(last)
        return last

    def send(self, ctx, n):
        event = Item(number=n)
        self.alive.add(event)
        ctx.send_event(event)

    @step(num_workers=2)
    async def work(self, ev: Item) -> StopEvent | None:
        self.handled += 1
        self.kept = max(self.kept, len(self.alive) - (self.length - self.handled))
        return StopEvent() if self.handled == self.length else None


class Writes(Workflow):
    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(self.length):
            ctx.write_event_to_stream(Note(number=n))
        return StopEvent()


class Collects(Workflow):
    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(self.length):
            ctx.send_event(Item(number=n))

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
        got = ctx.collect_events(ev, self.expected())
        return None if got is None else StopEvent(result=len(got))

    def expected(self):
        # A sequence that costs nothing to make, however long it is.
        if not hasattr(self, "_expected"):
            self._expected = [Item] * self.length
        return self._expected


def fan(length, **options):
    async def work(ctx, number):
        pass

    return Fan(work, length, **options)


def calls_of_run(make, length):
    """Count the calls that a run makes, of Python functions and of built-in ones."""
    count = 0

    def profile(_frame, kind, _what):
        nonlocal count
        count += kind in ("call", "c_call")

    async def main():
        workflow = make(length)
        sys.setprofile(profile)
        try:
            async with workflow.run() as handler:
                async for _ in handler.stream_events():
                    pass
        finally:
            sys.setprofile(None)

    trio.run(main)
    return count


@pytest.mark.parametrize("make", [Chain, Drain, Writes, Collects, fan])
def test_cost_is_linear(make):
    """P16: twice the events cost twice the calls; four times would be quadratic."""
    for _ in range(3):  # where the budget of P3 falls is a matter of chance
        one, two, four = (calls_of_run(make, n) for n in (200, 400, 800))
        growth = (four - two) / (two - one)
        if growth < 2.6:
            break

    assert growth < 2.6


@pytest.mark.anyio
@pytest.mark.peer("edge 34")
async def test_nothing_is_kept_of_an_event_that_was_handled():
    """P16: of a chain of five thousand events no more than a handful is ever alive."""
    workflow = Chain(5_000)
    await workflow.run()

    assert workflow.most <= 4
    gc.collect()
    assert len(workflow.alive) == 0


@pytest.mark.anyio
async def test_pending_events_go_as_they_are_handled():
    """P16: what is alive is what is pending, and a handful."""
    workflow = Drain(2_000)
    await workflow.run()

    assert workflow.kept <= 6


@pytest.mark.anyio
async def test_nothing_is_kept_of_a_run_that_is_over():
    """P16: a handler that is kept keeps the outcome and the history, not the events."""
    handlers = []
    for _ in range(3):
        workflow = Drain(100)
        handlers.append(workflow.run())
        await handlers[-1]
        gc.collect()
        assert len(workflow.alive) == 0


@pytest.mark.anyio
async def test_run_leaves_no_cyclic_garbage():
    """P16: a run that was dropped is freed without the collector."""

    class Kept:
        pass

    thing = Kept()
    seen = weakref.ref(thing)

    async def work(ctx, thing=thing):
        return None

    workflow = Single(work)
    gc.collect()
    gc.disable()
    try:
        await workflow.run(payload=thing)
        del thing, work, workflow
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.anyio
async def test_nothing_internal_is_built_unless_somebody_asks():
    """P16: no journal: without observers and internal readers only what was published is kept."""
    handler = Chain(50).run()
    await handler

    assert [type(e) async for e in handler.stream_events(expose_internal=True)] == [StopEvent]


class Fails(Workflow[None]):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise ValueError("no")


@pytest.mark.anyio
async def test_scope_forgets_a_failed_run_that_was_seen():
    """P16: a scope that lives as long as a server does not keep every run that ever failed."""
    refs = []
    async with workflow_scope():
        for _ in range(5):
            handler = Fails().run()
            async for _ in handler.stream_events():
                pass
            with pytest.raises(ValueError, match="no"):
                await handler
            refs.append(weakref.ref(handler))
        del handler
        await anyio.wait_all_tasks_blocked()
        gc.collect()

        # The last one's error, and so its frames, may be kept by whoever caught it.
        assert [ref() for ref in refs[:-1]] == [None] * 4
