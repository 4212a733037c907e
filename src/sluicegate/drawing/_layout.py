"""The layout: the position of each box and the path of each arrow. Pure arithmetic.

This is the second half of the layered drawing. Horizontal positions are least squares, projected
onto the order of each row (isotonic regression); rows follow from top to bottom. A link runs
straight down through its own cell in every row and bends only in the empty gaps between rows, so
it cannot touch a box or the label of another link. A layout that is too high for its view is folded
into columns, as in a newspaper: links lead from the foot of a column to the head of the next one,
through the gutter between them.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

import attrs

from sluicegate.drawing._layers import Cell, Layers, arrange


if TYPE_CHECKING:
    from collections.abc import Sequence


Point = tuple[float, float]

BOX_GAP = 36.0
CELL_GAP = 16.0
ROW_GAP = 22.0
PORT_GAP = 34.0
LOOP_REACH = 26.0
LOOP_BEND = 14.0
ROUNDS = 80
#: The distance of neighbouring links in a gutter, its margins, and the radius of a corner.
TRACK = 9.0
GUTTER = 22.0
CORNER = 6.0
MOST_COLUMNS = 12
#: By how much a further column has to enlarge the picture in its view.
GAIN = 1.12
#: The factor by which each link in its fullest gutter reduces the rating of a picture.
WRAPPED = 0.9


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
    """An arrow between two boxes, given by number, and the size of its label.

    Links of one ``group`` have the same source and the same label, which they share as long as they
    lead into the same direction: up or down.
    """

    source: int
    target: int
    width: float = 0.0
    height: float = 0.0
    group: int | None = None


@attrs.frozen
class View:
    """The room in which a picture is looked at."""

    width: float
    height: float


@attrs.frozen
class ArrowPath:
    """The path of an arrow.

    Attributes:
        points: From the source to the target: straight lines and curves alternate, and the first
            is straight. A curve has the directions of the lines before and after it at its ends.
            For a loop at one box, the two ends.
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


def lay_out(shapes: Sequence[Shape], links: Sequence[Link], view: View | None = None) -> Layout:
    """Lay out boxes and arrows. Reading begins at box 0; equal input gives equal output.

    With a ``view``, the layout is no wider than that where boxes are free to move down, and is
    folded into columns where that makes it larger in the view.
    """
    numbers = [i for i, link in enumerate(links) if link.source != link.target]
    between = [links[i] for i in numbers]
    groups = _groups(between)
    widths = [shape.width + shape.aside for shape in shapes] if view is not None else []
    most = inf if view is None else view.width
    pairs = [(link.source, link.target) for link in between]
    layers = arrange(len(shapes), pairs, groups, widths, most)
    loops = [link for link in links if link.source == link.target]
    extents = _extents(layers, shapes, between, loops)
    columns = [0] * len(layers.rows)
    if view is not None:
        columns = _with_ends_above(layers, _columns(layers, extents, view), extents)
    plan = _Plan(layers, _ports(layers, shapes), columns)
    plan.xs = _places(plan, extents)
    plan.wraps = _wraps(plan)
    height = _stack(plan, extents)
    width = _set_columns_apart(plan, extents)

    centres = tuple((plan.xs[i], plan.middles[layers.cells[i].row]) for i in range(len(shapes)))
    paths: dict[int, ArrowPath] = {}
    for own, number in enumerate(numbers):
        paths[number] = _path_of(own, plan, shapes)
    reach: dict[int, float] = {}
    for number, link in enumerate(links):
        if link.source == link.target:
            paths[number] = _loop(link, shapes[link.source], centres[link.source], reach)
    return Layout(width, height, centres, tuple(paths[i] for i in sorted(paths)))


def _groups(links: Sequence[Link]) -> list[int]:
    """Return the number of each link's group; a link without one is a group by itself."""
    found: dict[object, int] = {}
    return [
        found.setdefault((place, None) if link.group is None else link.group, len(found))
        for place, link in enumerate(links)
    ]


@attrs.define
class _Plan:
    """All positions: cells from left to right, rows from top to bottom, and columns of rows.

    Attributes:
        ports: The distance between the end of a link and the centre of its box, by the box and the
            cell next to it.
        columns: The number of the column of each row.
        wraps: The links from the foot of each column to the head of the next, from left to right:
            the cells before and after.
        gutters: Where the gutter beside each column begins.
    """

    layers: Layers
    ports: dict[tuple[int, int], float]
    columns: list[int]
    xs: list[float] = attrs.field(factory=list[float])
    wraps: list[list[tuple[int, int]]] = attrs.field(factory=list[list[tuple[int, int]]])
    gutters: list[float] = attrs.field(factory=list[float])
    tops: list[float] = attrs.field(factory=list[float])
    middles: list[float] = attrs.field(factory=list[float])
    bottoms: list[float] = attrs.field(factory=list[float])

    def column(self, cell: int) -> int:
        """Return the column of a cell."""
        return self.columns[self.layers.cells[cell].row]

    def end(self, cell: int, other: int) -> float:
        """Return the horizontal position at which the link to ``other`` meets ``cell``."""
        return round(self.xs[cell] + self.ports.get((cell, other), 0.0), 1)

    def pairs(self) -> dict[tuple[int, int], None]:
        """Return the upper and lower cells that are linked, each pair once."""
        return dict.fromkeys(pair for path in self.layers.paths for pair in pairwise(path))


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


def _ports(layers: Layers, shapes: Sequence[Shape]) -> dict[tuple[int, int], float]:
    """Spread the links along the sides of their boxes, in the order in which they arrive."""
    at = {number: place for row in layers.rows for place, number in enumerate(row)}
    sides: dict[tuple[int, bool], dict[int, None]] = {}
    for path in layers.paths:
        sides.setdefault((path[0], True), {}).setdefault(path[1])
        sides.setdefault((path[-1], False), {}).setdefault(path[-2])
    ports: dict[tuple[int, int], float] = {}
    for (box, _), met in sides.items():
        span = max(shapes[box].width - 2 * 14.0, 0.0)
        step = min(PORT_GAP, span / (len(met) - 1)) if len(met) > 1 else 0.0
        for place, other in enumerate(sorted(met, key=at.__getitem__)):
            ports[box, other] = (place - (len(met) - 1) / 2) * step
    return ports


# -- columns ---------------------------------------------------------------------------------


def _columns(layers: Layers, extents: Sequence[_Extent], view: View) -> list[int]:
    """Return the column of each row: as many as make the picture large in its view."""
    heights = [max((extents[i].height for i in row), default=0.0) for row in layers.rows]
    widths = [
        sum(extents[i].left + extents[i].right + CELL_GAP for i in row) for row in layers.rows
    ]
    crossing = [0] * len(layers.rows)
    for row, members in enumerate(layers.rows[1:], 1):
        crossing[row] = sum(len(layers.cells[i].above) for i in _going_on(layers, members))
    best = [0] * len(layers.rows)
    scale = _scale(best, heights, widths, crossing, view)
    for count in range(2, MOST_COLUMNS + 1):
        if scale >= 1:
            break
        columns = _cut(count, heights, crossing)
        larger = _scale(columns, heights, widths, crossing, view)
        if larger >= scale * GAIN:
            best, scale = columns, larger
    return best


def _going_on(layers: Layers, row: Sequence[int]) -> list[int]:
    """Return the cells of a row from which links lead down; all of them if there is none."""
    return [i for i in row if layers.cells[i].below] or list(row)


def _with_ends_above(layers: Layers, columns: Sequence[int], extents: list[_Extent]) -> list[int]:
    """Move boxes without a link down from the head of a column to the foot of the one before.

    They form a new row there, with a cell for each link that leads on to the next column. Return the
    columns of all rows.
    """
    rows: list[list[int]] = []
    moved: list[int] = []
    for row, members in enumerate(layers.rows):
        kept = members
        if row and columns[row] != columns[row - 1]:
            kept = _going_on(layers, members)
            if len(kept) < len(members):
                rows.append(_foot(layers, row, kept, extents))
                moved.append(columns[row - 1])
        rows.append(kept)
        moved.append(columns[row])
    layers.rows = rows
    for row, members in enumerate(rows):
        for i in members:
            layers.cells[i].row = row
    return moved


def _foot(layers: Layers, row: int, kept: Sequence[int], extents: list[_Extent]) -> list[int]:
    """Return a row between ``row`` and the one above: the boxes that leave it, and new cells."""
    cells = layers.cells
    at = {number: place for place, number in enumerate(layers.rows[row - 1])}
    places = {
        i: min(map(at.__getitem__, cells[i].above), default=len(at)) for i in layers.rows[row]
    }
    staying = set(kept)
    new: dict[tuple[int, int], int] = {}
    for lower in kept:
        for upper in cells[lower].above:
            number = new[upper, lower] = len(cells)
            cells.append(Cell(row, link=cells[upper].link, above=[upper], below=[lower]))
            extents.append(_Extent(0.0, 0.0, 0.0))
            cells[upper].below[cells[upper].below.index(lower)] = number
            places[number] = at[upper]
        cells[lower].above = [new[upper, lower] for upper in cells[lower].above]
    for path in layers.paths:
        for place, pair in enumerate(pairwise(path)):
            if pair in new:
                path.insert(place + 1, new[pair])
                break
    leaving = [i for i in layers.rows[row] if i not in staying]
    return sorted([*new.values(), *leaving], key=places.__getitem__)


def _cut(count: int, heights: Sequence[float], crossing: Sequence[int]) -> list[int]:
    """Cut rows into columns of about the same height, above rows of boxes that few links enter."""
    feet: list[float] = []
    y = 0.0
    for height in heights:
        y += height + ROW_GAP
        feet.append(y)
    cuts: list[int] = []
    for place in range(1, count):
        above = feet[cuts[-1] - 1] if cuts else 0.0
        wanted = above + (y - above) / (count - place + 1)
        first = cuts[-1] + 2 if cuts else 2
        rows = range(first, len(heights), 2)
        if not rows:
            break
        # A link through the gutter is as bad as a twentieth of the height out of balance.
        cuts.append(min(rows, key=lambda row: abs(feet[row - 1] - wanted) / y * 20 + crossing[row]))
    column = 0
    columns: list[int] = []
    for row in range(len(heights)):
        column += row in cuts
        columns.append(column)
    return columns


def _scale(
    columns: Sequence[int],
    heights: Sequence[float],
    widths: Sequence[float],
    crossing: Sequence[int],
    view: View,
) -> float:
    """Return the scale at which a picture of these columns fits its view.

    Many links side by side in a gutter are hard to follow, and count as a smaller scale.
    """
    count = max(columns, default=0) + 1
    highs, wides = [0.0] * count, [0.0] * count
    gutters, links = 0.0, 0
    for row, column in enumerate(columns):
        highs[column] += heights[row] + ROW_GAP
        wides[column] = max(wides[column], widths[row])
        if row and columns[row - 1] != column:
            gutters += TRACK * crossing[row] + 2 * GUTTER
            links = max(links, crossing[row])
    fits = min(1.0, view.width / max(sum(wides) + gutters, 1.0), view.height / max(*highs, 1.0))
    return fits * WRAPPED**links


def _wraps(plan: _Plan) -> list[list[tuple[int, int]]]:
    """Return the linked cells between each column and the next, in the order of their tracks."""
    at = {number: place for row in plan.layers.rows for place, number in enumerate(row)}
    wraps: list[list[tuple[int, int]]] = [[] for _ in range(max(plan.columns, default=0))]
    for upper, lower in plan.pairs():
        if plan.column(upper) != plan.column(lower):
            wraps[plan.column(upper)].append((upper, lower))
    for pairs in wraps:
        pairs.sort(key=lambda pair: (at[pair[0]], at[pair[1]]))
    return wraps


def _set_columns_apart(plan: _Plan, extents: Sequence[_Extent]) -> float:
    """Set each column beside the one before, with a gutter between; return the width."""
    left = 0.0
    for column in range(max(plan.columns, default=0) + 1):
        cells = [i for i in range(len(plan.xs)) if plan.column(i) == column]
        least = min((plan.xs[i] - extents[i].left for i in cells), default=0.0)
        most = max((plan.xs[i] + extents[i].right for i in cells), default=0.0)
        for i in cells:
            plan.xs[i] = round(plan.xs[i] - least + left, 1)
        left += round(most - least, 1)
        if column < len(plan.wraps):
            plan.gutters.append(left + GUTTER)
            left += 2 * GUTTER + TRACK * max(len(plan.wraps[column]) - 1, 0)
    return round(left, 1)


# -- from left to right ----------------------------------------------------------------------


@attrs.frozen
class _Pull:
    """A wish of a cell to be ``shift`` to the right of another one, with its weight."""

    other: int
    shift: float
    weight: float


def _places(plan: _Plan, extents: Sequence[_Extent]) -> list[float]:
    layers = plan.layers
    up, down = _pulls(plan)
    xs = [0.0] * len(layers.cells)
    gaps: list[list[float]] = []
    for row in layers.rows:
        offsets = [0.0] if row else []
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
    _straighten(plan, gaps, xs)
    return xs


def _pulls(plan: _Plan) -> tuple[list[list[_Pull]], list[list[_Pull]]]:
    layers = plan.layers
    up: list[list[_Pull]] = [[] for _ in layers.cells]
    down: list[list[_Pull]] = [[] for _ in layers.cells]
    back = {pair for link in layers.turned for pair in pairwise(layers.paths[link])}
    for upper, lower in plan.pairs():
        if plan.column(upper) != plan.column(lower):
            continue
        one, other = layers.cells[upper], layers.cells[lower]
        weight = 1.0
        if one.box is None and other.box is None:
            weight = 8.0  # a long arrow should be straight
        elif (upper, lower) in back:
            weight = 0.3  # a link that leads back yields to the others
        elif len(one.below) == 1 and len(other.above) == 1:
            weight = 4.0  # and so should a chain
        shift = plan.ports.get((upper, lower), 0.0) - plan.ports.get((lower, upper), 0.0)
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


def _straighten(plan: _Plan, gaps: Sequence[Sequence[float]], xs: list[float]) -> None:
    """Align the cells of each link vertically, as far as their neighbours allow."""
    layers = plan.layers
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
                parts = upright and plan.column(upright[-1]) != plan.column(number)
                if upright and (parts or max(least, low) > min(most, high)):
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


def _stack(plan: _Plan, extents: Sequence[_Extent]) -> float:
    """Stack the rows of each column; wide bends get more room. Return the height."""
    layers = plan.layers
    bends = [0.0] * len(layers.rows)
    for upper, lower in plan.pairs():
        if plan.column(upper) == plan.column(lower):
            row = layers.cells[lower].row
            bends[row] = max(bends[row], abs(plan.end(upper, lower) - plan.end(lower, upper)))
    y = height = 0.0
    for row, members in enumerate(layers.rows):
        column = plan.columns[row]
        if not row or column != plan.columns[row - 1]:
            y = _head_room(len(plan.wraps[column - 1])) if column else 0.0
        else:
            y += ROW_GAP + min(34.0, bends[row] * 0.09)
        high = max((extents[number].height for number in members), default=0.0)
        plan.tops.append(round(y, 1))
        plan.middles.append(round(y + high / 2, 1))
        y += high
        plan.bottoms.append(round(y, 1))
        foot = y + (_head_room(len(plan.wraps[column])) if column < len(plan.wraps) else 0.0)
        height = max(height, foot)
    return round(height, 1)


def _head_room(links: int) -> float:
    """Return the room for the links at the head of a column, or at its foot."""
    return ROW_GAP + TRACK * links if links else 0.0


# -- paths -----------------------------------------------------------------------------------


def _path_of(link: int, plan: _Plan, shapes: Sequence[Shape]) -> ArrowPath:
    layers = plan.layers
    points: list[Point] = []
    label = (0.0, 0.0)
    path = layers.paths[link]
    for place, number in enumerate(path):
        cell = layers.cells[number]
        top, bottom = plan.tops[cell.row], plan.bottoms[cell.row]
        if place and plan.column(path[place - 1]) != plan.column(number):
            points += _wrap(path[place - 1], number, plan)
        if cell.box is None:
            x = plan.end(number, -1)
            points += [(x, top), (x, bottom)]
            if cell.has_label:
                label = (x, plan.middles[cell.row])
        elif not place:
            x = plan.end(number, path[1])
            edge = plan.middles[cell.row] + shapes[cell.box].height / 2
            points += [(x, round(edge, 1)), (x, bottom)]
        else:
            x = plan.end(number, path[place - 1])
            edge = plan.middles[cell.row] - shapes[cell.box].height / 2
            points += [(x, top), (x, round(edge, 1))]
    goes_back = link in layers.turned
    return ArrowPath(tuple(reversed(points)) if goes_back else tuple(points), label, goes_back)


def _wrap(upper: int, lower: int, plan: _Plan) -> list[Point]:
    """Return the way of a link from the foot of a column to the head of the next one.

    Of several links, the leftmost one is outside at the foot and inside at the head, so they do not
    cross: down, right, up through the gutter, right, down.
    """
    column = plan.column(upper)
    pairs = plan.wraps[column]
    place = pairs.index((upper, lower))
    outer = TRACK * (len(pairs) - 1 - place)
    before, after = plan.end(upper, lower), plan.end(lower, upper)
    x = plan.gutters[column] + outer
    down = plan.bottoms[plan.layers.cells[upper].row] + ROW_GAP / 2 + outer
    head = plan.tops[plan.layers.cells[lower].row] - ROW_GAP / 2 - TRACK * place
    return [
        *[(before, down - CORNER)] * 2,
        (before + CORNER, down),
        (x - CORNER, down),
        (x, down - CORNER),
        (x, head + CORNER),
        (x + CORNER, head),
        (after - CORNER, head),
        *[(after, head + CORNER)] * 2,
    ]


def _loop(link: Link, shape: Shape, centre: Point, reach: dict[int, float]) -> ArrowPath:
    """Return the path of a loop, on the left side of its box; further loops are further out."""
    x = centre[0] - shape.width / 2
    out = reach.get(link.source, 0.0)
    reach[link.source] = out + LOOP_REACH + link.width
    label = round(x - out - LOOP_REACH - link.width / 2, 1)
    bend = min(shape.height / 4, LOOP_BEND)
    ends = ((x, centre[1] + bend), (x, centre[1] - bend))
    return ArrowPath(ends, (label, centre[1]), goes_back=True, is_loop=True)
