"""The records of a stored run, made from its journal, as an observer would have received them.

The times are those of the journal, in seconds since the epoch. What it does not have is missing: resources,
waits for a place, a limiter or a thread, events of the live stream, and the insides of children.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NoReturn, cast, final

from sluicegate._definition.retries import PastError
from sluicegate._engine.lineage import BranchNode
from sluicegate._engine.record_writer import RecordWriter
from sluicegate._engine.replay import PastRun
from sluicegate._events import WorkflowFailedEvent
from sluicegate.records import CancellationRequested, RunEnded, RunStarted, WaitEnded


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._definition.graph import Graph
    from sluicegate._engine import journal_records as rec
    from sluicegate._engine.journal import ChildRecord
    from sluicegate._engine.replay import Flight
    from sluicegate._engine.run import Run
    from sluicegate._engine.snapshot_format import SavedChild
    from sluicegate._events import Event
    from sluicegate.records import CancelledBy


class _Clock:
    """The clock of the records: the time of the record of the journal that is applied."""

    def __init__(self, at: float) -> None:
        self.at = at

    def current_time(self) -> float:
        return self.at


@final
class _PastWorker:
    """A worker, as far as the records need it.

    Attributes:
        waits: The numbers of its open waits: each with the time at which it ends, the branch whose
            end ends it, or None where another record ends it.
    """

    __slots__ = ("invocation", "lane", "node", "number", "payload", "progress", "step", "waits")

    run: Any = None

    def __init__(self, flight: Flight, lane: int) -> None:
        self.number = 0
        self.lane = lane
        self.node = flight.node
        self.payload = flight.payload
        self.step = flight.queue.step
        self.invocation = self.progress = None
        self.waits: dict[int, float | BranchNode | None] = {}

    def delivered(self) -> tuple[Any, int]:
        """Return its event."""
        return self.payload, 0


@final
class PastRecords(RecordWriter):
    """Makes the records of a stored run, through all of its recorded lives.

    Args:
        run: The run, as it was when the first of these lives began.
        at: When that was.
        take: Is called with each record.

    Attributes:
        workers: The workers, by the number of the delivery that each has.
        calling: The worker whose step has made the record that is applied.
    """

    __slots__ = ("_clock", "_free", "calling", "workers")

    def __init__(self, run: Run, at: float, take: Callable[[Any], object]) -> None:
        self._clock = _Clock(at)
        super().__init__(run, cast("Any", self._clock), (), _raise)
        self._emit = take
        self.workers: dict[int, _PastWorker] = {}
        self.calling: _PastWorker | None = None
        #: The numbers of the workers that have ended: a new one gets the lowest.
        self._free: list[int] = []
        self._workers = cast("Any", self.workers.values())
        self._has_begun = True
        self.enter(None, "snapshot" if self.calls.info.is_resumed else "outside")
        self._emit(
            RunStarted(
                at,
                run_id=run.run_id,
                workflow=run.graph.name,
                steps={step.name: step.num_workers for step in run.graph.steps},
                backend="",
                wall_offset=0.0,
                is_resumed=self.calls.info.is_resumed,
                elapsed=0.0 if run.resumed is None else run.resumed.elapsed,
            )
        )

    def _calling_worker(self) -> Any:
        return self.calling

    # -- time, and lives

    def reach(self, at: float) -> None:
        """Set the clock, after the sleeps and the waits for branches that are over by then."""
        over = [
            (wait, number, worker)
            for worker in self.workers.values()
            for number, wait in worker.waits.items()
            if isinstance(wait, float) and wait <= at
        ]
        for due, number, worker in sorted(over, key=lambda each: each[:2]):
            del worker.waits[number]
            self._emit(WaitEnded(max(due, self.at), number))
        self._clock.at = at
        self.now()

    def end_branch_waits(self) -> None:
        """Record the end of the waits for branches that have ended."""
        for worker in self.workers.values():
            for number, node in [*worker.waits.items()]:
                if isinstance(node, BranchNode) and node.is_over:
                    del worker.waits[number]
                    self.wait_ended(number)

    def begin_life(self, run: Run, at: float) -> None:
        """Record that the life before has ended with its last record, together with everything in progress."""
        self._end_all()
        for kept in (self._waiting, self._nodes, self._queued_in, self._held, self._given):
            kept.clear()
        self._targets.clear()
        self._value, self._names = None, [step.name for step in run.graph.steps]
        self.reach(at)
        self.enter(None, "snapshot")

    def _end_all(self) -> None:
        """Record the end of what is in progress, and of what is queued."""
        for key in [*self.workers]:
            self.leave(key, "cancelled")
        for number in sorted(self._numbers):
            self._end(number, "dropped", None)

    # -- workers

    def begin_step(self, key: int, flight: Flight, lane: int = 0) -> None:
        """Record that a worker has taken a delivery; by default one that has ended before, or a new one."""
        if not lane and self._free:
            lane = heappop(self._free)
        self.workers[key] = worker = _PastWorker(flight, lane)
        self.started(cast("Any", worker), flight.queue, flight.payload)

    def end_step(self, key: int, outcome: Any, error: BaseException | None = None) -> int:
        """Record the end of an invocation and of its waits; return the number of its worker."""
        worker = self.workers.pop(key)
        for number in worker.waits:
            self.wait_ended(number, "cancelled")
        self.ended(cast("Any", worker), outcome, error)
        return worker.lane

    def leave(self, key: int, outcome: Any, error: BaseException | None = None) -> None:
        """Record the end of an invocation with which its worker ends."""
        heappush(self._free, self.end_step(key, outcome, error))

    def is_dropped(self) -> bool:
        """Whether the result of the invocation that has just returned is dropped with its branch."""
        return self._is_dropped

    # -- the end

    def cancelled(self, reason: str, *, after_steps: bool) -> None:
        """Record that the run was cancelled."""
        self._cancellations += 1
        inside = tuple(sorted(worker.number for worker in self.workers.values()))
        by: CancelledBy = "drain" if after_steps else "owner"
        self._emit(
            CancellationRequested(self.at, self._cancellations, by, reason, "run", None, inside)
        )

    def conclude(self, status: str, last: Event, stop: Event | None) -> None:
        """Record the end of the run."""
        self.enter(None)
        error = None
        if isinstance(last, WorkflowFailedEvent):
            error = last.exception
            named = [key for key, w in self.workers.items() if w.step.name == last.step_name]
            if len(named) == 1:  # the failure that ends a run has no separate record
                self.leave(named[0], "failed", error)
        self._end_all()
        event = self._event if stop is not None and stop is self._value else None
        self._emit(RunEnded(self.at, status=status, error=error, event=event))


def _raise(error: BaseException) -> NoReturn:
    raise error


@final
class ToldRun(PastRun):
    """A run that is rebuilt from its records, and reports what happened.

    Args:
        graph: The workflow as it is now.
        classes: The classes that the records may contain, beside those that the steps name.
        base: The snapshot with which a life begins.
        take: Is called with each record of what happened.
        before: The life before; None for the first one that is recorded.
    """

    def __init__(
        self,
        graph: Graph,
        classes: tuple[type, ...],
        base: rec.Base,
        take: Callable[[Any], object],
        before: ToldRun | None,
    ) -> None:
        self._take = take
        self._records = None if before is None else before.records
        #: The last number on the durable stream.
        self._shown = base.shown
        #: By their numbers in the journal: the waits, and the waits for children.
        self._wait_numbers: dict[int, int] = {}
        self._child_waits: dict[int, int] = {}
        super().__init__(graph, classes, base.snapshot, base.at)

    @property
    def records(self) -> PastRecords:
        """The records that it makes."""
        assert self._records is not None
        return self._records

    def _load(self, at: float) -> None:
        if self._records is None:
            self._records = PastRecords(self.run, at, self._take)
        else:
            self._records.begin_life(self.run, at)
        self.machine.records = self._records
        super()._load(at)

    def apply(self, record: rec.Record) -> None:
        """Apply a record, and report what has happened."""
        records = self.records
        records.reach(record.at)
        records.calling = None
        if record.c == self.own:
            records.calling = records.workers.get(getattr(record, "k", 0))
        records.enter_step()
        super().apply(record)
        records.end_branch_waits()

    def _in(self, record: rec.In) -> None:
        self.records.enter(None, "outside")
        super()._in(record)

    def _begun(self, record: rec.Begun) -> None:
        super()._begun(record)
        self.records.begin_step(record.k, self.flights[record.k])

    def _done(self, record: rec.Done) -> None:
        worker = self.records.workers[record.k]
        self.records.returned(cast("Any", worker), worker.node)
        super()._done(record)
        if record.handed:
            lane = self.records.end_step(record.k, "completed")
            self.records.begin_step(record.made, self.flights[record.made], lane)
        else:
            is_dropped = self.records.is_dropped()
            self.records.leave(record.k, "cancelled" if is_dropped else "completed")

    def _failed(self, record: rec.Failed) -> None:
        number = self.records.workers[record.k].number
        self.records.enter(number, "engine")
        if record.do == "retry":
            self.records.retry_of(number)
        super()._failed(record)
        self.records.leave(record.k, "failed", PastError(record.error))

    def _coll(self, record: rec.Collected) -> None:
        if record.e is None and not record.again:
            self.records.collecting(self._flight(record.k).payload)
        super()._coll(record)
        _, _, complete = self._flight(record.k).journal.collected[-1]
        if complete is not None:
            self.records.collected(record.buffer, [kept.event for kept in complete])

    def _wait(self, record: rec.Wait) -> None:
        number = self._begin_wait("event", record.kind, record.due)
        self._wait_numbers[record.w] = number
        super()._wait(record)
        if record.early is not None:
            wait = self.waits[record.w]
            assert wait.event is not None
            self.records.found_early(wait, wait.event)

    def _begin_wait(self, kind: Any, subject: str = "", until: float | None = None) -> int:
        records = self.records
        number = records.wait_started(records.caller(), kind, subject, until)
        if records.calling is not None:
            records.calling.waits[number] = None
        return number

    def _end_wait(self, number: int, outcome: Any = "done", wait: object = None) -> None:
        for worker in self.records.workers.values():
            if number in worker.waits:
                del worker.waits[number]
                self.records.wait_ended(number, outcome, wait)

    def _waited(self, record: rec.Waited) -> None:
        wait = self.waits[record.w]
        super()._waited(record)
        outcome = "done" if record.taken else "timed_out" if record.at >= wait.due else "cancelled"
        self._end_wait(self._wait_numbers.pop(record.w), outcome, wait)

    def _awaits(self, record: rec.Awaits) -> None:
        super()._awaits(record)
        node = self.branches.get(record.b)
        if node is not None and self.records.calling is not None:
            self.records.calling.waits[self._begin_wait("branch")] = node

    def _sleep(self, record: rec.Sleep) -> None:
        super()._sleep(record)
        number = self._begin_wait("sleep", until=record.due)
        if self.records.calling is not None:
            self.records.calling.waits[number] = record.due

    def _woken(self, record: rec.Woken) -> None:
        super()._woken(record)
        worker = self.records.calling
        if worker is not None:
            for number in [n for n, wait in worker.waits.items() if isinstance(wait, float)]:
                self._end_wait(number, "cancelled")

    def _child(self, record: rec.Child) -> None:
        super()._child(record)
        self.records.child_started(self.records.caller(), record.id, record.workflow)
        self._child_waits[record.child] = self._begin_wait("child", record.id)

    def _end_child(self, record: rec.End, child: ChildRecord, saved: SavedChild) -> None:
        super()._end_child(record, child, saved)
        self.records.child_ended(saved.run_id, record.status)
        self._end_wait(self._child_waits.pop(record.c, 0))

    def _claimed(self, record: rec.Claimed) -> None:
        self.records.enter(None, "outside")
        super()._claimed(record)

    def _state(self, record: rec.State) -> None:
        super()._state(record)
        self.records.edit_ended(self.records.edit_started(), is_committed=True)

    def _pub(self, record: rec.Published) -> None:
        super()._pub(record)
        self._tell_shown(self._event(record.e))

    def _tell_shown(self, event: Event, *, is_last: bool = False) -> None:
        self._shown += 1
        self.records.streamed(self._shown, event, is_last=is_last)

    def _cancel(self, record: rec.Cancelled) -> None:
        super()._cancel(record)
        self.records.cancelled(record.why, after_steps=record.after == "steps")

    def _end(self, record: rec.End) -> None:
        super()._end(record)
        last = self._event(record.e)
        self._tell_shown(last, is_last=True)
        self.records.conclude(record.status, last, self.machine.stop)
