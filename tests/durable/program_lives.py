"""Random programs whose disk is cut at random records: ``python -m tests.durable.program_lives``.

Each program lives three times or more; in the end its result is the right one, no body has begun
again whose outcome was recorded, and no key has named two bodies.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio

from sluicegate import ChildEvent, Context, WorkflowRuntimeError
from sluicegate.testing import run_virtually
from tests.durable.lives import Cut, Disk, live_on
from tests.durable.rebuilt import KNOWN
from tests.helpers import leaves_of
from tests.random_programs.building import (
    Answer,
    Builder,
    Ledger,
    PlannedError,
    Question,
    Word,
)
from tests.random_programs.programs import Program, expect, make


#: Virtual seconds after which a program hangs.
LONGEST = 1_000_000.0


class Begins(Ledger):
    """The ledger of one life, which knows the deliveries."""

    def __init__(self, life: int, begins: list[tuple[int, str, str, int]]) -> None:
        super().__init__(float)
        self.life = life
        self.begins = begins
        self.is_dead = False

    @contextmanager
    def body(self, ctx: Context, name: str, path: str, most: int = 10**9) -> Iterator[str]:
        """Note the delivery, and enter the body."""
        delivery: Any = ctx.redelivery
        if delivery is not None and delivery.key and not self.is_dead:
            key = f"{ctx.run_id}/{delivery.key}"
            self.begins.append((self.life, f"{name}@{path}", key, delivery.number))
        with super().body(ctx, name, path, most) as found:
            yield found


class Lives:
    """The lives of the program of a seed."""

    def __init__(self, seed: int, cuts: list[Cut]) -> None:
        self.seed = seed
        self.program: Program = make(seed)
        self.expected = expect(self.program)
        self.cuts = cuts
        self.ledger = Begins(0, [])
        self.recorded: dict[int, set[str]] = {}
        self.problems: list[str] = []
        self.records = 0

    def begin_life(self, disk: Disk) -> Callable[[], None]:
        """Make the ledger of a life; return what ends it."""
        self.ledger = ledger = Begins(self.ledger.life + 1, self.ledger.begins)
        self.recorded[ledger.life] = disk.done()

        def cut() -> None:
            ledger.is_dead = True

        return cut

    def make(self) -> Any:
        """Make the workflow of a life."""
        builder = Builder("s", self.program.stages, anyio.CapacityLimiter(2), 1.0, KNOWN)
        workflow = builder.kind()(serializable=KNOWN)
        for each in (workflow, *builder.children):
            each.ledger = self.ledger  # type: ignore[attr-defined]
        return workflow, partial(workflow.run, value=self.program.value, path="r")

    async def drive(self, _workflow: Any, handler: Any) -> tuple[Any, str]:
        """Run to the end, and answer everything."""
        async with handler, anyio.create_task_group() as group:
            group.start_soon(self._answer_all, handler)
            with suppress(PlannedError):
                await handler
            group.cancel_scope.cancel()
        with suppress(PlannedError):
            return handler.result(), handler.status
        return None, handler.status

    async def _answer_all(self, handler: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._look_for_questions, handler)
            async for event in handler.stream_events():
                self._answer(handler, event.event if isinstance(event, ChildEvent) else event)

    async def _look_for_questions(self, handler: Any) -> None:
        """Answer what earlier lives have asked, which is not on the stream of this one."""
        while True:
            for asked in handler.questions:
                self._answer(handler, asked.event)
            await anyio.sleep(0.25)

    @staticmethod
    def _answer(handler: Any, event: Any) -> None:
        if isinstance(event, Question):
            kind = Word if event.plain else Answer
            answer = kind(key=event.key, number=len(event.key.partition("@")[2]))
            with suppress(WorkflowRuntimeError):
                handler.send_event(answer, id=event.key)

    async def main(self) -> None:
        """Live, and judge."""
        with anyio.fail_after(LONGEST):
            (result, status), _, self.records = await live_on(
                self.make, self.drive, self.cuts, self.seed, self.begin_life
            )
        if self.expected.fatal:
            if status != "failed":
                self.problems.append(f"{status}, although a body fails for good")
        elif (result, status) != (self.expected.value, "completed"):
            self.problems.append(f"{status} {result}, expected {self.expected.value}")
        self.problems += self._judge()

    def _judge(self) -> Iterator[str]:
        names = defaultdict(set)
        deliveries = defaultdict(set)
        for life, name, key, attempt in self.ledger.begins:
            if {key, f"{key}/{attempt}"} & self.recorded[life]:
                yield f"{name} ({key}/{attempt}) began in life {life}, and was recorded"
            names[key].add(name)
            deliveries[name].add(key)
        for key, found in names.items():
            if len(found) > 1:
                yield f"{key} named {sorted(found)}"
        for name, found in deliveries.items():
            if len(found) > 1 and "e@" not in name:
                yield f"{name} was delivered as {sorted(found)}"


def run_seed(seed: int, backend: str, most: int = 3) -> tuple[int, list[str]]:
    """Kill the program of a seed at random records; return the number of lives, and the problems."""
    chance = random.Random(f"cuts {seed}")
    cuts: list[Cut] = []
    lives = 0
    length = _length(seed, backend)
    for _ in range(most):
        cuts = [
            Cut(
                chance.randint(1, max(1, length)),
                chance.random() < 0.5,
                chance.choice((0, 0, 2, 5)),
            )
            for _ in range(chance.randint(1, 3))
        ]
        found = Lives(seed, cuts)
        try:
            run_virtually(found.main, backend=backend, seed=seed)
        except Exception as error:
            found.problems += [f"{leaf!r}" for leaf in leaves_of(error)]
        lives += found.ledger.life
        if found.problems:
            return lives, [f"{cuts}: {problem}" for problem in found.problems]
    return lives, []


def _length(seed: int, backend: str) -> int:
    found = Lives(seed, [])
    run_virtually(found.main, backend=backend, seed=seed)
    assert not found.problems, found.problems
    return found.records


def main() -> int:
    """Run the programs; return 1 if one deviates."""
    parser = argparse.ArgumentParser(prog="python -m tests.durable.program_lives")
    parser.add_argument("--seeds", default="0-99", help="one, or first-last")
    parser.add_argument("--backend", choices=("trio", "asyncio"), default="trio")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    bad = lives = 0
    seeds = range(int(first), int(last or first) + 1)
    for seed in seeds:
        try:
            count, problems = run_seed(seed, arguments.backend)
        except Exception as error:
            count, problems = 0, [f"undisturbed: {error!r}"]
        lives += count
        bad += bool(problems)
        for problem in problems:
            print(f"{arguments.backend} {seed}: {problem}", flush=True)
    print(f"{len(seeds)} programs, {lives} lives, {bad} deviate")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
