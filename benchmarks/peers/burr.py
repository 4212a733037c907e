"""Burr: actions and transitions, on asyncio.

It has no events, and nothing that waits for one from outside. A graph is built once; an
application holds the state of one run, so it is built of the graph for each.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator
from functools import partial

from burr.core import ApplicationBuilder, ApplicationContext, State, action, expr
from burr.core.action import streaming_action
from burr.core.graph import GraphBuilder

from benchmarks import _measure
from benchmarks._measure import Numbers, now
from benchmarks.works import short_run as short
from benchmarks.works.concurrent_runs import Burst
from benchmarks.works.fan_out import complete
from benchmarks.works.slow_reader import risen


logging.disable(logging.WARNING)


@action(reads=["i"], writes=["i"])
async def hop(state: State) -> State:
    return state.update(i=state["i"] + 1)


@action(reads=["i"], writes=["result"])
async def stop(state: State) -> State:
    return state.update(result=state["i"])


def chain(n: int, rounds: int) -> Numbers:
    """Two actions; the transitions' conditions are evaluated in order."""
    over = expr("i >= n")
    graph = (
        GraphBuilder()
        .with_actions(ping=hop, pong=hop, stop=stop)
        .with_transitions(
            ("ping", "stop", over), ("ping", "pong"), ("pong", "stop", over), ("pong", "ping")
        )
        .build()
    )

    async def once() -> int:
        builder = ApplicationBuilder().with_graph(graph).with_state(i=0, n=n)
        app = await builder.with_entrypoint("ping").abuild()
        _, _, state = await app.arun(halt_after=["stop"])
        return state["result"]

    return asyncio.run(_measure.held(once, n.__eq__, rounds=rounds, size=n))


@action(reads=["item"], writes=["item"])
async def work(state: State) -> State:
    await asyncio.sleep(0)
    return state.update(item=state["item"])


def fan_out(k: int, workers: int, rounds: int) -> Numbers:
    """``MapStates`` makes an application of each item; it has no limit of workers."""
    try:
        from burr.core.parallelism import MapStates  # noqa: PLC0415 - needs the extra
    except ImportError as error:
        msg = f"it needs burr[tracking]: {error}"
        raise NotImplementedError(msg) from error

    class FanOut(MapStates):
        def action(self, state: State, inputs):
            return work

        async def states(self, state: State, context: ApplicationContext, inputs):
            for i in range(k):
                yield state.update(item=i)

        async def reduce(self, state: State, states):
            return state.update(found=[each["item"] async for each in states])

        def is_async(self) -> bool:
            return True

        @property
        def reads(self) -> list[str]:
            return ["item"]

        @property
        def writes(self) -> list[str]:
            return ["found"]

    graph = GraphBuilder().with_actions(spread=FanOut()).build()

    async def once() -> list[int]:
        builder = ApplicationBuilder().with_graph(graph).with_state(item=0)
        app = await builder.with_entrypoint("spread").abuild()
        _, _, state = await app.arun(halt_after=["spread"])
        return state["found"]

    done = partial(complete, k=k)
    return asyncio.run(_measure.each(once, done, rounds=rounds, size=k))


def _streamer(pause: float, value):
    @streaming_action(reads=["m"], writes=["token"])
    async def produce(state: State) -> AsyncGenerator[tuple[dict, State | None], None]:
        for i in range(state["m"]):
            await asyncio.sleep(pause)
            yield {"token": value(i)}, None
        yield {"token": None}, state.update(token=None)

    graph = GraphBuilder().with_actions(produce=produce).build()

    async def tokens(m: int):
        builder = ApplicationBuilder().with_graph(graph).with_state(m=m)
        app = await builder.with_entrypoint("produce").abuild()
        return (await app.astream_result(halt_after=["produce"]))[1]

    return tokens


def _stream():
    tokens = _streamer(0, "token {}".format)

    async def stream(m: int, pause_ms: int = 0) -> int:
        got = 0
        async for each in await tokens(m):
            got += each["token"] is not None
            if pause_ms and got % 100 == 0:
                await asyncio.sleep(pause_ms / 1000)
        return got

    return stream


def stream(m: int, rounds: int) -> Numbers:
    """A streaming action is an async generator, which runs when its reader asks."""
    return asyncio.run(_measure.each(partial(_stream(), m), m.__eq__, rounds=rounds, size=m))


def slow_reader(m: int) -> Numbers:
    """The same with a slow reader."""
    return asyncio.run(risen(_stream(), m))


def latency(m: int) -> Numbers:
    """The same generator."""
    tokens = _streamer(0.001, lambda _: now())

    async def main() -> Numbers:
        times = [
            now() - each["token"] async for each in await tokens(m) if each["token"] is not None
        ]
        assert len(times) == m
        return _measure.spread(times)

    return asyncio.run(main())


def _three_steps(pause: float = 0, mark=lambda: None):
    @action(reads=["i"], writes=["i"])
    async def second(state: State) -> State:
        if pause:
            await asyncio.sleep(pause)
        return state.update(i=state["i"] + 1)

    @action(reads=["i"], writes=["i"])
    async def third(state: State) -> State:
        mark()
        return state.update(i=state["i"] + 1)

    builder = GraphBuilder().with_actions(first=hop, second=second, third=third)
    graph = builder.with_transitions(("first", "second"), ("second", "third")).build()

    async def one() -> int:
        builder = ApplicationBuilder().with_graph(graph).with_state(i=0)
        app = await builder.with_entrypoint("first").abuild()
        _, _, state = await app.arun(halt_after=["third"])
        return state["i"]

    return one


def short_run(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """With ``asyncio.timeout``: it has none of its own."""
    one = _three_steps()

    async def limited() -> int:
        async with asyncio.timeout(timeout):
            return await one()

    return asyncio.run(short.measured(limited if timeout else one, r, rounds)())


def concurrent_runs(r: int) -> Numbers:
    """``asyncio.gather`` of as many applications."""

    async def main() -> Numbers:
        burst = Burst(r)
        one = _three_steps(0.010, burst.mark)
        assert await one() == 3
        burst.begin()
        answers = await asyncio.gather(*[one() for _ in range(r)])
        numbers = burst.numbers()
        assert answers == [3] * r
        return numbers

    return asyncio.run(main())


def importing() -> Numbers:
    """``import burr.core``."""
    return _measure.importing("burr.core")


if __name__ == "__main__":
    _measure.serve_peer(globals(), sys.argv[1:])
