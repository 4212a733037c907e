"""How each class is written: the table of the codec, and what its gaps mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sluicegate._data.builtins import TAG, encode_str, is_text
from sluicegate._data.pydantic_values import is_pydantics_own
from sluicegate._data.refusals import refuse_twin, refuse_value


if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from sluicegate._data.form import Form

    Encode: TypeAlias = Callable[[Any, int], Any]


def as_is(value: Any, _depth: int) -> Any:
    return value


def write_names(values: dict[str, Any]) -> dict[str, Any]:
    """Write an object whose keys may be any text; its values are written already."""
    if all(name != TAG and is_text(name) for name in values):
        return values
    return {TAG: "dict", "v": [[encode_str(name, 0), part] for name, part in values.items()]}


class Encoders(dict[type, "Encode"]):
    """How each class is written; what is not there is an exception, pydantic's, or is refused."""

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
    """Whether plain data is a list of text."""
    return type(data) is list and all(type(name) is str for name in cast("list[Any]", data))


def beside_of(
    form: Form, made: dict[str, Any], rest: dict[str, Any], odd: list[str]
) -> dict[str, Any]:
    """Return what is written beside the fields of an instance.

    That is ``x``, the other attributes, and ``odd``, the names of the fields that are not what the
    annotations say: they were made so by a function of the class, or are unset.
    """
    if len(made) < len(form.kinds):
        odd = [*odd, *form.check_complete(made)]
    written: dict[str, Any] = {"x": write_names(rest)} if rest else {}
    return {**written, "odd": odd} if odd else written
