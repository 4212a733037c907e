"""Resource scopes: a resource of a run or a workflow is created once, and closed with its scope.

Each resource that needs closing gets a separate task, its keeper, shielded from cancellations
around it: a native ``Task.cancel()`` of the owner of the scope reaches only a task that
waits. The keepers close their resources one after another, in reverse order.
"""

from __future__ import annotations

import inspect
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NoReturn, Self, final

from sluicegate._engine.entered import (
    EnteredManager,
    ResourceLife,
    call,
    ended_early,
    has_to_be_entered,
    tell_failure,
)
from sluicegate._errors import WorkflowRuntimeError, unasked_cancellation
from sluicegate._exceptions import (
    add_note,
    is_a,
    is_cancellation,
    raise_first,
    refusal_or_urgent,
    single,
    without_cancelled,
)
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._loop.run_in_context import let_interrupts_in, run_in_context


if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractAsyncContextManager
    from contextvars import Context as ContextVars

    from sluicegate._definition.resources import ResourcePlan
    from sluicegate._engine.entered import NeededBy
    from sluicegate._loop import Backend, Nursery, Waiter


class _Entry:
    """A resource in its scope, from the moment it is first asked for."""

    __slots__ = (
        "error",
        "has_value",
        "hold",
        "is_over",
        "is_to_close",
        "keeper",
        "life",
        "of_block",
        "opening",
        "plan",
        "value",
        "waiters",
    )

    def __init__(self, backend: Backend, plan: ResourcePlan, *, of_block: bool) -> None:
        self.plan = plan
        self.hold = EnteredManager(backend, plan)
        #: Whether the scope was entered when it was asked for, so that it goes with the block.
        self.of_block = of_block
        #: The keeper's shield; cancelled, if the scope ends while the resource is being opened.
        self.opening: Any = backend.cancel_scope(shield=True)
        self.keeper: Waiter = backend.waiter()
        self.is_to_close = False
        #: Whether it is made, or will not be; in the end there is a value, an error, or neither.
        self.is_over = False
        self.has_value = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.waiters: list[Waiter] = []
        #: What records it, in an observed run.
        self.life: ResourceLife | None = None

    async def wait(self, backend: Backend) -> None:
        """Wait until it is over. A checkpoint; cancelled, it leaves nothing behind."""
        waiter = backend.waiter()
        self.waiters.append(waiter)
        try:
            while not self.is_over:
                await waiter.wait()
        finally:
            self.waiters.remove(waiter)

    def succeed(self, value: Any) -> None:
        self.value = value
        self.has_value = True
        self.note_opened()
        self.end()

    def note_opened(self) -> None:
        """Record that it has been opened. Of one of a workflow, no run records the closing."""
        if self.life is not None:
            self.life.opened()
            if self.plan.scope == "workflow":
                self.life = None

    def note_not_opened(self, error: BaseException) -> None:
        """Record that it could not be opened."""
        if self.life is not None:
            self.life.not_opened(error)
            self.life = None

    def note_closing(self) -> None:
        """Note that closing it begins."""
        if self.life is not None:
            self.life.closing()

    def note_closed(self, failure: BaseException | None) -> None:
        """Record that it has been closed, or failed to close."""
        if self.life is not None:
            self.life.closed(failure)

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.end()

    def end(self) -> None:
        self.is_over = True
        for waiter in self.waiters:
            waiter.wake()

    def close(self) -> None:
        self.is_to_close = True
        self.keeper.wake()


@final
class ResourceScope:
    """The resources of a run or of a workflow: an async context manager around the code that uses them.

    Entering it is not a checkpoint. Exiting is one if a resource needs closing: it cancels
    the factories that still run and waits for their clean-up, then closes the resources in reverse
    order, one after another, shielded from any cancellation, each within its
    grace. Managers get the exception of the block, or :attr:`ended_by`; they cannot
    suppress it. If the exit is cancelled, even natively, it still completes all of this.

    Outside its block, the scope of a workflow still creates and keeps resources that need no closing.
    It can be entered again, and used from any number of tasks of one event loop.

    Args:
        scope: ``"run"`` or ``"workflow"``.
        outer: For a run, the scope of its workflow.
        context: For a run, the context given to each factory that asks for it.
        variables: The context variables that factories see; by default those at entering.
        on_failure: Called immediately, in the event loop, with each failure that no :meth:`get`
            can raise: a resource that ends by itself, or that fails to close. Without it, the first
            such failure cancels the block and is raised when the block is left.

    Raises:
        BaseException: On leaving: the exception of the block; or else a cancellation from
            outside that came meanwhile. Without ``on_failure``: the first failure, in place of a
            cancellation, or as a note on another exception of the block, as all others are.

    Attributes:
        ended_by: The failure that ended what the scope is for, where it does not leave the
            block as an exception; set by the owner before leaving.
    """

    __slots__ = (
        "_backend",
        "_building",
        "_context",
        "_ended_by",
        "_entries",
        "_failures",
        "_is_closing",
        "_is_over",
        "_leaver",
        "_loop",
        "_manager",
        "_nursery",
        "_on_failure",
        "_opened",
        "_own_variables",
        "_task",
        "_variables",
        "ended_by",
        "outer",
        "scope",
    )

    def __init__(
        self,
        scope: str,
        *,
        outer: ResourceScope | None = None,
        context: object = None,
        variables: ContextVars | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.scope = scope
        self.outer = outer
        self.ended_by: BaseException | None = None
        self._context = context
        self._own_variables = variables
        self._variables: ContextVars | None = None
        self._on_failure = on_failure
        self._backend: Backend | None = None
        self._manager: AbstractAsyncContextManager[Nursery] | None = None
        self._nursery: Nursery | None = None
        self._entries: dict[Hashable, _Entry] = {}
        self._building: set[_Entry] = set()
        #: The resources to close, in the order of their opening.
        self._opened: list[_Entry] = []
        self._failures: list[BaseException] = []
        self._ended_by: BaseException | None = None
        self._is_closing = False
        self._is_over = False
        #: The task that entered the block, its event loop, and the waiter of an exit in another task.
        self._task: Any = None
        self._loop: Any = None
        self._leaver: Waiter | None = None

    # -- requests ----------------------------------------------------------------------------

    @enable_ki_protection
    async def get(self, plan: ResourcePlan, needed_by: NeededBy | None = None) -> Any:
        """Return a resource; the first request creates it, which its run records if it is observed.

        A checkpoint if the factory runs or has to run. A cancellation does not affect the factory;
        if the scope is not entered, the next task that waits runs it instead.

        Raises:
            BaseException: The exception of the factory or the context manager, the same object for
                all waiting tasks. The next request runs the factory again.
            WorkflowRuntimeError: The scope has ended; or it is not entered, and the resource needs
                closing.
        """
        if plan.scope != self.scope:
            assert self.outer is not None, f"no scope for {plan.name}"
            return await self.outer.get(plan, needed_by)
        while True:  # noqa: ASYNC913 - it waits, or makes it, or is done
            entry = self._entries.get(plan.key)
            if entry is None:
                # Each of these handles its own cancellation, so the requesting task can wait for them.
                arguments = {name: await self.get(needed, needed_by) for name, needed in plan.needs}
                if plan.key in self._entries:
                    continue
                entry = await self._make(plan, arguments, needed_by)
            if not entry.is_over:
                await entry.wait(self._backend or current_backend())
            if entry.has_value:
                return entry.value
            if entry.error is not None:
                self._forget(entry)
                try:
                    raise entry.error
                finally:
                    del entry, plan  # or this frame and its exception form a circle

    async def _make(
        self, plan: ResourcePlan, arguments: dict[str, Any], needed_by: NeededBy | None
    ) -> _Entry:
        """Make a resource that needs no time here and now; have others made by a keeper.

        The factory is called immediately. If it returns a coroutine or a context manager, a keeper task
        opens that, so a cancellation of the requesting task does not affect it. Waits only if the
        scope is not entered and the factory is a coroutine function. A failed call leaves no entry.
        """
        self._check_open(plan)
        backend = self._backend or current_backend()
        if plan.context_as is not None:
            arguments[plan.context_as] = self._context
        variables = self._fresh_variables()
        life = None if needed_by is None else ResourceLife(plan, needed_by)
        try:
            made = variables.run(call, plan.make, arguments)
        except BaseException as error:
            if isinstance(error, Exception):
                add_note(error, f"while the resource {plan.name} was made")
            if life is not None:
                life.not_opened(error)
            raise
        nursery = self._nursery
        entry = _Entry(backend, plan, of_block=nursery is not None)
        entry.life = life
        self._entries[plan.key] = entry
        if not (inspect.iscoroutine(made) or has_to_be_entered(plan, made)):
            entry.succeed(made)
        elif nursery is not None:
            self._building.add(entry)
            variables.run(self._start_keeper, nursery, backend, entry, made)
        else:
            await self._make_without_keeper(entry, made, variables)
        return entry

    def _start_keeper(self, nursery: Nursery, backend: Backend, entry: _Entry, made: Any) -> None:
        nursery.start_soon(self._keep, backend, entry, made, name=f"resource {entry.plan.name}")

    async def _make_without_keeper(self, entry: _Entry, made: Any, variables: ContextVars) -> None:
        """Create a resource that needs no closing, in the task that requested it.

        A cancellation gives up the attempt: the next task that waits creates it. An exception is kept
        for all tasks that wait.
        """
        plan = entry.plan
        try:
            if inspect.iscoroutine(made):
                try:
                    let_interrupts_in(made.cr_code)
                    made = await run_in_context(made, variables)
                except Exception as error:
                    add_note(error, f"while the resource {plan.name} was made")
                    raise
            if has_to_be_entered(plan, made):
                raise WorkflowRuntimeError(self._not_entered(plan))  # noqa: TRY301 - as the rest
            entry.succeed(made)
        except BaseException as error:
            if isinstance(error, Exception):
                entry.error = error
            entry.note_not_opened(error)
            raise
        finally:
            if (
                not entry.has_value
            ):  # who waits gets the error, or, after a cancellation, tries again
                self._forget(entry)
                entry.end()

    def _check_open(self, plan: ResourcePlan) -> None:
        if self._is_closing or self._is_over:
            raise WorkflowRuntimeError(self._has_ended(plan))

    def _has_ended(self, plan: ResourcePlan) -> str:
        return (
            f"the {self.scope}'s scope has ended, and {plan.name} belongs to it; expected it to be "
            "asked for earlier, by a step that the scope waits for"
        )

    def _not_entered(self, plan: ResourcePlan) -> str:
        block = "`async with workflow:`" if self.scope == "workflow" else "`async with` the scope"
        return (
            f"the resource {plan.name} is of the {self.scope}'s scope and has to be closed; "
            f"expected {block} around its runs"
        )

    def _fresh_variables(self) -> ContextVars:
        variables = (self._variables or copy_context()).copy()
        # Objects that the factory opens do not belong to the step that requested it first.
        variables.run(current_cleanup.set, None)
        return variables

    def _forget(self, entry: _Entry) -> None:
        if self._entries.get(entry.plan.key) is entry:
            del self._entries[entry.plan.key]

    # -- keeping -----------------------------------------------------------------------------

    @enable_ki_protection
    async def _keep(self, backend: Backend, entry: _Entry, made: Any) -> None:
        """Open a resource, hold it and close it: the life of a keeper. Raises nothing.

        Opening is shielded; only the end of the scope cancels it. A resource that opens in spite of that
        is closed immediately, and the tasks that wait for it are refused.
        """
        task = backend.current_task()
        with entry.opening:
            try:
                value = await entry.hold.open(made)
            except BaseException as error:  # noqa: ASYNC103 - for the tasks that wait
                if is_a(error, GeneratorExit) and not backend.is_in_task(task):
                    raise  # the coroutine is being closed
                self._fail_to_open(backend, entry, error)
            else:
                del made
                if self._is_closing:  # it finished although its scope is closing
                    entry.note_opened()
                    self._refuse(entry)
                else:
                    self._building.discard(entry)
                    if entry.hold.has_to_be_closed:
                        self._opened.append(entry)
                    entry.succeed(value)
                del value
                if entry.hold.has_to_be_closed:
                    await self._hold(backend, entry)
        self._building.discard(entry)
        self._close_next()
        if self._leaver is not None:
            self._leaver.wake()

    def _fail_to_open(self, backend: Backend, entry: _Entry, error: BaseException) -> None:
        """Record the failure of a factory; each task that waits for the resource raises it.

        If the scope's end cancelled the factory, these tasks get the refusal of an ended scope instead.
        A cancellation that no scope requested becomes a ``WorkflowRuntimeError``.
        """
        plan = entry.plan
        if not is_cancellation(error, backend.Cancelled):
            error = without_cancelled(error, backend.Cancelled)
            add_note(error, f"while the resource {plan.name} was made")
        elif self._is_closing:
            entry.note_not_opened(error)
            self._refuse(entry)
            return
        else:
            error = _cancelled(plan, error)
        entry.note_not_opened(error)
        entry.fail(error)  # and is kept until a task has observed it

    def _refuse(self, entry: _Entry) -> None:
        self._forget(entry)
        entry.is_to_close = True
        entry.fail(WorkflowRuntimeError(self._has_ended(entry.plan)))

    async def _hold(self, backend: Backend, entry: _Entry) -> None:
        """Wait for the end of the scope, or of the resource itself; then close it.

        The resource ends by itself if its own nursery or cancel scope cancels this task. A failure is
        reported, not raised. Closing is shielded and completes even after a cancellation.
        """
        plan = entry.plan
        interruption: BaseException | None = None
        try:
            while not entry.is_to_close:
                await entry.keeper.wait()
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: ASYNC103, BLE001 - for the manager, which is left
            interruption = error
        was_asked = entry.is_to_close
        entry.note_closing()
        failure = await entry.hold.close(
            self._ended_by if interruption is None else interruption,
            is_own=interruption is not None,
        )
        if failure is not None and is_cancellation(failure, backend.Cancelled):
            failure = _cancelled(plan, failure)
        elif failure is not None:
            failure = without_cancelled(failure, backend.Cancelled)
        elif not was_asked and interruption is not None:
            failure = ended_early(plan, interruption)
        entry.note_closed(failure)
        self._forget(entry)
        if entry in self._opened:
            self._opened.remove(entry)
        if failure is not None:
            self._take_failure(backend, failure)

    def _take_failure(self, backend: Backend, failure: BaseException) -> None:
        """Report a failure that no task waits for."""
        ended_by = self._ended_by
        if self._is_closing and (ended_by is None or is_cancellation(ended_by, backend.Cancelled)):
            self._ended_by = failure  # for those around it, as in nested blocks
        if self._on_failure is not None:
            self._on_failure(failure)
            return
        self._failures.append(failure)
        if self._nursery is not None and not self._is_closing:
            backend.cancel(self._nursery.cancel_scope, "a resource has failed")

    # -- the block ---------------------------------------------------------------------------

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._manager is not None or self._is_over:
            been = "has ended" if self._is_over else "is entered already"
            msg = f"the {self.scope}'s scope {been}; expected one `async with` at a time around it"
            raise WorkflowRuntimeError(msg)
        self._backend = current_backend()
        self._variables = self._own_variables or copy_context()
        self._manager = self._backend.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._task = self._backend.current_task()
        self._loop = self._backend.current_loop()
        return self

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        assert self._backend is not None
        assert self._manager is not None
        backend, manager = self._backend, self._manager
        if backend is not current_backend() or backend.current_loop() is not self._loop:
            raise WorkflowRuntimeError(self._left_elsewhere("event loop"))
        is_elsewhere = self._task is not backend.current_task()
        self._is_closing = True
        self._ended_by = error if self.ended_by is None else self.ended_by
        waits = bool(self._building or self._opened)
        for entry in self._building:
            backend.cancel(entry.opening, f"the {self.scope}'s scope has ended")
        self._close_next()
        if is_elsewhere:
            await self._leave_elsewhere(backend)  # noqa: ASYNC102 - it shields itself
        raised: BaseException | None = None
        try:
            # It gets no exception, so that it has none to wrap.
            await manager.__aexit__(None, None, None)  # noqa: ASYNC102 - as a nursery's own
        except BaseException as left:  # noqa: ASYNC103, BLE001 - raised below, if it comes first
            raised = single(left, backend.Cancelled)
        failures = self._end(backend)
        if waits and error is None and raised is None and not failures:
            # Trio's nursery keeps to itself what came while it waited.
            await backend.checkpoint_if_cancelled()  # noqa: ASYNC102 - all is closed
        raise_first(failures, error, raised, backend.Cancelled, tell_failure)

    def leftovers(self) -> list[str]:
        """Return the names of the resources that are open though the scope has ended."""
        if self.scope == "workflow" and self._manager is not None:
            return []
        return [entry.plan.name for entry in (*self._building, *self._opened)]

    async def _leave_elsewhere(self, backend: Backend) -> NoReturn:
        """Wait until all is closed, and raise: the nursery can be left in its own task only.

        The wait is shielded, and continues after a native cancellation.

        Raises:
            WorkflowRuntimeError: Always, unless a resource's failure to close is urgent (``KeyboardInterrupt``
                or ``SystemExit``), which is raised instead.
        """
        self._leaver = backend.waiter()
        while self._building or self._opened:
            try:
                with backend.cancel_scope(shield=True):
                    await self._leaver.wait()
            except backend.Cancelled:  # noqa: ASYNC103 - natively; an error is raised below
                continue  # noqa: ASYNC104
        self._leaver = None
        failures = self._end(backend)
        error = WorkflowRuntimeError(self._left_elsewhere("task"))
        raise refusal_or_urgent(error, failures, None, tell_failure)

    def _left_elsewhere(self, what: str) -> str:
        return (
            f"the {self.scope}'s scope was entered in one {what} and left in another; expected both "
            f"in one: `async with {self.scope}:` around its runs"
        )

    def _close_next(self) -> None:
        """Once all that was being opened has ended: have what was opened last closed."""
        if self._is_closing and not self._building and self._opened:
            self._opened[-1].close()

    def _end(self, backend: Backend) -> list[BaseException]:
        """Reset the scope after its block, and return the failures that no task has observed."""
        for entry in [entry for entry in self._entries.values() if entry.of_block]:
            self._forget(entry)
            if entry.error is not None and not entry.waiters:
                self._take_failure(backend, entry.error)  # it was not observed
        self._is_closing = False
        self._is_over = self.scope == "run"
        self._manager = self._nursery = self._variables = self._ended_by = self.ended_by = None
        self._backend = self._task = self._loop = None
        failures, self._failures = self._failures, []
        return failures


def _cancelled(plan: ResourcePlan, cause: BaseException) -> WorkflowRuntimeError:
    return unasked_cancellation(f"the resource {plan.name}", "nothing around it was", cause)
