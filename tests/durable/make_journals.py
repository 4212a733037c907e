"""Make the journals of this release: ``python -m tests.durable.make_journals``.

Each is of a flow of :mod:`tests.durable.flows` that was killed in its middle, or has ended, with the ledger
of what its bodies had done. The journals of earlier releases stay: a test continues all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import attrs

from sluicegate import (
    WorkflowCancelledError,
    WorkflowDetachedError,
    WorkflowTimeoutError,
    __version__,
)
from sluicegate.testing import run_virtually
from tests.durable.driving import World
from tests.durable.flows import FLOWS
from tests.durable.ledger import Ledger
from tests.durable.stored import Stores, kill


#: Where the journals of all releases are, in a folder each.
JOURNALS = Path(__file__).parent / "journals"
#: The flows, each with the part of its records that is kept; all of them where the run has ended.
PARTS = {
    "Chain": 1.0,
    "Queue": 0.5,
    "FanOut": 0.4,
    "NestedJoins": 0.6,
    "PairJoins": 0.5,
    "Race": 0.5,
    "Branches": 0.4,
    "Backoff": 0.5,
    "Recovering": 0.6,
    "Interview": 0.4,
    "Family": 0.5,
    "Stately": 0.5,
    "Collecting": 0.5,
    "Sends": 0.5,
}


async def live(name: str, folder: Path, limit: float) -> int:
    """Run a flow until it has ended or so many records are durable; return how many there are then."""
    stores, ledger = Stores(), Ledger()
    flow = FLOWS[name](ledger)
    async with stores.open(release_idle=None) as runs:

        async def watch() -> None:
            while True:
                records = await runs._hub.journal.read(name, after=0)
                if len(records) >= limit:
                    ledger.is_dead = True
                    kill(runs)
                    return
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as group:
            handler = runs.run(flow.run(**flow.inputs), run_id=name)
            try:
                async with handler:
                    await anyio.sleep(0)
                    group.start_soon(watch)
                    await World(flow, handler, ledger).live()
                    await handler
            except (WorkflowCancelledError, WorkflowTimeoutError, WorkflowDetachedError, OSError):
                pass
            group.cancel_scope.cancel()
    async with stores.open(workflows=[FLOWS[name]()]) as runs:
        folder.mkdir(parents=True, exist_ok=True)
        await runs.export(folder)
        entries = [attrs.astuple(entry) for entry in ledger.entries()]
        (folder / f"{name}.ledger.json").write_text(json.dumps(entries) + "\n")
        return (await runs.get(name)).sequence


def main() -> None:
    """Make all of them."""
    folder = JOURNALS / __version__
    for name, part in PARTS.items():
        whole: Any = run_virtually(live, name, folder, float("inf"), backend="trio")
        kept = whole
        if part < 1:
            kept = run_virtually(live, name, folder, int(whole * part), backend="trio")
        print(f"{name}: {kept} of {whole} records")


if __name__ == "__main__":
    main()
