"""Limits that runs share: how many entries per second, and how many at a time."""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final
from weakref import WeakKeyDictionary, ref

from sluicegate._annotations import is_count
from sluicegate._errors import WorkflowRuntimeError, WorkflowValidationError
from sluicegate._loop import Backend, Waiter, current_backend, enable_ki_protection


if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: How many threads of steps there are at most in an event loop, unless a workflow says otherwise.
MAX_THREADS = 1_000


class PerLoop(Generic[T]):
    """One thing for each event loop, made on first use there and dropped with the loop.

    A loop is known by the object, not by a number that another may get after it: what was left
    in a loop that is over can neither be seen nor changed from the next one.
    """

    __slots__ = ("_make", "_things")

    def __init__(self, make: Callable[[WaitQueue], T]) -> None:
        self._make = make
        self._things: WeakKeyDictionary[Any, T] = WeakKeyDictionary()

    def here(self, backend: Backend) -> T:
        """Return the thing of the running loop; no other thread touches the same one."""
        loop = backend.current_loop()
        thing = self._things.get(loop)
        if thing is None:
            thing = self._things[loop] = self._make(WaitQueue(ref(loop)))
        return thing

    def on(self, loop: object) -> T | None:
        """Return the thing of a loop; None if there is none yet."""
        return self._things.get(loop)


class WaitQueue:
    """Tasks that wait their turn, first come, first served; only the first of them may go.

    Nobody is ever let in by another: who is woken looks whether it is first and whether there is
    room, and takes. So a task that is cancelled in the moment in which it is woken has taken
    nothing, and has only to wake the next as it leaves the line.
    """

    __slots__ = ("_places", "loop")

    def __init__(self, loop: ref[Any]) -> None:
        self.loop = loop
        # Not a dict: one that loses its first key again and again is searched from the start.
        self._places: OrderedDict[Waiter, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def join(self, place: Waiter) -> None:
        self._places[place] = None

    def is_first(self, place: Waiter) -> bool:
        return next(iter(self._places)) is place

    def quit(self, place: Waiter, *, is_room: bool) -> None:
        """Leave the line, by whatever way; if another comes first by that and may go, wake it."""
        was_first = self.is_first(place)
        del self._places[place]
        if was_first and is_room:
            self.wake_first()

    def wake_first(self) -> None:
        if self._places and self._is_loop_running():
            next(iter(self._places)).wake()

    def _is_loop_running(self) -> bool:
        """Whether the caller runs in the loop of this line.

        It does not where the coroutines of an abandoned loop are closed. There is nobody to wake
        then, and the tasks of one loop must not be given to another.
        """
        try:
            backend = current_backend()
        except RuntimeError:
            return False
        return backend.current_loop() is self.loop()


@final
class RateLimiter:
    """At most so many entries in so many seconds, for any number of tasks, runs and workflows.

    ::

        limiter = RateLimiter(10)  # of a module, shared by several workflows


        class Asks(Workflow):
            @step(num_workers=50, limiter=limiter)
            async def ask(self, ev: Question) -> Answer:
                return await call_a_model(ev)

    It is a token bucket. Whoever enters takes a token; one is put in every ``per / rate`` seconds
    and ``burst`` of them fit. So entries are evenly spaced where ``burst`` is 1, and in no period
    of ``per`` seconds are there more than ``rate + burst`` of them. It limits how often a block
    is entered, not how many tasks are inside: leaving the block gives nothing back and is no
    checkpoint. Tasks enter in the order in which they asked.

    Time is the event loop's clock, so a mock clock drives it. A limiter may be made outside any
    event loop and used in one after another. Each event loop has a full bucket of its own: two
    loops in two threads are limited each by itself, and together enter twice as often.

    Args:
        rate: How many entries there may be in ``per`` seconds; any number above 0.
        per: The period in seconds.
        burst: How many entries may follow each other at once after a pause.

    Raises:
        ValueError: An argument is not valid; the message shows a valid call.
    """

    __slots__ = ("_buckets", "_burst", "_per", "_rate")

    def __init__(self, rate: float, *, per: float = 1.0, burst: int = 1) -> None:
        if not _is_positive(rate):
            msg = f"rate of RateLimiter is {rate!r}; expected a number above 0: `RateLimiter(10)`"
            raise ValueError(msg)
        if not _is_positive(per):
            msg = (
                f"per of RateLimiter is {per!r}; expected seconds above 0: "
                f"`RateLimiter({rate}, per=60)`"
            )
            raise ValueError(msg)
        if not is_count(burst):
            msg = (
                f"burst of RateLimiter is {burst!r}; expected an int of at least 1: "
                f"`RateLimiter({rate}, per={per}, burst=5)`"
            )
            raise ValueError(msg)
        if not _is_positive(per / rate):
            msg = (
                f"RateLimiter({rate}, per={per}) has {per / rate} seconds from one entry to the "
                "next; expected a number of seconds above 0: `RateLimiter(10, per=60)`"
            )
            raise ValueError(msg)
        self._rate = rate
        self._per = per
        self._burst = burst
        self._buckets = PerLoop(self._fill_bucket)

    def __repr__(self) -> str:
        return f"RateLimiter({self._rate}, per={self._per}, burst={self._burst})"

    async def acquire(self) -> None:
        """Wait for a token and take it.

        A checkpoint, also if there is a token at once. Cancelled, it has taken no token and
        given up its place in the line; whoever is next is not delayed. May be called from any
        number of tasks.

        Raises:
            RuntimeError: There is no event loop.
        """
        backend = current_backend()
        await self._buckets.here(backend).take(backend)

    async def __aenter__(self) -> None:
        """Wait for a token and take it; see :meth:`acquire`."""
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: a token that was taken is spent. No checkpoint."""

    def waiting_on(self, loop: object) -> int:
        """Return how many tasks of an event loop wait for a token."""
        bucket = self._buckets.on(loop)
        return 0 if bucket is None else bucket.waiting

    def _fill_bucket(self, queue: WaitQueue) -> _Bucket:
        return _Bucket(queue, self._per / self._rate, self._burst)


class _Bucket:
    """The tokens of a limiter in one event loop.

    The bucket is not filled by a timer. It remembers when it was last full and how many tokens
    were taken since; times are multiples of the interval from there, so rounding does not add up.
    """

    __slots__ = ("_burst", "_full_at", "_interval", "_queue", "_taken")

    def __init__(self, queue: WaitQueue, interval: float, burst: int) -> None:
        self._queue = queue
        self._interval = interval
        self._burst = burst
        self._full_at = -math.inf
        self._taken = 0

    @property
    def waiting(self) -> int:
        """How many tasks wait for a token."""
        return len(self._queue)

    @enable_ki_protection
    async def take(self, backend: Backend) -> None:
        place = backend.waiter()
        self._queue.join(place)
        try:
            # In the line already, so that those who come meanwhile stay behind. There is no
            # await after the token is taken: it cannot be lost.
            await backend.checkpoint()
            while (wait_until := self._next_at(place, backend.current_time())) is not None:
                await _sleep(backend, place, wait_until)
            self._taken += 1
        finally:
            self._queue.quit(place, is_room=True)  # or it waits for the next token itself

    def _next_at(self, place: Waiter, now: float) -> float | None:
        """Return when to look again, or None if ``place`` may take a token now."""
        if not self._queue.is_first(place):
            return math.inf
        if now >= self._full_at + self._taken * self._interval:
            self._full_at, self._taken = now, 0
        ready_at = self._full_at + (self._taken + 1 - self._burst) * self._interval
        return None if now >= ready_at else ready_at


async def _sleep(backend: Backend, place: Waiter, until: float) -> None:
    """Sleep until a time or until woken, whatever comes first."""
    if until == math.inf:
        await place.wait()
        return
    cancelled_before = backend.is_natively_cancelled()
    with backend.cancel_scope(deadline=until) as scope:
        await place.wait()
    # Older AnyIO takes a native cancellation for its own if both come in the same turn.
    if scope.cancelled_caught and not cancelled_before and backend.is_natively_cancelled():
        raise backend.Cancelled


@final
class ConcurrencyLimit:
    """Lets at most ``limit`` runs of a workflow in at a time, in the order in which they came.

    Made outside any event loop and used in any. Each event loop counts for itself: two loops in
    two threads let ``limit`` runs in each. A loop that ended, or was abandoned, with runs inside
    keeps nothing from the next.

    Args:
        limit: How many may be inside at a time.

    Raises:
        WorkflowValidationError: The limit is not an int of at least 1.
    """

    __slots__ = ("_limit", "_slots")

    def __init__(self, limit: int) -> None:
        if not is_count(limit):
            msg = (
                f"num_concurrent_runs is {limit!r}; expected an int of at least 1, or None for no "
                "limit: `MyWorkflow(num_concurrent_runs=4)`"
            )
            raise WorkflowValidationError(msg)
        self._limit = limit
        self._slots = PerLoop(self._make_slots)

    def __repr__(self) -> str:
        return f"ConcurrencyLimit({self._limit})"

    @enable_ki_protection
    async def acquire(self) -> LoopSlots:
        """Go in, as soon as there is room and all who came before are in or gone.

        A checkpoint only if it has to wait. Cancelled, it is not inside and has given up its
        place in the line. There is no checkpoint after it is let in.

        Returns:
            The slots of this event loop; the caller calls their ``release()`` once.

        Raises:
            RuntimeError: There is no event loop.
        """
        backend = current_backend()
        slots = self._slots.here(backend)
        await slots.acquire(backend)
        return slots

    def here(self) -> LoopSlots:
        """Return the slots of the running event loop."""
        return self._slots.here(current_backend())

    def on(self, loop: object) -> LoopSlots | None:
        """Return the slots of an event loop; None if no run of it has asked for one."""
        return self._slots.on(loop)

    def _make_slots(self, queue: WaitQueue) -> LoopSlots:
        return LoopSlots(queue, self._limit)


@final
class LoopSlots:
    """The slots of a limit in one event loop: which runs hold one, and which wait.

    A slot is released here, not at the limit: the coroutine of a loop that was abandoned is closed
    whenever it is collected, and must not count as having left in the loop that runs then.

    Attributes:
        inside: How many are inside.
        idle: Those inside that wait for an event from outside.
        queued: What to call for each run outside that is to hear when all inside are idle, or not.
    """

    __slots__ = ("_limit", "_queue", "_was_idle", "idle", "inside", "queued")

    def __init__(self, queue: WaitQueue, limit: int) -> None:
        self._queue = queue
        self._limit = limit
        self.inside = 0
        self.idle: set[object] = set()
        self.queued: dict[object, Callable[[], None]] = {}
        self._was_idle = False

    @property
    def is_idle(self) -> bool:
        """Whether all that are inside wait for an event from outside."""
        return 0 < self.inside == len(self.idle)

    def note(self, guest: object, *, is_idle: bool) -> None:
        """Take note of whether one inside is idle, and tell those outside if that matters to them."""
        if is_idle:
            self.idle.add(guest)
        else:
            self.idle.discard(guest)
        if self.is_idle is not self._was_idle:
            self._was_idle = not self._was_idle
            for tell in tuple(self.queued.values()):
                tell()

    def __repr__(self) -> str:
        return f"<LoopSlots: {self.inside} of {self._limit} inside, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many wait outside."""
        return len(self._queue)

    @enable_ki_protection
    async def acquire(self, backend: Backend) -> None:  # noqa: ASYNC910 - no checkpoint where there is room
        """See :meth:`ConcurrencyLimit.enter`."""
        queue = self._queue
        if self.inside < self._limit and not queue:
            self.inside += 1
            return  # noqa: ASYNC910
        place = backend.waiter()
        queue.join(place)
        try:
            while self.inside >= self._limit or not queue.is_first(place):
                await place.wait()
            self.inside += 1
        finally:
            queue.quit(place, is_room=self.inside < self._limit)

    @enable_ki_protection
    def release(self) -> None:
        """Make room for the next. Never waits; may be called while its event loop unwinds.

        Raises:
            WorkflowRuntimeError: Nobody is inside.
        """
        if not self.inside:
            msg = (
                "a slot was released that no run holds; expected one `slots.release()` for each "
                "`slots = await limit.acquire()`"
            )
            raise WorkflowRuntimeError(msg)
        self.inside -= 1
        self._queue.wake_first()


class _Use:
    """Which event loop uses a limiter that serves one at a time, and how often."""

    __slots__ = ("count", "loop", "thread")

    def __init__(self, loop: Any) -> None:
        self.loop = ref(loop)
        self.thread = threading.current_thread().name
        self.count = 0


_uses: WeakKeyDictionary[Any, _Use] = WeakKeyDictionary()
_counting = threading.Lock()


@final
class SingleLoopLimiter:
    """Enters a limiter of Trio, AnyIO or asyncio, unless an event loop in another thread is using it.

    Such a limiter is not thread-safe: it would wake its waiters in the wrong loop, and they would
    wait for ever. One loop after another may use it.

    Args:
        limiter: The limiter.
        place: What to enter, the limiter itself or a place in it.
        user: The step that enters it, for the message.

    Raises:
        WorkflowRuntimeError: On entering: the limiter is in use in another loop.
    """

    __slots__ = ("_limiter", "_place", "_use", "_user")

    def __init__(self, limiter: Any, place: Any, user: str) -> None:
        self._limiter = limiter
        self._place = place
        self._user = user
        self._use: _Use | None = None

    async def __aenter__(self) -> Any:
        self._use = self._claim(current_backend().current_loop())
        try:
            return await self._place.__aenter__()
        except BaseException:
            self._release()
            raise

    async def __aexit__(self, *exception: object) -> Any:
        try:
            return await self._place.__aexit__(*exception)  # noqa: ASYNC102 - as the limiter has it
        finally:
            self._release()

    def _claim(self, loop: Any) -> _Use:
        with _counting:
            use = _uses.get(self._limiter)
            if use is None or use.loop() is None or (use.loop() is not loop and not use.count):
                use = _uses[self._limiter] = _Use(loop)
            if use.loop() is loop:
                use.count += 1
                return use
        name = type(self._limiter).__name__
        msg = (
            f"the limiter of the step {self._user} is in use by the event loop in the thread "
            f"{use.thread!r}, and a {name} serves one event loop at a time: it would never wake "
            "the steps of another; expected one for each event loop, or a RateLimiter, which "
            "counts in each loop by itself"
        )
        raise WorkflowRuntimeError(msg)

    def _release(self) -> None:
        use, self._use = self._use, None
        if use is not None:
            with _counting:
                use.count -= 1


def leaves_nothing(limiter: object) -> bool:
    """Whether those who have entered a limiter hold nothing that others wait for."""
    return getattr(limiter, "holds_nothing", False) or isinstance(limiter, RateLimiter)


def serves_one_loop(limiter: object) -> bool:
    """Whether a limiter is one of Trio, AnyIO or asyncio, which know nothing of other threads."""
    return type(limiter).__module__.partition(".")[0] in ("trio", "anyio", "asyncio")


def _is_positive(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value <= sys.float_info.max  # not nan, not inf, and no int that is too large
