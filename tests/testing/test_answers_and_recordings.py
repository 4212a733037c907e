"""What a run under test is given: answers to its questions, recorded results, other resources."""

from __future__ import annotations

import itertools

import anyio
import pytest

from sluicegate import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    ResourceConfig,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    step,
)
from sluicegate.testing import run_workflow
from tests.helpers import Mine, nothing_left, on_each_backend, run_virtually
from tests.testing import flows_for_testing
from tests.testing.flows_for_testing import (
    Ask,
    Asker,
    Calls,
    Catches,
    Factory,
    Greeter,
    Made,
    Pair,
    Parent,
    Part,
    Say,
    Tries,
    make_client,
    make_shared,
    open_line,
)


# -- answers ------------------------------------------------------------------------------------


async def slowly(question):
    await anyio.sleep(1)
    return Say(text=question.text)


@on_each_backend
@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({Ask: Say(text="a")}, "a a"),
        ({InputRequiredEvent: Say(text="b"), Part: None}, "b b"),
        ({Ask: lambda question: Say(text=question.text)}, "0? 1?"),
        ({Ask: slowly}, "0? 1?"),
        (lambda question: Say(text=question.text), "0? 1?"),
        (slowly, "0? 1?"),
        ([Say(text="c"), Say(text="d")], "c d"),
        (iter([Say(text=text) for text in "efef"]), "e f"),  # for both backends
        (itertools.repeat(Say(text="g")), "g g"),
    ],
)
def test_questions_are_answered(backend, answers, said):
    """By class (the nearest one), by a function of the question, or in order; functions may be async."""

    async def main():
        result = await run_workflow(Asker(), answers=answers, times=2)

        assert result.result == said
        assert [question.text for question in result.of(Ask)] == ["0?", "1?"]

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_the_nearest_class_of_a_question_decides():
    """As with events: the entry of a parent class serves what has none of its own."""
    answers = {InputRequiredEvent: Say(text="far"), Ask: Say(text="near")}

    assert (await run_workflow(Asker(), answers=answers)).result == "near"


@pytest.mark.anyio
async def test_a_question_that_a_step_returns_is_answered():
    """The answer goes to the step that takes its class, as handler.send_event() would send it."""
    result = await run_workflow(Greeter(), answers=[Say(text=""), Say(text="you")])

    assert result.result == "you"
    assert [done.step for done in result.steps] == ["ask", "take", "take"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((), r"expected `answers=\{Ask: HumanResponseEvent\(...\)\}`"),
        ({Part: Say(text="a")}, r"expected `answers=\{Ask: HumanResponseEvent\(...\)\}`"),
        ([Say(text="a")], "expected one more answer in `answers`, for Ask"),
    ],
)
async def test_an_unanswered_question_ends_the_run_at_once(answers, expected):
    """It does not hang: the message names the question and what to write."""
    with nothing_left(), pytest.raises(AssertionError, match=expected) as caught:
        await run_workflow(Asker(), answers=answers, times=2)

    number = 1 if isinstance(answers, list) else 0
    assert str(caught.value).startswith(
        f"Asker asked Ask(text='{number}?'), but there is no answer"
    )


@pytest.mark.anyio
async def test_answers_that_nobody_asks_for_are_a_fault():
    """A list is counted; mappings, functions and iterators are not."""
    with pytest.raises(AssertionError, match="Asker did not ask for 2 of the answers"):
        await run_workflow(Asker(), answers=[Say(text=text) for text in "abc"])
    endless = itertools.repeat(Say(text="a"))
    for answers in ({Ask: Say(text="a"), Part: Say(text="b")}, endless):
        assert (await run_workflow(Asker(), answers=answers)).result == "a"


class Patient(Workflow[str]):
    """Waits for five seconds, for an answer to a question or to none."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            question = Ask(text="?") if ev.asks else None
            answer = await ctx.wait_for_event(Say, question, timeout=5)
        except WorkflowTimeoutError:
            return StopEvent(result="nobody")
        return StopEvent(result=answer.text)


@on_each_backend
@pytest.mark.parametrize("answers", [None, {Ask: None}, [None], lambda question: None])
def test_a_question_may_be_left_open(backend, answers):
    """None says that no one answers: the run then keeps waiting, and may run into its timeout."""

    async def main():
        assert (await run_workflow(Patient(), answers=answers, asks=True)).result == "nobody"

        timed_out = await run_workflow(
            Asker(timeout=9), answers=answers, raises=WorkflowTimeoutError
        )
        assert timed_out.status == "timed_out"

    run_virtually(backend, main)


@on_each_backend
def test_a_run_that_waits_and_has_asked_nothing_is_ended_at_once(backend):
    """It would hang: the message says what it waits for. answers=None lets it wait."""

    async def main():
        with pytest.raises(AssertionError, match=r"no question is open \(1 waiting for Say.*\)"):
            await run_workflow(Patient(), asks=False)
        assert (await run_workflow(Patient(), answers=None, asks=False)).result == "nobody"
        with pytest.raises(AssertionError, match=r"no question is open \(a child of it waits\)"):
            await run_workflow(Parent(), stream="off")

    run_virtually(backend, main)


class Listener(Workflow[list]):
    """People speak unasked: two of them, and then a third where a longer step has ended."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> None:
        await anyio.sleep(ev.seconds)

    @step
    async def listen(self, ctx: Context, ev: Say) -> StopEvent | None:
        both = ctx.collect_events(ev, [Say, Say])
        return both and StopEvent(result=[said.text for said in both])


@on_each_backend
def test_answers_in_order_are_also_said_unasked(backend):
    """A run that waits for events from outside and asks nothing gets the next ones of a list."""

    async def main():
        for seconds in (0, 3):
            answers = [Say(text="a"), Say(text="b")]
            result = await run_workflow(Listener(), answers=answers, seconds=seconds)

            assert result.result == ["a", "b"]
        with pytest.raises(AssertionError, match="no question is open"):
            await run_workflow(Listener(), answers=[Say(text="a")], seconds=0)

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_an_answer_that_reaches_nobody_does_not_hang():
    """It is kept for whoever might wait for it; the run waits on, and the message says for what."""

    class Other(HumanResponseEvent):
        pass

    with pytest.raises(AssertionError, match=r"no question is open \(1 waiting for Say"):
        await run_workflow(Asker(), answers={Ask: Other()})


@pytest.mark.anyio
async def test_what_answers_raises_comes_out_as_itself():
    """A function of the test that fails cancels the run, and its exception is raised."""
    mine = Mine()

    def fail(question):
        raise mine

    with nothing_left(), pytest.raises(Mine) as caught:
        await run_workflow(Asker(), answers=fail)
    assert caught.value is mine
    with nothing_left(), pytest.raises(WorkflowRuntimeError, match="no step of Greeter takes Made"):
        await run_workflow(Greeter(), answers=[Made(number=1)])


@on_each_backend
def test_an_answer_that_comes_too_late_is_dropped(backend):
    """A run may ask and complete without the answer."""
    asked = []

    class Hasty(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Ask(text="?"))
            await anyio.sleep(ev.seconds)
            return StopEvent(result="done")

    async def late(question):
        await anyio.sleep(2)
        asked.append(question.text)
        return Say(text="late")

    async def main():
        for seconds in (0, 1):
            assert (await run_workflow(Hasty(), answers=late, seconds=seconds)).result == "done"
        assert asked == ["?", "?"]

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_the_failure_of_a_run_comes_before_its_open_questions():
    """A question that a failed run had asked needs no answer."""

    class Fails(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Ask(text="?"))
            raise Mine

    with pytest.raises(Mine):
        await run_workflow(Fails())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (Say(text="a"), r"is one event; expected answers=\[Say\(...\)\]"),
        ({"Ask": Say(text="a")}, "has the key 'Ask'; expected the class of a question"),
        (7, "answers=7; expected a mapping from question to answer, a function"),
        ("ab", "answers='ab'; expected a mapping"),
        (Say, "expected a mapping from question"),
        (
            ["yes"],
            "the answer to .* is 'yes'; expected an event that the workflow accepts, or None",
        ),
        ({Ask: 5}, "is 5; expected an event"),
    ],
)
async def test_wrong_answers_are_refused(answers, message):
    """P13: the message shows the corrected line."""
    with pytest.raises(TypeError, match=message):
        await run_workflow(Asker(), answers=answers)


# -- recorded results ---------------------------------------------------------------------------


async def made_slowly(event):
    await anyio.sleep(1)
    return Made(number=event.number)


@on_each_backend
@pytest.mark.parametrize(
    "recorded",
    [
        [Made(number=n) for n in (5, 6, 7)],
        iter([Made(number=n) for n in (5, 6, 7) * 2]),  # for both backends
        lambda event: Made(number=5 + event.number),
        made_slowly,
    ],
)
def test_a_recorded_step_is_not_called(backend, recorded):
    """What is recorded takes the place of what the step would have returned."""

    async def main():
        workflow = Factory()
        result = await run_workflow(workflow, recorded={"make": recorded})

        assert result.result == (3 if recorded is made_slowly else 18)
        assert workflow.called == 0
        assert result.state.total == 0
        assert sum(done.step == "make" for done in result.steps) == 3

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_any_step_can_be_recorded():
    """One that fans out, a join, one of several events, and one that ends the run."""
    parts = [Part(number=4), Part(number=5)]
    given = []

    def end(events):
        given.extend(events)
        return StopEvent(result="ended")

    recorded = {"begin": [parts], "make": lambda ev: Made(number=ev.number), "end": end}
    result = await run_workflow(Factory(), recorded=recorded)

    assert result.result == "ended"
    assert sorted(event.number for event in given) == [4, 5]

    recorded = {"both": lambda a, b: StopEvent(result=[a.number, b.number])}

    assert (await run_workflow(Pair(), recorded=recorded)).result == [1, 2]


@on_each_backend
def test_a_recorded_exception_is_raised(backend):
    """Retries and handlers have to do with it as with a real one."""

    async def main():
        first, second = OSError(1), OSError(2)
        recorded = {"work": [first, second, StopEvent(result=7)]}
        result = await run_workflow(Tries(), recorded=recorded, fails=0)

        assert result.result == 7
        assert [done.error for done in result.steps] == [first, second, None]
        assert [done.attempt for done in result.steps] == [1, 2, 3]

        result = await run_workflow(Catches(), recorded={"work": [first]})

        assert result.result == "caught OSError(1)"

    run_virtually(backend, main)


@on_each_backend
def test_the_timeout_of_a_recorded_step_holds(backend):
    """A function that takes too long is cut off as the step would be."""

    class Slow(Workflow):
        @step(timeout=5)
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    async def late(event):
        await anyio.sleep(10)

    async def main():
        result = await run_workflow(Slow(), recorded={"only": late}, raises=StepTimeoutError)

        assert result.status == "failed"

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_a_recorded_result_has_to_be_declared():
    """P13: what the step does not declare is refused, as if the step had returned it."""
    with pytest.raises(WorkflowRuntimeError, match=r"Factory\.make returned or sent a Part, which"):
        await run_workflow(Factory(), recorded={"make": lambda ev: ev})
    with pytest.raises(WorkflowRuntimeError, match="make returned None, which it does not declare"):
        await run_workflow(Factory(strict_none=True), recorded={"make": lambda ev: None})


@pytest.mark.anyio
async def test_recorded_results_have_to_suffice():
    """A step that runs once too often ends the run, whatever its retries and handlers say."""
    recorded = {"make": [Made(number=1)]}
    expected = (
        r"the step Factory\.make ran once more than there are recorded results \(1\); expected one "
        r"more in recorded\['make'\], for Part\(number="
    )

    with nothing_left(), pytest.raises(AssertionError, match=expected):
        await run_workflow(Factory(), recorded=recorded)
    with pytest.raises(AssertionError, match=r"once more than there are recorded results \(0\)"):
        await run_workflow(Catches(), recorded={"work": []})


@pytest.mark.anyio
async def test_recorded_results_have_to_be_used_up():
    """A list is counted when the run has completed; a run that was to fail may leave some."""
    recorded = {"make": [Made(number=1)] * 5}
    expected = "2 of the 5 results recorded for make were not used; expected it to run 5 times"

    with pytest.raises(AssertionError, match=expected):
        await run_workflow(Factory(), recorded=recorded)

    recorded = {"make": [Mine("x"), *recorded["make"]]}

    assert (await run_workflow(Factory(), recorded=recorded, raises=Mine)).status == "failed"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("recorded", "kind", "message"),
    [
        (
            {"mak": []},
            ValueError,
            "recorded names 'mak', but Factory has no such step; expected one of begin, make, end",
        ),
        (
            {"make": Made(number=1)},
            TypeError,
            r"expected a list .*recorded=\{'make': \[Made\(number=1\)\]\}",
        ),
        ({"make": 3}, TypeError, r"recorded\['make'\] is 3; expected a list"),
        ({"make": Mine()}, TypeError, "expected a list"),
    ],
)
async def test_wrong_recordings_are_refused(recorded, kind, message):
    """P13: before the run begins, and with the corrected line."""
    with pytest.raises(kind, match=message):
        await run_workflow(Factory(), recorded=recorded)


# -- resources ------------------------------------------------------------------------------------


@pytest.fixture
def opened():
    """What the real resources have opened and closed."""
    flows_for_testing.opened.clear()
    return flows_for_testing.opened


@pytest.mark.anyio
async def test_resources_are_replaced_by_the_identity_of_their_factory(opened):
    """The value is given as it is, and what it would have needed is not made."""
    resources = {make_client: "fake client", make_shared: "fake shared"}

    assert (await run_workflow(Calls(), resources=resources)).result == "fake client, fake shared"
    assert opened == []


@pytest.mark.anyio
async def test_a_resource_of_a_resource_can_be_replaced(opened):
    """What needs it is made anew with the replacement, and only for this run."""
    workflow = Calls()
    async with workflow:
        result = await run_workflow(workflow, resources={open_line: "fake line"})

        assert result.result == "client on fake line, real shared"
        assert opened == ["shared made"]

        result = await run_workflow(workflow, resources={make_shared: "fake shared"})

        assert result.result == "client on real line, fake shared"

        other = await run_workflow(workflow, resources={make_shared: "other fake"})

        assert other.result == "client on real line, other fake"
        assert opened == ["shared made", *["line opened", "line closed"] * 2]
        assert await workflow.run() == "client on real line, real shared"


@on_each_backend
def test_a_recorded_step_needs_no_place_in_its_limiter(backend):
    """It does nothing that is to be limited."""
    limiter = anyio.CapacityLimiter(1)

    class Limited(Workflow):
        @step(limiter=limiter)
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    async def main():
        async with limiter:
            with anyio.fail_after(5):
                recorded = {"only": [StopEvent(result=1)]}
                assert (await run_workflow(Limited(), recorded=recorded)).result == 1

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_a_recorded_step_needs_no_resources(opened):
    """They are not made for a step that is not called."""
    result = await run_workflow(Calls(), recorded={"call": [StopEvent(result="x")]})

    assert result.result == "x"
    assert opened == []


@pytest.mark.anyio
async def test_a_factory_that_nobody_asks_for_is_refused():
    """A replacement that has no effect is a mistake."""
    with pytest.raises(ValueError, match="resources replaces dict, but Calls does not use it"):
        await run_workflow(Calls(), resources={dict: {}})
    with pytest.raises(TypeError, match="resources has the key 'client'; expected the factory"):
        await run_workflow(Calls(), resources={"client": 1})
    with pytest.raises(ValueError, match=r"resources replaces app\.toml, at 'db', but Calls"):
        await run_workflow(Calls(), resources={ResourceConfig("app.toml", "db"): 1})
