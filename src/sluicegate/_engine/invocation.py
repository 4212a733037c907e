"""Workers: a task of a run, the step that it runs, and what that step has opened."""

from __future__ import annotations

from functools import partial
from math import inf, nextafter
from typing import TYPE_CHECKING, Any

from sluicegate._context import Context, step_context, watch_progress
from sluicegate._engine.ending import note_delivery
from sluicegate._engine.idle import check_drained, note_rest
from sluicegate._engine.journal import Redelivery
from sluicegate._errors import PoisonStepError, StepTimeoutError
from sluicegate._events import StepStateChanged
from sluicegate._exceptions import behind_scope, holds_cancelled, is_cancellation
from sluicegate._loop.cleanup import Closable, current_cleanup
from sluicegate._loop.limits import SingleLoopLimiter, serves_one_loop
from sluicegate._loop.run_in_context import run_in_context
from sluicegate._loop.threads import in_loop


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextvars import Context as ContextVars

    from sluicegate._definition.steps import Step
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.machine import Delivery, Machine
    from sluicegate._engine.observer_calls import Entered
    from sluicegate._engine.run import Run
    from sluicegate._engine.step_queue import Absence, Numbered
    from sluicegate._loop import Backend
    from sluicegate._observers import Invocation
    from sluicegate.records import WaitKind


#: Seconds that closing what a step left open may take.
CLOSING_GRACE = 5.0


class Worker:
    """A task of a run; for what its step opens, the list of what to close."""

    __slots__ = (
        "_variables",
        "absence",
        "began_at",
        "context",
        "delivery",
        "event",
        "invocation",
        "is_waiting",
        "lane",
        "node",
        "number",
        "opened",
        "progress",
        "run",
        "step",
        "taken_at",
        "task",
        "turn",
        "was_interrupted",
    )

    def __init__(self, run: Run, variables: ContextVars) -> None:
        self.run = run
        self._variables = variables.copy()
        self._variables.run(current_cleanup.set, self)
        #: The current step, or None before the first and after the last; its event, the
        #: branch of the event, and the context, if the step takes one.
        self.step: Step | None = None
        self.event: Any = None
        #: In a durable run: the delivery with its number.
        self.delivery: Numbered | None = None
        self.node: BranchNode | None = None
        self.context: Context[Any] | None = None
        #: In an observed run: the number of the invocation, the object that observers get, and the
        #: number of this worker.
        self.number = self.lane = 0
        self.invocation: Invocation | None = None
        #: The task itself.
        self.task: Any = None
        #: When it began, on the backend's clock; kept only where a retry or a handler asks.
        self.began_at = 0.0
        #: When it took its delivery, on ``perf_counter``, for who looks at a run from outside.
        self.taken_at = 0.0
        #: Whether a cancellation of the run, or of a scope around it, has reached the step.
        self.was_interrupted = False
        #: Whether it waits for the step's limiter, so that the step has not started.
        self.is_waiting = False
        #: The step's own clock, while a step with a timeout runs.
        self.progress: _Progress | None = None
        #: Its absence while it has given up its place; and its place in the step's limiter, which
        #: it gives up as well.
        self.absence: Absence | None = None
        self.turn: Place | None = None
        #: The resources that the step has opened and not closed.
        self.opened: list[Closable] | None = None

    def end(self) -> None:
        """Drop the references to the run: the worker and its context variables form a circle."""
        del self._variables, self.run
        self.step = self.event = self.node = self.context = self.task = self.invocation = None
        self.delivery = self.absence = self.turn = None

    def take(self, delivery: Delivery | None) -> None:
        """Turn to the next delivery, so that a snapshot no longer contains the one before."""
        self.context = None
        if delivery is None:
            self.step = self.event = self.node = None
        else:
            queue, self.event, self.node = delivery
            self.step = queue.step

    def delivered(self) -> tuple[Any, int]:
        """Return what its step was given, and the number of the attempt."""
        event = self.event
        return (event.event, event.number) if type(event) is Redelivery else (event, 1)

    def around_in_process(
        self, pickled: Callable[[object], bytes]
    ) -> tuple[tuple[str, bytes], ...]:
        """Return what observers enter around the body in a worker process, as ``pickled`` makes it."""
        records, invocation = self.run.records, self.invocation
        if records is None or invocation is None:
            return ()
        return records.calls.around_in_process(invocation, pickled)

    def add(self, resource: Closable) -> None:
        """Have ``resource`` closed when the step ends."""
        if self.opened is None:
            self.opened = []
        self.opened.append(resource)

    def discard(self, resource: Closable) -> None:
        """Forget ``resource``."""
        if self.opened is not None and resource in self.opened:
            self.opened.remove(resource)

    # -- its place while it waits -----------------------------------------------------------------

    async def come_back(self, absence: Absence) -> None:  # noqa: C901
        """Wait for its place among the workers, and then for its place in the step's limiter.

        The step's timeout includes neither wait. A checkpoint only if it waits; after a cancellation
        it may have no place.
        """
        step, turn = self.step, self.turn
        has_turn = turn is None or turn.is_held
        if not absence.is_away and has_turn:
            return  # noqa: ASYNC910
        is_timed = step is not None and not (step.timeout is step.options.idle_timeout is None)
        progress = self.progress if is_timed else None
        if progress is not None:
            progress.pause()
        records, wait = self.run.records, 0
        try:
            if absence.is_away:
                note_rest(self.run)
                if records is not None:
                    wait = records.wait_started(self.number, "place")
                while absence.is_away:
                    await absence.waiter.wait()
                if records is not None:
                    wait = records.wait_ended(wait)
            if turn is not None and not turn.is_held:
                if records is not None:
                    wait = records.wait_started(self.number, "limiter")
                await turn.regain()
                if records is not None:
                    wait = records.wait_ended(wait)
        finally:
            if records is not None and wait:
                records.wait_ended(wait, "cancelled")
            if progress is not None:
                progress.proceed()

    def is_back(self, machine: Machine, absence: Absence) -> None:
        """End the absence; a cancelled step continues without a place, beyond the limit."""
        if absence.is_away:
            machine.force_place(absence)
        if self.absence is absence:
            self.absence = None

    async def reclaim(self, machine: Machine, absence: Absence) -> None:
        """Regain its place; a cancelled step gets it at once. A checkpoint only if it waits."""
        try:
            if absence.is_away:
                machine.reclaim_place(absence)
            await self.come_back(absence)
        finally:
            self.is_back(machine, absence)

    def invoke(
        self, backend: Backend, step: Step, event: Any, node: BranchNode | None
    ) -> Awaitable[Any]:
        """Return an awaitable that runs the body of ``step`` once, in a new context.

        Every body runs through here: in the loop, in a thread or in a process. The caller then ends
        the context and closes the resources that the step left open.

        Raises:
            BaseException: The exception of the step.
            StepTimeoutError: The timeout of the step has passed.
        """
        if (
            not step.is_plain
            or type(event) is Redelivery
            or (node is not None and node.cancel_record is not None)
        ):
            return self._invoke_with_care(backend, step, event, node)
        run = self.run
        arguments = [event] if step.takes == "one" else _several(step, event)
        if step.context_at is not None:
            self.context = context = step_context(run.operations, step, node, self.delivery)
            arguments.insert(step.context_at, context)
        coroutine = step.function(run.workflow, *arguments)
        if run.tells_steps or run.probe is not None or run.log.internal_readers:
            return self._drive_and_tell(backend, step, event, coroutine)
        if step.timeout is None:
            return run_in_context(coroutine, self._variables.copy(), self)
        return self._drive(backend, step, coroutine, self._variables.copy())

    async def _invoke_with_care(
        self, backend: Backend, step: Step, event: Any, node: BranchNode | None
    ) -> Any:
        """Run a step that can be cancelled with its branch, is retried, or needs resources or a limiter.

        If the cancellation of its branch ends the step, this returns None, and no failure is recorded.
        A failure that contains no cancellation is raised unchanged, after the scope has closed.
        """
        self.began_at = backend.current_time()
        redelivery: Numbered | None = self.delivery
        if type(event) is Redelivery:
            if event.crashes and event.crashes >= most_crashes(self.run):
                raise poisoned(step, event.crashes)
            redelivery, event = event, event.event
        self.context = context = step_context(self.run.operations, step, node, redelivery)
        context.began_at = self.began_at
        if node is None or node.cancel_record is None:
            return await self._prepare(backend, step, event, context)
        cancel_record = node.cancel_record
        failure: BaseException | None = None
        try:
            with backend.cancel_scope() as scope:
                if cancel_record.reason is not None:
                    return None  # noqa: ASYNC910 - cancelled since it was taken from the inbox
                cancel_record.running[scope] = None
                try:
                    return await self._prepare(backend, step, event, context)
                except BaseException as error:  # noqa: ASYNC103 - raised behind the scope
                    failure = behind_scope(error, backend.Cancelled)
                    if failure is None or holds_cancelled(error, backend.Cancelled):
                        raise
                finally:
                    cancel_record.running.pop(scope, None)
                    # With its run cancelled as well, AnyIO would have the run's scope take over
                    # what this one did to the task, and then undo a native cancellation of another.
                    scope.shield = cancel_record.reason is not None
        except BaseException:  # noqa: ASYNC103 - the scope has made another group of it
            if failure is None:
                raise
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # or this frame and its exception keep each other alive
        await backend.checkpoint_if_cancelled()
        return None  # the branch was cancelled

    async def _prepare(
        self, backend: Backend, step: Step, event: Any, context: Context[Any]
    ) -> Any:
        """Enter the limiter of the step, if it has one, and continue with its resources.

        Resources are requested only after the limiter has been entered, and closed before it is left.
        After a cancellation during the wait for the limiter, the step has not started.
        """
        limiter: Any = step.options.limiter
        if limiter is None:
            return await self._equip(backend, step, event, context)
        place = place_in(limiter, step)
        self.turn = place if isinstance(place, Place) else None
        entered = (
            SingleLoopLimiter(limiter, place, step.label) if serves_one_loop(limiter) else place
        )
        equip = partial(self._equip, backend, step, event, context)
        try:
            return await self._in_turn(backend, entered, lambda _: equip(), "limiter")
        finally:
            self.turn = None

    async def _in_turn(
        self,
        backend: Backend,
        manager: Any,
        function: Callable[[Any], Awaitable[Any]],
        kind: WaitKind,
    ) -> Any:
        """Call ``function`` inside ``manager``, unless the run is drained while it is being entered.

        A draining run starts no further step. An invocation that gets its place only then leaves the
        manager and waits for the run's cancellation, so its delivery stays part of a snapshot.
        """
        self.is_waiting = True
        records = self.run.records
        wait = 0 if records is None else records.wait_started(self.number, kind)
        if self.run.draining is not None:
            check_drained(self.run)  # it may have been the last one about to start
        try:
            async with manager as place:
                if records is not None:
                    wait = records.wait_ended(wait)
                if self.run.draining is None:
                    self.is_waiting = False
                    return await function(place)
            while self.is_waiting:  # until the run is cancelled, after the running steps have ended
                await backend.waiter().wait()
            return None  # the manager has suppressed the exception of the step
        finally:
            self.is_waiting = False
            if records is not None and wait:
                records.wait_ended(wait, "cancelled")

    async def _equip(self, backend: Backend, step: Step, event: Any, context: Context[Any]) -> Any:
        """Open the resources of the step's scope, request the others, and call the step.

        The resources of the step's scope are closed when this returns or raises, shielded.
        """
        inserted: list[tuple[int, Any]] = []
        if step.context_at is not None:
            inserted.append((step.context_at, context))
        if not step.resources:
            return await self._call(backend, step, event, _arguments(step, event, inserted))
        from sluicegate._engine.entered import StepResources  # noqa: PLC0415 - few steps need it

        assert self.run.resources is not None
        records = self.run.records
        needed_by = None if records is None else (records, self.number)
        async with StepResources(self.run.resources, context, needed_by) as resources:
            for place, plan in step.resources:
                inserted.append((place, await resources.get(plan)))
            return await self._call(backend, step, event, _arguments(step, event, inserted))

    async def _call(self, backend: Backend, step: Step, event: Any, arguments: list[Any]) -> Any:
        """Call the body in the loop, or where the step runs, as soon as there is a place for it.

        A body in a thread or a process starts only when one is free. After a cancellation during that
        wait, the step has not started, and its timeout has not begun.
        """
        elsewhere = step.elsewhere
        if elsewhere is None:
            coroutine = step.function(self.run.workflow, *arguments)
            return await self._run_body(backend, step, event, coroutine)
        # The step, and its timeout, start when there is a thread or a process for it.
        return await self._in_turn(
            backend,
            elsewhere.place(self.run.options.max_threads),
            lambda place: self._run_body(
                backend, step, event, elsewhere.call(place, self.run.workflow, *arguments)
            ),
            "process" if step.runs_in == "process" else "thread",
        )

    async def _run_body(
        self, backend: Backend, step: Step, event: Any, coroutine: Coroutine[Any, Any, Any]
    ) -> Any:
        run = self.run
        if run.tells_steps or run.probe is not None or run.log.internal_readers:
            return await self._drive_and_tell(backend, step, event, coroutine)
        return await self._drive(backend, step, coroutine, self._variables.copy())

    async def _drive(  # noqa: C901 - one frame: each call of a step would pay for another
        self,
        backend: Backend,
        step: Step,
        coroutine: Coroutine[Any, Any, Any],
        variables: ContextVars,
    ) -> Any:
        """Run the body under the timeouts of the step.

        A cancel scope is opened only if the step has a timeout. A failure is raised after the scope has
        closed, unchanged, because a cancelled scope would replace an exception group.

        Raises:
            StepTimeoutError: The timeout or the idle timeout has passed, or the body returned too late.
            BaseException: The exception of the body.
        """
        idle_timeout = step.options.idle_timeout
        self.progress = None
        if step.timeout is None and idle_timeout is None:
            return await run_in_context(coroutine, variables, self)
        now = backend.current_time()
        deadline = now + (inf if step.timeout is None else step.timeout)
        self.progress = progress = _Progress(backend, deadline, idle_timeout)
        if self.context is not None and idle_timeout is not None:
            note = progress.note
            watch_progress(self.context, note if step.runs_in == "loop" else partial(in_loop, note))
        failure: BaseException | None = None
        try:
            with backend.cancel_scope(deadline=nextafter(progress.due, inf)) as scope:
                progress.scope = scope
                try:
                    result = await run_in_context(coroutine, variables, self)
                except BaseException as error:  # noqa: ASYNC103 - raised behind the scope
                    failure = behind_scope(error, backend.Cancelled)
                    if failure is None or holds_cancelled(error, backend.Cancelled):
                        raise
                else:
                    if backend.current_time() <= progress.due or self.run.outcome.status:
                        return result
        except BaseException:  # noqa: ASYNC103 - the scope has made another group of it
            if failure is None:
                raise
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # or this frame and its exception keep each other alive
        # The scope caught its own cancellation, or the step came too late.
        if progress.due < progress.deadline:
            assert idle_timeout is not None
            msg = f"the step {step.label} made no progress for {idle_timeout:g} s"
            raise StepTimeoutError(msg, idle_timeout, (step.name,))
        msg = f"the step {step.label} did not end within its timeout of {step.timeout:g} s"
        raise StepTimeoutError(msg, step.timeout, (step.name,))

    def note_delivery(self, error: BaseException) -> None:
        """Record that an exception is about to be delivered into the step."""
        run = self.run
        if run.outcome.status or note_delivery(run, error):
            self.was_interrupted = True
        if run.records is not None and is_cancellation(error, run.live()[0].Cancelled):
            run.records.delivered(self)

    async def _drive_and_tell(
        self, backend: Backend, step: Step, event: Any, coroutine: Coroutine[Any, Any, Any]
    ) -> Any:
        """Run the body, and report its beginning and its end to observers, readers and the probe.

        The observers hear of its end later, when its result is in the state of the run.
        """
        number = self._tell_started(step, event)
        variables = self._variables.copy()
        records = self.run.records
        entered: Entered = []
        invocation: Invocation | None = None
        if records is not None:
            invocation = records.new_invocation(self, event)
            entered = records.calls.begin_step(invocation, variables)
        try:
            result = await self._drive(backend, step, coroutine, variables)
        except BaseException as error:
            if records is not None and invocation is not None:
                is_cancelled = is_cancellation(error, backend.Cancelled)
                invocation.outcome = "cancelled" if is_cancelled else "failed"
                invocation.error = error
                records.calls.leave(entered, variables, error)
            self._tell_ended(number, step, event, None, error)
            raise
        if records is not None and invocation is not None:
            invocation.outcome, invocation.result = "completed", result
            records.calls.leave(entered, variables, None)
        self._tell_ended(number, step, event, result, None)
        return result

    async def close_opened(self, backend: Backend) -> None:
        """Close the resources that the step left open, in reverse order; shielded, within a grace.

        They share a grace of :data:`CLOSING_GRACE` seconds, which starts again after a failure to close.
        After the grace, closing is cancelled. All are closed, even if one fails; the last failure is raised.
        """
        opened, self.opened = self.opened, None
        deadline = backend.current_time() + CLOSING_GRACE
        try:
            while opened:
                with backend.cancel_scope(shield=True, deadline=deadline):
                    await opened.pop().aclose()
        finally:
            if opened:  # one failed to close; the others are still closed
                self.opened = opened
                await self.close_opened(backend)  # noqa: ASYNC102 - it shields itself

    def _tell_started(self, step: Step, event: Any) -> int:
        run = self.run
        number = run.invocations = run.invocations + 1
        if run.log.internal_readers:
            run.log.append(
                StepStateChanged(name=step.name, state="running", input_event_name=_name(event))
            )
        if run.probe is not None:
            _, attempt = self.delivered()
            run.probe.invocation_began(number, step, event, attempt)
        return number

    def _tell_ended(
        self, number: int, step: Step, event: Any, result: Any, error: BaseException | None
    ) -> None:
        run = self.run
        if run.log.internal_readers:
            run.log.append(
                StepStateChanged(
                    name=step.name,
                    state="done" if error is None else "raised",
                    input_event_name=_name(event),
                    output_event_name=None if result is None else _name(result),
                )
            )
        if run.probe is not None:
            run.probe.invocation_ended(number, result, error)


class Place:
    """The place of one invocation in a limiter; it can be given up and regained.

    In a capacity limiter it belongs to the invocation and not to the task, because a step of a
    child may run in the task of the step that waits for the child.
    """

    __slots__ = ("_limiter", "is_held")

    def __init__(self, limiter: Any) -> None:
        self._limiter = limiter
        #: Whether it has the place now.
        self.is_held = False

    @property
    def is_of_task(self) -> bool:
        """Whether only the task that acquired it may release it, as with a lock."""
        if hasattr(self._limiter, "acquire_on_behalf_of"):
            return False
        return all(kind.__name__ != "Semaphore" for kind in type(self._limiter).__mro__)

    async def __aenter__(self) -> None:
        await self.regain()

    async def __aexit__(self, *_: object) -> None:
        if self.is_held:  # cancelled before it had the place again, it has none
            self.give_up()

    async def regain(self) -> None:
        """Wait for a place. A checkpoint; cancelled, it has none."""
        limiter = self._limiter
        if hasattr(limiter, "acquire_on_behalf_of"):
            await limiter.acquire_on_behalf_of(self)
        else:
            await limiter.acquire()
        self.is_held = True

    def give_up(self) -> None:
        """Give the place to the next."""
        self.is_held = False
        if hasattr(self._limiter, "release_on_behalf_of"):
            self._limiter.release_on_behalf_of(self)
        else:
            self._limiter.release()


def place_in(limiter: Any, step: Step) -> Any:
    """Return what to enter for an invocation of ``step``: a :class:`Place` if that can be given up.

    It can in a capacity limiter; in a semaphore of Trio, AnyIO or asyncio; and in a lock of these
    if the same task acquires and releases it. Any other context manager, such as a rate limiter,
    is held for the whole invocation.
    """
    if hasattr(limiter, "acquire_on_behalf_of"):
        return Place(limiter)
    kinds = {kind.__name__ for kind in type(limiter).__mro__}
    is_lock = "Lock" in kinds and step.runs_in == "loop"
    if serves_one_loop(limiter) and (is_lock or "Semaphore" in kinds):
        return Place(limiter)
    return limiter


class _Progress:
    """The deadline of a running step: its timeout and its idle timeout."""

    __slots__ = ("_backend", "_idle", "_paused_at", "_pauses", "deadline", "due", "scope")

    def __init__(self, backend: Backend, deadline: float, idle: float | None) -> None:
        self._backend = backend
        self._pauses = 0
        self._paused_at = 0.0
        self.deadline = deadline
        self._idle = inf if idle is None else idle
        self.due = min(deadline, backend.current_time() + self._idle)
        self.scope: Any = None

    def note(self) -> None:
        """Restart the idle timeout, unless it has passed."""
        now = self._backend.current_time()
        if now <= self.due:
            self.due = min(self.deadline, now + self._idle)
            self._set_scope()

    def pause(self) -> None:
        """Pause the clock of the step while it waits for a place. Each call needs one :meth:`proceed`."""
        if not self._pauses:
            self._paused_at = self._backend.current_time()
        self._pauses += 1
        self._set_scope()

    def proceed(self) -> None:
        """Resume the clock of the step, unless there was another :meth:`pause`."""
        self._pauses -= 1
        if not self._pauses and self._paused_at <= self.due:
            passed = self._backend.current_time() - self._paused_at
            self.deadline += passed
            self.due += passed
        self._set_scope()

    def _set_scope(self) -> None:
        if self.scope is not None:
            self.scope.deadline = inf if self._pauses else nextafter(self.due, inf)


def _arguments(step: Step, event: Any, inserted: list[tuple[int, Any]]) -> list[Any]:
    arguments = [event] if step.takes == "one" else _several(step, event)
    for place, value in sorted(inserted, key=lambda item: item[0]):
        arguments.insert(place, value)
    return arguments


def _several(step: Step, events: Any) -> list[Any]:
    # A copy: changes that the step makes to the list must not be visible to another attempt.
    return [list(events)] if step.takes == "list" else [*events]


def most_crashes(run: Run) -> float:
    """Return how many processes may have died in the same delivery of a durable run or of its children."""
    while run.parent is not None:
        run = run.parent
    return inf if run.part is None else run.part.max_crashes


def poisoned(step: Step, crashes: int) -> PoisonStepError:
    """Return the failure of a step that is not run again, because its process has died each time."""
    msg = (
        f"the step {step.label} was running in {crashes} processes that died, with the same event, so it "
        "is not run again; expected a step that survives its event, or a larger "
        "`open_run_store(..., max_crashes=...)`"
    )
    return PoisonStepError(msg, crashes)


def is_step_of(run: Run) -> bool:
    """Whether the caller is a step of ``run`` or of a child of it, or a task that one started."""
    worker = current_cleanup.get()
    if not isinstance(worker, Worker) or worker.step is None:
        return False
    own: Run | None = worker.run
    while own is not None and own is not run:
        own = own.parent
    return own is run


def _name(event: Any) -> str:
    return type(event).__name__
