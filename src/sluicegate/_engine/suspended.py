"""Suspended steps: which wait in their middle, for events or branches, and what they are given."""

from __future__ import annotations

from collections import OrderedDict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from sluicegate._engine.grouping import Groups
from sluicegate._engine.waits import FEW, EarlyAnswers, WaitIndex
from sluicegate._events import HumanResponseEvent
from sluicegate._questions import Asked


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate._definition.graph import Graph, Route
    from sluicegate._engine.grouping import StepQueue
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.waits import Absence, Wait
    from sluicegate._events import Event


#: Books that are empty, until something is to be written: of many runs at once, each dict counts.
EMPTY: Final[Any] = MappingProxyType[Any, Any]({})


class Suspended(Groups):
    """The part of the machine that knows which steps wait in their middle."""

    __slots__ = (
        "_index",
        "_number",
        "answered",
        "early",
        "has_asked",
        "held_up",
        "outside_waits",
        "questions",
        "still",
        "strict",
        "strict_waits",
        "unended",
        "unheard",
        "waits",
    )

    if TYPE_CHECKING:
        graph: Graph
        startable: list[StepQueue]
        #: The steps that wait in their middle, each with for how many events and branches.
        still: dict[object, int]
        #: How many of these are waits that no timer of the step's own can end, for a branch or for
        #: an event that only a step can make; and how many of the one kind and of the other.
        #: Then how many waits are for an event from outside.
        strict: int
        branch_waits: int
        strict_waits: int
        outside_waits: int
        #: The open questions that no wait has asked, in that order, and whether there ever was one.
        questions: Asked | dict[int, Asked] | None
        has_asked: bool
        #: The waits that are open, each with its step; those whose event is there, and whose step
        #: has not gone on yet; and answers that came before anything waited for them.
        waits: dict[Wait, object]
        answered: dict[Wait, object]
        early: EarlyAnswers | tuple[()]
        #: How many of the answered ones queue for a place, and so do not go on yet.
        held_up: int
        is_draining: bool
        #: The open waits by what they wait for, where they are many.
        _index: WaitIndex | None
        _number: int
        #: The waits that were open when the run ended.
        unended: list[Wait] | tuple[()]
        #: How often an event was sent that only waits take, when none was open, by class.
        unheard: dict[type[Event], int]

        def _deliver(self, route: Route, event: Event, node: BranchNode | None) -> None: ...
        def _deliver_to(self, queue: StepQueue, event: Event, node: BranchNode | None) -> None: ...

    # -- resting ------------------------------------------------------------------------------

    @property
    def is_at_rest(self) -> bool:
        """Whether every invocation that has begun waits in its middle, and no other may begin."""
        if not self.still or self.startable or len(self.answered) > self.held_up:
            return False
        return sum(s.begun + len(s.delayed or ()) for s in self.queues) == len(self.still)

    def begin_rest(self, step: object, *, is_strict: bool) -> None:
        """Take note that ``step`` waits in its middle."""
        self.still = self.still or {}
        self.still[step] = self.still.get(step, 0) + 1
        self.strict += is_strict

    def end_rest(self, step: object, *, is_strict: bool) -> None:
        """Take note that it waits no more, or is about to go on."""
        self.strict -= is_strict
        count = self.still[step] - 1
        if count:
            self.still[step] = count
        else:
            del self.still[step]

    def rest_in(self, step: object, node: BranchNode) -> None:
        """Take note that ``step`` waits for the end of ``group``, in its own task."""
        cancel_record = node.begin_tracking(node.live)
        cancel_record.resting = [*cancel_record.resting, step]
        self.branch_waits += 1
        self.begin_rest(step, is_strict=True)

    def leave_rest(self, step: object, node: BranchNode) -> None:
        """Take note that ``step`` waits for ``group`` no longer, which may not be over."""
        assert node.cancel_record is not None
        if not node.is_over:
            resting = [*node.cancel_record.resting]
            resting.remove(step)
            node.cancel_record.resting = resting
            self.branch_waits -= 1
            self.end_rest(step, is_strict=True)

    # -- places ---------------------------------------------------------------------------------

    def leave_place(self, absence: Absence) -> None:
        """Give the place of an invocation that begins to wait to the next that needs one."""
        queue = absence.queue
        assert queue is not None
        queue.running -= 1
        queue.away += 1
        absence.is_away = True
        if not queue.pending:
            return
        if queue.running >= queue.limit:
            queue.pending -= 1  # it was one too many
        elif queue.returning:
            queue.running += 1
            self.let_return(queue)
        elif not self.is_draining:
            queue.running += 1
            self.startable.append(queue)

    def let_return(self, queue: StepQueue) -> None:
        """Give a place, which counts already, to the invocation that has waited longest for it."""
        assert queue.returning is not None
        absence, _ = queue.returning.popitem(last=False)
        if not queue.returning:
            queue.returning = None
        queue.pending -= 1
        queue.away -= 1
        absence.is_away = False
        self.held_up -= absence.event is not None
        absence.waiter.wake()

    def reclaim_place(self, absence: Absence) -> None:
        """Have an invocation get a place again, at once or as soon as there is one."""
        queue = absence.queue
        assert queue is not None
        if queue.running < queue.limit:
            queue.running += 1
            queue.away -= 1
            absence.is_away = False
            return
        if queue.returning is None:
            queue.returning = OrderedDict()
        queue.returning[absence] = None
        queue.pending += 1
        self.held_up += absence.event is not None

    def force_place(self, absence: Absence) -> None:
        """Have an invocation that was cancelled count again at once: its clean-up runs now.

        That may be one more than the limit; then the next worker that is done goes home.
        """
        queue = absence.queue
        assert queue is not None
        if absence.is_queued:
            assert queue.returning is not None
            del queue.returning[absence]
            if not queue.returning:
                queue.returning = None
            queue.pending -= 1
            self.held_up -= absence.event is not None
        queue.running += 1
        queue.away -= 1
        absence.is_away = False
        queue.pending += queue.running > queue.limit

    # -- waiting for events --------------------------------------------------------------------

    def begin_wait(self, step: object, wait: Wait) -> None:
        """Have ``wait`` get the next event that fits, or one that came early. ``step`` rests."""
        event = self.early.take(wait) if self.early else None
        if event is not None:
            self.answered = self.answered or {}
            self.answered[wait] = step
            wait.event = event
            wait.is_from_outside = True
            return
        if not wait.number:
            self._number += 1
            wait.number = self._number
        self.waits = self.waits or {}
        self.waits[wait] = step
        self.strict_waits += wait.is_strict
        self.outside_waits += wait.is_outside
        self.begin_rest(step, is_strict=wait.is_strict)
        if wait.queue is not None:
            self.leave_place(wait)
        if self._index is not None:
            self._index.add(wait)
        elif len(self.waits) > FEW:
            self._index = WaitIndex(self.waits)

    def end_wait(self, wait: Wait, *, is_taken: bool, is_over: bool = False) -> None:
        """Forget ``wait``; what it got from outside and did not take is there for the next one.

        Once the run is over, it is kept: a run that continues from there waits for it again.
        """
        if wait.event is None:
            self._close_wait(wait)
            if is_over:
                self.unended = self.unended or []
                self.unended.append(wait)
                return
            if wait.asks and self.graph.reached_by(wait.kind):
                # A step takes an answer that comes now.
                self.reopen(Asked(wait.number, wait.shown, wait.since))
            return
        self.answered.pop(wait)
        if wait.is_from_outside and not is_taken:
            self.give_back(wait.event)

    def _close_wait(self, wait: Wait) -> object:
        step = self.waits.pop(wait)
        self.strict_waits -= wait.is_strict
        self.outside_waits -= wait.is_outside
        self.end_rest(step, is_strict=wait.is_strict)
        if self._index is not None:
            if self.waits:
                self._index.remove(wait)
            else:
                self._index = None
        return step

    def give_back(self, event: Event) -> None:
        """Have an answer that a wait got and did not take go to the next that takes it."""
        if self._give_to_first(event):
            return
        if self.graph.targets(type(event)):
            self._deliver(self.graph.input(type(event)), event, None)
        else:
            self.early = self.early or EarlyAnswers()
            self.early.put_back(event)

    def keep_early(self, event: Event) -> None:
        """Keep an answer until a step waits for it."""
        self.early = self.early or EarlyAnswers()
        self.early.keep(event)

    def first_wait(self, event: Event) -> Wait | None:
        """Return the open wait that began first of those that ``event`` fits; None for none."""
        if self._index is None:
            first = None
            for wait in self.waits:
                if (first is None or wait.number < first.number) and wait.fits(event):
                    first = wait
            return first
        lines = self._index.candidates(event)
        found = (next((wait for wait in line if wait.fits(event)), None) for line in lines)
        return min((w for w in found if w is not None), key=lambda w: w.number, default=None)

    def _give_to_first(self, event: Event) -> bool:
        """Give an event from outside to one open wait that it fits."""
        wait = self.first_wait(event)
        if wait is None:
            return False
        if self.questions is not None:
            asked = self.first_question(event)
            if asked is not None and asked.number < wait.number:
                return False  # an older question, which the steps that take the event have asked
        self._give(wait, event, from_outside=True)
        return True

    def _give_to_all(self, event: Event) -> bool:
        """Give an event that a step made to all open waits that it fits."""
        lines = [self.waits] if self._index is None else self._index.candidates(event)
        fitting = [wait for line in lines for wait in line if wait.fits(event)]
        for wait in sorted(fitting, key=lambda wait: wait.number):
            self._give(wait, event, from_outside=False)
        return bool(fitting)

    def _give(self, wait: Wait, event: Event, *, from_outside: bool) -> None:
        step = self._close_wait(wait)
        self.answered = self.answered or {}
        self.answered[wait] = step
        wait.event = event
        wait.is_from_outside = from_outside
        if wait.is_away:
            self.reclaim_place(wait)  # in the order of the answers
        wait.waiter.wake()

    def _note_unheard(self, event: Event) -> None:
        self.unheard = self.unheard or {}
        self.unheard[type(event)] = self.unheard.get(type(event), 0) + 1

    # -- questions -----------------------------------------------------------------------------

    @property
    def open_questions(self) -> Iterable[Asked]:
        """The open questions that no wait has asked, the oldest first."""
        asked = self.questions
        if asked is None:
            return ()
        return tuple(asked.values()) if isinstance(asked, dict) else (asked,)

    def note_question(self, event: Event, since: float | None) -> Asked:
        """Take note that a question was published that no wait has asked."""
        self._number += 1
        self.has_asked = True
        asked = Asked(self._number, event, since or 0.0)
        if self.questions is None:
            self.questions = asked
        else:
            self._keep_question(asked)
        return asked

    def _keep_question(self, asked: Asked) -> None:
        known = self.questions
        if isinstance(known, dict):
            known[asked.number] = asked
        else:
            both = (known, asked)
            self.questions = {one.number: one for one in both if one is not None}

    def reopen(self, asked: Asked) -> None:
        """Have a question stand open that was asked before."""
        is_last = asked.number > self._number
        self._number = max(self._number, asked.number)
        self._keep_question(asked)
        if not is_last and isinstance(self.questions, dict):
            self.questions = dict(sorted(self.questions.items()))

    def find_question(self, number: int) -> Asked | None:
        """Return the open question of a number that no wait has asked; None for none."""
        asked = self.questions
        if isinstance(asked, dict):
            return asked.get(number)
        return asked if asked is not None and asked.number == number else None

    def close_question(self, asked: Asked) -> None:
        """Have a question be open no longer."""
        if isinstance(self.questions, dict):
            del self.questions[asked.number]
        if self.questions is asked or not self.questions:
            self.questions = None

    def adopt(self, wait: Wait, asked: Asked) -> None:
        """Have a wait that is to begin take over an open question, as its own."""
        self.close_question(asked)
        wait.number = asked.number
        wait.asks = True
        wait.adopted = asked.event
        wait.since = asked.since
        if asked.answer is not None:
            self.early = self.early or EarlyAnswers()
            self.early.put_back(asked.answer)

    def first_question(self, event: Event) -> Asked | None:
        """Return the oldest open question of no wait that an event answers; None for none."""
        if isinstance(event, HumanResponseEvent) and self.graph.targets(type(event)):
            for asked in self.open_questions:
                if asked.kind is None:
                    return asked
        return None

    def wait_number(self, number: int) -> Wait | None:
        """Return the open wait whose question has a number; None for none."""
        if self._index is not None:
            return self._index.numbers.get(number)
        return next((wait for wait in self.waits if wait.number == number), None)

    def was_asked(self, number: int) -> bool:
        """Whether there was a question of this number."""
        return 1 <= number <= self._number

    def answer_wait(self, wait: Wait, event: Event) -> None:
        """Give an answer to the wait that it names."""
        self._give(wait, event, from_outside=True)

    def answer_question(self, asked: Asked, event: Event) -> None:
        """Take an answer that names a question of no wait: steps get it, or a wait yet to begin."""
        if asked.kind is not None:
            asked.answer = event
            return
        self.close_question(asked)
        for index in self.graph.input(type(event)).targets:
            self._deliver_to(self.queues[index], event, None)

    def _note_answer(self, event: Event) -> None:
        # An answer too many, to no question, does not answer the next one.
        if isinstance(self.questions, Asked):  # nearly always
            if self.questions.kind is None and isinstance(event, HumanResponseEvent):
                self.questions = None
            return
        asked = self.first_question(event)
        if asked is not None:
            self.close_question(asked)
