"""Rebuilt equals live: after every turn of a task, the records so far give the run as it is.

``watch_over(handler)`` gives a run a journal whose sink applies each record, through its JSON, to a
second machine at once, and confirms it after a random while. ``Twin.look`` compares the snapshot of
the run with that of the second machine, field by field.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from math import isclose
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio

from sluicegate import WorkflowDetachedEvent
from sluicegate._context import Branch
from sluicegate._engine.idle import open_questions
from sluicegate._engine.journal_records import Done, Failed, decode_record, read_record
from sluicegate._engine.replay import PastRun
from sluicegate._engine.run import Run
from sluicegate._engine.run_journal import JournalWriter, RunJournal
from sluicegate._engine.saved_children import saved_questions
from sluicegate._engine.snapshot_read import SavedRun
from sluicegate._engine.snapshot_write import take_snapshot
from sluicegate._handler import run_of
from sluicegate.testing import VirtualLoop, run_virtually
from tests.durable.stored import EPOCH, wall
from tests.helpers import leaves_of, through_json
from tests.random_programs.building import Answer, Builder, Ledger, Question, Tick, Word
from tests.random_programs.checking import INTERRUPTED_BY, LONGEST, Watched, judge, make_plan
from tests.random_programs.programs import expect, make


if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sluicegate import WorkflowHandler


#: Fields that hold seconds; they may differ by what a float of a wall clock does not hold.
SECONDS = {"elapsed", "age", "due", "idle", "left", "failures", "attempts"}
TOLERANCE = 1e-5


class Divergence(AssertionError):
    """The rebuilt run is another than the live one."""


class Twin:
    """The sink of a run's journal, and the machine that is rebuilt from it."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run = run
        self.chance = random.Random(f"commits {seed}")
        self.records: list[bytes] = []
        self.compared = 0
        self.last_at = EPOCH
        #: The branches that steps in progress have dropped, by the number of the delivery.
        self._kept: dict[int, list[Any]] = {}
        #: The first difference, with the records that led to it.
        self.problem = ""
        self._unconfirmed = anyio.Event()
        self._is_dirty = True
        self.writer = JournalWriter(self, wall=wall)
        base = through_json(take_snapshot(run))
        run.journal = RunJournal(self.writer, run)
        self.past = PastRun(run.graph, run.options.classes, base, EPOCH)

    # -- the sink

    def append(
        self, sequence: int, at: float, kind: str, data: bytes, shown: int, consumes: int | None
    ) -> None:
        """Apply a record to the rebuilt machine; it is confirmed later."""
        assert sequence == len(self.records) + 1, (sequence, kind)
        assert consumes is None
        assert abs(at - wall()) < TOLERANCE
        self.records.append(data)
        self.last_at = at
        self._is_dirty = True
        self._unconfirmed.set()
        if self.problem:
            return
        try:
            self._let_go(record := decode_record(data))
            self.past.apply(record)
        except Exception as error:
            self.fail(f"the record cannot be applied: {type(error).__name__}: {error}")

    def _let_go(self, record: Any) -> None:
        """Let go of the branches that a step held, at its end.

        In a live run the garbage collector decides when a branch that nobody asks for any more is
        dissolved, which only lineage shows. Here it is at the end of the step, as in a replay.
        """
        if isinstance(record, Done | Failed) and not record.c:
            for node in self._kept.pop(record.k, ()):
                node.is_held = False

    def keep(self, branch: Any) -> None:
        """Keep a branch that its step has dropped until the end of that step."""
        redelivery = branch._step.redelivery
        self._kept.setdefault(redelivery.key, []).append(branch._node)

    async def confirm(self) -> None:
        """Confirm records after a random while, and a random number of them at a time."""
        while True:
            await self._unconfirmed.wait()
            self._unconfirmed = anyio.Event()
            while self.writer.durable < len(self.records):
                for _ in range(self.chance.choice((0, 0, 1, 2, 5))):
                    await anyio.lowlevel.checkpoint()
                if self.chance.random() < 0.2:
                    await anyio.sleep(self.chance.choice((0.001, 0.01, 0.05)))
                self.writer.commit_reached(
                    self.chance.randint(self.writer.durable + 1, len(self.records))
                )

    # -- the comparison

    def look(self) -> None:
        """Compare, if there was a record or anything else may have changed."""
        run = self.run
        if self.problem or run.machine is None or run.outcome.status or run.start_event is not None:
            return
        self.compared += 1
        live = through_json(take_snapshot(run))
        rebuilt = through_json(self.past.snapshot(wall(), has_crashed=False))
        asked = questions_of_children(run), saved_questions_of_children(run, rebuilt)
        if asked[0] != asked[1]:
            self.fail(f"questions of children: live {asked[0]}, rebuilt {asked[1]}")
            return
        compare_children(live, rebuilt, graphs_below(run), wall())
        live = canonical(live, live_flights(run))
        rebuilt = canonical(rebuilt, past_flights(self.past))
        if (
            rebuilt["state"] is None
        ):  # nothing was edited; the live run makes it when it is asked for
            rebuilt["state"] = live["state"]
        if "run" in live:  # branches of events that are held back are numbered and not recorded
            live["run"]["opened"] = rebuilt["run"].get("opened", 0)
            rebuilt["run"].setdefault("opened", 0)
        # A rebuilt run has lived until its last record.
        live["elapsed"] -= wall() - self.last_at
        found = list(differences(live, rebuilt))
        if found:
            self.fail("; ".join(found[:5]))

    def fail(self, what: str) -> None:
        """Keep the first difference, with the records up to there."""
        lines = [f"  {number:3} {data.decode()}" for number, data in enumerate(self.records, 1)]
        self.problem = "\n".join([what, *lines])

    def conclude(self) -> None:
        """Raise what was found.

        Raises:
            Divergence: The rebuilt run was another than the live one.
        """
        if self.problem:
            raise Divergence(self.problem)
        assert self.compared


def live_flights(run: Run) -> dict[str, int]:
    """Return how many invocations of each step are under way."""
    found: dict[str, int] = {}
    for worker in run.workers:
        if worker.step is not None and (worker.node is None or not worker.node.is_cancelled):
            found[worker.step.name] = found.get(worker.step.name, 0) + 1
    return found


def past_flights(past: PastRun) -> dict[str, int]:
    """Return the same of a rebuilt run."""
    found: dict[str, int] = {}
    for flight in past.flights.values():
        if flight.node is None or not flight.node.is_cancelled:
            name = flight.queue.step.name
            found[name] = found.get(name, 0) + 1
    return found


# -- children ---------------------------------------------------------------------------------------


def graphs_below(run: Run) -> dict[str, tuple[Any, Any]]:
    """Return the workflows of the children of a run, by name, with their further classes."""
    found: dict[str, tuple[Any, Any]] = {}
    for child in run.children:
        found[child.graph.name] = child.graph, child.options.classes
        found |= graphs_below(child)
    return found


def questions_of_children(run: Run) -> dict[str, str]:
    """Return the open questions of the children of a run, each with its event."""
    ended = tuple(ended_below(run))
    return {
        asked.id: repr(asked.event)
        for asked in open_questions(run)
        if "/" in asked.id and not asked.id.startswith(ended)
    }


def ended_below(run: Run, path: str = "") -> Iterator[str]:
    """Yield what the ids of questions begin with, of each child that has its result but not its end."""
    for child in run.children:
        here = f"{path}{child.run_id}/"
        if child.machine is not None and child.machine.stop is not None:
            yield here
        yield from ended_below(child, here)


def saved_questions_of_children(run: Run, snapshot: Any) -> dict[str, str]:
    """Return the same of a run that continues from a snapshot, before its steps call the children."""
    saved = SavedRun(run.graph, run.options.classes, through_json(snapshot))
    later = Run(None, run.graph, run_id="", log=run.log, options=run.options, start_event=None)
    if saved.progress is not None:
        later.saved_children = saved.progress.children
    ended = tuple(ended_below(run))
    return {
        asked.id: repr(asked.event)
        for asked in saved_questions(later)
        if not asked.id.startswith(ended)
    }


def compare_children(live: Any, rebuilt: Any, graphs: dict[str, Any], now: float) -> None:
    """Bring the children in two snapshots into one form.

    A rebuilt run has the records of its children beside their snapshots, for it does not know their
    workflows: here they are applied, as the step does that calls for the child again.
    """
    for snapshot in (live, rebuilt):
        for part in children_in(snapshot):
            number, tail, at = part.pop("child", 0), part.pop("tail", []), part.pop("at", 0.0)
            if tail:
                graph, classes = graphs[part["workflow"]]
                past = PastRun(graph, classes, part["run"], at, number=number)
                for data in tail:
                    past.apply(read_record(data))
                part["run"] = through_json(past.snapshot(now, has_crashed=False))
                if past.machine.stop is not None:
                    part["status"], part["run"] = "completed", None
                    part["result"] = past.codec.encode(past.machine.stop, "its stop event")
    _level(live, rebuilt, graphs, now)


def _level(live: Any, rebuilt: Any, graphs: dict[str, Any], now: float) -> None:
    """Leave out what a rebuilt child cannot know: its age, and that it is idle."""
    known = {part["run_id"]: part for part in children_in(live)}
    for part in children_in(rebuilt):
        inner, other = part.get("run"), known.get(part["run_id"], {}).get("run")
        if inner is None or other is None:
            part["run"] = inner or None
            known.get(part["run_id"], {})["run"] = other or None
            continue
        compare_children(other, inner, graphs, now)
        if inner["state"] is None:
            other["state"] = None
        for snapshot in (inner, other):
            for name in ("elapsed", "status", "sequence"):
                snapshot[name] = None
            if "run" in snapshot:
                snapshot["run"].pop("opened", None)
        part["run"], known[part["run_id"]]["run"] = canonical(inner, None), canonical(other, None)


def children_in(snapshot: Any) -> Iterator[Any]:
    """Yield the children of the steps in a snapshot."""
    for step in (snapshot.get("run") or {}).get("steps", {}).values():
        for delivery in step.get("deliveries", []):
            yield from delivery.get("children", [])


# -- snapshots in a form that does not depend on tasks -----------------------------------------------


def canonical(snapshot: dict[str, Any], flights: dict[str, int] | None) -> dict[str, Any]:
    """Return a snapshot with its branches in the order of mention, and invocations by number.

    The order of the invocations that are under way is that of the tasks: it means nothing, since
    all of them begin again at once.

    Args:
        snapshot: The snapshot.
        flights: How many invocations of each step are under way; None for all that have begun.
    """
    run = snapshot.get("run")
    if run is None:
        return snapshot
    branches = _Branches(run["branches"])
    steps = {}
    for name in sorted(run["steps"]):
        part = run["steps"][name]
        deliveries = part.get("deliveries", [])
        if flights is None:
            count = sum(found.get("has_begun", False) for found in deliveries)
        else:
            count = flights.get(name, 0)
        working = sorted(deliveries[:count], key=lambda delivery: delivery.get("key", 0))
        part = {**part, "deliveries": [*working, *deliveries[count:]]}
        steps[name] = branches.renumber_step(part)
    run = {**run, "steps": steps, "branches": branches.all()}
    return {**snapshot, "run": run}


class _Branches:
    """The branches of a snapshot, renumbered in the order in which they are mentioned."""

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        self._parts = parts
        self._numbers: dict[int, int] = {0: 0}
        self._found: dict[int, dict[str, Any]] = {}

    def number(self, old: int) -> int:
        if old not in self._numbers:
            part = self._parts[old - 1]
            parent = self.number(part["parent"])
            self._numbers[old] = number = len(self._numbers)
            self._found[number] = part = {**part, "parent": parent}
            if "places" in part:
                part["places"] = {n: self.places(p) for n, p in part["places"].items()}
        return self._numbers[old]

    def _upward(self, old: int) -> list[str]:
        """Return the contents of a branch and of those around it."""
        found = []
        while old:
            part = self._parts[old - 1]
            found.append(json.dumps({**part, "parent": 0}, sort_keys=True))
            old = part["parent"]
        return found

    def places(self, places: Any) -> Any:
        return [[[event, self.number(branch)] for event, branch in place] for place in places]

    def renumber_step(self, part: dict[str, Any]) -> dict[str, Any]:
        part = {**part, "deliveries": [self._delivery(found) for found in part["deliveries"]]}
        for name in ("places", "unmatched"):
            if name in part:
                part[name] = self.places(part[name])
        return part

    def _delivery(self, part: dict[str, Any]) -> dict[str, Any]:
        part = {**part, "branch": self.number(part.get("branch", 0))}
        for name in ("received", "left", "sent", "collected"):
            if name in part and isinstance(part[name], dict):
                part[name] = {key: part[name][key] for key in sorted(part[name])}
        if "children" in part:
            part["children"] = sorted(part["children"], key=lambda child: child["run_id"])
        if "sent" in part:
            part["sent"] = {
                key: [self.number(one) if isinstance(one, int) else one for one in sent]
                for key, sent in part["sent"].items()
            }
        return part

    def all(self) -> list[dict[str, Any]]:
        """Return them in their new order; those that nothing mentions come last, by their contents."""
        rest = [old for old in range(1, len(self._parts) + 1) if old not in self._numbers]
        for old in sorted(rest, key=self._upward):
            self.number(old)
        return [self._found[number] for number in sorted(self._found)]


def differences(live: Any, rebuilt: Any, path: str = "", *, seconds: bool = False) -> Iterator[str]:
    """Yield where two snapshots differ; seconds may differ by what floats do not hold."""
    if isinstance(live, dict) and isinstance(rebuilt, dict):
        for key in {**live, **rebuilt}:
            here = f"{path}.{key}" if path else key
            if key not in live or key not in rebuilt:
                sides = live.get(key, "nothing"), rebuilt.get(key, "nothing")
                yield f"{here}: live {sides[0]!r}, rebuilt {sides[1]!r}"
            elif here not in IGNORED:
                yield from differences(live[key], rebuilt[key], here, seconds=key in SECONDS)
    elif isinstance(live, list) and isinstance(rebuilt, list) and len(live) == len(rebuilt):
        for number, pair in enumerate(zip(live, rebuilt, strict=True)):
            yield from differences(*pair, f"{path}[{number}]", seconds=seconds)
    elif isinstance(live, float) and isinstance(rebuilt, float | int):
        if not isclose(live, rebuilt, abs_tol=TOLERANCE):
            yield f"{path}: live {live!r}, rebuilt {rebuilt!r}"
    elif live != rebuilt:
        yield f"{path}: live {live!r}, rebuilt {rebuilt!r}"


#: What a rebuilt run does not know: whether it is idle (its status), and the events of the live stream.
IGNORED = {"status", "sequence"}


# -- looking ----------------------------------------------------------------------------------------


class _AfterEachStep(trio.abc.Instrument):
    """Looks whenever a task of Trio has had its turn."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    def after_task_step(self, task: Any) -> None:
        with self._keeping():
            self._twin.look()

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        # Trio logs an instrument's exception, and goes on without the instrument.
        try:
            yield
        except Exception as error:
            self._twin.fail(f"the comparison failed: {type(error).__name__}: {error}")


class LookingLoop(VirtualLoop):
    """An asyncio loop with virtual time that looks before each callback."""

    twin: Twin | None = None

    def _next_handle(self, ready: Any) -> None:
        if self.twin is not None:
            try:
                self.twin.look()
            except Exception as error:
                self.twin.fail(f"the comparison failed: {type(error).__name__}: {error}")
        super()._next_handle(ready)


def _dropped(twin: Twin, branch: Branch) -> None:
    context: Any = branch._step
    if context is None or context._is_over or context.redelivery is None:
        branch._node.is_held = False
    else:
        twin.keep(branch)


@asynccontextmanager
async def watch_over(handler: WorkflowHandler[Any], seed: int) -> AsyncIterator[Twin]:
    """Give a run that has not begun a journal, and compare after every turn of a task.

    Raises:
        Divergence: The rebuilt run was another than the live one.
    """
    twin = Twin(run_of(handler), seed)
    async with anyio.create_task_group() as group:
        group.start_soon(twin.confirm)
        instrument = _AfterEachStep(twin)
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.add_instrument(instrument)
        else:
            loop: Any = asyncio.get_running_loop()
            loop.twin = twin
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Branch, "__del__", lambda branch: _dropped(twin, branch))
                yield twin
        finally:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.remove_instrument(instrument)
            else:
                loop.twin = None
            group.cancel_scope.cancel()
    twin.conclude()


def run_watched(backend: str, main: Any, seed: int = 0) -> Any:
    """Run a coroutine function in virtual time, in a loop in which ``watch_over`` works."""
    if backend == "trio":
        return run_virtually(main, backend="trio", seed=seed)
    return anyio.run(
        main, backend="asyncio", backend_options={"loop_factory": lambda: LookingLoop(seed)}
    )


# -- random programs --------------------------------------------------------------------------------

#: The events of random programs that no annotation names.
KNOWN = (Tick, Question, Answer, Word)
#: In a durable run, what ends its owner's block is no cancellation of the run.
ENDS = INTERRUPTED_BY | dict.fromkeys(("scope", "body"), WorkflowDetachedEvent)


async def rebuild_program(seed: int) -> list[str]:
    """Run the random program of a seed, interrupted as its plan says, and compare everywhere.

    Returns the deviations of the program itself.

    Raises:
        Divergence: The rebuilt run was another than the live one.
    """
    program = make(seed)
    expected = expect(program)
    plan = make_plan(program, expected)
    builder = Builder("s", program.stages, anyio.CapacityLimiter(2), 1.0, KNOWN)
    ledger = Ledger(float)
    workflow = builder.kind()(timeout=plan.timeout, serializable=KNOWN)
    for each in (workflow, *builder.children):
        each.ledger = ledger  # type: ignore[attr-defined]
    handler = workflow.run(value=program.value, path="r")
    async with watch_over(handler, seed):
        watched = Watched(handler, ledger, plan, 1.0)
        watched.snapshots = False
        with anyio.fail_after(LONGEST):
            await watched.run()
    return judge(watched, expected, interrupted=True, ends=ENDS)


def main() -> int:
    """Rebuild programs: ``python -m tests.durable.rebuilt --seeds 0-99 --backend trio``."""
    parser = argparse.ArgumentParser(prog="python -m tests.durable.rebuilt", description=__doc__)
    parser.add_argument("--seeds", default="0-99", help="one, or first-last")
    parser.add_argument("--backend", choices=("trio", "asyncio"), default="trio")
    parser.add_argument("--show", action="store_true", help="print all records of a divergence")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    bad = 0
    seeds = range(int(first), int(last or first) + 1)
    for seed in seeds:
        problems = problems_of(seed, arguments.backend)
        bad += bool(problems)
        for problem in problems:
            text = problem if arguments.show else problem.partition("\n")[0]
            print(f"{arguments.backend} {seed}: {text}", flush=True)
    print(f"{len(seeds)} programs, {bad} deviate")
    return 1 if bad else 0


def problems_of(seed: int, backend: str) -> list[str]:
    """Rebuild the program of a seed; return what is wrong."""
    try:
        return run_watched(backend, partial(rebuild_program, seed), seed)
    except Exception as error:
        leaves = leaves_of(error)
        return [f"{type(leaf).__name__}: {leaf}" for leaf in leaves]


if __name__ == "__main__":
    sys.exit(main())
