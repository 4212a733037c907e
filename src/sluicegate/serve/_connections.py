"""The connections of a server: what both event loops have in common."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, cast

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.events import RawData

from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from hypercorn.config import Config


LOGGER = logging.getLogger("sluicegate.serve")


class Connection(Protocol):
    """A connection."""

    def abort(self) -> None:
        """Close the socket, and drop what has not been sent."""
        ...


class Connections:
    """The connections of a server; there is a subclass for each event loop.

    Args:
        app: The ASGI application.
        config: Hypercorn's settings.
        context: Hypercorn's context of the event loop, by which connections hear that the server stops.
    """

    def __init__(self, app: Any, config: Config, context: Any) -> None:
        self._app = ASGIWrapper(app)
        self._config = config
        self._context = context
        self._open: set[Connection] = set()
        self._none_left: Any = None

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    async def accept(self, listener: Any, nursery: Any) -> None:
        """Accept connections until cancelled; their tasks are in the nursery."""
        raise NotImplementedError

    def _end(self, connection: Connection) -> None:
        connection.abort()
        self._open.discard(connection)
        if self._none_left is not None and not self._open:
            self._none_left.set()

    async def finish(self) -> None:
        """Close each connection when its current response is complete, and wait until none is left."""
        await self._context.terminated.set()
        self._none_left = current_backend().event()
        if self._open:
            await self._none_left.wait()

    def abort(self) -> None:
        """Close all connections."""
        for connection in tuple(self._open):
            connection.abort()


def is_idle_after(sent: Any, protocol: Any) -> bool:
    """Whether a connection has to be timed after an event that Hypercorn's side of it has sent.

    Hypercorn does not time one that turns to HTTP/2 until its first response is complete.
    """
    return isinstance(sent, RawData) and getattr(protocol.protocol, "idle", False)


def note_failure(error: Exception) -> None:
    """Log what a connection raised, unless it is only that the client has gone."""
    left: Any = error
    if isinstance(error, ExceptionGroup):
        left = cast("Any", error).split(OSError)[1]
    if left is not None and not isinstance(left, OSError):
        LOGGER.warning("a connection failed: %r", left, exc_info=left)
