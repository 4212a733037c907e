"""P8 to P13: failures, time, timeouts, stalls, and programs that are wrong."""

from __future__ import annotations

import gc
import time
from typing import Any

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
    step,
    workflow_scope,
)
from sluicegate.testing import jump_clock
from tests.helpers import (
    Catch,
    Done,
    Fan,
    Item,
    Mine,
    MineBase,
    Single,
    nothing_left,
    on_each_backend,
    run_virtually,
    wait_until_idle,
)


# -- P8 -------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_failure_arrives_as_itself_at_everybody_who_awaits():
    """P8: every waiter gets the step's own exception object, which carries one note."""
    error = Mine("from the step")
    context = error.__context__ = KeyError("its context")
    cause = error.__cause__ = LookupError("its cause")
    arrived = []

    async def work(ctx):
        await wait_until_idle()
        raise error

    async def wait(handler):
        with Catch() as left:
            await handler
        arrived.append(left.error)

    async with Single(work).run(run_id="r-1") as handler, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait, handler)
    await wait(handler)
    with Catch() as left:
        handler.result()

    assert [e is error for e in [*arrived, left.error]] == [True] * 5
    assert error.__cause__ is cause
    assert error.__context__ is context
    (note,) = error.__notes__
    for part in ("r-1", "Single.only", "StartEvent"):
        assert part in note


@pytest.mark.anyio
@pytest.mark.parametrize("count", [1, 2, 5])
async def test_failures_in_one_tick_give_one_exception(count):
    """P8: the first is raised, never a group; all are kept, and the others are counted."""
    raised = []

    async def work(ctx, number):
        await go.wait()
        raised.append(Mine(number))
        raise raised[-1]

    go = anyio.Event()
    workflow = Fan(work, count)
    with nothing_left(), Catch() as left:
        async with workflow.run() as handler:
            while len(workflow.running) < count:
                await anyio.lowlevel.checkpoint()
            go.set()
            await handler

    # Those that had not raised yet were cancelled instead: how many did is the scheduler's affair.
    assert left.error is raised[0]
    assert handler.exceptions == tuple(raised)
    assert len(raised[0].__notes__) == (1 if len(raised) == 1 else 2)
    if len(raised) > 1:
        assert f"{len(raised) - 1} more" in raised[0].__notes__[1]
    for error in raised[1:]:
        assert len(error.__notes__) == 1


@pytest.mark.anyio
async def test_failures_in_a_deep_chain_of_clean_ups_are_all_kept():
    """P8: each clean-up failure of each sibling is in ``handler.exceptions``, in order."""
    order = []

    async def work(ctx, number):
        try:
            if number == 0:
                await wait_until_idle()
                order.append(Mine("first"))
                raise order[0]
            await anyio.sleep_forever()
        finally:
            if number:
                with anyio.CancelScope(shield=True):
                    await wait_until_idle(3 * number)
                order.append(Mine(number))
                raise order[-1]

    handler = Fan(work, 4).run()
    with Catch() as left:
        await handler

    assert left.error is order[0]
    assert handler.exceptions == tuple(order)
    assert len(order) == 4
    assert "3 more" in order[0].__notes__[-1]


@pytest.mark.anyio
async def test_one_exception_object_raised_by_several_steps_counts_once():
    """P8: the same object from two steps is one failure with one note."""
    error = Mine()

    async def work(ctx, number):
        try:
            if number == 0:
                await wait_until_idle()
                raise error
            await anyio.sleep_forever()
        finally:
            if number:
                raise error

    handler = Fan(work, 3).run()
    with Catch() as left:
        await handler

    assert left.error is error
    assert handler.exceptions == (error,)
    assert len(error.__notes__) == 1


@pytest.mark.anyio
async def test_groups_of_the_users_own_arrive_as_themselves():
    """P8: no engine call makes a group, and none takes one apart."""
    for group in (
        ExceptionGroup("mine", [Mine(1), Mine(2)]),
        BaseExceptionGroup("mine", [MineBase(1)]),
        ExceptionGroup("mine", [ExceptionGroup("inner", [Mine(3)])]),
    ):

        async def work(ctx, number, group=group):
            if number == 1:
                await wait_until_idle()
                raise group
            await anyio.sleep_forever()

        for count in (2, 3):
            handler = Fan(work, count).run()
            with nothing_left(), Catch() as left:
                await handler

            assert left.error is group
            assert handler.exceptions == (group,)


@pytest.mark.anyio
async def test_failure_in_the_engine_s_rules_names_the_step():
    """P8: an engine error of a step is one exception with the same note as any other."""

    class Wrong(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return None

    with pytest.raises(WorkflowRuntimeError) as caught:
        await Wrong(strict_none=True).run(run_id="r-2")

    assert "Wrong.only" in str(caught.value)
    assert "r-2" in caught.value.__notes__[0]
    assert len(caught.value.__notes__) == 1


# -- P9 -------------------------------------------------------------------------------------------


async def _fails(ctx):
    raise Mine


@pytest.mark.anyio
async def test_looking_at_the_status_is_not_seeing_the_failure():
    """P9: ``status`` and ``is_done`` tell that something failed, not what; leaving raises."""
    for form in ("block", "scope"):
        with pytest.raises(Mine):
            if form == "block":
                async with Single(_fails).run() as handler:
                    await until_done(handler)
            else:
                async with workflow_scope():
                    handler = Single(_fails).run()
                    handler.stream_events().close()
                    await until_done(handler)

        assert handler.status == "failed"


async def until_done(handler):
    while not handler.is_done():
        await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_waiter_that_was_cancelled_has_not_seen_the_failure():
    """P9: who waited and was cancelled before the end has learnt nothing; leaving raises."""
    go = anyio.Event()

    async def work(ctx):
        await go.wait()
        raise Mine

    for form in ("block", "scope", "nursery"):
        go = anyio.Event()
        handler = Single(work).run()
        with nothing_left(), Catch() as left:
            if form == "block":
                async with handler:
                    await wait_in_vain(handler)
                    go.set()
            elif form == "scope":
                async with workflow_scope():
                    handler.stream_events().close()  # awaiting would run it in place
                    await wait_in_vain(handler)
                    go.set()
            else:
                async with anyio.create_task_group() as group:
                    handler.start_soon(group)
                    await wait_in_vain(handler)
                    go.set()

        assert type(left.one) is Mine


async def wait_in_vain(handler):
    async with anyio.create_task_group() as group:
        group.start_soon(await_it, handler)
        await wait_until_idle(3)
        group.cancel_scope.cancel()


async def await_it(handler):
    await handler


@pytest.mark.anyio
async def test_waiter_that_is_cancelled_in_the_tick_of_the_failure():
    """P9: either the waiter got the failure or the owner raises it; it is never lost."""
    for form in ("block", "scope", "nursery"):
        for turns in [*range(10)] * 4:
            go = anyio.Event()
            seen = []

            async def work(ctx, go=go):
                await go.wait()
                raise Mine

            async def wait(handler, seen=seen):
                with Catch() as left:
                    await handler
                if left.error is not None and type(left.error) is not Mine:
                    raise left.error
                seen.append(left.error)

            async def watch(handler, go=go, turns=turns, wait=wait):
                async with anyio.create_task_group() as group:
                    group.start_soon(wait, handler)
                    await wait_until_idle(3)
                    go.set()
                    await wait_until_idle(turns)
                    group.cancel_scope.cancel()

            handler = Single(work).run()
            with nothing_left(), Catch() as left:
                if form == "block":
                    async with handler:
                        await watch(handler)
                elif form == "scope":
                    async with workflow_scope():
                        handler.stream_events().close()  # awaiting would run it in place
                        await watch(handler)
                else:
                    async with anyio.create_task_group() as group:
                        handler.start_soon(group)
                        await watch(handler)

            raised = [] if left.error is None else [left.one]
            assert [type(e) for e in seen + raised] == [Mine], (form, turns)


@pytest.mark.anyio
async def test_reader_that_leaves_early_keeps_no_failure_from_a_nursery():
    """P9: a reader that was closed before the end does not count as somebody who looks."""
    go = anyio.Event()

    async def work(ctx):
        ctx.write_event_to_stream(Item(number=1))
        await go.wait()
        raise Mine

    with Catch() as left:
        async with anyio.create_task_group() as group:
            handler = Single(work).run().start_soon(group)
            with handler.stream_events() as reader:
                await reader.receive()
            go.set()

    assert type(left.one) is Mine


@pytest.mark.anyio
async def test_failure_that_an_idle_reader_kept_from_a_nursery_is_warned_about():
    """P9: where a reader is attached that nobody reads, the failure is still not silent."""
    async with anyio.create_task_group() as group:
        handler = Single(_fails).run().start_soon(group)
        reader = handler.stream_events()

    assert handler.status == "failed"
    kept = [handler, reader]
    del handler, group, reader
    with pytest.warns(RuntimeWarning, match=r"nobody looked at it: Mine\(\)"):
        drop(kept)


def drop(kept):
    kept.clear()
    gc.collect()


@pytest.mark.anyio
async def test_every_failed_run_of_a_scope_is_told_of():
    """P9: a scope raises the first failure, which names the others in notes."""
    errors = [Mine(n) for n in range(3)]

    def failing(error):
        async def work(ctx):
            raise error

        return Single(work)

    with Catch() as left:
        async with workflow_scope():
            for error in errors:
                handler = failing(error).run()
                handler.stream_events().close()
                await until_done(handler)

    assert left.error in errors
    others = [e for e in errors if e is not left.error]
    text = "\n".join(left.error.__notes__)
    assert all(repr(other) in text for other in others)


@pytest.mark.anyio
async def test_failure_may_be_kept_out_of_a_nursery_on_request():
    """P9: ``keep_failure=True`` leaves it with the handler, where looking finds it."""
    async with anyio.create_task_group() as group:
        handler = Single(_fails).run().start_soon(group, keep_failure=True)

    (error,) = handler.exceptions
    assert type(error) is Mine


# -- P10 ------------------------------------------------------------------------------------------


class Late(Workflow):
    """Takes ``seconds``, and never minds a cancellation."""

    def __init__(self, take, **options):
        super().__init__(**options)
        self.take = take

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await self.take()
        return StopEvent(result="result")


async def sleep_shielded(seconds):
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)


@on_each_backend
@pytest.mark.parametrize("how", ["shielded", "blocking"])
@pytest.mark.parametrize(("seconds", "status"), [(9, "completed"), (11, "timed_out")])
def test_step_that_is_late_cannot_turn_a_timeout_into_a_result(backend, how, seconds, status):
    """P10: neither by shielding itself nor by blocking, with no checkpoint after the deadline."""

    async def main():
        async def take():
            if how == "shielded":
                await sleep_shielded(seconds)
            else:
                jump_clock(seconds)

        with nothing_left(), Catch() as left:
            handler = Late(take, timeout=10).run()
            await handler

        assert handler.status == status
        assert (type(left.error) is WorkflowTimeoutError) == (status == "timed_out")

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize(("seconds", "fails"), [(9, False), (11, True)])
@pytest.mark.parametrize("how", ["shielded", "blocking"])
def test_step_that_is_late_for_its_own_timeout_has_failed(backend, how, seconds, fails):
    """P10: the same for ``@step(timeout=...)``."""

    class Timed(Workflow):
        @step(timeout=10)
        async def only(self, ev: StartEvent) -> StopEvent:
            if how == "shielded":
                await sleep_shielded(seconds)
            else:
                jump_clock(seconds)
            return StopEvent(result="result")

    async def main():
        with nothing_left(), Catch() as left:
            assert await Timed().run() == "result"

        assert (type(left.error) is StepTimeoutError) == fails

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("how", ["sleeping", "shielded", "blocking"])
@pytest.mark.parametrize("hops", [0, 1, 5])
@pytest.mark.parametrize("whose", ["run", "step"])
def test_stop_event_in_the_tick_of_the_deadline_wins_always(backend, how, hops, whose):
    """P10: at the very moment of the deadline the result wins, each of fifty times."""

    class Exact(Workflow):
        @step(timeout=10 if whose == "step" else None)
        async def begin(self, ev: StartEvent) -> Item | StopEvent:
            if how == "sleeping":
                await anyio.sleep(10)
            elif how == "shielded":
                await sleep_shielded(10)
            else:
                jump_clock(10)
            return Item(number=hops) if hops else StopEvent(result="result")

        @step
        async def hop(self, ev: Item) -> Item | StopEvent:
            if ev.number == 1:
                return StopEvent(result="result")
            return Item(number=ev.number - 1)

    async def main():
        workflow = Exact(timeout=10 if whose == "run" else None)
        for _ in range(50):
            assert await workflow.run() == "result"

    run_virtually(backend, main)


@on_each_backend
def test_every_timer_is_the_backends(backend, monkeypatch):
    """P10: hours pass in no time; a wall clock that jumps back and forth is not looked at."""
    monkeypatch.setattr(time, "time", iter([1e9, -1e9, 3e9] * 10_000).__next__)

    class Timed(Workflow):
        @step(timeout=3_600)
        async def begin(self, ev: StartEvent) -> Item:
            await anyio.sleep(3_599)
            return Item(number=1)

        @step(timeout=1)
        async def end(self, ev: Item) -> StopEvent:
            await anyio.sleep(2)
            return StopEvent()

    async def main():
        with pytest.raises(StepTimeoutError) as caught:
            await Timed(timeout=7_200).run()

        assert caught.value.active_steps == ("end",)
        assert anyio.current_time() == pytest.approx(3_600)
        began = anyio.current_time()
        with pytest.raises(WorkflowTimeoutError) as caught:
            await Timed(timeout=50).run()

        assert type(caught.value) is WorkflowTimeoutError
        assert anyio.current_time() - began == pytest.approx(50)

    run_virtually(backend, main)


@pytest.mark.trio
async def test_mock_clock_drives_the_timeout(autojump_clock):
    """P10: under ``autojump_clock`` the deadline is hit exactly."""

    async def work(ctx):
        await trio.sleep_forever()

    began = trio.current_time()
    with pytest.raises(trio.TooSlowError):
        await Single(work, timeout=1e6).run()

    assert trio.current_time() - began == pytest.approx(1e6)


@on_each_backend
def test_the_timeout_of_a_run_counts_from_its_start(backend):
    """P10: not from when it was made."""

    async def main():
        async def work(ctx):
            await anyio.sleep(5)
            return "result"

        handler = Single(work, timeout=10).run()
        await anyio.sleep(100)
        assert await handler == "result"

    run_virtually(backend, main)


@on_each_backend
def test_deadline_around_a_foreign_nursery_does_not_bind_its_runs(backend):
    """P10: a run started in a nursery has the deadlines of that nursery, and its own."""

    async def main():
        async def work(ctx):
            await anyio.sleep(50)
            return "result"

        async with anyio.create_task_group() as group:
            with anyio.move_on_after(5):
                slow = Single(work).run().start_soon(group)
                fast = Single(work, timeout=10).run().start_soon(group)
                await anyio.sleep_forever()
            with pytest.raises(WorkflowTimeoutError):
                await fast
            assert anyio.current_time() == pytest.approx(10)
            assert await slow == "result"

    run_virtually(backend, main)


# -- P11 ------------------------------------------------------------------------------------------


@on_each_backend
@pytest.mark.parametrize("catch", [TimeoutError, trio.TooSlowError, WorkflowTimeoutError])
@pytest.mark.parametrize("form", ["in place", "block", "nursery", "scope"])
def test_timeout_is_caught_where_one_is(backend, catch, form):
    """P11: right around the await, by the name that is common there."""

    async def main():
        class Two(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> list[Item | Done]:
                return [Item(number=1), Item(number=2), Done(number=3)]

            @step
            async def slow(self, ev: Item) -> StopEvent:
                await anyio.sleep_forever()
                raise AssertionError

            @step
            async def quick(self, ev: Done) -> None:
                return None

        async def check(handler):
            with pytest.raises(catch) as caught:
                await handler

            error = caught.value
            assert type(error) is WorkflowTimeoutError
            assert error.timeout == 7
            assert error.active_steps == ("slow", "slow")
            assert all(part in str(error) for part in ("slow", "7 s", "r-3"))
            assert "quick" not in str(error)

        handler = Two(timeout=7).run(run_id="r-3")
        with nothing_left():
            if form == "in place":
                await check(handler)
            elif form == "block":
                async with handler:
                    await check(handler)
            elif form == "scope":
                async with workflow_scope():
                    await check(handler)
            else:
                async with anyio.create_task_group() as group:
                    handler.start_soon(group)
                    await check(handler)

    run_virtually(backend, main)


@on_each_backend
def test_timeout_of_a_step_is_one_too_and_names_it(backend):
    """P11: ``StepTimeoutError`` is a ``WorkflowTimeoutError`` that names the step."""

    class Timed(Workflow):
        @step(timeout=3)
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep_forever()
            raise AssertionError

    async def main():
        with pytest.raises(TimeoutError) as caught:
            await Timed().run()

        assert isinstance(caught.value, StepTimeoutError | trio.TooSlowError)
        assert caught.value.active_steps == ("only",)
        assert "Timed.only" in str(caught.value)

    run_virtually(backend, main)


# -- P12 ------------------------------------------------------------------------------------------


class Left(Event):
    pass


class Right(Event):
    pass


class Lonely(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Left | Right:
        return Left()

    @step
    async def both(self, a: Left, b: Right) -> StopEvent:
        return StopEvent()


class Collecting(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Left | Right | None:
        for _ in range(2):
            ctx.send_event(Left())

    @step
    async def collect(self, ctx: Context, ev: Left | Right) -> StopEvent | None:
        if ctx.collect_events(ev, [Left, Left, Left, Right]) is None:
            return None
        return StopEvent()


class Ending(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(number=1)

    @step
    async def end(self, ev: Item) -> StopEvent | None:
        return None


class LonelyInFan(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=1), Item(number=2)]

    @step
    async def split(self, ev: Item) -> Left | Right:
        return Left()

    @step
    async def both(self, a: Left, b: Right) -> Done:
        return Done(number=1)

    @step
    async def end(self, evs: list[Done]) -> StopEvent | None:
        return None if not evs else StopEvent()


@on_each_backend
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Lonely, ["Lonely.both", "Right"]),
        (Collecting, ["Collecting.collect", "1 x Left", "1 x Right"]),
        (Ending, []),
        (LonelyInFan, ["LonelyInFan.both", "Right"]),
    ],
)
def test_stuck_run_says_so_at_once_and_what_is_lacking(backend, kind, told):
    """P12: without waiting for its timeout, and it names each join that still waits."""

    async def main():
        handler = kind(timeout=1_000).run(run_id="r-4")
        with nothing_left(), pytest.raises(WorkflowStalledError) as caught:
            await handler

        assert anyio.current_time() == 0
        assert "r-4" in str(caught.value)
        for part in told:
            assert part in str(caught.value)
            assert part in "; ".join(caught.value.missing)
        assert bool(caught.value.missing) == bool(told)
        assert handler.status == "failed"
        assert isinstance(caught.value, WorkflowRuntimeError)

    run_virtually(backend, main)


class Asking(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prompt="?")

    @step
    async def end(self, ev: HumanResponseEvent) -> StopEvent | None:
        return StopEvent(result=ev.answer) if ev.answer else None


@on_each_backend
def test_run_that_waits_for_a_person_is_not_stuck_and_may_become_so(backend):
    """P12: what can come from outside is waited for; once it has come, nothing is."""

    async def main():
        async with Asking(timeout=1_000).run() as handler:
            await anyio.sleep(500)
            assert handler.status == "idle"
            handler.send_event(HumanResponseEvent(answer="yes"))
            assert await handler == "yes"

        began = anyio.current_time()
        async with Asking(timeout=1_000).run() as handler:
            await anyio.sleep(500)
            handler.send_event(HumanResponseEvent(answer=""))
            with pytest.raises(WorkflowStalledError):
                await handler
        assert anyio.current_time() - began == pytest.approx(500)

        with pytest.raises(WorkflowTimeoutError, match="answer from outside"):
            await Asking(timeout=10).run()

    run_virtually(backend, main)


@on_each_backend
def test_run_with_a_step_at_work_is_not_stuck(backend):
    """P12: as long as anything runs, however slowly, something can still come of it."""

    async def main():
        class Slow(Workflow):
            @step
            async def begin(self, ctx: Context, ev: StartEvent) -> Left | Right | None:
                ctx.send_event(Left())
                await anyio.sleep(100)
                ctx.send_event(Right())

            @step
            async def both(self, a: Left, b: Right) -> StopEvent:
                return StopEvent(result="result")

        assert await Slow().run() == "result"

    run_virtually(backend, main)


# -- P13 ------------------------------------------------------------------------------------------


class Unheard(Event):
    pass


def build_unreached():
    class Wrong(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @step
        async def lonely(self, ev: Unheard) -> StopEvent:
            return StopEvent()

    return Wrong


def build_unheard():
    class Wrong(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Unheard | StopEvent:
            return StopEvent()

    return Wrong


def build_unstoppable():
    class Wrong(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(number=1)

        @step
        async def begin_again(self, ev: Item) -> Item:
            return ev

    return Wrong


def build_unstartable():
    class Wrong(Workflow):
        @step
        async def begin(self, ev: Unheard) -> StopEvent | Unheard:
            return StopEvent()

    return Wrong


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (build_unreached, ["lonely", "Unheard"]),
        (build_unheard, ["begin", "Unheard"]),
        (build_unstoppable, ["begin", "StopEvent"]),
        (build_unstartable, ["StartEvent"]),
    ],
)
def test_wrong_graph_is_refused_when_the_workflow_is_built(build, named):
    """P13: before anything runs, with the class, the step and what was expected."""
    kind = build()
    with pytest.raises(WorkflowValidationError) as caught:
        kind()

    text = str(caught.value)
    assert "Wrong" in text
    assert "expected" in text
    assert all(name in text for name in named)
    assert all("expected" in problem for problem in caught.value.problems)


class Undeclared(Workflow):
    def __init__(self, act, **options):
        super().__init__(**options)
        self.act = act
        self.after: list[Any] = []

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | list[Item] | StopEvent:
        return self.act(self, ctx)

    @step
    async def end(self, ev: Item) -> StopEvent | Unheard:
        return StopEvent()

    @step
    async def other(self, ev: Unheard) -> StopEvent:
        self.after.append("the wrong event was delivered")
        return StopEvent()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("act", "named"),
    [
        (lambda self, ctx: Unheard(), "Unheard"),
        (lambda self, ctx: [Item(number=1), Unheard()], "list of Unheard"),
        (lambda self, ctx: None, "None"),
        (lambda self, ctx: "text", "str"),
        (lambda self, ctx: ctx.send_event(Unheard()), "Unheard"),
        (lambda self, ctx: ctx.send_event(StopEvent()), "StopEvent"),
        (lambda self, ctx: ctx.send_event(Item(number=1), step="nowhere"), "nowhere"),
        (lambda self, ctx: ctx.send_event(Item(number=1), step="other"), "other"),
    ],
)
async def test_undeclared_event_is_refused_where_it_comes_from(act, named):
    """P13: at the ``return`` or at ``send_event``; nothing of it is delivered."""
    workflow = Undeclared(act)
    with pytest.raises(WorkflowRuntimeError) as caught:
        await workflow.run()

    text = str(caught.value)
    assert named in text
    assert "expected" in text
    assert "Undeclared" in text
    assert workflow.after == []


@pytest.mark.anyio
async def test_send_event_raises_at_the_call():
    """P13: the step that sends the wrong event gets the error right there."""
    raised = []

    class Sends(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            try:
                ctx.send_event(Unheard())
            except WorkflowRuntimeError as error:
                raised.append(str(error))
            return Item(number=1)

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent(result="went on")

    assert await Sends().run() == "went on"
    assert "Unheard" in raised[0]
    assert "begin" in raised[0]


def test_wrong_start_event_is_refused_at_run():
    """P13: ``run()`` itself raises, without an event loop, and says what to write."""

    class Begin(StartEvent):
        topic: str

    class Strict(Workflow):
        @step
        async def begin(self, ev: Begin) -> StopEvent:
            return StopEvent()

    workflow = Strict()
    for call, named in (
        (lambda: workflow.run(start_event=StartEvent()), "Begin"),
        (lambda: workflow.run(start_event=Begin(topic="x"), topic="y"), "topic"),
        (lambda: workflow.run(), "topic"),
        (lambda: workflow.run(topc="x"), "topic"),
        (lambda: workflow.run(start_event=Item(number=1)), "Begin"),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert named in str(caught.value)
        assert "expected" in str(caught.value)


def test_run_is_not_started_by_accident():
    """P13: using an unstarted run says how to start one."""
    handler = Single(_fails).run()
    for use in (handler.stream_events, lambda: handler.send_event(Item(number=1))):
        with pytest.raises(WorkflowRuntimeError, match="async with"):
            use()
    handler.cancel()
