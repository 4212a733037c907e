"""The command that draws the timeline of a recording."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sluicegate.cli._record import find_run, load, trace_of, write
from sluicegate.cli._targets import UsageError
from sluicegate.timeline import timeline_html, timeline_text


if TYPE_CHECKING:
    import argparse

    from sluicegate.recording import RecordedRun, Recording


def timeline(arguments: argparse.Namespace) -> int:
    """Write the timeline of a recording as a page or a trace, or print it as text.

    Raises:
        UsageError: The file is no recording or has no such run, or the output cannot be written.
    """
    output = output_of(arguments, Path(arguments.file).stem)
    recording = load(arguments.file)
    draw(arguments, recording, find_run(recording, arguments.run), output)
    return 0


def output_of(arguments: argparse.Namespace, name: str) -> str:
    """Return where the timeline is written; by default a page with a name.

    Raises:
        UsageError: The suffix tells no form.
    """
    output: str = arguments.output or ("-" if arguments.text else f"{name}.html")
    is_known = Path(output).suffix.lower() in (".html", ".htm", ".json")
    if not arguments.text and output != "-" and not is_known:
        msg = f"cannot tell the form from {output!r}; expected a name that ends in .html or .json"
        raise UsageError(msg)
    return output


def draw(
    arguments: argparse.Namespace, recording: Recording, run: RecordedRun | None, output: str
) -> None:
    """Write the timeline of a run, or of all runs, as a page, a trace or text.

    Raises:
        UsageError: The output cannot be written.
    """
    if arguments.text:
        in_unicode = "utf" in (sys.stdout.encoding or "").lower()
        has_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        text = timeline_text(recording, run, is_ascii=not in_unicode, has_color=has_color)
    elif output.lower().endswith(".json"):
        text = trace_of(recording, run)
    else:
        text = timeline_html(recording, run)
    write(text, output)
