"""Responses for Starlette and FastAPI that stream the events of a run.

Requires Starlette: ``pip install "sluicegate[starlette]"`` installs it, and so does FastAPI.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, final

from sluicegate._data.json import json_of, shown_fields
from sluicegate._events import WorkflowFailedEvent
from sluicegate._exceptions import single
from sluicegate._handler import WorkflowHandler
from sluicegate._loop import current_backend


try:
    from starlette.responses import Response
except ModuleNotFoundError as _error:
    _msg = 'sluicegate.responses needs Starlette; expected `pip install "sluicegate[starlette]"`'
    raise ModuleNotFoundError(_msg, name=_error.name) from _error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from starlette.background import BackgroundTask

    from sluicegate._events import Event
    from sluicegate._loop import Nursery
    from sluicegate._streams import EventStream

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

__all__ = ["EventStreamResponse", "server_sent_event"]


def server_sent_event(event: Event, cursor: str) -> bytes:
    """Return an event of a stream as a server-sent event: its id, its class, its fields.

    Fields whose names begin with an underscore are omitted. For a :class:`WorkflowFailedEvent`, it
    shows the class of the exception but not its text, which may be confidential. A value that JSON
    cannot represent is shown as its repr.

    Args:
        event: The event.
        cursor: The :attr:`~sluicegate.EventStream.cursor` behind the event, which is its id. A client
            that reconnects sends it as ``Last-Event-ID``, for ``stream_events(after=...)``.
    """
    fields = shown_fields(event)
    if isinstance(event, WorkflowFailedEvent):
        fields["exception"] = type(event.exception).__name__
    name = re.sub(r"[\r\n]", " ", type(event).__name__)
    return f"id: {cursor}\nevent: {name}\ndata: {json_of(fields)}\n\n".encode()


@final
class EventStreamResponse(Response):
    """A response that sends the events of a run, one by one, until the terminal event.

    With a handler, the response owns the run: it starts the run, and if the client disconnects, the
    server stops or sending fails, it cancels the run and waits for its clean-up before the
    response ends. With a stream, it only reads, and does not affect the run.

    The task that calls the response enters and exits the block of the run, without an async
    generator, so it is safe on every server, whenever the client disconnects.
    A failure of an owned run is raised after the terminal event has been sent, so the
    server logs it.

    ::

        @app.get("/write")
        async def write(topic: str) -> EventStreamResponse:
            return EventStreamResponse(Writer().run(topic=topic))

    Args:
        source: The handler of a run, which the response will own, or a stream to read.
        encode: Returns the bytes for an event and the cursor behind it; by default
            :func:`server_sent_event`.
        status_code: The HTTP status.
        headers: Additional headers.
        media_type: The content type.
        background: A task to run after the response is complete.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: WorkflowHandler[Any] | EventStream,
        *,
        encode: Callable[[Event, str], bytes] = server_sent_event,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        given = {"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})}
        super().__init__(None, status_code, given, media_type, background)
        del self.headers["content-length"]
        self._source: WorkflowHandler[Any] | EventStream | None = source
        self._encode = encode

    async def __call__(  # the response does not need the scope
        self,
        scope: MutableMapping[str, Any],  # noqa: ARG002
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve, as an ASGI application.

        Raises:
            BaseException: The failure of a run that the response owns; a cancellation.
        """
        source, self._source = self._source, None
        if source is None:
            msg = "an EventStreamResponse was served twice; expected a new one for each request"
            raise RuntimeError(msg)
        if isinstance(source, WorkflowHandler):
            async with source as handler:
                if await self._serve(handler.stream_events(), receive, send):
                    handler.cancel("the client disconnected")
        else:
            await self._serve(source, receive, send)
        if self.background is not None:
            await self.background()

    async def _serve(self, stream: EventStream, receive: Receive, send: Send) -> bool:
        """Send the stream to its end; return whether the client disconnected before."""
        backend = current_backend()
        has_gone = False

        async def watch(nursery: Nursery) -> None:
            nonlocal has_gone
            while (await receive())["type"] != "http.disconnect":
                pass
            has_gone = True
            backend.cancel(nursery.cancel_scope, "the client disconnected")

        try:
            async with stream, backend.open_nursery() as nursery:
                nursery.start_soon(watch, nursery, name="watch the client")
                has_gone = not await self._send(stream, send) or has_gone
                backend.cancel(nursery.cancel_scope, "the response is complete")
        except BaseExceptionGroup as group:
            raise single(group, backend.Cancelled) from None
        return has_gone

    async def _send(self, stream: EventStream, send: Send) -> bool:
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        try:
            await send(start)
            async for event in stream:
                body = self._encode(event, stream.cursor)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # some servers report a disconnected client so
            return False
        return True
