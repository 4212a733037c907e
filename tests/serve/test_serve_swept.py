"""The server under the sweep: cancelled at every moment, no run, stream or reader is left behind."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from sluicegate import Context, StartEvent, StopEvent, Workflow, step
from sluicegate.durable import MemoryStore, open_run_store
from sluicegate.serve import asgi_app
from sluicegate.testing import sweep
from tests.helpers import BACKENDS
from tests.serve.driver import client_of
from tests.serve.flows import Asking, Progress


pytestmark = pytest.mark.slow


class Working(Workflow[str]):
    """Sends, works for a while, and cleans up with a shielded await; counts those under way."""

    active = 0

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.active += 1
        try:
            await ctx.stream.send(Progress(message="a"))
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.active -= 1
        return StopEvent(result="done")


def of_app(trial, run_store=None):
    """Make the application of a trial, and keep it for the check."""
    trial.state.working = Working()
    workflows = {"working": trial.state.working, "asking": Asking()}
    trial.state.app = asgi_app(workflows, run_store, shutdown_grace=3.0)
    return trial.state.app


def check(outcome):
    """Nothing is under way, and nothing is sent."""
    app = outcome.state.app
    assert outcome.state.working.active == 0
    assert "0 runs, 0 streams" in repr(app)


RUNS = ("run", "run?format=sse", "run?on_disconnect=continue")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", RUNS)
def test_request_that_the_server_cancels(path, backend, at_most):
    """Whenever a server cancels the task of a request, its run has unwound when that has ended."""

    async def scenario(trial):
        app = of_app(trial)
        async with client_of(app, around=lambda: trial.target("request")) as client:
            connection = client.open("POST", f"/workflows/working/{path}", {})
            await connection.ended.wait()
            if "continue" not in path:
                assert trial.state.working.active == 0
            assert not app._streams
            await anyio.sleep(2)

    report = sweep(scenario, backends=backend, target="request", check=check, limit=at_most(15))

    assert report.runs >= 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_server_that_is_cancelled_as_a_whole(backend, at_most):
    """With a run of each owner, a reader, and an answer on its way."""

    async def scenario(trial):
        async with client_of(of_app(trial)) as client:
            owned = client.open("POST", "/workflows/working/run", {})
            body = {"start_event": {"topic": "?"}}
            response = await client.post("/workflows/asking/run-nowait", body)
            run_id = response.json["handler_id"]
            stream = client.open("GET", f"/events/{run_id}")
            await stream.response.until("Question")
            answer = {"event": {"type": "Approval", "value": {"yes": True}}}
            assert (await client.post(f"/events/{run_id}", answer)).status == 200
            await stream.ended.wait()
            await owned.ended.wait()

    report = sweep(scenario, backends=backend, check=check, limit=at_most(15))

    assert report.runs >= 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_shutdown_that_is_cancelled(backend, at_most):
    """What it has begun is completed by the end of the lifespan."""

    async def scenario(trial):
        app = of_app(trial)
        async with client_of(app) as client:
            stream = client.open("POST", "/workflows/working/run?format=sse", {})
            await stream.response.until("Progress")
            with trial.target("shutdown"):
                await app.begin_shutdown(0.5)

    report = sweep(scenario, backends=backend, target="shutdown", check=check, limit=at_most(12))

    assert report.runs >= 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_stored_run_whose_server_is_cancelled_is_continued(backend, at_most):
    """Whenever it is: the run is not in the store, or the next server answers and ends it."""
    body = {"start_event": {"topic": "?"}, "handler_id": "mine"}
    answer = {"event": {"type": "Approval", "value": {"yes": True}}, "id": "1"}

    async def serve(app):
        async with client_of(app) as client:
            response = await client.post("/workflows/asking/run-nowait", body)
            assert response.status == 200
            stream = client.open("GET", "/events/mine")
            while not (await client.get("/handlers/mine")).json["questions"]:
                if (await client.get("/handlers/mine")).json["status"] == "completed":
                    return
                await anyio.sleep(0.01)
            sent = await client.post("/events/mine", answer)
            assert sent.json["status"] == "sent"
            await stream.ended.wait()

    async def scenario(trial):
        trial.state.journals = MemoryStore()
        await serve(of_app(trial, open_run_store(trial.state.journals.open())))

    async def check_again(outcome):
        check(outcome)
        app = asgi_app({"asking": Asking()}, open_run_store(outcome.state.journals.open()))
        await serve(app)
        runs = open_run_store(outcome.state.journals.open())
        async with runs:
            (row,) = await runs.list()
            assert (row.status, row.owner, row.messages) == ("completed", None, 0)

    report = sweep(scenario, backends=backend, check=check_again, limit=at_most(10))

    assert report.runs >= 10
