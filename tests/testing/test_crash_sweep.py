"""``sweep(kinds="crash")``: the scenario's process dies at every moment, and starts again."""

from __future__ import annotations

import anyio
import pytest

from sluicegate import Context, StartEvent, StopEvent, Workflow, step
from sluicegate.durable import Batch, Lease, NewRun, StoredRecord
from sluicegate.testing import ScenarioFailure, durable_scenario, sweep
from tests.helpers import Asked, Said, on_each_backend


async def orderly(trial):
    """Do three things, each once: what the ledger has already is not done again."""
    ledger = trial.crash.ledger
    for number in range(3):
        if number not in ledger:
            await anyio.sleep(1)
            ledger.append(number)
        await anyio.sleep(1)
    return list(ledger)


async def careless(trial):
    """Do two things in every life."""
    for number in range(2):
        trial.crash.ledger.append(number)
        await anyio.sleep(1)


@on_each_backend
def test_a_scenario_begins_again_after_each_crash(backend):
    """Cut off at every moment, it is called again with the ledger of the lives before."""
    outcomes = []
    report = sweep(orderly, kinds="crash", backends=backend, check=outcomes.append)

    assert report.positions > 10
    assert all(outcome.value == [0, 1, 2] == [*outcome.ledger] for outcome in outcomes)
    # The undisturbed run comes first; at the last position it had ended before the crash.
    assert [outcome.lives for outcome in outcomes] == [1, *[2] * report.positions, 1]
    assert (
        str(report)
        == f"{backend}, crash: {report.runs - 1} runs, all of {report.positions} positions"
    )


@on_each_backend
def test_a_second_crash_hits_the_second_life(backend):
    """With ``twice``, each crash is followed by one at each moment of the next life."""
    lives = set()
    sweep(
        orderly,
        kinds="crash",
        backends=backend,
        twice=True,
        limit=60,
        check=lambda o: lives.add(o.lives),
    )

    assert lives == {1, 2, 3}


@on_each_backend
def test_the_clean_up_of_a_dead_life_leaves_no_trace(backend):
    """It unwinds, shielded awaits included, and the ledger takes nothing of it."""
    unwound = []

    async def scenario(trial):
        try:
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            unwound.append(trial.crash.life)
            trial.crash.ledger.append(f"closed by {trial.crash.life}")

    sweep(
        scenario,
        kinds="crash",
        backends=backend,
        check=lambda o: o.ledger == (f"closed by {o.lives}",),
    )

    assert set(unwound) == {1, 2}


@on_each_backend
def test_a_scenario_that_does_it_again_is_found(backend):
    """The check sees the ledger of all lives; the failure names the earliest crash and replays it."""

    def once(outcome):
        assert sorted(outcome.ledger) == sorted(set(outcome.ledger))

    with pytest.raises(ScenarioFailure, match="the check failed") as failure:
        sweep(careless, kinds="crash", backends=backend, check=once)

    assert failure.value.at.startswith(f"{backend}:crash:")
    with pytest.raises(ScenarioFailure, match="the check failed"):
        sweep(careless, check=once, at=failure.value.at)


@on_each_backend
def test_what_the_dead_life_raises_is_not_observed(backend):
    """A failure of its clean-up is nobody's; one of the new life is the scenario's."""

    async def scenario(trial):
        try:
            await anyio.sleep(1)
        finally:
            if trial.crash.is_cut:
                raise OSError("the disk of a dead process")
        if trial.crash.life == 2:
            raise ValueError("new")

    with pytest.raises(ScenarioFailure, match="ValueError: new left the scenario"):
        sweep(scenario, kinds="crash", backends=backend)


@on_each_backend
def test_a_life_that_does_not_end_is_found(backend):
    """Whatever a dead life waits for, it has to unwind within the time of every clean-up."""

    async def scenario(trial):
        try:
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                if trial.crash.is_cut:
                    await anyio.sleep(100)

    with pytest.raises(ScenarioFailure, match="did not end within 60 virtual seconds"):
        sweep(scenario, kinds="crash", backends=backend)


def test_a_crash_is_none_of_all_kinds():
    """``"all"`` are the cancellations; a crash is asked for by name, beside them or alone."""
    kinds = set()
    sweep(careless, kinds="all", check=lambda outcome: kinds.add(outcome.at.kind))
    assert "crash" not in kinds
    sweep(careless, kinds=("all", "crash"), check=lambda outcome: kinds.add(outcome.at.kind))

    assert kinds == {None, "scope", "deadline", "interrupt", "error", "crash"}


def test_an_unknown_loss_is_refused():
    """The message has the words."""
    with pytest.raises(ValueError, match="loses has 'all'; expected any of 'pending', 'half', 'no"):
        sweep(careless, kinds="crash", loses="all")


# -- stores of runs -------------------------------------------------------------------------------


async def writing(trial):
    """Create a run in the store of the lives, claim it after a crash, and append five records."""
    async with trial.crash.store.open() as journal:
        lease = await journal.create(
            NewRun("one", "Flow", "key", trial.crash.wall(), b"{}"), lambda _: None
        )
        if not isinstance(lease, Lease):
            lease = await journal.claim("one", lambda _: None)
        settled = []
        for number in range(lease.sequence + 1, 7):
            record = StoredRecord(number, trial.crash.wall(), "x", b"{}")
            journal.append_nowait(Batch("one", lease.fence, [record]), settled.append)
            await anyio.sleep(1)
            assert settled == [None]
            settled.clear()
            trial.crash.ledger.append(number)
        return [record.sequence for record in await journal.read("one", after=0)]


@on_each_backend
@pytest.mark.parametrize("loses", ["pending", "half", "nothing"])
def test_the_store_survives_with_what_was_confirmed(backend, loses):
    """What was confirmed before the cut is there, what was not may be; the next life claims at once."""

    def check(outcome):
        assert outcome.value == [1, 2, 3, 4, 5, 6]
        told = [*outcome.ledger]
        assert told == sorted(set(told))
        assert set(told) <= {2, 3, 4, 5, 6}

    report = sweep(
        writing, kinds="crash", backends=backend, loses=loses, twice=True, limit=80, check=check
    )

    assert report.positions > 10


class Twice(Workflow[str]):
    """Asks once, and has an effect that it does not protect."""

    def __init__(self, ledger) -> None:
        super().__init__(serializable=[Asked, Said])
        self.ledger = ledger

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        said = await ctx.wait_for_event(Said, Asked(name="who"))
        self.ledger.append(said.text)
        await anyio.sleep(1)
        return StopEvent(result=said.text)


def answer(question):
    return Said(name=question.name, text="ann")


@on_each_backend
def test_a_durable_run_is_swept_with_one_line(backend):
    """The run ends as it does without a crash, its question is answered once, and the ledger tells all."""
    ledgers = set()
    scenario = durable_scenario(Twice, answer=answer, check=lambda o: ledgers.add(o.ledger))

    report = sweep(scenario, kinds="crash", backends=backend)

    assert report.positions > 10
    assert ledgers == {("ann",), ("ann", "ann")}  # a crash behind the effect repeats it


def test_a_run_that_ends_otherwise_after_a_crash_is_found():
    """The failure tells both results."""
    made = []

    class Fickle(Workflow[int]):
        def __init__(self, _ledger) -> None:
            super().__init__()
            made.append(self)

        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result=len(made))

    with pytest.raises(ScenarioFailure, match="the result is 3, and 1 without a crash"):
        sweep(durable_scenario(Fickle), kinds="crash")
