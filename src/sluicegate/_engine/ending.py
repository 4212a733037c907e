"""How a run ends: what settles its outcome, and how everything that still runs unwinds.

The outcome is settled once, at the first stop event, failure, timeout or cancellation (see
:mod:`sluicegate._engine.outcome`). :func:`halt` then cancels the nursery of the run, and
:func:`conclude` closes the run when nothing of it is left.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from sluicegate._engine.journal import Redelivery
from sluicegate._engine.outcome import OUTSIDE
from sluicegate._engine.run import check_thread
from sluicegate._engine.stalls import expects_input, missing, silent_ends
from sluicegate._errors import unasked_cancellation
from sluicegate._exceptions import came_of, is_cancellation
from sluicegate._loop import current_backend, enable_ki_protection


if TYPE_CHECKING:
    from sluicegate._engine.run import Run
    from sluicegate._events import StopEvent
    from sluicegate._loop import Backend


@enable_ki_protection
def cancel_run(run: Run, reason: str) -> None:
    """Ask the run to end; it has ended when the outcome says so."""
    check_thread(run, "cancel")
    if run.outcome.status:
        return
    if (
        run.machine is not None
        and run.backend is not None
        and run.backend.current_time() > run.clock.deadline
    ):
        settle_timeout(run)
    else:
        run.outcome.cancel(reason)
    cancel_scopes(run, reason)


@enable_ki_protection
def leave_run(run: Run, reason: str) -> None:
    """Ask the run to end because its owner is left; a durable run is detached instead."""
    if run.outcome.is_durable:
        check_thread(run, "cancel")
        detach_run(run, reason)
    else:
        cancel_run(run, reason)


@enable_ki_protection
def detach_run(run: Run, reason: str, error: BaseException | None = None) -> None:
    """End the part of a durable run that this process has; the run continues from its store.

    Not a checkpoint. The deadline is not looked at: the next part of the run does that.

    Args:
        run: The run; nothing changes if its outcome is settled.
        reason: Why, as the error and the event of the detachment show it.
        error: The error of the store, or the lost lease, that has caused it.
    """
    if run.outcome.status in ("", "parked"):
        run.outcome.detach(reason, error)
        cancel_scopes(run, reason)


@enable_ki_protection
def refuse_run(run: Run, error: BaseException) -> None:
    """End the part of a durable run in this process, whose code cannot continue the run. Not a checkpoint.

    Args:
        run: The run, or one of its children; nothing changes if its outcome is settled.
        error: The reason, which the owner of the run raises.
    """
    while run.parent is not None:
        run = run.parent
    if run.outcome.status in ("", "parked"):
        run.outcome.refuse(error)
        cancel_scopes(run, "this code cannot continue the run")


def cancel_scopes(run: Run, reason: str) -> None:
    """Cancel what the run waits in, after its outcome was settled from outside."""
    if run.records is not None:
        run.records.run_cancelled(run, reason)
    for scope in (run.queue_scope, run.nursery and run.nursery.cancel_scope):
        if scope is not None and run.backend is not None:
            run.backend.cancel(scope, reason)


def fail(run: Run, error: BaseException) -> None:
    """Fail the run with an error that no step raised."""
    run.outcome.fail(error, None, None, current_backend().Cancelled)
    halt(run, "the run failed")


def stall(run: Run) -> None:
    """Take note that nothing can happen in the run any more."""
    if not run.outcome.status and run.draining is None:
        _, machine = run.live()
        run.outcome.stall((*missing(machine), *silent_ends(machine)))
        halt(run, "the run is stalled")


def stop(run: Run, event: StopEvent) -> None:
    """End the run with a stop event, or with the timeout if the event is too late.

    The first cause counts, so an outcome that is already settled stays. In every case the other
    workers are cancelled.
    """
    assert run.backend is not None
    if run.outcome.status:
        pass
    elif run.clock.deadline != inf and run.backend.current_time() > run.clock.deadline:
        settle_timeout(run)
    else:
        run.outcome.complete(event)
    halt(run, "the run has ended", by_worker=True)


def settle_timeout(run: Run) -> None:
    """Take note that the timeout has passed."""
    assert run.machine is not None
    active = tuple(w.step.name for w in run.workers if w.step is not None)
    waits = run.awaits_outside and expects_input(run.machine)
    run.outcome.time_out(active, waits_for_input=waits, missing=missing(run.machine))
    if run.records is not None:
        run.records.run_cancelled(run, f"its timeout of {run.options.timeout:g} s has passed")


def settle_cancellation(run: Run, is_timeout: bool) -> None:
    """Settle a cancellation that the run did not request: by its timeout, or from outside."""
    assert run.backend is not None
    if is_timeout:
        settle_timeout(run)
    else:
        run.outcome.interrupt(None, run.backend.Cancelled)
        if run.records is not None:
            run.records.run_cancelled(run, OUTSIDE)


def note_swallowed(run: Run) -> None:
    """Settle a cancellation from outside that came while a step was in a thread.

    Under Trio nothing is delivered to the task that waits for a thread.
    """
    backend, _ = run.live()
    is_own = run.nursery.cancel_scope.cancel_called
    if not run.outcome.status and not is_own and backend.is_cancelled_around(run.nursery):
        settle_cancellation(run, False)


def note_delivery(run: Run, error: BaseException) -> bool:
    """Take note of what is about to be delivered into a step; say whether it is the run's end.

    The outcome is settled here, because unwinding may take long: by the timeout, if the time
    and the scope say so; by the outside, if that was cancelled, whatever the step makes of it.
    A cancellation of the step's own scopes settles nothing.
    """
    backend, nursery = run.backend, run.nursery
    if backend is None or nursery is None or not issubclass(type(error), backend.Cancelled):
        return False
    if not run.outcome.status:
        if nursery.cancel_scope.cancel_called:
            if backend.current_time() > run.clock.deadline:
                settle_timeout(run)
        elif backend.is_cancelled_around(nursery):
            settle_cancellation(run, False)
        else:
            return False
    return True


def is_cancelled(run: Run) -> bool:
    """Whether the current task of the run is cancelled, or is about to be by its owner."""
    backend, _ = run.live()
    ask = run.is_owner_cancelled
    return backend.is_cancelled() or (ask is not None and ask())


def take_error(run: Run, worker: Any, error: BaseException) -> bool:
    """Record the failure of a step as the outcome; return whether the worker re-raises ``error``.

    Called by a worker for each exception that its step or the engine raised. It re-raises only a
    cancellation of the host task, so the nursery never sees a failure.
    """
    backend, _ = run.live()
    try:
        is_over = bool(run.outcome.status)
        cancelled = (is_over and run.nursery.cancel_scope.cancel_called) or is_cancelled(run)
        if cancelled and not run.outcome.status:
            # A cancellation delivered before the deadline was not caused by it.
            is_late = backend.current_time() > run.clock.deadline and not worker.was_interrupted
            settle_cancellation(run, is_late)
        if is_cancellation(error, backend.Cancelled):
            if cancelled:
                return backend.current_task() is run.host
            who = "a step" if worker.step is None else f"the step {worker.step.label}"
            around = "neither its run nor anything around it was"
            error = unasked_cancellation(who, around, error)
        event = worker.event.event if type(worker.event) is Redelivery else worker.event
        run.outcome.fail(error, worker.step, event, backend.Cancelled)
        if cancelled and not came_of_cancellation(run, worker, error):
            run.outcome.pass_over(error)
        halt(run, f"the step {worker.step.name if worker.step else '?'} failed", by_worker=True)
        return False
    except BaseException as fault:  # noqa: ASYNC103, BLE001 - kept, beside the failure
        return keep_both(run, worker, error, fault)  # noqa: ASYNC104


def keep_both(run: Run, worker: Any, error: BaseException, fault: BaseException) -> bool:
    """Record a failure and the fault of its recording; return whether the worker re-raises ``error``."""
    backend, _ = run.live()
    is_to_go_on = is_cancellation(error, backend.Cancelled)
    if not is_to_go_on:
        run.outcome.fail_anyway(error, worker.step)
    run.outcome.fail_anyway(fault, None)
    halt(run, "a step failed")
    return is_to_go_on and backend.is_in_task(run.host)


def came_of_cancellation(run: Run, worker: Any, error: BaseException) -> bool:
    """Whether the cancellation of the run caused a failure, rather than only coincided with it.

    It did if the cancellation was delivered into the attempt. For a step in a thread only the
    exception shows that. On Trio the same holds for tasks of a nursery in the step, because
    the cancellation is not delivered into the task that waits for them.
    """
    backend, _ = run.live()
    if worker.was_interrupted and (worker.step is None or worker.step.runs_in == "loop"):
        return True
    is_told = backend.name == "trio" or (worker.step is not None and worker.step.runs_in != "loop")
    return is_told and came_of(error, backend.Cancelled)


def halt(run: Run, reason: str, *, by_worker: bool = False) -> None:
    """Cancel everything that still runs, so that the host reads the outcome.

    The outcome must be settled before. Not a checkpoint: the cancelled tasks unwind later. A worker
    that is alone needs no cancellation, because it ends by itself.
    """
    if run.backend is None or run.nursery is None:
        return
    if not by_worker or len(run.workers) > 1 or run.timers:  # others beside the caller
        if run.records is not None:
            run.records.run_cancelled(run, reason)
        run.backend.cancel(run.nursery.cancel_scope, reason)
    elif run.parked is not None:
        run.parked.wake()


def conclude(  # noqa: C901 - all of the end in its order
    run: Run, backend: Backend, interruption: BaseException | None
) -> None:
    """Close the run after everything of it has unwound: clock, machine, stream, waiting tasks.

    Not a checkpoint. A fault while the clock or the machine is closed becomes a failure of the run,
    so that the stream still ends.
    """
    outcome = run.outcome
    if run.probe is not None:
        run.probe.run_ended()
    try:
        if not outcome.status or interruption is not None:
            outcome.end_by(interruption, backend.Cancelled)
        run.nursery = run.parked = run.host = run.queue_scope = None
        run.operations = None  # they hold the run
        run.clock.end(backend)
        if run.machine is not None:
            run.machine.close()
            if outcome.status == "completed":
                run.machine = None
                run.in_flight = None
            else:
                run.machine.retire()
    except BaseException as fault:  # noqa: ASYNC103, BLE001 - kept: the stream has to end
        outcome.fail_anyway(fault, None)
    run.awaits_outside = False
    if outcome.status == "parked":  # the run continues, and so do its handler and its stream
        if run.records is not None:
            run.records.end(run)
            run.records = None
        return
    if run.state_store is not None:
        run.state_store.journal = None
    last = outcome.conclude()
    if run.records is not None:
        run.records.enter(None, "engine")
        run.records.streamed(run.log.next, last, is_last=True)
    run.log.close(last, 0 if run.part is None else run.part.shown)
    outcome.announce()
    if run.records is not None:
        run.records.end(run)
        if run.state_store is not None and run.state_store.records is run.records:
            run.state_store.records = None
        run.records = None
