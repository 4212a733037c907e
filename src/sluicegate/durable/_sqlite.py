"""SQLite as a store of runs: a file that several event loops, threads and processes may share."""

from __future__ import annotations

import os
import platform
import re
import secrets
import sqlite3
import threading
import time
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from sluicegate._errors import brief
from sluicegate._loop import current_backend
from sluicegate.durable._client import JournalClient, closed
from sluicegate.durable._errors import StoreUnavailableError
from sluicegate.durable._owner_lock import OwnerLock
from sluicegate.durable._port import Capabilities
from sluicegate.durable._sqlite_file import connect, prepare, translated
from sluicegate.durable._sqlite_tables import SqliteTables
from sluicegate.durable._sqlite_writer import LOOK, SqliteWriter


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from sluicegate.durable._client import Tables
    from sluicegate.durable._port import Journal
    from sluicegate.durable._sqlite_file import Durability

T = TypeVar("T")

#: Connections for reading that are kept open; more are opened when more are needed at a time.
MOST_READERS: Final = 4
#: SQLite instructions between two checks for a cancelled read: a few milliseconds.
STEPS: Final = 100_000
#: Of SQLite's own limit, 1,000,000,000 bytes, with some room for the rest of a row.
MOST_PAYLOAD: Final = 999_000_000


def open_sqlite_journal(
    path: str | os.PathLike[str],
    *,
    durability: Durability = "fsync",
    max_stall: float = 60,
    lease: float = 10,
    clock: Callable[[], float] = time.time,
) -> AbstractAsyncContextManager[Journal]:
    """Open an SQLite file as a store of runs; it is created if there is none.

    ``async with open_sqlite_journal("runs.db") as journal:`` gives the :class:`Journal`.

    Any number of processes, threads and event loops may open the same file at a time, on one
    machine. Network file systems are not supported: SQLite's WAL mode does not work there.

    Entering and leaving the block are checkpoints. Leaving it commits what was appended and ends the
    leases; it is not cancelled, and leaves no thread, no lock and no open file.

    Args:
        path: The file. Beside it there are ``-wal`` and ``-shm`` files of SQLite while it is open, and
            a directory ``-owners`` with a locked file for each owner.
        durability: With ``"fsync"`` commits survive a power loss, as far as the disk keeps its
            word; with ``"process"`` they survive the end of the process, and are many times faster.
        max_stall: Seconds for which the event loop may be busy without losing its runs.
        lease: Seconds after which others may claim the runs of a process that does not renew its
            leases. A process of this machine that has ended is known at once.
        clock: Returns the wall time in seconds, by which leases expire.

    Raises:
        ValueError: An option is not one of the above.
        StoreFormatError: On entering: the file is another program's, or of a newer release.
        StoreUnavailableError: On entering: it cannot be opened, or not be written.
    """
    if durability not in ("fsync", "process"):
        msg = f"durability is {brief(durability)}; expected 'fsync' or 'process'"
        raise ValueError(msg)
    if not (max_stall > 0 and lease > 0):
        msg = f"max_stall is {max_stall!r} and lease {lease!r}; expected seconds above 0"
        raise ValueError(msg)
    use = _Use(Path(path), durability=durability, max_stall=max_stall, lease=lease, clock=clock)
    return _open(use)


def open_journal(
    url: str, *, durability: Durability = "fsync", max_stall: float = 60
) -> AbstractAsyncContextManager[Journal]:
    """Open the store of runs at an address, as :func:`open_sqlite_journal` does.

    Args:
        url: ``"sqlite:///runs.db"`` for a file in the current directory, ``"sqlite:////var/runs.db"``
            with its whole path.
        durability: ``"fsync"``, or ``"process"`` for commits that only the process can lose.
        max_stall: Seconds for which the event loop may be busy without losing its runs.

    Raises:
        ValueError: The address names no store.
    """
    start = "sqlite:///"
    path = url.removeprefix(start)
    if not url.startswith(start) or path in ("", ":memory:"):
        msg = (
            f"no store has the address {brief(url)}; expected 'sqlite:///runs.db', "
            "'sqlite:////var/lib/runs.db' or, for tests, sluicegate.durable.MemoryStore()"
        )
        raise ValueError(msg)
    return open_sqlite_journal(path, durability=durability, max_stall=max_stall)


@asynccontextmanager
async def _open(use: _Use) -> AsyncGenerator[Journal]:
    backend = current_backend()
    client: JournalClient | None = None
    try:
        await _in_thread(use.begin)
        client = use.join()
        await client.perform(use.begin_owner)
        yield client
    finally:
        left: BaseException | None = None
        try:
            if client is not None:
                await client.finish(use.end_owner)  # noqa: ASYNC102 - shielded
        except backend.Cancelled as error:  # noqa: ASYNC103 - natively; raised below
            left = error
        while not use.is_over:
            try:
                with backend.cancel_scope(shield=True):
                    await _in_thread(use.end)  # noqa: ASYNC102 - it ends whatever happens
            except backend.Cancelled as error:  # noqa: ASYNC103 - natively; raised below
                left = error
        if left is not None:
            try:
                raise left
            finally:
                del left  # or this frame and its exception keep each other alive


async def _in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread. A jumping clock waits for it."""
    backend = current_backend()
    backend.hold_clock(inf)
    try:
        result: T = await backend.run_in_thread(function, abandon_on_cancel=False)
    finally:
        backend.release_clock(inf)
    return result


@final
class _Use:
    """The use of a file by one event loop. Its methods are called in threads, one at a time."""

    def __init__(self, path: Path, **options: Any) -> None:
        self._path = path
        self._options = options
        self._lease: float = options["lease"]
        self._file: _File | None = None
        self._key: object = None
        self._lock: OwnerLock | None = None
        self._client: JournalClient | None = None
        host = re.sub(r"[^\w.-]", "_", platform.node())
        self._owner = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.is_over = False

    def begin(self) -> None:
        """Open the file, unless this process has done so; lock the file of the owner."""
        self._key, self._file = _share(self._path, self._options)
        try:
            self._lock = OwnerLock(self._file.locks, self._owner)
        except OSError as error:
            msg = f"no file can be made in {str(self._file.locks)!r}: {error}"
            raise StoreUnavailableError(msg) from error

    def join(self) -> JournalClient:
        """Return the client for this event loop. Called in it."""
        assert self._file is not None
        assert self._lock is not None
        client = self._client = JournalClient(
            self._owner, self._capabilities(), self._file.writer, self._read
        )
        self._file.writer.join(client, self._lock)
        return client

    def begin_owner(self, tables: Any) -> None:
        """Enter the owner. Called by the writer."""
        tables.sweep_owners()
        tables.begin_owner(self._owner, os.getpid(), self._lease)

    def end_owner(self, tables: Any) -> None:
        """End the leases. Called by the writer."""
        tables.end_owner(self._owner)

    def end(self) -> None:
        """Close the file, unless another event loop of this process uses it. May be called again."""
        file, self._file = self._file, None
        if file is not None:
            if self._client is not None:
                file.writer.leave(self._client)
            if self._lock is not None:
                self._lock.release()
            _leave(self._key, file)
        self.is_over = True

    async def _read(self, function: Callable[[Tables], Any]) -> Any:
        file = self._file
        if file is None:
            raise closed()
        return await _in_thread(partial(file.read, function, current_backend().check_cancelled))

    def _capabilities(self) -> Capabilities:
        return Capabilities(
            shared_between_processes=True,
            shared_between_machines=False,
            survives_process=True,
            survives_power_loss=self._options["durability"] == "fsync",
            notice=LOOK,
            max_payload=MOST_PAYLOAD,
        )


class Interruption:
    """Interrupts a statement of SQLite when the caller is cancelled. SQLite calls it periodically."""

    def __init__(self, check_cancelled: Callable[[], None]) -> None:
        self._check_cancelled = check_cancelled
        self._raised: BaseException | None = None

    def __call__(self) -> bool:
        try:
            self._check_cancelled()
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised by release(), not through SQLite
            self._raised = error
            return True  # noqa: ASYNC104
        return False

    def release(self) -> None:
        """Raise the cancellation, if it was the reason."""
        raised, self._raised = self._raised, None
        if raised is not None:
            try:
                raise raised from None
            finally:
                del raised  # or this frame and its exception keep each other alive


class _File:
    """A file that is open in this process: its writer, and connections for reading."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        prepare(path)
        self._path = path
        self._durability: Durability = options["durability"]
        self._clock: Callable[[], float] = options["clock"]
        self.users = 0
        self.locks = path.with_name(f"{path.name}-owners")
        self._readers: list[tuple[sqlite3.Connection, SqliteTables]] = []
        self._lock = threading.Lock()
        self._is_closed = False
        with translated(path):
            self.writer = SqliteWriter(path, self.locks, **options)

    def close(self) -> None:
        """End the writer, and close all connections."""
        self.writer.close()
        with self._lock:
            self._is_closed = True
            readers, self._readers = self._readers, []
        for connection, _ in readers:
            connection.close()

    def read(self, function: Callable[[Tables], T], check_cancelled: Callable[[], None]) -> T:
        """Call a function with the tables as they are at one moment.

        Args:
            function: The function.
            check_cancelled: Raises if the caller is cancelled; a long statement is then given up.
        """
        with translated(self._path):
            connection, tables = self._reader()
            interruption = Interruption(check_cancelled)
            connection.set_progress_handler(interruption, STEPS)
            try:
                connection.execute("BEGIN")
                try:
                    return function(tables)
                finally:
                    connection.set_progress_handler(None, 0)
                    connection.execute("ROLLBACK")
            except sqlite3.OperationalError:
                interruption.release()
                raise
            finally:
                self._put_back(connection, tables)

    def _put_back(self, connection: sqlite3.Connection, tables: SqliteTables) -> None:
        with self._lock:
            is_kept = not self._is_closed and len(self._readers) < MOST_READERS
            if is_kept:
                self._readers.append((connection, tables))
        if not is_kept:
            connection.close()

    def _reader(self) -> tuple[sqlite3.Connection, SqliteTables]:
        with self._lock:
            if self._readers:
                return self._readers.pop()
        connection = connect(self._path, self._durability)
        connection.execute("PRAGMA query_only = 1")
        return connection, SqliteTables(connection, self.locks, self._clock)


#: The files that are open, by process, path and options. A process that was forked opens files of its
#: own, because connections do not survive a fork.
_files: dict[object, _File] = {}
_files_lock = threading.Lock()


def _share(path: Path, options: dict[str, Any]) -> tuple[object, _File]:
    """Return the open file, and the key for :func:`_leave`."""
    path = path.resolve()
    key = (os.getpid(), path, *options.values())
    file = _enter(key, None)
    if file is None:
        fresh = _File(path, options)
        file = _enter(key, fresh)
        assert file is not None
        if file is not fresh:  # another thread was faster
            fresh.close()
    return key, file


def _enter(key: object, fresh: _File | None) -> _File | None:
    with _files_lock:
        file = _files.get(key)
        if file is None and fresh is not None:
            file = _files[key] = fresh
        if file is not None:
            file.users += 1
    return file


def _leave(key: object, file: _File) -> None:
    """Close the file after its last use."""
    with _files_lock:
        file.users -= 1
        if file.users:
            return
        del _files[key]
    file.close()
