"""
Fairness: how long another task has to wait for its turn while a chain of *n* hops goes on.

The other task does nothing but give way, again and again. The chains are those of `chain`.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys
from array import array

from benchmarks._library import open_group
from benchmarks._measure import Item, Numbers, now, serve, spread
from benchmarks._model import Metric, Work


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
        systems=("penstock-trio", "trio", "penstock-asyncio", "anyio", "asyncio"),
        peers=False,
        metrics=(
            Metric("max_us", "µs", "longest wait"),
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


def with_penstock(lib, n: int) -> Numbers:
    """The engine decides when a chain gives way."""
    from benchmarks._flows import Chain

    async def main() -> Numbers:
        rival = Rival()
        async with open_group(lib) as group:
            group.start_soon(rival.give_way, lib.lowlevel.checkpoint)
            assert await Chain(n).run() == n
            rival.going = False
        return rival.numbers(n)

    return lib.run(main)


def on_trio(n: int) -> Numbers:
    """Each hop gives way by itself."""
    import trio

    async def main() -> Numbers:
        rival = Rival()
        to_pong, pings = trio.open_memory_channel[Item](1)
        to_ping, pongs = trio.open_memory_channel[Item](1)

        async def player(inbox, outbox) -> None:
            async for item in inbox:
                if item.value == n:
                    rival.going = False
                    nursery.cancel_scope.cancel()
                    return
                await outbox.send(Item(item.value + 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(rival.give_way, trio.lowlevel.checkpoint)
            nursery.start_soon(player, pings, to_ping)
            nursery.start_soon(player, pongs, to_pong)
            await to_pong.send(Item(0))
        return rival.numbers(n)

    return trio.run(main)


def on_anyio(n: int) -> Numbers:
    """Each hop gives way by itself."""
    import anyio
    import anyio.lowlevel

    async def main() -> Numbers:
        rival = Rival()
        to_pong, pings = anyio.create_memory_object_stream[Item](1)
        to_ping, pongs = anyio.create_memory_object_stream[Item](1)

        async def player(inbox, outbox) -> None:
            async for item in inbox:
                if item.value == n:
                    rival.going = False
                    group.cancel_scope.cancel()
                    return
                await outbox.send(Item(item.value + 1))

        with to_pong, pings, to_ping, pongs:
            async with anyio.create_task_group() as group:
                group.start_soon(rival.give_way, anyio.lowlevel.checkpoint)
                group.start_soon(player, pings, to_ping)
                group.start_soon(player, pongs, to_pong)
                await to_pong.send(Item(0))
        return rival.numbers(n)

    return anyio.run(main)


def on_asyncio(n: int) -> Numbers:
    """Each hop gives way by itself."""
    import asyncio

    async def main() -> Numbers:
        rival = Rival()
        to_pong: asyncio.Queue[Item] = asyncio.Queue(1)
        to_ping: asyncio.Queue[Item] = asyncio.Queue(1)

        async def player(inbox: asyncio.Queue[Item], outbox: asyncio.Queue[Item]) -> None:
            while rival.going:
                item = await inbox.get()
                rival.going = rival.going and item.value < n
                await outbox.put(Item(item.value + 1))

        async with asyncio.TaskGroup() as group:
            group.create_task(rival.give_way(lambda: asyncio.sleep(0)))
            group.create_task(player(to_pong, to_ping))
            group.create_task(player(to_ping, to_pong))
            await to_pong.put(Item(0))
        return rival.numbers(n)

    return asyncio.run(main())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
