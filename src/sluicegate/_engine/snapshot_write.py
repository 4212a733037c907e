"""Snapshots: the books of a run as plain JSON data."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, cast

from sluicegate._engine.journal import InFlight, Redelivery, copy_lists
from sluicegate._engine.lineage import meeting_point
from sluicegate._errors import SnapshotError
from sluicegate._state.drafts import DictState


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Graph
    from sluicegate._definition.steps import Step
    from sluicegate._engine.joins import PairJoin
    from sluicegate._engine.journal import KeyOf
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.runner import Runner
    from sluicegate._engine.step_queue import StepQueue
    from sluicegate._engine.waits import Wait
    from sluicegate._events import Event
    from sluicegate._state.store import StateStore


#: The version of the format; older ones are read, newer ones are refused.
FORMAT = 2


def take_snapshot(run: Runner) -> dict[str, Any]:
    """Read a run off its books; see :meth:`sluicegate.WorkflowHandler.snapshot`.

    Raises:
        SnapshotError: Something cannot be kept; the message names its path.
    """
    codec = run.graph.codec(run.options.classes)
    data: dict[str, Any] = {
        **head(run.graph),
        "run_id": run.run_id,
        "status": run.outcome.status or ("idle" if run.is_idle else "running"),
        "elapsed": run.time_taken(),
        "sequence": run.log.next - 1,
        "state": None,
    }
    if run.state_store is not None:
        data["state"] = _encode_state(codec, run.state_store)
    if run.outcome.status == "completed":
        return data
    if run.early:
        data["arrived"] = [
            [codec.encode(event, "an event that came early"), target, question]
            for event, target, question in run.early
        ]
    if run.keys:
        data["ids"] = {key: list(known) for key, known in run.keys.items()}
    if run.start_event is not None:
        data["start"] = codec.encode(run.start_event, "the start event")
    elif run.resumed is not None:
        data["run"] = run.resumed.data
    else:
        _, machine = run.live()
        working = [InFlight.of(worker) for worker in run.workers if worker.step is not None]
        working = [*(run.in_flight or ()), *working]
        writer = _Writer(codec, machine, run, has_unwound=bool(run.outcome.status))
        writer.note_working(working)
        books = writer.write()
        data["run"] = {"retried": run.retried, **books}
    return data


def state_alone(graph: Graph, classes: tuple[type, ...], store: StateStore[Any]) -> dict[str, Any]:
    """Return a snapshot of a state that no run has used yet."""
    state = _encode_state(graph.codec(classes), store)
    return {**head(graph), "status": "unstarted", "state": state}


def _encode_state(codec: Codec, store: StateStore[Any]) -> Any:
    state = store.snapshot_state()
    return codec.encode(state.to_dict() if isinstance(state, DictState) else state, "the state")


def head(graph: Graph) -> dict[str, Any]:
    """Return what says of which workflow a snapshot is."""
    return {"sluicegate": FORMAT, "workflow": graph.name, "shape": shape_of(graph)}


def shape_of(graph: Graph) -> dict[str, Any]:
    """Return the steps of a workflow, as far as a snapshot depends on them."""
    return {step.name: _shape_of_step(step) for step in graph.steps}


def _shape_of_step(step: Step) -> dict[str, Any]:
    return {
        "takes": [kind.__name__ for kind in step.accepts],
        "as": step.takes,
        "first": step.take,
        "makes": sorted(kind.__name__ for kind in step.returns),
        "fans out": sorted(kind.__name__ for kind in step.fans_out),
    }


class _Writer:
    """Turns the books of one run into plain data."""

    def __init__(self, codec: Codec, machine: Machine, run: Runner, *, has_unwound: bool) -> None:
        self._codec = codec
        self._machine = machine
        self._run = run
        self._now = run.now()
        self._has_unwound = has_unwound
        #: What the steps are at, by step. Those of cancelled branches do not begin again.
        self._working: dict[int, list[tuple[InFlight, Redelivery]]] = {}
        #: The deliveries that wait, by step.
        self._waiting: dict[int, list[tuple[Any, BranchNode | None]]] = {}
        #: The branches that a step gets back when it begins again.
        self._held: set[BranchNode] = set()
        #: The groups of cancelled deliveries, which are counted until they have unwound.
        self._unwinding: list[BranchNode] = []
        #: The groups met so far, each with its number.
        self._numbers: dict[BranchNode, int] = {}
        self._nodes: list[dict[str, Any]] = []

    def note_working(self, working: Iterable[InFlight]) -> None:
        """Take note of the invocations that are under way, and are to begin again."""
        #: Answers that have come and were not taken yet, by the journal of who waits.
        answers: dict[int, list[Wait]] = {}
        for wait, context in self._machine.answered.items():
            assert wait.event is not None
            answers.setdefault(id(cast("Any", context)._journal), []).append(wait)
        timed: dict[int, list[Wait]] = {}
        for wait, context in self._machine.waits.items():
            if wait.due != inf:
                timed.setdefault(id(cast("Any", context)._journal), []).append(wait)
        key_of = self._codec.content_key
        for item in working:
            if item.node is None or not item.node.is_cancelled:
                redelivery = _redelivery_of(item, key_of, has_unwound=self._has_unwound)
                for wait in answers.get(id(item.journal), ()):
                    assert wait.event is not None
                    redelivery.received.setdefault(wait.content_key(key_of), []).append(wait.event)
                for wait in timed.get(id(item.journal), ()):
                    left = max(wait.due - self._now, 0.0)
                    redelivery.left.setdefault(wait.content_key(key_of), []).append(left)
                self._hold(redelivery)
                self._working.setdefault(item.step.index, []).append((item, redelivery))
            else:
                self._unwinding.append(item.node)

    def _hold(self, redelivery: Redelivery) -> None:
        branches = (branch for same in redelivery.sent.values() for branch in same)
        self._held.update(branch for branch in branches if branch and not branch.is_over)

    def write(self) -> dict[str, Any]:
        machine = self._machine
        for kind in {wait.kind for wait in machine.waits}:
            self._codec.require(kind)  # or only the snapshot after the answer would tell
        for queue in machine.queues:  # before any group is written
            waiting = self._waiting[queue.index] = list(_waiting(queue))
            for event, node in (*waiting, *(queue.delayed or {}).items()):
                if type(event) is Redelivery:
                    self._hold(event)
                if node is not None and node.is_cancelled:
                    self._unwinding.append(node)
        steps = {s.step.name: self._queue(s) for s in machine.queues}
        for cancelled in self._unwinding:
            # The fan-out around it may have nothing else left, and is not to be forgotten.
            around: BranchNode | None = cancelled
            while around is not None and around.is_cancelled:
                around = around.parent
            self._node(around)
        return {
            "questions": [self._question(*found) for found in self._open_questions()],
            "has_asked": machine.has_asked,
            "early": self._events(machine.early, "an early answer"),
            "steps": {name: data for name, data in steps.items() if data},
            "groups": self._nodes,
        }

    def _open_questions(self) -> list[tuple[int, Event | None, float, type[Event] | None, int]]:
        """Return the open questions: number, event, when, and what the wait is for, if one is."""
        machine = self._machine
        found = [
            (asked.number, asked.event, asked.since, asked.kind, asked.key)
            for asked in machine.open_questions
            if asked.answer is None
        ]
        found += [
            (wait.number, wait.shown, wait.since, wait.kind, self._run.content_of(wait))
            for wait in (*machine.waits, *machine.unended)
            if wait.is_outside or wait.asks
        ]
        return sorted(found, key=lambda question: question[0])

    def _question(
        self, number: int, event: Event | None, since: float, kind: type[Event] | None, key: int
    ) -> dict[str, Any]:
        data: dict[str, Any] = {"number": number, "age": max(self._now - since, 0.0)}
        if event is not None:
            with suppress(SnapshotError):  # the step that asks it again has it
                data["event"] = self._codec.encode(event, "a question")
        if kind is not None:
            data |= {"kind": kind.__name__, "key": f"{key:016x}"}
        return data

    def _events(self, events: Iterable[Event], path: str) -> list[Any]:
        encode = self._codec.encode
        return [encode(event, path) for event in events]

    def _node(self, node: BranchNode | None) -> int:
        """Return the number of a group, 0 for none; it is written when it is first met."""
        while node is not None and not (
            node.joins or node.recoveries is not None or node in self._held
        ):
            node = node.parent
        if node is None:
            return 0
        number = self._numbers.get(node)
        if number is None:
            parent = self._node(node.parent)
            steps = self._machine.graph.steps
            data: dict[str, Any] = {"parent": parent}
            if node.joins:
                data["joins"] = {
                    steps[join].name: None if events is None else self._events(events, "a join")
                    for join, events in node.collected.items()
                }
            if node in self._held:
                data["held"] = True
            if node.recoveries is not None:
                data["recoveries"] = {steps[h].name: n for h, n in node.recoveries.items()}
            self._nodes.append(data)
            number = self._numbers[node] = len(self._nodes)
            slots = {steps[i].name: self._slots(s) for i, s in (node.pair_joins or {}).items()}
            if any(slots.values()):
                data["slots"] = slots
        return number

    def _slots(self, slots: PairJoin[BranchNode | None]) -> list[list[Any]]:
        return [
            [
                [
                    self._codec.encode(event, "an event in a join"),
                    self._node(meeting_point([node])),
                ]
                for event, node in queue
            ]
            for queue in slots.queues
        ]

    def _queue(self, queue: StepQueue) -> dict[str, Any]:
        data: dict[str, Any] = {}
        deliveries = [
            self._redelivery(redelivery, item.node)
            for item, redelivery in self._working.get(queue.index, ())
        ]
        deliveries += [
            self._delivery(event, node)
            for event, node in self._waiting[queue.index]
            if node is None or not node.is_cancelled
        ]
        for redelivery, node in (queue.delayed or {}).items():
            if node is None or not node.is_cancelled:
                deliveries.append(
                    self._redelivery(redelivery, node, due=max(redelivery.due - self._now, 0.0))
                )
        if deliveries:
            data["deliveries"] = deliveries
        for name, slots in (("slots", queue.pair_join), ("unmatched", queue.unmatched)):
            if slots is not None and any(slots.queues):
                data[name] = self._slots(slots)
        for key, found in (queue.buffers or {}).items():
            events = self._events(found.events(), "a collected event")
            if events:
                names = [kind.__name__ for kind in found.expected]
                kept = data.setdefault("collections", {})
                kept[key] = {"expected": names, "events": events}
        return data

    def _payload(self, event: Any) -> Any:
        if isinstance(event, list | tuple):
            return self._events(cast("Iterable[Event]", event), "an event in a join")
        return self._codec.encode(event, "an event")

    def _delivery(self, event: Any, node: BranchNode | None) -> Any:
        if type(event) is Redelivery:
            return self._redelivery(event, node)
        return [self._payload(event), 0 if node is None else self._node(node)]

    def _redelivery(
        self, redelivery: Redelivery, node: BranchNode | None, due: float | None = None
    ) -> dict[str, Any]:
        data: dict[str, Any] = {"event": self._payload(redelivery.event), "group": self._node(node)}
        if due is not None:
            data["due"] = due
        if redelivery.seed:
            data["seed"] = redelivery.seed
        if redelivery.attempts is not None:
            data["attempts"] = redelivery.attempts.encode(self._now)
        if redelivery.received:
            data["received"] = {
                f"{key:016x}": self._events(events, "an answer that a step has received")
                for key, events in redelivery.received.items()
            }
        if redelivery.left:
            data["left"] = {f"{key:016x}": seconds for key, seconds in redelivery.left.items()}
        if redelivery.sent:
            data["sent"] = {
                f"{key:016x}": [self._branch(branch) for branch in branches]
                for key, branches in redelivery.sent.items()
            }
        if redelivery.collected:
            data["collected"] = [
                [key, None if events is None else self._events(events, "a collected event")]
                for key, events in redelivery.collected
            ]
        return data

    def _branch(self, branch: BranchNode | None) -> int | str | None:
        """Return its number, why it was cancelled, or None where nothing of it is left."""
        if branch is None:
            return None
        if branch.cancel_record is not None and branch.cancel_record.reason is not None:
            return branch.cancel_record.reason
        return None if branch.is_over else self._node(branch)


def _redelivery_of(item: InFlight, key_of: KeyOf, *, has_unwound: bool) -> Redelivery:
    """Return the delivery that an invocation which is under way begins again with."""
    known = item.event if type(item.event) is Redelivery else None
    redelivery = Redelivery(item.event if known is None else known.event)
    if known is not None:
        redelivery.attempts, redelivery.seed = known.attempts, known.seed
        redelivery.received = copy_lists(known.received)
        redelivery.left = copy_lists(known.left)
        redelivery.collected = known.collected
        redelivery.sent = known.sent
    if item.journal is not None:
        # What is sent only if the attempt succeeds is not out.
        with_sends = not item.step.holds_sends
        item.journal.copy_to(redelivery, key_of, with_sends=with_sends, has_unwound=has_unwound)
    return redelivery


def _waiting(queue: StepQueue) -> Iterator[tuple[Any, BranchNode | None]]:
    """Yield what waits at a step, and leave it there."""
    ready = queue.ready or ()
    yield from ready
    if queue.inbox is not None:
        inbox = queue.inbox
        waiting = [inbox.take() for _ in range(queue.in_inbox)]
        for delivery in waiting:
            inbox.put(delivery)
        yield from waiting
