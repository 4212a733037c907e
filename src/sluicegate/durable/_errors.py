"""The exceptions of a store of runs."""

from __future__ import annotations

from sluicegate._errors import WorkflowError, WorkflowRuntimeError


class StoreError(WorkflowError, RuntimeError):
    """The base class of the exceptions that a store of runs raises. It is also a ``RuntimeError``."""


class StoreClosedError(StoreError):
    """Raised when a store is used after its block was left, or after it stopped because of a fault."""


class StoreUnavailableError(StoreError, OSError):
    """Raised when a store cannot be read or written at the moment. It is also an ``OSError``.

    Committed writes are not lost. Writes that were not committed did not happen.
    """


class StoreBusyError(StoreUnavailableError, TimeoutError):
    """Raised when another process has kept the store locked for too long. Also a ``TimeoutError``."""


class StoreFullError(StoreUnavailableError):
    """Raised when the disk is full."""


class StoreReadOnlyError(StoreUnavailableError, PermissionError):
    """Raised when the store may not be written. It is also a ``PermissionError``."""


class StoreDamagedError(StoreUnavailableError):
    """Raised when the contents of a store are damaged, such as a file with a torn page."""


class StoreFormatError(StoreError, ValueError):
    """Raised when the file is not a store, or was written by a newer release.

    It is also a ``ValueError``.
    """


class StaleLeaseError(StoreError):
    """Raised when another process has taken over a run: this one's writes are refused.

    Attributes:
        run_id: The run.
        fence: The fence of the lease that is no longer valid.
    """

    def __init__(self, message: str, run_id: str = "", fence: int = 0) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.fence = fence


class JournalConflictError(StoreError):
    """Raised when a batch does not continue the journal of its run.

    Its first record has another sequence than the next one, because an earlier batch was refused;
    or it consumes a message that was consumed before.
    """


class UnknownRunError(StoreError, LookupError):
    """Raised when the store has no run of that id. It is also a ``LookupError``."""


class RunConflictError(StoreError, ValueError):
    """Raised when a run is started under an id that another run of the store has.

    That run is of another workflow, or it began with another start event. It is also a ``ValueError``.

    Attributes:
        run_id: The id.
    """

    def __init__(self, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class UnknownWorkflowError(StoreError, LookupError):
    """Raised when a run of a workflow is to be continued or read that this process does not know.

    It is also a ``LookupError``.

    Attributes:
        workflow: The name of the workflow.
    """

    def __init__(self, message: str, workflow: str = "") -> None:
        super().__init__(message)
        self.workflow = workflow


class RunEndedError(StoreError, WorkflowRuntimeError):
    """Raised when an event or a cancellation is sent to a run that has ended."""


class RunOwnedError(StoreError):
    """Raised when a run is to be deleted while a process owns it."""
