"""Branches: an event that a step sent, and all that came of it, in the hands of the step."""

from __future__ import annotations

from typing import Any, Protocol, final

from sluicegate._loop import current_backend


class BranchOperations(Protocol):
    """What the runner does for a branch."""

    def cancel_branch(self, node: Any, reason: str) -> None: ...

    async def wait_for_branch(self, node: Any, step: object) -> None: ...


class Line(Protocol):
    """What a branch knows of its lineage."""

    is_held: bool

    @property
    def is_over(self) -> bool: ...

    @property
    def is_cancelled(self) -> bool: ...


@final
class Branch:
    """What ``ctx.send_event()`` returns: the event, and everything that comes of it.

    It ends when nothing of it waits or runs any more. What has arrived in a join, or in a buffer
    of ``ctx.collect_events``, has left it. Whoever does not need it drops it.
    """

    __slots__ = ("_node", "_run", "_step")

    def __init__(self, run: BranchOperations | None, node: Line, step: object) -> None:
        self._run = run
        self._node = node
        self._step = step

    def cancel(self, reason: str = "branch.cancel() was called") -> None:
        """Cancel the branch: what waits is dropped, what runs is cancelled. Not a checkpoint.

        A fan-out around it counts it as ended; a fan-out within it is dropped with its join.
        The clean-up of steps runs to its end; :meth:`wait` waits for it. A failure of it counts as
        any other. Cancelling a branch that is over, or was cancelled, changes nothing.

        Args:
            reason: Why; it shows in Trio's ``Cancelled``.

        Raises:
            WorkflowRuntimeError: The call comes from another thread.
        """
        if self._run is not None:
            self._run.cancel_branch(self._node, reason)

    async def wait(self) -> None:
        """Wait until nothing of the branch is left.

        A failure in the branch is raised here while somebody waits, and then does not fail the
        run: the rest of the branch is cancelled first. A checkpoint. Cancelled, it leaves
        the branch alone.

        Raises:
            Exception: What a step of the branch raised: that object, with a note for each further
                failure.
            WorkflowRuntimeError: The branch waits for the very step that calls this, or its event
                is kept back until that step has succeeded; or the branch is not over, and the
                caller is no step of the run, nor a task that one started.
        """
        if self._run is None:
            await current_backend().checkpoint()
        else:
            await self._run.wait_for_branch(self._node, self._step)

    @property
    def is_done(self) -> bool:
        """Whether nothing of the branch is left."""
        return self._node.is_over

    @property
    def is_cancelled(self) -> bool:
        """Whether the branch, or one around it, was cancelled."""
        return self._node.is_cancelled

    def __repr__(self) -> str:
        state = "cancelled" if self.is_cancelled else "done" if self.is_done else "alive"
        return f"<Branch, {state}>"

    def __del__(self) -> None:
        self._node.is_held = False
