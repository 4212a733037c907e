"""Annotations: resolved, taken apart, and compared with values.

Only the classes in an annotation decide whether a value fits. Validators, converters and
constraints run when the value is made, and are not run here, so the answer is the same at all times.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Union, cast

import attrs

from sluicegate._errors import brief, brief_text


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: The errors of an annotation that cannot be resolved.
UNRESOLVED = (NameError, AttributeError, TypeError, SyntaxError)

#: Immutable classes without parts.
ATOMS: frozenset[type] = frozenset({int, str, float, bool, bytes, types.NoneType})

#: The classes that fit a number by PEP 484: float accepts int, and complex accepts both.
WIDER: dict[type, tuple[type, ...]] = {float: (float, int), complex: (complex, float, int)}

#: Classes of typing that no value has: each kind of file has another class.
_FILES = (typing.IO, typing.TextIO, typing.BinaryIO)
_UNPACK: Any = typing.Unpack
#: Attributes that mark a class with declared fields.
_FIELDS = ("__attrs_attrs__", "__dataclass_fields__", "__pydantic_validator__", "__struct_fields__")
_TYPED_DICT = ("__total__", "__required_keys__", "__optional_keys__")


# -- resolving --------------------------------------------------------------------------------------


def resolve(annotated: Any, names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the resolved annotations of a class or a function, ``Annotated`` included.

    Args:
        annotated: The class or the function.
        names: Further names that the annotations may use, such as those of a function around it.

    Raises:
        UNRESOLVED: One of them cannot be resolved.
    """
    return typing.get_type_hints(annotated, localns=names or None, include_extras=True)


def resolve_all(
    notes: Mapping[str, Any], module: Mapping[str, Any], names: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return annotations resolved apart from the class or function that has them.

    Args:
        notes: The annotations.
        module: The names of their module.
        names: Further names, which win.

    Raises:
        UNRESOLVED: One of them cannot be resolved.
    """
    holder = types.SimpleNamespace(__annotations__=dict(notes))
    return typing.get_type_hints(holder, dict(module), names or {}, include_extras=True)


def hints_of(cls: Any) -> dict[str, Any]:
    """Return the resolved annotations of a class.

    Raises:
        TypeError: A name cannot be resolved.
    """
    try:
        return resolve(cls)
    except UNRESOLVED as error:
        msg = (
            f"cannot resolve the annotations of {cls.__qualname__}: {error}; expected every name "
            f"to be importable from the module {cls.__module__!r} (not under TYPE_CHECKING)"
        )
        raise TypeError(msg) from error


def hints_by_keyword(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of an attrs class by the keywords of its constructor.

    Raises:
        TypeError: A name cannot be resolved.
    """
    hints = hints_of(cls)
    return {f.alias: hints.get(f.name, Any) for f in attrs.fields(cls)}


# -- taking apart -----------------------------------------------------------------------------------


def class_of(hint: Any) -> Any:
    """Return the class of a generic alias; any other annotation as it is."""
    return typing.get_origin(hint) or hint


def is_union(hint: Any) -> bool:
    """Whether an annotation is a union, in either spelling."""
    return typing.get_origin(hint) in (Union, types.UnionType)


def without_extras(hint: Any) -> Any:
    """Return an annotation without the ``Annotated`` around it."""
    return hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint


def extras_of(hint: Any) -> tuple[Any, ...]:
    """Return the metadata that ``Annotated`` adds to an annotation."""
    return hint.__metadata__ if typing.get_origin(hint) is typing.Annotated else ()


def all_extras_of(hint: Any) -> list[Any]:
    """Return the metadata that ``Annotated`` adds anywhere in an annotation."""
    found: list[Any] = []
    todo: list[Any] = [hint]
    while todo:
        part = todo.pop()
        found += [one for one in extras_of(part) if one is not None]
        if typing.get_origin(part) is typing.Annotated:
            todo.append(without_extras(part))
        elif typing.get_origin(part) is not typing.Literal:
            todo += typing.get_args(part)
    return found


def is_context(hint: Any) -> bool:
    """Whether an annotation is a run's ``Context``, which has a mark: its module is higher up."""
    return getattr(class_of(without_extras(hint)), "_is_sluicegate_context", False) is True


def is_typeddict(hint: Any) -> bool:
    """Whether a class is a ``TypedDict``, of typing or of ``typing_extensions``."""
    return isinstance(hint, type) and all(hasattr(hint, name) for name in _TYPED_DICT)


def behind(hint: Any) -> list[Any]:
    """Return the annotation that a ``NewType`` or a ``type`` statement names, or none."""
    if isinstance(hint, type):
        return []
    try:
        names = [getattr(hint, "__supertype__", None), getattr(hint, "__value__", None)]
    except NameError:
        return []
    return [name for name in names if name is not None]


# -- values -----------------------------------------------------------------------------------------


def fits(hint: Any, value: Any) -> bool:
    """Whether a value has a type, by the rules of type checkers and without conversion.

    Items are checked too. Every value fits an annotation that does not describe values.
    """
    try:
        return _fits(hint, value)
    except RecursionError:  # the value is nested too deeply to be checked
        return True


def checker(hint: Any) -> Callable[[Any], bool] | None:
    """Return a function that checks the items of a value of the right class.

    Returns:
        The function, or None if the class of the value alone decides.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_decided_by_class(hint):
        return None
    if origin in (list, set, frozenset, deque) and len(arguments) == 1:
        kinds = _exact_kinds(arguments[0])
        if kinds is not None:
            # Compares each class once; most values have only these classes.
            return lambda value: kinds.issuperset(map(type, value)) or fits(hint, value)
    return lambda value: fits(hint, value)


def _exact_kinds(hint: Any) -> frozenset[type] | None:
    if hint is Any:
        return None
    return frozenset(WIDER.get(hint, (hint,))) if isinstance(hint, type) and hint in ATOMS else None


def _is_decided_by_class(hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _is_decided_by_class(arguments[0])
    if is_union(hint):
        return all(map(_is_decided_by_class, arguments))
    return origin is None or (bool(arguments) and all(part is Any for part in arguments))


def check_types(cls: type, values: dict[str, Any]) -> None:
    """Check values against the annotations of the fields of ``cls`` with typeguard.

    Raises:
        TypeError: A value does not fit; the message names class, field and value.
        ModuleNotFoundError: typeguard is not installed.
    """
    try:
        import typeguard  # noqa: PLC0415 - only classes that ask for it need it
    except ModuleNotFoundError as error:
        msg = f'{cls.__name__} has validate=True, which needs `pip install "sluicegate[validate]"`'
        raise ModuleNotFoundError(msg, name="typeguard") from error

    hints = hints_of(cls)
    for field in attrs.fields(cls):
        name, hint = field.name, hints.get(field.name, Any)
        if name not in values:
            continue
        try:
            typeguard.check_type(
                values[name],
                hint,
                collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
            )
        except typeguard.TypeCheckError as error:
            msg = f"{cls.__name__}.{name} is {brief(values[name])}, which is not {text_of(hint)}: {brief_text(str(error))}"
            raise TypeError(msg) from None


#: The classes of values where an annotation does not restrict them.
ANYTHING: tuple[type, ...] = (object,)


def kinds_of(hint: Any) -> tuple[type, ...]:  # noqa: PLR0911 - one for each form
    """Return the classes that a value of an annotation may have; ``object`` for any class."""
    hint = without_extras(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is None:
        return (type(None),)
    if origin is typing.Literal:
        literals: list[Any] = [type(argument) for argument in arguments]
        return tuple(literals)
    if is_union(hint):
        kinds = tuple(kind for argument in arguments for kind in kinds_of(argument))
        return ANYTHING if object in kinds else kinds
    if named := behind(origin or hint):
        return kinds_of(named[0])
    if not isinstance(origin or hint, type) or hint is Any:
        return ANYTHING
    plain: Any = origin or hint
    if getattr(plain, "_is_protocol", False):
        return ANYTHING
    if is_typeddict(plain):
        return (dict,)
    return WIDER.get(plain) or classes_of_marker(plain) or (plain,)


def classes_of_marker(hint: Any) -> tuple[type, ...] | None:
    """Return the classes of values for a class that is used only in annotations.

    Pydantic has such classes, for example `AwareDatetime`, and users can write their own. They
    describe to pydantic how to make a value, which can have any class.

    Returns:
        The classes, ``(object,)`` if they are unknown, or None for an ordinary class.
    """
    if hint in _FILES:
        return (object,)
    if not hasattr(hint, "__get_pydantic_core_schema__") or hasattr(hint, "__members__"):
        return None
    if any(hasattr(hint, mark) for mark in _FIELDS):
        return None
    if hint.__module__.startswith("pydantic."):
        return _markers().get(hint.__name__) or (hint,)
    return (object,)


@functools.cache
def _markers() -> dict[str, tuple[type, ...]]:
    """Return the classes of values for pydantic's own annotation classes."""
    import datetime as dt  # noqa: PLC0415 - not at start-up
    import ipaddress as ip  # noqa: PLC0415

    zoned = ["AwareDatetime", "NaiveDatetime", "PastDatetime", "FutureDatetime"]
    return {
        **dict.fromkeys(zoned, (dt.datetime,)),
        **dict.fromkeys(["PastDate", "FutureDate"], (dt.date,)),
        **dict.fromkeys(["ImportString", "Json", "InstanceOf", "SkipValidation"], (object,)),
        "EmailStr": (str,),
        "IPvAnyAddress": (ip.IPv4Address, ip.IPv6Address),
        "IPvAnyInterface": (ip.IPv4Interface, ip.IPv6Interface),
        "IPvAnyNetwork": (ip.IPv4Network, ip.IPv6Network),
    }


def _fits(hint: Any, value: Any) -> bool:  # noqa: PLR0911 - one for each form
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        return _fits_plain(hint, value)
    if origin is typing.Annotated:
        return _fits(args[0], value)
    if origin in (Union, types.UnionType):
        return any(_fits(part, value) for part in args)
    if origin is typing.Literal:
        return any(value == part and type(value) is type(part) for part in args)
    if not isinstance(origin, type):
        return True
    if not _fits_plain(origin, value):
        return False
    if origin is tuple:
        return hint is typing.Tuple or _fits_tuple(args, value)  # noqa: UP006 - a bare one
    if isinstance(value, Mapping) and len(args) == 2:
        pairs = cast("Mapping[Any, Any]", value)
        return _all_fit(args[0], pairs) and _all_fit(args[1], pairs.values())
    if isinstance(value, list | tuple | set | frozenset | deque) and args:
        return _all_fit(args[0], cast("Iterable[Any]", value))
    return True


def _fits_plain(hint: Any, value: Any) -> bool:
    if hint is None:
        return value is None
    if named := behind(hint):
        return _fits(named[0], value)
    if not isinstance(hint, type) or hint is Any:
        return True  # it does not describe values
    if is_typeddict(hint):
        return isinstance(value, dict)
    kinds = WIDER.get(hint) or classes_of_marker(hint) or hint
    try:
        return isinstance(value, kinds)
    except TypeError:  # a protocol without run-time checks
        return True


def _fits_tuple(args: tuple[Any, ...], value: Any) -> bool:
    if args[-1:] == (...,):
        return _all_fit(args[0], value)
    if any(typing.get_origin(part) is _UNPACK or getattr(part, "__unpacked__", 0) for part in args):
        return True
    return len(value) == len(args) and all(map(_fits, args, value))


def _all_fit(hint: Any, values: Iterable[Any]) -> bool:
    if (
        isinstance(hint, type) and hint in ATOMS
    ):  # compares each class once, because there can be many values
        return all(issubclass(k, WIDER.get(hint, hint)) for k in set(map(type, values)))
    return all(_fits(hint, value) for value in values)


# -- for messages -----------------------------------------------------------------------------------


def text_of(note: Any) -> str:
    """Return the source form of an annotation, without the metadata of ``Annotated``."""
    if isinstance(note, str):
        return note
    if note is None or note is type(None):
        return "None"
    note = without_extras(note)
    origin, arguments = typing.get_origin(note), typing.get_args(note)
    if is_union(note):
        return " | ".join(text_of(argument) for argument in arguments)
    if isinstance(origin, type) and arguments and not isinstance(arguments[0], list):
        return f"{origin.__name__}[{', '.join(map(text_of, arguments))}]"
    if isinstance(note, type) and not arguments:
        return note.__name__
    return "..." if note is ... else str(note).replace("typing.", "")


def plain_form(value: object) -> str | None:
    """Return an expression that converts a numpy value to a plain one, or None for other values."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return None
    if type(value) in (list, tuple, set, frozenset):
        items = cast("list[object]", value)
        is_numpy = any(plain_form(item) == "value.item()" for item in items)
        return "[item.item() for item in value]" if is_numpy else None
    for kind, call in (("generic", "value.item()"), ("ndarray", "value.tolist()")):
        cls = getattr(numpy, kind, None)
        if isinstance(cls, type) and isinstance(value, cls):
            return call
    return None


# -- arguments of calls -----------------------------------------------------------------------------


def unbound(function: Any) -> Any:
    """Return the callable inside of ``functools.partial`` objects."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    return function


def is_async(function: Any) -> bool:
    """Whether a callable, or the one inside of partial objects, is a coroutine function."""
    function = unbound(function)
    kind: Any = cast("Any", type(function))
    call = getattr(kind, "__call__", None)  # noqa: B004 - it is looked at
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def is_seconds(value: object) -> bool:
    """Whether ``value`` is a valid timeout: a positive number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def is_count(value: object) -> bool:
    """Whether ``value`` is an int of at least 1, not a bool."""
    return type(value) is int and value >= 1
