"""AutoGen core: agents that publish messages to each other in one runtime, on asyncio.

It has no runs: nothing begins and ends but the runtime. So it does the chain and the fan-out.
"""

import asyncio
import logging
import sys
from dataclasses import dataclass
from functools import partial

from autogen_core import (
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypeSubscription,
    message_handler,
)

from benchmarks import _measure
from benchmarks._measure import Numbers
from benchmarks.works.fan_out import complete


logging.disable(logging.WARNING)


@dataclass
class Job:
    i: int


@dataclass
class Done:
    i: int


async def _runtime(**agents) -> SingleThreadedAgentRuntime:
    runtime = SingleThreadedAgentRuntime()
    for name, (kind, factory) in agents.items():
        await kind.register(runtime, name, factory)
        await runtime.add_subscription(TypeSubscription(name, name))
    runtime.start()
    return runtime


def chain(n: int, rounds: int) -> Numbers:
    """Two agents that publish to each other's topic."""
    end: asyncio.Future[int]

    class Hop(RoutedAgent):
        def __init__(self, other: str) -> None:
            super().__init__("hop")
            self.other = other

        @message_handler
        async def take(self, message: Job, ctx: MessageContext) -> None:
            if message.i < n:
                await self.publish_message(Job(message.i + 1), TopicId(self.other, "x"))
            else:
                end.set_result(message.i)

    async def main() -> Numbers:
        runtime = await _runtime(ping=(Hop, lambda: Hop("pong")), pong=(Hop, lambda: Hop("ping")))

        async def once() -> int:
            nonlocal end
            end = asyncio.Future()
            await runtime.publish_message(Job(0), TopicId("ping", "x"))
            return await end

        numbers = await _measure.held(once, n.__eq__, rounds=rounds, size=n)
        await runtime.stop()
        return numbers

    return asyncio.run(main())


def fan_out(k: int, workers: int, rounds: int) -> Numbers:
    """All messages to an agent run at once; the handler holds a semaphore."""
    end: asyncio.Future[list[int]]
    found: list[int] = []
    limit = asyncio.Semaphore(workers)

    class Worker(RoutedAgent):
        @message_handler
        async def take(self, message: Job, ctx: MessageContext) -> None:
            async with limit:
                await asyncio.sleep(0)
            await self.publish_message(Done(message.i), TopicId("join", "x"))

    class Join(RoutedAgent):
        @message_handler
        async def take(self, message: Done, ctx: MessageContext) -> None:
            found.append(message.i)
            if len(found) == k:
                end.set_result(found)

    async def main() -> Numbers:
        runtime = await _runtime(
            work=(Worker, lambda: Worker("worker")), join=(Join, lambda: Join("join"))
        )

        async def once() -> list[int]:
            nonlocal end, found
            end, found = asyncio.Future(), []
            for i in range(k):
                await runtime.publish_message(Job(i), TopicId("work", "x"))
            return await end

        done = partial(complete, k=k)
        numbers = await _measure.each(once, done, rounds=rounds, size=k)
        await runtime.stop()
        return numbers

    return asyncio.run(main())


def importing() -> Numbers:
    """``import autogen_core``."""
    return _measure.importing("autogen_core")


if __name__ == "__main__":
    _measure.serve_peer(globals(), sys.argv[1:])
