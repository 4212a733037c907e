"""What type checkers know of the public API. Read by mypy and pyright, never run."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

import anyio
import attrs
import trio

import sluicegate
from sluicegate import (
    Branch,
    Context,
    Event,
    EventStream,
    RateLimiter,
    RateLimiterEntry,
    Resource,
    Retry,
    RetryInfo,
    StartEvent,
    StateStore,
    StepFailedEvent,
    StepInfo,
    StopEvent,
    Take,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from sluicegate.llms import (
    LLM,
    ToolCall,
    ToolResult,
    Usage,
    call_tool,
    read_response,
    structured_chat,
    tool,
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
    writer = Writer(timeout=3, stream="durable")
    assert_type(writer.run(topic="x"), WorkflowHandler[Verdict])
    assert_type(await writer.run(start_event=Topic(topic="x")), Verdict)
    async with writer.run(topic="x") as handler:
        assert_type(handler, WorkflowHandler[Verdict])
        assert_type(handler.stream_events(), EventStream)
        async for event in handler.stream_events(after=3, expose_internal=True):
            assert_type(event, Event)
        with handler.stream_events(after="0", lossy=True) as stream:
            assert_type(stream.cursor, str)
            handler.stream_events(after=stream.cursor)
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
    assert_type(sluicegate.run(number, "3", backend="asyncio"), int)


def refused() -> None:
    Draft(txt="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Draft(text=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Draft(text="x").text = "y"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    Writer(timeout="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@attrs.define
class Counter:
    n: int = 0


class Pair(Event):
    n: int


def make_name() -> str:
    return "name"


class Rich(Workflow[list[int]]):
    @step(retry=Retry(stop=3, wait=0.1, when=OSError), timeout=3, idle_timeout=1)
    async def begin(
        self,
        ctx: Context[Counter],
        ev: StartEvent,
        name: Annotated[str, Resource(make_name)],
    ) -> list[Pair]:
        assert_type(ctx.store, StateStore[Counter])
        assert_type(await ctx.store.get_state(), Counter)
        async with ctx.store.edit_state() as state:
            assert_type(state, Counter)
        branch = ctx.send_event(Pair(n=1))
        assert_type(branch, Branch)
        assert_type(await branch.wait(), None)
        assert_type(await ctx.run_child(Writer(), stream="tag"), Verdict)
        assert_type(ctx.retry_info(), RetryInfo)
        assert_type(ctx.step, StepInfo)
        return [Pair(n=len(name))]

    @step
    def work(self, ctx: Context[Counter], ev: Pair) -> Pair:
        assert_type(ctx.from_thread.run(ctx.store.get_state), Counter)
        return ev

    @step
    async def join(self, evs: Annotated[list[Pair], Take(1)]) -> StopEvent:
        return StopEvent(result=[ev.n for ev in evs])

    @catch_error(for_steps=["work"], max_recoveries=2)
    async def recover(self, ev: StepFailedEvent) -> Pair:
        assert_type(ev.exception, BaseException)
        return Pair(n=0)


async def use_rich() -> None:
    rich = Rich(num_concurrent_runs=3, timeout=3, timeout_excludes_waiting=True)
    async with rich:
        handler = rich.run(ctx=Context(rich))
        assert_type(handler, WorkflowHandler[list[int]])
        handler.from_thread.send_event(Pair(n=1))
        await handler.cancel(after="steps")
        again = rich.resume(handler.snapshot())
        assert_type(again, WorkflowHandler[list[int]])
        assert_type(await again, list[int])


async def tools_and_structured_output(llm: LLM) -> None:
    call = ToolCall(name="weather")
    assert_type(await call_tool(call, [tool(Draft.to_dict)]), ToolResult)
    made = await structured_chat(llm, Draft, [])
    assert_type(made.value, Draft)
    assert_type(read_response(Draft, made.response), Draft)
    assert_type(made.usage + Usage(), Usage)


async def amounts() -> None:
    limiter = RateLimiter(10, burst=5)
    async with limiter(3) as entry:
        assert_type(entry, RateLimiterEntry)
        entry.correct(2.5)
    await limiter.acquire(2)
