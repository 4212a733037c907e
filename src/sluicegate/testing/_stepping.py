"""Runs a workflow step by step: each invocation is held until the caller releases it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, final

import attrs

from sluicegate._context import outer_context
from sluicegate._engine.control import open_store
from sluicegate._engine.idle import steps_at_rest
from sluicegate._engine.invocation import Place, place_in
from sluicegate._engine.step_operations import StepOperations
from sluicegate._errors import WorkflowRuntimeError
from sluicegate._handler import mark_observed
from sluicegate._loop import current_backend
from sluicegate._loop.limits import leaves_nothing
from sluicegate.testing._records import StepInvocation, WorkflowTestResult
from sluicegate.testing._running import check_workflow, open_session
from sluicegate.testing._session import Expectations


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from sluicegate._context import Context
    from sluicegate._definition.steps import Step
    from sluicegate._engine.invocation import Worker
    from sluicegate._engine.run import Run
    from sluicegate._events import Event, StartEvent
    from sluicegate._loop import Waiter
    from sluicegate._workflow import Workflow
    from sluicegate.testing._altering import Recorded, Resources
    from sluicegate.testing._answering import Answers
    from sluicegate.testing._session import Raises


R = TypeVar("R")


class _HeldInvocation:
    """An invocation that is held at its gate."""

    __slots__ = ("is_open", "step", "waiter", "worker")

    def __init__(self, worker: Worker, step: Step, waiter: Waiter) -> None:
        self.worker = worker
        self.step = step
        self.waiter = waiter
        self.is_open = False

    def open(self) -> None:
        self.is_open = True
        self.waiter.wake()


class _StepGates:
    """The gates of all steps of a run, and the invocations that they hold.

    One invocation is released at a time, when every other one is held, waits for an event or a
    branch, or has ended. Invocations that have arrived in the meantime are then ordered by step,
    and within a step by the order in which the engine took their events. So the order does not
    depend on the order in which the event loop runs its tasks.
    """

    def __init__(self, run: Run, tell: Callable[[], None]) -> None:
        self._run = run
        self._tell = tell
        self._arrived: list[_HeldInvocation] = []
        self._queue: list[_HeldInvocation] = []
        #: For each worker, the context of the last invocation that arrived at a gate.
        self._met: dict[Worker, Context[Any] | None] = {}

    async def pass_through(self, step: Step) -> Worker:  # noqa: ASYNC910 - a new gate is closed
        """Wait at the gate of a step until it opens, and return the worker of the invocation.

        A checkpoint; when cancelled, the invocation is no longer held.
        """
        worker: Worker = next(
            worker
            for worker in self._run.workers
            if worker.step is step
            and worker.is_waiting
            and self._met.get(worker) is not worker.context
        )
        self._met[worker] = worker.context
        held = _HeldInvocation(worker, step, current_backend().waiter())
        self._arrived.append(held)
        self._tell()
        try:
            while not held.is_open:
                await held.waiter.wait()
        finally:
            for line in (self._arrived, self._queue):
                if held in line:
                    line.remove(held)
            self._tell()
        return worker

    def is_still(self) -> bool:
        """Whether an invocation is held, and nothing else can make progress."""
        machine = self._run.machine
        held = (*self._arrived, *self._queue)
        if machine is None or not held:
            return False
        if any(map(_is_cancelled, held)):
            return False  # it is about to be cancelled
        resting = steps_at_rest(self._run)
        return sum(queue.begun for queue in machine.queues) == len(held) + len(resting)

    def first(self) -> _HeldInvocation:
        """Return the invocation to release next."""
        places = {worker: place for place, worker in enumerate(self._run.workers)}
        self._arrived.sort(key=lambda held: (held.step.index, places[held.worker]))
        self._queue += self._arrived
        self._arrived.clear()
        return self._queue[0]

    def let_through(self, held: _HeldInvocation) -> None:
        """Release an invocation."""
        if held in self._queue:
            self._queue.remove(held)
        held.open()


def _is_cancelled(held: _HeldInvocation) -> bool:
    node = held.worker.node
    return node is not None and node.is_cancelled


class _GatedLimiter:
    """The limiter of a step in a stepped run: its gate, and then the step's own limiter."""

    def __init__(self, gates: _StepGates, step: Step) -> None:
        self._gates = gates
        self.step = step
        self._limiter: Any = step.options.limiter
        self._places: dict[object, Any] = {}

    @property
    def holds_nothing(self) -> bool:
        """Whether invocations that have passed hold nothing that others wait for."""
        return self._limiter is None or leaves_nothing(self._limiter)

    async def __aenter__(self) -> None:
        worker = await self._gates.pass_through(self.step)
        limiter = self._limiter
        if limiter is not None:
            place = place_in(limiter, self.step)
            await place.__aenter__()
            if isinstance(place, Place):
                worker.turn = place
            self._places[current_backend().current_task()] = place

    async def __aexit__(self, *exc_info: object) -> None:  # noqa: ASYNC910
        if self._limiter is not None:
            place = self._places.pop(current_backend().current_task())
            await place.__aexit__(*exc_info)  # noqa: ASYNC102 - like the limiter itself


@final
class SteppedRun(Generic[R]):
    """A run that advances one invocation at a time; see :func:`step_through`."""

    def __init__(self, workflow: Workflow[R], expected: Expectations, **given: Any) -> None:
        self._handler, self._session = open_session(workflow, expected, **given)
        self._gates = _StepGates(self._session.run, self._session.wake)
        steps: list[Step] = []
        for step in self._session.run.graph.steps:
            gate = _GatedLimiter(self._gates, step)
            # The step belongs to this run only, so its options can refer to the gate.
            gate.step = attrs.evolve(step, options=attrs.evolve(step.options, limiter=gate))
            steps.append(gate.step)
        self._session.alter(steps)
        self._current: _HeldInvocation | None = None
        self._is_entered = False
        self._result: WorkflowTestResult[R] | None = None

    async def __aenter__(self) -> Self:
        """Start the run. Not a checkpoint."""
        await self._handler.__aenter__()
        self._is_entered = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancel the rest of the run, and wait until it has unwound. A checkpoint.

        Raises:
            BaseException: As :func:`run_workflow`, if the run reached its end. If it was left
                early: the failure of a step that has ended, or of the clean-up.
        """
        self._is_entered = False
        if not self._handler.is_done():
            self._session.is_ended_early = True
            self._handler.cancel("step_through() was left")
        if error is None:
            mark_observed(self._handler)  # conclude() raises the failures
        try:
            await self._handler.__aexit__(kind, error, trace)  # noqa: ASYNC102 - like a nursery
        finally:
            self._session.end()
        if error is None:
            self._result = self._session.conclude()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepInvocation:
        """Release the last invocation, and return the next one before it begins.

        A checkpoint. A cancellation does not affect the run, which continues to its next gate.

        Raises:
            StopAsyncIteration: The run is over.
            AssertionError: A question has no answer.
            WorkflowRuntimeError: It was called outside of the ``async with`` block.
        """
        if not self._is_entered:
            msg = (
                "step_through() was iterated outside of its block; expected "
                "`async with step_through(workflow) as steps:` around `async for ... in steps:`"
            )
            raise WorkflowRuntimeError(msg)
        if self._current is not None:
            self._gates.let_through(self._current)
            self._current = None
        await current_backend().checkpoint()
        await self._session.watch(self._gates.is_still)
        if self._handler.is_done():
            raise StopAsyncIteration
        self._current = held = self._gates.first()
        event, attempt = held.worker.delivered()
        number = len(self._session.invocations) + 1
        return StepInvocation(number, held.step.name, event, attempt)

    @property
    def events(self) -> tuple[Event, ...]:
        """The events on the stream so far."""
        return tuple(self._session.events)

    @property
    def steps(self) -> tuple[StepInvocation, ...]:
        """The invocations that have begun, in order."""
        return tuple(self._session.invocations)

    @property
    def state(self) -> Any:
        """The current state; read only."""
        return open_store(self._session.run).snapshot_state()

    @property
    def status(self) -> str:
        """As :attr:`sluicegate.WorkflowHandler.status`."""
        return self._handler.status

    @property
    def ctx(self) -> Context[Any]:
        """The context of the run, to change its state or to take a snapshot."""
        return outer_context(StepOperations(self._session.run))

    @property
    def result(self) -> WorkflowTestResult[R]:
        """The result of the run, once the block has ended.

        Raises:
            WorkflowRuntimeError: The block has not ended, or it ended with an exception.
        """
        if self._result is None:
            msg = "the run is not over; expected `steps.result` after the block of step_through()"
            raise WorkflowRuntimeError(msg)
        return self._result


def step_through(
    workflow: Workflow[R],
    *,
    start_event: StartEvent | None = None,
    ctx: Context[Any] | None = None,
    answers: Answers = (),
    recorded: Recorded | None = None,
    resources: Resources | None = None,
    expose_internal: bool = True,
    exclude_events: Iterable[type[Event]] = (),
    raises: Raises = (),
    **fields: Any,
) -> SteppedRun[R]:
    """Return a run that pauses before each invocation of a step, not yet started.

    ::

        async with step_through(Writer(), topic="locks") as steps:
            async for invocation in steps:
                print(invocation.step, invocation.event, steps.state)
        print(steps.result.result)

    The loop gets each invocation before it begins, and releases it by asking for the next one. One
    runs at a time: the next is returned when every running invocation has ended, or waits for an
    event, a branch or a child. The order is always the same. An invocation that is held has opened
    no resource, and its timeout has not begun; the run's timeout keeps running. Questions are
    answered while the loop waits for the next invocation. Leaving the block early cancels the run.
    Steps that wait for each other by other means than the context, such as a ``trio.Event``, cannot
    be stepped.

    Args:
        workflow: The workflow.
        start_event: The start event; this and the following as for :func:`run_workflow`.
        ctx: The context to begin with.
        answers: The answers to the run's questions.
        recorded: For names of steps, the results to return instead of calling them.
        resources: For factories, the values to use instead.
        expose_internal: Whether to collect the engine's internal events.
        exclude_events: Classes of events not to collect.
        raises: The exception class, or classes, that the run must fail with.
        **fields: The fields of the start event.

    Raises:
        TypeError: As :func:`run_workflow`.
        ValueError: As :func:`run_workflow`.
        WorkflowRuntimeError: As :func:`run_workflow`.
    """
    check_workflow(workflow, "step_through")
    expected = Expectations(
        answers=answers,
        expose_internal=expose_internal,
        exclude_events=tuple(exclude_events),
        raises=raises,
    )
    return SteppedRun(
        workflow,
        expected,
        recorded=recorded,
        resources=resources,
        start_event=start_event,
        ctx=ctx,
        fields=fields,
    )
