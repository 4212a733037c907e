"""
Fan-out: a step makes *k* events, so many workers take one checkpoint for each, a join gets all.

By hand: a producer, as many worker tasks, two bounded channels, a list.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys
from functools import partial

from benchmarks._measure import Item, Numbers, each, serve
from benchmarks._model import Metric, Work, about


WORKS = tuple(
    Work(
        id=f"fan_out_{workers}",
        name="fan_out",
        title=f"fan-out and join, {workers} workers",
        size="k",
        sizes=(10, 100, 1_000, 10_000),
        quick=(1_000, 3_000),
        judged=(1_000, 10_000),
        fixed={"workers": workers},
        rounds=about(5_000),
        metrics=(Metric("us", "µs/item"),),
    )
    for workers in (64, 4)
)


def complete(answer: list[int], k: int) -> bool:
    """All items are there."""
    return sorted(answer) == list(range(k))


def with_sluicegate(lib, k: int, workers: int, rounds: int) -> Numbers:
    """A list of events out, a list of events in."""
    from sluicegate import Event, StartEvent, StopEvent, Workflow, step

    class Job(Event):
        i: int

    class Done(Event):
        i: int

    class FanOut(Workflow[list[int]]):
        @step
        async def produce(self, ev: StartEvent) -> list[Job]:
            return [Job(i=i) for i in range(k)]

        @step(num_workers=workers)
        async def work(self, ev: Job) -> Done:
            await lib.lowlevel.checkpoint()
            return Done(i=ev.i)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=[ev.i for ev in evs])

    return lib.run(partial(each, FanOut().run, partial(complete, k=k), rounds=rounds, size=k))


def on_trio(k: int, workers: int, rounds: int) -> Numbers:
    """The workers share cloned ends of two channels."""
    import trio

    async def once() -> list[int]:
        to_workers, jobs = trio.open_memory_channel[Item](workers)
        to_join, results = trio.open_memory_channel[Item](workers)

        async def produce() -> None:
            async with to_workers:
                for i in range(k):
                    await to_workers.send(Item(i))

        async def worker(
            inbox: trio.MemoryReceiveChannel[Item], outbox: trio.MemorySendChannel[Item]
        ) -> None:
            async with inbox, outbox:
                async for item in inbox:
                    await trio.lowlevel.checkpoint()
                    await outbox.send(Item(item.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            async with jobs, to_join:
                for _ in range(workers):
                    nursery.start_soon(worker, jobs.clone(), to_join.clone())
            async with results:
                return [item.value async for item in results]

    return trio.run(partial(each, once, partial(complete, k=k), rounds=rounds, size=k))


def on_anyio(k: int, workers: int, rounds: int) -> Numbers:
    """The workers share cloned ends of two streams."""
    import anyio
    from anyio.lowlevel import checkpoint
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    async def once() -> list[int]:
        to_workers, jobs = anyio.create_memory_object_stream[Item](workers)
        to_join, results = anyio.create_memory_object_stream[Item](workers)

        async def produce() -> None:
            async with to_workers:
                for i in range(k):
                    await to_workers.send(Item(i))

        async def worker(
            inbox: MemoryObjectReceiveStream[Item], outbox: MemoryObjectSendStream[Item]
        ) -> None:
            async with inbox, outbox:
                async for item in inbox:
                    await checkpoint()
                    await outbox.send(Item(item.value))

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            async with jobs, to_join:
                for _ in range(workers):
                    group.start_soon(worker, jobs.clone(), to_join.clone())
            async with results:
                gathered = [item.value async for item in results]
        return gathered

    return anyio.run(partial(each, once, partial(complete, k=k), rounds=rounds, size=k))


def on_asyncio(k: int, workers: int, rounds: int) -> Numbers:
    """Two queues, and for each worker a None that says it is over."""
    import asyncio

    async def once() -> list[int]:
        jobs: asyncio.Queue[Item | None] = asyncio.Queue(workers)
        results: asyncio.Queue[Item] = asyncio.Queue(workers)

        async def produce() -> None:
            for i in range(k):
                await jobs.put(Item(i))
            for _ in range(workers):
                await jobs.put(None)

        async def worker() -> None:
            while (item := await jobs.get()) is not None:
                await asyncio.sleep(0)
                await results.put(Item(item.value))

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            for _ in range(workers):
                group.create_task(worker())
            return [(await results.get()).value for _ in range(k)]

    return asyncio.run(each(once, partial(complete, k=k), rounds=rounds, size=k))


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
