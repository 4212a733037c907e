"""Children: a workflow that runs within a step of another one."""

from __future__ import annotations

import asyncio
from typing import Annotated

import anyio
import pytest
import trio

from sluicegate import (
    ChildEvent,
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StepFailedEvent,
    StepTimeoutError,
    StopEvent,
    Take,
    Workflow,
    WorkflowCancelledError,
    WorkflowIdleEvent,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    catch_error,
    step,
)
from tests.helpers import (
    Asked,
    Catch,
    Done,
    Item,
    Mine,
    Note,
    Said,
    Single,
    nothing_left,
    on_each_backend,
    run_virtually,
    task_names,
    wait_until_idle,
)


class Question(InputRequiredEvent):
    of: int = 0


class Answer(HumanResponseEvent):
    to: int = 0
    text: str = ""


class Total(StopEvent):
    number: int


class Begin(StartEvent):
    number: int


class Parent(Workflow):
    """``await function(ctx, ev)`` in its one step."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    @step
    async def outer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.function(ctx, ev))


class Child(Workflow):
    """The same, with a step of another name."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    @step
    async def inner(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.function(ctx, ev))


def parent_of(child, **options):
    """Return a workflow that runs ``child`` and gives its result."""

    async def function(ctx, ev):
        return await ctx.run_child(child)

    return Parent(function, **options)


async def hang(ctx, ev):
    await anyio.sleep_forever()


class Asks(Workflow):
    """Asks a person, by an event."""

    @step
    async def begin(self, ev: StartEvent) -> Question:
        return Question(of=ev.get("number", 0))

    @step
    async def end(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


async def ask_in_step(ctx, ev):
    number = ev.get("number", 0)
    answer = await ctx.wait_for_event(Answer, Question(of=number), requirements={"to": number})
    return answer.text


# -- results ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_child_gives_its_result_to_the_step():
    """As ``await`` of a run does: the result, or the stop event where it is of an own class."""

    class Adds(Workflow[Total]):
        @step
        async def only(self, ctx: Context, ev: Begin) -> Total:
            return Total(number=ev.number + 1)

    ids = []

    async def echo(ctx, ev):
        ids.append(ctx.run_id)
        return ev.text

    async def function(ctx, ev):
        one = await ctx.run_child(Adds(), number=1)
        two = await ctx.run_child(Adds(), start_event=Begin(number=one.number))
        return two.number, await ctx.run_child(Child(echo), text="hello", run_id="mine")

    assert await Parent(function).run() == (3, "hello")
    assert ids == ["mine"]


@pytest.mark.anyio
async def test_wrong_start_of_a_child_is_the_step_that_is_wrong():
    """Fields that do not fit, an unknown stream and a class are refused at once; nothing has begun."""

    class Adds(Workflow[Total]):
        @step
        async def only(self, ctx: Context, ev: Begin) -> Total:
            return Total(number=ev.number + 1)

    async def function(ctx, ev):
        with pytest.raises(TypeError, match="number"):
            await ctx.run_child(Adds(), text="x")
        with pytest.raises(TypeError, match="Adds begins with Begin, and was given StartEvent"):
            await ctx.run_child(Adds(), start_event=StartEvent())
        with pytest.raises(ValueError, match="stream is 'all'; expected 'forward', 'tag' or 'off'"):
            await ctx.run_child(Adds(), number=1, stream="all")
        with pytest.raises(TypeError, match=r"given the class Adds; .* run_child\(Adds\(\)\)"):
            await ctx.run_child(Adds, number=1)
        return "fine"

    assert await Parent(function).run() == "fine"


@pytest.mark.anyio
async def test_child_has_a_state_of_its_own():
    """What a child writes to its store is not in its parent's."""

    async def write(ctx, ev):
        await ctx.store.set("x", "child")
        return await ctx.store.get("x")

    async def function(ctx, ev):
        await ctx.store.set("x", "parent")
        return await ctx.run_child(Child(write)), await ctx.store.get("x")

    assert await Parent(function).run() == ("child", "parent")


@pytest.mark.anyio
async def test_fan_out_of_fifty_children_of_one_workflow_object():
    """One workflow object serves any number of children at once, and each is its own run."""

    async def square(ctx, ev):
        await ctx.store.set("n", ev.n)
        await anyio.lowlevel.checkpoint()
        return (await ctx.store.get("n")) ** 2

    child = Child(square)

    class Wide(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(50)]

        @step(num_workers=50)
        async def work(self, ctx: Context, ev: Item) -> Done:
            return Done(number=await ctx.run_child(child, n=ev.number))

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    with nothing_left():
        assert await Wide().run() == [n**2 for n in range(50)]


@pytest.mark.anyio
async def test_workflow_may_run_itself_as_a_child():
    """A child may be a run of the same workflow object, down to any level."""

    async def countdown(ctx, ev):
        if not ev.n:
            return []
        return [ev.n, *await ctx.run_child(workflow, n=ev.n - 1)]

    workflow = Parent(countdown)

    assert await workflow.run(n=20) == list(range(20, 0, -1))


@pytest.mark.anyio
async def test_child_of_a_synchronous_step():
    """A plain ``def`` runs a child through ``from_thread``."""

    async def echo(ctx, ev):
        await anyio.lowlevel.checkpoint()
        return ev.text

    class Plain(Workflow):
        @step
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async def ask():
                return await ctx.run_child(Child(echo), text="hello")

            return StopEvent(result=ctx.from_thread.run(ask))

    with nothing_left():
        assert await Plain().run() == "hello"


# -- streams ---------------------------------------------------------------------------------------


async def publish(ctx, ev):
    ctx.write_event_to_stream(Note(number=1))
    await ctx.stream.send(Note(number=2))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("forward", [0, 1, 2, 3]),
        ("tag", [0, (("Child",), 1), (("Child",), 2), 3]),
        ("off", [0, 3]),
    ],
)
async def test_what_becomes_of_the_stream_of_a_child(stream, expected):
    """It comes as it is, within an event that names the child, or not; never its terminal event."""

    async def function(ctx, ev):
        ctx.write_event_to_stream(Note(number=0))
        await ctx.run_child(Child(publish), stream=stream)
        ctx.write_event_to_stream(Note(number=3))

    async with Parent(function).run() as handler:
        events = [event async for event in handler.stream_events(expose_internal=False)]

    assert type(events.pop()) is StopEvent
    assert expected == [
        (event.path, event.event.number) if isinstance(event, ChildEvent) else event.number
        for event in events
    ]


@pytest.mark.anyio
async def test_path_names_every_level():
    """An event that came through two tagged children names both, the outer one first."""

    async def middle(ctx, ev):
        await ctx.run_child(Child(publish), stream=ev.stream)

    class Middle(Parent):
        pass

    async def function(ctx, ev):
        await ctx.run_child(
            Middle(middle), stream=ev.outer, start_event=StartEvent(stream=ev.inner)
        )

    async def paths(outer, inner):
        async with Parent(function).run(outer=outer, inner=inner) as handler:
            events = [event async for event in handler.stream_events()]
        return [getattr(event, "path", ()) for event in events[:-1]]

    assert await paths("tag", "tag") == [("Middle", "Child")] * 2
    assert await paths("tag", "forward") == [("Middle",)] * 2
    assert await paths("forward", "tag") == [("Child",)] * 2
    assert await paths("forward", "forward") == [()] * 2
    assert await paths("off", "tag") == []


@pytest.mark.anyio
@pytest.mark.parametrize("stream", ["forward", "tag", "off"])
async def test_slow_reader_of_the_parent_holds_up_the_child(stream):
    """``await ctx.stream.send()`` in a child waits for those who read the parent's stream."""
    sent = []

    async def flood(ctx, ev):
        for n in range(50):
            await ctx.stream.send(Note(number=n))
            sent.append(n)

    async def function(ctx, ev):
        await ctx.run_child(parent_of(Child(flood)), stream=stream)

    async with Parent(function, stream_buffer=5).run() as handler:
        events = handler.stream_events()
        await anyio.wait_all_tasks_blocked()
        assert len(sent) == (50 if stream == "off" else 5)
        for _ in range(0 if stream == "off" else 3):
            await events.receive()
        await anyio.wait_all_tasks_blocked()
        assert len(sent) == (50 if stream == "off" else 8)


@pytest.mark.anyio
async def test_child_does_not_send_at_once_what_would_have_to_wait():
    """``send_nowait()`` in a child minds the readers of the parent as well."""
    blocked = (trio.WouldBlock, anyio.WouldBlock)

    async def flood(ctx, ev):
        ctx.stream.send_nowait(Note(number=1))
        ctx.stream.send_nowait(Note(number=2))
        with pytest.raises(blocked):
            ctx.stream.send_nowait(Note(number=3))
        return "held up"

    async with parent_of(Child(flood), stream_buffer=2).run() as handler:
        events = handler.stream_events()
        assert [type(event) async for event in handler.stream_events()][-1] is StopEvent
        assert await handler == "held up"
        events.close()


@pytest.mark.anyio
async def test_internal_events_of_a_child_stay_with_it():
    """A reader that asks for internal events gets those of the run that it reads."""
    async with parent_of(Child(publish)).run() as handler:
        names = [
            event.name
            async for event in handler.stream_events(expose_internal=True)
            if hasattr(event, "name")
        ]

    assert names == ["outer", "outer"]


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_failure_of_a_child_is_the_failure_of_the_step():
    """The very exception comes out at the top, with a note for each level it came through."""
    error = Mine()

    async def fail(ctx, ev):
        raise error

    seen = []

    async def function(ctx, ev):
        try:
            await ctx.run_child(Child(fail))
        except Mine as caught:
            seen.append(caught)
            raise

    with nothing_left(), pytest.raises(Mine) as caught:
        await parent_of(Parent(function)).run()

    assert caught.value is error
    assert seen == [error]
    first, second, third = error.__notes__
    assert first.startswith("in the step Child.inner, handling StartEvent(), in the run ")
    assert second.startswith("in the step Parent.outer, ")
    assert third.startswith("in the step Parent.outer, ")
    assert second != third


@pytest.mark.anyio
async def test_step_may_catch_the_failure_of_its_child():
    """Caught, it is over: the run continues, and nothing of the failure is left."""

    async def fail(ctx, ev):
        raise Mine

    async def function(ctx, ev):
        with pytest.raises(Mine):
            await ctx.run_child(Child(fail))
        return "caught"

    async with Parent(function).run() as handler:
        assert await handler == "caught"
        assert handler.exceptions == ()


@pytest.mark.anyio
async def test_failure_of_a_child_is_tried_again_and_recovered():
    """Retries and handlers of the parent's step see it as any failure."""
    begun = []

    async def fail(ctx, ev):
        begun.append(1)
        raise Mine

    class Careful(Workflow):
        @step(retry=Retry(stop=3))
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.run_child(Child(fail)))

        @catch_error
        async def handle(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result=(type(ev.exception), ev.attempts))

    assert await Careful().run() == (Mine, 3)
    assert len(begun) == 3


@pytest.mark.anyio
async def test_stalled_child_says_so():
    """A child that can never end fails at once; its parent does not wait for ever."""

    class Stuck(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item | StopEvent | None:
            return None

        @step
        async def more(self, ev: Item) -> None:
            pass

    with pytest.raises(WorkflowStalledError, match="of Stuck can never end"):
        await parent_of(Stuck()).run()


@on_each_backend
def test_timeout_of_a_child_is_its_own(backend):
    """It is an error of the child, which the parent's step may catch; the parent has not timed out."""

    async def main():
        with nothing_left():
            async with parent_of(parent_of(Child(hang, timeout=5))).run() as handler:
                with pytest.raises(WorkflowTimeoutError) as caught:
                    await handler
                assert handler.status == "failed"
        error = caught.value
        assert error.timeout == 5
        assert error.active_steps == ("inner",)
        assert len(error.__notes__) == 2

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("how", ["parent", "step", "outside", "handler", "branch", "race"])
def test_child_is_cancelled_with_what_it_is_in(backend, how):
    """Nothing of a child continues when its step ends, whatever ends that; its clean-up is run."""
    unwound = []

    async def clean(ctx, ev):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            unwound.append(1)

    child = Child(clean)

    class Timed(Workflow):
        @step(timeout=5)
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.run_child(child))

    class Sender(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            branch = ctx.send_event(Item(number=1))
            await anyio.sleep(5)
            branch.cancel()
            await branch.wait()
            assert unwound == [1]
            return StopEvent()

        @step
        async def work(self, ctx: Context, ev: Item) -> None:
            await ctx.run_child(child)

    class Race(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(2)]

        @step
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ev.number:
                await ctx.run_child(child)
            await anyio.sleep(5)
            return Done(number=ev.number)

        @step
        async def end(self, evs: Annotated[list[Done], Take(1)]) -> StopEvent:
            await anyio.sleep(10)
            assert unwound == [1]
            return StopEvent(result=evs[0].number)

    async def main():
        with nothing_left():
            if how == "parent":
                with pytest.raises(WorkflowTimeoutError) as caught:
                    await parent_of(child, timeout=5).run()
                assert caught.value.active_steps == ("outer",)
            elif how == "step":
                with pytest.raises(StepTimeoutError):
                    await Timed().run()
            elif how == "outside":
                with anyio.move_on_after(5) as scope:
                    await parent_of(child).run()
                assert scope.cancelled_caught
            elif how == "handler":
                async with parent_of(child).run() as handler:
                    await anyio.sleep(5)
                    await handler.cancel()
                    assert unwound == [1]
                    with pytest.raises(WorkflowCancelledError):
                        await handler
            elif how == "branch":
                await Sender().run()
            else:
                assert await Race().run() == 0

    run_virtually(backend, main)
    assert unwound == [1]


def test_native_cancellation_goes_down_to_the_grandchild():
    """``Task.cancel()`` of the task that runs the parent unwinds every level."""
    unwound = []

    async def clean(ctx, ev):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            unwound.append(1)

    async def main():
        with nothing_left():
            task = asyncio.create_task(parent_of(parent_of(Child(clean))).run()._await())
            await asyncio.sleep(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run_virtually("asyncio", main)
    assert unwound == [1]


@on_each_backend
def test_failure_of_the_clean_up_of_a_child_is_not_lost(backend):
    """A child that fails while it is cancelled with its parent: the parent's handler knows it."""
    error = Mine()

    async def fail(ctx, ev):
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    async def main():
        with nothing_left():
            async with parent_of(parent_of(Child(fail))).run() as handler:
                await anyio.sleep(5)
                await handler.cancel()
                assert handler.status == "cancelled"
                assert handler.exceptions == (error,)

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_step_may_give_up_one_child_and_keep_another():
    """Children of one step run in tasks of its own, and a scope around one ends that one."""
    unwound = []

    async def clean(ctx, ev):
        try:
            await anyio.sleep_forever()
        finally:
            unwound.append(ev.n)

    async def quick(ctx, ev):
        return ev.n

    async def function(ctx, ev):
        results = []

        async def given_up():
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await ctx.run_child(Child(clean), n=1)

        async def kept():
            results.append(await ctx.run_child(Child(quick), n=2))
            scopes[0].cancel()

        scopes = []
        async with anyio.create_task_group() as group:
            group.start_soon(given_up)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(kept)
        return results

    with nothing_left():
        assert await Parent(function).run() == [2]
    assert unwound == [1]


# -- answers ---------------------------------------------------------------------------------------


@on_each_backend
@pytest.mark.parametrize("child", [Asks, lambda: Child(ask_in_step)], ids=["event", "step"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_answer_goes_down_to_who_asked(backend, child, levels):
    """The parents are idle while their child waits; an answer sent to the outermost reaches it."""

    async def main():
        workflow = child()
        for _ in range(levels):
            workflow = parent_of(workflow)
        async with workflow.run() as handler:
            async for event in handler.stream_events():
                if isinstance(event, Question):
                    await anyio.sleep(1)
                    assert handler.status == "idle"
                    handler.send_event(Answer(text="yes"))
                    assert handler.status == "running"
            assert await handler == "yes"

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("child", [Asks, lambda: Child(ask_in_step)], ids=["event", "step"])
def test_each_of_many_children_gets_an_answer(backend, child):
    """Answers that come in one burst go each to a child that has asked and got none yet."""

    async def main():
        workflow = child()

        class Wide(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> list[Item]:
                return [Item(number=n) for n in range(50)]

            @step(num_workers=50)
            async def work(self, ctx: Context, ev: Item) -> Done:
                return Done(number=int(await ctx.run_child(workflow, number=ev.number)))

            @step
            async def end(self, evs: list[Done]) -> StopEvent:
                return StopEvent(result=sorted(ev.number for ev in evs))

        with nothing_left():
            async with Wide(timeout=100).run() as handler:
                await anyio.sleep(1)
                assert handler.status == "idle"
                for n in reversed(range(50)):
                    handler.send_event(Answer(to=n, text=str(n)))
                assert await handler == list(range(50))

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("levels", [1, 3])
def test_answer_that_comes_before_the_child_waits_is_kept(backend, levels):
    """It is there for the first who waits for it, at whatever level."""

    async def late(ctx, ev):
        ctx.write_event_to_stream(Question())
        await anyio.sleep(5)
        return (await ctx.wait_for_event(Answer)).text

    async def main():
        workflow = Child(late)
        for _ in range(levels):
            workflow = parent_of(workflow)
        async with workflow.run() as handler:
            async for event in handler.stream_events():
                if isinstance(event, Question):
                    handler.send_event(Answer(text="early"))
            assert await handler == "early"

    run_virtually(backend, main)


@on_each_backend
def test_parent_takes_an_answer_before_its_children(backend):
    """Where a step of the parent takes the class, or waits for it, the parent has it."""

    async def function(ctx, ev):
        results = {}

        async def child():
            results["child"] = await ctx.run_child(Asks())

        async def own():
            results["own"] = (await ctx.wait_for_event(Answer)).text

        async with anyio.create_task_group() as group:
            group.start_soon(child)
            group.start_soon(own)
        return results

    async def main():
        async with Parent(function).run() as handler:
            await anyio.sleep(1)
            handler.send_event(Answer(text="first"))
            handler.send_event(Answer(text="second"))
            assert await handler == {"own": "first", "child": "second"}

    run_virtually(backend, main)


@on_each_backend
def test_child_that_is_over_takes_no_answer_from_its_parent(backend):
    """The answer came early; a step of the child that unwinds waits for it, and does not take it along."""

    class Ends(Workflow):
        @step
        async def end(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(2)
            return StopEvent()

        @step
        async def unwind(self, ctx: Context, ev: StartEvent) -> Done:
            try:
                await anyio.sleep_forever()
            finally:
                await ctx.wait_for_event(Answer)
            return Done(number=1)

        @step
        async def done(self, ev: Done) -> None:
            """Take it."""

    async def function(ctx, ev):
        await ctx.run_child(Ends())
        return (await ctx.wait_for_event(Answer)).text

    async def main():
        async with Parent(function).run() as handler:
            await anyio.sleep(1)
            handler.send_event(Answer(text="kept"))
            with anyio.fail_after(10):
                assert await handler == "kept"

    run_virtually(backend, main)


@on_each_backend
def test_parent_is_idle_only_if_all_of_it_waits(backend):
    """A child that waits does not make its parent idle while another step works."""

    class Both(Workflow):
        @step
        async def one(self, ctx: Context, ev: StartEvent) -> Done:
            await ctx.run_child(Asks())
            return Done(number=1)

        @step
        async def two(self, ev: StartEvent) -> Done:
            await anyio.sleep(10)
            return Done(number=2)

        @step
        async def end(self, ctx: Context, ev: Done) -> StopEvent | None:
            return ctx.collect_events(ev, [Done, Done]) and StopEvent()

    async def main():
        async with Both().run() as handler:
            await anyio.sleep(5)
            assert handler.status == "running"
            await anyio.sleep(10)
            assert handler.status == "idle"
            handler.send_event(Answer())
            await handler

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("child", [Asks, lambda: Child(ask_in_step)], ids=["event", "step"])
def test_reader_is_told_each_time_the_run_becomes_idle(backend, child):
    """Whatever makes it idle, a question of a child or the end of the last other step: one event."""

    class Twice(Workflow):
        @step
        async def one(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.run_child(child())
            await anyio.sleep(10)
            await ctx.run_child(child())
            return StopEvent()

        @step
        async def two(self, ev: StartEvent) -> None:
            await anyio.sleep(5)

    idle_at = []

    async def main():
        began = anyio.current_time()
        async with Twice().run() as handler:
            async for event in handler.stream_events(expose_internal=True):
                if isinstance(event, WorkflowIdleEvent):
                    assert handler.status == "idle"
                    idle_at.append(anyio.current_time() - began)
                    await anyio.sleep(1)
                    handler.send_event(Answer())

    run_virtually(backend, main)
    assert idle_at == [5, 16]


# -- what cannot work --------------------------------------------------------------------------------


@on_each_backend
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_run_that_awaits_its_own_parent_is_refused(backend, levels):
    """It could never end: the error says so at once, at whatever depth."""

    async def wait(ctx, ev):
        return await box[0]

    box = []

    async def main():
        workflow = Child(wait)
        for _ in range(levels):
            workflow = parent_of(workflow)
        async with workflow.run() as handler:
            box[:] = [handler]
            with pytest.raises(WorkflowRuntimeError, match="awaits its own run, which cannot end"):
                await handler
        box.clear()

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_child_may_await_another_run():
    """A run that is no parent of it may be awaited in a child's step."""

    async def echo(ctx, ev):
        await anyio.lowlevel.checkpoint()
        return "other"

    async def wait(ctx, ev):
        return await handlers[0]

    handlers = []
    async with Child(echo).run() as other:
        handlers.append(other)
        assert await parent_of(Child(wait)).run() == "other"
    handlers.clear()


@pytest.mark.anyio
async def test_child_outside_of_a_step_is_refused():
    """Only a step that runs has children: neither a handler's context nor that of an ended step."""
    contexts = []

    async def keep(ctx, ev):
        contexts.append(ctx)

    async with Parent(keep).run() as handler:
        with pytest.raises(WorkflowRuntimeError, match="run Child was called outside of a step"):
            await handler.ctx.run_child(Child(keep))
        await handler
    with pytest.raises(
        WorkflowRuntimeError, match="the step outer has ended, so it cannot run Child"
    ):
        await contexts[0].run_child(Child(keep))


@pytest.mark.anyio
async def test_task_tree_shows_the_child_while_it_runs():
    """While a child's step runs, its name is in the task tree; afterwards its parent's is."""
    names = []

    async def look(ctx, ev):
        names.append(task_names())

    async def function(ctx, ev):
        await ctx.run_child(Child(look))
        names.append(task_names())

    await Parent(function).run()

    assert "Child.inner" in names[0]
    assert "Child.inner" not in names[1]
    assert "Parent.outer" in names[1]


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
@pytest.mark.peer("row 12", "row 13")
def test_child_ends_with_its_parent(backend, how):
    """P1: whatever ends the parent ends its child first, clean-up included."""
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
@pytest.mark.peer("note 3.5")
async def test_child_is_heard_and_answered_through_its_parent():
    """What a child publishes and asks comes to its parent's readers, with its name."""

    class Asks(Workflow[str]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Said, Asked(name=ev.name))
            return StopEvent(result=answer.text)

    async def call(ctx):
        return await ctx.run_child(Asks(), stream="tag", name="ann")

    async with Single(call).run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, ChildEvent) and isinstance(event.event, Asked):
                assert event.path == ("Asks",)
                handler.send_event(Said(name=event.event.name, text="aye"))

        assert await handler == "aye"


@pytest.mark.anyio
@pytest.mark.peer("note 3.5")
async def test_failure_of_a_child_is_the_parent_s_own():
    """P8: it arrives as the object that the child's step raised, through both runs."""
    mine = Mine("deep down")

    async def fail(ctx):
        raise mine

    async def call(ctx):
        return await ctx.run_child(Single(fail))

    with pytest.raises(Mine) as caught:
        await Single(call).run()

    assert caught.value is mine
