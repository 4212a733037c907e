"""The commands that run a stored run in this process, as ``sluicegate run`` does without a store."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sluicegate._workflow import graph_in
from sluicegate.cli._output import note
from sluicegate.cli._run import carry_out, prepare
from sluicegate.cli._store import open_store, refusals_in_a_line, store_options
from sluicegate.cli._targets import UsageError, workflow_at
from sluicegate.durable import UnknownRunError


if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sluicegate._handler import WorkflowHandler
    from sluicegate.cli._store import OpenStore
    from sluicegate.cli._targets import AnyWorkflow
    from sluicegate.durable import RunSummary


def resume(arguments: argparse.Namespace) -> int:
    """Run a stored run here to its end, and return the exit code of ``sluicegate run``.

    Raises:
        UsageError: The store has no such run, or the target is not its workflow; or as for ``run``.
    """
    workflow = workflow_at(arguments.target)
    run_id: str = arguments.run_id

    async def start(store: OpenStore) -> WorkflowHandler[Any]:
        await check_workflow(store, run_id, workflow)
        return store.runs.resume(run_id, workflow)

    return _carry_out(workflow, run_id, start, arguments)


def run_stored(arguments: argparse.Namespace) -> int:
    """Run a workflow as a durable run, and return the exit code of ``sluicegate run``.

    Raises:
        UsageError: The store cannot be used, or has another run of that id; or as for ``run``.
    """
    workflow, begin = prepare(arguments)
    run_id: str = arguments.run_id or uuid4().hex

    async def start(store: OpenStore) -> WorkflowHandler[Any]:  # noqa: ASYNC124 - as resume()'s
        return store.runs.run(workflow.run(start_event=begin), run_id=run_id)

    if arguments.run_id is None:
        note(f"the id of the run is {run_id}")
    return _carry_out(workflow, run_id, start, arguments, creates=True)


def _carry_out(
    workflow: AnyWorkflow,
    run_id: str,
    start: Callable[[OpenStore], Awaitable[WorkflowHandler[Any]]],
    arguments: argparse.Namespace,
    *,
    creates: bool = False,
) -> int:
    opened: list[OpenStore] = []
    # Kept in memory while the command shows it, so that no step has to begin again.
    options = {**store_options(arguments), "release_idle": None}

    @asynccontextmanager
    async def started() -> AsyncGenerator[WorkflowHandler[Any]]:
        async with open_store(arguments, [workflow], creates=creates, **options) as store:
            begun = await start(store)
            opened.append(store)
            async with begun as handler:
                yield handler

    async def row() -> RunSummary | None:
        try:
            return await opened[0].runs.get(run_id)
        except UnknownRunError:  # it is not stored yet
            return None

    with refusals_in_a_line():
        return carry_out(workflow, started, arguments, row)


async def check_workflow(store: OpenStore, run_id: str, workflow: AnyWorkflow) -> RunSummary:
    """Return the row of a run; refuse a workflow that is not that of the run.

    Raises:
        UsageError: The run is of another workflow.
        UnknownRunError: There is no such run.
    """
    summary, name = await store.runs.get(run_id), graph_in(workflow).name
    if summary.workflow != name:
        msg = (
            f"the run {run_id!r} is of {summary.workflow!r}, and the TARGET is {name!r}; expected the "
            "workflow of the run"
        )
        raise UsageError(msg)
    return summary
