"""Virtual time on asyncio: a loop whose clock jumps to the next timer when nothing can run."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import selectors
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, cast

from sluicegate.testing._sweeps.frames import waits_for_thread
from sluicegate.testing._sweeps.trio_time import PATIENCE


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from contextvars import Context


T = TypeVarTuple("T")
R = TypeVar("R")

#: The names of the callbacks that make a step of a task.
_STEPS: Final = {None, "task_wakeup", "__step", "__wakeup"}

#: The turns of a loop without any time passing after which its clock advances a little.
BUSY_TURNS: Final = 1000


class _Selector(selectors.DefaultSelector):
    """Makes the clock jump where the event loop would sleep."""

    loop: VirtualLoop

    def __init__(self) -> None:
        super().__init__()
        self._busy = 0
        self._was_retrying = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self.loop
        loop._round_begins()
        found = super().select(0)
        if found:
            self._busy = 0
        elif loop._ready or timeout == 0:
            self._tick(loop)
        else:
            self._busy = 0
            if not loop._has_timer():
                return super().select(None)
            patience = max(loop._sluicegate_holds, default=0.0)
            if loop._is_waiting_for_thread():
                patience = max(patience, PATIENCE)
            if patience:
                found = super().select(None if patience == math.inf else patience)
            if not found:
                loop._jump_to_next_timer()
        return found

    def _tick(self, loop: VirtualLoop) -> None:
        # AnyIO redelivers a cancellation in every turn while a part of the scope is shielded.
        # When nothing else is left to run, only a timer can end that.
        is_retrying = loop._is_only_retrying()
        self._busy += 1
        if is_retrying and self._was_retrying and not loop._is_waiting_for_thread():
            loop._jump_to_next_timer()
        elif self._busy % BUSY_TURNS == 0:
            loop.jump(0.25)
        self._was_retrying = is_retrying


class _Ready(deque[asyncio.Handle]):
    """The ready queue of a loop; it calls the loop before each callback."""

    loop: VirtualLoop
    #: The number of callbacks that had been ordered when the last one was taken.
    known = 0

    def popleft(self) -> asyncio.Handle:
        self.loop._next_handle(self)
        handle = super().popleft()
        self.known = len(self)
        return handle

    def order_cancelled(self, first: int) -> None:
        """Order the tasks that AnyIO has just cancelled by their creation.

        AnyIO keeps tasks and scopes in sets, whose order differs between runs.

        Args:
            first: The index of the first callback to order.
        """
        if len(self) < first + 2:
            return
        found: dict[int, tuple[int, asyncio.Handle]] = {}
        for n in range(first, len(self)):
            task: Any = task_of(self[n])
            waits_for = None if task is None else task._fut_waiter
            if "cancel scope" in str(getattr(waits_for, "_cancel_message", None)):
                found[n] = getattr(task, "number", n), self[n]
        in_order = sorted(found.values(), key=lambda entry: entry[0])
        for n, (_, handle) in zip(found, in_order, strict=True):
            self[n] = handle


class _Timer(asyncio.TimerHandle):
    """A timer. Timers that are due at the same time run in the order in which they were set."""

    __slots__ = ("number",)

    number: int

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        assert isinstance(other, _Timer)
        return (self.when(), self.number) < (other.when(), other.number)


class NumberedTask(asyncio.Task[Any]):
    """A task that hashes by its number in its loop, which gives sets of tasks a fixed order.

    ``asyncio.TaskGroup``, for example, cancels its tasks by iterating over a set.
    """

    def __init__(self, coro: Any, *, loop: VirtualLoop, **options: Any) -> None:
        self.number = next(loop._numbers)
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with virtual time and a schedule that depends on a seed.

    The clock begins at 0 and jumps to the next timer when nothing can run, so an hour's sleep takes
    no time. It pauses while a thread works (for at most 0.2 real seconds), and while a step of a
    workflow computes in a process. It does not wait for other processes or for sockets. Use it as
    a ``loop_factory``, for ``asyncio.Runner`` and for AnyIO's pytest plugin:
    ``("asyncio", {"loop_factory": VirtualLoop})``.

    Args:
        seed: Decides the order of the tasks that can run in one turn. 0 keeps asyncio's order,
            first in, first out. Plain callbacks keep their places, as asyncio promises.
    """

    _selector: _Selector
    _ready: _Ready
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, seed: int = 0) -> None:
        self._now = 0.0
        self._random = random.Random(seed) if seed else None  # noqa: S311 - reproducible
        self._executing = 0
        #: The real seconds for which steps in processes hold the clock; see AsyncioBackend.
        self._sluicegate_holds: list[float] = []
        self._is_new_round = False
        self._numbers = itertools.count()
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        # The only place that relies on asyncio's ready queue: BaseEventLoop._run_once takes the
        # handles of a turn one by one with ``self._ready.popleft()``.
        ready = _Ready(self._ready)
        ready.loop = self
        self._ready = ready

    def time(self) -> float:
        """Return the virtual time, in seconds since the loop was created."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Advance the clock while nothing else happens, as a blocking call would.

        Args:
            seconds: The number of virtual seconds.

        Raises:
            ValueError: The number is negative.
        """
        if seconds < 0:
            msg = f"jump({seconds!r}) would go back in time; expected seconds from 0 on: jump(60)"
            raise ValueError(msg)
        self._now += seconds
        # The loop runs timers due within this resolution; large times have large float gaps.
        self._clock_resolution = max(1e-9, 2 * math.ulp(self._now))

    def _has_timer(self) -> bool:
        """Whether a timer is set for a finite time."""
        return bool(self._scheduled) and self._scheduled[0].when() < math.inf

    def _jump_to_next_timer(self) -> None:
        """Advance the clock to the first timer."""
        if self._has_timer():
            self.jump(max(0.0, self._scheduled[0].when() - self._now))
            self._now = max(self._now, self._scheduled[0].when())

    def call_at(
        self,
        when: float,
        callback: Callable[[*T], object],
        *args: *T,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See the parent."""
        self._check_closed()  # type: ignore[attr-defined]
        timer = _Timer(when, callback, args, self, context)
        timer.number = next(self._numbers)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """See the parent."""
        factory = self.get_task_factory()
        if factory is not None and factory is getattr(asyncio, "eager_task_factory", None):
            return NumberedTask(coro, loop=self, eager_start=True, **options)
        if factory is not None:
            return super().create_task(coro, **options)
        return NumberedTask(coro, loop=self, **options)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*T], R], *args: *T
    ) -> asyncio.Future[R]:
        """See the parent. The clock pauses until the call returns."""
        future = super().run_in_executor(executor, func, *args)
        self._executing += 1
        future.add_done_callback(self._executed)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109, ARG002
        """See the parent. The timeout is ignored, because in virtual time it would end at once."""
        await super().shutdown_default_executor()

    def _executed(self, _future: object) -> None:
        self._executing -= 1

    def _is_waiting_for_thread(self) -> bool:
        """Whether a task waits for a working thread."""
        if self._executing:
            return True
        if any(thread not in cast("Any", thread).idle_workers for thread in workers_of(self)):
            return True
        return any(waits_for_thread(task.get_coro()) for task in asyncio.all_tasks(self))

    def _is_only_retrying(self) -> bool:
        """Whether only AnyIO's redeliveries of a cancellation are left to run."""
        return all(
            handle.cancelled()
            or getattr(handle._callback, "__name__", "") == "_deliver_cancellation"  # type: ignore[attr-defined]
            for handle in self._ready
        )

    def _round_begins(self) -> None:
        """Called once a turn, before the turn's callbacks are known."""
        self._is_new_round = True
        self._ready.order_cancelled(self._ready.known)
        self._ready.known = len(self._ready)

    def _next_handle(self, ready: _Ready) -> None:
        """Called before each callback; the first of ``ready`` runs next."""
        if self._is_new_round:
            self._is_new_round = False
            if self._random is not None and len(ready) > 1:
                self._shuffle(ready, self._random)
        else:
            ready.order_cancelled(ready.known)

    def _shuffle(self, ready: _Ready, chance: random.Random) -> None:
        handles = list(ready)
        places = [n for n, handle in enumerate(handles) if task_of(handle) is not None]
        shuffled = places.copy()
        chance.shuffle(shuffled)
        ready.clear()
        taken = dict(zip(places, shuffled, strict=True))
        ready.extend(handles[taken.get(n, n)] for n in range(len(handles)))


def workers_of(loop: asyncio.AbstractEventLoop) -> list[threading.Thread]:
    """Return AnyIO's worker threads of a loop, busy and idle."""
    return [
        thread
        for thread in threading.enumerate()
        if type(thread).__name__ == "WorkerThread" and getattr(thread, "loop", None) is loop
    ]


def task_of(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    """Return the task of which a callback makes a step; None if it makes none."""
    callback: Any = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    # The C implementation's step has no name; other methods of a task are plain callbacks.
    if not isinstance(owner, asyncio.Task) or getattr(callback, "__name__", None) not in _STEPS:
        return None
    return cast("asyncio.Task[Any]", owner)


def shielded_deadlines(loop: asyncio.AbstractEventLoop) -> Iterator[float]:
    """Yield the deadlines of AnyIO's scopes that are shielded, or inside of one that is.

    The only place that knows how AnyIO keeps its deadlines: each is a timer of the loop.
    """
    timers: Any = getattr(loop, "_scheduled", ())
    for timer in timers:
        scope: Any = getattr(timer._callback, "__self__", None)
        if timer.cancelled() or type(scope).__name__ != "CancelScope":
            continue
        outer = scope
        while outer is not None:
            if outer.shield:
                yield scope.deadline
                break
            outer = outer._parent_scope
