"""The flow of a workflow: the nodes and arrows to draw, before they have a place or a size."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import attrs

from sluicegate._definition.checks import find_faults
from sluicegate._definition.graph import Graph, graph_of
from sluicegate._definition.source import ChildCall, StepSource, read_source
from sluicegate._events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
)
from sluicegate._workflow import Workflow
from sluicegate.drawing._labels import (
    Label,
    Mark,
    describe,
    first_line,
    label_of,
    marks_of,
    short_name,
)


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sluicegate._definition.steps import Step


#: A handler of more steps than this gets one arrow with their names.
MANY = 4
NAMES_IN_A_LINE = 34
LINES_OF_NAMES = 4


@attrs.frozen
class Child:
    """A workflow that a step runs, drawn in the box of that step.

    Attributes:
        kind: ``"drawn"``: drawn here; ``"again"``: a reference to where it is drawn;
            ``"unknown"``: the source does not show which workflow it is.
        name: Its name, or the source of the argument.
        title: The tooltip.
        number: The number of the frame with its drawing: 0 is the whole picture, -1 means none.
        hint: For a reference, the place of its drawing.
        flow: The flow, if it is drawn here.
    """

    kind: str
    name: str
    title: str
    number: int = -1
    hint: str = ""
    flow: Flow | None = None


@attrs.frozen
class Node:
    """Something that arrows start from or lead to.

    Attributes:
        kind: ``"step"``, ``"start"``, ``"stop"``, ``"person"``, ``"failures"`` (of many steps) or
            ``"gap"`` (a missing step).
        join: ``"all"`` for a step that takes a list, ``"each"`` for one that takes one of each.
        handles_failures: Whether it is a step that handles the failures of others.
        marks: The marks below the name of a step.
        notes: The events that the step writes to the stream.
        children: The workflows that the step runs.
    """

    kind: str
    name: str = ""
    title: str = ""
    join: str = ""
    handles_failures: bool = False
    marks: tuple[Mark, ...] = ()
    notes: tuple[Label, ...] = ()
    children: tuple[Child, ...] = ()


@attrs.frozen
class Edge:
    """An arrow; several events with the same source and target share one.

    Attributes:
        source: The number of the node that it leaves.
        target: The number of the node that it reaches.
        kind: ``"event"``, ``"human"`` (a question or an answer), ``"fails"`` (to the handler of
            a failure) or ``"gap"`` (its source or target is missing).
        fans_out: Whether it is for a list of events.
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
    state: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    events: tuple[Label, ...]
    faults: tuple[str, ...]

    def walk(self) -> Iterator[Flow]:
        """Yield this flow and those of the children drawn in it, the outermost first."""
        yield self
        for node in self.nodes:
            for child in node.children:
                if child.flow is not None:
                    yield from child.flow.walk()


def flow_of(workflow: object) -> Flow:
    """Return the flow of a workflow.

    Raises:
        TypeError: ``workflow`` is neither a workflow nor a workflow class.
    """
    cls: type = workflow if isinstance(workflow, type) else type(workflow)
    if Workflow not in cls.__mro__:
        msg = f"{workflow!r} cannot be drawn; expected a Workflow class or an object of one"
        raise TypeError(msg)
    thing = None if workflow is cls else workflow
    drawn = _DrawnWorkflows()
    drawn.number_of(cls, thing, "")
    return _FlowBuilder(cls, thing, drawn).finish()


class _DrawnWorkflows:
    """The workflows that already have a frame in the picture; each is drawn once."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[type, int], int] = {}
        self._places: list[str] = []
        self.open: list[int] = []

    def find(self, cls: type, thing: object) -> int | None:
        return self._numbers.get(self._key(cls, thing))

    def number_of(self, cls: type, thing: object, place: str) -> int:
        number = self._numbers[self._key(cls, thing)] = len(self._places)
        self._places.append(place)
        return number

    def hint(self, number: int) -> str:
        is_around = number in self.open
        return "the one around this" if is_around else f"drawn in {self._places[number]}"

    def _key(self, cls: type, thing: object) -> tuple[type, int]:
        # Two objects have the same flow unless they hold workflows as attributes.
        held: Iterable[Any] = getattr(thing, "__dict__", {}).values()
        is_own = any(isinstance(value, Workflow) for value in held)
        return cls, id(thing) if is_own else 0


class _FlowBuilder:
    """A flow under construction."""

    def __init__(self, cls: type, thing: object, drawn: _DrawnWorkflows) -> None:
        graph: Graph = graph_of(cls)
        self._cls = cls
        self._owner = cls if thing is None else thing
        self._graph = graph
        self._drawn = drawn
        self._nodes: list[Node] = [Node("start")]
        self._edges: dict[tuple[int, int, str], list[tuple[Label, bool]]] = {}
        self._events: dict[type[Event], None] = {}
        self._first_step = len(self._nodes)
        self._sources = [self._read(step) for step in graph.steps]
        number = drawn.find(cls, thing)
        assert number is not None
        drawn.open.append(number)
        for step, source in zip(graph.steps, self._sources, strict=True):
            self._nodes.append(self._step_node(step, source))
        drawn.open.pop()
        self._person: int | None = None
        self._stop: int | None = None

    def finish(self) -> Flow:
        """Add all arrows and return the flow."""
        graph = self._graph
        for step in graph.steps:
            self._add_inputs(step)
        for step, source in zip(graph.steps, self._sources, strict=True):
            self._add_outputs(step, source)
            for kind in source.streamed:
                self._events.setdefault(kind)
        self._add_failures()
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
            summary=first_line(self._cls.__doc__),
            state="" if graph.state_type is None else short_name(graph.state_type),
            nodes=tuple(self._nodes),
            edges=edges,
            events=tuple(label_of(kind) for kind in self._events),
            faults=tuple(fault.text for fault in find_faults(graph)),
        )

    def _read(self, step: Step) -> StepSource:
        # A function outside the class has no `self`, nor has a static method.
        found = inspect.getattr_static(self._cls, step.name)
        owner = None if isinstance(found, staticmethod) else self._owner
        return read_source(step.source, owner, step.options.names)

    # -- nodes -----------------------------------------------------------------------------

    def _step_node(self, step: Step, source: StepSource) -> Node:
        told = [kind for kind in source.streamed if not issubclass(kind, InputRequiredEvent)]
        return Node(
            "step",
            name=step.name,
            title=describe(step),
            join={"list": "all", "slot": "each"}.get(step.takes, ""),
            handles_failures=step.options.catches is not None,
            marks=marks_of(step, self._graph.state_type),
            notes=tuple(label_of(kind) for kind in told),
            children=tuple(self._children(step, source)),
        )

    def _children(self, step: Step, source: StepSource) -> Iterator[Child]:
        numbers: set[int] = set()
        for call in source.children:
            child = self._child(step, call)
            # `Child()` and an object of the same class look alike, and are drawn as one.
            if child.number < 0 or child.number not in numbers:
                numbers.add(child.number)
                yield child

    def _child(self, step: Step, call: ChildCall) -> Child:
        if call.kind is None:
            title = "The source of the step does not show which workflow this is"
            return Child("unknown", call.text, title)
        name = call.kind.__name__
        title = f"{step.name} runs {name} as a child: {call.text}"
        number = self._drawn.find(call.kind, call.thing)
        if number is not None:
            return Child("again", name, title, number, self._drawn.hint(number))
        place = f"{self._graph.name}.{step.name}"
        number = self._drawn.number_of(call.kind, call.thing, place)
        flow = _FlowBuilder(call.kind, call.thing, self._drawn).finish()
        return Child("drawn", name, title, number, flow=flow)

    def _add_node(self, node: Node) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _person_node(self) -> int:
        if self._person is None:
            title = (
                "A person outside: reads questions on the stream, answers with handler.send_event()"
            )
            self._person = self._add_node(Node("person", name="a person", title=title))
        return self._person

    def _stop_node(self) -> int:
        if self._stop is None:
            self._stop = self._add_node(Node("stop", title="The run ends"))
        return self._stop

    # -- arrows ----------------------------------------------------------------------------

    def _connect(
        self, source: int, target: int, look: str, kind: type[Event], *, many: bool = False
    ) -> None:
        self._events.setdefault(kind)
        shared = self._edges.setdefault((source, target, look), [])
        shared.append((label_of(kind, many=many), many))

    def _add_inputs(self, step: Step) -> None:
        """Add the arrows that do not start from a step."""
        at = self._first_step + step.index
        if step.options.catches is not None:
            return
        for kind in step.accepts:
            if issubclass(kind, StartEvent):
                self._connect(0, at, "event", kind)
            elif issubclass(kind, HumanResponseEvent):
                self._connect(self._person_node(), at, "human", kind)
            elif not self._graph.is_made(kind):
                gap = self._add_node(Node("gap", title=f"No step makes {kind.__name__}"))
                self._connect(gap, at, "gap", kind)

    def _add_outputs(self, step: Step, source: StepSource) -> None:
        at = self._first_step + step.index
        for kind in step.returns:
            self._add_output(at, kind, many=False)
        for kind in step.fans_out:
            self._add_output(at, kind, many=True)
        for kind in source.streamed:
            if issubclass(kind, InputRequiredEvent):
                self._connect(at, self._person_node(), "human", kind)

    def _add_output(self, at: int, kind: type[Event], *, many: bool) -> None:
        if issubclass(kind, StopEvent):
            self._connect(at, self._stop_node(), "event", kind, many=many)
            return
        targets = self._graph.reached_by(kind)
        if issubclass(kind, InputRequiredEvent):
            self._connect(at, self._person_node(), "human", kind, many=many)
        elif not targets and self._graph.is_awaited(kind):
            for target, kinds in enumerate(self._graph.awaited):
                if any(issubclass(kind, k) or issubclass(k, kind) for k in kinds):
                    self._connect(at, self._first_step + target, "event", kind, many=many)
        elif not targets:
            gap = self._add_node(Node("gap", title=f"No step takes {kind.__name__}"))
            self._connect(at, gap, "gap", kind, many=many)
        for target in targets:
            self._connect(at, self._first_step + target, "event", kind, many=many)

    def _add_failures(self) -> None:
        """Add the arrows to the handlers of failures: one from each step, or one for many."""
        for handler in self._graph.steps:
            if handler.options.catches is None:
                continue
            steps = self._graph.steps
            covered = [steps[i] for i, by in self._graph.handlers.items() if by == handler.index]
            at = self._first_step + handler.index
            for kind in handler.accepts:
                self._events.setdefault(kind)
            if not covered:
                gap = self._add_node(
                    Node("gap", title="This handler handles the failures of no step")
                )
                self._connect(gap, at, "gap", StepFailedEvent)
            elif len(covered) > MANY:
                covered.sort(key=lambda step: step.index)
                names = [step.name for step in covered]
                title = f"{handler.name} gets the failures of {', '.join(names)}"
                node = self._add_node(Node("failures", title=title))
                lines = [(Label(line, title), False) for line in _lines_of(names)]
                self._edges[node, at, "fails"] = [(Label("fails:", title), False), *lines]
            else:
                for step in covered:
                    title = f"When {step.name} finally fails, {handler.name} gets a StepFailedEvent"
                    key = (self._first_step + step.index, at, "fails")
                    self._edges[key] = [(Label("fails", title), False)]


def _lines_of(names: list[str]) -> list[str]:
    """Return names in lines of bounded length and number; the names left out are counted."""
    lines: list[str] = []
    for place, name in enumerate(names):
        if lines and len(lines[-1]) + len(name) <= NAMES_IN_A_LINE:
            lines[-1] += f", {name}"
        elif len(lines) < LINES_OF_NAMES:
            lines.append(name)
        else:
            return [*(f"{line}," for line in lines), f"and {len(names) - place} more"]
    return [*(f"{line}," for line in lines[:-1]), *lines[-1:]]
