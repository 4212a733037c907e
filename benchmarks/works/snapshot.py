"""
Snapshot: the books of a run with *k* events that wait in a fan-out are written, and read again.

There is nothing to write this by hand against.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import gc
import sys
import warnings
from typing import Any

from benchmarks._measure import Numbers, middle, now, serve
from benchmarks._model import Metric, Work


WORKS = (
    Work(
        id="snapshot",
        name="snapshot",
        title="snapshot with pending events",
        size="k",
        sizes=(100, 1_000, 10_000),
        quick=(1_000, 4_000),
        judged=(1_000, 10_000),
        fixed={"rounds": 5},
        systems=("sluicegate-trio", "sluicegate-asyncio"),
        metrics=(
            Metric("ms", "ms", "write"),
            Metric("us", "µs/event", "write, for each event"),
            Metric("read_ms", "ms", "read"),
        ),
    ),
)


def with_sluicegate(lib, k: int, rounds: int) -> Numbers:
    """``handler.snapshot()``, and ``workflow.resume()`` of it up to the start."""
    from sluicegate import Event, StartEvent, StopEvent, Workflow, step

    class Job(Event):
        i: int

    class Done(Event):
        i: int

    class Pending(Workflow[int]):
        def __init__(self) -> None:
            super().__init__()
            self.started = 0
            self.gate: Any = lib.Event()

        @step
        async def produce(self, ev: StartEvent) -> list[Job]:
            return [Job(i=i) for i in range(k)]

        @step(num_workers=2)
        async def work(self, ev: Job) -> Done:
            self.started += 1
            await self.gate.wait()
            return Done(i=ev.i)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sum(ev.i for ev in evs))

    async def main() -> Numbers:
        workflow = Pending()
        # Of those that are resumed only the last is run, which the others would warn of.
        warnings.filterwarnings("ignore", "a run of .* was never started", RuntimeWarning)
        resumed: list[Any] = []
        writing, reading = [], []
        async with workflow.run() as handler:
            while workflow.started < 2:
                await lib.lowlevel.checkpoint()
            for _ in range(rounds + 1):
                gc.collect()
                start = now()
                data = handler.snapshot()
                written = now()
                resumed.append(workflow.resume(data))
                reading.append(now() - written)
                writing.append(written - start)
            workflow.gate.set()
            assert await handler == await resumed[-1] == k * (k - 1) // 2
        taken = middle(writing[1:])
        return {"ms": taken, "us": taken / k * 1e3, "read_ms": middle(reading[1:])}

    return lib.run(main)


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
