"""Limits: how many runs and steps at a time, and how many per second."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sluicegate import (
    Context,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowStalledError,
    step,
)
from sluicegate._errors import WorkflowRuntimeError, WorkflowValidationError
from sluicegate._loop.limits import ConcurrencyLimit, RateLimiter
from sluicegate.testing import jump_clock, sweep
from tests.helpers import (
    Done,
    Item,
    Mine,
    Single,
    cancelled_class,
    fanning,
    is_trio,
    nothing_left,
    on_each_backend,
    run_virtually,
    stepping,
    timers_left,
    wait_until_idle,
)


def run_on(backend, main, *args):
    """Run an async function on ``trio``, ``asyncio`` or ``uvloop``."""
    if backend == "trio":
        return trio.run(main, *args)
    return anyio.run(main, *args, backend_options={"use_uvloop": backend == "uvloop"})


on_every_loop = pytest.mark.parametrize("backend", ["trio", "asyncio", "uvloop"])


class Guest:
    """A task that enters by ``enter(guest)``, stays until it is told to go, and leaves."""

    def __init__(self, enter, leave=lambda _: None):
        self.enter = enter
        self.leave = leave
        self.state = "new"
        self.task = None
        self.natively = False
        self.scope = anyio.CancelScope()
        self.go = anyio.Event()

    async def visit(self):
        if not is_trio():
            self.task = asyncio.current_task()
        try:
            await self._visit()
        except asyncio.CancelledError:
            if not self.natively:
                raise
            # AnyIO cancels the whole group for a task in it that ends cancelled.

    async def _visit(self):
        with self.scope:
            self.state = "waiting"
            try:
                came_by = await self.enter(self)
            except cancelled_class():
                self.state = "cancelled"
                raise
            self.state = "inside"
            try:
                await self.go.wait()
            finally:
                self.state = "left"
                self.leave(came_by)

    def cancel(self, how="scope"):
        """Cancel by a scope; or the task itself, which only asyncio can."""
        if how == "scope" or self.task is None:
            self.scope.cancel()
        else:
            self.natively = True
            self.task.cancel()


@pytest.fixture(params=["scope", "native"])
def how(request):
    """The two ways to be cancelled."""
    return request.param


class House:
    """A limit with guests, and the rules that hold at any time."""

    def __init__(self, limit, group):
        self.limit = limit
        self.concurrency = ConcurrencyLimit(limit)
        self.group = group
        self.guests = []
        self.entered = []
        self.arrivals = itertools.count()
        self.slots = None

    def start(self):
        guest = Guest(self.enter, lambda slots: slots.release())
        self.guests.append(guest)
        self.group.start_soon(guest.visit)
        return guest

    async def start_and_settle(self, count):
        guests = []
        for _ in range(count):
            guests.append(self.start())
            await wait_until_idle(3)
        return guests

    async def enter(self, guest):
        arrival = next(self.arrivals)
        self.slots = await self.concurrency.acquire()
        assert len(self.inside()) < self.limit, "one too many"
        assert not self.entered or self.entered[-1] < arrival, "overtaken"
        self.entered.append(arrival)
        return self.slots

    def inside(self):
        return [guest for guest in self.guests if guest.state == "inside"]

    def states(self):
        return [guest.state for guest in self.guests]


# -- the limit ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_free_gate_is_no_checkpoint():
    """Where there is room, entering does not wait: not for a turn, not for a cancellation."""
    concurrency = ConcurrencyLimit(2)
    for _ in range(2):
        with pytest.raises(StopIteration) as caught:
            concurrency.acquire().send(None)
    slots = caught.value.value

    assert repr(concurrency) == "ConcurrencyLimit(2)"
    assert repr(slots) == "<LoopSlots: 2 of 2 taken, 0 waiting>"


@pytest.mark.anyio
async def test_at_most_so_many_first_come_first_served():
    """At most ``limit`` are inside; the others come in in the order in which they came."""
    with nothing_left():
        async with anyio.create_task_group() as group:
            house = House(2, group)
            guests = await house.start_and_settle(5)
            assert house.states() == ["inside", "inside", "waiting", "waiting", "waiting"]
            assert repr(house.slots) == "<LoopSlots: 2 of 2 taken, 3 waiting>"

            guests[1].go.set()
            await wait_until_idle()
            assert house.states() == ["inside", "left", "inside", "waiting", "waiting"]

            guests[0].go.set()
            guests[2].go.set()
            await wait_until_idle()
            assert house.states() == ["left", "left", "left", "inside", "inside"]
            guests[3].go.set()
            guests[4].go.set()

    assert house.entered == [0, 1, 2, 3, 4]
    assert (house.slots.inside, house.slots.waiting) == (0, 0)


@pytest.mark.anyio
async def test_who_is_cancelled_in_the_line_gives_up_its_place(how):
    """Cancelled while it waits, a run is out of the line; the others continue in order."""
    async with anyio.create_task_group() as group:
        house = House(1, group)
        guests = await house.start_and_settle(4)
        guests[1].cancel(how)
        guests[2].cancel(how)
        await wait_until_idle()
        assert house.states() == ["inside", "cancelled", "cancelled", "waiting"]
        assert house.slots.waiting == 1

        guests[0].go.set()
        await wait_until_idle()
        assert house.states() == ["left", "cancelled", "cancelled", "inside"]
        guests[3].go.set()

    assert house.slots.inside == 0


@pytest.mark.anyio
@pytest.mark.parametrize("first", ["leave", "cancel"])
async def test_cancelled_in_the_moment_it_is_let_in(how, first):
    """Room is made for a run that is cancelled in the same moment: no slot is lost or doubled."""
    async with anyio.create_task_group() as group:
        house = House(1, group)
        slots = await house.concurrency.acquire()
        guests = await house.start_and_settle(3)
        assert house.states() == ["waiting"] * 3
        if first == "leave":
            slots.release()
            guests[0].cancel(how)
        else:
            guests[0].cancel(how)
            slots.release()
        await wait_until_idle()

        # AnyIO's scope does not cancel a task that is woken; it then is in, and out again.
        assert guests[0].state in ("cancelled", "left")
        assert house.states()[1:] == ["inside", "waiting"]
        assert slots.inside == 1
        guests[1].go.set()
        guests[2].go.set()

    assert slots.inside == 0


@pytest.mark.slow_for("asyncio")
@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(1, 3),
    actions=st.lists(
        st.tuples(
            st.sampled_from(["start", "start", "leave", "scope", "native", "turn", "settle"]),
            st.integers(0, 30),
        ),
        max_size=40,
    ),
)
@on_every_loop
def test_any_interleaving(backend, limit, actions):
    """Whatever is started, cancelled and let go in whatever order: never too many, no slot lost."""

    async def main():
        async with anyio.create_task_group() as group:
            house = House(limit, group)
            for action, number in actions:
                if action == "start":
                    house.start()
                elif action == "turn":
                    await anyio.lowlevel.checkpoint()
                elif action == "settle":
                    await wait_until_idle()
                    check(house)
                elif house.guests:
                    guest = house.guests[number % len(house.guests)]
                    guest.go.set() if action == "leave" else guest.cancel(action)
            await wait_until_idle()
            check(house)
            for guest in house.guests:
                guest.go.set()
        assert set(house.states()) <= {"left", "cancelled"}
        if house.slots is not None:
            assert (house.slots.inside, house.slots.waiting) == (0, 0)

    def check(house):
        states = house.states()
        assert "new" not in states
        assert states.count("inside") <= limit
        if "waiting" in states:
            assert states.count("inside") == limit, "room, and somebody waits"
        if house.slots is not None:
            assert house.slots.inside == states.count("inside")
            assert house.slots.waiting == states.count("waiting")

    run_on(backend, main)


def test_one_loop_after_another():
    """A limit serves one event loop after another, of any kind, each with all of its room."""
    concurrency = ConcurrencyLimit(1)

    async def main():
        slots = await concurrency.acquire()  # and never leaves
        assert slots.inside == 1
        return slots

    all_slots = [
        run_on(backend, main) for backend in ["trio", "trio", "asyncio", "uvloop", "asyncio"]
    ]

    assert len(set(map(id, all_slots))) == 5


def test_an_abandoned_loop_keeps_nothing_from_the_next():
    """What is left of a loop that no one unwound counts neither as inside nor as having left."""
    limits = [ConcurrencyLimit(1)]
    old = []
    wrong = []

    async def visit():
        slots = await limits[0].acquire()
        old.append(slots)
        try:
            await asyncio.Event().wait()
        finally:
            slots.release()

    def abandon():
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _, what: wrong.append(what["message"]))
        tasks = [loop.create_task(visit()) for _ in range(3)]
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert len(tasks) == 3

    async def main():
        slots = await limits[0].acquire()
        gc.collect()  # closes the coroutine that was inside, in this loop
        assert old[0].inside == 0
        assert slots.inside == 1
        slots.release()

    abandon()
    asyncio.run(main())
    trio.run(main)
    limits.clear()
    old.clear()
    gc.collect()  # closes those that waited, which must wake nobody

    # Nothing but asyncio's own complaint, once for each.
    assert wrong == ["Task was destroyed but it is pending!"] * 3


def test_a_gate_counts_for_each_loop():
    """Two event loops in two threads at once have all of the room each."""
    concurrency = ConcurrencyLimit(1)
    both_inside = threading.Barrier(2, timeout=10)

    async def main():
        slots = await concurrency.acquire()
        both_inside.wait()
        slots.release()
        return slots

    with ThreadPoolExecutor() as pool:
        first = pool.submit(trio.run, main)
        second = pool.submit(lambda: asyncio.run(main()))

    assert first.result() is not second.result()


@pytest.mark.trio
async def test_ctrl_c_in_the_line():
    """P17: Ctrl-C while a run waits leaves the limit as a cancellation does."""
    concurrency = ConcurrencyLimit(1)
    slots = await concurrency.acquire()

    async def main():
        signal.raise_signal(signal.SIGINT)
        await concurrency.acquire()

    with pytest.raises(KeyboardInterrupt):
        await main()

    assert (slots.inside, slots.waiting) == (1, 0)


@pytest.mark.anyio
async def test_leaving_twice():
    """Releasing a slot that no run holds is refused; the count stays right."""
    slots = await ConcurrencyLimit(1).acquire()
    slots.release()

    with pytest.raises(WorkflowRuntimeError, match=r"expected one `slots.release\(\)` for each"):
        slots.release()
    assert slots.inside == 0


@pytest.mark.parametrize("limit", [0, -1, True, 1.0, "2", None])
def test_bad_limits(limit):
    """P13: a limit that is not an int of at least 1 is refused, with the line that works."""
    with pytest.raises(WorkflowValidationError, match=r"`MyWorkflow\(num_concurrent_runs=4\)`"):
        ConcurrencyLimit(limit)


def test_outside_of_a_loop():
    """Both are made anywhere, and used in an event loop only."""
    for enter in (ConcurrencyLimit(1).acquire, RateLimiter(1).acquire):
        with pytest.raises(RuntimeError, match="there is none here"):
            enter().send(None)


# -- the rate -------------------------------------------------------------------------------------


def now():
    """Return the time on the clock of the event loop."""
    return anyio.current_time()


async def entries(limiter, count):
    """Enter so many times, one after another; return when, counted from now."""
    start = now()
    times = []
    for _ in range(count):
        async with limiter:
            times.append(now() - start)
    return times


@on_each_backend
@pytest.mark.parametrize(
    ("limiter", "expected"),
    [
        (RateLimiter(2), [0.0, 0.5, 1.0, 1.5]),
        (RateLimiter(1, per=8), [0.0, 8.0, 16.0, 24.0]),
        (RateLimiter(0.25), [0.0, 4.0, 8.0, 12.0]),
        (RateLimiter(2, burst=3), [0.0, 0.0, 0.0, 0.5, 1.0]),
        (RateLimiter(4, per=2, burst=2), [0.0, 0.0, 0.5, 1.0]),
    ],
    ids=repr,
)
def test_entries_are_spaced(backend, limiter, expected):
    """P10: entries come at the rate on the backend's clock, after as many at once as may burst."""
    assert run_virtually(backend, entries, limiter, len(expected)) == pytest.approx(expected)


@on_each_backend
def test_a_pause_fills_the_bucket_and_no_more(backend):
    """However long no one entered, no more than ``burst`` enter at once after it."""

    async def main():
        limiter = RateLimiter(1, burst=2)
        await entries(limiter, 2)
        await anyio.sleep(1000)
        first = await entries(limiter, 4)
        await anyio.sleep(1.5)
        return first, await entries(limiter, 3)

    first, second = run_virtually(backend, main)

    assert first == pytest.approx([0, 0, 1, 2])
    assert second == pytest.approx([0, 0.5, 1.5])


@on_each_backend
@pytest.mark.parametrize(("rate", "burst"), [(10, 10), (3, 7), (0.7, 30), (1000 / 7, 100)])
def test_a_burst_needs_no_clock(backend, rate, burst):
    """Rounding delays no one: as many as may burst enter while the clock stands still."""

    async def main():
        limiter = RateLimiter(rate, burst=burst)
        await anyio.sleep(1234567.891)
        return await entries(limiter, burst)

    assert run_virtually(backend, main) == [0.0] * burst


@pytest.mark.anyio
async def test_a_free_limiter_is_a_checkpoint():
    """Entering gives others a turn and sees a cancellation; leaving does neither."""
    limiter = RateLimiter(1, per=1000)
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with limiter:
            pytest.fail("entered")
    assert scope.cancelled_caught
    if is_trio():
        with trio.testing.assert_checkpoints():
            await limiter.__aenter__()  # the token is still there
    else:
        entering = limiter.__aenter__()
        assert entering.send(None) is None  # the turn that it gives
        with pytest.raises(StopIteration):
            entering.send(None)
    with pytest.raises(StopIteration):
        limiter.__aexit__(None, None, None).send(None)


class Crowd:
    """Guests of one limiter, and when they came in, counted from the start."""

    def __init__(self, limiter, group):
        self.limiter = limiter
        self.group = group
        self.start_time = now()
        self.arrivals = itertools.count()
        self.entered = []

    def start(self):
        guest = Guest(self.enter)
        guest.go.set()
        self.group.start_soon(guest.visit)
        return guest

    async def enter(self, guest):
        arrival, arrived_at = next(self.arrivals), now() - self.start_time
        async with self.limiter:
            assert not self.entered or self.entered[-1][0] < arrival, "overtaken"
            self.entered.append((arrival, arrived_at, now() - self.start_time))

    def times(self):
        return [time for _, _, time in self.entered]


@on_each_backend
def test_first_come_first_served(backend):
    """However many ask at once, they enter in the order in which they asked, at the rate."""

    async def main():
        async with anyio.create_task_group() as group:
            crowd = Crowd(RateLimiter(4), group)
            for _ in range(20):
                crowd.start()
        assert timers_left() == 0
        return crowd.times()

    with_rate = [number / 4 for number in range(20)]
    assert run_virtually(backend, main) == pytest.approx(with_rate)


@on_each_backend
def test_who_is_cancelled_while_waiting_takes_no_token(backend, how):
    """Who gives up in the line, first or in its middle, delays no one."""

    async def main():
        async with anyio.create_task_group() as group:
            crowd = Crowd(RateLimiter(1), group)
            guests = []
            for _ in range(6):
                guests.append(crowd.start())
                await wait_until_idle(3)
            await anyio.sleep(0.25)
            guests[1].cancel(how)
            guests[3].cancel(how)
            await anyio.sleep(0.25)
            assert [guest.state for guest in guests] == [
                "left",
                "cancelled",
                "waiting",
                "cancelled",
                "waiting",
                "waiting",
            ]
        return crowd.times()

    assert run_virtually(backend, main) == pytest.approx([0, 1, 2, 3])


@on_each_backend
def test_cancelled_in_the_moment_of_its_token(backend, how):
    """Who is cancelled in the turn in which its token comes has not taken it, or has entered."""

    async def main():
        async with anyio.create_task_group() as group:
            crowd = Crowd(RateLimiter(1), group)
            guests = []
            for _ in range(4):
                guests.append(crowd.start())
                await wait_until_idle(3)
            jump_clock(1.0)
            guests[1].cancel(how)
            await wait_until_idle()
            assert guests[1].state in ("cancelled", "left")
            if how == "native" and not is_trio():
                assert guests[1].state == "cancelled"
        return crowd.times()

    times = run_virtually(backend, main)
    assert times == pytest.approx([float(number) for number in range(len(times))])
    assert len(times) >= 3


@pytest.mark.parametrize("turns", range(6))
def test_a_native_cancellation_is_not_taken_for_the_timer(turns):
    """A task that is cancelled in any turn around its own timer ends cancelled, or had entered."""

    async def main():
        limiter = RateLimiter(1)
        await limiter.acquire()
        entered = []

        async def ask():
            await limiter.acquire()
            entered.append(now())

        task = asyncio.create_task(ask())
        await wait_until_idle()
        jump_clock(1.0)
        for _ in range(turns):
            await asyncio.sleep(0)
        was_in_time = task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == was_in_time == (not entered)
        assert was_in_time or turns

        before = now()
        await limiter.acquire()
        return now() - before - len(entered)

    assert run_virtually("asyncio", main) == pytest.approx(0)


@pytest.mark.slow_for("asyncio")
@settings(max_examples=100, deadline=None)
@given(
    burst=st.integers(1, 4),
    guests=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0.25, 0.5, 1, 3]),
            st.sampled_from([None, None, 0, 0.25, 1, 2.5]),
            st.sampled_from(["scope", "native"]),
        ),
        max_size=25,
    ),
)
@on_each_backend
def test_any_crowd(backend, burst, guests):
    """Those who enter do so exactly when a bucket without the cancelled ones would let them."""

    async def main():
        async with anyio.create_task_group() as group:
            crowd = Crowd(RateLimiter(1, burst=burst), group)

            async def cancel_later(guest, delay, how):
                await anyio.sleep(delay)
                guest.cancel(how)

            for pause, cancel_after, how in guests:
                await anyio.sleep(pause)
                guest = crowd.start()
                if cancel_after is not None:
                    group.start_soon(cancel_later, guest, cancel_after, how)
        assert timers_left() == 0
        return crowd.entered

    entered = run_virtually(backend, main)

    tokens, at = float(burst), 0.0
    for _, arrived_at, entered_at in entered:
        expected = max(arrived_at, at)
        tokens = min(burst, tokens + expected - at)
        if tokens < 1:
            expected += 1 - tokens
            tokens = 1.0
        tokens, at = tokens - 1, expected
        assert entered_at == expected
    unharmed = sum(cancel_after is None for _, cancel_after, _ in guests)
    assert len(entered) >= unharmed


@pytest.mark.anyio
async def test_on_the_real_clock():
    """On a real clock, uvloop's coarse one too, everyone enters, and nothing is left."""
    limiter = RateLimiter(1000, burst=2)
    with nothing_left():
        async with anyio.create_task_group() as group:
            crowd = Crowd(limiter, group)
            for _ in range(8):
                crowd.start()

    assert len(crowd.entered) == 8


def test_a_limiter_serves_one_loop_after_another():
    """The clocks of two loops have nothing to do with each other: each has a full bucket."""
    limiter = RateLimiter(1, per=60, burst=2)

    async def main(start):
        await anyio.sleep(start)
        return await entries(limiter, 3)

    for backend, start in [("trio", 1e6), ("trio", 0), ("asyncio", 1e5), ("asyncio", 0)]:
        assert run_virtually(backend, main, start) == pytest.approx([0, 0, 60])


def test_a_limiter_limits_each_loop_by_itself():
    """Two event loops in two threads at once have a bucket each."""
    limiter = RateLimiter(1, per=1000)
    both_inside = threading.Barrier(2, timeout=10)

    async def main():
        async with limiter:
            both_inside.wait()

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(trio.run, main), pool.submit(lambda: asyncio.run(main()))]:
            assert done.result() is None


@pytest.mark.trio
async def test_ctrl_c_while_waiting_for_a_token():
    """P17: Ctrl-C while a task waits gives up its place; the next is not delayed."""
    limiter = RateLimiter(1000)
    await limiter.acquire()

    async def main():
        signal.raise_signal(signal.SIGINT)
        await limiter.acquire()

    with pytest.raises(KeyboardInterrupt):
        await main()
    await limiter.acquire()


def test_the_repr_is_the_call():
    """A limiter shows how it was made."""
    assert repr(RateLimiter(10)) == "RateLimiter(10, per=1.0, burst=1)"
    assert repr(RateLimiter(0.5, per=60, burst=3)) == "RateLimiter(0.5, per=60, burst=3)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0}, "rate of RateLimiter is 0; expected a number above 0: `RateLimiter(10)`"),
        ({"rate": -1.5}, "rate of RateLimiter is -1.5"),
        ({"rate": float("nan")}, "rate of RateLimiter is nan"),
        ({"rate": float("inf")}, "rate of RateLimiter is inf"),
        ({"rate": 10**400}, "rate of RateLimiter is 1000"),
        ({"rate": True}, "rate of RateLimiter is True"),
        ({"rate": "10"}, "rate of RateLimiter is '10'"),
        ({"rate": 10, "per": 0}, "per of RateLimiter is 0; expected seconds above 0"),
        ({"rate": 10, "per": None}, "`RateLimiter(10, per=60)`"),
        ({"rate": 10, "burst": 0}, "burst of RateLimiter is 0; expected an int of at least 1"),
        ({"rate": 10, "burst": 1.0}, "`RateLimiter(10, per=1.0, burst=5)`"),
        ({"rate": 10, "burst": True}, "burst of RateLimiter is True"),
        ({"rate": 1e-300, "per": 1e300}, "has inf seconds from one entry to the next"),
        ({"rate": 1e300, "per": 1e-300}, "has 0.0 seconds from one entry to the next"),
    ],
    ids=str,
)
def test_bad_rates(arguments, message):
    """What is no rate is refused when the limiter is made, with a call that works."""
    with pytest.raises(ValueError, match=re.escape(message)):
        RateLimiter(**arguments)


# -- amounts --------------------------------------------------------------------------------------


async def amounts(limiter, *numbers):
    """Take amounts one after another; return when each had entered, counted from now."""
    start = now()
    times = []
    for number in numbers:
        async with limiter(number):
            times.append(now() - start)
    return times


@on_each_backend
@pytest.mark.parametrize(
    ("limiter", "numbers", "expected"),
    [
        (RateLimiter(10, burst=100), [100, 10, 50], [0, 1, 6]),
        (RateLimiter(60, per=60, burst=60), [30, 30, 1, 60], [0, 0, 1, 61]),
        (RateLimiter(1, burst=2), [0.5, 0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0, 0.5]),
        (RateLimiter(1, burst=2), [2, 0, 1], [0, 0, 1]),
    ],
    ids=repr,
)
def test_amounts_are_refilled_at_the_rate(backend, limiter, numbers, expected):
    """P10: an entry of an amount waits until the bucket has that much, and takes it."""
    assert run_virtually(backend, amounts, limiter, *numbers) == pytest.approx(expected)


@on_each_backend
def test_a_large_amount_is_not_overtaken(backend):
    """Small amounts that come later wait behind a large one, so that it is never starved."""

    async def main():
        limiter = RateLimiter(1, burst=10)
        entered = []

        async def take(name, amount):
            await limiter.acquire(amount)
            entered.append((name, now() - start))

        start = now()
        await limiter.acquire(10)
        async with anyio.create_task_group() as group:
            for name, amount in [("large", 8), ("small", 1), ("plain", 1)]:
                group.start_soon(take, name, amount)
                await wait_until_idle(3)
        assert timers_left() == 0
        return entered

    assert run_virtually(backend, main) == [
        ("large", pytest.approx(8)),
        ("small", pytest.approx(9)),
        ("plain", pytest.approx(10)),
    ]


@on_each_backend
def test_what_was_taken_too_much_is_given_back_at_once(backend):
    """The first in the queue enters as soon as the corrected amount leaves enough for it."""

    async def main():
        limiter = RateLimiter(1, burst=100)
        entered = []

        async def take(amount):
            async with limiter(amount):
                entered.append(now() - start)

        start = now()
        async with anyio.create_task_group() as group, limiter(100) as entry:
            group.start_soon(take, 30)
            group.start_soon(take, 30)
            await anyio.sleep(5)
            assert (entry.amount, repr(entry)) == (100, "<RateLimiterEntry of 100>")
            entry.correct(60)
            await wait_until_idle()
            assert entered == [pytest.approx(5)]
            entry.correct(45)
            await wait_until_idle()
            assert entered == [pytest.approx(5), pytest.approx(5)]
            assert entry.amount == 45
        return await amounts(limiter, 1)

    assert run_virtually(backend, main) == pytest.approx([1])


@on_each_backend
def test_what_was_taken_too_little_is_owed(backend):
    """A corrected amount may be above the burst; later entries and the one that waits wait for it."""

    async def main():
        limiter = RateLimiter(10, burst=100)
        async with limiter(50) as entry:
            pass
        entry.correct(150)  # after the block, too
        first = await amounts(limiter, 10)
        start = now()
        async with limiter(0) as entry, anyio.create_task_group() as group:
            group.start_soon(limiter.acquire, 10)
            await anyio.sleep(0.5)
            entry.correct(20)
        return [*first, now() - start]

    assert run_virtually(backend, main) == pytest.approx([6, 3])


@on_each_backend
def test_a_correction_never_overfills_the_bucket(backend):
    """What comes back into a full bucket is lost, and cannot be spent by another correction."""

    async def main():
        limiter = RateLimiter(1, burst=10)
        async with limiter(10) as first, limiter(0) as second:
            await anyio.sleep(100)
            first.correct(0)
            second.correct(10)
        return await amounts(limiter, 5, 5)

    assert run_virtually(backend, main) == pytest.approx([5, 10])


@on_each_backend
def test_cancelled_while_an_amount_is_awaited(backend, how):
    """Who gives up has taken nothing, whatever it has asked for; the next in line enters."""

    async def main():
        limiter = RateLimiter(1, burst=10)
        entered = []

        async def enter(guest):
            await limiter.acquire(10 if guest is guests[0] else 1)
            entered.append(now() - start)

        start = now()
        await limiter.acquire(10)
        guests = [Guest(enter), Guest(enter)]
        async with anyio.create_task_group() as group:
            for guest in guests:
                guest.go.set()
                group.start_soon(guest.visit)
                await wait_until_idle(3)
            await anyio.sleep(3)
            guests[0].cancel(how)
        assert guests[0].state == "cancelled"
        assert timers_left() == 0
        return entered

    assert run_virtually(backend, main) == pytest.approx([3])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_cancelled_anywhere_no_token_is_lost(backend):
    """P2: wherever waiting entries are cancelled, the bucket holds what was left in it, to the token."""

    async def scenario(trial):
        limiter = RateLimiter(1, burst=4)
        taken = trial.state.taken = []

        async def take(amount, actual):
            async with limiter(amount) as entry:
                taken.append((now(), amount))
                await anyio.sleep(1)
                entry.correct(actual)
                taken.append((now(), actual - amount))

        try:
            async with anyio.create_task_group() as group:
                for amount, actual in [(4, 3), (2, 5), (3, 1)]:
                    group.start_soon(take, amount, actual)
        finally:
            with anyio.CancelScope(shield=True):
                asked_at = now()
                await limiter.acquire(4)
                trial.state.waited = (asked_at, now())

    def check(outcome):
        if not hasattr(outcome.state, "waited"):
            return  # a native cancellation ignores the shield
        asked_at, free_at = outcome.state.waited
        level, at = 4.0, asked_at
        for number, (time, amount) in enumerate(outcome.state.taken):
            level = 4.0 if number == 0 else min(4.0, level + time - at)
            level, at = min(4.0, level - amount), time
        level = min(4.0, level + asked_at - at)
        assert free_at - asked_at == pytest.approx(4 - level)

    assert sweep(scenario, check=check, backends=[backend]).runs > 10


@pytest.mark.slow_for("asyncio")
@settings(max_examples=100, deadline=None)
@given(
    takes=st.lists(
        st.tuples(
            st.sampled_from([0, 0.25, 1, 3]),
            st.integers(0, 8),
            st.one_of(st.none(), st.integers(0, 12)),
        ),
        max_size=20,
    )
)
@on_each_backend
def test_any_amounts(backend, takes):
    """Entries and corrections in a row are exactly those of a bucket that is refilled at the rate."""

    async def main():
        limiter = RateLimiter(1, burst=8)
        start = now()
        done = []
        for pause, amount, actual in takes:
            await anyio.sleep(pause)
            asked_at = now() - start
            async with limiter(amount) as entry:
                done.append((asked_at, amount, actual, now() - start))
                if actual is not None:
                    entry.correct(actual)
        return done

    level, at = 8.0, 0.0
    for asked_at, amount, actual, entered_at in run_virtually(backend, main):
        level, at = min(8.0, level + asked_at - at), asked_at
        if level < amount:
            level, at = amount, at + amount - level
        assert entered_at == pytest.approx(at)
        level = min(8.0, level - (amount if actual is None else actual))


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), "5", None, False])
def test_bad_amounts(amount):
    """An amount is a number of at least 0; the message shows a call."""
    limiter = RateLimiter(10, burst=5)

    async def main():
        with pytest.raises(
            ValueError, match=r"the amount for RateLimiter\(10, per=1.0, burst=5\) is"
        ):
            limiter(amount)
        with pytest.raises(
            ValueError, match="expected a number of at least 0: `async with limiter"
        ):
            await limiter.acquire(amount)
        async with limiter(1) as entry:
            with pytest.raises(
                ValueError, match=r"the actual amount is .*; expected a number of at"
            ):
                entry.correct(amount)
        assert entry.amount == 1

    trio.run(main)


def test_an_amount_above_the_burst_is_an_error():
    """It could never enter; the message says so, and shows the limiter that could."""
    limiter = RateLimiter(90_000, per=60, burst=1000)
    message = (
        "the amount 1000.5 is above the burst of RateLimiter(90000, per=60, burst=1000), so it would "
        "wait for ever; expected at most 1000, or `RateLimiter(90000, per=60, burst=1001)`"
    )
    for enter in (limiter, lambda amount: trio.run(limiter.acquire, amount)):
        with pytest.raises(ValueError, match=re.escape(message)):
            enter(1000.5)


def test_a_correction_belongs_to_its_loop():
    """An entry is corrected in the event loop that it entered in, and nowhere else."""

    async def main():
        async with RateLimiter(1)(1) as entry:
            return entry

    entry = trio.run(main)
    with pytest.raises(
        RuntimeError, match="corrected outside of its event loop; expected a call in"
    ):
        entry.correct(0)


@on_each_backend
def test_steps_may_take_an_amount(backend):
    """``@step(limiter=tokens(500))``: every invocation takes it."""
    tokens = RateLimiter(100, burst=500)
    times = []

    async def work(ctx, n):
        times.append(now())

    workflow = fanning(work, limiter=tokens(500), num_workers=10)

    async def main():
        return await workflow.run()

    assert run_virtually(backend, main) == [0, 1, 2]
    assert [time - times[0] for time in times] == pytest.approx([0, 5, 10])
    assert repr(tokens(500)) == "RateLimiter(100, per=1.0, burst=500)(500)"


# -- in workflows ---------------------------------------------------------------------------------


@on_each_backend
def test_runs_of_a_workflow_continue_so_many_at_a_time(backend):
    """Further ones wait in the order in which they came; their timeouts begin when they do."""
    log = []

    class Slow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            log.append((ev.n, anyio.current_time() - began[0]))
            await anyio.sleep(10)
            return StopEvent(result=ev.n)

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        workflow = Slow(num_concurrent_runs=2, timeout=15)
        handlers = []
        with nothing_left():
            async with anyio.create_task_group() as group:
                for n in range(5):
                    handlers.append(workflow.run(n=n).start_soon(group))
                    await wait_until_idle()
            assert [handler.result() for handler in handlers] == list(range(5))
        assert not timers_left()

    run_virtually(backend, main)
    assert log == [(0, 0), (1, 0), (2, 10), (3, 10), (4, 20)]


@on_each_backend
def test_run_is_cancelled_while_it_waits_for_its_turn(backend):
    """It never begins, its stream ends, and those behind it move up."""
    log = []

    async def function(ctx):
        log.append(anyio.current_time() - began[0])
        await anyio.sleep(10)

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        workflow = stepping(function)(num_concurrent_runs=1)
        with nothing_left():
            async with anyio.create_task_group() as group:
                first, second, third = (workflow.run() for _ in range(3))
                for handler in (first, second, third):
                    handler.start_soon(group)
                    await wait_until_idle()
                stream = second.stream_events()
                await anyio.sleep(1)
                assert second.status == "running"
                await second.cancel("not needed")
                assert second.status == "cancelled"
                assert [type(ev).__name__ async for ev in stream] == ["WorkflowCancelledEvent"]
            assert first.status == third.status == "completed"

    run_virtually(backend, main)
    assert log == [0, 10]


def test_native_cancellation_of_a_run_that_waits_for_its_turn():
    """``Task.cancel()`` of the one that waits takes no turn from those behind it."""

    async def function(ctx):
        await anyio.sleep(10)
        return "done"

    async def main():
        workflow = stepping(function)(num_concurrent_runs=1)
        with nothing_left():
            tasks = [asyncio.create_task(workflow.run()._await()) for _ in range(3)]
            await asyncio.sleep(1)
            tasks[1].cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert ended[0] == ended[2] == "done"
        assert isinstance(ended[1], asyncio.CancelledError)
        assert asyncio.get_running_loop().time() == 20

    run_virtually("asyncio", main)


@pytest.mark.anyio
async def test_capacity_is_shared_by_workflows():
    """Two workflows whose steps name one limiter have so many invocations at a time, together."""
    limiter = anyio.CapacityLimiter(2)
    inside = []
    most = []

    async def function(ctx, number):
        inside.append(number)
        most.append(len(inside))
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        inside.remove(number)

    one, two = (fanning(function, 10, limiter=limiter, num_workers=10) for _ in range(2))
    async with one.run() as first, two.run() as second:
        assert await first == await second == list(range(10))

    assert max(most) == 2
    assert limiter.borrowed_tokens == 0


def test_capacity_limiter_of_trio():
    """Trio's own limiter serves as well; a cancelled step gives its place back."""
    limiter = trio.CapacityLimiter(1)

    async def function(ctx, number):
        await trio.sleep(10)

    async def main():
        workflow = fanning(function, 3, limiter=limiter)
        assert await workflow.run() == [0, 1, 2]
        assert trio.current_time() - began == 30
        with trio.move_on_after(5):
            await workflow.run()
        assert limiter.borrowed_tokens == 0

    async def start():
        nonlocal began
        began = trio.current_time()
        await main()

    began = 0.0
    run_virtually("trio", start)


@on_each_backend
def test_rate_is_shared_by_workflows(backend):
    """Invocations of both begin at the rate of the limiter."""
    limiter = RateLimiter(1, per=10)
    begun = []

    async def function(ctx, number):
        begun.append(anyio.current_time() - began[0])

    began = []

    async def main():
        began[:] = [anyio.current_time()]
        one, two = (fanning(function, 2, limiter=limiter) for _ in range(2))
        async with one.run() as first, two.run() as second:
            await first
            await second

    run_virtually(backend, main)
    assert begun == pytest.approx([0, 10, 20, 30])


@on_each_backend
def test_waiting_for_a_limiter_is_no_time_of_the_step(backend):
    """The timeouts of a step begin when it does."""
    limiter = anyio.CapacityLimiter(1)

    async def function(ctx, number):
        await anyio.sleep(4)

    async def main():
        workflow = fanning(function, 3, limiter=limiter, timeout=5, idle_timeout=5)
        assert await workflow.run() == [0, 1, 2]

    run_virtually(backend, main)


@on_each_backend
def test_delayed_attempt_holds_no_limiter(backend):
    """Between two attempts others may enter."""
    limiter = anyio.CapacityLimiter(1)
    log = []

    async def function(ctx, number):
        log.append(number)
        if number == 0 and ctx.step.attempt == 1:
            raise Mine

    async def main():
        workflow = fanning(function, 2, limiter=limiter, retry=Retry(wait=100), num_workers=1)
        assert await workflow.run() == [0, 1]

    run_virtually(backend, main)
    assert log == [0, 1, 0]


@pytest.mark.anyio
async def test_limiter_is_entered_around_a_synchronous_step():
    """A plain ``def`` is limited in the same way."""
    limiter = anyio.CapacityLimiter(1)
    borrowed = []

    class Threaded(Workflow):
        @step(limiter=limiter)
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            borrowed.append(ctx.from_thread.run_sync(lambda: limiter.borrowed_tokens))
            return StopEvent()

    await Threaded().run()

    assert borrowed == [1]
    assert limiter.borrowed_tokens == 0


@pytest.mark.anyio
async def test_step_and_step_of_its_child_may_share_a_limiter():
    """Each invocation counts for one, whatever task runs it."""
    limiter = anyio.CapacityLimiter(2)

    class Inner(Workflow):
        @step(limiter=limiter)
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=limiter.borrowed_tokens)

    class Outer(Workflow):
        @step(limiter=limiter)
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.run_child(Inner()))

    assert await Outer().run() == 2
    assert limiter.borrowed_tokens == 0


@pytest.mark.anyio
async def test_limiter_that_fails_fails_the_step():
    """An error of the limiter is the step's: it is tried again."""

    class Moody:
        entered = 0

        async def __aenter__(self):
            self.entered += 1
            if self.entered < 3:
                raise Mine

        async def __aexit__(self, *_):
            pass

    async def function(ctx):
        return ctx.step.attempt

    assert await stepping(function, limiter=Moody(), retry=Retry(stop=3))().run() == 3


@pytest.mark.parametrize("limiter", [RateLimiter, anyio.CapacityLimiter, object()])
def test_limiter_is_an_object_that_can_be_entered(limiter):
    """A class, or what is no async context manager, is refused where it is written."""
    with pytest.raises(WorkflowValidationError, match="expected an async context manager like"):
        step(limiter=limiter)(run_virtually)


@pytest.mark.anyio
@pytest.mark.peer("row 19")
async def test_run_that_waits_for_its_turn_is_cancelled_at_once():
    """A run in the line of ``num_concurrent_runs`` ends like any other, and never begins."""
    begun: list[int] = []

    async def stay(ctx):
        begun.append(1)
        await anyio.sleep_forever()

    workflow = Single(stay, num_concurrent_runs=1)
    with nothing_left():
        async with anyio.create_task_group() as group:
            first = workflow.run().start_soon(group, keep_failure=True)
            await wait_until_idle()
            second = workflow.run().start_soon(group, keep_failure=True)
            await wait_until_idle()
            await second.cancel("no longer needed")

            assert second.status == "cancelled"
            assert begun == [1]
            with pytest.raises(WorkflowCancelledError, match="no longer needed"):
                await second
            assert first.status == "running"
            await first.cancel()


@on_each_backend
@pytest.mark.peer("note 3.3")
def test_time_in_the_line_is_not_the_run_s(backend):
    """A timeout counts from the moment at which the run's turn has come."""

    async def work(ctx):
        await anyio.sleep(3)

    async def main():
        workflow = Single(work, timeout=4, num_concurrent_runs=1)
        async with anyio.create_task_group() as group:
            handlers = [workflow.run().start_soon(group) for _ in range(4)]
        assert [handler.status for handler in handlers] == ["completed"] * 4

    run_virtually(backend, main)


@pytest.mark.anyio
@pytest.mark.peer("note 1.2")
async def test_workers_can_be_counted_across_runs():
    """``limiter`` bounds a step over all runs that share it."""
    inside = most = 0
    limiter = anyio.CapacityLimiter(2)

    class Bounded(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step(limiter=limiter)
        async def work(self, ev: Item) -> Done:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await wait_until_idle(3)
            inside -= 1
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    workflow = Bounded()
    async with anyio.create_task_group() as group:
        handlers = [workflow.run().start_soon(group) for _ in range(3)]

    assert [handler.result() for handler in handlers] == [3, 3, 3]
    assert most == 2


@pytest.mark.anyio
async def test_a_limiter_that_swallows_exceptions_ends_the_step_without_an_event():
    """It is the limiter's own doing; nothing hangs."""

    class Swallowing:
        async def __aenter__(self):
            pass

        async def __aexit__(self, *_):
            return True

    class Limited(Workflow):
        @step(limiter=Swallowing())
        async def only(self, ev: StartEvent) -> StopEvent | None:
            raise ValueError

    with anyio.fail_after(5), pytest.raises(WorkflowStalledError):
        await Limited().run()
