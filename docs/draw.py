"""Draw the picture of the README's workflow: ``python docs/draw.py`` writes ``docs/_static/writer.svg``."""

from __future__ import annotations

import linecache
import re
import sys
import types
from pathlib import Path
from typing import Any

from sluicegate.drawing import WorkflowGraph


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
    # The drawing reads the source of the steps, which comes from here.
    linecache.cache["<readme>"] = (len(program[1]), None, program[1].splitlines(True), "<readme>")
    exec(compile(program[1], "<readme>", "exec"), vars(module))  # noqa: S102 - it is our own README
    return vars(module)["Writer"]


def picture() -> str:
    """Return the picture as an SVG file."""
    return WorkflowGraph(workflow_of_the_readme()).to_svg()


if __name__ == "__main__":
    TARGET.write_text(picture())
