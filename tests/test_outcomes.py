"""What leaves a run's owner: every way to end, for every form of owning, on both event loops.

The rows: a step fails, the body fails, a cancellation from outside (three kinds), a timeout, an
explicit cancellation; each once with a clean-up that succeeds and once with one that raises. The
columns: in place, block, scope, and the three kinds of nursery. Every case runs in an event loop
of its own with virtual time, because ``KeyboardInterrupt`` must come out of the loop itself.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    Observer,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowRuntimeError,
    WorkflowTimedOutEvent,
    WorkflowTimeoutError,
    step,
    workflow_scope,
)
from sluicegate.testing import jump_clock
from tests.helpers import (
    BACKENDS,
    Catch,
    Done,
    Fan,
    Item,
    Line,
    Mine,
    MineBase,
    Note,
    One,
    Single,
    cancelled_class,
    leaves_of,
    live_tasks,
    nothing_left,
    on_asyncio,
    on_each_backend,
    run_virtually,
    timers_left,
    wait_until_idle,
)


NURSERIES = {"trio": ("trio nursery", "task group"), "asyncio": ("task group", "asyncio group")}
OWNERS = [(b, form) for b in BACKENDS for form in ("block", "scope", *NURSERIES[b])]
FORMS = [(b, "in place") for b in BACKENDS] + OWNERS

on_each_owner = pytest.mark.parametrize(("backend", "form"), OWNERS)
on_each_form = pytest.mark.parametrize(("backend", "form"), FORMS)
#: Whether the step in question runs in the task that hosts the run, or in one of its own.
in_each_task = pytest.mark.parametrize("which", [0, 2], ids=["host", "spawned"])
of_each_kind = pytest.mark.parametrize("kind", [Mine, MineBase])
of_each_urgent_kind = pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])


@pytest.fixture(autouse=True)
def _collects_garbage():
    """Collect what a test leaves behind within that test, so that its warnings are its own."""
    yield
    gc.collect()


class Scene:
    """A run of three steps at once, each with a clean-up that takes time; some of them fail.

    ``fail`` tells which raise once all are under way, ``cleanup`` which raise at the end of
    their clean-up.
    """

    def __init__(self, *, fail=None, cleanup=None, count=3, **options: Any) -> None:
        self.fail = fail or {}
        self.cleanup = cleanup or {}
        self.count = count
        self.cleaned: list[int] = []
        self.under_way = 0
        self.all_here = anyio.Event()
        self.workflow = Fan(self._work, count, **options)
        self.handler = self.workflow.run(run_id="the-run")

    async def _work(self, ctx, number):
        self.under_way += 1
        if self.under_way == self.count:
            self.all_here.set()
        try:
            await self.all_here.wait()
            if number in self.fail:
                raise self.fail[number]
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            self.cleaned.append(number)
            if number in self.cleanup:
                raise self.cleanup[number]

    async def run(self, form, body):
        """Own the run in ``form``, with ``body`` inside, and check that nothing is left of it."""
        with nothing_left():
            try:
                if form == "in place":
                    return await self.handler
                async with owner(form, self.handler):
                    return await body(self.handler)
            finally:
                assert sorted(self.cleaned) == list(range(self.count))
                assert self.handler.is_done()


@asynccontextmanager
async def owner(form, handler):
    """Own a run by anything but awaiting it."""
    if form == "block":
        async with handler:
            yield
    elif form == "scope":
        async with workflow_scope():
            handler.stream_events().close()
            yield
    elif form == "trio nursery":
        async with trio.open_nursery() as nursery:
            handler.start_soon(nursery)
            yield
    elif form == "task group":
        async with anyio.create_task_group() as group:
            handler.start_soon(group)
            yield
    else:
        async with asyncio.TaskGroup() as group:
            handler.start_soon(group)
            yield


def check_left(catch, error, form):
    """Check that ``error`` left, bare but for the group of a nursery that is the test's own."""
    if form in ("in place", "block", "scope"):
        assert catch.error is error
    else:
        assert catch.one is error


def notes_of(error):
    return getattr(error, "__notes__", [])


def chain_of(error):
    """Yield what is chained to an exception, by cause or context."""
    seen = []
    todo = [error.__cause__, error.__context__]
    while todo:
        at = todo.pop()
        if at is not None and not any(at is known for known in seen):
            seen.append(at)
            todo += [at.__cause__, at.__context__]
    return seen


async def await_it(handler):
    return await handler


async def do_nothing(handler):
    pass


async def terminal_of(handler):
    """Return the last event of the stream, read after the end."""
    return [event async for event in handler_stream(handler)][-1]


def handler_stream(handler):
    assert handler.is_done()
    return handler.stream_events()


# -- a step fails -----------------------------------------------------------------------------


@on_each_form
@in_each_task
@of_each_kind
def test_failure_of_a_step_is_raised_where_the_run_is_awaited(backend, form, which, kind):
    """P8: the step's own exception object arrives, with one note and an untouched cause."""

    async def main():
        cause = LookupError("the cause")
        error = kind("from the step")
        error.__cause__ = cause
        scene = Scene(fail={which: error})
        seen = Catch()

        async def body(handler):
            with seen:
                await handler
            # Awaiting again gives the same object, and no further note.
            with pytest.raises(kind) as again:
                await handler

            assert again.value is error

        if form == "in place":
            with seen:
                await scene.run(form, None)
        else:
            await scene.run(form, body)

        assert seen.error is error
        assert error.__cause__ is cause
        assert len(error.__notes__) == 1
        for part in ("the-run", "Fan.work", f"Item(number={which})"):
            assert part in error.__notes__[0]
        assert scene.handler.exceptions == (error,)
        assert scene.handler.status == "failed"
        last = await terminal_of(scene.handler)
        assert type(last) is WorkflowFailedEvent
        assert last.exception is error
        assert last.step_name == "work"

    run_virtually(backend, main)


@on_each_owner
@in_each_task
@of_each_kind
@pytest.mark.peer("edge 4")
def test_failure_that_nobody_saw_is_raised_by_the_owner(backend, form, which, kind):
    """P9: leaving the owner raises the step's own exception object."""

    async def main():
        error = kind("from the step")
        scene = Scene(fail={which: error})
        with Catch() as left:
            await scene.run(form, do_nothing)

        check_left(left, error, form)
        assert error.__cause__ is None
        assert error.__context__ is None
        assert len(error.__notes__) == 1

    run_virtually(backend, main)


@pytest.mark.parametrize("form", ["block", "scope"])
@on_each_backend
def test_failure_of_a_step_does_not_cancel_the_body(backend, form):
    """A failed run is an outcome: the body continues, and leaving raises the failure."""

    async def main():
        error = Mine()
        scene = Scene(fail={1: error})
        reached = []

        async def body(handler):
            await anyio.sleep(10)
            reached.append(handler.status)

        with Catch() as left:
            await scene.run(form, body)

        assert left.error is error
        assert reached == ["failed"]

    run_virtually(backend, main)


@on_each_owner
def test_failure_that_was_seen_is_not_raised_again(backend, form):
    """P9: once ``handler.exceptions`` was looked at, the owner is left without an error."""

    async def main():
        error = Mine()
        scene = Scene(fail={1: error})

        async def body(handler):
            reader = handler.stream_events()  # a nursery raises at once where nobody listens
            async for _ in reader:
                pass
            assert handler.exceptions == (error,)

        await scene.run(form, body)

    run_virtually(backend, main)


@on_each_form
@in_each_task
@of_each_urgent_kind
def test_urgent_failure_of_a_step_comes_out_bare(backend, form, which, kind):
    """P8: KeyboardInterrupt and SystemExit leave the event loop, once, with all clean-up done."""
    error = kind("from the step")
    scenes = []

    async def main():
        scenes.append(Scene(fail={which: error}))
        await scenes[0].run(form, await_it)

    with Catch() as left:
        run_virtually(backend, main)

    if backend == "trio" and "group" not in form and "nursery" not in form:
        assert left.error is error
    assert left.one is error
    assert sorted(scenes[0].cleaned) == [0, 1, 2]
    assert scenes[0].handler.status == "failed"
    assert scenes[0].handler.exceptions == (error,)


@on_each_backend
@in_each_task
@pytest.mark.parametrize("second", [Mine, MineBase])
def test_first_failure_is_raised_and_the_others_are_kept(backend, which, second):
    """P8: with several failures the first is raised, the others are counted in its note."""

    async def main():
        first = Mine("first")
        others = {n: second(f"clean-up {n}") for n in range(3) if n != which}
        scene = Scene(fail={which: first}, cleanup=others)
        with Catch() as left:
            await scene.run("in place", None)

        assert left.error is first
        assert scene.handler.exceptions[0] is first
        assert set(scene.handler.exceptions) == {first, *others.values()}
        assert len(first.__notes__) == 2
        assert "2 more" in first.__notes__[1]
        assert "handler.exceptions" in first.__notes__[1]
        for number, other in others.items():
            assert f"Item(number={number})" in other.__notes__[0]

    run_virtually(backend, main)


@on_each_form
@of_each_urgent_kind
def test_urgent_failure_of_a_clean_up_comes_before_the_failure_of_a_step(backend, form, kind):
    """P8: KeyboardInterrupt and SystemExit come first, even when they came second."""
    first = Mine("first")
    urgent = kind("from a clean-up")
    scenes = []

    async def main():
        scenes.append(Scene(fail={0: first}, cleanup={2: urgent}))
        await scenes[0].run(form, await_it)

    with Catch() as left:
        run_virtually(backend, main)

    assert left.one is urgent
    assert scenes[0].handler.exceptions == (first, urgent)
    assert sorted(scenes[0].cleaned) == [0, 1, 2]


@on_each_backend
@in_each_task
def test_failure_of_a_clean_up_replaces_a_result(backend, which):
    """A run whose clean-up failed has not completed: the clean-up's exception arrives."""
    late = Mine("clean-up")

    class Race(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            if ev.number == 1:
                await anyio.sleep(1)
                return StopEvent(result="won")
            try:
                await anyio.sleep_forever()
            finally:
                if ev.number == which:
                    raise late
            raise AssertionError

    async def main():
        handler = Race().run()
        with nothing_left(), Catch() as left:
            await handler

        assert left.error is late
        assert handler.status == "failed"
        assert handler.exceptions == (late,)

    run_virtually(backend, main)


# -- the body fails -----------------------------------------------------------------------------


@on_each_owner
@pytest.mark.parametrize("kind", [Mine, MineBase, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
def test_exception_of_the_body_cancels_the_run_andleaves_of(backend, form, kind, dirty):
    """The run is cancelled, its clean-up awaited; the body's exception leaves, bare and itself."""
    error = kind("from the body")
    cause = error.__cause__ = LookupError("its cause")
    late = Mine("from the clean-up")
    scenes = []

    async def main():
        scenes.append(Scene(cleanup={2: late} if dirty else {}))

        async def body(handler):
            await scenes[0].all_here.wait()
            raise error

        await scenes[0].run(form, body)

    with Catch() as left:
        run_virtually(backend, main)

    handler = scenes[0].handler
    assert error.__cause__ is cause
    assert handler.status == "cancelled"
    if form in ("block", "scope"):
        assert left.error is error
        assert handler.exceptions == ((late,) if dirty else ())
        mentioned = any(repr(late) in note for note in notes_of(error))
        assert (mentioned or any(late is e for e in chain_of(error))) == dirty
    else:
        # The nursery is the test's own; it makes what group it likes of the two.
        assert error in leaves_of(left.error)


@pytest.mark.parametrize("form", ["block", "scope"])
@on_each_backend
@of_each_urgent_kind
def test_urgent_failure_of_a_clean_up_comes_before_the_bodys_exception(backend, form, kind):
    """P8: KeyboardInterrupt out of a clean-up is not hidden by the body's exception."""
    urgent = kind("from the clean-up")
    scenes = []

    async def main():
        scenes.append(Scene(cleanup={2: urgent}))

        async def body(handler):
            await scenes[0].all_here.wait()
            raise Mine

        await scenes[0].run(form, body)

    with Catch() as left:
        run_virtually(backend, main)

    assert left.error is urgent


@pytest.mark.parametrize("form", ["block", "scope"])
@on_each_backend
def test_exception_of_the_body_comes_before_a_failure_that_nobody_saw(backend, form):
    """The body's exception leaves; the run's failure is named in a note of it."""

    async def main():
        first = Mine("from the step")
        error = MineBase("from the body")
        scene = Scene(fail={1: first})

        async def body(handler):
            await anyio.sleep(10)
            raise error

        with Catch() as left:
            await scene.run(form, body)

        assert left.error is error
        assert any(repr(first) in note for note in error.__notes__)
        assert scene.handler.status == "failed"

    run_virtually(backend, main)


@pytest.mark.parametrize("form", ["block", "scope"])
@on_each_backend
def test_the_failure_itself_may_leave_the_body(backend, form):
    """Awaited and not caught, the step's exception leaves the block once, without a group."""

    async def main():
        error = Mine()
        scene = Scene(fail={1: error})
        with Catch() as left:
            await scene.run(form, await_it)

        assert left.error is error
        assert error.__cause__ is None
        assert error.__context__ is None
        assert len(error.__notes__) == 1

    run_virtually(backend, main)


# -- cancelled from outside ---------------------------------------------------------------------


@contextmanager
def seen_on_its_way(seen):
    """Write down what passes, and let it pass."""
    try:
        yield
    except BaseException as error:
        seen.append(error)
        raise


@on_each_form
def test_cancellation_by_a_scope_cancels_the_run_and_continues(backend, form):
    """P2: one cancelled exception leaves, never a group, after all clean-up."""

    async def main():
        scene = Scene()
        seen = []
        with anyio.move_on_after(5) as scope, seen_on_its_way(seen):
            await scene.run(form, await_it)

        assert scope.cancelled_caught
        assert anyio.current_time() == pytest.approx(6)
        assert len(seen) == 1
        if form in ("in place", "block", "scope"):
            assert type(seen[0]) is cancelled_class()
        assert {type(e) for e in leaves_of(seen[0])} == {cancelled_class()}
        assert scene.handler.status == "cancelled"
        assert scene.handler.exceptions == ()
        assert type(await terminal_of(scene.handler)) is WorkflowCancelledEvent
        assert timers_left() == 0

    run_virtually(backend, main)


@on_each_form
@in_each_task
def test_failure_of_a_clean_up_leaves_in_place_of_the_cancellation(backend, form, which):
    """P9: a cancellation from outside does not hide what the clean-up raised."""

    async def main():
        late = Mine("from the clean-up")
        scene = Scene(cleanup={which: late})
        with Catch() as left, anyio.move_on_after(5):
            await scene.run(form, await_it)

        assert left.one is late
        if form in ("in place", "block", "scope"):
            assert left.error is late
        assert scene.handler.status == "cancelled"
        assert scene.handler.exceptions == (late,)

    run_virtually(backend, main)


@on_each_form
@of_each_urgent_kind
def test_urgent_failure_of_a_clean_up_leaves_in_place_of_the_cancellation(backend, form, kind):
    """P8: KeyboardInterrupt and SystemExit out of a clean-up leave the event loop."""
    urgent = kind("from the clean-up")
    scenes = []

    async def main():
        scenes.append(Scene(cleanup={2: urgent}))
        with anyio.move_on_after(5):
            await scenes[0].run(form, await_it)

    with Catch() as left:
        run_virtually(backend, main)

    assert left.one is urgent
    assert sorted(scenes[0].cleaned) == [0, 1, 2]


@pytest.mark.parametrize("form", [f for b, f in FORMS if b == "asyncio"])
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_native_cancellation_cancels_the_run_and_continues(form, times):
    """P2: ``task.cancel()`` under asyncio, also once more during the clean-up."""

    async def main():
        scene = Scene()
        seen = []

        async def owned():
            with seen_on_its_way(seen):
                await scene.run(form, await_it)

        before = live_tasks()
        task = asyncio.create_task(owned())
        await scene.all_here.wait()
        for _ in range(times):
            await wait_until_idle()
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert task.cancelled()
        assert [type(e) for e in seen] == [asyncio.CancelledError]
        assert scene.handler.status == "cancelled"
        assert live_tasks() == before

    run_virtually("asyncio", main)


@pytest.mark.parametrize("form", [f for b, f in FORMS if b == "asyncio"])
@in_each_task
def test_failure_of_a_clean_up_leaves_in_place_of_a_native_cancellation(form, which):
    """P9: ``task.cancel()`` does not hide what the clean-up raised."""

    async def main():
        late = Mine("from the clean-up")
        scene = Scene(cleanup={which: late})
        task = asyncio.create_task(scene.run(form, await_it))
        await scene.all_here.wait()
        await wait_until_idle()
        task.cancel()
        with Catch() as left:
            await task

        assert left.one is late
        assert scene.handler.status == "cancelled"
        assert scene.handler.exceptions == (late,)

    run_virtually("asyncio", main)


@pytest.mark.parametrize("form", [f for b, f in FORMS if b == "asyncio"])
@pytest.mark.parametrize("wait", ["timeout", "wait_for"])
def test_native_timeout_cancels_the_run_and_is_raised(form, wait):
    """``asyncio.timeout`` and ``wait_for`` around a run raise after the clean-up, as ever."""

    async def main():
        scene = Scene()
        if wait == "timeout":
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(5):
                    await scene.run(form, await_it)
        else:
            with pytest.raises(TimeoutError) as caught:
                await asyncio.wait_for(scene.run(form, await_it), 5)

        assert type(caught.value) is TimeoutError
        assert asyncio.get_running_loop().time() == pytest.approx(6)
        assert asyncio.current_task().cancelling() == 0
        assert scene.handler.status == "cancelled"

    run_virtually("asyncio", main)


@on_each_form
def test_fail_after_around_a_run_needs_no_special_code(backend, form):
    """``fail_after`` of the backend raises its own timeout error after the clean-up."""

    async def main():
        scene = Scene()
        fail_after = trio.fail_after if backend == "trio" else anyio.fail_after
        kind = trio.TooSlowError if backend == "trio" else TimeoutError
        with pytest.raises(kind) as caught, fail_after(5):
            await scene.run(form, await_it)

        assert type(caught.value) is kind
        assert anyio.current_time() == pytest.approx(6)

    run_virtually(backend, main)


@pytest.mark.parametrize("form", ["block", "scope"])
@on_each_backend
def test_failure_that_nobody_saw_comes_before_a_cancellation_from_outside(backend, form):
    """P9: the run had failed already when its owner was cancelled; the failure leaves."""

    async def main():
        error = Mine()
        scene = Scene(fail={1: error})

        async def body(handler):
            await anyio.sleep_forever()

        with Catch() as left, anyio.move_on_after(10):
            await scene.run(form, body)

        assert left.error is error

    run_virtually(backend, main)


@on_each_owner
def test_cancelling_a_waiter_leaves_the_run_alone(backend, form):
    """Who waits with ``await handler`` may be cancelled; the run continues."""

    async def main():
        go = anyio.Event()

        async def work(ctx, number):
            await go.wait()

        handler = Fan(work).run()
        with nothing_left():
            async with owner(form, handler):
                with anyio.move_on_after(1) as scope:
                    await handler
                assert scope.cancelled_caught
                assert handler.status == "running"
                go.set()
                assert await handler == [0, 1, 2]

    run_virtually(backend, main)


# -- the run's own timeout -----------------------------------------------------------------------


@on_each_form
@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
def test_timeout_of_the_run_is_raised_where_it_is_awaited(backend, form, dirty):
    """P11: the timeout error comes after the clean-up, whose failures it counts."""

    async def main():
        late = {0: Mine(), 2: MineBase()} if dirty else {}
        scene = Scene(timeout=5, cleanup=late)
        seen = Catch()

        async def body(handler):
            with seen:
                await handler

        if form == "in place":
            with seen:
                await scene.run(form, None)
        else:
            await scene.run(form, body)

        assert anyio.current_time() == pytest.approx(6)
        assert type(seen.error) is WorkflowTimeoutError
        assert seen.error.active_steps == ("work", "work", "work")
        assert scene.handler.status == "timed_out"
        assert scene.handler.exceptions[0] is seen.error
        assert set(scene.handler.exceptions[1:]) == set(late.values())
        assert len(notes_of(seen.error)) == (1 if dirty else 0)
        assert not dirty or "2 more" in notes_of(seen.error)[0]
        assert type(await terminal_of(scene.handler)) is WorkflowTimedOutEvent
        assert timers_left() == 0

    run_virtually(backend, main)


@on_each_owner
def test_timeout_of_the_run_that_nobody_saw_is_raised_by_the_owner(backend, form):
    """P9: leaving the owner raises the timeout error."""

    async def main():
        scene = Scene(timeout=5)
        with Catch() as left:
            await scene.run(form, do_nothing)

        assert type(left.one) is WorkflowTimeoutError
        check_left(left, scene.handler.exceptions[0], form)

    run_virtually(backend, main)


@on_each_form
@of_each_urgent_kind
def test_urgent_failure_of_a_clean_up_comes_before_the_timeout(backend, form, kind):
    """P8: KeyboardInterrupt and SystemExit out of a clean-up leave the event loop."""
    urgent = kind("from the clean-up")
    scenes = []

    async def main():
        scenes.append(Scene(timeout=5, cleanup={2: urgent}))
        await scenes[0].run(form, await_it)

    with Catch() as left:
        run_virtually(backend, main)

    assert left.one is urgent
    assert type(scenes[0].handler.exceptions[0]) is WorkflowTimeoutError


@pytest.mark.parametrize("which", ["run", "outside"])
@on_each_form
def test_of_two_deadlines_the_earlier_one_counts(backend, form, which):
    """A timeout of the run and one around it: the one that comes first tells what is raised."""

    async def main():
        scene = Scene(timeout=5 if which == "run" else 50)
        with Catch() as left, anyio.move_on_after(5.5 if which == "run" else 5) as scope:
            await scene.run(form, await_it)

        if which == "run":
            assert type(left.one) is WorkflowTimeoutError
            assert scene.handler.status == "timed_out"
        else:
            assert left.error is None
            assert scope.cancelled_caught
            assert scene.handler.status == "cancelled"

    run_virtually(backend, main)


# -- explicit cancellation -----------------------------------------------------------------------


@on_each_form
@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
def test_explicit_cancellation_is_told_where_the_run_is_awaited(backend, form, dirty):
    """``handler.cancel(reason)`` gives WorkflowCancelledError after the clean-up."""

    async def main():
        late = Mine()
        scene = Scene(cleanup={2: late} if dirty else {})
        seen = Catch()

        async def body(handler):
            await scene.all_here.wait()
            handler.cancel("enough")
            handler.cancel("and again")  # changes nothing
            assert not handler.is_done()
            with seen:
                await handler

        if form == "in place":
            async with anyio.create_task_group() as group:

                async def cancel_later():
                    await scene.all_here.wait()
                    scene.handler.cancel("enough")

                group.start_soon(cancel_later)
                with seen:
                    await scene.handler
        else:
            await scene.run(form, body)

        assert type(seen.error) is WorkflowCancelledError
        assert seen.error.reason == "enough"
        assert scene.handler.status == "cancelled"
        assert scene.handler.exceptions == ((late,) if dirty else ())
        assert len(notes_of(seen.error)) == (1 if dirty else 0)
        assert anyio.current_time() == pytest.approx(1)
        last = await terminal_of(scene.handler)
        assert type(last) is WorkflowCancelledEvent
        assert last.reason == "enough"

    run_virtually(backend, main)


@on_each_owner
@in_each_task
@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
def test_explicit_cancellation_raises_nothing_at_the_owner_but_the_clean_ups_failure(
    backend, form, which, dirty
):
    """P9: a cancelled run is no failure, what its clean-up raised is one."""

    async def main():
        late = Mine()
        scene = Scene(cleanup={which: late} if dirty else {})

        async def body(handler):
            await scene.all_here.wait()
            await handler.cancel("enough")
            assert handler.is_done()
            assert sorted(scene.cleaned) == [0, 1, 2]

        with Catch() as left:
            await scene.run(form, body)

        if dirty:
            check_left(left, late, form)
        else:
            assert left.error is None

    run_virtually(backend, main)


@on_each_form
@of_each_urgent_kind
def test_urgent_failure_of_a_clean_up_after_an_explicit_cancellation(backend, form, kind):
    """P8: KeyboardInterrupt and SystemExit out of a clean-up leave the event loop."""
    urgent = kind("from the clean-up")
    scenes = []

    async def main():
        scenes.append(Scene(cleanup={2: urgent}))
        async with anyio.create_task_group() as group:

            async def cancel_later():
                await scenes[0].all_here.wait()
                scenes[0].handler.cancel("enough")

            group.start_soon(cancel_later)
            await scenes[0].run(form, await_it)

    with Catch() as left:
        run_virtually(backend, main)

    assert left.one is urgent
    assert sorted(scenes[0].cleaned) == [0, 1, 2]


@on_each_backend
def test_run_cancelled_before_it_started_never_starts(backend):
    """An unstarted run that is cancelled ends at once, and starts no more."""

    async def main():
        scene = Scene()
        await scene.handler.cancel("no need")

        assert scene.handler.status == "cancelled"
        with pytest.raises(WorkflowCancelledError, match="no need"):
            await scene.handler
        with pytest.raises(WorkflowRuntimeError):
            async with scene.handler:
                pass
        assert scene.under_way == 0
        assert [type(e) async for e in scene.handler.stream_events()] == [WorkflowCancelledEvent]

    run_virtually(backend, main)


@on_each_owner
def test_run_cancelled_before_its_first_turn_runs_no_step(backend, form):
    """``cancel()`` right after the start, with no checkpoint between: no step runs."""

    async def main():
        scene = Scene(count=1)
        with nothing_left():
            async with owner(form, scene.handler):
                scene.handler.cancel("at once")

        assert scene.under_way == 0
        assert scene.handler.status == "cancelled"

    run_virtually(backend, main)


# -- leaving early ---------------------------------------------------------------------------------


@on_each_owner
def test_body_that_ends_early_lets_the_run_finish(backend, form):
    """Leaving an owner normally waits for the run; readers that no one reads block nothing."""

    async def main():
        async def chatter(ctx, number):
            for n in range(20):
                await ctx.stream.send(Note(number=n))
                await anyio.sleep(0.1)

        handler = Fan(chatter, stream_buffer=2).run()
        with nothing_left():
            async with owner(form, handler):
                reader = handler.stream_events()
                await reader.receive()
                if form not in ("block", "scope"):
                    reader.close()  # a nursery does not know of readers

        assert handler.result() == [0, 1, 2]

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("form", ["block", "scope"])
def test_step_that_ends_in_the_tick_in_which_the_body_fails(backend, form):
    """However the race ends, the body's exception leaves and nothing else does."""

    async def main():
        for body_first in (False, True):
            error = Mine()
            go = anyio.Event()

            async def wait(ctx, go=go):
                await go.wait()

            handler = Single(wait).run()
            with nothing_left(), Catch() as left:
                async with owner(form, handler):
                    await wait_until_idle()
                    go.set()
                    if not body_first:
                        await anyio.lowlevel.checkpoint()
                    raise error

            assert left.error is error
            assert handler.status in ("cancelled", "completed")

    run_virtually(backend, main)


# -- the rules around a run -----------------------------------------------------------------------


@pytest.mark.parametrize(
    # A task of an asyncio.TaskGroup is not inside the AnyIO scopes around the group.
    ("backend", "form"),
    [(b, form) for b, form in FORMS if form != "asyncio group"],
)
def test_run_in_a_cancelled_task_runs_no_step(backend, form):
    """P2: where the task is cancelled already, no step begins, and the cancellation continues."""

    async def main():
        began = []

        async def begin(ctx):
            began.append(ctx.run_id)

        handler = Single(begin).run()
        with anyio.CancelScope() as scope:
            scope.cancel()
            if form == "in place":
                await handler
            async with owner(form, handler):
                await anyio.sleep_forever()

        assert scope.cancelled_caught
        assert began == []
        assert handler.status in ("cancelled", "unstarted")
        if handler.status == "unstarted":
            await handler.cancel()

    run_virtually(backend, main)


def test_run_in_a_natively_cancelled_task_runs_no_step():
    """P2: the same for ``task.cancel()`` that was asked for, and not yet delivered."""

    async def main():
        began = []
        handlers = []

        async def begin(ctx):
            began.append(ctx.run_id)
            await anyio.lowlevel.checkpoint()
            began.append("went on")

        async def owned():
            handlers.append(Single(begin).run())
            asyncio.current_task().cancel()
            await handlers[0]

        task = asyncio.create_task(owned())
        with pytest.raises(asyncio.CancelledError):
            await task

        assert began == []
        assert handlers[0].status == "cancelled"

    run_virtually("asyncio", main)


@pytest.mark.slow
@on_each_form
def test_shielded_clean_up_takes_the_time_it_takes(backend, form):
    """P2: shielded clean-up runs to its end, though deadlines pass meanwhile."""

    async def main():
        done = []

        async def work(ctx, number):
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(30 + number)
                    async with anyio.create_task_group() as group:
                        group.start_soon(anyio.sleep, 10)
                done.append(number)

        handler = Fan(work, timeout=10).run()
        with nothing_left(), Catch() as left, anyio.move_on_after(20) as scope:
            if form == "in place":
                await handler
            async with owner(form, handler):
                await handler

        assert done == [0, 1, 2]
        assert anyio.current_time() == pytest.approx(52)
        # The run's own timeout came first, so that is what the run ended by.
        assert handler.status == "timed_out"
        assert left.error is None or type(left.one) is WorkflowTimeoutError
        assert left.error is not None or scope.cancelled_caught

    run_virtually(backend, main)


def test_cancelled_error_of_a_future_is_not_a_cancellation():
    """A CancelledError that no cancellation of the run explains fails the run, and says so."""

    async def main():
        for count in (1, 3):

            async def work(ctx, number, last=count - 1):
                await anyio.sleep(1)
                if number == last:
                    future = asyncio.get_running_loop().create_future()
                    future.cancel()
                    await future

            handler = Fan(work, count).run()
            with nothing_left(), pytest.raises(WorkflowRuntimeError, match=r"Fan\.work") as caught:
                await handler

            assert type(caught.value.__cause__) is asyncio.CancelledError
            assert asyncio.current_task().cancelling() == 0
            assert handler.status == "failed"

    run_virtually("asyncio", main)


def test_stored_cancelled_that_is_raised_later_is_not_a_cancellation():
    """A trio.Cancelled that was kept and is raised where nothing is cancelled fails the run."""

    async def main():
        stored = []
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                stored.append(error)
                raise
        for count in (1, 3):

            async def work(ctx, number, last=count - 1):
                await anyio.sleep(1)
                if number == last:
                    raise stored[0]

            handler = Fan(work, count).run()
            with nothing_left(), pytest.raises(WorkflowRuntimeError, match=r"Fan\.work") as caught:
                await handler

            assert caught.value.__cause__ is stored[0]
            assert handler.status == "failed"

    run_virtually("trio", main)


def test_foreign_cancelled_error_is_an_exception_like_any_other():
    """An asyncio.CancelledError that a step raises under Trio arrives as itself."""

    async def main():
        error = asyncio.CancelledError("not Trio's")

        async def work(ctx):
            raise error

        with Catch() as left:
            await Single(work).run()

        assert left.error is error

    run_virtually("trio", main)


# -- steps with nurseries of their own ---------------------------------------------------------------


async def _spawning(ctx, number, cleaned, fail=None):
    async def child(which):
        try:
            if fail is not None:
                await anyio.sleep(2)
                raise fail[which]
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            cleaned.append((number, which))

    async with anyio.create_task_group() as group:
        group.start_soon(child, 0)
        group.start_soon(child, 1)


@on_each_form
def test_nursery_of_a_step_is_cancelled_with_the_run(backend, form):
    """P2: tasks that a step started unwind too, and still one cancelled exception leaves."""

    async def main():
        cleaned = []
        seen = []

        async def work(ctx, number):
            await _spawning(ctx, number, cleaned)

        handler = Fan(work).run()
        with nothing_left(), anyio.move_on_after(5) as scope, seen_on_its_way(seen):
            if form == "in place":
                await handler
            async with owner(form, handler):
                await handler

        assert scope.cancelled_caught
        assert sorted(cleaned) == [(n, w) for n in range(3) for w in range(2)]
        if form in ("in place", "block", "scope"):
            assert [type(e) for e in seen] == [cancelled_class()]
        assert handler.exceptions == ()

    run_virtually(backend, main)


@on_each_owner
def test_group_of_a_steps_own_nursery_arrives_as_itself(backend, form):
    """P8: an ExceptionGroup that a step raises is the user's own, and no engine group."""

    async def main():
        cleaned = []
        errors = [Mine("0"), Mine("1")]
        raised = []

        async def work(ctx):
            try:
                await _spawning(ctx, 0, cleaned, errors)
            except ExceptionGroup as group:
                raised.append(group)
                raise

        for observed in (True, False):
            handler = Single(work).run()
            seen = Catch()
            with nothing_left(), Catch() as left:
                async with owner(form, handler):
                    if observed:
                        with seen:
                            await handler
            assert handler.exceptions == (raised[-1],)
            if observed:
                assert seen.error is raised[-1]
                assert left.error is None
            elif form in ("block", "scope"):
                assert left.error is raised[-1]
            else:  # what passes a nursery of the test's own is taken apart by it
                assert set(leaves_of(left.error)) == set(raised[-1].exceptions)
            assert set(raised[-1].exceptions) <= set(errors)

    run_virtually(backend, main)


@on_each_form
def test_group_of_a_steps_own_nursery_during_a_cancellation(backend, form):
    """P2, P9, P23: what a step's own tasks raise while they are cancelled is kept as it was."""

    async def main():
        late = Mine("late")
        raised = []

        async def child(which):
            try:
                await anyio.sleep_forever()
            finally:
                if which:
                    raise late

        async def work(ctx):
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(child, 0)
                    group.start_soon(child, 1)
            except BaseException as error:
                raised.append(error)
                raise

        handler = Single(work).run()
        with nothing_left(), Catch() as left, anyio.move_on_after(5):
            if form == "in place":
                await handler
            async with owner(form, handler):
                await handler

        assert left.one is late
        assert handler.exceptions == (raised[0],)
        assert {type(e) for e in leaves_of(raised[0])} <= {Mine, cancelled_class()}

    run_virtually(backend, main)


@on_each_backend
def test_deadline_that_passes_while_a_failed_run_unwinds_changes_nothing(backend):
    """The first thing that settles the outcome counts, whatever comes while it unwinds."""

    async def main():
        error = Mine()

        async def work(ctx, number):
            if number == 1:
                await anyio.sleep(9)
                raise error
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)

        handler = Fan(work, timeout=10).run()
        with nothing_left(), Catch() as left:
            await handler

        assert left.error is error
        assert anyio.current_time() == pytest.approx(14)
        assert handler.status == "failed"
        assert handler.exceptions == (error,)

    run_virtually(backend, main)


@on_each_backend
def test_failure_that_arrives_after_the_deadline_is_kept_beside_the_timeout(backend):
    """P8, P10: the deadline came first, so it is what is raised; the failure is not lost."""

    async def main():
        error = Mine()

        async def work(ctx):
            try:
                jump_clock(9)
                raise error
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)

        handler = Single(work, timeout=10).run()
        with nothing_left(), Catch() as left:
            await handler

        assert type(left.error) is WorkflowTimeoutError
        assert handler.status == "timed_out"
        assert handler.exceptions == (left.error, error)

    run_virtually(backend, main)


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
@pytest.mark.peer("edge 2")
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
    """P9: a reader that was closed before the end does not count as someone who looks."""
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
    """P9: where a reader is attached that no one reads, the failure is still not silent."""
    async with anyio.create_task_group() as group:
        handler = Single(_fails).run().start_soon(group)
        reader = handler.stream_events()

    assert handler.status == "failed"
    kept = [handler, reader]
    del handler, group, reader
    with pytest.warns(RuntimeWarning, match=r"its failure was never observed: Mine\(\)"):
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


@pytest.mark.anyio
@pytest.mark.peer("edge 1")
async def test_step_that_raises_ends_the_stream_and_arrives_as_itself():
    """P4, P8: the stream ends with one failure event; the same exception is raised."""
    error = ValueError("boom")

    class Failing(Workflow):
        @step
        async def fail(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Line(text="before"))
            raise error

    async with Failing().run(run_id="r1") as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(ValueError, match="boom") as caught:
            await handler

    assert caught.value is error
    assert [type(event) for event in events] == [Line, WorkflowFailedEvent]
    assert events[-1].exception is error
    assert events[-1].step_name == "fail"
    [note] = error.__notes__
    assert "Failing.fail" in note
    assert "StartEvent()" in note
    assert "r1" in note
    assert handler.exceptions == (error,)


@pytest.mark.anyio
@pytest.mark.peer("edge 3")
async def test_failure_in_the_clean_up_of_a_sibling_of_the_stop_is_raised():
    """P8: a run whose clean-up failed did not complete, whatever the stop event said."""
    error = OSError("the disk is full")
    waiting = anyio.Event()

    class Racing(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item | Done]:
            return [Item(number=1), Done(number=2)]

        @step
        async def slow(self, ev: Item) -> StopEvent:
            try:
                waiting.set()
                await anyio.sleep_forever()
            finally:
                raise error
            return StopEvent(result="slow")

        @step
        async def fast(self, ev: Done) -> StopEvent:
            await waiting.wait()
            return StopEvent(result="fast")

    async with Racing().run() as handler:
        events = [event async for event in handler.stream_events()]
        with pytest.raises(OSError, match="full") as caught:
            await handler

    assert caught.value is error
    assert handler.status == "failed"
    assert handler.stop_event is not None
    assert handler.stop_event.result == "fast"
    assert [type(event) for event in events] == [WorkflowFailedEvent]


@pytest.mark.anyio
@pytest.mark.peer("edge 4")
async def test_failure_kept_from_the_nursery_and_never_looked_at_warns():
    """P9: a failure kept in the handler and dropped with it is at least a warning."""
    async with anyio.create_task_group() as nursery:
        handler = Single(_fails).run().start_soon(nursery, keep_failure=True)

    assert handler.status == "failed"
    kept = [handler]
    del handler
    with pytest.warns(RuntimeWarning, match=r"its failure was never observed: Mine\(\)"):
        drop(kept)


@pytest.mark.anyio
@pytest.mark.peer("edge 16")
async def test_step_that_raises_a_cancellation_of_its_own_fails_the_run():
    """P12: a stray cancellation is a failure that names the step, never a hang."""

    class Stray(Workflow):
        @step
        async def leak(self, ev: StartEvent) -> StopEvent:
            kept = None
            with anyio.CancelScope() as scope:
                scope.cancel()
                try:
                    await anyio.lowlevel.checkpoint()
                except anyio.get_cancelled_exc_class() as error:
                    kept = error
                    raise
            raise kept

    with pytest.raises(WorkflowRuntimeError, match=r"the step Stray\.leak raised Cancelled"):
        await Stray().run()


@pytest.mark.anyio
@on_asyncio
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.peer("edge 16")
async def test_step_that_awaits_a_cancelled_future_fails_the_run(anyio_backend, spread):
    """P12: so does awaiting a future that someone cancelled, in any worker."""

    class Stray(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(2 if spread else 1)]

        @step
        async def leak(self, ev: Item) -> Done:
            if ev.number == 1:
                await anyio.sleep_forever()
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.cancel)
            await future
            return Done(number=0)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowRuntimeError, match="CancelledError") as caught:
        await Stray().run()

    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert asyncio.current_task().cancelling() == 0


class Weird(BaseException):
    pass


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Weird, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.peer("edge 17")
async def test_any_base_exception_of_a_step_comes_out_bare(kind, spread):
    """P8, P17: whatever a step raises is raised by the await, itself and alone."""
    error = kind("odd")
    seen = []
    waiting = anyio.Event()

    class Odd(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(2 if spread else 1)]

        @step
        async def fail(self, ev: Item) -> Done:
            if ev.number == 0:
                if spread:
                    await waiting.wait()
                raise error
            try:
                waiting.set()
                await anyio.sleep_forever()
            finally:
                seen.append("cleaned up")
            return Done(number=1)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    handler = Odd().run()
    with pytest.raises(kind) as caught:
        await handler

    assert caught.value is error
    assert seen == (["cleaned up"] if spread else [])
    assert handler.exceptions == (error,)


@pytest.mark.anyio
@pytest.mark.peer("edge 20")
async def test_first_stop_event_wins_and_the_others_are_cancelled():
    """The first stop event is the result; what still runs is cancelled and waited for."""
    seen = []
    running = anyio.Event()

    class Racing(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(number=n) for n in range(3)]

        @step(num_workers=3)
        async def race(self, ev: Item) -> StopEvent:
            seen.append(ev.number)
            if len(seen) == 3:
                running.set()
            try:
                await running.wait()
                if ev.number != 1:
                    await anyio.sleep_forever()
            finally:
                seen.append(f"{ev.number} over")
            return StopEvent(result=ev.number)

    async with Racing().run() as handler:
        events = [event async for event in handler.stream_events()]
        assert await handler == 1

    assert sorted(map(str, seen[3:])) == ["0 over", "1 over", "2 over"]
    assert [event.result for event in events] == [1]


@pytest.mark.anyio
async def test_repr_that_raises_hides_no_failure():
    """P8: the step's own exception arrives, whatever its event does when it is shown."""
    error = ValueError("the real one")

    class Shy(StartEvent):
        def __repr__(self):
            raise RuntimeError("no repr")

    class Shows(Workflow[None]):
        @step
        async def only(self, ev: Shy) -> StopEvent:
            raise error

    with pytest.raises(ValueError, match="the real one") as caught:
        await Shows().run()

    assert caught.value is error


@pytest.mark.anyio
async def test_observer_that_raises_at_the_end_hangs_nobody():
    """A strict observer fails the run at its very end, too, and who waits for it is told."""

    class Bad(Observer):
        strict = True

        def run_ended(self, run):
            raise OSError("nobody reads this")

    handler = One(observers=[Bad()]).run()
    with anyio.fail_after(2), pytest.raises(OSError, match="nobody reads"):
        async with handler:
            await handler


def test_a_failure_that_nobody_saw_is_raised_where_a_nursery_hands_on_the_cancellation():
    """P9: a group of nothing but Cancelled is a cancellation, and gives way to the run's failure."""

    async def sleep(ctx):
        await trio.sleep(100)

    async def main():
        with pytest.raises(WorkflowTimeoutError), trio.CancelScope(deadline=10):
            async with Single(sleep, timeout=5).run(), trio.open_nursery():
                await trio.sleep(1)
                jump_clock(20)  # both deadlines pass in one turn
                await trio.sleep_forever()

    run_virtually("trio", main)
