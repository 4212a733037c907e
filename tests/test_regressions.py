"""What readers and users found, kept from coming back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Annotated

import anyio
import attrs
import pytest
import trio

import sluicegate
from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Observer,
    Resource,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
    step,
    workflow_scope,
)
from sluicegate._loop.cleanup import current_cleanup
from sluicegate.testing import jump_clock
from tests.helpers import Item, Single, on_each_backend, run_virtually


class Number(Event):
    n: int


class Mid(Event):
    pass


class Answer(HumanResponseEvent):
    pass


class One(Workflow[int]):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=1)


class Fails(Workflow[None]):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise ValueError("no")


class Streams(Workflow[int]):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(200):
            await ctx.stream.send(Number(n=n))
        return StopEvent(result=1)


@pytest.mark.anyio
async def test_start_event_that_starts_no_step_stalls_the_run():
    """P12: a start event that only fills a place of a join leaves nothing that could happen."""

    class Lonely(Workflow[None]):
        @step
        async def pair(self, a: StartEvent, b: Mid) -> Mid | StopEvent:
            return StopEvent()

    with anyio.fail_after(2), pytest.raises(WorkflowStalledError) as caught:
        await Lonely().run()

    assert caught.value.missing == ("Lonely.pair lacks Mid",)


@pytest.mark.anyio
async def test_event_that_nobody_takes_is_refused_every_time():
    """P13: the second run hears of it as the first one did."""

    class Base(Event):
        pass

    class Sub(Base):
        pass

    class Wide(Workflow[None]):
        @step
        async def make(self, ev: StartEvent) -> Base:
            return Base()

        @step
        async def take(self, ev: Sub) -> StopEvent:
            return StopEvent()

    workflow = Wide()
    for _ in range(2):
        with pytest.raises(WorkflowRuntimeError, match="which no step takes"):
            await workflow.run()


@pytest.mark.anyio
async def test_answer_too_many_answers_no_later_question():
    """P12: a run that has just asked is idle, however often it was answered before."""

    class Twice(Workflow[str]):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent(n=1)

        @step
        async def hear(self, ev: Answer) -> InputRequiredEvent | StopEvent | None:
            if ev.text == "first":
                return InputRequiredEvent(n=2)
            return StopEvent(result=ev.text) if ev.text == "second" else None

    async with Twice().run() as handler:
        async for event in handler.stream_events():
            if not isinstance(event, InputRequiredEvent):
                continue
            if event.n == 1:
                handler.send_event(Answer(text="noise"))
                handler.send_event(Answer(text="first"))
            else:
                await anyio.wait_all_tasks_blocked()
                assert handler.status == "idle"
                handler.send_event(Answer(text="second"))

        assert await handler == "second"


@pytest.mark.trio
async def test_nursery_that_takes_no_task_leaves_the_run_unstarted():
    """A start that was refused is no start: the handler can be started elsewhere."""
    async with trio.open_nursery() as closed:
        pass
    handler = One().run()
    with pytest.raises(RuntimeError, match="closed"):
        handler.start_soon(closed)
    with pytest.raises(TypeError, match="was given None; expected a Trio nursery"):
        handler.start_soon(None)

    assert handler.status == "unstarted"
    assert await handler == 1


def test_parameter_that_would_shift_the_others_is_a_fault():
    """P13: steps are called by position, so a default may not stand before what is passed."""

    class Shifted(Workflow[None]):
        @step
        async def only(self, ev: StartEvent, limit: int = 3, ctx: Context = None) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="'ctx' after 'limit'"):
        Shifted()


@pytest.mark.anyio
async def test_repr_that_raises_hides_no_failure():
    """P8: the step's own exception arrives, whatever its event does when it is shown."""
    error = ValueError("the real one")

    class Shy(StartEvent):
        def __repr__(self):
            raise RuntimeError("no repr")

    class Shows(Workflow[None]):
        @step
        async def only(self, ev: Shy) -> StopEvent:
            raise error

    with pytest.raises(ValueError, match="the real one") as caught:
        await Shows().run()

    assert caught.value is error


@pytest.mark.anyio
async def test_observer_that_raises_at_the_end_hangs_nobody():
    """Who waits for the run is told before the observers are."""

    class Bad(Observer):
        def run_ended(self, run_id, status, error):
            raise OSError("nobody reads this")

    handler = One(observers=[Bad()]).run()
    with anyio.fail_after(2), pytest.raises(OSError, match="nobody reads"):
        async with handler:
            assert await handler == 1


@pytest.mark.anyio
async def test_one_resource_that_fails_to_close_does_not_keep_the_others():
    """P1: everything that a step left open is closed, whatever closing one of them does."""
    closed = []

    class Resource:
        def __init__(self, name):
            self.name = name

        async def aclose(self):
            closed.append(self.name)
            if self.name == "b":
                raise OSError("b does not close")

    class Opens(Workflow[None]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            for name in "abc":
                current_cleanup.get().add(Resource(name))
            return StopEvent()

    with pytest.raises(OSError, match="b does not close"):
        await Opens().run()

    assert closed == ["c", "b", "a"]


@pytest.mark.anyio
async def test_reader_broken_off_holds_up_no_second_one_of_its_task():
    """P7: a task that reads a second stream of the run cannot be reading the first one."""
    async with Streams().run() as handler:
        first = handler.stream_events()
        async for _ in first:
            break
        with anyio.fail_after(5):
            events = [event async for event in handler.stream_events()]

        assert len(events) == 201
        assert len([event async for event in first]) == 200


@pytest.mark.anyio
async def test_scope_forgets_a_failed_run_that_was_seen():
    """P16: a scope that lives as long as a server does not keep every run that ever failed."""
    refs = []
    async with workflow_scope():
        for _ in range(5):
            handler = Fails().run()
            async for _ in handler.stream_events():
                pass
            with pytest.raises(ValueError, match="no"):
                await handler
            refs.append(weakref.ref(handler))
        del handler
        await anyio.wait_all_tasks_blocked()
        gc.collect()

        # The last one's error, and so its frames, may be kept by whoever caught it.
        assert [ref() for ref in refs[:-1]] == [None] * 4


@pytest.mark.trio
async def test_stream_of_the_context_works_from_a_thread():
    """The sending end may be looked up in a worker thread, and sends through the event loop."""

    class Threads(Workflow[None]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await trio.to_thread.run_sync(
                lambda: trio.from_thread.run(ctx.stream.send, Number(n=1))
            )
            return StopEvent()

    async with Threads().run() as handler:
        assert [type(e) async for e in handler.stream_events()] == [Number, StopEvent]


@pytest.mark.anyio
async def test_context_collects_nothing_after_its_step():
    """What a step left behind is told so, by every method alike."""
    kept = []

    class Keeps(Workflow[None]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            kept.append(ctx)
            return StopEvent()

    await Keeps().run()

    with pytest.raises(WorkflowRuntimeError, match="the step only has ended, so it cannot collect"):
        kept[0].collect_events(Number(n=1), [Number])


def test_names_that_run_needs_are_faults():
    """P13: a step called run, and fields that run() takes for itself."""

    class Named(StartEvent):
        run_id: str

    class Takes(Workflow[None]):
        @step
        async def only(self, ev: Named) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="has a field 'run_id'"):
        Takes()

    class Runs(Workflow[None]):
        @step
        async def run(self, ev: StartEvent) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="expected another name"):
        Runs()


def test_event_with_an_init_is_refused():
    """A constructor that would be replaced without a word is an error."""
    with pytest.raises(TypeError, match="expected fields as annotations"):

        class Odd(Event):
            def __init__(self, a): ...


def test_observers_are_checked_when_the_workflow_is_built():
    """P13: not when the run is over."""
    for wrong in (object(), [object()], Observer()):
        with pytest.raises(WorkflowValidationError, match=r"derived from sluicegate\.Observer"):
            One(observers=wrong)


def test_coroutine_instead_of_a_function():
    """The likeliest slip of all says the right line, and leaves no warning."""

    async def main(): ...

    with pytest.raises(TypeError, match=r"run\(main\), not run\(main\(\)\)"):
        sluicegate.run(main())


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


def test_quoted_and_nested_names_are_resolved():
    """Annotations may be quoted, and may name a class of the workflow's own body."""

    class Local(Event):
        pass

    class Nests(Workflow[None]):
        class Inner(Event):
            pass

        @step
        async def begin(self, ev: StartEvent) -> Local:
            return Local()

        @step
        async def go(self, ev: Local) -> Inner:
            return self.Inner()

        @step
        async def end(self, ev: Inner) -> StopEvent:
            return StopEvent()

    Nests()


@pytest.mark.parametrize("note", ["Start Event", "list", "StartEvent | 'Nope'"])
def test_annotation_that_means_nothing_is_a_fault(note):
    """P13: whatever stands there, the answer is a WorkflowValidationError that names the step."""

    async def only(self, ev):
        return StopEvent()

    only.__annotations__ = {"ev": note, "return": "StopEvent"}
    only.__globals__.setdefault("StopEvent", StopEvent)
    kind = type("Odd", (Workflow,), {"only": step(only)})

    with pytest.raises(WorkflowValidationError, match=r"Odd\.only"):
        kind()


def test_validation_knows_aliases():
    """``validate=True`` checks a field whatever its keyword is."""

    class Aliased(Event, validate=True):
        x: int = attrs.field(alias="y")

    assert Aliased(y=1).x == 1
    with pytest.raises(TypeError, match=r"Aliased\.x is 'no'"):
        Aliased(y="no")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_forked_processes_number_their_runs_apart():
    """Two children of one process give their runs different identifiers."""
    code = (
        "import os\n"
        "from sluicegate._workflow import _new_run_id\n"
        "for _ in range(2):\n"
        "    if not os.fork():\n"
        "        os.write(1, (_new_run_id() + ' ').encode()); os._exit(0)\n"
        "    os.wait()\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert len(set(printed)) == 2


def test_private_field_is_not_set_from_outside():
    """P19: what an open event takes from outside does not replace what it keeps to itself."""

    class Keeps(Event, open=True):
        _secret: int = 0

    assert Keeps(other=1).other == 1
    with pytest.raises(TypeError, match=r"Keeps\._secret is private"):
        Keeps(_secret=1)


# -- the programming model ------------------------------------------------------------------------------


@on_each_backend
def test_a_question_that_nobody_will_answer_any_more_keeps_no_run_alive(backend):
    """P12: neither a wait that has timed out, nor one whose answer came before the question."""

    class Patient(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            if ev.early:
                await anyio.sleep(1)
            with contextlib.suppress(WorkflowTimeoutError):
                question = InputRequiredEvent(prefix="?")
                await ctx.wait_for_event(HumanResponseEvent, question, timeout=1)

    async def main():
        with pytest.raises(WorkflowStalledError):
            await Patient().run(early=False)
        with pytest.raises(WorkflowStalledError):
            async with Patient().run(early=True) as handler:
                await anyio.sleep(0.5)
                handler.send_event(HumanResponseEvent(response="x"))
                await handler

    run_virtually(backend, main)


@on_each_backend
def test_the_clock_goes_on_while_one_of_two_children_works(backend):
    """A run is idle only when all of it waits for a person."""

    class Asking(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent(prefix="?"))
            return StopEvent()

    class Busy(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(100)
            return StopEvent()

    class Both(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async with anyio.create_task_group() as group:
                group.start_soon(ctx.run_child, Asking())
                group.start_soon(ctx.run_child, Busy())
            return StopEvent()

    async def main():
        with pytest.raises(WorkflowTimeoutError):
            await Both(timeout=5, timeout_excludes_waiting=True).run()
        assert anyio.current_time() < 50

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_a_limiter_that_swallows_exceptions_ends_the_step_without_an_event():
    """It is the limiter's own doing; nothing hangs."""

    class Swallowing:
        async def __aenter__(self):
            pass

        async def __aexit__(self, *_):
            return True

    class Limited(Workflow):
        @step(limiter=Swallowing())
        async def only(self, ev: StartEvent) -> StopEvent | None:
            raise ValueError

    with anyio.fail_after(5), pytest.raises(WorkflowStalledError):
        await Limited().run()


@pytest.mark.anyio
async def test_a_branch_that_another_task_of_the_step_cancels_is_no_stall():
    """P12: a step that still runs can free itself."""

    class Cancelling(Workflow):
        @step(num_workers=1)
        async def only(self, ctx: Context, ev: StartEvent | Number) -> Number | StopEvent | None:
            if isinstance(ev, Number):
                return None
            branch = ctx.send_event(Number(n=1))
            async with anyio.create_task_group() as group:
                group.start_soon(branch.wait)
                await anyio.sleep(0.005)
                branch.cancel()
            return StopEvent(result="free")

    assert await Cancelling().run() == "free"


@pytest.mark.anyio
async def test_a_run_is_cancelled_from_threads_and_from_callbacks_of_the_loop():
    """What comes from outside of any task, a signal's handler too, reaches the run."""
    ended = []

    class Endless(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(1)

    async with Endless().run() as handler:
        await anyio.sleep(0.005)
        from_thread = handler.from_thread
        await anyio.to_thread.run_sync(from_thread.cancel, "from a thread")
        with pytest.raises(WorkflowCancelledError, match="from a thread"):
            await handler
    if trio.lowlevel.in_trio_task():
        call_soon = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        call_soon = asyncio.get_running_loop().call_soon
    async with Endless(timeout=50, timeout_excludes_waiting=True).run() as handler:
        await anyio.sleep(0.005)
        call_soon(handler.cancel, "from a callback")
        with pytest.raises(WorkflowCancelledError, match="from a callback"):
            await handler

    assert ended == [1, 1]


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


def test_validate_leaves_out_what_the_workflow_left_out():
    """A workflow that could be built can be validated."""

    class Loose(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent | Number: ...

    assert Loose(skip_graph_checks=["terminal_event"]).validate() is False


@pytest.mark.anyio
async def test_what_is_written_to_a_restored_context_is_in_its_next_snapshot():
    """``Context.from_dict`` gives a state that lives."""
    workflow = One()
    ctx = Context(workflow)
    await ctx.store.set("n", 1)
    again = Context.from_dict(workflow, ctx.to_dict())
    await again.store.set("n", 2)

    assert await Context.from_dict(workflow, again.to_dict()).store.get("n") == 2


# -- what the sweep found --------------------------------------------------------------------------


def test_a_failure_that_nobody_saw_is_raised_where_a_nursery_hands_on_the_cancellation():
    """P9: a group of nothing but Cancelled is a cancellation, and gives way to the run's failure."""

    async def sleep(ctx):
        await trio.sleep(100)

    async def main():
        with pytest.raises(WorkflowTimeoutError), trio.CancelScope(deadline=10):
            async with Single(sleep, timeout=5).run(), trio.open_nursery():
                await trio.sleep(1)
                jump_clock(20)  # both deadlines pass in one turn
                await trio.sleep_forever()

    run_virtually("trio", main)


@on_each_backend
def test_a_timeout_that_passes_while_a_step_blocks_is_the_timeout(backend):
    """P11: also where the step had slept before, and its sleep was ended by a cancellation."""

    class Slow(Workflow):
        @step
        async def slow(self, ev: StartEvent) -> Item:
            await anyio.sleep(1)
            until = time.perf_counter() + 0.002  # so that the next hop is a whole checkpoint
            while time.perf_counter() < until:
                pass
            jump_clock(20)
            return Item(number=1)

        @step
        async def last(self, ev: Item) -> StopEvent:
            return StopEvent()

    async def main():
        with pytest.raises(WorkflowTimeoutError):
            await Slow(timeout=5).run()

    run_virtually(backend, main)


class Question(InputRequiredEvent):
    pass


class Early(HumanResponseEvent):
    pass


@on_each_backend
def test_an_answer_to_somebody_else_leaves_the_question_open(backend):
    """P12: an answer that nobody waits for yet is kept, and the run still waits for its own."""

    class Form(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Question:
            return Question()

        @step
        async def listen(self, ctx: Context, ev: Answer) -> StopEvent:
            early = await ctx.wait_for_event(Early)
            return StopEvent(result=(ev.text, early.text))

    async def main():
        async with Form().run() as handler:
            await anyio.sleep(1)
            handler.send_event(Early(text="known"))
            await anyio.sleep(1)
            handler.send_event(Answer(text="ann"))

        assert handler.result() == ("ann", "known")

    run_virtually(backend, main)


@on_each_backend
def test_a_cancelled_run_lets_go_of_its_resources(backend):
    """P1: what opened the resources of a run is not kept by the run, however that ended."""

    async def open_one():
        yield 1

    class Holder(Workflow):
        @step
        async def hold(self, ev: StartEvent, one: Annotated[int, Resource(open_one)]) -> StopEvent:
            await anyio.sleep(100)
            return StopEvent()

    async def main():
        with anyio.move_on_after(1):
            async with Holder().run() as handler:
                await anyio.sleep(100)

        assert handler.status == "cancelled"
        assert handler._runner._resources is None

    run_virtually(backend, main)
