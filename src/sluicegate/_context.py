"""The context: what a step may do beside returning an event."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, cast, final

import attrs

from sluicegate._errors import WorkflowRuntimeError, brief, unknown_name
from sluicegate._events import Event
from sluicegate._loop import current_backend
from sluicegate._loop.threads import FromThread
from sluicegate._streams import StreamSender


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from typing_extensions import TypeVar as TypeVarWithDefault

    from sluicegate._definition.retries import RetryInfo
    from sluicegate._definition.steps import Step
    from sluicegate._events import StartEvent
    from sluicegate._state.store import StateStore
    from sluicegate._streams import EventLog

    # A plain ``Context`` is a ``Context[Any]``, to the strictest checker too.
    StateT = TypeVarWithDefault("StateT", default=Any)
else:
    StateT = TypeVar("StateT")

EventT = TypeVar("EventT", bound="Event")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: What becomes of the stream of a child; see :meth:`Context.run_child`.
ChildStream = Literal["forward", "tag", "off"]


class BranchOperations(Protocol):
    """What the runner does for a branch."""

    def cancel_branch(self, node: Any, reason: str) -> None: ...

    async def wait_for_branch(self, node: Any, step: object) -> None: ...


class Line(Protocol):
    """What a branch knows of its lineage."""

    is_held: bool

    @property
    def is_over(self) -> bool: ...

    @property
    def is_cancelled(self) -> bool: ...


@final
class Branch:
    """What ``ctx.send_event()`` returns: the event, and everything that comes of it.

    It ends when nothing of it waits or runs any more. What has arrived in a join, or in a buffer
    of ``ctx.collect_events``, has left it. Whoever does not need it drops it.
    """

    __slots__ = ("_node", "_run", "_step")

    def __init__(self, run: BranchOperations | None, node: Line, step: object) -> None:
        self._run = run
        self._node = node
        self._step = step

    def cancel(self, reason: str = "branch.cancel() was called") -> None:
        """Cancel the branch: what waits is dropped, what runs is cancelled. Not a checkpoint.

        A fan-out around it counts it as ended; a fan-out within it is dropped with its join.
        The clean-up of steps runs to its end; :meth:`wait` waits for it. A failure of it counts as
        any other. Cancelling a branch that is over, or was cancelled, changes nothing.

        Args:
            reason: Why; it shows in Trio's ``Cancelled``.

        Raises:
            WorkflowRuntimeError: The call comes from another thread.
        """
        if self._run is not None:
            self._run.cancel_branch(self._node, reason)

    async def wait(self) -> None:
        """Wait until nothing of the branch is left.

        A failure in the branch is raised here while somebody waits, and then does not fail the
        run: the rest of the branch is cancelled first. A checkpoint. Cancelled, it leaves
        the branch alone.

        Raises:
            Exception: What a step of the branch raised: that object, with a note for each further
                failure.
            WorkflowRuntimeError: The branch waits for the very step that calls this, or its event
                is kept back until that step has succeeded; or the branch is not over, and the
                caller is no step of the run, nor a task that one started.
        """
        if self._run is None:
            await current_backend().checkpoint()
        else:
            await self._run.wait_for_branch(self._node, self._step)

    @property
    def is_done(self) -> bool:
        """Whether nothing of the branch is left."""
        return self._node.is_over

    @property
    def is_cancelled(self) -> bool:
        """Whether the branch, or one around it, was cancelled."""
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

    async def wait_for(
        self,
        context: Context[Any],
        kind: type[Event],
        requirements: Mapping[str, Any],
        waiter_event: Event | None,
        timeout: float | None,  # noqa: ASYNC109 - it is a field of what is waited for
    ) -> Event: ...

    def collect(
        self, context: Context[Any], event: Event, expected: Sequence[type[Event]], key: str
    ) -> list[Event] | None: ...

    async def run_child(self, context: Context[Any], handler: Any, stream: ChildStream) -> Any: ...

    def retry_info(self, context: Context[Any]) -> RetryInfo: ...

    def deadline(self) -> float: ...

    def snapshot(self) -> dict[str, Any]: ...


@attrs.frozen
class StepInfo:
    """What ``ctx.step`` tells of the step.

    Attributes:
        name: Its name.
        workflow: The name of the workflow class.
        num_workers: How many invocations of it may run at a time within the run.
        timeout: Seconds that an invocation may take, or None.
        attempt: Which attempt at its event this is; the first is 1.
    """

    name: str
    workflow: str
    num_workers: int
    timeout: float | None
    attempt: int


@final
class Context(Generic[StateT]):
    """What a step knows of its run and may do with it; the engine makes one per invocation.

    It serves the step and the tasks that the step starts, as long as the step runs. In a step
    that is a plain ``def``, and so runs in a worker thread, all that is no coroutine may be called
    as it is, and coroutines through :attr:`from_thread`. From any other thread go through
    ``trio.from_thread.run_sync`` or ``anyio.from_thread.run_sync``.

    ``Context(workflow)`` is one outside of a step: for the state that a run begins with, handed to
    ``workflow.run(ctx=...)``. ``handler.ctx`` is one of a run that goes on or is over.

    Args:
        workflow: The workflow that it is to be used with.
    """

    _is_sluicegate_context: ClassVar[bool] = True

    __slots__ = (
        "_is_over",
        "_node",
        "_progress",
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
        # For the engine, and not a part of the public API: an attempt before this one, the record of
        # what this one has done, and when it began, on the backend's clock.
        self.redelivery: Any = None
        self.journal: Any = None
        self.began_at: float | None = None
        self._progress: Callable[[], object] | None = None
        self._is_over = False
        self._stream: StreamSender | None = None

    @classmethod
    def from_dict(
        cls, workflow: WorkflowLike[Any], data: dict[str, Any], *, drop_removed_fields: bool = False
    ) -> Context[Any]:
        """Return the context that :meth:`to_dict` was called on, for ``workflow.run(ctx=...)``.

        A run that was not over goes on where it was, like :meth:`Workflow.resume`; one that was
        over leaves its state to a new run.

        Args:
            workflow: The workflow object that is to run.
            data: What :meth:`to_dict` or ``handler.snapshot()`` returned.
            drop_removed_fields: As for :meth:`Workflow.resume`.

        Raises:
            SnapshotError: The data is no snapshot of this workflow, or not of its present shape.
        """
        _check_workflow(workflow, "Context.from_dict(...)", "Context.from_dict(MyWorkflow(), data)")
        seed = workflow.__open_saved_run__(data or {}, drops_removed=drop_removed_fields)
        return outer_context(seed)

    def to_dict(self) -> dict[str, Any]:
        """Return a snapshot of the run, or of the state alone before it; plain JSON data.

        See :meth:`WorkflowHandler.snapshot`. Not a checkpoint.

        Raises:
            SnapshotError: Something in it cannot be kept; the message names its path.
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
        """Take note that the step has ended; for the engine."""
        self._is_over = True
        self.redelivery = self._progress = self._stream = None  # or they and this form circles

    @property
    def run_id(self) -> str:
        """The identifier of the run."""
        return self._run.run_id  # type: ignore[no-any-return]

    @property
    def is_running(self) -> bool:
        """Whether the run goes on: not stopped, failed, cancelled or timed out yet."""
        return self._run.is_running  # type: ignore[no-any-return]

    @property
    def step_name(self) -> str:
        """The name of the step."""
        return self._in_step("step_name").name

    @property
    def step(self) -> StepInfo:
        """What is known of the step."""
        step = self._in_step("step")
        return StepInfo(
            name=step.name,
            workflow=step.label.rpartition(".")[0],
            num_workers=step.num_workers,
            timeout=step.timeout,
            attempt=1 if self.redelivery is None else self.redelivery.number,
        )

    @property
    def deadline(self) -> float:
        """When the step is cancelled at the latest, on the event loop's clock; ``inf`` if never.

        The nearest of its own timeout, the run's, and those of what is around it.
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
        """The way from the worker thread of a plain ``def`` step into the event loop."""
        return FromThread()

    @property
    def stream(self) -> StreamSender:
        """The sending end of the run's stream, with back-pressure: ``await ctx.stream.send(ev)``."""
        if self._stream is None:
            if not hasattr(self._run, "log"):
                self._in_step("stream")  # raises: there is no run yet
            is_watched = self._progress is not None
            publish = self.write_event_to_stream if is_watched else self._run.publish
            self._stream = StreamSender(self._run.log, publish)
        return self._stream

    def write_event_to_stream(self, event: Event | None) -> None:
        """Publish an event to all readers of the run. Never waits; not a checkpoint.

        Args:
            event: The event; None is ignored.

        Raises:
            WorkflowRuntimeError: The run is over, it is a ``StopEvent`` (return it instead), or
                the call comes from another thread.
        """
        if self._progress is not None:
            self._progress()
        self._run.publish(event)

    def report_progress(self) -> None:
        """Say that the step gets on, to its ``idle_timeout``. Not a checkpoint.

        Raises:
            BaseException: In the thread of a plain ``def`` step, the backend's Cancelled, if the
                step is cancelled.
            WorkflowRuntimeError: The step has ended, or this is none.
        """
        self._in_step("report progress")
        if not self._run.is_running:  # in a thread, looking looks for a cancellation
            return

    def send_event(self, event: Event, step: str | None = None) -> Branch:
        """Send an event to the steps that take it, while this step goes on. Not a checkpoint.

        Outside of a step, on ``handler.ctx``, it is :meth:`WorkflowHandler.send_event`, and the
        branch that it returns is over.

        What came of a fan-out stays in it: the event counts as a branch of whatever fan-out
        this step runs in. In a step with ``retry`` it is kept back until the attempt has
        succeeded.

        Args:
            event: An event of a class that this step's return annotation names.
            step: The name of the one step that gets it; by default all that take its class do.

        Returns:
            The event and all that comes of it, to be cancelled or waited for.

        Raises:
            WorkflowRuntimeError: The class is not declared, no step takes it, the named step does
                not exist or does not take it, or this step has ended.
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
        timeout: float | None = None,  # noqa: ASYNC109 - whose message tells what was waited for
    ) -> EventT:
        """Wait, here in the middle of the step, for an event; usually an answer from outside.

        The step is suspended and keeps its place: nothing of it runs twice. It may wait for
        several events at once, in tasks of its own. Meanwhile the run is idle, if nothing else
        of it runs.

        An event that a step makes goes to its steps and to every wait that is open and fits. One
        from outside goes to the first wait that fits, or else to the steps that take its class. An
        answer (a ``HumanResponseEvent``) and an event of a class that a step declares in
        ``waits_for``, and that no step takes, are kept until a step waits for them; any other event
        has to find an open wait.

        A checkpoint. Cancelled, it has taken no event.

        Args:
            event_type: The class of the event.
            waiter_event: An event to publish once the waiting has begun: the question.
            requirements: Fields that the event must have, with their values.
            timeout: Seconds to wait; None means no limit.

        Raises:
            WorkflowTimeoutError: No event came in time.
            WorkflowRuntimeError: The step has ended.
            TypeError: It is no class of events, or ``requirements`` is no mapping.
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
        """Keep events until one of each expected class is there. Not a checkpoint.

        Args:
            event: The event that this invocation got.
            expected: The classes to wait for; a class that stands twice is waited for twice.
            buffer_id: Which of the step's buffers to use, where it has several.

        Returns:
            The events in the order of ``expected``, to the invocation that completes them;
            None to every other one, which then usually returns None. Events beyond the
            expected ones stay for the next time; one of no expected class is left alone.

        Raises:
            WorkflowRuntimeError: The step has ended.
            TypeError: What is expected is no list of event classes.
        """
        self._in_step(f"collect {type(event).__name__}")
        return self._run.collect(self, event, expected, buffer_id)  # type: ignore[no-any-return]

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

        It lives no longer than the step: it is cancelled with it, and its failure is the step's.
        It has its own timeout and its own state. A person's answer sent to this run goes to the
        child where this workflow has no use for it. A checkpoint; cancelled, the child has unwound.

        Args:
            workflow: The child.
            stream: What becomes of what the child publishes: ``"forward"`` puts it on this run's
                stream, ``"tag"`` does so within a :class:`ChildEvent` that names the child,
                ``"off"`` does not.
            start_event: As for :meth:`Workflow.run`.
            run_id: An identifier for the child's run; by default a new one.
            **fields: The fields of the child's start event.

        Raises:
            Exception: What a step of the child raised: that object, with a note for each level.
            WorkflowTimeoutError: The child did not end by its own timeout.
            ValueError: ``stream`` is none of the three.
            TypeError: The fields do not fit the child's start event, or it is no workflow object.
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
        return cast("R", await self._run.run_child(self, handler, stream))

    def retry_info(self) -> RetryInfo:
        """Tell which attempt this is, and what became of the others. Not a checkpoint."""
        self._in_step("retry_info")
        return self._run.retry_info(self)  # type: ignore[no-any-return]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(unknown_name("Context", name, _OLDER))

    def __repr__(self) -> str:
        where = "" if self._step is None else f" of step {self._step.name!r}"
        return f"<Context{where} in run {self.run_id}>"


#: Names of LlamaIndex Workflows that a context has no more, and what takes their place.
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
            f"{what} was given {brief(workflow)}, which is no workflow object; expected {expected}"
        )
        raise TypeError(msg)


#: No requirements; of thousands of steps that wait, each dict counts.
_ANY: Mapping[str, Any] = MappingProxyType[str, Any]({})

_new = object.__new__


def step_context(run: RunOperations, step: Step | None, node: Any, again: Any) -> Context[Any]:
    """Return the context of one invocation; for the engine."""
    context: Context[Any] = _new(Context)
    context._run = run
    context._step = step
    context._node = node
    context.redelivery = again
    context._is_over = False
    context._stream = context.journal = context._progress = context.began_at = None
    return context


def watch_progress(context: Context[Any], note: Callable[[], object]) -> None:
    """Have every call of a context call ``note``, for the idle timeout of its step."""
    context._progress = note


def outer_context(run: Any) -> Context[Any]:
    """Return a context outside of a step; for the engine."""
    return step_context(run, None, None, None)


def run_of_context(context: Context[Any]) -> Any:
    """Return the run of a context, or the saved run of one that was made before there is a run."""
    return context._run
