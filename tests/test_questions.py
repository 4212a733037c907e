"""Open questions: what a parked run waits for, and answers that name what they answer."""

from __future__ import annotations

import json
import logging

import anyio
import pytest

from sluicegate import (
    Context,
    EventConflictError,
    HumanResponseEvent,
    InputRequiredEvent,
    QuestionClosedError,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    step,
)


pytestmark = pytest.mark.anyio


class Ask(InputRequiredEvent):
    of: str


class Reply(HumanResponseEvent):
    says: str


class Inside(Workflow[list[str]]):
    """Asks two people in the middle of a step, one after the other."""

    @step(waits_for=[Reply])
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        first = await ctx.wait_for_event(Reply, Ask(of="ann"))
        second = await ctx.wait_for_event(Reply, Ask(of="bob"))
        return StopEvent(result=[first.says, second.says])


class Returned(Workflow[list[str]]):
    """Asks twice by events that a step returns."""

    @step
    async def begin(self, ev: StartEvent) -> Ask:
        return Ask(of="ann")

    @step
    async def hear(self, ctx: Context, ev: Reply) -> Ask | StopEvent:
        async with ctx.store.edit_state() as state:
            said = [*state.get("said", []), ev.says]
            state["said"] = said
        return Ask(of="bob") if len(said) == 1 else StopEvent(result=said)


class Both(Workflow[list[str]]):
    """Two waits at a time for one class."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        says = {}

        async def ask_one(name):
            says[name] = (await ctx.wait_for_event(Reply, Ask(of=name))).says

        async with anyio.create_task_group() as group:
            for name in ("ann", "bob"):
                group.start_soon(ask_one, name)
                await anyio.wait_all_tasks_blocked()
        return StopEvent(result=[says["ann"], says["bob"]])


class Publishes(Workflow[str]):
    """Puts its question on the stream itself, and then waits for the answer."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Ask(of="ann"))
        return StopEvent(result=(await ctx.wait_for_event(Reply)).says)


class Parent(Workflow[list[str]]):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(Inside()))


async def idle(handler):
    for _ in range(200):
        if handler.status == "idle":
            return
        await anyio.lowlevel.checkpoint()
    pytest.fail("it never was idle")


of_each_way = pytest.mark.parametrize("workflow", [Inside, Returned])


@of_each_way
async def test_open_questions_tell_what_a_run_waits_for(workflow):
    """D5: id, event, since when, and the classes that answer it; answered, it is there no more."""
    async with workflow().run() as handler:
        assert handler.questions == ()
        await idle(handler)
        [question] = handler.questions

        assert question.event.of == "ann"
        assert question.answers == (Reply,)
        assert question.since > 0
        handler.send_event(Reply(says="1"), question=question.id)
        assert handler.questions == ()
        await idle(handler)
        [other] = handler.questions
        assert other.event.of == "bob"
        assert other.id != question.id
        handler.send_event(Reply(says="2"))
        assert await handler == ["1", "2"]
        assert handler.questions == ()


@of_each_way
async def test_second_click_does_not_answer_the_next_question(workflow):
    """D5: an answer that names a question already answered is refused, and changes nothing."""
    async with workflow().run() as handler:
        await idle(handler)
        [question] = handler.questions
        handler.send_event(Reply(says="1"), question=question.id)
        await idle(handler)

        with pytest.raises(QuestionClosedError) as caught:
            handler.send_event(Reply(says="1"), question=question.id)
        assert caught.value.question == question.id
        assert [q.event.of for q in handler.questions] == ["bob"]
        with pytest.raises(WorkflowRuntimeError, match="has asked no question 'q99'"):
            handler.send_event(Reply(says="1"), question="q99")
        with pytest.raises(WorkflowRuntimeError, match=r"HumanResponseEvent.* does not answer"):
            handler.send_event(HumanResponseEvent(says="1"), question=handler.questions[0].id)
        with pytest.raises(TypeError, match="both step='ask' and question="):
            handler.send_event(Reply(says="1"), "ask", question=question.id)
        handler.send_event(Reply(says="2"))
        assert await handler == ["1", "2"]


@of_each_way
async def test_same_id_is_applied_once(workflow):
    """D5: the same id and content is acknowledged again; other content, or another id, is an error."""
    async with workflow().run() as handler:
        await idle(handler)
        [question] = handler.questions
        answer = {"question": question.id}
        first = handler.send_event(Reply(says="1"), **answer, id="click")
        again = handler.send_event(Reply(says="1"), **answer, id="click")

        assert (first.is_repeated, again.is_repeated) == (False, True)
        await first
        await again
        for event, other in (
            (Reply(says="2"), answer),
            (Reply(says="1"), {}),
            (HumanResponseEvent(says="1"), answer),
        ):
            with pytest.raises(EventConflictError) as caught:
                handler.send_event(event, **other, id="click")
            assert caught.value.id == "click"
        with pytest.raises(QuestionClosedError):
            handler.send_event(Reply(says="1"), **answer, id="second click")
        await idle(handler)
        handler.send_event(Reply(says="2"), id="second click")
        assert await handler == ["1", "2"]
        assert handler.send_event(Reply(says="2"), id="second click").is_repeated


async def test_event_that_was_refused_may_come_again_under_its_id():
    """D5: an id is taken by an event that was applied, not by one that was refused."""
    async with Inside().run() as handler:
        await idle(handler)
        with pytest.raises(WorkflowRuntimeError):
            handler.send_event(Ask(of="x"), id="a")
        handler.send_event(Reply(says="1"), id="a")
        await idle(handler)
        handler.send_event(Reply(says="2"))
        assert await handler == ["1", "2"]


async def test_answer_goes_to_the_question_that_it_names():
    """D5: of two open questions the named one gets the answer, and an unnamed goes to the oldest."""
    async with Both().run() as handler:
        while len(handler.questions) < 2:
            await anyio.sleep(0.001)
        assert [q.event.of for q in handler.questions] == ["ann", "bob"]
        handler.send_event(Reply(says="b"), question=handler.questions[1].id)
        handler.send_event(Reply(says="a"))
        assert await handler == ["a", "b"]


async def test_question_that_a_step_published_is_that_of_its_wait():
    """D5: a question put on the stream, and a wait after it, are one open question."""
    async with Publishes().run() as handler:
        await idle(handler)
        [question] = handler.questions
        assert question.event.of == "ann"
        assert question.answers == (Reply,)
        handler.send_event(Reply(says="1"), question=question.id)
        assert await handler == "1"


async def test_questions_of_a_child_are_those_of_its_parent():
    """D5: the parent's handler shows the questions of a child, and takes their answers."""
    async with Parent().run() as handler:
        for says in ("1", "2"):
            await anyio.wait_all_tasks_blocked()
            [question] = handler.questions
            handler.send_event(Reply(says=says), question=question.id)
        assert await handler == ["1", "2"]


@of_each_way
@pytest.mark.parametrize("when", ["idle", "cancelled"])
async def test_open_questions_survive_a_snapshot(workflow, when):
    """D5: they are in the snapshot, whose status is "idle", and there again with the same ids."""
    async with workflow(serializable=[Ask]).run() as handler:
        await idle(handler)
        [question] = handler.questions
        handler.send_event(Reply(says="1"), question=question.id, id="click")
        await idle(handler)
        [other] = handler.questions
        snapshot = handler.snapshot()
        await handler.cancel()
        if when == "cancelled":
            snapshot = handler.snapshot()
        with pytest.raises(WorkflowRuntimeError):
            await handler

    assert snapshot["status"] == when
    text = json.dumps(snapshot)
    for answers_at_once in (True, False):
        async with workflow(serializable=[Ask]).resume(json.loads(text)) as resumed:
            if not answers_at_once:
                await idle(resumed)
            [again] = resumed.questions
            assert (again.id, again.event.of, again.answers) == (other.id, "bob", (Reply,))
            with pytest.raises(QuestionClosedError):
                resumed.send_event(Reply(says="1"), question=question.id)
            repeated = resumed.send_event(Reply(says="1"), question=question.id, id="click")
            assert repeated.is_repeated
            resumed.send_event(Reply(says="2"), question=again.id)
            assert resumed.questions == ()
            with pytest.raises(QuestionClosedError):
                resumed.send_event(Reply(says="2"), question=again.id)
            assert await resumed == ["1", "2"]


@of_each_way
async def test_run_in_place_that_waits_with_no_reader_says_so(workflow, caplog):
    """D5: a run that is awaited in place, and goes idle with no reader, logs what it waits for."""
    with caplog.at_level(logging.WARNING, "sluicegate"), anyio.move_on_after(0.01):
        await workflow().run(run_id="lonely")

    [told] = caplog.records
    assert "the run lonely of" in told.getMessage()
    assert "(q1: Reply)" in told.getMessage()


@of_each_way
async def test_run_in_a_block_does_not_log_that_it_waits(workflow, caplog):
    """D5: one that someone holds, or reads, is no surprise."""
    with caplog.at_level(logging.WARNING, "sluicegate"):
        async with workflow().run() as handler:
            await idle(handler)
            await handler.cancel()
            with pytest.raises(WorkflowRuntimeError):
                await handler

    assert caplog.records == []


class OneChild(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(Inside()))


async def test_child_asks_through_its_parent_and_does_not_log_that_it_waits(caplog):
    """D5: a child is awaited in place by its step, and what it asks is on the parent's stream."""
    with caplog.at_level(logging.WARNING, "sluicegate"):
        async with OneChild().run() as handler:
            await idle(handler)
            await handler.cancel()
            with pytest.raises(WorkflowRuntimeError):
                await handler

    assert caplog.records == []


async def test_question_is_answered_from_a_thread_by_its_name():
    """D5: `from_thread.send_event` names questions and events as the handler does."""
    async with Inside().run() as handler:
        for says in ("1", "2"):
            await idle(handler)
            [question] = handler.questions

            def answer(says=says, question=question):
                for _ in range(2):
                    handler.from_thread.send_event(Reply(says=says), question=question.id, id=says)

            await anyio.to_thread.run_sync(answer)
        assert await handler == ["1", "2"]
