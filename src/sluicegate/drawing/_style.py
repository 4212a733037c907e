"""The style sheet of the picture and the page: light, dark and print."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Mapping


LIGHT = {
    "paper": "#ffffff",
    "ink": "#1d2430",
    "muted": "#5d6675",
    "faint": "#d8dde5",
    "wash": "#f5f7fa",
    "box": "#eef3fb",
    "edge": "#4a6fa5",
    "event": "#2f3b4d",
    "back": "#7a4fb0",
    "human": "#a35b00",
    "human-wash": "#fff4e0",
    "stream": "#2b7a62",
    "stream-wash": "#edf8f3",
    "fault": "#b3261e",
    "fault-wash": "#fdeeec",
    "fails": "#a3286a",
    "fails-wash": "#fcf0f6",
    "never": "#646d7b",
    "stripe": "#c3cad6",
}
DARK = {
    "paper": "#14181f",
    "ink": "#e7ebf1",
    "muted": "#a0aab8",
    "faint": "#343c49",
    "wash": "#1b212a",
    "box": "#202b3c",
    "edge": "#86a8dc",
    "event": "#cdd6e2",
    "back": "#c0a0ec",
    "human": "#f0b057",
    "human-wash": "#33281a",
    "stream": "#74cfae",
    "stream-wash": "#182b26",
    "fault": "#ff8a80",
    "fault-wash": "#351f1f",
    "fails": "#ef8fbb",
    "fails-wash": "#2f1c28",
    "never": "#8791a0",
    "stripe": "#465166",
}

#: Names are code and set in a monospaced font, so their width is known without the font.
FONT = (
    'ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", '
    "monospace"
)

#: The rules of the picture; each selector gets ``.flow`` in front of it.
PICTURE = """
text { font-family: FONT; text-anchor: middle; fill: var(--ink); }
.name { font-size: 14px; font-weight: 600; }
text.event { font-size: 12px; fill: var(--event); cursor: default; }
text.event.back { fill: var(--back); }
text.event.human { fill: var(--human); }
text.event.stream { fill: var(--stream); }
text.event.fails { fill: var(--fails); }
text.event.gap, text.event.undeclared { fill: var(--fault); }
text.event.never { fill: var(--never); }
text.field { font-size: 10.5px; fill: var(--muted); }
.ground { fill: var(--paper); }
.arrow { fill: none; stroke: var(--event); stroke-width: 1.4; }
.arrow.back { stroke: var(--back); }
.arrow.human { stroke: var(--human); stroke-dasharray: 6 4; }
.arrow.stream { stroke: var(--stream); stroke-dasharray: 1.5 4; stroke-linecap: round; }
.arrow.fails { stroke: var(--fails); stroke-dasharray: 4 3; }
.arrow.gap { stroke: var(--fault); stroke-dasharray: 2 3; }
.arrow.undeclared { stroke: var(--fault); stroke-dasharray: 9 3 2 3; }
.arrow.never { stroke: var(--never); stroke-dasharray: 3 5; }
.tip-event { fill: var(--event); }
.tip-back { fill: var(--back); }
.tip-human { fill: var(--human); }
.tip-fails { fill: var(--fails); }
.tip-gap, .tip-undeclared { fill: var(--fault); }
.tip-never { fill: var(--never); }
.start { fill: var(--ink); }
.stop circle { fill: none; stroke: var(--ink); stroke-width: 2; }
.step rect { fill: var(--box); stroke: var(--edge); stroke-width: 1.4; }
.step .bar { fill: var(--edge); stroke: none; }
.mark text { font-size: 11.5px; fill: var(--muted); text-anchor: start; }
.sign { fill: none; stroke: var(--muted); stroke-width: 1.2; stroke-linecap: round;
  stroke-linejoin: round; }
.sign.full { fill: var(--muted); }
.step.handler > rect:first-of-type { stroke: var(--fails); fill: var(--fails-wash); }
.step.failed > rect:first-of-type { stroke: var(--fault); fill: var(--fault-wash);
  stroke-width: 2.6; }
.step.cancelled > rect:first-of-type { stroke: var(--ink); }
.step.never > rect:first-of-type { stroke: var(--never); fill: var(--paper);
  stroke-dasharray: 5 4; }
.step.never .name, .step.never .mark text { fill: var(--never); }
.step.never .bar { fill: var(--never); }
.step rect.hatch { fill: url(#hatch); stroke: none; }
.stripe { stroke: var(--stripe); stroke-width: 3; }
.step.hatched text { paint-order: stroke; stroke: var(--box); stroke-width: 4px;
  stroke-linejoin: round; }
.step.hatched.failed text { stroke: var(--fault-wash); }
.mark.failed text { fill: var(--fault); font-weight: 700; }
.mark.failed .sign { stroke: var(--fault); }
.failures circle { fill: var(--fails-wash); stroke: var(--fails); stroke-width: 1.4; }
.failures path { fill: none; stroke: var(--fails); stroke-width: 1.8; stroke-linecap: round; }
.frame rect { fill: var(--paper); stroke: var(--edge); stroke-opacity: 0.5; stroke-width: 1.2; }
.frame.unknown rect { stroke: var(--muted); stroke-opacity: 1; stroke-dasharray: 5 4; }
.frame .name { font-size: 13px; }
.frame.drawn .name { text-anchor: start; }
.frame.unknown .name { fill: var(--muted); font-weight: 400; }
.frame .hint { font-size: 11.5px; fill: var(--muted); }
.frame.drawn .hint { text-anchor: end; }
.frame.again { cursor: pointer; }
a:hover .frame.again rect { stroke-opacity: 1; }
.frame:target rect { stroke-opacity: 1; stroke-width: 2; }
.person rect { fill: var(--human-wash); stroke: var(--human); stroke-width: 1.4; stroke-dasharray: 6 4; }
.person .figure { fill: var(--human); }
.person .name { fill: var(--human); }
.outside rect { fill: var(--wash); stroke: var(--muted); stroke-width: 1.4; stroke-dasharray: 6 4; }
.outside .name { fill: var(--muted); }
.person.never rect, .outside.never rect { fill: var(--paper); stroke: var(--never); }
.person.never .name, .outside.never .name, .person.never .figure { fill: var(--never); }
.stop.never circle, .failures.never circle, .failures.never path { stroke: var(--never); }
.failures.never circle { fill: var(--paper); }
.note .sheet { fill: var(--stream-wash); stroke: var(--stream); stroke-width: 1.1; }
.note .fold, .note .tip { fill: none; stroke: var(--stream); stroke-width: 1.1; }
.gap circle { fill: var(--fault-wash); stroke: var(--fault); stroke-width: 1.4; }
.gap text { fill: var(--fault); font-size: 14px; font-weight: 700; }
""".strip().replace("FONT", FONT)


def _prefixed(rules: str) -> str:
    """Return rules that hold inside of the picture only."""

    def prefix(match: re.Match[str]) -> str:
        selectors = ", ".join(f".flow {part.strip()}" for part in match[1].split(","))
        return f"{selectors} {{"

    return re.sub(r"^([^\s{}][^{}]*?) \{", prefix, rules, flags=re.MULTILINE)


def _with_colours(rules: str, colours: Mapping[str, str]) -> str:
    """Return rules with colours in place of variables, which not every SVG viewer knows."""
    return re.sub(r"var\(--([\w-]+)\)", lambda match: colours[match[1]], rules)


def _only_colours(rules: str) -> str:
    """Return the declarations that use a colour, which are all that a dark picture changes."""
    kept: list[str] = []
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", rules):
        coloured = [part.strip() for part in body.split(";") if "var(" in part]
        if coloured:
            kept.append(f"{selector.strip()} {{ {'; '.join(coloured)}; }}")
    return "\n".join(kept)


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


PICTURE_RULES = _prefixed(PICTURE)


def svg_style(picture: str) -> str:
    """Return the style of an SVG file: the rules that its elements need, without variables.

    It is dark where the reader's surroundings are.
    """
    used = {name for names in re.findall(r'class="([^"]*)"', picture) for name in names.split()}
    needed = "\n".join(
        rule
        for rule in re.findall(r"[^{}]+\{[^{}]*\}", PICTURE_RULES)
        if any(_is_used(selector, used) for selector in rule.partition("{")[0].split(","))
    ).replace("\n\n", "\n")
    light = _with_colours(needed, LIGHT).strip()
    dark = _with_colours(_only_colours(needed), DARK)
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def _is_used(selector: str, used: set[str]) -> bool:
    return set(re.findall(r"\.([\w-]+)", selector)) - {"flow"} <= used


def picture_sheet() -> str:
    """Return a style sheet for pictures that are elements of a page and have no style inside."""
    dark = f"@media (prefers-color-scheme: dark) {{ .flow {{ {_variables(DARK)} }} }}"
    return f".flow {{ {_variables(LIGHT)} }}\n{dark}\n{PICTURE_RULES}\n"


_PAGE = """
* { box-sizing: border-box; }
body { margin: 0; padding: 28px 32px 40px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1500px; margin: 0 auto; }
h1 { margin: 0; font-size: 22px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 6px; font-size: 15px; }
p { margin: 4px 0 0; color: var(--muted); }
code, td, .tools output { font-family: FONT; }
figure { margin: 14px 0 0; }
.view { overflow: auto; border: 1px solid var(--faint); border-radius: 10px; }
.view > .flow { display: block; margin: 0 auto; height: auto;
  width: min(var(--width), max(100%, 0.55 * var(--width))); }
.live .view { max-height: max(260px, 100vh - 210px); cursor: grab; }
.live .view > .flow { user-select: none; }
.live .view.dragged { cursor: grabbing; }
.view:focus-visible { outline: 2px solid var(--edge); outline-offset: 2px; }
.tools { display: flex; gap: 4px; align-items: center; justify-content: flex-end;
  margin-bottom: 6px; }
.tools[hidden] { display: none; }
.tools button, .tools input { height: 28px; min-width: 28px; padding: 0 8px; border: 0;
  border-radius: 5px; background: var(--wash); color: var(--ink); font: inherit; font-size: 13px; }
.tools button { cursor: pointer; }
.tools button:hover { background: var(--faint); }
.tools input { width: 10em; }
.tools input.none { color: var(--fault); text-decoration: underline wavy; }
.tools output { width: 5ch; text-align: center; font-size: 12px; color: var(--muted); }
.flow .far { opacity: 0.16; }
.flow [data-at] { transition: opacity 0.15s; }
.live .flow [data-at] { cursor: pointer; outline-offset: 3px; }
.flow .selected > rect:first-of-type, .flow .found > rect:first-of-type { stroke-width: 3.5; }
.flow .found > rect:first-of-type { stroke: var(--human); }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 12px 2px 0; padding: 0; }
.legend li { list-style: none; display: flex; align-items: center; gap: 8px; color: var(--muted);
  font-size: 13px; }
.faults { margin-top: 22px; padding: 14px 18px; border: 1px solid var(--fault); border-radius: 10px;
  background: var(--fault-wash); }
.faults ol { margin: 0; padding-left: 22px; }
.faults li { overflow-wrap: anywhere; }
details { margin-top: 22px; overflow-x: auto; }
summary { cursor: pointer; color: var(--muted); font-size: 13px; }
table { margin-top: 8px; border-collapse: collapse; font-size: 12.5px; line-height: 1.5; }
th { text-align: left; font-weight: 600; color: var(--muted); }
th, td { padding: 5px 22px 5px 0; border-bottom: 1px solid var(--faint); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td span { display: block; white-space: nowrap; }
td .quiet { color: var(--muted); white-space: normal; }
@media (max-width: 640px) {
  body { padding: 16px 14px 24px; }
  .tools input { flex: 1; }
}
@media (prefers-reduced-motion: reduce) { .flow [data-at] { transition: none; } }
@media print {
  body { padding: 0; }
  .tools, .tools[hidden] { display: none; }
  .view, .live .view { border: 0; overflow: visible; max-height: none; }
  .view > .flow { width: 100% !important; max-width: var(--width); }
}
""".lstrip().replace("FONT", FONT)

#: The style of the page, with that of the picture.
PAGE_STYLE = "\n".join(
    [
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}",
        _PAGE + PICTURE_RULES,
    ]
)
