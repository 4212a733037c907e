"""Isolation: one step by itself, with everything that it does recorded and nothing delivered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._engine.machine import Machine
from sluicegate._engine.resource_scopes import ResourceScope
from sluicegate._engine.run import RunOptions
from sluicegate._engine.runner import Runner
from sluicegate._engine.step_operations import spent_branch
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import Event, StopEvent
from sluicegate._handler import WorkflowHandler
from sluicegate._state.drafts import DictState
from sluicegate._state.store import StateStore
from sluicegate._streams import EventLog
from sluicegate.testing._altering import Replacing, step_named
from sluicegate.testing._records import StepOutcome
from sluicegate.testing._running import check_workflow, run_session
from sluicegate.testing._session import Expectations, Session, WatchedRunner


if TYPE_CHECKING:
    from sluicegate._context import Branch, Context
    from sluicegate._definition.graph import Graph
    from sluicegate._definition.steps import Step
    from sluicegate._workflow import Workflow
    from sluicegate.testing._altering import Resources
    from sluicegate.testing._answering import Answers
    from sluicegate.testing._session import Raises


class StepEnded(StopEvent):
    """The step that ran by itself has ended."""

    value: Any


class _Delivery:
    """What a run begins with that has no start event: one delivery, at one step."""

    elapsed = 0.0
    retried = 0

    def __init__(self, index: int, event: Any) -> None:
        self._index = index
        self._event = event

    def load(self, _run: Runner, machine: Machine) -> None:
        """Put it in."""
        machine.enqueue(machine.queues[self._index], self._event, None)


def _unused(*_: object) -> Any:
    raise NotImplementedError


class _SoleRunner(WatchedRunner):
    """A run of one step: what the step sends is noted, and goes nowhere."""

    __slots__ = ("sole",)

    sole: _Sole

    def send(self, context: Context[Any], event: Event, target: str | None) -> Branch:
        """Note what is sent, if it may be sent at all."""
        self.check_thread("send_event")
        if not self.outcome.status:
            assert context._step is not None
            self.sole.books.check_sendable(context._step.index, event, target)
            self.sole.sent.append((event, target))
        return spent_branch()


class _Sole:
    """The step that runs by itself; stands in for its function."""

    def __init__(self, graph: Graph, step: Step) -> None:
        self._graph = graph
        self._step = step
        self.sent: list[tuple[Event, str | None]] = []
        #: Knows what may be sent; nothing is delivered by it.
        self.books = Machine(graph, _unused, _unused, _unused)
        self.session: Session | None = None

    async def __call__(self, workflow: object, *arguments: Any) -> StepEnded:
        """Run the step, and check what it returns as the engine does."""
        kept = len(self.sent)
        try:
            result = await self._step.function(workflow, *arguments)
        except BaseException:
            if self._step.holds_sends:
                del self.sent[kept:]
            raise
        try:
            self._check(result)
        except WorkflowRuntimeError as error:
            assert self.session is not None
            self.session.fail(error)  # no retry and no handler has to do with it
            raise
        return StepEnded(value=result)

    def _check(self, result: Any) -> None:
        graph, step = self._graph, self._step
        for event in cast("list[Any]", result) if isinstance(result, list) else (result,):
            if isinstance(event, Event):
                graph.adopt(event, step.index)
        if isinstance(result, list):
            if not step.fans_out:
                graph.output(step.index, list)  # raises, and says what was expected
            for event in cast("list[Any]", result):
                graph.output(step.index, cast("type[Any]", type(event)), in_list=True)
        elif result is not None:
            graph.output(step.index, cast("type[Any]", type(result)))
        elif not step.may_end:
            graph.check_none(step)

    def stand_in(self, altered: Step) -> Step:
        """Return ``altered`` with this in the place of its function."""
        signature = altered.signature
        return attrs.evolve(
            altered,
            function=self.__call__,
            elsewhere=None,  # the function itself goes there
            signature=attrs.evolve(signature, returns=(*signature.returns, StepEnded)),
        )


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

    The step runs as in a run of its own, with its timeout, its retries, its limiter, its thread
    or process, and a context on which everything works. What it sends and what it returns is
    checked against its signature and goes nowhere: no other step runs, and a branch that it sends is
    over at once. Failures are not handed to a handler. Resources of the workflow's scope
    are made for this call. A checkpoint; cancelled, the step has unwound.

    Args:
        workflow: The workflow object; it is ``self`` in the step.
        step: The name of the step.
        *events: What the step takes: its event; for a join, the list of events; for a step with
            several event parameters, one for each, in their order.
        state: The state to begin with: an object of its class, or a mapping where the workflow
            declares none. By default a new one.
        resources: For factories of resources (or ``ResourceConfig`` objects), the values to give
            in their place; these are neither entered nor closed.
        answers: What is said when the step asks; see :func:`run_workflow`.
        raises: What the step is to fail with; the failure is then in the outcome.

    Returns:
        What the step did.

    Raises:
        Exception: What the step raised, unless ``raises`` names its class: that very object.
        WorkflowRuntimeError: It returned or sent what it does not declare.
        AssertionError: A question had no answer, or not all listed answers were asked for; the step
            waits for an event that no answer gives; it ended well, and ``raises`` was given.
        TypeError: The events, or the state, are not of the classes that the step declares.
        ValueError: There is no such step; or it does not ask for a resource that is replaced.
    """
    check_workflow(workflow, "run_step")
    graph = workflow._built()
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
        runner = Runner(
            workflow,
            graph,
            run_id=f"run_step({step})",
            start_event=None,
            log=EventLog(window=1, history=1),
            options=RunOptions(resources=scope),
            state_store=store,
            resumed=cast("Any", _Delivery(real.index, event)),
        )
        session = Session(runner, expected, kind=_SoleRunner)
        sole = _prepare(session, altered)
        await run_session(WorkflowHandler[Any](session.runner), session)
    result = session.conclude()
    ended = result.stop_event
    return StepOutcome(
        returned=ended.value if isinstance(ended, StepEnded) else None,
        sent=tuple(event for event, _ in sole.sent),
        targets=tuple(target for _, target in sole.sent),
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


def _prepare(session: Session, step: Step) -> _Sole:
    """Have a run go by one step alone, which stands in for what the workflow has there."""
    graph = session.runner.graph
    sole = _Sole(graph, step)
    sole.session = session
    cast("_SoleRunner", session.runner).sole = sole
    steps = list(graph.steps)
    steps[step.index] = sole.stand_in(step)
    private = session.alter(steps)
    private.needs_scope = bool(step.resources)
    private.handlers = {}
    return sole


def _state_from(graph: Graph, state: Any) -> Any:
    """Return the state to begin with.

    Raises:
        TypeError: It is not of the class that the workflow declares.
    """
    if state is None:
        return None
    kind = graph.state_type or DictState
    if kind is DictState and isinstance(state, Mapping):
        return DictState(cast("Mapping[str, Any]", state))
    if type(state) is not kind:
        how = "a mapping: state={...}" if kind is DictState else f"state={kind.__name__}(...)"
        msg = f"state={brief(state)} is no state of {graph.name}; expected {how}"
        raise TypeError(msg)
    return state


def _checked(graph: Graph, step: Step, events: tuple[Any, ...]) -> object:
    """Return what the engine gives to a step, of what it is to be given here.

    Raises:
        TypeError: It does not fit the signature of the step.
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
            f"the step {step.name} of {graph.name} was given {got}; expected "
            f"run_step(workflow, {step.name!r}, {shown})"
        )
        raise TypeError(msg)
    return cast("object", given)
