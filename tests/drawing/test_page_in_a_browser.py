"""The page in a browser, without a network: zoom, drag, search and the neighbours of a step."""

from __future__ import annotations

import pytest

from sluicegate import StartEvent, StopEvent, Workflow, WorkflowGraph, step
from sluicegate.drawing import Execution
from tests.browser import chromium  # noqa: F401 - a fixture
from tests.drawing.test_drawing import NASTY, Strange, Writer
from tests.drawing.test_execution import EXECUTION, Flow
from tests.drawing.test_marks import many_steps


pytestmark = pytest.mark.slow


def wide(count):
    """A workflow whose start leads to ``count`` steps side by side: wider than any window."""

    async def go(self, ev: StartEvent) -> StopEvent:
        return StopEvent()

    go.__annotations__ = {"ev": StartEvent, "return": StopEvent}
    steps = {f"a_step_of_some_length_{n}": step(go) for n in range(count)}
    return type("Wide", (Workflow,), steps)


@pytest.fixture
def opened(chromium, tmp_path):  # noqa: F811
    """Open the page of a graph in the browser."""

    def open_page(graph, **options):
        path = graph.save(tmp_path / "page.html")
        return chromium.page(path, **options)

    return open_page


def scale(page):
    """The scale that the page shows, and that at which the picture is in fact."""
    told = page.locator(".tools output").inner_text()
    real = page.evaluate(
        "(f => f.getBoundingClientRect().width / f.viewBox.baseVal.width)"
        "(document.querySelector('.view .flow'))"
    )
    assert abs(float(told.split()[0]) / 100 - real) < 0.01
    return real


@pytest.mark.parametrize(("width", "scheme"), [(420, "light"), (1280, "dark")])
def test_every_page_opens_on_the_start(opened, width, scheme):
    """Whatever the window: the start of the run can be seen, and nothing asks for the network."""
    for graph in (
        WorkflowGraph(Writer),
        WorkflowGraph(Flow, execution=EXECUTION),
        WorkflowGraph(many_steps(40)),
        WorkflowGraph(wide(30)),
    ):
        with opened(graph, width=width, scheme=scheme) as page:
            view = page.locator(".view").bounding_box()
            start = page.locator(".view .start").first.bounding_box()

            assert view["x"] <= start["x"]
            assert start["x"] + start["width"] <= view["x"] + view["width"]
            assert view["y"] <= start["y"] <= view["y"] + view["height"]
            # The page itself is never wider than the window.
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_javascript_the_page_is_complete(opened):
    """The picture is there, no smaller than a half, in a frame that scrolls; the tools are not."""
    for graph in (WorkflowGraph(Writer), WorkflowGraph(many_steps(40))):
        with opened(graph, width=420, scripts=False) as page:
            picture = page.locator(".view > .flow")
            natural = int(picture.get_attribute("width"))
            box = picture.bounding_box()

            assert box["width"] <= natural + 1
            assert box["width"] >= min(natural, 0.5 * natural)
            assert box["height"] / box["width"] == pytest.approx(
                int(picture.get_attribute("height")) / natural, rel=0.02
            )
            assert not page.locator(".tools").is_visible()
            assert page.locator(".legend li").first.is_visible()


def test_zoom(opened):
    """Buttons, keys and the wheel with Ctrl zoom; the point below the pointer stays in its place."""
    with opened(WorkflowGraph(many_steps(40)), width=900, height=700) as page:
        begin = scale(page)
        page.locator("[data-act=in]").click()
        assert scale(page) == pytest.approx(begin * 1.25, rel=0.02)
        page.locator("[data-act=real]").click()
        assert scale(page) == pytest.approx(1, rel=0.01)
        page.locator(".view").focus()
        page.keyboard.press("f")
        box, view = (
            page.locator(".view > .flow").bounding_box(),
            page.locator(".view").bounding_box(),
        )
        assert box["width"] <= view["width"]
        assert box["height"] <= view["height"]
        page.keyboard.press("0")

        name = page.locator(".view [data-name=step_number_3] .name")
        name.scroll_into_view_if_needed()
        before = name.bounding_box()
        page.mouse.move(before["x"] + before["width"] / 2, before["y"] + before["height"] / 2)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -120)
        page.keyboard.up("Control")
        page.locator(".tools output").filter(has_not_text="100 %").wait_for()
        after = name.bounding_box()
        assert after["width"] > before["width"]
        assert after["x"] + after["width"] / 2 == pytest.approx(
            before["x"] + before["width"] / 2, abs=3
        )


def test_drag(opened):
    """The picture follows the pointer, and a drag is no click."""
    with opened(WorkflowGraph(wide(30)), width=900, height=700) as page:
        page.locator("[data-act=real]").click()
        view = page.locator(".view")
        at = view.evaluate("v => v.scrollLeft")
        box = view.bounding_box()
        page.mouse.move(box["x"] + 300, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 100, box["y"] + 100, steps=4)
        page.mouse.up()

        assert view.evaluate("v => v.scrollLeft") == pytest.approx(at + 200, abs=2)
        assert page.locator(".far").count() == 0


def test_search(opened):
    """What is typed marks the steps with it in their names, and shows the first; Enter the next."""
    with opened(WorkflowGraph(many_steps(40)), width=420, height=700) as page:
        page.locator(".tools input").fill("number_3")
        assert page.locator(".found").count() == 11  # 3 and 30 to 39
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        seen = page.locator("[data-name=step_number_31]").bounding_box()
        view = page.locator(".view").bounding_box()
        assert view["x"] <= seen["x"] + seen["width"] / 2 <= view["x"] + view["width"]
        assert view["y"] <= seen["y"] + seen["height"] / 2 <= view["y"] + view["height"]

        page.locator(".tools input").fill("nothing like it")
        assert page.locator(".found").count() == 0
        assert page.locator(".tools input.none").count() == 1
        page.keyboard.press("Escape")
        assert page.locator(".tools input").input_value() == ""


def test_a_click_shows_the_neighbours_of_a_step(opened):
    """All but the step, its arrows and their other ends fades; a second click brings it back."""
    with opened(WorkflowGraph(Flow, execution=EXECUTION), width=1280) as page:
        page.locator("[data-name=split] .name").click()
        near = {node.get_attribute("data-name") for node in page.locator(".step:not(.far)").all()}
        assert {"split", "work"} <= near
        assert not {"gather", "hear", "rescue"} & near
        assert page.locator("path.arrow:not(.far)[data-ends]").count() >= 2

        page.keyboard.press("Escape")
        page.locator("[data-name=split] .name").click()
        page.locator("[data-name=split] .name").click()
        assert page.locator(".far").count() == 0


def test_the_keyboard_reaches_every_step(opened):
    """Steps are in the order of the Tab key, and Enter does what a click does."""
    with opened(WorkflowGraph(Writer)) as page:
        page.locator("[data-name=review]").focus()
        page.keyboard.press("Enter")

        assert page.locator(".selected").get_attribute("data-name") == "review"


def test_hostile_names_do_nothing(opened):
    """A page of hostile names runs nothing but its own script, and that works."""
    with opened(WorkflowGraph(type(NASTY, (Strange,), {"__doc__": NASTY}))) as page:
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.locator("[data-act=in]").click()

        assert page.evaluate("document.scripts.length") == 1
    nasty = Execution("<img src=x onerror=alert(1)>", outcome="<script>alert(1)</script>")
    with opened(WorkflowGraph.of_execution(nasty)) as page:
        assert page.evaluate("document.images.length + document.scripts.length") == 1


def test_the_page_works_in_the_frame_of_a_notebook(chromium, tmp_path):  # noqa: F811
    """In a sandbox without an origin of its own the script runs as well."""
    path = tmp_path / "notebook.html"
    html = WorkflowGraph(Writer)._repr_mimebundle_()["text/html"]
    path.write_text(f"<!DOCTYPE html><title>notebook</title>{html}")
    with chromium.page(path, also=["about:srcdoc"]) as page:
        frame = page.frame_locator("iframe")
        before = frame.locator("output").inner_text()
        frame.locator("[data-act=in]").click()

        assert frame.locator("output").inner_text() != before
