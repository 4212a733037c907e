"""``ctx.once``: a result that is kept is not made again, whatever happens to the step."""

from __future__ import annotations

import functools
import json
import threading

import anyio
import attrs
import pytest

from sluicegate import (
    Context,
    Event,
    RestoredError,
    Retry,
    SnapshotError,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    step,
)
from tests.helpers import (
    BACKENDS,
    Catch,
    cancelled_class,
    leaves_of,
    limit,
    nothing_left,
    on_each_backend,
    run_virtually,
    through_json,
    wait_until_idle,
)


class Single(Workflow):
    """``await function(ctx)`` in its one step."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    @step(retry=Retry(stop=3, wait=0))
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.function(ctx))


class Charge:
    """An effect that counts how often it is made; ``fails`` says with what, call by call."""

    def __init__(self, *fails):
        self.calls = []
        self.fails = list(fails)

    async def __call__(self, *arguments):
        return self.in_thread(*arguments)

    def in_thread(self, *arguments):
        self.calls.append(arguments)
        failure = self.fails.pop(0) if self.fails else None
        if failure is not None:
            raise failure
        return {"receipt": len(self.calls), "of": arguments}


class DeclinedError(Exception):
    pass


# -- found again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["async", "thread", "partial"])
@on_each_backend
def test_a_retry_finds_the_result(backend, way):
    """D2: another attempt of the step gets the result, and the function is not called."""
    charge = Charge()
    function = {
        "async": charge,
        "thread": charge.in_thread,
        "partial": functools.partial(charge, "given"),
    }[way]
    seen = []

    async def pay(ctx):
        seen.append(await ctx.once("charge", function, 10))
        if len(seen) < 3:
            raise OSError("later")
        return seen[-1]

    expected = {"receipt": 1, "of": ("given", 10) if way == "partial" else (10,)}

    async def main():
        assert await Single(pay).run() == expected

    run_virtually(backend, main)

    assert seen == [expected] * 3
    assert len(charge.calls) == 1


@pytest.mark.parametrize("other", BACKENDS)
@on_each_backend
def test_a_resumed_run_finds_the_result(backend, other):
    """D2: a step that begins again in another process gets it, on either event loop."""
    charge = Charge()
    snapshots = []

    async def pay(ctx):
        receipt = await ctx.once("charge", charge, 10)
        if not snapshots:
            snapshots.append(json.dumps(ctx.to_dict()))
            raise SystemExit
        return receipt

    async def begin():
        with pytest.raises(SystemExit):
            await Single(pay).run()

    async def go_on():
        return await Single(pay).resume(json.loads(snapshots[0]))

    run_virtually(backend, begin)

    assert run_virtually(other, go_on) == {"receipt": 1, "of": (10,)}
    assert charge.calls == [(10,)]


@pytest.mark.anyio
async def test_the_snapshot_of_a_cancelled_run_has_the_results():
    """A run that was cancelled after the effect does not repeat it when it is resumed."""
    charge = Charge()

    async def pay(ctx):
        await ctx.once("charge", charge)
        await anyio.sleep_forever()

    async def paid(ctx):
        return await ctx.once("charge", charge)

    workflow = Single(pay)
    async with workflow.run() as handler:
        await wait_until_idle()
        handler.cancel()
    workflow.function = paid

    assert await workflow.resume(handler.snapshot()) == {"receipt": 1, "of": ()}
    assert len(charge.calls) == 1


@on_each_backend
def test_a_result_survives_several_lives_and_attempts(backend):
    """A result that no attempt has asked for yet stays for those to come."""
    charge = Charge()
    lives = []

    async def pay(ctx):
        lives.append(len(lives))
        if len(lives) in (1, 4):
            await ctx.once("charge", charge)
        if len(lives) in (1, 3):
            raise OSError("another attempt")
        if len(lives) == 2:
            await anyio.sleep(10)
        return await ctx.once("charge", charge)

    async def main():
        workflow = Single(pay)
        async with workflow.run() as handler:
            await anyio.sleep(5)
            snapshot = handler.snapshot()
            handler.cancel()
        return await workflow.resume(snapshot)

    assert run_virtually(backend, main) == {"receipt": 1, "of": ()}
    assert len(lives) == 4
    assert len(charge.calls) == 1


class Order(Event):
    number: int


class Shipped(Event):
    number: int


class Orders(Workflow):
    """Each order has its own result under the same key."""

    def __init__(self, charge):
        super().__init__()
        self.charge = charge

    @step
    async def begin(self, ev: StartEvent) -> list[Order]:
        return [Order(number=n) for n in range(3)]

    @step
    async def ship(self, ctx: Context, ev: Order) -> Shipped:
        await ctx.once("charge", self.charge, ev.number)
        return Shipped(number=(await ctx.once("charge", self.charge, -1))["of"][0])

    @step
    async def end(self, evs: list[Shipped]) -> StopEvent:
        return StopEvent(result=sorted(ev.number for ev in evs))


@pytest.mark.anyio
async def test_the_scope_of_a_key_is_the_delivery():
    """Other deliveries of the step have results of their own; a second call has the first's."""
    charge = Charge()

    assert await Orders(charge).run() == [0, 1, 2]
    assert sorted(charge.calls) == [(0,), (1,), (2,)]


@attrs.define
class Receipt:
    lines: list[str]


@pytest.mark.anyio
async def test_everybody_gets_a_copy_as_a_snapshot_keeps_it():
    """What one caller does to the result, no other sees; types are those of a snapshot."""
    made = Receipt(["paid"])

    async def charge():
        return made

    async def pay(ctx):
        first = await ctx.once("charge", charge)
        first.lines.append("changed")
        second = await ctx.once("charge", charge)

        assert first is not made
        assert second == Receipt(["paid"]) == made
        return 1

    assert await Single(pay, serializable=[Receipt]).run() == 1


# -- several tasks ----------------------------------------------------------------------------------


@on_each_backend
def test_a_second_task_waits_for_the_first(backend):
    """Two tasks of a step with one key: one calls, the other waits and gets the same result."""
    charge = Charge()

    async def slow(number):
        await anyio.sleep(1)
        return await charge(number)

    async def pay(ctx):
        results = []

        async def one(number):
            results.append(await ctx.once("charge", slow, number))

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(one, number)
        return results

    async def main():
        began = anyio.current_time()
        results = await Single(pay).run()

        assert anyio.current_time() - began == 1
        assert results == [{"receipt": 1, "of": charge.calls[0]}] * 3

    run_virtually(backend, main)

    assert len(charge.calls) == 1


@on_each_backend
def test_a_waiting_task_takes_over_from_one_that_is_cancelled(backend):
    """Cancelled inside the function nothing is kept, and the next one calls it."""
    charge = Charge()

    async def pay(ctx):
        results = []

        async def first():
            with anyio.move_on_after(1):
                await ctx.once("charge", anyio.sleep, 10)

        async def second():
            await anyio.sleep(0.5)
            results.append(await ctx.once("charge", charge, "second"))
            results.append(anyio.current_time())

        async with anyio.create_task_group() as group:
            began = anyio.current_time()
            group.start_soon(first)
            group.start_soon(second)
        return results[0]["of"], results[1] - began

    async def main():
        return await Single(pay).run()

    assert run_virtually(backend, main) == (("second",), 1)


@on_each_backend
def test_a_waiting_task_takes_over_from_one_that_fails(backend):
    """A failure that is not kept belongs to who called; the next one tries it itself."""
    charge = Charge(OSError("down"))

    async def slow():
        await anyio.sleep(1)
        return await charge()

    async def pay(ctx):
        results = []

        async def one():
            try:
                results.append(await ctx.once("charge", slow))
            except OSError as error:
                results.append(str(error))

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
        return results

    async def main():
        return await Single(pay).run()

    assert run_virtually(backend, main) == ["down", {"receipt": 2, "of": ()}]


@on_each_backend
def test_a_task_that_waits_can_be_cancelled(backend):
    """It leaves the one that calls alone."""
    charge = Charge()

    async def slow():
        await anyio.sleep(2)
        return await charge()

    async def pay(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(ctx.once, "charge", slow)
            await anyio.sleep(1)
            with anyio.move_on_after(0.5) as scope:
                await ctx.once("charge", charge, "never")

            assert scope.cancelled_caught
        return await ctx.once("charge", charge, "never")

    async def main():
        return await Single(pay).run()

    assert run_virtually(backend, main) == {"receipt": 1, "of": ()}


@pytest.mark.anyio
async def test_a_call_within_itself_is_refused():
    """It would wait for itself for ever."""

    async def pay(ctx):
        async def inner():
            return await ctx.once("charge", inner)

        return await ctx.once("charge", inner)

    with limit(), Catch() as caught:
        await Single(pay).run()

    assert str(caught.one) == (
        "once('charge') was called within the function of once('charge'), which would wait for "
        "itself; expected another key"
    )


# -- cancellation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(6))
@on_each_backend
def test_wherever_it_is_cancelled_the_effect_is_made_once_for_each_lost_call(backend, at):
    """Cancelled before the function returns it is called again; later, its result is found."""
    returned = []

    async def charge():
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        returned.append(len(returned))
        return "receipt"

    async def pay(ctx):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def strike():
                    for _ in range(at):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()

                group.start_soon(strike)
                await ctx.once("charge", charge)
        assert await ctx.once("charge", charge) == "receipt"
        return len(returned)

    async def main():
        with nothing_left():
            return await Single(pay).run()

    assert run_virtually(backend, main) == 1


@pytest.mark.anyio
async def test_a_cancelled_thread_is_waited_for_and_its_result_is_kept():
    """A ``def`` function is called in a thread; the effect that it had is not made again."""
    may_end = threading.Event()
    calls = []

    def charge():
        calls.append(threading.get_ident())
        may_end.wait(5)
        return "receipt"

    async def pay(ctx):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(ctx.once, "charge", charge)
                while not calls:
                    await anyio.sleep(0)
                scope.cancel()
                may_end.set()
        return await ctx.once("charge", charge)

    assert await Single(pay).run() == "receipt"
    assert calls != [threading.get_ident()]
    assert len(calls) == 1


@pytest.mark.anyio
async def test_a_cancellation_reaches_the_thread_at_its_next_call():
    """As in a ``def`` step: the context raises it, and nothing is kept."""
    begun = threading.Event()
    cancelled = threading.Event()
    seen = []

    async def pay(ctx):
        def charge():
            begun.set()
            cancelled.wait(5)
            try:
                ctx.from_thread.check_cancelled()
            except BaseException as error:
                seen.append(type(error))
                raise

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(ctx.once, "charge", charge)
                while not begun.is_set():
                    await anyio.sleep(0)
                scope.cancel()
                cancelled.set()
        return await ctx.once("charge", lambda: "again")

    assert await Single(pay).run() == "again"
    assert seen == [cancelled_class()]


class InThread(Workflow):
    """A step in a thread calls an async function, and a plain one."""

    def __init__(self, charge):
        super().__init__()
        self.charge = charge

    @step(retry=Retry(stop=2))
    def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        found = [
            ctx.from_thread.run(ctx.once, "loop", self.charge, 1),
            ctx.from_thread.run(ctx.once, "thread", self.charge.in_thread, 2),
        ]
        if ctx.step.attempt == 1:
            raise OSError("again")
        return StopEvent(result=[each["of"] for each in found])


@pytest.mark.anyio
async def test_a_def_step_calls_it_through_from_thread():
    """Both kinds of functions work there, and a retry finds their results."""
    charge = Charge()

    assert await InThread(charge).run() == [(1,), (2,)]
    assert charge.calls == [(1,), (2,)]


# -- failures ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_failure_is_not_kept_unless_that_is_asked_for():
    """The exception is raised as it is, and the next attempt calls again."""
    down = OSError("down")
    charge = Charge(down)
    seen = []

    async def pay(ctx):
        try:
            return await ctx.once("charge", charge)
        except OSError as error:
            seen.append(error)
            return await ctx.once("charge", charge)

    assert await Single(pay).run() == {"receipt": 2, "of": ()}
    assert seen == [down]


@pytest.mark.parametrize("kinds", [True, DeclinedError, (OSError, DeclinedError)])
@on_each_backend
def test_a_kept_failure_is_raised_to_everybody_in_the_same_form(backend, kinds):
    """Who catches it catches it after a crash too; the first one finds the exception as its cause."""
    declined = DeclinedError("no money")
    declined.add_note("card 3")
    charge = Charge(declined)
    seen = []

    async def pay(ctx):
        for _ in range(2):
            with Catch() as caught:
                await ctx.once("charge", charge, record_failures=kinds)
            seen.append(caught.one)
        if len(seen) < 4:
            raise OSError("another attempt")
        return len(charge.calls)

    async def main():
        return await Single(pay).run()

    assert run_virtually(backend, main) == 1
    assert [type(error) for error in seen] == [RestoredError] * 4
    assert [str(error) for error in seen] == ["DeclinedError: no money"] * 4
    assert [error.__notes__ for error in seen] == [["card 3"]] * 4
    assert [error.__cause__ for error in seen] == [declined, None, None, None]


@pytest.mark.anyio
async def test_only_the_named_failures_are_kept():
    """Another one is raised as it is, and the function is called again."""
    charge = Charge(OSError("down"))

    async def pay(ctx):
        with pytest.raises(OSError, match="down"):
            await ctx.once("charge", charge, record_failures=DeclinedError)
        return await ctx.once("charge", charge, record_failures=DeclinedError)

    assert await Single(pay).run() == {"receipt": 2, "of": ()}


@on_each_backend
def test_a_group_that_holds_a_cancellation_is_not_kept(backend):
    """Kept, it would swallow the cancellation."""
    calls = []

    async def charge():
        calls.append(len(calls))
        try:
            await anyio.sleep(10)
        except BaseException as error:
            raise BaseExceptionGroup("both", [error, DeclinedError("no money")]) from None

    async def pay(ctx):
        with Catch() as caught, anyio.move_on_after(1):
            await ctx.once("charge", charge, record_failures=True)
        # AnyIO before 4.16 leaves the cancellation in the group.
        assert DeclinedError in {type(leaf) for leaf in leaves_of(caught.error)}

        return await ctx.once("charge", lambda: "receipt")

    async def main():
        return await Single(pay).run()

    assert run_virtually(backend, main) == "receipt"
    assert calls == [0]


@pytest.mark.anyio
async def test_a_kept_failure_that_nobody_catches_fails_the_run_again():
    """A resumed run raises what was kept, and calls nothing."""
    charge = Charge(DeclinedError("no money"))

    async def pay(ctx):
        return await ctx.once("charge", charge, record_failures=True)

    class Once(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await pay(ctx))

    handler = Once().run()
    with pytest.raises(RestoredError, match="no money"):
        await handler
    with pytest.raises(RestoredError, match="no money"):
        await Once().resume(handler.snapshot())

    assert len(charge.calls) == 1


@pytest.mark.anyio
async def test_a_result_that_cannot_be_kept_says_where():
    """The message has the path, and nothing is kept."""
    calls = []

    async def connect():
        calls.append(1)
        return {"socket": object()} if len(calls) == 1 else "closed"

    async def pay(ctx):
        with pytest.raises(SnapshotError) as caught:
            await ctx.once("connect", connect)
        return str(caught.value).partition(";")[0], await ctx.once("connect", connect)

    assert await Single(pay).run() == (
        "the result of once('connect')['socket'] is a object, which cannot be kept",
        "closed",
    )


# -- refusals ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_is_no_call_is_refused():
    """Each message shows how it is called."""
    charge = Charge()
    messages = []

    async def pay(ctx):
        for arguments, options in (
            ((3, charge), {}),
            (("charge", charge()), {}),
            (("charge", charge), {"record_failures": BaseException}),
            (("charge", charge), {"record_failures": "OSError"}),
            (("charge", lambda: charge()), {}),
        ):
            with pytest.raises((TypeError, WorkflowRuntimeError)) as caught:
                await ctx.once(*arguments, **options)
            messages.append(str(caught.value))

    await Single(pay).run()

    assert messages[0] == (
        "once was given the key 3; expected a str: `ctx.once('charge', charge, 10)`"
    )
    assert messages[1].startswith("once('charge') was given <coroutine object Charge.__call__")
    assert messages[1].endswith(
        "expected a function, and its arguments behind it: `ctx.once('charge', fetch, url)`"
    )
    assert messages[2] == (
        "record_failures is <class 'BaseException'>; expected True, or the exceptions to keep: "
        "`record_failures=CardDeclined`, `record_failures=(CardDeclined, Fraud)`"
    )
    assert messages[3].startswith("record_failures is 'OSError'; expected")
    assert messages[4] == (
        "the function of once('charge') was called in a thread and returned an awaitable; expected "
        "an async function and its arguments: `ctx.once('charge', fetch, url)`"
    )
    assert charge.calls == []


@pytest.mark.anyio
async def test_outside_of_a_step_it_is_refused():
    """A result belongs to a delivery."""
    async with Single(Charge().in_thread).run() as handler:
        with pytest.raises(WorkflowRuntimeError, match="outside of a step"):
            await handler.ctx.once("charge", Charge())
        handler.cancel()


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"value": {"$": "Nobody", "v": {}}}, "once.charge"),
        ({"value": 1, "is_failure": True}, "once.charge"),
        ({"is_failure": True}, "once.charge"),
        (3, "once.charge"),
    ],
)
@pytest.mark.anyio
async def test_a_damaged_result_is_refused_before_the_run_begins(part, place):
    """The message names the place in the snapshot."""
    workflow = Single(lambda ctx: ctx.once("charge", anyio.sleep, 3600))
    async with workflow.run() as handler:
        await wait_until_idle()
        snapshot = handler.snapshot()
        handler.cancel()
    snapshot["run"]["steps"]["only"]["deliveries"][0]["once"] = {"charge": part}

    with pytest.raises(SnapshotError, match=place):
        workflow.resume(snapshot)


@attrs.define
class Versioned:
    text: str = ""


@pytest.mark.anyio
async def test_a_field_that_was_removed_can_be_dropped_from_a_result():
    """``drop_removed_fields`` applies to results as to events."""

    async def charge():
        return Versioned("paid")

    async def pay(ctx):
        await ctx.once("charge", charge)
        await anyio.sleep_forever()

    async def paid(ctx):
        return (await ctx.once("charge", charge)).text

    workflow = Single(pay, serializable=[Versioned])
    async with workflow.run() as handler:
        await wait_until_idle()
        snapshot = handler.snapshot()
        handler.cancel()
    kept = snapshot["run"]["steps"]["only"]["deliveries"][0]["once"]["charge"]["value"]
    kept["v"]["colour"] = "red"
    workflow.function = paid

    with pytest.raises(SnapshotError, match="colour"):
        workflow.resume(snapshot)
    assert await workflow.resume(snapshot, drop_removed_fields=True) == "paid"


# -- keys ---------------------------------------------------------------------------------------------


class Keyed(Workflow):
    """Its deliveries write down their keys; the third fails once, the first begins again."""

    def __init__(self):
        super().__init__()
        self.keys = []

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Order]:
        self.keys.append((-1, ctx.delivery_key, ctx.attempt_key))
        return [Order(number=0), Order(number=0), Order(number=2)]

    @step(retry=Retry(stop=3, wait=10), num_workers=1)
    async def work(self, ctx: Context, ev: Order) -> Shipped:
        self.keys.append((ev.number, ctx.delivery_key, ctx.attempt_key))
        await anyio.sleep(1)
        if ev.number == 2 and ctx.step.attempt == 1:
            raise OSError("another attempt")
        return Shipped(number=ev.number)

    @step
    async def end(self, evs: list[Shipped]) -> StopEvent:
        return StopEvent(result=len(evs))


@pytest.mark.parametrize("cut", [0.5, 2.5, 5])
@on_each_backend
def test_a_delivery_has_one_key_in_all_its_attempts(backend, cut):
    """D2: in retries and in resumed runs too; equal events have keys of their own."""
    workflow = Keyed()

    async def main():
        async with workflow.run(run_id="run") as handler:
            await anyio.sleep(cut)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        return await workflow.resume(snapshot)

    assert run_virtually(backend, main) == 3

    found = {}
    for number, key, attempt in workflow.keys:
        found.setdefault(key, []).append((number, attempt))

    assert sorted(found) == ["run/1", "run/2", "run/3", "run/4"]
    assert [{number for number, _ in found[key]} for key in sorted(found)] == [{-1}, {0}, {0}, {2}]
    assert {attempt for _, attempt in found["run/4"]} == {"run/4/1", "run/4/2"}
    assert {attempt for key in ("run/1", "run/2", "run/3") for _, attempt in found[key]} == {
        "run/1/1",
        "run/2/1",
        "run/3/1",
    }
    assert len(workflow.keys) == 5 + (cut < 4)  # the step in progress began again


class KeyedInThread(Workflow):
    @step
    def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=(ctx.delivery_key, ctx.attempt_key))


class KeyedInProcess(Workflow):
    @step(in_process=True)
    @staticmethod
    def only(ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=(ctx.delivery_key, ctx.attempt_key))


@pytest.mark.parametrize(
    "kind", [KeyedInThread, pytest.param(KeyedInProcess, marks=pytest.mark.slow)]
)
@pytest.mark.anyio
async def test_steps_in_threads_and_processes_have_their_keys(kind):
    """Their contexts say the same."""
    assert await kind().run(run_id="run") == ("run/1", "run/1/1")


@pytest.mark.anyio
async def test_the_tasks_of_a_step_have_its_key():
    """It is asked for in any of them; an ended step has none any more."""
    contexts = []

    async def ask(ctx):
        keys = set()

        async def one():
            keys.add(ctx.delivery_key)

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
        contexts.append(ctx)
        return keys | {ctx.delivery_key}

    assert await Single(ask).run(run_id="run") == {"run/1"}
    with pytest.raises(WorkflowRuntimeError, match="has ended, so it cannot read its delivery_key"):
        contexts[0].delivery_key  # noqa: B018


class OnceInProcess(Workflow):
    @step(in_process=True)
    @staticmethod
    def only(ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            ctx.once("charge", len, "four").send(None)
        except WorkflowRuntimeError as error:
            return StopEvent(result=str(error))
        return StopEvent()


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_step_in_a_process_is_told_that_once_is_not_there():
    """The message says what to use instead."""
    message = await OnceInProcess().run()

    assert message.startswith("once is not available in a step that runs in a process")
    assert message.endswith("expected a step of the event loop that calls it")
