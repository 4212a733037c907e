"""Responses for Starlette and FastAPI that stream the events of a run.

Requires Starlette: ``pip install "sluicegate[starlette]"`` installs it, and so does FastAPI.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, final

from sluicegate._asgi import STREAM_HEADERS, Encoder, EventWriter, sse_block, while_connected
from sluicegate._data.json import json_of, shown_fields
from sluicegate._errors import name_of
from sluicegate._events import WorkflowFailedEvent
from sluicegate._handler import WorkflowHandler


try:
    from starlette.responses import Response
except ModuleNotFoundError as _error:
    _msg = 'sluicegate.responses needs Starlette; expected `pip install "sluicegate[starlette]"`'
    raise ModuleNotFoundError(_msg, name=_error.name) from _error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from starlette.background import BackgroundTask

    from sluicegate._asgi import Receive, Send
    from sluicegate._events import Event
    from sluicegate._streams import EventStream

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
        fields["exception"] = name_of(event.exception)
    return sse_block(type(event).__name__, json_of(fields), cursor)


class _Plain(Encoder):
    """Sends each event as a function encodes it, and nothing else."""

    def __init__(self, encode: Callable[[Event, str], bytes]) -> None:
        self._encode = encode

    def event(self, event: Event, cursor: str) -> bytes:
        return self._encode(event, cursor)


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
        given = {**STREAM_HEADERS, **(headers or {})}
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
        writer = EventWriter(
            send, _Plain(self._encode), status=self.status_code, headers=self.raw_headers
        )

        async with stream:
            return await while_connected(receive, partial(writer.serve, stream))
