"""The command line as a program: signals, pipes, terminals, and what it imports."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys

import pytest

from sluicegate.cli._parser import build_parser
from sluicegate.cli._targets import UsageError
from tests.helpers import on_each_backend


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and terminals")
#: No test waits that long; a hang fails instead of holding up the suite.
LIMIT = 30


def finish(process):
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out.decode(), err.decode()


@on_each_backend
def test_exit_code_and_streams(program, backend):
    """The program is the same as main(): events and result on standard output, exit code 0."""
    code, out, err = finish(
        program("run", "flows_for_cli:Shout", "-i", "topic=ab", "--backend", backend)
    )

    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1]) == {"event": "StopEvent", "result": "AB"}


def test_usage_error(program):
    """A wrong command is exit code 2 and one line on standard error."""
    code, out, err = finish(program("run"))

    assert (code, out) == (2, "")
    assert (
        err
    ) == "sluicegate: the following arguments are required: TARGET; see `sluicegate run --help`\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("run", "flows:Shout", "topic=ab", "count=2"),
            "unrecognized arguments: topic=ab count=2; expected `-i topic=ab`; see `sluicegate run --help`",
        ),
        (("draw", "flows:Shout", "b"), "unrecognized arguments: b; see `sluicegate draw --help`"),
    ],
)
def test_arguments_that_a_command_does_not_take(arguments, message):
    """The error names the command, and how an input is given."""
    with pytest.raises(UsageError) as caught:
        build_parser().parse_args(arguments)

    assert str(caught.value) == message


def test_trio_imports_trio_only(program):
    """P20: under --backend trio, the default, neither asyncio nor AnyIO is imported."""
    assert finish(program("run", "flows_for_cli:Imports", "--events", "none")) == (0, "[]\n", "")


@POSIX
@on_each_backend
def test_interrupt_runs_the_clean_up(program, backend, tmp_path):
    """Ctrl-C cancels the run, lets its finally blocks run to their end, and gives 130."""
    mark = tmp_path / "mark"
    process = program("run", "flows_for_cli:Sleeper", "-i", f"mark={mark}", "--backend", backend)
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)

    assert json.loads(first) == {"event": "Progress", "msg": "asleep"}
    assert (code, err) == (130, "sluicegate: interrupted\n")
    assert mark.read_text() == "cleaned up"


@pytest.mark.slow
@POSIX
@on_each_backend
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_other_signals_run_the_clean_up(program, backend, name, code, tmp_path):
    """P22: SIGTERM and SIGHUP unwind the run as Ctrl-C does, and give 128 and their number."""
    mark = tmp_path / "mark"
    process = program("run", "flows_for_cli:Sleeper", "-i", f"mark={mark}", "--backend", backend)
    assert process.stdout.readline()
    process.send_signal(getattr(signal, name))
    status, _, err = finish(process)

    assert (status, err) == (code, f"sluicegate: ended by {name}\n")
    assert mark.read_text() == "cleaned up"


@pytest.mark.slow
@POSIX
def test_a_hang_up_under_nohup_is_ignored(program, tmp_path):
    """P22: a signal that was ignored when the program began stays ignored."""
    process = program(
        "run",
        "flows_for_cli:Sleeper",
        "-i",
        f"mark={tmp_path / 'mark'}",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)

    assert (status, err) == (143, "sluicegate: ended by SIGTERM\n")


@pytest.mark.slow
@POSIX
@on_each_backend
def test_a_reader_that_goes_away(program, backend, tmp_path):
    """As in `| head -1`: the run is cancelled with its clean-up, and nothing is complained of."""
    mark = tmp_path / "mark"
    process = program("run", "flows_for_cli:Flood", "-i", f"mark={mark}", "--backend", backend)
    assert process.stdout.readline()
    process.stdout.close()
    process.wait(LIMIT)

    assert (process.returncode, process.stderr.read()) == (141, b"")
    assert mark.read_text() == "cleaned up"


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("command", [("draw", "-o", "-"), ("check",), ("run", "--events", "none")])
def test_a_reader_that_takes_nothing(program, command):
    """No command has a traceback for a reader that has gone, nor has the interpreter's exit."""
    reading, writing = os.pipe()
    os.close(reading)
    process = program(command[0], "flows_for_cli:Fixed", *command[1:], stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=LIMIT)

    assert (process.returncode, err) == (141, b"")


# -- terminals -------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal that a program is started on."""

    def __init__(self):
        self.ours, self.theirs = os.openpty()
        self.seen = ""

    def ends(self):
        return {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs}

    def read_until(self, text):
        while text not in self.seen:
            if not self._read():
                pytest.fail(f"the program ended before it showed {text!r}: {self.seen!r}")

    def read_all(self):
        os.close(self.theirs)
        while self._read():
            pass
        os.close(self.ours)
        return self.seen.replace("\r\n", "\n")

    def type(self, text):
        os.write(self.ours, text.encode())

    def _read(self):
        if not select.select([self.ours], [], [], LIMIT)[0]:
            pytest.fail(f"the program hangs, and has shown {self.seen!r}")
        try:
            data = os.read(self.ours, 4096)
        except OSError:  # Linux: the other side has been closed
            return False
        self.seen += data.decode()
        return bool(data)


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_colour(program, variables, is_coloured):
    """A terminal gets events for reading, in colour unless NO_COLOR is set."""
    terminal = Terminal()
    process = program(
        "run", "flows_for_cli:Shout", "-i", "topic=ab", env=variables, **terminal.ends()
    )
    seen = terminal.read_all()

    assert process.wait(LIMIT) == 0
    assert "Call me Ishmael\n" in seen
    assert is_coloured == ("\x1b[36mOdd\x1b[0m(" in seen)
    assert is_coloured == ("\x1b" in seen)


@pytest.mark.slow
@POSIX
@on_each_backend
def test_a_prompt(program, backend):
    """On a terminal a question is a prompt, and the line typed is the answer."""
    terminal = Terminal()
    process = program("run", "flows_for_cli:Greeter", "--backend", backend, **terminal.ends())
    terminal.read_until("Your name? ")
    terminal.type("Ada\n")
    seen = terminal.read_all()

    assert process.wait(LIMIT) == 0
    assert seen.endswith("Hello Ada\n")
    assert "AskName" not in seen  # the prompt stands for it


@pytest.mark.slow
@POSIX
def test_a_prompt_may_be_answered_again(program):
    """Someone at a terminal who types what does not fit is told, and asked again."""
    terminal = Terminal()
    process = program("run", "flows_for_cli:Approve", **terminal.ends())
    terminal.read_until("Approve? ")
    terminal.type("yes\n")
    terminal.read_until("expected as answer")
    terminal.type('{"approved": false}\n')
    seen = terminal.read_all()

    assert process.wait(LIMIT) == 0
    assert seen.endswith("False \n")


@pytest.mark.slow
@POSIX
@on_each_backend
def test_a_prompt_can_be_left_waiting(program, backend):
    """A run that times out while someone is asked ends at once: the prompt holds up nothing."""
    terminal = Terminal()
    process = program(
        *("run", "flows_for_cli:Greeter", "--timeout", "0.01", "--backend", backend),
        **terminal.ends(),
    )
    seen = terminal.read_all()

    assert process.wait(LIMIT) == 124
    assert "waiting for an answer from outside" in seen


@pytest.mark.slow
@POSIX
@on_each_backend
def test_interrupt_at_a_prompt(program, backend):
    """Ctrl-C at a prompt ends the program although its thread still reads the terminal."""
    terminal = Terminal()
    process = program("run", "flows_for_cli:Greeter", "--backend", backend, **terminal.ends())
    terminal.read_until("Your name? ")
    process.send_signal(signal.SIGINT)
    seen = terminal.read_all()

    assert process.wait(LIMIT) == 130
    assert seen.endswith("sluicegate: interrupted\n")


@pytest.mark.slow
@POSIX
def test_an_open_pipe_as_standard_input(program):
    """Lines are read one at a time, while more may come: a question has its answer at once."""
    process = program("run", "flows_for_cli:Greeter", stdin=subprocess.PIPE)
    process.stdin.write(b"Ada\n")
    process.stdin.flush()
    process.wait(LIMIT)

    assert b"Hello Ada" in process.stdout.read()


@pytest.mark.slow
@pytest.mark.parametrize(("status", "code"), [("7", 7), ("'bye'", 1), ("", 0)])
def test_exit_of_a_workflow_is_its_own(tmp_path, status, code):
    """``sys.exit`` in a step ends the program as it does everywhere, with what it said."""
    (tmp_path / "leaves.py").write_text(
        "import sys\n"
        "from sluicegate import StartEvent, StopEvent, Workflow, step\n"
        "class Leaves(Workflow):\n"
        "    @step\n"
        "    async def leave(self, ev: StartEvent) -> StopEvent:\n"
        f"        sys.exit({status})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sluicegate", "run", "leaves.py:Leaves"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == code
    assert done.stderr == ("bye\n" if code == 1 else "")
