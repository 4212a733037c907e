"""Classes with fields: reading and building instances without running their constructors."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import types
import typing
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from sluicegate._annotations import behind, is_typeddict
from sluicegate._data.builtins import Row
from sluicegate._data.form import (
    Field,
    Form,
    defaults_of,
    kinds_of_field,
    known_hints_of,
    looks_of,
)
from sluicegate._data.pydantic import (
    field_of_pydantic,
    is_secret,
    model_form,
    pydantic_fields,
    secret_form,
    url_row,
)
from sluicegate._data.refusals import MismatchError, refuse_content, reported
from sluicegate._errors import brief
from sluicegate._events import Event, is_open


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._data.refusals import Kinds

_HASH = "_attrs_cached_hash"  # a hash that attrs caches is valid in one process only
_TUPLE: Any = tuple
_FACTORY: Any = attrs.Factory
_OBJECT: Any = object


def form_of(hint: Any) -> Form | Row | None:  # noqa: PLR0911, C901 - one for each kind of class
    """Return how snapshots keep instances of a class, or None if they cannot."""
    if not isinstance(hint, type):
        return None
    cls = cast("Any", hint)
    if issubclass(cls, BaseException) or inspect.isabstract(cls):
        return None
    if issubclass(cls, enum.Enum):
        return _flag_row(cls) if issubclass(cls, enum.Flag) else _enum_row(cls)
    if issubclass(cls, tuple):
        return _tuple_form(hint) if hasattr(hint, "_fields") else None
    if _is_a(cls, "msgspec", "Struct"):
        return _struct_form(cls)
    if _is_a(cls, "pydantic", "BaseModel"):
        return model_form(cls)
    if is_secret(cls):
        return secret_form(cls)
    if (row := url_row(cls)) is not None:
        return row
    if _is_built_upon_c(cls):
        return None
    if attrs.has(cls):
        return _object_form(cls, {f.name: _of_attrs(f) for f in attrs.fields(cls)})
    if not hasattr(cls, "__dataclass_fields__"):
        return None
    return _object_form(cls, _dataclass_fields(cls))


# -- kinds of classes -----------------------------------------------------------------------------


def _of_attrs(field: Any) -> Field:
    default, converter = field.default, field.converter
    if default is attrs.NOTHING:
        return Field(is_set=field.init, is_loose=converter is not None)
    factory: Any = default if isinstance(default, _FACTORY) else None
    make = _gives(default)
    if factory is not None:
        make = factory.factory if factory.takes_self else _calls(factory.factory)
    return Field(
        default if factory is None else attrs.NOTHING,
        make=make,
        is_loose=converter is not None,
        convert=converter if isinstance(converter, type | types.FunctionType) else None,
    )


def _is_built_upon_c(cls: type) -> bool:
    """Whether an instance may have state outside its attributes."""
    made_by = [vars(base).get("__new__") for base in cls.__mro__[:-1]]
    return any(isinstance(new, types.BuiltinFunctionType) for new in made_by)


def _is_a(cls: type, module: str, name: str) -> bool:
    """Whether ``cls`` derives from a class of a package, without importing the package."""
    base = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and issubclass(cls, base)


def _dataclass_fields(cls: Any) -> dict[str, Field]:
    import dataclasses  # noqa: PLC0415 - not at start-up

    if hasattr(cls, "__pydantic_validator__"):
        told = pydantic_fields(cls)
        return {name: field_of_pydantic(field) for name, field in told.items()}
    made: dict[str, Field] = {}
    for field in dataclasses.fields(cls):
        default, factory = cast("Any", field.default), cast("Any", field.default_factory)
        if factory is not dataclasses.MISSING:
            made[field.name] = Field(make=_calls(factory))
        elif default is dataclasses.MISSING:
            made[field.name] = Field(is_set=field.init)
        else:
            made[field.name] = Field(default, make=_gives(default))
    return made


def _gives(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _calls(factory: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda _: factory()


def _enum_row(cls: type[enum.Enum]) -> Row:
    members = cls.__members__

    def split(value: enum.Enum) -> tuple[str]:
        if members.get(value._name_) is not value:
            msg = f"is no declared member of {cls.__name__}; expected one of {', '.join(members)}"
            raise MismatchError(msg)
        return (value._name_,)

    def join(name: str) -> enum.Enum:
        if name not in members:
            refuse_content(f"{cls.__name__} has no member {brief(name)}")
        return members[name]

    return Row(cls, "", ((str,),), split, join, exact=False)


def _flag_row(cls: type[enum.Flag]) -> Row:
    find: Any = enum.Flag._missing_  # the class may override it

    def join(value: int) -> Any:
        known = cls._value2member_map_.get(value)
        return find.__func__(cls, value) if known is None else known

    return Row(cls, "", ((int,),), lambda value: (value._value_,), join)


def _tuple_form(cls: Any) -> Form:
    names: tuple[str, ...] = cls._fields
    defaults: dict[str, Any] = getattr(cls, "_field_defaults", {})
    hints = known_hints_of(cls)
    iter_tuple, new_tuple = _TUPLE.__iter__, _TUPLE.__new__
    return Form(
        cls,
        {name: kinds_of_field(hints, name, defaults.get(name, attrs.NOTHING)) for name in names},
        frozenset(names),
        [hints.get(name, Any) for name in names],
        lambda value: dict(zip(names, iter_tuple(value), strict=True)),
        lambda values, _: new_tuple(cls, [values[name] for name in names]),
        defaults={name: _gives(made) for name, made in defaults.items()},
        looks=looks_of(hints, names),
    )


def _struct_form(cls: Any) -> Form:
    names: tuple[str, ...] = cls.__struct_fields__
    given: tuple[Any, ...] = cls.__struct_defaults__
    told = dict(zip(reversed(names), reversed(given), strict=False))
    optional = {name for name, default in told.items() if repr(default) != "NODEFAULT"}
    values = {n: d for n, d in told.items() if n in optional and not hasattr(d, "factory")}
    hints = known_hints_of(cls)
    make = _bare_struct(cls) if hasattr(cls, "__post_init__") else cls

    def build(values: dict[str, Any], _rest: dict[str, Any]) -> Any:
        with reported():
            made = make(**values)
        if make is not cls:
            _OBJECT.__dict__["__class__"].__set__(made, cls)
        return made

    return Form(
        cls,
        {name: kinds_of_field(hints, name, values.get(name, attrs.NOTHING)) for name in names},
        frozenset(names) - optional,  # msgspec fills in the others
        [hints.get(name, Any) for name in names],
        lambda value: {name: getattr(value, name) for name in names},
        build,
        looks=looks_of(hints, names),
    )


def _bare_struct(cls: Any) -> Any:
    """Return a class with the object layout of ``cls`` that runs no user code."""

    class Bare:
        __slots__ = ()

        def __init_subclass__(cls, **_: Any) -> None:
            """Do not run the hook of the class."""

        def __post_init__(self) -> None:
            """Do not run the hook of the class."""

    meta: Any = cast("Any", type(cls))
    return meta.__new__(meta, cls.__name__, (Bare, cls), {"__module__": cls.__module__})


def unset_row() -> list[Row]:
    """Return the row of ``msgspec.UNSET`` if msgspec is imported."""
    unset: Any = getattr(sys.modules.get("msgspec"), "UNSET", None)
    if unset is None:
        return []
    none: Kinds = (type(None),)

    def join(_none: None) -> Any:
        return unset

    return [Row(cast("Any", type(unset)), "UNSET", (none,), lambda _: (None,), join)]


def _object_form(cls: Any, fields: dict[str, Field]) -> Form:
    """Describe an event, attrs class or dataclass by its fields."""
    hints = known_hints_of(cls)
    hints |= {name: field.hint for name, field in fields.items() if field.hint is not None}
    mro: tuple[type, ...] = cls.__mro__
    held = [item for base in mro for item in vars(base).items()]
    slots = {name for name, part in held if isinstance(part, types.MemberDescriptorType)}
    cached = {name for name, part in held if isinstance(part, functools.cached_property)}
    code: types.CodeType | None = getattr(cls.__hash__, "__code__", None)
    reset = {_HASH: None} if code is not None and _HASH in code.co_names else {}
    kept = list(dict.fromkeys([*fields, *sorted(slots - {_HASH})]))
    build = _builder(cls, slots, reset)
    return Form(
        cls,
        {name: kinds_of_field(hints, name, field.default) for name, field in fields.items()},
        frozenset(name for name, field in fields.items() if field.is_set),
        [hints.get(name, Any) for name in fields],
        _reader(cls, kept if slots else []),
        build,
        more=is_open(cls)
        if issubclass(cls, Event)
        else cls.__dictoffset__ != 0 or len(kept) > len(fields),
        ignored=frozenset({"__orig_class__", _HASH, *cached} - fields.keys()),
        defaults=defaults_of(fields, hints, build),
        looks=looks_of(hints, fields),
        loose=frozenset(name for name, field in fields.items() if field.is_loose),
    )


def _reader(cls: type, slotted: list[str]) -> Callable[[Any], dict[str, Any]]:
    if issubclass(cls, Event):  # frozen, so no copy is needed
        return attrgetter("__dict__")
    if not slotted:
        return lambda value: dict(value.__dict__)

    def read(value: Any) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name in slotted:
            try:
                made[name] = object.__getattribute__(value, name)
            except AttributeError:
                continue  # not set
        return {**made, **getattr(value, "__dict__", {})}

    return read


def _builder(
    cls: type, slots: set[str], reset: dict[str, None]
) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    def build(values: dict[str, Any], rest: dict[str, Any]) -> Any:
        made = _OBJECT.__new__(cls)
        made.__dict__.update(values)
        if rest or reset:
            made.__dict__.update(rest, **reset)
        return made

    def build_slots(values: dict[str, Any], rest: dict[str, Any]) -> Any:
        made = _OBJECT.__new__(cls)
        for name, part in {**values, **rest, **reset}.items():
            if name in slots:
                object.__setattr__(made, name, part)
            elif hasattr(made, "__dict__"):
                made.__dict__[name] = part
            else:
                refuse_content(f"{cls.__name__} has no attribute {name!r}")
        return made

    return build_slots if slots else build


# -- annotations --------------------------------------------------------------------------------


def parts_of(hint: Any) -> list[Any]:  # noqa: PLR0911 - one for each form
    """Return the parts of an annotation: its arguments, or the annotations of a class's fields."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return [arguments[0]]
    if origin is typing.Literal:
        return [type(argument) for argument in arguments]
    if origin is not None:
        return [origin, *arguments]
    if isinstance(hint, list):  # the arguments of a Callable
        return list(cast("list[Any]", hint))
    if isinstance(hint, TypeVar):
        return [hint.__bound__, *hint.__constraints__]
    if is_typeddict(hint):
        return list(known_hints_of(hint).values())
    if isinstance(hint, type):
        form = form_of(hint)
        return form.hints if isinstance(form, Form) else []
    return behind(hint)
