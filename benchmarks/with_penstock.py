"""The works as penstock workflows, on Trio or on asyncio (see `benchmarks._library`)."""

import contextlib
import gc
import sys
from functools import partial

from benchmarks import _measure
from benchmarks._library import lib, open_group, tasks_living
from benchmarks._measure import Numbers, now
from benchmarks._workflows import (
    Ask,
    AskInside,
    Chain,
    CountedChain,
    Counting,
    Pending,
    Streamer,
    ThreeSteps,
    TimedStreamer,
    Token,
    fan_out_workflow,
    stuck_workflow,
)
from penstock import HumanResponseEvent, WorkflowCancelledError, WorkflowTimeoutError


def chain(n: int, rounds: int) -> Numbers:
    """*n* hops in one run."""
    workflow = Chain(n)
    took = lib.run(partial(_measure.seconds, workflow.run, n.__eq__, rounds=rounds))
    return {"us": took / n * 1e6}


def chain_kept(n: int) -> Numbers:
    """The blocks of memory that a hop leaves behind, from a tenth of the way to the end."""

    async def main() -> Numbers:
        workflow = CountedChain(n)
        assert await workflow.run() == n
        first, last = workflow.counts
        return {"blocks": (last - first) / (n - n // 10)}

    return lib.run(main)


def fan_out(k: int, workers: int, rounds: int) -> Numbers:
    """*k* events through a step with *workers* workers, and a join."""
    workflow = fan_out_workflow(workers)(k)

    def complete(answer: list[int]) -> bool:
        return sorted(answer) == list(range(k))

    took = lib.run(partial(_measure.seconds, workflow.run, complete, rounds=rounds))
    return {"us": took / k * 1e6}


async def _stream(workflow: Streamer, pause_ms: int = 0) -> int:
    got = 0
    async with workflow.run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, Token):
                got += 1
                if pause_ms and got % 100 == 0:
                    await lib.sleep(pause_ms / 1000)
        assert await handler == workflow.m
    return got


def stream(m: int, rounds: int) -> Numbers:
    """One step, one reader, *m* events with back-pressure."""
    once = partial(_stream, Streamer(m))
    took = lib.run(partial(_measure.seconds, once, m.__eq__, rounds=rounds))
    return {"us": took / m * 1e6}


def slow_reader(m: int) -> Numbers:
    """How far the memory goes up when the reader is slow and no history is asked for."""

    async def main() -> Numbers:
        assert await _stream(Streamer(1000, history=64)) == 1000
        before = _measure.forget_peak()
        assert await _stream(Streamer(m, history=64), pause_ms=1) == m
        return {"peak_kib": _measure.peak_kib() - before}

    return lib.run(main)


def latency(m: int) -> Numbers:
    """An event every millisecond: how long each is on its way."""

    async def main() -> Numbers:
        async with TimedStreamer(m).run() as handler:
            times = [
                now() - event.value
                async for event in handler.stream_events()
                if isinstance(event, Token)
            ]
        assert len(times) == m
        return _measure.latencies(times)

    return lib.run(main)


def short_run(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """*r* three-step runs, one after another, with a timeout if there is to be one."""
    workflow = ThreeSteps(timeout=timeout or None)

    async def once() -> int:
        return sum([await workflow.run() for _ in range(r)])

    took = lib.run(partial(_measure.seconds, once, (3 * r).__eq__, rounds=rounds))
    return {"us": took / r * 1e6}


def concurrent_runs(r: int) -> Numbers:
    """*r* three-step runs at once, each sleeping 10 ms in its second step."""

    async def main() -> Numbers:
        workflow = ThreeSteps(pause=0.010)
        assert await workflow.run() == 3
        before = _measure.forget_peak()
        start = now()
        async with open_group() as group:
            handlers = [workflow.run().start_soon(group) for _ in range(r)]
        answers = [handler.result() for handler in handlers]
        took = now() - start
        assert answers == [3] * r
        return {"us": took / r * 1e6, "kib": (_measure.peak_kib() - before) / r}

    return lib.run(main)


def idle_runs(r: int, inside: int = 0) -> Numbers:
    """*r* runs wait for a person; then all are answered."""

    async def main() -> Numbers:
        workflow = AskInside() if inside else Ask()
        before = _measure.forget_peak()
        async with open_group() as group:
            handlers = [workflow.run().start_soon(group) for _ in range(r)]
            while workflow.asked < r:
                await lib.sleep(0.001)
            await lib.sleep(0.05)
            gc.collect()
            held = _measure.resident_kib() - before
            start = now()
            for i, handler in enumerate(handlers):
                handler.send_event(HumanResponseEvent(response=i))
        answers = [handler.result() for handler in handlers]
        took = now() - start
        assert answers == list(range(r))
        return {"kib": held / r, "us": took / r * 1e6}

    return lib.run(main)


def cancel(k: int, rounds: int) -> Numbers:
    """Cancel a run with *k* steps in flight: until every ``finally`` ran and the block is left."""
    definition = stuck_workflow(k)

    async def once() -> tuple[float, int]:
        workflow = definition()
        async with workflow.run() as handler:
            while workflow.started < k:
                await lib.sleep(0.001)
            start = now()
            handler.cancel()
            with contextlib.suppress(WorkflowCancelledError):
                await handler
        return now() - start, workflow.finished

    async def main() -> Numbers:
        tasks = tasks_living()
        times = []
        for _ in range(rounds):
            took, finished = await once()
            assert finished == k
            assert tasks_living() == tasks
            times.append(took)
        return {"ms": sorted(times)[rounds // 2] * 1e3}

    return lib.run(main)


def timeout(deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """A run's deadline over a step with a shielded clean-up: what it takes beyond the two."""
    definition = stuck_workflow(1)

    async def once() -> bool:
        workflow = definition(timeout=deadline_ms / 1e3, cleanup=cleanup_ms / 1e3)
        with contextlib.suppress(WorkflowTimeoutError):
            await workflow.run()
        return workflow.finished == 1

    took = lib.run(partial(_measure.seconds, once, bool, rounds=rounds))
    return {"ms": took * 1e3 - deadline_ms - cleanup_ms}


def snapshot(k: int, rounds: int) -> Numbers:
    """Write, read and go on from the books of a run with *k* pending events."""

    async def main() -> Numbers:
        workflow = Pending(k)
        workflow.gate = lib.Event()
        writing, reading = [], []
        async with workflow.run() as handler:
            while workflow.started < 2:
                await lib.lowlevel.checkpoint()
            for _ in range(rounds + 1):
                gc.collect()
                start = now()
                data = handler.snapshot()
                written = now()
                again = workflow.resume(data)
                reading.append(now() - written)
                writing.append(written - start)
            workflow.gate.set()
            assert await handler == await again == k * (k - 1) // 2
        taken, read = (sorted(times[1:])[rounds // 2] for times in (writing, reading))
        return {"ms": taken * 1e3, "us": taken / k * 1e6, "read_ms": read * 1e3}

    return lib.run(main)


def state(n: int, kib: int) -> Numbers:
    """*n* times read and write a number in the state, next to *kib* KiB that are not touched."""

    async def main() -> Numbers:
        workflow = Counting(n, kib)
        times = [await workflow.run() for _ in range(6)]
        return {"us": sorted(times[1:])[2] / n * 1e6}

    return lib.run(main)


WORKS = {
    work.__name__: work
    for work in (
        chain,
        chain_kept,
        fan_out,
        stream,
        slow_reader,
        latency,
        short_run,
        concurrent_runs,
        idle_runs,
        cancel,
        timeout,
        snapshot,
        state,
    )
}

if __name__ == "__main__":
    _measure.serve(WORKS, sys.argv[1:])
