"""The commands that record a run, and that summarize a recording."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sluicegate._observers import observe
from sluicegate.cli._begin import begin
from sluicegate.cli._targets import UsageError
from sluicegate.recording import Recorder, load_recording


if TYPE_CHECKING:
    import argparse

    from sluicegate.recording import RecordedRun, Recording


def record(arguments: argparse.Namespace) -> int:
    """Run a workflow as ``run`` does, record it in a file, and return the exit code of ``run``.

    Raises:
        UsageError: As for ``run``, or the file cannot be written.
    """
    path = Path(arguments.output or f"{arguments.target.rpartition(':')[2] or 'run'}.jsonl")
    try:
        recorder = Recorder(path, append=arguments.append)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}"
        raise UsageError(msg) from error
    try:
        with recorder, observe(recorder):
            return begin(arguments)
    finally:
        line = f"sluicegate: recorded in {path}; see `sluicegate summary {path}`"
        print(line, file=sys.stderr)  # noqa: T201


def summary(arguments: argparse.Namespace) -> int:
    """Print the summary of a recording, or write it as a trace.

    Raises:
        UsageError: The file is no recording or has no such run, or the trace cannot be written.
    """
    recording = load(arguments.file)
    run = find_run(recording, arguments.run)
    if arguments.perfetto is None:
        sys.stdout.write(recording.summary(run))
        return 0
    write(trace_of(recording, run), arguments.perfetto)
    return 0


def trace_of(recording: Recording, run: RecordedRun | None) -> str:
    """Return the trace of a run, or of all runs, as JSON for Perfetto."""
    return json.dumps(recording.to_trace_events(run), separators=(",", ":"))


def write(text: str, output: str) -> None:
    """Write a text into a file and print the file's name; ``-`` is standard output.

    Raises:
        UsageError: The file cannot be written.
    """
    if output == "-":
        sys.stdout.write(text)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {output}: {error.strerror or error}"
        raise UsageError(msg) from error
    print(output)  # noqa: T201


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
