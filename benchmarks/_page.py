"""The results as one HTML page that needs nothing else."""

import html
import math
from collections.abc import Callable, Sequence

from benchmarks import _tables
from benchmarks._goals import Judged, judge
from benchmarks._measure import QUANTILES
from benchmarks._model import Metric, Work
from benchmarks._plot import Axis, Line, Style, chart, legend
from benchmarks._results import Key, Results, median
from benchmarks._tables import Table
from benchmarks._works import BY_ID
from benchmarks.peers import PEERS


STYLES = {
    "sluicegate-trio": Style("sluicegate on Trio", "#0b57d0", width=2.8),
    "sluicegate-asyncio": Style("sluicegate on asyncio", "#00857a", width=2.8),
    "trio": Style("by hand: Trio", "#444", width=1.8),
    "anyio": Style("by hand: AnyIO on asyncio", "#444", "6 3"),
    "asyncio": Style("by hand: asyncio", "#444", "2 3"),
    "llama_index": Style("LlamaIndex Workflows", "#c5221f"),
    "langgraph": Style("LangGraph", "#e8710a"),
    "pydantic_graph": Style("pydantic-graph", "#b5179e"),
    "burr": Style("Burr", "#8d6e00"),
    "agent_framework": Style("Agent Framework", "#7b4fd0"),
    "autogen_core": Style("AutoGen core", "#5f8f00"),
}
GROWTH = (  # the work, its number, whether it is for one of the size, and what the whole is
    ("chain", "us", True, "ms in all"),
    ("fan_out_64", "us", True, "ms in all"),
    ("fan_out_4", "us", True, "ms in all"),
    ("stream", "us", True, "ms in all"),
    ("concurrent_runs", "us", True, "ms in all"),
    ("concurrent_runs", "kib", True, "KiB in all"),
    ("idle_between", "kib", True, "KiB in all"),
    ("idle_between", "us", True, "ms to wake all"),
    ("idle_inside", "kib", True, "KiB in all"),
    ("idle_inside", "us", True, "ms to wake all"),
    ("cancel", "ms", False, "ms"),
    ("snapshot", "ms", False, "ms to write"),
)
TAILS = (
    ("latency", "from the sending of an event to its receipt, µs"),
    ("fairness", "another task's wait for its turn, µs"),
    ("concurrent_runs", "from the start of all to a run's third step, µs"),
)
MEMORY = ("slow_reader", "concurrent_runs", "idle_between", "idle_inside")
HOW = """<p class="note">A ratio is to the program that does the same with no engine, written by
hand: on Trio; on asyncio with AnyIO. It is formed within one repeat, in which all run directly
after one another; the median is shown. The worst size counts. The peers' ratios are to the program
on bare Trio.</p>"""
STYLE_SHEET = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px;
  padding: 0 1.5rem; color: #1b1b1b; background: #fff }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem }
.note { color: #555; max-width: 70em }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px }
th, td { padding: .28rem .6rem; text-align: left; border-bottom: 1px solid #e2e2e2;
  vertical-align: top }
th { position: sticky; top: 0; background: #f4f5f7 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.met { color: #0a6b2d; font-weight: 600 }
td.missed, td.failed { color: #b3261e; font-weight: 600 }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(430px, 1fr)); gap: 1.2rem }
figure { margin: 0 } figcaption { font-weight: 600; margin-bottom: .2rem }
figure svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: #555 }
.grid { stroke: #e6e6e6; fill: none } .curve { fill: none; stroke-linejoin: round }
.legend span { margin-right: 1.2rem; white-space: nowrap } .legend svg { vertical-align: middle }
"""


def page(results: Results) -> str:
    """The whole page."""
    pythons = results.pythons
    body = [
        "<h1>sluicegate: benchmarks</h1>",
        _about(results),
        "<h2>The goals</h2>",
        HOW,
        *[_goals(results, python) for python in pythons],
    ]
    if pythons:
        body += _charts(results, pythons[0])
    for python in pythons:
        body += [
            f"<h2>All numbers, CPython {html.escape(python)}</h2>",
            _table(_tables.numbers(results, python)),
        ]
        of_peers = _tables.peers(results, python)
        if of_peers.lines:
            body += [
                "<h3>The peers</h3>",
                '<p class="note">x: the ratio to bare Trio in the same repeat.</p>',
                _table(of_peers),
            ]
    if counts := results.environment.get("counts"):
        body += [
            "<h2>What is the same on every machine</h2>",
            f'<div class="scroll"><pre>{html.escape(counts)}</pre></div>',
        ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>sluicegate: benchmarks</title>'
        f"<style>{STYLE_SHEET}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _about(results: Results) -> str:
    environment = results.environment
    said = [f"{environment['platform']}, CPU {environment['cpu']}"]
    for python, packages in environment["pythons"].items():
        versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        said.append(f"CPython {python}: {versions}")
    there = [
        f"{peer.title} {environment['peers'][name] or ''}"
        for name, peer in PEERS.items()
        if name in environment["peers"]
    ]
    absent = [peer.title for name, peer in PEERS.items() if name not in environment["peers"]]
    if there:
        said.append(f"peers, on CPython {environment['python_of_peers']}: " + ", ".join(there))
    if absent:
        said.append("not installed, so left out: " + ", ".join(absent))
    if busy := _tables.busy(results):
        said.append(busy)
    if results.quick:
        said.append("a quick run, at smaller sizes")
    return '<p class="note">' + "<br>".join(map(html.escape, said)) + "</p>"


def _goals(results: Results, python: str) -> str:
    rows: list[Judged] = judge(results, python)
    return f"<h3>CPython {html.escape(python)}: {_tables.counted(rows)}</h3>" + _table(
        _tables.goals(rows)
    )


def _table(table: Table) -> str:
    right = table.numeric()

    def cell(tag: str, i: int, text: str) -> str:
        kind = text.lower() if text.lower() in {"met", "missed", "failed"} else ""
        names = " ".join(filter(None, ("number" if i in right else "", kind)))
        attribute = f' class="{names}"' if names else ""
        return f"<{tag}{attribute}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(table.headings))
    lines = "".join(
        "<tr>" + "".join(cell("td", i, text) for i, text in enumerate(line)) + "</tr>\n"
        for line in table.lines
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{lines}</table></div>'


def _charts(results: Results, python: str) -> list[str]:
    there = [name for name in STYLES if name in results.systems(python)]

    def lines(work: Work, size: int, points: Callable[[Key], Sequence[tuple[float, float]]]):
        return [Line(STYLES[name], points(Key(python, work.id, size, name))) for name in there]

    sections = [
        (
            "Growth",
            "Both axes are logarithmic: what is linear rises by one decade in each.",
            [_growth(results, python, there, *each) for each in GROWTH],
        ),
        (
            "Latency and tails",
            "How long the given share had to wait at most.",
            [_tail(results, python, lines, *each) for each in TAILS],
        ),
        (
            "Memory over time",
            "Resident memory over the start, from where the work begins.",
            [_memory(results, python, lines, BY_ID[name]) for name in MEMORY],
        ),
    ]
    key = legend([STYLES[name] for name in there])
    return [
        f'<h2>{title}</h2><p class="note">{note} CPython {html.escape(python)}.</p>{key}'
        f'<div class="charts">{"".join(charts)}</div>'
        for title, note, charts in sections
        if any(charts)
    ]


def _growth(
    results: Results,
    python: str,
    there: Sequence[str],
    work_id: str,
    number: str,
    each: bool,
    unit: str,
) -> str:
    work = BY_ID[work_id]
    sizes = results.sizes(work, python)
    if len(sizes) < 2:
        return ""

    def whole(name: str, size: int) -> float:
        value = results.value(Key(python, work.id, size, name), number)
        return value * size / (1e3 if number == "us" else 1) if each else value

    lines = [Line(STYLES[name], [(size, whole(name, size)) for size in sizes]) for name in there]
    return chart(f"{work.title}: {unit}", lines, Axis(work.size), Axis(unit))


def _tail(results: Results, python: str, lines, work_id: str, unit: str) -> str:
    work = BY_ID[work_id]
    sizes = results.judged(work, python)
    if not sizes:
        return ""

    def points(key: Key) -> list[tuple[float, float]]:
        columns = [
            numbers["quantiles_us"]
            for numbers in results.cell(key).repeats.values()
            if "quantiles_us" in numbers
        ]
        if not columns:
            return []
        middle = [median(places) for places in zip(*columns, strict=True)]
        return [(float(i), value) for i, value in enumerate(middle)]

    names = [f"{q * 100:g}%" for q in QUANTILES]
    names[0], names[-1] = "least", "all"
    return chart(
        f"{_tables.title(work, sizes[-1], Metric('', ''))}",
        lines(work, sizes[-1], points),
        Axis("share", names=names),
        Axis(unit),
    )


def _memory(results: Results, python: str, lines, work: Work) -> str:
    sizes = results.sizes(work, python)
    if not sizes:
        return ""

    def points(key: Key) -> list[tuple[float, float]]:
        curve = results.cell(key).series("memory")
        return [(max(t, 1e-3), max(kib, 1.0)) for t, kib in curve if not math.isnan(kib)]

    return chart(
        _tables.title(work, sizes[-1], Metric("", "")),
        lines(work, sizes[-1], points),
        Axis("seconds"),
        Axis("KiB over the start"),
    )
