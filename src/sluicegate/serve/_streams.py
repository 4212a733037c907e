"""The formats in which the events of a run are streamed.

A further format is an :class:`~sluicegate._asgi.Encoder` and an entry of :data:`FORMATS`:

* ``media_type`` is what a client names in ``Accept``, and ``name`` what it names in ``?format=``.
* ``encoder(info)`` makes the encoder of one response. :class:`StreamInfo` says which run it is of.
  ``encoder.event(event, cursor)`` gets each event of the stream, in order, and returns bytes;
  the other methods return what is sent around them.
* With ``is_internal``, the encoder gets the engine's internal events, too: ``StepStateChanged`` where a
  step starts and ends, ``UnhandledEvent``, ``WorkflowIdleEvent``. They are in the order of the stream.
* With a ``content_type``, the response has that one, and not the ``media_type``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sluicegate._asgi import HEARTBEAT, Encoder, sse_block
from sluicegate.serve._ag_ui_exchange import SpectatorEncoder
from sluicegate.serve._data import envelope_json
from sluicegate.serve._events import ServerStopping, StreamGap
from sluicegate.serve._requests import Refusal


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._events import Event
    from sluicegate.serve._requests import Exchange


@attrs.frozen
class StreamInfo:
    """The subject of a response that streams.

    Attributes:
        run_id: The run.
        workflow: The name of its workflow on the server.
        names_class: Whether qualified names of classes are shown.
    """

    run_id: str
    workflow: str
    names_class: bool = True


@attrs.frozen
class Format:
    """A format of streams; see the module."""

    name: str
    media_type: str
    encoder: Callable[[StreamInfo], Encoder]
    is_internal: bool = False
    content_type: str | None = None


class SseEncoder(Encoder):
    """Server-sent events: the cursor, the class, the envelope."""

    def __init__(self, info: StreamInfo) -> None:
        self._names_class = info.names_class

    def event(self, event: Event, cursor: str) -> bytes:
        data = envelope_json(event, names_class=self._names_class)
        return sse_block(type(event).__name__, data, cursor)

    def gap(self, missed: int) -> bytes:
        return self._notice(StreamGap(missed=missed))

    def stopping(self, grace: float) -> bytes:
        return self._notice(ServerStopping(grace=grace))

    def _notice(self, event: Event) -> bytes:
        """Return a notice. It has no id, so that the cursor of the reader stays."""
        return sse_block(type(event).__name__, envelope_json(event))

    def heartbeat(self) -> bytes:
        return HEARTBEAT


class NdjsonEncoder(Encoder):
    """A line of JSON for each event: the envelope, and the cursor. An empty line is a heartbeat."""

    def __init__(self, info: StreamInfo) -> None:
        self._names_class = info.names_class

    def event(self, event: Event, cursor: str) -> bytes:
        line = envelope_json(event, names_class=self._names_class)
        return f'{line[:-1]},"cursor":"{cursor}"}}\n'.encode("utf-8", "backslashreplace")

    def gap(self, missed: int) -> bytes:
        return self._notice(StreamGap(missed=missed))

    def stopping(self, grace: float) -> bytes:
        return self._notice(ServerStopping(grace=grace))

    def _notice(self, event: Event) -> bytes:
        return f'{envelope_json(event)[:-1]},"cursor":null}}\n'.encode()

    def heartbeat(self) -> bytes:
        return b"\n"


SSE = Format("sse", "text/event-stream", SseEncoder)
NDJSON = Format("ndjson", "application/x-ndjson", NdjsonEncoder)

AG_UI = Format(
    "ag-ui",
    "application/vnd.ag-ui.event-stream+json",
    lambda info: SpectatorEncoder(info.run_id, info.workflow),
    is_internal=True,
    content_type="text/event-stream",
)

#: The formats, the default first.
FORMATS: list[Format] = [SSE, NDJSON, AG_UI]


def accepted(header: str) -> list[str]:
    """Return the media types of an ``Accept`` header, the most wanted first."""
    found: list[tuple[float, str]] = []
    for part in header.split(","):
        media, *options = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for option in options:
            if option.startswith("q="):
                try:
                    quality = float(option[2:])
                except ValueError:
                    quality = 0.0
        if media and quality > 0:
            found.append((quality, media.lower()))
    return [media for _, media in sorted(found, key=lambda each: -each[0])]


def wanted_format(exchange: Exchange) -> Format | None:
    """Return the format that a request asks for; None for none of them.

    Raises:
        Refusal: ``?format=`` names none.
    """
    name = exchange.query.get("format")
    if name is not None:
        for form in FORMATS:
            if form.name == name:
                return form
        names = ", ".join(form.name for form in FORMATS)
        msg = f"?format={name[:100]}; expected one of {names}"
        raise Refusal(400, msg, field="query.format")
    if "sse" in exchange.query:
        return SSE if exchange.flag("sse") else NDJSON
    for media in accepted(exchange.headers.get("accept", "")):
        for form in FORMATS:
            if form.media_type == media:
                return form
        if media in ("application/json", "*/*", "application/*"):
            return None
    return None


def check_flags(exchange: Exchange) -> None:
    """Refuse a request for a stream whose flags are none, before it has any effect.

    Raises:
        Refusal: One is no boolean.
    """
    for name in ("include_internal", "include_qualified_name", "sse"):
        exchange.flag(name)
