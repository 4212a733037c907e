"""Children of steps: how a repeated step finds its children again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from sluicegate._engine.journal import ChildRecord
from sluicegate._engine.run import load_life, name_run
from sluicegate._errors import SnapshotError, WorkflowTimeoutError
from sluicegate._events import StopEvent
from sluicegate._exceptions import add_note, notes_of


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._engine.journal import StepJournal
    from sluicegate._engine.run import Run
    from sluicegate._engine.snapshot_format import SavedChild
    from sluicegate._errors import RestoredError


def begin_child(
    journal: StepJournal,
    child: Run,
    given_id: str | None,
    name_child: Callable[[int], str],
    *,
    now: float | None = None,
) -> ChildRecord:
    """Return the record of a child that a step calls: a known one, or a new one.

    A known child that has not ended continues in ``child``, which was made for it and not started.

    Args:
        journal: The journal of the step.
        child: The run that was made for the call.
        given_id: The identifier that the step gave it; part of the key by which it is found.
        name_child: Returns the identifier of the child with a number.
        now: The time, in seconds since the epoch, to which timers of a durable child refer.

    Raises:
        SnapshotError: The child's snapshot no longer fits its workflow; nothing has changed.
    """
    codec = partial(child.graph.codec, child.options.classes)
    record = ChildRecord(child.graph.name, codec, (child.start_event, given_id))
    found = journal.replayed.children.get(record.key) if journal.replayed.children else None
    if found:
        known = found[0]
        known.codec = partial(codec, drops_removed=known.drops_removed)
        if known.saved is not None and known.saved.tail:
            _catch_up(child, known.saved, now)
        if known.saved is not None and known.saved.status is None:
            _continue(child, known, adapts=now is not None)
        found.pop(0)
        record = known
    else:
        journal.child_number += 1
        record.number = journal.child_number
        if given_id is None:
            name_run(child, name_child(record.number))
        record.run_id, record.run = child.run_id, child
    if not journal.children:
        journal.children = []
    journal.children.append(record)
    return record


def _catch_up(child: Run, saved: SavedChild, now: float | None) -> None:
    """Apply the records of a child of a durable run that came after its snapshot."""
    from sluicegate._engine.journal_records import read_record  # noqa: PLC0415 - only after a crash
    from sluicegate._engine.replay import PastRun  # noqa: PLC0415
    from sluicegate._engine.snapshot_format import Snapshot, read_part, to_plain  # noqa: PLC0415

    assert saved.run is not None
    base = to_plain(saved.run)
    past = PastRun(child.graph, child.options.classes, base, saved.at, number=saved.child)
    for data in saved.tail:
        past.apply(read_record(data))
    found = past.snapshot(past.at if now is None else now, has_crashed=saved.has_crashed)
    saved.run, saved.tail, saved.has_crashed = read_part(found, Snapshot), [], False
    if past.machine.stop is not None:
        saved.status, saved.run = "completed", None
        saved.result = past.codec.encode(past.machine.stop, "its stop event")


def _continue(child: Run, record: ChildRecord, *, adapts: bool) -> None:
    """Load the saved progress of a child into a run that is not started; ``adapts`` is as for `SavedRun`."""
    from sluicegate._engine.snapshot_format import to_plain  # noqa: PLC0415 - not everybody needs it
    from sluicegate._engine.snapshot_read import SavedRun  # noqa: PLC0415

    assert record.saved is not None
    assert record.saved.run is not None
    where = to_plain(record.saved.run)
    try:
        saved = SavedRun(
            child.graph,
            child.options.classes,
            where,
            drops_removed=record.drops_removed,
            adapts=adapts,
        )
    except SnapshotError as error:
        msg = f"the child {record.run_id} cannot continue: {error}"
        raise SnapshotError(msg) from None
    progress = saved.progress
    load_life(child, saved, 0.0 if progress is None else progress.elapsed)
    if progress is not None:
        child.log.begin_after(progress.sequence)
    name_run(child, record.run_id)
    record.run, record.saved = child, None


def put_back(journal: StepJournal, record: ChildRecord) -> None:
    """Undo :func:`begin_child` of an ended child whose step was cancelled."""
    assert isinstance(journal.children, list)
    journal.children.remove(record)
    journal.replayed.children.setdefault(record.key, []).insert(0, record)


def result_of(record: ChildRecord, child: Run) -> Any:
    """Return the result of a child that has ended before, or raise its failure.

    Args:
        record: The record of the child.
        child: The run that was made for the call, which is not needed.

    Raises:
        Exception: The failure, as a snapshot keeps it.
        SnapshotError: The result does not fit the child's classes.
    """
    event, saved = record.stop_event, record.saved
    if event is None:
        assert saved is not None
        assert record.codec is not None
        codec, path = record.codec(), f"the result of the child {record.run_id}"
        if saved.status != "completed":
            _raise_again(record, codec.decode(saved.error, path), child)
        event = codec.decode(saved.result, path)
        if not isinstance(event, StopEvent):
            msg = f"{path} is damaged; expected a stop event, not a {type(event).__name__}"
            raise SnapshotError(msg)
        record.stop_event, record.saved = event, None
    return event.result if type(event) is StopEvent else event


def _raise_again(record: ChildRecord, restored: RestoredError, child: Run) -> NoReturn:
    """Raise the failure of a child as its step gets it: a timeout as such."""
    assert record.saved is not None
    error: Exception = restored
    if record.saved.status == "timed_out":
        error = WorkflowTimeoutError(restored.message, child.options.timeout)
        for note in notes_of(restored):
            add_note(error, note)
    record.failure = error
    try:
        raise error
    finally:
        del error, restored, record  # or this frame and its exception keep each other alive
