"""Steps for tests/test_processes.py: a worker process imports this, and so nothing that takes long."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

from tenacity import stop_after_attempt, wait_none

from sluicegate import (
    Context,
    Event,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    step,
)
from sluicegate._loop import process_worker as worker


#: What is killed long before, in seconds.
LONG = 60


class Job(Event):
    """What to do: open, for the test's own needs."""


class Tile(Event):
    number: int


class Pixels(Event):
    data: bytes


class Refusing(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, first, second):
        super().__init__(first)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def here(ev):
    """Return the process that this is called in."""
    return Pixels(data=str(os.getpid()).encode())


def crunch(ev):
    """Do as the event says."""
    return globals()[f"do_{ev.what}"](ev) or here(ev)


def do_double(ev):
    return Pixels(data=ev.data * 2)


def do_fail(ev):
    error = LookupError(ev.what, 1)
    error.add_note("of the step")
    raise error


def do_raise(ev):
    raise ev.error


def do_refuse(ev):
    raise Refusing(1, 2)


def do_lambda(ev):
    return Job(what=lambda: None)


def do_die(ev):
    os._exit(3)


def do_crash(ev):
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(LONG)


def do_close_all(ev):
    os.closerange(3, 256)


def do_print(ev):
    frame = worker.HEADER.pack(worker.RESULT, 3) + b"bad"
    forged = pickle.dumps(Bomb(ev.path))
    for descriptor in (0, 1, 2):
        for data in (b"\0\xff\n", frame, forged, worker.HEADER.pack(worker.RESULT, len(forged))):
            with contextlib.suppress(OSError):
                os.write(descriptor, data + forged)
    print("printed")
    subprocess.run(["echo", "hi"], check=True)
    assert sys.stdin.read() == ""


def do_print_later(ev):
    # It goes on when the step is over, until its input ends.
    program = f"cat {ev.path}; echo late; mkdir {ev.done}"
    subprocess.Popen(program, shell=True).returncode = 0  # it is left on purpose


def do_fork(ev):
    child = os.fork()
    if child == 0:
        if ev.by == "raise":
            raise ValueError("in the fork")
        if ev.by == "exit":
            sys.exit(0)
        return Pixels(data=b"of the fork")
    _, status = os.waitpid(child, 0)
    return Pixels(data=str(os.waitstatus_to_exitcode(status)).encode())


def do_look(ev):
    opened = []
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            opened.append(str(name.readlink()))
    script = "import os; print(len(os.listdir('/proc/self/fd')))"
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, close_fds=False
    )
    return Job(opened=opened, of_child=int(child.stdout), group=os.getpgrp(), pid=os.getpid())


def do_see(ev):
    return Job(
        directory=str(Path.cwd()),
        variable=os.environ.get("SLUICEGATE_TEST"),
        path=list(sys.path),
        arguments=list(sys.argv),
    )


def do_log(ev):
    logging.getLogger("crunching").info("from %s", "there", extra={"odd": lambda: None})
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("crunching").exception("failed")


def do_signal(ev):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)


def do_sleep(ev):
    # A process of its own, which shows by its end that it was killed as well.
    Path(ev.path).write_text(f"{os.getpid()}")
    subprocess.run(["sleep", str(LONG)], check=True)


def do_hold(ev):
    Path(ev.path).write_text(f"{os.getpid()}\n")
    Path(ev.until).read_text()


class Home:
    @staticmethod
    def crunch(ev: Tile) -> Pixels:
        return Pixels(data=b"")

    def method(self, ev: Tile) -> Pixels:
        return Pixels(data=b"")


class Part(Event):
    number: int


class Note(Event):
    number: int


class Begin(StartEvent):
    refusals: bool = False
    attempts: int = 1


def tries(ctx):
    """Try what a context in a process refuses; return what it says."""
    told = []
    for function in (
        lambda: ctx.send_event(Note(number=1)),
        lambda: ctx.send_event(Part(number=1), step="nobody"),
        lambda: ctx.write_event_to_stream(StopEvent()),
        lambda: ctx.write_event_to_stream(Job(f=lambda: None)),
        lambda: ctx.store,
        lambda: ctx.stream,
        lambda: ctx.deadline,
        ctx.retry_info,
        ctx.to_dict,
        lambda: ctx.collect_events(Part(number=1), [Part]),
        lambda: ctx.from_thread.check_cancelled(),
        ctx.send_event(Part(number=1)).cancel,
        lambda: ctx.send_event(Part(number=2)).is_done,
    ):
        try:
            function()
        except WorkflowRuntimeError as error:
            told.append(str(error))
    return told


class Telling(Workflow):
    """A step in a process that uses its context."""

    @step(in_process=True, retry=Retry(stop=stop_after_attempt(3), wait=wait_none()))
    @staticmethod
    def tell(ctx: Context, ev: Begin) -> Part | StopEvent | None:
        if ev.refusals:
            return StopEvent(result=tries(ctx))
        ctx.write_event_to_stream(Note(number=ctx.step.attempt))
        ctx.send_event(Part(number=ctx.step.attempt))
        ctx.send_event(Part(number=10), step="take")
        assert (ctx.step_name, ctx.is_running, ctx.step.workflow) == ("tell", True, "Telling")
        if ctx.step.attempt < ev.attempts:
            raise ValueError(ctx.step.attempt)
        return None

    @step
    async def take(self, ctx: Context, ev: Part) -> StopEvent | None:
        both = ctx.collect_events(ev, [Part, Part])
        return None if both is None else StopEvent(result=sorted(part.number for part in both))


class Steady(Workflow):
    """A step that says that it gets on, for longer than it may be silent."""

    @step(in_process=True, idle_timeout=0.5)
    @staticmethod
    def work(ctx: Context, ev: StartEvent) -> StopEvent:
        for _ in range(ev.times):
            time.sleep(0.01)
            ctx.report_progress()
        if ev.times == 0:
            time.sleep(LONG)  # it is killed
        return StopEvent(result="done")


class Counting(Workflow):
    """Reports its progress, and then waits for a file if it is to."""

    @step(in_process=True)
    @staticmethod
    def count(ctx: Context, ev: StartEvent) -> StopEvent:
        if ev.times == "no":
            try:
                ctx.progress(ev.times)
            except TypeError as error:
                return StopEvent(result=str(error))
        for n in range(ev.times):
            ctx.progress(n, ev.times)
        until = ev.get("until")
        for _ in range(3000 if until else 0):
            if Path(until).exists():
                return StopEvent(result="seen")
            time.sleep(0.01)
        return StopEvent(result="done")


class Timed(Workflow):
    """Steps in processes with a timeout that their work does not reach."""

    @step
    async def begin(self, ev: StartEvent) -> list[Tile]:
        return [Tile(number=n) for n in range(4)]

    @step(in_process=True, timeout=0.5)
    @staticmethod
    def work(ev: Tile) -> Note:
        time.sleep(0.1)
        return Note(number=ev.number)

    @step
    async def join(self, evs: list[Note]) -> StopEvent:
        return StopEvent(result=len(evs))
