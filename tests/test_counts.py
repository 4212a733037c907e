"""A guard against slowness that reads no clock: how much is done, not how long it takes.

The tables say what one hop, item, event or run may cost at most; `benchmarks._counts` counts it.
Spawns and all that is asked of the event loop are exact, on every Python and with every version of
the libraries. Calls may be fewer than the table has: Python 3.12 inlines comprehensions (``own``),
and older versions of AnyIO do more or less of their own (``calls``). Memory has a margin, a small
one where nothing may be kept.
When a change makes a number better, write the better one here: ``python -m benchmarks._counts``.
"""

from __future__ import annotations

import ast
import platform
import subprocess
import sys
from collections import deque
from fractions import Fraction
from functools import cache
from pathlib import Path

import anyio
import pytest

from benchmarks import _counts
from benchmarks._counts import COUNTS, LIBRARIES, WORKS
from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    _sse,
    _streams,
    step,
)
from sluicegate._definition.graph import graph_of
from sluicegate._engine import invocation, runner
from sluicegate._engine.machine import Machine
from sluicegate._engine.snapshot_write import shape_of
from sluicegate._loop import backend_named
from sluicegate._sse import EventDecoder
from sluicegate._streams import EventLog
from sluicegate.drawing._flow import flow_of
from tests.helpers import calls_of


pytestmark = pytest.mark.skipif(
    platform.python_implementation() != "CPython", reason="what is counted is CPython's"
)

ROOT = Path(__file__).parent.parent

#: What the columns of the tables count; cycles are counted as well, and there are none.
COLUMNS = [name for name in COUNTS if name != "garbage"]

# Trio and asyncio keep deadlines that were taken back until there are many and a pass comes: these
# are the blocks and the objects of what has a timeout. Those of a fan-out's run come and go with
# free lists.
TRIO = """
                          spawns turns passes scopes nurseries    chan. waiters    own calls  blocks objects bytes    peak
hop                            0     0      0      0         0        0       0      4    10       0       0     0       0
hop, 16 to a turn              0  1/16   1/16      0         0        0       0  4.312 11.81       0       0     0       1
2 hops, 1 with a timeout       0     0      0      1         0        0       0     10    66       4       2   245     245
item, 64 workers               0     1   1/64      0         0        0       0  23.06 48.22       0       0     0     178
item, 4 workers                0     1    1/4      0         0        0       0     24  51.5       0       0     0     197
fan-out of 16 and its run      3    21      7      1         1        1       1    514  1156       2       0    75     130
cancelled step                 0     1      0      0         0        0       0      9    53       0       0     0    1662
event of a stream              0     2      1      0         0        0       0  12.14 59.14       0       0     0       0
event nobody reads             0     0      0      0         0        0       0  3.125 4.125       0       0     0       0
run of 3 steps                 0     1      1      1         1        0       0     78   176       0       0     0      12
run with a timeout             0     1      1      1         1        0       0     82   192       4       2   252     428
run among many                 1     3      0      1         1        0       0     87   214       0       0     0    8338
idle run                       1     1      0      1         1        0       1     65   125      63      43  6177    6177
wake-up                        0     2      0      0         0        0       0     59   119       0       0     0     552
idle run, in a step            1     1      0      1         1        0       1     71   149      87      65  9289    9289
wake-up, in a step             0     2      0      0         0        0       0     63   119       0       0     0     536
change of the state            0     0      0      0         0        0       0     18    23       0       0     0       0
"""

ASYNCIO = """
                          spawns turns passes scopes nurseries    chan. waiters    own calls  blocks objects bytes    peak
hop                            0     0      0      0         0        0       0      4    15       0       0     0       0
hop, 16 to a turn              0  1/16   1/16      0         0        0       0  4.062 15.75       0       0     0       0
2 hops, 1 with a timeout       0     0      0      1         0        0       0     14    68       3       2   216     216
item, 64 workers               0     1   1/64      0         0        0       0     23 57.06       0       0     0     183
item, 4 workers                0     1    1/4      0         0        0       0     23    58       0       0     0     196
fan-out of 16 and its run      4    26      8      6         1        1       1    497  1436       2       0    52     230
cancelled step                 0     2      0      0         0        0       0      9 50.52       0       0     0     231
event of a stream              0     2      1      0         0        0       0  10.14 59.14       0       0     0       0
event nobody reads             0     0      0      0         0        0       0  3.125 4.125       0       0     0       0
run of 3 steps                 1     4      3      3         1        0       1     90   264       0       0     0       9
run with a timeout             1     4      3      3         1        0       1     95   283       0       0     0     120
run among many                 2     7      0      4         1        0       1     95   351       0       0     7   12885
idle run                       2     3      0      3         1        0       1     67   224      68      54  7820   10862
wake-up                        1     6      0      2         0        0       1     70   214       0       0     0    3536
idle run, in a step            2     2      0      3         1        0       2     77   245     122     102 14030   14086
wake-up, in a step             0     5      0      1         0        0       0     62   141       0       0     0     544
change of the state            0     0      0      0         0        0       0     18    28       0       0     0       0
"""

TABLES = {"trio": TRIO, "asyncio": ASYNCIO}


def limits_of(library):
    """Return what the table of a library says, by work and count."""
    lines = [line for line in TABLES[library].splitlines()[2:] if line]
    numbers = {line[:26].strip(): map(Fraction, line[26:].split()) for line in lines}
    return {name: dict(zip(COLUMNS, row, strict=True)) for name, row in numbers.items()}


def margin(name, key, limit):
    """Return by how much a number may be over its limit, that being rounded or a rough one."""
    if "bytes" in key:
        # A table of the event loop may grow; what is kept, objects tell. Only over the long sizes is
        # that so little that a list is found which grows by a pointer each time: by 8 bytes.
        return (3 if WORKS[name].long else 400) + limit / 33
    if key in {"blocks", "objects"}:
        return Fraction(1, 4) + limit / 33
    return Fraction(1, 20) if "calls" in key else 0


def complaint(library, name, limits, counts):
    """Return what got dearer, by how much, and where to look; nothing if nothing did."""
    dearer = {
        key: (limit, counts.numbers[key])
        for key, limit in limits.items()
        if counts.numbers[key] > limit + margin(name, key, limit)
    }
    if not dearer:
        return ""
    lines = [f"on {library}, each {name!r} got dearer:"]
    for key, (limit, number) in dearer.items():
        lines.append(
            f"  {key}: {number:g} instead of at most {float(limit):g}",
        )
        lines.append(f"    (+{number - float(limit):g}); look for {COUNTS[key]}")
    lines.append("calls of sluicegate for each:")
    lines += counts.callees(own=True)[:40]
    lines.append(
        f'all: python -m benchmarks._counts --on {library} --calls "{name}", also in the tree before'
    )
    return "\n".join(lines)


def measured(library, name):
    """Return the counts of a work; where it seems dearer, the least that processes of its own count.

    In this process, tables of the interpreter and of the event loop that other tests have filled may
    be resized, which would count as ours. In any process, a set of tasks is resized earlier or later
    with the addresses of the tasks (Trio: 9946 bytes for an idle run in a step, one time in six 10010).
    """
    counts = _counts.measure(library, WORKS[name])
    for _ in range(3):
        if not complaint(library, name, limits_of(library)[name], counts):
            break
        for key, number in measured_alone(library, name).items():
            counts.numbers[key] = min(counts.numbers[key], number)
    return counts


def measured_alone(library, name):
    """Return the numbers of a work as a new process counts them."""
    counting = ["-m", "benchmarks._counts", "--on", library]
    twice = ["--only", name] * 2  # by the second time free lists are filled
    program = [sys.executable, *counting, *twice]
    printed = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    row = printed.splitlines()[-1].removeprefix(name)
    return dict(zip(COUNTS, map(float, row.split()), strict=True))


on_each_library = pytest.mark.parametrize("library", LIBRARIES)
of_each_work = pytest.mark.parametrize("name", WORKS)


@pytest.mark.slow_for("asyncio", "event of a stream")
@on_each_library
@of_each_work
def test_nothing_costs_more_than_it_did(library, name):
    """No spawn, turn, scope, call or byte is added to a hop, an item, an event or a run.

    A run that went well, or was cancelled, leaves no reference cycle: nothing to collect.
    """
    counts = measured(library, name)
    told = complaint(library, name, limits_of(library)[name], counts)

    assert not told, told
    assert counts.numbers["garbage"] == 0, (
        f"on {library}, {name!r} left objects in cycles; look for {COUNTS['garbage']}"
    )


@on_each_library
def test_each_work_has_its_limits(library):
    """The table of each library has every work, and no other."""
    assert list(limits_of(library)) == list(WORKS)


# -- that what is added is found ------------------------------------------------------------------


def added(monkeypatch, library, name, key, owner, attribute, make):
    """Wrap a function with what makes it dearer; return what the guard then says of ``key``."""
    monkeypatch.setattr(owner, attribute, make(getattr(owner, attribute)))
    counts = _counts.measure(library, WORKS[name])
    limits = limits_of(library)[name]
    return complaint(library, name, {key: limits[key]}, counts) if key in limits else counts


@pytest.mark.slow
@on_each_library
def test_a_checkpoint_per_hop_is_found(monkeypatch, library):
    """A full checkpoint where there was half a one is a turn and a pass more."""
    backend = type(backend_named(library))

    def make(_):
        return staticmethod(backend.checkpoint)

    where = monkeypatch, library, "hop", "passes", backend, "checkpoint_if_cancelled"
    told = added(*where, make)

    assert told.startswith(
        f"on {library}, each 'hop' got dearer:\n  passes: 1 instead of at most 0"
    )
    assert "look for backend.checkpoint()" in told


@pytest.mark.slow
@on_each_library
def test_a_scope_per_invocation_is_found(monkeypatch, library):
    """A scope around each invocation is a scope per hop more."""
    backend = backend_named(library)

    def make(invoke):
        async def with_scope(*args):
            with backend.cancel_scope():
                return await invoke(*args)

        return with_scope

    told = added(monkeypatch, library, "hop", "scopes", invocation.Worker, "invoke", make)

    assert "scopes: 1 instead of at most 0\n    (+1); look for backend.cancel_scope()" in told


@pytest.mark.slow
@on_each_library
def test_a_spawn_per_item_is_found(monkeypatch, library):
    """A task for each item, beside the workers, is a spawn per item more."""

    async def nothing():
        pass

    def make(invoke):
        async def with_spawn(self, *args):
            self.run.nursery.start_soon(nothing)
            return await invoke(self, *args)

        return with_spawn

    told = added(
        monkeypatch, library, "item, 4 workers", "spawns", invocation.Worker, "invoke", make
    )

    assert "spawns: 1 instead of at most 0" in told


@pytest.mark.slow
@on_each_library
def test_an_object_per_hop_is_found(monkeypatch, library):
    """What is kept of each hop is a block and an object per hop more."""
    kept = []

    def make(finish):
        def with_log(self, *args):
            kept.append([args])
            return finish(self, *args)

        return with_log

    told = added(monkeypatch, library, "hop", "objects", Machine, "finish", make)

    assert "objects: " in told
    assert "look for something that is kept" in told


@pytest.mark.slow
@on_each_library
@pytest.mark.parametrize(
    ("name", "owner", "attribute"),
    [
        ("hop", Machine, "finish"),
        ("item, 4 workers", Machine, "finish"),
        ("event nobody reads", EventLog, "append"),
        ("run of 3 steps", runner, "conclude"),
    ],
)
def test_a_list_that_only_grows_is_found(monkeypatch, library, name, owner, attribute):
    """It is neither a block nor an object more for each, but a pointer."""
    kept = []

    def make(function):
        def with_note(*args):
            kept.append(None)
            return function(*args)

        return with_note

    told = added(monkeypatch, library, name, "bytes", owner, attribute, make)

    assert "bytes: " in told
    assert "look for something that is kept" in told


@pytest.mark.slow
@on_each_library
def test_a_cycle_per_run_is_found(monkeypatch, library):
    """What holds itself is left to the collector."""

    def make(conclude):
        def with_cycle(*args):
            cycle = []
            cycle.append(cycle)
            conclude(*args)

        return with_cycle

    counts = added(monkeypatch, library, "run of 3 steps", "garbage", runner, "conclude", make)

    assert counts.numbers["garbage"] == 1024


# -- the readers of a stream ----------------------------------------------------------------------


def lines_of(library, function, *args):
    """Return how many lines of ``sluicegate._streams`` are run: a loop counts for each turn."""
    count = 0

    def trace(frame, event, _):
        if event == "call" and frame.f_code.co_filename != _streams.__file__:
            return None
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with _counts.ordered(), _counts.own_clock(0):
            anyio.run(function, *args, backend=library)
    finally:
        sys.settrace(before)
    return count


class Tick(Event):
    n: int


class Done(Event):
    pass


class Ticker(Workflow):
    """Sends ``count`` events from each of ``senders`` steps, when there is room."""

    def __init__(self, count, senders=1, **options):
        super().__init__(**options)
        self.count = count
        self.senders = senders
        self.may_begin = anyio.Event()

    @step
    async def begin(self, ev: StartEvent) -> list[Tick]:
        await self.may_begin.wait()
        return [Tick(n=n) for n in range(self.senders)]

    @step(num_workers=10**6)
    async def send(self, ctx: Context, ev: Tick) -> Done:
        for _ in range(self.count):
            await ctx.stream.send(ev)
        return Done()

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent()


async def read_all(readers, workflow, stuck, lossy):
    async def read():
        nonlocal waiting
        waiting -= 1
        async for _ in handler.stream_events(lossy=lossy):
            pass

    waiting = readers
    async with anyio.create_task_group() as node, workflow.run() as handler:
        kept = [handler.stream_events(lossy=True) for _ in range(stuck)]
        for _ in range(readers):
            node.start_soon(read)
        while waiting:
            await anyio.lowlevel.checkpoint()
        workflow.may_begin.set()
        await handler
        assert not any(reader.sequence for reader in kept)


@on_each_library
@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("options", [{}, {"stream_history": 1}, {"stream_buffer": 1}], ids=str)
def test_an_event_costs_a_reader_the_same_however_many_there_are(library, options, lossy):
    """P16: with a short history, with a small buffer, and beside readers that are stuck."""

    def each(readers, events=40):
        workflow = Ticker(events, **options)
        return lines_of(library, read_all, readers, workflow, readers, lossy) / readers

    few, many = each(10), each(80)

    assert many <= few * 1.05, f"lines for each reader: {few:g} of 10, {many:g} of 80"


@on_each_library
@pytest.mark.parametrize("beside", ["nothing", "a slow one", "as many that wait"])
def test_a_reader_comes_and_goes_at_the_same_cost_however_many_there_are(library, beside):
    """P16: one after the other, all at once in any order, and while another one is slow."""

    async def come_and_go(count):
        run = Ticker(60, stream_history=10).run()
        async with run as handler, anyio.create_task_group() as node:
            slow = handler.stream_events() if beside == "a slow one" else None
            if beside == "as many that wait":
                for _ in range(count):
                    node.start_soon(handler.stream_events().receive)
            readers = [handler.stream_events() for _ in range(count)]
            for reader in readers[::2] + readers[::-2]:
                reader.close()
            for _ in range(count):
                handler.stream_events().close()
            kept = handler._run.log._readers
            assert len(kept.keeping) <= 4 * count + 40
            if slow is not None:
                assert len(kept.keeping) <= 24
            handler.cancel()
            node.cancel_scope.cancel()

    few, many = (lines_of(library, come_and_go, n) / n for n in (20, 160))

    assert many <= few * 1.05, f"lines for each reader: {few:g} of 20, {many:g} of 160"


@on_each_library
def test_an_event_costs_the_same_however_many_senders_wait(library):
    """P16: a reader that makes room wakes one sender, not all of them."""

    def each(senders):
        workflow = Ticker(5, senders, stream_buffer=1)
        return lines_of(library, read_all, 1, workflow, 0, False) / senders

    for _ in range(5):  # where the budget of P3 falls is a matter of chance
        few, many = each(10), each(80)
        if many <= few * 1.05:
            break

    assert many <= few * 1.05, f"lines for each sender: {few:g} of 10, {many:g} of 80"


# -- what waits -------------------------------------------------------------------------------------


class Asked(HumanResponseEvent):
    id: int


class Other(HumanResponseEvent):
    id: int


class Round(Event):
    left: int


class Many(Workflow[int]):
    """``k`` waits with requirements of their own, in one step or in a step each."""

    def __init__(self, k, *, tags=False):
        super().__init__()
        self.k = k
        self.tags = tags

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async def ask(number):
            needs = {"id": number}
            await ctx.wait_for_event(
                Asked, requirements={**needs, "tags": []} if self.tags else needs
            )

        async with anyio.create_task_group() as node:
            for number in range(self.k):
                node.start_soon(ask, number)
        return StopEvent(result=self.k)


class Beside(Workflow[int]):
    """A chain of a hundred hops beside ``k`` waits of another class."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    @step
    async def begin(self, ev: StartEvent) -> list[Round | Asked]:
        return [*(Asked(id=n) for n in range(self.k)), Round(left=100)]

    @step(num_workers=10**6)
    async def wait(self, ctx: Context, ev: Asked) -> None:
        await ctx.wait_for_event(Other, requirements={"id": ev.id})

    @step
    async def hop(self, ev: Round) -> Round | StopEvent:
        if ev.left == 100:
            await anyio.wait_all_tasks_blocked()
            self.count = LINES.count
        if ev.left:
            return Round(left=ev.left - 1)
        return StopEvent(result=LINES.count - self.count)


class Branching(Workflow[int]):
    """``k`` steps that each wait for a branch of their own."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    @step
    async def begin(self, ev: StartEvent) -> list[Asked]:
        return [Asked(id=n) for n in range(self.k)]

    @step(num_workers=10**6)
    async def wait(self, ctx: Context, ev: Asked) -> Round:
        await ctx.send_event(Round(left=1)).wait()
        return Round(left=0)

    @step
    async def work(self, ev: Round) -> Other | None:
        return None if ev.left else Other(id=1)

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        return StopEvent(result=len(evs))


class _Lines:
    """How many lines of sluicegate have run; a loop over what waits shows, also where it calls nothing."""

    def __init__(self):
        self.count = 0

    def trace(self, frame, _event, _argument):
        return self.local if "sluicegate" in frame.f_code.co_filename else None

    def local(self, _frame, event, _argument):
        self.count += event == "line"
        return self.local


LINES = _Lines()


def lines_for(library, work, k):
    """Run ``await work(k)`` in a loop of its own, and return how many lines of sluicegate ran."""
    LINES.count = 0
    before = sys.gettrace()

    async def main():
        sys.settrace(LINES.trace)
        try:
            await work(k)
        finally:
            sys.settrace(before)

    anyio.run(main, backend=library)
    return LINES.count


async def answered_in_reverse(k, **options):
    async with Many(k, **options).run() as handler:
        events = handler.stream_events(expose_internal=True)  # who hears of each change to idle
        await anyio.wait_all_tasks_blocked()
        for number in reversed(range(k)):
            handler.send_event(Asked(id=number, tags=[]) if options else Asked(id=number))
        await handler
        await events.aclose()


async def answered_early(k):
    async with Many(k).run() as handler:
        for number in reversed(range(k)):
            handler.send_event(Asked(id=number))
        await handler


async def with_branches(k):
    await Branching(k).run()


@pytest.mark.slow_for("asyncio")
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("work", [answered_in_reverse, answered_early, with_branches])
def test_a_wait_costs_the_same_however_many_there_are(library, work):
    """P16: per wait and answer a constant number of lines, in whatever order the answers come."""
    lines_for(library, work, 20)  # what happens once has happened
    few, more, many = (lines_for(library, work, k) for k in (20, 60, 180))

    assert (many - more) / 120 <= 1.1 * (more - few) / 40


@pytest.mark.slow_for("asyncio")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_hop_beside_waits_of_another_class_costs_the_same_however_many_there_are(library):
    """P16: waits are found by class, so an event of another class does not look at them."""

    told = []

    async def hops(k):
        told.append(await Beside(k).run())

    for k in (20, 20, 200):
        lines_for(library, hops, k)

    _, few, many = told
    assert many <= 1.05 * few


def test_deliveries_for_many_workers_are_taken_from_the_front_at_no_cost():
    """P16: with more workers than events, taking one of the deliveries does not move the others."""
    queue = Machine(graph_of(Beside), object, object).queues[1]
    assert queue.limit == 10**6
    machine = Machine(graph_of(Beside), object, object)
    machine.receive(StartEvent())
    queue, _, node = machine.next_start()

    machine.finish(queue, node, [Asked(id=n) for n in range(1000)])

    assert isinstance(machine.queues[1].ready, deque)
    taken = [machine.take(machine.queues[1])[1].id for _ in range(999)]
    assert taken == list(range(1, 1000))


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_long_line_costs_what_its_length_is(end, monkeypatch):
    """What has been looked through for the end of a line is not looked through again."""
    looked = 0

    class LineEnd:
        @staticmethod
        def split(text, own=_sse._LINE_END):
            nonlocal looked
            looked += len(text)
            return own.split(text)

    monkeypatch.setattr(_sse, "_LINE_END", LineEnd)

    def cost(size):
        nonlocal looked
        looked, decoder = 0, EventDecoder()
        line = f"data: {'x' * size}{end}{end}".encode()
        events = [e for at in range(0, len(line), 1000) for e in decoder.feed(line[at : at + 1000])]
        assert [e.data for e in events + decoder.flush()] == ["x" * size]
        return looked / size

    assert cost(80_000) <= cost(10_000) * 1.05


# -- imports --------------------------------------------------------------------------------------


PROGRAM = """
import sys, trio

there = set(sys.modules)
import sluicegate

imported = set(sys.modules)
from sluicegate import StartEvent, StopEvent, Workflow, step

class Small(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()

async def main():
    await Small().run()

trio.run(main)
print([sorted(imported - there), sorted(set(sys.modules) - imported)])
"""


@cache
def imports():
    """Return what ``import sluicegate`` imports beyond Trio, and what a run on Trio does then."""
    program = [sys.executable, "-c", PROGRAM]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    return ast.literal_eval(printed)


#: What ``import sluicegate`` may import: of the standard library no module that Trio does not.
IMPORTED = """
._annotations ._context ._cursors ._definition ._definition.checks ._definition.decorators
._definition.graph ._definition.local_names ._definition.nesting ._definition.signatures ._definition.steps ._engine
._engine.clock ._engine.control ._engine.ending ._engine.idle ._engine.failures ._engine.invocation
._engine.joins ._engine.journal ._engine.lineage ._engine.machine ._engine.outcome
._engine.run ._engine.runner ._engine.stalls ._engine.step_operations ._engine.step_queue
._engine.waits ._errors ._events
._events.generics ._events.methods ._exceptions ._handler ._loop ._loop.cleanup
._loop.from_thread ._loop.limits ._loop.run_in_context ._loop.seam ._loop.threads ._observers
._questions ._scope ._streams ._workflow sluicegate
"""


def test_importing_sluicegate_imports_no_more_than_it_did():
    """Whatever ``import sluicegate`` imports is known here, and not needed later by some only."""
    known = {f"sluicegate{name}" if name[0] == "." else name for name in IMPORTED.split()}
    more = set(imports()[0]) - known

    assert not more, (
        f"import sluicegate now imports {sorted(more)}; expected an import inside the function that "
        "needs it, or, where every program does, its name in IMPORTED"
    )


def test_a_run_on_trio_imports_no_more_than_it_did():
    """A run that has no state, no retry and no snapshot imports what is Trio's, and no AnyIO."""
    more = set(imports()[1]) - {"sluicegate._loop.trio"}

    assert not more, (
        f"the first run now imports {sorted(more)}; expected that only who needs it does"
    )


# -- what a workflow costs that is built, checked and drawn ---------------------------------------


def written(lines):
    """Return the workflow class that a source text of one line for each step makes."""
    names: dict[str, object] = {}
    exec("\n".join(["from sluicegate import *", *lines]), names)
    return names["W"]


def chain(size):
    """Return a chain of steps; its faults are looked for, and there are none."""
    lines = [f"class E{i}(Event): ..." for i in range(size + 1)]
    lines.append("class W(Workflow):")
    lines.append(" @step\n async def begin(self, ev: StartEvent) -> E0: ...")
    lines += [f" @step\n async def s{i}(self, ev: E{i}) -> E{i + 1}: ..." for i in range(size)]
    lines.append(f" @step\n async def end(self, ev: E{size}) -> StopEvent: ...")
    return written(lines)


def nested(size):
    """Return fan-outs that are nested as deep as there are, each with its join."""
    lines = [f"class A{i}(Event): ...\nclass Z{i}(Event): ..." for i in range(size + 1)]
    lines.append("class W(Workflow):")
    lines.append(" @step\n async def begin(self, ev: StartEvent) -> A0: ...")
    for i in range(size):
        lines.append(f" @step\n async def out{i}(self, ev: A{i}) -> list[A{i + 1}]: ...")
        lines.append(f" @step\n async def join{i}(self, evs: list[Z{i + 1}]) -> Z{i}: ...")
    lines.append(f" @step\n async def turn(self, ev: A{size}) -> Z{size}: ...")
    lines.append(" @step\n async def end(self, ev: Z0) -> StopEvent: ...")
    return written(lines)


def looping(size):
    """Return fan-outs without joins, from each of which a way leads back to the first."""
    lines = [f"class E{i}(Event): ..." for i in range(size + 1)]
    lines.append("class W(Workflow):")
    lines.append(" @step\n async def begin(self, ev: StartEvent) -> E0: ...")
    for i in range(size):
        lines.append(f" @step\n async def s{i}(self, ev: E{i}) -> list[E{i + 1}] | E0: ...")
    lines.append(f" @step\n async def end(self, ev: E{size}) -> StopEvent | None: ...")
    return written(lines)


def overlapping(size):
    """Return fan-outs within fan-outs that all end in one join: a fault for each but the first."""
    lines = [f"class E{i}(Event): ..." for i in range(size + 1)]
    lines.append("class Z(Event): ...\nclass W(Workflow):")
    lines.append(" @step\n async def begin(self, ev: StartEvent) -> E0: ...")
    for i in range(size):
        lines.append(f" @step\n async def s{i}(self, ev: E{i}) -> list[E{i + 1} | Z]: ...")
    lines.append(f" @step\n async def last(self, ev: E{size}) -> Z: ...")
    lines.append(" @step\n async def join(self, evs: list[Z]) -> StopEvent | Z: ...")
    return written(lines)


def broken(size):
    """Return steps that nothing leads to, and that lead to nothing."""
    lines = [f"class E{i}(Event): ...\nclass F{i}(Event): ..." for i in range(size)]
    lines.append("class W(Workflow):")
    lines.append(" @step\n async def begin(self, ev: StartEvent) -> StopEvent: ...")
    lines += [f" @step\n async def s{i}(self, ev: E{i}) -> F{i}: ..." for i in range(size)]
    return written(lines)


def hierarchy(size):
    """Return steps that take subclasses of the one class that all of them make."""
    lines = ["class B(Event): ...", *(f"class E{i}(B): ..." for i in range(size))]
    lines.append("class W(Workflow):")
    lines.append(" @step\n async def begin(self, ev: StartEvent) -> B: ...")
    lines += [f" @step\n async def s{i}(self, ev: E{i}) -> B | StopEvent: ..." for i in range(size)]
    return written(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [chain, nested, looping, overlapping, broken, hierarchy], ids=lambda f: f.__name__
)
def test_building_costs_the_same_for_each_step(make):
    """A workflow of four times as many steps takes four times as much to build and to check."""
    costs: list[int] = []
    for size in (50, 200):
        cls = make(size)
        costs.append(calls_of(graph_of, cls) / size)

    assert costs[1] <= 1.1 * costs[0]


@pytest.mark.slow
@pytest.mark.parametrize("make", [chain, nested, broken], ids=lambda f: f.__name__)
def test_drawing_costs_the_same_for_each_step(make):
    """A picture of four times as many steps takes four times as much, where no arrow is long."""
    costs = [calls_of(flow_of, make(size)) / size for size in (50, 200)]

    assert costs[1] <= 1.1 * costs[0]


@pytest.mark.slow
@pytest.mark.parametrize("make", [chain, nested, looping, hierarchy], ids=lambda f: f.__name__)
def test_the_parts_of_a_snapshot_that_come_of_the_graph_cost_the_same_for_each_step(make):
    """The shape of a workflow and the classes of its snapshots are found in linear time."""

    def prepare(cls):
        graph = graph_of(cls)
        shape_of(graph)
        graph.codec(())

    graphs = [make(size) for size in (50, 200)]
    for cls in graphs:
        graph_of(cls)
    costs = [calls_of(prepare, cls) / size for cls, size in zip(graphs, (50, 200), strict=True)]

    assert costs[1] <= 1.1 * costs[0]
