"""Children in a picture: which workflow a step runs, and that each is drawn once, in its frame."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Annotated

import pytest

from sluicegate import Context, Event, Resource, StartEvent, StopEvent, Workflow, step
from sluicegate._definition.source import parse, read_source
from sluicegate.drawing import WorkflowGraph
from sluicegate.drawing._flow import flow_of
from sluicegate.drawing._picture import picture_of


SVG = "{http://www.w3.org/2000/svg}"


class Note(Event):
    text: str


class Deepest(Workflow):
    @step
    async def think(self, ctx: Context[dict], ev: StartEvent) -> StopEvent:
        return StopEvent()


class Inner(Workflow):
    """The words of Inner."""

    @step
    async def half(self, ev: StartEvent) -> Note:
        return Note(text="")

    @step
    async def whole(self, ctx: Context, ev: Note) -> StopEvent:
        await ctx.run_child(Deepest())
        return StopEvent()


class Other(Workflow):
    @step
    async def go(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


class Typed(Workflow[str]):
    @step
    async def go(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


class NoWorkflow:
    pass


INNER = Inner()
made_elsewhere = {"inner": INNER}


def make_inner():
    return Inner()


class Holder:
    child = INNER
    kind = Inner

    @property
    def trap(self):
        raise AssertionError


def children_of(cls, name="go"):
    """What the step ``name`` of a workflow runs: kind of frame and name, in order."""
    (node,) = (node for node in flow_of(cls).nodes if node.name == name)
    return [(child.kind, child.name) for child in node.children]


def one_step(body):
    """A workflow whose one step is ``body``, with this source."""

    class One(Workflow):
        inner = INNER
        kind = Inner
        trap = Holder.trap

        def __init__(self, flag=False, given: Other | None = None, loose=None):
            super().__init__()
            self.plain = Inner()
            self.either = Inner() if flag else Other()
            self.annotated: Other = Other()
            self.given = given
            self.loose = loose
            self.first, self.second = Inner(), Other()
            self.default = given or Typed()

    body.__name__ = "go"
    body.__annotations__ = {"ctx": Context, "ev": StartEvent, "return": StopEvent}
    One.go = step(body)
    return One


DRAWN = [("drawn", "Inner")]


async def by_class(self, ctx, ev):
    await ctx.run_child(Inner(), stream="tag", n=1)


async def by_keyword(self, ctx, ev):
    await ctx.run_child(stream="off", workflow=Inner())


async def by_name(self, ctx, ev):
    child = Inner()
    await ctx.run_child(child)


async def by_annotated_name(self, ctx, ev):
    child: Inner
    child = Inner()
    await ctx.run_child(child)


async def by_walrus(self, ctx, ev):
    await ctx.run_child(child := Inner())
    return child


async def by_module_name(self, ctx, ev):
    await ctx.run_child(INNER)


async def by_attribute_of_a_name(self, ctx, ev):
    await ctx.run_child(Holder.child)


async def by_class_of_a_name(self, ctx, ev):
    await ctx.run_child(Holder.kind())


async def by_class_attribute(self, ctx, ev):
    await ctx.run_child(self.inner)


async def by_class_in_class_attribute(self, ctx, ev):
    await ctx.run_child(self.kind())


async def by_init(self, ctx, ev):
    await ctx.run_child(self.plain)


async def twice(self, ctx, ev):
    await ctx.run_child(Inner())
    await ctx.run_child(Inner(), n=2)


@pytest.mark.parametrize(
    "body",
    [
        by_class,
        by_keyword,
        by_name,
        by_annotated_name,
        by_walrus,
        by_module_name,
        by_attribute_of_a_name,
        by_class_of_a_name,
        by_class_attribute,
        by_class_in_class_attribute,
        by_init,
        twice,
    ],
    ids=lambda body: body.__name__,
)
def test_ways_to_name_a_child(body):
    """However plainly a child is named, it is found, and drawn once in its step."""
    assert children_of(one_step(body)) == DRAWN


async def in_a_nursery(ctx, nursery):
    nursery.start_soon(ctx.run_child, Inner())
    nursery.start_soon(ctx.run_child)


def test_a_child_in_a_nursery():
    """``run_child`` among the arguments of a call runs the argument that follows."""
    assert [child.kind for child in read_source(in_a_nursery).children] == [Inner]


async def conditional(self, ctx, ev):
    await ctx.run_child(Inner() if ev.n else Other())


async def conditional_class(self, ctx, ev):
    kind = Inner if ev.n else Other
    await ctx.run_child(kind())


async def conditional_in_init(self, ctx, ev):
    await ctx.run_child(self.either)


async def one_after_another(self, ctx, ev):
    await ctx.run_child(Inner())
    await ctx.run_child(Other())


@pytest.mark.parametrize(
    "body",
    [conditional, conditional_class, conditional_in_init, one_after_another],
    ids=lambda body: body.__name__,
)
def test_several_children(body):
    """Each workflow that a step may run has a frame, in the order of the source."""
    assert children_of(one_step(body)) == [("drawn", "Inner"), ("drawn", "Other")]


async def annotated_in_init(self, ctx, ev):
    await ctx.run_child(self.annotated)


async def parameter_of_init(self, ctx, ev):
    await ctx.run_child(self.given)


def test_children_of_init_by_annotation():
    """What ``__init__`` takes by an annotated parameter is of that class."""
    assert children_of(one_step(annotated_in_init)) == [("drawn", "Other")]
    assert children_of(one_step(parameter_of_init)) == [("drawn", "Other")]


async def default_in_init(self, ctx, ev):
    await ctx.run_child(self.default)


def test_a_default_of_init():
    """``given or Child()`` may be either."""
    assert children_of(one_step(default_in_init)) == [("drawn", "Other"), ("drawn", "Typed")]


async def factory(self, ctx, ev):
    await ctx.run_child(make_inner())


async def looked_up(self, ctx, ev):
    await ctx.run_child(made_elsewhere["inner"])


async def of_a_loop(self, ctx, ev):
    for child in [Inner()]:
        await ctx.run_child(child)


async def imported(self, ctx, ev):
    from tests.drawing.nowhere import Inner  # noqa: PLC0415 - never run

    await ctx.run_child(Inner())


async def shadowed(self, ctx, ev, INNER):
    await ctx.run_child(INNER)


async def unknown_name(self, ctx, ev):
    await ctx.run_child(Nowhere())  # noqa: F821


async def not_a_workflow(self, ctx, ev):
    await ctx.run_child(NoWorkflow())


async def the_base_class(self, ctx, ev):
    await ctx.run_child(Workflow())


async def the_class_itself(self, ctx, ev):
    await ctx.run_child(Inner)


async def own_property(self, ctx, ev):
    await ctx.run_child(self.trap)


async def not_annotated_in_init(self, ctx, ev):
    await ctx.run_child(self.loose)


async def unpacked_in_init(self, ctx, ev):
    await ctx.run_child(self.first)


async def missing_attribute(self, ctx, ev):
    await ctx.run_child(self.nothing)


async def starred(self, ctx, ev):
    await ctx.run_child(*ev.children)


async def of_two_origins(self, ctx, ev):
    child = Inner()
    for child in ev.others:  # noqa: B007
        pass
    await ctx.run_child(child)


def test_a_child_that_can_be_told_in_part():
    """What may be another one as well is drawn, with a dashed box for that."""
    assert children_of(one_step(of_two_origins)) == [*DRAWN, ("unknown", "child")]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (factory, "make_inner()"),
        (looked_up, "made_elsewhere['inner']"),
        (of_a_loop, "child"),
        (imported, "Inner()"),
        (unknown_name, "Nowhere()"),
        (not_a_workflow, "NoWorkflow()"),
        (the_base_class, "Workflow()"),
        (the_class_itself, "Inner"),
        (own_property, "self.trap"),
        (not_annotated_in_init, "self.loose"),
        (unpacked_in_init, "self.first"),
        (missing_attribute, "self.nothing"),
        (starred, "*ev.children"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_children_that_cannot_be_told(body, text):
    """What looking does not tell is a dashed box with the source of the argument; no guesses."""
    cls = one_step(body)

    assert children_of(cls) == [("unknown", text)]
    page = WorkflowGraph(cls).to_html()
    root = ET.fromstring(picture_of(flow_of(cls)).svg)
    (frame,) = (e for e in root.iter() if e.get("class") == "frame unknown")
    assert [e.text for e in frame.iter(f"{SVG}text")] == [text]
    assert "child workflow, not known from the source" in page


def test_a_parameter_hides_a_name_of_the_module():
    """A parameter is not taken for the global of the same name."""
    assert [child.kind for child in read_source(shadowed).children] == [None]


def test_a_child_that_is_no_child():
    """``Child().run()`` starts no child of this run, and is not drawn as one."""

    async def runs(self, ctx, ev):
        await Inner().run()

    assert children_of(one_step(runs)) == []


def test_a_child_of_an_enclosing_function():
    """A class or an object that the step closes over is found."""

    class Local(Other):
        pass

    thing = Local()

    async def closes(self, ctx, ev):
        await ctx.run_child(Local())

    async def closes_over_object(self, ctx, ev):
        await ctx.run_child(thing)

    assert children_of(one_step(closes)) == [("drawn", "Local")]
    assert children_of(one_step(closes_over_object)) == [("drawn", "Local")]


class InThread(Workflow):
    @step
    def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.from_thread.run(ctx.run_child, Inner())
        return StopEvent()


class FromResource(Workflow):
    @step
    async def go(
        self, ctx: Context, ev: StartEvent, child: Annotated[Inner, Resource(make_inner)]
    ) -> StopEvent:
        await ctx.run_child(child)
        return StopEvent()


class Base(Workflow):
    def __init__(self):
        super().__init__()
        self.__child = Inner()

    @step
    async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.run_child(self.__child)
        return StopEvent()


class Derived(Base):
    def __init__(self, more):
        super().__init__()
        self.more = more


@pytest.mark.parametrize("cls", [InThread, FromResource, Base, Derived])
def test_children_of_other_steps(cls):
    """Steps in threads, children from resources, and attributes of a base class are found."""
    assert children_of(cls) == DRAWN


class Free(Workflow):
    inner = INNER


@step(workflow=Free)
async def go(ev: StartEvent, ctx: Context) -> StopEvent:
    await ctx.run_child(ev.inner)
    return StopEvent()


def test_a_step_outside_of_the_class():
    """The first parameter of a function outside of the class is not its workflow."""
    assert children_of(Free) == [("unknown", "ev.inner")]


class Given(Workflow):
    def __init__(self, child):
        super().__init__()
        self.child = child

    @step
    async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.run_child(self.child)
        return StopEvent()


def test_an_object_knows_its_children():
    """Of an object that exists, its attributes tell more than the source of its class."""
    assert children_of(Given) == [("unknown", "self.child")]
    assert children_of(Given(Other())) == [("drawn", "Other")]

    nested = Given(Given(Other()))
    names = [flow.name for flow in flow_of(nested).walk()]
    assert names == ["Given", "Given", "Other"]


def test_objects_that_run_each_other():
    """Two objects that hold each other are drawn once each."""
    one = Given(None)
    other = Given(one)
    one.child = other

    flows = list(flow_of(one).walk())
    assert len(flows) == 2
    (child,) = flows[1].nodes[1].children
    assert (child.kind, child.number, child.hint) == ("again", 0, "the one around this")


class Pair(Workflow):
    def __init__(self):
        super().__init__()
        self.left, self.right = Inner(), Inner()

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Note:
        await ctx.run_child(self.left)
        await ctx.run_child(self.right)
        await ctx.run_child(Inner())
        return Note(text="")

    @step
    async def second(self, ctx: Context, ev: Note) -> StopEvent:
        await ctx.run_child(self.right)
        return StopEvent()


def test_objects_that_look_alike():
    """Objects of one class, and the class itself, have one frame, as long as they look alike."""
    assert children_of(Pair(), "first") == DRAWN
    assert children_of(Pair(), "second") == [("again", "Inner")]


# -- nesting ---------------------------------------------------------------------------------


class Recursive(Workflow):
    @step
    async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.run_child(Recursive())
        return StopEvent()


class Top(Workflow):
    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Note:
        await ctx.run_child(Inner())
        return Note(text="")

    @step
    async def second(self, ctx: Context, ev: Note) -> StopEvent:
        await ctx.run_child(Deepest())
        await ctx.run_child(Top())
        return StopEvent()


def test_recursion_ends_in_a_reference():
    """A workflow that runs itself has a reference to the picture it stands in."""
    (child,) = flow_of(Recursive).nodes[1].children

    assert (child.kind, child.name, child.number) == ("again", "Recursive", 0)
    assert child.hint == "the one around this"
    svg = picture_of(flow_of(Recursive)).svg
    assert '<a href="#flow-0">' in svg
    assert ET.fromstring(svg).get("id") == "flow-0"


def test_each_workflow_is_drawn_once():
    """What is drawn already is a reference that says where; every reference has its goal."""
    second = next(node for node in flow_of(Top).nodes if node.name == "second")

    assert [(c.kind, c.name, c.hint) for c in second.children] == [
        ("again", "Deepest", "drawn in Inner.whole"),
        ("again", "Top", "the one around this"),
    ]
    root = ET.fromstring(picture_of(flow_of(Top)).svg)
    goals = [e.get("id") for e in root.iter() if (e.get("id") or "").startswith("flow-")]
    assert sorted(goals) == ["flow-0", "flow-1", "flow-2"]
    assert {e.get("href") for e in root.iter(f"{SVG}a")} == {"#flow-2", "#flow-0"}


def level_above(below):
    """A workflow whose two steps run the same child."""

    class Level(Workflow):
        @step
        async def left(self, ctx: Context, ev: StartEvent) -> Note:
            await ctx.run_child(below())
            return Note(text="")

        @step
        async def right(self, ctx: Context, ev: Note) -> StopEvent:
            await ctx.run_child(below())
            return StopEvent()

    return Level


def test_many_ways_to_the_same_children():
    """The picture grows with the workflows, not with the ways between them."""
    cls = Deepest
    for _ in range(12):
        cls = level_above(cls)

    assert len(list(flow_of(cls).walk())) == 13


def places(root):
    """Every rectangle of the boxes and frames of a picture, with its class, in page places."""
    found = []

    def walk(element, dx, dy):
        shift = re.match(r"translate\((\S+) (\S+)\)", element.get("transform", ""))
        if shift:
            dx, dy = dx + float(shift[1]), dy + float(shift[2])
        rect = element.find(f"{SVG}rect")
        kind = element.get("class", "").split()[:1]
        if rect is not None and kind in (["step"], ["frame"]):
            x, y, w, h = (float(rect.get(n)) for n in ("x", "y", "width", "height"))
            texts = element.findall(f"{SVG}text")
            found.append((kind[0], texts[0].text, (x + dx, y + dy, x + dx + w, y + dy + h)))
        for inner in element:
            walk(inner, dx, dy)

    walk(root, 0.0, 0.0)
    return found


def test_frames_lie_in_their_steps():
    """Each frame lies within its step, each step of a child within the frame, apart from others."""
    root = ET.fromstring(picture_of(flow_of(Top)).svg)
    at = {(kind, name): box for kind, name, box in places(root)}
    nesting = [
        (("step", "first"), ("frame", "Inner")),
        (("frame", "Inner"), ("step", "half")),
        (("frame", "Inner"), ("step", "whole")),
        (("step", "second"), ("frame", "Top")),
        (("step", "first"), ("step", "think")),
    ]

    for outer, inner in nesting:
        around, (left, top, right, bottom) = at[outer], at[inner]
        assert around[0] < left < right < around[2]
        assert around[1] < top < bottom < around[3]
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(min(box) >= 0 and box[2] <= width and box[3] <= height for box in at.values())


def test_frames_of_one_step_keep_apart():
    """Several frames in one step stand side by side."""
    root = ET.fromstring(picture_of(flow_of(one_step(one_after_another))).svg)
    at = {name: box for kind, name, box in places(root) if kind == "frame"}

    assert at["Inner"][2] < at["Other"][0]


def test_the_page_tells_of_children():
    """The page counts the children, lists their events and the fields of these, and their faults."""

    class Broken(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Note:
            return Note(text="")

    class Parent(Workflow):
        @step
        async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.run_child(Inner())
            await ctx.run_child(Broken())
            return StopEvent()

    page = WorkflowGraph(Parent).to_html()

    assert "1 step, 2 events, 3 child workflows" in page
    table = page.partition("<table>")[2]
    assert '<td ><span>Note</span></td><td ><span class="quiet">text: str</span></td>' in table
    assert "<li>Broken: " in page
    assert "child workflow that the step runs" in page
    assert "child workflow" not in WorkflowGraph(Other).to_html()


class Signs(Workflow):
    @step(timeout=2)
    async def fan(self, ctx: Context, ev: StartEvent | Note) -> list[Note]:
        await ctx.stream.send(Note(text=""))
        return []

    @step
    async def gather(self, evs: list[Note]) -> Note | StopEvent:
        return StopEvent()


class Quiet(Workflow):
    @step
    async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.run_child(Signs())
        return StopEvent()


@pytest.mark.parametrize(
    "meaning",
    [
        "leads back to an earlier step",
        "fan-out: several events",
        "join: waits for several events",
        "timeout of the step",
        "written to the stream",
    ],
)
def test_the_legend_explains_the_children(meaning):
    """Signs that are in the picture of a child only are explained as well."""
    assert meaning in WorkflowGraph(Quiet).to_html()
    assert meaning not in WorkflowGraph(Top).to_html()


def test_names_of_children_stay_text():
    """The name of a child and the source of an argument are text wherever they stand."""
    nasty = "</text><script>alert(1)</script>&\"'"
    cls = type(nasty, (Other,), {})

    async def hostile(self, ctx, ev):
        await ctx.run_child(cls())
        await ctx.run_child(made_elsewhere["<script>&"])

    page = WorkflowGraph(one_step(hostile)).to_html()
    root = ET.fromstring(picture_of(flow_of(one_step(hostile))).svg)
    texts = [e.text for e in root.iter(f"{SVG}text")]

    assert page.count("<script") == 1
    assert nasty in texts
    assert "made_elsewhere['<script>&']" in texts


def test_the_source_of_a_step_is_parsed_once(monkeypatch):
    """One look at each step: reading children and events takes no second parse."""
    parsed = []
    monkeypatch.setattr(
        "sluicegate._definition.source.parse",
        lambda function: parsed.append(function.__qualname__) or parse(function),
    )
    flow_of(Top)

    assert sorted(parsed) == [
        "Deepest.think",
        "Inner.half",
        "Inner.whole",
        "Top.first",
        "Top.second",
    ]


def test_names_that_go_round():
    """Names assigned to each other come to an end, and cannot be told."""

    async def circle(self, ctx, ev):
        one = two  # noqa: F821
        two = one
        await ctx.run_child(two)

    assert children_of(one_step(circle)) == [("unknown", "two")]
