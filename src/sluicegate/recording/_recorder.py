"""The recorder: an observer that keeps the records of runs, in memory or in a file."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import msgspec

from sluicegate._observers import Observer
from sluicegate.recording._file import MOST_RECORDS, RecordingFile, RunLines
from sluicegate.recording._format import RecordsLeftOut
from sluicegate.recording._recording import Recording
from sluicegate.recording._values import CHARACTERS, Renderer
from sluicegate.records import (
    CancellationRequested,
    EventEmitted,
    EventStreamed,
    InvocationEnded,
    QuestionAsked,
    Record,
    ResourceFailed,
    RunEnded,
    RunStarted,
)


if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from sluicegate._observers import RunInfo
    from sluicegate.recording._values import Redact


#: The last records of a run that are kept in memory beyond the limit.
KEPT = 1_000
#: The latest runs that a recorder remembers to have recorded.
_REMEMBERED = 1_000

#: The recorders that exist, by which that of a handler's run is found.
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def recorders_of(run_id: str) -> list[Recorder]:
    """Return the recorders that have recorded a run, those in memory first."""
    found = [one for one in list(_recorders) if run_id in one.run_ids]
    return sorted(found, key=lambda one: one.path is not None)


class Recorder(Observer):
    """Keeps the records of runs: in memory, or in a file of JSON lines.

    Give it to a workflow (``observers=[recorder]``) or to :func:`sluicegate.observe`. One recorder may
    serve several workflows, also of event loops in several threads::

        recorder = Recorder()
        with observe(recorder):
            await Shop().run()
        print(recorder.recording.critical_path().by_step())

    *In memory*, events and exceptions are the live objects; with an exception, the frames of its
    traceback stay alive too.

    *In a file*, they are text: event fields are shortened, and fields that are declared with
    ``repr=False`` (``attrs.field(repr=False)``, ``pydantic.Field(repr=False)``,
    ``dataclasses.field(repr=False)``) are hidden, as are the values of ``pydantic.SecretStr``. No
    ``__repr__`` is called; the message of an exception is its ``str()``. :func:`recording_schema` describes a line. Lines are written
    when 256 are there, when no run is active any more, and otherwise within a quarter of a second, by a thread.
    So a crash of the process loses at most the last quarter second. A power failure may lose more,
    because the file is not synchronized to the disk. One program at a time may write to a file.

    If the file cannot be written, as on a full disk, no run is affected: the logger
    ``sluicegate`` reports it once, and the number of missing records is written into the file as soon as
    possible. Near the limit, a run's first record and its last 500 are written, with the number of those between.
    At the limit, further runs are not recorded; the file and the log report it.

    Args:
        path: The path of the file; None for a recorder in memory.
        append: Whether to continue a recording in the file; otherwise it is replaced. A file that is no
            recording is never touched.
        max_bytes: About the greatest size of the file.
        max_records: In memory, the most records of one run: beyond, its last 1,000 are kept, and the first
            ones, up to this number. When a run begins, the oldest ended runs are forgotten until all have
            at most this number together.
        max_characters: The most characters of an event's values, and of an exception's traceback.
        redact: A function that is called with the name and the value of each field of an event,
            and each key of a dict in it, and returns the value, or what to show instead. For an exception it is
            called with ``"message"``, ``"notes"`` and ``"traceback"`` and these texts. If it raises, the
            value is hidden. In memory, it is used where values are shown.

    Raises:
        OSError: The file cannot be opened or written.
        ValueError: The file is no recording, or a limit is not positive.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        append: bool = True,
        max_bytes: int = 1_000_000_000,
        max_records: int = 1_000_000,
        max_characters: int = CHARACTERS,
        redact: Redact | None = None,
    ) -> None:
        for name, limit in [
            ("max_bytes", max_bytes),
            ("max_records", max_records),
            ("max_characters", max_characters),
        ]:
            if limit < 1:
                msg = f"{name} is {limit}; expected a number above 0"
                raise ValueError(msg)
        self._path = None if path is None else Path(path)
        self._max_characters = max_characters
        self._redact = redact
        self._run_ids: deque[str] = deque(maxlen=_REMEMBERED)
        self._store: _InMemory | _InFile
        if self._path is None:
            self._store = _InMemory(max_records)
        else:
            file = RecordingFile(self._path, append=append, limit=max_bytes, version=_version())
            self._store = _InFile(file, Renderer(max_characters, redact))
            weakref.finalize(self, file.close)
        _recorders.add(self)

    @property
    def path(self) -> Path | None:
        """The path of the file; None for a recorder in memory."""
        return self._path

    @property
    def forgotten(self) -> int:
        """How many ended runs a recorder in memory has forgotten, because of ``max_records``."""
        return self._store.forgotten if isinstance(self._store, _InMemory) else 0

    def listen(self, run: RunInfo) -> Callable[[Record], object] | None:
        """Return a function that takes the records of a run; None once the recorder is closed or full."""
        listener = self._store.listen(run.run_id)
        if listener is not None:
            self._run_ids.append(run.run_id)
        return listener

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The identifiers of the last 1,000 runs that it has recorded, oldest first."""
        return tuple(self._run_ids)

    @property
    def recording(self) -> Recording:
        """The records until now as a recording, with those of active runs.

        Each access makes a new one, in time that grows with the records: about a second for a few
        100,000. Of a file, it is loaded, and blocks meanwhile.

        Raises:
            OSError: The file cannot be read.
        """
        if isinstance(self._store, _InFile):
            assert self._path is not None
            self._store.file.flush()
            return Recording.load(self._path)
        return Recording.from_records(
            self._store.runs(), max_characters=self._max_characters, redact=self._redact
        )

    def recording_of(self, run_id: str) -> Recording:
        """Return the records until now of one run and its children; of a recorder in memory.

        It takes time that grows with the records of these runs.

        Args:
            run_id: The identifier of the run.
        """
        runs = self._store.runs_of(run_id) if isinstance(self._store, _InMemory) else []
        return Recording.from_records(
            runs, max_characters=self._max_characters, redact=self._redact
        )

    def flush(self) -> None:
        """Write all records so far into the file. Nothing to do for a recorder in memory."""
        if isinstance(self._store, _InFile):
            self._store.file.flush()

    def close(self) -> None:
        """Write all records, close the file, and record no further run. May be called again.

        A recorder that is not closed closes its file when it is deleted, and at the end of the program.
        """
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Recorder {'in memory' if self._path is None else f'into {self._path}'}>"


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - it is slow

    return version("sluicegate")


# -- in memory --------------------------------------------------------------------------------------


@final
class _Kept:
    """The records of one run in memory: the first ones, and the last ones beyond the limit."""

    __slots__ = ("first", "last", "left_out", "most")

    def __init__(self, most: int) -> None:
        self.first: list[Record] = []
        self.last: deque[Record] = deque(maxlen=KEPT)
        self.left_out = 0
        self.most = most

    def __len__(self) -> int:
        return len(self.first) + len(self.last)

    @property
    def has_ended(self) -> bool:
        """Whether the last record of the run is there."""
        records = self.last or self.first
        return bool(records) and type(records[-1]) is RunEnded

    def listener(self) -> Callable[[Record], object]:
        """Return a function that takes the records; it costs little more than an append."""
        first, most = self.first, self.most
        append, keep = first.append, self._keep

        def hear(record: Record) -> None:
            if len(first) < most:
                append(record)
            else:
                keep(record)

        return hear

    def _keep(self, record: Record) -> None:
        if len(self.last) == KEPT:
            self.left_out += 1
        self.last.append(record)

    def records(self) -> Iterator[Record]:
        """Yield the records, and how many are left out in their place."""
        yield from list(self.first)
        last = list(self.last)
        if self.left_out:
            yield RecordsLeftOut(last[0].at, self.left_out, "limit")
        yield from last


@final
class _InMemory:
    """The runs of a recorder in memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._runs: list[_Kept] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self._next_count = 0
        self.forgotten = 0

    def listen(self, run_id: str) -> Callable[[Record], object] | None:  # noqa: ARG002 - it is in the records
        kept = _Kept(self._most)
        with self._lock:
            if self._is_closed:
                return None
            self._forget()
            self._runs.append(kept)
        return kept.listener()

    def _forget(self) -> None:
        """Forget the oldest ended runs while there are too many records."""
        # Counting takes time with the number of runs, so it waits until that has grown by an eighth.
        if len(self._runs) < self._next_count:
            return
        total = sum(map(len, self._runs))
        ended = [run for run in self._runs if run.has_ended] if total > self._most else []
        forgotten: set[_Kept] = set()
        for oldest in ended:
            if total <= self._most:
                break
            forgotten.add(oldest)
            total -= len(oldest)
        self._runs = [run for run in self._runs if run not in forgotten]
        self.forgotten += len(forgotten)
        self._next_count = len(self._runs) + len(self._runs) // 8 + 1

    def runs(self) -> list[Iterator[Record]]:
        with self._lock:
            return [kept.records() for kept in self._runs if len(kept)]

    def runs_of(self, run_id: str) -> list[Iterator[Record]]:
        with self._lock:
            kept = [(one, one.first[0]) for one in self._runs if one.first]
        wanted, found = {run_id}, list[_Kept]()
        for one, start in kept:  # a child begins after its parent
            if isinstance(start, RunStarted) and (
                start.run_id in wanted or start.parent_run in wanted
            ):
                wanted.add(start.run_id)
                found.append(one)
        return [one.records() for one in found]

    def close(self) -> None:
        self._is_closed = True


# -- in a file --------------------------------------------------------------------------------------


@final
class _InFile:
    """The runs of a recorder with a file."""

    def __init__(self, file: RecordingFile, renderer: Renderer) -> None:
        self.file = file
        self._renderer = renderer
        self._active: set[str] = set()
        self._lock = threading.Lock()

    def listen(self, run_id: str) -> Callable[[Record], object] | None:
        key = self._key(run_id)
        lines = RunLines(key, self._renderer)
        if not self.file.begin(lines):
            self._release(key)
            return None
        return self._listener(key, lines)

    def _key(self, run_id: str) -> str:
        """Return what the lines of a run name; no two active runs have the same."""
        with self._lock:
            key, number = run_id, 1
            while key in self._active:
                number += 1
                key = f"{run_id}~{number}"
            self._active.add(key)
            return key

    def _release(self, key: str) -> None:
        with self._lock:
            self._active.discard(key)

    def _listener(self, key: str, lines: RunLines) -> Callable[[Record], object]:
        file, renderer, pending = self.file, self._renderer, lines.pending
        append, show_of = pending.append, _SHOWN.get

        def hear(record: Record) -> None:
            show = show_of(type(record))
            shown = record if show is None else show(record, renderer)
            if lines.kept is None:
                append(shown)
                if len(pending) >= MOST_RECORDS:
                    file.flush()
            else:
                lines.keep(shown)
            if show is _with_end:
                file.end(lines)
                self._release(key)

        return hear

    def close(self) -> None:
        self.file.close()


def _with_value(record: Any, renderer: Renderer) -> Any:
    value = record.value
    if renderer.is_plain(value):
        return record
    return msgspec.structs.replace(record, value=renderer.fields(value))


def _with_error(record: Any, renderer: Renderer) -> Any:
    error = record.error
    return record if error is None else msgspec.structs.replace(record, error=renderer.error(error))


def _with_end(record: RunEnded, renderer: Renderer) -> Any:
    return _with_error(record, renderer)


def _with_reason(record: CancellationRequested, renderer: Renderer) -> Any:
    return msgspec.structs.replace(record, reason=renderer.text(record.reason))


#: How records are shown that hold an object of the user's.
_SHOWN: dict[type, Callable[[Any, Renderer], Any]] = {
    EventEmitted: _with_value,
    EventStreamed: _with_value,
    QuestionAsked: _with_value,
    InvocationEnded: _with_error,
    RunEnded: _with_end,
    ResourceFailed: _with_error,
    CancellationRequested: _with_reason,
}
