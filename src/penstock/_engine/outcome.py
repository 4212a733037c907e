"""The outcome of a run: which of several endings counts, and who waits for it.

The rule is fixed, whatever the timing. The first thing that settles the outcome counts: a stop
event, a failure, the timeout, a cancellation. What fails later, while the rest unwinds, is kept in
``errors``; only a stop event gives way to it, for a run whose clean-up failed did not complete.
``KeyboardInterrupt`` and ``SystemExit`` come before everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from penstock._errors import (
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    note_once,
)
from penstock._events import (
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from penstock._observe import short


if TYPE_CHECKING:
    from types import TracebackType

    from penstock._backends import Waiter
    from penstock._steps import Step


#: What leaves a run at once and bare, whatever else there is.
URGENT = (KeyboardInterrupt, SystemExit)

OUTSIDE = "what it runs in was cancelled"


class Outcome:
    """How a run ended, or that it has not yet.

    Attributes:
        status: ``""`` while open; then ``"completed"``, ``"failed"``, ``"timed_out"`` or
            ``"cancelled"``. It is settled while the rest still unwinds.
        is_over: Whether everything has unwound.
        stop_event: The stop event that a step returned.
        error: What ``await handler`` raises.
        is_outside: Whether the run ended because what it runs in was cancelled.
    """

    __slots__ = (
        "_errors",
        "_name",
        "_run_id",
        "_step",
        "_timeout",
        "error",
        "is_outside",
        "is_over",
        "reason",
        "status",
        "stop_event",
        "trace",
        "waiters",
    )

    def __init__(self, name: str, run_id: str, timeout: float | None) -> None:
        self._name = name
        self._run_id = run_id
        self._timeout = timeout
        self._step: str | None = None
        self.status = ""
        self.is_over = False
        self.is_outside = False
        self.stop_event: StopEvent | None = None
        self.error: BaseException | None = None
        #: Its traceback when everything had unwound: each who awaits goes on from there.
        self.trace: TracebackType | None = None
        self._errors: dict[int, BaseException] | None = None
        self.reason: str | None = None
        self.waiters: list[Waiter] | None = None

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """All failures, in the order in which they came; ``error``, but for a cancellation."""
        return () if self._errors is None else tuple(self._errors.values())

    def complete(self, event: StopEvent) -> None:
        """A step returned the stop event."""
        self.status = "completed"
        self.stop_event = event

    def fail(self, error: BaseException, step: Step | None, event: Any) -> None:
        """A step raised ``error``, or was found to have broken a rule."""
        if self._errors is not None and id(error) in self._errors:
            return
        self.note(error, step, event)
        self._keep(error)
        urgent = isinstance(error, URGENT)
        if self.status in ("", "completed") or (urgent and not isinstance(self.error, URGENT)):
            self.status = "failed"
            self.error = error
            self._step = step.name if step is not None else None

    def _keep(self, error: BaseException) -> None:
        if self._errors is None:
            self._errors = {}
        self._errors[id(error)] = error

    def note(self, error: BaseException, step: Step | None, event: Any) -> None:
        """Have ``error`` say where it came up, once."""
        where = f"in the run {self._run_id} of {self._name}"
        if step is not None:
            where = f"in the step {step.label}, handling {short(event, 200)}, {where}"
        if self.status:
            where += f", while it unwound ({self.status})"
        note_once(error, where)
        drop_own_frames(error)

    def time_out(
        self, active: tuple[str, ...], *, waits_for_input: bool, missing: tuple[str, ...]
    ) -> None:
        """The run's timeout has passed."""
        self.status = "timed_out"
        if active:
            at = f"running: {', '.join(active)}"
        elif waits_for_input:
            at = "it was waiting for an answer from outside"
        else:
            at = "no step was running"
        lacking = f"; {'; '.join(missing)}" if missing else ""
        msg = (
            f"the run {self._run_id} of {self._name} did not end within its timeout of "
            f"{self._timeout:g} s; {at}{lacking}"
        )
        self.error = WorkflowTimeoutError(msg, self._timeout, active)
        self._keep(self.error)

    def stall(self, missing: tuple[str, ...]) -> None:
        """Nothing can happen in the run any more."""
        self.status = "failed"
        lacking = f": {'; '.join(missing)}" if missing else ""
        msg = (
            f"the run {self._run_id} of {self._name} can never end: no step runs, no event is "
            f"pending, and nobody was asked anything{lacking}; expected some step to return a "
            "StopEvent"
        )
        self.error = WorkflowStalledError(msg, missing)
        self._keep(self.error)

    def cancel(self, reason: str) -> None:
        """Somebody asked the run to end."""
        self.status = "cancelled"
        self.reason = reason
        msg = f"the run {self._run_id} of {self._name} was cancelled: {reason}"
        self.error = WorkflowCancelledError(msg, reason)

    def interrupt(self, interruption: BaseException | None, cancelled: type[BaseException]) -> None:
        """Something from outside of the run came through it."""
        if interruption is None or isinstance(interruption, (cancelled, GeneratorExit)):
            self.cancel(OUTSIDE)
            self.is_outside = True
        else:
            self.status = "failed"
            self.error = interruption
            self._keep(interruption)

    def conclude(self) -> StopEvent:
        """Everything has unwound: return the event that ends the stream."""
        self.is_over = True
        if self.error is not None:
            self.trace = self.error.__traceback__
            errors = self._errors or {}
            more = len(errors) - (id(self.error) in errors)
            if more:
                count = "1 more failure" if more == 1 else f"{more} more failures"
                self.error.add_note(f"and {count} while the run unwound: see handler.exceptions")
        if self.status == "completed":
            assert self.stop_event is not None
            return self.stop_event
        if self.status == "timed_out":
            assert isinstance(self.error, WorkflowTimeoutError)
            return WorkflowTimedOutEvent(
                timeout=self.error.timeout or 0.0, active_steps=self.error.active_steps
            )
        if self.status == "cancelled":
            return WorkflowCancelledEvent(reason=self.reason)
        assert self.error is not None
        return WorkflowFailedEvent(exception=self.error, step_name=self._step)

    def announce(self) -> None:
        """Wake everybody who waits for the end."""
        for waiter in self.waiters or ():
            waiter.wake()


_HOME = str(Path(__file__).parent.parent)


def drop_own_frames(error: BaseException) -> None:
    """Have the traceback begin in what the user wrote, where it gets that far."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_HOME):
        trace = trace.tb_next
    if trace is not None:
        error.__traceback__ = trace


def only_cancelled(error: BaseException, cancelled: type[BaseException]) -> bool:
    """Whether ``error`` is a cancellation, or a group of nothing else."""
    if type(error) is cancelled:  # nearly always, and Trio's isinstance is dear
        return True
    return all(isinstance(leaf, cancelled) for leaf in _leaves(error))


def without_cancelled(error: BaseException, cancelled: type[BaseException]) -> BaseException:
    """Return ``error`` without the cancellations that it may hold, being a group."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return group.split(cancelled)[1] or group
    return error


def stray(error: BaseException, step: Step | None) -> WorkflowRuntimeError:
    """Return what stands for a cancellation that nobody asked for: a failure, with its cause."""
    name = "a step" if step is None else f"the step {step.label}"
    msg = (
        f"{name} raised {type(error).__name__}, though neither its run nor anything around it was "
        "cancelled; expected it to handle the cancellation of what it awaited"
    )
    failure = WorkflowRuntimeError(msg)
    failure.__cause__ = error
    return failure


def single(error: BaseException, cancelled: type[BaseException]) -> BaseException:
    """Return the one exception that stands for ``error``, which may be a nursery's group.

    ``KeyboardInterrupt`` and ``SystemExit`` go first, then whatever is no cancellation.
    """
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, URGENT):
            return leaf
    return next((leaf for leaf in leaves if not isinstance(leaf, cancelled)), leaves[0])


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return [leaf for part in group.exceptions for leaf in _leaves(part)]
    return [error]
