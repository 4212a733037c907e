"""Dumps: what every run of a process does, and what it waits for."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import attrs
import pytest

import sluicegate
from sluicegate import (
    Context,
    Event,
    RateLimiter,
    Resource,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    dump_runs,
    step,
)
from sluicegate._engine import dump
from sluicegate._engine.dump_values import seconds, shown
from sluicegate._engine.run import Run
from tests.helpers import (
    Asked,
    Done,
    Fan,
    Item,
    Mine,
    Said,
    Single,
    all_blocked,
    limit,
    on_asyncio,
    on_each_backend,
    run_virtually,
    stepping,
)


every_loop = pytest.mark.anyio
posix = pytest.mark.skipif(not hasattr(signal, "SIGQUIT"), reason="there is no SIGQUIT here")


def dumped():
    """Return the lines of a dump; lengths of time, which differ, as ``T``."""
    file = io.StringIO()
    dump_runs(file)
    text = re.sub(r"\d+\.\d s", "T", file.getvalue())
    return re.sub(r"(test_dump|helpers)\.py:\d+", r"\1.py:N", text).splitlines()


def block_of(lines, first):
    """Return the lines below one that begins with ``first``, without what they are indented by."""
    begin = next(n for n, line in enumerate(lines) if line.strip().startswith(first))
    depth = len(lines[begin]) - len(lines[begin].lstrip())
    found = []
    for line in lines[begin + 1 :]:
        if len(line) - len(line.lstrip()) <= depth:
            break
        found.append(line[depth + 2 :])
    return found


async def dump_of(workflow, **fields):
    """Start a run, let it go as far as it can, and return what a dump says of it."""
    with limit():
        async with workflow.run(run_id="run-1", **fields) as handler:
            await all_blocked()
            lines = dumped()
            handler.cancel()
    return block_of(lines, "run run-1")


# -- steps -------------------------------------------------------------------------------------------


@every_loop
async def test_a_step_is_shown_with_its_event_and_its_lines():
    """A step has its event, its time, and the user's lines down to the function that it awaits."""

    async def inner():
        await anyio.sleep_forever()

    async def work(ctx):
        await inner()

    lines = await dump_of(Single(work))

    assert lines == [
        "only: 1 of 4 workers",
        "  StartEvent(), for T",
        (
            "    at tests/helpers.py:N in Single.only:  "
            "return StopEvent(result=await self.function(ctx))"
        ),
        "    at tests/test_dump.py:N in work:  await inner()",
        "    at tests/test_dump.py:N in inner:  await anyio.sleep_forever()",
        "    in anyio: sleep_forever",
    ]


@every_loop
async def test_what_is_queued_is_counted_and_invocations_alike_are_shown_once():
    """Of a thousand steps at one line, one is shown; the others are counted."""

    class Wide(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(1000)]

        @step(num_workers=900)
        async def work(self, ev: Item) -> Done:
            await anyio.sleep_forever()
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    lines = await dump_of(Wide())

    assert lines[0] == "work: 900 of 900 workers, 100 queued"
    assert lines[4].startswith("  899 more alike: Item(number=")
    assert lines[5:] == ["end:", "  join: 0 have arrived, 1,000 are still under way"]


@every_loop
async def test_a_step_with_a_timeout_says_when_it_passes():
    """The deadlines of the step and of the run are shown; a retried step has its attempt."""

    class Slow(Workflow):
        @step(timeout=50, retry=Retry(stop=3, wait=0))
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.retry_info().retry_number == 0:
                raise Mine
            await anyio.sleep_forever()
            return StopEvent()

    with limit():
        async with Slow(timeout=60).run(run_id="run-1") as handler:
            await all_blocked()
            lines = dumped()
            handler.cancel()

    assert "its timeout passes in T" in next(line for line in lines if "run run-1" in line)
    assert block_of(lines, "only")[0] == ("StartEvent(), for T, attempt 2, its timeout passes in T")


@every_loop
async def test_tasks_of_a_step_are_shown_below_it():
    """What a step has started is shown with its lines; so is what it awaits through a task."""

    async def child():
        await anyio.sleep_forever()

    async def work(ctx):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, name="a child")

    lines = await dump_of(Single(work))

    below = block_of(lines, "task a child")
    assert below[0] == "at tests/test_dump.py:N in child:  await anyio.sleep_forever()"


@on_asyncio
@every_loop
async def test_a_task_that_is_awaited_is_followed():
    """The lines go on in the asyncio task that a step awaits."""

    async def other():
        await anyio.sleep_forever()

    async def work(ctx):
        await asyncio.create_task(other())

    lines = await dump_of(Single(work))

    assert "    at tests/test_dump.py:N in other:  await anyio.sleep_forever()" in lines


@every_loop
async def test_async_generators_and_other_awaitables_are_followed():
    """The lines go on through ``async for``, ``async with`` and ``__await__``."""

    class Awaited:
        def __await__(self):
            return (yield from self.last().__await__())

        async def last(self):
            await anyio.sleep_forever()

    async def numbers():
        await Awaited()
        yield 1

    @asynccontextmanager
    async def opened():
        async for _ in numbers():
            pass
        yield

    async def work(ctx):
        async with opened():
            pass

    lines = await dump_of(Single(work))

    places = [line.partition(" in ")[2].partition(":")[0] for line in lines if " at " in line]
    assert places == [
        "Single.only",
        "work",
        "opened",
        "numbers",
        "Awaited.__await__",
        "Awaited.last",
    ]


# -- waits -------------------------------------------------------------------------------------------


@every_loop
async def test_a_wait_for_an_event():
    """A wait names the event, where it can come from, and when it gives up."""

    async def work(ctx):
        await ctx.wait_for_event(Said, Asked(name="ann"), requirements={"name": "ann"}, timeout=50)

    lines = await dump_of(Single(work))

    assert lines[0] == "only: 1 waiting without a worker"
    assert lines[2].strip() == ("waits for Said(name='ann') from outside, for T, gives up in T")
    assert lines[-1].strip() == "in sluicegate: Context.wait_for_event"


@every_loop
async def test_an_open_question_without_a_wait():
    """A question that a step returned is shown with the run, which waits for its answer."""

    class Asking(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Asked:
            return Asked(name="ann")

        @step
        async def take(self, ev: Said) -> StopEvent:
            return StopEvent()

    lines = await dump_of(Asking())

    assert lines == ["asks Asked(name='ann'), for T, and waits for the answer"]


@every_loop
async def test_a_wait_for_a_place_after_the_answer():
    """A step that has its answer, and no place, says who has the places."""
    held = anyio.Event()

    class Busy(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=1), Item(number=2)]

        @step(num_workers=1)
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ev.number == 1:
                await ctx.wait_for_event(Said)
            held.set()
            await anyio.sleep_forever()
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    with limit():
        async with Busy().run() as handler:
            await held.wait()
            handler.send_event(Said(name="ann", text="yes"))
            await all_blocked()
            lines = dumped()
            handler.cancel()

    assert block_of(lines, "Item(number=1)")[0] == (
        "can continue, and waits for a place: 1 of 1 taken by Item(number=2)"
    )


@every_loop
@pytest.mark.parametrize("kind", ["CapacityLimiter", "Lock", "Semaphore", "RateLimiter"])
async def test_a_wait_for_a_limiter(kind):
    """A step that waits for its limiter says who holds it."""
    makers = {
        "CapacityLimiter": lambda: anyio.CapacityLimiter(1),
        "Lock": anyio.Lock,
        "Semaphore": lambda: anyio.Semaphore(1),
        "RateLimiter": lambda: RateLimiter(1, per=1000),
    }

    class Limited(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=1), Item(number=2)]

        @step(limiter=makers[kind]())
        async def work(self, ev: Item) -> Done:
            await anyio.sleep_forever()
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    lines = await dump_of(Limited())

    taken = ": 1 of 1 taken" if kind == "CapacityLimiter" else ""
    text = next(line.strip() for line in lines if "limiter" in line)
    assert re.fullmatch(
        rf"waits for its limiter, a {kind}{taken}, held by Limited\.work Item\(number=[12]\)", text
    )


@every_loop
async def test_a_limiter_that_a_task_of_the_program_holds():
    """A task outside of the runs that holds the limiter of a step is named."""
    limiter = anyio.CapacityLimiter(1)

    async def hold(task_status=anyio.TASK_STATUS_IGNORED):
        async with limiter:
            task_status.started()
            await anyio.sleep_forever()

    async def work(ctx):
        pass

    async with anyio.create_task_group() as tasks:
        await tasks.start(hold, name="the holder")
        lines = await dump_of(stepping(work, limiter=limiter)())
        tasks.cancel_scope.cancel()

    assert lines[2].strip() == (
        "waits for its limiter, a CapacityLimiter: 1 of 1 taken, held by the task the holder"
    )


@every_loop
async def test_a_wait_for_a_branch():
    """A step that waits for a branch says which steps are in it."""

    class Branching(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            await ctx.send_event(Item(number=1)).wait()
            return StopEvent()

        @step
        async def work(self, ev: Item) -> None:
            await anyio.sleep_forever()

    lines = await dump_of(Branching())

    assert block_of(lines, "StartEvent()")[0] == (
        "waits for a branch, in which 1 under way: Branching.work Item(number=1)"
    )


@every_loop
async def test_a_child_is_shown_below_its_step():
    """The run of a child is shown with its own steps and waits, and its lines only there."""

    async def inner(ctx):
        await ctx.wait_for_event(Said)

    async def outer(ctx):
        await ctx.run_child(Single(inner), run_id="child-1")

    lines = await dump_of(Single(outer))

    below = block_of(lines, "run child-1 of Single")
    assert below[0] == "only: 1 waiting without a worker"
    assert below[2].strip().startswith("waits for Said() from outside")
    above = lines[: next(n for n, line in enumerate(lines) if "child-1" in line)]
    assert not any("wait_for_event" in line for line in above)


@on_each_backend
def test_the_delay_of_a_retry(backend):
    """A delivery that waits for its next attempt says which it is, and when it is due."""

    async def main():
        async def work(ctx):
            raise Mine

        async with stepping(work, retry=Retry(stop=3, wait=7))().run() as handler:
            await anyio.sleep(2)
            file = io.StringIO()
            dump_runs(file)
            handler.cancel()
        return file.getvalue().splitlines()

    lines = run_virtually(backend, main)

    assert block_of(lines, "only:") == ["StartEvent() is tried again in 5.0 s: attempt 2"]


@every_loop
async def test_a_wait_to_change_the_state():
    """A step that waits to edit the state says who is editing it."""

    async def work(ctx, number):
        async with ctx.store.edit_state():
            await anyio.sleep_forever()

    lines = await dump_of(Fan(work, count=2))

    text = next(line.strip() for line in lines if "state" in line and "waits" in line)
    assert re.fullmatch(
        r"waits to change the state, which is being edited by Fan\.work Item\(number=[01]\)", text
    )


@every_loop
async def test_a_wait_for_a_slow_reader():
    """A step that is held up by a reader says how far it is behind, and where its task is."""

    async def work(ctx):
        for n in range(100):
            await ctx.stream.send(Item(number=n))

    with limit():
        async with Single(work, stream_buffer=4).run() as handler:

            async def read():
                stream = handler.stream_events()
                await anext(stream)
                await anyio.sleep_forever()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, name="a reader")
                await all_blocked()
                lines = dumped()
                tasks.cancel_scope.cancel()
            handler.cancel()

    assert block_of(lines, "StartEvent()")[0] == (
        "waits for a reader of the stream, which is 4 events behind: last read by the task "
        "a reader, at tests/test_dump.py:N in test_a_wait_for_a_slow_reader.<locals>.read"
    ).replace("test_a_wait_for_a_slow_reader.<locals>.", "")
    assert block_of(lines, "a reader:")[0].endswith("await anyio.sleep_forever()")


@every_loop
async def test_a_wait_for_a_slot_among_the_runs():
    """A run that waits because its workflow has enough of them says which have the slots."""

    async def work(ctx):
        await anyio.sleep_forever()

    workflow = Single(work, num_concurrent_runs=1)
    with limit():
        async with workflow.run(run_id="first") as first:
            await all_blocked()
            async with workflow.run(run_id="second") as second:
                await all_blocked()
                lines = dumped()
                second.cancel()
            first.cancel()

    assert block_of(lines, "run second") == ["waits for a slot: 1 of 1 runs at a time, first"]


@every_loop
async def test_a_wait_for_a_resource():
    """A step that waits for a resource which another one is opening names it."""

    async def connect():
        await anyio.sleep_forever()

    class Using(Workflow):
        @step
        async def only(
            self, ev: StartEvent, link: Annotated[object, Resource(connect, scope="run")]
        ) -> StopEvent:
            return StopEvent()

    lines = await dump_of(Using())

    assert lines[2].strip() == "waits for the resource connect to be opened"


@every_loop
async def test_a_wait_for_another_run():
    """A step that awaits the handler of another run names that run."""

    async def sleep(ctx):
        await anyio.sleep_forever()

    with limit():
        async with Single(sleep).run(run_id="first") as first:

            async def work(ctx):
                await first

            async with Single(work).run(run_id="second") as second:
                await all_blocked()
                lines = dumped()
                second.cancel()
            first.cancel()

    assert "waits for the end of the run first of Single" in [
        line.strip() for line in block_of(lines, "run second")
    ]


# -- threads, processes and loops -----------------------------------------------------------------------


@every_loop
async def test_a_step_in_a_thread_is_shown_where_it_is():
    """The lines of a ``def`` step are those of its thread; what waits for a thread says so."""
    goes_on = threading.Event()
    is_there = threading.Event()

    def compute():
        is_there.set()
        goes_on.wait(10)

    class Threaded(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=1), Item(number=2)]

        @step
        def work(self, ev: Item) -> Done:
            compute()
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    with limit():
        async with Threaded(max_threads=1).run() as handler:
            try:
                while not is_there.is_set():
                    await anyio.sleep(0.001)
                lines = dumped()
            finally:
                goes_on.set()
            await handler

    text = "\n".join(lines)
    assert "in a thread:" in text
    assert "at tests/test_dump.py:N in Threaded.work:  compute()" in text
    assert "at tests/test_dump.py:N in compute:  goes_on.wait(10)" in text
    assert "waits for a thread: 1 of 1 taken by Threaded.work (1); 1 compute" in text


@every_loop
async def test_a_thread_that_waits_for_the_loop_is_shown_in_both():
    """While a thread runs a coroutine in the loop, both stacks are shown."""
    there = anyio.Event()

    async def in_loop():
        there.set()
        await anyio.sleep_forever()

    class Threaded(Workflow):
        @step
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.from_thread.run(in_loop)
            return StopEvent()

    with limit():
        async with Threaded().run() as handler:
            await there.wait()
            lines = dumped()
            handler.cancel()

    text = "\n".join(lines)
    assert "in Threaded.only:  ctx.from_thread.run(in_loop)" in text
    assert "in in_loop:  await anyio.sleep_forever()" in text


@pytest.mark.slow
@every_loop
async def test_a_step_in_a_process_is_shown_with_it():
    """A step in a process names the process."""
    from tests.process_flows import Counting  # noqa: PLC0415

    with anyio.fail_after(30):
        async with Counting().run(times=1, until="/nowhere") as handler:
            await anext(handler.stream_events())
            lines = dumped()
            handler.cancel()

    assert re.fullmatch(r"runs in the process \d+", block_of(lines, "StartEvent(")[0])


@on_each_backend
def test_a_loop_that_is_blocked_is_shown_from_another_thread(backend):
    """The main use: a step blocks its event loop, and another thread asks where."""
    blocked, goes_on = threading.Event(), threading.Event()

    def block():
        blocked.set()
        assert goes_on.wait(10)

    async def work(ctx):
        block()

    async def main():
        await Single(work).run(run_id=f"on-{backend}")

    thread = threading.Thread(target=sluicegate.run, args=(main,), kwargs={"backend": backend})
    thread.start()
    try:
        assert blocked.wait(10)
        lines = dumped()
    finally:
        goes_on.set()
        thread.join()

    below = block_of(lines, f"run on-{backend}")
    assert thread.name in next(line for line in lines if f"run on-{backend}" in line)
    assert "    runs now, and nothing else in its event loop does:" in below
    assert "    at tests/test_dump.py:N in block:  assert goes_on.wait(10)" in below


def test_the_loops_of_all_threads_are_shown():
    """A dump shows the runs of every event loop of the process."""
    loops = ["trio", "asyncio"]
    ready = threading.Barrier(len(loops) + 1)
    ends = {}

    def program(backend):
        async def work(ctx):
            ends[backend] = (anyio.Event(), loop_caller())
            await anyio.to_thread.run_sync(ready.wait, 10)
            await ends[backend][0].wait()

        async def main():
            await Single(work).run(run_id=f"on-{backend}")

        sluicegate.run(main, backend=backend)

    def loop_caller():
        from sluicegate._loop import current_backend  # noqa: PLC0415

        here = current_backend()
        return here.caller_into(here.current_loop())

    threads = [threading.Thread(target=program, args=(loop,), name=loop) for loop in loops]
    for thread in threads:
        thread.start()
    ready.wait(10)
    lines = dumped()
    for event, call in ends.values():
        call(event.set)
    for thread in threads:
        thread.join()

    for loop in loops:
        title = next(line for line in lines if f"run on-{loop} " in line)
        assert f"on {loop} in the thread {loop}" in title
        assert f"other tasks on {loop} in the thread {loop}:" in lines


# -- what a dump does not do ------------------------------------------------------------------------------


class Loud:
    """A user's class: its code must not be called."""

    def __repr__(self):
        raise AssertionError

    __str__ = __format__ = __hash__ = __len__ = __repr__

    def __eq__(self, other):
        raise AssertionError

    def __getattr__(self, name):
        raise AssertionError


class LoudText(str):
    __slots__ = ()

    def __repr__(self):
        raise AssertionError


class Secret(Event):
    name: str
    key: str = attrs.field(repr=False)
    other: object


@every_loop
async def test_no_code_of_the_user_is_called():
    """Objects are shown by their class, and fields without a repr not at all."""

    class Showing(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Secret:
            return Secret(name="ann", key="12345", other=[Loud(), LoudText("x"), {"a": Loud()}])

        @step
        async def work(self, ev: Secret) -> StopEvent:
            await anyio.sleep_forever()
            return StopEvent()

    lines = await dump_of(Showing())

    assert lines[1].strip() == ("Secret(name='ann', other=[<Loud>, <LoudText>, {...}]), for T")


def test_values_are_shown_shortened():
    """Long and deep values are cut."""
    assert shown("x" * 1000) == f"'{'x' * 56}..."
    assert shown([1, 2, 3, 4, 5, 6]) == "[1, 2, 3, 4, and 2 more]"
    assert shown({"a": {"b": {"c": 1}}}) == "{'a': {'b': {...}}}"
    assert shown((1,)) == "(1)"
    assert shown(int) == "int"
    assert shown(10**5000).startswith("<int, which cannot be read")
    assert shown(Item(number=1), 0) == "Item(...)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.25, "1.2 s"),
        (99.9, "99.9 s"),
        (125, "2 min 5 s"),
        (7200, "2 h 0 min"),
        (86400 * 3, "3 days 0 h"),
    ],
)
def test_lengths_of_time_are_for_reading(value, text):
    """Seconds at first, then minutes, hours and days."""
    assert seconds(value) == text


@every_loop
async def test_what_cannot_be_read_does_not_break_the_rest(monkeypatch):
    """A part that raises, as another thread goes on, is left out, and says so."""
    real = dump._Report._step

    def broken(self, queue):
        if queue.step.name == "work":
            raise RuntimeError("dictionary changed size during iteration")
        return real(self, queue)

    monkeypatch.setattr(dump._Report, "_step", broken)

    async def work(ctx, number):
        await anyio.sleep_forever()

    lines = await dump_of(Fan(work))

    assert lines[0] == (
        "step work could not be read: RuntimeError: 'dictionary changed size during iteration'"
    )
    assert lines[1] == "end:"


@every_loop
async def test_a_dump_keeps_no_run_alive():
    """P1: a run that has ended after a dump is collected as any other, without the collector."""

    async def work(ctx):
        await anyio.sleep_forever()

    gc.collect()
    gc.disable()
    try:
        await dump_of(Single(work))
        await anyio.lowlevel.checkpoint()
        left = [one for one in gc.get_objects() if type(one) is Run and one.run_id == "run-1"]
    finally:
        gc.enable()

    assert left == []


def test_a_process_without_runs_says_so():
    """Where nothing runs, a dump is one line."""
    assert dumped() == [f"sluicegate: 0 runs in process {os.getpid()}"]


@every_loop
async def test_a_run_that_nobody_has_started_is_counted():
    """A handler that was made and not used is one answer to why nothing happens."""
    handler = stepping(lambda ctx: None)().run()

    assert dumped() == [
        f"sluicegate: 0 runs in process {os.getpid()}, and 1 that nobody has started"
    ]
    handler.cancel()


@every_loop
async def test_many_runs_alike_are_counted():
    """Of a thousand runs of a server at the same place, three are shown."""

    async def work(ctx):
        await ctx.wait_for_event(Said)

    workflow = Single(work)
    with limit():
        async with anyio.create_task_group() as nursery:
            handlers = [workflow.run(run_id=f"r{n}").start_soon(nursery) for n in range(50)]
            await all_blocked()
            lines = dumped()
            for handler in handlers:
                handler.cancel()
            for handler in handlers:
                handler.exceptions  # noqa: B018 - looked at
            nursery.cancel_scope.cancel()

    assert sum(line.startswith("run r") for line in lines) == 3
    assert sum(line.startswith("47 more runs look the same: ") for line in lines) == 1


@every_loop
async def test_a_run_that_unwinds_says_so():
    """A cancelled run shows what its steps still clean up."""

    async def clean_up():
        await anyio.sleep(0.05)

    async def work(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await clean_up()

    with limit():
        async with Single(work).run(run_id="run-1") as handler:
            await all_blocked()
            handler.cancel()
            await anyio.sleep(0.01)
            lines = dumped()

    assert "unwinds: cancelled" in next(line for line in lines if "run run-1" in line)
    assert any("in clean_up:  await anyio.sleep(0.05)" in line for line in lines)


@every_loop
async def test_a_dump_goes_to_standard_error_by_default(capsys):
    """``dump_runs()`` prints where faulthandler does."""
    dump_runs()

    assert capsys.readouterr().err.startswith("sluicegate: 0 runs in process")


@posix
def test_a_dump_interrupts_a_write(tmp_path):
    """A handler of the program may print a dump in the middle of a write to the same stream."""
    path = tmp_path / "written"
    with path.open("wb") as raw:

        class Slow(io.RawIOBase):
            def writable(self):
                return True

            def fileno(self):
                return raw.fileno()

            def write(self, data):
                if bytes(data) == b"first":
                    dump_runs(stream)
                raw.write(data)
                raw.flush()
                return len(data)

        stream = io.TextIOWrapper(io.BufferedWriter(Slow()), write_through=True)
        stream.write("first")
        stream.flush()

    assert path.read_text() == f"sluicegate: 0 runs in process {os.getpid()}\nfirst"


# -- the signal -------------------------------------------------------------------------------------------


LOOPS = pytest.mark.parametrize(
    "loop",
    [("trio", {}), ("asyncio", {}), ("asyncio", {"use_uvloop": True})],
    ids=["trio", "asyncio", "uvloop"],
)


@posix
@LOOPS
@pytest.mark.parametrize("blocks", [True, False], ids=["in a step", "while it waits"])
def test_sigquit_prints_a_dump_and_changes_nothing(loop, blocks, capfd):
    """Ctrl-\\ prints every run of a program under ``run(main)``, which goes on."""

    def hold_the_loop():
        signal.raise_signal(signal.SIGQUIT)

    async def work(ctx):
        if blocks:
            hold_the_loop()
        else:
            await anyio.sleep(0.05)
        return "done"

    async def main():
        async with Single(work).run(run_id="run-1") as handler:
            if not blocks:
                await anyio.sleep(0.01)
                signal.raise_signal(signal.SIGQUIT)
            return await handler

    if loop[1]:
        pytest.importorskip("uvloop")
    before = signal.getsignal(signal.SIGQUIT)
    assert sluicegate.run(main, backend=loop[0], backend_options=loop[1]) == "done"
    assert signal.getsignal(signal.SIGQUIT) == before

    text = capfd.readouterr().err
    assert "run run-1 of Single" in text
    assert ("in hold_the_loop:  signal.raise_signal" in text) is blocks
    assert ("runs now" in text) is blocks
    assert ("in work:  await anyio.sleep(0.05)" in text) is not blocks


@posix
def test_a_handler_of_the_program_is_kept():
    """A program that handles SIGQUIT itself, or ignores it, goes on doing so."""
    seen = []
    before = signal.signal(signal.SIGQUIT, lambda *_: seen.append(1))
    try:

        async def main():
            signal.raise_signal(signal.SIGQUIT)

        sluicegate.run(main)
        ours = signal.getsignal(signal.SIGQUIT)
    finally:
        signal.signal(signal.SIGQUIT, before)

    assert seen == [1]
    assert ours is not before


PROGRAM = """
    import time
    from sluicegate import StartEvent, StopEvent, Workflow, step

    class Stuck(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            print("ready", flush=True)
            end = time.monotonic() + 30
            while time.monotonic() < end:
                pass
            return StopEvent()
"""


@posix
@pytest.mark.slow_for("asyncio")
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_command_line_prints_a_dump_of_a_step_that_never_yields(tmp_path, backend):
    """Ctrl-\\ on ``sluicegate run`` shows the line of an endless loop, and the program goes on."""
    (tmp_path / "stuck.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "-m", "sluicegate", "run", "stuck.py:Stuck", "--backend", backend]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGQUIT)
            lines = [process.stderr.readline() for _ in range(7)]
            assert process.poll() is None
        finally:
            process.kill()

    text = "".join(lines)
    assert " of Stuck, for " in text
    assert re.search(r"at stuck\.py:\d+ in Stuck\.only:  ", text), text
