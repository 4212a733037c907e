"""Saved runs: a snapshot checked, decoded, and put into a new machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import attrs

from sluicegate._definition.retries import Attempts
from sluicegate._engine.failures import begin_delay
from sluicegate._engine.joins import PairJoin
from sluicegate._engine.journal import ChildRecord, KeptResult, Redelivery
from sluicegate._engine.lineage import BranchNode
from sluicegate._engine.past_graph import as_it_was
from sluicegate._engine.run import time_now
from sluicegate._engine.snapshot_format import (
    FORMAT,
    Snapshot,
    StepShape,
    read_part,
    refuse,
    to_plain,
)
from sluicegate._engine.snapshot_write import shape_of, state_alone
from sluicegate._engine.step_queue import Numbered
from sluicegate._errors import RestoredError, SnapshotError, WorkflowRuntimeError, brief, brief_text
from sluicegate._events import Event, HumanResponseEvent
from sluicegate._questions import Asked
from sluicegate._state.drafts import DictState
from sluicegate._state.store import StateStore


if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Graph
    from sluicegate._definition.steps import Step
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.run import Run
    from sluicegate._engine.snapshot_format import (
        Places,
        SavedBranch,
        SavedChild,
        SavedDelivery,
        SavedProgress,
        SavedQuestion,
        SavedResult,
        SavedStep,
    )


class SavedRun:
    """The beginning of a run: a state, or a snapshot, which is checked and decoded here.

    Before there is a run, it also serves the context; see :class:`sluicegate.Context`. The
    decoded data becomes part of one run, so :meth:`take` gives it once.

    Args:
        graph: The workflow.
        classes: The classes that the data may contain, beside those that the steps name.
        data: The snapshot; None for a new state.
        drops_removed: Whether to drop values of fields that the classes no longer have.
        adapts: Whether the steps may differ from those of the snapshot where it has nothing pending.
        is_past: Whether the snapshot is only replayed, with the steps that it was made with; ``graph`` then
            has these.

    Raises:
        SnapshotError: It is no snapshot, of another workflow or shape, or something in it is bad.
    """

    __slots__ = (
        "_classes",
        "_drops_removed",
        "_is_taken",
        "arrived",
        "carrier",
        "data",
        "graph",
        "keys",
        "progress",
        "run_id",
        "start_event",
        "store",
    )

    def __init__(
        self,
        graph: Graph,
        classes: tuple[type, ...],
        data: dict[str, Any] | None,
        *,
        drops_removed: bool = False,
        adapts: bool = False,
        is_past: bool = False,
    ) -> None:
        self.graph = graph
        self._classes = classes
        self._is_taken = False
        #: The snapshot, if there is one.
        self.data = data
        #: The identifier of the run that the snapshot was taken of.
        self.run_id: str | None = None
        self.store: StateStore[Any]
        #: The event to begin with, if the run had not begun.
        self.start_event: Event | None = None
        #: The pending work, if the run had begun and not completed.
        self.progress: SavedMachine | None = None
        #: Events that came before the run began, each with the step and the question that it names.
        self.arrived: tuple[tuple[Event, str | None, str | None], ...] = ()
        #: The events that came with an id, by that: the content, and the step and question named.
        self.keys: dict[str, tuple[str, str | None, str | None]] = {}
        self.carrier: dict[str, str] = {}
        self._drops_removed = drops_removed
        if data is not None:
            found = _checked(data, graph, adapts=adapts, is_past=is_past)
            codec = graph.codec(classes, drops_removed=drops_removed)
            if is_past:
                self.graph = as_it_was(graph, found.shape, codec)
            self._read(found, codec)
        else:
            self.store = StateStore(graph.state_type)

    def _read(self, found: Snapshot, codec: Codec) -> None:
        self.store = _store(found.state, self.graph, codec)
        self.run_id, self.carrier = found.run_id, found.carrier
        if found.status in ("completed", "unstarted"):
            for name, part in (("start", found.start), ("run", found.run)):
                if part is not None:
                    refuse("status", f"another status than {found.status!r} with {name!r}")
            return
        reader = _Reader(self.graph, codec, drops_removed=self._drops_removed)
        self.arrived = tuple(
            reader.arrived(*entry, f"arrived[{number}]")
            for number, entry in enumerate(found.arrived)
        )
        self.keys = found.ids
        if found.elapsed is None or found.sequence is None:
            refuse("its top", f"the keys 'elapsed' and 'sequence' with the status {found.status!r}")
        if (found.start is None) == (found.run is None):
            refuse("its top", "either a key 'start' or a key 'run'")
        if found.run is None:
            self.start_event = reader.event(found.start, "start", self.graph.start_event)
        else:
            self.progress = reader.progress(found.run, found.elapsed, found.sequence)

    @property
    def is_running(self) -> bool:
        """Whether there is a run to continue."""
        return self.progress is not None or self.start_event is not None

    def take(self) -> None:
        """Note that a run continues from it, for which it serves once.

        Raises:
            WorkflowRuntimeError: Another run has continued from it before.
        """
        if self._is_taken:
            msg = (
                f"the run {self.run_id} was already resumed from this context; expected "
                "Context.from_dict(workflow, snapshot) again to resume it once more"
            )
            raise WorkflowRuntimeError(msg)
        self._is_taken = True

    def snapshot(self) -> dict[str, Any]:
        """Return the snapshot that it came from, or one of the state alone."""
        alone = state_alone(self.graph, self._classes, self.store)
        if self.data is not None and self.is_running:
            return {**self.data, "state": alone["state"]}
        return alone

    def publish(self, event: object) -> None:
        """Refuse to publish: there is no run yet."""
        msg = (
            f"{type(event).__name__} was published before there is a run; expected a step to do it"
        )
        raise WorkflowRuntimeError(msg)


@attrs.define(eq=False)
class SavedMachine:
    """The pending work of a run, decoded and checked; it becomes part of the machine of one run."""

    #: The structs that it was read from; a snapshot before the run begins contains them again.
    saved: SavedProgress
    elapsed: float
    sequence: int
    retried: int
    made: int
    #: How many branches have a number, and the number of the latest wait or question.
    opened: int
    asked: int
    #: The numbers of the branches; 0 for none.
    numbers: list[int]
    #: The open questions; until the run begins, the time of each is how long ago it was asked.
    questions: list[Asked]
    has_asked: bool
    early: list[Event]
    nodes: list[BranchNode]
    #: Step number, event, branch number, seconds until it is due (or None).
    deliveries: list[tuple[int, Any, int, float | None]]
    #: Step number, branch number, the events in the places of the join.
    places: list[tuple[int, int, Places]]
    unmatched: list[tuple[int, Places]]
    buffers: list[tuple[int, str, list[type[Event]], list[Event]]]
    #: The children that continue when their steps call for them, by run id, as long as these may.
    children: MutableMapping[str, ChildRecord]

    def load(self, run: Run, machine: Machine) -> None:
        """Put all of it into a new machine."""
        now = time_now(run)
        for asked in self.questions:
            asked.since += now
            machine.reopen(asked)
        machine.load_asked(self.has_asked, self.asked)
        for event in self.early:
            machine.keep_early(event)
        self._open_nodes(machine)
        if machine.journal is not None:
            machine.journal.load(self.nodes, self.numbers, self.opened)
        for index, key, expected, events in self.buffers:
            machine.buffer(index, key).fill(events, expected)
        for index, number, places in self.places:
            join = machine.pair_join_of(machine.queues[index], self._at(number))
            join.fill([[(event, self._at(n)) for event, n in queue] for queue in places])
        for index, places in self.unmatched:
            queue = machine.queues[index]
            queue.unmatched = PairJoin(queue.step.accepts)
            queue.unmatched.fill([[(event, None) for event, _ in queue] for queue in places])
        self._deliver(run, machine, time_now(run))
        for node in reversed(self.nodes):
            if not node.live and not node.is_over:
                machine.end_node(node)

    def _open_nodes(self, machine: Machine) -> None:
        steps = machine.graph.steps
        for node in self.nodes:
            if node.parent is not None:
                node.parent.live += 1
            is_inside = node.parent is not None and node.parent.cancel_record is not None
            if is_inside or node.is_held or any(steps[join].take for join in node.joins):
                node.begin_tracking()

    def _deliver(self, run: Run, machine: Machine, now: float) -> None:
        """Enqueue the deliveries, and start the timers of those that wait for their next attempt."""
        for index, event, number, due in self.deliveries:
            queue, node = machine.queues[index], self._at(number)
            if type(event) is Redelivery and event.attempts is not None:
                event.attempts.started_at += now
            if isinstance(event, Redelivery) and event.sleeping:
                event.sleeping = {
                    seconds: [now + left for left in times]
                    for seconds, times in event.sleeping.items()
                }
            if type(event) is Numbered and machine.journal is None:
                key, event = event.key, Redelivery(event.event)
                event.key = key
            if due is None:
                machine.enqueue(queue, event, node)
            else:
                delayed: Any = event
                delayed.due = now + due
                machine.load_delayed(queue, delayed, node)
                if run.nursery is not None:  # else the run is only replayed
                    begin_delay(run, queue, delayed, node)

    def _at(self, number: int) -> BranchNode | None:
        return self.nodes[number - 1] if number else None


class _Reader:
    """Decodes the parts of a snapshot; every error names the place."""

    def __init__(self, graph: Graph, codec: Codec, *, drops_removed: bool = False) -> None:
        self._graph = graph
        self._codec = codec
        self._drops_removed = drops_removed
        self._nodes: list[BranchNode] = []
        self._children: WeakValueDictionary[str, ChildRecord] = WeakValueDictionary()

    def progress(self, part: SavedProgress, elapsed: float, sequence: int) -> SavedMachine:
        """Decode the pending work of the run: branches, places of joins, then the steps."""
        for number, branch in enumerate(part.branches):
            self._nodes.append(self._node(branch, f"run.branches[{number}]"))
        found = SavedMachine(
            saved=part,
            elapsed=elapsed,
            sequence=sequence,
            retried=part.retried,
            made=part.made,
            opened=part.opened,
            asked=part.asked,
            numbers=[branch.number for branch in part.branches],
            questions=self._questions(part.questions),
            has_asked=part.has_asked,
            early=self._events(part.early, "run.early"),
            nodes=self._nodes,
            deliveries=[],
            places=[],
            unmatched=[],
            buffers=[],
            children=self._children,
        )
        for number, branch in enumerate(part.branches, 1):
            path = f"run.branches[{number - 1}].places"
            for name, places in branch.places.items():
                step = self._step(name, path, "slot")
                decoded = self._places(step, places, f"{path}.{name}")
                found.places.append((step.index, number, decoded))
        for name, pending in part.steps.items():
            self._read_step(found, self._step(name, "run.steps"), pending, f"run.steps.{name}")
        return found

    def _questions(self, parts: list[SavedQuestion]) -> list[Asked]:
        found: list[Asked] = []
        for place, part in enumerate(parts):
            path = f"run.questions[{place}]"
            event = None if part.event is None else self.event(part.event, f"{path}.event")
            if found and part.number <= found[-1].number:
                refuse(f"{path}.number", "numbers that go up from 1")
            asked = Asked(part.number, event, -part.age)
            asked.is_shown = part.shown
            if part.kind is not None:
                if part.key is None:
                    refuse(f"{path}.key", "16 hexadecimal digits, not None")
                asked.kind, asked.key = self._kind_of_answer(part.kind), int(part.key, 16)
                if part.answer is not None:
                    asked.answer = self.event(part.answer, f"{path}.answer", asked.kind)
            found.append(asked)
        return found

    def _kind_of_answer(self, name: str) -> type[Event]:
        """Return the class that a wait was for; the codec knew it when the snapshot was taken."""
        kind = self._codec.class_named(name)
        return kind if kind is not None and issubclass(kind, Event) else HumanResponseEvent

    def arrived(
        self, data: Any, target: str | None, question: str | None, path: str
    ) -> tuple[Event, str | None, str | None]:
        event: Event = self.event(data, path)
        try:
            if question is None and target is None:
                self._graph.input(type(event))
            elif question is None and target is not None:
                self._graph.target_index(event, target)
        except WorkflowRuntimeError as error:
            refuse(path, f"an event that the workflow takes ({error})")
        return event, target, question

    def _read_step(self, found: SavedMachine, step: Step, part: SavedStep, path: str) -> None:
        for number, delivery in enumerate(part.deliveries):
            place = f"{path}.deliveries[{number}]"
            event = self._delivery(step, delivery, place)
            branch = self._number(delivery.branch, f"{place}.branch")
            found.deliveries.append((step.index, event, branch, delivery.due))
        if part.places:
            places = self._places(step, part.places, f"{path}.places")
            found.places.append((step.index, 0, places))
        if part.unmatched:
            places = self._places(step, part.unmatched, f"{path}.unmatched")
            found.unmatched.append((step.index, places))
        for key, buffer in part.buffers.items():
            place = f"{path}.buffers.{brief_text(key)}"
            kinds = [self._kind(step, name, f"{place}.expected") for name in buffer.expected]
            events = self._events(buffer.events, f"{place}.events", *kinds)
            found.buffers.append((step.index, key, kinds, events))

    def _step(self, name: str, path: str, takes: str = "") -> Step:
        index = self._graph.index.get(name)
        if index is None or takes not in ("", self._graph.steps[index].takes):
            refuse(path, f"the names of {'joins' if takes else 'steps'}, not {brief(name)}")
        return self._graph.steps[index]

    def event(self, data: Any, path: str, *kinds: type[Event]) -> Any:
        event = self._codec.decode(data, path)
        if not isinstance(event, kinds or Event):
            names = " or ".join(kind.__name__ for kind in kinds or (Event,))
            refuse(path, f"an event of {names}, not a {type(event).__name__}")
        return event

    def _events(self, data: list[Any], path: str, *kinds: type[Event]) -> list[Any]:
        return [self.event(e, f"{path}[{n}]", *kinds) for n, e in enumerate(data)]

    def _kind(self, step: Step, name: Any, path: str) -> type[Event]:
        for kind in step.accepts:
            for known in (*kind.__mro__, *_subclasses(kind)):
                if known.__name__ == name and issubclass(known, Event):
                    return known
        return refuse(path, f"event classes that the step takes, not {brief(name)}")

    def _node(self, part: SavedBranch, path: str) -> BranchNode:
        """Decode a branch; its parent is one that was decoded before it."""
        parent = self._number(part.parent, f"{path}.parent")
        steps = [self._step(name, f"{path}.joins", "list") for name in part.joins]
        node = BranchNode(
            self._nodes[parent - 1] if parent else None,
            tuple(step.index for step in steps),
            is_held=part.held,
        )
        for step, events in zip(steps, part.joins.values(), strict=True):
            place = f"{path}.joins.{step.name}"
            if events is None:
                if step.take is None:
                    refuse(place, "a list of events")
                node.collected[step.index] = None
                continue
            if step.take is not None and len(events) >= step.take:
                refuse(place, f"fewer than {step.take} events")
            node.collected[step.index] = self._events(events, place, *step.accepts)
        if part.recoveries is not None:
            node.recoveries = {
                self._step(name, f"{path}.recoveries").index: count
                for name, count in part.recoveries.items()
            }
        return node

    def _number(self, number: int, path: str) -> int:
        if number > len(self._nodes):
            refuse(path, f"the number of a branch that is there, not {brief(number)}")
        return number

    def _places(self, step: Step, places: Places, path: str) -> Places:
        """Decode the places of a pair join, which must not be complete."""
        if step.takes == "slot" and len(places) == len(step.accepts):
            found = [
                [
                    self._member(*entry, f"{path}[{place}][{number}]", kind)
                    for number, entry in enumerate(queue)
                ]
                for place, (queue, kind) in enumerate(zip(places, step.accepts, strict=True))
            ]
            join: PairJoin[None] = PairJoin(step.accepts)
            join.fill([[(event, None) for event, _ in queue] for queue in found])
            if not join.is_complete:
                return found
        return refuse(path, "one list for each event that a join takes, an event lacking in them")

    def _member(self, event: Any, number: int, path: str, kind: type[Event]) -> tuple[Any, int]:
        return self.event(event, f"{path}[0]", kind), self._number(number, f"{path}[1]")

    def _payload(self, step: Step, data: Any, path: str) -> Any:
        """Decode what a step takes: an event, the list of a join, or one event for each parameter."""
        if step.takes == "one":
            return self.event(data, path, *step.accepts)
        if not isinstance(data, list):
            refuse(path, f"a list of events, not {brief(data)}")
        events = cast("list[Any]", data)
        if step.takes == "list":
            return self._events(events, path, *step.accepts)
        if len(events) != len(step.accepts):
            refuse(path, f"{len(step.accepts)} events, one of each, not {len(events)}")
        return tuple(
            self.event(event, f"{path}[{number}]", kind)
            for number, (event, kind) in enumerate(zip(events, step.accepts, strict=True))
        )

    def _delivery(self, step: Step, part: SavedDelivery, path: str) -> Any:
        """Decode a delivery; one that had begun becomes a redelivery with its journal."""
        event = self._payload(step, part.event, f"{path}.event")
        if not part.has_begun:
            return Numbered(event, part.key, 0) if part.key else event
        redelivery = Redelivery(event)
        redelivery.key, redelivery.crashes = part.key, part.crashes
        if part.attempts is not None:
            redelivery.attempts = Attempts.decode(to_plain(part.attempts), 0.0)
        redelivery.seed = part.seed
        redelivery.received = {
            int(key, 16): self._events(events, f"{path}.received.{key}")
            for key, events in part.received.items()
        }
        redelivery.left = {int(key, 16): times for key, times in part.left.items()}
        redelivery.sent = {
            int(key, 16): [self._branch(branch, f"{path}.sent.{key}") for branch in branches]
            for key, branches in part.sent.items()
        }
        redelivery.collected = [
            (key, None if events is None else self._events(events, f"{path}.collected"))
            for key, events in part.collected
        ]
        redelivery.once = {
            key: self._result(made, f"{path}.once.{brief_text(key)}")
            for key, made in part.once.items()
        }
        redelivery.slept = {seconds: over for seconds, over, _ in part.sleeps if over}
        redelivery.sleeping = {seconds: sorted(left) for seconds, _, left in part.sleeps if left}
        redelivery.child_number = part.child_number
        for number, child in enumerate(part.children):
            record = self._child(child, f"{path}.children[{number}]")
            redelivery.children.setdefault(record.key, []).append(record)
        return redelivery

    def _child(self, part: SavedChild, path: str) -> ChildRecord:
        """Check a child of a step. Its events are decoded when the step calls for it again."""
        where = part.run
        if part.status is None and (where is None or (where.start is None) == (where.run is None)):
            refuse(f"{path}.run", "where a child is that has not ended")
        if part.status in ("failed", "timed_out"):
            error = self._codec.decode(part.error, f"{path}.error")
            if not isinstance(error, RestoredError):
                refuse(f"{path}.error", f"an exception, not a {type(error).__name__}")
        record = ChildRecord(part.workflow, None, key=int(part.key, 16))
        record.number, record.run_id = part.number, part.run_id
        record.saved, record.drops_removed = part, self._drops_removed
        if part.status is None:
            self._children[part.run_id] = record
        return record

    def _result(self, part: SavedResult, path: str) -> KeptResult:
        """Check a result of ``ctx.once``, and encode it again with the present classes."""
        value = self._codec.decode(part.value, path)
        if part.is_failure and not isinstance(value, RestoredError):
            refuse(path, f"an exception, not a {type(value).__name__}")
        return KeptResult(self._codec.encode(value, path), is_failure=part.is_failure)

    def _branch(self, branch: int | str | None, path: str) -> BranchNode | None:
        """Decode a reference to a branch: its number, or why it was cancelled, or None if it has ended."""
        if branch is None:
            return None
        if isinstance(branch, str):
            cancelled = BranchNode(None, (), is_held=True)
            cancelled.begin_tracking().reason = branch
            cancelled.is_over = True
            return cancelled
        number = self._number(branch, path)
        if not number or not self._nodes[number - 1].is_held:
            refuse(path, "the number of a branch that is held")
        return self._nodes[number - 1]


def _checked(data: Any, graph: Graph, *, adapts: bool, is_past: bool) -> Snapshot:
    """Return a snapshot in its structs, if it is of this format and of this workflow."""
    version = cast("dict[str, Any]", data).get("sluicegate") if isinstance(data, dict) else None
    if type(version) is not int or version != FORMAT:
        msg = (
            f"this is no snapshot that this version of sluicegate can read (format {brief(version)}); "
            f"expected the dict that handler.snapshot() returned, of format {FORMAT}"
        )
        raise SnapshotError(msg)
    found = read_part(cast("dict[str, Any]", data), Snapshot)
    before, now = found.shape, shape_of(graph)
    differences: list[str] = []
    if found.workflow != graph.name:
        differences.append(f"it is of {brief(found.workflow)}, and this is {graph.name!r}")
    needed = [] if is_past else pending_steps(found) if adapts else [*before]
    why = ", and the run has something pending there" if adapts else ""
    differences += [
        f"the step {brief_text(name)} is gone{why}" for name in needed if name not in now
    ]
    if not (adapts or is_past):
        differences += [f"the step {name} is new" for name in now if name not in before]
    for name in before:
        if name in now and name in needed:
            changes = zip(_shown(before[name]), _shown(now[name]), strict=True)
            if adapts:  # its input is checked with its events; its output may differ
                changes = zip(*(_shown(each[name])[1:3] for each in (before, now)), strict=True)
            differences += [
                f"the step {name} {verb} {new}, and {verb} {old} in the snapshot"
                for (verb, old), (_, new) in changes
                if old != new
            ]
    if differences:
        msg = (
            f"the snapshot does not fit {graph.name}: {'; '.join(differences)}; expected the "
            f"workflow that it was taken of{', or one that has these steps as they were' * adapts}"
        )
        raise SnapshotError(msg)
    return found


def pending_steps(found: Snapshot) -> list[str]:
    """Return the steps at which a snapshot has something pending."""
    run = found.run
    if run is None:
        return []
    steps = set(run.steps)
    for branch in run.branches:
        steps.update(branch.joins, branch.places, branch.recoveries or ())
    return sorted(steps)


_WAYS = {"one": "one event at a time", "list": "a list of events", "slot": "one event of each"}


def _shown(shape: StepShape) -> list[tuple[str, str]]:
    """Return what a step takes and makes, in words."""
    takes, makes, items = (
        brief_text(" | ".join(names)) or "nothing"
        for names in (shape.takes, shape.makes, shape.fans_out)
    )
    return [
        ("takes", takes),
        ("takes", _WAYS[shape.way]),
        ("takes", "all" if shape.first is None else f"the first {shape.first}"),
        ("makes", makes),
        ("makes", f"list[{items}]" if shape.fans_out else items),
    ]


def _store(data: Any, graph: Graph, codec: Codec) -> StateStore[Any]:
    if data is None:
        return StateStore(graph.state_type)
    state = codec.decode(data, "the state")
    if graph.state_type is None and isinstance(state, dict):
        state = DictState(cast("dict[str, Any]", state))
    try:
        return StateStore(graph.state_type, state, is_restored=True)
    except TypeError as error:
        refuse("state", f"a state of the workflow ({error})")


def _subclasses(kind: type) -> Iterator[type]:
    sub: type
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)
