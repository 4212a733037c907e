"""The machine: what may happen next in a run. Pure and synchronous: no await, clock or I/O.

It keeps the books: which deliveries wait or run at which step, what came of what, which workers
may start, what is asked of people. The inboxes carry the deliveries, the runner does the work.
Every operation is constant in time, however much is pending, and what has been handled leaves
nothing behind.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from penstock._engine.grouping import Groups, Station
from penstock._engine.joins import Collection, Slots
from penstock._engine.lineage import Group
from penstock._errors import WorkflowRuntimeError
from penstock._events import Event, HumanResponseEvent


if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock._backends import Inbox
    from penstock._engine.joins import Wait
    from penstock._events import StopEvent
    from penstock._graph import Graph, Route
    from penstock._steps import Step


#: An event (a list for a join, a tuple for one of each) on its way to a step, with its group.
Delivery = tuple[Station, Any, "Group | None"]

#: Books that are empty, until something is to be written: of many runs at once, each dict counts.
EMPTY: Final[Any] = MappingProxyType[Any, Any]({})


def _retired(*_: object) -> Any:
    """Stand in for what a machine calls whose run is over."""
    raise AssertionError


def _cancel_nothing(_scope: object, _reason: str) -> None:
    """Stand in where nothing runs."""


def _tell_nobody(_step: object) -> None:
    """Stand in where there is no log."""


class Machine(Groups):
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
        "answered",
        "early",
        "graph",
        "has_asked",
        "is_draining",
        "questions",
        "resting",
        "silent",
        "startable",
        "stations",
        "stop",
        "waits",
    )

    def __init__(
        self,
        graph: Graph,
        open_inbox: Callable[[], Inbox],
        publish: Callable[[Event], None],
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
        #: How many questions are open, and whether there ever was one.
        self.questions = 0
        self.has_asked = False
        #: Who waits in the middle of which step; answers that came before anybody waited.
        self.waits: dict[Wait, object] = EMPTY
        #: Whose event is there, and who has not gone on with it yet.
        self.answered: dict[Wait, object] = EMPTY
        self.early: list[Event] | tuple[()] = ()
        #: How often which step has returned None without declaring it.
        self.silent: dict[str, int] = EMPTY
        #: The branches that steps wait for in their middle.
        self.resting: dict[object, list[Group]] = EMPTY

    # -- events come in --------------------------------------------------------------------

    def receive(self, event: Event) -> None:
        """Take an event from outside: the start event, or one sent to the handler."""
        if isinstance(event, HumanResponseEvent) and not self.graph.targets(type(event)):
            if self._give_to_waiting(event):
                self._note_answer(event)
            else:
                self.keep_early(event)  # a step may yet come to wait for it, or to ask
            return
        self._note_answer(event)
        self._deliver(self.graph.input(type(event)), event, None)

    def receive_at(self, event: Event, target: str) -> None:
        """Take an event from outside for the one step called ``target``."""
        station = self.stations[self.graph.station(event, target)]
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
        route = self.graph.output(index, kind, in_list=only_listed)
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

    def _deliver(self, route: Route, event: Event, group: Group | None) -> None:
        if self.waits and self._give_to_waiting(event):
            return
        if route.is_question:
            self._publish(event)  # who hears of it may take a snapshot: it is asked again then
            self.note_question()
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
            self.startable.append(station)
        else:
            inbox = station.inbox
            if inbox is None:
                inbox = station.inbox = self._open_inbox()
            inbox.put((event, group))

    # -- workers come and go -----------------------------------------------------------------

    def take(self, station: Station) -> Delivery | None:
        """Give a worker of ``station`` its next delivery, the oldest, or send it home."""
        while station.pending and not self.is_draining:
            station.pending -= 1
            if station.ready:
                event, group = station.ready.pop(0)
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
            route = self.graph.output(station.index, type(result))
        if (
            route is not None
            and route.next >= 0
            and not station.pending
            and not self.waits
            and not self.is_draining
        ):
            following = self.stations[route.next]
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
        graph, index = self.graph, station.index
        if isinstance(result, list) and (station.step.fans_out or graph.is_lenient):
            for event in cast("list[Any]", result):
                graph.output(index, cast("type[Any]", type(event)), in_list=True)
        elif result is not None:
            graph.output(index, cast("type[Any]", type(result)))
        elif not station.step.may_end:
            graph.check_none(station.step)

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
        routes = [graph.output(index, kind, in_list=True) for kind in kinds]
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

    def begin_wait(self, step: object, wait: Wait) -> None:
        """Have ``wait`` get the next event that fits, or one that came early. ``step`` rests."""
        for event in self.early:
            if wait.take(event):
                self.forget_early(event)
                self.answered = self.answered or {}
                self.answered[wait] = step
                return
        self.waits = self.waits or {}
        self.waits[wait] = step

    def end_wait(self, wait: Wait, *, is_taken: bool) -> None:
        """Forget ``wait``; what it got and nobody took is there for the next one."""
        (self.waits if wait.event is None else self.answered).pop(wait)
        if wait.event is None and wait.asks and not self.graph.reached_by(wait.kind):
            self.questions = max(self.questions - 1, 0)  # no step takes an answer that comes now
        if wait.event is not None and not is_taken:
            self.give_back(wait.event)

    def give_back(self, event: Event) -> None:
        """Have an answer that was taken in vain wait for the next who waits for it."""
        if not self._give_to_waiting(event):
            self.early = [event, *self.early]

    def keep_early(self, event: Event) -> None:
        """Keep an answer until somebody waits for it."""
        self.early = self.early or []
        self.early.append(event)

    def forget_early(self, event: Event) -> None:
        """Let go of an answer that was kept, and that somebody takes."""
        assert self.early
        self.early.remove(event)

    def _give_to_waiting(self, event: Event) -> bool:
        for wait in self.waits:
            if wait.take(event):
                self.answered = self.answered or {}
                self.answered[wait] = self.waits.pop(wait)
                return True
        return False

    def note_question(self) -> None:
        """Take note that somebody outside was asked."""
        self.questions += 1
        self.has_asked = True

    def _note_answer(self, event: Event) -> None:
        # An answer too many, to no question, does not answer the next one.
        if isinstance(event, HumanResponseEvent) and self.questions:
            self.questions -= 1

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
                ready = station.ready or []
                waiting = station.pending - len(ready)
                station.ready = ready + [station.inbox.take() for _ in range(waiting)]
                station.inbox.close()
                station.inbox = None

    def retire(self) -> None:
        """Let go of the run, and keep the books for a snapshot."""
        self._publish = self._cancel_scope = self._open_inbox = self._tell_ended = _retired
