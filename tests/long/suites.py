"""What the long runs consist of: each suite is a list of named commands, which may run in any order."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Callable


#: A name that stays the same from run to run, and the command with its arguments.
Item = tuple[str, list[str]]


def sweeps(_seed: int) -> list[Item]:
    """Every position of every sweep of the engine and of its features."""
    return [
        (test, _pytest(test, "--sweep-limit", "5000"))
        for test in _tests_in(
            "tests/sweeps/test_engine_swept.py", "tests/sweeps/test_features_swept.py"
        )
    ]


def schedules(seed: int) -> list[Item]:
    """A thousand schedules of each workflow, with and without a cancellation."""
    first = seed * 1000
    return [
        (f"{test} {first}-{first + 999}", _pytest(test, "--sweep-seed", f"{first}-{first + 999}"))
        for test in _tests_in("tests/sweeps/test_schedules.py")
    ]


#: By name: what makes the commands of a suite for a seed.
SUITES: dict[str, Callable[[int], list[Item]]] = {
    "sweeps": sweeps,
    "schedules": schedules,
}


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def _tests_in(*files: str) -> list[str]:
    listing = subprocess.run(
        _pytest("--collect-only", *files), capture_output=True, text=True, check=True
    ).stdout
    return [line for line in listing.splitlines() if "::" in line]
