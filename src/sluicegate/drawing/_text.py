"""Text in a picture: how wide it is, and how it becomes XML."""

from __future__ import annotations

import unicodedata
from html import escape
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from sluicegate.drawing._words import Label


#: Names are code, and stand in a typeface in which all letters are equally wide: so their width
#: is known without having the font. The widest of those in use takes 0.602 of its size.
ADVANCE = 0.61
NAME_SIZE = 14.0
EVENT_SIZE = 12.0
MARK_SIZE = 11.5
LONGEST = 44


def text_width(text: str, size: float) -> float:
    """Return how wide a line of text is at most, in a typeface of one width."""
    cells = 0
    for letter in text:
        if unicodedata.combining(letter):
            continue
        cells += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
    return cells * size * ADVANCE


def shortened(text: str) -> str:
    """Return a name that is not too long for a box; the whole one is in its title."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def xml_text(text: str) -> str:
    """Return ``text`` for XML: escaped, without the characters that XML has no way to write."""
    kept = "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))
    return escape(kept)


def line_of(label: Label, classes: str, x: float, baseline: float) -> str:
    """Return a label as one line of text with its title."""
    return (
        f'<text class="{classes}" x="{x:g}" y="{baseline:g}">{xml_text(shortened(label.text))}'
        f"<title>{xml_text(label.title)}</title></text>"
    )
