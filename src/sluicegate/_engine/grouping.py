"""How groups end, are cancelled, and take over what a step that failed should have made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate._engine.lineage import SLACK, Group


if TYPE_CHECKING:
    from collections import OrderedDict, deque
    from collections.abc import Callable

    from sluicegate._definition.steps import Step
    from sluicegate._engine.joins import Collection, Slots
    from sluicegate._engine.waits import Absence
    from sluicegate._events import Event
    from sluicegate._loop import Inbox


class Station:
    """A step within one run: its inbox and how many work at it."""

    __slots__ = (
        "away",
        "collections",
        "delayed",
        "inbox",
        "index",
        "limit",
        "pending",
        "ready",
        "returning",
        "running",
        "slots",
        "step",
        "unmatched",
    )

    def __init__(self, step: Step) -> None:
        self.step = step
        self.index = step.index
        self.limit = step.num_workers
        #: Workers that run it or are about to. More than the limit where one was cancelled in its
        #: wait, and had to continue at once.
        self.running = 0
        #: Invocations that have given up their place, and those of them that want one again.
        self.away = 0
        self.returning: OrderedDict[Absence, None] | None = None
        #: Why a worker that is done must come to :meth:`Machine.take`. Deliveries that wait: those
        #: for workers about to start, and, when no more may start, the rest in the inbox, which is
        #: opened only then. Then those that return; and the workers that are too many.
        self.pending = 0
        #: Made when it is needed: of many runs at once, each object counts.
        self.ready: list[tuple[Any, Group | None]] | deque[tuple[Any, Group | None]] | None = None
        self.inbox: Inbox | None = None
        self.collections: dict[str, Collection] | None = None
        self.slots: Slots | None = None
        #: What a join of one each was left with when the fan-out that it was in ended.
        self.unmatched: Slots | None = None
        #: Deliveries that wait for the time of their next attempt, each with its group.
        self.delayed: dict[Any, Group | None] | None = None

    @property
    def in_inbox(self) -> int:
        """How many deliveries wait in the inbox."""
        others = len(self.ready or ()) + len(self.returning or ())
        return self.pending - others - max(self.running - self.limit, 0)

    @property
    def begun(self) -> int:
        """How many invocations have begun, or are about to, and do not queue for their place."""
        return self.running + self.away - len(self.returning or ())


class Groups:
    """The part of the machine that knows what came of what."""

    __slots__ = ("alive", "branch_waits")

    if TYPE_CHECKING:
        alive: int
        branch_waits: int
        stations: list[Station]
        _cancel_scope: Callable[[Any, str], None]

        def _enqueue(self, station: Station, event: Any, group: Group | None) -> None: ...
        def end_rest(self, step: object, *, is_strict: bool) -> None: ...

    def recoveries(self, handler: int, group: Group | None) -> int:
        """Return how often what came to this was already recovered by the step ``handler``."""
        for around in group.upward() if group is not None else ():
            if around.recoveries is not None:
                return around.recoveries.get(handler, 0)
        return 0

    def recover(self, handler: int, event: Event, group: Group | None) -> None:
        """Give the step ``handler`` a failure; what it returns takes the place of what failed."""
        known: dict[int, int] = {}
        for around in group.upward() if group is not None else ():
            if around.recoveries is not None:
                known = around.recoveries
                break
        # It takes the place of what nobody can address any more, a recovery before it or a branch
        # that nobody holds: or a long loop of them would grow.
        parent = group
        while parent is not None and not (parent.joins or parent.is_held):
            if parent.track is not None and parent.track.waiters:
                break
            parent = parent.parent
        node = Group(parent, ())
        node.recoveries = {**known, handler: known.get(handler, 0) + 1}
        if parent is not None:
            parent.live += 1
            if parent.track is not None:
                node.begin_tracking()
        self._enqueue(self.stations[handler], event, node)

    def _count_off(self, group: Group | None) -> None:
        self.alive -= 1
        if group is not None:
            self._leave(group)

    def _leave(self, group: Group) -> None:
        group.live -= 1
        if not group.live:
            self._close(group)

    def _close(self, group: Group) -> None:
        """End a group of which nothing is left: its joins run, in the group around it."""
        while True:
            group.is_over = True
            parent = group.parent
            track = group.track
            if track is None or track.reason is None:
                self._run_joins(group, parent)
            if track is not None:
                if parent is not None and parent.track is not None:
                    parent.track.children.pop(group, None)
                for waiter in track.waiters:
                    waiter.wake()
                for step in track.resting:
                    self.branch_waits -= 1
                    self.end_rest(step, is_strict=True)
                track.resting = ()
            if parent is None:
                return
            parent.live -= 1
            if parent.live:
                return
            group = parent

    def _run_joins(self, group: Group, parent: Group | None) -> None:
        for index, slots in (group.slots or {}).items():
            if slots.missing():
                self.stations[index].unmatched = slots
        for join, events in group.collected.items():
            if events is not None:
                self._enqueue(self.stations[join], events, parent)

    def _admit(self, group: Group) -> Group | None:
        """Take a delivery out of its inbox; return the group in which it counts from now on.

        A branch that nobody holds is none any more, and what came of it belongs to the group
        around it: so a loop of steps that send leaves no chain of branches behind.
        """
        if group.track is not None:
            group.track.queued -= 1
        while not group.is_needed:
            track = group.track
            if group.is_held or (track is not None and track.waiters):
                if track is None:
                    # Nothing of it has run yet: all that is alive of it waits.
                    group.begin_tracking(group.live - 1)
                if group.slack < 0:
                    self._shorten(group)
                break
            parent = group.parent
            if parent is not None:
                parent.live += 1
            self._leave(group)
            if parent is None:
                return None
            group = parent
        return group

    def _shorten(self, group: Group) -> None:
        """Take the branches out from above ``group`` that nobody holds any more.

        The walk goes all the way up, past those that somebody still holds: in a loop of steps
        that send, a step may end after the next one began. It is due again when the line has
        grown by as much as it goes up now, so it costs a constant time per branch.
        """
        depth = 0
        inner = group
        while inner.parent is not None:
            around = inner.parent
            track = around.track
            if (
                around.is_needed
                or around.is_held
                or (track is not None and (track.waiters or track.reason is not None))
            ):
                inner = around
                depth += 1
                continue
            if track is not None:
                track.children.pop(inner, None)
            parent = inner.parent = around.parent
            if parent is not None:
                parent.live += 1
                if parent.track is not None:
                    parent.track.children[inner] = None
            self._leave(around)
        group.slack = depth + SLACK

    def cancel(self, group: Group, reason: str) -> None:
        """Cancel a group and all that came of it: what waits is dropped, what runs is told."""
        if group.is_over or group.is_cancelled:
            return
        if group.track is None:
            group.begin_tracking(group.live)  # nothing of it has run yet
        groups = [found for found in group.downward() if not found.is_over]
        for found in groups:
            assert found.track is not None
            found.track.reason = reason
        for found in reversed(groups):
            track = found.track
            assert track is not None
            for scope in tuple(track.running):
                self._cancel_scope(scope, reason)
            if track.queued:
                self.alive -= track.queued
                found.live -= track.queued
                track.queued = 0
                if not found.live and not found.is_over:
                    self._close(found)
