"""A run of three steps, which `short_run` does again and again and `concurrent_runs` all at once."""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

from collections.abc import Callable
from typing import Any

from benchmarks._measure import Item


Mark = Callable[[], None]  # called by the third step


def _nothing() -> None:
    """What the third step calls when nobody wants to know."""


def sluicegate_workflow(lib: Any, mark: Mark = _nothing):
    """The workflow class; *pause* seconds in the second step if there are any."""
    from sluicegate import Event, StartEvent, StopEvent, Workflow, step

    class Ping(Event):
        i: int

    class Pong(Event):
        i: int

    class ThreeSteps(Workflow[int]):
        def __init__(self, pause: float = 0, timeout: float | None = None) -> None:
            super().__init__(timeout=timeout)
            self.pause = pause

        @step
        async def first(self, ev: StartEvent) -> Ping:
            return Ping(i=1)

        @step
        async def second(self, ev: Ping) -> Pong:
            if self.pause:
                await lib.sleep(self.pause)
            return Pong(i=ev.i + 1)

        @step
        async def third(self, ev: Pong) -> StopEvent:
            mark()
            return StopEvent(result=ev.i + 1)

    return ThreeSteps


async def trio_run(pause: float = 0, mark: Mark = _nothing) -> int:
    """Three tasks and two channels."""
    import trio

    answer = 0
    to_second, firsts = trio.open_memory_channel[Item](1)
    to_third, seconds = trio.open_memory_channel[Item](1)

    async def first() -> None:
        await to_second.send(Item(1))

    async def second() -> None:
        item = await firsts.receive()
        if pause:
            await trio.sleep(pause)
        await to_third.send(Item(item.value + 1))

    async def third() -> None:
        nonlocal answer
        item = await seconds.receive()
        mark()
        answer = item.value + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        nursery.start_soon(second)
        nursery.start_soon(third)
    return answer


async def anyio_run(pause: float = 0, mark: Mark = _nothing) -> int:
    """Three tasks and two streams."""
    import anyio

    answer = 0
    to_second, firsts = anyio.create_memory_object_stream[Item](1)
    to_third, seconds = anyio.create_memory_object_stream[Item](1)

    async def first() -> None:
        await to_second.send(Item(1))

    async def second() -> None:
        item = await firsts.receive()
        if pause:
            await anyio.sleep(pause)
        await to_third.send(Item(item.value + 1))

    async def third() -> None:
        nonlocal answer
        item = await seconds.receive()
        mark()
        answer = item.value + 1

    with to_second, firsts, to_third, seconds:
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            group.start_soon(second)
            group.start_soon(third)
    return answer


async def asyncio_run(pause: float = 0, mark: Mark = _nothing) -> int:
    """Three tasks and two queues."""
    import asyncio

    firsts: asyncio.Queue[Item] = asyncio.Queue(1)
    seconds: asyncio.Queue[Item] = asyncio.Queue(1)

    async def first() -> None:
        await firsts.put(Item(1))

    async def second() -> None:
        item = await firsts.get()
        if pause:
            await asyncio.sleep(pause)
        await seconds.put(Item(item.value + 1))

    async def third() -> int:
        item = await seconds.get()
        mark()
        return item.value + 1

    async with asyncio.TaskGroup() as group:
        group.create_task(first())
        group.create_task(second())
        answer = group.create_task(third())
    return answer.result()
