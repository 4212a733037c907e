"""The goals of the project's design, row by row, and what was reached of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from benchmarks._model import BY_HAND, Library, Work
from benchmarks._results import Key, Results
from benchmarks._works import BY_ID
from benchmarks.peers import PEERS


Kind = Literal["ratio", "number", "beyond", "growth"]


@dataclass(frozen=True, slots=True)
class Condition:
    """
    At most *trio* on Trio and *asyncio* on asyncio, at every judged size of a work.

    A ratio is to the hand-written program, ``beyond`` what there is more than it has, ``growth``
    the exponent with which the whole grows with the size.
    """

    work: str
    number: str
    kind: Kind
    trio: float
    asyncio: float | None = None  # the same
    unit: str = ""

    def limit(self, library: Library) -> float:
        return self.trio if library == "trio" or self.asyncio is None else self.asyncio


@dataclass(frozen=True, slots=True)
class Goal:
    """A row of the table: all conditions have to be met."""

    title: str
    text: str
    conditions: tuple[Condition, ...]
    libraries: tuple[Library, ...] = ("trio", "asyncio")


def _ratio(work: str, limit: float, *, asyncio: float | None = None, number: str = "us"):
    return Condition(work, number, "ratio", limit, asyncio)


def _number(work: str, number: str, limit: float, unit: str):
    return Condition(work, number, "number", limit, unit=unit)


def _linear(work: str):
    return Condition(work, "us", "growth", 1.2, unit="exponent")


GOALS = (
    Goal(
        "chain, per hop",
        "<= 0.5, nothing kept per hop",
        (_ratio("chain", 0.5), _number("chain_kept", "blocks", 0.01, "blocks/hop")),
    ),
    Goal(
        "fan-out and join, per item, 64 workers",
        "<= 0.7 (asyncio 1.0), linear",
        (_ratio("fan_out_64", 0.7, asyncio=1.0), _linear("fan_out_64")),
    ),
    Goal(
        "the same, 4 workers",
        "<= 0.9 (asyncio 1.0), linear",
        (_ratio("fan_out_4", 0.9, asyncio=1.0), _linear("fan_out_4")),
    ),
    Goal("stream, per event", "<= 0.7", (_ratio("stream", 0.7),)),
    Goal(
        "stream latency p50 / p99",
        "<= 1.2",
        (_ratio("latency", 1.2, number="p50_us"), _ratio("latency", 1.2, number="p99_us")),
    ),
    Goal(
        "memory under a slow reader with back-pressure",
        "<= 64 KiB whatever the length",
        (_number("slow_reader", "peak_kib", 64, "KiB"),),
    ),
    Goal(
        "three-step run, one after another; with a timeout",
        "<= 0.7",
        (_ratio("short_run", 0.7), _ratio("short_run_timeout", 0.7)),
    ),
    Goal(
        "three-step runs at once; KiB each",
        "<= 0.8; <= 14",
        (_ratio("concurrent_runs", 0.8), _number("concurrent_runs", "kib", 14, "KiB")),
    ),
    Goal(
        "idle runs waiting between steps: KiB each; wake all",
        "<= 10; <= 2",
        (_number("idle_between", "kib", 10, "KiB"), _ratio("idle_between", 2)),
    ),
    Goal(
        "idle runs waiting inside a step: KiB each; wake all",
        "<= 10; <= 2",
        (_number("idle_inside", "kib", 10, "KiB"), _ratio("idle_inside", 2)),
    ),
    Goal(
        "cancel 1,000 steps in flight",
        "<= 1.3, every `finally` done, 0 tasks left",
        (_ratio("cancel", 1.3, number="ms"),),
    ),
    Goal("timeout overshoot beyond the clean-up", "<= 3 ms", (_number("timeout", "ms", 3, "ms"),)),
    Goal(
        "read-modify-write of state, also beside 1 MB",
        "<= 1 µs over a lock and a dict",
        (Condition("state", "us", "beyond", 1.0, unit="µs"),),
    ),
    Goal(
        "snapshot with pending events, per event",
        "<= 5 µs (50 ms for 10,000), linear",
        (_number("snapshot", "us", 5, "µs"), _linear("snapshot")),
    ),
    Goal(
        "import",
        "<= trio's own + 20 ms",
        (Condition("import", "ms", "beyond", 20, unit="ms"),),
        libraries=("trio",),
    ),
)


class Reached(NamedTuple):
    """What one library reached of a goal: a text for each condition, and the verdict."""

    text: str
    verdict: Literal["met", "missed", "failed", ""]


class Judged(NamedTuple):
    """A row of the table that is printed."""

    goal: Goal
    reached: dict[Library, Reached]
    peers: dict[str, str]  # by system
    best_peer: str
    ahead: str


def judge(results: Results, python: str) -> list[Judged]:
    """Every goal for which something was measured."""
    rows = []
    for goal in GOALS:
        if not any(results.sizes(BY_ID[each.work], python) for each in goal.conditions):
            continue
        reached = {library: _reached(results, python, goal, library) for library in goal.libraries}
        texts = {name: _peer(results, python, goal, name) for name in PEERS}
        rows.append(Judged(goal, reached, texts, *_best(results, python, goal)))
    return rows


def number(value: float) -> str:
    """Three digits, as far as there are."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2}f}"


def _worst(results: Results, python: str, condition: Condition, system: str, base: str) -> float:
    """The greatest over the judged sizes; NaN if it was not measured."""
    work = BY_ID[condition.work]
    if condition.kind == "growth":
        return results.exponent(work, python, system, condition.number)
    values = []
    for size in results.judged(work, python):
        key = Key(python, work.id, size, system)
        if condition.kind == "ratio":
            values.append(results.ratio(key, base, condition.number).middle)
        elif condition.kind == "beyond":
            values.append(results.beyond(key, base, condition.number).middle)
        else:
            values.append(results.value(key, condition.number))
    return math.nan if not values or any(map(math.isnan, values)) else max(values)


def _reached(results: Results, python: str, goal: Goal, library: Library) -> Reached:
    system = f"sluicegate-{library}"
    values = [
        _worst(results, python, condition, system, BY_HAND[library])
        for condition in goal.conditions
    ]
    text = "; ".join(
        _told(condition, value) for condition, value in zip(goal.conditions, values, strict=True)
    )
    keys = {
        (condition.work, who) for condition in goal.conditions for who in (system, BY_HAND[library])
    }
    if any(
        cell.error and key.python == python and (key.work, key.system) in keys
        for key, cell in results.cells.items()
    ):
        return Reached(text, "failed")
    pairs = list(zip(goal.conditions, values, strict=True))
    if any(value > condition.limit(library) for condition, value in pairs):
        return Reached(text, "missed")
    return Reached(text, "" if any(map(math.isnan, values)) else "met")


def _told(condition: Condition, value: float) -> str:
    if math.isnan(value):
        return "-"
    sign = "+" if condition.kind == "beyond" and value >= 0 else ""
    return sign + number(value) + (f" {condition.unit}" if condition.unit else "")


def _reason(results: Results, python: str, work: Work, system: str) -> str | None:
    for size in results.judged(work, python):
        cell = results.cell(Key(python, work.id, size, system))
        if cell.why_not:
            return cell.why_not
    return None


def _peer(results: Results, python: str, goal: Goal, system: str) -> str:
    """What a peer reaches of a goal, its ratios to the program written on bare Trio."""
    texts = []
    for condition in goal.conditions:
        if condition.kind == "growth" or not BY_ID[condition.work].peers:
            continue
        value = _worst(results, python, _plain(condition), system, "trio")
        reason = _reason(results, python, BY_ID[condition.work], system)
        texts.append(reason or _told(_plain(condition), value))
    return "-" if all(text == "-" for text in texts) else "; ".join(dict.fromkeys(texts))


def _plain(condition: Condition) -> Condition:
    """Of a peer the number itself is told where of sluicegate it is the difference."""
    if condition.kind != "beyond":
        return condition
    return Condition(condition.work, condition.number, "number", math.inf, unit=condition.unit)


def _best(results: Results, python: str, goal: Goal) -> tuple[str, str]:
    """The best peer's number for each condition, and whether sluicegate is ahead of it."""
    texts: list[str] = []
    behind: list[str] = []
    for condition in goal.conditions:
        if condition.kind == "growth":
            continue
        plain = _plain(condition)
        values = {
            name: value
            for name in PEERS
            if not math.isnan(value := _worst(results, python, plain, name, "trio"))
        }
        if not values:
            continue
        best = min(values, key=values.__getitem__)
        texts.append(f"{PEERS[best].title} {_told(plain, values[best])}")
        absolute = Condition(condition.work, condition.number, "number", math.inf)
        theirs = _worst(results, python, absolute, best, "trio")
        for library in goal.libraries:
            mine = _worst(results, python, absolute, f"sluicegate-{library}", "trio")
            if mine > theirs:
                behind.append(f"{number(mine / theirs)} x {PEERS[best].title} on {library}")
    if not texts:
        return "-", ""
    return "; ".join(texts), "; ".join(behind) or "ahead"


def goals_as_json(rows: Sequence[Judged]) -> list[dict[str, object]]:
    """The rows for the file of results."""
    return [
        {
            "work": row.goal.title,
            "goal": row.goal.text,
            "reached": {library: each.text for library, each in row.reached.items()},
            "verdict": {library: each.verdict for library, each in row.reached.items()},
            "peers": row.peers,
            "best_peer": row.best_peer,
            "ahead": row.ahead,
        }
        for row in rows
    ]
