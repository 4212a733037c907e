"""The page: the picture, its legend, the faults, and tables of events and counts, in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate._events import StepFailedEvent
from sluicegate.drawing._execution import shown_seconds
from sluicegate.drawing._flow import counted
from sluicegate.drawing._labels import marks_of_counts
from sluicegate.drawing._picture import picture_of
from sluicegate.drawing._script import POLICY, SCRIPT
from sluicegate.drawing._style import PAGE_STYLE
from sluicegate.drawing._svg import MEANINGS, SIGNS, xml_text


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sluicegate.drawing._execution import StepCounts
    from sluicegate.drawing._flow import Edge, Flow, Node


#: A table of events that is longer than this is closed at first.
LONG = 40

TOOLS = """
<div class="tools" role="toolbar" aria-label="Zoom and search" hidden>
<input type="search" placeholder="Find a step" aria-label="Find a step">
<button type="button" data-act="out" aria-label="Zoom out" title="Zoom out (-)">\N{MINUS SIGN}</button>
<output aria-label="Scale">100 %</output>
<button type="button" data-act="in" aria-label="Zoom in" title="Zoom in (+)">+</button>
<button type="button" data-act="real" title="Natural size (0)">1:1</button>
<button type="button" data-act="fit" title="Show all (f)">Fit</button>
</div>
""".strip()


def page_of(flow: Flow) -> str:
    """Return the whole page of a flow."""
    picture = picture_of(flow)
    what = "all possible flows" if flow.execution is None else "an execution"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{xml_text(f'{flow.name}: {what}')}</title>",
        f"<style>\n{PAGE_STYLE}\n</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{xml_text(flow.name)}</h1>",
        *(f"<p>{xml_text(line)}</p>" for line in _subtitle(flow)),
        "<figure>",
        TOOLS,
        f'<div class="view" style="--width: {picture.width:g}px">\n{picture.svg}\n</div>',
        '<ul class="legend">',
        *(
            f"<li>{icon}<span>{words}</span></li>"
            for icon, words in _legend(flow, goes_back=picture.goes_back)
        ),
        "</ul>",
        "</figure>",
        *_faults(flow),
        *_counts(flow),
        *_events(flow),
        "</main>",
        f"<script>{SCRIPT}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _subtitle(flow: Flow) -> Iterator[str]:
    counts = flow.counts()
    children = len(list(flow.walk())) - 1
    if children:
        counts += f", {counted(children, 'child workflow')}"
    if flow.state:
        counts += f", state {flow.state}"
    what = "All possible flows" if flow.execution is None else "Execution"
    yield f"{flow.summary} ({counts})" if flow.summary else f"{what}: {counts}"
    if flow.execution is not None:
        summary = flow.execution.summary()
        yield summary[:1].upper() + summary[1:]


def _faults(flow: Flow) -> Iterator[str]:
    faults = list(flow.faults)
    for child in list(flow.walk())[1:]:
        faults += [f"{child.name}: {fault}" for fault in child.faults]
    if faults:
        yield '<section class="faults">'
        yield f"<h2>{counted(len(faults), 'fault')}: this workflow cannot run yet</h2>"
        yield "<ol>"
        for fault in faults:
            yield f"<li>{xml_text(fault)}</li>"
        yield "</ol>"
        yield "</section>"


# -- tables ---------------------------------------------------------------------------------------


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table; a head that ends in a blank is that of numbers."""
    numeric = ['class="number"' if head.endswith(" ") else "" for head in heads]
    yield f"<details{'' if len(rows) > LONG else ' open'}><summary>{title}</summary>"
    yield "<table>"
    cells = "".join(f"<th {c}>{h.strip()}</th>" for c, h in zip(numeric, heads, strict=True))
    yield f"<thead><tr>{cells}</tr></thead>"
    yield "<tbody>"
    for row in rows:
        cells = "".join(f"<td {c}>{text}</td>" for c, text in zip(numeric, row, strict=True))
        yield f"<tr>{cells}</tr>"
    yield "</tbody>"
    yield "</table>"
    yield "</details>"


def _spans(lines: Iterable[str], classes: str = "") -> str:
    opening = f'<span class="{classes}">' if classes else "<span>"
    return "".join(f"{opening}{xml_text(line)}</span>" for line in lines)


def _events(flow: Flow) -> Iterator[str]:
    rows: dict[tuple[str, ...], None] = {}
    for each in flow.walk():
        ends = _ends_by_event(each, "" if each is flow else f"{each.name}.")
        for label in (*each.events, *each.published):
            made, taken = ends.get(label.text, ({}, {}))
            name, fields = _spans([label.text]), _spans(label.fields, "quiet")
            rows.setdefault((name, fields, _spans(made), _spans(taken)))
    if rows:
        yield from _table("Events", ("Event", "Fields", "From", "To"), list(rows))


def _ends_by_event(flow: Flow, prefix: str) -> dict[str, tuple[dict[str, None], dict[str, None]]]:
    """Return for the name of each event where it comes from, and where it goes to.

    The ``prefix`` of the names is that of a child workflow.
    """
    ends: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for edge in flow.edges:
        for label in edge.labels:
            name = label.text if label.kind is None else label.kind.__name__
            name = StepFailedEvent.__name__ if edge.kind == "fails" else name
            made, taken = ends.setdefault(name, ({}, {}))
            made.setdefault(prefix + _named(flow.nodes[edge.source]))
            taken.setdefault(prefix + _named(flow.nodes[edge.target]))
    for node in flow.steps:
        for label in node.notes:
            made, taken = ends.setdefault(label.text, ({}, {}))
            made.setdefault(prefix + node.name)
            taken.setdefault("the stream")
    return ends


def _named(node: Node) -> str:
    plain = {"start": "the start", "stop": "the end", "gap": "?", "failures": "failures"}
    return node.name or plain[node.kind]


def _counts(flow: Flow) -> Iterator[str]:
    rows = [
        (
            _spans([f"{each.name}.{node.name}" if each is not flow else node.name]),
            *_row(node.counts),
        )
        for each in flow.walk()
        for node in each.steps
        if node.counts is not None
    ]
    if rows:
        heads = ("Step", "started ", "completed ", "failed ", "cancelled ", "retried ", "time ")
        yield from _table("Counts of the steps", heads, rows)


def _row(counts: StepCounts) -> Iterator[str]:
    for number in (
        counts.started,
        counts.completed,
        counts.failed,
        counts.cancelled,
        counts.retried,
    ):
        yield f"{number:,}" if number else ""
    yield shown_seconds(counts.seconds) if counts.started else ""


# -- the legend -----------------------------------------------------------------------------------


def _legend(flow: Flow, *, goes_back: bool) -> Iterator[tuple[str, str]]:
    """Yield each sign, as SVG, with its meaning; ``goes_back``: whether an arrow leads back."""
    nodes = [node for each in flow.walk() for node in each.nodes]
    edges = [edge for each in flow.walk() for edge in each.edges]
    yield from _legend_of_nodes(nodes)
    if any(edge.fans_out for edge in edges):
        fork = '<path class="arrow event" d="M2 4L14 9L2 14"/>'
        yield _line("event", fork), "fan-out: several events"
    if any(node.join for node in nodes):
        bar = '<rect class="bar" x="3" y="6.5" width="28" height="5" rx="2.5"/>'
        yield _icon(f'<g class="step">{bar}</g>'), "join: waits for several events"
    if goes_back:
        yield _line("back"), "leads back to an earlier step"
    if any(node.kind == "person" for node in nodes):
        yield _line("human"), "question or answer of a person"
    if any(node.notes for node in nodes):
        yield _line("stream"), "written to the stream"
    if any(edge.kind == "fails" for edge in edges):
        yield _line("fails"), "failure of a step, to its handler"
    yield from _legend_of_children(nodes)
    if any(edge.kind == "gap" for edge in edges):
        yield _line("gap"), "source or target is missing"
    yield from _legend_of_execution(nodes, edges)


def _legend_of_execution(nodes: list[Node], edges: list[Edge]) -> Iterator[tuple[str, str]]:
    looks = {node.look for node in nodes}
    for look, meaning in {
        "failed": "step that failed",
        "cancelled": "step that was cancelled",
        "never": "step that never ran",
    }.items():
        if look in looks:
            rect = '<rect x="2" y="2" width="30" height="14" rx="4"/>'
            hatch = rect.replace("<rect", '<rect class="hatch"') if look == "cancelled" else ""
            yield _icon(f'<g class="step {look}">{rect}{hatch}</g>'), meaning
    if any(edge.is_unused for edge in edges):
        yield _line("never"), "no event passed"
    if any(edge.is_undeclared for edge in edges):
        yield _line("undeclared"), "observed, and not declared by a step"
    if any(label.count is not None for edge in edges for label in edge.labels):
        number = '<g class="mark"><text x="8" y="13">12</text></g>'
        yield _icon(number), "at an arrow: events that passed"


def _legend_of_nodes(nodes: list[Node]) -> Iterator[tuple[str, str]]:
    marks = {mark.kind for node in nodes for mark in node.marks}
    marks |= {m.kind for n in nodes if n.counts is not None for m in marks_of_counts(n.counts)}
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
        yield frame, "child workflow, not known from the source"


def _icon(inner: str) -> str:
    return f'<svg class="flow" width="34" height="18" viewBox="0 0 34 18" aria-hidden="true">{inner}</svg>'


def _line(look: str, more: str = "") -> str:
    return _icon(f'<path class="arrow {look}" d="M2 9H31"/>{more}')
