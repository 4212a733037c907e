"""Hypercorn's connections under asyncio, accepted here so that each can fail and end by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast, final

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext

from sluicegate.serve._connections import Connections, is_idle_after, note_failure


if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from anyio.abc import TaskGroup
    from hypercorn.config import Config
    from hypercorn.events import Event


@final
class _Connection(asyncio.StreamReaderProtocol):
    """A connection that closes if its client hangs up while data waits to be sent."""

    def __init__(self, begin: Callable[[_Connection, Any, Any], None]) -> None:
        self._begin = begin
        self._own_transport: asyncio.Transport | None = None
        super().__init__(asyncio.StreamReader(), self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(self, reader, writer)

    def connection_made(self, transport: Any) -> None:
        self._own_transport = transport
        super().connection_made(transport)

    def eof_received(self) -> bool | None:
        keeps_open = super().eof_received()
        if self._own_transport is not None and self._own_transport.get_write_buffer_size():
            self.abort()
        return keeps_open

    def abort(self) -> None:
        """Close the socket, and drop what has not been sent."""
        if self._own_transport is not None:
            self._own_transport.abort()


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
class AsyncioConnections(Connections):
    """The connections of a server under asyncio."""

    def __init__(self, app: Any, config: Config) -> None:
        super().__init__(app, config, WorkerContext(None))

    async def accept(self, listener: socket.socket, nursery: TaskGroup) -> None:
        """Accept connections until cancelled; their tasks are in the nursery."""
        # A transport calls the protocol outside of any task, where AnyIO starts none.
        arrived: asyncio.Queue[tuple[_Connection, Any, Any]] = asyncio.Queue()

        def begin(connection: _Connection, reader: Any, writer: Any) -> None:
            self._open.add(connection)
            arrived.put_nowait((connection, reader, writer))

        server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(begin), sock=listener, backlog=self._config.backlog
        )
        try:
            while True:
                nursery.start_soon(self._serve, *await arrived.get())
        finally:
            server.close()
            while not arrived.empty():
                self._end(arrived.get_nowait()[0])

    async def _serve(self, connection: _Connection, reader: Any, writer: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            await _Server(self._app, loop, self._config, self._context, {}, reader, writer)
        except Exception as error:  # noqa: BLE001 - a bad client ends its own connection only
            note_failure(error)
        finally:
            self._end(connection)
