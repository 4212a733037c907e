"""Runs that go on from a snapshot: its data checked, decoded, and written into a new machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import attrs

from penstock._codec import Codec, SnapshotError
from penstock._drafts import DictState
from penstock._engine.attempts import Again
from penstock._engine.failing import begin_delay
from penstock._engine.joins import Slots
from penstock._engine.lineage import Group
from penstock._engine.snapshots import FORMAT, shape_of
from penstock._retries import Attempts
from penstock._store import StateStore


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from penstock._engine.machine import Machine
    from penstock._engine.runner import Runner
    from penstock._events import Event
    from penstock._graph import Graph


#: Events in the places of a join, each with the number of its group.
Queues = list[list[tuple[Any, int]]]


@attrs.define(eq=False)
class Resumed:
    """The books that a run begins with; everything in them is decoded and checked."""

    #: The plain data that it was read from.
    data: dict[str, Any]
    elapsed: float
    sequence: int
    retried: int
    questions: int
    has_asked: bool
    early: list[Event]
    groups: list[Group]
    #: Step number, event, group number, seconds until it is due (or None).
    deliveries: list[tuple[int, Any, int, float | None]]
    slots: list[tuple[int, int, Queues]]
    unmatched: list[tuple[int, Queues]]
    collections: list[tuple[int, str, list[type[Event]], list[Event]]]

    def load(self, run: Runner, machine: Machine) -> None:
        """Write them into a new machine."""
        machine.questions = self.questions
        machine.has_asked = self.has_asked
        machine.early += self.early
        for group in self.groups:
            if group.parent is not None:
                group.parent.live += 1
            steps = machine.graph.steps
            if any(steps[join].take for join in group.joins) or (
                group.parent is not None and group.parent.track is not None
            ):
                group.begin_tracking()
        for index, key, expected, events in self.collections:
            machine.collection(index, key).fill(events, expected)
        for index, number, queues in self.slots:
            slots = machine.slots_of(machine.stations[index], self._at(number))
            slots.fill([[(e, self._at(n)) for e, n in queue] for queue in queues])
        for index, queues in self.unmatched:
            left = machine.stations[index].unmatched = Slots(machine.stations[index].step.accepts)
            left.fill([[(event, None) for event, _ in queue] for queue in queues])
        now = run.now()
        for index, event, number, due in self.deliveries:
            station, group = machine.stations[index], self._at(number)
            if type(event) is Again and event.attempts is not None:
                event.attempts.started_at += now
            if due is None:
                machine.put_in(station, event, group)
            else:
                event.due = now + due
                machine.put_aside(station, event, group)
                begin_delay(run, station, event, group)
        for group in reversed(self.groups):
            if not group.live and not group.is_over:
                machine.close_empty(group)

    def _at(self, number: int) -> Group | None:
        return self.groups[number - 1] if number else None


class _Reader:
    """Turns plain data into books; every complaint names the place."""

    def __init__(self, graph: Graph, codec: Codec) -> None:
        self._graph = graph
        self._codec = codec
        self._groups: list[Group] = []

    def read(self, data: dict[str, Any], elapsed: float, sequence: int) -> Resumed:
        slots: list[tuple[int, int, Queues]] = []
        unmatched: list[tuple[int, Queues]] = []
        deliveries: list[tuple[int, Any, int, float | None]] = []
        collections: list[tuple[int, str, list[type[Event]], list[Event]]] = []
        groups = _items(data, "groups", list, "run")
        for number, part in enumerate(groups, 1):
            self._groups.append(self._group(part, number))
        for number, part in enumerate(groups, 1):
            for name, queues in _items(part, "slots", dict, f"run.groups[{number}]", {}).items():
                slots.append((self._index(name), number, self._queues(queues, "slots")))
        for name, part in _items(data, "steps", dict, "run").items():
            index, path = self._index(name), f"run.steps.{name}"
            for entry in _items(part, "deliveries", list, path, []):
                deliveries.append(self._delivery(index, entry, f"{path}.deliveries"))
            if "slots" in part:
                slots.append((index, 0, self._queues(part["slots"], path)))
            if "unmatched" in part:
                unmatched.append((index, self._queues(part["unmatched"], path)))
            for key, found in _items(part, "collections", dict, path, {}).items():
                kinds = [self._kind(index, n, path) for n in _items(found, "expected", list, path)]
                events = [self._event(e, path) for e in _items(found, "events", list, path)]
                collections.append((index, key, kinds, events))
        return Resumed(
            data=data,
            elapsed=elapsed,
            sequence=sequence,
            retried=_items(data, "retried", int, "run"),
            questions=_items(data, "questions", int, "run"),
            has_asked=_items(data, "has_asked", bool, "run"),
            early=[self._event(e, "run.early") for e in _items(data, "early", list, "run")],
            groups=self._groups,
            deliveries=deliveries,
            slots=slots,
            unmatched=unmatched,
            collections=collections,
        )

    def _index(self, name: str) -> int:
        index = self._graph.index.get(name)
        if index is None:
            raise _fault(f"run.steps.{name}", "a step of the workflow")
        return index

    def _event(self, data: Any, path: str) -> Any:
        return self._codec.decode(data, path)

    def _kind(self, index: int, name: str, path: str) -> type[Event]:
        for kind in self._graph.steps[index].accepts:
            for known in (kind, *_subclasses(kind)):
                if known.__name__ == name:
                    return known
        raise _fault(path, f"an event class that the step takes, not {name!r}")

    def _group(self, data: Any, number: int) -> Group:
        path = f"run.groups[{number}]"
        parent = self._number(_items(data, "parent", int, path), path, below=number)
        joins = _items(data, "joins", dict, path, {})
        group = Group(
            self._groups[parent - 1] if parent else None,
            tuple(self._index(name) for name in joins),
        )
        for name, events in joins.items():
            if events is not None:
                events = [self._event(event, path) for event in _as(list, events, path)]
            group.collected[self._index(name)] = events
        if "recoveries" in data:
            counts = _items(data, "recoveries", dict, path)
            group.recoveries = {
                self._index(n): _as(int, count, path) for n, count in counts.items()
            }
        return group

    def _number(self, number: Any, path: str, *, below: int) -> int:
        if type(number) is not int or not 0 <= number < below:
            raise _fault(path, f"the number of a group before it, not {number!r}")
        return number

    def _queues(self, data: Any, path: str) -> Queues:
        return [
            [self._pair(entry, path) for entry in _as(list, queue, path)]
            for queue in _as(list, data, path)
        ]

    def _pair(self, entry: Any, path: str) -> tuple[Any, int]:
        if not isinstance(entry, list) or len(entry) != 2:  # pyright: ignore[reportUnknownArgumentType]
            raise _fault(path, "an event and the number of its group")
        event, number = entry  # pyright: ignore[reportUnknownVariableType]
        return self._event(event, path), self._number(number, path, below=len(self._groups) + 1)

    def _payload(self, index: int, data: Any, path: str) -> Any:
        step = self._graph.steps[index]
        if step.takes == "one":
            events = [event := self._event(data, path)]
        else:
            events = [self._event(part, path) for part in _as(list, data, path)]
            event = events if step.takes == "list" else tuple(events)
        for found in events:
            if not isinstance(found, step.accepts):
                raise _fault(path, f"an event that the step {step.name} takes")
        return event

    def _delivery(self, index: int, entry: Any, path: str) -> tuple[int, Any, int, float | None]:
        if isinstance(entry, list):
            if len(entry) != 2:  # pyright: ignore[reportUnknownArgumentType]
                raise _fault(path, "an event and the number of its group")
            event, number = entry  # pyright: ignore[reportUnknownVariableType]
            number = self._number(number, path, below=len(self._groups) + 1)
            return index, self._payload(index, event, path), number, None
        again = Again(self._payload(index, _items(entry, "event", object, path), path))
        group = _items(entry, "group", int, path)
        number = self._number(group, path, below=len(self._groups) + 1)
        if "attempts" in entry:
            attempts = _items(entry, "attempts", dict, path)
            try:
                again.attempts = Attempts.decode(attempts, 0.0)
            except ValueError as error:
                raise _fault(f"{path}.attempts", f"what an attempt leaves ({error})") from error
        again.seed = _items(entry, "seed", str, path, "")
        again.received = [self._event(e, path) for e in _items(entry, "received", list, path, [])]
        sent = _items(entry, "sent", dict, path, {})
        again.sent = {_as(str, name, path): _as(int, n, path) for name, n in sent.items()}
        again.spent = [_as(str, key, path) for key in _items(entry, "spent", list, path, [])]
        due = entry.get("due")
        if due is not None and (type(due) not in (int, float) or not due >= 0):
            raise _fault(path, "seconds of at least 0 as `due`")
        return index, again, number, due


def read_snapshot(
    data: Any, graph: Graph, classes: tuple[type, ...]
) -> tuple[str | None, StateStore[Any] | None, Event | None, Resumed | None]:
    """Check and decode a snapshot.

    Returns:
        The run's identifier; its state; its start event, if it had not begun; the books of a run
        that had. The latter two are None for a run that was completed.

    Raises:
        SnapshotError: It is no snapshot, of another workflow or shape, or something in it is bad.
    """
    _as(dict, data, "the snapshot")
    version = data.get("penstock")
    if type(version) is not int or not 1 <= version <= FORMAT:
        msg = (
            f"this is no snapshot that this version of penstock can read (format {version!r}); "
            f"expected the dict that handler.snapshot() returned, of format {FORMAT}"
        )
        raise SnapshotError(msg)
    _check_shape(data, graph)
    codec = graph.codec(classes)
    store: StateStore[Any] | None = None
    if data.get("state") is not None:
        state = codec.decode(data["state"], "the state")
        if graph.state_type is None and isinstance(state, dict):
            state = DictState(cast("dict[str, Any]", state))
        try:
            store = StateStore(graph.state_type, state)
        except TypeError as error:
            raise SnapshotError(str(error)) from error
    run_id = None if data.get("run_id") is None else _as(str, data["run_id"], "run_id")
    if data.get("status") in ("completed", "unstarted"):
        return run_id, store, None, None
    if "start" in data:
        start = codec.decode(data["start"], "the start event")
        if not isinstance(start, graph.start_event):
            raise _fault("start", f"the start event {graph.start_event.__name__}")
        return run_id, store, start, None
    elapsed = data.get("elapsed")
    if type(elapsed) not in (int, float) or not elapsed >= 0:
        raise _fault("elapsed", "seconds of at least 0")
    sequence = _items(data, "sequence", int, "the snapshot")
    books = _items(data, "run", dict, "the snapshot")
    return run_id, store, None, _Reader(graph, codec).read(books, elapsed, sequence)


def _check_shape(data: dict[str, Any], graph: Graph) -> None:
    before = _items(data, "shape", dict, "the snapshot")
    now = shape_of(graph)
    told: list[str] = []
    if data.get("workflow") != graph.name:
        told.append(f"it is of {data.get('workflow')!r}, and this is {graph.name!r}")
    told += [f"the step {name} is gone" for name in before if name not in now]
    told += [f"the step {name} is new" for name in now if name not in before]
    for name in before:
        if name in now and before[name] != now[name]:
            old: Mapping[str, Any] = _as(dict, before[name], f"shape.{name}")
            changed = [key for key in now[name] if old.get(key) != now[name][key]]
            told += [f"the step {name}: {_change(key, old, now[name])}" for key in changed]
    if told:
        msg = (
            f"the snapshot does not fit {graph.name}: {'; '.join(told)}; expected the workflow that "
            "it was taken of"
        )
        raise SnapshotError(msg)


def _change(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    def told(value: Any) -> str:
        return " | ".join(map(str, value)) or "nothing" if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownArgumentType]

    return f"{key} {told(new[key])}, and {key} {told(old.get(key, []))} in the snapshot"


_REQUIRED = object()


def _items(data: Any, key: str, kind: type, path: str, default: Any = _REQUIRED) -> Any:
    _as(dict, data, path)
    if key not in data:
        if default is _REQUIRED:
            raise _fault(path, f"a key {key!r}")
        return default
    return _as(kind, data[key], f"{path}.{key}")


def _as(kind: type, value: Any, path: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _fault(path, f"{kind.__name__}, not {type(value).__name__}")
    return value


def _fault(path: str, expected: str) -> SnapshotError:
    return SnapshotError(f"the snapshot is damaged at {path}; expected {expected}")


def _subclasses(kind: type) -> Iterator[type]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)
