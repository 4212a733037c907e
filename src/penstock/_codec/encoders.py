"""How each class is written: the table of the codec, and what its gaps mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from penstock._codec.pydantic_values import is_pydantics_own
from penstock._codec.refusals import refuse_twin, refuse_value
from penstock._codec.rows import TAG, encode_str, is_text


if TYPE_CHECKING:
    from collections.abc import Callable, Container

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

    load: Callable[[], bool]
    names: Container[str]

    def __missing__(self, cls: type[Any]) -> Encode:
        if issubclass(cls, BaseException):
            return self[BaseException]
        if is_pydantics_own(cls) and self.load():
            return self[cls]
        return refuse_twin if full_name(cls) in self.names else refuse_value


def full_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
