"""Burr: actions and transitions, on asyncio.

It has no events, and nothing that waits for one from outside; its applications are built per run.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator
from functools import partial

from burr.core import ApplicationBuilder, ApplicationContext, State, action, expr
from burr.core.action import streaming_action

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

    async def once() -> int:
        over = expr("i >= n")
        app = await (
            ApplicationBuilder()
            .with_actions(ping=hop, pong=hop, stop=stop)
            .with_transitions(
                ("ping", "stop", over), ("ping", "pong"), ("pong", "stop", over), ("pong", "ping")
            )
            .with_state(i=0, n=n)
            .with_entrypoint("ping")
            .abuild()
        )
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

    async def once() -> list[int]:
        builder = ApplicationBuilder().with_actions(spread=FanOut()).with_state(item=0)
        app = await builder.with_entrypoint("spread").abuild()
        _, _, state = await app.arun(halt_after=["spread"])
        return state["found"]

    done = partial(complete, k=k)
    return asyncio.run(_measure.each(once, done, rounds=rounds, size=k))


async def _tokens(m: int, pause: float, value):
    @streaming_action(reads=[], writes=["token"])
    async def produce(state: State) -> AsyncGenerator[tuple[dict, State | None], None]:
        for i in range(m):
            await asyncio.sleep(pause)
            yield {"token": value(i)}, None
        yield {"token": None}, state.update(token=None)

    builder = ApplicationBuilder().with_actions(produce=produce).with_entrypoint("produce")
    _, tokens = await (await builder.abuild()).astream_result(halt_after=["produce"])
    return tokens


async def _stream(m: int, pause_ms: int = 0) -> int:
    got = 0
    async for each in await _tokens(m, 0, "token {}".format):
        got += each["token"] is not None
        if pause_ms and got % 100 == 0:
            await asyncio.sleep(pause_ms / 1000)
    return got


def stream(m: int, rounds: int) -> Numbers:
    """A streaming action is an async generator, which runs when its reader asks."""
    return asyncio.run(_measure.each(lambda: _stream(m), m.__eq__, rounds=rounds, size=m))


def slow_reader(m: int) -> Numbers:
    """The same with a slow reader."""
    return asyncio.run(risen(_stream, m))


def latency(m: int) -> Numbers:
    """The same generator."""

    async def main() -> Numbers:
        times = [
            now() - each["token"]
            async for each in await _tokens(m, 0.001, lambda _: now())
            if each["token"] is not None
        ]
        assert len(times) == m
        return _measure.spread(times)

    return asyncio.run(main())


async def _three_steps(pause: float = 0, mark=lambda: None) -> int:
    @action(reads=["i"], writes=["i"])
    async def second(state: State) -> State:
        if pause:
            await asyncio.sleep(pause)
        return state.update(i=state["i"] + 1)

    @action(reads=["i"], writes=["i"])
    async def third(state: State) -> State:
        mark()
        return state.update(i=state["i"] + 1)

    app = await (
        ApplicationBuilder()
        .with_actions(first=hop, second=second, third=third)
        .with_transitions(("first", "second"), ("second", "third"))
        .with_state(i=0)
        .with_entrypoint("first")
        .abuild()
    )
    _, _, state = await app.arun(halt_after=["third"])
    return state["i"]


def short_run(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """With ``asyncio.timeout``: it has none of its own."""

    async def limited() -> int:
        async with asyncio.timeout(timeout):
            return await _three_steps()

    return asyncio.run(short.measured(limited if timeout else _three_steps, r, rounds)())


def concurrent_runs(r: int) -> Numbers:
    """``asyncio.gather`` of as many applications."""

    async def main() -> Numbers:
        assert await _three_steps() == 3
        burst = Burst(r)
        burst.begin()
        answers = await asyncio.gather(*[_three_steps(0.010, burst.mark) for _ in range(r)])
        numbers = burst.numbers()
        assert answers == [3] * r
        return numbers

    return asyncio.run(main())


def importing() -> Numbers:
    """``import burr.core``."""
    return _measure.importing("burr.core")


if __name__ == "__main__":
    _measure.serve_peer(globals(), sys.argv[1:])
