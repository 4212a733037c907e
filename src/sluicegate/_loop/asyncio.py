"""The backend for asyncio: AnyIO's task groups and scopes, so that cancellation means the same.

The exceptions raised at the ends of a stream derive from both AnyIO's and Trio's classes: a program
on asyncio may catch the names of either library.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import signal
import socket
import sys
import threading
from contextlib import closing, contextmanager, suppress
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import trio

from sluicegate._loop.seam import capture, capture_async, release


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Generator, Mapping

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream


class EndOfChannel(trio.EndOfChannel, anyio.EndOfStream):
    """Raised when a stream has ended; both Trio's and AnyIO's exception."""


class ClosedResourceError(trio.ClosedResourceError, anyio.ClosedResourceError):
    """Raised when a closed stream is used; both Trio's and AnyIO's exception."""


class BusyResourceError(trio.BusyResourceError, anyio.BusyResourceError):
    """Raised when two tasks read one reader; both Trio's and AnyIO's exception."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0])


class WouldBlock(trio.WouldBlock, anyio.WouldBlock):
    """Raised by ``send_nowait`` where ``send`` would wait; both Trio's and AnyIO's exception."""


_open_stream = anyio.create_memory_object_stream[Any]


class AsyncioInbox:
    """Both ends of an AnyIO memory stream."""

    __slots__ = ("_receive", "_send", "put", "take")

    def __init__(self) -> None:
        ends: tuple[MemoryObjectSendStream[Any], MemoryObjectReceiveStream[Any]] = _open_stream(inf)
        self._send, self._receive = ends
        self.put = self._send.send_nowait
        self.take = self._receive.receive_nowait

    def close(self) -> None:
        # Both ends are closed: AnyIO warns about an open end that is garbage-collected, and keeps
        # the items of a receiver that was closed first.
        self._send.close()
        while self._receive.statistics().current_buffer_used:
            self._receive.receive_nowait()
        self._receive.close()


class AsyncioWaiter:
    """Park and wake one task."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    def wait(self, _task: object = None, /) -> Awaitable[None]:
        self._future = asyncio.get_running_loop().create_future()
        # One coroutine less to step through.
        return self._future

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class ThreadCall:
    """A call in a worker thread whose end is always awaited.

    A native ``Task.cancel()`` ignores AnyIO's shield, and would leave the thread running.
    """

    __slots__ = ("_ended", "_failure", "_function", "_is_left")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._is_left = False
        self._failure: BaseException | None = None

    def __call__(self) -> Any:
        if not self._ended.set_running_or_notify_cancel():
            return None, None
        captured = capture(self._function)
        if self._is_left:
            self._failure = captured[1]
        self._ended.set_result(None)
        return captured

    async def run(self) -> Any:
        left: asyncio.CancelledError | None = None
        captured: Any = None
        with anyio.CancelScope() as scope:
            try:
                free = anyio.CapacityLimiter(1)  # the default limiter is left to the program
                captured = await anyio.to_thread.run_sync(self, limiter=free)
            except asyncio.CancelledError as error:  # noqa: ASYNC103 - raised below
                self._is_left = True
                if self._ended.cancel() or self._ended.done():
                    raise
                left = error
                scope.cancel()  # cancels the thread, and the coroutines that it awaits in the loop
                await self._wait()  # noqa: ASYNC102 - it shields itself
        if left is None:
            return release(captured)
        failure, self._failure = self._failure, None
        if issubclass(type(failure), asyncio.CancelledError):
            failure = None
        try:
            raise left if failure is None else failure
        finally:
            del failure, left  # or this frame and its exception keep each other alive

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def notify(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, and no task waits
                loop.call_soon_threadsafe(ended.set)

        self._ended.add_done_callback(notify)
        while not ended.is_set():
            with suppress(asyncio.CancelledError), anyio.CancelScope(shield=True):
                await ended.wait()  # cancelled again: the first cancellation is raised, later


@cache
def _has_two_words() -> bool:
    """Whether this AnyIO cancels a thread with a message that its scopes do not recognise."""
    from importlib.metadata import version  # noqa: PLC0415 - only a cancelled thread asks

    major, minor = version("anyio").split(".")[:2]
    return (4, 11) <= (int(major), int(minor)) < (4, 14)


def _own_functions() -> Any:
    """Return the namespace of AnyIO's asyncio functions, which the public ones look up each time."""
    find: Any = getattr(anyio.lowlevel, "get_async_backend", None)
    return anyio.lowlevel if find is None else find("asyncio")


class OwnTasks:
    """Runs in separate tasks, which end before the block does.

    AnyIO's task group is a cancel scope in the task that enters it. If another task leaves the
    block (the fixture of a test, a callback), the scope stays the current one of the first. This
    owner leaves no scope in the entering task. A cancellation of that task reaches the runs when it
    leaves the block, and while it waits there; the deadline around it at entry holds for the runs.
    Conversely, a ``KeyboardInterrupt`` or ``SystemExit`` raised by a run cancels that task.
    """

    __slots__ = ("_around", "_deadline", "_failure", "_has_cancelled", "_host", "_left", "_tasks")

    def __init__(self) -> None:
        self._around: Any = None
        self._host: asyncio.Task[Any] | None = None
        self._tasks: dict[asyncio.Task[None], anyio.CancelScope] = {}
        self._deadline = inf
        self._failure: BaseException | None = None
        self._has_cancelled = False
        self._left = AsyncioWaiter()

    async def __aenter__(self) -> Self:
        self._host = asyncio.current_task()
        self._around = _innermost_scope(self._host)
        self._deadline = anyio.current_effective_deadline()
        return self  # noqa: ASYNC910 - as in a nursery of Trio

    def start_soon(
        self, function: Callable[..., Awaitable[Any]], /, *args: Any, name: object = None
    ) -> asyncio.Task[None]:
        scope = anyio.CancelScope(deadline=self._deadline)
        if name is None:  # as AnyIO names its tasks
            name = f"{function.__module__}.{function.__qualname__}"
        task = asyncio.get_running_loop().create_task(
            self._run(scope, function, args), name=str(name)
        )
        self._tasks[task] = scope
        task.add_done_callback(self._end)
        return task

    async def _run(
        self,
        scope: anyio.CancelScope,
        function: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
    ) -> None:
        with scope:
            try:
                await function(*args)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: ASYNC103, BLE001 - raised where the block is left
                self._fail(error)

    def is_cancelled(self) -> bool:
        """Whether a cancel scope around the block is cancelled, which may not reach the runs yet."""
        return self._around is not None and bool(self._around._effectively_cancelled)

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None:
            return
        host = self._host
        if host is None:  # a lasting owner: the task that awaits the run gets it
            return
        self._failure = error
        self._cancel()
        if not host.done() and host is not asyncio.current_task():
            self._has_cancelled = True
            host.cancel("a run of a block was interrupted")

    def _cancel(self) -> None:
        for scope in self._tasks.values():
            scope.cancel()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not self._tasks:
            self._left.wake()

    async def __aexit__(self, *_: object) -> None:
        raised: BaseException | None = None
        try:
            if not self._tasks:
                await AsyncioBackend.cancel_shielded_checkpoint()  # noqa: ASYNC102 - shielded
            while self._tasks:
                try:
                    with anyio.CancelScope(shield=raised is not None):
                        await self._left.wait()  # noqa: ASYNC102 - shielded after the first exception
                except BaseException as error:  # noqa: ASYNC103, BLE001 - the first is raised below
                    raised = raised or error
                    self._cancel()
            host, self._host = self._host, None
            if self._has_cancelled and host is not None and host is asyncio.current_task():
                host.uncancel()
            if self._failure is not None:
                raise self._failure
            if raised is not None:
                raise raised
        finally:
            self._failure = raised = None  # or the frames and the exceptions form circles


@contextmanager
def _woken_by_signals() -> Generator[None]:
    """Make each signal wake the running event loop.

    Python checks for signals between bytecodes. asyncio's loop misses a signal that arrives after
    the last check and before the selector sleeps, or in another thread: Ctrl-C is then delayed
    until the next event. ``signal.set_wakeup_fd`` prevents that; uvloop and Windows' loop use it.
    """
    loop = asyncio.get_running_loop()
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and isinstance(loop, asyncio.SelectorEventLoop)):
        yield
        return
    ours, signals = socket.socketpair()
    with closing(ours), closing(signals):
        ours.setblocking(False)
        signals.setblocking(False)
        loop.add_reader(ours, ours.recv, 4096)
        before = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(ours)


async def _wait_for(
    add: Callable[..., object], remove: Callable[[Any], object], source: Any
) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(source, _tell, ready)
    try:
        await ready
    finally:
        remove(source)


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _at_end(function: Callable[[], object]) -> AsyncGenerator[None]:  # noqa: ASYNC124, ASYNC900 - closed by the loop
    try:
        yield
    finally:
        function()


def _innermost_scope(task: asyncio.Task[Any] | None) -> Any:
    """Return AnyIO's cancel scope around what a task does now, or None."""
    # AnyIO has no public name for it, and a scope's deadline does not show that it is cancelled.
    from anyio._backends import _asyncio  # noqa: PLC0415

    states: Any = getattr(_asyncio, "_task_states", {})
    return getattr(states.get(task), "cancel_scope", None)


def _context_of(task: asyncio.Task[Any]) -> contextvars.Context:
    """Return the context of a task; an empty one if it cannot be found."""
    if sys.version_info >= (3, 12):
        return task.get_context()
    parts = gc.get_referents(task)  # Python 3.11 has no public name for it
    found = (part for part in parts if isinstance(part, contextvars.Context))
    return next(found, contextvars.Context())


class AsyncioBackend:
    """See :class:`sluicegate._loop.seam.Backend`."""

    name = "asyncio"
    runs_steps_in_host = False
    shields_from_all = False
    awaits_in_host = False
    Cancelled: type[BaseException] = asyncio.CancelledError
    EndOfChannel: type[Exception] = EndOfChannel
    ClosedResourceError: type[Exception] = ClosedResourceError
    BusyResourceError: type[Exception] = BusyResourceError
    WouldBlock: type[Exception] = WouldBlock

    @staticmethod
    def run_in_new_loop(function: Callable[[], Awaitable[Any]], options: dict[str, Any], /) -> Any:
        async def main() -> Any:
            with _woken_by_signals():
                return await function()

        return anyio.run(main, backend="asyncio", backend_options=options)

    _own: Any = _own_functions()
    checkpoint = staticmethod(_own.checkpoint)
    checkpoint_if_cancelled = staticmethod(_own.checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(_own.cancel_shielded_checkpoint)
    current_effective_deadline = staticmethod(anyio.current_effective_deadline)
    open_inbox = AsyncioInbox
    waiter = AsyncioWaiter
    event = anyio.Event
    sleep = staticmethod(anyio.sleep)

    open_nursery = staticmethod(anyio.create_task_group)
    open_owner = OwnTasks
    open_lasting_owner = OwnTasks

    @staticmethod
    def current_time() -> float:  # AnyIO's needs a task, and callbacks call this
        return asyncio.get_running_loop().time()

    @staticmethod
    def cancel_scope(*, deadline: float = inf, shield: bool = False) -> anyio.CancelScope:
        return anyio.CancelScope(deadline=deadline, shield=shield)

    @staticmethod
    def cancel(scope: anyio.CancelScope, reason: str) -> None:
        try:
            scope.cancel(reason)
        except TypeError:  # AnyIO before 4.11 takes no reason
            scope.cancel()

    current_loop = staticmethod(asyncio.get_running_loop)
    current_task = staticmethod(asyncio.current_task)

    @staticmethod
    def have_own_tasks(
        owners: Mapping[asyncio.Task[Any], object],
        variable: contextvars.ContextVar[Any],
        _nursery: object,
        engine: Container[Any],
        /,
    ) -> bool:
        # A new task has a copy of the context of its creator.
        values = {id(value) for value in owners.values()}
        current = asyncio.current_task()
        return any(
            id(_context_of(task).get(variable)) in values
            for task in asyncio.all_tasks()
            if not (task is current or task in owners or task in engine)
        )

    @staticmethod
    def caller_into(loop: asyncio.AbstractEventLoop, /) -> Callable[[Callable[[], object]], object]:
        return loop.call_soon_threadsafe

    @staticmethod
    def is_cancelled() -> bool:
        return anyio.current_effective_deadline() == -inf

    @staticmethod
    def is_cancelled_around(nursery: Any) -> bool:
        # AnyIO's public function covers only the current task, which may be inside other scopes.
        return bool(nursery.cancel_scope._effectively_cancelled)

    @staticmethod
    def is_natively_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    @staticmethod
    def is_in_task(task: object) -> bool:
        try:
            return asyncio.current_task() is task
        except RuntimeError:  # the event loop has ended
            return False

    @staticmethod
    def rename_task(task: asyncio.Task[Any], name: str) -> None:
        task.set_name(name)

    @staticmethod
    def task_name(task: asyncio.Task[Any]) -> str:
        return task.get_name()

    @staticmethod
    def living_tasks(loop: asyncio.AbstractEventLoop, _task: object, /) -> list[asyncio.Task[Any]]:
        return list(asyncio.all_tasks(loop))

    @staticmethod
    def coroutine_of(task: asyncio.Task[Any], /) -> Any:
        return task.get_coro()

    variables_of = staticmethod(_context_of)

    @staticmethod
    def time_of(loop: asyncio.AbstractEventLoop, _task: object, /) -> float:
        return loop.time()

    @staticmethod
    async def run_in_thread(function: Callable[[], Any], /, *, abandon_on_cancel: bool) -> Any:
        if abandon_on_cancel:
            free = anyio.CapacityLimiter(1)  # the default limiter is left to the program
            return release(
                await anyio.to_thread.run_sync(
                    capture, function, abandon_on_cancel=True, limiter=free
                )
            )
        return await ThreadCall(function).run()

    @staticmethod
    def hold_clock(seconds: float | None = None, /) -> None:
        # A loop with virtual time tracks threads by itself.
        holds: list[float] | None = getattr(asyncio.get_running_loop(), "_sluicegate_holds", None)
        if holds is not None and seconds is not None:
            holds.append(seconds)

    @staticmethod
    def release_clock(seconds: float | None = None, /) -> None:
        holds: list[float] | None = getattr(asyncio.get_running_loop(), "_sluicegate_holds", None)
        if holds is not None and seconds in holds:
            holds.remove(seconds)

    @staticmethod
    def call_in_loop(function: Callable[[], Any], /) -> Any:
        return release(anyio.from_thread.run_sync(capture, function))

    @staticmethod
    def await_in_loop(async_function: Callable[[], Awaitable[Any]], /) -> Any:
        # The exception crosses as a value, because two kinds of futures are between: AnyIO and
        # asyncio turn a cancellation into an Exception, and a futures.CancelledError into a
        # cancellation.
        async def run() -> tuple[Any, BaseException | None]:
            if anyio.current_effective_deadline() == -inf:
                # AnyIO has delivered the cancellation to the tasks that waited, and stopped; a
                # task that starts to wait now would never get it. Leaving a scope restarts it.
                with anyio.CancelScope():  # noqa: ASYNC100 - entered only to be left
                    pass
            return await capture_async(async_function)

        try:
            captured = anyio.from_thread.run(run)
        except concurrent.futures.CancelledError as error:  # before it began
            raise asyncio.CancelledError(*error.args) from None
        return release(captured)

    @staticmethod
    def check_cancelled() -> None:
        try:
            anyio.from_thread.check_cancelled()
        except asyncio.CancelledError as error:
            if error.args and _has_two_words():
                error.args = (str(error.args[0]).replace("Cancelled by", "Cancelled via", 1),)
            raise

    @staticmethod
    async def wait_readable(source: Any, /) -> None:
        loop = asyncio.get_running_loop()
        await _wait_for(loop.add_reader, loop.remove_reader, source)

    @staticmethod
    async def wait_writable(source: Any, /) -> None:
        loop = asyncio.get_running_loop()
        await _wait_for(loop.add_writer, loop.remove_writer, source)

    @staticmethod
    async def call_at_end(function: Callable[[], object], /) -> None:
        # Closing an event loop closes its asynchronous generators, after all tasks have ended. A
        # callback of the main task would be too early, and a task would show among the tasks.
        ending = _at_end(function)
        await anext(ending)
        # The loop keeps its generators in a weak set. They refer to it, so only it may keep them.
        loop: Any = asyncio.get_running_loop()
        loop._sluicegate_endings = [*getattr(loop, "_sluicegate_endings", ()), ending]
