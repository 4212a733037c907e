"""An agent as an ordinary workflow: the model asks for tools, a person approves, and the run has limits.

    python examples/agent.py [--backend asyncio] [QUESTION]
    python examples/agent.py --store sqlite:///agent.db --id trip-1   # kill it, start it again

It needs no key and no network: a script answers in the place of a model, unless OPENAI_API_KEY or
OPENAI_BASE_URL is set. With a store the run survives its process: what was approved is not asked
again, and what was booked is not booked again.
"""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import attrs

import sluicegate
from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    RateLimiter,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)
from sluicegate.durable import open_run_store
from sluicegate.llms import (
    LLM,
    ChatMessage,
    ChatResponse,
    ChatStream,
    MockLLM,
    TextDelta,
    Tool,
    ToolCall,
    ToolCalled,
    ToolError,
    ToolResult,
    ToolReturned,
    Usage,
    call_tool,
    structured_chat,
    tool,
)


# -- the tools -------------------------------------------------------------------------------------

FARES = {("Rome", "Ostia"): 4.5, ("Rome", "Naples"): 19.0}


async def weather(city: Annotated[str, "Name of the city"]) -> str:
    """Tell today's weather."""
    await anyio.sleep(0.01)
    return f"{city}: {'rain' if city == 'Naples' else 'sun'}, 21 degrees"


def fare(origin: str, destination: str) -> dict[str, float]:
    """Look up the price of a train ticket, in euros."""
    if (origin, destination) not in FARES:
        known = ", ".join(f"{a} to {b}" for a, b in FARES)
        msg = f"no train from {origin} to {destination}; there are trains {known}"
        raise ToolError(msg)
    return {"price": FARES[origin, destination]}


async def book(key: str, folder: Path, origin: str, destination: str) -> str:
    """Buy a train ticket.

    Args:
        key: Identifies the purchase. The railway sells one ticket for it, however often it is asked.
        folder: Where the ticket is printed.
        origin: The city to depart from.
        destination: The city to go to.
    """
    async with await anyio.open_file(folder / "tickets.txt", "a") as tickets:
        await tickets.write(f"{key}: {origin} to {destination}\n")
    return f"booked, ticket {key}"


LOOK = [tool(weather), tool(fare)]

#: The tools that are called only after a person has agreed.
NEED_APPROVAL = {"book"}


# -- the workflow ----------------------------------------------------------------------------------


class Ask(StartEvent):
    text: str


class Turn(Event):
    """The model's turn: the conversation so far has ``position`` messages."""

    number: int
    position: int


class Call(Event):
    """A tool that the model asks for, the ``n``-th of its turn."""

    turn: Turn
    n: int
    call: ToolCall


class Called(Event):
    of: Call
    result: ToolResult


class Finished(Event):
    reason: str


class Approve(InputRequiredEvent):
    id: str
    tool: str
    arguments: str


class Approved(HumanResponseEvent):
    id: str
    is_approved: bool


class Trip(Event):
    """The trip that was arranged."""

    destination: str
    price: float
    is_booked: bool


class Answer(StopEvent):
    trip: Trip
    reason: str
    usage: Usage


@attrs.define
class Memory:
    """The state of a run."""

    messages: list[ChatMessage] = attrs.field(factory=list)
    usage: Usage = attrs.field(factory=Usage)


class Agent(Workflow[Answer]):
    """Lets a model call tools until it has an answer, or a limit is reached."""

    def __init__(
        self,
        llm: LLM,
        folder: Path,
        *,
        max_turns: int = 5,
        max_tokens: int = 10_000,
        tokens: RateLimiter | None = None,
    ) -> None:
        super().__init__(timeout=300, timeout_excludes_waiting=True)
        self.llm = llm
        self.folder = folder
        self.max_turns = max_turns
        self.max_tokens = max_tokens
        self.tokens = tokens or RateLimiter(60_000, per=60, burst=60_000)

    def tools(self, key: str = "") -> list[Tool]:
        """Return the tools; ``key`` identifies the call that is made of them."""
        return [*LOOK, tool(functools.partial(book, key, self.folder))]

    @step
    async def begin(self, ctx: Context[Memory], ev: Ask) -> Turn:
        system = ChatMessage("system", "You arrange trips by train. Look before you book.")
        await ctx.store.set("messages", [system, ChatMessage("user", ev.text)])
        return Turn(number=1, position=2)

    @step
    async def think(self, ctx: Context[Memory], ev: Turn) -> list[Call] | Finished:
        memory = await ctx.store.get_state()
        if ev.number > self.max_turns:
            return Finished(reason=f"after {self.max_turns} turns")
        if memory.usage.total_tokens >= self.max_tokens:
            return Finished(reason=f"after {memory.usage.total_tokens} tokens")
        messages = memory.messages[: ev.position]
        estimate = sum(len(message.text) for message in messages) // 4 + 500
        async with self.tokens(estimate) as entry:
            stream = await self.llm.astream_chat(messages, tools=self.tools())
            async for reply in stream:
                if reply.delta:
                    await ctx.stream.send(TextDelta(message=ctx.delivery_key, text=reply.delta))
            reply = stream.response
            usage = reply.usage or Usage()
            entry.correct(usage.total_tokens or estimate)
        async with ctx.store.edit_state() as memory:
            # A step that begins again after a crash replaces what it had appended.
            memory.messages[ev.position :] = [reply.message]
            memory.usage += usage
        if not reply.tool_calls:
            return Finished(reason="done")
        return [Call(turn=ev, n=n, call=call) for n, call in enumerate(reply.tool_calls)]

    @step(num_workers=8)
    async def act(self, ctx: Context[Memory], ev: Call) -> Called:
        call = ev.call
        await ctx.stream.send(ToolCalled(id=call.id, name=call.name, arguments=call.arguments))
        if call.name in NEED_APPROVAL:
            question = Approve(id=call.id, tool=call.name, arguments=call.arguments)
            answer = await ctx.wait_for_event(Approved, question, requirements={"id": call.id})
            if not answer.is_approved:
                refusal = ToolResult(call=call, text="the user has refused it", is_error=True)
                return Called(of=ev, result=refusal)
        result = await ctx.once("call", call_tool, call, self.tools(ctx.delivery_key))
        await ctx.stream.send(
            ToolReturned(id=call.id, content=result.text, is_error=result.is_error)
        )
        return Called(of=ev, result=result)

    @step
    async def look(self, ctx: Context[Memory], evs: list[Called]) -> Turn:
        turn = evs[0].of.turn
        results = [ev.result.message for ev in sorted(evs, key=lambda ev: ev.of.n)]
        async with ctx.store.edit_state() as memory:
            memory.messages[turn.position + 1 :] = results
            return Turn(number=turn.number + 1, position=len(memory.messages))

    @step
    async def report(self, ctx: Context[Memory], ev: Finished) -> Answer:
        memory = await ctx.store.get_state()
        request = ChatMessage("user", "Report the trip as JSON.")
        made = await structured_chat(self.llm, Trip, [*memory.messages, request])
        return Answer(trip=made.value, reason=ev.reason, usage=memory.usage + made.usage)


# -- the model -------------------------------------------------------------------------------------


def ask_for(name: str, arguments: str) -> ToolCall:
    return ToolCall(id=f"{name}-{len(arguments)}", name=name, arguments=arguments)


#: What the stand-in for a model replies in each of its turns.
SCRIPT = [
    ChatMessage(
        "assistant",
        "Let me look at the weather and the fares.",
        tool_calls=[
            ask_for("weather", '{"city": "Ostia"}'),
            ask_for("weather", '{"city": "Naples"}'),
            ask_for("fare", '{"origin": "Rome", "destination": "Ostia"}'),
            ask_for("fare", '{"from": "Rome", "to": "Naples"}'),  # wrong, and told so
        ],
    ),
    ask_for("book", '{"origin": "Rome", "destination": "Ostia"}'),
    "You go to Ostia, where the sun shines.",
    '{"destination": "Ostia", "price": 4.5, "is_booked": true}',
]


class Script(MockLLM):
    """Replies by the number of its turn in the conversation, so that a later process continues it."""

    def _turn(self, messages: Sequence[ChatMessage]) -> MockLLM:
        turn = sum(message.role == "assistant" for message in messages)
        return MockLLM([SCRIPT[turn]], delay=self.delay)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatStream:
        return await self._turn(messages).astream_chat(messages, **kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await self._turn(messages).achat(messages, **kwargs)


def make_model() -> LLM:
    if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        from sluicegate.llms.openai import OpenAI  # noqa: PLC0415 - the script needs no package

        return OpenAI(model="gpt-4o-mini")
    return Script(delay=0.01)


# -- the program -----------------------------------------------------------------------------------


def is_open(handler: WorkflowHandler[Answer], question: Approve) -> bool:
    """Whether a question has no answer yet: a stored run shows again what it has asked."""
    return any(getattr(one.event, "id", None) == question.id for one in handler.questions)


async def follow(handler: WorkflowHandler[Answer]) -> None:
    """Print what happens in a run, and have a person answer its questions."""
    async for event in handler.stream_events():
        match event:
            case TextDelta(text=text):
                print(text, end="", flush=True)
            case ToolCalled():
                print(f"\n-> {event.name}({event.arguments})", flush=True)
            case ToolReturned():
                print(f"\n<- {event.content}", flush=True)
            case Approve() if is_open(handler, event):
                print(f"\nMay I {event.tool} {event.arguments}? [y/n]", flush=True)
                line = await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
                handler.send_event(Approved(id=event.id, is_approved=line.strip() == "y"))
    answer = await handler
    print(f"\n{answer.trip} ({answer.reason}, {answer.usage.total_tokens} tokens)")


async def main(question: str, store: str | None, run_id: str | None) -> None:
    agent = Agent(make_model(), Path.cwd())
    if store is None:
        async with agent.run(text=question) as handler:
            await follow(handler)
    else:
        async with (
            open_run_store(store) as runs,
            runs.run(agent.run(text=question), run_id=run_id) as handler,
        ):
            await follow(handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default="I am in Rome. Where to, for a day?")
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    parser.add_argument("--store", help="such as sqlite:///agent.db")
    parser.add_argument("--id", dest="run_id", default="trip-1")
    options = parser.parse_args()
    sluicegate.run(main, options.question, options.store, options.run_id, backend=options.backend)
