"""step_through: a run that stands still before each invocation, in an order that never changes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import pytest

from sluicegate import (
    Context,
    Resource,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    step,
)
from sluicegate.testing import run_workflow, step_through
from tests.helpers import (
    Mine,
    Single,
    nothing_left,
    on_each_backend,
    run_virtually,
    task_names,
    timers_left,
    wait_until_idle,
)
from tests.testing.flows_for_testing import (
    Ask,
    Asker,
    Branches,
    Catches,
    Drops,
    Factory,
    Greeter,
    Made,
    Note,
    Pair,
    Parent,
    Part,
    Race,
    Say,
    Tally,
    Tries,
)


async def walk(steps):
    """Go through all invocations; return their steps and numbers."""
    return [(i.step, getattr(i.event, "number", None)) async for i in steps]


@on_each_backend
def test_the_run_stands_still_before_each_invocation(backend):
    """What is given has not begun; the state and the events are those of this moment."""

    async def main():
        workflow = Factory(pause=1)
        seen = []
        with nothing_left():
            async with step_through(workflow, expose_internal=False) as steps:
                async for invocation in steps:
                    assert not invocation.is_done
                    assert invocation.number == len(steps.steps) + 1
                    assert steps.status == "running"
                    await anyio.sleep(100)
                    seen.append((invocation.step, workflow.called, steps.state.total))
                    assert (len(steps.events) > 0) == (invocation.step != "begin")
                assert steps.status == "completed"

        assert seen == [
            ("begin", 0, 0),
            ("make", 0, 0),
            ("make", 1, 0),
            ("make", 2, 1),
            ("end", 3, 3),
        ]
        result = steps.result
        assert result.result == 3
        assert result.state == Tally(total=3)
        assert [type(event) for event in result.events] == [Note, StopEvent]
        assert [done.number for done in result.steps] == [1, 2, 3, 4, 5]

    run_virtually(backend, main)


ORDERS = [
    (Factory, {}, "begin make:0 make:1 make:2 end"),
    (Race, {}, "begin run_for:0 run_for:1 end"),
    (Branches, {}, "begin work:1 work:2"),
    (Drops, {}, "begin work:2"),
    (Pair, {}, "begin both"),
    (Asker, {"answers": [Say(text="a"), Say(text="b")], "times": 2}, "ask"),
    (Greeter, {"answers": [Say(text=""), Say(text="b")]}, "ask take take"),
    (Parent, {"answers": {Ask: Say(text="a")}, "stream": "forward"}, "begin"),
    (Catches, {"error": Mine()}, "work caught"),
    (Tries, {"fails": 2}, "work work work"),
]


@on_each_backend
@pytest.mark.parametrize(("workflow", "given", "expected"), ORDERS)
def test_the_order_is_the_same_every_time(backend, workflow, given, expected):
    """One at a time, whatever the event loop shuffles; with branches, races, waits and retries."""

    async def main():
        for _ in range(10):
            async with step_through(workflow(), **given) as steps:
                walked = await walk(steps)

            shown = " ".join(name if n is None else f"{name}:{n}" for name, n in walked)
            assert shown == expected
            assert len(steps.result.steps) == len(walked)

    run_virtually(backend, main)


@on_each_backend
def test_one_runs_at_a_time(backend):
    """However many workers there are: the next is given when what runs has ended."""
    running = []

    class Wide(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Part]:
            return [Part(number=n) for n in range(6)]

        @step(num_workers=6)
        async def work(self, ev: Part) -> Made:
            running.append(ev.number)
            assert len(running) == 1
            await anyio.sleep(ev.number)
            running.remove(ev.number)
            return Made(number=ev.number)

        @step
        async def more(self, ev: Made) -> None:
            assert not running

        @step
        async def stop(self, evs: list[Made]) -> StopEvent:
            return StopEvent()

    async def main():
        async with step_through(Wide()) as steps:
            walked = await walk(steps)

        assert [n for name, n in walked if name == "work"] == list(range(6))

    run_virtually(backend, main)


@on_each_backend
def test_a_step_that_waits_lets_the_others_continue(backend):
    """While a step waits in its middle for what another makes, that other is given."""

    class Waits(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Part:
            ctx.send_event(Part(number=1))
            await anyio.sleep(1)
            made = await ctx.wait_for_event(Made)
            return StopEvent(result=made.number)

        @step
        async def make(self, ev: Part) -> Made:
            return Made(number=ev.number)

        @step
        async def never(self, ev: Made) -> None:
            raise AssertionError(ev)

    async def main():
        async with step_through(Waits()) as steps:
            assert await walk(steps) == [("begin", None), ("make", 1)]

        assert steps.result.result == 1

    run_virtually(backend, main)


@on_each_backend
def test_what_stands_at_its_gate_uses_nothing(backend):
    """Its timeout has not begun, and its resources and its limiter are not used yet."""
    opened = []

    @asynccontextmanager
    async def line():
        opened.append("opened")
        yield "line"

    limiter = anyio.CapacityLimiter(1)

    class Careful(Workflow):
        @step(timeout=5, limiter=limiter)
        async def only(
            self, ev: StartEvent, line: Annotated[str, Resource(line, scope="step")]
        ) -> StopEvent:
            return StopEvent(result=limiter.borrowed_tokens)

    async def main():
        async with step_through(Careful()) as steps:
            async for _ in steps:
                await anyio.sleep(100)
                assert opened == []
                assert limiter.borrowed_tokens == 0
        assert steps.result.result == 1
        assert opened == ["opened"]
        assert limiter.borrowed_tokens == 0

    run_virtually(backend, main)


@on_each_backend
def test_the_runs_own_timeout_continues(backend):
    """Who stands too long between two steps runs into it."""

    async def main():
        async with step_through(Factory(timeout=10), raises=WorkflowTimeoutError) as steps:
            async for invocation in steps:
                if invocation.step == "make":
                    await anyio.sleep(20)
        assert steps.result.status == "timed_out"
        assert not timers_left()

    run_virtually(backend, main)


@on_each_backend
def test_the_state_can_be_changed_between_two_steps(backend):
    """steps.ctx is the context of the run."""

    async def main():
        async with step_through(Factory()) as steps:
            async for invocation in steps:
                if invocation.step == "end":
                    await steps.ctx.store.set("total", 50)
        assert steps.result.state == Tally(total=50)

    run_virtually(backend, main)


@on_each_backend
def test_leaving_early_cancels_the_run(backend):
    """What was not let go never starts, and nothing is left; the result tells how far it came."""

    async def main():
        workflow = Factory()
        with nothing_left():
            async with step_through(workflow) as steps:
                async for invocation in steps:
                    if invocation.step == "make":
                        break
                await wait_until_idle()

        assert workflow.called == 0
        assert steps.result.status == "cancelled"
        assert [done.step for done in steps.result.steps] == ["begin"]

        with nothing_left():
            async with step_through(workflow) as steps:
                pass
        assert steps.result.steps == ()

    run_virtually(backend, main)


@on_each_backend
def test_an_exception_of_the_block_cancels_the_run(backend):
    """It comes out as itself, and so does a cancellation; nothing of the run is left."""
    mine = Mine()

    async def main():
        with nothing_left():
            with pytest.raises(Mine) as caught:
                async with step_through(Factory()) as steps:
                    async for _ in steps:
                        raise mine
            assert caught.value is mine
            with pytest.raises(WorkflowRuntimeError, match=r"expected `steps\.result` after the"):
                _ = steps.result
            with anyio.move_on_after(5) as scope:
                async with step_through(Factory()) as steps:
                    async for invocation in steps:
                        if invocation.step == "make":
                            await anyio.sleep(100)
            assert scope.cancelled_caught
        assert not timers_left()

    run_virtually(backend, main)


@on_each_backend
def test_a_loop_that_was_cancelled_can_continue(backend):
    """Waiting for the next invocation may be cancelled: none is lost, and none is given twice."""

    async def main():
        async with step_through(Factory(pause=1)) as steps:
            walked = []
            while steps.status == "running":
                with anyio.move_on_after(0.3):
                    walked += await walk_into(steps, walked)
        assert walked == [("begin", None), ("make", 0), ("make", 1), ("make", 2), ("end", None)]

    async def walk_into(steps, walked):
        async for invocation in steps:
            walked.append((invocation.step, getattr(invocation.event, "number", None)))
        return []

    run_virtually(backend, main)


@on_each_backend
def test_a_failure_ends_the_loop_and_is_raised_by_the_block(backend):
    """P8, P9: it comes out as itself, unless it was expected."""
    mine = Mine()

    async def fail(ctx):
        raise mine

    async def main():
        walked = []
        with nothing_left(), pytest.raises(Mine) as caught:
            async with step_through(Single(fail)) as steps:
                async for invocation in steps:
                    walked.append(invocation.step)
                walked.append(steps.status)
        assert caught.value is mine
        assert walked == ["only", "failed"]

        async with step_through(Single(fail), raises=Mine) as steps:
            await walk(steps)
        assert steps.result.error is mine

        with pytest.raises(AssertionError, match="expected it to raise Mine"):
            async with step_through(Factory(), raises=Mine) as steps:
                await walk(steps)

    run_virtually(backend, main)


@on_each_backend
def test_an_unanswered_question_is_raised_in_the_loop(backend):
    """It does not hang, and nothing is left."""

    async def main():
        with nothing_left(), pytest.raises(AssertionError, match="Asker asked Ask"):
            async with step_through(Asker()) as steps:
                await walk(steps)

    run_virtually(backend, main)


@on_each_backend
def test_recorded_steps_are_stepped_through_as_well(backend):
    """They stand at their gates like the others; so does each attempt."""

    async def main():
        recorded = {"work": [OSError(), StopEvent(result=5)]}
        async with step_through(Tries(), recorded=recorded, fails=0) as steps:
            attempts = [invocation.attempt async for invocation in steps]

        assert attempts == [1, 2]
        assert steps.result.result == 5

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_steps_in_threads_can_be_stepped():
    """A plain def step runs in its thread when it is let go."""

    class Threads(Workflow):
        @step
        def begin(self, ctx: Context, ev: StartEvent) -> list[Part]:
            return [Part(number=n) for n in range(3)]

        @step
        def work(self, ctx: Context, ev: Part) -> Made:
            ctx.write_event_to_stream(Note(text=str(ev.number)))
            return Made(number=ev.number)

        @step
        def end(self, evs: list[Made]) -> StopEvent:
            return StopEvent(result=[ev.number for ev in evs])

    async with step_through(Threads()) as steps:
        walked = await walk(steps)

    assert walked == [("begin", None), ("work", 0), ("work", 1), ("work", 2), ("end", None)]
    assert steps.result.result == [0, 1, 2]
    assert [note.text for note in steps.result.of(Note)] == ["0", "1", "2"]
    assert sorted((await run_workflow(Threads())).result) == [0, 1, 2]


@on_each_backend
def test_what_stands_at_its_gate_has_its_name_in_the_task_tree(backend):
    """P15: a run that stands still can be looked at."""

    async def main():
        async with step_through(Factory()) as steps:
            async for invocation in steps:
                if invocation.step == "make":
                    assert "Factory.make" in task_names()

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_it_is_iterated_in_its_block():
    """Outside of it the message shows the right spelling; so does what is no workflow object."""
    steps = step_through(Factory())
    with pytest.raises(WorkflowRuntimeError, match="expected `async with step_through"):
        await anext(steps)
    async with steps:
        await walk(steps)
    with pytest.raises(WorkflowRuntimeError, match="outside of its block"):
        await anext(steps)
    with pytest.raises(TypeError, match=r"expected a workflow object: step_through\(Factory\(\)\)"):
        step_through(Factory)
    with pytest.raises(TypeError, match="both a start_event and"):
        step_through(Factory(), start_event=StartEvent(), x=1)
