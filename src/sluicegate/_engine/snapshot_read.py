"""Runs that go on from a snapshot: its data checked, decoded, and written into a new machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs

from sluicegate._definition.retries import Attempts
from sluicegate._engine.failures import begin_delay
from sluicegate._engine.joins import PairJoin
from sluicegate._engine.journal import Redelivery
from sluicegate._engine.lineage import BranchNode
from sluicegate._engine.snapshot_write import FORMAT, shape_of
from sluicegate._errors import SnapshotError, WorkflowRuntimeError, brief, brief_text
from sluicegate._events import Event, HumanResponseEvent
from sluicegate._questions import Asked
from sluicegate._state.drafts import DictState
from sluicegate._state.store import StateStore


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Graph
    from sluicegate._definition.steps import Step
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.runner import Runner


#: Events in the places of a join, each with the number of its group.
Queues = list[list[tuple[Any, int]]]

#: Events that came before the run had begun, each with the step and the question that it names.
Arrived = tuple[tuple[Event, str | None, str | None], ...]


@attrs.define(eq=False)
class Resumed:
    """The books that a run begins with; everything in them is decoded and checked.

    They are for one run: what is in them becomes a part of its machine.
    """

    #: The plain data that it was read from.
    data: dict[str, Any]
    elapsed: float
    sequence: int
    retried: int
    #: The open questions; until the run begins, the time of each is how long ago it was asked.
    questions: list[Asked]
    has_asked: bool
    early: list[Event]
    nodes: list[BranchNode]
    #: Step number, event, group number, seconds until it is due (or None).
    deliveries: list[tuple[int, Any, int, float | None]]
    slots: list[tuple[int, int, Queues]]
    unmatched: list[tuple[int, Queues]]
    collections: list[tuple[int, str, list[type[Event]], list[Event]]]

    def load(self, run: Runner, machine: Machine) -> None:
        """Write them into a new machine."""
        now = run.now()
        for asked in self.questions:
            asked.since += now
            machine.reopen(asked)
        machine.has_asked = self.has_asked
        for event in self.early:
            machine.keep_early(event)
        self._open_nodes(machine)
        for index, key, expected, events in self.collections:
            machine.buffer(index, key).fill(events, expected)
        for index, number, queues in self.slots:
            slots = machine.pair_join_of(machine.queues[index], self._at(number))
            slots.fill([[(event, self._at(n)) for event, n in queue] for queue in queues])
        for index, queues in self.unmatched:
            left = machine.queues[index].unmatched = PairJoin(machine.queues[index].step.accepts)
            left.fill([[(event, None) for event, _ in queue] for queue in queues])
        self._deliver(run, machine, run.now())
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

    def _deliver(self, run: Runner, machine: Machine, now: float) -> None:
        for index, event, number, due in self.deliveries:
            queue, node = machine.queues[index], self._at(number)
            if type(event) is Redelivery and event.attempts is not None:
                event.attempts.started_at += now
            if due is None:
                machine.enqueue(queue, event, node)
            else:
                event.due = now + due
                machine.load_delayed(queue, event, node)
                begin_delay(run, queue, event, node)

    def _at(self, number: int) -> BranchNode | None:
        return self.nodes[number - 1] if number else None


@attrs.define(eq=False)
class Found:
    """What a snapshot holds: a state, and, unless the run was over, a start event or books."""

    run_id: str | None = None
    store: StateStore[Any] | None = None
    start_event: Event | None = None
    resumed: Resumed | None = None
    arrived: Arrived = ()
    #: The events that came with an id, by that: the content, and the step and question named.
    keys: dict[str, tuple[str, str | None, str | None]] = attrs.field(
        factory=dict[str, tuple[str, str | None, str | None]]
    )


class _Reader:
    """Turns plain data into books; every complaint names the place."""

    def __init__(self, graph: Graph, codec: Codec) -> None:
        self._graph = graph
        self._codec = codec
        self._nodes: list[BranchNode] = []

    def read(self, data: Any, elapsed: float, sequence: int) -> Resumed:
        parts = _parts(data, "run", "retried questions has_asked early steps groups")
        slots: list[tuple[int, int, Queues]] = []
        nodes = _as(list, parts["groups"], "run.groups")
        for number, part in enumerate(nodes, 1):
            self._nodes.append(self._node(part, number))
        for number, part in enumerate(nodes, 1):
            path = f"run.groups[{number}].slots"
            for name, queues in _as(dict, part.get("slots", {}), path).items():
                step = self._step(name, path, "slot")
                slots.append((step.index, number, self._queues(step, queues, f"{path}.{name}")))
        made = Resumed(
            data=data,
            elapsed=elapsed,
            sequence=sequence,
            retried=_count(parts["retried"], "run.retried"),
            questions=self._questions(parts["questions"]),
            has_asked=_as(bool, parts["has_asked"], "run.has_asked"),
            early=self._events(parts["early"], "run.early"),
            nodes=self._nodes,
            deliveries=[],
            slots=slots,
            unmatched=[],
            collections=[],
        )
        for name, part in _as(dict, parts["steps"], "run.steps").items():
            self._read_step(made, self._step(name, "run.steps"), part, f"run.steps.{name}")
        return made

    def _questions(self, data: Any) -> list[Asked]:
        if type(data) is int:  # a snapshot of before the questions had names
            if data > _MOST_UNNAMED:
                _refuse("run.questions", f"at most {_MOST_UNNAMED} questions, not {brief(data)}")
            return [Asked(n, None, 0.0) for n in range(1, _count(data, "run.questions") + 1)]
        found: list[Asked] = []
        for place, entry in enumerate(_as(list, data, "run.questions")):
            path = f"run.questions[{place}]"
            parts = _parts(entry, path, "number age", "event kind key")
            event = self._event(parts["event"], f"{path}.event") if "event" in parts else None
            number = _count(parts["number"], f"{path}.number")
            if number <= (found[-1].number if found else 0):
                _refuse(f"{path}.number", "numbers that go up from 1")
            asked = Asked(number, event, -_seconds(parts["age"], f"{path}.age"))
            if "kind" in parts:
                asked.kind = self._kind_of_answer(_as(str, parts["kind"], f"{path}.kind"))
                key = _as(str, parts.get("key"), f"{path}.key")
                if not _CONTENT.fullmatch(key):
                    _refuse(f"{path}.key", f"16 hexadecimal digits, not {brief(key, 60)}")
                asked.key = int(key, 16)
            found.append(asked)
        return found

    def _kind_of_answer(self, name: str) -> type[Event]:
        """Return the class that a wait was for, as far as the workflow shows it."""
        known: list[type] = [HumanResponseEvent, *self._graph.acceptors]
        known += [kind for kinds in self._graph.awaited for kind in kinds]
        for base in known:
            kinds: list[type] = [base, *_subclasses(base)]
            for kind in kinds:
                if kind.__name__ == name and issubclass(kind, Event):
                    return kind
        return HumanResponseEvent

    def read_ids(self, data: Any) -> dict[str, tuple[str, str | None, str | None]]:
        found: dict[str, tuple[str, str | None, str | None]] = {}
        for key, entry in _as(dict, data, "ids").items():
            path = f"ids[{brief(key, 60)}]"
            content, *named = _items(entry, path, "a content, a step and a question, or null", 3)
            target, question = (None if name is None else _as(str, name, path) for name in named)
            found[key] = _as(str, content, path), target, question
        return found

    def read_start(self, data: Any) -> Event:
        event: Event = self._event(data, "start", self._graph.start_event)
        return event

    def read_all_arrived(self, data: Any) -> Arrived:
        found = [
            self.read_arrived(entry, f"arrived[{number}]")
            for number, entry in enumerate(_as(list, data, "arrived"))
        ]
        for number, entry in enumerate(found):
            self.check_arrived(*entry, f"arrived[{number}]")
        return tuple(found)

    def read_arrived(self, data: Any, path: str) -> tuple[Event, str | None, str | None]:
        parts = _as(list, data, path)
        if len(parts) not in (2, 3):
            _refuse(
                path, "a list of an event, the name of a step and the id of a question, or null"
            )
        event: Event = self._event(parts[0], path)
        target: str | None = None if parts[1] is None else _as(str, parts[1], path)
        question = None if parts[2:] in ([], [None]) else _as(str, parts[2], path)
        return event, target, question

    def check_arrived(
        self, event: Event, target: str | None, question: str | None, path: str
    ) -> None:
        if question is not None:
            return
        try:
            if target is None:
                self._graph.input(type(event))
            else:
                self._graph.target_index(event, _as(str, target, path))
        except WorkflowRuntimeError as error:
            _refuse(path, f"an event that the workflow takes ({error})")

    def _read_step(self, made: Resumed, step: Step, data: Any, path: str) -> None:
        parts = _parts(data, path, "", "deliveries slots unmatched collections")
        for number, entry in enumerate(_as(list, parts.get("deliveries", []), path)):
            made.deliveries.append(self._delivery(step, entry, f"{path}.deliveries[{number}]"))
        if "slots" in parts:
            made.slots.append((step.index, 0, self._queues(step, parts["slots"], f"{path}.slots")))
        if "unmatched" in parts:
            queues = self._queues(step, parts["unmatched"], f"{path}.unmatched")
            made.unmatched.append((step.index, queues))
        for key, found in _as(dict, parts.get("collections", {}), f"{path}.collections").items():
            place = f"{path}.collections[{brief(key, 60)}]"
            buffer = _parts(found, place, "expected events")
            names = _as(list, buffer["expected"], f"{place}.expected")
            if not names:
                _refuse(f"{place}.expected", "the names of event classes")
            kinds = [self._kind(step, name, f"{place}.expected") for name in names]
            events = self._events(buffer["events"], f"{place}.events", *kinds)
            made.collections.append((step.index, key, kinds, events))

    def _step(self, name: Any, path: str, takes: str = "") -> Step:
        index = self._graph.index.get(name) if isinstance(name, str) else None
        if index is None or takes not in ("", self._graph.steps[index].takes):
            _refuse(path, f"the names of {'joins' if takes else 'steps'}, not {brief(name)}")
        return self._graph.steps[index]

    def _event(self, data: Any, path: str, *kinds: type[Event]) -> Any:
        event = self._codec.decode(data, path)
        if not isinstance(event, kinds or Event):
            names = " or ".join(kind.__name__ for kind in kinds or (Event,))
            _refuse(path, f"an event of {names}, not a {type(event).__name__}")
        return event

    def _events(self, data: Any, path: str, *kinds: type[Event]) -> list[Any]:
        parts = enumerate(_as(list, data, path))
        return [self._event(part, f"{path}[{number}]", *kinds) for number, part in parts]

    def _kind(self, step: Step, name: Any, path: str) -> type[Event]:
        for kind in step.accepts:
            for known in (*kind.__mro__, *_subclasses(kind)):
                if known.__name__ == name and issubclass(known, Event):
                    return known
        return _refuse(path, f"event classes that the step takes, not {brief(name)}")

    def _node(self, data: Any, number: int) -> BranchNode:
        path = f"run.groups[{number}]"
        parts = _parts(data, path, "parent", "joins slots held recoveries")
        parent = self._number(parts["parent"], f"{path}.parent")
        joins = _as(dict, parts.get("joins", {}), f"{path}.joins")
        steps = [self._step(name, f"{path}.joins", "list") for name in joins]
        node = BranchNode(
            self._nodes[parent - 1] if parent else None,
            tuple(step.index for step in steps),
            is_held=_as(bool, parts.get("held", False), f"{path}.held"),
        )
        for step, events in zip(steps, joins.values(), strict=True):
            if events is not None:
                place = f"{path}.joins.{step.name}"
                events = self._events(events, place, *step.accepts)
                if step.take is not None and len(events) >= step.take:
                    _refuse(place, f"fewer than {step.take} events")
            elif step.take is None:
                _refuse(f"{path}.joins.{step.name}", "a list of events")
            node.collected[step.index] = events
        if "recoveries" in parts:
            counts = _as(dict, parts["recoveries"], f"{path}.recoveries")
            node.recoveries = {
                self._step(name, f"{path}.recoveries").index: _count(n, f"{path}.recoveries.{name}")
                for name, n in counts.items()
            }
        return node

    def _number(self, number: Any, path: str) -> int:
        if type(number) is not int or not 0 <= number <= len(self._nodes):
            _refuse(path, f"the number of a group that is there, not {brief(number)}")
        return number

    def _queues(self, step: Step, data: Any, path: str) -> Queues:
        queues = _as(list, data, path)
        if step.takes != "slot" or len(queues) != len(step.accepts):
            _refuse(path, "one list for each event that a join takes, an event lacking in them")
        kept = [
            [
                self._pair(entry, f"{path}[{place}][{number}]", kind)
                for number, entry in enumerate(_as(list, queue, f"{path}[{place}]"))
            ]
            for place, (queue, kind) in enumerate(zip(queues, step.accepts, strict=True))
        ]
        slots: PairJoin[None] = PairJoin(step.accepts)
        slots.fill([[(event, None) for event, _ in queue] for queue in kept])
        if slots.is_complete:
            _refuse(path, "one list for each event that a join takes, an event lacking in them")
        return kept

    def _pair(self, entry: Any, path: str, kind: type[Event]) -> tuple[Any, int]:
        event, number = _items(entry, path, "an event and the number of its group")
        return self._event(event, f"{path}[0]", kind), self._number(number, f"{path}[1]")

    def _payload(self, step: Step, data: Any, path: str) -> Any:
        if step.takes == "one":
            return self._event(data, path, *step.accepts)
        if step.takes == "list":
            return self._events(data, path, *step.accepts)
        parts = _as(list, data, path)
        if len(parts) != len(step.accepts):
            _refuse(path, f"{len(step.accepts)} events, one of each, not {len(parts)}")
        return tuple(
            self._event(part, f"{path}[{number}]", kind)
            for number, (part, kind) in enumerate(zip(parts, step.accepts, strict=True))
        )

    def _delivery(self, step: Step, entry: Any, path: str) -> tuple[int, Any, int, float | None]:
        if isinstance(entry, list):
            event, number = _items(entry, path, "an event and the number of its group")
            payload = self._payload(step, event, f"{path}[0]")
            return step.index, payload, self._number(number, f"{path}[1]"), None
        optional = "due seed attempts received left sent collected"
        parts = _parts(entry, path, "event group", optional)
        redelivery = Redelivery(self._payload(step, parts["event"], f"{path}.event"))
        number = self._number(parts["group"], f"{path}.group")
        if "attempts" in parts:
            redelivery.attempts = _attempts(parts["attempts"], f"{path}.attempts")
        redelivery.seed = _as(str, parts.get("seed", ""), f"{path}.seed")
        redelivery.received = {
            key: self._events(events, place)
            for key, events, place in _by_content(parts, "received", path)
        }
        redelivery.left = {
            key: [_seconds(left, place) for left in times]
            for key, times, place in _by_content(parts, "left", path)
        }
        redelivery.sent = {
            key: [self._branch(branch, place) for branch in branches]
            for key, branches, place in _by_content(parts, "sent", path)
        }
        for found in _as(list, parts.get("collected", []), f"{path}.collected"):
            key, events = _items(found, f"{path}.collected", "a buffer and its events, or null")
            if events is not None:
                events = self._events(events, f"{path}.collected")
            redelivery.collected.append((_as(str, key, f"{path}.collected"), events))
        due = parts.get("due")
        return step.index, redelivery, number, None if due is None else _seconds(due, f"{path}.due")

    def _branch(self, branch: Any, path: str) -> BranchNode | None:
        if branch is None:
            return None
        if isinstance(branch, str):
            cancelled = BranchNode(None, (), is_held=True)
            cancelled.begin_tracking().reason = branch
            cancelled.is_over = True
            return cancelled
        number = self._number(branch, path)
        if not number or not self._nodes[number - 1].is_held:
            _refuse(path, "the number of a group that is held")
        return self._nodes[number - 1]


def read_snapshot(
    data: Any, graph: Graph, classes: tuple[type, ...], *, drops_removed: bool = False
) -> Found:
    """Check and decode a snapshot; fields that are gone are refused, or left out.

    Raises:
        SnapshotError: It is no snapshot, of another workflow or shape, or something in it is bad.
    """
    _as(dict, data, "its top")
    version = data.get("sluicegate")
    if type(version) is not int or version != FORMAT:
        msg = (
            f"this is no snapshot that this version of sluicegate can read (format {brief(version)}); "
            f"expected the dict that handler.snapshot() returned, of format {FORMAT}"
        )
        raise SnapshotError(msg)
    _check_shape(data, graph)
    known = "run_id elapsed sequence arrived start run ids"
    parts = _parts(data, "its top", "sluicegate workflow shape status state", known)
    codec = graph.codec(classes, drops_removed=drops_removed)
    found = Found(store=_store(parts["state"], graph, codec))
    if parts.get("run_id") is not None:
        found.run_id = _as(str, parts["run_id"], "run_id")
    if parts["status"] in ("completed", "unstarted"):
        for name in ("start", "run"):
            if name in parts:
                _refuse(
                    "status", f"another status than {brief(parts['status'])} with {brief(name)}"
                )
        return found
    if parts["status"] not in ("running", "idle", "failed", "timed_out", "cancelled"):
        _refuse("status", f"the status of a run, not {brief(parts['status'])}")
    reader = _Reader(graph, codec)
    found.arrived = reader.read_all_arrived(parts.get("arrived", []))
    found.keys = reader.read_ids(parts.get("ids", {}))
    elapsed = _seconds(parts.get("elapsed"), "elapsed")
    sequence = _count(parts.get("sequence"), "sequence")
    if ("start" in parts) == ("run" in parts):
        _refuse("its top", "either a key 'start' or a key 'run'")
    if "start" in parts:
        found.start_event = reader.read_start(parts["start"])
    else:
        found.resumed = reader.read(parts["run"], elapsed, sequence)
    return found


def _store(data: Any, graph: Graph, codec: Codec) -> StateStore[Any] | None:
    if data is None:
        return None
    state = codec.decode(data, "the state")
    if graph.state_type is None and isinstance(state, dict):
        state = DictState(cast("dict[str, Any]", state))
    try:
        return StateStore(graph.state_type, state, is_restored=True)
    except TypeError as error:
        _refuse("state", f"a state of the workflow ({error})")


def _check_shape(data: dict[str, Any], graph: Graph) -> None:
    before = _as(dict, data.get("shape"), "shape")
    now = shape_of(graph)
    told: list[str] = []
    if data.get("workflow") != graph.name:
        told.append(f"it is of {brief(data.get('workflow'))}, and this is {graph.name!r}")
    told += [f"the step {_word(name)} is gone" for name in before if name not in now]
    told += [f"the step {name} is new" for name in now if name not in before]
    for name in before:
        if name in now and before[name] != now[name]:
            old: Mapping[str, Any] = _as(dict, before[name], f"shape.{name}")
            changed = [key for key in now[name] if old.get(key) != now[name][key]]
            if not changed:
                _refuse(f"shape.{name}", f"the keys {', '.join(now[name])}")
            told += [f"the step {name} {_change(key, old, now[name])}" for key in changed]
    if told:
        msg = (
            f"the snapshot does not fit {graph.name}: {'; '.join(told)}; expected the workflow that "
            "it was taken of"
        )
        raise SnapshotError(msg)


#: How a difference is told, by its key: what the step does.
_VERBS = {"takes": "takes", "as": "takes", "first": "takes", "makes": "makes", "fans out": "makes"}


def _change(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    verb = _VERBS[key]
    return (
        f"{verb} {_told(key, new.get(key))}, and {verb} {_told(key, old.get(key))} in the snapshot"
    )


def _word(value: object) -> str:
    return value if isinstance(value, str) else brief(value)


def _told(key: str, value: Any) -> str:
    if isinstance(value, list):
        names = brief_text(" | ".join(map(_word, cast("list[Any]", value)))) or "nothing"
        return f"list[{names}]" if key == "fans out" and value else names
    if key == "first":
        return "all" if value is None else f"the first {brief(value)}"
    ways = {"one": "one event at a time", "list": "a list of events", "slot": "one event of each"}
    return ways.get(value, brief(value)) if isinstance(value, str) else brief(value)


def _parts(data: Any, path: str, required: str, optional: str = "") -> dict[str, Any]:
    """Check which keys an object has."""
    _as(dict, data, path)
    needed, known = required.split(), [*required.split(), *optional.split()]
    for name in needed:
        if name not in data:
            _refuse(path, f"a key {brief(name)}")
    for name in data:
        if name not in known:
            _refuse(path, f"no other keys than {', '.join(known)}, not {brief(name)}")
    return cast("dict[str, Any]", data)


def _items(data: Any, path: str, expected: str, count: int = 2) -> list[Any]:
    if not isinstance(data, list) or len(cast("list[Any]", data)) != count:
        _refuse(path, f"a list of {expected}")
    return cast("list[Any]", data)


def _as(kind: type, value: Any, path: str) -> Any:
    if type(value) is not kind:
        _refuse(path, f"a value of type {kind.__name__}, not {type(value).__name__}")
    return value


def _count(value: Any, path: str) -> int:
    if type(value) is not int or value < 0:
        _refuse(path, f"a number of at least 0, not {brief(value)}")
    return value


def _by_content(
    parts: dict[str, Any], name: str, path: str
) -> Iterator[tuple[int, list[Any], str]]:
    """Yield the number of each content, the list that belongs to it, and the place of that."""
    for key, values in _as(dict, parts.get(name, {}), f"{path}.{name}").items():
        if not (isinstance(key, str) and _CONTENT.fullmatch(key)):
            _refuse(f"{path}.{name}", f"16 hexadecimal digits for each content, not {key!r}")
        yield int(key, 16), _as(list, values, f"{path}.{name}.{key}"), f"{path}.{name}.{key}"


#: More questions than an older snapshot has.
_MOST_UNNAMED = 100_000

_CONTENT = re.compile("[0-9a-f]{16}")


def _seconds(value: Any, path: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _LONGEST:
        _refuse(path, f"seconds of at least 0, not {brief(value)}")
    return float(value)


#: More seconds than any run takes, and few enough to be added to a time.
_LONGEST = 1e12


def _attempts(data: Any, path: str) -> Attempts:
    try:
        attempts = Attempts.decode(_parts(data, path, "elapsed idle count failures"), 0.0)
    except ValueError as error:
        _refuse(path, f"what an attempt leaves ({error})")
    _seconds(-attempts.started_at, f"{path}.elapsed")
    _seconds(attempts.idle, f"{path}.idle")
    _count(attempts.count, f"{path}.count")
    for number, failure in enumerate(attempts.failures):
        _count(failure.attempt, f"{path}.failures[{number}]")
        _seconds(failure.at, f"{path}.failures[{number}]")
    return attempts


def _refuse(path: str, expected: str) -> NoReturn:
    msg = f"the snapshot is damaged at {brief_text(path)}; expected {brief_text(expected, 400)}"
    raise SnapshotError(msg)


def _subclasses(kind: type) -> Iterator[type]:
    sub: type
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)
