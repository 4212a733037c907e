"""What the long runs consist of: each suite is a list of named commands, which may run in any order."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.durable.flows import FLOWS
from tests.random_programs.__main__ import BACKENDS


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


#: A name that stays the same from run to run, and the command with its arguments.
Item = tuple[str, list[str]]


def sweeps(_seed: int) -> list[Item]:
    """Every position of every sweep of the engine, of its features, of the server and of its client."""
    return [
        (test, _pytest(test, "--sweep-limit", "5000"))
        for test in _tests_in(
            "tests/sweeps/test_engine_swept.py",
            "tests/sweeps/test_features_swept.py",
            "tests/client/test_client_swept.py",
            "tests/serve/test_serve_swept.py",
            "tests/test_agent.py::test_killed_anywhere_one_ticket_is_bought",
        )
    ]


def schedules(seed: int) -> list[Item]:
    """A thousand schedules of each workflow, with and without a cancellation."""
    first = seed * 1000
    return [
        (f"{test} {first}-{first + 999}", _pytest(test, "--sweep-seed", f"{first}-{first + 999}"))
        for test in _tests_in("tests/sweeps/test_schedules.py")
    ]


def programs(seed: int) -> list[Item]:
    """Two thousand random programs for each backend."""
    return _by_seeds("tests.random_programs", seed, count=2000, at_once=50)


def signals(seed: int) -> list[Item]:
    """Three hundred real signals for each backend."""
    return _by_seeds("tests.random_programs.signals", seed, count=300, at_once=25)


def rebuilt(seed: int) -> list[Item]:
    """Two thousand random programs for each backend, rebuilt from their journal after every turn."""
    return _by_seeds("tests.durable.rebuilt", seed, count=2000, at_once=50, backends=VIRTUAL)


def crash_points(_seed: int) -> list[Item]:
    """Each durable flow cut before and after every record, half of the time in its second life too."""
    command = [sys.executable, "-W", "error", "-m", "tests.durable.flow_lives"]
    return [
        (f"{name} {backend}", [*command, "--flow", name, "--backend", backend])
        for name in FLOWS
        for backend in VIRTUAL
    ]


def durable_sweeps(_seed: int) -> list[Item]:
    """Each durable flow over its store, with a crash and with a cancellation at every moment."""
    return [
        (test, _pytest(test, "--sweep-limit", "5000"))
        for test in _tests_in("tests/durable/test_crash_sweeps.py")
    ]


def kills(seed: int) -> list[Item]:
    """Real ``kill -9``: each flow at every append and at moments of a sweep, a thousand runs at random."""
    command = [sys.executable, "-W", "error", "-m", "tests.durable.killing"]
    items = [
        (f"{name} {backend}", [*command, "--flow", name, "--backend", backend])
        for name in FLOWS
        for backend in VIRTUAL
    ]
    moments = [sys.executable, "-W", "error", "-m", "tests.durable.moments", "--count", "40"]
    items += [
        (
            f"{name} {backend} moments",
            [*moments, "--flow", name, "--backend", backend, "--seed", f"{seed}"],
        )
        for name in FLOWS
        for backend in VIRTUAL
    ]
    for number in range(20):
        options = ["--random", "50", "--seed", f"{seed * 20 + number}"]
        options += ["--backend", VIRTUAL[number % 2], "--processes", f"{1 + number % 3}"]
        items.append((f"random {number}", [*command, *options]))
    return items


def crashed_programs(seed: int) -> list[Item]:
    """Four hundred random programs for each backend, each cut at random records in several lives."""
    return _by_seeds("tests.durable.program_lives", seed, count=400, at_once=20, backends=VIRTUAL)


def serve(seed: int) -> list[Item]:
    """The server, called by schemathesis and by the newest client of the peer, and its runs as AG-UI."""
    items = [
        (
            f"schemathesis {backend} {number}",
            [
                *(sys.executable, "-W", "error", "-m", "tests.serve.fuzzing"),
                *("--seed", str(number), "--examples", "50", "--backend", backend),
            ],
        )
        for backend in VIRTUAL
        for number in range(seed * 3, (seed + 1) * 3)
    ]
    programs = _by_seeds(
        "tests.serve.ag_ui_programs", seed, count=400, at_once=50, backends=VIRTUAL
    )
    return [*items, ("peer client", _pytest("tests/serve/test_peer_client.py")), *programs]


def restarts(seed: int) -> list[Item]:
    """A server with a store, killed twenty times while the clients of two hundred runs read."""
    command = [sys.executable, "-W", "error", "-m", "tests.serve.killing_server"]
    return [
        (f"{backend} {number}", [*command, "--backend", backend, "--seed", f"{seed * 3 + number}"])
        for backend in VIRTUAL
        for number in range(3)
    ]


#: The backends with virtual time.
VIRTUAL = ("trio", "asyncio")

#: By name: what makes the commands of a suite for a seed.
SUITES: dict[str, Callable[[int], list[Item]]] = {
    "sweeps": sweeps,
    "schedules": schedules,
    "programs": programs,
    "signals": signals,
    "rebuilt": rebuilt,
    "crash_points": crash_points,
    "durable_sweeps": durable_sweeps,
    "kills": kills,
    "crashed_programs": crashed_programs,
    "serve": serve,
    "restarts": restarts,
}


def _by_seeds(
    module: str, seed: int, *, count: int, at_once: int, backends: Sequence[str] = BACKENDS
) -> list[Item]:
    """Return the commands that run ``count`` seeds of a module on each backend."""
    items = []
    for backend in backends:
        for first in range(seed * count, (seed + 1) * count, at_once):
            seeds = f"{first}-{first + at_once - 1}"
            command = [sys.executable, "-W", "error", "-m", module, "--backend", backend]
            items.append((f"{backend} {seeds}", [*command, "--seeds", seeds]))
    return items


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def _tests_in(*files: str) -> list[str]:
    listing = subprocess.run(
        _pytest("--collect-only", *files), capture_output=True, text=True, check=True
    ).stdout
    return [line for line in listing.splitlines() if "::" in line]
