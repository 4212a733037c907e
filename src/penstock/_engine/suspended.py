"""Suspended steps: which wait in their middle, for events or branches, and what they are given."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from penstock._engine.grouping import Groups
from penstock._engine.waits import FEW, EarlyAnswers, WaitIndex
from penstock._events import HumanResponseEvent


if TYPE_CHECKING:
    from penstock._engine.grouping import Station
    from penstock._engine.lineage import Group
    from penstock._engine.waits import Wait
    from penstock._events import Event
    from penstock._graph import Graph, Route


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
        "outside_waits",
        "questions",
        "still",
        "strict",
        "strict_waits",
        "unheard",
        "waits",
    )

    if TYPE_CHECKING:
        graph: Graph
        startable: list[Station]
        #: The steps that wait in their middle, each with for how many events and branches.
        still: dict[object, int]
        #: How many of these are waits that no timer of the step's own can end, for a branch or for
        #: an event that only a step can make; and how many of the one kind and of the other.
        #: Then how many waits are for an event from outside.
        strict: int
        branch_waits: int
        strict_waits: int
        outside_waits: int
        #: How many questions are open that no wait has asked, and whether there ever was one.
        questions: int
        has_asked: bool
        #: The waits that are open, each with its step; those whose event is there, and whose step
        #: has not gone on yet; and answers that came before anything waited for them.
        waits: dict[Wait, object]
        answered: dict[Wait, object]
        early: EarlyAnswers | tuple[()]
        #: The open waits by what they wait for, where they are many.
        _index: WaitIndex | None
        _number: int
        #: How often an event was sent that only waits take, when none was open, by class.
        unheard: dict[type[Event], int]

        def _deliver(self, route: Route, event: Event, group: Group | None) -> None: ...

    # -- resting ------------------------------------------------------------------------------

    @property
    def is_at_rest(self) -> bool:
        """Whether every invocation that has begun waits in its middle, and no other may begin."""
        if not self.still or self.startable or self.answered:
            return False
        return sum(s.running + len(s.delayed or ()) for s in self.stations) == len(self.still)

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

    def rest_in(self, step: object, group: Group) -> None:
        """Take note that ``step`` waits for the end of ``group``, in its own task."""
        track = group.begin_tracking(group.live)
        track.resting = [*track.resting, step]
        self.branch_waits += 1
        self.begin_rest(step, is_strict=True)

    def leave_rest(self, step: object, group: Group) -> None:
        """Take note that ``step`` waits for ``group`` no longer, which may not be over."""
        assert group.track is not None
        if not group.is_over:
            resting = [*group.track.resting]
            resting.remove(step)
            group.track.resting = resting
            self.branch_waits -= 1
            self.end_rest(step, is_strict=True)

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
        self._number += 1
        wait.number = self._number
        self.waits = self.waits or {}
        self.waits[wait] = step
        self.strict_waits += wait.is_strict
        self.outside_waits += wait.is_outside
        self.begin_rest(step, is_strict=wait.is_strict)
        if self._index is not None:
            self._index.add(wait)
        elif len(self.waits) > FEW:
            self._index = WaitIndex(self.waits)

    def end_wait(self, wait: Wait, *, is_taken: bool) -> None:
        """Forget ``wait``; what it got from outside and did not take is there for the next one."""
        if wait.event is None:
            self._close_wait(wait)
            if wait.asks and self.graph.reached_by(wait.kind):
                self.questions += 1  # a step takes an answer that comes now
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
            for wait in self.waits:
                if wait.fits(event):
                    return wait
            return None
        lines = self._index.candidates(event)
        found = (next((wait for wait in line if wait.fits(event)), None) for line in lines)
        return min((w for w in found if w is not None), key=lambda w: w.number, default=None)

    def _give_to_first(self, event: Event) -> bool:
        """Give an event from outside to one open wait that it fits."""
        wait = self.first_wait(event)
        if wait is None:
            return False
        if self.questions and not wait.asks:
            self._note_answer(event)
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
        wait.waiter.wake()

    def _note_unheard(self, event: Event) -> None:
        self.unheard = self.unheard or {}
        self.unheard[type(event)] = self.unheard.get(type(event), 0) + 1

    def note_question(self) -> None:
        """Take note that somebody outside was asked."""
        self.questions += 1
        self.has_asked = True

    def _note_answer(self, event: Event) -> None:
        # An answer too many, to no question, does not answer the next one.
        if isinstance(event, HumanResponseEvent) and self.questions:
            self.questions -= 1
