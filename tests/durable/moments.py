"""Real ``kill -9`` at the moments of a sweep: ``python -m tests.durable.moments``.

``sweep(kinds="crash")`` cuts a life off and lets it unwind unobserved. Here the life is a process of its
own, which kills itself at the same moment of the same schedule; another process continues from the store and
the ledger that it has left. Both ways must give the same ledger and the same end.

The store is the one in memory, so that the schedule is the same; each commit is written to a file before
anyone is told of it.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from sluicegate.durable import MemoryStore
from sluicegate.testing._scenarios import _steady_turns
from sluicegate.testing._sweeps import crash as crashes
from sluicegate.testing._sweeps.crash import Crash
from sluicegate.testing._sweeps.running import run_once
from sluicegate.testing._sweeps.stage import Staging
from sluicegate.testing._sweeps.trial import CRASH, MODES, At, Trial
from tests.durable.driving import World
from tests.durable.flows import FLOWS
from tests.durable.killing import end_of, spawn
from tests.durable.ledger import Entry, Ledger, faults_in
from tests.helpers import BACKENDS


#: Flows in which a body ends at the instant of the timeout: the rounding of the clock decides which is first.
AT_ONCE = {"Overdue"}

#: The end of a run, and the entries of its ledger.
End = tuple[Any, tuple[Entry, ...]]


class SweptLedger(Ledger):
    """The ledger of one life of a swept scenario."""

    def __init__(self, crash: Crash) -> None:
        self.life = crash.life
        self._crash = crash

    @property
    def is_dead(self) -> bool:  # type: ignore[override]
        """Whether the life was cut off: the sweep decides."""
        return self._crash.is_cut

    def entries(self) -> list[Entry]:
        return list(self._crash.ledger)

    def write(self, entry: Entry) -> None:
        self._crash.ledger.append(entry)


async def live(name: str, crash: Crash) -> tuple[Any, str]:
    """One life of a flow, from the start of its process to the end of the run."""
    flow = FLOWS[name](SweptLedger(crash))
    result = None
    async with crash.open_runs() as runs:
        handler = runs.run(flow.run(**flow.inputs), run_id="one")
        with suppress(Exception):  # the status says how it ended
            async with handler:
                await World(flow, handler, flow.ledger).live()
                result = await handler
    return result, handler.status


def staged(scenario: Callable[[Trial], Any], check: Callable[[Any], None]) -> Staging:
    """Return the scenario with the settings of a sweep; its moments do not depend on the machine's speed."""
    scenario.around = _steady_turns  # type: ignore[attr-defined]
    return Staging(
        scenario=scenario,
        takes_trial=True,
        modes=MODES,
        target=None,
        within=200,
        check=check,
        fresh=False,
        raises=(),
        allow=frozenset(),
    )


# -- as the sweep does it ---------------------------------------------------------------------------


def cut_off(name: str, at: At) -> tuple[End | None, int]:
    """Cut a flow off at a moment; return how it ended, None if there is no such moment; and the moments."""
    ends: list[End] = []

    async def scenario(trial: Trial) -> Any:
        return await live(name, trial.crash)

    run = run_once(
        staged(scenario, lambda found: ends.append((found.value, found.ledger))), at, None
    )
    assert not run.problem, run.problem
    return (ends[0] if run.struck else None), run.moments


# -- with processes ---------------------------------------------------------------------------------


class _Lines(list[Entry]):
    """The entries of a ledger, in a file that survives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        super().__init__(
            Entry(*found[:3], tuple(found[3]), *found[4:]) for found in map(json.loads, lines)
        )

    def append(self, entry: Entry) -> None:
        super().append(entry)
        with self._path.open("a") as file:
            file.write(json.dumps(attrs.astuple(entry)) + "\n")


def _kept_store(path: Path, wall: Callable[[], float]) -> MemoryStore:
    """Return the store in memory whose commits are written to a file, with what is in that."""
    store = MemoryStore(clock=wall)
    disk = store._disk
    if path.exists():
        kept = pickle.loads(path.read_bytes())
        disk.tables.runs, disk.tables.messages, disk.tables.created, disk.opened = kept
    commit = disk.commit

    def commit_and_write() -> None:
        commit()
        tables = disk.tables
        draft = path.with_suffix(".draft")
        draft.write_bytes(pickle.dumps((tables.runs, tables.messages, tables.created, disk.opened)))
        draft.rename(path)

    disk.commit = commit_and_write  # type: ignore[method-assign]
    return store


def one_life(name: str, at: At, life: int, folder: Path) -> None:
    """One life, in this process: it kills itself at the moment, or writes down how the run has ended."""
    died_at = folder / "died_at"
    if died_at.exists():
        crashes.EPOCH += float(died_at.read_text())  # type: ignore[misc]
    ends: list[Any] = []

    async def scenario(trial: Trial) -> Any:
        now = trial.crash._now

        def die(_crash: Crash) -> None:
            died_at.write_text(repr(now()))
            os.kill(os.getpid(), signal.SIGKILL)

        Crash.cut = die  # type: ignore[method-assign]
        crash = Crash("pending", now, life=life, entries=_Lines(folder / "ledger"))
        crash.disk("sluicegate runs", lambda: _kept_store(folder / "store", crash.wall))
        return await live(name, crash)

    run = run_once(staged(scenario, lambda found: ends.append(found.value)), at, None)
    assert not run.problem, run.problem
    (folder / "end").write_text(json.dumps(ends[0]))


def killed(name: str, at: At) -> End | None:
    """Kill a flow at a moment and continue it in another process; None if there is no such moment."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for life, where in enumerate((at, At(at.backend, seed=at.seed)), 1):
            status = end_of(spawn(partial(one_life, name, where, life, folder)))
            if life == 1 and status == 0:
                return None
            assert status == (-signal.SIGKILL if life == 1 else 0), (
                f"the process ended with {status}"
            )
        return tuple(json.loads((folder / "end").read_text())), tuple(_Lines(folder / "ledger"))


def compare(name: str, at: At) -> list[str] | None:
    """Return how the two ways differ, and what is wrong with the second; None if there is no such moment."""
    (cut, _), real = cut_off(name, at), killed(name, at)
    if cut is None or real is None:
        return None if cut is real else [f"{name} {at}: only one of the two was struck"]
    found = [*faults_in(list(real[1]), FLOWS[name].expected)]
    if cut[0] != real[0]:
        found.append(f"ended as {real[0]}, and as {cut[0]} if it was cut off")
    if name not in AT_ONCE:
        found += _differences(cut[1], real[1])
    return [f"{name} {at}: {each}" for each in found]


def _differences(cut: tuple[Entry, ...], real: tuple[Entry, ...]) -> list[str]:
    was, is_now = Counter(cut), Counter(real)
    return [
        *(f"only the life that was cut off: {entry}" for entry in was - is_now),
        *(f"only the process that was killed: {entry}" for entry in is_now - was),
    ]


def compare_some(name: str, backend: str, count: int, seed: int = 0) -> tuple[int, list[str]]:
    """Compare at random moments; return how many there were, and the differences."""
    _, moments = cut_off(name, At(backend))
    chance = random.Random(f"{name} {backend} {seed}")
    positions = sorted(chance.sample(range(1, moments + 1), min(count, moments)))
    compared, found = 0, list[str]()
    for position in positions:
        problems = compare(name, At(backend, CRASH, position))
        compared += problems is not None
        found += problems or []
    return compared, found


def main() -> int:
    """Compare; return 1 if there is a difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.durable.moments", description=__doc__)
    parser.add_argument("--flow", choices=FLOWS)
    parser.add_argument("--backend", choices=BACKENDS, default="trio")
    parser.add_argument("--count", type=int, default=20, help="how many moments of each flow")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    problems: list[str] = []
    for name in [arguments.flow] if arguments.flow else FLOWS:
        compared, found = compare_some(name, arguments.backend, arguments.count, arguments.seed)
        problems += found
        print(f"{name}: {compared} moments, {len(found)} differences", flush=True)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
