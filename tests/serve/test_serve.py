"""Runs over HTTP: started, streamed, answered, cancelled, and owned by a request or by the server."""

from __future__ import annotations

import json
import logging

import anyio
import pytest

from sluicegate.serve import asgi_app
from tests.serve.driver import blocks, client_of
from tests.serve.flows import Asking, Essay, Failing, Waiting


pytestmark = pytest.mark.anyio


def app_of(**options):
    return asgi_app(
        {"essay": Essay(), "asking": Asking(), "failing": Failing(), "waiting": Waiting()},
        **options,
    )


# -- what there is -----------------------------------------------------------------------------------


async def test_workflows_are_listed_with_their_schemas():
    """The names, the schemas of the start and the stop event, and those of all events."""
    async with client_of(app_of()) as client:
        assert (await client.get("/health")).json == {"status": "healthy"}
        listed = await client.get("/workflows")
        assert listed.json == {"workflows": ["essay", "asking", "failing", "waiting"]}
        assert listed.headers["content-type"] == "application/json"

        schema = (await client.get("/workflows/essay/schema")).json
        assert schema["start"]["title"] == "Topic"
        assert schema["start"]["required"] == ["topic"]
        assert schema["stop"]["title"] == "StopEvent"
        events = (await client.get("/workflows/asking/events")).json["events"]
        assert [event["title"] for event in events] == ["Topic", "StopEvent", "Approval"]


# -- a run that the request owns -----------------------------------------------------------------------


async def test_run_answers_with_the_result():
    """POST /run waits for the run, and answers with its data: the result in an envelope."""
    async with client_of(app_of()) as client:
        response = await client.post("/workflows/essay/run", {"start_event": {"topic": "locks"}})

        assert response.status == 200
        data = response.json
        assert response.headers["x-run-id"] == data["handler_id"] == data["run_id"]
        assert data["status"] == "completed"
        assert data["workflow_name"] == "essay"
        assert data["result"] == {
            "value": {"result": "LOCKS"},
            "type": "StopEvent",
            "types": None,
            "qualified_name": "sluicegate._events.StopEvent",
        }
        assert data["error"] is None
        assert data["completed_at"] is not None


@pytest.mark.parametrize(
    "start",
    [
        {"start_event": {"topic": "a"}},
        {"start_event": {"type": "Topic", "value": {"topic": "a"}, "qualified_name": None}},
        {"start_event": {"type": "StartEvent", "value": {"topic": "a"}}, "context": {}},
        {"start_event": '{"topic": "a"}'},
        {"kwargs": {"topic": "a"}},
    ],
)
async def test_start_event_is_taken_in_every_form_of_the_protocol(start):
    """Its fields alone, in an envelope, as a text, or as kwargs."""
    async with client_of(app_of()) as client:
        assert (await client.post("/workflows/essay/run", start)).json["status"] == "completed"


async def test_run_answers_with_its_stream_of_server_sent_events():
    """With ``Accept: text/event-stream`` the answer is the stream, until the terminal event."""
    async with client_of(app_of()) as client:
        response = await client.post(
            "/workflows/essay/run",
            {"start_event": {"topic": "locks", "times": 2}},
            headers={"accept": "text/event-stream"},
        )

        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-run-id"]
        found = blocks(response.text)
        assert [(cursor, name) for cursor, name, _ in found] == [
            ("1", "Progress"),
            ("2", "Progress"),
            ("3", "StopEvent"),
        ]
        assert found[0][2] == {
            "value": {"message": "locks 0"},
            "type": "Progress",
            "types": None,
            "qualified_name": "tests.serve.flows.Progress",
        }


async def test_run_answers_with_lines_of_json():
    """With ``Accept: application/x-ndjson`` each line is an envelope with its cursor."""
    async with client_of(app_of()) as client:
        response = await client.post(
            "/workflows/essay/run",
            {"start_event": {"topic": "locks"}},
            headers={"accept": "application/x-ndjson, application/json;q=0.5"},
        )
        lines = [json.loads(line) for line in response.text.splitlines()]
        assert [(line["cursor"], line["type"]) for line in lines] == [
            ("1", "Progress"),
            ("2", "StopEvent"),
        ]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_hang_up_cancels_the_run_of_the_request(accept):
    """The step sees the cancellation, cleans up with shielded awaits, and nothing is left."""
    app = app_of()
    workflow = app.workflows["waiting"]
    async with client_of(app) as client:
        connection = client.open("POST", "/workflows/waiting/run", {}, headers={"accept": accept})
        await workflow.began.wait()
        (run,) = (await client.get("/handlers")).json["handlers"]
        assert run["status"] == "running"
        connection.hang_up()
        await connection.ended.wait()

        assert workflow.seen == ["cancelled", "cleaned up"]
        assert connection.error is None
        (run,) = (await client.get("/handlers")).json["handlers"]
        assert (run["status"], run["reason"]) == ("cancelled", "the client disconnected")


@pytest.mark.parametrize("by", ["option", "query"])
async def test_hang_up_does_not_concern_the_run_with_on_disconnect_continue(by):
    """The server owns the run then."""
    app = app_of(on_disconnect="continue") if by == "option" else app_of()
    workflow = app.workflows["waiting"]
    async with client_of(app) as client:
        query = "" if by == "option" else "?on_disconnect=continue"
        connection = client.open("POST", f"/workflows/waiting/run{query}", {})
        await workflow.began.wait()
        connection.hang_up()
        await connection.ended.wait()
        workflow.go_on.set()
        await workflow.over.wait()

        assert workflow.seen == ["cleaned up"]


async def test_failure_is_told_by_its_class_alone(caplog):
    """The text of an exception may be confidential: it is in the log, and in no response."""
    async with client_of(app_of()) as client:
        with caplog.at_level(logging.ERROR):
            response = await client.post("/workflows/failing/run", {})
            stream = await client.post("/workflows/failing/run?format=sse", {})
        assert response.status == 500
        assert response.json["status"] == "failed"
        assert response.json["error"] == "LookupError in the step fail"
        assert (response.json["exception"], response.json["step_name"]) == ("LookupError", "fail")
        run_id = response.json["run_id"]
        read = await client.get(f"/events/{run_id}")
        assert blocks(read.text)[-1][1] == "WorkflowFailedEvent"
        for each in (response, stream, read, await client.get("/handlers")):
            assert "hunter2" not in each.text
    assert [record.run_id for record in caplog.records][:1] == [run_id]


# -- a run that the server owns --------------------------------------------------------------------------


async def begin(client, name="essay", **body):
    response = await client.post(f"/workflows/{name}/run-nowait", body)
    assert response.status == 200, response.text
    return response.json["handler_id"]


async def test_run_nowait_answers_at_once_and_the_run_goes_on():
    """The run is there for its result, its events and its handler until it is forgotten."""
    app = app_of()
    workflow = app.workflows["waiting"]
    async with client_of(app) as client:
        run_id = await begin(client, "waiting")
        await workflow.began.wait()
        assert (await client.get(f"/results/{run_id}")).status == 202
        stream = client.open("GET", f"/events/{run_id}")
        await stream.response.until("begun")
        workflow.go_on.set()
        await stream.ended.wait()
        assert [name for _, name, _ in blocks(stream.response.text)] == ["Progress", "StopEvent"]
        result = await client.get(f"/results/{run_id}")
        assert (result.status, result.json["result"]["value"]) == (200, {"result": "done"})
        assert (await client.get(f"/handlers/{run_id}")).json == result.json


async def test_reader_that_hangs_up_does_not_concern_the_run():
    """Reading never cancels a run, whoever owns it."""
    app = app_of()
    workflow = app.workflows["waiting"]
    async with client_of(app) as client:
        run_id = await begin(client, "waiting")
        stream = client.open("GET", f"/events/{run_id}")
        await stream.response.until("begun")
        stream.hang_up()
        await stream.ended.wait()
        assert (await client.get(f"/handlers/{run_id}")).json["status"] == "running"
        workflow.go_on.set()
        await workflow.over.wait()
        assert workflow.seen == ["cleaned up"]


async def test_reader_continues_behind_its_cursor():
    """``Last-Event-ID`` wins over ``after_sequence``; -1 is the oldest event, now the end."""
    async with client_of(app_of()) as client:
        run_id = await begin(client, start_event={"topic": "a", "times": 3})
        await (client.open("GET", f"/events/{run_id}")).ended.wait()

        async def cursors(query="", **headers):
            response = await client.get(f"/events/{run_id}{query}", headers=headers)
            return [cursor for cursor, _, _ in blocks(response.text)]

        assert await cursors() == await cursors("?after_sequence=-1") == ["1", "2", "3", "4"]
        assert await cursors("?after_sequence=2") == ["3", "4"]
        assert await cursors("?after_sequence=1", **{"last-event-id": "3"}) == ["4"]
        assert (await client.get(f"/events/{run_id}?after_sequence=now")).status == 204
        assert (await client.get(f"/events/{run_id}?after_sequence=4")).status == 204
        bad = await client.get(f"/events/{run_id}?after_sequence=soon")
        assert bad.status == 400
        assert "-1 is the oldest" in bad.json["detail"]


async def test_question_is_listed_and_answered_by_its_id():
    """It has the schema of its answer; an answer twice is refused, and once more by its id it is not."""
    async with client_of(app_of()) as client:
        run_id = await begin(client, "asking", start_event={"topic": "go on?"})
        stream = client.open("GET", f"/events/{run_id}?sse=false")
        await stream.response.until("go on?")
        (question,) = (await client.get(f"/handlers/{run_id}/questions")).json["questions"]
        assert (question["type"], question["fields"]) == ("Question", {"text": "go on?"})
        assert question["answer"]["type"] == "Approval"
        assert question["answer"]["schema"]["required"] == ["yes"]
        (listed,) = (await client.get("/questions")).json["questions"]
        assert listed == {"handler_id": run_id, "workflow_name": "asking", **question}
        data = (await client.get(f"/handlers/{run_id}")).json
        assert (data["status"], data["idle"], data["questions"]) == ("running", True, 1)

        bad = await client.post(
            f"/events/{run_id}",
            {"event": {"type": "Approval", "value": {"yes": "?"}}, "question": question["id"]},
        )
        assert (bad.status, bad.json["field"]) == (400, "event.yes")
        unknown = await client.post(f"/events/{run_id}", {"event": {"type": "No", "value": {}}})
        assert unknown.status == 400
        assert "Approval" in unknown.json["detail"]

        answer = {"event": {"yes": True}, "question": question["id"], "id": "once"}
        sent = await client.post(f"/events/{run_id}", answer)
        assert sent.json == {"status": "sent", "is_repeated": False}
        await stream.ended.wait()
        assert '"result":"published"' in stream.response.text
        assert (await client.post(f"/events/{run_id}", answer)).status == 409


async def test_cancel_waits_for_the_clean_up_and_keeps_the_reason():
    """A second cancel is refused, and ``purge=true`` forgets the run."""
    app = app_of()
    workflow = app.workflows["waiting"]
    async with client_of(app) as client:
        run_id = await begin(client, "waiting")
        await workflow.began.wait()
        response = await client.post(f"/handlers/{run_id}/cancel?reason=enough")
        assert response.json == {"status": "cancelled"}
        assert workflow.seen == ["cancelled", "cleaned up"]
        data = (await client.get(f"/handlers/{run_id}")).json
        assert (data["status"], data["reason"]) == ("cancelled", "enough")
        assert (await client.post(f"/handlers/{run_id}/cancel")).status == 409
        purged = await client.post(f"/handlers/{run_id}/cancel?purge=true")
        assert purged.json == {"status": "deleted"}
        assert (await client.get(f"/handlers/{run_id}")).status == 404


async def test_handlers_are_filtered():
    """By status and by the name of the workflow, each several times; a bad status is refused."""
    async with client_of(app_of()) as client:
        essay = await begin(client, start_event={"topic": "a"})
        await client.get(f"/events/{essay}")
        asking = await begin(client, "asking", start_event={"topic": "a"})

        async def ids(query):
            found = (await client.get(f"/handlers{query}")).json["handlers"]
            return {data["handler_id"] for data in found}

        assert await ids("") == {essay, asking}
        assert await ids("?status=running&status=failed") == {asking}
        assert await ids("?status=completed&workflow_name=essay") == {essay}
        assert await ids("?workflow_name=failing") == set()
        assert (await client.get("/handlers?status=done")).status == 400


async def test_without_the_lifespan_only_requests_own_runs():
    """Mounted without it, a run for the server is refused with the line that is missing."""
    async with client_of(app_of(), lifespan=False) as client:
        response = await client.post("/workflows/essay/run-nowait", {"kwargs": {"topic": "a"}})
        assert response.status == 503
        assert "lifespan=app.lifespan" in response.json["detail"]
        response = await client.post("/workflows/essay/run", {"kwargs": {"topic": "a"}})
        assert response.json["status"] == "completed"


async def test_end_of_the_lifespan_cancels_the_runs_and_ends_the_streams():
    """Everything has unwound when the block is left, streams of stuck clients too."""
    app = app_of(shutdown_grace=0.0)
    workflow = app.workflows["waiting"]
    async with anyio.create_task_group() as nursery:
        async with client_of(app) as client:
            run_id = await begin(client, "waiting")
            stream = client.open("GET", f"/events/{run_id}")
            await stream.response.until("begun")
            await app.begin_shutdown()
            assert (await client.get("/health")).status == 503
            assert (await client.post("/workflows/essay/run", {})).status in (400, 503)
            await stream.ended.wait()
            names = [name for _, name, _ in blocks(stream.response.text)]
            assert names == ["Progress", "ServerStopping", "WorkflowCancelledEvent"]
        assert workflow.seen == ["cancelled", "cleaned up"]
        nursery.cancel_scope.cancel()
