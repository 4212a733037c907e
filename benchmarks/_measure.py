"""What a measured process measures with: clock, memory, and the way its numbers go back."""

import gc
import importlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any


Numbers = dict[str, Any]  # numbers, and lists of them
now = perf_counter

# How far up the tail a distribution is told.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)

# Neither program may have imported anything of what the other pays for.
IMPORT = """
import sys, time
module, _, name = sys.argv[1].partition(":")
start = time.perf_counter()
getattr(__import__(module, fromlist=["_"]), name or "__name__")
took = time.perf_counter() - start
assert sys.argv[1] not in ("trio", "sluicegate") or "anyio" not in sys.modules, "AnyIO was imported"
print('{"ms": %r}' % (took * 1e3))
"""


@dataclass(slots=True)
class Item:
    """What goes through the channels of a program with no engine."""

    value: Any


async def seconds(
    work: Callable[[], Awaitable[Any]], check: Callable[[Any], bool], *, rounds: int
) -> float:
    """
    The median time of *rounds* calls of *work*, after one call to warm up; of 0 rounds, the time
    of that call.

    Every answer is checked, outside the timed part.
    """
    if rounds:
        assert check(await work()), "the warm-up gave a wrong answer"
    times = []
    for _ in range(rounds or 1):
        gc.collect()
        start = now()
        answer = await work()
        times.append(now() - start)
        assert check(answer), "a wrong answer"
    return statistics.median(times)


async def held(
    work: Callable[[], Awaitable[Any]], check: Callable[[Any], bool], *, rounds: int, size: int
) -> Numbers:
    """The microseconds of each of *size* parts, and the KiB at the peak for each, over the start."""
    if rounds:
        assert check(await work()), "the warm-up gave a wrong answer"
    before = forget_peak()
    numbers = await each(work, check, rounds=rounds, size=size)
    return {**numbers, "kib": (peak_kib() - before) / size}


async def each(
    work: Callable[[], Awaitable[Any]], check: Callable[[Any], bool], *, rounds: int, size: int
) -> Numbers:
    """The microseconds of each of *size* parts."""
    return {"us": await seconds(work, check, rounds=rounds) / size * 1e6}


def middle(times: Iterable[float]) -> float:
    """The median in milliseconds."""
    return statistics.median(times) * 1e3


def spread(seconds_each: Iterable[float]) -> Numbers:
    """The distribution of *seconds_each* in microseconds."""
    ordered = sorted(seconds_each)
    last = len(ordered) - 1
    quantiles = [ordered[min(last, int(q * len(ordered)))] * 1e6 for q in QUANTILES]
    by_name = dict(zip(QUANTILES, quantiles, strict=True))
    return {
        "p50_us": by_name[0.5],
        "p99_us": by_name[0.99],
        "max_us": by_name[1.0],
        "quantiles_us": quantiles,
    }


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


def importing(module: str) -> Numbers:
    """The time of an import, of a module or as in ``module:name``, in a fresh interpreter."""
    child = subprocess.run(
        [sys.executable, "-c", IMPORT, module], capture_output=True, text=True, check=True
    )
    return json.loads(child.stdout)


def _answer(program: Callable[..., Numbers], pairs: Iterable[str]) -> None:
    parameters = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    try:
        numbers = program(**parameters)
    except NotImplementedError as error:
        numbers = {"cannot": str(error)}
    sys.stdout.write(json.dumps(numbers) + "\n")


def serve(module: Mapping[str, Any], argv: list[str]) -> None:
    """Run the program of one system, as in ``trio n=1000 rounds=5``, and print its numbers."""
    system, *pairs = argv
    engine, _, library = system.partition("-")
    if engine == "sluicegate":
        lib = importlib.import_module("benchmarks._library").load(library)
        _answer(lambda **parameters: module["with_sluicegate"](lib, **parameters), pairs)
    else:
        _answer(module[f"on_{engine}"], pairs)


def serve_peer(module: Mapping[str, Any], argv: list[str]) -> None:
    """Run one work of a peer, as in ``chain n=1000 rounds=5``, and print its numbers."""
    name, *pairs = argv
    _answer(module.get(name, _not_at_all), pairs)


def _not_at_all(**_: int) -> Numbers:
    msg = "it has nothing for this"
    raise NotImplementedError(msg)
