"""Synchronous steps in threads, CPU steps in processes, and answers from threads."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
import time
from contextvars import ContextVar, copy_context
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    step,
)
from sluicegate._context import Branch, step_context
from sluicegate._engine.step_operations import StepOperations
from sluicegate._loop import current_backend, thread_places, threads
from sluicegate._loop import from_thread as answering
from sluicegate._loop.from_thread import HandlerFromThread, call_and_wait
from sluicegate._loop.run_in_context import run_in_context
from sluicegate._loop.thread_places import ThreadPlace
from sluicegate._loop.threads import FromThread, ThreadStep, in_loop
from tests.helpers import (
    Catch,
    Done,
    Item,
    Mine,
    Note,
    cancelled_class,
    nothing_left,
    on_asyncio,
    wait_until_idle,
)


from_thread = FromThread()
variable: ContextVar[str] = ContextVar("variable", default="unset")

#: What must not take long on any machine, in seconds.
LONG = 20


def caller_into_this_loop():
    backend = current_backend()
    return backend.caller_into(backend.current_loop())


class Tile(Event):
    number: int


class Pixels(Event):
    data: bytes


class Record:
    """The record of a run, as far as its operations hop by it."""

    run_id = "run-1"
    log = object()
    graph = SimpleNamespace(name="Flow")
    outcome = SimpleNamespace(status="", is_over=False)

    def __init__(self):
        self.thread = threading.get_ident()
        self._backend = current_backend()

    def live(self):
        return self._backend, None


def hops(function):
    """Have an operation go the engine's way from another thread, which calls it again in the loop."""

    @functools.wraps(function)
    def operation(self, *arguments):
        if threading.get_ident() != self.run.thread:
            return getattr(StepOperations, function.__name__)(self, *arguments)
        return function(self, *arguments)

    return operation


class Run(StepOperations):
    """The operations of a run; notes what it was asked for, and in which thread."""

    def __init__(self):
        super().__init__(Record())
        self.calls = []
        self.error = None

    def _note(self, *call):
        self.calls.append((threading.get_ident(), *call))
        if self.error is not None:
            raise self.error

    @property
    def store(self):
        if threading.get_ident() != self.run.thread:
            return super().store
        self._note("store")
        return "the store"

    @hops
    def send(self, context, event, target):
        self._note("send", context, event, target)
        return Branch(self, SimpleNamespace(is_over=False, is_cancelled=False), context)

    @hops
    def cancel_branch(self, group, reason):
        self._note("cancel_branch", reason)

    async def wait_for_branch(self, group, step):
        await anyio.lowlevel.checkpoint()
        self._note("wait_for_branch", step)

    @hops
    def publish(self, event):
        self._note("publish", event)

    @hops
    def collect(self, context, event, expected, key):
        self._note("collect", context, event, expected, key)
        return [event]

    async def wait_for(self, context, kind, requirements, waiter_event, timeout):
        await anyio.lowlevel.checkpoint()
        self._note("wait_for", kind)
        return Tile(number=7)

    async def run_child(self, context, handler, stream):
        await anyio.lowlevel.checkpoint()
        return handler, stream

    @hops
    def retry_info(self, context):
        self._note("retry_info", context)
        return "info"

    @hops
    def snapshot(self):
        self._note("snapshot")
        return {}


def context_of(run):
    return step_context(run, SimpleNamespace(name="crunch", index=3), None, None)


def call(function, *arguments, abandon=False):
    """Run a synchronous step: ``function(*arguments)``."""
    step = ThreadStep(lambda _workflow, *rest: function(*rest), abandon_on_cancel=abandon)
    return step(None, *arguments)


class Cancelling:
    """A step that is cancelled once it has told that it is under way.

    ``seen`` is what the step's thread raised; ``here()`` tells, from the thread, that the time has
    come, and ``scope`` is what is cancelled then.
    """

    def __init__(self, function, *, abandon=False):
        self.function = function
        self.abandon = abandon
        self.reached = anyio.Event()
        self.over = threading.Event()
        self.seen = None
        self.scope = anyio.CancelScope()

    def here(self):
        from_thread.run_sync(self.reached.set)

    def _body(self):
        try:
            self.function(self)
        except BaseException as error:
            self.seen = error
            raise
        finally:
            self.over.set()

    async def _host(self):
        with self.scope:
            await call(self._body, abandon=self.abandon)

    async def run(self, before_end=None):
        with anyio.fail_after(LONG), nothing_left():
            async with anyio.create_task_group() as group:
                group.start_soon(self._host)
                await self.reached.wait()
                await wait_until_idle()
                self.scope.cancel()
                if before_end is not None:
                    await before_end()
        assert self.scope.cancelled_caught


# -- the context in a thread ----------------------------------------------------------------------


@pytest.mark.anyio
async def test_operations_are_done_in_the_loop():
    """What a step asks of its context in its thread is done in the thread of the event loop."""
    run, event, here = Run(), Tile(number=1), threading.get_ident()
    ctx = context_of(run)
    found = []

    def step():
        found.append(threading.get_ident())
        branch = ctx.send_event(event, "other")
        branch.cancel("not needed")
        from_thread.run(branch.wait)
        ctx.write_event_to_stream(event)
        found.append(ctx.collect_events(event, [Tile]))
        found.append((ctx.run_id, ctx.is_running, ctx.store, ctx.retry_info(), ctx.to_dict()))
        return ctx.from_thread.run(run.run_child, ctx, "child", "off")

    with anyio.fail_after(LONG):
        assert await call(step) == ("child", "off")

    assert found[0] != here
    assert found[1:] == [[event], ("run-1", True, "the store", "info", {})]
    assert run.calls == [
        (here, "send", ctx, event, "other"),
        (here, "cancel_branch", "not needed"),
        (here, "wait_for_branch", ctx),
        (here, "publish", event),
        (here, "collect", ctx, event, [Tile], "default"),
        (here, "store"),
        (here, "retry_info", ctx),
        (here, "snapshot"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("abandon", [False, True])
async def test_deadline(abandon):
    """A step in a thread sees the deadline that is around it."""
    ctx = context_of(Run())

    with anyio.fail_after(LONG) as scope:
        assert await call(lambda: ctx.deadline, abandon=abandon) == scope.deadline


@pytest.mark.anyio
async def test_operation_raises_in_the_thread():
    """What an operation raises in the loop comes out in the step's thread, as that object."""
    run = Run()
    run.error = Mine()
    catch = Catch()

    def step(ctx):
        with catch:
            ctx.send_event(Tile(number=1))

    await call(step, context_of(run))

    assert catch.error is run.error


@pytest.mark.anyio
async def test_operations_from_the_loop_go_straight_on():
    """What a step has running in the loop uses the same context, without a hop."""
    run, here = Run(), threading.get_ident()

    async def ask(ctx):
        ctx.write_event_to_stream(None)
        assert in_loop(threading.get_ident) == here
        assert ctx.is_running
        return await ctx.wait_for_event(Tile)

    def step(ctx):
        return from_thread.run(ask, ctx)

    event = await call(step, context_of(run))

    assert event.number == 7
    assert [(thread, name) for thread, name, *_ in run.calls] == [
        (here, "publish"),
        (here, "wait_for"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("abandon", [False, True])
async def test_from_thread_gives_back_what_comes_of_it(abandon):
    """``from_thread.run`` and ``run_sync`` return or raise what the function does, as itself."""
    error, here = Mine(), threading.get_ident()

    async def double(number, *, plus):
        await anyio.lowlevel.checkpoint()
        assert threading.get_ident() == here
        return number * 2 + plus

    async def fail():
        await anyio.lowlevel.checkpoint()
        raise error

    def fail_at_once():
        raise error

    def step():
        assert from_thread.run(double, 3, plus=1) == 7
        assert from_thread.run_sync(max, 1, 2) == 2
        for function, argument in ((from_thread.run, fail), (from_thread.run_sync, fail_at_once)):
            with Catch() as catch:
                function(argument)
            assert catch.error is error
        from_thread.check_cancelled()
        raise error

    with Catch() as catch, anyio.fail_after(LONG), nothing_left():
        await call(step, abandon=abandon)

    assert catch.error is error


@pytest.mark.anyio
@pytest.mark.parametrize("abandon", [False, True])
async def test_context_variables(abandon):
    """P15: a step's thread, and what it has running in the loop, sees its context variables."""
    variable.set("of the step")
    seen = []

    async def look():
        seen.append(variable.get())
        await anyio.lowlevel.checkpoint()
        seen.append(variable.get())

    def step():
        seen.append(variable.get())
        variable.set("of the thread")
        seen.append(from_thread.run_sync(variable.get))
        from_thread.run(look)

    # As the engine does it: each invocation in a context of its own, within a task.
    await run_in_context(call(step, abandon=abandon), copy_context())

    assert seen == ["of the step", *["of the thread"] * 3]
    assert variable.get() == "of the step"


@pytest.mark.anyio
async def test_stop_iteration_is_told():
    """A StopIteration that leaves a step in a thread becomes an error that names the step."""
    with pytest.raises(WorkflowRuntimeError, match="raised StopIteration") as caught:
        await call(lambda: next(iter(())))

    assert type(caught.value.__cause__) is StopIteration


@pytest.mark.anyio
async def test_coroutine_is_refused():
    """A plain step that returns a coroutine is told to be async, and the coroutine is closed."""
    with pytest.raises(WorkflowRuntimeError, match="returned a coroutine; expected `async def"):
        await call(anyio.sleep, 0)


@pytest.mark.anyio
async def test_from_thread_refuses_the_wrong_kind_of_function():
    """``run`` wants an async function and ``run_sync`` one that is not; each names the other."""

    async def nothing():
        pass

    def step():
        with pytest.raises(TypeError, match=r"not async|expected an async function"):
            from_thread.run(dict)
        with pytest.raises(TypeError, match=r"given an async function|asynchronous"):
            from_thread.run_sync(nothing)

    await call(step)


@pytest.mark.anyio
async def test_from_thread_elsewhere():
    """``from_thread`` says where it belongs: not in the loop's thread, and not in a foreign one."""
    raised = []

    def foreign():
        with pytest.raises(WorkflowRuntimeError, match="outside of a synchronous step") as caught:
            from_thread.run(anyio.sleep, 0)
        raised.append(caught.value)

    def step():
        from_thread.run_sync(in_the_loop)
        thread = threading.Thread(target=copy_context().run, args=(foreign,))
        thread.start()
        thread.join(LONG)

    def in_the_loop():
        with pytest.raises(WorkflowRuntimeError, match="own thread"):
            from_thread.run_sync(int)

    in_the_loop()
    await call(step)
    await anyio.to_thread.run_sync(foreign)

    assert len(raised) == 2


# -- cancellation -----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["send", "publish", "collect", "is_running"])
async def test_cancelled_at_a_call_of_the_context(what):
    """P2: a step in a thread sees the cancellation at its next call of the context."""
    run = Run()
    ctx = context_of(run)
    event = Tile(number=1)
    uses = {
        "send": lambda: ctx.send_event(event),
        "publish": lambda: ctx.write_event_to_stream(event),
        "collect": lambda: ctx.collect_events(event, [Tile]),
        "is_running": lambda: ctx.is_running,
    }

    def step(case):
        uses[what]()
        case.here()
        until = time.monotonic() + LONG
        while time.monotonic() < until:
            uses[what]()

    case = Cancelling(step)
    await case.run()
    count = len(run.calls)
    await wait_until_idle()

    assert type(case.seen) is cancelled_class()
    assert len(run.calls) == count


@pytest.mark.anyio
@pytest.mark.parametrize("abandon", [False, True])
async def test_cancelled_in_check_cancelled(abandon):
    """A loop that asks now and then ends by the cancellation, abandoned or not."""
    left = threading.Event()

    def step(case):
        case.here()
        until = time.monotonic() + LONG
        try:
            while time.monotonic() < until:
                from_thread.check_cancelled()
        finally:
            if abandon:  # else the thread may be over before its step is left
                left.wait(LONG)

    case = Cancelling(step, abandon=abandon)
    if abandon:
        with pytest.warns(RuntimeWarning, match="left running"):
            await case.run()

        left.set()
        assert case.over.wait(LONG)
        assert isinstance(case.seen, cancelled_class() | WorkflowRuntimeError)
    else:
        await case.run()

        assert type(case.seen) is cancelled_class()


@pytest.mark.anyio
@pytest.mark.parametrize("abandon", [False, True])
async def test_cancelled_in_from_thread_run(abandon):
    """P1: what a thread has running in the loop is cancelled and cleaned up before the step ends."""
    cleaned = []

    async def sleep(case):
        case.reached.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await wait_until_idle(5)
            cleaned.append(True)

    def step(case):
        from_thread.run(sleep, case)

    case = Cancelling(step, abandon=abandon)
    if abandon:
        with pytest.warns(RuntimeWarning, match="left running"):
            await case.run()
        assert cleaned == [True]
        assert await anyio.to_thread.run_sync(case.over.wait, LONG)
    else:
        await case.run()

    assert cleaned == [True]
    assert isinstance(case.seen, cancelled_class())


@pytest.mark.anyio
async def test_thread_is_waited_for():
    """P1: a cancelled step is left when its thread has ended, not before."""
    release = threading.Event()
    case = Cancelling(lambda case: (case.here(), release.wait(LONG)))

    async def look():
        await wait_until_idle()
        assert not case.over.is_set()
        release.set()

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            group.start_soon(case._host)
            await case.reached.wait()
            case.scope.cancel()
            await look()

    assert case.over.is_set()


async def cancel_natively(case, times, between):
    """Cancel the task of a step by ``Task.cancel()``; return what came out of the task."""
    task = asyncio.ensure_future(case._host())
    await case.reached.wait()
    for _ in range(times):
        task.cancel("native")
        await wait_until_idle()
        assert not task.done()
    between()
    with Catch() as catch:
        await asyncio.wait_for(asyncio.shield(task), LONG)
    assert case.over.is_set()
    return task, catch.error


@pytest.mark.anyio
@on_asyncio
@pytest.mark.parametrize("times", [1, 3])
async def test_native_cancellation_waits_for_the_thread(times):
    """P1 under asyncio: ``Task.cancel()``, however often, leaves no thread behind."""
    release = threading.Event()
    case = Cancelling(lambda case: (case.here(), release.wait(LONG)))
    with nothing_left():
        task, error = await cancel_natively(case, times, release.set)

    assert task.cancelled()
    assert task.cancelling() == times
    assert type(error) is asyncio.CancelledError
    assert case.seen is None


@pytest.mark.anyio
@on_asyncio
async def test_native_cancellation_is_seen_in_the_thread():
    """A native cancellation reaches the thread, and what that has running in the loop."""

    async def sleep(case):
        case.reached.set()
        await anyio.sleep_forever()

    case = Cancelling(lambda case: from_thread.run(sleep, case))
    with nothing_left(), anyio.fail_after(LONG):
        task = asyncio.ensure_future(case._host())
        await case.reached.wait()
        task.cancel()
        await asyncio.wait({task})

    assert task.cancelled()
    assert type(case.seen) is asyncio.CancelledError


@pytest.mark.anyio
@on_asyncio
async def test_failure_of_the_clean_up_after_a_native_cancellation():
    """What a step raises while it is cancelled comes out, as it does from an async step."""
    error, release = Mine(), threading.Event()

    def step(case):
        case.here()
        release.wait(LONG)
        raise error

    _, raised = await cancel_natively(Cancelling(step), 1, release.set)

    assert raised is error


@pytest.mark.anyio
@on_asyncio
async def test_own_cancelled_error_is_no_cancellation():
    """A ``concurrent.futures.CancelledError`` of the step's own comes out as itself."""
    from concurrent.futures import CancelledError  # noqa: PLC0415 - it is used here only

    error = CancelledError("mine")

    async def fail():
        raise error

    with Catch() as catch:
        await call(lambda: from_thread.run(fail))

    assert catch.error is error


# -- abandoned threads ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_abandoned_thread():
    """P1: an abandoned thread is named in a warning, and its context does nothing any more."""
    run = Run()
    ctx = context_of(run)
    release = threading.Event()
    raised = []

    def step(case):
        case.here()
        release.wait(LONG)
        for use in (
            lambda: ctx.send_event(Tile(number=1)),
            lambda: ctx.write_event_to_stream(Tile(number=1)),
            lambda: ctx.is_running,
            lambda: from_thread.run(anyio.sleep, 0),
            lambda: from_thread.run_sync(raised.append, None),
            from_thread.check_cancelled,
        ):
            with pytest.raises(WorkflowRuntimeError, match="abandoned") as caught:
                use()
            raised.append(caught.value)
        raise caught.value

    case = Cancelling(step, abandon=True)
    with pytest.warns(RuntimeWarning, match=r"step .* was cancelled and its thread left running"):
        await case.run()

    assert not case.over.is_set()

    release.set()

    assert await anyio.to_thread.run_sync(case.over.wait, LONG)
    assert len(raised) == 6
    assert run.calls == []


@pytest.mark.anyio
async def test_warning_as_an_error_does_not_replace_the_cancellation(monkeypatch):
    """Where warnings are errors, the warning goes to ``sys.unraisablehook``."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_value))
    release = threading.Event()
    case = Cancelling(lambda case: (case.here(), release.wait(LONG)), abandon=True)
    await case.run()
    release.set()

    assert [type(error) for error in told] == [RuntimeWarning]
    assert "left running" in str(told[0])


@pytest.mark.anyio
async def test_failure_of_an_abandoned_thread_is_told(monkeypatch):
    """P9: what an abandoned thread raises goes where failures of threads go."""
    told = []
    done = threading.Event()
    monkeypatch.setattr(
        threading, "excepthook", lambda args: (told.append(args.exc_value), done.set())
    )
    error, release = Mine(), threading.Event()

    def step(case):
        case.here()
        release.wait(LONG)
        raise error

    case = Cancelling(step, abandon=True)
    with pytest.warns(RuntimeWarning, match="left running"):
        await case.run()
    release.set()

    assert await anyio.to_thread.run_sync(done.wait, LONG)
    assert told == [error]


@pytest.mark.anyio
async def test_hop_that_was_under_way_when_the_thread_was_abandoned():
    """What an abandoned thread had asked for just before is not done in the loop after all."""
    done = []

    async def late():
        done.append(True)

    given_up = threads._Call(current_backend(), ThreadPlace("step"), may_be_abandoned=True)
    given_up.give_up()
    with pytest.raises(WorkflowRuntimeError, match="abandoned"):
        given_up._apply(lambda: done.append(True))
    with pytest.raises(WorkflowRuntimeError, match="abandoned"):
        await given_up._await_in_scope(late)

    assert given_up.enter(done.append, (True,)) is None
    assert done == []


@pytest.mark.anyio
@pytest.mark.parametrize("abandon", [False, True])
async def test_cancelled_before_it_begins(abandon, monkeypatch):
    """A step that is cancelled while it waits for a thread is not called, and no thread is left."""
    release = threading.Event()
    first = Cancelling(lambda case: (case.here(), release.wait(LONG)))
    second = Cancelling(lambda case: case.here(), abandon=abandon)
    monkeypatch.setattr(thread_places, "MAX_RUNNING", 1)
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            group.start_soon(first._host)
            await first.reached.wait()
            group.start_soon(second._host)
            await wait_until_idle()
            second.scope.cancel()
            await wait_until_idle()
            release.set()

    assert first.over.is_set()
    assert not second.over.is_set()


# -- the handler in foreign threads -------------------------------------------------------------------


class Handler:
    """Notes what it is asked for, and in which thread."""

    def __init__(self):
        self.calls = []
        self.error = None

    def send_event(self, event, step, **_named):
        self.calls.append((threading.get_ident(), event, step, variable.get()))
        if self.error is not None:
            raise self.error

    def cancel(self, reason):
        self.calls.append((threading.get_ident(), reason))

    def from_thread(self, call_soon):
        thread = threading.get_ident()
        return HandlerFromThread(
            find_loop=lambda: None if call_soon is None else (thread, call_soon),
            send_event=self.send_event,
            cancel=self.cancel,
        )


@pytest.mark.anyio
async def test_handler_from_a_foreign_thread():
    """An answer from a thread that no event loop knows is given in the loop, before it returns."""
    handler, event, here = Handler(), Tile(number=1), threading.get_ident()
    answers = handler.from_thread(caller_into_this_loop())
    done = anyio.Event()
    raised = []

    def foreign():
        variable.set("foreign")
        answers.send_event(event, "listen")
        answers.cancel("enough")
        assert len(handler.calls) == 2
        handler.error = Mine()
        with Catch() as catch:
            answers.send_event(event)
        raised.append(catch.error)
        call_soon(done.set)

    call_soon = caller_into_this_loop()
    thread = threading.Thread(target=foreign)
    thread.start()
    with anyio.fail_after(LONG):
        await done.wait()
    thread.join()

    assert raised == [handler.error]
    assert handler.calls == [
        (here, event, "listen", "foreign"),
        (here, "enough"),
        (here, event, None, "foreign"),
    ]


@pytest.mark.anyio
async def test_handler_in_the_thread_of_the_loop():
    """In the loop's own thread ``from_thread`` is an ordinary call."""
    handler = Handler()
    answers = handler.from_thread(None)
    answers.cancel("at once")

    assert handler.calls == [(threading.get_ident(), "at once")]


def in_foreign_thread(function):
    """Call a function in a new thread; return what it raised."""
    catch = Catch()

    def body():
        with catch:
            function()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()
    return catch.error


def test_handler_before_the_run_has_begun():
    """An answer from a thread before the run has begun is refused, with the way to begin it."""
    error = in_foreign_thread(Handler().from_thread(None).cancel)

    assert type(error) is WorkflowRuntimeError
    assert "before the run was started" in str(error)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_handler_after_the_loop(backend):
    """An answer that comes after the event loop is refused."""

    async def begin():
        return caller_into_this_loop()

    handler = Handler()
    answers = handler.from_thread(anyio.run(begin, backend=backend))
    error = in_foreign_thread(answers.cancel)

    assert type(error) is WorkflowRuntimeError
    assert "is over" in str(error)
    assert handler.calls == []


def test_loop_that_ends_while_a_thread_waits(monkeypatch):
    """A thread that waits for a loop that ends without calling gets an error that says so; it does not hang."""
    monkeypatch.setattr(answering, "_LOOK_AGAIN", 0.001)
    loop = asyncio.new_event_loop()
    waiting = threading.Event()
    errors = []

    def call_soon(function):
        try:
            return loop.call_soon_threadsafe(function)
        finally:
            waiting.set()

    def foreign():
        with Catch() as catch:
            call_and_wait(call_soon, int)
        errors.append(catch.error)

    thread = threading.Thread(target=foreign)
    thread.start()
    waiting.wait(LONG)
    loop.close()
    thread.join(LONG)

    assert not thread.is_alive()
    assert type(errors[0]) is WorkflowRuntimeError
    assert type(errors[0].__cause__) is RuntimeError


def test_answer_that_comes_as_the_loop_ends(monkeypatch):
    """What the loop has done before it ended counts as done."""
    monkeypatch.setattr(answering, "_LOOK_AGAIN", 0.001)
    kept = []

    def call_soon(function):
        if not kept:
            kept.append(function)
            return
        kept[0]()
        msg = "over"
        raise RuntimeError(msg)

    assert call_and_wait(call_soon, lambda: 5) == 5


# -- what it costs ----------------------------------------------------------------------------------


def test_threads_under_trio_import_no_anyio():
    """P20: a synchronous step under Trio imports neither AnyIO nor asyncio."""
    code = """
import sys, trio
from sluicegate._loop.thread_places import ThreadPlace
from sluicegate._loop.threads import FromThread, ThreadStep
here = FromThread()
def body(workflow):
    here.check_cancelled()
    here.run(trio.sleep, 0)
    return here.run_sync(int)
for abandon in (False, True):
    assert trio.run(ThreadStep(body, abandon_on_cancel=abandon), None) == 0
print(sorted({"anyio", "asyncio"} & set(sys.modules)))
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert printed == "[]\n"


@pytest.mark.anyio
@pytest.mark.peer("row 8")
async def test_thread_of_a_step_does_not_work_on_unseen_after_the_timeout():
    """P1: the timeout is raised when the thread has ended, and not before."""
    told: list[str] = []
    let_go = threading.Event()

    class Slow(Workflow):
        @step
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                while not let_go.wait(0.001):
                    ctx.from_thread.check_cancelled()
            finally:
                told.append("thread ended")
            return StopEvent()

    with nothing_left():
        with pytest.raises(WorkflowTimeoutError) as caught:
            await Slow(timeout=0.05).run()

        assert told == ["thread ended"]
        assert caught.value.active_steps == ("work",)


@pytest.mark.anyio
@pytest.mark.peer("row 9")
async def test_synchronous_step_publishes_and_sends():
    """The context of a step in a thread does what that of any other does."""

    class Both(Workflow[list[int]]):
        @step
        def begin(self, ctx: Context, ev: StartEvent) -> Item | Done:
            ctx.write_event_to_stream(Note(number=1))
            ctx.send_event(Item(number=2))
            return Done(number=3)

        @step
        def work(self, ev: Item) -> Done:
            return Done(number=ev.number)

        @step
        def end(self, ctx: Context, ev: Done) -> StopEvent | None:
            both = ctx.collect_events(ev, [Done, Done])
            return both and StopEvent(result=sorted(each.number for each in both))

    async with Both().run() as handler:
        seen = [type(event) async for event in handler.stream_events()]

        assert await handler == [2, 3]
        assert seen == [Note, StopEvent]


@pytest.mark.trio
async def test_stream_of_the_context_works_from_a_thread():
    """The sending end may be looked up in a worker thread, and sends through the event loop."""

    class Threads(Workflow[None]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await trio.to_thread.run_sync(
                lambda: trio.from_thread.run(ctx.stream.send, Item(number=1))
            )
            return StopEvent()

    async with Threads().run() as handler:
        assert [type(e) async for e in handler.stream_events()] == [Item, StopEvent]


@pytest.mark.anyio
async def test_reporting_progress_in_a_thread_learns_of_a_cancellation():
    """P2: each call of the context does, in a plain step."""

    class Endless(Workflow):
        @step
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            while True:
                ctx.report_progress()

    with pytest.raises(WorkflowTimeoutError):
        await Endless(timeout=0.05).run()
