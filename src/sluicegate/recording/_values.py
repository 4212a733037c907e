"""Values in a recording: plain data for reading, shortened, without calling code of the user.

Fields that a class declares with ``repr=False`` hold secrets and are hidden; so are the values of
pydantic's secret classes. No ``__repr__``, property or ``__getattribute__`` of a user's class is
called, because values are rendered during the run.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import attrs
import msgspec

from sluicegate._data.pydantic import is_secret
from sluicegate._errors import RestoredError
from sluicegate._events import Event, fields_of, holds_more
from sluicegate._exceptions import is_a, leaves_of, notes_of, trace_of
from sluicegate.recording._errors import DescribedError, RecordedError


#: Takes the name of a field or a key, and its value; returns the value, or what to show instead.
Redact: TypeAlias = Callable[[str, Any], Any]

#: Stands for a hidden value.
HIDDEN = "<hidden>"
#: The most characters of one event's values, and of one exception's traceback.
CHARACTERS = 2_000
_DEEPEST = 8
#: The most members of a container; each counts as some characters, too.
_MOST = 100
_COST = 8
_LARGEST = 2**63
#: So many fields with texts of this length are always within the limit.
_FEW = 8
_SHORT = 200
_SCALARS = (int, bool, type(None))
_MOST_LEAVES = 5
_MOST_FRAMES = 20

_HARMLESS = ("datetime", "decimal", "fractions", "uuid", "pathlib", "ipaddress", "zoneinfo")


class _Left:
    """How many characters are left for one value."""

    __slots__ = ("characters",)

    def __init__(self, characters: int) -> None:
        self.characters = characters


class Renderer:
    """Renders values within a limit.

    Args:
        characters: The most characters of an event's values, and of an exception's traceback.
        redact: Called with the name and the value of each field and key; of an exception, with
            ``"message"``, ``"notes"`` and ``"traceback"`` and these texts.
    """

    def __init__(self, characters: int = CHARACTERS, redact: Redact | None = None) -> None:
        self._characters = characters
        self._redact = redact
        self._hidden: dict[type, frozenset[str]] = {}
        self._direct: dict[type, bool] = {}

    def fields(self, event: Any) -> Any:
        """Return the fields of an event as plain data; of anything else, the value."""
        cls = cast("type[Any]", type(event))
        left = _Left(self._characters)
        try:
            if not issubclass(cls, Event):
                return self._value(event, left, 0)
            return self._members(fields_of(event), self._hidden_in(cls), left, 0)
        except Exception as error:  # noqa: BLE001 - a recording is not broken by a value
            return {"<unreadable>": f"{_name(cls)}: {_name(type(error))}"}

    def shown(self, value: Any) -> Any:
        """Return the fields of a live event as plain data; those of a loaded one are."""
        return cast("Any", value) if type(value) is dict else self.fields(value)

    def is_plain(self, event: Any) -> bool:
        """Whether an event has only a few short texts and numbers, none hidden, as most events do.

        msgspec then writes its fields as :meth:`fields` shows them.
        """
        cls = cast("type[Any]", type(event))
        is_direct = self._direct.get(cls)
        if is_direct is None:
            is_direct = self._direct[cls] = self._is_direct(cls)
        if not is_direct:
            return False
        values = event.__dict__
        for value in values.values():
            kind: type = type(value)  # pyright: ignore[reportUnknownVariableType]
            if kind is str:
                if len(value) > _SHORT:
                    return False
            elif kind is float:
                if value - value != 0:  # not finite
                    return False
            elif kind not in _SCALARS:
                return False
        return len(values) <= _FEW

    def _is_direct(self, cls: type[Any]) -> bool:
        """Whether all fields of a class of events are in its ``__dict__``, and may be shown."""
        return (
            issubclass(cls, Event)
            and self._redact is None
            and self._characters >= CHARACTERS
            and not holds_more(cls)
            and not self._hidden_in(cls)
        )

    def plain(self, value: Any) -> Any:
        """Return a value of a record as plain data in which every text can be written."""
        if isinstance(value, DescribedError):
            return {name: self.plain(getattr(value, name)) for name in value.__struct_fields__}
        return self.fields(value)

    def text(self, text: str) -> str:
        """Return a text, shortened."""
        return _cut(text, self._characters)

    def error(self, error: BaseException) -> DescribedError:
        """Return an exception as data: type, message, notes and shortened traceback.

        Its own ``__str__`` is called, because only it knows the message.
        """
        if type(error) is RecordedError:
            return error.described
        limit = self._characters
        restored = error if type(error) is RestoredError else None
        return DescribedError(
            type_name=restored.type_name if restored else _full_name(type(error)),
            message=self._redacted_text(
                "message", _cut(restored.message if restored else _message(error), limit)
            ),
            notes=[
                self._redacted_text("notes", _cut(note, limit)) for note in notes_of(error)[:_MOST]
            ],
            traceback=self._redacted_text("traceback", _traceback(error, limit)),
        )

    def _redacted_text(self, name: str, text: str) -> str:
        shown = self._redacted(name, text) if self._redact and text else text
        return (
            shown if type(shown) is str else _cut(f"<{_name(_class_of(shown))}>", self._characters)
        )

    def _redacted(self, name: str, value: Any) -> Any:
        assert self._redact is not None
        try:
            return self._redact(name, value)
        except Exception as error:  # noqa: BLE001 - what was to be hidden stays hidden
            return f"<hidden: redact raised {_name(type(error))}>"

    def _hidden_in(self, cls: type[Any]) -> frozenset[str]:
        """Return the names of the fields of a class that are declared with ``repr=False``."""
        found = self._hidden.get(cls)
        if found is None:
            own = vars(cls) if isinstance(vars(cls), dict) else dict(vars(cls))
            names: set[str] = set()
            if attrs.has(cls):
                names |= {field.name for field in attrs.fields(cls) if not field.repr}
            for owner in cls.__mro__:
                declared: Any = vars(owner).get("__dataclass_fields__", {})
                names |= {name for name, field in declared.items() if not field.repr}
            models: Any = own.get("__pydantic_fields__", {})
            names |= {name for name, field in models.items() if not getattr(field, "repr", True)}
            found = self._hidden[cls] = frozenset(names)
        return found

    def _members(
        self, values: dict[str, Any], hidden: frozenset[str], left: _Left, depth: int
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        redact = self._redact
        for name, value in list(values.items()):
            if len(found) >= _MOST or left.characters <= 0:
                found["..."] = f"{len(values) - len(found):,} more"
                break
            key = name if type(name) is str and len(name) < 100 and name.isascii() else _key(name)
            if key.startswith("_") and depth == 0:
                continue
            if name in hidden:
                found[key] = HIDDEN
                continue
            if redact is not None:
                value = self._redacted(key, value)
            kind: type = type(value)  # pyright: ignore[reportUnknownVariableType]
            left.characters -= len(key) + _COST
            if kind is bool or value is None:
                found[key] = value
            else:
                found[key] = self._value(value, left, depth + 1)
        return found

    def _value(self, value: Any, left: _Left, depth: int) -> Any:
        kind: type = type(value)  # pyright: ignore[reportUnknownVariableType]
        render = _PLAIN.get(kind)
        if render is not None:
            return render(value, left)
        if kind is dict:
            return self._members(value, frozenset(), left, depth) if depth < _DEEPEST else "{...}"
        if kind in _SEQUENCES:
            return self._items(value, left, depth) if depth < _DEEPEST else "[...]"
        return self._object(value, kind, left, depth)

    def _items(self, values: Any, left: _Left, depth: int) -> list[Any]:
        found: list[Any] = []
        for value in list(values):
            if len(found) >= _MOST or left.characters <= 0:
                found.append(f"... {len(values) - len(found):,} more")
                break
            left.characters -= _COST
            found.append(self._value(value, left, depth + 1))
        return found

    def _object(self, value: Any, kind: type[Any], left: _Left, depth: int) -> Any:
        if is_secret(kind):
            return HIDDEN
        for base, render in _DERIVED:
            if issubclass(kind, base):
                return render(value, left)
        if issubclass(kind, BaseException) and not issubclass(kind, Event):
            left.characters -= 100
            return {
                "type_name": _full_name(kind),
                "message": _cut(_message(value), left.characters),
            }
        fields = _fields_in(value, kind) if depth < _DEEPEST else None
        if fields is None:
            return _text(_label(value, kind), left)
        return self._members(fields, self._hidden_in(kind), left, depth)


def _label(value: Any, kind: type[Any]) -> str:
    """Return a text for an object whose class declares no fields."""
    if kind.__module__.partition(".")[0] in _HARMLESS:  # 3.13 has pathlib._local
        return str(value)
    return f"<{_name(value if isinstance(value, type) else kind)}>"


def _text(value: str, left: _Left) -> str:
    shown = _cut(value, max(left.characters, 20))
    left.characters -= len(shown)
    return shown


def _cut(text: str, limit: int) -> str:
    limit = max(limit, 20)
    if len(text) > limit:
        text = f"{text[: limit - 1]}… ({len(text):,} characters)"
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON cannot hold
        text = text.encode("utf-8", "backslashreplace").decode()
    return text


def _whole(value: int, left: _Left) -> Any:
    if -_LARGEST <= value < _LARGEST:
        return value
    return _text(f"<int of {value.bit_length():,} bits>", left)


def _real(value: float, left: _Left) -> Any:
    return value if math.isfinite(value) else _text(repr(value), left)


def _binary(value: Any, left: _Left) -> str:
    return _text(f"<{len(value):,} bytes>", left)


_PLAIN: dict[type, Callable[[Any, _Left], Any]] = {
    str: _text,
    int: _whole,
    float: _real,
    bool: lambda value, _: value,
    type(None): lambda value, _: value,
    bytes: _binary,
    bytearray: _binary,
    complex: lambda value, left: _text(repr(value), left),
}
_SEQUENCES = (list, tuple, set, frozenset, deque)
#: Classes derived from plain ones, whose methods a user may have overridden.
_DERIVED: list[tuple[type, Callable[[Any, _Left], Any]]] = [
    (enum.Enum, lambda value, left: _text(f"{_name(_class_of(value))}.{value._name_}", left)),
    (str, lambda value, left: _text(str.__str__(value), left)),
    (int, lambda value, left: _whole(int.__int__(value), left)),
    (float, lambda value, left: _real(float.__float__(value), left)),
]


def _key(name: Any) -> str:
    kind = _class_of(name)
    if kind is str:
        return _cut(name, 100)
    return str(name) if kind in (int, float, bool) else f"<{_name(kind)}>"


def _fields_in(value: Any, kind: type[Any]) -> dict[str, Any] | None:
    """Return the fields of an object whose class declares them; None for another class."""
    if issubclass(kind, Event):
        return fields_of(value)
    if issubclass(kind, dict):
        return dict(cast("Any", dict).items(value))
    if issubclass(kind, tuple):
        base: Any = tuple  # whose methods the class may have overridden
        items = list(base.__iter__(value))
        names: Any = getattr(cast("Any", kind), "_fields", None) or map(str, range(len(items)))
        return dict(zip(names, items, strict=False))
    declared = _declared_in(kind)
    if declared is None:
        return None
    found: dict[str, Any] = {}
    for name in declared:
        try:
            found[name] = object.__getattribute__(value, name)
        except AttributeError:  # it is unset
            continue
    return found


def _declared_in(kind: type[Any]) -> list[str] | None:
    """Return the names of the fields that a class declares."""
    if attrs.has(kind):
        return [field.name for field in attrs.fields(kind)]
    if issubclass(kind, msgspec.Struct):
        return [*kind.__struct_fields__]
    for name in ("__dataclass_fields__", "__pydantic_fields__"):
        for owner in kind.__mro__:
            if name in vars(owner):
                return [*vars(owner)[name]]
    return None


# -- exceptions -------------------------------------------------------------------------------------


def _name(kind: type) -> str:
    """Return the name of a class, whatever its metaclass makes of it."""
    name: str = type.__dict__["__qualname__"].__get__(kind)
    return name.rpartition("<locals>.")[2]


def _class_of(value: Any) -> type:
    return type(value)  # pyright: ignore[reportUnknownVariableType]


def _full_name(kind: type) -> str:
    module = str(type.__dict__["__module__"].__get__(kind))
    return _name(kind) if module == "builtins" else f"{module}.{_name(kind)}"


def _message(error: BaseException) -> str:
    try:
        text = str.__str__(str(error))
    except Exception as failure:  # noqa: BLE001 - a __str__ of the user's
        return f"<its __str__ raises {_name(type(failure))}>"
    if is_a(error, BaseExceptionGroup):
        leaves = leaves_of(error)
        shown = [f"{_name(type(one))}: {_message(one)}" for one in leaves[:_MOST_LEAVES]]
        shown += [f"and {len(leaves) - _MOST_LEAVES} more"] * (len(leaves) > _MOST_LEAVES)
        text = f"{text}: {'; '.join(shown)}"
    return text


def _traceback(error: BaseException, limit: int) -> str:
    """Return the innermost frames of a traceback, as many as fit, as Python prints them."""
    import traceback  # noqa: PLC0415 - only for failures

    trace = trace_of(error)
    depth = sum(1 for _ in traceback.walk_tb(trace))
    try:
        frames = traceback.extract_tb(trace, limit=-_MOST_FRAMES).format()
    except Exception:  # noqa: BLE001 - the source of a frame comes from a loader of the user's
        return ""
    kept: list[str] = []
    size = 0
    for frame in reversed(frames):
        size += len(frame)
        if size > limit and kept:
            break
        kept.append(frame)
    if depth > _MOST_FRAMES or len(kept) < len(frames):
        kept.append("  ...\n")
    return "".join(reversed(kept))
