"""The durable flows under the sweeps: their process dies, or is cancelled, at every moment.

A few moments are tried here; ``--sweep-limit 5000``, as in `.ci/long`, tries all.
"""

from __future__ import annotations

import pytest

from sluicegate.testing import sweep
from sluicegate.testing._sweeps.crash import LOSSES
from tests.durable.flows import FLOWS
from tests.durable.ledger import faults_in
from tests.durable.moments import live
from tests.helpers import on_each_backend


#: How many moments of each flow are tried here.
LIMIT = 3

on_each_flow = pytest.mark.parametrize("name", FLOWS)


@pytest.fixture
def limit(request):
    return int(request.config.getoption("sweep_limit") or LIMIT)


def check_flow(name, value, entries):
    flow = FLOWS[name]

    assert value == (flow.result, flow.status)
    assert faults_in(list(entries), flow.expected) == []


@pytest.mark.slow
@on_each_backend
@on_each_flow
def test_a_durable_flow_survives_a_crash(name, backend, limit):
    """Every crash point: the next life ends with the right result, and the ledger has no fault."""

    async def scenario(trial):
        return await live(name, trial.crash)

    def check(outcome):
        check_flow(name, outcome.value, outcome.ledger)

    chosen = LOSSES if limit > LIMIT else [LOSSES[len(name) % len(LOSSES)]]
    for loses in chosen:
        report = sweep(
            scenario,
            kinds="crash",
            backends=backend,
            loses=loses,
            limit=limit,
            within=200,
            check=check,
        )
        assert report.positions


@pytest.mark.slow
@on_each_backend
@on_each_flow
def test_a_durable_flow_continues_after_its_owner_was_cancelled(name, backend, limit):
    """D5: a cancellation of the owner is none of the run, which another owner brings to its end."""

    async def scenario(trial):
        trial.state.crash = trial.crash
        return await live(name, trial.crash)

    async def check(outcome):
        value = outcome.value
        if value is None:
            value = await live(name, outcome.state.crash.next_life())
        check_flow(name, value, outcome.state.crash.ledger)

    # A failure in the same moment as the cancellation goes before it.
    allow = () if FLOWS[name].status == "completed" else "swallowed"
    report = sweep(scenario, backends=backend, limit=limit, within=200, check=check, allow=allow)

    assert report.positions
