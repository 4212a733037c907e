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
    ["penstock.__main__", "pytest_penstock"],
    ["penstock.cli"],
    ["penstock"],
    ["penstock.drawing", "penstock.testing", "penstock.responses"],
    ["penstock._process_main"],
    ["penstock._workflow", "penstock._entry"],
    ["penstock._seed", "penstock._handler", "penstock._signals"],
    ["penstock._scope", "penstock._engine.resuming"],
    ["penstock._engine.runner"],
    ["penstock._engine.failing", "penstock._engine.steering"],
    ["penstock._engine.operations"],
    ["penstock._engine.snapshots", "penstock._engine.machine"],
    ["penstock._engine.worker", "penstock._engine.suspended", "penstock._engine.diagnosis"],
    ["penstock._engine.grouping"],
    ["penstock._engine.waiting", "penstock._engine.keeping"],
    ["penstock._engine.joins", "penstock._engine.attempts", "penstock._engine.holding"],
    ["penstock._process_context"],
    ["penstock._engine.waits"],
    ["penstock._engine.lineage", "penstock._engine.clock", "penstock._context"],
    ["penstock._decorators", "penstock._graph", "penstock._thread_operations"],
    ["penstock._steps", "penstock._streams", "penstock._branch", "penstock._faults"],
    ["penstock._nesting", "penstock._endings"],
    ["penstock._store"],
    ["penstock._names"],
    ["penstock._signature", "penstock._threads", "penstock._processes", "penstock._answers"],
    ["penstock._engine.outcome", "penstock._engine.stepping"],
    ["penstock._process_pool", "penstock._thread_places"],
    ["penstock._process_start"],
    ["penstock._process_worker"],
    ["penstock._resources", "penstock._drafts"],
    ["penstock._configuration"],
    ["penstock._decoding", "penstock._codec", "penstock._json"],
    ["penstock._events", "penstock._observe"],
    ["penstock._retries", "penstock._limits", "penstock._owners"],
    ["penstock._pydantic"],
    ["penstock._validation", "penstock._generics", "penstock._fields", "penstock._event_methods"],
    ["penstock._models"],
    ["penstock._annotations", "penstock._idioms", "penstock._local_names"],
    ["penstock._foreign"],
    ["penstock._mixing"],
    ["penstock._questions"],
    ["penstock._exceptions"],
    ["penstock._errors"],
    ["penstock._backends", "penstock._cleanup"],
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
    """Yield each module of penstock that a file imports, also inside functions, but not for types."""
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
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("penstock"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in dict(modules()) else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("penstock"))


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value))
def test_imports_run_downward(module, path):
    """A module imports from floors below its own; within a package, from its own package."""
    if module.startswith("penstock.llms") or module == "penstock._engine":
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for imported in imports_of(module, path):
        same_house = package not in ("penstock", "penstock._engine") and (
            imported == package or imported.startswith(f"{package}.")
        )

        assert same_house or floor_of(module) < floor_of(imported), f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("module", "path"),
    [item for item in modules() if item[0].startswith("penstock.llms")],
    ids=lambda value: str(value),
)
def test_the_models_stand_apart(module, path):
    """``penstock.llms`` serves any program: of the rest it knows what a step must close."""
    for imported in imports_of(module, path):
        assert imported.startswith("penstock.llms") or imported == "penstock._cleanup"


@pytest.mark.parametrize(
    ("module", "path"),
    [item for item in modules() if item[0].startswith("penstock.testing._sweeps")],
    ids=lambda value: str(value),
)
def test_the_sweep_stands_apart(module, path):
    """The sweep serves any program: it imports nothing of penstock but itself."""
    assert all(name.startswith("penstock.testing._sweeps") for name in imports_of(module, path))


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value))
def test_only_the_backends_know_an_event_loop(module, path):
    """Above ``_backends`` nothing imports Trio or AnyIO; the entry and what stands apart may."""
    allowed = ("_backends", "_entry", "llms", "cli", "testing._sweeps")
    if module.startswith(tuple(f"penstock.{name}" for name in allowed)):
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


def test_importing_penstock_imports_no_event_loop_but_trio():
    """P20: AnyIO, asyncio, msgspec and openai are not imported by ``import penstock``."""
    code = (
        "import sys, trio; before = set(sys.modules); import penstock; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    imported = set(ast.literal_eval(printed))

    assert "penstock" in imported
    assert not imported & {"anyio", "asyncio", "msgspec", "openai", "httpx", "starlette", "rich"}
