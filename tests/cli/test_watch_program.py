"""``sluicegate run --watch`` as a program, in a terminal and without one."""

from __future__ import annotations

import os
import re
import select
import signal
import time

import pytest

from tests.cli.screen import Screen
from tests.helpers import on_each_backend


POSIX = pytest.mark.skipif(os.name != "posix", reason="a terminal of POSIX is wanted")
#: Seconds after which a program that shows nothing hangs.
LIMIT = 20


class Terminal:
    """A terminal in which a program runs, and what it shows."""

    def __init__(self):
        import fcntl  # noqa: PLC0415 - where there are terminals
        import struct  # noqa: PLC0415
        import termios  # noqa: PLC0415

        self.ours, self.theirs = os.openpty()
        self.screen = Screen(width=90, height=30)
        size = struct.pack("HHHH", self.screen.height, self.screen.width, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)

    def ends(self):
        return {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs}

    def read_until(self, text):
        give_up = time.monotonic() + LIMIT  # a tree is drawn again and again
        while text not in self.screen.text:
            if not self._read():
                pytest.fail(f"the program ended before it showed {text!r}: {self.screen.text}")
            if time.monotonic() > give_up:
                pytest.fail(f"the program does not show {text!r}: {self.screen.text}")

    def read_all(self):
        os.close(self.theirs)
        while self._read():
            pass
        os.close(self.ours)
        return [re.sub(r"\d+\.\d s", "T", line) for line in self.screen.shown]

    def type(self, text):
        os.write(self.ours, text.encode())

    def _read(self):
        if not select.select([self.ours], [], [], LIMIT)[0]:
            pytest.fail(f"the program hangs, and has shown {self.screen.text}")
        try:
            data = os.read(self.ours, 65536)
        except OSError:  # Linux: the other side has been closed
            return False
        self.screen.write(data.decode())
        return bool(data)


def watching(program, terminal, backend="trio", *more):
    # The program asks no driver for the size: two of its variables come first.
    environment = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "90", "LINES": "30"}
    arguments = ("run", "flows_for_cli:Parts", "--watch", "--backend", backend, *more)
    return program(*arguments, env=environment, **terminal.ends())


@POSIX
@pytest.mark.slow_for("asyncio")
@on_each_backend
def test_a_run_in_a_terminal(program, backend):
    """The tree is there while it runs; a question has the terminal; in the end all of it is left."""
    terminal = Terminal()
    process = watching(program, terminal, backend)
    terminal.read_until("Your name?")
    assert "waits for" not in terminal.screen.text  # the tree is away
    terminal.type("Ann\n")
    assert process.wait(LIMIT) == 0
    lines = terminal.read_all()

    assert lines[:3] == ["part 0", "part 1", "part 2"]
    assert "Your name? Ann" in lines
    tree = lines[lines.index("Your name? Ann") + 1 :]
    assert re.fullmatch(r"Parts \S+  T  completed", tree[0])
    assert tree[1:] == [
        "├── begin  1 done",
        "├── work  3 done",
        "└── join  1 done",
        "hello Ann",
        "",
    ]
    assert not terminal.screen.is_cursor_hidden


@POSIX
def test_ctrl_c_in_a_watched_run(program):
    """Ctrl-C unwinds as ever, and the last frame says that the run was cancelled."""
    terminal = Terminal()
    process = watching(program, terminal)
    terminal.read_until("Your name?")
    terminal.type("wait\n")
    terminal.read_until("join  1 of 4 workers")
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 130
    lines = terminal.read_all()

    assert re.search(r"Parts \S+  T  cancelled", "\n".join(lines))
    assert lines[-2:] == ["sluicegate: interrupted", ""]


@POSIX
def test_ctrl_c_at_a_question_of_a_watched_run(program):
    """Ctrl-C while a question is open unwinds, and the tree is left below the question."""
    terminal = Terminal()
    process = watching(program, terminal)
    terminal.read_until("Your name?")
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 130

    text = "\n".join(terminal.read_all())
    assert text.index("Your name?") < text.index("cancelled")


@POSIX
@pytest.mark.slow
def test_a_dump_in_a_watched_run(program):
    """Ctrl-Backslash prints above the tree, which is drawn again."""
    terminal = Terminal()
    process = watching(program, terminal)
    terminal.read_until("Your name?")
    terminal.type("wait\n")
    terminal.read_until("join  1 of 4 workers")
    process.send_signal(signal.SIGQUIT)
    terminal.read_until("sluicegate: 1 run in process")
    terminal.read_until("in Parts.join:")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 143

    lines = terminal.read_all()
    dump = next(n for n, line in enumerate(lines) if line.startswith("sluicegate: 1 run"))
    assert any("  cancelled" in line for line in lines[dump:])


@POSIX
@pytest.mark.slow
def test_events_are_printed_above_the_tree_if_they_are_asked_for(program):
    """With a tree, events are printed where ``--events`` is given."""
    terminal = Terminal()
    process = watching(program, terminal, "trio", "--events", "pretty")
    terminal.read_until("Your name?")
    terminal.type("Ann\n")
    assert process.wait(LIMIT) == 0

    lines = terminal.read_all()
    assert any(line.startswith("ProgressEvent(") for line in lines)
    assert lines[-2] == "hello Ann"


@on_each_backend
def test_without_a_terminal_lines_are_on_standard_error(cli, monkeypatch, backend):
    """Standard output is as without ``--watch``; standard error has a line for what happens."""
    arguments = ("run", "flows_for_cli:Shout", "-i", "topic=ab", "--backend", backend)
    code, out, err = cli(*arguments, "--watch")

    assert (code, out) == cli(*arguments)[:2]
    lines = [re.sub(r"^\[ +\d+\.\d+s\] |\d+\.\d s", "", line) for line in err.splitlines()]
    assert re.fullmatch(r"run \S+ of Shout begins", lines[0])
    assert lines[1:3] == [
        "shout #1 takes Begin(topic='ab', count=1, tags=[], note=None)",
        "shout #1 returns after ",
    ]
    assert re.fullmatch(r"run \S+ has completed", lines[-1])
