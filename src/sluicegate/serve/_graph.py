"""The graph of a workflow as plain nodes and edges: steps, the events between them, and who is outside."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from sluicegate._events import HumanResponseEvent, InputRequiredEvent
from sluicegate.serve._data import kind_of, schema_of_event


if TYPE_CHECKING:
    from sluicegate._definition.graph import Graph
    from sluicegate._events import Event

#: The node of the people and programs that are asked, and that answer.
OUTSIDE = "external_step"


def graph_data(graph: Graph) -> dict[str, Any]:
    """Return the graph: a node for each step and each class of events, and an edge where one leads to the other.

    Events that a step waits for midway lead to it, too.
    """
    steps = {step.name for step in graph.steps}
    events: dict[type[Event], list[str]] = {}
    edges: dict[tuple[str, str], None] = {}

    def id_of(kind: type[Event]) -> str:
        name = kind.__name__
        return f"{name} (event)" if name in steps or name == OUTSIDE else name

    for step, waited in zip(graph.steps, graph.awaited, strict=True):
        for kind in (*step.accepts, *waited):
            events.setdefault(kind, [])
            edges[id_of(kind), step.name] = None
        for kind in (*step.returns, *step.fans_out):
            events.setdefault(kind, []).append(step.name)
            edges[step.name, id_of(kind)] = None
    for kind in events:
        if issubclass(kind, InputRequiredEvent):
            edges[id_of(kind), OUTSIDE] = None
        elif issubclass(kind, HumanResponseEvent):
            edges[OUTSIDE, id_of(kind)] = None
    has_outside = any(OUTSIDE in edge for edge in edges)
    nodes = [_step_node(step.name, step.source) for step in graph.steps]
    nodes += [_event_node(id_of(kind), kind, makers) for kind, makers in events.items()]
    if has_outside:
        nodes.append({"id": OUTSIDE, "label": OUTSIDE, "node_type": "external"})
    return {
        "name": graph.name,
        "description": inspect.getdoc(graph.cls),
        "nodes": nodes,
        "edges": [{"source": source, "target": target, "label": None} for source, target in edges],
    }


def _step_node(name: str, function: object) -> dict[str, Any]:
    text = inspect.getdoc(function)
    return {"id": name, "label": name, "node_type": "step", "description": text}


def _event_node(name: str, kind: type[Event], makers: list[str]) -> dict[str, Any]:
    names = kind_of(kind)
    return {
        "id": name,
        "label": kind.__name__,
        "node_type": "event",
        "event_type": kind.__name__,
        "event_types": [kind.__name__, *(names["types"] or [])],
        "event_schema": schema_of_event(kind),
        "produced_by": list(dict.fromkeys(makers)),
    }
