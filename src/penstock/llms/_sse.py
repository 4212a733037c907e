"""Server-sent events: the data of each event out of the bytes of a response."""

from __future__ import annotations

import codecs
import re


# The three line ends of the event stream format. `str.splitlines` knows eight more, among them
# U+2028, which JSON may contain as it is.
_LINE_END = re.compile("\r\n|\r|\n")


class EventDecoder:
    """
    Takes the bytes as they arrive, in pieces cut anywhere, and gives the ``data`` of whole events.

    Comments (which servers send to keep a connection alive), ``event``, ``id`` and ``retry`` lines
    are passed over: the API at hand puts everything into the data.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line = ""  # what there is of a line that has not ended
        self._data: list[str] | None = None  # the data lines of the event being read

    def feed(self, received: bytes) -> list[str]:
        """Give the data of the events that ``received`` completes."""
        return self._take(self._decoder.decode(received))

    def flush(self) -> list[str]:
        """
        Give the data of an event that the end of the stream cuts short of its blank line.

        The standard says to drop it; servers that forget the last line end mean it.
        """
        return self._take(self._decoder.decode(b"", final=True) + "\n\n")

    def _take(self, text: str) -> list[str]:
        # A "\r" at the very end may be half of a "\r\n": it waits with its line.
        text = self._line + text
        held_back = "\r" if text.endswith("\r") else ""
        *lines, rest = _LINE_END.split(text.removesuffix(held_back))
        self._line = rest + held_back
        return [data for line in lines if (data := self._line_ended(line)) is not None]

    def _line_ended(self, line: str) -> str | None:
        if not line:
            data, self._data = self._data, None
            return None if data is None else "\n".join(data)
        field, _, value = line.partition(":")
        if field == "data":
            self._data = [] if self._data is None else self._data
            self._data.append(value.removeprefix(" "))
        return None
