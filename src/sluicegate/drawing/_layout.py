"""The layout: the position of each box and the path of each arrow. Pure arithmetic.

This is the second half of the layered drawing. Horizontal positions are least squares, projected
onto the order of each row (isotonic regression); rows follow from top to bottom. A link runs
straight down through its own cell in every row and bends only in the empty gaps between rows, so
it cannot touch a box or the label of another link.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

import attrs

from sluicegate.drawing._layers import Layers, arrange


if TYPE_CHECKING:
    from collections.abc import Sequence


Point = tuple[float, float]

BOX_GAP = 40.0
CELL_GAP = 16.0
ROW_GAP = 27.0
PORT_GAP = 34.0
LOOP_REACH = 26.0
LOOP_BEND = 14.0
ROUNDS = 80


@attrs.frozen
class Shape:
    """The size of a box.

    Attributes:
        width: The width of the box itself; arrows reach it from above and below.
        height: The height of the box itself.
        aside: The further width of a note at its right side.
        tall: The height of that note, if it is more than the box's.
    """

    width: float
    height: float
    aside: float = 0.0
    tall: float = 0.0


@attrs.frozen
class Link:
    """An arrow between two boxes, given by number, and the size of its label."""

    source: int
    target: int
    width: float = 0.0
    height: float = 0.0


@attrs.frozen
class ArrowPath:
    """The path of an arrow.

    Attributes:
        points: From the source to the target: straight lines and curves alternate, and the first
            is straight. For a loop at one box, the two ends.
        label: The centre of its label.
        goes_back: Whether it leads up, back to an earlier box.
        is_loop: Whether it leads from a box to itself.
    """

    points: tuple[Point, ...]
    label: Point
    goes_back: bool = False
    is_loop: bool = False


@attrs.frozen
class Layout:
    """A finished layout; ``centres`` are the centres of the boxes without their notes."""

    width: float
    height: float
    centres: tuple[Point, ...]
    paths: tuple[ArrowPath, ...]


@attrs.define
class _Extent:
    """How far a cell extends from its centre, or from the line that passes through it."""

    left: float
    right: float
    height: float


def lay_out(shapes: Sequence[Shape], links: Sequence[Link]) -> Layout:
    """Lay out boxes and arrows. Reading begins at box 0; equal input gives equal output."""
    numbers = [i for i, link in enumerate(links) if link.source != link.target]
    layers = arrange(len(shapes), [(links[i].source, links[i].target) for i in numbers])
    between = [links[i] for i in numbers]
    loops = [link for link in links if link.source == link.target]
    extents = _extents(layers, shapes, between, loops)
    ports = _ports(layers, shapes)
    xs = _places(layers, extents, ports)
    plan = _Plan(layers, ports, xs)
    _stack(plan, extents)

    centres = tuple((xs[i], plan.middles[layers.cells[i].row]) for i in range(len(shapes)))
    paths: dict[int, ArrowPath] = {}
    for own, number in enumerate(numbers):
        paths[number] = _path_of(own, plan, shapes)
    reach: dict[int, float] = {}
    for number, link in enumerate(links):
        if link.source == link.target:
            paths[number] = _loop(link, shapes[link.source], centres[link.source], reach)
    width = max((xs[i] + extent.right for i, extent in enumerate(extents)), default=0.0)
    return Layout(
        width, max(plan.bottoms, default=0.0), centres, tuple(paths[i] for i in sorted(paths))
    )


# -- sizes ---------------------------------------------------------------------------------


def _extents(
    layers: Layers, shapes: Sequence[Shape], links: Sequence[Link], loops: Sequence[Link]
) -> list[_Extent]:
    extents: list[_Extent] = []
    for cell in layers.cells:
        if cell.box is not None:
            shape = shapes[cell.box]
            half = shape.width / 2
            height = max(shape.height, shape.tall)
            extents.append(_Extent(half, half + shape.aside, height))
        elif cell.has_label and cell.link is not None:
            link = links[cell.link]
            extents.append(_Extent(link.width / 2, link.width / 2, link.height))
        else:
            extents.append(_Extent(0.0, 0.0, 0.0))
    for loop in loops:
        extent = extents[loop.source]
        extent.left += LOOP_REACH + loop.width
        extent.height = max(extent.height, loop.height)
    return extents


#: The distance between a link's end and the centre of its box, by link and whether that is above.
_Ports = dict[tuple[int, bool], float]


def _ports(layers: Layers, shapes: Sequence[Shape]) -> _Ports:
    """Spread the links along the sides of their boxes, in the order in which they arrive."""
    at = {number: place for row in layers.rows for place, number in enumerate(row)}
    sides: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    for link, path in enumerate(layers.paths):
        sides.setdefault((path[0], True), []).append((at[path[1]], link))
        sides.setdefault((path[-1], False), []).append((at[path[-2]], link))
    ports: _Ports = {}
    for (box, is_above), met in sides.items():
        span = max(shapes[box].width - 2 * 14.0, 0.0)
        step = min(PORT_GAP, span / (len(met) - 1)) if len(met) > 1 else 0.0
        for place, (_, link) in enumerate(sorted(met)):
            ports[link, is_above] = (place - (len(met) - 1) / 2) * step
    return ports


# -- from left to right ----------------------------------------------------------------------


@attrs.frozen
class _Pull:
    """A wish of a cell to be ``shift`` to the right of another one, with its weight."""

    other: int
    shift: float
    weight: float


def _places(layers: Layers, extents: Sequence[_Extent], ports: _Ports) -> list[float]:
    up, down = _pulls(layers, ports)
    xs = [0.0] * len(layers.cells)
    gaps: list[list[float]] = []
    for row in layers.rows:
        offsets = [0.0]
        for left, right in pairwise(row):
            both = layers.cells[left].box is not None and layers.cells[right].box is not None
            apart = extents[left].right + extents[right].left + (BOX_GAP if both else CELL_GAP)
            offsets.append(offsets[-1] + apart)
        gaps.append(offsets)
        for number, offset in zip(row, offsets, strict=True):
            xs[number] = offset - offsets[-1] / 2
    for turn in range(ROUNDS):
        order = list(zip(layers.rows, gaps, strict=True))
        for row, offsets in order if turn % 2 == 0 else reversed(order):
            # First from one side, which moves a shift far; then from both, which settles.
            if turn < 4:
                pulls = [(up if turn % 2 == 0 else down)[n] for n in row]
            else:
                pulls = [up[n] + down[n] for n in row]
            _settle_row(row, offsets, pulls, xs)
    _straighten(layers, gaps, xs)
    least = min((x - extents[i].left for i, x in enumerate(xs)), default=0.0)
    return [round(x - least, 1) for x in xs]


def _pulls(layers: Layers, ports: _Ports) -> tuple[list[list[_Pull]], list[list[_Pull]]]:
    up: list[list[_Pull]] = [[] for _ in layers.cells]
    down: list[list[_Pull]] = [[] for _ in layers.cells]
    for link, path in enumerate(layers.paths):
        for place in range(len(path) - 1):
            upper, lower = path[place], path[place + 1]
            boxes = (place == 0) + (place == len(path) - 2)
            # A long arrow should be straight; a link that leads back yields to the others.
            weight = 8.0 if not boxes else 0.3 if link in layers.turned else 1.0
            shift = (ports[link, True] if place == 0 else 0.0) - (
                ports[link, False] if place == len(path) - 2 else 0.0
            )
            up[lower].append(_Pull(upper, shift, weight))
            down[upper].append(_Pull(lower, -shift, weight))
    return up, down


def _settle_row(
    row: Sequence[int], offsets: Sequence[float], pulls: Sequence[Sequence[_Pull]], xs: list[float]
) -> None:
    """Move the cells of a row to the least-squares positions that keep their order and gaps.

    Pool adjacent violators: cells that would come too close form a block with a common mean.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for number, offset, pulled in zip(row, offsets, pulls, strict=True):
        weight = sum(pull.weight for pull in pulled)
        if weight:
            wanted = sum((xs[p.other] + p.shift) * p.weight for p in pulled) / weight
        else:
            wanted, weight = xs[number], 0.05
        block = (wanted - offset, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, heavy, many = blocks.pop()
            total = heavy + block[1]
            block = ((mean * heavy + block[0] * block[1]) / total, total, many + block[2])
        blocks.append(block)
    place = 0
    for mean, _, many in blocks:
        for _ in range(many):
            xs[row[place]] = mean + offsets[place]
            place += 1


def _straighten(layers: Layers, gaps: Sequence[Sequence[float]], xs: list[float]) -> None:
    """Align the cells of each link vertically, as far as their neighbours allow."""
    beside: dict[int, tuple[int | None, float, int | None, float]] = {}
    for row, offsets in zip(layers.rows, gaps, strict=True):
        for place, number in enumerate(row):
            left = row[place - 1] if place else None
            right = row[place + 1] if place + 1 < len(row) else None
            before = offsets[place] - offsets[place - 1] if place else 0.0
            after = offsets[place + 1] - offsets[place] if right is not None else 0.0
            beside[number] = left, before, right, after
    for _ in range(3):
        for path in layers.paths:
            upright: list[int] = []
            least, most = -inf, inf
            for number in path[1:-1]:
                left, before, right, after = beside[number]
                low = xs[left] + before if left is not None else -inf
                high = xs[right] - after if right is not None else inf
                if upright and max(least, low) > min(most, high):
                    _set_upright(upright, least, most, xs)
                    upright, least, most = [], -inf, inf
                upright.append(number)
                least, most = max(least, low), min(most, high)
            _set_upright(upright, least, most, xs)


def _set_upright(numbers: Sequence[int], least: float, most: float, xs: list[float]) -> None:
    wanted = sum(xs[number] for number in numbers) / len(numbers)
    for number in numbers:
        xs[number] = min(max(wanted, least), most)


# -- from top to bottom ----------------------------------------------------------------------


@attrs.define
class _Plan:
    """All positions: cells from left to right, rows from top to bottom."""

    layers: Layers
    ports: _Ports
    xs: list[float]
    tops: list[float] = attrs.field(factory=list[float])
    middles: list[float] = attrs.field(factory=list[float])
    bottoms: list[float] = attrs.field(factory=list[float])

    def end(self, link: int, number: int) -> float:
        """Return the horizontal position at which ``link`` meets the cell ``number``."""
        if self.layers.cells[number].box is None:
            return self.xs[number]
        is_above = number == self.layers.paths[link][0]
        return round(self.xs[number] + self.ports[link, is_above], 1)


def _stack(plan: _Plan, extents: Sequence[_Extent]) -> None:
    """Stack the rows; wide bends get more room."""
    layers = plan.layers
    bends = [0.0] * len(layers.rows)
    for link, path in enumerate(layers.paths):
        for upper, lower in pairwise(path):
            row = layers.cells[lower].row
            bends[row] = max(bends[row], abs(plan.end(link, upper) - plan.end(link, lower)))
    y = 0.0
    for row, members in enumerate(layers.rows):
        height = max((extents[number].height for number in members), default=0.0)
        if row:
            y += ROW_GAP + min(34.0, bends[row] * 0.09)
        plan.tops.append(round(y, 1))
        plan.middles.append(round(y + height / 2, 1))
        y += height
        plan.bottoms.append(round(y, 1))


# -- paths -----------------------------------------------------------------------------------


def _path_of(link: int, plan: _Plan, shapes: Sequence[Shape]) -> ArrowPath:
    layers = plan.layers
    points: list[Point] = []
    label = (0.0, 0.0)
    path = layers.paths[link]
    for number in path:
        cell = layers.cells[number]
        x = plan.end(link, number)
        top, bottom = plan.tops[cell.row], plan.bottoms[cell.row]
        if cell.box is None:
            points += [(x, top), (x, bottom)]
            if cell.has_label:
                label = (x, plan.middles[cell.row])
        else:
            half = shapes[cell.box].height / 2
            if number == path[0]:
                points += [(x, round(plan.middles[cell.row] + half, 1)), (x, bottom)]
            else:
                points += [(x, top), (x, round(plan.middles[cell.row] - half, 1))]
    goes_back = link in layers.turned
    return ArrowPath(tuple(reversed(points)) if goes_back else tuple(points), label, goes_back)


def _loop(link: Link, shape: Shape, centre: Point, reach: dict[int, float]) -> ArrowPath:
    """Return the path of a loop, on the left side of its box; further loops are further out."""
    x = centre[0] - shape.width / 2
    out = reach.get(link.source, 0.0)
    reach[link.source] = out + LOOP_REACH + link.width
    label = round(x - out - LOOP_REACH - link.width / 2, 1)
    bend = min(shape.height / 4, LOOP_BEND)
    ends = ((x, centre[1] + bend), (x, centre[1] - bend))
    return ArrowPath(ends, (label, centre[1]), goes_back=True, is_loop=True)
