"""Entered context managers: each is entered and exited in one task, and its exit is shielded.

A manager may open a nursery or a cancel scope. So it must exit in the task that entered it, after
everything that was opened later has closed; and the scope that shields the exit must be around it
from the start. The resources of a step are entered in the step's task.
:mod:`sluicegate._engine.resource_scopes` describes the resources of a run or a workflow.
"""

from __future__ import annotations

import inspect
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, cast, final

from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._exceptions import add_note, is_a, is_cancellation, raise_first, trace_of
from sluicegate._loop import current_backend, disable_ki_protection, enable_ki_protection
from sluicegate._loop.run_in_context import let_interrupts_in


if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sluicegate._definition.resources import ResourcePlan
    from sluicegate._engine.record_writer import RecordWriter
    from sluicegate._loop import Backend


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a factory."""
    if inspect.iscoroutinefunction(function):
        return function(**arguments)  # nothing of it runs yet, and an interrupt could lose it
    return _call(function, arguments)


@disable_ki_protection  # from here on it is the user's code
def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return function(**arguments)


@disable_ki_protection
async def _enter(manager: Any) -> Any:
    if is_async_manager(manager):
        return await manager.__aenter__()
    return manager.__enter__()


@disable_ki_protection
async def _leave(manager: Any, error: BaseException | None) -> Any:
    kind, trace = (None, None) if error is None else (type(error), trace_of(error))
    if is_async_manager(manager):
        return await manager.__aexit__(kind, error, trace)
    return manager.__exit__(kind, error, trace)


def is_async_manager(value: object) -> bool:
    return hasattr(type(value), "__aenter__") and hasattr(type(value), "__aexit__")


def has_to_be_entered(plan: ResourcePlan, value: object) -> bool:
    """Whether the return value of a factory is a context manager to enter for the resource."""
    if not plan.enter or hasattr(value, "acquire") or isinstance(value, PurePath):
        return False  # a path of Python 3.11 and 3.12 is a context manager of no use
    is_manager = hasattr(type(value), "__enter__") and hasattr(type(value), "__exit__")
    return is_manager or is_async_manager(value)


class EnteredManager:
    """One resource in the task that entered it; its exit is shielded and limited by its ``grace``."""

    __slots__ = ("_backend", "_manager", "_plan", "_scope")

    def __init__(self, backend: Backend, plan: ResourcePlan) -> None:
        self._backend = backend
        self._plan = plan
        self._manager: Any = None
        self._scope: Any = None

    @property
    def has_to_be_closed(self) -> bool:
        """Whether a context manager has been entered."""
        return self._manager is not None

    async def open(self, made: Any) -> Any:
        """Return the resource that a factory gave: awaited and entered, as need be.

        A checkpoint if the user's code is one. Cancelled, it leaves open nothing but what a
        factory has opened without a context manager.

        Raises:
            BaseException: Whatever comes out of the user's code.
        """
        if inspect.iscoroutine(made):
            let_interrupts_in(made.cr_code)
            made = await made
        if not has_to_be_entered(self._plan, made):
            return made
        # Around what the manager opens there has to be a scope that can be shielded later.
        scope = self._backend.cancel_scope()
        scope.__enter__()
        try:
            value = await _enter(made)
        except BaseException as error:
            scope.__exit__(type(error), error, trace_of(error))
            raise
        self._manager, self._scope = made, scope
        return value

    async def close(self, error: BaseException | None, *, is_own: bool) -> BaseException | None:
        """Exit the context manager, shielded and within its grace, however it handles ``error``.

        Args:
            error: What ended the use of the resource, if anything did.
            is_own: Whether it was raised in this task.

        Returns:
            The failure to close, or None. An ``error`` that the manager re-raises unchanged is not a
            failure, and neither is one that it suppresses.
        """
        backend, plan, scope = self._backend, self._plan, self._scope
        task = backend.current_task()
        scope.shield = True
        scope.deadline = backend.current_time() + plan.grace
        failure: BaseException | None = None
        is_settled = False
        try:
            is_settled = bool(await _leave(self._manager, error))
        except BaseException as raised:  # noqa: ASYNC103 - returned
            if is_a(raised, GeneratorExit) and not backend.is_in_task(task):
                raise  # the coroutine is being closed
            failure = raised
        is_late = scope.cancel_called
        failure = _without(_leave_scope(scope, failure), error)
        self._manager = self._scope = None
        if is_late:
            cause = failure
            failure = WorkflowRuntimeError(
                f"closing the resource {plan.name} took longer than its grace of {plan.grace:g} s, "
                f"and was cancelled; expected it to close in time, or "
                f"`Resource({plan.name}, grace=...)` with more"
            )
            failure.__cause__ = cause
        elif (
            is_settled
            and is_own
            and error is not None
            and is_cancellation(error, backend.Cancelled)
        ):
            is_from_around = backend.is_cancelled() or backend.is_natively_cancelled()
            failure = None if is_from_around else ended_early(plan, error)
        if failure is not None:
            add_note(failure, f"in the resource {plan.name}")
        return failure


def _leave_scope(scope: Any, error: BaseException | None) -> BaseException | None:
    """Leave a cancel scope that was entered by hand; return what is left of ``error``."""
    if error is None:
        scope.__exit__(None, None, None)
        return None
    try:
        is_caught = scope.__exit__(type(error), error, trace_of(error))
    except BaseException as rest:  # noqa: ASYNC103, BLE001 - returned
        return rest  # noqa: ASYNC104
    return None if is_caught else error


def _without(error: BaseException | None, known: BaseException | None) -> BaseException | None:
    """Return ``error``, a group or not, without ``known``."""
    if error is None or known is None or error is known:
        return None if error is known else error
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return group.split(lambda part: part is known)[1]
    return error


def ended_early(plan: ResourcePlan, cause: BaseException) -> WorkflowRuntimeError:
    """Return the failure of a resource that ended while it was in use."""
    msg = (
        f"the resource {plan.name} ended by itself while it was in use; expected it to last as "
        f"long as its scope, the {plan.scope}'s"
    )
    failure = WorkflowRuntimeError(msg)
    failure.__cause__ = cause
    return failure


class OuterScope(Protocol):
    """The scope of the run, which a step asks for the resources that are not its own."""

    async def get(self, plan: ResourcePlan, needed_by: NeededBy | None = None) -> Any: ...


#: In an observed run: what makes its records, and the number of the invocation that needs a resource.
NeededBy: TypeAlias = "tuple[RecordWriter, int]"


@final
class ResourceLife:
    """Makes the records of one resource in an observed run, from the call of its factory on."""

    __slots__ = ("_began", "_invocation", "_number", "_plan", "_records")

    def __init__(self, plan: ResourcePlan, needed_by: NeededBy) -> None:
        self._records, self._invocation = needed_by
        self._plan = plan
        self._began = self._records.now()
        self._number = 0

    def opened(self) -> None:
        """Record that it has been opened."""
        self._number = self._records.resource_opened(self._plan, self._invocation, self._began)

    def not_opened(self, error: BaseException) -> None:
        """Record that opening it has failed, or was cancelled."""
        self._records.resource_not_opened(self._plan, error)

    def closing(self) -> None:
        """Note that closing it begins."""
        self._began = self._records.now()

    def closed(self, failure: BaseException | None) -> None:
        """Record that it has been closed, or failed to close."""
        if self._number:
            self._records.resource_closed(self._number, self._plan, self._began, failure)


@final
class StepResources:
    """The resources of one invocation; an async context manager around the step.

    Resources of the step's scope are entered in the caller's task, in order, and left in reverse
    order when the block is left, with the exception that leaves it. Others come from ``outer``.

    Leaving the block is a checkpoint if closing is one. It is shielded from cancellation, but
    not from a native ``Task.cancel()`` of the same task. All resources are closed, whatever fails.

    Args:
        outer: The scope of the run.
        context: The context of the invocation, for factories that ask for it.
        needed_by: In an observed run: what makes its records, and the number of the invocation.

    Raises:
        BaseException: On leaving, the exception of the block, with a note for each failure to
            close; where there is none or only a cancellation, the first such failure.
    """

    __slots__ = ("_backend", "_context", "_held", "_needed_by", "_outer", "_values")

    def __init__(
        self, outer: OuterScope, context: object = None, needed_by: NeededBy | None = None
    ) -> None:
        self._outer = outer
        self._context = context
        self._needed_by = needed_by
        self._backend = current_backend()
        self._values: dict[Hashable, Any] = {}
        self._held: list[tuple[EnteredManager, ResourceLife | None]] = []

    async def __aenter__(self) -> Self:
        return self

    @enable_ki_protection
    async def get(self, plan: ResourcePlan) -> Any:
        """Return a resource, created on first use.

        A checkpoint if the factory is one and has to run. After a cancellation, the end of the block
        closes whatever was opened.

        Raises:
            BaseException: The exception of the factory or the context manager.
            WorkflowRuntimeError: The scope of the resource has ended, or must be entered first.
        """
        if plan.scope != "step":
            return await self._outer.get(plan, self._needed_by)
        if plan.key not in self._values:
            arguments = {name: await self.get(needed) for name, needed in plan.needs}
            if plan.context_as is not None:
                arguments[plan.context_as] = self._context
            hold = EnteredManager(self._backend, plan)
            life = None if self._needed_by is None else ResourceLife(plan, self._needed_by)
            try:
                self._values[plan.key] = await hold.open(call(plan.make, arguments))
            except BaseException as error:
                if isinstance(error, Exception):
                    add_note(error, f"while the resource {plan.name} was made")
                if life is not None:
                    life.not_opened(error)
                raise
            if hold.has_to_be_closed:
                self._held.append((hold, life))
            if life is not None:
                life.opened()
        return self._values[plan.key]

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        failures: list[BaseException] = []
        ended_by = error
        while self._held:
            hold, life = self._held.pop()
            if life is not None:
                life.closing()
            failure = await hold.close(  # noqa: ASYNC102 - it shields itself
                ended_by, is_own=True
            )
            if life is not None:
                life.closed(failure)
            if failure is not None:
                failures.append(failure)
                if ended_by is None or is_cancellation(ended_by, self._backend.Cancelled):
                    ended_by = failure
        self._values.clear()
        self._context = self._needed_by = None
        raise_first(failures, error, None, self._backend.Cancelled, tell_failure)


def tell_failure(failure: BaseException) -> str:
    """Return the note about a failure of a resource, on the exception that leaves."""
    return f"and a resource failed: {brief(failure)}"
