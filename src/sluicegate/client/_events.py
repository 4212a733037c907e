"""Events of the server: envelopes become instances of classes that the user has given, and of no others."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import attrs
import msgspec

from sluicegate._data.from_outside import decode_event
from sluicegate._data.json import shown_fields
from sluicegate._definition.graph import graph_of
from sluicegate._errors import WorkflowCancelledError, WorkflowTimeoutError, brief
from sluicegate._events import (
    ChildEvent,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    ProgressEvent,
    StartEvent,
    StepStateChanged,
    StopEvent,
    UnhandledEvent,
    WorkflowCancelledEvent,
    WorkflowDetachedEvent,
    WorkflowFailedEvent,
    WorkflowIdleEvent,
    WorkflowTimedOutEvent,
)
from sluicegate._workflow import Workflow, graph_in
from sluicegate.client._errors import ClientError, RunFailedError


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The classes of the engine that a stream can have, beside those that are made by hand below.
_ENGINE = (
    StartEvent,
    StopEvent,
    InputRequiredEvent,
    HumanResponseEvent,
    ProgressEvent,
    StepStateChanged,
    WorkflowIdleEvent,
    WorkflowCancelledEvent,
    WorkflowDetachedEvent,
    WorkflowTimedOutEvent,
)


class RemoteEvent(Event):
    """An event of a class that the client was not given, or that its data do not fit.

    Attributes:
        type_name: The name of its class on the server.
        base_names: The names of the bases of that class, below ``Event``.
        fields: Its fields, as JSON data.
        problem: Why it is not an instance of the class of that name that the client was given; None
            if there is no such class.
    """

    type_name: str
    base_names: tuple[str, ...] = ()
    fields: dict[str, Any] = attrs.field(factory=dict[str, Any])
    problem: str | None = None


class RemoteStopEvent(RemoteEvent, StopEvent):
    """A :class:`RemoteEvent` that ended its run."""


class RemoteQuestionEvent(RemoteEvent, InputRequiredEvent):
    """A :class:`RemoteEvent` that asks something."""


@attrs.frozen
class Envelope:
    """An event as the protocol has it."""

    type: str
    types: tuple[str, ...]
    fields: dict[str, Any]
    qualified_name: str | None

    @property
    def is_stop(self) -> bool:
        """Whether it ends the run."""
        return "StopEvent" in (self.type, *self.types) and self.type != "WorkflowDetachedEvent"


def read_envelope(data: object) -> Envelope | None:
    """Return the envelope in JSON data; None if there is none."""
    if not isinstance(data, dict):
        return None
    found = cast("dict[str, object]", data)
    name, types, value = found.get("type"), found.get("types"), found.get("value")
    if not (isinstance(name, str) and isinstance(types, list | None) and isinstance(value, dict)):
        return None
    qualified = found.get("qualified_name")
    return Envelope(
        name,
        tuple(str(each) for each in cast("list[object]", types or [])),
        cast("dict[str, Any]", value),
        qualified if isinstance(qualified, str) else None,
    )


class Classes:
    """The classes of events that a client was given, by name.

    Args:
        workflows: Workflows, or their classes, whose events are known.
        events: Further classes: those that steps publish.

    Raises:
        TypeError: One of them is neither.
    """

    def __init__(
        self,
        workflows: Iterable[Workflow[Any] | type[Workflow[Any]]],
        events: Iterable[type[Event]],
    ) -> None:
        self._by_name: dict[str, list[type[Event]]] = {}
        found: dict[type[Event], None] = dict.fromkeys(_ENGINE)
        for workflow in workflows:
            found.update(dict.fromkeys(_events_of(workflow)))
        for kind in cast("Iterable[object]", events):
            if not (isinstance(kind, type) and issubclass(kind, Event)):
                msg = f"Client(events=...) has {brief(cast('object', kind))}; expected classes of events: events=[Progress]"
                raise TypeError(msg)
            found[kind] = None
        for kind in found:
            self._by_name.setdefault(kind.__name__, []).append(kind)

    def event(self, envelope: Envelope, run_id: str = "") -> Event:
        """Return the event in an envelope: of a class of that name, or a :class:`RemoteEvent`."""
        if envelope.type == "WorkflowFailedEvent":
            error = failure_of(envelope, run_id)
            step = envelope.fields.get("step_name")
            return WorkflowFailedEvent(
                exception=error, step_name=None if step is None else str(step)
            )
        inner = read_envelope(envelope.fields.get("event"))
        if envelope.type == "UnhandledEvent" and inner is not None:
            return UnhandledEvent(event=self.event(inner, run_id))
        if envelope.type == "ChildEvent" and inner is not None:
            path = tuple(str(part) for part in envelope.fields.get("path") or ())
            return ChildEvent(path=path, event=self.event(inner, run_id))
        return self._declared(envelope)

    def _declared(self, envelope: Envelope) -> Event:
        kinds = self._by_name.get(envelope.type, [])
        if len(kinds) > 1:
            kinds = [each for each in kinds if _qualified(each) == envelope.qualified_name]
            if not kinds:
                return _generic(envelope, f"the client was given several classes {envelope.type}")
        if not kinds:
            return _generic(envelope, None)
        try:
            return decode_event(kinds[0], envelope.fields)
        except TypeError as error:
            return _generic(envelope, str(error))


def _events_of(workflow: object) -> tuple[type[Event], ...]:
    """Return the classes of events that the steps of a workflow take, make and wait for."""
    if isinstance(workflow, Workflow):
        graph = graph_in(cast("Workflow[Any]", workflow))
    elif isinstance(workflow, type) and issubclass(workflow, Workflow):
        graph = graph_of(cast("type", workflow))
    else:
        msg = (
            f"Client(workflows=...) has {brief(cast('object', workflow))}; expected workflows or their classes, by name: "
            'workflows={"essay": Essay}'
        )
        raise TypeError(msg)
    return graph.events


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _generic(envelope: Envelope, problem: str | None) -> RemoteEvent:
    kind = RemoteEvent
    if envelope.is_stop:
        kind = RemoteStopEvent
    elif "InputRequiredEvent" in (envelope.type, *envelope.types):
        kind = RemoteQuestionEvent
    return kind(
        type_name=envelope.type,
        base_names=envelope.types,
        fields=dict(envelope.fields),
        problem=problem,
    )


# -- how a run ended --------------------------------------------------------------------------------


def failure_of(envelope: Envelope, run_id: str) -> RunFailedError:
    """Return the exception for the terminal event of a failed run."""
    name = str(envelope.fields.get("exception") or "Exception")
    step = envelope.fields.get("step_name")
    return run_failed(name, None if step is None else str(step), run_id)


def run_failed(exception: str, step: str | None, run_id: str) -> RunFailedError:
    """Return the exception for a failed run."""
    where = "" if step is None else f" in the step {step}"
    msg = f"the run {run_id} failed on the server: {exception}{where}; its text is in the server's log"
    return RunFailedError(msg, exception, step, run_id)


def result_of(event: Event, run_id: str) -> Any:
    """Return the result of a run, given its terminal event.

    Raises:
        RunFailedError: It failed.
        WorkflowCancelledError: It was cancelled.
        WorkflowTimeoutError: It did not end within its timeout.
        ClientError: It completed with an event that does not fit the class that the client was given.
    """
    if isinstance(event, WorkflowFailedEvent):
        raise event.exception
    if isinstance(event, WorkflowCancelledEvent):
        raise cancelled(event.reason, run_id)
    if isinstance(event, WorkflowTimedOutEvent):
        msg = f"the run {run_id} did not end within {event.timeout:g} s"
        active = f"; still running: {', '.join(event.active_steps)}" if event.active_steps else ""
        raise WorkflowTimeoutError(msg + active, event.timeout, tuple(event.active_steps))
    if isinstance(event, RemoteStopEvent) and event.problem is not None:
        msg = f"the run {run_id} completed with {event.type_name}, which does not fit: {event.problem}"
        raise ClientError(msg)
    return event.get("result") if type(event) is StopEvent else event


def cancelled(reason: str | None, run_id: str) -> WorkflowCancelledError:
    """Return the exception for a cancelled run."""
    why = "" if reason is None else f": {reason}"
    return WorkflowCancelledError(f"the run {run_id} was cancelled{why}", reason)


# -- to the server -----------------------------------------------------------------------------------


def json_bytes(body: Mapping[str, Any]) -> bytes:
    """Return the body of a request.

    Raises:
        TypeError: JSON cannot hold a value in it; the message names its class.
    """
    return msgspec.json.encode(body, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "model_dump"):  # a model of pydantic
        return value.model_dump(mode="json")
    msg = (
        f"a request has {brief(value)}, which JSON cannot hold; expected plain data, or a dataclass"
    )
    raise TypeError(msg)


def envelope_of(event: Event) -> dict[str, Any]:
    """Return an event for the server."""
    return {"type": type(event).__name__, "value": shown_fields(event)}
