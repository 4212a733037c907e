"""The arrows of a flow by event, and the order in which a reader meets its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sluicegate.drawing._flow import Labelled


if TYPE_CHECKING:
    from sluicegate.drawing._flow import Flow
    from sluicegate.drawing._labels import Label


@attrs.frozen
class Arrow(Labelled):
    """The edges of one source and the same events, which share a label and fork below it.

    Attributes:
        targets: The numbers of the nodes that it reaches.
    """

    source: int
    targets: tuple[int, ...]
    kind: str
    labels: tuple[Label, ...]
    is_undeclared: bool = False


def arrows_by_event(flow: Flow) -> list[Arrow]:
    """Return the arrows of a flow, so that each event of a step is named once.

    The exceptions are arrows that look different, and a loop at a step, which forks with no other.
    """
    targets: dict[tuple[int, str, bool, bool, int | None, Label], list[int]] = {}
    for edge in flow.edges:
        loop = edge.target if edge.source == edge.target else None
        for label in edge.labels:
            is_grey = edge.is_unused or label.count == 0
            key = (edge.source, edge.kind, edge.is_undeclared, is_grey, loop, label)
            targets.setdefault(key, []).append(edge.target)
    labels: dict[tuple[int, str, bool, bool, tuple[int, ...]], list[Label]] = {}
    for (source, kind, is_undeclared, is_grey, _, label), reached in targets.items():
        together = (source, kind, is_undeclared, is_grey, tuple(dict.fromkeys(reached)))
        labels.setdefault(together, []).append(label)
    return [
        Arrow(source, reached, kind, tuple(dict.fromkeys(shared)), is_undeclared=is_undeclared)
        for (source, kind, is_undeclared, _, reached), shared in labels.items()
    ]


def in_reading_order(flow: Flow) -> list[int]:
    """Return the numbers of the nodes as a reader meets them, who begins at the start."""
    leaving: list[list[int]] = [[] for _ in flow.nodes]
    for edge in flow.edges:
        leaving[edge.source].append(edge.target)
    seen: dict[int, None] = {}
    for root in range(len(flow.nodes)):
        if root in seen:
            continue
        seen[root] = None
        todo = [root]
        for number in todo:
            for target in leaving[number]:
                if target not in seen:
                    seen[target] = None
                    todo.append(target)
    return list(seen)
