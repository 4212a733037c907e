"""The SDK's own client over stdio and HTTP: progress, cancellation, timeouts, and rounds across processes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import asynccontextmanager

import anyio
import pytest
from mcp import Client, StdioServerParameters

from tests.helpers import Catch, is_trio
from tests.mcp.flows import Person, error_of, messages, one_round, text_of
from tests.mcp.serving import served, server
from tests.mcp.test_mcp_questions import BOOKED, ROOM, TO_ROME
from tests.test_documentation import ROOT


pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:.*httptools:DeprecationWarning"),
    # The SDK's HTTP client does so on Trio, when a request is cancelled.
    pytest.mark.filterwarnings("ignore:Async generator 'http(x|core)2.*:ResourceWarning"),
]


def program(backend):
    """Return the command of a server over standard input and output."""
    return StdioServerParameters(
        command=sys.executable,
        args=["-W", "error", "-m", "tests.mcp.serving", "stdio", backend],
        cwd=ROOT,
    )


@asynccontextmanager
async def client_over(transport, backend):
    """Connect a client to a server in a process of its own, or in this one over HTTP."""
    person = Person(Which_hotel=ROOM, Which_day={"day": 7}, Book_Ritz={"sure": True})
    if transport == "stdio":
        async with Client(program(backend), elicitation_callback=person) as client:
            yield client
    else:
        async with (
            served(server().streamable_http_app(), backend) as url,
            Client(url, elicitation_callback=person) as client,
        ):
            yield client


async def exercise(client, tmp_path):
    """Call every tool: what holds over every transport."""
    assert client.protocol_version == "2026-07-28"

    told, begun = [], anyio.Event()

    async def progress(number, _total, message):
        told.append((number, message))
        begun.set()

    arguments = {"topic": "locks", "pages": 3}
    result = await client.call_tool("Essay", arguments, progress_callback=progress)
    assert text_of(result) == "3 pages on locks"
    assert told == [(n, f'{{"event":"Page","number":{n}}}') for n in (1, 2, 3)]

    assert text_of(await client.call_tool("Chatty", {})) == "printed"
    assert (await client.call_tool("Book", TO_ROME)).structured_content == BOOKED

    note = tmp_path / "timed out"
    error = error_of(await client.call_tool("hurried", {"note": str(note)}))
    assert error.startswith("hurried timed out after 0.5 s (run ")
    assert note.read_text() == "cancelled, and cleaned up"

    note, begun = tmp_path / "cancelled", anyio.Event()

    async def call():
        await client.call_tool("Waiting", {"note": str(note)}, progress_callback=progress)

    async with anyio.create_task_group() as nursery:
        nursery.start_soon(call)
        await begun.wait()
        nursery.cancel_scope.cancel()
    while not (note.exists() and note.read_text()):
        await anyio.sleep(0.005)
    assert note.read_text() == "cancelled, and cleaned up"


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["trio", "asyncio"])
async def test_a_client_over_stdio(tmp_path):
    """Progress, prints, questions, timeouts and cancellation over standard input and output."""
    with anyio.fail_after(60):
        async with client_over("stdio", "trio" if is_trio() else "asyncio") as client:
            await exercise(client, tmp_path)


async def test_a_client_over_http(tmp_path):
    """The same over HTTP: a client that closes its request cancels the run."""
    with anyio.fail_after(60):
        async with client_over("http", "trio" if is_trio() else "asyncio") as client:
            await exercise(client, tmp_path)


async def test_a_server_over_http_that_stops_cancels_its_runs(tmp_path):
    """When the server ends, its runs have been cancelled and have cleaned up."""
    note, begun, left = tmp_path / "stopped", anyio.Event(), []

    async def progress(*_values):
        begun.set()

    async def call(url):
        with Catch() as caught:
            async with Client(url) as client:
                await client.call_tool("Waiting", {"note": str(note)}, progress_callback=progress)
        left.append(caught.error)

    backend = "trio" if is_trio() else "asyncio"
    with anyio.fail_after(60):
        async with anyio.create_task_group() as nursery:
            async with served(server().streamable_http_app(), backend) as url:
                nursery.start_soon(call, url)
                await begun.wait()
            while not (note.exists() and note.read_text()):
                await anyio.sleep(0.005)
            nursery.cancel_scope.cancel()

    assert note.read_text() == "cancelled, and cleaned up"
    assert left[0] is not None


# -- rounds across processes ----------------------------------------------------------------------------


@asynccontextmanager
async def servers_over_http():
    """Serve in this process, in two new ones, and in this one again by another server."""
    command = [sys.executable, "-W", "error", "-m", "tests.mcp.serving", "http"]
    running = [
        subprocess.Popen(
            [*command, backend], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for backend in ("trio", "asyncio")
    ]
    try:
        async with (
            served(server().streamable_http_app(), "trio") as first,
            served(server().streamable_http_app(), "trio") as last,
        ):
            yield [first, *(process.stdout.readline().strip() for process in running), last]
    finally:
        for process in running:
            process.stdin.close()
        for process in running:
            process.stdout.close()
            assert process.wait(30) == 0


@asynccontextmanager
async def servers_over_stdio():
    """Serve in this process, and start a new one for each of the next two connections."""
    yield [server(), program("trio"), program("asyncio"), server()]


@pytest.mark.slow
@pytest.mark.parametrize("servers", [servers_over_stdio, servers_over_http])
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_three_rounds_of_questions_across_restarts_of_the_server(servers):
    """Each round is served by another process, also on another event loop; the client carries the run."""
    asked = None

    async def serve_round(address, **answers):
        async with Client(address, elicitation_callback=Person()) as client:
            return await one_round(client, "Book", TO_ROME, asked, **answers)

    with anyio.fail_after(90):
        async with servers() as addresses:
            asked = await serve_round(addresses[0])
            assert len(messages(asked)) == 2
            asked = await serve_round(addresses[1], Which_hotel=ROOM, Which_day={"day": 7})
            assert messages(asked) == ["Book Ritz for day 7?"]
            asked = await serve_round(addresses[2], Book_Ritz={"sure": False})
            assert messages(asked) == ["Really?"]
            result = await serve_round(addresses[3], Really={"sure": True})

    assert result.structured_content == BOOKED
