"""The workflows that are measured; what each shows is said where it is measured."""

import gc
import sys
from typing import Any

from benchmarks._library import lib
from benchmarks._measure import now
from penstock import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)


class Ping(Event):
    i: int


class Pong(Event):
    i: int


class Chain(Workflow[int]):
    """Two steps pass one event to and fro, *n* times."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    @step
    async def begin(self, ev: StartEvent) -> Ping:
        return Ping(i=0)

    @step
    async def ping(self, ev: Ping) -> Pong | StopEvent:
        return Pong(i=ev.i + 1) if ev.i < self.n else StopEvent(result=ev.i)

    @step
    async def pong(self, ev: Pong) -> Ping | StopEvent:
        return Ping(i=ev.i + 1) if ev.i < self.n else StopEvent(result=ev.i)


class CountedChain(Chain):
    """The same, counting the allocated blocks at a tenth of the way and at the end."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.counts: list[int] = []

    @step
    async def ping(self, ev: Ping) -> Pong | StopEvent:
        if ev.i in {self.n // 10, self.n}:
            gc.collect()
            self.counts.append(sys.getallocatedblocks())
        return Pong(i=ev.i + 1) if ev.i < self.n else StopEvent(result=ev.i)


class Job(Event):
    i: int


class Done(Event):
    i: int


def fan_out_workflow(workers: int) -> type[Workflow[Any]]:
    """The fan-out for one number of workers."""

    class FanOut(Workflow[Any]):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.k = k

        @step
        async def produce(self, ev: StartEvent) -> list[Job]:
            return [Job(i=i) for i in range(self.k)]

        @step(num_workers=workers)
        async def work(self, ev: Job) -> Done:
            await lib.lowlevel.checkpoint()
            return Done(i=ev.i)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=[ev.i for ev in evs])

    return FanOut


class Token(Event):
    value: Any


class Streamer(Workflow[int]):
    """Sends *m* tokens to the stream, pausing once before each."""

    def __init__(self, m: int, history: int = 10_000) -> None:
        super().__init__(stream_history=history)
        self.m = m

    @step
    async def produce(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for i in range(self.m):
            await lib.lowlevel.checkpoint()
            await ctx.stream.send(Token(value=f"token {i}"))
        return StopEvent(result=self.m)


class TimedStreamer(Workflow[int]):
    """Sends *m* tokens, one per millisecond, that say when they were sent."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.m = m

    @step
    async def produce(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for _ in range(self.m):
            await lib.sleep(0.001)
            await ctx.stream.send(Token(value=now()))
        return StopEvent(result=self.m)


class ThreeSteps(Workflow[int]):
    """One, two, three, with a pause in the middle if there is one."""

    def __init__(self, pause: float = 0, timeout: float | None = None) -> None:
        super().__init__(timeout=timeout)
        self.pause = pause

    @step
    async def first(self, ev: StartEvent) -> Ping:
        return Ping(i=1)

    @step
    async def second(self, ev: Ping) -> Pong:
        if self.pause:
            await lib.sleep(self.pause)
        return Pong(i=ev.i + 1)

    @step
    async def third(self, ev: Pong) -> StopEvent:
        return StopEvent(result=ev.i + 1)


class Ask(Workflow[Any]):
    """Asks in one step and takes the answer in another: while it waits, no step runs."""

    asked = 0

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        self.asked += 1
        return InputRequiredEvent(prefix="?")

    @step
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class AskInside(Workflow[Any]):
    """Waits for the answer in the middle of a step."""

    asked = 0

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.asked += 1
        answer = await ctx.wait_for_event(
            HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="?")
        )
        return StopEvent(result=answer.response)


class Pending(Workflow[int]):
    """*k* events wait at a step of which two invocations are in flight until they are let go."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.started = 0
        self.gate: Any = None

    @step
    async def produce(self, ev: StartEvent) -> list[Job]:
        return [Job(i=i) for i in range(self.k)]

    @step(num_workers=2)
    async def work(self, ev: Job) -> Done:
        self.started += 1
        await self.gate.wait()
        return Done(i=ev.i)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sum(ev.i for ev in evs))


class Counting(Workflow[float]):
    """Adds one to a number in its state, *n* times; beside it lie lists of *kib* KiB."""

    def __init__(self, n: int, kib: int) -> None:
        super().__init__()
        self.n = n
        self.kib = kib

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("rows", [[f"{i:01000}" for i in range(self.kib)]])
        await ctx.store.set("number", 0)
        start = now()
        for _ in range(self.n):
            async with ctx.store.edit_state() as state:
                state.number += 1
        took = now() - start
        assert await ctx.store.get("number") == self.n
        return StopEvent(result=took)


def stuck_workflow(workers: int) -> type[Any]:
    """*workers* steps in flight that wait for ever, for one number of them."""

    class Stuck(Workflow[Any]):
        def __init__(self, timeout: float | None = None, cleanup: float = 0) -> None:
            super().__init__(timeout=timeout)
            self.cleanup = cleanup
            self.started = self.finished = 0

        @step
        async def produce(self, ev: StartEvent) -> list[Job]:
            return [Job(i=i) for i in range(workers)]

        @step(num_workers=workers)
        async def work(self, ev: Job) -> Done:
            self.started += 1
            try:
                await lib.sleep_forever()
            finally:
                if self.cleanup:
                    with lib.CancelScope(shield=True):
                        await lib.sleep(self.cleanup)
                self.finished += 1
            return Done(i=ev.i)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    return Stuck
