"""CPU steps in worker processes: what goes there and comes back, and what is left of them."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sluicegate import (
    Event,
    StepTimeoutError,
    WorkflowRuntimeError,
)
from sluicegate._loop import current_backend, processes
from sluicegate._loop import process_pool as pool
from sluicegate._loop import process_worker as worker
from sluicegate._loop.processes import ProcessStep, process_faults
from tests.helpers import Catch, nothing_left, on_each_backend, run_virtually, wait_until_idle
from tests.process_flows import (
    Home,
    Job,
    Pixels,
    Steady,
    Telling,
    Tile,
    Timed,
    crunch,
    here,
)


#: What must not take long on any machine, in seconds.
LONG = 60

every_loop = pytest.mark.anyio
#: What is lent to a process, and what comes back, is the same on every loop.
pytestmark = pytest.mark.slow_for("asyncio")


call = functools.partial(ProcessStep(crunch), None)


async def pid():
    """Return the process of the next call."""
    return int(
        (await call(Job(what="double", data=b"")) and await ProcessStep(here)(None, Job())).data
    )


def is_alive(pid):
    """Whether there is a process that has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def read(path):
    """Read from a named pipe, when somebody writes to it."""
    return await anyio.to_thread.run_sync(path.read_text, abandon_on_cancel=True)


@pytest.fixture
def pipe(tmp_path):
    """A named pipe."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def one_process(monkeypatch):
    """Let one process be at work at a time."""
    monkeypatch.setattr(pool, "processors", lambda: 1)


def run_script(path, *arguments, **options):
    """Run a program in a Python of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments, *([str(path)] if path else [])],
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- what comes back ----------------------------------------------------------------------------------


@every_loop
async def test_events_results_and_failures_are_pickled():
    """A step runs in another process; its events, its results and its failures are pickled."""
    with anyio.fail_after(LONG):
        first = await pid()
        assert first != os.getpid()

        big = await call(Job(what="double", data=bytes(3_000_000)))
        assert big.data == bytes(6_000_000)

        with pytest.raises(LookupError) as failed:
            await call(Job(what="fail"))
        assert failed.value.args == ("fail", 1)
        assert failed.value.__notes__[0] == "of the step"
        assert "step crunch" in failed.value.__notes__[1]
        assert "in do_fail" in failed.value.__notes__[1]
        assert "_process_worker" not in failed.value.__notes__[1]

        with pytest.raises(WorkflowRuntimeError, match="crunch raised Refusing, which cannot be"):
            await call(Job(what="refuse"))
        with pytest.raises(WorkflowRuntimeError, match="crunch returned Job, which cannot be"):
            await call(Job(what="lambda"))
        with pytest.raises(WorkflowRuntimeError, match="crunch cannot be given Job"):
            await call(Job(what=lambda: None))
        with pytest.raises(WorkflowRuntimeError, match="StopIteration, which cannot leave"):
            await call(Job(what="raise", error=StopIteration(1)))

        assert await pid() == first


@every_loop
async def test_any_exception_comes_back():
    """``sys.exit()`` and its like come out as they are; the process continues with the next step."""
    group = ExceptionGroup("two", [ValueError(1)])
    with anyio.fail_after(LONG):
        first = await pid()
        for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit(), group):
            with Catch() as caught:
                await call(Job(what="raise", error=error))

            assert type(caught.error) is type(error)
            assert str(caught.error) == str(error)
        assert await pid() == first


@every_loop
async def test_what_a_step_prints_is_no_answer(tmp_path):
    """Bytes on any descriptor of a step, also forged ones, are output, and are never unpickled."""
    with anyio.fail_after(LONG):
        first = await pid()
        printed = await call(Job(what="print", path=str(tmp_path / "unpickled")))

        assert int(printed.data) == first == await pid()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@every_loop
async def test_what_a_child_prints_later_fails_no_other_step(pipe, tmp_path):
    """A child process that a step leaves prints when another step runs, and that is all."""
    done = tmp_path / "done"
    with anyio.fail_after(LONG):
        await call(Job(what="print_later", path=str(pipe), done=str(done)))
        await anyio.to_thread.run_sync(pipe.write_text, "x")
        while not done.exists():
            await call(Job(what="double", data=b"x"))


@every_loop
async def test_a_fork_answers_nothing():
    """A process that a step forks ends where it comes back from the step; only the step answers."""
    with anyio.fail_after(LONG):
        first = await pid()
        for by in ("return", "raise", "exit"):
            assert (await call(Job(what="fork", by=by))).data == b"0"
        assert await pid() == first


@pytest.mark.slow
@every_loop
async def test_a_process_that_dies_fails_its_step_alone():
    """A crash, ``os._exit()`` and a closed socket are told at once; the next step works."""
    endings = {"die": "exit status 3", "crash": "killed by SIGSEGV", "close_all": "socket is at"}
    with anyio.fail_after(LONG):
        for what, told in endings.items():
            with pytest.raises(WorkflowRuntimeError, match="step crunch died before") as caught:
                await call(Job(what=what))
            assert told in str(caught.value)
        assert await pid()


@pytest.mark.slow
@every_loop
async def test_an_idle_process_that_dies_is_replaced():
    """A worker process that dies between two steps costs neither of them anything."""
    with anyio.fail_after(LONG):
        first = await pid()
        os.kill(first, signal.SIGKILL)

        assert await pid() != first


@pytest.mark.slow
@every_loop
async def test_a_process_that_dies_as_it_is_lent_is_replaced(monkeypatch):
    """Where no one could see that it was dead, a call that has not begun is made again."""
    monkeypatch.setattr(pool.WorkerProcess, "is_alive", lambda _: True)
    with anyio.fail_after(LONG):
        first = await pid()
        os.kill(first, signal.SIGKILL)

        assert await pid() != first


@every_loop
async def test_what_is_logged_is_logged_here(caplog):
    """What a step logs is handled by the loggers of this process, as their levels have it."""
    caplog.set_level(logging.INFO, "crunching")
    with anyio.fail_after(LONG):
        await call(Job(what="log"))

    first, second = (record for record in caplog.records if record.name == "crunching")
    assert (first.levelname, first.getMessage()) == ("INFO", "from there")
    assert first.process != os.getpid()
    assert "ValueError: inner" in second.exc_text


# -- what a process has ---------------------------------------------------------------------------------


@every_loop
async def test_a_process_has_its_own_descriptors_and_group(tmp_path):
    """It inherits nothing but stderr and one socket, hands on none of it, and leads a group."""
    with (tmp_path / "mine").open("w") as mine, anyio.fail_after(LONG):
        os.set_inheritable(mine.fileno(), True)
        seen = await call(Job(what="look"))

    assert str(tmp_path / "mine") not in seen.opened
    assert sum(name.startswith("socket:") for name in seen.opened) == 1
    assert seen.opened.count("/dev/null") >= 1
    assert seen.of_child == 4  # its first three, and the directory that it lists
    assert seen.group == seen.pid


@every_loop
async def test_signals_of_a_terminal_and_a_supervisor_are_left_to_the_parent():
    """SIGINT, SIGTERM and SIGHUP end no worker process before its parent has unwound."""
    with anyio.fail_after(LONG):
        first = await pid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(first, number)
        await call(Job(what="signal"))

        assert await pid() == first


@every_loop
async def test_a_process_sees_what_its_parent_sees_now(tmp_path, monkeypatch):
    """Directory, environment, path and arguments are those of this process, changes included."""
    with anyio.fail_after(LONG):
        first = await pid()
        seen = await call(Job(what="see"))
        assert seen.directory == str(Path.cwd())
        assert seen.variable is None
        assert seen.path == [name or str(Path.cwd()) for name in sys.path]
        assert seen.arguments == sys.argv

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SLUICEGATE_TEST", "here")
        monkeypatch.syspath_prepend(str(tmp_path))
        seen = await call(Job(what="see"))
        assert (seen.directory, seen.variable) == (str(tmp_path), "here")
        assert seen.path[0] == str(tmp_path)

        monkeypatch.delenv("SLUICEGATE_TEST")
        assert (await call(Job(what="see"))).variable is None
        assert await pid() == first


# -- what is left ---------------------------------------------------------------------------------------


@every_loop
async def test_cancel_kills_the_process_and_what_it_started(pipe):
    """P1: a cancelled process step leaves neither its process nor a child of that."""
    scope = anyio.CancelScope()

    async def host():
        with scope:
            await call(Job(what="sleep", path=str(pipe)))

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            number = int(await read(pipe))
            while not (children := Path(f"/proc/{number}/task/{number}/children").read_text()):
                await anyio.sleep(0.001)
            scope.cancel()

    assert scope.cancelled_caught
    assert not is_alive(number)
    while is_alive(int(children)):  # it was killed too, and nobody waits for its end
        time.sleep(0.001)


ANYIO = tuple(int(part) for part in version("anyio").split(".")[:2])


@pytest.mark.slow
@every_loop
async def test_a_native_cancellation_kills_the_process_as_well(pipe):
    """P1: ``Task.cancel()`` waits for the end of the process too, however often it comes."""
    if current_backend().name == "trio":
        pytest.skip("it is asyncio's")
    with anyio.fail_after(LONG):
        task = asyncio.ensure_future(call(Job(what="hold", path=str(pipe), until=str(pipe))))
        number = int(await read(pipe))
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert not is_alive(number)


@every_loop
async def test_cancel_while_the_process_starts():
    """A cancellation that comes while the process starts leaves none, and blocks no other."""
    before = set(children_of(os.getpid()))

    async def host(scope):
        with scope:
            await ProcessStep(here)(None, Job())

    for turns in (0, 1, 2, 5, 50):
        scope = anyio.CancelScope()
        with anyio.fail_after(LONG), nothing_left():
            async with anyio.create_task_group() as group:
                group.start_soon(host, scope)
                await wait_until_idle(turns)
                scope.cancel()
            gc.collect()

        assert scope.cancelled_caught
        assert set(children_of(os.getpid())) <= before


def children_of(pid):
    """Return the processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found += [int(n) for n in (task / "children").read_text().split()]
    return found


@every_loop
async def test_cancel_while_waiting_for_a_turn(one_process, pipe, tmp_path):
    """P1: a step that waits for a process is cancelled there, and the next gets its turn."""
    until = tmp_path / "until"
    os.mkfifo(until)
    scope = anyio.CancelScope()

    async def host():
        with scope:
            await call(Job(what="double", data=b""))

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            group.start_soon(call, Job(what="hold", path=str(pipe), until=str(until)))
            number = int(await read(pipe))
            group.start_soon(host)
            await wait_until_idle()
            scope.cancel()
            await wait_until_idle()
            await anyio.to_thread.run_sync(until.write_text, "go on")

        assert await pid() == number


@pytest.mark.slow
@every_loop
async def test_no_more_than_one_process_for_each_processor(one_process):
    """Steps beyond that wait for a turn; the processes are used again."""
    used = set()

    async def host():
        used.add((await ProcessStep(here)(None, Job())).data)

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(host)

    assert len(used) == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio", "uvloop"])
def test_idle_processes_end_with_their_loop(backend):
    """When an event loop is over, so are its processes; loops in other threads keep theirs."""
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    name = "trio" if backend == "trio" else "asyncio"
    run = functools.partial(anyio.run, pid, backend=name, backend_options=options)
    found = []

    async def outer():
        mine = await pid()
        thread = threading.Thread(target=lambda: found.append(run()))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        with nothing_left():
            assert await pid() == mine
        return mine

    mine = anyio.run(outer, backend=name, backend_options=options)

    assert found != [mine]
    assert not is_alive(mine)
    assert not is_alive(found[0])


def test_a_loop_that_is_closed_by_hand_leaves_no_process():
    """Where no one tells of the end of a loop, its processes end when it is collected."""
    loop = asyncio.new_event_loop()
    number = loop.run_until_complete(pid())
    assert loop.run_until_complete(pid()) == number
    loop.close()
    left = weakref.ref(loop)
    del loop
    for _ in range(1000):  # a thread that has started it may have to let go of the loop
        gc.collect()
        if not is_alive(number):
            break
        time.sleep(0.001)
    if left() is not None and ANYIO < (4, 16):
        pytest.skip("this AnyIO keeps a loop that was closed by hand")

    assert not is_alive(number)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["idle", "in a step"])
def test_a_process_ends_with_its_parent(tmp_path, what):
    """A parent that is killed leaves no process, neither an idle one nor one that computes."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import os, sys, time, trio
from sluicegate import Event
from sluicegate._loop.processes import ProcessStep

class Job(Event):
    pass

def crunch(ev):
    print(os.getpid(), file=sys.stderr, flush=True)
    while ev.long:
        pass
    return Job()

async def main():
    await ProcessStep(crunch)(None, Job(long={what != "idle"}))
    await trio.sleep_forever()

if __name__ == "__main__":
    trio.run(main)
"""
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True
    ) as process:
        number = int(process.stderr.readline())
        process.kill()
        process.stderr.read()  # until nobody has it open any more

    while is_alive(number):
        time.sleep(0.001)


# -- where a step is found --------------------------------------------------------------------------------


SCRIPT = """
import trio
from tenacity import stop_after_attempt, wait_none
from sluicegate import Event
from sluicegate._loop.processes import ProcessStep, process_faults

class Tile(Event):
    number: int

class Sour(Exception):
    pass

def crunch(ev):
    if ev.number == 0:
        raise Sour("zero")
    return Tile(number=ev.number * 2)

async def main():
    print(process_faults(crunch, [Tile], [Tile]))
    result = await ProcessStep(crunch)(None, Tile(number=21))
    print(type(result) is Tile, result)
    try:
        await ProcessStep(crunch)(None, Tile(number=0))
    except Sour as error:
        print(repr(error))

if __name__ == "__main__":
    trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "module", "package", "in a child"])
def test_the_steps_of_a_program_are_found(tmp_path, how):
    """Events and exceptions of the main module come back as its classes, however it is run."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "script.py").write_text(SCRIPT)
    (package / "__main__.py").write_text(SCRIPT)
    (package / "__init__.py").write_text("")
    (tmp_path / "child.py").write_text(
        "import multiprocessing, trio\n"
        + SCRIPT.replace(
            "    trio.run(main)",
            "    context = multiprocessing.get_context('spawn')\n"
            "    process = context.Process(target=trio.run, args=(main,))\n"
            "    process.start()\n"
            "    process.join()",
        )
    )
    if how == "script":
        printed = run_script(package / "script.py")
    elif how == "in a child":
        printed = run_script(tmp_path / "child.py")
    else:
        name = "package.script" if how == "module" else "package"
        printed = run_script(None, "-m", name, cwd=tmp_path)

    assert printed.splitlines() == ["[]", "True Tile(number=42)", "Sour('zero')"]


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    """What a script does by itself it would do in each process: that is refused, with the way."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=LONG
    )

    assert done.returncode == 1
    assert done.stdout.count("[]") == 1
    assert "cannot find what the step crunch needs" in done.stderr
    assert 'below `if __name__ == "__main__":`' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["typed", "stdin"])
def test_a_program_that_is_in_no_file_is_told_of_it(how):
    """What is typed, or read from stdin, is not found by a worker process; that is told."""
    code = (
        "from sluicegate._loop.processes import process_faults\n"
        "def crunch(ev): return ev\n"
        "print(process_faults(crunch, [], []))"
    )
    printed = run_script(None, "-c", code) if how == "typed" else run_script("-", input=code)

    assert "interactive session or a program from stdin" in printed


@pytest.mark.slow
def test_a_step_of_a_module_needs_no_main_module(tmp_path):
    """A program that is in no file (a server's, xdist's workers) runs steps of its modules."""
    (tmp_path / "flow.py").write_text(SCRIPT)

    printed = run_script(None, "-c", "import trio, flow; trio.run(flow.main)", cwd=tmp_path)

    assert printed.splitlines() == ["[]", "True Tile(number=42)", "Sour('zero')"]


@pytest.mark.slow
def test_steps_in_processes_under_trio_import_no_anyio(tmp_path):
    """P20: a process step under Trio imports neither AnyIO nor asyncio, there or here."""
    (tmp_path / "flow.py").write_text(
        "import sys\n"
        + SCRIPT.replace(
            "raise Sour", "raise Sour(sorted({'anyio', 'asyncio'} & {*sys.modules})) #"
        )
    )
    code = (
        "import sys, trio, flow; trio.run(flow.main); "
        "print(sorted({'anyio', 'asyncio'} & {*sys.modules}))"
    )
    printed = run_script(None, "-c", code, cwd=tmp_path)

    assert printed.splitlines()[-2:] == ["Sour([])", "[]"]


def test_process_faults_of_what_is_right():
    """A function and events at the top of a module have no fault; nor has a static method."""
    assert process_faults(crunch, [Tile], [Pixels, Tile]) == []
    assert process_faults(Home.crunch, [Tile], [Pixels]) == []


def test_process_faults(monkeypatch):
    """What keeps a step from running in a process is found, and told with its fix."""

    class Local(Event):
        number: int

    def local(ev):
        return ev

    async def never(ev):
        return ev

    never.__qualname__ = "never"
    shadowed = type("Tile", (Event,), {"__module__": Tile.__module__, "__qualname__": "Tile"})
    unknown = type("Nowhere", (Event,), {"__module__": "no.such.module"})

    assert "defined inside a function" in one(process_faults(local, [Tile], []))
    assert "is a lambda" in one(process_faults(lambda ev: ev, [Tile], []))
    assert "event class Local is defined" in one(process_faults(crunch, [Local], [Local]))
    assert "not the object that tests.process_flows.Tile names" in one(
        process_faults(crunch, [shadowed], [])
    )
    assert "Nowhere is not the object" in one(process_faults(crunch, [], [unknown]))
    assert "takes 'self'" in one(process_faults(Home.method, [Tile], []))
    assert "is async" in process_faults(never, [], [])[0]

    monkeypatch.setattr(processes, "os", type("os", (), {"name": "nt"}))
    assert "needs POSIX" in one(process_faults(crunch, [Tile], []))


def one(faults):
    assert len(faults) == 1, faults
    assert "expected" in faults[0]
    return faults[0]


def test_what_cannot_be_read_is_told_with_the_name_of_the_step():
    """What one side writes and the other cannot unpickle is told, and by whom."""
    kind, answer = worker.work(None, worker.Call(1, None, {}, None), b"nothing", None, None)

    with pytest.raises(WorkflowRuntimeError, match="cannot find what the step crunch needs"):
        processes.read_answer("crunch", kind, answer)
    with pytest.raises(
        WorkflowRuntimeError, match="result of the process step crunch cannot be unpickled"
    ):
        processes.read_answer("crunch", worker.RESULT, b"nothing")
    with pytest.raises(
        WorkflowRuntimeError, match="exception of the process step crunch cannot be unpickled"
    ):
        processes.read_answer("crunch", worker.ERROR, pickle.dumps((b"nothing", "told")))


@every_loop
@pytest.mark.parametrize("where", ["no interpreter", "a broken one", "frozen"])
async def test_a_process_that_cannot_start(monkeypatch, where):
    """Where no process can be started, the step says so at once, and keeps no place."""
    if where == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", "/bin/false" if where == "a broken one" else "/no")
    with anyio.fail_after(LONG):
        for _ in range(pool.processors() + 1):
            told = "frozen program" if where == "frozen" else "no worker process could be started"
            with pytest.raises(WorkflowRuntimeError, match=told):
                await ProcessStep(here)(None, Job())


# -- in a workflow ------------------------------------------------------------------------------------


@every_loop
async def test_a_step_in_a_process_sends_and_publishes():
    """Its context has ``send_event`` and ``write_event_to_stream``; both are done at once.

    What a failed attempt has sent is dropped there, too.
    """
    with anyio.fail_after(LONG):
        async with Telling().run(attempts=2) as handler:
            seen = [event async for event in handler.stream_events()]
            assert await handler == [2, 10]

    assert [event.number for event in seen[:-1]] == [1, 2]


@every_loop
async def test_what_a_context_in_a_process_refuses():
    """What has no way out of the process says so; a wrong event fails where it is sent (P13)."""
    with anyio.fail_after(LONG):
        told = await Telling().run(refusals=True)

    assert "returned or sent a Note, which it does not declare" in told[0]
    assert "nobody" in told[1]
    assert len(told) == 13, told
    assert "cannot be pickled" in told[3]
    assert all("not available in a step that runs in a process" in text for text in told[4:10])


@pytest.mark.slow
@every_loop
async def test_progress_is_told_from_a_process():
    """``idle_timeout`` counts from the last call of the context, in a process as anywhere."""
    with anyio.fail_after(LONG):
        assert await Steady().run(times=80) == "done"
        with pytest.raises(StepTimeoutError, match="made no progress"):
            await Steady().run(times=0)


@pytest.mark.slow
@on_each_backend
def test_a_virtual_clock_waits_for_a_step_in_a_process(backend):
    """Neither the start of a process nor what it computes lets a clock jump to a timeout."""

    async def main():
        begun = anyio.current_time()
        result = await Timed(timeout=1000).run()
        return result, anyio.current_time() - begun

    result, taken = run_virtually(backend, main)

    assert result == 4
    assert taken < 1


@pytest.mark.slow
@every_loop
async def test_a_timeout_does_not_count_the_wait_for_a_process(one_process):
    """A step's timeout begins when there is a process for it, and that is ready."""
    with anyio.fail_after(LONG):
        assert await Timed().run() == 4
