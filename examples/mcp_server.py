"""A workflow as a tool of an MCP server: it reports progress, and asks the user of the client.

    python examples/mcp_server.py             # needs pip install "sluicegate[mcp]"
    python examples/mcp_server.py --stdio     # the command of the server, for the configuration of a client
    python examples/mcp_server.py --http 8000 # the server at http://127.0.0.1:8000/mcp

Without an option the program plays both sides: a client starts the server as a process, calls its tool
and answers its question; then a workflow calls the same tool in one of its steps.
"""

import argparse
import os
import secrets
import sys
from typing import Annotated

import anyio
import trio
from mcp import Client, StdioServerParameters
from mcp.types import ElicitRequestParams, ElicitResult

from sluicegate import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    Resource,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate.mcp import McpTools, mcp_server, run_stdio


class Trip(StartEvent):
    city: str
    nights: int = 1


class Room(InputRequiredEvent):
    prompt: str


class Choice(HumanResponseEvent):
    hotel: str
    breakfast: bool = False


class Booked(StopEvent):
    hotel: str
    price: int


class Book(Workflow[Booked]):
    """Book a hotel room. The user is asked which one."""

    @step
    async def find(self, ctx: Context, ev: Trip) -> Room:
        for number in range(1, 4):
            await anyio.sleep(0.01)  # it asks a hotel for its price
            ctx.progress(number, 3, f"asking hotel {number}")
        await ctx.store.set("nights", ev.nights)
        return Room(prompt=f"In {ev.city} there are the Ritz (90) and the Grand (70). Which one?")

    @step
    async def book(self, ctx: Context, ev: Choice) -> Booked:
        price = 90 if ev.hotel == "Ritz" else 70
        nights: int = await ctx.store.get("nights")
        return Booked(hotel=ev.hotel, price=nights * (price + 10 * ev.breakfast))


# In production the key comes from the configuration, and is the same in every process.
KEYS = [os.environ.get("MCP_STATE_KEY") or secrets.token_hex(32)]
SERVER = StdioServerParameters(command=sys.executable, args=[__file__, "--stdio"])


async def ask_user(_context: object, question: ElicitRequestParams) -> ElicitResult:
    """Answer in place of a user; a client shows a form here."""
    print("the server asks:", question.message)
    return ElicitResult(action="accept", content={"hotel": "Grand", "breakfast": True})


async def show(done: float, _total: float | None, message: str | None) -> None:
    print("progress:", done, message)


async def play() -> None:
    """Call the tool as a client does."""
    async with Client(SERVER, elicitation_callback=ask_user) as client:
        for tool in (await client.list_tools()).tools:
            print("tool:", tool.name, "-", tool.description)
        trip = {"city": "Rome", "nights": 2}
        result = await client.call_tool("Book", trip, progress_callback=show)
        print("result:", result.structured_content)
        wrong = await client.call_tool("Book", {"town": "Rome"})
        print("error:", wrong.content)


def hotels() -> McpTools:
    return McpTools(SERVER, elicitation_callback=ask_user)


class Holiday(Workflow[str]):
    """The other direction: a step calls a tool of an MCP server."""

    @step
    async def plan(self, ev: StartEvent, tools: Annotated[McpTools, Resource(hotels)]) -> StopEvent:
        booked = await tools.call("Book", city=ev.city)
        return StopEvent(result=f"a night in the {booked['hotel']} for {booked['price']}")


async def main() -> None:
    await play()
    print("the workflow's step:", await Holiday().run(city="Oslo"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--stdio", action="store_true")
    parser.add_argument("--http", type=int, metavar="PORT")
    options = parser.parse_args()
    if options.stdio:
        trio.run(run_stdio, mcp_server(Book(), name="hotels", state_keys=KEYS))
    elif options.http is not None:
        import uvicorn

        app = mcp_server(Book(), name="hotels", state_keys=KEYS).streamable_http_app()
        uvicorn.run(app, port=options.http)
    else:
        trio.run(main)
