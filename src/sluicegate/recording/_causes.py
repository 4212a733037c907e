"""The causes and effects of events and invocations.

The causes of an invocation are the events that it was given, its previous attempt, and the events that
its waits and ``ctx.collect_events`` returned. The cause of an event is the invocation that emitted it,
with everything that this invocation had received by then; events that it received later are no cause.
The events with which a child's run begins are caused by the invocation that runs the child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from sluicegate.recording._model import RecordedEvent, RecordedInvocation


if TYPE_CHECKING:
    from collections.abc import Iterator


Node: TypeAlias = RecordedEvent | RecordedInvocation


def descendants(node: Node) -> list[Node]:
    """Return the events and invocations that a node caused, directly or not, in order of time."""
    return _closure(node, _effects)


def ancestors(node: Node) -> list[Node]:
    """Return the events and invocations that caused a node, directly or not, in order of time."""
    return _closure(node, _causes)


def _closure(start: Node, step: _Step) -> list[Node]:
    # An invocation is reached as a whole, or from a record of it on (up to one, for causes): it is
    # visited again if it is reached by more of it.
    reached: dict[Node, int | None] = {}
    todo: list[tuple[Node, int | None]] = [(start, None)]
    is_effect = step is _effects
    while todo:
        node, order = todo.pop()
        if node in reached and not _is_more(order, reached[node], is_effect=is_effect):
            continue
        reached[node] = order
        todo.extend(step(node, order))
    reached.pop(start, None)
    return sorted(
        reached, key=lambda one: (time_of(one), isinstance(one, RecordedInvocation), one.number)
    )


def _is_more(new: int | None, old: int | None, *, is_effect: bool) -> bool:
    if old is None:
        return False
    return new is None or (new < old if is_effect else new > old)


def time_of(node: Node) -> float:
    """Return when an event was emitted, or when an invocation was queued."""
    if isinstance(node, RecordedEvent):
        return node.at
    return next(
        (at for at in (node.queued_at, node.started_at, node.ended_at) if at is not None), 0.0
    )


def _effects(node: Node, since: int | None) -> Iterator[tuple[Node, int | None]]:
    """Yield what a node has caused; of an invocation, from its record ``since`` on."""
    if isinstance(node, RecordedEvent):
        yield from _effects_of_event(node)
        return
    for event in node.emitted:
        if since is None or event.order >= since:
            yield event, None
    if node.next is not None:
        yield node.next, None
    if since is None:
        for child in node.children:
            yield from ((event, None) for event in child.events if event.origin == "outside")


def _effects_of_event(node: RecordedEvent) -> Iterator[tuple[Node, int | None]]:
    for invocation in node.consumers:
        yield invocation, None
    for invocation in node.collectors:
        for order, events in invocation.collected:
            if node in events:
                yield invocation, order
    for wait in node.waits:
        if wait.invocation is not None:
            yield wait.invocation, wait.ended_order


def _causes(node: Node, until: int | None) -> Iterator[tuple[Node, int | None]]:
    """Yield what has caused a node; of an invocation, up to its record ``until``."""
    if isinstance(node, RecordedEvent):
        if node.source is not None:
            yield node.source, node.order
        elif node.run.parent is not None and node.origin == "outside":
            yield node.run.parent, None
        return
    if node.previous is not None:
        yield node.previous, None
    got = [(0, node.events), *node.collected]
    got += [(w.ended_order or 0, (w.event,)) for w in node.waits if w.event is not None]
    for order, events in got:
        if until is None or order <= until:
            yield from ((event, None) for event in events)


if TYPE_CHECKING:
    from collections.abc import Callable

    _Step: TypeAlias = Callable[[Node, int | None], Iterator[tuple[Node, int | None]]]
