"""Snapshots: the state of a run as plain JSON data."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, cast

from sluicegate._engine.idle import is_idle
from sluicegate._engine.journal import InFlight, Redelivery, copy_lists
from sluicegate._engine.lineage import meeting_point
from sluicegate._engine.run import time_now
from sluicegate._engine.snapshot_format import (
    FORMAT,
    SavedAttempts,
    SavedBranch,
    SavedBuffer,
    SavedChild,
    SavedDelivery,
    SavedProgress,
    SavedQuestion,
    SavedResult,
    SavedStep,
    Snapshot,
    StepShape,
    to_plain,
)
from sluicegate._engine.step_queue import Numbered
from sluicegate._errors import SnapshotError
from sluicegate._exceptions import linked_leaves
from sluicegate._state.drafts import DictState


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Graph
    from sluicegate._engine.joins import PairJoin
    from sluicegate._engine.journal import ChildRecord, KeyOf
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.run import Run
    from sluicegate._engine.snapshot_format import Places
    from sluicegate._engine.step_queue import StepQueue
    from sluicegate._engine.waits import Wait
    from sluicegate._events import Event
    from sluicegate._questions import Asked
    from sluicegate._state.store import StateStore


def take_snapshot(run: Run) -> dict[str, Any]:
    """Return a run as plain data; see :meth:`sluicegate.WorkflowHandler.snapshot`.

    Raises:
        SnapshotError: Something cannot be kept; the message names its path.
    """
    return to_plain(snapshot_of(run))


def snapshot_of(run: Run) -> Snapshot:
    """Return a snapshot of a run and of the children of its steps in progress.

    Raises:
        SnapshotError: Something cannot be kept; the message names its path.
    """
    codec = run.graph.codec(run.options.classes)
    status: Any = run.outcome.status or ("idle" if is_idle(run) else "running")
    state = None if run.state_store is None else _encode_state(codec, run.state_store)
    found = _head(run.graph, status, state)
    found.run_id = run.run_id
    found.elapsed = run.clock.taken(None if run.outcome.is_over else run.backend)
    found.sequence = run.log.next - 1
    found.carrier = dict(run.carrier)
    if status == "completed":
        return found
    found.arrived = [
        (codec.encode(event, "an event that came early"), target, question)
        for event, target, question in run.early
    ]
    found.ids = dict(run.keys)
    if run.start_event is not None:
        found.start = codec.encode(run.start_event, "the start event")
    elif run.resumed is not None:
        found.run = run.resumed.saved
    else:
        machine = run.machine
        assert machine is not None
        working = [InFlight.of(worker) for worker in run.workers if worker.step is not None]
        writer = _Writer(codec, machine, run, has_unwound=bool(run.outcome.status))
        writer.note_working([*(run.in_flight or ()), *working])
        found.run = writer.write(run.retried)
    return found


def state_alone(graph: Graph, classes: tuple[type, ...], store: StateStore[Any]) -> dict[str, Any]:
    """Return a snapshot of a state that no run has used yet."""
    return to_plain(_head(graph, "unstarted", _encode_state(graph.codec(classes), store)))


def _encode_state(codec: Codec, store: StateStore[Any]) -> Any:
    state = store.snapshot_state()
    return codec.encode(state.to_dict() if isinstance(state, DictState) else state, "the state")


def _head(graph: Graph, status: Any, state: Any) -> Snapshot:
    return Snapshot(
        sluicegate=FORMAT, workflow=graph.name, shape=shape_of(graph), status=status, state=state
    )


def shape_of(graph: Graph) -> dict[str, StepShape]:
    """Return the steps of a workflow, as far as a snapshot depends on them."""
    return {
        step.name: StepShape(
            takes=[kind.__name__ for kind in step.accepts],
            way=cast("Any", step.takes),
            first=step.take,
            makes=sorted(kind.__name__ for kind in step.returns),
            fans_out=sorted(kind.__name__ for kind in step.fans_out),
        )
        for step in graph.steps
    }


class _Writer:
    """Turns the state of one run into the parts of a snapshot."""

    def __init__(self, codec: Codec, machine: Machine, run: Run, *, has_unwound: bool) -> None:
        self._codec = codec
        self._machine = machine
        self._run = run
        self._now = time_now(run)
        self._has_unwound = has_unwound
        #: The invocations in progress, by step. Those of cancelled branches do not start again.
        self._working: dict[int, list[tuple[InFlight, Redelivery]]] = {}
        #: The deliveries that wait, by step.
        self._waiting: dict[int, list[tuple[Any, BranchNode | None]]] = {}
        #: The branches that a step gets back when it begins again.
        self._held: set[BranchNode] = set()
        #: The branches of cancelled deliveries, which are counted until they have unwound.
        self._unwinding: list[BranchNode] = []
        #: The branches met so far, each with its number.
        self._numbers: dict[BranchNode, int] = {}
        self._branches: list[SavedBranch] = []

    def note_working(self, working: Iterable[InFlight]) -> None:
        """Take note of the invocations that are under way, and are to begin again."""
        #: Answers that have come and were not taken yet, by the journal of who waits.
        answers: dict[int, list[Wait]] = {}
        for wait, context in self._machine.answered.items():
            assert wait.event is not None
            answers.setdefault(id(cast("Any", context).journal), []).append(wait)
        timed: dict[int, list[Wait]] = {}
        for wait, context in (*self._machine.waits.items(), *self._machine.unended.items()):
            if wait.due != inf:
                timed.setdefault(id(cast("Any", context).journal), []).append(wait)
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

    def write(self, retried: int) -> SavedProgress:
        """Return the pending work and the invocations in progress."""
        machine = self._machine
        for kind in {wait.kind for wait in machine.waits}:
            self._codec.require(kind)  # otherwise only the snapshot after the answer would fail
        for queue in machine.queues:  # before any branch is written
            waiting = self._waiting[queue.index] = list(_waiting(queue))
            for event, node in (*waiting, *(queue.delayed or {}).items()):
                if type(event) is Redelivery:
                    self._hold(event)
                if node is not None and node.is_cancelled:
                    self._unwinding.append(node)
        steps = {queue.step.name: self._queue(queue) for queue in machine.queues}
        for cancelled in self._unwinding:
            # The fan-out around it may have nothing else left, and must be in the snapshot. One that
            # is over must not: a delivery that was dropped may still lie in its queue, and the run
            # that continues would run the join again.
            around: BranchNode | None = cancelled
            while around is not None and (around.is_cancelled or around.is_over):
                around = around.parent
            self._node(around)
        nothing = SavedStep()
        journal = self._run.journal
        return SavedProgress(
            retried=retried,
            made=self._run.made,
            opened=0 if journal is None else journal.opened,
            asked=0 if journal is None else machine.asked_last,
            questions=self._open_questions(),
            has_asked=machine.has_asked,
            early=self._events(machine.early, "an early answer"),
            steps={name: part for name, part in steps.items() if part != nothing},
            branches=self._branches,
        )

    def _open_questions(self) -> list[SavedQuestion]:
        """Return the open questions in order, with the class and the key of the wait, if there is one.

        With them are those whose answer waits for a wait that has to begin again.
        """
        machine, key_of = self._machine, self._codec.content_key
        found = [
            self._question(asked, asked.event, asked.kind, asked.key, asked.answer)
            for asked in machine.open_questions
        ]
        found += [
            self._question(wait, wait.shown, wait.kind, wait.content_key(key_of))
            for wait in (*machine.waits, *machine.unended)
            if wait.is_outside or wait.asks
        ]
        return sorted(found, key=lambda question: question.number)

    def _question(
        self,
        open_one: Wait | Asked,
        event: Event | None,
        kind: type[Event] | None,
        key: int,
        answer: Event | None = None,
    ) -> SavedQuestion:
        age = max(self._now - open_one.since, 0.0)
        part = SavedQuestion(number=open_one.number, age=age, shown=open_one.is_shown)
        if event is not None:
            with suppress(SnapshotError):  # the step that asks it again has it
                part.event = self._codec.encode(event, "a question")
        if kind is not None:
            part.kind, part.key = kind.__name__, f"{key:016x}"
        if answer is not None:
            part.answer = self._codec.encode(answer, "an answer")
        return part

    def _events(self, events: Iterable[Event], path: str) -> list[Any]:
        encode = self._codec.encode
        return [encode(event, path) for event in events]

    def _node(self, node: BranchNode | None) -> int:
        """Return the number of a branch, 0 for none; it is written when it is first met."""
        while node is not None and not (
            node.joins or node.recoveries is not None or node in self._held
        ):
            node = node.parent
        if node is None:
            return 0
        number = self._numbers.get(node)
        if number is None:
            steps = self._machine.graph.steps
            part = SavedBranch(parent=self._node(node.parent), held=node in self._held)
            if self._run.journal is not None:
                part.number = self._run.journal.number_of(node)
            if node.joins:
                part.joins = {
                    steps[join].name: None if events is None else self._events(events, "a join")
                    for join, events in node.collected.items()
                }
            if node.recoveries is not None:
                part.recoveries = {steps[h].name: n for h, n in node.recoveries.items()}
            self._branches.append(part)
            number = self._numbers[node] = len(self._branches)
            places = {steps[i].name: self._places(s) for i, s in (node.pair_joins or {}).items()}
            if any(places.values()):
                part.places = places
        return number

    def _places(self, join: PairJoin[BranchNode | None]) -> Places:
        return [
            [
                (
                    self._codec.encode(event, "an event in a join"),
                    self._node(meeting_point([node])),
                )
                for event, node in queue
            ]
            for queue in join.queues
        ]

    def _queue(self, queue: StepQueue) -> SavedStep:
        """Return the pending work of a step: invocations in progress first, then waiting, then delayed.

        Work of cancelled branches is left out, because it would be dropped.
        """
        part = SavedStep()
        part.deliveries = [
            self._delivery(redelivery, item.node)
            for item, redelivery in self._working.get(queue.index, ())
        ]
        part.deliveries += [
            self._delivery(event, node)
            for event, node in self._waiting[queue.index]
            if node is None or not node.is_cancelled
        ]
        part.deliveries += [
            self._delivery(redelivery, node, due=max(redelivery.due - self._now, 0.0))
            for redelivery, node in (queue.delayed or {}).items()
            if node is None or not node.is_cancelled
        ]
        if queue.pair_join is not None and any(queue.pair_join.queues):
            part.places = self._places(queue.pair_join)
        if queue.unmatched is not None and any(queue.unmatched.queues):
            part.unmatched = self._places(queue.unmatched)
        for key, buffer in (queue.buffers or {}).items():
            events = self._events(buffer.events(), "a collected event")
            if events:
                names = [kind.__name__ for kind in buffer.expected]
                part.buffers[key] = SavedBuffer(expected=names, events=events)
        return part

    def _payload(self, event: Any) -> Any:
        if isinstance(event, list | tuple):
            return self._events(cast("Iterable[Event]", event), "an event in a join")
        return self._codec.encode(event, "an event")

    def _delivery(
        self, event: Any, node: BranchNode | None, due: float | None = None
    ) -> SavedDelivery:
        """Return a delivery. If it has begun, it includes everything that its attempts have done."""
        if type(event) is Numbered:
            payload = self._payload(event.event)
            return SavedDelivery(event=payload, branch=self._node(node), key=event.key)
        if type(event) is not Redelivery:
            return SavedDelivery(event=self._payload(event), branch=self._node(node))
        attempts = event.attempts
        return SavedDelivery(
            event=self._payload(event.event),
            branch=self._node(node),
            has_begun=True,
            key=event.key,
            crashes=event.crashes,
            due=due,
            seed=event.seed,
            attempts=None if attempts is None else SavedAttempts(**attempts.encode(self._now)),
            received={
                f"{key:016x}": self._events(events, "an answer that a step has received")
                for key, events in event.received.items()
            },
            left={f"{key:016x}": seconds for key, seconds in event.left.items()},
            sent={
                f"{key:016x}": [self._branch(branch) for branch in branches]
                for key, branches in event.sent.items()
            },
            collected=[
                (key, None if events is None else self._events(events, "a collected event"))
                for key, events in event.collected
            ],
            once={
                key: SavedResult(value=made.encoded, is_failure=made.is_failure)
                for key, made in event.once.items()
            },
            sleeps=[self._sleeps(event, n) for n in sorted({*event.slept, *event.sleeping})],
            children=sorted(
                (self._child(child) for children in event.children.values() for child in children),
                key=lambda child: child.number,
            ),
            child_number=event.child_number,
        )

    def _sleeps(self, event: Redelivery, seconds: float) -> tuple[float, int, list[float]]:
        left = [due - self._now for due in event.sleeping.get(seconds, ())]
        over = sum(each <= 0 for each in left)
        return seconds, event.slept.get(seconds, 0) + over, left[over:]

    def _child(self, record: ChildRecord) -> SavedChild:
        """Return a child of a step.

        A failure that has failed the run is not kept: the child then continues at its failed step.
        """
        key = f"{record.key:016x}"
        part = SavedChild(workflow=record.name, key=key, number=record.number, run_id=record.run_id)
        try:
            self._fill_child(part, record)
        except SnapshotError as error:
            msg = f"in the child {record.run_id} of {record.name}: {error}"
            raise SnapshotError(msg) from None
        failure = record.failure
        if failure is not None and any(failure is error for error in self._behind_failures()):
            part.status = part.error = None
        return part

    def _fill_child(self, part: SavedChild, record: ChildRecord) -> None:
        saved, run = record.saved, record.run
        stop_event = record.stop_event or (run and run.outcome.stop_event)
        if saved is not None:
            part.status, part.result, part.error = saved.status, saved.result, saved.error
            part.run, part.tail = saved.run, saved.tail
            part.child, part.at, part.has_crashed = saved.child, saved.at, saved.has_crashed
        elif stop_event is not None:
            assert record.codec is not None
            part.status = "completed"
            part.result = record.codec().encode(stop_event, "its stop event")
        else:
            part.run = snapshot_of(run)
            if record.failure is not None:
                assert record.codec is not None
                part.status = run.outcome.status
                part.error = record.codec().encode(record.failure, "its failure")

    def _behind_failures(self) -> Iterator[BaseException]:
        """Yield the failures of the run and their causes."""
        for error in self._run.outcome.errors:
            yield from linked_leaves(error, "__context__")

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
    redelivery.key, redelivery.crashes = item.key, item.crashes
    if known is not None:
        redelivery.key = item.key or known.key
        redelivery.attempts, redelivery.seed = known.attempts, known.seed
        redelivery.received = copy_lists(known.received)
        redelivery.left = copy_lists(known.left)
        redelivery.collected, redelivery.once = known.collected, known.once
        redelivery.sent = known.sent
        redelivery.slept, redelivery.sleeping = known.slept, known.sleeping
        redelivery.children, redelivery.child_number = known.children, known.child_number
    if item.journal is not None:
        # Events that are held until the attempt succeeds have not been sent.
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
