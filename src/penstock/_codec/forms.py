"""Classes with fields: how instances are read and built without running their constructors."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import types
import typing
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Union, cast

import attrs

from penstock._codec.rows import MismatchError, RestoredError, Row, refuse_content, reported
from penstock._events import Event


if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock._codec.rows import Kinds

_HASH = "_attrs_cached_hash"  # what attrs remembers of a hash holds for one process only
_KEPT = (
    "an event, an attrs class, a dataclass, a named tuple, an enum, a pydantic model or a Struct"
)
_PLAIN = (str, int, float, tuple, list, dict, set, frozenset, bytes, bytearray, deque)
_ANYTHING: Kinds = (object,)
_TUPLE: Any = tuple
_OBJECT: Any = object
_MODEL_STATE: dict[str, Kinds] = {
    "__pydantic_fields_set__": (set,),
    "__pydantic_extra__": (dict,),
    "__pydantic_private__": (dict,),
}


@attrs.frozen
class Form:
    """How the instances of a class are read and built.

    Attributes:
        cls: The class.
        kinds: The fields, and the classes that each may hold.
        required: The fields that are always set.
        hints: The annotations of the fields.
        read: Returns what an instance holds, by name.
        build: Makes an instance of the values of fields and of other attributes.
        more: Whether there may be other attributes.
        ignored: Other attributes that are not kept.
    """

    cls: type
    kinds: dict[str, Kinds]
    required: frozenset[str]
    hints: list[Any]
    read: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any], dict[str, Any]], Any]
    more: bool = False
    ignored: frozenset[str] = frozenset()

    def check_complete(self, values: dict[str, Any]) -> None:
        """Refuse values among which a field is missing.

        Raises:
            MismatchError: One is.
        """
        missing = [name for name in self.kinds if name in self.required and name not in values]
        if missing:
            msg = (
                f"lacks {', '.join(map(repr, missing))}; expected all fields of {self.cls.__name__}"
            )
            raise MismatchError(msg)

    def refuse_name(self) -> NoReturn:
        """Refuse an attribute that is no field."""
        fields = ", ".join(self.kinds) or "none"
        msg = f"is no field of {self.cls.__name__}; expected its fields: {fields}"
        raise MismatchError(msg)


def form_of(hint: Any) -> Form | Row | None:  # noqa: PLR0911 - one for each kind of class
    """Return how instances of a class are kept, or None where they cannot be."""
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
        return _model_form(cls)
    if _is_built_upon_c(cls):
        return None
    if attrs.has(cls):
        return _object_form(cls, {f.name: (f.default, f.init) for f in attrs.fields(cls)})
    return (
        _object_form(cls, _dataclass_fields(cls)) if hasattr(cls, "__dataclass_fields__") else None
    )


def refuse_value(value: Any, _depth: int) -> NoReturn:
    """Refuse a value of a class that the codec does not know."""
    cls = cast("type[Any]", type(value))
    name = cls.__qualname__
    if form_of(cls) is not None:
        msg = (
            f"is a {name}, a class that the workflow does not know; expected a value of a class "
            f"the workflow knows: Workflow(serializable=[{cls.__name__}])"
        )
        raise MismatchError(msg)
    plain = next((kind.__name__ for kind in _PLAIN if isinstance(value, kind)), None)
    if plain:
        msg = f"is a {name}, which cannot be kept as such; expected a plain {plain}: {plain}(value)"
    else:
        msg = (
            f"is a {name}, which cannot be kept; expected a value of a class the workflow knows "
            f"({_KEPT}: Workflow(serializable=[{cls.__name__}])), or, for what lives (a lock, a "
            f"socket, a function, a client), a resource: Annotated[{cls.__name__}, Resource(make)]"
        )
    raise MismatchError(msg)


# -- kinds of classes -----------------------------------------------------------------------------


def _is_built_upon_c(cls: type) -> bool:
    """Whether some state of an instance may be elsewhere than in its attributes."""
    made_by = [vars(base).get("__new__") for base in cls.__mro__[:-1]]
    return any(isinstance(new, types.BuiltinFunctionType) for new in made_by)


def _is_a(cls: type, module: str, name: str) -> bool:
    """Whether ``cls`` derives from a class of a package, which is not imported for that."""
    base = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and issubclass(cls, base)


def _dataclass_fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    import dataclasses  # noqa: PLC0415 - not at start-up

    made: dict[str, tuple[Any, bool]] = {}
    for field in dataclasses.fields(cls):
        lacks = field.default is field.default_factory is dataclasses.MISSING
        made[field.name] = (attrs.NOTHING if lacks else field.default, field.init)
    return made


def _enum_row(cls: type[enum.Enum]) -> Row:
    members = cls.__members__

    def split(value: enum.Enum) -> tuple[str]:
        if members.get(value._name_) is not value:
            msg = f"is no declared member of {cls.__name__}; expected one of {', '.join(members)}"
            raise MismatchError(msg)
        return (value._name_,)

    def join(name: str) -> enum.Enum:
        if name not in members:
            refuse_content(f"{cls.__name__} has no member {name!r}")
        return members[name]

    return Row(cls, "", ((str,),), split, join, exact=False)


def _flag_row(cls: type[enum.Flag]) -> Row:
    return Row(cls, "", ((int,),), lambda value: (value._value_,), cls)


def _tuple_form(cls: Any) -> Form:
    names: tuple[str, ...] = cls._fields
    defaults: dict[str, Any] = getattr(cls, "_field_defaults", {})
    hints = _hints_of(cls)
    iter_tuple, new_tuple = _TUPLE.__iter__, _TUPLE.__new__
    return Form(
        cls,
        {name: _kinds_of_field(hints, name, defaults.get(name, ...)) for name in names},
        frozenset(names),
        [hints.get(name, Any) for name in names],
        lambda value: dict(zip(names, iter_tuple(value), strict=True)),
        lambda values, _: new_tuple(cls, [values[name] for name in names]),
    )


def _struct_form(cls: Any) -> Form:
    names: tuple[str, ...] = cls.__struct_fields__
    defaults = dict(zip(reversed(names), reversed(cls.__struct_defaults__), strict=False))
    hints = _hints_of(cls)

    def build(values: dict[str, Any], _rest: dict[str, Any]) -> Any:
        with reported():
            return cls(**values)

    return Form(
        cls,
        {name: _kinds_of_field(hints, name, defaults.get(name, ...)) for name in names},
        frozenset(names),
        [hints.get(name, Any) for name in names],
        lambda value: {name: getattr(value, name) for name in names},
        build,
    )


def unset_row() -> list[Row]:
    """Return how ``msgspec.UNSET`` is kept, where msgspec is in use."""
    unset: Any = getattr(sys.modules.get("msgspec"), "UNSET", None)
    if unset is None:
        return []
    none: Kinds = (type(None),)

    def join(_none: None) -> Any:
        return unset

    return [Row(cast("Any", type(unset)), "UNSET", (none,), lambda _: (None,), join)]


def _model_form(cls: Any) -> Form:
    fields: dict[str, Any] = cls.model_fields
    private: dict[str, Any] = cls.__private_attributes__
    hints: dict[str, Any] = {name: field.annotation for name, field in fields.items()}
    kinds = {name: _kinds_of_field(hints, name, fields[name].default) for name in fields}
    required = {*fields, "__pydantic_fields_set__", *(["__pydantic_private__"] if private else [])}

    def read(value: Any) -> dict[str, Any]:
        held = value.__dict__
        made = {name: held[name] for name in fields if name in held}
        state = {name: getattr(value, name) for name in _MODEL_STATE}
        made.update((name, part) for name, part in state.items() if part is not None)
        return made

    def build(values: dict[str, Any], _rest: dict[str, Any]) -> Any:
        state = {name: values.pop(name, None) for name in _MODEL_STATE}
        extra: Any = state["__pydantic_extra__"]
        if extra is not None and cls.model_config.get("extra") != "allow":
            refuse_content(f"{cls.__name__} takes no extra fields")
        extra_names: list[Any] = list(extra or {})
        if not all(type(name) is str and name not in fields for name in extra_names):
            refuse_content("__pydantic_extra__ has a key that is no name, or that of a field")
        private_names: list[Any] = list(state["__pydantic_private__"] or {})
        if not all(name in private for name in private_names):
            refuse_content(f"__pydantic_private__ has an attribute that {cls.__name__} has not")
        if not state["__pydantic_fields_set__"] <= {*fields, *extra_names}:
            refuse_content(f"__pydantic_fields_set__ has a field that {cls.__name__} has not")
        made = _OBJECT.__new__(cls)
        object.__setattr__(made, "__dict__", values)
        for name, part in state.items():
            object.__setattr__(made, name, part)
        return made

    return Form(
        cls, {**kinds, **_MODEL_STATE}, frozenset(required), list(hints.values()), read, build
    )


def _object_form(cls: Any, fields: dict[str, tuple[Any, bool]]) -> Form:
    """Describe an event, attrs class or dataclass by the default of each field and its init."""
    hints = _hints_of(cls)
    mro: tuple[type, ...] = cls.__mro__
    held = [item for base in mro for item in vars(base).items()]
    slots = {name for name, part in held if isinstance(part, types.MemberDescriptorType)}
    cached = {name for name, part in held if isinstance(part, functools.cached_property)}
    code: types.CodeType | None = getattr(cls.__hash__, "__code__", None)
    reset = {_HASH: None} if code is not None and _HASH in code.co_names else {}
    kept = list(dict.fromkeys([*fields, *sorted(slots - {_HASH})]))
    return Form(
        cls,
        {name: _kinds_of_field(hints, name, default) for name, (default, _) in fields.items()},
        frozenset(n for n, (value, init) in fields.items() if init or value is not attrs.NOTHING),
        [hints.get(name, Any) for name in fields],
        _reader(cls, kept if slots else []),
        _builder(cls, slots, reset),
        more=cls._open
        if issubclass(cls, Event)
        else cls.__dictoffset__ != 0 or len(kept) > len(fields),
        ignored=frozenset({"__orig_class__", _HASH, *cached} - fields.keys()),
    )


def _reader(cls: type, slotted: list[str]) -> Callable[[Any], dict[str, Any]]:
    if issubclass(cls, Event):  # frozen: there is no need of a copy
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


def _hints_of(cls: type) -> dict[str, Any]:
    """Return the annotations of a class, or none where one of them cannot be resolved."""
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return {}


def origin_of(hint: Any) -> Any:
    """Return the class of a generic alias, anything else as it is."""
    return typing.get_origin(hint) or hint


def parts_of(hint: Any) -> list[Any]:  # noqa: PLR0911 - one for each form
    """Return what an annotation is made of: other annotations, or those of a class's fields."""
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
    if typing.is_typeddict(hint):
        return list(_hints_of(hint).values())
    if isinstance(hint, type):
        form = form_of(hint)
        return form.hints if isinstance(form, Form) else []
    return _behind(hint)


def _behind(hint: Any) -> list[Any]:
    """Return what a ``NewType`` or a ``type`` statement gives a name to."""
    if isinstance(hint, type):
        return []
    try:
        names = [getattr(hint, "__supertype__", None), getattr(hint, "__value__", None)]
    except NameError:
        return []
    return [name for name in names if name is not None]


def _kinds_of_field(hints: dict[str, Any], name: str, default: object) -> Kinds:
    kinds = _kinds_of(hints.get(name, Any))
    return (*kinds, type(None)) if default is None else kinds


def _kinds_of(hint: Any) -> tuple[Any, ...]:  # noqa: PLR0911 - one for each form
    """Return the classes that a value of an annotation may have; ``object`` where none is told."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is None:
        return (type(None),)
    if origin is typing.Annotated:
        return _kinds_of(arguments[0])
    if origin is typing.Literal:
        literals: list[Any] = [type(argument) for argument in arguments]
        return tuple(literals)
    if origin in (Union, types.UnionType):
        kinds = tuple(kind for argument in arguments for kind in _kinds_of(argument))
        return _ANYTHING if object in kinds else kinds
    if behind := _behind(origin or hint):
        return _kinds_of(behind[0])
    if not isinstance(origin or hint, type) or hint is Any:
        return _ANYTHING
    plain: Any = origin or hint
    if getattr(plain, "_is_protocol", False):
        return _ANYTHING
    if typing.is_typeddict(plain):
        return (dict,)
    if issubclass(plain, BaseException):
        return (plain, RestoredError)
    # PEP 484: an int will do for a float, and both for a complex.
    wider: dict[type, Kinds] = {float: (float, int), complex: (complex, float, int)}
    return wider.get(plain, (plain,))
