"""Side effects of steps in durable runs: once, slept, asked and called for once, whatever process dies."""

from __future__ import annotations

import anyio
import pytest

from sluicegate import Context, Event, Retry, StartEvent, StopEvent, Workflow, step
from sluicegate.durable import open_run_store
from sluicegate.testing import sweep
from tests.durable.stored import Answer, Question, Stores, kill, kinds_of, reach, wall
from tests.helpers import on_each_backend, run_virtually


pytestmark = on_each_backend


class Single(Workflow):
    """``await function(ctx)`` in its one step."""

    def __init__(self, function, **options):
        super().__init__(serializable=[Question, Answer], **options)
        self.function = function

    @step(retry=Retry(stop=3, wait=5))
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.function(ctx))


async def die_after(stores, workflow, seconds):
    """Run a workflow in a process that is killed after so many seconds."""
    async with stores.open(release_idle=None) as runs:
        with anyio.move_on_after(seconds):
            async with runs.run(workflow.run(), run_id="a"):
                await anyio.sleep_forever()
        kill(runs)


async def go_on(stores, workflow):
    """Continue the run in another process, once the lease of the dead one has ended."""
    async with stores.open() as runs:
        with anyio.fail_after(100_000_000):
            return await runs.run(workflow.run(), run_id="a")


def test_once_is_not_called_again_after_a_crash(backend):
    """D2: the record of its result survives, and the step that begins again gets it."""
    calls = []

    async def charge(key):
        calls.append(key)
        await anyio.sleep(1)
        return {"receipt": len(calls)}

    async def pay(ctx):
        receipt = await ctx.once("charge", charge, ctx.delivery_key)
        if len(lives) < 3:
            await anyio.sleep_forever()
        return receipt

    lives = []

    async def main():
        stores, workflow = Stores(), Single(pay)
        for _ in range(2):
            lives.append(1)
            await die_after(stores, workflow, 30)
        lives.append(1)
        return await go_on(stores, workflow)

    assert run_virtually(backend, main) == {"receipt": 1}
    assert calls == ["a/1"]


def test_a_crash_within_the_call_calls_it_again_under_the_same_key(backend):
    """D2: the outside system sees one key, and can drop the second request."""
    calls = []

    async def charge(key):
        calls.append(key)
        await anyio.sleep(20)
        return len(calls)

    async def pay(ctx):
        return await ctx.once("charge", charge, f"{ctx.delivery_key} {ctx.attempt_key}")

    async def main():
        stores, workflow = Stores(), Single(pay)
        await die_after(stores, workflow, 10)
        return await go_on(stores, workflow)

    assert run_virtually(backend, main) == 2
    assert calls == ["a/1 a/1/1"] * 2


def test_once_returns_when_its_record_is_durable(backend):
    """D1: a process that dies right after it has returned has not lost the result."""
    known = []

    async def charge():
        return "receipt"

    async def pay(ctx):
        receipt = await ctx.once("charge", charge)
        known.append(await kinds_of(stores_open[-1], "a"))
        return receipt

    stores_open = []

    async def main():
        async with Stores().open() as runs:
            stores_open.append(runs)
            return await runs.run(Single(pay).run(), run_id="a")

    assert run_virtually(backend, main) == "receipt"
    assert known[0][-1] == "once"


def test_a_sleep_survives_crashes(backend):
    """D6: it ends when it is due on the wall, whatever processes have died meanwhile."""
    over = []

    async def function(ctx):
        await ctx.sleep(1000)
        over.append(wall())
        await ctx.sleep(1000)
        over.append(wall())
        return len(over)

    async def main():
        stores, workflow = Stores(), Single(function)
        began = wall()
        for _ in range(3):
            await die_after(stores, workflow, 300)
        await go_on(stores, workflow)
        return [at - began for at in over]

    times = run_virtually(backend, main)

    assert min(times) >= 1000
    assert times[-1] == pytest.approx(2000, abs=20)
    assert len(times) <= 3  # the step that was killed behind the first one went through it again


def test_a_sleeping_run_is_released_and_wakes_when_it_is_due(backend):
    """D6: a week costs no memory; the step begins again and goes on at once."""
    began = []

    async def function(ctx):
        began.append(wall())
        await ctx.sleep(7 * 24 * 3600)
        return wall() - began[0]

    async def main():
        async with Stores().open() as runs:
            workflow = Single(function)
            async with runs.run(workflow.run(), run_id="a") as handler:
                await reach(runs, "a", "parked")
                return await handler

    slept = run_virtually(backend, main)

    assert 7 * 24 * 3600 <= slept < 7 * 24 * 3600 + 5
    assert len(began) == 2


def test_a_sleep_that_the_step_has_cancelled_is_not_over_after_a_crash(backend):
    """A reminder whose reason came in time is not sent by the next life."""
    reminders = []

    async def function(ctx):
        async with anyio.create_task_group() as group:

            async def remind():
                await ctx.sleep(1000)
                reminders.append(1)

            group.start_soon(remind)
            await ctx.sleep(10)
            group.cancel_scope.cancel()
        await ctx.sleep(2000)
        return "done"

    async def main():
        stores, workflow = Stores(), Single(function)
        await die_after(stores, workflow, 1500)
        return await go_on(stores, workflow)

    assert run_virtually(backend, main) == "done"
    assert reminders == []


def test_a_question_is_put_on_the_durable_stream_once(backend):
    """A wait that begins again in another life finds its question there, with its time."""

    async def function(ctx):
        first = await ctx.wait_for_event(Answer, Question(prompt="first"))
        second = await ctx.wait_for_event(Answer, Question(prompt="second"), timeout=1000)
        return first.text + second.text

    async def main():
        stores, workflow = Stores(), Single(function)
        await die_after(stores, workflow, 50)
        async with stores.open(release_idle=None) as runs:
            async with runs.run(workflow.run(), run_id="a") as handler:
                for text in ("x", "y"):
                    await anyio.sleep(100)
                    (question,) = handler.questions
                    await handler.send_event(Answer(text=text), question=question.id)
                result = await handler
            shown = await runs._hub.journal.read_shown("a", after=0, limit=100)
            return result, [record.kind for record in shown]

    assert run_virtually(backend, main) == ("xy", ["pub", "pub", "end"])


class Half(Event):
    name: str


class Child(Workflow):
    """Two steps, the second of which sleeps."""

    def __init__(self, ran):
        super().__init__()
        self.ran = ran

    @step
    async def first(self, ev: StartEvent) -> Half:
        self.ran.append(f"{ev.name} first")
        return Half(name=ev.name)

    @step
    async def second(self, ctx: Context, ev: Half) -> StopEvent:
        await ctx.sleep({"a": 100, "b": 600}[ev.name])
        self.ran.append(f"{ev.name} second {ctx.delivery_key}")
        return StopEvent(result=ev.name)


def test_children_continue_where_they_were_after_a_crash(backend):
    """Ended ones have their results, others their places; nothing that is recorded runs again."""
    ran = []
    orders = [["a", "b"], ["b", "a"], ["a", "b"]]

    async def function(ctx):
        results = {}

        async def one(name):
            results[name] = await ctx.run_child(Child(ran), name=name)

        async with anyio.create_task_group() as group:
            for name in orders[len(lives) - 1]:
                group.start_soon(one, name)
        return results

    lives = []

    async def main():
        stores, workflow = Stores(), Single(function)
        for _ in range(2):
            lives.append(1)
            await die_after(stores, workflow, 200)
        lives.append(1)
        began = wall()
        return await go_on(stores, workflow), wall() - began

    result, took = run_virtually(backend, main)

    assert result == {"a": "a", "b": "b"}
    assert took < 400
    assert sorted(text.rpartition(" ")[0] if "second" in text else text for text in ran) == [
        "a first",
        "a second",
        "b first",
        "b second",
    ]


# -- at every moment ------------------------------------------------------------------------------


class Volume(Workflow):
    """Two children at once, an effect, a timer and a question; the ledger sees what is made and known."""

    def __init__(self, ledger):
        super().__init__(serializable=[Question, Answer])
        self.ledger = ledger

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async def call(name):
            self.known(await ctx.run_child(Chapter(self.ledger), name=name))

        async with anyio.create_task_group() as group:
            group.start_soon(call, "one")
            group.start_soon(call, "two")
        self.known(await ctx.once("print", self.print))
        answer = await ctx.wait_for_event(Answer, Question(prompt="good?"))
        self.known(answer.text)
        await ctx.sleep(10)
        return StopEvent(result="published")

    async def print(self):
        await anyio.sleep(1)
        self.ledger.append("printed is made")
        return "printed"

    def known(self, what):
        self.ledger.append(f"{what} is known")


class Chapter(Workflow):
    def __init__(self, ledger):
        super().__init__()
        self.ledger = ledger

    @step
    async def first(self, ev: StartEvent) -> Half:
        await anyio.sleep(1)
        self.ledger.append(f"{ev.name} is made")
        return Half(name=ev.name)

    @step
    async def second(self, ctx: Context, ev: Half) -> StopEvent:
        self.ledger.append(f"first of {ev.name} is known")
        await ctx.sleep(1)
        return StopEvent(result=ev.name)


async def publish(trial):
    """What each process does: it continues the run, and a person answers what is open."""
    ledger, crash = trial.crash.ledger, trial.crash
    store = crash.store.open()
    async with (
        open_run_store(store, wall=crash.wall, release_idle=None) as runs,
        runs.run(Volume(ledger).run(), run_id="a") as handler,
    ):
        while not handler.is_done():
            await anyio.sleep(0.5)
            for question in handler.questions:
                if "yes is sent" not in ledger:
                    await handler.send_event(Answer(text="yes"), question=question.id, id="y")
                    ledger.append("yes is sent")
        return await handler


def nothing_known_is_made_again(outcome):
    assert outcome.value == "published"
    seen = []
    for entry in outcome.ledger:
        name, _, what = entry.partition(" is ")
        if what == "made":
            assert f"{name} is known" not in seen, outcome.ledger
            assert f"first of {name} is known" not in seen, outcome.ledger
        seen.append(entry)
    assert {"one is known", "two is known", "printed is known", "yes is known"} <= {*seen}


@pytest.mark.slow
def test_at_whatever_moment_the_process_dies(backend):
    """D2, D6, D7: recorded effects, answers, and steps of children are not made again; timers end."""
    report = sweep(
        publish,
        kinds="crash",
        backends=backend,
        limit=60,
        check=nothing_known_is_made_again,
    )

    assert report.positions > 40


def test_a_block_that_fails_before_its_run_begins_ends(backend):
    """P1: nothing waits for a part that was left before it has looked at the store."""

    async def function(ctx):
        return (await ctx.wait_for_event(Answer, Question(prompt="?"))).text

    async def main():
        stores, workflow = Stores(), Single(function)
        await die_after(stores, workflow, 50)
        began = anyio.current_time()
        with anyio.move_on_after(1000), pytest.raises(ZeroDivisionError):
            async with (
                stores.open(release_idle=None) as runs,
                runs.run(workflow.run(), run_id="a"),
            ):
                raise ZeroDivisionError
        return anyio.current_time() - began

    assert run_virtually(backend, main) < 1
