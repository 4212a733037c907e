"""The works written by hand on AnyIO over asyncio: task groups and object streams, no engine."""

import asyncio
import gc
import sys
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from benchmarks import _measure
from benchmarks._measure import Numbers, now


@dataclass(slots=True)
class Item:
    """What goes through the streams."""

    value: Any


def chain(n: int, rounds: int) -> Numbers:
    """Two tasks pass one item to and fro, *n* times."""

    async def once() -> int:
        last = 0
        to_pong, pings = anyio.create_memory_object_stream[Item](1)
        to_ping, pongs = anyio.create_memory_object_stream[Item](1)

        async def player(
            inbox: MemoryObjectReceiveStream[Item], outbox: MemoryObjectSendStream[Item]
        ) -> None:
            nonlocal last
            async for item in inbox:
                if item.value == n:
                    last = item.value
                    group.cancel_scope.cancel()
                    return
                await outbox.send(Item(item.value + 1))

        with to_pong, pings, to_ping, pongs:
            async with anyio.create_task_group() as group:
                group.start_soon(player, pings, to_ping)
                group.start_soon(player, pongs, to_pong)
                await to_pong.send(Item(0))
        return last

    took = anyio.run(lambda: _measure.seconds(once, n.__eq__, rounds=rounds))
    return {"us": took / n * 1e6}


def fan_out(k: int, workers: int, rounds: int) -> Numbers:
    """*k* items through *workers* tasks, each pausing once per item, and all results in one list."""

    async def once() -> list[int]:
        to_workers, jobs = anyio.create_memory_object_stream[Item](workers)
        to_join, results = anyio.create_memory_object_stream[Item](workers)

        async def produce() -> None:
            async with to_workers:
                for i in range(k):
                    await to_workers.send(Item(i))

        async def worker(
            inbox: MemoryObjectReceiveStream[Item], outbox: MemoryObjectSendStream[Item]
        ) -> None:
            async with inbox, outbox:
                async for item in inbox:
                    await checkpoint()
                    await outbox.send(Item(item.value))

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            async with jobs, to_join:
                for _ in range(workers):
                    group.start_soon(worker, jobs.clone(), to_join.clone())
            async with results:
                gathered = [item.value async for item in results]
        return gathered

    def complete(answer: list[int]) -> bool:
        return sorted(answer) == list(range(k))

    took = anyio.run(lambda: _measure.seconds(once, complete, rounds=rounds))
    return {"us": took / k * 1e6}


async def _stream(m: int, pause_ms: int = 0, buffer: int = 64) -> int:
    got = 0
    send, receive = anyio.create_memory_object_stream[Item](buffer)

    async def produce() -> None:
        async with send:
            for i in range(m):
                await checkpoint()
                await send.send(Item(f"token {i}"))

    async with anyio.create_task_group() as group, receive:
        group.start_soon(produce)
        async for _item in receive:
            got += 1
            if pause_ms and got % 100 == 0:
                await anyio.sleep(pause_ms / 1000)
    return got


def stream(m: int, rounds: int) -> Numbers:
    """One producer, one reader, *m* items; the producer pauses once before each."""
    took = anyio.run(lambda: _measure.seconds(lambda: _stream(m), m.__eq__, rounds=rounds))
    return {"us": took / m * 1e6}


def slow_reader(m: int) -> Numbers:
    """The same with a reader that sleeps 1 ms after every 100 items: how far the memory goes up."""

    async def main() -> Numbers:
        assert await _stream(1000) == 1000
        before = _measure.forget_peak()
        assert await _stream(m, pause_ms=1) == m
        return {"peak_kib": _measure.peak_kib() - before}

    return anyio.run(main)


def latency(m: int) -> Numbers:
    """An item every millisecond: how long each is on its way."""

    async def main() -> Numbers:
        send, receive = anyio.create_memory_object_stream[Item](64)

        async def produce() -> None:
            async with send:
                for _ in range(m):
                    await anyio.sleep(0.001)
                    await send.send(Item(now()))

        async with anyio.create_task_group() as group, receive:
            group.start_soon(produce)
            times = [now() - item.value async for item in receive]
        assert len(times) == m
        return _measure.latencies(times)

    return anyio.run(main)


async def _three_steps(pause: float = 0) -> int:
    answer = 0
    to_second, firsts = anyio.create_memory_object_stream[Item](1)
    to_third, seconds = anyio.create_memory_object_stream[Item](1)

    async def first() -> None:
        await to_second.send(Item(1))

    async def second() -> None:
        item = await firsts.receive()
        if pause:
            await anyio.sleep(pause)
        await to_third.send(Item(item.value + 1))

    async def third() -> None:
        nonlocal answer
        item = await seconds.receive()
        answer = item.value + 1

    with to_second, firsts, to_third, seconds:
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            group.start_soon(second)
            group.start_soon(third)
    return answer


def short_run(r: int, rounds: int, timeout: int = 0) -> Numbers:
    """*r* three-step runs, one after another, under a deadline if *timeout* says so."""

    async def limited() -> int:
        with anyio.fail_after(timeout):
            return await _three_steps()

    one = limited if timeout else _three_steps

    async def once() -> int:
        return sum([await one() for _ in range(r)])

    took = anyio.run(lambda: _measure.seconds(once, (3 * r).__eq__, rounds=rounds))
    return {"us": took / r * 1e6}


def concurrent_runs(r: int) -> Numbers:
    """*r* three-step runs at once, each sleeping 10 ms in its second step."""

    async def main() -> Numbers:
        assert await _three_steps() == 3
        answers = []

        async def one() -> None:
            answers.append(await _three_steps(0.010))

        before = _measure.forget_peak()
        start = now()
        async with anyio.create_task_group() as group:
            for _ in range(r):
                group.start_soon(one)
        took = now() - start
        assert answers == [3] * r
        return {"us": took / r * 1e6, "kib": (_measure.peak_kib() - before) / r}

    return anyio.run(main)


def idle_runs(r: int, inside: int = 0) -> Numbers:
    """
    *r* tasks that each wait for an answer under a scope of their own; then all are answered.

    An engine may wait inside a step or between two; here there is only the one way.
    """

    async def main() -> Numbers:
        doors: list[MemoryObjectSendStream[Item]] = []
        answers: list[int] = []

        async def one() -> None:
            with anyio.CancelScope():
                send, receive = anyio.create_memory_object_stream[Item](1)
                with send, receive:
                    doors.append(send)
                    item = await receive.receive()
                    answers.append(item.value)

        before = _measure.forget_peak()
        async with anyio.create_task_group() as group:
            for _ in range(r):
                group.start_soon(one)
            while len(doors) < r:
                await anyio.sleep(0.001)
            await anyio.sleep(0.05)
            gc.collect()
            held = _measure.resident_kib() - before
            start = now()
            for i, door in enumerate(doors):
                door.send_nowait(Item(i))
        took = now() - start
        assert sorted(answers) == list(range(r))
        return {"kib": held / r, "us": took / r * 1e6}

    return anyio.run(main)


def cancel(k: int, rounds: int) -> Numbers:
    """Cancel *k* tasks that wait for ever: until every ``finally`` ran and the group is left."""

    async def once() -> tuple[float, int]:
        started = finished = 0

        async def stuck() -> None:
            nonlocal started, finished
            started += 1
            try:
                await anyio.sleep_forever()
            finally:
                finished += 1

        async with anyio.create_task_group() as group:
            for _ in range(k):
                group.start_soon(stuck)
            while started < k:
                await anyio.sleep(0.001)
            start = now()
            group.cancel_scope.cancel()
        return now() - start, finished

    async def main() -> Numbers:
        tasks = len(asyncio.all_tasks())
        times = []
        for _ in range(rounds):
            took, finished = await once()
            assert finished == k
            assert len(asyncio.all_tasks()) == tasks
            times.append(took)
        return {"ms": sorted(times)[rounds // 2] * 1e3}

    return anyio.run(main)


def timeout(deadline_ms: int, cleanup_ms: int, rounds: int) -> Numbers:
    """A deadline over a task with a shielded clean-up: what it takes beyond the two."""

    async def once() -> bool:
        cleaned = False

        async def stuck() -> None:
            nonlocal cleaned
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(cleanup_ms / 1e3)
                cleaned = True

        with anyio.move_on_after(deadline_ms / 1e3):
            async with anyio.create_task_group() as group:
                group.start_soon(stuck)
        return cleaned

    took = anyio.run(lambda: _measure.seconds(once, bool, rounds=rounds))
    return {"ms": took * 1e3 - deadline_ms - cleanup_ms}


def state(n: int, kib: int) -> Numbers:
    """*n* times read and write a number in a dict under a lock, next to *kib* KiB of lists."""

    async def once() -> float:
        values: dict[str, Any] = {"rows": [[f"{i:01000}" for i in range(kib)]], "number": 0}
        lock = anyio.Lock()
        start = now()
        for _ in range(n):
            async with lock:
                values["number"] += 1
        took = now() - start
        assert values["number"] == n
        return took

    async def main() -> Numbers:
        times = [await once() for _ in range(6)]
        return {"us": sorted(times[1:])[2] / n * 1e6}

    return anyio.run(main)


WORKS = {
    work.__name__: work
    for work in (
        chain,
        fan_out,
        stream,
        slow_reader,
        latency,
        short_run,
        concurrent_runs,
        idle_runs,
        cancel,
        timeout,
        state,
    )
}

if __name__ == "__main__":
    _measure.serve(WORKS, sys.argv[1:])
