"""The arrows of a picture: their lines, their tips and the names of the events that go along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._layout import LOOP_REACH, Link
from sluicegate.drawing._text import EVENT_SIZE, line_of, shortened, text_width


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate.drawing._layout import Point, Way
    from sluicegate.drawing._model import Edge


LINE = 17.0
FORK = 13.0


def link_of(edge: Edge) -> Link:
    """Return an arrow as the layout needs it, with the size of its labels."""
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


def arrow(edge: Edge, way: Way) -> str:
    """Return the line of an arrow, without its labels."""
    look = look_of(edge, way)
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


def look_of(edge: Edge, way: Way) -> str:
    """Return how an arrow looks: as its kind says, or as one that goes back."""
    return "back" if edge.kind == "event" and way.goes_back else edge.kind


def labels_of(edge: Edge, way: Way) -> Iterable[str]:
    """Yield the labels of an arrow, on a piece of background."""
    link = link_of(edge)
    x, y = way.label
    yield (
        f'<rect class="ground" x="{x - link.width / 2:g}" y="{y - link.height / 2:g}" '
        f'width="{link.width:g}" height="{link.height:g}" rx="5"/>'
    )
    for place, label in enumerate(edge.labels):
        baseline = y + (place - (len(edge.labels) - 1) / 2) * LINE + 4.2
        yield line_of(label, f"event {look_of(edge, way)}", x, baseline)
