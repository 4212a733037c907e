"""The workflow object: how often, where and by whom it is run (P18)."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref

import anyio
import anyio.to_thread
import pytest
import trio

import sluicegate
from sluicegate import Context, StartEvent, StopEvent, Workflow, step
from tests.helpers import Catch, Done, Item, Mine, Note, Quick, Single, is_trio, wait_until_idle


@pytest.mark.anyio
async def test_one_workflow_object_runs_any_number_of_times_at_once():
    """P18: two hundred runs of one object do not see each other."""

    class Shared(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=ev.base + n) for n in range(3)]

        @step
        async def work(self, ctx: Context, ev: Item) -> Done:
            await wait_until_idle(ev.number % 3)
            ctx.write_event_to_stream(Note(number=ev.number))
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    workflow = Shared()
    before = dict(vars(workflow))
    async with anyio.create_task_group() as group:
        handlers = [workflow.run(base=10 * n).start_soon(group) for n in range(200)]

    for n, handler in enumerate(handlers):
        expected = [10 * n, 10 * n + 1, 10 * n + 2]
        assert handler.result() == expected
        notes = [e.number async for e in handler.stream_events() if isinstance(e, Note)]
        assert sorted(notes) == expected
    assert len({handler.run_id for handler in handlers}) == 200
    assert vars(workflow) == before


@pytest.mark.anyio
async def test_step_table_and_options_are_fixed_when_it_is_built():
    """P18: what is put on the object or the class afterwards changes no run of it."""

    class Fixed(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="as built")

    async def other(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="changed")

    workflow = Fixed(timeout=50)
    workflow.timeout = 0.000001
    workflow.stream_history = 1
    workflow.only = None
    Fixed.only = step(other)
    Fixed.more = step(other)

    assert await workflow.run() == "as built"


@pytest.mark.anyio
async def test_what_users_put_on_self_is_theirs():
    """P18: names that an engine might want are free for users, who find what they put there."""
    names = ["graph", "run_id", "timeout", "steps", "handler", "log", "observer", "_graph", "name"]

    class Stateful(Workflow):
        def __init__(self):
            super().__init__()
            for name in names:
                setattr(self, name, f"my {name}")

        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            self.seen = [getattr(self, name) for name in names]
            return StopEvent()

    workflow = Stateful()
    await workflow.run()
    await workflow.run()

    assert workflow.seen == [f"my {name}" for name in names]


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["unused", "completed", "failed", "cancelled"])
async def test_workflow_is_collected_when_it_is_dropped(ending):
    """P18: neither the object nor its class is kept by the library."""

    def make():
        class Dropped(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                if ending == "failed":
                    raise Mine
                if ending == "cancelled":
                    await anyio.sleep_forever()
                return StopEvent()

        return Dropped

    kind = make()
    workflow = kind()
    if ending != "unused":
        with Catch(), anyio.move_on_after(0.002):
            await workflow.run()
    refs = [weakref.ref(kind), weakref.ref(workflow)]
    del kind, workflow
    # asyncio keeps the last cancellation, and so its traceback, until its next turn.
    await wait_until_idle(3)
    gc.collect()

    assert [ref() for ref in refs] == [None, None]


@pytest.mark.anyio
async def test_workflow_may_be_dropped_while_it_runs():
    """P18: a run keeps what it needs."""
    go = anyio.Event()

    async def work(ctx):
        await go.wait()
        return "result"

    async with Single(work).run() as handler:
        await wait_until_idle(3)
        gc.collect()
        go.set()
        assert await handler == "result"


def test_subclass_has_a_step_table_of_its_own():
    """P18: building a subclass does not change what its base does."""

    class Base(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="base")

    base = Base()

    class Derived(Base):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="derived")

    derived = Derived()

    async def main():
        return await base.run(), await derived.run()

    assert trio.run(main) == ("base", "derived")


@pytest.mark.peer("edge 36")
def test_run_needs_no_event_loop_until_it_is_started():
    """Run() works anywhere; starting it without a loop is one clear error."""
    caught = []

    def work() -> None:
        handler = Quick().run()
        assert handler.status == "unstarted"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                handler.__await__().send(None)
            except RuntimeError as error:
                caught.append(error)
            gc.collect()
        assert handler.status == "unstarted"  # it may still be run in a loop
        handler.cancel()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    [error] = caught
    assert "a workflow runs in an event loop, and there is none here" in str(error)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.peer("edge 36")
def test_run_made_outside_an_event_loop_can_be_run_in_one(backend):
    """A handler belongs to the loop that starts it."""
    handler = Quick().run()

    async def main() -> str:
        return await handler

    assert sluicegate.run(main, backend=backend) == "quick"


@pytest.mark.anyio
@pytest.mark.peer("note 0")
async def test_engine_runs_wherever_it_is_called():
    """One workflow class serves Trio, asyncio and uvloop, with no setting that says which."""

    async def where(ctx):
        await anyio.lowlevel.checkpoint()
        return is_trio()

    assert await Single(where).run() is is_trio()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_forked_processes_number_their_runs_apart():
    """Two children of one process give their runs different identifiers."""
    code = (
        "import os\n"
        "from sluicegate._workflow import new_run_id\n"
        "for _ in range(2):\n"
        "    if not os.fork():\n"
        "        os.write(1, (new_run_id() + ' ').encode()); os._exit(0)\n"
        "    os.wait()\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert len(set(printed)) == 2
