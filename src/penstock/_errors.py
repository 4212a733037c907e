"""What can go wrong: one small tree of exceptions, each caught by the name people already use."""

from __future__ import annotations

from penstock._backends import TooSlowError


class WorkflowError(Exception):
    """The base of everything that penstock itself raises about a workflow."""


class WorkflowValidationError(WorkflowError):
    """Raised when a workflow's steps and events do not fit together.

    Attributes:
        problems: Every fault that was found, each with its fix.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class WorkflowRuntimeError(WorkflowError):
    """Raised when a run, a context or a handler is used in a way that cannot work."""


class WorkflowStalledError(WorkflowRuntimeError):
    """Raised when a run can never go on: no step runs, nothing is pending, nobody is asked.

    Attributes:
        missing: What each join or collection still lacked, and which steps ended their branch by
            a None that they do not declare.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class WorkflowTimeoutError(WorkflowRuntimeError, TimeoutError, TooSlowError):
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
