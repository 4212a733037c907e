"""The page of the server in a browser: start, watch, answer, cancel, by the keyboard alone.

Without a network: every request goes to the server of the test.
"""

from __future__ import annotations

import ast
import json
import re
from contextlib import contextmanager
from importlib.resources import files
from typing import Literal

import attrs
import pytest
import trio

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
from sluicegate.serve import asgi_app, bearer_token
from sluicegate.serve._page_data import page_files
from tests.browser import chromium
from tests.serve.in_thread import InThread


__all__ = ["chromium"]

slow = pytest.mark.slow

NASTY = "<img src=x onerror=alert(1)>\"'&\u202e"
REFUSED = "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET", "INCOMPLETE"


class Brief(StartEvent):
    topic: str
    parts: int = 3


class Part(Event):
    number: int


class Written(Event):
    number: int


class Found(Event):
    text: str


class Draft(InputRequiredEvent):
    question: str


class Verdict(HumanResponseEvent):
    publish: bool
    comment: str | None = None


class Essay(Workflow[str]):
    """Writes an essay, and asks whether it shall be published."""

    @step
    async def plan(self, ctx: Context, ev: Brief) -> list[Part]:
        await ctx.store.set("topic", ev.topic)
        ctx.write_event_to_stream(Found(text=ev.topic))
        return [Part(number=number) for number in range(ev.parts)]

    @step
    async def write(self, ev: Part) -> Written:
        return Written(number=ev.number)

    @step
    async def assemble(self, evs: list[Written]) -> Draft:
        return Draft(question=f"Publish {len(evs)} parts?")

    @step
    async def publish(self, ev: Verdict) -> StopEvent:
        return StopEvent(result=f"{ev.publish} {ev.comment}")


class Ticks(Workflow[int]):
    """Publishes an event whenever the test lets it."""

    def __init__(self):
        super().__init__()
        self.send, self.receive = trio.open_memory_channel[int](100)

    @step
    async def tick(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async for number in self.receive:
            if number < 0:
                break
            ctx.write_event_to_stream(Found(text=f"tick {number}"))
        return StopEvent(result=1)


class Failing(Workflow[int]):
    """Fails."""

    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise LookupError(NASTY)


@pytest.fixture
def served():
    """Serves workflows."""

    @contextmanager
    def serve(workflows, **options):
        with InThread(lambda: asgi_app(workflows, **options)).running() as server:
            yield server

    return serve


def start(page, name, event, run_id):
    """Start a run as another client would."""
    return page.evaluate(
        """([name, event, id]) => fetch(`workflows/${name}/run-nowait`, {method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify({start_event: event, handler_id: id})}).then((one) => one.json())""",
        [name, event, run_id],
    )


def press_tab_to(page, name):
    """Press Tab until an element with an accessible name has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => { const one = document.activeElement;
            return (one.labels?.[0]?.textContent || one.getAttribute("aria-label") || one.textContent); }"""
        )
        if found.strip() == name:
            return
    pytest.fail(f"the Tab key does not reach {name!r}")


# -- by the keyboard alone ---------------------------------------------------------------------------


@slow
def test_start_watch_answer_and_cancel_by_keyboard(chromium, served):
    """A run is started, watched, answered, another one cancelled with a reason; no pointer is used."""
    with served({"essay": Essay()}) as server, chromium.site(server.url) as page:
        page.get_by_text("No runs yet").wait_for()
        page.keyboard.press("s")
        page.locator("textarea:focus").wait_for()
        page.keyboard.type("water")
        page.keyboard.press("Control+Enter")

        page.get_by_text("Publish 3 parts?", exact=True).wait_for()
        page.locator(".step.done[data-name=write] .badge").wait_for()
        assert page.locator("[data-name=write] .badge").text_content() == "✓ 3"
        assert "water" in page.locator(".events").inner_text()
        press_tab_to(page, "publish")
        page.keyboard.press("Space")
        press_tab_to(page, "Set comment")
        page.keyboard.press("Enter")
        press_tab_to(page, "comment")
        page.keyboard.type("fine")
        page.keyboard.press("Control+Enter")
        page.get_by_text("True fine", exact=True).wait_for()
        page.locator(".facts .status.completed").wait_for()

        page.keyboard.press("Escape")
        page.keyboard.press("s")
        page.locator("textarea:focus").wait_for()
        page.keyboard.type("fire")
        press_tab_to(page, "Start the run")
        page.keyboard.press("Enter")
        page.locator(".question").wait_for()
        press_tab_to(page, "Graph")
        page.keyboard.press("ArrowRight")
        assert page.locator("[role=tab]:focus").inner_text() == "Timeline"
        page.frame_locator(".timeline").get_by_text("5 invocations").wait_for()
        page.keyboard.press("ArrowRight")
        page.locator(".tab-panel").get_by_text("fire").wait_for()
        page.keyboard.press("c")
        page.locator("dialog input:focus").wait_for()
        page.keyboard.type("no longer needed")
        page.keyboard.press("Enter")
        page.locator(".facts .status.cancelled").wait_for()
        page.locator(".outcome").get_by_text("no longer needed").wait_for()

        page.keyboard.press("g")
        page.locator(".runs .status.cancelled").wait_for()
        for row in (1, 2):
            page.keyboard.press("j")
            page.locator(f"tr:nth-child({row}) .run-link:focus").wait_for()
        page.keyboard.press("Enter")
        page.locator(".facts .status.completed").wait_for()
        page.keyboard.press("?")
        page.locator("dialog").get_by_text("find a run").wait_for()
        page.keyboard.press("Escape")
        assert page.locator("dialog").count() == 0


@slow
def test_the_list_is_live_and_filtered(chromium, served):
    """Runs appear and change by themselves; filters are in the address, which can be opened again."""
    workflows = {"ticks": Ticks(), "failing": Failing()}
    with served(workflows) as server, chromium.site(server.url) as page:
        page.get_by_text("No runs yet").wait_for()
        start(page, "ticks", {}, "one")
        page.locator(".runs .status.running").wait_for()
        server.call(lambda: workflows["ticks"].send.send_nowait(-1))
        page.locator(".runs .status.completed").wait_for()
        start(page, "failing", {}, "two")
        page.locator(".runs .status.failed").wait_for()
        assert page.locator(".runs .error-line").inner_text() == "LookupError in the step fail"

        page.get_by_role("button", name=re.compile("Failed")).click()
        assert page.locator(".runs tbody tr").count() == 1
        page.reload()
        page.locator(".runs tbody tr").wait_for()
        assert page.locator(".runs tbody tr").count() == 1
        page.keyboard.press("/")
        page.keyboard.type("nothing like it")
        page.get_by_text("No run matches").wait_for()
        page.get_by_text("Show all runs").click()
        assert page.locator(".runs tbody tr").count() == 2


# -- connections -----------------------------------------------------------------------------------


@slow
def test_a_lost_connection_is_taken_up_by_cursor(chromium, served):
    """The page says that the connection is lost and is back; no event is missing or there twice."""
    ticks = Ticks()
    with served({"ticks": ticks}) as server, chromium.site(server.url, fails=REFUSED) as page:
        tick = lambda number: server.call(lambda: ticks.send.send_nowait(number))  # noqa: E731
        start(page, "ticks", {}, "one")
        page.goto(f"{server.url}#/runs/one")
        for number in range(3):
            tick(number)
        page.get_by_text('text="tick 2"').wait_for()

        def while_down():
            page.get_by_text("connection lost, trying again").wait_for()
            tick(3)

        server.drop_connections(while_down)
        page.get_by_text("the stream continues after event 3").wait_for()
        tick(4)
        tick(-1)
        page.locator(".stream-view .over").wait_for()
        texts = page.locator(".entry .brief").all_inner_texts()
        assert texts == [*(f'text="tick {number}"' for number in range(5)), "result=1"]
        assert page.locator(".banner").count() == 0


@slow
def test_a_restart_without_a_store_is_told(chromium, served):
    """The page says that the server was restarted, and that the run is gone; what it knew stays in view."""
    with (
        served({"essay": Essay()}) as server,
        chromium.site(server.url, fails=[*REFUSED, "404"]) as page,
    ):
        start(page, "essay", {"topic": "water"}, "one")
        page.goto(f"{server.url}#/runs/one")
        page.get_by_text('text="water"').wait_for()
        page.locator(".question").wait_for()
        server.restart(lambda: page.locator(".banner").wait_for())
        page.get_by_text("The server was restarted").wait_for()
        page.get_by_text("The server no longer has this run").wait_for()
        assert page.get_by_text('text="water"').is_visible()
        page.keyboard.press("g")
        page.get_by_text("No runs yet").wait_for()


@slow
def test_a_stored_run_is_answered_after_a_restart(chromium, served, tmp_path):
    """With a store the page goes on where it was: the stream by its cursor, the question, its answer."""
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    with (
        served({"essay": Essay()}, run_store=store) as server,
        chromium.site(server.url, fails=REFUSED) as page,
    ):
        start(page, "essay", {"topic": "water"}, "one")
        page.goto(f"{server.url}#/runs/one")
        page.get_by_label("publish").check()
        server.restart(lambda: page.locator(".banner").wait_for())
        page.get_by_text("The server was restarted").wait_for()
        page.get_by_text("the stream continues after event 2").wait_for()
        # What happened before the restart is told by the store, and what was filled in is still there.
        for name in ("plan", "write", "assemble"):
            page.locator(f".step.done[data-name={name}]").wait_for()
        assert page.get_by_label("publish").is_checked()
        page.get_by_role("button", name="Send the answer").click()
        page.get_by_text("True None", exact=True).wait_for()
        page.locator(".stream-view .over").wait_for()
        assert page.locator(".entry .type").all_inner_texts() == ["Found", "Draft", "StopEvent"]
        page.locator(".step.done[data-name=publish]").wait_for()
        # A store without a history has kept nothing from before.
        page.get_by_text("since the run was last continued").wait_for()


@slow
def test_a_token_stays_in_the_tab(chromium, served):
    """The page asks for the token, keeps it for the session only, and sends it with every request."""
    with (
        served({"essay": Essay()}, authenticate=bearer_token("secret")) as server,
        chromium.site(server.url, fails=["401"]) as page,
    ):
        for text in ("wrong", "secret"):
            page.locator("input[type=password]:focus").wait_for()
            page.get_by_label("Token").fill(text)
            page.keyboard.press("Enter")
            if text == "wrong":
                page.get_by_text("refused the last token").wait_for()
        page.get_by_text("No runs yet").wait_for()
        page.keyboard.press("s")
        page.locator("textarea:focus").wait_for()
        page.keyboard.type("water")
        page.keyboard.press("Control+Enter")
        page.get_by_text('text="water"').wait_for()
        page.locator(".step.done[data-name=plan]").wait_for()

        assert page.evaluate("localStorage.length") == 0
        assert page.evaluate("document.cookie") == ""
        assert "secret" not in page.url
        page.get_by_role("button", name="Forget the token").click()
        page.get_by_label("Token").wait_for()
        assert page.evaluate("sessionStorage.length") == 0


@slow
def test_a_read_only_page_offers_nothing_to_change(chromium, served):
    """There is no button to start, answer or cancel."""
    essay = Essay()
    with served({"essay": essay}, read_only=True) as server, chromium.site(server.url) as page:
        page.get_by_text("No runs yet").wait_for()
        page.get_by_text("read-only", exact=True).wait_for()
        assert page.get_by_text("Start").count() == 0
        page.keyboard.press("s")
        page.get_by_text("This page is read-only").wait_for()
        assert page.locator("form").count() == 0


# -- forms -------------------------------------------------------------------------------------------


class Item(Event):
    name: str
    amount: float = 1.5


class Everything(StartEvent):
    """Every kind of field."""

    text: str
    whole: int
    number: float = 0.5
    yes: bool = False
    colour: Literal["red", "green"] = "red"
    maybe: str | None = None
    either: int | Item = 1
    items: list[Item] = attrs.field(factory=list)
    pair: tuple[int, str] = (1, "a")
    weights: dict[str, int] = attrs.field(factory=dict)
    anything: object = None


class Taking(Workflow[str]):
    """Returns what it was started with."""

    @step
    async def take(self, ev: Everything) -> StopEvent:
        if ev.whole == 13:
            raise LookupError
        return StopEvent(result=repr(attrs.asdict(ev)))


class Free(Workflow[str]):
    """Declares no fields."""

    @step
    async def take(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=repr(sorted(ev.to_dict().items())))


@slow
def test_forms_are_made_from_the_schema(chromium, served):
    """Each kind of field has a control, and the workflow gets what was typed, of its type."""
    workflows = {"taking": Taking(), "free": Free()}
    with served(workflows) as server, chromium.site(f"{server.url}#/start/taking") as page:
        field = lambda name: page.get_by_label(name, exact=True)  # noqa: E731
        page.get_by_text("Every kind of field").or_(field("text")).first.wait_for()
        field("text").fill('a "text"')
        field("whole").fill("x")
        page.get_by_role("button", name="Start the run").click()
        page.get_by_text('"x" is no whole number.').wait_for()
        assert page.locator(":focus").get_attribute("aria-invalid") == "true"
        field("whole").fill("123456789012345678901")
        field("yes").check()
        field("colour").select_option("green")
        page.get_by_label("Set maybe").click()
        field("maybe").fill("so")
        field("either").first.select_option("Item")
        page.locator(".variant").get_by_label("name", exact=True).fill("n")
        page.get_by_label("Set items").click()
        page.get_by_role("button", name="Add an item").click()
        page.locator(".row").get_by_label("name", exact=True).fill("first")
        page.get_by_label("Set weights").click()
        page.get_by_role("button", name="Add a member").click()
        page.locator(".row.pair").get_by_label("Name").fill("__proto__")
        page.locator(".row.pair").get_by_label("Value").fill("7")
        field("anything").fill('{"a": [1, 2.50]}')
        page.get_by_text("taken as object").wait_for()
        page.get_by_role("button", name="Edit as JSON").click()
        raw = json.loads(page.get_by_label("JSON").input_value())
        assert raw["weights"] == {"__proto__": 7}
        page.get_by_role("button", name="Back to the form").click()
        # A number of this size is not what JavaScript makes of it.
        field("whole").fill("123456789012345678901")
        page.get_by_role("button", name="Start the run").click()
        page.locator(".outcome .text").wait_for()
        made = ast.literal_eval(page.locator(".outcome .text").inner_text())
        assert made == {
            "text": 'a "text"',
            "whole": 123456789012345678901,
            "number": 0.5,
            "yes": True,
            "colour": "green",
            "maybe": "so",
            "either": {"name": "n", "amount": 1.5},
            "items": [{"name": "first", "amount": 1.5}],
            "pair": (1, "a"),
            "weights": {"__proto__": 7},
            "anything": {"a": [1, 2.5]},
        }

        page.goto(f"{server.url}#/start/free")
        for row, (name, value) in enumerate([("a", "1"), ("b", "plain text")]):
            page.get_by_role("button", name="Add a field").click()
            page.locator(".row.pair").nth(row).get_by_label("Name").fill(name)
            page.locator(".row.pair").nth(row).get_by_label("Value").fill(value)
        page.get_by_role("button", name="Start the run").click()
        page.get_by_text("[('a', 1), ('b', 'plain text')]", exact=True).wait_for()


# -- hostile names and values --------------------------------------------------------------------------


class Hostile(InputRequiredEvent):
    text: str


class Reply(HumanResponseEvent):
    value: str = attrs.field(metadata={"description": NASTY})


def hostile_workflow():
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set(NASTY, NASTY)
        ctx.write_event_to_stream(Found(text=NASTY))
        found = await ctx.wait_for_event(Reply, Hostile(text=NASTY))
        return StopEvent(result={NASTY: found.value})

    return type(NASTY, (Workflow,), {"ask": ask, "__doc__": NASTY, "__module__": __name__})


@slow
def test_hostile_names_and_values_are_text(chromium, served):
    """Markup in names, values, questions, states, reasons and errors is shown, and makes no element."""
    workflow = hostile_workflow()()
    with (
        served({"hostile": workflow, "failing": Failing()}) as server,
        chromium.site(server.url, fails=["404"]) as page,
    ):
        start(page, "hostile", {NASTY: NASTY}, "one")
        page.goto(f"{server.url}#/runs/one")
        page.locator(".question").wait_for()
        assert page.locator(".asked").inner_text() == NASTY
        assert page.locator(".question .about").inner_text() == NASTY
        for tab in ("timeline", "state", "details", "graph"):
            page.goto(f"{server.url}#/runs/one/{tab}")
            page.locator(f"#tab-{tab}[aria-selected=true]").wait_for()
            if tab == "timeline":
                page.frame_locator(".timeline").locator("html[data-ready]").wait_for()
            elif tab == "state":
                assert NASTY in page.locator(".tab-panel .tree").inner_text()
        page.get_by_label("value", exact=True).fill(NASTY)
        page.get_by_role("button", name="Send the answer").click()
        page.locator(".outcome .text").wait_for()
        assert page.locator(".outcome .text").inner_text() == NASTY
        start(page, "failing", {}, "two")
        page.goto(f"{server.url}#/runs/two")
        page.get_by_text("LookupError in the step fail").wait_for()
        page.goto(f"{server.url}#/runs/{NASTY}")
        page.get_by_text("does not have this run").wait_for()

        assert page.evaluate("document.images.length") == 1  # the page's own sign
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.querySelectorAll('[onerror]').length") == 0


# -- looks ---------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize(("width", "scheme"), [(420, "light"), (1280, "dark")])
def test_no_view_has_a_serious_fault(chromium, served, width, scheme):
    """No view is wider than its window, and axe finds no serious fault in any, whatever the names."""
    axe = pytest.importorskip(
        "axe_playwright_python", reason="axe is not installed: pip install axe-playwright-python"
    )
    script = (files(axe) / "axe.min.js").read_text(encoding="utf-8")
    workflows = {"essay": Essay(), "failing": Failing(), "a" * 120: Free()}
    with (
        served(workflows) as server,
        chromium.site(server.url, width=width, scheme=scheme) as page,
    ):
        start(page, "essay", {"topic": "water " * 40}, "r" * 190)
        start(page, "failing", {}, "two")
        start(page, "a" * 120, {}, "three")
        page.evaluate(f"{script};0")
        found = []
        for where, wanted in {
            "": ".runs",
            "runs/" + "r" * 190: ".question .buttons",
            "runs/two/details": ".facts-list",
            "start/essay": ".start-form .buttons",
        }.items():
            page.goto(f"{server.url}#/{where}")
            page.locator(wanted).first.wait_for()
            page.locator("h1").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, where
            options = {
                "iframes": False,
                "resultTypes": ["violations"],
                "runOnly": ["wcag2a", "wcag2aa"],
            }
            faults = page.evaluate("options => axe.run(document, options)", options)["violations"]
            found += [
                (where[:20], fault["id"], fault["nodes"][0]["html"][:200])
                for fault in faults
                if fault["impact"] in ("serious", "critical")
            ]
        assert found == []


# -- files -----------------------------------------------------------------------------------------------


def test_the_policy_of_every_file_allows_nothing_unsafe():
    """Each file has a Content-Security-Policy, of which no part is unsafe; only the timeline may be framed."""
    for name, file in page_files().items():
        policy = file.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "*" not in policy
        framed = "'self'" if name == "timeline.html" else "'none'"
        assert policy.endswith(f"frame-ancestors {framed}")


def test_the_page_makes_no_markup_of_texts():
    """No file of the page sets markup from a text, has an inline script or style, or names another server."""
    for name, file in page_files().items():
        if name.startswith("vendor/") or name in ("timeline.html", "graph.css"):
            continue
        text = file.body.decode()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|dangerously|document\.write", text
        )
        assert not re.search(r"\beval\(|new Function|javascript:", text)
        if name.endswith(".html"):
            assert not re.search(
                r"\sstyle=|\son\w+=|<style|<script(?! type=\"module\" src=\")", text
            )
        urls = re.findall(r"https?://[^\s\"'`)]+", text)
        assert [url for url in urls if url != "http://www.w3.org/2000/svg"] == [], name
