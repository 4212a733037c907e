"""Recognise objects of libraries that may not be installed, by the names of their classes."""

from __future__ import annotations

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
    """Whether ``value`` is pydantic's marker for no value."""
    return value is ... or type(value).__name__ in ("PydanticUndefinedType", "UndefinedType")


def is_function(part: Any) -> bool:
    """Whether a part of an annotation has a function that pydantic calls."""
    validators = ("AfterValidator", "BeforeValidator", "PlainValidator", "WrapValidator")
    names = (*validators, "PlainSerializer", "WrapSerializer")
    return any(is_instance_of(part, "pydantic", name) for name in names)


def is_constraint(part: Any) -> bool:
    """Whether a part of an annotation is a constraint, of pydantic or ``annotated_types``."""
    if is_instance_of(part, "pydantic", "UrlConstraints"):  # these make a type, such as HttpUrl
        return False
    names = ("BaseMetadata", "GroupedMetadata", "Predicate")
    if any(is_instance_of(part, "annotated_types", name) for name in names):
        return not is_instance_of(part, "annotated_types", "DocInfo")
    return is_instance_of(part, "pydantic", "PydanticMetadata")
