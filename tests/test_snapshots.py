"""Snapshots: taken anywhere, read anywhere, and refused where they do not fit."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
import trio

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Observer,
    QuestionClosedError,
    Retry,
    SnapshotError,
    StartEvent,
    StopEvent,
    Take,
    Workflow,
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    step,
    workflow_scope,
)
from sluicegate._engine.snapshot_format import snapshot_schema
from sluicegate.testing import VirtualLoop, jump_clock
from tests.helpers import (
    BACKENDS,
    Asked,
    Mine,
    One,
    Said,
    Single,
    nothing_left,
    on_each_backend,
    run_virtually,
    through_json,
    wait_until_idle,
)
from tests.snapshot_flows import (
    FLOWS,
    Fan,
    Flaky,
    Flow,
    Human,
    Item,
    Part,
    drive,
    go_on,
)


ROOT = Path(__file__).parent.parent


# -- at every moment --------------------------------------------------------------------------------


class Lens:
    """Takes a snapshot of a run whenever it is asked to, and keeps those that differ."""

    def __init__(self, kind: type[Flow], **options: Any) -> None:
        self.workflow = kind(**options)
        self.handler: Any = None
        self.lines: dict[str, dict[str, Any]] = {}
        self.answered: list[str] = []
        reply = self.workflow.reply

        def answer(prefix: str) -> Event:
            self.answered.append(prefix)
            return reply(prefix)

        self.workflow.reply = answer

    def look(self) -> None:
        if self.handler is None:
            return
        snapshot = self.handler.snapshot()
        text = json.dumps({**snapshot, "elapsed": 0}, allow_nan=False)
        if snapshot["status"] != "completed":
            self.lines.setdefault(text, self.line(snapshot))

    def line(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        spy = self.workflow.spy
        asked = Counter(spy.asked)
        asked.subtract(self.answered)
        return {
            "flow": type(self.workflow).__name__,
            "snapshot": through_json(snapshot),
            "done": [*spy.done],
            "answered": [*self.answered],
            "owed": [*asked.elements()] if self.workflow.asks_once else [],
            "published": len(spy.published),
        }

    async def main(self) -> dict[str, Any]:
        self.handler = self.workflow.run(**self.workflow.inputs)
        self.look()
        try:
            return await drive(self.workflow, self.handler)
        finally:
            self.handler = None


class EveryStep(trio.abc.Instrument):
    """Looks whenever a task has been given its turn."""

    def __init__(self, lens: Lens) -> None:
        self.lens = lens

    def after_task_step(self, task: object) -> None:
        self.lens.look()


def looking_loop(lens: Lens) -> type[VirtualLoop]:
    """Return an asyncio loop that looks after every round."""

    class Looking(VirtualLoop):
        def _run_once(self) -> None:
            super()._run_once()
            lens.look()

    return Looking


def look_everywhere(kind: type[Flow], backend: str) -> tuple[dict[str, Any], Lens]:
    """Run a flow and take a snapshot whenever anything can have happened."""
    lens = Lens(kind)

    async def main() -> dict[str, Any]:
        trio.lowlevel.add_instrument(EveryStep(lens))
        return await lens.main()

    if backend == "trio":
        return run_virtually("trio", main), lens
    options = {"loop_factory": looking_loop(lens)}
    return anyio.run(lens.main, backend="asyncio", backend_options=options), lens


def resume_elsewhere(lines: list[dict[str, Any]], backend: str) -> list[dict[str, Any]]:
    """Have another process go on with the snapshots."""
    code = f"from tests.snapshot_flows import serve; serve({backend!r})"
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        check=False,
        cwd=ROOT,
        text=True,
        timeout=60,
    )

    assert (process.returncode, process.stderr) == (0, "")

    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def resumed() -> dict[tuple[str, str], Any]:
    """Interrupt every flow everywhere; resume all that was kept in one process per backend."""
    wholes = {}
    lines = []
    for name, kind in FLOWS.items():
        for backend in BACKENDS:
            whole, lens = look_everywhere(kind, backend)
            assert len(lens.lines) >= 5, name
            wholes[name] = whole
            lines += lens.lines.values()
    found: dict[tuple[str, str], Any] = {}
    for backend in BACKENDS:
        for line, made in zip(lines, resume_elsewhere(lines, backend), strict=True):
            found.setdefault((line["flow"], backend), []).append((line, made))
    return {key: (wholes[key[0]], pairs) for key, pairs in found.items()}


def counted(names: list[str], loose: frozenset[str]) -> Counter[str]:
    return Counter(name for name in names if name.partition(":")[0] not in loose)


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_a_run_continues_in_another_process_from_wherever_it_was(name, backend, resumed):
    """Every snapshot leads to the same result; what was done is not done again, what was in flight is."""
    whole, pairs = resumed[name, backend]
    loose = FLOWS[name].loose
    for line, made in pairs:
        assert made.get("result") == whole["result"], (made, line["snapshot"])

        done = counted(line["done"], loose) + counted(made["done"], loose)

        assert done == counted(whole["done"], loose), line["snapshot"]


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_numbers_of_events_and_answers_continue(name, backend, resumed):
    """The stream's numbers continue, no one is asked again what was answered, the run keeps its name."""
    _, pairs = resumed[name, backend]
    for line, made in pairs:
        first = line["snapshot"]["sequence"] + 1

        assert line["published"] == line["snapshot"]["sequence"]
        assert made["numbers"] == list(range(first, first + len(made["numbers"])))
        assert not set(made["asked"]) & set(line["answered"]), line["snapshot"]
        assert made["run_id"] == line["snapshot"]["run_id"]


@pytest.mark.slow
@on_each_backend
def test_delayed_attempts_keep_what_is_left_of_their_delay(backend, resumed):
    """What a run took before its snapshot and what it takes after add up, but for what is repeated."""
    whole, pairs = resumed["Flaky", backend]
    waiting = 0
    for line, made in pairs:
        before = line["snapshot"]["elapsed"]
        repeated = before + made["seconds"] - whole["seconds"]

        assert -1e-6 <= repeated <= 0.02 + 1e-6, line["snapshot"]

        waiting += "due" in json.dumps(line["snapshot"])
    assert waiting


@on_each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_a_run_does_not_notice_its_snapshots(name, backend, monkeypatch):
    """A run of which snapshots are taken all the time does the same at the same times.

    In which order things happen at one and the same time is the event loop's.
    """

    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    # A turn that others get because the machine is slow would change the order.
    monkeypatch.setattr("sluicegate._engine.runner.TURN", math.inf)

    def run(*, looks: bool) -> list[tuple[float, str]]:
        monkeypatch.setattr("trio._core._run._r", random.Random(5))
        if looks:
            _, lens = look_everywhere(FLOWS[name], backend)
        else:
            lens = Lens(FLOWS[name])
            run_virtually(backend, lens.main)
        return sorted(lens.workflow.spy.told)

    assert run(looks=False) == run(looks=True)


class Looking(Observer):
    """Looks whenever it is told of something: in the middle of what the engine does."""

    lens: Lens | None = None

    def look(self, *_: object) -> None:
        if self.lens is not None:
            self.lens.look()

    run_started = step_started = step_ended = event_published = run_ended = look


@pytest.mark.slow_for("asyncio")
@on_each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_an_observer_may_take_a_snapshot(name, backend):
    """In its calls too a snapshot is whole: a step that is just ending is one in flight."""
    observer = Looking()
    lens = observer.lens = Lens(FLOWS[name], observers=[observer])
    whole = run_virtually(backend, lens.main)

    assert len(lens.lines) >= 5

    for line in lens.lines.values():
        if line["owed"]:  # the step that asks is still in flight, and asks again
            line["owed"] = line["owed"][: len(line["snapshot"]["run"]["questions"])]
        made = run_virtually(backend, go_on, line)

        assert made.get("result") == whole["result"], (made, line["snapshot"])
        assert not set(made["asked"]) & set(line["owed"])


ENDINGS = ("cancelled", "cancelled outside", "stopped", "timed_out")


@pytest.mark.slow_for("asyncio")
@on_each_backend
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", FLOWS)
def test_a_run_that_was_ended_early_continues(name, ending, backend):
    """After a cancellation, a graceful stop or a timeout at any time, a run continues from there."""
    kind = FLOWS[name]
    whole = run_virtually(backend, Lens(kind).main)
    reached = Counter()

    async def end_at(seconds: float) -> None:
        lens = Lens(kind, timeout=seconds if ending == "timed_out" else None)
        handler = lens.workflow.run(**kind.inputs)

        async def cancel() -> None:
            await anyio.sleep(seconds)
            handler.cancel(after="steps" if ending == "stopped" else "now")

        with anyio.CancelScope() as scope:
            if ending == "cancelled outside":
                scope.deadline = anyio.current_time() + seconds
            async with anyio.create_task_group() as group:
                if ending in ("cancelled", "stopped"):
                    group.start_soon(cancel)
                try:
                    await drive(lens.workflow, handler)
                except (WorkflowCancelledError, WorkflowTimeoutError):
                    pass
                except ValueError:  # a job that nobody has come to wait for, when all stops
                    assert (name, ending) == ("Branching", "stopped")
                group.cancel_scope.cancel()
        await anyio.sleep(5)  # what is over takes no more time
        reached[handler.status] += 1
        if handler.status == "completed":
            return
        line = lens.line(handler.snapshot())
        made = await go_on(line)

        assert made.get("result") == whole["result"], (made, line["snapshot"])

        loose = kind.loose
        done = counted(line["done"], loose) + counted(made["done"], loose)

        assert done == counted(whole["done"], loose), line["snapshot"]
        if ending != "stopped":  # which lets steps in flight go on
            elapsed = line["snapshot"]["elapsed"]

            assert elapsed <= seconds + 0.05
            assert elapsed + made["seconds"] <= whole["seconds"] + 0.15

    async def main() -> None:
        with nothing_left():
            for part in range(1, 8):
                await end_at(whole["seconds"] * part / 8.3)

    run_virtually(backend, main)

    assert sum(n for status, n in reached.items() if status != "completed") >= 1, reached


# -- what is kept ------------------------------------------------------------------------------------


class Ask(Workflow):
    """Asks once, and then does what the test wants: ``await function(ctx, answer)``."""

    def __init__(self, function: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
        question = InputRequiredEvent(prefix="?")
        answer = await ctx.wait_for_event(HumanResponseEvent, question)
        if self.function is not None:
            return await self.function(ctx, answer.response)
        return StopEvent(result=answer.response)


@pytest.mark.anyio
async def test_an_answer_on_its_way_is_kept():
    """An answer that was sent, and that the step has not seen yet, is in the snapshot."""
    workflow = Ask()
    async with workflow.run() as handler:
        await wait_until_idle()
        handler.send_event(HumanResponseEvent(response="yes"))
        snapshot = through_json(handler.snapshot())
        await handler
    async with workflow.resume(snapshot) as again:
        kinds = [type(event) async for event in again.stream_events()]

        assert await again == "yes"
        assert kinds == [StopEvent]


@pytest.mark.anyio
async def test_an_answer_that_is_found_again_is_kept_while_it_is_handed_over():
    """The moment at which a step takes its old answer belongs to a further snapshot as well."""
    workflow = Ask()
    async with workflow.run() as handler:
        await wait_until_idle()
        handler.send_event(HumanResponseEvent(response="yes"))
        snapshot = through_json(handler.snapshot())
        await handler
    for turns in range(6):
        async with workflow.resume(snapshot) as again:
            await wait_until_idle(turns)
            further = through_json(again.snapshot())
            await again
        if further["status"] != "completed":
            with anyio.fail_after(5):
                assert await workflow.resume(further) == "yes"


@on_each_backend
def test_what_was_cancelled_stays_so(backend):
    """The losers of a race, which still clean up, do not run again."""
    _, lens = look_everywhere(FLOWS["Race"], backend)
    all_steps = [
        line["snapshot"]["run"]["steps"]
        for line in lens.lines.values()
        if "run" in line["snapshot"]
    ]
    decided = [steps for steps in all_steps if "first" in steps]

    assert decided
    assert all("work" not in steps for steps in decided)


@on_each_backend
def test_a_question_that_is_asked_again_is_open_once(backend):
    """A run that continued and can never end says so: its question does not count twice."""

    async def end_without(ctx: Context, answer: str) -> None:
        return None

    async def main() -> None:
        workflow = Ask(end_without)
        async with workflow.run() as handler:
            await wait_until_idle()
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        handler = workflow.resume(snapshot)
        with anyio.fail_after(10), pytest.raises(WorkflowStalledError):
            async with handler:
                await wait_until_idle()
                handler.send_event(HumanResponseEvent(response="yes"))
                await handler

    run_virtually(backend, main)


@pytest.mark.anyio
@pytest.mark.parametrize("owner", ["nobody", "a scope"])
async def test_a_run_that_has_not_begun_keeps_its_start_event_and_what_was_sent(owner):
    """A snapshot of an unstarted run holds its start event, and answers that came before it began."""
    workflow = Human()
    if owner == "nobody":
        handler = workflow.run()
        snapshot = handler.snapshot()
        handler.cancel()
        expected = 1
    else:
        async with workflow_scope():
            handler = workflow.run()
            handler.send_event(workflow.reply("q0"))
            snapshot = handler.snapshot()
            handler.cancel()
        expected = 2  # the one that came early, and the one to the question

    assert snapshot["start"] == {"$": "StartEvent", "v": {}}
    assert snapshot["sequence"] == 0

    line = {"flow": "Human", "snapshot": through_json(snapshot), "owed": []}
    made = await go_on(line)

    assert made["done"].count("answered:q0") == expected
    # Two answers to one question ask the next one twice; which of these ends the run is chance.
    assert set(made["done"]) == {"begin:", "answered:q0", "answered:q1", "answered:q2"}


@pytest.mark.parametrize("uses", ["start", "snapshot"])
def test_a_run_that_was_cancelled_natively_before_its_first_step_can_begin_later(uses):
    """asyncio may cancel a run at its very beginning; nothing of it is lost."""
    workflow = Fan()
    snapshot = None if uses == "start" else run_virtually("trio", one_snapshot, workflow)
    handlers = []

    async def own() -> None:
        handlers.append(workflow.resume(snapshot) if snapshot else workflow.run(count=5))
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await handlers[0]

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(own())

    asyncio.run(main())
    line = {"flow": "Fan", "snapshot": through_json(handlers[0].snapshot()), "owed": []}
    made = run_virtually("asyncio", go_on, line)

    assert made.get("result") == "[5, 0, 10, 20, 30, 40]", made


async def one_snapshot(workflow: Workflow, seconds: float = 0.015) -> dict[str, Any]:
    """Return the snapshot of a run that was under way for a while."""
    async with workflow.run(**getattr(workflow, "inputs", {})) as handler:
        await anyio.sleep(seconds)
        snapshot = through_json(handler.snapshot())
        handler.cancel()
    return snapshot


@on_each_backend
def test_a_snapshot_between_two_steps_is_not_mixed_up(backend):
    """What a step did is not taken for what the next one did that the same task continues with."""

    class First(Event):
        pass

    class Second(Event):
        pass

    class Sent(Event):
        pass

    class Chain(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> First | Sent:
            ctx.send_event(Sent())
            ctx.collect_events(ev, [StartEvent, StartEvent])
            jump_for_real()
            return First()

        @step
        async def middle(self, ctx: Context, ev: First) -> Second | Sent:
            ctx.send_event(Sent())
            jump_for_real()
            return Second()

        @step
        async def end(self, ctx: Context, ev: Second | Sent) -> StopEvent | None:
            found = ctx.collect_events(ev, [Sent, Sent, Second])
            return None if found is None else StopEvent(result=len(found))

    lens = Lens.__new__(Lens)
    snapshots: list[dict[str, Any]] = []
    handlers: list[Any] = []

    def look() -> None:
        if handlers:
            snapshots.append(through_json(handlers[0].snapshot()))

    lens.look = look
    workflow = Chain()

    async def main() -> None:
        if backend == "trio":
            trio.lowlevel.add_instrument(EveryStep(lens))
        async with workflow.run() as handler:
            handlers.append(handler)
            await handler
        handlers.clear()

    if backend == "trio":
        run_virtually("trio", main)
    else:
        options = {"loop_factory": looking_loop(lens)}
        anyio.run(main, backend="asyncio", backend_options=options)
    middles = [s for s in snapshots if "middle" in s.get("run", {}).get("steps", {})]

    assert middles

    for snapshot in middles:
        assert run_virtually(backend, finish, workflow, snapshot) == 3


def jump_for_real() -> None:
    """Use up what a task may take without giving others a turn."""
    sum(range(100_000))


async def finish(workflow: Workflow, snapshot: dict[str, Any], **options: Any) -> Any:
    return await workflow.resume(snapshot, **options)


@on_each_backend
def test_the_time_taken_counts_for_the_timeout(backend):
    """A run that continues has what is left of its timeout; a larger one gives it more."""

    class Slow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(8)
            return StopEvent(result="done")

    async def main() -> None:
        async with Slow(timeout=10).run() as handler:
            await anyio.sleep(5)
            snapshot = through_json(handler.snapshot())
            await handler

        assert snapshot["elapsed"] == pytest.approx(5)

        began = anyio.current_time()
        handler = Slow(timeout=10).resume(snapshot)
        with pytest.raises(WorkflowTimeoutError) as caught:
            await handler

        assert anyio.current_time() - began == pytest.approx(5)
        assert caught.value.timeout == 10

        ended = through_json(handler.snapshot())

        assert (ended["status"], ended["elapsed"]) == ("timed_out", pytest.approx(10))
        assert await Slow(timeout=20).resume(ended) == "done"

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("when", ["under way", "over"])
def test_what_is_left_of_a_delay_is_right_after_the_end_too(when, backend):
    """However much later it is asked for, a snapshot of a run that is over tells of its end."""

    class Late(Workflow):
        @step(retry=Retry(stop=2, wait=10))
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            info = ctx.retry_info()
            if not info.retry_number:
                raise Mine("once")
            return StopEvent(result=[info.elapsed_seconds, repr(info.last_exception)])

    async def main() -> None:
        jump_clock(1000)
        async with Late().run() as handler:
            await anyio.sleep(4)
            snapshot = handler.snapshot()
            await handler.cancel()
        if when == "over":
            await anyio.sleep(100)
            snapshot = handler.snapshot()
        (delivery,) = snapshot["run"]["steps"]["only"]["deliveries"]

        assert delivery["due"] == pytest.approx(6)
        assert delivery["attempts"]["elapsed"] == pytest.approx(4)

        began = anyio.current_time()
        elapsed, last = await Late().resume(through_json(snapshot))

        assert anyio.current_time() - began == pytest.approx(6)
        assert elapsed == pytest.approx(10)
        assert "Mine" in last

    run_virtually(backend, main)


@on_each_backend
def test_what_an_attempt_keeps_back_is_sent_by_the_one_that_succeeds(backend):
    """A step with retries has sent nothing before it is done; begun again, it sends it all."""

    class Held(Event):
        number: int

    class Holding(Workflow):
        @step(retry=Retry(stop=2))
        async def begin(self, ctx: Context, ev: StartEvent) -> Held:
            ctx.send_event(Held(number=1))
            await anyio.sleep(1)
            return Held(number=2)

        @step
        async def end(self, ctx: Context, ev: Held) -> StopEvent | None:
            found = ctx.collect_events(ev, [Held, Held])
            return None if found is None else StopEvent(result=sorted(e.number for e in found))

    async def main() -> None:
        snapshot = await one_snapshot(Holding())

        assert "sent" not in snapshot["run"]["steps"]["begin"]["deliveries"][0]
        assert await Holding().resume(snapshot) == [1, 2]

    run_virtually(backend, main)


@on_each_backend
def test_a_failed_run_continues_with_the_step_that_failed(backend):
    """After a failure the step runs again, and what had been done beside it is still done."""
    broken = [True]

    class Breaking(Fan):
        @step(num_workers=2)
        async def work(self, ctx: Context, ev: Item) -> Part:
            await anyio.sleep(0.01)
            if broken and ev.number == 3:
                raise Mine
            return Part(key=ev.key, number=ev.number)

    async def main() -> None:
        workflow = Breaking()
        handler = workflow.run(count=5)
        with pytest.raises(Mine):
            await handler
        done = [*workflow.spy.done]
        snapshot = through_json(handler.snapshot())

        assert snapshot["status"] == "failed"

        for _ in range(2):
            with pytest.raises(Mine):
                await Breaking().resume(snapshot)
        broken.clear()
        fresh = Breaking()

        assert await fresh.resume(snapshot) == [5, 0, 1, 2, 3, 4]
        assert not set(done) & set(fresh.spy.done)

    run_virtually(backend, main)


# -- whose, and how often --------------------------------------------------------------------------------


@on_each_backend
def test_two_runs_may_continue_from_one_snapshot(backend):
    """A snapshot is data: runs that continue from it at the same time know nothing of each other."""

    async def main() -> None:
        snapshot = await one_snapshot(Flaky(), 0.5)
        before = copy.deepcopy(snapshot)
        workflow = Flaky()
        results: list[Any] = []

        async def one(run_id: str) -> None:
            handler = workflow.resume(snapshot, run_id=run_id)

            assert handler.run_id == run_id

            results.append(await handler)

        async with anyio.create_task_group() as group:
            group.start_soon(one, "a")
            group.start_soon(one, "b")

        assert results == [[3, 3, 3, 100, 100, 100]] * 2
        assert snapshot == before

    run_virtually(backend, main)


@pytest.mark.anyio
async def test_a_context_continues_once():
    """A context of a run that was not over is used up by the run that continues from it."""
    workflow = Ask()
    async with workflow.run() as handler:
        await wait_until_idle()
        context = Context.from_dict(workflow, through_json(handler.snapshot()))
        handler.cancel()
    with pytest.raises(TypeError, match="start event and the context of an unfinished run"):
        workflow.run(ctx=context, topic="x")
    with pytest.raises(TypeError):
        workflow.run(ctx=context, start_event=StartEvent())
    again = workflow.run(ctx=context)
    with pytest.raises(WorkflowRuntimeError, match=r"was already resumed from this context"):
        workflow.run(ctx=context)
    async with again:
        await wait_until_idle()
        again.send_event(HumanResponseEvent(response=3))

        assert await again == 3


class Keeps(Workflow):
    """Adds one to a number in its state."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        number = await ctx.store.get("number", default=0)
        await ctx.store.set("number", number + 1)
        return StopEvent(result=number + 1)


@pytest.mark.anyio
async def test_a_new_run_may_begin_with_a_state():
    """The state of a context that was filled, of a run that is over, or of its snapshot continues."""
    workflow = Keeps()
    context = Context(workflow)
    await context.store.set("number", 10)
    unstarted = through_json(context.to_dict())
    handler = workflow.run(ctx=context)

    assert unstarted["status"] == "unstarted"
    assert await handler == 11
    assert await workflow.run(ctx=handler.ctx) == 12

    completed = through_json(handler.ctx.to_dict())

    assert completed == through_json(handler.snapshot())
    assert completed["status"] == "completed"
    assert "run" not in completed
    assert await workflow.run(ctx=Context.from_dict(workflow, completed)) == 13
    assert await workflow.run(ctx=Context.from_dict(workflow, unstarted)) == 11


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["completed", "unstarted"])
async def test_nothing_continues_from_a_run_that_is_over(form):
    """resume() of a state alone says what is possible instead."""
    workflow = Keeps()
    handler = workflow.run()
    await handler
    snapshot = handler.snapshot() if form == "completed" else Context(workflow).to_dict()
    with pytest.raises(WorkflowRuntimeError, match=r"expected .* run\(ctx=Context.from_dict\("):
        workflow.resume(snapshot)


@pytest.mark.anyio
async def test_a_context_fits_its_own_workflow_only():
    """run(ctx=...) refuses the context of another workflow, or of a run that continues."""
    other = Context(Ask())
    with pytest.raises(WorkflowRuntimeError, match=r"run\(ctx=...\) of Keeps was given .* of Ask"):
        Keeps().run(ctx=other)
    workflow = Ask()
    async with workflow.run() as handler:
        with pytest.raises(WorkflowRuntimeError, match="which is not over"):
            workflow.run(ctx=handler.ctx)
        handler.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["a task", "a thread"])
async def test_a_step_may_take_a_snapshot_of_its_own_run(place):
    """ctx.to_dict() in a step has that step itself as one in flight."""
    taken: list[dict[str, Any]] = []

    class Inside(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item | Part:
            return Item(key="", number=1) if place == "a task" else Part(key="", number=1)

        @step
        async def in_task(self, ctx: Context, ev: Item) -> StopEvent:
            taken.append(ctx.to_dict())
            return StopEvent(result="end")

        @step
        def in_thread(self, ctx: Context, ev: Part) -> StopEvent:
            taken.append(ctx.to_dict())
            return StopEvent(result="end")

    assert await Inside().run() == "end"

    name = "in_task" if place == "a task" else "in_thread"

    assert list(taken[0]["run"]["steps"]) == [name]
    assert await Inside().resume(through_json(taken[0])) == "end"
    assert taken[1]["run"] == taken[0]["run"]


@pytest.mark.anyio
async def test_another_thread_may_look_when_the_run_is_over():
    """While a run continues, its snapshot is for its own thread; after the end anyone may have it."""
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(handler.snapshot())
        except WorkflowRuntimeError as error:
            found.append(str(error))

    async def in_thread() -> Any:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found[-1]

    async with Ask().run() as handler:
        await wait_until_idle()

        assert "snapshot was called from another thread" in await in_thread()

        handler.cancel()
    assert (await in_thread())["status"] == "cancelled"


# -- what cannot be kept -------------------------------------------------------------------------------


class Quiet(HumanResponseEvent):
    number: int


class Listening(Workflow):
    """Waits for an answer of a class that no signature names, nor the call itself."""

    kind = Quiet

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        found = await ctx.wait_for_event(self.kind)
        await anyio.sleep(1)
        return StopEvent(result=found.number)


class Asking(Workflow):
    """Names its question and its answer only in the call."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        found = await ctx.wait_for_event(Quiet, waiter_event=Loud(text="how many?"))
        return StopEvent(result=found.number)


class Loud(InputRequiredEvent):
    text: str


@on_each_backend
def test_the_classes_of_a_wait_are_known_from_its_source(backend):
    """A question and an answer that only ``ctx.wait_for_event(...)`` names are kept."""

    async def main() -> None:
        async with Asking().run() as handler:
            await wait_until_idle()
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        async with Asking().resume(snapshot) as handler:
            assert [question.event.text for question in handler.questions] == ["how many?"]
            await wait_until_idle()
            handler.send_event(Quiet(number=7))
            assert await handler == 7

    run_virtually(backend, main)


@on_each_backend
def test_a_class_that_no_signature_names_is_made_known(backend):
    """A snapshot says which class it does not know and how to name it; then it is kept."""

    async def take(workflow: Workflow) -> dict[str, Any]:
        async with workflow.run() as handler:
            await anyio.sleep(1)
            handler.send_event(Quiet(number=7))
            await anyio.sleep(0.5)
            try:
                return through_json(handler.snapshot())
            finally:
                handler.cancel()

    async def main() -> None:
        with pytest.raises(SnapshotError, match=r"Workflow\(serializable=\[Quiet\]\)"):
            await take(Listening())
        snapshot = await take(Listening(serializable=[Quiet]))

        assert await Listening(serializable=[Quiet]).resume(snapshot) == 7

        with pytest.raises(SnapshotError, match=r"Quiet.*serializable"):
            Listening().resume(snapshot)

    run_virtually(backend, main)


class Client:
    """Something that lives."""


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["the state", "the start event", "an event", "a collected event"])
async def test_what_cannot_be_kept_is_named_with_its_place(place):
    """A live object is refused; the message tells the way to it, and the run continues."""

    class Holder(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent | None:
            if place == "the state":
                await ctx.store.set("deep.client", [1, Client()])
            if place == "a collected event":
                ctx.collect_events(StartEvent(deep={"client": [1, Client()]}), [StartEvent] * 2)
                await ctx.wait_for_event(HumanResponseEvent)
            if place == "an event":
                ctx.send_event(Item(key="", number=1), "hold")
            await ctx.wait_for_event(HumanResponseEvent)
            return StopEvent(result="end")

        @step(num_workers=1)
        async def hold(self, ctx: Context, ev: Item) -> Item | None:
            return None

    deep = {"deep": {"client": [1, Client()]}} if place in ("the start event", "an event") else {}
    handler = Holder().run(**deep)
    if place == "the start event":
        with pytest.raises(
            SnapshotError, match=r"the start event.*deep.*client.*\[1\] is a Client"
        ):
            handler.snapshot()
        handler.cancel()
        return
    async with handler:
        await wait_until_idle()
        with pytest.raises(SnapshotError, match=rf"{place}.*deep.*client.*\[1\] is a Client"):
            handler.snapshot()
        handler.cancel()


# -- what does not fit -----------------------------------------------------------------------------------


class Base(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(key="", number=1)]

    @step
    async def work(self, ev: Item) -> Part:
        await anyio.sleep(1)
        return Part(key="", number=1)

    @step
    async def end(self, evs: list[Part]) -> StopEvent:
        return StopEvent(result=len(evs))


def changed(**steps: Any) -> Workflow:
    """Return a workflow like Base, of the same name, with other steps; None takes one out."""
    body = {name: vars(Base)[name] for name in ("begin", "work", "end")} | steps
    return type("Base", (Workflow,), {k: v for k, v in body.items() if v is not None})()


@step
async def begin_with_one(self, ev: StartEvent) -> Item:
    return Item(key="", number=1)


@step
async def work_from_start(self, ev: Item | StartEvent) -> Part:
    return Part(key="", number=1)


@step
async def work_to_the_end(self, ev: Item) -> Part | StopEvent:
    return Part(key="", number=1)


@step
async def end_of_each(self, ev: Part) -> StopEvent:
    return StopEvent()


@step
async def end_of_two(self, evs: Annotated[list[Part], Take(2)]) -> StopEvent:
    return StopEvent()


CHANGES = {
    "name": (
        {"work": None, "toil": Base.work},
        "the step work is gone; the step toil is new",
    ),
    "takes": (
        {"work": work_from_start},
        "the step work takes Item | StartEvent, and takes Item in the snapshot",
    ),
    "makes": (
        {"work": work_to_the_end},
        "the step work makes Part | StopEvent, and makes Part in the snapshot",
    ),
    "no fan-out": (
        {"begin": begin_with_one, "end": end_of_each},
        (
            "the step begin makes Item, and makes nothing in the snapshot; the step begin makes "
            "nothing, and makes list[Item] in the snapshot; the step end takes one event at a "
            "time, and takes a list of events in the snapshot"
        ),
    ),
    "no join": (
        {"end": end_of_each},
        "the step end takes one event at a time, and takes a list of events in the snapshot",
    ),
    "the first two": (
        {"end": end_of_two},
        "the step end takes the first 2, and takes all in the snapshot",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_workflow_of_another_shape_says_what_differs(change):
    """A snapshot does not continue in a workflow whose steps changed; each difference has its line."""
    steps, told = CHANGES[change]
    snapshot = run_virtually("trio", one_snapshot, Base())
    with pytest.raises(SnapshotError) as caught:
        changed(**steps).resume(snapshot)

    assert str(caught.value) == (
        f"the snapshot does not fit Base: {told}; expected the workflow that it was taken of"
    )
    assert run_virtually("trio", finish, changed(), snapshot) == 1


def test_a_snapshot_of_another_workflow_is_refused():
    """It says of which workflow the snapshot is."""
    snapshot = run_virtually("trio", one_snapshot, Base())
    with pytest.raises(SnapshotError, match="it is of 'Base', and this is 'Fan'"):
        Context.from_dict(Fan(), snapshot)


@pytest.mark.parametrize("version", [0, 1, 2, 4, "3", 3.0, True, None])
def test_another_version_is_refused(version):
    """Only a format that is known is read; the message says which was expected."""
    snapshot = run_virtually("trio", one_snapshot, Base())
    with pytest.raises(SnapshotError, match=r"format .*; expected .* of format 3"):
        Base().resume({**snapshot, "sluicegate": version})


# -- damage ----------------------------------------------------------------------------------------------


def nodes(data: Any, *path: Any) -> Any:
    """Yield the way to everything in plain data."""
    yield path
    if isinstance(data, dict | list):
        for key, part in data.items() if isinstance(data, dict) else enumerate(data):
            yield from nodes(part, *path, key)


WRONG: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1.5, float("nan"), "x", [], [[]], {}, {"a": 1})


def form_of(path: tuple[Any, ...]) -> str:
    return ".".join(key if isinstance(key, str) else "#" for key in path)


def rich_snapshots() -> list[tuple[str, dict[str, Any], list[tuple[Any, ...]]]]:
    """Return real snapshots, with all kinds of places that there are in one; each place once."""
    found = []
    seen: set[tuple[str, type]] = set()
    for name, kind in FLOWS.items():
        for line in look_everywhere(kind, "trio")[1].lines.values():
            places = []
            for path in nodes(line["snapshot"]):
                form = form_of(path), type(held_at(line["snapshot"], path))
                if path and form not in seen:
                    seen.add(form)
                    places.append(path)
            if places:
                found.append((name, line["snapshot"], places))
    return found


def held_at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def is_told(workflow: Workflow, snapshot: dict[str, Any], place: tuple[Any, ...]) -> bool:
    """Whether a damaged snapshot is refused; the message has to say something of the place."""
    try:
        Context.from_dict(workflow, snapshot)
    except SnapshotError as error:
        told = str(error)
    else:
        return False

    top = str(place[0])
    words = {
        "sluicegate": "format",
        "workflow": "workflow|does not fit",
        "shape": "shape|does not fit",
    }

    assert re.search(words.get(top, top) + "|its top", told), (place, told)
    assert "expected" in told, (place, told)

    return True


@pytest.mark.slow
def test_damage_anywhere_is_told_with_its_place():
    """Whatever stands where something else should, it is a SnapshotError, before there is a run."""
    told = Counter()
    for name, snapshot, places in rich_snapshots():
        workflow = FLOWS[name]()
        Context.from_dict(workflow, snapshot)
        for path in places:
            for wrong in WRONG:
                bad = copy.deepcopy(snapshot)
                held_at(bad, path[:-1])[path[-1]] = wrong
                told[form_of(path)] += is_told(workflow, bad, path)
    free = {form for form, count in told.items() if not count}

    # Any value may stand in a field that has no type; values of a child are read when its step calls for it.
    untyped = re.compile(
        r"\.x\.|state\.|\.v\.#|fruit|notes|input_event|exceptions|once\.\w+\.value|children\.#\.(result|run\.)"
    )

    assert [form for form in free if not untyped.search(form)] == []
    assert len(told) > 300


def test_a_key_too_few_is_told_and_a_field_too_many_is_ignored():
    """A missing key and an unknown name are refused; an unknown field may be of a later release."""
    told = Counter()
    for name, snapshot, places in rich_snapshots():
        workflow = FLOWS[name]()
        for path in places:
            bad = copy.deepcopy(snapshot)
            around = held_at(bad, path[:-1])
            form = form_of(path[:-1])
            is_free = re.search(r"state|\.v$|\.x$|\.v\.|sent$|buffers$", form)
            has_names = re.search(
                r"(^|\.)(shape|steps|joins|places|recoveries|received|left)$", form
            )
            if (
                ".children" in form
            ):  # its names are those of a workflow that the parent does not know
                has_names = re.search(r"(received|left)$", form)
            if isinstance(around, dict) and not is_free and "$" not in around:
                around["unknown"] = around[path[-1]]

                assert is_told(workflow, bad, path) == bool(has_names), path

                told[form_of(path)] += 1
            del around[path[-1]]
            if "unknown" in around:
                del around["unknown"]
            told[form_of(path)] += 10 * is_told(workflow, bad, path)
    required = {form for form, count in told.items() if count >= 10}

    assert {
        "sluicegate", "workflow", "shape", "status", "state", "elapsed", "sequence", "run", "start",
        "run.steps", "run.branches", "run.early", "run.questions", "run.has_asked", "run.retried",
        "run.branches.#.parent", "run.steps.work.deliveries.#.event",
        "run.steps.work.deliveries.#.attempts.count",
        "run.steps.gather.buffers.default.expected",
        "run.steps.gather.buffers.default.events",
    } <= required  # fmt: skip


def test_every_snapshot_fits_the_json_schema():
    """The schema has a definition for each part, and names the fields that a snapshot has."""
    schema = snapshot_schema()
    top = schema["$defs"]["Snapshot"]

    assert schema["$ref"] == "#/$defs/Snapshot"
    assert top["required"] == ["sluicegate", "workflow", "shape", "status", "state"]
    for _, snapshot, _ in rich_snapshots():
        assert set(snapshot) <= set(top["properties"])


@on_each_backend
def test_trace_context_survives_the_run(backend):
    """A snapshot's ``carrier`` is in the snapshots of the run that continues from it."""
    carrier = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}

    async def main() -> None:
        snapshot = await one_snapshot(Base())

        assert "carrier" not in snapshot

        handler = Base().resume({**snapshot, "carrier": carrier})

        assert handler.snapshot()["carrier"] == carrier

        await handler

        assert through_json(handler.snapshot())["carrier"] == carrier

    run_virtually(backend, main)


def test_a_class_that_is_not_the_workflows_is_not_made():
    """A name in the data is looked up among the workflow's classes, and nowhere else."""
    snapshot = run_virtually("trio", one_snapshot, Base())
    (place,) = [p for p in nodes(snapshot) if form_of(p) == "run.steps.work.deliveries.#.event"]
    for name in ("Quiet", "builtins:eval", "os:system", "tests.test_snapshots:Client"):
        bad = copy.deepcopy(snapshot)
        held_at(bad, place)["$"] = name
        with pytest.raises(SnapshotError, match=rf"deliveries\[0\].event names '{name}'"):
            Base().resume(bad)


@pytest.mark.anyio
@pytest.mark.peer("note 2")
async def test_values_of_open_events_keep_their_types():
    """Dates and tuples in events without declared fields come back as what they were."""

    async def ask(ctx):
        return await ctx.wait_for_event(HumanResponseEvent, requirements={"go": True})

    workflow = Single(ask)
    async with workflow.run(day=date(2026, 1, 2), pair=(1, 2)) as handler:
        await wait_until_idle()
        handler.send_event(HumanResponseEvent(day=date(2026, 1, 2), pair=(1, 2)))
        await wait_until_idle()
        saved = json.loads(json.dumps(handler.snapshot()))
        await handler.cancel()

    async def take(ctx):
        event = await ctx.wait_for_event(HumanResponseEvent)
        return event.to_dict()

    workflow.function = take
    assert await workflow.resume(saved) == {"day": date(2026, 1, 2), "pair": (1, 2)}


@pytest.mark.anyio
@pytest.mark.peer("note 2")
async def test_events_of_a_function_body_can_be_restored():
    """A class is found by the workflow that declares it, not by importing its name."""

    class Local(Event):
        number: int

    class Flow(Workflow[int]):
        @step
        async def begin(self, ev: StartEvent) -> Local:
            return Local(number=7)

        @step(waits_for=[Said])
        async def end(self, ctx: Context, ev: Local) -> StopEvent:
            await ctx.wait_for_event(Said, Asked(name="ann"))
            return StopEvent(result=ev.number)

    workflow = Flow()
    async with workflow.run() as handler:
        await wait_until_idle()
        saved = json.loads(json.dumps(handler.snapshot()))
        await handler.cancel()

    async with workflow.resume(saved) as handler:
        handler.send_event(Said(name="ann", text=""))
        assert await handler == 7


@pytest.mark.anyio
@pytest.mark.peer("note 2")
async def test_snapshot_of_another_shape_is_refused():
    """A step that was renamed since is told, and nothing is lost without a word."""

    def make(name):
        async def method(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Said)
            return StopEvent()

        method.__name__ = name
        return type("Flow", (Workflow,), {name: step(waits_for=[Said])(method)})

    async with make("before")().run() as handler:
        await wait_until_idle()
        saved = handler.snapshot()
        await handler.cancel()

    with pytest.raises(SnapshotError, match=r"before.*after|after.*before"):
        make("after")().resume(saved)


@pytest.mark.anyio
@pytest.mark.peer("note 8.11")
async def test_snapshot_does_not_grow_with_what_has_passed():
    """It is read from the engine's state, which holds what is pending and nothing else."""

    class Chain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(key="k", number=ev.count)

        @step
        async def walk(self, ctx: Context, ev: Item) -> Item | StopEvent:
            if ev.number:
                return Item(key="k", number=ev.number - 1)
            return StopEvent(result=ctx.to_dict())

    short, long = [json.dumps(await Chain().run(run_id="r", count=n)) for n in (10, 1000)]

    # Only the numbers in it have more digits, and only the field of the start event need have.
    assert abs(len(long) - len(short)) < 50


@pytest.mark.anyio
@pytest.mark.peer("note 2")
async def test_context_of_a_run_that_continues_starts_no_other_run():
    """Two runs in one context would share its state; it is refused with the right way."""

    async def stay(ctx):
        await anyio.sleep_forever()

    workflow = Single(stay)
    async with workflow.run() as handler:
        await wait_until_idle()
        with pytest.raises(WorkflowRuntimeError, match="not over; expected `await handler` before"):
            workflow.run(ctx=handler.ctx)
        await handler.cancel()


@pytest.mark.anyio
@pytest.mark.peer("note 1.1")
async def test_fields_for_a_run_that_continues_are_refused():
    """What would be left unused is an error: a run that continues has begun already."""

    async def ask(ctx):
        await ctx.wait_for_event(Said)

    workflow = Single(ask, serializable=[Said])
    async with workflow.run() as handler:
        await wait_until_idle()
        saved = handler.ctx.to_dict()
        await handler.cancel()

    with pytest.raises(TypeError, match="unfinished run"):
        workflow.run(ctx=Context.from_dict(workflow, saved), topic="unused")


@pytest.mark.anyio
async def test_what_is_written_to_a_restored_context_is_in_its_next_snapshot():
    """``Context.from_dict`` gives a state that lives."""
    workflow = One()
    ctx = Context(workflow)
    await ctx.store.set("n", 1)
    again = Context.from_dict(workflow, ctx.to_dict())
    await again.store.set("n", 2)

    assert await Context.from_dict(workflow, again.to_dict()).store.get("n") == 2


# -- timers that were running when the run ended -------------------------------------------------------


@pytest.mark.parametrize("ending", ["in the middle", "cancelled", "drained", "outside"])
@on_each_backend
def test_an_open_wait_keeps_its_timeout_however_its_run_has_ended(backend, ending):
    """60 of its 100 seconds were over: it times out after 40 more, and keeps its number."""

    class Patient(Workflow[str]):
        @step(waits_for=[Said])
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                await ctx.wait_for_event(Said, Asked(name="ann"), timeout=100)
            except WorkflowTimeoutError:
                return StopEvent(result="too late")
            return StopEvent(result="in time")

    async def main() -> tuple[str, float]:
        handler = Patient().run()
        snapshot: dict[str, Any] = {}
        with anyio.move_on_after(60 if ending == "outside" else math.inf):
            async with handler:
                await anyio.sleep(60 if ending != "outside" else math.inf)
                if ending == "in the middle":
                    snapshot = through_json(handler.snapshot())
                await handler.cancel(after="steps" if ending == "drained" else "now")
        snapshot = snapshot or through_json(handler.snapshot())
        began = anyio.current_time()

        assert [question["number"] for question in snapshot["run"]["questions"]] == [1]

        return await Patient().resume(snapshot), anyio.current_time() - began

    assert run_virtually(backend, main) == ("too late", pytest.approx(40, abs=0.01))


@on_each_backend
def test_a_resumed_step_that_has_not_begun_again_keeps_the_branches_that_it_holds(backend):
    """A snapshot of a resumed run, and one of that, can be read, wherever the step waits."""

    class Holds(Workflow[int]):
        @step(num_workers=1)
        async def lead(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            branch = ctx.send_event(Item(key="a", number=1))
            await branch.wait()
            return StopEvent(result=1)

        @step(retry=Retry(stop=2, wait=50))
        async def work(self, ctx: Context, ev: Item) -> None:
            if ctx.step.attempt == 1:
                raise OSError("later")
            await anyio.sleep(10)

    async def main() -> int:
        handler = Holds().run()
        async with handler:
            await anyio.sleep(20)
            await handler.cancel(after="steps")
        snapshot = through_json(handler.snapshot())
        for turns in range(4):  # it waits in its queue, is about to begin, or has begun
            handler = Holds().resume(snapshot)
            async with handler:
                await wait_until_idle(turns)
                middle = through_json(handler.snapshot())
                handler.cancel(after="steps")
                with pytest.raises(WorkflowCancelledError):
                    await handler
            for further in (middle, through_json(handler.snapshot())):
                assert await Holds().resume(further) == 1
        return await Holds().resume(snapshot)

    assert run_virtually(backend, main) == 1


@pytest.mark.parametrize("is_begun", [False, True])
@on_each_backend
def test_an_answer_to_a_question_whose_wait_has_not_begun_again_is_kept(backend, is_begun):
    """D7: a snapshot of a resumed run has the answer, and for that very wait."""
    pause = 0.0

    class Two(Workflow[list[str]]):
        @step(waits_for=[Said])
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await anyio.sleep(pause)
            answers: dict[str, str] = {}

            async def ask(name: str) -> None:
                answers[name] = (await ctx.wait_for_event(Said, Asked(name=name))).text

            async with anyio.create_task_group() as group:
                group.start_soon(ask, "ann")
                group.start_soon(ask, "bob")
            return StopEvent(result=[answers["ann"], answers["bob"]])

    async def main() -> list[str]:
        nonlocal pause
        async with Two(serializable=[Asked]).run() as handler:
            await wait_until_idle()
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        pause = 10.0
        async with Two(serializable=[Asked]).resume(snapshot) as handler:
            if is_begun:
                await anyio.sleep(1)
            names = {q.event.name: q.id for q in handler.questions if isinstance(q.event, Asked)}
            handler.send_event(Said(name="", text="bob's"), question=names["bob"])
            with pytest.raises(QuestionClosedError):
                handler.send_event(Said(name="", text="again"), question=names["bob"])
            await anyio.sleep(1)
            snapshot = through_json(handler.snapshot())
            handler.cancel()
        handler = Two(serializable=[Asked]).resume(snapshot)

        assert [q.id for q in handler.questions] == [names["ann"]]

        async with handler:
            with pytest.raises(QuestionClosedError):
                handler.send_event(Said(name="", text="again"), question=names["bob"])
            await anyio.sleep(20)

            assert [q.id for q in handler.questions] == [names["ann"]]

            handler.send_event(Said(name="", text="ann's"), question=names["ann"])
            return await handler

    assert run_virtually(backend, main) == ["ann's", "bob's"]
