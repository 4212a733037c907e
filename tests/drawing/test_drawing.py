"""The page: what is drawn of a workflow, and that nothing in it can break out of its place."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Annotated, Literal

import attrs
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate._definition.source import read_source
from sluicegate.drawing import WorkflowGraph, draw_all_possible_flows
from sluicegate.drawing._flow import flow_of
from sluicegate.drawing._labels import label_of
from sluicegate.drawing._picture import picture_of
from sluicegate.drawing._svg import shortened, text_width


class Draft(Event):
    text: str
    attempt: int = 1


class Retry(Event):
    reason: str


class Progress(Event):
    msg: str


class Token(Event):
    delta: str


class Part(Event):
    n: int


class Done(Event):
    n: int


class Ask(InputRequiredEvent):
    prefix: str


class Writer(Workflow):
    """Writes until the reviewer is content.

    More words.
    """

    @step(num_workers=2, timeout=1.5)
    async def write(self, ctx: Context, ev: StartEvent | Retry) -> Draft:
        """Write a draft."""
        ctx.write_event_to_stream(Progress(msg="writing"))
        return Draft(text="")

    @step
    async def review(self, ev: Draft) -> Retry | StopEvent | Draft:
        return StopEvent()


class Fan(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Part]:
        return []

    @step
    async def work(self, ev: Part) -> Done:
        return Done(n=1)

    @step
    async def gather(self, evs: list[Done]) -> StopEvent:
        return StopEvent()


class Human(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(prefix="?")

    @step
    async def hear(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent | Draft:
        ctx.write_event_to_stream(Ask(prefix="again?"))
        return StopEvent()

    @step
    async def both(self, a: Draft, b: Retry) -> StopEvent:
        return StopEvent()


class Faulty(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Draft:
        return Draft(text="")

    @step
    async def lost(self, ev: Retry) -> StopEvent:
        return StopEvent()


def page_of(workflow):
    """The page of a workflow."""
    return WorkflowGraph(workflow).to_html()


def scripts_of(page):
    """The opening tags of all scripts of a page; names that broke out of their text would add some."""
    return page.count("<script")


def arrows(cls):
    """The arrows of a workflow as readable tuples."""
    flow = flow_of(cls)
    names = [node.name or node.kind for node in flow.nodes]
    return {
        (names[edge.source], names[edge.target], edge.kind, *(label.text for label in edge.labels))
        for edge in flow.edges
    }


def svg_tree(page):
    """The first picture of a page, parsed as XML."""
    return ET.fromstring(re.search(r"<svg class=\"flow\" xmlns.*?</svg>", page, re.DOTALL)[0])


# -- the model -------------------------------------------------------------------------------


def test_arrows_of_a_loop():
    """Events are arrows from the steps that make them to those that take them, ends included."""
    assert {
        ("start", "write", "event", "StartEvent"),
        ("write", "review", "event", "Draft"),
        ("review", "write", "event", "Retry"),
        ("review", "stop", "event", "StopEvent"),
        ("review", "review", "event", "Draft"),
    } == arrows(Writer)


def test_fan_out_and_join():
    """A list of events is named as one; its arrow and the step that joins are marked."""
    flow = flow_of(Fan)

    assert ("split", "work", "event", "list[Part]") in arrows(Fan)
    assert [e.fans_out for e in flow.edges if e.labels[0].text == "list[Part]"] == [True]
    assert [e.fans_out for e in flow.edges if e.labels[0].text == "Done"] == [False]
    assert {n.name: n.join for n in flow.nodes if n.kind == "step"} == {
        "split": "",
        "work": "",
        "gather": "all",
    }


def test_questions_and_answers():
    """Questions go to a person, returned or written to the stream alike, and answers come back."""
    assert {
        ("ask", "a person", "human", "Ask"),
        ("hear", "a person", "human", "Ask"),
        ("a person", "hear", "human", "HumanResponseEvent"),
    } == {arrow for arrow in arrows(Human) if arrow[2] == "human"}
    assert [n.join for n in flow_of(Human).nodes if n.name == "both"] == ["each"]
    assert not any(node.notes for node in flow_of(Human).nodes)


def test_events_that_share_a_way_share_an_arrow():
    """Two events between the same steps are two names at one arrow."""

    class Wide(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Draft | Retry:
            return Retry(reason="")

        @step
        async def end(self, ev: Draft | Retry) -> StopEvent:
            return StopEvent()

    assert ("begin", "end", "event", "Draft", "Retry") in arrows(Wide)


def test_marks_and_titles():
    """A step knows its marks and its words; an event its fields with their types."""
    flow = flow_of(Writer())
    write = next(node for node in flow.nodes if node.name == "write")
    titles = {label.text: label.title for label in (*flow.events, *flow.published)}

    assert [mark.text for mark in write.marks] == ["\N{MULTIPLICATION SIGN}2", "1.5 s"]
    assert "Write a draft." in write.title
    assert "takes StartEvent | Retry, makes Draft" in write.title
    assert flow.summary == "Writes until the reviewer is content."
    assert titles["Draft"] == "Draft\n  text: str\n  attempt: int = ..."
    assert titles["StartEvent"] == "StartEvent\n  any field"
    assert titles["Progress"] == "Progress\n  msg: str"


def test_a_faulty_workflow_is_drawn():
    """What leads nowhere or comes from nowhere is drawn as such, and all faults are reported."""
    assert {
        ("start", "begin", "event", "StartEvent"),
        ("begin", "gap", "gap", "Draft"),
        ("gap", "lost", "gap", "Retry"),
        ("lost", "stop", "event", "StopEvent"),
    } == arrows(Faulty)
    page = page_of(Faulty)
    assert "no step takes " in page
    assert "no step makes " in page


def test_a_workflow_without_steps_is_drawn():
    """Even nothing has a page, with the fault that explains it."""

    class Empty(Workflow):
        pass

    assert "it has no steps" in page_of(Empty)


@pytest.mark.parametrize("thing", [5, int, Draft, "Writer"])
def test_only_workflows_are_drawn(thing):
    """What is no workflow is refused by name."""
    with pytest.raises(TypeError, match="expected a Workflow class or an object of one"):
        draw_all_possible_flows(thing)


# -- what the source tells -------------------------------------------------------------------


class Writes(Workflow):
    @step
    async def plain(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.stream.send(Token(delta=""))
        ctx.stream.send_nowait(Progress(msg=""))
        return StopEvent()

    async def named(self, ctx, flag):
        event = Progress(msg="")
        event = event
        ctx.write_event_to_stream(event)
        ctx.write_event_to_stream(Token(delta="") if flag else None)

    async def walrus(self, ctx):
        ctx.write_event_to_stream(last := Token(delta=""))
        return last

    async def other(self, ctx, channel, event):
        await channel.send(Progress(msg=""))
        ctx.write_event_to_stream(event)
        ctx.write_event_to_stream(Unknown(msg=""))  # noqa: F821
        ctx.write_event_to_stream(Path("x"))

    async def passed_on(self, ctx, ev: Draft | Retry):
        ctx.write_event_to_stream(ev)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Writes.plain, (Token, Progress)),
        (Writes.named, (Progress, Token)),
        (Writes.walrus, (Token,)),
        (Writes.other, ()),
        (Writes.passed_on, (Draft, Retry)),
        (len, ()),
    ],
)
def test_events_written_to_the_stream(function, expected):
    """Events made in the call, assigned to its argument or declared for it are found; no guesses."""
    assert expected == read_source(function).streamed


def test_events_of_an_enclosing_function():
    """A class that the step's function closes over is found as well."""

    class Local(Event):
        n: int

    async def write(ctx):
        ctx.write_event_to_stream(Local(n=1))

    assert (Local,) == read_source(write).streamed


def test_a_step_without_source():
    """Without its source a workflow is drawn, only its notes are missing."""
    names = {}
    exec(
        "from sluicegate import *\n"
        "class Hidden(Workflow):\n"
        "    @step\n"
        "    async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:\n"
        "        ctx.write_event_to_stream(Event())\n",
        names,
    )

    assert ("go", "stop", "event", "StopEvent") in arrows(names["Hidden"])


class Sends(Workflow):
    async def in_a_loop(self, ctx):
        for n in range(3):
            ctx.send_event(Part(n=n))

    async def while_it_lasts(self, ctx):
        while True:
            ctx.send_event(event=Part(n=1))

    async def in_a_list(self, ctx):
        [ctx.send_event(Part(n=n)) for n in range(3)]

    async def by_a_name(self, ctx, parts):
        for n in parts:
            part = Part(n=n)
            ctx.send_event(part, step="work")

    async def twice(self, ctx, flag):
        ctx.send_event(Part(n=1))
        ctx.send_event(Part(n=2))

    async def once(self, ctx):
        for _ in range(3):
            pass
        ctx.send_event(Part(n=1))

    async def before_the_loop(self, ctx):
        for _ in ctx.send_event(Part(n=1)), 2:
            pass


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Sends.in_a_loop, (Part,)),
        (Sends.while_it_lasts, (Part,)),
        (Sends.in_a_list, (Part,)),
        (Sends.by_a_name, (Part,)),
        (Sends.twice, (Part,)),
        (Sends.once, ()),
        (Sends.before_the_loop, ()),
        (Writes.plain, ()),
    ],
)
def test_events_sent_several_times(function, expected):
    """A send in a loop or in two places is a fan-out; a single one is not."""
    assert expected == read_source(function).sends_many


KINDS = [Part, Done]


class Collects(Workflow):
    async def one_of_each(self, ctx, ev):
        ctx.collect_events(ev, [Part, Done])

    async def three(self, ctx, ev):
        ctx.collect_events(ev, [Part] * 3)

    async def many(self, ctx, ev):
        n = await ctx.store.get("n")
        ctx.collect_events(ev, expected=[Part] * n)

    async def by_a_list(self, ctx, ev):
        ctx.collect_events(ev, [Part for _ in range(3)])

    async def sum_of_lists(self, ctx, ev):
        ctx.collect_events(ev, [Part] * 2 + [Done, Part])

    async def by_a_name(self, ctx, ev):
        expected = [Part, Part]
        ctx.collect_events(ev, expected)

    async def round_about(self, ctx, ev):
        expected = []
        expected = expected + [Part]  # noqa: RUF005 - one form of two
        ctx.collect_events(ev, expected)

    async def unpacked(self, ctx, ev):
        kinds = [Part] * 2
        ctx.collect_events(ev, [*kinds, Done])

    async def two_sets(self, ctx, ev):
        ctx.collect_events(ev, [Part] * 2)
        ctx.collect_events(ev, [Part] * 5, buffer_id="more")

    async def unknown(self, ctx, ev):
        ctx.collect_events(ev, self.kinds)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Collects.one_of_each, ((Part, 1), (Done, 1))),
        (Collects.three, ((Part, 3),)),
        (Collects.many, ((Part, None),)),
        (Collects.by_a_list, ((Part, None),)),
        (Collects.sum_of_lists, ((Part, 3), (Done, 1))),
        (Collects.by_a_name, ((Part, 2),)),
        (Collects.unpacked, ((Part, 2), (Done, 1))),
        (Collects.two_sets, ((Part, 5),)),
        (Collects.unknown, ()),
    ],
)
def test_events_that_are_collected(function, expected):
    """The classes of ``ctx.collect_events``, with the number of each where the source shows it."""
    assert expected == read_source(function).collects


def test_a_list_that_is_made_of_itself():
    """A name that is assigned to itself is followed a few times, not for ever."""
    ((kind, count),) = read_source(Collects.round_about).collects

    assert kind is Part
    assert count >= 1


class Webhook(Event):
    url: str


class Waits(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Draft:
        await ctx.wait_for_event(HumanResponseEvent, waiter_event=Ask(prefix="?"))
        return Draft(text="")

    @step
    async def confirm(self, ctx: Context, ev: Draft) -> Retry:
        ctx.write_event_to_stream(Ask(prefix="sure?"))
        await ctx.wait_for_event(HumanResponseEvent)
        return Retry(reason="")

    @step
    async def hook(self, ctx: Context, ev: Retry) -> StopEvent:
        await ctx.wait_for_event(Webhook)
        return StopEvent()


def test_a_wait_within_a_step_shows_whom_it_waits_for():
    """A step that asks midway has a person of its own; another event comes from outside."""
    flow = flow_of(Waits)
    people = [number for number, node in enumerate(flow.nodes) if node.kind == "person"]
    human = {(e.source, e.target) for e in flow.edges if e.kind == "human"}

    assert len(people) == 2
    assert {(1, people[0]), (people[0], 1), (2, people[1]), (people[1], 2)} == human
    assert ("outside", "hook", "event", "Webhook") in arrows(Waits)
    assert read_source(Waits.ask).asks == (Ask,)
    page = page_of(Waits)
    assert 'class="outside"' in page
    assert "question or answer of a person" in page


class Joined(Workflow):
    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        for n in range(3):
            ctx.send_event(Part(n=n))
        return None

    @step
    async def gather(self, ctx: Context, ev: Part) -> StopEvent | None:
        return None if ctx.collect_events(ev, [Part] * 3) is None else StopEvent()


def test_joins_and_fan_outs_by_calls_look_like_those_of_signatures():
    """``collect_events`` has the bar of a join, ``send_event`` in a loop the fork of a fan-out."""
    (gather,) = (node for node in flow_of(Joined).nodes if node.name == "gather")
    page = page_of(Joined)

    assert gather.join == "collect"
    assert [(mark.kind, mark.text) for mark in gather.marks] == [("join", "collects 3 Part")]
    assert [edge.fans_out for edge in flow_of(Joined).edges if edge.labels[0].text == "Part"] == [
        True
    ]
    assert 'class="bar"' in page
    assert "join: waits for several events" in page
    assert "fan-out: several events" in page


def test_an_event_of_a_step_is_named_once():
    """Arrows of the same event to several steps share one label, and fork below it."""

    class Both(Workflow):
        @step
        async def make(self, ev: StartEvent) -> Draft:
            return Draft(text="")

        @step
        async def one(self, ev: Draft) -> StopEvent:
            return StopEvent()

        @step
        async def two(self, ev: Draft) -> StopEvent:
            return StopEvent()

    root = ET.fromstring(picture_of(flow_of(Both)).svg)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    paths = [p for p in root.iter("{http://www.w3.org/2000/svg}path") if p.get("marker-end")]

    assert texts.count("Draft") == 1
    assert len(paths) == len(flow_of(Both).edges) == 5


def test_the_run_ends_near_each_step_that_ends_it():
    """Only the steps of the last row share an end; no arrow runs down the whole picture."""

    class Early(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Draft | StopEvent:
            return StopEvent()

        @step
        async def middle(self, ev: Draft) -> Retry | StopEvent:
            return StopEvent()

        @step
        async def end(self, ev: Retry) -> StopEvent:
            return StopEvent()

        @step
        async def last(self, ev: Retry) -> StopEvent:
            return StopEvent()

    root = ET.fromstring(picture_of(flow_of(Early)).svg)
    ends = [g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("class") == "stop"]

    assert [node.kind for node in flow_of(Early).nodes].count("stop") == 1
    assert len(ends) == 3


# -- the page --------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Writer, Fan, Human, Faulty, Writes])
def test_every_event_and_step_is_in_the_picture(cls):
    """The picture is well-formed XML with a box for each step and an arrow for each edge."""
    flow = flow_of(cls)
    root = ET.fromstring(picture_of(flow).svg)
    classes = [element.get("class", "").split() for element in root.iter()]
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]

    assert sum(node.kind == "step" for node in flow.nodes) == classes.count(["step"])
    ends = [e.get("marker-end") for e in root.iter("{http://www.w3.org/2000/svg}path")]
    assert len(flow.edges) == len([end for end in ends if end])
    for edge in flow.edges:
        for label in edge.labels:
            assert label.text in texts


def test_marks_in_the_picture():
    """Workers, timeout, fan-out, join, human and stream each have their sign, and a legend."""
    writer, fan, human = map(page_of, (Writer, Fan, Human))

    assert ">\N{MULTIPLICATION SIGN}2<" in writer
    assert ">1.5 s<" in writer
    assert 'class="arrow back"' in writer
    assert 'class="arrow stream"' in writer
    assert "written to the stream" in writer
    assert "leads back to an earlier step" in writer
    assert 'class="bar"' in fan
    assert "fan-out: several events" in fan
    assert 'class="arrow human"' in human
    assert "question or answer of a person" in human
    assert "fan-out" not in writer
    assert "question or answer of a person" not in fan


def test_the_file(tmp_path, capsys, monkeypatch):
    """The page is written under the name given, its path returned, and nothing printed."""
    monkeypatch.chdir(tmp_path)

    assert Path("workflow_all_flows.html") == draw_all_possible_flows(Writer)
    assert tmp_path / "x.html" == draw_all_possible_flows(Writer(), str(tmp_path / "x.html"))
    assert Path("workflow_all_flows.html").read_bytes() == Path("x.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["workflow_all_flows.html", "x.html"]
    assert capsys.readouterr() == ("", "")


def test_the_page_needs_nothing_else():
    """One script, by its hash, and nothing that a browser would fetch: the page works offline."""
    page = page_of(Human)
    without_namespace = page.replace('xmlns="http://www.w3.org/2000/svg"', "")

    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert scripts_of(page) == 1
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|<link|\burl\((?!#)", without_namespace)
    assert "prefers-color-scheme: dark" in page


@pytest.mark.slow
def test_the_same_bytes_each_time():
    """Another process, with other hashes and addresses, gives the same text in every form."""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.drawing.test_drawing_children import Top\n"
        "from tests.drawing.test_drawing import Strange\n"
        "from tests.drawing.test_marks import Busy, Handled\n"
        "from tests.drawing.test_execution import EXECUTION, Flow\n"
        "from sluicegate import WorkflowGraph\n"
        "graphs = [*map(WorkflowGraph, (Strange, Top, Busy, Handled))]\n"
        "graphs.append(WorkflowGraph(Flow, execution=EXECUTION))\n"
        "for graph in graphs:\n"
        "    for form in ('html', 'svg', 'mermaid', 'dot', 'text', 'json'):\n"
        "        sys.stdout.buffer.write(getattr(graph, f'to_{form}')().encode())"
    )
    root = Path(__file__).parents[2]
    pages = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(pages) == 1


# -- hostile names ---------------------------------------------------------------------------


NASTY = "</text><script>alert(1)</script>&\"'\x1b"

Hostile = type(
    "Hostile", (Event,), {"__annotations__": {"x": "<b>'\"&\x00\ud800"}, "__module__": __name__}
)
Hostile.__name__ = NASTY  # afterwards: attrs 23 makes code of the name


class Strange(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Hostile:
        ctx.write_event_to_stream(Hostile(x=1))
        return Hostile(x=1)

    @step
    async def end(self, ev: Hostile) -> StopEvent:
        return StopEvent()


def test_hostile_names_stay_text():
    """Names and types are text wherever they stand: in labels, titles, legends and lists."""
    shown = type(NASTY, (Strange,), {"__doc__": NASTY})
    page = page_of(shown)
    page.encode()

    assert scripts_of(page) == 1
    assert "<b>" not in page
    assert "\x00" not in page
    assert "\x1b" not in page
    labels = [e.text for e in svg_tree(page).iter("{http://www.w3.org/2000/svg}text")]
    assert "</text><script>alert(1)</script>&\"'" in labels


def test_hostile_faults_stay_text():
    """The faults quote names, and are text as well."""

    class Lost(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Hostile | StopEvent:
            return StopEvent()

    page = page_of(Lost)

    assert "no step takes " in page
    assert scripts_of(page) == 1


@attrs.frozen
class Addressed:
    """Has a repr that differs from process to process."""

    def __repr__(self):
        return object.__repr__(self)


def test_types_without_addresses():
    """The address of an object in a type is left out: it would be another one each time."""
    kind = type(
        "Marked",
        (Event,),
        {"__annotations__": {"x": Annotated[int, Addressed()]}, "__module__": __name__},
    )

    class Marking(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> kind | StopEvent:
            return StopEvent()

    title = next(label.title for label in flow_of(Marking).events if label.text == "Marked")
    assert "Addressed object" in title
    assert "0x" not in title


def test_types_are_short():
    """The types of fields are shown without their modules; numbers and strings stay whole."""
    annotations = {
        "path": Path,
        "kind": Literal["a.b", "c"],
        "parts": dict[str, list[Part]],
        "size": Annotated[float, 1.5],
    }
    kind = type("Typed", (Event,), {"__annotations__": annotations, "__module__": __name__})

    assert label_of(kind).fields == (
        "path: Path",
        "kind: Literal['a.b', 'c']",
        "parts: dict[str, list[Part]]",
        "size: Annotated[float, 1.5]",
    )


# -- text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cells"), [("", 0), ("abc", 3), ("漢字", 4), ("é", 1), ("e\u0301", 1)]
)
def test_text_width(text, cells):
    """Wide letters take two cells, marks that combine with the letter before take none."""
    assert pytest.approx(cells * 6.1) == text_width(text, 10)


def test_long_names_are_shortened():
    """A name that would burst its box is cut, and stands whole in its title."""
    name = "A" * 200

    assert len(shortened(name)) == 44
    assert shortened("B" * 44) == "B" * 44
    kind = type(name, (Event,), {"__annotations__": {"x": int}, "__module__": __name__})

    class Long(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> kind:
            return kind(x=1)

        @step
        async def end(self, ev: kind) -> StopEvent:
            return StopEvent()

    svg = picture_of(flow_of(Long)).svg
    assert f">{'A' * 43}…<" in svg
    assert f"<title>{name}" in svg
