"""The workflows that are tested here, and what they ask."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Annotated

import anyio
import attrs

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Resource,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Take,
    Workflow,
    catch_error,
    step,
)


class Ask(InputRequiredEvent):
    text: str


class Say(HumanResponseEvent):
    text: str


class Part(Event):
    number: int


class Made(Event):
    number: int


class Note(Event):
    text: str


@attrs.define
class Tally:
    total: int = 0


class Factory(Workflow[int]):
    """A fan-out of three, a join, and a state; ``called`` counts the real calls of ``make``."""

    def __init__(self, pause=0.0, **options) -> None:
        super().__init__(**options)
        self.pause = pause
        self.called = 0

    @step
    async def begin(self, ctx: Context[Tally], ev: StartEvent) -> list[Part]:
        ctx.write_event_to_stream(Note(text="begun"))
        return [Part(number=n) for n in range(3)]

    @step(num_workers=3)
    async def make(self, ctx: Context[Tally], ev: Part) -> Made:
        self.called += 1
        await anyio.sleep(self.pause)
        async with ctx.store.edit_state() as state:
            state.total += ev.number
        return Made(number=ev.number)

    @step
    async def end(self, evs: list[Made]) -> StopEvent:
        return StopEvent(result=sum(ev.number for ev in evs))


class Asker(Workflow[str]):
    """Asks as often as ``times`` says, in the middle of one step."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        said = []
        for n in range(ev.get("times", 1)):
            answer = await ctx.wait_for_event(Say, Ask(text=f"{n}?"))
            said.append(answer.text)
        return StopEvent(result=" ".join(said))


class Greeter(Workflow[str]):
    """Asks by returning the question, and takes the answer in another step."""

    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(text="who?")

    @step
    async def take(self, ev: Say) -> StopEvent | Ask:
        return StopEvent(result=ev.text) if ev.text else Ask(text="who then?")


class Tries(Workflow[int]):
    """Fails ``fails`` times, then succeeds; what it sends counts the attempts."""

    @step(retry=Retry(stop=3, wait=5))
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent | Part:
        attempt = ctx.retry_info().attempt
        ctx.send_event(Part(number=attempt), step="other")
        if attempt <= ev.fails:
            raise OSError(attempt)
        return StopEvent(result=attempt)

    @step
    async def other(self, ev: Part) -> None:
        raise AssertionError(ev)


class Catches(Workflow[str]):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise ev.error

    @catch_error
    async def caught(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=f"caught {ev.exception!r}")


class Pair(Workflow[tuple[int, int]]):
    """A step that takes one event of each class."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Part | Made | None:
        ctx.send_event(Part(number=1))
        ctx.send_event(Made(number=2))
        return None

    @step
    async def both(self, a: Part, ctx: Context, b: Made) -> StopEvent:
        return StopEvent(result=(a.number, b.number))


class Race(Workflow[list[int]]):
    @step
    async def begin(self, ev: StartEvent) -> list[Part]:
        return [Part(number=n) for n in range(5)]

    @step(num_workers=10)
    async def run_for(self, ev: Part) -> Made:
        return Made(number=ev.number)

    @step
    async def end(self, evs: Annotated[list[Made], Take(2)]) -> StopEvent:
        return StopEvent(result=[ev.number for ev in evs])


class Branches(Workflow[str]):
    """Waits for what it sent: some of it comes to its gate before the wait, some after."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Part:
        first = ctx.send_event(Part(number=1))
        await anyio.sleep(1)
        second = ctx.send_event(Part(number=2))
        await first.wait()
        await second.wait()
        return StopEvent(result="waited")

    @step
    async def work(self, ev: Part) -> None:
        await anyio.sleep(1)


class Drops(Workflow[str]):
    """Sends two events and cancels one of them before anybody has taken it."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Part:
        first = ctx.send_event(Part(number=1))
        second = ctx.send_event(Part(number=2))
        first.cancel()
        await second.wait()
        return StopEvent(result="dropped")

    @step
    async def work(self, ev: Part) -> None:
        pass


class Child(Workflow[str]):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Say, Ask(text=f"{ev.mode}?"))
        return StopEvent(result=answer.text)


class Parent(Workflow[str]):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(Child(), stream=ev.stream, mode=ev.stream))


#: What the resources below have opened and closed.
opened: list[str] = []


@contextmanager
def open_line():
    opened.append("line opened")
    yield "real line"
    opened.append("line closed")


def make_client(line: Annotated[str, Resource(open_line)]) -> str:
    return f"client on {line}"


def make_shared() -> str:
    opened.append("shared made")
    return "real shared"


class Calls(Workflow[str]):
    @step
    async def call(
        self,
        client: Annotated[str, Resource(make_client)],
        ev: StartEvent,
        shared: Annotated[str, Resource(make_shared, scope="workflow")],
    ) -> StopEvent:
        return StopEvent(result=f"{client}, {shared}")
