"""Progress reports: ``ctx.progress()`` in the loop, in threads and in processes."""

from __future__ import annotations

import itertools
import threading
from fractions import Fraction

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    ProgressEvent,
    Retry,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    WorkflowRuntimeError,
    WorkflowStalledError,
    step,
)
from tests.helpers import (
    Catch,
    Fan,
    Mine,
    Single,
    cancelled_class,
    limit,
    nothing_left,
    on_each_backend,
    run_virtually,
    stepping,
)
from tests.process_flows import Counting


every_loop = pytest.mark.anyio


def reports_in(events):
    """Return what each report says: how much is done, of how much, and the message."""
    return [(e.done, e.total, e.message) for e in events if isinstance(e, ProgressEvent)]


async def reports_of(workflow, **fields):
    """Return what is reported in a run, and when; the run may fail."""
    began = anyio.current_time()
    found = []
    async with workflow.run(**fields) as handler:
        async for event in handler.stream_events():
            if isinstance(event, ProgressEvent):
                found.append((round(anyio.current_time() - began, 3), event.done))
        handler.exceptions  # noqa: B018 - looked at, so the block does not raise it
    return found


# -- what a report is --------------------------------------------------------------------------------


@every_loop
async def test_a_report_is_an_event_of_the_stream():
    """``await ctx.progress(done, total, message)`` publishes a ProgressEvent that names its step."""

    async def work(ctx):
        await ctx.progress(1, 4, "reading")

    with limit():
        async with Single(work).run(run_id="run-1") as handler:
            events = [event async for event in handler.stream_events()]

    report, _stop = events
    assert (report.run_id, report.step) == ("run-1", "only")
    assert (report.done, report.total, report.message) == (1, 4, "reading")


@every_loop
async def test_total_and_message_may_be_left_out():
    """Without a total it is not known how much there is to do."""

    async def work(ctx):
        await ctx.progress(0.5)

    with limit():
        async with Single(work).run() as handler:
            events = [event async for event in handler.stream_events()]

    assert reports_in(events) == [(0.5, None, "")]


@every_loop
async def test_numbers_of_other_types_become_plain_ones():
    """A report is plain data, also where a library's number was given."""

    async def work(ctx):
        await ctx.progress(Fraction(1, 2), Fraction(4), "half")

    with limit():
        async with Single(work).run() as handler:
            events = [event async for event in handler.stream_events()]

    assert reports_in(events) == [(0.5, 4.0, "half")]
    assert [type(n) for n in reports_in(events)[0][:2]] == [float, float]


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (
            ("3",),
            TypeError,
            "done of ctx.progress is '3'; expected a number: ctx.progress(3, 10) for 3 of 10",
        ),
        (
            (True,),
            TypeError,
            "done of ctx.progress is True; expected a number: ctx.progress(3, 10) for 3 of 10",
        ),
        (
            (3, "10"),
            TypeError,
            (
                "total of ctx.progress is '10'; expected a number or None: "
                "ctx.progress(3, 10) for 3 of 10"
            ),
        ),
        (
            (-1, 10),
            ValueError,
            (
                "done of ctx.progress is -1; expected a finite number of at least 0: "
                "ctx.progress(3, 10) for 3 of 10"
            ),
        ),
        (
            (3, float("inf")),
            ValueError,
            (
                "total of ctx.progress is inf; expected a finite number of at least 0: "
                "ctx.progress(3, 10) for 3 of 10"
            ),
        ),
        (
            (3, 10, b"reading"),
            TypeError,
            (
                "message of ctx.progress is b'reading'; expected a string: "
                'ctx.progress(3, 10, "reading")'
            ),
        ),
    ],
)
def test_wrong_arguments_are_refused_where_they_are_given(arguments, kind, text):
    """P13: the call raises, says what was expected, and reports nothing."""

    async def work(ctx):
        with pytest.raises(kind) as caught:
            ctx.progress(*arguments)
        return str(caught.value)

    async def main():
        async with Single(work).run() as handler:
            events = [event async for event in handler.stream_events()]
            return await handler, reports_in(events)

    assert trio.run(main) == (text, [])


@every_loop
async def test_a_step_that_has_ended_reports_nothing():
    """The context of a step that has ended, and that of no step, say so."""
    kept = []

    async def work(ctx):
        kept.append(ctx)

    with limit():
        async with Single(work).run() as handler:
            await handler
            with pytest.raises(WorkflowRuntimeError, match="outside of a step"):
                handler.ctx.progress(1)
    with pytest.raises(WorkflowRuntimeError, match="the step only has ended"):
        kept[0].progress(1)


# -- how many are published --------------------------------------------------------------------------


@on_each_backend
def test_a_hundred_thousand_reports_are_two_events(backend):
    """Within a tenth of a second, the first report is published and the newest of the rest."""

    async def work(ctx):
        for n in range(100_000):
            ctx.progress(n, 100_000)

    async def main():
        return await reports_of(Single(work))

    assert run_virtually(backend, main) == [(0, 0), (0, 99_999)]


@on_each_backend
def test_the_newest_report_is_published_while_the_step_is_silent(backend):
    """A report that was held is not lost in the silence that follows it; older ones are dropped."""

    async def work(ctx):
        await ctx.progress(1)
        await ctx.progress(2)
        await ctx.progress(3)
        await anyio.sleep(100)

    async def main():
        return await reports_of(Single(work))

    assert run_virtually(backend, main) == [(0, 1), (0.1, 3)]


@on_each_backend
def test_a_step_that_reports_often_is_heard_about_ten_times_a_second(backend):
    """Each interval of a tenth of a second has one report, and after a pause the next comes at once."""

    async def work(ctx):
        for n in range(100):
            await ctx.progress(n)
            await anyio.sleep(0.01)
        await anyio.sleep(5)
        await ctx.progress(100)
        await anyio.sleep(5)

    async def main():
        return await reports_of(Single(work))

    reports = run_virtually(backend, main)

    times = [time for time, _ in reports]
    assert 10 <= len(times) <= 13
    assert all(b - a > 0.099 for a, b in itertools.pairwise(times))
    assert [done for _, done in reports[-2:]] == [99, 100]
    assert times[-1] == 6.0


@on_each_backend
@pytest.mark.parametrize("end", ["returns", "raises", "is cancelled"])
def test_the_last_report_comes_however_the_step_ends(backend, end):
    """P4: what was reported before the end is on the stream before the end, and at once."""

    async def work(ctx):
        await ctx.progress(1, 2)
        await ctx.progress(2, 2)
        if end == "raises":
            raise Mine
        if end == "is cancelled":
            await anyio.sleep(1000)

    async def main():
        began = anyio.current_time()
        found = []
        with Catch():
            async with Single(work, timeout=0.05).run() as handler:
                found = reports_in([event async for event in handler.stream_events()])
                await handler
        return found, anyio.current_time() - began

    reports, took = run_virtually(backend, main)

    assert reports == [(1, 2, ""), (2, 2, "")]
    assert took == pytest.approx(0.05 if end == "is cancelled" else 0)


@on_each_backend
def test_each_invocation_is_heard(backend):
    """The limit is that of an invocation: many that report at once are all published."""

    async def work(ctx, number):
        await ctx.progress(number, message="first")
        await ctx.progress(number, message="dropped")
        await ctx.progress(number, message="second")
        await anyio.sleep(1)

    async def main():
        async with Fan(work, count=20).run() as handler:
            return [event async for event in handler.stream_events()]

    events = run_virtually(backend, main)

    reports = reports_in(events)
    numbers = {(event.invocation, event.done) for event in events[:-1]}
    assert len({number for number, _ in numbers}) == len(numbers) == 20
    for message in ("first", "second"):
        assert sorted(done for done, _, text in reports if text == message) == [*range(20)]
    assert len(reports) == 40


@every_loop
async def test_a_run_that_has_reported_leaves_no_task_and_does_not_wait():
    """P1: the task that publishes held reports ends with the run, and does not keep it."""

    async def work(ctx):
        await ctx.progress(1)
        await ctx.progress(2)

    with limit(), nothing_left():
        for _ in range(100):  # each would wait for a tenth of a second
            handler = Single(work).run()
            await handler
            assert not any(handler._run.leftovers().values())


@every_loop
async def test_a_run_that_has_reported_still_stalls_at_once():
    """P12: the task of the reports is no task of a step that could still do something."""

    async def work(ctx):
        await ctx.progress(1)
        await ctx.wait_for_event(Never)

    with limit(), pytest.raises(WorkflowStalledError):
        await stepping_with_never(work).run()


class Never(Event):
    pass


def stepping_with_never(function):
    class Stepping(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent | Never:
            return StopEvent(result=await function(ctx))

        @step
        async def take(self, ev: Never) -> None:
            pass

    return Stepping()


@every_loop
async def test_the_reports_of_a_child_are_on_the_stream_of_its_parent():
    """They name the run of the child, whose invocations have numbers of their own."""

    async def inner(ctx):
        await ctx.progress(1, 2)
        await ctx.progress(2, 2)

    async def outer(ctx):
        await ctx.run_child(Single(inner), run_id="child")

    with limit():
        async with Single(outer).run() as handler:
            events = [event async for event in handler.stream_events()]

    assert reports_in(events) == [(1, 2, ""), (2, 2, "")]
    assert {event.run_id for event in events[:-1]} == {"child"}


# -- cancellation and time ---------------------------------------------------------------------------


@every_loop
async def test_awaiting_a_report_checks_for_cancellation():
    """P3: a loop that only reports can be cancelled; the last report has been made."""
    seen = []

    async def work(ctx):
        n = 0
        while True:
            n += 1
            seen.append(n)
            await ctx.progress(n)

    with limit():
        async with Single(work).run() as handler:
            stream = handler.stream_events()
            first = await anext(stream)
            await handler.cancel()
            rest = [event async for event in stream]

    assert reports_in([first, *rest])[-1][0] == seen[-1]


@every_loop
async def test_a_report_lets_other_tasks_run():
    """P3: a loop that only reports lets other tasks run."""
    turns = []

    async def work(ctx):
        while len(turns) < 3:
            await ctx.progress(len(turns))

    async def other():
        while len(turns) < 3:
            turns.append(1)
            await anyio.lowlevel.checkpoint()

    with limit():
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(other)
            await Single(work).run()

    assert len(turns) == 3


@on_each_backend
@pytest.mark.parametrize("reports", [True, False])
def test_a_report_restarts_the_idle_timeout(backend, reports):
    """Each call counts as progress, whether its report is published or held."""

    async def work(ctx):
        for n in range(5):
            if reports:
                ctx.progress(n)
            await anyio.sleep(4)
        return "done"

    async def main():
        if reports:
            return await stepping(work, idle_timeout=5)().run()
        with pytest.raises(StepTimeoutError):
            await stepping(work, idle_timeout=5)().run()
        return "late"

    assert run_virtually(backend, main) == ("done" if reports else "late")


@on_each_backend
def test_a_retried_step_reports_from_the_start(backend):
    """What a failed attempt has reported stays on the stream, and the next one reports anew."""
    attempts = []

    class Twice(Workflow):
        @step(retry=Retry(stop=2, wait=3))
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            attempts.append(1)
            await ctx.progress(len(attempts), message="begun")
            await ctx.progress(len(attempts), message="held")
            if len(attempts) == 1:
                raise Mine
            return StopEvent()

    async def main():
        return await reports_of(Twice())

    assert run_virtually(backend, main) == [(0, 1), (0, 1), (3, 2), (3, 2)]


# -- threads and processes ---------------------------------------------------------------------------


@every_loop
async def test_a_step_in_a_thread_reports_without_await():
    """A ``def`` step calls it as it is; the first report and the last are there, in order."""

    class Threaded(Workflow):
        @step
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for n in range(1, 20_001):
                ctx.progress(n, 20_000)
            return StopEvent(result=threading.get_ident())

    with limit():
        async with Threaded().run() as handler:
            events = [event async for event in handler.stream_events()]
            assert await handler != threading.get_ident()

    reports = [done for done, _, _ in reports_in(events)]
    assert reports[0] == 1
    assert reports[-1] == 20_000
    assert reports == sorted(reports)


@every_loop
async def test_the_held_report_of_a_thread_comes_while_it_is_busy():
    """The newest report is published while the thread computes, and does not report."""
    has_come = threading.Event()

    class Threaded(Workflow):
        @step
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for n in range(1, 4):
                ctx.progress(n)
            return StopEvent(result=has_come.wait(5))

    with limit():
        async with Threaded().run() as handler:
            async for event in handler.stream_events():
                if isinstance(event, ProgressEvent) and event.done == 3:
                    has_come.set()
            assert await handler


@every_loop
async def test_a_report_in_a_cancelled_thread_raises():
    """A step in a thread that only reports ends when it is cancelled (P2)."""
    seen = []

    class Threaded(Workflow):
        @step
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                while True:
                    ctx.progress(len(seen))
            except BaseException as error:
                seen.append(error)
                raise

    with limit():
        async with Threaded().run() as handler:
            await anext(handler.stream_events())
            await handler.cancel()

    assert isinstance(seen[0], cancelled_class())


@every_loop
async def test_a_thread_may_run_it_in_the_loop_too():
    """``ctx.from_thread.run(ctx.progress, ...)`` is the same, as for every coroutine."""

    class Threaded(Workflow):
        @step
        def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.from_thread.run(ctx.progress, 1, 2)
            return StopEvent()

    with limit():
        async with Threaded().run() as handler:
            events = [event async for event in handler.stream_events()]

    assert reports_in(events) == [(1, 2, "")]


@every_loop
async def test_another_thread_is_refused():
    """A thread that is not the step's is shown the way, and does no harm."""
    refused = []

    async def work(ctx):
        def outside():
            try:
                ctx.progress(1)
            except WorkflowRuntimeError as error:
                refused.append(str(error))

        thread = threading.Thread(target=outside)
        thread.start()
        thread.join()

    with limit():
        await Single(work).run()

    assert refused == [
        (
            "ctx.progress was called in another thread than the one that runs the workflow; expected "
            "`trio.from_thread.run_sync(ctx.progress, ...)` or its AnyIO counterpart"
        )
    ]


@every_loop
async def test_a_step_in_a_process_reports():
    """In a process it is the same call; the first and the newest reports come, in order."""
    with anyio.fail_after(30):
        async with Counting().run(times=20_000) as handler:
            events = [event async for event in handler.stream_events()]

    reports = [done for done, _, _ in reports_in(events)]
    assert reports[0] == 0
    assert reports[-1] == 19_999
    assert reports == sorted(reports)
    assert {event.step for event in events[:-1]} == {"count"}


@pytest.mark.slow
@every_loop
async def test_the_held_report_of_a_process_comes_while_it_is_busy(tmp_path):
    """The newest report is sent while the process computes."""
    with anyio.fail_after(30):
        async with Counting().run(times=3, until=str(tmp_path / "seen")) as handler:
            async for event in handler.stream_events():
                if isinstance(event, ProgressEvent) and event.done == 2:
                    (tmp_path / "seen").touch()
            assert await handler == "seen"


@pytest.mark.slow
@every_loop
async def test_what_a_report_in_a_process_refuses():
    """A wrong argument is refused in the process, where the step can see it."""
    with anyio.fail_after(30):
        text = await Counting().run(times="no")

    assert text == (
        "done of ctx.progress is 'no'; expected a number: ctx.progress(3, 10) for 3 of 10"
    )
