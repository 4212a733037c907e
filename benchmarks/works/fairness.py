"""
Fairness: how long another task has to wait for its turn while a chain of *n* hops goes on.

The other task does nothing but give way, again and again. The chains are those of `chain`.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys
from array import array
from functools import partial
from typing import Any

from benchmarks._library import load, open_group
from benchmarks._measure import Numbers, now, serve, spread
from benchmarks._model import Metric, Work
from benchmarks.works import chain


WORKS = (
    Work(
        id="fairness",
        name="fairness",
        title="another task during a chain",
        size="n",
        sizes=(1_000_000,),
        quick=(20_000,),
        judged=(1_000_000,),
        repeats=2,
        peers=False,
        metrics=(
            Metric("max_us", "µs", "longest wait", of_all=max),
            Metric("p99_us", "µs", "wait p99"),
            Metric("turns", "turns/1,000 hops", "turns"),
        ),
    ),
)


class Rival:
    """The other task's record of the waits between its turns."""

    def __init__(self) -> None:
        self.waits = array("d")
        self.going = True

    async def give_way(self, checkpoint) -> None:
        """Take turns until *going* is false, one at least."""
        last = now()
        while True:
            await checkpoint()
            this = now()
            self.waits.append(this - last)
            last = this
            if not self.going:
                return

    def numbers(self, n: int) -> Numbers:
        """The waits, and how many there were."""
        return {**spread(self.waits), "turns": len(self.waits) / n * 1000}


async def measured(lib: Any, once: chain.Once, n: int) -> Numbers:
    """The rival beside a chain, in a nursery of Trio or a task group of AnyIO."""
    rival = Rival()
    async with open_group(lib) as group:
        group.start_soon(rival.give_way, lib.lowlevel.checkpoint)
        assert await once() == n
        rival.going = False
    return rival.numbers(n)


def with_sluicegate(lib, n: int) -> Numbers:
    """The engine decides when a chain gives way."""
    from benchmarks._flows import Chain

    return lib.run(partial(measured, lib, Chain(n).run, n))


def on_trio(n: int) -> Numbers:
    """Each hop gives way by itself."""
    lib = load("trio")
    return lib.run(partial(measured, lib, chain.trio_chain(n), n))


def on_anyio(n: int) -> Numbers:
    """Each hop gives way by itself."""
    lib = load("asyncio")
    return lib.run(partial(measured, lib, chain.anyio_chain(n), n))


def on_asyncio(n: int) -> Numbers:
    """Each hop gives way by itself."""
    import asyncio

    async def main() -> Numbers:
        rival = Rival()
        async with asyncio.TaskGroup() as group:
            group.create_task(rival.give_way(lambda: asyncio.sleep(0)))
            assert await chain.asyncio_chain(n)() == n
            rival.going = False
        return rival.numbers(n)

    return asyncio.run(main())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
