"""The critical path of a run: the chain of causes that determined when the run ended.

It is found backwards, from the end of the run. Each of these rules says what the run did before the
moment that the chain has reached, and where the chain continues:

1.  The run ended when its last invocation ended, or, if it has completed, when its stop event came:
    the chain begins at the invocation that made the stop event; of a failed run, at the failed invocation
    whose exception the run raises; otherwise at the invocation that ended last. From there to the end
    of the run the run was ``ending``.
2.  An invocation was ``running``, except during its waits; from the moment at which a cancellation was
    raised in it, it was ``unwinding``.
3.  A wait for an event that was emitted during the wait was ended by that event: the chain continues
    with the event. If it came from outside, the whole wait is ``waiting``, and the chain continues in
    the invocation, at the beginning of the wait.
4.  A wait for a child was ended by the end of the child's run: the chain follows that run's own
    path, and then the invocation.
5.  A wait for a branch was ended by the last descendant of the waiting invocation that ended
    during the wait: the chain continues there.
6.  Any other wait (a place, a limiter, a thread, a process, the state) is ``waiting``.
7.  An invocation that was queued and could have begun was ``queued``: the workers of its step were
    busy, its own with the invocation ``behind`` which it was. Before, it was ``delayed``, if the delay of a retry had not passed.
8.  The cause of a retry is the attempt before. The cause of any other invocation is the last of its
    events: the chain continues in the invocation that emitted it, at that moment.
9.  An event from outside, or from a snapshot, ends the chain: before it, the run was ``starting`` if it
    is the first event, and otherwise waited ``outside``. The time before an invocation whose cause is not
    recorded is ``unknown``: a limit left it out, or it is the join of an empty fan-out.

The parts have no gap and no overlap. So their times add up to the time from the start of the run to its
end, or to the last record of a run that has not ended.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, final

import attrs

from sluicegate.recording._causes import descendants
from sluicegate.recording._errors import RecordedError
from sluicegate.recording._model import RecordedInvocation


if TYPE_CHECKING:
    from sluicegate.recording._model import (
        RecordedEvent,
        RecordedRun,
        RecordedWait,
    )


PartKind: TypeAlias = Literal[
    "starting",
    "outside",
    "queued",
    "delayed",
    "running",
    "waiting",
    "unwinding",
    "delivery",
    "ending",
    "unknown",
]


@attrs.frozen(eq=False)
class PathPart:
    """A part of a critical path.

    Attributes:
        kind: The activity of the run: ``"starting"``, ``"outside"`` (idle, until an event
            came from outside), ``"queued"``, ``"delayed"`` (by a retry), ``"running"``,
            ``"waiting"``, ``"unwinding"`` (after a cancellation), ``"delivery"`` (an event was emitted, and
            had not reached its target), ``"ending"``, or
            ``"unknown"`` (its cause is not recorded).
        started_at: When it began.
        ended_at: When it ended.
        run: The run; that of a child where the path goes through one.
        invocation: The invocation; None if it is about none.
        wait: The wait, if ``kind`` is ``"waiting"``.
        behind: The invocation that its worker ran before, if ``kind`` is ``"queued"`` and that one
            was under way meanwhile.
        event: The event, if ``kind`` is ``"outside"``, ``"starting"`` or ``"delivery"``.
    """

    kind: PartKind
    started_at: float
    ended_at: float
    run: RecordedRun
    invocation: RecordedInvocation | None = None
    wait: RecordedWait | None = None
    event: RecordedEvent | None = None
    behind: RecordedInvocation | None = None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.started_at

    def __str__(self) -> str:
        words: list[str] = [self.kind]
        if self.wait is not None:
            words.append(f"for {self.wait.kind} {self.wait.subject}".rstrip())
        if self.invocation is not None:
            words.insert(0, f"{self.invocation.step} #{self.invocation.number}")
            if self.behind is not None:
                words.append(f"behind {self.behind.step} #{self.behind.number}")
        elif self.event is not None:
            words.append(self.event.event_type)
        return " ".join(words)


@attrs.frozen(eq=False)
class CriticalPath:
    """The critical path of a run.

    Attributes:
        run: The run.
        parts: Its parts, in the order of time, without gap or overlap. Parts of no time are left out.
    """

    run: RecordedRun
    parts: tuple[PathPart, ...]

    @property
    def seconds(self) -> float:
        """The time of all parts: that of the run."""
        return self.parts[-1].ended_at - self.parts[0].started_at if self.parts else 0.0

    @property
    def invocations(self) -> tuple[RecordedInvocation, ...]:
        """The invocations on the path, in the order of time."""
        found = (part.invocation for part in self.parts if part.invocation is not None)
        return tuple(dict.fromkeys(found))

    def by_kind(self) -> dict[PartKind, float]:
        """Return the seconds of each kind of part, the longest first."""
        found: dict[PartKind, float] = {}
        for part in self.parts:
            found[part.kind] = found.get(part.kind, 0.0) + part.seconds
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def by_step(self) -> dict[str, float]:
        """Return the seconds of each step, queues and waits included, the longest first.

        A step of a child is called ``"Child.step"``.
        """
        found: dict[str, float] = {}
        for part in self.parts:
            if part.invocation is not None:
                step = part.invocation.step
                if part.run is not self.run:
                    step = f"{part.run.workflow}.{step}"
                found[step] = found.get(step, 0.0) + part.seconds
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def critical_path(run: RecordedRun) -> CriticalPath:
    """Return the critical path of a run."""
    walk = _Walk()
    walk.through(run, run.last_at if run.ended_at is None else run.ended_at)
    return CriticalPath(run, tuple(reversed(walk.parts)))


class _Place(NamedTuple):
    """Where a walk is: in an invocation, before a moment, and before a record of the run.

    The number of the record falls with every event that the walk follows, also where many things
    happen at one moment. So the walk ends.
    """

    invocation: RecordedInvocation | None
    at: float
    order: float


@final
class _Walk:
    """Walks backwards, and keeps the parts in that order."""

    def __init__(self) -> None:
        self.parts: list[PathPart] = []
        self._runs: set[RecordedRun] = set()
        #: For each run, the invocation that the same worker ran before another.
        self._before_on_worker: dict[RecordedRun, dict[RecordedInvocation, RecordedInvocation]] = {}

    def _behind(self, invocation: RecordedInvocation) -> RecordedInvocation | None:
        """Return the invocation that occupied the worker while another was queued, or None."""
        run = invocation.run
        if run not in self._before_on_worker:
            self._before_on_worker[run] = _by_worker(run)
        found = self._before_on_worker[run].get(invocation)
        if found is None or found.ended_at is None or invocation.queued_at is None:
            return None
        return found if found.ended_at > invocation.queued_at else None

    def _part(
        self,
        kind: PartKind,
        start: float,
        end: float,
        run: RecordedRun,
        invocation: RecordedInvocation | None = None,
        *,
        wait: RecordedWait | None = None,
        event: RecordedEvent | None = None,
        behind: RecordedInvocation | None = None,
    ) -> float:
        """Add a part, and return its beginning, where the walk continues."""
        start = min(start, end)
        if start < end:
            self.parts.append(PathPart(kind, start, end, run, invocation, wait, event, behind))
        return start

    def through(self, run: RecordedRun, end: float) -> float:
        """Walk from ``end`` to the start of a run, and return that."""
        self._runs.add(run)
        invocation, left_at = _last_of(run, end)
        at = self._part("ending", left_at, end, run)
        place = _Place(invocation, at, math.inf)
        while place.invocation is not None:
            place = self._before(place.invocation, place.at, place.order)
        first = run.events[0] if run.events else None
        return self._part("starting", run.started_at, place.at, run, event=first)

    def _before(self, invocation: RecordedInvocation, at: float, order: float) -> _Place:
        """Walk back through an invocation; return where the chain continues."""
        cause, at = self._in_body(invocation, at, order)
        if cause is not None:
            return self._at_event(cause, at)
        run, queued_at = invocation.run, invocation.queued_at
        if queued_at is None:
            return self._lost(run, at)
        ready = queued_at if invocation.not_before is None else invocation.not_before
        ready = max(min(ready, at), queued_at)
        at = self._part("queued", ready, at, run, invocation, behind=self._behind(invocation))
        at = self._part("delayed", queued_at, at, run, invocation)
        previous = invocation.previous
        if previous is not None and previous.number < invocation.number:
            return _Place(previous, at, order)
        earlier = [event for event in invocation.events if event.order < order]
        if not earlier:
            return self._lost(run, at)
        return self._at_event(max(earlier, key=lambda event: event.order), at)

    def _lost(self, run: RecordedRun, at: float) -> _Place:
        return _Place(None, self._part("unknown", run.started_at, at, run), 0)

    def _at_event(self, event: RecordedEvent, at: float) -> _Place:
        at = self._part("delivery", event.at, at, event.run, event=event)
        if event.source is None and event is not event.run.events[0]:
            at = self._part("outside", event.run.started_at, at, event.run, event=event)
        return _Place(event.source, at, event.order)

    def _in_body(
        self, invocation: RecordedInvocation, at: float, order: float
    ) -> tuple[RecordedEvent | None, float]:
        """Walk back through the body, to its start or to an event that ended a wait."""
        start = invocation.started_at
        if start is None:
            return None, at
        for wait in reversed(invocation.waits):
            ended_at = at if wait.ended_at is None else wait.ended_at
            if wait.order >= order or ended_at > at:
                continue
            at = self._busy(invocation, ended_at, at)
            event = wait.event
            if event is not None and event.source is not None and wait.order < event.order < order:
                return event, at
            at = self._through_wait(wait, invocation, at)
        return None, self._busy(invocation, start, at)

    def _busy(self, invocation: RecordedInvocation, start: float, at: float) -> float:
        """Add the time in which the body ran, or unwound after a cancellation."""
        delivered = invocation.delivered_at
        if delivered is not None and delivered < at:
            at = self._part("unwinding", max(delivered, start), at, invocation.run, invocation)
        return self._part("running", start, at, invocation.run, invocation)

    def _through_wait(self, wait: RecordedWait, invocation: RecordedInvocation, at: float) -> float:
        """Walk through a wait that no event of a step has ended, and return when it began."""
        start = wait.started_at
        child = _child_of(wait, invocation)
        if child is not None and child.ended_at is not None and child not in self._runs:
            if child.started_at >= start and child.ended_at <= at:
                at = self._part(
                    "waiting", child.ended_at, at, invocation.run, invocation, wait=wait
                )
                at = self.through(child, at)
        elif wait.kind == "branch":
            at = self._through_branch(wait, invocation, at)
        return self._part("waiting", start, at, invocation.run, invocation, wait=wait)

    def _through_branch(
        self, wait: RecordedWait, invocation: RecordedInvocation, at: float
    ) -> float:
        """Walk from the last descendant that ended in the wait back to the beginning of the wait."""
        start = wait.started_at
        last = _last_effect(invocation, start, at)
        if last is None or last.ended_at is None:
            return at
        at = self._part("waiting", last.ended_at, at, invocation.run, invocation, wait=wait)
        order = math.inf if wait.ended_order is None else wait.ended_order
        place = _Place(last, at, order)
        mark = len(self.parts)
        while place.invocation not in (None, invocation) and place.at > start:
            assert place.invocation is not None
            place = self._before(place.invocation, place.at, place.order)
        # The chain may have begun before the wait; that part of it delayed nothing.
        self.parts[mark:] = [
            attrs.evolve(part, started_at=max(part.started_at, start))
            for part in self.parts[mark:]
            if part.ended_at > start
        ]
        return max(place.at, start)


def _by_worker(run: RecordedRun) -> dict[RecordedInvocation, RecordedInvocation]:
    """Return for each invocation the one that its worker ran before."""
    begun = [one for one in run.invocations if one.started_at is not None]
    begun.sort(key=lambda one: (one.started_at or 0, one.number))
    latest: dict[tuple[str, int | None], RecordedInvocation] = {}
    found: dict[RecordedInvocation, RecordedInvocation] = {}
    for one in begun:
        key = one.step, one.worker
        if key in latest:
            found[one] = latest[key]
        latest[key] = one
    return found


def _last_of(run: RecordedRun, end: float) -> tuple[RecordedInvocation | None, float]:
    """Return the invocation that ended a run, and when it did its last for that."""
    stop = run.stop_event
    if stop is not None and stop.source is not None:
        return stop.source, stop.at
    begun = [one for one in run.invocations if one.started_at is not None]
    ended = [one for one in begun if one.ended_at is not None and one.ended_at <= end]
    raised = [one for one in ended if one.outcome == "failed" and _is_raised(run, one)]
    last = max(raised or ended, key=lambda one: (one.ended_at or 0, one.number), default=None)
    if run.ended_at is None:  # it is active: the chain begins at the oldest running step
        active = [one for one in begun if one.outcome is None]
        if active:
            return min(active, key=lambda one: one.started_at or 0), end
    return last, end if last is None or last.ended_at is None else last.ended_at


def _is_raised(run: RecordedRun, invocation: RecordedInvocation) -> bool:
    """Whether an invocation raised what the run raises; exceptions of a file are compared as text."""
    error, own = run.error, invocation.error
    if own is None or error is None:
        return False
    loaded = isinstance(own, RecordedError) and isinstance(error, RecordedError)
    return own is error or (loaded and str(own) == str(error))


def _child_of(wait: RecordedWait, invocation: RecordedInvocation) -> RecordedRun | None:
    if wait.kind != "child":
        return None
    return next((one for one in invocation.children if one.run_id == wait.subject), None)


def _last_effect(
    invocation: RecordedInvocation, start: float, end: float
) -> RecordedInvocation | None:
    """Return the descendant of an invocation that ended last within a time."""
    found = [
        one
        for one in descendants(invocation)
        if isinstance(one, RecordedInvocation)
        and one.run is invocation.run
        and one.ended_at is not None
        and start < one.ended_at <= end
    ]
    return max(found, key=lambda one: (one.ended_at or 0, one.number), default=None)
