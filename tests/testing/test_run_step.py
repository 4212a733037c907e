"""run_step: one step by itself, and what it did."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Annotated

import anyio
import pytest

from sluicegate import (
    Context,
    DictState,
    Resource,
    ResourceConfig,
    Retry,
    StartEvent,
    StepFailedEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    step,
)
from sluicegate.testing import run_step, run_workflow
from tests.helpers import (
    Mine,
    Single,
    cancelled_class,
    nothing_left,
    on_each_backend,
    run_virtually,
    timers_left,
)
from tests.testing import flows_for_testing
from tests.testing.flows_for_testing import (
    Ask,
    Asker,
    Branches,
    Calls,
    Catches,
    Factory,
    Made,
    Note,
    Pair,
    Parent,
    Part,
    Race,
    Say,
    Tally,
    Tries,
    make_client,
    make_shared,
    open_line,
)


class Editor(Workflow[str]):
    """Its steps do all that a step may do."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.mark = "!"

    @step
    async def draft(self, ctx: Context, ev: StartEvent) -> Part | list[Part] | Ask | None:
        ctx.write_event_to_stream(Note(text="drafting"))
        await ctx.stream.send(Note(text=self.mark))
        async with ctx.store.edit_state() as state:
            state.drafts = state.get("drafts", 0) + 1
        branch = ctx.send_event(Part(number=1))
        ctx.send_event(Part(number=2), step="polish")
        await branch.wait()
        assert branch.is_done
        return ev.gives

    @step
    async def polish(self, ev: Part) -> StopEvent:
        raise AssertionError(ev)

    @step
    async def join(self, evs: list[Part]) -> StopEvent:
        return StopEvent(result=[ev.number for ev in evs])


@on_each_backend
@pytest.mark.parametrize("gives", [Part(number=3), [Part(number=4)], [], None, Ask(text="?")])
def test_an_outcome_tells_everything_that_the_step_did(backend, gives):
    """What it returned, sent and published, and the state; no other step runs."""

    async def main():
        with nothing_left():
            outcome = await run_step(Editor(), "draft", StartEvent(gives=gives))

        assert outcome.result is gives
        assert outcome.returned is gives
        assert outcome.error is None
        assert [event.number for event in outcome.sent] == [1, 2]
        assert outcome.targets == (None, "polish")
        assert [event.text for event in outcome.published] == ["drafting", "!"]
        assert [note.text for note in outcome.of(Note)] == ["drafting", "!"]
        assert outcome.state.drafts == 1
        (only,) = outcome.steps
        assert (only.step, only.attempt, only.result) == ("draft", 1, gives)

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_every_kind_of_step_can_be_run():
    """A join, one of several events, one that ends the run, one of a race, and a handler."""
    parts = [Part(number=1), Part(number=2)]

    assert (await run_step(Editor(), "join", parts)).result.result == [1, 2]
    assert (await run_step(Editor(), "join", [])).result.result == []
    assert (await run_step(Race(), "end", [Made(number=7)])).result.result == [7]
    outcome = await run_step(Pair(), "both", Part(number=1), Made(number=2))
    assert outcome.result.result == (1, 2)
    assert (await run_step(Factory(), "make", Part(number=5))).result.number == 5
    failed = StepFailedEvent(
        step_name="work",
        input_event=StartEvent(),
        exception=Mine("x"),
        exceptions=(Mine("x"),),
        attempts=1,
        elapsed_seconds=0.0,
    )
    assert (await run_step(Catches(), "caught", failed)).result.result == "caught Mine('x')"


@pytest.mark.anyio
async def test_a_step_begins_with_the_state_that_it_is_given():
    """An object of the declared class, or a mapping where none is declared; given ones are kept."""
    given = Tally(total=10)
    outcome = await run_step(Factory(), "make", Part(number=5), state=given)

    assert outcome.state == Tally(total=15)
    assert given == Tally(total=10)

    for state in ({"drafts": 4}, DictState(drafts=4)):
        outcome = await run_step(Editor(), "draft", StartEvent(gives=None), state=state)

        assert outcome.state == DictState(drafts=5)
        assert state["drafts"] == 4

    with pytest.raises(
        TypeError, match=r"state=\{'total': 1\} is not a state of Factory; expected state=Tally"
    ):
        await run_step(Factory(), "make", Part(number=5), state={"total": 1})
    with pytest.raises(TypeError, match=r"expected a mapping: state=\{...\}"):
        await run_step(Editor(), "join", [], state=5)


@on_each_backend
def test_a_failure_is_raised_as_itself(backend):
    """P8: with what the step did before it failed, where it was expected; no handler gets it."""
    mine = Mine()

    async def fail(ctx):
        ctx.write_event_to_stream(Note(text="a"))
        await ctx.store.set("x", 1)
        raise mine

    async def main():
        with nothing_left(), pytest.raises(Mine) as caught:
            await run_step(Single(fail), "only", StartEvent())
        assert caught.value is mine

        outcome = await run_step(Single(fail), "only", StartEvent(), raises=Mine)
        assert outcome.error is mine
        assert outcome.steps[0].error is mine
        assert [note.text for note in outcome.published] == ["a"]
        assert outcome.state.x == 1
        with pytest.raises(Mine):
            _ = outcome.result

        with pytest.raises(Mine) as caught:
            await run_step(Catches(), "work", StartEvent(error=mine))
        assert caught.value is mine
        with pytest.raises(AssertionError, match="expected it to raise Mine"):
            await run_step(Editor(), "join", [], raises=Mine)

    run_virtually(backend, main)


@on_each_backend
def test_retries_and_timeouts_hold(backend):
    """Attempts are made, and only the last one's sends count; a late step is cut off."""

    class Slow(Workflow):
        @step(timeout=5)
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await anyio.sleep(10)
            return StopEvent()

    async def main():
        outcome = await run_step(Tries(), "work", StartEvent(fails=2))

        assert outcome.result.result == 3
        assert [event.number for event in outcome.sent] == [3]
        assert [done.attempt for done in outcome.steps] == [1, 2, 3]

        outcome = await run_step(Tries(), "work", StartEvent(fails=9), raises=OSError)

        assert outcome.sent == ()
        assert len(outcome.steps) == 3

        outcome = await run_step(Slow(), "only", StartEvent(), raises=StepTimeoutError)

        assert outcome.error is outcome.steps[0].error
        assert not timers_left()

    run_virtually(backend, main)


class Undeclared(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent | Part:
        if "sends" in ev:
            ctx.send_event(ev.sends, step=ev.get("step"))
        return ev.get("gives")

    @step
    async def other(self, ev: Part) -> StopEvent:
        return StopEvent()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fields",
    [
        {"gives": Made(number=1)},
        {"gives": [Part(number=1)]},
        {"gives": None},
        {"gives": 5},
        {"gives": Part},
        {"sends": Made(number=1)},
        {"sends": StopEvent()},
        {"sends": Part(number=1), "step": "odd"},
        {"sends": Part(number=1), "step": "only"},
    ],
)
async def test_what_the_step_does_not_declare_is_refused(fields):
    """P13: with the words that the engine has for it in a whole run."""
    with pytest.raises(WorkflowRuntimeError) as alone:
        await run_step(Undeclared(strict_none=True), "only", StartEvent(**fields))
    with pytest.raises(WorkflowRuntimeError) as whole:
        await run_workflow(Undeclared(strict_none=True), **fields)

    assert str(alone.value) == str(whole.value)


@on_each_backend
def test_a_wrong_result_is_not_tried_again(backend):
    """What is wrong with a result is no failure of the step: retries have nothing to do with it."""
    calls = []

    class Wrong(Workflow):
        @step(retry=Retry(stop=3))
        async def only(self, ev: StartEvent) -> StopEvent:
            calls.append(1)

    async def main():
        with pytest.raises(WorkflowRuntimeError, match="only returned None"):
            await run_step(Wrong(strict_none=True), "only", StartEvent())
        assert calls == [1]

    run_virtually(backend, main)


@on_each_backend
def test_questions_are_answered(backend):
    """As in a whole run; a step that waits for what no answer gives is ended at once."""

    async def main():
        outcome = await run_step(
            Asker(), "ask", StartEvent(times=2), answers=[Say(text="a"), Say(text="b")]
        )

        assert outcome.result.result == "a b"
        assert [type(event) for event in outcome.published] == [Ask, Ask]

        with nothing_left():
            with pytest.raises(AssertionError, match="Asker asked Ask"):
                await run_step(Asker(), "ask", StartEvent())
            with pytest.raises(AssertionError, match="did not ask for 1 of the answers"):
                await run_step(Editor(), "join", [], answers=[Say(text="a")])
        outcome = await run_step(
            Parent(), "begin", StartEvent(stream="tag"), answers={Ask: Say(text="c")}
        )
        assert outcome.result.result == "c"

    run_virtually(backend, main)


@on_each_backend
def test_a_branch_that_the_step_sends_is_over_at_once(backend):
    """Waiting for it does not wait for a step that never runs."""

    async def main():
        outcome = await run_step(Branches(), "begin", StartEvent())

        assert outcome.result.result == "waited"
        assert [event.number for event in outcome.sent] == [1, 2]

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_a_step_within_a_fan_out_may_send_what_a_join_takes():
    """There is no fan-out around it, and what it makes goes nowhere."""

    class Inner(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Part]:
            return []

        @step
        async def work(self, ctx: Context, ev: Part) -> Made:
            ctx.send_event(Made(number=1))
            return Made(number=2)

        @step
        async def end(self, evs: list[Made]) -> StopEvent:
            return StopEvent()

    outcome = await run_step(Inner(), "work", Part(number=0))

    assert outcome.result.number == 2
    assert [event.number for event in outcome.sent] == [1]


@pytest.mark.anyio
async def test_a_step_runs_in_its_own_variables():
    """P15: what it sets does not come out; self is the workflow object."""
    variable: ContextVar[str] = ContextVar("variable", default="outside")
    workflow = Editor()

    async def work(ctx):
        assert variable.get() == "around"
        variable.set("inside")
        return ctx.step.name, ctx.run_id

    variable.set("around")
    outcome = await run_step(Single(work), "only", StartEvent())

    assert outcome.result.result[0] == "only"
    assert variable.get() == "around"
    workflow.mark = "?"
    outcome = await run_step(workflow, "draft", StartEvent(gives=None))
    assert outcome.published[1].text == "?"


class Places(Workflow):
    @step
    def thread(self, ctx: Context, ev: StartEvent) -> Part | StopEvent:
        branch = ctx.send_event(Part(number=1))
        ctx.write_event_to_stream(Note(text="from a thread"))
        ctx.from_thread.run(ctx.store.set, "x", 1)
        ctx.from_thread.run(branch.wait)
        return StopEvent(result="done")

    @step(in_process=True)
    @staticmethod
    def process(ev: Part) -> StopEvent:
        return StopEvent(result=os.getpid())


@pytest.mark.anyio
async def test_a_step_runs_in_its_thread():
    """The context works there as ever."""
    outcome = await run_step(Places(), "thread", StartEvent())

    assert outcome.result.result == "done"
    assert [event.number for event in outcome.sent] == [1]
    assert outcome.state.x == 1
    assert [note.text for note in outcome.published] == ["from a thread"]


@pytest.mark.anyio
async def test_a_step_runs_in_its_process():
    """What it returns comes back as ever."""
    outcome = await run_step(Places(), "process", Part(number=1))

    assert outcome.result.result != os.getpid()


# -- resources ------------------------------------------------------------------------------------


@pytest.fixture
def opened():
    """What the real resources have opened and closed."""
    flows_for_testing.opened.clear()
    return flows_for_testing.opened


@pytest.mark.anyio
async def test_real_resources_are_opened_and_closed(opened):
    """Those of the workflow's scope are made for this call, and no other run gets them."""
    workflow = Calls()
    outcome = await run_step(workflow, "call", StartEvent())

    assert outcome.result.result == "client on real line, real shared"
    assert opened == ["line opened", "shared made", "line closed"]

    await workflow.run()

    assert opened.count("shared made") == 2


@pytest.mark.anyio
async def test_resources_are_replaced(opened):
    """By the identity of the factory, at any depth; what is unknown is refused."""
    resources = {open_line: "fake line", make_shared: "fake shared"}
    outcome = await run_step(Calls(), "call", StartEvent(), resources=resources)

    assert outcome.result.result == "client on fake line, fake shared"
    assert opened == []
    with pytest.raises(ValueError, match="make_client, but the step join of Editor does not use"):
        await run_step(Editor(), "join", [], resources={make_client: 1})


@pytest.mark.anyio
async def test_bound_factories_configurations_and_managers_are_replaced():
    """A method is known by its object; a part of a file by its path; a manager is not entered."""

    class Source:
        def make(self):
            raise AssertionError

    source = Source()

    @asynccontextmanager
    async def manager():
        raise AssertionError
        yield

    class Uses(Workflow):
        @step
        async def only(
            self,
            ev: StartEvent,
            a: Annotated[object, Resource(source.make, scope="step")],
            b: Annotated[dict, ResourceConfig("nowhere.toml", "a.b")],
            c: Annotated[object, Resource(manager)],
        ) -> StopEvent:
            return StopEvent(result=(a, b, c))

    given = manager()
    resources = {source.make: 1, ResourceConfig("nowhere.toml", "a.b"): {"x": 2}, manager: given}
    outcome = await run_step(Uses(), "only", StartEvent(), resources=resources)

    assert outcome.result.result == (1, {"x": 2}, given)
    with pytest.raises(ValueError, match="resources replaces make, but the step only"):
        await run_step(Uses(), "only", StartEvent(), resources={Source().make: 1})


# -- edges ------------------------------------------------------------------------------------------


@on_each_backend
def test_a_cancellation_from_outside_cancels_the_step(backend):
    """P1, P2: its clean-up runs to the end, and nothing is left."""
    seen = []

    async def work(ctx):
        try:
            await anyio.sleep(1e6)
        except BaseException as error:
            seen.append(type(error))
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            seen.append("unwound")
            raise

    async def main():
        with nothing_left(), anyio.move_on_after(5) as scope:
            await run_step(Single(work), "only", StartEvent())
        assert scope.cancelled_caught
        assert seen == [cancelled_class(), "unwound"]
        assert not timers_left()

    run_virtually(backend, main)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "events", "kind", "message"),
    [
        (
            "jon",
            (),
            ValueError,
            r"run_step\(\) names 'jon', but Editor has no such step; expected one of draft, polish, join",
        ),
        (
            "draft",
            (),
            TypeError,
            r"got no event; expected run_step\(workflow, 'draft', StartEvent\(...\)\)",
        ),
        ("draft", (Part(number=1),), TypeError, r"got Part\(number=1\); expected"),
        (
            "draft",
            (StartEvent(), StartEvent()),
            TypeError,
            r"expected run_step\(workflow, 'draft', ",
        ),
        (
            "join",
            (Part(number=1),),
            TypeError,
            r"expected run_step\(workflow, 'join', \[Part\(...\), ...\]\)",
        ),
        ("join", ([Part(number=1), Made(number=1)],), TypeError, r"'join', \[Part\(...\), ...\]"),
    ],
)
async def test_what_does_not_fit_the_step_is_refused(name, events, kind, message):
    """P13: the message shows the call."""
    with pytest.raises(kind, match=message):
        await run_step(Editor(), name, *events)


@pytest.mark.anyio
async def test_the_events_of_a_step_of_several_come_in_order():
    """One for each parameter."""
    with pytest.raises(TypeError, match=r"'both', Part\(...\), Made\(...\)\)"):
        await run_step(Pair(), "both", Made(number=1), Part(number=2))
    with pytest.raises(TypeError, match=r"expected a workflow object: run_step\(Pair\(\)\)"):
        await run_step(Pair, "both", Part(number=1), Made(number=2))


@pytest.mark.anyio
async def test_the_workflow_can_be_run_as_ever_afterwards():
    """P18: running a step changes nothing in the workflow object or its class."""
    workflow = Factory()
    before = dict(vars(workflow))
    await run_step(workflow, "make", Part(number=1))
    known = {kind for way in workflow._built().outputs for kind in way}

    assert not any(kind.__module__.startswith("sluicegate.testing") for kind in known)
    assert {**before, "called": 1} == dict(vars(workflow))
    assert await workflow.run() == 3
