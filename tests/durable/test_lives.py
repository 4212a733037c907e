"""Runs whose disk is cut at any record, rebuilt, and gone on with; `.ci/long` cuts at every point."""

from __future__ import annotations

import pytest

from sluicegate.testing import run_virtually
from tests.durable import program_lives
from tests.durable.flow_lives import kill_everywhere
from tests.durable.flows import FLOWS
from tests.durable.lives import Cut
from tests.helpers import on_each_backend


#: Of the points before and after the records of a flow, one of so many is tried here.
EVERY = 20
#: A twentieth of the programs of .ci/long.
PROGRAMS = 20


@pytest.mark.slow
@on_each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_every_crash_point(name, backend):
    """Acceptance: cut there, each flow ends with the right result, and its ledger has no fault."""
    runs, found = kill_everywhere(name, backend, EVERY)

    assert found == {}
    assert runs > 1


@pytest.mark.slow
@on_each_backend
def test_programs_go_on_after_random_cuts(backend):
    """A program that is cut at random records ends right, and runs no recorded body again."""
    found = {seed: program_lives.run_seed(seed, backend)[1] for seed in range(PROGRAMS)}

    assert {seed: problems for seed, problems in found.items() if problems} == {}


@on_each_backend
@pytest.mark.parametrize(("seed", "record"), [(278, 73), (113, 75)])
def test_a_fan_out_that_is_over_does_not_end_again(seed, record, backend):
    """Its losers lie in a queue, dropped; the run that goes on runs the join no second time."""
    cuts = [Cut(record, keeps=True), Cut(record, keeps=True, loses=5)]
    lives = program_lives.Lives(seed, cuts)

    run_virtually(lives.main, backend=backend, seed=seed)

    assert lives.problems == []
