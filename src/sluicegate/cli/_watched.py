"""The watched runs of the command line, as far as their records have shown them."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

import attrs

from sluicegate import records as r
from sluicegate._events import ProgressEvent


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@attrs.define(eq=False)
class WatchedInvocation:
    """One call of a step, from the moment it is queued.

    Attributes:
        number: Its number in its run.
        step: Its step.
        events: The events that it is given; the first few of a join.
        count: How many events it is given.
        attempt: The number of the attempt.
        since: When it was queued, and from its beginning on when it began.
        not_before: When it may begin, while it waits for the delay of a retry.
        waits: What it waits for, by the number of the wait.
        progress: Its newest report.
        is_unwinding: Whether a cancellation was raised in it.
        children: The runs of its children that have not ended.
    """

    number: int
    step: WatchedStep
    events: tuple[Any, ...]
    count: int
    attempt: int
    since: float
    not_before: float | None = None
    waits: dict[int, r.WaitStarted] = attrs.field(factory=dict[int, r.WaitStarted])
    progress: ProgressEvent | None = None
    is_unwinding: bool = False
    children: list[str] = attrs.field(factory=list[str])


@attrs.define(eq=False)
class WatchedStep:
    """A step: its queue, its running invocations, and how many have ended.

    Attributes:
        name: Its name.
        workers: How many invocations may run at a time.
        queued: The invocations that have not begun, by number, oldest first.
        running: Those that have begun and not ended.
        total: How many deliveries it has had; attempts at the same events count once.
        ended: How many invocations have ended, by outcome; failures that are retried are not counted.
        is_fanned: Whether it has had several events of one list, so that ``total`` is a size.
    """

    name: str
    workers: int
    queued: dict[int, WatchedInvocation] = attrs.field(factory=dict[int, WatchedInvocation])
    running: dict[int, WatchedInvocation] = attrs.field(factory=dict[int, WatchedInvocation])
    total: int = 0
    ended: dict[str, int] = attrs.field(factory=dict[str, int])
    is_fanned: bool = False

    @property
    def done(self) -> int:
        """How many of ``total`` have ended."""
        return sum(self.ended.values())


class WatchedRun:
    """A run: its steps, its invocations and its questions."""

    def __init__(self, run_id: str, begin: r.RunStarted) -> None:
        self.run_id = run_id
        self.begin = begin
        self.steps = {name: WatchedStep(name, workers) for name, workers in begin.steps.items()}
        #: The invocations that have not ended, by number.
        self.invocations: dict[int, WatchedInvocation] = {}
        #: The waits that are not over, each with its invocation; those of no invocation with None.
        self.waits: dict[int, tuple[WatchedInvocation | None, r.WaitStarted]] = {}
        self.questions: dict[str, r.QuestionAsked] = {}
        self.cancellation: r.CancellationRequested | None = None
        self.end: r.RunEnded | None = None
        #: The events that no invocation has been queued for yet.
        self._events: dict[int, Any] = {}
        #: Who emitted the latest events and when, and how many events each step got of it.
        self._group: tuple[int | None, float] | None = None
        self._sizes: dict[str, int] = {}

    def now(self) -> float:
        """Return the time on the clock of the run."""
        return time() - self.begin.wall_offset

    @property
    def took(self) -> float:
        """How long the run has taken up to now, or to its end; with what it took before a snapshot."""
        end = self.now() if self.end is None else self.end.at
        return end - self.begin.at + self.begin.elapsed

    @property
    def deadline(self) -> float | None:
        """When its timeout passes."""
        timeout = self.begin.timeout
        return None if timeout is None else self.begin.at + timeout - self.begin.elapsed

    def take(self, record: r.Record) -> WatchedInvocation | None:
        """Take note of a record; return the invocation that it is about, if it is about one."""
        take = _TAKES.get(type(record))
        return None if take is None else take(self, record)

    # -- by class

    def _emitted(self, record: r.EventEmitted) -> None:
        group = record.source, record.at
        if group != self._group:
            self._group, self._sizes = group, {}
        for target in record.targets:
            size = self._sizes[target] = self._sizes.get(target, 0) + 1
            if size > 1 and record.origin == "step":
                self.steps[target].is_fanned = True
        if record.targets:
            self._events[record.event] = record.value, len(record.targets)

    def _queued(self, record: r.InvocationQueued) -> WatchedInvocation:
        step = self.steps[record.step]
        previous = self.invocations.get(record.previous or 0)
        if previous is not None:
            values = [*previous.events]
        else:
            values = [self._take_event(number) for number in record.events]
        invocation = WatchedInvocation(
            record.invocation,
            step,
            tuple(values[:3]),
            len(record.events),
            record.attempt,
            record.at,
            record.not_before,
        )
        if record.previous is None:
            step.total += 1
        else:
            step.ended["failed"] = step.ended.get("failed", 0) - 1
        self.invocations[record.invocation] = step.queued[record.invocation] = invocation
        return invocation

    def _take_event(self, number: int) -> Any:
        """Return an event, and forget it when the last of its steps has got it."""
        value, count = self._events.get(number, (None, 1))
        if count > 1:
            self._events[number] = value, count - 1
        else:
            self._events.pop(number, None)
        return value

    def _started(self, record: r.InvocationStarted) -> WatchedInvocation | None:
        invocation = self.invocations.get(record.invocation)
        if invocation is not None:
            invocation.since = record.at
            invocation.not_before = None
            invocation.step.queued.pop(record.invocation, None)
            invocation.step.running[record.invocation] = invocation
        return invocation

    def _ended(self, record: r.InvocationEnded) -> WatchedInvocation | None:
        invocation = self.invocations.pop(record.invocation, None)
        if invocation is not None:
            step = invocation.step
            step.queued.pop(record.invocation, None)
            step.running.pop(record.invocation, None)
            step.ended[record.outcome] = step.ended.get(record.outcome, 0) + 1
        return invocation

    def _wait_started(self, record: r.WaitStarted) -> WatchedInvocation | None:
        invocation = self.invocations.get(record.invocation or 0)
        self.waits[record.wait] = invocation, record
        if invocation is not None:
            invocation.waits[record.wait] = record
        return invocation

    def _wait_ended(self, record: r.WaitEnded) -> WatchedInvocation | None:
        invocation, _ = self.waits.pop(record.wait, (None, None))
        if invocation is not None:
            invocation.waits.pop(record.wait, None)
        return invocation

    def _asked(self, record: r.QuestionAsked) -> None:
        self.questions[record.question] = record

    def _answered(self, record: r.QuestionAnswered) -> None:
        self.questions.pop(record.question, None)

    def _cancelled(self, record: r.CancellationRequested) -> None:
        if record.scope == "run":
            self.cancellation = record

    def _delivered(self, record: r.CancellationDelivered) -> WatchedInvocation | None:
        invocation = self.invocations.get(record.invocation)
        if invocation is not None:
            invocation.is_unwinding = True
        return invocation

    def _child_started(self, record: r.ChildStarted) -> WatchedInvocation | None:
        invocation = self.invocations.get(record.invocation or 0)
        if invocation is not None:
            invocation.children.append(record.run_id)
        return invocation

    def _child_ended(self, record: r.ChildEnded) -> None:
        for invocation in self.invocations.values():
            if record.run_id in invocation.children:
                invocation.children.remove(record.run_id)

    def _run_ended(self, record: r.RunEnded) -> None:
        self.end = record


_TAKES: dict[type, Callable[[Any, Any], WatchedInvocation | None]] = {
    r.EventEmitted: WatchedRun._emitted,
    r.InvocationQueued: WatchedRun._queued,
    r.InvocationStarted: WatchedRun._started,
    r.InvocationEnded: WatchedRun._ended,
    r.WaitStarted: WatchedRun._wait_started,
    r.WaitEnded: WatchedRun._wait_ended,
    r.QuestionAsked: WatchedRun._asked,
    r.QuestionAnswered: WatchedRun._answered,
    r.CancellationRequested: WatchedRun._cancelled,
    r.CancellationDelivered: WatchedRun._delivered,
    r.ChildStarted: WatchedRun._child_started,
    r.ChildEnded: WatchedRun._child_ended,
    r.RunEnded: WatchedRun._run_ended,
}


class WatchedRuns:
    """All runs that are watched, by their identifiers."""

    def __init__(self) -> None:
        self.runs: dict[str, WatchedRun] = {}

    def take(
        self, run_id: str, record: r.Record
    ) -> tuple[WatchedRun | None, WatchedInvocation | None]:
        """Take note of a record; return the run and the invocation that it is about."""
        if isinstance(record, r.RunStarted):
            self.runs[run_id] = WatchedRun(run_id, record)
            return self.runs[run_id], None
        run = self.runs.get(run_id)
        if run is None:
            return None, None
        if isinstance(record, r.EventStreamed) and isinstance(record.value, ProgressEvent):
            # That of a child is on the stream of its parent too.
            return run, self._reported(record.value) if record.value.run_id == run_id else None
        invocation = run.take(record)
        if isinstance(record, r.RunEnded) and run.begin.parent_run is not None:
            del self.runs[run_id]  # a run may have any number of children, one after another
        return run, invocation

    def _reported(self, report: ProgressEvent) -> WatchedInvocation | None:
        run = self.runs.get(report.run_id)
        invocation = None if run is None else run.invocations.get(report.invocation)
        if invocation is not None:
            invocation.progress = report
        return invocation

    @property
    def top(self) -> Iterator[WatchedRun]:
        """The runs that no other watched run runs as a child."""
        return (run for run in self.runs.values() if run.begin.parent_run not in self.runs)
