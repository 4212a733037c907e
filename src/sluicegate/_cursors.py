"""Cursors: the position of a reader in the stream of a run, valid in every process and life of the run.

The stream of a durable run has events of two kinds. *Durable* ones are in its store, numbered
1, 2, 3 across all its lives (a *life* is the time from one claim of the run to the next). *Live* ones
are only in the memory of the process that runs it, and end with the life. So a position is three
numbers: the last durable event that was seen, the life, and how many live events of that life were seen
after it. A cursor is these three as one decimal number::

    durable * 10**24 + life * 10**15 + live

The two later ones have a fixed number of digits, nine and fifteen, so that ``int(cursor)`` orders as
the stream does. A run without a store has no durable events and is in its life 0: its cursor is
``str(sequence)``.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sluicegate._errors import brief


if TYPE_CHECKING:
    from collections.abc import Sequence

    from sluicegate._events import Event


#: The weight of a life and of a durable event in a cursor; see above.
_LIFE = 10**15
_DURABLE = _LIFE * 10**9
#: The most digits that a cursor can have: as many for the durable events as for the live ones.
_MOST_DIGITS = 39


class Cursor(NamedTuple):
    """A position in the stream of a run, behind an event.

    Attributes:
        durable: The number of the last durable event seen; 0 before the first.
        life: The life in which the live events were seen; 0 for none.
        live: How many live events of that life were seen behind the durable one.
    """

    durable: int
    life: int = 0
    live: int = 0

    def text(self) -> str:
        """Return it as the text that users see."""
        return str(self.durable * _DURABLE + self.life * _LIFE + self.live)


def read_after(after: object, *, is_durable: bool) -> int | Cursor:
    """Check the argument of ``stream_events(after=...)`` and return its position.

    Args:
        after: The argument.
        is_durable: Whether the run has a store.

    Returns:
        The number of an event in this process, or a cursor of a durable run.

    Raises:
        ValueError: It is neither a cursor of such a run nor a number.
    """
    if type(after) is int and 0 <= after < _LIFE:
        return after
    if type(after) is int and after >= _LIFE:
        msg = f"after is the int {after}; expected a cursor as the str that it is: `after={str(after)!r}`"
        raise ValueError(msg)
    if not isinstance(after, str) or not (after.isascii() and after.isdigit()):
        msg = (
            f"after is {brief(after)}; expected the `stream.cursor` of a reader, the number of an event, "
            "or 0 for the beginning"
        )
        raise ValueError(msg)
    cursor = _read(after)
    is_of_plain_run = not cursor.life and (cursor.live or not cursor.durable)
    if not is_durable and is_of_plain_run:
        return cursor.live
    if not is_durable or (cursor.live and not cursor.life):
        of, here = ("a run without a store", "has one")
        if not is_durable:
            of, here = "a durable run", "has no store"
        msg = (
            f"after is {after!r}, a cursor of {of}, and this run {here}; expected `stream.cursor` of "
            "a reader of the same run"
        )
        raise ValueError(msg)
    return cursor


def _read(text: str) -> Cursor:
    if len(text) > _MOST_DIGITS:
        msg = f"after is {brief(text)}, which is too long for a cursor; expected `stream.cursor`"
        raise ValueError(msg)
    durable, rest = divmod(int(text), _DURABLE)
    return Cursor(durable, *divmod(rest, _LIFE))


class OlderEvents(Protocol):
    """The durable stream events of a run that its log does not keep: its store has them."""

    async def read(self, after: int, up_to: int) -> Sequence[tuple[int, Event]]:
        """Return the next durable events and their numbers, in order. A checkpoint.

        Cancelled, it has no effect: the reader asks for the same again.

        Args:
            after: The number of the last event that the reader has.
            up_to: The number of the last one that it needs; the log has those that follow.

        Returns:
            A batch of at least one event, of any size; empty if the store has none.

        Raises:
            Exception: The read failed. The reader raises the exception, and can be read again.
        """
        ...


class Mark(NamedTuple):
    """A place in a log from which live events are counted: a durable event, or the beginning of a life.

    Attributes:
        sequence: The sequence number of the event, or of the last one before the life.
        durable: The number of the last durable event there.
        life: The life that the live events behind it belong to.
    """

    sequence: int
    durable: int
    life: int


class Numbering:
    """How the sequence numbers of a log map to cursors: only the log of a durable run has it.

    It has an entry for each durable event that the log keeps and for each life, and one before them;
    live events are counted from the entry before them, so they cost nothing.
    """

    __slots__ = ("_base", "_marks", "older")

    def __init__(self, sequence: int, durable: int, life: int, older: OlderEvents | None) -> None:
        #: Reads what the log does not keep; None if nothing can.
        self.older: OlderEvents | None = older
        #: The place before the log's first event.
        self._base = Mark(sequence, durable, life)
        #: The last entry before what the log keeps, and those in it, in order. Another thread may read
        #: a cursor, so entries are only ever appended, or the list replaced.
        self._marks: list[Mark] = [self._base]

    @property
    def last(self) -> int:
        """The number of the last durable event."""
        return self._marks[-1].durable

    @property
    def life(self) -> int:
        """The life that the log is in."""
        return self._marks[-1].life

    def is_durable(self, sequence: int) -> bool:
        """Whether the last event is durable, of which this is the sequence number."""
        return self._marks[-1].sequence == sequence

    def note(self, sequence: int, durable: int, first: int) -> None:
        """Note that the event ``sequence`` is durable event ``durable``; ``first`` is the oldest kept."""
        self._add(Mark(sequence, durable, self.life), first)

    def begin_life(self, sequence: int, life: int, first: int) -> None:
        """Note that a life begins behind the event ``sequence``."""
        self._add(Mark(sequence, self.last, life), first)

    def _add(self, mark: Mark, first: int) -> None:
        marks = self._marks
        marks.append(mark)
        # Half of them are dropped at a time, so an event costs the same however many there are.
        if len(marks) > 16 and marks[len(marks) // 2].sequence < first:
            self._marks = marks[bisect_left(marks, (first,)) - 1 :]

    def _before(self, sequence: int) -> Mark:
        marks = self._marks
        return marks[max(0, bisect_left(marks, (sequence,)) - 1)]

    def durable_before(self, sequence: int) -> int:
        """Return the number of the last durable event before the event ``sequence``, which is kept."""
        return self._before(sequence).durable

    def cursor(self, sequence: int) -> Cursor:
        """Return the cursor behind the event ``sequence``; where a life begins, it is of that life."""
        mark = self._before(sequence + 1)
        return Cursor(mark.durable, mark.life, max(0, sequence - mark.sequence))

    def is_ahead(self, cursor: Cursor) -> bool:
        """Whether this log has yet to publish everything after a cursor."""
        return cursor.durable > self.last or (
            cursor.durable == self.last and cursor.life > self.life
        )

    def sequence_of(self, cursor: Cursor) -> int | None:
        """Return the last sequence number that is not behind a cursor, which is not ahead of the log.

        None if its durable event is older than the log knows.
        """
        marks = self._marks
        if cursor.durable < marks[0].durable:
            return None
        # The durable event is the first of the entries with its number; the others begin lives.
        first = bisect_left(marks, cursor.durable, key=lambda mark: mark.durable)
        if first == len(marks) or marks[first].durable > cursor.durable:
            first -= 1  # a number that this log has not
        at, following = first, marks[first + 1 : first + 2]
        while following and following[0].durable == marks[at].durable:
            if following[0].life > cursor.life:
                break
            at += 1
            following = marks[at + 1 : at + 2]
        mark = marks[at]
        if mark.life > cursor.life:
            return mark.sequence
        found = mark.sequence + cursor.live
        if following:
            # The live events of this life end there; those of a life that this log has not are none.
            end = following[0].sequence - (following[0].durable > mark.durable)
            found = min(found, end) if mark.life == cursor.life else end
        return found

    def find_place(self, after: int | Cursor) -> tuple[int | None, int | None]:
        """Return the sequence number and the durable number of a position; None if not known.

        The beginning is known in any life. The live part of a cursor counts only in its own life.
        """
        if isinstance(after, Cursor):
            return self.sequence_of(after), after.durable
        if after and after < self._marks[0].sequence:
            return after, None
        return after, self.durable_before(after + 1) if after else 0

    def missed(self, sequence: int | None, durable: int, start: int) -> tuple[int, int]:
        """Return how many live and how many durable events are between a position and an event.

        Live events of earlier lives are not known, and neither are those behind a durable event that the
        log no longer knows: they are not counted.

        Args:
            sequence: The sequence number of the position; None if it is not known.
            durable: Its durable number.
            start: The sequence number of the event, which is kept.
        """
        began, before = self._base.sequence, self._base.durable
        until = self.durable_before(start)
        live = 0
        if sequence is not None or durable <= before:
            between = start - 1 - max(began, sequence or 0)
            live = between - (until - max(before, durable))
        return max(0, live), max(0, until - durable)
