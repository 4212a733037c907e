"""Real processes over SQLite that are killed: ``python -m tests.durable.killing``.

Each life of a run is a process of its own, forked from this one, which has no event loop and no
thread. It writes the ledger to a file; what came of the run, too.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs

from sluicegate.durable import open_run_store
from tests.durable.driving import World
from tests.durable.flows import FLOWS, Flow
from tests.durable.ledger import FileLedger, faults_in, read_ledger
from tests.helpers import BACKENDS


#: How long a body takes, and after how many seconds a process that does not end is killed.
PACE = 0.002
LONGEST = 60


@attrs.frozen
class Point:
    """Where a process kills itself: at its n-th append, before it or after its commit."""

    append: int
    is_after: bool


def spawn(function: Callable[[], object]) -> int:
    """Run a function in a process of its own, and of its own process group; return the id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        faulthandler.register(signal.SIGALRM, chain=True)  # one that hangs prints where
        signal.alarm(LONGEST)
        function()
        status = 0
    except BaseException:  # nothing may go on in the copy of the test
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def end_of(pid: int) -> int:
    """Wait for a process; return its exit status, or minus the signal that has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Place:
    """Where the runs of a test are: the store, the ledgers and the results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/runs.db"

    def ledger(self, run_id: str) -> Path:
        """Return the file of a run's ledger."""
        return self.folder / f"{run_id}.ledger"

    def result(self, run_id: str) -> Path:
        """Return the file in which the result of a run is."""
        return self.folder / f"{run_id}.result"

    def problems(self, run_id: str, flow: type[Flow]) -> list[str]:
        """Judge a run that has ended."""
        if not self.result(run_id).exists():
            return ["it is lost"]
        found = json.loads(self.result(run_id).read_text())
        problems = faults_in(read_ledger(self.ledger(run_id)), flow.expected)
        if found != [flow.result, flow.status]:
            problems.append(f"ended as {found}, expected {[flow.result, flow.status]}")
        return problems


async def live(
    place: Place,
    runs: dict[str, str],
    life: int,
    point: Point | None = None,
    **options: Any,
) -> None:
    """One life: run each of ``runs`` (a flow by its run id) to its end, or until the process dies."""
    options = {"durability": "process", "max_crashes": 1000, **options}
    async with open_run_store(place.url, **options) as store:
        if point is not None:
            kill_at(store, point)
        async with anyio.create_task_group() as group:
            for run_id, name in runs.items():
                if not place.result(run_id).exists():
                    group.start_soon(_live_one, place, store, run_id, name, life)


async def _live_one(place: Place, store: Any, run_id: str, name: str, life: int) -> None:
    flow = FLOWS[name](FileLedger(place.ledger(run_id), life), pace=PACE)
    handler = store.run(flow.run(**flow.inputs), run_id=run_id)
    result = None
    try:
        async with handler:
            await World(flow, handler, flow.ledger).live()
            result = await handler
    except Exception:
        if handler.status not in ("failed", "timed_out", "cancelled", "detached"):
            raise
    if handler.status != "detached":
        draft = place.folder / f"{run_id}.{life}"
        draft.write_text(json.dumps([result, handler.status]))
        draft.rename(place.result(run_id))


def kill_at(store: Any, point: Point) -> None:
    """Have this process die at an append."""
    journal = store._hub.journal
    append, count = journal.append_nowait, 0

    def append_nowait(batch: Any, settle: Any) -> None:
        nonlocal count
        count += 1
        if count == point.append:
            if not point.is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            # After its commit, and before this process hears of that.
            append(batch, lambda _error: os.kill(os.getpid(), signal.SIGKILL))
        else:
            append(batch, settle)

    journal.append_nowait = append_nowait


def in_loop(backend: str, function: Callable[[], Any]) -> None:
    """Run an async function in a new event loop."""
    anyio.run(function, backend=backend)


def kill_flow(name: str, backend: str, points: list[Point]) -> tuple[list[str], int]:
    """Run a flow in processes that die at these points; return the problems, and how many died."""
    died = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for life, point in enumerate([*points, None], 1):
            one = partial(live, place, {"one": name}, life, point)
            status = end_of(spawn(partial(in_loop, backend, one)))
            died += status == -signal.SIGKILL
            if status not in (0, -signal.SIGKILL):
                return [f"a process ended with {status}"], died
            if status == 0:
                break
        return place.problems("one", FLOWS[name]), died


def kill_everywhere(name: str, backend: str, every: int, offset: int = 0) -> tuple[int, list[str]]:
    """Kill a flow before and after every n-th append, until a process survives."""
    killed, found = 0, []
    number = offset
    while True:
        point = Point(number // 2 + 1, number % 2 == 1)
        problems, died = kill_flow(name, backend, [point])
        found += [f"{name} {backend} {point}: {problem}" for problem in problems]
        if not died or len(found) > 5:
            return killed, found
        killed += 1
        number += every


def kill_at_random(count: int, backend: str, seed: int, *, processes: int = 1) -> list[str]:
    """Kill the process, or the group of processes, that runs ``count`` runs, until all have ended."""
    chance = random.Random(f"{seed} {backend} {processes}")
    names = [name for name in FLOWS if name not in ("Overdue", "Graceful", "Branches")]
    runs = {f"run-{n}": chance.choice(names) for n in range(count)}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        life = kills = 0
        until = time.monotonic() + 10 * LONGEST
        while any(not place.result(run_id).exists() for run_id in runs):
            if time.monotonic() > until:
                return [f"not over after {kills} kills"]
            pids = []
            for _ in range(processes):
                life += 1
                pids.append(spawn(partial(in_loop, backend, partial(live, place, runs, life))))
            time.sleep(chance.choice((0.05, 0.1, 0.2, 0.4, 0.8)) * (1 + kills / 20))
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            for status in [end_of(pid) for pid in pids]:
                kills += status == -signal.SIGKILL
                if status not in (0, -signal.SIGKILL):
                    return [f"a process ended with {status}"]
        found = [
            f"{run_id} ({name}): {problem}"
            for run_id, name in runs.items()
            for problem in place.problems(run_id, FLOWS[name])
        ]
        print(f"{count} runs, {kills} kills, {len(found)} problems")
        return found


def main() -> int:
    """Kill flows; return 1 if one deviates."""
    parser = argparse.ArgumentParser(prog="python -m tests.durable.killing", description=__doc__)
    parser.add_argument("--flow", choices=FLOWS)
    parser.add_argument("--backend", choices=BACKENDS, default="trio")
    parser.add_argument("--every", type=int, default=1, help="die at every n-th point only")
    parser.add_argument("--random", type=int, help="that many runs, killed at random")
    parser.add_argument("--processes", type=int, default=1, help="of the group that is killed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.random:
        problems = kill_at_random(
            arguments.random, arguments.backend, arguments.seed, processes=arguments.processes
        )
    else:
        problems = []
        for name in [arguments.flow] if arguments.flow else FLOWS:
            killed, found = kill_everywhere(name, arguments.backend, arguments.every)
            problems += found
            print(f"{name}: {killed} kills, {len(found)} problems", flush=True)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
