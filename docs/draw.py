"""Draw the picture of the README's workflow: ``python docs/draw.py`` writes ``docs/_static/writer.svg``."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

from sluicegate.drawing import page_of_all_possible_flows


ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "_static" / "writer.svg"


def workflow_of_the_readme() -> Any:
    """Return the class that the first program of the README defines; the program is not run."""
    program = re.search(
        r"^```python\n(.*?)^trio\.run", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert program is not None
    module = types.ModuleType("readme")
    sys.modules["readme"] = module
    exec(program[1], vars(module))  # noqa: S102 - it is our own README
    return vars(module)["Writer"]


def picture() -> str:
    """Return the picture as an SVG file with its style sheet inside."""
    page = page_of_all_possible_flows(workflow_of_the_readme())
    style = re.search(r"<style>.*?</style>", page, re.DOTALL)
    drawing = re.search(r'<svg class="flow" xmlns.*?</svg>', page, re.DOTALL)
    assert style is not None
    assert drawing is not None
    start, _, rest = drawing[0].partition("\n")
    return f"{start}\n{style[0]}\n{rest}\n"


if __name__ == "__main__":
    TARGET.write_text(picture())
