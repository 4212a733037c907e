"""Readers of runs: slow, stuck and many ones; heartbeats; and the end of the server."""

from __future__ import annotations

import gc
import tracemalloc

import anyio
import pytest

from sluicegate.serve import asgi_app
from tests.helpers import on_each_backend, run_virtually
from tests.serve.driver import blocks, client_of
from tests.serve.flows import Asking, Essay, Waiting


anyio_test = pytest.mark.anyio


def app_of(history=10_000, **options):
    workflows = {
        "essay": Essay(),
        "asking": Asking(),
        "waiting": Waiting(stream_history=history, stream_buffer=4),
    }
    return asgi_app(workflows, **options)


async def begin(client, name="waiting", **fields):
    response = await client.post(f"/workflows/{name}/run-nowait", {"start_event": fields})
    return response.json["handler_id"]


@anyio_test
async def test_stuck_reader_holds_up_neither_the_run_nor_other_readers_and_is_told_what_it_missed():
    """The step sends everything; when the reader goes on, it gets a gap, the rest, and the end."""
    app = app_of(history=8, shutdown_grace=0)
    async with client_of(app) as client:
        run_id = await begin(client)
        stuck = client.open("GET", f"/events/{run_id}")
        await stuck.response.until("begun")
        stuck.stall()
        other = await begin(client, flood=100)
        watching = client.open("GET", f"/events/{other}")
        slow = client.open("GET", f"/events/{other}")
        slow.stall()
        with anyio.fail_after(5):
            await watching.ended.wait()
            assert app.workflows["waiting"].sent == 100
        slow.reads.set()
        await slow.ended.wait()
        found = blocks(slow.response.text)
        (gap,) = [data for _, name, data in found if name == "StreamGap"]
        events = [cursor for cursor, name, _ in found if name != "StreamGap"]
        assert len(events) + gap["value"]["missed"] == 102
        assert found[-1][1] == "StopEvent"
        assert gap["types"] == ["InternalEvent"]
        assert [cursor for cursor, name, _ in found if name == "StreamGap"] == [None]
        stuck.reads.set()


@anyio_test
async def test_late_reader_is_told_what_the_history_has_dropped():
    """From the beginning, or behind a cursor that is too old."""
    async with client_of(app_of(history=8)) as client:
        run_id = await begin(client, flood=50)
        await client.get(f"/events/{run_id}?after_sequence=now")
        lines = (await client.get(f"/events/{run_id}?sse=false&after_sequence=3")).text.splitlines()
        assert '"missed":41' in lines[0]
        assert '"cursor":null' in lines[0]
        assert len(lines) == 9


@anyio_test
async def test_stuck_client_of_its_own_run_does_not_hold_up_the_run():
    """It ends, and is over for others, while its own client takes nothing."""
    app = app_of()
    async with client_of(app) as client:
        owner = client.open(
            "POST",
            "/workflows/waiting/run?format=sse",
            {"start_event": {"flood": 50}},
        )
        await app.workflows["waiting"].began.wait()
        owner.stall()
        with anyio.fail_after(5):
            await app.workflows["waiting"].over.wait()
            while (await client.get("/handlers?status=running")).json["handlers"]:
                await anyio.sleep(0.001)
        assert not owner.response.is_complete
        owner.reads.set()
        await owner.ended.wait()
        assert blocks(owner.response.text)[-1][1] == "StopEvent"


@pytest.mark.slow
@anyio_test
async def test_a_thousand_stuck_readers_do_not_grow_memory():
    """What 5,000 further events cost does not depend on who does not read them."""
    app = app_of(history=100)
    workflow = app.workflows["waiting"]
    async with client_of(app) as client:
        run_id = await begin(client)
        await workflow.began.wait()
        readers = [client.open("GET", f"/events/{run_id}") for _ in range(1_000)]
        for reader in readers:
            await reader.response.until("begun")
            reader.stall()
        other = [await begin(client, flood=200, size=1_000)]
        await client.get(f"/events/{other[0]}")
        gc.collect()
        tracemalloc.start()
        try:
            more = await begin(client, flood=5_000, size=1_000)
            stalled = [client.open("GET", f"/events/{more}") for _ in range(100)]
            for reader in stalled:
                reader.stall()
            await client.get(f"/events/{more}")
            grown = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        # The history of 100 events, the recording, and 100 requests: far below the 5 MB sent to each.
        assert workflow.sent >= 5_000
        assert grown < 12_000_000
        for reader in (*readers, *stalled):
            reader.hang_up()
            reader.reads.set()
        for reader in (*readers, *stalled):
            await reader.ended.wait()
        await client.post(f"/handlers/{run_id}/cancel")


@on_each_backend
def test_heartbeats_are_sent_while_nothing_happens(backend):
    """After each silence of that length, on the clock of the event loop; an empty line in NDJSON."""

    async def main():
        async with client_of(app_of(heartbeat=15.0)) as client:
            run_id = await begin(client)
            sse = client.open("GET", f"/events/{run_id}")
            lines = client.open("GET", f"/events/{run_id}?sse=false")
            await sse.response.until("begun")
            await anyio.sleep(46)
            assert sse.response.text.count(": heartbeat\n\n") == 3
            assert lines.response.text.endswith("}\n\n\n\n")
            await client.post(f"/handlers/{run_id}/cancel")
            await sse.ended.wait()
            assert blocks(sse.response.text)[-1][1] == "WorkflowCancelledEvent"
        async with client_of(app_of(heartbeat=None)) as client:
            run_id = await begin(client)
            sse = client.open("GET", f"/events/{run_id}")
            await sse.response.until("begun")
            await anyio.sleep(10_000)
            assert "heartbeat" not in sse.response.text

    run_virtually(backend, main)


@anyio_test
async def test_internal_events_are_shown_on_demand():
    """``include_internal=true`` shows the engine's own events; the module of a class can be hidden."""
    async with client_of(app_of()) as client:
        body = {"start_event": {"topic": "a"}}
        run = "/workflows/essay/run?format=sse"
        shown = await client.post(f"{run}&include_internal=true", body)
        plain = await client.post(f"{run}&include_qualified_name=false", body)
        names = [name for _, name, _ in blocks(shown.text)]
        assert names == ["StepStateChanged", "Progress", "StepStateChanged", "StopEvent"]
        assert [name for _, name, _ in blocks(plain.text)] == ["Progress", "StopEvent"]
        assert all(data["qualified_name"] is None for _, _, data in blocks(plain.text))


# -- the end of the server -------------------------------------------------------------------------------


@on_each_backend
def test_shutdown_lets_runs_end_within_the_grace(backend):
    """Streams are told at once and end with their runs; a run that waits for a person is not waited for."""

    async def main():
        app = app_of(shutdown_grace=30.0)
        workflow = app.workflows["waiting"]
        async with client_of(app) as client:
            run_id = await begin(client)
            asking = await begin(client, "asking", topic="?")
            stream = client.open("GET", f"/events/{run_id}")
            await stream.response.until("begun")
            began = anyio.current_time()
            drained = []

            async def stop():
                drained.append(await app.begin_shutdown())

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(stop)
                await stream.response.until("ServerStopping")
                assert (await client.get("/health")).status == 503
                assert (await client.get(f"/handlers/{run_id}")).json["status"] == "running"
                for path in ("run", "run-nowait"):
                    body = {"start_event": {"topic": "a"}}
                    response = await client.post(f"/workflows/essay/{path}", body)
                    assert (response.status, response.headers["retry-after"]) == (503, "5")
                await anyio.sleep(20)
                workflow.go_on.set()
            assert drained == [False]  # a run with an open question was interrupted
            assert workflow.seen == ["cleaned up"]
            assert anyio.current_time() - began < 21
            assert blocks(stream.response.text)[-1][2]["value"] == {"result": "done"}
            data = (await client.get(f"/handlers/{asking}")).json
            assert (data["status"], data["reason"]) == ("cancelled", "the server stops")

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("is_stuck", [False, True])
def test_shutdown_cancels_what_is_left_when_the_grace_is_over(backend, is_stuck):
    """And ends the streams, of stuck clients too."""

    async def main():
        app = app_of()
        workflow = app.workflows["waiting"]
        async with client_of(app) as client:
            run_id = await begin(client)
            owned = client.open("POST", "/workflows/waiting/run", {})
            stream = client.open("GET", f"/events/{run_id}")
            await stream.response.until("begun")
            if is_stuck:
                stream.stall()
            began = anyio.current_time()
            assert not await app.begin_shutdown(5.0)
            assert 5 <= anyio.current_time() - began < 7
            await stream.ended.wait()
            await owned.ended.wait()
            assert owned.response.json["status"] == "cancelled"
            assert sorted(workflow.seen) == ["cancelled"] * 2 + ["cleaned up"] * 2
            assert stream.response.is_complete is not is_stuck

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_disconnect_after_shutdown_has_begun_is_no_hang_up(backend, accept):
    """A server that closes its connections does not cancel the runs, which end within the grace."""

    async def main():
        app = app_of()
        workflow = app.workflows["waiting"]
        async with client_of(app) as client:
            owned = client.open("POST", "/workflows/waiting/run", {}, headers={"accept": accept})
            await workflow.began.wait()
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(app.begin_shutdown, 30.0)
                await anyio.sleep(1)
                owned.hang_up()
                await anyio.sleep(1)
                assert workflow.seen == []
                workflow.go_on.set()
            await owned.ended.wait()
            assert workflow.seen == ["cleaned up"]

    run_virtually(backend, main)


@anyio_test
async def test_lifespan_is_entered_once():
    """The application belongs to one life of a server."""
    app = app_of()
    async with client_of(app):
        pass
    with pytest.raises(RuntimeError, match="was entered before"):
        async with app.lifespan():
            pass


@anyio_test
async def test_lifespan_of_asgi_starts_and_stops_it():
    """A server's own lifespan messages open the workflows, and cancel what is left at the end."""
    app = app_of(shutdown_grace=0.0)
    send, messages = anyio.create_memory_object_stream(10)
    to_app, inbox = anyio.create_memory_object_stream(10)
    with send, messages, to_app, inbox:

        async def serve():
            await app({"type": "lifespan"}, inbox.receive, send.send)

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(serve)
            await to_app.send({"type": "lifespan.startup"})
            assert (await messages.receive())["type"] == "lifespan.startup.complete"
            async with client_of(app, lifespan=False) as client:
                await begin(client)
                await app.workflows["waiting"].began.wait()
            await to_app.send({"type": "lifespan.shutdown"})
            assert (await messages.receive())["type"] == "lifespan.shutdown.complete"
        assert app.workflows["waiting"].seen == ["cancelled", "cleaned up"]


@anyio_test
async def test_failing_lifespan_is_reported():
    """A store that cannot be opened fails the startup, with the reason."""
    app = asgi_app({"essay": Essay()}, "sqlite:////nowhere/at/all/runs.db")
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    with pytest.raises(Exception, match="nowhere"):
        await app({"type": "lifespan"}, receive, send)
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "nowhere" in sent[0]["message"]
