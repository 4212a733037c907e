"""The graph as plain text: what each step makes, and who takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._arrows import arrows_by_event, in_reading_order
from sluicegate.drawing._svg import SIGNS, without_controls


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate.drawing._arrows import Arrow
    from sluicegate.drawing._flow import Flow, Node
    from sluicegate.drawing._labels import Mark


#: How an arrow looks, by its kind; a fan-out has its own.
_ARROWS = {"event": "->", "human": "~>", "fails": "!>", "gap": "?>"}
_FAN_OUT = "=>"
_MEANINGS = {
    "->": "event",
    "=>": "several events",
    "~>": "question or answer of a person",
    "!>": "failure, to its handler",
    "?>": "source or target is missing",
}
_PLAIN = {"start": "(start)", "stop": "(end)", "gap": "?", "failures": "(failures)"}


def text_of(flow: Flow) -> str:
    """Return a flow as text, one line for each event that a step makes; its signs are ASCII."""
    lines = [*_lines(flow)]
    used = [sign for sign in _MEANINGS if any(f" {sign} " in line for line in lines)]
    legend = ", ".join(f"{sign} {_MEANINGS[sign]}" for sign in used if sign != "->")
    lines += ["", f"({legend})"] if legend else []
    return without_controls("\n".join(lines)) + "\n"


def _lines(flow: Flow) -> Iterator[str]:
    yield f"{flow.name}: {flow.summary}" if flow.summary else flow.name
    yield flow.counts() + (f", state {flow.state}" if flow.state else "")
    if flow.execution is not None and flow.execution.summary():
        yield flow.execution.summary()
    arrows = arrows_by_event(flow)
    width = max((len(_labels(arrow)) for arrow in arrows), default=0)
    for number in in_reading_order(flow):
        node = flow.nodes[number]
        leaving = [arrow for arrow in arrows if arrow.source == number]
        if node.kind == "step" or leaving:
            yield ""
            yield _head(node)
        for arrow in leaving:
            names = ", ".join(_name(flow.nodes[target]) for target in arrow.targets)
            yield f"  {_labels(arrow):{width}} {_sign(arrow)} {names}"
        yield from _inside(node)
    if flow.faults:
        yield ""
        yield from (f"fault: {fault}" for fault in flow.faults)


def _head(node: Node) -> str:
    told = ["handles failures"] if node.handles_failures else []
    told += map(_mark, node.marks)
    told += [node.counts.summary()] if node.counts is not None else []
    return f"{_name(node)}  ({', '.join(told)})" if told else _name(node)


def _mark(mark: Mark) -> str:
    """Return a mark without its sign: the kind says what the picture shows as one."""
    if mark.kind == "workers":
        return f"workers {mark.text[1:]}"
    return f"{mark.kind} {mark.text}".strip() if mark.kind in SIGNS else mark.text


def _inside(node: Node) -> Iterator[str]:
    if node.notes:
        yield f"  publishes {', '.join(label.shown for label in node.notes)}"
    for child in node.children:
        yield f"  runs {child.name}" + (f" ({child.hint})" if child.hint else "")
        if child.flow is not None:
            yield from (f"    {line}".rstrip() for line in _lines(child.flow))


def _name(node: Node) -> str:
    return node.name or _PLAIN[node.kind]


def _labels(arrow: Arrow) -> str:
    return ", ".join(label.shown for label in arrow.labels)


def _sign(arrow: Arrow) -> str:
    return _FAN_OUT if arrow.fans_out and arrow.kind == "event" else _ARROWS[arrow.kind]
