"""The picture: a flow as static SVG, sized to fit its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sluicegate.drawing._arrows import Arrow, arrows_by_event
from sluicegate.drawing._labels import marks_of_counts
from sluicegate.drawing._layers import rows_of as rows_of_boxes
from sluicegate.drawing._layout import Shape, View, lay_out
from sluicegate.drawing._style import svg_style
from sluicegate.drawing._svg import (
    EVENT_SIZE,
    FIELD_SIZE,
    LINE,
    MARK_SIZE,
    NAME_SIZE,
    ROW_HEIGHT,
    definitions_of,
    drawn_row,
    labels_of,
    line_of,
    line_of_arrow,
    links_of,
    look_of,
    row_width,
    rows_of,
    shortened,
    text_width,
    xml_text,
)


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sluicegate.drawing._flow import Child, Flow, Node
    from sluicegate.drawing._labels import Label, Mark
    from sluicegate.drawing._layout import ArrowPath, Point


MARGIN = 24.0
NOTE_DISTANCE = 34.0
CORNER = 9.0
#: The distance between a child's frame and its content, and between frame and step.
PADDING = 14.0
FRAME_HEAD = 30.0
#: A picture that does not fit this is folded into columns; so is that of a child.
VIEW = View(1400.0, 860.0)
FIELD_LINE = 13.0
#: A note shows this many fields of an event.
FIELDS_IN_A_NOTE = 3


@attrs.frozen
class FlowSvg:
    """A flow as an ``<svg>`` element.

    Attributes:
        svg: The element.
        width: Its natural width in pixels.
        height: Its natural height.
        goes_back: Whether any of its arrows leads back.
    """

    svg: str
    width: float
    height: float
    goes_back: bool


def picture_of(flow: Flow, *, stands_alone: bool = False) -> FlowSvg:
    """Draw a flow, and those of its children within the steps that run them.

    A picture that ``stands_alone`` has its style and its background inside.
    """
    drawing = _draw(flow, 0)
    width = round(drawing.width + 2 * MARGIN)
    height = round(drawing.height + 2 * MARGIN)
    what = "All flows" if flow.execution is None else "An execution"
    opening = (
        f'<svg class="flow" xmlns="http://www.w3.org/2000/svg" id="flow-0" role="group" '
        f'aria-label="{xml_text(f"{what} of {flow.name}")}" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    )
    body = "\n".join(
        [
            definitions_of(drawing.body),
            *(['<rect class="ground" width="100%" height="100%"/>'] if stands_alone else []),
            f'<g transform="translate({MARGIN:g} {MARGIN:g})">',
            drawing.body,
            "</g>",
        ]
    )
    style = [f"<style>\n{svg_style(body)}\n</style>"] if stands_alone else []
    parts = [opening, *style, body, "</svg>"]
    return FlowSvg("\n".join(parts), width, height, drawing.goes_back)


def svg_of(flow: Flow) -> str:
    """Return a flow as an SVG file."""
    return picture_of(flow, stands_alone=True).svg + "\n"


@attrs.frozen
class _Drawing:
    """A flow as SVG that begins at the origin."""

    width: float
    height: float
    body: str
    goes_back: bool


def _draw(flow: Flow, number: int) -> _Drawing:
    nodes, arrows = _with_near_ends(flow.nodes, arrows_by_event(flow))
    boxes = [_box(node, f"{number}.{place}") for place, node in enumerate(nodes)]
    linked = [(arrow, link) for i, arrow in enumerate(arrows) for link in links_of(i, arrow)]
    layout = lay_out([box.shape for box in boxes], [link for _, link in linked], VIEW)
    drawn = [(*both, path) for both, path in zip(linked, layout.paths, strict=True)]
    parts = [
        line_of_arrow(arrow, path, f"{number}.{link.source} {number}.{link.target}")
        for arrow, link, path in drawn
    ]
    for box, centre in zip(boxes, layout.centres, strict=True):
        parts += _DRAWN[box.node.kind](box, centre)
    seen: set[tuple[int | None, Point]] = set()
    for arrow, link, path in drawn:  # last, because each label has a background
        if (link.group, path.label) not in seen:
            seen.add((link.group, path.label))
            ends = " ".join(f"{number}.{at}" for at in (arrow.source, *arrow.targets))
            parts += labels_of(arrow, path, link, ends)
    goes_back = any(_leads_back(arrow, path) for arrow, _, path in drawn)
    goes_back |= any(frame.goes_back for box in boxes for frame in box.frames)
    return _Drawing(layout.width, layout.height, "\n".join(parts), goes_back)


def _leads_back(arrow: Arrow, path: ArrowPath) -> bool:
    return look_of(arrow, path) == "back"


def _with_near_ends(
    nodes: Sequence[Node], arrows: Sequence[Arrow]
) -> tuple[list[Node], list[Arrow]]:
    """Return nodes and arrows in which the run ends near each step that ends it.

    The steps in the last row before the end share it. Each other step gets a separate end, so that
    no arrow crosses the whole picture.
    """
    found = [number for number, node in enumerate(nodes) if node.kind == "stop"]
    kept, moved = list(nodes), list(arrows)
    if not found:
        return kept, moved
    (end,) = found
    links = [(a.source, t) for a in arrows for t in a.targets if t != a.source]
    rows = rows_of_boxes(len(nodes), links)
    own: dict[int, int] = {}
    for place, arrow in enumerate(arrows):
        if end in arrow.targets and rows[arrow.source] < rows[end] - 1:
            if arrow.source not in own:
                own[arrow.source] = len(kept)
                kept.append(attrs.evolve(nodes[end], is_unused=arrow.is_unused))
            targets = tuple(own[arrow.source] if t == end else t for t in arrow.targets)
            moved[place] = attrs.evolve(arrow, targets=targets)
    is_unused = all(arrow.is_unused for arrow in moved if end in arrow.targets)
    kept[end] = attrs.evolve(nodes[end], is_unused=is_unused)
    return kept, moved


# -- sizes -----------------------------------------------------------------------------------


@attrs.frozen
class _Frame:
    """A child in the box of a step, and its size; the drawing begins in its corner."""

    child: Child
    width: float
    height: float
    inner: float = 0.0
    body: str = ""
    goes_back: bool = False


@attrs.frozen
class _Box:
    """A node with its size and its content."""

    node: Node
    #: The number of the flow and that of the node, by which the script of the page finds it.
    at: str
    shape: Shape
    rows: list[list[Mark]] = attrs.field(factory=list["list[Mark]"])
    frames: list[_Frame] = attrs.field(factory=list[_Frame])

    @property
    def head(self) -> float:
        """The height of the name of a step and its marks."""
        return 36.0 + ROW_HEIGHT * len(self.rows)


#: The sizes of the nodes without text.
_PLAIN = {"start": 18.0, "stop": 28.0, "gap": 26.0, "failures": 22.0}


def _box(node: Node, at: str) -> _Box:
    if node.kind in _PLAIN:
        return _Box(node, at, Shape(_PLAIN[node.kind], _PLAIN[node.kind]))
    name = text_width(shortened(node.name), NAME_SIZE)
    if node.kind in ("person", "outside"):
        return _Box(node, at, Shape(round(name + (66.0 if node.kind == "person" else 36.0)), 36.0))
    rows = rows_of(node.marks, name)
    if node.counts is not None:
        rows += rows_of(marks_of_counts(node.counts), name)
    frames = [_frame(child) for child in node.children]
    across = sum(frame.width + PADDING for frame in frames) + PADDING
    width = round(max(108.0, name + 32.0, across, *(row_width(row) + 28.0 for row in rows)))
    height = 36.0 + ROW_HEIGHT * len(rows)
    if frames:
        height += max(frame.height for frame in frames) + PADDING
    shape = Shape(width, height)
    if node.notes:
        shape = Shape(width, height, NOTE_DISTANCE + _note_width(node), _note_height(node))
    return _Box(node, at, shape, rows, frames)


def _frame(child: Child) -> _Frame:
    name = text_width(shortened(child.name), NAME_SIZE)
    if child.flow is None:
        hint = text_width(shortened(child.hint), MARK_SIZE)
        return _Frame(child, round(max(name, hint) + 32.0), 46.0 if child.hint else 32.0)
    drawing = _draw(child.flow, child.number)
    state = text_width(shortened(_state_of(child.flow)), MARK_SIZE)
    return _Frame(
        child,
        round(max(drawing.width, name + state + 16.0) + 2 * PADDING),
        round(FRAME_HEAD + drawing.height + PADDING),
        drawing.width,
        drawing.body,
        drawing.goes_back,
    )


def _state_of(flow: Flow) -> str:
    return f"state {flow.state}" if flow.state else ""


def _note_lines(node: Node) -> list[tuple[Label, str]]:
    """Return the lines of a note: each event with its first fields."""
    lines: list[tuple[Label, str]] = []
    for label in node.notes:
        lines.append((label, ""))
        lines += [(label, field) for field in label.fields[:FIELDS_IN_A_NOTE]]
        if len(label.fields) > FIELDS_IN_A_NOTE:
            lines.append((label, f"and {len(label.fields) - FIELDS_IN_A_NOTE} more"))
    return lines


def _note_width(node: Node) -> float:
    widths = [
        text_width(shortened(field), FIELD_SIZE)
        if field
        else text_width(shortened(label.drawn), EVENT_SIZE)
        for label, field in _note_lines(node)
    ]
    return round(max(widths) + 28.0)


def _note_height(node: Node) -> float:
    return sum(FIELD_LINE if field else LINE for _, field in _note_lines(node)) + 13.0


# -- nodes -------------------------------------------------------------------------------------


def _looks(kind: str, node: Node) -> str:
    return f"{kind} {node.look}" if node.look else kind


def _start(box: _Box, centre: Point) -> Iterator[str]:
    x, y = centre
    yield (
        f'<circle class="start" cx="{x:g}" cy="{y:g}" r="{box.shape.width / 2:g}">'
        "<title>The run begins</title></circle>"
    )


def _stop(box: _Box, centre: Point) -> Iterator[str]:
    x, y = centre
    yield (
        f'<g class="{_looks("stop", box.node)}"><circle cx="{x:g}" cy="{y:g}" r="13"/>'
        f'<circle cx="{x:g}" cy="{y:g}" r="8.5"/><title>{xml_text(box.node.title)}</title></g>'
    )


def _gap(box: _Box, centre: Point) -> Iterator[str]:
    x, y = centre
    yield (
        f'<g class="gap"><circle cx="{x:g}" cy="{y:g}" r="{box.shape.width / 2 - 1:g}"/>'
        f'<text x="{x:g}" y="{y + 5:g}">?</text><title>{xml_text(box.node.title)}</title></g>'
    )


def _failures(box: _Box, centre: Point) -> Iterator[str]:
    x, y = centre
    yield (
        f'<g class="{_looks("failures", box.node)}"><circle cx="{x:g}" cy="{y:g}" r="{box.shape.width / 2 - 1:g}"/>'
        f'<path d="M{x - 3.5:g} {y - 3.5:g}l7 7m0 -7l-7 7"/>'
        f"<title>{xml_text(box.node.title)}</title></g>"
    )


def _person(box: _Box, centre: Point) -> Iterator[str]:
    (x, y), shape, node = centre, box.shape, box.node
    left = x - shape.width / 2
    head = left + 23.0
    yield (
        f'<g class="{_looks("person", node)}" data-at="{box.at}"><rect x="{left:g}" y="{y - shape.height / 2:g}" '
        f'width="{shape.width:g}" height="{shape.height:g}" rx="{shape.height / 2:g}"/>'
        f'<circle class="figure" cx="{head:g}" cy="{y - 6:g}" r="5"/>'
        f'<path class="figure" d="M{head - 9:g} {y + 11:g}a9 9.5 0 0 1 18 0z"/>'
        f'<text class="name" x="{x + 14:g}" y="{y + 5:g}">{xml_text(node.name)}</text>'
        f"<title>{xml_text(node.title)}</title></g>"
    )


def _outside(box: _Box, centre: Point) -> Iterator[str]:
    (x, y), shape, node = centre, box.shape, box.node
    yield (
        f'<g class="{_looks("outside", node)}" data-at="{box.at}"><rect x="{x - shape.width / 2:g}" '
        f'y="{y - shape.height / 2:g}" width="{shape.width:g}" height="{shape.height:g}" '
        f'rx="{shape.height / 2:g}"/>'
        f'<text class="name" x="{x:g}" y="{y + 5:g}">{xml_text(node.name)}</text>'
        f"<title>{xml_text(node.title)}</title></g>"
    )


def _step(box: _Box, centre: Point) -> Iterator[str]:
    (x, y), shape, node = centre, box.shape, box.node
    left, top = x - shape.width / 2, y - shape.height / 2
    looks = _looks("step handler" if node.handles_failures else "step", node)
    was_cancelled = node.counts is not None and node.counts.cancelled > 0
    looks += " hatched" if was_cancelled else ""
    yield f'<g class="{looks}" data-at="{box.at}" data-name="{xml_text(node.name)}">'
    yield (
        f'<rect x="{left:g}" y="{top:g}" width="{shape.width:g}" height="{shape.height:g}" rx="8"/>'
    )
    if was_cancelled:
        yield (
            f'<rect class="hatch" x="{left + 1.5:g}" y="{top + 1.5:g}" '
            f'width="{shape.width - 3:g}" height="{shape.height - 3:g}" rx="6.5"/>'
        )
    if node.join:
        bar = shape.width - 24.0
        yield (
            f'<rect class="bar" x="{x - bar / 2:g}" y="{top - 2:g}" width="{bar:g}" height="5" '
            'rx="2.5"/>'
        )
    yield f'<text class="name" x="{x:g}" y="{top + 22:g}">{xml_text(shortened(node.name))}</text>'
    yield f"<title>{xml_text(node.title)}</title>"
    for place, row in enumerate(box.rows):
        yield from drawn_row(row, x, top + 41.0 + ROW_HEIGHT * place)
    yield "</g>"
    across = sum(frame.width for frame in box.frames) + PADDING * (len(box.frames) - 1)
    at = round(x - across / 2, 1)
    for frame in box.frames:
        yield from _child(frame, at, round(top + box.head, 1))
        at += frame.width + PADDING
    if node.notes:
        yield _note(box, x + shape.width / 2, y)


def _child(frame: _Frame, left: float, top: float) -> Iterator[str]:
    """Yield the frame of a child, with its flow if it is drawn here."""
    child = frame.child
    x = round(left + frame.width / 2, 1)
    classes = f"frame {child.kind}"
    rect = (
        f'<rect x="{left:g}" y="{top:g}" width="{frame.width:g}" height="{frame.height:g}" rx="6"/>'
    )
    title = f"<title>{xml_text(child.title)}</title>"
    name = xml_text(shortened(child.name))
    if child.flow is None:
        text = f'<text class="name" x="{x:g}" y="{top + 21:g}">{name}</text>'
        if not child.hint:
            yield f'<g class="{classes}">{rect}{text}{title}</g>'
            return
        text += f'<text class="hint" x="{x:g}" y="{top + 36:g}">{xml_text(shortened(child.hint))}</text>'
        yield f'<a href="#flow-{child.number}"><g class="{classes}">{rect}{text}{title}</g></a>'
        return
    yield f'<g class="{classes}" id="flow-{child.number}">{rect}'
    yield f'<text class="name" x="{left + PADDING:g}" y="{top + 20:g}">{name}</text>'
    if child.flow.state:
        right = left + frame.width - PADDING
        state = xml_text(shortened(_state_of(child.flow)))
        yield f'<text class="hint" x="{right:g}" y="{top + 20:g}">{state}</text>'
    yield f"{title}</g>"
    yield f'<g transform="translate({x - frame.inner / 2:g} {top + FRAME_HEAD:g})">'
    yield frame.body
    yield "</g>"


def _note(box: _Box, side: float, y: float) -> str:
    """Return the note beside a step: the events that it writes to the stream."""
    node = box.node
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
        f'<g class="note" data-ends="{box.at}">',
        f'<path class="arrow stream" d="M{side:g} {y:g}H{left - 1:g}"/>',
        f'<path class="tip" d="{tip}"/>',
        f'<path class="sheet" d="{sheet}"/>',
        f'<path class="fold" d="{fold}"/>',
    ]
    middle, at = left + (width - 4.0) / 2, top + 6.5
    for label, field in _note_lines(node):
        at += FIELD_LINE if field else LINE
        if field:
            text = xml_text(shortened(field))
            lines.append(f'<text class="field" x="{middle:g}" y="{at - 4:g}">{text}</text>')
        else:
            look = "never" if label.count == 0 else "stream"
            lines.append(line_of(label, f"event {look}", middle, at - 4.3))
    lines.append("</g>")
    return "\n".join(lines)


_DRAWN = {
    "start": _start,
    "stop": _stop,
    "gap": _gap,
    "failures": _failures,
    "person": _person,
    "outside": _outside,
    "step": _step,
}
