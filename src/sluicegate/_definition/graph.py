"""The graph of a workflow: the steps, and the route of every class of events between them."""

from __future__ import annotations

import copy
from types import UnionType
from typing import TYPE_CHECKING, Any

from sluicegate._annotations import class_of
from sluicegate._definition.nesting import Nesting
from sluicegate._definition.steps import Fault, Step, find_steps
from sluicegate._errors import WorkflowRuntimeError, brief
from sluicegate._events import (
    ChildEvent,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from sluicegate._events.generics import fitting, give_arguments, is_without_arguments


if TYPE_CHECKING:
    from collections.abc import Iterable

    from sluicegate._data.codec import Codec


class Route:
    """The destination of the events of one class from one origin."""

    __slots__ = ("is_question", "is_stop", "next", "targets")

    def __init__(
        self, targets: tuple[int, ...], *, following: int, is_stop: bool, is_question: bool
    ) -> None:
        #: The indexes of the steps that take it.
        self.targets: tuple[int, ...] = targets
        #: The index of the only step that takes it, if that step takes single events; else -1.
        self.next: int = following
        self.is_stop: bool = is_stop
        self.is_question: bool = is_question


class Graph:
    """The steps of one workflow class and the routes between them.

    Attributes:
        cls: The workflow class.
        name: The name of the workflow class.
        steps: The steps, in the order in which they are defined.
        start_event: The class of the event that a run begins with.
        outputs: For each step, the routes of the events that it has returned before, by class.
        listed: The same for events that it has returned in lists.
        faults: The faults of its steps and of the graph, or None until
            :func:`~sluicegate._definition.checks.find_faults` has looked for them.
        joins: For each step that fans out, the joins that its fan-outs can feed.
        races: The steps that fan out into a join that takes only the first events.
        handlers: For each step, the step that handles its failures, if there is one.
        needs_scope: Whether any step asks for a resource.
        is_strict: Whether a step that returns None has to declare it.
        is_lenient: Whether a step can make events that it does not declare.
        state_type: The class of the state that the steps name, or None.
    """

    def __init__(self, cls: type) -> None:
        self.cls: type = cls
        self.name: str = cls.__name__
        steps, problems = find_steps(cls)
        self.steps: tuple[Step, ...] = tuple(steps)
        self.index: dict[str, int] = {step.name: i for i, step in enumerate(steps)}
        self.acceptors: dict[type[Event], list[int]] = {}
        for i, step in enumerate(steps):
            if step.options.catches is None:  # a handler takes failures, not events
                for kind in dict.fromkeys(step.accepts):  # a join can take a class twice
                    self.acceptors.setdefault(kind, []).append(i)
        #: For each class, the steps that take it or a class derived from it.
        self._deeper: dict[type, list[int]] = {}
        for kind, takers in self.acceptors.items():
            for base in kind.__mro__:
                self._deeper.setdefault(base, []).extend(takers)
        #: The classes that steps declare to make; and these with their base classes.
        self._declared: frozenset[type[Event]] = frozenset(
            kind for step in steps for kind in (*step.returns, *step.fans_out)
        )
        self._made: frozenset[type] = frozenset(b for k in self._declared for b in k.__mro__)
        #: The classes that steps declare in ``waits_for``.
        self.waits_for: tuple[type[Event], ...] = tuple(
            dict.fromkeys(kind for step in steps for kind in step.options.waits_for)
        )
        self._awaited: tuple[tuple[type[Event], ...], ...] | None = None
        #: The further classes with which the annotations of the events were checked for a store.
        self._checked: set[tuple[type, ...]] = set()
        #: The classes that steps wait for; and these with their base classes.
        self._awaited_kinds: frozenset[type] | None = None
        self._awaited_bases: frozenset[type] = frozenset()
        #: For classes that were waited for before: whether the event comes from outside.
        self.answerable: dict[type[Event], bool] = {}
        self._routes: dict[type, tuple[int, ...]] = {}
        self._reached: dict[type, tuple[int, ...]] = {}
        self.outputs: list[dict[type, Route]] = [{} for _ in steps]
        self.listed: list[dict[type, Route]] = [{} for _ in steps]
        self._inputs: dict[type, Route] = {}
        #: The classes of events that steps have published before; they are checked once.
        self.published: set[type] = set()
        starts = [kind for kind in self.acceptors if issubclass(kind, StartEvent)]
        self.start_event: type[StartEvent] = starts[0] if starts else StartEvent
        self.handlers: dict[int, int] = {}
        problems += self._assign_handlers()
        self.needs_scope: bool = any(step.resources for step in steps)
        self.has_branches: bool = self.needs_scope or any(
            step.context_at is not None for step in steps
        )
        self.state_type: type | None = None
        problems += self._find_state_type()
        self._codecs: dict[tuple[tuple[type, ...], bool], Codec] = {}
        self.nesting: Nesting = Nesting(self.steps, self.reached_by, self.handlers)
        self.joins: tuple[tuple[int, ...], ...] = tuple(map(self.nesting.joins_of, steps))
        self.races: frozenset[int] = frozenset(
            i for i, fed in enumerate(self.joins) if any(steps[j].take for j in fed)
        )
        # A step that cannot be read is missing from the graph, which is not checked then.
        self.faults: tuple[Fault, ...] | None = tuple(map(Fault, problems)) or None
        self.is_strict: bool = False
        self.is_lenient: bool = False
        #: The same graph with other rules, for objects of the class that were built with them.
        self.variants: dict[tuple[bool, bool], Graph] = {}

    def copy(self) -> Graph:
        """Return the same graph with empty lookup tables, so that it can be altered."""
        copied = copy.copy(self)
        copied.outputs = [{} for _ in self.steps]
        copied.listed = [{} for _ in self.steps]
        copied._inputs = {}
        copied._routes = {}
        copied.published = set()
        return copied

    def with_steps(self, steps: Iterable[Step]) -> Graph:
        """Return a copy with other steps, for replay, which looks up no route in it.

        The codecs are shared: its classes are those of the workflow as it is.
        """
        copied = self.copy()
        copied.steps = tuple(steps)
        copied.index = {step.name: step.index for step in copied.steps}
        copied.outputs = [{} for _ in copied.steps]
        copied.listed = [{} for _ in copied.steps]
        return copied

    def is_like(self, other: Graph) -> bool:
        """Whether both were read from one class at the same time."""
        return self.variants is other.variants

    # -- routes -------------------------------------------------------------------

    def targets(self, kind: type[Event]) -> tuple[int, ...]:
        """Return the steps that take an event of class ``kind``.

        As with :func:`functools.singledispatch`, the first class in its MRO that any step takes
        decides. The event is delivered to every step that takes this class.
        """
        found: tuple[int, ...] | None = self._routes.get(kind)
        if found is None:
            found = ()
            for base in kind.__mro__:
                if base in self.acceptors:
                    found = tuple(self.acceptors[base])
                    break
            self._routes[kind] = found
        return found

    def output(
        self, index: int, kind: type[Any], *, in_list: bool = False, is_awaited: bool = False
    ) -> Route:
        """Return the route of an event that a step returned or sent.

        Args:
            index: The number of the step.
            kind: The class of the event.
            in_list: Whether the step returned it in a list.
            is_awaited: Whether a wait that is open now takes it.

        Raises:
            WorkflowRuntimeError: The step does not declare such an event, or it is not an event.
        """
        known = (self.listed if in_list else self.outputs)[index]
        route = known.get(kind)
        if route is None:
            step = self.steps[index]
            if not issubclass(kind, Event):
                raise WorkflowRuntimeError(self._not_an_event(step, kind))
            if not (self.is_lenient or step.allows(kind, in_list=in_list)):
                raise WorkflowRuntimeError(self._undeclared(step, kind, in_list=in_list))
            route = self._route(kind)
            if not (route.targets or route.is_stop or route.is_question or self.is_awaited(kind)):
                if is_awaited:
                    return route
                raise WorkflowRuntimeError(self._unheard(step, kind))
            known[kind] = route
        return route

    def check_none(self, step: Step) -> None:
        """Handle that ``step`` returned None, which its signature does not declare.

        Raises:
            WorkflowRuntimeError: The workflow was built with ``strict_none=True``.
        """
        if self.is_strict:
            msg = (
                f"{step.label} returned None, which it does not declare; expected it to "
                "return one of its events, or `| None` in its signature"
            )
            raise WorkflowRuntimeError(msg)

    def adopt(self, event: Event, index: int) -> None:
        """Give a generic event that was made without type arguments those that the step declares.

        A type checker accepts ``return Chunk(value=text)`` for ``-> Chunk[Text]``, and so does
        the engine. If several classes are possible, the values of the fields decide.
        """
        kind: type[Event] = type(event)
        step = self.steps[index]
        if is_without_arguments(kind):
            found = fitting(event, (*step.returns, *step.fans_out))
            if found is None and not self.targets(kind) and step.allows_any(kind):
                found = fitting(event, self.acceptors)
            if found is not None:
                give_arguments(event, found)

    def adopt_from_outside(self, event: Event, waited: Iterable[type] = ()) -> None:
        """Give a generic event from outside the type arguments that a step or a wait expects."""
        if not self.targets(type(event)):
            found = fitting(event, (*self.acceptors, *self.waits_for, *waited))
            if found is not None:
                give_arguments(event, found)

    def input(self, kind: type) -> Route:
        """Return the route of an event from outside.

        Raises:
            WorkflowRuntimeError: No step accepts such an event.
        """
        route = self._inputs.get(kind)
        if route is None:
            route = self._route(kind)
            # A step can wait for an answer that no step takes.
            if not (route.targets or self.keeps_early(kind)) or route.is_stop:
                raise WorkflowRuntimeError(self._not_taken(kind, is_stop=route.is_stop))
            self._inputs[kind] = route
        return route

    def target_index(self, event: Event, target: str) -> int:
        """Return the number of the step called ``target``, to which ``event`` is sent.

        Raises:
            WorkflowRuntimeError: There is no such step, or it does not take the event.
        """
        index = self.index.get(target)
        if index is None:
            msg = (
                f"{self.name} has no step {brief(target)}; expected one of {', '.join(self.index)}"
            )
            raise WorkflowRuntimeError(msg)
        step = self.steps[index]
        adopted = None if isinstance(event, step.accepts) else fitting(event, step.accepts)
        if adopted is not None:
            give_arguments(event, adopted)
        elif not isinstance(event, step.accepts):
            taken = " or ".join(kind.__name__ for kind in step.accepts)
            msg = (
                f"the step {target} of {self.name} does not take {type(event).__name__}; "
                f"expected {taken}"
            )
            raise WorkflowRuntimeError(msg)
        return index

    def _route(self, kind: type[Event]) -> Route:
        is_stop = issubclass(kind, StopEvent)
        is_question = issubclass(kind, InputRequiredEvent)
        targets: tuple[int, ...] = () if is_stop else self.targets(kind)
        following = -1
        if len(targets) == 1 and not is_question:
            (only,) = targets
            following = only if self.steps[only].takes == "one" else -1
        return Route(
            targets,
            following=following,
            is_stop=is_stop,
            is_question=is_question,
        )

    # -- waits within a step -----------------------------------------------------------------

    def keeps_early(self, kind: type) -> bool:
        """Whether an event from outside that no step takes is kept until a step waits for it."""
        return issubclass(kind, (HumanResponseEvent, *self.waits_for))

    def is_answerable(self, kind: type[Event]) -> bool:
        """Whether a wait for ``kind`` is a wait for an event from outside.

        It is if ``kind`` is a class of answers, if a step declares it in ``waits_for``, or if no
        step makes such an event.
        """
        known = self.answerable[kind] = (
            issubclass(kind, HumanResponseEvent)
            or any(issubclass(k, kind) or issubclass(kind, k) for k in self.waits_for)
            or not self.is_made(kind)
        )
        return known

    @property
    def answers(self) -> tuple[type[Event], ...]:
        """The classes of answers that the steps take."""
        return tuple(kind for kind in self.acceptors if issubclass(kind, HumanResponseEvent))

    @property
    def stop_events(self) -> tuple[type[StopEvent], ...]:
        """The classes of events with which a run can complete."""
        made = (kind for step in self.steps for kind in step.returns)
        found = dict.fromkeys(kind for kind in made if issubclass(kind, StopEvent))
        return tuple(found) or (StopEvent,)

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The classes of events that the steps take and make, then those that they wait for."""
        found = (k for s in self.steps for k in (*s.accepts, *s.returns, *s.fans_out))
        return tuple(dict.fromkeys((*found, *(k for kinds in self.awaited for k in kinds))))

    @property
    def asks(self) -> bool:
        """Whether a step takes or returns a question or an answer."""
        return any(
            issubclass(kind, InputRequiredEvent | HumanResponseEvent)
            for step in self.steps
            for kind in (*step.accepts, *step.returns)
        )

    @property
    def awaited(self) -> tuple[tuple[type[Event], ...], ...]:
        """For each step the classes that it waits for: declared, or found in its source."""
        if self._awaited is None:
            from sluicegate._definition.source import read_source  # noqa: PLC0415 - few graphs need it

            self._awaited = tuple(
                (*options.waits_for, *read_source(step.source, more=options.names).waits_for)
                for step in self.steps
                for options in (step.options,)
            )
        return self._awaited

    def _in_sources(self) -> list[type[Event]]:
        """Return the classes that steps wait for or ask with: declared, or found in their source."""
        from sluicegate._definition.source import read_source  # noqa: PLC0415 - few graphs need it

        found = [kind for kinds in self.awaited for kind in kinds]
        for step in self.steps:
            found += read_source(step.source, more=step.options.names).asks
        return found

    def is_awaited(self, kind: type[Event]) -> bool:
        """Whether a step waits for an event declared as ``kind``, or of a subclass."""
        kinds = self._awaited_kinds
        if kinds is None:
            kinds = self._awaited_kinds = frozenset(k for found in self.awaited for k in found)
            self._awaited_bases = frozenset(base for k in kinds for base in k.__mro__)
        return kind in self._awaited_bases or any(base in kinds for base in kind.__mro__)

    def _not_taken(self, kind: type, *, is_stop: bool) -> str:
        taken = sorted({k.__name__ for k in (*self.acceptors, *self.waits_for)})
        way = (
            f", or `@step(waits_for=[{kind.__name__}])` for a step that waits for it later"
            if issubclass(kind, Event) and not is_stop
            else ""
        )
        return (
            f"no step of {self.name} takes {kind.__name__} from outside"
            f"{', and none waits for it now' if way else ''}; "
            f"expected an event of {', '.join(taken) or 'no event'}{way}"
        )

    def _not_an_event(self, step: Step, kind: type[Any]) -> str:
        if kind is list and not step.fans_out:
            return (
                f"{self.name}.{step.name} returned a list, which it does not declare; expected "
                f"{_shown(step)}, or `-> list[SomeEvent]` in its signature"
            )
        if issubclass(kind, type):
            return (
                f"{self.name}.{step.name} returned or sent a class, not an event; "
                f"expected an object of {_shown(step)}, made by calling it"
            )
        return (
            f"{self.name}.{step.name} returned or sent a {kind.__name__}, not an event; "
            f"expected {_shown(step)}"
        )

    def _undeclared(self, step: Step, kind: type, *, in_list: bool) -> str:
        got = f"list of {kind.__name__}" if in_list else kind.__name__
        more = f"list[{kind.__name__}]" if in_list else kind.__name__
        return (
            f"{self.name}.{step.name} returned or sent a {got}, which it does not declare; "
            f"expected {_shown(step)}, or `-> {_shown(step, bare=True)} | {more}` in its signature"
        )

    def _unheard(self, step: Step, kind: type) -> str:
        return (
            f"{self.name}.{step.name} returned or sent a {kind.__name__}, which no step takes or waits "
            f"for; expected a step with a parameter `ev: {kind.__name__}`, or one that waits for it: "
            f"`@step(waits_for=[{kind.__name__}])`"
        )

    # -- possible routes -------------------------------------------------------------------

    def reached_by(self, kind: type[Event]) -> tuple[int, ...]:
        """Return the steps that an event declared as ``kind``, or of a subclass, can reach."""
        found = self._reached.get(kind)
        if found is None:
            found = tuple(dict.fromkeys((*self.targets(kind), *self._deeper.get(kind, ()))))
            self._reached[kind] = found
        return found

    def is_made(self, kind: type[Event]) -> bool:
        """Whether a step makes events of a class, of a subclass or of a base class."""
        return kind in self._made or any(base in self._declared for base in kind.__mro__)

    def _find_state_type(self) -> list[str]:
        """Find the most derived class of the state that the steps name; return the faults."""
        named: dict[Any, str] = {}
        for step in self.steps:
            if step.signature.state not in (None, Any):
                named.setdefault(step.signature.state, step.name)
        for kind, name in named.items():
            plain: Any = class_of(kind)
            if not isinstance(plain, type) or plain is UnionType:
                return [f"{name} takes `Context[{kind}]`; expected a class: `ctx: Context[State]`"]
            if self.state_type is None or issubclass(plain, self.state_type):
                self.state_type = plain
            elif not issubclass(self.state_type, plain):
                problem = (
                    f"its steps name incompatible state classes, {self.state_type.__name__} and, "
                    f"in {name}, {plain.__name__}; expected one class, or one derived from "
                    "the others"
                )
                return [problem]
        if self.state_type is not None:
            from sluicegate._state.store import StateStore  # noqa: PLC0415 - not every program needs it

            try:
                StateStore(self.state_type)
            except TypeError as error:
                return [f"it has the state {self.state_type.__name__}: {error}"]
        return []

    def codec(self, classes: tuple[type, ...], *, drops_removed: bool = False) -> Codec:
        """Return the codec that writes and reads the values of snapshots.

        Raises:
            SnapshotError: One of ``classes`` cannot be kept, or two have the same name.
        """
        codec = self._codecs.get((classes, drops_removed))
        if codec is None:
            from sluicegate._data.codec import Codec  # noqa: PLC0415 - not every program needs it

            roots: list[Any] = [
                kind for s in self.steps for kind in (*s.accepts, *s.returns, *s.fans_out)
            ]
            roots += self._in_sources()
            roots += [Event, HumanResponseEvent, InputRequiredEvent, StepFailedEvent, ChildEvent]
            roots += [WorkflowFailedEvent, WorkflowTimedOutEvent, WorkflowCancelledEvent]
            if self.state_type is not None:
                roots.append(self.state_type)
            codec = Codec.of(roots, classes, drops_removed=drops_removed)
            self._codecs[classes, drops_removed] = codec
        return codec

    def check_events(self, classes: tuple[type, ...]) -> None:
        """Check that the fields of the workflow's events can have values that a store keeps.

        Raises:
            SnapshotError: One cannot; the message names it.
        """
        if classes not in self._checked:
            kinds = [k for s in self.steps for k in (*s.accepts, *s.returns, *s.fans_out)]
            self.codec(classes).check_annotations([*kinds, *self._in_sources()])
            self._checked.add(classes)

    def _assign_handlers(self) -> list[str]:
        """Find the handler of each step's failures; return the faults."""
        problems: list[str] = []
        general: int | None = None
        for step in self.steps:
            catches = step.options.catches
            if catches is None:
                continue
            if catches.for_steps is None:
                if general is not None:
                    problems.append(
                        f"{step.name} and {self.steps[general].name} both catch the failures of "
                        "all steps; expected `for_steps=[...]` on one of them"
                    )
                general = step.index
            for name in catches.for_steps or ():
                problem = self._assign_handler(step, name)
                if problem:
                    problems.append(problem)
        if general is not None:
            for step in self.steps:
                if step.options.catches is None:
                    self.handlers.setdefault(step.index, general)
        return problems

    def _assign_handler(self, handler: Step, name: str) -> str:
        covered = self.index.get(name)
        if covered is None:
            steps = [step.name for step in self.steps if step.options.catches is None]
            return (
                f"{handler.name} catches the failures of {name!r}, but there is no such step; "
                f"expected one or more of {', '.join(steps)}"
            )
        if self.steps[covered].options.catches is not None:
            return (
                f"{handler.name} catches the failures of {name}, which is a handler itself; "
                "expected steps, because a failure in a handler fails the run"
            )
        if covered in self.handlers:
            other = self.steps[self.handlers[covered]].name
            return (
                f"{handler.name} and {other} both catch the failures of {name}; expected its name "
                "in only one `for_steps=[...]`"
            )
        self.handlers[covered] = handler.index
        return ""


def _shown(step: Step, *, bare: bool = False) -> str:
    parts = [kind.__name__ for kind in step.returns]
    if step.fans_out:
        parts.append(f"list[{' | '.join(kind.__name__ for kind in step.fans_out)}]")
    if step.may_end:
        parts.append("None")
    return " | ".join(parts) if bare else " or ".join(parts)


def graph_of(cls: type, *, is_strict: bool = False, is_lenient: bool = False) -> Graph:
    """Return the graph of a workflow class, read once and kept with the class."""
    graph: Graph | None = cls.__dict__.get("_sluicegate_graph")
    if graph is None:
        graph = Graph(cls)
        # Kept on the class itself: a subclass has its own, and both go when they are dropped.
        type.__setattr__(cls, "_sluicegate_graph", graph)
    rules = is_strict, is_lenient
    if not any(rules):
        return graph
    if rules not in graph.variants:
        variant = graph.variants[rules] = graph.copy()
        variant.is_strict, variant.is_lenient = rules
    return graph.variants[rules]


def forget_graph(cls: type) -> None:
    """Make the graph of a class and of its subclasses be read again: a step was added."""
    for each in (cls, *cls.__subclasses__()):
        if "_sluicegate_graph" in each.__dict__:
            type.__delattr__(each, "_sluicegate_graph")
        if each is not cls:
            forget_graph(each)
