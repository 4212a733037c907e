"""Objects of libraries that need not be installed, recognised by the names of their classes."""

from __future__ import annotations

import types
import typing
from typing import Any


def is_of(cls: type, package: str, name: str) -> bool:
    """Whether ``cls`` is the class called ``name`` of a package."""
    return cls.__name__ == name and cls.__module__.partition(".")[0] == package


def is_instance_of(value: Any, package: str, name: str) -> bool:
    """Whether the class of ``value`` derives from the one called ``name`` of a package."""
    return any(is_of(base, package, name) for base in type(value).__mro__)


def is_field_info(value: Any) -> bool:
    """Whether ``value`` is what ``pydantic.Field()`` returns."""
    return is_instance_of(value, "pydantic", "FieldInfo")


def is_private_attr(value: Any) -> bool:
    """Whether ``value`` is what ``pydantic.PrivateAttr()`` returns."""
    return is_instance_of(value, "pydantic", "ModelPrivateAttr")


def is_dataclass_field(value: Any) -> bool:
    """Whether ``value`` is what ``dataclasses.field()`` returns."""
    return is_instance_of(value, "dataclasses", "Field")


def is_struct_field(value: Any) -> bool:
    """Whether ``value`` is what ``msgspec.field()`` returns."""
    return is_instance_of(value, "msgspec", "Field")


def is_attrs_field(value: Any) -> bool:
    """Whether ``value`` is what ``attrs.field()`` returns."""
    return is_instance_of(value, "attr", "_CountingAttr")


def is_init_var(note: Any) -> bool:
    """Whether an annotation is ``dataclasses.InitVar[...]``."""
    return is_instance_of(note, "dataclasses", "InitVar")


def is_undefined(value: Any) -> bool:
    """Whether ``value`` is pydantic's word for no value."""
    return value is ... or type(value).__name__ in ("PydanticUndefinedType", "UndefinedType")


def is_function(part: Any) -> bool:
    """Whether a part of an annotation holds a function that pydantic would call."""
    validators = ("AfterValidator", "BeforeValidator", "PlainValidator", "WrapValidator")
    names = (*validators, "PlainSerializer", "WrapSerializer")
    return any(is_instance_of(part, "pydantic", name) for name in names)


def is_constraint(part: Any) -> bool:
    """Whether a part of an annotation restricts the values, in pydantic's words or the shared ones."""
    if is_instance_of(part, "pydantic", "UrlConstraints"):  # which make a type, such as HttpUrl
        return False
    names = ("BaseMetadata", "GroupedMetadata", "Predicate")
    if any(is_instance_of(part, "annotated_types", name) for name in names):
        return not is_instance_of(part, "annotated_types", "DocInfo")
    return is_instance_of(part, "pydantic", "PydanticMetadata")


def metadata(hint: Any) -> tuple[Any, ...]:
    """Return what ``Annotated`` adds to an annotation."""
    return hint.__metadata__ if typing.get_origin(hint) is typing.Annotated else ()


def deep_metadata(hint: Any) -> list[Any]:
    """Return what ``Annotated`` adds anywhere in an annotation."""
    found: list[Any] = []
    todo: list[Any] = [hint]
    while todo:
        part = todo.pop()
        origin = typing.get_origin(part)
        if origin is typing.Annotated:
            found += [one for one in metadata(part) if one is not None]
            todo.append(typing.get_args(part)[0])
        elif origin is not typing.Literal:
            todo += typing.get_args(part)
    return found


def shown(note: Any) -> str:  # noqa: PLR0911 - one for each form
    """Return an annotation as it is written, without what ``Annotated`` adds."""
    if isinstance(note, str):
        return note
    if note is None or note is type(None):
        return "None"
    origin, arguments = typing.get_origin(note), typing.get_args(note)
    if origin is typing.Annotated:
        return shown(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(shown(argument) for argument in arguments)
    if isinstance(origin, type) and arguments and not isinstance(arguments[0], list):
        return f"{origin.__name__}[{', '.join(map(shown, arguments))}]"
    if isinstance(note, type) and not arguments:
        return note.__name__
    return "..." if note is ... else str(note).replace("typing.", "")
