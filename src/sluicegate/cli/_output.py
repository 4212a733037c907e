"""The output of a run: its events and its result, as JSON lines or for reading."""

from __future__ import annotations

import os
import sys
import unicodedata
from typing import Any, TextIO

from sluicegate._data.json import encode, json_of, shown_fields
from sluicegate._events import Event, InputRequiredEvent, StopEvent, fields_of


#: Fields that hold a piece of a longer text: such an event is printed as its text only.
TOKENS = ("token", "delta", "chunk")
#: Fields that hold a piece or a whole message; a blank between two texts shows which.
TEXTS = ("msg", "message", "text", "content")
LONGEST = 1000


class OutputClosedError(BrokenPipeError):
    """Raised when the reader of the output has gone; a broken pipe of the workflow is not this."""


class Printer:
    """Prints the events of a run as they arrive."""

    def __init__(self, style: str, *, prompts: bool, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._style = style
        #: Whether questions are shown as a prompt.
        self._prompts = prompts
        self._has_colour = wants_colour(self._out)
        #: The last text that was printed without a line break, and the class of its event.
        self._open_text: str | None = None
        self._open_kind: type[Event] | None = None

    def event(self, event: Event) -> None:
        """Print an event of the stream.

        Raises:
            OutputClosedError: The reader of the output has gone.
        """
        if self._style == "jsonl":
            self._write(encode(event) + "\n")
        elif self._style == "pretty" and not isinstance(event, StopEvent):
            if self._prompts and isinstance(event, InputRequiredEvent):
                self.end_line()
            else:
                self._pretty(event)

    def result(self, result: Any) -> None:
        """Print the result of a run; JSON lines already contain it in the stop event.

        Raises:
            OutputClosedError: The reader of the output has gone.
        """
        if self._style == "jsonl":
            return
        self.end_line()
        if isinstance(result, str):
            self._write(f"{printable(result) if self._out.isatty() else result}\n")
        else:
            self._write(
                f"{json_of(shown_fields(result) if isinstance(result, Event) else result)}\n"
            )

    def end_line(self) -> None:
        """End the line of the last text, if there is one."""
        if self._open_text is not None:
            is_ended = self._open_text.endswith("\n")
            self._open_text = None
            if not is_ended:
                self._write("\n")

    def _pretty(self, event: Event) -> None:
        text = piece_of(event)
        if text is None:
            self.end_line()
            shown = printable(repr(event))
            shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
            name, bracket, rest = shown.partition("(")
            self._write(f"{self._coloured(name)}{bracket}{rest}\n")
            return
        if self._open_text is not None and (
            type(event) is not self._open_kind or not _continues(self._open_text, text, event)
        ):
            self.end_line()
        self._open_kind = type(event)
        # An empty piece does not change the end of the text before it.
        self._open_text = text or self._open_text or ""
        self._write(printable(text))

    def _coloured(self, text: str) -> str:
        return f"\x1b[36m{text}\x1b[0m" if self._has_colour else text

    def _write(self, text: str) -> None:
        emit(text, self._out)


def emit(text: str, out: TextIO | None = None) -> None:
    """Write a text at once, with escapes for what the stream cannot encode.

    Args:
        text: The text.
        out: The stream; by default standard output.

    Raises:
        OutputClosedError: The reader of the output has gone.
    """
    stream = sys.stdout if out is None else out
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError as error:
        raise OutputClosedError from error


def note(text: str) -> None:
    """Print a line of this program, not of the workflow, on standard error."""
    emit(f"sluicegate: {one_line(text)}\n", sys.stderr)


def wants_colour(out: TextIO) -> bool:
    """Whether colours are wanted: on a terminal, unless the environment says otherwise."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Return ``text`` without control characters for the terminal."""
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) != "Cc" else f"\\x{ord(c):02x}" for c in text
    )


def one_line(text: str) -> str:
    """Return ``text`` as one line for the terminal, with an escape for whatever cannot be printed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# -- pieces of text --------------------------------------------------------------------------


def _only_text(event: Event) -> tuple[str, str] | None:
    values = fields_of(event)
    if len(values) != 1:
        return None
    ((name, value),) = values.items()
    return (name, value) if isinstance(value, str) else None


def piece_of(event: Event) -> str | None:
    """Return the text of an event whose only field is a text, or None."""
    only = _only_text(event)
    return only[1] if only is not None and only[0] in (*TOKENS, *TEXTS) else None


def _continues(before: str, text: str, event: Event) -> bool:
    """Whether a piece continues the line of the one before it."""
    only = _only_text(event)
    if not text or (only is not None and only[0] in TOKENS):
        return True
    return before[-1:].isspace() or text[0].isspace()
