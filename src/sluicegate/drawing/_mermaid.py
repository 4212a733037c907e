"""The graph in the language of Mermaid, which GitHub and many editors draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._arrows import in_reading_order
from sluicegate.drawing._svg import without_controls


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate.drawing._flow import Child, Edge, Flow, Node


_SHAPES = {
    "start": "(({}))",
    "stop": "((({})))",
    "person": "([{}])",
    "outside": "([{}])",
    "failures": "(({}))",
    "gap": "(({}))",
}
_WORDS = {"start": "start", "stop": "end", "failures": "failures", "gap": "?"}
_STYLES = (
    "classDef join stroke-width:3px",
    "classDef handler stroke:#a3286a",
    "classDef person stroke:#a35b00,stroke-dasharray:6 4",
    "classDef note stroke:#2b7a62,stroke-dasharray:2 3",
    "classDef gap stroke:#b3261e,stroke-dasharray:2 3",
    "classDef failed stroke:#b3261e,stroke-width:3px",
    "classDef cancelled stroke-dasharray:8 3",
    "classDef never stroke:#8a93a1,stroke-dasharray:4 4,color:#8a93a1",
)


def mermaid_of(flow: Flow) -> str:
    """Return a flow as a Mermaid flowchart."""
    body = [*_lines(flow, "n")]
    used = {line.rpartition(":::")[2] for line in body if ":::" in line}
    styles = [style for style in _STYLES if style.split()[1] in used]
    return "\n".join(["flowchart TD", *(f"  {line}" for line in (*body, *styles))]) + "\n"


def _lines(flow: Flow, prefix: str) -> Iterator[str]:
    for number in in_reading_order(flow):
        yield _node(flow.nodes[number], f"{prefix}{number}")
    for edge in flow.edges:
        yield _edge(edge, prefix)
    for number, node in enumerate(flow.nodes):
        if node.notes:
            text = "<br>".join(_escaped(label.shown) for label in node.notes)
            yield f'{prefix}{number}_note>"{text}"]:::note'
            yield f"{prefix}{number} -.-> {prefix}{number}_note"
        for place, child in enumerate(node.children):
            yield from _child(child, f"{prefix}{number}", f"{prefix}{number}_{place}_")


def _node(node: Node, name: str) -> str:
    if node.kind != "step":
        shape = _SHAPES[node.kind].format(f'"{_escaped(node.name or _WORDS[node.kind])}"')
        look = node.look or {"gap": "gap", "person": "person", "outside": "person"}.get(node.kind)
        return f"{name}{shape}" + (f":::{look}" if look else "")
    lines = [_escaped(node.name)]
    marks = [mark.text or mark.kind for mark in node.marks]
    if marks:
        lines.append(_escaped(", ".join(marks)))
    if node.counts is not None:
        lines.append(_escaped(node.counts.summary()))
    look = node.look or ("handler" if node.handles_failures else "join" if node.join else "")
    return f'{name}["{"<br>".join(lines)}"]' + (f":::{look}" if look else "")


def _edge(edge: Edge, prefix: str) -> str:
    text = "<br>".join(_escaped(label.shown) for label in edge.labels)
    is_dashed = edge.kind != "event" or edge.is_undeclared or edge.is_unused
    line = "-.->" if is_dashed else "==>" if edge.fans_out else "-->"
    return f'{prefix}{edge.source} {line}|"{text}"| {prefix}{edge.target}'


def _child(child: Child, step: str, prefix: str) -> Iterator[str]:
    if child.flow is None:
        text = "<br>".join(_escaped(part) for part in (child.name, child.hint) if part)
        yield f'{prefix}child["{text}"]'
    else:
        yield f'subgraph {prefix}child["{_escaped(child.name)}"]'
        yield "  direction TB"
        yield from (f"  {line}" for line in _lines(child.flow, prefix))
        yield "end"
    yield f'{step} -.->|"runs"| {prefix}child'


def _escaped(text: str) -> str:
    """Return text for a quoted label, in which Mermaid reads quotes, HTML and entity codes."""
    entities = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;"}
    kept = without_controls(text).replace("\n", " ")
    return "".join(entities.get(letter, letter) for letter in kept)
