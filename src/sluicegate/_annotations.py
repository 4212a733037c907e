"""What an annotation says of a value: whether it fits, and what would; no function of it is called.

Validators, converters and constraints belong to whoever makes the value, so none of them is asked.
What is left are the classes: these hold at every time, whatever the clock or the file system says.
"""

from __future__ import annotations

import functools
import sys
import types
import typing
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Union, cast


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Classes of values that hold nothing that could change.
ATOMS: frozenset[type] = frozenset({int, str, float, bool, bytes, types.NoneType})

#: What fits a number, by PEP 484: an int will do for a float, and both for a complex.
WIDER: dict[type, tuple[type, ...]] = {float: (float, int), complex: (complex, float, int)}

#: Classes of typing that are no class of any value: every file has its own.
_FILES = (typing.IO, typing.TextIO, typing.BinaryIO)
_UNPACK: Any = typing.Unpack


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type, as type checkers mean it; nothing is converted.

    Items are looked at too. Where the annotation says nothing about values, everything fits.
    """
    try:
        return _fits(hint, value)
    except RecursionError:  # a value that is too deep for the stack to be looked at
        return True


def checker(hint: Any) -> Callable[[Any], bool] | None:
    """Return what looks at the items of a value that is of the right class.

    Returns:
        A function that tells whether they fit, or None where the class of the value tells all.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_decided_by_class(hint):
        return None
    if origin in (list, set, frozenset, deque) and len(arguments) == 1:
        kinds = _exact_kinds(arguments[0])
        if kinds is not None:
            # Each class once, and most have no others than these.
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
    if origin in (Union, types.UnionType):
        return all(map(_is_decided_by_class, arguments))
    return origin is None or (bool(arguments) and all(part is Any for part in arguments))


def is_typeddict(hint: Any) -> bool:
    """Whether a class is a ``TypedDict``, of typing or of ``typing_extensions``."""
    return isinstance(hint, type) and all(hasattr(hint, name) for name in _TYPED_DICT)


_TYPED_DICT = ("__total__", "__required_keys__", "__optional_keys__")


def behind(hint: Any) -> list[Any]:
    """Return what a ``NewType`` or a ``type`` statement gives a name to."""
    if isinstance(hint, type):
        return []
    try:
        names = [getattr(hint, "__supertype__", None), getattr(hint, "__value__", None)]
    except NameError:
        return []
    return [name for name in names if name is not None]


def classes_of_marker(hint: Any) -> tuple[type, ...] | None:
    """Return the classes of the values of a class that is one only in annotations.

    Pydantic has such classes, as `AwareDatetime`, and everybody may write one: it tells pydantic
    how to make a value, which may be of any class.

    Returns:
        The classes, ``(object,)`` where they cannot be known, or None for an ordinary class.
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


#: What a class with declared fields has.
_FIELDS = ("__attrs_attrs__", "__dataclass_fields__", "__pydantic_validator__", "__struct_fields__")


@functools.cache
def _markers() -> dict[str, tuple[type, ...]]:
    """Return what the values of pydantic's own marking classes are."""
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
        return True  # a form that says nothing about values
    if is_typeddict(hint):
        return isinstance(value, dict)
    kinds = WIDER.get(hint) or classes_of_marker(hint) or hint
    try:
        return isinstance(value, kinds)
    except TypeError:  # a protocol that cannot be asked
        return True


def _fits_tuple(args: tuple[Any, ...], value: Any) -> bool:
    if args[-1:] == (...,):
        return _all_fit(args[0], value)
    if any(typing.get_origin(part) is _UNPACK or getattr(part, "__unpacked__", 0) for part in args):
        return True
    return len(value) == len(args) and all(map(_fits, args, value))


def _all_fit(hint: Any, values: Iterable[Any]) -> bool:
    if isinstance(hint, type) and hint in ATOMS:  # each class once: there may be very many values
        return all(issubclass(k, WIDER.get(hint, hint)) for k in set(map(type, values)))
    return all(_fits(hint, value) for value in values)


# -- for messages -----------------------------------------------------------------------------------


def named(hint: Any) -> str:
    """Return how a message calls an annotation."""
    return hint.__name__ if isinstance(hint, type) else str(hint)


def plain_form(value: object) -> str | None:
    """Return an expression that makes a plain value of one of numpy's, or None for all others."""
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
