"""Tools: a function's schema, a model's arguments as its own, and the calls of them."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal, TypedDict

import anyio
import attrs
import jsonschema
import msgspec
import pydantic
import pytest
import trio

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.llms import (
    ChatMessage,
    MockLLM,
    Tool,
    ToolCall,
    ToolError,
    ToolResult,
    Usage,
    call_tool,
    call_tools,
    tool,
)
from sluicegate.testing import sweep
from tests.helpers import cancelled_class


def ask(name, arguments="{}", number="1"):
    """Make the call of a model; arguments that are no text are written as JSON."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return ToolCall(id=number, name=name, arguments=text)


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


class Leg(msgspec.Struct):
    to: str
    on: date | None = None


@attrs.frozen
class Trip:
    """A trip by train."""

    legs: list[Leg]
    seats: Annotated[int, "How many people travel"] = 1


class Payer(pydantic.BaseModel):
    email: str
    age: int = pydantic.Field(ge=18, description="In years")


@dataclasses.dataclass
class Tree:
    """A tree."""

    name: str
    branches: list[Tree] = dataclasses.field(default_factory=list)


class Filter(TypedDict, total=False):
    after: date


class Booked(Event):
    number: int


class Refused(Event):
    reason: str


async def weather(
    city: Annotated[str, "Name of the city"], days: int = 1, unit: Unit = Unit.C
) -> str:
    """Tell the weather of the next days.

    It knows cities only.

    Args:
        city: Not used, because the annotation says more.
        days (int): How many days,
            from today.
        unit: Of the temperatures.

    Returns:
        A text.
    """
    await anyio.lowlevel.checkpoint()
    return f"{city}: {days} days in {unit.value}"


# -- the schema -----------------------------------------------------------------------------------


def test_a_function_becomes_a_tool():
    """Name, description and schema come from the signature, the annotations and the docstring."""
    made = tool(weather)

    assert made.name == "weather"
    assert made.description == "Tell the weather of the next days.\n\nIt knows cities only."
    assert made.input_schema == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city"},
            "days": {"type": "integer", "default": 1, "description": "How many days, from today."},
            "unit": {
                "$ref": "#/$defs/Unit",
                "default": "celsius",
                "description": "Of the temperatures.",
            },
        },
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"Unit": {"title": "Unit", "enum": ["celsius", "fahrenheit"]}},
    }
    assert made.to_openai_tool() == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": made.description,
            "parameters": made.input_schema,
        },
    }


def test_name_and_description_can_be_given():
    """Both replace those of the function; the rest of the schema stays."""
    made = tool(weather, name="forecast", description="")

    assert (made.name, made.description) == ("forecast", "")
    assert made.input_schema == tool(weather).input_schema


def numpy_style(a: int, b: str = "") -> None:
    """Do it.

    Parameters
    ----------
    a : int
        The first.
    b
        The second,
        longer.

    Returns
    -------
    c : int
        Nothing.
    """


def sphinx_style(a: int, b: str = "") -> None:
    """Do it.

    :param a: The first.
    :param str b: The second,
        longer.
    :returns: Nothing.
    :rtype: None
    """


def google_style(a: int, b: str = "") -> None:
    """Do it.

    Args:
        a: The first.
        b (str): The second,
            longer.

    Raises:
        c: Never.
    """


@pytest.mark.parametrize("function", [numpy_style, sphinx_style, google_style])
def test_every_style_of_docstring_is_read(function):
    """Parameters are described in Google's, NumPy's and Sphinx's style, and nothing else is one."""
    made = tool(function)
    described = {k: v["description"] for k, v in made.input_schema["properties"].items()}

    assert described == {"a": "The first.", "b": "The second, longer."}
    assert made.description == "Do it."


def described_by_libraries(
    a: Annotated[int, msgspec.Meta(description="By msgspec.", ge=1)],
    b: Annotated[int, pydantic.Field(description="By pydantic.", le=9)],
    c: Annotated[Payer | None, "By a text."] = None,
) -> None:
    """
    Args:
        a: Not this.
        b: Nor this.
        c: Nor this.
    """


def test_descriptions_of_libraries_count():
    """A description by msgspec, pydantic or a text wins over the docstring; limits are in the schema."""
    properties = tool(described_by_libraries).input_schema["properties"]

    assert properties["a"] == {"type": "integer", "minimum": 1, "description": "By msgspec."}
    assert properties["b"]["description"] == "By pydantic."
    assert properties["b"]["maximum"] == 9
    assert properties["c"]["description"] == "By a text."


def everything(
    trip: Trip,
    payer: Payer,
    tree: Tree,
    kind: Literal["one-way", "return"],
    *,
    more: dict[str, list[int]],
    at: Filter,
    result: Booked | Refused | None = None,
    price: float | str = 0.5,
    anything: Any = None,
) -> str:
    """Take everything."""
    return repr((trip, payer, tree, kind, more, at, result, price, anything))


EVERYTHING = {
    "trip": {"legs": [{"to": "Rome", "on": "2026-12-01"}, {"to": "Ostia"}], "seats": 2},
    "payer": {"email": "a@b.c", "age": 20},
    "tree": {"name": "oak", "branches": [{"name": "twig"}]},
    "kind": "return",
    "more": {"a": [1]},
    "at": {"after": "2026-01-02"},
    "result": {"event": "Refused", "reason": "full"},
}


@pytest.mark.anyio
async def test_nested_arguments_are_values_of_their_classes():
    """Whatever an event's field may be, a parameter may; the schema and the decoding agree."""
    made = tool(everything)
    jsonschema.Draft202012Validator.check_schema(made.input_schema)
    jsonschema.validate(EVERYTHING, made.input_schema)

    assert await made.call(EVERYTHING) == repr(
        (
            Trip([Leg("Rome", date(2026, 12, 1)), Leg("Ostia")], 2),
            Payer(email="a@b.c", age=20),
            Tree("oak", [Tree("twig")]),
            "return",
            {"a": [1]},
            {"after": date(2026, 1, 2)},
            Refused(reason="full"),
            0.5,
            None,
        )
    )


# -- what cannot be a tool ------------------------------------------------------------------------


class Held(msgspec.Struct):
    handles: list[socket.socket]


class Deep(Event):
    held: Held


def closes(deep: Deep, on_end: Callable[[], None], either: str | socket.socket) -> None:
    """Cannot come from JSON."""


async def of_a_run(ctx: Context, key, *more: str, **others: int) -> None:
    """Cannot be chosen by a model."""


def with_default(a: int = pydantic.Field(description="x")) -> None:
    """Would be called with the field."""


def positional(a: int, /) -> None:
    """Cannot be called by name."""


def of_nowhere(a: Nowhere) -> None:  # noqa: F821 - it is the point
    """Cannot be resolved."""


def yields(a: int):
    """Has more than one result."""
    yield a


POSSIBLE = (
    "; expected str, int, float, bool, None, an enum, a date, a list or dict of these, a dataclass, "
    "an attrs, msgspec or pydantic class, or an Event"
)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            closes,
            (
                "cannot make a tool of closes: deep.held.handles[...]: it cannot come from a model; "
                "on_end: Callable[[], None] cannot come from a model; "
                f"either: str | socket cannot come from a model{POSSIBLE}"
            ),
        ),
        (
            of_a_run,
            (
                "cannot make a tool of of_a_run: ctx: is the context of a run, which no model can give; "
                "expected it bound by the step: `tool(functools.partial(of_a_run, ctx))`, with ctx as the "
                "first parameter; key: has no annotation; expected its type, such as `key: str`; "
                "*more: expected a list, `more: list[str]`; **others: expected each argument by its name, "
                "or a dict, `others: dict[str, str]`"
            ),
        ),
        (
            with_default,
            (
                "cannot make a tool of with_default: a: has a Field(...) as its default, which the "
                "function would be called with; expected `a: Annotated[int, Field(...)]`"
            ),
        ),
        (
            positional,
            "cannot make a tool of positional: a: is positional only; expected the signature without `/`",
        ),
        (
            of_nowhere,
            (
                "cannot resolve the annotations of of_nowhere: name 'Nowhere' is not defined; expected "
                "every name to be importable from its module (not under TYPE_CHECKING)"
            ),
        ),
        (yields, "yields yields values; expected a function that returns one result"),
        (5, "tool() was given a value of int; expected a function: `tool(find_trains)`"),
        (Trip, "tool() was given the class Trip; expected a function: `tool(find_trains)`"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(function, message):
    """Each faulty parameter is named at once, with its path and the line to write."""
    with pytest.raises(TypeError) as caught:
        tool(function)

    assert str(caught.value).replace("collections.abc.", "") == message


def test_names_are_those_that_models_accept():
    """A lambda needs a name, and a name is checked before a server refuses it."""
    with pytest.raises(ValueError, match=r"the name of a tool is '<lambda>'; expected 1 to 64 let"):
        tool(lambda: 1)
    with pytest.raises(ValueError, match="the name of a tool is 'a b'"):
        Tool(name="a b", input_schema={}, call=weather)
    assert tool(lambda: 1, name="one").name == "one"


def test_bad_options_are_refused():
    """``errors`` are classes of exceptions, and a tool is made once."""
    with pytest.raises(TypeError, match="expected classes of exceptions"):
        tool(weather, errors=(5,))
    with pytest.raises(TypeError, match="expected classes of exceptions"):
        tool(weather, errors=OSError)
    with pytest.raises(TypeError, match="is a tool already"):
        tool(tool(weather))


# -- the arguments --------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"city": 5, "days": "x", "town": 1},
            (
                "wrong arguments for weather: unknown argument 'town'; city: Expected `str`, got `int`; "
                "days: Expected `int`, got `str`. Its arguments are: city, days, unit"
            ),
        ),
        (
            {"days": 2},
            "wrong arguments for weather: missing argument 'city'. Its arguments are: city, days, unit",
        ),
        (
            {"city": "Rome", "unit": "kelvin"},
            (
                "wrong arguments for weather: unit: Invalid enum value 'kelvin'. Its arguments are: "
                "city, days, unit"
            ),
        ),
        ("[1]", "the arguments for tool 'weather' are not an object; expected {\"name\": value}"),
        (
            '{"city": "Rome"',
            (
                "the arguments for tool 'weather' are not valid JSON: Expecting ',' delimiter: line 1 "
                'column 16 (char 15); got \'{"city": "Rome"\''
            ),
        ),
        ("[" * 100_000, None),
        ({f"a{n}": 1 for n in range(50)} | {"city": "Rome"}, None),
    ],
    ids=["types", "missing", "enum", "array", "broken", "deep", "many"],
)
async def test_wrong_arguments_are_told_to_the_model(arguments, text):
    """Arguments are checked before the function is called; the model gets every fault as text."""
    result = await call_tool(ask("weather", arguments), [tool(weather)])

    assert result.is_error
    assert len(result.text) < 1000
    assert text is None or result.text == text


@pytest.mark.anyio
async def test_faults_deep_in_an_argument_have_their_path():
    """The path leads through lists, classes and models to the faulty value."""
    arguments = {
        **EVERYTHING,
        "trip": {"legs": [{"to": "Rome"}, {"to": 3}]},
        "payer": {"email": "a@b.c", "age": 17},
        "more": {"a": ["x"]},
    }
    result = await call_tool(ask("everything", arguments), [tool(everything)])

    assert "trip.legs[1].to: Expected `str`, got `int`" in result.text
    assert "payer.age: Input should be greater than or equal to 18" in result.text
    assert "more[...][0]: Expected `int`, got `str`" in result.text


class Imports(pydantic.BaseModel):
    function: pydantic.ImportString


def takes_a_name(what: Booked | Refused, imported: Imports | None = None) -> str:
    """Take what has a name."""
    return repr(what)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "arguments",
    [
        {"what": {"event": "StopEvent", "result": 1}},
        {"what": {"event": "antigravity.Booked", "number": 1}},
        {"what": {"event": "Booked", "number": 1}, "imported": {"function": "antigravity.fly"}},
    ],
)
async def test_no_name_of_a_model_is_looked_up(arguments):
    """P19: the model selects among annotated classes; nothing is imported or looked up by name."""
    result = await call_tool(ask("takes_a_name", arguments), [tool(takes_a_name)])

    assert result.is_error
    assert "antigravity" not in sys.modules


@pytest.mark.anyio
async def test_unknown_tool_is_told_to_the_model():
    """The model gets the names that there are."""
    result = await call_tool(ask("book"), [tool(weather), tool(everything)])

    assert result == ToolResult(
        call=ask("book"),
        text="there is no tool 'book'; the tools are: weather, everything",
        is_error=True,
    )
    assert (await call_tool(ask("book"), [])).text.endswith("the tools are: none")


# -- the call -------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (None, "null"),
        ({"a": [1, 2.5]}, '{"a":[1,2.5]}'),
        (Trip([Leg("Rome")]), '{"legs":[{"to":"Rome","on":null}],"seats":1}'),
        (Payer(email="a", age=18), '{"email":"a","age":18}'),
        (date(2026, 1, 2), '"2026-01-02"'),
    ],
    ids=str,
)
async def test_results_are_text_for_the_model(value, text):
    """A text is given as it is, anything else as JSON; the message continues the conversation."""

    def give() -> Any:
        return value

    result = await call_tool(ask("give", number="c7"), [tool(give)])

    assert (result.text, result.is_error) == (text, False)
    assert result.message == ChatMessage("tool", text, tool_call_id="c7")


@pytest.mark.anyio
async def test_errors_for_the_model_and_for_the_step():
    """A ``ToolError`` and the listed exceptions are the model's; any other is raised as it is."""
    error = KeyError("mine")

    async def look(kind: str) -> str:
        await anyio.lowlevel.checkpoint()
        raise {"tool": ToolError("ask for a city"), "os": FileNotFoundError("no x"), "key": error}[
            kind
        ]

    tools = [tool(look, errors=(OSError,))]
    results = [await call_tool(ask("look", {"kind": kind}), tools) for kind in ("tool", "os")]

    assert [r.text for r in results] == ["ask for a city", "FileNotFoundError: no x"]
    assert all(r.is_error for r in results)
    with pytest.raises(KeyError) as caught:
        await call_tool(ask("look", {"kind": "key"}), tools)
    assert caught.value is error


@pytest.mark.anyio
async def test_plain_functions_run_in_a_thread():
    """A ``def`` tool does not block the event loop, and its exceptions are its own."""
    seen = []

    def compute(n: int) -> int:
        seen.append(threading.get_ident())
        if n < 0:
            msg = "below zero"
            raise ValueError(msg)
        return n + 1

    tools = [tool(compute, errors=(ValueError,))]

    assert (await call_tool(ask("compute", {"n": 1}), tools)).text == "2"
    assert (await call_tool(ask("compute", {"n": -1}), tools)).text == "ValueError: below zero"
    assert threading.get_ident() not in seen


class Shop:
    def __init__(self, name):
        self.name = name

    async def price(self, item: str) -> str:
        """Tell a price."""
        await anyio.lowlevel.checkpoint()
        return f"{self.name}: {item}"

    async def __call__(self, item: str) -> str:
        return await self.price(item)


async def bound(first: str, item: str, *, last: Any) -> str:
    """Tell what is bound."""
    await anyio.lowlevel.checkpoint()
    return f"{first} {item} {last}"


@pytest.mark.anyio
async def test_what_the_model_does_not_choose_is_bound():
    """Methods, partials and callable objects are tools; the schema has the other parameters only."""
    made = [
        tool(Shop("Ann's").price),
        tool(Shop("Bob's"), name="shop"),
        tool(functools.partial(bound, "a", last=object)),
    ]
    results = await call_tools([ask(one.name, {"item": "tea"}) for one in made], made)

    assert [r.text for r in results] == ["Ann's: tea", "Bob's: tea", f"a tea {object}"]
    assert all(list(one.input_schema["properties"]) == ["item"] for one in made)
    assert made[0].description == "Tell a price."
    with pytest.raises(TypeError, match="key: has no annotation"):
        tool(functools.partial(of_a_run, None))


@pytest.mark.anyio
async def test_a_partial_of_a_callable_object_is_async_as_the_object_is():
    """It is called in the event loop, and not in a thread, which would refuse its coroutine."""
    made = tool(functools.partial(Shop("Bob's"), item="tea"), name="shop")

    assert (await call_tool(ask("shop", {}), [made])).text == "Bob's: tea"


@pytest.mark.anyio
async def test_a_tool_made_by_hand():
    """A tool of another source is called with the arguments as they came; it checks them itself."""
    given = []

    async def call(arguments):
        await anyio.lowlevel.checkpoint()
        given.append(arguments)
        return "done"

    made = Tool(name="remote", description="Far away.", input_schema={"type": "object"}, call=call)
    result = await call_tool(ask("remote", {"a": [1]}), [made])

    assert (result.text, given) == ("done", [{"a": [1]}])
    assert (await call_tool(ask("remote", ""), [made])).text == "done"  # some models send nothing


@pytest.mark.anyio
async def test_calls_at_once_keep_their_order():
    """All calls run at the same time; the results are in the order of the calls."""
    running = []
    everyone = anyio.Event()

    async def meet(n: int) -> int:
        running.append(n)
        if len(running) == 3:
            everyone.set()
        await everyone.wait()
        return n

    results = await call_tools([ask("meet", {"n": n}, str(n)) for n in range(3)], [tool(meet)])

    assert [(r.call.id, r.text) for r in results] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert await call_tools([], []) == []


@pytest.mark.anyio
async def test_a_failed_call_ends_the_others():
    """The exception leaves bare, after the other calls have been cancelled and have unwound."""
    unwound = []
    error = RuntimeError("broken")
    begun = anyio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            unwound.append(True)

    async def fail() -> None:
        await begun.wait()
        raise error

    with pytest.raises(RuntimeError) as caught:
        await call_tools([ask("wait"), ask("fail")], [tool(wait), tool(fail)])

    assert caught.value is error
    assert unwound == [True]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_cancelled_anywhere_every_tool_has_unwound(backend):
    """P2: wherever the calls are cancelled, no tool goes on, and none is left without its clean-up."""

    async def scenario(trial):
        state = trial.state
        state.entered = state.left = 0

        async def hold(seconds: float) -> str:
            state.entered += 1
            try:
                await anyio.sleep(seconds)
            finally:
                state.left += 1
            return "done"

        calls = [ask("hold", {"seconds": n}) for n in (1, 2)]
        results = await call_tools(calls, [tool(hold)])
        assert [r.text for r in results] == ["done", "done"]

    def check(outcome):
        assert outcome.state.entered == outcome.state.left

    assert sweep(scenario, check=check, backends=[backend]).runs > 4


@pytest.mark.anyio
async def test_a_cancelled_thread_is_waited_for():
    """A cancellation waits for the thread of a ``def`` tool; nothing of it goes on afterwards."""
    reading, writing = os.pipe()
    begun, ended = threading.Event(), []

    def block() -> None:
        begun.set()
        os.read(reading, 1)
        ended.append(True)

    async def cancel_soon(scope):
        while not begun.is_set():
            await anyio.sleep(0.001)
        scope.cancel()
        os.write(writing, b"x")

    try:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(cancel_soon, scope)
                await call_tool(ask("block"), [tool(block)])
                await anyio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            assert ended == [True]
    finally:
        os.close(reading)
        os.close(writing)


class Told(Event):
    text: str


@pytest.mark.anyio
async def test_tools_of_a_step_use_its_context():
    """A bound context works in async tools and in ``def`` tools, as in steps."""

    async def note(ctx: Context, text: str) -> str:
        await ctx.stream.send(Told(text=text))
        return "noted"

    def count(ctx: Context, upto: int) -> int:
        ctx.from_thread.check_cancelled()
        ctx.write_event_to_stream(Told(text="counting"))
        return ctx.from_thread.run(add, upto)

    async def add(n):
        await anyio.lowlevel.checkpoint()
        return n + 1

    class Flow(Workflow[list[str]]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            tools = [tool(functools.partial(each, ctx)) for each in (note, count)]
            calls = [ask("note", {"text": "hello"}), ask("count", {"upto": 3})]
            results = [await call_tool(call, tools) for call in calls]
            return StopEvent(result=[result.text for result in results])

    async with Flow().run() as handler:
        told = [event.text async for event in handler.stream_events() if isinstance(event, Told)]

        assert await handler == ["noted", "4"]
        assert told == ["hello", "counting"]


@pytest.mark.anyio
async def test_a_cancelled_run_cancels_its_tools():
    """The run's cancellation reaches the tool; when the run has ended, the tool has unwound."""
    unwound = []

    async def wait(ctx: Context) -> None:
        try:
            ctx.write_event_to_stream(Told(text="begun"))
            await anyio.sleep_forever()
        except cancelled_class():
            unwound.append(True)
            raise

    class Flow(Workflow[str]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await call_tools([ask("wait"), ask("wait")], [tool(functools.partial(wait, ctx))])
            return StopEvent(result="never")

    begun = 0
    async with Flow().run() as handler:
        async for event in handler.stream_events():
            begun += isinstance(event, Told)
            if begun == 2:
                handler.cancel()

    assert handler.status == "cancelled"
    assert unwound == [True, True]


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_models_take_tools(llm, server):
    """The OpenAI client sends a ``Tool`` in the server's form, beside plain dicts, and no empty list."""
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    messages = [ChatMessage(content="Weather?")]
    reply = await llm.achat(messages, tools=[tool(weather), other], tool_choice="required")
    await llm.achat(messages, tools=[])
    sent = [exchange.body for exchange in server.exchanges]

    assert sent[0]["tools"] == [tool(weather).to_openai_tool(), other]
    assert "tools" not in sent[1]
    assert [call.name for call in reply.tool_calls] == ["weather"]
    assert (await call_tool(reply.tool_calls[0], [tool(weather)])).call is reply.tool_calls[0]


def test_two_tools_of_one_name_are_refused():
    """The model could not tell them apart, and neither could the call."""

    async def main():
        with pytest.raises(ValueError, match="two tools are called 'weather'; expected different"):
            await MockLLM().acomplete("x", tools=[tool(weather), tool(weather)])

    trio.run(main)


def test_usage_adds_up():
    """The usage of a run is the sum of that of its replies, in every count."""
    one = Usage(
        prompt_tokens=1, completion_tokens=2, total_tokens=3, reasoning_tokens=1, cached_tokens=1
    )

    assert one + one + Usage() == Usage(
        prompt_tokens=2, completion_tokens=4, total_tokens=6, reasoning_tokens=2, cached_tokens=2
    )
    with pytest.raises(TypeError):
        one + 1
