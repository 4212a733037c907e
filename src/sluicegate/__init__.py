"""Event-driven workflows on structured concurrency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate._context import Branch, Context, StepInfo
from sluicegate._definition.decorators import catch_error, step
from sluicegate._definition.signatures import Take
from sluicegate._errors import (
    EventConflictError,
    PoisonStepError,
    QuestionClosedError,
    RestoredError,
    SnapshotError,
    StepTimeoutError,
    WorkflowCancelledError,
    WorkflowDetachedError,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)
from sluicegate._events import (
    ChildEvent,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    InternalEvent,
    ProgressEvent,
    StartEvent,
    StepFailedEvent,
    StepStateChanged,
    StopEvent,
    UnhandledEvent,
    WorkflowCancelledEvent,
    WorkflowDetachedEvent,
    WorkflowFailedEvent,
    WorkflowIdleEvent,
    WorkflowTimedOutEvent,
)
from sluicegate._handler import Unwound, WorkflowHandler
from sluicegate._observers import Invocation, Observer, RunInfo, observe
from sluicegate._questions import Acknowledgement, OpenQuestion
from sluicegate._scope import WorkflowScope, open_scope, run, workflow_scope
from sluicegate._streams import EventStream, StreamSender
from sluicegate._workflow import Workflow


if TYPE_CHECKING:
    from sluicegate._data.from_outside import decode_event
    from sluicegate._definition.resources import Resource, ResourceConfig
    from sluicegate._definition.retries import Retry, RetryInfo
    from sluicegate._engine.dump import dump_runs
    from sluicegate._logging import RunLogFilter
    from sluicegate._loop.limits import RateLimiter, RateLimiterEntry
    from sluicegate._state.drafts import DictState, StatePathError
    from sluicegate._state.store import StateStore
    from sluicegate.drawing import (
        WorkflowGraph,
        draw_all_possible_flows,
        draw_all_possible_flows_mermaid,
    )
    from sluicegate.recording import (
        draw_most_recent_execution,
        draw_most_recent_execution_mermaid,
    )

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
    "Invocation",
    "Observer",
    "OpenQuestion",
    "PoisonStepError",
    "ProgressEvent",
    "QuestionClosedError",
    "RateLimiter",
    "RateLimiterEntry",
    "Resource",
    "ResourceConfig",
    "RestoredError",
    "Retry",
    "RetryInfo",
    "RunInfo",
    "RunLogFilter",
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
    "WorkflowDetachedError",
    "WorkflowDetachedEvent",
    "WorkflowError",
    "WorkflowFailedEvent",
    "WorkflowGraph",
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
    "draw_all_possible_flows_mermaid",
    "draw_most_recent_execution",
    "draw_most_recent_execution_mermaid",
    "dump_runs",
    "observe",
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

    return version("sluicegate")


def _home_of(name: str) -> Any:  # noqa: C901 - a case for each module
    """Return the module of a name that not every program uses; it is imported on first use."""
    home: Any = None
    match name:
        case "DictState" | "StatePathError":
            from sluicegate._state import drafts as home  # noqa: PLC0415
        case "RateLimiter" | "RateLimiterEntry":
            from sluicegate._loop import limits as home  # noqa: PLC0415
        case "Resource" | "ResourceConfig":
            from sluicegate._definition import resources as home  # noqa: PLC0415
        case "Retry" | "RetryInfo":
            from sluicegate._definition import retries as home  # noqa: PLC0415
        case "RunLogFilter":
            from sluicegate import _logging as home  # noqa: PLC0415
        case "StateStore":
            from sluicegate._state import store as home  # noqa: PLC0415
        case "WorkflowGraph" | "draw_all_possible_flows" | "draw_all_possible_flows_mermaid":
            from sluicegate import drawing as home  # noqa: PLC0415
        case "draw_most_recent_execution" | "draw_most_recent_execution_mermaid":
            from sluicegate import recording as home  # noqa: PLC0415
        case "dump_runs":
            from sluicegate._engine import dump as home  # noqa: PLC0415
        case "decode_event":
            from sluicegate._data import from_outside as home  # noqa: PLC0415
        case _:
            pass
    return home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
