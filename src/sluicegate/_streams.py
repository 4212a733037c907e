"""The stream of a run: one log of events, a sending end, and any number of readers.

The log is the buffer. It keeps an event until every attached reader has taken it, and longer while
it is among the newest ``history`` events. A reader is a position in the log. A lossy reader holds
up no sender and keeps no event: it skips events that the log has dropped, and counts them. No event
is ever handed to a reader: a woken reader takes it from the log itself. So a wake-up that a
cancellation discards (``asyncio`` can cancel a task that is already woken) loses no event.

The log of a durable run also numbers its durable events (:mod:`sluicegate._cursors`). A reader whose
cursor is older than the log is attached at the beginning of the log, and first reads the earlier events
from the store.
"""

from __future__ import annotations

from contextlib import suppress
from heapq import heapify, heappop, heappush, heapreplace
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, final

from sluicegate._cursors import Cursor, Numbering, OlderEvents
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import Event, InternalEvent, StopEvent
from sluicegate._loop import (
    Backend,
    ReceiveChannel,
    SendChannel,
    Waiter,
    current_backend,
    enable_ki_protection,
)
from sluicegate._loop.threads import in_loop


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


#: Seconds for which a loop of ready operations may keep the event loop to itself (P3 allows 1 ms).
TURN = 0.0005


class StoredStream(Protocol):
    """Stores the events that the steps of a durable run send (``Workflow(stream="durable")``)."""

    def send(self, publish: Callable[[Event], None], event: Event, /) -> int:
        """Call ``publish(event)`` and store the event; return the number of its record.

        Raises:
            SnapshotError: The event cannot be kept.
        """
        ...

    async def reached(self, number: int, /) -> None:
        """Wait until a record is durable. A checkpoint.

        Raises:
            StoreError: The store cannot keep it, or the lease was lost.
        """
        ...


class EventLog:
    """The published events of a run, and the position of each reader."""

    __slots__ = (
        "_events",
        "_first",
        "_history",
        "_limit",
        "_readers",
        "_room_until",
        "_senders",
        "_window",
        "closed",
        "forward",
        "internal_readers",
        "next",
        "numbering",
        "outer",
        "stored",
        "thread",
    )

    def __init__(self, *, window: int, history: int) -> None:
        self._window = window
        self._history = history
        #: The log is trimmed beyond this length: 1/64 above the history, so that it drops batches.
        self._limit = history + (history >> 6)
        self._events: list[Event] = []
        #: None until a reader is attached.
        self._readers: _Readers | None = None
        #: Events with lower numbers have room, because readers only move forward.
        self._room_until = 1
        #: In the order in which they began to wait.
        self._senders: dict[Waiter, None] | None = None
        #: The sequence number of the oldest event held, and of the next one; the first is 1.
        self._first = 1
        self.next: int = 1
        self.closed: bool = False
        #: Called with every event; it forwards a child's events to the parent.
        self.forward: Callable[[Event], None] | None = None
        #: The parent's log, which gets them and whose readers hold up the child's senders too.
        self.outer: EventLog | None = None
        #: The number of readers that ask for internal events; without one, none are built.
        self.internal_readers: int = 0
        #: The thread of the run's event loop; 0 before the run is started.
        self.thread: int = 0
        #: The numbers of the durable events; None in the log of a run without a store.
        self.numbering: Numbering | None = None
        #: The journal that stores the events of steps; None where they are live.
        self.stored: StoredStream | None = None

    @property
    def has_readers(self) -> bool:
        """Whether any reader is attached that still has a reference."""
        readers = self._readers
        return readers is not None and readers.attached > len(readers.dropped)

    @property
    def senders_waiting(self) -> int:
        """The number of senders that wait for room."""
        return len(self._senders or ())

    @property
    def waiting(self) -> dict[Waiter, None]:
        """The readers that wait for the next event."""
        return {} if self._readers is None else self._readers.waiting

    @property
    def last(self) -> Event | None:
        """The newest event; after the end, the terminal one. None before the first."""
        return self._events[-1] if self._events else None

    @property
    def end(self) -> str:
        """The cursor behind the newest event."""
        number = self.next - 1
        if self.numbering is None:
            return Cursor(0, 0, number).text()
        return self.numbering.cursor(number).text()

    def is_past(self, position: int | Cursor) -> bool:
        """Whether no event follows a position, of a log that is closed; a durable end is its last event."""
        if isinstance(position, Cursor):
            return self.numbering is not None and position.durable >= self.numbering.last
        return position >= self.next - 1

    def check_thread(self, what: str, way: str) -> None:
        """Refuse a call from another thread: waking a task is safe only in the run's own thread.

        Raises:
            WorkflowRuntimeError: It is another thread, and the run has not ended.
        """
        if self.thread and self.thread != get_ident() and not self.closed:
            msg = (
                f"{what} was called in another thread than the one that runs the workflow; "
                f"expected `trio.from_thread.{way}` or its AnyIO counterpart"
            )
            raise WorkflowRuntimeError(msg)

    def append(self, event: Event) -> None:
        """Publish ``event``; never waits."""
        self._events.append(event)
        self.next += 1
        readers = self._readers
        if readers is not None and readers.waiting:
            waiting = readers.waiting
            readers.waiting = {}
            for waiter in waiting:
                waiter.wake()
        if len(self._events) > self._limit:
            self._trim()
        if self.forward is not None:
            self.forward(event)

    def append_durable(self, event: Event, number: int) -> None:
        """Publish an event of a durable run whose record is durable, with its number; never waits."""
        assert self.numbering is not None
        self.numbering.note(self.next, number, self._first)
        self.append(event)

    def begin_after(self, number: int) -> None:
        """Number the next event ``number + 1``. No event has been published yet."""
        self._first = self.next = number + 1

    def make_durable(self, durable: int, older: OlderEvents | None = None) -> None:
        """Make this the log of a durable run. No event has been published yet.

        Args:
            durable: How many durable events the run has had, none of which are put into this log.
            older: Reads durable events that the log does not keep.
        """
        self.numbering = Numbering(self.next - 1, durable, 0, older)

    def begin_life(self, life: int, durable: int) -> None:
        """Begin the next life of a durable run, in this process.

        Args:
            life: The life, at least 1 and higher than that of every earlier one: the fence of its lease.
            durable: The number of the last durable event. The log has it, or has none at all.
        """
        if self.numbering is None:
            self.numbering = Numbering(self.next - 1, durable, life, None)
        else:
            assert durable == self.numbering.last, (durable, self.numbering.last)
            self.numbering.begin_life(self.next - 1, life, self._first)

    def oldest(self) -> int:
        """Return the number of the oldest event kept: in the history, or not yet taken by all."""
        keep = self.next - self._history
        readers = self._readers
        if readers is not None:
            if readers.dropped:
                self.sweep()
            keep = readers.slowest(readers.keeping, keep, keep)
        return max(keep, self._first)

    def _trim(self) -> None:
        """Drop the events that need not be kept, if there are enough to justify moving the rest."""
        keep, least = self.next - self._history, len(self._events) >> 7
        readers = self._readers
        if readers is not None:  # as in oldest(), inlined to save a call per event
            if readers.dropped:
                self.sweep()
            keep = readers.slowest(readers.keeping, keep, keep)
        # From here on no function is called, so no garbage collection can interfere.
        spare = keep - self._first
        if spare > least:
            self._first = keep
            del self._events[:spare]

    def close(self, last: Event, number: int = 0) -> None:
        """Publish the terminal event and end the stream for all readers.

        Args:
            last: The terminal event.
            number: Its number if it is durable.
        """
        if number:
            self.append_durable(last, number)
        else:
            self.append(last)
        self.closed = True
        self.stored = None  # it holds the run
        for sender in tuple(self._senders or ()):
            sender.wake()

    def is_full(self) -> bool:
        """Whether the slowest reader is a window behind; a reader at rest does not count."""
        if self.next >= self._room_until:
            slowest = self.next
            readers = self._readers
            if readers is not None:
                if readers.dropped:
                    self.sweep()
                limit = slowest - self._window + 1
                slowest = readers.slowest(readers.counting, limit, slowest)
            self._room_until = slowest + self._window
        return self.next >= self._room_until

    def wake_sender(self) -> None:
        """Wake the first waiting sender, so that it checks for room again.

        It wakes the next one when it leaves, so the cost of an event does not depend on the number
        of waiting senders.
        """
        for sender in self._senders or ():
            sender.wake()
            break

    def attach(self, after: int | Cursor, *, internal: bool, lossy: bool = False) -> _Position:
        """Attach a reader that starts after event number ``after``, or behind a cursor."""
        readers = self._readers
        if readers is None:
            readers = self._readers = _Readers()
        if self.numbering is None:
            assert type(after) is int
            position = _Position(self, max(after + 1, self.oldest()), internal)
            position.missed = position.at - (after + 1)
        else:
            position = self._place(self.numbering, after, internal)
        readers.attached += 1
        self.internal_readers += internal
        if not lossy:
            readers.add(position)
            self._room_until = min(self._room_until, position.at + self._window)
        return position

    def _place(self, numbering: Numbering, after: int | Cursor, internal: bool) -> _Position:
        """Return the position of a reader of a durable run; see :attr:`_Position.detour`."""
        sequence, durable = numbering.find_place(after)
        if isinstance(after, Cursor) and numbering.is_ahead(after):
            position = _Position(self, self._end(numbering), internal)
            position.detour = _Ahead(after)
            return position
        start = self.oldest()
        if sequence is not None:
            start = max(sequence + 1, start)
        position = _Position(self, start, internal)
        position.frozen = start, numbering.cursor(start - 1)
        if durable is None:
            position.missed = start - 1 - (sequence or 0)
            return position
        live, stored = numbering.missed(sequence, durable, start)
        position.missed = live
        if stored and numbering.older is not None:
            seen = after if isinstance(after, Cursor) else Cursor(durable)
            position.detour = _Older(seen, durable + stored)
        else:
            position.missed += stored
        return position

    def pass_seen(self, position: _Position, seen: Cursor) -> None:
        """Move a reader past durable events that it has seen elsewhere before this log published them.

        It stays at the end of the log until they have come. If the log ends before, only the terminal
        event is new, unless that is durable.
        """
        numbering = self.numbering
        assert numbering is not None
        at = self._end(numbering)
        if not numbering.is_ahead(seen):
            position.detour = None
            found = numbering.sequence_of(seen)
            at = position.at if found is None else found + 1
        elif self.closed:
            position.detour = None
        position.at = max(position.at, at)
        position.frozen = position.at, seen
        self.wake_sender()

    def _end(self, numbering: Numbering) -> int:
        """Return the position of a reader that has seen all but a last event that is not durable."""
        has_live_end = self.closed and not numbering.is_durable(self.next - 1)
        return self.next - has_live_end

    def cursor(self, position: _Position) -> Cursor:
        """Return the cursor of a reader."""
        numbering, detour, frozen = self.numbering, position.detour, position.frozen
        if numbering is None:
            return Cursor(0, 0, position.at - 1)
        if isinstance(detour, (_Older, _Ahead)):
            return detour.seen
        if frozen is not None and frozen[0] == position.at:
            return frozen[1]
        return numbering.cursor(position.at - 1)

    def detach(self, position: _Position) -> None:
        """Detach a reader and drop the events that were kept only for it."""
        if self._let_go(position):
            self._trim()
            self.wake_sender()

    def release(self) -> None:
        """Detach the readers whose streams were dropped."""
        if self.sweep():
            self._trim()
            self.wake_sender()

    def sweep(self) -> bool:
        """Remove the readers whose streams were dropped; return whether there were any."""
        dropped = [] if self._readers is None else self._readers.dropped
        found = False
        while dropped:
            found |= self._let_go(dropped.pop())
        return found

    def _let_go(self, position: _Position) -> bool:
        readers = self._readers
        if readers is None or not position.is_attached:
            return False
        position.is_attached = False
        self.internal_readers -= position.internal
        readers.remove(position)
        if position.waiter is not None:
            position.waiter.wake()
        return True

    def detach_all(self) -> None:
        """Make all readers lossy, because their owner's block exits while the run is active.

        After the run has ended no sender waits, so there is nothing to do.
        """
        if self._readers is not None and not self.closed:
            if self.numbering is not None:
                for _, _, position in self._readers.keeping:
                    position.frozen = position.at, self.cursor(position)
            self._readers.make_lossy()
            self._trim()
            self.wake_sender()

    @enable_ki_protection
    async def wait_for_room(self) -> None:
        """Wait until no reader is a whole window behind."""
        waiter = current_backend().waiter()
        if self._senders is None:
            self._senders = {}
        self._senders[waiter] = None
        try:
            while self.is_full() and not self.closed:
                await waiter.wait()
        finally:
            del self._senders[waiter]
            self.wake_sender()

    def rest(self, task: object, *, but: _Position | None = None) -> list[_Position]:
        """Stop the readers of ``task`` from holding up senders: the task is not reading now."""
        readers = self._readers
        peers = None if readers is None else readers.by_task.get(task)
        resting = [p for p in tuple(peers or ()) if p is not but and p.keeps and not p.at_rest]
        for position in resting:
            position.at_rest = True
        if resting:
            self.wake_sender()
        return resting

    def slowest_reader(self) -> tuple[int, object] | None:
        """Return how many events the reader is behind that holds up senders, and its task.

        None if there is no reader. It changes nothing and may be called from any thread.
        """
        readers = self._readers
        entries = [] if readers is None else list(readers.counting)
        positions = [p for _, _, p in entries if p.keeps and not p.at_rest]
        if not positions:
            return None
        slowest = min(positions, key=lambda position: position.at)
        return self.next - slowest.at, slowest.task

    def read_on(self, resting: Iterable[_Position]) -> None:
        """Let the readers that were at rest hold up senders again."""
        readers = self._readers
        for position in resting:
            position.at_rest = False
            if readers is not None and position.keeps:
                readers.count(position)
                self._room_until = min(self._room_until, position.at + self._window)


class _Readers:
    """The readers of a log. The cost does not depend on their number.

    A heap finds the slowest reader. An entry records an earlier position of its reader. Readers
    only move forward, so the first entry is a lower bound. It is updated when the exact position
    matters, at most once for each event that the reader has taken since.

    The garbage collector may drop a reader in any thread and at any line. So a drop only appends to
    ``dropped``; the event loop's thread changes the heaps when it next uses them.
    """

    __slots__ = (
        "_count",
        "_is_busy",
        "_made",
        "attached",
        "by_task",
        "counting",
        "dropped",
        "keeping",
        "waiting",
    )

    def __init__(self) -> None:
        #: The number of attached readers, and of those that keep events and hold up senders.
        self.attached: int = 0
        self._count = 0
        #: The number of readers ever added; it orders two entries with the same event number.
        self._made = 0
        #: Entries [number, order, position]: of all readers that keep events; of those that hold up
        #: senders.
        self.keeping: list[list[Any]] = []
        self.counting: list[list[Any]] = []
        #: The readers that each task was the last to read.
        self.by_task: dict[object, dict[_Position, None]] = {}
        self.waiting: dict[Waiter, None] = {}
        #: The readers that are still attached although their stream was dropped.
        self.dropped: list[_Position] = []
        #: Whether a heap is being modified.
        self._is_busy = False

    def add(self, position: _Position) -> None:
        """Let a reader keep events and hold up senders."""
        position.keeps = True
        self._count += 1
        self._push(self.keeping, position)
        self.count(position)

    def count(self, position: _Position) -> None:
        """Let a reader hold up senders."""
        if not position.is_counted:
            position.is_counted = True
            self._push(self.counting, position)

    def _push(self, heap: list[list[Any]], position: _Position) -> None:
        self._is_busy = True
        if len(heap) > 2 * self._count + 16:  # most entries are of detached readers
            heap[:] = [entry for entry in heap if entry[2].keeps]
            heapify(heap)
        self._made += 1
        heappush(heap, [position.at, self._made, position])
        self._is_busy = False

    def remove(self, position: _Position) -> None:
        """Remove a reader."""
        self.attached -= 1
        self.assign(position, None)
        if position.keeps:
            position.keeps = False
            self._count -= 1
            if not self._count and not self._is_busy:
                self.keeping.clear()
                self.counting.clear()

    def make_lossy(self) -> None:
        """Stop all readers from keeping events and from holding up senders."""
        for _, _, position in self.keeping:
            position.keeps = False
        self.keeping.clear()
        self.counting.clear()
        self._count = 0

    def assign(self, position: _Position, task: object) -> None:
        """Record the task that reads now, if any."""
        if position.task is not None:
            peers = self.by_task[position.task]
            del peers[position]
            if not peers:
                del self.by_task[position.task]
        position.task = task
        if task is not None:
            self.by_task.setdefault(task, {})[position] = None

    def slowest(self, heap: list[list[Any]], limit: int, most: int) -> int:
        """Return the position of the slowest reader in ``heap``, if it is below ``limit``.

        Otherwise return a bound between ``limit`` and ``most``.
        """
        if self._is_busy:  # called by a collection during a modification: keep every event
            return 0
        self._is_busy = True
        result = most
        while heap:
            entry = heap[0]
            number, _, position = entry
            if number >= limit:
                if number < most:
                    result = number
                break
            if not position.keeps:
                heappop(heap)
            elif position.at_rest and heap is self.counting:
                heappop(heap)
                position.is_counted = False
            elif number != position.at:
                entry[0] = position.at
                heapreplace(heap, entry)
            else:
                result = number
                break
        self._is_busy = False
        return result


class _Older:
    """A reader's progress through the durable events that only the store has, before those of the log."""

    __slots__ = ("events", "seen", "up_to")

    def __init__(self, seen: Cursor, up_to: int) -> None:
        #: How far the reader is, and the number of the last event that it needs from the store.
        self.seen: Cursor = seen
        self.up_to: int = up_to
        #: The events that were fetched and not taken yet, in reverse.
        self.events: list[tuple[int, Event]] = []


class _Ahead:
    """The wait of a reader for durable events that it has seen elsewhere; it starts behind them.

    Another process, or another reader of the store, may show an event a moment before this log does.
    """

    __slots__ = ("seen",)

    def __init__(self, seen: Cursor) -> None:
        self.seen: Cursor = seen


@final
class _Closed:
    """The reader was closed."""


_CLOSED = _Closed()


class _Position:
    """The position of a reader in the log."""

    __slots__ = (
        "at",
        "at_rest",
        "closed",
        "detour",
        "frozen",
        "internal",
        "is_attached",
        "is_counted",
        "keeps",
        "log",
        "missed",
        "task",
        "waiter",
    )

    def __init__(self, log: EventLog, at: int, internal: bool) -> None:
        self.log: EventLog = log
        self.at: int = at
        self.internal: bool = internal
        #: The number of events that it has missed.
        self.missed: int = 0
        self.closed: bool = False
        #: Anything but the plain way: it is closed, or reads a durable run that its log does not have
        #: all of. One attribute, so that each event costs one look at it.
        self.detour: _Older | _Ahead | _Closed | None = None
        #: The position for which the cursor was noted, and that: of a reader of a durable run for which
        #: the log does not keep what tells it.
        self.frozen: tuple[int, Cursor] | None = None
        self.is_attached: bool = True
        #: Whether it keeps events and holds up senders; False if it is lossy.
        self.keeps: bool = False
        #: Whether it is in the heap of those that hold up senders.
        self.is_counted: bool = False
        #: The task that reads, and whether it waits for the run's end instead of reading.
        self.task: object = None
        self.at_rest: bool = False
        self.waiter: Waiter | None = None

    def read_by(self, task: object) -> None:
        """Record the task that reads; the reader is not at rest then, even if the last task is."""
        if self.is_attached and self.log._readers is not None:
            self.log._readers.assign(self, task)
            if self.at_rest:
                self.log.read_on((self,))

    def go_on(self, older: _Older) -> None:
        """Follow the log while the reader is lossy and has older events to read.

        The durable events that the log drops meanwhile are in the store.
        """
        oldest, numbering = self.log.oldest(), self.log.numbering
        if not self.keeps and self.at < oldest and numbering is not None:
            until = numbering.durable_before(oldest)
            self.missed += oldest - self.at - (until - older.up_to)
            self.at, older.up_to = oldest, until

    def skip(self) -> None:
        """Advance to the oldest event kept; a lossy reader does so before it takes one."""
        oldest = self.log.oldest()
        if self.at < oldest:
            self.missed += oldest - self.at
            self.at = oldest
        if self.log.numbering is not None:  # which forgets it while the reader reads nothing
            self.frozen = self.at + 1, self.log.numbering.cursor(self.at)


@final
class EventStream(ReceiveChannel[Event]):
    """One reader of a run's events: an async iterator that ends cleanly when the run ends.

    It gets every event published after its start position, in order, each once, independently of
    other readers; then the terminal event; then the iteration stops. It is not bound to a task: you can
    iterate it in one task and close it in another, and a second loop continues where the first
    stopped. A reader that is cancelled while it waits loses no event and can continue.

    Closing it (``close``, ``aclose``, the exit of ``with`` or ``async with``, or dropping it)
    releases the senders that waited for it.

    A lossy reader (``stream_events(lossy=True)``) holds up no sender and keeps no event. It gets
    the events that are still in the history when it reads, and always the terminal event. A reader
    becomes lossy when the block or scope that owns the run exits while the run is active.

    Attributes:
        missed: The number of events dropped from the history before this reader took them.
        sequence: The number of the last event taken; ``stream_events(after=...)`` takes it.
        cursor: The same for a durable run, in any process: a str of digits.
    """

    __slots__ = (
        "__weakref__",
        "_backend",
        "_call_soon",
        "_is_busy",
        "_pace",
        "_position",
        "_thread",
        "_waiter",
    )

    @enable_ki_protection
    def __init__(
        self,
        log: EventLog,
        *,
        after: int | Cursor = 0,
        expose_internal: bool = False,
        lossy: bool = False,
    ) -> None:
        self._thread = get_ident()
        self._backend = backend = _backend_if_any()
        self._call_soon = None if backend is None else backend.caller_into(backend.current_loop())
        self._waiter: Waiter | None = None
        self._is_busy = False
        self._pace = 0.0
        self._position = log.attach(after, internal=expose_internal, lossy=lossy)
        if backend is not None:
            self._position.read_by(backend.current_task())

    @property
    @enable_ki_protection
    def missed(self) -> int:
        """The number of events dropped from the history before this reader took them.

        Internal events count too, as in ``sequence``. The number grows only for a lossy reader,
        even while it does not read (in a thread other than the run's, only when it
        reads). Closing the reader keeps the number.
        """
        position = self._position
        is_here = position.log.closed or self._thread == get_ident()
        if position.detour is None and not position.keeps and is_here:
            return position.missed + max(0, position.log.oldest() - position.at)
        return position.missed

    @property
    def sequence(self) -> int:
        """The number of the last event taken, counted from 1; 0 before the first.

        Each process that continues a durable run counts its events from 1; :attr:`cursor` is valid in
        all of them.
        """
        return self._position.at - 1

    @property
    def cursor(self) -> str:
        """The position behind the last event taken; ``stream_events(after=...)`` takes it.

        A str of digits with a private meaning, except for two guarantees: ``int(cursor)`` grows with
        every event taken, and the cursor of a run without a store is ``str(sequence)``.

        In a durable run it stays valid when the run continues in another process: a reader that starts
        there ``after`` it gets every later durable event exactly once. The live events of a process end
        with the process.

        Closing the reader keeps the cursor. Any thread may read it.
        """
        position = self._position
        return position.log.cursor(position).text()

    async def receive(self) -> Event:
        """Return the next event, waiting for it if necessary.

        It always checks for cancellation, and lets other tasks run at least every 0.5 ms.
        If it is cancelled, it has taken no event.

        Raises:
            trio.EndOfChannel: The run has ended and all events have been taken (under asyncio the
                exception is also an ``anyio.EndOfStream``, and likewise below).
            trio.ClosedResourceError: This reader was closed, before or during the call.
            trio.BusyResourceError: Another task is waiting on this reader; each needs a separate
                ``stream_events()``.
            WorkflowRuntimeError: The run is active, and the call comes from another thread than the
                run's. After the run has ended, any thread may read, one at a time.
        """
        return await self.__anext__(None)

    @enable_ki_protection
    async def __anext__(  # noqa: C901, PLR0912, PLR0915 - one coroutine: each costs at each turn of a wait
        self, _at_end: type[Exception] | None = StopAsyncIteration
    ) -> Event:
        position = self._position
        log = position.log
        backend = self._backend
        if log.thread != get_ident() or log.closed or backend is None:
            log.check_thread("stream.receive", "run(stream.receive)")
            backend = self._backend = current_backend()
        if self._is_busy:
            msg = (
                "another task is reading this stream; expected a reader for each task: call "
                "handler.stream_events() once more"
            )
            raise backend.BusyResourceError(msg)
        self._is_busy = True
        try:
            task = backend.current_task()
            if task is not position.task:
                position.read_by(task)
            has_passed_checkpoint = False
            while True:
                if position.detour is not None:
                    if position.closed:
                        msg = "this stream was closed; handler.stream_events() gives a new one"
                        raise backend.ClosedResourceError(msg)
                    if isinstance(position.detour, _Ahead):
                        log.pass_seen(position, position.detour.seen)
                    elif not has_passed_checkpoint:
                        stored = await self._receive_older(backend)
                        if stored is not None:
                            return stored
                        has_passed_checkpoint = True
                        continue
                if position.at >= log.next and not log.closed:
                    if self._waiter is None:
                        self._waiter = backend.waiter()
                    readers = log._readers
                    assert readers is not None
                    # While this task waits here, it does not read its other readers of this run.
                    resting = log.rest(task, but=position) if readers.attached > 1 else ()
                    position.waiter = self._waiter
                    readers.waiting[self._waiter] = None
                    try:
                        await self._waiter.wait(task)
                    finally:
                        position.waiter = None
                        if self._waiter in readers.waiting:
                            del readers.waiting[self._waiter]
                        if resting:
                            log.read_on(resting)
                    self._pace = perf_counter()
                    has_passed_checkpoint = True
                elif not has_passed_checkpoint:
                    now = perf_counter()
                    if now - self._pace > TURN:
                        await backend.checkpoint()
                        self._pace = perf_counter()
                    else:
                        await backend.checkpoint_if_cancelled()
                    has_passed_checkpoint = True
                elif position.at < log.next:
                    if not position.keeps:
                        position.skip()
                    event = log._events[position.at - log._first]
                    position.at += 1
                    # Only the slowest reader makes room; the bound is exact while a sender waits.
                    if log._senders and position.at <= log._room_until - log._window + 1:
                        log.wake_sender()
                    if len(log._events) > log._limit:
                        log._trim()
                    if position.internal or not isinstance(event, InternalEvent):
                        return event
                else:
                    raise _at_end or backend.EndOfChannel
        finally:
            self._is_busy = False

    async def _receive_older(self, backend: Backend) -> Event | None:
        """Return the next durable event that only the store has; None behind the last. A checkpoint.

        Cancelled, it has taken none. The next call returns an event that was fetched, or fetches again.
        """
        now = perf_counter()
        if now - self._pace > TURN:
            await backend.checkpoint()
            self._pace = perf_counter()
        else:
            await backend.checkpoint_if_cancelled()
        position = self._position
        log, older = position.log, position.detour
        if not isinstance(older, _Older) or log.numbering is None:
            return None
        if not older.events:
            position.go_on(older)
            if older.seen.durable < older.up_to and log.numbering.older is not None:
                found = await log.numbering.older.read(older.seen.durable, older.up_to)
                older.events = [*reversed(found)]
                if position.detour is not older:
                    return None  # closed meanwhile
        if not older.events:
            position.missed += older.up_to - older.seen.durable
            position.detour = None
            position.frozen = position.at, log.numbering.cursor(position.at - 1)
            return None
        number, event = older.events.pop()
        position.missed += number - older.seen.durable - 1
        older.seen = Cursor(number, log.numbering.cursor(position.at - 1).life)
        return event

    @enable_ki_protection
    def close(self) -> None:
        """Detach from the run. Any task and thread may call it, also more than once.

        Not a checkpoint. If another thread calls it, the run's event loop detaches the reader.
        """
        position = self._position
        if position.closed:
            return
        position.missed = self.missed
        log = position.log
        if log.numbering is not None:
            position.frozen = position.at, log.cursor(position)
        position.closed = True
        position.detour = _CLOSED
        if log.closed or self._thread == get_ident():
            log.detach(position)
        else:
            self._let_go_in_loop()

    async def aclose(self) -> None:
        """Close, then pass a checkpoint."""
        self.close()
        await current_backend().checkpoint()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @enable_ki_protection
    def __del__(self) -> None:
        # A dropped reader must hold up no sender. The garbage collector may run in any thread, even
        # within a call of a sender, so the event loop removes the reader later.
        if not self._position.closed:
            self._position.closed = True
            self._position.detour = _CLOSED
            self._let_go_in_loop()

    def _let_go_in_loop(self) -> None:
        log = self._position.log
        assert log._readers is not None
        log._readers.dropped.append(self._position)
        if self._call_soon is not None and not log.closed:
            with suppress(RuntimeError):  # the event loop has closed, so no sender waits
                self._call_soon(log.release)
        elif get_ident() == self._thread:
            log.release()

    def __repr__(self) -> str:
        log = self._position.log
        state = "closed" if self._position.closed else "ended" if log.closed else "open"
        missed = f", {self.missed} missed" if self.missed else ""
        return f"<EventStream {state}, {self.sequence} taken, {log.next - 1} published{missed}>"


@final
class StreamSender(SendChannel[Event]):
    """The sending end of a run's stream for a step: ``ctx.stream``."""

    __slots__ = ("_backend", "_log", "_pace", "_publish")

    def __init__(self, log: EventLog, publish: Callable[[Event | None], None]) -> None:
        self._backend = _backend_if_any()
        self._log = log
        self._publish = publish
        self._pace = 0.0

    @enable_ki_protection
    async def send(self, value: Event) -> None:
        """Publish an event, and wait while the slowest attached reader is a whole buffer behind.

        It always checks for cancellation, and lets other tasks run at least every 0.5 ms; on
        Trio a waiting reader then has the event before the call returns. If it is cancelled, it has
        not published the event. Without an attached reader it does not wait.

        In a durable run of a ``Workflow(stream="durable")`` it then waits until the store has the
        event, which is when readers get it. Cancelled there, the event is published nevertheless.

        Raises:
            WorkflowRuntimeError: The run has ended, the event is a ``StopEvent`` (return it instead),
                or the call comes from another thread than the run's.
            SnapshotError: The event cannot be kept in the store; the message names the field.
            StoreError: The store has failed, or the lease of the run was lost.
        """
        log: EventLog | None = self._log
        backend = self._backend
        if self._log.thread != get_ident():
            self._log.check_thread("ctx.stream.send", "run(ctx.stream.send, event)")
        if backend is None:  # it was created in the thread of a plain step
            backend = self._backend = current_backend()
        is_due = perf_counter() - self._pace > TURN
        # Other tasks run after the event was published, if that checkpoint can be shielded.
        if is_due and not backend.shields_from_all:
            await backend.checkpoint()
        else:
            await backend.checkpoint_if_cancelled()
        while log is not None:
            if log.next >= log._room_until and log.is_full():
                await log.wait_for_room()
            log = log.outer
        stored = self._log.stored
        if stored is not None:
            await stored.reached(stored.send(self._publish, value))
            return
        self._publish(value)  # the rest cannot be cancelled
        if is_due:
            if backend.shields_from_all:
                await backend.cancel_shielded_checkpoint()
                if self._log.has_readers:  # Trio shuffles its tasks; readers continue first
                    await backend.cancel_shielded_checkpoint()
            self._pace = perf_counter()

    @enable_ki_protection
    def send_nowait(self, value: Event) -> None:
        """Publish an event, or raise if :meth:`send` would wait. Not a checkpoint.

        In the thread of a synchronous step, the call runs in the event loop. An event for the store
        (see :meth:`send`) is handed over to it; readers get it once the store has it.

        Raises:
            trio.WouldBlock: The slowest attached reader is a whole buffer behind.
            SnapshotError: The event cannot be kept in the store.
            WorkflowRuntimeError: The run has ended; the event is a ``StopEvent``; or the call comes
                from another thread.
        """
        in_loop(self._send_nowait, value)

    def _send_nowait(self, value: Event) -> None:
        self._log.check_thread("ctx.stream.send_nowait", "run_sync(ctx.stream.send_nowait, event)")
        log: EventLog | None = self._log
        while log is not None:
            if log.is_full():
                raise current_backend().WouldBlock
            log = log.outer
        if self._log.stored is None:
            self._publish(value)
        else:
            self._log.stored.send(self._publish, value)

    async def aclose(self) -> None:
        """Pass a checkpoint. It does not end the stream, which ends with its run."""
        await current_backend().checkpoint()


def _backend_if_any() -> Backend | None:
    try:
        return current_backend()
    except RuntimeError:  # the reader was created outside an event loop, after the end
        return None


def check_publishable(event: Any, log: EventLog) -> None:
    """Refuse an object that may not be published.

    Raises:
        WorkflowRuntimeError: The run has ended; or the object is not an event; or it is an event
            that ends a run.
    """
    if log.closed:
        msg = (
            f"the run is over, so {type(event).__name__} cannot be published any more; expected a "
            "task that the step waits for"
        )
        raise WorkflowRuntimeError(msg)
    if not isinstance(event, Event):
        msg = f"{brief(event)} is not an event; expected an instance of a subclass of Event"
        raise WorkflowRuntimeError(msg)
    if isinstance(event, StopEvent):
        msg = (
            f"{type(event).__name__} ends the run and comes last on the stream by itself; "
            "expected the step to return it"
        )
        raise WorkflowRuntimeError(msg)
