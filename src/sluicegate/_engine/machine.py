"""The machine: the state of a run and the rules for its next steps. Pure and synchronous.

It awaits nothing, reads no clock and does no I/O. The runner reports to it what happens, and
starts the workers for which it has deliveries. Every operation takes constant time, however many
deliveries are pending, and handled events leave nothing behind. (A wait that requires a value
without a hash is linear in the waits of its class.)
"""

from __future__ import annotations

from collections import OrderedDict, deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from sluicegate._engine.joins import EventBuffer, PairJoin
from sluicegate._engine.lineage import SLACK, BranchNode, meeting_point
from sluicegate._engine.step_queue import Numbered, StepQueue
from sluicegate._engine.waits import FEW, EarlyAnswers, WaitIndex
from sluicegate._errors import WorkflowRuntimeError
from sluicegate._events import Event, HumanResponseEvent
from sluicegate._questions import Asked


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sluicegate._definition.graph import Graph, Route
    from sluicegate._definition.steps import Step
    from sluicegate._engine.step_queue import Absence
    from sluicegate._engine.waits import Wait
    from sluicegate._events import StopEvent
    from sluicegate._loop import Inbox
    from sluicegate.records import CancelledBy, Origin


#: A payload on its way to a step, with its node in the lineage. The payload is an event, a list
#: for a join, or a tuple for a join of one event per parameter.
Delivery = tuple[StepQueue, Any, "BranchNode | None"]

#: Replaces an empty dict until the first entry: a process may hold many idle runs.
EMPTY: Final[Any] = MappingProxyType[Any, Any]({})

#: From this number on, a deque holds the deliveries for starting workers. It takes more memory
#: than a list, but a list would move all others for each that is taken.
MANY = 64


def _retired(*_: object) -> Any:
    """Replace the callbacks of a machine whose run has ended."""
    raise AssertionError


def _cancel_nothing(_scope: object, _reason: str) -> None:
    """Replace ``cancel_scope`` where no task runs."""


def _report_nothing(_step: object) -> None:
    """Replace ``report_ended`` where there is no log."""


class MachineRecords(Protocol):
    """The calls that the machine makes while it applies an input.

    See :class:`sluicegate._engine.record_writer.RecordWriter`.
    """

    def emitted(
        self, event: Event, targets: tuple[int, ...] = (), origin: Origin | None = None
    ) -> None: ...
    def kept(self, event: Event) -> None: ...
    def hold(self, event: Event) -> None: ...
    def queued(
        self,
        queue: StepQueue,
        payload: Any,
        node: BranchNode | None,
        not_before: float | None = None,
    ) -> None: ...
    def dropped(self, queue: StepQueue, payload: Any) -> None: ...
    def given(self, wait: Wait) -> None: ...
    def found_early(self, wait: Wait, event: Event) -> None: ...
    def put_back(self, wait: Wait) -> None: ...
    def asked(self, number: int, question: Event | None) -> None: ...
    def answered(self, number: int, *, by_event: bool = True) -> None: ...
    def branch_cancelled(self, nodes: list[BranchNode], reason: str, by: CancelledBy) -> None: ...


class MachineJournal(Protocol):
    """The calls that the machine of a durable run makes while it applies an input.

    See :class:`sluicegate._engine.run_journal.RunJournal`.
    """

    def number(self, payload: Any) -> Numbered:
        """Return a delivery with its number, which a new one gets."""
        ...

    def load(self, nodes: list[BranchNode], numbers: list[int], opened: int) -> None:
        """Take over the branch numbers of a snapshot."""

    def hand_over(self, payload: Any) -> Numbered:
        """Number a delivery that its own worker processes next."""
        ...

    def routed(self, event: Event, targets: tuple[int, ...]) -> None: ...
    def joined(self, joins: tuple[int, ...]) -> None: ...
    def given(self, wait: Wait) -> None: ...


class Machine:
    """The state of one run.

    The methods are in this order: inputs, which change the state because something happened;
    queries; the loading of a snapshot; internals. The inputs are:

    * events from outside: ``receive``, ``receive_at``, ``answer_wait``, ``answer_question``
    * events that a running step sends: ``check_sendable``, ``open_branch``, ``send``, ``release``
    * a worker takes a delivery: ``take``, ``next_start``
    * an invocation ends: ``check_result``, ``finish``, ``drop``
    * an invocation has failed: ``delay`` and ``retry``, or ``recover``
    * a step waits: ``take_early``, ``begin_wait``, ``end_wait``, ``begin_branch_wait``, ``end_branch_wait``,
      ``begin_rest``, ``end_rest``
    * a waiting step's place: ``leave_place``, ``reclaim_place``, ``force_place``
    * questions: ``note_question``, ``adopt_question``
    * a branch is cancelled: ``cancel``; the run is drained: ``drain``; it ends: ``close``, ``retire``

    No other code changes the state, so durable runs can record the inputs here, in the order in which
    they are applied. The machine reads no clock: a caller that needs the time reads it once and passes it.

    An input that can be refused raises before it changes anything. There is one exception:
    ``receive``, ``send`` and ``finish`` raise WorkflowRuntimeError for an event that reaches a join
    outside of its fan-out, after open waits and other steps may have got it.

    An input that lets deliveries start adds their queues to ``startable``; the caller then starts
    a worker for each of them. Each input is one synchronous call, so no task sees a state within
    an input.

    Args:
        graph: The workflow's steps and the routes of its events.
        open_inbox: Opens the inbox of a step whose workers are all busy.
        publish: Publishes a question, and returns the time at which it did.
        cancel_scope: Cancels the scope of a running invocation.
        report_ended: Reports the first undeclared None that a step returns.
        records: Makes records of the inputs; None where the run is not observed.
        journal: Numbers the deliveries of a durable run; None in any other.

    Attributes:
        startable: The queues at each of which the caller is to start one more worker.
        stop: The stop event, once a step has returned it.
        alive: How many deliveries wait or run.
        is_draining: Whether no further delivery may start, while running invocations continue.
    """

    __slots__ = (
        "_cancel_scope",
        "_index",
        "_number",
        "_open_inbox",
        "_publish",
        "_report_ended",
        "alive",
        "answered",
        "branch_waits",
        "early",
        "graph",
        "has_asked",
        "held_up",
        "is_draining",
        "journal",
        "outside_waits",
        "questions",
        "queues",
        "records",
        "resting",
        "silent",
        "startable",
        "stop",
        "strict",
        "strict_waits",
        "unended",
        "unheard",
        "waits",
    )

    def __init__(
        self,
        graph: Graph,
        open_inbox: Callable[[], Inbox],
        publish: Callable[[Event], float | None],
        cancel_scope: Callable[[Any, str], None] = _cancel_nothing,
        report_ended: Callable[[Step], None] = _report_nothing,
        *,
        records: MachineRecords | None = None,
        journal: MachineJournal | None = None,
    ) -> None:
        self.graph = graph
        self._open_inbox = open_inbox
        self._publish = publish
        self._cancel_scope = cancel_scope
        self._report_ended = report_ended
        self.records = records
        self.journal = journal
        #: One for each step, by the step's index.
        self.queues = [StepQueue(step) for step in graph.steps]
        self.startable: list[StepQueue] = []
        self.stop: StopEvent | None = None
        self.alive = 0
        self.is_draining = False
        #: The contexts of the steps that rest: they wait for an event, a branch or a child. Each
        #: with the number of its waits.
        self.resting: dict[object, int] = EMPTY
        #: How many of these waits are strict: neither a timeout nor another task of the step can
        #: end them. Of these, those for a branch, and those for an event that only a step can make.
        self.strict = self.branch_waits = self.strict_waits = 0
        #: How many waits are open for an event from outside.
        self.outside_waits = 0
        #: The open waits, each with the context of its step.
        self.waits: dict[Wait, object] = EMPTY
        #: The waits whose event has arrived, and whose step has not continued yet.
        self.answered: dict[Wait, object] = EMPTY
        #: How many of the answered waits queue for a place.
        self.held_up = 0
        #: Answers that arrived before a step waited for them.
        self.early: EarlyAnswers | tuple[()] = ()
        #: The waits that were open when the run ended, each with the context of its step.
        self.unended: dict[Wait, object] = EMPTY
        #: The index of the open waits; None where they are few.
        self._index: WaitIndex | None = None
        #: The open questions that no wait has asked; one alone, or in order by number.
        self.questions: Asked | dict[int, Asked] | None = None
        #: Whether the run has ever asked a question.
        self.has_asked = False
        #: The number of the latest wait or question.
        self._number = 0
        #: By step name: how often a step returned None without declaring it.
        self.silent: dict[str, int] = EMPTY
        #: By class: how many events that only waits take were sent while none was open.
        self.unheard: dict[type[Event], int] = EMPTY

    # -- inputs: events from outside -----------------------------------------------------------

    def receive(self, event: Event) -> None:
        """Take an event from outside: the start event, or one sent through the handler.

        The oldest open wait that it fits gets it; otherwise the steps that accept its class;
        otherwise it is kept for a later wait. It closes the oldest question that it answers.

        Raises:
            WorkflowRuntimeError: No step accepts it and none can wait for it, or it is a stop event.
        """
        try:
            is_generic = event.__parameters__
        except AttributeError:  # not an event: the graph raises
            is_generic = ()
        if is_generic:
            self.graph.adopt_from_outside(event, {wait.kind for wait in self.waits})
        if self.waits and self._give_to_first(event):
            return
        route = self.graph.input(type(event))
        if not route.targets:
            self.keep_early(event)
            return
        asked = None if self.questions is None else self._note_answer(event)
        self._deliver(route, event, None)
        if asked is not None and self.records is not None:
            self.records.answered(asked.number)

    def receive_at(self, event: Event, target: str) -> None:
        """Take an event from outside for the step named ``target`` alone.

        Raises:
            WorkflowRuntimeError: There is no such step, or it does not take the event.
        """
        queue = self.queues[self.graph.target_index(event, target)]
        asked = None if self.questions is None else self._note_answer(event)
        if self.records is not None:
            self.records.emitted(event, (queue.index,))
            if asked is not None:
                self.records.answered(asked.number)
        self._deliver_to(queue, event, None)

    def answer_wait(self, wait: Wait, event: Event) -> None:
        """Give ``wait``, found by :meth:`find_wait`, the answer to its question."""
        if self.records is not None:
            self.records.emitted(event)
        self._give(wait, event, from_outside=True)

    def answer_question(self, asked: Asked, event: Event) -> None:
        """Take the answer to a question that no wait has asked, found by :meth:`find_question`.

        If a wait of a resumed step has still to begin again, the answer is kept for that wait.
        Otherwise the question is closed and the steps that accept the answer get it.
        """
        if asked.kind is not None:
            asked.answer = event
            if self.records is not None:
                self.records.kept(event)
            return
        self._close_question(asked)
        targets = self.graph.input(type(event)).targets
        if self.journal is not None:
            self.journal.routed(event, targets)
        if self.records is not None:
            self.records.emitted(event, targets)
            self.records.answered(asked.number)
        for index in targets:
            self._deliver_to(self.queues[index], event, None)

    # -- inputs: events that a running step sends ------------------------------------------------

    def check_sendable(self, index: int, event: Event, target: str | None) -> Route:
        """Return the route of an event that the running step number ``index`` sends.

        Changes nothing, except that an event of a generic class gets its type arguments.

        Raises:
            WorkflowRuntimeError: The step does not declare it, no step takes it, or it is a stop
                event.
        """
        self.graph.adopt(event, index)
        kind = type(event)
        step = self.graph.steps[index]
        only_listed = not issubclass(kind, step.returns) and issubclass(kind, step.fans_out)
        route = self._output(index, event, in_list=only_listed)
        if route.is_stop:
            msg = (
                f"{self.graph.name}.{step.name} sent {kind.__name__}, which ends the run; "
                "expected the step to return it"
            )
            raise WorkflowRuntimeError(msg)
        if target is not None:
            self.graph.target_index(event, target)
        return route

    @staticmethod
    def open_branch(node: BranchNode | None, *, is_kept_back: bool = False) -> BranchNode:
        """Open the branch of an event that a step in ``node`` sends.

        The caller then calls :meth:`send`, or :meth:`release` if the event is not to be sent.

        Args:
            node: The node of the step; None outside of any.
            is_kept_back: Whether the event is sent only once the step has succeeded.
        """
        branch = BranchNode(node, (), is_held=True)
        branch.live = 1  # until the event is sent
        above = None
        if node is not None:
            node.live += 1
            above = node.cancel_record
        if above is not None:
            branch.begin_tracking().reason = above.reason
        elif is_kept_back:
            # Otherwise tracking could begin later, and count the unsent event as a waiting delivery.
            branch.begin_tracking()
        return branch

    def send(self, route: Route, event: Event, branch: BranchNode, target: str | None) -> None:
        """Send an event that :meth:`check_sendable` has passed. A cancelled branch drops it."""
        if not branch.is_cancelled:
            if target is None:
                self._deliver(route, event, branch)
            else:
                index = self.graph.target_index(event, target)
                if self.records is not None:
                    self.records.emitted(event, (index,))
                self._deliver_to(self.queues[index], event, branch)
        elif self.records is not None:
            self.records.emitted(event)
        self.release(branch)

    def release(self, node: BranchNode) -> None:
        """Count one delivery or child less in ``node``; the last one ends the node."""
        node.live -= 1
        if not node.live:
            self.end_node(node)

    # -- inputs: workers take deliveries ---------------------------------------------------------

    def take(self, queue: StepQueue) -> Delivery | None:
        """Give a worker of ``queue`` the next delivery, the oldest, or end the worker.

        An invocation that queues for its place goes first: the worker ends, and the invocation
        continues in its own task. Deliveries of cancelled branches are skipped.

        Returns:
            The delivery; None if the worker is to end.
        """
        while queue.pending:
            if queue.running > queue.limit:
                queue.pending -= 1
                break
            if queue.returning:
                self._let_return(queue)
                return None
            if self.is_draining:
                break
            queue.pending -= 1
            if queue.ready:
                ready = queue.ready
                event, node = ready.pop(0) if isinstance(ready, list) else ready.popleft()
                if not ready:
                    queue.ready = None  # a process may hold many runs: free the list
            else:
                event, node = queue.inbox.take()  # type: ignore[union-attr]
            if node is None:
                return queue, event, None
            if not node.is_cancelled:  # the cancellation has counted off the others
                return queue, event, self._admit(node)
        queue.running -= 1
        return None

    def next_start(self) -> Delivery | None:
        """Give a free worker the first delivery for which a worker was to be started."""
        while self.startable:
            delivery = self.take(self.startable.pop(0))
            if delivery is not None:
                return delivery
        return None

    # -- inputs: invocations end -----------------------------------------------------------------

    def check_result(self, queue: StepQueue, result: Any) -> None:
        """Check that the step declares ``result``, before events that it kept back are sent.

        Changes nothing, except that an event of a generic class gets its type arguments.

        Raises:
            WorkflowRuntimeError: The step does not declare it.
        """
        step, graph = queue.step, self.graph
        if result is None:
            if not step.may_end:
                graph.check_none(step)
            return
        in_list = isinstance(result, list) and (bool(step.fans_out) or graph.is_lenient)
        events: list[Any] = cast("list[Any]", result) if in_list else [result]
        for event in events:
            if isinstance(event, Event):
                graph.adopt(event, step.index)
            self._output(step.index, event, in_list=in_list)

    def finish(  # noqa: C901 - one frame for each hop
        self, queue: StepQueue, node: BranchNode | None, result: Any
    ) -> Delivery | None:
        """Take the result of an invocation; return the next delivery of its worker, if any.

        Hand-off: if the result is one event that may start at once, the worker continues with it.
        Otherwise the worker takes the oldest delivery at its own step, or else one that is to
        start at another step. A stop event sets ``stop`` and returns None.

        Raises:
            WorkflowRuntimeError: The step does not declare the result.
        """
        if (
            node is not None
            and node.cancel_record is not None
            and node.cancel_record.reason is not None
        ):
            return self.drop(queue, node)
        kind = cast("type[Any]", type(result))
        route = self.graph.outputs[queue.index].get(kind)
        if route is None and isinstance(result, Event):
            self.graph.adopt(result, queue.index)
            route = self._output(queue.index, result)
        if route is not None and route.next >= 0 and not self.is_draining:
            following = self.queues[route.next]
            if self.records is not None:
                self.records.emitted(result, route.targets)
            if self.journal is not None:
                self.journal.routed(result, route.targets)
            if self.waits:
                self._give_to_all(result)  # a step that it answers gets its place back first
            is_free = not following.pending and following.running < following.limit
            if not queue.pending and (is_free or following is queue):
                queue.running -= 1
                following.running += 1
                if self.records is not None:
                    self.records.queued(following, result, node)
                if self.journal is not None:
                    result = self.journal.hand_over(result)
                return following, result, node
            self.enqueue(following, result, node)
            return self.drop(queue, node)
        self._take_result(queue, node, result, route)
        if self.stop is not None:
            return None
        return self.drop(queue, node)

    def drop(self, queue: StepQueue, node: BranchNode | None) -> Delivery | None:
        """End an invocation without a result; return the next delivery of its worker, if any."""
        self._count_off(node)
        return self.take(queue) or self.next_start()

    # -- inputs: failures ------------------------------------------------------------------------

    def delay(self, queue: StepQueue, event: Any, node: BranchNode | None) -> Delivery | None:
        """Delay a delivery until :meth:`retry`; return the next delivery of its worker, if any."""
        self._put_aside(queue, event, node)
        return self.take(queue) or self.next_start()

    def retry(self, queue: StepQueue, event: Any) -> None:
        """Queue a delayed delivery again, unless its branch was cancelled in between."""
        assert queue.delayed is not None
        node = queue.delayed.pop(event)
        if node is not None and node.cancel_record is not None:
            if node.cancel_record.reason is not None:
                self._count_off(node)
                return
            node.cancel_record.queued += 1
        self._line_up(queue, event, node)

    def recover(self, handler: int, event: Event, node: BranchNode | None) -> None:
        """Give the step ``handler`` a failure; its result replaces that of the failed step.

        The caller then calls :meth:`drop` for the failed invocation.

        Args:
            handler: The index of the step that handles the failure.
            event: The failure.
            node: The node of the failed step.
        """
        known: dict[int, int] = {} if node is None else node.known_recoveries()
        # The new node skips those that no step can address any more, an earlier recovery or a
        # branch that no step holds. Otherwise a long loop of recoveries would grow.
        parent = node
        while parent is not None and not (parent.joins or parent.is_held or parent.is_awaited):
            parent = parent.parent
        if self.records is not None:
            self.records.emitted(event, (handler,), "engine")
        recovery = BranchNode(parent, ())
        recovery.recoveries = {**known, handler: known.get(handler, 0) + 1}
        if parent is not None:
            parent.live += 1
            if parent.cancel_record is not None:
                recovery.begin_tracking()
        self.enqueue(self.queues[handler], event, recovery)

    # -- inputs: buffers, waits and questions ----------------------------------------------------

    def buffer(self, index: int, key: str) -> EventBuffer:
        """Return the ``ctx.collect_events`` buffer ``key`` of a step; open it if there is none."""
        queue = self.queues[index]
        if queue.buffers is None:
            queue.buffers = {}
        return queue.buffers.setdefault(key, EventBuffer())

    def take_early(self, wait: Wait) -> Event | None:
        """Hand over an event that arrived early and fits a wait of a child run; None if there is none."""
        return self.early.take(wait) if self.early else None

    def begin_wait(self, step: object, wait: Wait) -> None:
        """Open ``wait``: it gets the next event that fits, or one that arrived early.

        Unless an early event has answered it, it gets a number, ``step`` rests, and the
        invocation gives up its place if ``wait`` names a queue.
        """
        event = self.early.take(wait) if self.early else None
        if event is not None:
            if self.records is not None:
                self.records.found_early(wait, event)
            self.answered = self.answered or {}
            self.answered[wait] = step
            wait.event = event
            wait.is_from_outside = True
            return
        if not wait.number:
            self._number += 1
            wait.number = self._number
        if self.records is not None and wait.asks and wait.adopted is None:
            self.records.asked(wait.number, wait.shown)
        self.has_asked |= wait.asks
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
        """Close ``wait``, which has its event or gives up.

        Args:
            wait: An open or answered wait.
            is_taken: Whether the step takes the event; otherwise an event from outside is put back.
            is_over: Whether the run has ended. An open wait is then kept, because a run that
                resumes from there waits for it again.
        """
        if wait.event is None:
            step = self._close_wait(wait)
            if is_over:
                self.unended = self.unended or {}
                self.unended[wait] = step
                return
            if wait.asks and self.graph.reached_by(wait.kind):
                # The steps that take its answer get an answer that arrives from now on.
                self.reopen(Asked(wait.number, wait.shown, wait.since))
            elif wait.asks and self.records is not None:
                self.records.answered(wait.number, by_event=False)
            return
        self.answered.pop(wait)
        if wait.is_from_outside and not is_taken:
            if self.records is not None:
                self.records.put_back(wait)
            self._give_back(wait.event)

    def begin_branch_wait(self, step: object, node: BranchNode) -> None:
        """Note that the task of ``step`` waits until ``node`` ends."""
        cancel_record = node.begin_tracking(node.live)
        cancel_record.resting = [*cancel_record.resting, step]
        self.branch_waits += 1
        self.begin_rest(step, is_strict=True)

    def end_branch_wait(self, step: object, node: BranchNode) -> None:
        """Note that ``step`` no longer waits for ``node``. The end of the node has noted it too."""
        assert node.cancel_record is not None
        if not node.is_over:
            resting = [*node.cancel_record.resting]
            resting.remove(step)
            node.cancel_record.resting = resting
            self.branch_waits -= 1
            self.end_rest(step, is_strict=True)

    def begin_rest(self, step: object, *, is_strict: bool) -> None:
        """Note that ``step`` begins one more wait."""
        self.resting = self.resting or {}
        self.resting[step] = self.resting.get(step, 0) + 1
        self.strict += is_strict

    def end_rest(self, step: object, *, is_strict: bool) -> None:
        """Note that one wait of ``step`` is over, or about to be."""
        self.strict -= is_strict
        count = self.resting[step] - 1
        if count:
            self.resting[step] = count
        else:
            del self.resting[step]

    def note_question(self, event: Event, since: float | None) -> Asked:
        """Note that a question was published without a wait, and return it with its number."""
        self._number += 1
        self.has_asked = True
        asked = Asked(self._number, event, since or 0.0)
        if self.records is not None:
            self.records.asked(self._number, event)
        if self.questions is None:
            self.questions = asked
        else:
            self._keep_question(asked)
        return asked

    def adopt_question(self, wait: Wait, asked: Asked) -> None:
        """Give an open question, with its number and answer, to a wait that is about to begin."""
        self._close_question(asked)
        wait.number = asked.number
        wait.asks = True
        wait.adopted = asked.event
        wait.is_shown = asked.is_shown
        wait.since = asked.since
        if asked.answer is not None:
            self._open_early().put_back(asked.answer)

    def drain(self) -> None:
        """Start no further delivery; running invocations continue. It cannot be undone."""
        self.is_draining = True

    # -- inputs: the places of waiting invocations -----------------------------------------------

    def leave_place(self, absence: Absence) -> None:
        """Give the place of an invocation that begins to wait to the next one that needs it."""
        queue = absence.queue
        assert queue is not None
        queue.running -= 1
        queue.away += 1
        absence.is_away = True
        if not queue.pending:
            return
        if queue.running >= queue.limit:
            queue.pending -= 1  # it was over the limit
        elif queue.returning:
            queue.running += 1
            self._let_return(queue)
        elif not self.is_draining:
            queue.running += 1
            self.startable.append(queue)

    def reclaim_place(self, absence: Absence) -> None:
        """Get a place for an invocation that can continue, or queue it for one.

        One that had to queue is woken once it has its place.
        """
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
        """Get a place at once for a cancelled invocation, because its clean-up runs now.

        That can exceed the limit by one; the next worker that finishes then ends.
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

    # -- inputs: cancellation and the end --------------------------------------------------------

    def cancel(self, node: BranchNode, reason: str, by: CancelledBy = "branch") -> None:
        """Cancel a node and all nodes below it, unless it is over or cancelled already.

        Waiting deliveries are dropped, and the scopes of running invocations cancelled. The node
        ends once its last invocation has left.

        Args:
            node: The node.
            reason: Why, for the exception that its steps get.
            by: Who cancels it; the records contain it.
        """
        if node.is_over or node.is_cancelled:
            return
        if node.cancel_record is None:
            node.begin_tracking(node.live)  # none of its deliveries has run yet
        found = [inner for inner in node.downward() if not inner.is_over]
        for inner in found:
            assert inner.cancel_record is not None
            inner.cancel_record.reason = reason
        if self.records is not None:
            self.records.branch_cancelled(found, reason, by)
        for inner in reversed(found):
            record = inner.cancel_record
            assert record is not None
            for scope in tuple(record.running):
                self._cancel_scope(scope, reason)
            if record.queued:
                self.alive -= record.queued
                inner.live -= record.queued
                record.queued = 0
                if not inner.live and not inner.is_over:
                    self.end_node(inner)

    def close(self) -> None:
        """Close the inboxes. Their deliveries move to ``ready``, where a snapshot finds them."""
        for queue in self.queues:
            if queue.inbox is not None:
                ready = list(queue.ready or ())
                waiting = queue.in_inbox
                queue.ready = ready + [queue.inbox.take() for _ in range(waiting)]
                queue.inbox.close()
                queue.inbox = None

    def retire(self) -> None:
        """Drop the references to the run, and keep the state for a snapshot."""
        self._publish = self._cancel_scope = self._open_inbox = self._report_ended = _retired
        self.journal = None

    # -- queries ---------------------------------------------------------------------------------

    @property
    def is_retired(self) -> bool:
        """Whether the machine was retired."""
        return self._publish is _retired

    @property
    def is_at_rest(self) -> bool:
        """Whether every invocation that has begun rests, and no other may begin."""
        if not self.resting or self.startable or len(self.answered) > self.held_up:
            return False
        return sum(q.begun + len(q.delayed or ()) for q in self.queues) == len(self.resting)

    def recoveries(self, handler: int, node: BranchNode | None) -> int:
        """Return how often the step ``handler`` has recovered the lineage of ``node``."""
        return 0 if node is None else node.known_recoveries().get(handler, 0)

    def first_wait(self, event: Event) -> Wait | None:
        """Return the oldest open wait that ``event`` fits; None where there is none."""
        if self._index is None:
            first = None
            for wait in self.waits:
                if (first is None or wait.number < first.number) and wait.fits(event):
                    first = wait
            return first
        groups = self._index.candidates(event)
        found = (next((wait for wait in group if wait.fits(event)), None) for group in groups)
        return min((w for w in found if w is not None), key=lambda w: w.number, default=None)

    def find_wait(self, number: int) -> Wait | None:
        """Return the open wait with the number ``number``; None where there is none."""
        if self._index is not None:
            return self._index.numbers.get(number)
        return next((wait for wait in self.waits if wait.number == number), None)

    @property
    def open_questions(self) -> Iterable[Asked]:
        """The open questions that no wait has asked, oldest first."""
        asked = self.questions
        if asked is None:
            return ()
        return tuple(asked.values()) if isinstance(asked, dict) else (asked,)

    def find_question(self, number: int) -> Asked | None:
        """Return the question ``number`` if it is open and no wait has asked it; None otherwise."""
        asked = self.questions
        if isinstance(asked, dict):
            return asked.get(number)
        return asked if asked is not None and asked.number == number else None

    @property
    def asked_last(self) -> int:
        """The number of the latest wait or question."""
        return self._number

    def was_asked(self, number: int) -> bool:
        """Whether there ever was a question ``number``."""
        return 1 <= number <= self._number

    def pair_join_of(
        self, queue: StepQueue, node: BranchNode | None
    ) -> PairJoin[BranchNode | None]:
        """Return the join of one event per parameter in the innermost fan-out at or above ``node``.

        Outside of any fan-out the step has one join for the run. It is made where there is none.
        """
        kinds = queue.step.accepts
        fan_out = node.fan_out() if node is not None else None
        if fan_out is None:
            if queue.pair_join is None:
                queue.pair_join = PairJoin(kinds)
            return queue.pair_join
        if fan_out.pair_joins is None:
            fan_out.pair_joins = {}
        return fan_out.pair_joins.setdefault(queue.index, PairJoin(kinds))

    # -- loading a snapshot ----------------------------------------------------------------------

    def enqueue(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None:
        """Add a delivery, unless its branch was cancelled. A snapshot's deliveries enter here too."""
        if node is not None:
            if node.cancel_record is not None:
                if node.cancel_record.reason is not None:
                    if self.records is not None:
                        self.records.queued(queue, event, node)
                        self.records.dropped(queue, event)
                    return
                node.cancel_record.queued += 1
            node.live += 1
        self.alive += 1
        if self.records is not None:
            self.records.queued(queue, event.event if type(event) is Numbered else event, node)
        if self.journal is not None:
            event = self.journal.number(event)
        self._line_up(queue, event, node)

    def load_delayed(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None:
        """Add a delivery that waits for :meth:`retry`."""
        self.alive += 1
        if node is not None:
            node.live += 1
        self._put_aside(queue, event, node)

    def keep_early(self, event: Event) -> None:
        """Keep an event from outside until a step waits for it."""
        if self.records is not None:
            self.records.kept(event)
        self._open_early().keep(event)

    def load_asked(self, has_asked: bool, last: int = 0) -> None:
        """Set whether the run has asked a question before, and the number of its last one."""
        self.has_asked = has_asked
        self._number = max(self._number, last)

    def reopen(self, asked: Asked) -> None:
        """Open a question that was asked before, in the order of the numbers."""
        is_last = asked.number > self._number
        self._number = max(self._number, asked.number)
        self._keep_question(asked)
        if not is_last and isinstance(self.questions, dict):
            self.questions = dict(sorted(self.questions.items()))

    def end_node(self, node: BranchNode) -> None:
        """End a node in which nothing is alive: run its joins in the node above, wake its waiters.

        If that leaves nothing alive in the node above either, it ends too, and so on.
        """
        while True:
            node.is_over = True
            parent = node.parent
            record = node.cancel_record
            if record is None or record.reason is None:
                self._run_joins(node, parent)
            if record is not None:
                if parent is not None and parent.cancel_record is not None:
                    parent.cancel_record.children.pop(node, None)
                for waiter in record.waiters:
                    waiter.wake()
                for step in record.resting:
                    self.branch_waits -= 1
                    self.end_rest(step, is_strict=True)
                record.resting = ()
            if parent is None:
                return
            parent.live -= 1
            if parent.live:
                return
            node = parent

    # -- internals: routes -----------------------------------------------------------------------

    def _output(self, index: int, event: Event, *, in_list: bool = False) -> Route:
        """Return the route of an event that a step made. It may have none but an open wait."""
        kind = type(event)
        is_awaited = bool(self.waits) and self.first_wait(event) is not None
        return self.graph.output(index, kind, in_list=in_list, is_awaited=is_awaited)

    def _deliver(self, route: Route, event: Event, node: BranchNode | None) -> None:
        """Give an event to the open waits that it fits and to every step of its route."""
        if self.records is not None:
            self.records.emitted(event, route.targets)
        if self.journal is not None:
            self.journal.routed(event, route.targets)
        is_taken = bool(self.waits) and self._give_to_all(event)
        if route.is_question:
            # A reader of the stream that sees the question can answer it or take a snapshot only
            # after this synchronous block, so the question may be noted after its publication.
            self.note_question(event, self._publish(event))
        elif not (is_taken or route.targets):
            self.unheard = self.unheard or {}
            self.unheard[type(event)] = self.unheard.get(type(event), 0) + 1
        for index in route.targets:
            self._deliver_to(self.queues[index], event, node)

    def _deliver_to(self, queue: StepQueue, event: Event, node: BranchNode | None) -> None:
        """Give an event to a step: as a delivery, or as a part of the step's join."""
        takes = queue.step.takes
        if takes == "one":
            self.enqueue(queue, event, node)
        elif takes == "list":
            self._collect_for_join(queue, event, node)
        else:
            if self.records is not None:
                self.records.hold(event)
            complete = self.pair_join_of(queue, node).add(event, node)
            if complete is not None:
                events, nodes = complete
                self.enqueue(queue, events, meeting_point(nodes))

    def _collect_for_join(self, queue: StepQueue, event: Event, node: BranchNode | None) -> None:
        """Add an event to the join of the fan-out around it. A join that has its first n runs."""
        ending = node.ending_in(queue.index) if node is not None else None
        if ending is None:
            # A step with `-> list[A] | A` that returns one A outside of a fan-out means the steps
            # that take an A alone, if there are any.
            if any(self.queues[i].step.takes != "list" for i in self.graph.targets(type(event))):
                return
            msg = (
                f"{type(event).__name__} came to the join {queue.step.name} from no fan-out; "
                "expected it from a list that a step returned"
            )
            raise WorkflowRuntimeError(msg)
        collected = ending.collected[queue.index]
        if collected is None:
            return  # the join has run with its first n
        if self.records is not None:
            self.records.hold(event)
        collected.append(event)
        if len(collected) == queue.step.take:
            ending.collected[queue.index] = None
            self.enqueue(queue, collected, ending.parent)
            if all(events is None for events in ending.collected.values()):
                self.cancel(ending, f"{queue.step.label} has its first {len(collected)}", "race")

    def _line_up(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None:
        """Queue a delivery: for a new worker as long as the limit allows, or else in the inbox."""
        queue.pending += 1
        # While the run is drained nothing starts, and the inbox may have older deliveries.
        if queue.running < queue.limit and not self.is_draining:
            queue.running += 1
            if queue.ready is None:
                queue.ready = []
            queue.ready.append((event, node))
            if len(queue.ready) == MANY:
                queue.ready = deque(queue.ready)
            self.startable.append(queue)
        else:
            inbox = queue.inbox
            if inbox is None:
                inbox = queue.inbox = self._open_inbox()
            inbox.put((event, node))

    def _put_aside(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None:
        """Keep a delivery until the time of its next attempt."""
        if self.records is not None:
            self.records.queued(queue, event, node, event.due if event.delay else None)
        if queue.delayed is None:
            queue.delayed = {}
        queue.delayed[event] = node

    # -- internals: results ----------------------------------------------------------------------

    def _take_result(
        self, queue: StepQueue, node: BranchNode | None, result: Any, route: Route | None
    ) -> None:
        """Route a result for which there is no hand-off: an event, a list, None or a stop event."""
        if route is not None:
            if route.is_stop:
                if self.records is not None:
                    self.records.emitted(result)
                self.stop = result
            else:
                self._deliver(route, result, node)
        elif isinstance(result, list):
            self._fan_out(queue.index, node, cast("list[Any]", result))
        elif result is None:
            if not queue.step.may_end:
                self._end_silently(queue.step)
        else:
            kind = cast("type[Any]", type(result))
            self.graph.output(queue.index, kind)  # raises: the step does not declare it

    def _end_silently(self, step: Step) -> None:
        """Count a None that ended a branch and that the step does not declare."""
        self.graph.check_none(step)
        self.silent = self.silent or {}
        count = self.silent[step.name] = self.silent.get(step.name, 0) + 1
        if count == 1:
            self._report_ended(step)

    def _fan_out(  # noqa: C901 - one frame for each list
        self, index: int, node: BranchNode | None, events: list[Any]
    ) -> None:
        """Deliver the events of a returned list. A node holds them where the list ends in joins."""
        graph = self.graph
        if not (graph.steps[index].fans_out or graph.is_lenient):
            graph.output(index, list)  # raises: the step does not declare a list
        kinds: list[type[Any]] = [type(event) for event in events]
        if not graph.listed[index].keys() >= {*kinds}:
            for event in events:
                if isinstance(event, Event):
                    graph.adopt(event, index)
            kinds = [type(event) for event in events]
        routes = [
            self._output(index, event, in_list=True)
            if self.waits
            else graph.output(index, kind, in_list=True)
            for kind, event in zip(kinds, events, strict=True)
        ]
        joins = graph.joins[index]
        inner = node
        if joins:
            inner = BranchNode(node, joins)
            if self.journal is not None:
                self.journal.joined(joins)
            if index in graph.races or (node is not None and node.cancel_record is not None):
                inner.begin_tracking()
            inner.live = 1  # the fan-out itself, until all its events are delivered
            if node is not None:
                node.live += 1
        for route, event in zip(routes, events, strict=True):
            self._deliver(route, event, inner)
        if inner is not None and inner is not node:
            self.release(inner)

    # -- internals: lineage ----------------------------------------------------------------------

    def _count_off(self, node: BranchNode | None) -> None:
        """Count one delivery less, in the run and in its node."""
        self.alive -= 1
        if node is not None:
            self.release(node)

    def _run_joins(self, node: BranchNode, parent: BranchNode | None) -> None:
        """Enqueue the joins in which an ended fan-out ends; keep incomplete sets for diagnosis."""
        for index, pair_join in (node.pair_joins or {}).items():
            if pair_join.missing():
                self.queues[index].unmatched = pair_join
        for join, events in node.collected.items():
            if events is not None:
                self.enqueue(self.queues[join], events, parent)

    def _admit(self, node: BranchNode) -> BranchNode | None:
        """Count a delivery as running, and return the node in which it runs.

        A branch that no step holds is removed here, and its delivery runs in the node above. So a
        loop of steps that send leaves no chain of branches behind.
        """
        if node.cancel_record is not None:
            node.cancel_record.queued -= 1
        while not node.is_needed:
            record = node.cancel_record
            if node.is_held or (record is not None and record.waiters):
                if record is None:
                    # None of its deliveries has run yet: all others still wait.
                    node.begin_tracking(node.live - 1)
                if node.slack < 0:
                    self._shorten(node)
                break
            parent = node.parent
            if parent is not None:
                parent.live += 1
            self.release(node)
            if parent is None:
                return None
            node = parent
        return node

    def _shorten(self, node: BranchNode) -> None:
        """Remove the branches above ``node`` that no step holds any more.

        The walk goes up to the root, past branches that are still held: in a loop of steps that
        send, a step may end after the next one has begun. The next walk is due when the chain has
        grown by the length of this one, so the cost per branch is constant.
        """
        depth = 0
        inner = node
        while inner.parent is not None:
            around = inner.parent
            record = around.cancel_record
            if around.is_needed or around.is_held or around.is_awaited or around.is_cancelled:
                inner = around
                depth += 1
                continue
            if record is not None:
                record.children.pop(inner, None)
            parent = inner.parent = around.parent
            if parent is not None:
                parent.live += 1
                if parent.cancel_record is not None:
                    parent.cancel_record.children[inner] = None
            self.release(around)
        node.slack = depth + SLACK

    # -- internals: waits ------------------------------------------------------------------------

    def _let_return(self, queue: StepQueue) -> None:
        """Give a place, already counted, to the invocation that has queued longest for one."""
        assert queue.returning is not None
        absence, _ = queue.returning.popitem(last=False)
        if not queue.returning:
            queue.returning = None
        queue.pending -= 1
        queue.away -= 1
        absence.is_away = False
        self.held_up -= absence.event is not None
        absence.waiter.wake()

    def _close_wait(self, wait: Wait) -> object:
        """Take a wait out of the open ones, and return the context of its step."""
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

    def _give_to_first(self, event: Event) -> bool:
        """Give an event from outside to the oldest open wait that it fits."""
        wait = self.first_wait(event)
        if wait is None:
            return False
        if self.questions is not None:
            asked = self._first_question(event)
            if asked is not None and asked.number < wait.number:
                return False  # it answers an older question, so the steps that accept it get it
        if self.records is not None:
            self.records.emitted(event)
        self._give(wait, event, from_outside=True)
        return True

    def _give_to_all(self, event: Event) -> bool:
        """Give an event that a step made to all open waits that it fits, oldest first."""
        groups = [self.waits] if self._index is None else self._index.candidates(event)
        fitting = [wait for group in groups for wait in group if wait.fits(event)]
        for wait in sorted(fitting, key=lambda wait: wait.number):
            self._give(wait, event, from_outside=False)
        return bool(fitting)

    def _give(self, wait: Wait, event: Event, *, from_outside: bool) -> None:
        """Answer an open wait: wake its step, and queue it for a place if it gave its own up."""
        step = self._close_wait(wait)
        self.answered = self.answered or {}
        self.answered[wait] = step
        wait.event = event
        wait.is_from_outside = from_outside
        if self.journal is not None:
            self.journal.given(wait)
        if self.records is not None:
            self.records.given(wait)
            if wait.asks:
                self.records.answered(wait.number)
        if wait.is_away:
            self.reclaim_place(wait)  # in the order of the answers
        wait.waiter.wake()

    def _give_back(self, event: Event) -> None:
        """Give an answer whose wait did not take it to the next taker, or keep it."""
        if self._give_to_first(event):
            return
        if self.graph.targets(type(event)):
            self._deliver(self.graph.input(type(event)), event, None)
        else:
            if self.records is not None:
                self.records.kept(event)
            self._open_early().put_back(event)

    def _open_early(self) -> EarlyAnswers:
        """Return the container of early answers; open it if there is none."""
        self.early = self.early or EarlyAnswers()
        return self.early

    # -- internals: questions --------------------------------------------------------------------

    def _keep_question(self, asked: Asked) -> None:
        """Add an open question; a second one makes a dict of ``questions``."""
        known = self.questions
        if isinstance(known, dict):
            known[asked.number] = asked
        else:
            both = (known, asked)
            self.questions = {one.number: one for one in both if one is not None}

    def _close_question(self, asked: Asked) -> None:
        """Remove an open question; ``questions`` is None again after the last one."""
        if isinstance(self.questions, dict):
            del self.questions[asked.number]
        if self.questions is asked or not self.questions:
            self.questions = None

    def _first_question(self, event: Event) -> Asked | None:
        """Return the oldest question without a wait that an event answers; None for none."""
        if isinstance(event, HumanResponseEvent) and self.graph.targets(type(event)):
            for asked in self.open_questions:
                if asked.kind is None:
                    return asked
        return None

    def _note_answer(self, event: Event) -> Asked | None:
        """Close the oldest question that an event answers, and return it.

        A surplus answer closes none later.
        """
        asked: Asked | None
        if isinstance(self.questions, Asked):  # the usual case
            asked = self.questions
            if asked.kind is not None or not isinstance(event, HumanResponseEvent):
                return None
        else:
            asked = self._first_question(event)
        if asked is not None:
            self._close_question(asked)
        return asked
