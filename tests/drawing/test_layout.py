"""The layout: properties that hold for any boxes and any arrows between them."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluicegate.drawing._layers import _crossings, arrange
from sluicegate.drawing._layout import Link, Shape, View, lay_out


#: Places are rounded to tenths.
SLACK = 0.25

sizes = st.floats(4, 300).map(round)
shapes_of_any = st.builds(
    Shape,
    width=sizes,
    height=sizes,
    aside=st.sampled_from([0.0, 150.0]),
    tall=st.sampled_from([0.0, 90.0]),
)


#: None: no folding. The others are so small that most layouts are folded, or their rows are broken.
views = st.sampled_from([None, View(900, 400), View(4000, 300), View(200, 200)])


@st.composite
def graphs(draw, loops=True, view=views):
    """Boxes, links, and the view; some links of a source share their label."""
    count = draw(st.integers(1, 9))
    shapes = draw(st.lists(shapes_of_any, min_size=count, max_size=count))
    ends = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=14))
    links = [
        Link(a, b, draw(sizes), draw(st.sampled_from([22.0, 39.0])))
        for a, b in pairs
        if loops or a != b
    ]
    if draw(st.booleans()):  # every second source has one label for all links to other boxes
        first = {}
        for place, link in enumerate(links):
            if link.source % 2 and link.source != link.target:
                label = first.setdefault(link.source, link)
                links[place] = Link(
                    link.source, link.target, label.width, label.height, link.source
                )
    return shapes, links, draw(view)


def box_of(shape, centre):
    """Left, top, right and bottom of a box together with what hangs at its side."""
    x, y = centre
    half = max(shape.height, shape.tall) / 2
    return (x - shape.width / 2, y - half, x + shape.width / 2 + shape.aside, y + half)


def label_of(link, path):
    x, y = path.label
    return (x - link.width / 2, y - link.height / 2, x + link.width / 2, y + link.height / 2)


def labels_of(links, layout):
    """The labels, each once, by what shares it: a group and the direction."""
    labels = {}
    for number, (link, path) in enumerate(zip(links, layout.paths, strict=True)):
        shared = number if link.group is None else ("group", link.group, path.goes_back)
        place = label_of(link, path)
        assert labels.setdefault(shared, place) == place
    return labels


def overlap(one, other):
    return (
        min(one[2], other[2]) - max(one[0], other[0]) > SLACK
        and min(one[3], other[3]) - max(one[1], other[1]) > SLACK
    )


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(graphs())
def test_boxes_and_labels_keep_apart(graph):
    """No two of all boxes and labels overlap, and all lie within the picture."""
    shapes, links, view = graph
    layout = lay_out(shapes, links, view)
    things = [
        *(box_of(shape, at) for shape, at in zip(shapes, layout.centres, strict=True)),
        *labels_of(links, layout).values(),
    ]

    for one, other in combinations(things, 2):
        assert not overlap(one, other)
    for left, top, right, bottom in things:
        assert left >= -SLACK
        assert top >= -SLACK
        assert right <= layout.width + SLACK
        assert bottom <= layout.height + SLACK


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(graphs())
def test_every_arrow_joins_its_boxes(graph):
    """Each arrow begins at the edge of its source and ends at the edge of its target."""
    shapes, links, view = graph
    layout = lay_out(shapes, links, view)

    assert len(links) == len(layout.paths)
    for link, path in zip(links, layout.paths, strict=True):
        for box, (x, y) in ((link.source, path.points[0]), (link.target, path.points[-1])):
            centre, shape = layout.centres[box], shapes[box]
            assert abs(x - centre[0]) <= shape.width / 2 + SLACK
            if path.is_loop:
                assert abs(x - centre[0] + shape.width / 2) <= SLACK
                assert abs(y - centre[1]) <= shape.height / 2
            else:
                assert abs(abs(y - centre[1]) - shape.height / 2) <= SLACK


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@example(  # a box at the foot of a column, beside the links that lead on
    (
        [Shape(4, 124), Shape(117, 59), Shape(4, 146)],
        [Link(0, 2, 4, 22)] * 3,
        View(200, 200),
    )
)
@given(graphs(loops=False))
def test_arrows_keep_off_boxes_and_labels(graph):
    """No arrow runs through a box that is not its own, nor through the label of another."""
    shapes, links, view = graph
    layout = lay_out(shapes, links, view)
    boxes = [box_of(shape, at) for shape, at in zip(shapes, layout.centres, strict=True)]
    labels = labels_of(links, layout)

    for link, path in zip(links, layout.paths, strict=True):
        others = [b for i, b in enumerate(boxes) if i not in (link.source, link.target)]
        others += [label for label in labels.values() if label != label_of(link, path)]
        for (x1, y1), (x2, y2) in pairwise(path.points):
            # A bend stays within the rectangle of its ends, as the curve drawn for it does.
            span = (min(x1, x2) - 1, min(y1, y2), max(x1, x2) + 1, max(y1, y2))
            assert not any(overlap(span, other) for other in others)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(graphs(loops=False, view=st.none()))
def test_arrows_back_are_marked(graph):
    """What is not marked as going back goes down; what is marked goes up."""
    shapes, links, view = graph
    layout = lay_out(shapes, links, view)

    for link, path in zip(links, layout.paths, strict=True):
        below = layout.centres[link.target][1] > layout.centres[link.source][1]
        assert below != path.goes_back


@settings(max_examples=100, deadline=None)
@given(graphs(loops=False))
def test_arrows_do_not_fall_together(graph):
    """Two arrows keep apart all the way between their boxes, also the two of a circle."""
    shapes, links, view = graph
    layout = lay_out(shapes, links, view)

    for (a, one), (b, other) in combinations(zip(links, layout.paths, strict=True), 2):
        if a.group is None or a.group != b.group:
            assert one.label != other.label
            assert set(one.points[2:-2]).isdisjoint(other.points[2:-2])


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_the_layout_is_deterministic(graph):
    """Equal input gives an equal layout."""
    assert lay_out(*graph) == lay_out(*graph)


def test_a_chain_is_straight():
    """Boxes that follow one another stand above one another, whatever their widths."""
    shapes = [Shape(10, 10), Shape(80, 50), Shape(200, 50), Shape(30, 30)]
    layout = lay_out(shapes, [Link(0, 1, 50, 20), Link(1, 2, 90, 20), Link(2, 3, 10, 20)])

    assert len({x for x, _ in layout.centres}) == 1
    assert all(len({x for x, _ in path.points}) == 1 for path in layout.paths)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(graphs(loops=False))
def test_lines_and_curves_alternate(graph):
    """A curve goes on as the line before it and the line after it do: upright or level."""
    shapes, links, view = graph

    for path in lay_out(shapes, links, view).paths:
        points = path.points
        assert len(points) % 2 == 0
        for place in range(0, len(points), 2):
            (x1, y1), (x2, y2) = points[place : place + 2]
            assert x1 == x2 or y1 == y2
        for place in range(1, len(points) - 2, 2):
            before, begin, end, after = points[place - 1 : place + 3]
            level_before = before[1] == begin[1] and before[0] != begin[0]
            level_after = end[1] == after[1] and end[0] != after[0]
            # A corner turns by a right angle, so that a level line meets no other level line.
            assert not (level_before and level_after)


def chain(count):
    """Boxes that follow one another, with their links."""
    return [Shape(108, 36)] * count, [Link(n, n + 1, 60, 22) for n in range(count - 1)]


def test_a_long_chain_is_folded_into_columns():
    """Forty boxes fit a screen: columns of about the same height, read from left to right."""
    layout = lay_out(*chain(40), View(1400, 860))
    columns = {}
    for x, y in layout.centres:
        columns.setdefault(x, []).append(y)

    assert len(columns) > 1
    assert list(columns) == sorted(columns)
    assert all(ys == sorted(ys) for ys in columns.values())
    assert max(map(len, columns.values())) - min(map(len, columns.values())) <= 1
    assert layout.width <= 1400
    assert layout.height <= 1000
    assert not any(path.goes_back for path in layout.paths)


def test_what_ends_at_a_fold_stays_in_its_column():
    """A box that leads nowhere is below its source, not alone at the head of the next column."""
    shapes, links = chain(40)
    ends = range(40, 80)
    shapes = [*shapes, *[Shape(28, 28)] * 40]
    links += [Link(n - 40, n, 60, 22) for n in ends]
    layout = lay_out(shapes, links, View(1400, 860))

    assert len({x for x, _ in layout.centres[:40]}) > 1
    for end in ends:
        (x1, y1), (x2, y2) = layout.centres[end - 40], layout.centres[end]
        assert y1 < y2 < y1 + 200
        assert abs(x1 - x2) < 200


def test_a_short_chain_is_not_folded():
    """What fits its view has one column, as without a view."""
    assert lay_out(*chain(6), View(1400, 860)) == lay_out(*chain(6))


def test_a_tangle_is_not_folded():
    """Where many links would go through the gutter, a high picture is the better one."""
    shapes, links = chain(16)
    links += [Link(a, b, 60, 22) for a in range(8) for b in range(9, 16) if a + 1 != b]

    assert len({round(y) for _, y in lay_out(shapes, links, View(1400, 860)).centres}) == 16


def test_a_wide_row_is_broken():
    """Forty boxes below one stand in several rows, no wider than the view."""
    shapes = [Shape(108, 36)] * 41
    links = [Link(0, n, 60, 22) for n in range(1, 41)]
    layout = lay_out(shapes, links, View(1400, 4000))

    rows = {}
    for x, y in layout.centres[1:]:
        rows.setdefault(y, []).append(x)
    assert len(rows) >= 4
    assert all(len(xs) * 108 <= 1400 for xs in rows.values())
    assert layout.width < 0.6 * lay_out(shapes, links).width


def test_links_of_a_group_share_their_label():
    """One label near the source; each link goes on from it to its own target."""
    links = [Link(0, target, 60, 22, group=7) for target in (1, 2, 3)]
    layout = lay_out([Shape(108, 36)] * 4, links)

    assert len({path.label for path in layout.paths}) == 1
    assert len({path.points[0] for path in layout.paths}) == 1
    assert len({path.points[-1] for path in layout.paths}) == 3


def test_the_arrows_of_a_circle_have_their_own_ends():
    """Two arrows between the same boxes leave and arrive side by side."""
    layout = lay_out([Shape(100, 50)] * 2, [Link(0, 1, 40, 22), Link(1, 0, 40, 22)])
    there, back = layout.paths

    assert back.goes_back
    assert abs(there.points[0][0] - back.points[-1][0]) >= 20
    assert abs(there.points[-1][0] - back.points[0][0]) >= 20


def test_a_loop_at_a_high_box_stays_small():
    """However high a box is, its loop leaves and arrives beside the label."""
    layout = lay_out([Shape(100, 900)], [Link(0, 0, 40, 22)])
    (path,) = layout.paths

    assert all(abs(y - path.label[1]) < 20 for _, y in path.points)


def test_reading_begins_at_the_first_box():
    """The walk that decides what goes back begins at the first box, not where names come first."""
    layout = lay_out([Shape(10, 10)] * 3, [Link(2, 1), Link(1, 2), Link(0, 2)])

    assert [path.goes_back for path in layout.paths] == [False, True, False]


def test_crossings_are_undone():
    """An order that crosses links for no reason is exchanged for one that does not."""
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4)]  # three, in reading order
    layers = arrange(5, pairs)

    assert _crossings(layers.cells, layers.rows) == 0


@pytest.mark.parametrize("count", [1, 4])
def test_boxes_without_links(count):
    """Boxes without arrows stand side by side."""
    layout = lay_out([Shape(50, 20)] * count, [])

    assert count == len({x for x, _ in layout.centres})
    assert list(layout.paths) == []
