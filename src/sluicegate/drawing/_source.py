"""What the source of a step tells beyond its signature: what it streams, and which children it runs."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

import attrs

from sluicegate._definition.names import Names, parse
from sluicegate._events import Event
from sluicegate._workflow import Workflow


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@attrs.frozen(eq=False)
class ChildCall:
    """A workflow that a step runs as a child.

    Attributes:
        text: The argument as it stands in the source.
        kind: Its class, or None where looking does not tell it.
        thing: The object itself, where it exists already.
    """

    text: str
    kind: type | None = None
    thing: object = None


@attrs.frozen(eq=False)
class StepSource:
    """What one look at the source of a step gives, in the order of its lines."""

    written: tuple[type[Event], ...] = ()
    children: tuple[ChildCall, ...] = ()


def read_source(
    function: Callable[..., Any], owner: object = None, more: Mapping[str, Any] | None = None
) -> StepSource:
    """Read which events ``function`` writes to the stream, and which children it runs.

    Only what stands in the function itself is found, and nothing is run for it. An event is
    found where its class can be told by looking: ``ctx.write_event_to_stream(X(...))``, or a name
    to which ``X(...)`` was assigned. A child is what ``run_child`` gets, in a call of it or as
    the next one among the arguments of another call: ``Child(...)``, such a name, an annotated
    parameter, or an attribute that the class body or ``__init__`` assigns in the same plain way.
    Without a source nothing is found.

    Args:
        function: What the user wrote as the step.
        owner: The workflow class, or an object of it, in which ``self`` is looked up.
        more: What further names mean, such as those that only annotations use.

    Returns:
        What was found.
    """
    function = inspect.unwrap(function)
    tree = parse(function)
    if tree is None:
        return StepSource()
    names = Names(function, tree, owner, more or {})
    written: dict[type[Event], None] = {}
    children: dict[tuple[object, ...], ChildCall] = {}
    for call in _calls(tree):
        if call.args and _writes_to_stream(call.func):
            for made in names.made_by(call.args[0]):
                if made is not None and issubclass(made.kind, Event):
                    written[made.kind] = None
        for argument in _child_arguments(call):
            for child in _children(argument, names):
                told = (child.text,) if child.kind is None else (child.kind, id(child.thing))
                children.setdefault(told, child)
    return StepSource(tuple(written), tuple(children.values()))


def _children(argument: ast.expr, names: Names) -> Iterator[ChildCall]:
    text = " ".join(ast.unparse(argument).split())
    for made in tuple(names.made_by(argument)) or (None,):
        if made is None or made.kind is Workflow or Workflow not in made.kind.__mro__:
            yield ChildCall(text)
        else:
            yield ChildCall(text, made.kind, made.thing)


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


def _child_arguments(call: ast.Call) -> Iterator[ast.expr]:
    """Yield the workflows that a call runs as children, as they are written."""
    if _is_run_child(call.func):
        yield from call.args[:1]
        yield from (word.value for word in call.keywords if word.arg == "workflow")
    # `nursery.start_soon(ctx.run_child, Child())`, `ctx.from_thread.run(ctx.run_child, Child())`
    for place, argument in enumerate(call.args[:-1]):
        if _is_run_child(argument):
            yield call.args[place + 1]


def _is_run_child(called: ast.expr) -> bool:
    return isinstance(called, ast.Attribute) and called.attr == "run_child"
