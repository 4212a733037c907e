"""
Timeout: a deadline of 50 ms over *k* steps with a clean-up of 20 ms: what it takes beyond the 70.

By hand: ``move_on_after`` around a nursery. The clean-up is shielded.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import contextlib
import sys
from typing import Any

from benchmarks._library import open_group
from benchmarks._measure import Numbers, seconds, serve
from benchmarks._model import Metric, Work


WORKS = (
    Work(
        id="timeout",
        name="timeout",
        title="timeout, beyond deadline and clean-up",
        size="k",
        sizes=(1, 1_000),
        quick=(1,),
        judged=(1,),
        fixed={"deadline_ms": 50, "cleanup_ms": 20, "rounds": 3},
        metrics=(Metric("ms", "ms"),),
    ),
)


def measured(once, deadline_ms: int, cleanup_ms: int, rounds: int):
    """Do *once* so many times; it returns whether all was cleaned up."""

    async def main() -> Numbers:
        took = await seconds(once, bool, rounds=rounds)
        return {"ms": took * 1e3 - deadline_ms - cleanup_ms}

    return main


async def stuck(lib: Any, cleaned: list[None], cleanup_ms: int) -> None:
    """Wait for ever with Trio or AnyIO; its clean-up is shielded, and counts for its own run."""
    try:
        await lib.sleep_forever()
    finally:
        with lib.CancelScope(shield=True):
            await lib.sleep(cleanup_ms / 1e3)
        cleaned.append(None)


async def stuck_on_asyncio(cleaned: list[None], cleanup_ms: int) -> None:
    """The same; a task is cancelled once, so its clean-up needs no shield."""
    import asyncio

    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(cleanup_ms / 1e3)
        cleaned.append(None)


def with_sluicegate(lib, k: int, deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """The workflow's own timeout."""
    from sluicegate import Event, StartEvent, StopEvent, Workflow, WorkflowTimeoutError, step

    class Job(Event):
        i: int

    class Done(Event):
        i: int

    class Stuck(Workflow[Any]):
        def __init__(self) -> None:
            super().__init__(timeout=deadline_ms / 1e3)
            self.cleaned: list[None] = []

        @step
        async def produce(self, ev: StartEvent) -> list[Job]:
            return [Job(i=i) for i in range(k)]

        @step(num_workers=k)
        async def work(self, ev: Job) -> Done:
            await stuck(lib, self.cleaned, cleanup_ms)
            return Done(i=ev.i)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    async def once() -> bool:
        workflow = Stuck()
        with contextlib.suppress(WorkflowTimeoutError):
            await workflow.run()
        return len(workflow.cleaned) == k

    return lib.run(measured(once, deadline_ms, cleanup_ms, rounds))


def by_hand(lib: Any, k: int, deadline_ms: int, cleanup_ms: int):
    """*k* tasks in a nursery of Trio or a task group of AnyIO."""

    async def once() -> bool:
        cleaned: list[None] = []
        with lib.move_on_after(deadline_ms / 1e3):
            async with open_group(lib) as group:
                for _ in range(k):
                    group.start_soon(stuck, lib, cleaned, cleanup_ms)
        return len(cleaned) == k

    return once


def on_trio(k: int, deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """See `by_hand`."""
    import trio

    once = by_hand(trio, k, deadline_ms, cleanup_ms)
    return trio.run(measured(once, deadline_ms, cleanup_ms, rounds))


def on_anyio(k: int, deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """See `by_hand`."""
    import anyio

    once = by_hand(anyio, k, deadline_ms, cleanup_ms)
    return anyio.run(measured(once, deadline_ms, cleanup_ms, rounds))


def on_asyncio(k: int, deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """``asyncio.timeout``."""
    import asyncio

    async def once() -> bool:
        cleaned: list[None] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_ms / 1e3), asyncio.TaskGroup() as group:
                for _ in range(k):
                    group.create_task(stuck_on_asyncio(cleaned, cleanup_ms))
        return len(cleaned) == k

    return asyncio.run(measured(once, deadline_ms, cleanup_ms, rounds)())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
