"""Sessions: one run under test, watched, answered, and held to what was expected of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._context import outer_context
from sluicegate._engine.journal import Redelivery
from sluicegate._engine.runner import Runner
from sluicegate._engine.stalls import missing
from sluicegate._errors import brief
from sluicegate._events import ChildEvent, Event, InputRequiredEvent, InternalEvent, StopEvent
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate._observers import Observer, Several
from sluicegate.testing._altering import Recording, Replacing, step_named, with_steps
from sluicegate.testing._answering import Answerer, Answers, is_class_of
from sluicegate.testing._records import StepInvocation, WorkflowTestResult


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate._definition.graph import Graph
    from sluicegate._definition.steps import Step
    from sluicegate._engine.invocation import Worker
    from sluicegate._engine.machine import Delivery
    from sluicegate._engine.step_queue import StepQueue
    from sluicegate._handler import WorkflowHandler
    from sluicegate.testing._altering import Recorded, Resources


#: Classes of exceptions that a run is to fail with.
Raises = type[BaseException] | tuple[type[BaseException], ...]

#: When a run has done enough: an event of a class, or one that a function accepts.
Until = type[Event] | tuple[type[Event], ...] | Callable[[Any], bool] | None


class WatchedRunner(Runner):
    """A run that tells its session when something in it comes to rest."""

    __slots__ = ("session",)

    session: Session | None

    def _look(self) -> None:
        if self.session is not None:
            self.session.look()

    def idle_changed(self) -> None:
        """See the parent."""
        super().idle_changed()
        self._look()

    def check_drained(self) -> None:
        """See the parent; called wherever a step begins to wait."""
        super().check_drained()
        self._look()

    @enable_ki_protection
    async def _run_worker(self, queue: StepQueue, delivery: Delivery | None = None) -> None:
        try:
            await super()._run_worker(queue, delivery)
        finally:
            self._look()


@attrs.frozen(kw_only=True)
class Expectations:
    """What a run under test is given, and what is expected of it."""

    answers: Answers = ()
    expose_internal: bool = True
    exclude_events: tuple[type[Event], ...] = ()
    until: Until = None
    raises: Raises = ()


class Session(Observer):
    """What watches a run and answers its questions; all in the task that owns the run.

    Args:
        runner: The run, not yet started.
        expected: What it is given, and what is expected of it.
        kind: The class of the run that takes its place.

    Raises:
        TypeError: The answers, or ``until``, are of no form that can be used.
    """

    def __init__(
        self, runner: Runner, expected: Expectations, *, kind: type[WatchedRunner] = WatchedRunner
    ) -> None:
        self.runner = watched = kind(
            runner.workflow,
            runner.graph,
            run_id=runner.run_id,
            start_event=runner.start_event,
            log=runner.log,
            options=runner.options,
            state_store=runner.state_store,
            resumed=runner.resumed,
        )
        self.expected = expected
        self.events: list[Event] = []
        self.invocations: list[StepInvocation] = []
        self.failure: BaseException | None = None
        self._answerer = Answerer(runner.graph.name, expected.answers)
        self._until = _predicate(expected.until)
        self._graph = runner.graph
        self._questions: deque[Event] = deque()
        self._is_answering = False
        #: Whether the run was ended on purpose.
        self.is_ended_early = False
        self._working: dict[Worker, int] = {}
        self._recordings: list[Recording] = []
        self._waiter: Any = None
        watched.session = self
        watched.observer = (
            self if runner.observer is None else Several((runner.observer, cast("Observer", self)))
        )
        watched.log.forward = self._note
        watched.log.internal_readers += expected.expose_internal

    # -- before the run ------------------------------------------------------------------------

    def alter(self, steps: Iterable[Step]) -> Graph:
        """Have this run, and no other, go by other steps of the same shape; return its graph."""
        self.runner.graph = graph = with_steps(self.runner.graph, steps)
        return graph

    def replace(self, recorded: Recorded | None, resources: Resources | None) -> None:
        """Have some steps, and some resources, replaced.

        Raises:
            ValueError: A name or a factory fits nothing in the workflow.
            TypeError: What is recorded is not of a form that can be used.
        """
        steps = list(self.runner.graph.steps)
        replacing = Replacing(resources or {})
        if resources:
            steps = [replacing.alter(step) for step in steps]
            replacing.check_used(self.runner.graph.name)
        for name, results in (recorded or {}).items():
            step = step_named(self.runner.graph, name, "recorded")
            recording = Recording(step, results, self.fail)
            self._recordings.append(recording)
            steps[step.index] = recording.stand_in()
        if recorded or resources:
            self.alter(steps)

    # -- what the run tells ----------------------------------------------------------------------

    def _note(self, event: Event) -> None:
        if not isinstance(event, self.expected.exclude_events) and (
            self.expected.expose_internal or not isinstance(event, InternalEvent)
        ):
            self.events.append(event)
        asked = event.event if isinstance(event, ChildEvent) else event
        if isinstance(asked, InputRequiredEvent):
            self._questions.append(asked)
        if self._until is not None and not isinstance(event, StopEvent):
            self._look_for_end(self._until, event)
        self.wake()

    def _look_for_end(self, until: Callable[[Any], bool], event: Event) -> None:
        try:
            reached = until(event)
        except Exception as error:  # noqa: BLE001 - raised by conclude(); an observer must not raise
            self.fail(error)
            return
        if reached and not self.runner.outcome.status:
            self.is_ended_early = True
            self.runner.cancel(f"until: {brief(event)} was published")

    def step_started(
        self,
        run_id: str,  # noqa: ARG002 - it is that of the one run
        step: str,
        invocation: int,
        event: object,
    ) -> None:
        """Keep a record of the invocation."""
        attempt = 1
        for worker in self.runner.workers:
            if worker in self._working or worker.step is None or worker.step.name != step:
                continue
            given, number = given_to(worker)
            if given is event:
                self._working[worker] = invocation
                attempt = number
                break
        self.invocations.append(StepInvocation(invocation, step, event, attempt))

    def step_ended(
        self,
        run_id: str,  # noqa: ARG002
        step: str,  # noqa: ARG002 - the number tells
        invocation: int,
        result: object,
        error: BaseException | None,
    ) -> None:
        """Complete the record of the invocation."""
        at = invocation - 1
        known = self.invocations[at]
        self.invocations[at] = attrs.evolve(known, result=result, error=error, is_done=True)
        for worker, number in self._working.items():
            if number == invocation:
                del self._working[worker]
                break

    def look(self) -> None:
        """Something in the run has come to rest: perhaps all of it."""
        self.wake()
        if self._questions or self._is_answering or not self._answerer.is_strict:
            return
        if self.failure is None and not self.runner.outcome.status and self.runner.is_idle:
            unasked = self._answerer.unasked()
            if unasked is not None:
                self._questions.append(_Unasked(event=unasked))
                return
            _, machine = self.runner.live()
            at = "a child of it waits" if self.runner.children else "no step runs"
            self.fail(
                AssertionError(
                    f"the run of {self._graph.name} waits for an event from outside, and no "
                    f"question is open ({'; '.join(missing(machine)) or at}); expected the event "
                    "in `answers=[...]`, or `answers=None` to let the run wait"
                )
            )

    def fail(self, error: BaseException) -> None:
        """Have the run end, and :meth:`conclude` raise ``error``."""
        if self.failure is None:
            self.failure = error
            self.runner.fail(error)

    def wake(self) -> None:
        """Have :meth:`watch` look again."""
        if self._waiter is not None:
            self._waiter.wake()

    # -- while it goes on ------------------------------------------------------------------------

    async def watch(self, is_wanted: Callable[[], bool] | None = None) -> None:
        """Answer what is asked until the run is over, or until ``is_wanted()``.

        A checkpoint if there is anything to wait for or to answer. Cancelled, it leaves the run
        alone.

        Raises:
            AssertionError: A question has no answer.
            BaseException: Whatever comes out of the user's answers.
        """
        backend = current_backend()
        self._waiter = backend.waiter()
        while True:
            while self._questions:
                await backend.checkpoint()
                await self._answer(self._questions.popleft())
            if self.runner.outcome.is_over or (is_wanted is not None and is_wanted()):
                return  # noqa: ASYNC910
            await self._waiter.wait()

    async def _answer(self, question: Event) -> None:  # noqa: ASYNC910 - watch() has checkpoints
        outcome = self.runner.outcome
        if outcome.status not in ("", "completed"):
            return  # noqa: ASYNC910 - nobody waits for the answer any more
        self._is_answering = True
        try:
            if isinstance(question, _Unasked):
                answer: Event | None = question.event
            else:
                answer = await self._answerer.answer(question)
            if answer is not None and not outcome.status:
                self.runner.receive(answer, None)
        finally:
            self._is_answering = False
        self.look()

    # -- after it --------------------------------------------------------------------------------

    def end(self) -> None:
        """Let go of the run, which is over."""
        runner = self.runner
        runner.session = None
        runner.observer = runner.options.observer
        runner.log.forward = None
        runner.log.internal_readers -= self.expected.expose_internal
        runner.graph = self._graph
        self._working.clear()

    def conclude(self) -> WorkflowTestResult[Any]:
        """Return what the run did, if it is what was expected.

        Raises:
            AssertionError: It is not; the message says what was.
            BaseException: The run's failure, if it was not expected.
        """
        outcome = self.runner.outcome
        self._check_end()
        return WorkflowTestResult(
            run_id=self.runner.run_id,
            status=outcome.status,
            events=tuple(self.events),
            steps=tuple(self.invocations),
            stop_event=outcome.stop_event,
            error=outcome.error,
            errors=outcome.errors,
            state=self.runner.store.snapshot_state(),
            ctx=outer_context(self.runner),
        )

    def _check_end(self) -> None:
        outcome, expected = self.runner.outcome, self.expected
        error = self.failure
        if error is None:
            # Where the run was ended on purpose, what counts is what failed in its clean-up.
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
                f"until={_names(expected.until)} waits for; expected such an event"
            )
            raise AssertionError(msg)
        for recording in self._recordings:
            if text := recording.leftover():
                raise AssertionError(text)
        if left := self._answerer.leftover():
            msg = f"{left} of the answers were not asked for by {name}; expected as many questions"
            raise AssertionError(msg)


class _Unasked(Event):
    """An event that is said to a run which waits and has asked nothing."""

    event: Event


def given_to(worker: Worker) -> tuple[Any, int]:
    """Return what a worker's step was given, and the number of the attempt."""
    event = worker.event
    return (event.event, event.number) if type(event) is Redelivery else (event, 1)


def hand_over(handler: WorkflowHandler[Any], session: Session) -> None:
    """Have a handler that is not yet started run what the session watches."""
    handler._runner = session.runner


def _predicate(until: Any) -> Callable[[Any], bool] | None:
    kinds = _several(until)
    if all(is_class_of(kind, Event) for kind in kinds):
        return lambda event: isinstance(event, kinds)
    if until is None or (callable(until) and not is_class_of(until, object)):
        return cast("Callable[[Any], bool] | None", until)
    msg = f"until={brief(until)}; expected a class of events, or a function of an event"
    raise TypeError(msg)


def _names(kinds: Any) -> str:
    return " or ".join(getattr(kind, "__name__", brief(kind)) for kind in _several(kinds))


def _several(value: Any) -> tuple[Any, ...]:
    return cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
