"""The runs in the store of a server, as far as they are not in its memory."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

from sluicegate._errors import SnapshotError
from sluicegate._handler import run_of
from sluicegate._loop import current_backend
from sluicegate._workflow import graph_in
from sluicegate.durable import StoreClosedError, StoreError, StoreFormatError
from sluicegate.durable._part import Part
from sluicegate.serve._data import asked_data, handler_data, schema_of_event
from sluicegate.serve._requests import Refusal, answer_classes


if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from sluicegate._handler import WorkflowHandler
    from sluicegate._workflow import Workflow
    from sluicegate.durable import RunStore, RunSummary, StoredQuestion

LOGGER = logging.getLogger("sluicegate")

#: The statuses of the store, by those of the protocol.
_STORED: dict[str, Sequence[str]] = {
    "running": ("running", "idle", "parked"),
    "completed": ("completed",),
    "failed": ("failed", "timed_out"),
    "cancelled": ("cancelled",),
}
_TOLD = {stored: told for told, several in _STORED.items() for stored in several}
#: Seconds until the store is asked again, after a fault or while there is no room for runs.
_AGAIN = 0.5
#: Seconds for which a request waits for the row of its run, which a slow store may take longer to read.
_LOADED = 5.0


class StoredRuns:
    """The store of a server.

    Args:
        store: The store, open.
        workflows: The workflows by their names on the server.
    """

    def __init__(self, store: RunStore, workflows: Mapping[str, Workflow[Any]]) -> None:
        self.store = store
        self._workflows = workflows
        #: The names on the server by those in the store, which are those of the classes.
        self.names = {graph_in(workflow).name: name for name, workflow in workflows.items()}
        #: The ids of runs that are being started; and of those that this code cannot continue.
        self.starting: set[str] = set()
        self._refused: set[str] = set()

    def name_of(self, row: RunSummary) -> str | None:
        """Return the name of the workflow of a run on the server; None if it does not serve it."""
        return self.names.get(row.workflow)

    def note_refused(self, handler: WorkflowHandler[Any]) -> None:
        """Note a run that has left this process, so that it is not taken again if the code does not fit."""
        for error in handler.exceptions if handler.status == "detached" else ():
            if isinstance(error, SnapshotError | StoreFormatError):
                self._refused.add(handler.run_id)
                LOGGER.error(
                    "the run %s cannot be continued here: %s",
                    handler.run_id,
                    error,
                    extra={"run_id": handler.run_id},
                )

    def new(self, handler: WorkflowHandler[Any]) -> WorkflowHandler[Any]:
        """Return a handler whose run the store has when it is started.

        Raises:
            Refusal: The start event cannot be kept.
        """
        try:
            return self.store.run(handler)
        except SnapshotError as error:
            handler.cancel("it was never started")
            raise Refusal(400, str(error), field="start_event") from None

    async def adopt(
        self,
        take: Callable[[RunSummary], object],
        is_known: Callable[[str], bool],
        has_room: Callable[[], bool],
    ) -> None:
        """Give each run that needs an owner to ``take``, until the store is closed."""
        backend = current_backend()
        besides: Container[str] = _Besides(
            lambda run_id: is_known(run_id) or run_id in self.starting or run_id in self._refused
        )
        while True:
            try:
                rows = await self.store.wait_for_due(self._workflows.values(), besides=besides)
            except StoreClosedError:
                return
            except StoreError as error:
                LOGGER.error("the run store cannot be read at the moment: %s", error)  # noqa: TRY400 - it says all
                rows = []
            for row in rows:
                if has_room() and row.run_id not in besides:
                    take(row)
            if not rows or not has_room():
                await backend.sleep(_AGAIN)

    async def find(
        self,
        statuses: Sequence[str] | None,
        names: Sequence[str] | None,
        limit: int,
        after: str | None,
    ) -> list[RunSummary]:
        """Return stored runs of the workflows of the server, the newest first. A checkpoint."""
        stored = None if statuses is None else [s for told in statuses for s in _STORED[told]]
        kept = [kind for kind, name in self.names.items() if names is None or name in names]
        if not kept:
            await current_backend().checkpoint()
            return []
        return await self.store.list(
            status=stored, workflow=kept, newest_first=True, limit=limit, after=after
        )

    async def questions(self, limit: int) -> list[dict[str, Any]]:
        """Return the open questions of all runs, as data. A checkpoint."""
        found = await self.store.questions(workflow=[*self.names], limit=limit)
        return [self._question(each) for each in found]

    def _question(self, question: StoredQuestion) -> dict[str, Any]:
        name = self.names[question.workflow]
        known = answer_classes(graph_in(self._workflows[name]), ())
        answers = [
            {"type": kind, "schema": schema_of_event(known[kind]) if kind in known else {}}
            for kind in question.answers
        ]
        asked = asked_data(question.id, question.event, question.fields or {}, answers)
        return {"handler_id": question.run_id, "workflow_name": name, **asked}


class _Besides:
    """A container whose members a function tells."""

    def __init__(self, holds: Callable[[str], bool]) -> None:
        self._holds = holds

    def __contains__(self, item: object) -> bool:
        return isinstance(item, str) and self._holds(item)


def row_data(row: RunSummary, name: str) -> dict[str, Any]:
    """Return the data of a run that is not in memory for the list of runs; the result is not read for it."""
    found = handler_data(
        row.run_id,
        name,
        status=_TOLD.get(row.status, "running"),
        times=(row.created_at, row.updated_at, row.updated_at if row.is_over else None),
        is_idle=row.status in ("idle", "parked"),
        questions=row.questions,
    )
    if row.status == "timed_out":
        found["timed_out"] = True
    return found


async def wait_until_known(handler: WorkflowHandler[Any]) -> None:
    """Wait until the questions of a run of the store are known, if it is one. A checkpoint."""
    part = run_of(handler).part
    backend = current_backend()
    if isinstance(part, Part):
        with backend.cancel_scope(deadline=backend.current_time() + _LOADED):
            await part.wait_until_known()
    await backend.checkpoint_if_cancelled()


def is_refused(handler: WorkflowHandler[Any]) -> bool:
    """Whether the store has not taken a run that was started."""
    part = run_of(handler).part
    return isinstance(part, Part) and not part.sequence


def id_for_key(name: str, key: str) -> str:
    """Return the run id for an idempotency key, the same in every process."""
    text = f"{name} {key}"
    return f"key-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
