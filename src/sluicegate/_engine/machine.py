"""The machine: what may happen next in a run. Pure and synchronous: no await, clock or I/O.

It keeps the books: which deliveries wait or run at which step, what came of what, which workers
may start, what is asked of people. The inboxes carry the deliveries, the runner does the work.
Every operation is constant in time, however much is pending, and what has been handled leaves
nothing behind. (A wait that requires a value without a hash is linear in the waits of its class.)
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, cast

from sluicegate._engine.grouping import Station
from sluicegate._engine.joins import Collection, Slots
from sluicegate._engine.lineage import Group
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
Delivery = tuple[Station, Any, "Group | None"]


#: From so many on, the deliveries for workers about to start are kept in a deque; it takes memory.
MANY = 64


def _retired(*_: object) -> Any:
    """Stand in for what a machine calls whose run is over."""
    raise AssertionError


def _cancel_nothing(_scope: object, _reason: str) -> None:
    """Stand in where nothing runs."""


def _tell_nobody(_step: object) -> None:
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
        "_tell_ended",
        "graph",
        "is_draining",
        "silent",
        "startable",
        "stations",
        "stop",
    )

    def __init__(
        self,
        graph: Graph,
        open_inbox: Callable[[], Inbox],
        publish: Callable[[Event], float | None],
        cancel_scope: Callable[[Any, str], None] = _cancel_nothing,
        tell_ended: Callable[[Step], None] = _tell_nobody,
    ) -> None:
        self.graph = graph
        self._open_inbox = open_inbox
        self._publish = publish
        self._cancel_scope = cancel_scope
        self._tell_ended = tell_ended
        self.stations = [Station(step) for step in graph.steps]
        self.startable: list[Station] = []
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
        station = self.stations[self.graph.station(event, target)]
        if self.questions is not None:
            self._note_answer(event)
        self._deliver_to(station, event, None)

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
            self.graph.station(event, target)
        return route

    @staticmethod
    def open_branch(group: Group | None, *, is_kept_back: bool = False) -> Group:
        """Return a branch for an event from ``group``: to be sent at once, or else tracked."""
        branch = Group(group, (), is_held=True)
        branch.live = 1  # until the event is out
        track = None
        if group is not None:
            group.live += 1
            track = group.track
        if track is not None:
            branch.begin_tracking().reason = track.reason
        elif is_kept_back:
            branch.begin_tracking()  # so that nothing of it is taken for waiting
        return branch

    def send(self, route: Route, event: Event, branch: Group, target: str | None) -> None:
        """Let an event out that :meth:`check_sendable` has seen, as a branch of its own."""
        if branch.is_cancelled:
            self._leave(branch)
            return
        if target is None:
            self._deliver(route, event, branch)
        else:
            self._deliver_to(self.stations[self.graph.station(event, target)], event, branch)
        self._leave(branch)

    def drop_branch(self, branch: Group) -> None:
        """End a branch whose event was kept back, and is not to be sent."""
        self._leave(branch)

    # -- events find their way ---------------------------------------------------------------

    def _output(self, index: int, event: Event, *, in_list: bool = False) -> Route:
        """Return the way of an event that a step made, which an open wait may be the one to take."""
        kind = type(event)
        is_awaited = bool(self.waits) and self.first_wait(event) is not None
        return self.graph.output(index, kind, in_list=in_list, is_awaited=is_awaited)

    def _deliver(self, route: Route, event: Event, group: Group | None) -> None:
        is_taken = bool(self.waits) and self._give_to_all(event)
        if route.is_question:
            # A reader that hears of it may answer it, or take a snapshot, only when this is done.
            self.note_question(event, self._publish(event))
        elif not (is_taken or route.targets):
            self._note_unheard(event)
        for index in route.targets:
            self._deliver_to(self.stations[index], event, group)

    def _deliver_to(self, station: Station, event: Event, group: Group | None) -> None:
        takes = station.step.takes
        if takes == "one":
            self._enqueue(station, event, group)
        elif takes == "list":
            self._collect_for_join(station, event, group)
        else:
            complete = self.slots_of(station, group).add(event, group)
            if complete is not None:
                self._enqueue(station, *complete)

    def _collect_for_join(self, station: Station, event: Event, group: Group | None) -> None:
        ending = group.ending_in(station.index) if group is not None else None
        if ending is None:
            # What a step with `-> list[A] | A` returned alone goes to those that take it alone.
            if any(self.stations[i].step.takes != "list" for i in self.graph.targets(type(event))):
                return
            name = station.step.name
            msg = (
                f"{type(event).__name__} came to the join {name} from no fan-out; expected it "
                "to come of a list that a step returned"
            )
            raise WorkflowRuntimeError(msg)
        collected = ending.collected[station.index]
        if collected is None:
            return  # it has the first n, and has run
        collected.append(event)
        if len(collected) == station.step.take:
            ending.collected[station.index] = None
            self._enqueue(station, collected, ending.parent)
            if all(events is None for events in ending.collected.values()):
                self.cancel(ending, f"{station.step.label} has its first {len(collected)}")

    def slots_of(self, station: Station, group: Group | None) -> Slots:
        kinds = station.step.accepts
        fan_out = group.fan_out() if group is not None else None
        if fan_out is None:
            if station.slots is None:
                station.slots = Slots(kinds)
            return station.slots
        if fan_out.slots is None:
            fan_out.slots = {}
        return fan_out.slots.setdefault(station.index, Slots(kinds))

    def _enqueue(self, station: Station, event: Any, group: Group | None) -> None:
        if group is not None:
            if group.track is not None:
                if group.track.reason is not None:
                    return
                group.track.queued += 1
            group.live += 1
        self.alive += 1
        self._line_up(station, event, group)

    def _line_up(self, station: Station, event: Any, group: Group | None) -> None:
        station.pending += 1
        if station.running < station.limit:
            station.running += 1
            if station.ready is None:
                station.ready = []
            station.ready.append((event, group))
            if len(station.ready) == MANY:
                station.ready = deque(station.ready)  # a list would move all others for each taken
            self.startable.append(station)
        else:
            inbox = station.inbox
            if inbox is None:
                inbox = station.inbox = self._open_inbox()
            inbox.put((event, group))

    # -- workers come and go -----------------------------------------------------------------

    def take(self, station: Station) -> Delivery | None:
        """Give a worker of ``station`` its next delivery, the oldest, or send it home.

        An invocation that wants its place again comes first, and goes on in its own task.
        """
        while station.pending:
            if station.running > station.limit:
                station.pending -= 1
                break
            if station.returning:
                self.let_return(station)
                return None
            if self.is_draining:
                break
            station.pending -= 1
            if station.ready:
                ready = station.ready
                event, group = ready.pop(0) if isinstance(ready, list) else ready.popleft()
                if not ready:
                    station.ready = None  # of many runs at once, each list counts
            else:
                event, group = station.inbox.take()  # type: ignore[union-attr]
            if group is None:
                return station, event, None
            if not group.is_cancelled:  # if it is, the delivery has been counted off
                return station, event, self._admit(group)
        station.running -= 1
        return None

    def next_start(self) -> Delivery | None:
        """Give a worker that is free the first delivery that waits for one to start."""
        while self.startable:
            delivery = self.take(self.startable.pop(0))
            if delivery is not None:
                return delivery
        return None

    def finish(self, station: Station, group: Group | None, result: Any) -> Delivery | None:
        """Take what an invocation returned; return what its worker goes on with, if anything.

        Hand-off: where the one event returned may start at once, the worker goes on with it.
        Otherwise it takes what waits at its own step, or else what may start elsewhere. Workers
        to be started for the rest are in ``startable``.

        Raises:
            WorkflowRuntimeError: The step did not declare what it returned.
        """
        if group is not None and group.track is not None and group.track.reason is not None:
            return self.drop(station, group)
        kind = cast("type[Any]", type(result))
        route = self.graph.outputs[station.index].get(kind)
        if route is None and isinstance(result, Event):
            self.graph.adopt(result, station.index)
            route = self._output(station.index, result)
        if route is not None and route.next >= 0 and not self.is_draining:
            following = self.stations[route.next]
            if self.waits:
                self._give_to_all(result)  # a step that it answers has its place back first
            if not station.pending:
                if following is station:
                    return station, result, group
                if not following.pending and following.running < following.limit:
                    station.running -= 1
                    following.running += 1
                    return following, result, group
        self._take_result(station, group, result, route)
        if self.stop is not None:
            return None
        return self.drop(station, group)

    def drop(self, station: Station, group: Group | None) -> Delivery | None:
        """Take note that an invocation is over; return what its worker goes on with, if anything."""
        self._count_off(group)
        return self.take(station) or self.next_start()

    def _take_result(
        self, station: Station, group: Group | None, result: Any, route: Route | None
    ) -> None:
        if route is not None:
            if route.is_stop:
                self.stop = result
            else:
                self._deliver(route, result, group)
        elif isinstance(result, list):
            self._fan_out(station.index, group, cast("list[Any]", result))
        elif result is None:
            if not station.step.may_end:
                self._end_silently(station.step)
        else:
            kind = cast("type[Any]", type(result))
            self.graph.output(station.index, kind)  # raises, and says what was expected

    def check_result(self, station: Station, result: Any) -> None:
        """Refuse a result that the step does not declare. Nothing has changed then.

        Raises:
            WorkflowRuntimeError: The step does not declare it.
        """
        step, graph = station.step, self.graph
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
            self._tell_ended(step)

    def _fan_out(self, index: int, group: Group | None, events: list[Any]) -> None:
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
        inner = group
        if joins:
            inner = Group(group, joins)
            if index in graph.races or (group is not None and group.track is not None):
                inner.begin_tracking()
            inner.live = 1  # the fan-out itself, until all its events are out
            if group is not None:
                group.live += 1
        for route, event in zip(routes, events, strict=True):
            self._deliver(route, event, inner)
        if inner is not None and inner is not group:
            self._leave(inner)

    # -- retries and recoveries ----------------------------------------------------------------

    def delay(self, station: Station, event: Any, group: Group | None) -> Delivery | None:
        """Lay a delivery aside for a later attempt; return what its worker goes on with."""
        if station.delayed is None:
            station.delayed = {}
        station.delayed[event] = group
        return self.take(station) or self.next_start()

    def retry(self, station: Station, event: Any) -> None:
        """Line a delivery up again that was laid aside, unless its branch was cancelled since."""
        assert station.delayed is not None
        group = station.delayed.pop(event)
        if group is not None and group.track is not None:
            if group.track.reason is not None:
                self._count_off(group)
                return
            group.track.queued += 1
        self._line_up(station, event, group)

    # -- what the run waits for ----------------------------------------------------------------

    def collection(self, index: int, key: str) -> Collection:
        """Return a buffer of ``ctx.collect_events``."""
        station = self.stations[index]
        if station.collections is None:
            station.collections = {}
        return station.collections.setdefault(key, Collection())

    # -- as a snapshot has it --------------------------------------------------------------------

    def put_in(self, station: Station, event: Any, group: Group | None) -> None:
        """Line up a delivery that a snapshot has kept."""
        self._enqueue(station, event, group)

    def put_aside(self, station: Station, event: Any, group: Group | None) -> None:
        """Lay a delivery aside that a snapshot has kept, until :meth:`retry`."""
        self.alive += 1
        if group is not None:
            group.live += 1
        if station.delayed is None:
            station.delayed = {}
        station.delayed[event] = group

    def close_empty(self, group: Group) -> None:
        """End a group that a snapshot has kept, and of which nothing is left."""
        self._close(group)

    def close(self) -> None:
        """Close the inboxes; what still waits in them is kept to be looked at."""
        for station in self.stations:
            if station.inbox is not None:
                ready = list(station.ready or ())
                waiting = station.in_inbox
                station.ready = ready + [station.inbox.take() for _ in range(waiting)]
                station.inbox.close()
                station.inbox = None

    def retire(self) -> None:
        """Let go of the run, and keep the books for a snapshot."""
        self._publish = self._cancel_scope = self._open_inbox = self._tell_ended = _retired
