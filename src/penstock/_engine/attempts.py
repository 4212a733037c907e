"""What an invocation has done already, so that a further attempt does none of it twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from penstock._engine.lineage import Group
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

    __slots__ = ("attempts", "delay", "due", "event", "received", "seed", "sent", "spent")

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
        #: The buffers that it gave its event to, and that have passed it on.
        self.spent: list[str] = []

    @property
    def number(self) -> int:
        """The number of the attempt that this is; the first is 1."""
        return 1 if self.attempts is None else self.attempts.count + 1


class Record:
    """What one invocation does beside returning an event."""

    __slots__ = ("again", "collected", "held", "received", "sent", "spent")

    def __init__(self, again: Again | None) -> None:
        #: What is still to be taken from the record of the attempt before.
        self.again = Again(None)
        if again is not None:
            self.again.received = list(again.received)
            self.again.sent = dict(again.sent)
            self.again.spent = list(again.spent)
        self.received: list[Event] = []
        self.sent: dict[str, int] = {}
        self.spent: list[str] = []
        #: Each event given to a buffer, and what it completed.
        self.collected: list[tuple[str, Event, list[Event] | None]] = []
        #: What is sent only if the attempt succeeds.
        self.held: list[tuple[Route, Event, Group, str | None]] = []

    def note_sent(self, event: Event) -> bool:
        """Count an event that is sent; return whether it is out already."""
        name = type(event).__name__
        self.sent[name] = self.sent.get(name, 0) + 1
        known = self.again.sent.get(name, 0)
        if known:
            self.again.sent[name] = known - 1
        return known > 0

    def note_spent(self, key: str) -> bool:
        """Return whether the buffer ``key`` has had this invocation's event before."""
        if key not in self.again.spent:
            return False
        self.again.spent.remove(key)
        self.spent.append(key)
        return True

    def carry_over(self, again: Again, *, with_sends: bool) -> None:
        """Write into ``again`` what the next attempt must not do anew."""
        again.received = [*self.received, *self.again.received]
        again.spent = [*self.spent, *self.again.spent]
        if with_sends:
            sent = dict(self.sent)
            for name, left in self.again.sent.items():
                sent[name] = sent.get(name, 0) + left
            again.sent = sent

    def undo(self, machine: Machine, index: int) -> None:
        """Take back what the failed invocation gave to buffers, where it is still there."""
        for key, event, completed in reversed(self.collected):
            if not machine.collection(index, key).undo(event, completed):
                self.spent.append(key)
        self.collected.clear()
        for _, _, branch, _ in self.held:
            branch.is_over = True
        self.held.clear()


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
