"""Flows whose disk is cut before and after every record: ``python -m tests.durable.flow_lives``."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio

from sluicegate.testing import run_virtually
from tests.durable.driving import World
from tests.durable.flows import FLOWS, Flow
from tests.durable.ledger import Ledger, faults_in
from tests.durable.lives import Cut, Disk, live_on
from tests.helpers import BACKENDS, leaves_of


class Killed:
    """A flow in lives, with its ledger and what its journal says."""

    def __init__(self, name: str, cuts: list[Cut], seed: int) -> None:
        self.kind = FLOWS[name]
        self.cuts = cuts
        self.seed = seed
        self.ledger = Ledger(0)
        self.problems: list[str] = []
        self.seen = 0
        self.recorded: list[tuple[int, set[str]]] = []

    def make(self) -> Any:
        """Make the workflow of a life."""
        flow = self.kind(self.ledger)
        return flow, partial(flow.run, **flow.inputs)

    def new_life(self, disk: Disk) -> Callable[[], None]:
        """Make the ledger of a life; return what ends it."""
        self.ledger = ledger = self.ledger.next_life()
        self.recorded.append((ledger.life, disk.done()))

        def cut() -> None:
            ledger.is_dead = True

        return cut

    async def drive(self, flow: Flow, handler: Any) -> tuple[Any, str]:
        """Run to the end, with the world around it."""
        return await World(flow, handler, self.ledger).run(), handler.status

    async def main(self) -> int:
        """Live, judge, and return how many records the last life had."""
        try:
            with anyio.fail_after(1e6):
                (result, status), _, count = await live_on(
                    self.make, self.drive, self.cuts, self.seed, self.new_life
                )
        except TimeoutError:
            self.problems.append("it hangs")
            return 0
        except Exception as error:
            self.problems += [f"{leaf!r} left" for leaf in leaves_of(error)]
            return 0
        flow = self.kind
        if result != flow.result:
            self.problems.append(f"result {result}, expected {flow.result}")
        if status != flow.status:
            self.problems.append(f"status {status}, expected {flow.status}")
        self.problems += faults_in(self.ledger.entries(), flow.expected)
        self.problems += self._recorded_again()
        return count

    def _recorded_again(self) -> Iterator[str]:
        """Yield the attempts that began although their outcome was on the disk."""
        recorded = dict(self.recorded)
        for entry in self.ledger.entries():
            known = {entry.delivery, entry.attempt} & recorded[entry.life]
            if entry.what == "begin" and entry.attempt and known:
                yield f"{entry.name} ({entry.attempt}) began in life {entry.life}, and was recorded"


def kill(name: str, backend: str, cuts: list[Cut], seed: int = 0) -> tuple[int, list[str]]:
    """Run a flow that is cut there; return how many records its last life had, and the problems."""
    killed = Killed(name, cuts, seed)
    count = run_virtually(killed.main, backend=backend)
    return count, killed.problems


def kill_everywhere(name: str, backend: str, every: int = 1) -> tuple[int, dict[str, list[str]]]:
    """Cut a flow before and after every n-th record, half of the time also in its second life.

    Returns the number of runs, and the problems by the cuts.
    """
    count, problems = kill(name, backend, [])
    found = {"undisturbed": problems} if problems else {}
    chance = random.Random(f"{name} {every}")
    runs = 1
    first = chance.randint(1, every)
    for point in range(first, 2 * count + 1, every):
        cuts = [Cut((point + 1) // 2, point % 2 == 0, chance.choice((0, 0, 1, 3)))]
        if chance.random() < 0.5:
            second = chance.randint(1, max(1, count // 2))
            cuts.append(Cut(second, chance.random() < 0.5, chance.choice((0, 2))))
        runs += 1
        _, problems = kill(name, backend, cuts, point)
        if problems:
            found[str(cuts)] = problems
    return runs, found


def main() -> int:
    """Cut flows everywhere; return 1 if one deviates."""
    parser = argparse.ArgumentParser(prog="python -m tests.durable.flow_lives")
    parser.add_argument("--flow", choices=FLOWS, help="all by default")
    parser.add_argument("--backend", choices=BACKENDS, help="both by default")
    parser.add_argument("--every", type=int, default=1, help="cut at every n-th point only")
    arguments = parser.parse_args()
    bad = total = 0
    for name in [arguments.flow] if arguments.flow else FLOWS:
        for backend in [arguments.backend] if arguments.backend else BACKENDS:
            runs, found = kill_everywhere(name, backend, arguments.every)
            total += runs
            bad += len(found)
            for cuts, problems in found.items():
                for problem in problems:
                    print(f"{name} {backend} {cuts}: {problem}", flush=True)
    print(f"{total} runs, {bad} deviate")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
