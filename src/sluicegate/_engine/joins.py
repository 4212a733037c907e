"""Where events come together: joins of one each, and collections."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sluicegate._engine.lineage import meeting_point
from sluicegate._errors import brief


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sluicegate._engine.lineage import BranchNode
    from sluicegate._events import Event


#: The places of a join that an event may take, the one of the nearest class first.
Places: TypeAlias = tuple[int, ...]


class PairJoin:
    """A join of one event for each parameter, ``a: A, b: B``; further ones wait in order.

    Events that may take the same places wait in one pool, in the order in which they came. Which
    event takes which place is decided when all places can be taken: so none is kept from a place
    by one that could have taken another.
    """

    __slots__ = ("_count", "_kinds", "_pools")

    def __init__(self, kinds: tuple[type[Event], ...]) -> None:
        self._kinds = kinds
        self._pools: dict[Places, deque[tuple[Event, BranchNode | None]]] = {}
        self._count = 0

    def add(
        self, event: Event, node: BranchNode | None
    ) -> tuple[tuple[Event, ...], BranchNode | None] | None:
        """Add an event; where all places can be taken, return what takes them, and its group.

        Of the events that may take several places, the oldest takes that of its nearest class, or
        the first one where several parameters have the same class.
        """
        pool = self._keep(event, node)
        if self._count < len(self._kinds) or len(pool) > len(self._kinds):
            return None  # fewer cannot be enough, and the pool had enough before
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
        return tuple(event for event, _ in complete), meeting_point(node for _, node in complete)

    def _keep(
        self, event: Event, node: BranchNode | None
    ) -> deque[tuple[Event, BranchNode | None]]:
        mro = type(event).__mro__
        fitting = [place for place, kind in enumerate(self._kinds) if kind in mro]
        fitting.sort(key=lambda place: mro.index(self._kinds[place]))
        pool = self._pools.setdefault(tuple(fitting), deque())
        pool.append((event, node))
        self._count += 1
        return pool

    def _match(self) -> list[Places | None]:
        """Return for each place the pool that it is filled from; as many places as possible."""
        taken: list[Places | None] = [None] * len(self._kinds)
        room = {places: len(pool) for places, pool in self._pools.items()}
        pools = sorted(self._pools, key=len)  # those that fit elsewhere are kept for elsewhere

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
    def queues(self) -> tuple[list[tuple[Event, BranchNode | None]], ...]:
        """The waiting events, by the place of the nearest class."""
        queues: tuple[list[tuple[Event, BranchNode | None]], ...] = tuple([] for _ in self._kinds)
        for places, pool in self._pools.items():
            queues[places[0]].extend(pool)
        return queues

    def fill(self, queues: Iterable[Iterable[tuple[Event, BranchNode | None]]]) -> None:
        """Put in what a snapshot has kept, in the place of what there is."""
        self._pools.clear()
        self._count = 0
        for queue in queues:
            for event, node in queue:
                self._keep(event, node)

    @property
    def is_complete(self) -> bool:
        """Whether all places could be taken; after :meth:`add` they never can."""
        return None not in self._match()

    def missing(self) -> list[str]:
        """Name the classes still lacking; empty where nothing waits."""
        return [kind.__name__ for kind in self.missing_kinds()]

    def missing_kinds(self) -> Iterator[type[Event]]:
        """Yield the classes still lacking."""
        if self._count:
            taken = self._match()
            yield from (k for k, by in zip(self._kinds, taken, strict=True) if by is None)


class Entry:
    """An event in a buffer. One event may be given to a buffer twice, and stands there twice."""

    __slots__ = ("event",)

    def __init__(self, event: Event) -> None:
        self.event = event


class EventBuffer:
    """One buffer of ``ctx.collect_events``."""

    __slots__ = ("_count", "_has_left", "_kept", "expected")

    def __init__(self) -> None:
        self._kept: dict[type[Event], deque[Entry]] = {}
        self._count = 0
        #: Whether it has left an event alone since it was last complete.
        self._has_left = False
        self.expected: Sequence[type[Event]] = ()

    def add(
        self, event: Event, expected: Sequence[type[Event]]
    ) -> tuple[Entry | None, list[Entry] | None]:
        """Keep ``event``; return its entry, and all expected ones, in order, once they are there.

        An event of no expected class is left alone.
        """
        kind = self.class_for(event, expected)
        if kind is None:
            return None, (None if expected else [])
        entry = Entry(event)
        self._keep(entry)
        return entry, self.take(expected)

    def class_for(self, event: Event, expected: Sequence[type[Event]]) -> type[Event] | None:
        """Return the expected class that ``event`` is kept for, or None where it is of none.

        Raises:
            TypeError: ``expected`` is no list of classes.
        """
        kind = type(event)
        if expected is self.expected and kind in self._kept:
            return kind  # looking costs as much as there are, so look once
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
        """Take all expected ones, in that order, if they are there."""
        # Fewer than expected cannot be enough: counting by class waits until it can matter.
        if self._count < len(expected):
            return None
        needed = Counter(expected)
        if any(len(self._kept.get(k, ())) < n for k, n in needed.items()):
            return None
        self._count -= len(expected)
        self._has_left = False
        return [self._kept[k].popleft() for k in expected]

    def undo(self, entry: Entry | None, completed: Sequence[Entry] | None) -> bool:
        """Take back an :meth:`add`: ``entry`` goes, and what it completed is there again.

        Returns:
            False where the event has been given away since, and cannot be taken back.
        """
        for other in reversed(completed or ()):
            if other is not entry:
                self._keep(other, first=True)
        if any(other is entry for other in completed or ()):
            return True
        for kept in self._kept.values():  # what it completed may be older than its own
            if entry is not None and entry in kept:
                kept.remove(entry)
                self._count -= 1
                return True
        return False

    @property
    def is_waiting(self) -> bool:
        """Whether any event waits in it."""
        return self._count > 0

    def events(self) -> Iterator[Event]:
        """Yield what waits."""
        for kept in self._kept.values():
            yield from (entry.event for entry in kept)

    def fill(self, events: Iterable[Event], expected: Sequence[type[Event]]) -> None:
        """Put in what a snapshot has kept."""
        self.expected = expected
        for event in events:
            self._keep(Entry(event))

    def missing(self) -> Iterator[tuple[type[Event], int]]:
        """Yield each class still lacking, and how many; nothing where nothing came."""
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
            f"collect_events was told to expect {brief(shown)}; expected a list of event classes: "
            "`ctx.collect_events(ev, [A, A, B])`"
        )
        raise TypeError(msg)


def _expected_class(kind: type[Event], expected: Sequence[Any]) -> type[Event] | None:
    if kind in expected:
        return kind
    return next((candidate for candidate in expected if issubclass(kind, candidate)), None)
