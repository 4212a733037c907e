"""What a run does for the context of a synchronous step, from that step's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from sluicegate._loop.threads import call_of_this_thread, in_loop


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sluicegate._context import Branch, BranchOperations, ChildStream, Context, RunOperations
    from sluicegate._definition.retries import RetryInfo
    from sluicegate._events import Event
    from sluicegate._state.store import StateStore
    from sluicegate._streams import EventLog


@final
class ThreadOperations:
    """The operations of a run for the context of a synchronous step.

    From the step's thread each looks for a cancellation, and hops to the event loop. From the
    loop's thread (what ``from_thread.run`` runs) it goes straight on.
    """

    __slots__ = ("_run",)

    def __init__(self, run: RunOperations) -> None:
        self._run = run

    @property
    def run_id(self) -> str:
        """The identifier of the run; asks nobody."""
        return self._run.run_id

    @property
    def log(self) -> EventLog:
        """The run's log, for what is awaited in the loop; asks nobody."""
        return self._run.log

    @property
    def store(self) -> StateStore[Any]:
        """The state of the run; its coroutines go through ``from_thread.run``."""
        return in_loop(_store_of, self._run)

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open; raises if the step is cancelled.

        Raises:
            BaseException: The backend's Cancelled: a step that only polls ends as well.
            WorkflowRuntimeError: The thread has been abandoned.
        """
        call = call_of_this_thread()
        if call is not None:
            call.check()
        return self._run.is_running

    def send(self, context: Context[Any], event: Event, target: str | None) -> Branch:
        """See :meth:`sluicegate.Context.send_event`, and :func:`in_loop`."""
        branch = in_loop(self._run.send, context, event, target)
        if branch._run is not None:
            branch._run = _BranchOperations(branch._run)
        return branch

    def publish(self, event: Event | None) -> None:
        """See :meth:`sluicegate.Context.write_event_to_stream`, and :func:`in_loop`."""
        in_loop(self._run.publish, event)

    def collect(
        self, context: Context[Any], event: Event, expected: Sequence[type[Event]], key: str
    ) -> list[Event] | None:
        """See :meth:`sluicegate.Context.collect_events`, and :func:`in_loop`."""
        return in_loop(self._run.collect, context, event, expected, key)

    async def wait_for(
        self,
        context: Context[Any],
        kind: type[Event],
        requirements: Mapping[str, Any],
        waiter_event: Event | None,
        timeout: float | None,  # noqa: ASYNC109 - whose message tells what was waited for
    ) -> Event:
        """See :meth:`sluicegate.Context.wait_for_event`; from a thread by ``from_thread.run``."""
        return await self._run.wait_for(context, kind, requirements, waiter_event, timeout)

    async def run_child(self, context: Context[Any], handler: Any, stream: ChildStream) -> Any:
        """See :meth:`sluicegate.Context.run_child`; from a thread by ``from_thread.run``."""
        return await self._run.run_child(context, handler, stream)

    def retry_info(self, context: Context[Any]) -> RetryInfo:
        """See :meth:`sluicegate.Context.retry_info`, and :func:`in_loop`."""
        return in_loop(self._run.retry_info, context)

    def deadline(self) -> float:
        """See :attr:`sluicegate.Context.deadline`. A thread that may be abandoned has that of its
        beginning.
        """
        call = call_of_this_thread()
        return self._run.deadline() if call is None else call.find_deadline(self._run.deadline)

    def snapshot(self) -> dict[str, Any]:
        """See :meth:`sluicegate.Context.to_dict`, and :func:`in_loop`."""
        return in_loop(self._run.snapshot)


def _store_of(run: RunOperations) -> StateStore[Any]:
    return run.store


@final
class _BranchOperations:
    """What a branch does that a synchronous step has sent."""

    __slots__ = ("_run",)

    def __init__(self, run: BranchOperations) -> None:
        self._run = run

    def cancel_branch(self, node: Any, reason: str) -> None:
        in_loop(self._run.cancel_branch, node, reason)

    async def wait_for_branch(self, node: Any, step: object) -> None:
        await self._run.wait_for_branch(node, step)
