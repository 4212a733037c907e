"""The records of random programs, replayed into a strict model, and compared with what the steps log."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from contextlib import contextmanager

import anyio
import attrs
import pytest

from sluicegate import ChildEvent, Context, Event, Observer, StopEvent, records
from sluicegate._observers import observe
from tests.random_programs import building, checking
from tests.random_programs.__main__ import BACKENDS


#: Seeds of the inner set, and of the slow one.
FEW, MORE = range(4), range(4, 80)
#: Programs in which no order of tasks decides when something happens.
EQUAL = (2, 3, 4, 7, 8, 26)
#: The number of the first event on a stream.
FIRST = 1


@attrs.define
class Known:
    """What the model knows of an invocation."""

    queued: records.InvocationQueued
    started: records.InvocationStarted | None = None
    ended: records.InvocationEnded | None = None
    is_cancelled: bool = False
    waits: set[int] = attrs.Factory(set)
    kinds: set[str] = attrs.Factory(set)

    @property
    def is_running(self):
        return self.started is not None and self.ended is None


class Model:
    """One run, rebuilt from its records; raises AssertionError at the first that does not fit."""

    def __init__(self, joins=(), races=()):
        self.joins = {*joins, *races}
        self.races = {*races}
        self.all = []
        self.start = self.end = None
        self.at = float("-inf")
        self.invocations = {}
        self.events = {}
        #: What was given to a step or is still on its way: (event, step).
        self.consumed = set()
        self.pending = set()
        self.collected = set()
        self.waits = {}
        self.open_waits = set()
        self.questions = {}
        self.cancellations = {}
        self.children = {}
        self.child_ends = {}
        self.stream = []
        self.resources = {}
        self.edits = {}
        self.edit = None

    def take(self, record):
        """Take the next record."""
        self.all.append(record)
        assert record.at >= self.at, f"back in time: {record}"
        self.at = record.at
        assert self.end is None, f"after the end: {record}"
        assert (self.start is None) == (type(record) is records.RunStarted), record
        getattr(self, f"_{type(record).__name__}")(record)

    def _running(self, number, record):
        assert self.invocations[number].is_running, f"{number} does not run: {record}"

    def _count(self, known, number, record):
        assert number == len(known) + 1, record
        known[number] = record

    def _RunStarted(self, record):
        assert record.version == records.VERSION
        assert (record.parent_run is None) == (record.parent_invocation is None)
        self.start = record

    def _RunEnded(self, record):
        self.end = record
        assert isinstance(self.stream[-1].value, StopEvent)
        assert all(one.ended is not None for one in self.invocations.values())
        assert self.edit is None
        assert not self.open_waits, {n: self.waits[n] for n in self.open_waits}
        assert self.child_ends.keys() == self.children.keys()
        assert (record.error is None) == (record.status == "completed")
        assert (record.event is not None) == (record.status == "completed")
        if record.event is not None:
            stop = self.events[record.event]
            assert (stop.origin, stop.targets) == ("step", ())
        for event, name in self.pending:  # only a join keeps what it was given
            assert name in self.joins, f"{name} never got {self.events[event]}"
            if record.status == "completed":
                assert name in self.races, f"{name} never got {self.events[event]}"

    def _EventEmitted(self, record):
        self._count(self.events, record.event, record)
        assert record.event_type == type(record.value).__name__
        assert (record.source is None) == (record.origin in {"outside", "snapshot"}), record
        if record.source is not None:
            self._running(record.source, record)
        if record.origin == "snapshot":
            assert self.start.is_resumed
        for name in record.targets:
            assert name in self.start.steps
            self.pending.add((record.event, name))

    def _InvocationQueued(self, record):
        assert record.invocation == len(self.invocations) + 1, record
        self.invocations[record.invocation] = Known(record)
        if record.previous is not None:
            before = self.invocations[record.previous]
            assert before.queued.step == record.step
            assert before.queued.events == record.events
            assert before.queued.attempt == record.attempt - 1
            return
        assert record.attempt == 1 or self.start.is_resumed, record
        for number in record.events:
            event, key = self.events[number], (number, record.step)
            assert key not in self.consumed, f"twice: {record}"
            self.consumed.add(key)
            if event.origin != "snapshot":
                assert key in self.pending, f"not given to it: {record}, {event}"
            self.pending.discard(key)

    def _InvocationStarted(self, record):
        known = self.invocations[record.invocation]
        assert known.started is known.ended is None, record
        if known.queued.not_before is not None:
            assert record.at >= known.queued.not_before
        assert all(
            other.started.worker != record.worker
            for other in self.invocations.values()
            if other.is_running
        )
        known.started = record

    def _InvocationEnded(self, record):
        known = self.invocations[record.invocation]
        assert known.ended is None, f"twice: {record}"
        assert (known.started is None) == (record.outcome == "dropped"), record
        assert (record.outcome == "failed") <= (record.error is not None), record
        assert not known.waits, f"waits still: {record}, {known}"
        known.ended = record

    def _EventsCollected(self, record):
        self._running(record.invocation, record)
        for number in record.events:
            assert number in self.events
            assert (number, record.buffer) not in self.collected, f"twice: {record}"
            self.collected.add((number, record.buffer))

    def _EventStreamed(self, record):
        if self.stream or not self.start.is_resumed:
            before = self.stream[-1].sequence if self.stream else FIRST - 1
            assert record.sequence == before + 1, record
        assert record.invocation is None or record.invocation in self.invocations
        assert record.event_type == type(record.value).__name__
        if isinstance(record.value, ChildEvent):
            assert record.invocation is None, record
        elif record.invocation is not None:
            self._running(record.invocation, record)
        self.stream.append(record)

    def _WaitStarted(self, record):
        self._count(self.waits, record.wait, record)
        self.open_waits.add(record.wait)
        if record.invocation is not None:
            self._running(record.invocation, record)
            self.invocations[record.invocation].waits.add(record.wait)
            self.invocations[record.invocation].kinds.add(record.kind)

    def _WaitEnded(self, record):
        self.open_waits.remove(record.wait)
        wait = self.waits[record.wait]
        if wait.invocation is not None:
            self.invocations[wait.invocation].waits.remove(record.wait)
        assert (record.event is not None) == (wait.kind == "event" and record.outcome == "done")
        if record.event is not None:
            assert self.events[record.event].event_type == wait.subject

    def _QuestionAsked(self, record):
        assert record.question not in self.questions, record
        self.questions[record.question] = True

    def _QuestionAnswered(self, record):
        assert self.questions[record.question], f"twice: {record}"
        self.questions[record.question] = False
        assert record.event is None or record.event in self.events

    def _CancellationRequested(self, record):
        self._count(self.cancellations, record.cancellation, record)
        for number in record.invocations:
            self._running(number, record)
        if record.invocation is not None:
            self._running(record.invocation, record)

    def _CancellationDelivered(self, record):
        known = self.invocations[record.invocation]
        self._running(record.invocation, record)
        assert not known.is_cancelled, f"twice: {record}"
        known.is_cancelled = True
        if record.cancellation is not None:
            assert record.invocation in self.cancellations[record.cancellation].invocations

    def _ChildStarted(self, record):
        self._running(record.invocation, record)
        assert record.run_id not in self.children
        self.children[record.run_id] = record

    def _ChildEnded(self, record):
        assert record.run_id in self.children
        assert record.run_id not in self.child_ends, f"twice: {record}"
        self.child_ends[record.run_id] = record

    def _ResourceOpened(self, record):
        self._count(self.resources, record.resource, record)

    def _StateEditStarted(self, record):
        assert self.edit is None, f"two edits at a time: {record}"
        self._count(self.edits, record.edit, record)
        self._running(record.invocation, record)
        self.edit = record.edit

    def _StateEditEnded(self, record):
        assert record.edit == self.edit, f"twice: {record}"
        self.edit = None

    def _SnapshotTaken(self, record):
        assert record.took >= 0


@attrs.define
class Call:
    """One call of a step's function, as the function itself sees it."""

    name: str
    given: list
    is_thread: bool
    began: float | None
    ended: float | None = None
    returned: list = attrs.Factory(list)
    has_returned: bool = False


class Account(Observer):
    """Models of all runs; and, kept outside of the engine, what steps took, returned and sent."""

    strict = True

    def __init__(self):
        self.models = {}
        self.joins, self.races = set(), set()
        self.calls = []
        self.sent = []
        self.watched = []

    def listen(self, run):
        # A child that had not begun when its parent was saved begins again under its identifier.
        is_child = "/" in run.run_id
        assert run.run_id not in self.models or run.is_resumed or is_child
        model = Model(self.joins, self.races)
        self.models.setdefault(run.run_id, []).append(model)
        return model.take

    def wrap(self, name, function, takes):
        """Return a step's function that logs its calls."""
        if "evs" in takes:
            (self.races if hasattr(takes["evs"], "__metadata__") else self.joins).add(name)
        elif len(takes) == 3:
            self.joins.add(name)

        def begin(args, kwargs, *, is_thread):
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, Event)]
            for one in (*args, *kwargs.values()):
                given += one if isinstance(one, list | tuple) else []
            began = None if is_thread else anyio.current_time()
            self.calls.append(call := Call(name, given, is_thread, began))
            return call

        def end(call, result):
            found = result if isinstance(result, list) else [result]
            call.returned = [one for one in found if one is not None]
            call.has_returned = True
            call.ended = None if call.is_thread else anyio.current_time()
            return result

        if inspect.iscoroutinefunction(function):

            async def logged(*args, **kwargs):
                call = begin(args, kwargs, is_thread=False)
                return end(call, await function(*args, **kwargs))
        else:

            def logged(*args, **kwargs):
                call = begin(args, kwargs, is_thread=True)
                return end(call, function(*args, **kwargs))

        signature = inspect.signature(function)
        logged.__signature__ = signature.replace(
            parameters=[
                one.replace(annotation=takes.get(one.name, one.annotation))
                for one in signature.parameters.values()
            ]
        )
        return logged


@contextmanager
def accounted(monkeypatch):
    """Log what the random programs do in the block, and replay the records of their runs."""
    account = Account()
    add_step, send_event = building.Builder._step, Context.send_event

    def _step(self, name, function, takes, returns, **options):
        wrapped = account.wrap(name, function, takes)
        add_step(self, name, wrapped, takes, returns, **options)

    @functools.wraps(send_event)
    def send(self, event, *args, **kwargs):
        model = account.models[self.run_id][-1]
        # A run that unwinds takes nothing any more; one that was resumed knows what it has sent.
        may_lack = model.start.is_resumed or any(
            one.scope == "run" for one in model.cancellations.values()
        )
        account.sent.append((event, may_lack))
        return send_event(self, event, *args, **kwargs)

    class Watched(checking.Watched):
        def __init__(self, *args):
            super().__init__(*args)
            account.watched.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(building.Builder, "_step", _step)
        patch.setattr(Context, "send_event", send)
        patch.setattr(checking, "Watched", Watched)
        with observe(account):
            yield account


def check_account(account, *, is_virtual):
    """Compare the models with what the steps and the readers have logged themselves."""
    models = [model for found in account.models.values() for model in found]
    assert models
    emitted = {}  # by the id of a value: its records
    invocations = {}  # by the step and the ids of its events: model and invocation
    for model in models:
        assert model.end is not None
        for event in model.events.values():
            emitted.setdefault(id(event.value), []).append((model, event))
        for known in model.invocations.values():
            values = sorted(id(model.events[number].value) for number in known.queued.events)
            key = known.queued.step, *values
            invocations.setdefault(key, []).append((model, known))
    _check_calls(account, emitted, invocations, is_virtual=is_virtual)
    for event, may_lack in account.sent:
        number = len(emitted.get(id(event), ()))
        assert number == 1 or (not number and may_lack), event
    _check_children(account.models)
    _check_streams(account)


def _check_calls(account, emitted, invocations, *, is_virtual):
    called = Counter()
    for call in account.calls:
        key = call.name, *sorted(map(id, call.given))
        found = [one for one in invocations[key] if one[1].started is not None]
        model, known = found[called[key]]
        called[key] += 1
        if known.ended.outcome == "completed":
            assert call.has_returned, (call, known)
            for event in call.returned:
                if id(event) not in emitted and _was_over(model, known.ended):
                    continue
                ((where, record),) = emitted[id(event)]
                assert (where, record.source) == (model, known.queued.invocation)
        elif not call.is_thread:
            assert not any(id(event) in emitted for event in call.returned), (call, known)
        if is_virtual and not call.is_thread:
            if not known.kinds & {"limiter", "thread"}:
                assert known.started.at == call.began, (call, known)
            if known.ended.outcome == "completed":
                assert known.ended.at == call.ended, (call, known)
    for key, found in invocations.items():
        begun = [known for _, known in found if known.started is not None]
        certain = [known for known in begun if known.ended.outcome != "cancelled"]
        assert len(certain) <= called[key] <= len(begun), (key, found)


def _was_over(model, record):
    """Whether the run was cancelled before a record, so that it took no result any more."""
    return any(one.scope == "run" and one.at <= record.at for one in model.cancellations.values())


def _check_children(models):
    for found in models.values():
        for model in found:
            for run_id, child in model.children.items():
                # A child has the same identifier in every life of its parent.
                assert any(
                    inner.start.parent_run == model.start.run_id
                    and inner.start.parent_invocation == child.invocation
                    and model.child_ends[run_id].status == inner.end.status
                    for inner in models[run_id]
                )
            if model.start.parent_run is not None:
                assert any(
                    model.start.run_id in above.children for above in models[model.start.parent_run]
                )


def _check_streams(account):
    seen = Counter()
    for watched in account.watched:
        run_id = watched.handler.run_id
        model = account.models[run_id][seen[run_id]]
        seen[run_id] += 1
        told = [id(record.value) for record in model.stream]
        assert [id(event) for event in watched.streams[0]] == told


def replay(seed, backend, monkeypatch):
    with accounted(monkeypatch) as account:
        problems = checking.run_seed(seed, backend)
    assert problems == []
    check_account(account, is_virtual=backend != "uvloop")
    return account


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", FEW)
def test_a_model_rebuilds_runs_from_their_records(seed, backend, monkeypatch):
    """Every event has its cause, nothing is there twice, nothing is lost, and times are exact."""
    replay(seed, backend, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_rebuilds_more_runs(backend, monkeypatch):
    """As above, for more programs."""
    for seed in MORE:
        replay(seed, backend, monkeypatch)


def uninterrupted(seed, backend, monkeypatch):
    """Return the times of the records of a program that nothing interrupts, by what they tell."""
    make_plan = checking.make_plan

    def plan(*args):
        return attrs.evolve(make_plan(*args), kind="none", timeout=None, snapshot_tick=0)

    with monkeypatch.context() as patch:
        patch.setattr(checking, "make_plan", plan)
        account = replay(seed, backend, monkeypatch)
    times = Counter()
    for model, *_ in account.models.values():
        for one in model.all:
            known = model.invocations.get(getattr(one, "invocation", None))
            name = None if known is None else known.queued.step
            kind = getattr(one, "event_type", getattr(one, "kind", None))
            times[type(one).__name__, model.start.workflow, name, kind, one.at] += 1
    return times


@pytest.mark.parametrize("seed", EQUAL)
def test_times_are_equal_on_both_backends(seed, monkeypatch):
    """In virtual time, the same program has the same records at the same times on Trio and asyncio."""
    on_trio = uninterrupted(seed, "trio", monkeypatch)
    on_asyncio = uninterrupted(seed, "asyncio", monkeypatch)

    assert len(on_trio) > 10
    assert on_trio == on_asyncio


def test_the_model_finds_what_is_missing_or_doubled(monkeypatch):
    """The model refuses the records of a run if one of them is left out or doubled."""
    account = replay(0, "trio", monkeypatch)
    tried = set()
    for model, *_ in account.models.values():
        for place, record in enumerate(model.all):
            before, after = model.all[:place], model.all[place + 1 :]
            kind = type(record).__name__
            tried.add(kind)
            if kind == "SnapshotTaken":  # one stands alone
                continue
            assert not _is_taken(account, [*before, record, record, *after]), record
            if kind != "CancellationDelivered":  # a step in a thread would have none
                assert not _is_taken(account, [*before, *after]), record
    assert len(tried) > 7


def _is_taken(account, changed):
    again = Model(account.joins, account.races)
    try:
        for record in changed:
            again.take(record)
    except (AssertionError, LookupError):
        return False
    return again.end is not None
