"""A timeline as text for a terminal."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from sluicegate.timeline._lanes import Bounds, lanes_of, nested


if TYPE_CHECKING:
    from sluicegate.recording import RecordedRun, Recording
    from sluicegate.timeline._lanes import Lane, Span

#: The states of a cell, those that win over others last; with the sign, the sign in ASCII and the colour.
STATES = {
    "nothing": (" ", " ", ""),
    "delay": ("┄", "'", "90"),
    "queued": ("·", ".", "90"),
    "waiting": ("░", "-", "33"),
    "running": ("█", "#", "34"),
    "unwinding": ("▒", "~", "35"),
    "cancelled": ("◌", "o", "35"),
    "failed": ("✗", "x", "31"),
}
_RANKS = {name: rank for rank, name in enumerate(STATES)}
#: A step with more rows than this is drawn as one row with the number that are busy.
MOST_ROWS = 6
_DENSITY = " ▁▂▃▄▅▆▇█"
_ASCII_DENSITY = " 123456789"


def timeline_text(
    recording: Recording,
    run: RecordedRun | None = None,
    *,
    width: int | None = None,
    is_ascii: bool = False,
    has_color: bool = False,
) -> str:
    """Return a timeline as text, with a line for each worker of each step.

    A step with many workers is one line that shows how many of them are busy. Never a checkpoint.

    Args:
        recording: The recording.
        run: The run to show, with its children; by default every run that is no child.
        width: The width in columns; by default that of the terminal, or 80.
        is_ascii: Draw with ASCII characters only. Characters of names are replaced by ``?``.
        has_color: Add the escape sequences of a terminal's colours. The signs differ without them too.

    Returns:
        The lines, each with a line feed.
    """
    roots = recording.runs if run is None else [run]
    if not roots:
        return "the recording has no run\n"
    runs = nested(roots)
    bounds = Bounds([one for one, _ in runs])
    columns = max(40, width or shutil.get_terminal_size((80, 24)).columns)
    text = "\n".join(_Drawing(bounds, columns, is_ascii, has_color).lines(runs)) + "\n"
    return text.encode("ascii", "replace").decode() if is_ascii else text


class _Drawing:
    def __init__(self, bounds: Bounds, width: int, is_ascii: bool, has_color: bool) -> None:
        self.bounds = bounds
        self.names = min(24, width // 3)
        self.width = width - self.names - 2
        self.is_ascii = is_ascii
        self.has_color = has_color

    def lines(self, runs: list[tuple[RecordedRun, int]]) -> list[str]:
        found: list[str] = []
        lanes = lanes_of(runs, self.bounds)
        for run, depth in runs:
            took = duration(self.bounds.at(run, run.last_at) - self.bounds.at(run, run.started_at))
            title = f"{'  ' * depth}{run.workflow} {run.run_id}: {run.status}, {took}"
            found.append(_plain(title)[: self.names + self.width + 2])
            for lane in lanes:
                if lane.run is run:
                    found.extend(self._lane(lane))
            found.extend(self._cancellations(run))
        return [*found, self._ruler(), self._legend()]

    def _lane(self, lane: Lane) -> list[str]:
        name = _plain("  " * lane.depth + lane.step)
        if not lane.bars:
            return [f"{_fit(name, self.names)}  (never)"]
        if lane.height > MOST_ROWS:
            busy = f"{name} ({lane.height} rows)"
            return [f"{_fit(busy, self.names)}  {self._density(lane)}"]
        rows = [["nothing"] * self.width for _ in range(lane.height)]
        for (one, span), row in zip(lane.bars, lane.rows, strict=True):
            self._bar(rows[row], span, one.outcome)
            for wait in one.waits:
                start = self.bounds.at(one.run, wait.started_at)
                end = self.bounds.at(one.run, wait.ended_at, one.run.last_at)
                self._fill(rows[row], max(start, span.started), end, "waiting", is_over=True)
        labels = [name, *[""] * (lane.height - 1)]
        return [
            f"{_fit(label, self.names)}  {self._signs(row)}".rstrip()
            for label, row in zip(labels, rows, strict=True)
        ]

    def _bar(self, row: list[str], span: Span, outcome: str | None) -> None:
        self._fill(row, span.queued, span.ready, "delay")
        self._fill(row, span.ready, span.started, "queued")
        if outcome == "dropped":
            return
        self._fill(row, span.started, span.unwinding, "running", least=1)
        self._fill(row, span.unwinding, span.ended, "unwinding")
        if outcome in ("failed", "cancelled"):
            row[self._column(span.ended)] = outcome

    def _fill(
        self,
        row: list[str],
        start: int,
        end: int,
        state: str,
        *,
        least: int = 0,
        is_over: bool = False,
    ) -> None:
        first, last = self._column(start), self._column(end)
        for column in range(first, min(max(last, first + least), self.width)):
            if (is_over and row[column] == "running") or _RANKS[state] > _RANKS[row[column]]:
                row[column] = state

    def _column(self, at: int) -> int:
        return min(self.width - 1, at * self.width // self.bounds.length)

    def _signs(self, row: list[str]) -> str:
        found: list[str] = []
        before = ""
        for state in row:
            sign, in_ascii, color = STATES[state]
            if self.has_color and color != before:
                found.append(f"\x1b[{color or '0'}m")
            before = color if self.has_color else ""
            found.append(in_ascii if self.is_ascii else sign)
        return "".join(found) + ("\x1b[0m" if before else "")

    def _density(self, lane: Lane) -> str:
        changes = [0] * (self.width + 1)
        for _, span in lane.bars:
            changes[self._column(span.started)] += 1
            changes[self._column(span.ended) + 1] -= 1
        signs = _ASCII_DENSITY if self.is_ascii else _DENSITY
        busy, found = 0, ""
        most = max(1, lane.height)
        for change in changes[:-1]:
            busy += change
            level = min(len(signs) - 1, -(-busy * (len(signs) - 1) // most))
            found += signs[max(0, level)]
        return found.rstrip()

    def _cancellations(self, run: RecordedRun) -> list[str]:
        found: list[str] = []
        for one in run.cancellations:
            slowest = next(iter(one.invocations), None)
            text = f"  {one.scope} cancelled by {one.by}: {one.reason}"
            if slowest is not None and slowest.took is not None:
                text += (
                    f"; the last to end was {slowest.invocation.step} #{slowest.invocation.number}, "
                    f"after {duration(round(slowest.took * 1e6))}"
                )
            found.append(_plain(text)[: self.names + self.width + 2])
        return found

    def _ruler(self) -> str:
        end = duration(self.bounds.length)
        return f"{'':{self.names}}  0{end:>{self.width - 1}}"

    def _legend(self) -> str:
        column = 1 if self.is_ascii else 0
        return "  ".join(
            f"{signs[column]} {name}" for name, signs in STATES.items() if name != "nothing"
        )


def duration(microseconds: int) -> str:
    """Return a duration with three digits and its unit."""
    for size, unit in ((3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms")):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds} µs"


def _fit(text: str, width: int) -> str:
    return f"{text[: width - 1]}…" if len(text) > width else f"{text:{width}}"


def _plain(text: str) -> str:
    """Return a text without characters that steer a terminal."""
    return "".join(sign if sign.isprintable() else "�" for sign in text)
