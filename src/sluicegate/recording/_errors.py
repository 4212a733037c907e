"""Exceptions in a recording: as data in a file, and as exceptions again when it is loaded."""

from __future__ import annotations

import msgspec

from sluicegate._errors import RestoredError


class DescribedError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as data.

    Attributes:
        type_name: The name of its class, with the module unless that is ``builtins``.
        message: What ``str()`` of it gives, shortened; of a group, its first leaves too.
        notes: Its notes.
        traceback: The innermost frames of its traceback, as Python prints them, without the line
            of the exception itself.
    """

    type_name: str
    message: str = ""
    notes: list[str] = []
    traceback: str = ""


class RecordedError(RestoredError):
    """What an exception is in a recording that was loaded from a file.

    Attributes:
        type_name: The name of the class that it had, with the module unless that is ``builtins``.
        message: What ``str()`` of it gave, shortened.
        described: All of it as data. The notes are its ``__notes__`` as well.
    """

    def __init__(self, described: DescribedError) -> None:
        super().__init__(described.type_name, described.message)
        self.described = described
        for note in described.notes:
            self.add_note(note)

    @property
    def traceback(self) -> str:
        """The innermost frames of its traceback, as Python prints them."""
        return self.described.traceback

    def __reduce__(self) -> tuple[type[RecordedError], tuple[DescribedError]]:
        return RecordedError, (self.described,)
