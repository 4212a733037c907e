"""Joins of one event per parameter, and the buffers of ``ctx.collect_events``."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from sluicegate._errors import brief


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sluicegate._events import Event


#: The parameters of a join that an event fits, by index; that of the nearest class first.
Places: TypeAlias = tuple[int, ...]

#: A value that a :class:`PairJoin` keeps with each event. The machine keeps the branch node.
Origin = TypeVar("Origin")


class PairJoin(Generic[Origin]):
    """A join of one event for each parameter, ``a: A, b: B``; further events queue in order.

    Events that fit the same parameters wait in one pool, in arrival order. The join assigns events
    to parameters only when all parameters can be filled, so an event never takes a parameter from
    another one that fits nowhere else.

    Args:
        kinds: The classes of the parameters.
    """

    __slots__ = ("_count", "_kinds", "_pools")

    def __init__(self, kinds: tuple[type[Event], ...]) -> None:
        self._kinds = kinds
        self._pools: dict[Places, deque[tuple[Event, Origin]]] = {}
        self._count = 0

    def add(
        self, event: Event, origin: Origin
    ) -> tuple[tuple[Event, ...], tuple[Origin, ...]] | None:
        """Add an event. If that fills all parameters, take out the set and return it.

        Of the events that fit several parameters, the oldest takes that of its nearest class, or
        the first one where several parameters have the same class.

        Returns:
            The events in the order of the parameters, and the origin of each; None otherwise.
        """
        pool = self._keep(event, origin)
        if self._count < len(self._kinds) or len(pool) > len(self._kinds):
            return None  # too few events in all, or this pool had enough before
        taken = self._match()
        complete: list[Any] = [None] * len(self._kinds)
        if None in taken:
            return None
        for places in {places for places in taken if places is not None}:
            for place in places:
                if taken[place] == places:
                    complete[place] = self._pools[places].popleft()
            if not self._pools[places]:
                del self._pools[places]
        self._count -= len(complete)
        events, origins = zip(*complete, strict=True)
        return events, origins

    def _keep(self, event: Event, origin: Origin) -> deque[tuple[Event, Origin]]:
        mro = type(event).__mro__
        fitting = [place for place, kind in enumerate(self._kinds) if kind in mro]
        fitting.sort(key=lambda place: mro.index(self._kinds[place]))
        pool = self._pools.setdefault(tuple(fitting), deque())
        pool.append((event, origin))
        self._count += 1
        return pool

    def _match(self) -> list[Places | None]:
        """Return the pool that fills each parameter, or None; a maximum bipartite matching.

        Each parameter that finds its pools exhausted asks the parameters that were filled from
        them to move to another pool.
        """
        taken: list[Places | None] = [None] * len(self._kinds)
        room = {places: len(pool) for places, pool in self._pools.items()}
        pools = sorted(self._pools, key=len)  # prefer events that fit few parameters

        def fill(place: int, tried: set[Places]) -> bool:
            for places in pools:
                if place not in places or places in tried:
                    continue
                tried.add(places)
                if room[places]:
                    room[places] -= 1
                    taken[place] = places
                    return True
                for other in [n for n, by in enumerate(taken) if by == places]:
                    if fill(other, tried):
                        taken[place] = places
                        return True
            return False

        for place in range(len(self._kinds)):
            fill(place, set())
        return taken

    @property
    def queues(self) -> tuple[list[tuple[Event, Origin]], ...]:
        """The waiting events with their origins, by the parameter of the nearest class."""
        queues: tuple[list[tuple[Event, Origin]], ...] = tuple([] for _ in self._kinds)
        for places, pool in self._pools.items():
            queues[places[0]].extend(pool)
        return queues

    def fill(self, queues: Iterable[Iterable[tuple[Event, Origin]]]) -> None:
        """Replace the waiting events with those of a snapshot."""
        self._pools.clear()
        self._count = 0
        for queue in queues:
            for event, origin in queue:
                self._keep(event, origin)

    @property
    def is_complete(self) -> bool:
        """Whether all parameters can be filled. After :meth:`add` they never can."""
        return None not in self._match()

    def missing(self) -> list[str]:
        """Return the names of the classes still lacking; empty where no event waits."""
        return [kind.__name__ for kind in self.missing_kinds()]

    def missing_kinds(self) -> Iterator[type[Event]]:
        """Yield the classes still lacking; none where no event waits."""
        if self._count:
            taken = self._match()
            yield from (k for k, by in zip(self._kinds, taken, strict=True) if by is None)


class Entry:
    """An event in a buffer, compared by identity: a buffer can hold the same event twice."""

    __slots__ = ("event",)

    def __init__(self, event: Event) -> None:
        self.event = event


class EventBuffer:
    """One buffer of ``ctx.collect_events``.

    Attributes:
        expected: The classes of the last call, in order.
    """

    __slots__ = ("_count", "_has_left", "_kept", "expected")

    def __init__(self) -> None:
        self._kept: dict[type[Event], deque[Entry]] = {}
        self._count = 0
        #: Whether it has ignored an event since it was last complete.
        self._has_left = False
        self.expected: Sequence[type[Event]] = ()

    def add(
        self, event: Event, expected: Sequence[type[Event]]
    ) -> tuple[Entry | None, list[Entry] | None]:
        """Keep ``event``, and :meth:`take` the expected ones if that completes them.

        An event of no expected class is ignored.

        Returns:
            The event's entry, and the expected entries in order; None for each that there is not.
        """
        kind = self.class_for(event, expected)
        if kind is None:
            return None, (None if expected else [])
        entry = Entry(event)
        self._keep(entry)
        return entry, self.take(expected)

    def class_for(self, event: Event, expected: Sequence[type[Event]]) -> type[Event] | None:
        """Return the expected class that ``event`` counts for, or None where there is none.

        Raises:
            TypeError: ``expected`` is not a list of classes.
        """
        kind = type(event)
        if expected is self.expected and kind in self._kept:
            return kind  # the search is linear in ``expected``, so it is done once
        if expected is not self.expected:
            _check_expected(expected)
            self.expected = expected
        found = _expected_class(kind, expected)
        self._has_left |= found is None
        return found

    def _keep(self, entry: Entry, *, first: bool = False) -> None:
        kind = type(entry.event)
        if kind not in self._kept:
            kind = _expected_class(kind, self.expected) or kind
        kept = self._kept.setdefault(kind, deque())
        (kept.appendleft if first else kept.append)(entry)
        self._count += 1

    def take(self, expected: Sequence[type[Event]]) -> list[Entry] | None:
        """Take out all expected events, in that order; return None unless all are there."""
        # Counting by class is linear, so it is done only once enough events are there.
        if self._count < len(expected):
            return None
        needed = Counter(expected)
        if any(len(self._kept.get(k, ())) < n for k, n in needed.items()):
            return None
        self._count -= len(expected)
        self._has_left = False
        return [self._kept[k].popleft() for k in expected]

    def undo(self, entry: Entry | None, completed: Sequence[Entry] | None) -> bool:
        """Undo an :meth:`add`: remove ``entry``, and put back the entries that it completed.

        Returns:
            False if a later call has taken the event out, so that it cannot be removed.
        """
        for other in reversed(completed or ()):
            if other is not entry:
                self._keep(other, first=True)
        if any(other is entry for other in completed or ()):
            return True
        for kept in self._kept.values():  # the set was completed with older events than this one
            if entry is not None and entry in kept:
                kept.remove(entry)
                self._count -= 1
                return True
        return False

    @property
    def is_waiting(self) -> bool:
        """Whether an event waits in it."""
        return self._count > 0

    def events(self) -> Iterator[Event]:
        """Yield the waiting events."""
        for kept in self._kept.values():
            yield from (entry.event for entry in kept)

    def fill(self, events: Iterable[Event], expected: Sequence[type[Event]]) -> None:
        """Put in the events of a snapshot."""
        self.expected = expected
        for event in events:
            self._keep(Entry(event))

    def missing(self) -> Iterator[tuple[type[Event], int]]:
        """Yield each class still lacking and the number; nothing before the first event."""
        if self.is_waiting or self._has_left:
            for kind, needed in Counter(self.expected).items():
                lacking = needed - len(self._kept.get(kind, ()))
                if lacking > 0:
                    yield kind, lacking


def _check_expected(expected: object) -> None:
    is_list = isinstance(expected, list | tuple)
    if not is_list or not all(isinstance(k, type) for k in cast("list[object]", expected)):
        shown = cast("object", expected)
        msg = (
            f"collect_events() cannot expect {brief(shown)}; expected a list of event classes: "
            "`ctx.collect_events(ev, [A, A, B])`"
        )
        raise TypeError(msg)


def _expected_class(kind: type[Event], expected: Sequence[Any]) -> type[Event] | None:
    if kind in expected:
        return kind
    return next((candidate for candidate in expected if issubclass(kind, candidate)), None)
