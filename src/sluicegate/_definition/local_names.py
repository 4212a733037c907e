"""Names of enclosing functions, which string annotations inside a function refer to.

With ``from __future__ import annotations`` annotations are strings. Those that name classes of a
function body cannot be resolved after the function has returned. The names in them are therefore
looked up while the function is running, and only these are kept.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
import typing
from typing import TYPE_CHECKING, Any, cast

from sluicegate._annotations import UNRESOLVED, resolve


if TYPE_CHECKING:
    import types
    from collections.abc import Iterator

#: The attribute of a local function or class that keeps the names of its annotations.
KEPT = "__sluicegate_names__"


def names_around(function: Any, depth: int) -> dict[str, Any]:
    """Return the names that the annotations of ``function`` use from the functions around it.

    They can name the factory of a resource or the class of a configuration, which have annotations
    too. If these are local as well, they keep the names in theirs.

    Args:
        function: A function that is being defined, for example by a decorator.
        depth: The number of frames between this call and the definition.
    """
    wanted = _names_in(function.__annotations__.values())
    return _look_up(function, wanted, sys._getframe(depth)) if wanted else {}


def keep_names(thing: Any) -> None:
    """Make the annotations of a local function or class resolvable after this call."""
    _keep(thing, sys._getframe(1))


def kept_names(thing: Any) -> dict[str, Any]:
    """Return the names that the annotations of a function or class use beyond its module."""
    names: dict[str, Any] = getattr(thing, "__dict__", {}).get(KEPT, {})
    return names


def resolve_fields(hint: Any) -> None:
    """Replace the string annotations of local classes by their values, for readers of the class."""
    for part in typing.get_args(hint):
        resolve_fields(part)
    for base in getattr(hint, "__mro__", ()):
        names = kept_names(base)
        notes = inspect.get_annotations(base) if names else {}
        if any(isinstance(note, str) for note in notes.values()):
            with contextlib.suppress(*UNRESOLVED):
                found = resolve(base, names)
                base.__annotations__ = {name: found[name] for name in notes}
                for value in names.values():
                    resolve_fields(value)


def _keep(thing: Any, frame: types.FrameType) -> None:
    for annotated in _annotated(thing):
        if "<locals>" not in annotated.__qualname__ or KEPT in vars(annotated):
            continue
        notes = inspect.get_annotations(annotated)
        wanted = _names_in(notes.values())
        if wanted:
            setattr(annotated, KEPT, {})  # the names may lead back here
            setattr(annotated, KEPT, _look_up(annotated, wanted, frame))


def _annotated(thing: Any) -> Iterator[Any]:
    """Yield the functions and classes whose annotations describe ``thing``."""
    while isinstance(thing, functools.partial):
        thing = thing.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    if inspect.isfunction(thing):
        yield thing
        return
    cls = cast("Any", thing if isinstance(thing, type) else type(thing))
    base: Any
    for base in cls.__mro__[:-1]:
        if "<locals>" in base.__qualname__:
            yield base
            for member in cast("dict[str, Any]", vars(base)).values():
                function = inspect.unwrap(getattr(member, "__func__", member))
                if inspect.isfunction(function):
                    yield function


def _names_in(notes: Any) -> set[str]:
    wanted: set[str] = set()
    todo = [note for note in notes if isinstance(note, str)]
    while todo:
        try:
            parsed = ast.parse(todo.pop(), mode="eval")
        except SyntaxError:
            continue  # reported with the other faults, when the workflow is built
        for node in ast.walk(parsed):
            if isinstance(node, ast.Name):
                wanted.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                todo.append(node.value)  # a quoted name within a string
    return wanted


def _look_up(thing: Any, wanted: set[str], start: types.FrameType) -> dict[str, Any]:
    names: dict[str, Any] = {}
    own = thing.__name__  # whose class body is one of the places to look
    frame: types.FrameType | None = start
    while frame is not None:
        around = frame.f_code.co_qualname
        if thing.__qualname__.startswith((f"{around}.<locals>.", f"{around}.{own}")):
            found = frame.f_locals
            names = {name: found[name] for name in wanted if name in found} | names
        frame = frame.f_back
    for value in names.values():
        _keep(value, start)
    return names
