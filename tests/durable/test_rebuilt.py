"""A run that is rebuilt from its records is the run that made them, after every turn of a task."""

from __future__ import annotations

import pytest

from tests.durable.driving import World
from tests.durable.flows import FLOWS
from tests.durable.ledger import faults_in
from tests.durable.rebuilt import problems_of, run_watched, watch_over
from tests.helpers import on_each_backend


#: A twentieth of the programs of .ci/long.
PROGRAMS = 100


def rebuild(name: str, backend: str, seed: int) -> int:
    """Run a flow with random commits and compare; return how often that was done."""
    flow = FLOWS[name]()
    compared = 0

    async def main():
        nonlocal compared
        handler = flow.run(**flow.inputs)
        async with watch_over(handler, seed) as twin:
            result = await World(flow, handler, flow.ledger).run()
            compared = twin.compared
            return result

    result = run_watched(backend, main, seed)
    assert result == flow.result
    assert faults_in(flow.ledger.entries(), flow.expected) == []
    return compared


@pytest.mark.slow_for("asyncio")
@on_each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_rebuilt_equals_live(name, backend):
    """Acceptance: field by field, with random pauses where commits are awaited."""
    assert rebuild(name, backend, seed=0) > 5


@pytest.mark.slow
@on_each_backend
def test_rebuilt_programs_equal_live_ones(backend):
    """As above, for random programs and everything that interrupts them."""
    found = {seed: problems_of(seed, backend) for seed in range(PROGRAMS)}

    assert {seed: problems for seed, problems in found.items() if problems} == {}
