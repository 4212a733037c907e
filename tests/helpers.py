"""What several test modules share: small workflows, virtual time, and a look at what is left."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import contextmanager
from math import inf
from typing import Any, Self

import anyio
import pytest
import trio

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step, testing


# -- names --------------------------------------------------------------------------------------


def steady_id(value: object) -> str:
    """Name a value in a test's id without its address: workers of xdist compare the ids."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


# -- time ---------------------------------------------------------------------------------------


BACKENDS = ("trio", "asyncio")
on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


def run_virtually(backend: str, main: Any, *args: Any) -> Any:
    """Run an async function in an event loop of its own with virtual time."""
    return testing.run_virtually(main, *args, backend=backend)


# -- cost ---------------------------------------------------------------------------------------


def calls_of(function, *arguments):
    """Return how many calls, of Python and of C, ``function`` makes."""
    count = 0

    def note(_frame, what, _about):
        nonlocal count
        count += what in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return count


# -- the event loop -----------------------------------------------------------------------------


def is_trio() -> bool:
    """Whether the caller runs under Trio."""
    return trio.lowlevel.in_trio_task()


def cancelled_class() -> type[BaseException]:
    """Return the class of the backend's cancellation."""
    return trio.Cancelled if is_trio() else asyncio.CancelledError


def live_tasks() -> set[Any]:
    """Return every task of the event loop, whoever started it."""
    if not is_trio():
        return {task for task in asyncio.all_tasks() if not task.done()}
    found: set[Any] = set()
    todo = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        found.add(task)
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def task_names() -> list[str]:
    """Return the names in the task tree, sorted."""
    return sorted(t.name if is_trio() else t.get_name() for t in live_tasks())


def timers_left() -> int:
    """Return how many timers of the event loop are set."""
    if is_trio():
        return int(trio.lowlevel.current_statistics().seconds_to_next_deadline != inf)
    return sum(not h.cancelled() for h in asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


@contextmanager
def nothing_left():
    """Check that a block leaves no task behind, by whatever way it is left."""
    before = live_tasks()
    try:
        yield
    finally:
        left = live_tasks() - before
        assert not left, f"left behind: {left}"


async def wait_until_idle(turns: int = 20) -> None:
    """Give every other task a number of turns."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


def leaves_of(error: BaseException) -> list[BaseException]:
    """Return what is in a group, however deep; or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves_of(part)]
    return [error]


# -- owners ---------------------------------------------------------------------------------------


class Catch:
    """Catch what comes out of a block, all but what belongs to the test itself.

    ``error`` is what was raised; ``one`` insists on there being one, and unwraps the groups that
    nurseries of the test (not of sluicegate) put around it.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self.error = error
        return error is not None and not issubclass(type(error), AssertionError)

    @property
    def one(self) -> BaseException:
        assert self.error is not None, "nothing was raised"
        first, *more = leaves_of(self.error)
        # A nursery may be told of one failure twice, by the run and by who awaited it.
        assert all(other is first for other in more), [first, *more]
        return first


# -- workflows ------------------------------------------------------------------------------------


class Item(Event):
    number: int


class Done(Event):
    number: int


class Note(Event):
    number: int


class Single(Workflow):
    """One step, given by the test: ``Single(function)`` runs ``await function(ctx)``."""

    def __init__(self, function: Any, **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.function(ctx))


class Fan(Workflow):
    """A fan-out: ``await function(ctx, number)`` for each of ``count`` items, then a join.

    ``reached`` counts the invocations that are under way; ``running`` names them.
    """

    def __init__(self, function: Any, count: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.function = function
        self.count = count
        self.running: set[int] = set()
        self.started: list[int] = []

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(self.count)]

    @step(num_workers=100)
    async def work(self, ctx: Context, ev: Item) -> Done:
        self.started.append(ev.number)
        self.running.add(ev.number)
        try:
            await self.function(ctx, ev.number)
        finally:
            self.running.discard(ev.number)
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.number for ev in evs))


class Mine(Exception):
    """An exception of the tests."""


class MineBase(BaseException):
    """An exception of the tests that is no Exception."""
