"""A workflow as it was: with the steps that a snapshot and the records after it were made with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate._definition.signatures import Signature
from sluicegate._definition.steps import Step, StepOptions
from sluicegate._engine.snapshot_write import shape_of
from sluicegate._events import Event


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sluicegate._data.codec import Codec
    from sluicegate._definition.graph import Graph
    from sluicegate._engine.snapshot_format import StepShape


def as_it_was(graph: Graph, before: Mapping[str, StepShape], codec: Codec) -> Graph:
    """Return the workflow with its former steps; only replay uses it.

    Removed steps are appended after the present ones, and a step whose input or output types have changed
    is replaced. None of these can be run. New steps stay: no record refers to them.

    Args:
        graph: The workflow as it is now.
        before: The shapes of its steps at the time.
        codec: The classes that it knows now.
    """
    now = shape_of(graph)
    changed = {name: shape for name, shape in before.items() if now.get(name) != shape}
    if not changed:
        return graph
    steps = list(graph.steps)
    for name, shape in changed.items():
        index = graph.index.get(name, len(steps))
        steps[index : index + 1] = [_past_step(graph, index, name, shape, codec)]
    return graph.with_steps(steps)


def _past_step(graph: Graph, index: int, name: str, shape: StepShape, codec: Codec) -> Step:
    signature = Signature(
        takes=shape.way,
        accepts=_kinds(shape.takes, codec),
        take=shape.first,
        context_at=None,
        state=None,
        resources=(),
        returns=_kinds(shape.makes, codec),
        fans_out=_kinds(shape.fans_out, codec),
        may_end=True,
    )
    return Step(
        name=name,
        index=index,
        label=f"{graph.name}.{name}",
        function=_never,
        source=_never,
        options=StepOptions(),
        signature=signature,
        resources=(),
        runs_in="loop",
        elsewhere=None,
    )


def _kinds(names: Iterable[str], codec: Codec) -> tuple[type[Event], ...]:
    """Return event classes by name; ``Event`` replaces a removed class, whose data cannot be read."""
    found: list[Any] = [codec.class_named(name) for name in names]
    return tuple(
        kind if isinstance(kind, type) and issubclass(kind, Event) else Event for kind in found
    )


def _never(*_: object) -> Any:
    """The function of a step that is only replayed."""
    raise AssertionError
