"""A run that is rebuilt from its records is the run that made them, after every turn of a task."""

from __future__ import annotations

import pytest

from sluicegate import WorkflowCancelledError, WorkflowTimeoutError
from tests.durable.driving import World
from tests.durable.flows import FLOWS
from tests.durable.ledger import faults_in
from tests.durable.rebuilt import run_watched, watch_over
from tests.helpers import on_each_backend


def rebuild(name: str, backend: str, seed: int) -> int:
    """Run a flow with random commits and compare; return how often that was done."""
    flow = FLOWS[name]()
    compared = 0

    async def main():
        nonlocal compared
        handler = flow.run(**flow.inputs)
        async with watch_over(handler, seed) as twin:
            world = World(flow, handler, flow.ledger)
            try:
                async with handler:
                    await world.live()
                    return await handler
            except (WorkflowCancelledError, WorkflowTimeoutError, OSError):
                return None
            finally:
                compared = twin.compared

    result = run_watched(backend, main, seed)
    assert result == flow.result
    assert faults_in(flow.ledger.entries(), flow.expected) == []
    return compared


@on_each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_rebuilt_equals_live(name, backend):
    """Acceptance: field by field, with random pauses where commits are awaited."""
    for seed in range(2):
        assert rebuild(name, backend, seed) > 5
