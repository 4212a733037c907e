"""Recognise objects of libraries that may not be installed, by the names of their classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable


def is_of(cls: type, package: str, name: str) -> bool:
    """Whether ``cls`` is the class called ``name`` of a package."""
    return cls.__name__ == name and cls.__module__.partition(".")[0] == package


def is_instance_of(value: Any, package: str, name: str) -> bool:
    """Whether the class of ``value`` derives from the one called ``name`` of a package."""
    return any(is_of(base, package, name) for base in type(value).__mro__)


def _recogniser(package: str, name: str) -> Callable[[Any], bool]:
    return lambda value: is_instance_of(value, package, name)


is_field_info = _recogniser("pydantic", "FieldInfo")  # pydantic.Field()
is_private_attr = _recogniser("pydantic", "ModelPrivateAttr")  # pydantic.PrivateAttr()
is_dataclass_field = _recogniser("dataclasses", "Field")  # dataclasses.field()
is_struct_field = _recogniser("msgspec", "Field")  # msgspec.field()
is_attrs_field = _recogniser("attr", "_CountingAttr")  # attrs.field()
is_init_var = _recogniser("dataclasses", "InitVar")  # the annotation dataclasses.InitVar[...]


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
