"""The backend for Trio: Trio's own calls, without a layer between."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from sluicegate._loop.seam import capture, capture_async, release


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Mapping
    from contextvars import Context, ContextVar


_open_channel = trio.open_memory_channel[Any]


class TrioInbox:
    """Both ends of a Trio memory channel."""

    __slots__ = ("_receive", "put", "take")

    def __init__(self) -> None:
        send, self._receive = _open_channel(inf)
        self.put = send.send_nowait
        self.take = self._receive.receive_nowait

    def close(self) -> None:
        self._receive.close()


class TrioWaiter:
    """Park and wake one task."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    def _abort(self, _raise_cancel: object) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    @enable_ki_protection
    def wait(self, task: trio.lowlevel.Task | None = None, /) -> Awaitable[None]:
        self._task = task or current_task()
        # One coroutine less to step through.
        return wait_task_rescheduled(self._abort)  # noqa: ASYNC105 - the caller awaits it at once

    @enable_ki_protection
    def wake(self) -> None:
        task = self._task
        if task is not None:
            self._task = None
            reschedule(task)


#: Real seconds for which a mock clock waits for a thread before it jumps.
PATIENCE = 0.2


class _Hold:
    """The holds on a mock clock, and the threshold that it had before."""

    def __init__(self, threshold: float) -> None:
        self._before = self._set = threshold
        self.seconds: list[float] = []

    def apply(self, clock: Any) -> None:
        if clock.autojump_threshold != self._set:
            self._before = clock.autojump_threshold  # the program has set it meanwhile
        self._set = clock.autojump_threshold = max(self._before, *self.seconds, 0)


_holds: WeakKeyDictionary[Any, _Hold] = WeakKeyDictionary()


class _AtEnd(trio.abc.Instrument):
    """Calls a function when the event loop has ended. A task for that would show in its tree."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def after_run(self) -> None:
        self._function()


class TrioBackend:
    """See :class:`sluicegate._loop.seam.Backend`."""

    name = "trio"
    runs_steps_in_host = True
    shields_from_all = True
    awaits_in_host = True
    Cancelled: type[BaseException] = trio.Cancelled
    EndOfChannel: type[Exception] = trio.EndOfChannel
    ClosedResourceError: type[Exception] = trio.ClosedResourceError
    BusyResourceError: type[Exception] = trio.BusyResourceError
    WouldBlock: type[Exception] = trio.WouldBlock

    @staticmethod
    def run_in_new_loop(function: Callable[[], Awaitable[Any]], options: dict[str, Any], /) -> Any:
        return trio.run(function, **options)

    open_nursery = staticmethod(trio.open_nursery)
    open_owner = staticmethod(trio.open_nursery)

    @staticmethod
    def open_lasting_owner() -> None:
        return None  # in Trio each task has a parent that waits for it

    cancel_scope = staticmethod(trio.CancelScope)
    checkpoint = staticmethod(checkpoint)
    checkpoint_if_cancelled = staticmethod(checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(cancel_shielded_checkpoint)
    current_effective_deadline = staticmethod(trio.current_effective_deadline)
    current_time = staticmethod(trio.current_time)
    current_task = staticmethod(current_task)
    open_inbox = TrioInbox
    waiter = TrioWaiter
    event = trio.Event
    sleep = staticmethod(trio.sleep)

    @staticmethod
    def cancel(scope: trio.CancelScope, reason: str) -> None:
        scope.cancel(reason=reason)

    @staticmethod
    def have_own_tasks(
        owners: Mapping[trio.lowlevel.Task, object],
        _variable: ContextVar[Any],
        nursery: trio.Nursery,
        engine: Container[Any],
        /,
    ) -> bool:
        # The nurseries of a task are listed in order of opening; the run's may be one of them.
        for task in owners:
            opened = task.child_nurseries
            if nursery in opened:
                opened = opened[opened.index(nursery) + 1 :]
            if any(each not in engine for each in opened):
                return True
        return False

    current_loop = staticmethod(trio.lowlevel.current_trio_token)

    @staticmethod
    def caller_into(loop: trio.lowlevel.TrioToken, /) -> Callable[[Callable[[], object]], object]:
        return loop.run_sync_soon

    @staticmethod
    def is_cancelled() -> bool:
        return trio.current_effective_deadline() == -inf

    @staticmethod
    def is_cancelled_around(nursery: Any) -> bool:
        # Trio's public function covers only the current task, which may be inside other scopes.
        return bool(nursery._cancel_status.effectively_cancelled)

    @staticmethod
    def is_natively_cancelled() -> bool:
        return False

    @staticmethod
    def is_in_task(task: object) -> bool:
        try:
            return current_task() is task
        except RuntimeError:  # the event loop has ended
            return False

    @staticmethod
    def rename_task(task: trio.lowlevel.Task, name: str) -> None:
        task.name = name

    @staticmethod
    def task_name(task: trio.lowlevel.Task) -> str:
        return task.name

    @staticmethod
    def living_tasks(_loop: object, task: trio.lowlevel.Task, /) -> list[trio.lowlevel.Task]:
        main = task
        # The first task of all is Trio's; the parent of the program's and of Trio's others.
        while (nursery := main.parent_nursery) and nursery.parent_task.parent_nursery:
            main = nursery.parent_task
        tasks = [main]
        for one in tasks:
            tasks += [child for nursery in one.child_nurseries for child in nursery.child_tasks]
        return tasks

    @staticmethod
    def coroutine_of(task: trio.lowlevel.Task, /) -> Any:
        return task.coro

    @staticmethod
    def variables_of(task: trio.lowlevel.Task, /) -> Context:
        return task.context

    @staticmethod
    def time_of(_loop: object, task: Any, /) -> float:
        # The public function works in the loop's own thread only.
        return float(task._runner.clock.current_time())

    @staticmethod
    async def run_in_thread(function: Callable[[], Any], /, *, abandon_on_cancel: bool) -> Any:
        name = current_task().name
        free = trio.CapacityLimiter(1)  # the default limiter is left to the program
        return release(
            await trio.to_thread.run_sync(
                capture,
                function,
                abandon_on_cancel=abandon_on_cancel,
                limiter=free,
                thread_name=name,
            )
        )

    @staticmethod
    def hold_clock(seconds: float | None = None, /) -> None:
        clock: Any = trio.lowlevel.current_clock()
        if not hasattr(clock, "autojump_threshold"):
            return
        threshold = clock.autojump_threshold
        seconds = PATIENCE if seconds is None else seconds
        hold = _holds.get(clock)
        if hold is None:
            if threshold >= seconds:
                return
            hold = _holds[clock] = _Hold(threshold)
        hold.seconds.append(seconds)
        hold.apply(clock)

    @staticmethod
    def release_clock(seconds: float | None = None, /) -> None:
        clock: Any = trio.lowlevel.current_clock()
        if not hasattr(clock, "autojump_threshold"):
            return
        seconds = PATIENCE if seconds is None else seconds
        hold = _holds.get(clock)
        if hold is None or seconds not in hold.seconds:
            return
        hold.seconds.remove(seconds)
        hold.apply(clock)
        if not hold.seconds:
            del _holds[clock]

    @staticmethod
    def call_in_loop(function: Callable[[], Any], /) -> Any:
        return release(trio.from_thread.run_sync(capture, function))

    @staticmethod
    def await_in_loop(async_function: Callable[[], Awaitable[Any]], /) -> Any:
        return release(trio.from_thread.run(capture_async, async_function))

    check_cancelled = staticmethod(trio.from_thread.check_cancelled)
    wait_readable = staticmethod(trio.lowlevel.wait_readable)
    wait_writable = staticmethod(trio.lowlevel.wait_writable)

    @staticmethod
    async def call_at_end(function: Callable[[], object], /) -> None:  # noqa: ASYNC910 - of no use
        trio.lowlevel.add_instrument(_AtEnd(function))
