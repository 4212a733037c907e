"""Types at run time: the annotations of a class, and whether values fit them."""

from __future__ import annotations

import typing
from typing import Any

import attrs

from sluicegate._errors import brief, brief_text


def hints_of(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of the fields of an attrs class, by their keywords.

    Raises:
        TypeError: A name cannot be resolved.
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        msg = (
            f"cannot resolve the annotations of {cls.__qualname__}: {error}; expected every name "
            f"to be importable from the module {cls.__module__!r} (not under TYPE_CHECKING)"
        )
        raise TypeError(msg) from error
    return {f.alias: hints.get(f.name, Any) for f in attrs.fields(cls)}


def check_types(cls: type, values: dict[str, Any]) -> None:
    """Check values against the annotations of the fields of ``cls``, by typeguard.

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
        name, hint = field.name, hints[field.alias]
        if name not in values:
            continue
        try:
            typeguard.check_type(
                values[name],
                hint,
                collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
            )
        except typeguard.TypeCheckError as error:
            shown = hint.__name__ if isinstance(hint, type) else hint
            msg = f"{cls.__name__}.{name} is {brief(values[name])}, which is not {shown}: {brief_text(str(error))}"
            raise TypeError(msg) from None


def is_seconds(value: object) -> bool:
    """Whether ``value`` is a number of seconds that a timeout may have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def is_count(value: object) -> bool:
    """Whether ``value`` is an int of at least 1, and no bool."""
    return type(value) is int and value >= 1
