"""Events as JSON, for readers outside: whatever JSON cannot hold is shown by its repr."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, cast

import msgspec

from sluicegate._events import Event, StopEvent, fields_of


#: How many levels of what cannot be encoded as a whole are gone through one by one.
DEEPEST = 50


def encode(event: Event) -> str:
    """Return an event as one line of JSON, tagged with the name of its class.

    A path is its text; whatever else JSON cannot hold stands there as its repr.
    """
    tagged: dict[str, Any] = {"event": type(event).__name__}
    for name, value in shown_fields(event).items():
        while name in tagged:
            name += "_"
        tagged[name] = value
    return json_of(tagged)


def shown_fields(event: Event) -> dict[str, Any]:
    """Return the fields of an event that are not private; a stop event has a result."""
    values = {name: value for name, value in fields_of(event).items() if not name.startswith("_")}
    if type(event) is StopEvent:
        values.setdefault("result", None)
    return values


def json_of(value: Any, depth: int = 0) -> str:
    """Return a value as JSON; what JSON cannot hold stands there as its repr."""
    encoded = _try_encode(value)
    if encoded is not None:
        return encoded
    if isinstance(value, dict) and depth < DEEPEST:
        # One field that cannot be encoded does not take the others with it.
        members = cast("dict[Any, Any]", value)
        fields = (f"{json_of(str(k))}:{json_of(v, depth + 1)}" for k, v in members.items())
        return f"{{{','.join(fields)}}}"
    shown = _safe_repr(value).encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode(shown).decode()


def _try_encode(value: Any) -> str | None:
    """Return ``value`` as JSON, or None where something in it cannot be encoded."""
    try:
        return msgspec.json.encode(value, enc_hook=_plain).decode()
    except Exception:  # noqa: BLE001 - whatever a value of the user's does when it is read
        return None


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):  # a model of pydantic
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, PurePath) else _safe_repr(value)


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a repr of the user's that raises
        return f"<{type(value).__qualname__} whose repr fails>"
