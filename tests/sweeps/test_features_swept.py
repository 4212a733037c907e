"""State, resources, threads, limits, children, people, snapshots, models and tests, under the sweep.

Each scenario of flows_for_sweeps_b.py is cancelled where it can be, in every way, and its check says
what the feature promises whatever came in between. In CI of many positions a sample is run;
``--sweep-limit 5000`` runs them all.
"""

import asyncio
import inspect
import math
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio._backends import _asyncio as anyio_asyncio

from sluicegate import (
    Context,
    StartEvent,
    StepTimeoutError,
    StopEvent,
    Workflow,
    _streams,
    step,
)
from sluicegate._engine import runner
from sluicegate._state import store
from sluicegate.testing import jump_clock, run_virtually, sweep
from tests.helpers import on_each_backend
from tests.sweeps import flows_for_sweeps_b as flows


#: Every way to cancel a scenario. (An error in place of an await of the engine's own cannot come
#: about; where users' code waits it is among the ways to strike a target.)
KINDS = {
    "trio": ("scope", "deadline", "interrupt"),
    "asyncio": ("scope", "native", "timeout", "deadline", "interrupt"),
}

#: Older versions of AnyIO give back the token of the task, where a native cancellation comes right
#: after one was taken on behalf of something else, and raise a RuntimeError.
LIMITER_FAILS_NATIVELY = "self.release()" in inspect.getsource(
    anyio_asyncio.CapacityLimiter.acquire_on_behalf_of
)
NATIVE = ("native", "timeout", "interrupt")

#: What may leave a scenario besides the cancellation.
RAISES = {flows.factory_that_fails: flows.Unlucky}

SCENARIOS = [
    flows.edits_in_steps,
    flows.edits_of_a_store,
    flows.resources_of_all_scopes,
    flows.factory_that_fails,
    flows.steps_in_threads,
    flows.limiters_of_a_step,
    flows.entries_of_limits,
    flows.runs_at_a_time,
    flows.children_that_ask,
    flows.places_given_up,
    flows.answers_early_and_late,
    flows.answers_from_threads,
    flows.snapshot_where_struck,
    flows.resumed_in_the_middle,
    flows.effects_and_children,
    flows.replies_that_stream,
    flows.whole_run_under_test,
    flows.stepped_run,
    flows.step_under_test,
]

#: Those that clean up for a while: resources, shielded clean-up, threads, runs under test.
WITH_CLEANUP = [
    flows.edits_of_a_store,
    flows.resources_of_all_scopes,
    flows.limiters_of_a_step,
    flows.runs_at_a_time,
    flows.children_that_ask,
    flows.places_given_up,
    flows.stepped_run,
]

WITH_STEPS = [
    flows.edits_in_steps,
    flows.resources_of_all_scopes,
    flows.factory_that_fails,
    flows.steps_in_threads,
    flows.limiters_of_a_step,
    flows.children_that_ask,
    flows.places_given_up,
    flows.answers_early_and_late,
    flows.snapshot_where_struck,
    flows.replies_that_stream,
    flows.failures_that_are_handled,
]


@pytest.fixture(autouse=True)
def _no_turns(monkeypatch):
    """Whether the engine gives others a turn is not to depend on how fast this machine is."""
    for module in (store, _streams, runner):
        monkeypatch.setattr(module, "TURN", math.inf)


@pytest.fixture
def limit(request):
    """How many positions of each sweep are run, unless the command line says otherwise."""
    given = request.config.getoption("sweep_limit", default=None)
    return lambda number: number if given is None else int(given)


def named(scenario):
    return scenario.__name__


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_a_feature_keeps_its_promises_wherever_it_is_cancelled(scenario, backend, limit):
    """P1, P4: cancelled anywhere, in any way, nothing is left; and each feature is whole."""
    few = 4 if scenario is flows.steps_in_threads else 8
    report = sweep(
        scenario,
        backends=backend,
        kinds=KINDS[backend],
        raises=RAISES.get(scenario, ()),
        limit=limit(few),
    )

    assert report.positions


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("scenario", WITH_CLEANUP, ids=named)
def test_a_second_cancellation_finds_clean_up_at_work(scenario, backend, limit):
    """P2: clean-up is done, also if the cancellation is repeated while it is done."""
    report = sweep(
        scenario,
        backends=backend,
        twice=True,
        raises=RAISES.get(scenario, ()),
        limit=limit(12),
    )

    assert report.positions


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("scenario", WITH_STEPS, ids=named)
def test_one_step_is_struck(scenario, backend, limit):
    """P15: one invocation is cancelled, or fails, without harm to what the others have."""
    kinds = [*KINDS[backend], "error"]
    if scenario is flows.places_given_up and LIMITER_FAILS_NATIVELY:
        kinds = [kind for kind in kinds if kind not in NATIVE]
    report = sweep(
        scenario,
        backends=backend,
        kinds=kinds,
        target="step:*",
        raises=RAISES.get(scenario, ()),
        limit=limit(4 if scenario is flows.steps_in_threads else 8),
    )

    assert report.positions


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("scenario", WITH_STEPS, ids=named)
def test_one_reader_is_struck(scenario, backend, limit):
    """P6: a reader that is cancelled takes nothing from the run, and continues where it was."""
    sweep(
        scenario,
        backends=backend,
        kinds=("scope", "deadline"),
        target="reader",
        raises=RAISES.get(scenario, ()),
        limit=limit(3 if scenario is flows.steps_in_threads else 8),
    )


@pytest.mark.slow_for("asyncio")
@on_each_backend
@pytest.mark.parametrize(
    ("scenario", "target"),
    [
        (flows.edits_of_a_store, "editor"),
        (flows.runs_at_a_time, "run"),
        (flows.entries_of_limits, "entry"),
    ],
    ids=["editor", "run", "entry"],
)
def test_one_of_several_is_struck(scenario, target, backend, limit):
    """An editor's block is undone as a whole, a run's place is the next one's."""
    report = sweep(
        scenario, backends=backend, kinds=(*KINDS[backend], "error"), target=target, limit=limit(12)
    )

    assert report.positions


# -- what the sweep has found ---------------------------------------------------------------------


class Late(Workflow[None]):
    """A thread asks the loop for something in the moment in which its step times out."""

    def __init__(self) -> None:
        super().__init__()
        self.is_there = threading.Event()
        self.may_ask = threading.Event()
        self.seen: list[str] = []

    @step(timeout=5)
    def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.is_there.set()
        self.may_ask.wait()
        ctx.from_thread.run(self.wait_long)
        return StopEvent()

    async def wait_long(self) -> None:
        self.seen.append("begun")
        await anyio.sleep(100)
        self.seen.append("not cancelled")


def test_what_a_thread_asks_for_as_its_step_is_cancelled_is_cancelled():
    """P1: what a thread of a step has running in the loop ends with the step, however late it came.

    AnyIO tells those of a cancellation that are there. When the only one waits for the thread,
    shielded, no one is told a second time.
    """
    late = Late()

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        async with late.run() as handler:
            while not late.is_there.is_set():
                await anyio.lowlevel.checkpoint()
                time.sleep(0.0001)
            posted = len(loop._ready)
            late.may_ask.set()
            while len(loop._ready) == posted:  # it has looked for a cancellation before that
                time.sleep(0.0001)
            jump_clock(10)
            with pytest.raises(StepTimeoutError):
                await handler

    run_virtually(main, backend="asyncio")

    assert late.seen == ["begun"]
