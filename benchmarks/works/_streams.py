"""The programs that `stream` times and of which `slow_reader` watches the memory."""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

from typing import Any

from benchmarks._measure import Item


def sluicegate_stream(lib: Any, history: int = 10_000):
    """A step pauses and sends, one reader; *history* events stay for readers that come late."""
    from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step

    class Token(Event):
        value: str

    class Streamer(Workflow[int]):
        def __init__(self, m: int) -> None:
            super().__init__(stream_history=history)
            self.m = m

        @step
        async def produce(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for i in range(self.m):
                await lib.lowlevel.checkpoint()
                await ctx.stream.send(Token(value=f"token {i}"))
            return StopEvent(result=self.m)

    async def stream(m: int, pause_ms: int = 0) -> int:
        got = 0
        async with Streamer(m).run() as handler:
            async for event in handler.stream_events():
                if isinstance(event, Token):
                    got += 1
                    if pause_ms and got % 100 == 0:
                        await lib.sleep(pause_ms / 1000)
            assert await handler == m
        return got

    return stream


async def trio_stream(m: int, pause_ms: int = 0) -> int:
    """A channel of size 64."""
    import trio

    got = 0
    send, receive = trio.open_memory_channel[Item](64)

    async def produce() -> None:
        async with send:
            for i in range(m):
                await trio.lowlevel.checkpoint()
                await send.send(Item(f"token {i}"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        async for _item in receive:
            got += 1
            if pause_ms and got % 100 == 0:
                await trio.sleep(pause_ms / 1000)
    return got


async def anyio_stream(m: int, pause_ms: int = 0) -> int:
    """An object stream of size 64."""
    import anyio
    from anyio.lowlevel import checkpoint

    got = 0
    send, receive = anyio.create_memory_object_stream[Item](64)

    async def produce() -> None:
        async with send:
            for i in range(m):
                await checkpoint()
                await send.send(Item(f"token {i}"))

    async with anyio.create_task_group() as group, receive:
        group.start_soon(produce)
        async for _item in receive:
            got += 1
            if pause_ms and got % 100 == 0:
                await anyio.sleep(pause_ms / 1000)
    return got


async def asyncio_stream(m: int, pause_ms: int = 0) -> int:
    """A queue of size 64."""
    import asyncio

    got = 0
    queue: asyncio.Queue[Item] = asyncio.Queue(64)

    async def produce() -> None:
        for i in range(m):
            await asyncio.sleep(0)
            await queue.put(Item(f"token {i}"))

    async with asyncio.TaskGroup() as group:
        group.create_task(produce())
        while got < m:
            await queue.get()
            got += 1
            if pause_ms and got % 100 == 0:
                await asyncio.sleep(pause_ms / 1000)
    return got
