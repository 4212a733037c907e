"""``ctx.sleep``: timers of steps that continue in later attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate._engine.idle import check_drained, give_up_place, idle_changed
from sluicegate._engine.step_queue import Absence


if TYPE_CHECKING:
    from sluicegate._context import Context
    from sluicegate._engine.invocation import Worker
    from sluicegate._engine.journal import Sleep, StepJournal
    from sluicegate._engine.run import Run
    from sluicegate._loop import Backend


async def sleep(
    run: Run, context: Context[Any], journal: StepJournal, seconds: float, worker: Worker | None
) -> None:
    """Sleep until the time at which the sleep, or that of an earlier attempt, is over.

    A checkpoint. A cancelled sleep is kept until the step continues after it: if the attempt ends
    instead, the next attempt continues the sleep.

    Args:
        run: The run.
        context: The context of the step.
        journal: The journal of the step.
        seconds: How long a new sleep lasts.
        worker: The worker that gives up its place meanwhile; None if it keeps it.
    """
    backend, _ = run.live()
    forget_cut(run, context, journal)
    due = journal.find_sleep(seconds)
    is_known = due is not None
    kept = journal.begin_sleep(seconds, backend.current_time() + seconds if due is None else due)
    if run.journal is not None:
        run.journal.sleeps(context.redelivery.key, seconds, kept.due, again=is_known)
    try:
        if kept.due <= backend.current_time():
            await backend.checkpoint()
        else:
            await _rest(run, backend, context, kept, worker)
    except BaseException:
        journal.has_cut = kept.is_cut = True
        raise
    journal.end_sleep(kept)


async def _rest(
    run: Run, backend: Backend, context: Context[Any], kept: Sleep, worker: Worker | None
) -> None:
    """Sleep, as a step that waits: in a run that is drained it does not hold up the end."""
    _, machine = run.live()
    records, number = run.records, 0
    if records is not None:
        number = records.wait_started(records.caller(), "sleep", until=kept.due)
    absence: Absence | None = None
    is_over = False
    run.sleeping = run.sleeping or {}
    run.sleeping[kept] = context
    try:
        if worker is not None and worker.step is not None:
            absence = Absence(machine.queues[worker.step.index], backend.waiter())
            give_up_place(run, worker, absence)
        idle_changed(run)
        check_drained(run)
        while (now := backend.current_time()) < kept.due:
            await backend.sleep(kept.due - now)
        is_over = True
    finally:
        del run.sleeping[kept]
        if worker is not None and absence is not None and not is_over:
            worker.is_back(machine, absence)
        if records is not None:
            records.wait_ended(number, "done" if is_over else "cancelled")
        idle_changed(run)
    if worker is not None and absence is not None:
        await worker.reclaim(machine, absence)
        idle_changed(run)


def forget_cut(run: Run, context: Context[Any], journal: StepJournal) -> None:
    """Forget the sleeps that the step has cancelled and continued after."""
    if not journal.has_cut:
        return
    for kept in journal.drop_cut():
        if run.journal is not None:
            run.journal.forgets_sleep(context.redelivery.key, kept.seconds, kept.number)
