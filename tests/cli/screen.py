"""A terminal for the tests: what a person sees after all that was written to it."""

from __future__ import annotations

import re


_PART = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|[\r\n\b\x07]|[^\x1b\r\n\b\x07]+")


class Screen:
    """The lines of a terminal, with the control sequences that the watch uses; others are an error."""

    def __init__(self, width=100, height=40):
        self.width = width
        self.height = height
        self.lines = [""]
        self.row = self.column = 0
        self.is_cursor_hidden = False

    def write(self, text):
        """Take what a program writes; the terminal's driver has made ``\\r\\n`` of line breaks."""
        at = 0
        while at < len(text):
            part = _PART.match(text, at)
            assert part is not None, f"not known to this terminal: {text[at : at + 20]!r}"
            at = part.end()
            if part[2] is not None:
                self._control(part[1], part[2])
            elif part[0] == "\r":
                self.column = 0
            elif part[0] == "\n":
                self._down()
            elif part[0] not in "\b\x07":
                self._put(part[0])

    def _down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _put(self, text):
        for character in text:
            if self.column == self.width:
                self.column = 0
                self._down()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def _control(self, arguments, letter):
        if letter == "A":
            top = max(len(self.lines) - self.height, 0)
            self.row = max(self.row - int(arguments or 1), top)
        elif letter == "J":
            assert arguments in ("", "0")
            self.lines[self.row :] = [self.lines[self.row][: self.column]]
        elif letter in "hl":
            self.is_cursor_hidden = letter == "l" and arguments == "?25"
        else:
            assert letter == "m", f"not known to this terminal: {letter}"

    @property
    def shown(self):
        """The lines, without blanks at their ends."""
        return [line.rstrip() for line in self.lines]

    @property
    def text(self):
        """The lines as one text."""
        return "\n".join(self.shown)
