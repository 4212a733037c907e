"""Records: what a run under test did, as data."""

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
        number: Its number within the run, from 1, in the order in which invocations begin.
        step: The name of the step.
        event: What it was given: an event; for a join, the list or tuple of what it joins.
        attempt: Which attempt at the event it is; the first is 1.
        result: What the step returned.
        error: What it raised, a timeout or a cancellation included.
        is_done: Whether it has ended.
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
    """What a run under test did, and how it ended.

    Attributes:
        run_id: The identifier of the run.
        status: How it ended: ``"completed"``, ``"failed"``, ``"timed_out"`` or ``"cancelled"``.
        events: What was on the stream, in order, the terminal event included.
        steps: Every invocation of a step, in the order in which they began.
        stop_event: The stop event that a step returned, or None.
        error: What ``await workflow.run()`` would have raised, or None.
        errors: All failures, in the order in which they came.
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
        """What ``await workflow.run()`` would have returned.

        Raises:
            BaseException: What it would have raised: :attr:`error` itself.
        """
        if self.error is not None:
            raise self.error
        event = self.stop_event
        assert event is not None
        return cast("R", event.result if type(event) is StopEvent else event)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of a class and its subclasses that were on the stream, in order."""
        return events_of(self.events, kind)

    @property
    def event_types(self) -> dict[type[Event], int]:
        """How many events of each class were on the stream; classes in order of appearance."""
        counts: dict[type[Event], int] = {}
        for event in self.events:
            counts[type(event)] = counts.get(type(event), 0) + 1
        return counts

    @property
    def collected(self) -> list[Event]:
        """The events once more, as a list."""
        return list(self.events)


@final
@attrs.frozen(eq=False)
class StepOutcome:
    """What one step did that was run by itself.

    Attributes:
        returned: What it returned; :attr:`result` raises what it raised instead.
        sent: The events that it sent with ``ctx.send_event()``; what a failed attempt held back is
            not among them.
        targets: For each of these, the name of the step that it was sent to, or None.
        published: The events that it wrote to the stream.
        steps: Its invocations: one, or more where its retries had it run again.
        error: What it raised, or None.
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
        """What the step returned: an event, a list of events, or None.

        Raises:
            BaseException: What the step raised: :attr:`error` itself.
        """
        if self.error is not None:
            raise self.error
        return self.returned

    def of(self, kind: type[E]) -> list[E]:
        """Return the published events of a class and its subclasses, in order."""
        return events_of(self.published, kind)
