"""The works, their sizes, and the goal of each number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


Library = Literal["trio", "asyncio"]


@dataclass(frozen=True, slots=True)
class Goal:
    """
    At most *limit*: the ratio to the hand-written program, the number itself, or what it has beyond
    the hand-written one.
    """

    kind: Literal["ratio", "number", "beyond"]
    limit: float

    def __str__(self) -> str:
        form = {"ratio": "{:g} x", "number": "{:g}", "beyond": "+{:g}"}[self.kind]
        return "<= " + form.format(self.limit)

    def met(self, penstock: float, by_hand: float, ratio: float) -> bool:
        measured = {"ratio": ratio, "number": penstock, "beyond": penstock - by_hand}
        return measured[self.kind] <= self.limit


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a work's answer, and its goal on each library."""

    key: str
    unit: str
    trio: Goal | None = None
    asyncio: Goal | None = None
    title: str = ""

    def goal(self, library: Library) -> Goal | None:
        return self.trio if library == "trio" else self.asyncio


@dataclass(frozen=True, slots=True)
class Work:
    """
    A function of the program modules with its parameters; *quick* replaces some of these.

    A *slow* work is left out of a quick run: a smaller one shows the same. A work whose numbers
    jump from process to process has several *turns* in each repeat.
    """

    group: str
    title: str
    function: str
    parameters: Mapping[str, int]
    metrics: tuple[Metric, ...]
    quick: Mapping[str, int] | None = None
    by_hand: bool = True
    slow: bool = False
    turns: int = 1
    libraries: tuple[Library, ...] = ("trio", "asyncio")

    def sized(self, *, quick: bool) -> dict[str, int]:
        return {**self.parameters, **(self.quick or {} if quick else {})}


@dataclass(frozen=True, slots=True)
class Growth:
    """The exponent with which the time grows from one work to a larger one: 1 is linear."""

    group: str
    title: str
    small: Work
    large: Work
    size: str
    goal: Goal


def at_most(limit: float) -> Goal:
    return Goal("number", limit)


def ratio(limit: float) -> Goal:
    return Goal("ratio", limit)


def _chain(n: int, rounds: int) -> Work:
    hop = Metric("us", "µs/hop", trio=ratio(0.5), asyncio=ratio(0.5))
    return Work("chain", f"chain, {n:,} hops", "chain", {"n": n, "rounds": rounds}, (hop,))


def _fan_out(k: int, workers: int, rounds: int) -> Work:
    limit = 0.7 if workers == 64 else 0.9
    return Work(
        "fan_out",
        f"fan-out and join, {workers} workers, {k:,} items",
        "fan_out",
        {"k": k, "workers": workers, "rounds": rounds},
        (Metric("us", "µs/item", trio=ratio(limit), asyncio=ratio(1.0)),),
    )


def _short(title: str, timeout: int) -> Work:
    return Work(
        "short_run",
        title,
        "short_run",
        {"r": 500, "rounds": 5, "timeout": timeout},
        (Metric("us", "µs/run", trio=ratio(0.7)),),
        quick={"r": 200},
    )


def _concurrent(r: int, *, slow: bool = False) -> Work:
    return Work(
        "concurrent_run",
        f"{r:,} three-step runs at once",
        "concurrent_runs",
        {"r": r},
        (
            Metric("us", "µs/run", trio=ratio(0.8)),
            Metric("kib", "KiB/run", trio=at_most(14), title="memory"),
        ),
        slow=slow,
    )


def _idle(title: str, inside: int) -> Work:
    return Work(
        "idle",
        title,
        "idle_runs",
        {"r": 10_000, "inside": inside},
        (
            Metric("kib", "KiB/run", trio=at_most(10), title="memory"),
            Metric("us", "µs/run", trio=ratio(2), title="wake all"),
        ),
        quick={"r": 2_000},
    )


def _snapshot(k: int) -> Work:
    limit = Goal("number", 50 * k / 10_000)
    return Work(
        "snapshot",
        f"snapshot with {k:,} pending events",
        "snapshot",
        {"k": k, "rounds": 5},
        (
            Metric("ms", "ms", trio=limit, asyncio=limit, title="write"),
            Metric("read_ms", "ms", title="read"),
        ),
        by_hand=False,
    )


def _state(title: str, kib: int) -> Work:
    return Work(
        "state",
        title,
        "state",
        {"n": 10_000, "kib": kib},
        (Metric("us", "µs/write", trio=Goal("beyond", 1), asyncio=Goal("beyond", 1)),),
        quick={"n": 2_000},
    )


CHAIN = _chain(1_000, 20), _chain(10_000, 5)
FAN_OUT_64 = _fan_out(1_000, 64, 10), _fan_out(10_000, 64, 3)
FAN_OUT_4 = _fan_out(1_000, 4, 10), _fan_out(10_000, 4, 3)
SNAPSHOTS = _snapshot(1_000), _snapshot(10_000)
LINEAR = at_most(1.2)

WORKS: tuple[Work, ...] = (
    *CHAIN,
    Work(
        "chain",
        "chain, kept per hop",
        "chain_kept",
        {"n": 10_000},
        (Metric("blocks", "blocks/hop", trio=at_most(0.01), asyncio=at_most(0.01)),),
        by_hand=False,
    ),
    *FAN_OUT_64,
    *FAN_OUT_4,
    Work(
        "stream",
        "stream",
        "stream",
        {"m": 100_000, "rounds": 1},
        (Metric("us", "µs/event", trio=ratio(0.7)),),
        quick={"m": 20_000},
    ),
    Work(
        "stream",
        "stream, slow reader",
        "slow_reader",
        {"m": 100_000},
        (Metric("peak_kib", "KiB", trio=at_most(64), asyncio=at_most(64), title="memory"),),
        quick={"m": 20_000},
    ),
    Work(
        "stream",
        "stream, latency",
        "latency",
        {"m": 1_000},
        (
            Metric("p50_us", "µs", trio=ratio(1.2), title="p50"),
            Metric("p99_us", "µs", trio=ratio(1.2), title="p99"),
        ),
        quick={"m": 300},
        turns=3,
    ),
    _short("three-step run, one after another", 0),
    _short("three-step run with a timeout", 30),
    _concurrent(1_000),
    _concurrent(10_000, slow=True),
    _idle("idle runs, waiting between steps", 0),
    _idle("idle runs, waiting inside a step", 1),
    Work(
        "cancel",
        "cancel 1,000 steps in flight",
        "cancel",
        {"k": 1_000, "rounds": 5},
        (Metric("ms", "ms", trio=ratio(1.3)),),
        quick={"rounds": 3},
    ),
    Work(
        "timeout",
        "timeout, beyond deadline and clean-up",
        "timeout",
        {"deadline_ms": 50, "cleanup_ms": 20, "rounds": 5},
        (Metric("ms", "ms", trio=at_most(3), asyncio=at_most(3)),),
        quick={"rounds": 3},
    ),
    *SNAPSHOTS,
    _state("read and write of the state", 0),
    _state("read and write beside 1 MB", 1_000),
    Work(
        "import",
        "import",
        "import",
        {},
        (Metric("ms", "ms", trio=Goal("beyond", 20)),),
        libraries=("trio",),
    ),
)

GROWTH: tuple[Growth, ...] = (
    Growth("chain", "chain, growth", *CHAIN, "n", LINEAR),
    Growth("fan_out", "fan-out and join, 64 workers, growth", *FAN_OUT_64, "k", LINEAR),
    Growth("fan_out", "fan-out and join, 4 workers, growth", *FAN_OUT_4, "k", LINEAR),
    Growth("snapshot", "snapshot, growth", *SNAPSHOTS, "k", LINEAR),
)
