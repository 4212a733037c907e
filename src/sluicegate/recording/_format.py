"""The format of a recording's file: JSON lines, each one record, in the order of the facts.

The first line of each program that has written into the file is a :class:`RecordingStarted`; a
:class:`RecordingFull` means that later runs were not recorded. Any other line is a record of :mod:`sluicegate.records` with a key more: ``"run"``, which says of which
run it is. It is the identifier of the run; if several runs of that identifier are active at once, the
later ones have a suffix such as ``"~2"``. A :class:`RecordsLeftOut` has the number of records of a
run that are missing at its place.

* An event's ``value`` is an object with its fields: shortened, secrets hidden, and what JSON cannot
  hold as text for reading.
* An exception is an object: ``type_name``, ``message``, ``notes``, ``traceback``.
* Keys that hold their default may be missing, and readers ignore keys and records that they do not
  know. :data:`FORMAT` grows when the meaning of a line changes.
* The last line may be cut off. A program that continues the file ends such a line first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args

import msgspec

from sluicegate import records
from sluicegate._data.json import DIALECT
from sluicegate.recording._errors import DescribedError, RecordedError
from sluicegate.records import Record


if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator


#: The version of the format.
FORMAT: Final = 1
#: How a file of a recording begins.
BEGINNING: Final = b'{"record":"RecordingStarted"'


class RecordingStarted(msgspec.Struct, frozen=True, tag_field="record", tag=True):
    """A program began to write into the file. The first line.

    Attributes:
        format: The version of the format, :data:`FORMAT`.
        sluicegate: The version of the package that wrote it.
        time: When it was, in seconds since the epoch.
    """

    format: int
    sluicegate: str
    time: float


class RecordingFull(msgspec.Struct, frozen=True, tag_field="record", tag=True):
    """The file has reached its limit: the runs that began from here on are not in it.

    Attributes:
        limit: The limit in bytes.
        time: When it was, in seconds since the epoch.
    """

    limit: int
    time: float


class RecordsLeftOut(Record, frozen=True, gc=False):
    """Records of the run were left out between the line before and the line after.

    Attributes:
        count: How many.
        reason: ``"limit"``: the file has reached its limit, and only the last records of a run are
            kept; ``"not written"``: the file could not be written, as on a full disk.
    """

    count: int
    reason: Literal["limit", "not written"]


RECORDS: tuple[type[Record], ...] = tuple(
    found
    for found in vars(records).values()
    if isinstance(found, type) and issubclass(found, Record) and found is not Record
)
#: The records in any line.
_KINDS: Any = Union[(*RECORDS, RecordsLeftOut, RecordingStarted, RecordingFull)]


class _Tagged(msgspec.Struct):
    """The keys that identify a line."""

    record: str
    run: str = ""


def _decode_error(kind: type, data: Any) -> Any:
    """Make the exceptions of records, which msgspec cannot."""
    if kind is not BaseException:
        raise NotImplementedError
    return RecordedError(msgspec.convert(data, DescribedError))


_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_KINDS, dec_hook=_decode_error)
_TAGS = msgspec.json.Decoder(_Tagged)
_KNOWN = frozenset(kind.__name__ for kind in get_args(_KINDS))
_BEGINS = b'{"run":'


class Lines:
    """Reads lines, which may come in pieces of any size, and counts what it cannot read.

    Attributes:
        damaged: How many lines could not be read.
        unknown: How many records are of a later version.
        is_cut_off: Whether the last line has no end.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self.unknown = 0
        self._rest = b""
        self._runs: dict[bytes, str] = {}

    @property
    def is_cut_off(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> Iterator[tuple[str, Any]]:
        """Yield the records in the next piece, each with the run that its line names."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        runs, start = self._runs, len(_BEGINS)
        for line in lines:
            try:
                record = _DECODER.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._count_unreadable(line)
                continue
            # The writer puts the run first; its name need not be decoded for each line.
            run = runs.get(line[start : line.find(b'",', start + 1) + 1])
            yield self._run_in(line) if run is None else run, record

    def _count_unreadable(self, line: bytes) -> None:
        """Count a line that is no record: damage, or a record of a later version."""
        if not line.strip():
            return
        try:
            tag = _TAGS.decode(line).record
        except (msgspec.DecodeError, UnicodeDecodeError):
            tag = ""
        if tag and tag not in _KNOWN:
            self.unknown += 1
        else:
            self.damaged += 1

    def _run_in(self, line: bytes) -> str:
        """Return the run of a line, and remember how it is written, unless that is ambiguous."""
        run = _TAGS.decode(line).run
        written = _BEGINS + msgspec.json.encode(run) + b","
        if line.startswith(written) and b'",' not in msgspec.json.encode(run):
            self._runs[msgspec.json.encode(run)] = run
        return run


def pieces(lines: Iterable[bytes | str]) -> Iterator[bytes]:
    """Yield lines as bytes, each with its end."""
    for line in lines:
        data = line.encode() if isinstance(line, str) else line
        yield data if data.endswith(b"\n") else data + b"\n"


def read_pieces(file: io.BufferedIOBase | io.RawIOBase) -> Iterator[bytes]:
    """Yield the content of a file in pieces."""
    while piece := file.read(1 << 20):
        yield piece


def recording_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one line of a recording's file.

    The file consists of JSON lines in the order of the facts. It begins with a ``RecordingStarted``,
    which has the version of the format, and so does each program that continues it. Any other line is
    a record of :mod:`sluicegate.records`, with the key ``"run"`` for its run: the identifier of the run,
    with a suffix such as ``"~2"`` if runs of the same identifier are active at once. Each run begins
    with its ``RunStarted``. The value of an event is an object with its fields; an exception is an
    object with ``type_name``, ``message``, ``notes`` and ``traceback``. ``RecordsLeftOut`` has the number of
    records of a run that are missing at its place, and ``RecordingFull`` means that later runs were
    not recorded. Keys that hold their default may be missing.

    Readers should ignore keys and records that they do not know, and a last line without a line feed:
    the program was killed, or is writing it.
    """
    schema = msgspec.json.schema(_KINDS, schema_hook=_schema_of_error)
    described = msgspec.json.schema(DescribedError)
    definitions: dict[str, Any] = schema["$defs"]
    definitions["DescribedError"] = described["$defs"]["DescribedError"]
    for name, definition in definitions.items():
        if name not in ("DescribedError", "RecordingStarted", "RecordingFull"):
            run = {"run": {"type": "string", "description": "The run that the record is of."}}
            definition["properties"] = run | definition["properties"]
            definition["required"] = ["run", *definition["required"]]
    return {"$schema": DIALECT, "title": "A line of a recording", **schema}


def _schema_of_error(kind: type) -> dict[str, Any]:
    if kind is not BaseException:
        raise NotImplementedError
    return {"$ref": "#/$defs/DescribedError"}
