"""Events from outside: plain data becomes an event of a class that the caller names, or an error.

The decoding is closed: it never looks up or imports a class by a name in the data. If a field accepts
several event classes, the key ``"event"`` in the data selects one of these.

Converters, validators and default factories of the classes run. Msgspec makes plain values, pydantic
makes its models and types, and both make only values of the annotated class.
"""

from __future__ import annotations

import sys
import types
import typing
from collections import deque
from collections.abc import (
    Collection,
    Iterable,
    Mapping,
)
from typing import Any, NoReturn, TypeVar, Union, cast

import attrs
import msgspec

from sluicegate._annotations import behind, class_of, is_typeddict, is_union, text_of
from sluicegate._data.data_fields import (
    COLLECTIONS,
    DataFields,
    data_fields_of,
    hints_in,
    items_of,
    made_of_text,
    meant_by,
)
from sluicegate._data.pydantic import decode_by_pydantic, is_for_pydantic, is_pydantic, validated
from sluicegate._data.refusals import DecodingError
from sluicegate._errors import brief, brief_text
from sluicegate._events import Event
from sluicegate._events.generics import plain_class
from sluicegate._foreign import is_constraint


E = TypeVar("E", bound=Event)

#: The key that names the class of an event among other keys, its fields.
TAG = "event"


def decode_event(cls: type[E], data: Mapping[str, Any]) -> E:
    """Make an event of ``cls`` from plain data from outside, such as JSON or a command line.

    Each value is validated against the annotation of its field. Types that JSON does not have are
    converted: dates, enums, paths, dataclasses, attrs classes, pydantic models, nested events, and
    lists and unions of these. Converters and validators of the classes run.

    A union uses the first member that fits, or the first that has fields for all keys of a mapping. Among several event classes, the key ``"event"`` in the data selects one.

    Raises:
        TypeError: A field is missing, unknown or has the wrong type, or a converter or validator
            refuses it (the message names the field); or the data is not a mapping.
    """
    if not isinstance(data, Mapping):
        name = text_of(cls)
        msg = f"{name} was given {brief(data)}; expected an object with its fields: {{...}}"
        raise TypeError(msg)
    try:
        return cast("E", _decode_event(plain_class(cls), data))
    except DecodingError as error:
        raise TypeError(str(error)) from error.__cause__


def decode_value(hint: Any, value: Any) -> Any:
    """Make a value of an annotation from plain data from outside.

    Raises:
        DecodingError: The data does not fit.
    """
    try:
        return _decode(hint, value)
    except RecursionError:
        msg = "is nested too deeply"
        raise DecodingError(msg) from None


def accepts(hint: Any, value: Any) -> bool:
    """Whether a field with the annotation ``hint`` accepts ``value`` from outside."""
    try:
        decode_value(hint, value)
    except DecodingError:
        return False
    return True


def _refuse(value: Any, expected: object) -> NoReturn:
    kinds: dict[Any, str] = {dict: "object", list: "array", type(None): "null"}
    kind = cast("Any", type(value))
    msg = f"Expected `{expected}`, got `{kinds.get(kind, kind.__name__)}`"
    raise DecodingError(msg)


def _part(hint: Any, value: Any, step: str) -> Any:
    """Decode a part of a value, and put its place before the path of an error."""
    try:
        return _decode(hint, value)
    except DecodingError as error:
        error.within(step)
        raise


# -- events ----------------------------------------------------------------------------------------


def _decode_event(cls: type[Event], data: Mapping[Any, Any]) -> Event:
    declared = cast("DataFields", data_fields_of(cls))
    hints = {field.keyword: field.hint for field in declared.fields}
    values: dict[str, Any] = {}
    for name, value in data.items():
        if not isinstance(name, str):
            msg = f"{cls.__name__} has the key {brief(name)}; expected names of fields"
            raise DecodingError(msg)
        if name not in hints:
            values[name] = value  # an open field, or an unknown one, which the constructor refuses
            continue
        try:
            values[name] = decode_value(hints[name], value)
        except DecodingError as error:
            said = brief_text(str(error), 1000)
            msg = f"{cls.__name__}.{name} is {brief(value)}, which is not {text_of(hints[name])}: {said}"
            raise DecodingError(msg) from error.__cause__
    try:
        return cls(**values)
    except TypeError as error:
        raise DecodingError(str(error)) from error
    except Exception as error:
        msg = f"{cls.__name__} refuses its fields: {error}"
        raise DecodingError(msg) from error


def _decode_one_of(kinds: list[type[Event]], value: Any) -> Event:
    if not isinstance(value, Mapping):
        for kind in kinds:
            if isinstance(value, kind):
                return value
        return _refuse(value, " or ".join(kind.__name__ for kind in kinds))
    fields = dict(cast("Mapping[str, Any]", value))
    by_name = {kind.__name__: kind for kind in kinds}
    tag = fields.get(TAG)
    if isinstance(tag, str) and tag in by_name:
        kind = by_name[fields.pop(TAG)]
    elif len(kinds) == 1:
        kind = kinds[0]
    else:
        return _refuse(value, f"an object whose {TAG!r} is {' or '.join(by_name)}")
    return _decode_event(kind, fields)


# -- annotations -----------------------------------------------------------------------------------


def _decode(hint: Any, value: Any) -> Any:  # noqa: C901, PLR0911 - one for each form
    hint = meant_by(hint)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return _decode_annotated(hint, value)
    if is_union(hint):
        return _decode_union(list(arguments), value)
    cls: Any = plain_class(hint)
    if _is_class(cls) and issubclass(cls, Event):
        return _decode_one_of([cls], value)
    if is_pydantic(cls):
        return decode_by_pydantic(hint, value)
    if is_plain(hint):
        return _decode_plain(hint, value)
    if (declared := data_fields_of(cls, arguments)) is not None:
        return _decode_fields(cls, declared, value)
    if _is_class(cls) and issubclass(cls, tuple):
        return _decode_tuple(cls, arguments, value)
    if _is_class(cls) and issubclass(cls, Mapping) and len(arguments) == 2:
        return _decode_mapping(arguments, value)
    made = COLLECTIONS.get(cls)
    if made is not None and len(arguments) == 1:
        if not isinstance(value, list | tuple | set | frozenset | deque):
            return _refuse(value, "array")
        items = enumerate(cast("Collection[Any]", value))
        return made([_part(arguments[0], item, f"[{number}]") for number, item in items])
    return _decode_plain(hint, value)


def is_plain(hint: Any) -> bool:
    """Whether msgspec alone can make the values of an annotation."""
    todo: list[Any] = [hint]
    seen: set[Any] = set()
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += cast("list[Any]", part)
            continue
        if part in seen:
            continue
        seen.add(part)
        origin = typing.get_origin(part)
        if isinstance(part, TypeVar) or behind(part) or _is_made_here(origin or part):
            return False
        if origin is typing.Annotated:
            if not all(isinstance(one, msgspec.Meta | str) for one in part.__metadata__):
                return False
            todo.append(typing.get_args(part)[0])
        elif origin is not typing.Literal:
            todo += typing.get_args(part)
            cls: Any = origin or part
            if hasattr(cls, "__struct_fields__") or hasattr(cls, "_fields"):
                todo += hints_in(cls).values()
    return True


def _is_made_here(cls: Any) -> bool:
    """Whether the values of a class are made by its constructor or by pydantic, not by msgspec."""
    if not _is_class(cls) or cls is typing.Annotated:
        return False
    has_fields = attrs.has(cls) or hasattr(cls, "__dataclass_fields__")
    return has_fields or is_typeddict(cls) or is_pydantic(cls) or cls in (deque, Iterable)


def _is_class(hint: Any) -> bool:
    return isinstance(hint, type)


def _decode_plain(hint: Any, value: Any) -> Any:
    try:
        return _convert(hint, value)
    except (DecodingError, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001 - of a type that msgspec does not know
        msg = f"{text_of(hint)} cannot come from outside ({error})"
        raise DecodingError(msg) from None


def _convert(hint: Any, value: Any) -> Any:
    try:
        return msgspec.convert(value, hint, dec_hook=_decode_other, str_keys=True)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        raise DecodingError(text, place.removesuffix("`")) from None


def _decode_other(kind: Any, data: Any) -> Any:
    """Return a value of a class that msgspec does not know, for msgspec."""
    cls: Any = class_of(kind)
    if _is_class(cls) and isinstance(data, cls):
        return data
    make = made_of_text(kind) if isinstance(data, str) else None
    if make is not None:
        try:
            return make(data)
        except Exception as error:  # of any class; msgspec reports a ValueError
            raise ValueError(str(error)) from error
    msg = f"Expected `{text_of(kind)}`, got `{type(data).__name__}`"
    raise ValueError(msg)


def _decode_annotated(hint: Any, value: Any) -> Any:
    base = hint.__origin__
    parts: tuple[Any, ...] = hint.__metadata__
    if any(isinstance(part, msgspec.Meta) for part in parts) and is_plain(hint):
        return _decode_plain(hint, value)
    if "pydantic" not in sys.modules:
        return _decode(base, value)
    if any(is_for_pydantic(part) and not is_constraint(part) for part in parts):
        return decode_by_pydantic(hint, value)
    made = _decode(base, value)
    constraints = [part for part in parts if is_constraint(part)]
    if not constraints:
        return made
    return validated(typing.Annotated[(Any, *constraints)], made, is_json=False)


def _decode_union(kinds: list[Any], value: Any) -> Any:
    if value is None and type(None) in kinds:
        return None
    events = [plain_class(kind) for kind in kinds if _is_event(kind)]
    others = [kind for kind in kinds if not _is_event(kind) and kind is not type(None)]
    if isinstance(value, Mapping) and len(events) > 1:
        named_events = {kind.__name__ for kind in events}
        if not others or cast("Mapping[str, Any]", value).get(TAG) in named_events:
            return _decode_one_of(events, value)
    elif events:
        others = [kind for kind in kinds if kind is not type(None)]
    plain = [kind for kind in others if is_plain(kind)]
    if plain and len(plain) == len(others):
        try:
            return _convert(Union[tuple(kinds)], value)  # noqa: UP007 - it is made of parts
        except TypeError:  # msgspec does not support the union, so try its members in order
            pass
    if others and all(map(is_pydantic, others)) and not events:
        return decode_by_pydantic(Union[tuple(others)], value)  # noqa: UP007
    return _decode_first(others, value)


def _decode_first(kinds: list[Any], value: Any) -> Any:
    """Return a value of the first kind that fits, or of the first that knows all keys of a mapping."""
    taken: list[Any] = []
    errors: list[tuple[Any, DecodingError]] = []
    for kind in kinds:
        try:
            made = _decode(kind, value)
        except DecodingError as error:
            errors.append((kind, error))
            continue
        if not isinstance(value, Mapping) or _knows_all(kind, cast("Mapping[Any, Any]", value)):
            return made
        taken.append(made)
    if taken:
        return taken[0]
    is_object = isinstance(value, Mapping)
    near = [(kind, error) for kind, error in errors if _takes_fields(kind) == is_object]
    if len(near) == 1:
        raise near[0][1]
    lines = "; ".join(f"{text_of(kind)}: {error}" for kind, error in near or errors)
    msg = f"fits none of {' | '.join(map(text_of, kinds))} ({lines})"
    raise DecodingError(msg)


def _is_event(kind: Any) -> bool:
    cls = plain_class(kind)
    return _is_class(cls) and issubclass(cls, Event)


# -- values with parts -----------------------------------------------------------------------------


def _decode_mapping(arguments: tuple[Any, ...], value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        return _refuse(value, "object")
    made: dict[Any, Any] = {}
    for key, item in cast("Mapping[Any, Any]", value).items():
        step = f"[{brief(key, 40)}]"
        try:
            (read,) = _decode_plain(types.GenericAlias(dict, (arguments[0], None)), {key: None})
        except DecodingError as error:
            error.within(step)
            raise
        made[read] = _part(arguments[1], item, step)
    return made


def _decode_tuple(cls: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if cls is not tuple and isinstance(value, cls):
        return value
    if not isinstance(value, list | tuple):
        return _refuse(value, "array")
    items = cast("list[Any]", value)
    if arguments[1:] == (...,):
        kinds, least = [arguments[0]] * len(items), 0
    else:
        kinds, least = items_of(cls, arguments)
    if not least <= len(items) <= len(kinds):
        msg = f"Expected `array` of length {len(kinds)}, got {len(items)}"
        raise DecodingError(msg)
    pairs = enumerate(zip(kinds, items, strict=False))
    made = [_part(kind, item, f"[{number}]") for number, (kind, item) in pairs]
    return tuple(made) if cls is tuple else cast("Any", cls)(*made)


def _decode_fields(cls: Any, declared: DataFields, value: Any) -> Any:
    """Make an object of a class with named fields, by its constructor."""
    if not is_typeddict(cls) and isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        return _refuse(value, "object")
    data = dict(cast("Mapping[Any, Any]", value))
    key, tag = declared.tag or ("", None)
    if data.pop(key, tag) != tag:
        msg = f"Expected `{tag}`"
        raise DecodingError(msg, f".{key}")
    unknown = data.keys() - {name for field in declared.fields for name in field.names}
    if unknown and declared.is_closed:
        msg = f"Object contains unknown field `{min(map(str, unknown))}`"
        raise DecodingError(msg)
    values: dict[str, Any] = {}
    for field in declared.fields:
        name = next((name for name in field.names if name in data), None)
        if name is not None:
            values[field.keyword] = _part(field.hint, data[name], f".{name}")
        elif field.is_required:
            msg = f"Object missing required field `{field.names[-1]}`"
            raise DecodingError(msg)
    return _made(cls, values)


def _made(cls: Any, values: dict[str, Any]) -> Any:
    try:
        return cls(**values)
    except RecursionError:
        raise
    except Exception as error:  # of a converter, a validator, the constructor
        msg = f"{text_of(cls)} refuses it: {error}"
        raise DecodingError(msg) from error


def _takes_fields(kind: Any) -> bool:
    """Whether the values of an annotation are made of named fields."""
    cls: Any = class_of(kind)
    return hasattr(cls, "model_fields") or cls in (dict, Mapping) or data_fields_of(cls) is not None


def _knows_all(kind: Any, data: Mapping[Any, Any]) -> bool:
    """Whether a class declares fields for all keys of some data."""
    cls: Any = class_of(kind)
    if hasattr(cls, "model_fields"):
        fields = cast("dict[str, Any]", cls.model_fields)
        return data.keys() <= {*fields, *(f.alias for f in fields.values() if f.alias)}
    declared = data_fields_of(cls)
    if declared is None:
        return True
    # Fields that the constructor does not take count as well.
    others = {f.name for f in getattr(cls, "__attrs_attrs__", ())}
    others |= {*getattr(cls, "__dataclass_fields__", ())}
    return data.keys() - others <= {name for field in declared.fields for name in field.names}
