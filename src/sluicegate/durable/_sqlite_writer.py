"""The writer thread of an SQLite store: one per file and process, shared by its event loops.

It performs all pending tasks in one transaction, and returns the outcomes to each event loop in one
call. It also renews the leases, so a busy event loop keeps them, and checks for commits by other
processes while a client waits for a change.

A refused task raises a `WorkflowError` before it has written anything; the others are committed.
After any other error the transaction is rolled back, and if a single task may be the cause, each is
retried alone. If the thread fails, it reports that to every client before it ends, so no task
waits forever.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, final

from sluicegate._errors import WorkflowError
from sluicegate.durable._client import Task, ignore
from sluicegate.durable._errors import StoreClosedError, StoreError
from sluicegate.durable._sqlite_file import connect, error_of, roll_back
from sluicegate.durable._sqlite_tables import SqliteTables


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sluicegate.durable._client import JournalClient, Outcome
    from sluicegate.durable._owner_lock import OwnerLock
    from sluicegate.durable._port import Batch
    from sluicegate.durable._sqlite_file import Durability


LOGGER = logging.getLogger("sluicegate")
#: Seconds between two checks for commits by other processes, while a client waits for a change.
LOOK = 0.05
#: Seconds for which a lazy task waits for others.
NAP = 0.004
#: The most tasks of a transaction.
MOST_AT_ONCE = 2_000
#: Errors that concern the file, not what is written: another try would end alike.
_OF_THE_FILE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
}


@final
class _Member:
    """A client of the writer.

    Attributes:
        lock: Shows other processes that this one is alive.
        lost: How many leases the store says that the owner has lost.
        asked_at: When the event loop was last asked to answer; None if it has answered.
        is_silent: Whether a missing answer has been logged.
        has_news: Whether there is a change that the client was not notified of.
        is_watching: Whether a task waits for a change.
    """

    __slots__ = ("asked_at", "has_news", "is_silent", "is_watching", "lock", "lost")

    def __init__(self, lock: OwnerLock) -> None:
        self.lock = lock
        self.lost = 0
        self.asked_at: float | None = None
        self.is_silent = False
        self.has_news = False
        self.is_watching = False

    def answer(self) -> None:
        self.asked_at = None


@final
class SqliteWriter:
    """The writer of a file; see :class:`sluicegate.durable._client.Writer`.

    Args:
        path: The file, which is a store of this version.
        locks: The directory of the owners' locks.
        durability: Whether a commit waits for the disk.
        lease: Seconds for which a lease holds after it was renewed.
        max_stall: Seconds for which an event loop may be busy and keeps its leases.
        clock: Returns the wall time.
    """

    is_elsewhere = True

    def __init__(
        self,
        path: Path,
        locks: Path,
        *,
        durability: Durability,
        lease: float,
        max_stall: float,
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self._lease = lease
        self._max_stall = max_stall
        self._connection = connect(path, durability)
        self._tables = SqliteTables(self._connection, locks, clock)
        self._queue: deque[Task] = deque()
        #: The thread sleeps while this is locked. It is only rung when it sleeps, and once: waking a
        #: thread for each task would cost more than the rest of an append.
        self._bell = threading.Lock()
        self._bell.acquire()
        #: Whether any task wakes the thread, and whether one that is not lazy does.
        self._is_asleep = self._naps = False
        #: Whether a task was submitted that is not lazy.
        self._is_urgent = False
        self._lock = threading.Lock()
        self._members: dict[JournalClient, _Member] = {}
        #: The tasks that the thread has taken and whose outcomes are not reported yet, in order.
        self._in_hand: list[Task] = []
        #: Why nothing more is taken; None while the thread works.
        self._end: StoreError | None = None
        self._is_ending = False
        self._next_renewal = self._next_look = 0.0
        self._thread = threading.Thread(
            target=self._run, name=f"sluicegate store {path.name}", daemon=True
        )
        try:
            self._version = self._data_version()
            self._thread.start()
        except BaseException:
            self._connection.close()
            raise

    # -- from any thread

    def submit(self, task: Task) -> None:
        """Perform a task after those that were submitted before."""
        self._queue.append(task)
        if not task.is_lazy:
            self._is_urgent = True
        if self._is_asleep or (self._naps and not task.is_lazy):
            self._ring()
        if self._end is not None:
            self._tell_end(self._end)

    def _ring(self) -> None:
        """Wake the thread; without effect if that has happened already."""
        self._is_asleep = self._naps = False
        with suppress(RuntimeError):
            self._bell.release()

    def watch(self, client: JournalClient, *, is_on: bool) -> None:
        """Start or stop watching for changes on behalf of a client."""
        member = self._members.get(client)
        if member is not None:
            member.is_watching = is_on
            if is_on:
                self._ring()

    def join(self, client: JournalClient, lock: OwnerLock) -> None:
        """Take in a client; its owner is entered by a task."""
        with self._lock:
            self._members[client] = _Member(lock)

    def leave(self, client: JournalClient) -> None:
        """Forget a client whose last task has been performed."""
        with self._lock:
            member = self._members.pop(client, None)
        if member is not None:
            member.lock.release()

    def close(self) -> None:
        """End the thread, after the tasks that wait, and wait for it."""
        self._is_ending = True
        self._ring()
        self._thread.join()

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._is_ending or self._queue:
                tasks = self._take()
                if tasks:
                    self._in_hand = tasks
                    self._perform_all(tasks)
                now = time.monotonic()
                if now >= self._next_look and self._is_watched():
                    self._look(now)
                if now >= self._next_renewal:
                    self._renew(now)
        except BaseException as error:  # noqa: ASYNC103 - nobody may wait for this thread in vain
            LOGGER.exception("the writer of the store %s has stopped", self.path)
            self._fail(
                StoreClosedError(
                    f"the writer of the store {str(self.path)!r} has stopped: {error!r}"
                )
            )
        finally:
            self._connection.close()

    def _take(self) -> list[Task]:
        """Wait for tasks, and return those that wait; none when it is time for something else."""
        queue = self._queue
        if not queue:
            self._is_asleep = True
            # A task that was submitted before this line did not ring.
            if not queue and not self._is_ending:
                self._bell.acquire(timeout=self._patience())
            self._is_asleep = False
        if queue and not self._is_urgent and not self._is_ending:
            self._naps = True
            if not self._is_urgent:
                self._bell.acquire(timeout=NAP)
            self._naps = False
        self._is_urgent = False
        return [queue.popleft() for _ in range(min(len(queue), MOST_AT_ONCE))]

    def _patience(self) -> float:
        until = self._next_renewal
        if self._is_watched():
            until = min(until, self._next_look)
        return max(until - time.monotonic(), 0)

    def _is_watched(self) -> bool:
        """Whether a client waits for a change."""
        return any(member.is_watching for member in [*self._members.values()])

    def _perform_all(self, tasks: list[Task]) -> None:
        try:
            outcomes = self._transact(tasks)
        except Exception as error:
            if _is_fatal(error):
                raise
            if len(tasks) > 1 and _code(error) not in _OF_THE_FILE:
                for task in tasks:
                    self._perform_all([task])
                return
            outcomes = [(task, None, self._failure(error)) for task in tasks]
        self._tell(outcomes)
        self._tell_news(tasks)

    def _failure(self, error: Exception) -> StoreError:
        if isinstance(error, sqlite3.Error):
            failure = error_of(self.path, error)
        else:
            failure = StoreError(
                f"a value cannot be kept in the store {str(self.path)!r}: {error!r}"
            )
        failure.__cause__ = error
        return failure

    def _transact(self, tasks: list[Task]) -> list[Outcome]:
        """Perform tasks in one transaction; return their outcomes after the commit.

        Raises:
            Exception: Nothing was written.
        """
        execute, tables = self._connection.execute, self._tables
        execute("BEGIN IMMEDIATE")
        try:
            outcomes: list[Outcome] = []
            appends: list[Task] = []
            for task in tasks:
                if task.batch is not None and _is_plain(task.batch):
                    appends.append(task)
                    continue
                outcomes += tables.append_all(appends)
                appends.clear()
                try:
                    outcomes.append((task, task.work(tables), None))
                except WorkflowError as refusal:
                    outcomes.append((task, None, refusal))
            outcomes += tables.append_all(appends)
            execute("COMMIT")
        except BaseException:
            roll_back(self._connection)
            tables.forget()
            raise
        return outcomes

    def _tell(self, outcomes: list[Outcome]) -> None:
        """Give the outcomes to the event loops: one call each."""
        self._in_hand = self._in_hand[len(outcomes) :]
        by_client: dict[JournalClient, list[Outcome]] = {}
        for outcome in outcomes:
            by_client.setdefault(outcome[0].client, []).append(outcome)
        for client, own in by_client.items():
            if not client.call_soon(partial(client.settle, own)):
                self._abandon(client)

    def _tell_news(self, tasks: list[Task]) -> None:
        """Notify clients of changes: at once, or at the next check if only records were appended."""
        is_news = any(task.is_news for task in tasks)
        authors = {task.client for task in tasks}
        for client, member in [*self._members.items()]:
            if is_news:
                member.has_news = False
                client.call_soon(client.note_change)
            elif authors != {client}:
                member.has_news = True

    def _look(self, now: float) -> None:
        """Notify the waiting clients of commits by others."""
        self._next_look = now + LOOK
        try:
            version = self._data_version()
        except sqlite3.Error as error:  # the next write fails too, if it matters
            LOGGER.warning("cannot check for changes: %s", error_of(self.path, error))
            return
        is_changed, self._version = version != self._version, version
        for client, member in [*self._members.items()]:
            if is_changed or member.has_news:
                member.has_news = False
                client.call_soon(client.note_change)

    def _data_version(self) -> int:
        version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        return version

    def _renew(self, now: float) -> None:
        """Renew the leases of the clients whose event loops answer."""
        self._next_renewal = now + self._lease / 3
        alive: list[tuple[JournalClient, _Member]] = []
        for client, member in [*self._members.items()]:
            if member.asked_at is not None and now - member.asked_at > self._max_stall:
                if not member.is_silent:
                    LOGGER.warning(
                        "the event loop of %r has not answered for %g seconds, so its leases are "
                        "not renewed; expected steps that await, or run in threads",
                        client,
                        self._max_stall,
                    )
                member.is_silent = True
                continue
            member.is_silent = False
            if member.asked_at is None:
                member.asked_at = now
                if not client.call_soon(member.answer):
                    self._abandon(client)
                    continue
            alive.append((client, member))
        if alive:
            self._renew_all(alive)

    def _renew_all(self, alive: list[tuple[JournalClient, _Member]]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for client, member in alive:
                    self._renew_one(client, member)
                self._connection.execute("COMMIT")
            except BaseException:
                roll_back(self._connection)
                raise
        except sqlite3.Error as error:
            if _is_fatal(error):
                raise
            LOGGER.warning("leases were not renewed: %s", error_of(self.path, error))

    def _renew_one(self, client: JournalClient, member: _Member) -> None:
        lost = self._tables.renew(client.owner)
        if lost == member.lost:
            return
        if lost is None:  # another process considered it dead and removed it
            self._tables.begin_owner(client.owner, os.getpid(), self._lease)
        member.lost = lost or 0
        client.call_soon(partial(client.keep_only, self._tables.fences(client.owner)))

    def _abandon(self, client: JournalClient) -> None:
        """Forget a client whose event loop has ended without leaving the store."""
        with self._lock:
            member = self._members.pop(client, None)
        if member is not None:
            member.lock.release()
            owner = client.owner
            self.submit(Task(client, lambda tables: tables.end_owner(owner), ignore))

    def _fail(self, error: StoreError) -> None:
        """Report to all clients that the writer has stopped."""
        self._end = error
        self._tell([(task, None, error) for task in self._in_hand])
        self._tell_end(error)
        for client in [*self._members]:
            client.call_soon(partial(client.end, error))
            client.call_soon(partial(client.lose_all, error))

    def _tell_end(self, error: StoreError) -> None:
        """Report the error for all tasks that wait; called in any thread."""
        with suppress(IndexError):
            while True:
                task = self._queue.popleft()
                task.client.call_soon(partial(task.client.settle, [(task, None, error)]))


def _is_plain(batch: Batch) -> bool:
    """Whether a batch appends records and does nothing else: such batches are written together."""
    return not (
        batch.consumes
        or batch.release
        or batch.summary is not None
        or batch.prune_before is not None
    )


def _code(error: BaseException) -> int | None:
    """Return SQLite's code for an error, without its details; None if it is none of SQLite's."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_fatal(error: BaseException) -> bool:
    """Whether an fsync has failed: the system then drops the pages that it could not write."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC
