"""Hypercorn's connections under Trio, accepted here so that each can fail and end by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, final

import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from sluicegate.serve._connections import Connections, is_idle_after, note_failure


if TYPE_CHECKING:
    import socket

    from hypercorn.config import Config
    from hypercorn.events import Event


@final
class _Stream:
    """A connection that closes if its client hangs up while data waits to be sent.

    Hypercorn shields a send from cancellation. If a client closes its sending side and reads nothing,
    that send would last as long as the client wants.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._is_sending = False
        self.socket = stream.socket

    async def receive_some(self, max_bytes: int) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        if not data and self._is_sending:
            self.abort()
        return data

    async def send_all(self, data: bytes) -> None:
        self._is_sending = True
        try:
            await self._stream.send_all(data)
        finally:
            self._is_sending = False

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        """Close the socket; whoever sends or receives gets a ``ClosedResourceError``."""
        self.socket.close()


@final
class _Server(TCPServer):
    """Hypercorn's side of a connection."""

    async def _read_data(self) -> None:
        await super()._read_data()
        # A client that has gone between two requests would be kept until this time is over.
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        await super().protocol_send(event)
        if is_idle_after(event, self.protocol):
            await cast("Any", self.idle_task).restart(self._task_group, self._idle_timeout)


@final
class TrioConnections(Connections):
    """The connections of a server under Trio."""

    def __init__(self, app: Any, config: Config) -> None:
        super().__init__(app, config, WorkerContext(None))

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        """Accept connections until cancelled; their tasks are in the nursery."""
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        await trio.serve_listeners(self._serve, [accepting], handler_nursery=nursery)

    async def _serve(self, connection: trio.SocketStream) -> None:
        stream = _Stream(connection)
        self._open.add(stream)
        try:
            state = ConnectionState({})
            await _Server(self._app, self._config, self._context, state, stream)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - a bad client ends its own connection only
            note_failure(error)
        finally:
            self._end(stream)
