"""The page: the picture with its legend, its faults and a table of its events, in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate.drawing._legend import legend_of
from sluicegate.drawing._style import STYLE
from sluicegate.drawing._svg import picture_of
from sluicegate.drawing._text import xml_text


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate.drawing._model import Flow


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
            for icon, words in legend_of(flow, goes_back=picture.goes_back)
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
