"""A recording as a table for a terminal: how long each step took, and the critical path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._execution import shown_seconds
from sluicegate.recording._path import critical_path


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate.recording._model import RecordedCancellation, RecordedInvocation, RecordedRun
    from sluicegate.recording._path import CriticalPath


#: The most parts of a path, runs and slowest invocations that are shown.
_MOST_PARTS = 15
_MOST_RUNS = 20
_MOST_SLOW = 5
_HEAD = ("step", "count", "total", "mean", "max", "queued", "failed", "cancelled", "retried")


def summary_of(runs: list[RecordedRun], notes: list[str]) -> str:
    """Return the summary of runs, the last ones if there are many, followed by notes."""
    lines = [] if runs else ["the recording has no run"]
    if len(runs) > _MOST_RUNS:
        lines += [f"{len(runs) - _MOST_RUNS:,} earlier runs", ""]
    for number, one in enumerate(runs[-_MOST_RUNS:]):
        lines += [""] * bool(number)
        lines += _of_run(one)
    if notes:
        lines += ["", *notes]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _of_run(run: RecordedRun) -> Iterator[str]:
    end = run.last_at if run.ended_at is None else run.ended_at
    status = run.status.replace("_", " ")
    yield f"run {run.run_id} of {run.workflow}: {status} after {shown_seconds(end - run.started_at)}"
    failure = run.failure
    if failure is not None:
        yield f"  {failure.type_name}: {failure.message}"
    if run.left_out:
        yield f"  {run.left_out:,} records were left out"
    yield from _table(_family(run))
    for cancellation in run.cancellations:
        yield from _of_cancellation(cancellation)
    yield from _of_path(critical_path(run))


def _family(run: RecordedRun) -> list[RecordedRun]:
    """Return a run and all runs below it."""
    found = [run]
    for one in found:
        found.extend(one.children)
    return found


def _table(runs: list[RecordedRun]) -> Iterator[str]:
    by_step: dict[str, list[RecordedInvocation]] = {}
    for run in runs:
        prefix = f"{run.workflow}." if run is not runs[0] else ""
        for one in run.invocations:
            by_step.setdefault(f"{prefix}{one.step}", []).append(one)
    if not by_step:
        return
    slowest = sorted(by_step.items(), key=lambda item: -_total(item[1]))
    texts = [_HEAD, *((name, *_cells(found)) for name, found in slowest)]
    widths = [max(len(row[n]) for row in texts) for n in range(len(_HEAD))]
    yield ""
    for row in texts:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  " + "  ".join(cells)


def _total(found: list[RecordedInvocation]) -> float:
    return sum(one.took or 0.0 for one in found)


def _cells(found: list[RecordedInvocation]) -> Iterator[str]:
    """Yield the cells of a step, after its name."""
    took = [one.took for one in found if one.took is not None]
    queued = sum(
        one.started_at - one.queued_at
        for one in found
        if one.started_at is not None and one.queued_at is not None
    )
    total = sum(took)
    yield f"{len(found):,}"
    for seconds in (total, total / len(took) if took else 0.0, max(took, default=0.0), queued):
        yield shown_seconds(seconds) if seconds else ""
    for count in (
        sum(one.outcome == "failed" for one in found),
        sum(one.outcome == "cancelled" for one in found),
        sum(one.previous is not None for one in found),
    ):
        yield f"{count:,}" if count else ""


def _of_cancellation(cancellation: RecordedCancellation) -> Iterator[str]:
    found = cancellation.invocations
    since = shown_seconds(cancellation.at - cancellation.run.started_at)
    yield ""
    yield f"  {cancellation.scope} cancelled after {since} by {cancellation.by}: {cancellation.reason}"
    for one in found[:_MOST_SLOW]:
        name = f"{one.invocation.step} #{one.invocation.number}"
        took = "has not unwound" if one.took is None else f"unwound in {shown_seconds(one.took)}"
        thread = "" if one.delivered_at is not None else ", told only by its end"
        yield f"    {name} {took}{thread}"
    if len(found) > _MOST_SLOW:
        yield f"    {len(found) - _MOST_SLOW:,} others were faster"


def _of_path(path: CriticalPath) -> Iterator[str]:
    if not path.parts:
        return
    shares = [
        f"{name} {seconds / path.seconds:.0%}"
        for name, seconds in list(path.by_step().items())[:_MOST_SLOW]
    ]
    yield ""
    yield f"  critical path, {shown_seconds(path.seconds)}: {', '.join(shares) or 'no step'}"
    slowest = sorted(path.parts, key=lambda part: -part.seconds)[:_MOST_PARTS]
    shown = [part for part in path.parts if part in slowest]
    began = path.parts[0].started_at
    times = [f"+{shown_seconds(part.started_at - began)}" for part in shown]
    width = max(map(len, times))
    for time, part in zip(times, shown, strict=True):
        where = "" if part.run is path.run else f"{part.run.workflow}."
        yield f"    {time.rjust(width)}  {shown_seconds(part.seconds).rjust(9)}  {where}{part}"
    rest = len(path.parts) - len(shown)
    if rest:
        seconds = path.seconds - sum(part.seconds for part in shown)
        yield f"    {rest:,} shorter parts take {shown_seconds(seconds)}"
