"""The record of one run: all its data, in one place.

The record has no behaviour. Functions that take it implement the run:
:mod:`sluicegate._engine.runner` runs it, and the operations of its steps and of its owner read and
change the fields below.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from sluicegate._engine.clock import Clock
from sluicegate._engine.machine import EMPTY
from sluicegate._engine.outcome import Outcome
from sluicegate._errors import WorkflowRuntimeError
from sluicegate._loop.limits import MAX_THREADS


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from contextvars import Context as ContextVars

    from sluicegate._context import Context
    from sluicegate._definition.graph import Graph
    from sluicegate._engine.journal import ChildRecord, InFlight, Sleep
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.probe import Probe
    from sluicegate._engine.record_writer import RecordWriter
    from sluicegate._engine.resource_scopes import ResourceScope
    from sluicegate._engine.run_journal import RunJournal
    from sluicegate._engine.step_queue import Absence
    from sluicegate._events import Event
    from sluicegate._loop import Backend, Waiter
    from sluicegate._loop.limits import ConcurrencyLimit, LoopSlots
    from sluicegate._observers import Observer
    from sluicegate._questions import Acknowledgement, Asked, OpenQuestion
    from sluicegate._state.store import StateStore
    from sluicegate._streams import EventLog


#: An event that arrived before the run began, with the step and the question that it names.
Early = tuple["Event", "str | None", "str | None"]

#: The content of an event that arrived with an id, and the step and the question that it named.
Key = tuple[str, "str | None", "str | None"]


class Resumable(Protocol):
    """A decoded snapshot, from which a run is resumed.

    Attributes:
        elapsed: Seconds that the run has taken before.
        retried: How many deliveries have been given a seed for the jitter of their retries.
        made: How many deliveries have a number.
        children: The children that continue when their steps call for them, by run id.
        questions: The open questions, each with the seconds since it was asked.
        saved: The structs that it was read from; a snapshot before the run begins contains them again.
    """

    elapsed: float
    retried: int
    made: int
    children: MutableMapping[str, ChildRecord]
    questions: list[Asked]
    saved: Any

    def load(self, run: Run, machine: Machine) -> None:
        """Put the pending work into the new machine of a run; synchronous, once."""


class Part(Protocol):
    """The part of a durable run that its owner in this process has entered; see :mod:`sluicegate.durable`.

    It runs the lives of the run, one after another: the times in which its steps run here.

    Attributes:
        is_live: Whether a life is under way. Between lives, the run rests in its store, or another
            process runs it.
        status: ``"idle"`` where the run rests in its store, ``"running"`` where it runs elsewhere.
        max_crashes: How many processes may have died in the same delivery.
        shown: The number of the last event of the durable stream, once the run has ended.
    """

    is_live: bool
    status: str
    max_crashes: int

    @property
    def shown(self) -> int: ...

    async def carry(self, live: Callable[[Run], Awaitable[None]]) -> None:
        """Run the lives of the run in this task, until it has ended or the part has."""

    def begin_life(self) -> None:
        """Apply the messages that arrived before this life; the machine is loaded, and no step runs yet."""

    async def end_life(self) -> None:
        """Give up the lease of a life in which the run has not ended; all steps have unwound. Shielded."""

    def idle_changed(self) -> None:
        """The run may have become idle, or busy again."""

    def let_go(self) -> None:
        """End the part of a reader that was dropped. May be called in any thread."""

    def send_event(
        self, event: Event, step: str | None, question: str | None, key: str | None
    ) -> Acknowledgement:
        """Pass an event from outside to the run, wherever it is."""
        ...

    def cancel(self, reason: str, after: str) -> None:
        """Cancel the run, wherever it is."""

    @property
    def questions(self) -> tuple[OpenQuestion, ...]:
        """The open questions of a run that is not live."""
        ...


@attrs.frozen
class RunOptions:
    """The options of a workflow that its runs need.

    Attributes:
        timeout: Seconds that a run may take, or None.
        excludes_waiting: Whether the timeout does not count the time in which the run is idle.
        max_threads: How many steps may run in worker threads at a time.
        run_limit: The limit of concurrent runs, or None.
        resources: The scope of the workflow's own resources, or None if it has none.
        observers: The observers of all runs of the workflow.
        classes: The classes that snapshots may contain, beside those that the steps name.
        stream: Whether ``ctx.stream.send`` sends ``"live"`` events or, in a durable run, ``"durable"`` ones.
    """

    timeout: float | None = None
    excludes_waiting: bool = False
    max_threads: int = MAX_THREADS
    run_limit: ConcurrencyLimit | None = None
    resources: ResourceScope | None = None
    observers: tuple[Observer, ...] = ()
    classes: tuple[type, ...] = ()
    stream: Literal["live", "durable"] = "live"


class Run:
    """One run, from its start event to its outcome; made before any event loop runs."""

    __slots__ = (
        "absence",
        "awaits_outside",
        "backend",
        "busy_children",
        "carrier",
        "children",
        "clock",
        "draining",
        "early",
        "graph",
        "host",
        "in_flight",
        "invocations",
        "is_owner_cancelled",
        "journal",
        "keys",
        "lender",
        "log",
        "loop",
        "machine",
        "made",
        "nursery",
        "operations",
        "options",
        "outcome",
        "parent",
        "parked",
        "part",
        "probe",
        "queue_scope",
        "queued_at",
        "records",
        "reported_idle",
        "reports",
        "resources",
        "rests_in_parent",
        "resumed",
        "retried",
        "run_id",
        "saved_children",
        "sleeping",
        "slots",
        "start_event",
        "state_store",
        "tells_steps",
        "thread",
        "timers",
        "turn_due",
        "variables",
        "warns_of_idle",
        "work",
        "workers",
        "workflow",
    )

    def __init__(  # noqa: PLR0915 - each field is named once
        self,
        workflow: object,
        graph: Graph,
        *,
        run_id: str,
        log: EventLog,
        options: RunOptions,
        start_event: Event | None,
        resumed: Resumable | None = None,
        early: list[Early] | tuple[Early, ...] = (),
        keys: dict[str, Key] = EMPTY,
        carrier: dict[str, str] = EMPTY,
        state_store: StateStore[Any] | None = None,
    ) -> None:
        # -- what it is made of

        #: The workflow object: ``self`` in the steps.
        self.workflow = workflow
        self.graph = graph
        self.run_id = run_id
        #: The stream of events that readers follow.
        self.log = log
        self.options = options
        #: The event to begin with; None once the machine has it, and in a run that is resumed.
        self.start_event = start_event
        #: The saved run to begin with instead of a start event; None once it is loaded.
        self.resumed = resumed
        #: Events from outside that arrived before the run began.
        self.early = early
        #: The events from outside that were sent with an id, by this id.
        self.keys = keys
        #: Trace context, which every snapshot of the run contains.
        self.carrier = carrier
        #: The state that the steps share; made when a step first asks for it.
        self.state_store = state_store

        # -- how far it is

        self.outcome = Outcome(graph.name, run_id, options.timeout)
        self.clock = Clock(options.timeout, 0.0 if resumed is None else resumed.elapsed)
        #: Makes the records, and calls the observers; None where the run is not observed.
        self.records: RecordWriter | None = None
        #: Whether observers hear of the beginning and the end of single steps.
        self.tells_steps = False
        #: The listener that tests set; see sluicegate._engine.probe.
        self.probe: Probe | None = None
        #: The reason of ``cancel(after="steps")``: from then on no step is started.
        self.draining: str | None = None
        #: The invocations that were cancelled or failed; a snapshot after the end contains them.
        self.in_flight: list[InFlight] | None = None
        #: Whether no delivery is alive and the run waits for an event from outside.
        self.awaits_outside = False
        #: Whether readers of internal events were last told that the run is idle.
        self.reported_idle = False
        #: Whether to log a warning when the run is first idle: it is awaited in place.
        self.warns_of_idle = False
        #: How many timers run: deliveries wait for the time of their next attempt, and progress
        #: reports for theirs.
        self.timers = 0
        #: The sleeps of its steps, each with the context of the step.
        self.sleeping: dict[Sleep, Context[Any]] = EMPTY
        #: The progress reports of its steps, once there is one.
        self.reports: Any = None
        #: How many deliveries have been given a seed for the jitter of their retries.
        self.retried = 0 if resumed is None else resumed.retried
        #: How many deliveries have a number.
        self.made = 0 if resumed is None else resumed.made
        #: Makes the records of a durable run; None in any other.
        self.journal: RunJournal | None = None
        #: What its owner has entered of a durable run; None in any other, and in children.
        self.part: Part | None = None
        #: How many invocations were reported to the probe.
        self.invocations = 0

        # -- what runs it; set when it is started, and None again after its end

        #: The event loop's backend; it stays after the end.
        self.backend: Backend | None = None
        #: The thread of the event loop, and the loop itself; they stay after the end.
        self.thread = 0
        self.loop: Any = None
        #: The deliveries, joins, waits and branches; it stays after the end for a snapshot.
        self.machine: Machine | None = None
        #: The context variables with which every worker begins.
        self.variables: ContextVars
        #: The task that runs the run, and what wakes it while it waits for something to start.
        self.host: Any = None
        self.parked: Waiter | None = None
        #: The nursery of all workers and timers.
        self.nursery: Any = None
        #: The tasks that run steps, in the order in which they began.
        self.workers: dict[Any, None] = {}
        #: The coroutine function that a new worker runs.
        self.work: Any = None
        #: The object that its contexts call while it runs.
        self.operations: Any = None
        #: When a worker has to let other tasks run, on ``perf_counter``.
        self.turn_due = 0.0
        #: The scope of the resources that live as long as the run.
        self.resources: ResourceScope | None = None
        #: Whether the owner is being cancelled, where its tasks cannot see that by themselves.
        self.is_owner_cancelled: Callable[[], bool] | None = None

        # -- the limit of concurrent runs

        #: The cancel scope in which it waits to be admitted.
        self.queue_scope: Any = None
        #: The slots that it waits for, as a child; and those of which it holds one.
        self.queued_at: LoopSlots | None = None
        self.slots: LoopSlots | None = None

        # -- its parent and its children

        #: The run whose step waits for this one.
        self.parent: Run | None = None
        #: The worker of that step, and the place that it gives up while this run is idle.
        self.lender: Any = None
        self.absence: Absence | None = None
        #: Whether the parent counts the step as waiting, because this run is idle.
        self.rests_in_parent = False
        #: The runs that its steps wait for, each with the context of the step.
        self.children: dict[Run, Context[Any]] = EMPTY
        #: How many of them do not wait for an event from outside.
        self.busy_children = 0
        #: In a resumed run: the children that continue when their steps call for them, by run id.
        self.saved_children: MutableMapping[str, ChildRecord] = (
            EMPTY if resumed is None else resumed.children
        )

    def leftovers(self) -> dict[str, object]:
        """Return what an ended run must not hold any more, by description; all values are false."""
        log, state = self.log, self.state_store
        return {
            "workers": self.workers,
            "timers of attempts or reports": self.timers,
            "steps that sleep": self.sleeping,
            "children": self.children,
            "a parent": self.parent,
            "a nursery": self.nursery,
            "the task that ran it": self.host,
            "a place where that task waits": self.parked,
            "a place in the queue of runs": self.queue_scope,
            "the scope of its timeout": self.clock.scope,
            "a scope of resources": self.resources,
            "tasks that wait for its end": self.outcome.waiters,
            "senders that wait": log.senders_waiting,
            "readers that wait": log.waiting,
            "a parent's stream": log.outer,
            "a writer of its state": state is not None and state.is_busy,
        }

    def live(self) -> tuple[Backend, Machine]:
        """Return the backend and the machine of a run that has begun."""
        assert self.backend is not None
        assert self.machine is not None
        return self.backend, self.machine


class Saved(Protocol):
    """A decoded snapshot; see :class:`sluicegate._engine.snapshot_read.SavedRun`."""

    start_event: Event | None
    arrived: tuple[Early, ...]
    keys: dict[str, Key]
    carrier: dict[str, str]
    store: StateStore[Any]

    @property
    def progress(self) -> Resumable | None: ...


def load_life(run: Run, saved: Saved, elapsed: float) -> None:
    """Have a run that is not running continue from a snapshot.

    It keeps its handler, its stream and the tasks that wait for its outcome.

    Args:
        run: The run; none of its steps is running.
        saved: The saved data.
        elapsed: Seconds that its earlier lives have used.
    """
    run.start_event, run.resumed, run.early = saved.start_event, saved.progress, saved.arrived
    run.keys, run.carrier, run.state_store = saved.keys, saved.carrier, saved.store
    run.clock = Clock(run.options.timeout, elapsed)
    run.machine = run.in_flight = run.draining = run.reports = None
    run.awaits_outside = run.reported_idle = False
    run.retried = 0 if saved.progress is None else saved.progress.retried
    run.made = 0 if saved.progress is None else saved.progress.made
    run.children, run.busy_children = EMPTY, 0
    run.saved_children = EMPTY if saved.progress is None else saved.progress.children


def name_run(run: Run, run_id: str) -> None:
    """Give another identifier to a run that has not begun."""
    run.run_id = run_id
    run.outcome = Outcome(run.graph.name, run_id, run.options.timeout)


def check_thread(run: Run, what: str) -> None:
    """Refuse a call that comes from another thread than the one that runs the run.

    Raises:
        WorkflowRuntimeError: It does; the message shows the way into the run's thread.
    """
    if run.thread and get_ident() != run.thread:
        has_way = what in ("send_event", "cancel")
        way = f"`handler.from_thread.{what}(...)`, or " if has_way else ""
        msg = (
            f"{what} was called from another thread than the one that runs {run.graph.name}; "
            f"expected {way}trio.from_thread.run_sync(...{what}, ...) or its AnyIO counterpart"
        )
        raise WorkflowRuntimeError(msg)


def content_key(run: Run, value: Any) -> int:
    """Return a number that values of equal content share, in every process."""
    return run.graph.codec(run.options.classes).content_key(value)


def time_now(run: Run) -> float:
    """Return the time on the backend's clock; of a run that is over, the time of its end."""
    if run.backend is None or run.outcome.is_over:
        return run.clock.ended_at
    return run.backend.current_time()
