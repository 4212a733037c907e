"""The workflows that test_snapshots.py interrupts everywhere, and the program that goes on with them.

``serve(backend)`` reads snapshots from standard input, one JSON object a line, lets each go on to
its end in virtual time, and prints what came of it: the process that resumes is not the one that
was interrupted.
"""

from __future__ import annotations

import enum
import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import anyio
import attrs

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Observer,
    Retry,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Take,
    Workflow,
    catch_error,
    step,
)
from tests.helpers import run_virtually


class Spy(Observer):
    """Writes down what is begun, what is done, and what is asked."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.names: dict[tuple[str, int], str] = {}
        self.done: list[str] = []
        self.asked: list[str] = []
        self.published: list[str] = []
        self.told: list[tuple[float, str]] = []

    def tell(self, what: str) -> None:
        self.told.append((round(anyio.current_time(), 6), what))

    def step_started(self, invocation):
        self.begun.append(f"{invocation.step}:{getattr(invocation.event, 'key', '')}")
        self.names[invocation.run.run_id, invocation.number] = self.begun[-1]
        self.tell(self.begun[-1])

    def step_ended(self, invocation):
        begun = self.names[invocation.run.run_id, invocation.number]
        result, error = invocation.result, invocation.error
        if error is None:
            self.done.append(begun)
        elif isinstance(error, Exception):
            self.done.append(f"{begun} failed")
        self.tell(f"{begun} {type(result).__name__} {type(error).__name__}")

    def event_published(self, run, event):
        if "/" in run.run_id:
            return  # of a child, whose events are on the stream of its parent too
        self.published.append(type(event).__name__)
        self.tell(type(event).__name__)
        if isinstance(event, InputRequiredEvent):
            self.asked.append(event.prefix)


class Flow(Workflow):
    """A workflow with a spy; ``inputs`` starts it, ``reply`` answers its questions.

    ``loose`` names the steps that may run again although they were done: those of branches that
    come to nothing.
    """

    inputs: dict[str, Any] = {}
    loose: frozenset[str] = frozenset()
    #: Whether the questions are published by steps that end, and so are not asked again.
    asks_once = False

    def __init__(self, **options: Any) -> None:
        self.spy = Spy()
        super().__init__(observers=[self.spy, *options.pop("observers", ())], **options)

    def reply(self, prefix: str) -> Event:
        return HumanResponseEvent(response=prefix.upper(), key=prefix)


class Keyed(Event):
    key: str


# -- a fan-out and its join --------------------------------------------------------------------


class Item(Keyed):
    number: int


class Part(Keyed):
    number: int


class Fan(Flow):
    """Two workers for five items; a second fan-out step passes an item on by itself."""

    inputs = {"count": 5}

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        await ctx.store.set("count", ev.count)
        return [Item(key=str(n), number=n) for n in range(ev.count)]

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Part:
        ctx.write_event_to_stream(Part(key=ev.key, number=-1))
        await anyio.sleep(0.01 * (5 - ev.number))
        return Part(key=ev.key, number=ev.number * 10)

    @step
    async def end(self, ctx: Context, evs: list[Part]) -> StopEvent:
        count = await ctx.store.get("count")
        return StopEvent(result=[count, *sorted(ev.number for ev in evs)])


# -- fan-outs in a fan-out ------------------------------------------------------------------------


class Region(Keyed):
    shops: int


class Shop(Keyed):
    pass


class Sale(Keyed):
    amount: int


class Total(Keyed):
    amount: int


class Nested(Flow):
    """Regions with shops: one region has none, and one shop sells nothing."""

    @step
    async def begin(self, ev: StartEvent) -> list[Region]:
        return [Region(key=f"r{n}", shops=n) for n in range(4)]

    @step
    async def split(self, ev: Region) -> list[Shop]:
        await anyio.sleep(0.01)
        return [Shop(key=f"{ev.key}s{n}") for n in range(ev.shops)]

    @step(num_workers=2)
    async def visit(self, ev: Shop) -> Sale | None:
        await anyio.sleep(0.01)
        return None if ev.key == "r3s1" else Sale(key=ev.key, amount=len(ev.key))

    @step
    async def add(self, evs: list[Sale]) -> Total:
        await anyio.sleep(0.005)
        return Total(key="", amount=sum(ev.amount for ev in evs))

    @step
    async def end(self, evs: list[Total]) -> StopEvent:
        return StopEvent(result=sorted(ev.amount for ev in evs))


# -- the first n ------------------------------------------------------------------------------------


class Race(Flow):
    """The first two of five; the losers need a while to clean up."""

    loose = frozenset({"work"})

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(key=str(n), number=n) for n in range(5)]

    @step(num_workers=4)
    async def work(self, ev: Item) -> Part:
        try:
            await anyio.sleep(0.01 + 0.003 * ev.number if ev.number < 2 else 100)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)
        return Part(key=ev.key, number=ev.number)

    @step
    async def first(self, evs: Annotated[list[Part], Take(2)]) -> StopEvent:
        await anyio.sleep(0.02)
        return StopEvent(result=sorted(ev.number for ev in evs))


# -- one of each ------------------------------------------------------------------------------------


class Raw(Keyed):
    number: int


class Left(Keyed):
    number: int


class Right(Keyed):
    number: int


class Pair(Keyed):
    number: int


class Pairs(Flow):
    """Lefts and rights meet within a fan-out, and again outside of it."""

    @step
    async def begin(self, ev: StartEvent) -> list[Raw]:
        return [Raw(key=str(n), number=n) for n in range(6)]

    @step(num_workers=2)
    async def refine(self, ev: Raw) -> Left | Right:
        await anyio.sleep(0.01 * (1 + ev.number % 3))
        kind = Left if ev.number % 2 else Right
        return kind(key=ev.key, number=ev.number)

    @step
    async def pair(self, a: Left, b: Right) -> Pair:
        await anyio.sleep(0.01)
        return Pair(key="", number=a.number + b.number)

    @step
    async def end(self, evs: list[Pair]) -> StopEvent:
        return StopEvent(result=[len(evs), sum(ev.number for ev in evs)])


# -- collected by a step ------------------------------------------------------------------------------


class Apple(Keyed):
    pass


class Pear(Keyed):
    pass


class Basket(Keyed):
    fruit: list[str]


class Collecting(Flow):
    """Two apples and a pear make a basket; both who complete one and who do not take their time."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Apple | Pear | None:
        for n in range(4):
            ctx.send_event(Apple(key=f"a{n}"))
            await anyio.sleep(0.01)
        ctx.send_event(Pear(key="p0"))
        return Pear(key="p1")

    @step(num_workers=4)
    async def gather(self, ctx: Context, ev: Apple | Pear) -> Basket | None:
        await anyio.sleep(0.005)
        found = ctx.collect_events(ev, [Apple, Apple, Pear])
        await anyio.sleep(0.015)
        if found is None:
            return None
        return Basket(key="", fruit=[event.key for event in found])

    @step
    async def end(self, ctx: Context, ev: Basket) -> StopEvent | None:
        found = ctx.collect_events(ev, [Basket] * 2)
        if found is None:
            return None
        await anyio.sleep(0.05)  # who else gathers comes to its end
        return StopEvent(result=sorted(name for basket in found for name in basket.fruit))


# -- waiting in the middle of a step ------------------------------------------------------------------


class Interview(Flow):
    """One step asks three times, twice of them at once."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        name = await self.question(ctx, "name")
        await anyio.sleep(0.01)
        answers: dict[str, str] = {}

        async def one(prefix: str) -> None:
            answers[prefix] = await self.question(ctx, prefix)

        async with anyio.create_task_group() as group:
            group.start_soon(one, "town")
            group.start_soon(one, "road")
        await anyio.sleep(0.01)
        return StopEvent(result=[name, answers["town"], answers["road"]])

    async def question(self, ctx: Context, prefix: str) -> str:
        answer = await ctx.wait_for_event(
            HumanResponseEvent, InputRequiredEvent(prefix=prefix), requirements={"key": prefix}
        )
        return answer.response


# -- people asked between two steps --------------------------------------------------------------------


class Asked(InputRequiredEvent):
    prefix: str


class Human(Flow):
    """Three questions, one after the other, each returned by a step that may run twice."""

    asks_once = True

    @step
    async def begin(self, ev: StartEvent) -> Asked:
        await anyio.sleep(0.01)
        return Asked(prefix="q0")

    @step
    async def answered(self, ctx: Context, ev: HumanResponseEvent) -> Asked | StopEvent:
        await anyio.sleep(0.01)
        said = {**await ctx.store.get("said", default={}), ev.key: ev.response}
        if len(said) == 3:
            return StopEvent(result=list(said.values()))
        await ctx.store.set("said", said)
        return Asked(prefix=f"q{len(said)}")


# -- further attempts -----------------------------------------------------------------------------------


class Flaky(Flow):
    """Items of a fan-out that each fail twice; what an attempt sends counts once it succeeds."""

    inputs = {"count": 3}

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(key=str(n), number=n) for n in range(ev.count)]

    @step(num_workers=2, retry=Retry(stop=3, wait=1.0))
    async def work(self, ctx: Context, ev: Item) -> Part:
        ctx.send_event(Part(key=f"{ev.key}x", number=100))
        await anyio.sleep(0.01)
        if ctx.retry_info().retry_number < 2:
            raise OSError(ev.key)
        return Part(key=ev.key, number=ctx.step.attempt)

    @step
    async def end(self, evs: list[Part]) -> StopEvent:
        return StopEvent(result=sorted(ev.number for ev in evs))


# -- failures recovered -----------------------------------------------------------------------------------


class Recovering(Flow):
    """Items that fail twice before they succeed, in a fan-out; a handler sends each back."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(key=str(n), number=0) for n in range(3)]

    @step(num_workers=2)
    async def work(self, ev: Item) -> Part:
        await anyio.sleep(0.01)
        if ev.number < 2:
            raise ValueError(ev.key)
        return Part(key=ev.key, number=ev.number)

    @catch_error(max_recoveries=2)
    async def caught(self, ctx: Context, ev: StepFailedEvent) -> Item:
        await anyio.sleep(0.01)
        assert ev.attempts == 1
        item = ev.input_event
        return Item(key=item.key, number=item.number + 1)

    @step
    async def end(self, evs: list[Part]) -> StopEvent:
        return StopEvent(result=sorted(f"{ev.key}/{ev.number}" for ev in evs))


# -- a loop with a state ------------------------------------------------------------------------------------


@attrs.define
class Ledger:
    balance: Decimal = Decimal(0)
    seen: set[int] = attrs.Factory(set)
    last: tuple[int, str] = (0, "")


class Ping(Keyed):
    number: int


class Loop(Flow):
    """Ten rounds; each writes into the state what it may write twice."""

    @step
    async def begin(self, ev: StartEvent) -> Ping:
        return Ping(key="0", number=0)

    @step
    async def round(self, ctx: Context[Ledger], ev: Ping) -> Ping | StopEvent:
        await anyio.sleep(0.01)
        async with ctx.store.edit_state() as state:
            state.seen.add(ev.number)
            state.balance = Decimal("0.1") * ev.number
            state.last = (ev.number, ev.key)
        if ev.number < 10:
            return Ping(key=str(ev.number + 1), number=ev.number + 1)
        state = await ctx.store.get_state()
        return StopEvent(result=[str(state.balance), sorted(state.seen), list(state.last)])


# -- sends, and what becomes of them ------------------------------------------------------------------------


class Job(Keyed):
    seconds: float


class Made(Keyed):
    pass


class Branching(Flow):
    """Four jobs are sent: two are waited for, one is cancelled, and one fails."""

    loose = frozenset({"work", "finish"})

    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> Job | StopEvent:
        jobs = [
            ctx.send_event(Job(key=f"j{n}", seconds=seconds))
            for n, seconds in enumerate((0.01, 0.02, 0.1), 1)
        ]
        long = ctx.send_event(Job(key="long", seconds=100))
        await jobs[0].wait()
        finished = [await ctx.store.get("made.j1", default=False)]
        await anyio.sleep(0.005)
        long.cancel("one is enough")
        await long.wait()
        assert long.is_cancelled
        await jobs[1].wait()
        assert not jobs[1].is_cancelled
        finished.append(await ctx.store.get("made.j2", default=False))
        try:
            await jobs[2].wait()
        except Exception as error:
            finished.append("bad job" in str(error))
        else:
            finished.append(False)
        await anyio.sleep(0.01)
        return StopEvent(result=finished)

    @step(num_workers=4)
    async def work(self, ev: Job) -> Made:
        try:
            await anyio.sleep(ev.seconds)
        finally:
            if ev.key == "long":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.003)
        if ev.key == "j3":
            raise ValueError("bad job")
        return Made(key=ev.key)

    @step
    async def finish(self, ctx: Context, ev: Made) -> None:
        await anyio.sleep(0.01)
        await ctx.store.set(f"made.{ev.key}", True)


# -- fields of many kinds -----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Money:
    amount: Decimal
    currency: str = "EUR"


class Parcel(Event):
    key: str
    sent_at: datetime
    price: Money
    colour: Colour
    size: tuple[int, int]
    tags: set[str]
    raw: bytes
    took: timedelta
    serial: UUID
    notes: dict[str, Any]


class Delivered(StopEvent):
    parcels: list[Parcel]
    colours: frozenset[Colour]


class Kinds(Flow):
    """Events whose fields JSON does not have pass through a fan-out, a join and the result."""

    @step
    async def begin(self, ev: StartEvent) -> list[Parcel]:
        return [
            Parcel(
                key=str(n),
                sent_at=datetime(2026, 1, 2, 3, 4, 5, n, tzinfo=UTC),
                price=Money(Decimal(f"1.{n}0")),
                colour=Colour.BLUE if n else Colour.RED,
                size=(n, n + 1),
                tags={"a", f"b{n}"},
                raw=bytes([n, 255]),
                took=timedelta(days=n, microseconds=1),
                serial=UUID(int=n),
                notes={"$": n, "x": [1.5, None, (n,)]},
            )
            for n in range(3)
        ]

    @step(num_workers=1)
    async def carry(self, ctx: Context, ev: Parcel) -> Parcel2:
        await anyio.sleep(0.01)
        await ctx.store.set(f"seen.{ev.key}", (ev.price, ev.colour))
        return Parcel2(key=ev.key, parcel=ev)

    @step
    async def end(self, ctx: Context, evs: list[Parcel2]) -> Delivered:
        await anyio.sleep(0.01)
        parcels = sorted((ev.parcel for ev in evs), key=lambda parcel: parcel.key)
        assert await ctx.store.get("seen.1") == (parcels[1].price, Colour.BLUE)
        return Delivered(parcels=parcels, colours=frozenset(p.colour for p in parcels))


class Parcel2(Keyed):
    parcel: Parcel


# -- children, effects and timers ---------------------------------------------------------------------------


class Member(Workflow):
    """Two steps, the second of which asks, or sleeps and has an effect."""

    def __init__(self, spy: Spy) -> None:
        super().__init__()
        self.spy = spy

    @step
    async def arrive(self, ev: StartEvent) -> Item:
        await anyio.sleep(0.004)
        return Item(key=ev.key, number=0)

    @step
    async def speak(self, ctx: Context, ev: Item) -> StopEvent:
        if ev.key == "asks":
            question = InputRequiredEvent(prefix=ev.key)
            answer = await ctx.wait_for_event(HumanResponseEvent, question)
            return StopEvent(result=answer.response)
        await ctx.sleep(0.01)
        return StopEvent(result=await ctx.once("effect", self.effect, ev.key))

    async def effect(self, key: str) -> str:
        await anyio.sleep(0.003)
        self.spy.done.append(f"effect:{key}")
        return key


class Family(Flow):
    """Three children at once, called for in changing order, a timer, and one more child."""

    async def pay(self) -> tuple[str, int]:
        await anyio.sleep(0.003)
        self.spy.done.append("effect:pay")
        return ("paid", 1)

    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> StopEvent:
        receipt = await ctx.once("pay", self.pay)
        found: dict[str, str] = {}

        async def call(key: str) -> None:
            found[key] = await ctx.run_child(Member(self.spy), key=key)

        names = ["asks", "sleeps", "works"]
        async with anyio.create_task_group() as group:
            for key in names if len(self.spy.begun) % 2 else names[::-1]:
                group.start_soon(call, key)
        await ctx.sleep(0.01)
        await call("last")
        return StopEvent(result=[receipt, *sorted(found.values())])


FLOWS: dict[str, type[Flow]] = {
    kind.__name__: kind
    for kind in (
        Fan,
        Nested,
        Race,
        Pairs,
        Collecting,
        Interview,
        Human,
        Flaky,
        Recovering,
        Loop,
        Branching,
        Kinds,
        Family,
    )
}


# -- driving them -------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """Show a result: sets in order, so that two processes show the same."""
    if isinstance(value, Delivered):
        parcels = [(repr(attrs.evolve(p, tags=set())), sorted(p.tags)) for p in value.parcels]
        return repr((parcels, sorted(c.name for c in value.colours)))
    return repr(value)


async def drive(workflow: Flow, handler: Any, owed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Have a run go to its end, answer what it asks, and tell all about it."""
    numbers: list[int] = []
    kinds: list[str] = []
    began = anyio.current_time()
    async with handler:
        for prefix in owed:
            handler.send_event(workflow.reply(prefix))
        async with handler.stream_events() as stream:
            async for event in stream:
                numbers.append(stream.sequence)
                kinds.append(type(event).__name__)
                if isinstance(event, InputRequiredEvent) and handler.ctx.is_running:
                    handler.send_event(workflow.reply(event.prefix))
        result = await handler
    return {
        "result": shown(result),
        "seconds": anyio.current_time() - began,
        "done": workflow.spy.done,
        "asked": workflow.spy.asked,
        "numbers": numbers,
        "kinds": kinds,
        "run_id": handler.run_id,
    }


async def go_on(line: dict[str, Any]) -> dict[str, Any]:
    """Let one snapshot go on."""
    workflow = FLOWS[line["flow"]]()
    try:
        handler = workflow.resume(line["snapshot"])
        return await drive(workflow, handler, tuple(line["owed"]))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def serve(backend: str) -> None:
    """Resume every snapshot of standard input, and print one line for each."""

    async def main() -> None:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(await go_on(json.loads(line))) + "\n")

    run_virtually(backend, main)
