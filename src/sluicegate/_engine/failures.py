"""A step has failed: whether it is tried again, handed to a handler, or to who waits for it."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from sluicegate._engine.ending import fail, is_cancelled
from sluicegate._engine.idle import check_stuck, idle_changed, rest, start_workers
from sluicegate._engine.journal import Redelivery
from sluicegate._engine.outcome import drop_own_frames
from sluicegate._engine.run import content_key
from sluicegate._errors import PoisonStepError, WorkflowRuntimeError
from sluicegate._events import StepFailedEvent
from sluicegate._loop import enable_ki_protection


if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sluicegate._definition.retries import Attempts
    from sluicegate._definition.steps import Step
    from sluicegate._engine.invocation import Worker
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.machine import Delivery
    from sluicegate._engine.run import Run
    from sluicegate._engine.step_queue import StepQueue


def recover(  # noqa: C901 - the decisions in their order
    run: Run, worker: Worker, queue: StepQueue, node: BranchNode | None, error: BaseException
) -> Delivery | None:
    """Decide how to handle a failed invocation; return the next delivery of its worker, if any.

    The order is: another attempt, the handler of the step, a step that waits for the branch. The
    clock is read once for the whole decision, and the decision is one synchronous block.

    Raises:
        BaseException: ``error`` itself, if it fails the run; or the exception of a retry's strategy.
    """
    from sluicegate._definition.retries import Attempts, note_attempts  # noqa: PLC0415 - not everybody needs it

    backend, machine = run.live()
    from sluicegate._loop.mixing import note_mixing  # noqa: PLC0415 - only a failure needs it

    in_thread = queue.step.runs_in != "loop"
    note_mixing(error, queue.step.label, backend.name, in_thread=in_thread)
    drop_own_frames(error)
    if run.outcome.status or is_cancelled(run):
        raise error
    now = backend.current_time()  # one reading for all that is decided about this failure
    step = queue.step
    known = worker.event if type(worker.event) is Redelivery else None
    given = worker.event if known is None else known.event
    journal = worker.context.journal if worker.context is not None else None
    if run.records is not None:
        run.records.enter(worker.number, "engine")
    if journal is not None:
        journal.undo(machine, queue.index)
    attempts = (known.attempts if known is not None else None) or Attempts(worker.began_at)
    attempts.failed(error, now)
    if node is None or not node.is_cancelled:
        if step.options.retry is not None and type(error) is not PoisonStepError:
            redelivery = _next_attempt(run, step, given, known, attempts)
            if redelivery is not None:
                if journal is not None:
                    journal.carry_over(redelivery, partial(content_key, run))
                    journal.children = ()  # the failure of one refers to this attempt
                return _try_later(run, worker, queue, redelivery, now)
            note_attempts(error, attempts, step.label)
        handler = _handler_of(run, queue, node)
        if handler is not None:
            return _hand_to_handler(run, worker, queue, handler, given, attempts)
    for around in node.upward() if node is not None else ():
        if around.cancel_record is not None and around.cancel_record.waiters:
            run.outcome.note(error, step, given)
            around.cancel_record.errors.append(error)
            branch = 0 if run.journal is None else run.journal.number_of(around)
            with _recorded(run, worker, attempts, do="branch", b=branch):
                machine.cancel(around, f"the step {step.label} failed", "failure")
                return machine.drop(queue, node)
    raise error


def _next_attempt(
    run: Run, step: Step, given: Any, known: Redelivery | None, attempts: Attempts
) -> Redelivery | None:
    """Return the delivery of the next attempt, or None after the last one.

    Raises:
        Exception: The exception of a strategy of the retry.
    """
    assert step.options.retry is not None
    seed = known.seed if known is not None and known.seed else _new_seed(run, step.name)
    delay = step.options.retry.next_delay(
        attempts, seed=seed, step=step.source, cancelled=run.live()[0].Cancelled
    )
    if delay is None:
        return None
    attempts.pause(delay)
    redelivery = Redelivery(given, attempts)
    if known is not None:
        redelivery.take_over(known)
    redelivery.seed = seed
    redelivery.delay = delay
    return redelivery


def _recorded(
    run: Run, worker: Worker, attempts: Attempts, **decision: Any
) -> AbstractContextManager[None]:
    """Return a context manager that records the decision about a failure in a durable run."""
    if run.journal is None:
        return nullcontext()
    return run.journal.failed(worker, attempts, **decision)


def _handler_of(run: Run, queue: StepQueue, node: BranchNode | None) -> int | None:
    """Return the handler that may recover a failure of a step; None where there is none."""
    _, machine = run.live()
    handler = machine.graph.handlers.get(queue.index)
    if handler is None:
        return None
    catches = machine.graph.steps[handler].options.catches
    assert catches is not None
    return None if machine.recoveries(handler, node) >= catches.max_recoveries else handler


def _hand_to_handler(  # noqa: PLR0917
    run: Run, worker: Worker, queue: StepQueue, handler: int, given: Any, attempts: Attempts
) -> Delivery | None:
    """Give a failure to a handler; return the worker's next delivery."""
    _, machine = run.live()
    failed = StepFailedEvent(
        step_name=queue.step.name,
        input_event=given,
        exception=attempts.failures[-1].exception,
        exceptions=attempts.exceptions,
        attempts=attempts.count,
        elapsed_seconds=attempts.failures[-1].at,
    )
    step = machine.graph.steps[handler]
    encoded = None if run.journal is None else run.journal.encoded(failed)
    with _recorded(run, worker, attempts, do="handler", handler=step.name, e=encoded):
        machine.recover(handler, failed, worker.node)
        return machine.drop(queue, worker.node)


def _try_later(
    run: Run,
    worker: Worker,
    queue: StepQueue,
    redelivery: Redelivery,
    now: float,
) -> Delivery | None:
    """Have a delivery tried again when its delay is over; return the worker's next delivery."""
    _, machine = run.live()
    node = worker.node
    redelivery.due = now + redelivery.delay
    if run.records is not None:
        run.records.retry_of(worker.number)
    if run.journal is not None:
        run.journal.retried(worker, redelivery)
    attempts = redelivery.attempts
    assert attempts is not None
    delay, seed = redelivery.delay, redelivery.seed
    with _recorded(run, worker, attempts, do="retry", delay=delay, seed=seed):
        following = machine.delay(queue, redelivery, node)
        if not delay:
            machine.retry(queue, redelivery)
            return following or machine.next_start()
    begin_delay(run, queue, redelivery, node)
    return following


def begin_delay(
    run: Run, queue: StepQueue, redelivery: Redelivery, node: BranchNode | None
) -> None:
    """Start the timer of a delayed delivery."""
    name = f"{queue.step.label}: waiting for attempt {redelivery.number}"
    run.timers += 1
    run.nursery.start_soon(_wait_and_retry, run, queue, redelivery, node, name=name)


@enable_ki_protection
async def _wait_and_retry(
    run: Run, queue: StepQueue, redelivery: Redelivery, node: BranchNode | None
) -> None:
    """Wait until the next attempt is due, and give its delivery back to the machine.

    A checkpoint. It runs in a separate task, so the worker of the failed attempt takes other
    deliveries meanwhile. It raises no cancellation, because that would cancel the run's nursery.
    A cancellation of the branch or the run drops the delivery; they have taken it out of the
    machine. A cancellation of the delay alone fails the run.
    """
    backend, machine = run.live()
    cancel_record = node.cancel_record if node is not None else None
    try:
        with backend.cancel_scope(deadline=redelivery.due) as scope:
            if cancel_record is not None:
                cancel_record.running[scope] = None
                if cancel_record.reason is not None:  # since it was laid aside
                    scope.cancel()
            try:
                await backend.waiter().wait()
            finally:
                if cancel_record is not None:
                    cancel_record.running.pop(scope, None)
    except backend.Cancelled as error:  # noqa: ASYNC103 - the task that runs the run raises it
        # Raised here, it would cancel the nursery, and look as the run's own timeout does.
        if not (run.outcome.status or backend.is_cancelled()):
            fail(run, _cut_short(redelivery, queue.step, error))
        return  # noqa: ASYNC910 - the wait was a checkpoint
    finally:
        run.timers -= 1
    if not run.outcome.status:
        with nullcontext() if run.journal is None else run.journal.due(redelivery):
            machine.retry(queue, redelivery)
        start_workers(run)
        check_stuck(run)
        if not machine.alive:
            rest(run)
        else:
            idle_changed(run)


def _cut_short(redelivery: Redelivery, step: Step, cause: BaseException) -> WorkflowRuntimeError:
    """Return the failure for a delay that was cancelled while its run was not."""
    msg = (
        f"the delay before attempt {redelivery.number} of the step {step.label} was cancelled; expected "
        "its run, or its branch, to be cancelled"
    )
    failure = WorkflowRuntimeError(msg)
    failure.__cause__ = cause
    return failure


def _new_seed(run: Run, step: str) -> str:
    """Return the seed for the jitter of a delivery's retries: reproducible, one per delivery."""
    run.retried += 1
    return f"{run.run_id}/{step}/{run.retried}"
