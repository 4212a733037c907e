"""Replay: turns the records of a journal into the snapshot from which the run continues.

The records are applied in order to a machine without an event loop. No user code runs: no step, no
handler, no retry strategy, no resource, and no comparison of events. Decisions are read from the records:
which wait took an event, whether a failure was retried, where an event was routed. The result therefore
does not depend on how the tasks were scheduled.
"""

from __future__ import annotations

import logging
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn, cast

from sluicegate._definition.graph import Route
from sluicegate._definition.retries import Attempts, PastError
from sluicegate._engine import journal_records as rec
from sluicegate._engine.journal import ChildRecord, InFlight, KeptResult, Redelivery, StepJournal
from sluicegate._engine.machine import Machine
from sluicegate._engine.run import Run, RunOptions, content_key
from sluicegate._engine.saved_children import find_saved
from sluicegate._engine.snapshot_format import SavedChild, Snapshot, read_part, to_plain
from sluicegate._engine.snapshot_read import SavedRun, pending_steps
from sluicegate._engine.snapshot_write import shape_of, take_snapshot
from sluicegate._engine.step_queue import Numbered, numbered
from sluicegate._engine.waits import Wait
from sluicegate._errors import SnapshotError, WorkflowRuntimeError
from sluicegate._events import Event, InputRequiredEvent, StopEvent
from sluicegate._questions import number_of
from sluicegate._state.patches import apply_patch
from sluicegate._streams import EventLog


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Graph
    from sluicegate._engine.journal_records import Record
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.machine import Delivery
    from sluicegate._engine.step_queue import StepQueue


LOGGER = logging.getLogger("sluicegate")


class _Waiter:
    """The waiter of a task that no longer exists."""

    def wait(self, _task: Any = None, /) -> Any:
        raise AssertionError

    def wake(self) -> None:
        """Do nothing: the task no longer exists."""


_NOBODY: Any = _Waiter()


class _Inbox:
    """The inbox of a step: the deliveries by number, in order."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: dict[int, tuple[Any, BranchNode | None]] = {}

    def put(self, delivery: Any, /) -> None:
        self.items[delivery[0].key] = delivery

    def take(self) -> Any:
        return self.items.pop(next(iter(self.items)))

    def close(self) -> None:
        """Nothing is open."""


class _PastWait(Wait):
    """A wait restored from its record; ``content`` is the number of its content."""

    __slots__ = ("content",)
    content: int

    def content_key(self, key_of: Callable[[Any], int]) -> int:  # noqa: ARG002 - it was recorded
        return self.content


class Flight:
    """An invocation that had begun."""

    __slots__ = ("delivery", "journal", "node", "queue")

    def __init__(self, queue: StepQueue, delivery: Numbered, node: BranchNode | None) -> None:
        self.queue = queue
        self.delivery = delivery
        self.node = node
        self.journal = StepJournal(delivery)

    @property
    def payload(self) -> Any:
        """The event of the invocation, as its worker holds it."""
        return self.delivery.event if type(self.delivery) is Numbered else self.delivery


class _PastGraph:
    """The graph of the workflow as it is now, with the routes of the record that is applied.

    Attributes:
        routes: The steps to which the events of each class went, by class.
        joins: The joins in which a returned list ends, whatever step returned it.
        races: All steps if one of the joins takes only the first events, otherwise none.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.routes: dict[str, tuple[int, ...]] = {}
        self.joins: Any = _Same(())
        self.races = range(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def take_routes(self, record: rec.Input) -> None:
        """Take over the routes of a record.

        Raises:
            SnapshotError: A step in them no longer exists.
        """
        self.routes = {name: self._indexes(steps) for name, steps in record.to.items()}
        joins = self._indexes(record.joins)
        steps = self._graph.steps
        self.joins = _Same(joins)
        self.races = range(len(steps) if any(steps[join].take for join in joins) else 0)

    def _indexes(self, names: Iterable[str]) -> tuple[int, ...]:
        index = self._graph.index
        for name in names:
            if name not in index:
                msg = (
                    f"the journal does not fit {self._graph.name}: an event went to the step {name}, which "
                    "the workflow neither has nor had; the journal is damaged"
                )
                raise SnapshotError(msg)
        return tuple(index[name] for name in names)

    def route(self, kind: type) -> Route:
        """Return the route that events of a class took."""
        targets = self.routes.get(kind.__name__, ())
        return Route(
            targets,
            following=-1,
            is_stop=issubclass(kind, StopEvent),
            is_question=issubclass(kind, InputRequiredEvent),
        )

    def check_none(self, step: object) -> None:
        """Do nothing: the record has its result."""

    def output(self, _index: int, kind: type, **_how: Any) -> Route:
        """Return the route that an event took which a step made."""
        return self.route(kind)

    input = route

    def targets(self, kind: type) -> tuple[int, ...]:
        """Return the steps to which an event went."""
        return self.routes.get(kind.__name__, ())

    @property
    def outputs(self) -> Any:
        """No route by step: each is looked up by :meth:`output`."""
        return _Same({})

    listed = outputs


class _Same:
    """The same value under each index."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getitem__(self, _index: int) -> Any:
        return self.value


class _Machine(Machine):
    """A machine that starts no steps; the record decides which waits take an event.

    Attributes:
        takers: The waits that took the event of the current record.
    """

    __slots__ = ("takers",)

    def __init__(
        self, graph: Graph, publish: Callable[[Event], float | None], past: PastRun
    ) -> None:
        super().__init__(cast("Any", _PastGraph(graph)), _Inbox, publish, journal=past)
        self.takers: list[Wait] = []
        for queue in self.queues:
            queue.limit = 0  # so that every delivery waits in the inbox

    def expect(self, record: rec.Input, takers: list[Wait]) -> None:
        """Read from a record where its events are routed and which waits take them."""
        cast("_PastGraph", self.graph).take_routes(record)
        self.takers = takers
        self.startable.clear()

    def take(self, queue: StepQueue) -> Delivery | None:  # noqa: ARG002 - the records say who takes what
        return None

    def next_start(self) -> Delivery | None:
        return None

    def first_wait(self, event: Event) -> Wait | None:  # noqa: ARG002 - it was recorded
        return next((wait for wait in self.takers if wait in self.waits), None)

    def _give_to_all(self, event: Event) -> bool:
        takers = [
            wait for wait in self.takers if wait in self.waits and isinstance(event, wait.kind)
        ]
        for wait in takers:
            self._give(wait, event, from_outside=False)
        return bool(takers)

    def hand_over(
        self, queue: StepQueue, node: BranchNode | None, result: Any
    ) -> tuple[StepQueue, Numbered]:
        """Apply the result of an invocation with which its worker continues; return the next delivery."""
        targets = self._output(queue.index, result).targets
        following = self.queues[targets[0]]
        if self.records is not None:
            self.records.emitted(result, targets)
        if self.waits:
            self._give_to_all(result)
        if self.records is not None:
            self.records.queued(following, result, node)
        assert self.journal is not None
        return following, self.journal.number(result)

    def answer_early(self, step: object, wait: Wait, number: int) -> None:
        """Give a wait that begins the event that had arrived before."""
        assert self.early
        wait.event, wait.is_from_outside = self.early.take_number(number), True
        self.answered = self.answered or {}
        self.answered[wait] = step

    def begin_wait(self, step: object, wait: Wait) -> None:
        early, self.early = self.early, ()
        super().begin_wait(step, wait)
        self.early = early

    def begin(self, key: int) -> tuple[StepQueue, Numbered, BranchNode | None]:
        """Take the delivery ``key``, as a worker did.

        Raises:
            KeyError: There is none.
        """
        for queue in self.queues:
            found = (
                None if queue.inbox is None else cast("_Inbox", queue.inbox).items.pop(key, None)
            )
            if found is not None:
                delivery, node = found
                queue.pending -= 1
                return queue, delivery, None if node is None else self._admit(node)
        raise KeyError(key)


class PastRun:
    """A run rebuilt from the records that were applied.

    It acts as the journal of the machine and of the rebuilt run.

    Args:
        graph: The workflow as it is now.
        classes: The classes that the records may contain, beside those that the steps name.
        base: The snapshot with which the records begin.
        at: When that was taken, in seconds since the epoch.
        number: The number of the run in the journal; 0 for the run itself.

    Attributes:
        at: When the last record was made.
    """

    def __init__(
        self,
        graph: Graph,
        classes: tuple[type, ...],
        base: dict[str, Any],
        at: float,
        *,
        number: int = 0,
    ) -> None:
        saved = SavedRun(graph, classes, base, is_past=True)
        #: The workflow as it was, and as it is now.
        self.graph, self.present = saved.graph, graph
        graph = saved.graph
        self.own = number
        #: The children, and the children of these, by number: the child of this run that they are or
        #: belong to.
        self.children: dict[int, ChildRecord] = {}
        self.codec: Codec = self.present.codec(classes)
        self.run = Run(
            None,
            graph,
            run_id=saved.run_id or "",
            log=EventLog(window=1, history=1),
            options=RunOptions(classes=classes),
            start_event=saved.start_event,
            resumed=saved.progress,
            early=saved.arrived,
            keys=dict(saved.keys),
            carrier=saved.carrier,
            state_store=saved.store,
        )
        if saved.progress is None:
            self.run.saved_children = {}
        else:
            self.run.saved_children = {**saved.progress.children}
        self.run.journal = self  # type: ignore[assignment]
        self.began_at = at
        #: The last wait that began, and its question, until that is on the stream.
        self.asked: tuple[Wait, Any] | None = None
        #: The state, in the codec's form.
        self.state = base.get("state")
        self.opened = 0
        self.branches: dict[int, BranchNode] = {}
        self._limit = 64
        self._numbers: dict[BranchNode, int] = {}
        self.waits: dict[int, _PastWait] = {}
        self.flights: dict[int, Flight] = {}
        self.delayed: dict[int, tuple[StepQueue, Any]] = {}
        self.held: dict[int, list[BranchNode]] = {}
        self.cancelled: rec.Cancelled | None = None
        self.end: rec.End | None = None
        self.machine = self.run.machine = _Machine(graph, self._note_published, self)
        self.at = at
        self._load(at)

    def _load(self, at: float) -> None:
        run, saved = self.run, self.run.resumed
        run.clock.ended_at = at
        if saved is not None:
            saved.load(run, self.machine)
            for queue in self.machine.queues:
                self.delayed |= {each.key: (queue, each) for each in queue.delayed or ()}
        run.resumed = None

    def load(self, nodes: list[BranchNode], numbers: list[int], opened: int) -> None:
        """Take over the branch numbers of a snapshot; see `RunJournal.load`."""
        self.opened = opened
        self.branches = {number: n for n, number in zip(nodes, numbers, strict=True) if number}

    # -- what the machine and the snapshot ask for -------------------------------------------------

    def number(self, payload: Any) -> Numbered:
        """See :class:`sluicegate._engine.machine.MachineJournal`."""
        return numbered(self.run, payload, 0)

    hand_over = number

    def routed(self, event: Event, targets: tuple[int, ...]) -> None:
        """Do nothing: the records have it."""

    def joined(self, joins: tuple[int, ...]) -> None:
        """Do nothing: the records have it."""

    def given(self, wait: Wait) -> None:
        """Do nothing: the records have it."""

    def number_of(self, node: BranchNode) -> int:
        """Return the number of a branch; 0 where it has none."""
        return self._numbers.get(node, 0)

    def _note_published(self, event: Event) -> float:  # noqa: ARG002 - it has a record of its own
        return self.at

    # -- the result ------------------------------------------------------------------------------

    def snapshot(self, now: float, *, has_crashed: bool) -> dict[str, Any]:
        """Return the snapshot from which the run continues.

        Args:
            now: The time, in seconds since the epoch.
            has_crashed: Whether the recorded life ended in a crash, which then counts against the
                steps that were running.
        """
        run = self.run
        run.clock.ended_at = now
        self._numbers = {node: number for number, node in self.branches.items()}
        for child in self.children.values():
            if child.saved is not None and child.saved.tail:
                child.saved.has_crashed |= has_crashed
        run.in_flight = [
            self._in_flight(flight, has_crashed=has_crashed) for flight in self.flights.values()
        ]
        found = take_snapshot(run)
        found["state"] = self.state
        found["elapsed"] = run.clock.taken(None) + max(self.at - self.began_at, 0.0)
        if self.graph is not self.present:
            found["shape"] = self._present_shape(found)
        return found

    def _present_shape(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the present steps, with former shapes for those that have pending events."""
        pending = pending_steps(read_part(found, Snapshot))
        was = found["shape"]
        return {
            **{name: to_plain(shape) for name, shape in shape_of(self.present).items()},
            **{name: was[name] for name in pending if name in was},
        }

    def _in_flight(self, flight: Flight, *, has_crashed: bool) -> InFlight:
        delivery = flight.delivery
        item = InFlight(
            flight.queue.step, flight.payload, flight.node, flight.journal, delivery.key
        )
        item.crashes = delivery.crashes if isinstance(delivery, Redelivery) else 0
        # A step that was only waiting did not cause the crash.
        if has_crashed and flight not in self.machine.resting and not flight.journal.sleeping:
            item.crashes += 1
        return item

    # -- applying records ------------------------------------------------------------------------

    def apply(self, record: Record) -> None:
        """Apply a record to the machine.

        Raises:
            SnapshotError: It does not fit what was before; the journal is damaged, or of other code.
        """
        self.at = record.at
        self.run.clock.ended_at = record.at
        if isinstance(record, rec.In) and record.of == self.own and record.id is not None:
            self._keep_key(record.id, record.key)
        if record.c != self.own:
            self._apply_below(record)
            return
        apply = getattr(self, f"_{rec.kind_of(record)}")
        machine = self.machine
        if isinstance(record, rec.Input):
            machine.expect(record, [self.waits[number] for number in record.got])
            try:
                apply(record)
            except WorkflowRuntimeError as error:
                if not record.raised:
                    self._refuse(str(error))
            if record.made not in {-1, self.run.made}:
                self._refuse(f"it has made {self.run.made} deliveries, and {record.made} then")
        else:
            apply(record)

    def _keep_key(self, name: str, key: tuple[str, str | None, str | None] | None) -> None:
        assert key is not None
        self.run.keys[name] = key

    def _apply_below(self, record: Record) -> None:
        """Keep a record of a child, whose workflow is known only when its step calls for it again."""
        if isinstance(record, rec.Claimed) and record.of == self.own:
            assert self.machine.early
            self.machine.early.take_number(record.early)
        child = self.children.get(record.c)
        if child is None or child.saved is None:
            return  # its step has ended
        if isinstance(record, rec.Child):
            self.children[record.child] = child
        child.saved.tail.append(rec.to_plain(record))
        if isinstance(record, rec.End) and record.c == child.saved.child:
            self._end_child(record, child, child.saved)

    def _end_child(self, record: rec.End, child: ChildRecord, saved: SavedChild) -> None:
        """Keep the outcome of a child for its step, unless the child was cancelled."""
        if record.status == "cancelled":
            for flight in self.flights.values():
                if child in flight.journal.children:
                    flight.journal.children = [c for c in flight.journal.children if c is not child]
            return
        saved.status, saved.error = record.status, record.error
        if record.status == "completed":
            saved.result, saved.run, saved.tail = record.e, None, []

    def _refuse(self, why: str) -> NoReturn:
        msg = f"the journal of {self.run.run_id} does not fit {self.graph.name}: {why}"
        raise SnapshotError(msg)

    def _flight(self, key: int) -> Flight:
        flight = self.flights.get(key)
        if flight is None:
            self._refuse(f"the delivery {key} is not running")
        return flight

    def _event(self, data: Any) -> Any:
        return None if data is None else self.codec.decode(data, "a record")

    def _start(self, _record: rec.Started) -> None:
        event, self.run.start_event = self.run.start_event, None
        if event is None:
            self._refuse("the run was started before")
        self.machine.receive(event)

    def _in(self, record: rec.In) -> None:
        event, machine = self._event(record.e), self.machine
        if self.run.early:  # it came before the run began
            self.run.early = self.run.early[1:]
        if record.q is not None:
            self._answer(record, event, record.q)
        elif record.step is not None:
            machine.receive_at(event, record.step)
        else:
            machine.receive(event)

    def _answer(self, record: rec.In, event: Event, question: str) -> None:
        saved = find_saved(self.run, question)
        if saved is not None:  # of a child that had not begun again
            saved.answer(record.e)
            return
        number = number_of(question)
        wait = self.machine.find_wait(number)
        if wait is not None:
            self.machine.answer_wait(wait, event)
            return
        asked = self.machine.find_question(number)
        if asked is not None:
            self.machine.answer_question(asked, event)
        elif record.made >= 0:
            self._refuse(f"the question {question} is not open")
        else:
            LOGGER.warning(
                "%r was sent for the question %s of the run %s while that was not in memory, and the "
                "question is not open: it is dropped",
                event,
                question,
                self.run.run_id,
            )

    def _begun(self, record: rec.Begun) -> None:
        try:
            queue, delivery, node = self.machine.begin(record.k)
        except KeyError:
            self._refuse(f"the delivery {record.k} does not wait")
        self.flights[record.k] = Flight(queue, delivery, node)

    def _sent(self, record: rec.Sent) -> None:
        flight, event = self._flight(record.k), self._event(record.e)
        route = self.machine.check_sendable(flight.queue.index, event, record.target)
        node = self.machine.open_branch(flight.node)
        self._name(record.k, record.b, node)
        flight.journal.note_sent(event, node, partial(content_key, self.run))
        self.machine.send(route, event, node, record.target)

    def _name(self, key: int, number: int, node: BranchNode) -> None:
        self.opened = max(self.opened, number)
        self.branches[number] = node
        self.held.setdefault(key, []).append(node)
        if len(self.branches) > self._limit:
            self.branches = {b: n for b, n in self.branches.items() if not n.is_over}
            self._limit = 2 * len(self.branches) + 64

    def _done(self, record: rec.Done) -> None:
        flight, machine = self._flight(record.k), self.machine
        for held in record.held:
            self._send_held(flight, record.k, held)
        result = [self._event(e) for e in record.r] if record.is_list else self._event(record.r)
        del self.flights[record.k]
        if record.handed:
            queue, delivery = machine.hand_over(flight.queue, flight.node, result)
            self.flights[delivery.key] = Flight(queue, delivery, flight.node)
        else:
            machine.finish(flight.queue, flight.node, result)
        self._let_go(record.k)

    def _send_held(self, flight: Flight, key: int, held: rec.Held) -> None:
        event = self._event(held.e)
        route = self.machine.check_sendable(flight.queue.index, event, held.target)
        node = self.machine.open_branch(flight.node, is_kept_back=True)
        self._name(key, held.b, node)
        if held.cancelled is not None:
            self.machine.cancel(node, held.cancelled)
        self.machine.send(route, event, node, held.target)

    def _let_go(self, key: int) -> None:
        """Release the branches of a step that has ended."""
        for node in self.held.pop(key, ()):
            node.is_held = False

    def _failed(self, record: rec.Failed) -> None:
        flight, machine = self._flight(record.k), self.machine
        del self.flights[record.k]
        queue, node = flight.queue, flight.node
        flight.journal.undo(machine, queue.index)
        if record.do == "retry":
            self._try_later(flight, record)
        elif record.do == "handler":
            machine.recover(self.graph.index[record.handler], self._event(record.e), node)
            machine.drop(queue, node)
        else:
            around = self.branches[record.b]
            around.begin_tracking(around.live).errors.append(PastError(record.error))
            machine.cancel(around, f"the step {queue.step.label} failed", "failure")
            machine.drop(queue, node)
        self._let_go(record.k)

    def _try_later(self, flight: Flight, record: rec.Failed) -> None:
        known = flight.delivery if isinstance(flight.delivery, Redelivery) else None
        attempts = None if known is None else known.attempts
        if attempts is None:
            attempts = Attempts(record.at - record.since)
        attempts.failed(PastError(record.error), attempts.started_at + record.since)
        attempts.pause(record.delay)
        redelivery = Redelivery(flight.delivery.event, attempts)
        if known is None or not known.seed:
            self.run.retried += 1
        if known is not None:
            redelivery.take_over(known)
        redelivery.key, redelivery.seed = record.k, record.seed
        redelivery.delay, redelivery.due = record.delay, record.at + record.delay
        flight.journal.carry_over(redelivery, partial(content_key, self.run))
        self.machine.delay(flight.queue, redelivery, flight.node)
        if record.delay:
            self.delayed[record.k] = flight.queue, redelivery
        else:
            self.machine.retry(flight.queue, redelivery)

    def _due(self, record: rec.Due) -> None:
        found = self.delayed.pop(record.k, None)
        if found is None:
            self._refuse(f"the delivery {record.k} is not delayed")
        self.machine.retry(*found)

    def _coll(self, record: rec.Collected) -> None:
        flight = self._flight(record.k)
        journal, index = flight.journal, flight.queue.index
        buffer = self.machine.buffer(index, record.buffer)
        expected = [self._kind(name, flight.queue.step.accepts) for name in record.expected]
        reported = journal.find_reported(record.buffer)
        if record.again:
            complete = buffer.take(expected)
            assert reported is not None
            journal.reported.remove(reported)
            entry = None
        else:
            event = flight.delivery.event if record.e is None else self._event(record.e)
            entry, complete = buffer.add(event, expected)
        journal.collected.append((record.buffer, entry, complete))

    def _kind(self, name: str, known: Iterable[type] = ()) -> type[Event]:
        """Return the event class with a name: one that the codec knows, or one of the MRO of ``known``."""
        found = self.codec.class_named(name)
        others = (each for kind in known for each in kind.__mro__ if each.__name__ == name)
        kind = next(others, None) if found is None else found
        if kind is None or not issubclass(kind, Event):
            self._refuse(f"there is no event class {name}")
        return kind

    def _wait(self, record: rec.Wait) -> None:
        flight, machine = self._flight(record.k), self.machine
        kind = self._kind(record.kind)
        wait = _PastWait(kind, {}, _NOBODY)
        wait.content = int(record.key, 16)
        wait.question, wait.asks = self._event(record.q), record.asks
        wait.since, wait.due = record.since, inf if record.due is None else record.due
        wait.is_outside = record.outside
        self.waits[record.w] = wait
        if times := flight.journal.replayed.left.get(wait.content):
            times.pop(0)
        if record.asked is not None:
            asked = machine.find_question(record.asked)
            assert asked is not None
            machine.adopt_question(wait, asked)
        self.asked = (wait, record.q) if wait.asks else None
        if record.early is None:
            machine.begin_wait(flight, wait)
        else:
            machine.answer_early(flight, wait, record.early)

    def _waited(self, record: rec.Waited) -> None:
        wait = self.waits.pop(record.w)
        flight = self.machine.answered.get(wait) or self.machine.waits.get(wait)
        self.machine.end_wait(wait, is_taken=record.taken)
        if record.taken:
            assert isinstance(flight, Flight)
            flight.journal.received.append(wait)

    def _asked(self, record: rec.Asked) -> None:
        flight = self.flights.get(record.k)
        asked = self.machine.note_question(self._event(record.e), record.at)
        if flight is not None:
            flight.journal.asked = asked

    def _awaits(self, record: rec.Awaits) -> None:
        node = self.branches.get(record.b)
        if node is not None and not node.is_over:
            node.begin_tracking(node.live)

    def _cut(self, record: rec.Cut) -> None:
        node = self.branches.get(record.b)
        if node is None:
            self._refuse(f"there is no branch {record.b}")
        self.machine.cancel(node, record.why)

    def _once(self, record: rec.Once) -> None:
        once = self._flight(record.k).journal.once
        kept = KeptResult(record.v, is_failure=record.failed)
        self._flight(record.k).journal.once = {**once, record.key: kept}

    def _child(self, record: rec.Child) -> None:
        journal, key = self._flight(record.k).journal, int(record.key, 16)
        if known := journal.replayed.children.get(key):
            known.pop(0)
        child = ChildRecord(record.workflow, None, key=key)
        child.number, child.run_id = record.number, record.id
        child.saved = SavedChild(
            workflow=record.workflow,
            key=record.key,
            number=record.number,
            run_id=record.id,
            run=read_part(record.base, Snapshot),
            child=record.child,
            tail=[],
            at=record.at,
        )
        journal.children = [*journal.children, child]
        journal.child_number = max(journal.child_number, record.number)
        self.children[record.child] = self.run.saved_children[record.id] = child

    def _claimed(self, record: rec.Claimed) -> None:
        self.machine.keep_early(self._event(record.e))

    def _state(self, record: rec.State) -> None:
        self.state = apply_patch(self.state, record.p)

    def _sleep(self, record: rec.Sleep) -> None:
        journal = self._flight(record.k).journal
        if record.again:
            journal.find_sleep(record.seconds)
        journal.begin_sleep(record.seconds, record.due)

    def _woken(self, record: rec.Woken) -> None:
        journal = self._flight(record.k).journal
        journal.sleeping = {
            kept: None
            for kept in journal.sleeping
            if (kept.seconds, kept.number) != (record.seconds, record.n)
        }

    def _pub(self, record: rec.Published) -> None:
        """Mark the question as published, if the event is one; the stream has the event itself."""
        if self.asked is not None and record.e == self.asked[1]:
            self.asked[0].is_shown = True
        self.asked = None

    def _cancel(self, record: rec.Cancelled) -> None:
        self.cancelled = record

    def _end(self, record: rec.End) -> None:
        self.end = record
