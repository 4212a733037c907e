"""The operations of an invocation, so that a later attempt does not repeat them."""

from __future__ import annotations

from array import array
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from sluicegate._engine.lineage import BranchNode
from sluicegate._engine.step_queue import Numbered


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Route
    from sluicegate._definition.retries import Attempts
    from sluicegate._definition.steps import Step
    from sluicegate._engine.joins import Entry
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.snapshot_format import SavedChild
    from sluicegate._engine.waits import Wait
    from sluicegate._events import Event, StopEvent
    from sluicegate._loop import Waiter
    from sluicegate._questions import Asked

    #: Names the content of a value.
    KeyOf: TypeAlias = Callable[[Any], int]


N = TypeVar("N", int, float)
T = TypeVar("T")


class Redelivery(Numbered):
    """A delivery that was attempted before: after a failure, or in a run resumed from a snapshot.

    It replaces its event, in runs without a store as well.
    """

    __slots__ = (
        "attempts",
        "child_number",
        "children",
        "collected",
        "crashes",
        "delay",
        "due",
        "left",
        "once",
        "received",
        "seed",
        "sent",
        "sleeping",
        "slept",
    )

    def __init__(self, event: Any, attempts: Attempts | None = None) -> None:
        super().__init__(event, 0, 0)
        self.attempts = attempts
        #: How many processes have died while it was running.
        self.crashes = 0
        #: How long it waits, and until when on the backend's clock.
        self.delay = self.due = 0.0
        #: The seed of the jitter of its delays.
        self.seed = ""
        #: The events that the step received: by the key of the wait, in the order of the answers.
        self.received: dict[int, list[Event]] = {}
        #: The seconds that its open waits had left until their timeout, by the key of each wait.
        self.left: dict[int, list[float]] = {}
        #: The events that it has sent: by content, the branch of each in the order of the
        #: sends, or None if the branch has ended.
        self.sent: dict[int, list[BranchNode | None]] = {}
        #: The buffers that have received its event, each with the events that it completed.
        self.collected: list[tuple[str, list[Event] | None]] = []
        #: The results of ``ctx.once``, by key.
        self.once: dict[str, KeptResult] = {}
        #: The sleeps that are over, how many of each length; and when the others of a length are,
        #: in order, on the backend's clock.
        self.slept: dict[float, int] = {}
        self.sleeping: dict[float, list[float]] = {}
        #: The children that it has run, by content; and the number of the latest one.
        self.children: dict[int, list[ChildRecord]] = {}
        self.child_number = 0

    def take_over(self, known: Redelivery) -> None:
        """Take over the results of earlier attempts from the delivery ``known``."""
        self.key: int = known.key
        self.seed = known.seed
        self.received, self.left = known.received, known.left
        self.collected, self.once = known.collected, known.once
        self.slept, self.sleeping = known.slept, known.sleeping
        self.children, self.child_number = known.children, known.child_number

    @property
    def number(self) -> int:  # type: ignore[override]
        """The number of the attempt that this is; the first is 1."""
        return 1 if self.attempts is None else self.attempts.count + 1


class KeptResult:
    """The result or the exception of a ``ctx.once`` call, encoded."""

    __slots__ = ("encoded", "is_failure")

    def __init__(self, encoded: Any, *, is_failure: bool) -> None:
        self.encoded = encoded
        self.is_failure = is_failure


class OnceCall:
    """An active call of ``ctx.once``: the task that makes it, and the tasks that wait for it."""

    __slots__ = ("task", "waiters")

    def __init__(self, task: object) -> None:
        self.task = task
        self.waiters: list[Waiter] = []


class Sleep:
    """A call of ``ctx.sleep`` that is not over.

    Attributes:
        seconds: How long it lasts.
        due: When it is over, on the backend's clock.
        number: Its number among the sleeps of this length of its invocation, from 0.
        is_cut: Whether it was cancelled.
    """

    __slots__ = ("due", "is_cut", "number", "seconds")

    def __init__(self, seconds: float, due: float, number: int) -> None:
        self.seconds = seconds
        self.due = due
        self.number = number
        self.is_cut = False


class ChildRecord:
    """A child that a step has begun: where it is, or how it has ended.

    A step that begins again finds it by its content: the workflow, the start event, and the run id
    if the step gave one. Among equals the order decides.

    Args:
        name: The name of the workflow.
        codec: Returns the codec of the workflow; None until the step calls for the child again.
        content: The start event, and the run id that the step gave; kept until the key is asked for.
        key: The number of the content, if it is known.

    Attributes:
        number: The number of the child among those of its delivery; another attempt uses none again.
        run_id: The identifier of its run.
        run: Its run, unless that has completed, or has not begun again after a snapshot.
        stop_event: The stop event of one that has completed.
        failure: The exception that its step was given.
        saved: Its part of a snapshot, until the step calls for it again; afterwards that of one that
            has ended.
        drops_removed: Whether fields that its classes no longer have are dropped from that.
    """

    __slots__ = (
        "__weakref__",
        "_content",
        "_key",
        "codec",
        "drops_removed",
        "failure",
        "name",
        "number",
        "run",
        "run_id",
        "saved",
        "stop_event",
    )

    def __init__(
        self,
        name: str,
        codec: Callable[[], Codec] | None,
        content: tuple[Event | None, str | None] = (None, None),
        key: int | None = None,
    ) -> None:
        self.name = name
        self.codec = codec
        self._content: tuple[Event | None, str | None] | None = content
        self._key = key
        self.number = 0
        self.run_id = ""
        self.run: Any = None
        self.stop_event: StopEvent | None = None
        self.failure: BaseException | None = None
        self.saved: SavedChild | None = None
        self.drops_removed = False

    @property
    def key(self) -> int:
        """The number of its content."""
        if self._key is None:
            assert self.codec is not None
            assert self._content is not None
            key_of, (start_event, run_id) = self.codec().content_key, self._content
            self._key, self._content = key_of([self.name, key_of(start_event), run_id]), None
        return self._key

    def note_end(self, failure: BaseException | None) -> None:
        """Note how its run has ended; one that was cancelled continues when it is found again."""
        outcome = self.run.outcome
        if outcome.stop_event is not None and failure is None:
            self.stop_event, self.run = outcome.stop_event, None
        elif outcome.status in ("failed", "timed_out"):
            self.failure = failure

    @property
    def has_completed(self) -> bool:
        """Whether it has a result."""
        return self.stop_event is not None or (
            self.saved is not None and self.saved.status == "completed"
        )


#: How many events an invocation keeps that it has sent.
KEPT_EVENTS = 3


class StepJournal:
    """What one invocation does beside returning an event."""

    __slots__ = (
        "_branches",
        "_gone",
        "_limit",
        "_sleeps",
        "asked",
        "child_number",
        "children",
        "collected",
        "has_cut",
        "held",
        "key",
        "once",
        "received",
        "replayed",
        "reported",
        "sent",
        "sleeping",
        "slept",
    )

    def __init__(self, redelivery: Numbered | None) -> None:
        #: The part of the previous attempt's journal that is not yet replayed.
        self.replayed = NOTHING
        #: The results of ``ctx.once`` by key, and the calls that are under way.
        self.once: dict[str, KeptResult | OnceCall] = _EMPTY
        #: The children that it has called for, and the number of the latest one.
        self.children: list[ChildRecord] | tuple[()] = ()
        self.child_number = 0
        #: The number of the delivery, if it was asked for.
        self.key = 0 if redelivery is None else redelivery.key
        if isinstance(redelivery, Redelivery):
            if redelivery.once:
                self.once = {**redelivery.once}
            self.replayed = Redelivery(None)
            self.replayed.received = copy_lists(redelivery.received)
            self.replayed.left = copy_lists(redelivery.left)
            self.replayed.sent = copy_lists(redelivery.sent)
            self.replayed.collected = list(redelivery.collected)
            self.replayed.slept = {**redelivery.slept}
            self.replayed.sleeping = copy_lists(redelivery.sleeping)
            self.replayed.children = copy_lists(redelivery.children)
            self.child_number = redelivery.child_number
        #: The question that it has put on the stream itself, until it waits for the answer.
        self.asked: Asked | None = None
        #: The waits that have had their event.
        self.received: list[Wait] = []
        #: The sleeps that are over, how many of each length, and the others; and whether one of
        #: these was cancelled.
        self.slept: dict[float, int] = _EMPTY
        self.sleeping: dict[Sleep, None] = _EMPTY
        self.has_cut = False
        #: How many sleeps of each length it has begun.
        self._sleeps: dict[float, int] = _EMPTY
        #: The latest events that it sent, each with its branch. Of older ones the content is kept:
        #: with the branch as long as that matters, then alone, in 8 bytes.
        self.sent: list[tuple[Event, BranchNode]] = []
        self._branches: list[tuple[int, BranchNode]] | None = None
        self._gone: array[int] | None = None
        self._limit = 16
        #: The results of buffers that had received its event before.
        self.reported: list[tuple[str, list[Event] | None]] = []
        #: Each event passed to a buffer (None if an earlier attempt did), and the events it completed.
        self.collected: list[tuple[str, Entry | None, list[Entry] | None]] = []
        #: The events that are sent only if the attempt succeeds.
        self.held: list[tuple[Route, Event, BranchNode, str | None]] = []

    def find_sent(self, key: int) -> BranchNode | None:
        """Return the branch of an event of this content that is out already, if one is.

        Content decides, and among equals the order: two tasks of a step may send in another order
        than before.
        """
        branches = self.replayed.sent.get(key)
        if not branches:
            return None
        branch = branches.pop(0)
        return _OVER if branch is None else branch

    def note_sent(self, event: Event, branch: BranchNode, key_of: KeyOf) -> None:
        """Keep the content of what was sent, as long as the invocation is under way."""
        self.sent.append((event, branch))
        if len(self.sent) <= KEPT_EVENTS:
            return
        event, branch = self.sent.pop(0)
        if self._branches is None or self._gone is None:
            self._branches, self._gone = [], array("Q")
        self._branches.append((key_of(event), branch))
        if len(self._branches) >= self._limit:
            kept: list[tuple[int, BranchNode]] = []
            for key, branch in self._branches:
                if _matters(branch, is_held=branch.is_held):
                    kept.append((key, branch))
                else:
                    self._gone.append(key)
            self._branches = kept
            self._limit = 2 * len(kept) + 16

    def find_reported(self, key: str) -> tuple[str, list[Event] | None] | None:
        """Return what the buffer ``key`` has told before, where it has had the event already."""
        for found in self.replayed.collected:
            if found[0] == key:
                self.replayed.collected.remove(found)
                self.reported.append(found)
                return found
        return None

    def find_sleep(self, seconds: float) -> float | None:
        """Return when a sleep of this length is over that an earlier attempt has begun, if one has."""
        replayed = self.replayed
        if replayed.slept.get(seconds):
            replayed.slept[seconds] -= 1
            return -inf
        times = replayed.sleeping.get(seconds)
        return times.pop(0) if times else None

    def begin_sleep(self, seconds: float, due: float) -> Sleep:
        """Note that a sleep begins, or continues."""
        self.sleeping, self._sleeps = self.sleeping or {}, self._sleeps or {}
        number = self._sleeps.get(seconds, 0)
        self._sleeps[seconds] = number + 1
        kept = Sleep(seconds, due, number)
        self.sleeping[kept] = None
        return kept

    def end_sleep(self, kept: Sleep) -> None:
        """Note that a sleep is over."""
        del self.sleeping[kept]
        self.slept = self.slept or {}
        self.slept[kept.seconds] = self.slept.get(kept.seconds, 0) + 1

    def drop_cut(self) -> list[Sleep]:
        """Forget the sleeps that were cancelled, and return them."""
        cut = [kept for kept in self.sleeping if kept.is_cut]
        for kept in cut:
            del self.sleeping[kept]
        self.has_cut = False
        return cut

    def carry_over(self, redelivery: Redelivery, key_of: KeyOf) -> None:
        """Write into ``redelivery`` the operations that the next attempt must not repeat.

        Of the children it finds those that have completed, and those that were not called for yet.
        """
        redelivery.key = redelivery.key or self.key
        redelivery.child_number = self.child_number
        completed = [child for child in self.children if child.has_completed]
        redelivery.children = self._with_children(completed)
        redelivery.received = {}
        for wait in self.received:
            assert wait.event is not None
            redelivery.received.setdefault(wait.content_key(key_of), []).append(wait.event)
        for key, events in self.replayed.received.items():
            redelivery.received.setdefault(key, []).extend(events)
        redelivery.left = copy_lists(self.replayed.left)
        self._carry_sleeps(redelivery)
        redelivery.collected = [*self.reported, *self.replayed.collected]
        redelivery.once = {k: made for k, made in self.once.items() if type(made) is KeptResult}

    def copy_to(
        self, redelivery: Redelivery, key_of: KeyOf, *, with_sends: bool, has_unwound: bool
    ) -> None:
        """Write into ``redelivery`` the operations that a run resumed from a snapshot must not repeat.

        A step that has unwound has let go of the branches that it held.
        """
        self.carry_over(redelivery, key_of)
        redelivery.children = self._with_children(self.children)
        new = [(key, _events_of(found)) for key, _, found in self.collected]
        redelivery.collected = [*self.reported, *new, *self.replayed.collected]
        if not with_sends:
            return
        redelivery.sent = {
            key: [branch for branch in branches if not _has_failed(branch)]
            for key, branches in self.replayed.sent.items()
        }
        for key in self._gone or ():
            redelivery.sent.setdefault(key, []).append(None)
        latest = [(key_of(event), branch) for event, branch in self.sent]
        for key, branch in [*(self._branches or ()), *latest]:
            if _has_failed(branch):
                continue  # the event is to be sent again
            matters = _matters(branch, is_held=branch.is_held or has_unwound)
            kept = branch if matters and branch is not _OVER else None
            redelivery.sent.setdefault(key, []).append(kept)

    def _carry_sleeps(self, redelivery: Redelivery) -> None:
        replayed = self.replayed
        redelivery.slept = {**self.slept}
        for seconds, count in replayed.slept.items():
            redelivery.slept[seconds] = redelivery.slept.get(seconds, 0) + count
        redelivery.sleeping = copy_lists(replayed.sleeping)
        for kept in self.sleeping:
            redelivery.sleeping.setdefault(kept.seconds, []).append(kept.due)
        for times in redelivery.sleeping.values():
            times.sort()

    def _with_children(self, begun: Iterable[ChildRecord]) -> dict[int, list[ChildRecord]]:
        """Return these children and those that were not called for yet, by content."""
        found: dict[int, list[ChildRecord]] = {}
        for child in begun:
            found.setdefault(child.key, []).append(child)
        for key, children in self.replayed.children.items():
            found.setdefault(key, []).extend(children)
        for children in found.values():
            children.sort(key=lambda child: child.number)
        return {key: children for key, children in found.items() if children}

    def undo(self, machine: Machine, index: int) -> None:
        """Take back what the failed invocation gave to buffers, where it is still there."""
        for key, entry, completed in reversed(self.collected):
            if not machine.buffer(index, key).undo(entry, completed):
                self.reported.append((key, None))
        self.collected.clear()
        for _, _, branch, _ in self.held:
            machine.release(branch)
        self.held.clear()


#: What there is of an attempt before the first; never changed.
NOTHING = Redelivery(None)

_EMPTY: Any = MappingProxyType[Any, Any]({})

#: The branch of an event of which nothing is left.
_OVER = BranchNode(None, ())
_OVER.is_over = True


def copy_lists(found: dict[N, list[T]]) -> dict[N, list[T]]:
    """Return a copy with copied lists, without the empty ones."""
    return {key: list(values) for key, values in found.items() if values}


def _events_of(entries: list[Entry] | None) -> list[Event] | None:
    return None if entries is None else [entry.event for entry in entries]


def _has_failed(branch: BranchNode | None) -> bool:
    """Whether a branch failed while a step waited for its end."""
    return (
        branch is not None
        and branch.cancel_record is not None
        and bool(branch.cancel_record.errors)
    )


def _matters(branch: BranchNode, *, is_held: bool) -> bool:
    """Whether a restarted step that sent an event could observe the state of its branch."""
    if _has_failed(branch):
        return True
    return is_held and (branch.is_cancelled or not branch.is_over)


class AtWork(Protocol):
    """The current work of a worker."""

    @property
    def step(self) -> Step | None: ...

    @property
    def event(self) -> Any: ...

    @property
    def node(self) -> BranchNode | None: ...

    @property
    def context(self) -> Any: ...

    @property
    def delivery(self) -> Numbered | None: ...


class InFlight:
    """An invocation that was under way when its run ended or a snapshot was taken.

    Attributes:
        crashes: How many processes have died while it was running, this one included.
    """

    __slots__ = ("crashes", "event", "journal", "key", "node", "step")

    def __init__(
        self,
        step: Step,
        event: Any,
        node: BranchNode | None,
        journal: StepJournal | None,
        key: int = 0,
    ) -> None:
        self.step = step
        self.event = event
        self.node = node
        self.journal = journal
        self.key = key
        self.crashes = 0

    @classmethod
    def of(cls, worker: AtWork) -> InFlight:
        """Return what a worker is at."""
        assert worker.step is not None
        journal = worker.context.journal if worker.context is not None else None
        event, delivery = worker.event, worker.delivery
        if type(event) is Numbered:  # it has been given to the worker, and has not begun
            return cls(worker.step, event.event, worker.node, journal, event.key)
        key = 0 if delivery is None else delivery.key
        return cls(worker.step, event, worker.node, journal, key)
