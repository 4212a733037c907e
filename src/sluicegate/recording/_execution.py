"""Counts of a recorded run for the picture of its workflow."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from sluicegate.drawing import Execution, Passage, StepCounts


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate.recording._model import RecordedEvent, RecordedInvocation, RecordedRun


Way = tuple[str | None, str, str | None]


def execution_of(run: RecordedRun) -> Execution:
    """Return the counts of a run, with those of its children by workflow."""
    return attrs.evolve(
        _counted(run.workflow, [run]),
        outcome=run.status,
        seconds=run.last_at - run.started_at if run.took is None else run.took,
        run_id=run.run_id,
        children=tuple(_of_children(run)),
    )


def _of_children(run: RecordedRun) -> Iterator[Execution]:
    """Yield an execution for each workflow below a run, with the counts of all of its runs."""
    by_workflow: dict[str, list[RecordedRun]] = {}
    todo = list(reversed(run.children))
    while todo:
        child = todo.pop()
        by_workflow.setdefault(child.workflow, []).append(child)
        todo.extend(reversed(child.children))
    for workflow, runs in by_workflow.items():
        yield _counted(workflow, runs)


def _counted(workflow: str, runs: list[RecordedRun]) -> Execution:
    steps: dict[str, StepCounts] = {}
    for run in runs:
        for invocation in run.invocations:
            before = steps.get(invocation.step, StepCounts())
            steps[invocation.step] = _and(before, invocation)
    passed = Counter(way for run in runs for event in run.events for way in _ways_of(event))
    published = Counter(way for run in runs for way in _published_in(run))
    return Execution(
        workflow=workflow,
        steps={name: counts for name, counts in steps.items() if counts.started},
        passages=_passages(passed),
        published=_passages(published),
    )


def _passages(ways: Counter[Way]) -> tuple[Passage, ...]:
    return tuple(Passage(*way, count) for way, count in ways.items())


def _and(counts: StepCounts, invocation: RecordedInvocation) -> StepCounts:
    """Return the counts with an invocation more; the attempts at one delivery count as one."""
    if invocation.started_at is None:
        return counts
    is_last = invocation.next is None
    return StepCounts(
        started=counts.started + (invocation.previous is None),
        completed=counts.completed + (invocation.outcome == "completed"),
        failed=counts.failed + (invocation.outcome == "failed" and is_last),
        cancelled=counts.cancelled + (invocation.outcome == "cancelled" and is_last),
        retried=counts.retried + (invocation.previous is not None),
        seconds=counts.seconds + (invocation.took or 0.0),
    )


def _ways_of(event: RecordedEvent) -> Iterator[Way]:
    """Yield the ways that an event went."""
    source = None if event.source is None else event.source.step
    targets = [one.step for one in event.consumers if one.previous is None]
    targets += [wait.invocation.step for wait in event.waits if wait.invocation is not None]
    for target in dict.fromkeys(targets):
        yield source, event.event_type, target
    if not targets and _leaves(event):
        yield source, event.event_type, None


def _leaves(event: RecordedEvent) -> bool:
    """Whether an event left the run: the stop event, or a question."""
    run = event.run
    return event is run.stop_event or any(
        question.value is event.value or question.event_type == event.event_type
        for question in run.questions
    )


def _published_in(run: RecordedRun) -> Iterator[Way]:
    questions = {question.event_type for question in run.questions}
    for streamed in run.stream:
        if streamed.invocation is not None and streamed.event_type not in questions:
            yield streamed.invocation.step, streamed.event_type, None
