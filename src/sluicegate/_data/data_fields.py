"""The fields that a class takes from plain data: their names and annotations, and which are required.

Decoding and the JSON Schema of events both use them.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections import deque
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Mapping,
    MutableSequence,
    MutableSet,
    Sequence,
)
from collections.abc import Set as AbstractSet
from pathlib import PurePath
from typing import Any, TypeVar, Union, cast

import attrs
import msgspec

from sluicegate._annotations import UNRESOLVED, behind, class_of, hints_of, is_typeddict, resolve
from sluicegate._data.refusals import DecodingError
from sluicegate._events import Event, is_open
from sluicegate._events.generics import substituted
from sluicegate._foreign import is_init_var, is_of


#: The classes of collections, each with the class of the decoded value.
COLLECTIONS: dict[Any, Any] = {
    **{cls: cls for cls in (list, set, frozenset, deque)},
    **dict.fromkeys((Collection, Iterable, MutableSequence, Sequence), list),
    **dict.fromkeys((AbstractSet, MutableSet), set),
}
_FACTORY: Any = attrs.Factory
#: The attributes that mark classes with such fields, and the attribute in which a class keeps them.
_MARKS = ("__attrs_attrs__", "__dataclass_fields__", "__required_keys__", "__struct_config__")
_KEPT = "_sluicegate_data_fields"


@attrs.frozen
class DataField:
    """A field that data can set.

    Attributes:
        keyword: Its keyword in the constructor.
        names: Its names in data; the first one that is present is used.
        hint: The annotation of its value in data: that of its converter, if it has one.
        is_required: Whether it has no default.
        default: Its default, if that is a value.
        metadata: The metadata of an attrs field.
    """

    keyword: str
    names: tuple[str, ...]
    hint: Any
    is_required: bool
    default: Any = attrs.Factory(lambda: attrs.NOTHING)
    metadata: Mapping[Any, Any] = types.MappingProxyType({})


@attrs.frozen
class DataFields:
    """The fields of a class that data can set.

    Attributes:
        fields: The fields that its constructor takes.
        is_closed: Whether it refuses other keys.
        tag: The key that names the class in data, and its value, if the class has a tag.
    """

    fields: list[DataField]
    is_closed: bool = False
    tag: tuple[str, Any] | None = None


def data_fields_of(cls: Any, arguments: tuple[Any, ...] = ()) -> DataFields | None:
    """Return the fields that data can set in a class with named fields, or None for any other class.

    These are events, attrs classes, dataclasses, typed dicts and structs. Pydantic decodes its own.

    Args:
        cls: The class.
        arguments: The arguments of a generic alias of it.

    Raises:
        DecodingError: An annotation cannot be resolved.
    """
    if arguments or not any(hasattr(cls, mark) for mark in _MARKS):
        return _data_fields_of(cls, arguments)
    if _KEPT not in vars(cls):
        # In the class itself, so that both are garbage-collected together.
        type.__setattr__(cls, _KEPT, _data_fields_of(cls, ()))
    return cast("DataFields | None", vars(cls)[_KEPT])


def _data_fields_of(cls: Any, arguments: tuple[Any, ...]) -> DataFields | None:
    if attrs.has(cls):
        event: Any = cls if issubclass(cls, Event) else None
        hints = hints_in(cls, arguments)
        return DataFields(
            [_of_attrs(f, hints, event is not None) for f in attrs.fields(cls) if f.init],
            is_closed=event is not None and not is_open(event),
        )
    if isinstance(cls, type) and hasattr(cls, "__dataclass_fields__"):
        return DataFields(_of_dataclass(cls, hints_in(cls, arguments)))
    if is_typeddict(cls):
        return DataFields([_of_key(cls, *item) for item in hints_in(cls, arguments).items()])
    config = getattr(cls, "__struct_config__", None)
    if config is None or config.array_like:
        return None
    tag = None if config.tag_field is None else (config.tag_field, config.tag)
    hints = hints_in(cls, arguments)
    fields = [
        DataField(f.name, (f.encode_name,), hints[f.name], f.required, _value(f.default))
        for f in msgspec.structs.fields(cls)
    ]
    return DataFields(fields, is_closed=config.forbid_unknown_fields, tag=tag)


def _of_attrs(field: Any, hints: dict[str, Any], is_event: bool) -> DataField:
    names = (field.alias,) if is_event else tuple(dict.fromkeys((field.alias, field.name)))
    hint = _given_to(field.converter, hints.get(field.name, Any))
    is_required = field.default is attrs.NOTHING
    return DataField(field.alias, names, hint, is_required, _value(field.default), field.metadata)


def _of_dataclass(cls: Any, hints: dict[str, Any]) -> list[DataField]:
    import dataclasses  # noqa: PLC0415 - a dataclass is there, so it is imported

    found: list[DataField] = []
    for name, field in cls.__dataclass_fields__.items():
        if field.init and field._field_type.name != "_FIELD_CLASSVAR":
            hint = hints.get(name, Any)
            hint = hint.type if is_init_var(hint) else hint
            is_required = field.default is field.default_factory is dataclasses.MISSING
            default = attrs.NOTHING if field.default is dataclasses.MISSING else field.default
            found.append(DataField(name, (name,), hint, is_required, default))
    return found


def _of_key(cls: Any, name: str, hint: Any) -> DataField:
    is_required = name in cls.__required_keys__
    while typing.get_origin(hint) in (typing.Required, typing.NotRequired):
        is_required = typing.get_origin(hint) is typing.Required
        (hint,) = typing.get_args(hint)
    return DataField(name, (name,), hint, is_required)


def _value(default: Any) -> Any:
    is_value = default is not msgspec.NODEFAULT and not isinstance(default, _FACTORY)
    return default if is_value else attrs.NOTHING


def _given_to(converter: Any, hint: Any) -> Any:
    """Return the annotation of the parameter of a converter, or ``hint`` if it has none."""
    function: Any = getattr(converter, "converter", converter)
    if not isinstance(function, types.FunctionType):
        return hint
    try:
        first = next(iter(inspect.signature(function).parameters), None)
        return resolve(function).get(first or "", hint)
    except UNRESOLVED:
        return hint


# -- annotations ------------------------------------------------------------------------------------


def hints_in(cls: Any, arguments: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Return the resolved annotations of a class, given the arguments of a generic alias.

    Raises:
        DecodingError: One of them cannot be resolved.
    """
    try:
        hints = hints_of(cls)
    except TypeError as error:
        raise DecodingError(str(error)) from error.__cause__
    meaning = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    return {name: substituted(hint, meaning) for name, hint in hints.items()}


def items_of(cls: Any, arguments: tuple[Any, ...]) -> tuple[list[Any], int]:
    """Return the annotations of the items of a tuple of fixed length, and the minimal length."""
    if not hasattr(cls, "_fields"):
        return list(arguments), len(arguments)
    hints = hints_in(cls, arguments)
    items = [hints[name] for name in cls._fields]
    return items, len(items) - len(cls._field_defaults)


def meant_by(hint: Any) -> Any:
    """Return the annotation behind a type variable, a ``NewType`` or a ``type`` statement."""
    while True:
        origin: Any = typing.get_origin(hint)
        if isinstance(hint, TypeVar):
            hint = hint.__bound__ or Union[hint.__constraints__ or (Any,)]  # noqa: UP007
        elif hasattr(origin, "__value__"):  # a generic alias of a `type` statement
            hint = origin.__value__[typing.get_args(hint)]
        elif named := behind(hint):
            hint = named[0]
        else:
            return hint


def made_of_text(kind: Any) -> Callable[[str], Any] | None:
    """Return the function that makes a value of a class that msgspec does not know from text."""
    cls: Any = class_of(kind)
    if not isinstance(cls, type):
        return None
    if issubclass(cls, PurePath) or cls.__module__ in ("ipaddress", "fractions", "zoneinfo"):
        return cast("Callable[[str], Any]", cls)
    return sys.modules["re"].compile if is_of(cast("Any", cls), "re", "Pattern") else None
