"""Errors for values that cannot be written or read, and their messages."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from sluicegate._annotations import plain_form, text_of
from sluicegate._errors import RestoredError, SnapshotError, brief, brief_text


if TYPE_CHECKING:
    from collections.abc import Generator

    Kinds: TypeAlias = tuple[type, ...]

#: The maximum nesting of values. Reading one level takes up to five calls and up to three levels of
#: JSON; the rest of Python's 1,000 calls is left to the caller of the codec.
MAX_DEPTH = 100
NO_STACK = "is nested too deeply for the rest of the stack; expected flatter values"
#: The number of errors of one model that a message lists.
_LISTED = 3


class MismatchError(Exception):
    """Raised when the codec refuses a value; each container around it adds its part of the path."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.way: list[tuple[str, object]] = []

    def passed(self, part: str, holder: object) -> None:
        """Add a part of the path: the error is in ``holder``, at ``part``."""
        self.way.append((part, holder))

    def told(self, path: str) -> SnapshotError:
        """Return the error for the user."""
        parts = [part for part, _ in reversed(self.way)]
        return SnapshotError(f"{path}{''.join(parts)} {self.text}")


class TooDeepError(MismatchError):
    """Raised when a value is nested too deeply, often because it contains itself."""

    def __init__(self) -> None:
        super().__init__(f"is nested more than {MAX_DEPTH} levels deep; expected flatter values")

    def told(self, path: str) -> SnapshotError:
        """Return the error for the user: the place where a value contains itself, or a part of the path."""
        before: dict[int, str] = {}
        for part, holder in reversed(self.way):
            if id(holder) in before:
                text = f"holds itself: it is {before[id(holder)]} again; expected no circles"
                return SnapshotError(f"{path} {text}")
            before[id(holder)] = path
            path += part
        return SnapshotError(f"{list(before.values())[:8][-1]}... {self.text}")


class DecodingError(Exception):
    """Raised when data from outside does not fit; its text gives the reason and the place."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        #: Each error with its path from the decoded value: ``.items[0].price``.
        self.parts = [(text, path)]

    def within(self, step: str) -> DecodingError:
        """Put ``step``, the place of the value in its container, before the paths."""
        self.parts = [(text, f"{step}{path}") for text, path in self.parts]
        return self

    def __str__(self) -> str:
        shown = [f"{text} - at `${path}`" if path else text for text, path in self.parts]
        left = len(shown) - _LISTED
        return "; ".join([*shown[:_LISTED], *([f"and {left} more"] if left > 0 else [])])


def shown(value: object) -> str:
    """Return a short form of a value for a message, without calling user code."""
    if isinstance(value, type):
        return value.__qualname__
    if (type(value) is str and len(value) <= 60) or value is None or type(value) is bool:
        return repr(value)
    if type(value) is int and value.bit_length() <= 64:
        return repr(value)
    return f"a {type(value).__qualname__}"


def refuse_misfit(value: object, allowed: Kinds) -> NoReturn:
    """Raise for a value that does not fit the annotation of its field."""
    wanted = " or ".join(kind.__name__ for kind in allowed if kind is not RestoredError)
    what = shown(value) if type(value) in (str, int, bool) else f"a {type(value).__name__}"
    call = plain_form(value)
    msg = f"is {what}; expected {wanted}, as the annotation says{f': {call}' if call else ''}"
    raise MismatchError(msg)


def refuse_items(value: object, hint: object) -> NoReturn:
    """Raise for a value whose items do not fit the annotation of its field."""
    msg = f"is {brief(value)}; expected {text_of(hint)}, as the annotation says"
    raise MismatchError(msg)


def refuse_content(what: str) -> NoReturn:
    """Raise for invalid content of a tagged value."""
    msg = f"cannot be read: {what}; expected data as encode() made it"
    raise MismatchError(msg)


@contextmanager
def reported() -> Generator[None]:
    """Convert an exception of a constructor, ``__hash__`` or ``__eq__`` to a MismatchError."""
    try:
        yield
    except MismatchError:
        raise
    except Exception as error:
        told = brief_text(str(error))
        msg = f"cannot be read: {type(error).__name__}: {told}; expected data as encode() made it"
        raise MismatchError(msg) from error
