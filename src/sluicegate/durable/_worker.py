"""Workers: own the runs of a store that have no other owner."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self, final

from sluicegate._engine.runner import execute
from sluicegate._errors import SnapshotError, WorkflowRuntimeError
from sluicegate._exceptions import raise_first
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._scope import leave_nursery
from sluicegate._workflow import graph_in, run_without_owner
from sluicegate.durable._errors import StoreFormatError
from sluicegate.durable._part import Part


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sluicegate._workflow import Workflow
    from sluicegate.durable._hub import Hub
    from sluicegate.durable._port import RunRow


LOGGER = logging.getLogger("sluicegate")

#: How many runs a worker without a limit takes at a time.
_BATCH = 100


class _Carrier:
    """Runs the runs that are due, each in a task."""

    def __init__(self, hub: Hub, workflows: Sequence[Workflow[Any]], max_runs: int | None) -> None:
        self.hub = hub
        self.workflows = {graph_in(workflow).name: workflow for workflow in workflows}
        self.max_runs = max_runs
        #: The parts that live here, by the id of their run.
        self.parts: dict[str, Part] = {}
        #: Runs that this code cannot continue, with the number of the last record and the number of
        #: messages; a run is tried again when either has changed.
        self.refused: dict[str, tuple[int, int]] = {}

    @property
    def room(self) -> int:
        """How many more runs may be taken."""
        return _BATCH if self.max_runs is None else self.max_runs - len(self.parts)

    async def take_due(self, start_soon: Callable[..., Any]) -> tuple[list[str], float | None]:
        """Start the runs that are due; return their ids, and when to ask again. A checkpoint."""
        hub = self.hub
        taken: list[str] = []
        known = len(self.parts) + len(self.refused) + len(hub.parts)
        due = await hub.journal.due(hub.wall(), self.room + known, workflows=list(self.workflows))
        owned = hub.owned()
        for row in due.runs:
            is_refused = self.refused.get(row.run_id) == (row.sequence, row.messages)
            if row.run_id in self.parts or row.run_id in owned or is_refused or self.room <= 0:
                continue
            self.start(row, start_soon)
            taken.append(row.run_id)
        return taken, due.next_at

    def start(self, row: RunRow, start_soon: Callable[..., Any]) -> None:
        """Start a task that carries a run."""
        workflow = self.workflows[row.workflow]
        run = run_without_owner(workflow, row.run_id)
        run.part = self.parts[row.run_id] = Part(self.hub, run, row=row, ends_at_rest=True)
        start_soon(self.carry, run, row, name=f"{row.workflow}.run")

    async def carry(self, run: Any, row: RunRow) -> None:
        """Carry a run until it has ended or rests. It raises only a cancellation, a ``KeyboardInterrupt`` or a ``SystemExit``."""
        backend = current_backend()
        run.backend, run.loop = backend, backend.current_loop()
        run.thread = run.log.thread = self.hub.thread
        try:
            await execute(run)
        finally:
            part = self.parts.pop(row.run_id)
            self.hub.note_run("")
        outcome = run.outcome
        if outcome.status == "detached" and isinstance(
            outcome.error, SnapshotError | StoreFormatError
        ):
            self.refused[row.run_id] = part.sequence, row.messages
            LOGGER.error(
                "the run %s of %s cannot be continued here: %s",
                row.run_id,
                row.workflow,
                outcome.error,
            )
        elif outcome.status in ("failed", "timed_out"):
            LOGGER.warning(
                "the run %s of %s: %s: %r", row.run_id, row.workflow, outcome.status, outcome.error
            )


@final
class RunWorker:
    """An owner of the runs of a store that need one; :meth:`RunStore.worker` makes it."""

    def __init__(self, hub: Hub, workflows: Sequence[Workflow[Any]], max_runs: int | None) -> None:
        self._carrier = _Carrier(hub, workflows, max_runs)
        self._hub = hub
        self._manager: AbstractAsyncContextManager[Any] | None = None
        self._taking: Any = None
        self._is_leaving = False

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs that it carries now."""
        return tuple(self._carrier.parts)

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Begin to take runs. A checkpoint."""
        if self._manager is not None:
            msg = "this worker was entered before; expected a new `runs.worker(...)`"
            raise WorkflowRuntimeError(msg)
        self._hub.check_open()
        backend = current_backend()
        self._manager = manager = backend.open_owner()
        nursery = await manager.__aenter__()
        nursery.start_soon(self._serve, nursery, name="run worker")
        return self

    @enable_ki_protection
    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Take no further runs and wait for the current ones; detach them if the block failed.

        A checkpoint.
        """
        assert self._manager is not None
        backend = current_backend()
        self._is_leaving = True
        if self._taking is not None:
            backend.cancel(self._taking, "the worker is left")
        for part in tuple(self._carrier.parts.values()):
            if error is None:
                part.rest_soon()
            else:
                part.detach(f"its worker was left by {type(error).__name__}")
        raised = await leave_nursery(self._manager)  # noqa: ASYNC102 - as a nursery's own __aexit__
        raise_first([], error, raised, backend.Cancelled, str)

    @enable_ki_protection
    async def _serve(self, nursery: Any) -> None:
        """Take runs as they become due, until the worker is left."""
        backend = current_backend()
        with backend.cancel_scope() as self._taking, self._hub.watching("") as watch:
            while not self._is_leaving:
                watch.has_changed = False
                taken, next_at = await self._carrier.take_due(nursery.start_soon)
                if not taken or self._carrier.room <= 0:
                    await watch.wait(next_at)
        await backend.checkpoint_if_cancelled()

    def __repr__(self) -> str:
        return (
            f"<RunWorker of {', '.join(self._carrier.workflows)}, {len(self._carrier.parts)} runs>"
        )


async def run_interrupted(hub: Hub, workflows: Sequence[Workflow[Any]]) -> list[str]:
    """Run everything that is due, and return the ids when each such run has ended or rests."""
    carrier = _Carrier(hub, workflows, None)
    found: dict[str, None] = {}
    async with current_backend().open_nursery() as nursery:
        while True:
            taken, _ = await carrier.take_due(nursery.start_soon)
            if not taken:
                break
            found.update(dict.fromkeys(taken))
    return list(found)
