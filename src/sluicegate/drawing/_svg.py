"""SVG elements: text and how wide it is, marks and their signs, arrows and their labels."""

from __future__ import annotations

import unicodedata
from html import escape
from typing import TYPE_CHECKING

from sluicegate.drawing._layout import LOOP_REACH, Link


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sluicegate.drawing._arrows import Arrow
    from sluicegate.drawing._labels import Label, Mark
    from sluicegate.drawing._layout import ArrowPath, Point


#: Names are code and set in a monospaced font, so their width is known without the font. The
#: widest font in use takes 0.602 of its size.
ADVANCE = 0.61
NAME_SIZE = 14.0
EVENT_SIZE = 12.0
MARK_SIZE = 11.5
FIELD_SIZE = 10.5
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


def without_controls(text: str) -> str:
    """Return ``text`` without the characters that XML cannot contain and terminals obey."""
    return "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))


def xml_text(text: str) -> str:
    """Return ``text`` for XML: escaped, without the characters that XML cannot contain."""
    return escape(without_controls(text))


def line_of(label: Label, classes: str, x: float, baseline: float) -> str:
    """Return a label as one line of text with its title."""
    return (
        f'<text class="{classes}" x="{x:g}" y="{baseline:g}">{xml_text(shortened(label.drawn))}'
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
    "completed": '<path class="sign" d="M1 5.4L3.8 8.4L9 1.8"/>',
    "failed": '<path class="sign" d="M1.4 1.4L8.6 8.6M8.6 1.4L1.4 8.6"/>',
    "cancelled": f'{_RING}<path class="sign" d="M1.9 8.1L8.1 1.9"/>',
    "running": '<path class="sign full" d="M2 0.8L9 5L2 9.2Z"/>',
    "spent": '<path class="sign" d="M1.6 0.6H8.4L5 5L8.4 9.4H1.6L5 5Z"/>',
}

#: The meanings of the signs, in the order of the legend.
MEANINGS = {
    "timeout": "timeout of the step",
    "idle": "timeout without progress",
    "retry": "tried again after a failure",
    "resources": "resources",
    "state": "uses the state of the workflow",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "running": "still running",
    "spent": "total time of all invocations",
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


def links_of(number: int, arrow: Arrow) -> Iterator[Link]:
    """Yield an arrow for the layout, once for each target, with the size of its labels."""
    width = max(text_width(shortened(label.drawn), EVENT_SIZE) for label in arrow.labels)
    height = LINE * len(arrow.labels) + 5.0
    for target in arrow.targets:
        yield Link(arrow.source, target, round(width + 16.0), height, number)


def _marker(name: str) -> str:
    return (
        f'<marker id="{name}" class="{name}" viewBox="0 0 10 10" refX="9.2" refY="5" '
        'markerWidth="10" markerHeight="10" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0.6 0.8 L9.6 5 L0.6 9.2 Q2.6 5 0.6 0.8 Z"/></marker>'
    )


_LOOKS = ("event", "back", "human", "fails", "gap", "undeclared", "never")
#: Stripes over a cancelled step, which distinguish it without colours.
_HATCH = (
    '<pattern id="hatch" width="9" height="9" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><path class="stripe" d="M4.5 0V9"/></pattern>'
)


def definitions_of(body: str) -> str:
    """Return the heads of arrows and the stripes that a picture uses."""
    used = [_marker(f"tip-{look}") for look in _LOOKS if f"url(#tip-{look})" in body]
    used += [_HATCH] if 'class="hatch"' in body else []
    return f"<defs>{''.join(used)}</defs>"


def _at(point: Point) -> str:
    return f"{point[0]:g} {point[1]:g}"


def line_of_arrow(arrow: Arrow, path: ArrowPath, ends: str) -> str:
    """Return the line of an arrow to one of its targets, without its labels."""
    look = look_of(arrow, path)
    classes = f"arrow {look}"
    data = (
        _loop_data(path) if path.is_loop else _path_data(path.points, FORK if arrow.fans_out else 0)
    )
    lines = [
        f'<path class="{classes}" d="{data}" marker-end="url(#tip-{look})" data-ends="{ends}"/>'
    ]
    if arrow.fans_out:
        lines.append(_fork(path, classes, ends))
    return "\n".join(lines)


def _path_data(points: tuple[Point, ...], stem: float = 0.0) -> str:
    """Return alternating straight lines and curves; a curve is smooth at both of its ends.

    The first line is at least ``stem`` long; the gap after it is longer than that.
    """
    (x, y), at = points[0], points[1]
    stem = stem if at[1] > y or (at[1] == y and points[2][1] > y) else -stem
    if abs(at[1] - y) < abs(stem):
        points = (points[0], (x, y + stem), *points[2:])
    parts = [f"M{_at(points[0])}"]
    at = points[0]
    for place, point in enumerate(points[1:], 1):
        if point == at:
            continue
        if place % 2 or at[0] == point[0]:
            parts.append(f"L{_at(point)}")
        elif _is_level(points[place - 2], at):
            parts.append(f"Q{point[0]:g} {at[1]:g} {_at(point)}")
        elif _is_level(point, points[place + 1]):
            parts.append(f"Q{at[0]:g} {point[1]:g} {_at(point)}")
        else:
            middle = round((at[1] + point[1]) / 2, 1)
            parts.append(f"C{at[0]:g} {middle:g} {point[0]:g} {middle:g} {_at(point)}")
        at = point
    return "".join(parts)


def _is_level(one: Point, other: Point) -> bool:
    return one[1] == other[1] and one[0] != other[0]


def _loop_data(path: ArrowPath) -> str:
    begin, end = path.points
    out = round(begin[0] - LOOP_REACH - 4.0, 1)
    return f"M{_at(begin)}C{out:g} {begin[1]:g} {out:g} {end[1]:g} {_at(end)}"


def _fork(path: ArrowPath, classes: str, ends: str) -> str:
    """Return the mark of a fan-out: two more lines that leave the step beside the arrow."""
    x, y = path.points[0]
    data = f"M{x:g} {y - 5:g}l-8 3M{x:g} {y + 5:g}l-8 -3"
    if not path.is_loop:
        sign = -1 if path.goes_back else 1
        data = f"M{x - 6:g} {y:g}L{x:g} {y + sign * FORK:g}L{x + 6:g} {y:g}"
    return f'<path class="{classes}" d="{data}" data-ends="{ends}"/>'


def look_of(arrow: Arrow, path: ArrowPath) -> str:
    """Return the look of an arrow: what became of it, whether it leads back, or its kind."""
    if arrow.is_undeclared:
        return "undeclared"
    if arrow.is_unused:
        return "never"
    return "back" if arrow.kind == "event" and path.goes_back else arrow.kind


def labels_of(arrow: Arrow, path: ArrowPath, link: Link, ends: str) -> Iterator[str]:
    """Yield the labels of an arrow, on a background."""
    x, y = path.label
    yield f'<g class="label" data-ends="{ends}">'
    yield (
        f'<rect class="ground" x="{x - link.width / 2:g}" y="{y - link.height / 2:g}" '
        f'width="{link.width:g}" height="{link.height:g}" rx="5"/>'
    )
    for place, label in enumerate(arrow.labels):
        baseline = y + (place - (len(arrow.labels) - 1) / 2) * LINE + 4.2
        yield line_of(label, f"event {look_of(arrow, path)}", x, baseline)
    yield "</g>"
