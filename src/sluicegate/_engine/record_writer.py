"""The record writer: makes the records of one run, with their causes.

A run has one only if it is observed; ``Run.records`` and ``Machine.records`` are None otherwise, and no
record is built. The caller of a machine input first calls :meth:`RecordWriter.enter` with the
invocation that causes it. The machine calls the writer while it applies the input. So all records of
one input have the same cause and, because an input is one synchronous call, one reading of the clock.

Deliveries have no numbers of their own. A delivery is found again by its payload and its step. If the
same object was delivered to the same step more than once, the order decides.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from sluicegate._engine.journal import Redelivery
from sluicegate._engine.observer_calls import ObserverCalls
from sluicegate._errors import WorkflowStalledError
from sluicegate._exceptions import is_cancellation
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._observers import Invocation, RunInfo
from sluicegate._questions import id_of
from sluicegate.records import (
    CancellationDelivered,
    CancellationRequested,
    ChildEnded,
    ChildStarted,
    EventEmitted,
    EventsCollected,
    EventStreamed,
    InvocationEnded,
    InvocationQueued,
    InvocationStarted,
    QuestionAnswered,
    QuestionAsked,
    ResourceClosed,
    ResourceFailed,
    ResourceOpened,
    RunEnded,
    RunStarted,
    SnapshotTaken,
    StateEditEnded,
    StateEditStarted,
    WaitEnded,
    WaitStarted,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextvars import Context as ContextVars

    from sluicegate._definition.graph import Graph
    from sluicegate._definition.resources import ResourcePlan
    from sluicegate._definition.steps import Step
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.outcome import Outcome
    from sluicegate._engine.step_queue import StepQueue
    from sluicegate._events import Event
    from sluicegate._loop import Backend
    from sluicegate._observers import Observer
    from sluicegate.records import CancelledBy, InvocationOutcome, Origin, WaitKind, WaitOutcome


class ObservedRun(Protocol):
    """The run, :class:`sluicegate._engine.run.Run`, as far as its records need it."""

    run_id: str
    start_event: Event | None
    carrier: dict[str, str]
    draining: str | None
    variables: ContextVars
    workers: dict[Any, None]

    @property
    def backend(self) -> Backend | None: ...
    @property
    def graph(self) -> Graph: ...
    @property
    def options(self) -> Any: ...
    @property
    def outcome(self) -> Outcome: ...
    @property
    def parent(self) -> Any: ...
    @property
    def resumed(self) -> Any: ...


class ObservedWorker(Protocol):
    """A worker, :class:`sluicegate._engine.invocation.Worker`, as far as the records need it."""

    number: int
    lane: int
    invocation: Invocation | None
    node: BranchNode | None

    @property
    def run(self) -> ObservedRun: ...
    @property
    def step(self) -> Step | None: ...
    @property
    def progress(self) -> Any: ...
    def delivered(self) -> tuple[Any, int]: ...


#: Finds a queued invocation: the id of its payload, and the index of its step.
Key = tuple[int, int]


class RecordWriter:
    """Makes the records of one run, and hands them to its observers.

    Args:
        run: The run, which holds this writer until it has ended.
        backend: The backend of its event loop, whose clock gives the times.
        observers: The observers.
        fail: Makes an exception the outcome of the run.
        above: The worker of the step that runs it as a child; None for none, or if that is unknown.

    Attributes:
        at: When the current input was applied.
        calls: The calls of the observers.
    """

    __slots__ = (
        "_again",
        "_attempts",
        "_cancellations",
        "_edits",
        "_emit",
        "_event",
        "_events",
        "_given",
        "_has_begun",
        "_held",
        "_invocations",
        "_is_dropped",
        "_lanes",
        "_names",
        "_nodes",
        "_now",
        "_numbers",
        "_origin",
        "_parent_invocation",
        "_queued_in",
        "_resources",
        "_retrying",
        "_run_cancellation",
        "_source",
        "_targets",
        "_unwinding",
        "_value",
        "_waiting",
        "_waits",
        "_workers",
        "at",
        "calls",
    )

    def __init__(
        self,
        run: ObservedRun,
        backend: Backend,
        observers: tuple[Observer, ...],
        fail: Callable[[BaseException], None],
        above: ObservedWorker | None = None,
    ) -> None:
        info = RunInfo(
            run.run_id,
            run.graph.name,
            run.start_event,
            is_resumed=run.resumed is not None,
            parent=None if above is None else above.invocation,
            parent_run_id=None if run.parent is None else run.parent.run_id,
            carrier=run.carrier,
        )
        self._parent_invocation = None if above is None else above.number
        self._has_begun = False
        self.calls = ObserverCalls(observers, info, fail)
        self._emit: Callable[[Any], object] = self.calls.listen()
        self._names = [step.name for step in run.graph.steps]
        #: The names of the steps of a route, by their indices.
        self._targets: dict[tuple[int, ...], tuple[str, ...]] = {}
        self._now = backend.current_time
        self.at = self._now()
        #: What causes the current input.
        self._source: int | None = None
        self._origin: Origin = "outside"
        #: The latest event; how many there were; and the number of one that is put back.
        self._value: Any = None
        self._event = self._events = self._again = 0
        self._invocations = self._waits = self._cancellations = self._lanes = 0
        self._resources = self._edits = 0
        #: Whether the result of the invocation that has just returned is dropped with its branch.
        self._is_dropped = False
        #: The workers of the run.
        self._workers = run.workers
        #: By invocation, until it has ended: the numbers of its events.
        self._numbers: dict[int, tuple[int, ...]] = {}
        #: By invocation, until it has ended: the number of the attempt, unless that is the first.
        self._attempts: dict[int, int] = {}
        #: The invocation that has failed and is to be attempted again.
        self._retrying: int | None = None
        #: The queued invocations; oldest first where several have the same key.
        self._waiting: dict[Key, int | list[int]] = {}
        #: Those of them that belong to a node, with their keys; and the node of each.
        self._nodes: dict[BranchNode, dict[int, Key]] = {}
        self._queued_in: dict[int, BranchNode] = {}
        #: By id: the numbers of the events that a join, a buffer or the machine keeps. The entry holds
        #: the event, so that no other object gets its id meanwhile.
        self._held: dict[int, tuple[Any, list[int]]] = {}
        #: By the id of an answered wait: the number of its event.
        self._given: dict[int, int] = {}
        #: The number of the cancellation of the run, and the invocations in which one was raised.
        self._run_cancellation = 0
        self._unwinding: set[int] = set()

    def enter(self, source: int | None, origin: Origin = "step") -> None:
        """Note what causes the next input of the machine, and read the clock for it."""
        self.at = self._now()
        self._source = source
        self._origin = origin

    def enter_step(self) -> None:
        """Note that the calling step causes the next input, as :meth:`enter` does."""
        self.enter(self.caller())

    def caller(self) -> int | None:
        """Return the number of the invocation that calls; None if none of this run does."""
        worker = self._calling_worker()
        return None if worker is None else worker.number or None

    def _calling_worker(self) -> ObservedWorker | None:
        """Return the worker whose step, or a task of it, calls; None if it belongs to another run."""
        worker: Any = current_cleanup.get()
        return worker if worker in self._workers else None

    def now(self) -> float:
        """Read the clock. The reading is kept, so that the times of records never go back."""
        self.at = self._now()
        return self.at

    # -- the run

    def begin(self, run: ObservedRun) -> None:
        """Record that the run begins, and tell the observers.

        Until now it has waited for its turn among the runs of its workflow.
        """
        self._has_begun = True
        info, queued_at = self.calls.info, self.at
        self.enter(None, "snapshot" if info.is_resumed else "outside")
        assert run.backend is not None
        self._emit(
            RunStarted(
                self.at,
                run_id=run.run_id,
                workflow=run.graph.name,
                steps={step.name: step.num_workers for step in run.graph.steps},
                backend=run.backend.name,
                wall_offset=time() - self.at,
                parent_run=info.parent_run_id,
                parent_invocation=self._parent_invocation,
                is_resumed=info.is_resumed,
                elapsed=0.0 if run.resumed is None else run.resumed.elapsed,
                timeout=run.options.timeout,
                queued=self.at - queued_at,
            )
        )
        self.calls.begin_run(run.variables)

    def end(self, run: ObservedRun) -> None:
        """Record the end of the run and the invocations still queued; call the observers."""
        if not self._has_begun:  # cancelled while it waited for its turn
            self.begin(run)
        self.enter(None)
        for number in sorted(self._numbers):
            self._emit(InvocationEnded(self.at, number, "dropped"))
        outcome, info = run.outcome, self.calls.info
        stopped = outcome.stop_event is not None and self._value is outcome.stop_event
        self._emit(
            RunEnded(
                self.at,
                status=outcome.status,
                error=outcome.error,
                event=self._event if stopped and outcome.status == "completed" else None,
            )
        )
        info.status, info.error = outcome.status, outcome.error
        self.calls.end_run(run.variables)
        self._emit = _drop
        self._value = None
        self._held.clear()
        self._numbers.clear()

    # -- events, as the machine accepts them

    def emitted(
        self, event: Event, targets: tuple[int, ...] = (), origin: Origin | None = None
    ) -> None:
        """Record an event, with the indices of the steps that get it.

        An event that a wait did not take, and that is given to others, is not recorded again.
        """
        self._value = event
        if self._again:
            self._event, self._again = self._again, 0
            return
        self._event = self._events = number = self._events + 1
        names = self._targets.get(targets)
        if names is None:
            names = self._targets[targets] = tuple(self._names[index] for index in targets)
        kind = type(event).__name__
        origin = origin or self._origin
        source = self._source if origin in {"step", "engine"} else None
        self._emit(EventEmitted(self.at, number, kind, origin, source, names, event))

    def kept(self, event: Event) -> None:
        """Record an event that is kept until a wait takes it."""
        self.emitted(event)
        self.hold(event)

    def hold(self, event: Event, number: int = 0) -> None:
        """Remember the number of an event that a join or a buffer keeps: by default of the latest."""
        number = number or self._event
        known = self._held.get(id(event))
        if known is None:
            self._held[id(event)] = event, [number]
        else:
            known[1].append(number)

    def _find(self, event: Any) -> int:
        """Return the number of an event that was kept; one out of a snapshot is recorded first."""
        known = self._held.get(id(event))
        if known is None:
            if event is not self._value:
                self.emitted(event, (), "snapshot")
            return self._event
        number = known[1].pop(0)
        if not known[1]:
            del self._held[id(event)]
        return number

    def collecting(self, event: Event) -> None:
        """Note that ``ctx.collect_events`` keeps an event, usually that of the invocation."""
        worker = self._calling_worker()
        own = () if worker is None else self._numbers.get(worker.number, ())
        if worker is not None and len(own) == 1 and worker.delivered()[0] is event:
            self.hold(event, own[0])

    def collected(self, buffer: str, events: Iterable[Event]) -> None:
        """Record that ``ctx.collect_events`` has returned a set of events to the calling step."""
        self.enter_step()
        numbers = tuple(self._find(event) for event in events)
        self._emit(EventsCollected(self.at, self._source, numbers, buffer))

    # -- invocations

    def queued(
        self,
        queue: StepQueue,
        payload: Any,
        node: BranchNode | None,
        not_before: float | None = None,
    ) -> None:
        """Record that a step is to run with ``payload``."""
        number = self._invocations = self._invocations + 1
        attempt, previous = 1, None
        if payload is self._value:
            events: tuple[int, ...] = (self._event,)
        elif type(payload) is Redelivery:
            attempt, previous = payload.number, self._retrying
            known = None if previous is None else self._numbers.get(previous)
            events = self._events_in(payload.event) if known is None else known
            self._attempts[number] = attempt
            self._retrying = None
        else:
            events = self._events_in(payload)
        self._numbers[number] = events
        key = id(payload), queue.index
        waiting = self._waiting.setdefault(key, number)
        if waiting is not number:
            others = waiting if isinstance(waiting, list) else [waiting]
            self._waiting[key] = [*others, number]
        if node is not None:
            self._queued_in[number] = node
            self._nodes.setdefault(node, {})[number] = key
        step = self._names[queue.index]
        self._emit(InvocationQueued(self.at, number, step, events, attempt, previous, not_before))

    def _events_in(self, payload: Any) -> tuple[int, ...]:
        if isinstance(payload, list | tuple):
            return tuple(self._find(event) for event in cast("Iterable[Any]", payload))
        return (self._find(payload),)

    def started(self, worker: ObservedWorker, queue: StepQueue, payload: Any) -> None:
        """Record that a worker has taken a queued invocation.

        After its first one, a worker takes the next in the synchronous block in which it has ended the
        one before, so the reading of the clock is that of the end.
        """
        if not worker.lane:
            self._lanes += 1
            worker.lane = self._lanes
            self.at = self._now()
        key = id(payload), queue.index
        found = self._waiting.get(key)
        if found is None:  # dropped with its branch since the machine handed it out
            worker.number = 0
            return
        if isinstance(found, list) or found in self._queued_in:
            found = self._taken(key)
        else:
            del self._waiting[key]
        worker.number = found
        self._emit(InvocationStarted(self.at, found, worker.lane))

    def _taken(self, key: Key, number: int | None = None) -> int:
        """Take a queued invocation out of the queue: the oldest, or the one with a number."""
        found = self._waiting.pop(key)
        if isinstance(found, list):
            number = found.pop(0) if number is None else found.pop(found.index(number))
            if found:
                self._waiting[key] = found
        else:
            number = found
        node = self._queued_in.pop(number, None)
        if node is not None:
            within = self._nodes[node]
            del within[number]
            if not within:
                del self._nodes[node]
        return number

    def dropped(self, queue: StepQueue, payload: Any) -> None:
        """Record that an invocation that was just queued belongs to a cancelled branch."""
        number = self._taken((id(payload), queue.index), self._invocations)
        self._end(number, "dropped", None)

    def new_invocation(self, worker: ObservedWorker, event: Any) -> Invocation:
        """Return the invocation of a worker, as observers see it."""
        number = worker.number
        assert worker.step is not None
        worker.invocation = invocation = Invocation(
            self.calls.info,
            number,
            worker.step.name,
            event,
            self._attempts.get(number, 1),
            self._numbers.get(number, ()),
        )
        return invocation

    def retry_of(self, invocation: int) -> None:
        """Note that the next delivery that is queued is another attempt of an invocation."""
        self._retrying = invocation

    def returned(self, worker: ObservedWorker, node: BranchNode | None) -> None:
        """Note that an invocation has returned, and what causes the next input: its result.

        If its branch was cancelled by now, so was it, and its result is dropped. A branch that its own
        result cancels, as the winner of a race does, is another matter.
        """
        self.enter(worker.number)
        self._is_dropped = node is not None and node.is_cancelled

    def finished(self, worker: ObservedWorker) -> None:
        """Record that an invocation that has returned has ended."""
        self.ended(worker, "cancelled" if self._is_dropped else "completed")

    def failed(
        self, worker: ObservedWorker, error: BaseException, cancelled: type[BaseException]
    ) -> None:
        """Record that an invocation has raised what its worker cannot handle."""
        self.now()
        if is_cancellation(error, cancelled):
            self.ended(worker, "cancelled")
        else:
            self.ended(worker, "failed", error)

    def ended(
        self, worker: ObservedWorker, outcome: InvocationOutcome, error: BaseException | None = None
    ) -> None:
        """Record that the invocation of a worker has ended, and tell the observers; once."""
        number, worker.number = worker.number, 0
        if not number:
            return
        self._unwinding.discard(number)
        self._retrying = None
        self._end(number, outcome, error)
        invocation = worker.invocation
        if invocation is not None:
            worker.invocation = None
            if invocation.outcome is None or (outcome == "failed" and invocation.error is None):
                invocation.outcome, invocation.error = outcome, error  # the result was refused
            self.calls.end_step(invocation)

    def _end(self, number: int, outcome: InvocationOutcome, error: BaseException | None) -> None:
        self._numbers.pop(number, None)
        if self._attempts:
            self._attempts.pop(number, None)
        self._emit(InvocationEnded(self.at, number, outcome, error))

    # -- the stream and questions

    def streamed(self, sequence: int, event: Event, *, is_last: bool = False) -> None:
        """Record an event that the current cause has put on the stream, and tell the observers.

        They are not told of the last one, the end of the run, because they hear of that anyway.
        """
        kind = type(event).__name__
        self._emit(EventStreamed(self.at, sequence, kind, self._source, event))
        if not is_last:
            self.calls.published(event)

    def asked(self, number: int, question: Event | None) -> None:
        """Record an open question with its number."""
        kind = type(question).__name__
        self._emit(QuestionAsked(self.at, id_of(number), kind, self._source, question))

    def answered(self, number: int, *, by_event: bool = True) -> None:
        """Record that a question was answered with the latest event, or closed without one."""
        self._emit(QuestionAnswered(self.at, id_of(number), self._event if by_event else None))

    # -- waits

    def wait_started(
        self, invocation: int | None, kind: WaitKind, subject: str = "", until: float | None = None
    ) -> int:
        """Record that an invocation waits, and return the number of the wait."""
        self._waits += 1
        self._emit(WaitStarted(self.now(), self._waits, invocation, kind, subject, until))
        return self._waits

    def given(self, wait: object) -> None:
        """Note that a wait was given the latest event."""
        self._given[id(wait)] = self._event

    def found_early(self, wait: object, event: Event) -> None:
        """Note that a wait was given an event that was kept for it."""
        self._given[id(wait)] = self._find(event)

    def put_back(self, wait: object) -> None:
        """Note that a wait did not take its event, which is given to others now."""
        self._again = self._given.pop(id(wait), 0)

    def wait_ended(
        self, number: int, outcome: WaitOutcome = "done", wait: object | None = None
    ) -> int:
        """Record that a wait is over, with the event that it was given. Returns 0, the number of none."""
        event = None if wait is None else self._given.pop(id(wait), None)
        taken = event if outcome == "done" else None
        self._emit(WaitEnded(self.now(), number, outcome, taken))
        return 0

    # -- resources, edits of the state, and snapshots: what does not go through the machine

    def resource_opened(self, plan: ResourcePlan, invocation: int | None, began: float) -> int:
        """Record that a resource has been opened, and return its number."""
        self._resources += 1
        now = self.now()
        self._emit(
            ResourceOpened(now, self._resources, plan.name, plan.scope, invocation, now - began)
        )
        return self._resources

    def resource_not_opened(self, plan: ResourcePlan, error: BaseException) -> None:
        """Record that a resource could not be opened, under a new number."""
        self._resources += 1
        self._emit(ResourceFailed(self.now(), self._resources, plan.name, "opening", error))

    def resource_closed(
        self, number: int, plan: ResourcePlan, began: float, error: BaseException | None
    ) -> None:
        """Record that a resource has been closed, or failed to close."""
        now = self.now()
        if error is None:
            self._emit(ResourceClosed(now, number, now - began))
        else:
            self._emit(ResourceFailed(now, number, plan.name, "closing", error))

    def for_edit(self, store: object) -> RecordWriter | None:
        """Return the writer of the run whose state the caller edits; None for none.

        Runs that were given the same context have one store, of which each records its own edits.
        An edit from outside before the run begins is not recorded.
        """
        run: Any = getattr(current_cleanup.get(), "run", None)
        records: RecordWriter | None = self
        if run is not None and run.state_store is store:
            records = run.records
        return records if records is not None and records._has_begun else None

    def edit_waits(self) -> int:
        """Record that an edit of the state waits for another to end; return the number of the wait."""
        return self.wait_started(self.caller(), "state")

    def edit_started(self) -> int:
        """Record that an edit of the state has begun, and return its number."""
        self._edits += 1
        self._emit(StateEditStarted(self.now(), self._edits, self.caller()))
        return self._edits

    def edit_ended(self, number: int, *, is_committed: bool) -> None:
        """Record that an edit of the state has ended."""
        outcome: Literal["committed", "discarded"] = "committed" if is_committed else "discarded"
        self._emit(StateEditEnded(self.now(), number, outcome))

    def snapshot_taken(self, began: float) -> None:
        """Record that a snapshot was taken since ``began``."""
        if self._has_begun:
            now = self.now()
            self._emit(SnapshotTaken(now, now - began))

    # -- children

    def child_started(self, invocation: int | None, run_id: str, workflow: str) -> None:
        """Record that an invocation runs another workflow."""
        self._emit(ChildStarted(self.now(), invocation, run_id, workflow))

    def child_ended(self, run_id: str, status: str) -> None:
        """Record that the run of a child has ended."""
        self._emit(ChildEnded(self.now(), run_id, status))

    # -- cancellation

    def branch_cancelled(self, nodes: list[BranchNode], reason: str, by: CancelledBy) -> None:
        """Record the cancellation of nodes, and that what is queued in them is dropped."""
        self._cancellations += 1
        for node in nodes:
            assert node.cancel_record is not None
            node.cancel_record.number = self._cancellations
        found = set(nodes)
        inside = tuple(sorted(w.number for w in self._workers if w.number and w.node in found))
        self._emit(
            CancellationRequested(
                self.at, self._cancellations, by, reason, "branch", self._source, inside
            )
        )
        for node in nodes:
            for number, key in tuple(self._nodes.get(node, {}).items()):
                self._end(self._taken(key, number), "dropped", None)

    def run_cancelled(self, run: ObservedRun, reason: str) -> None:
        """Record, once, that the run is cancelled. Its outcome says by whom."""
        if self._run_cancellation:
            return
        self._cancellations += 1
        self._run_cancellation = self._cancellations
        inside = tuple(sorted(w.number for w in run.workers if w.number))
        self._emit(
            CancellationRequested(
                self.now(), self._cancellations, _canceller(run), reason, "run", None, inside
            )
        )

    def delivered(self, worker: ObservedWorker) -> None:
        """Record that a cancellation is about to be raised in a step: the first time it is."""
        number, node = worker.number, worker.node
        if number in self._unwinding or not number:
            return
        cancellation: int | None = None
        if node is not None and node.cancel_record is not None and node.is_cancelled:
            cancellation = node.cancel_record.number
        elif worker.run.outcome.status and self._run_cancellation:
            cancellation = self._run_cancellation
        elif worker.progress is None or not worker.progress.scope.cancel_called:
            return  # from a scope that the step has opened itself
        self._unwinding.add(number)
        self._emit(CancellationDelivered(self.now(), number, cancellation))


def _drop(_record: object) -> None:
    """Take what happens after the run's last record: a task outside it may still wait to edit."""


def _canceller(run: ObservedRun) -> CancelledBy:
    """Return who has cancelled a run whose outcome is settled."""
    outcome = run.outcome
    if outcome.status == "completed":
        return "stop"
    if outcome.status == "timed_out":
        return "deadline"
    if outcome.status == "failed":
        return "stall" if type(outcome.error) is WorkflowStalledError else "failure"
    if outcome.is_outside or outcome.status in ("detached", "parked"):
        return "outside"
    return "drain" if run.draining is not None else "owner"
