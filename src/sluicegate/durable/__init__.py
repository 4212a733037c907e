"""Durable runs: a run that survives its process, in a store such as an SQLite file."""

from __future__ import annotations

from sluicegate.durable._errors import (
    JournalConflictError,
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
    Record,
    RunFilter,
    RunRow,
    Summary,
)
from sluicegate.durable._sqlite import open_journal, open_sqlite_journal


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
    "Record",
    "RunEndedError",
    "RunFilter",
    "RunOwnedError",
    "RunRow",
    "StaleLeaseError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreDamagedError",
    "StoreError",
    "StoreFormatError",
    "StoreFullError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "Summary",
    "UnknownRunError",
    "open_journal",
    "open_sqlite_journal",
]
