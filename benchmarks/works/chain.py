"""
Chain: one event goes to and fro between two steps, *n* hops.

By hand: two tasks, two channels of size 1, ``await send``.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import gc
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks._measure import Item, Numbers, held, serve
from benchmarks._model import Metric, Work, about


Once = Callable[[], Awaitable[int]]

WORKS = (
    Work(
        id="chain",
        name="chain",
        title="chain",
        size="n",
        sizes=(10, 100, 1_000, 10_000, 100_000),
        quick=(1_000, 10_000),
        judged=(1_000, 10_000),
        rounds=about(10_000),
        metrics=(Metric("us", "µs/hop"), Metric("kib", "KiB/hop", "peak memory")),
    ),
    Work(
        id="chain_kept",
        name="chain",
        title="chain, kept per hop",
        size="n",
        sizes=(10_000,),
        quick=(10_000,),
        judged=(10_000,),
        fixed={"rounds": 1, "kept": 1},
        systems=("sluicegate-trio", "sluicegate-asyncio"),
        peers=False,
        repeats=1,
        metrics=(Metric("blocks", "blocks/hop"),),
    ),
)


def with_sluicegate(lib, n: int, rounds: int, kept: int = 0) -> Numbers:
    """A hop is handed on in the same task; *kept* counts what is left behind instead of time."""
    from benchmarks._flows import Chain, Ping, Pong
    from sluicegate import StopEvent, step

    counts: list[int] = []

    class Counted(Chain):
        @step
        async def ping(self, ev: Ping) -> Pong | StopEvent:
            if ev.i in {n // 10, n}:
                gc.collect()
                counts.append(sys.getallocatedblocks())
            return Pong(i=ev.i + 1) if ev.i < n else StopEvent(result=ev.i)

    async def count() -> Numbers:
        assert await Counted(n).run() == n
        return {"blocks": (counts[1] - counts[0]) / (n - n // 10)}

    if kept:
        return lib.run(count)
    return lib.run(partial(held, Chain(n).run, n.__eq__, rounds=rounds, size=n))


def trio_chain(n: int) -> Once:
    """Two tasks in a nursery."""
    import trio

    async def once() -> int:
        last = 0
        to_pong, pings = trio.open_memory_channel[Item](1)
        to_ping, pongs = trio.open_memory_channel[Item](1)

        async def player(
            inbox: trio.MemoryReceiveChannel[Item], outbox: trio.MemorySendChannel[Item]
        ) -> None:
            nonlocal last
            async for item in inbox:
                if item.value == n:
                    last = item.value
                    nursery.cancel_scope.cancel()
                    return
                await outbox.send(Item(item.value + 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(player, pings, to_ping)
            nursery.start_soon(player, pongs, to_pong)
            await to_pong.send(Item(0))
        return last

    return once


def anyio_chain(n: int) -> Once:
    """Two tasks in a task group."""
    import anyio
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    async def once() -> int:
        last = 0
        to_pong, pings = anyio.create_memory_object_stream[Item](1)
        to_ping, pongs = anyio.create_memory_object_stream[Item](1)

        async def player(
            inbox: MemoryObjectReceiveStream[Item], outbox: MemoryObjectSendStream[Item]
        ) -> None:
            nonlocal last
            async for item in inbox:
                if item.value == n:
                    last = item.value
                    group.cancel_scope.cancel()
                    return
                await outbox.send(Item(item.value + 1))

        with to_pong, pings, to_ping, pongs:
            async with anyio.create_task_group() as group:
                group.start_soon(player, pings, to_ping)
                group.start_soon(player, pongs, to_pong)
                await to_pong.send(Item(0))
        return last

    return once


def asyncio_chain(n: int) -> Once:
    """Two tasks and two queues; the one that reaches the end has the other cancelled."""
    import asyncio

    async def once() -> int:
        to_pong: asyncio.Queue[Item] = asyncio.Queue(1)
        to_ping: asyncio.Queue[Item] = asyncio.Queue(1)

        async def player(inbox: asyncio.Queue[Item], outbox: asyncio.Queue[Item]) -> int:
            while True:
                item = await inbox.get()
                if item.value == n:
                    return item.value
                await outbox.put(Item(item.value + 1))

        players = {
            asyncio.create_task(player(to_pong, to_ping)),
            asyncio.create_task(player(to_ping, to_pong)),
        }
        await to_pong.put(Item(0))
        done, rest = await asyncio.wait(players, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.wait(rest)
        return done.pop().result()

    return once


def on_trio(n: int, rounds: int) -> Numbers:
    """See `trio_chain`."""
    import trio

    return trio.run(partial(held, trio_chain(n), n.__eq__, rounds=rounds, size=n))


def on_anyio(n: int, rounds: int) -> Numbers:
    """See `anyio_chain`."""
    import anyio

    return anyio.run(partial(held, anyio_chain(n), n.__eq__, rounds=rounds, size=n))


def on_asyncio(n: int, rounds: int) -> Numbers:
    """See `asyncio_chain`."""
    import asyncio

    return asyncio.run(held(asyncio_chain(n), n.__eq__, rounds=rounds, size=n))


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
