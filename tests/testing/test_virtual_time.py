"""Virtual time, and what a program that is swept sees of it all: nothing, but for the clock."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import io
import itertools
import os
import socket
import sys
import threading
import time
import traceback

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest
import trio
import trio.testing

from sluicegate.testing import VirtualLoop, jump_clock, run_virtually, sweep
from sluicegate.testing._sweeps import asyncio_time
from sluicegate.testing._sweeps.asyncio_time import NumberedTask, task_of
from sluicegate.testing._sweeps.trio_time import seeded_trio
from tests.helpers import on_each_backend


DAY = 86_400.0


@pytest.fixture
def _impatient(monkeypatch):
    """Wait less for threads that wait for us."""
    monkeypatch.setattr(asyncio_time, "PATIENCE", 0.02)
    monkeypatch.setattr("sluicegate.testing._sweeps.trio_time.PATIENCE", 0.02)


@pytest.fixture
def _patient(monkeypatch):
    """Wait for a thread however busy the machine is."""
    monkeypatch.setattr(asyncio_time, "PATIENCE", 10)


def on_asyncio(main, *args, **options):
    return run_virtually(main, *args, backend="asyncio", **options)


# -- on both ---------------------------------------------------------------------------------------


@on_each_backend
def test_a_day_passes_in_no_time(backend):
    """The clock jumps to the next timer; what is asked for is what passes, to the second."""

    async def main(days):
        began = anyio.current_time()
        await anyio.sleep(days * DAY)
        with anyio.move_on_after(DAY):
            await anyio.sleep_forever()
        return anyio.current_time() - began

    assert run_virtually(main, 1, backend=backend) == 2 * DAY


@on_each_backend
def test_what_is_raised_leaves(backend):
    """An exception is the function's own, and names its line last."""
    error = OSError("mine")

    async def main():
        await anyio.sleep(1)
        raise error

    with pytest.raises(OSError, match="mine") as caught:
        run_virtually(main, backend=backend)
    assert caught.value is error
    assert traceback.extract_tb(error.__traceback__)[-1].name == "main"


@on_each_backend
def test_timers_are_due_in_order(backend):
    """Whoever was started when; each sees the time it has slept to."""
    seen = []

    async def sleeper(seconds):
        await anyio.sleep(seconds)
        seen.append(anyio.current_time())

    async def main():
        began = anyio.current_time()
        async with anyio.create_task_group() as nursery:
            for seconds in (5, 0.001, 3600, 1):
                nursery.start_soon(sleeper, seconds)
        return [round(at - began, 6) for at in seen]

    assert run_virtually(main, backend=backend) == [0.001, 1, 5, 3600]


@pytest.mark.usefixtures("_patient")
@on_each_backend
def test_time_stands_still_while_a_thread_works(backend):
    """A timer of no length does not come before a thread that takes some real milliseconds."""
    seen = []

    async def timer():
        await anyio.sleep(0.0001)
        seen.append("timer")

    async def main():
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(timer)
            await anyio.to_thread.run_sync(time.sleep, 0.005)
            seen.append("thread")
        return seen

    assert run_virtually(main, backend=backend) == ["thread", "timer"]


@pytest.mark.usefixtures("_impatient")
@on_each_backend
def test_a_thread_that_waits_for_the_loop_gets_there(backend):
    """Time passes after all: by from_thread.run, and through a portal."""

    async def hour():
        await anyio.sleep(3600)
        return anyio.current_time()

    async def main():
        began = anyio.current_time()
        first = await anyio.to_thread.run_sync(anyio.from_thread.run, hour)
        async with anyio.from_thread.BlockingPortal() as portal:
            second = await anyio.to_thread.run_sync(portal.call, hour)
        return first - began, second - began

    assert run_virtually(main, backend=backend) == (3600, 7200)


async def lottery():
    """Return the order in which tasks go that could all run."""
    order = []

    async def child(name):
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
            order.append(name)

    async with anyio.create_task_group() as nursery:
        for name in "abcdef":
            nursery.start_soon(child, name)
    return "".join(order)


@on_each_backend
def test_a_seed_repeats_its_schedule(backend):
    """Other seeds make other choices; 0 takes tasks in the order of their start."""
    runs = {
        seed: {run_virtually(lottery, backend=backend, seed=seed) for _ in range(4)}
        for seed in range(6)
    }
    assert all(len(orders) == 1 for orders in runs.values())
    assert len(set.union(*runs.values())) == 6
    assert runs[0] == {"abcdef" * 3}


@on_each_backend
def test_very_late_timers_are_due_too(backend):
    """Where the clock's own grain is coarser than a loop's patience."""

    async def main():
        began = anyio.current_time()
        await anyio.sleep(1e9)
        await anyio.sleep(1e13)
        return anyio.current_time() - began

    assert run_virtually(main, backend=backend) == pytest.approx(1e13 + 1e9)


@on_each_backend
def test_a_shielded_clean_up_may_take_its_time(backend):
    """AnyIO tries its cancellation again at every turn meanwhile; time passes in spite of it."""

    async def child():
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(DAY)

    async def main():
        began = anyio.current_time()
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(child)
            await anyio.sleep(1)
            nursery.cancel_scope.cancel()
        return anyio.current_time() - began

    assert run_virtually(main, backend=backend) == DAY + 1


@on_each_backend
def test_a_loopback_server_and_its_client(backend):
    """What comes through the kernel at once comes before any timeout; also under a sweep."""

    async def serve(stream):
        async with stream:
            await stream.send((await stream.receive()).upper())

    async def main():
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as nursery,
        ):
            nursery.start_soon(listener.serve, serve)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            with anyio.fail_after(10):
                async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                    await stream.send(b"hello")
                    answer = await stream.receive()
            nursery.cancel_scope.cancel()
        return answer

    assert run_virtually(main, backend=backend) == b"HELLO"
    # AnyIO 4.10 and asyncio leave a socket open here and there.
    options = {"kinds": "scope", "limit": 12, "allow": "warning"}
    assert sweep(main, backends=backend, **options).positions == 12


@on_each_backend
def test_the_clock_can_be_made_to_jump(backend):
    """As in a call that blocks: no task runs meanwhile. Not backward."""
    seen = []

    async def main():
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(anyio.sleep, 1)
            await anyio.sleep(0.5)
            before = anyio.current_time()
            jump_clock(DAY)
            seen.append(anyio.current_time() - before)
            with pytest.raises(ValueError, match="time"):
                jump_clock(-1)
        return anyio.current_time() - before

    assert run_virtually(main, backend=backend) == DAY
    assert seen == [DAY]


def test_real_time_cannot_be_made_to_jump():
    """Neither where a real event loop runs nor where none does."""
    message = (
        "jump_clock() was called in real time; expected virtual time: "
        "run_virtually(function), or a loop_factory=VirtualLoop"
    )

    async def main():
        with pytest.raises(RuntimeError) as refused:
            jump_clock(1)
        assert str(refused.value) == message

    trio.run(main)
    asyncio.run(main())
    with pytest.raises(RuntimeError) as refused:
        jump_clock(1)
    assert str(refused.value) == message


def test_an_unknown_backend_is_refused():
    """The message has the ones that there are."""
    with pytest.raises(ValueError, match="not a known event loop") as refused:
        run_virtually(lottery, backend="uvloop")
    assert str(refused.value) == (
        "backend='uvloop' is not a known event loop; expected backend='trio' or 'asyncio'"
    )


# -- VirtualLoop -----------------------------------------------------------------------------------


def test_the_loop_serves_a_runner():
    """As a loop factory, for several calls; the clock continues."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(asyncio.sleep(DAY))
        runner.run(asyncio.sleep(DAY))
        assert runner.get_loop().time() == 2 * DAY


@pytest.mark.anyio
@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"loop_factory": VirtualLoop}), id="virtual")]
)
async def test_the_loop_serves_anyio_s_pytest_plugin(anyio_backend):
    """As an option of its asyncio backend."""
    began = anyio.current_time()
    await anyio.sleep(DAY)
    assert anyio.current_time() - began == DAY


def test_timers_for_the_same_time_run_in_the_order_they_were_set():
    """A real clock hardly ever has two; asyncio's heap would mix them."""
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(1, seen.append, number) for number in range(12)]
        timers[5].cancel()
        loop.call_at(loop.time() + 0.5, seen.append, "first")
        await asyncio.sleep(1)
        await asyncio.sleep(0)

    on_asyncio(main)
    assert seen == ["first", 0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_many_cancelled_timers_do_not_matter():
    """asyncio drops them in bulk, and builds its heap anew."""

    async def main():
        loop = asyncio.get_running_loop()
        for timer in [loop.call_later(DAY, print) for _ in range(300)]:
            timer.cancel()
        await asyncio.sleep(1)
        return loop.time()

    assert on_asyncio(main) == 1


def test_a_timeout_strikes_at_its_time():
    """wait_for and timeout, by the virtual clock."""

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), DAY)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DAY):
                await asyncio.sleep(2 * DAY)
        return asyncio.get_running_loop().time()

    assert on_asyncio(main) == 2 * DAY


@pytest.mark.usefixtures("_patient")
def test_executors_are_waited_for():
    """run_in_executor and to_thread, beside a timer that would be due before."""

    async def main():
        async with asyncio.timeout(0.0001):
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.005)
            return await asyncio.to_thread(int, "7")

    assert on_asyncio(main) == 7


def test_a_runner_waits_for_the_threads_it_leaves():
    """It gives them 300 seconds to end, which virtually would be over at once."""

    async def main():
        call = asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.01)
        call.cancel()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert not [t for t in threading.enumerate() if t.name.startswith("asyncio_")]


def test_a_sleep_without_end_does_not_move_the_clock():
    """Infinity is no time to jump to; what comes from outside is waited for then."""

    async def main():
        here, there = socket.socketpair()
        here.setblocking(False)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(anyio.sleep_forever)
            sender = threading.Timer(0.002, there.send, [b"x"])
            sender.start()
            await anyio.wait_readable(here)
            nursery.cancel_scope.cancel()
        sender.join()
        here.close()
        there.close()
        return anyio.current_time()

    assert on_asyncio(main) == 0


def test_a_process_is_waited_for_where_no_timer_is_set():
    """With one, the clock jumps to it: no one can know how long a process would take."""

    async def talk():
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        answer, _ = await process.communicate(b"hello")
        return answer

    assert on_asyncio(talk) == b"hello"

    async def hurried():
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.stdout.read(), DAY)
        await process.communicate(b"")

    on_asyncio(hurried)


def test_a_task_that_polls_lets_time_pass():
    """Turns without an end would otherwise keep a timer from ever being due."""

    async def main():
        loop = asyncio.get_running_loop()
        while loop.time() < 1:
            await asyncio.sleep(0)
        return loop.time()

    assert on_asyncio(main) == 1


def test_a_task_of_the_loop_is_asyncio_s_but_for_its_hash():
    """A set of them has the same order in each run; None and no other is the task factory."""

    async def main():
        loop = asyncio.get_running_loop()
        assert loop.get_task_factory() is None
        tasks = [asyncio.create_task(asyncio.sleep(1), name=str(n)) for n in range(20)]
        unnamed = asyncio.create_task(asyncio.sleep(1))
        assert unnamed.get_name().startswith("Task-")
        assert all(isinstance(task, NumberedTask) for task in tasks)
        assert len({*tasks, *tasks}) == 20
        await asyncio.wait([*tasks, unnamed])
        return [task.get_name() for task in set(tasks)]

    assert on_asyncio(main) == on_asyncio(main)


# -- a program under a sweep: Trio -----------------------------------------------------------------


def runs_on_trio(scenario, **options):
    report = sweep(scenario, **{"kinds": ("scope", "interrupt"), **options})
    assert report.positions > 0
    return report


@attrs.define
class Seen:
    """What a scenario notes, run after run."""

    values: list = attrs.Factory(list)

    def __call__(self, value):
        if value not in self.values:
            self.values.append(value)


def test_trio_testing_works_in_a_sweep():
    """wait_all_tasks_blocked, Sequencer, checkpoints that are asserted, the mock clock."""

    async def scenario():
        sequencer = trio.testing.Sequencer()
        order = []

        async def child(name, *places):
            for place in places:
                async with sequencer(place):
                    order.append((place, name))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, "a", 0, 2)
            nursery.start_soon(child, "b", 1, 3)
        assert order == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]

        async with trio.open_nursery() as nursery:
            event = trio.Event()
            nursery.start_soon(event.wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            event.set()
        with trio.testing.assert_checkpoints():
            await trio.lowlevel.checkpoint()

    # The Sequencer breaks, by design, for those whose turn never comes.
    runs_on_trio(scenario, kinds="scope", raises=RuntimeError)


def test_a_task_may_start_in_one_nursery_and_live_in_another():
    """nursery.start moves it; it is struck and looked after in both."""

    async def service(task_status):
        await trio.sleep(1)
        task_status.started("ready")
        await trio.sleep(1)

    async def scenario():
        async with trio.open_nursery() as nursery:
            assert await nursery.start(service, name="the service") == "ready"
            assert [task.name for task in nursery.child_tasks] == ["the service"]

    assert runs_on_trio(scenario, kinds="scope").positions >= 6
    report = runs_on_trio(scenario, kinds="scope", target="the service", raises=RuntimeError)
    assert report.positions >= 4


def test_the_task_tree_is_trio_s():
    """Names, parents, coroutines and frames are what they are outside."""

    async def child():
        await trio.sleep(1)

    async def scenario():
        me = trio.lowlevel.current_task()
        root = trio.lowlevel.current_root_task()
        assert me.parent_nursery.parent_task is root
        assert me in root.child_nurseries[-1].child_tasks or any(
            me in nursery.child_tasks for nursery in root.child_nurseries
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(child, name="a name")
            await trio.sleep(0.5)
            (second, first) = sorted(nursery.child_tasks, key=lambda task: len(task.name))
            assert second.name == "a name"
            assert first.name.endswith("test_the_task_tree_is_trio_s.<locals>.child")
            assert first.coro.cr_code is child.__code__
            assert inspect.getcoroutinestate(first.coro) == "CORO_SUSPENDED"
            frames = [frame.f_code.co_name for frame, _ in first.iter_await_frames()]
            assert frames[:2] == ["child", "sleep"]

    runs_on_trio(scenario, kinds="scope")


def test_system_tasks_live_beside_the_scenario():
    """One that ends by itself is no one's leftover."""

    async def helper(event):
        await trio.sleep(1)
        event.set()

    async def scenario():
        event = trio.Event()
        with trio.CancelScope(shield=True):
            trio.lowlevel.spawn_system_task(helper, event)
            await event.wait()
            await trio.sleep(1)
        await trio.sleep(1)

    runs_on_trio(scenario, kinds="scope")


@pytest.mark.slow
def test_protection_from_interrupts_is_what_it_is_outside():
    """A task of the user's is not protected, a system task is; so is what asks for it."""

    def ask():
        return trio.lowlevel.currently_ki_protected()

    @trio.lowlevel.enable_ki_protection
    def ask_protected():
        return trio.lowlevel.currently_ki_protected()

    async def helper(seen):
        seen.append(ask())

    async def child(seen):
        await trio.lowlevel.checkpoint()
        seen.append(ask())

    async def scenario():
        seen = [ask(), ask_protected()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, seen)
        with trio.CancelScope(shield=True):
            trio.lowlevel.spawn_system_task(helper, seen)
            await trio.sleep(1)
        return seen

    swept = []
    sweep(scenario, check=lambda outcome: swept.append(outcome.value), kinds="scope")
    expected = trio.run(scenario)
    assert expected == [False, True, False, True]
    assert [value for value in swept if value] != []
    assert all(value in (None, expected) for value in swept)


@on_each_backend
def test_context_variables_belong_to_their_tasks(backend):
    """A child sees its parent's, and keeps its own."""
    var = contextvars.ContextVar("var", default="outside")

    async def child():
        assert var.get() == "parent"
        var.set("child")
        await anyio.sleep(1)
        assert var.get() == "child"

    async def scenario():
        assert var.get() == "outside"
        var.set("parent")
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(child)
            await anyio.sleep(0.5)
        assert var.get() == "parent"
        var.set("outside")

    sweep(scenario, backends=backend, fresh=False)


@on_each_backend
def test_tracebacks_end_at_the_users_line(backend):
    """Of what the cancellation raises they begin there; nothing of ours is chained to it."""
    seen = []

    async def broken():
        await anyio.sleep(1)
        raise OSError("broken")

    async def scenario():
        try:
            await broken()
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            seen.append((type(error), [frame.name for frame in frames], error.__context__))
            if not isinstance(error, OSError):
                raise

    sweep(scenario, backends=backend)
    assert len({kind for kind, _, _ in seen}) == 2
    for kind, names, context in seen:
        assert names[:2] == ["scenario", "broken"]
        assert len(names) == 2 or kind is not OSError
        assert context is None or backend == "asyncio"


@on_each_backend
def test_async_generators_may_be_left_early(backend):
    """Closed by aclosing, or run to their end, in a sweep."""

    async def numbers():
        try:
            for number in itertools.count():
                await anyio.sleep(1)
                yield number
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)

    async def scenario():
        generator = numbers()
        try:
            async for number in generator:
                if number == 1:
                    break
        finally:
            with anyio.CancelScope(shield=True):
                await generator.aclose()

    kinds = "scope"  # aclose() runs on natively
    assert sweep(scenario, backends=backend, kinds=kinds).positions == 6


# -- a program under a sweep: asyncio --------------------------------------------------------------


async def leaf(seconds):
    await asyncio.sleep(seconds)
    return seconds


async def waits_for_a_group():
    async with asyncio.TaskGroup() as group:
        one, two = group.create_task(leaf(1)), group.create_task(leaf(2))
    assert (one.result(), two.result()) == (1, 2)


async def gathers():
    assert await asyncio.gather(leaf(1), leaf(2)) == [1, 2]


async def shields():
    task = asyncio.ensure_future(leaf(2))
    try:
        assert await asyncio.shield(task) == 2
    finally:
        task.cancel()
        await asyncio.wait([task])


async def uses_a_thread():
    assert await asyncio.to_thread(int, "1") == 1


async def waits_no_longer():
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 5)


async def starts_eagerly():
    async def at_once():
        return 5

    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(made) for made in (leaf(1), at_once(), leaf(2))]
            if sys.version_info >= (3, 12):
                assert [task.done() for task in tasks] == [False, True, False]
        assert [task.result() for task in tasks] == [1, 5, 2]
    finally:
        loop.set_task_factory(None)


async def has_a_factory_of_its_own():
    made = []

    def factory(loop, coro, **options):
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(leaf(1))
        assert task.result() == 1
        assert len(made) == 1
    finally:
        loop.set_task_factory(None)


ASYNCIO = [
    (waits_for_a_group, "all"),
    (gathers, "all"),
    (shields, ("scope", "native", "timeout", "deadline", "interrupt")),
    (uses_a_thread, "all"),
    (waits_no_longer, "all"),
    (starts_eagerly, "all"),
    (has_a_factory_of_its_own, "all"),
]


@pytest.mark.parametrize(("scenario", "kinds"), ASYNCIO)
def test_what_asyncio_has_works_in_a_sweep(scenario, kinds):
    """Healthy programs pass, and all of their waits are struck."""
    allow = "task" if scenario is gathers else ()  # gather leaves the others when one has failed
    report = sweep(scenario, backends="asyncio", kinds=kinds, allow=allow)
    assert report.positions >= 2 * (len(report.lines) - 1)  # not each wait can raise


def test_a_task_can_be_looked_at():
    """Coroutine, frames, stack, state and representation are those of the user's function."""

    async def scenario():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(leaf(1), name="leafy")
            assert inspect.getcoroutinestate(task.get_coro()) == "CORO_CREATED"
            await asyncio.sleep(0)
            assert inspect.getcoroutinestate(task.get_coro()) == "CORO_SUSPENDED"
            assert inspect.getcoroutinelocals(task.get_coro()) == {"seconds": 1}
            assert task.get_coro().__qualname__ == "leaf"
            (frame,) = task.get_stack()
            assert frame.f_code is leaf.__code__
            out = io.StringIO()
            task.print_stack(file=out)
            assert "in leaf" in out.getvalue()
            assert "leaf() running at" in repr(task)
            assert task in asyncio.all_tasks()
            assert {t.name for t in anyio.get_running_tasks()} >= {"leafy"}

    assert sweep(scenario, backends="asyncio", kinds=("native", "scope")).positions > 6


@on_each_backend
def test_anyio_s_view_of_the_tasks(backend):
    """get_running_tasks, TaskInfo and start()."""

    async def service(*, task_status):
        await anyio.sleep(1)
        task_status.started(anyio.get_current_task().id)
        await anyio.sleep(1)

    async def scenario():
        async with anyio.create_task_group() as nursery:
            number = await nursery.start(service, name="the service")
            (info,) = [task for task in anyio.get_running_tasks() if task.id == number]
            assert info.name == "the service"
            assert info.parent_id is not None

    kinds = ("scope", "deadline")
    assert sweep(scenario, backends=backend, kinds=kinds).positions >= 8


@pytest.mark.usefixtures("_impatient")
@on_each_backend
def test_threads_may_call_back_in_a_sweep(backend):
    """A thread that waits for the loop holds nothing up."""

    async def hour():
        await anyio.sleep(3600)

    async def scenario():
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(anyio.from_thread.run, hour)
        await anyio.sleep(1)

    options = {"backends": backend, "kinds": "scope", "limit": 3}
    assert sweep(scenario, within=4000, **options).positions == 3


@on_each_backend
def test_a_slow_thread_is_no_hang(backend, monkeypatch):
    """On a busy machine a thread may need longer than time stands still for it."""
    monkeypatch.setattr(asyncio_time, "PATIENCE", 0.0005)
    monkeypatch.setattr("sluicegate.testing._sweeps.trio_time.PATIENCE", 0.0005)
    monkeypatch.setattr("sluicegate.testing._sweeps.stage.THREAD_PATIENCE", 100_000)

    async def scenario():
        await anyio.to_thread.run_sync(time.sleep, 0.005)

    assert sweep(scenario, backends=backend, kinds="scope").positions >= 1


# -- what is private to Trio and asyncio -----------------------------------------------------------


def test_trio_s_switch_for_deterministic_scheduling():
    """trio._core._run: the flag, and the generator whose shuffle orders a batch of tasks."""
    run = trio._core._run
    before = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r
    calls = []

    async def main():
        run._r.shuffle, original = calls.append, run._r.shuffle
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.checkpoint)
                nursery.start_soon(trio.lowlevel.checkpoint)
        finally:
            run._r.shuffle = original

    with seeded_trio(5):
        trio.run(main)
        assert run._ALLOW_DETERMINISTIC_SCHEDULING is True
    assert calls, "Trio does not choose among tasks by trio._core._run._r.shuffle any more"
    assert before == (run._ALLOW_DETERMINISTIC_SCHEDULING, run._r)


def test_a_trio_without_the_switch_is_told(monkeypatch):
    """The message has Trio's version, and what is missing."""
    monkeypatch.delattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING")
    with pytest.raises(RuntimeError, match="_ALLOW_DETERMINISTIC_SCHEDULING"):
        run_virtually(trio.sleep, 1, seed=1)


def test_trio_s_way_of_giving_up_a_wait():
    """Task._abort_func is set while a task can be woken, and Task._attempt_abort wakes it."""
    error = OSError()

    async def main():
        async def child():
            with pytest.raises(OSError) as caught:
                await trio.sleep_forever()
            assert caught.value is error

        def raise_error():
            raise error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.testing.wait_all_tasks_blocked()
            (task,) = nursery.child_tasks
            assert task._abort_func is not None, "Trio keeps a wait's abort function elsewhere"
            task._attempt_abort(raise_error)
            assert task._abort_func is None
            assert trio.lowlevel.current_task()._abort_func is None

    trio.run(main)


def test_trio_s_pending_interrupt():
    """GLOBAL_RUN_CONTEXT.runner.ki_pending is the interrupt that is still to be delivered."""

    async def main():
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        assert runner.ki_pending is False, "Trio notes a pending KeyboardInterrupt elsewhere"
        runner.ki_pending = True
        with pytest.raises(KeyboardInterrupt):
            await trio.lowlevel.checkpoint()
        assert runner.ki_pending is False
        assert hasattr(runner.main_task, "_attempt_delivery_of_pending_ki")

    trio.run(main)


def test_trio_s_memory_channels():
    """Both ends are attrs classes that call __attrs_post_init__, and know that they are closed."""
    send, receive = trio.open_memory_channel(1)
    for end in (send, receive):
        assert "__attrs_post_init__" in vars(type(end)), "Trio's channels are made in another way"
        assert end._closed is False, "Trio notes elsewhere that a channel is closed"
        end.close()
        assert end._closed is True


def test_asyncio_s_ready_queue_and_timers():
    """_run_once takes one callback after the other by _ready.popleft(), and timers off a heap."""

    async def main():
        loop = asyncio.get_running_loop()
        assert isinstance(loop._ready, asyncio_time._Ready), (
            "the loop has made itself another queue"
        )
        before = loop._ready.known
        task = asyncio.create_task(asyncio.sleep(0))
        assert [task_of(handle) for handle in loop._ready] == [task], (
            "a task's step is no callback whose __self__ is the task any more"
        )
        timer = loop.call_later(5, print)
        assert timer in loop._scheduled, "asyncio keeps its timers elsewhere than in _scheduled"
        timer.cancel()
        await task
        assert before is not None

    on_asyncio(main)


def test_asyncio_s_task_steps_tell_their_task():
    """A step, a wake-up: both have __self__; a task's other methods are no steps of it."""

    async def main():
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()

        async def waits(future):
            await future

        def steps():
            return [task_of(handle) for handle in loop._ready]

        for kind in (asyncio.Task, asyncio.tasks._PyTask):
            future = loop.create_future()
            task = kind(waits(future), loop=loop)
            assert steps() == [task if kind is asyncio.Task else None]
            await asyncio.sleep(0)
            assert task._fut_waiter is future, "a task keeps elsewhere what it waits for"
            loop.call_soon(me.set_name, "renamed")
            assert steps() == [None]
            await asyncio.sleep(0)
            assert me.get_name() == "renamed"
            future.set_result(None)
            if kind is asyncio.Task:
                assert steps() == [task], "a wake-up is no callback of its task any more"
            await task

    on_asyncio(main)


def test_anyio_s_worker_threads():
    """WorkerThread: of which loop it is, who is idle, and what it is told to end by."""

    async def main():
        loop = asyncio.get_running_loop()
        seen = await anyio.to_thread.run_sync(lambda: asyncio_time.workers_of(loop))
        (worker,) = seen or asyncio_time.workers_of(loop)
        assert worker in worker.idle_workers, "AnyIO keeps its idle workers elsewhere"
        worker.queue.put_nowait(None)
        worker.join(5)
        assert not worker.is_alive()
        worker.idle_workers.clear()

    on_asyncio(main)


def test_the_files_of_a_loop_are_closed():
    """A loop that is closed has given back its selector and its pipe."""
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        pytest.skip("looks at /proc")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        VirtualLoop(1).close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
