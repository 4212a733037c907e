"""
Idle runs: *r* runs wait for a person, resident memory of each; then all are answered.

A workflow waits between two steps, or inside one (``ctx.wait_for_event``). By hand there is only
the one way: a task each that waits at its channel under a scope of its own.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import gc
import sys
from typing import Any

from benchmarks._library import open_group
from benchmarks._measure import Item, Numbers, now, resident_kib, serve
from benchmarks._model import Metric, Work


WORKS = tuple(
    Work(
        id=work_id,
        name="idle_runs",
        title=title,
        size="r",
        sizes=(100, 1_000, 10_000),
        quick=(2_000,),
        judged=(10_000,),
        fixed={"inside": inside},
        watched=True,
        metrics=(
            Metric("kib", "KiB/run", "memory"),
            Metric("start_us", "µs/run", "start all"),
            Metric("us", "µs/run", "wake all"),
        ),
    )
    for work_id, title, inside in (
        ("idle_between", "idle runs, waiting between steps", 0),
        ("idle_inside", "idle runs, waiting inside a step", 1),
    )
)


class Idling:
    """The record of the three phases."""

    def __init__(self, r: int) -> None:
        self.r = r
        gc.collect()
        self.before = resident_kib()
        self.began = now()

    def all_asked(self) -> None:
        """All have been started."""
        self.started = now() - self.began

    def waiting(self) -> None:
        """All wait."""
        gc.collect()
        self.held = resident_kib() - self.before
        self.woken = now()

    def numbers(self) -> Numbers:
        """All are answered."""
        return {
            "us": (now() - self.woken) / self.r * 1e6,
            "start_us": self.started / self.r * 1e6,
            "kib": self.held / self.r,
            "began": self.began,
            "base_kib": self.before,
        }


def with_sluicegate(lib, r: int, inside: int = 0) -> Numbers:
    """The answer is sent to each handler."""
    from benchmarks._flows import Ask, AskInside
    from sluicegate import HumanResponseEvent

    async def main() -> Numbers:
        workflow = AskInside() if inside else Ask()
        idling = Idling(r)
        async with open_group(lib) as group:
            handlers = [workflow.run().start_soon(group) for _ in range(r)]
            while workflow.asked < r:
                await lib.sleep(0.001)
            idling.all_asked()
            await lib.sleep(0.05)
            idling.waiting()
            for i, handler in enumerate(handlers):
                handler.send_event(HumanResponseEvent(response=i))
        answers = [handler.result() for handler in handlers]
        numbers = idling.numbers()
        assert answers == list(range(r))
        return numbers

    return lib.run(main)


async def by_hand(r: int, group: Any, sleep: Any, one: Any) -> Numbers:
    """Start *r* tasks with Trio or AnyIO, each of which hands out its door, and answer them all."""
    doors: list[Any] = []
    answers: list[int] = []
    idling = Idling(r)
    async with group as tasks:
        for _ in range(r):
            tasks.start_soon(one, doors, answers)
        while len(doors) < r:
            await sleep(0.001)
        idling.all_asked()
        await sleep(0.05)
        idling.waiting()
        for i, door in enumerate(doors):
            door.send_nowait(Item(i))
    numbers = idling.numbers()
    assert sorted(answers) == list(range(r))
    return numbers


def on_trio(r: int, inside: int = 0, nursery: int = 0) -> Numbers:
    """A channel each; with *nursery* a nursery as well, as each run has one."""
    import trio

    async def one(doors: list[Any], answers: list[int]) -> None:
        with trio.CancelScope():
            send, receive = trio.open_memory_channel[Item](1)
            doors.append(send)
            item = await receive.receive()
            answers.append(item.value)

    async def in_nursery(doors: list[Any], answers: list[int]) -> None:
        async with trio.open_nursery():
            await one(doors, answers)

    async def main() -> Numbers:
        return await by_hand(r, trio.open_nursery(), trio.sleep, in_nursery if nursery else one)

    return trio.run(main)


def on_anyio(r: int, inside: int = 0) -> Numbers:
    """A stream each."""
    import anyio

    async def one(doors: list[Any], answers: list[int]) -> None:
        with anyio.CancelScope():
            send, receive = anyio.create_memory_object_stream[Item](1)
            with send, receive:
                doors.append(send)
                item = await receive.receive()
                answers.append(item.value)

    async def main() -> Numbers:
        return await by_hand(r, anyio.create_task_group(), anyio.sleep, one)

    return anyio.run(main)


def on_asyncio(r: int, inside: int = 0) -> Numbers:
    """A queue each; a task is a scope of its own here."""
    import asyncio

    async def main() -> Numbers:
        doors: list[asyncio.Queue[Item]] = []
        answers: list[int] = []

        async def one() -> None:
            queue: asyncio.Queue[Item] = asyncio.Queue(1)
            doors.append(queue)
            answers.append((await queue.get()).value)

        idling = Idling(r)
        async with asyncio.TaskGroup() as group:
            for _ in range(r):
                group.create_task(one())
            while len(doors) < r:
                await asyncio.sleep(0.001)
            idling.all_asked()
            await asyncio.sleep(0.05)
            idling.waiting()
            for i, door in enumerate(doors):
                door.put_nowait(Item(i))
        numbers = idling.numbers()
        assert sorted(answers) == list(range(r))
        return numbers

    return asyncio.run(main())


if __name__ == "__main__":
    serve(globals(), sys.argv[1:])
