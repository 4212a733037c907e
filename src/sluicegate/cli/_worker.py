"""The worker command: runs the runs of a store until a signal drains it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from sluicegate._engine.dump_values import counted
from sluicegate._workflow import graph_in
from sluicegate.cli._drain import run_until_drained, workflows_of
from sluicegate.cli._output import note
from sluicegate.cli._store import open_store, store_options


if TYPE_CHECKING:
    import argparse

    from sluicegate.cli._drain import Drain


def worker(arguments: argparse.Namespace) -> int:
    """Run what is due in a store until a signal ends it; 0 if every run had ended or waited by then.

    Raises:
        UsageError: A target is wrong, or the store cannot be used.
        KeyboardInterrupt: Ctrl-C, a second time; the runs have unwound and remain in the store.
        SystemExit: The same for SIGTERM and SIGHUP.
    """
    workflows = [*workflows_of(arguments.targets).values()]

    async def main(drain: Drain) -> bool:
        options = store_options(arguments)
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                open_store(arguments, workflows, creates=True, **options)
            )
            for workflow in workflows:
                await stack.enter_async_context(workflow)
            with drain.limit():
                owner = store.runs.worker(*workflows, max_runs=arguments.max_runs)
                async with owner:
                    names = ", ".join(graph_in(workflow).name for workflow in workflows)
                    note(f"a worker of {names} for {arguments.store}; SIGTERM drains it")
                    await drain.wait()
                    runs = counted(len(owner.run_ids), "run")
                    note(f"draining {runs} for at most {drain.grace:g} s")
        return drain.is_complete

    return run_until_drained(
        main, arguments.backend, arguments.grace, "other workers continue the remaining runs"
    )
