"""A timeline as one self-contained page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sluicegate.timeline._columns import Columns
from sluicegate.timeline._lanes import nested
from sluicegate.timeline._svg import static_svg


if TYPE_CHECKING:
    import os

    from sluicegate.recording import RecordedRun, Recording

#: Data longer than this is compressed; the browsers that cannot decompress it say so.
COMPRESSED_FROM = 200_000


def write_timeline(
    recording: Recording, filename: str | os.PathLike[str], run: RecordedRun | None = None
) -> str:
    """Write the timeline of a recording as a page, which needs no network. Blocks while it writes.

    Args:
        recording: The recording.
        filename: The file to write; it is replaced if it exists.
        run: The run to show, with its children; by default every run that is no child.

    Returns:
        ``filename`` as a string.

    Raises:
        OSError: The file cannot be written.
    """
    Path(filename).write_text(timeline_html(recording, run), encoding="utf-8")
    return str(filename)


def timeline_html(recording: Recording, run: RecordedRun | None = None) -> str:
    """Return the timeline of a recording as one self-contained page. Blocks; never a checkpoint.

    The page loads nothing. It shows a bar for each invocation in a lane for each step, what the
    invocation waited for, how it unwound after a cancellation, and what caused it. Without
    JavaScript it is a static picture. Values of events are shortened, and secrets are hidden as in
    the recording.

    Args:
        recording: The recording.
        run: The run to show, with its children; by default every run that is no child.

    Returns:
        The page.
    """
    return _html(recording, recording.runs if run is None else [run])


def live_html(recording: Recording) -> str:
    """Return the page of a recording that goes on; it fetches ``/data`` about once a second."""
    return _html(recording, recording.runs, live=True)


def framed_html() -> tuple[str, str]:
    """Return a page for a frame, which waits for its data, and its Content-Security-Policy.

    The page around it, of the same origin, gives it data with an event ``renew`` on its document.
    """
    return _filled("Timeline", "", "", _asset("page.js"))


def timeline_data(recording: Recording, *, shows_errors: bool = True) -> object:
    """Return what a page shows, as JSON has it.

    Args:
        recording: The recording.
        shows_errors: Whether the texts of exceptions are shown, or only their classes.
    """
    runs = [one for one, _ in nested(recording.runs)]
    return Columns(recording, runs, shows_errors=shows_errors).as_data()


def _html(recording: Recording, roots: list[RecordedRun], *, live: bool = False) -> str:
    runs = [one for one, _ in nested(roots)]
    title = roots[0].workflow if len(roots) == 1 else f"{len(roots):,} runs"
    data = Columns(recording, runs).as_data()
    script = _asset("page.js") + (_asset("live.js") if live else "")
    connections = "connect-src 'self'; " if live else ""
    html, _ = _filled(title, static_svg(roots), _embedded(data), script, connections)
    return html


def _filled(
    title: str, still: str, data: str, script: str, connections: str = ""
) -> tuple[str, str]:
    """Return the page with its parts in their places, and its Content-Security-Policy."""
    style = _asset("page.css")
    policy = (
        f"default-src 'none'; {connections}script-src 'sha256-{_hash(script)}'; "
        f"style-src 'sha256-{_hash(style)}'; base-uri 'none'; form-action 'none'"
    )
    replacements = {
        "TITLE": escape(title.encode("utf-8", "replace").decode().replace("\0", "\ufffd")),
        "POLICY": policy,
        "STYLE": style,
        "STILL": still,
        "DATA": data,
        "SCRIPT": script,
    }
    # One pass over the template, so that nothing of a value is taken for a name of a place.
    pieces = _asset("page.html").split("%%")
    html = "".join(
        replacements[piece] if number % 2 else piece for number, piece in enumerate(pieces)
    )
    return html, policy


def _embedded(data: object) -> str:
    """Return data as an element that holds it; no text of it can end the element."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    if len(text) <= COMPRESSED_FROM:
        return f'<script type="application/json" id="data">{text}</script>'
    packed = base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode()
    return f'<script type="application/gzip" id="data">{packed}</script>'


def _asset(name: str) -> str:
    return (files("sluicegate.timeline") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
