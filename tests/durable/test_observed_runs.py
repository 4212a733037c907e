"""Observers of durable runs: each time in memory is a run to them, and its status says how it goes on."""

from __future__ import annotations

import logging

import anyio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sluicegate import Event, StartEvent, StopEvent, Workflow, observe, step
from sluicegate.durable import open_run_store
from sluicegate.otel import OpenTelemetryObserver
from sluicegate.recording import Recorder
from tests.durable.stored import Answer, Asking, Begin, Question, Stores
from tests.helpers import on_each_backend, run_virtually


pytestmark = on_each_backend


async def rest_and_wake(observers):
    """Run a workflow that rests in its store while it asks, and is woken by the answer."""
    async with Stores().open(release_idle=0.0) as runs:
        workflow = Asking(observers=observers)
        async with runs.run(workflow.run(start_event=Begin()), run_id="a") as handler:
            async for event in handler.stream_events():
                if isinstance(event, Question):
                    await anyio.sleep(30)
                    await handler.send_event(Answer(text="yes"))


def test_recording_of_a_run_that_rests(backend):
    """It has a run for each time in memory; the first was cancelled by nobody."""
    recorder = Recorder()
    run_virtually(backend, rest_and_wake, [recorder])
    first, second = recorder.recording.runs

    assert (first.run_id, first.status, first.is_resumed) == ("a", "parked", False)
    assert (second.run_id, second.status, second.is_resumed) == ("a", "completed", True)
    assert first.error is None
    assert [one.by for one in first.cancellations] == ["outside"]
    assert [streamed.sequence for run in (first, second) for streamed in run.stream] == [1, 2]


def test_trace_of_a_run_that_rests(backend):
    """The span of the first time is no error, and its question is still open; the second is linked to it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    run_virtually(backend, rest_and_wake, [OpenTelemetryObserver(provider)])
    spans = exporter.get_finished_spans()
    first, second = (span for span in spans if span.name == "invoke_workflow Asking")
    (waited,) = (span for span in spans if span.name == "wait for person")

    assert first.attributes["sluicegate.outcome"] == "parked"
    assert first.status.is_unset
    assert second.attributes["sluicegate.outcome"] == "completed"
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert waited.attributes["sluicegate.wait.outcome"] == "parked"


# -- a run that is left and begun again --------------------------------------------------------------


class Item(Event):
    number: int


class Made(Event):
    number: int


class Items(Workflow[int]):
    """Four items before one worker."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(number=number) for number in range(4)]

    @step(num_workers=1)
    async def work(self, ev: Item) -> Made:
        await anyio.sleep(10)
        return Made(number=ev.number)

    @step
    async def end(self, evs: list[Made]) -> StopEvent:
        return StopEvent(result=len(evs))


def test_a_recorder_follows_a_run_through_its_lives(backend, caplog):
    """A delivery that a life has loaded is found again when its step begins; P21."""

    async def main():
        async with open_run_store("memory:") as runs:
            with observe(recorder):
                with anyio.move_on_after(15):
                    await runs.run(Items().run(), run_id="a")
                return await runs.run(Items().run(), run_id="a")

    recorder = Recorder()
    with caplog.at_level(logging.WARNING, "sluicegate"):
        assert run_virtually(backend, main) == 4

    assert not caplog.records
    recording = recorder.recording
    assert [run.status for run in recording.runs] == ["detached", "completed"]
    work = [each for each in recording.invocations if each.step == "work"]
    assert len(work) == 4 + 3
    assert len([each for each in work if each.started_at is not None]) == 2 + 3
    assert all(each.queued_at is not None for each in work)
