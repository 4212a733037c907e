"""Workflows that the tests of the command line run."""

from __future__ import annotations

import sys
from pathlib import Path

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


async def sleep_for_ever():
    if "trio" in sys.modules and "asyncio" not in sys.modules:
        import trio  # noqa: PLC0415 - under Trio the program imports nothing else

        await trio.sleep_forever()
    else:
        import anyio  # noqa: PLC0415

        await anyio.sleep_forever()


class Begin(StartEvent):
    topic: str
    count: int = 1
    tags: list[str] = []
    note: str | None = None


class Progress(Event):
    msg: str


class Token(Event):
    delta: str


class Odd(Event):
    event: str
    value: object


class Shout(Workflow[str]):
    @step
    async def shout(self, ctx: Context, ev: Begin) -> StopEvent:
        ctx.write_event_to_stream(Progress(msg="warming up"))
        for piece in ("Call", " me", " Ish", "mael"):
            ctx.write_event_to_stream(Token(delta=piece))
        ctx.write_event_to_stream(Odd(event="launch", value=3))
        return StopEvent(result=" ".join([ev.topic.upper()] * ev.count))


class Echo(Workflow):
    """Gives its input back, and takes any."""

    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.to_dict())


class EchoDeclared(Workflow):
    @step
    async def echo(self, ev: Begin) -> StopEvent:
        return StopEvent(result=ev.to_dict())


class Forgets(Workflow):
    """Ends in silence where it is given no topic."""

    @step  # noqa: RET503 - it is what is told
    async def echo(self, ev: StartEvent) -> StopEvent:
        if ev.get("topic"):
            return StopEvent(result=ev.topic)


class Opaque:
    def __repr__(self):
        return "<Opaque>"


class Strange(Workflow):
    """Returns what JSON cannot hold."""

    @step
    async def make(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Odd(event="x", value=Opaque()))
        return StopEvent(result={"fine": 1, "strange": {(1, 2): 3}, "also": Opaque()})


class Middle(Event):
    text: str


class Fails(Workflow):
    @step
    async def prepare(self, ev: StartEvent) -> Middle:
        return Middle(text="raw")

    @step
    async def cook(self, ev: Middle) -> StopEvent:
        try:
            burn()
        except KeyError as error:
            raise ValueError("burnt") from error
        return StopEvent()


def burn():
    raise KeyError("oven")


class Sleeper(Workflow):
    @step
    async def sleep(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Progress(msg="asleep"))
        try:
            await sleep_for_ever()
        finally:
            Path(ev.mark).write_text("cleaned up")
        return StopEvent()


class Flood(Workflow):
    @step
    async def pour(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            while True:
                await ctx.stream.send(Progress(msg="x" * 1000))
        finally:
            Path(ev.mark).write_text("cleaned up")
        return StopEvent()


class StepTooSlow(Workflow):
    @step(timeout=0.01)
    async def dawdle(self, ev: StartEvent) -> StopEvent:
        await sleep_for_ever()
        return StopEvent()


class Imports(Workflow):
    @step
    async def look(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=[name for name in ("asyncio", "anyio") if name in sys.modules])


# -- questions ---------------------------------------------------------------------------------


class AskName(InputRequiredEvent):
    prefix: str


class Greeter(Workflow[str]):
    @step
    async def ask(self, ev: StartEvent) -> AskName:
        return AskName(prefix="Your name?")

    @step
    async def greet(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=f"Hello {ev.response}")


class AskAgain(InputRequiredEvent):
    prompt: str


class Pair(Event):
    first: str


class Interview(Workflow[str]):
    """Asks two questions, at once."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> None:
        ctx.write_event_to_stream(AskAgain(prompt="one?"))
        ctx.write_event_to_stream(AskAgain(prompt="two?"))

    @step
    async def note(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent | None:
        both = ctx.collect_events(ev, [HumanResponseEvent, HumanResponseEvent])
        return both and StopEvent(result=" and ".join(e.response for e in both))


class Approval(HumanResponseEvent):
    approved: bool
    reason: str = ""


class Approve(Workflow[str]):
    @step
    async def ask(self, ev: StartEvent) -> AskName:
        return AskName(prefix="Approve?")

    @step
    async def decide(self, ev: Approval) -> StopEvent:
        return StopEvent(result=f"{ev.approved} {ev.reason}")


# -- targets -----------------------------------------------------------------------------------


class Fixed(Workflow):
    """Takes no timeout."""

    def __init__(self):
        super().__init__(timeout=20)

    @step
    async def go(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="fixed")


class Needy(Fixed):
    def __init__(self, model):
        super().__init__()


class Faulty(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Middle | Pair:
        return Middle(text="")


class Loose(Workflow):
    """Runs, for its fault is switched off."""

    def __init__(self):
        super().__init__(skip_graph_checks=["reachability"])

    @step
    async def go(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="loose")

    @step
    async def island(self, ev: Middle) -> Middle | StopEvent:
        return ev


built = Fixed()


def make(timeout=None):
    return Sleeper(timeout=timeout)


def make_nothing():
    return 5


def make_faulty():
    return Faulty()


def make_loose():
    return Loose()


class Ended(StopEvent):
    score: int


class OwnStop(Workflow):
    @step
    async def go(self, ev: StartEvent) -> Ended:
        return Ended(score=7)


class AsksInside(Workflow[str]):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent(prefix="well?"))
        return StopEvent(result=answer.response)


class AsksInAChild(Workflow[str]):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(AsksInside(), stream="tag"))


class Part(Event):
    number: int


class Parts(Workflow[str]):
    """A fan-out whose steps print and report, and then a question, or a wait for ever."""

    @step
    async def begin(self, ev: StartEvent) -> list[Part]:
        return [Part(number=n) for n in range(3)]

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Part) -> Middle:
        print("part", ev.number)
        await ctx.progress(ev.number + 1, 3, "working")
        return Middle(text=str(ev.number))

    @step
    async def join(self, ctx: Context, ev: list[Middle]) -> StopEvent:
        asked = InputRequiredEvent(prefix="Your name? ")
        answer = await ctx.wait_for_event(HumanResponseEvent, asked, timeout=100)
        if answer.response == "wait":
            await sleep_for_ever()
        return StopEvent(result=f"hello {answer.response}")
