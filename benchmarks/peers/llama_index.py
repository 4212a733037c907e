"""LlamaIndex Workflows: ``Workflow`` and ``@step``, on asyncio."""

import asyncio
import contextlib
import sys
from functools import partial
from typing import Any

from workflows import Context, Workflow, step
from workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from benchmarks import _measure
from benchmarks._measure import Numbers, now
from benchmarks.works import cancel as cancelling
from benchmarks.works import short_run as short
from benchmarks.works import state as states
from benchmarks.works import timeout as deadlines
from benchmarks.works.concurrent_runs import Burst
from benchmarks.works.fan_out import complete
from benchmarks.works.idle_runs import Idling
from benchmarks.works.slow_reader import risen


class Ping(Event):
    i: int


class Pong(Event):
    i: int


class Job(Event):
    i: int


class Done(Event):
    i: int


class Token(Event):
    value: Any


def chain(n: int, rounds: int) -> Numbers:
    """The same two steps."""

    class Chain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Ping:
            return Ping(i=0)

        @step
        async def ping(self, ev: Ping) -> Pong | StopEvent:
            return Pong(i=ev.i + 1) if ev.i < n else StopEvent(result=ev.i)

        @step
        async def pong(self, ev: Pong) -> Ping | StopEvent:
            return Ping(i=ev.i + 1) if ev.i < n else StopEvent(result=ev.i)

    workflow = Chain(timeout=None)

    async def once() -> int:
        return await workflow.run()

    return asyncio.run(_measure.held(once, n.__eq__, rounds=rounds, size=n))


def fan_out(k: int, workers: int, rounds: int) -> Numbers:
    """``ctx.send_event`` and ``ctx.collect_events``, its idiom for this."""

    class FanOut(Workflow):
        @step
        async def produce(self, ctx: Context, ev: StartEvent) -> Job | None:
            for i in range(k):
                ctx.send_event(Job(i=i))

        @step(num_workers=workers)
        async def work(self, ev: Job) -> Done:
            await asyncio.sleep(0)
            return Done(i=ev.i)

        @step
        async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
            gathered = ctx.collect_events(ev, [Done] * k)
            return gathered and StopEvent(result=[each.i for each in gathered])

    workflow = FanOut(timeout=None)

    async def once() -> list[int]:
        return await workflow.run()

    done = partial(complete, k=k)
    return asyncio.run(_measure.each(once, done, rounds=rounds, size=k))


class Streamer(Workflow):
    @step
    async def produce(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for i in range(ev.m):
            await asyncio.sleep(0)
            ctx.write_event_to_stream(Token(value=f"token {i}"))
        return StopEvent(result=ev.m)


async def _stream(m: int, pause_ms: int = 0) -> int:
    got = 0
    handler = Streamer(timeout=None).run(m=m)
    async for event in handler.stream_events():
        if isinstance(event, Token):
            got += 1
            if pause_ms and got % 100 == 0:
                await asyncio.sleep(pause_ms / 1000)
    assert await handler == m
    return got


def stream(m: int, rounds: int) -> Numbers:
    """``write_event_to_stream`` never waits."""
    return asyncio.run(_measure.each(lambda: _stream(m), m.__eq__, rounds=rounds, size=m))


def slow_reader(m: int) -> Numbers:
    """The same with a slow reader."""
    return asyncio.run(risen(_stream, m))


def latency(m: int) -> Numbers:
    """``write_event_to_stream`` and ``stream_events``."""

    class Streamer(Workflow):
        @step
        async def produce(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for _ in range(m):
                await asyncio.sleep(0.001)
                ctx.write_event_to_stream(Token(value=now()))
            return StopEvent(result=m)

    async def main() -> Numbers:
        handler = Streamer(timeout=None).run()
        times = [
            now() - event.value
            async for event in handler.stream_events()
            if isinstance(event, Token)
        ]
        assert await handler == m == len(times)
        return _measure.spread(times)

    return asyncio.run(main())


def _three_steps(pause: float = 0, timeout: float | None = None, mark=lambda: None) -> Workflow:
    class ThreeSteps(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Ping:
            return Ping(i=1)

        @step
        async def second(self, ev: Ping) -> Pong:
            if pause:
                await asyncio.sleep(pause)
            return Pong(i=ev.i + 1)

        @step
        async def third(self, ev: Pong) -> StopEvent:
            mark()
            return StopEvent(result=ev.i + 1)

    return ThreeSteps(timeout=timeout)


def short_run(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """The workflow's own timeout."""

    async def main() -> Numbers:
        workflow = _three_steps(timeout=timeout or None)

        async def one() -> int:
            return await workflow.run()

        return await short.measured(one, r, rounds)()

    return asyncio.run(main())


def concurrent_runs(r: int) -> Numbers:
    """A run is a task that nobody owns; all are awaited."""

    async def main() -> Numbers:
        burst = Burst(r)
        workflow = _three_steps(0.010, mark=burst.mark)
        assert await workflow.run() == 3
        burst.begin()
        handlers = [workflow.run() for _ in range(r)]
        answers = [await handler for handler in handlers]
        numbers = burst.numbers()
        assert answers == [3] * r
        return numbers

    return asyncio.run(main())


def idle_runs(r: int, inside: int = 0) -> Numbers:
    """Both of its ways to wait."""
    asked = 0

    class Ask(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            nonlocal asked
            asked += 1
            return InputRequiredEvent(prefix="?")

        @step
        async def answer(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=ev.response)

    class AskInside(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            nonlocal asked
            asked += 1
            answer = await ctx.wait_for_event(
                HumanResponseEvent,
                waiter_event=InputRequiredEvent(prefix="?"),
                waiter_id="answer",
                timeout=None,
            )
            return StopEvent(result=answer.response)

    async def main() -> Numbers:
        workflow = AskInside(timeout=None) if inside else Ask(timeout=None)
        idling = Idling(r)
        handlers = [workflow.run() for _ in range(r)]
        while asked < r:
            await asyncio.sleep(0.001)
        for handler in handlers:  # its question is out: from here on it can be answered
            async for event in handler.stream_events():
                if isinstance(event, InputRequiredEvent):
                    break
        idling.all_asked()
        await asyncio.sleep(0.05)
        idling.waiting()
        for i, handler in enumerate(handlers):
            handler.ctx.send_event(HumanResponseEvent(response=i))
        answers = [await handler for handler in handlers]
        numbers = idling.numbers()
        assert answers == list(range(r))
        return numbers

    return asyncio.run(main())


def cancel(k: int, rounds: int) -> Numbers:
    """``cancel_run()``, then the handler is awaited."""

    async def once() -> tuple[float, int]:
        started = finished = 0

        class Stuck(Workflow):
            @step
            async def produce(self, ctx: Context, ev: StartEvent) -> Job | None:
                for i in range(k):
                    ctx.send_event(Job(i=i))

            @step(num_workers=k)
            async def work(self, ev: Job) -> StopEvent:
                nonlocal started, finished
                started += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    finished += 1
                return StopEvent()

        handler = Stuck(timeout=None).run()
        while started < k:
            await asyncio.sleep(0.001)
        start = now()
        await handler.cancel_run()
        with contextlib.suppress(WorkflowCancelledByUser):
            await handler
        return now() - start, finished

    return asyncio.run(cancelling.measured(once, k, rounds, lambda: len(asyncio.all_tasks()))())


def timeout(k: int, deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """The workflow's own timeout."""
    cleaned: list[None]

    class Stuck(Workflow):
        @step
        async def produce(self, ctx: Context, ev: StartEvent) -> Job | None:
            for i in range(k):
                ctx.send_event(Job(i=i))

        @step(num_workers=k)
        async def work(self, ev: Job) -> StopEvent:
            await deadlines.stuck_on_asyncio(cleaned, cleanup_ms)
            return StopEvent()

    workflow = Stuck(timeout=deadline_ms / 1e3)

    async def once() -> bool:
        nonlocal cleaned
        cleaned = []
        with contextlib.suppress(WorkflowTimeoutError):
            await workflow.run()
        return len(cleaned) == k

    return asyncio.run(deadlines.measured(once, deadline_ms, cleanup_ms, rounds)())


def state(n: int, kib: int) -> Numbers:
    """``ctx.store.edit_state()``."""

    class Counting(Workflow):
        @step
        async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.store.set("rows", states.rows(kib))
            await ctx.store.set("number", 0)
            start = now()
            for _ in range(n):
                async with ctx.store.edit_state() as state:
                    state["number"] += 1
            took = now() - start
            assert await ctx.store.get("number") == n
            return StopEvent(result=took)

    workflow = Counting(timeout=None)

    async def once() -> float:
        return await workflow.run()

    return asyncio.run(states.measured(once, n)())


def snapshot(k: int, rounds: int) -> Numbers:
    """``ctx.to_dict()``; the events are counted as pending by it."""

    class Pending(Workflow):
        started = 0

        @step
        async def produce(self, ctx: Context, ev: StartEvent) -> Job | None:
            for i in range(k):
                ctx.send_event(Job(i=i))

        @step(num_workers=2)
        async def work(self, ev: Job) -> StopEvent:
            type(self).started += 1
            await asyncio.Event().wait()
            return StopEvent()

    async def main() -> Numbers:
        handler = Pending(timeout=None).run()
        while Pending.started < 2:
            await asyncio.sleep(0.001)
        times = []
        pending = 0
        while pending < k:  # it takes them up by and by; what is not yet taken up is not in it
            await asyncio.sleep(0.01)
            start = now()
            data = handler.ctx.to_dict()
            times.append(now() - start)
            workers = data["workers"].values()
            pending = sum(len(each["queue"]) + len(each["in_progress"]) for each in workers)
        await handler.cancel_run()
        with contextlib.suppress(WorkflowCancelledByUser):
            await handler
        return {"ms": times[-1] * 1e3, "us": times[-1] / k * 1e6}

    return asyncio.run(main())


def importing() -> Numbers:
    """``import workflows``."""
    return _measure.importing("workflows")


if __name__ == "__main__":
    _measure.serve_peer(globals(), sys.argv[1:])
