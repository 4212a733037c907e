"""The documentation is true: every block of code in it runs, and prints what it says."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import re
import runpy
import sys
import types
from contextvars import copy_context
from pathlib import Path
from types import FunctionType

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


async def run_cell(block, namespace):
    """Run a block as IPython does: with ``await`` where there is any, else as a plain program."""
    namespace["__builtins__"] = builtins  # a function looks for them there
    result = FunctionType(block, namespace)()
    if inspect.iscoroutine(result):
        await result


@pytest.mark.slow_for("cancellation")
@pytest.mark.parametrize("page", [p for p in PAGES if programs(p)], ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_and_prints_what_stands_below_it(page, capsys, monkeypatch):
    """The blocks of a page are one program, in order; a text block is what the one before prints."""
    module = types.ModuleType("__main__")  # annotations are resolved in it
    monkeypatch.setitem(sys.modules, "__main__", module)
    namespace = vars(module)
    # The cells of a notebook share an event loop, and each is a task in a context of its own.
    kernel = asyncio.Runner() if page.stem == "notebooks" else None
    for line, code, expected in programs(page):
        # The empty lines make tracebacks point into the page.
        flags = 0 if kernel is None else ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        block = compile("\n" * (line - 1) + code, str(page), "exec", flags)
        if kernel is None:
            exec(block, namespace)
        else:
            kernel.run(run_cell(block, namespace), context=copy_context())
        printed = capsys.readouterr().out

        assert printed == (expected or printed), f"{page.name}, line {line}"
    if kernel is not None:
        kernel.close()


def test_every_page_is_listed_and_every_link_leads_somewhere():
    """The pages of docs/ stand in the table of contents, and relative links exist."""
    listed = re.findall(r"^([\w-]+)$", (ROOT / "docs/index.md").read_text(), re.MULTILINE)

    assert {page.stem for page in PAGES[1:]} - {"index"} == set(listed)

    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_pictures_show_the_programs_of_their_pages():
    """``docs/_static`` has what ``python docs/draw.py`` writes now."""
    draw = runpy.run_path(str(ROOT / "docs/draw.py"))

    for path, picture in draw["PICTURES"].items():
        assert path.read_text() == picture(), "run `python docs/draw.py`"
