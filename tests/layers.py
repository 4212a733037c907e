"""The structure of the source: its layers, its imports, and who reads whose private attributes.

``python -m tests.layers`` prints what breaks a rule, and fails if anything does.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path


SOURCE = Path(__file__).parent.parent / "src"

#: Lowest first. A module imports from lower layers, from its own package, and from what `BESIDE`
#: allows; a name ending in a dot covers a package.
LAYERS = [
    ["_errors", "_exceptions", "_annotations", "_foreign", "_sse", "_events.", "records"],
    ["_loop.", "_data.", "_observers", "_logging"],
    ["_asgi", "_context", "_cursors", "_streams", "_questions", "_definition.", "_state.", "llms."],
    ["_engine."],
    ["_handler", "_scope", "_workflow"],
    ["responses", "drawing.", "durable."],
    ["recording.", "otel.", "testing.", "mcp."],
    ["timeline."],
    ["serve.", "client."],
    [""],
    ["__main__", "cli.", "pytest_sluicegate."],
]
#: Layers whose members may import each other, as long as that makes no circle.
BESIDE = {0, 1, 2, 4, 10}
#: Private attributes of other classes that are read, in the whole source.
MOST_PRIVATE = 40


@cache
def modules() -> dict[str, Path]:
    """Return the file of every module, by its name without the leading ``sluicegate.``."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name.removeprefix("sluicegate").removeprefix(".")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(modules()[module].read_text())


@cache
def imported(module: str) -> set[str]:
    """Return the modules that ``module`` imports: anywhere in it, and for types as well."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            named = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [(_base(module, node), alias.name) for alias in node.names]
        else:
            continue
        for base, name in named:
            if base.partition(".")[0] not in ("sluicegate", "pytest_sluicegate"):
                continue
            base = base.removeprefix("sluicegate").removeprefix(".")
            inner = f"{base}.{name}".removeprefix(".")
            found.add(inner if inner in modules() else base)
    return found - {module}


def _base(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".")
    if modules()[module].name != "__init__.py":
        package.pop()
    package = package[: len(package) - node.level + 1]
    root = [] if package[:1] == ["pytest_sluicegate"] else ["sluicegate"]
    return ".".join([*root, *package, *([node.module] if node.module else [])])


def layer(module: str) -> int | None:
    """Return the number of the layer of a module; None where the table does not have it."""
    for number, names in enumerate(LAYERS):
        if module in names or any(
            name.endswith(".") and f"{module}.".startswith(name) for name in names
        ):
            return number
    return None


def package(module: str) -> str:
    """Return the package of a module: its first name if that is one, else the top level."""
    first = module.partition(".")[0]
    return first if modules().get(first, Path()).name == "__init__.py" else ""


def upward() -> list[str]:
    """Return the imports that do not run down."""
    found = []
    for module in modules():
        own = layer(module)
        if own is None:
            found.append(f"{module} is in no layer")
            continue
        for other in sorted(imported(module)):
            theirs = layer(other)
            same = package(module) and package(module) == package(other)
            if not same and (
                theirs is None or theirs > own or (theirs == own and own not in BESIDE)
            ):
                found.append(f"{module} imports {other}")
    return found


def circles() -> list[str]:
    """Return the sets of modules that import each other, directly or through others."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(module: str, edges: dict[str, set[str]], into: list[str]) -> None:
        stack = [(module, iter(sorted(edges[module])))]
        seen.add(module)
        while stack:
            name, rest = stack[-1]
            for other in rest:
                if other not in seen:
                    seen.add(other)
                    stack.append((other, iter(sorted(edges[other]))))
                    break
            else:
                stack.pop()
                into.append(name)

    edges = {module: imported(module) for module in modules()}
    for module in edges:
        if module not in seen:
            visit(module, edges, order)
    back: dict[str, set[str]] = defaultdict(set)
    for module, others in edges.items():
        for other in others:
            back[other].add(module)
    seen.clear()
    found = []
    for module in reversed(order):
        if module not in seen:
            group: list[str] = []
            visit(module, back, group)
            if len(group) > 1:
                found.append(" - ".join(sorted(group)))
    return found


@cache
def private_names(module: str) -> set[str]:
    """Return the private attributes and functions that the code of a module defines."""
    found = set()
    for node in ast.walk(tree(module)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=ast.Tuple(elts=elements)):
                found |= {e.value for e in elements if isinstance(e, ast.Constant)}
            case _:
                pass
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def private_accesses() -> tuple[list[str], list[str]]:
    """Return the reads of private names of other files: across packages, and within one."""
    across, within = [], []
    defined = {module: private_names(module) for module in modules()}
    stands_apart = "testing._sweeps"  # imports nothing of the rest: what it reads is Trio's
    for module, path in modules().items():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and not (
                isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            ):
                name = node.attr
            elif isinstance(node, ast.ImportFrom) and _base(module, node).startswith("sluicegate"):
                inner = [a.name for a in node.names]
                name = next(
                    (n for n in inner if n.startswith("_") and not _is_module(module, node, n)), ""
                )
            else:
                continue
            if not name.startswith("_") or name.startswith("__") or name in defined[module]:
                continue
            owners = [
                other
                for other, names in defined.items()
                if name in names
                and module.startswith(stands_apart) == other.startswith(stands_apart)
            ]
            if owners:
                is_near = package(module) in {package(other) for other in owners}
                place = f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(node)}"
                (within if is_near else across).append(place)
    return across, within


def _is_module(module: str, node: ast.ImportFrom, name: str) -> bool:
    base = _base(module, node).removeprefix("sluicegate").removeprefix(".")
    return f"{base}.{name}".removeprefix(".") in modules()


def main() -> int:
    """Print every breach of a rule, and the figures."""
    across, within = private_accesses()
    up, round_about = upward(), circles()
    for title, lines in [
        ("runs up", up),
        ("is a circle", round_about),
        ("reads a private name of another package", across),
        ("reads a private name of another file", within),
    ]:
        for line in lines:
            print(f"{title}: {line}")
    print(
        f"{len(modules())} modules, {len(up)} imports that run up, {len(round_about)} circles, private "
        f"names read across packages {len(across)}, across files of a package {len(within)}"
    )
    return bool(up or round_about or across or len(within) > MOST_PRIVATE)


if __name__ == "__main__":
    sys.exit(main())
