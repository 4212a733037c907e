"""A network in memory: requests of httpx to an ASGI application in the same event loop, as streams.

httpx's own ``ASGITransport`` collects the whole response first. :class:`InProcess` gives each piece on as
the application sends it, tells the application when the client has gone, and can lose connections.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from math import inf

import anyio
import httpx2 as httpx

from sluicegate.client import Client


class InProcess(httpx.AsyncBaseTransport):
    """Serves requests by an application, each in a task of a nursery.

    Attributes:
        requests: The requests so far: ``"GET /events/x?after_sequence=3"``.
        open: How many responses are open.
        lose_after: The number of pieces of a response after which its connection is lost, by request, in order.
        refuse: How many further requests find no server.
    """

    def __init__(self, app, nursery):
        self.app = app
        self.nursery = nursery
        self.requests = []
        self.open = 0
        self.lose_after = []
        self.refuse = 0
        self.lost = anyio.Event()

    async def handle_async_request(self, request):
        path = request.url.raw_path.decode()
        self.requests.append(f"{request.method} {path}")
        await anyio.lowlevel.checkpoint()
        if self.refuse:
            self.refuse -= 1
            raise httpx.ConnectError("nobody listens", request=request)
        body = b"".join([part async for part in request.stream])
        exchange = _Exchange(self, request, body)
        self.open += 1
        try:
            self.nursery.start_soon(exchange.run)
            await exchange.wait_for_head()
        except BaseException:
            exchange.hang_up()
            raise
        return httpx.Response(exchange.status, headers=exchange.headers, stream=exchange)

    def client(self, **options):
        """Return a client of the application."""
        http = httpx.AsyncClient(transport=self)
        return Client("http://localhost", http=http, **options)

    def lose_all(self):
        """Lose every open connection."""
        self.lost.set()
        self.lost = anyio.Event()


class _Exchange(httpx.AsyncByteStream):
    def __init__(self, network, request, body):
        self.network = network
        self.request = request
        self.body = body
        self.status = 0
        self.headers = []
        self.pieces = []
        self.is_over = False
        self.failure = None
        self.gone = anyio.Event()
        self.changed = anyio.Event()
        self.taken = anyio.Event()
        self.lost = network.lost
        self.has_sent_body = False
        self.is_counted = True
        self.left = network.lose_after.pop(0) if network.lose_after else inf
        #: Seconds that the client waits for a piece.
        self.patience = request.extensions.get("timeout", {}).get("read")

    def change(self):
        self.changed.set()
        self.changed = anyio.Event()

    async def run(self):
        url = self.request.url
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.request.method,
            "scheme": "http",
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self.request.headers.raw],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        try:
            await self.network.app(scope, self.receive, self.send)
        except Exception as error:  # as a server does: it logs it and drops the connection
            self.failure = error
        finally:
            self.is_over = True
            self.change()

    async def receive(self):
        if not self.has_sent_body:
            self.has_sent_body = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await anyio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], message["headers"]
        elif message.get("body"):
            while len(self.pieces) > 10 and not self.gone.is_set():  # the buffer of a socket
                self.taken = anyio.Event()
                await self.taken.wait()
            self.pieces.append(message["body"])
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.is_over = True
        self.change()

    async def wait_for_head(self):
        while not self.status:
            if self.is_over:
                raise httpx.RemoteProtocolError("no answer", request=self.request)
            await self.changed.wait()

    async def __aiter__(self):
        while True:
            if self.left <= 0 or self.lost.is_set():
                self.hang_up()
                raise httpx.ReadError("lost", request=self.request)
            if self.pieces:
                self.left -= 1
                self.taken.set()
                yield self.pieces.pop(0)
                await anyio.lowlevel.checkpoint()
            elif self.failure is not None:
                raise httpx.RemoteProtocolError("cut off", request=self.request)
            elif self.is_over:
                return
            else:
                await self.wait()

    async def wait(self):
        """Wait for a change, or the loss of the connection."""
        is_late = True
        with anyio.move_on_after(self.patience):
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(_cancel_at, self.lost, nursery.cancel_scope)
                await self.changed.wait()
                nursery.cancel_scope.cancel()
            is_late = False
        if is_late:
            raise httpx.ReadTimeout("silent", request=self.request)

    async def aclose(self):
        self.hang_up()

    def hang_up(self):
        if self.is_counted:
            self.is_counted = False
            self.network.open -= 1
        self.gone.set()
        self.taken.set()
        self.change()


async def _cancel_at(event, scope):
    await event.wait()
    scope.cancel()


@asynccontextmanager
async def network(app):
    """Open a network with an application; it ends, with its lifespan, when the block does."""
    async with anyio.create_task_group() as nursery:
        async with app.lifespan() if hasattr(app, "lifespan") else nullcontext():
            yield InProcess(app, nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(app, **options):
    """Open a client of an application, whose ``network`` is the network between them."""
    async with network(app) as net, net.client(**options) as client:
        client.network = net
        yield client
