"""The tables as plain text: all numbers, the peers, and the goals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks._goals import Judged, judge, number
from benchmarks._model import BY_HAND, Metric, Work
from benchmarks._results import Key, Range, Results
from benchmarks._works import BY_ID
from benchmarks.peers import PEERS


class Table(NamedTuple):
    """Lines under headings."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]

    def numeric(self) -> set[int]:
        """The columns in which there is nothing but numbers."""
        return {
            i
            for i in range(1, len(self.headings))
            if all(line[i][:1].isdigit() or line[i] in {"", "-"} for line in self.lines)
        }


def columns(table: Table) -> str:
    """The table as plain text, numbers to the right."""
    all_lines = [table.headings, *table.lines]
    widths = [max(len(line[i]) for line in all_lines) for i in range(len(table.headings))]
    right = table.numeric()
    text = ""
    for line in all_lines:
        cells = [
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
            for i, cell in enumerate(line)
        ]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def title(work: Work, size: int, metric: Metric) -> str:
    """The name of a row."""
    sized = f"{work.title}, {work.size} = {size:,}" if work.size else work.title
    return f"{sized}: {metric.title}" if metric.title else sized


def with_range(value: Range) -> str:
    """A ratio with its range, if it was measured more than once."""
    if math.isnan(value.middle):
        return "-"
    middle = number(value.middle)
    if value.low == value.high:
        return middle
    return f"{middle} ({number(value.low)}-{number(value.high)})"


def present(results: Results, python: str) -> list[tuple[Work, int, Metric]]:
    """Every row that there is something for."""
    return [
        (work, size, metric)
        for work in BY_ID.values()
        for size in results.sizes(work, python)
        for metric in work.metrics
    ]


def numbers(results: Results, python: str) -> Table:
    """Sluicegate beside the programs written by hand: medians, ratios within a repeat."""
    headings = (
        "work",
        "unit",
        "sluicegate/trio",
        "trio",
        "ratio (range)",
        "sluicegate/asyncio",
        "anyio",
        "ratio (range)",
        "asyncio",
        "ratio",
    )
    lines = []
    for work, size, metric in present(results, python):
        line = [title(work, size, metric), metric.unit]
        for library, by_hand in BY_HAND.items():
            key = Key(python, work.id, size, f"sluicegate-{library}")
            line += [
                number(results.value(key, metric.key)),
                number(results.value(key._replace(system=by_hand), metric.key)),
                with_range(results.ratio(key, by_hand, metric.key)),
            ]
        bare = Key(python, work.id, size, "asyncio")
        line += [
            number(results.value(bare, metric.key)),
            number(results.ratio(key, "asyncio", metric.key).middle),
        ]
        if any(cell != "-" for cell in line[2:]):
            lines.append(line)
    return Table(headings, lines)


def peer_cell(results: Results, key: Key, metric: Metric) -> str:
    """A peer's number with its ratio to bare Trio in the same repeat, or why there is none."""
    cell = results.cell(key)
    if cell.why_not:
        return cell.why_not
    value = results.value(key, metric.key)
    if math.isnan(value):
        return "-"
    ratio = results.ratio(key, "trio", metric.key).middle
    return number(value) + ("" if math.isnan(ratio) else f" ({number(ratio)} x)")


def peers(results: Results, python: str) -> Table:
    """The peers that are installed, beside sluicegate: numbers, and ratios to bare Trio."""
    there = [name for name in PEERS if name in results.systems(python)]
    lines = []
    for work, size, metric in present(results, python):
        key = Key(python, work.id, size, "sluicegate-trio")
        cells = [
            peer_cell(results, key._replace(system=name), metric)
            for name in ("sluicegate-trio", "sluicegate-asyncio", *there)
        ]
        if any(cell != "-" for cell in cells[2:]):
            lines.append([title(work, size, metric), metric.unit, *cells])
    headings = ["work", "unit", "sluicegate/trio", "sluicegate/asyncio"]
    return Table([*headings, *(PEERS[name].title for name in there)], lines)


def goals(rows: Sequence[Judged]) -> Table:
    """The goals, what the peers reach of them, and what sluicegate does."""
    headings = (
        "work",
        "goal",
        "LlamaIndex",
        "best peer",
        "reached on Trio",
        "",
        "on asyncio",
        "",
        "of the peers",
    )
    lines = []
    for row in rows:
        line = [row.goal.title, row.goal.text, row.peers["llama_index"], row.best_peer]
        for library in BY_HAND:
            reached = row.reached.get(library)
            line += (
                ["-", ""]
                if reached is None
                else [
                    reached.text,
                    reached.verdict.upper()
                    if reached.verdict in {"missed", "failed"}
                    else reached.verdict,
                ]
            )
        lines.append([*line, row.ahead])
    return Table(headings, lines)


def counted(rows: Sequence[Judged]) -> str:
    """How many goals are met."""
    verdicts = [reached.verdict for row in rows for reached in row.reached.values()]
    return ", ".join(f"{verdicts.count(word)} {word}" for word in ("met", "missed", "failed"))


def busy(results: Results) -> str:
    """What else the machine had to do when the measuring began."""
    load, cpus = results.environment.get("load"), results.environment.get("cpus")
    if not load or load < 0.5:
        return ""
    return f"the machine was busy: a load of {load:.1f} on {cpus} CPUs before this began"


def everything(results: Results, *, goals_only: bool = False) -> str:
    """All tables of all interpreters, the goals last."""
    text = ""
    if not goals_only and (counts := results.environment.get("counts")):
        text += f"what is the same on every machine\n\n{counts}\n"
    for python in results.pythons:
        if not goals_only:
            text += f"CPython {python}: sluicegate and the same by hand\n\n"
            text += columns(numbers(results, python)) + "\n"
            if (of_peers := peers(results, python)).lines:
                text += f"CPython {python}: the peers (x: the ratio to bare Trio)\n\n"
                text += columns(of_peers) + "\n"
        rows = judge(results, python)
        if rows:
            text += f"CPython {python}: the goals\n\n{columns(goals(rows))}\n{counted(rows)}\n\n"
    absent = [
        f"{peer.title} (pip install {peer.distribution})"
        for name, peer in PEERS.items()
        if name not in results.environment["peers"]
    ]
    if absent:
        text += "not installed, so left out: " + ", ".join(absent) + "\n"
    if said := busy(results):
        text += said + "\n"
    for key, error in results.failures():
        text += f"FAILED: {key.work} {key.size} by {key.system} on CPython {key.python}: {error}\n"
    return text
