"""Scopes: an owner for runs that were not given one, and the rule of what leaves an owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self, final

from penstock._backends import current_backend, enable_ki_protection
from penstock._engine.outcome import URGENT, only_cancelled, single
from penstock._engine.runner import current_scope
from penstock._errors import WorkflowRuntimeError


if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from contextvars import Token

    from penstock._backends import Nursery


async def leave_nursery(manager: AbstractAsyncContextManager[Any]) -> BaseException | None:
    """Wait for the tasks of a nursery that was entered by hand; return what it raised, as one."""
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
    """Decide what leaves an owner, the same way for a block and a scope.

    Args:
        failure: A failure of a run that nobody has seen.
        error: What the body of the block raised.
        raised: What came out of the nursery: a cancellation from outside, a KeyboardInterrupt or
            a SystemExit.
        cancelled: The backend's cancellation.

    Raises:
        BaseException: What comes before the body's exception. KeyboardInterrupt and SystemExit
            come first, then the body's exception, then a failure of the run; a cancellation
            comes last, for it was only the messenger.
    """
    for urgent in (raised, failure):
        if isinstance(urgent, URGENT):
            raise urgent
    if error is not None and not only_cancelled(error, cancelled):
        if failure is not None:
            error.add_note(f"and the run that it cancelled failed while unwinding: {failure!r}")
        return
    if failure is not None:
        raise failure
    if raised is not None and (error is None or not only_cancelled(raised, cancelled)):
        raise raised


class OwnedRun(Protocol):
    """A run, as its scope sees it: the handler."""

    async def _own(self) -> None: ...

    def _abandon(self) -> None: ...

    def _cancel(self, reason: str) -> None: ...

    def _detach_readers(self) -> None: ...

    def _has_failed(self) -> bool: ...

    def _unobserved(self) -> BaseException | None: ...


@final
class WorkflowScope:
    """An owner for the runs that are started inside it; see :func:`workflow_scope`."""

    __slots__ = ("_manager", "_nursery", "_runs", "_token")

    def __init__(self) -> None:
        self._manager: AbstractAsyncContextManager[Nursery] | None = None
        self._nursery: Nursery | None = None
        self._runs: dict[OwnedRun, None] = {}
        self._token: Token[WorkflowScope | None] | None = None

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        self._manager = current_backend().open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._token = current_scope.set(self)
        return self

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        assert self._manager is not None
        assert self._token is not None
        current_scope.reset(self._token)
        for run in tuple(self._runs):
            run._detach_readers()
            if error is not None:
                run._cancel(f"its scope was left by {type(error).__name__}")
        self._nursery = None  # who is left takes nothing new
        raised = await leave_nursery(self._manager)  # noqa: ASYNC102 - as a nursery's own
        for run in self._runs:
            run._abandon()
        failures = [failure for run in self._runs if (failure := run._unobserved()) is not None]
        for other in failures[1:]:
            failures[0].add_note(f"and another run of the same scope failed: {other!r}")
        self._runs.clear()
        first = failures[0] if failures else None
        settle(first, error, raised, current_backend().Cancelled)

    @enable_ki_protection
    def start(self, run: OwnedRun) -> None:
        """Start a run and take it over."""
        if self._nursery is None:
            msg = (
                "the workflow_scope has been left, so it can own no run any more; expected "
                "the run to be used inside its block"
            )
            raise WorkflowRuntimeError(msg)
        self._runs[run] = None
        self._nursery.start_soon(self._own, run)

    def forget(self, run: OwnedRun) -> None:
        """Let go of a run that is over and whose failure has been seen."""
        self._runs.pop(run, None)

    @enable_ki_protection
    async def _own(self, run: OwnedRun) -> None:
        await run._own()
        if not run._has_failed():
            self.forget(run)  # a scope may live as long as a server


def workflow_scope() -> WorkflowScope:
    """Open an owner for runs that are used without one of their own.

    ::

        async with workflow_scope():
            handler = workflow.run(topic="locks")
            async for event in handler.stream_events():
                print(event)
            print(await handler)

    Inside the block a run starts when its handler is first used. Leaving the block normally
    waits for all its runs; the readers of those that go on become lossy, so that no step waits
    for them. Leaving it by an exception or a cancellation cancels the runs and waits for their
    clean-up.

    Raises:
        BaseException: On leaving: the first failure of a run that nobody has seen, with a note
            for each further one.
    """
    return WorkflowScope()
