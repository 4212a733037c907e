"""The file of an SQLite store: its schema and versions, its connections, and its errors."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from sluicegate.durable._errors import (
    StoreBusyError,
    StoreDamagedError,
    StoreError,
    StoreFormatError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)


if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

Durability = Literal["fsync", "process"]

#: Identifies a store in the header of the file: "slgt".
APPLICATION_ID: Final = 0x736C6774
#: Seconds for which a connection waits for a lock of another process.
BUSY: Final = 10.0

#: The statements that upgrade a file from each version to the next; the version is the header's `user_version`.
#: Never changed after a release: files of each version are kept in the tests.
MIGRATIONS: Final = [
    """
    CREATE TABLE runs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL UNIQUE,
        workflow TEXT NOT NULL,
        start_key TEXT NOT NULL,
        created_at REAL NOT NULL,
        status TEXT NOT NULL,
        updated_at REAL NOT NULL,
        wake_at REAL,
        questions TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        base INTEGER NOT NULL,
        shown INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        owner TEXT,
        unread INTEGER NOT NULL,
        due_at REAL
    );
    CREATE INDEX runs_by_status ON runs (status, number);
    CREATE INDEX runs_due ON runs (owner, workflow, due_at) WHERE due_at IS NOT NULL;

    CREATE TABLE records (
        run INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        data TEXT NOT NULL,
        shown INTEGER,
        PRIMARY KEY (run, sequence)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX records_shown ON records (run, shown) WHERE shown IS NOT NULL;

    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run INTEGER NOT NULL,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        data TEXT,
        digest BLOB NOT NULL,
        sent_at REAL NOT NULL,
        consumed_by INTEGER,
        UNIQUE (run, key)
    );
    CREATE INDEX messages_unread ON messages (run, id) WHERE consumed_by IS NULL;

    CREATE TABLE owners (
        owner TEXT PRIMARY KEY,
        machine TEXT NOT NULL,
        pid INTEGER NOT NULL,
        opened_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        lease REAL NOT NULL,
        lost INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;

    CREATE VIEW journal AS
        SELECT runs.run_id, records.sequence, datetime(records.at, 'unixepoch') AS at,
            records.kind, records.shown, records.data
        FROM records JOIN runs ON runs.number = records.run;
    """
]
VERSION: Final = len(MIGRATIONS)


def error_of(path: Path, error: BaseException) -> StoreError:
    """Return the store's error for one of SQLite's."""
    code: int = getattr(error, "sqlite_errorcode", None) or 0
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    because = f"{error} ({name})"
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusyError(
                f"the store {str(path)!r} is busy: another process has locked it for longer than "
                f"{BUSY:g} seconds; expected no long transaction in another program"
            )
        case sqlite3.SQLITE_FULL:
            return StoreFullError(
                f"the disk is full: the store {str(path)!r} cannot be written: {because}"
            )
        case sqlite3.SQLITE_READONLY:
            return StoreReadOnlyError(
                f"the store {str(path)!r} is read-only; expected a file and a directory that this "
                f"process may write: {because}"
            )
        case sqlite3.SQLITE_CORRUPT:
            return StoreDamagedError(
                f"the store {str(path)!r} is damaged: {because}; expected a restored backup, or what "
                "`sqlite3 FILE .recover` saves of it"
            )
        case sqlite3.SQLITE_NOTADB:
            return StoreFormatError(
                f"{str(path)!r} is no store of runs: {because}; expected the file of a store, or a "
                "name that does not exist yet"
            )
        case _:
            return StoreUnavailableError(
                f"the store {str(path)!r} cannot be read or written: {because}"
            )


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Raise the store's errors instead of SQLite's."""
    try:
        yield
    except sqlite3.Error as error:
        raise error_of(path, error) from error


def connect(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open a connection to a file; it may be used in any thread, one at a time.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    connection = sqlite3.connect(
        path, timeout=BUSY, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    try:
        connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[durability]}")
        # macOS: without these, an fsync leaves the data in the memory of the drive.
        connection.execute(f"PRAGMA fullfsync = {durability == 'fsync'}")
        connection.execute(f"PRAGMA checkpoint_fullfsync = {durability == 'fsync'}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except BaseException:
        connection.close()
        raise
    return connection


_SYNCHRONOUS: Final = {"fsync": "FULL", "process": "NORMAL"}


def prepare(path: Path) -> None:
    """Create the file if there is none, and bring it to this version.

    Raises:
        StoreFormatError: There is something else under that name, or a newer store.
        StoreUnavailableError: The file cannot be opened or written.
    """
    if not path.parent.is_dir():
        msg = f"there is no directory {str(path.parent)!r} for the store; expected one that exists"
        raise StoreUnavailableError(msg)
    for place in (path, path.parent):
        if place.exists() and not os.access(place, os.W_OK):
            msg = (
                f"the store {str(path)!r} cannot be written: no write permission for {str(place)!r}; "
                "expected a file and a directory that this process may write"
            )
            raise StoreReadOnlyError(msg)
    with translated(path), closing(connect(path, "fsync")) as connection:
        # In one transaction: another process may be creating the store between two reads.
        connection.execute("BEGIN")
        try:
            _check(connection, path)
        finally:
            roll_back(connection)
        if _begin_wal(connection) != "wal":
            msg = (
                f"the store {str(path)!r} cannot be opened in SQLite's WAL mode; expected a file on a "
                "local disk, because network file systems do not support it"
            )
            raise StoreUnavailableError(msg)
        connection.execute("BEGIN IMMEDIATE")
        try:
            _migrate(connection, _check(connection, path))
        except BaseException:
            roll_back(connection)
            raise
        connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of the file; 0 if it is empty.

    Raises:
        StoreFormatError: It is no store, or a newer one.
    """
    application = _value(connection, "PRAGMA application_id")
    version: int = _value(connection, "PRAGMA user_version")
    is_empty = _value(connection, "SELECT count(*) FROM sqlite_master") == 0
    if application != APPLICATION_ID and not (application == version == 0 and is_empty):
        msg = (
            f"{str(path)!r} is another program's SQLite database, and is not changed; expected the file "
            "of a store, or a name that does not exist yet"
        )
        raise StoreFormatError(msg)
    if version > VERSION:
        msg = (
            f"the store {str(path)!r} has the format {version} of a newer release of sluicegate; "
            f"expected at most {VERSION}, or that release"
        )
        raise StoreFormatError(msg)
    return version


def _begin_wal(connection: sqlite3.Connection) -> str:
    """Switch to WAL mode; where several processes do so at a time, SQLite does not wait."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            return str(_value(connection, "PRAGMA journal_mode = WAL"))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    if version == VERSION:
        return
    for migration in MIGRATIONS[version:]:
        for statement in migration.split(";"):
            if statement.strip():
                connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction that failed; SQLite may have done so already."""
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _value(connection: sqlite3.Connection, statement: str) -> Any:
    row = connection.execute(statement).fetchone()
    return None if row is None else row[0]
