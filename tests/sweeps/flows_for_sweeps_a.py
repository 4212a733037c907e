"""Small workflows, one or more for each feature of the engine, and what each of them promises.

Each is a scenario for ``sweep()``: it is run again and again, each time cancelled elsewhere. So its
judge has to know what must hold wherever that was, and what holds where the scenario completed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import Annotated, Any

import anyio
import trio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StepFailedEvent,
    StepStateChanged,
    StopEvent,
    Take,
    Workflow,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowStalledError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    catch_error,
    step,
    workflow_scope,
)
from sluicegate._loop.cleanup import current_cleanup
from tests.helpers import cancelled_class


#: Which terminal event belongs to which status; a completed run ends with its own stop event.
ENDS = {
    "failed": WorkflowFailedEvent,
    "timed_out": WorkflowTimedOutEvent,
    "cancelled": WorkflowCancelledEvent,
}


class Reading:
    """What one reader has seen, and whether it came to the end."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.after = stream.sequence
        self.events: list[Event] = []
        self.has_ended = False


class Scene:
    """One run of a scenario: its workflow runs, what was read of them, and what the steps did."""

    def __init__(self, trial: Any, target: str | None) -> None:
        self.trial = trial
        self.target = target
        self.handlers: list[Any] = []
        self.readings: list[tuple[Any, Reading]] = []
        #: What began and ended, in order.
        self.diary: list[tuple[str, Any]] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        #: What happened although the scenario had been left.
        self.late: list[tuple[str, Any]] = []
        self.is_over = False

    def run(self, workflow: Any, **fields: Any) -> Any:
        """Make a run, which the check will look at."""
        handler = workflow.run(**fields)
        self.handlers.append(handler)
        return handler

    def note(self, what: str, detail: Any = None) -> None:
        """Write into the diary."""
        (self.late if self.is_over else self.diary).append((what, detail))

    @contextmanager
    def doing(self, what: str, detail: Any = None):
        """Note that something begins, and that it ends, in whatever way."""
        self.note(f"{what} begins", detail)
        self.running[what] += 1
        self.most[what] = max(self.most[what], self.running[what])
        try:
            yield
        finally:
            self.running[what] -= 1
            self.note(f"{what} ends", detail)

    @contextmanager
    def alone(self, name: str):
        """Do something that may be cancelled by itself, and then nobody else shall notice.

        A native cancellation of one of its tasks would cancel all of AnyIO's task group.
        """
        try:
            with self.trial.target(name):
                yield
        except asyncio.CancelledError:
            if name != self.target:
                raise

    def of(self, what: str) -> list[Any]:
        """Return the details of what was noted so."""
        return [detail for noted, detail in self.diary if noted == what]

    async def read(
        self, handler: Any, *, after: int = 0, most: int | None = None, name: str = ""
    ) -> Reading:
        """Read a run's stream to its end, or ``most`` events of it.

        Cancelled alone, by its name, the reader goes on where it was.
        """
        with handler.stream_events(after=after) as stream:
            reading = Reading(stream)
            self.readings.append((handler, reading))
            while not (reading.has_ended or len(reading.events) == most):
                with self.alone(f"reader {name}"):
                    try:
                        reading.events.append(await stream.receive())
                    except trio.EndOfChannel:
                        reading.has_ended = True
        return reading

    async def clean_up(self, detail: Any) -> None:
        """Take a while, shielded."""
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.5)
            self.note("cleaned up", detail)


class Flow(Workflow):
    """A workflow that notes what it does."""

    def __init__(self, scene: Scene, **options: Any) -> None:
        super().__init__(**options)
        self.scene = scene


class Feature:
    """A scenario, and its check. Subclasses say what is done, and what it promises.

    ``result`` is what it returns undisturbed, or ``fails`` what leaves it then, which may also come
    in place of a cancellation; ``raises`` what else may; ``cleans`` whether clean-up takes time, so
    that a second cancellation can strike it.
    """

    result: Any = None
    fails: type[BaseException] | None = None
    raises: tuple[type[BaseException], ...] = ()
    cleans = False
    #: What can be cancelled by itself.
    targets: tuple[str, ...] = ()

    def __init__(self, target: str | None = None) -> None:
        self.target = target

    async def __call__(self, trial: Any) -> Any:
        scene = trial.state.scene = Scene(trial, self.target)
        try:
            return await self.host(scene)
        finally:
            scene.is_over = True

    async def host(self, scene: Scene) -> Any:
        """Do it."""
        raise NotImplementedError

    def judge(self, scene: Scene, outcome: Any) -> None:
        """See whether it kept what it promises."""

    async def again(self, scene: Scene) -> None:
        """Use once more what was used, where that is shared by runs."""

    async def check(self, outcome: Any) -> None:
        """Look at every run of the scenario, as whoever owns it may expect it to be."""
        scene = outcome.state.scene
        assert not scene.late, f"after the end: {scene.late}"
        assert not +scene.running, f"begun, and never ended: {+scene.running}"
        for handler in scene.handlers:
            check_books(handler)
            await check_stream(handler, [r for h, r in scene.readings if h is handler])
        if not outcome.struck and self.fails is not None:
            assert type(outcome.error) is self.fails, outcome
        elif not outcome.struck:
            assert outcome.completed, outcome
            assert outcome.value == self.result, outcome.value
        self.judge(scene, outcome)
        with anyio.fail_after(100):
            await self.again(scene)


def check_books(handler: Any) -> None:
    """A run that is over is in one terminal state, and its books are empty where they have to be."""
    runner = handler._run
    assert handler.is_done(), handler
    assert handler.status in {"completed", *ENDS}, handler.status
    assert (handler.stop_event is not None) or handler.status != "completed"
    outcome = runner.outcome
    assert (outcome.error is None) == (handler.status == "completed")
    if handler.status in {"failed", "timed_out"}:
        assert outcome.error is not None
        first = [e for e in handler.exceptions if isinstance(outcome.error, type(e))]
        assert first[0] is outcome.error, handler.exceptions
    for error in handler.exceptions:
        if type(error) is WorkflowTimeoutError:
            assert runner.clock.taken(None) >= error.timeout, (
                f"{error!r} after {runner.clock.taken(None)} s"
            )
    assert not runner.workers
    assert not runner.children
    assert runner.timers == 0
    assert runner.nursery is None
    assert runner.parked is None
    assert not outcome.waiters
    assert not runner.log._senders
    assert not runner.log.waiting
    machine = runner.machine
    if machine is None:
        return
    assert not machine.waits
    assert not machine.answered
    assert not machine.resting
    assert all(queue.inbox is None for queue in machine.queues)


async def check_stream(handler: Any, readings: list[Reading]) -> None:
    """The stream has one terminal event, its last; each reader had all of it, or a part in order."""
    with handler.stream_events() as stream:
        history = [event async for event in stream]
    *before, last = history
    assert not any(isinstance(event, StopEvent) for event in before)
    kind = ENDS.get(handler.status)
    if kind is not None:
        assert type(last) is kind, (handler.status, last)
    else:
        assert last is handler.stop_event
    for reading in readings:
        part = history[reading.after :][: len(reading.events)]
        assert [id(e) for e in reading.events] == [id(e) for e in part]
        if reading.has_ended:
            assert reading.events[-1:] == [last]


# -- steps ----------------------------------------------------------------------------------------


class Number(Event):
    n: int


class Other(Event):
    n: int


class Third(Event):
    n: int


class Last(Event):
    n: int


class ChainFlow(Flow):
    @step
    async def first(self, ev: StartEvent) -> Number:
        with self.scene.doing("first"), self.scene.trial.target("first"):
            await anyio.sleep(0)
        return Number(n=1)

    @step
    async def second(self, ctx: Context, ev: Number) -> Other:
        with self.scene.doing("second"):
            try:
                with self.scene.trial.target("second"):
                    await anyio.sleep(1)
            finally:
                await self.scene.clean_up("second")
        return Other(n=ev.n + 1)

    @step(timeout=10)
    async def third(self, ev: Other) -> StopEvent:
        with self.scene.doing("third"), self.scene.trial.target("third"):
            await anyio.sleep(0)
        return StopEvent(result=ev.n + 1)


class Chain(Feature):
    """Steps hand on to each other, in one task; what began ends, its shielded clean-up too."""

    result = 3
    cleans = True
    targets = ("first", "second", "third")

    async def host(self, scene: Scene) -> Any:
        return await scene.run(ChainFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        began = [what for what, _ in scene.diary if what.endswith("begins")]
        assert began == ["first begins", "second begins", "third begins"][: len(began)]
        if not is_cut_short(outcome):
            assert len(scene.of("cleaned up")) == len(scene.of("second ends"))


class JoinFlow(Flow):
    @step
    async def split(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(3)]

    @step(num_workers=2)
    async def work(self, ev: Number) -> Other | None:
        done = None
        with self.scene.doing("work", ev.n), self.scene.trial.target(f"work {ev.n}"):
            await anyio.sleep(1)
            done = Other(n=ev.n)
        return done  # noqa: RET504 - the block may have been left by its own scope

    @step
    async def join(self, evs: list[Other]) -> StopEvent:
        self.scene.note("joined", sorted(ev.n for ev in evs))
        await anyio.sleep(0)
        return StopEvent(result=sorted(ev.n for ev in evs))


class Join(Feature):
    """A join runs once, with each event once; no more work at a step than may; in order."""

    result = [0, 1, 2]
    targets = ("work 0", "work 2")

    async def host(self, scene: Scene) -> Any:
        return await scene.run(JoinFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert scene.most["work"] <= 2
        assert scene.of("work begins") == [0, 1, 2][: len(scene.of("work begins"))]
        assert len(scene.of("joined")) <= 1
        if outcome.completed:
            assert scene.of("joined") == [outcome.value]
            lacking = {0, 1, 2} - set(outcome.value)
            assert len(lacking) <= (1 if outcome.struck and outcome.at.kind else 0)


class NestedFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=0), Number(n=10)]

    @step
    async def split(self, ev: Number) -> list[Other]:
        await anyio.sleep(0)
        return [Other(n=ev.n), Other(n=ev.n + 1)]

    @step(num_workers=3)
    async def work(self, ev: Other) -> Third:
        with self.scene.doing("work", ev.n):
            await anyio.sleep(ev.n % 2)
        return Third(n=ev.n)

    @step
    async def inner(self, evs: list[Third]) -> Last:
        self.scene.note("inner", sorted(ev.n for ev in evs))
        return Last(n=sum(ev.n for ev in evs))

    @step
    async def outer(self, evs: list[Last]) -> StopEvent:
        self.scene.note("outer", sorted(ev.n for ev in evs))
        return StopEvent(result=sorted(ev.n for ev in evs))


class Nested(Feature):
    """A fan-out within a fan-out has its own join, which gets what is its own."""

    result = [1, 21]

    async def host(self, scene: Scene) -> Any:
        return await scene.run(NestedFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert Counter(map(tuple, scene.of("inner"))) <= Counter([(0, 1), (10, 11)])
        assert Counter(map(tuple, scene.of("outer"))) <= Counter([(1, 21)])
        assert scene.most["work"] <= 3


class TakeFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(3)]

    @step(num_workers=2)
    async def work(self, ev: Number) -> Other:
        with self.scene.doing("work", ev.n):
            try:
                await anyio.sleep(1 if ev.n == 0 else 1000)
            finally:
                await self.scene.clean_up(ev.n)
        return Other(n=ev.n)

    @step
    async def join(self, evs: Annotated[list[Other], Take(1)]) -> Third:
        self.scene.note("joined", [ev.n for ev in evs])
        await anyio.sleep(0)
        return Third(n=evs[0].n)

    @step
    async def end(self, ev: Third) -> StopEvent:
        await anyio.sleep(0)
        return StopEvent(result=ev.n)


class First(Feature):
    """The first ones run the join; the losers are cancelled, and have unwound when the run is over."""

    result = 0
    cleans = True

    async def host(self, scene: Scene) -> Any:
        return await scene.run(TakeFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert scene.of("joined") in ([], [[0]])
        assert set(scene.of("work begins")) <= {0, 1, 2}
        if not outcome.struck:
            # The third took the place of the first, or never began.
            assert sorted(scene.of("cleaned up")) == sorted(scene.of("work ends"))


class PairFlow(Flow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Number | Other | None:
        for n in (1, 2):
            ctx.send_event(Number(n=n))
            await anyio.sleep(0)
            ctx.send_event(Other(n=10 * n))

    @step(num_workers=1)
    async def pair(self, a: Number, b: Other) -> Third:
        self.scene.note("pair", (a.n, b.n))
        await anyio.sleep(1)
        return Third(n=a.n + b.n)

    @step(num_workers=1)
    async def end(self, ctx: Context, ev: Third) -> StopEvent | None:
        all_of_them = ctx.collect_events(ev, [Third, Third])
        await anyio.sleep(0)
        if all_of_them is None:
            return None
        return StopEvent(result=[ev.n for ev in all_of_them])


class Pairs(Feature):
    """One of each, in order, and each once; a buffer gives what it has once."""

    result = [11, 22]

    async def host(self, scene: Scene) -> Any:
        return await scene.run(PairFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert scene.of("pair") == [(1, 10), (2, 20)][: len(scene.of("pair"))]


class CollectFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(3)]

    @step(num_workers=3, retry=Retry(stop=3, wait=2, when=OSError))
    async def count(self, ctx: Context, ev: Number) -> StopEvent | None:
        await anyio.sleep(ev.n == 0)
        found = ctx.collect_events(ev, [Number] * 3)
        if ev.n == 1 and ctx.step.attempt == 1:
            raise OSError
        if found is None:
            return None
        self.scene.note("found", ev.n)
        return StopEvent(result=sorted(e.n for e in found))


class Collect(Feature):
    """A buffer takes back what a failed attempt gave it, so that each event counts once."""

    result = [0, 1, 2]

    async def host(self, scene: Scene) -> Any:
        return await scene.run(CollectFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        if outcome.at.kind == "error":
            assert len(scene.of("found")) <= 1
        else:
            assert scene.of("found") in ([], [1])


class Limited(Feature):
    """A place in a limiter that runs share is given back, and never held by more than may."""

    result = [3, 3]

    async def host(self, scene: Scene) -> Any:
        scene.limiter = limiter = anyio.CapacityLimiter(1)

        class LimitedFlow(Flow):
            @step
            async def begin(self, ev: StartEvent) -> list[Number]:
                return [Number(n=n) for n in (1, 2)]

            @step(limiter=limiter)
            async def work(self, ev: Number) -> Other:
                with self.scene.doing("work"):
                    await anyio.sleep(1)
                return Other(n=ev.n)

            @step
            async def end(self, evs: list[Other]) -> StopEvent:
                return StopEvent(result=sum(ev.n for ev in evs))

        results: list[int] = []

        async def one(workflow: Any) -> None:
            results.append(await scene.run(workflow))

        scene.flow = LimitedFlow(scene)
        async with anyio.create_task_group() as node:
            node.start_soon(one, scene.flow)
            node.start_soon(one, scene.flow)
        return results

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert scene.most["work"] <= 1
        assert scene.limiter.borrowed_tokens == 0
        assert scene.limiter.statistics().tasks_waiting == 0

    async def again(self, scene: Scene) -> None:
        scene.is_over = False
        assert await scene.flow.run() == 3


# -- branches -------------------------------------------------------------------------------------


class ChiefFlow(Flow):
    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> Number | StopEvent:
        slow = ctx.send_event(Number(n=1000))
        broken = ctx.send_event(Number(n=-1))
        told = None
        try:
            await broken.wait()
        except ValueError:
            told = "broken"
        slow.cancel()
        await slow.wait()
        assert slow.is_done
        assert 1000 not in self.at_work
        fine = ctx.send_event(Number(n=2))
        await fine.wait()
        return StopEvent(result=told)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.at_work: set[int] = set()

    @step(num_workers=2)
    async def work(self, ev: Number) -> None:
        self.at_work.add(ev.n)
        with self.scene.doing("work", ev.n):
            try:
                with self.scene.trial.target(f"work {ev.n}"):
                    await anyio.sleep(abs(ev.n))
                if ev.n < 0:
                    raise ValueError
            finally:
                await self.scene.clean_up(ev.n)
                self.at_work.discard(ev.n)


class Branches(Feature):
    """A branch that is waited for is over then; its failure is raised there, and only there."""

    result = "broken"
    cleans = True
    targets = ("work -1", "work 1000", "work 2")
    raises = (ValueError,)  # where who waits for it was cancelled before it came

    async def host(self, scene: Scene) -> Any:
        return await scene.run(ChiefFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        if not outcome.struck:
            assert scene.of("cleaned up") == [-1, 1000, 2]


class RaceFlow(Flow):
    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> Number | StopEvent:
        branches = [ctx.send_event(Number(n=n)) for n in (1, 5)]
        won: list[int] = []

        async def wait(number: int) -> None:
            await branches[number].wait()
            won.append(number)
            for other in branches:
                other.cancel()
            node.cancel_scope.cancel()

        async with anyio.create_task_group() as node:
            node.start_soon(wait, 0)
            node.start_soon(wait, 1)
        for branch in branches:
            await branch.wait()
        self.scene.note("race over", +self.scene.running)
        return StopEvent(result=won)

    @step
    async def work(self, ev: Number) -> Other:
        with self.scene.doing("work", ev.n):
            try:
                await anyio.sleep(ev.n)
            finally:
                await self.scene.clean_up(ev.n)
        return Other(n=ev.n)

    @step
    async def more(self, ev: Other) -> None:
        with self.scene.doing("more", ev.n):
            await anyio.sleep(1)


class Race(Feature):
    """Of branches that race one wins; the loser has unwound before who waits for it goes on."""

    result = [0]
    cleans = True

    async def host(self, scene: Scene) -> Any:
        return await scene.run(RaceFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert scene.of("race over") in ([], [Counter()])


# -- failures -------------------------------------------------------------------------------------


class RetryFlow(Flow):
    @step(retry=Retry(stop=3, wait=1, when=OSError))
    async def work(self, ctx: Context, ev: StartEvent) -> Number | Other:
        self.scene.note("attempt", ctx.step.attempt)
        ctx.send_event(Number(n=ctx.step.attempt))
        await anyio.sleep(0)
        if ctx.step.attempt < 3:
            raise OSError
        return Other(n=0)

    @step
    async def extra(self, ev: Number) -> None:
        with self.scene.doing("extra", ev.n):
            await anyio.sleep(1)

    @step
    async def end(self, ev: Other) -> StopEvent:
        await anyio.sleep(3)
        return StopEvent(result="done")


class Retried(Feature):
    """A step is tried again when it fails and not when it is cancelled; its sends go out once."""

    result = "done"

    async def host(self, scene: Scene) -> Any:
        return await scene.run(RetryFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert scene.of("attempt") == [1, 2, 3][: len(scene.of("attempt"))]
        assert scene.of("extra begins") in ([], [3])
        if outcome.completed:
            assert scene.of("extra ends") == [3]


class BreakingFlow(Flow):
    @step(retry=Retry(stop=3, wait=1, when=OSError))
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.scene.note("attempt", ctx.step.attempt)
        try:
            await anyio.sleep(1)
        except cancelled_class():
            self.scene.error = OSError("clean-up")
            raise self.scene.error from None
        return StopEvent(result="done")

    @catch_error
    async def mend(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result="mended")


class Breaking(Feature):
    """Clean-up that fails leaves in place of the cancellation; it is not tried again, nor mended."""

    result = "done"
    raises = (OSError,)

    async def host(self, scene: Scene) -> Any:
        scene.error = None
        return await scene.run(BreakingFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        if scene.error is not None:
            assert scene.of("attempt") == [1]
            assert scene.error in scene.handlers[0].exceptions
            assert outcome.error is scene.error or outcome.at.kind in {"interrupt", "error"}


def is_cut_short(outcome: Any) -> bool:
    """Whether clean-up itself may have been hit: past its shield, or with its time gone."""
    return outcome.struck and outcome.at.kind in {"deadline", "interrupt", "error"}


class Thing:
    """What a step opens, and need not close."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene = scene
        self.name = name
        cleanup = current_cleanup.get()
        assert cleanup is not None
        cleanup.add(self)
        scene.note("opened", name)

    async def aclose(self) -> None:
        """Take a while."""
        self.scene.note("closing", self.name)
        await anyio.sleep(1)
        self.scene.note("closed", self.name)


class OpenFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(2)]

    @step
    async def work(self, ev: Number) -> Other:
        Thing(self.scene, f"{ev.n} first")
        await anyio.sleep(1)
        Thing(self.scene, f"{ev.n} second")
        with self.scene.doing("work"):
            await anyio.sleep(1)
        return Other(n=ev.n)

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        return StopEvent(result=sorted(self.scene.of("closed")))


class Opened(Feature):
    """What a step leaves open is closed when it ends, each once, the last first, whatever comes."""

    result = ["0 first", "0 second", "1 first", "1 second"]
    cleans = True

    async def host(self, scene: Scene) -> Any:
        return await scene.run(OpenFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        for n in range(2):
            opened = [name for name in scene.of("opened") if name.startswith(str(n))]
            for what in ("closing", "closed"):
                closed = [name for name in scene.of(what) if name.startswith(str(n))]
                assert closed == opened[::-1] or (what == "closed" and is_cut_short(outcome))


class CatchFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(3)]

    @step(retry=Retry(stop=2, wait=1, when=OSError))
    async def fetch(self, ev: Number) -> Other:
        with self.scene.doing("fetch", ev.n):
            await anyio.sleep(0)
            if ev.n == 1:
                raise OSError
        return Other(n=ev.n)

    @catch_error(for_steps=["fetch"])
    async def mend(self, ev: StepFailedEvent) -> Other:
        with self.scene.doing("mend", ev.input_event.n):
            await anyio.sleep(1)
        return Other(n=-1)

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        self.scene.note("joined", sorted(ev.n for ev in evs))
        return StopEvent(result=sorted(ev.n for ev in evs))


class Caught(Feature):
    """A handler stands in for what failed, in its fan-out; it sees no cancellation."""

    result = [-1, 0, 2]

    async def host(self, scene: Scene) -> Any:
        return await scene.run(CatchFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert len(scene.of("joined")) <= 1
        if outcome.at.kind != "error":
            assert scene.of("mend begins") in ([], [1])
        if outcome.completed:
            assert len(outcome.value) == 3


class TimeoutFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(2)]

    @step
    async def work(self, ev: Number) -> Other:
        with self.scene.doing("work", ev.n):
            try:
                await anyio.sleep(1000)
            finally:
                await self.scene.clean_up(ev.n)
        return Other(n=ev.n)

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        return StopEvent(result="too late")


class TimedOut(Feature):
    """A run that is late is cancelled, unwinds, and says what ran; the stream says it as well."""

    fails = WorkflowTimeoutError
    cleans = True

    async def host(self, scene: Scene) -> Any:
        return await scene.run(TimeoutFlow(scene, timeout=5))

    def judge(self, scene: Scene, outcome: Any) -> None:
        if type(outcome.error) is WorkflowTimeoutError:
            assert scene.handlers[0].status == "timed_out"
            assert scene.handlers[0].exceptions[0] is outcome.error
        if not outcome.struck:
            assert outcome.error.active_steps == ("work", "work")
            assert sorted(scene.of("cleaned up")) == [0, 1]


class UnevenFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in (1, 3)]

    @step
    async def work(self, ev: Number) -> Other:
        with self.scene.doing("work", ev.n):
            await anyio.sleep(ev.n)
        return Other(n=ev.n)

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        return StopEvent(result=[ev.n for ev in evs])


class InTime(Feature):
    """A run that is in time is never said to be late, however it ends."""

    result = [1, 3]

    async def host(self, scene: Scene) -> Any:
        return await scene.run(UnevenFlow(scene, timeout=50))


class StepTimeoutFlow(Flow):
    @step(timeout=2, retry=Retry(stop=2))
    async def slow(self, ctx: Context, ev: StartEvent) -> Number:
        with self.scene.doing("slow", ctx.step.attempt):
            try:
                await anyio.sleep(1 if ctx.step.attempt == 2 else 10)
            finally:
                await self.scene.clean_up(ctx.step.attempt)
        return Number(n=ctx.step.attempt)

    @step(idle_timeout=2)
    async def idle(self, ctx: Context, ev: Number) -> StopEvent:
        with self.scene.doing("idle"):
            for _ in range(2):
                await anyio.sleep(1.5)
                ctx.report_progress()
            await anyio.sleep(1000)
        return StopEvent(result="too late")

    @catch_error
    async def late(self, ev: StepFailedEvent) -> StopEvent:
        await anyio.sleep(0)
        return StopEvent(result=(ev.step_name, type(ev.exception).__name__))


class StepTimedOut(Feature):
    """A step that is late fails: it is tried again, or recovered; its clean-up is done first."""

    result = ("idle", "StepTimeoutError")
    cleans = True

    async def host(self, scene: Scene) -> Any:
        return await scene.run(StepTimeoutFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert scene.most["slow"] <= 1
        if not outcome.struck:
            assert scene.of("cleaned up") == [1, 2]


class StallFlow(Flow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Number | Other | None:
        ctx.send_event(Number(n=1))
        await anyio.sleep(1)
        if ev.get("whole"):
            return Other(n=1)
        return None

    @step
    async def pair(self, a: Number, b: Other) -> StopEvent:
        return StopEvent(result="whole")


class Stalled(Feature):
    """A run that can never go on says so at once, and what it lacks."""

    fails = WorkflowStalledError

    async def host(self, scene: Scene) -> Any:
        return await scene.run(StallFlow(scene))

    def judge(self, scene: Scene, outcome: Any) -> None:
        if not outcome.struck:
            assert outcome.error is scene.handlers[0].exceptions[0]
            assert "Other" in str(outcome.error)


class WaitingStallFlow(Flow):
    @step(num_workers=1)
    async def work(self, ctx: Context, ev: StartEvent | Number) -> Number | StopEvent:
        with self.scene.doing("work"):
            await anyio.sleep(0)
            await ctx.send_event(Number(n=1)).wait()
        return StopEvent()


class WaitingStalled(Feature):
    """Steps that wait for branches which no worker is left for are found to, at once."""

    fails = WorkflowStalledError

    async def host(self, scene: Scene) -> Any:
        return await scene.run(WaitingStallFlow(scene))


# -- streams --------------------------------------------------------------------------------------


class Note(Event):
    n: int


class StreamFlow(Flow):
    @step
    async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(5):
            if n == 2:
                ctx.write_event_to_stream(Note(n=n))
            else:
                await ctx.stream.send(Note(n=n))
            self.scene.note("said", n)
            await anyio.sleep(n == 3)
        return StopEvent(result="said")


class Streams(Feature):
    """Each reader gets everything once: early, late, one that breaks off and one that goes on."""

    result = ("said", 6, 6, 6, 3, 3)
    targets = ("reader one", "reader late", "reader broken")

    async def host(self, scene: Scene) -> Any:
        lengths: dict[str, int] = {}
        result = None

        async def plain(name: str, delay: float) -> None:
            await anyio.sleep(delay)
            lengths[name] = len((await scene.read(handler, name=name)).events)

        async def broken() -> None:
            reading = await scene.read(handler, most=3, name="broken")
            lengths["broken"] = len(reading.events)
            await anyio.sleep(0)
            reading = await scene.read(handler, after=reading.stream.sequence, name="broken")
            lengths["going on"] = len(reading.events)

        run = scene.run(StreamFlow(scene, stream_buffer=1))
        async with run as handler, anyio.create_task_group() as node:
            node.start_soon(plain, "one", 0)
            node.start_soon(plain, "other", 0)
            node.start_soon(plain, "late", 0.5)
            node.start_soon(broken)
            result = await handler
        return (result, *(lengths.get(n) for n in ("one", "other", "late", "broken", "going on")))

    def judge(self, scene: Scene, outcome: Any) -> None:
        [handler] = scene.handlers
        if outcome.completed:  # a reader alone was struck, or none
            assert outcome.value == self.result
        said = scene.of("said")
        assert said == list(range(5))[: len(said)]
        assert len(said) == handler._run.log.next - 2  # and the terminal event


class Told(Feature):
    """Whoever reads the engine's own events is told of each invocation that begins, and ends."""

    result = [0, 1, 2]

    async def host(self, scene: Scene) -> Any:
        scene.told = []
        async with scene.run(JoinFlow(scene)) as handler:
            async for event in handler.stream_events(expose_internal=True):
                scene.told.append(event)
            return await handler

    def judge(self, scene: Scene, outcome: Any) -> None:
        if not (scene.told and isinstance(scene.told[-1], StopEvent)):
            assert outcome.struck
            return  # it was struck itself
        changes = [event for event in scene.told if isinstance(event, StepStateChanged)]
        states = Counter((event.name, event.state) for event in changes)
        for name in ("split", "work", "join"):
            ended = states[name, "done"] + states[name, "raised"]
            assert states[name, "running"] == ended
        if not outcome.struck:
            assert states["work", "done"] == 3


class CloseFlow(Flow):
    @step
    async def talk(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(4):
            await ctx.stream.send(Note(n=n))
        return StopEvent(result="said")


class BackPressure(Feature):
    """A sender waits for a slow reader; it goes on when the reader leaves; cancelled it sent nothing."""

    result = "said"
    targets = ("reader",)

    async def host(self, scene: Scene) -> Any:
        async with anyio.create_task_group() as node:
            handler = scene.run(CloseFlow(scene, stream_buffer=1))
            handler.start_soon(node)
            with scene.trial.target("reader"), handler.stream_events() as stream:
                scene.readings.append((handler, reading := Reading(stream)))
                for _ in range(2):
                    reading.events.append(await stream.receive())
                    await anyio.sleep(3)
                    assert handler.is_done() or handler._run.log.next - stream.sequence <= 2
            return await handler


# -- owners ---------------------------------------------------------------------------------------


class TwoFlow(Flow):
    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Number:
        ctx.write_event_to_stream(Note(n=0))
        with self.scene.doing("first", ev.get("name")):
            await anyio.sleep(ev.get("seconds", 1))
        return Number(n=ev.get("seconds", 1))

    @step
    async def last(self, ctx: Context, ev: Number) -> StopEvent:
        with self.scene.doing("last"):
            try:
                await ctx.stream.send(Note(n=1))
                await anyio.sleep(0)
            finally:
                await self.scene.clean_up("last")
        return StopEvent(result=ev.n)


class Block(Feature):
    """A block owns its run: whatever way it is left, nothing of the run is left."""

    result = (1, 3)
    cleans = True

    async def host(self, scene: Scene) -> Any:
        async with scene.run(TwoFlow(scene)) as handler:
            reading = await scene.read(handler)
            result = await handler
        return result, len(reading.events)


class BlockLeft(Feature):
    """A body that ends detaches its reader, and the block waits for the run."""

    result = "completed"

    async def host(self, scene: Scene) -> Any:
        async with scene.run(TwoFlow(scene, stream_buffer=1)) as handler:
            scene.stream = handler.stream_events()
            await scene.stream.receive()
        return handler.status


class BlockFailed(Feature):
    """A body that raises cancels the run, waits for it, and its exception leaves as it is."""

    fails = KeyError
    cleans = True

    async def host(self, scene: Scene) -> Any:
        scene.error = KeyError("mine")
        async with scene.run(TwoFlow(scene, timeout=20), seconds=0):
            await anyio.sleep(0.25)
            raise scene.error

    def judge(self, scene: Scene, outcome: Any) -> None:
        if type(outcome.error) is KeyError:
            assert outcome.error is scene.error
        if not outcome.struck:
            assert scene.handlers[0].status == "cancelled"


class Nurseries(Feature):
    """A nursery owns its runs, Trio's or AnyIO's; who awaits one and is cancelled leaves it alone."""

    result = [2, 1, 1]
    cleans = True
    targets = ("waiter 1",)

    async def host(self, scene: Scene) -> Any:
        results: list[int] = []

        async def wait(handler: Any, number: int) -> None:
            with scene.alone(f"waiter {number}"):
                results.append(await handler)

        async with self.open_group() as node:
            first = scene.run(TwoFlow(scene), seconds=1).start_soon(node)
            second = scene.run(TwoFlow(scene), seconds=2).start_soon(node)
            async with anyio.create_task_group() as inner:
                inner.start_soon(wait, first, 1)
                inner.start_soon(wait, first, 2)
                inner.start_soon(wait, second, 3)
        return sorted(results, reverse=True)

    open_group = staticmethod(anyio.create_task_group)

    def judge(self, scene: Scene, outcome: Any) -> None:
        if outcome.completed:
            assert [h.status for h in scene.handlers] == ["completed", "completed"]
            assert len(outcome.value) >= (2 if outcome.struck else 3)


class TrioNurseries(Nurseries):
    """Trio's own nursery."""

    open_group = staticmethod(lambda: trio.open_nursery(strict_exception_groups=True))


class TaskGroups(Nurseries):
    """asyncio's own task group."""

    open_group = staticmethod(asyncio.TaskGroup)


class Scoped(Feature):
    """A scope owns what is used in it, as a program under ``sluicegate.run`` has it."""

    result = ([3, 3], 1, 2)
    cleans = True

    async def host(self, scene: Scene) -> Any:
        async with workflow_scope():
            first = scene.run(TwoFlow(scene), seconds=1)
            reading = await scene.read(first)
            second = scene.run(TwoFlow(scene), seconds=2)
            other = await scene.read(second)
            lengths = [len(reading.events), len(other.events)]
            return lengths, await first, await second


class ScopeLeft(Feature):
    """A scope that is left waits for its runs, and raises a failure that nobody saw."""

    fails = OSError

    async def host(self, scene: Scene) -> Any:
        async with workflow_scope():
            scene.run(FailingFlow(scene)).stream_events().close()
            scene.run(TwoFlow(scene)).stream_events().close()
            await anyio.sleep(0)

    def judge(self, scene: Scene, outcome: Any) -> None:
        if type(outcome.error) is OSError:
            assert scene.handlers[0].exceptions == (outcome.error,)
        if not outcome.struck:
            assert scene.handlers[1].status == "completed"


class ScopeFailed(Feature):
    """A scope's body that raises cancels its runs, waits for them, and its exception leaves as it is."""

    fails = KeyError
    cleans = True

    async def host(self, scene: Scene) -> Any:
        scene.error = KeyError("mine")
        async with workflow_scope():
            scene.run(TimeoutFlow(scene)).stream_events().close()
            scene.run(TwoFlow(scene), seconds=1000).stream_events().close()
            await anyio.sleep(1)
            raise scene.error

    def judge(self, scene: Scene, outcome: Any) -> None:
        if type(outcome.error) is KeyError:
            assert outcome.error is scene.error
        if not outcome.struck:
            assert [handler.status for handler in scene.handlers] == ["cancelled"] * 2
            assert sorted(scene.of("cleaned up")) == [0, 1]


class FailingFlow(Flow):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        with self.scene.doing("fail"):
            await anyio.sleep(0.5)
            raise OSError


class BlockFailure(Feature):
    """A failure that nobody saw leaves the block, as itself, while others unwind."""

    fails = OSError
    cleans = True

    async def host(self, scene: Scene) -> Any:
        async with scene.run(FanFailFlow(scene)):
            await anyio.sleep(0)

    def judge(self, scene: Scene, outcome: Any) -> None:
        if type(outcome.error) is OSError:
            assert scene.handlers[0].exceptions[0] is outcome.error


class FanFailFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(2)]

    @step
    async def work(self, ev: Number) -> Other:
        with self.scene.doing("work", ev.n):
            try:
                await anyio.sleep(1 + ev.n)
                raise OSError
            finally:
                await self.scene.clean_up(ev.n)

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        return StopEvent()


# -- ends that are asked for ----------------------------------------------------------------------


class Cancelling(Feature):
    """``await handler.cancel()`` waits until all has unwound; who awaits the handler is told."""

    fails = WorkflowCancelledError
    cleans = True

    async def host(self, scene: Scene) -> Any:
        async with scene.run(TimeoutFlow(scene)) as handler:
            await anyio.sleep(1)
            await handler.cancel("enough")
            assert not +scene.running
            await handler

    def judge(self, scene: Scene, outcome: Any) -> None:
        if not outcome.struck:
            assert outcome.error.reason == "enough"
            assert len(scene.of("cleaned up")) == 2


class DrainFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(3)]

    @step(num_workers=1)
    async def work(self, ev: Number) -> Other:
        with self.scene.doing("work", ev.n):
            try:
                await anyio.sleep(1)
                self.scene.note("worked", ev.n)
            finally:
                await self.scene.clean_up(ev.n)
        return Other(n=ev.n)

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


class Draining(Feature):
    """A graceful stop ends what runs and starts nothing more; a run that resumes does the rest."""

    result = ("cancelled", [0])
    cleans = True

    async def host(self, scene: Scene) -> Any:
        async with scene.run(DrainFlow(scene)) as handler:
            await anyio.sleep(0.5)
            await handler.cancel(after="steps")
        return handler.status, scene.of("worked")

    async def again(self, scene: Scene) -> None:
        for handler in scene.handlers:
            if handler.status != "cancelled":
                continue
            scene.is_over = False
            before = list(scene.of("worked"))
            assert await DrainFlow(scene).resume(handler.snapshot()) == [0, 1, 2]
            # What had returned is not done again. What was cut short between its work and its
            # return is.
            more = scene.of("worked")[len(before) :]
            assert set(before) | set(more) == {0, 1, 2}
            assert len(set(before) & set(more)) <= 1


# -- people ---------------------------------------------------------------------------------------


def answer(handler: Any, event: Event) -> None:
    """Send an answer, unless what was done to the run has ended it."""
    if handler.ctx.is_running:
        handler.send_event(event)


class Question(InputRequiredEvent):
    name: str


class Answer(HumanResponseEvent):
    name: str
    text: str


class AskFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> list[Number]:
        return [Number(n=n) for n in range(2)]

    @step
    async def ask(self, ctx: Context, ev: Number) -> Other:
        name = "ab"[ev.n]
        with self.scene.doing("ask", name):
            answer = await ctx.wait_for_event(
                Answer, Question(name=name), requirements={"name": name}
            )
            self.scene.note("answered", (name, answer.text))
            await anyio.sleep(0)
        return Other(n=len(answer.text))

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


class Asking(Feature):
    """Each who asks gets the answer that is theirs, once; a lost reader loses no answer."""

    result = [1, 2]

    @staticmethod
    def new_flow(scene: Scene) -> AskFlow:
        kept = [Answer, Question]
        return AskFlow(scene, timeout=5, timeout_excludes_waiting=True, serializable=kept)

    async def host(self, scene: Scene) -> Any:
        async with scene.run(self.new_flow(scene)) as handler:
            with handler.stream_events() as stream:
                async for event in stream:
                    if isinstance(event, Question):
                        await anyio.sleep(10)
                        text = {"a": "x", "b": "xx"}[event.name]
                        answer(handler, Answer(name=event.name, text=text))
            return await handler

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert Counter(scene.of("answered")) <= Counter([("a", "x"), ("b", "xx")])

    async def again(self, scene: Scene) -> None:
        for handler in scene.handlers:
            if handler.status != "cancelled":
                continue
            # What was answered is not asked again.
            scene.is_over = False
            answered = {name for name, _ in scene.of("answered")}
            async with self.new_flow(scene).resume(handler.snapshot()) as resumed:
                with resumed.stream_events() as stream:
                    async for event in stream:
                        if isinstance(event, Question):
                            assert event.name not in answered
                            text = {"a": "x", "b": "xx"}[event.name]
                            resumed.send_event(Answer(name=event.name, text=text))
                assert await resumed == [1, 2]


class PatientFlow(Flow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        got: list[str] = []
        with anyio.move_on_after(1):
            got.append((await ctx.wait_for_event(Answer)).text)
        try:
            got.append((await ctx.wait_for_event(Answer, timeout=1)).text)
        except WorkflowTimeoutError:
            got.append("-")
        async with anyio.create_task_group() as node:

            async def one(number: int) -> None:
                with self.scene.alone(f"asker {number}"):
                    got.append((await ctx.wait_for_event(Answer)).text)

            node.start_soon(one, 1)
            node.start_soon(one, 2)
        with anyio.move_on_after(1):
            got.append((await ctx.wait_for_event(Answer)).text)
        return StopEvent(result=sorted(got))


class Patient(Feature):
    """A wait that is given up has taken no answer: the next who waits gets it. Early ones are kept."""

    result = ["-", "one", "two"]
    targets = ("asker 1", "asker 2")

    async def host(self, scene: Scene) -> Any:
        async with scene.run(PatientFlow(scene)) as handler:
            await anyio.sleep(3)
            answer(handler, Answer(name="", text="one"))
            answer(handler, Answer(name="", text="two"))
            return await handler

    def judge(self, scene: Scene, outcome: Any) -> None:
        # By the time of its clock jump the waits may be over otherwise than undisturbed.
        if outcome.completed and outcome.at.kind not in {"deadline", "error"}:
            assert outcome.value == ["-", "one", "two"]


class SendFlow(Flow):
    @step
    async def begin(self, ev: StartEvent) -> InputRequiredEvent:
        await anyio.sleep(0)
        return InputRequiredEvent(prefix="?")

    @step
    async def take(self, ev: HumanResponseEvent) -> StopEvent:
        with self.scene.doing("take"):
            await anyio.sleep(0)
        return StopEvent(result=ev.response)


class Sending(Feature):
    """An event from outside starts the step that takes it; a run that is over refuses it."""

    result = "yes"

    async def host(self, scene: Scene) -> Any:
        async with scene.run(SendFlow(scene)) as handler:
            async for event in handler.stream_events():
                if isinstance(event, InputRequiredEvent):
                    answer(handler, HumanResponseEvent(response="yes"))
            return await handler


class Crossing(Feature):
    """A run that unwinds is over to whoever sends to it, whatever ended it."""

    result = "yes"

    async def host(self, scene: Scene) -> Any:
        async def send() -> None:
            await anyio.sleep(1)
            await anyio.sleep(0)
            answer(handler, HumanResponseEvent(response="yes"))

        handler = scene.run(SendFlow(scene))
        async with anyio.create_task_group() as node:
            node.start_soon(send)
            return await handler


# -- runs at once ---------------------------------------------------------------------------------


class Gated(Feature):
    """No more runs at once than may; a place is given back, also by one that waited for it."""

    result = [0, 1, 2]
    targets = ("one 0", "one 1")

    async def host(self, scene: Scene) -> Any:
        scene.flow = flow = TwoFlow(scene, num_concurrent_runs=1)
        results: list[int] = []

        async def one(number: int) -> None:
            with scene.alone(f"one {number}"):
                results.append(await scene.run(flow, seconds=number, name=number))

        async with anyio.create_task_group() as node:
            for number in range(3):
                node.start_soon(one, number)
        return sorted(results)

    def judge(self, scene: Scene, outcome: Any) -> None:
        assert scene.most["first"] <= 1
        assert scene.most["last"] <= 1
        if outcome.completed:
            assert len(outcome.value) >= 2

    async def again(self, scene: Scene) -> None:
        scene.is_over = False
        assert await scene.flow.run(seconds=0) == 0


FEATURES = [
    Chain,
    Join,
    Nested,
    First,
    Pairs,
    Collect,
    Limited,
    Branches,
    Race,
    Retried,
    Breaking,
    Opened,
    Caught,
    TimedOut,
    InTime,
    StepTimedOut,
    Stalled,
    WaitingStalled,
    Streams,
    Told,
    BackPressure,
    Block,
    BlockLeft,
    BlockFailed,
    Nurseries,
    TrioNurseries,
    TaskGroups,
    Scoped,
    ScopeLeft,
    ScopeFailed,
    BlockFailure,
    Cancelling,
    Draining,
    Asking,
    Patient,
    Sending,
    Crossing,
    Gated,
]
