"""A store in memory, for tests. It gives the same guarantees, and simulates crashes and power losses.

It holds the tables of a store as plain Python objects. Each ``open()`` acts as a separate process,
in the same event loop or in another one.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import Counter
from contextlib import asynccontextmanager
from copy import copy
from functools import partial
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Literal, final

from sluicegate._loop import current_backend
from sluicegate.durable._client import JournalClient
from sluicegate.durable._errors import StoreClosedError
from sluicegate.durable._port import (
    BASE,
    ENDED,
    WAITING,
    Batch,
    Capabilities,
    Due,
    Lease,
    Message,
    NewRun,
    RunFilter,
    RunRow,
    StoredRecord,
    Summary,
)
from sluicegate.durable._refusals import (
    check_consumed,
    conflict,
    continued,
    ended,
    owned,
    stale,
    unknown,
)


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from sluicegate.durable._client import Outcome, Tables, Task


class _Run:
    """A run in the tables."""

    def __init__(self, number: int, new: NewRun) -> None:
        self.number = number
        self.new = new
        self.summary = Summary("running", new.created_at)
        self.records = [StoredRecord(1, new.created_at, BASE, new.base)]
        self.sequence = self.base = 1
        self.shown = 0
        self.fence = 0
        self.owner: str | None = None
        self.inbox: dict[int, Message] = {}
        #: Every message that was ever received, by its key.
        self.received: dict[str, tuple[str, bytes]] = {}

    def copy(self) -> _Run:
        other = copy(self)
        other.records, other.inbox = [*self.records], {**self.inbox}
        other.received = {**self.received}
        return other

    def row(self) -> RunRow:
        new = self.new
        return RunRow(
            self.number,
            new.run_id,
            new.workflow,
            new.start_key,
            new.created_at,
            self.summary,
            self.sequence,
            self.base,
            self.shown,
            self.fence,
            self.owner,
            len(self.inbox),
        )

    def due_at(self) -> float | None:
        """Return from when on the run needs an owner, 0 for at once; None if it needs none."""
        summary = self.summary
        if summary.status in ENDED:
            return None
        if summary.status not in WAITING or self.inbox:
            return 0
        return summary.wake_at


@final
class MemoryTables:
    """The contents of the store; see :class:`sluicegate.durable._client.Tables`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.runs: dict[str, _Run] = {}
        #: Until when the lease of each owner is valid.
        self.owners: dict[str, float] = {}
        #: Is called with a run, its fence and its owner before another owner takes it over.
        self.taken: Callable[[str, int, str], object] | None = None
        self.messages: int = 0
        self.created: int = 0

    def copy(self) -> MemoryTables:
        other = copy(self)
        other.runs = {run_id: run.copy() for run_id, run in self.runs.items()}
        other.owners = {**self.owners}
        return other

    def _run(self, run_id: str) -> _Run:
        run = self.runs.get(run_id)
        if run is None:
            raise unknown(run_id)
        return run

    def _is_owned(self, run: _Run) -> bool:
        return run.owner is not None and self.owners.get(run.owner, 0) > self.clock()

    # -- writes

    def create(self, new: NewRun, owner: str) -> Lease | RunRow:
        run = self.runs.get(new.run_id)
        if run is not None:
            return run.row()
        self.created += 1
        run = self.runs[new.run_id] = _Run(self.created, new)
        return self._lease(run, owner)

    def claim(self, run_id: str, owner: str) -> Lease | None:
        run = self._run(run_id)
        if run.summary.status in ENDED or self._is_owned(run):
            return None
        if run.owner is not None and self.taken is not None:
            self.taken(run_id, run.fence, run.owner)
        return self._lease(run, owner)

    def _lease(self, run: _Run, owner: str) -> Lease:
        run.owner = owner
        run.fence += 1
        return Lease(run.new.run_id, owner, run.fence, run.sequence, run.shown)

    def release(self, lease: Lease) -> None:
        run = self.runs.get(lease.run_id)
        if run is not None and (run.fence, run.owner) == (lease.fence, lease.owner):
            run.owner = None

    def end_owner(self, owner: str) -> None:
        """End all leases of an owner."""
        self.owners.pop(owner, None)
        for run in self.runs.values():
            if run.owner == owner:
                run.owner = None

    def append(self, batch: Batch, owner: str) -> None:
        run = self.runs.get(batch.run_id)
        if run is None or run.fence != batch.fence or run.owner != owner:
            raise stale(batch.run_id, batch.fence, None if run is None else run.fence)
        after = continued(batch, run.sequence, run.base, run.shown)
        check_consumed(batch, [number for number in batch.consumes if number not in run.inbox])
        run.sequence, run.base, run.shown = after
        run.records += batch.records
        for number in batch.consumes:
            del run.inbox[number]
        if batch.summary is not None:
            run.summary = batch.summary
        if batch.prune_before is not None:
            below = min(batch.prune_before, run.base)
            run.records = [r for r in run.records if r.sequence >= below or r.shown]
        if batch.release:
            run.owner = None

    def send(self, run_id: str, kind: str, key: str, data: bytes) -> bool:
        run = self._run(run_id)
        if key in run.received:
            if run.received[key] == (kind, data):
                return False
            raise conflict(run_id, key)
        if run.summary.status in ENDED:
            raise ended(run_id, run.summary.status)
        self.messages += 1
        number = self.messages
        run.inbox[number] = Message(number, run_id, kind, key, data, self.clock())
        run.received[key] = (kind, data)
        return True

    def delete(self, run_id: str) -> bool:
        run = self.runs.get(run_id)
        if run is None:
            return False
        if self._is_owned(run):
            raise owned(run_id, run.owner)
        del self.runs[run_id]
        return True

    def prune(self, updated_before: float, statuses: Sequence[str], limit: int) -> int:
        which = RunFilter(statuses=statuses, updated_before=updated_before)
        matching = (run for run in self._matching(which) if not self._is_owned(run))
        chosen = [*islice(matching, limit)]
        for run in chosen:
            del self.runs[run.new.run_id]
        return len(chosen)

    def fences(self, owner: str) -> dict[str, int]:
        """Return the runs that an owner has, with their fences."""
        return {run_id: run.fence for run_id, run in self.runs.items() if run.owner == owner}

    # -- reads

    def read(self, run_id: str, after: int | None, limit: int | None) -> list[StoredRecord]:
        run = self._run(run_id)
        first = bisect_right(
            run.records, run.base - 1 if after is None else after, key=lambda r: r.sequence
        )
        return run.records[first:][:limit]

    def read_shown(self, run_id: str, after: int, limit: int | None) -> list[StoredRecord]:
        return [r for r in self._run(run_id).records if r.shown > after][:limit]

    def inbox(self, run_ids: Sequence[str]) -> list[Message]:
        runs = [self.runs[run_id] for run_id in {*run_ids} if run_id in self.runs]
        return sorted((m for run in runs for m in run.inbox.values()), key=lambda m: m.id)

    def due(self, now: float, limit: int, workflows: Sequence[str] | None, own: str) -> Due:
        due: list[tuple[float, int, _Run]] = []
        later: list[float] = []
        for run in self._matching(RunFilter(workflows=workflows)):
            at = run.due_at()
            if at is None:
                continue
            if self._is_owned(run):
                assert run.owner is not None
                expires_at = self.owners[run.owner]
                if run.owner != own and expires_at < inf:
                    later.append(max(at, expires_at))
            elif at > now:
                later.append(at)
            else:
                due.append((at, run.number, run))
        due.sort()
        return Due([run.row() for _, _, run in due[:limit]], min(later, default=None))

    def get(self, run_id: str) -> RunRow | None:
        run = self.runs.get(run_id)
        return None if run is None else run.row()

    def find(
        self, which: RunFilter, after: int | None, limit: int, *, newest_first: bool
    ) -> list[RunRow]:
        runs = [*self._matching(which)]
        if newest_first:
            runs.reverse()
        if after is not None:
            runs = [r for r in runs if (r.number < after if newest_first else r.number > after)]
        return [run.row() for run in runs[:limit]]

    def count(self, which: RunFilter) -> dict[str, int]:
        return dict(Counter(run.summary.status for run in self._matching(which)))

    def check(self) -> list[str]:
        return []

    def _matching(self, which: RunFilter) -> list[_Run]:
        return [run for run in self.runs.values() if _is_meant(run, which)]


def _is_meant(run: _Run, which: RunFilter) -> bool:
    created, summary = run.new.created_at, run.summary
    return (
        (which.statuses is None or summary.status in which.statuses)
        and (which.workflows is None or run.new.workflow in which.workflows)
        and (which.asking is None or which.asking == (summary.questions != b"[]"))
        and (which.created_after is None or created >= which.created_after)
        and (which.created_before is None or created < which.created_before)
        and (which.updated_before is None or summary.updated_at < which.updated_before)
    )


class _Disk:
    """The writer of a store in memory: committed tables, their state on disk, and pending tasks."""

    is_elsewhere = False

    def __init__(self, tables: MemoryTables, *, syncs: bool, lease: float) -> None:
        self.tables = tables
        tables.taken = self._tell_taken
        self.syncs = syncs
        self.lease = lease
        self.lock: AbstractContextManager[Any] = threading.RLock()
        #: The tables on disk, and the tasks committed since; used if commits do not sync.
        self._on_disk = tables.copy()
        self._unsynced: list[Task] = []
        self.waiting: list[Task] = []
        self.is_held: bool = False
        self.opened = 0
        self.journals: dict[str, MemoryJournal] = {}
        self.commits: int = 0

    # -- the writer

    def submit(self, task: Task) -> None:
        with self.lock:
            self.waiting.append(task)
            journal = self.journals.get(task.client.owner)
            if journal is not None and (not self.is_held or journal.is_leaving):
                self._commit_soon(journal)

    def watch(self, client: JournalClient, *, is_on: bool) -> None:
        """Do nothing: all changes are known."""

    def _commit_soon(self, journal: MemoryJournal) -> None:
        if not journal.is_called:
            journal.is_called = True
            journal.call_soon(partial(self._commit_for, journal))

    def _commit_for(self, journal: MemoryJournal) -> None:
        journal.is_called = False
        self.commit()

    def hold(self) -> None:
        with self.lock:
            self.is_held = True

    def go_on(self) -> None:
        with self.lock:
            self.is_held = False
            for journal in {task.client.owner: task.client for task in self.waiting}.values():
                if isinstance(journal, MemoryJournal):
                    self._commit_soon(journal)

    def commit(self) -> None:
        with self.lock:
            tasks, self.waiting = self.waiting, []
            if not tasks:
                return
            self.commits += 1
            outcomes: dict[JournalClient, list[Outcome]] = {}
            for task in tasks:
                outcomes.setdefault(task.client, []).append(self._perform(task))
            for client, own in outcomes.items():
                client.call_soon(partial(client.settle, own))
            for journal in self.journals.values():
                if any(task.is_news or task.client is not journal for task in tasks):
                    journal.call_soon(journal.note_change)

    def _perform(self, task: Task) -> Outcome:
        try:
            result = task.work(self.tables)
        except Exception as error:  # noqa: BLE001 - raised by who waits for the task
            return task, None, error
        if not self.syncs:
            self._unsynced.append(task)
        return task, result, None

    def _tell_taken(self, run_id: str, fence: int, owner: str) -> None:
        journal = self.journals.get(owner)
        if journal is not None and not journal.is_stalled:
            error = stale(run_id, fence, None)
            journal.call_soon(partial(journal.lose, run_id, fence, error))

    # -- faults

    def sync(self) -> None:
        with self.lock:
            self._on_disk, self._unsynced = self.tables.copy(), []

    def cut(self, journal: MemoryJournal, keep: float) -> None:
        with self.lock:
            own = [task for task in self.waiting if task.client is journal]
            self.waiting = [task for task in self.waiting if task.client is not journal]
            self._end(journal, own, keep)

    def lose_power(self, keep: float) -> None:
        with self.lock:
            tasks, self.waiting = self.waiting, []
            if not self.syncs:
                since, self._unsynced = self._unsynced, []
                self._restore(self._on_disk)
                for task in since[: int(len(since) * keep)]:
                    self._perform(task)
            for journal in [*self.journals.values()]:
                self._end(journal, [task for task in tasks if task.client is journal], keep)

    def _restore(self, tables: MemoryTables) -> None:
        fresh = tables.copy()
        self.tables.runs, self.tables.owners = fresh.runs, fresh.owners

    def _end(self, journal: MemoryJournal, tasks: list[Task], keep: float) -> None:
        """Simulate the end of an owner's process: the oldest pending writes are committed but not settled."""
        for task in tasks[: int(len(tasks) * keep)]:
            self._perform(task)
        self.tables.owners.pop(journal.owner, None)
        self.journals.pop(journal.owner, None)
        error = StoreClosedError(
            "the process that had opened the store in memory was ended by a test"
        )
        journal.end(error)
        journal.call_soon(partial(journal.settle, [(task, None, error) for task in tasks]))
        journal.call_soon(partial(journal.lose_all, error))


@final
class MemoryJournal(JournalClient):
    """An open :class:`MemoryStore`: a :class:`Journal` whose process a test can kill or suspend."""

    def __init__(self, disk: _Disk, owner: str, capabilities: Capabilities) -> None:
        super().__init__(owner, capabilities, disk, self._read_now)
        self._disk = disk
        #: Whether a commit is about to be made in this event loop.
        self.is_called = False
        self.is_leaving = False
        self.is_stalled: bool = False

    async def _read_now(self, function: Callable[[Tables], Any]) -> Any:
        await current_backend().checkpoint()
        self._refuse_if_ended()
        with self._disk.lock:
            return function(self._disk.tables)

    def cut(self, keep: float = 0.0) -> None:
        """End this owner as ``kill -9`` ends a process; called in its event loop.

        Committed writes stay. Of the pending ones, the oldest part is written but not settled, as
        when a process ends between a commit and its return. All further calls fail, and other
        owners can claim the runs at once.

        Args:
            keep: The part of the pending writes that is written, from 0 to 1.
        """
        self._disk.cut(self, keep)

    def stall(self) -> None:
        """Stop renewing the leases, like a suspended process. They hold until they expire.

        If another owner then claims a run, this one learns it from :meth:`go_on`, or when a write is
        refused.
        """
        self.is_stalled = True
        with self._disk.lock:
            tables = self._disk.tables
            tables.owners[self.owner] = tables.clock() + self._disk.lease

    def expire(self) -> None:
        """Let the leases expire now. The loss of a run is reported as soon as it is claimed."""
        with self._disk.lock:
            tables = self._disk.tables
            tables.owners[self.owner] = tables.clock()

    def go_on(self) -> None:
        """Renew the leases again, after :meth:`stall` or :meth:`expire`."""
        self.is_stalled = False
        with self._disk.lock:
            tables = self._disk.tables
            tables.owners[self.owner] = inf
            self.call_soon(partial(self.keep_only, tables.fences(self.owner)))


@final
class MemoryStore:
    """A store in memory, for tests. Its contents are lost with the object.

    ``async with store.open() as journal:`` opens it. Each ``open()`` acts as a separate process; they
    may be in several event loops and threads.

    All pending writes are committed together at the next turn of the event loop. After :meth:`hold`,
    the test decides when to :meth:`commit`.

    Args:
        clock: Returns the wall time in seconds, by which leases expire.
        durability: With ``"fsync"`` every commit survives a power loss, with ``"process"`` only those
            before the last :meth:`sync`.
        lease: Seconds after which the runs of a stalled owner can be claimed by others.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        durability: Literal["fsync", "process"] = "fsync",
        lease: float = 10,
    ) -> None:
        self._disk = _Disk(MemoryTables(clock), syncs=durability == "fsync", lease=lease)

    def __repr__(self) -> str:
        disk = self._disk
        return (
            f"<MemoryStore: {len(disk.tables.runs)} runs, {len(disk.journals)} owners, "
            f"{len(disk.waiting)} writes not committed>"
        )

    @property
    def commits(self) -> int:
        """The number of commits so far."""
        return self._disk.commits

    def open(self) -> AbstractAsyncContextManager[MemoryJournal]:
        """Open the store in the running event loop, as a separate owner.

        Leaving the block commits what was appended and ends the leases. That is a checkpoint, and
        is not cancelled.
        """
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[MemoryJournal]:
        disk = self._disk
        with disk.lock:
            disk.opened += 1
            owner = f"memory-{disk.opened}"
            journal = disk.journals[owner] = MemoryJournal(disk, owner, self._capabilities())
            disk.tables.owners[owner] = inf
        try:
            yield journal
        finally:
            journal.is_leaving = True
            await journal.finish(lambda tables: tables.end_owner(owner))  # noqa: ASYNC102 - shielded
            disk.journals.pop(owner, None)

    def _capabilities(self) -> Capabilities:
        return Capabilities(
            shared_between_processes=False,
            shared_between_machines=False,
            survives_process=True,
            survives_power_loss=self._disk.syncs,
            notice=0.0,
            max_payload=256 * 1024 * 1024,
        )

    # -- for tests

    def hold(self) -> None:
        """Stop committing automatically, until :meth:`go_on`."""
        self._disk.hold()

    def commit(self) -> None:
        """Commit all pending writes now. May be called from any thread."""
        self._disk.commit()

    def go_on(self) -> None:
        """Commit the pending writes, and commit automatically again."""
        self._disk.go_on()

    def sync(self) -> None:
        """Write all commits to the simulated disk; for ``durability="process"``."""
        self._disk.sync()

    def power_loss(self, keep: float = 0.0) -> None:
        """End all owners at once, and lose the writes that are not on the disk.

        Args:
            keep: The part of these writes that survives, from 0 to 1: the oldest of the commits
                since the last :meth:`sync`, and the oldest of each owner's pending writes.
        """
        self._disk.lose_power(keep)
