"""P14 to P18: workers, isolation, cost, interrupts, and workflows as definitions."""

from __future__ import annotations

import asyncio
import dis
import gc
import signal
import sys
import weakref
from contextvars import ContextVar

import anyio
import anyio.to_thread
import pytest
import trio

from sluicegate import (
    Context,
    Observer,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowError,
    step,
    workflow_scope,
)
from tests.helpers import (
    Catch,
    Done,
    Fan,
    Item,
    Mine,
    Note,
    Single,
    is_trio,
    nothing_left,
    on_each_backend,
    run_virtually,
    task_names,
    wait_until_idle,
)


# -- P14 ------------------------------------------------------------------------------------------


def limited(workers):
    """Make a workflow whose middle step has that many workers, fed from two sides."""

    class Limited(Workflow):
        def __init__(self):
            super().__init__()
            self.busy = 0
            self.most = 0
            self.order = []

        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> list[Note] | Item:
            for n in range(20):
                ctx.send_event(Item(number=n))
            return [Note(number=n) for n in range(20, 40)]

        @step(num_workers=7)
        async def pass_on(self, ev: Note) -> Item:
            return Item(number=ev.number)

        @step(num_workers=workers)
        async def work(self, ctx: Context, ev: Item) -> Done:
            self.busy += 1
            self.most = max(self.most, self.busy)
            self.order.append(ev.number)
            await wait_until_idle(ev.number % 4)
            self.busy -= 1
            return Done(number=ev.number)

        @step
        async def count(self, ctx: Context, ev: Done) -> StopEvent | None:
            got = ctx.collect_events(ev, [Done] * 40)
            return None if got is None else StopEvent(result=len(got))

    return Limited()


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 2, 3, 16])
async def test_no_more_than_num_workers_invocations_at_a_time(workers):
    """P14: never more, whichever way the events come, and no fewer where there is work."""
    workflow = limited(workers)
    assert await workflow.run() == 40

    assert workflow.most == workers
    assert sorted(workflow.order) == list(range(40))
    # The others are handed over one by one, as they are made.
    check_order([n for n in workflow.order if n < 20], workers)


def check_order(order, workers):
    """Check that no event began while as many older ones as there are workers still waited."""
    for position, number in enumerate(order):
        overtaken = set(range(number)).difference(order[:position])
        assert len(overtaken) < workers, order


@pytest.mark.anyio
async def test_the_limit_is_each_runs_own():
    """P14: two runs of one workflow with one worker each work at the same time."""
    inside = 0
    both = anyio.Event()

    class One(Workflow):
        @step(num_workers=1)
        async def only(self, ev: StartEvent) -> StopEvent:
            nonlocal inside
            inside += 1
            if inside == 2:
                both.set()
            await both.wait()
            return StopEvent()

    workflow = One()
    async with anyio.create_task_group() as group:
        for _ in range(2):
            workflow.run().start_soon(group)

    assert inside == 2


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 3])
async def test_no_more_events_are_taken_than_there_are_workers(workers):
    """P14: with all workers busy, the rest has not begun, and begins in order."""
    began = []
    go = anyio.Event()

    class Queue(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(30)]

        @step(num_workers=workers)
        async def work(self, ev: Item) -> Done:
            began.append(ev.number)
            await go.wait()
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    async with Queue().run() as handler:
        await wait_until_idle(50)
        assert sorted(began) == list(range(workers))
        go.set()
        assert await handler == 30

    check_order(began, workers)


@pytest.mark.anyio
async def test_hand_over_respects_a_step_that_is_busy():
    """P14: a chain that comes to a step at its limit waits behind what waits there."""
    order = []
    busy = 0

    class Meet(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Note]:
            return [Note(number=n) for n in range(10)]

        @step(num_workers=10)
        async def fast(self, ev: Note) -> Item:
            return Item(number=ev.number)

        @step(num_workers=1)
        async def slow(self, ev: Item) -> Done:
            nonlocal busy
            busy += 1
            assert busy == 1
            await anyio.lowlevel.checkpoint()
            order.append(ev.number)
            busy -= 1
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    await Meet().run()

    assert sorted(order) == list(range(10))


# -- P15 ------------------------------------------------------------------------------------------


variable: ContextVar[str] = ContextVar("variable", default="unset")


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["in place", "block", "nursery", "scope"])
async def test_each_invocation_has_its_own_copy_of_the_runs_context(form):
    """P15: a step sees what was set before the run, and nothing that another step set."""
    seen = []

    class Leaky(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            self.look("begin")
            await anyio.lowlevel.checkpoint()
            self.look_again("begin")
            return Item(number=1)

        @step
        async def next(self, ev: Item) -> list[Note]:
            self.look("next")
            return [Note(number=1), Note(number=2)]

        @step
        async def side(self, ev: Note) -> Done:
            self.look(f"side {ev.number}")
            await wait_until_idle(3)
            self.look_again(f"side {ev.number}")
            return Done(number=1)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            self.look("end")
            return StopEvent()

        def look(self, name):
            seen.append(variable.get())
            variable.set(name)

        def look_again(self, name):
            assert variable.get() == name

    token = variable.set("outside")
    handler = Leaky().run()
    if form == "in place":
        await handler
    elif form == "block":
        async with handler:
            await handler
    elif form == "scope":
        async with workflow_scope():
            await handler
    else:
        async with anyio.create_task_group() as group:
            handler.start_soon(group)
    assert variable.get() == "outside"
    variable.reset(token)

    assert seen == ["outside"] * 5


@pytest.mark.anyio
async def test_tasks_and_threads_of_a_step_have_its_context():
    """P15: what a step sets is seen by what it starts, and by nothing else."""
    seen = []

    async def child():
        seen.append(variable.get())
        variable.set("of the child")

    async def work(ctx, number):
        variable.set(str(number))
        async with anyio.create_task_group() as group:
            group.start_soon(child)
        seen.append(await anyio.to_thread.run_sync(variable.get))
        assert variable.get() == str(number)

    await Fan(work).run()

    assert sorted(seen) == ["0", "0", "1", "1", "2", "2"]
    assert variable.get() == "unset"


@pytest.mark.anyio
async def test_step_cancels_itself_without_touching_another():
    """P15: a scope or a timeout within one invocation is its own affair."""
    ends = []

    async def work(ctx, number):
        with anyio.move_on_after(0.02 if number == 1 else 10) as scope:
            if number == 1:
                await anyio.sleep_forever()
            while not ends:
                await anyio.lowlevel.checkpoint()
        ends.append((number, scope.cancelled_caught))

    assert await Fan(work).run() == [0, 1, 2]
    assert sorted(ends) == [(0, False), (1, True), (2, False)]


@on_each_backend
def test_timeout_of_a_step_is_for_one_invocation_of_it(backend):
    """P15: each invocation has its own time; of several only the late one is timed out."""

    class Timed(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in (4, 1, 3, 2)]

        @step(timeout=5, num_workers=2)
        async def work(self, ev: Item) -> Done:
            await anyio.sleep(ev.number)
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=[ev.number for ev in evs])

    async def main():
        # Two at a time, ten seconds of work in all: no less than five, and none is late.
        assert sorted(await Timed().run()) == [1, 2, 3, 4]
        assert anyio.current_time() >= 5

    run_virtually(backend, main)


@on_each_backend
def test_step_that_times_out_is_cancelled_alone_and_fails_its_run(backend):
    """P15: the others see the failure of the run, not the timeout of their sibling."""
    seen = []

    class Timed(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item | Note]:
            return [Item(number=1), Note(number=2)]

        @step(timeout=5)
        async def late(self, ev: Item) -> StopEvent:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(2)
                seen.append(("late", anyio.current_time()))
            raise AssertionError

        @step
        async def other(self, ev: Note) -> StopEvent:
            try:
                await anyio.sleep_forever()
            finally:
                seen.append(("other", anyio.current_time()))
            raise AssertionError

    async def main():
        with nothing_left(), pytest.raises(StepTimeoutError):
            await Timed().run()

        assert [name for name, _ in seen] == ["late", "other"]
        assert [when for _, when in seen] == pytest.approx([7, 7])

    run_virtually(backend, main)


class Named(Workflow):
    def __init__(self, look):
        super().__init__()
        self.look = look

    @step
    async def begin(self, ev: StartEvent) -> Note:
        await self.look("begin")
        return Note(number=1)

    @step
    async def second(self, ev: Note) -> list[Item]:
        await self.look("second")
        return [Item(number=n) for n in range(3)]

    @step
    async def work(self, ev: Item) -> Done:
        await self.look("work")
        return Done(number=ev.number)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        await self.look("end")
        return StopEvent()


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["in place", "block", "nursery", "scope"])
async def test_step_shows_under_its_own_name_in_the_task_tree(form):
    """P15: while it runs, one task has the name of each invocation; afterwards none has."""
    working = 0
    all_here = anyio.Event()

    async def look(name):
        nonlocal working
        if name == "work":
            working += 1
            if working == 3:
                all_here.set()
            await all_here.wait()
        await anyio.lowlevel.checkpoint()
        mine = trio.lowlevel.current_task().name if is_trio() else asyncio.current_task().get_name()
        assert mine == f"Named.{name}"
        if name != "work":
            assert task_names().count(f"Named.{name}") == 1
        elif working == 3:
            working = 0
            assert task_names().count("Named.work") >= 1

    before = task_names()
    handler = Named(look).run()
    if form == "in place":
        await handler
    elif form == "block":
        async with handler:
            await handler
    elif form == "scope":
        async with workflow_scope():
            await handler
    else:
        async with anyio.create_task_group() as group:
            handler.start_soon(group)

    assert task_names() == before


@pytest.mark.anyio
async def test_three_invocations_show_under_three_names():
    """P15: the tree tells of each invocation in flight, in the task of whoever awaits as well."""
    workflow = Fan(lambda ctx, n: anyio.sleep_forever())
    async with anyio.create_task_group() as group:
        group.start_soon(await_it, workflow.run())
        while len(workflow.running) < 3:
            await anyio.lowlevel.checkpoint()
        assert task_names().count("Fan.work") == 3
        group.cancel_scope.cancel()

    assert task_names().count("Fan.work") == 0


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["failed", "cancelled"])
async def test_task_has_its_name_back_however_the_run_ends(ending):
    """P15: the task that ran the run in place is called as before."""

    async def work(ctx):
        if ending == "failed":
            raise Mine
        await anyio.sleep_forever()

    before = task_names()
    with Catch(), anyio.move_on_after(0.002):
        await Single(work).run()

    assert task_names() == before


async def await_it(handler):
    await handler


# -- P16 ------------------------------------------------------------------------------------------


class Chain(Workflow):
    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length
        self.alive = weakref.WeakSet()
        self.most = 0

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(number=0)

    @step
    async def go(self, ev: Item) -> Item | StopEvent:
        self.alive.add(ev)
        self.most = max(self.most, len(self.alive))
        return StopEvent() if ev.number == self.length else Item(number=ev.number + 1)


class Drain(Workflow):
    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length
        self.alive = weakref.WeakSet()
        self.handled = 0
        self.kept = 0

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item:
        for n in range(self.length - 1):
            self.send(ctx, n)
        last = Item(number=self.length - 1)
        self.alive.add(last)
        return last

    def send(self, ctx, n):
        event = Item(number=n)
        self.alive.add(event)
        ctx.send_event(event)

    @step(num_workers=2)
    async def work(self, ev: Item) -> StopEvent | None:
        self.handled += 1
        self.kept = max(self.kept, len(self.alive) - (self.length - self.handled))
        return StopEvent() if self.handled == self.length else None


class Writes(Workflow):
    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(self.length):
            ctx.write_event_to_stream(Note(number=n))
        return StopEvent()


class Collects(Workflow):
    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(self.length):
            ctx.send_event(Item(number=n))

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
        got = ctx.collect_events(ev, self.expected())
        return None if got is None else StopEvent(result=len(got))

    def expected(self):
        # A sequence that costs nothing to make, however long it is.
        if not hasattr(self, "_expected"):
            self._expected = [Item] * self.length
        return self._expected


def fan(length, **options):
    async def work(ctx, number):
        pass

    return Fan(work, length, **options)


def calls_of(make, length):
    """Count the calls that a run makes, of Python functions and of built-in ones."""
    count = 0

    def profile(_frame, kind, _what):
        nonlocal count
        count += kind in ("call", "c_call")

    async def main():
        workflow = make(length)
        sys.setprofile(profile)
        try:
            async with workflow.run() as handler:
                async for _ in handler.stream_events():
                    pass
        finally:
            sys.setprofile(None)

    trio.run(main)
    return count


@pytest.mark.parametrize("make", [Chain, Drain, Writes, Collects, fan])
def test_cost_is_linear(make):
    """P16: twice the events cost twice the calls; four times would be quadratic."""
    for _ in range(3):  # where the budget of P3 falls is a matter of chance
        one, two, four = (calls_of(make, n) for n in (200, 400, 800))
        growth = (four - two) / (two - one)
        if growth < 2.6:
            break

    assert growth < 2.6


@pytest.mark.anyio
async def test_nothing_is_kept_of_an_event_that_was_handled():
    """P16: of a chain of five thousand events no more than a handful is ever alive."""
    workflow = Chain(5_000)
    await workflow.run()

    assert workflow.most <= 4
    gc.collect()
    assert len(workflow.alive) == 0


@pytest.mark.anyio
async def test_pending_events_go_as_they_are_handled():
    """P16: what is alive is what is pending, and a handful."""
    workflow = Drain(2_000)
    await workflow.run()

    assert workflow.kept <= 6


@pytest.mark.anyio
async def test_nothing_is_kept_of_a_run_that_is_over():
    """P16: a handler that is kept keeps the outcome and the history, not the events."""
    handlers = []
    for _ in range(3):
        workflow = Drain(100)
        handlers.append(workflow.run())
        await handlers[-1]
        gc.collect()
        assert len(workflow.alive) == 0


@pytest.mark.anyio
async def test_run_leaves_no_cyclic_garbage():
    """P16: a run that was dropped is freed without the collector."""

    class Kept:
        pass

    thing = Kept()
    seen = weakref.ref(thing)

    async def work(ctx, thing=thing):
        return None

    workflow = Single(work)
    gc.collect()
    gc.disable()
    try:
        await workflow.run(payload=thing)
        del thing, work, workflow
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.anyio
async def test_nothing_internal_is_built_unless_somebody_asks():
    """P16: no journal: without observers and internal readers only what was published is kept."""
    handler = Chain(50).run()
    await handler

    assert [type(e) async for e in handler.stream_events(expose_internal=True)] == [StopEvent]


# -- P17 ------------------------------------------------------------------------------------------


class Interrupted(Workflow):
    """Every kind of work that the engine does, with a count of steps begun and ended."""

    def __init__(self, **options):
        super().__init__(**options)
        self.begun = 0
        self.ended = 0

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item] | Note:
        self.begun += 1
        try:
            ctx.send_event(Note(number=1))
            ctx.write_event_to_stream(Note(number=2))
            await anyio.lowlevel.checkpoint()
            return [Item(number=n) for n in range(3)]
        finally:
            self.ended += 1

    @step(num_workers=2, timeout=100)
    async def work(self, ctx: Context, ev: Item) -> Done:
        self.begun += 1
        try:
            await ctx.stream.send(Note(number=3))
            await anyio.lowlevel.checkpoint()
            return Done(number=ev.number)
        finally:
            self.ended += 1

    @step
    async def side(self, ev: Note) -> None:
        self.begun += 1
        self.ended += 1

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        self.begun += 1
        self.ended += 1
        return StopEvent(result=len(evs))


class Interrupter:
    """Sends SIGINT at the n-th call of a Python function, where Python looks for signals.

    It does so when a function begins, and not when a coroutine goes on after an ``await``.
    """

    RESUME = dis.opmap["RESUME"]

    def __init__(self, at):
        self.at = at
        self.count = 0

    def __call__(self, frame, kind, _what):
        if kind == "call" and self.looks_for_signals(frame):
            self.count += 1
            if self.count == self.at:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    def looks_for_signals(self, frame):
        code = frame.f_code.co_code
        at = frame.f_lasti
        return code[at] == self.RESUME and code[at + 1] & 3 < 2


def interrupt_at(at, form):
    """Run with SIGINT at the n-th call; return how many there were, or None if it came."""
    interrupter = Interrupter(at)
    workflow = Interrupted()
    handlers = []

    async def main():
        handler = workflow.run()
        handlers.append(handler)
        sys.setprofile(interrupter)
        try:
            if form == "in place":
                await handler
            elif form == "block":
                async with handler:
                    async for _ in handler.stream_events():
                        pass
                    await handler
            elif form == "scope":
                async with workflow_scope():
                    async for _ in handler.stream_events():
                        pass
                    await handler
            else:
                async with trio.open_nursery() as nursery:
                    handler.start_soon(nursery)
                    await handler
        finally:
            sys.setprofile(None)

    with Catch() as left:
        trio.run(main)
    if interrupter.count < at:
        assert left.error is None
        return interrupter.count
    (handler,) = handlers
    if handler.status == "unstarted":
        handler.cancel()
    error = left.error if form != "nursery" else left.one
    assert type(error) is KeyboardInterrupt, (at, left.error)
    assert workflow.begun == workflow.ended, at
    assert handler.is_done(), at
    # And the run can be looked at: it has ended in one way, and its stream with it.
    trio.run(check_ended, handler)
    return None


async def check_ended(handler):
    events = [event async for event in handler.stream_events()]
    assert [isinstance(e, StopEvent) for e in events] == [False] * (len(events) - 1) + [True]
    assert handler.status in ("completed", "cancelled", "failed")
    if handler.status == "completed":
        assert handler.result() == 3
    else:
        with pytest.raises((KeyboardInterrupt, WorkflowError)):
            handler.result()


@pytest.mark.parametrize("form", ["in place", "block", "scope", "nursery"])
def test_interrupt_at_any_call_unwinds_the_run(form):
    """P17: SIGINT at some two hundred places of a run; the books are right at each of them."""
    interrupt_at(10**9, form)  # what is done once only is left to the first run
    total = interrupt_at(10**9, form)
    assert total > 100
    stride = max(1, total // 200)
    came = 0
    for at in range(1, total, stride):
        came += interrupt_at(at, form) is None
    assert came > 90


@pytest.mark.parametrize("form", ["in place", "block", "scope"])
@pytest.mark.parametrize("which", [0, 2], ids=["host", "spawned"])
def test_interrupt_in_a_step_unwinds_the_run_like_a_cancellation_on_trio(form, which):
    """P17: KeyboardInterrupt leaves bare, and all clean-up has run."""
    cleaned = []

    async def work(ctx, number):
        try:
            await wait_until_idle(3)
            if number == which:
                signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_until_idle(3)
            cleaned.append(number)

    handler = Fan(work).run()

    async def main():
        with nothing_left():
            await own(form, handler)

    with Catch() as left:
        trio.run(main)

    assert type(left.error) is KeyboardInterrupt
    assert sorted(cleaned) == [0, 1, 2]
    assert handler.is_done()


@pytest.mark.parametrize("form", ["in place", "block", "scope"])
@pytest.mark.parametrize("which", [0, 2], ids=["host", "spawned"])
def test_interrupt_in_a_step_unwinds_the_run_like_a_cancellation_on_asyncio(form, which):
    """P17: ``asyncio.run`` cancels its main task; the run unwinds, KeyboardInterrupt leaves."""
    cleaned = []

    async def work(ctx, number):
        try:
            await wait_until_idle(3)
            if number == which:
                signal.raise_signal(signal.SIGINT)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await wait_until_idle(3)
            cleaned.append(number)

    handler = Fan(work).run()

    async def main():
        with nothing_left():
            await own(form, handler)

    with Catch() as left:
        asyncio.run(main())

    assert type(left.error) is KeyboardInterrupt
    assert sorted(cleaned) == [0, 1, 2]
    assert handler.status == "cancelled"


async def own(form, handler):
    if form == "in place":
        await handler
    elif form == "block":
        async with handler:
            await handler
    else:
        async with workflow_scope():
            async for _ in handler.stream_events():
                pass
            await handler


class Signals(Observer):
    """An observer that sends SIGINT at its n-th call: in the middle of the engine's books."""

    def __init__(self, at):
        self.at = at
        self.count = 0

    def _called(self):
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(signal.SIGINT)

    def run_started(self, run_id, workflow, event):
        self._called()

    def step_started(self, run_id, step, invocation, event):
        self._called()

    def step_ended(self, run_id, step, invocation, result, error):
        self._called()

    def event_published(self, run_id, event):
        self._called()

    def run_ended(self, run_id, status, error):
        self._called()


def test_the_engines_own_code_is_not_interrupted():
    """P17: a signal that comes while the engine keeps its books waits for the next checkpoint."""
    calls = Signals(0)
    trio.run(own, "in place", Interrupted(observers=[calls]).run())
    assert calls.count > 15
    for at in range(1, calls.count + 1):
        workflow = Interrupted(observers=[Signals(at)])
        handler = workflow.run()
        with Catch() as left:
            trio.run(own, "in place", handler)

        assert type(left.error) is KeyboardInterrupt, at
        assert workflow.begun == workflow.ended
        assert handler.is_done()
        trio.run(check_ended, handler)


# -- P18 ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_one_workflow_object_runs_any_number_of_times_at_once():
    """P18: two hundred runs of one object do not see each other."""

    class Shared(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=ev.base + n) for n in range(3)]

        @step
        async def work(self, ctx: Context, ev: Item) -> Done:
            await wait_until_idle(ev.number % 3)
            ctx.write_event_to_stream(Note(number=ev.number))
            return Done(number=ev.number)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.number for ev in evs))

    workflow = Shared()
    before = dict(vars(workflow))
    async with anyio.create_task_group() as group:
        handlers = [workflow.run(base=10 * n).start_soon(group) for n in range(200)]

    for n, handler in enumerate(handlers):
        expected = [10 * n, 10 * n + 1, 10 * n + 2]
        assert handler.result() == expected
        notes = [e.number async for e in handler.stream_events() if isinstance(e, Note)]
        assert sorted(notes) == expected
    assert len({handler.run_id for handler in handlers}) == 200
    assert vars(workflow) == before


@pytest.mark.anyio
async def test_step_table_and_options_are_fixed_when_it_is_built():
    """P18: what is put on the object or the class afterwards changes no run of it."""

    class Fixed(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="as built")

    async def other(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="changed")

    workflow = Fixed(timeout=50)
    workflow.timeout = 0.000001
    workflow.stream_history = 1
    workflow.only = None
    Fixed.only = step(other)
    Fixed.more = step(other)

    assert await workflow.run() == "as built"


@pytest.mark.anyio
async def test_what_users_put_on_self_is_theirs():
    """P18: names that an engine might want are free for users, who find what they put there."""
    names = ["graph", "run_id", "timeout", "steps", "handler", "log", "observer", "_graph", "name"]

    class Stateful(Workflow):
        def __init__(self):
            super().__init__()
            for name in names:
                setattr(self, name, f"my {name}")

        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            self.seen = [getattr(self, name) for name in names]
            return StopEvent()

    workflow = Stateful()
    await workflow.run()
    await workflow.run()

    assert workflow.seen == [f"my {name}" for name in names]


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["unused", "completed", "failed", "cancelled"])
async def test_workflow_is_collected_when_it_is_dropped(ending):
    """P18: neither the object nor its class is kept by the library."""

    def make():
        class Dropped(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                if ending == "failed":
                    raise Mine
                if ending == "cancelled":
                    await anyio.sleep_forever()
                return StopEvent()

        return Dropped

    kind = make()
    workflow = kind()
    if ending != "unused":
        with Catch(), anyio.move_on_after(0.002):
            await workflow.run()
    refs = [weakref.ref(kind), weakref.ref(workflow)]
    del kind, workflow
    # asyncio keeps the last cancellation, and so its traceback, until its next turn.
    await wait_until_idle(3)
    gc.collect()

    assert [ref() for ref in refs] == [None, None]


@pytest.mark.anyio
async def test_workflow_may_be_dropped_while_it_runs():
    """P18: a run keeps what it needs."""
    go = anyio.Event()

    async def work(ctx):
        await go.wait()
        return "result"

    async with Single(work).run() as handler:
        await wait_until_idle(3)
        gc.collect()
        go.set()
        assert await handler == "result"


def test_subclass_has_a_step_table_of_its_own():
    """P18: building a subclass does not change what its base does."""

    class Base(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="base")

    base = Base()

    class Derived(Base):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="derived")

    derived = Derived()

    async def main():
        return await base.run(), await derived.run()

    assert trio.run(main) == ("base", "derived")
