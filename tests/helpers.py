"""What several test modules share: small workflows, virtual time, and a look at what is left."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import Any, Self

import anyio
import pytest
import trio
import trio.testing

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
    testing,
    workflow_scope,
)


# -- names --------------------------------------------------------------------------------------


def steady_id(value: object) -> str:
    """Name a value in a test's id without its address: workers of xdist compare the ids."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@contextmanager
def case(name: object) -> Iterator[None]:
    """Name the case in a failure, where a test checks one rule in a loop over many."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case {name}")
        raise


# -- time ---------------------------------------------------------------------------------------


BACKENDS = ("trio", "asyncio")
on_each_backend = pytest.mark.parametrize("backend", BACKENDS)

on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)


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


@asynccontextmanager
async def witnessed(seen: list[str]) -> AsyncGenerator[None]:
    """Note how a block is left: a cancellation, and that a shielded clean-up came to its end."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        seen.append("cancelled")
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await wait_until_idle(5)
            seen.append("cleaned up")


async def all_blocked() -> None:
    """Let all other tasks run until they wait; AnyIO's own would sleep for 0.1 s under asyncio."""
    if is_trio():
        await trio.testing.wait_all_tasks_blocked()
    else:
        for _ in range(50):
            await asyncio.sleep(0)


def limit() -> anyio.CancelScope:
    """Fail, rather than hang, where a test waits for what never comes; no test measures it."""
    return anyio.fail_after(5)


def through_json(data: Any) -> Any:
    """Return plain data, such as a snapshot, as another process reads it."""
    return json.loads(json.dumps(data, allow_nan=False))


def numbers(events: Any) -> list[Any]:
    """Return the numbers of the items, with a None for each other event."""
    return [event.get("number") for event in events]


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


async def own_run(form: str, handler: Any) -> None:
    """Run a run to its end in one of the forms: in place, in a block, in a scope, in a nursery."""
    if form == "in place":
        await handler
    elif form == "block":
        async with handler:
            await handler
    elif form == "scope":
        async with workflow_scope():
            await handler
    else:
        async with anyio.create_task_group() as nursery:
            handler.start_soon(nursery)
            await handler


# -- workflows ------------------------------------------------------------------------------------


class Item(Event):
    number: int


class Done(Event):
    number: int


class Note(Event):
    number: int


class Line(Event):
    text: str


class Asked(InputRequiredEvent):
    name: str


class Said(HumanResponseEvent):
    name: str
    text: str


class One(Workflow[int]):
    """One step, which returns 1."""

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=1)


class Quick(Workflow[str]):
    """One step, which publishes three items."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(3):
            ctx.write_event_to_stream(Item(number=n))
        return StopEvent(result="quick")


class Sender(Workflow):
    """Sends ``count`` items, each only when there is room."""

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(**options)
        self.count = count
        self.sent = 0

    @step
    async def send_all(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(self.count):
            await ctx.stream.send(Item(number=n))
            self.sent = n + 1
        return StopEvent(result=self.sent)


class Driven(Workflow):
    """Publishes what a test puts into it; ends when told to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ctx: Context | None = None
        self.ready = anyio.Event()
        self.end = anyio.Event()

    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.ctx = ctx
        self.ready.set()
        await self.end.wait()
        return StopEvent(result="ended")

    def write(self, n: int) -> None:
        self.ctx.write_event_to_stream(Item(number=n))


class Stuck(Workflow[str]):
    """A chain of two steps, of which the second waits for ever and cleans up with an await."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.in_step = anyio.Event()
        self.seen: list[str] = []

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item:
        ctx.write_event_to_stream(Line(text="begun"))
        return Item(number=1)

    @step
    async def wait(self, ctx: Context, ev: Item) -> StopEvent:
        ctx.write_event_to_stream(Line(text="waiting"))
        self.in_step.set()
        async with witnessed(self.seen):
            await anyio.sleep_forever()
        return StopEvent()


def stepping(function: Any, **of_step: Any) -> type[Workflow]:
    """Return the class of a workflow of one step, which runs ``await function(ctx)``."""

    class Stepping(Workflow):
        @step(**of_step)
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent | Item:
            return StopEvent(result=await function(ctx))

        @step
        async def take(self, ev: Item) -> None:
            pass

    return Stepping


def fanning(function: Any, count: int = 3, **of_step: Any) -> Workflow:
    """Return a workflow that runs ``await function(ctx, n)`` for each number, and joins them."""

    class Fanning(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(count)]

        @step(**of_step)
        async def work(self, ctx: Context, ev: Item) -> Done:
            await function(ctx, ev.number)
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    return Fanning()


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


def counting(count: int, **options: Any) -> Single:
    """Return a workflow that sends ``count`` notes, with a turn for others after each."""

    async def work(ctx: Context) -> None:
        for n in range(count):
            await ctx.stream.send(Note(number=n))
            await anyio.lowlevel.checkpoint()

    return Single(work, **options)
