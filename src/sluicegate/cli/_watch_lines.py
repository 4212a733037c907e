"""Watching a run as lines: one for each thing that happens, with the time since the run began."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from sluicegate import records as r
from sluicegate._engine.dump_values import class_name, seconds, shown, until
from sluicegate._errors import brief_text
from sluicegate._events import ProgressEvent
from sluicegate.cli._output import printable
from sluicegate.cli._watched import WatchedRuns


if TYPE_CHECKING:
    from sluicegate.cli._watched import WatchedInvocation, WatchedRun


#: Seconds between two lines about the progress of one invocation.
REPORTED_EVERY = 1.0


class Lines:
    """Prints a line for each thing that happens."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._watched = WatchedRuns()
        #: When the progress of an invocation was last printed.
        self._reported: dict[WatchedInvocation, float] = {}

    def take(self, run_id: str, record: r.Record) -> None:
        """Print what a record says, unless that is not worth a line."""
        run, invocation = self._watched.take(run_id, record)
        if run is None:
            return
        text = self._of_invocation(record, invocation) if invocation is not None else None
        if text is None:
            text = _of_run(run, record)
        if text is not None:
            since = record.at - run.begin.at + run.begin.elapsed
            is_child = run.begin.parent_run is not None
            name = f"{run.begin.workflow} {run.run_id}: " if is_child else ""
            self._out.write(printable(f"[{since:9.3f}s] {name}{text}") + "\n")
            self._out.flush()

    def refresh(self) -> None:
        """Do nothing: what was printed stays."""

    def close(self) -> None:
        """Do nothing: each line is complete."""

    def _of_invocation(self, record: r.Record, invocation: WatchedInvocation) -> str | None:
        name = f"{invocation.step.name} #{invocation.number}"
        text: str | None = None
        if isinstance(record, r.InvocationQueued):
            if record.not_before is not None:
                due = until(record.not_before, record.at)
                text = f"is attempt {record.attempt} at the event of #{record.previous}, due {due}"
        elif isinstance(record, r.InvocationStarted):
            attempt = f", attempt {invocation.attempt}" if invocation.attempt > 1 else ""
            text = f"takes {events_of(invocation)}{attempt}"
        elif isinstance(record, r.InvocationEnded):
            self._reported.pop(invocation, None)
            text = ended(record, invocation)
        elif isinstance(record, r.WaitStarted):
            text = waiting(record, record.at)
        elif isinstance(record, r.WaitEnded) and record.outcome == "timed_out":
            text = "has waited in vain"
        elif isinstance(record, r.CancellationDelivered):
            text = "is cancelled, and unwinds"
        elif isinstance(record, r.EventStreamed) and isinstance(record.value, ProgressEvent):
            text = self._progress(record, record.value, invocation)
        return None if text is None else f"{name} {text}"

    def _progress(
        self, record: r.Record, report: ProgressEvent, invocation: WatchedInvocation
    ) -> str | None:
        last = self._reported.get(invocation)
        is_last = report.total is not None and report.done >= report.total
        if last is not None and record.at - last < REPORTED_EVERY and not is_last:
            return None
        self._reported[invocation] = record.at
        return f"reports {amount(report)}{f': {report.message}' if report.message else ''}"


def _of_run(run: WatchedRun, record: r.Record) -> str | None:
    if isinstance(record, r.RunStarted):
        goes_on = " goes on" if record.is_resumed else " begins"
        return f"run {run.run_id} of {record.workflow}{goes_on}"
    if isinstance(record, r.RunEnded):
        why = "" if record.error is None else f": {class_name(record.error)}"
        return f"run {run.run_id} has {_ENDS.get(record.status, record.status)}{why}"
    if isinstance(record, r.QuestionAsked):
        return f"asks {shown(record.value, 1)}"
    if isinstance(record, r.CancellationRequested) and is_told(record):
        return f"is cancelled: {record.reason}"
    return None


def is_told(record: r.CancellationRequested) -> bool:
    """Whether a cancellation is one of the whole run, and not its usual end."""
    return record.scope == "run" and record.by != "stop"


_ENDS = {
    "timed_out": "timed out",
    "cancelled": "been cancelled",
    "detached": "left this process and continues from its store",
    "parked": "left the memory until it is woken",
}


def ended(record: r.InvocationEnded, invocation: WatchedInvocation) -> str:
    """Return how an invocation has ended."""
    took = f"after {seconds(record.at - invocation.since)}"
    if record.outcome == "failed":
        return f"raises {class_name(record.error)} {took}"
    words = {"completed": "returns", "cancelled": "has unwound", "dropped": "is dropped"}
    return f"{words[record.outcome]} {took}"


def events_of(invocation: WatchedInvocation) -> str:
    """Return the events that an invocation is given."""
    if invocation.count == 1:
        value = invocation.events[0]
        return "an event" if value is None else brief_text(shown(value, 1), 60)
    kinds = dict.fromkeys(class_name(value) for value in invocation.events if value is not None)
    names = f": {', '.join(kinds)}" if kinds else ""
    return f"{invocation.count:,} events{names}"


def amount(report: ProgressEvent) -> str:
    """Return how much is done."""
    if report.total is None:
        return f"{report.done:,}"
    return f"{report.done:,} of {report.total:,}"


def waiting(wait: r.WaitStarted, now: float) -> str:
    """Return what an invocation waits for."""
    if wait.kind == "sleep":
        return f"sleeps, ends {until(wait.until or now, now)}"
    text = _WAITS[wait.kind]
    if wait.kind == "event" and wait.subject:
        text = wait.subject
    due = "" if wait.until is None else f", gives up {until(wait.until, now)}"
    return f"waits for {text}{due}"


_WAITS = {
    "event": "an event",
    "branch": "a branch",
    "child": "a child",
    "place": "a place among the workers",
    "limiter": "its limiter",
    "thread": "a thread",
    "process": "a process",
    "state": "the state, which is being edited",
}
