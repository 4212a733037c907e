"""Workers: owners of the runs that have none in a process; and what happens when processes die."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys

import anyio
import pytest

from sluicegate import (
    Context,
    PoisonStepError,
    Retry,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
    workflow_scope,
)
from sluicegate.durable import RunConflictError, open_run_store
from tests.durable.stored import (
    Answer,
    Asking,
    AskingMidway,
    Begin,
    Counting,
    Failing,
    Middle,
    Retrying,
    Stores,
    kill,
    reach,
    until,
)
from tests.helpers import on_each_backend, run_virtually


pytestmark = on_each_backend


def test_a_worker_runs_what_is_submitted(backend):
    """A submitted run is stored when submit() returns; submitting again changes nothing."""

    async def main():
        stores, workflow = Stores(), Counting()
        async with stores.open() as runs:
            ids = [await runs.submit(workflow.run(n=n), run_id=f"r{n}") for n in range(3)]
            assert await runs.submit(workflow.run(n=0), run_id="r0") == "r0"
            with pytest.raises(RunConflictError):
                await runs.submit(workflow.run(n=9), run_id="r0")
            before = await runs.counts()
        async with stores.open() as runs, runs.worker(workflow):
            for run_id in ids:
                await reach(runs, run_id, "completed")
            results = [await runs.resume(run_id, workflow) for run_id in ids]
            return before, results, len(workflow.ran)

    assert run_virtually(backend, main) == ({"running": 3}, [2, 3, 4], 6)


def test_a_scope_does_not_start_what_is_submitted(backend):
    """The handler of a submitted run is used up, also inside of a workflow_scope."""

    async def main():
        stores, workflow = Stores(), Counting()
        async with stores.open() as runs, workflow_scope():
            await runs.submit(workflow.run(), run_id="a")
            await anyio.sleep(1)
            return (await runs.get("a")).status, workflow.ran

    assert run_virtually(backend, main) == ("running", [])


def test_a_worker_is_woken_by_answers_and_timers(backend):
    """A run at rest has no task; its answer from another process, or its timer, wakes it."""

    async def main():
        stores, asking, retrying = Stores(), Asking(), Retrying()
        async with stores.open() as runs, stores.open(workflows=[asking]) as other:
            await other.submit(asking.run(), run_id="asks")
            await other.submit(retrying.run(), run_id="fails")
            async with runs.worker(asking, retrying) as worker:
                await reach(runs, "asks", "parked")
                await reach(runs, "fails", "parked")
                await until(lambda: not worker.run_ids)
                await other.send_event("asks", Answer(text="yes"))
                await reach(other, "asks", "completed")
                began = anyio.current_time()
                with anyio.fail_after(200_000):
                    while (await other.get("fails")).status != "completed":
                        await anyio.sleep(1000)
                return anyio.current_time() - began > 100_000, asking.ran, len(retrying.began)

    assert run_virtually(backend, main) == (True, ["ask", "end"], 3)


def test_other_workflows_are_left_to_others(backend):
    """A worker takes only runs of its workflows, and at most max_runs at a time."""

    async def main():
        stores, counting = Stores(), Counting()
        counting.gate = anyio.Event()
        async with stores.open() as runs:
            for number in range(3):
                await runs.submit(counting.run(n=number), run_id=f"r{number}")
            await runs.submit(Asking().run(), run_id="other")
            async with runs.worker(counting, max_runs=2) as worker:
                await until(lambda: len(counting.ran) == 4)
                await anyio.sleep(100)
                held = len(worker.run_ids), len(counting.ran)
                counting.gate.set()
                for number in range(3):
                    await reach(runs, f"r{number}", "completed")
            return held, (await runs.get("other")).status, (await runs.get("other")).sequence

    assert run_virtually(backend, main) == ((2, 4), "running", 1)


def test_leaving_a_worker_waits_for_its_runs(backend):
    """A normal exit takes no more runs, and waits until each has ended or rests."""

    async def main():
        stores, workflow = Stores(), AskingMidway()
        async with stores.open(release_idle=None) as runs:
            await runs.submit(workflow.run(), run_id="a")
            async with runs.worker(workflow):
                await reach(runs, "a", "idle")
                await runs.submit(workflow.run(), run_id="b")
            return (await runs.get("a")).status, (await runs.get("a")).owner, workflow.ran

    status, owner, ran = run_virtually(backend, main)

    assert (status, owner) == ("parked", None)
    assert set(ran) == {"begins"}


def test_a_cancelled_worker_detaches_its_runs(backend):
    """SIGTERM cancels it: nothing is recorded, and the next worker continues at once."""

    async def main():
        stores, workflow = Stores(), Counting()
        workflow.gate = anyio.Event()
        async with stores.open() as runs:
            await runs.submit(workflow.run(n=1), run_id="a")
            with anyio.CancelScope() as scope:
                async with runs.worker(workflow):
                    await until(lambda: len(workflow.ran) == 2)
                    scope.cancel()
                    await anyio.sleep_forever()
            left = (await runs.get("a")).status, (await runs.get("a")).owner
            workflow.gate.set()
            async with runs.worker(workflow):
                await reach(runs, "a", "completed")
            return scope.cancelled_caught, left, workflow.ran

    assert run_virtually(backend, main) == (
        True,
        ("running", None),
        ["first", "second", "second"],
    )


def test_a_worker_continues_what_a_dead_process_left(backend):
    """D4: runs of a process that was killed are taken over without anybody asking."""

    async def main():
        stores, workflow = Stores(), Counting()
        workflow.gate = anyio.Event()
        async with stores.open() as alive:
            async with stores.open() as doomed, doomed.worker(workflow):
                await doomed.submit(workflow.run(n=1), run_id="a")
                await until(lambda: len(workflow.ran) == 2)
                kill(doomed)
                workflow.gate.set()
            async with alive.worker(workflow):
                await reach(alive, "a", "completed")
            return await alive.resume("a", workflow), workflow.ran

    assert run_virtually(backend, main) == (3, ["first", "second", "second"])


def test_an_entered_owner_comes_before_a_worker(backend):
    """A released run comes back in the owner of this process that is still entered."""

    async def main():
        stores, workflow = Stores(), Asking()
        async with (
            stores.open() as runs,
            runs.worker(workflow) as worker,
            runs.run(workflow.run(), run_id="a") as handler,
        ):
            await reach(runs, "a", "parked")
            seen = []
            await runs.send_event("a", Answer(text="yes"))
            seen.append(worker.run_ids)
            return await handler, seen

    assert run_virtually(backend, main) == ("yes", [()])


def test_a_reader_in_the_process_of_the_worker(backend):
    """A part that only follows a run does not keep the worker from it."""

    async def main():
        stores, workflow = Stores(), Asking()
        async with stores.open() as runs, runs.worker(workflow):
            await runs.submit(workflow.run(), run_id="a")
            async with await runs.attach("a") as reader:
                await reach(runs, "a", "parked")
                await reader.send_event(Answer(text="yes"))
                with anyio.fail_after(60):
                    return await reader

    assert run_virtually(backend, main) == "yes"


def test_resume_all(backend):
    """It runs what is due, and returns when each such run has ended or rests; others are left."""

    async def main():
        stores, counting, asking = Stores(), Counting(), Asking()
        async with stores.open() as runs:
            await runs.submit(counting.run(), run_id="a")
            await runs.submit(asking.run(), run_id="b")
            first = [
                (each.run_id, each.status) for each in await runs.resume_all([counting, asking])
            ]
            again = await runs.resume_all([counting, asking])
            await runs.send_event("b", Answer(text="yes"))
            last = [(each.run_id, each.status) for each in await runs.resume_all([asking])]
            return sorted(first), again, last

    assert run_virtually(backend, main) == (
        [("a", "completed"), ("b", "parked")],
        [],
        [("b", "completed")],
    )


def test_a_failed_run_is_logged_and_harms_no_other(backend, caplog):
    """Nobody awaits the run of a worker, so its failure is logged; the worker goes on."""

    async def main():
        async with Stores().open() as runs, runs.worker(Failing(), Counting()):
            await runs.submit(Failing().run(), run_id="bad")
            await reach(runs, "bad", "failed")
            await runs.submit(Counting().run(), run_id="good")
            await reach(runs, "good", "completed")

    with caplog.at_level(logging.WARNING, "sluicegate"):
        run_virtually(backend, main)

    assert "the run bad of Failing: failed: OSError('broken')" in caplog.text


def test_code_that_does_not_fit_leaves_the_run_alone(backend, caplog):
    """D8: a run whose journal the new code cannot read is refused with the difference, and kept."""

    def version(one: bool):
        if one:

            class Flow(Workflow):
                @step
                async def begin(self, ev: Begin) -> Middle:
                    return Middle(n=1)

                @step
                async def gone(self, ev: Middle) -> StopEvent:
                    await anyio.sleep_forever()

        else:

            class Flow(Workflow):
                @step
                async def begin(self, ev: Begin) -> StopEvent:
                    return StopEvent(result="new")

        return Flow()

    async def main():
        stores = Stores()
        async with stores.open() as runs:
            with anyio.move_on_after(1):
                await runs.run(version(True).run(), run_id="a")
            async with runs.worker(version(False)):
                await anyio.sleep(1000)
            with pytest.raises(Exception, match="Middle") as refused:
                await runs.resume("a", version(False))
            row = await runs.get("a")
            return type(refused.value).__name__, row.status, row.owner

    with caplog.at_level(logging.ERROR, "sluicegate"):
        result = run_virtually(backend, main)

    assert result == ("SnapshotError", "running", None)
    assert caplog.text.count("cannot be continued here") == 1


# -- poison ---------------------------------------------------------------------------------------


class Deadly(Workflow[str]):
    """Its second step kills its process."""

    def __init__(self, kill_process, **options) -> None:
        super().__init__(**options)
        self.kill_process = kill_process
        self.lives = 0

    @step
    async def begin(self, ev: Begin) -> Middle:
        return Middle(n=1)

    @step(retry=Retry(stop=5, wait=0.0))
    async def deadly(self, ev: Middle, ctx: Context) -> StopEvent:
        self.lives += 1
        self.kill_process()
        await anyio.sleep_forever()
        return StopEvent()


class Careful(Deadly):
    """Handles the failure of the deadly step."""

    @catch_error
    async def recover(self, ev: StepFailedEvent) -> StopEvent:
        assert isinstance(ev.exception, PoisonStepError)
        return StopEvent(result=f"{ev.step_name}: {ev.exception.crashes} crashes")


@pytest.mark.parametrize("kind", [Deadly, Careful])
def test_a_poison_step_fails(backend, kind):
    """A step whose process died max_crashes times is not run again; a handler of failures gets that."""

    async def main():
        stores = Stores()
        current = []
        workflow = kind(lambda: kill(current[-1]))
        for _ in range(3):
            async with stores.open(max_crashes=3) as runs:
                current.append(runs)
                with pytest.raises(Exception, match="has left this process"):
                    await runs.run(workflow.run(), run_id="a")
        async with stores.open(max_crashes=3) as runs:
            if kind is Careful:
                return await runs.run(workflow.run(), run_id="a"), workflow.lives
            with pytest.raises(PoisonStepError, match="in 3 processes"):
                await runs.run(workflow.run(), run_id="a")
            return (await runs.get("a")).status, workflow.lives

    expected = "deadly: 3 crashes" if kind is Careful else "failed"

    assert run_virtually(backend, main) == (expected, 3)


def test_waiting_is_no_crash(backend):
    """A process may die any number of times while a step waits for an answer: that did not end it."""

    async def main():
        stores, workflow = Stores(), AskingMidway()
        for text in ("", "x"):
            async with stores.open(max_crashes=1, release_idle=None) as runs:
                with pytest.raises(Exception, match="has left this process"):
                    async with runs.run(workflow.run(), run_id="a") as handler:
                        if text:
                            await handler.send_event(Answer(text=text))
                        await until(lambda: workflow.ran[-1:] == [text or "begins"])  # noqa: B023
                        await reach(runs, "a", "idle")
                        kill(runs)
                        await handler
        async with (
            stores.open(max_crashes=1) as runs,
            runs.run(workflow.run(), run_id="a") as handler,
        ):
            await handler.send_event(Answer(text="y"))
            return await handler, workflow.ran

    assert run_virtually(backend, main) == ("xy", ["begins", "begins", "x", "begins", "x"])


def test_leaving_is_no_crash(backend):
    """A step that was running when its owner was left counts no crash, however often."""

    async def main():
        stores, workflow = Stores(), Counting()
        workflow.gate = anyio.Event()
        for _ in range(5):
            async with stores.open(max_crashes=1) as runs:
                with anyio.move_on_after(1):
                    await runs.run(workflow.run(n=1), run_id="a")
        workflow.gate.set()
        async with stores.open(max_crashes=1) as runs:
            return await runs.run(workflow.run(n=1), run_id="a"), workflow.ran.count("first")

    assert run_virtually(backend, main) == (3, 1)


# -- SQLite ---------------------------------------------------------------------------------------


def test_it_works_with_sqlite(backend, tmp_path):
    """The same on a file: two opened stores as two processes, a worker, an answer, a follower."""

    async def main():
        url = f"sqlite:///{tmp_path}/runs.db"
        asking, counting = Asking(), Counting()
        options = {"durability": "process", "release_idle": 0.0, "workflows": [asking, counting]}
        async with open_run_store(url, **options) as runs, open_run_store(url, **options) as other:
            first = await runs.run(counting.run(n=1), run_id="c")
            second = await other.run(counting.run(n=1), run_id="c")
            await other.submit(asking.run(), run_id="q")
            async with runs.worker(asking):
                await reach(other, "q", "parked")
                async with await other.attach("q") as reader:
                    await other.send_event("q", Answer(text="yes"), question="q1")
                    return first, second, await reader, asking.ran, await other.check()

    with anyio.from_thread.start_blocking_portal(backend) as portal:
        result = portal.call(main)

    assert result == (3, 3, "yes", ["ask", "end"], [])


PROGRAM = """
import sys
import anyio
import sluicegate
from sluicegate.durable import open_run_store
from tests.durable.stored import Counting

async def main():
    workflow = Counting()
    workflow.gate = anyio.Event()
    async with open_run_store(sys.argv[1], lease=3600) as runs, runs.worker(workflow):
        await runs.submit(workflow.run(n=1), run_id="a")
        while len(workflow.ran) < 2:
            await anyio.sleep(0.01)
        print("running", flush=True)
        await anyio.sleep_forever()

sluicegate.run(main, backend=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_process_is_ended_by_a_signal(backend, how, tmp_path):
    """SIGTERM detaches its runs and gives up their leases; kill -9 leaves them to the system's lock."""
    url = f"sqlite:///{tmp_path}/runs.db"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, backend], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(getattr(signal, how))
        try:
            process.wait(20)
        finally:
            process.kill()

    async def main():
        workflow = Counting()
        async with open_run_store(url) as runs:
            owner = (await runs.get("a")).owner
            with anyio.fail_after(30):
                return owner, await runs.run(workflow.run(n=1), run_id="a"), workflow.ran

    owner, result, ran = anyio.run(main, backend=backend)

    assert (owner is None) == (how == "SIGTERM")
    assert process.returncode == (143 if how == "SIGTERM" else -9)
    assert (result, ran) == (3, ["second"])
