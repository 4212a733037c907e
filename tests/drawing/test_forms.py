"""The forms of a graph: page, SVG, Mermaid, DOT, text and JSON, of a class, an object and a run."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

import sluicegate
from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowGraph,
    draw_all_possible_flows_mermaid,
    step,
)
from tests.drawing.test_drawing import NASTY, Faulty, Strange
from tests.drawing.test_marks import Handled
from tests.helpers import calls_of
from tests.test_counts import chain


SVG = "{http://www.w3.org/2000/svg}"


class Part(Event):
    n: int


class Done(Event):
    n: int


class Progress(Event):
    done: int
    total: int


class Approve(InputRequiredEvent):
    text: str


class Approved(HumanResponseEvent):
    ok: bool


class Inner(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


class Everything(Workflow):
    """Has one of each."""

    graph = "a name that users may give"

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        for n in range(3):
            ctx.send_event(Part(n=n))
        return None

    @step(num_workers=2, timeout=5)
    async def work(self, ctx: Context, ev: Part) -> Done:
        ctx.write_event_to_stream(Progress(done=1, total=3))
        await ctx.run_child(Inner())
        return Done(n=1)

    @step
    async def gather(self, ctx: Context, ev: Done) -> StopEvent | None:
        if ctx.collect_events(ev, [Done] * 3) is None:
            return None
        await ctx.wait_for_event(Approved, waiter_event=Approve(text="?"))
        return StopEvent()


def test_a_class_and_an_object_have_the_same_graph():
    """What is drawn is the class; an object may hold children of its own."""
    for form in ("to_html", "to_svg", "to_mermaid", "to_dot", "to_text", "to_json"):
        forms = {getattr(WorkflowGraph(it), form)() for it in (Everything, Everything())}

        assert len(forms) == 1


def test_nothing_of_users_is_taken():
    """A step or an attribute of any name can stand beside the graph, which is no method."""

    class Named(Workflow):
        @step
        async def graph(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    assert WorkflowGraph(Named).faults == ()


@pytest.mark.parametrize("thing", [5, Part, "Everything", None])
def test_only_workflows_have_a_graph(thing):
    """What is no workflow is refused by name."""
    with pytest.raises(TypeError, match="expected a Workflow class or an object of one"):
        WorkflowGraph(thing)


def test_the_text():
    """Each step with its options, what it makes, who takes that, what it publishes and runs."""
    assert WorkflowGraph(Everything).to_text() == (
        """\
Everything: Has one of each.
3 steps, 6 events and 1 published

(start)
  StartEvent -> split

split
  Part       => work

work  (workers 2, timeout 5 s)
  Done       -> gather
  publishes Progress
  runs Inner
    Inner
    1 step, 2 events

    (start)
      StartEvent -> work

    work
      StopEvent  -> (end)

gather  (collects 3 Done)
  StopEvent  -> (end)
  Approve    ~> a person

a person
  Approved   ~> gather

(=> several events, ~> question or answer of a person)
"""
    )


def test_the_text_lists_faults():
    """The text of a faulty workflow says what is wrong with it."""
    text = WorkflowGraph(Faulty).to_text()

    assert "\nfault: no step takes Draft" in text
    assert "  Draft      ?> ?\n" in text


def test_the_flowchart():
    """Mermaid: a node for each step, thick arrows for several events, a subgraph for a child."""
    chart = WorkflowGraph(Everything).to_mermaid()
    lines = [line.strip() for line in chart.splitlines()]

    assert lines[:5] == [
        "flowchart TD",
        'n0(("start"))',
        'n1["split"]',
        'n2["work<br>\N{MULTIPLICATION SIGN}2, 5 s"]',
        'n3["gather<br>collects 3 Done"]:::join',
    ]
    for line in (
        'n0 -->|"StartEvent"| n1',
        'n1 ==>|"Part"| n2',
        'n2_note>"Progress"]:::note',
        'subgraph n2_0_child["Inner"]',
        'n2 -.->|"runs"| n2_0_child',
        'n3 -.->|"Approve"| n5',
        'n5 -.->|"Approved"| n3',
        "classDef join stroke-width:3px",
    ):
        assert line in lines
    assert not [line for line in lines if "classDef failed" in line]


def test_the_dot_graph():
    """DOT: the same, with a cluster for a child."""
    lines = [line.strip() for line in WorkflowGraph(Everything).to_dot().splitlines()]

    assert lines[0] == 'digraph "Everything" {'
    assert 'n1 -> n2 [label="Part", arrowtail=crow, dir=both]' in lines
    assert "subgraph cluster_n2_0_ {" in lines
    assert 'n2 -> n2_0_0 [style=dashed, label="runs", lhead="cluster_n2_0_"]' in lines
    assert sum(line.endswith("{") for line in lines) == lines.count("}")


def test_the_json():
    """Nodes and edges with their kinds, the events with their fields, and the child inside."""
    data = json.loads(WorkflowGraph(Everything).to_json())
    nodes = {node["id"]: node for node in data["nodes"]}
    edges = [
        (edge["source"], edge["target"], edge["kind"], edge["events"][0]["name"], edge["fans_out"])
        for edge in data["edges"]
    ]

    assert data["version"] == 1
    assert data["workflow"] == "Everything"
    assert [nodes[i]["kind"] for i in sorted(nodes)] == [
        "start",
        "step",
        "step",
        "step",
        "stop",
        "person",
    ]
    assert (1, 2, "event", "Part", True) in edges
    assert (3, 5, "human", "Approve", False) in edges
    assert nodes[3]["join"] == "collect"
    assert nodes[2]["publishes"] == [{"name": "Progress"}]
    assert nodes[2]["children"][0]["graph"]["workflow"] == "Inner"
    assert data["published"] == [{"name": "Progress", "fields": ["done: int", "total: int"]}]
    assert data["faults"] == []
    assert "execution" not in data


def test_the_svg_file_stands_alone():
    """It has its style inside, without variables that other viewers lack, and a background."""
    svg = WorkflowGraph(Everything).to_svg()
    root = ET.fromstring(svg)
    style = root.find(f"{SVG}style").text

    assert root.find(f"{SVG}rect").get("class") == "ground"
    assert "var(" not in style
    assert "@media (prefers-color-scheme: dark)" in style
    # Every rule is that of the picture alone, so that it can stand inside of a page.
    selectors = re.findall(r"^([^\s@{}][^{}]*) \{", style, re.MULTILINE)
    assert selectors
    assert all(part.strip().startswith(".flow ") for it in selectors for part in it.split(","))


def test_a_note_tells_the_fields_of_what_is_published():
    """A picture that is printed has no tooltips: the first fields stand below the name."""

    class Long(Event):
        a: int
        b: int
        c: int
        d: int
        e: int

    class Tells(Workflow):
        @step
        async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Long(a=1, b=2, c=3, d=4, e=5))
            return StopEvent()

    root = ET.fromstring(WorkflowGraph(Tells).to_svg())
    (note,) = (g for g in root.iter(f"{SVG}g") if g.get("class") == "note")
    lines = [text.text for text in note.iter(f"{SVG}text")]

    assert lines == ["Long", "a: int", "b: int", "c: int", "and 2 more"]


@pytest.mark.parametrize(
    ("suffix", "beginning"),
    [
        (".html", "<!DOCTYPE html>"),
        (".HTM", "<!DOCTYPE html>"),
        (".svg", "<svg "),
        (".mmd", "flowchart TD"),
        (".mermaid", "flowchart TD"),
        (".dot", "digraph "),
        (".gv", "digraph "),
        (".txt", "Everything: "),
        (".json", "{"),
    ],
)
def test_the_suffix_names_the_form(tmp_path, suffix, beginning):
    """``save`` writes the form of the suffix, and returns the path as given."""
    path = tmp_path / f"graph{suffix}"

    assert path == WorkflowGraph(Everything).save(path)
    assert path.read_text().startswith(beginning)


@pytest.mark.parametrize("name", ["graph.png", "graph", "graph.pdf"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    """The error lists the suffixes that there are, and nothing is written."""
    with pytest.raises(ValueError, match=r"expected one of \.html, \.htm, \.svg, \.mmd"):
        WorkflowGraph(Everything).save(tmp_path / name)

    assert not list(tmp_path.iterdir())


def test_the_name_of_llamaindex(tmp_path, monkeypatch):
    """``draw_all_possible_flows_mermaid`` writes the flowchart and returns it."""
    monkeypatch.chdir(tmp_path)
    chart = draw_all_possible_flows_mermaid(Everything)

    assert chart == WorkflowGraph(Everything).to_mermaid()
    assert (tmp_path / "workflow_all_flows.mermaid").read_text() == chart
    assert sluicegate.WorkflowGraph is WorkflowGraph


def test_hostile_names_stay_in_their_quotes():
    """Names cannot end a quoted label, open HTML, or send control characters to a terminal."""
    graph = WorkflowGraph(type(NASTY, (Strange,), {"__doc__": NASTY}))
    chart, dot, text = graph.to_mermaid(), graph.to_dot(), graph.to_text()

    for line in chart.splitlines():
        assert line.count('"') in (0, 2)
        assert "<script" not in line
    for line in dot.splitlines():
        assert re.sub(r"\\.", "", line).count('"') % 2 == 0
    assert "\x1b" not in chart + dot + text
    for form in (graph.to_html(), graph.to_svg(), chart, dot, text, graph.to_json()):
        form.encode()  # the type of a field is half of a surrogate pair
    assert json.loads(graph.to_json())["workflow"] == NASTY


def test_handlers_in_every_form():
    """The way of a failure to its handler looks different from that of an event."""
    graph = WorkflowGraph(Handled)

    assert '-.->|"fails"|' in graph.to_mermaid()
    assert 'label="fails", style=dashed' in graph.to_dot()
    assert "!> rescue" in graph.to_text()
    assert {"fails"} <= {edge["kind"] for edge in json.loads(graph.to_json())["edges"]}


def test_the_summary_counts_what_steps_take_and_make():
    """Published events are counted apart; the page and the command line tell the same numbers."""
    graph = WorkflowGraph(Everything)

    assert graph.summary() == "3 steps, 6 events and 1 published"
    assert graph.summary() in graph.to_html()
    assert repr(graph) == f"<WorkflowGraph of Everything: {graph.summary()}>"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["to_html", "to_json", "to_text", "to_mermaid", "to_dot"])
def test_every_form_costs_the_same_for_each_step(form):
    """A picture of four times as many steps takes four times as much."""
    costs = []
    for size in (50, 200):
        graph = WorkflowGraph(chain(size))
        costs.append(calls_of(getattr(graph, form)) / size)

    assert costs[1] <= 1.1 * costs[0]


def test_the_table_of_events_tells_both_ends():
    """Each event stands with its fields, who makes it, and who takes it; failures too."""
    rows = re.findall(r"<tr><td >(.*?)</td></tr>", WorkflowGraph(Everything).to_html())
    cells = [re.sub(r"</?span[^>]*>", " ", row).split("</td><td >") for row in rows]
    table = {name.strip(): [" ".join(it.split()) for it in rest] for name, *rest in cells}

    assert table["Part"] == ["n: int", "split", "work"]
    assert table["Progress"] == ["done: int total: int", "work", "the stream"]
    assert table["Approve"] == ["text: str", "gather", "a person"]
    starts = [rest for name, *rest in cells if name.strip() == "StartEvent"]
    assert [" ".join(rest[2].split()) for rest in starts] == ["split", "Inner.work"]
    handled = WorkflowGraph(Handled).to_html()
    row = re.search(r"<tr><td ><span>StepFailedEvent</span>.*?</tr>", handled)[0]
    assert "<span>work</span><span>load</span>" in row
