"""Exported journals: a run as a file of JSON lines, which tests keep; and whether code can continue it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
import msgspec

from sluicegate._errors import SnapshotError, WorkflowError, brief
from sluicegate._workflow import graph_in, run_without_owner, saved_run
from sluicegate.durable._errors import StoreFormatError
from sluicegate.durable._port import StoredRecord
from sluicegate.durable._runs import events_in, rebuild


if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from sluicegate._workflow import Workflow
    from sluicegate.durable._port import RunRow

#: The version of exported files.
_VERSION = 1


@attrs.frozen
class ExportedRun:
    """A run with its journal, outside of a store.

    Attributes:
        run_id: Its id.
        workflow: The name of its workflow.
        status: Its status when it was exported.
        records: The newest snapshot in its journal, and the records after it.
        source: Where it comes from.
    """

    run_id: str
    workflow: str
    status: str
    records: tuple[StoredRecord, ...] = attrs.field(repr=False)
    source: str


class _Line(msgspec.Struct, omit_defaults=True):
    """A record in a file."""

    sequence: int
    at: float
    kind: str
    data: msgspec.Raw
    shown: int = 0


def open_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder, which is made if need be."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    return place


def write_run(folder: Path, row: RunRow, records: Iterable[StoredRecord]) -> Path:
    """Write a run into a file of a folder; return its path."""
    head = {
        "sluicegate": _VERSION,
        "run_id": row.run_id,
        "workflow": row.workflow,
        "status": row.summary.status,
    }
    lines = [json.dumps(head).encode()]
    lines += [
        msgspec.json.encode(
            _Line(each.sequence, each.at, each.kind, msgspec.Raw(each.data), each.shown)
        )
        for each in records
    ]
    path = folder / f"{row.workflow}-{quote(row.run_id, safe='')}.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read_run(path: Path) -> ExportedRun:
    """Read a run from a file.

    Raises:
        StoreFormatError: It is no exported journal, or of a later release.
        OSError: The file cannot be read.
    """
    first, *rest = path.read_bytes().splitlines() or [b""]
    try:
        head: Any = json.loads(first)
        if head["sluicegate"] > _VERSION:
            msg = (
                f"{path} is of format {head['sluicegate']}, and this release reads formats up to "
                f"{_VERSION}; expected a release at least as new"
            )
            raise StoreFormatError(msg)
        lines = [msgspec.json.decode(line, type=_Line) for line in rest]
        records = tuple(
            StoredRecord(each.sequence, each.at, each.kind, bytes(each.data), each.shown)
            for each in lines
        )
        return ExportedRun(head["run_id"], head["workflow"], head["status"], records, str(path))
    except (ValueError, TypeError, LookupError) as error:
        if isinstance(error, StoreFormatError):
            raise
        msg = (
            f"{path} cannot be read as the journal of a run ({error!r}); expected a file that "
            "`runs.export(folder)` wrote"
        )
        raise StoreFormatError(msg) from error


def difference_of(run: ExportedRun, workflow: Workflow[Any], has_ended: bool) -> str | None:
    """Return why a workflow cannot continue a run, or read the events of one that has ended.

    No step runs. None means that it can.
    """
    graph, options = graph_in(workflow), run_without_owner(workflow, run.run_id).options
    shown = [record for record in run.records if record.shown]
    try:
        for _ in events_in(graph, options.classes, shown):
            """Each is decoded."""
        if not has_ended:
            at = run.records[-1].at if run.records else 0.0
            past = rebuild(graph, options.classes, [*run.records], at, has_crashed=True)
            saved_run(workflow, past.snapshot)
    except (SnapshotError, StoreFormatError) as error:
        return str(error)
    except WorkflowError as error:
        return brief(error, 500)
    return None
