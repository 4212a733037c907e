"""The context: what a step may do beside returning an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast, final

from penstock._errors import WorkflowRuntimeError
from penstock._streams import StreamSender


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import TypeVar as TypeVarWithDefault

    from penstock._events import Event
    from penstock._streams import EventLog

    # A plain ``Context`` is a ``Context[Any]``, to the strictest checker too.
    StateT = TypeVarWithDefault("StateT", default=Any)
else:
    StateT = TypeVar("StateT")

EventT = TypeVar("EventT", bound="Event")


class RunOperations(Protocol):
    """What the runner hands in, so that the context need not know it."""

    @property
    def run_id(self) -> str: ...

    @property
    def is_running(self) -> bool: ...

    @property
    def log(self) -> EventLog: ...

    def send(self, step: int, event: Event, group: Any, target: str | None) -> None: ...

    def publish(self, event: Event | None) -> None: ...

    async def wait_for(
        self,
        step: object,
        kind: type[Event],
        requirements: Mapping[str, Any],
        waiter_event: Event | None,
        timeout: float | None,  # noqa: ASYNC109 - it is a field of what is waited for
    ) -> Event: ...

    def collect(
        self, step: int, event: Event, expected: Sequence[type[Event]], key: str
    ) -> list[Event] | None: ...


@final
class Context(Generic[StateT]):
    """What a step knows of its run and may do with it; the engine makes one per invocation.

    It serves the step and the tasks that the step starts, as long as the step runs. Its methods
    are called in the event loop's thread; from a worker thread go through
    ``trio.from_thread.run_sync`` or ``anyio.from_thread.run_sync``.

    Attributes:
        step_name: The name of the step.
    """

    _is_penstock_context: ClassVar[bool] = True

    __slots__ = ("_group", "_index", "_is_over", "_run", "_stream", "step_name")

    def __init__(self, run: RunOperations, index: int, step_name: str, group: Any) -> None:
        self._run = run
        self._index = index
        self.step_name: str = step_name
        self._group = group
        self._is_over = False
        self._stream: StreamSender | None = None

    def _check_open(self, what: str, kind: type[Event]) -> None:
        if self._is_over:
            msg = (
                f"the step {self.step_name} has ended, so it cannot {what} {kind.__name__} any "
                "more; expected a task that the step waits for"
            )
            raise WorkflowRuntimeError(msg)

    def end(self) -> None:
        """Take note that the step has ended; for the engine."""
        self._is_over = True

    @property
    def run_id(self) -> str:
        """The identifier of the run."""
        return self._run.run_id

    @property
    def is_running(self) -> bool:
        """Whether the run has not been stopped, failed, cancelled or timed out yet."""
        return self._run.is_running

    @property
    def stream(self) -> StreamSender:
        """The sending end of the run's stream, with back-pressure: ``await ctx.stream.send(ev)``."""
        if self._stream is None:
            self._stream = StreamSender(self._run.log, self._run.publish)
        return self._stream

    def write_event_to_stream(self, event: Event | None) -> None:
        """Publish an event to all readers of the run. Never waits; not a checkpoint.

        Args:
            event: The event; None is ignored.

        Raises:
            WorkflowRuntimeError: The run is over, it is a ``StopEvent`` (return it instead), or
                the call comes from another thread.
        """
        self._run.publish(event)

    def send_event(self, event: Event, step: str | None = None) -> None:
        """Send an event to the steps that take it, while this step goes on. Not a checkpoint.

        What came of a fan-out stays in it: the event counts as a branch of whatever fan-out
        this step runs in.

        Args:
            event: An event of a class that this step's return annotation names.
            step: The name of the one step that gets it; by default all that take its class do.

        Raises:
            WorkflowRuntimeError: The class is not declared, no step takes it, the named step does
                not exist or does not take it, or this step has ended.
        """
        self._check_open("send", type(event))
        self._run.send(self._index, event, self._group, step)

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

        The first one waiting whose class and requirements fit gets an event, before the steps
        that take its class. An answer (a ``HumanResponseEvent``) of a class that no step takes is
        kept until somebody waits for it; any other event has to find somebody waiting.

        A checkpoint. Cancelled, it has taken no event.

        Args:
            event_type: The class of the event.
            waiter_event: An event to publish once the waiting has begun: the question.
            requirements: Fields that the event must have, with their values.
            timeout: Seconds to wait; None means no limit.

        Raises:
            WorkflowTimeoutError: No event came in time.
            WorkflowRuntimeError: The step has ended.
        """
        self._check_open("wait for", event_type)
        event = await self._run.wait_for(
            self, event_type, requirements or {}, waiter_event, timeout
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
            expected ones stay for the next time.

        Raises:
            WorkflowRuntimeError: The event is of no expected class.
        """
        self._check_open("collect", type(event))
        return self._run.collect(self._index, event, expected, buffer_id)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<Context of step {self.step_name!r} in run {self.run_id}>"
