"""Workflows whose right result and right side effects are known, to be killed anywhere.

Each body writes into a ledger outside of the engine when it begins and when it is about to return;
an event that a body returns names that body in ``by``. ``Flow.expected`` says what the ledger has
to contain in the end, ``Flow.result`` what the run returns, however often it was killed.

The sleeps make the bodies overlap; ``Flow.pace`` is how long one takes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

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
    WorkflowTimeoutError,
    catch_error,
    step,
)
from tests.durable.ledger import Expected, Ledger


if TYPE_CHECKING:
    from collections.abc import Iterator


class Keyed(Event):
    """An event with a name, and the body that returned it."""

    key: str
    by: str = ""


class Question(InputRequiredEvent):
    key: str


class Answer(HumanResponseEvent):
    key: str
    response: str


class Flow(Workflow):
    """A workflow that is killed anywhere."""

    inputs: ClassVar[dict[str, Any]] = {}
    #: How the run ends, and with which result if it completes.
    status: ClassVar[str] = "completed"
    result: ClassVar[Any] = None
    expected: ClassVar[Expected]
    #: The questions that are asked, and those that nobody answers.
    questions: ClassVar[frozenset[str]] = frozenset()
    unanswered: ClassVar[frozenset[str]] = frozenset()
    #: Answers that are sent right at the beginning.
    early: ClassVar[tuple[str, ...]] = ()
    #: The body at whose beginning the run is told to stop after its running steps.
    stops_at: ClassVar[str] = ""
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, ledger: Ledger | None = None, *, pace: float = 0.01, **options: Any) -> None:
        super().__init__(serializable=[Question, Answer], **{**self.options, **options})
        self.ledger = Ledger() if ledger is None else ledger
        self.pace = pace

    async def pause(self, times: float = 1.0) -> None:
        """Let others run for a while."""
        await anyio.sleep(self.pace * times)

    @contextmanager
    def body(self, ctx: Context[Any], key: str, *causes: Any) -> Iterator[str]:
        """Enter a body; the name of it is for the events that it returns."""
        name = f"{ctx.step.name}/{key}"
        self.ledger.note("begin", name, ctx, [getattr(cause, "by", "") for cause in causes])
        yield name
        self.ledger.note("end", name, ctx)

    async def ask(self, ctx: Context[Any], key: str, timeout: float | None = None) -> str:  # noqa: ASYNC109
        """Ask a question and wait for its answer."""
        answer = await ctx.wait_for_event(
            Answer, Question(key=key), requirements={"key": key}, timeout=timeout
        )
        return str(answer.response)


def bodies(step: str, *keys: object) -> frozenset[str]:
    """Name the bodies of a step."""
    return frozenset(f"{step}/{key}" for key in keys)


# -- one after the other ------------------------------------------------------------------------


class Hop(Keyed):
    number: int


class Chain(Flow):
    """Five hops; the third is slow, two write to the live stream."""

    inputs: ClassVar = {"count": 5}
    result: ClassVar = [0, 1, 2, 3, 4]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("hop", *range(5)),
        ordered={"hop": [f"hop/{n}" for n in range(5)]},
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Hop:
        with self.body(ctx, "") as me:
            await ctx.store.set("count", ev.count)
            return Hop(key="0", number=0, by=me)

    @step
    async def hop(self, ctx: Context, ev: Hop) -> Hop | StopEvent:
        with self.body(ctx, ev.key, ev) as me:
            if ev.number % 2:
                ctx.write_event_to_stream(Keyed(key=ev.key))
            await self.pause(3 if ev.number == 2 else 0)
            count = await ctx.store.get("count")
            await ctx.store.set(f"seen.n{ev.number}", ev.number)
            if ev.number + 1 < count:
                return Hop(key=str(ev.number + 1), number=ev.number + 1, by=me)
            return StopEvent(result=list((await ctx.store.get("seen")).values()))


# -- a queue before one worker ------------------------------------------------------------------


class Ticket(Keyed):
    number: int


class Queue(Flow):
    """Eight tickets before one worker: they are served in order, and so they are collected."""

    result: ClassVar = [f"served {n}" for n in range(8)]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("serve", *range(8)) | bodies("end", ""),
        ordered={"serve": [f"serve/{n}" for n in range(8)]},
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Ticket]:
        with self.body(ctx, "") as me:
            return [Ticket(key=str(n), number=n, by=me) for n in range(8)]

    @step(num_workers=1)
    async def serve(self, ctx: Context, ev: Ticket) -> Served:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause(ev.number % 3)
            async with ctx.store.edit_state() as state:
                line = [x for x in state.get("line", []) if x != ev.number]
                state.line = [*line, ev.number]
            return Served(key=ev.key, by=me)

    @step
    async def end(self, ctx: Context, evs: list[Served]) -> StopEvent:
        with self.body(ctx, "", *evs):
            line = await ctx.store.get("line")
            return StopEvent(result=[f"served {n}" for n in line])


class Served(Keyed):
    pass


# -- fan-outs -----------------------------------------------------------------------------------


class Item(Keyed):
    number: int


class Part(Keyed):
    number: int


class FanOut(Flow):
    """Two workers for five items, which come back in another order than they went."""

    result: ClassVar = [0, 10, 20, 30, 40]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("work", *range(5)) | bodies("end", "")
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        with self.body(ctx, "") as me:
            await self.pause()
            return [Item(key=str(n), number=n, by=me) for n in range(5)]

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Part:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause(5 - ev.number)
            return Part(key=ev.key, number=ev.number * 10, by=me)

    @step
    async def end(self, ctx: Context, evs: list[Part]) -> StopEvent:
        with self.body(ctx, "", *evs):
            await self.pause()
            return StopEvent(result=sorted(ev.number for ev in evs))


class Region(Keyed):
    shops: int


class Shop(Keyed):
    pass


class Sale(Keyed):
    amount: int


class Total(Keyed):
    amount: int


class NestedJoins(Flow):
    """Fan-outs in a fan-out: one region has no shop, and one shop sells nothing."""

    result: ClassVar = [0, 4, 8, 8]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "")
        | bodies("split", "r0", "r1", "r2", "r3")
        | bodies("visit", "r1s0", "r2s0", "r2s1", "r3s0", "r3s1", "r3s2")
        | bodies("add", "", "r1s0", "r2s0+r2s1", "r3s0+r3s2")
        | bodies("end", "")
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Region]:
        with self.body(ctx, "") as me:
            return [Region(key=f"r{n}", shops=n, by=me) for n in range(4)]

    @step
    async def split(self, ctx: Context, ev: Region) -> list[Shop]:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause()
            return [Shop(key=f"{ev.key}s{n}", by=me) for n in range(ev.shops)]

    @step(num_workers=2)
    async def visit(self, ctx: Context, ev: Shop) -> Sale | None:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause()
            return None if ev.key == "r3s1" else Sale(key=ev.key, amount=len(ev.key), by=me)

    @step
    async def add(self, ctx: Context, evs: list[Sale]) -> Total:
        with self.body(ctx, "+".join(sorted(ev.key for ev in evs)), *evs) as me:
            await self.pause(0.5)
            return Total(key="", amount=sum(ev.amount for ev in evs), by=me)

    @step
    async def end(self, ctx: Context, evs: list[Total]) -> StopEvent:
        with self.body(ctx, "", *evs):
            return StopEvent(result=sorted(ev.amount for ev in evs))


class Raw(Keyed):
    number: int


class Left(Keyed):
    number: int


class Right(Keyed):
    number: int


class Both(Keyed):
    number: int


class PairJoins(Flow):
    """Lefts and rights of a fan-out meet in pairs; which meet depends on who is ready first."""

    result: ClassVar = [3, 15]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("refine", *range(6)) | bodies("end", ""),
        optional=bodies("meet", *(f"{n}+{m}" for n in (1, 3, 5) for m in (0, 2, 4))),
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Raw]:
        with self.body(ctx, "") as me:
            return [Raw(key=str(n), number=n, by=me) for n in range(6)]

    @step(num_workers=2)
    async def refine(self, ctx: Context, ev: Raw) -> Left | Right:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause(1 + ev.number % 3)
            kind = Left if ev.number % 2 else Right
            return kind(key=ev.key, number=ev.number, by=me)

    @step
    async def meet(self, ctx: Context, a: Left, b: Right) -> Both:
        with self.body(ctx, f"{a.key}+{b.key}", a, b) as me:
            await self.pause()
            return Both(key="", number=a.number + b.number, by=me)

    @step
    async def end(self, ctx: Context, evs: list[Both]) -> StopEvent:
        with self.body(ctx, "", *evs):
            return StopEvent(result=[len(evs), sum(ev.number for ev in evs)])


class Race(Flow):
    """The first two of five; the losers are cancelled and need a while to clean up."""

    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("first", ""),
        optional=bodies("work", *range(5)),
    )
    result: ClassVar = [0, 1]

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        with self.body(ctx, "") as me:
            return [Item(key=str(n), number=n, by=me) for n in range(5)]

    @step(num_workers=4)
    async def work(self, ctx: Context, ev: Item) -> Part:
        with self.body(ctx, ev.key, ev) as me:
            try:
                await self.pause(1 + 0.3 * ev.number if ev.number < 2 else 10_000)
            finally:
                with anyio.CancelScope(shield=True):
                    await self.pause(0.1)
            return Part(key=ev.key, number=ev.number, by=me)

    @step
    async def first(self, ctx: Context, evs: Annotated[list[Part], Take(2)]) -> StopEvent:
        with self.body(ctx, "", *evs):
            await self.pause(2)
            return StopEvent(result=sorted(ev.number for ev in evs))


# -- branches -----------------------------------------------------------------------------------


class Job(Keyed):
    length: float


class Made(Keyed):
    pass


class Branches(Flow):
    """Four jobs are sent: two are waited for, one is cancelled, and one fails."""

    result: ClassVar = [True, True, True]
    expected: ClassVar = Expected(
        bodies=bodies("lead", "")
        | bodies("work", "j1", "j2", "bad")
        | bodies("finish", "j1", "j2"),
        optional=bodies("work", "long"),
        # What it sent goes out at once, and a job whose branch has failed is sent again.
        loose=frozenset({"lead", "work"}),
        resent=bodies("work", "bad"),
    )

    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> Job | StopEvent:
        with self.body(ctx, ""):
            jobs = [
                ctx.send_event(Job(key=key, length=length))
                for key, length in (("j1", 1), ("j2", 2), ("bad", 100))
            ]
            long = ctx.send_event(Job(key="long", length=10_000))
            await jobs[0].wait()
            done = [await ctx.store.get("made.j1", default=False)]
            await self.pause(0.5)
            long.cancel("one is enough")
            await long.wait()
            await jobs[1].wait()
            done.append(await ctx.store.get("made.j2", default=False))
            try:
                await jobs[2].wait()
            except Exception as error:
                done.append("bad job" in str(error))
            await self.pause()
            return StopEvent(result=done)

    @step(num_workers=4)
    async def work(self, ctx: Context, ev: Job) -> Made:
        with self.body(ctx, ev.key, ev) as me:
            try:
                await self.pause(ev.length)
            finally:
                if ev.key == "long":
                    with anyio.CancelScope(shield=True):
                        await self.pause(0.3)
            if ev.key == "bad":
                raise ValueError("bad job")
            return Made(key=ev.key, by=me)

    @step
    async def finish(self, ctx: Context, ev: Made) -> None:
        with self.body(ctx, ev.key, ev):
            await self.pause()
            await ctx.store.set(f"made.{ev.key}", True)


# -- failures -----------------------------------------------------------------------------------


class Flaky(Flow):
    """Items that fail twice; what an attempt sends counts once it succeeds."""

    result: ClassVar = [3, 3, 3, 100, 100, 100]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("work", *range(3)) | bodies("end", ""),
        failures={f"work/{n}": 2 for n in range(3)},
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        with self.body(ctx, "") as me:
            return [Item(key=str(n), number=n, by=me) for n in range(3)]

    @step(num_workers=2, retry=Retry(stop=3, wait=0.02))
    async def work(self, ctx: Context, ev: Item) -> Part:
        with self.body(ctx, ev.key, ev) as me:
            ctx.send_event(Part(key=f"{ev.key}x", number=100, by=me))
            await self.pause()
            if ctx.retry_info().retry_number < 2:
                raise OSError(ev.key)
            return Part(key=ev.key, number=ctx.step.attempt, by=me)

    @step
    async def end(self, ctx: Context, evs: list[Part]) -> StopEvent:
        with self.body(ctx, "", *evs):
            return StopEvent(result=sorted(ev.number for ev in evs))


def backoff(attempts: Any) -> float:
    """Wait longer after each attempt."""
    return 0.01 * 2**attempts.attempt_number


class Backoff(Flow):
    """One step that fails three times, with delays that grow, and a flaky step beside it."""

    result: ClassVar = [4, ["OSError('1')", "OSError('2')", "OSError('3')"]]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("side", *range(1, 5)),
        failures={"begin/": 3, "side/1": 1, "side/2": 1, "side/3": 1, "side/4": 1},
    )

    @step(retry=Retry(stop=4, wait=backoff, when=OSError), send_at_once=True)
    async def begin(self, ctx: Context, ev: StartEvent) -> Job | StopEvent:
        with self.body(ctx, ""):
            side = ctx.send_event(Job(key=str(ctx.step.attempt), length=1))
            await self.pause()
            if ctx.step.attempt < 4:
                raise OSError(str(ctx.step.attempt))
            await side.wait()
            errors = [repr(error) for error in ctx.retry_info().exceptions]
            return StopEvent(result=[ctx.step.attempt, errors])

    @step(retry=Retry(stop=2))
    async def side(self, ctx: Context, ev: Job) -> None:
        with self.body(ctx, ev.key, ev):
            await self.pause(ev.length)
            if ctx.step.attempt < 2:
                raise ValueError("once")


class Recovering(Flow):
    """Items that fail twice before they succeed; a handler sends each back."""

    result: ClassVar = ["0.2", "1.2", "2.2"]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "")
        | bodies("work", *(f"{n}.{m}" for n in range(3) for m in range(3)))
        | bodies("caught", *(f"{n}.{m}" for n in range(3) for m in range(2)))
        | bodies("end", ""),
        failures={f"work/{n}.{m}": 1 for n in range(3) for m in range(2)},
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        with self.body(ctx, "") as me:
            return [Item(key=f"{n}.0", number=0, by=me) for n in range(3)]

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Part:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause()
            if ev.number < 2:
                raise ValueError(ev.key)
            return Part(key=ev.key, number=ev.number, by=me)

    @catch_error(max_recoveries=2)
    async def caught(self, ctx: Context, ev: StepFailedEvent) -> Item:
        item: Any = ev.input_event
        failed = Keyed(key="", by=f"work/{item.key}")
        with self.body(ctx, item.key, failed) as me:
            await self.pause()
            assert (ev.attempts, ev.step_name) == (1, "work")
            name = item.key.partition(".")[0]
            return Item(key=f"{name}.{item.number + 1}", number=item.number + 1, by=me)

    @step
    async def end(self, ctx: Context, evs: list[Part]) -> StopEvent:
        with self.body(ctx, "", *evs):
            return StopEvent(result=sorted(ev.key for ev in evs))


class Broken(Flow):
    """One of three items fails for good, so the run fails, whoever is at work."""

    status: ClassVar = "failed"
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("work", 0, 1, 2),
        failures={"work/1": 2},
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        with self.body(ctx, "") as me:
            return [Item(key=str(n), number=n, by=me) for n in range(3)]

    @step(num_workers=3, retry=Retry(stop=2, when=OSError))
    async def work(self, ctx: Context, ev: Item) -> Part:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause(1 if ev.number < 2 else 10_000)
            if ev.number == 1:
                raise OSError("for good")
            return Part(key=ev.key, number=ev.number, by=me)

    @step
    async def end(self, ctx: Context, evs: list[Part]) -> StopEvent:
        with self.body(ctx, "", *evs):
            return StopEvent()


# -- effects that happen once -------------------------------------------------------------------


class Paying(Flow):
    """Three items are paid for, each once; the step fails when it has paid, and is tried again."""

    result: ClassVar = ["receipt of pay/0", "receipt of pay/1", "receipt of pay/2"]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("pay", *range(3)) | bodies("end", ""),
        effects=bodies("pay", *range(3)),
        failures={f"pay/{n}": 1 for n in range(3)},
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        with self.body(ctx, "") as me:
            return [Item(key=str(n), number=n, by=me) for n in range(3)]

    @step(num_workers=2, retry=Retry(stop=2))
    async def pay(self, ctx: Context, ev: Item) -> Keyed:
        with self.body(ctx, ev.key, ev) as me:
            receipt = await ctx.once("pay", self.charge, me)
            self.ledger.note("used", me, ctx, [me])
            if ctx.retry_info().retry_number < 1:
                raise OSError("the printer has no paper")
            return Keyed(key=receipt, by=me)

    async def charge(self, name: str) -> str:
        """Have the effect; what it returns is known once it is recorded."""
        await self.pause()
        self.ledger.note("effect", name)
        await self.pause()
        return f"receipt of {name}"

    @step
    async def end(self, ctx: Context, evs: list[Keyed]) -> StopEvent:
        with self.body(ctx, "", *evs):
            return StopEvent(result=sorted(ev.key for ev in evs))


# -- waits and questions ------------------------------------------------------------------------


class Interview(Flow):
    """One step asks four times, twice of them at once; one answer is there before its question."""

    questions: ClassVar = frozenset({"name", "town", "road", "early"})
    early: ClassVar = ("early",)
    result: ClassVar = ["NAME", "TOWN", "ROAD", "EARLY"]
    expected: ClassVar = Expected(bodies=bodies("begin", "") | bodies("put", ""))

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Job:
        with self.body(ctx, "") as me:
            return Job(key="", length=1, by=me)

    @step
    async def put(self, ctx: Context, ev: Job) -> StopEvent:
        with self.body(ctx, "", ev):
            name = await self.ask(ctx, "name")
            await self.pause()
            found: dict[str, str] = {}

            async def one(key: str) -> None:
                found[key] = await self.ask(ctx, key)

            async with anyio.create_task_group() as group:
                group.start_soon(one, "town")
                group.start_soon(one, "road")
            await self.pause()
            early = await self.ask(ctx, "early")
            return StopEvent(result=[name, found["town"], found["road"], early])


class Impatient(Flow):
    """Questions with a timeout: one is answered, one is not; both are open at once."""

    questions: ClassVar = frozenset({"now", "never", "late"})
    unanswered: ClassVar = frozenset({"never"})
    result: ClassVar = ["NOW", "nobody", "LATE"]
    expected: ClassVar = Expected(bodies=bodies("begin", ""))

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        with self.body(ctx, ""):
            found: dict[str, str] = {}

            async def one(key: str, timeout: float) -> None:  # noqa: ASYNC109
                try:
                    found[key] = await self.ask(ctx, key, timeout)
                except WorkflowTimeoutError:
                    found[key] = "nobody"

            async with anyio.create_task_group() as group:
                group.start_soon(one, "now", 1000.0)
                group.start_soon(one, "never", self.pace * 20)
            await one("late", 1000.0)
            return StopEvent(result=[found["now"], found["never"], found["late"]])


class Human(Flow):
    """Three questions, one after the other, each returned by a step that ends."""

    questions: ClassVar = frozenset({"q0", "q1", "q2"})
    result: ClassVar = ["Q0", "Q1", "Q2"]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("answered", "q0", "q1", "q2"),
        ordered={"answered": ["answered/q0", "answered/q1", "answered/q2"]},
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Question:
        with self.body(ctx, ""):
            await self.pause()
            return Question(key="q0")

    @step
    async def answered(self, ctx: Context, ev: Answer) -> Question | StopEvent:
        with self.body(ctx, ev.key):
            await self.pause()
            said = {**await ctx.store.get("said", default={}), ev.key: ev.response}
            await ctx.store.set("said", said)
            if len(said) == 3:
                return StopEvent(result=list(said.values()))
            return Question(key=f"q{len(said)}")


# -- children -----------------------------------------------------------------------------------


class Grandchild(Flow):
    """Asks, and returns the answer with its name."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Job:
        with self.body(ctx, ev.name) as me:
            await self.pause()
            return Job(key=ev.name, length=1, by=f"{me}")

    @step
    async def quiz(self, ctx: Context, ev: Job) -> StopEvent:
        with self.body(ctx, ev.key, ev):
            return StopEvent(result=f"{ev.key} {await self.ask(ctx, ev.key)}")


class Nephew(Flow):
    """Runs a grandchild between two steps of its own."""

    def __init__(self, ledger: Ledger | None = None, **options: Any) -> None:
        super().__init__(ledger, **options)
        self.grandchild = Grandchild(ledger, **options)

    @step
    async def open(self, ctx: Context, ev: StartEvent) -> Job:
        with self.body(ctx, ev.name) as me:
            await self.pause()
            return Job(key=ev.name, length=1, by=me)

    @step
    async def middle(self, ctx: Context, ev: Job) -> Made:
        with self.body(ctx, ev.key, ev) as me:
            found = await ctx.run_child(self.grandchild, name=ev.key)
            await self.pause()
            return Made(key=found, by=me)

    @step
    async def close(self, ctx: Context, ev: Made) -> StopEvent:
        with self.body(ctx, ev.key.partition(" ")[0], ev):
            await self.pause()
            return StopEvent(result=ev.key)


class Family(Flow):
    """Two children run at once in one step, each with a grandchild that asks; then one more."""

    questions: ClassVar = frozenset({"ann", "bob", "cid"})
    result: ClassVar = ["ann ANN", "bob BOB", "cid CID"]
    expected: ClassVar = Expected(
        bodies=bodies("parent", "")
        | bodies("last", "cid")
        | frozenset().union(
            *(bodies(step, "ann", "bob") for step in ("open", "middle", "close")),
            *(bodies(step, "ann", "bob", "cid") for step in ("begin", "quiz")),
        )
    )

    def __init__(self, ledger: Ledger | None = None, **options: Any) -> None:
        super().__init__(ledger, **options)
        self.nephew = Nephew(self.ledger, **options)

    @step
    async def parent(self, ctx: Context, ev: StartEvent) -> Job:
        with self.body(ctx, "") as me:
            found: list[str] = []

            async def one(name: str) -> None:
                found.append(await ctx.run_child(self.nephew, name=name))

            async with anyio.create_task_group() as group:
                group.start_soon(one, "ann")
                group.start_soon(one, "bob")
            await ctx.store.set("found", sorted(found))
            return Job(key="cid", length=1, by=me)

    @step
    async def last(self, ctx: Context, ev: Job) -> StopEvent:
        with self.body(ctx, ev.key, ev):
            cid = await ctx.run_child(self.nephew.grandchild, name=ev.key)
            return StopEvent(result=[*await ctx.store.get("found"), cid])


# -- state --------------------------------------------------------------------------------------


@attrs.define
class Totals:
    count: int = 0
    lines: list[str] = attrs.Factory(list)
    by_name: dict[str, list[int]] = attrs.Factory(dict)


class Stately(Flow):
    """A typed state with lists that grow, edited by three workers; each edit can be repeated."""

    result: ClassVar = [12, {"a": [0, 3, 6, 9], "b": [1, 4, 7, 10], "c": [2, 5, 8, 11]}]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("add", *range(12)) | bodies("end", "")
    )

    @step
    async def begin(self, ctx: Context[Totals], ev: StartEvent) -> list[Item]:
        with self.body(ctx, "") as me:
            return [Item(key=str(n), number=n, by=me) for n in range(12)]

    @step(num_workers=3)
    async def add(self, ctx: Context[Totals], ev: Item) -> Part:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause(ev.number % 2)
            async with ctx.store.edit_state() as state:
                if ev.key not in state.lines:
                    state.lines.append(ev.key)
                    state.by_name.setdefault("abc"[ev.number % 3], []).append(ev.number)
                    await self.pause(0)
                    state.count += 1
            return Part(key=ev.key, number=ev.number, by=me)

    @step
    async def end(self, ctx: Context[Totals], evs: list[Part]) -> StopEvent:
        with self.body(ctx, "", *evs):
            state = await ctx.store.get_state()
            assert len(state.lines) == state.count
            found = {name: sorted(state.by_name[name]) for name in sorted(state.by_name)}
            return StopEvent(result=[state.count, found])


# -- resources and timeouts ---------------------------------------------------------------------


class Pool:
    """A resource of the run, made anew in every life."""

    def __init__(self) -> None:
        self.is_open = False

    async def __aenter__(self) -> Self:
        self.is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_open = False


def make_pool() -> Pool:
    return Pool()


class Equipped(Flow):
    """Steps with a resource; one is too slow for its timeout, and a handler takes over."""

    result: ClassVar = ["quick", "slow: True"]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "")
        | bodies("work", "quick", "slow")
        | bodies("caught", "slow")
        | bodies("end", "")
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Job]:
        with self.body(ctx, "") as me:
            await self.pause()
            return [Job(key="quick", length=1, by=me), Job(key="slow", length=10_000, by=me)]

    @step(timeout=1.0)
    async def work(
        self, ctx: Context, ev: Job, pool: Annotated[Pool, Resource(make_pool, scope="run")]
    ) -> Made:
        with self.body(ctx, ev.key, ev) as me:
            assert pool.is_open
            await self.pause(ev.length)
            return Made(key=ev.key, by=me)

    @catch_error
    async def caught(
        self,
        ctx: Context,
        ev: StepFailedEvent,
        pool: Annotated[Pool, Resource(make_pool, scope="step")],
    ) -> Made:
        job: Any = ev.input_event
        with self.body(ctx, job.key, Keyed(key="", by=f"work/{job.key}")) as me:
            assert pool.is_open
            await self.pause()
            # After a crash it is another class, which shows the same text.
            is_late = "did not end within its timeout" in str(ev.exception)
            return Made(key=f"{job.key}: {is_late}", by=me)

    @step
    async def end(self, ctx: Context, evs: list[Made]) -> StopEvent:
        with self.body(ctx, "", *evs):
            return StopEvent(result=sorted(ev.key for ev in evs))


class Overdue(Flow):
    """A run whose timeout passes while it works; the time in all lives counts."""

    status: ClassVar = "timed_out"
    options: ClassVar = {"timeout": 0.3}
    expected: ClassVar = Expected(bodies=bodies("begin", ""), optional=bodies("tick", *range(200)))

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Hop:
        with self.body(ctx, "") as me:
            return Hop(key="0", number=0, by=me)

    @step
    async def tick(self, ctx: Context, ev: Hop) -> Hop | StopEvent:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause(5)
            if ev.number == 199:
                return StopEvent()
            return Hop(key=str(ev.number + 1), number=ev.number + 1, by=me)


class Graceful(Flow):
    """Told to stop after its running steps; their results are kept, and nothing else begins."""

    status: ClassVar = "cancelled"
    stops_at: ClassVar = "work/2"
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("work", 0, 1, 2),
        optional=bodies("work", *range(3, 12)),  # how many depends on when the stop is asked for
        late=2,
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        with self.body(ctx, "") as me:
            return [Item(key=str(n), number=n, by=me) for n in range(12)]

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Part:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause(3)
            return Part(key=ev.key, number=ev.number, by=me)

    @step
    async def end(self, ctx: Context, evs: list[Part]) -> StopEvent:
        with self.body(ctx, "", *evs):
            return StopEvent(result=len(evs))


# -- collected by a step ------------------------------------------------------------------------


class Apple(Keyed):
    pass


class Pear(Keyed):
    pass


class Basket(Keyed):
    fruit: list[str]


class Collecting(Flow):
    """Two apples and a pear make a basket; who completes one and who does not take their time."""

    result: ClassVar = ["a0", "a1", "a2", "a3", "p0", "p1"]
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("gather", *result),
        optional=frozenset().union(
            *(
                bodies("end", f"{x}+{y}+{z}")
                for x in ("a0", "a1", "a2", "a3")
                for y in ("a0", "a1", "a2", "a3")
                for z in ("p0", "p1")
            )
        ),
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Apple | Pear | None:
        with self.body(ctx, ""):
            for n in range(4):
                ctx.send_event(Apple(key=f"a{n}"))
                await self.pause()
            ctx.send_event(Pear(key="p0"))
            return Pear(key="p1")

    @step(num_workers=4)
    async def gather(self, ctx: Context, ev: Apple | Pear) -> Basket | None:
        with self.body(ctx, ev.key, ev) as me:
            await self.pause(0.5)
            found = ctx.collect_events(ev, [Apple, Apple, Pear])
            await self.pause(1.5)
            if found is None:
                return None
            return Basket(
                key="+".join(one.key for one in found), fruit=[one.key for one in found], by=me
            )

    @step
    async def end(self, ctx: Context, ev: Basket) -> StopEvent | None:
        with self.body(ctx, ev.key, ev):
            found = ctx.collect_events(ev, [Basket, Basket])
            if found is None:
                return None
            await self.pause(5)
            return StopEvent(result=sorted(name for basket in found for name in basket.fruit))


# -- sends --------------------------------------------------------------------------------------


class Sends(Flow):
    """Two tasks of one step send, twice the same content; a step with a retry holds its sends."""

    result: ClassVar = {"a": 1, "b": 1, "same": 2, "held0": 1, "held1": 1}
    expected: ClassVar = Expected(
        bodies=bodies("begin", "") | bodies("hold", "") | bodies("last", ""),
        # Two deliveries of one content cannot be told apart by their names.
        optional=bodies("work", *(f"{key}#{n}" for key in result for n in range(60))),
        failures={"hold/": 1},
    )

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Job | Hop | None:
        with self.body(ctx, ""):

            async def send(key: str, wait: float) -> None:
                await self.pause(wait)
                ctx.send_event(Job(key=key, length=1))
                await self.pause(wait)
                ctx.send_event(Job(key="same", length=1))

            async with anyio.create_task_group() as group:
                group.start_soon(send, "a", 1)
                group.start_soon(send, "b", 1)
            ctx.send_event(Hop(key="", number=0))

    @step(retry=Retry(stop=2))
    async def hold(self, ctx: Context, ev: Hop) -> Job | Made:
        with self.body(ctx, "") as me:
            for n in range(2):
                ctx.send_event(Job(key=f"held{n}", length=1))
                await self.pause()
            if ctx.step.attempt < 2:
                raise OSError("once")
            return Made(key="", by=me)

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Job) -> None:
        delivery = self.delivery_of(ctx)
        with self.body(ctx, f"{ev.key}#{delivery}"):
            await self.pause(ev.length)
            await ctx.store.set(f"done.{ev.key}.d{delivery}", True)

    @step
    async def last(self, ctx: Context, ev: Made) -> StopEvent:
        with self.body(ctx, "", ev):
            while True:
                done = await ctx.store.get("done", default={})
                count = {key: len(found) for key, found in done.items()}
                if sum(count.values()) >= 6:
                    return StopEvent(result={key: count[key] for key in self.result})
                await self.pause()

    def delivery_of(self, ctx: Context) -> str:
        """Return the number of the delivery, or of the invocation in a run without a store."""
        if ctx.redelivery is not None and ctx.redelivery.key:
            return str(ctx.redelivery.key)
        self.counted = getattr(self, "counted", 0) + 1
        return str(self.counted)


FLOWS: dict[str, type[Flow]] = {
    kind.__name__: kind
    for kind in (
        Chain,
        Queue,
        FanOut,
        NestedJoins,
        PairJoins,
        Race,
        Branches,
        Flaky,
        Backoff,
        Recovering,
        Broken,
        Paying,
        Interview,
        Impatient,
        Human,
        Family,
        Stately,
        Equipped,
        Overdue,
        Graceful,
        Collecting,
        Sends,
    )
}
