"""
Cancel: *k* steps in flight wait for ever; from the cancellation until the block is left.

Every ``finally`` has run by then, and there are as many tasks as before.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import contextlib
import sys
from typing import Any

from benchmarks._library import open_group, tasks_living
from benchmarks._measure import Numbers, middle, now, serve
from benchmarks._model import Metric, Work


WORKS = (
    Work(
        id="cancel",
        name="cancel",
        title="cancel steps in flight",
        size="k",
        sizes=(10, 100, 1_000, 10_000),
        quick=(1_000,),
        judged=(1_000,),
        fixed={"rounds": 3},
        metrics=(Metric("ms", "ms"),),
    ),
)


def measured(once, k: int, rounds: int, living):
    """Do *once* so many times; it returns its time and the count of finished ``finally`` blocks."""

    async def main() -> Numbers:
        tasks = living()
        times = []
        for _ in range(rounds):
            took, finished = await once()
            assert finished == k, f"{finished} of {k} finally blocks had run"
            assert living() == tasks, f"{living() - tasks} tasks are left"
            times.append(took)
        return {"ms": middle(times)}

    return main


def with_sluicegate(lib, k: int, rounds: int) -> Numbers:
    """``handler.cancel()``."""
    from sluicegate import Event, StartEvent, StopEvent, Workflow, WorkflowCancelledError, step

    class Job(Event):
        i: int

    class Done(Event):
        i: int

    class Stuck(Workflow[Any]):
        def __init__(self) -> None:
            super().__init__()
            self.started = self.finished = 0

        @step
        async def produce(self, ev: StartEvent) -> list[Job]:
            return [Job(i=i) for i in range(k)]

        @step(num_workers=k)
        async def work(self, ev: Job) -> Done:
            self.started += 1
            try:
                await lib.sleep_forever()
            finally:
                self.finished += 1
            return Done(i=ev.i)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    async def once() -> tuple[float, int]:
        workflow = Stuck()
        async with workflow.run() as handler:
            while workflow.started < k:
                await lib.sleep(0.001)
            start = now()
            handler.cancel()
            with contextlib.suppress(WorkflowCancelledError):
                await handler
        return now() - start, workflow.finished

    return lib.run(measured(once, k, rounds, lambda: tasks_living(lib)))


def by_hand(lib: Any, k: int):
    """*k* tasks in a nursery of Trio or a task group of AnyIO."""

    async def once() -> tuple[float, int]:
        started = finished = 0

        async def stuck() -> None:
            nonlocal started, finished
            started += 1
            try:
                await lib.sleep_forever()
            finally:
                finished += 1

        async with open_group(lib) as group:
            for _ in range(k):
                group.start_soon(stuck)
            while started < k:
                await lib.sleep(0.001)
            start = now()
            group.cancel_scope.cancel()
        return now() - start, finished

    return once


def on_trio(k: int, rounds: int) -> Numbers:
    """See `by_hand`."""
    import trio

    return trio.run(measured(by_hand(trio, k), k, rounds, lambda: tasks_living(trio)))


def on_anyio(k: int, rounds: int) -> Numbers:
    """See `by_hand`."""
    import anyio

    return anyio.run(measured(by_hand(anyio, k), k, rounds, lambda: tasks_living(anyio)))


def on_asyncio(k: int, rounds: int) -> Numbers:
    """The task that has the task group is cancelled."""
    import asyncio

    async def once() -> tuple[float, int]:
        started = finished = 0

        async def stuck() -> None:
            nonlocal started, finished
            started += 1
            try:
                await asyncio.Event().wait()
            finally:
                finished += 1

        async def whole() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(k):
                    group.create_task(stuck())

        task = asyncio.create_task(whole())
        while started < k:
            await asyncio.sleep(0.001)
        start = now()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return now() - start, finished

    return asyncio.run(measured(once, k, rounds, lambda: len(asyncio.all_tasks()))())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
