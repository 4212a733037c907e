"""Observers: objects that the engine calls when a run begins, runs a step, publishes, and ends."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, final

from sluicegate._errors import brief


if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from sluicegate._events import Event
    from sluicegate.records import Record


LOGGER = logging.getLogger("sluicegate")

#: How an invocation ended.
StepOutcome = Literal["completed", "failed", "cancelled", "dropped"]


@final
class RunInfo:
    """A run, as observers see it. All calls about one run get the same object.

    Attributes:
        run_id: The identifier of the run.
        workflow: The name of the workflow's class.
        start_event: The start event; None if the run continues from a snapshot.
        is_resumed: Whether it does.
        parent: The invocation of the parent's step that runs this run as a child; None for none.
        parent_run_id: The identifier of the run that runs this one as a child; None for none.
        carrier: Strings that every snapshot of the run contains, and that a run which is resumed from
            it begins with. Tracing keeps its context here. An observer may add to it.
        status: None while the run is active; then ``"completed"``, ``"failed"``, ``"timed_out"``,
            ``"cancelled"``; ``"detached"`` if a durable run continues elsewhere, ``"parked"`` if it has
            left the memory until it is woken.
        error: The exception that ``await handler`` raises, once the run has ended.
    """

    __slots__ = (
        "carrier",
        "error",
        "is_resumed",
        "parent",
        "parent_run_id",
        "run_id",
        "start_event",
        "status",
        "workflow",
    )

    def __init__(
        self,
        run_id: str,
        workflow: str,
        start_event: Event | None = None,
        *,
        is_resumed: bool = False,
        parent: Invocation | None = None,
        parent_run_id: str | None = None,
        carrier: dict[str, str] | None = None,
    ) -> None:
        self.run_id: str = run_id
        self.workflow: str = workflow
        self.start_event: Event | None = start_event
        self.is_resumed: bool = is_resumed
        self.parent: Invocation | None = parent
        self.parent_run_id: str | None = parent_run_id
        self.carrier: dict[str, str] = {} if carrier is None else carrier
        self.status: str | None = None
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<RunInfo {self.run_id} of {self.workflow}, {self.status or 'active'}>"


@final
class Invocation:
    """One call of a step, as observers see it. All calls about it get the same object.

    Attributes:
        run: The run.
        number: Its number in the run, from 1, in the order in which the deliveries were queued.
        step: The name of the step.
        event: The event that the step gets; the list or tuple of events of a join.
        events: The numbers of these events, as in :class:`sluicegate.records.EventEmitted`.
        attempt: The number of the attempt at this event, from 1.
        outcome: None while the step runs; then ``"completed"``, ``"failed"`` or ``"cancelled"``.
        result: The value that the step returned.
        error: The exception that it raised: a failure, its timeout, a cancellation.
    """

    __slots__ = (
        "attempt",
        "error",
        "event",
        "events",
        "number",
        "outcome",
        "result",
        "run",
        "step",
    )

    def __init__(  # noqa: PLR0917 - made for each call of a step; keywords cost a third more
        self,
        run: RunInfo,
        number: int,
        step: str,
        event: Any,
        attempt: int = 1,
        events: tuple[int, ...] = (),
    ) -> None:
        self.run: RunInfo = run
        self.number: int = number
        self.step: str = step
        self.event: Any = event
        self.attempt: int = attempt
        self.events: tuple[int, ...] = events
        self.outcome: StepOutcome | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Invocation {self.number} of {self.step}, {self.outcome or 'active'}>"


class Observer:
    """The base class of observers: override the methods that you need; the others do nothing.

    An observer hears of every run of the workflows that it was given to (``observers=[...]``), of
    the runs that begin within :func:`observe`, and of the runs that steps of these run as children.

    The engine calls the methods in the thread of the run's event loop. They are synchronous and should
    be quick, because the run continues only when they return. An observer that raises never fails a
    run: the exception is logged once, by the logger ``sluicegate``, and for the rest of that run the
    observer is not called again.

    Attributes:
        strict: Whether an exception of this observer fails the run instead. For tests.
    """

    strict: bool = False

    def around_run(self, run: RunInfo) -> AbstractContextManager[object] | None:  # noqa: ARG002
        """Return a context manager to enter around the whole run; None for none.

        It is entered in the run's own context, before its resources are opened, and left when all of
        its tasks have ended. Context variables that it sets are seen by every step, and not by the
        caller of the run. It is left with the exception that ``await handler`` raises, if any;
        ``run.status`` is set then. It cannot suppress that exception.
        """
        return None

    def around_step(self, invocation: Invocation) -> AbstractContextManager[object] | None:  # noqa: ARG002
        """Return a context manager to enter around one call of a step; None for none.

        It is entered in the step's own context, before the body is called. So a span that it opens is
        the parent of the spans that the step opens, and the context variables that it sets are seen in
        the step, in its tasks and in its thread, and nowhere else. It is left with the exception that
        the step raised, a cancellation included; ``invocation.outcome`` is set then. It can neither
        suppress nor replace that exception.
        """
        return None

    def in_process(
        self,
        invocation: Invocation,  # noqa: ARG002
    ) -> Callable[[], AbstractContextManager[object]] | None:
        """Return what to enter around the body of a step that runs in a worker process; None for none.

        Called in the step's own context. The returned callable is pickled, called in the worker
        process, and the context manager that it returns is entered there, around the body.
        """
        return None

    def listen(self, run: RunInfo) -> Callable[[Record], object] | None:  # noqa: ARG002
        """Return a function that the engine calls with each record of the run; None for none.

        Called once, before the first record. See :mod:`sluicegate.records`. Where no observer returns
        a function, the engine builds no records.
        """
        return None

    def run_started(self, run: RunInfo) -> None:
        """A run begins; no step of it has begun."""

    def run_ended(self, run: RunInfo) -> None:
        """A run has ended, and all of its tasks have; ``run.status`` says how."""

    def step_started(self, invocation: Invocation) -> None:
        """The body of a step is about to begin."""

    def step_ended(self, invocation: Invocation) -> None:
        """A step has ended, and its result is in the state of the run.

        A snapshot that is taken now does not repeat the step.
        """

    def event_published(self, run: RunInfo, event: Event) -> None:
        """An event was published on the stream of the run; not the last one, with which it ends."""


#: The observers of the runs that begin in this context, beside those of their workflows.
ambient: ContextVar[tuple[Observer, ...]] = ContextVar("sluicegate_observers", default=())


@contextmanager
def observe(*observers: Observer) -> Generator[None]:
    """Let observers hear of every run that begins within the block, and of its children.

    Runs that began before are not concerned. The block may contain awaits, but must be left in the
    task that entered it, as for any context variable.

    Args:
        *observers: The observers, beside those of the workflows.

    Raises:
        TypeError: One of them is not an :class:`Observer`.
    """
    what = f"observe({', '.join(map(brief, observers))})"
    token = ambient.set((*ambient.get(), *checked(observers, what, TypeError)))
    try:
        yield
    finally:
        ambient.reset(token)


def checked(observers: tuple[Any, ...], what: str, error: type[Exception]) -> tuple[Observer, ...]:
    """Return the observers, or raise ``error`` if one of them is none; ``what`` was given them."""
    if not all(isinstance(observer, Observer) for observer in observers):
        msg = (
            f"{what}; expected a list of objects whose classes are derived from sluicegate.Observer"
        )
        raise error(msg)
    return observers


class Verbose(Observer):
    """Writes a line for each call, with the time since the run began."""

    def __init__(self, write: Callable[[str, str], None]) -> None:
        self._write = write
        self._began: dict[object, float] = {}

    def _tell(self, run: RunInfo, text: str) -> None:
        since = perf_counter() - self._began.get(run, perf_counter())
        self._write(f"{run.run_id} {since:9.4f}s", text)

    def run_started(self, run: RunInfo) -> None:
        self._began[run] = perf_counter()
        begins = "resumes" if run.start_event is None else f"begins with {brief(run.start_event)}"
        self._tell(run, f"{run.workflow} {begins}")

    def step_started(self, invocation: Invocation) -> None:
        self._began[invocation] = perf_counter()
        attempt = f", attempt {invocation.attempt}" if invocation.attempt > 1 else ""
        what = f"{invocation.step} #{invocation.number} takes {brief(invocation.event)}{attempt}"
        self._tell(invocation.run, what)

    def step_ended(self, invocation: Invocation) -> None:
        took = perf_counter() - self._began.pop(invocation, perf_counter())
        if invocation.outcome == "completed":
            what = f"returns {brief(invocation.result)}"
        elif invocation.outcome == "cancelled":
            what = "is cancelled"
        else:
            what = f"raises {brief(invocation.error)}"
        line = f"{invocation.step} #{invocation.number} {what} after {took * 1e3:.1f} ms"
        self._tell(invocation.run, line)

    def event_published(self, run: RunInfo, event: Event) -> None:
        self._tell(run, f"stream: {brief(event)}")

    def run_ended(self, run: RunInfo) -> None:
        why = "" if run.error is None else f": {brief(run.error)}"
        self._tell(run, f"{run.status}{why}")
        self._began.pop(run, None)


def print_line(head: str, text: str) -> None:
    """Print a line of verbose output to standard error."""
    print(f"[{head}] {text}", file=sys.stderr)  # noqa: T201


def log_line(head: str, text: str) -> None:
    """Log a line of verbose output."""
    LOGGER.debug("[%s] %s", head, text)
