"""Lineage: what came of what, as far as somebody may ask for it. Fan-outs and branches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sluicegate._engine.joins import PairJoin
    from sluicegate._events import Event
    from sluicegate._loop import Waiter


#: How many branches may be inside each other that nobody holds any more.
SLACK = 8


class BranchNode:
    """All that came of one returned list, or of one event that was sent, until nothing is left.

    ``live`` counts its deliveries that wait or run, and its own open groups, each for one.
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
        #: The joins in which a fan-out ends; a branch has none.
        self.joins = joins
        self.live = 0
        #: What each join has got; None once it has run.
        self.collected: dict[int, list[Event] | None] = {join: [] for join in joins}
        #: What joins of one each have so far within this fan-out.
        self.pair_joins: dict[int, PairJoin] | None = None
        #: Whether somebody holds the branch, and could still cancel it or wait for it.
        self.is_held = is_held
        #: What is needed to cancel it; None where nobody could.
        self.cancel_record: CancelRecord | None = None
        #: How often each handler of failures has been here, where one has.
        self.recoveries: dict[int, int] | None = None
        #: How many more there may be inside each other before the line is to be shortened.
        self.slack: int = SLACK if parent is None else parent.slack - 1
        self.is_over = False

    @property
    def is_needed(self) -> bool:
        """Whether this is more than a branch: a fan-out, or what a handler has recovered."""
        return bool(self.joins) or self.recoveries is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether this group, or one around it, was cancelled."""
        return self.cancel_record is not None and self.cancel_record.reason is not None

    def begin_tracking(self, queued: int = 0) -> CancelRecord:
        """Keep from now on what is needed to cancel this group."""
        if self.cancel_record is None:
            self.cancel_record = CancelRecord(queued)
            if self.parent is not None and self.parent.cancel_record is not None:
                self.parent.cancel_record.children[self] = None
        return self.cancel_record

    def fan_out(self) -> BranchNode | None:
        """Return the innermost fan-out that this is in, or is."""
        node: BranchNode | None = self
        while node is not None and not node.joins:
            node = node.parent
        return node

    def ending_in(self, join: int) -> BranchNode | None:
        """Return the innermost fan-out, this one or one around it, that ends in ``join``."""
        node: BranchNode | None = self
        while node is not None and join not in node.joins:
            node = node.parent
        return node

    def upward(self) -> Iterator[BranchNode]:
        """Yield this group and all around it, from the inside."""
        node: BranchNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def downward(self) -> list[BranchNode]:
        """Return this group and all tracked ones inside, parents first."""
        found: list[BranchNode] = [self]
        for node in found:
            if node.cancel_record is not None:
                found.extend(node.cancel_record.children)
        return found


class CancelRecord:
    """What it takes to cancel a group, and to wait for its end."""

    __slots__ = (
        "children",
        "errors",
        "is_reported",
        "queued",
        "reason",
        "resting",
        "running",
        "waiters",
    )

    def __init__(self, queued: int) -> None:
        self.children: dict[BranchNode, None] = {}
        #: How many of its deliveries wait in inboxes.
        self.queued = queued
        #: The cancel scopes of what runs.
        self.running: dict[Any, None] = {}
        #: Why it was cancelled, once it was.
        self.reason: str | None = None
        #: What failed in it while somebody waited for its end.
        self.errors: list[BaseException] = []
        #: Whether somebody was told of it.
        self.is_reported = False
        self.waiters: list[Waiter] = []
        #: The steps that wait for its end with nothing else that could let them go on.
        self.resting: list[object] | tuple[()] = ()


def meeting_point(nodes: Iterable[BranchNode | None]) -> BranchNode | None:
    """Return the innermost group, not yet over, that all of ``groups`` are in; None is outside."""
    common: list[BranchNode] | None = None
    for node in nodes:
        line = [] if node is None else list(node.upward())
        common = line if common is None else [g for g in common if g in line]
    return next((node for node in common or () if not node.is_over), None)
