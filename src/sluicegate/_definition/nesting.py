"""Nesting: in which joins each fan-out ends, and which fan-outs lie inside which.

Fan-outs and joins nest like brackets: a join that an event reaches ends the innermost fan-out that
is still open around the event. Both questions are unions over everything that a step leads to, so
each is solved as a system of equations over the steps and the event classes. Sets of steps are
integers with one bit for each step. An equation is solved again only when a set that it reads has
grown, the deepest first; so the work grows with the graph, however deep its fan-outs are nested.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, TypeAlias


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sluicegate._definition.steps import Step
    from sluicegate._events import Event

    #: A step, by its number, or a class of events.
    Node: TypeAlias = int | type[Event]
    Read: TypeAlias = Callable[[Node], int]


class Nesting:
    """The fan-outs of one graph.

    Args:
        steps: The steps.
        reached_by: The steps that an event declared as a class can reach.
        handlers: For each step, the step that handles its failures, if there is one.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        reached_by: Callable[[type[Event]], Sequence[int]],
        handlers: Mapping[int, int],
    ) -> None:
        self._steps = steps
        self._reached_by = reached_by
        self._handlers = handlers
        self._ends: dict[Node, int] = {}
        if any(step.fans_out for step in steps):
            self._order = self._deepest_first()
            self._ends = _solve(self._order, self._find_ends)

    def joins_of(self, step: Step) -> tuple[int, ...]:
        """Return the joins in which a fan-out of ``step`` ends."""
        found = 0
        for kind in step.fans_out:
            found |= self._ends[kind]
        return tuple(_members(found))

    def overlaps(self, joins: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
        """Return the fan-outs that end in the same join although one lies inside the other.

        Each inner fan-out appears once, with the nearest one around it.

        Args:
            joins: For each step, the joins in which its fan-outs end.

        Returns:
            The numbers of the outer fan-out, of the inner one and of the join.
        """
        fed_by: dict[int, int] = {}
        for index, ended in enumerate(joins):
            for join in ended:
                fed_by[join] = fed_by.get(join, 0) | 1 << index
        shared = {join: mask for join, mask in fed_by.items() if mask & (mask - 1)}
        if not shared:
            return []
        inside = _solve(self._order, self._find_inner)
        found: list[tuple[int, int, int]] = []
        for join, mask in shared.items():
            inner: dict[int, int] = {}
            for outer in _members(mask):
                reached = 0
                for kind in self._steps[outer].fans_out:
                    reached |= inside[kind]
                inner[outer] = reached & mask & ~(1 << outer)
            untold = mask
            for outer in sorted(inner, key=lambda each: inner[each].bit_count()):
                found += [(outer, each, join) for each in _members(inner[outer] & untold)]
                untold &= ~inner[outer]
        return sorted(found)

    # -- the equations ---------------------------------------------------------------------

    def _find_ends(self, node: Node, read: Read) -> int:
        """Return the joins, reached from ``node``, that end the fan-out around it."""
        found = 0
        if not isinstance(node, int):
            for target in self._reached_by(node):
                found |= 1 << target if self._steps[target].takes == "list" else read(target)
            return found
        step = self._steps[node]
        for kind in step.returns:
            found |= read(kind)
        for kind in step.fans_out:
            for join in _members(read(kind)):
                found |= read(join)
        if node in self._handlers:
            found |= read(self._handlers[node])
        return found

    def _find_inner(self, node: Node, read: Read) -> int:
        """Return the fan-outs that begin after ``node``, before the fan-out around it ends."""
        found = 0
        if not isinstance(node, int):
            for target in self._reached_by(node):
                if self._steps[target].takes != "list":
                    found |= self._own(target) | read(target)
            return found
        step = self._steps[node]
        for kind in (*step.returns, *step.fans_out):
            found |= read(kind)
        for kind in step.fans_out:
            for join in _members(self._ends[kind]):
                found |= self._own(join) | read(join)
        if node in self._handlers:
            found |= self._own(self._handlers[node]) | read(self._handlers[node])
        return found

    def _own(self, index: int) -> int:
        return 1 << index if self._steps[index].fans_out else 0

    def _deepest_first(self) -> list[Node]:
        """Return all steps and classes, each after those that it leads to, except in circles."""
        order: dict[Node, None] = {}
        entered: set[Node] = set()
        for root in range(len(self._steps)):
            todo: list[tuple[Node, bool]] = [(root, False)]
            while todo:
                node, is_left = todo.pop()
                if is_left:
                    order[node] = None
                elif node not in entered:
                    entered.add(node)
                    todo.append((node, True))
                    todo += [(other, False) for other in self._following(node)]
        return list(order)

    def _following(self, node: Node) -> Iterator[Node]:
        if not isinstance(node, int):
            yield from self._reached_by(node)
            return
        step = self._steps[node]
        yield from step.returns
        yield from step.fans_out
        if node in self._handlers:
            yield self._handlers[node]


def _solve(order: Sequence[Node], equation: Callable[[Node, Read], int]) -> dict[Node, int]:
    """Return the least sets that satisfy ``equation`` for each node; it can only unite sets."""
    values: dict[Node, int] = dict.fromkeys(order, 0)
    readers: dict[Node, set[int]] = {node: set() for node in order}
    waiting = list(range(len(order)))
    heapify(waiting)
    is_waiting = [True] * len(order)

    def read(other: Node) -> int:
        readers[other].add(place)
        return values[other]

    while waiting:
        place = heappop(waiting)
        is_waiting[place] = False
        node = order[place]
        value = equation(node, read)
        if value != values[node]:
            values[node] = value
            for reader in readers[node]:
                if not is_waiting[reader]:
                    is_waiting[reader] = True
                    heappush(waiting, reader)
    return values


def _members(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set, the lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
