"""Event-driven workflows on structured concurrency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock._branch import Branch as Branch
from penstock._context import Context as Context
from penstock._context import StepInfo as StepInfo
from penstock._decorators import catch_error as catch_error
from penstock._decorators import step as step
from penstock._entry import run as run
from penstock._errors import StepTimeoutError as StepTimeoutError
from penstock._errors import WorkflowCancelledError as WorkflowCancelledError
from penstock._errors import WorkflowError as WorkflowError
from penstock._errors import WorkflowRuntimeError as WorkflowRuntimeError
from penstock._errors import WorkflowStalledError as WorkflowStalledError
from penstock._errors import WorkflowTimeoutError as WorkflowTimeoutError
from penstock._errors import WorkflowValidationError as WorkflowValidationError
from penstock._events import ChildEvent as ChildEvent
from penstock._events import Event as Event
from penstock._events import HumanResponseEvent as HumanResponseEvent
from penstock._events import InputRequiredEvent as InputRequiredEvent
from penstock._events import InternalEvent as InternalEvent
from penstock._events import StartEvent as StartEvent
from penstock._events import StepFailedEvent as StepFailedEvent
from penstock._events import StepStateChanged as StepStateChanged
from penstock._events import StopEvent as StopEvent
from penstock._events import UnhandledEvent as UnhandledEvent
from penstock._events import WorkflowCancelledEvent as WorkflowCancelledEvent
from penstock._events import WorkflowFailedEvent as WorkflowFailedEvent
from penstock._events import WorkflowIdleEvent as WorkflowIdleEvent
from penstock._events import WorkflowTimedOutEvent as WorkflowTimedOutEvent
from penstock._handler import WorkflowHandler as WorkflowHandler
from penstock._limits import RateLimiter as RateLimiter
from penstock._observe import Observer as Observer
from penstock._owners import Unwound as Unwound
from penstock._resources import Resource as Resource
from penstock._resources import ResourceConfig as ResourceConfig
from penstock._retries import Retry as Retry
from penstock._retries import RetryInfo as RetryInfo
from penstock._scope import WorkflowScope as WorkflowScope
from penstock._scope import workflow_scope as workflow_scope
from penstock._signature import Take as Take
from penstock._streams import EventStream as EventStream
from penstock._streams import StreamSender as StreamSender
from penstock._workflow import Workflow as Workflow


if TYPE_CHECKING:
    from penstock._codec import RestoredError as RestoredError
    from penstock._codec import SnapshotError as SnapshotError
    from penstock._decoding import decode_event as decode_event
    from penstock._drafts import DictState as DictState
    from penstock._drafts import StatePathError as StatePathError
    from penstock._store import StateStore as StateStore

_LATE = {
    "DictState",
    "RestoredError",
    "SnapshotError",
    "StatePathError",
    "StateStore",
    "decode_event",
}


def __getattr__(name: str) -> Any:
    # What few programs name, and what costs time to import.
    if name == "decode_event":
        from penstock._decoding import decode_event  # noqa: PLC0415

        return decode_event
    if name in ("RestoredError", "SnapshotError"):
        from penstock import _codec  # noqa: PLC0415

        return getattr(_codec, name)
    if name in ("DictState", "StatePathError"):
        from penstock import _drafts  # noqa: PLC0415

        return getattr(_drafts, name)
    if name == "StateStore":
        from penstock._store import StateStore  # noqa: PLC0415

        return StateStore
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - it costs as much as Trio

        return version("penstock")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
