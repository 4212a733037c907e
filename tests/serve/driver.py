"""An ASGI client without sockets: it calls an application in the same event loop, and can hang up."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, nullcontext
from math import inf

import anyio
import anyio.lowlevel


class Response:
    """A response while it comes, or when it is complete."""

    def __init__(self):
        self.status = 0
        self.headers = {}
        self.body = b""
        self.is_complete = False
        self.changed = anyio.Event()
        self._read = 0

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def text(self):
        return self.body.decode()

    def take(self, message):
        if message["type"] == "http.response.start":
            assert not self.status, "the response began twice"
            self.status = message["status"]
            self.headers = {n.decode(): v.decode() for n, v in message["headers"]}
        else:
            assert message["type"] == "http.response.body"
            assert self.status, "a body came before the head"
            assert not self.is_complete, "a body came behind the end"
            self.body += message.get("body", b"")
            self.is_complete = not message.get("more_body", False)
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, marker):
        """Wait for a part of the body, behind what was waited for before; return what is new."""
        if isinstance(marker, str):
            marker = marker.encode()
        while (found := self.body.find(marker, self._read)) < 0:
            assert not self.is_complete, f"the response ended without {marker!r}: {self.body!r}"
            await self.changed.wait()
        new = self.body[self._read : found + len(marker)]
        self._read = found + len(marker)
        return new.decode()

    async def complete(self):
        while not self.is_complete:
            await self.changed.wait()
        return self


class Connection:
    """A request under way."""

    def __init__(self, body, parts):
        self.response = Response()
        self.has_hung_up = anyio.Event()
        #: Set when the application has returned.
        self.ended = anyio.Event()
        self.error = None
        #: Whether the client takes what is sent; else ``send`` blocks.
        self.reads = anyio.Event()
        self.reads.set()
        self.receivers = 0
        pieces = parts if parts is not None else [body]
        self._messages = [
            {"type": "http.request", "body": piece, "more_body": n < len(pieces) - 1}
            for n, piece in enumerate(pieces)
        ]

    def hang_up(self):
        self.has_hung_up.set()

    def stall(self):
        """Take nothing more: ``send`` waits."""
        self.reads = anyio.Event()

    async def receive(self):
        assert not self.receivers, "two tasks wait on receive()"
        self.receivers += 1
        try:
            if self._messages:
                await anyio.lowlevel.checkpoint()
                return self._messages.pop(0)
            await self.has_hung_up.wait()
            return {"type": "http.disconnect"}
        finally:
            self.receivers -= 1

    async def send(self, message):
        await self.reads.wait()
        await anyio.lowlevel.checkpoint()
        if self.has_hung_up.is_set():
            raise OSError("the client has gone")
        self.response.take(message)


class Client:
    """Sends requests to an application."""

    def __init__(self, app, nursery, around=nullcontext):
        self.app = app
        self.nursery = nursery
        self.around = around

    def _scope(self, method, path, headers, more):
        path, _, query = path.partition("?")
        given = {"host": "localhost", **(headers or {})}
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            **more,
        }

    def open(self, method, path, data=None, *, headers=None, body=None, parts=None, **more):
        """Begin a request, and return its connection."""
        headers = {**(headers or {})}
        if data is not None:
            body = json.dumps(data).encode()
        if body is not None:
            headers.setdefault("content-type", "application/json")
        connection = Connection(body or b"", parts)
        scope = self._scope(method, path, headers, more)

        async def serve():
            try:
                with self.around():
                    await self.app(scope, connection.receive, connection.send)
            except Exception as error:
                connection.error = error
            finally:
                connection.ended.set()

        self.nursery.start_soon(serve)
        return connection

    async def call(self, method, path, data=None, **options):
        """Send a request, and return the complete response; the client stays until then."""
        connection = self.open(method, path, data, **options)
        await connection.ended.wait()
        if connection.error is not None:
            raise connection.error
        assert connection.response.is_complete, connection.response.body
        return connection.response

    async def get(self, path, **options):
        return await self.call("GET", path, **options)

    async def post(self, path, data=None, **options):
        return await self.call("POST", path, data, **options)


@asynccontextmanager
async def client_of(app, *, lifespan=True, seconds=inf, around=nullcontext):
    """Serve an application in this event loop; give a client of it.

    ``around()`` is entered around each request.
    """
    with anyio.fail_after(None if seconds == inf else seconds):
        async with anyio.create_task_group() as nursery:
            if lifespan:
                async with app.lifespan():
                    yield Client(app, nursery, around)
            else:
                yield Client(app, nursery, around)
            nursery.cancel_scope.cancel()


def blocks(text):
    """Return the events of a stream of server-sent events: (id, name, data)."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines.get("id"), lines["event"], json.loads(lines["data"])))
    return found
