"""Child processes, the order in which they take turns, and what is made of their numbers."""

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._works import Goal, Growth, Library, Metric, Work


Side = tuple[Library, bool]  # which library; whether penstock or by hand
Numbers = dict[str, float]

BARE = {"trio": "benchmarks.bare_trio", "asyncio": "benchmarks.bare_anyio"}
ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60.0  # seconds for one child

# Neither program may have imported anything of what the other pays for.
IMPORT = """
import sys, time
start = time.perf_counter()
__import__(sys.argv[1])
took = time.perf_counter() - start
assert "anyio" not in sys.modules, "AnyIO was imported"
print('{"ms": %r}' % (took * 1e3))
"""


@dataclass(slots=True)
class Results:
    """The numbers of one work: for each side one entry per repeat, or what went wrong."""

    work: Work
    numbers: dict[Side, list[Numbers]] = field(default_factory=dict)
    errors: dict[Side, str] = field(default_factory=dict)

    def values(self, library: Library, key: str, *, penstock: bool) -> list[float]:
        return [numbers[key] for numbers in self.numbers.get((library, penstock), [])]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. Numbers that there are not are NaN."""

    title: str
    library: Library
    unit: str
    penstock: float
    by_hand: float
    ratio: float
    spread: tuple[float, float]
    goal: Goal | None
    error: str | None = None

    @property
    def verdict(self) -> str:
        if self.error is not None:
            return "FAILED"
        if self.goal is None:
            return ""
        return "met" if self.goal.met(self.penstock, self.by_hand, self.ratio) else "MISSED"


def pin(cpu: int | None) -> int | None:
    """Bind this process and with it its children to one CPU; None where that cannot be done."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    chosen = max(os.sched_getaffinity(0)) if cpu is None else cpu
    os.sched_setaffinity(0, {chosen})
    return chosen


def sides(work: Work) -> list[Side]:
    """Who takes part, those that are compared next to each other."""
    kinds = (True, False) if work.by_hand else (True,)
    return [(library, penstock) for library in work.libraries for penstock in kinds]


def command(work: Work, side: Side, *, quick: bool) -> list[str]:
    """The command line of one child."""
    library, penstock = side
    if work.function == "import":
        return [sys.executable, "-c", IMPORT, "penstock" if penstock else "trio"]
    module = "benchmarks.with_penstock" if penstock else BARE[library]
    pairs = [f"{key}={value}" for key, value in work.sized(quick=quick).items()]
    return [sys.executable, "-m", module, work.function, *pairs]


@functools.cache
def bytecode() -> tempfile.TemporaryDirectory[str]:
    """
    A place for compiled modules that is there as long as this process.

    Where nothing may be written beside the sources, what is being worked on would otherwise be
    compiled at each import, and what was installed would not.
    """
    place = tempfile.TemporaryDirectory()
    for module in ("trio", "penstock"):
        subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            env=environment("trio", place.name),
            capture_output=True,
            check=False,
        )
    return place


def environment(library: Library, bytecode_in: str) -> dict[str, str]:
    """The environment of a child."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "BENCHMARK_LIBRARY": library, "PYTHONPYCACHEPREFIX": bytecode_in}


def measure(work: Work, side: Side, *, quick: bool) -> Numbers | str:
    """Run one child and return its numbers, or what went wrong."""
    try:
        child = subprocess.run(
            command(work, side, quick=quick),
            cwd=ROOT,
            env=environment(side[0], bytecode().name),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT:.0f} s"
    if child.returncode:
        # The last line that names an exception; those of a group are drawn in a box of | and +.
        said = [line.strip(" |+-") for line in child.stderr.splitlines() if "Error: " in line]
        return said[-1] if said else f"exit status {child.returncode}"
    numbers: Numbers = json.loads(child.stdout.splitlines()[-1])
    return numbers


def run(
    works: Iterable[Work], *, repeats: int, quick: bool, tell: Callable[[str], None]
) -> list[Results]:
    """
    Measure all *works*, *repeats* times.

    In each repeat the sides of a work follow directly on each other, forward and backward by
    turns. A side that failed is not run again.
    """
    results = [Results(work) for work in works]
    for repeat in range(repeats):
        for result in results:
            start = time.monotonic()
            _take_turns(result, repeat, quick=quick)
            took = time.monotonic() - start
            tell(f"{repeat + 1}/{repeats}  {result.work.title}  {took:.1f} s")
    return results


def _take_turns(result: Results, repeat: int, *, quick: bool) -> None:
    """One repeat of one work: each side has its turns, the median of which is its number."""
    answers: dict[Side, list[Numbers]] = {}
    for turn in range(result.work.turns):
        order = sides(result.work)
        for side in order if (repeat + turn) % 2 == 0 else reversed(order):
            if side in result.errors:
                continue
            answer = measure(result.work, side, quick=quick)
            if isinstance(answer, str):
                result.errors[side] = answer
            else:
                answers.setdefault(side, []).append(answer)
    for side, numbers in answers.items():
        medians = {key: _median([each[key] for each in numbers]) for key in numbers[0]}
        result.numbers.setdefault(side, []).append(medians)


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan


def _row(result: Results, metric: Metric, library: Library) -> Row:
    mine = result.values(library, metric.key, penstock=True)
    theirs = result.values(library, metric.key, penstock=False)
    # A child that failed in a later repeat leaves the lists unequal: pair what there is.
    ratios = [m / t for m, t in zip(mine, theirs, strict=False) if t]
    errors = [
        result.errors[side]
        for side in sides(result.work)
        if side[0] == library and side in result.errors
    ]
    return Row(
        title=": ".join(filter(None, (result.work.title, metric.title))),
        library=library,
        unit=metric.unit,
        penstock=_median(mine),
        by_hand=_median(theirs),
        ratio=_median(ratios),
        spread=(min(ratios), max(ratios)) if ratios else (math.nan, math.nan),
        goal=metric.goal(library),
        error=errors[0] if errors else None,
    )


def _exponents(growth: Growth, small: Results, large: Results, side: Side) -> list[float]:
    sizes = growth.large.parameters[growth.size] / growth.small.parameters[growth.size]
    library, penstock = side
    pairs = zip(
        small.values(library, "us", penstock=penstock),
        large.values(library, "us", penstock=penstock),
        strict=False,
    )
    # The numbers are per hop or item, hence the 1 +.
    return [1 + math.log(b / a) / math.log(sizes) for a, b in pairs]


def rows(results: Iterable[Results], growths: Iterable[Growth]) -> list[Row]:
    """The table: every metric of every work on every library, then the growth."""
    by_work = {id(result.work): result for result in results}
    table = [
        _row(result, metric, library)
        for result in by_work.values()
        for metric in result.work.metrics
        for library in result.work.libraries
    ]
    for growth in growths:
        small, large = by_work.get(id(growth.small)), by_work.get(id(growth.large))
        if small is None or large is None:
            continue
        for library in growth.small.libraries:
            errors = [
                result.errors[library, True]
                for result in (small, large)
                if (library, True) in result.errors
            ]
            table.append(
                Row(
                    title=growth.title,
                    library=library,
                    unit="exponent",
                    penstock=_median(_exponents(growth, small, large, (library, True))),
                    by_hand=_median(_exponents(growth, small, large, (library, False))),
                    ratio=math.nan,
                    spread=(math.nan, math.nan),
                    goal=growth.goal,
                    error=errors[0] if errors else None,
                )
            )
    return table
