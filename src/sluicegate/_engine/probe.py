"""The probe: an internal listener to one run. Tests use it to watch a run from inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from sluicegate._context import Context
    from sluicegate._definition.steps import Step
    from sluicegate._events import Event


class Probe:
    """A base class for listeners to one run: override the calls that you need.

    Set ``Run.probe`` before the run begins. While it is None the engine builds nothing for it and
    makes no call. The calls come from the run's own thread; they are synchronous, must be quick and
    must not raise, except where it says otherwise. A child run has its own probe.
    """

    def run_began(self) -> None:
        """The run has entered its event loop and its resource scope; no step has begun."""

    def run_ended(self) -> None:
        """All tasks of the run have ended; its machine still holds the state that they left."""

    def published(self, event: Event) -> None:
        """An event was written to the stream."""

    def sent(self, context: Context[Any], event: Event, target: str | None) -> bool:  # noqa: ARG002
        """A step sends an event; return whether the engine delivers it. May raise in the step."""
        return True

    def received(self, event: Event, target: str | None) -> None:
        """An event arrived from outside."""

    def invocation_began(self, number: int, step: Step, event: object, attempt: int) -> None:
        """A step begins: with an event, or with the list or tuple of events that a join takes.

        Invocations are numbered from 1. ``attempt`` counts the attempts at this event, from 1.
        """

    def invocation_ended(self, number: int, result: object, error: BaseException | None) -> None:
        """A step returned ``result``, or raised ``error``: a failure, a timeout, a cancellation."""

    def wait_began(self, context: Context[Any] | None, kind: type[Event] | None) -> None:
        """A step begins to wait for an event of class ``kind``, or for a branch if that is None."""

    def wait_ended(self, context: Context[Any] | None, kind: type[Event] | None) -> None:
        """The wait is over, because it got what it waited for or because it was cancelled."""

    def idle_changed(self) -> None:
        """The run may have become idle or active: a wait began or ended, or a task ended."""

    def child_began(self, context: Context[Any], child: Any) -> None:
        """A step begins to wait for a child run, given as its record."""

    def child_ended(self, context: Context[Any], child: Any) -> None:
        """The child run is over."""
