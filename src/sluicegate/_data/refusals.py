"""Errors for values that cannot be kept or read, and the words in which they say why."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from sluicegate._annotations import plain_form, text_of
from sluicegate._errors import RestoredError, SnapshotError, brief, brief_text


if TYPE_CHECKING:
    from collections.abc import Generator

    Kinds: TypeAlias = tuple[type, ...]

#: How deep values may be nested. To read a level takes up to five calls, and up to three levels of
#: JSON; the rest of Python's 1,000 is for whoever calls the codec.
MAX_DEPTH = 100
#: How many of the errors of one model a message lists.
_LISTED = 3


class MismatchError(Exception):
    """Raised where a value does not fit; each container that it passes adds its part of the way."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.way: list[tuple[str, object]] = []

    def passed(self, part: str, holder: object) -> None:
        """Note that the fault lies in the part of ``holder`` that is written ``part``."""
        self.way.append((part, holder))

    def told(self, path: str) -> SnapshotError:
        """Return the error for the user."""
        parts = [part for part, _ in reversed(self.way)]
        return SnapshotError(f"{path}{''.join(parts)} {self.text}")


class TooDeepError(MismatchError):
    """Raised at a value that is nested too deeply, often because it holds itself."""

    def __init__(self) -> None:
        super().__init__(f"is nested more than {MAX_DEPTH} levels deep; expected flatter values")

    def told(self, path: str) -> SnapshotError:
        """Return the error for the user: where the circle closes, or the beginning of the way."""
        before: dict[int, str] = {}
        for part, holder in reversed(self.way):
            if id(holder) in before:
                text = f"holds itself: it is {before[id(holder)]} again; expected no circles"
                return SnapshotError(f"{path} {text}")
            before[id(holder)] = path
            path += part
        return SnapshotError(f"{list(before.values())[:8][-1]}... {self.text}")


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


def shown(value: object) -> str:
    """Return a short form of a value for a message; no code of the user's is called."""
    if isinstance(value, type):
        return value.__qualname__
    if (type(value) is str and len(value) <= 60) or value is None or type(value) is bool:
        return repr(value)
    if type(value) is int and value.bit_length() <= 64:
        return repr(value)
    return f"a {type(value).__qualname__}"


def refuse_misfit(value: object, allowed: Kinds) -> NoReturn:
    """Refuse a value that does not fit the annotation of its field."""
    wanted = " or ".join(kind.__name__ for kind in allowed if kind is not RestoredError)
    what = shown(value) if type(value) in (str, int, bool) else f"a {type(value).__name__}"
    call = plain_form(value)
    msg = f"is {what}; expected {wanted}, as the annotation says{f': {call}' if call else ''}"
    raise MismatchError(msg)


def refuse_items(value: object, hint: object) -> NoReturn:
    """Refuse a value whose items do not fit the annotation of its field."""
    msg = f"is {brief(value)}; expected {text_of(hint)}, as the annotation says"
    raise MismatchError(msg)


def refuse_content(what: str) -> NoReturn:
    """Refuse the content of a tagged value."""
    msg = f"cannot be read: {what}; expected data as encode() made it"
    raise MismatchError(msg)


@contextmanager
def reported() -> Generator[None]:
    """Tell what a constructor, ``__hash__`` or ``__eq__`` raises for bad data as a fault."""
    try:
        yield
    except MismatchError:
        raise
    except Exception as error:
        told = brief_text(str(error))
        msg = f"cannot be read: {type(error).__name__}: {told}; expected data as encode() made it"
        raise MismatchError(msg) from error
