"""
Concurrent runs: *r* three-step runs at once, each sleeping 10 ms in its second step.

Time and peak of resident memory for each, and after which time the runs were at their third step.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys
from collections.abc import Callable

from benchmarks._library import open_group
from benchmarks._measure import Numbers, forget_peak, now, peak_kib, serve, spread
from benchmarks._model import Metric, Work
from benchmarks.works import _three_steps


WORKS = (
    Work(
        id="concurrent_runs",
        name="concurrent_runs",
        title="three-step runs at once",
        size="r",
        sizes=(100, 1_000, 10_000),
        quick=(1_000,),
        judged=(10_000,),
        watched=True,
        metrics=(
            Metric("us", "µs/run"),
            Metric("kib", "KiB/run", "memory"),
            Metric("p99_us", "µs", "at the third step p99"),
        ),
    ),
)


class Burst:
    """The record of one burst of runs."""

    def __init__(self, r: int) -> None:
        self.r = r
        self.arrived: list[float] = []

    def begin(self) -> None:
        """What came before was to warm up."""
        self.arrived.clear()
        self.before = forget_peak()
        self.start = now()

    def mark(self) -> None:
        """A run is at its third step."""
        self.arrived.append(now())

    def numbers(self) -> Numbers:
        """All are done."""
        took = now() - self.start
        assert len(self.arrived) == self.r
        return {
            "us": took / self.r * 1e6,
            "kib": (peak_kib() - self.before) / self.r,
            **spread(moment - self.start for moment in self.arrived),
            "began": self.start,
            "base_kib": self.before,
        }


def with_sluicegate(lib, r: int) -> Numbers:
    """Each run is started in one group."""
    burst = Burst(r)
    workflow = _three_steps.sluicegate_workflow(lib, burst.mark)(pause=0.010)

    async def main() -> Numbers:
        assert await workflow.run() == 3
        burst.begin()
        async with open_group(lib) as group:
            handlers = [workflow.run().start_soon(group) for _ in range(r)]
        answers = [handler.result() for handler in handlers]
        numbers = burst.numbers()
        assert answers == [3] * r
        return numbers

    return lib.run(main)


def by_hand(run: Callable, open_nursery: Callable, r: int):
    """As many tasks in one nursery."""

    async def main() -> Numbers:
        assert await run() == 3
        answers: list[int] = []
        burst = Burst(r)
        burst.begin()

        async def one() -> None:
            answers.append(await run(0.010, burst.mark))

        async with open_nursery() as nursery:
            for _ in range(r):
                nursery.start_soon(one)
        numbers = burst.numbers()
        assert answers == [3] * r
        return numbers

    return main


def on_trio(r: int) -> Numbers:
    """See `by_hand`."""
    import trio

    return trio.run(by_hand(_three_steps.trio_run, trio.open_nursery, r))


def on_anyio(r: int) -> Numbers:
    """See `by_hand`."""
    import anyio

    return anyio.run(by_hand(_three_steps.anyio_run, anyio.create_task_group, r))


def on_asyncio(r: int) -> Numbers:
    """As many tasks in one task group."""
    import asyncio

    async def main() -> Numbers:
        assert await _three_steps.asyncio_run() == 3
        burst = Burst(r)
        burst.begin()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_three_steps.asyncio_run(0.010, burst.mark)) for _ in range(r)
            ]
        numbers = burst.numbers()
        assert [task.result() for task in tasks] == [3] * r
        return numbers

    return asyncio.run(main())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
