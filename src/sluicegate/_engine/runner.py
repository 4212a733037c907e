"""The runner: makes happen what the machine allows. The only place that starts tasks.

One nursery per run. A worker is a task that takes deliveries and runs steps, one after the other,
for as long as the machine hands it the next one; the first worker is the task that runs the run.
A failure never goes through the nursery: it is kept as the run's outcome, and the nursery is
cancelled. So what leaves :func:`execute` is at most one exception, and only a cancellation
from outside, a ``KeyboardInterrupt`` or a ``SystemExit``.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar, copy_context
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sluicegate._context import outer_context
from sluicegate._engine.control import take_in_early
from sluicegate._engine.ending import (
    conclude,
    fail,
    halt,
    note_swallowed,
    settle_cancellation,
    settle_timeout,
    stop,
    take_error,
)
from sluicegate._engine.failures import recover
from sluicegate._engine.idle import (
    check_drained,
    check_stuck,
    child_idle_changed,
    idle_changed,
    note_rest,
    rest,
    start_workers,
)
from sluicegate._engine.invocation import Worker
from sluicegate._engine.journal import NOTHING, InFlight
from sluicegate._engine.machine import Machine
from sluicegate._engine.step_operations import StepOperations
from sluicegate._events import StopEvent
from sluicegate._exceptions import URGENT, is_a, matches, single
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._observers import Verbose, ambient, log_line
from sluicegate._streams import TURN


if TYPE_CHECKING:
    from sluicegate._engine.journal import StepJournal
    from sluicegate._engine.machine import Delivery
    from sluicegate._engine.run import Run
    from sluicegate._engine.run_journal import RunJournal
    from sluicegate._engine.step_queue import StepQueue
    from sluicegate._loop import Backend, Nursery
    from sluicegate._loop.limits import ConcurrencyLimit, LoopSlots
    from sluicegate._observers import Observer


#: The ambient owner of runs that were given none; see sluicegate._scope. In steps it is False.
current_scope: ContextVar[Any] = ContextVar("sluicegate_scope", default=None)


LOGGER = logging.getLogger("sluicegate")

_new = object.__new__


@enable_ki_protection
async def execute(run: Run) -> None:  # noqa: C901, PLR0912, PLR0915
    """Run to the end. When this returns or raises, nothing of the run is left.

    Raises:
        BaseException: A cancellation from outside, bare; a ``KeyboardInterrupt`` or
            ``SystemExit``, bare. Nothing else: see :attr:`Run.outcome`.
    """
    if run.part is not None and not run.part.is_live:
        await run.part.carry(execute)
        return
    backend = run.backend
    assert backend is not None
    run.work = run_worker
    run.operations = operations = _new(StepOperations)  # a call less for each run
    operations.run = run
    run.variables = copy_context()
    observers = run.options.observers + ambient.get()
    if observers or (LOGGER.level or LOGGER.root.level) <= logging.DEBUG:  # no call for each run
        watch(run, backend, observers)
    # Runs that a step starts without an owner must not end up in a scope that outlives this run.
    run.variables.run(current_scope.set, False)
    run.host = backend.current_task()
    was_cancelled = backend.is_natively_cancelled()
    interruption: BaseException | None = None
    slots: LoopSlots | None = None
    try:
        limit = run.options.run_limit
        slots = None if limit is None else await queue_up(run, limit)
        if run.records is not None:
            run.records.begin(run)
        if run.graph.needs_scope:
            await run_with_resources(run, backend)
        elif not run.outcome.status:
            async with backend.open_nursery() as nursery:
                await host_run(run, backend, nursery)
        if not run.outcome.status:
            settle_cancellation(run, backend.current_time() > run.clock.deadline)
        if run.outcome.is_outside:
            # The workers ended because of a cancellation from outside; it propagates here.
            await backend.checkpoint_if_cancelled()
    except BaseException as error:  # noqa: ASYNC103, BLE001 - raised below, when all is closed
        interruption = single(error, backend.Cancelled)
    if interruption is None and backend.is_natively_cancelled() and not was_cancelled:
        interruption = (
            backend.Cancelled()
        )  # AnyIO before 4.16 loses it next to a cancellation of its scopes
    if slots is not None:
        run.slots = None
        slots.idle.discard(run)
        slots.release()
        slots.note(run, is_idle=False)
    if run.journal is not None:
        interruption = await close_journal(run, run.journal, backend, interruption)
    if run.part is not None:
        await run.part.end_life()
    conclude(run, backend, interruption)
    if issubclass(type(run.outcome.error), URGENT):
        interruption = run.outcome.error
    if interruption is not None:
        try:
            raise interruption
        finally:
            del interruption  # or this frame and its exception keep each other alive


def watch(run: Run, backend: Backend, observers: tuple[Observer, ...]) -> None:
    """Give an observed run its record writer. The children of its steps get the same observers."""
    from sluicegate._engine.record_writer import RecordWriter  # noqa: PLC0415 - few runs are observed

    observers = tuple(dict.fromkeys(observers))
    run.variables.run(ambient.set, observers)
    if LOGGER.isEnabledFor(logging.DEBUG):
        observers = (*observers, Verbose(log_line))
    run.carrier = dict(run.carrier)
    above = current_cleanup.get()
    run.records = RecordWriter(
        run,
        backend,
        observers,
        fail=partial(fail, run),
        above=above if isinstance(above, Worker) and above.run is run.parent else None,
    )
    run.tells_steps = run.records.calls.tells_steps
    if run.state_store is not None:  # from a snapshot, or from the context of another run
        run.state_store.records = run.records


async def queue_up(run: Run, limit: ConcurrencyLimit) -> LoopSlots | None:
    """Wait until the workflow may have one more run; None where the run was cancelled.

    A checkpoint only if it has to wait. After a cancellation the run has left the queue and holds no
    slot. Once it has one, :func:`execute` releases it after everything of the run has unwound.
    """
    backend = current_backend()
    with backend.cancel_scope() as run.queue_scope:
        if run.outcome.status:
            return None
        if run.parent is not None:
            run.queued_at = limit.here()
            run.queued_at.queued[run] = partial(note_turn, run)
            note_turn(run)
        try:
            slots = await limit.acquire()
        finally:
            if run.queued_at is not None:
                del run.queued_at.queued[run]
                run.queued_at = None
                note_turn(run)
        run.slots = slots
        slots.note(run, is_idle=False)
        return slots
    return None


def note_turn(run: Run) -> None:
    """Report to the parent whether this run queues behind runs that wait for people."""
    if run.parent is not None:
        child_idle_changed(run.parent, run)


async def run_with_resources(run: Run, backend: Backend) -> None:
    """Run the steps inside the scope of the run's resources.

    The scope closes the resources after the last step has unwound, and passes them the exception
    that ended the run.
    """
    from sluicegate._engine.resource_scopes import ResourceScope  # noqa: PLC0415 - not everybody needs it

    scope = ResourceScope(
        "run",
        outer=run.options.resources,
        context=outer_context(run.operations),
        variables=run.variables,
        on_failure=partial(fail, run),
    )
    try:
        async with scope:
            run.resources = scope
            try:
                if not run.outcome.status:
                    async with backend.open_nursery() as nursery:
                        await host_run(run, backend, nursery)
            finally:
                scope.ended_by = run.outcome.error
    finally:
        run.resources = None


async def host_run(run: Run, backend: Backend, nursery: Nursery) -> None:
    """Start workers for startable deliveries until the outcome is settled.

    The host task is the one that owns the run. On Trio it also runs steps itself, as the first worker,
    so that a run without concurrency needs no second task. It waits only while no delivery can
    start; a cancellation there settles the outcome, and the nursery unwinds the workers.
    """
    name = backend.task_name(run.host)
    run.nursery = nursery
    machine = await begin(run, backend, nursery)
    while not run.outcome.status:
        delivery = None
        if backend.runs_steps_in_host and not run.workers:
            delivery = machine.next_start()
        if machine.startable:
            start_workers(run)
        if delivery is not None:
            worker = run_worker(run, delivery[0], delivery)
            delivery = None  # the worker lets go of it
            try:
                await worker
            finally:
                del worker
                backend.rename_task(run.host, name)
        if run.outcome.status:
            break
        run.parked = backend.waiter()
        outcome = run.outcome  # other tasks settle it while this one waits
        try:
            while not (outcome.status or machine.startable):
                await run.parked.wait()
        except BaseException as error:
            if not outcome.status and is_a(error, backend.Cancelled):
                settle_cancellation(run, backend.current_time() > run.clock.deadline)
            elif not outcome.status:  # a KeyboardInterrupt; nothing more is to begin
                outcome.interrupt(error, backend.Cancelled)
            raise
        finally:
            run.parked = None


async def begin(run: Run, backend: Backend, nursery: Nursery) -> Machine:
    """Create the machine, load the start event or the snapshot, and apply the early events.

    A checkpoint only if the task was cancelled natively before; then no step has begun.
    """
    run.clock.begin(backend, nursery.cancel_scope, has_branches=run.graph.has_branches)
    run.machine = Machine(
        run.graph,
        backend.open_inbox,
        run.operations.put_on_stream,
        backend.cancel,
        run.operations.report_ended,
        records=run.records,
        journal=run.journal,
    )
    run.turn_due = perf_counter() + TURN
    if run.probe is not None:
        run.probe.run_began()
    if backend.is_natively_cancelled():
        await backend.checkpoint()  # before any step has begun
    machine = run.machine
    if not run.outcome.status:
        if run.resumed is not None:
            run.resumed.load(run, machine)
        else:
            assert run.start_event is not None
            if run.journal is None:
                machine.receive(run.start_event)
            else:
                with run.journal.started():
                    machine.receive(run.start_event)
        run.resumed = run.start_event = None  # the machine has them now
        if run.early:
            take_in_early(run, machine)
    if run.part is not None:
        run.part.begin_life()
    if not run.outcome.status and not machine.alive:
        rest(run)
    return machine


@enable_ki_protection
async def run_worker(  # noqa: C901, PLR0912, PLR0915 - one frame for all that happens at a hop
    run: Run, queue: StepQueue, delivery: Delivery | None = None
) -> None:
    """Run steps in this task, one after another, as long as the machine hands it a delivery.

    A checkpoint at each hop. A failure becomes the outcome of the run, or is retried or handled; only a
    cancellation of the host, ``KeyboardInterrupt`` and ``SystemExit`` are raised. After a cancellation, the
    invocation is in ``run.in_flight`` for a snapshot, and its opened resources have been closed.
    """
    if delivery is None and run.machine is not None and not run.outcome.status:
        delivery = run.machine.take(queue)
        if delivery is None and run.machine.resting:
            note_rest(run)  # another worker has taken its delivery
    if delivery is None:
        if run.probe is not None:
            run.probe.idle_changed()
        return
    backend, machine = run.backend, run.machine
    assert backend is not None
    assert machine is not None
    worker = Worker(run, run.variables)
    run.workers[worker] = None
    worker.task = task = backend.current_task()
    handlers = run.graph.handlers
    log = run.log
    options = run.options
    records = run.records
    journal = run.journal
    tells_idle = options.excludes_waiting or run.parent is not None or options.run_limit is not None
    tells_idle = tells_idle or run.part is not None
    run.turn_due = perf_counter() + TURN  # a worker that begins has just been given its turn
    try:
        while True:
            queue, event, node = delivery
            if journal is not None:
                event = journal.begun(worker, event)
            worker.step = step = queue.step
            worker.event = event
            worker.node = node
            worker.context = None
            worker.was_interrupted = False
            if records is not None:
                records.started(worker, queue, event)
            # Each hop checks for cancellation, and other tasks run at least once per TURN (P3).
            worker.taken_at = now = perf_counter()
            if journal is not None and worker.delivery.sequence > journal.writer.durable:  # type: ignore[union-attr]
                await pass_gate(run, worker, journal)
            elif now >= run.turn_due:
                await backend.checkpoint()
                run.turn_due = perf_counter() + TURN
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
                delivery = recover(run, worker, queue, node, error)
                if records is not None:
                    worker.take(delivery)
                    records.ended(worker, "failed", error)
            else:
                if records is not None:
                    records.returned(worker, node)
                if run.outcome.status:
                    if records is not None:
                        records.finished(worker)
                    break  # the run has ended, so the result of this step is dropped
                done = context and context.journal
                if journal is not None:
                    delivery = finish_durably(run, worker, queue, result, done)
                    if run.outcome.status and machine.stop is None:
                        break  # the stop event came too late
                else:
                    if done is not None and done.held:
                        # Checked before the events are sent; otherwise a resumed run would send them twice.
                        machine.check_result(queue, result)
                        release_held(run, done)
                    delivery = machine.finish(queue, node, result)
                if done is not None:  # its references would live as long as this worker
                    done.children, done.replayed = (), NOTHING
                if records is not None and machine.stop is None:
                    worker.take(delivery)
                    records.finished(worker)
            if machine.stop is not None:
                if step.runs_in != "loop":
                    note_swallowed(run)
                stop(run, machine.stop)
                if run.outcome.stop_event is not None:
                    worker.step = None  # else it came too late, and a resumed run does it again
                if records is not None:
                    records.finished(worker)
                break
            if machine.startable:
                start_workers(run)
            if tells_idle or log.internal_readers:
                idle_changed(run)
            if delivery is None:
                break
        if not run.outcome.status:
            worker.step = worker.event = worker.context = None
            if not machine.alive:
                rest(run)
            elif run.warns_of_idle and machine.resting:
                idle_changed(run)
    except GeneratorExit as error:  # noqa: ASYNC103
        if not backend.is_in_task(task):
            raise  # no step raised it: the coroutine of the task is being closed
        take_error(run, worker, error)
        if records is not None:
            records.failed(worker, error, backend.Cancelled)
    except BaseException as error:  # noqa: ASYNC103 - kept as the outcome, or raised on
        is_to_leave = take_error(run, worker, error)
        if records is not None:
            records.failed(worker, error, backend.Cancelled)
        if is_to_leave:
            raise
    finally:
        del run.workers[worker]
        if worker.step is not None:
            if run.in_flight is None:
                run.in_flight = []
            run.in_flight.append(InFlight.of(worker))
        worker.end()
        if machine.strict:
            check_stuck(run)
        if run.draining is not None:
            check_drained(run)
        if run.probe is not None:
            run.probe.idle_changed()


#: Seconds that the store may take for the end of a run.
STORE_GRACE = 10.0


async def close_journal(  # noqa: ASYNC910 - most often there is nothing to wait for
    run: Run, journal: RunJournal, backend: Backend, interruption: BaseException | None
) -> BaseException | None:
    """Record the end of a run in which nothing is left, and wait until that is durable, shielded.

    A run that is detached, or rests in its store, has no end. One whose end cannot be stored is
    detached. The end of a child needs no wait: its parent uses only durable results.

    Returns:
        The interruption, or that of the wait.
    """
    outcome, writer = run.outcome, journal.writer
    outcome.end_by(interruption, backend.Cancelled)
    if outcome.status in ("detached", "parked"):
        return interruption
    end = journal.ended(outcome.status, outcome.terminal_event())
    due = backend.current_time() + STORE_GRACE
    while run.parent is None and end > writer.durable and outcome.status != "detached":
        try:
            with backend.cancel_scope(deadline=due, shield=True) as scope:
                await writer.reached(end)
            if scope.cancelled_caught:
                msg = f"the store did not take it within {STORE_GRACE:g} s"
                outcome.detach("its end could not be stored", TimeoutError(msg))
        except backend.Cancelled as error:  # noqa: ASYNC103 - a native one; returned
            interruption = interruption or error
        except Exception as error:  # noqa: BLE001 - the cause of the detachment
            outcome.detach("its end could not be stored", error)
    return interruption


async def pass_gate(run: Run, worker: Worker, journal: RunJournal) -> None:
    """Wait until the record that made a worker's delivery is durable. A checkpoint.

    It is the gate before a step's body, of which nothing has begun. A run that is drained meanwhile starts no step any more: the worker then waits for its cancellation.
    """
    assert worker.delivery is not None
    worker.is_waiting = True
    if run.draining is not None:
        check_drained(run)
    try:
        await journal.writer.reached(worker.delivery.sequence)
        while run.draining is not None:
            await current_backend().waiter().wait()
    finally:
        worker.is_waiting = False
    run.turn_due = perf_counter() + TURN


def finish_durably(
    run: Run, worker: Worker, queue: StepQueue, result: Any, done: StepJournal | None
) -> Delivery | None:
    """Record the result of an invocation and apply it; return the worker's next delivery.

    Whether a stop event is in time is decided before it is recorded.

    Raises:
        WorkflowRuntimeError: The step does not declare the result.
        SnapshotError: The result cannot be kept.
    """
    backend, machine = run.live()
    journal, node = run.journal, worker.node
    assert journal is not None
    assert worker.delivery is not None
    is_dropped = node is not None and node.is_cancelled
    if not is_dropped:
        machine.check_result(queue, result)
        if isinstance(result, StopEvent) and queue.step.runs_in != "loop":
            note_swallowed(run)
            if run.outcome.status:
                return None
        if isinstance(result, StopEvent) and backend.current_time() > run.clock.deadline:
            settle_timeout(run)
            halt(run, "the run has ended", by_worker=True)
            return None
    held = () if done is None else done.held
    with journal.done(worker.delivery.key, None if is_dropped else result, held):
        if done is not None:
            release_held(run, done)
        delivery = machine.finish(queue, node, result)
        if machine.stop is not None:
            run.outcome.complete(machine.stop)
    return delivery


@enable_ki_protection
def release_held(run: Run, journal: StepJournal) -> None:
    """Send the events that a successful attempt has held back until its end."""
    assert run.machine is not None
    for route, event, node, target in journal.held:
        run.machine.send(route, event, node, target)
    journal.held.clear()
