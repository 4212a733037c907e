"""Recordings: one or several runs as objects, with their causes."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from sluicegate.recording import _causes, _path
from sluicegate.recording._building import Runs
from sluicegate.recording._format import (
    FORMAT,
    Lines,
    RecordingFull,
    RecordingStarted,
    pieces,
    read_pieces,
)
from sluicegate.recording._trace_events import trace_events
from sluicegate.recording._values import CHARACTERS, Renderer


if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable

    from sluicegate.drawing import Execution
    from sluicegate.recording._causes import Node
    from sluicegate.recording._model import (
        RecordedCancellation,
        RecordedEvent,
        RecordedInvocation,
        RecordedQuestion,
        RecordedRun,
        RecordedStreamEvent,
    )
    from sluicegate.recording._path import CriticalPath
    from sluicegate.recording._values import Redact
    from sluicegate.records import Record


@final
class Recording:
    """One or several runs, as they were recorded.

    :attr:`Recorder.recording` makes one of what was recorded so far, and :func:`load_recording` loads
    one from a file. It does not change while runs continue; to follow a run, feed a recording
    with the further lines of its file (:meth:`feed`).

    A recording may be incomplete: a run may still be active, records may have been left out
    (:attr:`left_out`), and a file may have been cut off (:attr:`is_cut_off`). Then it holds what is
    known.
    """

    def __init__(self) -> None:
        self._runs = Runs(Renderer())
        self._lines = Lines()
        self._is_full = False

    # -- making -----------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a recording from a file of JSON lines, also from one that is still written.

        Blocks while it reads; about a second for 100,000 records.

        Args:
            path: The path of the file.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is no recording, or of a later format.
        """
        recording = cls()
        with Path(path).open("rb") as file, _without_gc():
            for piece in read_pieces(file):
                recording.feed(piece)
        if not recording.runs and (recording.damaged or recording.is_cut_off):
            msg = f"{str(path)!r} is no recording; expected a file that a Recorder has written"
            raise ValueError(msg)
        return recording

    @classmethod
    def from_lines(cls, lines: Iterable[str | bytes]) -> Self:
        """Make a recording of the lines of a file.

        Raises:
            ValueError: The lines are of a later format.
        """
        recording = cls()
        for piece in pieces(lines):
            recording.feed(piece)
        return recording

    @classmethod
    def from_records(
        cls,
        runs: Iterable[Iterable[Record]],
        *,
        max_characters: int = CHARACTERS,
        redact: Redact | None = None,
    ) -> Self:
        """Make a recording of records, as an observer gets them: those of each run in order.

        Args:
            runs: The records of each run; parents come before their children.
            max_characters: The most characters of an event's fields, as for a :class:`Recorder`.
            redact: Replaces values, as for a :class:`Recorder`.
        """
        recording = cls()
        recording._runs.renderer = Renderer(max_characters, redact)
        for number, records in enumerate(runs):
            for record in records:
                recording._runs.add(str(number), record)
        return recording

    def feed(self, data: bytes) -> None:
        """Take the next piece of a file that is still written; a piece may have any length.

        The objects of the recording stay the same and are updated.

        Raises:
            ValueError: The file is of a later format.
        """
        for run, record in self._lines.feed(data):
            if type(record) is RecordingStarted:
                if record.format > FORMAT:
                    msg = (
                        f"the recording has the format {record.format}; expected at most {FORMAT}, or "
                        f"sluicegate {record.sluicegate}, which wrote it"
                    )
                    raise ValueError(msg)
            elif type(record) is RecordingFull:
                self._is_full = True
            else:
                self._runs.add(run, record)

    # -- what it holds ------------------------------------------------------------------------------

    @property
    def runs(self) -> list[RecordedRun]:
        """The runs that are no children of a recorded run, in the order in which they began."""
        return list(self._runs.roots)

    @property
    def all_runs(self) -> list[RecordedRun]:
        """All runs, children included, in the order in which they began."""
        return list(self._runs.all)

    @property
    def run(self) -> RecordedRun:
        """The run that began last, and is no child of another.

        Raises:
            LookupError: The recording has no run.
        """
        if not self._runs.roots:
            msg = "the recording has no run; expected one of a workflow with the recorder among its observers"
            raise LookupError(msg)
        return self._runs.roots[-1]

    def find(self, run_id: str) -> RecordedRun:
        """Return the run with an identifier; of several, such as a resumed one, the last.

        Raises:
            LookupError: There is none.
        """
        found = [run for run in self._runs.all if run.run_id == run_id]
        if not found:
            known = ", ".join(repr(run.run_id) for run in self._runs.all[-5:]) or "none"
            msg = f"the recording has no run {run_id!r}; it has {known}"
            raise LookupError(msg)
        return found[-1]

    @property
    def invocations(self) -> list[RecordedInvocation]:
        """The invocations of all runs."""
        return [one for run in self._runs.all for one in run.invocations]

    @property
    def events(self) -> list[RecordedEvent]:
        """The events of all runs."""
        return [one for run in self._runs.all for one in run.events]

    @property
    def stream(self) -> list[RecordedStreamEvent]:
        """The events on the streams of all runs."""
        return [one for run in self._runs.all for one in run.stream]

    @property
    def questions(self) -> list[RecordedQuestion]:
        """The questions of all runs."""
        return [one for run in self._runs.all for one in run.questions]

    @property
    def cancellations(self) -> list[RecordedCancellation]:
        """The cancellations of all runs."""
        return [one for run in self._runs.all for one in run.cancellations]

    @property
    def left_out(self) -> int:
        """How many records were left out, because of limits or because they could not be written."""
        return sum(run.left_out for run in self._runs.all)

    @property
    def damaged(self) -> int:
        """How many lines of the file could not be read. A last line without an end is none of them."""
        return self._lines.damaged

    @property
    def is_cut_off(self) -> bool:
        """Whether the last line of the file has no end: its program was killed, or is writing."""
        return self._lines.is_cut_off

    @property
    def is_full(self) -> bool:
        """Whether the file has reached its limit, so that later runs are not in it."""
        return self._is_full

    # -- questions ------------------------------------------------------------------------------------

    def critical_path(self, run: RecordedRun | None = None) -> CriticalPath:
        """Return the chain of causes that determined when a run ended, with the time of each part.

        It is found backwards from the end of the run: through the invocation that made the stop
        event, to the event that it was given, to the invocation that emitted this event, and so on to the start
        event. A wait leads to what ended it. The parts are contiguous, so their times add up to that
        of the run. To make a run faster, shorten one of these parts; no other has an effect, until
        another chain is the longest.

        Args:
            run: The run; by default the one that began last.

        Raises:
            LookupError: The recording has no run.
        """
        return _path.critical_path(self.run if run is None else run)

    def descendants(self, node: Node) -> list[Node]:
        """Return the events and invocations that an event or invocation caused, in order of time.

        Those of children are included. Events that an invocation emitted before it received the
        event (from a wait, or from ``ctx.collect_events``) are not.
        """
        return _causes.descendants(node)

    def ancestors(self, node: Node) -> list[Node]:
        """Return the events and invocations that caused an event or invocation, in order of time."""
        return _causes.ancestors(node)

    def to_trace_events(self, run: RecordedRun | None = None) -> dict[str, Any]:
        """Return the recording in Chrome's trace event format, which https://ui.perfetto.dev opens.

        Write it with ``json.dump``. Each run is a process, each worker of a step a track with a bar for each
        invocation. Arrows lead from the emission of an event to where it was taken. Queueing and waits are
        asynchronous spans, stream events and questions are instants. Times are microseconds since
        the first run began.

        The format is that of "Trace Event Format" by the Chromium authors, linked from
        https://chromium.googlesource.com/catapult/+/HEAD/docs/trace-event-format.md.

        Args:
            run: The run, with its children; by default every run.
        """
        if run is None:
            return trace_events(self._runs.all)
        family = [run]
        for one in family:
            family.extend(one.children)
        return trace_events(family)

    def execution(self, run: RecordedRun | None = None) -> Execution:
        """Return the counts of a run as the picture of its workflow takes them.

        :func:`graph_of_execution` makes the picture.

        Args:
            run: The run; by default the one that began last.

        Raises:
            LookupError: The recording has no run.
        """
        from sluicegate.recording._execution import execution_of  # noqa: PLC0415 - it loads the drawing

        return execution_of(self.run if run is None else run)

    def summary(self, run: RecordedRun | None = None) -> str:
        """Return a table for a terminal: the times of each step, cancellations, and the critical path.

        Args:
            run: The run; by default each that is no child, the last 20 if there are more.
        """
        from sluicegate.recording._summary import summary_of  # noqa: PLC0415 - it loads the drawing

        notes: list[str] = []
        if self.damaged:
            notes.append(f"lines of the file that could not be read: {self.damaged:,}")
        if self.is_cut_off:
            notes.append("the last line of the file is cut off")
        if self.is_full:
            notes.append("the file has reached its limit, and has no later runs")
        return summary_of(self.runs if run is None else [run], notes)

    def __repr__(self) -> str:
        count = len(self._runs.all)
        runs = "1 run" if count == 1 else f"{count:,} runs"
        return f"<Recording of {runs}, {sum(len(run.records) for run in self._runs.all):,} records>"


@contextmanager
def _without_gc() -> Generator[None]:
    """Do not look for garbage meanwhile: all that is made is kept, and looking takes half of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Load a recording from a file of JSON lines; the same as :meth:`Recording.load`.

    Args:
        path: The path of the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is no recording, or of a later format.
    """
    return Recording.load(path)
