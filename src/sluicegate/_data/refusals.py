"""What is said of values that cannot be kept, and what is advised: only what works."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NoReturn, cast

from sluicegate._annotations import plain_form
from sluicegate._data.builtins import MismatchError, rows
from sluicegate._data.classes import form_of
from sluicegate._data.pydantic_values import is_secret


_KEPT = (
    "an event, an attrs class, a dataclass, a named tuple, an enum, a pydantic model or a Struct"
)
_PLAIN = (str, int, float, tuple, list, dict, set, frozenset, bytes, bytearray, deque)
#: What is like a plain container, and the container.
_LIKE = ((memoryview, bytes), (Mapping, dict), (AbstractSet, set), (Sequence, list))


def refuse_value(value: Any, _depth: int) -> NoReturn:
    """Refuse a value of a class that the codec does not know.

    What is advised is what works: a class is to be named only where it can be kept.
    """
    cls = cast("type[Any]", type(value))
    name = cls.__qualname__
    if is_secret(cls):
        msg = (
            f"is a {name}, which is kept only where it is named, because a snapshot holds it as "
            f"plain text; expected Workflow(serializable=[{cls.__name__}]), or a resource"
        )
        raise MismatchError(msg)
    if form_of(cls) is not None:
        msg = (
            f"is a {name}, a class that the workflow does not know; expected a value of a class "
            f"the workflow knows: Workflow(serializable=[{cls.__name__}])"
        )
        raise MismatchError(msg)
    plain = _plain_form(value)
    if plain:
        msg = f"is a {name}, which cannot be kept as such; expected {plain}"
    else:
        msg = (
            f"is a {name}, which cannot be kept; expected a value of another class ({_KEPT}), or, "
            f"for what lives (a lock, a socket, a function, a client), a resource: "
            f"Annotated[{cls.__name__}, Resource(make)]"
        )
    raise MismatchError(msg)


def refuse_twin(value: Any, _depth: int) -> NoReturn:
    """Refuse a value of a class that is defined twice, and that the codec knows the other time."""
    msg = (
        f"is a {type(value).__qualname__}, but not of the class of that name in "
        f"{type(value).__module__} that the workflow knows: it was defined twice (a module that was "
        "loaded again?); expected a value of the class that the workflow was built with"
    )
    raise MismatchError(msg)


def _plain_form(value: Any) -> str | None:
    """Return what to write instead of a value, where a plain one holds the same."""
    if call := plain_form(value):
        return f"a plain value: {call}"
    kind = next((kind for kind in _PLAIN if isinstance(value, kind)), None)
    if kind is None:
        kind = next((made for abstract, made in _LIKE if isinstance(value, abstract)), None)
    if kind is not None:
        return f"a plain {kind.__name__}: {kind.__name__}(value)"
    zone: Any = sys.modules.get("datetime")
    if zone is not None and isinstance(value, zone.tzinfo):
        return "a datetime.timezone, or a zoneinfo.ZoneInfo"
    if hasattr(cast("object", value), "to_pydatetime"):
        return "a plain datetime: value.to_pydatetime()"
    # A datetime is a date too, and its row comes later.
    kept = [row.cls.__name__ for row in rows() if isinstance(value, row.cls)]
    return f"a plain {kept[-1]}" if kept else None
