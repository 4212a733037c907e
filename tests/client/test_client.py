"""The client against the server in the same event loop: runs, streams, questions, errors."""

from __future__ import annotations

import json

import anyio
import pytest
import trio

from sluicegate import (
    EventConflictError,
    HumanResponseEvent,
    QuestionClosedError,
    StartEvent,
    StopEvent,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowRuntimeError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
)
from sluicegate.client import (
    Client,
    ClientError,
    ConflictError,
    InvalidRequestError,
    NotAllowedError,
    NotFoundError,
    RemoteEvent,
    RemoteQuestionEvent,
    RunFailedError,
    UnavailableError,
)
from sluicegate.serve import asgi_app, bearer_token
from tests.client.in_process import connected, network
from tests.helpers import nothing_left
from tests.serve.flows import Approval, Asking, Essay, Failing, Progress, Question, Topic, Waiting


pytestmark = pytest.mark.anyio


def workflows():
    return {
        "essay": Essay(),
        "asking": Asking(),
        "failing": Failing(),
        "waiting": Waiting(),
        "late": Waiting(timeout=0.01),
    }


def app_of(**options):
    return asgi_app(workflows(), shutdown_grace=0, **options)


KNOWN = {"workflows": {"essay": Essay, "asking": Asking}, "events": [Progress, Question]}


# -- a run that the request owns -----------------------------------------------------------------------


async def test_a_run_in_place():
    """Awaiting a handler starts the run, and gives its result; nothing is left."""
    with nothing_left():
        async with connected(app_of()) as client:
            assert await client.run("essay", topic="locks") == "LOCKS"
            assert await client.run("essay", Topic(topic="keys")) == "KEYS"


async def test_a_run_of_a_block():
    """The block owns the run; its readers get every event, and the terminal one, as instances of the classes given."""
    async with connected(app_of(), **KNOWN) as client:
        async with client.run("essay", topic="locks", times=3) as handler:
            events = [event async for event in handler.stream_events()]
            again = [event async for event in handler.stream_events()]

            assert await handler == "LOCKS"

            late = handler.stream_events()
            assert late.cursor == "0"
            assert handler.stream_events(after="now").cursor == "4"
            assert (await late.receive(), late.cursor) == (events[0], "1")

        assert [type(event) for event in events] == [Progress] * 3 + [StopEvent]
        assert [event.message for event in events[:3]] == ["locks 0", "locks 1", "locks 2"]
        assert events[3].result == "LOCKS"
        assert [event.to_dict() for event in again] == [event.to_dict() for event in events]
        assert len([r for r in client.network.requests if r.startswith("GET")]) == 0, (
            "one connection"
        )


async def test_a_workflow_class_names_the_run():
    """A client that knows the workflows takes one of them in place of its name."""
    async with connected(app_of(), **KNOWN) as client:
        assert await client.run(Essay, topic="locks") == "LOCKS"
        assert await (await client.submit(Essay(), topic="locks")) == "LOCKS"
        with pytest.raises(WorkflowRuntimeError, match=r"workflows=\{'name': Failing\}"):
            client.run(Failing)


async def test_events_of_classes_that_were_not_given():
    """P19: they have a name and fields, and no class is looked up."""
    async with connected(app_of()) as client:
        async with client.run("essay", topic="locks") as handler:
            event = await handler.stream_events().receive()
        assert type(event) is RemoteEvent
        assert (event.type_name, event.fields, event.problem) == (
            "Progress",
            {"message": "locks 0"},
            None,
        )

        handler = await client.submit("asking", topic="now?")
        question = await handler.stream_events().receive()
        assert isinstance(question, RemoteQuestionEvent)
        assert question.base_names == ("InputRequiredEvent",)
        await handler.cancel()


async def test_an_event_that_does_not_fit_its_class():
    """P19: it is told why, and arrives with its fields; nothing is lost."""

    class Progress(StartEvent):
        message: int

    async with connected(app_of(), events=[Progress]) as client:
        async with client.run("essay", topic="locks") as handler:
            event = await handler.stream_events().receive()
        assert event.fields == {"message": "locks 0"}
        assert "Progress.message is 'locks 0'" in event.problem


async def test_leaving_the_block_cancels_the_run():
    """P1: the exception leaves, the server has cancelled the run with that reason, and it has unwound."""
    flows = workflows()
    with nothing_left():
        async with connected(asgi_app(flows, shutdown_grace=0)) as client:
            with pytest.raises(ZeroDivisionError):
                async with client.run("waiting") as handler:
                    await handler.stream_events().receive()
                    raise ZeroDivisionError
            assert flows["waiting"].seen == ["cancelled", "cleaned up"]
            found = await client.attach(handler.run_id).details()
            assert found.status == "cancelled"
            assert found.reason == "its block was left by ZeroDivisionError"
            assert client.network.open == 0


@pytest.mark.parametrize("in_place", [False, True])
async def test_a_cancelled_owner_cancels_the_run(in_place):
    """P1, P2: in a block and in place; the cancellation goes on."""
    flows = workflows()
    with nothing_left():
        async with connected(asgi_app(flows, shutdown_grace=0)) as client:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as nursery:

                    async def cancel():
                        await flows["waiting"].began.wait()
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(cancel)
                    if in_place:
                        await client.run("waiting")
                    else:
                        async with client.run("waiting"):
                            pass
                scope.cancel()
            assert flows["waiting"].seen == ["cancelled", "cleaned up"]
            assert client.network.open == 0


async def test_an_early_end_of_reading_changes_nothing():
    """A reader that is left before the end does not affect the run, whose block waits for it."""
    flows = workflows()
    async with (
        connected(asgi_app(flows, shutdown_grace=0)) as client,
        client.run("waiting") as handler,
    ):
        async for _ in handler.stream_events():
            break
        flows["waiting"].go_on.set()
    assert flows["waiting"].seen == ["cleaned up"]


async def test_failures_name_the_class():
    """P9: the stream ends with the terminal event, the await raises; the text stays on the server."""
    async with connected(app_of()) as client:
        with pytest.raises(RunFailedError, match="LookupError in the step fail") as caught:
            await client.run("failing")
        assert (caught.value.exception, caught.value.step_name) == ("LookupError", "fail")
        assert "hunter2" not in str(caught.value)

        with pytest.raises(RunFailedError):
            async with client.run("failing") as handler:
                events = [event async for event in handler.stream_events()]
        assert [type(event) for event in events] == [WorkflowFailedEvent]
        with pytest.raises(RunFailedError, match="LookupError in the step fail"):
            await client.attach(handler.run_id)


async def test_timeouts_are_the_engine_s():
    """A run that timed out raises the engine's exception, in its block and attached."""
    async with connected(app_of()) as client:
        with pytest.raises(WorkflowTimeoutError, match=r"0\.01 s; still running: work") as caught:
            await client.run("late")
        assert (caught.value.timeout, caught.value.active_steps) == (0.01, ("work",))

        handler = await client.submit("late")
        assert type([event async for event in handler.stream_events()][-1]) is WorkflowTimedOutEvent
        with pytest.raises(WorkflowTimeoutError):
            await handler
        assert await handler.status() == "timed_out"


async def test_a_run_that_is_cancelled_meanwhile():
    """The reason arrives in the terminal event and in the exception; leaving the block raises nothing then."""
    async with connected(app_of()) as client, client.run("waiting") as handler:
        stream = handler.stream_events()
        await stream.receive()
        await handler.cancel("enough")
        assert [type(event) async for event in stream] == [WorkflowCancelledEvent]
        with pytest.raises(WorkflowCancelledError, match="enough") as caught:
            await handler
        assert caught.value.reason == "enough"
        await handler.cancel("again")


# -- a run that the server owns --------------------------------------------------------------------------


async def test_a_run_of_the_server():
    """It goes on when its client has gone; another attaches to it."""
    flows = workflows()
    async with network(asgi_app(flows, shutdown_grace=0)) as net:
        async with net.client() as client:
            handler = await client.submit("waiting", run_id="mine")
            async with handler:
                await handler.stream_events().receive()
            assert await handler.status() == "running"
        async with net.client() as client:
            handler = client.attach("mine")
            flows["waiting"].go_on.set()
            assert await handler == "done"
            assert await handler == "done"
            assert (await handler.details()).result() == "done"


async def test_a_run_is_submitted_once():
    """The same request with the same id starts one run; other data under it are refused."""
    async with connected(app_of()) as client:
        for _ in range(2):
            handler = await client.submit("essay", run_id="mine", topic="locks")
            assert await handler == "LOCKS"
        assert [run.run_id for run in await client.list_runs()] == ["mine"]
        with pytest.raises(ConflictError):
            await client.submit("essay", run_id="mine", topic="keys")


async def test_questions_are_answered():
    """They come with the schemas of their answers; an answer ends the wait, a second one is refused."""
    async with connected(app_of(), **KNOWN) as client:
        handler = await client.submit("asking", topic="print?")
        event = await handler.stream_events().receive()
        assert type(event) is Question
        [question] = await handler.questions()
        assert (question.event.text, question.run_id) == ("print?", handler.run_id)
        assert [kind.type_name for kind in question.answers] == ["Approval"]
        assert question.answers[0].schema["required"] == ["yes"]
        assert [each.id for each in await client.questions()] == [question.id]
        assert await handler.status() == "idle"

        with pytest.raises(InvalidRequestError, match="yes") as caught:
            await handler.send_event({"yes": "perhaps"}, question=question.id)
        assert isinstance(caught.value, TypeError)
        assert caught.value.field == "event.yes"

        answered = await handler.send_event(Approval(yes=True), question=question.id, id="once")
        assert answered.is_repeated is False
        assert await handler == "published"
        with pytest.raises(ConflictError, match="has ended"):
            await handler.send_event(Approval(yes=True), question=question.id, id="twice")


async def test_refusals_of_the_engine():
    """A closed question and a used id are the engine's own exceptions, with what they are about."""
    async with connected(app_of()) as client, client.run("waiting") as handler:
        body = {"detail": "was answered", "error": "QuestionClosedError", "question": "q1"}

        async def refuse(scope, receive, send):
            await send({"type": "http.response.start", "status": 409, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})

        app, client.network.app = client.network.app, refuse
        with pytest.raises(QuestionClosedError, match="was answered") as closed:
            await handler.send_event({"yes": True}, question="q1")
        assert closed.value.question == "q1"
        body |= {"error": "EventConflictError", "id": "mine"}
        with pytest.raises(EventConflictError) as used:
            await handler.send_event({"yes": True}, question="q1", id="mine")
        assert used.value.id == "mine"
        client.network.app = app
        await handler.cancel()


async def test_an_answer_is_sent_once():
    """A repeated id is acknowledged, and told; a question that is closed is refused by its own exception."""
    async with (
        connected(app_of(), **KNOWN) as client,
        client.run("asking", topic="print?") as handler,
    ):
        await handler.stream_events().receive()
        [question] = await handler.questions()
        await handler.send_event(HumanResponseEvent(other=1), id="early")
        again = await handler.send_event(HumanResponseEvent(other=1), id="early")
        assert again.is_repeated
        with pytest.raises(EventConflictError) as used:
            await handler.send_event(HumanResponseEvent(other=2), id="early")
        assert used.value.id == "early"
        await handler.send_event(Approval(yes=False), question=question.id)
        assert await handler == "dropped"


async def test_state_and_snapshot():
    """The state that the steps share, a snapshot that continues in this process, and the records of the run."""
    async with connected(app_of()) as client:
        handler = await client.submit("asking", run_id="mine", topic="print?")
        await handler.stream_events().receive()
        assert await handler.state() == {}
        snapshot = await handler.snapshot()
        assert await handler.timeline()
        with pytest.raises(ConflictError, match="no run store"):
            await handler.fork()
    async with Asking().resume(snapshot) as local:
        local.send_event(Approval(yes=True))
        assert await local == "published"


async def test_readers_begin_anywhere():
    """After a cursor, at the end, and at the beginning again: each gets what follows, once."""
    async with connected(app_of(), **KNOWN) as client:
        handler = await client.submit("essay", topic="locks", times=5)
        await handler
        stream = handler.stream_events()
        first = await stream.receive()
        assert stream.cursor == "1"
        rest = [event async for event in handler.stream_events(after=stream.cursor)]
        assert [first.message, *(event.get("message") for event in rest)] == [
            *(f"locks {n}" for n in range(5)),
            None,
        ]
        assert [event async for event in handler.stream_events(after="now")] == []
        assert len([event async for event in handler.stream_events(after=3)]) == 3
        for after in ("x", -1, None, 1.5):
            with pytest.raises(ValueError, match=r"expected the `stream\.cursor`"):
                handler.stream_events(after=after)


async def test_internal_events_on_demand():
    """A reader that asks for them gets the engine's own events, from a connection of its own."""
    async with connected(app_of()) as client, client.run("essay", topic="locks") as handler:
        names = {
            type(event).__name__ async for event in handler.stream_events(expose_internal=True)
        }
        assert names == {"StepStateChanged", "RemoteEvent", "StopEvent"} or names == {
            "RemoteEvent",
            "StopEvent",
        }


# -- the server ----------------------------------------------------------------------------------------------


async def test_what_the_server_tells():
    """Health, workflows, schemas, runs: what a user of LlamaIndex's client finds there."""
    async with connected(app_of()) as client:
        assert await client.is_healthy()
        assert await client.list_workflows() == ("essay", "asking", "failing", "waiting", "late")
        assert (await client.schema("essay"))["start"]["title"] == "Topic"
        assert [schema["title"] for schema in await client.event_schemas("asking")] == [
            "Topic",
            "StopEvent",
            "Approval",
        ]
        assert {node["label"] for node in (await client.graph("essay"))["nodes"]} >= {"write"}
        assert (await client.graph("essay", format="sluicegate"))["workflow"] == "Essay"
        assert (await client.openapi())["openapi"].startswith("3.1")
        await client.run("essay", topic="locks")
        with pytest.raises(RunFailedError):
            await client.run("failing")
        [failed] = await client.list_runs(status="failed")
        assert (failed.workflow, failed.status) == ("failing", "failed")
        assert failed.error == "LookupError in the step fail"
        [done] = await client.list_runs(workflow=["essay"])
        assert done.result() == "LOCKS"
        assert done.started_at <= done.completed_at
        with pytest.raises(InvalidRequestError):
            await client.list_runs(status="sleeping")


async def test_requests_that_are_refused():
    """400, 404 and 401 are exceptions of their own, which are the built-in ones, too."""
    async with connected(app_of(authenticate=bearer_token("right")), token="right") as client:
        with pytest.raises(InvalidRequestError, match="lacks 'topic'") as caught:
            await client.run("essay")
        assert caught.value.status == 400
        assert isinstance(caught.value, TypeError)
        with pytest.raises(InvalidRequestError, match=r"Topic\.times is 'x'") as caught:
            async with client.run("essay", topic="a", times="x"):
                raise AssertionError
        assert caught.value.field == "start_event.times"
        with pytest.raises(InvalidRequestError):
            await client.submit("essay", topc="a")
        with pytest.raises(NotFoundError, match="there is no workflow 'esay'") as caught:
            await client.run("esay")
        assert isinstance(caught.value, LookupError)
        with pytest.raises(NotFoundError, match="there is no run 'x-y'"):
            await client.attach("x-y")
        for run_id in ("x/y", "..", "", 3):
            with pytest.raises(ValueError, match="a text without slashes"):
                client.attach(run_id)
        with pytest.raises(NotFoundError):
            await client.attach("none").stream_events().receive()
        async with client.network.client(token="wrong") as other:
            with pytest.raises(NotAllowedError, match="not authenticated"):
                await other.list_workflows()
            with pytest.raises(NotAllowedError):
                await other.run("essay", topic="a")
            assert await other.is_healthy()


async def test_a_full_server():
    """429 is repeated after what the server asks for, and raised in the end."""
    flows = workflows()
    async with connected(asgi_app(flows, max_runs=1, shutdown_grace=0), max_retries=0) as client:
        await client.submit("waiting")
        with pytest.raises(UnavailableError) as caught:
            await client.submit("essay", topic="a")
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        with pytest.raises(UnavailableError):
            await client.run("essay", topic="a")


async def test_values_that_json_cannot_hold():
    """They are refused before anything is sent."""
    async with connected(app_of()) as client:
        with pytest.raises(TypeError, match="JSON cannot hold"):
            client.run("essay", topic=object())
        with pytest.raises(TypeError, match="one or the other"):
            client.run("essay", Topic(topic="a"), topic="b")
        assert client.network.requests == []


async def test_something_else_answers():
    """An answer that is not of a server of sluicegate is shown, with what was expected."""

    async def app(scope, receive, send):
        status = 200 if scope["path"] != "/handlers/x" else 500
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"text/html")],
            }
        )
        await send({"type": "http.response.body", "body": b"<html>Hello"})

    async with connected(app) as client:
        for call in (
            client.list_workflows,
            client.attach("x").details,
            client.attach("x").stream_events().receive,
            client.run("essay").__aenter__,
        ):
            with pytest.raises(ClientError, match="<html>Hello"):
                await call()


# -- use -------------------------------------------------------------------------------------------------------


async def test_use_outside_of_the_block():
    """The client and its handlers say what was expected, and a reader is closed with the client."""
    async with network(app_of()) as net:
        client = net.client()
        with pytest.raises(WorkflowRuntimeError, match="async with Client"):
            client.run("essay")
        async with client:
            stream = (await client.submit("waiting")).stream_events()
            await stream.receive()
            handler = client.attach("x")
            with pytest.raises(WorkflowRuntimeError, match="is open"):
                await client.__aenter__()
        with pytest.raises(trio.ClosedResourceError):  # under asyncio, it is AnyIO's as well
            await stream.receive()
        with pytest.raises(WorkflowRuntimeError, match="not open"):
            await handler.details()
        assert net.open == 0


async def test_an_unstarted_run():
    """It has no stream; it can be refused; dropped, it warns."""
    async with connected(app_of()) as client:
        handler = client.run("essay", topic="a")
        assert await handler.status() == "unstarted"
        with pytest.raises(WorkflowRuntimeError, match=r"client\.submit"):
            handler.stream_events()
        with pytest.raises(WorkflowRuntimeError, match=r"client\.submit"):
            await handler.questions()
        await handler.cancel("never mind")
        with pytest.raises(WorkflowCancelledError, match="never mind"):
            await handler
        with pytest.raises(WorkflowRuntimeError, match="started before"):
            async with handler:
                pass
        handler = client.run("essay", topic="a")
        with pytest.warns(RuntimeWarning, match="in place"):
            del handler
        assert client.network.requests == []


async def test_names_of_the_other_client():
    """An attribute that LlamaIndex's client has names what is in its place."""
    async with connected(app_of()) as client:
        with pytest.raises(AttributeError, match=r"expected `await client.submit\(name, ...\)`"):
            client.run_workflow_nowait  # noqa: B018
        with pytest.raises(AttributeError, match=r"`handler.run_id`"):
            client.attach("x").handler_id  # noqa: B018
        assert "secret" not in repr(Client("http://me:secret@localhost/flows", token="secret"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "localhost:8000"}, "expected a URL"),
        ({"url": 1}, "expected a URL"),
        ({"token": "x\n"}, "expected the server's token"),
        ({"timeout": 0}, "timeout=0"),
        ({"idle_timeout": -1}, "idle_timeout=-1"),
        ({"reconnect_for": None}, "reconnect_for=None"),
        ({"max_retries": 1.5}, "max_retries=1.5"),
        ({"workflows": [Essay]}, r'workflows={"essay": Essay}'),
        ({"workflows": {"essay": 3}}, "expected workflows or their classes"),
        ({"events": [3]}, "expected classes of events"),
    ],
)
async def test_options_are_checked(options, text):
    """Each with what was given, and what was expected."""
    with pytest.raises((ValueError, TypeError)) as caught:
        Client(**{"url": "http://localhost", **options})
    assert text in str(caught.value)
