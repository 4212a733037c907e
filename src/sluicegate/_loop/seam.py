"""The seam to the event loops as protocols, and what both backends use.

Nothing in this module imports a backend, so the backends import it without a circle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Mapping
    from contextlib import AbstractAsyncContextManager
    from contextvars import ContextVar


class Nursery(Protocol):
    """A Trio nursery or an AnyIO task group, as far as they have the same face.

    Their cancel scopes have as well: ``deadline``, ``shield``, ``cancel_called`` and
    ``cancelled_caught`` mean the same in both.
    """

    @property
    def cancel_scope(self) -> Any: ...

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], /, *args: Any, name: object = None
    ) -> Any: ...


class Inbox(Protocol):
    """A memory channel without a bound, both ends held by one owner."""

    def put(self, delivery: Any, /) -> None:
        """Append a delivery; never waits."""
        ...

    def take(self) -> Any:
        """Take the oldest delivery; there is one, the machine's books say so."""
        ...

    def close(self) -> None:
        """Close both ends and drop what is left."""
        ...


class Waiter(Protocol):
    """A place where one task sleeps until it is woken.

    A wake-up is a hint, never a delivery: whoever wakes looks again at what it waited for. So
    a wake-up that is lost to a cancellation loses nothing else.
    """

    def wait(self, task: Any = None, /) -> Awaitable[None]:
        """Sleep until :meth:`wake`. A checkpoint; cancelled, it leaves nothing behind.

        ``task`` is the current one, from a caller that has just looked.
        What is returned has to be awaited at once.
        """
        ...

    def wake(self) -> None:
        """Wake the sleeping task, if there is one. May be called any number of times."""
        ...


class Backend(Protocol):
    """The operations an engine needs of an event loop."""

    name: str
    Cancelled: type[BaseException]
    EndOfChannel: type[Exception]
    ClosedResourceError: type[Exception]
    BusyResourceError: type[Exception]
    WouldBlock: type[Exception]
    #: Whether the task that runs a run may be its first worker. Under asyncio it may not: a
    #: native ``Task.cancel()`` goes through every shield in the task that it hits, and one that
    #: hits a task which only waits leaves the clean-up of the steps alone.
    runs_steps_in_host: bool
    #: Whether nothing can cancel a shielded wait; ``Task.cancel()`` goes through AnyIO's shields.
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
        """Open what owns runs for as long as a block lasts: a nursery, as far as tasks start in it.

        It is left without an exception. Its tasks raise nothing but a cancellation, a
        ``KeyboardInterrupt`` or a ``SystemExit``. Where the event loop allows it, nothing of it is
        in the task that has entered it, so that another task may wait for the runs.
        """
        ...

    def open_lasting_owner(self) -> Any:
        """Return the same for as long as the event loop runs, and None where that is not possible."""
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

        Asked from anywhere: the cancel scopes of the current task say nothing of it.
        """
        ...

    def is_natively_cancelled(self) -> bool:
        """Whether the current task itself was asked to cancel, past all scopes (asyncio)."""
        ...

    def current_task(self) -> Any: ...

    def is_in_task(self, task: Any, /) -> bool:
        """Whether the caller runs in ``task``: not so, if the task's coroutine is being closed."""
        ...

    def current_loop(self) -> Any:
        """Return what stands for the running event loop: one object, and another for another."""
        ...

    def have_own_tasks(
        self,
        owners: Mapping[Any, object],
        variable: ContextVar[Any],
        nursery: Any,
        engine: Container[Any],
        /,
    ) -> bool:
        """Whether what runs in one of several tasks has started others that go on.

        Args:
            owners: The tasks, each with the value that ``variable`` has in what runs in it.
            variable: A context variable that what runs there hands on to tasks that it starts.
            nursery: The nursery of the run, which may be open in one of the tasks.
            engine: Further tasks that nothing in ``owners`` has started.
        """
        ...

    def caller_into(self, loop: Any, /) -> Callable[[Callable[[], object]], object]:
        """Return a function that has an event loop call something, from any thread.

        Once the loop is over, it raises ``RuntimeError``.
        """
        ...

    def rename_task(self, task: Any, /, name: str) -> None: ...

    def task_name(self, task: Any, /) -> str: ...

    def living_tasks(self, loop: Any, main: Any, /) -> list[tuple[str, Any]]:
        """Return the name and the coroutine of each task of a program, ``main`` being its first.

        May be called from a signal handler.
        """
        ...

    async def run_in_thread(
        self, function: Callable[[], Any], /, *, abandon_on_cancel: bool
    ) -> Any:
        """Call ``function`` in a worker thread, in a copy of the current context.

        No limiter of the event loop bounds it; see :mod:`sluicegate._loop.thread_places`.

        A checkpoint. Cancelled, it waits for the thread (a native cancellation included), which
        learns of it from :meth:`check_cancelled`; or, if it may be abandoned, leaves it running.
        """
        ...

    def hold_clock(self, seconds: float | None = None, /) -> None:
        """Have a clock that jumps, as a mock clock does, wait for what is not in the event loop.

        It waits for so many real seconds without anything to do in the loop, 0.2 by default,
        because what it waits for may itself wait for the loop.
        """
        ...

    def release_clock(self, seconds: float | None = None, /) -> None:
        """Take back one :meth:`hold_clock` with the same number."""
        ...

    def call_in_loop(self, function: Callable[[], Any], /) -> Any:
        """Call ``function`` in the event loop; from the thread of a :meth:`run_in_thread`."""
        ...

    def await_in_loop(self, async_function: Callable[[], Awaitable[Any]], /) -> Any:
        """Run ``async_function`` in the event loop; from the thread of a :meth:`run_in_thread`.

        It is cancelled with the task that waits for the thread, and then raises
        :attr:`Cancelled` in the thread. If the thread may be abandoned, that is not promised.
        """
        ...

    def check_cancelled(self) -> None:
        """Raise :attr:`Cancelled` in the thread of a :meth:`run_in_thread` that is cancelled."""
        ...

    async def wait_readable(self, source: Any, /) -> None:
        """Wait until a socket or a descriptor can be read. A checkpoint; cancelled, it leaves it."""
        ...

    async def wait_writable(self, source: Any, /) -> None:
        """Wait until a socket or a descriptor can be written to. As :meth:`wait_readable`."""
        ...

    async def call_at_end(self, function: Callable[[], object], /) -> None:
        """Have ``function`` called when the event loop is over, and nothing runs in it any more.

        That is where it is closed as it should be; a loop that is just dropped tells nobody.
        """
        ...


def capture(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Call a function; return its result, or None and the exception that it raised.

    An exception goes from thread to thread as a value. On its way through the queues and futures of
    an event loop it would be asked for its class, its traceback and its truth, which it may refuse.
    """
    try:
        return function(), None
    except BaseException as error:  # noqa: ASYNC103, BLE001 - raised by release()
        return None, error  # noqa: ASYNC104


async def capture_async(function: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:  # noqa: ASYNC910 - as the function
    """Await what an async function returns; see :func:`capture`."""
    try:
        return await function(), None
    except BaseException as error:  # noqa: ASYNC103, BLE001 - raised by release()
        return None, error  # noqa: ASYNC104


def release(captured: tuple[Any, BaseException | None]) -> Any:
    """Return or raise what was captured."""
    result, failure = captured
    if failure is None:
        return result
    try:
        raise failure
    finally:
        del failure, captured  # or this frame and its exception keep each other alive
