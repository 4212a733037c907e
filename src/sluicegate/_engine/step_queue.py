"""A step's queue in one run, and the places of its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol


if TYPE_CHECKING:
    from collections import OrderedDict, deque

    from sluicegate._definition.retries import Attempts
    from sluicegate._definition.steps import Step
    from sluicegate._engine.joins import EventBuffer, PairJoin
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._events import Event
    from sluicegate._loop import Inbox, Waiter


class Numbered:
    """A delivery of a durable run, in its step's queue in place of its event.

    Attributes:
        event: The event, the list or the tuple that the step gets.
        key: The number of the delivery in the run, the same for all its attempts; 0 for none.
        sequence: The number of the record that made it. No attempt begins before that is durable.
        number: The number of the attempt; the first is 1.
        attempts: The attempts before, if one has failed.
    """

    __slots__ = ("event", "key", "sequence")

    number: int = 1
    attempts: Attempts | None = None

    def __init__(self, event: Any, key: int, sequence: int) -> None:
        self.event = event
        self.key = key
        self.sequence = sequence


class CountsDeliveries(Protocol):
    """A run, as far as its deliveries are numbered."""

    made: int


def numbered(run: CountsDeliveries, payload: Any, sequence: int) -> Numbered:
    """Return a delivery with its number, which a new one gets; the record ``sequence`` has made it."""
    delivery = payload if isinstance(payload, Numbered) else Numbered(payload, 0, sequence)
    if not delivery.key:
        run.made += 1
        delivery.key = run.made
    delivery.sequence = sequence
    return delivery


class StepQueue:
    """The deliveries that wait at one step, and the count of workers that run it.

    A delivery waits in ``ready`` for a worker that is about to start, in ``inbox`` for a worker that
    finishes, or in ``delayed`` for the time of its next attempt. A join keeps events in ``buffers``
    or ``pair_join`` until they make a delivery.

    Containers are made when they are first needed: a process holds many idle runs, and each
    empty container would cost memory in every run.
    """

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
        #: How many workers may run the step at the same time.
        self.limit = step.num_workers
        #: Workers that run the step or are about to. It exceeds the limit while an invocation that
        #: was cancelled in a wait cleans up, because clean-up does not queue for a place.
        self.running = 0
        #: Invocations that have given up their place.
        self.away = 0
        #: Those of them that can continue and queue for a place, in order.
        self.returning: OrderedDict[Absence, None] | None = None
        #: How many reasons a worker that has finished has to call :meth:`Machine.take`: deliveries
        #: in ``ready`` and in the inbox, invocations in ``returning``, and workers over the limit.
        self.pending = 0
        #: Deliveries for workers that are about to start.
        self.ready: (
            list[tuple[Any, BranchNode | None]] | deque[tuple[Any, BranchNode | None]] | None
        ) = None
        #: Deliveries that wait until a worker finishes. Opened once no more worker may start.
        self.inbox: Inbox | None = None
        #: The buffers of ``ctx.collect_events``, by name.
        self.buffers: dict[str, EventBuffer] | None = None
        #: For a join of one event per parameter: the events that came outside of any fan-out.
        self.pair_join: PairJoin[BranchNode | None] | None = None
        #: The incomplete set that such a join had when the fan-out around it ended.
        self.unmatched: PairJoin[BranchNode | None] | None = None
        #: Deliveries that wait for the time of their next attempt, each with its node.
        self.delayed: dict[Any, BranchNode | None] | None = None

    @property
    def in_inbox(self) -> int:
        """How many deliveries wait in the inbox: the rest of ``pending``."""
        others = len(self.ready or ()) + len(self.returning or ())
        return self.pending - others - max(self.running - self.limit, 0)

    @property
    def begun(self) -> int:
        """How many invocations have begun or are about to, and do not queue for their place."""
        return self.running + self.away - len(self.returning or ())


class Absence:
    """An invocation that can give up its place at its step while it waits.

    It counts in ``running`` as long as it has its place, and in ``away`` otherwise. To continue it
    reclaims a place, for which it queues in ``returning`` if all are taken.

    Args:
        queue: The queue of its step; None where it keeps its place.
        waiter: Wakes the invocation.
    """

    __slots__ = ("event", "is_away", "queue", "waiter")

    def __init__(self, queue: StepQueue | None, waiter: Waiter) -> None:
        self.queue = queue
        self.waiter = waiter
        #: Whether it has given up its place and has not got one back.
        self.is_away = False
        #: The event that it waited for, once it has arrived.
        self.event: Event | None = None

    @property
    def is_queued(self) -> bool:
        """Whether it can continue, and queues for a place."""
        returning = None if self.queue is None else self.queue.returning
        return returning is not None and self in returning
