"""The context of a step: how it sends events, waits, publishes and reads the state."""

from __future__ import annotations

import inspect
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    TypeVarTuple,
    Unpack,
    cast,
    final,
    overload,
)

import attrs

from sluicegate._errors import WorkflowRuntimeError, brief, unknown_name
from sluicegate._events import Event
from sluicegate._loop import current_backend
from sluicegate._loop.threads import FromThread
from sluicegate._streams import StreamSender


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence

    from typing_extensions import TypeVar as TypeVarWithDefault

    from sluicegate._definition.retries import RetryInfo
    from sluicegate._definition.steps import Step
    from sluicegate._events import StartEvent
    from sluicegate._state.store import StateStore
    from sluicegate._streams import EventLog

    # A plain ``Context`` is a ``Context[Any]`` for the strictest type checker too.
    StateT = TypeVarWithDefault("StateT", default=Any)
else:
    StateT = TypeVar("StateT")

EventT = TypeVar("EventT", bound="Event")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")

#: The longest sleep, in seconds, that a snapshot can hold.
LONGEST_SLEEP = 1e12

#: The exceptions that :meth:`Context.once` keeps.
FailureKinds: TypeAlias = bool | type[Exception] | tuple[type[Exception], ...]

#: The handling of the events of a child; see :meth:`Context.run_child`.
ChildStream = Literal["forward", "tag", "off"]


class BranchOperations(Protocol):
    """The operations of a run that its branches use."""

    def cancel_branch(self, node: Any, reason: str) -> None: ...

    async def wait_for_branch(self, node: Any, step: object) -> None: ...


class Line(Protocol):
    """The node of a branch in the lineage of a run."""

    is_held: bool

    @property
    def is_over(self) -> bool: ...

    @property
    def is_cancelled(self) -> bool: ...


@final
class Branch:
    """The result of ``ctx.send_event()``: the event, and every event and step that follows from it.

    A branch ends when none of its events is queued and none of its steps runs. An event that has
    arrived in a join, or in a buffer of ``ctx.collect_events``, no longer belongs to it. The step
    may ignore the branch.
    """

    __slots__ = ("_node", "_run", "_step")

    def __init__(self, run: BranchOperations | None, node: Line, step: object) -> None:
        self._run = run
        self._node = node
        self._step = step

    def cancel(self, reason: str = "branch.cancel() was called") -> None:
        """Cancel the branch: drop its queued events and cancel its steps. Not a checkpoint.

        A fan-out around the branch counts it as ended. A fan-out within it is dropped with its
        join. Each step runs its clean-up to the end, and :meth:`wait` waits for that. A failure in
        the clean-up counts like any other. Cancelling a branch that has ended or was cancelled
        changes nothing.

        Args:
            reason: The reason, which Trio's ``Cancelled`` shows.

        Raises:
            WorkflowRuntimeError: The call comes from another thread.
        """
        if self._run is not None:
            self._run.cancel_branch(self._node, reason)

    async def wait(self) -> None:
        """Wait until the branch has ended. A checkpoint; cancelled, it leaves the branch running.

        A failure in the branch cancels the rest of the branch and is then raised here. It does not
        fail the run while a step waits for the branch.

        Raises:
            Exception: The exception object that a step of the branch raised, with a note for each
                further failure.
            WorkflowRuntimeError: The branch waits for the step that called this, or its event is
                held back until that step has succeeded; or the branch has not ended, and the
                caller is neither a step of the run nor a task that one started.
        """
        if self._run is None:
            await current_backend().checkpoint()
        else:
            await self._run.wait_for_branch(self._node, self._step)

    @property
    def is_done(self) -> bool:
        """Whether the branch has ended."""
        return self._node.is_over

    @property
    def is_cancelled(self) -> bool:
        """Whether the branch, or a branch around it, was cancelled."""
        return self._node.is_cancelled

    def __repr__(self) -> str:
        state = "cancelled" if self.is_cancelled else "done" if self.is_done else "alive"
        return f"<Branch, {state}>"

    def __del__(self) -> None:
        self._node.is_held = False


class WorkflowLike(Protocol[R_co]):
    """A :class:`Workflow`, as far as a context needs it."""

    def __open_saved_run__(
        self, data: dict[str, Any] | None, *, drops_removed: bool = False
    ) -> Any: ...

    def run(
        self, *, start_event: StartEvent | None = None, run_id: str | None = None, **fields: Any
    ) -> Awaitable[R_co]: ...


class Report(Protocol):
    """The progress reports of one invocation; awaiting it is a checkpoint."""

    def put(self, done: Any, total: Any, message: Any) -> None: ...

    def close(self) -> None: ...

    def __await__(self) -> Generator[Any, Any, None]: ...


class RunOperations(Protocol):
    """The operations of a run that its contexts use."""

    @property
    def run_id(self) -> str: ...

    @property
    def is_running(self) -> bool: ...

    @property
    def log(self) -> EventLog: ...

    @property
    def store(self) -> StateStore[Any]: ...

    def send(self, context: Context[Any], event: Event, target: str | None) -> Branch: ...

    def publish(self, event: Event | None) -> None: ...

    def open_report(self, context: Context[Any]) -> Report: ...

    async def wait_for(
        self,
        context: Context[Any],
        kind: type[Event],
        requirements: Mapping[str, Any],
        waiter_event: Event | None,
        timeout: float | None,  # noqa: ASYNC109 - it is a field of the wait
    ) -> Event: ...

    def collect(
        self, context: Context[Any], event: Event, expected: Sequence[type[Event]], key: str
    ) -> list[Event] | None: ...

    async def once(
        self,
        context: Context[Any],
        key: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        recorded: tuple[type[Exception], ...],
    ) -> Any: ...

    async def sleep(self, context: Context[Any], seconds: float) -> None: ...

    async def run_child(
        self, context: Context[Any], handler: Any, stream: ChildStream, run_id: str | None
    ) -> Any: ...

    @property
    def fencing_token(self) -> int: ...

    def delivery_key(self, context: Context[Any]) -> str: ...

    def retry_info(self, context: Context[Any]) -> RetryInfo: ...

    def deadline(self) -> float: ...

    def snapshot(self) -> dict[str, Any]: ...


@attrs.frozen
class StepInfo:
    """The description of the step that runs: ``ctx.step``.

    Attributes:
        name: The name of the step.
        workflow: The name of the workflow class.
        num_workers: The number of its invocations that may run at a time within the run.
        timeout: The seconds that an invocation may take, or None.
        attempt: The number of this attempt at the event; the first is 1.
    """

    name: str
    workflow: str
    num_workers: int
    timeout: float | None
    attempt: int


@final
class Context(Generic[StateT]):
    """The interface of a step to its run. The engine makes one for each invocation of a step.

    The step and the tasks that it starts may use it while the step runs. A plain ``def`` step runs
    in a worker thread: it calls the synchronous methods directly, and runs coroutines with
    :attr:`from_thread`. Any other thread has to use ``trio.from_thread.run_sync`` or
    ``anyio.from_thread.run_sync``.

    ``Context(workflow)`` makes a context without a run: set its state, and pass it to
    ``workflow.run(ctx=...)``. ``handler.ctx`` is the context of a run, outside of its steps.

    Args:
        workflow: The workflow object that will run with it.

    Raises:
        TypeError: ``workflow`` is not a workflow object.
    """

    _is_sluicegate_context: ClassVar[bool] = True

    __slots__ = (
        "_is_over",
        "_node",
        "_progress",
        "_report",
        "_run",
        "_step",
        "_stream",
        "began_at",
        "journal",
        "redelivery",
    )

    def __init__(self, workflow: WorkflowLike[Any]) -> None:
        _check_workflow(workflow, "Context(...)", "Context(MyWorkflow())")
        self._run: Any = workflow.__open_saved_run__(None)
        self._step: Step | None = None
        self._node: Any = None
        # Internal to the engine: an earlier attempt, the record of the operations of this one, and
        # its beginning on the backend's clock.
        self.redelivery: Any = None
        self.journal: Any = None
        self.began_at: float | None = None
        self._progress: Callable[[], object] | None = None
        self._is_over = False
        self._report: Report | None = None
        self._stream: StreamSender | None = None

    @classmethod
    def from_dict(
        cls, workflow: WorkflowLike[Any], data: dict[str, Any], *, drop_removed_fields: bool = False
    ) -> Context[Any]:
        """Restore a context from a snapshot, for ``workflow.run(ctx=...)``. Not a checkpoint.

        If the run had not ended, ``workflow.run(ctx=...)`` continues it, as
        :meth:`Workflow.resume` does. Otherwise a new run begins with its state.

        Args:
            workflow: The workflow object that will run.
            data: The dict that :meth:`to_dict` or ``handler.snapshot()`` returned.
            drop_removed_fields: As for :meth:`Workflow.resume`.

        Raises:
            SnapshotError: The data are not a snapshot of this workflow with its present steps, or
                are damaged; the message names the place.
            TypeError: ``workflow`` is not a workflow object.
        """
        _check_workflow(workflow, "Context.from_dict(...)", "Context.from_dict(MyWorkflow(), data)")
        seed = workflow.__open_saved_run__(data or {}, drops_removed=drop_removed_fields)
        return outer_context(seed)

    def to_dict(self) -> dict[str, Any]:
        """Return a snapshot of the run, or, without a run, of the state. Not a checkpoint.

        The snapshot is plain JSON data; see :meth:`WorkflowHandler.snapshot`.

        Raises:
            SnapshotError: A value cannot be kept; the message names its path.
        """
        return self._run.snapshot()  # type: ignore[no-any-return]

    def _in_step(self, what: str) -> Step:
        if self._step is None:
            msg = (
                f"{what} was called outside of a step; expected the `ctx` that a step is given, or, "
                "from outside, the handler: `handler.send_event(event)`"
            )
            raise WorkflowRuntimeError(msg)
        if self._is_over:
            msg = (
                f"the step {self._step.name} has ended, so it cannot {what} any more; expected a "
                "task that the step waits for"
            )
            raise WorkflowRuntimeError(msg)
        if self._progress is not None:
            self._progress()
        return self._step

    def end(self) -> None:
        """Mark the step as ended. Internal: the engine calls it."""
        self._is_over = True
        if self._report is not None:
            self._report.close()
            self._report = None
        self.redelivery = self._progress = self._stream = None  # or they and this form circles

    @property
    def run_id(self) -> str:
        """The identifier of the run."""
        return self._run.run_id  # type: ignore[no-any-return]

    @property
    def is_running(self) -> bool:
        """Whether the run is active: not completed, failed, cancelled or timed out."""
        return self._run.is_running  # type: ignore[no-any-return]

    @property
    def step_name(self) -> str:
        """The name of the step."""
        return self._in_step("step_name").name

    @property
    def step(self) -> StepInfo:
        """The description of the step: its name, workflow, limits and attempt."""
        step = self._in_step("step")
        return StepInfo(
            name=step.name,
            workflow=step.label.rpartition(".")[0],
            num_workers=step.num_workers,
            timeout=step.timeout,
            attempt=1 if self.redelivery is None else self.redelivery.number,
        )

    @property
    def delivery_key(self) -> str:
        """Identifies the event that the step handles: the same text for all its attempts.

        It is the run id and a number, ``"{run_id}/{number}"``, also in a run that continues from a
        snapshot. Two deliveries of a run never have the same one, even for equal events. Give it
        to an outside system that drops repeated requests, with a name if the step makes several::

            await ctx.once("charge", bank.charge, ev.amount, f"{ctx.delivery_key}/charge")

        Resume a run under its own run id, because the key contains it.

        Raises:
            BaseException: In the thread of a plain ``def`` step: the backend's ``Cancelled``, if
                the step is cancelled.
            WorkflowRuntimeError: The step has ended, or the context is not that of a step.
        """
        self._in_step("read its delivery_key")
        return self._run.delivery_key(self)  # type: ignore[no-any-return]

    @property
    def attempt_key(self) -> str:
        """Identifies this attempt of the step: :attr:`delivery_key` and the number of the attempt.

        A step that begins again after a snapshot, and has not failed, makes the same attempt again.

        Raises:
            BaseException: As for :attr:`delivery_key`.
            WorkflowRuntimeError: As for :attr:`delivery_key`.
        """
        key = self.delivery_key
        return f"{key}/{1 if self.redelivery is None else self.redelivery.number}"

    @property
    def fencing_token(self) -> int:
        """The number of this life of a durable run: it rises whenever a process takes the run over.

        Give it to an outside system that refuses a request whose token is lower than one that it has
        seen. A thread that was abandoned, or a process that was stopped for longer than its lease, can
        then do no harm there. It is 0 in a run without a store.

        Raises:
            WorkflowRuntimeError: The step has ended, or the context is not that of a step.
        """
        self._in_step("read its fencing_token")
        return self._run.fencing_token  # type: ignore[no-any-return]

    @property
    def deadline(self) -> float:
        """The time at which the step is cancelled at the latest; ``inf`` if there is no deadline.

        It is on the event loop's clock: the earliest deadline of the step's timeout, the run's
        timeout, and the cancel scopes around the run.
        """
        self._in_step("deadline")
        return self._run.deadline()  # type: ignore[no-any-return]

    @property
    def store(self) -> StateStore[StateT]:
        """The state of the run, shared by its steps."""
        if self._progress is not None:
            self._progress()
        return self._run.store  # type: ignore[no-any-return]

    @property
    def from_thread(self) -> FromThread:
        """The interface of a plain ``def`` step, in its worker thread, to the event loop."""
        return FromThread()

    @property
    def stream(self) -> StreamSender:
        """The sender of the run's stream: ``await ctx.stream.send(ev)`` applies back-pressure."""
        if self._stream is None:
            if not hasattr(self._run, "log"):
                self._in_step("stream")  # raises: there is no run yet
            is_watched = self._progress is not None
            publish = self.write_event_to_stream if is_watched else self._run.publish
            self._stream = StreamSender(self._run.log, publish)
        return self._stream

    def write_event_to_stream(self, event: Event | None) -> None:
        """Publish an event to all readers of the run's stream. Never waits; not a checkpoint.

        Args:
            event: The event; None is ignored.

        Raises:
            WorkflowRuntimeError: The run has ended; or the event is a ``StopEvent``, which a step
                returns instead; or the call comes from another thread.
        """
        if self._progress is not None:
            self._progress()
        self._run.publish(event)

    def progress(
        self, done: float, total: float | None = None, message: str = ""
    ) -> Awaitable[None]:
        """Report how far the step is: a :class:`ProgressEvent` on the run's stream.

        ::

            for number, page in enumerate(pages, 1):
                ...
                await ctx.progress(number, len(pages), page.title)

        The call itself reports; awaiting it is a checkpoint, which always checks for cancellation,
        and lets other tasks run at least every 0.5 ms. A plain ``def`` step, in a thread or in a
        process, calls it without ``await``. It never waits for readers.

        The first report is published at once. Then at most about ten a second are: a newer report
        replaces one that is held back, and the newest is published even if the step reports
        nothing more, or ends. So a step may report as often as it likes. Each call restarts the
        step's ``idle_timeout``.

        Args:
            done: How much is done, in any unit: a finite number of at least 0. It may fall, and it
                may exceed ``total``.
            total: How much there is to do, in the same unit; None if that is not known.
            message: What the step is doing, for a person to read.

        Returns:
            An awaitable. If the await is cancelled, the report has been made.

        Raises:
            TypeError: ``done`` or ``total`` is not a number, or ``message`` not a string.
            ValueError: ``done`` or ``total`` is negative or not finite.
            BaseException: In the thread of a plain ``def`` step: the backend's ``Cancelled``, if
                the step is cancelled.
            WorkflowRuntimeError: The step has ended, or the context is not that of a step; or the
                call comes from a thread that is not the step's.
        """
        self._in_step("report progress")
        report = self._report
        if report is None:
            report = self._report = cast("Report", self._run.open_report(self))
        report.put(done, total, message)
        return report

    def report_progress(self) -> None:
        """Restart the step's ``idle_timeout``. Not a checkpoint.

        To tell the readers of the stream how far the step is, use :meth:`progress`.

        Raises:
            BaseException: In the thread of a plain ``def`` step: the backend's ``Cancelled``, if
                the step is cancelled.
            WorkflowRuntimeError: The step has ended, or the context is not that of a step.
        """
        self._in_step("report progress")
        if not self._run.is_running:  # in a thread, this read checks for a cancellation
            return

    def send_event(self, event: Event, step: str | None = None) -> Branch:
        """Send an event to the steps that take it, and continue this step. Not a checkpoint.

        If this step runs in a fan-out, the event belongs to the same fan-out. In a step with
        ``retry``, the engine holds the event back until the attempt has succeeded.

        On ``handler.ctx``, outside of a step, it is the same as :meth:`WorkflowHandler.send_event`
        and returns a branch that has ended.

        Args:
            event: An event of a class that this step's return annotation names.
            step: The name of the only step that gets the event; by default every step that takes
                its class.

        Returns:
            The branch that the event begins, which can be cancelled or waited for.

        Raises:
            WorkflowRuntimeError: The return annotation does not name the class; no step takes it;
                the named step does not exist or does not take it; or this step has ended.
        """
        if self._step is None and hasattr(self._run, "send_from_outside"):
            return self._run.send_from_outside(event, step)  # type: ignore[no-any-return]
        self._in_step(f"send {type(event).__name__}")
        return self._run.send(self, event, step)  # type: ignore[no-any-return]

    async def wait_for_event(
        self,
        event_type: type[EventT],
        waiter_event: Event | None = None,
        *,
        requirements: Mapping[str, Any] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - its message names the awaited event
    ) -> EventT:
        """Suspend the step until an event arrives, usually an answer from outside.

        A checkpoint; cancelled, it has taken no event. The step continues after the wait and
        repeats nothing. Its tasks may wait for several events at once. While every step of the run
        waits, the run is idle.

        An event from a step goes to the steps that take it and to every open wait that it fits. An
        event from outside goes to the first open wait that it fits, or else to the steps that take
        its class. Two kinds of events are kept until a step waits for them: an answer (a
        ``HumanResponseEvent``), and an event that no step takes but a step declares in
        ``waits_for``. Any other event needs an open wait.

        Args:
            event_type: The class of the event.
            waiter_event: An event to publish once the wait is open, such as the question.
            requirements: The fields that the event must have, with their values.
            timeout: The seconds to wait; None means no limit.

        Returns:
            The event.

        Raises:
            WorkflowTimeoutError: No event arrived in time.
            WorkflowRuntimeError: The step has ended.
            TypeError: ``event_type`` is not an event class, or ``requirements`` is not a mapping.
        """
        kind: Any = event_type
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            msg = (
                f"wait_for_event was given {event_type!r:.200}; expected a class of events: "
                "`await ctx.wait_for_event(HumanResponseEvent)`"
            )
            raise TypeError(msg)
        if requirements is not None and not hasattr(requirements, "items"):
            msg = (
                f"requirements of wait_for_event is {requirements!r:.200}; expected fields with their "
                'values: `requirements={"name": "ann"}`'
            )
            raise TypeError(msg)
        self._in_step(f"wait for {event_type.__name__}")
        event = await self._run.wait_for(
            self, event_type, requirements or _ANY, waiter_event, timeout
        )
        return cast("EventT", event)

    def collect_events(
        self, event: EventT, expected: Sequence[type[EventT]], buffer_id: str = "default"
    ) -> list[EventT] | None:
        """Put the event into a buffer, and return a complete set of events. Not a checkpoint.

        Events beyond the expected ones stay in the buffer for the next set. An event of a class
        that is not expected is ignored.

        Args:
            event: The event of this invocation.
            expected: The classes of a set; a class listed twice needs two events.
            buffer_id: The name of the buffer, if the step uses several.

        Returns:
            The events in the order of ``expected`` if this event completes a set. Otherwise None,
            and the step usually returns None too.

        Raises:
            WorkflowRuntimeError: The step has ended.
            TypeError: ``expected`` is not a list of event classes.
        """
        self._in_step(f"collect {type(event).__name__}")
        return self._run.collect(self, event, expected, buffer_id)  # type: ignore[no-any-return]

    @overload
    async def once(
        self,
        key: str,
        fn: Callable[[Unpack[Ts]], Awaitable[R]],
        /,
        *args: *Ts,
        record_failures: FailureKinds = False,
    ) -> R: ...

    @overload
    async def once(
        self,
        key: str,
        fn: Callable[[Unpack[Ts]], R],
        /,
        *args: *Ts,
        record_failures: FailureKinds = False,
    ) -> R: ...

    async def once(
        self,
        key: str,
        fn: Callable[[Unpack[Ts]], Any],
        /,
        *args: *Ts,
        record_failures: FailureKinds = False,
    ) -> Any:
        """Call a function whose effect must not be repeated, and keep its result.

        ::

            receipt = await ctx.once("charge", bank.charge, ev.amount, ctx.delivery_key)

        If this delivery has a result under the key, ``fn`` is not called, and the kept result is
        returned: in another attempt of the step, and in a run that continues from a snapshot. The
        arguments are not compared. If another task of the step is calling a function under the same
        key, this task waits for its result, and takes over if it keeps none.

        A process that dies between the effect and the record of its result leaves no record, so
        ``fn`` is called again. Pass :attr:`delivery_key` to the outside system where that matters.

        A checkpoint. Cancelled while ``fn`` runs, it keeps nothing; cancelled after ``fn`` has
        returned, it has kept the result. A ``def`` function runs in a worker thread, as a ``def``
        step does: a cancellation waits for the thread, and a result that it returns is kept.

        Args:
            key: Names the call. Each call of a delivery has its own key.
            fn: An async function, or a plain one.
            *args: Its arguments.
            record_failures: The exceptions that are kept as results are: True for every
                ``Exception``, or their classes. By default none is, and ``fn`` is called again.

        Returns:
            A copy of the result, as a snapshot keeps it; the first call returns a copy too.

        Raises:
            RestoredError: ``fn`` has raised an exception that is kept. The first call raises it with
                the exception as its cause.
            Exception: The exception of ``fn``, if it is not kept.
            SnapshotError: The result cannot be kept; the message names its path. ``fn`` has run.
            TypeError: The key is not a str, ``fn`` is not a function, or ``record_failures`` names
                something other than exceptions.
            WorkflowRuntimeError: ``fn`` calls ``once`` with the same key; it runs in a thread and
                returns an awaitable; or the step has ended.
        """
        _check_once(key, fn)
        recorded = _exceptions_to_record(record_failures)
        self._in_step(f"call once({key!r})")
        return await self._run.once(self, key, fn, args, recorded)

    async def sleep(self, seconds: float) -> None:
        """Sleep; a step that begins again continues with the seconds that were left.

        Unlike a sleep of the event loop, it is found again in another attempt of the step, and in a
        run that continues from a snapshot: by its length, and among equal ones by their order. One
        that was over ends at once. It never ends before it is due. The time between a snapshot and
        the resumed run does not count; the time between two attempts does.

        While it sleeps, the step gives up its place for other invocations, as it does in
        :meth:`wait_for_event`, unless it has ``release_while_waiting=False``. A run whose steps
        sleep is not idle, because it waits for no event from outside. ``handler.cancel(after="steps")``
        does not wait for the end of a sleep: the snapshot has the seconds that are left.

        A checkpoint. A sleep that is cancelled with its attempt continues in the next one. One that
        the step has cancelled itself is forgotten as soon as the step sleeps, waits, runs a child or
        calls :meth:`once` after it.

        Args:
            seconds: How long to sleep, at least 0.

        Raises:
            TypeError: ``seconds`` is not a number.
            ValueError: It is negative, not finite, or above 1e12.
            WorkflowRuntimeError: The step has ended; or the call comes from another thread.
        """
        _check_sleep(seconds)
        self._in_step("sleep")
        await self._run.sleep(self, float(seconds))

    async def run_child(
        self,
        workflow: WorkflowLike[R],
        *,
        stream: ChildStream = "forward",
        start_event: StartEvent | None = None,
        run_id: str | None = None,
        **fields: Any,
    ) -> R:
        """Run another workflow within this step, and return its result.

        A checkpoint; cancelled, it returns after the child has unwound. The child is cancelled
        with the step, and a failure of the child is raised here. It has its own timeout and state.
        An answer that is sent to this run goes to the child if this workflow does not take it.

        A step that starts again after a snapshot finds its children by workflow, start event and
        given run id: one that has ended returns its result or raises its failure again, without
        running, and any other continues where it was. In a retry, the step finds the results of
        the children that completed.

        Args:
            workflow: The child.
            stream: The handling of events that the child publishes: ``"forward"`` puts them on
                this run's stream, ``"tag"`` does so within a :class:`ChildEvent` that names the
                child, ``"off"`` drops them.
            start_event: As for :meth:`Workflow.run`.
            run_id: An identifier for the child's run; by default one made of this run's.
            **fields: The fields of the child's start event.

        Returns:
            The result of the child, as ``await handler`` returns it.

        Raises:
            Exception: The exception object that a step of the child raised, with a note for each
                level.
            RestoredError: The child failed before the snapshot from which this run continues.
            SnapshotError: In a run that continues from a snapshot: the child's part of it does not
                fit the child's workflow. It stays in later snapshots.
            WorkflowTimeoutError: The child did not end by its timeout.
            ValueError: ``stream`` is not one of the three.
            TypeError: The fields do not fit the child's start event, or ``workflow`` is not a
                workflow object.
            WorkflowRuntimeError: The step has ended, or runs are nested too deeply.
        """
        self._in_step(f"run {type(workflow).__name__}")
        if isinstance(workflow, type):
            name = workflow.__name__
            msg = f"run_child was given the class {name}; expected an object: run_child({name}())"
            raise TypeError(msg)
        _check_workflow(workflow, "run_child(...)", "run_child(MyWorkflow())")
        if stream not in ("forward", "tag", "off"):
            msg = f"stream is {brief(stream)}; expected 'forward', 'tag' or 'off'"
            raise ValueError(msg)
        handler = workflow.run(start_event=start_event, run_id=run_id, **fields)
        return cast("R", await self._run.run_child(self, handler, stream, run_id))

    def retry_info(self) -> RetryInfo:
        """Return the number of this attempt and the earlier failures. Not a checkpoint."""
        self._in_step("retry_info")
        return self._run.retry_info(self)  # type: ignore[no-any-return]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(unknown_name("Context", name, _OLDER))

    def __repr__(self) -> str:
        where = "" if self._step is None else f" of step {self._step.name!r}"
        return f"<Context{where} in run {self.run_id}>"


#: Names of LlamaIndex Workflows that a context does not have, and their replacements.
_OLDER = {
    "data": "`await ctx.store.get(path)` and `await ctx.store.set(path, value)`",
    "get": "`await ctx.store.get(path)`",
    "set": "`await ctx.store.set(path, value)`",
    "get_result": "`await handler`",
    "get_step_context": "`ctx` as an argument of the function",
    "lock": "`async with ctx.store.edit_state() as state:`",
    "running_steps": "an observer: `MyWorkflow(observers=[...])`",
    "session": "`ctx.send_event(event)` and `ctx.store`",
    "stream_events": "`handler.stream_events()`",
    "streaming_queue": "`handler.stream_events()`",
}


def _check_workflow(workflow: object, what: str, expected: str) -> None:
    if isinstance(workflow, type) or not hasattr(workflow, "__open_saved_run__"):
        msg = (
            f"{what} was given {brief(workflow)}, which is not a workflow object; "
            f"expected {expected}"
        )
        raise TypeError(msg)


def _check_sleep(seconds: object) -> None:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        msg = f"sleep was given {brief(seconds)}; expected seconds: `await ctx.sleep(60)`"
        raise TypeError(msg)
    if not 0 <= seconds <= LONGEST_SLEEP:
        msg = f"sleep was given {seconds} seconds; expected 0 to {LONGEST_SLEEP:g}"
        raise ValueError(msg)


def _check_once(key: object, function: object) -> None:
    if not isinstance(key, str):
        msg = (
            f"once was given the key {brief(key)}; expected a str: `ctx.once('charge', charge, 10)`"
        )
        raise TypeError(msg)
    if not callable(function):
        if inspect.iscoroutine(function):
            function.close()
        msg = (
            f"once({key!r}) was given {brief(function)}; expected a function, and its arguments "
            f"behind it: `ctx.once({key!r}, fetch, url)`"
        )
        raise TypeError(msg)


def _exceptions_to_record(given: Any) -> tuple[type[Exception], ...]:
    if isinstance(given, bool):
        return (Exception,) if given else ()
    kinds: tuple[Any, ...] = (given,)
    if isinstance(given, tuple):
        kinds = cast("tuple[Any, ...]", given)
    if not all(inspect.isclass(kind) and issubclass(kind, Exception) for kind in kinds):
        msg = (
            f"record_failures is {brief(cast('object', given))}; expected True, or the exceptions to keep: "
            "`record_failures=CardDeclined`, `record_failures=(CardDeclined, Fraud)`"
        )
        raise TypeError(msg)
    return kinds


#: No requirements; shared, because thousands of waiting steps would each have a dict.
_ANY: Mapping[str, Any] = MappingProxyType[str, Any]({})

_new = object.__new__


def step_context(run: RunOperations, step: Step | None, node: Any, again: Any) -> Context[Any]:
    """Return the context of one invocation."""
    context: Context[Any] = _new(Context)
    context._run = run
    context._step = step
    context._node = node
    context.redelivery = again
    context._is_over = False
    context._stream = context.journal = context._progress = context.began_at = None
    context._report = None
    return context


def watch_progress(context: Context[Any], note: Callable[[], object]) -> None:
    """Make every call of a context call ``note``: progress that resets the idle timeout."""
    context._progress = note


def outer_context(run: Any) -> Context[Any]:
    """Return a context outside of a step."""
    return step_context(run, None, None, None)


def run_of_context(context: Context[Any]) -> Any:
    """Return the run of a context, or the saved run of one that was made before there is a run."""
    return context._run
