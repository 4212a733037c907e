"""Streams of a run as ASGI responses: the one writer of them, and the watch for clients that hang up.

An ASGI server passes ``receive`` and ``send``. One task alone may wait on ``receive``, and it never
polls: :func:`while_connected` waits in a task beside the work, and cancels the work when the client
has gone. One task alone sends: :class:`EventWriter` sends events, notices and heartbeats in turn.
"""

from __future__ import annotations

import re
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias, final

from sluicegate._exceptions import single
from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from sluicegate._events import Event
    from sluicegate._loop import Nursery
    from sluicegate._streams import EventStream

    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]

HEARTBEAT = b": heartbeat\n\n"
#: The headers of a stream for the caches and proxies on its way.
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class HungUpError(Exception):
    """The client has disconnected."""


class Encoder:
    """Turns what a response sends into bytes. One object serves one response.

    Each method returns what to send, and nothing is sent for ``b""``. A class overrides :meth:`event`, and
    others as it needs them.
    """

    @property
    def is_over(self) -> bool:
        """Whether the response is complete, although the stream may continue."""
        return False

    def bind(self, poke: Callable[[], None]) -> None:
        """Take what to call when there is something :meth:`pending`; the writer calls it at first."""

    def begin(self) -> bytes:
        """Return what is sent first."""
        return b""

    def event(self, event: Event, cursor: str) -> bytes:
        """Return an event of the stream, and the cursor behind it."""
        raise NotImplementedError

    def pending(self) -> bytes:
        """Return what there is to send besides the events."""
        return b""

    def gap(self, missed: int) -> bytes:  # noqa: ARG002
        """Return the notice that the reader was too slow, and has missed so many events."""
        return b""

    def stopping(self, grace: float) -> bytes:  # noqa: ARG002
        """Return the notice that the server stops, and ends the response within so many seconds."""
        return b""

    def heartbeat(self) -> bytes:
        """Return what keeps an idle connection open."""
        return b""

    def end(self) -> bytes:
        """Return what is sent last."""
        return b""


def sse_block(name: str, data: str, cursor: str | None = None) -> bytes:
    """Return a server-sent event.

    Args:
        name: Its name.
        data: Its data, a line.
        cursor: Its id; None for none.
    """
    head = "" if cursor is None else f"id: {cursor}\n"
    name = re.sub(r"[\r\n]", " ", name)
    return f"{head}event: {name}\ndata: {data}\n\n".encode("utf-8", "backslashreplace")


async def while_connected(
    receive: Receive,
    work: Callable[[], Awaitable[None]],
    *,
    is_hang_up: Callable[[], bool] = lambda: True,
) -> bool:
    """Run ``work()``, and cancel it if the client hangs up before it has ended. A checkpoint.

    Args:
        receive: That of the server; nothing else may use it meanwhile.
        work: Sends the response. It may raise :class:`HungUpError`.
        is_hang_up: Whether a disconnect means that the client has gone; a server that stops may
            report one, too.

    Returns:
        Whether the client hung up.

    Raises:
        BaseException: The exception of ``work``; a cancellation.
    """
    backend = current_backend()
    has_gone = False

    async def watch(nursery: Nursery) -> None:
        nonlocal has_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        if is_hang_up():
            has_gone = True
            backend.cancel(nursery.cancel_scope, "the client disconnected")

    try:
        async with backend.open_nursery() as nursery:
            nursery.start_soon(watch, nursery, name="watch the client")
            try:
                await work()
            except HungUpError:
                has_gone = is_hang_up()
            backend.cancel(nursery.cancel_scope, "the response is complete")
    except BaseExceptionGroup as group:
        raise single(group, backend.Cancelled) from None
    return has_gone


@final
class EventWriter:
    """Sends the events of a stream as the body of a response, until the terminal event.

    Args:
        send: That of the server.
        encoder: Makes the bytes.
        status: The HTTP status.
        headers: The headers.
        heartbeat: Seconds of silence after which a heartbeat is sent.
        before: Classes of events before which the response ends, without them.
    """

    def __init__(
        self,
        send: Send,
        encoder: Encoder,
        *,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        heartbeat: float = inf,
        before: tuple[type[Event], ...] = (),
    ) -> None:
        self._before = before
        self._send = send
        self._encoder = encoder
        self._start: Message = {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers],
        }
        self._heartbeat = heartbeat
        self._notices: deque[bytes] = deque()
        self._has_ended = self._is_poked = False
        self._missed = 0
        #: The cancel scope of the wait for the next event, if it waits.
        self._wait: Any = None
        encoder.bind(self._poke)

    async def serve(self, stream: EventStream) -> None:
        """Send the whole response, with the events of a stream. A checkpoint.

        Raises:
            HungUpError: The client has gone.
        """
        await self.begin()
        await self.write(stream)
        await self.end()

    async def begin(self) -> None:
        """Send the head of the response. A checkpoint.

        Raises:
            HungUpError: The client has gone.
        """
        await self._give(self._start)
        await self._write(self._encoder.begin())

    async def write(self, stream: EventStream) -> None:
        """Send the events of a stream. A checkpoint.

        Raises:
            HungUpError: The client has gone.
        """
        while (event := await self._next(stream)) is not None:
            if isinstance(event, self._before):
                return
            missed = stream.missed
            if missed > self._missed:
                await self._write(self._encoder.gap(missed - self._missed))
                self._missed = missed
            await self._write(self._encoder.event(event, stream.cursor))

    async def end(self) -> None:
        """Send the end of the response. A checkpoint.

        Raises:
            HungUpError: The client has gone.
        """
        await self._write(self._encoder.end())
        await self._give({"type": "http.response.body", "body": b"", "more_body": False})

    def tell_stopping(self, grace: float) -> None:
        """Tell the client that the server stops. Not a checkpoint."""
        self._notices.append(self._encoder.stopping(grace))
        self._interrupt()

    def stop(self) -> None:
        """End the stream before its terminal event, after the notices. Not a checkpoint."""
        self._has_ended = True
        self._interrupt()

    def _poke(self) -> None:
        """Send what the encoder has besides the events. Not a checkpoint."""
        self._is_poked = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self._wait is not None:
            current_backend().cancel(self._wait, "the response has something else to send")

    async def _next(self, stream: EventStream) -> Event | None:
        """Return the next event; None at the end. Meanwhile send notices and heartbeats."""
        backend = current_backend()
        while True:
            while self._notices:
                await self._write(self._notices.popleft())
            if self._is_poked:
                self._is_poked = False
                await self._write(self._encoder.pending())
            if self._has_ended or self._encoder.is_over:
                await backend.checkpoint()
                return None
            deadline = backend.current_time() + self._heartbeat
            try:
                with backend.cancel_scope(deadline=deadline) as self._wait:
                    return await stream.receive()
            except (backend.EndOfChannel, backend.ClosedResourceError):
                return None
            finally:
                self._wait = None
            if not (self._notices or self._has_ended or self._is_poked):
                await self._write(self._encoder.heartbeat())

    async def _write(self, body: bytes) -> None:
        if body:
            await self._give({"type": "http.response.body", "body": body, "more_body": True})

    async def _give(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError as error:  # some servers report a disconnected client so
            raise HungUpError from error
