"""
Latency: one event per millisecond, *m* of them; from before the send to after the receipt.

By hand: a task and a channel of size 64.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys

from benchmarks._measure import Item, Numbers, now, serve, spread
from benchmarks._model import Metric, Work


WORKS = (
    Work(
        id="latency",
        name="latency",
        title="stream, latency",
        size="m",
        sizes=(1_000,),
        quick=(300,),
        judged=(1_000,),
        turns=3,
        metrics=(
            Metric("p50_us", "µs", "p50"),
            Metric("p99_us", "µs", "p99"),
            Metric("max_us", "µs", "longest", of_all=max),
        ),
    ),
)


def with_sluicegate(lib, m: int) -> Numbers:
    """``await ctx.stream.send()`` and ``handler.stream_events()``."""
    from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step

    class Token(Event):
        value: float

    class Streamer(Workflow[int]):
        @step
        async def produce(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for _ in range(m):
                await lib.sleep(0.001)
                await ctx.stream.send(Token(value=now()))
            return StopEvent(result=m)

    async def main() -> Numbers:
        async with Streamer().run() as handler:
            times = [
                now() - event.value
                async for event in handler.stream_events()
                if isinstance(event, Token)
            ]
        assert len(times) == m
        return spread(times)

    return lib.run(main)


def on_trio(m: int) -> Numbers:
    """``await send.send()`` and ``async for``."""
    import trio

    async def main() -> Numbers:
        send, receive = trio.open_memory_channel[Item](64)

        async def produce() -> None:
            async with send:
                for _ in range(m):
                    await trio.sleep(0.001)
                    await send.send(Item(now()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            times = [now() - item.value async for item in receive]
        assert len(times) == m
        return spread(times)

    return trio.run(main)


def on_anyio(m: int) -> Numbers:
    """``await send.send()`` and ``async for``."""
    import anyio

    async def main() -> Numbers:
        send, receive = anyio.create_memory_object_stream[Item](64)

        async def produce() -> None:
            async with send:
                for _ in range(m):
                    await anyio.sleep(0.001)
                    await send.send(Item(now()))

        async with anyio.create_task_group() as group, receive:
            group.start_soon(produce)
            times = [now() - item.value async for item in receive]
        assert len(times) == m
        return spread(times)

    return anyio.run(main)


def on_asyncio(m: int) -> Numbers:
    """``await queue.put()`` and ``await queue.get()``."""
    import asyncio

    async def main() -> Numbers:
        queue: asyncio.Queue[Item] = asyncio.Queue(64)

        async def produce() -> None:
            for _ in range(m):
                await asyncio.sleep(0.001)
                await queue.put(Item(now()))

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            times = []
            while len(times) < m:
                item = await queue.get()
                times.append(now() - item.value)
        return spread(times)

    return asyncio.run(main())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
