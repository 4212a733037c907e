"""From records to runs: each record changes what the recording knows.

Records may be missing, because a limit left them out or a file was cut off. Then what they would
have told is None, and an invocation whose step is not known is called ``"?"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate import records as r
from sluicegate.recording._format import RecordsLeftOut
from sluicegate.recording._model import (
    RecordedCancellation,
    RecordedEdit,
    RecordedEvent,
    RecordedInvocation,
    RecordedQuestion,
    RecordedResource,
    RecordedRun,
    RecordedStreamEvent,
    RecordedWait,
    resource_of,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sluicegate.recording._values import Renderer
    from sluicegate.records import Record


class RunBuilder:
    """Makes one run from its records.

    Attributes:
        run: The run, as far as it is known.
    """

    def __init__(self, run_id: str, runs: Runs) -> None:
        self.run = RecordedRun(run_id, renderer=runs.renderer)
        self._runs = runs
        self._order = 0
        self._invocations: dict[int, RecordedInvocation] = {}
        self._events: dict[int, RecordedEvent] = {}
        self._waits: dict[int, RecordedWait] = {}
        self._questions: dict[str, RecordedQuestion] = {}
        self._cancellations: dict[int, RecordedCancellation] = {}
        #: The numbers of the invocations in each cancellation; there may be thousands.
        self._members: dict[int, set[int]] = {}
        self._resources: dict[int, RecordedResource] = {}
        self._edits: dict[int, RecordedEdit] = {}

    def add(self, record: Record) -> None:
        """Take the next record of the run."""
        if type(record) is RecordsLeftOut:
            self.run.left_out += record.count
            return
        if not self._order:
            self.run.started_at = record.at
        self._order += 1
        self.run.records.append(record)
        take = _TAKES.get(type(record))
        if take is not None:
            take(self, record)

    # -- what a number means ------------------------------------------------------------------

    def _invocation(self, number: int) -> RecordedInvocation:
        found = self._invocations.get(number)
        if found is None:
            found = self._invocations[number] = RecordedInvocation(self.run, number, "?")
            self.run.invocations.append(found)
        return found

    def _invocation_or_none(self, number: int | None) -> RecordedInvocation | None:
        return None if number is None else self._invocation(number)

    def _event(self, number: int) -> RecordedEvent | None:
        return self._events.get(number)

    def _events_of(self, numbers: tuple[int, ...]) -> tuple[RecordedEvent, ...]:
        events = self._events
        return tuple([events[number] for number in numbers if number in events])

    # -- the run ------------------------------------------------------------------------------

    def run_started(self, record: r.RunStarted) -> None:
        run = self.run
        run.run_id, run.workflow, run.steps = record.run_id, record.workflow, record.steps
        run.backend, run.wall_offset = record.backend, record.wall_offset
        run.is_resumed, run.elapsed = record.is_resumed, record.elapsed
        run.timeout, run.queued = record.timeout, record.queued
        run.parent_run, run.started_at = record.parent_run, record.at
        self._runs.begin(self, record.parent_run, record.parent_invocation)

    def run_ended(self, record: r.RunEnded) -> None:
        run = self.run
        run.ended_at, run.status, run.error = record.at, record.status, record.error
        if record.event is not None:
            run.stop_event = self._event(record.event)

    def adopt(self, child: RecordedRun, invocation: int | None) -> None:
        """Make a run the child of one of this run's invocations."""
        self.run.children.append(child)
        if invocation is not None:
            child.parent = parent = self._invocation(invocation)
            parent.children = _with(parent.children, child)

    # -- events -------------------------------------------------------------------------------

    def event_emitted(self, record: r.EventEmitted) -> None:
        source = self._invocation_or_none(record.source)
        event = RecordedEvent(
            self.run,
            record.event,
            record.event_type,
            record.at,
            record.origin,
            source,
            record.targets,
            record.value,
            self._order,
        )
        self._events[record.event] = event
        self.run.events.append(event)
        if source is not None:
            source.emitted = _with(source.emitted, event)

    def events_collected(self, record: r.EventsCollected) -> None:
        invocation = self._invocation_or_none(record.invocation)
        if invocation is None:
            return
        events = self._events_of(record.events)
        invocation.collected = _with(invocation.collected, (self._order, events))
        for event in events:
            event.collectors = _with(event.collectors, invocation)

    def event_streamed(self, record: r.EventStreamed) -> None:
        self.run.stream.append(
            RecordedStreamEvent(
                self.run,
                record.sequence,
                record.event_type,
                record.at,
                self._invocation_or_none(record.invocation),
                record.value,
            )
        )

    # -- invocations --------------------------------------------------------------------------

    def invocation_queued(self, record: r.InvocationQueued) -> None:
        invocation = self._invocation(record.invocation)
        invocation.step, invocation.queued_at = record.step, record.at
        invocation.attempt, invocation.not_before = record.attempt, record.not_before
        invocation.events = self._events_of(record.events)
        for event in invocation.events:
            event.consumers = _with(event.consumers, invocation)
        if record.previous is not None:
            invocation.previous = previous = self._invocation(record.previous)
            previous.next = invocation

    def invocation_started(self, record: r.InvocationStarted) -> None:
        invocation = self._invocation(record.invocation)
        invocation.started_at, invocation.worker = record.at, record.worker

    def invocation_ended(self, record: r.InvocationEnded) -> None:
        invocation = self._invocation(record.invocation)
        invocation.ended_at, invocation.outcome = record.at, record.outcome
        invocation.error = record.error

    def wait_started(self, record: r.WaitStarted) -> None:
        invocation = self._invocation_or_none(record.invocation)
        wait = RecordedWait(
            self.run,
            record.wait,
            invocation,
            record.kind,
            record.subject,
            record.until,
            record.at,
            self._order,
        )
        self._waits[record.wait] = wait
        self.run.waits.append(wait)
        if invocation is not None:
            invocation.waits = _with(invocation.waits, wait)

    def wait_ended(self, record: r.WaitEnded) -> None:
        wait = self._waits.get(record.wait)
        if wait is None:  # its beginning was left out
            return
        wait.ended_at, wait.outcome, wait.ended_order = record.at, record.outcome, self._order
        if record.event is not None:
            event = wait.event = self._event(record.event)
            if event is not None:
                event.waits = _with(event.waits, wait)

    # -- people, cancellations, and the rest ----------------------------------------------------

    def question_asked(self, record: r.QuestionAsked) -> None:
        question = RecordedQuestion(
            self.run,
            record.question,
            record.event_type,
            record.at,
            self._invocation_or_none(record.invocation),
            record.value,
        )
        self._questions[record.question] = question
        self.run.questions.append(question)

    def question_answered(self, record: r.QuestionAnswered) -> None:
        question = self._questions.get(record.question)
        if question is not None:
            question.closed_at = record.at
            question.answer = None if record.event is None else self._event(record.event)

    def cancellation_requested(self, record: r.CancellationRequested) -> None:
        cancellation = RecordedCancellation(
            self.run,
            record.cancellation,
            record.at,
            record.by,
            record.reason,
            record.scope,
            self._invocation_or_none(record.invocation),
            [self._invocation(number) for number in record.invocations],
        )
        self._cancellations[record.cancellation] = cancellation
        self._members[record.cancellation] = set(record.invocations)
        self.run.cancellations.append(cancellation)

    def cancellation_delivered(self, record: r.CancellationDelivered) -> None:
        invocation = self._invocation(record.invocation)
        invocation.delivered_at = record.at
        if record.cancellation is not None:
            cancellation = self._cancellations.get(record.cancellation)
            invocation.cancellation = cancellation
            if cancellation is not None:
                members = self._members[record.cancellation]
                if invocation.number not in members:
                    members.add(invocation.number)
                    cancellation.members.append(invocation)

    def resource_opened(self, record: r.ResourceOpened) -> None:
        resource = resource_of(record, self._invocation_or_none(record.invocation))
        self._resources[record.resource] = resource
        self.run.resources.append(resource)

    def resource_closed(self, record: r.ResourceClosed) -> None:
        resource = self._resources.get(record.resource)
        if resource is not None:
            resource.closed_at, resource.closing_took = record.at, record.took

    def resource_failed(self, record: r.ResourceFailed) -> None:
        resource = self._resources.get(record.resource)
        if resource is None:
            resource = RecordedResource(number=record.resource, name=record.name)
            self._resources[record.resource] = resource
            self.run.resources.append(resource)
        resource.error = record.error
        if record.during == "closing":
            resource.closed_at = record.at

    def state_edit_started(self, record: r.StateEditStarted) -> None:
        invocation = self._invocation_or_none(record.invocation)
        edit = RecordedEdit(record.edit, invocation, record.at)
        self._edits[record.edit] = edit
        self.run.edits.append(edit)

    def state_edit_ended(self, record: r.StateEditEnded) -> None:
        edit = self._edits.get(record.edit)
        if edit is not None:
            edit.ended_at, edit.outcome = record.at, record.outcome

    def snapshot_taken(self, record: r.SnapshotTaken) -> None:
        self.run.snapshots.append(record)


class Runs:
    """The runs of a recording, and who is whose child.

    Args:
        renderer: Renders the values of the runs.

    Attributes:
        renderer: That; it is given to the runs that come.
        all: Every run, in the order in which they began.
        roots: The runs that are no children of a recorded run.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.all: list[RecordedRun] = []
        self.roots: list[RecordedRun] = []
        self._builders: dict[str, RunBuilder] = {}
        self._by_id: dict[str, RunBuilder] = {}

    def add(self, key: str, record: Record) -> None:
        """Take the next record of a run."""
        builder = self._builders.get(key)
        if builder is None or type(record) is r.RunStarted:
            builder = self._begun(key, record)
        builder.add(record)

    def _begun(self, key: str, record: Record) -> RunBuilder:
        builder = self._builders[key] = RunBuilder(key, self)
        self.all.append(builder.run)
        if type(record) is not r.RunStarted:  # its beginning is missing
            self.roots.append(builder.run)
        return builder

    def begin(
        self, builder: RunBuilder, parent_run: str | None, parent_invocation: int | None
    ) -> None:
        """Put a run into the tree, once its first record has told its parent."""
        self._by_id[builder.run.run_id] = builder
        parent = None if parent_run is None else self._by_id.get(parent_run)
        if parent is None:
            self.roots.append(builder.run)
        else:
            parent.adopt(builder.run, parent_invocation)


def _with(found: Sequence[Any], one: Any) -> list[Any]:
    """Return a sequence with one more member; most sequences are empty, and share a tuple."""
    if not found:
        return [one]
    assert isinstance(found, list)
    found.append(one)
    return found


_TAKES: dict[type, Callable[[Any, Any], None]] = {
    r.RunStarted: RunBuilder.run_started,
    r.RunEnded: RunBuilder.run_ended,
    r.EventEmitted: RunBuilder.event_emitted,
    r.EventsCollected: RunBuilder.events_collected,
    r.EventStreamed: RunBuilder.event_streamed,
    r.InvocationQueued: RunBuilder.invocation_queued,
    r.InvocationStarted: RunBuilder.invocation_started,
    r.InvocationEnded: RunBuilder.invocation_ended,
    r.WaitStarted: RunBuilder.wait_started,
    r.WaitEnded: RunBuilder.wait_ended,
    r.QuestionAsked: RunBuilder.question_asked,
    r.QuestionAnswered: RunBuilder.question_answered,
    r.CancellationRequested: RunBuilder.cancellation_requested,
    r.CancellationDelivered: RunBuilder.cancellation_delivered,
    r.ResourceOpened: RunBuilder.resource_opened,
    r.ResourceClosed: RunBuilder.resource_closed,
    r.ResourceFailed: RunBuilder.resource_failed,
    r.StateEditStarted: RunBuilder.state_edit_started,
    r.StateEditEnded: RunBuilder.state_edit_ended,
    r.SnapshotTaken: RunBuilder.snapshot_taken,
}
