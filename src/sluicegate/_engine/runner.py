"""The runner: makes happen what the machine allows. The only place that starts tasks.

One nursery per run. A worker is a task that takes deliveries and runs steps, one after the other,
for as long as the machine hands it the next one; the first worker is the task that runs the run.
A failure never goes through the nursery: it is kept as the run's outcome, and the nursery is
cancelled. So what leaves :meth:`Runner.run` is at most one exception, and only a cancellation
from outside, a ``KeyboardInterrupt`` or a ``SystemExit``.
"""

from __future__ import annotations

from contextvars import ContextVar, copy_context
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sluicegate._context import outer_context
from sluicegate._engine.control import LOGGER, Steering
from sluicegate._engine.failures import recover
from sluicegate._engine.invocation import Worker
from sluicegate._engine.journal import InFlight, Redelivery
from sluicegate._engine.machine import Machine
from sluicegate._engine.stalls import expects_input, missing, silent_ends
from sluicegate._errors import unasked_cancellation
from sluicegate._exceptions import (
    URGENT,
    came_of,
    is_a,
    is_cancellation,
    matches,
    single,
    urgent_leaf,
)
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._streams import TURN


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._definition.steps import Step
    from sluicegate._engine.machine import Delivery
    from sluicegate._engine.step_queue import StepQueue
    from sluicegate._events import StopEvent
    from sluicegate._loop import Backend, Nursery
    from sluicegate._loop.limits import ConcurrencyLimit, LoopSlots


#: The ambient owner of runs that were given none; see sluicegate._scope. In steps it is False.
current_scope: ContextVar[Any] = ContextVar("sluicegate_scope", default=None)


class Runner(Steering):
    """One run, from its start event to its outcome."""

    __slots__ = ()

    # -- the run ---------------------------------------------------------------------------

    @enable_ki_protection
    async def run(self) -> None:
        """Run to the end. When this returns or raises, nothing of the run is left.

        Raises:
            BaseException: A cancellation from outside, bare; a ``KeyboardInterrupt`` or
                ``SystemExit``, bare. Nothing else: see :attr:`outcome`.
        """
        backend = self.backend
        assert backend is not None
        self.variables = copy_context()
        # What a step starts without an owner must not end up in a scope that outlives the run.
        self.variables.run(current_scope.set, False)
        self.host = backend.current_task()
        was_cancelled = backend.is_natively_cancelled()
        interruption: BaseException | None = None
        slots: LoopSlots | None = None
        try:
            limit = self.options.run_limit
            slots = None if limit is None else await self._queue_up(limit)
            if self.graph.needs_scope:
                await self._run_with_resources(backend)
            elif not self.outcome.status:
                async with backend.open_nursery() as nursery:
                    await self._host_run(backend, nursery)
            if not self.outcome.status:
                self._settle_cancellation(backend.current_time() > self.clock.deadline)
            if self.outcome.is_outside:
                # The workers were cancelled from outside and said so by ending; here it goes on.
                await backend.checkpoint_if_cancelled()
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised below, when all is closed
            interruption = single(error, backend.Cancelled)
        if interruption is None and backend.is_natively_cancelled() and not was_cancelled:
            interruption = backend.Cancelled()  # AnyIO before 4.16 forgets it beside one of its own
        if slots is not None:
            self.slots = None
            slots.idle.discard(self)
            slots.release()
            slots.note(self, is_idle=False)
        self._conclude(backend, interruption)
        if issubclass(type(self.outcome.error), URGENT):
            interruption = self.outcome.error
        if interruption is not None:
            try:
                raise interruption
            finally:
                del interruption  # or this frame and its exception keep each other alive

    async def _queue_up(self, limit: ConcurrencyLimit) -> LoopSlots | None:
        """Wait until the workflow may have one more run; None where the run was cancelled."""
        backend = current_backend()
        with backend.cancel_scope() as self.queue_scope:
            if self.outcome.status:
                return None
            if self.parent is not None:
                self.queued_at = limit.here()
                self.queued_at.queued[self] = self._note_turn
                self._note_turn()
            try:
                slots = await limit.acquire()
            finally:
                if self.queued_at is not None:
                    del self.queued_at.queued[self]
                    self.queued_at = None
                    self._note_turn()
            self.slots = slots
            slots.note(self, is_idle=False)
            return slots
        return None

    def _note_turn(self) -> None:
        """Have the parent know whether this run waits for others that wait for people."""
        if self.parent is not None:
            self.parent.child_idle_changed(self)

    async def _run_with_resources(self, backend: Backend) -> None:
        from sluicegate._engine.resource_scopes import ResourceScope  # noqa: PLC0415 - not everybody needs it

        scope = ResourceScope(
            "run",
            outer=self.options.resources,
            context=outer_context(self),
            variables=self.variables,
            on_failure=self.fail,
        )
        try:
            async with scope:
                self.resources = scope
                try:
                    if not self.outcome.status:
                        async with backend.open_nursery() as nursery:
                            await self._host_run(backend, nursery)
                finally:
                    scope.ended_by = self.outcome.error
        finally:
            self.resources = None

    async def _host_run(self, backend: Backend, nursery: Nursery) -> None:
        name = backend.task_name(self.host)
        self.nursery = nursery
        machine = await self._begin(backend, nursery)
        while not self.outcome.status:
            delivery = None
            if backend.runs_steps_in_host and not self.workers:
                delivery = machine.next_start()
            if machine.startable:
                self.start_workers()
            if delivery is not None:
                try:
                    await self._run_worker(delivery[0], delivery)
                finally:
                    backend.rename_task(self.host, name)
            if self.outcome.status:
                break
            self.parked = backend.waiter()
            try:
                outcome = self.outcome  # is settled by others while this waits
                while not (outcome.status or machine.startable):
                    await self.parked.wait()
            except BaseException as error:
                if self.is_running and is_a(error, backend.Cancelled):
                    self._settle_cancellation(backend.current_time() > self.clock.deadline)
                elif self.is_running:  # a KeyboardInterrupt; nothing more is to begin
                    self.outcome.interrupt(error, backend.Cancelled)
                raise
            finally:
                self.parked = None

    async def _begin(self, backend: Backend, nursery: Nursery) -> Machine:
        self.clock.begin(backend, nursery.cancel_scope, has_branches=self.graph.has_branches)
        self.machine = Machine(
            self.graph, backend.open_inbox, self._publish, backend.cancel, self._report_ended
        )
        self.turn_due = perf_counter() + TURN
        if self.observer is not None:
            self.observer.run_started(self.run_id, self.graph.name, self.start_event)
        if self.probe is not None:
            self.probe.run_began()
        if backend.is_natively_cancelled():
            await backend.checkpoint()  # before any step has begun
        machine = self.machine
        if not self.outcome.status:
            if self.resumed is not None:
                self.resumed.load(self, machine)
            else:
                assert self.start_event is not None
                machine.receive(self.start_event)
            self.resumed = self.start_event = None  # they are in the books
            for event, target, question in self.early:
                self._receive(machine, event, target, question)
            self.early = ()
        if not self.outcome.status and not machine.alive:
            self.rest()
        return machine

    def find_loop(self) -> tuple[int, Callable[[Callable[[], object]], object]] | None:
        """Return the run's thread and the way into its loop; None before the run is started."""
        backend = self.backend
        return None if backend is None else (self.thread, backend.caller_into(self.loop))

    def start_workers(self) -> None:
        """Start a worker for each delivery that waits for one."""
        _, machine = self.live()
        nursery = self.nursery
        for queue in machine.startable:
            nursery.start_soon(self._run_worker, queue, name=queue.step.label)
        machine.startable.clear()

    @enable_ki_protection
    async def _run_worker(  # noqa: C901, PLR0912, PLR0915 - one frame for all that happens at a hop
        self, queue: StepQueue, delivery: Delivery | None = None
    ) -> None:
        """Run steps one after the other for as long as there is a next one for this task."""
        if delivery is None and self.machine is not None and not self.outcome.status:
            delivery = self.machine.take(queue)
            if delivery is None and self.machine.resting:
                self.note_rest()  # what it was to begin, another has taken
        if delivery is None:
            if self.probe is not None:
                self.probe.idle_changed()
            return
        backend, machine = self.backend, self.machine
        assert backend is not None
        assert machine is not None
        worker = Worker(self, self.variables)
        self.workers[worker] = None
        worker.task = task = backend.current_task()
        handlers = self.graph.handlers
        log = self.log
        options = self.options
        tells_idle = (
            options.excludes_waiting or self.parent is not None or options.run_limit is not None
        )
        self.turn_due = perf_counter() + TURN  # a worker that begins has just been given its turn
        try:
            while True:
                queue, event, node = delivery
                worker.step = step = queue.step
                worker.event = event
                worker.node = node
                worker.context = None
                worker.was_interrupted = False
                # Cancellation is looked for at every hop, and others get a turn in time (P3).
                if perf_counter() >= self.turn_due:
                    await backend.checkpoint()
                    self.turn_due = perf_counter() + TURN
                else:
                    await backend.checkpoint_if_cancelled()
                if handlers:
                    worker.began_at = backend.current_time()
                backend.rename_task(task, step.label)
                try:
                    try:
                        result = await worker.invoke(backend, step, event, node)
                    finally:
                        context = worker.context
                        if context is not None:
                            context.end()
                        if worker.opened:
                            await worker.close_opened(backend)  # noqa: ASYNC102 - it shields itself
                except backend.Cancelled:
                    raise
                except BaseException as error:  # noqa: ASYNC103 - raised unless something is done
                    if not matches(error, Exception, backend.Cancelled):
                        raise
                    delivery = recover(self, worker, queue, node, error)
                else:
                    if self.outcome.status:
                        break  # the run is over; what came of this step has nowhere to go
                    if context is not None and (journal := context._journal) and journal.held:
                        # Checked before the sends are out: else a resumed run would have them twice.
                        machine.check_result(queue, result)
                        self.release_held(journal)
                    delivery = machine.finish(queue, node, result)
                if machine.stop is not None:
                    if step.runs_in != "loop":
                        self._note_swallowed()
                    self._stop(machine.stop)
                    if self.outcome.stop_event is not None:
                        worker.step = None  # else it came too late, and a resumed run does it again
                    break
                if machine.startable:
                    self.start_workers()
                if tells_idle or log.internal_readers:
                    self.idle_changed()
                if delivery is None:
                    break
            if not self.outcome.status:
                worker.step = worker.event = worker.context = None
                if not machine.alive:
                    self.rest()
                elif self.warns_of_idle and machine.resting:
                    self.idle_changed()
        except GeneratorExit as error:  # noqa: ASYNC103
            if not backend.is_in_task(task):
                raise  # no step raised it: the coroutine of the task is being closed
            self._take_error(worker, error)
        except BaseException as error:  # noqa: ASYNC103 - kept as the outcome, or raised on
            if self._take_error(worker, error):
                raise
        finally:
            del self.workers[worker]
            if worker.step is not None:
                if self.in_flight is None:
                    self.in_flight = []
                self.in_flight.append(InFlight.of(worker))
            worker.end()
            if machine.strict:
                self.check_stuck()
            if self.draining is not None:
                self.check_drained()
            if self.probe is not None:
                self.probe.idle_changed()

    # -- how it ends -----------------------------------------------------------------------

    def _note_swallowed(self) -> None:
        """Settle a cancellation from outside that came while a step was in a thread.

        Under Trio nothing is delivered to the task that waits for a thread.
        """
        backend, _ = self.live()
        is_own = self.nursery.cancel_scope.cancel_called
        if not self.outcome.status and not is_own and backend.is_cancelled_around(self.nursery):
            self._settle_cancellation(False)

    def _stop(self, event: StopEvent) -> None:
        assert self.backend is not None
        if self.outcome.status:
            pass
        elif self.clock.deadline != inf and self.backend.current_time() > self.clock.deadline:
            self.settle_timeout()
        else:
            self.outcome.complete(event)
        self._halt("the run has ended", by_worker=True)

    def stall(self) -> None:
        """Take note that nothing can happen in the run any more."""
        if not self.outcome.status and self.draining is None:
            _, machine = self.live()
            self.outcome.stall((*missing(machine), *silent_ends(machine)))
            self._halt("the run is stalled")

    def _report_ended(self, step: Step) -> None:
        """Log that ``step`` has returned None without declaring it; once in a run."""
        LOGGER.warning(
            "the step %s of the run %s returned None, which its signature does not declare: its "
            "branch ends there; expected one of its events, or `| None` in the signature",
            step.label,
            self.run_id,
        )

    def fail(self, error: BaseException) -> None:
        """Fail with an error that comes from no step of its own accord."""
        self.outcome.fail(error, None, None, current_backend().Cancelled)
        self._halt("the run failed")

    def rest(self) -> None:
        """Nothing is alive: the run waits for somebody outside, or it can never go on."""
        if self.draining is not None:
            return
        assert self.machine is not None
        if expects_input(self.machine):
            self.awaits_outside = True
            self.idle_changed()
        else:
            self.stall()

    def settle_timeout(self) -> None:
        """Take note that the timeout has passed."""
        assert self.machine is not None
        active = tuple(w.step.name for w in self.workers if w.step is not None)
        waits = self.awaits_outside and expects_input(self.machine)
        self.outcome.time_out(active, waits_for_input=waits, missing=missing(self.machine))

    def _keep_both(self, worker: Worker, error: BaseException, fault: BaseException) -> bool:
        """Keep a failure whose book-keeping failed; return whether ``error`` is to go on."""
        backend, _ = self.live()
        is_to_go_on = is_cancellation(error, backend.Cancelled)
        if not is_to_go_on:
            self.outcome.fail_anyway(error, worker.step)
        self.outcome.fail_anyway(fault, None)
        self._halt("a step failed")
        return is_to_go_on and backend.is_in_task(self.host)

    def _take_error(self, worker: Worker, error: BaseException) -> bool:
        """Keep the failure of a step as the outcome; return whether ``error`` is to go on."""
        backend, _ = self.live()
        try:
            is_over = bool(self.outcome.status)
            cancelled = (is_over and self.nursery.cancel_scope.cancel_called) or self.is_cancelled()
            if cancelled and not self.outcome.status:
                # What was delivered before the deadline was not the deadline's.
                is_late = (
                    backend.current_time() > self.clock.deadline and not worker.was_interrupted
                )
                self._settle_cancellation(is_late)
            if is_cancellation(error, backend.Cancelled):
                if cancelled:
                    return backend.current_task() is self.host
                who = "a step" if worker.step is None else f"the step {worker.step.label}"
                around = "neither its run nor anything around it was"
                error = unasked_cancellation(who, around, error)
            event = worker.event.event if type(worker.event) is Redelivery else worker.event
            self.outcome.fail(error, worker.step, event, backend.Cancelled)
            if cancelled and not self._came_of_cancellation(worker, error):
                self.outcome.pass_over(error)
            self._halt(
                f"the step {worker.step.name if worker.step else '?'} failed", by_worker=True
            )
            return False
        except BaseException as fault:  # noqa: ASYNC103, BLE001 - kept, beside the failure
            return self._keep_both(worker, error, fault)  # noqa: ASYNC104

    def is_cancelled(self) -> bool:
        """Whether the current task of the run is cancelled, or is about to be by its owner."""
        backend, _ = self.live()
        ask = self.is_owner_cancelled
        return backend.is_cancelled() or (ask is not None and ask())

    def _came_of_cancellation(self, worker: Worker, error: BaseException) -> bool:
        """Whether a failure of a cancelled run is one of the clean-up, and no chance neighbour.

        It is if the cancellation had been delivered into the attempt. What goes on in a thread is
        told by the exception alone; and under Trio so are the tasks of a nursery in the step, for
        the task that waits for them is not delivered anything.
        """
        backend, _ = self.live()
        if worker.was_interrupted and (worker.step is None or worker.step.runs_in == "loop"):
            return True
        is_told = backend.name == "trio" or (
            worker.step is not None and worker.step.runs_in != "loop"
        )
        return is_told and came_of(error, backend.Cancelled)

    def _settle_cancellation(self, is_timeout: bool) -> None:
        """Settle whose the cancellation is that was not asked for here."""
        assert self.backend is not None
        if is_timeout:
            self.settle_timeout()
        else:
            self.outcome.interrupt(None, self.backend.Cancelled)

    def note_delivery(self, error: BaseException) -> bool:
        """Take note of what is about to be delivered into a step; say whether it is the run's end.

        The outcome is settled here, because unwinding may take long: by the timeout, if the time
        and the scope say so; by the outside, if that was cancelled, whatever the step makes of it.
        A cancellation of the step's own scopes settles nothing.
        """
        backend, nursery = self.backend, self.nursery
        if backend is None or nursery is None or not issubclass(type(error), backend.Cancelled):
            return False
        if not self.outcome.status:
            if nursery.cancel_scope.cancel_called:
                if backend.current_time() > self.clock.deadline:
                    self.settle_timeout()
            elif backend.is_cancelled_around(nursery):
                self._settle_cancellation(False)
            else:
                return False
        return True

    def _halt(self, reason: str, *, by_worker: bool = False) -> None:
        """Have everything that still runs unwind, and the host look at the outcome."""
        if self.backend is None or self.nursery is None:
            return
        if not by_worker or len(self.workers) > 1 or self.timers:  # others beside the caller
            self.backend.cancel(self.nursery.cancel_scope, reason)
        elif self.parked is not None:
            self.parked.wake()

    def _conclude(self, backend: Backend, interruption: BaseException | None) -> None:
        """Everything has unwound: close everything, tell everybody."""
        outcome = self.outcome
        if self.probe is not None:
            self.probe.run_ended()
        try:
            if not outcome.status:
                outcome.interrupt(interruption, backend.Cancelled)
            elif interruption is not None and urgent_leaf(interruption) is not None:
                outcome.fail(interruption, None, None, backend.Cancelled)
            self.nursery = self.parked = self.host = self.queue_scope = None
            self.clock.end(backend)
            if self.machine is not None:
                self.machine.close()
                if outcome.status == "completed":
                    self.machine = None
                    self.in_flight = None
                else:
                    self.machine.retire()
        except BaseException as fault:  # noqa: ASYNC103, BLE001 - kept: the stream has to end
            outcome.fail_anyway(fault, None)
        self.awaits_outside = False
        self.log.close(outcome.conclude())
        outcome.announce()
        if self.observer is not None:
            self.observer.run_ended(self.run_id, outcome.status, outcome.error)
