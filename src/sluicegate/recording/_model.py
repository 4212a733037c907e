"""The parts of a recording: runs with their invocations, events, waits and cancellations.

These objects refer to each other instead of naming numbers: an invocation has its events, an event
the invocation that made it. A field that is not known, because it lies in the future of a run that is
still active or because its record was left out, is None. All times are on the clock of the run's
event loop, as in :mod:`sluicegate.records`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs


if TYPE_CHECKING:
    from collections.abc import Sequence

    from sluicegate.recording._errors import DescribedError
    from sluicegate.recording._values import Renderer
    from sluicegate.records import (
        CancelledBy,
        InvocationOutcome,
        Origin,
        Record,
        ResourceOpened,
        SnapshotTaken,
        WaitKind,
    )


@attrs.define(eq=False)
class RecordedEvent:
    """An event of a run.

    Attributes:
        run: The run.
        number: Its number in the run.
        event_type: The name of its class.
        at: When it was emitted.
        origin: Where it comes from: ``"step"``, ``"outside"``, ``"snapshot"`` or ``"engine"``.
        source: The invocation that made it; None if none did.
        targets: The names of the steps that it goes to.
        value: The event itself; its fields as plain data if the recording was loaded from a file.
        consumers: The invocations that were given it, oldest first; every attempt is one.
        collectors: The invocations that got it from ``ctx.collect_events``.
        waits: The waits that it ended.
        order: How many records of the run precede this one.
    """

    run: RecordedRun = attrs.field(repr=False)
    number: int
    event_type: str
    at: float
    origin: Origin
    source: RecordedInvocation | None = attrs.field(repr=False)
    targets: tuple[str, ...]
    value: Any = attrs.field(repr=False)
    order: int = attrs.field(repr=False)
    consumers: Sequence[RecordedInvocation] = attrs.field(default=(), repr=False)
    collectors: Sequence[RecordedInvocation] = attrs.field(default=(), repr=False)
    waits: Sequence[RecordedWait] = attrs.field(default=(), repr=False)

    @property
    def fields(self) -> Any:
        """Its fields as plain data for reading, shortened; secrets are hidden."""
        return self.run.renderer.shown(self.value)


@attrs.define(eq=False)
class RecordedStreamEvent:
    """An event that was published on the stream of a run.

    Attributes:
        run: The run.
        sequence: Its number on the stream.
        event_type: The name of its class.
        at: When it was published.
        invocation: The invocation that published it; None if the engine or a child run did.
        value: The event itself; its fields as plain data if the recording was loaded from a file.
    """

    run: RecordedRun = attrs.field(repr=False)
    sequence: int
    event_type: str
    at: float
    invocation: RecordedInvocation | None = attrs.field(repr=False)
    value: Any = attrs.field(repr=False)

    @property
    def fields(self) -> Any:
        """Its fields as plain data for reading, shortened; secrets are hidden."""
        return self.run.renderer.shown(self.value)


@attrs.define(eq=False)
class RecordedQuestion:
    """A question to a person or another program.

    Attributes:
        run: The run.
        id: Its identifier, as ``handler.questions`` shows it.
        event_type: The name of its class.
        asked_at: When it was asked.
        invocation: The invocation that asked; None if it is unknown.
        value: The question itself; its fields as plain data if the recording was loaded from a file.
        closed_at: When it was answered or closed; None if it is open.
        answer: The event that answers it; None if it was closed without one.
    """

    run: RecordedRun = attrs.field(repr=False)
    id: str
    event_type: str
    asked_at: float
    invocation: RecordedInvocation | None = attrs.field(repr=False)
    value: Any = attrs.field(repr=False)
    closed_at: float | None = None
    answer: RecordedEvent | None = attrs.field(default=None, repr=False)

    @property
    def fields(self) -> Any:
        """Its fields as plain data for reading, shortened; secrets are hidden."""
        return self.run.renderer.shown(self.value)


@attrs.define(eq=False)
class RecordedWait:
    """A wait of an invocation.

    Attributes:
        run: The run.
        number: Its number in the run.
        invocation: The invocation that waits; None if a task waits that belongs to none.
        kind: The kind of its object: ``"event"``, ``"branch"``, ``"child"``, ``"place"``, ``"limiter"``,
            ``"thread"``, ``"process"``, ``"state"`` or ``"sleep"``.
        subject: The object: the class of the event, the run of the child, or an empty string.
        until: When it gives up; None for never.
        started_at: When it began.
        ended_at: When it ended; None if it has not.
        outcome: ``"done"``, ``"timed_out"`` or ``"cancelled"``; None while it lasts.
        event: The event that ended it; None if none did.
        order: How many records of the run precede its beginning.
        ended_order: How many precede its end; None while it lasts.
    """

    run: RecordedRun = attrs.field(repr=False)
    number: int
    invocation: RecordedInvocation | None = attrs.field(repr=False)
    kind: WaitKind
    subject: str
    until: float | None
    started_at: float
    order: int = attrs.field(repr=False)
    ended_at: float | None = None
    outcome: Literal["done", "timed_out", "cancelled"] | None = None
    event: RecordedEvent | None = attrs.field(default=None, repr=False)
    ended_order: int | None = attrs.field(default=None, repr=False)


@attrs.define(eq=False)
class RecordedInvocation:
    """One call of a step: queued, started and ended. Each attempt is an invocation.

    Attributes:
        run: The run.
        number: Its number in the run.
        step: The name of the step; ``"?"`` if that record was left out.
        queued_at: When its events were there; None if it is unknown.
        not_before: When it may begin at the earliest, because a retry has a delay; None if at once.
        started_at: When a worker took it; None if none has.
        worker: The number of the task that runs it; None if it has not begun.
        ended_at: When it ended, and its result was in the state of the run; None if it has not.
        outcome: ``"completed"``, ``"failed"``, ``"cancelled"`` or ``"dropped"``; None while it is active.
        error: The exception that it raised; a :class:`RecordedError` if the recording was loaded from
            a file; None for none.
        attempt: The number of the attempt at its events, from 1.
        previous: The attempt before; None for the first.
        next: The attempt after; None for the last.
        events: The events that it was given; several for a join.
        emitted: The events that it made, oldest first.
        collected: The sets of events that ``ctx.collect_events`` returned in it, each with how many
            records of the run precede it.
        waits: Its waits, oldest first.
        children: The runs that it ran as children.
        delivered_at: When a cancellation was raised in it; None if none was.
        cancellation: That cancellation; None if there was none, or it came from a scope of the step's
            own.
    """

    run: RecordedRun = attrs.field(repr=False)
    number: int
    step: str
    queued_at: float | None = None
    not_before: float | None = None
    started_at: float | None = None
    worker: int | None = None
    ended_at: float | None = None
    outcome: InvocationOutcome | None = None
    error: BaseException | None = attrs.field(default=None, repr=False)
    attempt: int = 1
    previous: RecordedInvocation | None = attrs.field(default=None, repr=False)
    next: RecordedInvocation | None = attrs.field(default=None, repr=False)
    events: tuple[RecordedEvent, ...] = attrs.field(default=(), repr=False)
    emitted: Sequence[RecordedEvent] = attrs.field(default=(), repr=False)
    collected: Sequence[tuple[int, tuple[RecordedEvent, ...]]] = attrs.field(default=(), repr=False)
    waits: Sequence[RecordedWait] = attrs.field(default=(), repr=False)
    children: Sequence[RecordedRun] = attrs.field(default=(), repr=False)
    delivered_at: float | None = None
    cancellation: RecordedCancellation | None = attrs.field(default=None, repr=False)

    @property
    def failure(self) -> DescribedError | None:
        """The exception as data: type, message, notes and traceback; None for none."""
        return None if self.error is None else self.run.renderer.error(self.error)

    @property
    def took(self) -> float | None:
        """The seconds from its start to its end; None if it has not both."""
        if self.started_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.started_at


@attrs.define(eq=False)
class CancelledInvocation:
    """The effect of a cancellation on one invocation.

    Attributes:
        invocation: The invocation.
        delivered_at: When the cancellation was raised in it; None if it was not: it ended before its
            next checkpoint, or it is in a thread.
        unwound_at: When it ended; None if it has not.
        took: Seconds from the request to its end; None if it has not ended.
    """

    invocation: RecordedInvocation
    delivered_at: float | None
    unwound_at: float | None
    took: float | None


@attrs.define(eq=False)
class RecordedCancellation:
    """A cancellation of a run or of a branch: who asked for it, why, and how long it took.

    Attributes:
        run: The run.
        number: Its number in the run.
        at: When it was requested.
        by: Who asked for it, as in :class:`sluicegate.records.CancellationRequested`.
        reason: Why.
        scope: What was cancelled: ``"run"`` or ``"branch"``.
        invocation: The invocation that asked for it; None if none did.
        members: The invocations that were active in it when it was requested, and those in which it
            was raised later, in that order.
    """

    run: RecordedRun = attrs.field(repr=False)
    number: int
    at: float
    by: CancelledBy
    reason: str
    scope: Literal["run", "branch"]
    invocation: RecordedInvocation | None = attrs.field(default=None, repr=False)
    members: list[RecordedInvocation] = attrs.field(factory=list["RecordedInvocation"], repr=False)

    @property
    def invocations(self) -> list[CancelledInvocation]:
        """Its effect on each invocation: first those that have not ended, then the slowest."""
        found = [
            CancelledInvocation(
                invocation=one,
                delivered_at=one.delivered_at if one.cancellation is self else None,
                unwound_at=one.ended_at,
                took=None if one.ended_at is None else one.ended_at - self.at,
            )
            for one in self.members
        ]
        return sorted(found, key=lambda one: -one.took if one.took is not None else float("-inf"))


@attrs.define(eq=False)
class RecordedResource:
    """A resource of a run.

    Attributes:
        number: Its number in the run.
        name: The name of its factory.
        lifetime: ``"step"``, ``"run"`` or ``"workflow"``; empty if it could not be opened.
        invocation: The invocation that needed it first; None if none did.
        opened_at: When it was open; None if it never was.
        opening_took: Seconds that its factory took.
        closed_at: When it was closed; None if it was not.
        closing_took: Seconds that closing it took.
        error: The exception with which opening or closing it failed; None for none.
    """

    number: int
    name: str
    lifetime: str = ""
    invocation: RecordedInvocation | None = attrs.field(default=None, repr=False)
    opened_at: float | None = None
    opening_took: float = 0.0
    closed_at: float | None = None
    closing_took: float = 0.0
    error: BaseException | None = None


@attrs.define(eq=False)
class RecordedEdit:
    """An edit of the state of a run.

    Attributes:
        number: Its number in the run.
        invocation: The invocation that edits; None if none does.
        started_at: When it began.
        ended_at: When it ended; None if it has not.
        outcome: ``"committed"`` or ``"discarded"``; None while it lasts.
    """

    number: int
    invocation: RecordedInvocation | None = attrs.field(repr=False)
    started_at: float
    ended_at: float | None = None
    outcome: Literal["committed", "discarded"] | None = None


@attrs.define(eq=False)
class RecordedRun:
    """One run.

    Attributes:
        run_id: The identifier of the run.
        renderer: Makes plain data of its values.
        workflow: The name of the workflow's class; ``"?"`` if that record was left out.
        steps: The names of its steps, each with how many invocations may run at a time.
        backend: ``"trio"`` or ``"asyncio"``.
        is_resumed: Whether it continues from a snapshot.
        elapsed: Seconds that it had run before that snapshot.
        timeout: Seconds that it may take; None for no limit.
        queued: Seconds that it waited because its workflow had as many runs as it may have.
        wall_offset: Seconds from the clock of the event loop to the time since the epoch.
        parent: The invocation that runs it as a child; None for none, or if it is not recorded.
        parent_run: The identifier of the run of that invocation; None for none.
        children: The runs that its invocations run as children.
        started_at: When it began.
        ended_at: When it ended; None while it is active, or if the recording was cut off.
        status: ``"completed"``, ``"failed"``, ``"timed_out"``, ``"cancelled"``, or of a durable run
            ``"detached"``, if it continues elsewhere, and ``"parked"``, if it has left the memory until it is
            woken (then it is recorded as another run of the same id); ``"running"`` while it is active,
            or if the recording was cut off.
        error: The exception that ``await handler`` raises; None for none.
        stop_event: The event with which it has completed; None for none.
        records: Its records, in order.
        left_out: How many records were left out of the recording, because of its limits or because
            the file could not be written.
        invocations: Its invocations, in the order of their numbers.
        events: Its events, in the order of their numbers.
        stream: The events on its stream.
        waits: The waits of its invocations.
        questions: Its questions.
        cancellations: Its cancellations.
        resources: Its resources.
        edits: The edits of its state.
        snapshots: The snapshots that were taken of it.
    """

    run_id: str
    renderer: Renderer = attrs.field(repr=False)
    workflow: str = "?"
    steps: dict[str, int] = attrs.field(factory=dict[str, int], repr=False)
    backend: str = attrs.field(default="", repr=False)
    is_resumed: bool = attrs.field(default=False, repr=False)
    elapsed: float = attrs.field(default=0.0, repr=False)
    timeout: float | None = attrs.field(default=None, repr=False)
    queued: float = attrs.field(default=0.0, repr=False)
    wall_offset: float = attrs.field(default=0.0, repr=False)
    parent: RecordedInvocation | None = attrs.field(default=None, repr=False)
    parent_run: str | None = attrs.field(default=None, repr=False)
    children: list[RecordedRun] = attrs.field(factory=list["RecordedRun"], repr=False)
    started_at: float = 0.0
    ended_at: float | None = None
    status: str = "running"
    error: BaseException | None = attrs.field(default=None, repr=False)
    stop_event: RecordedEvent | None = attrs.field(default=None, repr=False)
    records: list[Record] = attrs.field(factory=list["Record"], repr=False)
    left_out: int = attrs.field(default=0, repr=False)
    invocations: list[RecordedInvocation] = attrs.field(
        factory=list["RecordedInvocation"], repr=False
    )
    events: list[RecordedEvent] = attrs.field(factory=list["RecordedEvent"], repr=False)
    stream: list[RecordedStreamEvent] = attrs.field(factory=list["RecordedStreamEvent"], repr=False)
    waits: list[RecordedWait] = attrs.field(factory=list["RecordedWait"], repr=False)
    questions: list[RecordedQuestion] = attrs.field(factory=list["RecordedQuestion"], repr=False)
    cancellations: list[RecordedCancellation] = attrs.field(
        factory=list["RecordedCancellation"], repr=False
    )
    resources: list[RecordedResource] = attrs.field(factory=list["RecordedResource"], repr=False)
    edits: list[RecordedEdit] = attrs.field(factory=list["RecordedEdit"], repr=False)
    snapshots: list[SnapshotTaken] = attrs.field(factory=list["SnapshotTaken"], repr=False)

    @property
    def failure(self) -> DescribedError | None:
        """The exception as data: type, message, notes and traceback; None for none."""
        return None if self.error is None else self.renderer.error(self.error)

    @property
    def last_at(self) -> float:
        """The time of its last record."""
        return self.records[-1].at if self.records else self.started_at

    @property
    def took(self) -> float | None:
        """The seconds from its start to its end; None if it has not ended."""
        return None if self.ended_at is None else self.ended_at - self.started_at


def resource_of(record: ResourceOpened, invocation: RecordedInvocation | None) -> RecordedResource:
    """Return the resource that has been opened."""
    return RecordedResource(
        number=record.resource,
        name=record.name,
        lifetime=record.lifetime,
        invocation=invocation,
        opened_at=record.at,
        opening_took=record.took,
    )
