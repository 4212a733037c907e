"""Pages in a headless Chromium without a network: for tests of what the project draws.

A module takes the fixture by ``from tests.browser import chromium``; it is skipped, with the reason,
where there is no Chromium or no Playwright.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Chromium:
    """A browser; ``page`` opens a file in it."""

    def __init__(self, browser):
        self._browser = browser

    @contextmanager
    def page(
        self, path, *, width=1280, height=900, scheme="light", scripts=True, also=(), **options
    ):
        """Open the file of a page; at the end nothing may have gone wrong in it.

        No console error, no error of a script, and no request but that for the file itself and
        those of ``also``.
        """
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            java_script_enabled=scripts,
            offline=True,
            **options,
        )
        page = context.new_page()
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.goto(path.resolve().as_uri())
        yield page
        context.close()
        assert errors == []
        assert set(requests) <= {path.resolve().as_uri(), *also}

    @contextmanager
    def site(self, url, *, width=1280, height=900, scheme="light", fails=(), **options):
        """Open a page of a server on this machine; at the end nothing may have gone wrong in it.

        No error of a script, no request to another server, nothing that its Content-Security-Policy
        forbade, and no console error but those with one of the texts in ``fails``.
        """
        context = self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        # One second of a busy machine may be none of the browser's.
        context.set_default_timeout(15_000)
        page = context.new_page()
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(url)
        yield page
        context.close()
        assert [text for text in errors if not any(part in text for part in fails)] == []
        assert {request.split("/")[2] for request in requests} == {url.split("/")[2]}


@pytest.fixture(scope="module")
def chromium():
    """A Chromium for the tests of a module."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"there is no Chromium here: none of {', '.join(NAMES)}")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield Chromium(browser)
        browser.close()
