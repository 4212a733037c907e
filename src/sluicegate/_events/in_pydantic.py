"""Events as fields of pydantic models: the core schema that validates and serializes them.

This module is imported when pydantic asks for the schema, so pydantic is imported by then.
"""

from __future__ import annotations

import typing
from typing import Any, cast

import attrs

from sluicegate._annotations import hints_by_keyword
from sluicegate._events.generics import origin_of
from sluicegate._events.idioms import DESCRIBING


def core_schema_of(cls: type, handler: Any) -> Any:
    """Return the core schema of an event class.

    Pydantic accepts an instance unchanged. It makes an event of a mapping by the rules of the class:
    unknown fields are refused unless the class is open, and the constructor checks the rest. It
    serializes an event as a mapping of its fields.

    Args:
        cls: The event class.
        handler: The handler that pydantic passes to ``__get_pydantic_core_schema__``.

    Raises:
        TypeError: An annotation of the class cannot be resolved.
    """
    from pydantic_core import core_schema  # noqa: PLC0415 - pydantic is in use by now

    fields = handler.generate_schema(_shape_of(cls))
    declared = {f.name: f.alias for f in attrs.fields(cls) if f.init}
    is_open: bool = getattr(cls, "_open")  # noqa: B009 - this module lies below the events

    generic = origin_of(cls)

    def build(value: Any, read: Any) -> Any:
        if isinstance(value, cls):
            return value
        if generic is not None and value.__class__ is generic:
            event: Any = value
            held = event.to_dict()  # pydantic validates its fields
            value = {declared.get(name, name): part for name, part in held.items()}
        given: dict[str, Any] = read(value)
        try:
            return cls(**given)
        except TypeError as error:  # pydantic only reports a ValueError
            raise ValueError(str(error)) from error

    def held_by(event: Any) -> dict[str, Any]:
        held: dict[str, Any] = event.to_dict()
        if not is_open:
            return {alias: held[name] for name, alias in declared.items() if name in held}
        shown = {name: value for name, value in held.items() if not name.startswith("_")}
        return {declared.get(name, name): _plain(value) for name, value in shown.items()}

    def write(event: Any, write_fields: Any) -> Any:
        return write_fields(held_by(event))

    if is_open and _loses_open_fields():
        written: Any = core_schema.plain_serializer_function_ser_schema(
            held_by, return_schema=core_schema.dict_schema()
        )
    else:
        written = core_schema.wrap_serializer_function_ser_schema(write, schema=fields)
    return core_schema.no_info_wrap_validator_function(build, fields, serialization=written)


def _loses_open_fields() -> bool:
    """Whether this version of pydantic drops extra keys of a ``TypedDict`` when serializing."""
    import pydantic  # noqa: PLC0415

    return tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 12)


def _plain(value: Any) -> Any:
    """Return the value of an open field with events in it as mappings; it has no annotation."""
    if hasattr(cast("Any", type(value)), "_holds_more"):  # an event
        return {name: _plain(part) for name, part in value.to_dict().items()}
    if type(value) is dict:
        members = cast("dict[Any, Any]", value)
        return {key: _plain(part) for key, part in members.items()}
    if type(value) in (list, tuple):
        return [_plain(part) for part in value]
    return value


def _shape_of(cls: Any) -> Any:
    """Return a ``TypedDict`` with the fields of an event class.

    It names the definitions in a JSON schema and lets classes refer to each other, as pydantic's
    models do. It is made once, so that pydantic recognises a class that refers to itself.
    """
    if "_shape" in vars(cls):
        return cast("Any", vars(cls)["_shape"])
    import typing_extensions  # noqa: PLC0415 - pydantic refuses the TypedDict of Python 3.11
    from pydantic import ConfigDict  # noqa: PLC0415

    hints = hints_by_keyword(cls)
    fields = {f.alias: _field_of(f, hints[f.alias]) for f in attrs.fields(cls) if f.init}
    make: Any = typing_extensions.TypedDict
    shape = make(cls.__name__, fields)
    shape.__module__ = cls.__module__
    shape.__qualname__ = cls.__qualname__
    shape.__doc__ = cast("dict[str, Any]", vars(cls)).get("__doc__")
    shape.__pydantic_config__ = ConfigDict(
        extra="allow" if cls._open else "forbid", arbitrary_types_allowed=True, title=cls.__name__
    )
    # Stored in the class itself, so that both are garbage-collected together.
    setattr(cls, "_shape", shape)  # noqa: B010
    return shape


def _field_of(field: attrs.Attribute[Any], hint: Any) -> Any:
    from pydantic import Field  # noqa: PLC0415

    described: dict[str, Any] = {n: field.metadata[n] for n in DESCRIBING if n in field.metadata}
    is_plain = isinstance(field.default, str | int | float | bool | None)
    if field.default is not attrs.NOTHING and is_plain:
        more = cast("object", described.get("json_schema_extra", {}))
        if isinstance(more, dict):
            described["json_schema_extra"] = {"default": field.default, **more}
    if described:
        hint = typing.Annotated[hint, Field(**described)]
    return hint if field.default is attrs.NOTHING else typing.NotRequired[hint]
