"""What can go wrong: one small tree of exceptions, each caught by the name people already use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio


if TYPE_CHECKING:
    from collections.abc import Iterable


class WorkflowError(Exception):
    """The base of everything that sluicegate itself raises about a workflow."""


class WorkflowValidationError(WorkflowError, ValueError):
    """Raised when a workflow's steps and events do not fit together. It is a ``ValueError`` too.

    Attributes:
        problems: Every fault that was found, each with its fix.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class WorkflowRuntimeError(WorkflowError, RuntimeError):
    """Raised when a run, a context or a handler is used in a way that cannot work.

    It is a ``RuntimeError`` too.
    """


class WorkflowStalledError(WorkflowRuntimeError):
    """Raised when a run can never go on: no step runs, nothing is pending, nobody is asked.

    Attributes:
        missing: What each join or collection still lacked, and which steps ended their branch by
            a None that they do not declare.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class QuestionClosedError(WorkflowRuntimeError):
    """Raised when an answer names a question that is open no longer: it was answered, or given up.

    Attributes:
        question: The id of the question.
    """

    def __init__(self, message: str, question: str = "") -> None:
        super().__init__(message)
        self.question = question


class EventConflictError(WorkflowRuntimeError):
    """Raised when an event has the id of another event, which the run has got, and other content.

    Attributes:
        id: That id.
    """

    def __init__(self, message: str, id: str = "") -> None:  # noqa: A002 - as send_event has it
        super().__init__(message)
        self.id = id


class WorkflowTimeoutError(WorkflowRuntimeError, TimeoutError, trio.TooSlowError):
    """Raised when a run has not ended by its timeout.

    It is both the built-in ``TimeoutError`` and ``trio.TooSlowError``.

    Attributes:
        timeout: The run's timeout in seconds.
        active_steps: The names of the steps that were running, one entry per invocation.
    """

    def __init__(
        self, message: str, timeout: float | None = None, active_steps: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.active_steps = active_steps


class WorkflowCancelledError(WorkflowRuntimeError):
    """Raised to whoever awaits a run that was cancelled.

    Attributes:
        reason: The reason given to ``handler.cancel()``, or what the engine knows of it.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class StepTimeoutError(WorkflowTimeoutError):
    """Raised when an invocation of a step has not ended by the step's own timeout."""


# -- for messages -----------------------------------------------------------------------------------


def brief(value: object, limit: int = 200) -> str:
    """Return the repr of a value for a message, cut; a repr that fails is no fault of the message."""
    start = value[:limit] if isinstance(value, str | bytes) else value
    try:
        text = repr(start)
    except Exception as error:  # noqa: BLE001 - what is to be told of is another thing
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    is_cut = isinstance(value, str | bytes) and len(value) > limit
    return f"{text[: limit - 3]}..." if is_cut else brief_text(text, limit)


def brief_text(text: str, limit: int = 200) -> str:
    """Return the words of somebody else for a message, cut."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def unknown_name(owner: str, name: str, older: dict[str, str]) -> str:
    """Return what an ``AttributeError`` says; of a name that ``older`` has, with the new spelling."""
    instead = older.get(name)
    told = "" if instead is None else f"; expected {instead}"
    return f"{owner!r} object has no attribute {name!r}{told}"


def unknown_options(call: str, given: Iterable[str], older: dict[str, str]) -> str:
    """Return what a ``TypeError`` says of options that a call does not have."""
    told = [f"{name!r}; expected {older[name]}" if name in older else repr(name) for name in given]
    return f"{call} has no option {', and none '.join(told)}"
