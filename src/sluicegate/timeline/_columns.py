"""A recording as columns of integers and one table of texts: what the page's script reads.

Times are microseconds since the first run began. A column that mostly grows is stored as
differences, which compress well. A number of a row stands for an object of another table; -1 is none.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sluicegate.timeline._lanes import Bounds


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate.recording import (
        RecordedEvent,
        RecordedInvocation,
        RecordedRun,
        RecordedStreamEvent,
        Recording,
    )

OUTCOMES = {None: 0, "completed": 1, "failed": 2, "cancelled": 3, "dropped": 4}
#: The longest text of an event's fields; shorter where there are many events.
LONGEST, SHORTER, MANY = 4_000, 160, 20_000
#: How many characters of an error's message and traceback are kept.
LONGEST_ERROR = 12_000


class Columns:
    """Builds the tables of a page."""

    def __init__(
        self, recording: Recording, runs: list[RecordedRun], *, shows_errors: bool = True
    ) -> None:
        self.recording = recording
        self._shows_errors = shows_errors
        self.runs = runs
        self.bounds = Bounds(runs)
        self.texts: list[str] = []
        self._texts: dict[str, int] = {}
        self.invocations = [one for run in runs for one in run.invocations]
        self.events = [one for run in runs for one in run.events]
        self._rows = {id(one): row for row, one in enumerate(self.invocations)}
        self._event_rows = {id(one): row for row, one in enumerate(self.events)}
        self._run_rows = {id(run): row for row, run in enumerate(runs)}
        self._longest = LONGEST if len(self.events) <= MANY else SHORTER

    def as_data(self) -> dict[str, Any]:
        """Return everything that the script needs, as plain data."""
        data: dict[str, Any] = {
            "runs": self._runs_table(),
            "inv": self._invocation_table(),
            "ev": self._event_table(),
            "wait": self._wait_table(),
            "stream": self._stream_table(),
            "question": self._question_table(),
            "cancel": self._cancellation_table(),
            "path": self._path_table(),
            "resource": self._resource_table(),
            "end": self.bounds.length,
        }
        data["texts"] = self.texts
        return data

    # -- helpers --------------------------------------------------------------------------------------

    def _text(self, text: str) -> int:
        found = self._texts.get(text)
        if found is None:
            found = self._texts[text] = len(self.texts)
            self.texts.append(text)
        return found

    def _row(self, one: RecordedInvocation | None) -> int:
        return -1 if one is None else self._rows.get(id(one), -1)

    def _event_row(self, one: RecordedEvent | None) -> int:
        return -1 if one is None else self._event_rows.get(id(one), -1)

    def _fields(self, one: Any) -> int:
        text = json.dumps(one.fields, ensure_ascii=False, default=str)
        if len(text) > self._longest:
            text = text[: self._longest] + "…"
        return self._text(text)

    def _error(self, one: Any) -> int:
        error = one.failure
        if error is None:
            return -1
        if not self._shows_errors:
            return self._text(error.type_name)
        parts = [f"{error.type_name}: {error.message}".removesuffix(": "), *error.notes]
        if error.traceback:
            parts.append(error.traceback)
        return self._text("\n".join(parts)[:LONGEST_ERROR])

    # -- tables -----------------------------------------------------------------------------------------

    def _runs_table(self) -> list[dict[str, Any]]:
        at = self.bounds.at
        return [
            {
                "id": run.run_id,
                "workflow": run.workflow,
                "status": run.status,
                "backend": run.backend,
                "start": at(run, run.started_at),
                "end": at(run, run.ended_at if run.ended_at is not None else run.last_at),
                "wall": run.started_at + run.wall_offset,
                "parent": self._row(run.parent),
                "steps": list(self.bounds.steps(run).items()),
                "error": self._error(run),
                "leftOut": run.left_out,
                "resumed": run.is_resumed,
            }
            for run in self.runs
        ]

    def _invocation_table(self) -> dict[str, list[int]]:
        rows = self.invocations
        spans = [self.bounds.span(one) for one in rows]
        return {
            "run": _deltas(self._run_rows[id(one.run)] for one in rows),
            "number": _deltas(one.number for one in rows),
            "step": [self._text(one.step) for one in rows],
            "worker": [-1 if one.worker is None else one.worker for one in rows],
            "queued": _deltas(span.queued for span in spans),
            "ready": _deltas(span.ready for span in spans),
            "started": _deltas(span.started for span in spans),
            "unwinding": [span.unwinding - span.started for span in spans],
            "ended": [span.ended - span.started for span in spans],
            "outcome": [OUTCOMES[one.outcome] for one in rows],
            "begun": [int(one.started_at is not None) for one in rows],
            "attempt": [one.attempt for one in rows],
            "previous": [self._row(one.previous) for one in rows],
            "error": [self._error(one) for one in rows],
        }

    def _event_table(self) -> dict[str, list[int]]:
        rows = self.events
        takers = [self._takers(one) for one in rows]
        return {
            "type": [self._text(one.event_type) for one in rows],
            "at": _deltas(self.bounds.at(one.run, one.at) for one in rows),
            "source": _deltas(self._row(one.source) for one in rows),
            "origin": [self._text(one.origin) for one in rows],
            "fields": [self._fields(one) for one in rows],
            "takers": [len(one) for one in takers],
            "taker": _deltas(taker for one in takers for taker in one),
        }

    def _takers(self, event: RecordedEvent) -> list[int]:
        takers = [self._row(one) for one in (*event.consumers, *event.collectors)]
        takers += [self._row(wait.invocation) for wait in event.waits]
        return [row for row in dict.fromkeys(takers) if row >= 0]

    def _wait_table(self) -> dict[str, list[int]]:
        rows = [one for run in self.runs for one in run.waits]
        end = [self.bounds.at(one.run, one.ended_at, one.run.last_at) for one in rows]
        start = [self.bounds.at(one.run, one.started_at) for one in rows]
        return {
            "inv": _deltas(self._row(one.invocation) for one in rows),
            "kind": [self._text(one.kind) for one in rows],
            "subject": [self._text(one.subject) for one in rows],
            "start": _deltas(start),
            "length": [max(0, last - first) for first, last in zip(start, end, strict=True)],
            "outcome": [self._text(one.outcome or "open") for one in rows],
            "event": [self._event_row(one.event) for one in rows],
        }

    def _stream_table(self) -> dict[str, list[int]]:
        rows: list[RecordedStreamEvent] = [one for run in self.runs for one in run.stream]
        return {
            "inv": _deltas(self._row(one.invocation) for one in rows),
            "run": _deltas(self._run_rows[id(one.run)] for one in rows),
            "type": [self._text(one.event_type) for one in rows],
            "at": _deltas(self.bounds.at(one.run, one.at) for one in rows),
            "fields": [self._fields(one) for one in rows],
        }

    def _question_table(self) -> list[dict[str, Any]]:
        return [
            {
                "inv": self._row(one.invocation),
                "type": one.event_type,
                "start": self.bounds.at(run, one.asked_at),
                "end": self.bounds.at(run, one.closed_at, run.last_at),
                "fields": self._fields(one),
                "answer": self._event_row(one.answer),
            }
            for run in self.runs
            for one in run.questions
        ]

    def _cancellation_table(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for run in self.runs:
            for one in run.cancellations:
                members = [member.invocation for member in one.invocations]
                last = max([member.ended_at or run.last_at for member in members], default=one.at)
                found.append(
                    {
                        "run": self._run_rows[id(run)],
                        "at": self.bounds.at(run, one.at),
                        "end": self.bounds.at(run, last),
                        "by": one.by,
                        "reason": one.reason[:LONGEST],
                        "scope": one.scope,
                        "inv": self._row(one.invocation),
                        "members": [self._row(member) for member in members],
                    }
                )
        return found

    def _path_table(self) -> list[dict[str, Any]]:
        return [
            {
                "kind": part.kind,
                "start": self.bounds.at(part.run, part.started_at),
                "end": self.bounds.at(part.run, part.ended_at),
                "inv": self._row(part.invocation),
            }
            for run in self.runs
            if run.parent is None and run.ended_at is not None
            for part in self.recording.critical_path(run).parts
        ]

    def _resource_table(self) -> list[dict[str, Any]]:
        return [
            {
                "run": self._run_rows[id(run)],
                "name": one.name,
                "lifetime": one.lifetime,
                "inv": self._row(one.invocation),
                "opened": self.bounds.at(run, one.opened_at, run.started_at),
                "closed": self.bounds.at(run, one.closed_at, run.last_at),
                "failed": one.error is not None,
            }
            for run in self.runs
            for one in run.resources
        ]


def _deltas(values: Iterable[int]) -> list[int]:
    found: list[int] = []
    before = 0
    for value in values:
        found.append(value - before)
        before = value
    return found
