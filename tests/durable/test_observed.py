"""Observers of durable runs: each life is a run to them, and every invocation has been queued."""

from __future__ import annotations

import logging

import anyio
import pytest

from sluicegate import Event, StartEvent, StopEvent, Workflow, observe, step
from sluicegate.durable import open_run_store
from sluicegate.recording import Recorder
from tests.helpers import run_virtually


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


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
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
