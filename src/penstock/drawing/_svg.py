"""The picture: a flow as static SVG, its sizes taken from the text that has to fit."""

from __future__ import annotations

import unicodedata
from html import escape
from typing import TYPE_CHECKING

import attrs

from penstock.drawing._layout import LOOP_REACH, Link, Shape, lay_out


if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.drawing._layout import Point, Way
    from penstock.drawing._model import Edge, Flow, Label, Node


#: Names are code, and stand in a typeface in which all letters are equally wide: so their width
#: is known without having the font. The widest of those in use takes 0.602 of its size.
ADVANCE = 0.61
NAME_SIZE = 14.0
EVENT_SIZE = 12.0
MARK_SIZE = 11.5
LONGEST = 44

LINE = 17.0
MARGIN = 24.0
NOTE_DISTANCE = 34.0
CORNER = 9.0
FORK = 13.0


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


@attrs.frozen
class Picture:
    """A flow as an ``<svg>`` element, and whether any of its arrows goes back."""

    svg: str
    goes_back: bool


def picture_of(flow: Flow) -> Picture:
    """Draw a flow."""
    shapes = [_shape(node) for node in flow.nodes]
    links = [_link(edge) for edge in flow.edges]
    layout = lay_out(shapes, links)
    width = round(layout.width + 2 * MARGIN)
    height = round(layout.height + 2 * MARGIN)
    opening = (
        f'<svg class="flow" xmlns="http://www.w3.org/2000/svg" role="group" '
        f'aria-label="{_text(f"All flows of {flow.name}")}" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    )
    parts = [
        opening,
        _MARKERS,
        f'<g transform="translate({MARGIN:g} {MARGIN:g})">',
    ]
    drawn = list(zip(flow.edges, layout.ways, strict=True))
    parts += [_arrow(edge, way) for edge, way in drawn]
    for node, shape, centre in zip(flow.nodes, shapes, layout.centres, strict=True):
        parts.append(_DRAWN[node.kind](node, shape, centre))
    for edge, way in drawn:  # last, for each label stands on a piece of background
        parts += _labels(edge, way)
    parts += ["</g>", "</svg>"]
    return Picture("\n".join(parts), any(_look(*both) == "back" for both in drawn))


# -- sizes -----------------------------------------------------------------------------------


def _shape(node: Node) -> Shape:
    if node.kind == "start":
        return Shape(18.0, 18.0)
    if node.kind == "stop":
        return Shape(28.0, 28.0)
    if node.kind == "gap":
        return Shape(26.0, 26.0)
    name = text_width(shortened(node.name), NAME_SIZE)
    if node.kind == "person":
        return Shape(round(name + 66.0), 42.0)
    width = round(max(132.0, name + 36.0, _marks_width(node) + 36.0))
    if not node.notes:
        return Shape(width, 52.0)
    return Shape(width, 52.0, NOTE_DISTANCE + _note_width(node), _note_height(node))


def _marks(node: Node) -> list[tuple[str, str, str]]:
    """Return the marks in the lower half of a step: their kind, text and title."""
    marks: list[tuple[str, str, str]] = []
    if node.num_workers is not None:
        title = f"At most {node.num_workers} at a time (num_workers)"
        marks.append(("workers", f"×{node.num_workers}", title))  # noqa: RUF001 - a times sign
    if node.timeout is not None:
        text = f"{node.timeout:g} s"
        marks.append(("timeout", text, f"Each invocation may take {text}"))
    if node.join == "all":
        marks.append(("join", "joins all", "Runs once, with all that came of a fan-out"))
    elif node.join == "each":
        marks.append(("join", "one of each", "Runs when one event of each class is there"))
    return marks


def _mark_width(mark: tuple[str, str, str]) -> float:
    return text_width(mark[1], MARK_SIZE) + (15.0 if mark[0] == "timeout" else 0.0)


def _marks_width(node: Node) -> float:
    widths = [_mark_width(mark) for mark in _marks(node)]
    return sum(widths) + 14.0 * max(len(widths) - 1, 0)


def _note_width(node: Node) -> float:
    return round(max(text_width(shortened(n.text), EVENT_SIZE) for n in node.notes) + 28.0)


def _note_height(node: Node) -> float:
    return LINE * len(node.notes) + 13.0


def _link(edge: Edge) -> Link:
    width = max(text_width(shortened(label.text), EVENT_SIZE) for label in edge.labels)
    return Link(edge.source, edge.target, round(width + 16.0), LINE * len(edge.labels) + 5.0)


# -- arrows ------------------------------------------------------------------------------------


def _marker(name: str) -> str:
    return (
        f'<marker id="{name}" class="{name}" viewBox="0 0 10 10" refX="9.2" refY="5" '
        'markerWidth="10" markerHeight="10" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0.6 0.8 L9.6 5 L0.6 9.2 Q2.6 5 0.6 0.8 Z"/></marker>'
    )


_MARKERS = f"<defs>{''.join(_marker(f'tip-{n}') for n in ('event', 'back', 'human', 'gap'))}</defs>"


def _at(point: Point) -> str:
    return f"{point[0]:g} {point[1]:g}"


def _arrow(edge: Edge, way: Way) -> str:
    look = _look(edge, way)
    classes = f"arrow {look}"
    path = _loop_path(way) if way.is_loop else _path(way.points, FORK if edge.fans_out else 0.0)
    lines = [f'<path class="{classes}" d="{path}" marker-end="url(#tip-{look})"/>']
    if edge.fans_out:
        lines.append(_fork(way, classes))
    return "\n".join(lines)


def _path(points: tuple[Point, ...], stem: float = 0.0) -> str:
    """Return straight lines and curves in turn; the curves leave and arrive upright.

    The first line is at least ``stem`` long; the gap behind it is longer than that.
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


def _loop_path(way: Way) -> str:
    begin, end = way.points
    out = round(begin[0] - LOOP_REACH - 4.0, 1)
    return f"M{_at(begin)}C{out:g} {begin[1]:g} {out:g} {end[1]:g} {_at(end)}"


def _fork(way: Way, classes: str) -> str:
    """Return the mark of a fan-out: two more lines that leave the step together with the arrow."""
    x, y = way.points[0]
    if way.is_loop:
        return f'<path class="{classes}" d="M{x:g} {y - 5:g}l-8 3M{x:g} {y + 5:g}l-8 -3"/>'
    sign = -1 if way.goes_back else 1
    return (
        f'<path class="{classes}" d="M{x - 6:g} {y:g}L{x:g} {y + sign * FORK:g}L{x + 6:g} {y:g}"/>'
    )


def _look(edge: Edge, way: Way) -> str:
    return "back" if edge.kind == "event" and way.goes_back else edge.kind


def _labels(edge: Edge, way: Way) -> Iterable[str]:
    link = _link(edge)
    x, y = way.label
    yield (
        f'<rect class="ground" x="{x - link.width / 2:g}" y="{y - link.height / 2:g}" '
        f'width="{link.width:g}" height="{link.height:g}" rx="5"/>'
    )
    for place, label in enumerate(edge.labels):
        baseline = y + (place - (len(edge.labels) - 1) / 2) * LINE + 4.2
        yield _name(label, f"event {_look(edge, way)}", x, baseline)


def _name(label: Label, classes: str, x: float, baseline: float) -> str:
    return (
        f'<text class="{classes}" x="{x:g}" y="{baseline:g}">{_text(shortened(label.text))}'
        f"<title>{_text(label.title)}</title></text>"
    )


# -- nodes -------------------------------------------------------------------------------------


def _start(_node: Node, shape: Shape, centre: Point) -> str:
    x, y = centre
    return (
        f'<circle class="start" cx="{x:g}" cy="{y:g}" r="{shape.width / 2:g}">'
        "<title>The run begins</title></circle>"
    )


def _stop(node: Node, _shape: Shape, centre: Point) -> str:
    x, y = centre
    return (
        f'<g class="stop"><circle cx="{x:g}" cy="{y:g}" r="13"/>'
        f'<circle cx="{x:g}" cy="{y:g}" r="8.5"/><title>{_text(node.title)}</title></g>'
    )


def _gap(node: Node, shape: Shape, centre: Point) -> str:
    x, y = centre
    return (
        f'<g class="gap"><circle cx="{x:g}" cy="{y:g}" r="{shape.width / 2 - 1:g}"/>'
        f'<text x="{x:g}" y="{y + 5:g}">?</text><title>{_text(node.title)}</title></g>'
    )


def _person(node: Node, shape: Shape, centre: Point) -> str:
    x, y = centre
    left = x - shape.width / 2
    head = left + 23.0
    return (
        f'<g class="person"><rect x="{left:g}" y="{y - shape.height / 2:g}" '
        f'width="{shape.width:g}" height="{shape.height:g}" rx="{shape.height / 2:g}"/>'
        f'<circle class="figure" cx="{head:g}" cy="{y - 6:g}" r="5"/>'
        f'<path class="figure" d="M{head - 9:g} {y + 11:g}a9 9.5 0 0 1 18 0z"/>'
        f'<text class="name" x="{x + 14:g}" y="{y + 5:g}">{_text(node.name)}</text>'
        f"<title>{_text(node.title)}</title></g>"
    )


def _step(node: Node, shape: Shape, centre: Point) -> str:
    x, y = centre
    left, top = x - shape.width / 2, y - shape.height / 2
    lines = [
        '<g class="step">',
        f'<rect x="{left:g}" y="{top:g}" width="{shape.width:g}" height="{shape.height:g}" rx="8"/>',
    ]
    if node.join:
        bar = shape.width - 24.0
        lines.append(
            f'<rect class="bar" x="{x - bar / 2:g}" y="{top - 2:g}" width="{bar:g}" height="5" '
            'rx="2.5"/>'
        )
    lines += [
        f'<text class="name" x="{x:g}" y="{y - 4:g}">{_text(shortened(node.name))}</text>',
        f"<title>{_text(node.title)}</title>",
        *_drawn_marks(node, x, y + 15.0),
        "</g>",
    ]
    if node.notes:
        lines.append(_note(node, x + shape.width / 2, y))
    return "\n".join(lines)


def _drawn_marks(node: Node, x: float, baseline: float) -> Iterable[str]:
    at = x - _marks_width(node) / 2
    for mark in _marks(node):
        kind, text, title = mark
        inner = ""
        begin = at
        if kind == "timeout":
            cx, cy = at + 5.0, baseline - 4.0
            inner = (
                f'<circle class="clock" cx="{cx:g}" cy="{cy:g}" r="4.8"/>'
                f'<path class="clock" d="M{cx:g} {cy - 3:g}v3l2 1.6"/>'
            )
            begin = at + 15.0
        yield (
            f'<g class="mark {kind}">{inner}<text x="{begin:g}" y="{baseline:g}">{_text(text)}</text>'
            f"<title>{_text(title)}</title></g>"
        )
        at += _mark_width(mark) + 14.0


def _note(node: Node, side: float, y: float) -> str:
    """Return the note beside a step: what it writes to the stream."""
    left = side + NOTE_DISTANCE
    width, height = _note_width(node), _note_height(node)
    top = y - height / 2
    fold = f"M{left + width - CORNER:g} {top:g}v{CORNER:g}h{CORNER:g}"
    sheet = (
        f"M{left:g} {top:g}h{width - CORNER:g}l{CORNER:g} {CORNER:g}"
        f"v{height - CORNER:g}h{-width:g}z"
    )
    tip = f"M{left - 7:g} {y - 3.5:g}L{left - 1:g} {y:g}L{left - 7:g} {y + 3.5:g}"
    lines = [
        '<g class="note">',
        f'<path class="arrow stream" d="M{side:g} {y:g}H{left - 1:g}"/>',
        f'<path class="tip" d="{tip}"/>',
        f'<path class="sheet" d="{sheet}"/>',
        f'<path class="fold" d="{fold}"/>',
    ]
    for place, label in enumerate(node.notes):
        baseline = y + (place - (len(node.notes) - 1) / 2) * LINE + 4.2
        lines.append(_name(label, "event stream", left + (width - 4.0) / 2, baseline))
    lines.append("</g>")
    return "\n".join(lines)


_DRAWN = {"start": _start, "stop": _stop, "gap": _gap, "person": _person, "step": _step}


def _text(text: str) -> str:
    """Return ``text`` for XML: escaped, without the characters that XML has no way to write."""
    kept = "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))
    return escape(kept)
