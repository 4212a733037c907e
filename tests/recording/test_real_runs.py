"""Recordings of real runs, on each event loop."""

from __future__ import annotations

import anyio
import pytest
import trio
import trio.testing

from sluicegate import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Retry,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledError,
    _observers,
    step,
)
from sluicegate.recording import Recorder, Recording, graph_of_execution, load_recording
from tests.random_programs.__main__ import BACKENDS
from tests.random_programs.checking import run_seed
from tests.recording.test_recorder import full_disk, told
from tests.recording.test_trace_events import check_format


pytest.importorskip("sluicegate._engine.record_writer", reason="the engine makes no records yet")
observe = _observers.observe


class Item(Event):
    n: int


class Done(Event):
    n: int


class Ask(InputRequiredEvent):
    text: str


class Answer(HumanResponseEvent):
    text: str


class Inner(Workflow[int]):
    @step
    async def inner(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(0)
        return StopEvent(result=ev.n)


class Everything(Workflow[int]):
    """Fans out, retries, runs a child, asks a person, and joins."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Item]:
        await ctx.wait_for_event(Answer, waiter_event=Ask(text="go on?"))
        return [Item(n=n) for n in range(6)]

    @step(num_workers=2, retry=Retry(stop=3, wait=0.001))
    async def work(self, ctx: Context, ev: Item) -> Done:
        await anyio.sleep(0)
        if ev.n == 2 and ctx.retry_info().attempt < 3:
            raise ValueError(ev.n)
        if ev.n == 3:
            await ctx.run_child(Inner(), n=ev.n)
        ctx.write_event_to_stream(Item(n=ev.n))
        return Done(n=ev.n)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


async def run_everything(workflow):
    async with workflow.run() as handler:
        async for event in handler.stream_events():
            if isinstance(event, Ask):
                handler.send_event(Answer(text="yes"))
    return handler


def check_paths(recording):
    """Check that no critical path has a gap, and that the trace is valid."""
    for one in recording.all_runs:
        path = recording.critical_path(one)
        edges = [one.started_at, *(part.ended_at for part in path.parts)]
        assert [part.started_at for part in path.parts] == edges[:-1]
        assert edges[-1] == one.ended_at
    check_format(recording.to_trace_events()["traceEvents"])


def check_whole(recording):
    """Check that everything has a cause, beside what `check_paths` checks."""
    check_paths(recording)
    for one in recording.all_runs:
        for event in one.events:
            assert (event.source is None) == (event.origin in ("outside", "snapshot"))
        for invocation in one.invocations:
            assert invocation.step in one.steps
            assert invocation.events
            assert invocation.outcome is not None
        if one.status == "completed":
            assert one.stop_event is not None
            causes = recording.ancestors(one.stop_event)
            assert one.events[0] in causes


@pytest.mark.anyio
async def test_memory_and_file_tell_the_same_of_a_run(anyio_backend, tmp_path):
    """One run, recorded in memory and in a file, has all of its invocations, causes and times in both."""
    memory = Recorder()
    path = tmp_path / "run.jsonl"
    with Recorder(path) as file:
        handler = await run_everything(Everything(observers=[memory, file]))
    recording = memory.recording
    (found,) = recording.runs

    assert handler.result() == 6
    assert told(load_recording(path)) == told(recording)
    check_whole(recording)
    check_whole(load_recording(path))
    assert (found.run_id, found.status, found.workflow) == (
        handler.run_id,
        "completed",
        "Everything",
    )
    work = [one for one in found.invocations if one.step == "work"]
    assert len(work) == 8
    assert [one.attempt for one in work if one.events[0].value.n == 2] == [1, 2, 3]
    assert [one.outcome for one in work if one.events[0].value.n == 2] == [
        "failed",
        "failed",
        "completed",
    ]
    (child,) = found.children
    assert (child.workflow, child.parent.step, child.parent.events[0].value.n) == (
        "Inner",
        "work",
        3,
    )
    (asked,) = found.questions
    assert (asked.event_type, asked.fields, asked.answer.event_type) == (
        "Ask",
        {"text": "go on?"},
        "Answer",
    )
    (wait,) = (one for one in found.waits if one.kind == "event")
    assert wait.event is asked.answer
    assert sorted(one.value.n for one in found.stream if one.event_type == "Item") == [*range(6)]
    assert all(one.invocation.step == "work" for one in found.stream if one.event_type == "Item")


@pytest.mark.anyio
async def test_observe_records_the_runs_in_a_block(anyio_backend):
    """Runs that begin in the block are recorded, whatever their workflow; later ones are not."""
    recorder = Recorder()
    with observe(recorder):
        await Inner().run(n=1)
        await Inner().run(n=2)
    await Inner().run(n=3)

    assert [one.events[0].value.n for one in recorder.recording.runs] == [1, 2]
    assert recorder.recording.run.stop_event.fields == {"result": 2}


class Stuck(Workflow[None]):
    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(10)]

    @step(num_workers=10)
    async def work(self, ev: Item) -> Done:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(ev.n):
                    await anyio.sleep(0.001)
        return Done(n=ev.n)

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent()


@pytest.mark.anyio
async def test_a_cancelled_run_shows_who_unwound_last(anyio_backend, tmp_path):
    """The recording of a cancelled run has each invocation's delivery and end, the slowest first."""
    with Recorder(tmp_path / "run.jsonl") as recorder:
        with pytest.raises(WorkflowCancelledError, match="enough"):
            async with Stuck(observers=[recorder]).run() as handler:
                await anyio.wait_all_tasks_blocked()
                await handler.cancel("enough")
                await handler
        recording = recorder.recording
    found = recording.run
    cancellation = found.cancellations[0]
    reached = cancellation.invocations

    assert (found.status, cancellation.by, cancellation.reason) == ("cancelled", "owner", "enough")
    assert len(reached) == 10
    assert all(one.invocation.outcome == "cancelled" for one in reached)
    assert all(one.delivered_at is not None for one in reached)
    assert [one.took for one in reached] == sorted((one.took for one in reached), reverse=True)
    slowest = reached[0].invocation
    assert slowest.ended_at == max(one.ended_at for one in found.invocations)
    assert "unwinding" in recording.critical_path().by_kind()
    check_whole(recording)


def test_times_in_virtual_time():
    """In virtual time the times of a recording are exact."""

    class Timed(Workflow[None]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            await trio.sleep(1)
            return [Item(n=2), Item(n=5)]

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done:
            await trio.sleep(ev.n)
            return Done(n=ev.n)

        @step
        async def end(self, evs: list[Done]) -> StopEvent:
            await trio.sleep(0.5)
            return StopEvent()

    recorder = Recorder()

    async def main():
        await Timed(observers=[recorder]).run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    path = recorder.recording.critical_path()

    assert [(part.invocation.step, part.kind, part.seconds) for part in path.parts] == [
        ("begin", "running", 1.0),
        ("work", "running", 5.0),
        ("end", "running", 0.5),
    ]


@pytest.mark.anyio
async def test_a_full_disk_fails_no_run(anyio_backend, tmp_path):
    """A run whose recording cannot be written completes as without a recorder."""
    with Recorder(tmp_path / "run.jsonl") as recorder:
        with full_disk(recorder, 100):
            handler = await run_everything(Everything(observers=[recorder]))
        assert handler.result() == 6
        await Inner(observers=[recorder]).run(n=1)
    lost, second = (
        load_recording(tmp_path / "run.jsonl").all_runs[0],
        load_recording(tmp_path / "run.jsonl").run,
    )

    assert lost.left_out > 50
    assert (second.workflow, second.status, second.left_out) == ("Inner", "completed", 0)


@pytest.mark.anyio
async def test_a_run_is_recorded_while_it_goes_on(anyio_backend):
    """A recording of an active run has what has happened until now."""
    recorder = Recorder()
    with observe(recorder):
        async with Stuck().run() as handler:
            await anyio.wait_all_tasks_blocked()
            found = recorder.recording.find(handler.run_id)
            handler.cancel()

    assert found.status == "running"
    assert [one.outcome for one in found.invocations] == ["completed", *[None] * 10]
    assert recorder.recording.find(handler.run_id).status == "cancelled"


@pytest.mark.anyio
async def test_drawing_a_handler(anyio_backend):
    """A handler is drawn with the recorder that its workflow or the block around it has."""
    recorder = Recorder()
    first = await run_everything(Everything(observers=[recorder]))
    with observe(recorder):
        second = Inner().run(n=1)
        await second
    third = Inner().run(n=1)
    await third

    text = graph_of_execution(first).to_text()
    assert f"run {first.run_id} completed" in text
    assert "6 completed, 2 retried" in text
    assert f"run {second.run_id} completed" in graph_of_execution(second).to_text()
    with pytest.raises(
        ValueError, match="was not recorded; expected a recorder among its observers"
    ):
        graph_of_execution(third)
    unstarted = Inner().run(n=1)
    with pytest.raises(ValueError, match=r"`Inner\(observers=\[Recorder\(\)\]\)`"):
        graph_of_execution(unstarted)
    unstarted.cancel()


def test_a_recording_follows_a_file_that_is_written(tmp_path):
    """A recording that is fed with what is new in a file tells the same as one that is loaded."""
    path = tmp_path / "run.jsonl"
    following = Recording()
    with Recorder(path) as recorder, path.open("rb") as file:

        async def main():
            with observe(recorder):
                for n in range(3):
                    await Inner().run(n=n)
                    recorder.flush()
                    following.feed(file.read())
                    assert len(following.runs) == n + 1

        trio.run(main)

    assert told(following) == told(load_recording(path))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_random_programs(backend, seed, tmp_path):
    """Programs of all forms, interrupted and resumed, are recorded alike in memory and in a file."""
    memory = Recorder()
    with Recorder(tmp_path / "run.jsonl") as file, observe(memory, file):
        problems = run_seed(seed, backend)
    recording = memory.recording

    assert problems == []
    assert recording.all_runs
    assert told(load_recording(tmp_path / "run.jsonl")) == told(recording)
    check_paths(recording)
    for run in recording.all_runs:
        assert [one for one in run.invocations if one.outcome is None] == []
        assert [one for one in run.waits if one.outcome is None] == []
