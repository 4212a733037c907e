"""Runs under an ambient scope: they start by themselves, and may be claimed whenever it suits."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import pytest
import trio

import sluicegate
from sluicegate import WorkflowHandler, WorkflowRuntimeError, workflow_scope
from tests.helpers import (
    Catch,
    Mine,
    Single,
    is_trio,
    live_tasks,
    nothing_left,
    on_each_backend,
    wait_until_idle,
)


pytestmark = pytest.mark.filterwarnings("error")


class Gate:
    """A step's body that waits to be let go, and says how it ended."""

    def __init__(self, failure=None):
        self.failure = failure
        self.began = anyio.Event()
        self.go_on = anyio.Event()
        self.seen = []

    async def __call__(self, ctx):
        self.began.set()
        try:
            await self.go_on.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await wait_until_idle(3)
            self.seen.append("cancelled")
            raise
        self.seen.append("went on")
        if self.failure is not None:
            raise self.failure
        return "done"


def drop(_handler):
    """Take the last reference to a handler, and let go of it."""


@contextlib.asynccontextmanager
async def limit():
    with anyio.fail_after(5):
        yield


# -- by itself ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_run_that_nobody_claims_starts_by_the_next_turn():
    """D1: what a step sets may be waited for without touching the handler."""
    gate = Gate()
    async with limit(), workflow_scope():
        handler = Single(gate).run()
        assert handler.status == "unstarted"
        await gate.began.wait()
        assert handler.status == "running"
        gate.go_on.set()
        assert await handler == "done"


@on_each_backend
def test_runs_under_the_entry_are_under_way_together(backend):
    """D1: ``[await h for h in hs]`` is not one run after the other."""
    together = []

    async def work(ctx):
        together.append(ctx.run_id)
        while len(together) < 3:
            await anyio.lowlevel.checkpoint()
        return ctx.run_id

    async def main():
        with anyio.fail_after(5):
            handlers = [Single(work).run(run_id=name) for name in "abc"]
            return [await handler for handler in handlers]

    assert sluicegate.run(main, backend=backend) == ["a", "b", "c"]


@pytest.mark.anyio
async def test_a_run_begins_with_the_context_variables_of_the_moment_of_run():
    """D1: not with those of the turn in which it begins, nor of the starter."""
    variable = ContextVar("variable", default="outside")

    async def work(ctx):
        return variable.get()

    async with workflow_scope():
        variable.set("first")
        first = Single(work).run()
        variable.set("second")
        second, read = Single(work).run(), Single(work).run()
        variable.set("third")
        read.stream_events()
        await wait_until_idle()

        assert [await first, await second, await read] == ["first", "second", "second"]


@pytest.mark.anyio
async def test_a_handler_that_is_dropped_before_the_turn_never_runs():
    """D1: it warns, as without a scope."""
    ran = []

    async def work(ctx):
        ran.append(1)

    async with workflow_scope():
        with pytest.warns(RuntimeWarning, match="was never started"):
            drop(Single(work).run())
        await wait_until_idle()

    assert ran == []


@pytest.mark.anyio
async def test_a_run_cancelled_before_the_turn_never_starts():
    """D1: neither does one that was cancelled, or whose scope was left by an exception."""
    ran = []

    async def work(ctx):
        ran.append(1)

    async with workflow_scope():
        handler = Single(work).run()
        handler.cancel("not wanted")
        await wait_until_idle()
    with pytest.raises(Mine):
        async with workflow_scope():
            other = Single(work).run()
            raise Mine

    assert ran == []
    assert [handler.status, other.status] == ["cancelled", "cancelled"]


@pytest.mark.anyio
async def test_leaving_the_scope_starts_what_was_not_started_yet():
    """D1, P9: it waits for it, and raises its failure."""
    failure = Mine()

    async def work(ctx):
        raise failure

    with Catch() as left:
        async with workflow_scope():
            handler = Single(work).run()

    assert left.error is failure
    assert handler.status == "failed"


@pytest.mark.anyio
async def test_a_failure_of_an_unclaimed_run_leaves_the_scope():
    """P9: also where nothing has touched the handler since ``run()``."""
    failure = Mine()

    async def work(ctx):
        raise failure

    with Catch() as left:
        async with workflow_scope():
            handler = Single(work).run()
            await wait_until_idle()
            assert handler.is_done()

    assert left.error is failure


@pytest.mark.anyio
async def test_a_run_claimed_at_once_spawns_nothing_more():
    """D1: the scope has one starter, which is all that it adds to the runs' own tasks."""

    async def work(ctx):
        return len(live_tasks())

    before = len(live_tasks())
    alone = await Single(work).run()
    async with workflow_scope():
        counts = [await Single(work).run() for _ in range(5)]
        assert len(live_tasks()) == before + 1

    assert counts == [alone + 1] * 5


@pytest.mark.anyio
async def test_the_starter_is_woken_once_for_a_batch(monkeypatch):
    """D1: a thousand runs at once wake it once."""
    async with limit(), workflow_scope() as scope:
        await wait_until_idle()
        calls = []
        wake = scope._starter.wake

        class Counting:
            wait = scope._starter.wait

            def wake(self):
                calls.append(1)
                wake()

        monkeypatch.setattr(scope, "_starter", Counting())

        async def work(ctx):
            return 1

        handlers = [Single(work).run() for _ in range(1000)]
        await wait_until_idle()
        assert len(calls) == 1
        assert sum([await handler for handler in handlers]) == 1000


@pytest.mark.anyio
async def test_runs_made_in_a_step_have_no_ambient_scope():
    """P1: what a step starts does not outlive it in a scope around its run."""

    async def work(ctx):
        inner = Single(work).run()
        await wait_until_idle()
        status = inner.status
        inner.cancel()
        return status

    async with workflow_scope():
        assert await Single(work).run() == "unstarted"


@pytest.mark.anyio
async def test_a_run_made_in_another_thread_is_not_offered():
    """D1: a worker thread has a copy of the context, and no event loop for the run."""

    async def work(ctx):
        return 1

    async with workflow_scope():
        handler = await anyio.to_thread.run_sync(lambda: Single(work).run())
        await wait_until_idle()
        assert handler.status == "unstarted"
        assert await handler == 1


# -- claimed later -------------------------------------------------------------------------------------


async def started(gate):
    handler = Single(gate).run()
    await gate.began.wait()
    return handler


@pytest.mark.anyio
async def test_a_block_waits_for_a_run_that_the_scope_has_started():
    """D1: left normally, the block waits."""
    gate = Gate()
    async with limit(), workflow_scope():
        async with await started(gate) as handler:
            gate.go_on.set()
        assert handler.result() == "done"


@pytest.mark.anyio
async def test_a_block_cancels_a_run_that_the_scope_has_started():
    """D1, P2: left by an exception it cancels the run, waits for its clean-up, and lets that out."""
    gate = Gate()
    async with limit(), workflow_scope():
        with pytest.raises(Mine):
            async with await started(gate) as handler:
                raise Mine
        assert gate.seen == ["cancelled"]
        assert handler.status == "cancelled"


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["body", "waiting"])
async def test_a_cancelled_block_takes_the_run_with_it(when):
    """D1, P1, P2: in its body or while it waits; the clean-up is over when the cancellation leaves."""
    gate = Gate()
    async with limit(), workflow_scope():
        with anyio.CancelScope() as scope:
            async with await started(gate) as handler:
                if when == "body":
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
                else:
                    async with anyio.create_task_group() as nursery:
                        nursery.start_soon(handler.stream_events().aclose)
                    cancel_soon(scope)
            pytest.fail("the cancellation went on")
        assert scope.cancelled_caught
        assert gate.seen == ["cancelled"]
        assert handler.is_done()


def cancel_soon(scope):
    """Cancel when the caller waits next."""
    if is_trio():
        trio.lowlevel.spawn_system_task(cancel_later, scope)
    else:
        asyncio.get_running_loop().call_soon(scope.cancel)


async def cancel_later(scope):
    await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.anyio
async def test_a_claimed_run_s_failure_leaves_its_new_owner_and_no_other():
    """D1, P9: the block raises it, the scope lets go."""
    failure = Mine()
    gate = Gate(failure)
    async with limit(), workflow_scope():
        with Catch() as left:
            async with await started(gate):
                gate.go_on.set()
        assert left.error is failure


@pytest.mark.anyio
@pytest.mark.parametrize("group", ["anyio", "native"])
async def test_a_nursery_waits_for_a_run_that_the_scope_has_started(group):
    """D1: and takes its failure."""
    failure = Mine()
    gate = Gate(failure)
    if group == "native" and is_trio():
        group = "trio"
    async with limit(), workflow_scope():
        with Catch() as left:
            async with open_group(group) as nursery:
                (await started(gate)).start_soon(nursery)
                gate.go_on.set()
        assert left.one is failure


def open_group(kind):
    if kind == "anyio":
        return anyio.create_task_group()
    return trio.open_nursery() if kind == "trio" else asyncio.TaskGroup()


@pytest.mark.anyio
@pytest.mark.parametrize("group", ["anyio", "native"])
async def test_a_cancelled_nursery_cancels_the_run_that_it_took(group):
    """D1, P1: nothing of the run is left when the nursery is."""
    gate = Gate()
    if group == "native" and is_trio():
        group = "trio"
    async with limit(), workflow_scope():
        with Catch() as left:
            async with open_group(group) as nursery:
                handler = (await started(gate)).start_soon(nursery)
                raise Mine
        assert isinstance(left.one, Mine)
        assert gate.seen == ["cancelled"]
        assert handler.is_done()


@pytest.mark.anyio
async def test_a_nursery_may_keep_the_failure_with_the_handler():
    """D1: ``keep_failure=True`` holds for a run that is taken over, too."""
    gate = Gate(Mine())
    async with limit(), workflow_scope():
        async with anyio.create_task_group() as nursery:
            handler = (await started(gate)).start_soon(nursery, keep_failure=True)
            gate.go_on.set()
        assert len(handler.exceptions) == 1


@pytest.mark.anyio
async def test_a_run_is_claimed_once():
    """D1: a second owner is refused, as ever."""
    gate = Gate()
    async with limit(), workflow_scope(), await started(gate) as handler:
        with pytest.raises(WorkflowRuntimeError, match="and then owned by a block"):
            async with handler:
                pass
        async with anyio.create_task_group() as nursery:
            with pytest.raises(WorkflowRuntimeError, match="started before"):
                handler.start_soon(nursery)
        gate.go_on.set()


@pytest.mark.anyio
async def test_a_nursery_that_is_closed_leaves_the_run_to_its_scope():
    """D1, P9: the run that could not be given away is the scope's as before."""
    failure = Mine()
    gate = Gate(failure)
    with Catch() as left:
        async with limit(), workflow_scope():
            handler = await started(gate)
            async with anyio.create_task_group() as nursery:
                pass
            with pytest.raises(Exception):  # noqa: B017 - each library has its own
                handler.start_soon(nursery)
            gate.go_on.set()

    assert left.error is failure


# -- handed over ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_scope_is_an_owner_for_start_soon():
    """D1: a lifespan's scope is handed to requests, whose tasks have no ambient one."""
    gate = Gate()
    handlers: list[WorkflowHandler] = []

    async def request(scope):
        handlers.append(Single(gate).run().start_soon(scope))

    with nothing_left():
        async with limit(), anyio.create_task_group() as requests, workflow_scope() as scope:
            requests.start_soon(request, scope)
            await gate.began.wait()
            gate.go_on.set()

    assert handlers[0].result() == "done"


@pytest.mark.anyio
async def test_a_scope_raises_the_failures_that_it_was_given():
    """P9: unless they were seen, or are kept with the handler."""
    failure = Mine()

    async def work(ctx):
        raise failure

    with Catch() as left:
        async with workflow_scope() as scope:
            Single(work).run().start_soon(scope)
            await wait_until_idle()
    kept = []
    async with workflow_scope() as scope:
        kept.append(Single(work).run().start_soon(scope, keep_failure=True))
        seen = Single(work).run().start_soon(scope)
        with pytest.raises(Mine):
            await seen

    assert left.error is failure
    assert kept[0].exceptions == (failure,)


@pytest.mark.anyio
async def test_a_run_goes_from_one_scope_to_another():
    """D1: the second waits for it and raises its failure, the first lets go."""
    failure = Mine()
    gate = Gate(failure)
    async with limit(), workflow_scope():
        handler = await started(gate)
        with Catch() as left:
            async with workflow_scope() as inner:
                handler.start_soon(inner)
                gate.go_on.set()
        assert left.error is failure


@pytest.mark.anyio
async def test_a_scope_that_serves_long_keeps_nothing_of_runs_that_are_over():
    """P16: neither of those that no one claimed, nor of those it was given."""

    async def work(ctx):
        return None

    async with limit(), workflow_scope() as scope:
        for _ in range(5):
            keep = Single(work).run()
            Single(work).run().start_soon(scope)
            await wait_until_idle()
        assert (len(scope._runs), len(scope._offered)) == (0, 0)
        del keep
