"""Durable runs: a run that survives its process, in a store such as an SQLite file."""

from __future__ import annotations

from sluicegate.durable._errors import (
    JournalConflictError,
    RunConflictError,
    RunEndedError,
    RunOwnedError,
    StaleLeaseError,
    StoreBusyError,
    StoreClosedError,
    StoreDamagedError,
    StoreError,
    StoreFormatError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    UnknownRunError,
    UnknownWorkflowError,
)
from sluicegate.durable._memory import MemoryJournal, MemoryStore
from sluicegate.durable._port import (
    Batch,
    Capabilities,
    Due,
    Journal,
    Lease,
    Message,
    NewRun,
    RunFilter,
    RunRow,
    StoredRecord,
    Summary,
)
from sluicegate.durable._sqlite import open_journal, open_sqlite_journal
from sluicegate.durable._store import RunStore, RunSummary, StoredQuestion, open_run_store
from sluicegate.durable._worker import RunWorker


__all__ = [
    "Batch",
    "Capabilities",
    "Due",
    "Journal",
    "JournalConflictError",
    "Lease",
    "MemoryJournal",
    "MemoryStore",
    "Message",
    "NewRun",
    "RunConflictError",
    "RunEndedError",
    "RunFilter",
    "RunOwnedError",
    "RunRow",
    "RunStore",
    "RunSummary",
    "RunWorker",
    "StaleLeaseError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreDamagedError",
    "StoreError",
    "StoreFormatError",
    "StoreFullError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "StoredQuestion",
    "StoredRecord",
    "Summary",
    "UnknownRunError",
    "UnknownWorkflowError",
    "open_journal",
    "open_run_store",
    "open_sqlite_journal",
]
