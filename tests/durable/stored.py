"""What the tests of run stores share: small workflows, stores, and how to wait for a state of a run."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from sluicegate._loop import current_backend
from sluicegate.durable import MemoryStore, RunStore, open_run_store


if TYPE_CHECKING:
    from collections.abc import Callable


#: The wall time at which virtual time begins.
EPOCH = 1_800_000_000.0


def wall() -> float:
    """The time on the wall, which is that of the event loop."""
    return EPOCH + current_backend().current_time()  # also in callbacks, which AnyIO does not know


class Stores:
    """A store in memory that several processes open, each of which a test can end."""

    def __init__(self) -> None:
        self.store = MemoryStore(clock=wall)

    @asynccontextmanager
    async def open(self, **options: Any):
        """Open the store as another process would."""
        options = {"release_idle": 0.0, "wall": wall, **options}
        async with open_run_store(self.store.open(), **options) as runs:
            yield runs


def kill(runs: RunStore) -> None:
    """End the process that has opened a store, as ``kill -9`` does."""
    runs._hub.journal.cut()


async def reach(runs: RunStore, run_id: str, *statuses: str) -> None:
    """Wait until the store has a run with one of these statuses."""
    with anyio.fail_after(60):
        while True:
            found = {each.run_id: each.status for each in await runs.list()}
            if found.get(run_id) in statuses:
                return
            await anyio.sleep(0.01)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(600):
        while not condition():
            await anyio.sleep(0.01)


async def kinds_of(runs: RunStore, run_id: str) -> list[str]:
    """Return the kinds of the records in the journal of a run."""
    return [record.kind for record in await runs._hub.journal.read(run_id, after=0)]


# -- workflows ----------------------------------------------------------------------------------


class Middle(Event):
    n: int


class Question(InputRequiredEvent):
    prompt: str


class Answer(HumanResponseEvent):
    text: str


class Begin(StartEvent):
    n: int = 0


class Counting(Workflow[int]):
    """Two steps, with a gate in the second that a test may close."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ran: list[str] = []
        self.gate: anyio.Event | None = None

    @step
    async def first(self, ev: Begin) -> Middle:
        self.ran.append("first")
        return Middle(n=ev.n + 1)

    @step
    async def second(self, ev: Middle) -> StopEvent:
        self.ran.append("second")
        if self.gate is not None:
            await self.gate.wait()
        return StopEvent(result=ev.n + 1)


class Asking(Workflow[str]):
    """Asks, and ends with the answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ran: list[str] = []

    @step
    async def ask(self, ev: Begin) -> Question:
        self.ran.append("ask")
        return Question(prompt=f"{ev.n}?")

    @step
    async def end(self, ev: Answer) -> StopEvent:
        self.ran.append("end")
        return StopEvent(result=ev.text)


class AskingMidway(Workflow[str]):
    """Asks twice in the middle of its step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(serializable=[Question, Answer], **options)
        self.ran: list[str] = []

    @step
    async def ask(self, ev: Begin, ctx: Context) -> StopEvent:
        self.ran.append("begins")
        first = await ctx.wait_for_event(Answer, waiter_event=Question(prompt="first"))
        self.ran.append(first.text)
        second = await ctx.wait_for_event(Answer, waiter_event=Question(prompt="second"))
        return StopEvent(result=first.text + second.text)


class Retrying(Workflow[int]):
    """Fails twice, and waits for a day after each failure."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.began: list[float] = []

    @step(retry=Retry(stop=5, wait=86_400.0))
    async def work(self, ev: Begin) -> StopEvent:
        self.began.append(anyio.current_time())
        if len(self.began) < 3:
            raise OSError("busy")
        return StopEvent(result=len(self.began))


class Failing(Workflow[int]):
    @step
    async def work(self, ev: Begin) -> StopEvent:
        raise OSError("broken")


class HeldCommits:
    """An open store whose commits are told when the test says so: what is written is only on its way."""

    def __init__(self, runs: RunStore) -> None:
        self.is_open = True
        self.waiting: list[Any] = []
        journal = runs._hub.journal
        self._append = journal.append_nowait
        journal.append_nowait = self.append_nowait  # type: ignore[method-assign]

    def append_nowait(self, batch: Any, settle: Any) -> None:
        """Hand a batch to the store, and hold back what it says to it."""

        def settled(error: Any) -> None:
            if self.is_open:
                settle(error)
            else:
                self.waiting.append((settle, error))

        self._append(batch, settled)

    async def hold(self, count: int) -> None:
        """Hold commits from now on, and wait until a number of them are held."""
        self.is_open = False
        await self.held(count)

    async def held(self, count: int) -> None:
        """Wait until a number of commits are held."""
        with anyio.fail_after(60):
            while len(self.waiting) < count:
                await anyio.sleep(0.01)

    def let_go(self, error: Exception | None = None) -> None:
        """Tell what was held, in order; or that it has failed."""
        self.is_open = True
        while self.waiting:
            settle, told = self.waiting.pop(0)
            settle(error or told)
