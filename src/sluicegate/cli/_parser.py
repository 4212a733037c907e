"""The grammar of the command line, and its help."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import Any, NoReturn

from sluicegate._definition.checks import SKIPPABLE
from sluicegate.cli._options import (
    TARGET,
    add_command,
    add_drawing,
    add_running,
    add_target,
    seconds,
)
from sluicegate.cli._runs_parser import add_runs, add_worker
from sluicegate.cli._serve_parser import add_serve
from sluicegate.cli._targets import UsageError


_RUN = f"""\
Run a workflow: print the events of its stream as they arrive, then its result.

{TARGET}

example:
  sluicegate run examples/fan_out.py:Duplicates -i root=src --timeout 30

input:
  -i count=3 keeps the value as a string if the start event's field accepts one, or if the
  workflow does not declare the field; otherwise the value is read as JSON. Input is checked
  against the fields of the start event.

events:
  jsonl   one line of JSON for each, {{"event": "ClassName", "field": ...}}, the result last; the
          default if standard output is not a terminal. A path is written as its text, any other
          value that JSON cannot represent as its repr. A field named "event" is written as
          "event_".
  pretty  for reading. An event whose only field is a string named token, delta or chunk is
          printed as that text, without a line break. So is a field named msg, message, text or
          content; it continues the line before it if there is a blank between the two.
  none    only the result.
  In pretty and none a string result is printed as it is, any other result as JSON.

watch:
  --watch shows a tree of the steps with their workers, queues, waits and progress. It needs rich
  (pip install 'sluicegate[cli]') and a terminal; otherwise each thing that happens is a line with
  the time since the run began. With a tree, events are printed only if --events is given too.

questions:
  For each question of the workflow (InputRequiredEvent) a line is read from standard input, with
  a prompt on a terminal. The answer is HumanResponseEvent(response=line). If the workflow takes
  another class of answers, the line fills its only field or its field "response"; if it has
  several fields, the line is a JSON object.

exit codes:
  0 completed   1 the workflow raised   2 wrong usage or input   124 timed out
  130 interrupted, after the clean-up   141 the reader of the output has gone
"""

_DRAW = f"""\
Draw all possible flows of a workflow. The form follows the suffix of the file:

  .html           a page with zoom and search, which needs no network; the default
  .svg            a picture
  .mmd, .mermaid  a flowchart for Mermaid, which GitHub draws
  .dot, .gv       a graph for Graphviz
  .txt            text for a terminal
  .json           nodes and edges for other programs

A workflow with faults is drawn as far as possible.

{TARGET}

example:
  sluicegate draw examples/streaming.py:Essay -o essay.svg
"""

_CHECK = f"""\
Check that the steps and events of a workflow fit together. Prints "ok" and a summary, or every
fault with its fix; the exit code is 1 if there are faults. A note names each step that can return
None although its signature does not declare it. A file or module without a name is checked whole:
every workflow that it defines.

{TARGET}

example:
  sluicegate check examples/streaming.py:Essay
"""

_RECORD = f"""\
Run a workflow as `sluicegate run` does, and record what happens in a file of JSON lines: each event
with its cause, each call of a step with its times, waits, cancellations. Field values are shortened, and
fields declared with repr=False are hidden.

{TARGET}

example:
  sluicegate record examples/fan_out.py:Duplicates -i root=src -o run.jsonl
  sluicegate summary run.jsonl

exit codes: those of `sluicegate run`
"""

_SUMMARY = """\
Print the summary of a recording: how the run ended, the times of each step, cancellations with the
time that each took to unwind, and the critical path: the chain of causes that determined when the run ended.

example:
  sluicegate summary run.jsonl
  sluicegate summary run.jsonl --perfetto trace.json     and open it at https://ui.perfetto.dev
"""

_TIMELINE = """\
Draw the timeline of a recording: when each invocation was queued, ran, waited and unwound, and
what caused it. The form follows the suffix of the file:

  .html   a page with zoom and search, which needs no network; the default
  .json   a trace for https://ui.perfetto.dev

example:
  sluicegate timeline run.jsonl -o run.html
  sluicegate timeline run.jsonl --text
"""

_COMPLETION = """\
Print a script with which a shell completes commands, options and targets. No workflow is imported
to complete a target.

example:
  sluicegate completion bash > ~/.local/share/bash-completion/completions/sluicegate

bash:  eval "$(sluicegate completion bash)"      in ~/.bashrc
zsh:   eval "$(sluicegate completion zsh)"       in ~/.zshrc, after compinit
fish:  sluicegate completion fish | source       in ~/.config/fish/config.fish
"""


class _Parser(argparse.ArgumentParser):
    """A parser that raises its errors, one line each, instead of printing them."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] - it has overloads
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        # The parser of a command refuses what it does not know, so the error names this command.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            first = next((word for word in unknown if "=" in word and word[0] != "-"), None)
            hint = (
                f"; expected `-i {first}`"
                if first and self.prog.endswith((" run", " record"))
                else ""
            )
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        text = f"{message}; see `{self.prog} --help`"
        raise UsageError(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="sluicegate",
        description="Run, serve, record, draw and check event-driven workflows.",
        epilog="example:\n  sluicegate run examples/fan_out.py:Duplicates -i root=src",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"sluicegate {metadata.version('sluicegate')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(_command(commands, "run", "run a workflow and print its events", _RUN))
    _add_record(_command(commands, "record", "run a workflow and record it in a file", _RECORD))
    _add_summary(commands)
    _add_timeline(commands)
    draw = _command(commands, "draw", "draw all possible flows", _DRAW)
    draw.add_argument(
        "-o", "--output", metavar="FILE", help='default: NAME.html; "-" is standard output'
    )
    draw.add_argument(
        "--form",
        choices=("html", "svg", "mermaid", "dot", "text", "json"),
        help="the form, whatever the suffix; default for standard output: html",
    )
    check = _command(commands, "check", "check that steps and events fit together", _CHECK)
    check.add_argument(
        "--skip",
        metavar="CHECK",
        action="append",
        default=[],
        choices=SKIPPABLE,
        help=f"skip a check: {', '.join(SKIPPABLE)}; can be repeated",
    )
    check.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 if a step can return None but does not declare it",
    )
    add_runs(commands)
    add_worker(commands)
    add_serve(commands)
    _add_completion(commands)
    return parser


def _add_record(record: argparse.ArgumentParser) -> None:
    record.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="default: NAME.jsonl; an earlier recording is replaced, another file never",
    )
    record.add_argument(
        "--append", action="store_true", help="add the run to the recording in the file"
    )
    _add_run(record)


def _add_summary(commands: argparse._SubParsersAction[_Parser]) -> None:
    summary = commands.add_parser(
        "summary",
        help="print the summary of a recording",
        description=_SUMMARY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    summary.add_argument("file", metavar="FILE", help="a file of `sluicegate record` or a Recorder")
    summary.add_argument("--run", metavar="ID", help="default: the last 20 runs")
    summary.add_argument(
        "--perfetto",
        metavar="FILE",
        help='write a trace for ui.perfetto.dev instead; "-" is standard output',
    )


def _add_timeline(commands: argparse._SubParsersAction[_Parser]) -> None:
    timeline = commands.add_parser(
        "timeline",
        help="draw the timeline of a recording",
        description=_TIMELINE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    timeline.add_argument("file", metavar="FILE", help="the file of a Recorder")
    timeline.add_argument("--run", metavar="ID", help="default: every run")
    add_drawing(timeline, "NAME.html")


def _add_completion(commands: argparse._SubParsersAction[_Parser]) -> None:
    completion = commands.add_parser(
        "completion",
        help="print the completion script of a shell",
        description=_COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument(
        "shell",
        metavar="SHELL",
        nargs="?",
        choices=("bash", "zsh", "fish"),
        help="bash, zsh or fish",
    )
    # The scripts call this to complete a target.
    completion.add_argument("--targets", help=argparse.SUPPRESS)


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    command = add_command(commands, name, summary, description)
    add_target(command)
    return command


def _add_run(run: argparse.ArgumentParser) -> None:
    source = run.add_mutually_exclusive_group()
    source.add_argument(
        "-i",
        metavar="KEY=VALUE",
        dest="pairs",
        action="append",
        help="a field of the start event; can be repeated",
    )
    source.add_argument("--input", metavar="JSON", help="all fields, as a JSON object")
    source.add_argument(
        "--input-file", metavar="FILE", help='the same from a file; "-" is standard input'
    )
    run.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, help="replaces the workflow's own"
    )
    run.add_argument(
        "--store", metavar="URL", help="keep the run in a store, such as sqlite:///runs.db"
    )
    run.add_argument(
        "--id",
        metavar="ID",
        dest="run_id",
        help="its id there; a run that the store has is continued, or its result printed",
    )
    add_running(run)
