"""Event-driven workflows on structured concurrency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock._branch import Branch
from penstock._context import Context, StepInfo
from penstock._decorators import catch_error, step
from penstock._entry import run
from penstock._errors import (
    EventConflictError,
    QuestionClosedError,
    StepTimeoutError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)
from penstock._events import (
    ChildEvent,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    InternalEvent,
    StartEvent,
    StepFailedEvent,
    StepStateChanged,
    StopEvent,
    UnhandledEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowIdleEvent,
    WorkflowTimedOutEvent,
)
from penstock._handler import WorkflowHandler
from penstock._observe import Observer
from penstock._owners import Unwound
from penstock._questions import Acknowledgement, OpenQuestion
from penstock._scope import WorkflowScope, open_scope, workflow_scope
from penstock._signature import Take
from penstock._streams import EventStream, StreamSender
from penstock._workflow import Workflow


if TYPE_CHECKING:
    from penstock._codec import RestoredError, SnapshotError
    from penstock._decoding import decode_event
    from penstock._drafts import DictState, StatePathError
    from penstock._limits import RateLimiter
    from penstock._resources import Resource, ResourceConfig
    from penstock._retries import Retry, RetryInfo
    from penstock._store import StateStore
    from penstock.drawing import draw_all_possible_flows

__all__ = [
    "Acknowledgement",
    "Branch",
    "ChildEvent",
    "Context",
    "DictState",
    "Event",
    "EventConflictError",
    "EventStream",
    "HumanResponseEvent",
    "InputRequiredEvent",
    "InternalEvent",
    "Observer",
    "OpenQuestion",
    "QuestionClosedError",
    "RateLimiter",
    "Resource",
    "ResourceConfig",
    "RestoredError",
    "Retry",
    "RetryInfo",
    "SnapshotError",
    "StartEvent",
    "StatePathError",
    "StateStore",
    "StepFailedEvent",
    "StepInfo",
    "StepStateChanged",
    "StepTimeoutError",
    "StopEvent",
    "StreamSender",
    "Take",
    "UnhandledEvent",
    "Unwound",
    "Workflow",
    "WorkflowCancelledError",
    "WorkflowCancelledEvent",
    "WorkflowError",
    "WorkflowFailedEvent",
    "WorkflowHandler",
    "WorkflowIdleEvent",
    "WorkflowRuntimeError",
    "WorkflowScope",
    "WorkflowStalledError",
    "WorkflowTimedOutEvent",
    "WorkflowTimeoutError",
    "WorkflowValidationError",
    "catch_error",
    "decode_event",
    "draw_all_possible_flows",
    "open_scope",
    "run",
    "step",
    "workflow_scope",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    home = _home_of(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(home, name)


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - it costs as much as Trio

    return version("penstock")


def _home_of(name: str) -> Any:
    """Return the module of a name that not every program uses; it is imported on first use."""
    home: Any = None
    match name:
        case "DictState" | "StatePathError":
            from penstock import _drafts as home  # noqa: PLC0415
        case "RateLimiter":
            from penstock import _limits as home  # noqa: PLC0415
        case "Resource" | "ResourceConfig":
            from penstock import _resources as home  # noqa: PLC0415
        case "RestoredError" | "SnapshotError":
            from penstock import _codec as home  # noqa: PLC0415
        case "Retry" | "RetryInfo":
            from penstock import _retries as home  # noqa: PLC0415
        case "StateStore":
            from penstock import _store as home  # noqa: PLC0415
        case "draw_all_possible_flows":
            from penstock import drawing as home  # noqa: PLC0415
        case "decode_event":
            from penstock import _decoding as home  # noqa: PLC0415
        case _:
            pass
    return home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
