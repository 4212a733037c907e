"""Scopes: owners of runs without another owner, and the rule for the exceptions of an owner."""

from __future__ import annotations

import inspect
from contextlib import suppress
from contextvars import copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar, final
from weakref import ref

from sluicegate._engine.runner import current_scope
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._exceptions import (
    is_cancellation,
    note_once,
    raise_first,
    refusal_or_urgent,
    single,
)
from sluicegate._loop import current_backend, enable_ki_protection, is_current_loop


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from contextvars import Context, Token
    from weakref import ReferenceType

    from sluicegate._loop import Backend, Nursery, Waiter

T = TypeVar("T")


async def leave_nursery(manager: AbstractAsyncContextManager[Any]) -> BaseException | None:
    """Leave a nursery that was entered by hand; return its exceptions merged into one, or None."""
    try:
        await manager.__aexit__(None, None, None)
    except BaseException as error:  # noqa: ASYNC103, BLE001 - raised by settle()
        return single(error, current_backend().Cancelled)  # noqa: ASYNC104
    return None


def settle(
    failure: BaseException | None,
    error: BaseException | None,
    raised: BaseException | None,
    cancelled: type[BaseException],
) -> None:
    """Decide which exception an owner of runs raises, in the same way for a block and a scope.

    Args:
        failure: An unobserved failure of a run.
        error: The exception of the block's body.
        raised: The exception of the nursery: a cancellation from outside, a KeyboardInterrupt or a
            SystemExit.
        cancelled: The backend's cancellation class.

    Raises:
        BaseException: The exception that has priority over the body's; see
            :mod:`sluicegate._exceptions`.
    """
    raise_first([] if failure is None else [failure], error, raised, cancelled, _tell_failure)


def _tell_failure(failure: BaseException) -> str:
    return f"and the run that it cancelled failed while unwinding: {brief(failure)}"


def left_elsewhere(
    name: str | None, failure: BaseException | None, raised: BaseException | None
) -> BaseException:
    """Return the exception of an owner that exits in another task, after its runs have unwound."""
    owner = "a workflow_scope" if name is None else f"the block of a run of {name}"
    msg = (
        f"{owner} was entered in one task and left in another, so it cancelled its runs; expected "
        "both in one, or runs that a nursery owns: workflow.run(...).start_soon(nursery)"
    )
    failures = [] if failure is None else [failure]
    return refusal_or_urgent(WorkflowRuntimeError(msg), failures, raised, _tell_earlier_failure)


def _tell_earlier_failure(failure: BaseException) -> str:
    return f"and a run in it had failed: {brief(failure)}"


class OwnedRun(Protocol):
    """The interface of a run to its scope; the handler has it."""

    async def _own(self) -> None: ...

    async def _outlast(self) -> BaseException | None: ...

    def _abandon(self, task: object = None, /) -> None: ...

    def _cancel(self, reason: str) -> None: ...

    def _note_owner_cancelled(self) -> None: ...

    def _detach_readers(self) -> None: ...

    def _has_failed(self) -> bool: ...

    def _start_in_scope(self, scope: WorkflowScope) -> None: ...

    def _refuse(self, reason: str) -> None: ...

    def _unobserved(self) -> BaseException | None: ...


@final
class WorkflowScope:
    """An owner for the runs that are started inside it; see :func:`workflow_scope`."""

    __slots__ = (
        "_loop",
        "_manager",
        "_nursery",
        "_offered",
        "_runs",
        "_starter",
        "_task",
        "_thread",
        "_token",
    )

    def __init__(self) -> None:
        self._manager: AbstractAsyncContextManager[Nursery] | None = None
        self._nursery: Nursery | None = None
        #: The runs that execute here, and whether the scope raises their failures.
        self._runs: dict[OwnedRun, bool] = {}
        #: The runs that no owner has claimed yet, with their context variables.
        self._offered: dict[ReferenceType[OwnedRun], Context] = {}
        self._token: Token[WorkflowScope | None] | None = None
        self._starter: Waiter | None = None
        self._task: Any = None
        self._thread = 0
        self._loop: Any = None

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._manager is not None:
            msg = "this workflow_scope was entered before; expected a new `workflow_scope()`"
            raise WorkflowRuntimeError(msg)
        backend = current_backend()
        self._manager = manager = backend.open_owner()
        self._begin(backend, await manager.__aenter__())
        self._task = backend.current_task()
        self._token = current_scope.set(self)
        return self

    def _begin(self, backend: Backend, nursery: Nursery) -> None:
        self._nursery = nursery
        self._thread = get_ident()
        self._loop = backend.current_loop()
        self._starter = backend.waiter()
        nursery.start_soon(self._start_offered, self._starter, name="workflow_scope")

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        assert self._manager is not None
        assert self._token is not None
        backend = self._in_its_loop("left")
        is_elsewhere = self._task is not backend.current_task()
        reason = None
        if is_elsewhere:
            reason = "its scope was left in another task"
        else:
            with suppress(ValueError):  # a coroutine may be driven in several contexts
                current_scope.reset(self._token)
        if error is not None:
            reason = f"its scope was left by {type(error).__name__}"
            if is_cancellation(error, backend.Cancelled):
                for run in self._runs:
                    run._note_owner_cancelled()
        raised = await self._end(reason, is_elsewhere=is_elsewhere)  # noqa: ASYNC102 - as a nursery's
        failure = self._failure()
        if is_elsewhere:
            raise left_elsewhere(None, failure, raised)
        settle(failure, error, raised, backend.Cancelled)

    def _in_its_loop(self, what: str) -> Backend:
        backend = current_backend()
        if backend.current_loop() is not self._loop:
            msg = (
                f"a workflow_scope was entered in one event loop and {what} in another, and cannot "
                "wait for its runs there; expected both in one event loop"
            )
            raise WorkflowRuntimeError(msg)
        return backend

    async def _end(self, reason: str | None, *, is_elsewhere: bool = False) -> BaseException | None:
        """Refuse new runs, cancel the active ones if there is a reason, and wait for their end."""
        assert self._manager is not None
        if reason is None:
            self._start_all()
        self._nursery = None
        if self._starter is not None:
            self._starter.wake()
        for run, is_own in tuple(self._runs.items()):
            if is_own:
                run._detach_readers()
        if reason is not None:
            self.cancel(reason)
        self._offered.clear()
        raised = None
        if is_elsewhere:
            for run in tuple(self._runs):
                left = await run._outlast()
                raised = raised if left is None else left
        else:
            raised = await leave_nursery(self._manager)
        for run in self._runs:
            run._abandon()
        return raised

    def _failure(self) -> BaseException | None:
        """Return the first unobserved failure, with a note for each further one."""
        owned = [run for run, is_own in self._runs.items() if is_own]
        failures = [failure for run in owned if (failure := run._unobserved()) is not None]
        for other in failures[1:]:
            note_once(failures[0], f"and another run of the same scope failed: {brief(other)}")
        self._runs.clear()
        return failures[0] if failures else None

    @enable_ki_protection
    def cancel(self, reason: str = "scope.cancel() was called") -> None:
        """Cancel all runs of the scope, as ``handler.cancel()`` does. Not a checkpoint.

        Runs that have not begun never begin. The scope still takes new runs. A server calls this
        before it leaves its scope, because leaving waits for the runs.

        Args:
            reason: The reason that ``WorkflowCancelledError`` and the terminal events show.

        Raises:
            WorkflowRuntimeError: The call comes from another thread.
        """
        for offered in tuple(self._offered):
            run = offered()
            if run is not None:
                run._refuse(reason)
        for run in tuple(self._runs):
            run._cancel(reason)

    @enable_ki_protection
    async def aclose(self, reason: str = "its scope was closed") -> None:
        """Cancel all runs of a scope of :func:`open_scope`, and wait for their clean-up.

        A checkpoint. Cancelled, it still waits. Closing a closed scope does nothing.

        Args:
            reason: The reason that ``WorkflowCancelledError`` and the terminal events show.

        Raises:
            WorkflowRuntimeError: The scope belongs to a block or to another event loop.
        """
        if self._token is not None or self._manager is None:
            msg = "aclose() is for a scope of open_scope(); expected the block of this one to end"
            raise WorkflowRuntimeError(msg)
        backend = self._in_its_loop("closed")
        if lasting.scope is self:
            lasting.scope = None
        raised = None
        if self._nursery is not None:
            raised = await self._end(reason)
        settle(self._failure(), None, raised, backend.Cancelled)

    @property
    def is_lasting(self) -> bool:
        """Whether it is a scope of :func:`open_scope`, whose failures stay with the handlers."""
        return self._token is None

    @property
    def is_open(self) -> bool:
        """Whether it takes new runs."""
        return self._nursery is not None

    @enable_ki_protection
    def offer(self, run: OwnedRun) -> bool:
        """Schedule a run, which starts in the next turn if it has no other owner then.

        The reference is weak: a handler that is dropped at once never runs.

        Returns:
            Whether the scope has scheduled it: it is open, and belongs to this event loop.
        """
        if self._nursery is None or self._starter is None or not self.is_here():
            return False
        if not self._offered:
            self._starter.wake()
        self._offered[ref(run)] = copy_context()
        return True

    def is_here(self) -> bool:
        """Whether the caller runs in the scope's event loop; other threads inherit it too."""
        return get_ident() == self._thread and is_current_loop(self._loop)

    def withdraw(self, run: OwnedRun) -> Context | None:
        """Release an offered run to another owner; return its context variables."""
        return self._offered.pop(ref(run), None)

    @enable_ki_protection
    async def _start_offered(self, starter: Waiter) -> None:
        """Start the unclaimed runs: one task for all, woken once per batch."""
        while self._nursery is not None:
            if not self._offered:
                await starter.wait()
            self._start_all()
        await current_backend().checkpoint_if_cancelled()

    def _start_all(self) -> None:
        for offered in tuple(self._offered):
            run = offered()
            if run is None:
                del self._offered[offered]
            else:
                run._start_in_scope(self)

    def is_cancelled(self) -> bool:
        """Whether a scope around this one is cancelled, even if its runs do not see it yet."""
        ask: Any = getattr(self._manager, "is_cancelled", None)
        return ask is not None and bool(ask())

    def check_open(self) -> None:
        """Raise if the scope has exited, or belongs to another event loop."""
        if self._nursery is None:
            msg = (
                "the workflow_scope has been left, so it can no longer own a run; expected "
                "the run to be used inside its block"
            )
            raise WorkflowRuntimeError(msg)
        if not self.is_here():
            msg = (
                "the workflow_scope around this call belongs to another event loop, and cannot own "
                "a run of this one; expected `async with workflow_scope():` here"
            )
            raise WorkflowRuntimeError(msg)

    @enable_ki_protection
    def start(
        self,
        run: OwnedRun,
        context: Context | None,
        *,
        is_own: bool = True,
        goes_on: bool = False,
    ) -> None:
        """Start a run and own it.

        Args:
            run: The run.
            context: The context variables of the run; by default the current ones.
            is_own: Whether the scope raises an unobserved failure of the run on exit.
            goes_on: Whether another scope has started it, so that this one only waits for it.
        """
        self.check_open()
        assert self._nursery is not None
        start_soon = self._nursery.start_soon
        own = self._wait_for if goes_on else self._own
        task = start_soon(own, run) if context is None else context.run(start_soon, own, run)
        if task is not None and not goes_on:
            # asyncio may cancel a task before it has started; then none of its code runs.
            task.add_done_callback(run._abandon)
        self._runs[run] = is_own

    def let_go(self, run: OwnedRun) -> None:
        """Give a run that executes here another owner, which raises its failure."""
        if run in self._runs:
            self._runs[run] = False

    def forget(self, run: OwnedRun) -> None:
        """Drop a run that has ended and whose failure was observed."""
        self._runs.pop(run, None)

    @enable_ki_protection
    async def _own(self, run: OwnedRun) -> None:
        await run._own()
        self._forget_success(run)

    @enable_ki_protection
    async def _wait_for(self, run: OwnedRun) -> None:
        interruption = await run._outlast()
        self._forget_success(run)
        if interruption is not None:
            raise interruption

    def _forget_success(self, run: OwnedRun) -> None:
        if not run._has_failed() or not self._runs.get(run):
            self.forget(run)  # or the scope of a server would keep every run


class _Lasting:
    """Holds the scope of :func:`open_scope`. An attribute, because a lookup then needs no call."""

    scope: WorkflowScope | None = None


lasting = _Lasting()


def workflow_scope() -> WorkflowScope:
    """Open an owner for runs that are used without another owner.

    ::

        async with workflow_scope():
            handler = workflow.run(topic="locks")
            async for event in handler.stream_events():
                print(event)
            print(await handler)

    Inside the block, the scope starts each run that is not awaited, entered or given to a nursery
    by the next pass of the event loop, or earlier, when its handler is first used. The run gets
    a copy of the context variables at the call of ``workflow.run()``. You can claim it
    later: ``async with handler`` waits for it or cancels it as that block does, and with
    ``handler.start_soon(nursery)`` the nursery waits for it; the new owner then raises its failure.
    If a handler is dropped before that pass, its run never starts, and a warning says so.

    You can pass the scope to other tasks, which start runs in it with ``handler.start_soon(scope)``,
    for example for the requests of a server whose runs outlive them. A normal exit of the block
    waits for all its runs; the readers of the active ones become lossy, so that no step waits
    for them. An exit with an exception or a cancellation cancels the runs and waits for their
    clean-up.

    Raises:
        BaseException: On exit: the first unobserved failure of a run, with a note
            for each further one.
        WorkflowRuntimeError: The block exited in another task than it was entered in. Its runs have
            been cancelled and have ended, unless that task runs in another event loop.
    """
    return WorkflowScope()


def open_scope() -> WorkflowScope:
    """Open an owner for the runs of a notebook that lasts across cells. Not a checkpoint.

    ::

        scope = sluicegate.open_scope()  # in the first cell
        handler = Writer().run(topic="locks")  # in another: it starts automatically
        async for event in handler.stream_events():
            ...  # in a third
        await scope.aclose()  # in the last: cancels the active runs

    Until it is closed, it owns the runs of this event loop without another owner, whatever
    cell or task creates them, as in the block of a :func:`workflow_scope`. Calling it again
    returns the open scope. A failure stays with its handler: awaiting the handler raises it,
    and dropping a handler with an unobserved failure warns.

    Returns:
        The scope; ``await scope.aclose()`` ends it.

    Raises:
        WorkflowRuntimeError: The event loop is Trio's, where each task has a parent that waits for
            it; use ``async with workflow_scope()``.
        RuntimeError: There is no event loop.
    """
    backend = current_backend()
    scope = lasting.scope
    if scope is not None and scope.is_open and scope._loop is backend.current_loop():
        return scope
    manager = backend.open_lasting_owner()
    if manager is None:
        msg = (
            "open_scope() is for notebooks, whose event loop is asyncio's, and this one is Trio's; "
            "expected `async with workflow_scope():` around the runs"
        )
        raise WorkflowRuntimeError(msg)
    scope = lasting.scope = WorkflowScope()
    scope._manager = manager
    scope._begin(backend, manager)
    return scope


def run(
    main: Callable[..., Awaitable[T]],
    *args: Any,
    backend: Literal["trio", "asyncio"] = "trio",
    backend_options: dict[str, Any] | None = None,
) -> T:
    r"""Run an async function in a new event loop, inside a :func:`workflow_scope`.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP unwind the program like a cancellation and wake the event
    loop at any moment: every clean-up runs to completion if its awaits are shielded.
    A second signal of the same kind lists the tasks that still unwind on standard error; if
    a step blocks the event loop, the signal is raised in that step. A third ends the process.
    SIGQUIT (Ctrl-\) prints what every run waits for on standard error, as :func:`dump_runs` does, and
    changes nothing. This applies in the main thread, to signals with the default disposition, which is restored
    afterwards.

    Args:
        main: The async function, which is called with ``args``.
        *args: The arguments of ``main``.
        backend: ``"trio"`` or ``"asyncio"``.
        backend_options: Keyword arguments for ``trio.run``, or the ``backend_options`` of
            ``anyio.run`` (``{"use_uvloop": True}``).

    Returns:
        The return value of ``main``, after every run that it started has ended.

    Raises:
        WorkflowRuntimeError: An event loop already runs in this thread, as in a notebook.
        TypeError: ``main`` is a coroutine, not a function.
        ValueError: There is no such backend.
        KeyboardInterrupt: SIGINT was received, and everything has unwound.
        SystemExit: SIGTERM or SIGHUP was received (the code is 128 + its number), and everything
            has unwound.
        BaseException: The exception of ``main``, or else the first unobserved failure of a run.
    """
    if inspect.iscoroutine(main):
        main.close()
        msg = "run() was given a coroutine; expected the function: run(main), not run(main())"
        raise TypeError(msg)

    async def scoped() -> T:
        async with workflow_scope():
            return await main(*args)

    if backend not in ("trio", "asyncio"):
        msg = f"there is no backend {backend!r}; expected 'trio' or 'asyncio'"
        raise ValueError(msg)
    _check_no_loop(backend)
    # Neither is needed inside an event loop.
    from sluicegate._engine.dump import text_of_runs  # noqa: PLC0415
    from sluicegate._loop.signals import Signals  # noqa: PLC0415

    name = f"{getattr(main, '__module__', '')}.{getattr(main, '__qualname__', repr(main))}"
    return Signals(text_of_runs).run(scoped, backend, backend_options or {}, name=name)


def _check_no_loop(backend: str) -> None:
    try:
        running = current_backend().name
    except RuntimeError:
        return
    if running == "asyncio" and backend == "trio":
        return  # Trio runs inside asyncio, which waits meanwhile
    instead = "`async with sluicegate.workflow_scope(): await main()`"
    if running == "asyncio":
        instead += ", or in a notebook `sluicegate.open_scope()` once, and then `await main()`"
    msg = (
        f"run(main, backend={backend!r}) starts an event loop, and one of {running} runs here "
        f"already; expected {instead}"
    )
    raise WorkflowRuntimeError(msg)
