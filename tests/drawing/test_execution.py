"""Executions in a picture: counts at steps and arrows, and what was never reached or not declared."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowGraph,
    catch_error,
    step,
)
from sluicegate.drawing import Execution, Passage, StepCounts
from sluicegate.drawing._arrows import arrows_by_event
from sluicegate.drawing._execution import shown_seconds
from sluicegate.drawing._flow import flow_of
from sluicegate.drawing._overlay import flow_of_execution, with_execution
from sluicegate.drawing._style import DARK, LIGHT
from tests.drawing.test_marks import many_steps


SVG = "{http://www.w3.org/2000/svg}"


class Part(Event):
    n: int


class Special(Part):
    pass


class Done(Event):
    n: int


class Progress(Event):
    msg: str


class Ask(InputRequiredEvent):
    text: str


class Answer(HumanResponseEvent):
    text: str


class Inner(Workflow):
    @step
    async def think(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


class Flow(Workflow):
    @step
    async def split(self, ctx: Context, ev: StartEvent) -> list[Part]:
        ctx.write_event_to_stream(Progress(msg=""))
        return []

    @step
    async def work(self, ctx: Context, ev: Part) -> Done:
        await ctx.run_child(Inner())
        return Done(n=1)

    @step
    async def gather(self, evs: list[Done]) -> Ask:
        return Ask(text="?")

    @step
    async def hear(self, ev: Answer) -> StopEvent:
        return StopEvent()

    @catch_error(for_steps=["work"])
    async def rescue(self, ev: StepFailedEvent) -> Done:
        return Done(n=0)


EXECUTION = Execution(
    "Flow",
    steps={
        "split": StepCounts(started=1, completed=1, seconds=0.5),
        "work": StepCounts(started=5, completed=2, failed=1, cancelled=1, retried=3, seconds=61),
        "rescue": StepCounts(started=1, completed=1, seconds=0.002),
    },
    passages=(
        Passage(None, "StartEvent", "split"),
        Passage("split", "Part", "work", 3),
        Passage("split", "Special", "work", 2),
        Passage("work", "StepFailedEvent", "rescue"),
        Passage("work", "Done", "gather", 2),
        Passage("work", "Surprise", "hear", 4),
    ),
    published=(Passage("split", "Progress", None, 7), Passage("split", "Rumour", None, 1)),
    outcome="timed_out",
    seconds=61.5,
    run_id="abc",
    children=(
        Execution(
            "Inner",
            steps={"think": StepCounts(started=2, completed=2, seconds=1)},
            passages=(
                Passage(None, "StartEvent", "think", 2),
                Passage("think", "StopEvent", None, 2),
            ),
        ),
    ),
)


def drawn(flow):
    """The arrows of a flow: ends, text and count, and whether it is unused or undeclared."""
    names = [node.name or node.kind for node in flow.nodes]
    return {
        (names[e.source], names[e.target], label.text): (label.count, e.is_unused, e.is_undeclared)
        for e in flow.edges
        for label in e.labels
    }


def steps_of(svg):
    """The boxes of a picture by the names of their steps."""
    return {g.get("data-name"): g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("data-name")}


def test_every_event_that_passed_is_counted_at_its_arrow():
    """A class counts at its own arrow, a derived one at that of its base; failures at theirs."""
    assert drawn(with_execution(flow_of(Flow), EXECUTION)) == {
        ("start", "split", "StartEvent"): (1, False, False),
        ("split", "work", "list[Part]"): (5, False, False),
        ("work", "gather", "Done"): (2, False, False),
        ("rescue", "gather", "Done"): (0, True, False),
        ("gather", "a person", "Ask"): (0, True, False),
        ("a person", "hear", "Answer"): (0, True, False),
        ("hear", "stop", "StopEvent"): (0, True, False),
        ("work", "rescue", "fails"): (1, False, False),
        ("work", "hear", "Surprise"): (4, False, True),
    }


def test_failures_of_many_steps_are_summed_at_their_arrow():
    """A handler of many steps has one arrow: it counts the failures of all of them, once."""
    passages = (
        Passage("step_number_1", "StepFailedEvent", "rescue", 2),
        Passage("step_number_4", "StepFailedEvent", "rescue", 3),
    )
    flow = with_execution(flow_of(many_steps(6)), Execution("Many", passages=passages))
    (edge,) = (edge for edge in flow.edges if edge.kind == "fails")

    assert [label.count for label in edge.labels] == [5, None, None, None]
    assert edge.labels[0].drawn == "fails: 5"
    assert edge.labels[1].drawn.startswith("step_number_0")
    assert not edge.is_unused
    assert not any(each.is_undeclared for each in flow.edges)
    (arrow,) = (arrow for arrow in arrows_by_event(flow) if arrow.kind == "fails")
    assert len(arrow.labels) == 4
    unused = with_execution(flow_of(many_steps(6)), Execution("Many"))
    assert [edge.is_unused for edge in unused.edges if edge.kind == "fails"] == [True]


def test_passages_of_the_same_way_are_added_up():
    """Whoever counts may give an event of one way in several parts."""
    passages = [Passage("split", "Part", "work", count) for count in (1, 2, 3)]
    flow = with_execution(flow_of(Flow), Execution("Flow", passages=tuple(passages)))

    assert drawn(flow)["split", "work", "list[Part]"][0] == 6


def test_an_event_from_outside_that_no_step_declares():
    """It comes from the program around the run, which then has a node."""
    execution = Execution("Flow", passages=(Passage(None, "Surprise", "work", 2),))
    flow = with_execution(flow_of(Flow), execution)

    assert drawn(flow)["outside", "work", "Surprise"] == (2, False, True)


def test_questions_answers_and_the_end():
    """What leaves the run or comes from outside is matched by its class."""
    execution = Execution(
        "Flow",
        passages=(
            Passage("gather", "Ask", None, 2),
            Passage(None, "Answer", "hear", 2),
            Passage("hear", "StopEvent", None, 1),
        ),
    )
    counts = drawn(with_execution(flow_of(Flow), execution))

    assert counts["gather", "a person", "Ask"][0] == 2
    assert counts["a person", "hear", "Answer"][0] == 2
    assert counts["hear", "stop", "StopEvent"][0] == 1


def test_an_exact_class_is_not_counted_at_its_base():
    """Where a step makes a class and one derived from it, each has its own count."""

    class Both(Workflow):
        @step
        async def make(self, ev: StartEvent) -> Part | Special:
            return Part(n=1)

        @step
        async def take(self, ev: Part) -> StopEvent:
            return StopEvent()

    passages = (Passage("make", "Part", "take", 1), Passage("make", "Special", "take", 5))
    counts = drawn(with_execution(flow_of(Both), Execution("Both", passages=passages)))

    assert counts["make", "take", "Part"][0] == 1
    assert counts["make", "take", "Special"][0] == 5


def test_the_looks_of_steps():
    """Failed, cancelled and never reached are told by a class of the box, by signs and by words."""
    boxes = steps_of(WorkflowGraph(Flow, execution=EXECUTION).to_svg())
    texts = {name: [text.text for text in box.iter(f"{SVG}text")] for name, box in boxes.items()}

    assert {name: box.get("class") for name, box in boxes.items()} == {
        "split": "step",
        "work": "step failed hatched",
        "gather": "step never",
        "hear": "step never",
        "rescue": "step handler",
        "think": "step",
    }
    assert texts["work"] == ["work", "2", "1", "1", "1", "3 retried", "61.0 s"]
    assert "never ran" in texts["gather"]
    kinds = {g.get("class") for g in boxes["work"].iter(f"{SVG}g")}
    assert {"mark completed", "mark failed", "mark cancelled", "mark running"} <= kinds
    assert [r.get("class") for r in boxes["work"].iter(f"{SVG}rect")] == [None, "hatch"]


def test_no_look_is_told_by_its_colour_alone():
    """Each has a dash, a thickness or a pattern of its own, in print and for the colour-blind."""
    graph = WorkflowGraph(Flow, execution=EXECUTION)
    style = ET.fromstring(graph.to_svg()).find(f"{SVG}style").text

    dashes = dict(
        re.findall(r"^\.flow \.arrow\.(\w+) \{[^}]*dasharray: ([\d. ]+)", style, re.MULTILINE)
    )
    assert len(set(dashes.values())) == len(dashes)
    assert {"never", "undeclared", "fails", "stream"} <= set(dashes)
    assert re.search(r"\.step\.never > rect:first-of-type \{[^}]*dasharray", style)
    assert re.search(r"\.step\.failed > rect:first-of-type \{[^}]*stroke-width: 2\.6", style)
    assert "url(#hatch)" in style


def test_the_frame_of_a_child_has_the_counts_of_its_runs():
    """They are matched by the name of the workflow; a child that never ran says so."""
    with_child = steps_of(WorkflowGraph(Flow, execution=EXECUTION).to_svg())
    without = steps_of(WorkflowGraph(Flow, execution=Execution("Flow")).to_svg())

    assert [text.text for text in with_child["think"].iter(f"{SVG}text")] == ["think", "2", "1.0 s"]
    assert without["think"].get("class") == "step never"


def test_events_on_the_stream_are_counted():
    """A note has the counts, and the events that the source did not show."""
    flow = with_execution(flow_of(Flow), EXECUTION)
    (split,) = (node for node in flow.nodes if node.name == "split")

    assert [(label.text, label.count) for label in split.notes] == [("Progress", 7), ("Rumour", 1)]


def test_an_event_that_went_one_way_only():
    """Of the targets of one event, that which never got it has an arrow of its own."""

    class Two(Workflow):
        @step
        async def make(self, ev: StartEvent) -> Part:
            return Part(n=1)

        @step
        async def one(self, ev: Part) -> StopEvent:
            return StopEvent()

        @step
        async def two(self, ev: Part) -> StopEvent:
            return StopEvent()

    passages = (Passage("make", "Part", "one", 3),)
    plain = [a for a in arrows_by_event(flow_of(Two)) if a.labels[0].text == "Part"]
    flow = with_execution(flow_of(Two), Execution("Two", passages=passages))
    counted = [a for a in arrows_by_event(flow) if a.labels[0].text == "Part"]

    assert [len(arrow.targets) for arrow in plain] == [2]
    assert [(len(arrow.targets), arrow.is_unused) for arrow in counted] == [(1, False), (1, True)]


def test_a_run_without_its_class():
    """The graph of a file consists of what ran; nothing in it is said to be undeclared."""
    flow = flow_of_execution(EXECUTION)
    graph = WorkflowGraph.of_execution(EXECUTION)

    assert [node.name for node in flow.nodes if node.kind == "step"] == [
        "split",
        "work",
        "rescue",
        "gather",
        "hear",
    ]
    assert not any(edge.is_undeclared for edge in flow.edges)
    assert drawn(flow)["split", "work", "Special"] == (2, False, False)
    assert drawn(flow)["work", "rescue", "fails"] == (1, False, False)
    assert graph.name == "Flow"
    assert graph.summary() == "5 steps, 6 events and 2 published"
    assert "timed out after 61.5 s" in graph.to_html()


def test_an_execution_in_every_form():
    """Each form says how the run ended or what the steps came to."""
    graph = WorkflowGraph(Flow, execution=EXECUTION)
    data = json.loads(graph.to_json())

    assert data["execution"] == {"run_id": "abc", "outcome": "timed_out", "seconds": 61.5}
    (work,) = (node for node in data["nodes"] if node.get("name") == "work")
    assert work["counts"]["failed"] == 1
    assert {"name": "Surprise", "count": 4} in [
        event for edge in data["edges"] if edge.get("is_undeclared") for event in edge["events"]
    ]
    assert "\nrun abc timed out after 61.5 s\n" in graph.to_text()
    assert "work  (2 completed, 1 failed, 1 cancelled, 1 running, 3 retried, 61.0 s)" in (
        graph.to_text()
    )
    chart = graph.to_mermaid()
    assert re.search(r'^  n\d\["gather<br>joins all<br>never ran"\]:::never$', chart, re.MULTILINE)
    assert re.search(r'^  n2 -\.->\|"Surprise 4"\| n4$', chart, re.MULTILINE)
    assert 'label="Surprise 4", style=dashed, color="#b3261e"' in graph.to_dot()


def test_the_legend_and_the_table():
    """What is in the picture is explained, and the counts stand in a table as well."""
    page = WorkflowGraph(Flow, execution=EXECUTION).to_html()
    plain = WorkflowGraph(Flow).to_html()

    for meaning in (
        "step that failed",
        "step that never ran",
        "no event passed",
        "observed, and not declared by a step",
        "total time of all invocations",
    ):
        assert f"<span>{meaning}</span>" in page
        assert meaning not in plain
    assert "Counts of the steps" in page
    assert "Counts of the steps" not in plain
    assert "Run abc timed out after 61.5 s" in page


def test_hostile_names_of_an_execution():
    """A recording comes from a file: its names are text wherever they stand."""
    nasty = "<script>&\"'\x1b"
    execution = Execution(
        nasty,
        steps={nasty: StepCounts(started=1)},
        passages=(Passage(nasty, nasty, nasty), Passage(None, nasty, nasty)),
        published=(Passage(nasty, nasty, None),),
        outcome=nasty,
        run_id=nasty,
    )
    graph = WorkflowGraph.of_execution(execution)

    assert graph.to_html().count("<script") == 1
    assert "<script" not in graph.to_svg() + graph.to_mermaid()
    assert "\x1b" not in graph.to_html() + graph.to_text() + graph.to_dot()
    ET.fromstring(graph.to_svg())


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (StepCounts(), "never ran"),
        (StepCounts(started=1), "1 running, 0.0 ms"),
        (StepCounts(started=1200, completed=1200, seconds=7300), "1,200 completed, 2 h 1 min"),
    ],
)
def test_the_summary_of_a_step(counts, text):
    """The counts that are not 0, and the time."""
    assert counts.summary() == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 ms"),
        (0.0004, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (99.94, "99.9 s"),
        (99.96, "1 min 40 s"),
        (119.9, "2 min 0 s"),
        (7199, "119 min 59 s"),
        (7200, "2 h 0 min"),
    ],
)
def test_times_are_short(seconds, text):
    """A time has about three figures, and no unit is passed over."""
    assert shown_seconds(seconds) == text


def contrast(one, other):
    """The ratio of the luminances of two colours, as WCAG 2 defines it."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "grounds"),
    [
        ("ink", ["paper", "box", "fails-wash", "fault-wash"]),
        ("muted", ["paper", "box", "wash", "fails-wash", "fault-wash", "stream-wash"]),
        ("event", ["paper"]),
        ("back", ["paper"]),
        ("fault", ["paper", "fault-wash"]),
        ("fails", ["paper"]),
        ("human", ["paper", "human-wash"]),
        ("stream", ["paper", "stream-wash"]),
        ("never", ["paper", "stream-wash"]),
    ],
)
def test_text_can_be_read(colours, text, grounds):
    """Each text has the contrast to its ground that WCAG asks of small text, grey ones too."""
    for ground in grounds:
        assert contrast(colours[text], colours[ground]) >= 4.5, ground
