"""Cursors: where a reader is in the stream of a run, in any process and in any life of the run.

The stream of a durable run has events of two kinds. *Durable* ones are in its store and are numbered
1, 2, 3 through all its lives (a *life* is the time from one claim of the run to the next). *Live* ones
are only in the memory of the process that runs it, and end with the life. So a position is three
numbers: the last durable event that was seen, the life, and how many live events of that life were seen
behind it. A cursor is the three as one decimal number, the first in front::

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
        """Return it as users get it."""
        return str(self.durable * _DURABLE + self.life * _LIFE + self.live)


def read_after(after: object, *, is_durable: bool) -> int | Cursor:
    """Return what ``stream_events(after=...)`` was given, checked.

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
            As many of them as it sees fit to return at a time, at least one; none if the store has none.

        Raises:
            Exception: What the reader shall raise. It can be asked again.
        """
        ...


class Numbering:
    """How the sequence numbers of a log map to durable events: only the log of a durable run has it.

    It has an entry for each durable event that the log keeps, and one before them; live events are
    counted from the durable one before them, so they cost nothing.
    """

    __slots__ = ("_base", "_marks", "life", "older")

    def __init__(self, life: int, sequence: int, durable: int, older: OlderEvents | None) -> None:
        #: The life that the log belongs to.
        self.life: int = life
        #: Reads what the log does not keep; None if nothing can.
        self.older: OlderEvents | None = older
        #: The sequence number and the number of the last durable event before this life.
        self._base = (sequence, durable)
        #: The same of durable events, in order: the last one before what the log keeps, and those kept.
        #: Another thread may read a cursor, so entries are only ever appended, or the list replaced.
        self._marks: list[tuple[int, int]] = [self._base]

    @property
    def last(self) -> int:
        """The number of the last durable event."""
        return self._marks[-1][1]

    @property
    def last_sequence(self) -> int:
        """The sequence number of the last durable event."""
        return self._marks[-1][0]

    def is_ahead(self, cursor: Cursor) -> bool:
        """Whether a cursor is of what this log has not had yet, or of a life after this one."""
        return cursor.durable > self.last or (cursor.life > self.life and cursor.live > 0)

    def note(self, sequence: int, durable: int, first: int) -> None:
        """Note that the event ``sequence`` is durable event ``durable``; ``first`` is the oldest kept."""
        marks = self._marks
        marks.append((sequence, durable))
        # Half of them are dropped at a time, so an event costs the same however many there are.
        if len(marks) > 16 and marks[len(marks) // 2][0] < first:
            self._marks = marks[bisect_left(marks, (first,)) - 1 :]

    def durable_before(self, sequence: int) -> int:
        """Return the number of the last durable event before the event ``sequence``, which is kept."""
        marks = self._marks
        return marks[max(0, bisect_left(marks, (sequence,)) - 1)][1]

    def cursor(self, sequence: int) -> Cursor:
        """Return the cursor behind the event ``sequence``."""
        marks = self._marks
        behind, durable = marks[max(0, bisect_left(marks, (sequence + 1,)) - 1)]
        return Cursor(durable, self.life, max(0, sequence - behind))

    def sequence_of(self, durable: int) -> int | None:
        """Return the sequence number of a durable event; None if it is older than the log knows."""
        marks = self._marks
        if durable < marks[0][1]:
            return None
        at = bisect_left(marks, durable + 1, key=lambda mark: mark[1]) - 1
        return marks[at][0]

    def locate(self, after: int | Cursor) -> tuple[int | None, int | None]:
        """Return the sequence number and the durable number of a position; None if not known.

        The beginning is known in any life. The live part of a cursor counts only in its own life.
        """
        if isinstance(after, Cursor):
            sequence = self.sequence_of(after.durable)
            if sequence is not None and after.life == self.life:
                sequence += after.live
            return sequence, after.durable
        if after and after < self._marks[0][0]:
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
        began, before = self._base
        until = self.durable_before(start)
        live = 0
        if sequence is not None or durable <= before:
            between = start - 1 - max(began, sequence or 0)
            live = between - (until - max(before, durable))
        return max(0, live), max(0, until - durable)
