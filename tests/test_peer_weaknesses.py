"""What another engine's users had to live with, and what holds here instead, one rule for each.

``test_peer_edges.py`` and ``promises/`` have the rows of the same tables that concern the end of
runs, streams and failures; ``test_failures.py`` has those of retries and handlers. Here are the
rest: the rows that waited for threads, limits and children, and what was seen in small programs.
"""

from __future__ import annotations

import builtins
import json
import re
import threading
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import attrs
import pytest

import sluicegate
from sluicegate import (
    ChildEvent,
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Resource,
    SnapshotError,
    StartEvent,
    StepStateChanged,
    StopEvent,
    Take,
    UnhandledEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowHandler,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    step,
)
from tests.helpers import (
    Catch,
    Done,
    Fan,
    Item,
    Mine,
    Note,
    Single,
    is_trio,
    nothing_left,
    on_each_backend,
    run_virtually,
    wait_until_idle,
)


class Answer(HumanResponseEvent):
    name: str
    text: str


class Ask(InputRequiredEvent):
    name: str


# -- threads (rows 8 and 9) ---------------------------------------------------------------------


@pytest.mark.anyio
async def test_thread_of_a_step_does_not_work_on_unseen_after_the_timeout():
    """Row 8, P1: the timeout is raised when the thread has ended, and not before."""
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
async def test_synchronous_step_publishes_and_sends():
    """Row 9: the context of a step in a thread does what that of any other does."""

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


# -- children (rows 12 and 13) --------------------------------------------------------------------


class Lasting(Workflow[str]):
    """A child that waits for ever, and takes two turns to clean up."""

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told = told

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(number=1)

    @step
    async def wait(self, ev: Item) -> StopEvent:
        self.told.append("child runs")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await wait_until_idle(2)
            self.told.append("child ended")
        return StopEvent()


@pytest.mark.parametrize("how", ["timeout", "cancel"])
@on_each_backend
def test_child_ends_with_its_parent(backend, how):
    """Rows 12 and 13, P1: whatever ends the parent ends its child first, clean-up included."""
    told: list[str] = []

    async def call(ctx):
        try:
            return await ctx.run_child(Lasting(told))
        finally:
            told.append("parent ended")

    async def main():
        with nothing_left(), Catch() as caught:
            async with Single(call, timeout=1 if how == "timeout" else None).run() as handler:
                if how == "cancel":
                    await wait_until_idle()
                    await handler.cancel("enough")
                await handler

        assert told == ["child runs", "child ended", "parent ended"]
        kind = WorkflowTimeoutError if how == "timeout" else WorkflowCancelledError
        assert type(caught.error) is kind

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_child_is_heard_and_answered_through_its_parent():
    """3.5: what a child publishes and asks comes to its parent's readers, with its name."""

    class Asks(Workflow[str]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Answer, Ask(name=ev.name))
            return StopEvent(result=answer.text)

    async def call(ctx):
        return await ctx.run_child(Asks(), stream="tag", name="ann")

    async with Single(call).run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, ChildEvent) and isinstance(event.event, Ask):
                assert event.path == ("Asks",)
                handler.send_event(Answer(name=event.event.name, text="aye"))

        assert await handler == "aye"


@pytest.mark.anyio
async def test_failure_of_a_child_is_the_parent_s_own():
    """3.5, P8: it arrives as the object that the child's step raised, through both runs."""
    mine = Mine("deep down")

    async def fail(ctx):
        raise mine

    async def call(ctx):
        return await ctx.run_child(Single(fail))

    with pytest.raises(Mine) as caught:
        await Single(call).run()

    assert caught.value is mine


# -- how many at a time (rows 19 and 26 of the users' list) -------------------------------------------


@pytest.mark.anyio
async def test_run_that_waits_for_its_turn_is_cancelled_at_once():
    """Row 19: a run in the line of ``num_concurrent_runs`` ends like any other, and never begins."""
    begun: list[int] = []

    async def stay(ctx):
        begun.append(1)
        await anyio.sleep_forever()

    workflow = Single(stay, num_concurrent_runs=1)
    with nothing_left():
        async with anyio.create_task_group() as group:
            first = workflow.run().start_soon(group, keep_failure=True)
            await wait_until_idle()
            second = workflow.run().start_soon(group, keep_failure=True)
            await wait_until_idle()
            await second.cancel("no longer needed")

            assert second.status == "cancelled"
            assert begun == [1]
            with pytest.raises(WorkflowCancelledError, match="no longer needed"):
                await second
            assert first.status == "running"
            await first.cancel()


@on_each_backend
def test_time_in_the_line_is_not_the_run_s(backend):
    """3.3: a timeout counts from the moment at which the run's turn has come."""

    async def work(ctx):
        await anyio.sleep(3)

    async def main():
        workflow = Single(work, timeout=4, num_concurrent_runs=1)
        async with anyio.create_task_group() as group:
            handlers = [workflow.run().start_soon(group) for _ in range(4)]
        assert [handler.status for handler in handlers] == ["completed"] * 4

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_workers_can_be_counted_across_runs():
    """1.2: ``limiter`` bounds a step over all runs that share it."""
    inside = most = 0
    limiter = anyio.CapacityLimiter(2)

    class Bounded(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step(limiter=limiter)
        async def work(self, ev: Item) -> Done:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await wait_until_idle(3)
            inside -= 1
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    workflow = Bounded()
    async with anyio.create_task_group() as group:
        handlers = [workflow.run().start_soon(group) for _ in range(3)]

    assert [handler.result() for handler in handlers] == [3, 3, 3]
    assert most == 2


# -- fan-outs ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_losers_of_a_race_are_cancelled_and_cleaned_up():
    """1.2: when the first have come, what is left of the fan-out ends before the run goes on."""
    cleaned: list[int] = []

    class Race(Workflow[list[int]]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(4)]

        @step(num_workers=4)
        async def work(self, ev: Item) -> Done:
            if ev.number != 2:
                try:
                    await anyio.sleep_forever()
                finally:
                    cleaned.append(ev.number)
            await wait_until_idle()  # the others have begun
            return Done(number=ev.number)

        @step
        async def end(self, evs: Annotated[list[Done], Take(1)]) -> StopEvent:
            await wait_until_idle()
            return StopEvent(result=([ev.number for ev in evs], sorted(cleaned)))

    with nothing_left():
        assert await Race().run() == ([2], [0, 1, 3])


@pytest.mark.anyio
async def test_what_a_branch_sends_belongs_to_its_fan_out():
    """1.2: an event sent in a fan-out is one of its members, and the join waits for it."""

    class Wide(Workflow[list[int]]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=1), Item(number=2)]

        @step
        async def work(self, ctx: Context, ev: Item) -> Done | Note:
            ctx.send_event(Note(number=ev.number * 10))
            return Done(number=ev.number)

        @step
        async def late(self, ev: Note) -> Done:
            await wait_until_idle()
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    assert await Wide().run() == [1, 2, 10, 20]


@pytest.mark.anyio
async def test_step_cancels_another_branch():
    """Users' list 19: the branch that an event began is cancelled by who sent it, alone."""
    ended: list[int] = []

    class Two(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            one, two = (ctx.send_event(Item(number=n)) for n in (1, 2))
            await wait_until_idle()
            one.cancel("not needed")
            await one.wait()
            assert (one.is_cancelled, two.is_done) == (True, False)
            two.cancel()
            await two.wait()
            return StopEvent(result="went on")

        @step
        async def work(self, ev: Item) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(ev.number)

    assert await Two().run() == "went on"
    assert ended == [1, 2]


@pytest.mark.anyio
async def test_events_beyond_the_expected_ones_make_the_next_batch():
    """2: the code after ``collect_events`` runs once for each batch, and each batch is whole."""
    batches: list[list[int]] = []

    class Batches(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            for number in range(5):
                ctx.send_event(Item(number=number))
            return Item(number=5)

        @step
        async def gather(self, ctx: Context, ev: Item) -> StopEvent | None:
            some = ctx.collect_events(ev, [Item] * 2)
            if some is None:
                return None
            batches.append([each.number for each in some])
            await wait_until_idle()
            return StopEvent() if len(batches) == 3 else None

    await Batches().run()

    assert all(len(batch) == 2 for batch in batches)
    assert sorted(number for batch in batches for number in batch) == [0, 1, 2, 3, 4, 5]


# -- waiting ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_wait_is_no_exception_that_a_step_could_catch():
    """2: ``try ... except Exception`` around a wait catches nothing, and the wait goes on."""
    caught: list[Exception] = []

    async def ask(ctx):
        try:
            return (await ctx.wait_for_event(Answer, Ask(name="ann"))).text
        except Exception as error:
            caught.append(error)
            raise

    async with Single(ask).run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, Ask):
                await wait_until_idle()
                handler.send_event(Answer(name="ann", text="aye"))
        assert await handler == "aye"

    assert caught == []


@pytest.mark.anyio
async def test_two_waits_in_a_group_get_answers_in_any_order():
    """2: waits in tasks of a group register at once; the answer to the second may come first."""
    got: dict[str, str] = {}

    async def ask(ctx):
        async def one(name):
            got[name] = (await ctx.wait_for_event(Answer, requirements={"name": name})).text

        async with anyio.create_task_group() as group:
            group.start_soon(one, "ann")
            group.start_soon(one, "bob")

    async with Single(ask).run() as handler:
        handler.send_event(Answer(name="bob", text="second"))
        handler.send_event(Answer(name="ann", text="first"))
        await handler

    assert got == {"ann": "first", "bob": "second"}


@pytest.mark.anyio
async def test_parallel_invocations_of_a_step_wait_each_for_its_own():
    """Users' list 37 and 38: a wait belongs to its task; none shares an identity with another."""

    async def ask(ctx, number):
        answer = await ctx.wait_for_event(
            Answer, Ask(name=str(number)), requirements={"name": str(number)}
        )
        assert answer.text == f"to {number}"

    async with Fan(ask, count=5).run() as handler:
        asked = []
        async for event in handler.stream_events():
            if isinstance(event, Ask):
                asked.append(event.name)
                if len(asked) == 5:
                    for name in reversed(asked):
                        handler.send_event(Answer(name=name, text=f"to {name}"))

        assert sorted(asked) == ["0", "1", "2", "3", "4"]
        assert await handler == [0, 1, 2, 3, 4]


@on_each_backend
def test_time_that_a_person_takes_is_left_out_of_the_timeout(backend):
    """3.3: with ``timeout_excludes_waiting`` the clock stands still while a run is idle."""

    async def ask(ctx):
        await anyio.sleep(3)
        await ctx.wait_for_event(Answer, Ask(name="ann"))
        await anyio.sleep(3)
        return "done"

    async def take_a_day(seconds):
        workflow = Single(ask, timeout=seconds, timeout_excludes_waiting=True)
        async with workflow.run() as handler:
            async for event in handler.stream_events():
                if isinstance(event, Ask):
                    await anyio.sleep(86_400)
                    handler.send_event(Answer(name="ann", text="aye"))
            return await handler

    async def main():
        assert await take_a_day(7) == "done"
        with pytest.raises(WorkflowTimeoutError):
            await take_a_day(5)

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_answer_that_nobody_waits_for_is_told_and_kept():
    """Row 22: who reads internal events sees it; who waits for it later gets it."""

    async def ask(ctx):
        await ctx.wait_for_event(Answer, requirements={"name": "go"})
        return (await ctx.wait_for_event(Answer)).text

    async with Single(ask).run() as handler:
        with handler.stream_events(expose_internal=True) as reader:
            handler.send_event(Answer(name="early", text="kept"))
            await wait_until_idle()
            handler.send_event(Answer(name="go", text=""))
            told = [event async for event in reader if isinstance(event, UnhandledEvent)]

        assert await handler == "kept"
        assert [event.event.name for event in told] == ["early"]


# -- classes ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_function_that_is_a_step_is_inherited():
    """1.5: a subclass has the steps of its parents, written in the class or outside of it."""

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
async def test_graph_can_be_validated_in_an_event_loop():
    """1.4: ``validate()`` opens no event loop of its own, and tells whether people are asked."""

    class Asks(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Ask:
            return Ask(name="ann")

        @step
        async def end(self, ev: Answer) -> StopEvent:
            return StopEvent()

    async def nothing(ctx): ...

    assert Asks().validate() is True
    assert Single(nothing).validate() is False


@pytest.mark.anyio
async def test_most_derived_state_wins_for_all_steps():
    """1.5: steps that name a state and one derived from it share one object of the latter."""

    @attrs.define
    class Base:
        count: int = 0

    @attrs.define
    class Derived(Base):
        name: str = "x"

    class Both(Workflow[str]):
        @step
        async def begin(self, ctx: Context[Base], ev: StartEvent) -> Item:
            await ctx.store.set("count", 2)
            return Item(number=1)

        @step
        async def end(self, ctx: Context[Derived], ev: Item) -> StopEvent:
            state = await ctx.store.get_state()
            return StopEvent(result=state)

    state = await Both().run()
    assert isinstance(state, Derived)
    assert (state.count, state.name) == (2, "x")


@pytest.mark.anyio
async def test_runs_of_one_object_share_no_state():
    """Users' list 52: state belongs to a run; concurrent requests do not see each other's."""
    both = anyio.Event()
    written = 0

    async def work(ctx):
        nonlocal written
        await ctx.store.set("mine", ctx.run_id)
        written += 1
        if written == 2:
            both.set()
        await both.wait()
        return await ctx.store.get("mine")

    workflow = Single(work)
    async with anyio.create_task_group() as group:
        one, two = (workflow.run(run_id=name).start_soon(group) for name in ("one", "two"))

    assert (one.result(), two.result()) == ("one", "two")


@pytest.mark.anyio
async def test_state_may_hold_what_cannot_be_copied():
    """Users' list 31: a lock or a module in the state is neither copied nor in the way of events."""
    lock = threading.Lock()

    async def work(ctx):
        await ctx.store.set("lock", lock)
        async with ctx.store.edit_state() as state:
            state.module = json
        return await ctx.store.get("lock"), await ctx.store.get("module")

    assert await Single(work).run() == (lock, json)


# -- events -------------------------------------------------------------------------------------------


def test_stop_event_of_ones_own_can_be_read():
    """1.6: the text of a stop event shows its fields, whatever they are called."""

    class Answered(StopEvent):
        text: str

    assert str(Answered(text="yes")) == "Answered(text='yes')"
    assert str(StopEvent(other=1)) == "StopEvent(other=1)"


@pytest.mark.anyio
async def test_internal_events_name_the_input_in_one_way():
    """1.6: the class of the input has the same name when a step begins and when it ends."""

    async def nothing(ctx): ...

    async with Single(nothing).run() as handler:
        changes = [
            (event.state, event.input_event_name, event.output_event_name)
            async for event in handler.stream_events(expose_internal=True)
            if isinstance(event, StepStateChanged)
        ]

    assert changes == [("running", "StartEvent", None), ("done", "StartEvent", "StopEvent")]


# -- resources ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_resource_that_several_steps_and_runs_ask_for_at_once():
    """3.1: each run makes its own, once, and closes it; no run takes another's for a circle."""
    opened: list[object] = []
    closed: list[object] = []

    @asynccontextmanager
    async def connect(ctx: Context):
        await wait_until_idle(3)
        opened.append(ctx.run_id)
        try:
            yield ctx.run_id
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append(ctx.run_id)

    class Uses(Workflow[set[Any]]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step(num_workers=3)
        async def work(self, ev: Item, db: Annotated[str, Resource(connect)]) -> Note:
            return Note(number=ev.number if db else -1)

        @step
        async def end(
            self, evs: list[Note], ctx: Context, db: Annotated[str, Resource(connect)]
        ) -> StopEvent:
            return StopEvent(result=db == ctx.run_id)

    workflow = Uses()
    async with anyio.create_task_group() as group:
        handlers = [workflow.run(run_id=f"run {n}").start_soon(group) for n in range(2)]

    assert [handler.result() for handler in handlers] == [True, True]
    assert sorted(opened) == sorted(closed) == ["run 0", "run 1"]


@pytest.mark.anyio
async def test_factories_of_one_name_are_two():
    """3.1: a resource is known by its factory itself, not by what the factory is called."""

    def make(value):
        def factory():
            return value

        return factory

    x, y = make("X"), make("Y")

    class Uses(Workflow[tuple[str, str]]):
        @step
        async def only(
            self,
            ev: StartEvent,
            one: Annotated[str, Resource(x)],
            two: Annotated[str, Resource(y)],
        ) -> StopEvent:
            return StopEvent(result=(one, two))

    assert await Uses().run() == ("X", "Y")


# -- snapshots ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_values_of_open_events_keep_their_types():
    """2: dates and tuples in events without declared fields come back as what they were."""

    async def ask(ctx):
        return await ctx.wait_for_event(HumanResponseEvent, requirements={"go": True})

    workflow = Single(ask)
    async with workflow.run(day=date(2026, 1, 2), pair=(1, 2)) as handler:
        await wait_until_idle()
        handler.send_event(HumanResponseEvent(day=date(2026, 1, 2), pair=(1, 2)))
        await wait_until_idle()
        saved = json.loads(json.dumps(handler.snapshot()))
        await handler.cancel()

    async def take(ctx):
        event = await ctx.wait_for_event(HumanResponseEvent)
        return event.to_dict()

    workflow.function = take
    assert await workflow.resume(saved) == {"day": date(2026, 1, 2), "pair": (1, 2)}


@pytest.mark.anyio
async def test_events_of_a_function_body_can_be_restored():
    """2: a class is found by the workflow that declares it, not by importing its name."""

    class Local(Event):
        number: int

    class Flow(Workflow[int]):
        @step
        async def begin(self, ev: StartEvent) -> Local:
            return Local(number=7)

        @step(waits_for=[Answer])
        async def end(self, ctx: Context, ev: Local) -> StopEvent:
            await ctx.wait_for_event(Answer, Ask(name="ann"))
            return StopEvent(result=ev.number)

    workflow = Flow()
    async with workflow.run() as handler:
        await wait_until_idle()
        saved = json.loads(json.dumps(handler.snapshot()))
        await handler.cancel()

    async with workflow.resume(saved) as handler:
        handler.send_event(Answer(name="ann", text=""))
        assert await handler == 7


@pytest.mark.anyio
async def test_snapshot_of_another_shape_is_refused():
    """2: a step that was renamed since is told, and nothing is lost without a word."""

    def make(name):
        async def method(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Answer)
            return StopEvent()

        method.__name__ = name
        return type("Flow", (Workflow,), {name: step(waits_for=[Answer])(method)})

    async with make("before")().run() as handler:
        await wait_until_idle()
        saved = handler.snapshot()
        await handler.cancel()

    with pytest.raises(SnapshotError, match=r"before.*after|after.*before"):
        make("after")().resume(saved)


@pytest.mark.anyio
async def test_snapshot_does_not_grow_with_what_has_passed():
    """8.11: it is read off the books, which hold what is pending and nothing else."""

    class Chain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(number=ev.count)

        @step
        async def walk(self, ctx: Context, ev: Item) -> Item | StopEvent:
            if ev.number:
                return Item(number=ev.number - 1)
            return StopEvent(result=ctx.to_dict())

    short, long = [json.dumps(await Chain().run(run_id="r", count=n)) for n in (10, 1000)]

    # Only the numbers in it have more digits, and only the field of the start event need have.
    assert abs(len(long) - len(short)) < 50


@pytest.mark.anyio
async def test_context_of_a_run_that_goes_on_starts_no_other_run():
    """2: two runs in one context would share its state; it is refused with the right way."""

    async def stay(ctx):
        await anyio.sleep_forever()

    workflow = Single(stay)
    async with workflow.run() as handler:
        await wait_until_idle()
        with pytest.raises(WorkflowRuntimeError, match="not over; expected `await handler` before"):
            workflow.run(ctx=handler.ctx)
        await handler.cancel()


@pytest.mark.anyio
async def test_fields_for_a_run_that_goes_on_are_refused():
    """1.1: what would be left unused is an error: a run that goes on has begun already."""

    async def ask(ctx):
        await ctx.wait_for_event(Answer)

    workflow = Single(ask, serializable=[Answer])
    async with workflow.run() as handler:
        await wait_until_idle()
        saved = handler.ctx.to_dict()
        await handler.cancel()

    with pytest.raises(TypeError, match="goes on"):
        workflow.run(ctx=Context.from_dict(workflow, saved), topic="unused")


# -- the names ----------------------------------------------------------------------------------------


def test_every_name_that_newcomers_are_told_exists():
    """What the page for those who come from there gives as a name of sluicegate is one."""
    page = Path(__file__).parent.parent / "docs" / "coming-from-llamaindex.md"
    told: set[str] = set()
    for line in page.read_text().partition("## What has no counterpart")[0].splitlines():
        if line.startswith("| ") and line.count(" | ") == 1:
            new = " ".join(re.findall(r"`([^`]*)`", line.rpartition(" | ")[2]))
            told |= {*re.findall(r"\b[A-Z]\w+(?:Event|Error|Changed|State|Config)\b", new)}
            for name in re.findall(r"(?:ctx|handler)\.(\w+)", new):
                assert hasattr(Context, name) or hasattr(WorkflowHandler, name), name

    told -= {"RetryCallState", "TooSlowError"}  # of tenacity and of Trio

    assert len(told) > 12
    assert [
        name for name in told if not hasattr(sluicegate, name) and not hasattr(builtins, name)
    ] == []


# -- the host -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_reader_of_events_stops_the_run():
    """Users' list 23: whoever reads the stream may cancel the run right there, and reads its end."""

    async def chatter(ctx):
        for number in range(1000):
            await ctx.stream.send(Note(number=number))

    seen = []
    with nothing_left():
        async with Single(chatter, stream_buffer=1).run() as handler:
            async for event in handler.stream_events():
                seen.append(type(event).__name__)
                if len(seen) == 3:
                    await handler.cancel("seen enough")

    assert seen[:3] == ["Note"] * 3
    assert seen[-1] == "WorkflowCancelledEvent"


@pytest.mark.anyio
async def test_engine_runs_wherever_it_is_called():
    """0: one workflow class serves Trio, asyncio and uvloop, with no setting that says which."""

    async def where(ctx):
        await anyio.lowlevel.checkpoint()
        return is_trio()

    assert await Single(where).run() is is_trio()
