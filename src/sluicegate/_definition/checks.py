"""The checks of a workflow's graph: every fault, each with its fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sluicegate._definition.steps import Fault
from sluicegate._errors import WorkflowValidationError
from sluicegate._events import (
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
)


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sluicegate._definition.graph import Graph
    from sluicegate._events import Event


#: The checks that ``skip_graph_checks`` may name.
SKIPPABLE = ("reachability", "terminal_event", "dead_end")

#: The checks that ``disable_validation`` skips: these, and that each event a step takes is made.
DISABLED = (*SKIPPABLE, "declaration")


def check_graph(graph: Graph, skip: Iterable[str] = ()) -> None:
    """Raise one error that lists every fault of a graph.

    Raises:
        WorkflowValidationError: There are faults that ``skip`` does not name.
    """
    skipped: frozenset[str | None] = frozenset(skip)
    problems = tuple(fault.text for fault in find_faults(graph) if fault.check not in skipped)
    if problems:
        msg = f"the workflow {list_faults(graph, problems)}"
        raise WorkflowValidationError(msg, problems)


def list_faults(graph: Graph, problems: Sequence[str]) -> str:
    """Return the name of a workflow and its faults, numbered, each on a line."""
    count = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
    listed = (f"\n  {n}. {text}" for n, text in enumerate(problems, 1))
    return f"{graph.name} has {count}:{''.join(listed)}"


def find_faults(graph: Graph) -> tuple[Fault, ...]:
    """Return every fault of a graph; they are found once and kept with it."""
    if graph.faults is None:
        graph.faults = tuple(_find_faults(graph))
    return graph.faults


def _find_faults(graph: Graph) -> Iterator[Fault]:
    if not graph.steps:
        yield Fault(
            "it has no steps; expected methods like "
            "`@step async def begin(self, ev: StartEvent) -> StopEvent`"
        )
        return
    starts = [kind for kind in graph.acceptors if issubclass(kind, StartEvent)]
    yield from _find_faults_at_the_ends(graph, starts)
    yield from _find_loose_events(graph)
    yield from _find_unclear_joins(graph)
    if starts:
        reached = _reachable(graph, graph.start_event)
        yield from _find_unreachable(graph, reached)
        yield from _find_dead_ends(graph, reached)


def _find_faults_at_the_ends(graph: Graph, starts: list[type[StartEvent]]) -> Iterator[Fault]:
    if not starts:
        yield Fault(
            "no step takes the StartEvent, so a run cannot begin; expected one step with a "
            "parameter `ev: StartEvent` or a subclass"
        )
    elif len(starts) > 1:
        names = " and ".join(kind.__name__ for kind in starts)
        yield Fault(
            f"its steps take different start events, {names}; expected one class, "
            "because a run begins with one event"
        )
    if not any(issubclass(kind, StopEvent) for step in graph.steps for kind in step.returns):
        yield Fault(
            "no step returns a StopEvent, so a run cannot end; expected a step with "
            "`-> StopEvent` or a subclass"
        )
    taken = {"start_event", "run_id", "ctx"} & {f.alias for f in attrs.fields(graph.start_event)}
    for name in sorted(taken):
        yield Fault(
            f"{graph.start_event.__name__} has a field {name!r}, which is a parameter of run(); "
            "expected another name"
        )
    for step in graph.steps:
        for kind in dict.fromkeys(step.accepts):
            if issubclass(kind, StopEvent):
                yield Fault(
                    f"the step {step.name} takes {kind.__name__}, which ends the run and "
                    "is delivered to no step; expected another event before the stop"
                )
        for kind in step.fans_out:
            if issubclass(kind, StopEvent):
                yield Fault(
                    f"the step {step.name} returns a list of {kind.__name__}; expected "
                    f"`-> {kind.__name__}`, because a run ends once"
                )


def _find_loose_events(graph: Graph) -> Iterator[Fault]:
    for step in graph.steps:
        for kind in dict.fromkeys((*step.returns, *step.fans_out)):
            if issubclass(kind, StopEvent | InputRequiredEvent):
                continue
            if not (graph.reached_by(kind) or graph.is_awaited(kind)):
                yield Fault(
                    f"no step takes {kind.__name__}, which the step {step.name} makes; "
                    f"expected a step with a parameter `ev: {kind.__name__}`",
                    "terminal_event",
                )
        for kind in dict.fromkeys(step.accepts):
            if issubclass(kind, StartEvent | HumanResponseEvent | StopEvent | StepFailedEvent):
                continue
            if not graph.is_made(kind):
                yield Fault(
                    f"no step makes {kind.__name__}, which the step {step.name} takes; "
                    f"expected a step with `-> {kind.__name__}` (events sent with ctx.send_event "
                    "are declared there too)",
                    "declaration",
                )


def _find_unclear_joins(graph: Graph) -> Iterator[Fault]:
    for outer, inner, both in graph.nesting.overlaps(graph.joins):
        yield Fault(
            f"the step {graph.steps[both].name} joins the fan-out of "
            f"{graph.steps[outer].name} and also the fan-out of {graph.steps[inner].name} inside "
            "it; expected a separate join for each, with its own event"
        )
    fed = {join for joins in graph.joins for join in joins}
    for i, step in enumerate(graph.steps):
        if step.takes == "list" and i not in fed:
            names = " | ".join(kind.__name__ for kind in step.accepts)
            yield Fault(
                f"the step {step.name} joins list[{names}], but no fan-out leads to it; "
                f"expected a step before it with `-> list[...]`"
            )


def _reachable(graph: Graph, start: type[StartEvent]) -> set[int]:
    todo = list(graph.targets(start))
    for kind, steps in graph.acceptors.items():
        if issubclass(kind, HumanResponseEvent):
            todo += steps
    reached: set[int] = set()
    seen: set[type[Event]] = set()
    while todo:
        at = todo.pop()
        if at in reached:
            continue
        reached.add(at)
        if at in graph.handlers:
            todo.append(graph.handlers[at])
        step = graph.steps[at]
        for kind in (*step.returns, *step.fans_out):
            if kind not in seen:
                seen.add(kind)
                todo += graph.reached_by(kind)
    return reached


def _find_unreachable(graph: Graph, reached: set[int]) -> Iterator[Fault]:
    for i, step in enumerate(graph.steps):
        if i not in reached:
            names = " | ".join(kind.__name__ for kind in step.accepts)
            yield Fault(
                f"the step {step.name} cannot be reached from {graph.start_event.__name__}; "
                f"expected a reachable step that makes {names}",
                "reachability",
            )


def _find_dead_ends(graph: Graph, reached: set[int]) -> Iterator[Fault]:
    ends = _ending(graph)
    for i in sorted(reached - ends):
        step = graph.steps[i]
        made = (*step.returns, *step.fans_out)
        if i in graph.handlers or any(map(graph.reached_by, made)):
            yield Fault(
                f"no path leads from the step {step.name} to a StopEvent, so a "
                "run that reaches it never ends; expected a step on the path with "
                "`-> StopEvent` or `| None`",
                "dead_end",
            )


def _ending(graph: Graph) -> set[int]:
    """Return the steps from which a path leads to an end, by a walk back from the ends."""
    makers: dict[type[Event], list[int]] = {}
    before: list[list[type[Event]]] = [[] for _ in graph.steps]
    failing: list[list[int]] = [[] for _ in graph.steps]
    todo: list[int] = []
    for i, step in enumerate(graph.steps):
        if step.may_end or any(issubclass(k, StopEvent | InputRequiredEvent) for k in step.returns):
            todo.append(i)
        for kind in {*step.returns, *step.fans_out}:
            makers.setdefault(kind, []).append(i)
        if i in graph.handlers:
            failing[graph.handlers[i]].append(i)
    for kind in makers:
        for target in graph.reached_by(kind):
            before[target].append(kind)
    ends: set[int] = set()
    while todo:
        at = todo.pop()
        if at not in ends:
            ends.add(at)
            todo += failing[at]
            for kind in before[at]:
                todo += makers.pop(kind, ())
    return ends
