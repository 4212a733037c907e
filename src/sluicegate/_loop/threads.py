"""Synchronous steps in worker threads, and their calls into the event loop."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, final

from sluicegate._errors import WorkflowRuntimeError, stop_iteration
from sluicegate._exceptions import is_a
from sluicegate._loop import current_backend, in_event_loop
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._loop.limits import MAX_THREADS
from sluicegate._loop.run_in_context import let_interrupts_in, run_in_context


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context as ContextVars

    from sluicegate._loop import Backend
    from sluicegate._loop.thread_places import ThreadPlace

P = ParamSpec("P")
T = TypeVar("T")

#: The call that runs in a worker thread; set in the thread's copy of the step's context.
_current_call: ContextVar[_Call | None] = ContextVar("sluicegate_thread", default=None)


@final
class ThreadStep:
    """The coroutine function with which the engine calls a plain ``def`` step.

    A checkpoint before the thread starts. Cancelled, it waits for the thread, in which the next
    call of the context raises the cancellation. With ``abandon_on_cancel`` it does not wait for the
    thread: it warns, cancels the coroutines that the thread runs in the event loop, waits for
    those, and the context refuses every later call of the thread.

    Calling it waits for a free thread first. The engine does that separately, because the step's
    timeout excludes it: ``async with step.place(limit) as place: await step.call(place, workflow,
    *arguments)``.

    Args:
        function: The step, called as ``function(workflow, *arguments)`` in a worker thread, in a
            copy of the context that the coroutine runs in.
        abandon_on_cancel: Whether a cancelled step leaves its thread behind.

    Raises:
        BaseException: From a call: the exception of the step.
        WorkflowRuntimeError: From a call: the step raises ``StopIteration`` or returns a
            coroutine, or there are too many threads.
    """

    def __init__(self, function: Callable[..., Any], *, abandon_on_cancel: bool) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._may_be_abandoned = abandon_on_cancel
        self._name = str(getattr(function, "__qualname__", function)).rpartition("<locals>.")[2]

    async def __call__(self, *arguments: Any) -> Any:
        async with self.place() as place:
            return await self.call(place, *arguments)

    def place(self, limit: int = MAX_THREADS, /) -> ThreadPlace:
        """Return a context manager that waits for one of ``limit`` threads and frees it."""
        from sluicegate._loop.thread_places import ThreadPlace  # noqa: PLC0415 - imported on use

        return ThreadPlace(self._name, limit)

    async def call(self, place: ThreadPlace, /, *arguments: Any) -> Any:
        """Call the step in a thread. A checkpoint."""
        backend = current_backend()
        call = _Call(backend, place, may_be_abandoned=self._may_be_abandoned)
        enter = partial(call.enter, self._function, arguments)
        try:
            return await backend.run_in_thread(enter, abandon_on_cancel=self._may_be_abandoned)
        except BaseException as error:
            place.is_left = call.give_up()
            if place.is_left and is_a(error, backend.Cancelled):
                await call.unwind()  # noqa: ASYNC102, ASYNC120 - it shields itself
                _Abandonment(self._name)  # and drop it
            raise


class _Abandonment:
    """Warns when it is deleted.

    Where warnings are errors, the warning must neither replace the cancellation nor be lost. An
    exception raised during deletion goes to ``sys.unraisablehook``.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __del__(self) -> None:
        msg = (
            f"the step {self._name} was cancelled and its thread left running, as "
            "abandon_on_cancel=True allows; expected `ctx.from_thread.check_cancelled()` now and "
            "then in long computations, with abandon_on_cancel=False"
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=2)


class _Call:
    """One call of a step in a worker thread, used from the thread and from the event loop."""

    __slots__ = (
        "_call_soon",
        "_deadline",
        "_lock",
        "_may_be_abandoned",
        "_place",
        "_refusal",
        "_scopes",
        "_state",
        "_waiter",
        "_worker",
        "backend",
        "loop_thread",
        "name",
        "thread",
    )

    def __init__(self, backend: Backend, place: ThreadPlace, *, may_be_abandoned: bool) -> None:
        self.backend = backend
        self.name = place.name
        self._place = place
        self._call_soon = backend.caller_into(backend.current_loop())
        #: The invocation of the step.
        self._worker: Any = current_cleanup.get()
        self.loop_thread = threading.get_ident()
        self.thread: int | None = None
        self._may_be_abandoned = may_be_abandoned
        self._deadline = backend.current_effective_deadline() if may_be_abandoned else inf
        self._lock = threading.Lock()
        #: ``"new"``, ``"running"``, ``"over"`` or ``"abandoned"``; changed only under the lock.
        self._state = "new"
        self._refusal: WorkflowRuntimeError | None = None
        #: Cancel scopes around what the thread awaits in the loop, if it may be abandoned.
        self._scopes: set[Any] = set()
        self._waiter = backend.waiter()

    # -- in the event loop

    def give_up(self) -> bool:
        """Stop waiting for the thread; return whether it is still running."""
        with self._lock:
            is_running = self._state == "running"
            if self._state != "over":
                self._state = "abandoned"
        return is_running

    async def unwind(self) -> None:
        """Cancel the coroutines that the thread awaits in the loop, and wait for their end."""
        for scope in tuple(self._scopes):
            self.backend.cancel(scope, f"the thread of the step {self.name} was abandoned")
        while self._scopes:
            try:
                with self.backend.cancel_scope(shield=True):
                    await self._waiter.wait()
            except self.backend.Cancelled:  # noqa: ASYNC103 - natively; the caller raises another
                continue  # noqa: ASYNC104

    def _apply(self, function: Callable[[], T]) -> T:
        if self._state == "abandoned":
            raise self._refuse()
        result = function()
        if inspect.iscoroutine(result):
            result.close()
            msg = (
                "from_thread.run_sync() was given an async function; expected "
                "`ctx.from_thread.run(function, ...)`"
            )
            raise TypeError(msg)
        return result

    async def _await(self, function: Callable[[], Awaitable[T]]) -> T:
        awaitable = function()
        if not hasattr(awaitable, "__await__"):
            msg = (
                f"from_thread.run() was given a function that returns {awaitable!r}; expected an "
                "async function, or `ctx.from_thread.run_sync(function, ...)`"
            )
            raise TypeError(msg)
        let_interrupts_in(getattr(awaitable, "cr_code", None))
        # Meanwhile another thread may use the place. Diagnosis looks for the step in this task,
        # which under asyncio is not the one that waits for the thread.
        worker = self._worker
        task = getattr(worker, "task", None)
        if task is not None:
            worker.task = self.backend.current_task()
        self._place.rest()
        try:
            return await awaitable
        finally:
            if task is not None and worker.task is not None:
                worker.task = task
            await self._return()  # noqa: ASYNC102 - cancelled, it returns at once

    async def _return(self) -> None:
        """Wait for a place again; the step's timeout excludes that."""
        progress = getattr(self._worker, "progress", None)
        if progress is None or self._place.is_free:
            await self._place.resume()
            return
        progress.pause()
        try:
            await self._place.resume()
        finally:
            progress.proceed()

    async def _await_in(
        self, context: ContextVars | None, function: Callable[[], Awaitable[T]]
    ) -> T:
        if context is None:
            return await self._await(function)
        return cast("T", await run_in_context(self._await(function), context))

    async def _await_in_scope(self, function: Callable[[], Awaitable[T]]) -> list[T]:
        """Return a list with the function's result; an empty list if it was cancelled."""
        if self._state == "abandoned":
            raise self._refuse()
        with self.backend.cancel_scope() as scope:
            self._scopes.add(scope)
            try:
                return [await self._await(function)]
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._waiter.wake()
        return []

    # -- in the thread

    def enter(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call the step."""
        with self._lock:
            if self._state != "new":
                return None  # given up before it began
            self._state = "running"
        self.thread = threading.get_ident()
        _current_call.set(self)
        try:
            result = self._call(function, arguments)
        except BaseException as error:  # noqa: ASYNC103 - reported if it is not raised
            if self._leave():
                raise
            # The engine no longer waits for it: report a failure as that of any other thread.
            if error is not self._refusal and not is_a(error, self.backend.Cancelled):
                report = (type(error), error, error.__traceback__, threading.current_thread())
                threading.excepthook(threading.ExceptHookArgs(report))
            return None  # noqa: ASYNC104
        finally:
            self.thread = self._refusal = None
        self._leave()
        return result

    def _leave(self) -> bool:
        """Note that the step has ended; return whether the engine still waits for it."""
        with self._lock:
            if self._state != "abandoned":
                self._state = "over"
                return True
        with suppress(RuntimeError):  # the loop is over
            self._call_soon(self._place.end)
        return False

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            result = function(*arguments)
        except StopIteration as error:
            raise WorkflowRuntimeError(stop_iteration(self.name)) from error
        if inspect.iscoroutine(result):
            result.close()
            msg = (
                f"the step {self.name} is a plain function and returned a coroutine; expected "
                f"`async def {self.name.rpartition('.')[2]}(...)`"
            )
            raise WorkflowRuntimeError(msg)
        return result

    def check(self) -> None:
        """Raise if the step is cancelled, or the thread abandoned."""
        if self._state == "abandoned":
            raise self._refuse()
        self.backend.check_cancelled()

    def _refuse(self) -> WorkflowRuntimeError:
        msg = (
            f"the step {self.name} was cancelled and its thread abandoned, so its context does "
            "nothing any more; expected the thread to end now"
        )
        self._refusal = WorkflowRuntimeError(msg)
        return self._refusal

    def run_sync(self, function: Callable[[], T]) -> T:
        self.check()
        return cast("T", self.backend.call_in_loop(partial(self._apply, function)))

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        self.check()
        if not self._may_be_abandoned:
            # A task that runs a step is in the step's context, and not in the thread's copy of it.
            context = copy_context() if self.backend.awaits_in_host else None
            return cast("T", self.backend.await_in_loop(partial(self._await_in, context, function)))
        results: list[T] = self.backend.await_in_loop(partial(self._await_in_scope, function))
        if not results:
            self.backend.check_cancelled()
            raise self._refuse()
        return results[0]

    def find_deadline(self, find: Callable[[], float]) -> float:
        """Return the nearest deadline around the step, which only a task in the loop can see."""
        if self._may_be_abandoned:
            self.check()
            return self._deadline

        async def look() -> float:  # noqa: ASYNC124 - it has to run in a task
            return find()

        return self.run(look)


def call_of_this_thread() -> _Call | None:
    call = _current_call.get()
    return call if call is not None and call.thread == threading.get_ident() else None


def in_loop(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a synchronous function in the event loop's thread.

    In the thread of a synchronous step this raises a pending cancellation, then blocks until the
    loop has called the function. Elsewhere it calls the function directly. Not a checkpoint.

    Returns:
        The result of the function.

    Raises:
        BaseException: The exception of the function; the backend's Cancelled, if the step is
            cancelled.
        WorkflowRuntimeError: The thread has been abandoned.
    """
    call = call_of_this_thread()
    if call is None:
        return function(*args, **kwargs)
    return call.run_sync(partial(function, *args, **kwargs))


@final
class FromThread:
    """Calls from the thread of a synchronous step into the event loop: ``ctx.from_thread``.

    It has no state: each call looks up the step that runs in its thread.
    """

    __slots__ = ()

    def run(
        self, async_function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an async function in the event loop, as a part of the step, and wait for it.

        A cancellation of the step cancels it. Its clean-up completes before this raises.

        Args:
            async_function: The function.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The result of the function.

        Raises:
            BaseException: The exception of the function; the backend's Cancelled, if the step is
                cancelled.
            TypeError: The function is not async.
            WorkflowRuntimeError: The caller is not the thread of a synchronous step, or that
                thread has been abandoned.
        """
        function = partial(async_function, *args, **kwargs)
        return self._call("run", "await function(...)").run(function)

    def run_sync(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a synchronous function in the event loop's thread, and wait for it.

        Args:
            function: The function.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The result of the function.

        Raises:
            BaseException: The exception of the function; the backend's Cancelled, if the step was
                cancelled before.
            TypeError: The function is async.
            WorkflowRuntimeError: As for :meth:`run`.
        """
        call = self._call("run_sync", "function(...)")
        return call.run_sync(partial(function, *args, **kwargs))

    def check_cancelled(self) -> None:
        """Raise if the step is cancelled; for loops that make no other call of the context.

        Raises:
            BaseException: The backend's Cancelled, if the step is cancelled.
            WorkflowRuntimeError: As for :meth:`run`.
        """
        self._call("check_cancelled", "await trio.lowlevel.checkpoint()").check()

    def _call(self, what: str, instead: str) -> _Call:
        call = call_of_this_thread()
        if call is not None:
            return call
        if _is_in_loop():
            msg = (
                f"from_thread.{what}() was called in the event loop's own thread, which it would "
                f"block; expected `{instead}`"
            )
        else:
            msg = (
                f"from_thread.{what}() was called outside of a synchronous step; expected the "
                f"thread that a step runs in: `@step` above `def name(self, ctx: Context, ev: ...)` "
                f"and there `ctx.from_thread.{what}(...)`"
            )
        raise WorkflowRuntimeError(msg)


def _is_in_loop() -> bool:
    call = _current_call.get()
    if call is not None and call.loop_thread == threading.get_ident():
        return True  # a function that the loop calls for a thread is in no task of Trio
    return in_event_loop()
