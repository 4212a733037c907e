"""Server-sent events: reads the data of each event from the bytes of a response."""

from __future__ import annotations

import codecs
import re
from math import inf


# The three line ends of the event stream format. `str.splitlines` has eight more, among them U+2028,
# which JSON text may contain.
_LINE_END = re.compile("\r\n|\r|\n")


class EventTooLargeError(Exception):
    """Raised when an event has more characters than the limit."""


class EventDecoder:
    """
    Accepts the bytes as they arrive, cut at any place, and returns the ``data`` of whole events.

    Its time is linear in the number of bytes, however long a line is. An event of more than
    ``most`` characters is refused.

    Comments (which servers send to keep a connection alive) and ``event``, ``id`` and ``retry``
    lines are ignored, because this API puts everything into the data.
    """

    def __init__(self, most: float = inf) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._most = most
        self._line: list[str] = []  # the pieces of a line that has not ended
        self._held_back = ""  # a "\r" that may be half of a "\r\n"
        self._data: list[str] | None = None  # the data lines of the event being read
        self._size = 0  # of the pieces and of the data

    def feed(self, received: bytes) -> list[str]:
        """
        Return the data of the events that ``received`` completes.

        Raises:
            EventTooLargeError: The current event is too large.
        """
        return self._take(self._decoder.decode(received))

    def flush(self) -> list[str]:
        """
        Return the data of an event at the end of the stream that lacks its blank line.

        The standard drops such an event, but some servers omit the last line end.
        """
        return self._take(self._decoder.decode(b"", final=True) + "\n\n")

    def _take(self, text: str) -> list[str]:
        text = self._held_back + text
        self._held_back = "\r" if text.endswith("\r") else ""
        first, *others = _LINE_END.split(text.removesuffix(self._held_back))
        events: list[str] = []
        for piece in others:
            self._add(first)
            if (data := self._line_ended()) is not None:
                events.append(data)
            first = piece
        self._add(first)
        return events

    def _add(self, piece: str) -> None:
        self._line.append(piece)
        self._size += len(piece)
        if self._size > self._most:
            msg = f"an event has more than {self._most} characters"
            raise EventTooLargeError(msg)

    def _line_ended(self) -> str | None:
        line = "".join(self._line)
        self._line.clear()
        if not line:
            data, self._data = self._data, None
            self._size = 0
            return None if data is None else "\n".join(data)
        field, _, value = line.partition(":")
        if field == "data":
            self._data = [] if self._data is None else self._data
            self._data.append(value.removeprefix(" "))
        else:
            self._size -= len(line)
        return None
