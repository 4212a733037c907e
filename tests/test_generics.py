"""Generic events and workflows: each argument makes a class of its own, which is checked and routed."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from typing import Any, Generic, TypeVar

import attrs
import pytest

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowValidationError,
    decode_event,
    step,
)
from sluicegate._definition.checks import find_faults
from sluicegate._definition.graph import graph_of
from tests.helpers import wait_until_idle


T = TypeVar("T")
U = TypeVar("U")
E = TypeVar("E", bound=Event)
F = TypeVar("F", bound=Event)


class Text(Event):
    content: str


class Image(Event):
    pixels: int


class Chunk(Event, Generic[T]):
    value: T
    number: int = 0


class Pair(Chunk[T], Generic[T, U]):
    other: U
    more: list[T | U] = attrs.field(factory=list)


class TextPair(Pair[Text, U]):
    pass


class Checked(Event, Generic[T], validate=True):
    value: T


class Answer(HumanResponseEvent, Generic[T]):
    value: T


class Result(StopEvent, Generic[T]):
    value: T


class Split(Workflow[list[str]]):
    """Texts and images in one generic event; what is made without arguments is told by its values."""

    @step
    async def begin(self, ev: StartEvent) -> list[Chunk[Text] | Chunk[Image]]:
        made = {
            "t": lambda: Chunk[Text](value=Text(content="")),
            "i": lambda: Chunk[Image](value=Image(pixels=1)),
            "T": lambda: Chunk(value=Text(content="")),
            "I": lambda: Chunk(value=Image(pixels=1)),
        }
        return [made[letter]() for letter in ev.letters]

    @step
    async def text(self, ev: Chunk[Text]) -> Text:
        assert isinstance(ev.value, Text)
        return Text(content="text")

    @step
    async def image(self, ev: Chunk[Image]) -> Text:
        assert isinstance(ev.value, Image)
        return Text(content="image")

    @step
    async def join(self, evs: list[Text]) -> StopEvent:
        return StopEvent(result=[ev.content for ev in evs])


# -- the classes -------------------------------------------------------------------------------


def test_each_argument_makes_one_class():
    """``Chunk[Text]`` is a subclass of ``Chunk``, the same one every time, with its own fields."""
    assert Chunk[Text] is Chunk[Text]
    assert Chunk[Text] is not Chunk[Image]
    assert issubclass(Chunk[Text], Chunk)
    assert (Chunk[Text].__name__, Chunk[list[int]].__name__) == ("Chunk[Text]", "Chunk[list[int]]")
    assert Chunk[int].__annotations__ == {"value": int, "number": int}
    assert repr(Chunk[int](value=1)) == "Chunk[int](value=1, number=0)"
    assert type(attrs.evolve(Chunk[int](value=1), value=2)) is Chunk[int]
    assert Chunk[Any] is Chunk


def test_a_generic_subclass_is_one_of_its_generic_parent():
    """``Pair[int, str]`` is a ``Chunk[int]``, whatever its own type variables are called."""
    pair = Pair[int, str](value=1, other="x")

    assert isinstance(pair, Chunk[int])
    assert not isinstance(pair, Chunk[str])
    assert Pair[int, str].__annotations__["other"] is str
    assert Pair[int, str].__annotations__["more"] == list[int | str]
    assert pair.more == []
    assert issubclass(TextPair[int], Pair[Text, int])
    assert issubclass(TextPair[int], Chunk[Text])
    assert TextPair[int].__annotations__["value"] is Text


def test_a_class_is_generic_as_long_as_a_type_variable_is_open():
    """``Chunk[T]`` is a base and an annotation of generic classes, and gives its class in the end."""
    assert Chunk[T][int](value=1).value == 1
    assert not isinstance(Chunk[T], type)
    with pytest.raises(TypeError):
        Chunk[int, str]
    with pytest.raises(TypeError):
        Text[int]  # type: ignore[misc]


@pytest.mark.parametrize("event", [Chunk[int](value=1), Pair[int, Text](value=1, other=None)])
def test_events_with_arguments_are_pickled_and_copied(event):
    """They come back as what they were, in a process that has never made the class."""
    for again in (pickle.loads(pickle.dumps(event)), copy.copy(event), copy.deepcopy(event)):
        assert type(again) is type(event)
        assert again.to_dict() == event.to_dict()


def test_classes_with_arguments_are_collected():
    """A class that was made for an argument lives as long as it is used."""

    class Local(Event):
        n: int

    kept = weakref.ref(Chunk[Local])
    del Local
    gc.collect()

    assert kept() is None


def test_the_argument_is_validated():
    """``validate=True`` checks a field of type ``T`` against the argument."""
    assert Checked[int](value=1).value == 1
    with pytest.raises(TypeError, match=r"Checked\[int\]\.value is 'x', which is not int"):
        Checked[int](value="x")
    with pytest.raises(TypeError, match=r"Checked\[list\[int\]\]\.value"):
        Checked[list[int]](value=["x"])


def test_the_argument_is_decoded():
    """What comes from outside is checked against the argument, and made one of its class."""
    event = decode_event(Chunk[Text], {"value": {"content": "x"}})

    assert type(event) is Chunk[Text]
    assert isinstance(event.value, Text)
    with pytest.raises(TypeError, match=r"Chunk\[int\]\.value is 'x', which is not int"):
        decode_event(Chunk[int], {"value": "x"})


# -- in workflows ------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("letters", ["ti", "TI", "tTiI", "IIt"])
async def test_an_event_goes_to_the_steps_of_its_argument(letters):
    """With its argument written out, or, as type checkers infer it, told by its fields."""
    expected = [{"t": "text", "i": "image"}[letter.lower()] for letter in letters]

    assert sorted(expected) == sorted(await Split().run(letters=letters))


@pytest.mark.anyio
async def test_an_event_without_arguments_is_the_one_that_its_step_declares():
    """``-> Chunk[Text]`` and ``return Chunk(...)``: returned, sent, and as the stop event."""
    seen = []

    class Single(Workflow[Result[int]]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Chunk[Text] | Chunk[Image] | Text:
            ctx.send_event(Chunk(value=Image(pixels=1)))
            return Text(content="x")

        @step
        async def again(self, ev: Text) -> Chunk[Text]:
            return Chunk(value=ev)

        @step
        async def both(self, text: Chunk[Text], image: Chunk[Image]) -> Result[int]:
            seen.extend([type(text), type(image)])
            return Result(value=3)

    result = await Single().run()

    assert type(result) is Result[int]
    assert result.value == 3
    assert seen == [Chunk[Text], Chunk[Image]]


@pytest.mark.anyio
async def test_an_event_without_arguments_comes_after_those_that_were_kept_back():
    """In a step with retries what it returns is looked at before what it sent is let out."""

    class Keeps(Workflow):
        @step(retry=Retry())
        async def begin(self, ctx: Context, ev: StartEvent) -> Chunk[Text] | Chunk[Image]:
            ctx.send_event(Chunk(value=Image(pixels=1)))
            return Chunk(value=Text(content="x"))

        @step
        async def both(self, text: Chunk[Text], image: Chunk[Image]) -> StopEvent:
            return StopEvent(result="both")

    assert await Keeps().run() == "both"


@pytest.mark.anyio
async def test_an_argument_that_cannot_be_told_is_an_error_with_the_line():
    """P13: where values fit several arguments, the event has to be made with one."""

    class Unclear(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Chunk[int] | Chunk[float | int]:
            return Chunk(value=1)

        @step
        async def a(self, ev: Chunk[int]) -> StopEvent:
            return StopEvent()

        @step
        async def b(self, ev: Chunk[float | int]) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowRuntimeError, match=r"expected Chunk\[int\] or Chunk\[float \| int\]"
    ):
        await Unclear().run()


def test_a_loose_argument_is_a_fault_when_the_workflow_is_built():
    """P13: a step that takes ``Chunk[Image]`` gets no ``Chunk[Text]``, and that is told."""

    class Loose(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Chunk[Text]: ...
        @step
        async def end(self, ev: Chunk[Image]) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError) as caught:
        Loose()

    assert "no step takes Chunk[Text], which the step begin makes" in str(caught.value)
    assert "no step makes Chunk[Image], which the step end takes" in str(caught.value)


@pytest.mark.anyio
async def test_a_step_without_arguments_takes_them_all():
    """``ev: Chunk`` takes each ``Chunk[...]`` that no step takes by its argument."""

    class All(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Chunk[Text] | Chunk[Image]]:
            return [Chunk(value=Text(content="x")), Chunk(value=Image(pixels=1))]

        @step
        async def text(self, ev: Chunk[Text]) -> Text:
            return Text(content="by its argument")

        @step
        async def rest(self, ev: Chunk) -> Text:
            return Text(content=type(ev).__name__)

        @step
        async def join(self, evs: list[Text]) -> StopEvent:
            return StopEvent(result={ev.content for ev in evs})

    assert await All().run() == {"by its argument", "Chunk[Image]"}


@pytest.mark.anyio
async def test_a_wait_is_for_one_argument():
    """``wait_for_event(Answer[int])`` takes an answer with that argument, and no other."""

    class Asks(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Answer[int])
            return StopEvent(result=answer.value)

    async with Asks().run() as handler:
        handler.send_event(Answer[str](value="x"))
        handler.send_event(Answer[int](value=3))

        assert await handler == 3


class Begin(StartEvent, Generic[T]):
    value: T


class Outside(Workflow):
    """Takes generic events from outside, in a step, in a wait and as its start."""

    @step
    async def begin(self, ctx: Context, ev: Begin[int]) -> Text:
        answer = await ctx.wait_for_event(Answer[int])
        return Text(content=f"{ev.value} {answer.value}")

    @step
    async def later(self, ev: Text, answer: Answer[str]) -> StopEvent:
        return StopEvent(result=f"{ev.content} {answer.value}")


@pytest.mark.anyio
@pytest.mark.parametrize("target", [None, "later"])
async def test_an_event_from_outside_may_be_made_without_arguments(target):
    """It is the one that a step, a wait or the run begins with, told by its fields."""
    async with Outside().run(start_event=Begin(value=1)) as handler:
        await wait_until_idle()
        handler.send_event(Answer(value="x"), target)
        handler.send_event(Answer(value=2))

        assert await handler == "1 2 x"


@pytest.mark.anyio
async def test_a_snapshot_keeps_the_arguments():
    """Events with arguments are in snapshots and in states that are read back."""

    class Keeps(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Chunk[Text] | Chunk[Image] | None:
            ctx.send_event(Chunk[Text](value=Text(content="x")))
            ctx.send_event(Chunk[Image](value=Image(pixels=4)))
            await ctx.store.set("kept", Chunk[Text](value=Text(content="y")))
            return None

        @step
        async def join(
            self, ctx: Context, text: Chunk[Text], image: Chunk[Image], answer: Answer[int]
        ) -> StopEvent:
            kept = await ctx.store.get("kept")
            return StopEvent(result=(type(kept), text.value.content, image.value.pixels, answer))

    workflow = Keeps()
    async with workflow.run() as handler:
        async for event in handler.stream_events(expose_internal=True):
            if type(event).__name__ == "WorkflowIdleEvent":
                saved = json.loads(json.dumps(handler.snapshot()))
                await handler.cancel("saved")
    async with workflow.resume(saved) as handler:
        answer = Answer[int](value=5)
        handler.send_event(answer)

        assert await handler == (Chunk[Text], "x", 4, answer)


def test_a_step_in_a_process_takes_arguments_that_have_names():
    """A worker process finds the class and the arguments by their names, and makes of them the same."""

    class Works(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Chunk[Text]: ...

        @step(in_process=True)
        @staticmethod
        def work(ev: Chunk[Text]) -> Result[int]: ...

    class Local(Event):
        n: int

    class WorksNot(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Chunk[Local]: ...

        @step(in_process=True)
        @staticmethod
        def work(ev: Chunk[Local]) -> Result[int]: ...

    # The function of a test is never importable; the classes of its events are what matters.
    assert not any("event class" in fault.text for fault in find_faults(graph_of(Works)))
    assert any(
        "event class Local is defined inside" in f.text for f in find_faults(graph_of(WorksNot))
    )


def test_generic_may_come_first():
    """``class First(Generic[T], Event)`` is as generic as the other way round."""

    class First(Generic[T], Event):  # noqa: PYI059 - it is what is tried
        value: T

    assert First[int] is First[int]
    assert type(First[int](value=1)) is First[int]
    assert First[int].__annotations__ == {"value": int}


# -- generic workflows ---------------------------------------------------------------------------


class Note(Event):
    n: int


class Echo(Workflow[E], Generic[E]):
    """A workflow whose steps name a type variable."""

    @step
    async def begin(self, ev: StartEvent) -> list[E]:
        return self.make()

    def make(self) -> list[E]:
        raise NotImplementedError

    @step
    async def wrap(self, ev: E) -> Chunk[E]:
        return Chunk(value=ev)

    @step
    async def join(self, evs: list[Chunk[E]]) -> StopEvent:
        return StopEvent(result=[ev.value for ev in evs])


class EchoNote(Echo[Note]):
    def make(self) -> list[Note]:
        return [Note(n=1), Note(n=2)]


class Further(Echo[F], Generic[F]):
    @step
    async def join(self, evs: list[Chunk[F]]) -> StopEvent:
        return StopEvent(result=len(evs))


class FurtherNote(EchoNote, Further[Note]):
    pass


@pytest.mark.anyio
async def test_a_subclass_says_what_the_type_variables_of_its_steps_stand_for():
    """``class EchoNote(Echo[Note])`` has the steps of Echo, with Note in their annotations."""
    assert sorted(n.n for n in await EchoNote().run()) == [1, 2]
    assert [s.accepts for s in graph_of(EchoNote).steps] == [(StartEvent,), (Note,), (Chunk[Note],)]
    assert graph_of(FurtherNote).steps[-1].accepts == (Chunk[Note],)


@pytest.mark.anyio
async def test_two_subclasses_of_one_generic_workflow_are_apart():
    """The same steps stand for other classes in another subclass, and in one further down."""

    class EchoText(Further[Text]):
        def make(self):
            return [Text(content="x")] * 3

    assert await EchoText().run() == 3
    assert graph_of(EchoText).steps[1].accepts == (Text,)
    assert graph_of(EchoNote).steps[1].accepts == (Note,)


def test_a_workflow_whose_type_variables_are_open_is_not_built():
    """P13: the error says how a subclass says what they stand for."""
    with pytest.raises(WorkflowValidationError) as caught:
        Echo()

    assert (
        "Echo.wrap has a parameter 'ev' annotated with the type variable E; expected a subclass"
        in str(caught.value)
    )
    assert "class MyEcho(Echo[MyEvent])" in str(caught.value)
    with pytest.raises(WorkflowValidationError):
        Echo[Note]()


def test_the_state_of_a_generic_workflow_is_that_of_its_subclass():
    """``ctx: Context[S]`` names the class that S stands for."""
    S = TypeVar("S")

    class Counts(Workflow, Generic[S]):
        @step
        async def begin(self, ctx: Context[S], ev: StartEvent) -> StopEvent: ...

    @attrs.define
    class State:
        n: int = 0

    class CountsState(Counts[State]):
        pass

    assert graph_of(CountsState).state_type is State
