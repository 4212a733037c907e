"""The graph of a workflow: what is read from signatures, where events go, and every fault.

Annotations are strings in this module, and nearly all classes here are local to a function: that
is how many people write, and it must make no difference.
"""

from __future__ import annotations

import functools
import gc
import re
import weakref
from typing import Annotated, Any, Generic, Optional, TypeVar, Union

import pytest

import sluicegate
from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Observer,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowValidationError,
    step,
)
from sluicegate._definition.graph import graph_of
from tests.helpers import Asked, Item, One, Said, Single


T = TypeVar("T")


class A(Event):
    n: int = 0


class B(Event):
    n: int = 0


class C(Event):
    n: int = 0


class SubA(A):
    pass


class SubSubA(SubA):
    pass


class OtherStart(StartEvent):
    topic: str


class Final(StopEvent):
    score: int = 0


def problems_of(workflow: type[Workflow], **options: Any) -> tuple[str, ...]:
    with pytest.raises(WorkflowValidationError) as caught:
        workflow(**options)
    return caught.value.problems


def accepted(workflow: type[Workflow]) -> dict[str, tuple[type[Event], ...]]:
    return {step.name: step.accepts for step in graph_of(workflow).steps}


def routed(workflow: type[Workflow], kind: type[Event]) -> list[str]:
    graph = graph_of(workflow)
    return [graph.steps[i].name for i in graph.targets(kind)]


# -- faults of the whole ---------------------------------------------------------------------------------


def no_steps() -> type[Workflow]:
    class Faulty(Workflow):
        async def helper(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    return Faulty


def no_start() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: A) -> A | StopEvent: ...

    return Faulty


def two_starts() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> StopEvent: ...
        @step
        async def b(self, ev: OtherStart) -> StopEvent: ...

    return Faulty


def no_stop() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> None: ...

    return Faulty


def takes_stop() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> Final: ...
        @step
        async def b(self, ev: Final) -> Final: ...

    return Faulty


def list_of_stops() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> list[Final] | StopEvent: ...

    return Faulty


def never_taken() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> A | StopEvent: ...

    return Faulty


def never_made() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> StopEvent: ...
        @step
        async def b(self, ev: A) -> StopEvent: ...

    return Faulty


def join_without_fan_out() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> A: ...
        @step
        async def b(self, evs: list[A]) -> StopEvent: ...

    return Faulty


def unreachable() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> StopEvent: ...
        @step
        async def b(self, ev: A) -> B: ...
        @step
        async def c(self, ev: B) -> A | StopEvent: ...

    return Faulty


def round_for_ever() -> type[Workflow]:
    class Faulty(Workflow):
        @step
        async def a(self, ev: StartEvent) -> A | StopEvent: ...
        @step
        async def b(self, ev: A) -> B: ...
        @step
        async def c(self, ev: B) -> A: ...

    return Faulty


WHOLE = [
    (
        no_steps,
        [
            (
                "it has no steps; expected methods like "
                "`@step async def begin(self, ev: StartEvent) -> StopEvent`"
            )
        ],
    ),
    (
        no_start,
        [
            (
                "no step takes the StartEvent, so a run cannot begin; expected one step with a "
                "parameter `ev: StartEvent` or a subclass"
            )
        ],
    ),
    (
        two_starts,
        [
            (
                "its steps take different start events, StartEvent and OtherStart; expected one "
                "class, because a run begins with one event"
            ),
            (
                "the step b cannot be reached from StartEvent; expected a reachable step that makes "
                "OtherStart"
            ),
        ],
    ),
    (
        no_stop,
        [
            (
                "no step returns a StopEvent, so a run cannot end; expected a step with "
                "`-> StopEvent` or a subclass"
            )
        ],
    ),
    (
        takes_stop,
        [
            (
                "the step b takes Final, which ends the run and is delivered to no step; expected "
                "another event before the stop"
            )
        ],
    ),
    (
        list_of_stops,
        [
            "the step a returns a list of Final; expected `-> Final`, because a run ends once",
        ],
    ),
    (
        never_taken,
        [("no step takes A, which the step a makes; expected a step with a parameter `ev: A`")],
    ),
    (
        never_made,
        [
            (
                "no step makes A, which the step b takes; expected a step with `-> A` (events sent "
                "with ctx.send_event are declared there too)"
            ),
            "the step b cannot be reached from StartEvent; expected a reachable step that makes A",
        ],
    ),
    (
        join_without_fan_out,
        [
            (
                "the step b joins list[A], but no fan-out leads to it; expected a step before it "
                "with `-> list[...]`"
            )
        ],
    ),
    (
        unreachable,
        [
            "the step b cannot be reached from StartEvent; expected a reachable step that makes A",
            "the step c cannot be reached from StartEvent; expected a reachable step that makes B",
        ],
    ),
    (
        round_for_ever,
        [
            (
                "no path leads from the step b to a StopEvent, so a run that reaches it never "
                "ends; expected a step on the path with `-> StopEvent` or `| None`"
            ),
            (
                "no path leads from the step c to a StopEvent, so a run that reaches it never "
                "ends; expected a step on the path with `-> StopEvent` or `| None`"
            ),
        ],
    ),
]


@pytest.mark.parametrize(("make", "expected"), WHOLE, ids=lambda v: getattr(v, "__name__", ""))
def test_fault_of_a_graph_has_its_text_and_its_fix(make, expected):
    """P13: each fault is told once, with what was found and what was expected."""
    assert list(problems_of(make())) == expected


# -- faults of one signature -------------------------------------------------------------------------------


def one_step(function) -> type[Workflow]:
    """Return a workflow that is right but for the step ``odd``."""

    class Faulty(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A | B | StopEvent: ...
        @step
        async def rest(self, ev: A | B) -> StopEvent: ...

        odd = step(function)

    return Faulty


async def no_return(self, ev: A): ...
async def no_event(self) -> StopEvent: ...
async def only_context(self, ctx: Context) -> StopEvent: ...
async def not_an_event(self, ev: A, n: int) -> StopEvent: ...
async def no_annotation(self, ev) -> StopEvent: ...
async def by_keyword(self, *, ev: A) -> StopEvent: ...
async def wide_slot(self, a: A | B, b: B) -> StopEvent: ...
async def two_lists(self, a: list[A], b: list[B]) -> StopEvent: ...
async def list_and_event(self, a: list[A], b: B) -> StopEvent: ...
async def returns_int(self, ev: A) -> int: ...
async def returns_mixed(self, ev: A) -> StopEvent | str: ...
async def returns_list_of_int(self, ev: A) -> list[int]: ...
async def unknown_name(self, ev: Missing) -> StopEvent: ...  # noqa: F821
async def unknown_return(self, ev: A) -> Missing: ...  # noqa: F821
async def union_with_none(self, ev: A | None) -> StopEvent: ...


SIGNATURES = [
    (
        no_return,
        "has no return annotation; expected `-> SomeEvent`, `-> A | B` or `-> None`",
    ),
    (no_event, "takes no event; expected a parameter like `ev: SomeEvent`"),
    (only_context, "takes no event; expected a parameter like `ev: SomeEvent`"),
    (
        not_an_event,
        (
            "has a parameter 'n' that is neither an event nor the context; expected "
            "`n: SomeEvent`, `n: Context`, `n: Annotated[T, Resource(factory)]` or a "
            "default"
        ),
    ),
    (
        no_annotation,
        (
            "has a parameter 'ev' that is neither an event nor the context; expected "
            "`ev: SomeEvent`, `ev: Context`, `ev: Annotated[T, Resource(factory)]` or a "
            "default"
        ),
    ),
    (
        by_keyword,
        "takes 'ev' by keyword only; expected it before the `*`, because steps are called by position",
    ),
    (
        wide_slot,
        (
            "takes one of each of several events, so 'a' cannot be a union; expected one class for "
            "each parameter"
        ),
    ),
    (
        two_lists,
        (
            "joins a list and takes other events as well; expected one parameter `evs: "
            "list[E]` and no other event"
        ),
    ),
    (
        list_and_event,
        (
            "joins a list and takes other events as well; expected one parameter `evs: "
            "list[E]` and no other event"
        ),
    ),
    (returns_int, "is annotated as returning int; expected event classes, lists of them, or None"),
    (
        returns_mixed,
        "is annotated as returning str; expected event classes, lists of them, or None",
    ),
    (
        returns_list_of_int,
        "is annotated as returning list[int]; expected event classes, lists of them, or None",
    ),
    (
        unknown_name,
        (
            "has an annotation that cannot be resolved (name 'Missing' is not defined); expected the "
            "class to be defined before the workflow, and not only under `if TYPE_CHECKING`"
        ),
    ),
    (
        unknown_return,
        (
            "has an annotation that cannot be resolved (name 'Missing' is not defined); expected the "
            "class to be defined before the workflow, and not only under `if TYPE_CHECKING`"
        ),
    ),
    (
        union_with_none,
        (
            "has a parameter 'ev' that is neither an event nor the context; expected "
            "`ev: SomeEvent`, `ev: Context`, `ev: Annotated[T, Resource(factory)]` or a "
            "default"
        ),
    ),
]


@pytest.mark.parametrize(("function", "text"), SIGNATURES, ids=lambda v: getattr(v, "__name__", ""))
def test_fault_of_a_signature_names_the_step_and_the_fix(function, text):
    """P13: a signature that cannot be read is one fault, and the rest is still checked."""
    assert problems_of(one_step(function)) == (f"Faulty.odd {text}",)


async def keyword_only_context(self, ev: A, *, ctx: Context) -> StopEvent: ...


def test_context_by_keyword_only_is_a_fault_too():
    """P13: steps are called by position, so the context cannot come by keyword either."""
    [problem] = problems_of(one_step(keyword_only_context))

    assert problem.startswith("Faulty.odd takes 'ctx' by keyword only; expected it before the `*`")


async def two_contexts(self, ctx: Context, more: Context, ev: A) -> StopEvent: ...


def test_second_context_is_a_fault():
    """P13: a step is given one context; a second parameter for it could not be filled."""
    [problem] = problems_of(one_step(two_contexts))

    assert problem.startswith("Faulty.odd ")
    assert "more" in problem


def test_several_faults_of_the_graph_are_told_in_one_error():
    """P13: one attempt shows everything that is wrong, numbered, under the class's name."""

    class Broken(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A: ...
        @step
        async def lost(self, ev: C) -> SubA | None: ...

    with pytest.raises(WorkflowValidationError) as caught:
        Broken()

    problems = caught.value.problems
    assert problems == (
        (
            "no step returns a StopEvent, so a run cannot end; expected a step with `-> StopEvent` "
            "or a subclass"
        ),
        ("no step takes A, which the step begin makes; expected a step with a parameter `ev: A`"),
        (
            "no step takes SubA, which the step lost makes; expected a step with a parameter "
            "`ev: SubA`"
        ),
        (
            "no step makes C, which the step lost takes; expected a step with `-> C` (events sent "
            "with ctx.send_event are declared there too)"
        ),
        "the step lost cannot be reached from StartEvent; expected a reachable step that makes C",
    )
    assert str(caught.value).splitlines() == [
        "the workflow Broken has 5 faults:",
        *(f"  {n}. {text}" for n, text in enumerate(problems, 1)),
    ]


def test_several_faults_of_signatures_are_told_in_one_error():
    """P13: every signature that cannot be read is a fault of its own."""

    class Broken(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A | StopEvent: ...
        @step
        async def silent(self, ev: A): ...
        @step
        async def odd(self, ev: A) -> int: ...

    problems = problems_of(Broken)

    assert any(text.startswith("Broken.silent has no return annotation") for text in problems)
    assert any(text.startswith("Broken.odd is annotated as returning int") for text in problems)


def test_step_that_cannot_be_read_is_not_held_against_the_others():
    """P13: no fault is told that is only a consequence, and false: silent does take the A."""

    class Broken(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A: ...
        @step
        async def silent(self, ev: A): ...

    [problem] = problems_of(Broken)

    assert problem.startswith("Broken.silent has no return annotation")


def test_step_that_cannot_be_read_is_still_a_step():
    """P13: a workflow whose only step has a wrong signature is not told to have none."""

    class Broken(Workflow):
        @step
        async def begin(self, ev: StartEvent): ...

    [problem] = problems_of(Broken)

    assert problem.startswith("Broken.begin has no return annotation")


def test_single_fault_is_counted_as_one():
    """The head of the message is grammatical."""
    with pytest.raises(
        WorkflowValidationError, match=r"^the workflow Faulty has 1 fault:\n  1\. it"
    ):
        no_steps()()


def test_faults_are_found_when_the_object_is_built_and_not_before():
    """P13: defining a class raises nothing; each attempt to build it does."""
    workflow = no_start()

    for _ in range(2):
        assert len(problems_of(workflow)) == 1


# -- checks that may be left out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (unreachable, "reachability"),
        (never_taken, "terminal_event"),
        (round_for_ever, "dead_end"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_check_may_be_left_out(make, check):
    """skip_graph_checks leaves out what it names, and nothing else."""
    workflow = make()
    workflow(skip_graph_checks=[check])
    others = {"reachability", "terminal_event", "dead_end"} - {check}

    assert problems_of(workflow, skip_graph_checks=others) == problems_of(workflow)


@pytest.mark.parametrize(
    "make", [no_steps, no_start, no_stop, takes_stop, list_of_stops, join_without_fan_out]
)
def test_what_cannot_run_cannot_be_left_out(make):
    """Faults with which no run could work are always faults."""
    every = ("reachability", "terminal_event", "dead_end")

    assert problems_of(make(), skip_graph_checks=every) == problems_of(make())


def test_unknown_check_is_refused_and_the_known_ones_are_named():
    """P13: a misspelt check would otherwise leave nothing out."""
    message = (
        "Fine(skip_graph_checks=...) names 'dead_ends', 'loops'; expected some of "
        "'reachability', 'terminal_event', 'dead_end'"
    )
    with pytest.raises(WorkflowValidationError, match=re.escape(message)):
        Fine(skip_graph_checks=["loops", "dead_end", "dead_ends"])


# -- routing -----------------------------------------------------------------------------------------------------


class Fine(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


class Routing(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A | B | C | SubA: ...
    @step
    async def on_a(self, ev: A) -> StopEvent: ...
    @step
    async def on_sub_a(self, ev: SubA) -> StopEvent: ...
    @step
    async def on_a_or_b(self, ev: A | B) -> StopEvent: ...
    @step
    async def on_event(self, ev: Event) -> StopEvent: ...


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (A, ["on_a", "on_a_or_b"]),
        (SubA, ["on_sub_a"]),
        (SubSubA, ["on_sub_a"]),
        (B, ["on_a_or_b"]),
        (C, ["on_event"]),
        (StartEvent, ["begin"]),
    ],
)
def test_event_goes_to_the_steps_of_the_nearest_class(kind, steps):
    """Routing: the nearest class in the MRO decides, and all steps that take it get the event."""
    Routing()

    assert routed(Routing, kind) == steps


def test_routing_agrees_with_singledispatch():
    """Routing: as functools.singledispatch would choose."""

    @functools.singledispatch
    def dispatch(event: Event) -> type[Event]:
        return Event

    for kind in (A, SubA, B):
        dispatch.register(kind, lambda event, kind=kind: kind)
    graph = graph_of(Routing)

    for kind in (A, SubA, SubSubA, B, C):
        chosen = dispatch(kind())
        assert all(chosen in graph.steps[i].accepts for i in graph.targets(kind))


def test_routing_with_several_bases_follows_the_mro():
    """Routing: of two parents the first decides."""

    class Mixed(A, B):
        pass

    class Swapped(B, A):
        pass

    class Two(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A | B: ...
        @step
        async def on_a(self, ev: A) -> StopEvent: ...
        @step
        async def on_b(self, ev: B) -> StopEvent: ...

    Two()

    assert routed(Two, Mixed) == ["on_a"]
    assert routed(Two, Swapped) == ["on_b"]


@pytest.mark.anyio
async def test_subclass_that_was_not_declared_may_be_returned_for_its_parent():
    """Routing: `-> A` allows what is an A, and the event goes where its own class leads."""
    seen = []

    class Sub(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A:
            return SubSubA(n=3)

        @step
        async def on_a(self, ev: A) -> StopEvent:
            return StopEvent(result="a")

        @step
        async def on_sub_a(self, ev: SubA) -> StopEvent:
            seen.append(ev.n)
            return StopEvent(result="sub")

    assert await Sub().run() == "sub"
    assert seen == [3]


@pytest.mark.anyio
async def test_parent_of_what_was_declared_may_not_be_returned():
    """P13: `-> SubA` does not allow an A."""

    class Narrow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> SubA | StopEvent:
            return A()

        @step
        async def on_a(self, ev: A) -> StopEvent: ...

    message = (
        "Narrow.begin returned or sent a A, which it does not declare; expected SubA or "
        "StopEvent, or `-> SubA | StopEvent | A` in its signature"
    )
    with pytest.raises(WorkflowRuntimeError, match=re.escape(message)):
        await Narrow().run()


@pytest.mark.anyio
async def test_every_step_that_takes_the_class_gets_the_event():
    """Routing: one event, two steps, two invocations of the very same object."""
    seen = {}

    class Both(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A:
            return A(n=1)

        @step
        async def one(self, ev: A) -> B:
            seen["one"] = ev
            return B()

        @step
        async def other(self, ev: A) -> C:
            seen["other"] = ev
            return C()

        @step
        async def end(self, b: B, c: C) -> StopEvent:
            return StopEvent()

    await Both().run()

    assert seen["one"] is seen["other"]


# -- signatures ----------------------------------------------------------------------------------------------------


class Box(Event, Generic[T]):
    value: Any = None


def test_unions_and_annotations_are_read_in_all_spellings():
    """`A | B`, Union, Optional, Annotated and generic aliases say the same."""

    class Spelled(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Union[A, B, None]: ...  # noqa: UP007
        @step
        async def a(self, ev: Union[A, B]) -> Optional[C]: ...  # noqa: UP007, UP045
        @step
        async def c(self, ev: Annotated[C, "a mark"]) -> Annotated[Box[int] | None, "mark"]: ...
        @step
        async def box(self, ev: Box[int]) -> StopEvent: ...

    Spelled()
    graph = graph_of(Spelled)

    assert accepted(Spelled) == {
        "begin": (StartEvent,),
        "a": (A, B),
        "c": (C,),
        "box": (Box[int],),
    }
    assert [s.returns for s in graph.steps] == [(A, B), (C,), (Box[int],), (StopEvent,)]
    assert [s.may_end for s in graph.steps] == [True, True, True, False]


def test_lists_fan_out_and_join_in_all_spellings():
    """`list[A | B]`, `list[A] | list[B]` and lists beside events."""

    class Lists(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[A | B] | C: ...
        @step
        async def c(self, ev: C) -> list[A] | list[B] | None: ...
        @step
        async def join(self, evs: list[A | B]) -> StopEvent: ...

    Lists()
    begin, c, join = graph_of(Lists).steps

    assert (begin.returns, begin.fans_out) == ((C,), (A, B))
    assert (c.returns, c.fans_out, c.may_end) == ((), (A, B), True)
    assert (join.takes, join.accepts) == ("list", (A, B))
    assert graph_of(Lists).joins == ((2,), (2,), ())


@pytest.mark.parametrize("position", [0, 1])
def test_context_may_stand_anywhere(position):
    """The context is found by its annotation, with or without a state type."""

    class First(Workflow):
        @step
        async def begin(self, context: Context, ev: StartEvent) -> StopEvent: ...

    class Last(Workflow):
        @step
        async def begin(self, ev: StartEvent, c: Context[dict]) -> StopEvent: ...

    [read] = graph_of((First, Last)[position]).steps

    assert read.context_at == position
    assert read.accepts == (StartEvent,)


def test_further_parameters_may_have_defaults():
    """Parameters with defaults are the method's own business."""

    class Defaults(Workflow):
        @step
        async def begin(self, ev: StartEvent, n: int = 3, *args: str, **kw: int) -> StopEvent: ...

    Defaults()

    assert accepted(Defaults) == {"begin": (StartEvent,)}


@pytest.mark.anyio
async def test_annotations_may_name_classes_of_an_enclosing_function():
    """String annotations of local classes are resolved while their names can be seen."""

    class Local(Event):
        n: int

    class LocalStart(StartEvent):
        n: int

    def make() -> type[Workflow]:
        class Inner(Event):
            n: int

        class Nested(Workflow):
            @step
            async def begin(self, ctx: Context, ev: LocalStart) -> Local | Inner:
                return Inner(n=ev.n)

            @step(num_workers=2)
            async def one(self, ev: Local | Inner) -> StopEvent:
                return StopEvent(result=ev.n)

        return Nested

    assert await make()().run(n=4) == 4


def test_nearest_of_two_local_classes_of_one_name_is_meant():
    """Names are looked up from the inside out, as Python does."""

    class Twice(Event):
        pass

    outer = Twice

    def make() -> tuple[type[Event], type[Workflow]]:
        class Twice(Event):
            pass

        class Shadowing(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> Twice: ...
            @step
            async def end(self, ev: Twice) -> StopEvent: ...

        return Twice, Shadowing

    inner, workflow = make()
    workflow()

    assert outer is not inner
    assert accepted(workflow)["end"] == (inner,)


def test_annotations_may_name_classes_that_come_later_in_the_module():
    """What is not there yet when the step is read is looked for when the workflow is built."""

    class Early(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> LaterInTheModule: ...
        @step
        async def end(self, ev: LaterInTheModule) -> StopEvent: ...

    Early()

    assert accepted(Early)["end"] == (LaterInTheModule,)


class LaterInTheModule(Event):
    pass


def test_local_classes_and_later_classes_may_be_mixed():
    """A step may name a class of the function and one that its module defines only later."""
    namespace: dict[str, Any] = {"__name__": "made_for_a_test"}
    source = """
from __future__ import annotations
from sluicegate import Event, StartEvent, StopEvent, Workflow, step

def make():
    class Near(Event):
        n: int = 0

    class Mixed(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Near | Far: ...
        @step
        async def end(self, ev: Near | Far) -> StopEvent: ...

    return Mixed

Mixed = make()

class Far(Event):
    pass
"""
    exec(compile(source, "made_for_a_test", "exec"), namespace)
    workflow = namespace["Mixed"]

    workflow()

    assert [kind.__name__ for kind in accepted(workflow)["end"]] == ["Near", "Far"]


def test_reading_annotations_keeps_nothing_of_the_function_alive():
    """P18: a local workflow class and what its function held are collected when dropped."""

    class Held:
        pass

    def make() -> tuple[weakref.ref, weakref.ref]:
        held = Held()

        class Local(Event):
            pass

        class Passing(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> Local: ...
            @step
            async def end(self, ev: Local) -> StopEvent: ...

        Passing()
        return weakref.ref(held), weakref.ref(Passing)

    references = make()
    gc.collect()

    assert [reference() for reference in references] == [None, None]


# -- inheritance -----------------------------------------------------------------------------------------------------


class Base(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A:
        return A()

    @step
    async def end(self, ev: A) -> StopEvent:
        return StopEvent(result="base")


@pytest.mark.anyio
async def test_steps_are_inherited_and_may_be_overridden():
    """A subclass has its parent's steps, in their order, with its own instead where it says so."""

    class Child(Base):
        @step
        async def end(self, ev: A) -> StopEvent:
            return StopEvent(result=f"child of {(await super().end(ev)).result}")

    Child()

    assert list(accepted(Child)) == ["begin", "end"]
    assert await Child().run() == "child of base"
    assert await Base().run() == "base"


@pytest.mark.anyio
async def test_override_may_change_signature_and_options():
    """What counts is the signature and the options of the overriding step."""

    class Child(Base):
        @step
        async def begin(self, ev: OtherStart) -> A | B:
            return B()

        @step(num_workers=1)
        async def end(self, ev: A | B) -> Final:
            return Final(score=7)

    result = await Child().run(topic="x")

    assert result.score == 7
    assert graph_of(Child).steps[1].num_workers == 1
    assert graph_of(Child).start_event is OtherStart
    assert graph_of(Base).start_event is StartEvent


def test_override_without_the_decorator_is_a_fault():
    """P13: a step that would vanish is pointed at."""

    class Child(Base):
        async def end(self, ev: A) -> StopEvent: ...

    [first, *_] = problems_of(Child)

    assert first == "Child.end overrides a step but is not a step itself; expected `@step` above it"


@pytest.mark.parametrize("value", [None, 3])
def test_step_may_be_taken_away_on_purpose_or_not_at_all(value):
    """P13: overriding a step by something else is the same fault."""
    child = type("Child", (Base,), {"end": value})

    assert problems_of(child)[0].startswith("Child.end overrides a step but is not a step itself")


def test_steps_come_from_mixins_too():
    """Any class in the MRO may bring steps."""

    class Mixin:
        @step
        async def extra(self, ev: B) -> StopEvent: ...

    class Mixed(Mixin, Base):
        @step
        async def begin(self, ev: StartEvent) -> A | B: ...

    Mixed()

    assert set(accepted(Mixed)) == {"begin", "end", "extra"}


def test_graphs_of_parent_and_child_are_separate():
    """P18: each class has its graph, read once."""

    class Child(Base):
        @step
        async def more(self, ev: StartEvent) -> A: ...

    Base()
    Child()

    assert graph_of(Base) is graph_of(Base)
    assert graph_of(Child) is not graph_of(Base)
    assert len(graph_of(Base).steps) == 2
    assert len(graph_of(Child).steps) == 3


def test_workflow_classes_are_collected_when_dropped():
    """P18: the graph belongs to its class."""

    class Child(Base):
        pass

    Child()
    reference = weakref.ref(Child)
    del Child
    gc.collect()

    assert reference() is None


# -- right programs that look odd -------------------------------------------------------------------------------------


def test_loop_with_a_way_out_is_fine():
    """A cycle is no fault as long as it can be left."""

    class Loop(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A: ...
        @step
        async def a(self, ev: A) -> B: ...
        @step
        async def b(self, ev: B) -> A | StopEvent: ...

    Loop()


def test_branch_that_ends_with_none_is_fine():
    """A step may end its branch while another one stops the run."""

    class Branch(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A: ...
        @step
        async def log(self, ev: A) -> None: ...
        @step
        async def end(self, ev: A) -> StopEvent: ...

    Branch()


def test_question_needs_no_step_and_answer_no_maker():
    """What goes out to people and comes in from them is the edge of the graph."""

    class Ask(InputRequiredEvent):
        text: str = ""

    class Answer(HumanResponseEvent):
        text: str = ""

    class Asking(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Ask: ...
        @step
        async def end(self, ev: Answer) -> StopEvent: ...

    Asking()

    assert routed(Asking, Answer) == ["end"]
    assert routed(Asking, Ask) == []


def test_step_may_take_a_subclass_of_what_is_made():
    """`-> A` may bring a SubA, so a step that takes only SubA is neither loose nor unreachable."""

    class Sub(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A: ...
        @step
        async def a(self, ev: A) -> StopEvent: ...
        @step
        async def sub(self, ev: SubA) -> StopEvent: ...

    Sub()


def test_step_may_take_a_parent_of_what_is_made():
    """A step that takes Event takes everything that no one else does."""

    class Wide(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A | B: ...
        @step
        async def rest(self, ev: Event) -> StopEvent: ...

    Wide()

    assert routed(Wide, SubSubA) == ["rest"]


def test_nested_fan_outs_know_their_joins():
    """A fan-out ends in the join at its own depth, not in one further in or out."""

    class Nested(Workflow):
        @step
        async def outer(self, ev: StartEvent) -> list[A]: ...
        @step
        async def inner(self, ev: A) -> list[B]: ...
        @step
        async def inner_join(self, evs: list[B]) -> C: ...
        @step
        async def outer_join(self, evs: list[C]) -> StopEvent: ...

    Nested()

    assert graph_of(Nested).joins == ((3,), (2,), (), ())


@pytest.mark.anyio
async def test_join_that_is_reached_at_two_depths_loses_no_branch():
    """A join with a way in that skips an inner one is refused, or gets all there is, once."""

    class Skipping(Workflow):
        @step
        async def outer(self, ev: StartEvent) -> list[A]:
            return [A(n=10), A(n=20)]

        @step
        async def inner(self, ev: A) -> list[B]:
            return [B(n=ev.n), B(n=ev.n + 1)]

        @step
        async def work(self, ev: B) -> SubA | C:
            return C(n=ev.n) if ev.n % 2 else SubA(n=ev.n)

        @step
        async def inner_join(self, evs: list[SubA]) -> C:
            return C(n=evs[0].n)

        @step
        async def outer_join(self, evs: list[C]) -> StopEvent:
            return StopEvent(result=sorted(ev.n for ev in evs))

    try:
        workflow = Skipping()
    except WorkflowValidationError as error:
        assert "outer_join" in str(error)  # noqa: PT017
        return

    assert await workflow.run() == [10, 11, 20, 21]


# -- the decorator ----------------------------------------------------------------------------------------------------


def make_plain_generator():
    @step
    def stream(self, ev: StartEvent) -> StopEvent:
        yield


def make_generator():
    @step
    async def stream(self, ev: StartEvent) -> StopEvent:
        yield


def make_class():
    @step
    class Odd:
        pass


def make_from_number():
    step(3)


def with_workers(value):
    def make():
        @step(num_workers=value)
        async def odd(self, ev: StartEvent) -> StopEvent: ...

    return make


def with_timeout(value):
    def make():
        @step(timeout=value)
        async def odd(self, ev: StartEvent) -> StopEvent: ...

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            make_plain_generator,
            (
                "the step make_plain_generator.<locals>.stream is a generator; expected an async "
                "method that returns its event and streams with ctx.write_event_to_stream(event)"
            ),
        ),
        (
            make_generator,
            (
                "the step make_generator.<locals>.stream is an async generator; expected an async "
                "method that returns its event and streams with ctx.write_event_to_stream(event)"
            ),
        ),
        (make_class, "@step needs a method, but make_class.<locals>.Odd is not one"),
        (make_from_number, "@step needs a method, but 3 is not one"),
        (with_workers(0), "num_workers of the step .*odd is 0; expected an int of at least 1"),
        (with_workers(-1), "num_workers of the step .*odd is -1; expected an int of at least 1"),
        (with_workers(True), "num_workers of the step .*odd is True; expected an int"),
        (with_workers(2.0), r"num_workers of the step .*odd is 2\.0; expected an int"),
        (with_workers("2"), "num_workers of the step .*odd is '2'; expected an int"),
        (with_workers(None), "num_workers of the step .*odd is None; expected an int"),
        (with_timeout(0), "timeout of the step .*odd is 0; expected seconds above 0, or None"),
        (with_timeout(-0.5), r"timeout of the step .*odd is -0\.5; expected seconds above 0"),
        (with_timeout(float("nan")), "timeout of the step .*odd is nan; expected seconds above 0"),
        (with_timeout("5"), "timeout of the step .*odd is '5'; expected seconds above 0"),
    ],
)
def test_decorator_refuses_what_cannot_be_a_step(make, message):
    """P13: it raises at once, and shows the right spelling."""
    pattern = message if "odd" in message else re.escape(message)
    with pytest.raises(WorkflowValidationError, match=pattern):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "Fine(timeout=0); expected seconds above 0, or None for no limit"),
        ({"timeout": -1}, "Fine(timeout=-1); expected seconds above 0"),
        ({"timeout": float("nan")}, "Fine(timeout=nan); expected seconds above 0"),
        ({"timeout": "30"}, "Fine(timeout='30'); expected seconds above 0"),
        ({"stream_buffer": 0}, "Fine(stream_buffer=0); expected an int of at least 1"),
        ({"stream_buffer": 1.5}, "Fine(stream_buffer=1.5); expected an int of at least 1"),
        ({"stream_buffer": True}, "Fine(stream_buffer=True); expected an int of at least 1"),
        ({"stream_history": 0}, "Fine(stream_history=0); expected an int of at least 1"),
        ({"stream_history": None}, "Fine(stream_history=None); expected an int of at least 1"),
        (
            {"skip_graph_checks": ["all"]},
            (
                "Fine(skip_graph_checks=...) names 'all'; expected some of 'reachability', "
                "'terminal_event', 'dead_end'"
            ),
        ),
        (
            {"skip_graph_checks": "dead_end"},
            "Fine(skip_graph_checks='dead_end'); expected a list of names",
        ),
    ],
    ids=str,
)
def test_wrong_option_of_a_workflow_is_refused(options, message):
    """P13: the message shows the class, the option and what was expected."""
    with pytest.raises(WorkflowValidationError, match=re.escape(message)):
        Fine(**options)


@pytest.mark.parametrize(
    ("run", "kind", "message"),
    [
        (
            lambda: Topical().run(topik="x"),
            TypeError,
            "OtherStart has no field 'topik', did you mean 'topic'?",
        ),
        (lambda: Topical().run(), TypeError, "OtherStart lacks 'topic'"),
        (
            lambda: Topical().run(start_event=StartEvent(topic="x")),
            TypeError,
            (
                "Topical begins with OtherStart, and was given StartEvent; expected "
                "run(start_event=OtherStart(...)) or its fields as keywords"
            ),
        ),
        (
            lambda: Topical().run(start_event=OtherStart(topic="x"), topic="y"),
            TypeError,
            "run() was given both a start_event and topic; expected one or the other",
        ),
        (
            lambda: Topical().run(start_event="x"),
            TypeError,
            "Topical begins with OtherStart, and was given str",
        ),
        (
            lambda: Uninitialised().run(),
            WorkflowRuntimeError,
            (
                "Uninitialised.__init__ does not call its parent's; expected "
                "`super().__init__(timeout=...)` in it"
            ),
        ),
    ],
)
def test_wrong_call_of_run_is_refused(run, kind, message):
    """P13: a wrong start event is an error at run(), not in the run."""
    with pytest.raises(kind, match=re.escape(message)):
        run()


class Topical(Workflow):
    @step
    async def begin(self, ev: OtherStart) -> StopEvent: ...


class Uninitialised(Workflow):
    def __init__(self) -> None:
        self.something = 1

    @step
    async def begin(self, ev: StartEvent) -> StopEvent: ...


@pytest.mark.parametrize("kind", [classmethod, staticmethod])
def test_step_that_is_no_method_is_a_fault(kind):
    """P13: a classmethod or staticmethod around a step would drop it without a word."""

    class Odd(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent: ...

        @kind
        @step
        async def extra(self, ev: StartEvent) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match=f"Odd.extra is a {kind.__name__}; expected"):
        Odd()


class Unheard(Event):
    pass


def build_unreached():
    class Wrong(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @step
        async def lonely(self, ev: Unheard) -> StopEvent:
            return StopEvent()

    return Wrong


def build_unheard():
    class Wrong(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Unheard | StopEvent:
            return StopEvent()

    return Wrong


def build_unstoppable():
    class Wrong(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(number=1)

        @step
        async def begin_again(self, ev: Item) -> Item:
            return ev

    return Wrong


def build_unstartable():
    class Wrong(Workflow):
        @step
        async def begin(self, ev: Unheard) -> StopEvent | Unheard:
            return StopEvent()

    return Wrong


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (build_unreached, ["lonely", "Unheard"]),
        (build_unheard, ["begin", "Unheard"]),
        (build_unstoppable, ["begin", "StopEvent"]),
        (build_unstartable, ["StartEvent"]),
    ],
)
def test_wrong_graph_is_refused_when_the_workflow_is_built(build, named):
    """P13: before anything runs, with the class, the step and what was expected."""
    kind = build()
    with pytest.raises(WorkflowValidationError) as caught:
        kind()

    text = str(caught.value)
    assert "Wrong" in text
    assert "expected" in text
    assert all(name in text for name in named)
    assert all("expected" in problem for problem in caught.value.problems)


@pytest.mark.anyio
@pytest.mark.peer("note 1.4")
async def test_graph_can_be_validated_in_an_event_loop():
    """``validate()`` opens no event loop of its own, and tells whether people are asked."""

    class Asks(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Asked:
            return Asked(name="ann")

        @step
        async def end(self, ev: Said) -> StopEvent:
            return StopEvent()

    async def nothing(ctx): ...

    assert Asks().validate() is True
    assert Single(nothing).validate() is False


def test_parameter_that_would_shift_the_others_is_a_fault():
    """P13: steps are called by position, so a default may not stand before what is passed."""

    class Shifted(Workflow[None]):
        @step
        async def only(self, ev: StartEvent, limit: int = 3, ctx: Context = None) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="'ctx' after 'limit'"):
        Shifted()


def test_names_that_run_needs_are_faults():
    """P13: a step called run, and fields that run() takes for itself."""

    class Named(StartEvent):
        run_id: str

    class Takes(Workflow[None]):
        @step
        async def only(self, ev: Named) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="has a field 'run_id'"):
        Takes()

    class Runs(Workflow[None]):
        @step
        async def run(self, ev: StartEvent) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="expected another name"):
        Runs()


def test_observers_are_checked_when_the_workflow_is_built():
    """P13: not when the run is over."""
    for wrong in (object(), [object()], Observer()):
        with pytest.raises(WorkflowValidationError, match=r"derived from sluicegate\.Observer"):
            One(observers=wrong)


def test_coroutine_instead_of_a_function():
    """The likeliest slip of all says the right line, and leaves no warning."""

    async def main(): ...

    with pytest.raises(TypeError, match=r"run\(main\), not run\(main\(\)\)"):
        sluicegate.run(main())


def test_quoted_and_nested_names_are_resolved():
    """Annotations may be quoted, and may name a class of the workflow's own body."""

    class Local(Event):
        pass

    class Nests(Workflow[None]):
        class Inner(Event):
            pass

        @step
        async def begin(self, ev: StartEvent) -> Local:
            return Local()

        @step
        async def go(self, ev: Local) -> Inner:
            return self.Inner()

        @step
        async def end(self, ev: Inner) -> StopEvent:
            return StopEvent()

    Nests()


@pytest.mark.parametrize("note", ["Start Event", "list", "StartEvent | 'Nope'"])
def test_annotation_that_means_nothing_is_a_fault(note):
    """P13: whatever stands there, the answer is a WorkflowValidationError that names the step."""

    async def only(self, ev):
        return StopEvent()

    only.__annotations__ = {"ev": note, "return": "StopEvent"}
    only.__globals__.setdefault("StopEvent", StopEvent)
    kind = type("Odd", (Workflow,), {"only": step(only)})

    with pytest.raises(WorkflowValidationError, match=r"Odd\.only"):
        kind()


def test_validate_leaves_out_what_the_workflow_left_out():
    """A workflow that could be built can be validated."""

    class Loose(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent | Item: ...

    assert Loose(skip_graph_checks=["terminal_event"]).validate() is False
