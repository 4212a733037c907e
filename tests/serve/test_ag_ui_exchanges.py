"""Exchanges of AG-UI over HTTP: runs started, streamed, interrupted, resumed, and left."""

from __future__ import annotations

import json

import anyio
import anyio.lowlevel
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate.llms import MockLLM, TextDelta
from sluicegate.serve import _ag_ui_exchange, asgi_app
from tests.serve.driver import client_of
from tests.serve.flows import Asking, Essay, Failing, Progress, Waiting


pytest.importorskip("ag_ui", reason="ag-ui-protocol is not installed: pip install ag-ui-protocol")

from tests.serve.ag_ui_rules import Rules


pytestmark = pytest.mark.anyio

RUN = "/workflows/{}/run?format=ag-ui"


def an_input(run="1", *, thread="t", resume=None, **more):
    made = {"threadId": thread, "runId": run, "messages": [], **more}
    return made if resume is None else {**made, "resume": resume}


def events_in(text):
    """Return the events of a stream, each of which is the data of one block."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith((":", "id: "))]
        if lines:
            (line,) = lines
            assert line.startswith("data: ")
            found.append(json.loads(line.removeprefix("data: ")))
    return found


async def exchange(client, workflow, given, state=None, **options):
    """Run an exchange; return the events, which keep the rules of the protocol."""
    response = await client.post(RUN.format(workflow), given, **options)
    assert response.status == 200, response.body
    assert response.headers["content-type"].startswith("text/event-stream")
    rules = Rules(state)
    rules.take(events_in(response.text))
    assert rules.is_over
    assert (rules.seen[0]["threadId"], rules.seen[0]["runId"]) == (
        given["threadId"],
        given["runId"],
    )
    return rules


async def refused(client, workflow, given):
    """Return the code of the error that is the only event of an exchange."""
    response = await client.post(RUN.format(workflow), given)
    (event,) = events_in(response.text)
    assert (response.status, event["type"]) == (200, "RUN_ERROR")
    return event["code"]


async def test_a_run_is_streamed():
    """The members of forwardedProps are the fields of the start event."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        given = an_input(forwardedProps={"topic": "locks", "times": 2})
        rules = await exchange(client, "essay", given)

        assert rules.kinds == [
            *("RUN_STARTED", "STEP_STARTED", "CUSTOM", "CUSTOM", "STEP_FINISHED", "RUN_FINISHED")
        ]
        assert rules.seen[-1]["result"] == "LOCKS"
        run = rules.seen[0]["metadata"]["sluicegate"]["handler_id"]
        assert (await client.get(f"/handlers/{run}")).json["status"] == "completed"


async def test_by_accept():
    """The media type in Accept asks for it, too; the answer is of the type that its clients read."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        response = await client.post(
            "/workflows/essay/run",
            an_input(forwardedProps={"topic": "a"}),
            headers={"accept": "application/vnd.ag-ui.event-stream+json"},
        )

        assert response.headers["content-type"].startswith("text/event-stream")
        assert events_in(response.text)[-1]["type"] == "RUN_FINISHED"


class Chat(Workflow[str]):
    """Answers what the user has said last."""

    @step
    async def answer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        reply = await MockLLM().astream_complete(ev.user_message)
        async for piece in reply:
            await ctx.stream.send(TextDelta(message=ctx.delivery_key, text=piece.delta))
        await ctx.store.set("turns", len(ev.messages))
        return StopEvent(result=ev.thread_id)


class Said(StartEvent):
    user_message: str
    state: dict[str, int]
    loud: bool = False


class Declared(Workflow[str]):
    """Declares what it wants of an input."""

    @step
    async def answer(self, ctx: Context, ev: Said) -> StopEvent:
        return StopEvent(result=[ev.user_message, ev.state, ev.loud])


async def test_an_open_start_event_gets_the_conversation():
    """The messages, and what the user has said last, be it in parts; the state comes as a snapshot."""
    messages = [
        {"id": "1", "role": "user", "content": "first"},
        {"id": "2", "role": "assistant", "content": "yes?"},
        {"id": "3", "role": "user", "content": [{"type": "text", "text": "one two"}]},
        {"id": "4", "role": "tool", "toolCallId": "c", "content": "no"},
    ]
    async with client_of(asgi_app({"chat": Chat()})) as client:
        rules = await exchange(client, "chat", an_input(messages=messages), {"of": "client"})

        assert [*rules.texts.values()] == ["one two"]
        assert rules.state == {"turns": 4}
        assert rules.seen[-1]["result"] == "t"


async def test_a_declared_start_event_gets_what_it_declares():
    """Of an input only the fields that the class has, and nothing that it has not."""
    async with client_of(asgi_app({"declared": Declared()})) as client:
        messages = [{"id": "1", "role": "user", "content": "hello"}]
        given = an_input(messages=messages, state={"n": 1}, forwardedProps={"loud": True})
        rules = await exchange(client, "declared", given)

        assert rules.seen[-1]["result"] == ["hello", {"n": 1}, True]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "threadId"),
        ({"threadId": "t", "runId": 1}, "runId"),
        (an_input(forwardedProps=[1]), "forwardedProps"),
        (an_input(forwardedProps={"topic": 1}), "forwardedProps.topic"),
        (an_input(forwardedProps={}), "forwardedProps.topic"),
        (an_input(messages={}), "messages"),
        (an_input(messages=[1]), "messages"),
        (an_input(resume=["q"]), "resume"),
        (an_input(parentRunId=1), "parentRunId"),
    ],
)
async def test_an_input_that_does_not_fit(given, field):
    """It is a 400 with the field, and nothing is started."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        response = await client.post(RUN.format("essay"), given)

        assert (response.status, response.json["field"]) == (400, field), response.json
        assert (await client.get("/handlers")).json["handlers"] == []


async def test_a_failure_is_an_error_without_its_text():
    """The class of the exception is told."""
    async with client_of(asgi_app({"failing": Failing()})) as client:
        rules = await exchange(client, "failing", an_input())

        assert rules.kinds[-2:] == ["STEP_FINISHED", "RUN_ERROR"]
        assert rules.seen[-1]["code"] == "LookupError"
        assert "hunter2" not in str(rules.seen)


async def test_a_question_ends_the_exchange_and_the_answer_continues_the_run():
    """The interrupt has the schema of the answer; a second input resumes the same run."""
    async with client_of(asgi_app({"asking": Asking()})) as client:
        first = await exchange(client, "asking", an_input(forwardedProps={"topic": "go on?"}))
        (interrupt,) = first.interrupts
        assert interrupt["message"] == "go on?"
        assert interrupt["responseSchema"]["required"] == ["yes"]
        run = first.seen[0]["metadata"]["sluicegate"]["handler_id"]
        assert (await client.get(f"/handlers/{run}")).json["idle"]

        answer = {"interruptId": interrupt["id"], "status": "resolved", "payload": {"yes": True}}
        second = await exchange(client, "asking", an_input("2", resume=[answer]))
        assert second.kinds == ["RUN_STARTED", "STEP_STARTED", "STEP_FINISHED", "RUN_FINISHED"]
        assert second.seen[-1]["result"] == "published"
        assert second.seen[0]["metadata"]["sluicegate"]["handler_id"] == run


@pytest.mark.parametrize(
    "payload", [True, {"yes": True}, {"type": "Approval", "value": {"yes": True}}]
)
async def test_forms_of_an_answer(payload):
    """The only field alone, the fields, or these with the class."""
    async with client_of(asgi_app({"asking": Asking()})) as client:
        first = await exchange(client, "asking", an_input(forwardedProps={"topic": "a"}))
        answer = {
            "interruptId": first.interrupts[0]["id"],
            "status": "resolved",
            "payload": payload,
        }
        second = await exchange(client, "asking", an_input("2", resume=[answer]))

        assert second.seen[-1]["result"] == "published"


async def test_an_abandoned_question_cancels_the_run():
    """An answer with the status `cancelled` gives nothing to go on with."""
    async with client_of(asgi_app({"asking": Asking()})) as client:
        first = await exchange(client, "asking", an_input(forwardedProps={"topic": "a"}))
        answer = {"interruptId": first.interrupts[0]["id"], "status": "cancelled"}
        second = await exchange(client, "asking", an_input("2", resume=[answer]))

        assert second.seen[-1]["outcome"] == {"type": "cancelled"}


async def test_the_contract_of_resuming():
    """Answers cover the open questions of a run of the same thread, and fit them; else nothing happens."""
    async with client_of(asgi_app({"asking": Asking(), "essay": Essay()})) as client:
        first = await exchange(client, "asking", an_input(forwardedProps={"topic": "a"}))
        name = first.interrupts[0]["id"]

        def answering(run="2", thread="t", **fields):
            return an_input(run, thread=thread, resume=[{"interruptId": name, **fields}])

        right = {"status": "resolved", "payload": {"yes": False}}
        for given, code in (
            (an_input("2", forwardedProps={"topic": "b"}), "interrupted"),
            (answering(thread="u", **right), "wrong_thread"),
            (answering(status="done"), "invalid_answer"),
            (answering(status="resolved", payload={"yes": "maybe"}), "invalid_answer"),
            (answering(status="resolved"), "invalid_answer"),
            (an_input("2", resume=[{"interruptId": "no", **right}]), "unknown_interrupt"),
            (an_input("2", resume=[{**right}]), "unknown_interrupt"),
            (
                an_input(
                    "2", resume=[{"interruptId": each, **right} for each in (name, name + "9")]
                ),
                "unknown_interrupt",
            ),
        ):
            assert await refused(client, "asking", given) == code
        assert await refused(client, "essay", answering(**right)) == "unknown_interrupt"
        other = an_input("2", thread="u", forwardedProps={"topic": "b"})
        assert (await exchange(client, "asking", other)).interrupts

        second = await exchange(client, "asking", answering(**right))
        assert second.seen[-1]["result"] == "dropped"
        assert await refused(client, "asking", answering(**right)) == "unknown_interrupt"
        again = await exchange(client, "asking", an_input("3", forwardedProps={"topic": "b"}))
        assert again.interrupts


class Ask(InputRequiredEvent):
    question: str


class Reply(HumanResponseEvent):
    text: str


class Inner(Workflow[str]):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        reply = await ctx.wait_for_event(Reply, Ask(question=ev.question))
        return StopEvent(result=reply.text)


class Item(Event):
    name: str


class Outer(Workflow[list[str]]):
    """Two children ask at a time; each answer goes to its own."""

    inner = Inner()

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        await ctx.store.set("asked", 2)
        await ctx.store.set("_secret", "hunter2")
        return [Item(name="a"), Item(name="b")]

    @step(num_workers=2)
    async def ask(self, ctx: Context, ev: Item) -> Progress:
        text = await ctx.run_child(self.inner, question=ev.name, run_id=f"of {ev.name}")
        return Progress(message=text)

    @step
    async def end(self, evs: list[Progress]) -> StopEvent:
        return StopEvent(result=sorted(ev.message for ev in evs))


async def test_questions_of_children():
    """Each interrupt names its subagent, which is suspended and continues with the answers."""
    async with client_of(asgi_app({"outer": Outer()})) as client:
        first = await exchange(client, "outer", an_input())
        assert {each["message"]: each["subagentRunId"] for each in first.interrupts} == {
            "a": "of a",
            "b": "of b",
        }
        ends = [event for event in first.seen if event["type"] == "SUBAGENT_FINISHED"]
        assert {end["outcome"]["type"] for end in ends} == {"suspended"}
        assert sorted(i for end in ends for i in end["outcome"]["interruptIds"]) == sorted(
            each["id"] for each in first.interrupts
        )
        assert first.state == {"asked": 2}
        assert "hunter2" not in str(first.seen)

        answers = [
            {"interruptId": each["id"], "status": "resolved", "payload": f"to {each['message']}"}
            for each in first.interrupts
        ]
        assert await refused(client, "outer", an_input("2", resume=answers[:1])) == "partial"
        second = await exchange(client, "outer", an_input("2", resume=answers), first.state)
        assert second.seen[-1]["result"] == ["to a", "to b"]
        assert (
            second.kinds.count("SUBAGENT_STARTED") == second.kinds.count("SUBAGENT_FINISHED") == 2
        )


async def test_hanging_up_cancels_the_run():
    """As for any run that a request has started; so does a client that leaves before the head."""
    waiting = Waiting()
    async with client_of(asgi_app({"waiting": waiting})) as client:
        connection = client.open("POST", RUN.format("waiting"), an_input())
        await connection.response.until("begun")
        connection.hang_up()
        await connection.ended.wait()
        await waiting.over.wait()

        assert waiting.seen == ["cancelled", "cleaned up"]
        while client.app._runs.active:  # it unwinds
            await anyio.lowlevel.checkpoint()


async def test_hanging_up_does_not_cancel_where_it_should_not():
    """With on_disconnect=continue the run goes on, and can be read on."""
    waiting = Waiting()
    async with client_of(asgi_app({"waiting": waiting})) as client:
        path = RUN.format("waiting") + "&on_disconnect=continue"
        connection = client.open("POST", path, an_input())
        text = await connection.response.until("begun")
        run = events_in(text.rpartition("\n\n")[0])[0]["metadata"]["sluicegate"]["handler_id"]
        connection.hang_up()
        await connection.ended.wait()
        waiting.go_on.set()
        response = await client.get(f"/events/{run}?format=ag-ui&after_sequence=-1")

        assert waiting.seen == ["cleaned up"]
        rules = Rules()
        rules.take(events_in(response.text))
        assert (rules.kinds[0], rules.kinds[-1]) == ("RUN_STARTED", "RUN_FINISHED")
        assert "CUSTOM" in rules.kinds
        assert await exchange(client, "waiting", an_input("2"))


async def test_a_run_that_waits_is_not_the_request_s_any_more():
    """A client that leaves after the interrupt cancels nothing, and may be another one that answers."""
    async with client_of(asgi_app({"asking": Asking()})) as client:
        connection = client.open(
            "POST", RUN.format("asking"), an_input(forwardedProps={"topic": "a"})
        )
        await connection.response.complete()
        connection.hang_up()
        await connection.ended.wait()

        (run,) = (await client.get("/handlers")).json["handlers"]
        assert (run["status"], run["questions"]) == ("running", 1)


async def test_a_server_that_stops_ends_the_exchange():
    """The client is told, and everything is closed."""
    waiting = Waiting()
    app = asgi_app({"waiting": waiting})
    async with client_of(app) as client:
        connection = client.open("POST", RUN.format("waiting"), an_input())
        await connection.response.until("begun")
        await app.begin_shutdown(0.0)
        await connection.response.complete()

        rules = Rules()
        rules.take(events_in(connection.response.text))
        assert rules.is_over
        assert "sluicegate.stopping" in [event.get("name") for event in rules.seen]
        assert waiting.seen == ["cancelled", "cleaned up"]


async def test_a_client_that_does_not_read_holds_up_nothing(monkeypatch):
    """It misses events and is told how many; what was opened is closed all the same."""
    monkeypatch.setattr(_ag_ui_exchange, "MOST_WAITING", 200)
    waiting = Waiting()
    async with client_of(asgi_app({"waiting": waiting})) as client:
        given = an_input(forwardedProps={"flood": 5000})
        connection = client.open("POST", RUN.format("waiting"), given)
        await connection.response.until("RUN_STARTED")
        connection.stall()
        await waiting.over.wait()
        (feed,) = client.app._feeds._feeds.values()
        assert len(feed._waiting) <= 201
        connection.reads.set()
        await connection.response.complete()

        rules = Rules()
        rules.take(events_in(connection.response.text))
        assert rules.is_over
        told = [event["value"] for event in rules.seen if event.get("name") == "Progress"]
        missed = [e["value"]["missed"] for e in rules.seen if e.get("name") == "sluicegate.gap"]
        assert len(told) + sum(missed) == 5001
        assert missed


async def test_steps_and_children_are_told_at_once():
    """A run that publishes nothing is heard of, too: no event of its stream is waited for."""
    waiting = Waiting()

    class Quiet(Workflow[str]):
        @step
        async def outer(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.run_child(waiting, stream="off"))

    async with client_of(asgi_app({"quiet": Quiet()})) as client:
        connection = client.open("POST", RUN.format("quiet"), an_input())
        with anyio.fail_after(5):
            text = await connection.response.until("SUBAGENT_STARTED")
            text += await connection.response.until("STEP_STARTED")
            waiting.go_on.set()
            await connection.response.complete()
        assert "begun" not in connection.response.text
        rules = Rules()
        rules.take(events_in(connection.response.text))
        assert rules.seen[-1]["result"] == "done"


async def test_a_run_that_ends_while_it_waits_for_an_answer():
    """Cancelled by another client, it keeps nothing, its answers come too late, and the thread is free."""
    async with client_of(asgi_app({"asking": Asking()})) as client:
        first = await exchange(client, "asking", an_input(forwardedProps={"topic": "a"}))
        run = first.seen[0]["metadata"]["sluicegate"]["handler_id"]
        (feed,) = client.app._feeds._feeds.values()
        await client.post(f"/handlers/{run}/cancel")

        assert not feed._waiting
        answer = {"interruptId": first.interrupts[0]["id"], "status": "resolved", "payload": True}
        assert (
            await refused(client, "asking", an_input("2", resume=[answer])) == "unknown_interrupt"
        )
        again = await exchange(client, "asking", an_input("3", forwardedProps={"topic": "b"}))
        assert again.interrupts


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_stored_run_is_resumed(is_restarted, tmp_path):
    """The run of an interrupt waits in the store, and its answers find it there, after a restart, too."""
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    async with client_of(asgi_app({"asking": Asking()}, run_store=store)) as client:
        first = await exchange(client, "asking", an_input(forwardedProps={"topic": "go on?"}))
        (interrupt,) = first.interrupts
        answer = {"interruptId": interrupt["id"], "status": "resolved", "payload": {"yes": True}}
        if not is_restarted:
            second = await exchange(client, "asking", an_input("2", resume=[answer]))
    if is_restarted:
        async with client_of(asgi_app({"asking": Asking()}, run_store=store)) as client:
            run = first.seen[0]["metadata"]["sluicegate"]["handler_id"]
            while not (await client.get(f"/handlers/{run}/questions")).json["questions"]:
                await anyio.sleep(0.01)  # the server takes the run over
            wrong = {**answer, "payload": {"yes": "maybe"}}
            assert (
                await refused(client, "asking", an_input("2", resume=[wrong])) == "invalid_answer"
            )
            second = await exchange(client, "asking", an_input("2", resume=[answer]))

    assert second.seen[-1]["result"] == "published"


async def test_a_body_of_the_other_formats():
    """It is understood as well: the run is its own thread, and the same id starts it once."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        body = {"start_event": {"topic": "a"}, "handler_id": "r"}
        first, again = Rules(), Rules()
        first.take(events_in((await client.post(RUN.format("essay"), body)).text))
        again.take(events_in((await client.post(RUN.format("essay"), body)).text))

        assert (first.seen[0]["threadId"], first.seen[0]["runId"]) == ("r", "r")
        assert first.seen[-1]["result"] == again.seen[-1]["result"] == "A"
        assert len((await client.get("/handlers")).json["handlers"]) == 1


async def test_without_a_lifespan():
    """A run that may wait needs an owner, so it is refused with the line that is missing."""
    async with client_of(asgi_app({"essay": Essay()}), lifespan=False) as client:
        response = await client.post(RUN.format("essay"), an_input(forwardedProps={"topic": "a"}))

        assert response.status == 503
        assert "lifespan" in response.json["detail"]
