"""The questions of a child that has not begun again, read from its part of the snapshot and its records.

The step that calls the child has not called it again, so its workflow is unknown, and the records of a
process that has died cannot be applied to a machine yet. They say enough: which questions were asked,
and which were answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from sluicegate._engine import journal_records as rec
from sluicegate._engine.snapshot_format import SavedQuestion, Snapshot, read_part
from sluicegate._events import HumanResponseEvent, InputRequiredEvent
from sluicegate._questions import id_of


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate._data.codec import Codec
    from sluicegate._engine.journal_records import Record
    from sluicegate._engine.snapshot_format import SavedChild


def questions_in(where: Snapshot) -> Iterator[tuple[str, SavedQuestion]]:
    """Yield the open questions of a child and of its children in a snapshot, each with its id."""
    yield from own_questions(where)
    for run_id, child in children_in(where):
        for name, asked in questions_in(child):
            yield f"{run_id}/{name}", asked


def own_questions(where: Snapshot) -> Iterator[tuple[str, SavedQuestion]]:
    """Yield the open questions of a child itself in a snapshot, each with its id."""
    answered = {question for _, _, question in where.arrived}
    for asked in () if where.run is None else where.run.questions:
        name = id_of(asked.number)
        if asked.answer is None and name not in answered:
            yield name, asked


def children_in(where: Snapshot) -> Iterator[tuple[str, Snapshot]]:
    """Yield the children in a snapshot that have not ended, each with its run id."""
    steps = () if where.run is None else where.run.steps.values()
    for step in steps:
        for delivery in step.deliveries:
            for child in delivery.children:
                if child.status is None and child.run is not None:
                    yield child.run_id, child.run


def questions_after(
    saved: SavedChild, where: Snapshot, codec: Codec
) -> Iterator[tuple[str, SavedQuestion]]:
    """Yield the questions of a child that are open after its last record, each with its id.

    Args:
        saved: The child.
        where: Its snapshot.
        codec: The classes that the parent knows. A returned event of another class counts as a question
            if no step of the child has taken it.
    """
    runs = {saved.child: _Questions("", where, saved.at, codec)}
    records = [rec.read_record(data) for data in saved.tail]
    for record in records:
        asker = runs.get(record.c)
        if asker is None:  # it has ended
            continue
        if isinstance(record, rec.Child):
            path = f"{asker.path}{record.id}/"
            for found in runs.values():  # it continues one that was called before
                found.forget(path)
            runs[record.child] = _Questions(
                path, read_part(record.base, Snapshot), record.at, codec
            )
        elif isinstance(record, rec.End):  # with the children that it had
            runs = {c: each for c, each in runs.items() if not each.path.startswith(asker.path)}
        else:
            asker.apply(record)
    for found in runs.values():
        for name, asked in found.open.items():
            age = asked.age + records[-1].at - found.asked_at.get(name, found.began_at)
            yield name, replace(asked, age=max(age, 0.0))


class _Questions:
    """The open questions of one run, by the id that the child which has a snapshot knows them by.

    Args:
        path: What its ids begin with.
        where: The snapshot with which its records begin.
        began_at: When that was taken, in seconds since the epoch.
        codec: The classes that the parent knows.
    """

    def __init__(self, path: str, where: Snapshot, began_at: float, codec: Codec) -> None:
        self._codec = codec
        self.path = path
        self.began_at = began_at
        self.open = {f"{path}{name}": asked for name, asked in questions_in(where)}
        self.asked_at: dict[str, float] = {}
        self._last = 0 if where.run is None else where.run.asked
        self._waits: dict[int, tuple[str, rec.Wait]] = {}
        self._taken = {name for step in where.shape.values() for name in step.takes}

    def _name(self, number: int) -> str:
        return f"{self.path}{id_of(number)}"

    def forget(self, path: str) -> None:
        """Remove the questions whose ids begin with ``path``."""
        self.open = {name: asked for name, asked in self.open.items() if not name.startswith(path)}

    def apply(self, record: Record) -> None:
        """Note the questions that a record asks, answers or closes."""
        for number in record.got if isinstance(record, rec.Input) else ():
            self.open.pop(self._waits[number][0] if number in self._waits else "", None)
        if isinstance(record, rec.Asked):
            self._last += 1
            self._ask(self._last, record.at, record.e)
        elif isinstance(record, rec.Wait):
            self._wait(record)
        elif isinstance(record, rec.Waited):
            name, wait = self._waits.pop(record.w, ("", None))
            asked = self.open.pop(name, None)
            if asked is not None and wait is not None and wait.asks and wait.kind in self._taken:
                self.open[name] = replace(asked, kind=None)  # a step takes an answer from now on
        elif isinstance(record, rec.Input):
            if isinstance(record, rec.In):
                self._answer(record)
            else:
                self._publish(record)

    def _ask(self, number: int, at: float, event: object, kind: str | None = None) -> None:
        name = self._name(number)
        self.open[name] = SavedQuestion(number=number, age=0.0, event=event, kind=kind)
        self.asked_at[name] = at

    def _wait(self, record: rec.Wait) -> None:
        if record.early is not None:
            if record.asked is not None:
                self.open.pop(self._name(record.asked), None)
            return
        number = record.asked
        if number is None:
            self._last += 1
            number = self._last
            if record.asks or record.outside:
                self._ask(number, record.since, record.q, record.kind)
        self._waits[record.w] = self._name(number), record

    def _answer(self, record: rec.In) -> None:
        if record.q is not None:
            self.open.pop(f"{self.path}{record.q}", None)
        elif (record.to or record.step) and self._is_a(record.e, HumanResponseEvent, unknown=True):
            asked = [each.number for each in self.open.values() if each.kind is None]
            self.open.pop(self._name(min(asked, default=0)), None)

    def _publish(self, record: rec.Input) -> None:
        """Note the questions among the events that a step has returned or sent."""
        made: list[Any] = []
        if isinstance(record, rec.Done):
            made = [held.e for held in record.held]
            made += record.r if record.is_list else [record.r]
        elif isinstance(record, rec.Sent):
            made = [record.e]
        for event in made:
            if event is not None and self._is_a(
                event, InputRequiredEvent, unknown=event["$"] not in record.to
            ):
                self._last += 1
                self._ask(self._last, record.at, event)

    def _is_a(self, event: Any, kind: type, *, unknown: bool) -> bool:
        found = self._codec.class_named(event["$"])
        return unknown if found is None else issubclass(found, kind)
