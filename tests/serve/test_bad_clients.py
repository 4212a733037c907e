"""Clients that are slow, greedy or confused: each gets a clear answer or none, and the server keeps nothing."""

from __future__ import annotations

import contextlib
import json
import random

import anyio
import anyio.lowlevel
import h2.config
import h2.connection
import pytest

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.serve import asgi_app, bearer_token
from sluicegate.serve._server import serving
from tests.helpers import live_tasks
from tests.serve.hosting import connected, free_listener, head, read_all, read_until


pytestmark = pytest.mark.anyio

TOKEN = "a-secret"
ADMITTED = {"authorization": f"Bearer {TOKEN}"}


class Piece(Event):
    padding: str = ""


class Flood(Workflow[str]):
    """Sends more than anyone reads, until it is cancelled."""

    def __init__(self):
        super().__init__(stream_buffer=2, stream_history=4)
        self.sent = 0
        self.over = anyio.Event()

    async def wait_until_stuck(self):
        """Wait until more has been sent than the sockets hold."""
        while self.sent < 300:
            await anyio.sleep(0.001)

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            while True:
                await ctx.stream.send(Piece(padding="x" * 50_000))
                self.sent += 1
                await anyio.lowlevel.checkpoint()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.over.set()


class Server:
    """The program's server and application, with bounds that strike soon."""

    def __init__(self):
        self.flood = Flood()
        self.port = 0
        self.connections = ()

    @contextlib.asynccontextmanager
    async def open(self, **bounds):
        app = asgi_app({"flood": self.flood}, authenticate=bearer_token(TOKEN), heartbeat=None)
        listener = free_listener()
        self.port = listener.getsockname()[1]
        bounds = {"header_timeout": 30, "body_timeout": 30, "close_timeout": 0.1, **bounds}
        with anyio.fail_after(20):
            async with app.lifespan(), serving(app, listener, **bounds) as self.connections:
                async with connected(self.port):
                    pass
                await self.check_nothing_is_held()
                before = len(live_tasks())
                yield
                await self.check_nothing_is_held()
                while len(live_tasks()) > before:
                    await anyio.sleep(0.001)

    async def check_nothing_is_held(self):
        while len(self.connections):
            await anyio.sleep(0.001)

    async def tell(self, data):
        """Send bytes, and return everything that comes until the server closes the connection."""
        async with connected(self.port) as client, anyio.create_task_group() as sending:
            sending.start_soon(send_all, client, data)
            answer = await read_all(client)
            sending.cancel_scope.cancel()
        return answer.decode("latin-1")

    async def check_it_still_serves(self):
        assert "200" in (await self.tell(head("GET", "/health", connection="close")))


async def send_all(client, data):
    """Send bytes, or a function's as long as the server takes them."""
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        if isinstance(data, bytes):
            await client.send(data)
        else:
            for piece in data():
                await client.send(piece)


def detail(answer):
    """Return what the body of an answer says."""
    return json.loads(answer.partition("\r\n\r\n")[2].partition("{")[2].join(["{", ""]))["detail"]


@pytest.fixture
async def server(anyio_backend):
    server = Server()
    async with server.open():
        yield server


@pytest.fixture
async def short_of_time(anyio_backend):
    """A server that waits for no client, except for the body of a request."""
    server = Server()
    async with server.open(header_timeout=0.1):
        yield server


async def test_a_head_that_does_not_arrive_closes_the_connection(short_of_time):
    """A slowloris: no request has begun, so there is nothing to answer."""
    assert await short_of_time.tell(b"GET /health HTTP/1.1\r\nHost: lo") == ""
    assert await short_of_time.tell(b"") == ""


async def test_a_head_that_trickles_in_is_bounded_as_a_whole(short_of_time):
    """Each further byte does not give it more time."""

    def trickle():
        yield b"GET /health HTTP/1.1\r\n"
        while True:
            yield b"a"

    async with connected(short_of_time.port) as client, anyio.create_task_group() as sending:

        async def send():
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                for piece in trickle():
                    await client.send(piece)
                    await anyio.sleep(0.005)

        sending.start_soon(send)
        assert await read_all(client) == b""
        sending.cancel_scope.cancel()


async def test_a_body_that_does_not_arrive_is_a_408(anyio_backend):
    """The answer says so, and the connection is closed."""
    server = Server()
    async with server.open(body_timeout=0.1):
        answer = await server.tell(
            head("POST", "/workflows/flood/run", content_length="100", **ADMITTED) + b'{"start'
        )

    assert answer.startswith("HTTP/1.1 408 ")
    assert "did not arrive within 0.1 s" in answer


async def test_a_client_that_leaves_without_a_request_is_forgotten_at_once(server):
    """Its connection does not last for the time that it had."""
    async with connected(server.port) as client:
        while not len(server.connections):
            await anyio.sleep(0.001)
        await client.send_eof()
        await server.check_nothing_is_held()


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_a_body_of_100_megabytes_is_a_413(server, framing):
    """It is refused by its length, or when it has become too long; nobody keeps it."""
    framed = {"content_length": "100000000"}
    if framing == "chunked":
        framed = {"content_length": None, "transfer_encoding": "chunked"}
    begin = head(
        "POST", "/workflows/flood/run", content_type="application/json", **framed, **ADMITTED
    )

    def body():
        yield begin
        piece = b"x" * 65_536
        for _ in range(1526):
            yield b"10000\r\n%s\r\n" % piece if framing == "chunked" else piece

    answer = await server.tell(body)

    assert answer.startswith("HTTP/1.1 413 ")
    await server.check_it_still_serves()


async def test_ten_thousand_headers_are_a_431(server):
    """Whether their bytes or their number is too large."""
    many = b"".join(b"h%d: v\r\n" % n for n in range(10_000))
    some = b"".join(b"h%d: v\r\n" % n for n in range(150))
    for more in (many, some):
        answer = await server.tell(
            b"GET /workflows HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + more + b"\r\n"
        )
        assert answer.startswith("HTTP/1.1 431 ")


async def test_json_that_is_none_is_a_400(server):
    """The answer says where it breaks off."""
    answer = await server.tell(
        head("POST", "/workflows/flood/run", b'{"start_event": {', connection="close", **ADMITTED)
    )

    assert answer.startswith("HTTP/1.1 400 ")
    assert "JSON" in answer


@pytest.mark.parametrize("token", ["", "Bearer wrong", f"Bearer {TOKEN}x", "Basic a-secret"])
async def test_a_wrong_token_is_a_401(server, token):
    """Nothing of the request is told, and nothing of the token."""
    answer = await server.tell(
        head("POST", "/workflows/flood/run", b"{}", connection="close", authorization=token)
    )

    assert answer.startswith("HTTP/1.1 401 ")
    assert TOKEN not in answer


async def test_what_is_no_http_is_a_400(short_of_time):
    """Nor is a request without a host."""
    for data in (bytes(range(256)) * 10, b"GET /health HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        answer = await short_of_time.tell(data)
        assert answer.startswith("HTTP/1.1 400 ") or answer == ""


@pytest.mark.parametrize("more", [b"", b"SM\r\n\r\n", b"SM\r\n\r\n" + b"\xff" * 1000])
async def test_http2_without_a_request_is_closed(short_of_time, more):
    """A connection that turns to HTTP/2 has the same time for its first request."""
    answer = await short_of_time.tell(b"PRI * HTTP/2.0\r\n\r\n" + more)

    assert "HTTP/1.1" not in answer


async def test_http2_data_behind_the_answer_ends_its_own_connection_only(short_of_time):
    """The client sends on when its request has been answered."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    fields = {":method": "POST", ":path": "/workflows/none/run", ":scheme": "http"}
    fields |= {":authority": "localhost", "content-length": "100"}
    connection.send_headers(stream, list(fields.items()))
    async with connected(short_of_time.port) as client:
        await client.send(connection.data_to_send())
        await read_until(client, b"expected")
        for _ in range(3):
            connection.send_data(stream, b"x" * 20)
            with contextlib.suppress(anyio.BrokenResourceError):
                await client.send(connection.data_to_send())
                await anyio.sleep(0.005)
    # The fixture checks that the server goes on and has nothing left.
    async with connected(short_of_time.port) as client:
        await client.send(head("GET", "/health"))
        await read_until(client, b"healthy")


async def test_a_reader_that_is_stuck_and_half_closed_ends_its_run(server):
    """It reads nothing and sends nothing more, but keeps its socket."""
    async with connected(server.port) as client:
        await client.send(
            head("POST", "/workflows/flood/run", b"{}", accept="text/event-stream", **ADMITTED)
        )
        await server.flood.wait_until_stuck()
        await client.send_eof()
        await server.flood.over.wait()
        await server.check_nothing_is_held()


async def test_a_reader_that_is_stuck_does_not_hold_up_the_stop(anyio_backend):
    """The end of the block closes its connection, and its run unwinds."""
    flood = Flood()
    app = asgi_app({"flood": flood}, heartbeat=None)
    listener = free_listener()
    with anyio.fail_after(10):
        async with contextlib.AsyncExitStack() as stack:
            async with app.lifespan(), serving(app, listener, close_timeout=0.01) as connections:
                client = await stack.enter_async_context(connected(listener.getsockname()[1]))
                await client.send(
                    head("POST", "/workflows/flood/run", b"{}", accept="text/event-stream")
                )
                await flood.wait_until_stuck()
            assert flood.over.is_set()
            assert len(connections) == 0


@pytest.mark.slow
async def test_random_bytes_end_no_server(server):
    """Whatever a client sends, the next one is served."""
    source = random.Random(15)
    parts = [
        b"GET / HTTP/1.1\r\n",
        b"POST /workflows/flood/run HTTP/1.1\r\n",
        b"host: localhost\r\n",
        b"content-length: 7\r\n",
        b"transfer-encoding: chunked\r\n",
        b"expect: 100-continue\r\n",
        b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
        b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\4\1\5\0\0\0\1\x82\x84\x86\x41",
        b"ffffffff\r\n",
        b"\xff\0",
    ]
    for _ in range(100):
        data = b"".join(source.choices(parts, k=source.randrange(1, 9)))
        async with connected(server.port) as client:
            await send_all(client, data)
            with anyio.move_on_after(0.005):
                await read_all(client)
    await server.check_it_still_serves()
