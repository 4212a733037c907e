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
    from sluicegate.drawing._execution import Execution, StepCounts


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
        kind: ``"step"``, ``"start"``, ``"stop"``, ``"person"``, ``"outside"`` (the program around
            the run), ``"failures"`` (of many steps) or ``"gap"`` (a missing step).
        join: ``"all"`` for a step that takes a list, ``"each"`` for one that takes one of each,
            ``"collect"`` for one that calls ``ctx.collect_events``.
        handles_failures: Whether it is a step that handles the failures of others.
        marks: The marks below the name of a step.
        notes: The events that the step writes to the stream.
        children: The workflows that the step runs.
        counts: What its invocations came to in the execution that is shown; None without one.
        is_unused: Whether it is no step, and no event came to it or from it in that execution.
    """

    kind: str
    name: str = ""
    title: str = ""
    summary: str = ""
    join: str = ""
    handles_failures: bool = False
    marks: tuple[Mark, ...] = ()
    notes: tuple[Label, ...] = ()
    children: tuple[Child, ...] = ()
    counts: StepCounts | None = None
    is_unused: bool = False

    @property
    def look(self) -> str:
        """How the execution left it: ``"failed"``, ``"cancelled"``, ``"never"`` ran, or nothing."""
        if self.counts is None:
            return "never" if self.is_unused else ""
        if not self.counts.started:
            return "never"
        return "failed" if self.counts.failed else "cancelled" if self.counts.cancelled else ""


class Labelled:
    """The base of edges and arrows: both have labels."""

    __slots__ = ()
    labels: tuple[Label, ...]

    @property
    def fans_out(self) -> bool:
        """Whether it is for several events: a list, or one after another."""
        return any(label.is_many for label in self.labels)

    @property
    def is_unused(self) -> bool:
        """Whether an execution is shown in which no event passed."""
        counts = [label.count for label in self.labels if label.count is not None]
        return bool(counts) and not any(counts)


@attrs.frozen
class Edge(Labelled):
    """An arrow; several events with the same source and target share one.

    Attributes:
        source: The number of the node that it leaves.
        target: The number of the node that it reaches.
        kind: ``"event"``, ``"human"`` (a question or an answer), ``"fails"`` (to the handler of
            a failure) or ``"gap"`` (its source or target is missing).
        is_undeclared: Whether it was observed in an execution, and no step declares it.
    """

    source: int
    target: int
    kind: str
    labels: tuple[Label, ...]
    is_undeclared: bool = False


@attrs.frozen
class Flow:
    """All flows of a workflow. The first node is the start.

    Attributes:
        name: The name of the workflow class.
        summary: The first line of its docstring.
        state: The name of the class of its state, or nothing.
        events: The events that its steps take, make, wait for and ask.
        published: Those that they only write to the stream.
        faults: What :class:`WorkflowValidationError` would list.
        execution: The execution that is shown, if there is one.
    """

    name: str
    summary: str
    state: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    events: tuple[Label, ...]
    published: tuple[Label, ...]
    faults: tuple[str, ...]
    execution: Execution | None = None

    @property
    def steps(self) -> tuple[Node, ...]:
        """The steps, in the order of their definition."""
        return tuple(node for node in self.nodes if node.kind == "step")

    def counts(self) -> str:
        """Return the numbers of steps and events, as the page and the command line tell them."""
        told = f"{counted(len(self.steps), 'step')}, {counted(len(self.events), 'event')}"
        return f"{told} and {len(self.published)} published" if self.published else told

    def walk(self) -> Iterator[Flow]:
        """Yield this flow and those of the children drawn in it, the outermost first."""
        yield self
        for node in self.nodes:
            for child in node.children:
                if child.flow is not None:
                    yield from child.flow.walk()


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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
        self._edges: dict[tuple[int, int, str], list[Label]] = {}
        self._events: dict[type[Event], None] = {}
        #: The person of the whole workflow, and those of the steps that wait for an answer.
        self._people: dict[int | None, int] = {}
        self._first_step = len(self._nodes)
        self._sources = [self._read(step) for step in graph.steps]
        #: For each step the classes that it waits for: declared, or found in its source.
        self._awaited = [
            (*step.options.waits_for, *source.waits_for)
            for step, source in zip(graph.steps, self._sources, strict=True)
        ]
        self._waiting = [(i, kinds) for i, kinds in enumerate(self._awaited) if kinds]
        number = drawn.find(cls, thing)
        assert number is not None
        drawn.open.append(number)
        for step, source in zip(graph.steps, self._sources, strict=True):
            self._nodes.append(self._step_node(step, source))
        drawn.open.pop()
        self._stop: int | None = None

    def finish(self) -> Flow:
        """Add all arrows and return the flow."""
        graph = self._graph
        for step in graph.steps:
            self._add_inputs(step)
        for step, source in zip(graph.steps, self._sources, strict=True):
            self._add_outputs(step, source)
            self._add_waits(step, source)
        self._add_failures()
        for step in graph.steps:  # a step can take a base class of what others make
            self._events |= dict.fromkeys((*step.accepts, *self._awaited[step.index]))
        published = dict.fromkeys(kind for source in self._sources for kind in source.streamed)
        edges = tuple(
            Edge(source, target, kind, tuple(dict.fromkeys(labels)))
            for (source, target, kind), labels in self._edges.items()
        )
        return Flow(
            name=graph.name,
            summary=first_line(self._cls.__doc__),
            state="" if graph.state_type is None else short_name(graph.state_type),
            nodes=tuple(self._nodes),
            edges=edges,
            events=tuple(label_of(kind) for kind in self._events),
            published=tuple(label_of(kind) for kind in published if kind not in self._events),
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
            summary=first_line(step.source.__doc__),
            join={"list": "all", "slot": "each"}.get(
                step.takes, "collect" if source.collects else ""
            ),
            handles_failures=step.options.catches is not None,
            marks=marks_of(step, source, self._graph.state_type),
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

    def _person_node(self, step: Step | None = None) -> int:
        """Return the person, or for a step that waits for an answer itself, its own one."""
        key = None if step is None else step.index
        if key not in self._people:
            title = (
                "A person outside: reads questions on the stream, answers with handler.send_event()"
            )
            self._people[key] = self._add_node(Node("person", name="a person", title=title))
        return self._people[key]

    def _stop_node(self) -> int:
        if self._stop is None:
            self._stop = self._add_node(Node("stop", title="The run ends"))
        return self._stop

    # -- arrows ----------------------------------------------------------------------------

    def _connect(
        self,
        source: int,
        target: int,
        look: str,
        kind: type[Event],
        *,
        many: bool = False,
        is_repeated: bool = False,
    ) -> None:
        self._events.setdefault(kind)
        shared = self._edges.setdefault((source, target, look), [])
        shared.append(label_of(kind, many=many, is_repeated=is_repeated))

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
        for kind in step.returns:
            is_repeated = any(issubclass(sent, kind) for sent in source.sends_many)
            self._add_output(step, source, kind, is_repeated=is_repeated)
        for kind in step.fans_out:
            self._add_output(step, source, kind, many=True)
        for kind in source.streamed:
            if issubclass(kind, InputRequiredEvent):
                self._connect(self._at(step), self._person_for(step, source), "human", kind)

    def _at(self, step: Step) -> int:
        return self._first_step + step.index

    def _person_for(self, step: Step, source: StepSource) -> int:
        return self._person_node(step if self._waits_for_person(step, source) else None)

    def _waits_for_person(self, step: Step, source: StepSource) -> bool:
        kinds = self._awaited[step.index]
        return bool(source.asks) or any(issubclass(kind, HumanResponseEvent) for kind in kinds)

    def _add_output(
        self,
        step: Step,
        source: StepSource,
        kind: type[Event],
        *,
        many: bool = False,
        is_repeated: bool = False,
    ) -> None:
        at, graph = self._at(step), self._graph
        look = "event"
        if issubclass(kind, StopEvent):
            targets = [self._stop_node()]
        else:
            targets = [self._first_step + target for target in graph.reached_by(kind)]
            if not targets and not issubclass(kind, InputRequiredEvent):
                targets = self._waiting_for(kind)
            if not targets and not issubclass(kind, InputRequiredEvent):
                look = "gap"
                gap = Node("gap", title=f"No step takes {kind.__name__}")
                targets = [self._add_node(gap)]
        if issubclass(kind, InputRequiredEvent):
            person = self._person_for(step, source)
            self._connect(at, person, "human", kind, many=many, is_repeated=is_repeated)
        for target in targets:
            self._connect(at, target, look, kind, many=many, is_repeated=is_repeated)

    def _waiting_for(self, kind: type[Event]) -> list[int]:
        """Return the steps that wait for an event declared as ``kind``, or of a subclass."""
        return [
            self._first_step + index
            for index, kinds in self._waiting
            if any(issubclass(kind, k) or issubclass(k, kind) for k in kinds)
        ]

    def _add_waits(self, step: Step, source: StepSource) -> None:
        """Add the arrows of a step that waits for events from outside, and asks for them."""
        at = self._at(step)
        for kind in source.asks:
            self._connect(at, self._person_node(step), "human", kind)
        for kind in dict.fromkeys(self._awaited[step.index]):
            if not self._graph.is_answerable(kind):
                continue
            if source.asks or issubclass(kind, HumanResponseEvent):
                self._connect(self._person_node(step), at, "human", kind)
            else:
                title = f"The program around the run: handler.send_event({kind.__name__}(...))"
                outside = self._add_node(Node("outside", name="outside", title=title))
                self._connect(outside, at, "event", kind)

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
                lines = [Label(line, about=title) for line in ("fails:", *_lines_of(names))]
                self._edges[node, at, "fails"] = lines
            else:
                for step in covered:
                    title = f"When {step.name} finally fails, {handler.name} gets a StepFailedEvent"
                    key = (self._first_step + step.index, at, "fails")
                    self._edges[key] = [Label("fails", about=title)]


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
