"""The declared fields of a class: annotations, defaults, and functions that change values."""

from __future__ import annotations

import enum
import typing
from collections import deque
from typing import Any

import attrs

from sluicegate._annotations import behind, hints_of
from sluicegate._data.pydantic import is_strict, pydantic_config, pydantic_fields


@attrs.frozen
class Traits:
    """The fields that a class declares.

    Attributes:
        hints: The resolved annotations, by name.
        defaults: Examples of default values, by name.
        converted: The fields whose values a user's function converts when an object is made, so
            that they can differ from the annotation.
        converts_on_set: Whether an assignment calls these functions too.
        strict: The fields whose values pydantic's core must not convert.
    """

    hints: dict[str, Any]
    defaults: dict[str, Any]
    converted: frozenset[str]
    converts_on_set: bool
    strict: frozenset[str] = frozenset()


def traits_of(cls: Any) -> Traits:
    """Return the declared fields of an attrs class, a dataclass or a pydantic model.

    Raises:
        TypeError: An annotation cannot be resolved.
    """
    if hasattr(cls, "__pydantic_fields__") or hasattr(cls, "model_fields"):
        return _traits_of_pydantic(cls)
    hints = hints_of(cls)
    if attrs.has(cls):
        fields: tuple[Any, ...] = attrs.fields(cls)
        defaults = [(f.name, f.default, getattr(f.default, "factory", None)) for f in fields]
        converted = frozenset(field.name for field in fields if field.converter is not None)
        return Traits(hints, _examples(defaults), converted, converts_on_set=True)
    import dataclasses  # noqa: PLC0415 - not at start-up

    defaults = [(f.name, f.default, f.default_factory) for f in dataclasses.fields(cls)]
    return Traits(hints, _examples(defaults), frozenset(), converts_on_set=False)


def _examples(defaults: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    """Return an example of each default that is known without calling user code.

    Args:
        defaults: The name of each field, its default and its default factory.
    """
    made = {name: value for name, value, _ in defaults if value is not attrs.NOTHING}
    for name, _, factory in defaults:
        if factory in (list, dict, set, tuple, str, int, float, bool, bytes, frozenset, deque):
            made[name] = factory()
    return made


def _traits_of_pydantic(cls: Any) -> Traits:
    fields, config = pydantic_fields(cls), pydantic_config(cls)
    if not getattr(cls, "__pydantic_complete__", True):
        hints_of(cls)  # raises
    return Traits(
        {name: field.annotation for name, field in fields.items()},
        _examples([(name, field.default, field.default_factory) for name, field in fields.items()]),
        _converted_by_pydantic(cls, fields, config),
        converts_on_set=bool(config.get("validate_assignment")),
        strict=frozenset(
            name
            for name, field in fields.items()
            if config.get("strict") or any(map(is_strict, field.metadata))
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
    """Whether metadata of an annotation changes values, as ``AfterValidator`` does."""
    return hasattr(metadata, "__get_pydantic_core_schema__")


def _has_function(hint: Any, config: dict[str, Any]) -> bool:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return bool(config.get("use_enum_values"))
    if named := behind(hint):
        return _has_function(named[0], {})
    if typing.get_origin(hint) is typing.Annotated:
        kind, *more = typing.get_args(hint)
        return any(map(_is_function, more)) or _has_function(kind, config)
    return any(_has_function(part, config) for part in typing.get_args(hint))
