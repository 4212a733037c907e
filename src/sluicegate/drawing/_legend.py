"""The legend: what the signs of a picture mean, for those that are in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._signs import MEANINGS, SIGNS


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate.drawing._model import Flow, Node


def legend_of(flow: Flow, *, goes_back: bool) -> Iterator[tuple[str, str]]:
    """Yield each sign, as SVG, with its meaning; ``goes_back`` says whether an arrow does."""
    nodes = [node for each in flow.walk() for node in each.nodes]
    edges = [edge for each in flow.walk() for edge in each.edges]
    yield from _legend_of_nodes(nodes)
    if any(edge.fans_out for edge in edges):
        fork = '<path class="arrow event" d="M2 4L14 9L2 14"/>'
        yield _line("event", fork), "fan-out: a list of events"
    if any(node.join for node in nodes):
        bar = '<rect class="bar" x="3" y="6.5" width="28" height="5" rx="2.5"/>'
        yield _icon(f'<g class="step">{bar}</g>'), "join: waits for several events"
    if goes_back:
        yield _line("back"), "goes back to an earlier step"
    if any(node.kind == "person" for node in nodes):
        yield _line("human"), "question or answer of a person"
    if any(node.notes for node in nodes):
        yield _line("stream"), "written to the stream"
    if any(edge.kind == "fails" for edge in edges):
        yield _line("fails"), "failure of a step, to its handler"
    yield from _legend_of_children(nodes)
    if any(edge.kind == "gap" for edge in edges):
        yield _line("gap"), "comes from nowhere or leads nowhere"


def _legend_of_nodes(nodes: list[Node]) -> Iterator[tuple[str, str]]:
    marks = {mark.kind for node in nodes for mark in node.marks}
    yield _icon('<circle class="start" cx="17" cy="9" r="7"/>'), "the run begins"
    if any(node.kind == "stop" for node in nodes):
        rings = '<circle cx="17" cy="9" r="8"/><circle cx="17" cy="9" r="4.5"/>'
        yield _icon(f'<g class="stop">{rings}</g>'), "the run ends"
    if "workers" in marks:
        workers = '<g class="mark"><text x="10" y="13">×N</text></g>'  # noqa: RUF001
        yield _icon(workers), "at most N invocations at a time"
    for kind, meaning in MEANINGS.items():
        if kind in marks:
            yield _icon(f'<g transform="translate(11 3) scale(1.2)">{SIGNS[kind]}</g>'), meaning


def _legend_of_children(nodes: list[Node]) -> Iterator[tuple[str, str]]:
    kinds = {child.kind for node in nodes for child in node.children}
    rect = '<rect x="2" y="2" width="30" height="14" rx="4"/>'
    if kinds & {"drawn", "again"}:
        yield _icon(f'<g class="frame">{rect}</g>'), "child workflow that the step runs"
    if "unknown" in kinds:
        frame = _icon(f'<g class="frame unknown">{rect}</g>')
        yield frame, "child workflow that the source does not tell"


def _icon(inner: str) -> str:
    return f'<svg class="flow" width="34" height="18" viewBox="0 0 34 18" aria-hidden="true">{inner}</svg>'


def _line(look: str, more: str = "") -> str:
    return _icon(f'<path class="arrow {look}" d="M2 9H31"/>{more}')
