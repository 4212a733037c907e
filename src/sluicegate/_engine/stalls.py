"""Stalls: whether a run can still continue, and which events its joins and waits lack.

These functions only read the machine. The runner calls them when nothing is alive, or when every
invocation rests; their lines are the text of WorkflowStalledError and of timeouts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate._events import HumanResponseEvent, InputRequiredEvent
from sluicegate._questions import Asked


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate._engine.machine import Machine
    from sluicegate._events import Event


def is_stuck(machine: Machine) -> bool:
    """Whether no step can ever continue: a deadlock.

    Every step that has begun waits for a branch for which no worker is free, or for an event that
    only a step can make; and no event is expected from outside that could start another step.
    """
    if not machine.strict or machine.strict != len(machine.resting):
        return False
    if len(machine.waits) != machine.strict_waits or not machine.is_at_rest:
        return False
    return not expects_input(machine)


def at_rest(machine: Machine) -> set[int]:
    """Return the ids of the contexts of all steps that wait for an event or a branch."""
    return {id(step) for step in machine.resting}


def expects_input(machine: Machine) -> bool:
    """Whether an event from outside can still restart a run in which nothing is alive.

    It can while a question is open, and while a join lacks a human's answer. It always can in a
    workflow whose steps take answers without a step that asks.
    """
    asked = machine.questions
    if isinstance(asked, Asked):  # the usual case
        if asked.kind is None:
            return True
    elif asked is not None and any(question.kind is None for question in asked.values()):
        return True
    graph = machine.graph
    listens = any(issubclass(k, HumanResponseEvent) for s in graph.steps for k in s.accepts)
    asks = any(issubclass(k, InputRequiredEvent) for s in graph.steps for k in s.returns)
    if listens and not asks and not machine.has_asked:
        return True
    return any(issubclass(kind, HumanResponseEvent) for kind in _missing_kinds(machine))


def _missing_kinds(machine: Machine) -> Iterator[type[Event]]:
    """Yield the classes that the joins outside of fan-outs and the buffers lack."""
    for queue in machine.queues:
        if queue.pair_join is not None:
            yield from queue.pair_join.missing_kinds()
        for buffer in (queue.buffers or {}).values():
            if buffer.is_waiting:
                yield from (kind for kind, _ in buffer.missing())


def missing(machine: Machine) -> tuple[str, ...]:
    """Describe what each join, buffer and wait lacks, and the attempts that are delayed."""
    lines: list[str] = []
    for queue in machine.queues:
        lacking = [
            name
            for pair_join in (queue.pair_join, queue.unmatched)
            if pair_join is not None
            for name in pair_join.missing()
        ]
        for buffer in (queue.buffers or {}).values():
            lacking += [f"{n} x {kind.__name__}" for kind, n in buffer.missing()]
        if lacking:
            lines.append(f"{queue.step.label} lacks {', '.join(lacking)}")
        if queue.delayed:
            lines.append(f"{queue.step.label}: {len(queue.delayed)} waiting for another attempt")
    waits = [repr(wait) for wait in machine.waits]
    if waits:
        lines.append(f"{len(waits)} waiting for {', '.join(dict.fromkeys(waits))}")
    for kind, count in machine.unheard.items():
        times = "once" if count == 1 else f"{count} times"
        lines.append(f"{kind.__name__} was sent {times} when no wait for it was open")
    if machine.branch_waits:
        is_short = machine.branch_waits == len(machine.resting) and is_stuck(machine)
        why = " that no worker is free for" if is_short else ""
        lines.append(f"{machine.branch_waits} waiting for branches{why}")
    return tuple(lines)


def silent_ends(machine: Machine) -> Iterator[str]:
    """Describe which steps returned None without declaring it, and how often."""
    for name, count in machine.silent.items():
        times = "" if count == 1 else f" {count} times"
        yield (
            f"{machine.graph.name}.{name} returned None{times}, which its signature does not "
            "declare, and so ended its branch"
        )
