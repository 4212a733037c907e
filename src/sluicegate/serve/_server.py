"""The server: Hypercorn on one socket, for the length of a block, with bounds that it has not itself.

Hypercorn reads and writes HTTP here; the connections are accepted by this package. Its own ``serve``
cannot end a connection: under Trio it shields every send, so one client that reads nothing holds up the
stop for ever, and under asyncio on Python 3.12 and later it waits for the clients before its grace begins.
"""

from __future__ import annotations

import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, final

from sluicegate._exceptions import single
from sluicegate._loop import current_backend


try:
    from hypercorn.config import Config
except ModuleNotFoundError as _error:
    _msg = 'sluicegate serve needs Hypercorn; expected `pip install "sluicegate[serve]"`'
    raise ModuleNotFoundError(_msg, name=_error.name) from _error


if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping

    from sluicegate._loop import Nursery
    from sluicegate.serve._connections import Connections

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

__all__ = ["serving"]

LOGGER = logging.getLogger("sluicegate.serve")

#: How many connections may wait to be accepted.
_BACKLOG = 1_024
#: Seconds for which the rest of a refused body is read.
_LINGER = 1.0


@asynccontextmanager
async def serving(
    app: App,
    listener: socket.socket,
    *,
    header_timeout: float = 5.0,
    body_timeout: float = 30.0,
    close_timeout: float = 1.0,
) -> AsyncGenerator[Connections]:
    """Serve an ASGI application on a socket for the length of the block.

    No lifespan is sent to the application. At the end of the block the server accepts no more
    connections, gives the open responses a moment to be completed, then closes their connections and
    cancels them. A block that is left by an exception, or a cancellation, does the last at once.

    Args:
        app: The application.
        listener: A bound socket; it listens from here on, and is closed at the end.
        header_timeout: Seconds in which the head of a request must arrive; a connection without a
            request is closed after this time.
        body_timeout: Seconds in which the body of a request must arrive, else the answer is 408.
        close_timeout: Seconds that the end of the block waits for open responses.

    Yields:
        The open connections.

    Raises:
        BaseException: What the block raised; a cancellation. An application that fails does not end the
            server: the client gets a 500, and the failure is logged.
    """
    backend = current_backend()
    config = Config()
    config.accesslog = None
    config.errorlog = LOGGER
    config.include_server_header = False
    config.keep_alive_timeout = header_timeout
    config.backlog = _BACKLOG
    accepts: type[Any] = _implementation(backend.name)
    try:
        async with backend.open_nursery() as nursery:
            bounded = _BoundedBodies(app, body_timeout, nursery)
            connections: Connections = accepts(bounded, config)
            listener.listen(config.backlog)
            accepting = backend.cancel_scope()

            async def accept() -> None:
                with accepting:
                    await connections.accept(listener, nursery)

            nursery.start_soon(accept, name="accept connections")
            try:
                yield connections
                backend.cancel(accepting, "the server stops")
                with backend.cancel_scope(deadline=backend.current_time() + close_timeout):
                    await connections.finish()
            finally:
                connections.abort()
                backend.cancel(nursery.cancel_scope, "the server stops")
    except BaseExceptionGroup as group:
        raise single(group, backend.Cancelled) from None
    finally:
        listener.close()


def _implementation(backend: str) -> type[Any]:
    """Return the class of the connections under an event loop."""
    if backend == "trio":
        from sluicegate.serve._hypercorn_trio import TrioConnections  # noqa: PLC0415

        return TrioConnections
    from sluicegate.serve._hypercorn_asyncio import AsyncioConnections  # noqa: PLC0415

    return AsyncioConnections


@final
class _BoundedBodies:
    """An application that gets the body of a request in time, and whose rest is read by the server.

    Hypercorn queues ten pieces of a body, and the end of a response waits for a place in that queue.
    So an application that refuses a long body without reading it would never end its response.
    """

    def __init__(self, app: App, timeout: float, nursery: Nursery) -> None:
        self._app = app
        self._timeout = timeout
        self._nursery = nursery

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve, as an ASGI application."""
        if scope["type"] != "http" or not _has_body(scope["headers"]):
            await self._app(scope, receive, send)
            return
        body = _Body(receive, send, self._timeout, self._nursery)
        try:
            await self._app(scope, body.receive, body.send)
        except Exception:
            if not body.is_late:
                raise
        finally:
            body.discard()


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0")):
            return True
    return False


@final
class _Body:
    """The body of one request, and the response to it.

    Attributes:
        is_late: Whether it did not arrive in time, and the client was told so.
    """

    def __init__(self, receive: Receive, send: Send, timeout: float, nursery: Nursery) -> None:
        self._receive = receive
        self._send = send
        self._timeout = timeout
        self._deadline = current_backend().current_time() + timeout
        self._nursery = nursery
        self._is_over = False
        self._is_discarded = False
        self._has_begun = False
        self.is_late = False

    async def receive(self) -> Message:
        """Return the next message, as ASGI's ``receive``; a late body is a disconnect. A checkpoint."""
        if self._is_over and not self.is_late:
            return await self._receive()
        backend = current_backend()
        with backend.cancel_scope(deadline=self._deadline) as scope:
            return await self._next()
        if scope.cancelled_caught and not self.is_late:
            self.is_late = True
            await self._refuse()
        await backend.checkpoint()
        return {"type": "http.disconnect"}

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_over = True
        return message

    async def _refuse(self) -> None:
        self.discard()
        if self._has_begun:
            return
        text = f"the body of the request did not arrive within {self._timeout:g} s"
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": 408, "headers": headers})
        body = json.dumps({"detail": text}).encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def send(self, message: Message) -> None:
        """Send a message, as ASGI's ``send``; before the last one, the rest of the body is read."""
        if self.is_late:
            await current_backend().checkpoint()
            return
        kind = message["type"]
        self._has_begun = self._has_begun or kind == "http.response.start"
        is_last = kind == "http.response.body" and not message.get("more_body", False)
        if is_last and not self._is_over:
            await self._send({**message, "more_body": True})
            message = {"type": kind, "body": b"", "more_body": False}
            await self._linger()
        await self._send(message)

    async def _linger(self) -> None:
        """Read the rest for a moment, so that the client reads the answer before its connection closes."""
        backend = current_backend()
        with backend.cancel_scope(deadline=backend.current_time() + _LINGER):
            while not self._is_over:
                await self._next()
        self.discard()

    def discard(self) -> None:
        """Have a task of the server read the rest, which ends when the connection does."""
        if not (self._is_over or self._is_discarded):
            self._is_discarded = True
            self._nursery.start_soon(self._discard, name="discard a body")

    async def _discard(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
