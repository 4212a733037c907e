"""Lanes of a timeline: which invocation is drawn in which row, and when."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

import attrs


if TYPE_CHECKING:
    from sluicegate.recording import RecordedInvocation, RecordedRun


class Span(NamedTuple):
    """The times of an invocation, in microseconds since the first run began.

    What is unknown has the time of what follows it, so that its part has no length.
    """

    queued: int
    ready: int
    started: int
    unwinding: int
    ended: int


class Bounds:
    """When the timeline begins and ends; translates the times of its runs."""

    def __init__(self, runs: list[RecordedRun]) -> None:
        # Runs of several event loops have several clocks: the time of day is what they share.
        self._start = min((run.started_at + run.wall_offset for run in runs), default=0.0)
        ends = [
            self.at(
                run, max(run.last_at, run.ended_at if run.ended_at is not None else run.last_at)
            )
            for run in runs
        ]
        self.length = max([*ends, 1])

    def at(self, run: RecordedRun, time: float | None, otherwise: float = 0.0) -> int:
        """Return a time of a run in microseconds; ``otherwise`` is used if it is None."""
        known = otherwise if time is None else time
        return max(0, round((known + run.wall_offset - self._start) * 1e6))

    def span(self, one: RecordedInvocation) -> Span:
        """Return the times of an invocation."""
        run = one.run
        last = one.ended_at if one.ended_at is not None else run.last_at
        started = one.started_at if one.started_at is not None else last
        queued = one.queued_at if one.queued_at is not None else started
        ready = min(max(queued, one.not_before or queued), max(started, queued))
        unwinding = one.delivered_at if one.delivered_at is not None else last
        times = [queued, ready, started, unwinding, last]
        return Span(*(self.at(run, time) for time in times))

    def steps(self, run: RecordedRun) -> dict[str, int]:
        """Return the steps of a run with their workers, and those that only invocations name."""
        found = dict(run.steps)
        for one in run.invocations:
            if one.step not in found:
                found[one.step] = 1
        return found


@attrs.define(eq=False)
class Lane:
    """The invocations of one step of one run.

    Attributes:
        run: The run.
        step: The name of the step.
        depth: How many runs this run is a child of.
        bars: Its invocations with their times, in order of time.
        rows: For each of them the row that it is in.
        height: How many rows there are.
    """

    run: RecordedRun
    step: str
    depth: int
    bars: list[tuple[RecordedInvocation, Span]] = attrs.Factory(list)  # pyright: ignore[reportUnknownVariableType]
    rows: list[int] = attrs.Factory(list[int])
    height: int = 1


def nested(runs: list[RecordedRun]) -> list[tuple[RecordedRun, int]]:
    """Return runs with their children behind them, each with its depth."""
    found: list[tuple[RecordedRun, int]] = []
    todo = [(run, 0) for run in reversed(runs)]
    while todo:
        run, depth = todo.pop()
        found.append((run, depth))
        todo.extend((child, depth + 1) for child in reversed(run.children))
    return found


def lanes_of(runs: list[tuple[RecordedRun, int]], bounds: Bounds) -> list[Lane]:
    """Return a lane for each step that ran, packed into as few rows as its bars need."""
    found: list[Lane] = []
    for run, depth in runs:
        lanes = {step: Lane(run, step, depth) for step in bounds.steps(run)}
        for one in run.invocations:
            lanes[one.step].bars.append((one, bounds.span(one)))
        found.extend(lanes.values())
    for lane in found:
        _pack(lane)
    return found


def _pack(lane: Lane) -> None:
    lane.bars.sort(key=lambda bar: (bar[1].started, bar[1].ended))
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    height = 0
    for _, span in lane.bars:
        while busy and busy[0][0] <= span.started:
            heappush(free, heappop(busy)[1])
        if free:
            row = heappop(free)
        else:
            row = height
            height += 1
        lane.rows.append(row)
        heappush(busy, (span.ended, row))
    lane.height = max(1, height)
