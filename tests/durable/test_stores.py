"""Every store does what `sluicegate.testing.store_checks` lists: the one in memory, and SQLite."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

import anyio
import pytest

from sluicegate.durable import MemoryStore, StoreClosedError, open_sqlite_journal
from sluicegate.testing import store_checks


pytestmark = pytest.mark.anyio


class MemoryHarness:
    def __init__(self, _path):
        self.store = MemoryStore()

    def open(self):
        return self.store.open()

    async def kill(self, journal):
        journal.cut(keep=0.5)

    async def expire(self, journal):
        journal.expire()


class SqliteHarness:
    """A file in a directory. Its owners are in one process, each with a writer and a clock of its own."""

    def __init__(self, path):
        self.path = path / "runs.db"
        self.late = {}

    def open(self):
        offset = [0.0]

        def clock():  # being its own, it makes a writer of its own, too
            return time.time() - offset[0]

        self.late[clock] = offset
        return open_sqlite_journal(self.path, durability="process", lease=0.5, clock=clock)

    async def kill(self, journal):
        writer = journal.writer
        for member in writer._members.values():
            member.lock.close()
        writer._is_ending = True
        writer._fail(StoreClosedError("killed"))
        await anyio.to_thread.run_sync(writer.close)

    async def expire(self, journal):
        writer = journal.writer
        self.late[writer._tables._clock][0] = 100.0
        writer._next_renewal = 0.0
        writer._ring()
        with closing(sqlite3.connect(self.path)) as connection:
            statement = "SELECT expires_at FROM owners WHERE owner = ?"
            while connection.execute(statement, (journal.owner,)).fetchone()[0] > time.time():
                await anyio.sleep(0.005)


@pytest.mark.slow_for("asyncio")
@pytest.mark.parametrize("check", store_checks(), ids=lambda check: check.name)
@pytest.mark.parametrize("harness", [MemoryHarness, SqliteHarness])
async def test_a_store_passes_the_published_checks(harness, check, tmp_path):
    """Each store of this package passes each check, on every event loop."""
    await check(harness(tmp_path))
