"""Progress reports: the newest of each invocation, at most about ten a second on the stream.

The first report of an invocation is published at once. For the next :data:`INTERVAL` seconds the
newest one is held, and the one before it dropped; a task of the run publishes it then, or the
invocation does when it ends. So a loop may report each of its 100,000 rounds, and a reader still
gets the newest report, however long the step is silent afterwards.
"""

from __future__ import annotations

from math import isfinite
from numbers import Integral, Real
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, final

from sluicegate._errors import brief
from sluicegate._events import ProgressEvent
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._loop.threads import call_of_this_thread
from sluicegate._streams import TURN


if TYPE_CHECKING:
    from collections.abc import Generator

    from sluicegate._context import Context
    from sluicegate._engine.run import Run

    #: How much is done, of how much, and a word on it.
    State = tuple[float, float | None, str]


#: Seconds between two reports of an invocation on the stream.
INTERVAL = 0.1


@final
class RunReports:
    """The progress reports of a run; made for the first one.

    Attributes:
        recent: The invocations that have published a report within the last interval.
        count: How many invocations have reported; where nothing observes the run, it numbers them.
    """

    __slots__ = ("count", "recent")

    def __init__(self) -> None:
        self.recent: list[ProgressReport] = []
        self.count = 0


def open_report(run: Run, context: Context[Any], number: int | None) -> ProgressReport:
    """Open the reports of an invocation, which has a number if the run is observed."""
    if run.reports is None:
        run.reports = RunReports()
    run.reports.count += 1
    return ProgressReport(run, run.reports, context, number or run.reports.count)


@final
class ProgressReport:
    """The reports of one invocation. Awaiting it is the checkpoint of ``await ctx.progress(...)``.

    The loop's thread publishes. The thread of a ``def`` step only replaces the held report, as long
    as the engine will look at it again. For that, each side writes before it reads: the thread
    first sets the held report and then asks whether anyone will look; the loop first says that no
    one will and then looks once more.
    """

    __slots__ = ("_held", "_is_quiet", "_number", "_pace", "_reports", "_run", "_step")

    def __init__(self, run: Run, reports: RunReports, context: Context[Any], number: int) -> None:
        assert context._step is not None
        self._run = run
        self._reports = reports
        self._step = context._step.name
        self._number = number
        self._held: State | None = None
        #: Whether a report was published within the last interval.
        self._is_quiet = False
        self._pace = 0.0

    def put(self, done: Any, total: Any, message: Any) -> None:
        """Report; in the thread of a ``def`` step, look for a cancellation as well.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: A number is negative or not finite.
            BaseException: In a thread: the backend's Cancelled, if the step is cancelled.
            WorkflowRuntimeError: The thread has been abandoned, or it is not a step's.
        """
        self._held = check_report(done, total, message)
        if get_ident() == self._run.thread:
            if not self._is_quiet:
                self._publish()
            return
        call = call_of_this_thread()
        if call is None:
            self._run.log.check_thread("ctx.progress", "run_sync(ctx.progress, ...)")
            return
        call.check()
        if not self._is_quiet:
            call.run(self._publish_in_task)

    async def _publish_in_task(self) -> None:  # noqa: ASYNC124, ASYNC910 - only a task may start a task
        if not self._is_quiet:
            self._publish()

    @enable_ki_protection
    def _publish(self) -> None:
        """Publish the held report, and have the next one held until the interval is over."""
        run = self._run
        self._let_out()
        if run.outcome.status or run.log.closed:
            return  # it unwinds; there is no later
        self._is_quiet = True
        self._reports.recent.append(self)
        if len(self._reports.recent) == 1:
            run.timers += 1
            # The steps' own tasks are told from those of the engine by their context variables.
            start_soon, name = run.nursery.start_soon, f"{run.graph.name}: progress reports"
            run.variables.run(start_soon, _publish_held, run, self._reports, name=name)

    def publish_held(self) -> bool:
        """Publish what was reported during the interval; return whether there was anything."""
        self._is_quiet = False
        if self._held is None:
            return False
        self._is_quiet = True
        self._let_out()
        return True

    def _let_out(self) -> None:
        held, self._held = self._held, None
        if held is None or self._run.log.closed:
            return
        done, total, message = held
        run = self._run
        if run.records is not None:
            run.records.enter(self._number)
        run.operations.put_on_stream(
            ProgressEvent(
                run_id=run.run_id,
                step=self._step,
                invocation=self._number,
                done=done,
                total=total,
                message=message,
            )
        )

    def close(self) -> None:
        """Publish what is held, because the invocation has ended."""
        if self._run.operations is not None:
            self._let_out()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._checkpoint().__await__()

    async def _checkpoint(self) -> None:
        backend = current_backend()
        if perf_counter() - self._pace > TURN:
            await backend.checkpoint()
            self._pace = perf_counter()
        else:
            await backend.checkpoint_if_cancelled()


@enable_ki_protection
async def _publish_held(run: Run, reports: RunReports) -> None:
    """Publish the held reports of a run after each interval, as long as there are any.

    A checkpoint. It raises no cancellation, because that would cancel the run's nursery; the
    invocations publish what they hold when they end.
    """
    backend, _ = run.live()
    try:
        while reports.recent:
            await backend.sleep(INTERVAL)
            reports.recent = [report for report in reports.recent if report.publish_held()]
    except backend.Cancelled:  # noqa: ASYNC103
        return  # noqa: ASYNC104, ASYNC910
    finally:
        run.timers -= 1
        reports.recent = []


def check_report(done: Any, total: Any, message: Any) -> State:
    """Return the arguments of ``ctx.progress()`` as plain numbers and text.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: A number is negative or not finite.
    """
    done = _number("done", done)
    if total is not None:
        total = _number("total", total)
    if not isinstance(message, str):
        msg = (
            f"message of ctx.progress is {brief(message)}; expected a string: "
            'ctx.progress(3, 10, "reading")'
        )
        raise TypeError(msg)
    return done, total, message


def _number(name: str, value: Any) -> float:
    if type(value) is int or type(value) is float:
        number: float = value
    elif isinstance(value, Real) and not isinstance(value, bool):
        number = int(value) if isinstance(value, Integral) else float(value)
    else:
        also = "" if name == "done" else " or None"
        msg = (
            f"{name} of ctx.progress is {brief(value)}; expected a number{also}: "
            "ctx.progress(3, 10) for 3 of 10"
        )
        raise TypeError(msg)
    if number < 0 or not isfinite(number):
        msg = (
            f"{name} of ctx.progress is {number}; expected a finite number of at least 0: "
            "ctx.progress(3, 10) for 3 of 10"
        )
        raise ValueError(msg)
    return number
