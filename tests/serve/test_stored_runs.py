"""Runs in a store: they outlive the server, and the next one continues them."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from sluicegate.durable import MemoryStore, open_run_store
from sluicegate.serve import asgi_app
from tests.helpers import on_each_backend, run_virtually
from tests.serve.driver import blocks, client_of
from tests.serve.flows import Asking, Essay, Failing, Progress, Sleeping, Waiting


ANSWER = {"event": {"type": "Approval", "value": {"yes": True}}}


@asynccontextmanager
async def server(journals, **options):
    """A server with a store, in a life of its own; give its client and its application."""
    runs = open_run_store(journals.open(), release_idle=options.pop("release_idle", 60.0))
    app = asgi_app(
        {
            "essay": Essay(stream="durable", serializable=[Progress]),
            "asking": Asking(),
            "failing": Failing(),
            "waiting": Waiting(),
        },
        runs,
        **{"shutdown_grace": 0.0, **options},
    )
    async with client_of(app) as client:
        yield client, app


async def begin(client, name="essay", headers=None, **body):
    response = await client.post(f"/workflows/{name}/run-nowait", body, headers=headers)
    assert response.status == 200, response.text
    return response.json["handler_id"]


async def until(check):
    """Wait until a coroutine function returns something true."""
    with anyio.fail_after(5):
        while not (found := await check()):
            await anyio.sleep(0.001)
    return found


@pytest.mark.anyio
async def test_run_of_a_request_is_stored_and_streamed():
    """With a store the routes are the same, and cursors are those of the store."""
    async with server(MemoryStore()) as (client, _):
        response = await client.post("/workflows/essay/run", {"kwargs": {"topic": "a"}})
        assert response.json["result"]["value"] == {"result": "A"}
        stream = await client.post("/workflows/essay/run?format=sse", {"kwargs": {"topic": "a"}})
        assert [name for _, name, _ in blocks(stream.text)] == ["Progress", "StopEvent"]


@pytest.mark.anyio
async def test_run_is_there_after_a_restart_with_its_result_and_events():
    """The next server serves what the store has, and knows the cursors of the one before."""
    journals = MemoryStore()
    async with server(journals) as (client, _):
        run_id = await begin(client, start_event={"topic": "a", "times": 3})
        first = await client.get(f"/events/{run_id}")
    found = blocks(first.text)
    assert [name for _, name, _ in found] == ["Progress"] * 3 + ["StopEvent"]
    async with server(journals) as (client, _):
        whole = blocks((await client.get(f"/events/{run_id}")).text)
        assert [data for _, _, data in whole] == [data for _, _, data in found]
        again = await client.get(f"/events/{run_id}?after_sequence={found[1][0]}")
        assert [data for _, _, data in blocks(again.text)] == [data for _, _, data in found[2:]]
        for cursor in (found[-1][0], whole[-1][0], "now"):
            over = await client.get(f"/events/{run_id}?after_sequence={cursor}")
            assert over.status == 204
        data = (await client.get(f"/results/{run_id}")).json
        assert (data["status"], data["result"]["value"]) == ("completed", {"result": "A"})
        (listed,) = (await client.get("/handlers?status=completed")).json["handlers"]
        assert listed["handler_id"] == run_id


@pytest.mark.anyio
async def test_waiting_run_is_parked_and_continues_at_the_next_server():
    """A server that stops leaves it in the store: the stream ends without a terminal event."""
    journals = MemoryStore()
    async with server(journals) as (client, app):
        run_id = await begin(client, "asking", start_event={"topic": "go on?"})
        stream = client.open("GET", f"/events/{run_id}")
        await stream.response.until("Question")
        assert await app.begin_shutdown()
        await stream.ended.wait()
        found = blocks(stream.response.text)
        assert [name for _, name, _ in found] == ["Question", "ServerStopping"]
        cursor = found[0][0]
    async with server(journals) as (client, _):
        (question,) = (await client.get("/questions")).json["questions"]
        assert (question["handler_id"], question["answer"]["type"]) == (run_id, "Approval")
        stream = client.open("GET", f"/events/{run_id}", headers={"last-event-id": cursor})
        sent = await client.post(f"/events/{run_id}", {**ANSWER, "question": question["id"]})
        assert sent.json["status"] == "sent"
        await stream.ended.wait()
        assert [name for _, name, _ in blocks(stream.response.text)] == ["StopEvent"]


@pytest.mark.anyio
async def test_first_look_at_a_run_after_a_restart_knows_its_questions():
    """A run that another server has left is loaded before it is shown, at a server that follows it, too."""
    journals = MemoryStore()
    async with server(journals) as (client, _):
        run_id = await begin(client, "asking", start_event={"topic": "go on?"})
        await until(lambda: has_question(client, run_id))
    for path, key in (("/questions", "questions"), ("", "questions")):
        async with server(journals) as (client, _):
            found = (await client.get(f"/handlers/{run_id}{path}")).json[key]
            assert found, path
    async with server(journals) as (one, _), server(journals) as (two, _):
        assert await has_question(one, run_id)
        assert await has_question(two, run_id)
        assert (await two.get(f"/handlers/{run_id}")).json["idle"]


@pytest.mark.anyio
async def test_answer_wakes_a_run_that_has_left_the_memory_and_its_readers_follow():
    """A reader that was there before sees the live events of the run's next life here."""
    async with server(MemoryStore(), release_idle=0.0) as (client, _):
        run_id = await begin(client, "asking", start_event={"topic": "go on?"})
        stream = client.open("GET", f"/events/{run_id}")
        await stream.response.until("Question")

        async def is_parked():
            return (await client.get(f"/handlers/{run_id}")).json["idle"]

        await until(is_parked)
        assert (await client.get(f"/handlers/{run_id}/state")).json == {"state": {}}
        sent = await client.post(f"/events/{run_id}", ANSWER)
        assert sent.status == 200, sent.text
        await stream.ended.wait()
        assert [name for _, name, _ in blocks(stream.response.text)] == ["Question", "StopEvent"]


@on_each_backend
def test_run_that_rests_leaves_the_process_until_it_is_asked_for(backend):
    """Not while a request is about it. Its answer, and its timer, bring it back."""

    async def main():
        wall = anyio.current_time
        runs = open_run_store(MemoryStore(clock=wall).open(), release_idle=1.0, wall=wall)
        app = asgi_app({"asking": Asking(), "sleeping": Sleeping()}, runs)
        async with client_of(app) as client:
            run_id = await begin(client, "asking", start_event={"topic": "?"})
            sleeping = await begin(client, "sleeping")
            stream = client.open("GET", f"/events/{run_id}")
            await stream.response.until("Question")
            await anyio.sleep(100)
            assert repr(app) == "<WorkflowApp of asking, sleeping: open, 1 runs, 1 streams>"
            stream.hang_up()
            await anyio.sleep(100)
            assert repr(app) == "<WorkflowApp of asking, sleeping: open, 0 runs, 0 streams>"
            assert await has_question(client, run_id)
            await anyio.sleep(100)
            assert (await client.post(f"/events/{run_id}", ANSWER)).json["status"] == "sent"
            await anyio.sleep(1)
            assert (await client.get(f"/results/{run_id}")).json["status"] == "completed"
            await anyio.sleep(3600)
            assert (await client.get(f"/results/{sleeping}")).json["status"] == "completed"

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_interrupted_run_is_continued_by_the_next_server():
    """A grace that is too short interrupts the step, which begins again elsewhere."""
    journals = MemoryStore()
    async with server(journals) as (client, app):
        workflow = app.workflows["waiting"]
        run_id = await begin(client, "waiting")
        await workflow.began.wait()
        assert not await app.begin_shutdown(0.0)
        assert workflow.seen == ["cancelled", "cleaned up"]
    async with server(journals) as (client, app):
        workflow = app.workflows["waiting"]
        await workflow.began.wait()
        stream = client.open("GET", f"/events/{run_id}")
        await stream.response.until("begun")
        workflow.go_on.set()
        await stream.ended.wait()
        data = (await client.get(f"/handlers/{run_id}")).json
        assert data["result"]["value"] == {"result": "done"}


@pytest.mark.anyio
async def test_request_whose_server_stops_is_told_where_the_result_will_be():
    """Its run is not cancelled, and the answer is a 503 that names the path."""
    journals = MemoryStore()
    async with server(journals) as (client, app):
        request = client.open("POST", "/workflows/waiting/run", {})
        await app.workflows["waiting"].began.wait()
        await app.begin_shutdown(0.0)
        await request.ended.wait()
        assert request.response.status == 503
        run_id = request.response.headers["x-run-id"]
        assert f"/results/{run_id}" in request.response.json["detail"]
    async with server(journals) as (client, app):
        app.workflows["waiting"].go_on.set()
        stream = client.open("GET", f"/events/{run_id}")
        await stream.ended.wait()
        assert blocks(stream.response.text)[-1][1] == "StopEvent"


@pytest.mark.anyio
async def test_hang_up_cancels_the_run_in_the_store():
    """A run of a request ends with its client, also in the store."""
    journals = MemoryStore()
    async with server(journals) as (client, app):
        request = client.open("POST", "/workflows/waiting/run", {})
        await app.workflows["waiting"].began.wait()
        request.hang_up()
        await request.ended.wait()
    async with server(journals) as (client, _):
        (data,) = (await client.get("/handlers")).json["handlers"]
        assert data["status"] == "cancelled"


@pytest.mark.anyio
async def test_idempotency_key_starts_a_run_once_across_restarts():
    """The key is in the store; with other data it is refused, and so is a handler_id."""
    journals = MemoryStore()
    headers = {"idempotency-key": "order 17"}
    body = {"start_event": {"topic": "a"}}
    async with server(journals) as (client, _):
        run_id = await begin(client, headers=headers, **body)
        assert await begin(client, headers=headers, **body) == run_id
        named = await begin(client, handler_id="mine", **body)
    async with server(journals) as (client, _):
        response = await client.post("/workflows/essay/run-nowait", body, headers=headers)
        assert response.json["handler_id"] == run_id
        assert response.headers["idempotency-replayed"] == "true"
        assert await begin(client, handler_id="mine", **body) == named == "mine"
        other = {"start_event": {"topic": "b"}}
        refused = await client.post("/workflows/essay/run-nowait", other, headers=headers)
        assert refused.status == 409
        refused = await client.post("/workflows/essay/run", {**other, "handler_id": "mine"})
        assert refused.status == 409
        assert len((await client.get("/handlers")).json["handlers"]) == 2


@pytest.mark.anyio
async def test_fork_continues_a_copy():
    """The copy has the questions of the run; an answer to it does not concern the original."""
    async with server(MemoryStore()) as (client, _):
        run_id = await begin(client, "asking", start_event={"topic": "go on?"})
        stream = client.open("GET", f"/events/{run_id}")
        await stream.response.until("Question")
        snapshot = (await client.get(f"/handlers/{run_id}/snapshot")).json["snapshot"]
        assert snapshot["run_id"] == run_id
        copy = await client.post(f"/handlers/{run_id}/fork?new_id=copy")
        assert (copy.status, copy.json["handler_id"]) == (200, "copy")
        assert (await client.post(f"/handlers/{run_id}/fork?new_id=copy")).status == 409
        reading = client.open("GET", "/events/copy")
        await until(lambda: has_question(client, "copy"))
        await client.post("/events/copy", ANSWER)
        await reading.ended.wait()
        assert blocks(reading.response.text)[-1][2]["value"] == {"result": "published"}
        assert (await client.get(f"/handlers/{run_id}")).json["status"] == "running"


async def has_question(client, run_id):
    return (await client.get(f"/handlers/{run_id}/questions")).json["questions"]


@pytest.mark.anyio
async def test_purge_deletes_a_run_from_the_store():
    """It is cancelled first if it is under way."""
    journals = MemoryStore()
    async with server(journals) as (client, _):
        run_id = await begin(client, "asking", start_event={"topic": "a"})
        await until(lambda: has_question(client, run_id))
        purged = await client.post(f"/handlers/{run_id}/cancel?purge=true")
        assert purged.json == {"status": "deleted"}
        assert (await client.get(f"/handlers/{run_id}")).status == 404
    async with server(journals) as (client, _):
        assert (await client.get("/handlers")).json["handlers"] == []


@pytest.mark.anyio
async def test_list_of_stored_runs_comes_in_pages():
    """``next`` is the ``after`` of the page that follows."""
    async with server(MemoryStore()) as (client, _):
        ids = [await begin(client, start_event={"topic": str(n)}) for n in range(5)]
        pages, after = [], ""
        while after is not None:
            query = f"&after={after}" if after else ""
            page = (await client.get(f"/handlers?limit=2{query}")).json
            pages += [data["handler_id"] for data in page["handlers"]]
            after = page["next"]
        assert pages == ids[::-1]
        assert (await client.get("/handlers?after=none")).status == 400
        assert (await client.get("/handlers?limit=0")).status == 400


@pytest.mark.anyio
async def test_runs_of_two_servers_share_a_store():
    """A run of one is read, answered and listed at the other, which does not run it."""
    journals = MemoryStore()
    async with server(journals) as (one, _), server(journals) as (two, _):
        run_id = await begin(one, "asking", start_event={"topic": "a"})
        await until(lambda: has_question(one, run_id))
        await until(lambda: has_question(two, run_id))
        stream = two.open("GET", f"/events/{run_id}")
        await stream.response.until("Question")
        assert (await two.post(f"/events/{run_id}", ANSWER)).json["status"] == "sent"
        await stream.ended.wait()
        assert blocks(stream.response.text)[-1][2]["value"] == {"result": "published"}
        assert (await two.get(f"/results/{run_id}")).json["status"] == "completed"


@pytest.mark.anyio
async def test_run_of_a_request_runs_at_the_server_of_the_request():
    """Other servers of the store do not take it, so its live events reach the client."""
    journals = MemoryStore()
    async with server(journals) as (one, _), server(journals) as (_, _):
        for number in range(20):
            body = {"kwargs": {"flood": 3}}
            stream = await one.post("/workflows/waiting/run?format=sse", body)
            names = [name for _, name, _ in blocks(stream.text)]
            assert names == ["Progress"] * 4 + ["StopEvent"], number


@pytest.mark.anyio
async def test_two_servers_that_get_the_same_new_id_at_once():
    """One starts it, the other follows; with other data one of them is refused."""
    journals = MemoryStore()
    async with server(journals) as (one, _), server(journals) as (two, _):
        for other in ("a", "b"):
            requests = [
                client.open(
                    "POST",
                    "/workflows/essay/run-nowait",
                    {"start_event": {"topic": topic}, "handler_id": f"both-{other}"},
                )
                for client, topic in ((one, "a"), (two, other))
            ]
            for request in requests:
                await request.ended.wait()
            found = sorted(request.response.status for request in requests)
            assert found == ([200, 200] if other == "a" else [200, 409])
        assert len((await one.get("/handlers")).json["handlers"]) == 2
        assert (await one.get("/results/both-b")).status in (200, 202)


@pytest.mark.anyio
async def test_reader_of_a_run_that_this_server_takes_over_comes_back_for_its_live_events():
    """Its stream ends without a terminal event, and continues by its cursor."""
    journals = MemoryStore()
    async with server(journals) as (two, app):
        async with server(journals) as (one, first):
            run_id = await begin(one, "waiting")
            await first.workflows["waiting"].began.wait()
            stream = two.open("GET", f"/events/{run_id}")
            await until(lambda: is_read(app))
            await first.begin_shutdown(0.0)
        await stream.ended.wait()
        assert "StopEvent" not in stream.response.text
        assert "0 streams" in repr(app)
        again = two.open("GET", f"/events/{run_id}")
        await again.response.until("begun")
        app.workflows["waiting"].go_on.set()
        await again.ended.wait()
        assert blocks(again.response.text)[-1][2]["value"] == {"result": "done"}


async def is_read(app):
    return "1 streams" in repr(app)


def test_workflows_of_one_class_need_different_names_in_a_store():
    """Stored runs find their workflow by the name of its class."""
    with pytest.raises(ValueError, match="class Essay"):
        asgi_app({"a": Essay(), "b": Essay()}, "memory:")
    with pytest.raises(TypeError, match="run_store=3"):
        asgi_app({"a": Essay()}, 3)
