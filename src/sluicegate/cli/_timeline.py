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


def timeline(arguments: argparse.Namespace) -> int:
    """Write the timeline of a recording as a page or a trace, or print it as text.

    Raises:
        UsageError: The file is no recording or has no such run, or the output cannot be written.
    """
    output = arguments.output or f"{Path(arguments.file).stem}.html"
    suffix = Path(output).suffix.lower()
    if not arguments.text and output != "-" and suffix not in (".html", ".htm", ".json"):
        msg = f"cannot tell the form from {output!r}; expected a name that ends in .html or .json"
        raise UsageError(msg)
    recording = load(arguments.file)
    run = find_run(recording, arguments.run)
    if arguments.text:
        in_unicode = "utf" in (sys.stdout.encoding or "").lower()
        has_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        text = timeline_text(recording, run, is_ascii=not in_unicode, has_color=has_color)
        output = arguments.output or "-"
    elif suffix == ".json":
        text = trace_of(recording, run)
    else:
        text = timeline_html(recording, run)
    write(text, output)
    return 0
