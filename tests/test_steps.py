"""Steps of every kind in the engine: methods, free functions, threads, processes, what they ask for."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Annotated

import anyio
import attrs
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Resource,
    ResourceConfig,
    StartEvent,
    StopEvent,
    UnhandledEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowValidationError,
    step,
)
from tests.helpers import (
    Catch,
    Done,
    Fan,
    Item,
    Line,
    Mine,
    Note,
    Single,
    is_trio,
    nothing_left,
    own_run,
    task_names,
    wait_until_idle,
)


pytestmark = pytest.mark.anyio


class Number(Event):
    n: int


class Square(Event):
    n: int


# -- functions outside of the class ---------------------------------------------------------------


async def test_a_free_function_is_a_step_and_is_inherited():
    """A function outside of the class becomes a step, of subclasses too."""

    class Base(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Number:
            return Number(n=3)

    @step(workflow=Base)
    async def finish(ctx: Context, ev: Number) -> StopEvent:
        return StopEvent(result=(ev.n, ctx.step.name))

    class Derived(Base):
        @step
        async def begin(self, ev: StartEvent) -> Number:
            return Number(n=4)

    assert await Base().run() == (3, "finish")
    assert await Derived().run() == (4, "finish")


async def test_a_workflow_that_was_built_does_not_change():
    """P18: a step that is added later belongs to objects that are built later."""

    class Growing(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent | Number:
            return StopEvent(result="old")

    with pytest.raises(WorkflowValidationError, match="Number, which the step begin makes"):
        Growing()

    @step
    async def more(ev: Number) -> StopEvent:
        return StopEvent(result=ev.n)

    Growing.add_step(more)
    built = Growing()

    @step
    async def extra(ev: Number) -> None: ...

    Growing.add_step(extra)

    assert repr(built) == "<Growing, 2 steps>"
    assert repr(Growing()) == "<Growing, 3 steps>"
    assert await built.run() == "old"


@pytest.mark.parametrize("backend", ["once"])
async def test_a_free_function_that_cannot_be_added_says_why(backend):
    """P13: a name that is taken, a function that is no step, a class that is no workflow."""

    class Full(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent: ...

    async def begin(ev: StartEvent) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="begin is not a step; expected `@step"):
        Full.add_step(begin)
    with pytest.raises(
        WorkflowValidationError, match="Full already has an attribute 'begin'; expected"
    ):
        step(workflow=Full)(begin)
    with pytest.raises(WorkflowValidationError, match="expected a subclass of Workflow"):
        step(workflow=int)(begin)


# -- steps in threads -------------------------------------------------------------------------------


async def test_a_plain_function_is_a_step_in_a_thread_with_a_working_context():
    """Every call of the context works in a worker thread, and coroutines through from_thread."""
    here = threading.get_ident()
    seen = []

    class Threaded(Workflow):
        @step
        def begin(self, ctx: Context, ev: StartEvent) -> Number | list[Item] | None:
            seen.append(threading.get_ident())
            ctx.write_event_to_stream(Note(number=1))
            ctx.from_thread.run(ctx.stream.send, Note(number=2))
            ctx.from_thread.run(ctx.store.set, "key", ctx.step.name)
            seen.append((ctx.run_id, ctx.is_running, ctx.retry_info().attempt, ctx.deadline > 0))
            branch = ctx.send_event(Number(n=4))
            ctx.from_thread.run(branch.wait)
            return [Item(number=n) for n in range(3)]

        @step
        def square(self, ctx: Context, ev: Number) -> None:
            seen.append(ctx.from_thread.run(ctx.store.get, "key"))

        @step(num_workers=3)
        def work(self, ev: Item) -> Done:
            return Done(number=ev.number * 10)

        @step
        def join(self, ctx: Context, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    async with Threaded(timeout=5).run(run_id="mine") as handler:
        events = [event async for event in handler.stream_events()]

    assert handler.result() == [0, 10, 20]
    assert here not in seen
    assert seen[1:] == [("mine", True, 1, True), "begin"]
    assert [ev.number for ev in events if isinstance(ev, Note)] == [1, 2]


async def test_a_thread_collects_and_waits_like_any_step():
    """collect_events and wait_for_event work in threads."""

    class Asking(Workflow):
        @step
        def begin(self, ctx: Context, ev: StartEvent) -> Number | None:
            answer = ctx.from_thread.run(
                ctx.wait_for_event, HumanResponseEvent, InputRequiredEvent(prefix="?")
            )
            ctx.send_event(Number(n=answer.n))
            return Number(n=1)

        @step
        def collect(self, ctx: Context, ev: Number) -> StopEvent | None:
            numbers = ctx.collect_events(ev, [Number, Number])
            return numbers and StopEvent(result=sorted(ev.n for ev in numbers))

    async with Asking(timeout=5).run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, InputRequiredEvent):
                handler.send_event(HumanResponseEvent(n=5))

        assert await handler == [1, 5]


async def test_cancellation_reaches_a_thread_at_its_next_call_of_the_context():
    """P1, P2: the run waits for the thread, which learns of the cancellation from its context."""
    caught = []
    started = anyio.Event()

    class Endless(Workflow):
        @step
        def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Number:
            ctx.from_thread.run_sync(started.set)
            try:
                while True:
                    time.sleep(0.001)
                    ctx.from_thread.check_cancelled()
            except BaseException as error:
                caught.append(type(error))
                raise

        @step
        async def other(self, ev: Number) -> None: ...

    with nothing_left():
        async with Endless().run() as handler:
            await started.wait()
            await handler.cancel("enough")
            with pytest.raises(WorkflowCancelledError):
                await handler
        assert caught == [anyio.get_cancelled_exc_class()]


async def test_a_failure_in_a_thread_arrives_as_itself():
    """P8: the exception object, with the note that names the step."""
    mine = Mine("in a thread")

    class Failing(Workflow):
        @step
        def begin(self, ev: StartEvent) -> StopEvent:
            raise mine

    with Catch() as caught:
        await Failing().run()

    assert caught.one is mine
    assert "Failing.begin" in mine.__notes__[0]


# -- steps in processes -------------------------------------------------------------------------------


class Crunching(Workflow):
    """At the top of a module, where a worker process finds it."""

    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(3)]

    @step(in_process=True, num_workers=2)
    @staticmethod
    def crunch(ev: Number) -> Square:
        return Square(n=ev.n**2)

    @step
    async def join(self, evs: list[Square]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


@pytest.mark.slow
async def test_a_process_step_takes_and_returns_events():
    """A static method runs in a worker process; its events go in and out by pickling."""
    assert await Crunching(timeout=60).run() == [0, 1, 4]


def test_a_process_step_that_no_process_could_run_is_a_fault():
    """P13: what cannot be found there, and what would stay behind, is told when it is built."""

    class Local(Workflow):
        @step(in_process=True)
        def begin(self, ctx: Context, ev: StartEvent) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError) as caught:
        Local()

    text = str(caught.value)
    assert "takes 'self', which is not sent to a worker process" in text
    assert "defined inside a function" in text


# -- resources ----------------------------------------------------------------------------------------


@attrs.define
class Settings:
    host: str
    port: int = 80


async def test_resources_of_each_scope_are_closed_in_reverse_order(tmp_path):
    """Step, run and workflow: made once in each, closed when it ends, the last one first."""
    told = []
    path = tmp_path / "settings.toml"
    path.write_text("[db]\nhost = 'here'\n")

    def resource(name, needs=None):
        @asynccontextmanager
        async def make():
            told.append(f"open {name}")
            async with anyio.create_task_group():  # a scope of its own, in a task of its own
                yield name
            told.append(f"close {name}")

        return make

    shared, own, brief = resource("shared"), resource("own"), resource("brief")

    async def pair(first, other):
        return f"{first}+{other}"

    pair.__annotations__ = {
        "first": Annotated[str, Resource(own)],
        "other": Annotated[str, Resource(shared, scope="workflow")],
    }

    class Using(Workflow):
        @step
        async def begin(
            self,
            ev: StartEvent,
            settings: Annotated[Settings, ResourceConfig(str(path), "db")],
            both: Annotated[str, Resource(pair)],
        ) -> Number:
            told.append(f"begin {both} {settings.host}:{settings.port}")
            return Number(n=1)

        @step
        async def second(
            self,
            mine: Annotated[str, Resource(brief, scope="step")],
            ctx: Context,
            ev: Number,
            again: Annotated[str, Resource(own)],
        ) -> StopEvent:
            told.append(f"second {mine} {again}")
            return StopEvent(result=ctx.step.name)

    with nothing_left():
        async with Using() as workflow:
            assert await workflow.run() == "second"
            told.append("again")
            assert await workflow.run() == "second"

    run = [
        "begin own+shared here:80",
        "open brief",
        "second brief own",
        "close brief",
        "close own",
    ]
    assert told == [
        "open own",
        "open shared",
        *run,
        "again",
        "open own",
        *run,
        "close shared",
    ]


@pytest.mark.parametrize("end", ["fail", "cancel", "timeout"])
async def test_a_resource_is_closed_on_every_way_out(end):
    """P1: and it learns of a failure, as any context manager does."""
    told = []
    mine = Mine("step")

    @asynccontextmanager
    async def make():
        try:
            yield "it"
        except Exception as error:
            told.append(type(error).__name__)
            raise
        finally:
            await anyio.lowlevel.checkpoint()  # shielded
            told.append("closed")

    class Ending(Workflow):
        @step
        async def begin(self, ev: StartEvent, it: Annotated[str, Resource(make)]) -> StopEvent:
            if end == "fail":
                raise mine
            await anyio.sleep_forever()
            return StopEvent()

    with nothing_left(), Catch() as caught:
        async with Ending(timeout=0.05 if end == "timeout" else None).run() as handler:
            if end == "cancel":
                await anyio.sleep(0.005)
                await handler.cancel()
            await handler

    assert told[-1] == "closed"
    assert len(told) == 2 or end == "cancel"
    if end == "fail":
        assert caught.one is mine


async def test_a_resource_that_breaks_down_fails_its_run():
    """A background task of a resource that crashes is a failure of the run, at once."""
    mine = Mine("background")

    @asynccontextmanager
    async def make():
        async with anyio.create_task_group() as group:

            async def crash():
                await anyio.sleep(0.005)
                raise mine

            group.start_soon(crash)
            yield "it"

    class Using(Workflow):
        @step
        async def begin(self, ev: StartEvent, it: Annotated[str, Resource(make)]) -> StopEvent:
            await anyio.sleep_forever()
            return StopEvent()

    with nothing_left(), Catch() as caught:
        await Using().run()

    assert caught.one is mine


# -- looking ------------------------------------------------------------------------------------------


async def test_an_answer_that_nobody_waits_for_yet_is_told_to_who_asks_for_internal_events():
    """UnhandledEvent names an answer that came early; it is kept for who waits later."""

    class Early(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await anyio.sleep(0.01)
            answer = await ctx.wait_for_event(HumanResponseEvent)
            return StopEvent(result=answer.text)

    async with Early().run() as handler:
        reader = handler.stream_events(expose_internal=True)
        async for event in reader:
            if type(event).__name__ == "StepStateChanged" and event.state == "running":
                handler.send_event(HumanResponseEvent(text="early"))
            if isinstance(event, UnhandledEvent):
                assert event.event.text == "early"
                break
        else:
            pytest.fail("not told")

        assert await handler == "early"


async def test_ctx_step_tells_what_is_known_of_the_step():
    """Its name, its workflow, its options and the attempt."""

    class Told(Workflow):
        @step(num_workers=7, timeout=9)
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ctx.step)

    info = await Told().run()

    assert attrs.asdict(info) == {
        "name": "only",
        "workflow": "Told",
        "num_workers": 7,
        "timeout": 9,
        "attempt": 1,
    }


async def test_the_context_is_refused_where_it_cannot_work():
    """What belongs to a step is refused outside of one, and after it."""
    kept = []

    class Keeping(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            kept.append(ctx)
            return StopEvent()

    workflow = Keeping()
    handler = workflow.run()
    await handler

    with pytest.raises(WorkflowRuntimeError, match="has ended, so it cannot send Number"):
        kept[0].send_event(Number(n=1))
    with pytest.raises(
        WorkflowRuntimeError, match=r"is over \(completed\), so Number cannot be delivered"
    ):
        handler.ctx.send_event(Number(n=1))
    with pytest.raises(WorkflowRuntimeError, match="outside of a step; expected the `ctx`"):
        await Context(workflow).run_child(workflow)


variable: ContextVar[str] = ContextVar("variable", default="unset")


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["in place", "block", "nursery", "scope"])
async def test_each_invocation_has_its_own_copy_of_the_runs_context(form):
    """P15: a step sees what was set before the run, and nothing that another step set."""
    seen = []

    class Leaky(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            self.look("begin")
            await anyio.lowlevel.checkpoint()
            self.look_again("begin")
            return Item(number=1)

        @step
        async def next(self, ev: Item) -> list[Note]:
            self.look("next")
            return [Note(number=1), Note(number=2)]

        @step
        async def side(self, ev: Note) -> Done:
            self.look(f"side {ev.number}")
            await wait_until_idle(3)
            self.look_again(f"side {ev.number}")
            return Done(number=1)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            self.look("end")
            return StopEvent()

        def look(self, name):
            seen.append(variable.get())
            variable.set(name)

        def look_again(self, name):
            assert variable.get() == name

    token = variable.set("outside")
    await own_run(form, Leaky().run())
    assert variable.get() == "outside"
    variable.reset(token)

    assert seen == ["outside"] * 5


@pytest.mark.anyio
async def test_tasks_and_threads_of_a_step_have_its_context():
    """P15: what a step sets is seen by what it starts, and by nothing else."""
    seen = []

    async def child():
        seen.append(variable.get())
        variable.set("of the child")

    async def work(ctx, number):
        variable.set(str(number))
        async with anyio.create_task_group() as group:
            group.start_soon(child)
        seen.append(await anyio.to_thread.run_sync(variable.get))
        assert variable.get() == str(number)

    await Fan(work).run()

    assert sorted(seen) == ["0", "0", "1", "1", "2", "2"]
    assert variable.get() == "unset"


class Named(Workflow):
    def __init__(self, look):
        super().__init__()
        self.look = look

    @step
    async def begin(self, ev: StartEvent) -> Note:
        await self.look("begin")
        return Note(number=1)

    @step
    async def second(self, ev: Note) -> list[Item]:
        await self.look("second")
        return [Item(number=n) for n in range(3)]

    @step
    async def work(self, ev: Item) -> Done:
        await self.look("work")
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        await self.look("end")
        return StopEvent()


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["in place", "block", "nursery", "scope"])
async def test_step_shows_under_its_own_name_in_the_task_tree(form):
    """P15: while it runs, one task has the name of each invocation; afterwards none has."""
    working = 0
    all_here = anyio.Event()

    async def look(name):
        nonlocal working
        if name == "work":
            working += 1
            if working == 3:
                all_here.set()
            await all_here.wait()
        await anyio.lowlevel.checkpoint()
        mine = trio.lowlevel.current_task().name if is_trio() else asyncio.current_task().get_name()
        assert mine == f"Named.{name}"
        if name != "work":
            assert task_names().count(f"Named.{name}") == 1
        elif working == 3:
            working = 0
            assert task_names().count("Named.work") >= 1

    before = task_names()
    await own_run(form, Named(look).run())

    assert task_names() == before


@pytest.mark.anyio
async def test_three_invocations_show_under_three_names():
    """P15: the tree tells of each invocation in flight, in the task of whoever awaits as well."""
    workflow = Fan(lambda ctx, n: anyio.sleep_forever())
    async with anyio.create_task_group() as group:
        group.start_soon(await_it, workflow.run())
        while len(workflow.running) < 3:
            await anyio.lowlevel.checkpoint()
        assert task_names().count("Fan.work") == 3
        group.cancel_scope.cancel()

    assert task_names().count("Fan.work") == 0


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["failed", "cancelled"])
async def test_task_has_its_name_back_however_the_run_ends(ending):
    """P15: the task that ran the run in place is called as before."""

    async def work(ctx):
        if ending == "failed":
            raise Mine
        await anyio.sleep_forever()

    before = task_names()
    with Catch(), anyio.move_on_after(0.002):
        await Single(work).run()

    assert task_names() == before


async def await_it(handler):
    await handler


@pytest.mark.peer("edge 33")
async def test_task_that_outlives_its_step_cannot_write_unseen():
    """What a leaked task sends or writes too late raises in that task; nothing is lost."""
    kept = []

    class Leaky(Workflow):
        @step
        async def leak(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            kept.append(ctx)
            return Item(number=1)

        @step
        async def end(self, ev: Item) -> StopEvent:
            # The step before has ended, the run has not.
            with pytest.raises(WorkflowRuntimeError, match="leak has ended"):
                kept[0].send_event(Item(number=2))
            return StopEvent(result="ended")

    assert await Leaky().run() == "ended"

    for write in (kept[0].write_event_to_stream, kept[0].stream.send_nowait):
        with pytest.raises(WorkflowRuntimeError, match="the run is over"):
            write(Line(text="lost"))
    with pytest.raises(WorkflowRuntimeError, match="the run is over"):
        await kept[0].stream.send(Line(text="lost"))
    with pytest.raises(WorkflowRuntimeError, match="leak has ended"):
        kept[0].send_event(Item(number=2))
    assert not kept[0].is_running


@pytest.mark.anyio
@pytest.mark.peer("note 1.5")
async def test_function_that_is_a_step_is_inherited():
    """A subclass has the steps of its parents, written in the class or outside of it."""

    class Parent(Workflow[int]):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(number=1)

    @step(workflow=Parent)
    async def end(ev: Item) -> StopEvent:
        return StopEvent(result=ev.number)

    class Child(Parent):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(number=(await super().begin(ev)).number + 1)

    assert [await Parent().run(), await Child().run()] == [1, 2]


@pytest.mark.anyio
async def test_context_collects_nothing_after_its_step():
    """What a step left behind gets an error that says so, by every method alike."""
    kept = []

    class Keeps(Workflow[None]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            kept.append(ctx)
            return StopEvent()

    await Keeps().run()

    with pytest.raises(WorkflowRuntimeError, match="the step only has ended, so it cannot collect"):
        kept[0].collect_events(Item(number=1), [Item])
