"""The page: the picture, its legend, the faults and a table of the events, in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._picture import picture_of
from sluicegate.drawing._svg import MEANINGS, SIGNS, xml_text


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate.drawing._flow import Flow, Node


def page_of(flow: Flow) -> str:
    """Return the whole page of a flow."""
    title = f"{flow.name}: all possible flows"
    picture = picture_of(flow)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{xml_text(title)}</title>",
        f"<style>\n{STYLE}\n</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{xml_text(flow.name)}</h1>",
        f"<p>{xml_text(_subtitle(flow))}</p>",
        "<figure>",
        f'<div class="scroll">\n{picture.svg}\n</div>',
        '<ul class="legend">',
        *(
            f"<li>{icon}<span>{words}</span></li>"
            for icon, words in _legend(flow, goes_back=picture.goes_back)
        ),
        "</ul>",
        "</figure>",
        *_faults(flow),
        *_events(flow),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _subtitle(flow: Flow) -> str:
    steps = sum(node.kind == "step" for node in flow.nodes)
    counts = f"{_counted(steps, 'step')}, {_counted(len(flow.events), 'event')}"
    children = len(list(flow.walk())) - 1
    if children:
        counts += f", {_counted(children, 'child workflow')}"
    if flow.state:
        counts += f", state {flow.state}"
    return f"{flow.summary} ({counts})" if flow.summary else f"All possible flows: {counts}"


def _faults(flow: Flow) -> Iterator[str]:
    faults = list(flow.faults)
    for child in list(flow.walk())[1:]:
        faults += [f"{child.name}: {fault}" for fault in child.faults]
    if faults:
        yield '<section class="faults">'
        yield f"<h2>{_counted(len(faults), 'fault')}: this workflow cannot run yet</h2>"
        yield "<ol>"
        for fault in faults:
            yield f"<li>{xml_text(fault)}</li>"
        yield "</ol>"
        yield "</section>"


def _events(flow: Flow) -> Iterator[str]:
    events = dict.fromkeys(label.title for each in flow.walk() for label in each.events)
    if events:
        listed = "\n".join(map(xml_text, events))
        yield f"<details><summary>Fields of the events</summary><pre>{listed}</pre></details>"


# -- the legend -----------------------------------------------------------------------------------


def _legend(flow: Flow, *, goes_back: bool) -> Iterator[tuple[str, str]]:
    """Yield each sign, as SVG, with its meaning; ``goes_back``: whether an arrow leads back."""
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
        yield frame, "child workflow, not known from the source"


def _icon(inner: str) -> str:
    return f'<svg class="flow" width="34" height="18" viewBox="0 0 34 18" aria-hidden="true">{inner}</svg>'


def _line(look: str, more: str = "") -> str:
    return _icon(f'<path class="arrow {look}" d="M2 9H31"/>{more}')


# -- the style ------------------------------------------------------------------------------------


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2430; --muted: #5d6675; --faint: #d8dde5; --wash: #f5f7fa;
  --box: #eef3fb; --edge: #4a6fa5; --event: #2f3b4d; --back: #7a4fb0; --human: #a35b00;
  --human-wash: #fff4e0; --stream: #2b7a62; --stream-wash: #edf8f3; --fault: #b3261e;
  --fault-wash: #fdeeec; --fails: #a3286a; --fails-wash: #fcf0f6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181f; --ink: #e7ebf1; --muted: #a0aab8; --faint: #343c49; --wash: #1b212a;
    --box: #202b3c; --edge: #86a8dc; --event: #cdd6e2; --back: #c0a0ec; --human: #f0b057;
    --human-wash: #33281a; --stream: #74cfae; --stream-wash: #182b26; --fault: #ff8a80;
    --fault-wash: #351f1f; --fails: #ef8fbb; --fails-wash: #2f1c28;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 28px 32px 40px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1400px; margin: 0 auto; }
h1 { margin: 0; font-size: 22px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 6px; font-size: 15px; }
p { margin: 4px 0 0; color: var(--muted); }
code, pre, .flow text {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono",
    "DejaVu Sans Mono", monospace;
}
figure { margin: 20px 0 0; }
.scroll { overflow-x: auto; border: 1px solid var(--faint); border-radius: 10px; }
.flow { display: block; margin: 0 auto; }
.flow text { text-anchor: middle; fill: var(--ink); }
.flow .name { font-size: 14px; font-weight: 600; }
.flow text.event { font-size: 12px; fill: var(--event); cursor: default; }
.flow text.event.back { fill: var(--back); }
.flow text.event.human { fill: var(--human); }
.flow text.event.stream { fill: var(--stream); }
.flow text.event.fails { fill: var(--fails); }
.flow text.event.gap { fill: var(--fault); }
.ground { fill: var(--paper); }
.arrow { fill: none; stroke: var(--event); stroke-width: 1.4; }
.arrow.back { stroke: var(--back); }
.arrow.human { stroke: var(--human); stroke-dasharray: 6 4; }
.arrow.stream { stroke: var(--stream); stroke-dasharray: 1.5 4; stroke-linecap: round; }
.arrow.fails { stroke: var(--fails); stroke-dasharray: 4 3; }
.arrow.gap { stroke: var(--fault); stroke-dasharray: 2 3; }
.tip-event { fill: var(--event); }
.tip-back { fill: var(--back); }
.tip-human { fill: var(--human); }
.tip-fails { fill: var(--fails); }
.tip-gap { fill: var(--fault); }
.start { fill: var(--ink); }
.stop circle { fill: none; stroke: var(--ink); stroke-width: 2; }
.step rect { fill: var(--box); stroke: var(--edge); stroke-width: 1.4; }
.step .bar { fill: var(--edge); stroke: none; }
.flow .mark text { font-size: 11.5px; fill: var(--muted); text-anchor: start; }
.sign { fill: none; stroke: var(--muted); stroke-width: 1.2; stroke-linecap: round;
  stroke-linejoin: round; }
.step.handler > rect:first-of-type { stroke: var(--fails); fill: var(--fails-wash); }
.failures circle { fill: var(--fails-wash); stroke: var(--fails); stroke-width: 1.4; }
.failures path { fill: none; stroke: var(--fails); stroke-width: 1.8; stroke-linecap: round; }
.frame rect { fill: var(--paper); stroke: var(--edge); stroke-opacity: 0.5; stroke-width: 1.2; }
.frame.unknown rect { stroke: var(--muted); stroke-opacity: 1; stroke-dasharray: 5 4; }
.flow .frame .name { font-size: 13px; }
.flow .frame.drawn .name { text-anchor: start; }
.flow .frame.unknown .name { fill: var(--muted); font-weight: 400; }
.flow .frame .hint { font-size: 11.5px; fill: var(--muted); }
.flow .frame.drawn .hint { text-anchor: end; }
.frame.again { cursor: pointer; }
a:hover .frame.again rect { stroke-opacity: 1; }
.frame:target rect { stroke-opacity: 1; stroke-width: 2; }
.person rect { fill: var(--human-wash); stroke: var(--human); stroke-width: 1.4; stroke-dasharray: 6 4; }
.person .figure { fill: var(--human); }
.flow .person .name { fill: var(--human); }
.note .sheet { fill: var(--stream-wash); stroke: var(--stream); stroke-width: 1.1; }
.note .fold, .note .tip { fill: none; stroke: var(--stream); stroke-width: 1.1; }
.gap circle { fill: var(--fault-wash); stroke: var(--fault); stroke-width: 1.4; }
.flow .gap text { fill: var(--fault); font-size: 14px; font-weight: 700; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 12px 2px 0; padding: 0; }
.legend li { list-style: none; display: flex; align-items: center; gap: 8px; color: var(--muted);
  font-size: 13px; }
.faults { margin-top: 22px; padding: 14px 18px; border: 1px solid var(--fault); border-radius: 10px;
  background: var(--fault-wash); }
.faults ol { margin: 0; padding-left: 22px; }
.faults li { overflow-wrap: anywhere; }
details { margin-top: 22px; }
summary { cursor: pointer; color: var(--muted); font-size: 13px; }
pre { margin: 10px 0 0; padding: 14px 18px; overflow-x: auto; background: var(--wash);
  border-radius: 10px; font-size: 12.5px; line-height: 1.55; }
@media print { body { padding: 0; } .scroll { border: 0; overflow: visible; } }
""".strip()
