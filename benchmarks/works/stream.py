"""
Stream: a step pauses and sends, *m* times; one reader; at most 64 events are behind.

By hand: a task and a channel of size 64.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys
from functools import partial

from benchmarks._measure import Numbers, each, serve
from benchmarks._model import Metric, Work, about
from benchmarks.works import _streams


WORKS = (
    Work(
        id="stream",
        name="stream",
        title="stream",
        size="m",
        sizes=(100, 1_000, 10_000, 100_000),
        quick=(1_000, 10_000),
        judged=(100_000,),
        rounds=about(10_000),
        metrics=(Metric("us", "µs/event"),),
    ),
)


def with_sluicegate(lib, m: int, rounds: int) -> Numbers:
    """``await ctx.stream.send()`` and ``handler.stream_events()``."""
    stream = _streams.sluicegate_stream(lib)
    return lib.run(partial(each, partial(stream, m), m.__eq__, rounds=rounds, size=m))


def on_trio(m: int, rounds: int) -> Numbers:
    """See `_streams`."""
    import trio

    return trio.run(
        partial(each, partial(_streams.trio_stream, m), m.__eq__, rounds=rounds, size=m)
    )


def on_anyio(m: int, rounds: int) -> Numbers:
    """See `_streams`."""
    import anyio

    return anyio.run(
        partial(each, partial(_streams.anyio_stream, m), m.__eq__, rounds=rounds, size=m)
    )


def on_asyncio(m: int, rounds: int) -> Numbers:
    """See `_streams`."""
    import asyncio

    return asyncio.run(each(partial(_streams.asyncio_stream, m), m.__eq__, rounds=rounds, size=m))


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
