"""How a run is steered: cancelled, sent events, and asked how far it is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from sluicegate._engine.stalls import at_rest
from sluicegate._engine.step_operations import Operations, spent_branch
from sluicegate._errors import (
    EventConflictError,
    QuestionClosedError,
    SnapshotError,
    WorkflowRuntimeError,
    brief,
)
from sluicegate._events import HumanResponseEvent, UnhandledEvent, WorkflowIdleEvent
from sluicegate._loop import enable_ki_protection
from sluicegate._questions import OpenQuestion, id_of, number_of


if TYPE_CHECKING:
    from sluicegate._context import Branch
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.runner import Runner
    from sluicegate._events import Event
    from sluicegate._questions import Asked


LOGGER = logging.getLogger("sluicegate")


class Steering(Operations):
    """The part of a run that its handler and its children call."""

    __slots__ = ()

    if TYPE_CHECKING:  # what the run has, and this uses

        def settle_timeout(self) -> None: ...
        def start_workers(self) -> None: ...
        def rest(self) -> None: ...

    @enable_ki_protection
    def cancel(self, reason: str) -> None:
        """Ask the run to end; it has ended when the outcome says so."""
        self.check_thread("cancel")
        if self.outcome.status:
            return
        if (
            self.machine is not None
            and self.backend is not None
            and self.backend.current_time() > self.clock.deadline
        ):
            self.settle_timeout()
        else:
            self.outcome.cancel(reason)
        for scope in (self.queue_scope, self.nursery and self.nursery.cancel_scope):
            if scope is not None and self.backend is not None:
                self.backend.cancel(scope, reason)

    @enable_ki_protection
    def drain(self, reason: str) -> None:
        """Start nothing more, and end when what runs has ended or waits for somebody."""
        self.check_thread("cancel")
        if self.outcome.status or self.draining is not None:
            return
        if self.machine is None:
            self.cancel(reason)
            return
        self.draining = reason
        self.machine.is_draining = True
        self.check_drained()

    def check_drained(self) -> None:
        """End a run that starts nothing more as soon as nothing of it gets on."""
        machine = self.machine
        if self.draining is None or self.outcome.status or machine is None:
            return
        resting = self.at_rest()
        active = (
            worker
            for worker in self.workers
            if not (worker.step is None or worker.is_waiting)
            # One that queues for its place continues when one that has a place ends.
            and (worker.absence is None or not worker.absence.is_queued)
        )
        if any(id(w.context or w) not in resting for w in active):
            return
        self.cancel(self.draining)

    def at_rest(self) -> set[int]:
        """Return the ids of the contexts of all steps that wait in their middle."""
        if self.machine is None:
            return set()
        busy = {id(step) for child, step in self.children.items() if not child.rests_in_parent}
        return at_rest(self.machine) - busy

    def abandon(self, reason: str) -> None:
        """Conclude a run that was cancelled before it could begin."""
        if not self.outcome.is_over:
            self.outcome.cancel(reason)
            self.log.close(self.outcome.conclude())
            self.outcome.announce()

    def send_from_outside(self, event: Event, target: str | None) -> Branch:
        """See :meth:`sluicegate.Context.send_event`, called outside of a step."""
        self.receive(event, target)
        return spent_branch()

    @enable_ki_protection
    def receive(
        self,
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
        self.check_thread("send_event")
        if key is not None and key in self.keys:
            self._check_repeated(event, target, question, key)
            return False
        if self.outcome.status:
            msg = (
                f"the run {self.run_id} of {self.graph.name} is over ({self.outcome.status}), so "
                f"{type(event).__name__} reaches nobody; expected it while the run is under way: "
                "`if not handler.is_done(): ...`"
            )
            raise WorkflowRuntimeError(msg)
        if self.machine is None:
            self._receive_early(event, target, question)
        else:
            machine = self.machine
            self._receive(machine, event, target, question)
            self.idle_changed()
            if not machine.alive:
                self.rest()
            else:
                if machine.strict:
                    self.check_stuck()
                if machine.startable:
                    self.start_soon()
        if key is not None:
            self.keys = self.keys or {}
            self.keys[key] = self._content_of_event(event), target, question
        return True

    def _check_repeated(
        self, event: Event, target: str | None, question: str | None, key: str
    ) -> None:
        if self.keys[key] == (self._content_of_event(event), target, question):
            return
        msg = (
            f"send_event({type(event).__name__}(...), id={key!r}) came after another event with "
            "that id; expected an id of its own for each event, and the same content with the same id"
        )
        raise EventConflictError(msg, key)

    def _content_of_event(self, event: Event) -> str:
        """Return what stands for the class and the content of an event, in every process."""
        codec = self.graph.codec(self.options.classes)
        try:
            codec.encode(event, "an event")
        except SnapshotError:  # it is known by its repr alone: rather a conflict than a loss
            return f"{type(event).__qualname__}: {event!r}"
        return f"{codec.content_key(event):016x}"

    def _receive_early(self, event: Event, target: str | None, question: str | None) -> None:
        """Keep an event for the beginning of the run."""
        if question is not None:
            found = () if self.resumed is None else self.resumed.questions
            asked = next((q for q in found if id_of(q.number) == question), None)
            if asked is None or any(named == question for _, _, named in self.early):
                last = max((q.number for q in found), default=0)
                raise self._not_open(question, event, was_open=number_of(question) <= last)
            self._check_answers(
                event, question, (asked.kind,) if asked.kind else self.graph.answers
            )
        elif target is None:
            self.graph.adopt_from_outside(event)
            self.graph.input(type(event))
        else:
            self.graph.target_index(event, target)
        early = self.early if isinstance(self.early, list) else [*self.early]
        early.append((event, target, question))
        self.early = early

    def _not_open(self, question: str, event: Event, *, was_open: bool) -> WorkflowRuntimeError:
        kind = type(event).__name__
        if was_open:
            msg = (
                f"the question {question} of the run {self.run_id} is open no longer, so "
                f"{kind} does not answer it; expected the id of one of handler.questions"
            )
            return QuestionClosedError(msg, question)
        msg = (
            f"the run {self.run_id} has asked no question {question!r}; expected the id of one of "
            "handler.questions"
        )
        return WorkflowRuntimeError(msg)

    def _check_answers(self, event: Event, question: str, kinds: tuple[type[Event], ...]) -> None:
        if not isinstance(event, kinds):
            names = " or ".join(kind.__name__ for kind in kinds) or "no event"
            msg = (
                f"{type(event).__name__} does not answer the question {question} of the run "
                f"{self.run_id}; expected {names}"
            )
            raise WorkflowRuntimeError(msg)

    def _answer(self, machine: Machine, event: Event, question: str) -> None:
        """Give an answer to the question that it names."""
        for child in self.children:
            if question.startswith(f"{child.run_id}/"):
                child.receive(event, None, question.removeprefix(f"{child.run_id}/"))
                return
        number = number_of(question)
        wait = machine.find_wait(number) if number else None
        if wait is not None:
            if not wait.fits(event):
                msg = (
                    f"{brief(event)} does not answer the question {question} of the run "
                    f"{self.run_id}; expected {wait!r}"
                )
                raise WorkflowRuntimeError(msg)
            machine.answer_wait(wait, event)
            return
        asked = machine.find_question(number)
        if asked is None or asked.answer is not None:
            raise self._not_open(question, event, was_open=machine.was_asked(number))
        self._check_answers(event, question, (asked.kind,) if asked.kind else self.graph.answers)
        machine.answer_question(asked, event)

    def open_questions(self) -> tuple[OpenQuestion, ...]:
        """See :attr:`sluicegate.WorkflowHandler.questions`."""
        if self.outcome.status:
            return ()
        machine = self.machine
        if machine is None:
            resumed = () if self.resumed is None else self.resumed.questions
            answered = {question for _, _, question in self.early}
            shown = [self._shown(asked) for asked in resumed]
            return tuple(question for question in shown if question.id not in answered)
        found = {
            asked.number: self._shown(asked)
            for asked in machine.open_questions
            if asked.answer is None
        }
        for wait in machine.waits:
            if wait.is_outside or wait.asks:
                found[wait.number] = OpenQuestion(
                    id_of(wait.number), wait.shown, wait.since, (wait.kind,)
                )
        own = [found[number] for number in sorted(found)]
        for child in self.children:
            inner = child.open_questions()
            own += [attrs.evolve(q, id=f"{child.run_id}/{q.id}") for q in inner]
        return tuple(own)

    def _shown(self, asked: Asked) -> OpenQuestion:
        answers = self.graph.answers if asked.kind is None else (asked.kind,)
        return OpenQuestion(id_of(asked.number), asked.event, asked.since, answers)

    def start_soon(self) -> None:
        """Have what may start be started."""
        if self.parked is None:
            self.start_workers()
        elif self.machine is not None and self.machine.startable:
            self.parked.wake()  # the host does: AnyIO starts tasks from tasks only

    def _receive(
        self, machine: Machine, event: Event, target: str | None, question: str | None
    ) -> None:
        if self.probe is not None:
            self.probe.received(event, target)
        if question is not None:
            self._answer(machine, event, question)
        elif target is not None:
            machine.receive_at(event, target)
        elif child := self._child_for(event):
            child.receive(event, None)
        else:
            kept = len(machine.early)
            machine.receive(event)
            if self.log.internal_readers and len(machine.early) > kept:
                self.log.append(UnhandledEvent(event=event))
        self.awaits_outside = False

    def _child_for(self, event: Event) -> Steering | None:
        if not self.children or self._expects(event):
            return None
        takers = [child for child in self.children if child.takes(event)]
        # Of several that could use it, one that has asked and got no answer yet.
        asking = (child for child in takers if child.asks(event))
        return next(asking, takers[0] if takers else None)

    def _expects(self, event: Event) -> bool:
        machine = self.machine
        if machine is None or self.outcome.status:
            return False
        return machine.first_wait(event) is not None or bool(self.graph.targets(type(event)))

    def takes(self, event: Event) -> bool:
        """Whether this run, or a child of it, has use for what was sent to its parent.

        An answer may go to a step, any other event only to a wait that is open.
        """
        if isinstance(event, HumanResponseEvent):
            is_expected = self._expects(event)
        else:
            machine = None if self.outcome.status else self.machine
            is_expected = machine is not None and machine.first_wait(event) is not None
        return is_expected or self._child_for(event) is not None

    def asks(self, event: Event) -> bool:
        """Whether this run, or a child of it, has asked for an answer that it has not got."""
        machine = self.machine
        if machine is None:
            return False
        if machine.questions is not None or machine.first_wait(event) is not None:
            return True
        return any(child.asks(event) for child in self.children)

    # -- time ------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and the run waits for an event from outside."""
        if self.awaits_outside or self.machine is None:
            return self.awaits_outside
        machine = self.machine
        expects = machine.outside_waits or len(self.children) > self.busy_children
        return bool(expects) and not self.busy_children and machine.is_at_rest

    def idle_changed(self) -> None:
        """Tell those who asked whether the run is idle: readers, the clock of its timeout, parents."""
        if self.log.internal_readers and self.is_idle is not self.reported_idle:
            self.reported_idle = not self.reported_idle
            if self.reported_idle:
                self.log.append(WorkflowIdleEvent())
        if self.warns_of_idle and self.is_idle:
            self._warn_of_idle()
        if self.slots is not None:
            self.slots.note(self, is_idle=self.is_idle)
        if self.options.excludes_waiting and self.backend is not None:
            self.clock.stand(self.backend, still=self.is_idle)
        if self.parent is not None:
            self.parent.child_idle_changed(self)
            self.parent.check_drained()
        if self.probe is not None:
            self.probe.idle_changed()

    def _warn_of_idle(self) -> None:
        """Tell of a run that is awaited in place, and waits with nothing to show its questions."""
        self.warns_of_idle = False
        if self.log.has_readers or self.parent is not None:  # a child asks through its parent
            return
        waits = [
            f"{question.id}: {' or '.join(kind.__name__ for kind in question.answers) or 'an event'}"
            for question in self.open_questions()
        ]
        LOGGER.warning(
            "the run %s of %s, awaited in place, waits for an event from outside (%s), and no reader "
            "is there to show what it asks; expected `async with workflow.run(...) as handler:`, and "
            "`handler.send_event(...)` in it",
            self.run_id,
            self.graph.name,
            ", ".join(waits),
        )

    def child_idle_changed(self, child: Runner) -> None:
        """Take note of whether a child of a step waits for an event from outside."""
        # One that waits for its turn behind runs that wait for people waits for these, too.
        is_idle = child.is_idle or (child.queued_at is not None and child.queued_at.is_idle)
        if is_idle is not child.rests_in_parent:
            child.rests_in_parent = is_idle
            machine, context = self.machine, self.children[child]
            assert machine is not None
            if is_idle:
                self.busy_children -= 1
                machine.begin_rest(context, is_strict=False)
                lender, absence = child.lender, child.absence
                if lender is not None and absence is not None and lender.absence is None:
                    machine.leave_place(absence)
                    lender.absence = absence
                    if lender.turn is not None:
                        lender.turn.give_up()
                    self.start_soon()
            else:
                self.busy_children += 1
                machine.end_rest(context, is_strict=False)
        self.idle_changed()

    def now(self) -> float:
        """Return the time on the backend's clock, where the run is over that of its end."""
        if self.backend is None or self.outcome.is_over:
            return self.clock.ended_at
        return self.backend.current_time()

    def time_taken(self) -> float:
        """Return the seconds that the run has taken so far."""
        return self.clock.taken(None if self.outcome.is_over else self.backend)
