"""The page of a timeline in a browser without a network."""

from __future__ import annotations

import pytest

from sluicegate.recording import Recording
from sluicegate.timeline import write_timeline
from tests.browser import chromium
from tests.recording import by_hand
from tests.timeline.test_timeline import evil


__all__ = ["chromium"]


@pytest.fixture
def page_of(tmp_path):
    """Writes the page of records."""

    def write(records):
        path = tmp_path / "run.html"
        write_timeline(Recording.from_records([records]), path)
        return path

    return write


def open_(page):
    page.wait_for_selector("html[data-ready]")
    page.locator("#canvas").focus()
    return page.locator("#panel")


def test_read_search_zoom_and_fold(chromium, page_of):
    """The keyboard and the mouse reach everything that the page tells."""
    with chromium.page(page_of(by_hand.fan_out())) as page:
        panel = open_(page)
        assert "Critical path" in panel.inner_text()

        page.keyboard.press("n")
        assert panel.locator("h2").inner_text() == "begin #1"
        page.keyboard.press("e")
        assert panel.locator("h2").inner_text() == "work #2"
        page.keyboard.press("c")
        assert panel.locator("h2").inner_text() == "begin #1"
        panel.get_by_role("button", name="work #3").click()
        assert panel.locator("h2").inner_text() == "work #3"
        assert "500 ms" in panel.inner_text()  # queued

        page.keyboard.press("/")
        page.keyboard.type("Done")
        assert page.locator("#found").inner_text() == "3"
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        for key in ("z", "+", "-", "f", "k", "0"):
            page.keyboard.press(key)
        assert "folded" in page.locator("#say").inner_text()
        page.select_option("#group", "branch")
        page.select_option("#outcome", "2")
        assert page.locator("#found").inner_text() == "none"


def test_a_click_on_a_bar(chromium, page_of):
    """A click selects the bar, and one beside the bars shows the run again."""
    with chromium.page(page_of(by_hand.cancelled()), scheme="dark") as page:
        panel = open_(page)
        box = page.locator("#canvas").bounding_box()
        page.mouse.click(box["x"] + 260, box["y"] + 92)
        assert panel.locator("h2").inner_text() == "work #1"
        page.mouse.click(box["x"] + 260, box["y"] + box["height"] - 30)
        assert panel.locator("h2").inner_text() == "Flow"
        panel.get_by_role("button", name="run by owner: enough").click()
        assert "Slowest to end (3)" in panel.inner_text()
        assert panel.locator("li").first.inner_text() == "work #2 3 s"


def test_hostile_values(chromium, page_of):
    """Nothing of a value is run, and the page shows it as text."""
    with chromium.page(page_of(evil()), width=420) as page:
        panel = open_(page)
        page.keyboard.press("n")
        assert "alert(1)" in panel.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_scripts(chromium, page_of):
    """The page is a picture where scripts are switched off."""
    with chromium.page(page_of(by_hand.fan_out()), scripts=False) as page:
        assert page.locator("svg rect").count() == 6
        assert page.locator("#app").is_hidden()
