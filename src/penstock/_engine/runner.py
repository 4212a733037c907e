"""The runner: makes happen what the machine allows. The only place that starts tasks.

One nursery per run. A worker is a task that takes deliveries and runs steps, one after the other,
for as long as the machine hands it the next one; the first worker is the task that runs the run.
A failure never goes through the nursery: it is kept as the run's outcome, and the nursery is
cancelled. So what leaves :meth:`Runner.run` is at most one exception, and only a cancellation
from outside, a ``KeyboardInterrupt`` or a ``SystemExit``.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar, copy_context
from functools import partial
from math import inf, nextafter
from time import perf_counter
from typing import TYPE_CHECKING, Any

from penstock._backends import current_backend, enable_ki_protection
from penstock._engine.joins import Wait
from penstock._engine.machine import Machine, Station
from penstock._engine.outcome import (
    URGENT,
    Outcome,
    only_cancelled,
    single,
    stray,
    without_cancelled,
)
from penstock._engine.waiting import wait_for
from penstock._engine.worker import Worker
from penstock._errors import WorkflowRuntimeError
from penstock._events import InputRequiredEvent, StopEvent, WorkflowIdleEvent
from penstock._streams import TURN, EventLog, check_publishable


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from penstock._backends import Backend, Nursery, Waiter
    from penstock._engine.joins import Group
    from penstock._events import Event
    from penstock._graph import Graph
    from penstock._observe import Observer


#: The ambient owner of runs that were given none; see penstock._scope. Steps have none.
current_scope: ContextVar[Any] = ContextVar("penstock_scope", default=None)


class Runner:
    """One run, from its start event to its outcome."""

    __slots__ = (
        "_backend",
        "_deadline",
        "_due",
        "_early",
        "_host",
        "_invocations",
        "_is_idle",
        "_machine",
        "_nursery",
        "_parked",
        "_start_event",
        "_thread",
        "_variables",
        "_workers",
        "graph",
        "log",
        "observer",
        "outcome",
        "run_id",
        "timeout",
        "watch",
        "workflow",
    )

    def __init__(
        self,
        workflow: object,
        graph: Graph,
        *,
        run_id: str,
        start_event: Event,
        timeout: float | None,
        log: EventLog,
        observer: Observer | None,
    ) -> None:
        self.workflow = workflow
        self.graph = graph
        self.run_id = run_id
        self._start_event = start_event
        self.timeout = timeout
        self.log = log
        self.observer = observer
        self.outcome = Outcome(graph.name, run_id, timeout)
        #: Whether no step is in progress and the run waits for an event from outside.
        self._is_idle = False
        self._backend: Backend | None = None
        self._machine: Machine | None = None
        self._nursery: Nursery | None = None
        self._host: Any = None
        self.watch: Callable[[], None] | None = None
        self._parked: Waiter | None = None
        self._workers: dict[Worker, None] = {}
        self._early: list[tuple[Event, str | None]] = []
        self._deadline = inf
        self._due = 0.0
        self._invocations = 0
        self._thread = 0

    # -- the run ---------------------------------------------------------------------------

    @enable_ki_protection
    async def run(self) -> None:
        """Run to the end. When this returns or raises, nothing of the run is left.

        Raises:
            BaseException: A cancellation from outside, bare; a ``KeyboardInterrupt`` or
                ``SystemExit``, bare. Nothing else: see :attr:`outcome`.
        """
        self._backend = backend = current_backend()
        self._thread = threading.get_ident()
        self._variables = copy_context()
        # What a step starts without an owner must not end up in a scope that outlives the run.
        self._variables.run(current_scope.set, None)
        self._host = backend.current_task()
        interruption: BaseException | None = None
        try:
            async with backend.open_nursery() as nursery:
                self._nursery = nursery
                await self._host_run(backend, nursery)
            if not self.outcome.status:
                self._settle_cancellation(backend.current_time() > self._deadline)
            if self.outcome.is_outside:
                # The workers were cancelled from outside and said so by ending; here it goes on.
                await backend.checkpoint_if_cancelled()
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised below, when all is closed
            interruption = single(error, backend.Cancelled)
        self._conclude(backend, interruption)
        if isinstance(self.outcome.error, URGENT):
            interruption = self.outcome.error
        if interruption is not None:
            try:
                raise interruption
            finally:
                del interruption  # or this frame and its exception keep each other alive

    async def _host_run(self, backend: Backend, nursery: Nursery) -> None:
        name = backend.task_name(self._host)
        machine = await self._begin(backend, nursery)
        if not self.outcome.status:
            machine.receive(self._start_event)
        for event, target in self._early:
            self._receive(machine, event, target)
        if not self.outcome.status and not machine.alive:
            self._rest()
        while not self.outcome.status:
            delivery = None
            if backend.runs_steps_in_host and not self._workers:
                delivery = machine.next_start()
            self._start_workers()
            if delivery is not None:
                try:
                    await self._run_worker(*delivery)
                finally:
                    backend.rename_task(self._host, name)
            await self._park(backend, machine)

    async def _begin(self, backend: Backend, nursery: Nursery) -> Machine:
        if self.timeout is not None:
            self.watch = self._note_delivery
            self._deadline = backend.current_time() + self.timeout
            # The deadline itself still belongs to the run: a stop event at that very moment wins.
            nursery.cancel_scope.deadline = nextafter(self._deadline, inf)
        self._machine = Machine(self.graph, backend.open_inbox, self._publish)
        self._due = perf_counter() + TURN
        if self.observer is not None:
            self.observer.run_started(self.run_id, self.graph.name, self._start_event)
        if backend.is_natively_cancelled():
            await backend.checkpoint()  # before any step has begun
        return self._machine

    async def _park(self, backend: Backend, machine: Machine) -> None:
        """Wait for the outcome or for work; settle the outcome if a cancellation comes first."""
        self._parked = backend.waiter()
        try:
            while not self.outcome.status and not machine.startable:
                await self._parked.wait()
        except backend.Cancelled:
            if not self.outcome.status:
                self._settle_cancellation(backend.current_time() > self._deadline)
            raise
        finally:
            self._parked = None

    @enable_ki_protection
    async def _start_worker(self, station: Station) -> None:
        if self._machine is not None and not self.outcome.status:
            delivery = self._machine.take(station)
            if delivery is not None:
                await self._run_worker(*delivery)

    async def _run_worker(self, station: Station, event: Any, group: Group | None) -> None:
        worker = Worker(self, self._variables)
        self._workers[worker] = None
        try:
            await self._work(worker, station, event, group)
        finally:
            del self._workers[worker]
            worker.end()

    def _live(self) -> tuple[Backend, Machine]:
        assert self._backend is not None
        assert self._machine is not None
        return self._backend, self._machine

    def _start_workers(self) -> None:
        _, machine = self._live()
        nursery = self._nursery
        assert nursery is not None
        for station in machine.startable:
            nursery.start_soon(self._start_worker, station, name=station.step.label)
        machine.startable.clear()

    async def _work(
        self, worker: Worker, station: Station, event: Any, group: Group | None
    ) -> None:
        """Run steps one after the other for as long as there is a next one for this task."""
        backend, machine = self._live()
        task = backend.current_task()
        delivery = None
        self._due = perf_counter() + TURN  # a worker that begins has just been given its turn
        try:
            while True:
                # Cancellation is looked for at every hop, and others get a turn in time (P3).
                if perf_counter() >= self._due:
                    await backend.checkpoint()
                    self._due = perf_counter() + TURN
                else:
                    await backend.checkpoint_if_cancelled()
                step = station.step
                worker.step = step
                worker.event = event
                backend.rename_task(task, step.label)
                result = await worker.invoke(backend, step, event, group)
                if self.outcome.status:
                    break  # the run is over; what came of this step has nowhere to go
                delivery = machine.finish(station, group, result)
                if machine.stop is not None:
                    self._stop(machine.stop)
                    break
                if machine.startable:
                    self._start_workers()
                if delivery is None:
                    break
                station, event, group = delivery
            worker.step = worker.event = None
            if not self.outcome.status and not machine.alive:
                self._rest()
        except BaseException as error:  # noqa: ASYNC103 - kept as the outcome, or raised on
            if self._take_error(worker, error):
                raise

    # -- how it ends -----------------------------------------------------------------------

    def _stop(self, event: StopEvent) -> None:
        assert self._backend is not None
        if self._backend.current_time() > self._deadline:
            self._settle_timeout()
        else:
            self.outcome.complete(event)
        self._halt("the run has ended")

    def _rest(self) -> None:
        """Nothing is alive: the run waits for somebody outside, or it can never go on."""
        _, machine = self._live()
        if machine.expects_input():
            self._is_idle = True
            if self.log.internal_readers:
                self.log.append(WorkflowIdleEvent())
        else:
            self.outcome.stall(machine.missing())
            self._halt("the run is stalled")

    def _settle_timeout(self) -> None:
        assert self._machine is not None
        active = tuple(w.step.name for w in self._workers if w.step is not None)
        waits = self._is_idle and self._machine.expects_input()
        self.outcome.time_out(active, waits_for_input=waits, missing=self._machine.missing())

    def _take_error(self, worker: Worker, error: BaseException) -> bool:
        """Keep the failure of a step as the outcome; return whether ``error`` is to go on."""
        backend, _ = self._live()
        cancelled = backend.is_cancelled()
        if cancelled and not self.outcome.status:
            # What was delivered before the deadline was not the deadline's.
            is_late = backend.current_time() > self._deadline and not worker.was_interrupted
            self._settle_cancellation(is_late)
        if only_cancelled(error, backend.Cancelled):
            if cancelled:
                return backend.current_task() is self._host
            error = stray(error, worker.step)
        elif isinstance(error, GeneratorExit):
            return True
        elif cancelled:
            error = without_cancelled(error, backend.Cancelled)
        self.outcome.fail(error, worker.step, worker.event)
        self._halt(f"the step {worker.step.name if worker.step else '?'} failed")
        return False

    def _settle_cancellation(self, is_timeout: bool) -> None:
        """Settle whose the cancellation is that was not asked for here."""
        assert self._backend is not None
        if is_timeout:
            self._settle_timeout()
        else:
            self.outcome.interrupt(None, self._backend.Cancelled)

    def _note_delivery(self) -> None:
        # The exception is the timeout's, if the scope says so. Settled now, for the step may take
        # long to unwind, and others may be cancelled meanwhile.
        assert self._nursery is not None
        if not self.outcome.status and self._nursery.cancel_scope.cancel_called:
            self._settle_timeout()

    def _halt(self, reason: str) -> None:
        """Have everything that still runs unwind, and the host look at the outcome."""
        assert self._backend is not None
        assert self._nursery is not None
        if len(self._workers) > 1:  # others beside the one that calls this
            self._backend.cancel(self._nursery.cancel_scope, reason)
        elif self._parked is not None:
            self._parked.wake()

    def _conclude(self, backend: Backend, interruption: BaseException | None) -> None:
        """Everything has unwound: close everything, tell everybody."""
        outcome = self.outcome
        if not outcome.status:
            outcome.interrupt(interruption, backend.Cancelled)
        elif isinstance(interruption, URGENT):
            outcome.fail(interruption, None, None)
        self._nursery = self._parked = self._host = self.watch = None
        if self._machine is not None:
            self._machine.close()
            self._machine = None
        self._is_idle = False
        self.log.close(outcome.conclude())
        outcome.announce()
        if self.observer is not None:
            self.observer.run_ended(self.run_id, outcome.status, outcome.error)

    # -- what comes from outside -------------------------------------------------------------

    @enable_ki_protection
    def cancel(self, reason: str) -> None:
        """Ask the run to end; it has ended when the outcome says so."""
        self.check_thread("cancel")
        if self.outcome.status:
            return
        if self._backend is not None and self._backend.current_time() > self._deadline:
            self._settle_timeout()
        else:
            self.outcome.cancel(reason)
        if self._nursery is not None and self._backend is not None:
            self._backend.cancel(self._nursery.cancel_scope, reason)

    def abandon(self, reason: str) -> None:
        """Conclude a run that was cancelled before it could begin."""
        if not self.outcome.is_over:
            self.outcome.cancel(reason)
            self.log.close(self.outcome.conclude())
            self.outcome.announce()

    @enable_ki_protection
    def receive(self, event: Event, target: str | None) -> None:
        """Take an event from outside.

        Raises:
            WorkflowRuntimeError: The run is over, no step takes it, or the wrong thread calls.
        """
        self.check_thread("send_event")
        if self.outcome.status:
            msg = (
                f"the run {self.run_id} of {self.graph.name} is over ({self.outcome.status}), so "
                f"{type(event).__name__} reaches nobody"
            )
            raise WorkflowRuntimeError(msg)
        if self._machine is None:
            if target is None:
                self.graph.input(type(event))
            else:
                self.graph.station(event, target)
            self._early.append((event, target))
        else:
            self._receive(self._machine, event, target)
            if not self._machine.alive:
                self._rest()
            else:
                self._start_soon()

    def _start_soon(self) -> None:
        if self._parked is None:
            self._start_workers()
        elif self._machine is not None and self._machine.startable:
            self._parked.wake()  # the host does: AnyIO starts tasks from tasks only

    def _receive(self, machine: Machine, event: Event, target: str | None) -> None:
        if target is None:
            machine.receive(event)
        else:
            machine.receive_at(event, target)
        self._is_idle = False

    def check_thread(self, what: str) -> None:
        """Refuse a call from a foreign thread, and tell the way."""
        if self._thread and threading.get_ident() != self._thread:
            msg = (
                f"{what} was called from another thread than the one that runs {self.graph.name}; "
                f"expected trio.from_thread.run_sync(...{what}, ...) or its AnyIO counterpart"
            )
            raise WorkflowRuntimeError(msg)

    # -- what the context may do: see penstock._context.RunOperations -----------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and the run waits for an event from outside."""
        return self._is_idle or (self._machine is not None and self._machine.rests)

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        return not self.outcome.status

    @enable_ki_protection
    def send(self, step: int, event: Event, group: Group | None, target: str | None) -> None:
        """See :meth:`penstock.Context.send_event`."""
        self.check_thread("send_event")
        if self.outcome.status:
            return  # the run is unwinding, and the step with it
        assert self._machine is not None
        self._machine.send(step, event, group, target)
        self._start_soon()

    def publish(self, event: Event | None) -> None:
        """See :meth:`penstock.Context.write_event_to_stream`."""
        if threading.get_ident() != self._thread:
            self.check_thread("write_event_to_stream")
        if event is None:
            return
        if type(event) not in self.graph.published or self.log.closed:
            check_publishable(event, self.log)
            if not isinstance(event, InputRequiredEvent):
                self.graph.published.add(type(event))
            elif self._machine is not None:
                self._machine.note_question()
        self._publish(event)

    @enable_ki_protection
    def _publish(self, event: Event) -> None:
        self.log.append(event)
        if self.observer is not None:
            self.observer.event_published(self.run_id, event)

    @enable_ki_protection
    async def wait_for(
        self,
        step: object,
        kind: type[Event],
        requirements: Mapping[str, Any],
        waiter_event: Event | None,
        timeout: float | None,  # noqa: ASYNC109 - whose message tells what was waited for
    ) -> Event:
        """See :meth:`penstock.Context.wait_for_event`."""
        self.check_thread("wait_for_event")
        backend, machine = self._live()
        wait = Wait(kind, requirements, backend.waiter())
        ask = partial(self._ask, waiter_event)
        return await wait_for(wait, step, machine=machine, ask=ask, timeout=timeout)

    def _ask(self, question: Event | None) -> None:
        self.publish(question)
        if self.log.internal_readers and self.is_idle:
            self.log.append(WorkflowIdleEvent())

    @enable_ki_protection
    def collect(
        self, step: int, event: Event, expected: Sequence[type[Event]], key: str
    ) -> list[Event] | None:
        """See :meth:`penstock.Context.collect_events`."""
        self.check_thread("collect_events")
        assert self._machine is not None
        return self._machine.collect(step, event, expected, key)

    def number_invocation(self) -> int:
        """Count an invocation that an observer is told of."""
        self._invocations += 1
        return self._invocations
