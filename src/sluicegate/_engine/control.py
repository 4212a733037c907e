"""The operations of a run's owner: send events, cancel the run, take a snapshot, query its state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate._engine.ending import cancel_run
from sluicegate._engine.idle import check_drained, check_stuck, idle_changed, rest, start_soon
from sluicegate._engine.run import check_thread
from sluicegate._errors import (
    EventConflictError,
    QuestionClosedError,
    SnapshotError,
    WorkflowDetachedError,
    WorkflowRuntimeError,
    brief,
)
from sluicegate._events import HumanResponseEvent, UnhandledEvent
from sluicegate._loop import enable_ki_protection
from sluicegate._questions import id_of, number_of


if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sluicegate._engine.machine import Machine
    from sluicegate._engine.run import Early, Run
    from sluicegate._engine.run_journal import RunJournal
    from sluicegate._engine.saved_children import PastAsked, SavedAsked
    from sluicegate._events import Event
    from sluicegate._state.store import StateStore


@enable_ki_protection
def cancel(run: Run, reason: str) -> None:
    """Ask the run to end because its owner says so; a durable run records that first.

    Raises:
        WorkflowRuntimeError: The call comes from another thread.
    """
    check_thread(run, "cancel")
    if run.journal is not None:
        run.journal.cancelled(reason, "now")
    cancel_run(run, reason)


@enable_ki_protection
def drain(run: Run, reason: str) -> None:
    """Start no more steps; cancel the run after the running ones have ended or wait for an event.

    Synchronous; a run that has not begun is cancelled at once, and one that has ended is left alone.

    Raises:
        WorkflowRuntimeError: The call comes from another thread.
    """
    check_thread(run, "cancel")
    if run.outcome.status or run.draining is not None:
        return
    if run.machine is None:
        cancel(run, reason)
        return
    if run.journal is not None:
        run.journal.cancelled(reason, "steps")
    run.draining = reason
    run.machine.drain()
    check_drained(run)


def abandon(run: Run, reason: str | None = None) -> None:
    """Conclude a run that was cancelled before it could begin; without a reason, from outside."""
    if not run.outcome.is_over:
        if reason is None:
            run.outcome.cancel_from_outside()
        else:
            run.outcome.cancel(reason)
        run.log.close(run.outcome.conclude())
        run.outcome.announce()


@enable_ki_protection
def receive(
    run: Run,
    event: Event,
    target: str | None,
    question: str | None = None,
    key: str | None = None,
) -> bool:
    """Take an event from outside; return whether it is new.

    Raises:
        WorkflowRuntimeError: The run is over, no step takes it, or the wrong thread calls.
        QuestionClosedError: The question is open no longer.
        EventConflictError: Another event came under the same key.
    """
    check_thread(run, "send_event")
    if key is not None and key in run.keys:
        check_repeated(run, event, target, question, key)
        return False
    if run.outcome.status:
        check_attached(run, f"`runs.send_event({run.run_id!r}, event)`")
        msg = (
            f"the run {run.run_id} of {run.graph.name} is over ({run.outcome.status}), so "
            f"{type(event).__name__} cannot be delivered; expected it while the run is active: "
            "`if not handler.is_done(): ...`"
        )
        raise WorkflowRuntimeError(msg)
    if run.machine is None:
        receive_early(run, event, target, question)
    else:
        machine = run.machine
        if key is None or run.journal is None:
            take_in(run, machine, event, target, question)
        else:
            _take_in_with(key, run, run.journal, machine, (event, target, question))
        idle_changed(run)
        if not machine.alive:
            rest(run)
        else:
            if machine.strict:
                check_stuck(run)
            if machine.startable:
                start_soon(run)
    if key is not None:
        run.keys = run.keys or {}
        run.keys[key] = content_of_event(run, event), target, question
    return True


def _take_in_with(key: str, run: Run, journal: RunJournal, machine: Machine, early: Early) -> None:
    """Apply an event from outside, and record the key with which it came."""
    event, target, question = early
    kept = content_of_event(run, event), target, question
    with journal.writer.coming_with(key, journal.child, kept):
        take_in(run, machine, event, target, question)


def take_in_early(run: Run, machine: Machine) -> None:
    """Apply the events that arrived before the run began; a durable run records the keys they came with."""
    if run.journal is None:
        for event, target, question in run.early:
            take_in(run, machine, event, target, question)
    else:
        keys = {**run.keys}
        for early in run.early:
            kept = content_of_event(run, early[0]), *early[1:]
            key = next((key for key, known in keys.items() if known == kept), None)
            if key is None:
                take_in(run, machine, *early)
            else:
                del keys[key]  # another event of this content has another key
                _take_in_with(key, run, run.journal, machine, early)
    run.early = ()


def check_attached(run: Run, way: str) -> None:
    """Refuse an operation on a durable run that continues elsewhere.

    Raises:
        WorkflowDetachedError: It has left this process; the message shows the way to it.
    """
    outcome = run.outcome
    if outcome.status == "detached":
        msg = (
            f"the run {run.run_id} of {run.graph.name} has left this process and continues from its "
            f"store: {outcome.reason}; expected {way}"
        )
        raise WorkflowDetachedError(msg, run.run_id, outcome.reason or "")


def check_repeated(
    run: Run, event: Event, target: str | None, question: str | None, key: str
) -> None:
    """Check that a repeated id comes with the same event.

    Raises:
        EventConflictError: The event, the step or the question differs.
    """
    if run.keys[key] == (content_of_event(run, event), target, question):
        return
    msg = (
        f"send_event({type(event).__name__}(...), id={key!r}) came after another event with "
        "that id; expected a separate id for each event, and the same content with the same id"
    )
    raise EventConflictError(msg, key)


def content_of_event(run: Run, event: Event) -> str:
    """Return a text that identifies the class and the content of an event, in every process."""
    codec = run.graph.codec(run.options.classes)
    try:
        codec.encode(event, "an event")
    except SnapshotError:  # compared by its repr: a conflict is better than a lost event
        return f"{type(event).__qualname__}: {event!r}"
    return f"{codec.content_key(event):016x}"


def receive_early(run: Run, event: Event, target: str | None, question: str | None) -> None:
    """Keep an event for the beginning of the run."""
    if question is not None and _asked_by_saved(run, event, question):
        if any(named == question for _, _, named in run.early):
            raise not_open(run, question, event, was_open=True)
    elif question is not None:
        found = () if run.resumed is None else run.resumed.questions
        asked = next((q for q in found if id_of(q.number) == question), None)
        is_answered = any(named == question for _, _, named in run.early)
        if asked is None or asked.answer is not None or is_answered:
            last = max((q.number for q in found), default=0)
            raise not_open(run, question, event, was_open=number_of(question) <= last)
        check_answers(run, event, question, (asked.kind,) if asked.kind else run.graph.answers)
    else:
        check_taken(run, event, target)
    early = run.early if isinstance(run.early, list) else [*run.early]
    early.append((event, target, question))
    run.early = early


def check_taken(run: Run, event: Event, target: str | None) -> None:
    """Check that a step of the workflow, or of its children, can take an event from outside.

    Raises:
        WorkflowRuntimeError: None can, or the one that is named cannot.
    """
    if target is None:
        run.graph.adopt_from_outside(event)
        run.graph.input(type(event))
    else:
        run.graph.target_index(event, target)


def not_open(run: Run, question: str, event: Event, *, was_open: bool) -> WorkflowRuntimeError:
    kind = type(event).__name__
    if was_open:
        msg = (
            f"the question {question} of the run {run.run_id} is open no longer, so "
            f"{kind} does not answer it; expected the id of one of handler.questions"
        )
        return QuestionClosedError(msg, question)
    msg = (
        f"the run {run.run_id} has asked no question {question!r}; expected the id of one of "
        "handler.questions"
    )
    return WorkflowRuntimeError(msg)


def check_answers(run: Run, event: Event, question: str, kinds: tuple[type[Event], ...]) -> None:
    if not isinstance(event, kinds):
        names = " or ".join(kind.__name__ for kind in kinds) or "no event"
        msg = (
            f"{type(event).__name__} does not answer the question {question} of the run "
            f"{run.run_id}; expected {names}"
        )
        raise WorkflowRuntimeError(msg)


def answer(run: Run, machine: Machine, event: Event, question: str) -> None:
    """Give an answer to the question of this run that it names.

    One of a child that has not begun again is kept for it.
    """
    saved = _asked_by_saved(run, event, question)
    if saved is not None:
        codec = run.graph.codec(run.options.classes)
        saved.answer(codec.encode(event, "an answer to a question of a child"))
        return
    number = number_of(question)
    wait = machine.find_wait(number) if number else None
    if wait is not None:
        if not wait.fits(event):
            msg = (
                f"{brief(event)} does not answer the question {question} of the run "
                f"{run.run_id}; expected {wait!r}"
            )
            raise WorkflowRuntimeError(msg)
        machine.answer_wait(wait, event)
        return
    asked = machine.find_question(number)
    if asked is None or asked.answer is not None:
        raise not_open(run, question, event, was_open=machine.was_asked(number))
    check_answers(run, event, question, (asked.kind,) if asked.kind else run.graph.answers)
    machine.answer_question(asked, event)


def _asked_by_saved(run: Run, event: Event, question: str) -> SavedAsked | PastAsked | None:
    """Return a question of a child that has not begun again in a resumed run, if it is one.

    Raises:
        QuestionClosedError: It is a question of such a child, and open no longer.
        WorkflowRuntimeError: It is one, and the event does not answer it.
    """
    if not run.saved_children:
        return None
    from sluicegate._engine.saved_children import find_saved  # noqa: PLC0415 - few runs have any

    saved = find_saved(run, question)
    if saved is None:
        return None
    if saved.asked is None:
        raise not_open(run, question, event, was_open=True)
    if not any(kind.__name__ in saved.answers for kind in type(event).__mro__):
        msg = (
            f"{type(event).__name__} does not answer the question {question} of the run "
            f"{run.run_id}; expected {' or '.join(sorted(saved.answers))}"
        )
        raise WorkflowRuntimeError(msg)
    return saved


def take_in(  # noqa: C901, PLR0912 - one frame for each event
    run: Run, machine: Machine, event: Event, target: str | None, question: str | None
) -> None:
    """Pass an event from outside to its receiver, which is decided here.

    The order is: the question that it names, the step that it names, a child that waits for it, a
    matching wait, the steps that take its class. One that none of them takes yet is kept.

    Raises:
        WorkflowRuntimeError: No step can ever take it, or it does not answer the question.
        QuestionClosedError: The question is not open any more.
    """
    if run.probe is not None:
        run.probe.received(event, target)
    if run.records is not None:
        run.records.enter(None, "outside")
    if question is not None:
        child = _child_asked(run, question)
    else:
        child = None if target is not None else child_for(run, event)
    if child is not None:
        inner = question and question.removeprefix(f"{child.run_id}/")
        receive(child, event, None, inner)
        run.awaits_outside = False
        return
    if run.journal is not None:
        run.journal.received(event, target, question)
    try:
        if question is not None:
            answer(run, machine, event, question)
        elif target is not None:
            machine.receive_at(event, target)
        else:
            kept = len(machine.early)
            machine.receive(event)
            if run.log.internal_readers and len(machine.early) > kept:
                run.log.append(UnhandledEvent(event=event))
    except BaseException:
        if run.journal is not None:
            run.journal.applied(has_raised=True)
        raise
    if run.journal is not None:
        run.journal.applied()
    run.awaits_outside = False


def _child_asked(run: Run, question: str) -> Run | None:
    """Return the child that has asked a question; None where it is this run's."""
    return next((child for child in run.children if question.startswith(f"{child.run_id}/")), None)


def child_for(run: Run, event: Event) -> Run | None:
    if not run.children or expects(run, event):
        return None
    takers = [child for child in run.children if takes(child, event)]
    # If several can use it, prefer one with an unanswered question.
    asking = (child for child in takers if asks(child, event))
    return next(asking, takers[0] if takers else None)


def expects(run: Run, event: Event) -> bool:
    machine = run.machine
    if machine is None or run.outcome.status:
        return False
    return machine.first_wait(event) is not None or bool(run.graph.targets(type(event)))


def takes(run: Run, event: Event) -> bool:
    """Whether this run, or a child of it, has use for what was sent to its parent.

    An answer may go to a step, any other event only to a wait that is open.
    """
    if isinstance(event, HumanResponseEvent):
        is_expected = expects(run, event)
    else:
        machine = None if run.outcome.status else run.machine
        is_expected = machine is not None and machine.first_wait(event) is not None
    return is_expected or child_for(run, event) is not None


def asks(run: Run, event: Event) -> bool:
    """Whether this run, or a child of it, has asked for an answer that it has not got."""
    machine = run.machine
    if machine is None:
        return False
    if machine.questions is not None or machine.first_wait(event) is not None:
        return True
    return any(asks(child, event) for child in run.children)


@enable_ki_protection  # it takes what waits out of the inboxes, and puts it back
def snapshot(run: Run) -> dict[str, Any]:
    """See :meth:`sluicegate.WorkflowHandler.snapshot`."""
    from sluicegate._engine.snapshot_write import take_snapshot  # noqa: PLC0415 - not everybody needs it

    if not run.outcome.is_over:
        check_thread(run, "snapshot")
        check_in_memory(run, "snapshot()")
    records = run.records
    if records is None:
        return take_snapshot(run)
    began = records.now()
    found = take_snapshot(run)
    records.snapshot_taken(began)
    return found


def open_store(run: Run) -> StateStore[Any]:
    """The state of the run."""
    if run.state_store is None:
        check_in_memory(run, "the state")
        from sluicegate._state.store import StateStore  # noqa: PLC0415 - not everybody needs it

        run.state_store = StateStore(run.graph.state_type)
        run.state_store.records = run.records
        if run.journal is not None:
            run.state_store.journal = run.journal.state_changes
    return run.state_store


def check_in_memory(run: Run, what: str) -> None:
    """Refuse an operation that needs the state of a durable run that is not in this process.

    Raises:
        WorkflowRuntimeError: It rests in its store, or another process runs it.
    """
    if run.part is not None and run.outcome.status == "parked":
        msg = (
            f"{what} of the run {run.run_id} is not in memory: the run is "
            f"{'resting in its store' if run.part.status == 'idle' else 'running elsewhere'}; "
            f"expected `await runs.snapshot({run.run_id!r})`"
        )
        raise WorkflowRuntimeError(msg)


def find_loop(run: Run) -> tuple[int, Callable[[Callable[[], object]], object]] | None:
    """Return the run's thread and the way into its loop; None before the run is started."""
    backend = run.backend
    return None if backend is None else (run.thread, backend.caller_into(run.loop))
