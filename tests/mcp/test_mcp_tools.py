"""Workflows as tools: what clients see of them, results, and errors."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import anyio
import pytest
from mcp import types
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, Field

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
    testing,
)
from sluicegate.mcp import mcp_server
from tests.mcp.flows import KEY, Book, Booked, Essay, Topic, client_of, error_of, text_of


pytestmark = pytest.mark.anyio


def returning(value, kind=Any):
    class Returns(Workflow[kind]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=value)

    return Returns()


def raising(error, **options):
    class Fails(Workflow[str]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            raise error

    return Fails(**options)


# -- what clients see --------------------------------------------------------------------------------


async def test_each_workflow_is_a_tool_with_schemas():
    """A tool has the class's name and docstring, its start event's schema and its result's."""
    async with client_of(Essay(), Book()) as client:
        essay, book = (await client.list_tools()).tools

    assert essay.name == "Essay"
    assert essay.description == "Write an essay.\n\nIt has as many pages as you like."
    assert essay.input_schema["properties"] == {
        "topic": {"type": "string"},
        "pages": {"type": "integer", "default": 1},
    }
    assert essay.input_schema["required"] == ["topic"]
    assert essay.output_schema["properties"] == {"result": {"type": "string"}}
    assert book.name == "Book"
    assert book.output_schema["title"] == "Booked"
    assert book.output_schema["required"] == ["hotel", "day", "stars"]


async def test_a_mapping_names_the_tools():
    """A mapping gives workflows other names, so that a class can be served twice."""
    async with client_of({"short": Essay(), "long-1.0": Essay()}) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool("short", {"topic": "locks"})

    assert names == ["short", "long-1.0"]
    assert text_of(result) == "1 pages on locks"


async def test_a_result_is_text_and_data():
    """A string is the text as it is, any other result is JSON; the structured content has the fields."""
    async with client_of(
        {"text": Essay(), "list": returning([1, "b"]), "nothing": returning(None)}
    ) as client:
        text = await client.call_tool("text", {"topic": "locks", "pages": 2})
        array = await client.call_tool("list", {})
        nothing = await client.call_tool("nothing", {})

    assert text_of(text) == "2 pages on locks"
    assert text.structured_content == {"result": "2 pages on locks"}
    assert (text_of(array), array.structured_content) == ('[1,"b"]', {"result": [1, "b"]})
    assert (text_of(nothing), nothing.structured_content) == ("null", {"result": None})


async def test_a_result_of_a_class_has_its_fields():
    """An event of a subclass of StopEvent is the result, and several classes are alternatives."""

    class Other(StopEvent):
        reason: str

    class Either(Workflow[Any]):
        @step
        async def only(self, ev: Topic) -> Booked | Other:
            if ev.topic == "other":
                return Other(reason="full")
            return Booked(hotel="Ritz", day=3, stars=5)

    async with client_of(Either()) as client:
        (tool,) = (await client.list_tools()).tools
        booked = await client.call_tool("Either", {"topic": "x"})
        other = await client.call_tool("Either", {"topic": "other"})

    assert [kind["title"] for kind in tool.output_schema["anyOf"]] == ["Booked", "Other"]
    assert booked.structured_content == {"hotel": "Ritz", "day": 3, "stars": 5}
    assert text_of(booked) == '{"hotel":"Ritz","day":3,"stars":5}'
    assert other.structured_content == {"reason": "full"}


class Model(BaseModel):
    user: str = Field(alias="userName")


class Opaque:
    def __repr__(self):
        return "<opaque>"


class Inner(Event):
    model: Model
    thing: Opaque


async def test_results_are_described_as_they_are_written():
    """A model of pydantic with aliases and a value without JSON pass the client's validation."""

    async with client_of(
        {
            "model": returning(Model(userName="ann"), Model),
            "nested": returning(Inner(model=Model(userName="bob"), thing=Opaque()), Inner | Booked),
        }
    ) as client:
        model = await client.call_tool("model", {})
        nested = await client.call_tool("nested", {})

    assert model.structured_content == {"result": {"user": "ann"}}
    assert nested.structured_content == {"result": {"model": {"user": "bob"}, "thing": "<opaque>"}}


async def test_a_result_that_its_annotation_denies_is_an_error():
    """The error names the place, because clients would refuse the result."""
    async with client_of({"wrong": returning([1, "two"], list[int])}) as client:
        result = await client.call_tool("wrong", {})

    assert error_of(result) == (
        "wrong ended with a StopEvent that does not fit its output schema at $.result[1]; expected "
        "`Workflow[...]` of Returns, and the annotations of the event, to say what it returns"
    )


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "Topic lacks 'topic'; expected Topic(topic=..., pages=...)"),
        ({"topic": 3}, "Topic.topic is 3, which is not str: Expected `str`, got `int`"),
        (
            {"topic": "a", "pages": "x"},
            "Topic.pages is 'x', which is not int: Expected `int`, got `str`",
        ),
        (
            {"topic": "a", "page": 2},
            "Topic has no field 'page', did you mean 'pages'? expected Topic(topic=..., pages=...)",
        ),
    ],
)
async def test_invalid_arguments_are_errors_of_the_tool(arguments, text):
    """A model gets the field and the fix, as a result that is an error."""
    async with client_of(Essay()) as client:
        result = await client.call_tool("Essay", arguments)

    assert error_of(result) == f"invalid arguments: {text}"


async def test_an_unknown_tool_is_an_error_of_the_protocol():
    """The error lists the tools."""
    async with client_of(Essay(), Book()) as client:
        with pytest.raises(MCPError, match=r"^Unknown tool: Novel; expected one of Book, Essay$"):
            await client.call_tool("Novel", {})


async def test_a_failure_shows_the_class_of_the_exception_only(caplog):
    """The text may be confidential: it is in the log of the server, with the id that the client gets."""
    async with client_of(raising(ValueError("password=hunter2"))) as client:
        text = error_of(await client.call_tool("Fails", {}))

    assert text.startswith("Fails failed: ValueError (run ")
    (record,) = (r for r in caplog.records if r.name == "sluicegate")
    assert text.partition("run ")[2].rstrip(")") in record.getMessage()
    assert "hunter2" in caplog.text
    assert record.levelno == logging.ERROR


async def test_the_text_of_a_tool_error_is_for_the_model(caplog):
    """A step raises the SDK's ToolError to tell the model something, and nothing is logged."""
    async with client_of(raising(ToolError("there is no city Rom; did you mean Rome?"))) as client:
        text = error_of(await client.call_tool("Fails", {}))

    assert text == "Fails failed: there is no city Rom; did you mean Rome?"
    assert not [r for r in caplog.records if r.name == "sluicegate"]


async def test_an_error_of_another_server_stays_inside():
    """An MCPError that a step raises, from a client of its own, is a failure like any other."""
    async with client_of(raising(MCPError(-32602, "password=hunter2"))) as client:
        text = error_of(await client.call_tool("Fails", {}))

    assert text.startswith("Fails failed: MCPError (run ")


def test_a_timeout_is_an_error_of_the_tool():
    """The error has the timeout of the workflow."""

    class Slow(Workflow[str]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep_forever()

    async def main():
        async with client_of(Slow(timeout=20)) as client:
            return error_of(await client.call_tool("Slow", {}))

    for backend in ("trio", "asyncio"):
        text = testing.run_virtually(main, backend=backend)

        assert text.startswith("Slow timed out after 20 s (run ")


async def test_resources_of_the_workflow_are_open_while_the_server_runs():
    """The server enters the blocks of its workflows."""
    happened = []

    class Entered(Essay):
        async def __aenter__(self):
            happened.append("entered")
            return await super().__aenter__()

        async def __aexit__(self, *details):
            happened.append("left")
            await super().__aexit__(*details)

    async with client_of({"Essay": Entered()}) as client:
        await client.call_tool("Essay", {"topic": "a"})
        happened.append("called")
        await client.call_tool("Essay", {"topic": "a"})

    assert happened == ["entered", "called", "left"]


# -- construction -------------------------------------------------------------------------------------


class MidwayAnswer(HumanResponseEvent):
    text: str


class Midway(Workflow[str]):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=(await ctx.wait_for_event(MidwayAnswer)).text)


class Delivered(Event):
    parcel: str


class Desk(Workflow[str]):
    @step(waits_for=[Delivered])
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=(await ctx.wait_for_event(Delivered)).parcel)


class Asking(Workflow[str]):
    @step
    async def first(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="?")

    @step
    async def second(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


@pytest.mark.parametrize("workflow", [Midway, Desk, Asking, Book])
def test_keys_are_required_where_a_tool_can_ask(workflow):
    """The error comes at construction, and has the line, and how to make a key."""
    with pytest.raises(ValueError, match="can ask") as caught:
        mcp_server(Essay(), workflow())

    assert str(caught.value) == (
        f"{workflow.__name__} can ask, and then the client carries the state of the run, which must be sealed; "
        'expected mcp_server(..., state_keys=[os.environ["MCP_STATE_KEY"]]) with a secret of at least 32 bytes, '
        "the same in every process: `python -c 'import secrets; print(secrets.token_hex(32))'` makes one"
    )
    mcp_server(Essay(), workflow(), state_keys=[KEY])


def test_no_keys_are_required_where_no_tool_can_ask():
    """A server of tools that ask nothing needs no secret."""
    assert mcp_server(Essay()).name == "sluicegate"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (
            [],
            {},
            ValueError,
            "mcp_server() was given no workflow; expected at least one: mcp_server(MyWorkflow())",
        ),
        ([Essay], {}, TypeError, "expected a workflow object: mcp_server(MyWorkflow())"),
        (
            [Essay(), Essay()],
            {},
            ValueError,
            'expected a name for each: mcp_server({"Essay": ..., "Essay2": ...})',
        ),
        ([{"an essay": Essay()}], {}, ValueError, 'mcp_server({"my_tool": Essay()})'),
        (
            [Book()],
            {"state_keys": KEY},
            ValueError,
            'expected a list: state_keys=[os.environ["MCP_STATE_KEY"]]',
        ),
        ([Book()], {"state_keys": []}, ValueError, "mcp_server(state_keys=...): "),
        ([Book()], {"state_keys": ["short"]}, ValueError, "must be at least 32 bytes"),
        (
            [Book()],
            {"state_keys": [KEY], "state_ttl": 0},
            ValueError,
            "mcp_server(state_ttl=0); expected seconds above 0",
        ),
        (
            [Essay()],
            {"run_store": "sqlite:///runs.db"},
            TypeError,
            "expected an open store: `async with open_run_store(",
        ),
    ],
)
def test_wrong_options_are_refused_with_the_corrected_line(arguments, options, error, text):
    """Every fault is found when the server is made."""
    with pytest.raises(error) as caught:
        mcp_server(*arguments, **options)

    assert text in str(caught.value)


def test_a_missing_sdk_is_an_error_that_names_the_extra():
    """Without the SDK, the import says what to install."""
    program = (
        "import sys; sys.modules['mcp'] = None\n"
        "try:\n import sluicegate.mcp\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == (
        'sluicegate.mcp needs the MCP SDK; expected `pip install "sluicegate[mcp]"`\n'
    )


async def test_a_tool_that_asks_unseen_is_refused_without_keys():
    """A question that the steps do not show, as a child's may be, ends the call with the option to give."""

    class Hidden(Workflow[str]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            wait = ctx.wait_for_event
            kind = MidwayAnswer
            return StopEvent(result=(await wait(kind)).text)

    async with client_of(Hidden(), state_keys=None) as client:
        text = error_of(await client.call_tool("Hidden", {}))

    assert text == (
        "Hidden asks, which its steps do not show, and the server has no keys to seal its state; expected "
        "mcp_server(..., state_keys=[...])"
    )


async def test_state_is_refused_where_no_tool_asks():
    """A server without keys takes no state from a client."""
    async with client_of(Essay(), state_keys=None) as client:
        with pytest.raises(MCPError, match="gives no requestState") as caught:
            await client.call_tool("Essay", {"topic": "a"}, request_state='{"run": {}}')

    assert caught.value.code == types.INVALID_PARAMS
