"""Run stores: durable runs in blocks, nurseries and scopes; who owns them; what the store says of them."""

from __future__ import annotations

import contextlib
import gc
import threading

import anyio
import pytest

from sluicegate import (
    Context,
    Event,
    EventConflictError,
    QuestionClosedError,
    SnapshotError,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    WorkflowDetachedError,
    WorkflowRuntimeError,
    step,
    workflow_scope,
)
from sluicegate.durable import (
    MemoryStore,
    RunConflictError,
    RunEndedError,
    StoreClosedError,
    UnknownRunError,
    UnknownWorkflowError,
    open_run_store,
)
from tests.durable.stored import (
    EPOCH,
    Answer,
    Asking,
    AskingMidway,
    Begin,
    Counting,
    Failing,
    Middle,
    Question,
    Retrying,
    Stores,
    kill,
    kinds_of,
    reach,
)
from tests.helpers import on_each_backend, run_virtually


pytestmark = on_each_backend


# -- starting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["in place", "block", "nursery", "scope"])
def test_a_durable_run_has_the_owners_of_any_run(backend, how):
    """The handler is the same, and so are the ways to start it; the end is in the store."""

    async def main():
        async with Stores().open() as runs:
            handler = runs.run(Counting().run(n=1), run_id="a")
            if how == "in place":
                result = await handler
            elif how == "block":
                async with handler:
                    result = await handler
            elif how == "nursery":
                async with anyio.create_task_group() as nursery:
                    result = await handler.start_soon(nursery)
            else:
                async with workflow_scope() as scope:
                    result = await handler.start_soon(scope)
            return result, handler.status, (await runs.get("a")).status, await kinds_of(runs, "a")

    result, status, stored, kinds = run_virtually(backend, main)

    assert (result, status, stored) == (3, "completed", "completed")
    assert kinds == ["base", "start", "begun", "done", "done", "end"]


def test_a_second_start_attaches(backend):
    """D7: the run id is the idempotency key; the steps run once, and both have the result."""

    async def main():
        workflow = Counting()
        async with Stores().open() as runs:
            first = await runs.run(workflow.run(n=1), run_id="a")
            second = await runs.run(workflow.run(n=1), run_id="a")
            return first, second, workflow.ran

    assert run_virtually(backend, main) == (3, 3, ["first", "second"])


def test_two_handlers_of_one_run_at_a_time(backend):
    """The second follows the first; it takes over nothing, and gets the result and the stream."""

    async def main():
        workflow = Asking()
        async with Stores().open() as runs, runs.run(workflow.run(), run_id="a") as first:
            await reach(runs, "a", "parked")
            async with runs.run(workflow.run(), run_id="a") as second:
                await second.send_event(Answer(text="yes"))
                events = [event async for event in second.stream_events()]
                return await first, await second, events, workflow.ran

    first, second, events, ran = run_virtually(backend, main)

    assert (first, second, ran) == ("yes", "yes", ["ask", "end"])
    assert list(map(repr, events)) == ["Question(prompt='0?')", "StopEvent(result='yes')"]


def test_an_id_names_one_run(backend):
    """Another start event, or another workflow, under the id is an error that shows both."""

    async def main():
        async with Stores().open() as runs:
            await runs.run(Counting().run(n=1), run_id="a")
            with pytest.raises(RunConflictError) as other_event:
                await runs.run(Counting().run(n=2), run_id="a")
            with pytest.raises(RunConflictError) as other_workflow:
                await runs.run(Asking().run(n=1), run_id="a")
            return str(other_event.value), str(other_workflow.value), await kinds_of(runs, "a")

    other_event, other_workflow, kinds = run_virtually(backend, main)

    assert "begins with Begin(n=2)" in other_event
    assert "began with Begin(n=1)" in other_event
    assert "a run of Asking was started as 'a', and the store has one of Counting" in other_workflow
    assert kinds[-1] == "end"


def test_what_cannot_be_kept_is_refused_at_once(backend):
    """The start event is encoded by runs.run(); the message names the field."""

    class Holding(StartEvent):
        file: object

    class Flow(Workflow):
        @step
        async def work(self, ev: Holding) -> StopEvent:
            return StopEvent()

    async def main():
        async with Stores().open() as runs:
            handler = Flow().run(file=object())
            with pytest.raises(SnapshotError, match="file"):
                runs.run(handler, run_id="a")
            handler.cancel()
            return await runs.list()

    assert run_virtually(backend, main) == []


def test_a_failure_is_the_run_s_end(backend):
    """It leaves the owner as it is; a later start gets what the store has of it."""

    async def main():
        async with Stores().open() as runs:
            with pytest.raises(OSError, match="broken"):
                await runs.run(Failing().run(), run_id="a")
            with pytest.raises(Exception, match="OSError: broken") as again:
                await runs.run(Failing().run(), run_id="a")
            return (await runs.get("a")).status, type(again.value).__name__

    assert run_virtually(backend, main) == ("failed", "RestoredError")


# -- waiting costs disk ---------------------------------------------------------------------------


def test_an_idle_run_is_released_and_comes_back(backend):
    """The handler, its readers and its questions outlast the release; no completed step runs again."""

    async def main():
        workflow = Asking()
        async with Stores().open() as runs, runs.run(workflow.run(n=7), run_id="a") as handler:
            stream = handler.stream_events()
            asked = await stream.receive()
            await reach(runs, "a", "parked")
            shown = handler.status, [(q.id, repr(q.event)) for q in handler.questions]
            with pytest.raises(WorkflowRuntimeError, match=r"runs\.snapshot"):
                handler.snapshot()
            owner = (await runs.get("a")).owner
            await handler.send_event(Answer(text="yes"))
            rest = [event async for event in stream]
            result = await handler
            assert handler.questions == ()
            return asked, shown, owner, rest, result, workflow.ran

    asked, shown, owner, rest, result, ran = run_virtually(backend, main)

    assert repr(asked) == "Question(prompt='7?')"
    assert shown == ("idle", [("q1", repr(asked))])
    assert owner is None
    assert list(map(repr, rest)) == ["StopEvent(result='yes')"]
    assert (result, ran) == ("yes", ["ask", "end"])


def test_a_step_that_waits_midway_is_released(backend):
    """It begins again with the answers that it had; an answered question is not asked again."""

    async def main():
        workflow = AskingMidway()
        async with Stores().open() as runs, runs.run(workflow.run(), run_id="a") as handler:
            for text in ("x", "y"):
                await reach(runs, "a", "parked")
                await handler.send_event(Answer(text=text))
                if text == "x":
                    with anyio.fail_after(60):
                        while [repr(q.event) for q in handler.questions] != [
                            repr(Question(prompt="second"))
                        ]:
                            await anyio.sleep(0.01)
            events = [event async for event in handler.stream_events()]
            return await handler, workflow.ran, events

    result, ran, events = run_virtually(backend, main)

    assert result == "xy"
    assert ran == ["begins", "begins", "x", "begins", "x"]
    assert list(map(repr, events)) == [
        "Question(prompt='first')",
        "Question(prompt='second')",
        "StopEvent(result='xy')",
    ]


def test_never_released(backend):
    """With release_idle=None an idle run stays in memory, and the store says so."""

    async def main():
        workflow = AskingMidway()
        async with (
            Stores().open(release_idle=None) as runs,
            runs.run(workflow.run(), run_id="a") as handler,
        ):
            await reach(runs, "a", "idle")
            await anyio.sleep(10_000)
            status = (await runs.get("a")).status
            await handler.send_event(Answer(text="x"))
            await handler.send_event(Answer(text="y"))
            return status, await handler, workflow.ran

    assert run_virtually(backend, main) == ("idle", "xy", ["begins", "x"])


def test_timers_wake_a_run(backend):
    """D6: a retry that is due in a day holds no memory; it fires after it is due, and not before."""

    async def main():
        workflow = Retrying()
        async with Stores().open() as runs:
            result = await runs.run(workflow.run(), run_id="a")
            return result, [b - a for a, b in zip(workflow.began, workflow.began[1:], strict=False)]

    result, delays = run_virtually(backend, main)

    assert result == 3
    assert all(86_400 <= delay < 86_402 for delay in delays)


def test_a_sleep_holds_no_memory(backend):
    """A step that sleeps for a week is released, and continues after the sleep, which is not begun again."""

    class Sleeping(Workflow):
        began = 0

        @step
        async def work(self, ev: Begin, ctx: Context) -> StopEvent:
            type(self).began += 1
            await ctx.sleep(7 * 86_400)
            return StopEvent(result=anyio.current_time())

    async def main():
        start = anyio.current_time()
        async with Stores().open() as runs, runs.run(Sleeping().run(), run_id="a") as handler:
            await reach(runs, "a", "parked")
            wake_at = (await runs.get("a")).wake_at
            return wake_at - EPOCH - start, await handler - start

    wake_at, slept = run_virtually(backend, main)

    assert wake_at == pytest.approx(7 * 86_400, abs=1)
    assert 7 * 86_400 <= slept < 7 * 86_400 + 1
    assert Sleeping.began == 2


# -- owners -------------------------------------------------------------------------------------


def test_leaving_the_owner_is_no_cancellation(backend):
    """D5: a block that fails detaches its run, which the next owner continues; the done step is done."""

    async def main():
        stores, workflow = Stores(), Counting()
        workflow.gate = anyio.Event()
        async with stores.open() as runs:
            handler = runs.run(workflow.run(n=1), run_id="a")
            with pytest.raises(ZeroDivisionError):
                async with handler:
                    with anyio.fail_after(60):
                        while workflow.ran != ["first", "second"]:
                            await anyio.sleep(0.01)
                    raise ZeroDivisionError
            status = handler.status
            with pytest.raises(WorkflowDetachedError):
                handler.result()
            kinds = await kinds_of(runs, "a")
        workflow.gate.set()
        async with stores.open() as runs:
            return status, kinds, await runs.run(workflow.run(n=1), run_id="a"), workflow.ran

    status, kinds, result, ran = run_virtually(backend, main)

    assert status == "detached"
    assert kinds == ["base", "start", "begun", "done"]
    assert (result, ran) == (3, ["first", "second", "second"])


def test_a_cancelled_owner_detaches(backend):
    """The cancellation of an owner in place propagates, and records nothing."""

    async def main():
        workflow = Counting()
        workflow.gate = anyio.Event()
        async with Stores().open() as runs:
            handler = runs.run(workflow.run(), run_id="a")
            with anyio.move_on_after(5) as scope:
                await handler
            row = await runs.get("a")
            return scope.cancelled_caught, handler.status, row.status, row.owner

    assert run_virtually(backend, main) == (True, "detached", "running", None)


def test_a_cancelled_wait_for_a_parked_run(backend):
    """A run at rest holds no lease when its owner is cancelled."""

    async def main():
        async with Stores().open() as runs:
            handler = runs.run(Asking().run(), run_id="a")
            with anyio.move_on_after(5):
                await handler
            row = await runs.get("a")
            return handler.status, row.status, row.owner, len(await runs.questions())

    assert run_virtually(backend, main) == ("detached", "parked", None, 1)


def test_another_process_takes_over(backend):
    """D4: a follower continues the run of a process that was killed; what was recorded is not done again."""

    async def main():
        stores, workflow = Stores(), Counting()
        workflow.gate = anyio.Event()
        async with anyio.create_task_group() as nursery, stores.open() as mine:

            async def doomed():
                async with stores.open() as theirs:
                    with pytest.raises(WorkflowDetachedError):
                        async with theirs.run(workflow.run(n=1), run_id="a") as handler:
                            with anyio.fail_after(60):
                                while len(workflow.ran) < 2:
                                    await anyio.sleep(0.01)
                            killed.set()
                            kill(theirs)
                            await handler

            killed = anyio.Event()
            nursery.start_soon(doomed)
            await reach(mine, "a", "running")
            async with mine.run(workflow.run(n=1), run_id="a") as handler:
                await killed.wait()
                workflow.gate.set()
                return await handler, workflow.ran

    assert run_virtually(backend, main) == (3, ["first", "second", "second"])


def test_a_stale_owner_is_cancelled(backend):
    """D4: a process that was stopped past its lease ends its part, and says so; its writes are refused."""

    async def main():
        stores, workflow = Stores(), Counting()
        workflow.gate = anyio.Event()
        async with (
            stores.open() as stalled,
            stores.open() as other,
            stalled.run(workflow.run(n=1), run_id="a") as first,
        ):
            with anyio.fail_after(60):
                while len(workflow.ran) < 2:
                    await anyio.sleep(0.01)
            stalled._hub.journal.stall()
            async with other.run(workflow.run(n=1), run_id="a") as second:
                with anyio.fail_after(60):
                    while len(workflow.ran) < 3:
                        await anyio.sleep(0.01)
                stalled._hub.journal.go_on()
                with pytest.raises(WorkflowDetachedError, match="lease"):
                    await first
                workflow.gate.set()
                return first.status, await second

    assert run_virtually(backend, main) == ("detached", 3)


def test_a_closed_store_detaches_its_runs(backend):
    """Leaving the block of the store waits for the runs that are entered elsewhere."""

    async def main():
        workflow, stores = Counting(), Stores()
        workflow.gate = anyio.Event()
        async with anyio.create_task_group() as nursery:
            async with stores.open() as runs:
                handler = runs.run(workflow.run(), run_id="a")
                handler.start_soon(nursery)
                with anyio.fail_after(60):
                    while len(workflow.ran) < 2:
                        await anyio.sleep(0.01)
            is_done = handler.is_done()
        with pytest.raises(StoreClosedError, match="was not entered, or has been left"):
            runs.run(workflow.run(), run_id="b")
        async with stores.open() as runs:
            return is_done, handler.status, (await runs.get("a")).owner

    with pytest.warns(RuntimeWarning, match="never started"):
        result = run_virtually(backend, main)

    assert result == (True, "detached", None)


# -- cancelling -----------------------------------------------------------------------------------


def test_cancelling_here(backend):
    """D5: handler.cancel() is recorded, and is the end of the run."""

    async def main():
        workflow = Counting()
        workflow.gate = anyio.Event()
        async with Stores().open() as runs:
            async with runs.run(workflow.run(), run_id="a") as handler:
                with anyio.fail_after(60):
                    while len(workflow.ran) < 2:
                        await anyio.sleep(0.01)
                await handler.cancel("enough")
            with pytest.raises(WorkflowCancelledError, match="enough"):
                await runs.run(workflow.run(), run_id="a")
            return await kinds_of(runs, "a"), (await runs.get("a")).status

    kinds, status = run_virtually(backend, main)

    assert kinds[-2:] == ["cancel", "end"]
    assert status == "cancelled"


@pytest.mark.parametrize("where", ["live", "parked"])
def test_cancelling_from_elsewhere(backend, where):
    """D5: runs.cancel() reaches the run in another process, live or at rest."""

    async def main():
        stores = Stores()
        release = None if where == "live" else 0.0
        async with stores.open() as mine, stores.open(release_idle=release) as theirs:
            async with theirs.run(Asking().run(), run_id="a") as handler:
                await reach(mine, "a", "idle" if where == "live" else "parked")
                await mine.cancel("a", "not needed")
                with pytest.raises(WorkflowCancelledError, match="not needed"):
                    await handler
            with pytest.raises(RunEndedError, match="cancelled"):
                await mine.cancel("a")
            return (await mine.get("a")).status, (await mine.get("a")).messages

    assert run_virtually(backend, main) == ("cancelled", 0)


def test_a_parked_run_is_cancelled_by_its_handler(backend):
    """The handler of a run at rest cancels the run, and waits for its end."""

    async def main():
        workflow = Asking()
        async with Stores().open() as runs, runs.run(workflow.run(), run_id="a") as handler:
            await reach(runs, "a", "parked")
            await handler.cancel("enough")
            return handler.status, (await runs.get("a")).status, workflow.ran

    assert run_virtually(backend, main) == ("cancelled", "cancelled", ["ask"])


def test_a_cancellation_that_was_recorded_runs_no_step(backend):
    """A run that was cancelled while its process died ends with its next owner, without a step."""

    async def main():
        stores, workflow = Stores(), Counting()
        workflow.gate = anyio.Event()
        async with stores.open() as doomed:
            with pytest.raises(ZeroDivisionError):
                async with doomed.run(workflow.run(), run_id="a"):
                    with anyio.fail_after(60):
                        while len(workflow.ran) < 2:
                            await anyio.sleep(0.01)
                    raise ZeroDivisionError
        async with stores.open(workflows=[workflow]) as runs:
            await runs.cancel("a", "enough")
            with pytest.raises(WorkflowCancelledError, match="enough"):
                await runs.resume("a", workflow)
            return workflow.ran

    assert run_virtually(backend, main) == ["first", "second"]


# -- events ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["live", "parked"])
def test_answers_from_elsewhere(backend, where):
    """D7: runs.send_event() reaches the run in another process, and its id makes it idempotent."""

    async def main():
        stores, workflow = Stores(), Asking()
        release = None if where == "live" else 0.0
        async with (
            stores.open(workflows=[workflow]) as mine,
            stores.open(release_idle=release) as other,
            other.run(workflow.run(), run_id="a") as handler,
        ):
            await reach(mine, "a", "idle" if where == "live" else "parked")
            (question,) = await mine.questions()
            answer = Answer(text="yes")
            acks = [
                await mine.send_event("a", answer, question=question.id, id="1") for _ in range(2)
            ]
            with pytest.raises(EventConflictError):
                await mine.send_event("a", Answer(text="no"), question=question.id, id="1")
            return question, [ack.is_repeated for ack in acks], await handler, workflow.ran

    question, repeated, result, ran = run_virtually(backend, main)

    assert (question.run_id, question.event, question.fields) == ("a", "Question", {"prompt": "0?"})
    assert question.answers == ("Answer",)
    assert repeated == [False, True]
    assert (result, ran) == ("yes", ["ask", "end"])


def test_what_is_wrong_is_raised_at_once(backend):
    """An event for no step, no run, a closed question or an ended run is refused where it is sent."""

    async def main():
        stores, workflow = Stores(), Asking()
        async with stores.open(workflows=[workflow]) as runs:
            with anyio.move_on_after(1):
                await runs.run(workflow.run(), run_id="a")
            with pytest.raises(UnknownRunError, match="no run 'b'"):
                await runs.send_event("b", Answer(text="x"))
            with pytest.raises(WorkflowRuntimeError, match="Middle"):
                await runs.send_event("a", Middle(n=1))
            with pytest.raises(QuestionClosedError, match="q9"):
                await runs.send_event("a", Answer(text="x"), question="q9")
            with pytest.raises(WorkflowRuntimeError, match="does not answer"):
                await runs.send_event("a", Begin(n=1), question="q1")
            with pytest.raises(TypeError, match="both step"):
                await runs.send_event("a", Answer(text="x"), "end", question="q1")
            before = (await runs.get("a")).messages
            await runs.send_event("a", Answer(text="x"))
            result = await runs.resume("a", workflow)
            with pytest.raises(RunEndedError):
                await runs.send_event("a", Answer(text="x"))
            return before, result

    assert run_virtually(backend, main) == (0, "x")


def test_an_event_sent_before_the_run_is_stored(backend):
    """It waits for the run to be created, and is acknowledged then."""

    async def main():
        async with Stores().open() as runs, runs.run(Asking().run(), run_id="a") as handler:
            await handler.send_event(Answer(text="early"))
            return await handler

    assert run_virtually(backend, main) == "early"


# -- looking --------------------------------------------------------------------------------------


def test_lists_and_counts(backend):
    """Runs are found by status, workflow and questions, page by page."""

    async def main():
        async with Stores().open() as runs:
            for number in range(3):
                await runs.run(Counting().run(), run_id=f"c{number}")
            with anyio.move_on_after(1):
                await runs.run(Asking().run(), run_id="q")
            first = await runs.list(limit=2)
            return (
                [each.run_id for each in first],
                [each.run_id for each in await runs.list(after=first[-1].run_id)],
                [each.run_id for each in await runs.list(status="completed", newest_first=True)],
                [each.run_id for each in await runs.list(asking=True)],
                await runs.counts(),
                await runs.counts(workflow="Counting"),
                [(q.run_id, q.id) for q in await runs.questions(workflow="Asking")],
            )

    assert run_virtually(backend, main) == (
        ["c0", "c1"],
        ["c2", "q"],
        ["c2", "c1", "c0"],
        ["q"],
        {"completed": 3, "parked": 1},
        {"completed": 3},
        [("q", "q1")],
    )


def test_a_fork_continues_from_a_record(backend):
    """The copy has the run's state then; the original is not changed, and its other steps do not run."""

    async def main():
        workflow = Counting()
        async with Stores().open(keep_history=True) as runs:
            await runs.run(workflow.run(n=1), run_id="a")
            copy_id = await runs.fork("a", at=4)
            with pytest.raises(ValueError, match="records 1 to 6"):
                await runs.fork("a", at=7)
            with pytest.raises(WorkflowRuntimeError, match="already"):
                await runs.fork("a", at=4, new_id="a")
            snapshot = await runs.snapshot("a", at=4)
            return (
                await runs.resume(copy_id, workflow),
                workflow.ran,
                list(snapshot["run"]["steps"]),
            )

    result, ran, waiting = run_virtually(backend, main)

    assert (result, ran, waiting) == (3, ["first", "second", "second"], ["second"])


def test_deleting_and_pruning(backend):
    """Ended runs are pruned by age; a run that a process has is not deleted."""

    async def main():
        async with Stores().open() as runs:
            await runs.run(Counting().run(), run_id="old")
            await anyio.sleep(100)
            await runs.run(Counting().run(), run_id="new")
            pruned = await runs.prune(older_than=50)
            left = [each.run_id for each in await runs.list()]
            await runs.delete("new")
            with pytest.raises(UnknownRunError):
                await runs.delete("new")
            return pruned, left, await runs.list()

    assert run_virtually(backend, main) == (1, ["new"], [])


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("runs.db", "sqlite:///runs.db"),
        ("sqlite://runs.db", "sqlite:///runs.db"),
        ("sqlite:///", "sqlite:///runs.db"),
        ("postgres:///runs", "sqlite:///runs"),
    ],
)
def test_urls(backend, url, shown):
    """A url that names no store is refused with one that does."""
    del backend
    with pytest.raises(ValueError, match=f"expected '{shown}'"):
        open_run_store(url)


def test_options(backend):
    """Options are checked where they are given."""
    del backend
    for options in (
        {"release_idle": -1},
        {"max_crashes": 0},
        {"durability": "disk"},
        {"timeouts": "sometimes"},
        {"lease": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            open_run_store("memory:", **options)
    with pytest.raises(TypeError, match="expected a url"):
        open_run_store(MemoryStore)
    with pytest.raises(TypeError, match="MyWorkflow"):
        open_run_store("memory:", workflows=[Counting])


def test_misuse(backend):
    """Each misuse is refused with the way that works."""

    async def main():
        stores, workflow = Stores(), Counting()
        async with stores.open() as runs:
            started = workflow.run()
            await started
            with pytest.raises(WorkflowRuntimeError, match="was started before"):
                runs.run(started)
            with pytest.raises(TypeError, match=r"runs\.run\(workflow\.run"):
                runs.run(workflow)
            handler = runs.run(workflow.run())
            with pytest.raises(WorkflowRuntimeError, match="in a store already"):
                runs.run(handler)
            handler.cancel()
            with pytest.raises(ValueError, match="at least one workflow"):
                runs.worker()
            await runs.run(workflow.run(), run_id="a")
        async with stores.open() as runs:
            with pytest.raises(UnknownWorkflowError, match=r"workflows=\[Counting\(\)\]"):
                await runs.snapshot("a")
            with pytest.raises(UnknownRunError, match="no run 'zzz'"):
                await runs.get("zzz")
            with pytest.raises(UnknownRunError, match="no run 'zzz'"):
                await runs.resume("zzz", workflow)

    run_virtually(backend, main)


# -- following ------------------------------------------------------------------------------------


def test_attaching(backend):
    """A reader in another process has the stream, the questions and the result, and can answer."""

    async def main():
        stores, workflow = Stores(), Asking()
        async with (
            stores.open() as theirs,
            stores.open(workflows=[workflow]) as mine,
            theirs.run(workflow.run(n=3), run_id="a") as handler,
        ):
            await reach(mine, "a", "parked")
            async with await mine.attach("a") as reader:
                stream = reader.stream_events()
                asked = await stream.receive()
                cursor = stream.cursor
                seen = reader.status, [q.id for q in reader.questions]
                await reader.send_event(Answer(text="yes"), question="q1")
                result = await reader
            async with await mine.attach("a") as later:
                rest = [event async for event in later.stream_events(after=cursor)]
                everything = [event async for event in later.stream_events()]
            return asked, seen, result, rest, everything, await handler, reader.status

    asked, seen, result, rest, everything, end, status = run_virtually(backend, main)

    assert repr(asked) == "Question(prompt='3?')"
    assert seen == ("idle", ["q1"])
    assert (result, end, status) == ("yes", "yes", "completed")
    assert list(map(repr, rest)) == ["StopEvent(result='yes')"]
    assert list(map(repr, everything)) == ["Question(prompt='3?')", "StopEvent(result='yes')"]


@pytest.mark.parametrize("how", ["normally", "by an error", "dropped"])
def test_a_reader_that_leaves_cancels_nothing(backend, how):
    """However its block is left, the run that it followed goes on."""

    async def main():
        stores, workflow = Stores(), Asking()
        async with stores.open() as runs, runs.run(workflow.run(), run_id="a") as handler:
            await reach(runs, "a", "parked")
            reader = await runs.attach("a")
            if how == "dropped":
                del reader
                gc.collect()
            else:
                with contextlib.suppress(ZeroDivisionError):
                    async with reader:
                        await reader.stream_events().receive()
                        if how == "by an error":
                            raise ZeroDivisionError
                assert reader.status == "detached"
            with anyio.fail_after(60):
                while len(runs._hub.parts) > 1:
                    await anyio.sleep(0.01)
            await handler.send_event(Answer(text="yes"))
            return await handler

    assert run_virtually(backend, main) == "yes"


def test_a_reader_cancels_by_name(backend):
    """handler.cancel() of a reader cancels the run in its own process, and waits for the end."""

    async def main():
        stores, workflow = Stores(), Asking()
        async with (
            stores.open() as theirs,
            stores.open(workflows=[workflow]) as mine,
            theirs.run(workflow.run(), run_id="a") as handler,
        ):
            await reach(mine, "a", "parked")
            reader = await mine.attach("a")
            await reader.cancel("enough")
            return reader.status, handler.status, (await mine.get("a")).status

    assert run_virtually(backend, main) == ("cancelled", "cancelled", "cancelled")


def test_the_fencing_token_rises_with_each_life(backend):
    """D4: each take-over of a run has a larger token; a run without a store has 0."""

    class Tokens(Workflow[list[int]]):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            tokens.append(ctx.fencing_token)
            await gate.wait()
            return StopEvent(result=tokens)

    async def main():
        nonlocal gate
        stores, gate = Stores(), anyio.Event()
        workflow = Tokens()
        async with stores.open() as runs, anyio.create_task_group() as group:
            group.start_soon(leave_after_a_second, runs.run(workflow.run(), run_id="a"))
        gate.set()
        async with stores.open() as runs:
            await runs.run(workflow.run(), run_id="a")
        await workflow.run()

    async def leave_after_a_second(handler):
        with anyio.move_on_after(1):
            await handler

    tokens: list[int] = []
    gate: anyio.Event
    run_virtually(backend, main)

    assert len(tokens) == 3
    assert 0 < tokens[0] < tokens[1]
    assert tokens[2] == 0


@pytest.mark.slow
def test_many_runs_at_rest(backend):
    """Each of them is woken by its own answer, at once; the others learn in turn of what others did."""

    async def main():
        stores, workflow = Stores(), Asking()
        async with (
            stores.open() as runs,
            stores.open(workflows=[workflow]) as other,
            anyio.create_task_group() as nursery,
        ):
            handlers = [
                runs.run(workflow.run(n=n), run_id=f"r{n}").start_soon(nursery) for n in range(130)
            ]
            with anyio.fail_after(600):
                while await runs.counts() != {"parked": 130}:
                    await anyio.sleep(0.1)
            began = anyio.current_time()
            await other.send_event("r120", Answer(text="mine"))
            result = await handlers[120]
            took = anyio.current_time() - began
            async with other.resume("r100", workflow) as elsewhere:
                await elsewhere.send_event(Answer(text="theirs"))
                results = await elsewhere, await handlers[100]
            for handler in handlers:
                if not handler.is_done():
                    handler.send_event(Answer(text="all"))
            return took, result, results, {await handler for handler in handlers}

    took, result, results, every = run_virtually(backend, main)

    assert took < 0.25
    assert (result, results) == ("mine", ("theirs", "theirs"))
    assert every == {"mine", "theirs", "all"}


def test_two_runs_do_not_share_a_state(backend):
    """The changes of a state are stored with one run, so a second run is not given it."""

    async def main():
        workflow = Waiting()
        ctx = Context(workflow)
        async with Stores().open() as runs, runs.run(workflow.run(ctx=ctx), run_id="a") as first:
            await anyio.sleep(0.01)
            with pytest.raises(WorkflowRuntimeError, match="belongs to another durable run"):
                await runs.run(workflow.run(ctx=ctx), run_id="b")
            first.cancel()

    class Waiting(Workflow[None]):
        @step
        async def wait(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent()

    run_virtually(backend, main)


def test_an_event_that_cannot_be_stored_is_refused_before_the_run(backend):
    """T25: a field whose annotation allows only live objects is found where the run is made durable."""

    class Job(Event):
        lock: threading.Event

    class Live(Workflow[None]):
        @step
        async def begin(self, ev: StartEvent) -> Job:
            raise AssertionError

        @step
        async def work(self, ev: Job) -> StopEvent:
            raise AssertionError

    async def main():
        async with Stores().open() as runs:
            handler = Live().run()
            with pytest.raises(SnapshotError, match=r"Job.lock is annotated with .*Resource\("):
                runs.run(handler)
            handler.cancel()
            return await runs.list()

    assert run_virtually(backend, main) == []


class Kid(Workflow[str]):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Answer)
        return StopEvent(result=answer.text)


class Family(Workflow[str]):
    @step
    async def lead(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(Kid()))


@pytest.mark.parametrize("release_idle", [None, 0])
def test_the_answer_to_a_child_that_is_not_in_memory_is_kept(backend, release_idle):
    """D7: it comes while nobody runs the parent, or while that rests, and names the child's question."""

    async def main():
        workflow = Family(serializable=[Answer])
        async with Stores().open(release_idle=release_idle) as runs:
            with anyio.move_on_after(100):
                await runs.run(workflow.run(), run_id="a")
            (question,) = await runs.questions()
            await runs.send_event("a", Answer(text="yes"), question=question.id)
            with anyio.fail_after(100):
                return await runs.run(workflow.run(), run_id="a")

    assert run_virtually(backend, main) == "yes"


def test_a_run_whose_child_waits_is_released(backend):
    """Waiting costs no memory, whoever of a family waits; the handler gets the result."""

    async def main():
        workflow = Family(serializable=[Answer])
        async with (
            Stores().open(release_idle=0) as runs,
            runs.run(workflow.run(), run_id="a") as handler,
        ):
            await reach(runs, "a", "parked")
            (question,) = handler.questions
            await handler.send_event(Answer(text="yes"), question=question.id)
            with anyio.fail_after(100):
                return await handler

    assert run_virtually(backend, main) == "yes"


def test_equal_early_events_keep_their_own_ids(backend, tmp_path):
    """D7: two answers of the same content, sent with two ids before the run began, are two answers."""

    class Pair(Workflow[list[str]]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            found = [await ctx.wait_for_event(Answer) for _ in range(2)]
            return StopEvent(result=[answer.text for answer in found])

    async def main():
        async with Pair().run() as plain:
            for key in ("k1", "k2"):
                plain.send_event(Answer(text="same"), id=key)
            snapshot = plain.snapshot()
            plain.cancel()
        async with Stores().open() as runs:
            assert await runs.run(Pair().resume(snapshot), run_id="a") == ["same", "same"]
            (path,) = await runs.export(tmp_path / backend)
            return path.read_text()

    found = run_virtually(backend, main)

    assert all(found.count(f'"id":"{key}"') == 1 for key in ("k1", "k2"))


def test_many_runs_that_are_left_out_hide_none(backend):
    """However many due runs an owner leaves out, it is told of the others."""

    async def main():
        stores, workflow = Stores(), Counting()
        async with stores.open() as runs:
            ids = [await runs.submit(workflow.run(n=n), run_id=f"r{n}") for n in range(250)]
            (row,) = await runs.wait_for_due([workflow], besides=set(ids[:-1]))
            return row.run_id

    assert run_virtually(backend, main) == "r249"


def test_owner_that_is_no_worker_waits_for_the_runs_that_need_one(backend):
    """D5: new runs are due, and those whose answer has arrived; those that it has or leaves out are not."""

    async def main():
        runs = open_run_store(MemoryStore().open(), release_idle=0.0)
        assert not runs.is_open
        async with runs, anyio.create_task_group() as nursery:
            assert runs.is_open
            workflow = Asking()
            await runs.submit(workflow.run(), run_id="a")
            await runs.submit(workflow.run(), run_id="b")
            (row,) = await runs.wait_for_due([workflow], besides={"b"})
            assert (row.run_id, row.workflow) == ("a", "Asking")
            for run_id in ("a", "b"):
                runs.resume(run_id, workflow).start_soon(nursery, keep_failure=True)
            await anyio.sleep(1)  # until both have begun
            with anyio.move_on_after(60) as scope:
                await runs.wait_for_due([workflow])
            assert scope.cancelled_caught
            nursery.cancel_scope.cancel()
        assert not runs.is_open

    run_virtually(backend, main)


def test_runs_that_another_process_has_left_are_waited_for(backend):
    """D5: a run that rests is due when its answer arrives."""

    async def main():
        journals = MemoryStore()
        async with open_run_store(journals.open(), release_idle=0.0) as runs:
            with anyio.move_on_after(1):
                async with runs.run(Asking().run(), run_id="a"):
                    await anyio.sleep_forever()
        async with open_run_store(journals.open()) as runs, anyio.create_task_group() as nursery:
            found = []

            async def wait():
                found.extend(await runs.wait_for_due([Asking()]))

            nursery.start_soon(wait)
            await anyio.sleep(30)
            assert found == []
            await runs.send_event("a", Answer(text="x"))
            await anyio.sleep(1)
            assert [row.run_id for row in found] == ["a"]

    run_virtually(backend, main)
