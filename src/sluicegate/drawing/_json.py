"""The graph as JSON: its nodes and edges, for other programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate.drawing._flow import Edge, Flow, Node
    from sluicegate.drawing._labels import Label


#: Grows when the meaning of a key changes; new keys may come at any time.
VERSION = 1


def json_of(flow: Flow) -> str:
    """Return a flow as JSON text."""
    text = json.dumps({"version": VERSION, **_flow(flow)}, indent=2, ensure_ascii=False) + "\n"
    # Half of a surrogate pair, which no file can hold, becomes the escape that JSON has for it.
    return text.encode(errors="backslashreplace").decode()


def _flow(flow: Flow) -> dict[str, Any]:
    found: dict[str, Any] = {
        "workflow": flow.name,
        "summary": flow.summary,
        "state": flow.state or None,
        "nodes": [_node(number, node) for number, node in enumerate(flow.nodes)],
        "edges": [_edge(edge) for edge in flow.edges],
        "events": _events(flow.events),
        "published": _events(flow.published),
        "faults": list(flow.faults),
    }
    if flow.execution is not None:
        found["execution"] = {
            "run_id": flow.execution.run_id or None,
            "outcome": flow.execution.outcome or None,
            "seconds": flow.execution.seconds,
        }
    return found


def _node(number: int, node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"id": number, "kind": node.kind}
    if node.kind == "step":
        found |= {
            "name": node.name,
            "summary": node.summary,
            "join": node.join or None,
            "handles_failures": node.handles_failures,
            "marks": [{"kind": m.kind, "text": m.text, "meaning": m.title} for m in node.marks],
            "publishes": [_passing(label) for label in node.notes],
            "children": [
                {
                    "kind": child.kind,
                    "name": child.name,
                    "graph": None if child.flow is None else _flow(child.flow),
                }
                for child in node.children
            ],
        }
    if node.counts is not None:
        found["counts"] = attrs.asdict(node.counts)
    return found


def _edge(edge: Edge) -> dict[str, Any]:
    found: dict[str, Any] = {
        "source": edge.source,
        "target": edge.target,
        "kind": edge.kind,
        "events": [_passing(label) for label in edge.labels],
        "fans_out": edge.fans_out,
    }
    if edge.is_undeclared:
        found["is_undeclared"] = True
    return found


def _passing(label: Label) -> dict[str, Any]:
    found: dict[str, Any] = {"name": label.text}
    if label.count is not None:
        found["count"] = label.count
    return found


def _events(labels: Iterable[Label]) -> list[dict[str, Any]]:
    return [{"name": label.text, "fields": list(label.fields)} for label in labels]
