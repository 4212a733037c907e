"""The end of a terminal's output, which is drawn again and again below what is printed meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from io import StringIO
from typing import TYPE_CHECKING, Any, Self, TextIO, cast, final

from rich.console import Console


if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType


@final
class Region:
    """Some lines at the end of a terminal's output.

    While the context is entered, what is written to ``sys.stdout`` and ``sys.stderr`` appears above
    the region, if these are terminals: line by line, and the beginning of a line in the region itself.
    Each frame is one write, and the cursor is never hidden, so a process that is killed leaves the
    terminal as it should be.

    Args:
        out: The terminal.
        draw: Returns what to draw, given the number of lines that there are.
    """

    def __init__(self, out: TextIO, draw: Callable[[int], RenderableType]) -> None:
        self._out = out
        self._draw = draw
        self._colours: Any = Console(file=out).color_system
        #: The lines of the region that are on the terminal, and the frame that was drawn last.
        self._height = 0
        self._drawn: list[str] = []
        self.is_hidden = False
        #: Guards the terminal: the thread that draws, and those that print.
        self.lock = threading.RLock()
        self._proxies: list[tuple[str, _Above]] = []

    def __enter__(self) -> Self:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _is_terminal(stream):
                proxy = _Above(self, stream)
                self._proxies.append((name, proxy))
                setattr(sys, name, proxy)
        return self

    def __exit__(self, *_: object) -> None:
        """Draw a last frame, which stays, and give the streams back."""
        with self.lock:
            if self.is_hidden:
                self.is_hidden = False
                self._write("\n")  # below a question that was not answered
            self.refresh()
            self._height = 0
            for name, proxy in self._proxies:
                if getattr(sys, name) is proxy:
                    setattr(sys, name, proxy.stream)
                proxy.finish()

    def refresh(self) -> None:
        """Draw the region anew."""
        if self.is_hidden:
            return
        drawn = self._render()
        with self.lock:
            self._drawn = drawn
            if not self.is_hidden:
                self._write(self._erase() + self._frame())

    def hide(self) -> None:
        """Take the region away, so that someone else can use the terminal."""
        with self.lock:
            if not self.is_hidden:
                self.is_hidden = True
                self._write(self._erase())

    def show(self) -> None:
        """Draw the region again, after :meth:`hide`."""
        with self.lock:
            self.is_hidden = False
            self._write(self._frame())

    def print_above(self, stream: TextIO, text: str) -> None:
        """Print whole lines above the region; it is not drawn anew for that, which takes long."""
        with self.lock:
            if erase := self._erase():
                self._write(erase)
            stream.write(text)
            stream.flush()
            self._write(self._frame())

    def interrupt(self, text: str) -> None:
        """Print whole lines above the region in a signal handler, past the buffers of the streams."""
        with self.lock:  # only a thread that writes to the terminal has it
            data = (self._erase() + text).encode(errors="replace")
            while data:
                data = data[os.write(self._out.fileno(), data) :]

    def _erase(self) -> str:
        height, self._height = self._height, 0
        return f"\r\x1b[{height}A\x1b[J" if height else ""

    def _render(self) -> list[str]:
        width, lines = shutil.get_terminal_size()
        room = max(lines - 1 - len(self._proxies), 1)
        console = Console(
            file=StringIO(),
            force_terminal=True,
            color_system=self._colours,
            width=width,
            height=lines,
            legacy_windows=False,
        )
        with console.capture() as captured:
            console.print(self._draw(room), overflow="ellipsis", no_wrap=True)
        drawn = captured.get().splitlines()
        if len(drawn) > room:
            drawn[room - 1 :] = [f"... {len(drawn) - room + 1} more lines"]
        return drawn

    def _frame(self) -> str:
        width = shutil.get_terminal_size().columns
        begun = [proxy.begun[-width + 1 :] for _, proxy in self._proxies if proxy.begun]
        rows = begun + self._drawn
        self._height = len(rows)
        return "".join(f"{row}\n" for row in rows)

    def _write(self, text: str) -> None:
        encoding = self._out.encoding or "utf-8"
        self._out.write(text.encode(encoding, "replace").decode(encoding))
        self._out.flush()


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:  # it is closed
        return False


@final
class _Above:
    """A stream in the place of ``sys.stdout`` or ``sys.stderr``: what is written to it appears above."""

    def __init__(self, region: Region, stream: TextIO) -> None:
        self._region = region
        self.stream = stream
        #: The beginning of a line that has not ended.
        self.begun = ""

    def write(self, text: str) -> int:
        """Print the lines that are complete, and keep the beginning of the next one."""
        with self._region.lock:
            if self._region.is_hidden:
                return self.stream.write(text)
            lines, ending, self.begun = (self.begun + text).rpartition("\n")
            if ending:
                self._region.print_above(self.stream, f"{lines}\n")
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Leave the beginning of a line to the next frame."""
        self.stream.flush()

    def finish(self) -> None:
        """Print the beginning of a line that has not ended, as it is."""
        begun, self.begun = self.begun, ""
        if begun:
            self.stream.write(begun)
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal: only those are replaced."""
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(cast("Any", self.stream), name)
