"""Stored runs as text: the table of a list, and the details of one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import attrs

from sluicegate._data.codec import Codec
from sluicegate._data.json import json_of
from sluicegate._engine.journal_records import Cancelled, End, Failed, decode_record
from sluicegate._errors import brief, brief_text
from sluicegate._events import WorkflowCancelledEvent, WorkflowFailedEvent, WorkflowTimedOutEvent
from sluicegate.cli._output import one_line


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sluicegate.cli._store import OpenStore
    from sluicegate.durable import RunSummary, StoredQuestion, StoredRecord


#: The longest cell of a table.
WIDEST = 48
#: The units of an age, from the longest, each with its length in seconds.
_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_COLOURS = {"failed": 31, "timed_out": 31, "completed": 32, "cancelled": 33, "running": 36}


@attrs.frozen
class RunDetails:
    """A run as ``sluicegate runs show`` prints it.

    Attributes:
        run: Its row.
        began_with: Its start event, as text.
        questions: Its open questions.
        last_error: The failure that ended it, or the last one recorded in the present life.
        cancelled: The reason of a cancellation that was recorded.
    """

    run: RunSummary
    began_with: str
    questions: list[StoredQuestion]
    last_error: str | None
    cancelled: str | None


async def look_at(store: OpenStore, run_id: str) -> RunDetails:
    """Read a run; no class of its workflow is needed. A checkpoint.

    Raises:
        UnknownRunError: There is no such run.
    """
    summary = await store.runs.get(run_id)
    row = await store.journal.get(run_id)
    records = await store.journal.read(run_id)
    return RunDetails(
        summary,
        "" if row is None else row.start_key.rpartition(" #")[0],
        await store.runs.questions(run_id),
        *_troubles(records),
    )


def _troubles(records: Iterable[StoredRecord]) -> tuple[str | None, str | None]:
    """Return the last error in the records, and the reason of a cancellation."""
    error = reason = None
    for record in records:
        if record.kind not in ("failed", "cancel", "end"):
            continue
        found = decode_record(record.data)
        if isinstance(found, Failed):
            then = f"; {found.do} in {found.delay:g}s" if found.delay else ""
            error = f"attempt {found.n}: {found.error}{then}"
        elif isinstance(found, Cancelled):
            reason = found.why
        elif isinstance(found, End):
            error = _end_of(found) or error
    return error, reason


#: Reads the terminal events that the engine makes.
_ENDS = Codec.of((WorkflowFailedEvent, WorkflowTimedOutEvent, WorkflowCancelledEvent))


def _end_of(end: End) -> str | None:
    """Return why a run has failed; None if it has not."""
    if end.status not in ("failed", "timed_out"):
        return None
    event = _ENDS.decode(end.e, "the end of the run")
    if isinstance(event, WorkflowFailedEvent):
        where = "" if event.step_name is None else f"in the step {event.step_name}: "
        return f"{where}{event.exception}"
    return brief(event)


# -- times ----------------------------------------------------------------------------------------


def age(seconds: float) -> str:
    """Return a number of seconds as a short text, such as ``3h``."""
    for unit, length in _UNITS:
        if seconds >= 2 * length or length == 1:
            return f"{max(seconds, 0) // length:.0f}{unit}"
    raise AssertionError


def _moment(at: float, now: float) -> str:
    told = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at))
    return f"{told} ({age(now - at)} ago)" if at <= now else f"{told} (in {age(at - now)})"


# -- the list -------------------------------------------------------------------------------------


def table(
    runs: Sequence[RunSummary], counts: dict[str, int], now: float, *, is_coloured: bool
) -> str:
    """Return runs as a table, and the counts below it."""
    rows = [("RUN", "WORKFLOW", "STATUS", "BEGUN", "CHANGED", "WAITS FOR")]
    rows += [
        (
            _cell(run.run_id),
            _cell(run.workflow),
            run.status,
            age(now - run.created_at),
            age(now - run.updated_at),
            _waits_for(run, now),
        )
        for run in runs
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[2] = _coloured(row[2], cells[2], is_coloured=is_coloured)
        lines.append("  ".join(cells).rstrip())
    if not runs:
        lines.clear()
    total = sum(counts.values())
    told = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    shown = f"; {len(runs)} shown" if len(runs) < total else ""
    lines.append(f"{total} run{'' if total == 1 else 's'}{f': {told}' if told else ''}{shown}")
    return "".join(f"{line}\n" for line in lines)


def _cell(text: str) -> str:
    return brief_text(one_line(text), WIDEST)


def _coloured(status: str, text: str, *, is_coloured: bool) -> str:
    number = _COLOURS.get(status)
    return f"\x1b[{number}m{text}\x1b[0m" if is_coloured and number else text


def _waits_for(run: RunSummary, now: float) -> str:
    if run.is_over:
        return ""
    found: list[str] = []
    if run.status == "running" and run.owner is None:
        found.append("an owner")
    if run.questions:
        found.append("1 answer" if run.questions == 1 else f"{run.questions} answers")
    if run.wake_at is not None:
        found.append(f"a timer in {age(run.wake_at - now)}")
    if run.messages:
        found.append(
            "1 message to be applied"
            if run.messages == 1
            else f"{run.messages} messages to be applied"
        )
    return ", ".join(found)


# -- one run --------------------------------------------------------------------------------------


def details(found: RunDetails, now: float, *, is_coloured: bool) -> str:
    """Return a run for reading."""
    run = found.run
    lines = [
        one_line(run.run_id),
        f"  workflow   {one_line(run.workflow)}, begun with {_shown(found.began_with)}",
        f"  status     {_coloured(run.status, run.status, is_coloured=is_coloured)}",
        f"  begun      {_moment(run.created_at, now)}",
        f"  changed    {_moment(run.updated_at, now)}",
    ]
    if run.wake_at is not None and not run.is_over:
        lines.append(f"  timer      {_moment(run.wake_at, now)}")
    lines.append(f"  owner      {'none' if run.owner is None else one_line(run.owner)}")
    lines.append(f"  records    {run.sequence}")
    if run.messages:
        lines.append(f"  messages   {run.messages} not applied yet")
    if found.cancelled is not None:
        lines.append(f"  cancelled  {_shown(found.cancelled)}")
    if found.last_error is not None:
        lines.append(f"  error      {_shown(found.last_error)}")
    lines += [_question(each, now) for each in found.questions if not run.is_over]
    return "".join(f"{line}\n" for line in lines)


def _shown(text: str) -> str:
    return brief_text(one_line(text), 300)


def _question(asked: StoredQuestion, now: float) -> str:
    fields: dict[str, Any] = asked.fields or {}
    event = "a wait" if asked.event is None else f"{asked.event} {json_of(fields)}"
    by = f", answered by {' or '.join(asked.answers)}" if asked.answers else ""
    return f"  question   {one_line(asked.id)}: {_shown(event)}, open for {age(now - asked.since)}{one_line(by)}"
