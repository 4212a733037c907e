"""The page: the picture with its legend, its faults and a table of its events, in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.drawing._svg import Picture, _text, picture_of


if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.drawing._model import Flow


_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2430; --muted: #5d6675; --faint: #d8dde5; --wash: #f5f7fa;
  --box: #eef3fb; --edge: #4a6fa5; --event: #2f3b4d; --back: #7a4fb0; --human: #a35b00;
  --human-wash: #fff4e0; --stream: #2b7a62; --stream-wash: #edf8f3; --fault: #b3261e;
  --fault-wash: #fdeeec;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181f; --ink: #e7ebf1; --muted: #a0aab8; --faint: #343c49; --wash: #1b212a;
    --box: #202b3c; --edge: #86a8dc; --event: #cdd6e2; --back: #c0a0ec; --human: #f0b057;
    --human-wash: #33281a; --stream: #74cfae; --stream-wash: #182b26; --fault: #ff8a80;
    --fault-wash: #351f1f;
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
.flow text.event.gap { fill: var(--fault); }
.ground { fill: var(--paper); }
.arrow { fill: none; stroke: var(--event); stroke-width: 1.4; }
.arrow.back { stroke: var(--back); }
.arrow.human { stroke: var(--human); stroke-dasharray: 6 4; }
.arrow.stream { stroke: var(--stream); stroke-dasharray: 1.5 4; stroke-linecap: round; }
.arrow.gap { stroke: var(--fault); stroke-dasharray: 2 3; }
.tip-event { fill: var(--event); }
.tip-back { fill: var(--back); }
.tip-human { fill: var(--human); }
.tip-gap { fill: var(--fault); }
.start { fill: var(--ink); }
.stop circle { fill: none; stroke: var(--ink); stroke-width: 2; }
.step rect { fill: var(--box); stroke: var(--edge); stroke-width: 1.4; }
.step .bar { fill: var(--edge); stroke: none; }
.flow .mark text { font-size: 11.5px; fill: var(--muted); text-anchor: start; }
.clock { fill: none; stroke: var(--muted); stroke-width: 1.2; stroke-linecap: round; }
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
        f"<title>{_text(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{_text(flow.name)}</h1>",
        f"<p>{_text(_subtitle(flow))}</p>",
        "<figure>",
        f'<div class="scroll">\n{picture.svg}\n</div>',
        '<ul class="legend">',
        *(f"<li>{icon}<span>{words}</span></li>" for icon, words in _legend(flow, picture)),
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
    return f"{flow.summary} ({counts})" if flow.summary else f"All possible flows: {counts}"


def _icon(inner: str) -> str:
    return f'<svg class="flow" width="34" height="18" viewBox="0 0 34 18" aria-hidden="true">{inner}</svg>'


def _line(look: str, more: str = "") -> str:
    return _icon(f'<path class="arrow {look}" d="M2 9H31"/>{more}')


def _legend(flow: Flow, picture: Picture) -> Iterator[tuple[str, str]]:
    """Yield what the signs of this picture mean, for those that are in it."""
    kinds = {node.kind for node in flow.nodes}
    yield _icon('<circle class="start" cx="17" cy="9" r="7"/>'), "the run begins"
    if "stop" in kinds:
        rings = '<circle cx="17" cy="9" r="8"/><circle cx="17" cy="9" r="4.5"/>'
        yield _icon(f'<g class="stop">{rings}</g>'), "the run ends"
    workers = '<g class="mark"><text x="10" y="13">×N</text></g>'  # noqa: RUF001
    yield _icon(workers), "at most N invocations at a time"
    if any(node.timeout is not None for node in flow.nodes):
        hand = '<path class="clock" d="M17 5v4l3 2"/>'
        yield _icon(f'<circle class="clock" cx="17" cy="9" r="6.5"/>{hand}'), "timeout of the step"
    if any(edge.fans_out for edge in flow.edges):
        fork = '<path class="arrow event" d="M2 4L14 9L2 14"/>'
        yield _line("event", fork), "fan-out: a list of events"
    if any(node.join for node in flow.nodes):
        bar = '<rect class="bar" x="3" y="6.5" width="28" height="5" rx="2.5"/>'
        yield _icon(f'<g class="step">{bar}</g>'), "join: waits for several events"
    if picture.goes_back:
        yield _line("back"), "goes back to an earlier step"
    if "person" in kinds:
        yield _line("human"), "question or answer of a person"
    if any(node.notes for node in flow.nodes):
        yield _line("stream"), "written to the stream"
    if "gap" in kinds:
        yield _line("gap"), "comes from nowhere or leads nowhere"


def _faults(flow: Flow) -> Iterator[str]:
    if flow.faults:
        yield '<section class="faults">'
        yield f"<h2>{_counted(len(flow.faults), 'fault')}: this workflow cannot run yet</h2>"
        yield "<ol>"
        for fault in flow.faults:
            yield f"<li>{_text(fault)}</li>"
        yield "</ol>"
        yield "</section>"


def _events(flow: Flow) -> Iterator[str]:
    if flow.events:
        listed = "\n".join(_text(label.title) for label in flow.events)
        yield f"<details><summary>Fields of the events</summary><pre>{listed}</pre></details>"
