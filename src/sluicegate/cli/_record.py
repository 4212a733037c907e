"""The command that tells what a recording holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sluicegate.cli._targets import UsageError
from sluicegate.recording import load_recording


if TYPE_CHECKING:
    import argparse

    from sluicegate.recording import RecordedRun, Recording


def summary(arguments: argparse.Namespace) -> int:
    """Print what a recording tells, or write it as a trace.

    Raises:
        UsageError: The file is no recording or has no such run, or the trace cannot be written.
    """
    recording = load(arguments.file)
    run = find_run(recording, arguments.run)
    if arguments.perfetto is None:
        sys.stdout.write(recording.summary(run))
        return 0
    text = json.dumps(recording.to_trace_events(), separators=(",", ":"))
    if arguments.perfetto == "-":
        sys.stdout.write(text)
        return 0
    try:
        Path(arguments.perfetto).write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {arguments.perfetto}: {error.strerror or error}"
        raise UsageError(msg) from error
    print(arguments.perfetto)  # noqa: T201
    return 0


def load(file: str) -> Recording:
    """Load a recording.

    Raises:
        UsageError: The file cannot be read or is no recording.
    """
    try:
        return load_recording(file)
    except OSError as error:
        msg = f"cannot read {file}: {error.strerror or error}"
        raise UsageError(msg) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def find_run(recording: Recording, run_id: str | None) -> RecordedRun | None:
    """Return the run with an identifier; None for no identifier.

    Raises:
        UsageError: The recording has no such run.
    """
    if run_id is None:
        return None
    try:
        return recording.find(run_id)
    except LookupError as error:
        raise UsageError(str(error)) from error
