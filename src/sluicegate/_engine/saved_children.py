"""The questions of children that have not begun again in a resumed run.

Their steps have not called them yet. Until then only their part of the snapshot exists; the parent
decodes its events if it knows their classes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sluicegate._engine.past_questions import (
    children_in,
    own_questions,
    questions_after,
    questions_in,
)
from sluicegate._errors import SnapshotError
from sluicegate._events import Event, HumanResponseEvent
from sluicegate._questions import OpenQuestion


if TYPE_CHECKING:
    from sluicegate._engine.run import Run
    from sluicegate._engine.snapshot_format import SavedChild, SavedQuestion, Snapshot


class SavedAsked:
    """A question of a child that has not begun again.

    Attributes:
        where: The part of the snapshot for the child that has asked, which may be a child's child.
        name: The id of the question in that child.
        asked: The question; None if there is none of this id, or it has its answer.
    """

    __slots__ = ("asked", "name", "where")

    def __init__(self, where: Snapshot, name: str) -> None:
        self.where = where
        self.name = name
        self.asked = dict(own_questions(where)).get(name)

    @property
    def answers(self) -> set[str]:
        """The names of the classes that answer it."""
        if self.asked is not None and self.asked.kind is not None:
            return {self.asked.kind}
        return {name for step in self.where.shape.values() for name in step.takes}

    def answer(self, encoded: Any) -> None:
        """Keep an encoded answer until the child begins again."""
        self.where.arrived = [*self.where.arrived, (encoded, None, self.name)]


class PastAsked:
    """A possible question of a child whose last process has died.

    The records of the child are applied when its step calls it. Until then, any answer is kept, and it is
    checked at that point.
    """

    asked: Any = True

    def __init__(self, saved: SavedChild, name: str) -> None:
        self._saved = saved
        self._name = name

    @property
    def answers(self) -> set[str]:
        """The names of the classes that answer it; any event may."""
        return {Event.__name__}

    def answer(self, encoded: Any) -> None:
        """Keep an answer, in the codec's form, behind the records of the child."""
        at = self._saved.tail[-1]["at"]
        answer = {"t": "in", "at": at, "c": self._saved.child, "e": encoded, "q": self._name}
        self._saved.tail.append({**answer, "made": -1})


def find_saved(run: Run, question: str) -> SavedAsked | PastAsked | None:
    """Return a question of a child that has not begun again; None for one of no such child."""
    for record in run.saved_children.values():
        saved = record.saved
        if saved is None or saved.run is None or not question.startswith(f"{record.run_id}/"):
            continue
        name = question.removeprefix(f"{record.run_id}/")
        return PastAsked(saved, name) if saved.tail else _find_in(saved.run, name)
    return None


def _find_in(where: Snapshot, question: str) -> SavedAsked:
    for run_id, child in children_in(where):
        if question.startswith(f"{run_id}/"):
            return _find_in(child, question.removeprefix(f"{run_id}/"))
    return SavedAsked(where, question)


def saved_questions(run: Run) -> list[OpenQuestion]:
    """Return the open questions of children that have not begun again."""
    began = run.clock.started_at or 0.0
    found: list[OpenQuestion] = []
    for record in run.saved_children.values():
        saved = record.saved
        if saved is None or saved.run is None or saved.status is not None:
            continue
        if saved.tail:
            questions = questions_after(saved, saved.run, run.graph.codec(run.options.classes))
        else:
            questions = questions_in(saved.run)
        for name, asked in questions:
            event = _event_of(run, asked)
            since = began - asked.age
            name = f"{record.run_id}/{name}"
            found.append(OpenQuestion(name, event, since, (HumanResponseEvent,)))
    return found


def _event_of(run: Run, asked: SavedQuestion) -> Event | None:
    """Return the event of a question, if the parent knows its class."""
    event: Any = None
    if asked.event is not None:
        with suppress(SnapshotError):
            event = run.graph.codec(run.options.classes).decode(asked.event, "a question")
    return event if isinstance(event, Event) else None
