"""How spans show failures: whatever an exception refuses, its span ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import Status, StatusCode

from sluicegate._errors import brief

from ._names import ERROR_TYPE


if TYPE_CHECKING:
    from opentelemetry.trace import Span


def error_type(error: BaseException) -> str:
    """Return the name of the class of an exception, as ``error.type`` has it."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def mark_failed(span: Span, error: BaseException, *, is_recorded: bool) -> None:
    """Give a span the status of a failure, and the exception unless another span has it.

    Args:
        span: The span.
        error: The exception.
        is_recorded: Whether the exception, with its traceback, is in another span.
    """
    kind = error_type(error)
    span.set_attribute(ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, _text(error)))
    if is_recorded:
        return
    try:
        span.record_exception(error)
    except Exception:  # noqa: BLE001 - of the exception's own methods
        span.add_event("exception", {"exception.type": kind, "exception.message": _text(error)})


def _text(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - of the exception's own method
        return brief(error)
