"""Built-in values as plain data: how each is split into parts, checked and joined again."""

from __future__ import annotations

import base64
import functools
import re
from collections import Counter, OrderedDict, deque
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

from sluicegate._data.refusals import MismatchError, refuse_content, shown
from sluicegate._errors import RestoredError, class_names
from sluicegate._exceptions import notes_of


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._data.refusals import Kinds

#: The key that marks a JSON object as a tagged value; a user's dict with this key is escaped.
TAG = "$"

# -- plain data -------------------------------------------------------------------------------


def is_text(value: str) -> bool:
    """Whether a str can be encoded as UTF-8, which lone surrogates prevent."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_str(value: str, _depth: int) -> Any:
    """Write a str; one with lone surrogates is written as bytes."""
    if value.isascii() or is_text(value):
        return value
    return {TAG: "str", "v": _to_base64(value.encode("utf-8", "surrogatepass"))}


def encode_int(value: int, _depth: int) -> Any:
    """Write an int; one of more than 64 bits is written as text, because not all parsers read it."""
    return value if -(2**63) <= value < 2**63 else {TAG: "int", "v": hex(value)}


def encode_float(value: float, _depth: int) -> Any:
    """Write a float; infinity and nan are written as text."""
    # Only for infinity and nan is the difference not zero.
    return value if value - value == 0 else {TAG: "float", "v": repr(value)}


def _to_base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def content_of(data: dict[str, Any]) -> Any:
    """Return the content of a tagged value, which has exactly two keys."""
    if len(data) != 2 or "v" not in data:
        refuse_content(f"it has the keys {', '.join(map(shown, data))} in place of '$' and 'v'")
    return data["v"]


# -- rows: values that consist of a few other values --------------------------------------------------


@attrs.frozen
class Row:
    """A class whose values are split into parts and joined again.

    Attributes:
        cls: The class.
        tag: Its name in the data.
        shape: The exact types that each part may have.
        split: Returns the parts of a value.
        join: Makes a value of its parts.
        exact: Whether a joined value must split into the same parts.
        optional: How many parts at the end older data may lack.
    """

    cls: type
    tag: str
    shape: tuple[Kinds, ...]
    split: Callable[[Any], tuple[Any, ...]]
    join: Callable[..., Any]
    exact: bool = True
    optional: int = 0


_TEXT, _INT, _FLOAT, _LIST, _DICT = ((str,),), ((int,),), ((float,),), ((list,),), ((dict,),)


@functools.cache
def rows() -> tuple[Row, ...]:
    """Return the built-in rows; their modules are imported on first use."""
    import ipaddress as ip  # noqa: PLC0415 - not at start-up
    from datetime import date, datetime, time, timedelta, timezone, tzinfo  # noqa: PLC0415
    from decimal import Decimal  # noqa: PLC0415
    from fractions import Fraction  # noqa: PLC0415
    from uuid import UUID  # noqa: PLC0415
    from zoneinfo import ZoneInfo  # noqa: PLC0415

    # The base class allows time zone classes of users that the codec knows.
    zone: tuple[Kinds, ...] = ((type(None), timezone, ZoneInfo, tzinfo), (int,))

    def with_zone(kind: Any) -> Row:
        def join(text: str, tz: Any, fold: int) -> Any:
            return kind.fromisoformat(text).replace(tzinfo=tz, fold=fold)

        return Row(
            kind,
            kind.__name__,
            _TEXT + zone,
            lambda value: (value.replace(tzinfo=None).isoformat(), value.tzinfo, value.fold),
            join,
        )

    def make_timezone(offset: timedelta, name: str) -> timezone:
        plain = timezone(offset)
        return plain if plain.tzname(None) == name else timezone(offset, name)

    def key_of(value: ZoneInfo) -> tuple[str]:
        if not is_zone(value.key):
            msg = "is a ZoneInfo without a key; expected one made by its name: ZoneInfo(name)"
            raise MismatchError(msg)
        return (value.key,)

    # ZoneInfo opens a file, or a resource of the package tzdata, by the key.
    def is_zone(key: str | None) -> bool:
        return key is not None and re.fullmatch(r"[\w+-]+(/[\w+-]+)*", key, re.ASCII) is not None

    def make_zone(key: str) -> ZoneInfo:
        if not is_zone(key):
            msg = f"no time zone is called {key!r}"
            raise ValueError(msg)
        return ZoneInfo(key)

    def as_path(kind: Any, tag: str) -> Row:
        return Row(kind, tag, _TEXT, lambda value: (str(value),), kind)

    return (
        Row(str, "str", _TEXT, lambda v: (_to_base64(v.encode("utf-8", "surrogatepass")),), to_str),
        Row(int, "int", _TEXT, lambda value: (hex(value),), _to_int),
        Row(float, "float", _TEXT, lambda value: (repr(value),), float),
        Row(complex, "complex", _FLOAT * 2, lambda v: (v.real, v.imag), complex, exact=False),
        Row(bytes, "bytes", _TEXT, lambda value: (_to_base64(value),), _from_base64),
        Row(bytearray, "bytearray", _TEXT, lambda value: (_to_base64(value),), _to_bytearray),
        Row(tuple, "tuple", _LIST, lambda value: (list(value),), tuple),
        Row(set, "set", _LIST, _split_set, _no_twins(set), exact=False),
        Row(frozenset, "frozenset", _LIST, _split_set, _no_twins(frozenset), exact=False),
        Row(deque, "deque", (*_LIST, (int, type(None))), lambda v: (list(v), v.maxlen), deque),
        Row(OrderedDict, "OrderedDict", _DICT, lambda value: (dict(value),), OrderedDict),
        Row(Counter, "Counter", _DICT, lambda value: (dict(value),), Counter),
        Row(range, "range", _INT * 3, lambda value: (value.start, value.stop, value.step), range),
        Row(date, "date", _TEXT, lambda value: (value.isoformat(),), date.fromisoformat),
        with_zone(datetime),
        with_zone(time),
        Row(
            timedelta,
            "timedelta",
            _INT * 3,
            lambda value: (value.days, value.seconds, value.microseconds),
            timedelta,
        ),
        Row(
            timezone,
            "timezone",
            ((timedelta,), (str,)),
            lambda value: (value.utcoffset(None), value.tzname(None)),
            make_timezone,
        ),
        Row(ZoneInfo, "ZoneInfo", _TEXT, key_of, make_zone),
        # The text of a Decimal, and its errors, depend on the current context.
        Row(Decimal, "Decimal", _TEXT, lambda value: (str(value).upper(),), Decimal),
        Row(Fraction, "Fraction", _INT * 2, lambda v: (v.numerator, v.denominator), Fraction),
        Row(UUID, "UUID", _TEXT, lambda value: (str(value),), UUID),
        as_path(type(Path()), "Path"),
        as_path(PurePosixPath, "PurePosixPath"),
        as_path(PureWindowsPath, "PureWindowsPath"),
        *(
            Row(kind, kind.__name__, _TEXT, lambda value: (str(value),), kind)
            for kind in (ip.IPv4Address, ip.IPv6Address, ip.IPv4Network, ip.IPv6Network)
        ),
        Row(ip.IPv4Interface, "IPv4Interface", _TEXT, lambda v: (str(v),), ip.IPv4Interface),
        Row(ip.IPv6Interface, "IPv6Interface", _TEXT, lambda v: (str(v),), ip.IPv6Interface),
        Row(re.Pattern, "Pattern", ((str, bytes), (int,)), _split_pattern, re.compile),
        Row(MappingProxyType, "mappingproxy", _DICT, lambda v: (dict(v),), MappingProxyType),
        Row(
            BaseException,
            "error",
            ((str,), (str,), (list,), (list,)),
            _split_error,
            _join_error,
            optional=1,
        ),
    )


def _split_pattern(value: re.Pattern[Any]) -> tuple[Any, int]:
    return value.pattern, int(value.flags) & ~int(re.DEBUG)  # re.DEBUG would print


def _to_int(text: str) -> int:
    return int(text, 16)


def to_str(text: str) -> str:
    """Return the str with lone surrogates that was written as ``text``."""
    return _from_base64(text).decode("utf-8", "surrogatepass")


def _to_bytearray(text: str) -> bytearray:
    return bytearray(_from_base64(text))


def _split_set(value: set[Any] | frozenset[Any]) -> tuple[list[Any]]:
    """Return the items; text is sorted, because its order in a set differs between processes."""
    items = list(value)
    if all(type(item) is str for item in items):
        return (sorted(items),)
    check_hashes(items)
    return (items,)


#: The maximum of keys in one dictionary, or items in one set, with the same hash. Each further one
#: is compared to all of them; only data made for an attack has more.
_MAX_TWINS = 1_000


def check_hashes(keys: list[Any]) -> None:
    """Raise for keys of the same hash, which make a dictionary or a set quadratic.

    Raises:
        MismatchError: More than a thousand have the same hash.
    """
    if len(keys) > _MAX_TWINS and max(Counter(map(hash, keys)).values()) > _MAX_TWINS:
        msg = f"has more than {_MAX_TWINS:,} keys of one hash; expected keys with different hashes"
        raise MismatchError(msg)


def _no_twins(kind: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def make(items: list[Any]) -> Any:
        check_hashes(items)
        made = kind(items)
        if len(made) != len(items):
            msg = "a value is there twice"
            raise ValueError(msg)
        return made

    return make


def _split_error(error: BaseException) -> tuple[Any, ...]:
    notes = notes_of(error)
    if type(error) is RestoredError:
        parts = error.type_name, error.message, notes
        return (*parts, [*error.class_names]) if error.class_names else parts
    try:
        message = str.__str__(str(error))
    except Exception as broken:  # noqa: BLE001 - the run must be kept, whatever a message does
        message = f"<no message: str() raises {type(broken).__name__}>"
    return type(error).__qualname__, message, notes, class_names(type(error))


def _join_error(
    type_name: str, message: str, notes: list[Any], names: list[Any] | None = None
) -> RestoredError:
    if names is not None and not (names and all(type(name) is str for name in names)):
        msg = "the names of the classes of an exception are not a list of texts"
        raise ValueError(msg)
    made = RestoredError(type_name, message, names or ())
    for note in notes:
        made.add_note(note)
    return made
