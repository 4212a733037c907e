"""Values that pydantic makes: how each is taken apart and put together, with no validator run.

Pydantic is imported only where such a value is written or read.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from sluicegate._data.builtins import Row


if TYPE_CHECKING:
    from collections.abc import Callable

#: How the tags of these values begin.
PREFIX = "pydantic:"

_TEXT, _INT = ((str,),), ((int,),)


def is_pydantics_own(cls: type) -> bool:
    """Whether a class is defined by pydantic itself."""
    return cls.__module__.partition(".")[0] in ("pydantic", "pydantic_core")


def is_secret(cls: type) -> bool:
    """Whether the values of a class hide what they hold, as ``SecretStr`` does."""
    types: Any = sys.modules.get("pydantic.types")
    bases = tuple(getattr(types, name) for name in ("Secret", "SecretStr", "SecretBytes") if types)
    return bool(bases) and issubclass(cls, bases)


def url_row(cls: Any) -> Row | None:
    """Return how an URL of pydantic is kept, or None for a class that is none."""
    networks: Any = sys.modules.get("pydantic.networks")
    bases = (getattr(networks, "_BaseUrl", None), getattr(networks, "_BaseMultiHostUrl", None))
    for base, inner in zip(bases, ("Url", "MultiHostUrl"), strict=True):
        if isinstance(base, type) and issubclass(cls, base):
            return _make_url_row(cls, inner)
    return None


def _make_url_row(cls: Any, inner: str) -> Row:
    def join(text: str) -> Any:
        made = object.__new__(cls)
        object.__setattr__(made, "_url", _parsed(inner)(text))
        return made

    return Row(cls, "", _TEXT, lambda value: (str(value._url),), join)


def _parsed(name: str) -> Callable[[str], Any]:
    """Return what makes an URL of its text and leaves the text as it is."""
    import pydantic_core  # noqa: PLC0415 - see above

    kind: Any = getattr(pydantic_core, name)

    def parse(text: str) -> Any:
        plain = kind(text)
        return plain if str(plain) == text else kind(text, preserve_empty_path=True)

    return parse


@functools.cache
def pydantic_rows() -> tuple[Row, ...]:
    """Return the rows of what pydantic itself defines; none where it is not installed."""
    try:
        import pydantic_core  # noqa: PLC0415 - see above
        from pydantic import networks, types  # noqa: PLC0415
    except ImportError:
        return ()
    made = [
        Row(types.ByteSize, "ByteSize", _INT, lambda value: (int(value),), types.ByteSize),
        Row(
            networks.NameEmail,
            "NameEmail",
            _TEXT * 2,
            lambda value: (value.name, value.email),
            networks.NameEmail,
        ),
        Row(
            pydantic_core.TzInfo,
            "TzInfo",
            _INT,
            lambda value: (_seconds_of(value),),
            pydantic_core.TzInfo,
        ),
    ]
    for name in ("Url", "MultiHostUrl"):
        kind: Any = getattr(pydantic_core, name)
        made.append(Row(kind, name, _TEXT, lambda value: (str(value),), _parsed(name)))
    for cls in vars(networks).values():
        row = url_row(cls) if isinstance(cls, type) and not cls.__name__.startswith("_") else None
        if row is not None:
            made.append(Row(cls, cls.__name__, row.shape, row.split, row.join))
    return tuple(made)


def _seconds_of(zone: Any) -> int:
    return int(zone.utcoffset(None).total_seconds())
