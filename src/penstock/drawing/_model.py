"""The model of a picture: what is to be drawn of a workflow, before any place or size."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import attrs

from penstock._events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)
from penstock._graph import Graph, graph_of
from penstock._workflow import Workflow
from penstock.drawing._source import written_events


if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock._steps import Step


@attrs.frozen
class Label:
    """The name of an event, as it stands at an arrow or on a note."""

    text: str
    #: What a pointer that rests on it shows: the fields.
    title: str


@attrs.frozen
class Node:
    """Something that arrows lead from or to.

    Attributes:
        kind: ``"step"``, ``"start"``, ``"stop"``, ``"person"`` or ``"gap"`` (a place where a step
            is missing).
        join: ``"all"`` for a step that takes a list, ``"each"`` for one that takes one of each.
        notes: The events that the step writes to the stream.
    """

    kind: str
    name: str = ""
    title: str = ""
    num_workers: int | None = None
    timeout: float | None = None
    join: str = ""
    notes: tuple[Label, ...] = ()


@attrs.frozen
class Edge:
    """An arrow; several events that go the same way share one.

    Attributes:
        source: The number of the node that it leaves.
        target: The number of the node that it reaches.
        kind: ``"event"``, ``"human"`` (a question or an answer) or ``"gap"`` (it comes from
            nowhere or leads nowhere).
        fans_out: Whether a list of events goes this way.
    """

    source: int
    target: int
    kind: str
    labels: tuple[Label, ...]
    fans_out: bool


@attrs.frozen
class Flow:
    """All flows of a workflow. The first node is the start."""

    name: str
    summary: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    events: tuple[Label, ...]
    faults: tuple[str, ...]


def flow_of(workflow: object) -> Flow:
    """Return the model of a workflow's picture.

    Raises:
        TypeError: ``workflow`` is neither a workflow nor a class of one.
    """
    cls: type = workflow if isinstance(workflow, type) else type(workflow)
    if Workflow not in cls.__mro__:
        msg = f"{workflow!r} cannot be drawn; expected a Workflow class or an object of one"
        raise TypeError(msg)
    return _Sketch(cls, graph_of(cls)).finish()


class _Sketch:
    """A model in the making."""

    def __init__(self, cls: type, graph: Graph) -> None:
        self._cls = cls
        self._graph = graph
        self._nodes: list[Node] = [Node("start")]
        self._edges: dict[tuple[int, int, str], list[tuple[Label, bool]]] = {}
        self._events: dict[type[Event], None] = {}
        self._first_step = len(self._nodes)
        for step in graph.steps:
            written = written_events(step.function)
            self._nodes.append(self._step_node(step, written))
        self._person: int | None = None
        self._stop: int | None = None

    def finish(self) -> Flow:
        """Add all arrows and return the model."""
        graph = self._graph
        for step in graph.steps:
            self._add_inputs(step)
        for step in graph.steps:
            self._add_outputs(step)
            for kind in written_events(step.function):
                self._note(kind)
        edges = tuple(
            Edge(
                source,
                target,
                kind,
                tuple(dict.fromkeys(label for label, _ in labels)),
                any(many for _, many in labels),
            )
            for (source, target, kind), labels in self._edges.items()
        )
        return Flow(
            name=graph.name,
            summary=_first_line(self._cls.__doc__),
            nodes=tuple(self._nodes),
            edges=edges,
            events=tuple(_label(kind) for kind in self._events),
            faults=tuple(fault.text for fault in graph.faults),
        )

    # -- nodes -----------------------------------------------------------------------------

    def _step_node(self, step: Step, written: Iterable[type[Event]]) -> Node:
        told = [kind for kind in written if not issubclass(kind, InputRequiredEvent)]
        return Node(
            "step",
            name=step.name,
            title=_describe(step),
            num_workers=step.num_workers,
            timeout=step.timeout,
            join={"list": "all", "slot": "each"}.get(step.takes, ""),
            notes=tuple(_label(kind) for kind in told),
        )

    def _add_node(self, node: Node) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _person_node(self) -> int:
        if self._person is None:
            title = (
                "Somebody outside: questions come on the stream, answers by handler.send_event()"
            )
            self._person = self._add_node(Node("person", name="a person", title=title))
        return self._person

    def _stop_node(self) -> int:
        if self._stop is None:
            self._stop = self._add_node(Node("stop", title="The run ends"))
        return self._stop

    # -- arrows ----------------------------------------------------------------------------

    def _note(self, kind: type[Event]) -> None:
        self._events.setdefault(kind)

    def _connect(
        self, source: int, target: int, way: str, kind: type[Event], *, many: bool = False
    ) -> None:
        self._note(kind)
        shared = self._edges.setdefault((source, target, way), [])
        shared.append((_label(kind, many=many), many))

    def _add_inputs(self, step: Step) -> None:
        """Add the arrows that no step is the source of."""
        at = self._first_step + step.index
        made = {kind for s in self._graph.steps for kind in (*s.returns, *s.fans_out)}
        for kind in step.accepts:
            if issubclass(kind, StartEvent):
                self._connect(0, at, "event", kind)
            elif issubclass(kind, HumanResponseEvent):
                self._connect(self._person_node(), at, "human", kind)
            elif not any(issubclass(m, kind) or issubclass(kind, m) for m in made):
                gap = self._add_node(Node("gap", title=f"No step makes {kind.__name__}"))
                self._connect(gap, at, "gap", kind)

    def _add_outputs(self, step: Step) -> None:
        at = self._first_step + step.index
        for kind in step.returns:
            self._add_output(at, kind, many=False)
        for kind in step.fans_out:
            self._add_output(at, kind, many=True)
        for kind in written_events(step.function):
            if issubclass(kind, InputRequiredEvent):
                self._connect(at, self._person_node(), "human", kind)

    def _add_output(self, at: int, kind: type[Event], *, many: bool) -> None:
        if issubclass(kind, StopEvent):
            self._connect(at, self._stop_node(), "event", kind, many=many)
            return
        targets = self._graph.reached_by(kind)
        if issubclass(kind, InputRequiredEvent):
            self._connect(at, self._person_node(), "human", kind, many=many)
        elif not targets:
            gap = self._add_node(Node("gap", title=f"No step takes {kind.__name__}"))
            self._connect(at, gap, "gap", kind, many=many)
        for target in targets:
            self._connect(at, self._first_step + target, "event", kind, many=many)


# -- words ---------------------------------------------------------------------------------


def _label(kind: type[Event], *, many: bool = False) -> Label:
    name = f"list[{kind.__name__}]" if many else kind.__name__
    return Label(name, "\n".join((name, *_fields(kind))))


def _fields(kind: type[Event]) -> list[str]:
    lines: list[str] = []
    for field in attrs.fields(kind):
        kind_of_value = "" if field.type is None else f": {_type_name(field.type)}"
        default = "" if field.default is attrs.NOTHING else " = ..."
        lines.append(f"  {field.alias}{kind_of_value}{default}")
    if kind._open:
        lines.append("  any field")
    return lines


def _type_name(hint: Any) -> str:
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    # An address would make each drawing a different one.
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text).replace("typing.", "")


def _describe(step: Step) -> str:
    taken = [kind.__name__ for kind in step.accepts]
    made = [kind.__name__ for kind in step.returns]
    made += [f"list[{kind.__name__}]" for kind in step.fans_out]
    made += ["None"] if step.may_end else []
    shape = {"list": f"list[{' | '.join(taken)}]", "slot": " and ".join(taken)}
    takes = shape.get(step.takes, " | ".join(taken))
    lines = [
        f"{step.name}: takes {takes}, makes {' | '.join(made) or 'nothing'}",
        f"at most {step.num_workers} at a time",
    ]
    if step.timeout is not None:
        lines.append(f"timeout {step.timeout:g} s each")
    summary = _first_line(step.function.__doc__)
    return "\n".join((*lines, summary) if summary else lines)


def _first_line(doc: str | None) -> str:
    return inspect.cleandoc(doc).partition("\n")[0] if doc else ""
