"""Workflows under seeded schedules: 204 of them on each event loop, half of them cancelled as well.

More by the command line: ``pytest tests/sweeps/test_schedules.py --sweep-seed 0-9999``.
"""

import math

import pytest

from sluicegate import _streams
from sluicegate._engine import runner
from sluicegate._state import store
from tests.sweeps import flows_for_sweeps_b as flows


SCENARIOS = [
    flows.edits_in_steps,
    flows.edits_of_a_store,
    flows.resources_of_all_scopes,
    flows.limiters_of_a_step,
    flows.runs_at_a_time,
    flows.children_that_ask,
    flows.answers_early_and_late,
    flows.snapshot_where_struck,
    flows.replies_that_stream,
    flows.first_two_of_four,
    flows.senders_held_back,
    flows.failures_that_are_handled,
]


def named(scenario):
    return scenario.__name__


@pytest.fixture(autouse=True)
def _no_turns(monkeypatch):
    """Whether the engine gives others a turn is not to depend on how fast this machine is."""
    for module in (store, _streams, runner):
        monkeypatch.setattr(module, "TURN", math.inf)


def as_promised(outcome):
    """The check of the scenario that was run."""
    return outcome.state.check(outcome)


@pytest.mark.slow_for("asyncio")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
@pytest.mark.schedule_fuzz(backends=("trio", "asyncio"), seeds=range(8), check=as_promised)
async def test_any_schedule_will_do(trial, scenario):
    """Whichever of its tasks goes first, a workflow keeps its promises."""
    trial.state.check = scenario.check
    return await scenario(trial)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
@pytest.mark.schedule_fuzz(
    backends=("trio", "asyncio"),
    seeds=range(8, 17),
    cancel=("scope", "native", "timeout", "interrupt"),
    check=as_promised,
)
async def test_any_schedule_may_be_cancelled(trial, scenario):
    """Whichever of its tasks goes first, a workflow that is cancelled is cleaned up."""
    trial.state.check = scenario.check
    return await scenario(trial)
