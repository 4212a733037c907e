"""What an invocation has done already, so that a further attempt does none of it twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock._engine.lineage import Group


if TYPE_CHECKING:
    from penstock._engine.machine import Machine
    from penstock._engine.worker import Worker
    from penstock._events import Event
    from penstock._graph import Route
    from penstock._retries import Attempts
    from penstock._steps import Step


class Again:
    """A delivery that was tried before: after a failure, or in a run that a snapshot was taken of.

    It stands in the place of its event.
    """

    __slots__ = (
        "attempts",
        "branches",
        "collected",
        "delay",
        "due",
        "event",
        "received",
        "seed",
        "sent",
    )

    def __init__(self, event: Any, attempts: Attempts | None = None) -> None:
        self.event = event
        self.attempts = attempts
        #: How long it waits, and until when on the backend's clock.
        self.delay = self.due = 0.0
        #: What the jitter of its delays comes of.
        self.seed = ""
        #: What the step waited for and received, in that order.
        self.received: list[Event] = []
        #: How many events of each class it sent, which are out.
        self.sent: dict[str, int] = {}
        #: What became of some of these, by class and number: a branch, or None where the branch
        #: failed and the event is to be sent again. Nothing is left of the others.
        self.branches: dict[tuple[str, int], Group | None] = {}
        #: The buffers that have had its event, each with what it completed.
        self.collected: list[tuple[str, list[Event] | None]] = []

    @property
    def number(self) -> int:
        """The number of the attempt that this is; the first is 1."""
        return 1 if self.attempts is None else self.attempts.count + 1


class Record:
    """What one invocation does beside returning an event."""

    __slots__ = ("_limit", "again", "branches", "collected", "held", "received", "sent", "told")

    def __init__(self, again: Again | None) -> None:
        #: What is still to be taken from the record of the attempt before.
        self.again = _NOTHING
        if again is not None:
            self.again = Again(None)
            self.again.received = list(again.received)
            self.again.sent = dict(again.sent)
            self.again.branches = dict(again.branches)
            self.again.collected = list(again.collected)
        self.received: list[Event] = []
        self.sent: dict[str, int] = {}
        #: The branches of what it sent, by class and number, as far as they matter.
        self.branches: list[tuple[str, int, Group]] = []
        self._limit = 16
        #: What buffers told it that were told its event before.
        self.told: list[tuple[str, list[Event] | None]] = []
        #: Each event given to a buffer (None where it was out before), and what came of it.
        self.collected: list[tuple[str, Event | None, list[Event] | None]] = []
        #: What is sent only if the attempt succeeds.
        self.held: list[tuple[Route, Event, Group, str | None]] = []

    def note_sent(self, event: Event) -> Group | None:
        """Count an event that is sent; return its branch where it is out already."""
        name = type(event).__name__
        number = self.sent.get(name, 0)
        self.sent[name] = number + 1
        if number >= self.again.sent.get(name, 0):
            return None
        branch = self.again.branches.pop((name, number), _OVER)
        if branch is not None and branch is not _OVER:
            self.note_branch(event, branch)
        return branch

    def note_branch(self, event: Event, branch: Group) -> None:
        """Keep the branch of the event that was counted last, as long as it matters."""
        if len(self.branches) >= self._limit:
            self.branches = [
                kept for kept in self.branches if _matters(kept[2], is_held=kept[2].is_held)
            ]
            self._limit = 2 * len(self.branches) + 16
        name = type(event).__name__
        self.branches.append((name, self.sent[name] - 1, branch))

    def find_told(self, key: str) -> tuple[str, list[Event] | None] | None:
        """Return what the buffer ``key`` has told before, where it has had the event already."""
        for found in self.again.collected:
            if found[0] == key:
                self.again.collected.remove(found)
                self.told.append(found)
                return found
        return None

    def carry_over(self, again: Again) -> None:
        """Write into ``again`` what the next attempt must not do anew."""
        again.received = [*self.received, *self.again.received]
        again.collected = [*self.told, *self.again.collected]

    def copy_to(self, again: Again, *, with_sends: bool, has_unwound: bool) -> None:
        """Write into ``again`` what a run that goes on from a snapshot must not do anew.

        A step that has unwound has let go of the branches that it held.
        """
        self.carry_over(again)
        new = [(key, found) for key, _, found in self.collected]
        again.collected = [*self.told, *new, *self.again.collected]
        if with_sends:
            again.sent = self.again.sent | self.sent
            for name, number in self.again.sent.items():
                again.sent[name] = max(number, again.sent[name])
            again.branches = dict(self.again.branches)
            for name, number, branch in self.branches:
                if _matters(branch, is_held=branch.is_held or has_unwound):
                    failed = branch.track is not None and branch.track.errors
                    again.branches[name, number] = None if failed else branch

    def undo(self, machine: Machine, index: int) -> None:
        """Take back what the failed invocation gave to buffers, where it is still there."""
        for key, event, completed in reversed(self.collected):
            if not machine.collection(index, key).undo(event, completed):
                self.told.append((key, None))
        self.collected.clear()
        for _, _, branch, _ in self.held:
            machine.drop_branch(branch)
        self.held.clear()


#: What there is of an attempt before the first; never changed.
_NOTHING = Again(None)

#: The branch of an event of which nothing is left.
_OVER = Group(None, ())
_OVER.is_over = True


def _matters(branch: Group, *, is_held: bool) -> bool:
    """Whether a step that sent an event, and begins again, could tell what became of it."""
    if branch.track is not None and branch.track.errors:
        return True
    return is_held and (branch.is_cancelled or not branch.is_over)


class Interrupted:
    """An invocation that was under way when its run ended or a snapshot was taken."""

    __slots__ = ("event", "group", "record", "step")

    def __init__(self, step: Step, event: Any, group: Group | None, record: Record | None) -> None:
        self.step = step
        self.event = event
        self.group = group
        self.record = record


def interrupted(worker: Worker) -> Interrupted:
    """Return what a worker is at."""
    assert worker.step is not None
    record = worker.context._record if worker.context is not None else None
    return Interrupted(worker.step, worker.event, worker.group, record)
