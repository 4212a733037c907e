"""Children in snapshots: a step that begins again finds its children where they were."""

from __future__ import annotations

import math

import anyio
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Observer,
    QuestionClosedError,
    RestoredError,
    Retry,
    SnapshotError,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    step,
)
from sluicegate._engine.snapshot_format import snapshot_schema
from tests.helpers import (
    BACKENDS,
    Catch,
    all_blocked,
    limit,
    nothing_left,
    on_each_backend,
    run_virtually,
    through_json,
    wait_until_idle,
)


class Ask(InputRequiredEvent):
    name: str


class Reply(HumanResponseEvent):
    name: str
    text: str = ""


class Half(Event):
    name: str


class Total(StopEvent):
    text: str


class Spy:
    """What the steps of all runs have done, in order."""

    def __init__(self):
        self.done = []
        self.fails = set()

    def note(self, what):
        self.done.append(what)
        if what in self.fails:
            raise ValueError(what)


class Child(Workflow):
    """A first step, a wait of a second step, and a third one; ``reply`` says whether it asks."""

    def __init__(self, spy, *, asks=False, timeout=None):
        super().__init__(timeout=timeout)
        self.spy = spy
        self.asks = asks

    @step
    async def first(self, ev: StartEvent) -> Half:
        self.spy.note(f"{ev.name} first")
        return Half(name=ev.name)

    @step(waits_for=[Reply])
    async def second(self, ctx: Context, ev: Half) -> Total:
        text = ""
        if self.asks:
            answer = await ctx.wait_for_event(
                Reply, Ask(name=ev.name), requirements={"name": ev.name}, timeout=100
            )
            text = f" {answer.text}"
        else:
            await anyio.sleep(1)
        self.spy.note(f"{ev.name} second")
        return Total(text=f"{ev.name}{text}")


class Parent(Workflow):
    """``await function(ctx)`` in its one step."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    @step(retry=Retry(stop=2))
    async def outer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.function(ctx))


class Once(Workflow):
    """The same, without retries."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    @step
    async def outer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.function(ctx))


async def each(ctx, child, names, results):
    """Run a child for each name at once, started in this order."""

    async def one(name):
        results[name] = (await ctx.run_child(child, name=name)).text

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(one, name)
    return results


async def snapshot_after(workflow, seconds, **fields):
    """Return a snapshot of a run that is cancelled after it."""
    async with workflow.run(**fields) as handler:
        await anyio.sleep(seconds)
        await all_blocked()
        snapshot = through_json(handler.snapshot())
        handler.cancel()
    return snapshot


def children_of(snapshot, step_name="outer"):
    return snapshot["run"]["steps"][step_name]["deliveries"][0].get("children", [])


# -- where it was -------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", BACKENDS)
@on_each_backend
def test_a_child_continues_where_it_was(backend, other):
    """A completed step of a child is not repeated, in another process and on either event loop."""
    spy = Spy()

    async def function(ctx):
        return (await ctx.run_child(Child(spy), name="a")).text

    async def begin():
        return await snapshot_after(Once(function), 0.5)

    snapshot = run_virtually(backend, begin)

    assert spy.done == ["a first"]

    async def go_on():
        with nothing_left():
            return await Once(function).resume(snapshot)

    assert run_virtually(other, go_on) == "a"
    assert spy.done == ["a first", "a second"]


@pytest.mark.parametrize("cut", ["before", "after"])
@on_each_backend
def test_the_snapshot_of_a_cancelled_run_has_its_children(backend, cut):
    """A child that was cancelled with its parent continues, whenever the snapshot was taken."""
    spy = Spy()

    async def function(ctx):
        return (await ctx.run_child(Child(spy), name="a")).text

    async def main():
        async with Once(function).run() as handler:
            await anyio.sleep(0.5)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        if cut == "after":
            snapshot = through_json(handler.snapshot())
        return await Once(function).resume(snapshot)

    assert run_virtually(backend, main) == "a"
    assert spy.done == ["a first", "a second"]


@on_each_backend
def test_children_are_found_by_content(backend):
    """Several at once, called for in another order: each continues where it was itself."""
    spy = Spy()
    orders = [["a", "b", "c"], ["c", "a", "b"]]

    class Slow(Child):
        @step(waits_for=[Reply])
        async def second(self, ctx: Context, ev: Half) -> Total:
            await anyio.sleep({"a": 1, "b": 2, "c": 3}[ev.name])
            self.spy.note(f"{ev.name} second")
            return Total(text=ev.name)

    async def function(ctx):
        return await each(ctx, Slow(spy), orders.pop(0), {})

    async def main():
        snapshot = await snapshot_after(Once(function), 1.5)
        statuses = {child["run_id"]: child.get("status") for child in children_of(snapshot)}
        began = anyio.current_time()

        assert sorted(map(str, statuses.values())) == ["None", "None", "completed"]
        assert await Once(function).resume(snapshot) == {"a": "a", "b": "b", "c": "c"}
        assert anyio.current_time() - began == 3  # steps in progress begin again

    run_virtually(backend, main)

    assert sorted(spy.done) == sorted(
        f"{name} {which}" for name in "abc" for which in ("first", "second")
    )


@on_each_backend
def test_equal_children_are_told_apart_by_their_order(backend):
    """Two children of the same content: the first call finds the first one."""
    spy = Spy()

    async def function(ctx):
        one = (await ctx.run_child(Child(spy), name="a")).text
        return one, (await ctx.run_child(Child(spy), name="a")).text

    async def main():
        snapshot = await snapshot_after(Once(function), 1.5)

        assert [child.get("status") for child in children_of(snapshot)] == ["completed", None]
        assert await Once(function).resume(snapshot) == ("a", "a")

    run_virtually(backend, main)

    assert spy.done == ["a first", "a second"] * 2


@on_each_backend
def test_nested_children_continue_where_they_were(backend):
    """A child of a child is in the snapshot of the child."""
    spy = Spy()

    class Middle(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Half:
            spy.note("middle")
            return Half(name="m")

        @step
        async def inner(self, ctx: Context, ev: Half) -> Total:
            return await ctx.run_child(Child(spy), name="inner")

    async def function(ctx):
        return (await ctx.run_child(Middle())).text

    async def main():
        snapshot = await snapshot_after(Once(function), 0.5)
        again = await snapshot_after_resume(Once(function), snapshot, 0.5)
        with nothing_left():
            return await Once(function).resume(again)

    assert run_virtually(backend, main) == "inner"
    assert spy.done == ["middle", "inner first", "inner second"]


async def snapshot_after_resume(workflow, snapshot, seconds):
    async with workflow.resume(snapshot) as handler:
        await anyio.sleep(seconds)
        again = through_json(handler.snapshot())
        handler.cancel()
    return again


@on_each_backend
def test_a_child_that_its_step_has_not_called_for_yet_stays_in_the_snapshots(backend):
    """A step that begins again and is interrupted before its call loses nothing."""
    spy = Spy()

    async def function(ctx):
        if spy.done == ["a first"]:
            await anyio.sleep(10)
        return (await ctx.run_child(Child(spy), name="a")).text

    async def main():
        snapshot = await snapshot_after(Once(function), 0.5)
        again = await snapshot_after_resume(Once(function), snapshot, 5)

        assert children_of(again) == children_of(snapshot)

        resumed = Once(function).resume(again)

        assert children_of(resumed.snapshot()) == children_of(snapshot)
        return await resumed

    assert run_virtually(backend, main) == "a"
    assert spy.done == ["a first", "a second"]


@on_each_backend
def test_a_child_that_queues_for_its_turn_is_in_the_snapshot(backend):
    """One that has not begun, because of ``num_concurrent_runs``, keeps its start event."""
    spy = Spy()

    async def function(ctx):
        return await each(ctx, limited, ["a", "b"], {})

    class Limited(Workflow):
        @step
        async def only(self, ev: StartEvent) -> Total:
            await anyio.sleep(1)
            spy.note(ev.name)
            return Total(text=ev.name)

    limited = Limited(num_concurrent_runs=1)

    async def main():
        snapshot = await snapshot_after(Once(function), 0.5)
        wheres = [child["run"] for child in children_of(snapshot)]

        assert sorted("start" in where for where in wheres) == [False, True]
        return await Once(function).resume(snapshot)

    assert run_virtually(backend, main) == {"a": "a", "b": "b"}
    assert sorted(spy.done) == ["a", "b"]


@on_each_backend
def test_the_state_and_the_time_of_a_child_are_kept(backend):
    """Its state, the number of its last stream event, and the time that counts towards its timeout."""

    class Counting(Workflow):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> Half:
            await ctx.store.set("count", 1)
            await anyio.sleep(3)
            return Half(name="")

        @step
        async def second(self, ctx: Context, ev: Half) -> StopEvent:
            count = await ctx.store.get("count")
            await ctx.store.set("count", count + 1)
            await anyio.sleep(4)
            return StopEvent(result=count)

    async def function(ctx):
        return await ctx.run_child(Counting(timeout=10))

    async def main():
        snapshot = await snapshot_after(Once(function), 6)
        with pytest.raises(WorkflowTimeoutError) as caught:  # 6 + 4 + a bit
            await Once(function).resume(await snapshot_after_resume(Once(function), snapshot, 1))

        assert "Counting did not end within its timeout of 10 s" in str(caught.value)
        return await Once(function).resume(snapshot)

    assert run_virtually(backend, main) == 2


# -- how it has ended -----------------------------------------------------------------------------------


class Counter(Observer):
    def __init__(self):
        self.began = []

    def run_started(self, run):
        self.began.append(run.workflow)


@on_each_backend
def test_the_result_of_a_child_that_has_ended_is_returned(backend):
    """It does not run again, and its stop event has its class, fields and types."""
    spy, counter = Spy(), Counter()

    class Typed(StopEvent):
        pair: tuple[int, int]

    class Makes(Workflow):
        @step
        async def only(self, ev: StartEvent) -> Typed:
            spy.note("ran")
            return Typed(pair=(1, 2))

    async def function(ctx):
        made = await ctx.run_child(Makes())
        await anyio.sleep(1)
        return type(made).__name__, made.pair

    async def main():
        snapshot = await snapshot_after(Once(function), 0.5)
        return await Once(function, observers=[counter]).resume(snapshot)

    assert run_virtually(backend, main) == ("Typed", (1, 2))
    assert spy.done == ["ran"]
    assert counter.began == ["Once"]


@on_each_backend
def test_a_failure_that_the_step_has_handled_is_raised_again(backend):
    """In the form in which snapshots keep exceptions, with its notes; the child does not run."""
    spy = Spy()
    spy.fails.add("a second")
    caught = []

    async def function(ctx):
        try:
            await ctx.run_child(Child(spy), name="a", run_id="kid")
        except (ValueError, RestoredError) as error:
            caught.append(error)
        await anyio.sleep(1)
        return str(caught[-1])

    async def main():
        snapshot = await snapshot_after(Once(function), 1.5)
        again = await snapshot_after_resume(Once(function), snapshot, 0.5)
        return await Once(function).resume(again)

    assert run_virtually(backend, main) == "ValueError: a second"
    assert [type(error) for error in caught] == [ValueError, RestoredError, RestoredError]
    assert caught[1].__notes__ == caught[2].__notes__ == caught[0].__notes__
    assert caught[0].__notes__ == [
        "in the step Child.second, handling Half(name='a'), in the run kid of Child"
    ]
    assert spy.done == ["a first", "a second"]


@on_each_backend
def test_a_timeout_of_a_child_is_raised_again_as_one(backend):
    """A step that catches ``WorkflowTimeoutError`` catches it in a resumed run too."""
    caught = []

    class Slow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(10)
            return StopEvent()

    async def function(ctx):
        try:
            await ctx.run_child(Slow(timeout=1), run_id="slow")
        except WorkflowTimeoutError as error:
            caught.append((str(error), error.timeout))
        await anyio.sleep(1)
        return len(caught)

    async def main():
        snapshot = await snapshot_after(Once(function), 1.5)
        return await Once(function).resume(snapshot)

    assert run_virtually(backend, main) == 2
    assert caught[0] == caught[1]


@pytest.mark.parametrize("how", ["as it is", "wrapped", "in a group"])
@on_each_backend
def test_a_failed_run_continues_at_the_failed_step_of_its_child(backend, how):
    """The cause can be fixed: the child's failed step begins again, its completed ones do not."""
    spy = Spy()
    spy.fails.add("a second")

    async def function(ctx):
        if how == "as it is":
            return (await ctx.run_child(Child(spy), name="a")).text
        if how == "wrapped":
            try:
                return (await ctx.run_child(Child(spy), name="a")).text
            except Exception as error:
                raise RuntimeError("the child has failed") from error
        return (await each(ctx, Child(spy), ["a"], {}))["a"]

    async def main():
        handler = Once(function).run()
        with Catch():
            await handler
        snapshot = through_json(handler.snapshot())
        handler = Once(function).resume(snapshot)
        with Catch():  # it fails once more
            await handler
        spy.fails.clear()
        return await Once(function).resume(through_json(handler.snapshot()))

    assert run_virtually(backend, main) == "a"
    assert spy.done == ["a first", *["a second"] * 3]


@on_each_backend
def test_a_failure_that_is_raised_again_and_fails_the_run_can_be_fixed(backend):
    """A snapshot between the failure and what it leads to does not make it final."""
    spy = Spy()
    spy.fails.add("a second")

    async def function(ctx):
        try:
            return (await ctx.run_child(Child(spy), name="a")).text
        except (ValueError, RestoredError):
            await anyio.sleep(1)
            raise

    async def main():
        snapshot = await snapshot_after(Once(function), 1.5)
        spy.fails.clear()
        handler = Once(function).resume(snapshot)
        with pytest.raises(RestoredError, match="a second"):
            await handler
        return await Once(function).resume(through_json(handler.snapshot()))

    assert run_virtually(backend, main) == "a"
    assert spy.done == ["a first", "a second", "a second"]


# -- retries of the step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resumed", [False, True])
@on_each_backend
def test_a_retry_finds_results_and_runs_failed_children_anew(backend, resumed):
    """Results are found as answers are; a child that failed, or was cancelled, begins again."""
    spy = Spy()
    spy.fails.add("b second")
    ids = []

    async def function(ctx):
        one = (await ctx.run_child(Child(spy), name="a")).text
        try:
            return one, (await ctx.run_child(Child(spy), name="b")).text
        finally:
            spy.fails.clear()

    class Retried(Workflow):
        @step(retry=Retry(stop=2, wait=10))
        async def outer(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await function(ctx))

    class Ids(Observer):
        def run_started(self, run):
            ids.append(run.run_id)

    workflow = Retried(observers=[Ids()])

    async def main():
        if not resumed:
            return await workflow.run(run_id="run")
        async with workflow.run(run_id="run") as handler:
            await anyio.sleep(5)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        return await workflow.resume(snapshot)

    assert run_virtually(backend, main) == ("a", "b")
    assert spy.done == ["a first", "a second", *["b first", "b second"] * 2]
    assert ids == ["run", "run/1.1", "run/1.2", *["run"] * resumed, "run/1.3"]


@on_each_backend
def test_a_retry_after_a_resume_has_the_results_of_both(backend):
    """What one life has, and what the failed attempt of the next one has, the third attempt finds."""
    spy = Spy()
    lives = []

    async def function(ctx):
        lives.append(1)
        one = (await ctx.run_child(Child(spy), name="a")).text
        two = (await ctx.run_child(Child(spy), name="b")).text
        if len(lives) == 2:
            raise OSError("another attempt")
        return one, two

    async def main():
        snapshot = await snapshot_after(Parent(function), 1.5)
        return await Parent(function).resume(snapshot)

    assert run_virtually(backend, main) == ("a", "b")
    assert len(lives) == 3
    assert spy.done == ["a first", "a second", "b first", "b second"]


# -- identifiers ------------------------------------------------------------------------------------------


class Seen(Observer):
    """The identifiers of all runs, and the keys of the steps of ``Keyed``."""

    def __init__(self):
        self.ids = []

    def run_started(self, run):
        self.ids.append((run.workflow, run.run_id))


@on_each_backend
def test_the_identifiers_of_children_are_those_of_their_delivery(backend):
    """``{run}/{delivery}.{number}``, the same in each life; a given one is kept as it is."""
    spy = Spy()
    seen = Seen()

    async def function(ctx):
        await ctx.run_child(Child(spy), name="a")
        await ctx.run_child(Child(spy), name="b")
        await ctx.run_child(Child(spy), name="c", run_id="mine")

    async def main():
        workflow = Once(function, observers=[seen])
        async with workflow.run(run_id="run") as handler:
            await anyio.sleep(1.5)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        await workflow.resume(snapshot)

    run_virtually(backend, main)

    assert seen.ids == [
        ("Once", "run"),
        ("Child", "run/1.1"),
        ("Child", "run/1.2"),
        ("Once", "run"),
        ("Child", "run/1.2"),
        ("Child", "mine"),
    ]


@on_each_backend
def test_a_given_identifier_belongs_to_what_a_child_is_found_by(backend):
    """Children of equal content and different run ids keep their own places."""
    spy = Spy()
    orders = [["x", "y"], ["y", "x"]]
    results = {}

    class Told(Workflow):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> Half:
            return Half(name=ctx.run_id)

        @step
        async def second(self, ctx: Context, ev: Half) -> Total:
            await anyio.sleep(1)
            return Total(text=f"{ev.name} in {ctx.run_id}")

    async def function(ctx):
        async def one(name):
            results[name] = (await ctx.run_child(Told(), run_id=name)).text

        async with anyio.create_task_group() as group:
            for name in orders.pop(0):
                group.start_soon(one, name)

    async def main():
        await Once(function).resume(await snapshot_after(Once(function), 0.5))

    run_virtually(backend, main)

    assert results == {"x": "x in x", "y": "y in y"}
    assert spy.done == []


# -- questions ----------------------------------------------------------------------------------------------


@on_each_backend
def test_an_answered_question_of_a_child_is_not_asked_again(backend):
    """And an open one keeps its id, its answer's way, and its timeout."""
    spy = Spy()
    child = Child(spy, asks=True)
    asked = []

    async def function(ctx):
        return await each(ctx, child, ["a", "b"], {})

    async def follow(handler, group):
        async def read():
            async for event in handler.stream_events():
                if isinstance(event, Ask):
                    asked.append(event.name)

        group.start_soon(read)

    async def main():
        async with anyio.create_task_group() as group, Once(function).run() as handler:
            await follow(handler, group)
            await anyio.sleep(60)
            questions = {q.event.name: q.id for q in handler.questions}
            handler.send_event(Reply(name="a", text="yes"), question=questions["a"])
            snapshot = through_json(handler.snapshot())
            handler.cancel()

        assert sorted(asked) == ["a", "b"]

        resumed = Once(function).resume(snapshot)

        assert [q.id for q in resumed.questions] == [questions["b"]]

        async with anyio.create_task_group() as group, resumed as handler:
            await follow(handler, group)
            await anyio.sleep(30)

            assert [(q.id, q.event.name) for q in handler.questions] == [(questions["b"], "b")]
            assert handler.questions[0].since == pytest.approx(anyio.current_time() - 90)
            assert handler.status == "idle"

            handler.send_event(Reply(name="b", text="no"), question=questions["b"])
            result = await handler

        assert sorted(asked) == ["a", "b", "b"]  # the open one is on the new stream
        return result

    assert run_virtually(backend, main) == {"a": "a yes", "b": "b no"}
    assert [spy.done.count(f"{name} first") for name in "ab"] == [1, 1]


@on_each_backend
def test_an_open_question_of_a_child_keeps_its_timeout(backend):
    """60 of its 100 seconds were over: it times out after 40 more."""
    child = Child(Spy(), asks=True)

    async def function(ctx):
        return await ctx.run_child(child, name="a")

    async def main():
        snapshot = await snapshot_after(Once(function), 60)
        began = anyio.current_time()
        with pytest.raises(WorkflowTimeoutError):
            await Once(function).resume(snapshot)

        return anyio.current_time() - began

    assert run_virtually(backend, main) == pytest.approx(40)


@pytest.mark.parametrize("when", ["before the run", "before the child"])
@pytest.mark.parametrize("is_nested", [False, True])
@on_each_backend
def test_an_answer_may_come_before_the_child_is_there_again(backend, is_nested, when):
    """D7: a resumed run takes the answer to a question that its child is about to ask."""
    spy = Spy()
    child = Child(spy, asks=True)
    pause: list[int] = []

    class Middle(Workflow):
        @step
        async def inner(self, ctx: Context, ev: StartEvent) -> Total:
            return await ctx.run_child(child, name="a")

    async def function(ctx):
        if pause:
            await anyio.sleep(10)
        if is_nested:
            return (await ctx.run_child(Middle())).text
        return (await ctx.run_child(child, name="a")).text

    async def main():
        workflow = Once(function, serializable=[Reply])
        snapshot = await snapshot_after(workflow, 5)
        pause.append(1)
        handler = workflow.resume(snapshot)
        (question,) = handler.questions

        def answer():
            with pytest.raises(WorkflowRuntimeError, match="does not answer"):
                handler.send_event(HumanResponseEvent(text="yes"), question=question.id)
            handler.send_event(Reply(name="a", text="yes"), question=question.id)
            with pytest.raises(QuestionClosedError):
                handler.send_event(Reply(name="a", text="no"), question=question.id)
            assert handler.questions == ()

        async with handler:
            if when == "before the run":  # which begins at the next checkpoint
                answer()
            await anyio.sleep(1)
            if when == "before the child":
                assert [q.id for q in handler.questions] == [question.id]
                assert handler.questions[0].since == pytest.approx(anyio.current_time() - 6)
                answer()
            again = through_json(handler.snapshot())
            result = await handler
        pause.clear()
        with limit():
            assert await workflow.resume(again) == result  # the answer is in the next snapshot
        return result

    assert run_virtually(backend, main) == "a yes"
    assert spy.done == ["a first", "a second", "a second"]


@on_each_backend
def test_the_question_of_a_child_that_nobody_calls_for_goes_with_its_delivery(backend):
    """A step that begins again and needs no child leaves no open question behind."""
    child = Child(Spy(), asks=True)

    class Two(Workflow):
        @step
        async def outer(self, ctx: Context, ev: StartEvent) -> Half:
            if child is not None:
                await ctx.run_child(child, name="a")
            return Half(name="")

        @step
        async def last(self, ev: Half) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result="done")

    async def main():
        nonlocal child
        snapshot = await snapshot_after(Two(), 5)
        child = None
        async with Two().resume(snapshot) as handler:
            await anyio.sleep(0.5)

            assert handler.questions == ()
            assert await handler == "done"

    run_virtually(backend, main)


# -- refusals -----------------------------------------------------------------------------------------------


@on_each_backend
def test_a_child_of_another_shape_is_refused_and_can_be_resumed_later(backend):
    """The step fails with the differences; the child stays in the snapshot, and nothing is half resumed."""
    spy = Spy()
    kinds = []

    class Changed(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    Changed.__name__ = Child.__name__

    async def function(ctx):
        return (
            await ctx.run_child(kinds[0](spy) if kinds[0] is Child else Changed(), name="a")
        ).text

    async def main():
        kinds.append(Child)
        snapshot = await snapshot_after(Once(function), 0.5)
        kinds[0] = Changed
        handler = Once(function).resume(snapshot)
        with pytest.raises(SnapshotError) as caught, nothing_left():
            await handler

        assert str(caught.value).startswith(
            f"the child {snapshot['run_id']}/1.1 cannot continue: the snapshot does not fit Child: "
        )

        kinds[0] = Child
        return await Once(function).resume(through_json(handler.snapshot()))

    assert run_virtually(backend, main) == "a"
    assert spy.done == ["a first", "a second"]


@pytest.mark.anyio
async def test_what_a_child_cannot_keep_is_named_with_the_child():
    """The message of the snapshot says in which child it is."""

    class Careless(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.store.set("client", object())
            await anyio.sleep_forever()

    async def function(ctx):
        return await ctx.run_child(Careless(), run_id="kid")

    async with Once(function).run() as handler:
        await wait_until_idle()
        with pytest.raises(SnapshotError) as caught:
            handler.snapshot()
        handler.cancel()

    assert str(caught.value).partition(";")[0] == (
        "in the child kid of Careless: the state['client'] is a object, which cannot be kept"
    )


DAMAGES = {
    "number": 0,
    "key": "x",
    "status": "lost",
    "run": {"sluicegate": 3},
    "run_id": 7,
}


@pytest.mark.parametrize("field", DAMAGES)
@pytest.mark.anyio
async def test_a_damaged_child_is_refused_before_the_run_begins(field):
    """The message names the place."""
    workflow = Once(lambda ctx: ctx.run_child(Child(Spy(), asks=True), name="a"))
    async with workflow.run() as handler:
        await wait_until_idle()
        snapshot = through_json(handler.snapshot())
        handler.cancel()
    (child,) = children_of(snapshot)
    child[field] = DAMAGES[field]

    with pytest.raises(
        SnapshotError, match=rf"run\.steps\.outer\.deliveries\[0\]\.children\[0\]\.{field}"
    ):
        workflow.resume(snapshot)


@pytest.mark.parametrize("what", ["result", "error"])
@pytest.mark.anyio
async def test_a_damaged_end_of_a_child_is_refused(what):
    """An exception is checked before the run begins, a stop event when its step calls for it."""
    workflow = Once(lambda ctx: ctx.run_child(Child(Spy(), asks=True), name="a"))
    async with workflow.run() as handler:
        await wait_until_idle()
        snapshot = through_json(handler.snapshot())
        handler.cancel()
    (child,) = children_of(snapshot)
    child["status"] = "completed" if what == "result" else "failed"
    child[what] = 7

    with (
        limit(),
        pytest.raises(SnapshotError, match=r"a stop event|an exception, not a int"),
    ):
        await workflow.resume(snapshot)


@pytest.mark.anyio
async def test_a_child_without_a_place_and_an_end_is_refused():
    """A child is somewhere, or it has ended."""
    workflow = Once(lambda ctx: ctx.run_child(Child(Spy(), asks=True), name="a"))
    async with workflow.run() as handler:
        await wait_until_idle()
        snapshot = through_json(handler.snapshot())
        handler.cancel()
    (child,) = children_of(snapshot)
    del child["run"]["run"]

    with pytest.raises(SnapshotError, match=r"children\[0\]\.run; expected where a child is"):
        workflow.resume(snapshot)


def test_the_schema_describes_children_in_children():
    """The format nests: a child's snapshot has the form of a snapshot."""
    schema = snapshot_schema()

    kinds = schema["$defs"]["SavedChild"]["properties"]["run"]["anyOf"]

    assert {"$ref": "#/$defs/Snapshot"} in kinds


@on_each_backend
def test_a_snapshot_without_children_is_as_it_was(backend):
    """No field of the format is new where no step runs a child."""

    async def function(ctx):
        await anyio.sleep(1)

    async def main():
        snapshot = await snapshot_after(Once(function), 0.5)
        (delivery,) = snapshot["run"]["steps"]["outer"]["deliveries"]

        assert delivery.keys() == {"event", "has_begun"}
        assert "made" not in snapshot["run"]
        assert not math.isnan(snapshot["elapsed"])

    run_virtually(backend, main)
