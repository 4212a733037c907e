"""The client, cancelled at each of its awaits: nothing is left, no run goes on without an owner, no event is lost.

Below the client run httpx, its pool of connections and h11, over a network in memory. Only the client's side
is cancelled: the server is beside it, in the same event loop.
"""

from __future__ import annotations

import anyio
import pytest

from sluicegate.client import Client, _client
from sluicegate.serve import asgi_app
from sluicegate.testing import sweep
from tests.client.in_memory import MemoryNetwork
from tests.serve.flows import Approval, Asking, Essay, Waiting


BACKENDS = ("trio", "asyncio")


def make_app():
    return asgi_app(
        {"essay": Essay(), "asking": Asking(), "waiting": Waiting()},
        shutdown_grace=0,
        heartbeat=None,
    )


async def own(client):
    """Own a run in a block, and read it."""
    async with client.run("essay", run_id="a", topic="x", times=3) as handler:
        found = [event async for event in handler.stream_events()]
        assert len(found) == 4
        assert await handler == "X"


async def own_waiting(client):
    """Own a run that does not end by itself, and leave it."""
    async with client.run("waiting", run_id="a") as handler:
        await handler.stream_events().receive()
        await handler.cancel("enough")


async def in_place(client):
    """Run in place."""
    assert await client.run("essay", run_id="a", topic="x") == "X"


async def of_the_server(client):
    """Submit a run, read it, answer it, await it."""
    handler = await client.submit("asking", run_id="a", topic="x")
    async with handler.stream_events() as stream:
        await stream.receive()
    [question] = await handler.questions()
    await handler.send_event(Approval(yes=True), question=question.id, id="b")
    assert await handler == "published"


async def fails(client):
    """Leave the block of a run by an exception."""
    with pytest.raises(ZeroDivisionError):
        async with client.run("waiting", run_id="a") as handler:
            await handler.stream_events().receive()
            raise ZeroDivisionError


USES = [own, own_waiting, in_place, of_the_server, fails]
of_each_use = pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)


def scenario_of(use):
    """Return a scenario: the client's side is the target, and what it leaves is looked at beside the server."""

    async def scenario(trial):
        app = make_app()
        async with anyio.create_task_group() as nursery, app.lifespan():
            net = MemoryNetwork(app, nursery)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_client, "make_http_client", net.http)
                with trial.target("client"):
                    async with Client("http://localhost") as client:
                        await use(client)
            await anyio.sleep(1)  # what hangs up is noticed
            assert net.open == 0, f"{net.open} connections are open"
            owned = [run.run_id for run in app._runs.active if run.owner == "request"]
            assert not owned, f"{owned} goes on without its owner"
            nursery.cancel_scope.cancel()

    return scenario


@pytest.mark.slow
@of_each_use
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_client_can_be_cancelled_anywhere(backend, use, at_most):
    """P2, P8: by a scope and natively; no connection, task or generator is left, and no run without its owner."""
    # As in a local block, the exception of the body wins over a cancellation that comes when it is on its way out.
    allow = ["swallowed"] if use is fails else []
    report = sweep(
        scenario_of(use), backends=backend, target="client", allow=allow, limit=at_most(12)
    )
    assert report.positions >= 10
