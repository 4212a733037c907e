"""The stream of a run: one log of events, a sending end, and any number of readers.

The log is the buffer: an event stays in it until every attached reader has taken it, and after
that as long as it is among the newest ``history`` ones. A reader is a position in the log. A lossy
reader holds up no sender and keeps no event: where the log has moved on, it skips and counts.
Nothing is ever handed to a reader: woken, it looks and takes. So a wake-up that is lost to a
cancellation (``asyncio`` can cancel a task that is already woken) loses no event.
"""

from __future__ import annotations

from contextlib import suppress
from heapq import heapify, heappop, heappush, heapreplace
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, final

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


class EventLog:
    """What a run has published, and how far each reader is."""

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
        "outer",
        "thread",
    )

    def __init__(self, *, window: int, history: int) -> None:
        self._window = window
        self._history = history
        #: More than this many are trimmed. It is 1/64 more than the history: batches cost least.
        self._limit = history + (history >> 6)
        self._events: list[Event] = []
        #: None until a reader comes.
        self._readers: _Readers | None = None
        #: Events with lower numbers have room, whatever the readers do: they only go forward.
        self._room_until = 1
        #: In the order in which they began to wait.
        self._senders: dict[Waiter, None] | None = None
        #: The sequence number of the oldest event held, and of the next one; the first is 1.
        self._first = 1
        self.next: int = 1
        self.closed: bool = False
        #: Called with every event; the way of a child's events to its parent.
        self.forward: Callable[[Event], None] | None = None
        #: The log of the parent that gets them, whose readers hold up the child's senders too.
        self.outer: EventLog | None = None
        #: How many readers ask for internal events; while there are none, none are built.
        self.internal_readers: int = 0
        #: The thread of the run's event loop; 0 before the run is started.
        self.thread: int = 0

    @property
    def has_readers(self) -> bool:
        """Whether any reader is attached that somebody still has."""
        readers = self._readers
        return readers is not None and readers.attached > len(readers.dropped)

    @property
    def senders_waiting(self) -> int:
        """How many senders wait for room."""
        return len(self._senders or ())

    @property
    def waiting(self) -> dict[Waiter, None]:
        """The readers that wait for the next event."""
        return {} if self._readers is None else self._readers.waiting

    def check_thread(self, what: str, way: str) -> None:
        """Refuse a call from another thread than the run's, which would wake tasks of this one.

        Raises:
            WorkflowRuntimeError: It is another one, and the run is not over.
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

    def begin_after(self, number: int) -> None:
        """Have the next event be the one after ``number``; nothing was published before."""
        self._first = self.next = number + 1

    def oldest(self) -> int:
        """Return the number of the oldest event kept: not yet taken by all, or in the history."""
        keep = self.next - self._history
        readers = self._readers
        if readers is not None:
            if readers.dropped:
                self.sweep()
            keep = readers.slowest(readers.keeping, keep, keep)
        return max(keep, self._first)

    def _trim(self) -> None:
        """Drop what is not kept, once that is worth moving the rest."""
        keep, least = self.next - self._history, len(self._events) >> 7
        readers = self._readers
        if readers is not None:  # as in oldest(), without a call more for an event
            if readers.dropped:
                self.sweep()
            keep = readers.slowest(readers.keeping, keep, keep)
        # From here on nothing is called, so no collection comes in between.
        spare = keep - self._first
        if spare > least:
            self._first = keep
            del self._events[:spare]

    def close(self, last: Event) -> None:
        """Publish the terminal event and end the stream for everybody."""
        self.append(last)
        self.closed = True
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
        """Have the first of the waiting senders look again whether there is room.

        It wakes the next one when it has left, so an event costs the same however many wait.
        """
        for sender in self._senders or ():
            sender.wake()
            break

    def attach(self, after: int, *, internal: bool, lossy: bool = False) -> _Position:
        """Attach a reader behind the event number ``after``."""
        readers = self._readers
        if readers is None:
            readers = self._readers = _Readers()
        position = _Position(self, max(after + 1, self.oldest()), internal)
        readers.attached += 1
        self.internal_readers += internal
        if not lossy:
            readers.add(position)
            self._room_until = min(self._room_until, position.at + self._window)
        return position

    def detach(self, position: _Position) -> None:
        """Let a reader go; what was kept for it alone is dropped."""
        if self._let_go(position):
            self._trim()
            self.wake_sender()

    def release(self) -> None:
        """Let go of the readers that were dropped."""
        if self.sweep():
            self._trim()
            self.wake_sender()

    def sweep(self) -> bool:
        """Strike off the readers that were dropped; return whether there were any."""
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
        """Make all readers lossy, because their owner's block is left while the run goes on.

        Once the run is over no sender waits, so there is nothing to let go.
        """
        if self._readers is not None and not self.closed:
            self._readers.make_lossy()
            self._trim()
            self.wake_sender()

    @enable_ki_protection
    async def wait_for_room(self) -> None:
        """Wait until no reader is a window behind."""
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
        """Let the readers of ``task`` hold up no sender: the task does something else now."""
        readers = self._readers
        peers = None if readers is None else readers.by_task.get(task)
        resting = [p for p in tuple(peers or ()) if p is not but and p.keeps and not p.at_rest]
        for position in resting:
            position.at_rest = True
        if resting:
            self.wake_sender()
        return resting

    def read_on(self, resting: Iterable[_Position]) -> None:
        """Have the readers that were at rest hold up senders again."""
        readers = self._readers
        for position in resting:
            position.at_rest = False
            if readers is not None and position.keeps:
                readers.count(position)
                self._room_until = min(self._room_until, position.at + self._window)


class _Readers:
    """The readers of a log. It costs the same whether there are few of them or many.

    The slowest is found in a heap. An entry says where its reader was at some time, and readers
    only go forward, so what the first entry says is a bound. It is brought up to date when that
    matters, at most once for each event that the reader has taken meanwhile.

    The collector may drop a reader in any thread and at any line. So dropping one only appends to
    ``dropped``; the heaps change when the event loop's thread looks next.
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
        #: How many are attached, and how many of these keep events and hold up senders.
        self.attached: int = 0
        self._count = 0
        #: How many were ever added; it decides between two entries of the same number.
        self._made = 0
        #: Entries [number, order, position]: all that keep events; those that hold up senders.
        self.keeping: list[list[Any]] = []
        self.counting: list[list[Any]] = []
        #: The readers that each task has read last.
        self.by_task: dict[object, dict[_Position, None]] = {}
        self.waiting: dict[Waiter, None] = {}
        #: The readers whose stream was dropped and that are still attached.
        self.dropped: list[_Position] = []
        #: Whether a heap is being changed.
        self._is_busy = False

    def add(self, position: _Position) -> None:
        """Have a reader keep events and hold up senders."""
        position.keeps = True
        self._count += 1
        self._push(self.keeping, position)
        self.count(position)

    def count(self, position: _Position) -> None:
        """Have a reader hold up senders."""
        if not position.is_counted:
            position.is_counted = True
            self._push(self.counting, position)

    def _push(self, heap: list[list[Any]], position: _Position) -> None:
        self._is_busy = True
        if len(heap) > 2 * self._count + 16:  # most of it are readers that have gone
            heap[:] = [entry for entry in heap if entry[2].keeps]
            heapify(heap)
        self._made += 1
        heappush(heap, [position.at, self._made, position])
        self._is_busy = False

    def remove(self, position: _Position) -> None:
        """Strike off a reader."""
        self.attached -= 1
        self.assign(position, None)
        if position.keeps:
            position.keeps = False
            self._count -= 1
            if not self._count and not self._is_busy:
                self.keeping.clear()
                self.counting.clear()

    def make_lossy(self) -> None:
        """Have no reader keep events or hold up senders any more."""
        for _, _, position in self.keeping:
            position.keeps = False
        self.keeping.clear()
        self.counting.clear()
        self._count = 0

    def assign(self, position: _Position, task: object) -> None:
        """Take note of the task that reads now, if any."""
        if position.task is not None:
            peers = self.by_task[position.task]
            del peers[position]
            if not peers:
                del self.by_task[position.task]
        position.task = task
        if task is not None:
            self.by_task.setdefault(task, {})[position] = None

    def slowest(self, heap: list[list[Any]], limit: int, most: int) -> int:
        """Return where the slowest reader in ``heap`` is, if that is below ``limit``.

        Otherwise return a bound: at least ``limit``, and at most ``most``, which is not less.
        """
        if self._is_busy:  # a collection in the midst of a change: nothing is known, all is kept
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


class _Position:
    """A reader, as the log sees it."""

    __slots__ = (
        "at",
        "at_rest",
        "closed",
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
        #: How many events it has not taken and never will.
        self.missed: int = 0
        self.closed: bool = False
        self.is_attached: bool = True
        #: Whether it keeps events and holds up senders; otherwise it is lossy.
        self.keeps: bool = False
        #: Whether it is in the heap of those that hold up senders.
        self.is_counted: bool = False
        #: The task that reads, and whether it waits for the run's end instead of reading.
        self.task: object = None
        self.at_rest: bool = False
        self.waiter: Waiter | None = None

    def read_by(self, task: object) -> None:
        """Take note of the task that reads; it does not rest then, whatever the last one does."""
        if self.is_attached and self.log._readers is not None:
            self.log._readers.assign(self, task)
            if self.at_rest:
                self.log.read_on((self,))

    def skip(self) -> None:
        """Go on to the oldest event kept, which a lossy reader does before it takes one."""
        oldest = self.log.oldest()
        if self.at < oldest:
            self.missed += oldest - self.at
            self.at = oldest


@final
class EventStream(ReceiveChannel[Event]):
    """One reader of a run's events: an async iterator that ends cleanly when the run ends.

    It gets every event published from where it starts, in order, each once, whatever other
    readers do; then the terminal event; then the iteration stops. It belongs to no task: it may
    be iterated in one and closed in another, and a second loop goes on where the first one
    stopped. A reader that is cancelled while it waits has lost nothing and can go on.

    Closing it (``close``, ``aclose``, leaving ``with`` or ``async with``, or dropping it) lets
    senders that waited for it go on.

    A lossy reader (``stream_events(lossy=True)``) holds up no sender and keeps no event. It gets
    what is still in the history when it comes to read, and always the terminal event. A reader
    becomes lossy when the block or the scope that owns the run is left while the run goes on.

    Attributes:
        missed: How many events were dropped from the history before this reader took them.
        sequence: The number of the last event taken; ``stream_events(after=...)`` takes it.
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
        after: int = 0,
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
        self._position.missed = self._position.at - (after + 1)
        if backend is not None:
            self._position.read_by(backend.current_task())

    @property
    @enable_ki_protection
    def missed(self) -> int:
        """How many events were dropped from the history before this reader took them.

        Counted like ``sequence``: internal events count too. It grows only for a lossy reader,
        also while that one does not read (elsewhere than in the run's thread, only then when it
        reads). What it missed when it was closed stays.
        """
        position = self._position
        is_here = position.log.closed or self._thread == get_ident()
        if not position.closed and not position.keeps and is_here:
            return position.missed + max(0, position.log.oldest() - position.at)
        return position.missed

    @property
    def sequence(self) -> int:
        """The number of the last event taken, counted from 1; 0 before the first."""
        return self._position.at - 1

    async def receive(self) -> Event:
        """Take the next event, waiting for it if need be.

        Looks for a cancellation always, and gives others a turn at the latest every 0.5 ms.
        Cancelled, it has taken nothing.

        Raises:
            trio.EndOfChannel: The run is over and everything has been taken (under asyncio it
                is ``anyio.EndOfStream`` as well, and so on below).
            trio.ClosedResourceError: This reader was closed, before or meanwhile.
            trio.BusyResourceError: Another task is waiting at this reader; each needs its own
                ``stream_events()``.
            WorkflowRuntimeError: The call comes from another thread than the run's, which goes on.
                A run that is over may be read in any thread, one at a time.
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
                if position.closed:
                    msg = "this stream was closed; handler.stream_events() gives a new one"
                    raise backend.ClosedResourceError(msg)
                if position.at >= log.next and not log.closed:
                    if self._waiter is None:
                        self._waiter = backend.waiter()
                    readers = log._readers
                    assert readers is not None
                    # While this task waits here it reads no other of its readers of this run.
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
                    # Only the slowest makes room; the bound is exact while a sender sleeps.
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

    @enable_ki_protection
    def close(self) -> None:
        """Detach from the run; may be called from any task and thread, and again.

        Not a checkpoint. From another thread than the run's, its event loop lets the reader go.
        """
        position = self._position
        if position.closed:
            return
        position.missed = self.missed
        position.closed = True
        log = position.log
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
        # A reader that was dropped must hold nobody up. The collector may find it in any thread,
        # and in the midst of what a sender does; so the event loop takes it out.
        if not self._position.closed:
            self._position.closed = True
            self._let_go_in_loop()

    def _let_go_in_loop(self) -> None:
        log = self._position.log
        assert log._readers is not None
        log._readers.dropped.append(self._position)
        if self._call_soon is not None and not log.closed:
            with suppress(RuntimeError):  # the event loop is gone, and nobody waits any more
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
    """The sending end of a run's stream, as a step sees it: ``ctx.stream``."""

    __slots__ = ("_backend", "_log", "_pace", "_publish")

    def __init__(self, log: EventLog, publish: Callable[[Event | None], None]) -> None:
        self._backend = _backend_if_any()
        self._log = log
        self._publish = publish
        self._pace = 0.0

    @enable_ki_protection
    async def send(self, value: Event) -> None:
        """Publish an event, waiting while the slowest attached reader is a buffer behind.

        Looks for a cancellation always, and gives others a turn at the latest every 0.5 ms; on
        Trio whoever waits for the event has it then before this returns. Cancelled, it has
        published nothing. With no reader attached it does not wait.

        Raises:
            WorkflowRuntimeError: The run is over, it is a ``StopEvent`` (return it instead), or
                the call comes from another thread than the run's.
        """
        log: EventLog | None = self._log
        backend = self._backend
        if self._log.thread != get_ident():
            self._log.check_thread("ctx.stream.send", "run(ctx.stream.send, event)")
        if backend is None:  # it was made in the thread of a plain step
            backend = self._backend = current_backend()
        is_due = perf_counter() - self._pace > TURN
        # Others get their turn once the event is out, if nothing can cancel that turn.
        if is_due and not backend.shields_from_all:
            await backend.checkpoint()
        else:
            await backend.checkpoint_if_cancelled()
        while log is not None:
            if log.next >= log._room_until and log.is_full():
                await log.wait_for_room()
            log = log.outer
        self._publish(value)  # what follows cannot be cancelled
        if is_due:
            if backend.shields_from_all:
                await backend.cancel_shielded_checkpoint()
                if self._log.has_readers:  # Trio shuffles, and they go on first
                    await backend.cancel_shielded_checkpoint()
            self._pace = perf_counter()

    @enable_ki_protection
    def send_nowait(self, value: Event) -> None:
        """Publish an event, or raise if :meth:`send` would wait. Not a checkpoint.

        In the thread of a synchronous step it hops to the event loop.

        Raises:
            trio.WouldBlock: The slowest attached reader is a buffer behind.
            WorkflowRuntimeError: The run is over, it is a ``StopEvent``, or the call comes from
                another thread.
        """
        in_loop(self._send_nowait, value)

    def _send_nowait(self, value: Event) -> None:
        self._log.check_thread("ctx.stream.send_nowait", "run_sync(ctx.stream.send_nowait, event)")
        log: EventLog | None = self._log
        while log is not None:
            if log.is_full():
                raise current_backend().WouldBlock
            log = log.outer
        self._publish(value)

    async def aclose(self) -> None:
        """Pass a checkpoint and nothing else: the stream ends when its run ends."""
        await current_backend().checkpoint()


def _backend_if_any() -> Backend | None:
    try:
        return current_backend()
    except RuntimeError:  # a reader made outside any event loop, after the end
        return None


def check_publishable(event: Any, log: EventLog) -> None:
    """Refuse what does not belong on the stream.

    Raises:
        WorkflowRuntimeError: The run is over; or it is no event, or one that ends a run.
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
