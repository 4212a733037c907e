"""What sluicegate costs in counts that do not depend on the machine; ``tests/test_counts.py`` pins them.

``python -m benchmarks._counts`` prints them: task spawns, turns of tasks, passes of the scheduler,
scopes, nurseries, channels, waiters, Python calls and memory, for one hop, item, event or run each.
Every count is the difference of two sizes, divided by the difference of the sizes; so what happens
once does not show, and what is kept, called or spawned each time does.

``--calls WORK`` lists the functions that are called; ``--instructions`` has valgrind count machine
instructions and requests for memory as well.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import anyio
import trio
from anyio._backends import _asyncio as anyio_on_asyncio
from anyio.streams.memory import MemoryObjectSendStream

import sluicegate
from benchmarks._flows import Ask, AskInside, Chain, Ping, Pong
from benchmarks._library import open_group
from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate._loop import backend_named
from sluicegate._streams import TURN


Library = Literal["trio", "asyncio"]
LIBRARIES: tuple[Library, ...] = ("trio", "asyncio")

#: The counts, in the order in which they are shown, and where to look when one has grown.
COUNTS = {
    "spawns": "start_workers: a worker is started where one could have gone on",
    "turns": "an await in the engine that gives the turn away; on asyncio every callback counts",
    "passes": "backend.checkpoint(), or a wake-up that takes a round through the scheduler",
    "scopes": "backend.cancel_scope(), and on asyncio AnyIO's shielded checkpoints; a nursery has one",
    "nurseries": "backend.open_nursery()",
    "channels": "backend.open_inbox(), made where no delivery waits",
    "waiters": "backend.waiter(), made where nobody has to wait",
    "own calls": "the functions of sluicegate that are called, listed below",
    "calls": "the functions that are called, listed below; those of Trio, AnyIO and asyncio count",
    "blocks": "something that is kept: a list that only grows, an object that is not let go",
    "objects": "something that is kept and that the collector has to visit each time",
    "bytes": "something that is kept: larger objects, a __dict__ where there were __slots__",
    "peak bytes": "something that is kept until the work is done",
    "garbage": "a reference cycle: an exception and its frame, a context and its variables",
}


# -- the meters -----------------------------------------------------------------------------------


class Meter:
    """Counts between ``with meter:`` and its end; this one counts nothing."""

    def __init__(self) -> None:
        self.found: Counter[Any] = Counter()

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End."""


class LoopMeter(Meter):
    """Counts what the event loop is asked for. One at a time."""

    current: ClassVar["LoopMeter | None"] = None

    def __enter__(self) -> None:
        LoopMeter.current = self

    def __exit__(self, *_: object) -> None:
        LoopMeter.current = None


def count(what: str) -> None:
    """Add one for the meter that counts, if there is one."""
    if LoopMeter.current is not None:
        LoopMeter.current.found[what] += 1


class Instrument(trio.abc.Instrument):
    """Trio's spawns, turns and passes."""

    def task_spawned(self, task: object) -> None:
        count("spawns")

    def before_task_step(self, task: object) -> None:
        count("turns")

    def after_io_wait(self, timeout: float) -> None:
        count("passes")


class CountingLoop(asyncio.SelectorEventLoop):
    """asyncio's spawns, callbacks and passes."""

    def create_task(self, *args: Any, **options: Any) -> Any:
        count("spawns")
        return super().create_task(*args, **options)

    def call_soon(self, *args: Any, **options: Any) -> Any:
        count("turns")
        return super().call_soon(*args, **options)

    def _run_once(self) -> None:
        count("passes")
        super()._run_once()  # type: ignore[misc]


class MemoryMeter(Meter):
    """Counts what is left behind, after a collection; and how much there was at the most."""

    def __enter__(self) -> None:
        gc.collect()
        self.before = self.look()
        tracemalloc.reset_peak()

    def __exit__(self, *_: object) -> None:
        peak = tracemalloc.get_traced_memory()[1]
        self.found["garbage"] = gc.collect()
        after = self.look()
        for name, value in after.items():
            self.found[name] = value - self.before[name]
        self.found["peak bytes"] = peak - self.before["bytes"]

    @staticmethod
    def look() -> dict[str, int]:
        return {
            "bytes": tracemalloc.get_traced_memory()[0],
            "objects": len(gc.get_objects()),
            "blocks": sys.getallocatedblocks(),
        }


class CallMeter(Meter):
    """Counts how often each Python function is entered, a coroutine also when it goes on.

    ``found`` has the code objects.
    """

    def __enter__(self) -> None:
        found = self.found
        if sys.version_info >= (3, 12):
            here = threading.get_ident()

            def entered(code: Any, _offset: int) -> None:
                if threading.get_ident() == here:
                    found[code] += 1

            tool = sys.monitoring
            self.id = next(i for i in range(6) if tool.get_tool(i) is None)
            tool.use_tool_id(self.id, "benchmarks._counts")
            for kind in (tool.events.PY_START, tool.events.PY_RESUME):
                tool.register_callback(self.id, kind, entered)
            tool.set_events(self.id, tool.events.PY_START | tool.events.PY_RESUME)
        else:

            def profile(frame: Any, event: str, _arg: object) -> None:
                if event == "call":
                    found[frame.f_code] += 1

            self.profile = sys.getprofile()
            sys.setprofile(profile)

    def __exit__(self, *_: object) -> None:
        if sys.version_info >= (3, 12):
            tool = sys.monitoring
            tool.set_events(self.id, 0)
            for kind in (tool.events.PY_START, tool.events.PY_RESUME):
                tool.register_callback(self.id, kind, None)
            tool.free_tool_id(self.id)
        else:
            sys.setprofile(self.profile)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for a while."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def counted(owner: Any, name: str, what: str) -> contextlib.AbstractContextManager[None]:
    """Have the calls of a method counted."""
    original = vars(owner)[name]

    def method(*args: Any, **options: Any) -> Any:
        count(what)
        return original(*args, **options)

    return replaced(owner, name, method)


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Have scopes, nurseries, channels and waiters counted, whoever asks for them."""
    with contextlib.ExitStack() as stack:
        for owner, name, what in (
            (trio.CancelScope, "__enter__", "scopes"),
            (anyio_on_asyncio.CancelScope, "__enter__", "scopes"),
            (trio._core._run.NurseryManager, "__aenter__", "nurseries"),
            (anyio_on_asyncio.TaskGroup, "__aenter__", "nurseries"),
            (trio.MemorySendChannel, "__attrs_post_init__", "channels"),
            (MemoryObjectSendStream, "__post_init__", "channels"),
        ):
            stack.enter_context(counted(owner, name, what))
        for library in LIBRARIES:
            backend = type(backend_named(library))
            waiter: Any = vars(backend)["waiter"]
            made = getattr(waiter, "__func__", waiter)
            stack.enter_context(replaced(backend, "waiter", staticmethod(_counted_call(made))))
        yield


def _counted_call(made: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        count("waiters")
        return made()

    return make


@contextlib.contextmanager
def own_clock(tick: float) -> Iterator[None]:
    """Have the clock by which the engine gives others their turn go on by *tick* at each look."""
    now = 0.0

    def look() -> float:
        nonlocal now
        now += tick
        return now

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "sluicegate" and "perf_counter" in vars(module):
                stack.enter_context(replaced(module, "perf_counter", look))
        yield


class InOrder(random.Random):
    """Leaves tasks in the order in which they became ready; Trio takes the last first."""

    def shuffle(self, x: Any) -> None:
        x.reverse()


@contextlib.contextmanager
def ordered() -> Iterator[None]:
    """Have Trio run tasks in the order in which they began."""
    run: Any = trio._core._run
    with (
        replaced(run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        replaced(run, "_r", InOrder()),
    ):
        yield


def own_tasks() -> contextlib.AbstractContextManager[None]:
    """Have AnyIO begin a table of tasks; renewing one with many of others would count as ours."""
    return replaced(anyio_on_asyncio, "_task_states", weakref.WeakKeyDictionary())


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep the collector from coming by itself, and from looking at what was there before."""
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


# -- the works ------------------------------------------------------------------------------------


lib: Any = trio  # or anyio, while the works run on asyncio


class CountedChain(Chain):
    """What is counted lies between two hops."""

    def __init__(self, n: int, meter: Meter) -> None:
        super().__init__(n)
        self.meter = meter

    @step
    async def begin(self, ev: StartEvent) -> Ping:
        return Ping(i=-2)

    @step
    async def ping(self, ev: Ping) -> Pong | StopEvent:
        if ev.i == 0:
            self.meter.__enter__()
        elif ev.i == self.n:
            self.meter.__exit__()
            return StopEvent(result=ev.i)
        return Pong(i=ev.i + 1)

    @step
    async def pong(self, ev: Pong) -> Ping:
        return Ping(i=ev.i + 1)


class PatientChain(CountedChain):
    """The same with a timeout at one of the two steps."""

    @step(timeout=60)
    async def pong(self, ev: Pong) -> Ping:
        return Ping(i=ev.i + 1)


class Job(Event):
    i: int


class Done(Event):
    i: int


class FanOut(Workflow[Any]):
    """A fan-out to 64 workers and a join."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    @step
    async def produce(self, ev: StartEvent) -> list[Job]:
        return [Job(i=i) for i in range(self.k)]

    @step(num_workers=64)
    async def work(self, ev: Job) -> Done:
        await lib.lowlevel.checkpoint()
        return Done(i=ev.i)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


class NarrowFanOut(FanOut):
    """The same with 4 workers."""

    @step(num_workers=4)
    async def work(self, ev: Job) -> Done:
        await lib.lowlevel.checkpoint()
        return Done(i=ev.i)


class Stuck(FanOut):
    """The same with steps that wait for ever."""

    started = finished = 0

    @step(num_workers=1000)
    async def work(self, ev: Job) -> Done:
        self.started += 1
        try:
            await lib.sleep_forever()
        finally:
            self.finished += 1
        return Done(i=ev.i)


class Token(Event):
    value: int


#: Events are forgotten 16 at once, that is one more than a 64th of these.
HISTORY = 960


class Streamer(Workflow[int]):
    """Sends tokens to the stream, with or without waiting for readers."""

    def __init__(self, m: int, *, waits: bool) -> None:
        super().__init__(stream_history=HISTORY)
        self.m = m
        self.waits = waits

    @step
    async def produce(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for i in range(self.m):
            if self.waits:
                await lib.lowlevel.checkpoint()
                await ctx.stream.send(Token(value=i))
            else:
                ctx.write_event_to_stream(Token(value=i))
        return StopEvent(result=self.m)


class ThreeSteps(Workflow[int]):
    """One, two, three; with a gate in the second step, if there is to be one."""

    def __init__(self, gate: Any = None, timeout: float | None = None) -> None:
        super().__init__(timeout=timeout)
        self.gate = gate
        self.arrived = 0

    @step
    async def first(self, ev: StartEvent) -> Ping:
        return Ping(i=1)

    @step
    async def second(self, ev: Ping) -> Pong:
        self.arrived += 1
        if self.gate is not None:
            await self.gate.wait()
        return Pong(i=ev.i + 1)

    @step
    async def third(self, ev: Pong) -> StopEvent:
        return StopEvent(result=ev.i + 1)


class Counting(Workflow[int]):
    """Adds one to a number in its state."""

    def __init__(self, n: int, meter: Meter) -> None:
        super().__init__()
        self.n = n
        self.meter = meter

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("number", 0)
        with self.meter:
            for _ in range(self.n):
                async with ctx.store.edit_state() as state:
                    state.number += 1
        return StopEvent(result=await ctx.store.get("number"))


async def chain(n: int, meter: Meter) -> None:
    assert await CountedChain(n, meter).run() == n


async def patient_chain(n: int, meter: Meter) -> None:
    assert await PatientChain(2 * n, meter).run() == 2 * n


async def fan_out(n: int, meter: Meter) -> None:
    with meter:
        assert await FanOut(n).run() == n


async def narrow_fan_out(n: int, meter: Meter) -> None:
    with meter:
        assert await NarrowFanOut(n).run() == n


async def fan_outs(n: int, meter: Meter) -> None:
    workflow = NarrowFanOut(16)
    with meter:
        for _ in range(n):
            assert await workflow.run() == 16


async def cancel(n: int, meter: Meter) -> None:
    workflow = Stuck(n)
    async with workflow.run() as handler:
        while workflow.started < n:
            await lib.lowlevel.checkpoint()
        with meter:
            await handler.cancel()
        del handler
    assert workflow.finished == n


async def stream(n: int, meter: Meter) -> None:
    with meter:
        got = 0
        async with Streamer(n, waits=True).run() as handler:
            async for event in handler.stream_events():
                got += isinstance(event, Token)
        assert got == n
        del event, handler


async def unread_stream(n: int, meter: Meter) -> None:
    with meter:
        assert await Streamer(n, waits=False).run() == n


async def runs(n: int, meter: Meter) -> None:
    workflow = ThreeSteps()
    with meter:
        for _ in range(n):
            assert await workflow.run() == 3


async def runs_with_timeout(n: int, meter: Meter) -> None:
    workflow = ThreeSteps(timeout=60)
    with meter:
        for _ in range(n):
            assert await workflow.run() == 3


async def runs_at_once(n: int, meter: Meter) -> None:
    workflow = ThreeSteps(gate=lib.Event())
    with meter:
        async with open_group(lib) as group:
            handlers = [workflow.run().start_soon(group) for _ in range(n)]
            while workflow.arrived < n:
                await lib.lowlevel.checkpoint()
            workflow.gate.set()
        assert [handler.result() for handler in handlers] == [3] * n
        del handlers, group


async def _ask(workflow: Any, n: int, idle: Meter, wake: Meter) -> None:
    async with open_group(lib) as group:
        with idle:
            handlers = [workflow.run().start_soon(group) for _ in range(n)]
            while workflow.asked < n:
                await lib.lowlevel.checkpoint()
            for _ in range(5):
                await lib.lowlevel.checkpoint()
        assert {handler.status for handler in handlers} == {"idle"}
        with wake:
            for i, handler in enumerate(handlers):
                handler.send_event(HumanResponseEvent(response=i))
            while not all(handler.is_done() for handler in handlers):
                await lib.lowlevel.checkpoint()
            for _ in range(5):
                await lib.lowlevel.checkpoint()
            assert [handler.result() for handler in handlers] == list(range(n))
            handlers.clear()
            del handler


async def idle(n: int, meter: Meter) -> None:
    await _ask(Ask(), n, meter, Meter())


async def wake(n: int, meter: Meter) -> None:
    await _ask(Ask(), n, Meter(), meter)


async def idle_inside(n: int, meter: Meter) -> None:
    await _ask(AskInside(), n, meter, Meter())


async def wake_inside(n: int, meter: Meter) -> None:
    await _ask(AskInside(), n, Meter(), meter)


async def edit_state(n: int, meter: Meter) -> None:
    assert await Counting(n, meter).run() == n


@dataclass(frozen=True)
class Work:
    """
    A function that does *n* things, and two sizes of it.

    The clock goes on by *tick* at each look. Where nothing may be kept, memory is counted over the
    *long* sizes: there a table that grows when it is its time is less than a byte for each thing.
    """

    do: Callable[[int, Meter], Awaitable[None]]
    sizes: tuple[int, int]
    tick: float = 0.0
    long: tuple[int, int] | None = None


WORKS = {
    "hop": Work(chain, (64, 192), long=(64, 8192)),
    "hop, 16 to a turn": Work(chain, (64, 192), TURN / 16, long=(64, 8192)),
    "2 hops, 1 with a timeout": Work(patient_chain, (32, 96)),
    "item, 64 workers": Work(fan_out, (128, 256), long=(128, 4096)),
    "item, 4 workers": Work(narrow_fan_out, (128, 256), long=(128, 4096)),
    "fan-out of 16 and its run": Work(fan_outs, (8, 24)),
    "cancelled step": Work(cancel, (32, 96)),
    "event of a stream": Work(stream, (1024, 3072), long=(1024, 16384)),
    "event nobody reads": Work(unread_stream, (1024, 3072), long=(1024, 16384)),
    "run of 3 steps": Work(runs, (8, 24), long=(8, 1024)),
    "run with a timeout": Work(runs_with_timeout, (8, 24)),
    "run among many": Work(runs_at_once, (32, 96)),
    "idle run": Work(idle, (16, 48)),
    "wake-up": Work(wake, (16, 48)),
    "idle run, in a step": Work(idle_inside, (16, 48)),
    "wake-up, in a step": Work(wake_inside, (16, 48)),
    "change of the state": Work(edit_state, (64, 192), long=(64, 8192)),
}


# -- counting -------------------------------------------------------------------------------------


@dataclass
class Counts:
    """The counts of one thing, and how often each function was called for it."""

    numbers: dict[str, float] = field(default_factory=dict)
    calls: dict[Any, float] = field(default_factory=dict)

    def callees(self, *, own: bool) -> list[str]:
        """The functions, those called most often first."""
        found = [(n, code) for code, n in self.calls.items() if is_own(code) or not own]
        found.sort(key=lambda item: (-item[0], item[1].co_qualname))
        return [f"{n:8.2f}  {Path(c.co_filename).name}: {c.co_qualname}" for n, c in found]


HOME = str(Path(sluicegate.__file__).parent)


def is_own(code: Any) -> bool:
    """Whether a function is one of sluicegate, or one that attrs made for it."""
    name = code.co_filename
    return name.startswith(HOME) or (name.startswith("<attrs generated") and " sluicegate." in name)


def measure(library: Library, work: Work) -> Counts:
    """Count what one more thing of *work* costs."""
    counts = Counts()
    run(library, work, [(work.sizes[0], Meter())])  # all is imported whose clock is replaced
    with ordered(), own_tasks(), quiet_collector():
        if work.long:  # first, for the reason that _slope has
            memory = _memory(library, work)
        with counting():
            counts.numbers.update(dict.fromkeys(list(COUNTS)[:7], 0.0))
            counts.numbers.update(_slope(library, work, LoopMeter))
        counts.calls = _slope(library, work, CallMeter)
        counts.numbers["own calls"] = sum(n for code, n in counts.calls.items() if is_own(code))
        counts.numbers["calls"] = sum(counts.calls.values())
        if not work.long:  # last: the event loop's tables have grown by then
            memory = _memory(library, work)
    counts.numbers.update(memory)
    return counts


def _memory(library: Library, work: Work) -> dict[Any, float]:
    tracemalloc.start()
    try:
        return _slope(library, work, MemoryMeter)
    finally:
        tracemalloc.stop()


def _slope(library: Library, work: Work, kind: type[Meter]) -> dict[Any, float]:
    small, large = work.sizes
    warm = large
    if kind is MemoryMeter and work.long is not None:
        small, large = work.long
        warm = small  # a list that is long already grows seldom, and much at once
    first, second = kind(), kind()
    with own_clock(work.tick):
        run(library, work, [(warm, Meter()), (small, first), (large, second)])
    slopes = {
        key: (second.found[key] - first.found[key]) / (large - small)
        for key in {**first.found, **second.found}
    }
    if kind is MemoryMeter:
        slopes["garbage"] = float(second.found["garbage"])  # none is none, whatever the size
    return slopes


def run(library: Library, work: Work, rounds: list[tuple[int, Meter]]) -> None:
    """Do a work in an event loop of its own, once with each size and its meter."""
    counts_loop = isinstance(rounds[-1][1], LoopMeter)

    async def main() -> None:
        if library == "trio" and counts_loop:
            trio.lowlevel.add_instrument(Instrument())
        for n, meter in rounds:
            await work.do(n, meter)

    with replaced(sys.modules[__name__], "lib", trio if library == "trio" else anyio):
        if library == "trio":
            trio.run(main)
        else:
            factory = CountingLoop if counts_loop else asyncio.SelectorEventLoop
            with asyncio.Runner(loop_factory=factory, debug=False) as runner:
                runner.run(main())


# -- machine instructions -------------------------------------------------------------------------


def instructions(library: Library, name: str) -> dict[str, float]:
    """Have valgrind count the instructions of one more thing, and its requests for memory.

    Unlike the counts of `measure`, what is let go again at once is counted as well.
    """
    small, large = (2 * size for size in WORKS[name].sizes)
    first, second = (_callgrind(library, name, n) for n in (small, large))
    return {key: (second[key] - first[key]) / (large - small) for key in second}


def _callgrind(library: Library, name: str, n: int) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "callgrind.out")
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={written}"]
        this = ["-m", "benchmarks._counts", "--on", library, "--only", name, "--once", str(n)]
        subprocess.run(
            [*valgrind, sys.executable, *this],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            check=True,
        )
        return _read_callgrind(written.read_text())


def _read_callgrind(text: str) -> Counter[str]:
    """Return the sum of the instructions, and how often the allocator's functions were called."""
    found: Counter[str] = Counter()
    names: dict[str, str] = {}
    callee = ""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key in {"fn", "cfn"}:
            # A name is written out once, and has a number from then on.
            number, _, function = value.partition(" ")
            callee = names.setdefault(number, function) if function else names[number]
        elif key == "calls" and callee.startswith(ALLOCATORS):
            found["allocations"] += int(value.split()[0])
        elif line.startswith(("totals:", "summary:")):
            found["instructions"] = int(line.split()[1])
    return found


#: The functions of CPython through which every object and table gets its memory.
ALLOCATORS = ("_PyObject_Malloc", "_PyObject_Calloc", "_PyObject_Realloc")


def once(library: Library, name: str, n: int) -> None:
    """Do a work once, with nothing that counts."""
    work = WORKS[name]
    with ordered(), own_clock(work.tick), quiet_collector():
        run(library, work, [(n, Meter())])


# -- the report -----------------------------------------------------------------------------------


def table(library: Library, names: list[str]) -> Iterator[str]:
    """Yield the lines of the table, each as soon as it is there."""
    yield f"{library:26}" + "".join(f"{name:>11}" for name in COUNTS)
    for name in names:
        numbers = measure(library, WORKS[name]).numbers
        yield f"{name:26}" + "".join(f"{round(numbers[key], 3):11.6g}" for key in COUNTS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks._counts")
    parser.add_argument("--on", choices=LIBRARIES, action="append")
    parser.add_argument("--only", choices=WORKS, action="append")
    parser.add_argument("--calls", choices=WORKS, metavar="WORK")
    parser.add_argument("--instructions", action="store_true", help="minutes; needs valgrind")
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.instructions and shutil.which("valgrind") is None:
        parser.error("--instructions needs valgrind, and there is none on the PATH")
    for library in options.on or LIBRARIES:
        if options.once:
            once(library, options.only[0], options.once)
            continue
        if options.instructions:
            print(f"{library:26}{'instructions':>14}{'allocations':>14}")
            for name in options.only or WORKS:
                found = instructions(library, name)
                print(
                    f"{name:26}{found['instructions']:14,.0f}{found['allocations']:14.1f}",
                    flush=True,
                )
            continue
        if options.calls:
            print(f"{options.calls}, on {library}")
            print("\n".join(measure(library, WORKS[options.calls]).callees(own=False)))
            continue
        for line in table(library, options.only or list(WORKS)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
