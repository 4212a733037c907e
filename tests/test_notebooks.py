"""Notebooks: each cell is a task of one event loop, in a context of its own."""

from __future__ import annotations

import asyncio
import gc
import inspect
from contextvars import Context

import anyio
import pytest
import trio

import sluicegate
from sluicegate import WorkflowRuntimeError
from sluicegate.drawing import WorkflowGraph
from tests.helpers import Mine, Single, live_tasks, wait_until_idle


OF_ASYNCIO = pytest.mark.parametrize("kernel", [False], indirect=True)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def kernel(request):
    """Run cells, each in a task and a context of its own."""
    factory = None
    if request.param:
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:

        def cell(function, *args):
            async def run():
                result = function(*args)
                return await result if inspect.iscoroutine(result) else result

            return runner.run(run(), context=Context())

        yield cell


def close(scope):
    return scope.aclose()


def test_a_run_of_one_cell_is_read_in_the_next(kernel):
    """D2: it starts by itself, continues between cells, and is awaited in a third."""
    go_on = anyio.Event()

    async def work(ctx):
        await go_on.wait()
        return "done"

    async def read(handler):
        return [type(event).__name__ async for event in handler.stream_events()]

    scope = kernel(sluicegate.open_scope)
    handler = kernel(Single(work).run)
    kernel(wait_until_idle)
    assert handler.status == "running"
    kernel(go_on.set)
    assert kernel(read, handler) == ["StopEvent"]
    assert kernel(handler._await) == "done"
    kernel(close, scope)


def test_a_handler_is_used_in_the_cell_that_made_it(kernel):
    """D2: without a turn in between."""

    async def work(ctx):
        return "done"

    async def both():
        handler = Single(work).run()
        return [type(event).__name__ async for event in handler.stream_events()], await handler

    scope = kernel(sluicegate.open_scope)
    assert kernel(both) == (["StopEvent"], "done")
    kernel(close, scope)


def test_closing_cancels_what_runs(kernel):
    """P1, P2: and waits for its clean-up; nothing is left. Closing again does nothing."""
    seen = []

    async def work(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await wait_until_idle(3)
            seen.append("cleaned up")

    scope = kernel(sluicegate.open_scope)
    handler = kernel(Single(work).run)
    kernel(wait_until_idle)
    kernel(close, scope)

    assert seen == ["cleaned up"]
    assert handler.status == "cancelled"
    assert kernel(lambda: len(live_tasks())) == 1
    kernel(close, scope)


def test_opening_again_gives_the_same_scope(kernel):
    """D2: a first cell may be run twice; after closing there is a new one."""
    scope = kernel(sluicegate.open_scope)
    assert kernel(sluicegate.open_scope) is scope
    kernel(close, scope)
    other = kernel(sluicegate.open_scope)
    assert other is not scope
    kernel(close, other)


def test_a_failure_stays_with_its_handler(kernel):
    """P9: awaiting raises it; a handler that is dropped unseen warns; nothing piles up."""
    failure = Mine()

    async def work(ctx):
        raise failure

    scope = kernel(sluicegate.open_scope)
    handler = kernel(Single(work).run)
    kernel(wait_until_idle)
    with pytest.raises(Mine):
        kernel(handler._await)
    handler = kernel(Single(work).run)
    kernel(wait_until_idle)
    assert len(scope._runs) == 0
    with pytest.warns(RuntimeWarning, match="failed, and its failure was never observed"):
        del handler
    gc.collect()
    kernel(close, scope)


def test_steps_have_no_lasting_scope_either(kernel):
    """P1: a step claims the runs that it makes."""

    async def work(ctx):
        inner = Single(work).run()
        await wait_until_idle()
        status = inner.status
        inner.cancel()
        return status

    scope = kernel(sluicegate.open_scope)
    handler = kernel(Single(work).run)
    assert kernel(handler._await) == "unstarted"
    kernel(close, scope)


@OF_ASYNCIO
def test_another_event_loop_has_no_part_in_it(kernel):
    """D2: the scope is that of one loop; runs elsewhere want an owner as ever."""

    async def work(ctx):
        return 1

    async def main():
        handler = Single(work).run()
        with pytest.raises(WorkflowRuntimeError, match="has no owner"):
            handler.stream_events()
        return await handler

    scope = kernel(sluicegate.open_scope)
    assert trio.run(main) == 1
    kernel(close, scope)


def test_on_trio_it_says_what_to_write():
    """D2: nothing of Trio lasts over its loop."""

    async def main():
        with pytest.raises(WorkflowRuntimeError, match=r"async with workflow_scope\(\)"):
            sluicegate.open_scope()

    trio.run(main)


@pytest.mark.parametrize(
    ("outside", "backend"), [("asyncio", "asyncio"), ("trio", "trio"), ("trio", "asyncio")]
)
def test_the_entry_in_a_running_event_loop_says_what_to_write(outside, backend):
    """D2: in a notebook ``await main()`` after ``open_scope()``."""

    async def inner():
        raise AssertionError

    async def main():
        with pytest.raises(WorkflowRuntimeError, match="runs here already") as caught:
            sluicegate.run(inner, backend=backend)
        assert ("sluicegate.open_scope()" in str(caught.value)) == (outside == "asyncio")

    anyio.run(main, backend=outside)


@OF_ASYNCIO  # Jupyter's loop; uvloop and Trio both want the signals' descriptor
def test_trio_runs_inside_a_notebook(kernel):
    """D2: ``sluicegate.run(main)`` blocks the kernel's loop, and works."""

    async def work(ctx):
        return "on Trio"

    async def main():
        return await Single(work).run()

    scope = kernel(sluicegate.open_scope)
    assert kernel(sluicegate.run, main) == "on Trio"
    kernel(close, scope)


def test_the_picture_is_shown_inline():
    """D2: in a frame, so that its style is not the notebook's; as SVG and text where that is wanted."""
    graph = WorkflowGraph(Single)
    bundle = graph._repr_mimebundle_(include=None, exclude=None)
    html = bundle["text/html"]

    assert html.startswith('<iframe title="Single"')
    assert "<svg" not in html
    assert "&lt;svg" in html
    assert 'sandbox="allow-scripts"' in html
    assert bundle["image/svg+xml"] == graph._repr_svg_() == graph.to_svg()
    assert bundle["text/plain"] == graph.to_text()
    assert repr(graph) == "<WorkflowGraph of Single: 1 step, 2 events>"
