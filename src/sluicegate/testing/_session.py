"""A session watches one run under test, answers its questions, and checks its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._context import outer_context
from sluicegate._engine.control import open_store, receive
from sluicegate._engine.ending import cancel_run, fail
from sluicegate._engine.idle import is_idle
from sluicegate._engine.probe import Probe
from sluicegate._engine.stalls import missing
from sluicegate._engine.step_operations import StepOperations
from sluicegate._errors import brief
from sluicegate._events import Event, InputRequiredEvent, InternalEvent, StopEvent, untagged
from sluicegate._loop import current_backend
from sluicegate.testing._altering import Recording, Replacing, step_named, with_steps
from sluicegate.testing._answering import Answerer, Answers, is_class_of
from sluicegate.testing._records import StepInvocation, WorkflowTestResult


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate._definition.graph import Graph
    from sluicegate._definition.steps import Step
    from sluicegate._engine.run import Run
    from sluicegate.testing._altering import Recorded, Resources


#: The exception classes that a run must fail with.
Raises = type[BaseException] | tuple[type[BaseException], ...]

#: The event that ends a run: one of a class, or one that a function accepts.
Until = type[Event] | tuple[type[Event], ...] | Callable[[Any], bool] | None


@attrs.frozen(kw_only=True)
class Expectations:
    """The answers for a run under test, and the expectations of it."""

    answers: Answers = ()
    expose_internal: bool = True
    exclude_events: tuple[type[Event], ...] = ()
    until: Until = None
    raises: Raises = ()


class Session(Probe):
    """Watches a run and answers its questions, in the task that owns the run.

    Args:
        run: The run, not yet started.
        expected: The answers, and the expectations that :meth:`conclude` checks.

    Raises:
        TypeError: The answers, or ``until``, have the wrong type.
    """

    def __init__(self, run: Run, expected: Expectations) -> None:
        self.run = run
        self.expected = expected
        self.events: list[Event] = []
        self.invocations: list[StepInvocation] = []
        self.failure: BaseException | None = None
        self._answerer = Answerer(run.graph.name, expected.answers)
        self._until = _predicate(expected.until)
        self._graph = run.graph
        self._questions: deque[Event] = deque()
        self._is_answering = False
        #: Whether the run was ended on purpose, by ``until`` or by leaving a block.
        self.is_ended_early = False
        self._recordings: list[Recording] = []
        self._waiter: Any = None
        run.probe = self
        run.log.forward = self._note
        run.log.internal_readers += expected.expose_internal

    # -- before the run ------------------------------------------------------------------------

    def alter(self, steps: Iterable[Step]) -> Graph:
        """Replace the steps of this run by others of the same shape; return its new graph."""
        self.run.graph = graph = with_steps(self.run.graph, steps)
        return graph

    def replace(self, recorded: Recorded | None, resources: Resources | None) -> None:
        """Replace steps by recorded results, and resources by values.

        Raises:
            ValueError: The workflow has no such step or factory.
            TypeError: The recorded results have the wrong type.
        """
        steps = list(self.run.graph.steps)
        replacing = Replacing(resources or {})
        if resources:
            steps = [replacing.alter(step) for step in steps]
            replacing.check_used(self.run.graph.name)
        for name, results in (recorded or {}).items():
            step = step_named(self.run.graph, name, "recorded")
            recording = Recording(step, results, self.fail)
            self._recordings.append(recording)
            steps[step.index] = recording.stand_in()
        if recorded or resources:
            self.alter(steps)

    # -- notifications from the run ----------------------------------------------------------------------

    def _note(self, event: Event) -> None:
        if not isinstance(event, self.expected.exclude_events) and (
            self.expected.expose_internal or not isinstance(event, InternalEvent)
        ):
            self.events.append(event)
        asked = untagged(event)
        if isinstance(asked, InputRequiredEvent):
            self._questions.append(asked)
        if self._until is not None and not isinstance(event, StopEvent):
            self._look_for_end(self._until, event)
        self.wake()

    def _look_for_end(self, until: Callable[[Any], bool], event: Event) -> None:
        try:
            reached = until(event)
        except Exception as error:  # noqa: BLE001 - raised by conclude(); a listener must not raise
            self.fail(error)
            return
        if reached and not self.run.outcome.status:
            self.is_ended_early = True
            cancel_run(self.run, f"until: {brief(event)} was published")

    def invocation_began(self, number: int, step: Step, event: object, attempt: int) -> None:
        """Record the invocation."""
        self.invocations.append(StepInvocation(number, step.name, event, attempt))

    def invocation_ended(self, number: int, result: object, error: BaseException | None) -> None:
        """Complete the record of the invocation."""
        known = self.invocations[number - 1]
        self.invocations[number - 1] = attrs.evolve(known, result=result, error=error, is_done=True)

    def idle_changed(self) -> None:
        """Fail a run that waits for an event from outside without an open question."""
        self.wake()
        if self._questions or self._is_answering or not self._answerer.is_strict:
            return
        if self.failure is None and not self.run.outcome.status and is_idle(self.run):
            unasked = self._answerer.unasked()
            if unasked is not None:
                self._questions.append(_Unasked(event=unasked))
                return
            _, machine = self.run.live()
            at = "a child of it waits" if self.run.children else "no step runs"
            self.fail(
                AssertionError(
                    f"the run of {self._graph.name} waits for an event from outside, and no "
                    f"question is open ({'; '.join(missing(machine)) or at}); expected the event "
                    "in `answers=[...]`, or `answers=None` to let the run wait"
                )
            )

    def fail(self, error: BaseException) -> None:
        """End the run, and make :meth:`conclude` raise ``error``."""
        if self.failure is None:
            self.failure = error
            fail(self.run, error)

    def wake(self) -> None:
        """Make :meth:`watch` check its condition again."""
        if self._waiter is not None:
            self._waiter.wake()

    # -- during the run ------------------------------------------------------------------------

    async def watch(self, is_wanted: Callable[[], bool] | None = None) -> None:
        """Answer questions until the run is over, or until ``is_wanted()`` is true.

        A checkpoint if it has to wait or to answer. A cancellation does not affect the run.

        Raises:
            AssertionError: A question has no answer.
            BaseException: The exception of the user's answer function.
        """
        backend = current_backend()
        self._waiter = backend.waiter()
        while True:
            while self._questions:
                await backend.checkpoint()
                await self._answer(self._questions.popleft())
            if self.run.outcome.is_over or (is_wanted is not None and is_wanted()):
                return  # noqa: ASYNC910
            await self._waiter.wait()

    async def _answer(self, question: Event) -> None:  # noqa: ASYNC910 - watch() has checkpoints
        outcome = self.run.outcome
        if outcome.status not in ("", "completed"):
            return  # noqa: ASYNC910 - the run no longer needs the answer
        self._is_answering = True
        try:
            if isinstance(question, _Unasked):
                answer: Event | None = question.event
            else:
                answer = await self._answerer.answer(question)
            if answer is not None and not outcome.status:
                receive(self.run, answer, None)
        finally:
            self._is_answering = False
        self.idle_changed()

    # -- after the run --------------------------------------------------------------------------------

    def end(self) -> None:
        """Detach from the run, which is over."""
        run = self.run
        run.probe = run.log.forward = None
        run.log.internal_readers -= self.expected.expose_internal
        run.graph = self._graph

    def conclude(self) -> WorkflowTestResult[Any]:
        """Return what the run did, if it meets the expectations.

        Raises:
            AssertionError: It does not; the message has the difference.
            BaseException: The run's failure, if it was not expected.
        """
        outcome = self.run.outcome
        self._check_end()
        return WorkflowTestResult(
            run_id=self.run.run_id,
            status=outcome.status,
            events=tuple(self.events),
            steps=tuple(self.invocations),
            stop_event=outcome.stop_event,
            error=outcome.error,
            errors=outcome.errors,
            state=open_store(self.run).snapshot_state(),
            ctx=outer_context(StepOperations(self.run)),
        )

    def _check_end(self) -> None:
        outcome, expected = self.run.outcome, self.expected
        error = self.failure
        if error is None:
            # If the run was ended on purpose, only failures of its clean-up count.
            error = next(iter(outcome.errors), None) if self.is_ended_early else outcome.error
            if isinstance(error, expected.raises):
                return
        if error is not None:
            try:
                raise error
            finally:
                del error  # or this frame and its exception keep each other alive
        if self.is_ended_early:
            return
        name = self._graph.name
        if expected.raises:
            msg = (
                f"{name} completed with {brief(outcome.stop_event)}; expected it to raise "
                f"{_names(expected.raises)}"
            )
            raise AssertionError(msg)
        if expected.until is not None:
            msg = (
                f"{name} completed with {brief(outcome.stop_event)} before it published what "
                f"until={_names(expected.until)} expects; expected such an event"
            )
            raise AssertionError(msg)
        for recording in self._recordings:
            if text := recording.leftover():
                raise AssertionError(text)
        if left := self._answerer.leftover():
            msg = (
                f"{name} did not ask for {left} of the answers; expected a question for each answer"
            )
            raise AssertionError(msg)


class _Unasked(Event):
    """Wraps an event for a run that waits without an open question."""

    event: Event


def _predicate(until: Any) -> Callable[[Any], bool] | None:
    kinds = _several(until)
    if all(is_class_of(kind, Event) for kind in kinds):
        return lambda event: isinstance(event, kinds)
    if until is None or (callable(until) and not is_class_of(until, object)):
        return cast("Callable[[Any], bool] | None", until)
    msg = f"until={brief(until)}; expected an event class, or a function of an event"
    raise TypeError(msg)


def _names(kinds: Any) -> str:
    return " or ".join(getattr(kind, "__name__", brief(kind)) for kind in _several(kinds))


def _several(value: Any) -> tuple[Any, ...]:
    return cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
