"""Open waits of ``ctx.wait_for_event``, and answers that arrived before their wait began.

Both are indexed by class and required values, so that the cost of an event does not depend on the
number of open waits. Only hashable values of built-in types are indexed. A wait that requires any
other value is compared with each event of its class in turn.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from math import inf
from types import NoneType
from typing import TYPE_CHECKING, Any

from sluicegate._engine.step_queue import Absence
from sluicegate._errors import brief


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sluicegate._events import Event
    from sluicegate._loop import Waiter


#: Up to this number a linear search is cheaper than an index, and takes no memory.
FEW = 8

_NOTHING: Any = object()

#: The types whose ``==`` agrees with their hash, for any operand.
_PLAIN = frozenset({str, int, bool, float, bytes, complex, NoneType})

#: The names of the indexed requirements, and their values.
Key = tuple[tuple[str, ...], tuple[Any, ...]]


def is_plain(value: object) -> bool:
    """Whether a value can be indexed: hashable and built-in, or a tuple or frozenset of those."""
    kind = type(value)
    if kind in _PLAIN:
        return value == value  # noqa: PLR0124 - NaN is not equal to itself
    if kind is tuple or kind is frozenset:
        parts: Any = value
        return all(type(part) in _PLAIN and part == part for part in parts)  # noqa: PLR0124
    return False


class Wait(Absence):
    """A call of ``ctx.wait_for_event``: a step that waits for an event.

    Args:
        kind: The class of the event.
        requirements: The fields that the event must have, with their values.
        waiter: What wakes the step.
    """

    __slots__ = (
        "adopted",
        "asks",
        "due",
        "is_from_outside",
        "is_outside",
        "is_shown",
        "is_strict",
        "kind",
        "number",
        "question",
        "requirements",
        "since",
    )

    def __init__(self, kind: type[Event], requirements: Mapping[str, Any], waiter: Waiter) -> None:
        self.queue = None
        self.waiter = waiter
        self.is_away = False
        self.kind = kind
        self.requirements = requirements
        #: The event that it publishes, and whether that is a question, open as long as the wait.
        self.question: Event | None = None
        self.asks = False
        #: An earlier question that the wait has taken over.
        self.adopted: Event | None = None
        #: Whether the stream of a durable run has the question.
        self.is_shown = False
        #: When it began, and when it times out, on the backend's clock.
        self.since = 0.0
        self.due = inf
        #: Whether the event may come from outside the run; otherwise only a step can make it.
        self.is_outside = True
        #: Whether only the event lets the step continue: it has no timeout and no other task.
        self.is_strict = False
        #: Its number in the order in which the run's waits and questions began.
        self.number = 0
        self.event = None
        #: Whether the event came from outside.
        self.is_from_outside = False

    @property
    def shown(self) -> Event | None:
        """The question that is open as long as the wait; None where none was published."""
        return self.adopted or (self.question if self.asks else None)

    @property
    def is_over(self) -> bool:
        """Whether the event has arrived."""
        return self.event is not None

    @property
    def key(self) -> Key:
        """Its index key: the names of the requirements that can be indexed, and their values."""
        plain = sorted(n for n, v in self.requirements.items() if type(n) is str and is_plain(v))
        return tuple(plain), tuple(self.requirements[name] for name in plain)

    def content_key(self, key_of: Callable[[Any], int]) -> int:
        """Return a hash of class, requirements and question, equal in a later attempt."""
        requirements = [
            [name, key_of(value)]
            for name, value in sorted(self.requirements.items(), key=lambda item: str(item[0]))
        ]
        return key_of([self.kind.__name__, requirements, key_of(self.question)])

    def fits(self, event: Event) -> bool:
        """Whether ``event`` ends this wait."""
        return isinstance(event, self.kind) and all(
            event.get(name, _NOTHING) == value for name, value in self.requirements.items()
        )

    def __repr__(self) -> str:
        needs = ", ".join(f"{name}={brief(value, 60)}" for name, value in self.requirements.items())
        return f"{self.kind.__name__}({needs})"


def _values(event: Event, names: tuple[str, ...]) -> tuple[Any, ...] | None:
    """Return the index values of an event; None where one of them cannot be indexed."""
    values = tuple(event.get(name, _NOTHING) for name in names)
    return values if all(v is _NOTHING or is_plain(v) for v in values) else None


class WaitIndex:
    """An index of open waits by class and required values.

    Attributes:
        numbers: The waits by their number.
    """

    __slots__ = ("_places", "_tables", "numbers")

    def __init__(self, waits: Iterable[Wait]) -> None:
        self._tables: dict[
            type, dict[tuple[str, ...], dict[tuple[Any, ...], dict[Wait, None]]]
        ] = {}
        #: The key under which each was added: the step may have changed the values since.
        self._places: dict[Wait, Key] = {}
        self.numbers: dict[int, Wait] = {}
        for wait in waits:
            self.add(wait)

    def add(self, wait: Wait) -> None:
        """Add a wait."""
        names, values = self._places[wait] = wait.key
        self.numbers[wait.number] = wait
        tables = self._tables.setdefault(wait.kind, {})
        tables.setdefault(names, {}).setdefault(values, {})[wait] = None

    def remove(self, wait: Wait) -> None:
        """Remove a wait, and each table that this empties."""
        names, values = self._places.pop(wait)
        del self.numbers[wait.number]
        tables = self._tables[wait.kind]
        table = tables[names]
        del table[values][wait]
        if not table[values]:
            del table[values]
        if not table:
            del tables[names]
        if not tables:
            del self._tables[wait.kind]

    def candidates(self, event: Event) -> Iterator[Iterable[Wait]]:
        """Yield groups of waits that together hold all that fit, each oldest first."""
        for kind in type(event).__mro__:
            for names, table in self._tables.get(kind, {}).items():
                values = _values(event, names)
                if values is None:
                    yield sorted(chain.from_iterable(table.values()), key=_number_of)
                elif values in table:
                    yield table[values]


class EarlyAnswers:
    """Answers from outside, in order, kept until a step waits for them.

    Each answer has a number, by which it is ordered; an answer that is put back gets one below all
    others. Up to ``FEW`` answers are searched one by one. From then on the first search for a class
    and a set of names builds an index, which later changes keep up to date.
    """

    __slots__ = ("_events", "_first", "_next", "_odd", "_tables")

    def __init__(self) -> None:
        self._events: OrderedDict[int, Event] = OrderedDict()
        #: For each class and names that a wait has searched: the events by value.
        self._tables: dict[
            tuple[type, tuple[str, ...]], dict[tuple[Any, ...], OrderedDict[int, Event]]
        ] = {}
        #: For the same keys: the events whose values cannot be indexed.
        self._odd: dict[tuple[type, tuple[str, ...]], OrderedDict[int, Event]] = {}
        self._next = 0
        self._first = 0

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events.values())

    def keep(self, event: Event) -> None:
        """Append an event."""
        self._events[self._next] = event
        self._enter_all(self._next, event, last=True)
        self._next += 1

    def put_back(self, event: Event) -> None:
        """Put back an event that was taken, ahead of all others."""
        self._first -= 1
        self._events[self._first] = event
        self._events.move_to_end(self._first, last=False)
        self._enter_all(self._first, event, last=False)

    def take(self, wait: Wait) -> Event | None:
        """Take out the first event that fits a wait; return None where none does."""
        number = self.find(wait)
        return None if number is None else self.take_number(number)

    def take_number(self, number: int) -> Event:
        """Take out the event with a number, as :meth:`find` returned it."""
        event = self._events.pop(number)
        for place in self._tables:
            if isinstance(event, place[0]):
                self._strike(place, number, event)
        if not self._events:
            self._tables.clear()
            self._odd.clear()
        return event

    def has(self, wait: Wait) -> bool:
        """Whether an event fits a wait."""
        return self.find(wait) is not None

    def find(self, wait: Wait) -> int | None:
        """Return the number of the first event that fits a wait; None where none does."""
        if len(self._events) <= FEW:
            return _first_fitting(wait, self._events)
        names, values = wait.key
        place = wait.kind, names
        if place not in self._tables:
            self._tables[place], self._odd[place] = {}, OrderedDict()
            for number, event in self._events.items():
                if isinstance(event, wait.kind):
                    self._enter(place, number, event, last=True)
        lines = (self._tables[place].get(values), self._odd[place])
        found = [_first_fitting(wait, line) for line in lines if line]
        return min((number for number in found if number is not None), default=None)

    def _enter_all(self, number: int, event: Event, *, last: bool) -> None:
        """Add an event to every index of its classes, at the end or at the front."""
        for place in self._tables:
            if isinstance(event, place[0]):
                self._enter(place, number, event, last=last)

    def _enter(
        self, place: tuple[type, tuple[str, ...]], number: int, event: Event, *, last: bool
    ) -> None:
        values = _values(event, place[1])
        table = self._tables[place]
        line = self._odd[place] if values is None else table.setdefault(values, OrderedDict())
        line[number] = event
        line.move_to_end(number, last=last)

    def _strike(self, place: tuple[type, tuple[str, ...]], number: int, event: Event) -> None:
        """Remove an event from one index."""
        if self._odd[place].pop(number, None) is not None:
            return
        values = _values(event, place[1])
        assert values is not None
        table = self._tables[place]
        del table[values][number]
        if not table[values]:
            del table[values]


def _number_of(wait: Wait) -> int:
    return wait.number


def _first_fitting(wait: Wait, events: Mapping[int, Event]) -> int | None:
    return next((number for number, event in events.items() if wait.fits(event)), None)
