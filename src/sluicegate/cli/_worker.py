"""The worker command: runs the runs of a store until a signal drains it."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sluicegate._engine.dump import text_of_runs
from sluicegate._loop import current_backend
from sluicegate._loop.signals import Signals
from sluicegate._workflow import graph_in
from sluicegate.cli._output import note, one_line
from sluicegate.cli._store import open_store, refusals_in_a_line, store_options
from sluicegate.cli._targets import UsageError, workflow_at


if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

    from sluicegate.cli._targets import AnyWorkflow


DRAINED = 0


def worker(arguments: argparse.Namespace) -> int:
    """Run what is due in a store until a signal ends it; 0 if every run had ended or waited by then.

    Raises:
        UsageError: A target is wrong, or the store cannot be used.
        KeyboardInterrupt: Ctrl-C, a second time; the runs have unwound and remain in the store.
        SystemExit: The same for SIGTERM and SIGHUP.
    """
    workflows = _workflows(arguments.targets)
    serving = _Serving(arguments, list(workflows.values()))
    signals = Signals(text_of_runs, serving.drain)
    with _log_on_stderr(), refusals_in_a_line():
        is_drained = signals.run(serving.main, arguments.backend, {})
    if is_drained:
        return DRAINED
    note("the grace period is over; other workers continue the remaining runs")
    return 128 + (signals.received or 0)


def _workflows(targets: list[str]) -> dict[str, AnyWorkflow]:
    """Return the workflows of the targets by their names.

    Raises:
        UsageError: A target is wrong, or two have the same name.
    """
    found: dict[str, AnyWorkflow] = {}
    for target in targets:
        workflow = workflow_at(target)
        name = graph_in(workflow).name
        if name in found:
            msg = (
                f"{target} is a second workflow with the name {name}, and the name is how stored runs find their "
                "workflow; expected workflows with different names"
            )
            raise UsageError(msg)
        found[name] = workflow
    return found


class _Serving:
    """A worker until it is drained."""

    def __init__(self, arguments: argparse.Namespace, workflows: list[AnyWorkflow]) -> None:
        self._arguments = arguments
        self._workflows = workflows
        #: Limits the drain; it has no deadline before.
        self._grace: Any = None
        self._draining: Any = None

    def drain(self) -> None:
        """Take no further runs, and end once the current runs have ended or wait."""
        if self._draining is not None:
            self._grace.deadline = current_backend().current_time() + self._arguments.grace
            self._draining.set()

    async def main(self) -> bool:
        """Run what is due until drained; return whether that was complete."""
        backend, arguments = current_backend(), self._arguments
        options = {**store_options(arguments), "release_idle": arguments.release_idle}
        self._draining = backend.event()
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                open_store(arguments, self._workflows, creates=True, **options)
            )
            for workflow in self._workflows:
                await stack.enter_async_context(workflow)
            with backend.cancel_scope() as self._grace:
                owner = store.runs.worker(*self._workflows, max_runs=arguments.max_runs)
                async with owner:
                    names = ", ".join(graph_in(workflow).name for workflow in self._workflows)
                    note(f"a worker of {names} for {arguments.store}; SIGTERM drains it")
                    await self._draining.wait()
                    note(f"draining {len(owner.run_ids)} runs for at most {arguments.grace:g} s")
        return not self._grace.cancelled_caught


class _Lines(logging.Formatter):
    """Messages as this program prints them."""

    def format(self, record: logging.LogRecord) -> str:
        return f"sluicegate: {one_line(super().format(record))}"


@contextmanager
def _log_on_stderr() -> Generator[None]:
    """Print warnings of runs in the block, unless the program has configured its logs."""
    logger = logging.getLogger("sluicegate")
    if logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
