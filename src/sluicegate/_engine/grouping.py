"""How groups end, are cancelled, and take over what a step that failed should have made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate._engine.lineage import SLACK, BranchNode


if TYPE_CHECKING:
    from collections import OrderedDict, deque
    from collections.abc import Callable

    from sluicegate._definition.steps import Step
    from sluicegate._engine.joins import EventBuffer, PairJoin
    from sluicegate._engine.waits import Absence
    from sluicegate._events import Event
    from sluicegate._loop import Inbox


class StepQueue:
    """A step within one run: its inbox and how many work at it."""

    __slots__ = (
        "away",
        "buffers",
        "delayed",
        "inbox",
        "index",
        "limit",
        "pair_join",
        "pending",
        "ready",
        "returning",
        "running",
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
        self.ready: (
            list[tuple[Any, BranchNode | None]] | deque[tuple[Any, BranchNode | None]] | None
        ) = None
        self.inbox: Inbox | None = None
        self.buffers: dict[str, EventBuffer] | None = None
        self.pair_join: PairJoin | None = None
        #: What a join of one each was left with when the fan-out that it was in ended.
        self.unmatched: PairJoin | None = None
        #: Deliveries that wait for the time of their next attempt, each with its group.
        self.delayed: dict[Any, BranchNode | None] | None = None

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
        queues: list[StepQueue]
        _cancel_scope: Callable[[Any, str], None]

        def _enqueue(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None: ...
        def end_rest(self, step: object, *, is_strict: bool) -> None: ...

    def recoveries(self, handler: int, node: BranchNode | None) -> int:
        """Return how often what came to this was already recovered by the step ``handler``."""
        for around in node.upward() if node is not None else ():
            if around.recoveries is not None:
                return around.recoveries.get(handler, 0)
        return 0

    def recover(self, handler: int, event: Event, node: BranchNode | None) -> None:
        """Give the step ``handler`` a failure; what it returns takes the place of what failed."""
        known: dict[int, int] = {}
        for around in node.upward() if node is not None else ():
            if around.recoveries is not None:
                known = around.recoveries
                break
        # It takes the place of what nobody can address any more, a recovery before it or a branch
        # that nobody holds: or a long loop of them would grow.
        parent = node
        while parent is not None and not (parent.joins or parent.is_held):
            if parent.cancel_record is not None and parent.cancel_record.waiters:
                break
            parent = parent.parent
        node = BranchNode(parent, ())
        node.recoveries = {**known, handler: known.get(handler, 0) + 1}
        if parent is not None:
            parent.live += 1
            if parent.cancel_record is not None:
                node.begin_tracking()
        self._enqueue(self.queues[handler], event, node)

    def _count_off(self, node: BranchNode | None) -> None:
        self.alive -= 1
        if node is not None:
            self._leave(node)

    def _leave(self, node: BranchNode) -> None:
        node.live -= 1
        if not node.live:
            self._close(node)

    def _close(self, node: BranchNode) -> None:
        """End a group of which nothing is left: its joins run, in the group around it."""
        while True:
            node.is_over = True
            parent = node.parent
            cancel_record = node.cancel_record
            if cancel_record is None or cancel_record.reason is None:
                self._run_joins(node, parent)
            if cancel_record is not None:
                if parent is not None and parent.cancel_record is not None:
                    parent.cancel_record.children.pop(node, None)
                for waiter in cancel_record.waiters:
                    waiter.wake()
                for step in cancel_record.resting:
                    self.branch_waits -= 1
                    self.end_rest(step, is_strict=True)
                cancel_record.resting = ()
            if parent is None:
                return
            parent.live -= 1
            if parent.live:
                return
            node = parent

    def _run_joins(self, node: BranchNode, parent: BranchNode | None) -> None:
        for index, pair_join in (node.pair_joins or {}).items():
            if pair_join.missing():
                self.queues[index].unmatched = pair_join
        for join, events in node.collected.items():
            if events is not None:
                self._enqueue(self.queues[join], events, parent)

    def _admit(self, node: BranchNode) -> BranchNode | None:
        """Take a delivery out of its inbox; return the group in which it counts from now on.

        A branch that nobody holds is none any more, and what came of it belongs to the group
        around it: so a loop of steps that send leaves no chain of branches behind.
        """
        if node.cancel_record is not None:
            node.cancel_record.queued -= 1
        while not node.is_needed:
            cancel_record = node.cancel_record
            if node.is_held or (cancel_record is not None and cancel_record.waiters):
                if cancel_record is None:
                    # Nothing of it has run yet: all that is alive of it waits.
                    node.begin_tracking(node.live - 1)
                if node.slack < 0:
                    self._shorten(node)
                break
            parent = node.parent
            if parent is not None:
                parent.live += 1
            self._leave(node)
            if parent is None:
                return None
            node = parent
        return node

    def _shorten(self, node: BranchNode) -> None:
        """Take the branches out from above ``group`` that nobody holds any more.

        The walk goes all the way up, past those that somebody still holds: in a loop of steps
        that send, a step may end after the next one began. It is due again when the line has
        grown by as much as it goes up now, so it costs a constant time per branch.
        """
        depth = 0
        inner = node
        while inner.parent is not None:
            around = inner.parent
            cancel_record = around.cancel_record
            if (
                around.is_needed
                or around.is_held
                or (
                    cancel_record is not None
                    and (cancel_record.waiters or cancel_record.reason is not None)
                )
            ):
                inner = around
                depth += 1
                continue
            if cancel_record is not None:
                cancel_record.children.pop(inner, None)
            parent = inner.parent = around.parent
            if parent is not None:
                parent.live += 1
                if parent.cancel_record is not None:
                    parent.cancel_record.children[inner] = None
            self._leave(around)
        node.slack = depth + SLACK

    def cancel(self, node: BranchNode, reason: str) -> None:
        """Cancel a group and all that came of it: what waits is dropped, what runs is told."""
        if node.is_over or node.is_cancelled:
            return
        if node.cancel_record is None:
            node.begin_tracking(node.live)  # nothing of it has run yet
        nodes = [found for found in node.downward() if not found.is_over]
        for found in nodes:
            assert found.cancel_record is not None
            found.cancel_record.reason = reason
        for found in reversed(nodes):
            cancel_record = found.cancel_record
            assert cancel_record is not None
            for scope in tuple(cancel_record.running):
                self._cancel_scope(scope, reason)
            if cancel_record.queued:
                self.alive -= cancel_record.queued
                found.live -= cancel_record.queued
                cancel_record.queued = 0
                if not found.live and not found.is_over:
                    self._close(found)
