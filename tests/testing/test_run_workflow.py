"""run_workflow: what it collects, how it ends, and what it leaves alone."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref

import anyio
import pytest

from sluicegate import (
    Observer,
    StartEvent,
    StepFailedEvent,
    StepStateChanged,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowStalledError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    step,
)
from sluicegate.testing import StepInvocation, WorkflowTestRunner, run_workflow, step_through
from tests.helpers import (
    Mine,
    Single,
    cancelled_class,
    nothing_left,
    on_each_backend,
    run_virtually,
    timers_left,
)
from tests.testing.flows_for_testing import (
    Ask,
    Asker,
    Catches,
    Factory,
    Made,
    Note,
    Parent,
    Part,
    Say,
    Tally,
    Tries,
)


@on_each_backend
def test_a_result_tells_everything_that_the_run_did(backend):
    """The events, the invocations with what went in and out, the state and the result."""

    async def main():
        with nothing_left():
            result = await run_workflow(Factory(pause=1), expose_internal=False)

        assert result.result == 3
        assert result.status == "completed"
        assert result.error is None
        assert result.errors == ()
        assert result.state == Tally(total=3)
        assert [type(event) for event in result.events] == [Note, StopEvent]
        assert result.event_types == {Note: 1, StopEvent: 1}
        assert result.collected == list(result.events)
        assert [note.text for note in result.of(Note)] == ["begun"]
        assert result.stop_event is result.events[-1]
        assert sorted(done.step for done in result.steps) == [
            "begin",
            "end",
            "make",
            "make",
            "make",
        ]
        assert [done.number for done in result.steps] == [1, 2, 3, 4, 5]
        assert all(done.is_done and done.error is None for done in result.steps)
        first, *made, last = result.steps
        assert type(first.event) is StartEvent
        assert {id(done.event) for done in made} == {id(part) for part in first.result}
        assert {id(done.result) for done in made} == {id(event) for event in last.event}
        assert last.result is result.stop_event

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_the_engines_own_events_are_collected_unless_they_are_excluded():
    """expose_internal is True by default; exclude_events leaves out classes with their subclasses."""
    result = await run_workflow(Asker(), times=0)

    assert result.event_types == {StepStateChanged: 2, StopEvent: 1}

    result = await run_workflow(Asker(), times=0, exclude_events=[StepStateChanged])

    assert result.event_types == {StopEvent: 1}

    result = await run_workflow(Asker(), times=0, expose_internal=False, exclude_events=[StopEvent])

    assert result.events == ()
    assert result.result == ""


@pytest.mark.anyio
async def test_a_run_begins_with_an_event_or_with_fields_and_a_state():
    """start_event, fields and ctx are those of run(), and so are their faults."""
    workflow = Asker()
    event = StartEvent(times=0)

    result = await run_workflow(workflow, start_event=event)

    assert result.steps[0].event is event

    again = await run_workflow(workflow, ctx=result.ctx, times=0)

    assert again.status == "completed"

    with pytest.raises(TypeError, match="both a start_event and times"):
        await run_workflow(workflow, start_event=event, times=1)


@pytest.mark.anyio
async def test_the_context_of_the_result_serves_a_run_outside_of_the_tests():
    """It is that of an ordinary run: its state goes into the next, its snapshot is the workflow's."""
    workflow = Factory()
    result = await run_workflow(workflow, recorded={"make": lambda ev: Made(number=ev.number)})
    handler = workflow.run(ctx=result.ctx)

    assert await handler == 3
    assert workflow.called == 3
    assert result.ctx.to_dict()["workflow"] == "Factory"


@on_each_backend
def test_a_failure_is_raised_as_itself(backend):
    """P8, P9: a run that fails raises its failure, unless the test expects it."""
    mine = Mine()

    async def fail(ctx):
        raise mine

    async def main():
        with nothing_left():
            with pytest.raises(Mine) as raised:
                await run_workflow(Single(fail))
            assert raised.value is mine

        result = await run_workflow(Single(fail), raises=(KeyError, Mine))

        assert result.status == "failed"
        assert result.error is mine
        assert result.errors == (mine,)
        assert result.steps[0].error is mine
        assert isinstance(result.events[-1], WorkflowFailedEvent)
        with pytest.raises(Mine) as caught:
            _ = result.result
        assert caught.value is mine

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_a_failure_that_does_not_come_is_a_fault():
    """A run that completes though it was to raise fails the test, and the message says how it ended."""
    with pytest.raises(
        AssertionError,
        match=r"Asker completed with StopEvent\(result=''\); expected it to raise Mine or KeyError",
    ):
        await run_workflow(Asker(), times=0, raises=(Mine, KeyError))


@on_each_backend
def test_timeouts_and_stalls_end_as_everywhere(backend):
    """P10, P11, P12: under virtual time a run's timeout, a step's and a stall take no time."""

    async def sleep(ctx):
        await anyio.sleep(1e6)

    class Slow(Workflow):
        @step(timeout=10)
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1e6)
            return StopEvent()

    class Stuck(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent | None:
            return None

    async def main():
        result = await run_workflow(Single(sleep, timeout=5), raises=WorkflowTimeoutError)

        assert result.status == "timed_out"
        assert isinstance(result.events[-1], WorkflowTimedOutEvent)
        assert isinstance(result.steps[0].error, cancelled_class())

        result = await run_workflow(Slow(), raises=StepTimeoutError)

        assert result.steps[0].error is result.error

        result = await run_workflow(Stuck(), raises=WorkflowStalledError)

        assert result.status == "failed"
        assert not timers_left()

    run_virtually(backend, main)


@on_each_backend
def test_attempts_are_numbered(backend):
    """Each attempt is an invocation of its own, with its number and its error."""

    async def main():
        result = await run_workflow(Tries(), fails=2)

        assert result.result == 3
        assert [(done.step, done.attempt) for done in result.steps] == [
            ("work", 1),
            ("work", 2),
            ("work", 3),
        ]
        assert [done.error is None for done in result.steps] == [False, False, True]
        assert len({id(done.event) for done in result.steps}) == 1

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_a_handled_failure_is_an_invocation_of_the_handler():
    """What the handler of a failure was given and returned is among the steps."""
    mine = Mine("x")
    result = await run_workflow(Catches(), error=mine)

    assert result.result == "caught Mine('x')"
    assert [done.step for done in result.steps] == ["work", "caught"]
    assert result.steps[0].error is mine
    assert isinstance(result.steps[1].event, StepFailedEvent)


@on_each_backend
def test_until_ends_the_run_where_the_event_is_published(backend):
    """The run is cancelled at that moment: nothing behind it in the step happens."""
    behind = []

    async def work(ctx):
        ctx.write_event_to_stream(Note(text="a"))
        await anyio.sleep(1)
        ctx.write_event_to_stream(Note(text="b"))
        await anyio.sleep(0)
        behind.append(1)

    async def main():
        for until in (lambda ev: ev.get("text") == "b", (Part, Note), Note):
            result = await run_workflow(Single(work), until=until, expose_internal=False)
            reached = "a" if until is Note or isinstance(until, tuple) else "b"

            assert result.of(Note)[-1].text == reached
            assert result.status == "cancelled"
            assert isinstance(result.events[-1], WorkflowCancelledEvent)
            assert f"Note(text={reached!r}) was published" in result.events[-1].reason
            assert behind == []

    run_virtually(backend, main)


@on_each_backend
def test_a_clean_up_that_fails_after_until_is_raised(backend):
    """A run that was ended on purpose still has to unwind without a failure."""
    mine = Mine()

    async def work(ctx):
        try:
            ctx.write_event_to_stream(Note(text="a"))
            await anyio.sleep(1)
        finally:
            raise mine

    async def main():
        with pytest.raises(Mine) as caught:
            await run_workflow(Single(work), until=Note)

        assert caught.value is mine
        assert (await run_workflow(Single(work), until=Note, raises=Mine)).errors == (mine,)

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_what_until_waits_for_has_to_come():
    """A run that completes before fails the test; so does a function that raises, with its error."""
    with pytest.raises(AssertionError, match="before it published what until=Note expects"):
        await run_workflow(Asker(), times=0, until=Note)
    mine = Mine()

    def until(event):
        raise mine

    with pytest.raises(Mine) as caught:
        await run_workflow(Asker(), times=0, until=until)
    assert caught.value is mine
    with pytest.raises(TypeError, match="until=3; expected an event class"):
        await run_workflow(Asker(), times=0, until=3)


@on_each_backend
def test_a_cancellation_from_outside_cancels_the_run(backend):
    """P1, P2: whatever cancels the test cancels the run, and nothing of it is left."""
    unwound = []

    async def work(ctx):
        try:
            await anyio.sleep(1e6)
        finally:
            unwound.append(1)

    async def main():
        with nothing_left():
            with anyio.move_on_after(5) as scope:
                await run_workflow(Single(work))

            assert scope.cancelled_caught
            assert unwound == [1]
        assert not timers_left()

    run_virtually(backend, main)


@pytest.mark.parametrize("turns", range(1, 12))
@pytest.mark.parametrize("way", ["waits", "is answered", "stands at a gate"])
def test_a_native_cancellation_leaves_nothing(way, turns):
    """Task.cancel() on asyncio: while the run waits, while an answer is sought, at a gate."""
    unwound = []

    async def work(ctx):
        try:
            await ctx.wait_for_event(Say, Ask(text="?"))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            unwound.append(1)

    async def never(question):
        await asyncio.Event().wait()

    async def under_test():
        if way != "stands at a gate":
            answers = None if way == "waits" else never
            await run_workflow(Single(work), answers=answers)
            return
        async with step_through(Factory()) as steps:
            async for _ in steps:
                await asyncio.sleep(0)

    async def main():
        with nothing_left():
            task = asyncio.create_task(under_test())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not timers_left()

    run_virtually("asyncio", main)

    assert unwound in ([], [1])
    assert way == "stands at a gate" or turns < 8 or unwound == [1]


@pytest.mark.anyio
async def test_the_workflow_is_left_as_it_is():
    """P18: runs under test and ordinary ones continue side by side, and only the former are watched."""
    told = []

    class Tell(Observer):
        def step_started(self, invocation):
            told.append(invocation.run.run_id)

    workflow = Factory(observers=[Tell()])
    before = dict(vars(workflow))
    results = []

    async def under_test(number):
        recorded = {"make": [Made(number=number)] * 3}
        results.append((await run_workflow(workflow, recorded=recorded)).result)

    async with anyio.create_task_group() as group:
        group.start_soon(under_test, 10)
        group.start_soon(under_test, 20)

    assert sorted(results) == [30, 60]
    assert workflow.called == 0
    assert dict(vars(workflow)) == before
    assert len(told) == 10
    assert await workflow.run() == 3
    assert workflow.called == 3


@pytest.mark.anyio
async def test_a_run_under_test_is_collected_when_its_result_is_dropped():
    """Neither the session nor the private graph keeps a run alive."""
    workflow = Factory()
    result = await run_workflow(workflow, recorded={"make": lambda ev: Made(number=1)})
    kept = weakref.ref(result.stop_event)
    del result
    gc.collect()

    assert kept() is None


@pytest.mark.anyio
@pytest.mark.parametrize("stream", ["forward", "tag"])
async def test_a_child_asks_through_its_parent(stream):
    """The question of a child is answered, whether it comes as it is or in a ChildEvent."""
    result = await run_workflow(Parent(), answers={Ask: lambda q: Say(text=q.text)}, stream=stream)

    assert result.result == f"{stream}?"
    assert [done.step for done in result.steps] == ["begin"]


@pytest.mark.anyio
async def test_the_runner_of_the_peer():
    """WorkflowTestRunner(workflow).run(...) has the peer's parameters and result, and more."""
    runner = WorkflowTestRunner(Asker())
    result = await runner.run(start_event=StartEvent(times=0))

    assert result.collected[-1] is result.stop_event
    assert result.event_types == {StepStateChanged: 2, StopEvent: 1}
    assert result.result == ""

    result = await runner.run(StartEvent(times=1), None, False, [Ask], answers=[Say(text="yes")])

    assert [type(event) for event in result.collected] == [StopEvent]
    assert result.result == "yes"
    assert (await runner.run(ctx=result.ctx, times=0)).result == ""


@pytest.mark.anyio
async def test_what_is_no_workflow_object_is_refused():
    """The message shows the corrected call."""
    with pytest.raises(TypeError, match=r"expected a workflow object: run_workflow\(Asker\(\)\)"):
        await run_workflow(Asker)
    with pytest.raises(TypeError, match=r"WorkflowTestRunner\(\) was given 3; expected a workflow"):
        WorkflowTestRunner(3)


def test_a_record_is_frozen():
    """What leaves the library cannot be changed."""
    with pytest.raises(AttributeError):
        StepInvocation(1, "a", None).step = "b"


@pytest.mark.slow
def test_it_needs_no_test_framework():
    """Importing sluicegate.testing imports neither pytest nor AnyIO."""
    code = (
        "import sys, sluicegate.testing; "
        "print(sorted({'pytest', '_pytest', 'anyio', 'unittest'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert printed.strip() == "[]"
