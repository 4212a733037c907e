"""Run stores under the sweep: cancelled at every moment, a run continues and ends right."""

from __future__ import annotations

import pytest

from sluicegate.durable import MemoryStore, open_run_store
from sluicegate.testing import sweep
from tests.durable.stored import Answer, Asking, AskingMidway, Counting, wall
from tests.helpers import BACKENDS


class Owned:
    """A run in a block, released while it waits; afterwards another process ends it.

    Whatever happens to its first owner: no lease is left, no completed step runs again, and the next
    owner gets the right result.
    """

    def __init__(self, workflow, answers, result) -> None:
        self.workflow = workflow
        self.answers = answers
        self.result = result
        self.store = MemoryStore(clock=wall)
        self.made = None

    def open(self):
        return open_run_store(self.store.open(), release_idle=0.0, wall=wall)

    async def own(self, runs) -> object:
        async with runs.run(self.made.run(), run_id="a") as handler:
            for number, text in enumerate(self.answers):
                await handler.send_event(Answer(text=text), id=str(number))
            return await handler

    async def __call__(self) -> None:
        self.store = MemoryStore(clock=wall)
        self.made = self.workflow()
        async with self.open() as runs:
            assert await self.own(runs) == self.result

    async def check(self, _outcome: object) -> None:
        async with self.open() as runs:
            for each in await runs.list():
                assert each.owner is None
            assert await self.own(runs) == self.result
            (row,) = await runs.list()
            assert (row.status, row.owner, row.messages) == ("completed", None, 0)


class Worked(Owned):
    """A run that a worker has, which a reader follows."""

    async def own(self, runs) -> object:
        async with runs.worker(self.made):
            await runs.submit(self.made.run(), run_id="a")
            async with await runs.attach("a") as handler:
                if not (await runs.get("a")).is_over:
                    for number, text in enumerate(self.answers):
                        await handler.send_event(Answer(text=text), id=str(number))
                return await handler


SCENARIOS = {
    "two steps": (Counting, (), 2),
    "a question": (Asking, ("x",), "x"),
    "midway": (AskingMidway, ("x", "y"), "xy"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("kind", [Owned, Worked])
@pytest.mark.slow
def test_an_owner_is_cancelled_at_every_moment(kind, name, backend):
    """D2, D5: what was left is continued by the next owner, and nothing of the first one is left."""
    owned = kind(*SCENARIOS[name])

    report = sweep(owned, backends=backend, check=owned.check, limit=25)

    assert report.runs > 15
