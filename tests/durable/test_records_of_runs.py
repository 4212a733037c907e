"""``runs.records()``: what happened in a stored run, made from its journal."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from sluicegate import observe
from sluicegate import records as r
from sluicegate.durable import UnknownRunError
from sluicegate.recording import Recorder, Recording
from sluicegate.timeline import timeline_text
from tests.durable.driving import World
from tests.durable.flows import FLOWS
from tests.durable.ledger import Ledger
from tests.durable.stored import Asking, Counting, Stores, kill, reach, until
from tests.helpers import on_each_backend, run_virtually


pytestmark = on_each_backend

#: Records of what no journal has.
UNKNOWN = (r.CancellationDelivered, r.ResourceOpened, r.ResourceClosed)
#: Waits that no journal has.
UNRECORDED = {"place", "limiter", "thread", "process", "state"}


def told(run):
    """Return what happened to each invocation of a run: its event classes, its waits, its end, and when."""
    return sorted(
        (
            one.step,
            [event.event_type for event in one.events],
            one.attempt,
            None if one.started_at is None else round(one.started_at - run.started_at, 4),
            round(one.ended_at - run.started_at, 4),
            _outcome(run, one),
            sorted(event.event_type for event in one.emitted),
            sorted((w.kind, w.subject, w.outcome) for w in one.waits if w.kind not in UNRECORDED),
        )
        for one in run.invocations
    )


def _outcome(run, one):
    """Return how an invocation ended; which one has failed a run is not recorded if its step had others."""
    if run.status == "failed" and one.ended_at == run.ended_at and one.started_at is not None:
        return "ended with the run"
    return one.outcome


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "Graceful"])
def test_the_records_are_those_that_an_observer_was_told(backend, name):
    """Each invocation has its events, attempts, waits, outcome and times; so have questions and events."""

    async def main():
        flow, recorder = FLOWS[name](Ledger()), Recorder()
        async with Stores().open(release_idle=None, workflows=[flow]) as runs:
            handler = runs.run(flow.run(**flow.inputs), run_id="one")
            with observe(recorder), suppress(Exception):
                async with handler:
                    await World(flow, handler, flow.ledger).live()
                    await handler
            return recorder.recording.find("one"), await runs.records("one"), handler.status

    live, records, status = run_virtually(backend, main)
    run = Recording.from_records([records]).run

    assert (run.run_id, run.workflow, run.status) == ("one", name, status)
    assert not isinstance(records[-1], UNKNOWN)
    assert told(run) == told(live)
    assert [e.event_type for e in run.events] == [e.event_type for e in live.events]
    assert [(q.id, q.event_type, bool(q.answer)) for q in run.questions] == [
        (q.id, q.event_type, bool(q.answer)) for q in live.questions
    ]


@pytest.mark.parametrize("keeps", [True, False])
def test_lives_are_apart(backend, keeps):
    """What a killed process had in progress ends with its last record, and begins again in the next life."""

    async def main():
        stores, workflow = Stores(), Counting()
        workflow.gate = anyio.Event()
        with suppress(ExceptionGroup):  # the owner is told, if it hears of it before it is left
            async with stores.open(keep_history=keeps) as runs, anyio.create_task_group() as group:
                runs.run(workflow.run(n=1), run_id="a").start_soon(group)
                await until(lambda: workflow.ran == ["first", "second"])
                await anyio.sleep(1)
                kill(runs)
                group.cancel_scope.cancel()
        await anyio.sleep(100)
        workflow.gate.set()
        async with stores.open(keep_history=keeps) as runs:
            await runs.run(workflow.run(n=1), run_id="a")
            return await runs.records("a")

    records = run_virtually(backend, main)
    run = Recording.from_records([records]).run

    assert run.status == "completed"
    assert run.is_resumed is not keeps
    ends = [(one.step, one.outcome) for one in run.invocations]
    assert ends == [
        *([("first", "completed"), ("second", "cancelled")] if keeps else []),
        ("second", "completed"),
    ]
    if keeps:
        _, dead, last = run.invocations
        assert last.queued_at - dead.ended_at > 100
        assert [event.origin for event in last.events] == ["snapshot"]
        assert "second" in timeline_text(Recording.from_records([records]), is_ascii=True)


def test_a_run_that_is_under_way(backend):
    """The records of a run that waits end with what is known; nothing of it is run."""

    async def main():
        workflow = Asking()
        async with Stores().open() as runs, anyio.create_task_group() as group:
            runs.run(workflow.run(), run_id="a").start_soon(group)
            await reach(runs, "a", "parked")
            ran = list(workflow.ran)
            records = await runs.records("a")
            with pytest.raises(UnknownRunError):
                await runs.records("b")
            group.cancel_scope.cancel()
        return records, workflow.ran == ran

    records, has_not_run = run_virtually(backend, main)

    assert has_not_run
    assert isinstance(records[0], r.RunStarted)
    assert not any(isinstance(each, r.RunEnded) for each in records)
