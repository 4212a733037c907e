"""The client over sockets: against Hypercorn on Trio and asyncio, and uvicorn, on the loopback."""

from __future__ import annotations

import sys
from subprocess import run

import anyio
import httpx
import pytest

from sluicegate import StopEvent
from sluicegate.client import Client, NotFoundError, RunFailedError, ServerUnreachableError
from sluicegate.serve import asgi_app, bearer_token
from tests.helpers import nothing_left
from tests.serve.flows import Approval, Asking, Essay, Failing, Progress, Question, Waiting
from tests.test_web_servers import WAITS_FOR_CLIENTS, of_each_server, run_on, served


pytestmark = pytest.mark.filterwarnings("ignore:.*httptools:DeprecationWarning")


@of_each_server
def test_runs_over_sockets(server):
    """Runs of both kinds are read, answered and awaited, thirty at once; connections are used again."""

    async def main():
        flows = {"essay": Essay(), "asking": Asking(), "failing": Failing()}
        app = asgi_app(flows, authenticate=bearer_token("secret"))
        known = {"workflows": {"essay": Essay}, "events": [Progress, Question], "token": "secret"}
        with nothing_left():
            async with (
                served(server, app) as port,
                Client(f"http://127.0.0.1:{port}", **known) as client,
            ):
                assert await client.list_workflows() == ("essay", "asking", "failing")
                with pytest.raises(RunFailedError, match="LookupError"):
                    await client.run("failing")

                async def use(number):
                    async with client.run("essay", topic=f"a{number}", times=20) as handler:
                        events = [event async for event in handler.stream_events()]
                        assert await handler == f"A{number}"
                    assert [type(event) for event in events] == [*[Progress] * 20, StopEvent]

                async with anyio.create_task_group() as nursery:
                    for number in range(30):
                        nursery.start_soon(use, number)

                handler = await client.submit("asking", topic="x")
                async for event in handler.stream_events():
                    assert type(event) is Question
                    [question] = await handler.questions()
                    await handler.send_event(Approval(yes=True), question=question.id)
                    break
                assert await handler == "published"

    run_on(server, main)


@of_each_server
def test_an_owner_that_is_left_over_sockets(server):
    """P1, P2: the run is cancelled, has unwound, and nothing is left, whether the block fails or is cancelled."""

    async def main():
        flow = Waiting()
        with nothing_left():
            async with (
                served(server, asgi_app({"waiting": flow})) as port,
                Client(f"http://127.0.0.1:{port}") as client,
            ):
                with pytest.raises(ZeroDivisionError):
                    async with client.run("waiting") as handler:
                        await handler.stream_events().receive()
                        raise ZeroDivisionError
                assert flow.seen == ["cancelled", "cleaned up"]
                with anyio.CancelScope() as scope:
                    async with client.run("waiting") as handler:
                        await handler.stream_events().receive()
                        scope.cancel()
                assert flow.seen == ["cancelled", "cleaned up"] * 2

    run_on(server, main)


@of_each_server
def test_a_server_that_is_replaced(server):
    """A reader follows its run to where it is known no more; a client without a server says so."""
    if server == "hypercorn-asyncio" and WAITS_FOR_CLIENTS:
        pytest.skip("Hypercorn on this Python waits for its clients before its grace begins")

    async def main():
        url = None
        with nothing_left():
            async with anyio.create_task_group() as nursery:
                async with served(
                    server, asgi_app({"waiting": Waiting()}, shutdown_grace=0)
                ) as port:
                    url = f"http://127.0.0.1:{port}"
                    client = await nursery.start(hold, url)
                    handler = await client.submit("waiting")
                    stream = handler.stream_events()
                    await stream.receive()
                    with pytest.raises(NotFoundError):
                        await client.attach("none")
                with pytest.raises(ServerUnreachableError, match=f"there is no server at {url}"):
                    await client.list_workflows()
                nursery.cancel_scope.cancel()

    async def hold(url, task_status):
        async with Client(url, reconnect_for=0.01, max_retries=0) as client:
            task_status.started(client)
            await anyio.sleep_forever()

    run_on(server, main)


def test_without_the_extra():
    """P20: the error names what to install; the rest of the package does without."""
    program = (
        "import sys; sys.modules['httpx'] = sys.modules['httpx2'] = None\n"
        "import sluicegate\n"
        "try:\n    import sluicegate.client\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    found = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith('expected `pip install "sluicegate[client]"`')


def test_it_imports_no_server():
    """P20: a client needs neither Starlette nor Hypercorn, and no event loop but the one in use."""
    program = (
        "import sys, sluicegate.client\n"
        "print([name for name in ('starlette', 'hypercorn', 'openai', 'sluicegate.serve') if name in sys.modules])"
    )
    found = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@of_each_server
def test_a_client_of_httpx(server):
    """A client of the library's predecessor works as well, and stays open."""

    async def main():
        flows = {"essay": Essay(), "waiting": Waiting()}
        with nothing_left():
            async with served(server, asgi_app(flows)) as port, httpx.AsyncClient() as http:
                async with Client(f"http://127.0.0.1:{port}", http=http) as client:
                    assert await client.run("essay", topic="locks", times=3) == "LOCKS"
                    with pytest.raises(NotFoundError):
                        await client.run("none")
                    async for _ in (await client.submit("waiting")).stream_events():
                        break
                    flows["waiting"].go_on.set()
                async with Client("http://127.0.0.1:1", http=http, max_retries=0) as client:
                    with pytest.raises(ServerUnreachableError):
                        await client.list_workflows()
                assert not http.is_closed

    run_on(server, main)
