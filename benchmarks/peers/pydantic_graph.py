"""pydantic-graph: ``GraphBuilder``, decisions, map and join, on asyncio through AnyIO.

It has no stream of events, and nothing that waits for an event from outside.
"""

import asyncio
import sys
from dataclasses import dataclass
from functools import partial

import anyio
from anyio.lowlevel import checkpoint
from pydantic_graph import GraphBuilder, StepContext, reduce_list_append

from benchmarks import _measure
from benchmarks._measure import Numbers, now
from benchmarks.works import cancel as cancelling
from benchmarks.works import short_run as short
from benchmarks.works import timeout as deadlines
from benchmarks.works.concurrent_runs import Burst
from benchmarks.works.fan_out import complete


@dataclass
class Ping:
    i: int


@dataclass
class Pong:
    i: int


@dataclass
class Stop:
    i: int


def chain(n: int, rounds: int) -> Numbers:
    """Two steps, each followed by a decision on the type of what it returned."""
    g = GraphBuilder(input_type=Ping, output_type=Stop)

    @g.step
    async def ping(ctx: StepContext[None, None, Ping]) -> Pong | Stop:
        return Pong(ctx.inputs.i + 1) if ctx.inputs.i < n else Stop(ctx.inputs.i)

    @g.step
    async def pong(ctx: StepContext[None, None, Pong]) -> Ping | Stop:
        return Ping(ctx.inputs.i + 1) if ctx.inputs.i < n else Stop(ctx.inputs.i)

    to_pong = g.decision().branch(g.match(Pong).to(pong)).branch(g.match(Stop).to(g.end_node))
    to_ping = g.decision().branch(g.match(Ping).to(ping)).branch(g.match(Stop).to(g.end_node))
    g.add(
        g.edge_from(g.start_node).to(ping),
        g.edge_from(ping).to(to_pong),
        g.edge_from(pong).to(to_ping),
    )
    graph = g.build()

    async def once() -> int:
        return (await graph.run(inputs=Ping(0))).i

    return asyncio.run(_measure.held(once, n.__eq__, rounds=rounds, size=n))


def _mapped(work_of):
    g = GraphBuilder(input_type=int, output_type=list[int])

    @g.step
    async def produce(ctx: StepContext[None, None, int]) -> list[int]:
        return list(range(ctx.inputs))

    @g.step
    async def work(ctx: StepContext[None, None, int]) -> int:
        return await work_of(ctx.inputs)

    join = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).to(produce),
        g.edge_from(produce).map().to(work),
        g.edge_from(work).to(join),
        g.edge_from(join).to(g.end_node),
    )
    return g.build()


def fan_out(k: int, workers: int, rounds: int) -> Numbers:
    """It has no limit of workers: the step holds a limiter."""

    async def main() -> Numbers:
        limiter = anyio.CapacityLimiter(workers)

        async def work(i: int) -> int:
            async with limiter:
                await checkpoint()
            return i

        graph = _mapped(work)
        return await _measure.each(
            lambda: graph.run(inputs=k), partial(complete, k=k), rounds=rounds, size=k
        )

    return asyncio.run(main())


def _three_steps(mark=lambda: None):
    g = GraphBuilder(input_type=float, output_type=int)

    @g.step
    async def first(ctx: StepContext[None, None, float]) -> tuple[float, int]:
        return ctx.inputs, 1

    @g.step
    async def second(ctx: StepContext[None, None, tuple[float, int]]) -> int:
        pause, i = ctx.inputs
        if pause:
            await asyncio.sleep(pause)
        return i + 1

    @g.step
    async def third(ctx: StepContext[None, None, int]) -> int:
        mark()
        return ctx.inputs + 1

    g.add(
        g.edge_from(g.start_node).to(first),
        g.edge_from(first).to(second),
        g.edge_from(second).to(third),
        g.edge_from(third).to(g.end_node),
    )
    return g.build()


def short_run(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """With ``fail_after``: it has no timeout of its own."""
    graph = _three_steps()

    async def one() -> int:
        return await graph.run(inputs=0.0)

    async def limited() -> int:
        with anyio.fail_after(timeout):
            return await graph.run(inputs=0.0)

    return asyncio.run(short.measured(limited if timeout else one, r, rounds)())


def concurrent_runs(r: int) -> Numbers:
    """As many tasks in one task group."""

    async def main() -> Numbers:
        burst = Burst(r)
        graph = _three_steps(burst.mark)
        assert await graph.run(inputs=0.0) == 3
        burst.begin()
        answers: list[int] = []

        async def one() -> None:
            answers.append(await graph.run(inputs=0.010))

        async with anyio.create_task_group() as group:
            for _ in range(r):
                group.start_soon(one)
        numbers = burst.numbers()
        assert answers == [3] * r
        return numbers

    return asyncio.run(main())


def cancel(k: int, rounds: int) -> Numbers:
    """The scope around the run is cancelled."""

    async def once() -> tuple[float, int]:
        started = finished = 0

        async def stuck(_: int) -> int:
            nonlocal started, finished
            started += 1
            try:
                await anyio.sleep_forever()
            finally:
                finished += 1
            return 0

        graph = _mapped(stuck)

        async def run() -> None:
            await graph.run(inputs=k)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            while started < k:
                await anyio.sleep(0.001)
            start = now()
            group.cancel_scope.cancel()
        return now() - start, finished

    return asyncio.run(cancelling.measured(once, k, rounds, lambda: len(asyncio.all_tasks()))())


def timeout(k: int, deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """With ``move_on_after``: it has no timeout of its own."""
    cleaned: list[None]

    async def stuck(_: int) -> int:
        await deadlines.stuck(anyio, cleaned, cleanup_ms)
        return 0

    graph = _mapped(stuck)

    async def once() -> bool:
        nonlocal cleaned
        cleaned = []
        with anyio.move_on_after(deadline_ms / 1e3):
            await graph.run(inputs=k)
        return len(cleaned) == k

    return asyncio.run(deadlines.measured(once, deadline_ms, cleanup_ms, rounds)())


def importing() -> Numbers:
    """``import pydantic_graph``."""
    return _measure.importing("pydantic_graph")


if __name__ == "__main__":
    _measure.serve_peer(globals(), sys.argv[1:])
