"""The file of a recorder: lines are kept for a moment, then written together, in limits.

An observer must not hold up the run, nor fail it. So a record goes into memory, and records are written
when they are many, when the last active run has ended, and otherwise by a thread that looks every
quarter of a second while a run is active. Records that cannot be written are counted. The log reports
the first error, and the file gets the number as soon as it can be written again.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from sluicegate.recording._format import (
    BEGINNING,
    FORMAT,
    RecordingFull,
    RecordingStarted,
    RecordsLeftOut,
)


if TYPE_CHECKING:
    from pathlib import Path

    from sluicegate.recording._values import Renderer
    from sluicegate.records import Record


LOGGER = logging.getLogger("sluicegate")
#: When a run has so many records, they are written.
MOST_RECORDS = 256
#: Seconds after which they are written at the latest.
INTERVAL = 0.25
#: The last records of a run that are kept for its end, once the file is nearly full.
KEPT = 500
#: The part of the limit up to which everything is written.
NEARLY = 0.9

_ENCODER = msgspec.json.Encoder()
_START = b'{"record":"'
_NEXT = b"\n" + _START


class RunLines:
    """The records of one run that are not written yet.

    Attributes:
        pending: The records that are to be written.
        kept: The last records, kept for the end of the run because the file is nearly full; None while
            all are written.
        has_begun: Whether the first record was written, or is pending.
        left_out: How many records were not kept.
        unwritten: How many could not be written.
        at: The time of the last record that could not be written.
    """

    __slots__ = (
        "_prefix",
        "_renderer",
        "at",
        "has_begun",
        "kept",
        "left_out",
        "pending",
        "unwritten",
    )

    def __init__(self, key: str, renderer: Renderer) -> None:
        name = key.encode("utf-8", "backslashreplace").decode()
        self._prefix = b'{"run":' + _ENCODER.encode(name) + b","
        self._renderer = renderer
        self.pending: list[Any] = []
        self.kept: deque[Any] | None = None
        self.has_begun = False
        self.left_out = 0
        self.unwritten = 0
        self.at = 0.0

    def keep(self, record: Record) -> None:
        """Keep a record for the end of the run, in the place of the oldest; write the very first."""
        kept = self.kept
        assert kept is not None
        if not self.has_begun:
            self.has_begun = True
            self.pending.append(record)
            return
        if len(kept) == KEPT:
            self.left_out += 1
        kept.append(record)

    def release(self, room: int) -> None:
        """Make pending what was kept: the last record, and before it as many as there is room for."""
        kept, chosen = self.kept or deque[Any](), deque[Any]()
        for record in reversed(kept):
            room -= len(self.encode([record]))
            if room < 0 and chosen:
                break
            chosen.appendleft(record)
        count = self.left_out + len(kept) - len(chosen)
        if count:
            self.pending.append(RecordsLeftOut(chosen[0].at, count, "limit"))
        self.pending += chosen
        self.kept, self.left_out = None, 0

    def take(self) -> bytes:
        """Return the pending records as lines."""
        # Another thread may append meanwhile; its records stay pending.
        count = len(self.pending)
        records = self.pending[:count]
        del self.pending[:count]
        if self.unwritten:
            records.insert(0, RecordsLeftOut(self.at, self.unwritten, "not written"))
        return self.encode(records) if records else b""

    def encode(self, records: list[Any]) -> bytes:
        """Return records as lines."""
        try:
            data = _ENCODER.encode_lines(records)
        except Exception:  # noqa: BLE001 - a text of the user's that is no Unicode
            data = b"".join(map(self._encode_with_care, records))
        # A line begins with the class of the record, and JSON has no line feed within a text.
        replaced = data.replace(_NEXT, b"\n" + self._prefix + _START[1:])
        return self._prefix + replaced[1:]

    def _encode_with_care(self, record: Any) -> bytes:
        """Return one record as a line; one that cannot be encoded is reported as missing."""
        try:
            return _ENCODER.encode_lines([_plain(record, self._renderer)])
        except Exception:  # noqa: BLE001 - no value of the user's ends a recording
            return _ENCODER.encode_lines([RecordsLeftOut(record.at, 1, "not written")])

    def lose(self, lines: bytes) -> None:
        """Count lines that could not be written."""
        for line in lines.splitlines():
            place = line.find(b'"record":"RecordsLeftOut"')
            if place == len(self._prefix):
                continue  # it counts what is counted already
            self.unwritten += 1
            time_of = _TIME.search(line)
            self.at = self.at if time_of is None else float(time_of[1])


_TIME = re.compile(rb'"at":([-+.0-9eE]+)')


def _plain(record: Any, renderer: Renderer) -> dict[str, Any]:
    """Return a record as plain data, in which every text can be written."""
    found: dict[str, Any] = {"record": type(record).__name__}
    names: tuple[str, ...] = record.__struct_fields__
    for name in names:
        found[name] = renderer.plain(getattr(record, name))
    return found


class RecordingFile:
    """A file of JSON lines, which several threads may write to.

    Args:
        path: Its path.
        append: Whether to continue an existing recording; otherwise it is replaced.
        limit: About how many bytes it may have.
        version: The version of the package; the first line contains it.

    Attributes:
        is_nearly_full: Whether only the first record of each run and its last ones are kept.
        is_full: Whether no further run is recorded.

    Raises:
        OSError: The file cannot be opened or written.
        ValueError: There is a file of that name that is no recording.
    """

    def __init__(self, path: Path, *, append: bool, limit: int, version: str) -> None:
        self.path = path
        self.is_full = False
        self._limit = limit
        self._lock = threading.Lock()
        #: The runs that are not written in full, in the order in which they began, so that parents are
        #: written before their children; how many are active, and the others.
        self._runs: dict[RunLines, None] = {}
        self._active = 0
        self._ended: list[RunLines] = []
        self._ended_records = 0
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._has_complained = False
        self._is_closed = False
        #: The descriptor, the size, and whether the last line has no end.
        self._descriptor, self._size, self._is_torn = _open(path, append=append)
        self.is_nearly_full = self._size > limit * NEARLY
        try:
            self._write(_ENCODER.encode(RecordingStarted(FORMAT, version, time.time())) + b"\n")
        except OSError:
            os.close(self._descriptor)
            raise

    # -- runs -------------------------------------------------------------------------------------

    def begin(self, lines: RunLines) -> bool:
        """Note that a run begins, and return whether it is recorded: not if the file is full."""
        with self._lock:
            if self._is_closed or self.is_full:
                return False
            if self._size >= self._limit:
                self._tell_full()
                return False
            lines.has_begun = not self.is_nearly_full
            if self.is_nearly_full:
                lines.kept = deque(maxlen=KEPT)
            self._runs[lines] = None
            self._active += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write_in_time, name="sluicegate recording", daemon=True
                )
                self._thread.start()
        return True

    def _tell_full(self) -> None:
        self.is_full = True
        LOGGER.warning(
            "the recording %s has reached its limit of %d bytes; further runs are not recorded",
            self.path,
            self._limit,
        )
        with suppress(OSError):  # the log has it
            self._write(_ENCODER.encode(RecordingFull(self._limit, time.time())) + b"\n")

    def end(self, lines: RunLines) -> None:
        """Note that a run has ended; it is written at once if it was the last active one."""
        with self._lock:
            if lines.kept is not None:
                lines.release((self._limit - self._size) // self._active)
            self._active -= 1
            self._ended.append(lines)
            self._ended_records += len(lines.pending)
            if not self._active or self._ended_records >= MOST_RECORDS:
                self._write_all()

    def _write_in_time(self) -> None:
        """Write now and then, in a thread, until no run is active."""
        while True:
            self._wake.wait(INTERVAL)
            with self._lock:
                self._write_all()
                if not self._active or self._is_closed:
                    self._thread = None
                    return

    # -- writing ------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write all records so far; those that cannot be written are counted."""
        with self._lock:
            self._write_all()

    def close(self) -> None:
        """Write all records and close the file. May be called again."""
        with self._lock:
            if self._is_closed:
                return
            self._write_all()
            self._is_closed = True
            os.close(self._descriptor)
            self._wake.set()

    def _write_all(self) -> None:
        """Write the pending records of all runs; if they cannot be written, count and tell it."""
        is_writable = not self._is_closed
        for lines in self._runs:
            data = lines.take()
            if data:
                is_writable = self._try_to_write(lines, data, is_writable=is_writable)
        # Ended runs whose losses are not in the file yet are kept, up to a number.
        left = [lines for lines in self._ended if lines.unwritten][-MOST_RECORDS:]
        for lines in {*self._ended}.difference(left):
            del self._runs[lines]
        self._ended, self._ended_records = left, 0

    def _try_to_write(self, lines: RunLines, data: bytes, *, is_writable: bool) -> bool:
        """Write lines of a run, or count them; return whether it is worth while to write more."""
        written = 0
        if is_writable:
            try:
                self._write(data)
            except _PartlyWrittenError as error:
                written = error.written
                self._complain(error)
            else:
                lines.unwritten = 0
                return True
        end = data.rfind(b"\n", 0, written) + 1
        if end:
            lines.unwritten = 0  # the first line, which is written, has the number
        lines.lose(data[end:])
        return False

    def _keep_the_last(self) -> None:
        """From here on, keep the last records of each run for its end."""
        self.is_nearly_full = True
        for lines in self._runs:
            lines.kept = deque(maxlen=KEPT)

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            LOGGER.warning("the recording %s is incomplete: %s", self.path, error.__cause__)

    def _write(self, data: bytes) -> None:
        """Write lines; after a line that was written in part, on a new one.

        Raises:
            OSError: Not all was written.
        """
        head = b"\n" if self._is_torn else b""
        view = memoryview(head + data)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._descriptor, view[done:])
        except OSError as error:
            raise _PartlyWrittenError(done - len(head)) from error
        finally:
            if done:
                self._size += done
                if self._size > self._limit * NEARLY and not self.is_nearly_full:
                    self._keep_the_last()
                self._is_torn = view[done - 1] != _NEWLINE


class _PartlyWrittenError(OSError):
    """Raised when the file could not be written; ``written`` bytes of the lines were."""

    def __init__(self, written: int) -> None:
        super().__init__(f"only {written} bytes were written")
        self.written = max(written, 0)


_NEWLINE = ord("\n")


def _refuse(path: Path) -> NoReturn:
    msg = (
        f"{str(path)!r} is no recording, and is not overwritten; expected another name, or the file of "
        "an earlier recording"
    )
    raise ValueError(msg)


def _open(path: Path, *, append: bool) -> tuple[int, int, bool]:
    """Open the file of a recording; return its descriptor, its size, and whether a line has no end.

    Raises:
        OSError: It cannot be opened.
        ValueError: There is a file of that name that is no recording.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    for name in ("O_CLOEXEC", "O_BINARY"):  # of Unix, and of Windows
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = False
        if size:
            if not os.read(descriptor, len(BEGINNING)).startswith(BEGINNING):
                _refuse(path)
            if append:
                os.lseek(descriptor, -1, os.SEEK_END)
                is_torn = os.read(descriptor, 1) != b"\n"
            else:
                os.ftruncate(descriptor, 0)
                size = 0
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, size, is_torn
