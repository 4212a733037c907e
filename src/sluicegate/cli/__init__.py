"""The command line: run, serve, record, draw and check workflows, and tend stored runs, from a shell.

Exit codes: 0 success; 1 the workflow raised, or has faults; 2 the command or its input was wrong,
as a line on standard error explains; 124 the run timed out; 130 it was interrupted by Ctrl-C, 143
by SIGTERM, 129 by SIGHUP, after its clean-up; 141 the reader of the output has gone.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sluicegate._errors import WorkflowValidationError
from sluicegate.cli import _begin, _completion, _graphs, _record, _timeline
from sluicegate.cli._parser import build_parser
from sluicegate.cli._targets import UsageError


if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence


__all__ = ["main"]

FAILED = 1
INTERRUPTED = 130
READER_GONE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Starts an event loop; call it outside one.

    Args:
        argv: The arguments without the name of the program; by default those of the process.
    """
    try:
        try:
            parser = build_parser()
            arguments = parser.parse_args(argv)
        except SystemExit as leaving:  # --help and --version; that of a workflow is not caught
            return leaving.code if isinstance(leaving.code, int) else 2
        # A console script has its own directory on the import path, not the current one.
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, "")
        commands: dict[str, Callable[[Namespace], int]] = {
            "run": _begin.begin,
            "record": _record.record,
            "summary": _record.summary,
            "timeline": _timeline.timeline,
            "draw": _graphs.draw,
            "check": _graphs.check,
            "runs": _tend_runs,
            "worker": _serve_store,
            "serve": _serve_workflows,
            "completion": partial(_completion.completion, parser=parser),
        }
        code = commands[arguments.command](arguments)
        sys.stdout.flush()
    except UsageError as error:
        line = " ".join(str(error).split())
        print(f"sluicegate: {line}", file=sys.stderr)  # noqa: T201
        return 2
    except WorkflowValidationError as error:
        print(f"sluicegate: {error}", file=sys.stderr)  # noqa: T201
        return FAILED
    except KeyboardInterrupt:
        print("sluicegate: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return READER_GONE
    return code


def _tend_runs(arguments: Namespace) -> int:
    from sluicegate.cli._runs import runs  # noqa: PLC0415 - most commands need no store

    return runs(arguments)


def _serve_store(arguments: Namespace) -> int:
    from sluicegate.cli._worker import worker  # noqa: PLC0415 - as above

    return worker(arguments)


def _serve_workflows(arguments: Namespace) -> int:
    from sluicegate.cli._serve import serve  # noqa: PLC0415 - as above

    return serve(arguments)


def _silence_stdout() -> None:
    """Discard the buffered output: the interpreter flushes once more at its exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
