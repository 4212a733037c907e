"""Lineage: what came of what, as far as somebody may ask for it. Fan-outs and branches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sluicegate._engine.joins import Slots
    from sluicegate._events import Event
    from sluicegate._loop import Waiter


#: How many branches may be inside each other that nobody holds any more.
SLACK = 8


class Group:
    """All that came of one returned list, or of one event that was sent, until nothing is left.

    ``live`` counts its deliveries that wait or run, and its own open groups, each for one.
    """

    __slots__ = (
        "collected",
        "is_held",
        "is_over",
        "joins",
        "live",
        "parent",
        "recoveries",
        "slack",
        "slots",
        "track",
    )

    def __init__(
        self, parent: Group | None, joins: tuple[int, ...], *, is_held: bool = False
    ) -> None:
        self.parent = parent
        #: The joins in which a fan-out ends; a branch has none.
        self.joins = joins
        self.live = 0
        #: What each join has got; None once it has run.
        self.collected: dict[int, list[Event] | None] = {join: [] for join in joins}
        #: What joins of one each have so far within this fan-out.
        self.slots: dict[int, Slots] | None = None
        #: Whether somebody holds the branch, and could still cancel it or wait for it.
        self.is_held = is_held
        #: What is needed to cancel it; None where nobody could.
        self.track: Track | None = None
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
        return self.track is not None and self.track.reason is not None

    def begin_tracking(self, queued: int = 0) -> Track:
        """Keep from now on what is needed to cancel this group."""
        if self.track is None:
            self.track = Track(queued)
            if self.parent is not None and self.parent.track is not None:
                self.parent.track.children[self] = None
        return self.track

    def fan_out(self) -> Group | None:
        """Return the innermost fan-out that this is in, or is."""
        group: Group | None = self
        while group is not None and not group.joins:
            group = group.parent
        return group

    def ending_in(self, join: int) -> Group | None:
        """Return the innermost fan-out, this one or one around it, that ends in ``join``."""
        group: Group | None = self
        while group is not None and join not in group.joins:
            group = group.parent
        return group

    def upward(self) -> Iterator[Group]:
        """Yield this group and all around it, from the inside."""
        group: Group | None = self
        while group is not None:
            yield group
            group = group.parent

    def downward(self) -> list[Group]:
        """Return this group and all tracked ones inside, parents first."""
        found: list[Group] = [self]
        for group in found:
            if group.track is not None:
                found.extend(group.track.children)
        return found


class Track:
    """What it takes to cancel a group, and to wait for its end."""

    __slots__ = (
        "children",
        "errors",
        "is_told",
        "queued",
        "reason",
        "resting",
        "running",
        "waiters",
    )

    def __init__(self, queued: int) -> None:
        self.children: dict[Group, None] = {}
        #: How many of its deliveries wait in inboxes.
        self.queued = queued
        #: The cancel scopes of what runs.
        self.running: dict[Any, None] = {}
        #: Why it was cancelled, once it was.
        self.reason: str | None = None
        #: What failed in it while somebody waited for its end.
        self.errors: list[BaseException] = []
        #: Whether somebody was told of it.
        self.is_told = False
        self.waiters: list[Waiter] = []
        #: The steps that wait for its end with nothing else that could let them go on.
        self.resting: list[object] | tuple[()] = ()


def meeting_point(groups: Iterable[Group | None]) -> Group | None:
    """Return the innermost group, not yet over, that all of ``groups`` are in; None is outside."""
    common: list[Group] | None = None
    for group in groups:
        line = [] if group is None else list(group.upward())
        common = line if common is None else [g for g in common if g in line]
    return next((group for group in common or () if not group.is_over), None)
