"""What type checkers know of the public API. Read by mypy and pyright, never run."""

from __future__ import annotations

from typing import Any, assert_type

import anyio
import attrs
import trio

import penstock
from penstock import (
    Context,
    Event,
    EventStream,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)


class Draft(Event):
    text: str
    length: int = attrs.field(default=0)


class Topic(StartEvent):
    topic: str


class Verdict(StopEvent):
    good: bool


class Writer(Workflow[Verdict]):
    @step
    async def draft(self, ctx: Context, ev: Topic) -> list[Draft]:
        assert_type(ev.topic, str)
        return [Draft(text=ev.topic)]

    @step(num_workers=2, timeout=1.5)
    async def judge(self, ctx: Context, evs: list[Draft]) -> Verdict | None:
        collected = ctx.collect_events(evs[0], [Draft])
        assert_type(collected, list[Draft] | None)
        await ctx.stream.send(evs[0])
        ctx.send_event(evs[0], step="judge")
        return Verdict(good=True)


async def owned() -> None:
    writer = Writer(timeout=3)
    assert_type(writer.run(topic="x"), WorkflowHandler[Verdict])
    assert_type(await writer.run(start_event=Topic(topic="x")), Verdict)
    async with writer.run(topic="x") as handler:
        assert_type(handler, WorkflowHandler[Verdict])
        assert_type(handler.stream_events(), EventStream)
        async for event in handler.stream_events(after=3, expose_internal=True):
            assert_type(event, Event)
        assert_type(handler.result(), Verdict)
        assert_type(await handler.cancel("reason"), None)
    async with trio.open_nursery() as nursery:
        assert_type(writer.run(topic="x").start_soon(nursery), WorkflowHandler[Verdict])
    async with anyio.create_task_group() as group:
        writer.run(topic="x").start_soon(group, keep_failure=True)


async def number(text: str) -> int:
    return int(text)


def opened() -> None:
    event = StartEvent(topic="x", other=3)
    assert_type(event.topic, Any)
    assert_type(StopEvent(result=3).result, Any)
    assert_type(Draft(text="x").length, int)
    assert_type(penstock.run(number, "3", backend="asyncio"), int)


def refused() -> None:
    Draft(txt="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Draft(text=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Draft(text="x").text = "y"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    Writer(timeout="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
