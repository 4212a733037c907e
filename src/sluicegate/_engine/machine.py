"""The machine: what may happen next in a run. Pure and synchronous: no await, clock or I/O.

It keeps the books: which deliveries wait or run at which step, what came of what, which workers
may start, what is asked of people. The inboxes carry the deliveries, the runner does the work.
Every operation is constant in time, however much is pending, and what has been handled leaves
nothing behind. (A wait that requires a value without a hash is linear in the waits of its class.)
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, cast

from sluicegate._engine.grouping import StepQueue
from sluicegate._engine.joins import EventBuffer, PairJoin
from sluicegate._engine.lineage import BranchNode
from sluicegate._engine.suspended import EMPTY, Suspended
from sluicegate._errors import WorkflowRuntimeError
from sluicegate._events import Event


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._definition.graph import Graph, Route
    from sluicegate._definition.steps import Step
    from sluicegate._events import StopEvent
    from sluicegate._loop import Inbox


#: An event (a list for a join, a tuple for one of each) on its way to a step, with its group.
Delivery = tuple[StepQueue, Any, "BranchNode | None"]


#: From so many on, the deliveries for workers about to start are kept in a deque; it takes memory.
MANY = 64


def _retired(*_: object) -> Any:
    """Stand in for what a machine calls whose run is over."""
    raise AssertionError


def _cancel_nothing(_scope: object, _reason: str) -> None:
    """Stand in where nothing runs."""


def _report_nothing(_step: object) -> None:
    """Stand in where there is no log."""


class Machine(Suspended):
    """The state of one run.

    Attributes:
        startable: Stations at each of which one more worker is to be started.
        stop: The stop event, once a step has returned it.
        alive: How many deliveries wait or run.
        is_draining: Whether what runs goes on, and nothing more starts.
    """

    __slots__ = (
        "_cancel_scope",
        "_open_inbox",
        "_publish",
        "_report_ended",
        "graph",
        "is_draining",
        "queues",
        "silent",
        "startable",
        "stop",
    )

    def __init__(
        self,
        graph: Graph,
        open_inbox: Callable[[], Inbox],
        publish: Callable[[Event], float | None],
        cancel_scope: Callable[[Any, str], None] = _cancel_nothing,
        report_ended: Callable[[Step], None] = _report_nothing,
    ) -> None:
        self.graph = graph
        self._open_inbox = open_inbox
        self._publish = publish
        self._cancel_scope = cancel_scope
        self._report_ended = report_ended
        self.queues = [StepQueue(step) for step in graph.steps]
        self.startable: list[StepQueue] = []
        self.stop: StopEvent | None = None
        self.alive = 0
        self.is_draining = False
        self.still = self.waits = self.answered = self.unheard = EMPTY
        self.questions = None
        self.strict = self.branch_waits = self.strict_waits = self.outside_waits = 0
        self.held_up = 0
        self._number = 0
        self.has_asked = False
        #: How often which step has returned None without declaring it.
        self.silent: dict[str, int] = EMPTY
        self.early = self.unended = ()
        self._index = None

    # -- events come in --------------------------------------------------------------------

    def receive(self, event: Event) -> None:
        """Take an event from outside: the start event, or one sent to the handler."""
        try:
            is_generic = event.__parameters__
        except AttributeError:  # it is no event, which the graph says
            is_generic = ()
        if is_generic:
            self.graph.adopt_from_outside(event, {wait.kind for wait in self.waits})
        if self.waits and self._give_to_first(event):
            return
        route = self.graph.input(type(event))
        if not route.targets:
            self.keep_early(event)  # a step may yet come to wait for it, or to ask
            return
        if self.questions is not None:
            self._note_answer(event)
        self._deliver(route, event, None)

    def receive_at(self, event: Event, target: str) -> None:
        """Take an event from outside for the one step called ``target``."""
        queue = self.queues[self.graph.target_index(event, target)]
        if self.questions is not None:
            self._note_answer(event)
        self._deliver_to(queue, event, None)

    def check_sendable(self, index: int, event: Event, target: str | None) -> Route:
        """Return the way of an event that the running step number ``index`` sends.

        Raises:
            WorkflowRuntimeError: It is not declared, nobody takes it, or it is a stop event.
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
        """Return a branch for an event from ``group``: to be sent at once, or else tracked."""
        branch = BranchNode(node, (), is_held=True)
        branch.live = 1  # until the event is out
        cancel_record = None
        if node is not None:
            node.live += 1
            cancel_record = node.cancel_record
        if cancel_record is not None:
            branch.begin_tracking().reason = cancel_record.reason
        elif is_kept_back:
            branch.begin_tracking()  # so that nothing of it is taken for waiting
        return branch

    def send(self, route: Route, event: Event, branch: BranchNode, target: str | None) -> None:
        """Let an event out that :meth:`check_sendable` has seen, as a branch of its own."""
        if branch.is_cancelled:
            self._leave(branch)
            return
        if target is None:
            self._deliver(route, event, branch)
        else:
            self._deliver_to(self.queues[self.graph.target_index(event, target)], event, branch)
        self._leave(branch)

    def drop_branch(self, branch: BranchNode) -> None:
        """End a branch whose event was kept back, and is not to be sent."""
        self._leave(branch)

    # -- events find their way ---------------------------------------------------------------

    def _output(self, index: int, event: Event, *, in_list: bool = False) -> Route:
        """Return the way of an event that a step made, which an open wait may be the one to take."""
        kind = type(event)
        is_awaited = bool(self.waits) and self.first_wait(event) is not None
        return self.graph.output(index, kind, in_list=in_list, is_awaited=is_awaited)

    def _deliver(self, route: Route, event: Event, node: BranchNode | None) -> None:
        is_taken = bool(self.waits) and self._give_to_all(event)
        if route.is_question:
            # A reader that hears of it may answer it, or take a snapshot, only when this is done.
            self.note_question(event, self._publish(event))
        elif not (is_taken or route.targets):
            self._note_unheard(event)
        for index in route.targets:
            self._deliver_to(self.queues[index], event, node)

    def _deliver_to(self, queue: StepQueue, event: Event, node: BranchNode | None) -> None:
        takes = queue.step.takes
        if takes == "one":
            self._enqueue(queue, event, node)
        elif takes == "list":
            self._collect_for_join(queue, event, node)
        else:
            complete = self.pair_join_of(queue, node).add(event, node)
            if complete is not None:
                self._enqueue(queue, *complete)

    def _collect_for_join(self, queue: StepQueue, event: Event, node: BranchNode | None) -> None:
        ending = node.ending_in(queue.index) if node is not None else None
        if ending is None:
            # What a step with `-> list[A] | A` returned alone goes to those that take it alone.
            if any(self.queues[i].step.takes != "list" for i in self.graph.targets(type(event))):
                return
            name = queue.step.name
            msg = (
                f"{type(event).__name__} came to the join {name} from no fan-out; expected it "
                "to come of a list that a step returned"
            )
            raise WorkflowRuntimeError(msg)
        collected = ending.collected[queue.index]
        if collected is None:
            return  # it has the first n, and has run
        collected.append(event)
        if len(collected) == queue.step.take:
            ending.collected[queue.index] = None
            self._enqueue(queue, collected, ending.parent)
            if all(events is None for events in ending.collected.values()):
                self.cancel(ending, f"{queue.step.label} has its first {len(collected)}")

    def pair_join_of(self, queue: StepQueue, node: BranchNode | None) -> PairJoin:
        kinds = queue.step.accepts
        fan_out = node.fan_out() if node is not None else None
        if fan_out is None:
            if queue.pair_join is None:
                queue.pair_join = PairJoin(kinds)
            return queue.pair_join
        if fan_out.pair_joins is None:
            fan_out.pair_joins = {}
        return fan_out.pair_joins.setdefault(queue.index, PairJoin(kinds))

    def _enqueue(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None:
        if node is not None:
            if node.cancel_record is not None:
                if node.cancel_record.reason is not None:
                    return
                node.cancel_record.queued += 1
            node.live += 1
        self.alive += 1
        self._line_up(queue, event, node)

    def _line_up(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None:
        queue.pending += 1
        if queue.running < queue.limit:
            queue.running += 1
            if queue.ready is None:
                queue.ready = []
            queue.ready.append((event, node))
            if len(queue.ready) == MANY:
                queue.ready = deque(queue.ready)  # a list would move all others for each taken
            self.startable.append(queue)
        else:
            inbox = queue.inbox
            if inbox is None:
                inbox = queue.inbox = self._open_inbox()
            inbox.put((event, node))

    # -- workers come and go -----------------------------------------------------------------

    def take(self, queue: StepQueue) -> Delivery | None:
        """Give a worker of ``station`` its next delivery, the oldest, or send it home.

        An invocation that wants its place again comes first, and goes on in its own task.
        """
        while queue.pending:
            if queue.running > queue.limit:
                queue.pending -= 1
                break
            if queue.returning:
                self.let_return(queue)
                return None
            if self.is_draining:
                break
            queue.pending -= 1
            if queue.ready:
                ready = queue.ready
                event, node = ready.pop(0) if isinstance(ready, list) else ready.popleft()
                if not ready:
                    queue.ready = None  # of many runs at once, each list counts
            else:
                event, node = queue.inbox.take()  # type: ignore[union-attr]
            if node is None:
                return queue, event, None
            if not node.is_cancelled:  # if it is, the delivery has been counted off
                return queue, event, self._admit(node)
        queue.running -= 1
        return None

    def next_start(self) -> Delivery | None:
        """Give a worker that is free the first delivery that waits for one to start."""
        while self.startable:
            delivery = self.take(self.startable.pop(0))
            if delivery is not None:
                return delivery
        return None

    def finish(self, queue: StepQueue, node: BranchNode | None, result: Any) -> Delivery | None:
        """Take what an invocation returned; return what its worker goes on with, if anything.

        Hand-off: where the one event returned may start at once, the worker goes on with it.
        Otherwise it takes what waits at its own step, or else what may start elsewhere. Workers
        to be started for the rest are in ``startable``.

        Raises:
            WorkflowRuntimeError: The step did not declare what it returned.
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
            if self.waits:
                self._give_to_all(result)  # a step that it answers has its place back first
            if not queue.pending:
                if following is queue:
                    return queue, result, node
                if not following.pending and following.running < following.limit:
                    queue.running -= 1
                    following.running += 1
                    return following, result, node
        self._take_result(queue, node, result, route)
        if self.stop is not None:
            return None
        return self.drop(queue, node)

    def drop(self, queue: StepQueue, node: BranchNode | None) -> Delivery | None:
        """Take note that an invocation is over; return what its worker goes on with, if anything."""
        self._count_off(node)
        return self.take(queue) or self.next_start()

    def _take_result(
        self, queue: StepQueue, node: BranchNode | None, result: Any, route: Route | None
    ) -> None:
        if route is not None:
            if route.is_stop:
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
            self.graph.output(queue.index, kind)  # raises, and says what was expected

    def check_result(self, queue: StepQueue, result: Any) -> None:
        """Refuse a result that the step does not declare. Nothing has changed then.

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

    def _end_silently(self, step: Step) -> None:
        """Take note that a step ended its branch by a None that it does not declare."""
        self.graph.check_none(step)
        self.silent = self.silent or {}
        count = self.silent[step.name] = self.silent.get(step.name, 0) + 1
        if count == 1:
            self._report_ended(step)

    def _fan_out(self, index: int, node: BranchNode | None, events: list[Any]) -> None:
        graph = self.graph
        if not (graph.steps[index].fans_out or graph.is_lenient):
            graph.output(index, list)  # raises, and says what was expected
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
            if index in graph.races or (node is not None and node.cancel_record is not None):
                inner.begin_tracking()
            inner.live = 1  # the fan-out itself, until all its events are out
            if node is not None:
                node.live += 1
        for route, event in zip(routes, events, strict=True):
            self._deliver(route, event, inner)
        if inner is not None and inner is not node:
            self._leave(inner)

    # -- retries and recoveries ----------------------------------------------------------------

    def delay(self, queue: StepQueue, event: Any, node: BranchNode | None) -> Delivery | None:
        """Lay a delivery aside for a later attempt; return what its worker goes on with."""
        if queue.delayed is None:
            queue.delayed = {}
        queue.delayed[event] = node
        return self.take(queue) or self.next_start()

    def retry(self, queue: StepQueue, event: Any) -> None:
        """Line a delivery up again that was laid aside, unless its branch was cancelled since."""
        assert queue.delayed is not None
        node = queue.delayed.pop(event)
        if node is not None and node.cancel_record is not None:
            if node.cancel_record.reason is not None:
                self._count_off(node)
                return
            node.cancel_record.queued += 1
        self._line_up(queue, event, node)

    # -- what the run waits for ----------------------------------------------------------------

    def buffer(self, index: int, key: str) -> EventBuffer:
        """Return a buffer of ``ctx.collect_events``."""
        queue = self.queues[index]
        if queue.buffers is None:
            queue.buffers = {}
        return queue.buffers.setdefault(key, EventBuffer())

    # -- as a snapshot has it --------------------------------------------------------------------

    def put_in(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None:
        """Line up a delivery that a snapshot has kept."""
        self._enqueue(queue, event, node)

    def put_aside(self, queue: StepQueue, event: Any, node: BranchNode | None) -> None:
        """Lay a delivery aside that a snapshot has kept, until :meth:`retry`."""
        self.alive += 1
        if node is not None:
            node.live += 1
        if queue.delayed is None:
            queue.delayed = {}
        queue.delayed[event] = node

    def close_empty(self, node: BranchNode) -> None:
        """End a group that a snapshot has kept, and of which nothing is left."""
        self._close(node)

    def close(self) -> None:
        """Close the inboxes; what still waits in them is kept to be looked at."""
        for queue in self.queues:
            if queue.inbox is not None:
                ready = list(queue.ready or ())
                waiting = queue.in_inbox
                queue.ready = ready + [queue.inbox.take() for _ in range(waiting)]
                queue.inbox.close()
                queue.inbox = None

    def retire(self) -> None:
        """Let go of the run, and keep the books for a snapshot."""
        self._publish = self._cancel_scope = self._open_inbox = self._report_ended = _retired
