"""The SQLite store and real processes: killed, stopped, forked, starved of disk, and many at a time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from sluicegate.durable import RunFilter, StoreBusyError, open_sqlite_journal


ROOT = Path(__file__).parent.parent.parent


@contextmanager
def process(*arguments, before=(), stdin=subprocess.DEVNULL):
    """Start a process that uses a store; it is killed at the end if it has not ended."""
    command = [*before, sys.executable, "-m", "tests.durable.store_process", *map(str, arguments)]
    child = subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, text=True, cwd=ROOT, encoding="utf-8"
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        if child.stdin:
            child.stdin.close()


def lines(child, count):
    """Return so many lines of a process."""
    return [child.stdout.readline().split() for _ in range(count)]


def look(path, then):
    """Return what an async function of the open store returns."""

    async def main():
        async with open_sqlite_journal(path) as journal:
            return await then(journal)

    return trio.run(main)


def kill_while_it_writes(path, count):
    """Kill a process after it has said so many times that a record is durable; return what is there."""
    with process("write", path, 1_000_000) as child:
        said = lines(child, count)
        child.kill()
        said += [line.split() for line in child.stdout]
    durable = [int(words[1]) for words in said if len(words) == 2]

    async def then(journal):
        lease = await journal.claim("r", print)  # at once: the lock shows that its owner has ended
        assert lease is not None
        assert lease.fence == 2
        assert await journal.check() == []
        return lease.sequence, [record.sequence for record in await journal.read("r")]

    sequence, kept = look(path, then)
    assert kept == [*range(1, sequence + 1)]
    return durable[-1], sequence


def test_what_was_durable_survives_a_kill(tmp_path):
    """D1: after `kill -9` each record whose commit has returned is there, without a gap, and another goes on at once."""
    durable, kept = kill_while_it_writes(tmp_path / "runs.db", 30)

    assert durable <= kept <= durable + 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5, 12, 70, 150])
def test_what_was_durable_survives_a_kill_at_any_moment(tmp_path, count):
    """D1: the same, early and late, before and after SQLite has moved its log into the file."""
    durable, kept = kill_while_it_writes(tmp_path / "runs.db", count)

    assert durable <= kept <= durable + 1


@pytest.mark.slow
def test_a_stopped_process_is_refused(tmp_path):
    """D4: a process that slept past its lease is refused when it wakes, and told that its run is lost."""
    path = tmp_path / "runs.db"
    with process("write_when_told", path, stdin=subprocess.PIPE) as child:
        child.stdin.write("go\n" * 5)
        child.stdin.flush()
        lines(child, 5)
        child.send_signal(signal.SIGSTOP)

        async def take_over(journal):
            with trio.fail_after(30):
                while (lease := await claim(journal)) is None:
                    await trio.sleep(0.05)
            return lease.sequence, len(await journal.read("r"))

        async def claim(journal):
            try:
                return await journal.claim("r", print)
            except StoreBusyError:  # it was stopped while it renewed its lease, in a transaction
                child.send_signal(signal.SIGCONT)
                await trio.sleep(0.02)
                child.send_signal(signal.SIGSTOP)
                return None

        sequence, kept = look(path, take_over)
        child.send_signal(signal.SIGCONT)
        child.stdin.write("go\n")
        child.stdin.flush()
        said = [line.split() for line in child.stdout]
        assert child.wait() == 0

    assert ["lost", "StaleLeaseError"] in said
    assert ["refused", "StaleLeaseError"] in said
    assert (sequence, kept) == (6, 6)
    assert look(path, lambda journal: journal.check()) == []
    assert len(look(path, lambda journal: journal.read("r"))) == kept


@pytest.mark.slow
def test_processes_share_a_file(tmp_path):
    """Several processes create, write and send at a time: each run has one winner, each message one receiver."""
    path = tmp_path / "runs.db"
    names = ["a", "b", "c"]
    with (
        process("compete", path, "a") as one,
        process("compete", path, "b", "asyncio") as two,
        process("compete", path, "c") as three,
    ):
        said = [[line.split() for line in child.stdout] for child in (one, two, three)]
        assert [child.wait() for child in (one, two, three)] == [0, 0, 0]

    assert sum(int(words[1]) for child in said for words in child if words[0] == "won") == 40
    assert sum(words == ["shared", "True"] for child in said for words in child) == 40

    async def then(journal):
        rows = await journal.find(RunFilter())
        inbox = await journal.inbox([row.run_id for row in rows])
        return {row.sequence for row in rows}, inbox, await journal.check()

    sequences, inbox, wrong = look(path, then)
    assert sequences == {4}
    assert sorted((m.run_id, m.key) for m in inbox) == sorted(
        (f"r{n}", key) for n in range(40) for key in [*names, "shared"]
    )
    assert wrong == []
    assert not [*Path(f"{path}-owners").iterdir()]


@pytest.mark.slow
def test_a_forked_child_does_not_keep_the_runs(tmp_path):
    """A child that was forked and lives on does not make its killed parent look alive."""
    path = tmp_path / "runs.db"
    with process("fork", path) as parent:
        ((_, child),) = lines(parent, 1)
        try:
            parent.kill()
            parent.wait()
            lease = look(path, lambda journal: journal.claim("r", print))
        finally:
            os.kill(int(child), signal.SIGKILL)

    assert lease is not None


@pytest.mark.slow
def test_a_process_that_may_write_no_more_is_told(tmp_path):
    """Where the system refuses to let the file grow, the batch fails with the reason, and nothing is lost."""
    with process("starve", tmp_path / "runs.db") as child:
        refused, again, left = child.stdout.read().splitlines()

    assert refused.startswith(("StoreUnavailableError True the store", "StoreFullError True the"))
    assert (again, left) == ("None", "2 []")


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that may not write")
def test_a_file_that_may_not_be_written_is_told():
    """A store that this user may only read is refused with a clear error, and not changed."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "runs.db"
        look(path, lambda journal: journal.check())
        before = path.read_bytes()
        for mode in (0o755, 0o777):
            Path(directory).chmod(mode)
            path.chmod(0o444)
            with process("open_as_nobody", path) as child:
                said = child.stdout.read()
            assert said.startswith("StoreReadOnlyError the store")
            assert "no write permission" in said
        assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="counts calls of the system with strace")
def test_each_commit_is_synchronised(tmp_path):
    """D1: with `fsync` the system is told to bring each commit to the disk before it is durable."""
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    with process("write", tmp_path / "runs.db", 20, before=strace) as child:
        said = child.stdout.read()
        if child.wait():
            pytest.skip("this system does not allow strace")

    assert said.count("durable") == 20
    calls = trace.read_text().splitlines()
    begun = next(n for n, call in enumerate(calls) if '"durable' in call)
    between = [
        "sync" if "sync(" in call else "told"
        for call in calls[begun:]
        if "sync(" in call or '"durable' in call
    ]
    # At least one call between two records.
    assert "told told" not in " ".join(between)
    assert between.count("told") == 20
