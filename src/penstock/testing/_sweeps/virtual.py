"""Virtual time: event loops whose clock jumps to the next timer as soon as nothing can run."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import selectors
import threading
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, cast

import trio

from penstock.testing._sweeps.frames import waits_for_thread


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from concurrent.futures import Executor
    from contextvars import Context

    from trio.testing import MockClock


T = TypeVarTuple("T")
R = TypeVar("R")

#: For how many real seconds time stands still while a thread works; it may wait for us, after all.
PATIENCE: Final = 0.2

#: What the callbacks are called that make a step of a task.
_STEPS: Final = {None, "task_wakeup", "__step", "__wakeup"}

#: How many turns a loop may take in which no time passes before its clock moves on a little.
BUSY_TURNS: Final = 1000


# -- Trio -----------------------------------------------------------------------------------------


class _InOrder(random.Random):
    """Leaves a batch of tasks in the order in which they were spawned; Trio takes the last first."""

    def shuffle(self, x: Any) -> None:
        x.reverse()


@contextmanager
def seeded_trio(seed: int) -> Generator[None]:
    """Have Trio choose among runnable tasks by a seed, in every run that begins in this block.

    This is the one place that knows Trio's private switch for deterministic scheduling: the flag
    and the generator of ``trio._core._run``, which pytest-trio and Hypothesis set as well. They
    are put back at the end. Seed 0 runs tasks in the order in which they were spawned.

    Raises:
        RuntimeError: This Trio has no such switch.
    """
    run: Any = cast("Any", trio)._core._run
    try:
        saved = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r
    except AttributeError:
        msg = (
            f"trio {trio.__version__} has no trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING, by "
            "which penstock.testing repeats a schedule; expected a Trio from 0.32 on that has it"
        )
        raise RuntimeError(msg) from None
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r = random.Random(seed) if seed else _InOrder()  # noqa: S311 - it is to repeat
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING, run._r = saved


def mock_clock() -> MockClock:
    """Return a mock clock that jumps as soon as nothing can run."""
    from trio.testing import MockClock  # noqa: PLC0415 - it imports pytest, where there is one

    return MockClock(autojump_threshold=0)


class PatientClock(trio.abc.Instrument):
    """Keeps a mock clock from jumping while a task waits for a thread.

    Args:
        clock: The clock of the run that this instrument is in.
    """

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        self._waiting: set[trio.lowlevel.Task] = set()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task goes on; what it waited for is there."""
        if task in self._waiting:
            self._waiting.discard(task)
            if not self._waiting:
                self._clock.autojump_threshold = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task waits, for a thread perhaps."""
        if waits_for_thread(task.coro):
            self._waiting.add(task)
            self._clock.autojump_threshold = PATIENCE


# -- asyncio --------------------------------------------------------------------------------------


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
            if loop._is_waiting_for_thread():
                found = super().select(PATIENCE)
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
    sockets and processes are not waited for. Serves as a ``loop_factory``, for ``asyncio.Runner``
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


# -- both -----------------------------------------------------------------------------------------


def refuse_running_loop(call: str) -> None:
    """Refuse to start an event loop inside one.

    Raises:
        RuntimeError: One runs in this thread.
    """
    is_running = trio.lowlevel.in_trio_run()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        is_running = True
    if is_running:
        msg = (
            f"{call}() was called inside a running event loop; it starts event loops of its own: "
            f"expected it in a plain function, def test_it(): {call}(...)"
        )
        raise RuntimeError(msg)


def run_virtually(
    async_fn: Callable[[*T], Awaitable[Any]],
    *args: *T,
    backend: str = "trio",
    seed: int | None = None,
) -> Any:
    """Run an async function in an event loop of its own, with virtual time.

    Sleeps and timeouts take no time: the clock jumps as soon as nothing can run. While a thread
    works it stands still, for 0.2 real seconds at most. What else comes from outside, from a
    process or another host, is waited for only where no timer is set: a timeout comes before it.

    Args:
        async_fn: The function.
        *args: Its arguments.
        backend: ``"trio"``, or ``"asyncio"`` (through AnyIO).
        seed: The schedule; the same seed makes the same choices among tasks that could run. None
            leaves them to the event loop; 0 takes tasks in the order of their start.

    Returns:
        What the function returns.

    Raises:
        Exception: What the function raises.
        RuntimeError: An event loop runs already in this thread.
        ValueError: There is no such backend.
    """
    refuse_running_loop("run_virtually")
    if backend == "trio":
        clock = mock_clock()
        instruments = [PatientClock(clock)]
        if seed is None:
            return trio.run(async_fn, *args, clock=clock, instruments=instruments)
        with seeded_trio(seed):
            return trio.run(async_fn, *args, clock=clock, instruments=instruments)
    if backend != "asyncio":
        msg = f"backend={backend!r} is no event loop here; expected backend='trio' or 'asyncio'"
        raise ValueError(msg)
    import anyio  # noqa: PLC0415 - not everybody needs it

    return anyio.run(
        async_fn,
        *args,
        backend="asyncio",
        backend_options={"loop_factory": lambda: VirtualLoop(seed or 0)},
    )


def jump_clock(seconds: float) -> None:
    """Let virtual time pass while nothing else happens, as in a call that blocks.

    Args:
        seconds: How much.

    Raises:
        RuntimeError: The running event loop has no virtual time, or none runs.
    """
    loop: object = None
    if trio.lowlevel.in_trio_run():
        loop = trio.lowlevel.current_clock()
    else:
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
    if not hasattr(loop, "jump"):
        msg = (
            "jump_clock() was called where time is real; expected it under virtual time: "
            "run_virtually(function), or a loop_factory=VirtualLoop"
        )
        raise RuntimeError(msg)
    cast("VirtualLoop", loop).jump(seconds)
