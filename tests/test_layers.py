"""The floors of the house: what may import what, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest


SOURCE = Path(__file__).parent.parent / "src"

#: Top first. A file imports only from floors below its own.
FLOORS = [
    ["sluicegate.__main__", "pytest_sluicegate"],
    ["sluicegate.cli"],
    ["sluicegate"],
    ["sluicegate.drawing", "sluicegate.testing", "sluicegate.responses"],
    ["sluicegate._process_main"],
    ["sluicegate._workflow", "sluicegate._entry"],
    ["sluicegate._seed", "sluicegate._handler", "sluicegate._signals"],
    ["sluicegate._scope", "sluicegate._engine.resuming"],
    ["sluicegate._engine.runner"],
    ["sluicegate._engine.failing", "sluicegate._engine.steering"],
    ["sluicegate._engine.operations"],
    ["sluicegate._engine.snapshots", "sluicegate._engine.machine"],
    ["sluicegate._engine.worker", "sluicegate._engine.suspended", "sluicegate._engine.diagnosis"],
    ["sluicegate._engine.grouping"],
    ["sluicegate._engine.waiting", "sluicegate._engine.keeping"],
    ["sluicegate._engine.joins", "sluicegate._engine.attempts", "sluicegate._engine.holding"],
    ["sluicegate._process_context"],
    ["sluicegate._engine.waits"],
    ["sluicegate._engine.lineage", "sluicegate._engine.clock", "sluicegate._context"],
    ["sluicegate._decorators", "sluicegate._graph", "sluicegate._thread_operations"],
    ["sluicegate._steps", "sluicegate._streams", "sluicegate._branch", "sluicegate._faults"],
    ["sluicegate._nesting", "sluicegate._endings"],
    ["sluicegate._store"],
    ["sluicegate._names"],
    [
        "sluicegate._signature",
        "sluicegate._threads",
        "sluicegate._processes",
        "sluicegate._answers",
    ],
    ["sluicegate._engine.outcome", "sluicegate._engine.stepping"],
    ["sluicegate._process_pool", "sluicegate._thread_places"],
    ["sluicegate._process_start"],
    ["sluicegate._process_worker"],
    ["sluicegate._resources", "sluicegate._drafts"],
    ["sluicegate._configuration"],
    ["sluicegate._decoding", "sluicegate._codec", "sluicegate._json"],
    ["sluicegate._events", "sluicegate._observe"],
    ["sluicegate._retries", "sluicegate._limits", "sluicegate._owners"],
    ["sluicegate._pydantic"],
    [
        "sluicegate._validation",
        "sluicegate._generics",
        "sluicegate._fields",
        "sluicegate._event_methods",
    ],
    ["sluicegate._models"],
    ["sluicegate._annotations", "sluicegate._idioms", "sluicegate._local_names"],
    ["sluicegate._foreign"],
    ["sluicegate._mixing"],
    ["sluicegate._questions"],
    ["sluicegate._exceptions"],
    ["sluicegate._errors"],
    ["sluicegate._backends", "sluicegate._cleanup"],
]


def modules():
    """Yield the name and the file of every module."""
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def floor_of(module):
    """Return the number of a module's floor, 0 being the top."""
    while module:
        for number, floor in enumerate(FLOORS):
            if module in floor:
                return number
        module = module.rpartition(".")[0]
    return None


def imports_of(module, path):
    """Yield each module of sluicegate that a file imports, also inside functions, but not for types."""
    tree = ast.parse(path.read_text())
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sluicegate"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in dict(modules()) else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("sluicegate"))


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value))
def test_imports_run_downward(module, path):
    """A module imports from floors below its own; within a package, from its own package."""
    if module.startswith("sluicegate.llms") or module == "sluicegate._engine":
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for imported in imports_of(module, path):
        same_house = package not in ("sluicegate", "sluicegate._engine") and (
            imported == package or imported.startswith(f"{package}.")
        )

        assert same_house or floor_of(module) < floor_of(imported), f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("module", "path"),
    [item for item in modules() if item[0].startswith("sluicegate.llms")],
    ids=lambda value: str(value),
)
def test_the_models_stand_apart(module, path):
    """``sluicegate.llms`` serves any program: of the rest it knows what a step must close."""
    for imported in imports_of(module, path):
        assert imported.startswith("sluicegate.llms") or imported == "sluicegate._cleanup"


@pytest.mark.parametrize(
    ("module", "path"),
    [item for item in modules() if item[0].startswith("sluicegate.testing._sweeps")],
    ids=lambda value: str(value),
)
def test_the_sweep_stands_apart(module, path):
    """The sweep serves any program: it imports nothing of sluicegate but itself."""
    assert all(name.startswith("sluicegate.testing._sweeps") for name in imports_of(module, path))


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value))
def test_only_the_backends_know_an_event_loop(module, path):
    """Above ``_backends`` nothing imports Trio or AnyIO; the entry and what stands apart may."""
    allowed = ("_backends", "_entry", "llms", "cli", "testing._sweeps")
    if module.startswith(tuple(f"sluicegate.{name}" for name in allowed)):
        return
    names = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }

    assert not {
        name for name in names if name and name.partition(".")[0] in ("trio", "anyio", "asyncio")
    }


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value))
def test_every_file_says_what_it_is_for(module, path):
    """The first line of a file names its subject."""
    assert path.read_text().startswith('"""')


def test_importing_sluicegate_imports_no_event_loop_but_trio():
    """P20: AnyIO, asyncio, msgspec and openai are not imported by ``import sluicegate``."""
    code = (
        "import sys, trio; before = set(sys.modules); import sluicegate; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    imported = set(ast.literal_eval(printed))

    assert "sluicegate" in imported
    assert not imported & {"anyio", "asyncio", "msgspec", "openai", "httpx", "starlette", "rich"}
