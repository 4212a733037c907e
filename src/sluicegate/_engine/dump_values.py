"""Values in a dump: shown without calling any code of the user.

A dump is made in a signal handler, in the middle of whatever the program does. A ``__repr__`` might
wait for a lock that the interrupted code holds, or look at an object that is half changed.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs

from sluicegate._errors import brief_text
from sluicegate._events import Event, fields_of


#: The greatest number of characters of a text, and of items of a container.
LONGEST = 60
MOST = 4

_PLAIN = (int, float, bool, complex, type(None), type(Ellipsis))
#: Modules whose classes have a short repr, which calls nothing.
_HARMLESS = ("datetime", "decimal", "fractions", "uuid", "pathlib")


def name_of(kind: type) -> str:
    """Return the name of a class, whatever its metaclass makes of it."""
    name: str = type.__dict__["__qualname__"].__get__(kind)
    return name.rpartition("<locals>.")[2]


def class_name(value: object) -> str:
    """Return the name of the class of a value."""
    return name_of(type(value))


def shown(value: Any, depth: int = 2) -> str:
    """Return a value as a dump shows it; an object of a user's class only by the class."""
    kind = _class_of(value)
    try:
        text = _text(value, kind, depth)
    except Exception as error:  # noqa: BLE001 - another thread may be changing it
        return f"<{name_of(kind)}, which cannot be read: {name_of(type(error))}>"
    return f"<{name_of(kind)}>" if text is None else text


def _class_of(value: object) -> type:
    return type(value)


def _text(value: Any, kind: type, depth: int) -> str | None:
    text: str | None = None
    if kind in _PLAIN:
        text = brief_text(repr(value), LONGEST)
    elif kind is str or kind is bytes:
        text = brief_text(repr(value[: LONGEST + 1]), LONGEST)
    elif kind in _BRACKETS:
        text = _items(value, kind, depth)
    elif kind is dict:
        text = _mapping(value, depth)
    elif kind is type:
        text = name_of(value)
    elif Event in kind.__mro__:
        text = _event(value, depth)
    elif kind.__module__ in _HARMLESS:
        if getattr(value, "tzinfo", None) is not None:
            value = value.replace(tzinfo=None)  # the zone may be a class of the user
        text = brief_text(repr(value), LONGEST)
    return text


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("{", "}"),
    deque: ("[", "]"),
}


def _items(value: Any, kind: type, depth: int) -> str:
    first, last = _BRACKETS[kind]
    if not depth:
        return f"{first}...{last}" if value else f"{first}{last}"
    items = list(value)
    texts = [shown(item, depth - 1) for item in items[:MOST]]
    texts += [f"and {len(items) - MOST} more"] * (len(items) > MOST)
    return f"{first}{', '.join(texts)}{last}"


def _mapping(value: dict[Any, Any], depth: int) -> str:
    if not depth:
        return "{...}" if value else "{}"
    items = list(value.items())
    texts = [f"{shown(k, 0)}: {shown(v, depth - 1)}" for k, v in items[:MOST]]
    texts += [f"and {len(items) - MOST} more"] * (len(items) > MOST)
    return f"{{{', '.join(texts)}}}"


def _event(event: Event, depth: int) -> str:
    kind = type(event)
    if not depth:
        return f"{name_of(kind)}(...)"
    hidden = {field.name for field in attrs.fields(kind) if not field.repr}
    fields = [(name, value) for name, value in list(fields_of(event).items()) if name not in hidden]
    texts = [f"{name}={shown(value, depth - 1)}" for name, value in fields[: 2 * MOST]]
    texts += ["..."] * (len(fields) > 2 * MOST)
    return f"{name_of(kind)}({', '.join(texts)})"


def seconds(value: float) -> str:
    """Return a length of time for reading."""
    if value < 100:
        return f"{max(value, 0):.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def until(due: float, now: float) -> str:
    """Return how long it is until a time, or since when it has passed."""
    return f"in {seconds(due - now)}" if due >= now else f"{seconds(now - due)} ago"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"
