"""What the source of a step tells beyond its signature: the events that it writes to the stream."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

from penstock._events import Event


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def written_events(function: Callable[..., Any]) -> tuple[type[Event], ...]:
    """Return the event classes that ``function`` writes to the stream, in the order of its lines.

    Only what stands in the function itself is found, and only where the class can be told by
    looking: ``ctx.write_event_to_stream(X(...))``, or a name to which ``X(...)`` was assigned.
    Without a source, or where a name leads to no event class, nothing is found.
    """
    function = inspect.unwrap(function)
    tree = _parse(function)
    if tree is None:
        return ()
    assigned = _assignments(tree)
    names = _visible_names(function)
    found: dict[type[Event], None] = {}
    for call in _calls(tree):
        if call.args and _writes_to_stream(call.func):
            for made in _made_by(call.args[0], assigned):
                kind = _resolve(made, names)
                if isinstance(kind, type) and issubclass(kind, Event):
                    found[kind] = None
    return tuple(found)


def _parse(function: Callable[..., Any]) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None


def _calls(tree: ast.AST) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def _writes_to_stream(called: ast.expr) -> bool:
    if not isinstance(called, ast.Attribute):
        return False
    if called.attr == "write_event_to_stream":
        return True
    owner = called.value
    return (
        called.attr in ("send", "send_nowait")
        and isinstance(owner, ast.Attribute)
        and owner.attr == "stream"
    )


def _assignments(tree: ast.AST) -> dict[str, list[ast.expr]]:
    """Return every expression that is assigned to a plain name."""
    assigned: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.NamedExpr | ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                assigned.setdefault(target.id, []).append(value)
    return assigned


def _made_by(value: ast.expr, assigned: dict[str, list[ast.expr]]) -> Iterator[ast.expr]:
    """Yield what is called to make ``value``."""
    if isinstance(value, ast.Call):
        yield value.func
    elif isinstance(value, ast.NamedExpr):
        yield from _made_by(value.value, {})
    elif isinstance(value, ast.IfExp):
        yield from _made_by(value.body, assigned)
        yield from _made_by(value.orelse, assigned)
    elif isinstance(value, ast.Name):
        # The names are looked up once: `event = event` would go round for ever.
        for made in assigned.get(value.id, ()):
            yield from _made_by(made, {})


def _visible_names(function: Callable[..., Any]) -> dict[str, Any]:
    names: dict[str, Any] = dict(getattr(function, "__globals__", {}))
    code = getattr(function, "__code__", None)
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False
    ):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # a name that was not bound yet when the function was made
            continue
    return names


def _resolve(called: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(called, ast.Name):
        return names.get(called.id)
    if isinstance(called, ast.Attribute):
        owner = _resolve(called.value, names)
        # A static look: a property of a module or class is not run for the sake of a picture.
        return inspect.getattr_static(owner, called.attr, None) if owner is not None else None
    return None
