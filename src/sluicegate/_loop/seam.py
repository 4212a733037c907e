"""The seam to the event loops as protocols, and what both backends use.

Nothing in this module imports a backend, so the backends import it without a circle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Mapping
    from contextlib import AbstractAsyncContextManager
    from contextvars import Context, ContextVar


class Nursery(Protocol):
    """The interface shared by Trio's nurseries and AnyIO's task groups.

    Their cancel scopes share ``deadline``, ``shield``, ``cancel_called`` and ``cancelled_caught``,
    with the same meaning.
    """

    @property
    def cancel_scope(self) -> Any: ...

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], /, *args: Any, name: object = None
    ) -> Any: ...


class Inbox(Protocol):
    """An unbounded memory channel; one object holds both ends."""

    def put(self, delivery: Any, /) -> None:
        """Append a delivery; never waits."""
        ...

    def take(self) -> Any:
        """Take the oldest delivery. The machine's state guarantees that there is one."""
        ...

    def close(self) -> None:
        """Close both ends and drop the remaining deliveries."""
        ...


class Waiter(Protocol):
    """Lets one task sleep until another wakes it.

    A wake-up carries no data: the woken task checks its condition again. So a wake-up that is lost
    to a cancellation loses nothing else.
    """

    def wait(self, task: Any = None, /) -> Awaitable[None]:
        """Sleep until :meth:`wake`. A checkpoint; cancelled, it leaves nothing behind.

        ``task`` is the current task, if the caller has just looked it up. The caller awaits the
        result at once.
        """
        ...

    def wake(self) -> None:
        """Wake the sleeping task, if any. May be called any number of times."""
        ...


class Backend(Protocol):
    """The operations an engine needs of an event loop."""

    name: str
    Cancelled: type[BaseException]
    EndOfChannel: type[Exception]
    ClosedResourceError: type[Exception]
    BusyResourceError: type[Exception]
    WouldBlock: type[Exception]
    #: Whether the host task of a run may also be its first worker. Under asyncio it may not,
    #: because a native ``Task.cancel()`` ignores the shields in the task that it hits. If it hits
    #: a task that only waits, it does not disturb the clean-up of the steps.
    runs_steps_in_host: bool
    #: Whether a shielded wait cannot be cancelled; ``Task.cancel()`` ignores AnyIO's shields.
    shields_from_all: bool
    #: Whether :meth:`await_in_loop` runs its function in the task that waits for the thread.
    awaits_in_host: bool

    def run_in_new_loop(
        self, function: Callable[[], Awaitable[Any]], options: dict[str, Any], /
    ) -> Any:
        """Run an async function in a new event loop, with options of ``trio.run`` or ``anyio.run``."""
        ...

    def open_nursery(self) -> AbstractAsyncContextManager[Any]:
        """Open a :class:`Nursery`."""
        ...

    def open_owner(self) -> AbstractAsyncContextManager[Any]:
        """Open an owner of runs for the length of a block: like a nursery, tasks start in it.

        The engine leaves it without an exception. Its tasks raise only a cancellation, a
        ``KeyboardInterrupt`` or a ``SystemExit``. Where the event loop allows it, the owner is not
        bound to the task that entered it, so another task may wait for the runs.
        """
        ...

    def open_lasting_owner(self) -> Any:
        """Return an owner for as long as the event loop runs; None where that is not possible."""
        ...

    def cancel_scope(self, *, deadline: float = ..., shield: bool = False) -> Any: ...

    def cancel(self, scope: Any, /, reason: str) -> None: ...

    def open_inbox(self) -> Inbox: ...

    def waiter(self) -> Waiter: ...

    def event(self) -> Any:
        """Return an event that is set once: Trio's or AnyIO's."""
        ...

    async def sleep(self, seconds: float, /) -> None: ...

    async def checkpoint(self) -> None: ...

    async def checkpoint_if_cancelled(self) -> None: ...

    async def cancel_shielded_checkpoint(self) -> None: ...

    def current_time(self) -> float: ...

    def current_effective_deadline(self) -> float: ...

    def is_cancelled(self) -> bool:
        """Whether a cancel scope around the current task is cancelled."""
        ...

    def is_cancelled_around(self, nursery: Any, /) -> bool:
        """Whether a nursery is cancelled, by its own scope or one around it.

        May be called from any task: the cancel scopes of the current task do not matter.
        """
        ...

    def is_natively_cancelled(self) -> bool:
        """Whether ``Task.cancel()`` was called on the current task (asyncio)."""
        ...

    def current_task(self) -> Any: ...

    def is_in_task(self, task: Any, /) -> bool:
        """Whether the caller runs in ``task``; False while the task's coroutine is being closed."""
        ...

    def current_loop(self) -> Any:
        """Return an object that identifies the running event loop."""
        ...

    def have_own_tasks(
        self,
        owners: Mapping[Any, object],
        variable: ContextVar[Any],
        nursery: Any,
        engine: Container[Any],
        /,
    ) -> bool:
        """Whether the code in one of several tasks has started further tasks that still run.

        Args:
            owners: The tasks, each with the value of ``variable`` in its code.
            variable: A context variable that the tasks started there inherit.
            nursery: The nursery of the run, which may be open in one of the tasks.
            engine: Further tasks and nurseries that the code in ``owners`` has not started or opened.
        """
        ...

    def caller_into(self, loop: Any, /) -> Callable[[Callable[[], object]], object]:
        """Return a function that schedules a call in an event loop, from any thread.

        Once the loop has ended, it raises ``RuntimeError``.
        """
        ...

    def rename_task(self, task: Any, /, name: str) -> None: ...

    def task_name(self, task: Any, /) -> str: ...

    # These may be called from any thread, and from a signal handler.

    def living_tasks(self, loop: Any, task: Any, /) -> list[Any]:
        """Return the tasks of the event loop ``loop``, of which ``task`` is one."""
        ...

    def coroutine_of(self, task: Any, /) -> Any:
        """Return the coroutine that a task runs."""
        ...

    def variables_of(self, task: Any, /) -> Context:
        """Return the context variables of a task."""
        ...

    def time_of(self, loop: Any, task: Any, /) -> float:
        """Return the time on the clock of the event loop ``loop``, of which ``task`` is one."""
        ...

    async def run_in_thread(
        self, function: Callable[[], Any], /, *, abandon_on_cancel: bool
    ) -> Any:
        """Call ``function`` in a worker thread, in a copy of the current context.

        No limiter of the event loop applies; see :mod:`sluicegate._loop.thread_places`.

        A checkpoint. Cancelled, natively too, it waits for the thread, in which
        :meth:`check_cancelled` raises; a thread that may be abandoned is left running.
        """
        ...

    def hold_clock(self, seconds: float | None = None, /) -> None:
        """Keep a jumping clock, such as a mock clock, from jumping while a thread or process works.

        It then jumps only after the loop has been idle for so many real seconds, 0.2 by default,
        because the thread or process may itself wait for the loop.
        """
        ...

    def release_clock(self, seconds: float | None = None, /) -> None:
        """Undo one :meth:`hold_clock` with the same number."""
        ...

    def call_in_loop(self, function: Callable[[], Any], /) -> Any:
        """Call ``function`` in the event loop, from the thread of a :meth:`run_in_thread`."""
        ...

    def await_in_loop(self, async_function: Callable[[], Awaitable[Any]], /) -> Any:
        """Run ``async_function`` in the event loop, from the thread of a :meth:`run_in_thread`.

        It is cancelled with the task that waits for the thread, and then raises
        :attr:`Cancelled` in the thread. This is not guaranteed for a thread that may be abandoned.
        """
        ...

    def check_cancelled(self) -> None:
        """Raise :attr:`Cancelled` in the thread of a :meth:`run_in_thread` that is cancelled."""
        ...

    async def wait_readable(self, source: Any, /) -> None:
        """Wait until a socket or descriptor is readable. A checkpoint; cancelled, nothing changes."""
        ...

    async def wait_writable(self, source: Any, /) -> None:
        """Wait until a socket or descriptor is writable; see :meth:`wait_readable`."""
        ...

    async def call_at_end(self, function: Callable[[], object], /) -> None:
        """Call ``function`` when the event loop has ended and no task runs in it.

        That holds for a loop that is closed properly, not for one that is only dropped.
        """
        ...


def capture(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Call a function; return its result, or None and the exception that it raised.

    An exception crosses threads as a value, because the queues and futures of an event loop read
    its class, its traceback and its truth value, and a user's class may make any of them raise.
    """
    try:
        return function(), None
    except BaseException as error:  # noqa: ASYNC103, BLE001 - raised by release()
        return None, error  # noqa: ASYNC104


async def capture_async(function: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:  # noqa: ASYNC910 - as the function
    """Await an async function; see :func:`capture`."""
    try:
        return await function(), None
    except BaseException as error:  # noqa: ASYNC103, BLE001 - raised by release()
        return None, error  # noqa: ASYNC104


def release(captured: tuple[Any, BaseException | None]) -> Any:
    """Return the captured result, or raise the captured exception."""
    result, failure = captured
    if failure is None:
        return result
    try:
        raise failure
    finally:
        del failure, captured  # or this frame and its exception keep each other alive
