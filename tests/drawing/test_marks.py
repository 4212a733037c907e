"""Marks and handlers: what a step says of itself, and where its failures go."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Annotated, Any

import attrs
import pytest
import tenacity

from sluicegate import (
    Context,
    Event,
    RateLimiter,
    Resource,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Take,
    Workflow,
    catch_error,
    step,
)
from sluicegate.drawing import WorkflowGraph
from sluicegate.drawing._flow import flow_of
from sluicegate.drawing._labels import Mark
from sluicegate.drawing._picture import picture_of
from sluicegate.drawing._svg import MEANINGS, ROW_WIDTH, SIGNS, row_width, rows_of


SVG = "{http://www.w3.org/2000/svg}"
TIMES = "\N{MULTIPLICATION SIGN}"


class Part(Event):
    n: int


class Done(Event):
    n: int


@attrs.define
class Counter:
    n: int = 0


@attrs.define
class Deeper(Counter):
    m: int = 0


class Gate:
    """A limiter that has an address in its repr."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        return None


def connect() -> object:
    return object()


def open_files() -> object:
    return object()


def one_step(**options):
    """A workflow with one step ``go`` that has these options."""

    class One(Workflow):
        @step(**options)
        async def go(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    return One


def marks_of_step(cls, name="go"):
    """The marks of a step: kind, text and title."""
    (node,) = (node for node in flow_of(cls).nodes if node.name == name)
    return {mark.kind: (mark.text, mark.title) for mark in node.marks}


@pytest.mark.parametrize(
    ("options", "kind", "text", "title"),
    [
        ({"num_workers": 7}, "workers", f"{TIMES}7", "At most 7 at a time (num_workers)"),
        ({"timeout": 1.5}, "timeout", "1.5 s", "Each invocation may take 1.5 s (timeout)"),
        ({"idle_timeout": 3}, "idle", "3 s", "May be without progress for 3 s (idle_timeout)"),
        (
            {"retry": Retry(stop=5, wait=0.5)},
            "retry",
            "5 tries",
            "Tried again after a failure: Retry(stop=5, wait=0.5, when=Exception)",
        ),
        (
            {"limiter": RateLimiter(10, per=2)},
            "limiter",
            "limited",
            "Entered around each invocation: RateLimiter(10, per=2, burst=1)",
        ),
        ({"limiter": Gate()}, "limiter", "limited", "Entered around each invocation: Gate"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_marks_of_options(options, kind, text, title):
    """Each option of ``@step`` has its mark, and a step without it has none."""
    assert marks_of_step(one_step(**options))[kind] == (text, title)
    assert not marks_of_step(one_step())


class Stubborn(tenacity.stop.stop_base):
    def __call__(self, retry_state):
        return False


def test_a_retry_without_a_number():
    """A stop of tenacity has no count, and nothing in the title is an address."""
    retry = Retry(stop=Stubborn(), when=tenacity.retry_if_exception(bool))
    text, title = marks_of_step(one_step(retry=retry))["retry"]

    assert text == "retries"
    assert "0x" not in title


class Busy(Workflow):
    @step
    async def begin(
        self,
        ctx: Context[Deeper],
        ev: StartEvent,
        client: Annotated[object, Resource(connect)],
        again: Annotated[object, Resource(connect)],
        files: Annotated[object, Resource(open_files, scope="workflow")],
    ) -> list[Part]:
        return []

    @step(abandon_on_cancel=True)
    def threaded(self, ctx: Context[Counter], ev: Part) -> Done:
        return Done(n=1)

    @step
    def waited(self, ctx: Context, ev: Part) -> Done:
        return Done(n=1)

    @step
    async def first(self, ctx: Context[Any], evs: Annotated[list[Done], Take(2)]) -> Part:
        return Part(n=1)

    @step(in_process=True)
    @staticmethod
    def apart(ev: Part) -> StopEvent:
        return StopEvent()


def test_where_a_step_runs():
    """Steps in threads and in processes say so, and whether a thread may be left behind."""
    assert marks_of_step(Busy, "threaded")["thread"] == (
        "thread",
        "Runs in a worker thread, left behind when cancelled",
    )
    assert marks_of_step(Busy, "waited")["thread"] == ("thread", "Runs in a worker thread")
    assert marks_of_step(Busy, "apart")["process"] == ("process", "Runs in a worker process")
    assert not {"thread", "process"} & set(marks_of_step(Busy, "begin"))


def test_a_join_that_takes_the_first():
    """A join says of how many events it has enough."""
    assert marks_of_step(Busy, "first")["join"] == (
        "takes first 2",
        "Runs with the first 2 events of a fan-out, and cancels the rest",
    )


def test_resources():
    """Resources are named once, in order; the title tells the parameters and the scopes."""
    text, title = marks_of_step(Busy, "begin")["resources"]

    assert text == "connect, open_files"
    assert title.split("\n") == [
        "Resources",
        "client: connect, one per run",
        "again: connect, one per run",
        "files: open_files, one per workflow",
    ]


def test_the_state():
    """The page tells the state of the workflow once; a step that names a wider one tells that."""
    assert flow_of(Busy).state == "Deeper"
    assert marks_of_step(Busy, "begin")["state"][0] == ""
    assert marks_of_step(Busy, "threaded")["state"][0] == "Counter"
    assert marks_of_step(Busy, "threaded")["state"][1].endswith(".Counter")
    assert "state" not in marks_of_step(Busy, "waited")
    assert "state" not in marks_of_step(Busy, "first")
    assert "5 steps, 4 events, state Deeper" in WorkflowGraph(Busy).to_html()
    assert flow_of(one_step()).state == ""


def test_the_state_of_a_child_stands_in_its_frame():
    """Each workflow has a state of its own, and its frame tells which."""

    class Parent(Workflow):
        @step
        async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.run_child(Busy())
            return StopEvent()

    root = ET.fromstring(picture_of(flow_of(Parent)).svg)
    (frame,) = (e for e in root.iter() if e.get("class") == "frame drawn")
    assert [e.text for e in frame.iter(f"{SVG}text")] == ["Busy", "state Deeper"]


def test_every_mark_is_in_the_picture():
    """Text and title of each mark are drawn in the box of its step."""
    flow = flow_of(Busy)
    root = ET.fromstring(picture_of(flow).svg)
    boxes = {
        element.find(f"{SVG}text").text: element
        for element in root.iter(f"{SVG}g")
        if "step" in element.get("class", "").split()
    }

    for node in flow.nodes:
        for mark in node.marks:
            (drawn,) = (g for g in boxes[node.name].iter() if g.get("class") == f"mark {mark.kind}")
            assert drawn.find(f"{SVG}title").text == mark.title
            assert [e.text for e in drawn.iter(f"{SVG}text")] == ([mark.text] if mark.text else [])
            assert (mark.kind in SIGNS) == bool(list(drawn.iter(f"{SVG}path")))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("timeout", {"timeout": 1}),
        ("idle", {"idle_timeout": 1}),
        ("retry", {"retry": Retry()}),
    ],
)
def test_the_legend_has_what_is_used(kind, options):
    """A sign is explained where it is used, and only there."""
    assert f"<span>{MEANINGS[kind]}</span>" in WorkflowGraph(one_step(**options)).to_html()
    plain = WorkflowGraph(one_step()).to_html()
    assert not [meaning for meaning in MEANINGS.values() if f"<span>{meaning}</span>" in plain]


def test_every_sign_has_a_meaning():
    """No sign is left without an entry of the legend; a busy page explains all that it has."""
    assert set(SIGNS) == set(MEANINGS)
    page = WorkflowGraph(Busy).to_html()
    assert f"<span>{MEANINGS['resources']}</span>" in page
    assert f"<span>{MEANINGS['state']}</span>" in page


def test_rows_of_marks():
    """Marks go on in a further row where one is full, in the same order, none lost."""
    marks = [Mark("word", "x" * 8, str(n)) for n in range(9)]
    rows = rows_of(marks, 0.0)

    assert [mark for row in rows for mark in row] == marks
    assert len(rows) > 1
    assert all(row_width(row) <= ROW_WIDTH for row in rows)
    assert all(row_width([*row, following[0]]) > ROW_WIDTH for row, following in pairwise(rows))
    assert rows_of([Mark("word", "y" * 200, "")], 0.0) == [[Mark("word", "y" * 200, "")]]
    assert rows_of([], 0.0) == []


def test_a_box_holds_its_marks():
    """A step is as wide as its widest row of marks and as high as its rows."""
    options = {"timeout": 1234.5, "idle_timeout": 1234.5, "retry": Retry(), "limiter": Gate()}
    heights = []
    for cls in (one_step(), one_step(**options)):
        root = ET.fromstring(picture_of(flow_of(cls)).svg)
        (box,) = (e for e in root.iter(f"{SVG}g") if e.get("class") == "step")
        rect = box.find(f"{SVG}rect")
        left, top, width, height = (float(rect.get(n)) for n in ("x", "y", "width", "height"))
        for text in box.iter(f"{SVG}text"):
            assert left < float(text.get("x")) < left + width
            assert top < float(text.get("y")) < top + height
        heights.append(height)

    assert heights[0] < heights[1]


# -- handlers --------------------------------------------------------------------------------


class Handled(Workflow):
    @step
    async def load(self, ev: StartEvent) -> list[Part]:
        return []

    @step
    async def work(self, ev: Part) -> Done:
        return Done(n=1)

    @step
    async def gather(self, evs: list[Done]) -> StopEvent:
        return StopEvent()

    @catch_error(for_steps=["work"], max_recoveries=3)
    async def rescue(self, ev: StepFailedEvent) -> Done:
        return Done(n=0)

    @catch_error
    async def give_up(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent()


def failures_of(cls):
    """The arrows of failures: where from, where to, and their texts."""
    flow = flow_of(cls)
    names = [node.name or node.kind for node in flow.nodes]
    return {
        (names[e.source], names[e.target], *(label.text for label in e.labels))
        for e in flow.edges
        if e.kind == "fails"
    }


def test_failures_go_to_their_handlers():
    """From each step an arrow leads to the handler of its failures, and to no other."""
    assert failures_of(Handled) == {
        ("work", "rescue", "fails"),
        ("load", "give_up", "fails"),
        ("gather", "give_up", "fails"),
    }


def test_the_event_of_a_failure_is_no_orphan():
    """What a handler takes comes from the steps; its fields are listed."""
    flow = flow_of(Handled)

    assert not [node for node in flow.nodes if node.kind == "gap"]
    assert "StepFailedEvent" in [label.text for label in flow.events]
    assert not flow.faults


def test_a_handler_looks_like_one():
    """A handler is marked in the picture; its recoveries are told where there may be several."""
    root = ET.fromstring(picture_of(flow_of(Handled)).svg)
    handlers = {e.find(f"{SVG}text").text for e in root.iter() if e.get("class") == "step handler"}
    dashed = [e for e in root.iter(f"{SVG}path") if e.get("class") == "arrow fails"]

    assert handlers == {"rescue", "give_up"}
    assert len(dashed) == 3
    assert {e.get("marker-end") for e in dashed} == {"url(#tip-fails)"}
    assert 'id="tip-fails"' in picture_of(flow_of(Handled)).svg
    assert marks_of_step(Handled, "rescue")["recoveries"][0] == "recovers 3"
    assert not marks_of_step(Handled, "give_up")
    page = WorkflowGraph(Handled).to_html()
    assert "failure of a step, to its handler" in page
    assert re.search(r"\.arrow\.fails \{[^}]*dasharray", page)
    assert "failure of a step" not in WorkflowGraph(one_step()).to_html()


def many_steps(count, for_steps=None):
    """A workflow of ``count`` steps in a row, with a handler of their failures."""
    kinds = [
        type(f"Kind{n}", (Event,), {"__annotations__": {}, "__module__": __name__})
        for n in range(count)
    ]

    def make(number):
        async def go(self, ev):
            return StopEvent()

        go.__annotations__ = {
            "ev": kinds[number] if number else StartEvent,
            "return": kinds[number + 1] if number + 1 < count else StopEvent,
        }
        return step(go)

    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent()

    rescue.__annotations__ = {"ev": StepFailedEvent, "return": StopEvent}
    steps = {f"step_number_{n}": make(n) for n in range(count)}
    handler = catch_error(for_steps=for_steps)(rescue)
    return type("Many", (Workflow,), {**steps, "rescue": handler})


def test_many_failures_share_an_arrow():
    """A handler of many steps has one arrow with their names; the title has all of them."""
    assert failures_of(many_steps(5)) == {
        (
            "failures",
            "rescue",
            "fails:",
            "step_number_0, step_number_1,",
            "step_number_2, step_number_3,",
            "step_number_4",
        )
    }
    flow = flow_of(many_steps(30))
    (edge,) = (edge for edge in flow.edges if edge.kind == "fails")
    assert len(edge.labels) == 6
    assert edge.labels[-1].text == "and 22 more"
    assert "step_number_29" in edge.labels[0].title
    assert 'class="failures"' in picture_of(flow).svg


def test_few_failures_have_their_own_arrows():
    """Up to four steps lead to their handler themselves, also where it names them."""
    assert len(failures_of(many_steps(4))) == 4
    named = many_steps(6, for_steps=["step_number_0", "step_number_5"])
    assert failures_of(named) == {
        ("step_number_0", "rescue", "fails"),
        ("step_number_5", "rescue", "fails"),
    }


def test_a_handler_of_nothing():
    """A handler whose steps do not exist is drawn as what it is, next to the fault."""

    class Vain(Workflow):
        @step
        async def go(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["gone"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    flow = flow_of(Vain)
    assert [e.labels[0].text for e in flow.edges if e.kind == "gap"] == ["StepFailedEvent"]
    assert "catches the failures of &#x27;gone&#x27;" in WorkflowGraph(Vain).to_html()


def test_names_of_marks_stay_text():
    """Names of resources, states, limiters and steps are text wherever they stand."""
    nasty = "<script>&\"'"

    def make() -> object:
        return object()

    make.__name__ = make.__qualname__ = nasty
    state = attrs.make_class("State", ["n"])
    state.__name__ = state.__qualname__ = nasty
    limiter = type(nasty, (Gate,), {})()

    async def go(self, ctx, ev, thing):
        return StopEvent()

    go.__annotations__ = {
        "ctx": Context[state],
        "ev": StartEvent,
        "thing": Annotated[object, Resource(make)],
        "return": StopEvent,
    }
    cls = type("Nasty", (Workflow,), {nasty: step(limiter=limiter)(go)})
    page = WorkflowGraph(cls).to_html()

    assert page.count("<script") == 1
    assert nasty in [e.text for e in ET.fromstring(picture_of(flow_of(cls)).svg).iter()]
