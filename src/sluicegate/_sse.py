"""Server-sent events: reads the events of a response from its bytes."""

from __future__ import annotations

import codecs
import re
from math import inf
from typing import NamedTuple


# The three line ends of the event stream format. `str.splitlines` has eight more, among them U+2028,
# which JSON text may contain.
_LINE_END = re.compile("\r\n|\r|\n")


class EventTooLargeError(Exception):
    """Raised when an event has more characters than the limit."""


class ServerSentEvent(NamedTuple):
    """A whole event.

    Attributes:
        data: Its lines of data, joined by line feeds.
        event: The name of its kind; empty if it has none.
        id: The last id of the response so far, which a reader that reconnects names; empty if none.
    """

    data: str
    event: str = ""
    id: str = ""


class EventDecoder:
    """
    Accepts the bytes as they arrive, cut at any place, and returns whole events.

    Its time is linear in the number of bytes, however long a line is. An event of more than
    ``most`` characters is refused.

    Comments (which servers send to keep a connection alive) and ``retry`` lines are ignored.
    """

    def __init__(self, most: float = inf) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._most = most
        self._line: list[str] = []  # the pieces of a line that has not ended
        self._held_back = ""  # a "\r" that may be half of a "\r\n"
        self._data: list[str] | None = None  # the data lines of the event being read
        self._event = ""
        self._id = ""
        self._size = 0  # of the pieces and of the data

    def feed(self, received: bytes) -> list[ServerSentEvent]:
        """
        Return the events that ``received`` completes.

        Raises:
            EventTooLargeError: The current event is too large.
        """
        return self._take(self._decoder.decode(received))

    def flush(self) -> list[ServerSentEvent]:
        """
        Return an event at the end of the stream that lacks its blank line.

        The standard drops such an event, but some servers omit the last line end.
        """
        return self._take(self._decoder.decode(b"", final=True) + "\n\n")

    def _take(self, text: str) -> list[ServerSentEvent]:
        text = self._held_back + text
        self._held_back = "\r" if text.endswith("\r") else ""
        first, *others = _LINE_END.split(text.removesuffix(self._held_back))
        events: list[ServerSentEvent] = []
        for piece in others:
            self._add(first)
            if (event := self._line_ended()) is not None:
                events.append(event)
            first = piece
        self._add(first)
        return events

    def _add(self, piece: str) -> None:
        self._line.append(piece)
        self._size += len(piece)
        if self._size > self._most:
            msg = f"an event has more than {self._most} characters"
            raise EventTooLargeError(msg)

    def _line_ended(self) -> ServerSentEvent | None:
        line = "".join(self._line)
        self._line.clear()
        if not line:
            return self._event_ended()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data = [] if self._data is None else self._data
            self._data.append(value)
            return None
        self._size -= len(line)
        if field == "event":
            self._event = value
        elif field == "id" and "\0" not in value:
            self._id = value
        return None

    def _event_ended(self) -> ServerSentEvent | None:
        data, self._data = self._data, None
        event, self._event = self._event, ""
        self._size = 0
        return None if data is None else ServerSentEvent("\n".join(data), event, self._id)
