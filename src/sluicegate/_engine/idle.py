"""The progress of a run: idle, at rest, stuck or drained, and its open questions."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from sluicegate._engine.ending import cancel_run, stall
from sluicegate._engine.stalls import at_rest, expects_input, is_stuck
from sluicegate._events import WorkflowIdleEvent
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._questions import OpenQuestion, id_of


if TYPE_CHECKING:
    from sluicegate._engine.run import Run
    from sluicegate._engine.step_queue import Absence
    from sluicegate._questions import Asked


LOGGER = logging.getLogger("sluicegate")


class PlaceHolder(Protocol):
    """A worker, as far as its place matters; see :class:`sluicegate._engine.invocation.Worker`."""

    absence: Absence | None
    turn: Any


def is_idle(run: Run) -> bool:
    """Whether nothing runs and the run waits for an event from outside."""
    if run.awaits_outside or run.machine is None:
        return run.awaits_outside
    machine = run.machine
    has_questions = machine.outside_waits or len(run.children) > run.busy_children
    return bool(has_questions) and not run.busy_children and machine.is_at_rest


def idle_changed(run: Run) -> None:
    """Report whether the run is idle to its readers, its clock, its slots, its parent and the probe."""
    if run.log.internal_readers and is_idle(run) is not run.reported_idle:
        run.reported_idle = not run.reported_idle
        if run.reported_idle:
            run.log.append(WorkflowIdleEvent())
    if run.warns_of_idle and is_idle(run):
        warn_of_idle(run)
    if run.slots is not None:
        run.slots.note(run, is_idle=is_idle(run))
    if run.options.excludes_waiting and run.backend is not None:
        run.clock.stand(run.backend, still=is_idle(run))
    if run.parent is not None:
        child_idle_changed(run.parent, run)
        check_drained(run.parent)
    if run.part is not None:
        run.part.idle_changed()
    if run.probe is not None:
        run.probe.idle_changed()


def warn_of_idle(run: Run) -> None:
    """Log one warning for a run that is awaited in place and whose questions have no reader."""
    run.warns_of_idle = False
    if run.log.has_readers or run.parent is not None:  # a child asks through its parent
        return
    waits = [
        f"{question.id}: {' or '.join(kind.__name__ for kind in question.answers) or 'an event'}"
        for question in open_questions(run)
    ]
    LOGGER.warning(
        "the run %s of %s, awaited in place, waits for an event from outside (%s), and no reader "
        "is there to show what it asks; expected `async with workflow.run(...) as handler:`, and "
        "`handler.send_event(...)` in it",
        run.run_id,
        run.graph.name,
        ", ".join(waits),
    )


def open_questions(run: Run) -> tuple[OpenQuestion, ...]:
    """See :attr:`sluicegate.WorkflowHandler.questions`."""
    if run.part is not None and (not run.part.is_live or run.outcome.status == "parked"):
        return run.part.questions
    if run.outcome.status:
        return ()
    machine = run.machine
    if machine is None:
        resumed = () if run.resumed is None else run.resumed.questions
        answered = {question for _, _, question in run.early}
        found_before = [shown(run, asked) for asked in resumed if asked.answer is None]
        found_before += _saved_questions(run)
        return tuple(question for question in found_before if question.id not in answered)
    found = {
        asked.number: shown(run, asked) for asked in machine.open_questions if asked.answer is None
    }
    for wait in machine.waits:
        if wait.is_outside or wait.asks:
            found[wait.number] = OpenQuestion(
                id_of(wait.number), wait.shown, wait.since, (wait.kind,)
            )
    own = [found[number] for number in sorted(found)]
    for child in run.children:
        inner = open_questions(child)
        own += [attrs.evolve(q, id=f"{child.run_id}/{q.id}") for q in inner]
    own += _saved_questions(run)
    return tuple(own)


def _saved_questions(run: Run) -> list[OpenQuestion]:
    """Return the questions of children that have not begun again."""
    if not run.saved_children:
        return []
    from sluicegate._engine.saved_children import saved_questions  # noqa: PLC0415 - few runs have any

    return saved_questions(run)


def shown(run: Run, asked: Asked) -> OpenQuestion:
    answers = run.graph.answers if asked.kind is None else (asked.kind,)
    return OpenQuestion(id_of(asked.number), asked.event, asked.since, answers)


def child_idle_changed(run: Run, child: Run) -> None:
    """Take note of whether a child of a step waits for an event from outside."""
    # One that waits for its turn behind runs that wait for people waits for these, too.
    rests = is_idle(child) or (child.queued_at is not None and child.queued_at.is_idle)
    if rests is not child.rests_in_parent:
        child.rests_in_parent = rests
        machine, context = run.machine, run.children[child]
        assert machine is not None
        if rests:
            run.busy_children -= 1
            machine.begin_rest(context, is_strict=False)
            lender, absence = child.lender, child.absence
            if lender is not None and absence is not None and lender.absence is None:
                give_up_place(run, lender, absence)
        else:
            run.busy_children += 1
            machine.end_rest(context, is_strict=False)
    idle_changed(run)


def give_up_place(run: Run, worker: PlaceHolder, absence: Absence) -> None:
    """Give the place of a step that begins to wait, and that in its limiter, to others."""
    _, machine = run.live()
    machine.leave_place(absence)
    worker.absence = absence
    if worker.turn is not None:
        worker.turn.give_up()
    start_soon(run)


def note_rest(run: Run) -> None:
    """Update the idle state after a step began to wait for its place, or a worker ended."""
    if run.machine is not None and run.machine.strict:
        check_stuck(run)
    idle_changed(run)
    if run.draining is not None:
        check_drained(run)


def rest(run: Run) -> None:
    """Handle a run without live deliveries: it waits for an event from outside, or it has stalled."""
    if run.draining is not None:
        return
    assert run.machine is not None
    if expects_input(run.machine):
        run.awaits_outside = True
        idle_changed(run)
    else:
        stall(run)


def steps_at_rest(run: Run) -> set[int]:
    """Return the ids of the contexts of all steps that are suspended in a wait."""
    if run.machine is None:
        return set()
    busy = {id(step) for child, step in run.children.items() if not child.rests_in_parent}
    return at_rest(run.machine) - busy


def can_be_released(run: Run) -> bool:
    """Whether nothing happens in the run before a timer is due or an event comes from outside.

    Every step that has begun waits for an event or a branch, or sleeps, and none has a task that does
    anything else.
    """
    machine = run.machine
    if machine is None or run.outcome.status or run.draining is not None or machine.startable:
        return False
    if machine.stop is not None or (run.parked is None and not run.workers):
        return False  # it is just beginning, or ending
    resting = steps_at_rest(run) | _steps_asleep(run)
    workers = [worker for worker in run.workers if worker.step is not None]
    if any(id(worker.context or worker) not in resting for worker in workers):
        return False
    return are_alone(run) and all(can_be_released(child) for child in run.children)


def next_due(run: Run) -> float:
    """Return when the next timer of the run is due, on the backend's clock; infinity without one.

    Its own timeout is no such timer: it counts only the time in which the run is in memory.
    """
    machine = run.machine
    if machine is None:
        return inf
    due = min(
        min((wait.due for wait in machine.waits), default=inf),
        min((sleep.due for sleep in run.sleeping), default=inf),
    )
    for queue in machine.queues:
        due = min(due, *(redelivery.due for redelivery in queue.delayed or ()), inf)
    return min(due, *(next_due(child) for child in run.children), inf)


def check_drained(run: Run) -> None:
    """Cancel a draining run as soon as none of its steps can make progress."""
    machine = run.machine
    if run.draining is None or run.outcome.status or machine is None:
        return
    resting = steps_at_rest(run) | _steps_asleep(run)
    active = (
        worker
        for worker in run.workers
        if not (worker.step is None or worker.is_waiting)
        # One that queues for its place continues when one that has a place ends.
        and (worker.absence is None or not worker.absence.is_queued)
    )
    if any(id(w.context or w) not in resting for w in active):
        return
    cancel_run(run, run.draining)


def _steps_asleep(run: Run) -> set[int]:
    """Return the ids of the contexts of all steps that sleep, or wait for a child that does."""
    found = {id(step) for step in run.sleeping.values()}
    found.update(id(step) for child, step in run.children.items() if _is_asleep(child))
    return found


def _is_asleep(run: Run) -> bool:
    """Whether nothing happens in a run until a timer is due or an event comes from outside."""
    machine = run.machine
    if machine is None or machine.startable or len(machine.answered) > machine.held_up:
        return False
    asleep = {*run.sleeping.values()}
    for child, step in run.children.items():
        if _is_asleep(child):
            asleep.add(step)
        elif not child.rests_in_parent:
            return False
    has_timer = bool(asleep) or any(queue.delayed for queue in machine.queues)
    still = len({*machine.resting, *asleep})
    return has_timer and sum(queue.begun for queue in machine.queues) == still


def check_stuck(run: Run) -> None:
    """Fail a run in which no event can let any step continue."""
    machine = run.machine
    if machine is not None and machine.strict and is_stuck(machine) and are_alone(run):
        stall(run)


def are_alone(run: Run) -> bool:
    """Whether no task that a step has started could still make progress."""
    backend, _ = run.live()
    owners = {worker.task: worker for worker in run.workers if worker.step is not None}
    engine: set[Any] = set()
    runs = [run]  # and the children of its steps, and theirs
    for each in runs:
        engine.update((worker.task for worker in each.workers), (each.host, each.nursery))
        runs.extend(each.children)
    return not backend.have_own_tasks(owners, current_cleanup, run.nursery, engine)


def start_workers(run: Run) -> None:
    """Start a worker for each delivery that waits for one."""
    _, machine = run.live()
    nursery = run.nursery
    for queue in machine.startable:
        nursery.start_soon(run.work, run, queue, name=queue.step.label)
    machine.startable.clear()


def start_soon(run: Run) -> None:
    """Start the workers of all startable deliveries, or wake the host to do so."""
    if run.parked is None:
        start_workers(run)
    elif run.machine is not None and run.machine.startable:
        run.parked.wake()  # the host does: AnyIO starts tasks from tasks only
