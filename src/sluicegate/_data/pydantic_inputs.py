"""Values from outside that pydantic makes: its models, its dataclasses, and its types."""

from __future__ import annotations

import sys
import typing
from typing import Any, cast

from sluicegate._annotations import named
from sluicegate._foreign import is_field_info, is_function, is_instance_of, is_of


#: The type of pydantic that imports what the data names.
_IMPORTING = ("pydantic", "ImportString")
#: How many of the errors of one model a message lists.
_LISTED = 3


class DecodingError(Exception):
    """Raised when data does not fit; its text says how and where."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        #: Each fault, and the way to its place from the value decoded: ``.items[0].price``.
        self.parts = [(text, path)]

    def within(self, step: str) -> DecodingError:
        """Return the error as one of the whole of which the value is the part at ``step``."""
        self.parts = [(text, f"{step}{path}") for text, path in self.parts]
        return self

    def __str__(self) -> str:
        shown = [f"{text} - at `${path}`" if path else text for text, path in self.parts]
        left = len(shown) - _LISTED
        return "; ".join([*shown[:_LISTED], *([f"and {left} more"] if left > 0 else [])])


def is_pydantic(kind: Any) -> bool:
    """Whether pydantic makes the values of an annotation: its models, dataclasses and types.

    Events tell pydantic how they are made, but are none of its.
    """
    cls: Any = typing.get_origin(kind) or kind
    if cls is typing.Annotated:
        return any(map(is_for_pydantic, kind.__metadata__)) or is_pydantic(kind.__origin__)
    if (
        "pydantic" not in sys.modules
        or not isinstance(cls, type)
        or hasattr(cls, "__attrs_attrs__")
    ):
        return False
    marks = ("__get_pydantic_core_schema__", "__pydantic_validator__")
    return cls.__module__.partition(".")[0] == "pydantic_core" or any(
        hasattr(cls, mark) for mark in marks
    )


def is_for_pydantic(part: Any) -> bool:
    """Whether what ``Annotated`` adds is more than a constraint or a description to pydantic."""
    if is_field_info(part):
        said = [*getattr(part, "metadata", ()), getattr(part, "discriminator", None)]
        return any(one is not None for one in said)
    if is_instance_of(part, "pydantic", "UrlConstraints"):
        return True
    is_hook = hasattr(part, "__get_pydantic_core_schema__") and not isinstance(part, type)
    return is_function(part) or is_hook


def decode_by_pydantic(hint: Any, value: Any) -> Any:
    """Have pydantic make a value of an annotation.

    Raises:
        DecodingError: The value does not fit.
    """
    cls: Any = typing.get_origin(hint) or hint
    if hint is cls and isinstance(cls, type) and isinstance(value, cls):
        return value
    if _imports_by_name(hint):
        msg = "pydantic's ImportString imports the module that the data names; expected a str"
        raise DecodingError(msg)
    return validated(hint, value, is_json=True)


def validated(hint: Any, value: Any, *, is_json: bool) -> Any:
    """Return a value as pydantic makes it, of JSON where the value is such."""
    import json  # noqa: PLC0415 - pydantic is in use by now

    import pydantic  # noqa: PLC0415

    text: str | None = None
    if is_json:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            text = None  # it holds objects already, as TOML does
    try:
        adapter: Any = pydantic.TypeAdapter(hint)
        return adapter.validate_python(value) if text is None else adapter.validate_json(text)
    except pydantic.ValidationError as error:
        raise _told(error) from error
    except RecursionError:
        raise
    except Exception as error:  # of a validator, or a schema that cannot be made
        msg = f"{named(hint)} refuses it: {error}"
        raise DecodingError(msg) from error


def _told(error: Any) -> DecodingError:
    """Return the errors of pydantic as one error that points at the fields."""
    found: list[dict[str, Any]] = error.errors(
        include_url=False, include_context=False, include_input=False
    )
    told = DecodingError("")
    told.parts = [(one["msg"], _path(one["loc"])) for one in found]
    return told


def _path(place: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def _class_of(value: Any) -> Any:
    return cast("Any", type(value))


def _imports_by_name(hint: Any) -> bool:
    """Whether pydantic would import what the data names, for some part of an annotation."""
    todo: list[Any] = [hint]
    seen: list[Any] = []
    while todo:
        part = todo.pop()
        if any(part is one for one in seen):
            continue
        seen.append(part)
        for one in (part, *map(_class_of, getattr(part, "__metadata__", ()))):
            if getattr(one, "__name__", "") == "ImportString" and is_of(one, *_IMPORTING):
                return True
        todo += typing.get_args(part)
        cls: Any = typing.get_origin(part) or part
        for fields in ("model_fields", "__pydantic_fields__"):
            held: Any = getattr(cls, fields, None)
            if isinstance(held, dict):
                for field in cast("dict[str, Any]", held).values():
                    todo += [field.annotation, *field.metadata]
    return False
