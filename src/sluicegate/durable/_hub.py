"""The hub of an open store: shared by its runs in this process, with the tasks that serve them.

One task passes on changes by other processes (messages of the inbox, ends, claims), another
writes the summaries of runs that have become idle and releases those that have been idle for long
enough. The tasks belong to the block of the store; the tasks that run steps belong to the
owners of the runs.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol, Self

from sluicegate._errors import WorkflowError
from sluicegate._loop import current_backend
from sluicegate.durable._errors import StoreClosedError


if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sluicegate._loop import Backend, Waiter
    from sluicegate._workflow import Workflow
    from sluicegate.durable._port import Journal, Message


#: Seconds after which the summary of a busy run is brought up to date.
BUSY_DELAY = 0.1
#: Up to so many runs that do not live here are looked at whenever the store has changed.
_MANY = 100
#: How many runs one look asks for that are due.
_DUE = 1000
#: How many runs one look at the inbox asks for.
_CHUNK = 500


class Tended(Protocol):
    """A run that lives in this process, as the hub sees it."""

    @property
    def run_id(self) -> str: ...

    @property
    def is_owner(self) -> bool:
        """Whether it runs the run when a message or a timer wakes it."""
        ...

    def deliver(self, message: Message) -> None:
        """Apply a message of the inbox; called in the loop, and again until it is consumed."""

    def detach(self, reason: str) -> None:
        """End the part of the run in this process."""

    def tend(self, now: float) -> float | None:
        """Bring the summary up to date, and release the run if it is time to.

        Returns when to call again, on the backend's clock; None if only a change requires it.
        """


class Sending:
    """An event or a cancellation on its way into the inbox of a run."""

    __slots__ = ("_done", "data", "error", "is_repeated", "key", "kind")

    def __init__(self, kind: str, key: str, data: bytes) -> None:
        self.kind: str = kind
        self.key: str = key
        self.data: bytes = data
        self.error: Exception | None = None
        self.is_repeated: bool = False
        self._done = current_backend().event()

    def end(self, error: Exception | None = None) -> None:
        """Wake the waiting tasks, which raise the error if there is one."""
        self.error = error
        self._done.set()

    async def wait(self) -> bool:
        """Wait until it is stored; return whether it was stored before. A checkpoint."""
        await self._done.wait()
        if self.error is not None:
            raise self.error
        return self.is_repeated


class Watch:
    """Wakes one task when one run may have changed; see :meth:`Hub.watching`."""

    __slots__ = ("_hub", "_waiter", "has_changed", "run_id")

    def __init__(self, hub: Hub, run_id: str) -> None:
        self._hub = hub
        self.run_id: str = run_id
        #: Whether there was a change since the task last set this to False.
        self.has_changed: bool = False
        self._waiter: Waiter | None = None

    def __enter__(self) -> Self:
        self._hub.watches.setdefault(self.run_id, []).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._hub.forget(self)
        found = self._hub.watches[self.run_id]
        found.remove(self)
        if not found:
            del self._hub.watches[self.run_id]

    def note(self) -> None:
        """Wake the task."""
        self.has_changed = True
        if self._waiter is not None:
            self._waiter.wake()

    async def wait(self, until: float | None = None) -> None:
        """Wait for :meth:`note`, or until a time on the wall. A checkpoint."""
        backend = current_backend()
        await backend.checkpoint_if_cancelled()
        self._waiter = backend.waiter()
        try:
            if until is None:
                await self._wait()
            else:
                left = max(until - self._hub.wall(), 0.0)
                with backend.cancel_scope(deadline=backend.current_time() + left):
                    await self._wait()
        finally:
            self._waiter = None
        self.has_changed = False

    async def _wait(self) -> None:
        assert self._waiter is not None
        if self.has_changed:
            await current_backend().checkpoint()
        while not self.has_changed:
            await self._waiter.wait()


class Hub:
    """The shared state of the runs of an open store.

    Attributes:
        journal: The store.
        wall: The time on the wall, in seconds since the epoch.
        timeouts: Whether the timeout of a run counts the time ``"alive"`` in memory, or on the ``"wall"``.
        release_idle: Seconds after which an idle run is released from memory; None for never.
        max_crashes: How many lives of a run may end with a delivery under way.
        keeps_history: Whether records that no life needs any more are kept.
        workflows: The workflows that are known here, by name.
        thread: The thread of the event loop.
        nursery: The nursery of the tasks that follow runs.
        call_soon: Calls a function in the event loop, from any thread.
        live: The runs whose steps run in this process.
        parts: The parts that owners in this process have entered.
        watches: The watches that wait for changes, by run id.
        is_open: Whether its block is entered.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float],
        timeouts: str,
        release_idle: float | None,
        max_crashes: int,
        keeps_history: bool,
    ) -> None:
        self.journal: Journal
        self.wall = wall
        self.timeouts = timeouts
        self.release_idle = release_idle
        self.max_crashes = max_crashes
        self.keeps_history = keeps_history
        self.workflows: dict[str, Workflow[Any]] = {}
        self.live: dict[str, Tended] = {}
        self.parts: dict[Tended, None] = {}
        self.watches: dict[str, list[Watch]] = {}
        self.is_open = False
        self.loop: Any = None
        self.thread = 0
        self.nursery: Any = None
        self.call_soon: Callable[[Callable[[], object]], object]
        self._is_left: Waiter | None = None
        #: The watches of runs that are still to be looked at since the last change.
        self._unnoted: dict[Watch, None] = {}
        self._has_unnoted: Waiter | None = None
        self._outbox: deque[tuple[str, Sending]] = deque()
        self._has_outgoing: Waiter | None = None
        self._is_noted: Waiter | None = None
        #: Runs to be tended at once, and a heap of those to be tended at a time.
        self._now: dict[Tended, None] = {}
        self._later: list[tuple[float, int, Tended]] = []
        self._entries = 0
        #: The runs of which a life has begun, and the inbox has not been read since.
        self._begun: list[str] = []

    def check_open(self) -> None:
        """Refuse a call outside the block of the store, or from another event loop.

        Raises:
            StoreClosedError: The block was not entered, or was left, or belongs to another loop.
        """
        if self.is_open and current_backend().current_loop() is self.loop:
            return
        where = "was not entered, or has been left"
        if self.is_open:
            where = "belongs to another event loop"
        msg = (
            f"the block of the run store {where}; expected the call inside of "
            "`async with open_run_store(...) as runs:`"
        )
        raise StoreClosedError(msg)

    def owned(self) -> set[str]:
        """Return the ids of the runs that have an owner in this process."""
        return {part.run_id for part in self.parts if part.is_owner}

    def watching(self, run_id: str) -> Watch:
        """Return a watch, which wakes the caller when a run may have changed."""
        return Watch(self, run_id)

    def forget(self, watch: Watch) -> None:
        """Drop a watch that has ended."""
        self._unnoted.pop(watch, None)

    def note_run(self, run_id: str) -> None:
        """Wake the tasks that watch a run."""
        for watch in self.watches.get(run_id, ()):
            watch.note()

    @contextmanager
    def owning(self, part: Tended) -> Generator[None]:
        """Note that an owner has entered a run as long as the block lasts."""
        self.parts[part] = None
        try:
            yield
        finally:
            del self.parts[part]
            if self._is_left is not None:
                self._is_left.wake()

    async def wait_for_parts(self) -> None:
        """Wait until a part has ended. A checkpoint."""
        self._is_left = waiter = current_backend().waiter()
        await waiter.wait()

    # -- messages ---------------------------------------------------------------------------------

    async def send(self, run_id: str, sending: Sending) -> None:
        """Put a message into an inbox. A checkpoint; a refusal is raised by the message's ``wait()``."""
        try:
            is_new = await self.journal.send(run_id, sending.kind, sending.key, sending.data)
        except (WorkflowError, OSError) as error:
            sending.end(error)
        else:
            sending.is_repeated = not is_new
            sending.end()

    def post(self, run_id: str, sending: Sending) -> None:
        """Put a message into an inbox soon, after those posted before."""
        self._outbox.append((run_id, sending))
        if self._has_outgoing is not None:
            self._has_outgoing.wake()

    async def send_posted(self) -> None:
        """Send what is posted, in order, as long as the store is open."""
        backend = current_backend()
        self._has_outgoing = waiter = backend.waiter()
        while True:
            await backend.checkpoint()
            while not self._outbox:
                await waiter.wait()
            run_id, sending = self._outbox[0]
            await self.send(run_id, sending)
            self._outbox.popleft()

    # -- what other processes do ----------------------------------------------------------------

    async def follow_store(self) -> None:
        """Pass changes by other processes to the runs of this process, as long as the store is open."""
        since = 0
        while True:
            since = await self.journal.changed(since)
            await self.deliver_messages(list(self.live))
            await self._note_watches()

    async def _note_watches(self) -> None:
        """Wake the watches of runs that are not live here. A checkpoint if there are many.

        Each woken watch reads the store. If there are many, those of due runs are woken first, and the others
        within a second per thousand.
        """
        watches = [w for found in self.watches.values() for w in found if w.run_id not in self.live]
        if len(watches) <= _MANY:
            for watch in watches:
                watch.note()
            return
        due = await self.journal.due(self.wall(), _DUE, workflows=list(self.workflows))
        for run_id in ("", *(row.run_id for row in due.runs)):
            self.note_run(run_id)
        for watch in watches:
            self._unnoted[watch] = None
        if self._has_unnoted is not None:
            self._has_unnoted.wake()

    async def note_others(self) -> None:
        """Wake the remaining watches a few at a time, as long as the store is open."""
        backend = current_backend()
        self._has_unnoted = waiter = backend.waiter()
        while True:
            await backend.checkpoint()
            while not self._unnoted:
                await waiter.wait()
            for watch in list(self._unnoted)[:_MANY]:
                del self._unnoted[watch]
                watch.note()
            await backend.sleep(_MANY / 1000)

    async def deliver_messages(self, run_ids: list[str]) -> None:
        """Apply the messages that these runs have not consumed. A checkpoint."""
        for first in range(0, len(run_ids), _CHUNK):
            for message in await self.journal.inbox(run_ids[first : first + _CHUNK]):
                part = self.live.get(message.run_id)
                if part is not None:
                    part.deliver(message)
        await current_backend().checkpoint_if_cancelled()

    # -- idle runs --------------------------------------------------------------------------------

    def note_idle(self, part: Tended) -> None:
        """Schedule a run that has become idle to be tended immediately."""
        self._now[part] = None
        if self._is_noted is not None:
            self._is_noted.wake()

    def note_begun(self, part: Tended) -> None:
        """Read the inbox of a run again, because a life of it has begun.

        The claim has read the inbox, but a message that arrived between the claim and the beginning of
        the life has woken no task.
        """
        self._begun.append(part.run_id)
        if self._is_noted is not None:
            self._is_noted.wake()

    def note_busy(self, part: Tended) -> None:
        """Schedule a busy run to be tended soon."""
        self._tend_at(current_backend().current_time() + BUSY_DELAY, part)
        if self._is_noted is not None and self._later[0][2] is part:
            self._is_noted.wake()

    def _tend_at(self, time: float, part: Tended) -> None:
        self._entries += 1
        heappush(self._later, (time, self._entries, part))

    async def tend_runs(self) -> None:
        """Write the summaries of runs that change, and release idle ones, as long as the store is open."""
        backend = current_backend()
        self._is_noted = waiter = backend.waiter()
        while True:
            await self._wait_for_work(backend, waiter)
            begun, self._begun = self._begun, []
            if begun:
                await self.deliver_messages(begun)
            now = backend.current_time()
            todo, self._now = self._now, {}
            while self._later and self._later[0][0] <= now:
                todo[heappop(self._later)[2]] = None
            for part in todo:
                again = part.tend(now) if self.live.get(part.run_id) is part else None
                if again is not None:
                    self._tend_at(again, part)

    async def _wait_for_work(self, backend: Backend, waiter: Waiter) -> None:
        """Wait until a run is to be tended. A checkpoint."""
        await backend.checkpoint()
        due = self._later[0][0] if self._later else None
        if self._now or self._begun or (due is not None and due <= backend.current_time()):
            return
        if due is None:
            await waiter.wait()
            return
        with backend.cancel_scope(deadline=due):
            await waiter.wait()
