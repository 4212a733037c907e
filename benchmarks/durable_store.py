"""What a store of runs costs: appends a second, as ratios to a raw insert loop of the same minute.

    python -m benchmarks.durable_store [--rounds 7] [--seconds 0.5] [--directory .]

A disk may be several times as fast now as it was a minute ago. So each round measures a raw loop of
committed inserts before and after the store, and what is printed are medians of the ratios. An
appender appends a record, waits until it is durable, and appends the next; that is what a run of one
step after the other does.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import trio

from sluicegate._loop import current_backend
from sluicegate.durable import Batch, Lease, MemoryStore, NewRun, StoredRecord, open_sqlite_journal


#: A record of the usual size: the end of a step with a short text.
DATA = b'{"t":"done","k":7,"r":{"Drafted":{"text":"' + b"x" * 60 + b'"}},"m":[[8,"polish"]]}'
APPENDERS = (1, 100)


def raw(path: Path, seconds: float, *, syncs: bool) -> float:
    """Return the inserts a second of a loop that commits each."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if syncs else 'NORMAL'}")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS records (run INTEGER, sequence INTEGER, at REAL, kind TEXT, "
            "data TEXT, PRIMARY KEY (run, sequence)) WITHOUT ROWID"
        )
        (count,) = connection.execute("SELECT count(*) FROM records").fetchone()
        first, begun = count, time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO records VALUES (1, ?, ?, 'done', ?)", (count, passed, DATA.decode())
            )
            connection.execute("COMMIT")
            count += 1
    return (count - first) / passed


async def append(journal, name: str, deadline: float, counts: list[int]) -> None:
    """Append records one after the other, each when the one before is durable."""
    lease = await journal.create(NewRun(name, "Flow", "start", 1.0, DATA), lambda error: None)
    assert isinstance(lease, Lease)
    waiter = current_backend().waiter()
    sequence = 1
    settled: list[object] = []

    def settle(error: object) -> None:
        settled.append(error)
        waiter.wake()

    while time.perf_counter() < deadline:
        sequence += 1
        settled.clear()
        journal.append_nowait(
            Batch(name, lease.fence, [StoredRecord(sequence, 1.0, "done", DATA)]), settle
        )
        while not settled:
            await waiter.wait()
        assert settled == [None]
    counts.append(sequence - 1)


async def appends(store, appenders: int, seconds: float, name: str) -> float:
    """Return the appends a second of a number of concurrent appenders."""
    async with store as journal:
        counts: list[int] = []
        begun = time.perf_counter()
        async with current_backend().open_nursery() as nursery:
            for n in range(appenders):
                nursery.start_soon(append, journal, f"{name}-{n}", begun + seconds, counts)
        passed = time.perf_counter() - begun
    return sum(counts) / passed


def run(library: str, *arguments) -> float:
    """Return the result of `appends` in a new event loop."""
    if library == "trio":
        return trio.run(appends, *arguments)
    return asyncio.run(appends(*arguments))


def compare(directory: Path, rounds: int, seconds: float, *, durability: str) -> None:
    """Print the ratios of a durability, by library and number of appenders."""
    is_synced = durability == "fsync"
    rates: dict[tuple[str, int], list[float]] = {}
    ratios: dict[tuple[str, int], list[float]] = {}
    around: list[float] = []
    for n in range(rounds):
        for library in ("trio", "asyncio"):
            for appenders in APPENDERS:
                before = raw(directory / f"raw-{durability}.db", seconds / 2, syncs=is_synced)
                store = open_sqlite_journal(directory / "runs.db", durability=durability)
                name = f"{durability}-{library}-{appenders}-{n}"
                rate = run(library, store, appenders, seconds, name)
                after = raw(directory / f"raw-{durability}.db", seconds / 2, syncs=is_synced)
                around += [before, after]
                rates.setdefault((library, appenders), []).append(rate)
                ratios.setdefault((library, appenders), []).append(rate * 2 / (before + after))
    print(f"durability={durability!r}: raw inserts {median(around):,.0f} a second")
    print(f"    ({min(around):,.0f} to {max(around):,.0f})")
    for key, values in ratios.items():
        library, appenders = key
        print(
            f"    {library:8} {appenders:4} appenders: {median(rates[key]):9,.0f} a second, "
            f"{median(values):6.2f} times raw ({min(values):.2f} to {max(values):.2f})"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for durability in ("fsync", "process"):
            compare(Path(directory), options.rounds, options.seconds, durability=durability)
        size = (Path(directory) / "runs.db").stat().st_size
        with closing(sqlite3.connect(Path(directory) / "runs.db")) as connection:
            (count,) = connection.execute("SELECT count(*) FROM records").fetchone()
        print(f"{size / count:.0f} bytes in the file for a record of {len(DATA)} bytes")
    for library in ("trio", "asyncio"):
        for appenders in APPENDERS:
            rate = run(library, MemoryStore().open(), appenders, options.seconds, "r")
            print(f"in memory: {library:8} {appenders:4} appenders: {rate:9,.0f} a second")


if __name__ == "__main__":
    main()
