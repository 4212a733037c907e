"""Timelines: a recording as a page for a browser, and as text for a terminal."""

from __future__ import annotations

from sluicegate.timeline._page import timeline_html, write_timeline
from sluicegate.timeline._text import timeline_text


__all__ = ["timeline_html", "timeline_text", "write_timeline"]
