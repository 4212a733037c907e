"""The command that continues a stored run, and shows it as ``sluicegate run`` shows a new one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sluicegate._workflow import graph_in
from sluicegate.cli._run import carry_out
from sluicegate.cli._store import open_store, refusals_in_a_line, store_options
from sluicegate.cli._targets import UsageError, build, load


if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator

    from sluicegate._handler import WorkflowHandler
    from sluicegate.cli._store import OpenStore
    from sluicegate.cli._targets import AnyWorkflow


def resume(arguments: argparse.Namespace) -> int:
    """Run a stored run here to its end, and return the exit code of ``sluicegate run``.

    Raises:
        UsageError: The store has no such run, or the target is not its workflow; or as for ``run``.
    """
    workflow = build(arguments.target, load(arguments.target))
    run_id: str = arguments.run_id
    opened: list[OpenStore] = []

    @asynccontextmanager
    async def resumed() -> AsyncGenerator[WorkflowHandler[Any]]:
        # Kept in memory while the command shows it, so that no step has to begin again.
        options = {**store_options(arguments), "release_idle": None}
        async with open_store(arguments, [workflow], **options) as store:
            await check_workflow(store, run_id, workflow)
            opened.append(store)
            async with store.runs.resume(run_id, workflow) as handler:
                yield handler

    with refusals_in_a_line():
        return carry_out(workflow, resumed, arguments, lambda: opened[0].runs.get(run_id))


async def check_workflow(store: OpenStore, run_id: str, workflow: AnyWorkflow) -> None:
    """Refuse the workflow of another run.

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
