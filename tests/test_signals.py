"""Signals: the first unwinds a program, the second tells what is left, the third ends it (P17, P22).

The signals are real ones. What ends the process is tried in a process of its own.
"""

from __future__ import annotations

import asyncio
import dis
import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Annotated

import anyio
import pytest
import trio

import sluicegate
from sluicegate import (
    Context,
    Event,
    Observer,
    Resource,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowError,
    catch_error,
    step,
    workflow_scope,
)
from sluicegate._engine import invocation
from sluicegate._loop import run_in_context
from tests.helpers import (
    Catch,
    Done,
    Fan,
    Item,
    Note,
    Single,
    nothing_left,
    on_each_backend,
    own_run,
    wait_until_idle,
)


pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGHUP"), reason="the signals of POSIX are wanted"
)

LOOPS = pytest.mark.parametrize(
    "loop",
    [("trio", {}), ("asyncio", {}), ("asyncio", {"use_uvloop": True})],
    ids=["trio", "asyncio", "uvloop"],
)
SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
FORMS = pytest.mark.parametrize("form", ["in place", "block", "scope", "nursery"])


@pytest.fixture(autouse=True)
def _default_dispositions():
    """Whoever started the tests may have had a signal ignored."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def dispositions():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def run(main, loop):
    """Run as a program does; return what left, and check that the dispositions are as before."""
    before = dispositions()
    if loop[1]:
        pytest.importorskip("uvloop")
    with Catch() as left:
        sluicegate.run(main, backend=loop[0], backend_options=loop[1])

    assert dispositions() == before
    return left.error


def assert_ended_by(error, number):
    if number == signal.SIGINT:
        assert type(error) is KeyboardInterrupt
    else:
        assert type(error) is SystemExit
        assert error.code == 128 + number


# -- the first ---------------------------------------------------------------------------------------


@LOOPS
@FORMS
@SIGNALS
def test_first_signal_unwinds_like_a_cancellation(loop, form, number):
    """P22: every step sees a cancellation, its shielded clean-up runs to its end, main's as well."""
    seen = []

    async def work(ctx, n):
        try:
            if n == 1:
                os.kill(os.getpid(), number)
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            seen.append("cancelled")
            raise
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
                seen.append("cleaned up")

    async def main():
        with nothing_left():
            try:
                await own_run(form, handler)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                seen.append("main")

    handler = Fan(work).run()
    assert_ended_by(run(main, loop), number)

    assert sorted(seen[:-1]) == ["cancelled"] * 3 + ["cleaned up"] * 3
    assert seen[-1] == "main"
    assert handler.status == "cancelled"


@LOOPS
@FORMS
@SIGNALS
def test_signal_leaves_shielded_clean_up_alone(loop, form, number):
    """P22: one that comes in the middle of a shielded clean-up waits for its end (on Trio too)."""
    seen = []

    async def work(ctx):
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            os.kill(os.getpid(), number)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.001)
            seen.append("closed")
        await anyio.sleep_forever()

    handler = Single(work).run()
    assert_ended_by(run(functools.partial(own_run, form, handler), loop), number)

    assert seen == ["closed"]
    assert handler.status == "cancelled"


@LOOPS
@SIGNALS
def test_signal_before_the_program_has_begun(loop, number):
    """P22: one that comes while the event loop starts is not lost: the first await is cancelled."""
    seen = []

    async def main():
        seen.append("begun")
        await Single(seen.append).run()

    class Early:
        def __call__(self, frame, kind, _what):
            if kind == "call" and frame.f_code.co_name == "run_in_new_loop":
                sys.setprofile(None)
                signal.raise_signal(number)

    sys.setprofile(Early())
    try:
        error = run(main, loop)
    finally:
        sys.setprofile(None)

    assert_ended_by(error, number)
    assert seen == ["begun"]


@LOOPS
def test_signal_in_the_last_moment_is_not_lost(loop):
    """P22: one that comes when nothing awaits any more leaves all the same."""

    async def main():
        await anyio.lowlevel.checkpoint()
        os.kill(os.getpid(), signal.SIGTERM)
        return "done"

    assert_ended_by(run(main, loop), signal.SIGTERM)


@LOOPS
def test_threads_are_waited_for(loop):
    """P1, P22: a plain ``def`` step ends by itself before the signal leaves."""
    seen = []

    class Plain(Workflow):
        @step
        def work(self, ev: StartEvent) -> StopEvent:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            seen.append("ended")
            return StopEvent()

    async def main():
        await Plain().run()

    assert_ended_by(run(main, loop), signal.SIGTERM)
    assert seen == ["ended"]


@LOOPS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_failure_of_the_clean_up_is_told(loop, number, capsys):
    """P9, P22: the signal leaves; what failed while it unwound is its cause, and is shown."""
    failure = ValueError("not closed")

    async def main():
        try:
            os.kill(os.getpid(), number)
            await anyio.sleep_forever()
        finally:
            raise failure

    error = run(main, loop)

    assert_ended_by(error, number)
    assert error.__cause__ is failure
    # The interpreter shows a KeyboardInterrupt with its cause, and nothing of a SystemExit.
    assert ("ValueError: not closed" in capsys.readouterr().err) == (number != signal.SIGINT)


# -- the second --------------------------------------------------------------------------------------


@LOOPS
@SIGNALS
def test_second_signal_lists_what_still_cleans_up(loop, number, capfd):
    """P22: it names the steps, and their lines, on standard error; unwinding continues."""
    seen = []

    async def work(ctx):
        try:
            os.kill(os.getpid(), number)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                os.kill(os.getpid(), number)
                await anyio.lowlevel.checkpoint()
                seen.append("cleaned up")

    handler = Single(work).run()
    assert_ended_by(run(functools.partial(own_run, "in place", handler), loop), number)

    first, *listed, last = capfd.readouterr().err.splitlines()
    assert first == f"sluicegate: {number.name} again; still cleaning up:"
    assert any(line.startswith("    Single.only, at test_signals.py:") for line in listed)
    assert last == f"a third {number.name} ends the process without it"
    assert seen == ["cleaned up"]


@LOOPS
@SIGNALS
def test_second_signal_is_raised_in_the_step_that_holds_the_event_loop(loop, number):
    """P22: where the loop has had no turn since the first, there is no one else to end it."""
    seen = []

    async def work(ctx):
        try:
            os.kill(os.getpid(), number)
            assert number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a place to take it
            seen.append("went on")
            os.kill(os.getpid(), number)
            give_up = time.monotonic() + 5
            while time.monotonic() < give_up:
                pass
            seen.append("was not interrupted")
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                seen.append("cleaned up")

    handler = Single(work).run()
    assert_ended_by(run(functools.partial(own_run, "in place", handler), loop), number)

    assert seen == ["went on", "cleaned up"]
    assert handler.is_done()


@LOOPS
def test_second_signal_spares_the_engine_s_books(loop, capfd):
    """P17, P22: in the middle of the engine's own code it is not raised."""

    class Signalling(Observer):
        def step_started(self, invocation):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    async def work(ctx):
        await anyio.sleep_forever()

    handler = Single(work, observers=[Signalling()]).run()
    assert_ended_by(run(functools.partial(own_run, "in place", handler), loop), signal.SIGTERM)

    assert handler.status == "cancelled"
    assert "SIGTERM again" in capfd.readouterr().err


@LOOPS
def test_signals_of_two_kinds_are_counted_by_kind(loop, capfd):
    """P22: another kind of signal while the program unwinds is no second one; the first leaves."""

    async def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await anyio.sleep_forever()
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGHUP)

    assert_ended_by(run(main, loop), signal.SIGTERM)
    assert capfd.readouterr().err == ""


# -- the third ---------------------------------------------------------------------------------------


PROGRAM = textwrap.dedent(
    """
    import os, signal, sys, anyio, sluicegate

    backend, number, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    async def main():
        try:
            os.kill(os.getpid(), number)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(times - 1):
                    os.kill(os.getpid(), number)
                    await anyio.lowlevel.checkpoint()
                await anyio.sleep(0.001)
            print("cleaned up", flush=True)

    sluicegate.run(main, backend=backend)
    """
)


def program(backend, number, times, *before):
    """Run the program in a process of its own; return its exit code and what it printed."""
    done = subprocess.run(
        [*before, sys.executable, "-c", PROGRAM, backend, str(int(number)), str(times)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow_for("asyncio")
@on_each_backend
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_third_signal_ends_the_process(backend, number):
    """P22: it ends as the signal has it where nothing handles it."""
    assert program(backend, number, 3) == (-number, "")


in_namespace = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@functools.cache
def makes_namespaces():
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*in_namespace, "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("times", [1, 3])
def test_first_process_of_a_namespace(backend, times):
    """P22: PID 1 of a container, which the kernel lets ignore signals, unwinds and ends as others."""
    if not makes_namespaces():
        pytest.skip("this process may not make a PID namespace")
    code, printed = program(backend, signal.SIGTERM, times, *in_namespace)

    assert code == 128 + signal.SIGTERM
    assert printed == ("cleaned up\n" if times == 1 else "")


# -- whose signals they are ----------------------------------------------------------------------------


@LOOPS
@SIGNALS
@pytest.mark.parametrize("how", ["ignored", "handled"])
def test_a_signal_that_another_handles_is_left_alone(loop, number, how):
    """P22: under ``nohup``, or with a handler of its own, a program keeps the disposition."""
    came = []
    mine = signal.SIG_IGN if how == "ignored" else lambda number, frame: came.append(number)
    before = signal.signal(number, mine)
    try:

        async def main():
            os.kill(os.getpid(), number)
            await anyio.lowlevel.checkpoint()
            assert signal.getsignal(number) is mine

        error = run(main, loop)
    finally:
        signal.signal(number, before)

    assert error is None
    assert came == ([] if how == "ignored" else [number])


@LOOPS
def test_a_handler_that_the_program_installs_stays(loop):
    """P22: restored is what was replaced, and not what the program has put there itself."""

    def mine(number, frame):
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM)
    try:

        async def main():
            signal.signal(signal.SIGTERM, mine)

        sluicegate.run(main, backend=loop[0])
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@LOOPS
def test_another_thread_installs_nothing(loop):
    """P22: handlers are for the main thread; an event loop in another runs as ever."""
    before = dispositions()
    seen = []

    async def main():
        seen.append(dispositions())

    thread = threading.Thread(
        target=sluicegate.run, args=[main], kwargs={"backend": loop[0], "backend_options": loop[1]}
    )
    thread.start()
    thread.join()

    assert seen == [before]


# -- Ctrl-C and what computes --------------------------------------------------------------------------


class Part(Event):
    pass


def compute():
    """Compute until Ctrl-C comes, which another thread sends once it is under way."""
    began = threading.Event()

    def interrupt():
        began.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        began.set()
    msg = "Ctrl-C did not reach what computes"
    raise AssertionError(msg)


def wrapped(function):
    @functools.wraps(function)
    async def call(*args):
        return await function(*args)

    return call


async def slow_factory() -> object:
    compute()
    return object()


def plain_factory() -> object:
    compute()
    return object()


class Bare(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        compute()
        return StopEvent()


class WithContext(Workflow):
    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        compute()
        return StopEvent()


class WithCare(Workflow):
    @step(retry=Retry(stop=2), timeout=100, limiter=trio.CapacityLimiter(1))
    async def work(self, ev: StartEvent) -> StopEvent:
        compute()
        return StopEvent()


class Wrapped(Workflow):
    @step
    @wrapped
    async def work(self, ev: StartEvent) -> StopEvent:
        compute()
        return StopEvent()


class Handling(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise LookupError

    @catch_error
    async def mend(self, ev: StepFailedEvent) -> StopEvent:
        compute()
        return StopEvent()


class FannedOut(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(3)]

    @step
    async def work(self, ev: Item) -> Part:
        compute()
        return Part()

    @step
    async def end(self, evs: list[Part]) -> StopEvent:
        return StopEvent()


class Parent(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        await Bare().run()
        return StopEvent()


class FromThread(Workflow):
    @step
    def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async def inner():
            compute()

        ctx.from_thread.run(inner)
        return StopEvent()


class AsyncResource(Workflow):
    @step
    async def work(
        self, ev: StartEvent, tool: Annotated[object, Resource(slow_factory)]
    ) -> StopEvent:
        return StopEvent()


class PlainResource(Workflow):
    @step
    async def work(
        self, ev: StartEvent, tool: Annotated[object, Resource(plain_factory)]
    ) -> StopEvent:
        return StopEvent()


@pytest.mark.parametrize(
    "kind",
    [
        Bare,
        WithContext,
        WithCare,
        Wrapped,
        Handling,
        FannedOut,
        Parent,
        FromThread,
        AsyncResource,
        PlainResource,
    ],
)
def test_interrupt_reaches_a_step_that_computes(kind):
    """P17: under a bare ``trio.run`` Ctrl-C is raised in what holds the event loop, as in any task."""
    handler = kind().run()

    async def main():
        with nothing_left():
            await handler

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)

    assert handler.is_done()


def test_a_step_that_is_protected_stays_so():
    """P17: who protects a step with Trio's decorator is not interrupted in it."""
    seen = []

    class Guarded(Workflow):
        @step
        @trio.lowlevel.enable_ki_protection
        async def work(self, ev: StartEvent) -> StopEvent:
            signal.raise_signal(signal.SIGINT)
            seen.append("went on")
            return StopEvent()

    async def main():
        await Guarded().run()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)

    assert seen == ["went on"]


def test_an_interrupt_before_a_coroutine_has_begun_leaves_none_behind():
    """P17: no coroutine is left that was never awaited; warnings are errors here."""

    class Single(Workflow):
        @step
        async def work(self, ev: StartEvent) -> Part:
            return Part()

        @step
        async def end(self, ev: Part) -> StopEvent:
            return StopEvent()

    class Interrupter:
        def __init__(self, at):
            self.at = at
            self.seen = 0

        def __call__(self, frame, kind, _what):
            if kind in ("call", "return", "c_call", "c_return"):
                file = frame.f_code.co_filename
                if file in (run_in_context.__file__, invocation.__file__):
                    self.seen += 1
                    if self.seen == self.at:
                        sys.setprofile(None)
                        signal.raise_signal(signal.SIGINT)

    workflow = Single()

    async def main(interrupter):
        sys.setprofile(interrupter)
        try:
            await workflow.run()
        finally:
            sys.setprofile(None)

    at = 0
    is_over = False
    while not is_over:
        at += 1
        try:
            trio.run(main, Interrupter(at))
        except KeyboardInterrupt:
            continue
        is_over = True

    assert at > 20


class Interrupted(Workflow):
    """Every kind of work that the engine does, with a count of steps begun and ended."""

    def __init__(self, **options):
        super().__init__(**options)
        self.begun = 0
        self.ended = 0

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item] | Note:
        self.begun += 1
        try:
            ctx.send_event(Note(number=1))
            ctx.write_event_to_stream(Note(number=2))
            await anyio.lowlevel.checkpoint()
            return [Item(number=n) for n in range(3)]
        finally:
            self.ended += 1

    @step(num_workers=2, timeout=100)
    async def work(self, ctx: Context, ev: Item) -> Done:
        self.begun += 1
        try:
            await ctx.stream.send(Note(number=3))
            await anyio.lowlevel.checkpoint()
            return Done(number=ev.number)
        finally:
            self.ended += 1

    @step
    async def side(self, ev: Note) -> None:
        self.begun += 1
        self.ended += 1

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        self.begun += 1
        self.ended += 1
        return StopEvent(result=len(evs))


class Interrupter:
    """Sends SIGINT at the n-th call of a Python function, where Python looks for signals.

    It does so when a function begins, and not when a coroutine goes on after an ``await``.
    """

    RESUME = dis.opmap["RESUME"]

    def __init__(self, at):
        self.at = at
        self.count = 0

    def __call__(self, frame, kind, _what):
        if kind == "call" and self.looks_for_signals(frame):
            self.count += 1
            if self.count == self.at:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    def looks_for_signals(self, frame):
        code = frame.f_code.co_code
        at = frame.f_lasti
        return code[at] == self.RESUME and code[at + 1] & 3 < 2


def interrupt_at(at, form):
    """Run with SIGINT at the n-th call; return how many there were, or None if it came."""
    interrupter = Interrupter(at)
    workflow = Interrupted()
    handlers = []

    async def main():
        handler = workflow.run()
        handlers.append(handler)
        sys.setprofile(interrupter)
        try:
            if form == "in place":
                await handler
            elif form == "block":
                async with handler:
                    async for _ in handler.stream_events():
                        pass
                    await handler
            elif form == "scope":
                async with workflow_scope():
                    async for _ in handler.stream_events():
                        pass
                    await handler
            else:
                async with trio.open_nursery() as nursery:
                    handler.start_soon(nursery)
                    await handler
        finally:
            sys.setprofile(None)

    with Catch() as left:
        trio.run(main)
    if interrupter.count < at:
        assert left.error is None
        return interrupter.count
    (handler,) = handlers
    if handler.status == "unstarted":
        handler.cancel()
    error = left.error if form != "nursery" else left.one
    assert type(error) is KeyboardInterrupt, (at, left.error)
    assert workflow.begun == workflow.ended, at
    assert handler.is_done(), at
    # And the run can be looked at: it has ended in one way, and its stream with it.
    trio.run(check_ended, handler)
    return None


async def check_ended(handler):
    events = [event async for event in handler.stream_events()]
    assert [isinstance(e, StopEvent) for e in events] == [False] * (len(events) - 1) + [True]
    assert handler.status in ("completed", "cancelled", "failed")
    if handler.status == "completed":
        assert handler.result() == 3
    else:
        with pytest.raises((KeyboardInterrupt, WorkflowError)):
            handler.result()


@pytest.mark.slow_for("block", "scope", "nursery")
@pytest.mark.parametrize("form", ["in place", "block", "scope", "nursery"])
def test_interrupt_at_any_call_unwinds_the_run(form):
    """P17: SIGINT at some two hundred places of a run; the engine's state is consistent at each of them."""
    interrupt_at(10**9, form)  # what is done once only is left to the first run
    total = interrupt_at(10**9, form)
    assert total > 100
    stride = max(1, total // 200)
    came = 0
    for at in range(1, total, stride):
        came += interrupt_at(at, form) is None
    assert came > 90


@pytest.mark.parametrize(
    "run_loop", [trio.run, lambda main: asyncio.run(main())], ids=["trio", "asyncio"]
)
@pytest.mark.parametrize("form", ["in place", "block", "scope"])
@pytest.mark.parametrize("which", [0, 2], ids=["host", "spawned"])
def test_interrupt_in_a_step_unwinds_the_run_like_a_cancellation(run_loop, form, which):
    """P17: without ``sluicegate.run`` too, all clean-up runs, and KeyboardInterrupt leaves bare."""
    cleaned = []

    async def work(ctx, number):
        try:
            await wait_until_idle(3)
            if number == which:
                signal.raise_signal(signal.SIGINT)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await wait_until_idle(3)
            cleaned.append(number)

    handler = Fan(work).run()

    async def main():
        with nothing_left():
            await own_run(form, handler)

    with Catch() as left:
        run_loop(main)

    assert type(left.error) is KeyboardInterrupt
    assert sorted(cleaned) == [0, 1, 2]
    assert handler.is_done()
    if run_loop is not trio.run:
        assert handler.status == "cancelled"


class Signals(Observer):
    """An observer that sends SIGINT at its n-th call: in the middle of the engine's books."""

    def __init__(self, at):
        self.at = at
        self.count = 0

    def _called(self):
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(signal.SIGINT)

    def run_started(self, run):
        self._called()

    def step_started(self, invocation):
        self._called()

    def step_ended(self, invocation):
        self._called()

    def event_published(self, run, event):
        self._called()

    def run_ended(self, run):
        self._called()


def test_the_engines_own_code_is_not_interrupted():
    """P17: a signal that comes while the engine changes its state waits for the next checkpoint."""
    calls = Signals(0)
    trio.run(own_run, "in place", Interrupted(observers=[calls]).run())
    assert calls.count > 15
    for at in range(1, calls.count + 1):
        workflow = Interrupted(observers=[Signals(at)])
        handler = workflow.run()
        with Catch() as left:
            trio.run(own_run, "in place", handler)

        assert type(left.error) is KeyboardInterrupt, at
        assert workflow.begun == workflow.ended
        assert handler.is_done()
        trio.run(check_ended, handler)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signals to threads here")
@pytest.mark.parametrize("options", [{}, {"use_uvloop": True}], ids=["asyncio", "uvloop"])
def test_interrupt_that_another_thread_gets_wakes_the_event_loop(options):
    """Ctrl-C is noticed at once where nothing else would wake the loop for a long time."""
    if options:
        pytest.importorskip("uvloop")

    async def main():
        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        # From here on the kernel has another thread handle it, and does not disturb this one.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        asyncio.get_running_loop().call_later(10, late.append, "woken by a timer")
        sleeps.set()
        await anyio.sleep_forever()

    def interrupt():
        sleeps.wait()
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    late = []
    sleeps = threading.Event()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with pytest.raises(KeyboardInterrupt):
            sluicegate.run(main, backend="asyncio", backend_options=options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert late == []
    assert signal.set_wakeup_fd(-1) == -1
