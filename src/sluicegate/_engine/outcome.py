"""The outcome of a run: its status, its exception, and the tasks that wait for it.

The rule does not depend on timing. The first cause decides the outcome: a stop
event, a failure, the timeout, a cancellation. Failures during the unwinding are kept in
``errors``. Only a stop event gives way to them, because a run with failed clean-up has not completed.
``KeyboardInterrupt`` and ``SystemExit`` come before everything else.

A durable run outlives its process. A cancellation from outside, an urgent exception, a lost lease or
a failing store end only the *part* of it that runs here: the part is ``"detached"``, and the run
continues from its store.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluicegate._errors import (
    WorkflowCancelledError,
    WorkflowDetachedError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    brief,
)
from sluicegate._events import (
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowDetachedEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from sluicegate._exceptions import (
    add_note,
    bare,
    failures_in,
    is_a,
    is_first_urgent,
    note_once,
    set_trace,
    trace_of,
    urgent_leaf,
)


if TYPE_CHECKING:
    from types import TracebackType

    from sluicegate._definition.steps import Step
    from sluicegate._loop import Waiter


OUTSIDE = "a scope around it was cancelled"


class Outcome:
    """How a run ended, or that it has not yet.

    Attributes:
        status: ``""`` while open; then ``"completed"``, ``"failed"``, ``"timed_out"``,
            ``"cancelled"`` or ``"detached"``. It is settled while the rest still unwinds.
        is_over: Whether everything has unwound.
        stop_event: The stop event that a step returned.
        error: What ``await handler`` raises.
        is_durable: Whether the run has a store, from which it continues after it was detached.
        is_outside: Whether the run ended because a scope around it was cancelled.
        is_owner_cancelled: Whether it was cancelled because a cancellation left its owner.
    """

    __slots__ = (
        "_errors",
        "_name",
        "_passed_over",
        "_run_id",
        "_step",
        "_timeout",
        "error",
        "is_durable",
        "is_outside",
        "is_over",
        "is_owner_cancelled",
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
        self.is_durable = self.is_outside = self.is_owner_cancelled = False
        self.stop_event: StopEvent | None = None
        self.error: BaseException | None = None
        #: Its traceback after the run had unwound; each task that awaits the run starts from it.
        self.trace: TracebackType | None = None
        self._errors: dict[int, BaseException] | None = None
        #: The failures, by id, that are kept and leave no owner.
        self._passed_over: set[int] | None = None
        self.reason: str | None = None
        self.waiters: list[Waiter] | None = None

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """All failures in order, starting with ``error`` unless that is a cancellation.

        A detachment is a failure if an error of the store or a lost lease has caused it.
        """
        return () if self._errors is None else tuple(self._errors.values())

    def has_ended(self) -> bool:
        """Whether the outcome is settled; the run may still be unwinding."""
        return bool(self.status)

    def complete(self, event: StopEvent) -> None:
        """A step returned the stop event."""
        self.status = "completed"
        self.stop_event = event

    def fail(
        self, error: BaseException, step: Step | None, event: Any, cancelled: type[BaseException]
    ) -> None:
        """A step raised ``error``, or was found to have broken a rule.

        Of a group with an urgent leaf that leaf is the failure, and the others are further ones.
        """
        for failure in failures_in(error, cancelled):
            if self._errors is None or id(failure) not in self._errors:
                self.note(failure, step, event)
                self._take(failure, step)

    def pass_over(self, error: BaseException) -> None:
        """Keep a failure that came in the tick of a cancellation from outside, which leaves."""
        if self.is_outside or self.is_owner_cancelled:
            self._passed_over = {*(self._passed_over or ()), id(error)}

    @property
    def unseen(self) -> BaseException | None:
        """The failure that an owner must raise if it was not observed."""
        if self.status not in ("cancelled", "detached"):
            return self.error if self._errors else None
        passed_over = self._passed_over or ()
        return next((e for e in self.errors if id(e) not in passed_over), None)

    def fail_anyway(self, error: BaseException, step: Step | None) -> None:
        """Record ``error`` without a note or a cut traceback, after recording it normally has failed."""
        self._take(bare(error), step)

    def _take(self, error: BaseException, step: Step | None) -> None:
        self._keep(error)
        is_urgent = is_first_urgent(error, self.error)
        if is_urgent and self.is_durable:
            self.detach(f"{type(error).__name__} was raised")
            self.error = error
        elif is_urgent or self.status in ("", "completed"):
            self.status = "failed"
            self.error = error
            self._step = step.name if step is not None else None

    def _keep(self, error: BaseException) -> None:
        if self._errors is None:
            self._errors = {}
        self._errors[id(error)] = error

    def note(self, error: BaseException, step: Step | None, event: Any) -> None:
        """Add a note to ``error``, once: the run and, if known, the step that raised it."""
        where = f"in the run {self._run_id} of {self._name}"
        if step is not None:
            where = f"in the step {step.label}, handling {brief(event, 200)}, {where}"
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
        """Record that nothing more can happen in the run."""
        self.status = "failed"
        lacking = f": {'; '.join(missing)}" if missing else ""
        msg = (
            f"the run {self._run_id} of {self._name} can never end: no step runs, no event is "
            f"pending, and no question is open{lacking}; expected some step to return a "
            "StopEvent"
        )
        self.error = WorkflowStalledError(msg, missing)
        self._keep(self.error)

    def cancel(self, reason: str) -> None:
        """Record that a cancellation of the run was requested."""
        self.status = "cancelled"
        self.reason = reason
        msg = f"the run {self._run_id} of {self._name} was cancelled: {reason}"
        self.error = WorkflowCancelledError(msg, reason)

    def detach(self, reason: str, error: BaseException | None = None) -> None:
        """Record that the part of a durable run in this process ends, and the run does not.

        The first cause decides here too, so callers look at :attr:`status` before. Only an end that
        could not be stored is undone: the run continues from what its store has, without its stop event.

        Args:
            reason: Why: ``"a scope around it was cancelled"``.
            error: The error of the store or the lost lease that has caused it, if one has. The owner
                then raises the detachment, unless it was observed.
        """
        self.status = "detached"
        self.reason = reason
        self.stop_event = None
        msg = (
            f"the run {self._run_id} of {self._name} has left this process and continues from its "
            f"store: {reason}; expected `runs.attach({self._run_id!r})`, to wait for its end or to "
            "read on"
        )
        self.error = WorkflowDetachedError(msg, self._run_id, reason)
        if error is not None:
            self.error.__cause__ = error
            self._errors = {id(self.error): self.error, **(self._errors or {})}

    def park(self) -> None:
        """Record that a durable run waits in its store, and is to unwind here until it is woken."""
        self.status = "parked"

    def forget_failures(self) -> None:
        """Drop the failures of the clean-up of a durable run that rests; they were logged."""
        self._errors = None

    def reopen(self) -> None:
        """Begin another life of a durable run that has rested in its store."""
        self.status = ""
        self._errors = self.error = None

    def refuse(self, error: BaseException) -> None:
        """Record that a durable run cannot be continued here; awaiting it raises ``error`` itself."""
        self.detach(f"{type(error).__name__}: {error}")
        self.error = error
        self._keep(error)

    def recall(self, status: str, last: StopEvent) -> None:
        """Take over the end of a durable run from its store.

        Args:
            status: How it ended.
            last: The event that ends its stream.
        """
        self.reopen()
        if isinstance(last, WorkflowTimedOutEvent):
            steps = f"; running: {', '.join(last.active_steps)}" if last.active_steps else ""
            msg = (
                f"the run {self._run_id} of {self._name} did not end within its timeout of "
                f"{last.timeout:g} s{steps}"
            )
            self.error = WorkflowTimeoutError(msg, last.timeout, tuple(last.active_steps))
            self._keep(self.error)
        elif isinstance(last, WorkflowFailedEvent):
            self.error, self._step = last.exception, last.step_name
            self._keep(last.exception)
        elif isinstance(last, WorkflowCancelledEvent):
            self.cancel(last.reason or "")
        else:
            self.stop_event = last
        self.status = status

    def cancel_from_outside(self) -> None:
        """Record that a scope around the run was cancelled, which detaches a durable run."""
        if self.is_durable:
            self.detach(OUTSIDE)
        else:
            self.cancel(OUTSIDE)
        self.is_outside = True

    def interrupt(self, interruption: BaseException | None, cancelled: type[BaseException]) -> None:
        """Record an exception from outside the run: a cancellation, or an urgent one.

        It cancels or fails the run; a durable run is detached.
        """
        if interruption is None or is_a(interruption, (cancelled, GeneratorExit)):
            self.cancel_from_outside()
        else:
            self._take(interruption, None)

    def end_by(self, interruption: BaseException | None, cancelled: type[BaseException]) -> None:
        """Everything has unwound, with this exception: it settles an outcome that is still open."""
        if not self.status:
            self.interrupt(interruption, cancelled)
        elif interruption is not None and urgent_leaf(interruption) is not None:
            self.fail(interruption, None, None, cancelled)

    def conclude(self) -> StopEvent:
        """Everything has unwound: return the event that ends the stream. Never raises."""
        self.is_over = True
        return self.terminal_event(counts_others=True)

    def terminal_event(self, *, counts_others: bool = False) -> StopEvent:
        """Return the event that ends the stream, so far as the outcome is settled. Never raises."""
        try:
            if counts_others and self.error is not None:
                self._count_others(self.error)
            if self.status == "completed":
                assert self.stop_event is not None
                return self.stop_event
            if self.status == "timed_out":
                assert type(self.error) is WorkflowTimeoutError
                return WorkflowTimedOutEvent(
                    timeout=self.error.timeout or 0.0, active_steps=self.error.active_steps
                )
            if self.status == "cancelled":
                return WorkflowCancelledEvent(reason=self.reason)
            if self.status == "detached":
                return WorkflowDetachedEvent(reason=self.reason or "")
            assert self.error is not None
            return WorkflowFailedEvent(exception=self.error, step_name=self._step)
        except BaseException as fault:  # noqa: ASYNC103, BLE001 - kept: the stream has to end, whatever fails
            if self.error is None:
                self.fail_anyway(fault, None)
            assert self.error is not None
            self.status = "failed"
            return WorkflowFailedEvent(exception=self.error, step_name=self._step)  # noqa: ASYNC104

    def _count_others(self, error: BaseException) -> None:
        """Keep the traceback of what is raised, and note on it how many other failures there are."""
        self.trace = trace_of(error)
        errors = self._errors or {}
        more = len(errors) - (id(error) in errors)
        if more:
            count = "1 more failure" if more == 1 else f"{more} more failures"
            add_note(error, f"and {count} while the run unwound: see handler.exceptions")

    def announce(self) -> None:
        """Wake every task that waits for the end of the run."""
        for waiter in self.waiters or ():
            waiter.wake()


_HOME = str(Path(__file__).parent.parent)


def drop_own_frames(error: BaseException) -> None:
    """Start the traceback at the first frame of user code, if it reaches any."""
    trace = trace_of(error)
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_HOME):
        trace = trace.tb_next
    if trace is not None:
        set_trace(error, trace)
