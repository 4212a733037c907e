"""The results of runs under test, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final

import attrs

from sluicegate._events import Event, StopEvent


if TYPE_CHECKING:
    from sluicegate._context import Context


R = TypeVar("R")
E = TypeVar("E", bound=Event)


@final
@attrs.frozen(eq=False)
class StepInvocation:
    """One invocation of a step.

    Attributes:
        number: The number within the run, from 1, in the order in which invocations begin.
        step: The name of the step.
        event: The event that the step got. A join gets the list or tuple of joined events.
        attempt: The number of the attempt at this event, from 1.
        result: The return value of the step.
        error: The exception that the step raised, including a timeout or a cancellation.
        is_done: Whether the invocation has ended.
    """

    number: int
    step: str
    event: Any
    attempt: int = 1
    result: Any = None
    error: BaseException | None = None
    is_done: bool = False


def events_of(events: tuple[Event, ...], kind: type[E]) -> list[E]:
    """Return the events of one class and its subclasses, in order."""
    return [event for event in events if isinstance(event, kind)]


@final
@attrs.frozen(eq=False)
class WorkflowTestResult(Generic[R]):
    """The result of a run under test: everything that it did, and how it ended.

    Attributes:
        run_id: The identifier of the run.
        status: How it ended: ``"completed"``, ``"failed"``, ``"timed_out"`` or ``"cancelled"``.
        events: The events of the stream, in order, including the terminal event.
        steps: All invocations of steps, in the order in which they began.
        stop_event: The stop event that a step returned, or None.
        error: The exception that ``await workflow.run()`` would have raised, or None.
        errors: All failures, in the order in which they occurred.
        state: The state at the end; read only.
        ctx: The context of the run, for ``workflow.run(ctx=...)`` or its snapshot.
    """

    run_id: str
    status: str
    events: tuple[Event, ...] = attrs.field(repr=False)
    steps: tuple[StepInvocation, ...] = attrs.field(repr=False)
    stop_event: StopEvent | None
    error: BaseException | None
    errors: tuple[BaseException, ...] = attrs.field(repr=False)
    state: Any = attrs.field(repr=False)
    ctx: Context[Any] = attrs.field(repr=False)

    @property
    def result(self) -> R:
        """The value that ``await workflow.run()`` would have returned.

        Raises:
            BaseException: The exception that it would have raised: :attr:`error` itself.
        """
        if self.error is not None:
            raise self.error
        event = self.stop_event
        assert event is not None
        return cast("R", event.result if type(event) is StopEvent else event)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of a class and its subclasses on the stream, in order."""
        return events_of(self.events, kind)

    @property
    def event_types(self) -> dict[type[Event], int]:
        """The number of events of each class on the stream; classes in order of appearance."""
        counts: dict[type[Event], int] = {}
        for event in self.events:
            counts[type(event)] = counts.get(type(event), 0) + 1
        return counts

    @property
    def collected(self) -> list[Event]:
        """The events as a list."""
        return list(self.events)


@final
@attrs.frozen(eq=False)
class StepOutcome:
    """The result of a step that was run by itself.

    Attributes:
        returned: The return value; :attr:`result` raises the step's exception instead.
        sent: The events that it sent with ``ctx.send_event()``, without those that a failed attempt
            held back.
        targets: For each sent event, the name of the target step, or None.
        published: The events that it wrote to the stream.
        steps: Its invocations: one, or several if it was retried.
        error: The exception that it raised, or None.
        state: The state at the end; read only.
    """

    returned: Any
    sent: tuple[Event, ...]
    targets: tuple[str | None, ...]
    published: tuple[Event, ...]
    steps: tuple[StepInvocation, ...] = attrs.field(repr=False)
    error: BaseException | None
    state: Any

    @property
    def result(self) -> Any:
        """The return value of the step: an event, a list of events, or None.

        Raises:
            BaseException: The exception of the step: :attr:`error` itself.
        """
        if self.error is not None:
            raise self.error
        return self.returned

    def of(self, kind: type[E]) -> list[E]:
        """Return the published events of a class and its subclasses, in order."""
        return events_of(self.published, kind)
