"""Attributes of event classes other than fields: methods, properties, and names of pydantic's."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs
from attrs.exceptions import FrozenInstanceError


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Lasting:
    """A method that a field of the same name in an open event does not hide."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, event: object, owner: type) -> Any:
        return self._function if event is None else types.MethodType(self._function, event)

    def __set__(self, event: object, value: object) -> NoReturn:
        raise FrozenInstanceError  # a descriptor with __set__ wins over the instance dict


class Advice:
    """A name that pydantic's objects have and events do not; its error names the replacement.

    Reading it raises ``AttributeError``, so ``hasattr()`` returns False.
    """

    def __init__(self, base: type, name: str, line: str) -> None:
        self._base = base
        self._name = name
        self._line = line

    def __get__(self, event: object, owner: type) -> Any:
        try:
            following = cast("Any", super(self._base, owner if event is None else event))
            return getattr(following, self._name)
        except AttributeError:
            line = self._line.format(cls=owner.__name__)
            msg = f"{owner.__name__} is an event and has no {self._name!r}; expected `{line}`"
            raise AttributeError(msg) from None


_JSON = "msgspec.json.encode(event.to_dict())"
_DECODE = "sluicegate.decode_event({cls}, data)"
_DECODE_JSON = "sluicegate.decode_event({cls}, msgspec.json.decode(text))"
_SCHEMA = "pydantic.TypeAdapter({cls}).json_schema()"
_FIELDS = "attrs.fields({cls})"
_EVOLVE = "attrs.evolve(event, field=...)"
#: Methods of pydantic and other libraries, each with the equivalent call for an event.
_ELSEWHERE = {
    **dict.fromkeys(("model_dump", "dict", "_asdict"), "event.to_dict()"),
    **dict.fromkeys(("model_dump_json", "json"), _JSON),
    **dict.fromkeys(("model_copy", "copy", "_replace"), _EVOLVE),
    **dict.fromkeys(("model_validate", "parse_obj", "validate", "from_orm"), _DECODE),
    **dict.fromkeys(("model_validate_json", "parse_raw", "model_validate_strings"), _DECODE_JSON),
    **dict.fromkeys(("model_construct", "construct"), "{cls}(field=...)"),
    **dict.fromkeys(("model_json_schema", "schema", "schema_json"), _SCHEMA),
    **dict.fromkeys(("model_fields", "__fields__", "_fields", "model_computed_fields"), _FIELDS),
    **dict.fromkeys(("model_fields_set", "model_extra"), "event.to_dict()"),
    **dict.fromkeys(("keys", "values", "items"), "event.to_dict().{name}()"),
    **dict.fromkeys(("model_rebuild", "update_forward_refs"), "attrs.resolve_types({cls})"),
}


def add_attributes(base: type) -> None:
    """Add the advice to the base of all events, and protect its methods from open fields.

    Call it after the class is made, because in its body the advice would hide ``dict`` from the
    annotations.
    """
    for name, line in _ELSEWHERE.items():
        setattr(base, name, Advice(base, name, line.replace("{name}", name)))
    for name in ("get", "to_dict"):
        setattr(base, name, Lasting(vars(base)[name]))


def _is_descriptor(value: object) -> bool:
    """Whether an attribute of a class is a method, a property or the like."""
    # Attributes implemented in C are descriptors too, such as ``args`` of an exception.
    plain = (type, types.GetSetDescriptorType, types.MemberDescriptorType, Advice)
    return hasattr(type(value), "__get__") and not isinstance(value, plain)


def refuse_shadows(cls: type, body: Mapping[str, Any]) -> None:
    """Raise if a field has the name of a method or a property.

    Args:
        cls: The class, after attrs has read it.
        body: The contents of its body before that.

    Raises:
        TypeError: A field has such a name.
    """
    for name in (f.name for f in attrs.fields(cls) if not f.name.startswith("_")):
        value = body.get(name)
        if _is_descriptor(value):
            if not isinstance(value, types.FunctionType):
                is_default = False
            else:  # a default value, unless it was defined under the field's name
                is_default = value.__qualname__ != f"{cls.__qualname__}.{name}"
            if not is_default:
                msg = (
                    f"{cls.__name__}.{name} is a field and a method; expected another name for one"
                )
                raise TypeError(msg)
        for base in cls.__mro__[1:]:
            if _is_descriptor(vars(base).get(name)):
                msg = (
                    f"{cls.__name__}.{name} is a field, but {name} is a method of {base.__name__}; "
                    f"expected another name: `{name}_: ... = attrs.field(alias={name!r})`"
                )
                raise TypeError(msg)


def descriptors_of(cls: type) -> tuple[frozenset[str], frozenset[str]]:
    """Return the public methods and properties that users define, and those that cache.

    A descriptor that has no ``__set__`` and is no function is assumed to store its value in the
    instance under its own name, as ``functools.cached_property`` does.
    """
    fields = {f.name for f in attrs.fields(cls)}
    found = {
        name: value
        for base in cls.__mro__
        if base is not object and base.__module__ != "sluicegate._events"
        for name, value in vars(base).items()
        if not name.startswith("__") and name not in fields and _is_descriptor(value)
    }
    plain = (types.FunctionType, classmethod, staticmethod)
    caching = {
        name
        for name, value in found.items()
        if not isinstance(value, plain) and not hasattr(cast("Any", type(value)), "__set__")
    }
    return frozenset(n for n in found if not n.startswith("_")), frozenset(caching)
