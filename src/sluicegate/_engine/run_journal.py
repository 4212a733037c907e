"""The journal of a durable run: the records of its inputs, and the output held back until they are durable.

A record is appended and its input applied in one synchronous block, so the journal has the order in
which the machine took the inputs. Two things wait for the store: a step begins only when the record
that made its delivery is durable, and output (events of the durable stream, questions, the end,
acknowledgements) appears only when its record is. Nothing else depends on a commit, so a crash loses only
records without visible effects.

A :class:`JournalWriter` serves a run and its children, each of which has a :class:`RunJournal`.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, cast

from sluicegate._engine.journal_records import (
    Asked,
    Awaits,
    Base,
    Begun,
    Cancelled,
    Child,
    Claimed,
    Collected,
    Cut,
    Done,
    Due,
    End,
    Failed,
    Held,
    In,
    Once,
    Published,
    Sent,
    Sleep,
    Started,
    State,
    Wait,
    Waited,
    Woken,
    encode_record,
    kind_of,
)
from sluicegate._engine.step_queue import Numbered, numbered
from sluicegate._errors import SnapshotError, WorkflowRuntimeError
from sluicegate._events import InputRequiredEvent, WorkflowFailedEvent, tagged
from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Graph
    from sluicegate._definition.retries import Attempts
    from sluicegate._engine.journal import Redelivery
    from sluicegate._engine.journal_records import Record
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.outcome import Outcome
    from sluicegate._engine.waits import Wait as OpenWait
    from sluicegate._events import Event
    from sluicegate._loop import Backend, Waiter
    from sluicegate._state.store import StateChange, StateStore
    from sluicegate._streams import EventLog


class JournalSink(Protocol):
    """Where a journal's records go; see :mod:`sluicegate.durable`."""

    def append(  # noqa: PLR0917
        self, sequence: int, at: float, kind: str, data: bytes, shown: int, consumes: int | None
    ) -> None:
        """Accept a record, in order. It returns immediately and never raises.

        Args:
            sequence: The number of the record; there are no gaps.
            at: When it was made, in seconds since the epoch.
            kind: The kind of the record.
            data: The record, as JSON.
            shown: The number of the event in the durable stream; 0 for a record that is none.
            consumes: The message of the inbox that the record applies.
        """


class JournaledWorker(Protocol):
    """The part of a worker that a journal uses; see :class:`sluicegate._engine.invocation.Worker`."""

    delivery: Numbered | None


class JournaledChild(Protocol):
    """The part of a child record that a journal uses; see :class:`sluicegate._engine.journal.ChildRecord`."""

    name: str
    number: int
    run_id: str

    @property
    def key(self) -> int: ...


class JournaledRun(Protocol):
    """The part of a run that a journal uses; see :class:`sluicegate._engine.run.Run`."""

    run_id: str
    graph: Graph
    options: Any
    log: EventLog
    outcome: Outcome
    backend: Backend | None
    made: int
    parent: Any
    state_store: StateStore[Any] | None
    journal: RunJournal | None
    records: Any
    probe: Any


#: The entry kept for an event that came with a key: the content, the step and the question named.
Kept = tuple[str, "str | None", "str | None"]
#: An event from outside that has a key: the key, the run that keeps it, and the kept entry.
Incoming = tuple[str, int, Kept]

#: The streams on which an event is published, each with the event as that stream has it: the stream of
#: its run, and those of the runs above whose steps have asked for it.
Places = list[tuple["JournaledRun", "Event"]]
#: An event that is shown when a record is durable: the record, where, and its durable number or 0.
Output = tuple[int, Places, int]


class JournalWriter:
    """Numbers the records of a run and its children, and knows which of them are durable.

    Args:
        sink: Where the records go.
        wall: The time, in seconds since the epoch.
        sequence: The number of the last record of the journal, which is durable.
        shown: How many events the durable stream has.
        children: How many children have been started.
        life: The number of this life of the run: the fence of its lease.
        release: The release of the package, for the snapshots in the journal.

    Attributes:
        durable: The number of the last record that is durable.
        is_open: Whether it accepts records.
        error: Why it was lost; None if it was not.
        incoming: The key and its entry, if the event from outside being applied has one.
        consumes: The message of the inbox that is being applied.
    """

    __slots__ = (
        "_gates",
        "_outputs",
        "_sink",
        "_waiting",
        "children",
        "consumes",
        "durable",
        "error",
        "incoming",
        "is_open",
        "life",
        "on_lost",
        "release",
        "sequence",
        "shown",
        "wall",
    )

    def __init__(
        self,
        sink: JournalSink,
        *,
        wall: Callable[[], float],
        sequence: int = 0,
        shown: int = 0,
        children: int = 0,
        life: int = 1,
        release: str = "",
    ) -> None:
        self._sink = sink
        self.wall = wall
        self.sequence = self.durable = sequence
        self.shown = shown
        self.children = children
        self.life = life
        self.release = release
        self.is_open = True
        self.error: BaseException | None = None
        self.on_lost: Callable[[BaseException], None] | None = None
        self.incoming: Incoming | None = None
        self.consumes: int | None = None
        #: Tasks that wait for a record to be durable, in the order of the records.
        self._gates: deque[tuple[int, Waiter]] = deque()
        #: Events that are shown when a record is durable, and the live ones behind them; and how many of
        #: them each stream is to get.
        self._outputs: deque[Output] = deque()
        self._waiting: dict[EventLog, int] = {}

    def append(self, record: Record, *, shown: int = 0, consumes: int | None = None) -> int:
        """Append a record; return its number. Once the writer is closed, nothing is appended."""
        if not self.is_open:
            return self.sequence
        self.sequence += 1
        self._sink.append(
            self.sequence, record.at, kind_of(record), encode_record(record), shown, consumes
        )
        return self.sequence

    def leaves_message(self) -> bool:
        """Whether no record has applied the message of the inbox; it is not applied any more then."""
        message, self.consumes = self.consumes, None
        return message is not None

    @contextmanager
    def coming_with(self, key: str, child: int, kept: Kept) -> Generator[None]:
        """Record the event that is applied within the block with its key."""
        self.incoming = key, child, kept
        try:
            yield
        finally:
            self.incoming = None

    async def reached(self, sequence: int) -> None:
        """Wait until the record ``sequence`` is durable. A checkpoint; a cancellation only ends the wait.

        Raises:
            StoreError: The store cannot keep it, or the lease is lost.
        """
        backend = current_backend()
        if sequence <= self.durable:
            await backend.checkpoint()
        while sequence > self.durable:
            if self.error is not None:
                raise self.error
            gate = sequence, backend.waiter()
            self._gates.append(gate)
            try:
                await gate[1].wait()
            except BaseException:  # a commit takes out the gates that it wakes
                if gate in self._gates:
                    self._gates.remove(gate)
                raise

    def show(self, places: Places, sequence: int, number: int) -> None:
        """Show an event of the durable stream once its record is durable."""
        self._outputs.append((sequence, places, number))
        for run, _ in places:
            self._waiting[run.log] = self._waiting.get(run.log, 0) + 1

    def show_live(self, places: Places) -> None:
        """Show an event immediately, or after the durable events that were written before it."""
        if self._outputs:
            self.show(places, self._outputs[-1][0], 0)
        else:
            _put(places, 0)

    def waiting_for(self, log: EventLog) -> int:
        """Return the number of events that wait to be shown on a stream."""
        return self._waiting.get(log, 0)

    def commit_reached(self, sequence: int) -> None:
        """Note that all records up to ``sequence`` are durable. Synchronous, in the run's loop."""
        self.durable = max(self.durable, sequence)
        while self._outputs and self._outputs[0][0] <= self.durable:
            _, places, number = self._outputs.popleft()
            for run, _ in places:
                self._waiting[run.log] -= 1
                if not self._waiting[run.log]:
                    del self._waiting[run.log]
            _put(places, number)
        while self._gates and self._gates[0][0] <= self.durable:
            self._gates.popleft()[1].wake()

    def lose(self, error: BaseException) -> None:
        """Accept no more records: the lease is lost or the store failed. The part of the run here ends."""
        if self.error is None:
            self.error = error
            self.is_open = False
            while self._gates:
                self._gates.popleft()[1].wake()
            if self.on_lost is not None:
                self.on_lost(error)


def _put(places: Places, number: int) -> None:
    """Publish an event on its streams; a durable one has a number on the stream of the whole run."""
    for run, event in places:
        log = run.log
        if log.closed:
            continue
        if number and log.numbering is not None:
            log.append_durable(event, number)
        else:
            log.append(event)
        if run is not places[0][0]:  # the run that has published it tells its observers itself
            if run.records is not None:
                run.records.enter_step()
                run.records.streamed(log.next - 1, event)
            if run.probe is not None:
                run.probe.published(event)


class RunJournal:
    """Makes the records of one run, and numbers its deliveries, branches and waits.

    It is the machine's :class:`sluicegate._engine.machine.MachineJournal`. With the record of an input,
    it is a context manager: the input is applied within, and the record appended when that has ended.

    Args:
        writer: The journal.
        run: The run.
        child: The number of the run among the children in the journal; 0 for the run itself.

    Attributes:
        opened: How many branches have a number.
    """

    __slots__ = (
        "_after",
        "_before",
        "_branches",
        "_handed",
        "_has_state",
        "_input",
        "_is_sending",
        "_limit",
        "_sent",
        "_waits",
        "_waits_begun",
        "above",
        "child",
        "codec",
        "opened",
        "run",
        "writer",
    )

    def __init__(self, writer: JournalWriter, run: JournaledRun, child: int = 0) -> None:
        self.writer = writer
        self.run = run
        self.child = child
        run.outcome.is_durable = True
        self.codec: Codec = run.graph.codec(run.options.classes)
        self.opened = 0
        # A snapshot without a state may have made the store: its first change is the whole state.
        self._has_state = run.state_store is not None and run.state_store.is_restored
        if run.state_store is not None:
            if run.state_store.journal is not None:
                msg = (
                    f"the context of the run {run.run_id} of {run.graph.name} belongs to another durable "
                    "run, which would not store the changes of this one; expected a context for each: "
                    "`workflow.run(ctx=Context(workflow))`"
                )
                raise WorkflowRuntimeError(msg)
            run.state_store.journal = self.state_changes
        self._branches: dict[BranchNode, int] = {}
        self._limit = 64
        self._waits: dict[OpenWait, int] = {}
        self._waits_begun = 0
        #: The record of the input that is being applied, and how many deliveries there were before.
        self._input: Any = None
        self._before = 0
        #: The delivery that the record of the last result has handed to the worker.
        self._handed: Numbered | None = None
        #: The events of the durable stream that it has published.
        self._after: list[Event] = []
        #: Whether a durable event of ``ctx.stream.send`` is being published, and its record.
        self._is_sending = False
        self._sent = 0
        #: Of a child: the journal of the run above, the name of the child's workflow, and the ``stream``
        #: argument of ``run_child``.
        self.above: tuple[RunJournal, str, str] | None = None
        run.log.stored = self if run.options.stream == "durable" else None

    @property
    def now(self) -> float:
        """The time, in seconds since the epoch."""
        return self.writer.wall()

    def wall_at(self, time: float) -> float:
        """Return a time on the backend's clock in seconds since the epoch."""
        assert self.run.backend is not None
        return self.writer.wall() + time - self.run.backend.current_time()

    @property
    def is_open(self) -> bool:
        """Whether inputs are recorded: until the outcome of the run, or of a run above, is settled."""
        above: Any = self.run
        while above is not None and not above.outcome.status:
            above = above.parent
        return above is None and self.writer.is_open

    # -- applying an input -----------------------------------------------------------------------

    def input(self, record: Any) -> RunJournal:
        """Begin an input; use the result as a context manager around its application."""
        self._input = record
        self._before = self.run.made
        return self

    def __enter__(self) -> None:
        """Do nothing: the input has begun."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.applied(has_raised=kind is not None)

    def applied(self, *, has_raised: bool = False) -> None:
        """Append the record of the input, unless the input was refused before it changed anything."""
        record, self._input = self._input, None
        after, self._after = self._after, []
        record.made = self.run.made
        if has_raised:
            if record.made == self._before and not record.got and not after:
                return
            record.raised = True
        consumes, self.writer.consumes = self.writer.consumes, None
        self.writer.append(record, consumes=consumes if type(record) is In else None)
        for event in after:
            self.publish(event)

    def number(self, payload: Any) -> Numbered:
        """See :class:`sluicegate._engine.machine.MachineJournal`."""
        # The cause of the first deliveries is the snapshot, which is durable before the run begins.
        made = self.writer.sequence
        if self._input is not None and type(self._input) is not Started:
            made += 1
        return numbered(self.run, payload, made)

    def hand_over(self, payload: Any) -> Numbered:
        """See :class:`sluicegate._engine.machine.MachineJournal`."""
        self._input.handed = True
        self._handed = self.number(payload)
        return self._handed

    def routed(self, event: Event, targets: tuple[int, ...]) -> None:
        """Note the steps to which an event goes."""
        if self._input is not None and targets:
            steps = self.run.graph.steps
            self._input.to[type(event).__name__] = [steps[index].name for index in targets]

    def joined(self, joins: tuple[int, ...]) -> None:
        """Note the joins in which a returned list ends."""
        if self._input is not None:
            self._input.joins = [self.run.graph.steps[index].name for index in joins]

    def given(self, wait: OpenWait) -> None:
        """Note that a wait has taken the event."""
        if self._input is not None:
            self._input.got = [*self._input.got, self._waits[wait]]

    def load(self, nodes: Sequence[BranchNode], numbers: Sequence[int], opened: int) -> None:
        """Take over the branch numbers of a snapshot."""
        self.opened = opened
        self._branches = {n: number for n, number in zip(nodes, numbers, strict=True) if number}

    # -- inputs ----------------------------------------------------------------------------------

    def started(self) -> RunJournal:
        """The start event."""
        return self.input(Started(at=self.now, c=self.child))

    def received(self, event: Event, step: str | None, question: str | None) -> RunJournal:
        """An event from outside."""
        record = In(
            at=self.now, c=self.child, e=self.codec.encode(event, "an event"), step=step, q=question
        )
        if self.writer.incoming is not None:
            record.id, record.of, record.key = self.writer.incoming
        return self.input(record)

    def begun(self, worker: JournaledWorker, delivery: Any) -> Any:
        """A worker has taken a delivery; return what its step gets."""
        worker.delivery = delivery
        handed, self._handed = self._handed, None
        if delivery is not handed and self.is_open:
            self.writer.append(Begun(at=self.now, c=self.child, k=delivery.key, n=delivery.number))
        return delivery.event if type(delivery) is Numbered else delivery

    def sent(
        self, worker_key: int, event: Event, node: BranchNode, target: str | None
    ) -> RunJournal:
        """A step has sent an event."""
        return self.input(
            Sent(
                at=self.now,
                c=self.child,
                k=worker_key,
                b=self.name_branch(node),
                e=self.codec.encode(event, "an event"),
                target=target,
            )
        )

    def done(
        self, key: int, result: Any, held: Sequence[tuple[Any, Event, BranchNode, str | None]]
    ) -> RunJournal:
        """A step has ended with a result."""
        encode = self.codec.encode
        is_list = isinstance(result, list)
        returned = cast("list[Any]", result) if is_list else [result]
        for event in returned:
            if isinstance(event, InputRequiredEvent):
                self._encode_shown(self._places(event))  # refused before anything has changed
        record = Done(
            at=self.now,
            c=self.child,
            k=key,
            r=[encode(event, "an event") for event in returned]
            if is_list
            else self.encoded(result),
            is_list=is_list,
        )
        if held:
            record.held = [
                Held(self.number_of(node), encode(event, "an event"), target, _reason(node))
                for _, event, node, target in held
            ]
        return self.input(record)

    def encoded(self, event: Any) -> Any:
        """Return an event as plain data, or None for None.

        Raises:
            SnapshotError: It cannot be kept.
        """
        return None if event is None else self.codec.encode(event, "an event")

    def failed(self, worker: JournaledWorker, attempts: Attempts, **decision: Any) -> RunJournal:
        """An attempt has failed; ``decision`` has the record's fields for the retry or the failure."""
        assert worker.delivery is not None
        last = attempts.failures[-1]
        return self.input(
            Failed(
                at=self.now,
                c=self.child,
                k=worker.delivery.key,
                error=last.text,
                n=attempts.count,
                since=last.at,
                **decision,
            )
        )

    def retried(self, worker: JournaledWorker, redelivery: Redelivery) -> None:
        """Number the delivery of the next attempt."""
        assert worker.delivery is not None
        redelivery.key = worker.delivery.key
        redelivery.sequence = self.writer.sequence + 1

    def due(self, redelivery: Redelivery) -> RunJournal:
        """The delay of an attempt is over."""
        redelivery.sequence = self.writer.sequence + 1
        return self.input(Due(at=self.now, c=self.child, k=redelivery.key))

    def collected(
        self,
        key: int,
        buffer: str,
        expected: Sequence[type[Event]],
        event: Event | None,
        *,
        again: bool,
    ) -> None:
        """A step gives an event to a buffer; None for the one that it was given itself."""
        if self.is_open:
            self.writer.append(
                Collected(
                    at=self.now,
                    c=self.child,
                    k=key,
                    buffer=buffer,
                    expected=[kind.__name__ for kind in expected],
                    e=self.encoded(event),
                    again=again,
                )
            )

    def wait_begins(self, key: int, wait: OpenWait, early: int | None, content: int) -> None:
        """A wait is about to begin."""
        if not self.is_open:
            return
        record = Wait(
            at=self.now,
            c=self.child,
            k=key,
            w=self._waits_begun + 1,
            kind=wait.kind.__name__,
            key=f"{content:016x}",
            q=self.encoded(wait.question),
            asks=wait.asks,
            since=self.wall_at(wait.since),
            due=None if wait.due == inf else self.wall_at(wait.due),
            outside=wait.is_outside,
            early=early,
            asked=wait.number or None,
        )
        self.writer.append(record)
        self._waits_begun += 1
        self._waits[wait] = self._waits_begun

    def wait_ends(self, wait: OpenWait, *, is_taken: bool) -> RunJournal | None:
        """A wait is over; None where that is not recorded."""
        number = self._waits.pop(wait, None)
        if number is None or not self.is_open:
            return None
        return self.input(Waited(at=self.now, c=self.child, w=number, taken=is_taken))

    def claimed(self, above: RunJournal, early: int, event: Event) -> None:
        """A wait takes over an early event of a run above."""
        if self.is_open:
            encoded = self.encoded(event)
            self.writer.append(
                Claimed(at=self.now, c=self.child, of=above.child, early=early, e=encoded)
            )

    def asked(self, key: int, question: Event) -> None:
        """A step puts a question on the stream, for which it does not wait."""
        if self.is_open:
            self.writer.append(Asked(at=self.now, c=self.child, k=key, e=self.encoded(question)))

    def awaits(self, key: int, node: BranchNode) -> None:
        """A step waits for the end of a branch."""
        if self.is_open and self.number_of(node):
            self.writer.append(Awaits(at=self.now, c=self.child, k=key, b=self.number_of(node)))

    def cut(self, node: BranchNode, reason: str) -> RunJournal:
        """A step cancels a branch."""
        return self.input(Cut(at=self.now, c=self.child, b=self.number_of(node), why=reason))

    def once(self, key: int, name: str, value: Any, *, failed: bool) -> int:
        """A function of ``ctx.once`` has ended; return the number of the record."""
        return self.writer.append(
            Once(at=self.now, c=self.child, k=key, key=name, v=value, failed=failed)
        )

    def sleeps(self, key: int, seconds: float, due: float, *, again: bool) -> None:
        """A step sleeps until a time on the backend's clock; again if an earlier attempt did."""
        if self.is_open:
            due = self.now if due == -inf else self.wall_at(due)
            self.writer.append(
                Sleep(at=self.now, c=self.child, k=key, seconds=seconds, due=due, again=again)
            )

    def state_changes(self, change: StateChange) -> None:
        """The state is about to change; see :class:`sluicegate._state.store.StateJournal`.

        Raises:
            SnapshotError: A value in it cannot be kept.
        """
        from sluicegate._state.patches import make_patch  # noqa: PLC0415 - it imports msgspec

        if not self._has_state:  # the previous snapshot has no state, so this is the whole state
            change.old = None
        patch = make_patch(self.codec, change)
        self._has_state = True
        if patch is not None:
            self.writer.append(State(at=self.now, c=self.child, p=patch))

    def forgets_sleep(self, key: int, seconds: float, number: int) -> None:
        """A step has cancelled its own sleep and continues."""
        if self.is_open:
            self.writer.append(Woken(at=self.now, c=self.child, k=key, seconds=seconds, n=number))

    def shown(self, event: Event) -> int:
        """Put an event on the stream: questions and durable events are stored, others are only live.

        A durable event is shown once its record is committed; a live one immediately, or after the durable
        events before it.

        Returns:
            The number that it has on the stream of its run, or will have.

        Raises:
            SnapshotError: A durable event cannot be kept.
        """
        log = self.run.log
        if not (self._is_sending or isinstance(event, InputRequiredEvent)):
            self.writer.show_live(self._places(event))
        elif self._input is not None:  # its record follows that of the input
            self._after.append(event)
        else:
            self._sent = self.publish(event)
        return log.next - 1 + self.writer.waiting_for(log) + len(self._after)

    def send(self, publish: Callable[[Event], None], event: Event) -> int:
        """See :class:`sluicegate._streams.StoredStream`."""
        self._is_sending = True
        try:
            publish(event)
        finally:
            self._is_sending = False
        return self._sent

    async def reached(self, number: int) -> None:
        """See :class:`sluicegate._streams.StoredStream`."""
        await self.writer.reached(number)

    def publish(self, event: Event) -> int:
        """Publish an event of the durable stream; return the number of its record.

        An event of a child is in the durable stream if it reaches the stream of the whole run.
        """
        writer, places = self.writer, self._places(event)
        data = self._encode_shown(places)
        if data is None:
            writer.show_live(places)
            return writer.sequence
        writer.shown += 1
        sequence = self.writer.append(
            Published(at=self.now, c=self.child, e=data), shown=writer.shown
        )
        writer.show(places, sequence, writer.shown)
        return sequence

    def _places(self, event: Event) -> Places:
        """Return the streams on which an event is put, from that of the run upwards."""
        places, journal = [(self.run, event)], self
        while journal.above is not None and journal.above[2] != "off":
            journal, name, stream = journal.above
            if stream == "tag":
                event = tagged(name, event)
            places.append((journal.run, event))
        return places

    @staticmethod
    def _encode_shown(places: Places) -> Any:
        """Return an event as plain data, as the stream of the whole run has it; None if that has not.

        Raises:
            SnapshotError: The workflow of the whole run does not know its class, or a value in it.
        """
        run, event = places[-1]
        assert run.journal is not None
        return None if run.journal.child else run.journal.codec.encode(event, "an event")

    def child_begins(
        self, key: int, record: JournaledChild, child: JournaledRun, base: dict[str, Any]
    ) -> None:
        """A step starts or continues a child, whose records are in this journal as well."""
        self.writer.children += 1
        number = self.writer.children
        if self.is_open:
            self.writer.append(
                Child(
                    at=self.now,
                    c=self.child,
                    k=key,
                    child=number,
                    number=record.number,
                    key=f"{record.key:016x}",
                    id=record.run_id,
                    workflow=record.name,
                    base=base,
                )
            )
        child.journal = RunJournal(self.writer, child, number)

    def cancelled(self, reason: str, after: Any) -> None:
        """The run was asked to end."""
        if self.is_open:
            self.writer.append(Cancelled(at=self.now, c=self.child, why=reason, after=after))

    def ended(self, status: Any, last: Event) -> int:
        """The run has ended, and none of its tasks is left; return the number of the record.

        If its terminal event cannot be stored, the record has the reason instead.
        """
        try:
            event = self.encoded(last)
        except SnapshotError as error:
            event = self.encoded(WorkflowFailedEvent(exception=error, step_name=None))
        record = End(at=self.now, c=self.child, status=status, e=event)
        if self.child and self.run.outcome.error is not None:
            record.error = self.codec.encode(self.run.outcome.error, "the failure of a child")
        return self.writer.append(record, shown=0 if self.child else self.writer.shown + 1)

    def based(self, snapshot: dict[str, Any]) -> int:
        """Record the run as a snapshot; return the number of the record."""
        writer = self.writer
        return writer.append(
            Base(
                at=self.now,
                snapshot=snapshot,
                engine=writer.release,
                shown=writer.shown,
                children=writer.children,
            )
        )

    # -- branches --------------------------------------------------------------------------------

    def name_branch(self, node: BranchNode) -> int:
        """Number a new branch."""
        self.opened += 1
        self._branches[node] = self.opened
        if len(self._branches) > self._limit:
            self._branches = {n: k for n, k in self._branches.items() if not n.is_over}
            self._limit = 2 * len(self._branches) + 64
        return self.opened

    def number_of(self, node: BranchNode) -> int:
        """Return the number of a branch; 0 where it has none."""
        return self._branches.get(node, 0)


def _reason(node: BranchNode) -> str | None:
    return None if node.cancel_record is None else node.cancel_record.reason
