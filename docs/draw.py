"""Draw the pictures of the README and the guide: ``python docs/draw.py`` writes them to ``docs/_static``."""

from __future__ import annotations

import linecache
import re
import sys
import types
from pathlib import Path
from typing import Any

from sluicegate.drawing import WorkflowGraph


ROOT = Path(__file__).parent.parent
STATIC = ROOT / "docs" / "_static"


def program_of(page: str, contains: str, until: str) -> dict[str, Any]:
    """Run the block of a page that contains a text, as far as another text; return its names."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
    (block,) = (block for block in blocks if contains in block)
    program, found, _ = block.partition(until)
    assert found
    name = f"<{page}>"
    module = types.ModuleType(name)
    sys.modules[name] = module
    # The drawing reads the source of the steps, which comes from here.
    linecache.cache[name] = (len(program), None, program.splitlines(True), name)
    exec(compile(program, name, "exec"), vars(module))  # noqa: S102 - it is our own page
    return vars(module)


def writer() -> str:
    """Return the picture of the README's first program."""
    return WorkflowGraph(program_of("README.md", "class Writer", "\ntrio.run")["Writer"]).to_svg()


def execution() -> str:
    """Return the picture of the run that the guide describes."""
    names = program_of("docs/observe.md", "execution = Execution", "\nprint")
    return WorkflowGraph(names["Research"], execution=names["execution"]).to_svg()


PICTURES = {STATIC / "writer.svg": writer, STATIC / "execution.svg": execution}


if __name__ == "__main__":
    for path, picture in PICTURES.items():
        path.write_text(picture())
