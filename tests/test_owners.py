"""Owners that are left in another task than they were entered in.

A fixture of pytest-asyncio does that (each half runs in a task of its own, in one context), and so
do the callbacks of bots and the cells of a notebook; their ways are imitated here by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import copy_context
from typing import Annotated

import anyio
import anyio.lowlevel
import pytest
import trio

from sluicegate import (
    Resource,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    step,
    workflow_scope,
)
from tests.helpers import (
    Catch,
    Mine,
    Single,
    is_trio,
    nothing_left,
    run_virtually,
    wait_until_idle,
)


LOOPS = pytest.mark.parametrize("use_uvloop", [False, True], ids=["asyncio", "uvloop"])
OWNERS = pytest.mark.parametrize("owner", ["block", "scope", "claimed"])


class Body:
    """A step that waits for ever, cleans up for a while, and may fail in that."""

    def __init__(self, failure=None):
        self.failure = failure
        self.began = anyio.Event()
        self.seen = []

    async def __call__(self, ctx):
        self.began.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await wait_until_idle(5)
            self.seen.append("cleaned up")
            if self.failure is not None:
                raise self.failure


@contextlib.asynccontextmanager
async def owned(owner, body):
    """Own a run, and give its handler."""
    if owner == "block":
        async with Single(body).run() as handler:
            await body.began.wait()
            yield handler
    elif owner == "scope":
        async with workflow_scope():
            handler = Single(body).run()
            await body.began.wait()
            yield handler
    else:
        async with workflow_scope():
            handler = Single(body).run()
            await body.began.wait()
            async with handler:
                yield handler


def asyncio_run(main, use_uvloop):
    if use_uvloop:
        pytest.importorskip("uvloop")
    return anyio.run(main, backend="asyncio", backend_options={"use_uvloop": use_uvloop})


# -- as pytest-asyncio runs a fixture --------------------------------------------------------------------


@LOOPS
@OWNERS
@pytest.mark.parametrize("in_one_context", [True, False])
def test_block_left_in_another_task(owner, use_uvloop, in_one_context):
    """P1: an owner left in another task cancels its run, waits for its end, and says what is wrong."""
    body = Body()

    async def main():
        with nothing_left():
            fixture = owned(owner, body)
            context = copy_context() if in_one_context else None
            loop = asyncio.get_running_loop()
            handler = await loop.create_task(fixture.__aenter__(), context=context)
            assert handler.status == "running"
            leaving = loop.create_task(fixture.__aexit__(None, None, None), context=context)
            with pytest.raises(
                WorkflowRuntimeError, match="entered in one task and left in another"
            ):
                await leaving
            assert handler.is_done()
            assert body.seen == ["cleaned up"]

    asyncio_run(main, use_uvloop)


@LOOPS
@OWNERS
def test_failure_of_a_run_whose_owner_is_left_elsewhere(owner, use_uvloop):
    """P9: the failure is the cause of the error, which names it."""
    failure = Mine("while it unwound")

    async def main():
        fixture = owned(owner, Body(failure))
        loop = asyncio.get_running_loop()
        await loop.create_task(fixture.__aenter__())
        with Catch() as left:
            await loop.create_task(fixture.__aexit__(None, None, None))
        return left.error

    error = asyncio_run(main, use_uvloop)

    while error.__cause__ is None:  # of two owners around each other, the outer one came last
        error = error.__context__
    assert type(error) is WorkflowRuntimeError
    assert error.__cause__ is failure
    assert any("Mine('while it unwound')" in note for note in error.__notes__)


@LOOPS
@OWNERS
def test_the_task_that_entered_lives_on_undisturbed(owner, use_uvloop):
    """P1: it keeps no scope of the block: it is not cancelled, and its own scopes work."""
    body = Body()

    async def main():
        handed_over = anyio.Event()
        left = anyio.Event()

        async def enter():
            fixture = owned(owner, body)
            await fixture.__aenter__()
            return fixture

        async def host(fixtures):
            fixtures.append(await enter())
            handed_over.set()
            await left.wait()
            await wait_until_idle()
            assert asyncio.current_task().cancelling() == 0
            with anyio.move_on_after(0) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(anyio.lowlevel.checkpoint)
            assert anyio.current_effective_deadline() == float("inf")
            return "lived on"

        fixtures = []
        task = asyncio.create_task(host(fixtures))
        await handed_over.wait()
        with pytest.raises(WorkflowRuntimeError):
            await asyncio.create_task(fixtures[0].__aexit__(None, None, None))
        left.set()
        assert await task == "lived on"

    asyncio_run(main, use_uvloop)


@LOOPS
@OWNERS
def test_cancelled_while_it_is_left_elsewhere(owner, use_uvloop):
    """P1, P2: natively cancelled, it still waits for the end of the run."""
    body = Body()

    async def main():
        fixture = owned(owner, body)
        loop = asyncio.get_running_loop()
        handler = await loop.create_task(fixture.__aenter__())
        leaving = loop.create_task(fixture.__aexit__(None, None, None))
        await wait_until_idle(1)
        leaving.cancel()
        with pytest.raises((WorkflowRuntimeError, asyncio.CancelledError)):
            await leaving
        assert handler.is_done()
        assert body.seen == ["cleaned up"]

    asyncio_run(main, use_uvloop)


@pytest.mark.parametrize("owner", ["block", "scope"])
def test_block_left_in_another_event_loop(owner):
    """A block of a loop that is gone cannot be waited for: an error, and no hang."""
    body = Body()
    manager = None

    async def enter():
        nonlocal manager
        manager = Single(body).run() if owner == "block" else workflow_scope()
        await manager.__aenter__()
        if owner == "scope":
            Single(body).run().start_soon(manager)
        await body.began.wait()

    async def leave():
        await manager.__aexit__(None, None, None)

    asyncio.run(enter())
    with pytest.raises(WorkflowRuntimeError, match="entered in one event loop and left in another"):
        asyncio.run(leave())


@LOOPS
@pytest.mark.parametrize("failure", [None, Mine("not closed")])
def test_resources_of_a_workflow_whose_block_is_left_in_another_task(use_uvloop, failure):
    """P1, P9: they are closed, and the error says what is wrong, with what failed in closing."""
    log = []

    @contextlib.asynccontextmanager
    async def opened():
        yield "tool"
        await wait_until_idle()
        log.append("closed")
        if failure is not None:
            raise failure

    tool_of = Resource(opened, scope="workflow")

    class Using(Workflow):
        @step
        async def use(self, ev: StartEvent, tool: Annotated[str, tool_of]) -> StopEvent:
            return StopEvent(result=tool)

    async def main():
        workflow = Using()
        loop = asyncio.get_running_loop()
        before = len(asyncio.all_tasks())
        await loop.create_task(workflow.__aenter__())
        assert await workflow.run() == "tool"
        with pytest.raises(WorkflowRuntimeError, match="entered in one task and left in") as caught:
            await loop.create_task(workflow.__aexit__(None, None, None))
        assert len(asyncio.all_tasks()) == before
        return caught.value

    error = asyncio_run(main, use_uvloop)

    assert log == ["closed"]
    assert error.__cause__ is failure


# -- the same on Trio ------------------------------------------------------------------------------------


@OWNERS
def test_block_left_in_another_task_on_trio(owner):
    """P1: the run is over when the other task continues. The task that entered cannot be mended."""
    body = Body()
    seen = []

    async def main():
        fixture = owned(owner, body)
        entered = trio.Event()

        async def host():
            seen.append(await fixture.__aenter__())
            entered.set()
            await trio.sleep_forever()

        async def other():
            await entered.wait()
            try:
                await fixture.__aexit__(None, None, None)
            except WorkflowRuntimeError as error:
                seen.append(error)
            assert seen[0].is_done()
            assert body.seen == ["cleaned up"]
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(host)
            nursery.start_soon(other)

    # Trio itself raises for the nursery that the first task has not left.
    with Catch():
        trio.run(main)

    assert isinstance(seen[1], WorkflowRuntimeError)


# -- and where all is as it should be ---------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("owner", ["block", "scope"])
async def test_interrupt_of_a_run_reaches_the_block_s_body(kind, owner):
    """P8: the body is cancelled, and that leaves bare; nothing of it stays with the task."""
    seen = []

    async def work(ctx):
        raise kind

    with Catch() as left:
        with anyio.fail_after(5):
            manager = Single(work).run() if owner == "block" else workflow_scope()
            async with manager:
                handler = manager if owner == "block" else Single(work).run()
                try:
                    await anyio.sleep_forever()
                except BaseException as error:
                    seen.append(error)
                    raise
                finally:
                    del handler

    assert type(left.error) is kind
    assert len(seen) == 1
    if not is_trio():
        assert asyncio.current_task().cancelling() == 0
    await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_deadline_around_a_block_is_known_inside(backend):
    """P10: the steps see the nearest deadline around the block, and are cancelled at it."""
    seen = []

    async def work(ctx):
        seen.append(anyio.current_effective_deadline() - anyio.current_time())
        await anyio.sleep_forever()

    async def main():
        with anyio.move_on_after(7) as scope:
            async with Single(work).run():
                await anyio.sleep_forever()
        assert scope.cancelled_caught

    run_virtually(backend, main)

    assert seen == [pytest.approx(7)]
