"""The layout: properties that hold for any boxes and any arrows between them."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluicegate.drawing._layers import _crossings, arrange
from sluicegate.drawing._layout import Link, Shape, lay_out


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


@st.composite
def graphs(draw, loops=True):
    count = draw(st.integers(1, 9))
    shapes = draw(st.lists(shapes_of_any, min_size=count, max_size=count))
    ends = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=14))
    links = [
        Link(a, b, draw(sizes), draw(st.sampled_from([22.0, 39.0])))
        for a, b in pairs
        if loops or a != b
    ]
    return shapes, links


def box_of(shape, centre):
    """Left, top, right and bottom of a box together with what hangs at its side."""
    x, y = centre
    half = max(shape.height, shape.tall) / 2
    return (x - shape.width / 2, y - half, x + shape.width / 2 + shape.aside, y + half)


def label_of(link, path):
    x, y = path.label
    return (x - link.width / 2, y - link.height / 2, x + link.width / 2, y + link.height / 2)


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
    shapes, links = graph
    layout = lay_out(shapes, links)
    things = [
        *(box_of(shape, at) for shape, at in zip(shapes, layout.centres, strict=True)),
        *(label_of(link, path) for link, path in zip(links, layout.paths, strict=True)),
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
    shapes, links = graph
    layout = lay_out(shapes, links)

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
@given(graphs(loops=False))
def test_arrows_keep_off_boxes_and_labels(graph):
    """No arrow runs through a box that is not its own, nor through the label of another."""
    shapes, links = graph
    layout = lay_out(shapes, links)
    boxes = [box_of(shape, at) for shape, at in zip(shapes, layout.centres, strict=True)]
    labels = [label_of(link, path) for link, path in zip(links, layout.paths, strict=True)]

    for number, (link, path) in enumerate(zip(links, layout.paths, strict=True)):
        others = [b for i, b in enumerate(boxes) if i not in (link.source, link.target)]
        others += [label for i, label in enumerate(labels) if i != number]
        for (x1, y1), (x2, y2) in pairwise(path.points):
            # A bend stays within the rectangle of its ends, as the curve drawn for it does.
            span = (min(x1, x2) - 1, min(y1, y2), max(x1, x2) + 1, max(y1, y2))
            assert not any(overlap(span, other) for other in others)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(graphs(loops=False))
def test_arrows_back_are_marked(graph):
    """What is not marked as going back goes down; what is marked goes up."""
    shapes, links = graph
    layout = lay_out(shapes, links)

    for link, path in zip(links, layout.paths, strict=True):
        below = layout.centres[link.target][1] > layout.centres[link.source][1]
        assert below != path.goes_back


@settings(max_examples=100, deadline=None)
@given(graphs(loops=False))
def test_arrows_do_not_fall_together(graph):
    """Two arrows keep apart all the way between their boxes, also the two of a circle."""
    layout = lay_out(*graph)

    for one, other in combinations(layout.paths, 2):
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
