"""The event-loop side of a store whose writes happen elsewhere.

A write is a task: a function of the store's tables. The client hands it to a writer, which performs
all pending tasks in order, in one transaction, and returns the outcomes of each client to its event
loop in one call. Reading is a function of the tables as well. So a store on this client
consists of its tables, which are synchronous, a writer and a way to read.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate.durable._errors import StaleLeaseError, StoreClosedError
from sluicegate.durable._port import ENDED, Lease
from sluicegate.durable._refusals import stale


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from sluicegate.durable._errors import StoreError
    from sluicegate.durable._port import (
        Batch,
        Capabilities,
        Due,
        Message,
        NewRun,
        RunFilter,
        RunRow,
        StoredRecord,
    )

T = TypeVar("T")

#: When so many bytes are not committed yet, or so many tasks, `wait_for_room` waits.
MOST_BYTES = 8 * 1024 * 1024
MOST_TASKS = 1_000
#: Bytes counted for a record or a batch in addition to its data.
OVERHEAD = 100


class Tables(Protocol):
    """The contents of a store, within a transaction. Methods that raise have changed nothing."""

    def create(self, new: NewRun, owner: str) -> Lease | RunRow: ...

    def claim(self, run_id: str, owner: str) -> Lease | None: ...

    def release(self, lease: Lease) -> None: ...

    def append(self, batch: Batch, owner: str) -> None: ...

    def send(self, run_id: str, kind: str, key: str, data: bytes) -> bool: ...

    def delete(self, run_id: str) -> bool: ...

    def prune(self, updated_before: float, statuses: Sequence[str], limit: int) -> int: ...

    def read(self, run_id: str, after: int | None, limit: int | None) -> list[StoredRecord]: ...

    def read_shown(self, run_id: str, after: int, limit: int | None) -> list[StoredRecord]: ...

    def inbox(self, run_ids: Sequence[str]) -> list[Message]: ...

    def due(self, now: float, limit: int, workflows: Sequence[str] | None, own: str) -> Due: ...

    def get(self, run_id: str) -> RunRow | None: ...

    def find(
        self, which: RunFilter, after: int | None, limit: int, *, newest_first: bool
    ) -> list[RunRow]: ...

    def count(self, which: RunFilter) -> dict[str, int]: ...

    def check(self) -> list[str]: ...


class Task:
    """A pending write and its callback.

    Attributes:
        client: The client that submitted it.
        work: The function to call within the transaction.
        settle: Is called in the client's event loop with the result and the exception; with the
            exception alone if there is a batch.
        size: How much room it takes in the queue.
        batch: The batch, if it appends one; None for everything else.
        is_lazy: Whether it may wait a few milliseconds for other tasks.
        is_news: Whether it counts as a change for every client, including the one that asked for it.
    """

    __slots__ = ("batch", "client", "is_lazy", "is_news", "settle", "size", "work")

    def __init__(
        self,
        client: JournalClient,
        work: Callable[[Any], Any],
        settle: Callable[..., None],
        *,
        size: int = OVERHEAD,
        is_news: bool = True,
        batch: Batch | None = None,
        is_lazy: bool = False,
    ) -> None:
        self.client: JournalClient = client
        self.work: Callable[[Any], Any] = work
        self.settle: Callable[..., None] = settle
        self.size: int = size
        self.is_news: bool = is_news
        self.batch: Batch | None = batch
        self.is_lazy: bool = is_lazy


#: A task with its result and its error.
Outcome = tuple[Task, Any, Any]


class Writer(Protocol):
    """Performs tasks. May be called from any thread."""

    #: Whether it works outside of the event loop, so that a jumping clock has to wait for it.
    is_elsewhere: bool

    def submit(self, task: Task) -> None:
        """Perform a task after those that were submitted before."""
        ...

    def watch(self, client: JournalClient, *, is_on: bool) -> None:
        """Start or stop watching for changes by other processes on behalf of a client."""
        ...


class JournalClient:
    """A :class:`~sluicegate.durable.Journal` over a writer and a reader.

    Args:
        owner: The id of the owner.
        capabilities: The properties of the store.
        writer: Performs the writes.
        read: Calls a function with the tables, off the event loop if that may take long.
    """

    def __init__(
        self,
        owner: str,
        capabilities: Capabilities,
        writer: Writer,
        read: Callable[[Callable[[Tables], Any]], Awaitable[Any]],
    ) -> None:
        self.owner = owner
        self.capabilities = capabilities
        self.writer = writer
        self._most_payload = capabilities.max_payload
        self._read = read
        self._backend = current_backend()
        self._call_soon = self._backend.caller_into(self._backend.current_loop())
        self._leases: dict[str, tuple[int, Callable[[StoreError], None]]] = {}
        self._size = 0
        self._tasks = 0
        self._changes = 1
        self._watchers = 0
        #: The waiters of the tasks that wait for room, and of those that wait for a change.
        self._for_room: set[Any] = set()
        self._for_change: set[Any] = set()
        #: Why nothing more is taken; None while the store is open.
        self._end: StoreError | None = None

    def __repr__(self) -> str:
        state = "open" if self._end is None else "closed"
        return (
            f"<{type(self).__name__} {self.owner!r}: {state}, {len(self._leases)} leases, "
            f"{self._tasks} writes under way>"
        )

    # -- called by the writer, from any thread

    def call_soon(self, function: Callable[[], object]) -> bool:
        """Call a function in the event loop; return False if that has ended."""
        try:
            self._call_soon(function)
        except (RuntimeError, OSError):  # a loop of Trio that ends just now has closed its socket
            return False
        return True

    # -- in the event loop, called by the writer and by the block that opened the store

    @enable_ki_protection
    def settle(self, outcomes: Iterable[Outcome]) -> None:
        """Report the outcomes of tasks, in order."""
        for task, result, error in outcomes:
            self._tasks -= 1
            self._size -= task.size
            batch = task.batch
            if batch is None:
                task.settle(result, error)
                continue
            task.settle(error)
            if isinstance(error, StaleLeaseError):
                self.lose(batch.run_id, batch.fence, error)
        if not self._tasks and self.writer.is_elsewhere:
            self._backend.release_clock(inf)
        if self._has_room():
            self._wake(self._for_room)

    def note_change(self) -> None:
        """Wake the tasks that wait for a change."""
        self._changes += 1
        self._wake(self._for_change)

    def lose(self, run_id: str, fence: int, error: StoreError) -> None:
        """Report a lost lease, if it is still held."""
        lost = self._forget(run_id, fence)
        if lost is not None:
            lost(error)

    def keep_only(self, fences: dict[str, int]) -> None:
        """Report the loss of each held lease that the store does not list with the same fence."""
        for run_id, (fence, _) in [*self._leases.items()]:
            if fences.get(run_id) != fence:
                self.lose(run_id, fence, stale(run_id, fence, fences.get(run_id)))

    def lose_all(self, error: StoreError) -> None:
        """Report the loss of all leases."""
        leases, self._leases = self._leases, {}
        for _, lost in leases.values():
            lost(error)

    def end(self, error: StoreError) -> None:
        """Accept no more calls; waits for room or for a change raise the error."""
        if self._end is None:
            self._end = error
            self._wake(self._for_room)
            self._wake(self._for_change)

    async def finish(self, work: Callable[[Any], Any]) -> None:
        """Accept no more calls, perform a last task, and wait until all tasks are settled.

        It is not cancelled: tasks are short, and the connection that they use is closed afterwards.
        A native cancellation meanwhile is raised at the end.
        """
        self._leases.clear()
        left: BaseException | None = None
        waiter = self._backend.waiter()
        ended: list[StoreError | None] = []

        def settle(_: object, error: StoreError | None) -> None:
            ended.append(error)
            waiter.wake()

        if self._end is None:
            self._submit(Task(self, work, settle))
            self.end(closed())
        else:
            ended.append(None)
        while not ended:
            try:
                with self._backend.cancel_scope(shield=True):
                    await waiter.wait()
            except self._backend.Cancelled as error:  # noqa: ASYNC103 - natively; raised below
                left = error
        if left is not None:
            try:
                raise left
            finally:
                del left  # or this frame and its exception keep each other alive
        await self._backend.cancel_shielded_checkpoint()

    def _wake(self, waiters: set[Any]) -> None:
        for waiter in waiters:
            waiter.wake()
        waiters.clear()

    def _has_room(self) -> bool:
        return self._size < MOST_BYTES and self._tasks < MOST_TASKS

    def _refuse_if_ended(self) -> None:
        if self._end is not None:
            raise _again(self._end)

    @enable_ki_protection
    def _submit(self, task: Task) -> None:
        if not self._tasks and self.writer.is_elsewhere:
            self._backend.hold_clock(inf)
        self._tasks += 1
        self._size += task.size
        self.writer.submit(task)

    async def _wait_in(self, waiters: set[Any]) -> None:
        waiter = self._backend.waiter()
        waiters.add(waiter)
        try:
            await waiter.wait()
        finally:
            waiters.discard(waiter)
        self._refuse_if_ended()

    async def perform(
        self,
        work: Callable[[Tables], T],
        *,
        undo: Callable[[Any], None] | None = None,
        size: int = OVERHEAD,
        is_news: bool = True,
    ) -> T:
        """Perform a task and wait for its end.

        Args:
            work: The function to call within the transaction.
            undo: Is called with the result if the caller is cancelled, immediately or once there is a result.
            size: How much room the task takes.
            is_news: See :class:`Task`.
        """
        await self._backend.checkpoint_if_cancelled()
        self._refuse_if_ended()
        waiter = self._backend.waiter()
        outcome: list[tuple[Any, Exception | None]] = []
        is_left = False

        def settle(result: Any, error: Exception | None) -> None:
            outcome.append((result, error))
            waiter.wake()
            if is_left and error is None and undo is not None:
                undo(result)

        try:
            self._submit(Task(self, work, settle, size=size, is_news=is_news))
            while not outcome:
                await waiter.wait()
        except BaseException:
            is_left = True
            if outcome and outcome[0][1] is None and undo is not None:
                undo(outcome[0][0])
            raise
        error = outcome[0][1]
        if error is not None:
            try:
                raise error
            finally:
                del error, outcome  # or this frame and its exception keep each other alive
        return cast("T", outcome[0][0])

    def _release_unheard(self, lease: object) -> None:
        """End the lease of a claim that was cancelled."""
        if isinstance(lease, Lease) and self._end is None:
            self._submit(Task(self, lambda tables: tables.release(lease), ignore))

    def _hold(self, lease: T, lost: Callable[[StoreError], None]) -> T:
        if isinstance(lease, Lease):
            self._leases[lease.run_id] = (lease.fence, lost)
        return lease

    # -- the port

    async def create(self, new: NewRun, lost: Callable[[StoreError], None]) -> Lease | RunRow:
        self._check_payload(new.base)
        return self._hold(
            await self.perform(
                lambda tables: tables.create(new, self.owner),
                undo=self._release_unheard,
                size=OVERHEAD + len(new.base),
                is_news=False,
            ),
            lost,
        )

    async def claim(self, run_id: str, lost: Callable[[StoreError], None]) -> Lease | None:
        return self._hold(
            await self.perform(
                lambda tables: tables.claim(run_id, self.owner),
                undo=self._release_unheard,
                is_news=False,
            ),
            lost,
        )

    async def release(self, lease: Lease) -> None:
        self._forget(lease.run_id, lease.fence)
        await self.perform(lambda tables: tables.release(lease))

    def append_nowait(self, batch: Batch, settle: Callable[[StoreError | None], None]) -> None:
        self._refuse_if_ended()
        size = OVERHEAD
        for record in batch.records:
            self._check_payload(record.data)
            size += OVERHEAD + len(record.data)
        if batch.release:
            self._forget(batch.run_id, batch.fence)
        self._submit(
            Task(
                self,
                lambda tables: tables.append(batch, self.owner),
                settle,
                size=size,
                is_news=batch.release,
                batch=batch,
                is_lazy=batch.lazy,
            )
        )

    def _forget(self, run_id: str, fence: int) -> Callable[[StoreError], None] | None:
        """Forget a lease; return what reports its loss, None if it is not held."""
        held = self._leases.get(run_id)
        if held is None or held[0] != fence:
            return None
        del self._leases[run_id]
        return held[1]

    def _check_payload(self, data: bytes) -> None:
        if len(data) > self._most_payload:
            msg = f"a record or message of {len(data)} bytes; expected at most {self._most_payload}"
            raise ValueError(msg)

    async def wait_for_room(self) -> None:
        await self._backend.checkpoint()
        self._refuse_if_ended()
        while not self._has_room():
            await self._wait_in(self._for_room)

    async def read(
        self, run_id: str, *, after: int | None = None, limit: int | None = None
    ) -> list[StoredRecord]:
        return await self._look(lambda tables: tables.read(run_id, after, limit))

    async def read_shown(
        self, run_id: str, *, after: int = 0, limit: int | None = None
    ) -> list[StoredRecord]:
        return await self._look(lambda tables: tables.read_shown(run_id, after, limit))

    async def send(self, run_id: str, kind: str, key: str, data: bytes) -> bool:
        self._check_payload(data)
        return await self.perform(
            lambda tables: tables.send(run_id, kind, key, data), size=OVERHEAD + len(data)
        )

    async def inbox(self, run_ids: Sequence[str]) -> list[Message]:
        return await self._look(lambda tables: tables.inbox(run_ids))

    async def changed(self, since: int) -> int:
        await self._backend.checkpoint()
        self._refuse_if_ended()
        self._watchers += 1
        if self._watchers == 1:
            self.writer.watch(self, is_on=True)
        try:
            while self._changes <= since:
                await self._wait_in(self._for_change)
        finally:
            self._watchers -= 1
            if not self._watchers:
                self.writer.watch(self, is_on=False)
        return self._changes

    async def due(self, now: float, limit: int, *, workflows: Sequence[str] | None = None) -> Due:
        return await self._look(lambda tables: tables.due(now, limit, workflows, self.owner))

    async def get(self, run_id: str) -> RunRow | None:
        return await self._look(lambda tables: tables.get(run_id))

    async def find(
        self,
        which: RunFilter,
        *,
        after: int | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> list[RunRow]:
        return await self._look(
            lambda tables: tables.find(which, after, limit, newest_first=newest_first)
        )

    async def count(self, which: RunFilter) -> dict[str, int]:
        return await self._look(lambda tables: tables.count(which))

    async def delete(self, run_id: str) -> bool:
        return await self.perform(lambda tables: tables.delete(run_id))

    async def prune(self, updated_before: float, statuses: Sequence[str] = ENDED) -> int:
        total = 0
        while True:  # a few at a time: others write in between
            count = await self.perform(
                lambda tables: tables.prune(updated_before, statuses, PRUNED_AT_ONCE)
            )
            total += count
            if count < PRUNED_AT_ONCE:
                return total

    async def check(self) -> list[str]:
        return await self._look(lambda tables: tables.check())

    async def _look(self, function: Callable[[Tables], T]) -> T:
        await self._backend.checkpoint_if_cancelled()
        self._refuse_if_ended()
        result: T = await self._read(function)
        return result


#: How many runs a transaction deletes.
PRUNED_AT_ONCE = 25


def ignore(_result: object, _error: StoreError | None) -> None:
    """Settle a task whose outcome is not needed."""


def closed() -> StoreClosedError:
    """Return the error for a store whose block was left."""
    return StoreClosedError("the store is closed; expected its use inside `async with ...:`")


def _again(error: StoreError) -> StoreError:
    """Return a new error to raise: the original may be raised several times, in several tasks."""
    again = StoreClosedError(str(error))
    again.__cause__ = error
    return again
