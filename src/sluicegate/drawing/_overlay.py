"""The overlay: the counts of an execution on the nodes and edges of a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sluicegate._events import StepFailedEvent
from sluicegate.drawing._execution import Execution, Passage, StepCounts
from sluicegate.drawing._flow import Child, Edge, Flow, Node
from sluicegate.drawing._labels import Label


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate._events import Event


#: The class name of a failure, on its way to a handler.
FAILURE = StepFailedEvent.__name__

#: The names of the ends of a passage, which it is matched by; None for an end that is no step.
_Ends = tuple[str | None, str | None]


def with_execution(flow: Flow, execution: Execution) -> Flow:
    """Return a flow with the counts of an execution.

    Steps and events that the flow does not have are added. Those of a child workflow go to its
    frame.
    """
    return _with_execution(flow, execution, _by_workflow(execution.children))


def flow_of_execution(execution: Execution) -> Flow:
    """Return a flow that consists of what an execution shows."""
    passed = dict.fromkeys(passage.event for passage in execution.passages)
    published = dict.fromkeys(passage.event for passage in execution.published)
    empty = Flow(
        name=execution.workflow,
        summary="",
        state="",
        nodes=(Node("start"),),
        edges=(),
        events=tuple(map(Label, passed)),
        published=tuple(Label(name) for name in published if name not in passed),
        faults=(),
    )
    return with_execution(empty, execution)


def _by_workflow(executions: Iterable[Execution]) -> dict[str, Execution]:
    found: dict[str, Execution] = {}
    for execution in executions:
        found |= _by_workflow(execution.children)
        found[execution.workflow] = execution
    return found


def _with_execution(flow: Flow, execution: Execution, others: dict[str, Execution]) -> Flow:
    nodes = [_with_counts(node, execution, others) for node in flow.nodes]
    passages = _Passages(execution.passages)
    counted = [
        [passages.take_exact(_ends_of(edge, flow), label) for label in edge.labels]
        for edge in flow.edges
    ]
    edges = [
        attrs.evolve(edge, labels=_counted(edge.labels, counts, passages, _ends_of(edge, flow)))
        for edge, counts in zip(flow.edges, counted, strict=True)
    ]
    added = _Additions(nodes, execution.published, is_known=bool(flow.steps))
    for name, counts in execution.steps.items():
        added.step(name, counts)
    for passage in passages.rest:
        added.edge(passage)
    edges += added.edges
    used = {end for edge in edges if not edge.is_unused for end in (edge.source, edge.target)}
    drawn = [
        node if node.kind == "step" else attrs.evolve(node, is_unused=number not in used)
        for number, node in enumerate(added.nodes)
    ]
    return attrs.evolve(flow, nodes=tuple(drawn), edges=tuple(edges), execution=execution)


def _with_counts(node: Node, execution: Execution, others: dict[str, Execution]) -> Node:
    if node.kind != "step":
        return node
    passages = _Passages(p for p in execution.published if p.source == node.name)
    exact = [passages.take_exact((node.name, None), label) for label in node.notes]
    notes = [*_counted(node.notes, exact, passages, (node.name, None))]
    notes += [Label(passage.event, count=passage.count) for passage in passages.rest]
    return attrs.evolve(
        node,
        counts=execution.steps.get(node.name, StepCounts()),
        notes=tuple(notes),
        children=tuple(_with_child(child, others) for child in node.children),
    )


def _counted(
    labels: tuple[Label, ...], exact: list[int], passages: _Passages, ends: _Ends
) -> tuple[Label, ...]:
    """Return labels with the counts of their classes, and of the classes derived from these.

    Lines of text below the first line have none.
    """
    return tuple(
        attrs.evolve(label, count=count + passages.take(ends, label))
        if label.kind is not None or not place
        else label
        for place, (label, count) in enumerate(zip(labels, exact, strict=True))
    )


def _with_child(child: Child, others: dict[str, Execution]) -> Child:
    if child.flow is None:
        return child
    execution = others.get(child.flow.name) or Execution(workflow=child.flow.name)
    return attrs.evolve(child, flow=_with_execution(child.flow, execution, others))


def _ends_of(edge: Edge, flow: Flow) -> _Ends:
    source, target = flow.nodes[edge.source], flow.nodes[edge.target]
    return (
        source.name if source.kind == "step" else None,
        target.name if target.kind == "step" else None,
    )


class _Passages:
    """The passages that have no edge yet; several of the same ends and event are summed."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._counts: dict[tuple[_Ends, str], int] = {}
        for passage in passages:
            key = (passage.source, passage.target), passage.event
            self._counts[key] = self._counts.get(key, 0) + passage.count

    def take_exact(self, ends: _Ends, label: Label) -> int:
        """Return how many events of exactly the label's class went this way."""
        if label.kind is None:
            return self._take_failures(ends)
        return self._counts.pop((ends, label.kind.__name__), 0)

    def take(self, ends: _Ends, label: Label) -> int:
        """Return how many events of a class derived from the label's went this way."""
        if label.kind is None:
            return 0
        derived = _names_below(label.kind)
        found = [key for key in self._counts if key[0] == ends and key[1] in derived]
        return sum(self._counts.pop(key) for key in found)

    def _take_failures(self, ends: _Ends) -> int:
        """Return how many failures went this way; without a source, those of all steps."""
        source, target = ends
        found = [
            key
            for key in self._counts
            if key[1] == FAILURE and key[0][1] == target and (source is None or key[0][0] == source)
        ]
        return sum(self._counts.pop(key) for key in found)

    @property
    def rest(self) -> list[Passage]:
        """The passages that are left, in their order."""
        return [
            Passage(source, event, target, count)
            for ((source, target), event), count in self._counts.items()
        ]


def _names_below(kind: type[Event]) -> set[str]:
    names: set[str] = set()
    todo = [kind]
    while todo:
        below = todo.pop().__subclasses__()
        names.update(each.__name__ for each in below)
        todo += below
    return names


class _Additions:
    """The steps and edges that only an execution shows."""

    def __init__(self, nodes: list[Node], published: Iterable[Passage], *, is_known: bool) -> None:
        self.nodes = nodes
        self._published = tuple(published)
        self._is_known = is_known
        self._steps = {node.name: i for i, node in enumerate(nodes) if node.kind == "step"}
        self._edges: dict[tuple[int, int, str], list[Label]] = {}

    @property
    def edges(self) -> list[Edge]:
        """The edges that were observed only."""
        return [
            Edge(source, target, kind, tuple(labels), is_undeclared=self._is_known)
            for (source, target, kind), labels in self._edges.items()
        ]

    def step(self, name: str, counts: StepCounts | None = None) -> int:
        """Return the node of a step, which is added if it is missing."""
        if name not in self._steps:
            notes = tuple(
                Label(p.event, count=p.count) for p in self._published if p.source == name
            )
            node = Node("step", name, name, notes=notes, counts=counts or StepCounts())
            self._steps[name] = self._add(node)
        return self._steps[name]

    def edge(self, passage: Passage) -> None:
        """Add the edge of a passage."""
        source = self._outside() if passage.source is None else self.step(passage.source)
        target = self._stop() if passage.target is None else self.step(passage.target)
        is_failure = passage.event == FAILURE and passage.source is not None
        text, kind = ("fails", "fails") if is_failure else (passage.event, "event")
        label = Label(text, count=passage.count)
        self._edges.setdefault((source, target, kind), []).append(label)

    def _outside(self) -> int:
        if not self._is_known:
            return 0
        title = "The program around the run: handler.send_event()"
        return self._find("outside", Node("outside", name="outside", title=title))

    def _stop(self) -> int:
        return self._find("stop", Node("stop", title="The run ends"))

    def _find(self, kind: str, node: Node) -> int:
        found = [i for i, each in enumerate(self.nodes) if each.kind == kind]
        return found[0] if found else self._add(node)

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1
