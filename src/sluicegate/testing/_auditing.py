"""Observes a run of a scenario, and audits what a run still holds after its end."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import attrs

from sluicegate._engine.ending import fail
from sluicegate._engine.entered import has_to_be_entered, is_async_manager
from sluicegate._engine.probe import Probe
from sluicegate._errors import brief
from sluicegate._events import (
    Event,
    InputRequiredEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowDetachedEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    untagged,
)
from sluicegate._handler import run_of
from sluicegate._loop import current_backend
from sluicegate._loop.limits import RateLimiter, RateLimiterPortion
from sluicegate.testing._altering import with_steps


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sluicegate._context import Context
    from sluicegate._definition.resources import ResourcePlan
    from sluicegate._definition.steps import Step
    from sluicegate._engine.journal import InFlight
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.resource_scopes import ResourceScope
    from sluicegate._engine.run import Run
    from sluicegate._handler import WorkflowHandler
    from sluicegate.testing._sweeps.trial import Trial


#: For each final status of a run, the class of the event that ends its stream.
TERMINAL: Final[dict[str, type[StopEvent]]] = {
    "completed": StopEvent,
    "failed": WorkflowFailedEvent,
    "timed_out": WorkflowTimedOutEvent,
    "cancelled": WorkflowCancelledEvent,
    "detached": WorkflowDetachedEvent,
}


class StepStruckError(Exception):
    """Raised by a step of a :func:`workflow_scenario` that was cancelled as a target.

    ``sweep(scenario, target="step:draft")`` cancels one invocation of a step. If a scope or a
    timeout cancels it, the step has no result, and raises this as its own failure.
    """


# -- observing a run --------------------------------------------------------------------


class _Manager:
    """Wraps a context manager that is a resource, and reports when it opens and closes."""

    def __init__(self, watch: ScenarioWatch, plan: ResourcePlan, manager: Any) -> None:
        self.plan = plan
        self.closings = 0
        self.is_closed = False
        self.owner: object = None
        self._watch = watch
        self._manager = manager
        self._is_async = is_async_manager(manager)

    async def __aenter__(self) -> Any:
        manager = self._manager
        value = await manager.__aenter__() if self._is_async else manager.__enter__()
        self._watch.opened(self)
        return value  # noqa: ASYNC910 - like the manager itself

    async def __aexit__(self, *exc_info: object) -> Any:
        manager = self._manager
        self._watch.closes(self)
        try:
            if self._is_async:
                return await manager.__aexit__(*exc_info)  # noqa: ASYNC102 - the caller shields
            return manager.__exit__(*exc_info)  # noqa: ASYNC910
        finally:
            self.is_closed = True


class ScenarioWatch(Probe):
    """Observes one run of a scenario, and collects the problems that show at once."""

    def __init__(self, trial: Trial, run: Run) -> None:
        self.trial = trial
        self.run = run
        #: The workflow's own graph.
        self.graph = run.graph
        #: The number of the first event of this run on its stream.
        self.first = run.log.next
        #: The machine, and the invocations in progress, when the run ended.
        self.machine: Machine | None = None
        self.in_flight: tuple[InFlight, ...] = ()
        #: The run's scope of resources, and its child runs.
        self.resources: ResourceScope | None = None
        self.children: list[Run] = []
        self.problems: list[str] = []
        #: Problems that do not count if an error was injected into an await of the engine.
        self.disorder: list[str] = []
        #: The events that the run published, and those that its stream took.
        self.written: list[Event] = []
        self.logged: list[Event] = []
        #: The stop events that steps returned.
        self.stops: list[StopEvent] = []
        #: Returns the message with which a run fails that asks a question without an answer.
        self.refuse: Callable[[Event], str] | None = None
        #: The exceptions of steps that were cancelled as targets.
        self.struck: list[BaseException] = []
        self.working: Counter[str] = Counter()
        self._opened: list[_Manager] = []
        self._plans: dict[int, ResourcePlan] = {}

    def run_began(self) -> None:
        """Keep the scope of resources, which the run drops at its end."""
        self.resources = self.run.resources

    def run_ended(self) -> None:
        """Keep the state that the run drops after this."""
        self.machine, self.in_flight = self.run.machine, tuple(self.run.in_flight or ())

    def published(self, event: Event) -> None:
        """Note an event that the run published."""
        self.written.append(event)

    def child_began(self, context: Context[Any], child: Any) -> None:  # noqa: ARG002
        """Note a child run; the audit looks at it as well."""
        self.children.append(child)

    def log(self, event: Event) -> None:
        """Note an event that the stream has taken."""
        if isinstance(event, StopEvent) and (busy := +self.working):
            self.problems.append(f"the stream ended while steps ran: {', '.join(busy)}")
        self.logged.append(event)
        asked = untagged(event)
        if self.refuse is not None and isinstance(asked, InputRequiredEvent):
            fail(self.run, AssertionError(self.refuse(asked)))

    def alter(self, step: Step) -> Step:
        """Return a copy of a step that can be a target, and whose resources are observed."""

        async def call(*arguments: Any) -> Any:
            self.working[step.name] += 1
            if self.working[step.name] - self._away(step) > step.num_workers:
                self.problems.append(
                    f"more than {step.num_workers} workers at a time ran {step.label}"
                )
            try:
                with self.trial.target(f"step:{step.name}"):
                    try:
                        result = await step.function(*arguments)
                        if isinstance(result, StopEvent):
                            self.stops.append(result)
                        return result
                    except BaseException as error:
                        backend = current_backend()
                        if isinstance(error, backend.Cancelled) and not backend.is_cancelled():
                            self.struck.append(error)  # natively
                        raise
            finally:
                self.working[step.name] -= 1
            struck = StepStruckError(f"the step {step.label} was cancelled as a target")
            self.struck.append(struck)
            raise struck

        plans = tuple((place, self._plan(plan)) for place, plan in step.resources)
        return attrs.evolve(step, function=call, elsewhere=None, resources=plans)

    def _away(self, step: Step) -> int:
        """Return how many invocations of a step have released their place while they wait."""
        machine = self.run.machine
        return 0 if machine is None else machine.queues[step.index].away

    def is_of_target(self, error: BaseException | None) -> bool:
        """Whether a failure was caused by a step that was cancelled as a target."""
        while error is not None and not any(error is struck for struck in self.struck):
            error = error.__cause__
        return error is not None

    def _plan(self, plan: ResourcePlan) -> ResourcePlan:
        known = self._plans.get(id(plan))
        if known is None:
            needs = tuple((name, self._plan(needed)) for name, needed in plan.needs)

            def make(**arguments: Any) -> Any:
                made = plan.make(**arguments)
                return (
                    self._later(plan, made) if inspect.iscoroutine(made) else self._in(plan, made)
                )

            known = self._plans[id(plan)] = attrs.evolve(plan, make=make, needs=needs)
        return known

    async def _later(self, plan: ResourcePlan, made: Any) -> Any:
        return self._in(plan, await made)

    def _in(self, plan: ResourcePlan, made: Any) -> Any:
        return _Manager(self, plan, made) if has_to_be_entered(plan, made) else made

    def opened(self, resource: _Manager) -> None:
        """Note that a resource has opened."""
        plan = resource.plan
        is_shared = plan.scope != "step"
        if is_shared and any(r.plan.key == plan.key and not r.is_closed for r in self._opened):
            self.problems.append(f"the resource {plan.name} was opened twice in one {plan.scope}")
        resource.owner = plan.scope if is_shared else current_backend().current_task()
        self._opened.append(resource)

    def closes(self, resource: _Manager) -> None:
        """Note that a resource is about to close."""
        name = resource.plan.name
        resource.closings += 1
        if resource not in self._opened:
            self.problems.append(f"the resource {name} was closed, but had not been opened")
        elif resource.closings > 1:
            self.problems.append(f"the resource {name} was closed {resource.closings} times")
        elif resource.plan.scope == "step" or self.run.outcome.status:  # not alone
            for later in self._opened[self._opened.index(resource) + 1 :]:
                if later.owner == resource.owner and not later.is_closed:
                    self.disorder.append(f"the resource {name} was closed before {later.plan.name}")

    def left_open(self) -> Iterator[str]:
        """Yield the resources that are open after the end."""
        for resource in self._opened:
            if not resource.closings:
                yield f"the resource {resource.plan.name} was not closed"


def watched(handler: WorkflowHandler[Any], trial: Trial) -> ScenarioWatch:
    """Watch the run of a handler that is not yet started; the workflow stays unchanged."""
    run = run_of(handler)
    run.probe = watch = ScenarioWatch(trial, run)
    run.graph = with_steps(run.graph, map(watch.alter, run.graph.steps))
    run.log.forward = watch.log
    return watch


# -- the audit -----------------------------------------------------------------------------------


def audit(handler: Any) -> list[str]:
    """Return what a run that is over still holds.

    Call it while no other run shares the workflow, or a limiter of one of its steps.

    Args:
        handler: The run's handler.

    Returns:
        A text for each thing that is still registered, taken or held; empty if all is well.
    """
    return audit_run(run_of(handler))


def audit_run(run: Run) -> list[str]:
    """Return what is wrong with a run that is over; see :func:`audit`."""
    log, outcome = run.log, run.outcome
    found = [
        f"the run still holds {what}: {brief(left)}"
        for what, left in run.leftovers().items()
        if left
    ]
    if not (outcome.is_over and outcome.status in TERMINAL):
        found.append(f"the run is not over, its status is {outcome.status!r}")
    if not log.closed:
        found.append("the stream is not closed")
    machine, in_flight = run.machine, tuple(run.in_flight or ())
    if machine is not None and not machine.is_retired:
        found.append("the machine still holds the run")
    scopes, watch = [run.options.resources], run.probe
    if isinstance(watch, ScenarioWatch):
        machine, in_flight = watch.machine, watch.in_flight
        scopes.append(watch.resources)
        found += [f"in a child: {text}" for child in watch.children for text in audit_run(child)]
    if machine is not None:
        found += _audit_machine(machine, in_flight, has_stopped=outcome.stop_event is not None)
    for scope in scopes:
        if scope is not None and (left := scope.leftovers()):
            found.append(f"held in the {scope.scope}'s scope: {', '.join(left)}")
    limit = run.options.run_limit
    slots = None if limit is None else limit.on(run.loop)
    if slots is not None and (slots.inside or slots.waiting):
        found.append(f"num_concurrent_runs still counts runs: {slots!r}")
    for step in run.graph.steps:
        limiter = step.options.limiter
        found += [f"the limiter of {step.label} has {text}" for text in _held(limiter, run.loop)]
    return found


def _held(limiter: Any, loop: object) -> Iterator[str]:
    limiter = limiter.limiter if isinstance(limiter, RateLimiterPortion) else limiter
    if isinstance(limiter, RateLimiter):
        if waiting := limiter.waiting_on(loop):
            yield f"{waiting} waiting"
        return
    tell = getattr(limiter, "statistics", None)
    for name in ("borrowers", "owner", "tasks_waiting"):
        if tell is not None and (left := getattr(tell(), name, None)):
            yield f"{name} {left!r}"


def _audit_machine(
    machine: Machine, halted: tuple[InFlight, ...], *, has_stopped: bool
) -> Iterator[str]:
    left = {"waits": machine.waits, "answered": machine.answered, "resting": machine.resting}
    for what, steps in left.items():
        if steps:
            yield f"the machine has {what}: {brief(steps)}"
    waiting = delayed_count = 0
    nodes: list[BranchNode | None] = [invocation.node for invocation in halted]
    for queue in machine.queues:
        ready, delayed = queue.ready or [], queue.delayed or {}
        if queue.inbox is not None or queue.in_inbox:
            yield f"{queue.step.label} has {queue.pending} pending deliveries, but {len(ready)} are queued"
        # An invocation cancelled in its wait continues beside those that have got its place.
        forced = sum(invocation.step is queue.step for invocation in halted) + has_stopped
        if not 0 <= queue.running <= queue.limit + forced:
            yield f"{queue.step.label} has {queue.running} of {queue.limit} workers"
        if queue.away or queue.returning:
            yield f"{queue.step.label} has {queue.away} released places"
        waiting += sum(node is None or not node.is_cancelled for _, node in ready)
        delayed_count += len(delayed)
        nodes += [*(node for _, node in ready), *delayed.values()]
    in_progress = len(halted) + has_stopped
    if machine.alive != waiting + delayed_count + in_progress:
        yield (
            f"the machine counts {machine.alive} deliveries, but {waiting} are queued, {delayed_count} "
            f"are delayed, and {in_progress} were in progress"
        )
    for node in {around for inner in nodes if inner for around in inner.upward()}:
        if node.cancel_record is not None and (
            node.cancel_record.running or node.cancel_record.waiters
        ):
            yield "a branch has steps that run, or tasks that wait for it"
