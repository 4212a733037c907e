"""The protocol of a store of runs, which SQLite implements and other databases can.

A store keeps a journal per run. Records are numbered from 1 without a gap; their content is opaque
to the store. A process that writes a run owns it by a lease, whose *fence* rises with every
claim: a write with an older fence is refused, so two processes never write one run, whatever their
clocks say and however long one of them has slept. Everything else (expiry, liveness of a process)
only decides how soon another process may take over.

Beside the journals a store has an inbox per run, which any process writes and the owner consumes
in the same transaction as the record that applies the message; and a summary per run, by which
runs are listed and woken.

:func:`sluicegate.testing.store_checks` tests an implementation.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - the annotations of structs are resolved
from typing import TYPE_CHECKING, Final, Literal, Protocol

from msgspec import Struct, field


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate.durable._errors import StoreError


Status = Literal["running", "idle", "parked", "completed", "failed", "timed_out", "cancelled"]
#: The statuses of a run that has ended.
ENDED: Final = ("completed", "failed", "timed_out", "cancelled")
#: The statuses of a run that needs no owner until its timer or a message is due.
WAITING: Final = ("idle", "parked")
#: The kind of the records that hold a snapshot: reading a run begins with the newest of them.
BASE: Final = "base"


class Capabilities(Struct, frozen=True, kw_only=True):
    """The properties of a store.

    Attributes:
        shared_between_processes: Whether several processes may open it at a time.
        shared_between_machines: Whether they may run on several machines.
        survives_process: Whether commits survive the end of the process.
        survives_power_loss: Whether commits survive a power loss, as far as the disk keeps its word.
        notice: Seconds after which :meth:`Journal.changed` notices a change by another process.
        max_payload: The most bytes of a record or a message.
    """

    shared_between_processes: bool
    shared_between_machines: bool
    survives_process: bool
    survives_power_loss: bool
    notice: float
    max_payload: int


class NewRun(Struct, frozen=True):
    """A run to be created.

    Attributes:
        run_id: Its id: any text that is not empty.
        workflow: The name of its workflow.
        start_key: Identifies the start event, to distinguish a second start from another run.
        created_at: The wall time.
        base: The data of its first record, of the kind :data:`BASE`.
    """

    run_id: str
    workflow: str
    start_key: str
    created_at: float
    base: bytes


class Lease(Struct, frozen=True):
    """The ownership of a run. The store keeps it alive while the event loop of its owner works.

    Attributes:
        run_id: The run.
        owner: The id of the owner, :attr:`Journal.owner`.
        fence: A number that rises with every claim of the run, from 1.
        sequence: The last record of the journal at the time of the claim.
        shown: The last number in the run's durable stream at that time.
    """

    run_id: str
    owner: str
    fence: int
    sequence: int
    shown: int


class StoredRecord(Struct, frozen=True):
    """A record in the journal of a run.

    Attributes:
        sequence: Its number in the run: 1, 2, 3, ... without a gap.
        at: The wall time in seconds.
        kind: Its kind; the store knows :data:`BASE` only.
        data: Its content, as JSON.
        shown: Its number in the run's durable stream; 0 if it is not in there.
    """

    sequence: int
    at: float
    kind: str
    data: bytes
    shown: int = 0


class Summary(Struct, frozen=True):
    """The state of a run as lists show it, and the time at which it has to be woken.

    Attributes:
        status: Its status.
        updated_at: The wall time of the summary.
        wake_at: The wall time of its earliest timer; None if it has none.
        questions: Its open questions, a JSON list.
    """

    status: Status
    updated_at: float
    wake_at: float | None = None
    questions: bytes = b"[]"


class Batch(Struct, frozen=True):
    """Writes that are committed together, or not at all.

    Attributes:
        run_id: The run.
        fence: The fence of the lease.
        records: The records, in order; the first continues the journal.
        consumes: The ids of the messages that the records apply.
        summary: The new summary, if it changes.
        prune_before: Delete the records below this sequence. Those in the durable stream stay.
        release: Whether the lease ends with this batch.
        lazy: Whether it may wait a few milliseconds for the next one, to be committed with that. A
            record that no caller waits for then needs no separate commit.
    """

    run_id: str
    fence: int
    records: Sequence[StoredRecord] = ()
    consumes: Sequence[int] = ()
    summary: Summary | None = None
    prune_before: int | None = None
    release: bool = False
    lazy: bool = False


class Message(Struct, frozen=True):
    """A message in the inbox of a run.

    Attributes:
        id: Its number in the store; messages of a run are consumed in this order.
        run_id: The run.
        kind: ``"event"`` or ``"cancel"``.
        key: Identifies the message among those of the run.
        data: Its content, as JSON.
        at: The wall time at which it was sent.
    """

    id: int
    run_id: str
    kind: str
    key: str
    data: bytes
    at: float


class RunRow(Struct, frozen=True):
    """A run as the store lists it, without its journal.

    Attributes:
        number: Its place in the order of creation.
        run_id: Its id.
        workflow: The name of its workflow.
        start_key: Identifies its start event.
        created_at: The wall time.
        summary: Its summary.
        sequence: The last record of its journal.
        base: The newest record of the kind :data:`BASE`.
        shown: The last number in its durable stream.
        fence: The fence of the newest lease.
        owner: The holder of that lease; None if it was released. The holder may have ended;
            :meth:`Journal.claim` and :meth:`Journal.due` find out.
        messages: The number of messages that are not consumed.
    """

    number: int
    run_id: str
    workflow: str
    start_key: str
    created_at: float
    summary: Summary
    sequence: int
    base: int
    shown: int
    fence: int
    owner: str | None
    messages: int

    @property
    def is_ended(self) -> bool:
        """Whether the end of the run is recorded."""
        return self.summary.status in ENDED


class RunFilter(Struct, frozen=True, kw_only=True):
    """Which runs are meant; None does not filter.

    Attributes:
        statuses: Runs of one of these statuses.
        workflows: Runs of one of these workflows.
        asking: Runs that have open questions, or (False) that have none.
        created_after: Runs created at or after this wall time.
        created_before: Runs created before this wall time.
        updated_before: Runs whose summary is older than this wall time.
    """

    statuses: Sequence[str] | None = None
    workflows: Sequence[str] | None = None
    asking: bool | None = None
    created_after: float | None = None
    created_before: float | None = None
    updated_before: float | None = None


class Due(Struct, frozen=True):
    """The runs that need an owner.

    Attributes:
        runs: Interrupted runs and those with messages, then those whose timers are due, the longest
            overdue first.
        next_at: The wall time at which to ask again if nothing changes before; None if no timer is set
            and no lease can expire.
    """

    runs: list[RunRow] = field(default_factory=list[RunRow])
    next_at: float | None = None


class Journal(Protocol):
    """An open store of runs, as one event loop of one process uses it.

    It is made by a context manager of the implementation. Leaving that commits what was appended,
    ends all leases and leaves no thread and no open file, also when it is left by a cancellation.

    Every async method is a checkpoint, and may be called from several tasks at a time. Cancelled,
    it has happened or not, and never in part: a claim that was cancelled holds no lease, and a
    creation that was cancelled leaves no run or one without an owner. Methods are called in the
    event loop in which the store was opened.

    Each method may raise :class:`StoreClosedError` and :class:`StoreUnavailableError`; further
    errors are listed with it.
    """

    @property
    def capabilities(self) -> Capabilities:
        """The properties of the store."""
        ...

    @property
    def owner(self) -> str:
        """The id of this owner, which no other open store of any process has."""
        ...

    # -- ownership

    async def create(self, new: NewRun, lost: Callable[[StoreError], None]) -> Lease | RunRow:
        """Create a run and claim it; or return the run that has its id.

        Args:
            new: The run. Its first record is its base, with the sequence 1.
            lost: Is called in the event loop, once, when the lease is lost: with
                :class:`StaleLeaseError` if another owner has the run, else with the error that
                ended the store. It is not called after :meth:`release`, nor when the store is left.
        """
        ...

    async def claim(self, run_id: str, lost: Callable[[StoreError], None]) -> Lease | None:
        """Claim a run that no living owner has.

        An owner whose lease has expired can be replaced; one of this machine that is known to have
        ended, at once.

        Args:
            run_id: The run.
            lost: As for :meth:`create`.

        Returns:
            The lease; None if the run has an owner, which may be this one, or has ended.

        Raises:
            UnknownRunError: There is no such run.
        """
        ...

    async def release(self, lease: Lease) -> None:
        """End a lease, after everything that was appended under it. A lost lease is no error."""
        ...

    # -- the journal

    def append_nowait(self, batch: Batch, settle: Callable[[StoreError | None], None]) -> None:
        """Hand over a batch, in order; returns at once and is no checkpoint.

        Batches of one run are committed in the order of the calls, as many as wait in one
        transaction. A batch is refused without harm to other runs.

        Args:
            batch: The batch.
            settle: Is called in the event loop, exactly once and in the order of the calls: with
                None after the commit, else with :class:`StaleLeaseError`,
                :class:`JournalConflictError` or the error of the store; then nothing of
                the batch is written. It must not raise. It is not called if the event loop ends
                first.

        Raises:
            StoreClosedError: The store was left.
            ValueError: A record has more than ``capabilities.max_payload`` bytes.
        """
        ...

    async def wait_for_room(self) -> None:
        """Wait until the writes appended here and not yet committed are below a bound."""
        ...

    async def read(
        self, run_id: str, *, after: int | None = None, limit: int | None = None
    ) -> list[StoredRecord]:
        """Return records of a run, in order.

        Args:
            run_id: The run.
            after: Records with a higher sequence; None for the newest base and those after it.
            limit: The most records.

        Raises:
            UnknownRunError: There is no such run.
        """
        ...

    async def read_shown(
        self, run_id: str, *, after: int = 0, limit: int | None = None
    ) -> list[StoredRecord]:
        """Return the records in the durable stream of a run with a higher number, in order.

        Raises:
            UnknownRunError: There is no such run.
        """
        ...

    # -- the inbox, and wake-ups

    async def send(self, run_id: str, kind: str, key: str, data: bytes) -> bool:
        """Put a message into the inbox of a run; once this has returned, it is not lost.

        Returns:
            True; False if the run has already received this very message, consumed or not.

        Raises:
            EventConflictError: It has received another message with the same key.
            UnknownRunError: There is no such run.
            RunEndedError: It has ended, and has not received the message.
            ValueError: The message has more than ``capabilities.max_payload`` bytes.
        """
        ...

    async def inbox(self, run_ids: Sequence[str]) -> list[Message]:
        """Return the messages of these runs that are not consumed, in the order of their ids."""
        ...

    async def changed(self, since: int) -> int:
        """Wait until the store may have changed. This is a hint, and it may come too often.

        It returns after changes by other owners and after messages sent here, but not for the batches
        that this owner appends.

        Args:
            since: The result of the previous call; 0 the first time.

        Returns:
            A number to pass to the next call, so that no change in between is missed.
        """
        ...

    async def due(self, now: float, limit: int, *, workflows: Sequence[str] | None = None) -> Due:
        """Return runs that need an owner and have no living one.

        These are runs that were interrupted, and waiting runs whose timer is due or whose inbox is
        not empty.

        Args:
            now: The wall time, as it is in ``wake_at``.
            limit: The most runs.
            workflows: Runs of these workflows only.
        """
        ...

    # -- all runs

    async def get(self, run_id: str) -> RunRow | None:
        """Return a run; None if there is none with this id."""
        ...

    async def find(
        self,
        which: RunFilter,
        *,
        after: int | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> list[RunRow]:
        """Return runs in the order of creation.

        Args:
            which: The runs.
            after: The ``number`` of the run behind which the list begins.
            limit: The most runs.
            newest_first: Whether the order is reversed.
        """
        ...

    async def count(self, which: RunFilter) -> dict[str, int]:
        """Return the number of runs by their status; a status without runs is left out."""
        ...

    async def delete(self, run_id: str) -> bool:
        """Delete a run, its journal and its inbox; return whether it existed.

        Raises:
            RunOwnedError: A living owner has the run, which may be this one.
        """
        ...

    async def prune(self, updated_before: float, statuses: Sequence[str] = ENDED) -> int:
        """Delete the runs with these statuses that have an older summary and no living owner.

        Cancelled, some of them may be deleted and others not.

        Returns:
            How many were deleted.
        """
        ...

    async def check(self) -> list[str]:
        """Check the integrity of the store; return a line for each fault found."""
        ...
