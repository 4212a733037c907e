"""Parts: a stored run in one process, across all lives that it has there.

A *life* of a run is the time during which one process holds its lease and runs its steps. A *part* is the
run as an owner in this process (a block, a nursery, a worker) has entered it, and spans any number of
lives. Between lives the run rests in the store, and the part waits for a message or a timer. While another
process runs it, the part follows the stored events, and takes over when that process ends.

The engine knows a part as :class:`sluicegate._engine.run.Part`.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, cast, final
from uuid import uuid4

import msgspec

from sluicegate._engine.control import cancel, drain, receive, snapshot
from sluicegate._engine.ending import conclude, detach_run, halt
from sluicegate._engine.idle import can_be_released, is_idle, next_due
from sluicegate._engine.run import check_thread, load_life
from sluicegate._engine.run_journal import JournalWriter, RunJournal
from sluicegate._errors import SnapshotError, WorkflowRuntimeError
from sluicegate._events import (
    InputRequiredEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    untagged,
)
from sluicegate._exceptions import is_cancellation, single, urgent_leaf
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._questions import Acknowledgement
from sluicegate._workflow import saved_run
from sluicegate.durable._errors import StoreError, StoreFormatError, UnknownRunError
from sluicegate.durable._hub import Sending
from sluicegate.durable._port import BASE, ENDED, WAITING, Batch, Lease, StoredRecord, Summary
from sluicegate.durable._runs import (
    check_event,
    check_same,
    decode_cancel,
    decode_event,
    encode_cancel,
    encode_event,
    encode_questions,
    events_in,
    open_questions_of,
    rebuild,
    release,
    saved_open_questions,
)


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sluicegate._engine.run import Run
    from sluicegate._events import Event, StopEvent
    from sluicegate._loop import Backend, Waiter
    from sluicegate._questions import OpenQuestion
    from sluicegate._workflow import Workflow
    from sluicegate.durable._hub import Hub, Watch
    from sluicegate.durable._port import Message, NewRun, RunRow, Status


LOGGER = logging.getLogger("sluicegate")

#: Seconds that the end of a life may wait for the store.
GRACE = 5.0
#: Seconds after which a part looks again whether the process that runs its run is alive.
LOOK_AGAIN = 1.0
#: A run whose next timer is due sooner than this is not released.
MIN_REST = 1.0
#: How many events of a stream are read from the store at a time.
_CHUNK = 500


@final
class Part:
    """The part of a stored run that an owner in this process has entered.

    Args:
        hub: The store.
        run: The run; each life has a new machine.
        new: The run to create if the store has none with its id; None for an existing run.
        row: The row of the run in the store, if it has been read.
        ends_at_rest: Whether the part ends when the run rests, as that of a worker does.
        only_follows: Whether the part leaves the run to others.

    Attributes:
        run_id: The identifier of the run.
        is_live: Whether a life is in progress.
        status: The status of the run between lives; see :class:`sluicegate._engine.run.Part`.
        max_crashes: How many processes may have died in the same delivery.
    """

    __slots__ = (
        "_asked",
        "_ends_at_rest",
        "_flusher",
        "_found",
        "_found_at",
        "_found_in",
        "_has_caught_up",
        "_hub",
        "_idle_since",
        "_is_known",
        "_is_noted",
        "_is_stale",
        "_known_by",
        "_lease",
        "_new",
        "_only_follows",
        "_outbox",
        "_pending",
        "_release_idle",
        "_row",
        "_run",
        "_shown",
        "_summary",
        "_taken",
        "_try_at",
        "_unsettled",
        "_watch",
        "_writer",
        "is_live",
        "max_crashes",
        "run_id",
        "status",
    )

    def __init__(
        self,
        hub: Hub,
        run: Run,
        *,
        new: NewRun | None = None,
        row: RunRow | None = None,
        ends_at_rest: bool = False,
        only_follows: bool = False,
    ) -> None:
        self._hub = hub
        self._run = run
        self.run_id: str = run.run_id
        #: What is to be created, until the store has the run.
        self._new = new
        self._row = row
        self._ends_at_rest = ends_at_rest
        self._only_follows = only_follows
        self.is_live = False
        self.status = "running"
        self.max_crashes: int = hub.max_crashes
        self._lease: Lease | None = None
        self._writer: JournalWriter | None = None
        self._watch: Watch | None = None
        #: The number of writes without an answer of the store, and the waiter for the last one.
        self._unsettled = 0
        self._flusher: Waiter | None = None
        #: When to try again to claim a run that has an owner, on the wall.
        self._try_at = 0.0
        #: Messages that came before the store had the run; and those with which the next life begins.
        self._outbox: deque[Sending] = deque()
        self._pending: list[Message] = []
        #: The messages that this life has applied.
        self._taken: set[int] = set()
        #: The number of the last durable event that the stream in this process has.
        self._shown = 0
        self._has_caught_up = False
        run.outcome.is_durable = True
        run.log.make_durable(0, self)
        #: The stored status, timer and questions of the run, and whether they may be
        #: out of date.
        self._summary: tuple[Status, float | None, bytes] = ("running", None, b"[]")
        self._is_stale = False
        #: The open questions as the journal has them, up to that durable event and that record: the
        #: owner of a busy run stores its summary later than its records, or has crashed before.
        self._found: tuple[OpenQuestion, ...] | None = None
        self._found_at = self._found_in = 0
        #: When each open question was asked, by its id.
        self._asked: dict[str, float] = {}
        #: Since when the run is idle, on the backend's clock.
        self._idle_since: float | None = None
        self._is_noted = False
        #: Whether the row has been read, and the waiters for that.
        self._is_known = False
        self._known_by: list[Waiter] = []
        #: After how long at rest it is released.
        self._release_idle = hub.release_idle

    @property
    def sequence(self) -> int:
        """The number of the last record of the journal that this part knows of."""
        known = 0 if self._row is None else self._row.sequence
        return known if self._writer is None else max(self._writer.sequence, known)

    @property
    def is_owner(self) -> bool:
        """Whether it runs the run when a message or a timer wakes it; the part of a reader does not."""
        return not self._only_follows

    @property
    def shown(self) -> int:
        """The number of the last event of the durable stream, once the run has ended."""
        return self._shown if self._run.outcome.status in ENDED else 0

    @property
    def questions(self) -> tuple[OpenQuestion, ...]:
        """The open questions of a run that is not live; none of one that has ended."""
        if self._run.outcome.status in ENDED:
            return ()
        if self._found is not None:
            return self._found
        return open_questions_of(self._run, self._summary[2], self._hub.wall())

    async def wait_until_known(self) -> None:
        """Wait until the row of the run has been read, or the part has ended. A checkpoint.

        The questions are known then.
        """
        backend = current_backend()
        waiter = backend.waiter()
        await backend.checkpoint()
        self._known_by.append(waiter)
        try:
            while not self._is_known:
                await waiter.wait()
        finally:
            self._known_by.remove(waiter)

    def _become_known(self) -> None:
        self._is_known = True
        for waiter in self._known_by:
            waiter.wake()

    # -- lives ------------------------------------------------------------------------------------

    @enable_ki_protection
    async def carry(self, live: Callable[[Run], Awaitable[None]]) -> None:
        """Run the lives of the run in this task until the run or the part has ended.

        A checkpoint. Cancelled, the part ends, and the run continues from its store. An end of the run
        that is stored, by this process or another, becomes the outcome of the run.

        Args:
            live: Runs one life.

        Raises:
            BaseException: A cancellation from outside, ``KeyboardInterrupt`` or ``SystemExit``, bare.
        """
        backend = current_backend()
        run = self._run
        interruption: BaseException | None = None
        try:
            self._hub.check_open()
            with self._hub.watching(run.run_id) as self._watch, self._hub.owning(self):
                await self._lead(live)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised below, or the outcome
            interruption = self._judge(single(error, backend.Cancelled), backend)
        self._watch = None
        self._become_known()
        while self._outbox:
            self._outbox.popleft().end(_never_sent(run))
        if not run.outcome.is_over:
            if run.outcome.status == "parked":
                run.outcome.reopen()
                detach_run(run, "the run rests in its store")
            conclude(run, backend, interruption)
        if interruption is not None:
            try:
                raise interruption
            finally:
                del interruption  # or this frame and its exception keep each other alive

    def _judge(self, error: BaseException, backend: Backend) -> BaseException | None:
        """Settle the outcome from the exception that ended the part; return the one that its task raises."""
        outcome = self._run.outcome
        if is_cancellation(error, backend.Cancelled) or urgent_leaf(error) is not None:
            if outcome.status == "parked":
                outcome.reopen()
            return error
        if not outcome.is_over and outcome.status in ("", "parked"):
            outcome.refuse(error)
        elif not outcome.is_over:
            LOGGER.error("the run %s has left this process: %s", self.run_id, error)
        return None

    async def _lead(self, live: Callable[[Run], Awaitable[None]]) -> None:
        """Alternate between lives and rest until the run or the part has ended."""
        backend, run = current_backend(), self._run
        while True:
            try:
                with backend.cancel_scope() as run.queue_scope:
                    # Otherwise it was left before it began.
                    if run.outcome.status in ("", "parked"):
                        await self._prepare()
            finally:
                run.queue_scope = None
                if self._writer is None:
                    await self._let_go()  # noqa: ASYNC102 - it shields itself
            if self._writer is None:
                return
            self.is_live = True
            self._hub.live[run.run_id] = self
            try:
                await live(run)
            finally:
                self.is_live = False
                self._hub.live.pop(run.run_id, None)
                self._lease = None
            if run.outcome.status != "parked" or self._ends_at_rest:
                return
            self._forget_life()

    async def _prepare(self) -> None:
        """Wait until this process holds the lease, then load the run; or until the run has ended elsewhere."""
        run = self._run
        if self._new is not None:
            lease = await self._create(self._new)
            if lease is not None:
                await self._take_messages()
                self._begin(lease, 0)
                self._become_known()
                return
        run.outcome.park()
        await self._rest()
        if self._lease is not None:
            await self._load(self._lease)

    async def _create(self, new: NewRun) -> Lease | None:
        """Create the run; return None, and note its row, if the store has it already. A checkpoint."""
        found = await self._hub.journal.create(new, self._lose)
        self._new = None
        if isinstance(found, Lease):
            self._lease = found
            return found
        check_same(found, new)
        self._row = found
        return None

    async def _rest(self) -> None:
        """Wait until this process has the lease of the run, or until the run has ended."""
        journal, run_id, watch = self._hub.journal, self.run_id, self._watch
        assert watch is not None
        while True:
            watch.has_changed = False
            await self._send_outbox()
            if not self._ends_at_rest or self._row is None:  # a worker has just found it
                self._row = await journal.get(run_id)
            row = self._row
            if row is None:
                msg = f"the store has no run {run_id!r}: it was deleted, or there never was one"
                raise UnknownRunError(msg)
            self._take_summary(row)
            if not row.is_ended and self._may_claim(row):
                self._try_at = self._hub.wall() + LOOK_AGAIN
                self._lease = await journal.claim(run_id, self._lose)
                if self._lease is not None:
                    return
            last = await self._catch_up(row.shown, is_ended=row.is_ended)
            self._become_known()
            if last is not None:
                # The row may be older than the end that was read after it.
                self._run.outcome.recall(_status_of(last), last)
                return
            if self._ends_at_rest:
                return  # another owner has taken it
            await watch.wait(self._look_again(row))

    def _take_summary(self, row: RunRow) -> None:
        told = row.summary
        self.status = "idle" if told.status in WAITING else "running"
        if told.status != "running" or row.sequence > self._found_in:
            self._found = None
        self._summary = told.status, told.wake_at, told.questions

    def _may_claim(self, row: RunRow) -> bool:
        """Whether the run is to live on. One that waits does so when there is what it waits for."""
        if self._only_follows or (row.owner is not None and self._hub.wall() < self._try_at):
            return False
        if row.summary.status not in WAITING or row.messages:
            return True
        wake_at = row.summary.wake_at
        return wake_at is not None and wake_at <= self._hub.wall()

    def _look_again(self, row: RunRow) -> float | None:
        """Return the wall time at which to check the store again if nothing changes before."""
        wake_at, now = row.summary.wake_at, self._hub.wall()
        if self._only_follows:
            return None
        if row.owner is not None or (wake_at is not None and wake_at <= now):
            return now + LOOK_AGAIN
        return wake_at

    async def _catch_up(self, shown: int, *, is_ended: bool = False) -> StopEvent | None:
        """Publish the events that others have stored; return the terminal event, if there is one.

        Later readers read earlier events from the store.
        """
        log = self._run.log
        if not self._has_caught_up and not log.has_readers:
            self._shown = shown - is_ended
            log.make_durable(self._shown, self)
        self._has_caught_up = True
        return await self._show_until(shown)

    async def _show_until(self, shown: int) -> StopEvent | None:
        """Show the events of the durable stream up to a number; return the terminal event, if it is one."""
        while self._shown < shown:
            for number, event, is_last in await self._read_shown(self._shown):
                self._shown = number
                if is_last:
                    return cast("StopEvent", event)
                self._run.log.append_durable(event, number)
        return None

    async def read(self, after: int, up_to: int) -> list[tuple[int, Event]]:
        """Return the next events of the durable stream; see :class:`sluicegate._cursors.OlderEvents`."""
        found = await self._read_shown(after)
        return [(number, event) for number, event, _ in found if number <= up_to]

    async def _read_shown(self, after: int) -> list[tuple[int, Event, bool]]:
        graph, classes = self._run.graph, self._run.options.classes
        self._hub.check_open()
        records = await self._hub.journal.read_shown(self.run_id, after=after, limit=_CHUNK)
        found = [
            (record.shown, event, is_last)
            for record, event, is_last in events_in(graph, classes, records)
        ]
        asked = [n for n, event, _ in found if isinstance(untagged(event), InputRequiredEvent)]
        is_behind = self._summary[0] == "running" and self._lease is None
        if is_behind and asked and asked[-1] > self._found_at:
            await self._find_questions(asked[-1])
        return found

    async def _find_questions(self, asked: int) -> None:
        """Read the open questions from the journal, before a question of the stream is shown. A checkpoint."""
        run, hub = self._run, self._hub
        records = await hub.journal.read(run.run_id)
        if self._lease is not None:  # a life begins, with the same records
            return
        self._found_at, self._found_in = max(self._found_at, asked), records[-1].sequence
        try:
            past = rebuild(run.graph, run.options.classes, records, hub.wall(), has_crashed=False)
            saved = saved_run(cast("Workflow[Any]", run.workflow), past.snapshot)
        except (SnapshotError, StoreFormatError):  # raised where the run continues
            return
        self._found = saved_open_questions(run, saved, past.elapsed)

    async def _load(self, lease: Lease) -> None:
        """Rebuild the run from its journal and begin a life."""
        run, hub, row = self._run, self._hub, self._row
        assert row is not None
        records = await hub.journal.read(run.run_id)
        # An owner that ended without releasing the run has crashed.
        has_crashed = row.owner is not None
        past = rebuild(run.graph, run.options.classes, records, hub.wall(), has_crashed=has_crashed)
        saved = saved_run(cast("Workflow[Any]", run.workflow), past.snapshot)
        if self._summary[0] == "running":
            # Before the events are shown: a reader looks whether a question is open.
            self._found = saved_open_questions(run, saved, past.elapsed)
            self._found_at, self._found_in = lease.shown, lease.sequence
        await self._catch_up(lease.shown)
        await self._take_messages()
        elapsed = past.elapsed
        if hub.timeouts == "wall":
            elapsed = max(hub.wall() - row.created_at, 0.0)
        load_life(run, saved, elapsed)
        state = past.snapshot["state"]
        if state is not None:  # as its classes write it now, which this life's patches refer to
            state = saved.snapshot()["state"]
        run.outcome.reopen()
        self._begin(lease, past.children)
        self._become_known()
        assert run.journal is not None
        if len(records) > 1 or past.is_stale or state != past.snapshot["state"]:
            run.journal.based({**past.snapshot, "state": state})
        # A recorded decision is final: the run ends at once, without a step.
        if past.stop is not None:
            run.outcome.complete(past.stop)
        elif past.cancelled is not None:
            run.outcome.cancel(past.cancelled.why)

    def _begin(self, lease: Lease, children: int) -> None:
        """Open the journal of a life."""
        run = self._run
        writer = JournalWriter(
            self,
            wall=self._hub.wall,
            sequence=lease.sequence,
            shown=lease.shown,
            children=children,
            life=lease.fence,
            release=release(),
        )
        run.log.begin_life(lease.fence, lease.shown)
        self._has_caught_up = True
        writer.on_lost = self._detach
        run.journal = RunJournal(writer, run)
        self._writer = writer  # nothing above has failed, so there is a life
        self._taken.clear()
        self._found = self._idle_since = None
        self._is_stale = self._is_noted = False

    async def _take_messages(self) -> None:
        await self._send_outbox()
        self._pending = await self._hub.journal.inbox([self.run_id])

    async def _send_outbox(self) -> None:
        """Send the messages that came before the run was stored. A checkpoint only if there are some."""
        while self._outbox:
            await self._hub.send(self.run_id, self._outbox[0])
            self._outbox.popleft()

    def begin_life(self) -> None:
        """Apply the messages that came before; called before the first step of a life begins."""
        while self._pending:
            self.deliver(self._pending.pop(0))
        self._hub.note_begun(self)
        self.idle_changed()

    @enable_ki_protection
    async def end_life(self) -> None:
        """Give up the lease of a life in which the run has not ended.

        A checkpoint. Shielded, for at most a grace. If the store does not accept the last writes, the
        part is detached, and the run continues from the stored records.
        """
        backend, outcome, writer = current_backend(), self._run.outcome, self._writer
        assert writer is not None
        if outcome.status in ENDED or not writer.is_open:
            return
        self._release()
        error: Exception = TimeoutError(f"the store did not take its state within {GRACE:g} s")
        try:
            with backend.cancel_scope(shield=True, deadline=backend.current_time() + GRACE):
                await self._flushed(writer)
                return
        except StoreError as fault:
            error = fault
        writer.lose(error)

    async def _let_go(self) -> None:
        """Release the lease of a run that has no further life here. Shielded, for at most a grace period."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        backend = current_backend()
        with backend.cancel_scope(shield=True, deadline=backend.current_time() + GRACE):
            await self._hub.journal.release(lease)

    def _forget_life(self) -> None:
        """Free the memory of a run at rest; log the failures of its clean-up.

        They do not fail the run: its steps begin again when it is woken.
        """
        run = self._run
        for error in run.outcome.errors:
            msg = "a step of the run %s failed while it unwound to rest in its store"
            LOGGER.error(msg, run.run_id, exc_info=error)
        run.outcome.forget_failures()
        run.machine = run.state_store = run.journal = run.log.stored = run.in_flight = None
        self._writer = None
        self._taken.clear()

    # -- the journal --------------------------------------------------------------------------------

    def append(  # noqa: PLR0917
        self, sequence: int, at: float, kind: str, data: bytes, shown: int, consumes: int | None
    ) -> None:
        """Hand a record to the store; see :class:`sluicegate._engine.run_journal.JournalSink`."""
        assert self._lease is not None
        is_end = kind == "end" and shown > 0
        summary = None
        if is_end:
            summary = Summary(cast("Status", self._run.outcome.status), at)
        elif self._summary[0] in WAITING:
            # In the transaction of the record: a crash between the two would leave an idle run asleep.
            self._summary = "running", None, self._summary[2]
            summary = Summary("running", at, None, self._summary[2])
        prunes = kind == BASE and not self._hub.keeps_history
        record = StoredRecord(sequence, at, kind, data, shown)
        batch = Batch(
            self.run_id,
            self._lease.fence,
            (record,),
            () if consumes is None else (consumes,),
            summary,
            sequence if prunes else None,
            release=is_end,
            lazy=kind == "begun" and summary is None,
        )
        self._write(batch, sequence)
        if shown:
            self._shown = shown

    def _write(self, batch: Batch, sequence: int) -> None:
        assert self._writer is not None
        self._unsettled += 1
        try:
            self._hub.journal.append_nowait(batch, partial(self._settled, self._writer, sequence))
        except StoreError as error:  # it was left
            self._settled(self._writer, sequence, error)

    def _settled(self, writer: JournalWriter, sequence: int, error: StoreError | None) -> None:
        self._unsettled -= 1
        if error is None:
            writer.commit_reached(sequence)
            self._hub.note_run(self.run_id)
        else:
            writer.lose(error)
        if not self._unsettled and self._flusher is not None:
            self._flusher.wake()

    async def _flushed(self, writer: JournalWriter) -> None:
        """Wait until all pending writes are stored. A checkpoint.

        Raises:
            StoreError: A write was refused.
        """
        backend = current_backend()
        self._flusher = waiter = backend.waiter()
        await backend.checkpoint_if_cancelled()
        while self._unsettled and writer.error is None:
            await waiter.wait()
        self._flusher = None
        if writer.error is not None:
            raise writer.error

    def _lose(self, error: StoreError) -> None:
        """The lease is lost: no write is accepted any more."""
        if self._writer is not None:
            self._writer.lose(error)
        else:
            self._detach(error)

    def _detach(self, error: BaseException) -> None:
        detach_run(self._run, str(error), error)

    async def submit(self) -> None:
        """Store the run for another owner. A checkpoint.

        Raises:
            RunConflictError: The store has another run of its id.
        """
        assert self._new is not None
        if await self._create(self._new) is not None:
            await self._let_go()

    def rest_soon(self) -> None:
        """Release the run as soon as it waits for something."""
        self._release_idle = 0.0
        if self.is_live:
            self._hub.note_idle(self)

    def let_go(self) -> None:
        """End the part of a reader that was dropped. May be called in any thread."""
        with suppress(RuntimeError):  # the event loop has ended
            self._hub.call_soon(partial(self.detach, "its reader was dropped"))

    def detach(self, reason: str) -> None:
        """End the part; the run continues from its store."""
        detach_run(self._run, reason)

    # -- idle runs ----------------------------------------------------------------------------------

    def idle_changed(self) -> None:
        """Request a new summary, because the run may have become idle or busy."""
        if self._run.outcome.status or not self.is_live:
            return
        self._is_stale = True
        if is_idle(self._run):
            self._hub.note_idle(self)
        elif not self._is_noted:
            self._is_noted = True
            self._hub.note_busy(self)

    def tend(self, now: float) -> float | None:
        """Write the summary if it has changed; release the run if it has been idle for long enough.

        Returns when to call again, on the backend's clock; None if only a change requires it.
        """
        run = self._run
        self._is_noted = False
        if run.outcome.status or run.machine is None:
            return None
        due = next_due(run) if can_be_released(run) else None
        self._write_summary(due)
        if due is None:
            self._idle_since = None
            return None
        if self._idle_since is None:
            self._idle_since = now
        release = self._release_idle
        if release is None:
            return None
        if due - now < max(release, MIN_REST):
            return None
        if now < self._idle_since + release:
            return self._idle_since + release
        self.status = "idle"
        assert run.journal is not None
        run.journal.based(snapshot(run))  # with it, nothing is to be replayed when it is woken
        self._write_summary(due)  # a record says that the run is busy
        run.outcome.park()
        halt(run, "it is released from memory until it is woken")
        return None

    def _write_summary(self, due: float | None) -> None:
        """Store the current summary of the run, if it has changed.

        Args:
            due: When the next timer of a run at rest is due, on the backend's clock; None for a busy run.
        """
        run, wall = self._run, self._hub.wall()
        status: Status = "running"
        wake_at = None
        if due is not None:
            status = "idle"
            # Above the rounding of the two clocks: a timer never fires early.
            left = due - run.live()[0].current_time() + 1e-6
            wake_at = None if due == inf else wall + left
        found = status, wake_at, encode_questions(run, wall, self._asked)
        self._is_stale = False
        if _differ(found, self._summary):
            self._summary = found
            self._send_summary(found)

    def _release(self) -> None:
        """Release the lease after all pending writes.

        The steps have unwound, so the machine no longer shows what the run waited for. The last
        summary does, unless the run has changed since.
        """
        status, wake_at, questions = self._summary
        if self._run.outcome.status == "parked":
            status = "parked"
        elif self._is_stale or status not in WAITING:
            status, wake_at = "running", None
        self._summary = status, wake_at, questions
        self._send_summary(self._summary, release=True)

    def _send_summary(
        self, told: tuple[Status, float | None, bytes], *, release: bool = False
    ) -> None:
        assert self._lease is not None
        assert self._writer is not None
        status, wake_at, questions = told
        summary = Summary(status, self._hub.wall(), wake_at, questions)
        batch = Batch(self.run_id, self._lease.fence, summary=summary, release=release)
        self._write(batch, self._writer.durable)

    # -- from outside -------------------------------------------------------------------------------

    def send_event(
        self, event: Event, step: str | None, question: str | None, key: str | None
    ) -> Acknowledgement:
        """Pass an event from outside to the machine or, between lives, to the inbox.

        Raises:
            WorkflowRuntimeError: No step takes it, the run is over, or the call is from another thread.
            QuestionClosedError: The question is no longer open.
            SnapshotError: The event cannot be kept.
        """
        run = self._run
        check_thread(run, "send_event")
        if run.outcome.is_over or self._is_in_memory():
            is_new = receive(run, event, step, question, key)
            writer = self._writer
            wait = None if writer is None else partial(writer.reached, writer.sequence)
            return Acknowledgement(is_repeated=not is_new, wait=wait)
        asked = self.questions if self.status == "idle" and not self.is_live else None
        check_event(run, event, step, question, asked)
        data = encode_event(run, event, step, question, key)
        sending = Sending("event", key or uuid4().hex, data)
        self._post(sending)
        return Acknowledgement(is_repeated=False, wait=sending.wait)

    def cancel(self, reason: str, after: str) -> None:
        """Cancel the run: directly if it is live here, otherwise by a message.

        Raises:
            WorkflowRuntimeError: The call comes from another thread.
        """
        run = self._run
        check_thread(run, "cancel")
        if self._is_in_memory():
            if after == "steps":
                drain(run, reason)
            else:
                cancel(run, reason)
        elif not run.outcome.is_over and run.outcome.status in ("", "parked"):
            self._post(Sending("cancel", uuid4().hex, encode_cancel(reason, after)))

    def _is_in_memory(self) -> bool:
        run = self._run
        return self.is_live and run.machine is not None and run.outcome.status != "parked"

    def _post(self, sending: Sending) -> None:
        if self._new is None:
            self._hub.post(self.run_id, sending)
        else:
            self._outbox.append(sending)

    def deliver(self, message: Message) -> None:
        """Apply a message of the inbox, once; one that cannot be applied is dropped, with a warning."""
        run = self._run
        if message.id in self._taken or run.outcome.status:
            return
        if run.machine is None:
            if all(each.id != message.id for each in self._pending):
                self._pending.append(message)
            return
        self._taken.add(message.id)
        assert self._writer is not None
        self._writer.consumes = message.id
        try:
            self._apply(run, message)
        except (WorkflowRuntimeError, msgspec.MsgspecError) as error:
            LOGGER.warning("a message for the run %s was dropped: %s", self.run_id, error)
        if self._writer.leaves_message():
            self._consume(message.id)

    def _apply(self, run: Run, message: Message) -> None:
        if message.kind == "cancel":
            asked = decode_cancel(message.data)
            if asked.after == "steps":
                drain(run, asked.why)
            else:
                cancel(run, asked.why)
            return
        event, found = decode_event(run, message.data)
        receive(run, event, found.step, found.q, found.id)

    def _consume(self, message: int) -> None:
        """Remove a message without a record from the inbox."""
        assert self._lease is not None
        assert self._writer is not None
        batch = Batch(self.run_id, self._lease.fence, consumes=(message,))
        self._write(batch, self._writer.durable)


def _status_of(last: StopEvent) -> str:
    """Return how a run has ended, from the terminal event of its stream."""
    if isinstance(last, WorkflowFailedEvent):
        return "failed"
    if isinstance(last, WorkflowTimedOutEvent):
        return "timed_out"
    return "cancelled" if isinstance(last, WorkflowCancelledEvent) else "completed"


def _differ(
    told: tuple[Status, float | None, bytes], before: tuple[Status, float | None, bytes]
) -> bool:
    """Whether two summaries differ; times of timers may differ slightly."""
    if told[0] != before[0] or told[2] != before[2]:
        return True
    if told[1] is None or before[1] is None:
        return told[1] is not before[1]
    return abs(told[1] - before[1]) > 0.05


def _never_sent(run: Run) -> WorkflowRuntimeError:
    msg = (
        f"the part of the run {run.run_id} in this process has ended before the event was in the "
        f"store; expected `await runs.send_event({run.run_id!r}, event)`"
    )
    return WorkflowRuntimeError(msg)
