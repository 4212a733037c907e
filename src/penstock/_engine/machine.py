"""The machine: what may happen next in a run. Pure and synchronous: no await, clock or I/O.

It keeps the books: which deliveries wait or run at which step, what came of what, which workers
may start, what is asked of people. The inboxes carry the deliveries, the runner does the work.
Every operation is constant in time, however much is pending, and what has been handled leaves
nothing behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from penstock._engine.joins import Collection, Group, Slots
from penstock._errors import WorkflowRuntimeError
from penstock._events import Event, HumanResponseEvent, InputRequiredEvent


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from penstock._backends import Inbox
    from penstock._engine.joins import Wait
    from penstock._events import StopEvent
    from penstock._graph import Graph, Route
    from penstock._steps import Step


class Station:
    """A step within one run: its inbox and how many work at it."""

    __slots__ = (
        "collections",
        "inbox",
        "index",
        "limit",
        "pending",
        "ready",
        "running",
        "slots",
        "step",
        "unmatched",
    )

    def __init__(self, step: Step) -> None:
        self.step = step
        self.index = step.index
        self.limit = step.num_workers
        #: Workers that run it or are about to.
        self.running = 0
        #: Deliveries that wait: those for workers about to start, and, when no more may start,
        #: the rest in the inbox, which is opened only then.
        self.pending = 0
        self.ready: list[tuple[Any, Group | None]] = []  # a deque's block would double the run
        self.inbox: Inbox | None = None
        self.collections: dict[str, Collection] | None = None
        self.slots: Slots | None = None
        #: What a join of one each was left with when the fan-out that it was in ended.
        self.unmatched: Slots | None = None


#: An event (a list for a join, a tuple for one of each) on its way to a step, with its fan-out.
Delivery = tuple[Station, Any, "Group | None"]


class Machine:
    """The state of one run.

    Attributes:
        startable: Stations at each of which one more worker is to be started.
        stop: The stop event, once a step has returned it.
        alive: How many deliveries wait or run.
    """

    __slots__ = (
        "_early",
        "_graph",
        "_has_asked",
        "_open_inbox",
        "_publish",
        "_questions",
        "_waits",
        "alive",
        "startable",
        "stations",
        "stop",
    )

    def __init__(
        self, graph: Graph, open_inbox: Callable[[], Inbox], publish: Callable[[Event], None]
    ) -> None:
        self._graph = graph
        self._open_inbox = open_inbox
        self._publish = publish
        self.stations = [Station(step) for step in graph.steps]
        self.startable: list[Station] = []
        self.stop: StopEvent | None = None
        self.alive = 0
        #: How many questions are open, and whether there ever was one.
        self._questions = 0
        self._has_asked = False
        #: Who waits in the middle of which step; answers that came before anybody waited.
        self._waits: dict[Wait, object] = {}
        self._early: list[Event] = []

    # -- events come in --------------------------------------------------------------------

    def receive(self, event: Event) -> None:
        """Take an event from outside: the start event, or one sent to the handler."""
        self._note_answer(event)
        if isinstance(event, HumanResponseEvent) and not self._graph.targets(type(event)):
            if not self._give_to_waiting(event):
                self._early.append(event)  # a step may yet come to wait for it
            return
        self._deliver(self._graph.input(type(event)), event, None)

    def send(self, index: int, event: Event, group: Group | None, target: str | None) -> None:
        """Take an event that the running step number ``index`` sends, to one step or to all."""
        kind = type(event)
        step = self._graph.steps[index]
        only_listed = not issubclass(kind, step.returns) and issubclass(kind, step.fans_out)
        route = self._graph.output(index, kind, in_list=only_listed)
        if route.is_stop:
            msg = (
                f"{self._graph.name}.{step.name} sent {kind.__name__}, which ends the run; "
                "expected the step to return it"
            )
            raise WorkflowRuntimeError(msg)
        if target is None:
            self._deliver(route, event, group)
        else:
            self._deliver_to(self.stations[self._graph.station(event, target)], event, group)

    def receive_at(self, event: Event, target: str) -> None:
        """Take an event from outside for the one step called ``target``."""
        station = self.stations[self._graph.station(event, target)]
        self._note_answer(event)
        self._deliver_to(station, event, None)

    # -- events find their way ---------------------------------------------------------------

    def _deliver(self, route: Route, event: Event, group: Group | None) -> None:
        if self._waits and self._give_to_waiting(event):
            return
        if route.is_question:
            self.note_question()
            self._publish(event)
        for index in route.targets:
            self._deliver_to(self.stations[index], event, group)

    def _deliver_to(self, station: Station, event: Event, group: Group | None) -> None:
        takes = station.step.takes
        if takes == "one":
            self._enqueue(station, event, group)
        elif takes == "list":
            ending = group.ending_in(station.index) if group is not None else None
            if ending is None:
                name = station.step.name
                msg = (
                    f"{type(event).__name__} came to the join {name} from no fan-out; expected it "
                    "to come of a list that a step returned"
                )
                raise WorkflowRuntimeError(msg)
            ending.collected[station.index].append(event)
        else:
            complete = self._slots_of(station, group).add(event)
            if complete is not None:
                self._enqueue(station, complete, group)

    def _slots_of(self, station: Station, group: Group | None) -> Slots:
        kinds = station.step.accepts
        if group is None:
            if station.slots is None:
                station.slots = Slots(kinds)
            return station.slots
        if group.slots is None:
            group.slots = {}
        return group.slots.setdefault(station.index, Slots(kinds))

    def _enqueue(self, station: Station, event: Any, group: Group | None) -> None:
        self.alive += 1
        if group is not None:
            group.live += 1
        station.pending += 1
        if station.running < station.limit:
            station.running += 1
            station.ready.append((event, group))
            self.startable.append(station)
        else:
            if station.inbox is None:
                station.inbox = self._open_inbox()
            station.inbox.put((event, group))

    # -- workers come and go -----------------------------------------------------------------

    def take(self, station: Station) -> Delivery | None:
        """Give a worker of ``station`` its next delivery, the oldest, or send it home."""
        if not station.pending:
            station.running -= 1
            return None
        station.pending -= 1
        if station.ready:
            event, group = station.ready.pop(0)
        else:
            event, group = station.inbox.take()  # type: ignore[union-attr]
        return station, event, group

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
        kind = cast("type[Any]", type(result))
        route = self._graph.outputs[station.index].get(kind)
        if route is None and isinstance(result, Event):
            route = self._graph.output(station.index, kind)
        if route is not None and route.next >= 0 and not station.pending and not self._waits:
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
        self.alive -= 1
        if group is not None:
            group.live -= 1
            if not group.live:
                self._close(group)
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
                msg = (
                    f"{station.step.label} returned None, which it does not declare; expected it to "
                    "return one of its events, or `| None` in its signature"
                )
                raise WorkflowRuntimeError(msg)
        else:
            kind = cast("type[Any]", type(result))
            self._graph.output(station.index, kind)  # raises, and says what was expected

    def _fan_out(self, index: int, group: Group | None, events: list[Any]) -> None:
        graph = self._graph
        if not graph.steps[index].fans_out:
            graph.output(index, list)  # raises, and says what was expected
        kinds: list[type[Any]] = [type(event) for event in events]
        routes = [graph.output(index, kind, in_list=True) for kind in kinds]
        joins = graph.joins[index]
        inner = group
        if joins:
            inner = Group(group, joins)
            inner.live = 1  # the fan-out itself, until all its events are out
            if group is not None:
                group.live += 1
        for route, event in zip(routes, events, strict=True):
            self._deliver(route, event, inner)
        if inner is not None and inner is not group:
            inner.live -= 1
            if not inner.live:
                self._close(inner)

    def _close(self, group: Group) -> None:
        """End a fan-out of which nothing is left: its joins run, in the fan-out around it."""
        parent = group.parent
        for index, slots in (group.slots or {}).items():
            if slots.missing():
                self.stations[index].unmatched = slots
        for join, events in group.collected.items():
            self._enqueue(self.stations[join], events, parent)
        if parent is not None:
            parent.live -= 1  # not to zero: the joins have just been added

    # -- what the run waits for ----------------------------------------------------------------

    def begin_wait(self, step: object, wait: Wait) -> None:
        """Have ``wait`` get the next event that fits, or one that came early. ``step`` rests."""
        for event in self._early:
            if wait.take(event):
                self._early.remove(event)
                break
        self._waits[wait] = step

    def end_wait(self, wait: Wait, *, is_taken: bool) -> None:
        """Forget ``wait``; what it got and nobody took is there for the next one."""
        del self._waits[wait]
        if wait.event is not None and not is_taken and not self._give_to_waiting(wait.event):
            self._early.insert(0, wait.event)

    def _give_to_waiting(self, event: Event) -> bool:
        return any(wait.take(event) for wait in self._waits)

    @property
    def rests(self) -> bool:
        """Whether everything that is alive waits for an event in the middle of a step."""
        waiting = {id(step) for wait, step in self._waits.items() if wait.event is None}
        return bool(waiting) and len(waiting) == self.alive

    def note_question(self) -> None:
        """Take note that somebody outside was asked."""
        self._questions += 1
        self._has_asked = True

    def _note_answer(self, event: Event) -> None:
        # An answer too many, to no question, does not answer the next one.
        if isinstance(event, HumanResponseEvent) and self._questions:
            self._questions -= 1

    def collect(
        self, index: int, event: Event, expected: Sequence[type[Event]], key: str
    ) -> list[Event] | None:
        """See :meth:`penstock.Context.collect_events`."""
        station = self.stations[index]
        if station.collections is None:
            station.collections = {}
        return station.collections.setdefault(key, Collection()).add(event, expected)

    def expects_input(self) -> bool:
        """Whether, with nothing alive, an event can still come from outside.

        It can while a question is open; while a join lacks a human's answer; and always where
        people may speak unasked, that is where steps take answers and none asks a question.
        """
        if self._questions:
            return True
        graph = self._graph
        listens = any(issubclass(k, HumanResponseEvent) for s in graph.steps for k in s.accepts)
        asks = any(issubclass(k, InputRequiredEvent) for s in graph.steps for k in s.returns)
        if listens and not asks and not self._has_asked:
            return True
        return any(issubclass(kind, HumanResponseEvent) for kind in self._missing_kinds())

    def _missing_kinds(self) -> Iterator[type[Event]]:
        for station in self.stations:
            if station.slots is not None:
                yield from station.slots.missing_kinds()
            for collection in (station.collections or {}).values():
                yield from (kind for kind, _ in collection.missing())

    def missing(self) -> tuple[str, ...]:
        """Tell what each join and collection still lacks."""
        told: list[str] = []
        for station in self.stations:
            lacking = [
                name
                for slots in (station.slots, station.unmatched)
                if slots is not None
                for name in slots.missing()
            ]
            for collection in (station.collections or {}).values():
                lacking += [f"{n} x {kind.__name__}" for kind, n in collection.missing()]
            if lacking:
                told.append(f"{station.step.label} lacks {', '.join(lacking)}")
        waits = [repr(wait) for wait in self._waits if wait.event is None]
        if waits:
            told.append(f"{len(waits)} waiting for {', '.join(dict.fromkeys(waits))}")
        return tuple(told)

    def close(self) -> None:
        """Close the inboxes; what still waits in them is dropped with the run."""
        for station in self.stations:
            if station.inbox is not None:
                station.inbox.close()
                station.inbox = None
