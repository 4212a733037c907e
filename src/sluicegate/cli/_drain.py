"""Commands that run until a signal: the drain, the exit code, and logs on standard error."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sluicegate._engine.dump import text_of_runs
from sluicegate._loop import current_backend
from sluicegate._loop.signals import Signals
from sluicegate._workflow import graph_in
from sluicegate.cli._output import note, one_line
from sluicegate.cli._store import refusals_in_a_line
from sluicegate.cli._targets import UsageError, workflow_at


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from sluicegate.cli._targets import AnyWorkflow


class Drain:
    """When a command drains, and for how long.

    Attributes:
        grace: The seconds that it may take.
        is_signalled: Whether a signal has asked for it.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.is_signalled = False
        self._has_begun = False
        self._begun: Any = None
        self._scope: Any = None

    def receive_signal(self) -> None:
        """Begin to drain, because of a signal; called in the event loop."""
        self.is_signalled = True
        self.begin()

    def begin(self) -> None:
        """Begin to drain; called in the event loop."""
        if not self._has_begun:
            self._has_begun = True
            self._set_deadline()
            if self._begun is not None:
                self._begun.set()

    def _set_deadline(self) -> None:
        if self._scope is not None:
            self._scope.deadline = current_backend().current_time() + self.grace

    async def wait(self) -> None:
        """Wait until the drain begins. A checkpoint."""
        backend = current_backend()
        await backend.checkpoint()
        if not self._has_begun:
            self._begun = backend.event()
            await self._begun.wait()

    @contextmanager
    def limit(self) -> Generator[None]:
        """Cancel the block when the drain has lasted for the grace."""
        with current_backend().cancel_scope() as self._scope:
            if self._has_begun:
                self._set_deadline()
            yield

    @property
    def is_complete(self) -> bool:
        """Whether the block of :meth:`limit` ended in time."""
        return not self._scope.cancelled_caught


def run_until_drained(
    main: Callable[[Drain], Awaitable[bool]], backend: str, grace: float, left: str
) -> int:
    """Run a command until a signal has drained it, and return its exit code.

    Args:
        main: Runs until the drain is over, and returns whether that was complete.
        backend: The event loop.
        grace: Seconds for the drain.
        left: Says what becomes of whatever has not ended in time.

    Raises:
        UsageError: A store, a run or a journal cannot be used.
        KeyboardInterrupt: Ctrl-C, a second time; everything has unwound.
        SystemExit: The same for SIGTERM and SIGHUP.
    """
    drain = Drain(grace)
    signals = Signals(text_of_runs, drain.receive_signal)
    with log_on_stderr(), refusals_in_a_line():
        is_complete = signals.run(lambda: main(drain), backend, {})
    if is_complete:
        return 0
    note(f"the grace period is over; {left}")
    return 128 + (signals.received or 0)


def second_of_name(target: str, name: str) -> UsageError:
    """Return the error about two workflows of one name for a store."""
    msg = (
        f"{target} is a second workflow with the name {name}, and the name is how stored runs find their "
        "workflow; expected workflows with different names"
    )
    return UsageError(msg)


def workflows_of(targets: list[str]) -> dict[str, AnyWorkflow]:
    """Return the workflows of the targets by their names.

    Raises:
        UsageError: A target is wrong, or two have the same name.
    """
    found: dict[str, AnyWorkflow] = {}
    for target in targets:
        workflow = workflow_at(target)
        name = graph_in(workflow).name
        if name in found:
            raise second_of_name(target, name)
        found[name] = workflow
    return found


class _Lines(logging.Formatter):
    """Messages as this program prints them."""

    def format(self, record: logging.LogRecord) -> str:
        return f"sluicegate: {one_line(super().format(record))}"


@contextmanager
def log_on_stderr() -> Generator[None]:
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
