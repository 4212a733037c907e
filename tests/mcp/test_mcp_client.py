"""The tools of an MCP server as a resource of steps, and for models."""

from __future__ import annotations

import sys
from typing import Annotated

import anyio
import pytest
from mcp import StdioServerParameters, types
from mcp.server import Server
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError

from sluicegate import Context, Resource, StartEvent, StopEvent, Workflow, step
from sluicegate.llms import ToolError
from sluicegate.mcp import McpTools, mcp_server
from sluicegate.testing import sweep
from tests.helpers import Catch, is_trio, limit, nothing_left, run_virtually
from tests.mcp.flows import KEY, Book, Essay, Person
from tests.mcp.serving import served, server
from tests.mcp.test_mcp_questions import BOOKED, ROOM
from tests.test_documentation import ROOT


pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:.*httptools:DeprecationWarning"),
    # The SDK's HTTP client does so on Trio, when a request is cancelled.
    pytest.mark.filterwarnings("ignore:Async generator 'http(x|core)2.*:ResourceWarning"),
]

COMMAND = [sys.executable, "-W", "error", "-m", "tests.mcp.serving", "stdio"]


def city_server(happened=None):
    """Return a server that is not ours, with tools of every kind."""
    made = MCPServer("cities")

    @made.tool()
    async def weather(city: str) -> str:
        """Say how the weather is."""
        if city == "Rom":
            raise ValueError("password=hunter2")
        return f"sun in {city}"

    @made.tool(name="find.trains")
    async def find(to: str, at: int = 12) -> dict[str, int]:
        return {to: at}

    @made.tool(name="find_trains", structured_output=False)
    async def pictures() -> list[types.ContentBlock]:
        return [types.TextContent(text="a"), types.ImageContent(data="AA==", mime_type="image/png")]

    @made.tool(structured_output=False)
    async def wait() -> str:
        happened.append("begun")
        try:
            await anyio.sleep_forever()
        finally:
            happened.append("cancelled")

    return made


# -- calls ---------------------------------------------------------------------------------------------


async def test_a_call_returns_data_or_text():
    """The structured result where there is one, without the key ``result`` around a value; else the text."""
    async with McpTools(city_server()) as tools:
        assert await tools.call("weather", city="Rome") == "sun in Rome"
        assert await tools.call("find.trains", to="Rome") == {"Rome": 12}
        assert await tools.call_tool("find.trains", {"to": "Oslo", "at": 5}) == {"Oslo": 5}
        assert await tools.call("find_trains") == [
            {"type": "text", "text": "a"},
            {"type": "image", "data": "AA==", "mimeType": "image/png"},
        ]


async def test_tools_are_offered_to_models():
    """Each has a name that models accept, its description and schema, and is called with data."""
    async with McpTools(city_server()) as tools:
        weather, find, pictures, _ = tools.tools
        result = await find.call({"to": "Rome"})
        same = tools["find.trains"]

    assert (weather.name, weather.description) == ("weather", "Say how the weather is.")
    assert weather.input_schema["required"] == ["city"]
    assert (find.name, pictures.name) == ("find_trains", "find_trains_2")
    assert result == {"Rome": 12}
    assert same is find


async def test_an_error_of_a_tool_is_for_the_model():
    """An error result and refused arguments raise ToolError with the server's text."""
    async with McpTools(city_server()) as tools:
        with pytest.raises(ToolError, match=r"^Error executing tool weather$"):
            await tools.call("weather", city="Rom")
        with pytest.raises(ToolError, match="city"):
            await tools.call("weather", town="Rome")
        with pytest.raises(ToolError, match="weathr"):
            await tools.call("weathr", city="Rome")


async def test_only_some_tools_are_offered():
    """``only`` has to name tools that the server has."""
    async with McpTools(city_server(), only=["weather"]) as tools:
        assert [tool.name for tool in tools.tools] == ["weather"]
        with pytest.raises(KeyError, match="offers no tool 'wait'; it offers weather"):
            tools["wait"]

    with pytest.raises(ValueError, match="'cities' has no tool plane, ship; expected"):
        async with McpTools(city_server(), only=["ship", "weather", "plane"]):
            pass


async def test_progress_of_a_tool():
    """The step gets each progress notification."""
    told = []

    async def progress(*values):
        told.append(values)

    async with McpTools(mcp_server(Essay())) as tools:
        await tools.call_tool("Essay", {"topic": "a", "pages": 2}, on_progress=progress)

    assert [number for number, _, _ in told] == [1, 2]


async def test_questions_of_a_tool_are_answered_by_a_callback():
    """Options of the SDK's client are passed on: a server that asks is answered through one."""
    person = Person(Which_hotel=ROOM, Which_day={"day": 7}, Book_Ritz={"sure": True})
    async with McpTools(mcp_server(Book(), state_keys=[KEY]), elicitation_callback=person) as tools:
        assert await tools.call("Book", to="Rome") == BOOKED


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_server_that_does_not_answer_in_time(backend):
    """The request is cancelled, and the call raises TimeoutError."""
    happened = []

    async def main():
        async with McpTools(city_server(happened), mode="legacy", timeout=20) as tools:
            with pytest.raises(TimeoutError, match=r"has not answered wait within 20 s"):
                await tools.call("wait")

    run_virtually(backend, main)

    assert happened == ["begun", "cancelled"]


async def test_every_page_of_the_list_is_read():
    """A server may list its tools in pages."""

    async def list_tools(_ctx, params):
        page = int(params.cursor or 0) if params else 0
        tool = types.Tool(name=f"tool{page}", input_schema={"type": "object"})
        return types.ListToolsResult(tools=[tool], next_cursor=str(page + 1) if page < 2 else None)

    async with McpTools(Server("pages", on_list_tools=list_tools)) as tools:
        assert [tool.name for tool in tools.tools] == ["tool0", "tool1", "tool2"]


# -- wrong use ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (["uvx files"], {}, TypeError, "or a command as a list: `McpTools(['uvx', 'files'])`"),
        ([[]], {}, TypeError, "McpTools([]) has no command"),
        ([["a"]], {"timeout": 0}, ValueError, "McpTools(timeout=0); expected seconds above 0"),
    ],
)
def test_wrong_servers_are_refused_with_the_corrected_line(arguments, options, error, text):
    """What is no server is refused before it is entered."""
    with pytest.raises(error) as caught:
        McpTools(*arguments, **options)

    assert text in str(caught.value)


async def test_a_call_outside_the_block_is_refused():
    """A closed connection has no tools to call."""
    tools = McpTools(city_server())
    with pytest.raises(RuntimeError, match="outside the block"):
        await tools.call("weather", city="Rome")

    assert repr(tools) == "<McpTools of 'cities', closed>"
    async with tools:
        assert repr(tools) == "<McpTools of 'cities', 4 tools>"


async def test_a_server_that_cannot_be_reached():
    """One exception leaves, no group; a note says which server, without credentials."""
    with pytest.raises(OSError, match="no-such-command") as caught:
        async with McpTools(["no-such-command", "secret"]):
            pass
    assert caught.value.__notes__ == ["while connecting to the MCP server 'no-such-command'"]

    url = "http://user:secret@127.0.0.1:9/mcp?key=secret"
    with nothing_left(), Catch() as refused:
        async with McpTools(url):
            pass
    assert not isinstance(refused.error, BaseExceptionGroup)
    assert refused.error.__notes__ == ["while connecting to the MCP server http://127.0.0.1:9/mcp"]


async def test_an_exception_of_the_block_leaves_as_it_is():
    """The nurseries of the SDK put no group around it."""
    error = ValueError("of the block")
    with pytest.raises(ValueError, match="of the block") as caught, nothing_left():
        async with McpTools(city_server(), mode="legacy"):
            raise error

    assert caught.value is error


# -- as a resource -----------------------------------------------------------------------------------------


def tidy(make, body):
    """Return a workflow whose step uses a server."""

    class Tidy(Workflow[str]):
        @step
        async def only(
            self, ctx: Context, ev: StartEvent, tools: Annotated[McpTools, Resource(make)]
        ) -> StopEvent:
            return StopEvent(result=await body(tools))

    return Tidy()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_cancelled_step_cancels_its_call_and_the_run_closes_the_server(mode):
    """The server sees the cancellation, and nothing of the connection is left after the run."""
    happened = []
    made = city_server(happened)

    async def body(tools):
        return await tools.call("wait")

    flow = tidy(lambda: McpTools(made, mode=mode), body)
    with limit(), nothing_left():
        async with flow.run() as handler:
            while not happened:
                await anyio.sleep(0.001)
            handler.cancel()

    assert happened == ["begun", "cancelled"]
    assert handler.status == "cancelled"


async def test_a_tool_error_that_a_step_does_not_handle_fails_the_run():
    """The original exception leaves, and the connection is closed."""

    async def body(tools):
        return await tools.call("weather", city="Rom")

    with nothing_left(), pytest.raises(ToolError):
        await tidy(lambda: McpTools(city_server(), mode="legacy"), body).run()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_nothing_of_a_connection_is_left_wherever_a_run_is_cancelled(backend):
    """At each position of a run that calls a tool, the server's handler and the connection have ended."""

    async def scenario():
        open_calls = []
        made = MCPServer("one")

        @made.tool()
        async def wait() -> str:
            open_calls.append(1)
            try:
                await anyio.sleep(1)
            finally:
                open_calls.pop()
            return "waited"

        try:
            result = await tidy(lambda: McpTools(made), lambda tools: tools.call("wait")).run()
        finally:
            assert not open_calls
        assert result == "waited"

    report = sweep(scenario, backends=backend, kinds="scope")

    assert report.runs > 10


async def test_a_server_over_http():
    """A URL is a server; a cancelled step cancels the run at the other end."""
    async with served(server().streamable_http_app(), "trio" if is_trio() else "asyncio") as url:

        async def body(tools):
            return await tools.call("Essay", topic="locks")

        with limit():
            assert await tidy(lambda: McpTools(url), body).run() == "1 pages on locks"


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_server_as_a_command(tmp_path):
    """The process of the server lives as long as the resource, and its calls are cancelled with the run."""
    note = tmp_path / "note"
    backend = "trio" if is_trio() else "asyncio"
    command = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], backend], cwd=ROOT)
    begun = anyio.Event()

    async def progress(*_values):
        begun.set()

    async def body(tools):
        assert await tools.call("Essay", topic="locks") == "1 pages on locks"
        return await tools.call_tool("Waiting", {"note": str(note)}, on_progress=progress)

    with anyio.fail_after(60), nothing_left():
        async with tidy(lambda: McpTools(command), body).run() as handler:
            await begun.wait()
            handler.cancel()

    assert note.read_text() == "cancelled, and cleaned up"


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_that_ends_during_a_call():
    """A process that dies makes the call raise ConnectionError, and the run is over."""
    program = (
        "import os, anyio\n"
        "from mcp.server.mcpserver import MCPServer\n"
        "made = MCPServer('dying')\n"
        "@made.tool()\n"
        "async def die() -> str:\n"
        "    os._exit(1)\n"
        "made.run()\n"
    )

    async def body(tools):
        return await tools.call("die")

    flow = tidy(lambda: McpTools([sys.executable, "-c", program]), body)
    with anyio.fail_after(60), nothing_left(), pytest.raises(ConnectionError, match="during die"):
        await flow.run()


def test_errors_of_the_protocol_that_a_step_knows():
    """Only the codes with a Python exception of their own are translated."""
    error = MCPError(-32099, "other")

    assert McpTools(["x"])._known("tool", error) is error
