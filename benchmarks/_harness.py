"""Child processes, and the order in which they take turns."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks._measure import Numbers
from benchmarks._model import Work
from benchmarks._results import Cell, Key, Results
from benchmarks.peers import PEERS


ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60.0  # seconds for one child
PEER_LIMIT = 15.0  # for one of a peer
QUICK_LIMIT = 10.0  # the same in a quick run
LEAST_REPEATS = 3  # of sizes at which nothing is judged, and of peers
SLOW = 2.0  # seconds after which a peer is measured once
MOST_KIB = 4 * 1024 * 1024  # resident memory of one child
POINTS = 160  # of a curve of memory over time

# What can be learnt of an interpreter before anything is measured.
ASK = """
import importlib.metadata as metadata, importlib.util as util, json, platform, sys
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print(json.dumps({
    "python": platform.python_version(),
    "packages": {name: version(name) for name in json.loads(sys.argv[1])},
    "modules": [name for name in json.loads(sys.argv[2]) if util.find_spec(name)],
}))
"""
PACKAGES = ("sluicegate", "trio", "anyio", "attrs", "msgspec")


def cpus() -> set[int]:
    """Return the CPUs of which `pin` can choose; none where it cannot."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def pin(cpu: int | None) -> int | None:
    """Bind this process and with it its children to one CPU; None where that cannot be done."""
    if not cpus():
        return None
    chosen = max(cpus()) if cpu is None else cpu
    os.sched_setaffinity(0, {chosen})
    return chosen


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python with what is installed in it."""

    path: str
    version: str
    packages: dict[str, str | None]
    peers: dict[str, str | None]  # the version of each peer that is installed

    @classmethod
    def ask(cls, path: str) -> "Interpreter":
        """Ask the Python at *path*; raises `OSError` or `CalledProcessError` if it is none."""
        distributions = [peer.distribution for peer in PEERS.values()]
        modules = [peer.module for peer in PEERS.values()]
        asked = [json.dumps([*PACKAGES, *distributions]), json.dumps(modules)]
        child = subprocess.run(
            [path, "-c", ASK, *asked], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found = json.loads(child.stdout)
        packages = found["packages"]
        return cls(
            path=path,
            version=found["python"],
            packages={name: packages[name] for name in PACKAGES},
            peers={
                name: packages[peer.distribution]
                for name, peer in PEERS.items()
                if peer.module in found["modules"]
            },
        )


def can(peer: str, work: Work) -> bool:
    """Whether a peer has a program for a work."""
    program = Path(__file__).parent / "peers" / f"{peer}.py"
    return f"\ndef {work.name}(" in program.read_text(encoding="utf-8")


class Bench:
    """
    Runs children of some interpreters; the peers run in *home_of_peers*.

    What was compiled for them is there until the block is left.
    """

    def __init__(
        self,
        interpreters: Sequence[Interpreter],
        home_of_peers: Interpreter,
        *,
        limit: float | None = None,
    ) -> None:
        self.interpreters = interpreters
        self.home_of_peers = home_of_peers
        self.limit = limit or LIMIT
        self._peer_limit = limit
        # Where nothing may be written beside the sources, what is being worked on would otherwise
        # be compiled at each import, and what was installed would not.
        self._bytecode = tempfile.TemporaryDirectory(prefix="sluicegate-benchmarks-")
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.environment = {**kept, "PYTHONPYCACHEPREFIX": self._bytecode.name}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytecode.cleanup()

    def compile_all(self) -> None:
        """Import everything once, so that no measured process has to compile."""
        for interpreter in self.interpreters:
            self._import(interpreter, "benchmarks.works", "sluicegate", "anyio", "trio")
        for name, peer in PEERS.items():
            if name in self.home_of_peers.peers:
                self._import(self.home_of_peers, peer.module, f"benchmarks.peers.{name}")

    def _import(self, interpreter: Interpreter, *modules: str) -> None:
        subprocess.run(
            [interpreter.path, "-c", "import " + ", ".join(modules)],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            check=False,
        )

    def command(self, interpreter: Interpreter, work: Work, size: int, system: str) -> list[str]:
        """The command line of one child."""
        pairs = [
            f"{key}={value}" for key, value in work.parameters(size, peer=system in PEERS).items()
        ]
        if system in PEERS:
            module = [f"benchmarks.peers.{system}", work.name]
            return [self.home_of_peers.path, "-m", *module, *pairs]
        return [interpreter.path, "-m", f"benchmarks.works.{work.name}", system, *pairs]

    def measure(
        self,
        interpreter: Interpreter,
        work: Work,
        size: int,
        system: str,
        limit: float | None = None,
    ) -> Numbers:
        """Run one child; its numbers, or the ``reason`` or ``error`` why there are none."""
        with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as said:
            child = subprocess.Popen(
                self.command(interpreter, work, size, system),
                cwd=ROOT,
                env=self.environment,
                stdout=told,
                stderr=said,
            )
            try:
                reason, samples = _wait(child, limit or self.limit, watched=work.watched)
            finally:
                child.kill()
                child.wait()
            told.seek(0)
            said.seek(0)
            if reason is not None:
                return {"reason": reason}
            lines = told.read().splitlines()
            if child.returncode or not lines:
                return {"error": _last_error(said.read(), child.returncode)}
            numbers: Numbers = json.loads(lines[-1])
        if "cannot" in numbers:
            return {"reason": "-", **numbers}
        if samples:
            numbers["memory"] = _since(samples, numbers)
        return numbers

    def run(
        self,
        works: Sequence[Work],
        results: Results,
        *,
        repeats: int,
        tell: Callable[[str], None],
        keep: Callable[[], None],
    ) -> None:
        """
        Measure all *works*, *repeats* times; *keep* is called after each.

        In each repeat, all that do the same work follow directly on each other, forward and
        backward by turns. Who failed is not run again.
        """
        self.compile_all()
        for repeat in range(repeats):
            for interpreter in self.interpreters:
                for work in works:
                    start = time.monotonic()
                    self._sizes(interpreter, work, results, repeat)
                    took = time.monotonic() - start
                    of = f"{repeat + 1}/{repeats}  {interpreter.version}"
                    tell(f"{of}  {work.title}  {took:.1f} s")
            keep()

    def counts(self) -> str:
        """
        The table of what does not depend on the machine.

        Raises `CalledProcessError`, or `TimeoutExpired` after five minutes.
        """
        return subprocess.run(
            [self.interpreters[0].path, "-m", "benchmarks._counts"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=300,
        ).stdout

    def _sizes(self, interpreter: Interpreter, work: Work, results: Results, repeat: int) -> None:
        quick = results.quick
        if repeat >= (work.repeats or sys.maxsize):
            return
        main = interpreter is self.interpreters[0]
        for size in work.quick if quick else work.sizes:
            judged = quick or size in work.judged
            if judged or (main and repeat < LEAST_REPEATS):
                self._take_turns(interpreter, work, size, results, repeat)

    def _take_turns(
        self, interpreter: Interpreter, work: Work, size: int, results: Results, repeat: int
    ) -> None:
        peers = [name for name in self.home_of_peers.peers if work.peers and can(name, work)]
        if interpreter is not self.interpreters[0] or repeat >= (
            1 if results.quick else LEAST_REPEATS
        ):
            peers = []
        order = [*work.systems, *peers]
        answers: dict[str, list[Numbers]] = {}
        for turn in range(work.turns):
            for system in order if (repeat + turn) % 2 == 0 else order[::-1]:
                key = Key(interpreter.version, work.id, size, system)
                cell = results.cells.setdefault(key, Cell())
                if cell.error or cell.reason or _not_again(results, key, cell):
                    continue
                start = time.perf_counter()
                limit = None
                if system in PEERS:
                    limit = self._peer_limit or (QUICK_LIMIT if results.quick else PEER_LIMIT)
                answer = self.measure(interpreter, work, size, system, limit)
                cell.slowest = max(cell.slowest, time.perf_counter() - start)
                cell.error, cell.reason = answer.get("error"), answer.get("reason")
                if cell.reason and system not in PEERS:  # these can do everything, and in time
                    cell.error, cell.reason = cell.reason, None
                if not (cell.error or cell.reason):
                    answers.setdefault(system, []).append(answer)
        for system, turns in answers.items():
            key = Key(interpreter.version, work.id, size, system)
            results.cells[key].repeats[repeat] = _merged(turns, work)


def _wait(
    child: subprocess.Popen[bytes], limit: float, *, watched: bool
) -> tuple[str | None, list[tuple[float, float]]]:
    """Wait for a child: why it was given up, and its resident memory over time if it is watched."""
    samples: list[tuple[float, float]] = []
    too_long = f"over {limit:.0f} s"
    if not watched:
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            return too_long, samples
        return None, samples
    end = time.perf_counter() + limit
    while child.poll() is None:
        if time.perf_counter() > end:
            return too_long, samples
        if (kib := resident_kib(child.pid)) is not None:
            samples.append((time.perf_counter(), kib))
            if kib > MOST_KIB:
                return f"over {MOST_KIB >> 20} GiB", samples
        time.sleep(0.01)
    return None, samples


def _not_again(results: Results, key: Key, cell: Cell) -> bool:
    """Whether a peer is known to take too long: here, or already at a smaller size."""
    if key.system not in PEERS:
        return False
    for other, smaller in results.cells.items():
        if other._replace(size=key.size) == key and other.size < key.size and smaller.reason:
            cell.reason = smaller.reason
            return True
    return cell.slowest > SLOW


def _merged(turns: Sequence[Numbers], work: Work) -> Numbers:
    """What is told of each number over the turns of one repeat; of each place in a list the median."""
    if len(turns) == 1:
        return turns[0]

    def merged(name: str, values: Sequence[Any]) -> Any:
        if isinstance(values[0], list):
            return [statistics.median(places) for places in zip(*values, strict=True)]
        return work.of_all(name)(values)

    return {name: merged(name, [turn[name] for turn in turns]) for name in turns[0]}


def _last_error(said: str, status: int) -> str:
    # The last line that names an exception; those of a group are drawn in a box of | and +.
    lines = [line.strip(" |+-") for line in said.splitlines() if "Error: " in line]
    return lines[-1] if lines else f"exit status {status}: {said[-200:].strip()}"


def resident_kib(pid: int) -> float | None:
    """The resident memory of another process, where /proc tells."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * (os.sysconf("SC_PAGE_SIZE") / 1024)


def _since(samples: Sequence[tuple[float, float]], numbers: Numbers) -> list[list[float]]:
    """Seconds and KiB over the start, from where the program says that it began."""
    began, base = numbers.get("began"), numbers.get("base_kib")
    if began is None or base is None or math.isnan(base):
        return []
    curve = [[round(t - began, 4), kib - base] for t, kib in samples if t >= began]
    step = max(1, len(curve) // POINTS)
    return curve[::step]
