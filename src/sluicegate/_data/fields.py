"""What a class says of its fields: their annotations, their defaults, and what changes their values."""

from __future__ import annotations

import enum
import functools
import types
import typing
from collections import deque
from collections.abc import Mapping
from typing import Any, Union, cast

import attrs

from sluicegate._annotations import ATOMS, behind, is_typeddict


@attrs.frozen
class Traits:
    """What a class with declared fields says of them.

    Attributes:
        hints: The resolved annotations, by name.
        defaults: The defaults that are values, and the classes that are default factories.
        converted: The fields whose values pass through a function of the user's when an object is
            made, and may be of another class than the annotation says.
        converts_on_set: Whether an assignment runs these functions too.
        strict: The fields of which pydantic's core is to convert nothing.
    """

    hints: dict[str, Any]
    defaults: dict[str, Any]
    converted: frozenset[str]
    converts_on_set: bool
    strict: frozenset[str] = frozenset()


def traits_of(cls: Any) -> Traits:
    """Return what an attrs class, a dataclass or a pydantic model says of its fields.

    Raises:
        TypeError: An annotation cannot be resolved.
    """
    if hasattr(cls, "__pydantic_fields__") or hasattr(cls, "model_fields"):
        return _traits_of_pydantic(cls)
    hints = _resolved(cls)
    if not attrs.has(cls):
        made = {field.name: field for field in _dataclass_fields(cls)}
        defaults = {n: f.default for n, f in made.items()}
        factories = {n: f.default_factory for n, f in made.items()}
        return Traits(hints, _examples(defaults, factories), frozenset(), converts_on_set=False)
    fields: tuple[Any, ...] = attrs.fields(cls)
    factories = {f.name: getattr(f.default, "factory", None) for f in fields}
    return Traits(
        hints,
        _examples({f.name: f.default for f in fields}, factories),
        frozenset(field.name for field in fields if field.converter is not None),
        converts_on_set=True,
    )


def _dataclass_fields(cls: Any) -> tuple[Any, ...]:
    import dataclasses  # noqa: PLC0415 - not at start-up

    return dataclasses.fields(cls)


def _resolved(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        msg = (
            f"cannot resolve the annotations of {cls.__qualname__}: {error}; expected "
            f"names importable from {cls.__module__!r} (not under TYPE_CHECKING)"
        )
        raise TypeError(msg) from error


def _examples(defaults: dict[str, Any], factories: dict[str, Any]) -> dict[str, Any]:
    """Return a value such as a field has by default, where it can be told without a call."""
    made = {name: value for name, value in defaults.items() if value is not attrs.NOTHING}
    for name, factory in factories.items():
        if factory in (list, dict, set, tuple, str, int, float, bool, bytes, frozenset, deque):
            made[name] = factory()
    return made


# -- pydantic -----------------------------------------------------------------------------------


def pydantic_fields(cls: Any) -> dict[str, Any]:
    """Return the fields of a pydantic model or dataclass, by name."""
    fields: dict[str, Any] | None = cls.__dict__.get("__pydantic_fields__")
    return fields if fields is not None else getattr(cls, "model_fields", {})


def pydantic_config(cls: Any) -> dict[str, Any]:
    """Return the configuration of a pydantic model or dataclass."""
    return getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None) or {}


def _traits_of_pydantic(cls: Any) -> Traits:
    fields, config = pydantic_fields(cls), pydantic_config(cls)
    if not getattr(cls, "__pydantic_complete__", True):
        _resolved(cls)  # raises
    return Traits(
        {name: field.annotation for name, field in fields.items()},
        _examples(
            {name: field.default for name, field in fields.items()},
            {name: field.default_factory for name, field in fields.items()},
        ),
        _converted_by_pydantic(cls, fields, config),
        converts_on_set=bool(config.get("validate_assignment")),
        strict=frozenset(
            name
            for name, field in fields.items()
            if config.get("strict") or any(map(_is_strict, field.metadata))
        ),
    )


def _converted_by_pydantic(
    cls: Any, fields: dict[str, Any], config: dict[str, Any]
) -> frozenset[str]:
    decorators = cls.__pydantic_decorators__
    if any(found.info.mode != "before" for found in decorators.model_validators.values()):
        return frozenset(fields)
    told = [found.info for found in decorators.field_validators.values()]
    named = {name for info in told if info.mode != "before" for name in info.fields}
    named |= {name for info in decorators.validators.values() for name in info.info.fields}
    if "*" in named:
        return frozenset(fields)
    return frozenset(
        name
        for name, field in fields.items()
        if name in named
        or any(map(_is_function, field.metadata))
        or _has_function(field.annotation, config)
    )


def _is_function(metadata: Any) -> bool:
    """Whether what an annotation carries makes values of its own, as ``AfterValidator`` does."""
    return hasattr(metadata, "__get_pydantic_core_schema__")


def _is_strict(metadata: Any) -> bool:
    return getattr(metadata, "strict", None) is True


def _has_function(hint: Any, config: dict[str, Any]) -> bool:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return bool(config.get("use_enum_values"))
    if named := behind(hint):
        return _has_function(named[0], {})
    if typing.get_origin(hint) is typing.Annotated:
        kind, *more = typing.get_args(hint)
        return any(map(_is_function, more)) or _has_function(kind, config)
    return any(_has_function(part, config) for part in typing.get_args(hint))


@functools.cache
def _core() -> frozenset[Any]:
    """Return the classes that pydantic's core makes of others, by no function of a class."""
    import datetime as dt  # noqa: PLC0415 - not at start-up
    from decimal import Decimal  # noqa: PLC0415
    from uuid import UUID  # noqa: PLC0415

    dates = {dt.date, dt.datetime, dt.time, dt.timedelta}
    return frozenset({*ATOMS, *dates, complex, Decimal, UUID, Any})


_CONTAINERS = (list, dict, set, frozenset, tuple)


def _bare(hint: Any) -> Any:
    """Return an annotation of core types without its functions and constraints.

    Raises:
        LookupError: Something in it is no core type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        if any(map(_is_strict, arguments[1:])):
            raise LookupError
        return _bare(arguments[0])
    if hint in (None, ...) or origin is typing.Literal:
        return hint
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_bare, arguments))]  # noqa: UP007 - made here
    if origin in _CONTAINERS:
        return cast("Any", origin)[tuple(map(_bare, arguments))]
    if hint in _core() or hint in _CONTAINERS:
        return hint
    raise LookupError


def convert(hint: Any, value: Any) -> tuple[Any, Exception | None]:
    """Convert a value as pydantic's core does, by none of the functions in the annotation.

    Returns:
        The converted value and None; or the value, and why it cannot be converted.
    """
    from pydantic import TypeAdapter  # noqa: PLC0415 - it is there: the class is one of pydantic's

    try:
        adapter: Any = TypeAdapter(_bare(hint))
        return adapter.validate_python(value), None
    except (LookupError, ValueError, TypeError) as error:
        return value, error


# -- what data from outside may give ---------------------------------------------------------------


def parameters_of(cls: Any) -> list[tuple[str, str, bool, Any]]:
    """Return the fields that the constructor takes: name, keyword, whether needed, converter."""
    if attrs.has(cls):
        return [
            (f.name, f.alias, f.default is attrs.NOTHING, f.converter)
            for f in attrs.fields(cls)
            if f.init
        ]
    import dataclasses  # noqa: PLC0415 - a dataclass is there, so it is imported

    fields: dict[str, Any] = cls.__dataclass_fields__
    return [
        (name, name, f.default is f.default_factory is dataclasses.MISSING, None)
        for name, f in fields.items()
        if f.init and f._field_type.name != "_FIELD_CLASSVAR"
    ]


def takes_fields(kind: Any) -> bool:
    """Whether the values of an annotation are made of named fields."""
    cls: Any = typing.get_origin(kind) or kind
    marks = ("__attrs_attrs__", "__dataclass_fields__", "model_fields", "__struct_fields__")
    return any(hasattr(cls, mark) for mark in marks) or is_typeddict(cls) or cls in (dict, Mapping)


def knows_all(kind: Any, data: Mapping[Any, Any]) -> bool:
    """Whether all keys of some data are fields of the class, as far as it declares them."""
    cls: Any = typing.get_origin(kind) or kind
    if attrs.has(cls):
        known = {name for f in attrs.fields(cls) for name in (f.name, f.alias)}
    elif hasattr(cls, "model_fields"):
        fields = cast("dict[str, Any]", cls.model_fields)
        known = {*fields, *(f.alias for f in fields.values() if f.alias)}
    elif hasattr(cls, "__struct_encode_fields__"):
        known = set(cls.__struct_encode_fields__)
    elif hasattr(cls, "__dataclass_fields__"):
        known = set(cls.__dataclass_fields__)
    elif is_typeddict(cls):
        known = {*cls.__required_keys__, *cls.__optional_keys__}
    else:
        return True
    return data.keys() <= known
