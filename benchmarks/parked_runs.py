"""``python -m benchmarks.parked_runs [COUNT]``: what a durable run costs while it waits for a person.

A worker takes COUNT runs (100,000 by default), each of which asks a question and is released at once.
The table has the bytes that one of them keeps in the file and in memory, and how long it takes
from an answer to the step that it wakes and to the end of the run.
"""

import argparse
import os
import random
import tempfile
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import anyio

from sluicegate import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent, Workflow, step
from sluicegate.durable import open_run_store


class Question(InputRequiredEvent):
    amount: int


class Answer(HumanResponseEvent):
    approved: bool


class Approve(Workflow[str]):
    """Asks, and ends with the answer."""

    @step
    async def ask(self, ev: StartEvent) -> Question:
        return Question(amount=ev.amount)

    @step
    async def decide(self, ev: Answer) -> StopEvent:
        woken.append(perf_counter())
        return StopEvent(result="paid" if ev.approved else "refused")


#: When the steps that answers woke began.
woken: list[float] = []


def resident() -> int:
    """Return the bytes of this process that are in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(count: int, wakes: int, folder: str) -> None:
    """Park ``count`` runs, wake some of them one by one, and print the table."""
    path = Path(folder) / "runs.db"
    async with (
        open_run_store(f"sqlite:///{path}", release_idle=0, durability="process") as runs,
        runs.worker(Approve(), max_runs=200),
    ):
        first = min(count, 100)  # the first runs of a process cost more
        for number in range(first):
            await runs.submit(Approve().run(amount=number), run_id=f"warm-{number}")
        await _all_parked(runs, first)
        before, begun = resident(), perf_counter()
        async with anyio.create_task_group() as group:
            for part in range(50):
                group.start_soon(_submit, runs, range(part, count, 50))
        await _all_parked(runs, count + first)
        spent = perf_counter() - begun
        kept = resident() - before
        size = sum(each.stat().st_size for each in Path(folder).iterdir())
        until_step, until_end = [], []
        for number in random.Random(0).sample(range(count), wakes):
            async with await runs.attach(f"run-{number}") as handler:
                woken.clear()
                start = perf_counter()
                await runs.send_event(f"run-{number}", Answer(approved=True))
                await handler
                until_end.append(perf_counter() - start)
                until_step.append(woken[0] - start)
    print(f"{count:,} runs parked in {spent:.1f} s ({count / spent:,.0f} a second)")
    print(f"  bytes in the file, each     {size / count:8,.0f}")
    print(f"  bytes in memory, each       {kept / count:8,.0f}")
    for what, times in (("its step begins", until_step), ("its run has ended", until_end)):
        p99 = quantiles(times, n=100, method="inclusive")[98]
        print(
            f"  from an answer until {what:18} {median(times) * 1e3:6.1f} ms, p99 {p99 * 1e3:.1f}"
        )


async def _submit(runs, numbers: range) -> None:
    for number in numbers:
        await runs.submit(Approve().run(amount=number), run_id=f"run-{number}")


async def _all_parked(runs, count: int) -> None:
    while (await runs.counts()).get("parked", 0) < count:
        await anyio.sleep(0.05)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("count", nargs="?", type=int, default=100_000)
    parser.add_argument("--wakes", type=int, default=200)
    parser.add_argument("--backend", default="trio", choices=["trio", "asyncio"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(measure, options.count, options.wakes, folder, backend=options.backend)


if __name__ == "__main__":
    main()
