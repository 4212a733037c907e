"""What a measured process measures with: clock, memory, and the way its numbers go back."""

import gc
import json
import math
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any


Numbers = dict[str, float]
now = perf_counter


async def seconds(
    work: Callable[[], Awaitable[Any]], check: Callable[[Any], bool], *, rounds: int
) -> float:
    """
    The median time of *rounds* calls of *work*, after one call to warm up.

    Every answer is checked, outside the timed part.
    """
    assert check(await work()), "the warm-up gave a wrong answer"
    times = []
    for _ in range(rounds):
        gc.collect()
        start = now()
        answer = await work()
        times.append(now() - start)
        assert check(answer), "a wrong answer"
    return statistics.median(times)


def resident_kib() -> float:
    """The resident memory of this process; NaN where /proc does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return _field(status, "VmRSS:")


def forget_peak() -> float:
    """Forget the high-water mark and return what is resident now; NaN where it cannot be reset."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return resident_kib()


def peak_kib() -> float:
    """The high-water mark of resident memory since `forget_peak`."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return _field(status, "VmHWM:")


def _field(status: str, name: str) -> float:
    return float(status.split(name, 1)[1].split(None, 1)[0])


def latencies(seconds_each: list[float]) -> Numbers:
    """The 50th and the 99th percentile, in microseconds."""
    ordered = sorted(seconds_each)
    return {
        "p50_us": ordered[len(ordered) // 2] * 1e6,
        "p99_us": ordered[len(ordered) * 99 // 100] * 1e6,
    }


def serve(works: Mapping[str, Callable[..., Numbers]], argv: list[str]) -> None:
    """Run one work, as in ``chain n=1000 rounds=5``, and print its numbers as JSON."""
    name, *pairs = argv
    parameters = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    sys.stdout.write(json.dumps(works[name](**parameters)) + "\n")
