"""The SQLite store: its file, its faults, and the event loops, threads and processes that share it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import anyio
import pytest
import trio

from sluicegate._loop import current_backend
from sluicegate.durable import (
    Batch,
    NewRun,
    RunFilter,
    StaleLeaseError,
    StoreBusyError,
    StoreClosedError,
    StoreDamagedError,
    StoredRecord,
    StoreError,
    StoreFormatError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    Summary,
    _sqlite_file,
    open_journal,
    open_sqlite_journal,
)
from sluicegate.durable._client import Task
from sluicegate.durable._sqlite_file import APPLICATION_ID, VERSION, prepare


def a_run(run_id):
    return NewRun(run_id, "Flow", "start", 1.0, b"{}")


def record(n, data=b"{}"):
    return StoredRecord(n, float(n), "in", data)


async def write(journal, *batches):
    """Append batches and return their errors."""
    errors, waiter = [], current_backend().waiter()

    def settle(error):
        errors.append(error)
        waiter.wake()

    for batch in batches:
        journal.append_nowait(batch, settle)
    while len(errors) < len(batches):
        await waiter.wait()
    return errors


def ask(path, statement, *values):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement, values).fetchall()


def writers():
    return [t for t in threading.enumerate() if t.name.startswith("sluicegate store")]


def store_threads():
    return [thread.name for thread in writers()]


def open_files(path):
    """The files of a store that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target.startswith(str(path)):
            found.append(target)
    return found


async def until(condition):
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


# -- opening ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_address_names_a_file(tmp_path, monkeypatch):
    """Three slashes are a relative path, four an absolute one; anything else shows what is expected."""
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///runs.db", f"sqlite:///{tmp_path}/there.db"):
        async with open_journal(url) as journal:
            assert journal.capabilities.survives_power_loss

    assert sorted(p.name for p in tmp_path.glob("*.db")) == ["runs.db", "there.db"]
    for url in ("runs.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql://x/y"):
        with pytest.raises(ValueError, match=r"no store has the address .*; expected 'sqlite:///"):
            open_journal(url)
    with pytest.raises(ValueError, match="expected 'fsync' or 'process'"):
        open_sqlite_journal("x.db", durability="none")
    with pytest.raises(ValueError, match="expected seconds above 0"):
        open_sqlite_journal("x.db", max_stall=0)


async def refusal(path, kind):
    """Return the error that opening a store raises, and check that nothing is left of the try."""
    with pytest.raises(kind) as caught:
        async with open_sqlite_journal(path):
            pass
    assert not store_threads()
    assert not open_files(path)
    return str(caught.value)


@pytest.mark.anyio
async def test_what_is_no_store_is_refused_and_not_changed(tmp_path):
    """A text, another program's database, a directory, a newer store: told apart, and left alone."""
    text = tmp_path / "text.db"
    text.write_text("no database at all\n" * 100)
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE guests (name)")
        connection.commit()
    newer = tmp_path / "newer.db"
    async with open_sqlite_journal(newer):
        pass
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = {path: path.read_bytes() for path in (text, foreign, newer)}

    assert "is no store of runs" in await refusal(text, StoreFormatError)
    assert "another program's SQLite database" in await refusal(foreign, StoreFormatError)
    assert f"the format {VERSION + 1} of a newer release" in await refusal(newer, StoreFormatError)
    assert "cannot be read or written" in await refusal(tmp_path, StoreUnavailableError)
    assert "no directory" in await refusal(tmp_path / "no" / "runs.db", StoreUnavailableError)
    assert {path: path.read_bytes() for path in before} == before


def test_a_store_that_another_process_is_creating_is_none_of_another_program(tmp_path, monkeypatch):
    """It is looked at in one transaction, so that it is empty or a store, and nothing in between."""
    path = tmp_path / "runs.db"
    other = threading.Thread(target=prepare, args=[path])
    value = _sqlite_file._value

    def slow_value(connection, statement):
        found = value(connection, statement)
        if other.ident is None and threading.current_thread() is threading.main_thread():
            other.start()
            other.join(0.3)  # as far as the other one can come
        return found

    monkeypatch.setattr(_sqlite_file, "_value", slow_value)
    prepare(path)
    other.join(30)

    assert not other.is_alive()
    assert ask(path, "PRAGMA user_version") == [(VERSION,)]


@pytest.mark.anyio
async def test_the_file_names_its_program_and_version(tmp_path):
    """The header of the file says what it is, and a second opening changes nothing in it."""
    path = tmp_path / "runs.db"
    for _ in range(2):
        async with open_sqlite_journal(path):
            pass

        assert ask(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
        assert ask(path, "PRAGMA user_version") == [(VERSION,)]
        assert ask(path, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.anyio
@pytest.mark.parametrize(("durability", "synchronous"), [("fsync", 2), ("process", 1)])
async def test_commits_wait_for_the_disk_by_default(tmp_path, durability, synchronous):
    """D1: with `fsync`, the default, the writer's connection is in the mode FULL."""
    async with open_sqlite_journal(tmp_path / "runs.db", durability=durability) as journal:
        execute = journal.writer._connection.execute
        assert execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert journal.capabilities.survives_power_loss == (synchronous == 2)
    async with open_sqlite_journal(tmp_path / "runs.db") as journal:
        assert journal.writer._connection.execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.mark.anyio
async def test_a_stranger_can_read_the_file(tmp_path):
    """The view `journal` and the table `runs` tell anybody with SQLite what happened."""
    path = tmp_path / "runs.db"
    async with open_sqlite_journal(path) as journal:
        await journal.create(a_run("r"), print)
        await write(journal, Batch("r", 1, [StoredRecord(2, 0.0, "done", b'{"k":"\xc3\xbc"}', 1)]))

    assert ask(path, "SELECT * FROM journal WHERE sequence = 2") == [
        ("r", 2, "1970-01-01 00:00:00", "done", 1, '{"k":"ü"}')
    ]
    assert ask(path, "SELECT json_extract(data, '$.k') FROM journal WHERE kind = 'done'") == [
        ("ü",)
    ]
    assert ask(path, "SELECT run_id, workflow, status, sequence, owner FROM runs") == [
        ("r", "Flow", "running", 2, None)
    ]


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_full_disk_fails_the_batch_and_nothing_else(tmp_path):
    """What does not fit is refused with `StoreFullError`; what was there stays, and once there is room it goes on."""
    path = tmp_path / "runs.db"
    async with open_sqlite_journal(path) as journal:
        await journal.create(a_run("r"), print)
        (count,) = journal.writer._connection.execute("PRAGMA page_count").fetchone()
        journal.writer._connection.execute(f"PRAGMA max_page_count = {count + 2}")

        errors = await write(journal, Batch("r", 1, [record(2, b'"%s"' % (b"x" * 100_000))]))

        assert isinstance(errors[0], StoreFullError)
        assert isinstance(errors[0], OSError)
        assert f"the disk is full: the store {str(path)!r}" in str(errors[0])
        assert len(await journal.read("r")) == 1
        with pytest.raises(StoreFullError):
            await journal.create(NewRun("s", "Flow", "start", 1.0, b"x" * 100_000), print)
        journal.writer._connection.execute("PRAGMA max_page_count = 1000000")
        assert await write(journal, Batch("r", 1, [record(2)])) == [None]
        assert await journal.check() == []


@pytest.mark.anyio
async def test_a_locked_file_is_busy(tmp_path):
    """A program that keeps the file locked for too long is named in `StoreBusyError`; then all goes on."""
    path = tmp_path / "runs.db"
    async with open_sqlite_journal(path) as journal:
        await journal.create(a_run("r"), print)
        journal.writer._connection.execute("PRAGMA busy_timeout = 20")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            (error,) = await write(journal, Batch("r", 1, [record(2)]))
            assert len(await journal.read("r")) == 1  # reading does not wait
            other.execute("ROLLBACK")

        assert isinstance(error, StoreBusyError)
        assert isinstance(error, TimeoutError)
        assert await write(journal, Batch("r", 1, [record(2)])) == [None]


@pytest.mark.anyio
async def test_a_file_that_becomes_read_only_is_told(tmp_path):
    """A store that cannot be written any more says so, and is still read."""
    async with open_sqlite_journal(tmp_path / "runs.db") as journal:
        await journal.create(a_run("r"), print)
        journal.writer._connection.execute("PRAGMA query_only = 1")

        (error,) = await write(journal, Batch("r", 1, [record(2)]))

        assert isinstance(error, StoreReadOnlyError)
        assert isinstance(error, PermissionError)
        assert len(await journal.read("r")) == 1
        journal.writer._connection.execute("PRAGMA query_only = 0")


async def fill(path, runs=40):
    async with open_sqlite_journal(path, durability="process") as journal:
        for n in range(runs):
            await journal.create(a_run(f"r{n}"), print)
            batch = Batch(f"r{n}", 1, [record(k, b'"%s"' % (b"x" * 500)) for k in range(2, 20)])
            assert await write(journal, batch) == [None]


@pytest.mark.anyio
async def test_a_torn_file_is_damaged(tmp_path):
    """A page that is missing or overwritten is `StoreDamagedError` where it is read, and found by the check."""
    path = tmp_path / "runs.db"
    await fill(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - len(whole) // 3 - 100])
    with pytest.raises(StoreDamagedError, match=r"is damaged: .*; expected a restored backup"):
        async with open_sqlite_journal(path) as journal:
            for n in range(40):
                await journal.read(f"r{n}")

    page = 4096
    torn = bytearray(whole)
    for start in range(8 * page, len(whole), page):
        torn[start : start + page // 2] = bytes(page // 2)
    path.write_bytes(bytes(torn))
    with pytest.raises(StoreDamagedError):
        async with open_sqlite_journal(path) as journal:
            assert await journal.check()
            raise StoreDamagedError  # the check has found it


@pytest.mark.anyio
async def test_a_torn_log_loses_its_tail_only(tmp_path):
    """D1: of a log whose end is missing, all whole commits are there, and the journal has no gap."""
    path = tmp_path / "runs.db"
    async with open_sqlite_journal(path) as journal:
        await journal.create(a_run("r"), print)
        for n in range(2, 30):
            await write(journal, Batch("r", 1, [record(n)]))
        # As a crash leaves them; by another process, because closing a file drops the locks on it.
        crashed = [tmp_path / "crashed.db", tmp_path / "crashed.db-wal"]
        for end, copy in zip(("", "-wal"), crashed, strict=True):
            subprocess.run(["cp", f"{path}{end}", copy], check=True)
    whole = [file.read_bytes() for file in crashed]
    lengths = []
    for missing in (0, 10, 30_000, 90_000, len(whole[1]) - 20):
        crashed[0].write_bytes(whole[0])
        crashed[1].write_bytes(whole[1][: len(whole[1]) - missing])
        crashed[0].with_name("crashed.db-shm").unlink(missing_ok=True)
        async with open_sqlite_journal(crashed[0]) as journal:
            kept = [] if await journal.get("r") is None else await journal.read("r")
            assert [r.sequence for r in kept] == [*range(1, len(kept) + 1)]
            assert await journal.check() == []
            lengths.append(len(kept))

    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 29
    assert 0 < lengths[3] < lengths[2] < lengths[1] < 29


@pytest.mark.anyio
async def test_a_value_that_cannot_be_kept_harms_no_other(tmp_path):
    """A write that SQLite cannot take fails alone, although it was to be committed with others."""
    async with open_sqlite_journal(tmp_path / "runs.db") as journal:
        await journal.create(a_run("r"), print)
        outcomes = {}

        async def send(key):
            try:
                outcomes[key] = await journal.send("r", "event", key, b"{}")
            except StoreError as error:
                outcomes[key] = str(error)

        async with anyio.create_task_group() as group:
            for key in ("a", "\ud800", "b"):
                group.start_soon(send, key)

        assert (outcomes["a"], outcomes["b"]) == (True, True)
        assert "a value cannot be kept in the store" in outcomes["\ud800"]
        assert {message.key for message in await journal.inbox(["r"])} == {"a", "b"}


@pytest.mark.anyio
async def test_a_writer_that_stops_leaves_nobody_waiting(tmp_path, caplog):
    """T17: if the thread cannot go on, every waiter and every owner is told, and leaving works."""
    lost, errors = [], []
    async with open_sqlite_journal(tmp_path / "runs.db") as journal:
        await journal.create(a_run("r"), lost.append)
        journal.writer.submit(Task(journal, die, lambda *_: None, size=0))
        journal._tasks += 1
        for n in range(2, 5):
            journal.append_nowait(Batch("r", 1, [record(n)]), errors.append)
        with pytest.raises(StoreClosedError, match="has stopped: SystemExit"):
            await journal.create(a_run("s"), lost.append)
        await until(lambda: lost and len(errors) == 3)
        with pytest.raises(StoreClosedError, match="has stopped"):
            journal.append_nowait(Batch("r", 1, [record(5)]), errors.append)

    assert {type(error) for error in [*lost, *errors]} == {StoreClosedError}
    assert not store_threads()
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    async with open_sqlite_journal(tmp_path / "runs.db") as journal:
        assert len(await journal.read("r")) == 1


def die(_tables):
    raise SystemExit(1)


# -- event loops and threads -----------------------------------------------------------------------


def test_event_loops_of_a_process_share_a_thread(tmp_path):
    """Loops of Trio and asyncio in several threads use one writer, and each is told what is its own."""
    path = tmp_path / "runs.db"
    barrier = threading.Barrier(4)
    seen, failures = [], []
    before = set(threading.enumerate())  # of a test whose loop is gone

    async def main(name):
        async with open_sqlite_journal(path, durability="process") as journal:
            here = threading.get_ident()
            await journal.create(a_run(name), print)
            barrier.wait()
            seen.append(set(writers()) - before)
            told = []
            for n in range(2, 302):
                journal.append_nowait(
                    Batch(name, 1, [record(n)]),
                    lambda error, n=n: told.append((n, error, threading.get_ident())),
                )
            await journal.wait_for_room()
            while len(told) < 300:
                await current_backend().sleep(0.005)
            assert told == [(n, None, here) for n in range(2, 302)]
            barrier.wait()
            assert len(await journal.find(RunFilter())) == 4

    def run_in(library, name):
        try:
            trio.run(main, name) if library == "trio" else asyncio.run(main(name))
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [
        threading.Thread(target=run_in, args=(library, f"{library}{n}"))
        for library in ("trio", "asyncio")
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failures == []
    assert [len(found) for found in seen] == [1] * 4
    assert len(set.union(*seen)) == 1
    assert not set(writers()) - before
    assert not open_files(path)


def test_a_loop_that_is_gone_is_no_error(tmp_path):
    """T17: a loop that ends without leaving the store harms no other, and its runs are free."""
    path = tmp_path / "runs.db"
    loop = asyncio.new_event_loop()
    opened = open_sqlite_journal(path)
    gone = loop.run_until_complete(opened.__aenter__())
    loop.run_until_complete(gone.create(a_run("r"), print))

    async def main():
        async with open_sqlite_journal(path) as journal:
            assert journal.writer is gone.writer
            await journal.create(a_run("s"), print)
            assert await journal.claim("r", print) is None
            loop.call_soon(gone.append_nowait, Batch("r", 1, [record(2)]), print)
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            gone.writer.submit(Task(gone, lambda _: None, lambda *_: None))
            for n in range(2, 20):
                assert await write(journal, Batch("s", 1, [record(n)])) == [None]
            lease = await journal.claim("r", print)
            assert (lease.fence, lease.sequence) == (2, 2)

    trio.run(main)
    assert store_threads()  # of the loop that is gone
    closing_loop = asyncio.new_event_loop()
    gone._end = StoreClosedError("its loop is gone")
    closing_loop.run_until_complete(opened.__aexit__(None, None, None))
    closing_loop.close()
    assert not store_threads()


def test_a_jumping_clock_waits_for_the_disk(tmp_path):
    """Virtual time does not pass while a commit or a reading is under way."""

    async def main():
        async with open_sqlite_journal(tmp_path / "runs.db") as journal:
            with trio.fail_after(5):
                await journal.create(a_run("r"), print)
                with closing(
                    sqlite3.connect(
                        tmp_path / "runs.db", isolation_level=None, check_same_thread=False
                    )
                ) as other:
                    other.execute("BEGIN IMMEDIATE")
                    timer = threading.Timer(0.3, other.execute, ["ROLLBACK"])
                    timer.start()
                    assert await write(journal, Batch("r", 1, [record(2)])) == [None]
                    timer.join()
                assert len(await journal.read("r")) == 2
            assert trio.current_time() == begun
            await trio.sleep(1000)
            assert trio.current_time() == begun + 1000

    clock = trio.testing.MockClock(autojump_threshold=0)
    begun = clock.current_time()
    trio.run(main, clock=clock)


@pytest.mark.parametrize("what", ["opening", "calling", "leaving"])
def test_a_native_cancellation_leaves_nothing(tmp_path, what):
    """`Task.cancel()` at any turn of opening, using and leaving the store: no thread, no lock, no open file."""
    path = tmp_path / "runs.db"

    async def use(reached):
        async with open_sqlite_journal(path, durability="process") as journal:
            if what == "calling":
                reached.set()
            made = await journal.create(a_run(f"r{len([*tmp_path.iterdir()])}"), print)
            await journal.get("r")
            assert made
            if what == "leaving":
                reached.set()

    async def main(count):
        reached = asyncio.Event()
        task = asyncio.create_task(use(reached))
        if what != "opening":
            await reached.wait()
        for _ in range(count):
            await asyncio.sleep(0 if count % 2 else 0.0003)
        task.cancel("natively")
        try:
            await task
        except asyncio.CancelledError:
            return True
        return False

    cancelled = 0
    for count in range(30):
        cancelled += asyncio.run(main(count))
        assert not store_threads()
        assert not open_files(path)
        assert not [*tmp_path.glob("runs.db-owners/*")]
    assert cancelled
    if ask(path, "SELECT count(*) FROM sqlite_master") != [(0,)]:
        assert ask(path, "SELECT count(*) FROM owners") == [(0,)]
        assert ask(path, "SELECT count(*) FROM runs WHERE owner IS NOT NULL") == [(0,)]


@pytest.mark.anyio
async def test_leaving_leaves_nothing(tmp_path):
    """Left by an exception or a cancellation, the store leaves no thread, no lock and no open file."""
    path = tmp_path / "runs.db"
    for end in ("normally", "exception", "cancellation"):
        with anyio.CancelScope() as scope:
            try:
                async with open_sqlite_journal(path) as journal:
                    await journal.create(a_run(end), print)
                    await journal.get(end)
                    assert store_threads()
                    assert open_files(path)
                    if end == "exception":
                        raise KeyError(end)
                    if end == "cancellation":
                        scope.cancel()
                        await anyio.sleep(1)
            except KeyError:
                assert end == "exception"

        assert not store_threads()
        assert not open_files(path)
        assert not [*tmp_path.glob("runs.db-owners/*")]
        assert ask(path, "SELECT count(*) FROM runs WHERE owner IS NOT NULL") == [(0,)]


@pytest.mark.anyio
async def test_a_long_reading_can_be_cancelled(tmp_path):
    """A cancelled call does not wait until SQLite has read a large file, and the store works on."""
    counting = (
        "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n) SELECT count(*) FROM n"
    )
    path = tmp_path / "runs.db"
    async with open_sqlite_journal(path) as journal:
        await journal.create(a_run("r"), print)
        with anyio.move_on_after(0.05) as scope:
            await journal._look(lambda tables: tables._one(counting))  # without an end

        assert scope.cancelled_caught
        assert len(await journal.read("r")) == 1
        assert await write(journal, Batch("r", 1, [record(2)])) == [None]


def test_a_long_reading_can_be_cancelled_natively(tmp_path):
    """The same by `Task.cancel()`."""
    counting = (
        "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n) SELECT count(*) FROM n"
    )

    async def main():
        async with open_sqlite_journal(tmp_path / "runs.db") as journal:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await journal._look(lambda tables: tables._one(counting))
            assert await journal.check() == []

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_loop_that_is_stuck_keeps_its_runs_for_a_while(tmp_path):
    """D4: the thread renews the leases of a busy loop; of one that is stuck for `max_stall` it does not."""
    path = tmp_path / "runs.db"
    lost = []
    async with (
        open_sqlite_journal(path, lease=0.3, max_stall=2.5) as stuck,
        open_sqlite_journal(path, lease=10) as other,
    ):
        await stuck.create(a_run("r"), lost.append)
        time.sleep(0.8)  # more than the lease, less than `max_stall`
        assert await other.claim("r", print) is None
        time.sleep(3.5)
        lease = await other.claim("r", print)
        assert lease.fence == 2
        await until(lambda: lost)
        assert isinstance(lost[0], StaleLeaseError)
        assert isinstance((await write(stuck, Batch("r", 1, [record(2)])))[0], StaleLeaseError)
        # It answers again, and what it has now it keeps.
        await stuck.create(a_run("s"), lost.append)
        time.sleep(0.8)
        assert await other.claim("s", print) is None


@pytest.mark.anyio
async def test_summaries_of_many_runs_stay_small(tmp_path):
    """A parked run takes about half a kilobyte of disk beside its snapshot."""
    path = tmp_path / "runs.db"
    async with open_sqlite_journal(path, durability="process") as journal:
        errors = []
        for n in range(2000):
            await journal.create(
                NewRun(f"run-{n:08}", "Approval", "k" * 16, 1.0, b"x" * 200), print
            )
            parked = Summary("parked", 1.0, 2.0, b"[]")
            batch = Batch(f"run-{n:08}", 1, summary=parked, release=True)
            journal.append_nowait(batch, errors.append)
        due = await journal.due(3.0, 10)
        assert len(due.runs) == 10
    assert errors == [None] * 2000
    assert path.stat().st_size / 2000 < 200 + 400


@pytest.mark.anyio
async def test_a_file_of_each_released_format_is_read(tmp_path):
    """A store that an earlier release wrote is opened, migrated and continued."""
    path = tmp_path / "runs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(Path(__file__).with_name("store_format_1.sql").read_text())
    async with open_sqlite_journal(path) as journal:
        assert await journal.check() == []
        assert [r.data for r in await journal.read("essay-1")] == [
            b'{"t":"base"}',
            b'{"k":1,"r":"\xc3\xbc"}',
            b'{"k":2}',
            b"{}",
        ]
        row, ended = await journal.find(RunFilter())
        assert row.summary == Summary("parked", 1004.0, 2000.0, b'[{"id":"q1"}]')
        assert (row.sequence, row.shown, row.fence, row.owner, row.messages) == (4, 1, 1, None, 1)
        assert (ended.run_id, ended.is_ended) == ("essay-2", True)
        assert [message.key for message in await journal.inbox(["essay-1"])] == ["answer-2"]
        assert not await journal.send("essay-1", "event", "answer-1", b'{"yes":true}')
        assert (await journal.claim("essay-1", print)).fence == 2
        batch = Batch("essay-1", 2, [StoredRecord(5, 1.0, "pub", b"{}", 2)])
        assert await write(journal, batch) == [None]
    assert ask(path, "PRAGMA user_version") == [(VERSION,)]
    fresh = tmp_path / "fresh.db"
    async with open_sqlite_journal(fresh):
        pass
    schema = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    assert ask(path, schema) == ask(fresh, schema)


@pytest.mark.anyio
async def test_a_run_that_was_rolled_back_is_not_mistaken_for_another(tmp_path):
    """A creation that is undone with others leaves nothing by which a later run could be written to."""
    path = tmp_path / "runs.db"
    async with open_sqlite_journal(path) as journal:
        execute = journal.writer._connection.execute
        (count,) = execute("PRAGMA page_count").fetchone()
        execute(f"PRAGMA max_page_count = {count + 2}")
        refused = []

        async def create(new):
            with pytest.raises(StoreFullError):
                await journal.create(new, print)
            refused.append(new.run_id)

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            journal.append_nowait(Batch("none", 1, [record(2)]), print)
            async with anyio.create_task_group() as group:
                await until(lambda: not journal.writer._queue)  # the thread waits for the lock
                group.start_soon(create, a_run("small"))
                group.start_soon(create, NewRun("large", "Flow", "", 1.0, b"x" * 100_000))
                await until(lambda: len(journal.writer._queue) == 2)  # for one transaction
                other.execute("ROLLBACK")
        execute("PRAGMA max_page_count = 1000000")
        assert sorted(refused) == ["large", "small"]
        await journal.create(a_run("r"), print)  # with the number that one of them had

        errors = await write(
            journal, *(Batch(run_id, 1, [record(2)]) for run_id in ("small", "large"))
        )

        assert [type(error) for error in errors] == [StaleLeaseError] * 2
        assert len(await journal.read("r")) == 1
