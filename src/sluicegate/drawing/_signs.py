"""The signs of the marks: how they look, how much room they take, and what the legend says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._text import MARK_SIZE, shortened, text_width, xml_text


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sluicegate.drawing._marks import Mark


ROW_WIDTH = 190.0
ROW_HEIGHT = 16.0
GAP = 14.0
SIGN_WIDTH = 11.0

_RING = '<circle class="sign" cx="5" cy="5" r="4.6"/>'

#: Signs of ten by ten; a kind of mark that is not here is a word, and has none.
SIGNS = {
    "timeout": f'{_RING}<path class="sign" d="M5 2v3l2 1.6"/>',
    "idle": f'{_RING}<path class="sign" d="M3.7 3.4v3.2M6.3 3.4v3.2"/>',
    "retry": '<path class="sign" d="M8.9 3.2A4.4 4.4 0 1 0 9.4 5.6M9.2 0.6V3.4H6.4"/>',
    "resources": '<path class="sign" d="M5 0.4L9.6 5L5 9.6L0.4 5Z"/>',
    "state": '<path class="sign" d="M0.9 2.1a4.1 1.7 0 0 1 8.2 0v5.8a4.1 1.7 0 0 1 -8.2 0z'
    'M0.9 2.1a4.1 1.7 0 0 0 8.2 0"/>',
}

#: What the signs mean, in the order of the legend.
MEANINGS = {
    "timeout": "timeout of the step",
    "idle": "timeout without progress",
    "retry": "tried again after a failure",
    "resources": "resources",
    "state": "uses the state of the workflow",
}


def rows_of(marks: Sequence[Mark], width: float) -> list[list[Mark]]:
    """Break marks into rows that are no wider than ``width`` or the usual row."""
    rows: list[list[Mark]] = []
    most = max(width, ROW_WIDTH)
    for mark in marks:
        if rows and row_width([*rows[-1], mark]) <= most:
            rows[-1].append(mark)
        else:
            rows.append([mark])
    return rows


def row_width(row: Sequence[Mark]) -> float:
    """Return how wide a row of marks is."""
    return sum(map(_mark_width, row)) + GAP * max(len(row) - 1, 0)


def _mark_width(mark: Mark) -> float:
    return _sign_width(mark) + text_width(shortened(mark.text), MARK_SIZE)


def _sign_width(mark: Mark) -> float:
    if mark.kind not in SIGNS:
        return 0.0
    return SIGN_WIDTH + (4.0 if mark.text else 0.0)


def drawn_row(row: Sequence[Mark], middle: float, baseline: float) -> Iterator[str]:
    """Yield the marks of a row around ``middle``."""
    at = round(middle - row_width(row) / 2, 1)
    for mark in row:
        inner = ""
        if mark.kind in SIGNS:
            inner = f'<g transform="translate({at:g} {baseline - 9:g})">{SIGNS[mark.kind]}</g>'
        if mark.text:
            x = round(at + _sign_width(mark), 1)
            text = xml_text(shortened(mark.text))
            inner += f'<text x="{x:g}" y="{baseline:g}">{text}</text>'
        yield f'<g class="mark {mark.kind}">{inner}<title>{xml_text(mark.title)}</title></g>'
        at = round(at + _mark_width(mark) + GAP, 1)
