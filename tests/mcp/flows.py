"""Workflows that the tests offer as tools, and clients of the SDK that call them."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
from mcp import Client, types

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate.mcp import mcp_server


KEY = "a secret of the operator, 32 bytes"


class Topic(StartEvent):
    topic: str
    pages: int = 1


class Page(Event):
    number: int


class Essay(Workflow[str]):
    """Write an essay.

    It has as many pages as you like.
    """

    @step
    async def write(self, ctx: Context, ev: Topic) -> StopEvent:
        for number in range(1, ev.pages + 1):
            await ctx.stream.send(Page(number=number))
        return StopEvent(result=f"{ev.pages} pages on {ev.topic}")


class Trip(StartEvent):
    to: str


class Where(InputRequiredEvent):
    prompt: str


class When(InputRequiredEvent):
    question: str
    earliest: int


class Hotel(HumanResponseEvent):
    name: str
    stars: int = 3


class Day(HumanResponseEvent):
    day: int


class Sure(InputRequiredEvent):
    msg: str


class Yes(HumanResponseEvent):
    sure: bool


class Booked(StopEvent):
    hotel: str
    day: int
    stars: int


class Chosen(Event):
    hotel: str
    stars: int
    day: int


class Book(Workflow[Booked]):
    """Two questions at a time, then a third one."""

    @step
    async def ask(self, ctx: Context, ev: Trip) -> Chosen:
        found = {}

        async def hotel() -> None:
            found["hotel"] = await ctx.wait_for_event(
                Hotel, Where(prompt=f"Which hotel in {ev.to}?")
            )

        async def day() -> None:
            found["day"] = await ctx.wait_for_event(Day, When(question="Which day?", earliest=5))

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(hotel)
            nursery.start_soon(day)
        hotel, day = found["hotel"], found["day"]
        return Chosen(hotel=hotel.name, stars=hotel.stars, day=day.day)

    @step
    async def confirm(self, ctx: Context, ev: Chosen) -> Sure:
        await ctx.store.set("chosen", ev.to_dict())
        return Sure(msg=f"Book {ev.hotel} for day {ev.day}?")

    @step
    async def book(self, ctx: Context, ev: Yes) -> Booked | Sure:
        chosen = await ctx.store.get("chosen")
        if not ev.sure:
            return Sure(msg="Really?")
        return Booked(**chosen)


@asynccontextmanager
async def client_of(*workflows, mode="auto", **options):
    """Serve workflows in this process, to a client of the SDK."""
    elicit = options.pop("elicit", Person())
    server = mcp_server(*workflows, **{"state_keys": [KEY], **options})
    async with Client(server, elicitation_callback=elicit, mode=mode) as client:
        yield client


def text_of(result):
    """Return the text of a result."""
    (block,) = result.content
    return block.text


def error_of(result):
    """Return the text of a result that is an error."""
    assert result.is_error, result
    assert result.structured_content is None
    return text_of(result)


class Person:
    """Answers elicitations by their message; what it was asked stays in ``asked``."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    async def __call__(self, _ctx, params):
        self.asked.append((params.message, params.requested_schema))
        for text, answer in self.answers.items():
            if text in params.message.replace(" ", "_").replace("?", ""):
                return accepted(**answer) if isinstance(answer, dict) else answer
        raise AssertionError(params.message)


def accepted(**content):
    return types.ElicitResult(action="accept", content=content)


async def one_round(client, name, arguments, asked=None, progress=None, **answers):
    """Send one request of a call, with the answers to the questions of the request before."""
    given = {}
    for key, request in (asked.input_requests if asked else {}).items():
        for text, content in answers.items():
            if text in request.params.message.replace(" ", "_"):
                given[key] = accepted(**content)
    return await client.session.call_tool(
        name,
        arguments,
        progress_callback=progress,
        input_responses=given or None,
        request_state=asked.request_state if asked else None,
        allow_input_required=True,
    )


def messages(asked):
    """Return the texts of the questions of a request, in their order."""
    assert isinstance(asked, types.InputRequiredResult), asked
    return [request.params.message for request in asked.input_requests.values()]
