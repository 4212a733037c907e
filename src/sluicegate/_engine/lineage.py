"""Lineage: which deliveries stem from which list or sent event.

Each returned list that ends in a join and each event that was sent gets a :class:`BranchNode`.
The node lives as long as deliveries below it wait or run. The machine runs a fan-out's joins when
its node ends, and cancels a branch through the :class:`CancelRecord` of its node. Nodes that
no step can address any more are removed, so a loop of steps that send does not grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sluicegate._engine.joins import PairJoin
    from sluicegate._events import Event
    from sluicegate._loop import Waiter


#: How deep branches that no step holds may be nested before the machine removes them.
SLACK = 8


class BranchNode:
    """A returned list or a sent event, with every delivery that stems from it.

    Args:
        parent: The node in which the step ran that returned the list or sent the event.
        joins: The joins in which a fan-out ends; a branch has none.
        is_held: Whether a step holds the branch, and can still cancel it or wait for it.
    """

    __slots__ = (
        "cancel_record",
        "collected",
        "is_held",
        "is_over",
        "joins",
        "live",
        "pair_joins",
        "parent",
        "recoveries",
        "slack",
    )

    def __init__(
        self, parent: BranchNode | None, joins: tuple[int, ...], *, is_held: bool = False
    ) -> None:
        self.parent = parent
        self.joins = joins
        #: The number of its deliveries that wait or run, plus the number of its open child nodes.
        self.live = 0
        #: The events that each join has got; None for a join that has its first n and has run.
        self.collected: dict[int, list[Event] | None] = {join: [] for join in joins}
        #: The events that joins of one event per parameter have so far in this fan-out.
        self.pair_joins: dict[int, PairJoin[BranchNode | None]] | None = None
        self.is_held = is_held
        #: Present only where a step can cancel the node.
        self.cancel_record: CancelRecord | None = None
        #: How often each failure handler has recovered this lineage, if one has.
        self.recoveries: dict[int, int] | None = None
        #: How many more nodes may be nested below before the machine shortens the chain.
        self.slack: int = SLACK if parent is None else parent.slack - 1
        self.is_over = False

    @property
    def is_needed(self) -> bool:
        """Whether this is more than a branch: a fan-out, or a handler's recovery."""
        return bool(self.joins) or self.recoveries is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether this node, or one above it, was cancelled."""
        return self.cancel_record is not None and self.cancel_record.reason is not None

    @property
    def is_awaited(self) -> bool:
        """Whether a step waits for the end of this branch."""
        return self.cancel_record is not None and bool(self.cancel_record.waiters)

    def begin_tracking(self, queued: int = 0) -> CancelRecord:
        """Give the node a cancel record, unless it has one.

        Args:
            queued: How many of its deliveries wait at this moment.
        """
        if self.cancel_record is None:
            self.cancel_record = CancelRecord(queued)
            if self.parent is not None and self.parent.cancel_record is not None:
                self.parent.cancel_record.children[self] = None
        return self.cancel_record

    def fan_out(self) -> BranchNode | None:
        """Return the innermost fan-out at or above this node."""
        node: BranchNode | None = self
        while node is not None and not node.joins:
            node = node.parent
        return node

    def ending_in(self, join: int) -> BranchNode | None:
        """Return the innermost fan-out, at or above this node, that ends in ``join``."""
        node: BranchNode | None = self
        while node is not None and join not in node.joins:
            node = node.parent
        return node

    def known_recoveries(self) -> dict[int, int]:
        """Return how often each handler has recovered the nearest recovered node at or above it."""
        for node in self.upward():
            if node.recoveries is not None:
                return node.recoveries
        return {}

    def upward(self) -> Iterator[BranchNode]:
        """Yield this node and all above it, innermost first."""
        node: BranchNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def downward(self) -> list[BranchNode]:
        """Return this node and all tracked nodes below it, parents first."""
        found: list[BranchNode] = [self]
        for node in found:
            if node.cancel_record is not None:
                found.extend(node.cancel_record.children)
        return found


class CancelRecord:
    """The state needed to cancel a node, and to wait for its end.

    Args:
        queued: How many of the node's deliveries wait.
    """

    __slots__ = (
        "children",
        "errors",
        "is_reported",
        "number",
        "queued",
        "reason",
        "resting",
        "running",
        "waiters",
    )

    def __init__(self, queued: int) -> None:
        #: The tracked nodes below, in the order in which they opened.
        self.children: dict[BranchNode, None] = {}
        #: How many of its deliveries wait in inboxes or for a worker.
        self.queued = queued
        #: The cancel scopes of its running invocations.
        self.running: dict[Any, None] = {}
        #: Why the node was cancelled; None as long as it was not.
        self.reason: str | None = None
        #: The number of its cancellation in the records of the run; 0 where there are none.
        self.number = 0
        #: Failures in the node while a step waited for its end.
        self.errors: list[BaseException] = []
        #: Whether a waiter has raised those failures.
        self.is_reported = False
        #: The waiters of the steps that wait for its end.
        self.waiters: list[Waiter] = []
        #: Of these steps, those that nothing but its end lets continue.
        self.resting: list[object] | tuple[()] = ()


def meeting_point(nodes: Iterable[BranchNode | None]) -> BranchNode | None:
    """Return the innermost open node that contains all ``nodes``; None for no node."""
    common: list[BranchNode] | None = None
    for node in nodes:
        line = [] if node is None else list(node.upward())
        common = line if common is None else [n for n in common if n in line]
    return next((node for node in common or () if not node.is_over), None)
