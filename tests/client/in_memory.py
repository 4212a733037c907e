"""Sockets in memory, for httpcore: below httpx2, its pool and h11 run as they do on a real network.

The other end of each connection is a small HTTP server of one ASGI application, in the same event loop.
"""

from __future__ import annotations

import ssl

import anyio
import anyio.lowlevel
import h11
import httpcore2 as httpcore
import httpx2 as httpx


class _Pipe:
    """Bytes on their way in one direction."""

    def __init__(self):
        self.data = bytearray()
        self.is_closed = False
        self.changed = anyio.Event()

    def change(self):
        self.changed.set()
        self.changed = anyio.Event()

    def write(self, data):
        if not self.is_closed:
            self.data += data
            self.change()

    def close(self):
        self.is_closed = True
        self.change()

    async def read(self, most):
        await anyio.lowlevel.checkpoint()
        while not self.data:
            if self.is_closed:
                return b""
            await self.changed.wait()
        taken = bytes(self.data[:most])
        del self.data[:most]
        return taken


class Socket(httpcore.AsyncNetworkStream):
    """One end of a connection."""

    def __init__(self, network, incoming, outgoing):
        self.network = network
        self.incoming = incoming
        self.outgoing = outgoing

    async def read(self, max_bytes, timeout=None):
        try:
            with anyio.fail_after(timeout):
                return await self.incoming.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error

    async def write(self, buffer, timeout=None):
        await anyio.lowlevel.checkpoint()
        if self.incoming.is_closed:
            raise httpcore.WriteError("the peer has gone")
        self.outgoing.write(buffer)

    async def aclose(self):
        self.network.sockets.discard(self)
        self.outgoing.close()
        self.incoming.close()
        await anyio.lowlevel.checkpoint()

    def get_extra_info(self, info):
        return (
            bool(self.incoming.data or self.incoming.is_closed) if info == "is_readable" else None
        )


class MemoryNetwork(httpcore.AsyncNetworkBackend):
    """A network on which one server listens.

    Attributes:
        sockets: The open ends of clients.
    """

    def __init__(self, app, nursery):
        self.app = app
        self.nursery = nursery
        self.sockets = set()

    @property
    def open(self):
        """How many connections clients have open."""
        return len(self.sockets)

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        await anyio.lowlevel.checkpoint()
        there, back = _Pipe(), _Pipe()
        socket = Socket(self, back, there)
        self.sockets.add(socket)
        self.nursery.start_soon(_Server(self.app, there, back).run)
        return socket

    async def sleep(self, seconds):
        await anyio.sleep(seconds)

    def http(self, url=""):
        """Return an httpx client over this network."""
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # making one with certificates takes long
        limits = httpx.Limits(max_connections=None)
        transport = httpx.AsyncHTTPTransport(verify=no_tls, limits=limits)
        transport._pool._network_backend = self
        return httpx.AsyncClient(transport=transport)


class _Server:
    """Serves one connection, request after request."""

    def __init__(self, app, incoming, outgoing):
        self.app = app
        self.incoming = incoming
        self.outgoing = outgoing
        self.http = h11.Connection(h11.SERVER)
        self.gone = anyio.Event()

    async def run(self):
        try:
            while await self.serve_one():
                self.http.start_next_cycle()
        except h11.RemoteProtocolError:  # the client has gone in the middle of a request
            pass
        finally:
            self.outgoing.close()

    async def next_event(self):
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.incoming.read(65_536))
        return event

    async def serve_one(self):
        request = await self.next_event()
        if not isinstance(request, h11.Request):
            return False
        body = b""
        while isinstance(event := await self.next_event(), h11.Data):
            body += event.data
        if not isinstance(event, h11.EndOfMessage):
            return False
        path, _, query = request.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method.decode(),
            "scheme": "http",
            "path": path.decode(),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not self.incoming.is_closed:
                await self.incoming.changed.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            await anyio.lowlevel.checkpoint()
            if self.incoming.is_closed:
                raise OSError("the client has gone")
            if message["type"] == "http.response.start":
                head = h11.Response(status_code=message["status"], headers=message["headers"])
                self.outgoing.write(self.http.send(head))
                return
            self.outgoing.write(self.http.send(h11.Data(data=message.get("body", b""))))
            if not message.get("more_body"):
                self.outgoing.write(self.http.send(h11.EndOfMessage()))

        await self.app(scope, receive, send)
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE
