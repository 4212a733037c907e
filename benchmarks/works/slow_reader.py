"""
Slow reader: the stream of `stream`, but its reader sleeps 1 ms after every 100 events.

Measured is how far the resident memory goes up. The workflow keeps 64 events of history: the
default keeps 10,000 for readers that come late, as it should.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import sys
from functools import partial

from benchmarks._measure import Numbers, forget_peak, now, peak_kib, serve
from benchmarks._model import Metric, Work
from benchmarks.works import _streams


WORKS = (
    Work(
        id="slow_reader",
        name="slow_reader",
        title="stream, slow reader",
        size="m",
        sizes=(1_000, 10_000, 100_000),
        quick=(20_000,),
        judged=(1_000, 10_000, 100_000),
        watched=True,
        metrics=(Metric("peak_kib", "KiB", "memory"),),
    ),
)


async def risen(stream, m: int) -> Numbers:
    """The peak of resident memory over the start, after a stream to warm up."""
    assert await stream(1000) == 1000
    began, before = now(), forget_peak()
    assert await stream(m, pause_ms=1) == m
    return {"peak_kib": peak_kib() - before, "began": began, "base_kib": before}


def with_sluicegate(lib, m: int) -> Numbers:
    """See `_streams`."""
    return lib.run(partial(risen, _streams.sluicegate_stream(lib, history=64), m))


def on_trio(m: int) -> Numbers:
    """See `_streams`."""
    import trio

    return trio.run(partial(risen, _streams.trio_stream, m))


def on_anyio(m: int) -> Numbers:
    """See `_streams`."""
    import anyio

    return anyio.run(partial(risen, _streams.anyio_stream, m))


def on_asyncio(m: int) -> Numbers:
    """See `_streams`."""
    import asyncio

    return asyncio.run(risen(_streams.asyncio_stream, m))


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
