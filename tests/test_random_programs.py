"""Random programs agree with their reference, however they are interrupted; and so do signals.

A fixed twentieth of what ``.ci/long`` runs, and one program of a random seed, which is printed.
"""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.random_programs.__main__ import BACKENDS
from tests.random_programs.checking import run_seed
from tests.random_programs.programs import expect, make


#: A twentieth of what .ci/long runs for each backend.
PROGRAMS, SIGNALS = 100, 15


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_do_what_their_reference_says(backend):
    """No event is lost or doubled, whatever interrupts a run, and wherever it is resumed."""
    problems = {seed: found for seed in range(PROGRAMS) if (found := run_seed(seed, backend))}

    assert problems == {}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_program_of_a_random_seed(backend, capsys):
    """As above, with a seed that has not been tried before."""
    seed = random.SystemRandom().randrange(10**9)
    with capsys.disabled():
        print(f"\npython -m tests.random_programs --backend {backend} --seeds {seed}")

    assert run_seed(seed, backend) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_unwind_after_a_signal(backend):
    """P22: whenever a real signal comes, everything unwinds, and one exception leaves."""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "tests.random_programs.signals"),
            *("--backend", backend, "--seeds", f"0-{SIGNALS - 1}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{SIGNALS} signals, 0 deviate\n",
        "",
    )


def test_the_programs_are_varied():
    """The generator makes every kind of stage, failing programs, and fan-outs of no member."""
    seen: set[str] = set()

    def walk(stages):
        for stage in stages:
            seen.add(type(stage).__name__)
            seen.add(f"{type(stage).__name__} {getattr(stage, 'count', '')}")
            walk(getattr(stage, "body", ()))

    fatal = 0
    for seed in range(PROGRAMS):
        walk(make(seed).stages)
        fatal += bool(expect(make(seed)).fatal)

    assert seen >= {
        *("Hop", "ThreadHop", "LimitedHop", "Grouped", "Fan", "Race", "Pair", "Twins", "Collect"),
        *("AwaitBranch", "CancelBranch", "Ask", "Flaky", "Handled", "Child", "Edit", "Fatal"),
        "Fan 0",
    }
    assert 5 < fatal < 40
