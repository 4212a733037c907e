"""Auditing: what a run is seen to do, and what its books must not hold once it is over."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import attrs

from sluicegate._engine.entered import _is_async_manager, has_to_be_entered
from sluicegate._engine.runner import Runner
from sluicegate._errors import brief
from sluicegate._events import (
    ChildEvent,
    Event,
    InputRequiredEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from sluicegate._loop import current_backend, enable_ki_protection
from sluicegate.testing._altering import with_steps


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sluicegate._definition.resources import ResourcePlan
    from sluicegate._definition.steps import Step
    from sluicegate._engine.journal import InFlight
    from sluicegate._engine.lineage import BranchNode
    from sluicegate._engine.machine import Machine
    from sluicegate._engine.resource_scopes import ResourceScope
    from sluicegate._handler import WorkflowHandler
    from sluicegate._loop import Backend
    from sluicegate.testing._sweeps.trial import Trial


#: How a run ends, and the class of the event that ends its stream.
TERMINAL: Final[dict[str, type[StopEvent]]] = {
    "completed": StopEvent,
    "failed": WorkflowFailedEvent,
    "timed_out": WorkflowTimedOutEvent,
    "cancelled": WorkflowCancelledEvent,
}


class StepStruckError(Exception):
    """Raised by a step of a :func:`workflow_scenario` that was cancelled by itself.

    ``sweep(scenario, target="step:draft")`` cancels one invocation of a step. By a scope or a
    timeout the step is left without a result; then it raises this, as its own failure.
    """


# -- what a run is seen to do --------------------------------------------------------------------


class _Manager:
    """Stands in for a context manager that is a resource, and tells when it opens and closes."""

    def __init__(self, watch: ScenarioWatch, plan: ResourcePlan, manager: Any) -> None:
        self.plan = plan
        self.closings = 0
        self.is_closed = False
        self.owner: object = None
        self._watch = watch
        self._manager = manager
        self._is_async = _is_async_manager(manager)

    async def __aenter__(self) -> Any:
        manager = self._manager
        value = await manager.__aenter__() if self._is_async else manager.__enter__()
        self._watch.opened(self)
        return value  # noqa: ASYNC910 - as the manager's own

    async def __aexit__(self, *exc_info: object) -> Any:
        manager = self._manager
        self._watch.closes(self)
        try:
            if self._is_async:
                return await manager.__aexit__(*exc_info)  # noqa: ASYNC102 - who closes shields
            return manager.__exit__(*exc_info)  # noqa: ASYNC910
        finally:
            self.is_closed = True


class ScenarioWatch:
    """What one run of a scenario was seen to do, and what was wrong with it at once."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.runner: AuditedRunner
        self.problems: list[str] = []
        #: What is wrong unless an error was put in place of an await of the engine's.
        self.disorder: list[str] = []
        #: What the run said it publishes, and what its stream took.
        self.published: list[Event] = []
        self.logged: list[Event] = []
        #: The stop events that steps returned.
        self.stops: list[StopEvent] = []
        #: Tells what a run fails with that asks a question, where nobody answers any.
        self.refuse: Callable[[Event], str] | None = None
        #: What left steps that were cancelled by themselves.
        self.struck: list[BaseException] = []
        self.working: Counter[str] = Counter()
        self._opened: list[_Manager] = []
        self._plans: dict[int, ResourcePlan] = {}

    def log(self, event: Event) -> None:
        """Note what the stream has taken."""
        if isinstance(event, StopEvent) and (busy := +self.working):
            self.problems.append(f"the stream ended while steps ran: {', '.join(busy)}")
        self.logged.append(event)
        asked = event.event if isinstance(event, ChildEvent) else event
        if self.refuse is not None and isinstance(asked, InputRequiredEvent):
            self.runner.fail(AssertionError(self.refuse(asked)))

    def alter(self, step: Step) -> Step:
        """Return a step that can be a target, and whose resources are watched."""

        async def call(*arguments: Any) -> Any:
            self.working[step.name] += 1
            if self.working[step.name] - self._away(step) > step.num_workers:
                self.problems.append(f"more than {step.num_workers} at a time ran {step.label}")
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
            struck = StepStruckError(f"the step {step.label} was cancelled by itself")
            self.struck.append(struck)
            raise struck

        plans = tuple((place, self._plan(plan)) for place, plan in step.resources)
        return attrs.evolve(step, function=call, elsewhere=None, resources=plans)

    def _away(self, step: Step) -> int:
        """Return how many invocations of a step have given up their place for as long as they wait."""
        machine = self.runner.machine
        return 0 if machine is None else machine.queues[step.index].away

    def is_of_target(self, error: BaseException | None) -> bool:
        """Whether a failure came of a step that was cancelled by itself."""
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
        """Note that a resource is open."""
        plan = resource.plan
        is_shared = plan.scope != "step"
        if is_shared and any(r.plan.key == plan.key and not r.is_closed for r in self._opened):
            self.problems.append(f"the resource {plan.name} was opened twice in one {plan.scope}")
        resource.owner = plan.scope if is_shared else current_backend().current_task()
        self._opened.append(resource)

    def closes(self, resource: _Manager) -> None:
        """Note that a resource begins to close."""
        name = resource.plan.name
        resource.closings += 1
        if resource not in self._opened:
            self.problems.append(f"the resource {name} was closed, and had not been opened")
        elif resource.closings > 1:
            self.problems.append(f"the resource {name} was closed {resource.closings} times")
        elif resource.plan.scope == "step" or not self.runner.is_running:  # not by itself
            for later in self._opened[self._opened.index(resource) + 1 :]:
                if later.owner == resource.owner and not later.is_closed:
                    self.disorder.append(f"the resource {name} was closed before {later.plan.name}")

    def left_open(self) -> Iterator[str]:
        """Yield what is wrong with resources after the end."""
        for resource in self._opened:
            if not resource.closings:
                yield f"the resource {resource.plan.name} was not closed"


class AuditedRunner(Runner):
    """A run whose books are kept to be looked at, and that tells what it publishes."""

    __slots__ = ("books", "child_runs", "first", "halted", "kept", "seen")

    #: The machine, and what workers were at when the run ended.
    books: Machine | None
    halted: tuple[InFlight, ...]
    #: The scope of its resources, and the runs that were children of it.
    kept: ResourceScope | None
    child_runs: list[Runner]
    seen: ScenarioWatch
    first: int

    @enable_ki_protection
    def publish(self, event: Event | None) -> None:
        """See the parent."""
        super().publish(event)
        if event is not None:
            self.seen.published.append(event)

    @enable_ki_protection
    def _publish(self, event: Event) -> None:
        self.seen.published.append(event)
        super()._publish(event)

    async def _host_run(self, backend: Backend, nursery: Any) -> None:
        self.kept = self.resources
        await super()._host_run(backend, nursery)

    async def run_child(self, context: Any, handler: Any, stream: Any) -> Any:
        """See the parent."""
        self.child_runs.append(handler._runner)
        return await super().run_child(context, handler, stream)

    @enable_ki_protection
    def _conclude(self, backend: Backend, interruption: BaseException | None) -> None:
        self.books = self.machine
        self.halted = tuple(self.in_flight or ())
        super()._conclude(backend, interruption)


def watched(handler: WorkflowHandler[Any], trial: Trial) -> ScenarioWatch:
    """Have a handler that is not yet started run what is watched; the workflow stays as it is."""
    watch, own = ScenarioWatch(trial), handler._runner
    handler._runner = watch.runner = runner = AuditedRunner(
        own.workflow,
        with_steps(own.graph, map(watch.alter, own.graph.steps)),
        run_id=own.run_id,
        start_event=own.start_event,
        log=own.log,
        options=own.options,
        state_store=own.state_store,
        resumed=own.resumed,
    )
    runner.seen, runner.child_runs, runner.first = watch, [], own.log.next
    runner.books, runner.halted, runner.kept = None, (), None
    own.log.forward = watch.log
    return watch


# -- the audit -----------------------------------------------------------------------------------


def audit(handler: Any) -> list[str]:
    """Look through the books of a run that is over.

    Call it while no other run goes on that shares the workflow, or a limiter of one of its steps.

    Args:
        handler: The run's handler.

    Returns:
        What is wrong: what is still registered, taken or held, one text for each.
    """
    runner: Runner = getattr(handler, "_runner", handler)
    log, clock, outcome = runner.log, runner.clock, runner.outcome
    books = {
        "workers": runner.workers,
        "delays before attempts": runner.timers,
        "children": runner.children,
        "a parent": runner.parent,
        "a nursery": runner.nursery,
        "the task that ran it": runner.host,
        "a place where that task waits": runner.parked,
        "a place in the line of runs": runner.queue_scope,
        "what watches its timeout": clock._scope,
        "a scope of resources": runner.resources and not runner.resources._is_over,
        "tasks that wait for its end": outcome.waiters,
        "senders that wait": log._senders,
        "readers that wait": log.waiting,
        "a parent's stream": log.outer,
        "a writer of its state": runner.state_store
        and (runner.state_store._writer or runner.state_store._queue),
    }
    found = [f"there is still {what}: {brief(left)}" for what, left in books.items() if left]
    if not (outcome.is_over and outcome.status in TERMINAL):
        found.append(f"the run is not over, its status is {outcome.status!r}")
    if not log.closed:
        found.append("the stream is not closed")
    machine, halted = runner.machine, tuple(runner.in_flight or ())
    if machine is not None and not machine.is_retired:
        found.append("the machine still holds the run")
    kept = [] if runner.options.resources is None else [runner.options.resources]
    if isinstance(runner, AuditedRunner):
        machine, halted = runner.books, runner.halted
        kept += [] if runner.kept is None else [runner.kept]
        found += [f"in a child: {text}" for child in runner.child_runs for text in audit(child)]
    if machine is not None:
        found += _audit_machine(machine, halted, has_stopped=outcome.stop_event is not None)
    for scope in kept:
        left = [*scope._building, *scope._opened]
        if left and (scope.scope == "run" or scope._manager is None):
            found.append(
                f"held in the {scope.scope}'s scope: {', '.join(e.plan.name for e in left)}"
            )
    limit = runner.options.run_limit
    slots = None if limit is None else limit._slots._things.get(runner.loop)
    if slots is not None and (slots.inside or slots.waiting):
        found.append(f"num_concurrent_runs still counts runs: {slots!r}")
    for step in runner.graph.steps:
        found += [f"the limiter of {step.label} has {text}" for text in _held(step.options.limiter)]
    return found


def _held(limiter: Any) -> Iterator[str]:
    tell = getattr(limiter, "statistics", None)
    for name in ("borrowers", "owner", "tasks_waiting"):
        if tell is not None and (left := getattr(tell(), name, None)):
            yield f"{name} {left!r}"
    for bucket in getattr(getattr(limiter, "_buckets", None), "_things", {}).values():
        if len(bucket._queue):
            yield f"{len(bucket._queue)} in its queue"


def _audit_machine(
    machine: Machine, halted: tuple[InFlight, ...], *, has_stopped: bool
) -> Iterator[str]:
    for what in ("waits", "answered", "still"):
        if left := getattr(machine, what):
            yield f"the machine has {what}: {brief(left)}"
    waiting = laid_aside = 0
    nodes: list[BranchNode | None] = [invocation.node for invocation in halted]
    for queue in machine.queues:
        ready, delayed = queue.ready or [], queue.delayed or {}
        if queue.inbox is not None or queue.in_inbox:
            yield f"{queue.step.label} has {queue.pending} pending, and {len(ready)} are there"
        # Cancelled in its wait, an invocation continues beside those that have got its place.
        forced = sum(invocation.step is queue.step for invocation in halted) + has_stopped
        if not 0 <= queue.running <= queue.limit + forced:
            yield f"{queue.step.label} has {queue.running} of {queue.limit} workers"
        if queue.away or queue.returning:
            yield f"{queue.step.label} has {queue.away} away"
        waiting += sum(node is None or not node.is_cancelled for _, node in ready)
        laid_aside += len(delayed)
        nodes += [*(node for _, node in ready), *delayed.values()]
    under_way = len(halted) + has_stopped
    if machine.alive != waiting + laid_aside + under_way:
        yield (
            f"the machine counts {machine.alive} deliveries; {waiting} wait, {laid_aside} are laid "
            f"aside, {under_way} were under way"
        )
    for node in {around for inner in nodes if inner for around in inner.upward()}:
        if node.cancel_record is not None and (
            node.cancel_record.running or node.cancel_record.waiters
        ):
            yield "a branch has steps that run, or tasks that wait for it"
