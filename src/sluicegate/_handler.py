"""The handler of a run: start it, read its stream, send events, cancel it, await its result."""

from __future__ import annotations

import warnings
from collections.abc import Coroutine
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar, cast, final

from sluicegate._context import Context, outer_context
from sluicegate._cursors import read_after
from sluicegate._engine.control import (
    abandon,
    cancel,
    check_attached,
    drain,
    find_loop,
    receive,
    snapshot,
)
from sluicegate._engine.ending import leave_run
from sluicegate._engine.idle import is_idle, open_questions
from sluicegate._engine.invocation import is_step_of
from sluicegate._engine.run import check_thread
from sluicegate._engine.runner import current_scope, execute
from sluicegate._engine.step_operations import StepOperations
from sluicegate._errors import WorkflowRuntimeError, brief, unknown_name
from sluicegate._events import StopEvent
from sluicegate._exceptions import is_cancellation, is_first_urgent, set_trace, urgent_leaf
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.from_thread import HandlerFromThread
from sluicegate._questions import APPLIED, REPEATED, Acknowledgement, OpenQuestion
from sluicegate._scope import WorkflowScope, lasting, leave_nursery, left_elsewhere, settle
from sluicegate._streams import EventStream


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextlib import AbstractAsyncContextManager

    from sluicegate._engine.run import Run
    from sluicegate._events import Event
    from sluicegate._loop import Nursery


R = TypeVar("R")

_IN_SCOPE = "in a workflow_scope"
#: A nursery waits for a run that executes in a task of the scope.
_IN_NURSERY = "in a workflow_scope, and then given to a nursery"
#: It follows a durable run, which it does not own.
_ATTACHED = "by runs.attach()"


#: Names of LlamaIndex Workflows that a handler does not have, and their replacements.
_OLDER = {
    "add_done_callback": "`await handler`, in a task of a nursery",
    "cancelled": '`handler.status == "cancelled"`',
    "done": "`handler.is_done()`",
    "exception": "`handler.exceptions`",
    "get_stop_event": "`handler.stop_event`",
    "result": "`await handler`",
    "run_step": "`sluicegate.testing.step_through(workflow, ...)`",
    "stop_event_result": "`await handler`, or `handler.stop_event`",
}


class NurseryLike(Protocol):
    """A Trio nursery or an AnyIO task group."""

    def start_soon(self, async_fn: Callable[..., Awaitable[Any]], /, *args: Any) -> Any: ...


class TaskGroupLike(Protocol):
    """An ``asyncio.TaskGroup``."""

    def create_task(self, coro: Coroutine[Any, Any, Any], /) -> Any: ...


_SPELLINGS = """expected one of
    result = await workflow.run(...)                       # in place
    async with workflow.run(...) as handler: ...           # owned by a block
    handler = workflow.run(...).start_soon(nursery)        # owned by a nursery
    async with workflow_scope(): handler = workflow.run(...); ...   # owned by a scope"""


@final
class Unwound:
    """The awaitable that ``handler.cancel()`` returns: it waits until the run has unwound."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait. A checkpoint; if it is cancelled, the run still unwinds."""
        return self._wait().__await__()


@final
class _Begins(Coroutine[Any, Any, None]):
    """A coroutine that starts even if asyncio cancels its task before.

    If a task is cancelled before its first step, asyncio throws the cancellation into the unstarted
    coroutine, so none of it would run. This one first runs to its first await and is cancelled there.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        #: Stacks look for it here.
        self.coroutine = coroutine
        self._has_begun = False

    def __await__(self) -> Generator[Any, Any, None]:
        return self.coroutine.__await__()

    def send(self, value: Any, /) -> Any:
        self._has_begun = True
        return self.coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        if not self._has_begun:
            self._has_begun = True
            self.coroutine.send(None)
        return self.coroutine.throw(*error)

    def close(self) -> None:
        self.coroutine.close()


@final
class WorkflowHandler(Generic[R]):
    """One run of a workflow: unstarted when ``run()`` returns it, then started once.

    Start it by awaiting it (in place), with ``async with`` (the block owns the run), with
    :meth:`start_soon` (a nursery owns it), or, inside a :func:`workflow_scope`, by using it in
    any other way (the scope owns it). The owner exits only after the run has unwound.

    A normal exit of the ``async with`` block waits for the run; meanwhile its readers
    become lossy, so that no step waits for them. An exit with an exception or a cancellation
    cancels the run and waits for its clean-up. The owner raises a failure that was never
    observed.
    """

    __slots__ = (
        "__weakref__",
        "_awaiting",
        "_block",
        "_is_observed",
        "_keeps_failure",
        "_run",
        "_scope",
        "_started",
    )

    def __init__(self, run: Any) -> None:  # Any: the record of a run is no part of the typed API
        self._run: Run = run
        self._started = ""
        self._awaiting = 0
        self._scope: WorkflowScope | None = None
        self._is_observed = False
        self._keeps_failure = False
        self._block: tuple[AbstractAsyncContextManager[Nursery] | None, object, object] | None = (
            None
        )
        scope = current_scope.get()
        if scope is None:
            scope = lasting.scope
        if scope and scope.offer(self):
            self._scope = scope

    # -- starting --------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, R]:
        """Run in place and return the result, or wait for a run that was started before.

        A checkpoint. In place, a cancellation cancels the run and propagates after the run has
        unwound. If the call only waits, a cancellation does not affect the run.

        Returns:
            ``StopEvent.result``, or the event itself if its class is a subclass of StopEvent.

        Raises:
            Exception: The original exception of a step, with a note that names the run,
                the step and the event.
            WorkflowTimeoutError: The run did not end within its timeout.
            WorkflowStalledError: Nothing more could happen in the run.
            WorkflowCancelledError: The run was cancelled.
            WorkflowDetachedError: The run is durable and has left this process before its end: its
                owner was left, its lease was lost, or its store has failed.
        """
        return self._await().__await__()

    @enable_ki_protection
    async def _await(self) -> R:
        if is_step_of(self._run):
            msg = (
                f"a step of the run {self.run_id} awaits its own run, which cannot end before the "
                "step does; expected the step to return, or another run"
            )
            raise WorkflowRuntimeError(msg)
        if not self._started:
            self._start("in place")
            self._run.warns_of_idle = self._run.part is None  # anybody can answer from elsewhere
            await self._run_alone()
        else:
            self._awaiting += 1
            try:
                await self._wait()
            finally:
                self._awaiting -= 1
        try:
            return self.result()
        finally:
            del self  # as in result()

    @enable_ki_protection
    async def _wait(self) -> None:
        """Wait for the end of the run. A checkpoint."""
        outcome = self._run.outcome
        backend = current_backend()
        if outcome.is_over:
            await backend.checkpoint()
            return
        check_thread(self._run, "await handler")
        # This task reads no stream while it waits, so its readers must not hold up the run.
        log = self._run.log
        resting = log.rest(backend.current_task())
        waiter = backend.waiter()
        if outcome.waiters is None:
            outcome.waiters = []
        outcome.waiters.append(waiter)
        try:
            while not outcome.is_over:
                await waiter.wait()
        finally:
            outcome.waiters.remove(waiter)
            log.read_on(resting)

    @enable_ki_protection
    async def _outlast(self) -> BaseException | None:
        """Wait until the run has unwound, and return the exception that interrupted the wait, if any.

        An interruption cancels the run; the wait then continues, shielded.
        """
        backend = current_backend()
        interruption: BaseException | None = None
        while not self._run.outcome.is_over:
            try:
                with backend.cancel_scope(shield=interruption is not None):
                    await self._wait()
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: ASYNC103, BLE001 - returned
                if interruption is None or is_first_urgent(error, interruption):
                    interruption = error
                self._cancel(f"its owner was interrupted by {type(error).__name__}")
        return interruption  # noqa: ASYNC910 - nothing to wait for

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Start the run and own it; a run that a scope has started gets this block as its new owner."""
        backend = current_backend()
        task, loop = backend.current_task(), backend.current_loop()
        if self._started == _ATTACHED:
            await backend.checkpoint()
            return self
        if self._started == _IN_SCOPE:
            self._take_over("in a workflow_scope, and then owned by a block")
            self._block = None, task, loop
            return self
        self._start("in a block")
        manager = backend.open_owner()
        nursery = await manager.__aenter__()
        self._run.is_owner_cancelled = getattr(manager, "is_cancelled", None)
        self._block = manager, task, loop
        own = partial(execute, self._run) if backend.shields_from_all else self._own
        run_task = nursery.start_soon(own, name=f"{self._run.graph.name}.run")
        if run_task is not None:  # as in _start_in()
            run_task.add_done_callback(self._abandon)
        return self

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Wait for the run, after cancelling it if the block failed; raise an unobserved failure.

        Raises:
            BaseException: The run's failure, if it was not observed and the block itself did not
                fail; a cancellation from outside.
            WorkflowRuntimeError: The block was entered in another task. The run has been cancelled
                and has ended, unless that task runs in another event loop.
        """
        if self._started == _ATTACHED:
            await self._leave_run()  # noqa: ASYNC102 - it shields itself
            return
        assert self._block is not None
        manager, task, loop = self._block
        backend = current_backend()
        if loop is not backend.current_loop():
            msg = (
                "the block of a run was entered in one event loop and left in another, and cannot "
                "wait for the run there; expected both in one event loop"
            )
            raise WorkflowRuntimeError(msg)
        self._detach_readers()
        is_elsewhere = task is not backend.current_task()
        if is_elsewhere:
            self._cancel("its block was left in another task")
        elif error is not None:
            if is_cancellation(error, backend.Cancelled):
                self._note_owner_cancelled()
            self._cancel(f"its block was left by {type(error).__name__}")
        if is_elsewhere or manager is None:
            raised = await self._outlast()  # noqa: ASYNC102 - it shields itself
        else:
            raised = await leave_nursery(manager)  # noqa: ASYNC102 - as a nursery's own __aexit__
        self._block = None
        self._abandon()
        failure = self._unobserved()
        if is_elsewhere:
            raise left_elsewhere(self._run.graph.name, failure, raised)
        settle(failure, error, raised, backend.Cancelled)

    async def _leave_run(self) -> None:
        """Stop following a durable run; the run itself continues."""
        leave_run(self._run, "its reader has left")
        with current_backend().cancel_scope(shield=True):
            await self._wait()

    @enable_ki_protection
    def start_soon(
        self, nursery: NurseryLike | TaskGroupLike, *, keep_failure: bool = False
    ) -> Self:
        """Start the run in a nursery, which then owns it. Not a checkpoint.

        The nursery gets a failure of the run, unless a task awaits the handler or a reader is
        attached, which observes it.

        If a :func:`workflow_scope` has started the run, a task of the nursery waits for it, and
        cancels it when the nursery is cancelled.

        Args:
            nursery: A Trio nursery, an AnyIO task group, an ``asyncio.TaskGroup`` or a
                :func:`workflow_scope`, which raises a failure when it exits.
            keep_failure: Keep a failure in the handler, and never raise it in the nursery.

        Returns:
            The handler itself.

        Raises:
            WorkflowRuntimeError: The run was started before.
            TypeError: ``nursery`` is not one of these.
        """
        if isinstance(nursery, WorkflowScope):
            self._start_in_scope(nursery, keep_failure=keep_failure)
            return self
        if not (hasattr(nursery, "start_soon") or hasattr(nursery, "create_task")):
            msg = (
                f"start_soon() was given {nursery!r}; expected a Trio nursery, an AnyIO task group, "
                "an asyncio.TaskGroup or a workflow_scope"
            )
            raise TypeError(msg)
        before = self._started
        if before == _IN_SCOPE:
            self._started = _IN_NURSERY
        else:
            self._start("in a nursery")
        try:
            self._start_in(nursery)
        except BaseException:  # the nursery accepts no more tasks; nothing has changed
            self._started = before
            raise
        self._keeps_failure = keep_failure
        if before == _IN_SCOPE:
            self._take_over(_IN_NURSERY)
        return self

    def _start_in(self, nursery: Any) -> None:
        if hasattr(nursery, "start_soon"):
            nursery.start_soon(self._own_in_nursery)
            return
        coroutine: Coroutine[Any, Any, None] = self._own_in_nursery()
        if self._started == _IN_NURSERY:  # it runs elsewhere, and this task waits for it
            coroutine = _Begins(coroutine)
        try:
            task = nursery.create_task(coroutine)
        except BaseException:
            coroutine.close()
            raise
        # asyncio may cancel a task before it has started; then none of its code runs.
        if self._started != _IN_NURSERY:
            task.add_done_callback(self._abandon)

    @enable_ki_protection
    def _start_in_scope(self, scope: WorkflowScope, *, keep_failure: bool = False) -> None:
        """Make a scope the owner; if another scope has started the run, the new one waits for it."""
        keep_failure = keep_failure or scope.is_lasting
        before = self._scope
        if self._started == _IN_SCOPE:
            if before is not scope:
                scope.start(self, None, is_own=not keep_failure, goes_on=True)
                if before is not None:
                    before.let_go(self)
            elif keep_failure:
                scope.let_go(self)
        else:
            scope.check_open()
            context = None if before is None else before.withdraw(self)
            self._start(_IN_SCOPE)
            self._run.is_owner_cancelled = scope.is_cancelled
            scope.start(self, context, is_own=not keep_failure)
        self._scope = scope
        self._keeps_failure = keep_failure

    def _refuse(self, reason: str) -> None:
        """Conclude a run that will never start."""
        if not self._started:
            self._started = "or cancelled before it started"  # this needs no event loop
            if self._scope is not None:
                self._scope.withdraw(self)
                self._scope = None
            abandon(self._run, reason)

    def _abandon(self, _task: object = None, /) -> None:
        """Conclude the run if its task was cancelled natively before it began."""
        abandon(self._run)

    def _start(self, how: str) -> None:
        if self._started:
            msg = (
                f"this run was started before, {self._started}, and runs once; expected a new "
                "`workflow.run(...)` for another run"
            )
            raise WorkflowRuntimeError(msg)
        run = self._run
        # From here on the run belongs to this loop and thread, before its first step.
        run.backend = backend = current_backend()
        run.thread = run.log.thread = get_ident()
        run.loop = backend.current_loop()
        self._started = how
        if self._scope is not None:
            self._scope.withdraw(self)
            self._scope = None

    def _take_over(self, how: str) -> None:
        """Replace the scope as the owner; the run continues in the task of the scope."""
        self._started = how
        if self._scope is not None:
            self._scope.let_go(self)
            self._scope = None

    def _ensure_started(self, use: str) -> None:
        if self._started:
            return
        scope = self._scope or current_scope.get()
        if scope is None and lasting.scope is not None and lasting.scope.is_here():
            scope = lasting.scope
        if not scope:
            msg = (
                f"{use} needs a started run, and this one has no owner that could run it "
                f"(a step does not inherit the scope around its run); {_SPELLINGS}"
            )
            raise WorkflowRuntimeError(msg)
        self._start_in_scope(scope)

    async def _run_alone(self) -> None:
        """Run, and raise an unobserved failure in place of the cancellation that caused it."""
        failure: BaseException | None = None
        cancelled = current_backend().Cancelled
        try:
            await execute(self._run)
        except cancelled:
            failure = self._unobserved()
            if failure is None:
                raise
        except BaseException:
            self._is_observed = True  # KeyboardInterrupt or SystemExit propagates here
            raise
        if failure is not None:
            raise failure

    @enable_ki_protection
    async def _own(self) -> None:  # noqa: ASYNC910 - the run is a checkpoint on every path
        backend = current_backend()
        try:
            await execute(self._run)
        except backend.Cancelled:
            # If only this task was cancelled, natively, AnyIO would cancel the owner's body and other runs.
            if backend.is_cancelled():
                raise

    @enable_ki_protection
    async def _own_in_nursery(self) -> None:
        if self._started == _IN_NURSERY:
            interruption = await self._outlast()
            if interruption is not None:
                is_urgent = urgent_leaf(interruption) is not None
                failure = None if is_urgent else self._unobserved()
                raise interruption if failure is None else failure
        else:
            await self._run_alone()
        # A task that awaits the handler has been woken and observes the failure in its next step,
        # unless it is cancelled now.
        while self._awaiting:
            await current_backend().cancel_shielded_checkpoint()
        if self._keeps_failure or self._run.log.has_readers:
            return
        error = self._unobserved()
        if error is not None:
            raise error

    def _cancel(self, reason: str) -> None:
        leave_run(self._run, reason)

    def _note_owner_cancelled(self) -> None:
        self._run.outcome.is_owner_cancelled = True

    def _detach_readers(self) -> None:
        self._run.log.detach_all()

    def _has_failed(self) -> bool:
        return bool(self._run.outcome.errors)

    def _observe(self) -> None:
        self._is_observed = True
        if self._scope is not None:
            self._scope.forget(self)
            self._scope = None

    def _unobserved(self) -> BaseException | None:
        """Return the failure that the owner must raise, if any, and mark it as observed."""
        outcome = self._run.outcome
        if self._is_observed or outcome.unseen is None:
            return None
        self._is_observed = True
        return outcome.unseen

    # -- reading and control ----------------------------------------------------------------

    @enable_ki_protection
    def stream_events(
        self, *, after: int | str = 0, expose_internal: bool = False, lossy: bool = False
    ) -> EventStream:
        """Attach a reader to the run's stream. Not a checkpoint.

        Each reader gets every event. A late reader, even after the end, starts at the
        oldest event kept. The store of a durable run keeps all its durable events, also those of other
        processes.

        Args:
            after: Start after this position: the :attr:`~EventStream.cursor` of a reader, also of one in
                another process, or, as an int, the number of an event in this process (see
                :attr:`EventStream.sequence`). 0 is the beginning.
            expose_internal: Include the engine's internal events.
            lossy: Hold up no sender and keep no event in memory. A lossy reader that is more than
                ``stream_history`` events behind misses the oldest of them;
                :attr:`EventStream.missed` counts them. It always gets the terminal event.

        Raises:
            WorkflowRuntimeError: The run has not been started and there is no
                :func:`workflow_scope` to start it in.
            ValueError: ``after`` is no such number and no cursor, or the cursor cannot be of this run.
        """
        log = self._run.log
        start = read_after(after, is_durable=log.numbering is not None)
        self._ensure_started("stream_events()")
        if not self._run.outcome.is_over:
            check_thread(self._run, "stream_events")
        return EventStream(log, after=start, expose_internal=expose_internal, lossy=lossy)

    @enable_ki_protection
    def send_event(
        self,
        event: Event,
        step: str | None = None,
        *,
        question: str | None = None,
        id: str | None = None,  # noqa: A002 - the public name
    ) -> Acknowledgement:
        """Send an event into the run from outside; it is applied at once. Not a checkpoint.

        Without ``question``, the oldest open question that the event matches gets it. An answer to a
        wait resumes that wait; an answer to a question that a step returned goes to the steps that
        take the event.

        Args:
            event: Usually a ``HumanResponseEvent``; any event that a step takes or waits for.
            step: The name of the only step that gets it; by default all steps that take its class.
            question: The id of the question that it answers, from :attr:`questions`.
            id: Your idempotency key for this event. A repeated id with the same content is
                acknowledged again and not applied, so a client may retry. The run
                keeps the id until its end.

        Returns:
            An object to ``await`` (a checkpoint) for the acknowledgement. Awaiting it is optional.

        Raises:
            QuestionClosedError: The question was answered, with another id or without one, or it
                was given up.
            EventConflictError: An event with other content was sent with the same ``id``.
            WorkflowDetachedError: The run is durable and has left this process; the event was not
                sent. ``runs.send_event(run_id, event)`` reaches it.
            WorkflowRuntimeError: The run has ended or has no owner, no step takes the event, it does
                not answer the question, there is no such question, or the call comes from another
                thread.
            TypeError: Both ``step`` and ``question`` are given.
        """
        if step is not None and question is not None:
            msg = (
                f"send_event was given both step={step!r} and question={question!r}; expected one of "
                "the two, because the question determines which step gets the answer"
            )
            raise TypeError(msg)
        self._ensure_started("send_event()")
        if self._run.part is not None:
            return self._run.part.send_event(event, step, question, id)
        is_new = receive(self._run, event, step, question, id)
        return APPLIED if is_new else REPEATED

    @enable_ki_protection
    def cancel(
        self,
        reason: str = "handler.cancel() was called",
        *,
        after: Literal["now", "steps"] = "now",
    ) -> Unwound:
        """Cancel the run at once; await the return value to wait until it has unwound.

        Every running step is cancelled at its next checkpoint, and its clean-up runs to
        completion. Cancelling a run again, or after its end, has no effect. An unstarted
        run never starts.

        ``after="steps"`` stops gracefully: running steps finish, no others
        start, and then the run ends, cancelled (or completed, if one of them returns the stop
        event). A step that waits for an event or a branch is cancelled then. :meth:`snapshot`
        contains the remaining work.

        Args:
            reason: The reason in ``WorkflowCancelledError`` and the terminal event.
            after: ``"now"``, or ``"steps"`` to let the running steps finish.

        Returns:
            An object to ``await`` (a checkpoint) for the end; a failure of the clean-up is then
            in :attr:`exceptions`. Awaiting it is optional.

        Raises:
            ValueError: ``after`` is neither ``"now"`` nor ``"steps"``.
            WorkflowDetachedError: The run is durable and has left this process, so that it could not
                be cancelled here: ``runs.cancel(run_id)`` reaches it.
            WorkflowRuntimeError: The call comes from another thread.
        """
        if after not in ("now", "steps"):
            msg = f"cancel(after={brief(after)}); expected 'now' or 'steps': `handler.cancel(after='steps')`"
            raise ValueError(msg)
        check_attached(self._run, f"`runs.cancel({self.run_id!r})`")
        if not self._started:
            self._refuse(reason)
        elif self._run.part is not None:
            self._run.part.cancel(reason, after)
        elif after == "steps":
            drain(self._run, reason)
        else:
            cancel(self._run, reason)
        return Unwound(self._wait)

    def cancel_run(self, reason: str = "handler.cancel_run() was called") -> Unwound:
        """Cancel the run; an alias of :meth:`cancel`."""
        return self.cancel(reason)

    @property
    def from_thread(self) -> HandlerFromThread:
        """Calls for other threads: ``handler.from_thread.send_event(event)``.

        You can get this object at any time, even before the run has started.
        """
        run = self._run
        return HandlerFromThread(
            find_loop=partial(find_loop, run),
            send_event=self.send_event,
            cancel=self.cancel,
        )

    # -- state -------------------------------------------------------------------------------

    @property
    def ctx(self) -> Context[Any]:
        """The context of the run: its state, during the run and after it."""
        return outer_context(StepOperations(self._run))

    def snapshot(self) -> dict[str, Any]:
        """Return the current state of the run as plain JSON data. Not a checkpoint.

        You can call it at any moment, even after the end; it does not affect the run. A run resumed
        from it (:meth:`Workflow.resume`) does not repeat completed steps. Steps in progress
        start again with the answers that they had received, and events that they had sent are not
        sent twice. The snapshot contains the state, the queued events, the joins, the answers and open
        questions, retries with their times, the elapsed time and the number of the last event of
        the stream, but not the stream's events or the children of steps in progress.

        Raises:
            SnapshotError: A value is not supported; the message names it and the way out.
            WorkflowRuntimeError: The call comes from another thread.
        """
        return snapshot(self._run)

    @property
    def questions(self) -> tuple[OpenQuestion, ...]:
        """The open questions of the run, oldest first, followed by those of its children.

        Each is a question that a step returned or published, or a wait for an event from outside,
        even without a published question. A run that has ended has none.
        """
        return open_questions(self._run)

    @property
    def run_id(self) -> str:
        """The identifier of the run."""
        return self._run.run_id

    @property
    def status(self) -> str:
        """The state of the run.

        ``"unstarted"``, ``"running"``, ``"idle"`` (it waits for an answer from outside), or how
        it ended: ``"completed"``, ``"failed"``, ``"timed_out"``, ``"cancelled"``. A run that
        is still unwinding is ``"running"``. A durable run that has left this process before its end is
        ``"detached"``: its part here has ended, and the run continues from its store.
        """
        outcome = self._run.outcome
        if outcome.is_over:
            return outcome.status
        if not self._started:
            return "unstarted"
        if self._run.part is not None and outcome.status == "parked":
            return self._run.part.status
        return "idle" if is_idle(self._run) else "running"

    def is_done(self) -> bool:
        """Whether the run has ended and unwound; of a durable run, its part in this process."""
        return self._run.outcome.is_over

    def result(self) -> R:
        """Return the result of a run that has ended. Not a checkpoint.

        Raises:
            WorkflowRuntimeError: The run has not ended yet.
            BaseException: As ``await handler``.
        """
        outcome = self._run.outcome
        if not outcome.is_over:
            msg = f"the run {self.run_id} is not over ({self.status}); expected `await handler`"
            raise WorkflowRuntimeError(msg)
        self._observe()
        if outcome.error is not None:
            try:
                raise set_trace(outcome.error, outcome.trace)
            finally:
                del self, outcome  # or this frame and the exception form a circle
        event = outcome.stop_event
        assert event is not None
        return cast("R", event.result if type(event) is StopEvent else event)

    @property
    def stop_event(self) -> StopEvent | None:
        """The stop event that a step returned, or None."""
        return self._run.outcome.stop_event

    @property
    def exceptions(self) -> tuple[BaseException, ...]:
        """All failures of the run in order; reading this property observes them."""
        if self._run.outcome.is_over:
            self._observe()
        return self._run.outcome.errors

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(unknown_name("WorkflowHandler", name, _OLDER))

    def __repr__(self) -> str:
        return f"<WorkflowHandler of {self._run.graph.name}, run {self.run_id}, {self.status}>"

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is None:
            return
        if not self._started:
            msg = f"a run of {run.graph.name} was never started; {_SPELLINGS}"
            warnings.warn(msg, RuntimeWarning, stacklevel=2, source=self)
        elif self._started == _ATTACHED:
            if run.part is not None:
                run.part.let_go()
        elif (
            (self._started in ("in a nursery", _IN_NURSERY) or self._keeps_failure)
            and not self._is_observed
            and run.outcome.unseen is not None
        ):
            msg = (
                f"a run of {run.graph.name} failed, and its failure was never observed: "
                f"{brief(run.outcome.error)}"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=2, source=self)


def run_of(handler: WorkflowHandler[Any]) -> Run:
    """Return the run of a handler. Internal to the package."""
    return handler._run


def attached_handler(run: Any) -> WorkflowHandler[Any]:
    """Return a handler that follows a durable run and does not own it. Internal to the package."""
    handler: WorkflowHandler[Any] = WorkflowHandler(run)
    handler._start(_ATTACHED)
    return handler


def mark_observed(handler: WorkflowHandler[Any]) -> None:
    """Mark the failures of a run as observed, so that its owner does not raise them."""
    handler._observe()
