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

import attrs

from sluicegate._context import outer_context
from sluicegate._engine.clock import Clock
from sluicegate._engine.control import LOGGER, Early, Key, Steering
from sluicegate._engine.failures import recover
from sluicegate._engine.invocation import Worker
from sluicegate._engine.journal import InFlight, Redelivery
from sluicegate._engine.machine import Machine
from sluicegate._engine.outcome import Outcome
from sluicegate._engine.stalls import expects_input, missing, silent_ends
from sluicegate._engine.suspended import EMPTY
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
from sluicegate._loop.limits import MAX_THREADS
from sluicegate._streams import TURN


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._context import Context
    from sluicegate._definition.graph import Graph
    from sluicegate._definition.steps import Step
    from sluicegate._engine.grouping import StepQueue
    from sluicegate._engine.machine import Delivery
    from sluicegate._engine.resource_scopes import ResourceScope
    from sluicegate._engine.snapshot_read import Resumed
    from sluicegate._events import Event, StopEvent
    from sluicegate._loop import Backend, Nursery, Waiter
    from sluicegate._loop.limits import ConcurrencyLimit, LoopSlots
    from sluicegate._observers import Observer
    from sluicegate._state.store import StateStore
    from sluicegate._streams import EventLog


#: The ambient owner of runs that were given none; see sluicegate._scope. In steps it is False.
current_scope: ContextVar[Any] = ContextVar("sluicegate_scope", default=None)


@attrs.frozen
class RunOptions:
    """What a workflow was built with, as far as its runs need it."""

    timeout: float | None = None
    excludes_waiting: bool = False
    max_threads: int = MAX_THREADS
    run_limit: ConcurrencyLimit | None = None
    resources: ResourceScope | None = None
    observer: Observer | None = None
    classes: tuple[type, ...] = ()


class Runner(Steering):
    """One run, from its start event to its outcome."""

    __slots__ = (
        "_backend",
        "_due",
        "_host",
        "_machine",
        "_nursery",
        "_parent",
        "_parked",
        "_queue",
        "_resources",
        "_start_event",
        "_thread",
        "_variables",
        "_workers",
        "clock",
        "graph",
        "in_flight",
        "is_owner_cancelled",
        "log",
        "loop",
        "observer",
        "options",
        "outcome",
        "resumed",
        "run_id",
        "timers",
        "workflow",
    )

    def __init__(
        self,
        workflow: object,
        graph: Graph,
        *,
        run_id: str,
        start_event: Event | None,
        log: EventLog,
        options: RunOptions,
        store: StateStore[Any] | None = None,
        resumed: Resumed | None = None,
        arrived: tuple[Early, ...] = (),
        keys: dict[str, Key] | None = None,
    ) -> None:
        self.workflow = workflow
        self.graph = graph
        self.run_id = run_id
        self._start_event = start_event
        self.log = log
        self.options = options
        self.observer = options.observer
        self.outcome = Outcome(graph.name, run_id, options.timeout)
        self._store = store
        #: What the machine is to begin with, instead of a start event.
        self.resumed = resumed
        self.clock = Clock(options.timeout, 0.0 if resumed is None else resumed.elapsed)
        #: Why nothing more is to be started, once that is so.
        self.draining: str | None = None
        #: What the steps were at that were cancelled or failed.
        self.in_flight: list[InFlight] | None = None
        #: Whether no step is in progress and the run waits for an event from outside.
        self._is_idle = self._told_idle = False
        self._backend: Backend | None = None
        self._machine: Machine | None = None
        self._nursery: Nursery | None = None
        self._host: Any = None
        self._parked: Waiter | None = None
        #: Tells whether what is around the owner is cancelled, where its tasks do not learn of it.
        self.is_owner_cancelled: Callable[[], bool] | None = None
        self._workers: dict[Worker, None] = {}
        self._early = arrived
        #: The events that came from outside with an id, by that.
        self.keys: dict[str, Key] = keys or EMPTY
        #: Whether it is awaited in place, and has not been idle yet.
        self.warns_of_idle = False
        self._queue: Any = None
        self._resources: ResourceScope | None = None
        self._parent: Any = None
        self._children: dict[Runner, Context[Any]] = EMPTY
        #: How many of them do not wait for an event from outside.
        self.busy_children = 0
        self.rests_in_parent = False
        self.lender = self.absence = None
        #: The slots of its workflow that it waits for, as a child; and those of which it holds one.
        self._queued_at: LoopSlots | None = None
        self._slots: LoopSlots | None = None
        #: How many deliveries wait for the time of their next attempt.
        self.timers = 0
        self._due = 0.0
        self._invocations = 0
        self._retried = 0 if resumed is None else resumed.retried
        #: The thread, the backend and what stands for the event loop; set when the run is started.
        self._thread = 0
        self.loop: Any = None

    # -- the run ---------------------------------------------------------------------------

    @enable_ki_protection
    async def run(self) -> None:
        """Run to the end. When this returns or raises, nothing of the run is left.

        Raises:
            BaseException: A cancellation from outside, bare; a ``KeyboardInterrupt`` or
                ``SystemExit``, bare. Nothing else: see :attr:`outcome`.
        """
        backend = self._backend
        assert backend is not None
        self._variables = copy_context()
        # What a step starts without an owner must not end up in a scope that outlives the run.
        self._variables.run(current_scope.set, False)
        self._host = backend.current_task()
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
            self._slots = None
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
        with backend.cancel_scope() as self._queue:
            if self.outcome.status:
                return None
            if self._parent is not None:
                self._queued_at = limit.here()
                self._queued_at.queued[self] = self._note_turn
                self._note_turn()
            try:
                slots = await limit.acquire()
            finally:
                if self._queued_at is not None:
                    del self._queued_at.queued[self]
                    self._queued_at = None
                    self._note_turn()
            self._slots = slots
            slots.note(self, is_idle=False)
            return slots
        return None

    def _note_turn(self) -> None:
        """Have the parent know whether this run waits for others that wait for people."""
        if self._parent is not None:
            self._parent.child_idle_changed(self)

    async def _run_with_resources(self, backend: Backend) -> None:
        from sluicegate._engine.resource_scopes import ResourceScope  # noqa: PLC0415 - not everybody needs it

        scope = ResourceScope(
            "run",
            outer=self.options.resources,
            context=outer_context(self),
            variables=self._variables,
            on_failure=self.fail,
        )
        try:
            async with scope:
                self._resources = scope
                try:
                    if not self.outcome.status:
                        async with backend.open_nursery() as nursery:
                            await self._host_run(backend, nursery)
                finally:
                    scope.ended_by = self.outcome.error
        finally:
            self._resources = None

    async def _host_run(self, backend: Backend, nursery: Nursery) -> None:
        name = backend.task_name(self._host)
        self._nursery = nursery
        machine = await self._begin(backend, nursery)
        while not self.outcome.status:
            delivery = None
            if backend.runs_steps_in_host and not self._workers:
                delivery = machine.next_start()
            if machine.startable:
                self.start_workers()
            if delivery is not None:
                try:
                    await self._run_worker(delivery[0], delivery)
                finally:
                    backend.rename_task(self._host, name)
            if self.outcome.status:
                break
            self._parked = backend.waiter()
            try:
                outcome = self.outcome  # is settled by others while this waits
                while not (outcome.status or machine.startable):
                    await self._parked.wait()
            except BaseException as error:
                if self.is_running and is_a(error, backend.Cancelled):
                    self._settle_cancellation(backend.current_time() > self.clock.deadline)
                elif self.is_running:  # a KeyboardInterrupt; nothing more is to begin
                    self.outcome.interrupt(error, backend.Cancelled)
                raise
            finally:
                self._parked = None

    async def _begin(self, backend: Backend, nursery: Nursery) -> Machine:
        self.clock.begin(backend, nursery.cancel_scope, has_branches=self.graph.has_branches)
        self._machine = Machine(
            self.graph, backend.open_inbox, self._publish, backend.cancel, self._report_ended
        )
        self._due = perf_counter() + TURN
        if self.observer is not None:
            self.observer.run_started(self.run_id, self.graph.name, self._start_event)
        if backend.is_natively_cancelled():
            await backend.checkpoint()  # before any step has begun
        machine = self._machine
        if not self.outcome.status:
            if self.resumed is not None:
                self.resumed.load(self, machine)
            else:
                assert self._start_event is not None
                machine.receive(self._start_event)
            self.resumed = self._start_event = None  # they are in the books
            for event, target, question in self._early:
                self._receive(machine, event, target, question)
            self._early = ()
        if not self.outcome.status and not machine.alive:
            self.rest()
        return machine

    def find_loop(self) -> tuple[int, Callable[[Callable[[], object]], object]] | None:
        """Return the run's thread and the way into its loop; None before the run is started."""
        backend = self._backend
        return None if backend is None else (self._thread, backend.caller_into(self.loop))

    def live(self) -> tuple[Backend, Machine]:
        assert self._backend is not None
        assert self._machine is not None
        return self._backend, self._machine

    @property
    def nursery(self) -> Nursery:
        """The nursery of everything that the run does."""
        assert self._nursery is not None
        return self._nursery

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
        if delivery is None and self._machine is not None and not self.outcome.status:
            delivery = self._machine.take(queue)
            if delivery is None and self._machine.still:
                self.note_rest()  # what it was to begin, another has taken
        if delivery is None:
            return
        backend, machine = self._backend, self._machine
        assert backend is not None
        assert machine is not None
        worker = Worker(self, self._variables)
        self._workers[worker] = None
        worker.task = task = backend.current_task()
        handlers = self.graph.handlers
        log = self.log
        options = self.options
        tells_idle = (
            options.excludes_waiting or self._parent is not None or options.run_limit is not None
        )
        self._due = perf_counter() + TURN  # a worker that begins has just been given its turn
        try:
            while True:
                queue, event, node = delivery
                worker.step = step = queue.step
                worker.event = event
                worker.node = node
                worker.context = None
                worker.was_interrupted = False
                # Cancellation is looked for at every hop, and others get a turn in time (P3).
                if perf_counter() >= self._due:
                    await backend.checkpoint()
                    self._due = perf_counter() + TURN
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
                elif self.warns_of_idle and machine.still:
                    self.idle_changed()
        except GeneratorExit as error:  # noqa: ASYNC103
            if not backend.is_in_task(task):
                raise  # no step raised it: the coroutine of the task is being closed
            self._take_error(worker, error)
        except BaseException as error:  # noqa: ASYNC103 - kept as the outcome, or raised on
            if self._take_error(worker, error):
                raise
        finally:
            del self._workers[worker]
            if worker.step is not None:
                if self.in_flight is None:
                    self.in_flight = []
                self.in_flight.append(InFlight.of(worker))
            worker.end()
            if machine.strict:
                self.check_stuck()
            if self.draining is not None:
                self.check_drained()

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
        assert self._backend is not None
        if self.outcome.status:
            pass
        elif self.clock.deadline != inf and self._backend.current_time() > self.clock.deadline:
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
        assert self._machine is not None
        if expects_input(self._machine):
            self._is_idle = True
            self.idle_changed()
        else:
            self.stall()

    def settle_timeout(self) -> None:
        """Take note that the timeout has passed."""
        assert self._machine is not None
        active = tuple(w.step.name for w in self._workers if w.step is not None)
        waits = self._is_idle and expects_input(self._machine)
        self.outcome.time_out(active, waits_for_input=waits, missing=missing(self._machine))

    def _keep_both(self, worker: Worker, error: BaseException, fault: BaseException) -> bool:
        """Keep a failure whose book-keeping failed; return whether ``error`` is to go on."""
        backend, _ = self.live()
        is_to_go_on = is_cancellation(error, backend.Cancelled)
        if not is_to_go_on:
            self.outcome.fail_anyway(error, worker.step)
        self.outcome.fail_anyway(fault, None)
        self._halt("a step failed")
        return is_to_go_on and backend.is_in_task(self._host)

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
                    return backend.current_task() is self._host
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
        assert self._backend is not None
        if is_timeout:
            self.settle_timeout()
        else:
            self.outcome.interrupt(None, self._backend.Cancelled)

    def note_delivery(self, error: BaseException) -> bool:
        """Take note of what is about to be delivered into a step; say whether it is the run's end.

        The outcome is settled here, because unwinding may take long: by the timeout, if the time
        and the scope say so; by the outside, if that was cancelled, whatever the step makes of it.
        A cancellation of the step's own scopes settles nothing.
        """
        backend, nursery = self._backend, self._nursery
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
        if self._backend is None or self._nursery is None:
            return
        if not by_worker or len(self._workers) > 1 or self.timers:  # others beside the caller
            self._backend.cancel(self._nursery.cancel_scope, reason)
        elif self._parked is not None:
            self._parked.wake()

    def _conclude(self, backend: Backend, interruption: BaseException | None) -> None:
        """Everything has unwound: close everything, tell everybody."""
        outcome = self.outcome
        try:
            if not outcome.status:
                outcome.interrupt(interruption, backend.Cancelled)
            elif interruption is not None and urgent_leaf(interruption) is not None:
                outcome.fail(interruption, None, None, backend.Cancelled)
            self._nursery = self._parked = self._host = self._queue = None
            self.clock.end(backend)
            if self._machine is not None:
                self._machine.close()
                if outcome.status == "completed":
                    self._machine = None
                    self.in_flight = None
                else:
                    self._machine.retire()
        except BaseException as fault:  # noqa: ASYNC103, BLE001 - kept: the stream has to end
            outcome.fail_anyway(fault, None)
        self._is_idle = False
        self.log.close(outcome.conclude())
        outcome.announce()
        if self.observer is not None:
            self.observer.run_ended(self.run_id, outcome.status, outcome.error)
