"""Events, runs and questions as JSON data for clients."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sluicegate._data.json import json_of, schema_of, shown_fields
from sluicegate._errors import (
    WorkflowCancelledError,
    WorkflowDetachedError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    name_of,
)
from sluicegate._events import (
    Event,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowDetachedEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from sluicegate._state.drafts import DictState


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._questions import OpenQuestion

T = TypeVar("T")


def _cached(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Keep the results for the classes that were used last; a type checker takes no class for hashable."""
    return lru_cache(maxsize=1_000)(function)


#: Below this depth, values are not shown; a value may contain itself.
DEEPEST = 100
#: The statuses of a run, as the protocol names them.
STATUSES = ("running", "completed", "failed", "cancelled")


@_cached
def kind_of(cls: Any) -> dict[str, Any]:
    """Return the names of a class of events: its own, those of its bases below ``Event``, the qualified one."""
    bases: list[Any] = [b for b in cls.__mro__[1:] if issubclass(b, Event) and b is not Event]
    return {
        "type": cls.__name__,
        "types": [base.__name__ for base in bases] or None,
        "qualified_name": f"{cls.__module__}.{cls.__qualname__}",
    }


def value_of(event: Event) -> dict[str, Any]:
    """Return the fields of an event to show: of an exception the class alone, its text may be confidential."""
    return {name: shown(value) for name, value in shown_fields(event).items()}


def shown(value: Any, depth: int = 0) -> Any:
    """Return a value to show: events in envelopes, exceptions by their class, and nothing too deep."""
    if isinstance(value, BaseException):
        return name_of(value)
    if depth > DEEPEST:
        return "..." if isinstance(value, list | tuple | dict | Event | DictState) else value
    if isinstance(value, Event):
        fields = shown_fields(value).items()
        return {
            "value": {name: shown(item, depth + 1) for name, item in fields},
            **kind_of(type(value)),
        }
    if isinstance(value, DictState):
        value = value.to_dict()
    if type(value) in (list, tuple):
        return [shown(item, depth + 1) for item in cast("list[Any]", value)]
    if type(value) is dict:
        items = cast("dict[Any, Any]", value).items()
        return {key: shown(item, depth + 1) for key, item in items}
    return value


def envelope(event: Event) -> dict[str, Any]:
    """Return an event with the names of its class."""
    return {"value": value_of(event), **kind_of(type(event))}


@_cached
def _tails(cls: Any) -> tuple[str, str]:
    kind = kind_of(cls)
    return json_of({**kind, "qualified_name": None})[1:], json_of(kind)[1:]


def envelope_json(event: Event, *, names_class: bool = True) -> str:
    """Return :func:`envelope` as a line of JSON."""
    return f'{{"value":{json_of(value_of(event))},{_tails(type(event))[names_class]}'


def timestamp(seconds: float | None) -> str | None:
    """Return seconds since the epoch as the text of a time."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def told_error(error: BaseException | None, step: str | None = None) -> str | None:
    """Return the text of a failure for clients: of the user's exceptions, their class alone."""
    if error is None:
        return None
    if isinstance(error, WorkflowCancelledError | WorkflowTimeoutError | WorkflowStalledError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, WorkflowDetachedError):
        return None
    return f"{name_of(error)}{'' if step is None else f' in the step {step}'}"


def ending_of(last: StopEvent | None) -> dict[str, Any]:
    """Return the part of the data of a handler that the terminal event of its run determines."""
    found: dict[str, Any] = {"error": None, "result": None, "status": "running"}
    if isinstance(last, WorkflowFailedEvent):
        error, step = last.exception, last.step_name
        found |= {"status": "failed", "error": told_error(error, step)}
        found |= {"exception": name_of(error), "step_name": step}
    elif isinstance(last, WorkflowTimedOutEvent):
        text = f"WorkflowTimeoutError: the run did not end within {last.timeout:g} s"
        found |= {"status": "failed", "error": text, "timed_out": True}
    elif isinstance(last, WorkflowCancelledEvent):
        reason = last.reason
        text = "cancelled" if reason is None else f"cancelled: {reason}"
        found |= {"status": "cancelled", "error": text, "reason": reason}
    elif last is not None and not isinstance(last, WorkflowDetachedEvent):
        found |= {"status": "completed", "result": envelope(last)}
    return found


def handler_data(
    run_id: str,
    name: str,
    *,
    status: str,
    times: tuple[float, float, float | None],
    is_idle: bool,
    questions: int,
) -> dict[str, Any]:
    """Return the data of a handler, without its error and its result.

    Args:
        run_id: The run.
        name: The name of its workflow on the server.
        status: As the protocol has it.
        times: When it was started, last changed and ended, in seconds since the epoch.
        is_idle: Whether it waits.
        questions: How many questions are open.
    """
    started_at, updated_at, completed_at = map(timestamp, times)
    return {
        "handler_id": run_id,
        "workflow_name": name,
        "run_id": run_id,
        "error": None,
        "result": None,
        "status": status,
        "started_at": started_at,
        "updated_at": updated_at,
        "completed_at": completed_at,
        "idle": is_idle,
        "questions": questions,
    }


def asked_data(
    question: str, event: str | None, fields: dict[str, Any], answers: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a question: its id, its class and fields, and each class that answers, with its schema."""
    return {
        "id": question,
        "type": event,
        "fields": fields,
        "answer": answers[0] if answers else None,
        "answers": answers,
    }


def question_data(question: OpenQuestion) -> dict[str, Any]:
    """Return an open question, with the schemas of its answers."""
    event = question.event
    answers = [{"type": cls.__name__, "schema": schema_of_event(cls)} for cls in question.answers]
    kind = None if event is None else type(event).__name__
    return asked_data(question.id, kind, {} if event is None else value_of(event), answers)


@_cached
def _schema_text(cls: Any) -> Any:
    try:
        return schema_of(cls)
    except TypeError:  # an annotation that cannot be resolved
        return {"title": cls.__name__, "type": "object"}


def schema_of_event(cls: type[Event]) -> dict[str, Any]:
    """Return the JSON Schema of a class of events; that of any object, where its annotations have none."""
    return cast("dict[str, Any]", _schema_text(cls))
