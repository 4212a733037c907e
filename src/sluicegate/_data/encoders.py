"""The table of encoders by class, and the refusal of values of other classes."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from sluicegate._annotations import plain_form
from sluicegate._data.builtins import TAG, encode_str, is_text, rows
from sluicegate._data.classes import form_of
from sluicegate._data.pydantic import is_pydantics_own, is_secret
from sluicegate._data.refusals import MismatchError


if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from sluicegate._data.form import Form

    Encode: TypeAlias = Callable[[Any, int], Any]


_KEPT = (
    "an event, an attrs class, a dataclass, a named tuple, an enum, a pydantic model or a Struct"
)
_PLAIN = (str, int, float, tuple, list, dict, set, frozenset, bytes, bytearray, deque)
#: Abstract classes of containers, each with the plain container.
_LIKE = ((memoryview, bytes), (Mapping, dict), (AbstractSet, set), (Sequence, list))


def as_is(value: Any, _depth: int) -> Any:
    return value


def write_names(values: dict[str, Any]) -> dict[str, Any]:
    """Write a dict whose values are written already and whose keys can be any text."""
    if all(name != TAG and is_text(name) for name in values):
        return values
    return {TAG: "dict", "v": [[encode_str(name, 0), part] for name, part in values.items()]}


class Encoders(dict[type, "Encode"]):
    """The encoder of each class; a missing class is an exception, one of pydantic's, or refused."""

    load: Callable[[], None]
    names: Container[str]

    def __missing__(self, cls: type[Any]) -> Encode:
        if issubclass(cls, BaseException):
            return self[BaseException]
        if is_pydantics_own(cls):
            self.load()
            if cls in self:
                return self[cls]
        return refuse_twin if full_name(cls) in self.names else refuse_value


def full_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def is_list_of_names(data: Any) -> bool:
    """Whether plain data is a list of str."""
    return type(data) is list and all(type(name) is str for name in cast("list[Any]", data))


def beside_of(
    form: Form, made: dict[str, Any], rest: dict[str, Any], odd: list[str]
) -> dict[str, Any]:
    """Return the entries beside the fields of an instance.

    ``x`` has the other attributes. ``odd`` has the names of fields that do not fit their annotations,
    because a function of the class made their values or because they are unset.
    """
    if len(made) < len(form.kinds):
        odd = [*odd, *form.check_complete(made)]
    written: dict[str, Any] = {"x": write_names(rest)} if rest else {}
    return {**written, "odd": odd} if odd else written


# -- refusals: only advice that works ---------------------------------------------------------------


def refuse_value(value: Any, _depth: int) -> NoReturn:
    """Raise for a value of a class that the codec does not know.

    The message gives only advice that works: it suggests ``serializable`` for a class that can be kept.
    """
    cls = cast("type[Any]", type(value))
    name = cls.__qualname__
    if is_secret(cls):
        msg = (
            f"is a {name}, which is kept only where it is named, because a snapshot holds it as "
            f"plain text; expected Workflow(serializable=[{cls.__name__}]), or a resource"
        )
        raise MismatchError(msg)
    if form_of(cls) is not None:
        msg = (
            f"is a {name}, a class that the workflow does not know; expected a value of a class "
            f"the workflow knows: Workflow(serializable=[{cls.__name__}])"
        )
        raise MismatchError(msg)
    plain = _plain_form(value)
    if plain:
        msg = f"is a {name}, which cannot be kept as such; expected {plain}"
    else:
        msg = (
            f"is a {name}, which cannot be kept; expected a value of another class ({_KEPT}), or, "
            f"for a live object (a lock, a socket, a function, a client), a resource: "
            f"Annotated[{cls.__name__}, Resource(make)]"
        )
    raise MismatchError(msg)


def refuse_twin(value: Any, _depth: int) -> NoReturn:
    """Raise for a value of a class that was defined twice; the codec knows the other definition."""
    msg = (
        f"is a {type(value).__qualname__}, but not of the class of that name in "
        f"{type(value).__module__} that the workflow knows: it was defined twice (a module that was "
        "loaded again?); expected a value of the class that the workflow was built with"
    )
    raise MismatchError(msg)


def _plain_form(value: Any) -> str | None:
    """Return a plain value that has the same content, as source, or None."""
    if call := plain_form(value):
        return f"a plain value: {call}"
    kind = next((kind for kind in _PLAIN if isinstance(value, kind)), None)
    if kind is None:
        kind = next((made for abstract, made in _LIKE if isinstance(value, abstract)), None)
    if kind is not None:
        return f"a plain {kind.__name__}: {kind.__name__}(value)"
    zone: Any = sys.modules.get("datetime")
    if zone is not None and isinstance(value, zone.tzinfo):
        return "a datetime.timezone, or a zoneinfo.ZoneInfo"
    if hasattr(cast("object", value), "to_pydatetime"):
        return "a plain datetime: value.to_pydatetime()"
    # A datetime is also a date; its row comes later.
    kept = [row.cls.__name__ for row in rows() if isinstance(value, row.cls)]
    return f"a plain {kept[-1]}" if kept else None
