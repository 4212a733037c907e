"""The graph in the DOT language of Graphviz."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._arrows import in_reading_order
from sluicegate.drawing._svg import without_controls


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate.drawing._flow import Child, Edge, Flow, Node


_PLAIN = {
    "start": 'shape=circle, style=filled, fillcolor=black, label="", width=0.2',
    "stop": 'shape=doublecircle, label="", width=0.2',
    "gap": 'shape=circle, color="#b3261e", label="?"',
    "failures": 'shape=circle, color="#a3286a", label="x"',
}
_LOOKS = {
    "failed": 'color="#b3261e", penwidth=2.5',
    "cancelled": 'style="rounded,dashed", penwidth=2',
    "never": 'style="rounded,dashed", color="#8a93a1", fontcolor="#8a93a1"',
}
_EDGES = {
    "event": "",
    "human": 'style=dashed, color="#a35b00", fontcolor="#a35b00"',
    "fails": 'style=dashed, color="#a3286a", fontcolor="#a3286a"',
    "gap": 'style=dotted, color="#b3261e", fontcolor="#b3261e"',
}


def dot_of(flow: Flow) -> str:
    """Return a flow as a directed graph of DOT."""
    lines = [
        f"digraph {_quoted(flow.name)} {{",
        '  graph [compound=true, fontname="Helvetica"]',
        '  node [shape=box, style=rounded, fontname="Helvetica"]',
        '  edge [fontname="Helvetica", fontsize=11]',
        *(f"  {line}" for line in _lines(flow, "n")),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _lines(flow: Flow, prefix: str) -> Iterator[str]:
    for number in in_reading_order(flow):
        yield _node(flow.nodes[number], f"{prefix}{number}")
    for edge in flow.edges:
        yield _edge(edge, prefix)
    for number, node in enumerate(flow.nodes):
        name = f"{prefix}{number}"
        if node.notes:
            text = _quoted("\n".join(label.shown for label in node.notes))
            yield f'{name}_note [shape=note, style="", color="#2b7a62", label={text}]'
            yield f'{name} -> {name}_note [style=dotted, color="#2b7a62"]'
        for place, child in enumerate(node.children):
            yield from _child(child, name, f"{name}_{place}_")


def _node(node: Node, name: str) -> str:
    if node.kind in _PLAIN:
        return f"{name} [{_PLAIN[node.kind]}, tooltip={_quoted(node.title)}]"
    lines = [node.name]
    if node.marks:
        lines.append(", ".join(mark.text or mark.kind for mark in node.marks))
    if node.counts is not None:
        lines.append(node.counts.summary())
    look = _LOOKS.get(node.look, "")
    if node.kind in ("person", "outside") and not look:
        look = 'style="rounded,dashed", color="#a35b00", fontcolor="#a35b00"'
    elif node.handles_failures and not look:
        look = 'color="#a3286a"'
    elif node.join and not look:
        look = "penwidth=2.5"
    parts = [f"label={_quoted(chr(10).join(lines))}", f"tooltip={_quoted(node.title)}"]
    return f"{name} [{', '.join([*parts, *([look] if look else [])])}]"


def _edge(edge: Edge, prefix: str) -> str:
    look = _EDGES[edge.kind]
    if edge.is_unused:
        look = 'style=dashed, color="#8a93a1", fontcolor="#8a93a1"'
    elif edge.is_undeclared:
        look = 'style=dashed, color="#b3261e", fontcolor="#b3261e"'
    parts = [f"label={_quoted(chr(10).join(label.shown for label in edge.labels))}"]
    parts += [look] if look else []
    parts += ["arrowtail=crow, dir=both"] if edge.fans_out else []
    return f"{prefix}{edge.source} -> {prefix}{edge.target} [{', '.join(parts)}]"


def _child(child: Child, step: str, prefix: str) -> Iterator[str]:
    if child.flow is None:
        text = "\n".join(part for part in (child.name, child.hint) if part)
        yield f'{prefix}0 [style="rounded,dashed", label={_quoted(text)}]'
        yield f'{step} -> {prefix}0 [style=dashed, label="runs"]'
        return
    yield f"subgraph cluster_{prefix} {{"
    yield f"  label={_quoted(child.name)}"
    yield from (f"  {line}" for line in _lines(child.flow, prefix))
    yield "}"
    yield f'{step} -> {prefix}0 [style=dashed, label="runs", lhead="cluster_{prefix}"]'


def _quoted(text: str) -> str:
    kept = without_controls(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{kept}"'
