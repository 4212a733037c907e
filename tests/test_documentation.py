"""The documentation is true: every block of code in it runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def programs(page: Path) -> list[tuple[int, str, str | None]]:
    """Return the Python blocks of a page: line, code, and the text block right behind it."""
    text = page.read_text()
    blocks = list(BLOCK.finditer(text))
    found = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=False):
        if block[1] != "python":
            continue
        is_output = (
            following is not None
            and following[1] == "text"
            and not text[block.end() : following.start()].strip()
        )
        line = text[: block.start()].count("\n") + 2
        found.append((line, block[2], following[2] if is_output else None))
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if programs(p)], ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_and_prints_what_stands_below_it(page, capsys):
    """The blocks of a page are one program, in order; a text block is what the one before prints."""
    namespace = {"__name__": "__main__"}
    for line, code, expected in programs(page):
        # The empty lines make tracebacks point into the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
        printed = capsys.readouterr().out

        assert printed == (expected or printed), f"{page.name}, line {line}"


def test_every_page_is_listed_and_every_link_leads_somewhere():
    """The pages of docs/ stand in the table of contents, and relative links exist."""
    listed = re.findall(r"^([\w-]+)$", (ROOT / "docs/index.md").read_text(), re.MULTILINE)

    assert {page.stem for page in PAGES[1:]} - {"index"} == set(listed)

    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
