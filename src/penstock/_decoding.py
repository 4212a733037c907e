"""Events from outside: plain data becomes an event of a class that the caller named, or an error.

The decoding is closed. No class is looked up or imported by a name in the data; where a field may
hold one of several event classes, the data may say which by the key ``"event"``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, TypeVar, Union, cast

import msgspec

from penstock._errors import brief, brief_text
from penstock._events import Event
from penstock._validation import hints_of


E = TypeVar("E", bound=Event)

#: The key that names the class of an event among other keys, its fields.
TAG = "event"


def decode_event(cls: type[E], data: Mapping[str, Any]) -> E:
    """Make an event of ``cls`` from plain data that came from outside (JSON, a command line).

    Each value is validated against the annotation of its field, and converted where JSON has no
    such type: dates, enums, paths, dataclasses, events within the event.

    Raises:
        TypeError: A field is missing, unknown or has the wrong type; the message names it. Or the
            data is no mapping at all.
    """
    if not isinstance(data, Mapping):
        msg = f"{cls.__name__} was given {data!r:.200}; expected an object with its fields: {{...}}"
        raise TypeError(msg)
    hints = hints_of(cls)
    values: dict[str, Any] = {}
    for name, value in data.items():
        try:
            values[name] = _decode(hints[name], value) if name in hints else value
        except _MismatchError as error:
            hint = hints[name]
            shown = hint.__name__ if isinstance(hint, type) else hint
            msg = f"{cls.__name__}.{name} is {brief(value)}, which is not {shown}: {brief_text(str(error))}"
            raise TypeError(msg) from None
    return cls(**values)


def fits(hint: Any, value: Any) -> bool:
    """Whether ``value``, from outside, would be taken for a field with the annotation ``hint``."""
    try:
        _decode(hint, value)
    except _MismatchError:
        return False
    return True


class _MismatchError(Exception):
    """Raised when a value does not fit; the text says how."""


def _decode(hint: Any, value: Any) -> Any:  # noqa: PLR0911 - one for each form
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _decode(arguments[0], value)
    if not _holds_events(hint):
        return _decode_plain(hint, value)
    if isinstance(hint, type) and issubclass(hint, Event):
        return _decode_one_of([hint], value)
    if origin in (Union, types.UnionType):
        events = [part for part in arguments if isinstance(part, type) and issubclass(part, Event)]
        if isinstance(value, Mapping) and events:
            return _decode_one_of(events, cast("Mapping[str, Any]", value))
        others = [part for part in arguments if part not in events]
        return _decode(Union[tuple(others)], value) if others else _refuse(value, "an object")  # noqa: UP007
    if origin is list and isinstance(value, list):
        return [_decode(arguments[0], part) for part in cast("list[Any]", value)]
    if origin is tuple and isinstance(value, list) and arguments[1:] == (Ellipsis,):
        return tuple(_decode(arguments[0], part) for part in cast("list[Any]", value))
    if origin is dict and isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        return {_decode(arguments[0], k): _decode(arguments[1], v) for k, v in pairs}
    return _refuse(value, cast("object", hint))


def _decode_one_of(kinds: list[type[Event]], value: Any) -> Event:
    if not isinstance(value, Mapping):
        return _refuse(value, " or ".join(kind.__name__ for kind in kinds))
    fields = dict(cast("Mapping[str, Any]", value))
    named = {kind.__name__: kind for kind in kinds}
    if fields.get(TAG) in named:
        kind = named[fields.pop(TAG)]
    elif len(kinds) == 1:
        kind = kinds[0]
    else:
        return _refuse(value, f"an object whose {TAG!r} is {' or '.join(named)}")
    try:
        return decode_event(kind, fields)
    except TypeError as error:
        raise _MismatchError(str(error)) from None


def _decode_plain(hint: Any, value: Any) -> Any:
    def decode_other(kind: Any, data: Any) -> Any:
        plain: Any = typing.get_origin(kind) or kind
        if isinstance(plain, type) and isinstance(data, plain):
            return data
        if isinstance(data, str) and isinstance(plain, type) and issubclass(plain, PurePath):
            return plain(data)
        return _refuse(data, str(getattr(kind, "__name__", kind)))

    try:
        return msgspec.convert(value, hint, dec_hook=decode_other)
    except msgspec.ValidationError as error:
        raise _MismatchError(str(error).replace(" - at `$`", "")) from None
    except TypeError as error:  # a union that msgspec cannot tell apart
        msg = f"{hint} cannot come from outside ({error})"
        raise _MismatchError(msg) from None


def _refuse(value: Any, expected: object) -> typing.NoReturn:
    msg = f"expected {expected}, got {type(value).__name__}"
    raise _MismatchError(msg)


def _holds_events(hint: Any) -> bool:
    if isinstance(hint, type) and not typing.get_args(hint):
        return issubclass(hint, Event)
    return any(_holds_events(part) for part in typing.get_args(hint))
