"""Layers: the row of each box, and the order within each row.

This is the first half of Sugiyama's layered drawing. Links that close a circle are reversed. The
row of a box is the length of the longest path to it; a row that would be too wide passes boxes on to
the next one. A link that spans several rows gets a cell in each row between; links of one group
share the cell with their label. Sweeps by barycentre order the cells so that few links cross. Boxes
are in even rows; odd rows are for the labels of the links, so that no label can lie on a box.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

import attrs


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


SWEEPS = 12
#: The room beside a box, which counts for the width of its row.
BESIDE = 40.0


@attrs.define
class Cell:
    """A place in a row: a box, or where a link goes through the row.

    Attributes:
        box: The number of the box, or None.
        link: The number of the link that passes through, or None.
        has_label: Whether the link's label is here.
    """

    row: int
    box: int | None = None
    link: int | None = None
    has_label: bool = False
    above: list[int] = attrs.field(factory=list[int])
    below: list[int] = attrs.field(factory=list[int])


@attrs.define
class Layers:
    """The cells, the rows that hold their numbers in order, and the path of each link.

    Attributes:
        paths: The cells of each link from top to bottom, its two boxes included.
        turned: The links that lead up: their paths go from their target to their source.
    """

    cells: list[Cell]
    rows: list[list[int]]
    paths: list[list[int]]
    turned: frozenset[int]


def arrange(
    count: int,
    links: Sequence[tuple[int, int]],
    groups: Sequence[int] = (),
    widths: Sequence[float] = (),
    most: float = inf,
) -> Layers:
    """Put ``count`` boxes and the links between them into rows. Reading begins at box 0.

    No link leads from a box to itself.

    Args:
        count: The number of boxes.
        links: The source and the target of each link.
        groups: For each link the number of its group; the links of a group have the same source.
        widths: For each box its width.
        most: The greatest width of the boxes of a row together.
    """
    turned = _back_links(count, links)
    down = [(b, a) if i in turned else (a, b) for i, (a, b) in enumerate(links)]
    ranks = _ranks(count, down)
    passed_on = _pass_on(ranks, down, widths, most) if widths else frozenset[int]()
    cells = [Cell(2 * rank, box=box) for box, rank in enumerate(ranks)]
    paths: list[list[int]] = []
    shared: dict[tuple[int, bool], int] = {}
    sizes = Counter(groups)
    for link, (top, bottom) in enumerate(down):
        first, last = 2 * ranks[top] + 1, 2 * ranks[bottom] - 1
        # The label is near the step that makes the event, which for a turned link is below. The
        # labels of a row that is too wide would be as wide, so they are near the targets.
        is_alone = not groups or sizes[groups[link]] == 1
        at = last if link in turned or (is_alone and bottom in passed_on) else first
        path = [top]
        for row in range(first, last + 1):
            key = (groups[link] if groups else link, link in turned)
            number = shared.get(key) if row == at else None
            if number is None:
                number = len(cells)
                cells.append(Cell(row, link=link, has_label=row == at))
                if row == at:
                    shared[key] = number
            path.append(number)
        path.append(bottom)
        paths.append(path)
        for upper, lower in pairwise(path):
            if lower not in cells[upper].below:
                cells[upper].below.append(lower)
                cells[lower].above.append(upper)
    rows: list[list[int]] = [[] for _ in range(2 * max(ranks, default=0) + 1)]
    for number in _reading_order(cells):
        rows[cells[number].row].append(number)
    return Layers(cells, _with_few_crossings(cells, rows), paths, turned)


def rows_of(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """Return for each box its row among the rows of boxes, before any is too wide."""
    turned = _back_links(count, links)
    return _ranks(count, [(b, a) if i in turned else (a, b) for i, (a, b) in enumerate(links)])


def _back_links(count: int, links: Sequence[tuple[int, int]]) -> frozenset[int]:
    """Find the links that close a circle, by a depth-first walk from box 0."""
    leaving: list[list[int]] = [[] for _ in range(count)]
    entered = [False] * count
    for link, (source, target) in enumerate(links):
        leaving[source].append(link)
        entered[target] = True
    sources = [box for box in range(1, count) if not entered[box]]
    state = ["new"] * count
    back: set[int] = set()
    for root in (*range(min(count, 1)), *sources, *range(count)):
        if state[root] != "new":
            continue
        state[root] = "open"
        stack = [(root, iter(leaving[root]))]
        while stack:
            box, more = stack[-1]
            link = next(more, -1)
            if link < 0:
                state[box] = "done"
                stack.pop()
                continue
            target = links[link][1]
            if state[target] == "open":
                back.add(link)
            elif state[target] == "new":
                state[target] = "open"
                stack.append((target, iter(leaving[target])))
    return frozenset(back)


def _ranks(count: int, down: Sequence[tuple[int, int]]) -> list[int]:
    """Return the longest path to each box; a box without a source is just above its targets."""
    below: list[list[int]] = [[] for _ in range(count)]
    open_above = [0] * count
    for top, bottom in down:
        below[top].append(bottom)
        open_above[bottom] += 1
    is_source = [not n for n in open_above]
    ranks = [0] * count
    ready = [box for box in range(count) if is_source[box]]
    for box in ready:
        for lower in below[box]:
            ranks[lower] = max(ranks[lower], ranks[box] + 1)
            open_above[lower] -= 1
            if not open_above[lower]:
                ready.append(lower)
    for box in range(1, count):
        if is_source[box] and below[box]:
            ranks[box] = min(ranks[lower] for lower in below[box]) - 1
    return ranks


def _pass_on(
    ranks: list[int], down: Sequence[tuple[int, int]], widths: Sequence[float], most: float
) -> frozenset[int]:
    """Move boxes of rows that are too wide to the next row; return the boxes that were moved.

    Those with the longest way to go keep their row.
    """
    below: list[list[int]] = [[] for _ in ranks]
    for top, bottom in down:
        below[top].append(bottom)
    to_go = [0] * len(ranks)
    for box in sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True):
        to_go[box] = max((to_go[lower] + 1 for lower in below[box]), default=0)
    moved: set[int] = set()
    members: dict[int, list[int]] = {}
    for box, rank in enumerate(ranks):
        members.setdefault(rank, []).append(box)
    rank = min(ranks, default=0)
    while members:
        width = 0.0
        row = [box for box in members.pop(rank, []) if ranks[box] == rank]
        for place, box in enumerate(sorted(row, key=lambda box: (-to_go[box], box))):
            width += widths[box] + BESIDE
            if place and width > most:
                moved.add(box)
                _move_down(box, rank + 1, ranks, below, members)
        rank += 1
    return frozenset(moved)


def _move_down(
    box: int,
    rank: int,
    ranks: list[int],
    below: Sequence[Sequence[int]],
    members: dict[int, list[int]],
) -> None:
    todo = [(box, rank)]
    while todo:
        box, rank = todo.pop()
        if ranks[box] < rank:
            ranks[box] = rank
            members.setdefault(rank, []).append(box)
            todo += [(lower, rank + 1) for lower in below[box]]


def _reading_order(cells: Sequence[Cell]) -> Iterable[int]:
    """Return the cells in the order of a walk down from box 0, then from the others."""
    seen: dict[int, None] = {}
    for root in range(len(cells)):
        todo = [root]
        while todo:
            number = todo.pop()
            if number not in seen:
                seen[number] = None
                todo += reversed(cells[number].below)
    return seen


def _with_few_crossings(cells: Sequence[Cell], rows: list[list[int]]) -> list[list[int]]:
    best = [list(row) for row in rows]
    fewest = _crossings(cells, best)
    current = [list(row) for row in rows]
    for sweep in range(SWEEPS):
        if not fewest:
            break
        goes_down = sweep % 2 == 0
        _sweep(cells, current, goes_down=goes_down)
        _exchange(cells, current)
        crossings = _crossings(cells, current)
        if crossings < fewest:
            fewest = crossings
            best = [list(row) for row in current]
    return best


def _sweep(cells: Sequence[Cell], rows: list[list[int]], *, goes_down: bool) -> None:
    """Order each row by the mean position of the cells that its cells are linked to."""
    at = {number: place for row in rows for place, number in enumerate(row)}
    for row in rows if goes_down else reversed(rows):
        means: dict[int, float] = {}
        for number in row:
            near = cells[number].above if goes_down else cells[number].below
            means[number] = sum(at[n] for n in near) / len(near) if near else at[number]
        row.sort(key=means.__getitem__)
        at.update((number, place) for place, number in enumerate(row))


def _exchange(cells: Sequence[Cell], rows: list[list[int]]) -> None:
    """Exchange neighbours as long as that removes a crossing."""
    at = {number: place for row in rows for place, number in enumerate(row)}
    for _ in range(4):
        has_gained = False
        for row in rows:
            for place in range(len(row) - 1):
                left, right = row[place], row[place + 1]
                saved = _between(cells, at, left, right) - _between(cells, at, right, left)
                if saved > 0:
                    row[place], row[place + 1] = right, left
                    at[left], at[right] = place + 1, place
                    has_gained = True
        if not has_gained:
            break


def _between(cells: Sequence[Cell], at: dict[int, int], left: int, right: int) -> int:
    """Count the crossings of the links of two neighbours, in this order."""
    count = 0
    for near_left, near_right in (
        (cells[left].above, cells[right].above),
        (cells[left].below, cells[right].below),
    ):
        places = sorted(at[n] for n in near_right)
        for number in near_left:
            count += sum(place < at[number] for place in places)
    return count


def _crossings(cells: Sequence[Cell], rows: Sequence[Sequence[int]]) -> int:
    """Count the crossings between all rows, as inversions."""
    total = 0
    for upper, lower in pairwise(rows):
        at = {number: place for place, number in enumerate(lower)}
        passed: list[int] = []
        for number in upper:
            ends = sorted(at[n] for n in cells[number].below)
            total += sum(len(passed) - bisect_right(passed, end) for end in ends)
            for end in ends:
                insort(passed, end)
    return total
