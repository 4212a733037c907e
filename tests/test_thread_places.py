"""How many threads the steps of an event loop have, what waits for one, and limiters of one loop."""

from __future__ import annotations

import threading
import time
from math import inf

import anyio
import anyio.to_thread
import pytest
import trio
from trio.testing import MockClock

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowValidationError,
    step,
)
from sluicegate._loop import current_backend
from sluicegate._loop import thread_places as places
from sluicegate._loop.limits import SingleLoopLimiter
from sluicegate._loop.thread_places import ThreadPlace, thread_places
from sluicegate._loop.threads import FromThread, ThreadStep
from tests.helpers import Catch, Done, Item, on_each_backend, wait_until_idle


pytestmark = pytest.mark.anyio

#: What must not take long on any machine, in seconds.
LONG = 30


@pytest.fixture(params=[1, 7, 100])
def running(request, monkeypatch):
    """How many may compute at a time."""
    monkeypatch.setattr(places, "MAX_RUNNING", request.param)
    return request.param


class Child(Workflow):
    @step
    def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=1)


class Families(Workflow):
    """Steps in threads that each run a child with a step in a thread."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=n) for n in range(ev.count)]

    @step(num_workers=1000)
    def work(self, ctx: Context, ev: Item) -> Done:
        return Done(number=ctx.from_thread.run(ctx.run_child, Child()))

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


class Asking(Workflow):
    """A step in a thread that waits for a person."""

    @step
    def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = ctx.from_thread.run(ctx.wait_for_event, HumanResponseEvent)
        return StopEvent(result=answer.response)


# -- threads that wait in the event loop ------------------------------------------------------------------


async def test_no_number_of_threads_deadlocks(running):
    """P12: a thread inside a call of its context gives its place to others, however few there are."""
    with anyio.fail_after(LONG):
        assert await Families().run(count=45) == 45

    assert thread_places(current_backend()).running == 0
    assert not thread_places(current_backend()).taken


async def test_threads_that_wait_for_people_lock_nobody_out(running):
    """Idle ``def`` steps take none of the event loop's own threads, nor a place among those that run."""
    asking = Asking()
    answers = []

    async def own(handler):
        answers.append(await handler)

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            handlers = [asking.run() for _ in range(40)]
            for handler in handlers:
                group.start_soon(own, handler)
            while not all(handler.status == "idle" for handler in handlers):
                await anyio.sleep(0)

            limiter = anyio.to_thread.current_default_thread_limiter()
            assert limiter.borrowed_tokens == 0
            assert await anyio.to_thread.run_sync(lambda: "an endpoint") == "an endpoint"
            assert await Child().run() == 1
            for number, handler in enumerate(handlers):
                handler.send_event(HumanResponseEvent(response=number))

    assert sorted(answers) == [*range(40)]


async def test_no_more_bodies_run_than_may(running):
    """Bodies that compute are bounded, those that come back from the event loop included."""
    running_now, most = set(), []

    def body(_workflow):
        for _ in range(3):
            me = object()
            running_now.add(me)
            most.append(len(running_now))
            time.sleep(0.0001)
            running_now.discard(me)
            threads.run(anyio.sleep, 0)

    threads = FromThread()
    bound = ThreadStep(body, abandon_on_cancel=False)
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(bound, None)

    assert max(most) <= running


async def test_too_many_threads_are_an_error_that_names_the_steps():
    """P12: beyond ``max_threads`` that all wait, a step fails at once and says who has them."""
    asking = Asking(max_threads=3)
    told = []

    async def own(handler):
        with Catch() as caught:
            await handler
        told.append(str(caught.error))
        if len(told) == 1:
            for other in handlers:
                if not other.is_done():
                    other.send_event(HumanResponseEvent(response="x"))

    handlers = [asking.run() for _ in range(4)]
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            for handler in handlers:
                group.start_soon(own, handler)

    assert told[1:] == ["None"] * 3
    assert "the step Asking.ask needs a thread, and all 3 threads" in told[0]
    assert "in the steps Asking.ask (3)" in told[0]
    assert "max_threads=6" in told[0]


def test_max_threads_is_checked():
    """A wrong number is told when the workflow is built."""
    with pytest.raises(WorkflowValidationError, match=r"Asking\(max_threads=0\); expected an int"):
        Asking(max_threads=0)


async def test_a_thread_that_is_cancelled_on_its_way_back_keeps_what_it_got(monkeypatch):
    """Cancelled while it waits for its place, a thread has it at once, and its result."""
    monkeypatch.setattr(places, "MAX_RUNNING", 1)
    first, second = ThreadPlace("first"), ThreadPlace("second")
    scope = anyio.CancelScope()
    back = []

    async def come_back():
        with scope:
            await second.resume()
            back.append(second)

    async with second:
        second.rest()
        async with first:
            async with anyio.create_task_group() as group:
                group.start_soon(come_back)
                await wait_until_idle()
                assert not back
                scope.cancel()
            assert back == [second]
            assert thread_places(current_backend()).running == 2

    assert thread_places(current_backend()).running == 0


async def test_an_abandoned_thread_keeps_its_place_until_it_ends():
    """A thread that was left running counts as long as it runs."""
    release = threading.Event()
    reached = threading.Event()

    def body(_workflow):
        reached.set()
        release.wait(LONG)

    scope = anyio.CancelScope()

    async def host():
        with scope:
            await ThreadStep(body, abandon_on_cancel=True)(None)

    async def cancel_and_wait(scope):
        scope.cancel()
        await wait_until_idle()

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            await anyio.to_thread.run_sync(reached.wait)
            with pytest.warns(RuntimeWarning, match="left running"):
                await cancel_and_wait(scope)
        places = thread_places(current_backend())
        assert (len(places.taken), places.running) == (1, 1)

        release.set()
        while places.taken:
            await anyio.sleep(0.001)
        assert places.running == 0


class Stuck(Workflow):
    """A step in a thread that waits for an event which its own worker would have to handle."""

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(number=0)

    @step(num_workers=1)
    def work(self, ctx: Context, ev: Item) -> Item | StopEvent:
        branch = ctx.send_event(Item(number=1))
        ctx.from_thread.run(branch.wait)
        return StopEvent()


async def test_a_thread_that_waits_for_ever_is_a_stall():
    """P12: what a thread waits for in the event loop is seen, as what a coroutine waits for is."""
    with anyio.fail_after(LONG), pytest.raises(WorkflowStalledError, match="no worker is free"):
        await Stuck().run()


# -- time ------------------------------------------------------------------------------------------------


class Slow(Event):
    pass


class Timed(Workflow):
    """A step with a timeout that waits for a thread much longer than that."""

    def __init__(self, **options):
        super().__init__(**options)
        self.release = threading.Event()
        self.held = threading.Event()

    @step
    async def begin(self, ev: StartEvent) -> list[Slow | Item]:
        return [Slow(), Item(number=1)]

    @step
    def hold(self, ev: Slow) -> Done:
        self.held.set()
        self.release.wait(LONG)
        return Done(number=0)

    @step(timeout=5)
    def quick(self, ev: Item) -> Done:
        return Done(number=1)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


async def test_a_timeout_does_not_count_the_wait_for_a_thread(monkeypatch):
    """A step's timeout begins when there is a thread for it."""
    monkeypatch.setattr(places, "MAX_RUNNING", 1)
    backend = current_backend()
    late = 0.0
    now = backend.current_time
    monkeypatch.setattr(type(backend), "current_time", staticmethod(lambda: now() + late))
    timed = Timed()
    with anyio.fail_after(LONG):
        async with timed.run() as handler:
            await anyio.to_thread.run_sync(timed.held.wait)
            await wait_until_idle()
            late = 3600.0  # what has begun to count by now is long over
            timed.release.set()
            assert await handler == 2


class Returning(Timed):
    """A step with a timeout that comes back from the event loop, and waits for its place again."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=1)]

    @step(timeout=5)
    def quick(self, ctx: Context, ev: Item) -> Done | Slow:
        ctx.send_event(Slow())
        ctx.from_thread.run(self.may_return.wait)
        return Done(number=1)


async def test_a_timeout_does_not_count_the_way_back_into_a_thread(monkeypatch):
    """A step's timeout stands still while its thread waits for its place after a call."""
    monkeypatch.setattr(places, "MAX_RUNNING", 1)
    backend = current_backend()
    late = 0.0
    now = backend.current_time
    monkeypatch.setattr(type(backend), "current_time", staticmethod(lambda: now() + late))
    flow = Returning()
    flow.may_return = anyio.Event()
    with anyio.fail_after(LONG):
        async with flow.run() as handler:
            await anyio.to_thread.run_sync(flow.held.wait)
            flow.may_return.set()
            while not thread_places(backend)._returning:
                await anyio.sleep(0)
            late = 3600.0
            flow.release.set()
            assert await handler == 2


def test_a_mock_clock_waits_for_a_thread():
    """``autojump_clock`` does not jump over a thread that computes: its timeout is not reached."""

    class Computing(Workflow):
        @step(timeout=5)
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            time.sleep(0.005)
            ctx.from_thread.run(trio.sleep, 1)
            time.sleep(0.005)
            return StopEvent(result=clock.autojump_threshold)

    async def main():
        return await Computing(timeout=1000).run()

    clock = MockClock(autojump_threshold=0)

    assert trio.run(main, clock=clock) == 0.2
    assert clock.autojump_threshold == 0
    assert 1 <= clock.current_time() < 5


def test_a_mock_clock_does_not_wait_for_ever(monkeypatch):
    """A thread that waits for a timer of the loop, past its context, gets there all the same."""
    monkeypatch.setattr("sluicegate._loop.trio.PATIENCE", 0.005)
    release = threading.Event()

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                ThreadStep(lambda _: release.wait(LONG), abandon_on_cancel=False), None
            )
            await trio.sleep(100)
            release.set()

    clock = MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)

    assert clock.autojump_threshold == 0


def test_a_threshold_that_is_set_meanwhile_stays():
    """What the program sets while a thread runs is what it has afterwards."""

    async def main():
        backend = current_backend()
        backend.hold_clock()
        backend.hold_clock(inf)
        assert clock.autojump_threshold == inf
        clock.autojump_threshold = 0.05
        backend.release_clock(inf)
        backend.release_clock()
        await trio.lowlevel.checkpoint()

    clock = MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)

    assert clock.autojump_threshold == 0.05


# -- limiters of one event loop ---------------------------------------------------------------------------


def limiter_of(backend):
    """Make a limiter for one at a time."""
    return trio.CapacityLimiter(1) if backend == "trio" else anyio.CapacityLimiter(1)


def limited(limiter, function):
    """Make a workflow with one step, which enters a limiter."""

    class Limited(Workflow):
        @step(limiter=limiter)
        async def only(self, ev: StartEvent) -> StopEvent:
            await function()
            return StopEvent(result="done")

    return Limited()


@on_each_backend
@pytest.mark.parametrize("make", [limiter_of, lambda backend: anyio.Semaphore(1)])
def test_a_limiter_that_another_loop_uses_is_told(backend, make):
    """P12: a limiter of one event loop, shared by loops in two threads, is an error and no hang."""
    made = []
    inside, told = threading.Event(), threading.Event()
    errors = []

    async def nothing():
        await anyio.sleep(0)

    async def wait_there():
        inside.set()
        await anyio.to_thread.run_sync(told.wait, LONG)

    async def first():
        made.append(make(backend))
        assert await limited(made[0], wait_there).run() == "done"

    async def second():
        with Catch() as caught:
            await limited(made[0], nothing).run()
        errors.append(caught.error)
        told.set()

    thread = threading.Thread(
        target=anyio.run, args=(first,), kwargs={"backend": backend}, name="the first"
    )
    thread.start()
    assert inside.wait(LONG)
    anyio.run(second, backend=backend)
    thread.join()

    (error,) = errors
    assert isinstance(error, WorkflowRuntimeError)
    assert "the limiter of the step Limited.only is in use by the event loop" in str(error)
    assert "'the first'" in str(error)
    assert "RateLimiter" in str(error)


def test_a_limiter_serves_one_loop_after_another():
    """Used by one loop at a time, also after one that was cancelled in the middle, it is fine."""
    limiter = trio.CapacityLimiter(1)

    async def nothing():
        await trio.lowlevel.checkpoint()

    async def main():
        with trio.move_on_after(0) as scope:
            await limited(limiter, trio.sleep_forever).run()
        assert scope.cancelled_caught
        return await limited(limiter, nothing).run()

    assert [trio.run(main), trio.run(main)] == ["done", "done"]


async def test_a_limiter_that_refuses_is_given_back():
    """Where the limiter itself raises, no one counts as its user."""

    class Refusing:
        async def __aenter__(self):
            raise ValueError("full")

        async def __aexit__(self, *_):
            raise AssertionError

    refusing = Refusing()
    place = SingleLoopLimiter(refusing, refusing, "step")
    for _ in range(2):
        with pytest.raises(ValueError, match="full"):
            await place.__aenter__()

    assert place._use is None
