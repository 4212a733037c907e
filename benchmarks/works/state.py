"""
State: a step adds one to a number of its state, *n* times, each in an ``edit_state()`` of its own.

Beside the number lie *kib* KiB of lists that are not touched. By hand: a lock around a dict.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys
from typing import Any

from benchmarks._measure import Numbers, middle, now, serve
from benchmarks._model import Metric, Work


WORKS = (
    Work(
        id="state",
        name="state",
        title="read and write of the state, by KiB beside it",
        size="kib",
        sizes=(0, 1_000),
        quick=(0, 1_000),
        judged=(0, 1_000),
        fixed={"n": 4_000},
        metrics=(Metric("us", "µs/write"),),
    ),
)


def rows(kib: int) -> list[list[list[int]]]:
    """What lies beside the number: small lists, so that to copy it is to copy all of it."""
    return [[[i, j] for j in range(14)] for i in range(kib)]


def measured(once, n: int):
    """Do *once*, which returns its time, five times after one to warm up."""

    async def main() -> Numbers:
        times = [await once() for _ in range(6)]
        return {"us": middle(times[1:]) / n * 1e3}

    return main


def with_sluicegate(lib, n: int, kib: int) -> Numbers:
    """``async with ctx.store.edit_state()``."""
    from sluicegate import Context, StartEvent, StopEvent, Workflow, step

    class Counting(Workflow[float]):
        @step
        async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.store.set("rows", rows(kib))
            await ctx.store.set("number", 0)
            start = now()
            for _ in range(n):
                async with ctx.store.edit_state() as state:
                    state.number += 1
            took = now() - start
            assert await ctx.store.get("number") == n
            return StopEvent(result=took)

    return lib.run(measured(Counting().run, n))


def by_hand(lock_class: Any, n: int, kib: int):
    """A dict, and a lock of the library."""

    async def once() -> float:
        values: dict[str, Any] = {"rows": rows(kib), "number": 0}
        lock = lock_class()
        start = now()
        for _ in range(n):
            async with lock:
                values["number"] += 1
        took = now() - start
        assert values["number"] == n
        return took

    return once


def on_trio(n: int, kib: int) -> Numbers:
    """``trio.Lock``."""
    import trio

    return trio.run(measured(by_hand(trio.Lock, n, kib), n))


def on_anyio(n: int, kib: int) -> Numbers:
    """``anyio.Lock``."""
    import anyio

    return anyio.run(measured(by_hand(anyio.Lock, n, kib), n))


def on_asyncio(n: int, kib: int) -> Numbers:
    """``asyncio.Lock``, which never gives way when it is free."""
    import asyncio

    return asyncio.run(measured(by_hand(asyncio.Lock, n, kib), n)())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
