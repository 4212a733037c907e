"""Microsoft Agent Framework: executors with handlers, in rounds, on asyncio.

An executor takes its messages one at a time, so there is no number of workers.
A workflow has one run at a time, but many one after another.
"""

import asyncio
import logging
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from agent_framework import Executor, WorkflowBuilder, WorkflowContext, handler, response_handler

from benchmarks import _measure
from benchmarks._measure import Item, Numbers, now
from benchmarks.works import short_run as short
from benchmarks.works.concurrent_runs import Burst
from benchmarks.works.fan_out import complete
from benchmarks.works.idle_runs import Idling
from benchmarks.works.slow_reader import risen


logging.disable(logging.WARNING)


@dataclass(slots=True)
class Done:
    value: int


class Hop(Executor):
    """Sends on what it gets, plus one, or yields it at the end."""

    def __init__(self, name: str, last: int) -> None:
        super().__init__(id=name)
        self.last = last

    @handler
    async def take(self, item: Item, ctx: WorkflowContext[Item, int]) -> None:
        if item.value < self.last:
            await ctx.send_message(Item(item.value + 1))
        else:
            await ctx.yield_output(item.value)


def chain(n: int, rounds: int) -> Numbers:
    """Two executors with an edge each way."""
    ping, pong = Hop("ping", n), Hop("pong", n)
    builder = WorkflowBuilder(start_executor=ping, max_iterations=n + 10)
    workflow = builder.add_edge(ping, pong).add_edge(pong, ping).build()

    async def once() -> int:
        return (await workflow.run(Item(0))).get_outputs()[0]

    return asyncio.run(_measure.held(once, n.__eq__, rounds=rounds, size=n))


class Spread(Executor):
    @handler
    async def take(self, k: int, ctx: WorkflowContext[Item]) -> None:
        for i in range(k):
            await ctx.send_message(Item(i))


class Worker(Executor):
    @handler
    async def take(self, item: Item, ctx: WorkflowContext[Done]) -> None:
        await asyncio.sleep(0)
        await ctx.send_message(Done(item.value))


class Join(Executor):
    def __init__(self, name: str, k: int) -> None:
        super().__init__(id=name)
        self.k = k
        self.found: list[int] = []

    @handler
    async def take(self, done: Done, ctx: WorkflowContext[None, list]) -> None:
        self.found.append(done.value)
        if len(self.found) == self.k:
            found, self.found = self.found, []
            await ctx.yield_output(found)


def fan_out(k: int, workers: int, rounds: int) -> Numbers:
    """One after another: *workers* is not applied."""
    spread, worker, join = Spread(id="spread"), Worker(id="worker"), Join("join", k)
    builder = WorkflowBuilder(start_executor=spread)
    workflow = builder.add_edge(spread, worker).add_edge(worker, join).build()

    async def once() -> list[int]:
        return (await workflow.run(k)).get_outputs()[0]

    done = partial(complete, k=k)
    return asyncio.run(_measure.each(once, done, rounds=rounds, size=k))


class Producer(Executor):
    def __init__(self, pause: float, value) -> None:
        super().__init__(id="producer")
        self.pause = pause
        self.value = value

    @handler
    async def take(self, m: int, ctx: WorkflowContext[None, Item]) -> None:
        for i in range(m):
            await asyncio.sleep(self.pause)
            await ctx.yield_output(Item(self.value(i)))


def _stream():
    workflow = WorkflowBuilder(start_executor=Producer(0, "token {}".format)).build()

    async def stream(m: int, pause_ms: int = 0) -> int:
        got = 0
        async for event in workflow.run(m, stream=True):
            if isinstance(event.data, Item):
                got += 1
                if pause_ms and got % 100 == 0:
                    await asyncio.sleep(pause_ms / 1000)
        return got

    return stream


def stream(m: int, rounds: int) -> Numbers:
    """``yield_output``; all outputs are kept for the result as well."""
    return asyncio.run(_measure.each(partial(_stream(), m), m.__eq__, rounds=rounds, size=m))


def slow_reader(m: int) -> Numbers:
    """The same with a slow reader."""
    return asyncio.run(risen(_stream(), m))


def latency(m: int) -> Numbers:
    """``yield_output`` and ``run(stream=True)``."""

    async def main() -> Numbers:
        workflow = WorkflowBuilder(start_executor=Producer(0.001, lambda _: now())).build()
        times = [
            now() - event.data.value
            async for event in workflow.run(m, stream=True)
            if isinstance(event.data, Item)
        ]
        assert len(times) == m
        return _measure.spread(times)

    return asyncio.run(main())


class Step(Executor):
    """One of three; the second may pause, the third yields."""

    def __init__(self, name: str, pause: float = 0, mark=None) -> None:
        super().__init__(id=name)
        self.pause = pause
        self.mark = mark

    @handler
    async def take(self, item: Item, ctx: WorkflowContext[Item, int]) -> None:
        if self.pause:
            await asyncio.sleep(self.pause)
        if self.mark is None:
            await ctx.send_message(Item(item.value + 1))
        else:
            self.mark()
            await ctx.yield_output(item.value + 1)


def _three_steps(pause: float = 0, mark=lambda: None):
    first, second, third = Step("first"), Step("second", pause), Step("third", mark=mark)
    builder = WorkflowBuilder(start_executor=first)
    return builder.add_edge(first, second).add_edge(second, third).build()


def short_run(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """With ``asyncio.timeout``: it has none of its own."""
    workflow = _three_steps()

    async def one() -> int:
        return (await workflow.run(Item(0))).get_outputs()[0]

    async def limited() -> int:
        async with asyncio.timeout(timeout):
            return await one()

    return asyncio.run(short.measured(limited if timeout else one, r, rounds)())


def concurrent_runs(r: int) -> Numbers:
    """A workflow does one run at a time, so each run has its own."""

    async def main() -> Numbers:
        await _three_steps().run(Item(0))
        burst = Burst(r)
        burst.begin()
        results = await asyncio.gather(
            *[_three_steps(0.010, burst.mark).run(Item(0)) for _ in range(r)]
        )
        answers = [result.get_outputs()[0] for result in results]
        numbers = burst.numbers()
        assert answers == [3] * r
        return numbers

    return asyncio.run(main())


class Ask(Executor):
    @handler
    async def take(self, item: Item, ctx: WorkflowContext[None, int]) -> None:
        await ctx.request_info(request_data=item, response_type=int)

    @response_handler
    async def answered(self, request: Item, answer: int, ctx: WorkflowContext[None, int]) -> None:
        await ctx.yield_output(answer)


def idle_runs(r: int, inside: int = 0) -> Numbers:
    """
    A request for information ends the call; the answer goes to another handler later.

    A workflow has one run at a time, so each run has its own.
    """
    if inside:
        msg = "it waits between handlers only"
        raise NotImplementedError(msg)

    async def main() -> Numbers:
        idling = Idling(r)

        async def ask() -> tuple[Any, str]:
            workflow = WorkflowBuilder(start_executor=Ask(id="ask")).build()
            result = await workflow.run(Item(0))
            return workflow, result.get_request_info_events()[0].request_id

        async def answer(workflow: Any, request: str, i: int) -> int:
            return (await workflow.run(responses={request: i})).get_outputs()[0]

        asked = await asyncio.gather(*[ask() for _ in range(r)])
        idling.all_asked()
        idling.waiting()
        answers = await asyncio.gather(*[answer(*each, i) for i, each in enumerate(asked)])
        numbers = idling.numbers()
        assert answers == list(range(r))
        return numbers

    return asyncio.run(main())


def importing() -> Numbers:
    """``from agent_framework import WorkflowBuilder``: the package imports what is asked for."""
    return _measure.importing("agent_framework:WorkflowBuilder")


if __name__ == "__main__":
    _measure.serve_peer(globals(), sys.argv[1:])
