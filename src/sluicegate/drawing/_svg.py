"""SVG elements: text and how wide it is, marks and their signs, arrows and their labels."""

from __future__ import annotations

import unicodedata
from html import escape
from typing import TYPE_CHECKING

from sluicegate.drawing._layout import LOOP_REACH, Link


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sluicegate.drawing._flow import Edge
    from sluicegate.drawing._labels import Label, Mark
    from sluicegate.drawing._layout import ArrowPath, Point


#: Names are code and set in a monospaced font, so their width is known without the font. The
#: widest font in use takes 0.602 of its size.
ADVANCE = 0.61
NAME_SIZE = 14.0
EVENT_SIZE = 12.0
MARK_SIZE = 11.5
LONGEST = 44


def text_width(text: str, size: float) -> float:
    """Return the greatest width of a line of text in a monospaced font."""
    cells = 0
    for letter in text:
        if unicodedata.combining(letter):
            continue
        cells += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
    return cells * size * ADVANCE


def shortened(text: str) -> str:
    """Return a name that is not too long for a box; the tooltip has the full name."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def xml_text(text: str) -> str:
    """Return ``text`` for XML: escaped, without the characters that XML cannot contain."""
    kept = "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))
    return escape(kept)


def line_of(label: Label, classes: str, x: float, baseline: float) -> str:
    """Return a label as one line of text with its title."""
    return (
        f'<text class="{classes}" x="{x:g}" y="{baseline:g}">{xml_text(shortened(label.text))}'
        f"<title>{xml_text(label.title)}</title></text>"
    )


# -- marks ----------------------------------------------------------------------------------------


ROW_WIDTH = 190.0
ROW_HEIGHT = 16.0
MARK_GAP = 14.0
SIGN_WIDTH = 11.0

_RING = '<circle class="sign" cx="5" cy="5" r="4.6"/>'

#: Signs of ten by ten; a kind of mark that is not here is shown as a word.
SIGNS = {
    "timeout": f'{_RING}<path class="sign" d="M5 2v3l2 1.6"/>',
    "idle": f'{_RING}<path class="sign" d="M3.7 3.4v3.2M6.3 3.4v3.2"/>',
    "retry": '<path class="sign" d="M8.9 3.2A4.4 4.4 0 1 0 9.4 5.6M9.2 0.6V3.4H6.4"/>',
    "resources": '<path class="sign" d="M5 0.4L9.6 5L5 9.6L0.4 5Z"/>',
    "state": '<path class="sign" d="M0.9 2.1a4.1 1.7 0 0 1 8.2 0v5.8a4.1 1.7 0 0 1 -8.2 0z'
    'M0.9 2.1a4.1 1.7 0 0 0 8.2 0"/>',
}

#: The meanings of the signs, in the order of the legend.
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
    """Return the width of a row of marks."""
    return sum(map(_mark_width, row)) + MARK_GAP * max(len(row) - 1, 0)


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
        at = round(at + _mark_width(mark) + MARK_GAP, 1)


# -- arrows ---------------------------------------------------------------------------------------


LINE = 17.0
FORK = 13.0


def link_of(edge: Edge) -> Link:
    """Return an arrow for the layout, with the size of its labels."""
    width = max(text_width(shortened(label.text), EVENT_SIZE) for label in edge.labels)
    return Link(edge.source, edge.target, round(width + 16.0), LINE * len(edge.labels) + 5.0)


def _marker(name: str) -> str:
    return (
        f'<marker id="{name}" class="{name}" viewBox="0 0 10 10" refX="9.2" refY="5" '
        'markerWidth="10" markerHeight="10" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0.6 0.8 L9.6 5 L0.6 9.2 Q2.6 5 0.6 0.8 Z"/></marker>'
    )


_LOOKS = ("event", "back", "human", "fails", "gap")
MARKERS = f"<defs>{''.join(_marker(f'tip-{look}') for look in _LOOKS)}</defs>"


def _at(point: Point) -> str:
    return f"{point[0]:g} {point[1]:g}"


def arrow(edge: Edge, path: ArrowPath) -> str:
    """Return the line of an arrow, without its labels."""
    look = look_of(edge, path)
    classes = f"arrow {look}"
    data = (
        _loop_data(path) if path.is_loop else _path_data(path.points, FORK if edge.fans_out else 0)
    )
    lines = [f'<path class="{classes}" d="{data}" marker-end="url(#tip-{look})"/>']
    if edge.fans_out:
        lines.append(_fork(path, classes))
    return "\n".join(lines)


def _path_data(points: tuple[Point, ...], stem: float = 0.0) -> str:
    """Return alternating straight lines and curves; the curves begin and end vertically.

    The first line is at least ``stem`` long; the gap after it is longer than that.
    """
    (x, y), at = points[0], points[1]
    stem = stem if at[1] > y or (at[1] == y and points[2][1] > y) else -stem
    if abs(at[1] - y) < abs(stem):
        points = (points[0], (x, y + stem), *points[2:])
    parts = [f"M{_at(points[0])}"]
    at = points[0]
    for place, point in enumerate(points[1:], 1):
        if place % 2 or at[0] == point[0]:
            if point != at:
                parts.append(f"L{_at(point)}")
        else:
            middle = round((at[1] + point[1]) / 2, 1)
            parts.append(f"C{at[0]:g} {middle:g} {point[0]:g} {middle:g} {_at(point)}")
        at = point
    return "".join(parts)


def _loop_data(path: ArrowPath) -> str:
    begin, end = path.points
    out = round(begin[0] - LOOP_REACH - 4.0, 1)
    return f"M{_at(begin)}C{out:g} {begin[1]:g} {out:g} {end[1]:g} {_at(end)}"


def _fork(path: ArrowPath, classes: str) -> str:
    """Return the mark of a fan-out: two more lines that leave the step beside the arrow."""
    x, y = path.points[0]
    if path.is_loop:
        return f'<path class="{classes}" d="M{x:g} {y - 5:g}l-8 3M{x:g} {y + 5:g}l-8 -3"/>'
    sign = -1 if path.goes_back else 1
    return (
        f'<path class="{classes}" d="M{x - 6:g} {y:g}L{x:g} {y + sign * FORK:g}L{x + 6:g} {y:g}"/>'
    )


def look_of(edge: Edge, path: ArrowPath) -> str:
    """Return the look of an arrow: that of its kind, or of an arrow that leads back."""
    return "back" if edge.kind == "event" and path.goes_back else edge.kind


def labels_of(edge: Edge, path: ArrowPath) -> Iterable[str]:
    """Yield the labels of an arrow, on a background."""
    link = link_of(edge)
    x, y = path.label
    yield (
        f'<rect class="ground" x="{x - link.width / 2:g}" y="{y - link.height / 2:g}" '
        f'width="{link.width:g}" height="{link.height:g}" rx="5"/>'
    )
    for place, label in enumerate(edge.labels):
        baseline = y + (place - (len(edge.labels) - 1) / 2) * LINE + 4.2
        yield line_of(label, f"event {look_of(edge, path)}", x, baseline)
