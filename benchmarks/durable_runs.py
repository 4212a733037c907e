"""``python -m benchmarks.durable_runs``: what durable runs cost on SQLite.

Disks differ by a factor of ten between moments, so each round times a loop of single inserts, each with
its own commit, before and after what it is compared with; the ratio is taken within the round, and
the table has the median of the ratios. Each round runs in a process of its own.
"""
# ruff: noqa: PLC0415 - a measured process imports only what it measures

import argparse
import importlib.util
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step


HOPS = 300
RUNS = 100
RUN_HOPS = 30
RAW_SECONDS = 0.4


class Ping(Event):
    left: int
    text: str


class Later(Event):
    number: int


class Never(Event):
    pass


class Bench(Workflow[int]):
    """A chain of hops with a text of 60 letters; as many events as it is told wait at a busy step."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ping | Later:
        for number in range(ev.get("pending", 0)):
            ctx.send_event(Later(number=number))
        return Ping(left=ev.hops, text="x" * 60)

    @step
    async def hop(self, ev: Ping) -> Ping | StopEvent:
        if ev.left <= 1:
            return StopEvent(result=0)
        return Ping(left=ev.left - 1, text=ev.text)

    @step(num_workers=1, release_while_waiting=False)
    async def later(self, ctx: Context, ev: Later) -> None:
        await ctx.wait_for_event(Never)


def raw(path: Path, synchronous: str) -> float:
    """Return how many inserts, each with its own commit, a connection makes in a second."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("CREATE TABLE IF NOT EXISTS raw (n INTEGER PRIMARY KEY, data BLOB)")
    data, count = b"x" * 150, 0
    start = perf_counter()
    while perf_counter() - start < RAW_SECONDS:
        connection.execute("INSERT INTO raw (data) VALUES (?)", (data,))
        count += 1
    rate = count / (perf_counter() - start)
    connection.close()
    return rate


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    start = perf_counter()
    await work()
    return perf_counter() - start


async def one_run(runs: Any, hops: int, **fields: Any) -> None:
    handler = runs.run(Bench().run(hops=hops, **fields))
    async with handler:
        await handler


async def many_runs(runs: Any, count: int, hops: int) -> None:
    import anyio

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one_run, runs, hops)


async def of_sluicegate(folder: Path, durability: str) -> dict[str, float]:
    """Return one round: inserts and steps a second, one run and many at once; microseconds a plain hop."""
    from sluicegate.durable import open_run_store

    synchronous = "FULL" if durability == "fsync" else "NORMAL"
    found: dict[str, float] = {}
    async with open_run_store(f"sqlite:///{folder / 'runs.db'}", durability=durability) as runs:
        await one_run(runs, 30)
        before = raw(folder / "raw.db", synchronous)
        found["one"] = HOPS / await timed(partial(one_run, runs, HOPS))
        between = raw(folder / "raw.db", synchronous)
        found["many"] = RUNS * RUN_HOPS / await timed(partial(many_runs, runs, RUNS, RUN_HOPS))
        after = raw(folder / "raw.db", synchronous)
        found["raw of one"], found["raw of many"] = (before + between) / 2, (between + after) / 2
        for pending in (0, 1_000, 10_000):
            # The time of the hops alone: that of a run without them is taken off.
            none = await timed(partial(one_run, runs, 1, pending=pending))
            some = await timed(partial(one_run, runs, 200, pending=pending))
            found[f"us a hop, {pending:,} pending"] = (some - none) / 200 * 1e6

    async def plain() -> None:
        await Bench().run(hops=2_000)

    await plain()
    found["us a plain hop"] = await timed(plain) / 2_000 * 1e6
    found["us a step replayed"] = replayed(folder / "runs.db")
    return found


def replayed(path: Path) -> float:
    """Return the microseconds in which a step of the run of `HOPS` steps is replayed."""
    from sluicegate._engine.journal_records import decode_record
    from sluicegate._engine.replay import PastRun
    from sluicegate._workflow import graph_in

    connection = sqlite3.connect(path)
    (run,) = connection.execute(
        "SELECT run FROM records GROUP BY run HAVING count(*) BETWEEN ? AND ? LIMIT 1",
        (HOPS, HOPS + 50),
    ).fetchone()
    rows = connection.execute("SELECT data FROM records WHERE run = ? ORDER BY sequence", (run,))
    records = [data.encode() if isinstance(data, str) else data for (data,) in rows]
    connection.close()
    base = decode_record(records[0])
    past = PastRun(graph_in(Bench()), (), base.snapshot, base.at)  # type: ignore[union-attr]
    start = perf_counter()
    for record in records[1:]:
        past.apply(decode_record(record))
    return (perf_counter() - start) / sum(b'"t":"done"' in each for each in records) * 1e6


def of_langgraph(folder: Path) -> dict[str, float]:
    """Return one round of LangGraph with ``SqliteSaver`` and ``durability="sync"``."""
    from typing import TypedDict

    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        left: int
        text: str

    graph = StateGraph(State)
    graph.add_node("hop", lambda state: {"left": state["left"] - 1, "text": state["text"]})
    graph.add_edge(START, "hop")
    graph.add_conditional_edges("hop", lambda state: "hop" if state["left"] else END)
    connection = sqlite3.connect(folder / "langgraph.db", check_same_thread=False)
    saver = SqliteSaver(connection)
    saver.setup()
    connection.execute("PRAGMA synchronous=FULL")
    compiled = graph.compile(checkpointer=saver)

    def run(name: str, hops: int) -> float:
        start = perf_counter()
        config = {"configurable": {"thread_id": name}, "recursion_limit": hops + 5}
        compiled.invoke({"left": hops, "text": "x" * 60}, config, durability="sync")
        return perf_counter() - start

    run("warm", 20)
    before = raw(folder / "raw.db", "FULL")
    rate = HOPS / run("timed", HOPS)
    return {"one": rate, "raw of one": (before + raw(folder / "raw.db", "FULL")) / 2}


def of_dbos(folder: Path) -> dict[str, float]:
    """Return one round of DBOS on SQLite."""
    from dbos import DBOS

    url = f"sqlite:///{folder / 'dbos.db'}"
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )

    @DBOS.step(name="hop")
    def hop(text: str) -> str:
        return text

    @DBOS.workflow(name="chain")
    def chain(hops: int) -> int:
        for _ in range(hops):
            hop("x" * 60)
        return hops

    DBOS.launch()
    chain(20)
    before = raw(folder / "raw.db", "FULL")
    start = perf_counter()
    chain(HOPS)
    rate = HOPS / (perf_counter() - start)
    DBOS.destroy()
    return {"one": rate, "raw of one": (before + raw(folder / "raw.db", "FULL")) / 2}


def measure(what: str, folder: Path) -> dict[str, float]:
    """Measure one round in this process."""
    if what == "langgraph":
        return of_langgraph(folder)
    if what == "dbos":
        return of_dbos(folder)
    backend, durability = what.split("/")
    if backend == "trio":
        import trio

        return trio.run(of_sluicegate, folder, durability)
    import asyncio

    return asyncio.run(of_sluicegate(folder, durability))


def in_process(what: str, parent: str | None) -> dict[str, float]:
    """Measure one round in a process of its own, in a new folder on the disk that is measured."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        command = [sys.executable, "-m", "benchmarks.durable_runs", "--measure", what, folder]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
        return found


def show(name: str, rounds: list[dict[str, float]]) -> None:
    """Print the medians of what was measured, and of the ratios to the inserts of the same round."""
    print(f"\n{name}")
    for key in rounds[0]:
        values = [found[key] for found in rounds]
        line = (
            f"  {key:28} {statistics.median(values):10,.0f}   {min(values):,.0f}-{max(values):,.0f}"
        )
        if f"raw of {key}" in rounds[0]:
            ratios = [found[key] / found[f"raw of {key}"] for found in rounds]
            line += (
                f"   of raw {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
        print(line)
    if "many" in rounds[0]:
        gain = statistics.median(found["many"] / found["one"] for found in rounds)
        print(f"  {RUNS} runs at once, times one   {gain:8.1f}")


def main() -> None:
    """Print the tables, or measure one round where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="a folder on the disk to measure")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, folder = options.measure
        print(json.dumps(measure(what, Path(folder))))
        return
    programs = ["trio/fsync", "asyncio/fsync", "trio/process"]
    programs += ["langgraph"] if importlib.util.find_spec("langgraph") else []
    programs += ["dbos"] if importlib.util.find_spec("dbos") else []
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, found in rounds.items():
            found.append(in_process(name, options.folder))
    for name, found in rounds.items():
        show(name, found)


if __name__ == "__main__":
    main()
