"""Limits shared by runs: a rate of entries, and a number of concurrent runs."""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final
from weakref import WeakKeyDictionary, ref

from sluicegate._annotations import is_count
from sluicegate._errors import WorkflowRuntimeError, WorkflowValidationError
from sluicegate._loop import Backend, Waiter, current_backend, enable_ki_protection, is_current_loop


if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: The maximal number of threads of steps in an event loop, unless a workflow sets another.
MAX_THREADS = 1_000


class PerLoop(Generic[T]):
    """One object for each event loop, made on first use there and dropped with the loop.

    The key is the loop object, not an id that a later loop may reuse: the state of a loop that has
    ended can be neither seen nor changed from the next one.
    """

    __slots__ = ("_make", "_things")

    def __init__(self, make: Callable[[WaitQueue], T]) -> None:
        self._make = make
        self._things: WeakKeyDictionary[Any, T] = WeakKeyDictionary()

    def here(self, backend: Backend) -> T:
        """Return the object of the running loop, which no other thread uses."""
        loop = backend.current_loop()
        thing = self._things.get(loop)
        if thing is None:
            thing = self._things[loop] = self._make(WaitQueue(ref(loop)))
        return thing

    def on(self, loop: object) -> T | None:
        """Return the thing of a loop; None if there is none yet."""
        return self._things.get(loop)


class WaitQueue:
    """Waiting tasks in order of arrival; only the first may proceed.

    No task hands a place to another: a task that is woken checks that it is first and that there
    is room, and takes the place itself. So a task that is cancelled just after it was woken has
    taken nothing, and only has to wake the next one when it leaves the queue.
    """

    __slots__ = ("_places", "loop")

    def __init__(self, loop: ref[Any]) -> None:
        self.loop: ref[Any] = loop
        # Not a dict: one that loses its first key again and again is searched from the start.
        self._places: OrderedDict[Waiter, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def join(self, place: Waiter) -> None:
        self._places[place] = None

    def is_first(self, place: Waiter) -> bool:
        return next(iter(self._places)) is place

    def quit(self, place: Waiter, *, is_room: bool) -> None:
        """Leave the queue; wake the task that becomes the first, if there is room for it."""
        was_first = self.is_first(place)
        del self._places[place]
        if was_first and is_room:
            self.wake_first()

    def wake_first(self) -> None:
        # In another loop, which closes the coroutines of an abandoned one, no task may be woken.
        if self._places and is_current_loop(self.loop()):
            next(iter(self._places)).wake()


@final
class RateLimiter:
    """At most so many entries in so many seconds, for any number of tasks, runs and workflows.

    ::

        limiter = RateLimiter(10)  # of a module, shared by several workflows


        class Asks(Workflow):
            @step(num_workers=50, limiter=limiter)
            async def ask(self, ev: Question) -> Answer:
                return await call_a_model(ev)

    It is a token bucket. Each entry takes a token; a token is added every ``per / rate`` seconds,
    and the bucket holds ``burst`` tokens. With a ``burst`` of 1 entries are evenly spaced, and no
    period of ``per`` seconds has more than ``rate + burst`` of them. It limits how often a block
    is entered, not how many tasks are inside: leaving the block returns no token and is not a
    checkpoint. Tasks enter in order of arrival.

    An entry may take another amount than 1, such as the tokens of a request to a model, and correct
    it when the actual amount is known::

        tokens = RateLimiter(90_000, per=60, burst=90_000)  # a minute

        async with tokens(estimate) as entry:
            response = await llm.achat(messages)
            entry.correct(response.usage.total_tokens)

    Time is the event loop's clock, so a mock clock drives it. A limiter may be made outside any
    event loop and used in one after another. Each event loop has a separate, full bucket: two
    loops in two threads are limited separately, and together enter twice as often.

    Args:
        rate: The number of entries in ``per`` seconds; any number above 0.
        per: The period in seconds.
        burst: The number of entries that may follow each other at once after a pause, and the
            largest amount of an entry.

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

    def __call__(self, amount: float) -> RateLimiterPortion:
        """Return a limiter whose entries take an amount instead of one token.

        ::

            async with tokens(1_200) as entry: ...

            @step(limiter=tokens(500))

        Args:
            amount: The number of tokens, from 0 to ``burst``. Entering waits until the bucket has
                so many. No later and smaller entry overtakes it.

        Returns:
            An async context manager; any number of tasks may enter it at once.

        Raises:
            ValueError: The amount is not such a number.
        """
        self._check(amount)
        return RateLimiterPortion(self, amount)

    async def acquire(self, amount: float = 1) -> None:
        """Wait for a token, or another amount, and take it.

        A checkpoint, even if enough tokens are available. Cancelled, it has taken no token and has
        left the queue; the next task is not delayed. May be called from any number of tasks.

        Args:
            amount: The number of tokens, from 0 to ``burst``.

        Raises:
            RuntimeError: There is no event loop.
            ValueError: The amount is not such a number.
        """
        if amount != 1:
            self._check(amount)
        backend = current_backend()
        await self._buckets.here(backend).take(backend, amount)

    async def __aenter__(self) -> None:
        """Wait for a token and take it; see :meth:`acquire`."""
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: the token is spent. Not a checkpoint."""

    def waiting_on(self, loop: object) -> int:
        """Return how many tasks of an event loop wait for a token."""
        bucket = self._buckets.on(loop)
        return 0 if bucket is None else bucket.waiting

    def _check(self, amount: object) -> None:
        if not _is_amount(amount):
            msg = (
                f"the amount for {self!r} is {amount!r}; expected a number of at least 0: "
                "`async with limiter(1_200):`"
            )
            raise ValueError(msg)
        if cast("float", amount) > self._burst:
            most = math.ceil(cast("float", amount))
            msg = (
                f"the amount {amount!r} is above the burst of {self!r}, so it would wait for ever; "
                f"expected at most {self._burst}, or "
                f"`RateLimiter({self._rate}, per={self._per}, burst={most})`"
            )
            raise ValueError(msg)

    def _fill_bucket(self, queue: WaitQueue) -> _Bucket:
        return _Bucket(queue, self._per / self._rate, self._burst)


@final
class RateLimiterPortion:
    """A :class:`RateLimiter` whose entries take an amount: ``async with limiter(1_200) as entry:``.

    Entering is a checkpoint, as :meth:`RateLimiter.acquire`; leaving does nothing. Any number of
    tasks may enter it at once.
    """

    #: Tasks that have entered hold nothing that other tasks wait for.
    holds_nothing: bool = True

    __slots__ = ("_amount", "limiter")

    def __init__(self, limiter: RateLimiter, amount: float) -> None:
        self.limiter: RateLimiter = limiter
        self._amount = amount

    def __repr__(self) -> str:
        return f"{self.limiter!r}({self._amount!r})"

    async def __aenter__(self) -> RateLimiterEntry:
        """Wait for the amount and take it.

        Returns:
            The entry, which can correct the amount.

        Raises:
            RuntimeError: There is no event loop.
        """
        await self.limiter.acquire(self._amount)
        buckets = self.limiter._buckets
        return RateLimiterEntry(buckets.here(current_backend()), self._amount)

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: the amount is spent. Not a checkpoint."""


@final
class RateLimiterEntry:
    """An entry into a :class:`RateLimiter`, from ``async with limiter(amount) as entry:``."""

    __slots__ = ("_amount", "_bucket")

    def __init__(self, bucket: _Bucket, amount: float) -> None:
        self._bucket = bucket
        self._amount = amount

    def __repr__(self) -> str:
        return f"<RateLimiterEntry of {self._amount!r}>"

    @property
    def amount(self) -> float:
        """The tokens that the entry has taken, as last corrected."""
        return self._amount

    def correct(self, actual: float) -> None:
        """Replace the amount of the entry by the actual one, as often as it changes.

        An excess returns to the bucket at once, as far as there is room. A shortfall is owed: later
        entries wait until it has been refilled. So the actual amount may be above ``burst``. Not a checkpoint; also works after the block.

        Args:
            actual: The number of tokens, at least 0.

        Raises:
            ValueError: It is not such a number.
            RuntimeError: The caller is not in the event loop of the entry.
        """
        if not _is_amount(actual):
            msg = (
                f"the actual amount is {actual!r}; expected a number of at least 0: "
                "`entry.correct(response.usage.total_tokens)`"
            )
            raise ValueError(msg)
        self._bucket.correct(actual - self._amount)
        self._amount = actual


class _Bucket:
    """The tokens of a limiter in one event loop.

    No timer fills the bucket. It stores when it was last full and how many tokens were taken
    since. Times are multiples of the interval from there, so rounding errors do not add up.
    """

    __slots__ = ("_burst", "_full_at", "_interval", "_queue", "_taken")

    def __init__(self, queue: WaitQueue, interval: float, burst: int) -> None:
        self._queue = queue
        self._interval = interval
        self._burst = burst
        self._full_at = -math.inf
        self._taken: float = 0

    @property
    def waiting(self) -> int:
        """How many tasks wait for a token."""
        return len(self._queue)

    @enable_ki_protection
    async def take(self, backend: Backend, amount: float) -> None:
        place = backend.waiter()
        self._queue.join(place)
        try:
            # It is queued before the checkpoint, so that tasks that arrive meanwhile come after
            # it. No await follows the taking of the tokens, so they cannot be lost.
            await backend.checkpoint()
            while (ready_at := self._next_at(place, amount, backend.current_time())) is not None:
                await _sleep(backend, place, ready_at)
            self._taken += amount
        finally:
            self._queue.quit(place, is_room=True)  # or it waits for the next token itself

    def _next_at(self, place: Waiter, amount: float, now: float) -> float | None:
        """Return when to check again, or None if ``place`` may take ``amount`` now."""
        if not self._queue.is_first(place):
            return math.inf
        self._refill(now)
        ready_at = self._full_at + (self._taken + amount - self._burst) * self._interval
        return None if now >= ready_at else ready_at

    def _refill(self, now: float) -> None:
        """Begin anew if the bucket is full."""
        if now >= self._full_at + self._taken * self._interval:
            self._full_at, self._taken = now, 0

    @enable_ki_protection
    def correct(self, more: float) -> None:
        """Take so many tokens more, or return them; the first in the queue then checks again."""
        if not is_current_loop(self._queue.loop()):
            msg = (
                "an entry of a RateLimiter was corrected outside of its event loop; expected a "
                "call in a task of the loop, from a thread "
                "`ctx.from_thread.run_sync(entry.correct, actual)`"
            )
            raise RuntimeError(msg)
        now = current_backend().current_time()
        self._refill(now)  # or tokens that came in while it was full would count
        self._taken += more
        self._refill(now)
        if more < 0:
            self._queue.wake_first()


async def _sleep(backend: Backend, place: Waiter, until: float) -> None:
    """Sleep until a time or until woken, whichever comes first."""
    if until == math.inf:
        await place.wait()
        return
    cancelled_before = backend.is_natively_cancelled()
    with backend.cancel_scope(deadline=until) as scope:
        await place.wait()
    # Older AnyIO absorbs a native cancellation that arrives in the same turn as the scope's own.
    if scope.cancelled_caught and not cancelled_before and backend.is_natively_cancelled():
        raise backend.Cancelled


@final
class ConcurrencyLimit:
    """Admits at most ``limit`` concurrent runs of a workflow, in order of arrival.

    It may be made outside any event loop and used in any. Each event loop counts separately: two
    loops in two threads admit ``limit`` runs each. A loop that ended, or was abandoned, with
    active runs does not reduce the limit of the next.

    Args:
        limit: The maximal number of concurrent runs.

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
        """Take a slot, after all earlier callers have taken one or given up.

        A checkpoint only if it has to wait. Cancelled, it holds no slot and has left the queue.
        No checkpoint follows the taking of the slot.

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
    """The slots of a limit in one event loop, and the runs that wait for one.

    A slot is released on this object, not on the limit: the coroutine of an abandoned loop is
    closed when it is garbage-collected, and must not release a slot of the loop that runs then.

    Attributes:
        limit: How many slots there are.
        inside: How many slots are taken.
        idle: The runs with a slot that wait for an event from outside.
        queued: For each waiting run, the function to call when :attr:`is_idle` changes.
    """

    __slots__ = ("_queue", "_was_idle", "idle", "inside", "limit", "queued")

    def __init__(self, queue: WaitQueue, limit: int) -> None:
        self._queue = queue
        self.limit = limit
        self.inside = 0
        self.idle: set[object] = set()
        self.queued: dict[object, Callable[[], None]] = {}
        self._was_idle = False

    @property
    def is_idle(self) -> bool:
        """Whether all runs with a slot wait for an event from outside."""
        return 0 < self.inside == len(self.idle)

    def note(self, guest: object, *, is_idle: bool) -> None:
        """Note whether a run with a slot is idle, and notify the queued runs of a change."""
        if is_idle:
            self.idle.add(guest)
        else:
            self.idle.discard(guest)
        if self.is_idle is not self._was_idle:
            self._was_idle = not self._was_idle
            for notify in tuple(self.queued.values()):
                notify()

    def __repr__(self) -> str:
        return f"<LoopSlots: {self.inside} of {self.limit} taken, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many runs wait for a slot."""
        return len(self._queue)

    @enable_ki_protection
    async def acquire(self, backend: Backend) -> None:  # noqa: ASYNC910 - no checkpoint where there is room
        """See :meth:`ConcurrencyLimit.enter`."""
        queue = self._queue
        if self.inside < self.limit and not queue:
            self.inside += 1
            return  # noqa: ASYNC910
        place = backend.waiter()
        queue.join(place)
        try:
            while self.inside >= self.limit or not queue.is_first(place):
                await place.wait()
            self.inside += 1
        finally:
            queue.quit(place, is_room=self.inside < self.limit)

    @enable_ki_protection
    def release(self) -> None:
        """Free a slot. Never waits; may be called while the event loop unwinds.

        Raises:
            WorkflowRuntimeError: No slot is taken.
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
    """The event loop that uses a limiter, and how many of its tasks do."""

    __slots__ = ("count", "loop", "thread")

    def __init__(self, loop: Any) -> None:
        self.loop = ref(loop)
        self.thread = threading.current_thread().name
        self.count = 0


_uses: WeakKeyDictionary[Any, _Use] = WeakKeyDictionary()
_counting = threading.Lock()


@final
class SingleLoopLimiter:
    """Enters a limiter of Trio, AnyIO or asyncio, unless an event loop in another thread uses it.

    Such a limiter is not thread-safe: it would wake its waiters in the wrong loop, where they never
    run. Several loops may use it one after another.

    Args:
        limiter: The limiter.
        place: The context manager to enter: the limiter, or a place in it.
        user: The step that enters it, named in the message.

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
            return await self._place.__aexit__(*exception)  # noqa: ASYNC102 - as the limiter does it
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
            "counts in each loop separately"
        )
        raise WorkflowRuntimeError(msg)

    def _release(self) -> None:
        use, self._use = self._use, None
        if use is not None:
            with _counting:
                use.count -= 1


def leaves_nothing(limiter: object) -> bool:
    """Whether tasks that have entered a limiter hold nothing that other tasks wait for."""
    return getattr(limiter, "holds_nothing", False) or isinstance(limiter, RateLimiter)


def serves_one_loop(limiter: object) -> bool:
    """Whether a limiter belongs to Trio, AnyIO or asyncio, whose limiters are not thread-safe."""
    return type(limiter).__module__.partition(".")[0] in ("trio", "anyio", "asyncio")


def _is_amount(value: object) -> bool:
    return value == 0 if type(value) in (int, float) and not value else _is_positive(value)


def _is_positive(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value <= sys.float_info.max  # not nan, not inf, and no int that is too large
