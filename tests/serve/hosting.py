"""The servers under which the application is tested, each for the length of a block."""

from __future__ import annotations

import contextlib
import socket

import anyio
import uvicorn
from hypercorn.asyncio import serve as serve_on_asyncio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_on_trio

from sluicegate.serve._server import serving


#: By name: the event loop of each server, and its options. "own" is what `sluicegate serve` runs.
SERVERS = {
    "own-trio": ("trio", {}),
    "own-asyncio": ("asyncio", {}),
    "hypercorn-trio": ("trio", {}),
    "hypercorn-asyncio": ("asyncio", {}),
    "uvicorn": ("asyncio", {}),
    "uvicorn+uvloop": ("asyncio", {"use_uvloop": True}),
}


def free_listener():
    """Return a socket that is bound to a free port of the loopback."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


@contextlib.asynccontextmanager
async def hosted(server, app, lifespan):
    """Serve an application with a lifespan; give the port and a function that counts the connections.

    Hypercorn does not count them, and seems to have none.
    """
    listener = free_listener()
    port = listener.getsockname()[1]
    if server.startswith("own"):
        async with lifespan(), serving(app, listener) as connections:
            yield port, connections.__len__
        return
    async with anyio.create_task_group() as nursery:
        listener.listen()
        if server.startswith("uvicorn"):
            config = uvicorn.Config(
                app, log_config=None, lifespan="on", timeout_graceful_shutdown=0, ws="none"
            )
            running = uvicorn.Server(config)
            nursery.start_soon(running.serve, [listener])
            try:
                yield port, lambda: len(running.server_state.connections)
            finally:
                running.should_exit = True
        else:
            config = Config()
            config.bind = [f"fd://{listener.detach()}"]
            config.accesslog = config.errorlog = None
            config.graceful_timeout = 0.01
            stop = anyio.Event()
            serve = serve_on_trio if server.endswith("trio") else serve_on_asyncio

            async def run_server():
                await serve(app, config, shutdown_trigger=stop.wait, mode="asgi")

            nursery.start_soon(run_server)
            try:
                yield port, lambda: 0
            finally:
                stop.set()


@contextlib.asynccontextmanager
async def connected(port):
    """Connect to a server, as soon as it listens."""
    while True:
        try:
            client = await anyio.connect_tcp("127.0.0.1", port)
            break
        except OSError:
            await anyio.sleep(0.001)
    async with client:
        yield client


def head(method, path, body=b"", **headers):
    """Return a request."""
    named = {"host": "localhost", "content-length": str(len(body))}
    if body:
        named["content-type"] = "application/json"
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in named.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


async def read_until(client, marker):
    """Read up to a marker."""
    data = b""
    while marker not in data:
        try:
            data += await client.receive()
        except anyio.EndOfStream:
            raise AssertionError(f"{marker!r} is not in {data!r}") from None
    return data


async def read_all(client):
    """Read until the server closes the connection, in whatever way."""
    data = b""
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            data += await client.receive()
    return data


def reset_on_close(client):
    """Have the end of a connection sent as a reset."""
    raw = client.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
