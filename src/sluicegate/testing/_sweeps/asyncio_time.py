"""Virtual time on asyncio: a loop whose clock jumps to the next timer as soon as nothing can run."""

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
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextvars import Context


T = TypeVarTuple("T")
R = TypeVar("R")

#: What the callbacks are called that make a step of a task.
_STEPS: Final = {None, "task_wakeup", "__step", "__wakeup"}

#: How many turns a loop may take in which no time passes before its clock moves on a little.
BUSY_TURNS: Final = 1000


class _Selector(selectors.DefaultSelector):
    """Where the event loop would sleep, its clock jumps instead."""

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
        # AnyIO delivers a cancellation again at every turn for as long as it is shielded from
        # somewhere. When nothing else is left to run, only time can help.
        is_retrying = loop._is_only_retrying()
        self._busy += 1
        if is_retrying and self._was_retrying and not loop._is_waiting_for_thread():
            loop._jump_to_next_timer()
        elif self._busy % BUSY_TURNS == 0:
            loop.jump(0.25)
        self._was_retrying = is_retrying


class _Ready(deque[asyncio.Handle]):
    """The callbacks that a loop is to run; it asks the loop which comes next."""

    loop: VirtualLoop
    #: How many of them had been looked at when the last was taken.
    known = 0

    def popleft(self) -> asyncio.Handle:
        self.loop._next_handle(self)
        handle = super().popleft()
        self.known = len(self)
        return handle

    def order_cancelled(self, first: int) -> None:
        """Have those tasks that AnyIO has just cancelled go on in the order of their making.

        It keeps tasks and scopes in sets, whose order is another in each run.

        Args:
            first: Which callbacks are looked at: from this one on.
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
    """A timer; of several that are due at the same time the one that was set first runs first."""

    __slots__ = ("number",)

    number: int

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        assert isinstance(other, _Timer)
        return (self.when(), self.number) < (other.when(), other.number)


class NumberedTask(asyncio.Task[Any]):
    """A task that hashes by its number in its loop, so that a set of tasks has always one order.

    Those who cancel many tasks at once, as ``asyncio.TaskGroup`` does, go over a set.
    """

    def __init__(self, coro: Any, *, loop: VirtualLoop, **options: Any) -> None:
        self.number = next(loop._numbers)
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with virtual time, and with a schedule that a seed decides.

    Its clock begins at 0 and jumps to the next timer as soon as nothing can run, so an hour's
    sleep takes no time. While a thread works time stands still (for 0.2 real seconds at most);
    and while a step of a workflow computes in a process; other processes, and sockets, are not
    waited for. Serves as a ``loop_factory``, for ``asyncio.Runner``
    and for AnyIO's pytest plugin:
    ``("asyncio", {"loop_factory": VirtualLoop})``.

    Args:
        seed: Which tasks of those that could run in one turn come first. 0 keeps asyncio's own
            order, first in, first out. Plain callbacks keep their places, as asyncio promises it.
    """

    _selector: _Selector
    _ready: _Ready
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, seed: int = 0) -> None:
        self._now = 0.0
        self._random = random.Random(seed) if seed else None  # noqa: S311 - it is to repeat
        self._executing = 0
        #: Real seconds that steps in processes ask the clock to wait for; see AsyncioBackend.
        self._sluicegate_holds: list[float] = []
        self._is_new_round = False
        self._numbers = itertools.count()
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        # The one place that knows how asyncio keeps what is to run: BaseEventLoop._run_once takes
        # the handles of a turn one after the other with ``self._ready.popleft()``.
        ready = _Ready(self._ready)
        ready.loop = self
        self._ready = ready

    def time(self) -> float:
        """Return the virtual time, in seconds since the loop was made."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let time pass while nothing else happens, as in a call that blocks.

        Args:
            seconds: How much.

        Raises:
            ValueError: It is less than nothing.
        """
        if seconds < 0:
            msg = f"jump({seconds!r}) would go back in time; expected seconds from 0 on: jump(60)"
            raise ValueError(msg)
        self._now += seconds
        # The loop runs what is due by now and this much more; a large time has large gaps.
        self._clock_resolution = max(1e-9, 2 * math.ulp(self._now))

    def _has_timer(self) -> bool:
        """Whether a timer is set that will ever be due."""
        return bool(self._scheduled) and self._scheduled[0].when() < math.inf

    def _jump_to_next_timer(self) -> None:
        """Let time pass until the first timer is due."""
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
        """See the parent; time stands still until the call returns."""
        future = super().run_in_executor(executor, func, *args)
        self._executing += 1
        future.add_done_callback(self._executed)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109, ARG002
        """See the parent; the timeout that a runner gives would be over at once."""
        await super().shutdown_default_executor()

    def _executed(self, _future: object) -> None:
        self._executing -= 1

    def _is_waiting_for_thread(self) -> bool:
        """Whether a task waits for a thread that works."""
        if self._executing:
            return True
        if any(thread not in cast("Any", thread).idle_workers for thread in workers_of(self)):
            return True
        return any(waits_for_thread(task.get_coro()) for task in asyncio.all_tasks(self))

    def _is_only_retrying(self) -> bool:
        """Whether nothing is to run but AnyIO's further deliveries of a cancellation."""
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
        """Called before each callback; the first of ``ready`` is the one that will run."""
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
    """Return AnyIO's worker threads of a loop, the busy and the idle ones."""
    return [
        thread
        for thread in threading.enumerate()
        if type(thread).__name__ == "WorkerThread" and getattr(thread, "loop", None) is loop
    ]


def task_of(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    """Return the task that a callback of the loop makes a step of, if it does."""
    callback: Any = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    # A bare step has no name; a task's other methods, as its ``cancel``, are plain callbacks.
    if not isinstance(owner, asyncio.Task) or getattr(callback, "__name__", None) not in _STEPS:
        return None
    return cast("asyncio.Task[Any]", owner)
