"""Stored runs as data: start keys, messages, questions, the durable stream, and rebuilt runs."""

from __future__ import annotations

from functools import cache
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs
import msgspec

from sluicegate._data import json
from sluicegate._engine.control import check_answers, check_taken, not_open, snapshot
from sluicegate._engine.idle import open_questions
from sluicegate._engine.journal_records import (
    KINDS,
    VERSION,
    Base,
    Child,
    End,
    Published,
    decode_record,
    encode_record,
)
from sluicegate._engine.replay import PastRun
from sluicegate._engine.run import load_life
from sluicegate._errors import SnapshotError, WorkflowRuntimeError, brief
from sluicegate._events import Event, HumanResponseEvent, StopEvent
from sluicegate._loop import current_backend
from sluicegate._questions import OpenQuestion
from sluicegate._workflow import run_without_owner
from sluicegate.durable._errors import RunConflictError, StoreFormatError
from sluicegate.durable._port import BASE, NewRun


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Graph
    from sluicegate._engine.journal_records import Cancelled
    from sluicegate._engine.run import Run
    from sluicegate._workflow import Workflow
    from sluicegate.durable._port import RunRow, StoredRecord
    from sluicegate.records import Record


_encode = msgspec.json.Encoder().encode


@cache
def release() -> str:
    """Return the release of the package; empty where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - it costs as much as Trio

    try:
        return version("sluicegate")
    except PackageNotFoundError:
        return ""


# -- the identity of a run ----------------------------------------------------------------------


def new_run(run: Run, wall: float) -> NewRun:
    """Return a new run as the data to create it in a store.

    Its key identifies the start event in every process, and shows it in error messages.

    Raises:
        SnapshotError: Its start event or its state cannot be kept; the message names the field.
    """
    codec, event = run.graph.codec(run.options.classes), run.start_event
    base = snapshot(run)
    if event is None:
        key = f"a snapshot #{codec.content_key(base['run']):016x}"
    else:
        key = f"{brief(event, 300)} #{codec.content_key(event):016x}"
    data = encode_record(Base(at=wall, snapshot=base, engine=release()))
    return NewRun(run.run_id, run.graph.name, key, wall, data)


def check_same(row: RunRow, new: NewRun) -> None:
    """Refuse to start a run under an id that another run has.

    Raises:
        RunConflictError: The run of the store is of another workflow, or began with another event.
    """
    if (row.workflow, row.start_key) == (new.workflow, new.start_key):
        return
    began, begins = (key.rpartition(" #")[0] for key in (row.start_key, new.start_key))
    if row.workflow != new.workflow:
        is_now, was = f"a run of {new.workflow}", f"one of {row.workflow}"
    else:
        is_now, was = f"a run that begins with {begins}", f"one that began with {began}"
    msg = (
        f"{is_now} was started as {new.run_id!r}, and the store has {was} under that id; expected "
        "another run_id, or the same start event, to attach to the run that is there"
    )
    raise RunConflictError(msg, new.run_id)


# -- messages -----------------------------------------------------------------------------------


class EventMessage(msgspec.Struct, omit_defaults=True):
    """An event for a run, as its inbox has it.

    Attributes:
        e: The event, encoded.
        step: The step that it names.
        q: The question that it names.
        id: The idempotency key that the sender gave.
    """

    e: Any
    step: str | None = None
    q: str | None = None
    id: str | None = None


class CancelMessage(msgspec.Struct, omit_defaults=True):
    """A cancellation of a run: at once, or once its running steps have ended."""

    why: str
    after: str = "now"


def encode_event(
    run: Run, event: Event, step: str | None, question: str | None, key: str | None
) -> bytes:
    """Return an event for a run as a message.

    Raises:
        SnapshotError: The event cannot be kept; the message names the path of the field.
    """
    return encode_message(run.graph.codec(run.options.classes), event, step, question, key)


def encode_message(
    codec: Codec, event: Event, step: str | None, question: str | None, key: str | None
) -> bytes:
    """Return an event as a message, encoded with a codec; see :func:`encode_event`."""
    data = codec.encode(event, f"event {type(event).__name__}")
    return _encode(EventMessage(data, step, question, key))


def decode_event(run: Run, data: bytes) -> tuple[Any, EventMessage]:
    """Return the event of a message, and the message."""
    message = msgspec.json.decode(data, type=EventMessage)
    return run.graph.codec(run.options.classes).decode(message.e, "a message"), message


def encode_cancel(reason: str, after: str) -> bytes:
    """Return a cancellation as a message."""
    return _encode(CancelMessage(reason, after))


def decode_cancel(data: bytes) -> CancelMessage:
    """Return the cancellation of a message."""
    return msgspec.json.decode(data, type=CancelMessage)


def check_event(
    run: Run,
    event: Event,
    step: str | None,
    question: str | None,
    asked: Iterable[OpenQuestion] | None,
) -> None:
    """Refuse an event that the run can never take, before it is sent.

    Args:
        run: The run.
        event: The event.
        step: The step that it names.
        question: The question that it names.
        asked: The open questions; None where another process may have asked more since.

    Raises:
        WorkflowRuntimeError: No step takes it, or it does not answer the question.
        QuestionClosedError: The question is not open.
    """
    if question is None:
        check_taken(run, event, step)
        return
    if asked is None:
        return
    found = next((each for each in asked if each.id == question), None)
    if found is None:
        raise not_open(run, question, event, was_open=True)
    if found.answers:
        check_answers(run, event, question, found.answers)


# -- questions ----------------------------------------------------------------------------------


class SavedQuestion(msgspec.Struct, omit_defaults=True):
    """An open question in the summary of a run.

    Attributes:
        id: Its id.
        since: When it was asked, in seconds since the epoch.
        answers: The names of the classes of events that answer it.
        kind: The name of the class of the event that asked it.
        shown: The fields of that event, as readers outside get them.
        e: The event, encoded.
    """

    id: str
    since: float
    answers: list[str]
    kind: str | None = None
    shown: dict[str, Any] | None = None
    e: Any = None


_decode_questions = msgspec.json.Decoder(list[SavedQuestion]).decode


def encode_questions(run: Run, wall: float, since: dict[str, float]) -> bytes:
    """Return the open questions of a run for its summary.

    Args:
        run: The run.
        wall: The wall time.
        since: When each question was asked, by its id: read and kept, because the two clocks drift.
    """
    asked = open_questions(run)
    for gone in since.keys() - {each.id for each in asked}:
        del since[gone]
    if not asked:
        return b"[]"
    codec, now = run.graph.codec(run.options.classes), run.live()[0].current_time()
    return _encode(
        [
            SavedQuestion(
                each.id,
                since.setdefault(each.id, round(wall + each.since - now, 3)),
                [kind.__name__ for kind in each.answers],
                None if each.event is None else type(each.event).__name__,
                None if each.event is None else json.data_of(each.event),
                None if each.event is None else codec.encode(each.event, "a question"),
            )
            for each in asked
        ]
    )


def saved_questions(data: bytes) -> list[SavedQuestion]:
    """Return the open questions of a summary."""
    return _decode_questions(data)


def open_questions_of(run: Run, data: bytes, wall: float) -> tuple[OpenQuestion, ...]:
    """Return the open questions of a summary, as the handler of the run shows them."""
    if data == b"[]":
        return ()
    codec, now = run.graph.codec(run.options.classes), current_backend().current_time()
    known: dict[str, type[Event]] = {HumanResponseEvent.__name__: HumanResponseEvent}
    for kind in (*run.graph.acceptors, *(kind for kinds in run.graph.awaited for kind in kinds)):
        known[kind.__name__] = kind
    return tuple(
        OpenQuestion(
            each.id,
            None if each.e is None else codec.decode(each.e, "a question"),
            now + each.since - wall,
            tuple(known[name] for name in each.answers if name in known),
        )
        for each in saved_questions(data)
    )


def saved_open_questions(run: Run, saved: Any, elapsed: float) -> tuple[OpenQuestion, ...]:
    """Return the open questions of a rebuilt run, as the handler of the run shows them.

    Args:
        run: The run; it does not change.
        saved: The saved data from which it continues.
        elapsed: Seconds that it has taken.
    """
    later = run_without_owner(cast("Workflow[Any]", run.workflow), run.run_id)
    load_life(later, saved, elapsed)
    now = current_backend().current_time()
    return tuple(attrs.evolve(each, since=now + each.since) for each in open_questions(later))


# -- the journal ----------------------------------------------------------------------------------


def events_in(
    graph: Graph, classes: tuple[type, ...], records: Iterable[StoredRecord]
) -> Iterator[tuple[StoredRecord, Any, bool]]:
    """Yield the events of a durable stream, each with its record and whether it is the terminal one."""
    codec = graph.codec(classes)
    for record in records:
        found = _read(record)
        if isinstance(found, Published | End):
            yield record, codec.decode(found.e, "a record"), isinstance(found, End)


@attrs.frozen
class Rebuilt:
    """A run as its journal describes it.

    Attributes:
        snapshot: The snapshot from which it continues.
        elapsed: Seconds that it has taken.
        children: How many children have been started.
        stop: The stop event that a step has returned, if the end was not recorded.
        cancelled: The cancellation that was recorded, if the end was not.
        is_stale: Whether the base is of other steps, or of another release.
        end: The end that was recorded.
    """

    snapshot: dict[str, Any]
    elapsed: float
    children: int
    stop: StopEvent | None
    cancelled: Cancelled | None
    is_stale: bool = False
    end: End | None = None


def rebuild(
    graph: Graph,
    classes: tuple[type, ...],
    records: list[StoredRecord],
    now: float,
    *,
    has_crashed: bool,
) -> Rebuilt:
    """Rebuild a run from its records, which begin with a base. No code of the workflow runs.

    Args:
        graph: The workflow as it is now.
        classes: The classes that the records may contain, beside those that the steps name.
        records: The newest base, and the records after it.
        now: The wall time.
        has_crashed: Whether the last life ended in a crash.

    Raises:
        SnapshotError: The records do not fit the workflow; the message has the record, and the difference.
        StoreFormatError: They do not begin with a base, or are of a later release.
    """
    base = _first_base(records)
    try:
        past, children = PastRun(graph, classes, base.snapshot, base.at), base.children
    except SnapshotError as error:
        _refuse(error, records[0], base)
    for record in records[1:]:
        found = _read(record, base)
        children += isinstance(found, Child)
        try:
            past.apply(found)
        except Exception as error:  # noqa: BLE001 - a journal that does not fit can break any rule
            _refuse(error, record, base)
    snapshot = past.snapshot(now, has_crashed=has_crashed)
    return Rebuilt(
        snapshot,
        snapshot["elapsed"],
        children,
        past.machine.stop,
        past.cancelled,
        base.snapshot.get("shape") != snapshot["shape"] or base.engine != release(),
        past.end,
    )


def records_of(
    graph: Graph, classes: tuple[type, ...], records: Iterable[StoredRecord]
) -> list[Record]:
    """Return what happened in a run, as an observer would have received it, from its journal.

    Args:
        graph: The workflow as it is now.
        classes: The classes that the journal may contain, beside those that the steps name.
        records: The records; those before the first base do not count.

    Raises:
        SnapshotError: The records do not fit the workflow; the message has the record, and the difference.
        StoreFormatError: They have no base, or are of a later release.
    """
    from sluicegate._engine.past_records import ToldRun  # noqa: PLC0415 - rarely asked for

    found: list[Record] = []
    kept = list(dropwhile(lambda record: record.kind != BASE, records))
    base, run = _first_base(kept), None
    for record in kept:
        one = _read(record, base)
        try:
            if isinstance(one, Base):
                base, run = one, ToldRun(graph, classes, one, found.append, run)
            elif run is not None:
                run.apply(one)
        except Exception as error:  # noqa: BLE001 - as above
            _refuse(error, record, base)
    return found


class _Head(msgspec.Struct):
    """The fields that the first record has in every format of the journal."""

    t: str
    v: int = VERSION
    engine: str = ""


def _first_base(records: list[StoredRecord]) -> Base:
    """Return the first record, which has to be a snapshot.

    Raises:
        StoreFormatError: It is none, or of a later format.
    """
    data = records[0].data if records else b"null"
    try:
        head = msgspec.json.decode(data, type=_Head)
    except msgspec.MsgspecError:
        head = None
    if head is None or head.t != "base":
        msg = f"the journal begins with {brief(data, 60)}; expected the snapshot of a run of sluicegate"
        raise StoreFormatError(msg)
    if head.v > VERSION:
        msg = (
            f"the journal is of format {head.v}{_written_by(head.engine)}, and this release "
            f"({release()}) reads formats up to {VERSION}; expected a release at least as new"
        )
        raise StoreFormatError(msg)
    base = _read(records[0], head)
    assert isinstance(base, Base)
    return base


def _read(record: StoredRecord, base: Base | _Head | None = None) -> Any:
    """Decode a record.

    Raises:
        StoreFormatError: Its kind is unknown, or it cannot be read.
    """
    try:
        return decode_record(record.data)
    except msgspec.MsgspecError as error:
        by = "" if base is None else _written_by(base.engine)
        if record.kind in KINDS:
            why = f"cannot be read ({error}); the journal is damaged"
        else:
            why = (
                f"is of the kind {brief(record.kind, 60)}, which this release ({release()}) does not "
                "know; expected a release at least as new"
            )
        msg = f"record {record.sequence} of a journal{by} {why}"
        raise StoreFormatError(msg) from error


def _written_by(engine: str) -> str:
    return f", written by sluicegate {engine}" if engine else ""


def _refuse(error: Exception, record: StoredRecord, base: Base) -> NoReturn:
    """Raise the error of a record, with its position."""
    known = isinstance(error, WorkflowRuntimeError)
    what = str(error) if known else f"the journal does not fit: {error!r}"
    begun = _written_by(base.engine).replace(", ", "; the journal was ", 1)
    msg = f"{what} (at record {record.sequence}, {record.kind!r}{begun}; this is {release()})"
    raise SnapshotError(msg) from (None if isinstance(error, SnapshotError) else error)
