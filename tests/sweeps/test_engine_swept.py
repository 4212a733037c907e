"""The features of the engine under the sweep: cancelled at every moment, in every way, on both event loops.

What each of them promises is in flows_for_sweeps_a.py. Here they are sampled; by hand, and with
``--sweep-limit``, they are swept whole, twice, and under other schedules.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
from contextlib import suppress
from math import inf

import anyio
import pytest

from sluicegate import (
    WorkflowCancelledError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    workflow_scope,
)
from sluicegate.testing import run_virtually, sweep
from sluicegate.testing._sweeps.trial import KINDS
from tests.helpers import on_each_backend
from tests.sweeps.flows_for_sweeps_a import (
    FEATURES,
    Block,
    Chain,
    Crossing,
    Draining,
    First,
    Gated,
    InTime,
    Join,
    Race,
    Scene,
    Scoped,
    ScopeLeft,
    Streams,
    TaskGroups,
    TrioNurseries,
    TwoFlow,
)


ALONE = {TrioNurseries: ("trio",), TaskGroups: ("asyncio",)}
EACH = [
    pytest.param(feature, backend, id=f"{feature.__name__}-{backend}")
    for feature in FEATURES
    for backend in ALONE.get(feature, tuple(KINDS))
]
CLEANING = [case for case in EACH if case.values[0].cleans]
PARTS = [
    pytest.param(*case.values, target, id=f"{case.id}-{target.replace(' ', '-')}")
    for case in EACH
    for target in case.values[0].targets
]


@pytest.fixture(autouse=True)
def _(monkeypatch):
    """No engine's turn depends on real time, and the collector does not look at what pytest keeps."""
    set_turn(monkeypatch, inf)
    gc.freeze()
    yield
    gc.unfreeze()


def set_turn(monkeypatch, seconds):
    """Have the engine give others a turn after so long: ``inf`` for never, -1 for always."""
    monkeypatch.setattr("sluicegate._engine.runner.TURN", seconds)
    monkeypatch.setattr("sluicegate._streams.TURN", seconds)


def swept(feature, backend, kinds, *more, target=None, **options):
    """Sweep a feature, in each way by itself; return how many runs there were."""
    runs = 0
    for kind in KINDS[backend] if kinds == "all" else kinds:
        if kind not in KINDS[backend]:
            continue
        raises = feature.raises + more + ((feature.fails,) if feature.fails else ())
        if kind == "deadline":  # the clock jumps past those of the run and its steps as well
            raises += (WorkflowTimeoutError,)
        if kind == "error":  # in the engine's own waits too
            raises += (WorkflowCancelledError,)
        report = sweep(
            feature(target),
            backends=backend,
            kinds=kind,
            target=target,
            raises=raises,
            **options,
        )
        runs += report.runs
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(("feature", "backend"), EACH)
def test_a_feature_keeps_its_promises_wherever_it_is_cancelled(feature, backend):
    """Each feature keeps what it promises, cancelled at any moment by a scope, or natively."""
    assert swept(feature, backend, ("scope", "native"), limit=14) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("feature", "backend"), EACH)
def test_a_feature_keeps_its_promises_however_it_is_ended(feature, backend):
    """So it does for timeouts, deadlines, Ctrl-C, and awaits that fail."""
    assert swept(feature, backend, ("timeout", "deadline", "interrupt", "error"), limit=4) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("feature", "backend"), CLEANING)
def test_clean_up_survives_a_second_cancellation(feature, backend):
    """Clean-up that is cancelled once more runs to its end, and nothing is left of the run."""
    assert swept(feature, backend, ("scope", "native"), twice=True, limit=8) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("feature", "backend", "target"), PARTS)
def test_a_part_is_cancelled_by_itself(feature, backend, target):
    """A step, a reader or one who waits is cancelled alone, and the others do not notice."""
    kinds = ("scope", "native", "error")
    # A step whose task is cancelled natively, by nobody who owns it, has failed.
    assert swept(feature, backend, kinds, WorkflowRuntimeError, target=target, limit=8) > 3


@pytest.mark.slow_for("asyncio")
@on_each_backend
@pytest.mark.parametrize("feature", [Chain, Join, Streams])
def test_a_turn_at_every_hop_is_one_more_place(feature, backend, monkeypatch):
    """What the engine does at a hop that takes too long is as safe as at one that does not."""
    set_turn(monkeypatch, -1)
    assert swept(feature, backend, ("scope", "native"), limit=10) > 5


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("feature", [Race, Draining, Gated])
def test_other_schedules_change_nothing(feature, backend):
    """Whichever task goes first, the promises hold."""
    assert swept(feature, backend, ("scope",), seeds=[3, 4], limit=10) > 5


# -- what the sweep has found ---------------------------------------------------------------------


def test_ctrl_c_is_no_timeout():
    """Ctrl-C in a task that runs a run does not have the run say that it is late."""
    assert swept(InTime, "trio", ("interrupt", "error")) > 5


def test_ctrl_c_ends_an_idle_run_for_those_who_send_to_it():
    """To send to a run that Ctrl-C has just ended raises that error, and no other."""
    assert swept(Crossing, "trio", ("interrupt", "error")) > 5


def test_a_native_cancellation_is_not_lost_while_losers_unwind():
    """A run that is over, and waits for the clean-up of a cancelled branch, is cancelled natively."""
    assert swept(First, "asyncio", ("native", "timeout")) > 5


@pytest.mark.parametrize("feature", [Block, Scoped, ScopeLeft])
def test_the_task_of_a_run_cancelled_natively_is_the_run_cancelled_and_no_more(feature):
    """Its owner's body, and the other runs of a scope, do not notice."""
    kinds, modes = ("native",), "park"
    more = (WorkflowCancelledError, WorkflowRuntimeError)
    pattern = {Block: "TwoFlow.run"}.get(feature, "*WorkflowScope._own")
    allow = "swallowed"  # such a task keeps it to itself, for AnyIO would cancel the others
    assert swept(feature, "asyncio", kinds, *more, target=pattern, modes=modes, allow=allow) > 1


@pytest.mark.parametrize("owner", ["block", "scope"])
def test_a_run_whose_task_was_cancelled_natively_before_it_began_is_over(owner):
    """Its owner is left with the run cancelled and its stream ended, though nothing of it ever ran."""

    async def main():
        handler = TwoFlow(Scene(None, None)).run()
        # AnyIO cancels the body of a group, one of whose tasks was cancelled natively.
        with suppress(asyncio.CancelledError):
            async with handler if owner == "block" else workflow_scope():
                handler.stream_events().close()
                others = asyncio.all_tasks() - {asyncio.current_task()}
                [task] = [one for one in others if one.get_name() != "workflow_scope"]
                task.cancel()
                await anyio.sleep(1)
        assert handler.is_done()
        return handler.status, [type(event).__name__ async for event in handler.stream_events()]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .*_own' was never awaited")  # so AnyIO has it
        found = run_virtually(main, backend="asyncio")
        gc.collect()
    assert found == ("cancelled", ["WorkflowCancelledEvent"])
