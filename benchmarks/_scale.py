"""``python -m benchmarks --scale``: what events and runs cost, many idle runs, more processes."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence

from benchmarks._goals import number
from benchmarks._harness import ROOT, Bench, cpus
from benchmarks._measure import Numbers
from benchmarks._model import BY_HAND, Work
from benchmarks._results import median
from benchmarks._works import BY_ID


COSTS = (  # the work, its size, and what one of it is
    ("chain", 10_000, "us", "an event handed on", "µs"),
    ("fan_out_64", 10_000, "us", "an item of a fan-out", "µs"),
    ("stream", 10_000, "us", "an event streamed", "µs"),
    ("short_run", 500, "us", "a run of three steps", "µs"),
    ("short_run_timeout", 500, "us", "the same with a timeout", "µs"),
    ("concurrent_runs", 10_000, "us", "the same, 10,000 at once", "µs"),
    ("concurrent_runs", 10_000, "kib", "memory of each of these", "KiB"),
    ("idle_between", 10_000, "kib", "an idle run, between steps", "KiB"),
    ("idle_inside", 10_000, "kib", "an idle run, inside a step", "KiB"),
    ("idle_between", 10_000, "us", "waking an idle run", "µs"),
)
PARTS = ("costs", "idle", "processes")
IDLE = (1_000, 10_000, 50_000, 100_000, 200_000)
CHAIN = {"n": 10_000, "rounds": 20}

# A chain that has imported everything before it tells that it is ready, and waits for a line.
WAITING = """
import sys
import trio, benchmarks._flows
import benchmarks.works.chain as chain
print(flush=True)
input()
chain.serve(vars(chain), sys.argv[1:])
"""


def measured(
    bench: Bench,
    parts: Sequence[str],
    *,
    runs: int,
    repeats: int,
    tell: Callable[[str], None],
) -> str:
    """The tables of the page on scale, as Markdown; *parts* are some of `PARTS`."""
    bench.compile_all()
    tables = {
        "costs": lambda: costs(bench, repeats, tell),
        "idle": lambda: idle(bench, runs, tell),
        "processes": lambda: processes(bench, repeats, tell),
    }
    return "\n".join(tables[part]() for part in parts)


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def costs(bench: Bench, repeats: int, tell: Callable[[str], None]) -> str:
    """What one of each costs, as a ratio to the program written by hand first."""
    systems = ("sluicegate-trio", "trio", "sluicegate-asyncio", "anyio")
    pairs = dict.fromkeys((work, size) for work, size, *_ in COSTS)
    found: dict[tuple[str, int], dict[str, list[Numbers]]] = {
        pair: {name: [] for name in systems} for pair in pairs
    }
    for repeat in range(repeats):
        for work, size in pairs:
            for system in systems if repeat % 2 == 0 else systems[::-1]:
                found[work, size][system].append(_number(bench, BY_ID[work], size, system))
            tell(f"costs {repeat + 1}/{repeats}  {work}")
    lines = []
    for work, size, key, title, unit in COSTS:
        cells = found[work, size]
        line = [title]
        for library, by_hand in BY_HAND.items():
            mine, theirs = (
                [each[key] for each in cells[name]] for name in (f"sluicegate-{library}", by_hand)
            )
            ratio = median(a / b for a, b in zip(mine, theirs, strict=True) if b)
            line += [number(ratio), f"{number(median(mine))} {unit}"]
        lines.append(line)
    return markdown(
        ("one", "ratio to bare Trio", "on Trio", "ratio to bare AnyIO", "on asyncio"), lines
    )


def _number(
    bench: Bench, work: Work, size: int, system: str, *, or_reason: bool = False
) -> Numbers:
    """The numbers of one child, or why it was given up where that will do."""
    answer = bench.measure(bench.interpreters[0], work, size, system)
    if "error" in answer or ("reason" in answer and not or_reason):
        msg = f"{work.title} by {system}: {answer}"
        raise RuntimeError(msg)
    return answer


def idle(bench: Bench, most: int, tell: Callable[[str], None]) -> str:
    """More and more idle runs, and what a million would take at the last rate."""
    lines = []
    for work in (BY_ID["idle_between"], BY_ID["idle_inside"]):
        for system in ("sluicegate-trio", "sluicegate-asyncio"):
            before: tuple[int, float] | None = None
            for size in (size for size in IDLE if size <= most):
                answer = _number(bench, work, size, system, or_reason=True)
                tell(f"idle {work.fixed} {system} {size:,} {answer.get('kib')}")
                where = "inside a step" if work.fixed["inside"] else "between steps"
                line = [where, system.partition("-")[2], f"{size:,}"]
                if "reason" in answer:
                    lines.append([*line, answer["reason"], "", "", "", ""])
                    break
                total = answer["kib"] * size
                rate = (
                    answer["kib"] if before is None else ((total - before[1]) / (size - before[0]))
                )
                before = size, total
                lines.append(
                    [
                        *line,
                        number(answer["kib"]),
                        f"{number(total / 1024)} MiB",
                        f"{number(rate * 1e6 / 1024**2)} GiB",
                        f"{number(answer['start_us'])} µs",
                        f"{number(answer['us'])} µs",
                    ]
                )
    return markdown(
        (
            "waits",
            "on",
            "runs",
            "KiB each",
            "together",
            "a million, at the last rate",
            "to start one",
            "to wake one",
        ),
        lines,
    )


def processes(bench: Bench, repeats: int, tell: Callable[[str], None]) -> str:
    """The same chain in one process, in two and so on: in as many as there are CPUs, or 4."""
    counts = range(1, min(4, os.cpu_count() or 1) + 1)
    found: dict[int, list[float]] = {count: [] for count in counts}
    with _on_all_cpus():
        for _ in range(repeats):
            for count in counts:
                found[count].append(_together(bench, count))
                tell(f"{count} processes")
    lines = [
        [
            str(count),
            number(median(a / b for a, b in zip(found[count], found[1], strict=True))),
            f"{number(median(found[count]))} events/s",
        ]
        for count in counts
    ]
    return markdown(("processes", "ratio to one", "together"), lines)


@contextlib.contextmanager
def _on_all_cpus() -> Iterator[None]:
    """Let children have every CPU, and not only the one that this process is bound to."""
    before = cpus()
    if not before:
        yield
        return
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _together(bench: Bench, count: int) -> float:
    """The events per second of *count* processes that do chains at the same time, added up."""
    pairs = [f"{key}={value}" for key, value in CHAIN.items()]
    children: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            child = subprocess.Popen(
                [bench.interpreters[0].path, "-c", WAITING, "sluicegate-trio", *pairs],
                env=bench.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                text=True,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            children.append(child)
        for child in children:
            assert child.stdout
            child.stdout.readline()
        for child in children:
            print(file=child.stdin, flush=True)
        told = [child.communicate(timeout=bench.limit)[0] for child in children]
    for child in children:
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, child.args)
    return sum(1e6 / json.loads(each)["us"] for each in told)
