"""``python -m benchmarks.tracing``: what tracing with OpenTelemetry costs, per hop and per short run.

Each program runs in a process of its own, in turns. "SDK" is a run with the SDK on: a
``BatchSpanProcessor`` with an exporter in memory, a span for each run and step, and all measurements.
"API" is the observer in a program without an SDK. LlamaIndex Workflows is measured without any tracing.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._measure import seconds


HOPS = 1_000
RUNS = 200
MODES = ("off", "api", "sdk")
PEER = "llama-index"


@contextlib.contextmanager
def traced(mode: str) -> Iterator[None]:
    """Observe the runs in the block, as far as the mode asks for it."""
    if mode == "off":
        yield
        return
    from sluicegate import observe
    from sluicegate.otel import OpenTelemetryObserver

    if mode == "api":
        with observe(OpenTelemetryObserver()):
            yield
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    meters = MeterProvider([InMemoryMetricReader()])
    with observe(OpenTelemetryObserver(provider, meters)):
        yield


def of_sluicegate(backend: str, mode: str) -> dict[str, float]:
    """Return the microseconds of a hop and of a run of three steps."""
    from benchmarks._flows import Chain
    from sluicegate import Event, StartEvent, StopEvent, Workflow, step

    class First(Event):
        x: int

    class Second(Event):
        x: int

    class Short(Workflow[int]):
        @step
        async def one(self, ev: StartEvent) -> First:
            return First(x=ev.x)

        @step
        async def two(self, ev: First) -> Second:
            return Second(x=ev.x)

        @step
        async def three(self, ev: Second) -> StopEvent:
            return StopEvent(result=ev.x)

    chain, short = Chain(HOPS), Short()

    async def hops() -> int:
        return await chain.run()

    async def runs() -> int:
        return sum([await short.run(x=1) for _ in range(RUNS)])

    async def main() -> dict[str, float]:
        with traced(mode):
            return {
                "hop": await seconds(hops, HOPS.__eq__, rounds=7) / HOPS * 1e6,
                "run": await seconds(runs, RUNS.__eq__, rounds=7) / RUNS * 1e6,
            }

    if backend == "trio":
        import trio

        return trio.run(main)
    return asyncio.run(main())


def of_peer() -> dict[str, float]:
    """Return the same of LlamaIndex Workflows."""
    from workflows import Workflow, step
    from workflows.events import Event, StartEvent, StopEvent

    class Ping(Event):
        i: int

    class Pong(Event):
        i: int

    class Chain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Ping:
            return Ping(i=0)

        @step
        async def ping(self, ev: Ping) -> Pong | StopEvent:
            return Pong(i=ev.i + 1) if ev.i < HOPS else StopEvent(result=ev.i)

        @step
        async def pong(self, ev: Pong) -> Ping | StopEvent:
            return Ping(i=ev.i + 1) if ev.i < HOPS else StopEvent(result=ev.i)

    class Short(Workflow):
        @step
        async def one(self, ev: StartEvent) -> Ping:
            return Ping(i=ev.x)

        @step
        async def two(self, ev: Ping) -> Pong:
            return Pong(i=ev.i)

        @step
        async def three(self, ev: Pong) -> StopEvent:
            return StopEvent(result=ev.i)

    chain, short = Chain(timeout=None), Short(timeout=None)

    async def hops() -> Any:
        return await chain.run()

    async def runs() -> Any:
        return sum([await short.run(x=1) for _ in range(RUNS)])

    async def main() -> dict[str, float]:
        return {
            "hop": await seconds(hops, HOPS.__eq__, rounds=3) / HOPS * 1e6,
            "run": await seconds(runs, RUNS.__eq__, rounds=3) / RUNS * 1e6,
        }

    return asyncio.run(main())


def measured(python: str, *what: str) -> dict[str, float]:
    """Return what a process of its own has measured."""
    command = [python, "-m", "benchmarks.tracing", "--measure", *what]
    root = Path(__file__).resolve().parent.parent
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return json.loads(ended.stdout.splitlines()[-1])


def table(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Return the medians as a table, with the ratio to the same without tracing."""
    middle = {
        key: {what: statistics.median(each[what] for each in several) for what in ("hop", "run")}
        for key, several in found.items()
    }
    lines = [f"{'':24}{'µs/hop':>10}{'ratio':>8}{'µs/run':>10}{'ratio':>8}"]
    for (system, mode), numbers in middle.items():
        off = middle.get((system, "off"), numbers)
        cells = [f"{numbers[w]:10.1f}{numbers[w] / off[w]:8.1f}" for w in ("hop", "run")]
        lines.append(f"{system + ', ' + mode:24}{''.join(cells)}")
    return "\n".join(lines)


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--peers", metavar="PATH", help="a Python with llama-index-workflows")
    made.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.measure:
        system, *mode = options.measure
        numbers = of_peer() if system == PEER else of_sluicegate(system, *mode)
        sys.stdout.write(json.dumps(numbers) + "\n")
        return 0
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for system in ("trio", "asyncio"):
            for mode in MODES:
                numbers = measured(sys.executable, system, mode)
                found.setdefault((system, mode), []).append(numbers)
        if options.peers:
            found.setdefault((PEER, "off"), []).append(measured(options.peers, PEER))
    sys.stdout.write(table(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
