"""Runs one step by itself; records everything that it does, and delivers nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._engine.machine import Machine
from sluicegate._engine.resource_scopes import ResourceScope
from sluicegate._engine.run import Run, RunOptions
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import Event, StopEvent
from sluicegate._handler import WorkflowHandler
from sluicegate._state.drafts import DictState
from sluicegate._state.store import StateStore
from sluicegate._streams import EventLog
from sluicegate._workflow import graph_in
from sluicegate.testing._altering import Replacing, step_named
from sluicegate.testing._records import StepOutcome
from sluicegate.testing._running import check_workflow, run_session
from sluicegate.testing._session import Expectations, Session


if TYPE_CHECKING:
    from sluicegate._context import Context
    from sluicegate._definition.graph import Graph
    from sluicegate._definition.steps import Step
    from sluicegate._workflow import Workflow
    from sluicegate.testing._altering import Resources
    from sluicegate.testing._answering import Answers
    from sluicegate.testing._session import Raises


class StepEnded(StopEvent):
    """Ends the run of a step that is run by itself."""

    value: Any


class _Delivery:
    """The saved run to begin with instead of a start event: one delivery, at one step."""

    elapsed = 0.0
    retried = made = 0

    def __init__(self, index: int, event: Any) -> None:
        self.children: dict[str, Any] = {}
        self.questions: list[Any] = []
        self._index = index
        self._event = event

    def load(self, _run: Run, machine: Machine) -> None:
        """Queue the delivery."""
        machine.enqueue(machine.queues[self._index], self._event, None)


def _unused(*_: object) -> Any:
    raise NotImplementedError


class _StepSession(Session):
    """A session of a run of one step: replaces the step's function, and keeps what it sends.

    Args:
        run: The run, not yet started.
        expected: See :class:`Session`.
        step: The step, with its resources replaced.
    """

    def __init__(self, run: Run, expected: Expectations, step: Step) -> None:
        super().__init__(run, expected)
        self._step = step
        self.outgoing: list[tuple[Event, str | None]] = []
        #: Checks what is sent; delivers nothing.
        self._machine = Machine(run.graph, _unused, _unused, _unused)
        signature = step.signature
        steps = list(run.graph.steps)
        steps[step.index] = attrs.evolve(
            step,
            function=self._call,
            elsewhere=None,  # _call() runs in the loop, and the function itself elsewhere
            signature=attrs.evolve(signature, returns=(*signature.returns, StepEnded)),
        )
        graph = self.alter(steps)
        graph.needs_scope = bool(step.resources)
        graph.handlers = {}

    def sent(self, context: Context[Any], event: Event, target: str | None) -> bool:  # noqa: ARG002
        """Check and keep the event; it is not delivered."""
        self._machine.check_sendable(self._step.index, event, target)
        self.outgoing.append((event, target))
        return False

    async def _call(self, workflow: object, *arguments: Any) -> StepEnded:
        """Run the step, and check its result as the engine does."""
        kept = len(self.outgoing)
        try:
            result = await self._step.function(workflow, *arguments)
        except BaseException:
            if self._step.holds_sends:
                del self.outgoing[kept:]
            raise
        try:
            self._check(result)
        except WorkflowRuntimeError as error:
            self.fail(error)  # without a retry or a handler
            raise
        return StepEnded(value=result)

    def _check(self, result: Any) -> None:
        graph, step = self._graph, self._step
        for event in cast("list[Any]", result) if isinstance(result, list) else (result,):
            if isinstance(event, Event):
                graph.adopt(event, step.index)
        if isinstance(result, list):
            if not step.fans_out:
                graph.output(step.index, list)  # raises
            for event in cast("list[Any]", result):
                graph.output(step.index, cast("type[Any]", type(event)), in_list=True)
        elif result is not None:
            graph.output(step.index, cast("type[Any]", type(result)))
        elif not step.may_end:
            graph.check_none(step)


async def run_step(
    workflow: Workflow[Any],
    step: str,
    *events: Any,
    state: Any = None,
    resources: Resources | None = None,
    answers: Answers = (),
    raises: Raises = (),
) -> StepOutcome:
    """Run one step of a workflow by itself, within this call, and return everything that it did.

    The step runs as in a normal run, with its timeout, retries, limiter, thread or process, and with
    a fully working context. The events that it sends and returns are checked against its signature
    and are not delivered: no other step runs, and a branch that it sends is over at once. Failures
    are not passed to a handler. Resources of the workflow's scope are created for this call. A
    checkpoint; when cancelled, it raises after the step has unwound.

    Args:
        workflow: The workflow object; it is ``self`` in the step.
        step: The name of the step.
        *events: The arguments of the step: its event, or the list of events of a join. A step with
            several event parameters needs one event per parameter, in order.
        state: The initial state: an object of its class, or a mapping if the workflow declares no
            class. Default: a new state.
        resources: For factories of resources (or ``ResourceConfig`` objects), the values to use
            instead; they are neither entered nor closed.
        answers: The answers to the step's questions; see :func:`run_workflow`.
        raises: The exception class, or classes, that the step must fail with. The failure is then
            in the outcome.

    Returns:
        The result: everything that the step did.

    Raises:
        Exception: The step's exception, unless ``raises`` names its class; the original object.
        WorkflowRuntimeError: The step returned or sent an event that it does not declare.
        AssertionError: A question had no answer, or the step did not ask for all listed answers;
            the step waits for an event that no answer gives; it succeeded and ``raises`` was given.
        TypeError: The events, or the state, are not of the classes that the step declares.
        ValueError: There is no such step, or it does not use a replaced resource.
    """
    check_workflow(workflow, "run_step")
    graph = graph_in(workflow)
    real = step_named(graph, step, "run_step()")
    event = _checked(graph, real, events)
    altered = real
    if resources:
        replacing = Replacing(resources)
        altered = replacing.alter(real)
        replacing.check_used(f"the step {step} of {graph.name}")
    expected = Expectations(answers=answers, raises=raises, expose_internal=False)
    store = StateStore[Any](graph.state_type, _state_from(graph, state))
    async with ResourceScope("workflow") as scope:
        run = Run(
            workflow,
            graph,
            run_id=f"run_step({step})",
            start_event=None,
            log=EventLog(window=1, history=1),
            options=RunOptions(resources=scope),
            state_store=store,
            resumed=cast("Any", _Delivery(real.index, event)),
        )
        session = _StepSession(run, expected, altered)
        await run_session(WorkflowHandler[Any](run), session)
    result = session.conclude()
    ended = result.stop_event
    return StepOutcome(
        returned=ended.value if isinstance(ended, StepEnded) else None,
        sent=tuple(event for event, _ in session.outgoing),
        targets=tuple(target for _, target in session.outgoing),
        published=tuple(e for e in result.events if not isinstance(e, StopEvent)),
        steps=tuple(
            attrs.evolve(done, result=done.result.value)
            if isinstance(done.result, StepEnded)
            else done
            for done in result.steps
        ),
        error=result.error,
        state=result.state,
    )


def _state_from(graph: Graph, state: Any) -> Any:
    """Return the initial state.

    Raises:
        TypeError: The state is not of the class that the workflow declares.
    """
    if state is None:
        return None
    kind = graph.state_type or DictState
    if kind is DictState and isinstance(state, Mapping):
        return DictState(cast("Mapping[str, Any]", state))
    if type(state) is not kind:
        how = "a mapping: state={...}" if kind is DictState else f"state={kind.__name__}(...)"
        msg = f"state={brief(state)} is not a state of {graph.name}; expected {how}"
        raise TypeError(msg)
    return state


def _checked(graph: Graph, step: Step, events: tuple[Any, ...]) -> object:
    """Return the delivery for the events of a step.

    Raises:
        TypeError: The events do not fit the signature of the step.
    """
    names = [kind.__name__ for kind in step.accepts]
    shown = ", ".join(f"{name}(...)" for name in names)
    given: object = events[0] if len(events) == 1 else None
    if step.takes == "slot":
        given = events
        fits = len(events) == len(step.accepts) and all(map(isinstance, events, step.accepts))
    elif step.takes == "list":
        shown = f"[{names[0]}(...), ...]"
        listed: list[Any] = cast("list[Any]", given) if isinstance(given, list) else [None]
        fits = all(isinstance(event, step.accepts) for event in listed)
    else:
        shown = f"{' or '.join(names)}(...)"
        fits = isinstance(given, step.accepts)
    if not fits:
        got = ", ".join(brief(event) for event in events) or "no event"
        msg = (
            f"the step {step.name} of {graph.name} got {got}; expected "
            f"run_step(workflow, {step.name!r}, {shown})"
        )
        raise TypeError(msg)
    return cast("object", given)
