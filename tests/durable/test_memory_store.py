"""The store in memory: commits, kills, stalls and power losses to order; and stores under the sweep."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from sluicegate._loop import current_backend
from sluicegate.durable import (
    Batch,
    Lease,
    MemoryStore,
    NewRun,
    RunFilter,
    StaleLeaseError,
    StoreClosedError,
    StoredRecord,
    Summary,
    open_sqlite_journal,
)
from sluicegate.testing import sweep


pytestmark = pytest.mark.anyio


def a_run(run_id):
    return NewRun(run_id, "Flow", "start", 1.0, b"{}")


def one(n):
    """A batch of one record of the run `r`, under its first lease."""
    return Batch("r", 1, [StoredRecord(n, float(n), "in", b"{}")])


async def turns(count=5):
    for _ in range(count):
        await current_backend().checkpoint()


async def kept(store, run_id="r"):
    """The records of a run, as another owner finds them."""
    async with store.open() as journal:
        if await journal.get(run_id) is None:
            return None
        return [record.sequence for record in await journal.read(run_id)]


async def test_a_test_decides_when_commits_are_made():
    """Held, nothing is committed nor settled; `commit` commits all that waits, in one."""
    store, told = MemoryStore(), []
    async with store.open() as journal:
        await journal.create(a_run("r"), told.append)
        store.hold()
        for n in range(2, 5):
            journal.append_nowait(one(n), told.append)
        await turns()
        assert told == []
        assert len(await journal.read("r")) == 1
        before = store.commits
        store.commit()
        assert told == []  # in the event loop, at its next turn
        await turns()
        assert (told, store.commits) == ([None] * 3, before + 1)
        journal.append_nowait(one(5), told.append)
        await turns()
        assert len(told) == 3
        store.go_on()
        await turns()
        assert len(told) == 4
        store.hold()
        journal.append_nowait(one(6), told.append)
    assert told == [None] * 5  # leaving commits
    store.go_on()
    assert await kept(store) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("keep", "expected"), [(0.0, 3), (0.5, 5), (1.0, 7)])
async def test_a_kill_writes_a_part_of_what_waits(keep, expected):
    """D1: what was settled survives a kill, of the rest the oldest part; the killed owner is told of failures only."""
    store, told, lost = MemoryStore(), [], []
    async with store.open() as journal:
        await journal.create(a_run("r"), lost.append)
        for n in (2, 3):
            journal.append_nowait(one(n), told.append)
        await turns()
        store.hold()
        for n in (4, 5, 6, 7):
            journal.append_nowait(one(n), told.append)
        journal.cut(keep)
        store.go_on()

        assert await kept(store) == [*range(1, expected + 1)]
        await turns()
        assert [type(error) for error in told] == [type(None)] * 2 + [StoreClosedError] * 4
        assert [type(error) for error in lost] == [StoreClosedError]
        with pytest.raises(StoreClosedError, match="was ended by a test"):
            await journal.read("r")
        with pytest.raises(StoreClosedError):
            journal.append_nowait(one(8), told.append)
    async with store.open() as other:
        assert (await other.claim("r", print)).fence == 2


@pytest.mark.parametrize(("keep", "expected"), [(0.0, 3), (0.5, 5), (1.0, 6)])
async def test_a_power_loss_keeps_what_was_synchronised(keep, expected):
    """D1: with `process`, a power loss takes back commits that were not synchronised, the newest first."""
    store, told = MemoryStore(durability="process"), []
    async with store.open() as journal:
        assert not journal.capabilities.survives_power_loss
        await journal.create(a_run("r"), print)
        for n in (2, 3):
            journal.append_nowait(one(n), told.append)
        await turns()
        store.sync()
        for n in (4, 5, 6):
            journal.append_nowait(one(n), told.append)
            await turns()
        await journal.send("r", "event", "late", b"{}")
        assert told == [None] * 5
        store.power_loss(keep)

    assert await kept(store) == [*range(1, expected + 1)]
    async with store.open() as other:
        assert len(await other.inbox(["r"])) == (keep == 1.0)
        assert (await other.claim("r", print)).fence == 2


async def test_with_fsync_a_power_loss_takes_nothing_that_was_settled():
    """D1: with `fsync`, whatever was settled survives a power loss, of every owner."""
    store, told = MemoryStore(), []
    async with store.open() as a, store.open() as b:
        assert a.capabilities.survives_power_loss
        await a.create(a_run("r"), print)
        await b.create(a_run("s"), print)
        a.append_nowait(one(2), told.append)
        await turns()
        store.hold()
        a.append_nowait(one(3), told.append)
        b.append_nowait(Batch("s", 1, summary=Summary("failed", 1.0)), told.append)
        store.power_loss()
        store.go_on()
    assert await kept(store) == [1, 2]
    assert [type(error) for error in told] == [type(None)] + [StoreClosedError] * 2
    async with store.open() as journal:
        assert await journal.count(RunFilter()) == {"running": 2}


async def test_a_stalled_owner_keeps_its_runs_until_its_lease_expires():
    """D4: like a process that was stopped: replaced when its lease is over, told when it goes on, refused before."""
    now = [100.0]
    store, told, lost = MemoryStore(clock=lambda: now[0], lease=10), [], []
    async with store.open() as stalled, store.open() as other:
        await stalled.create(a_run("r"), lost.append)
        await stalled.create(a_run("kept"), lost.append)
        stalled.stall()
        now[0] += 9.9
        assert await other.claim("r", print) is None
        assert (await other.due(1.0, 10)).next_at == 110.0
        now[0] += 0.2
        assert (await other.claim("r", print)).fence == 2
        stalled.append_nowait(one(2), told.append)
        await turns()
        assert [type(error) for error in told] == [StaleLeaseError]
        assert [error.run_id for error in lost] == ["r"]
        stalled.go_on()
        await turns()
        assert await other.claim("kept", print) is None
        assert len(lost) == 1


# -- under the sweep -----------------------------------------------------------------------------


class Uses:
    """Two owners that do everything once; cancelled at every moment, and again."""

    def __init__(self, open_journal):
        self.open_journal = open_journal
        self.appended = 0
        self.settled = []

    async def __call__(self):
        self.appended, self.settled = 0, []
        backend = current_backend()
        async with (
            self.open_journal() as a,
            self.open_journal() as b,
            backend.open_nursery() as nursery,
        ):
            nursery.start_soon(self.follow, a, nursery)
            nursery.start_soon(self.work, b)

    async def follow(self, journal, nursery):
        since = 0
        while True:
            since = await journal.changed(since)
            if await journal.inbox(["r"]):
                nursery.cancel_scope.cancel()

    async def work(self, journal):
        lease = await journal.create(a_run("r"), print)
        if not isinstance(lease, Lease):
            lease = await journal.claim("r", print)
        for n in range(lease.sequence + 1, lease.sequence + 4):
            batch = Batch("r", lease.fence, [StoredRecord(n, 1.0, "in", b"{}")])
            journal.append_nowait(batch, self.settled.append)
            self.appended += 1
            await journal.wait_for_room()
        await journal.release(lease)
        lease = await journal.claim("r", print)
        await journal.read("r")
        await journal.find(RunFilter())
        for message in await journal.inbox(["r"]):
            await journal.read_shown(message.run_id)
        await journal.send("r", "event", f"k{lease.fence}", b"{}")
        while (
            True
        ):  # until the other owner has heard of it, from a thread that the sweep does not see
            await journal.get("r")

    async def check(self, _outcome):
        # Whatever was appended was settled when the store was left, and nobody has the run.
        assert self.settled == [None] * self.appended
        async with self.open_journal() as journal:
            row = await journal.get("r")
            if row is not None:
                assert row.owner is None, row
                records = await journal.read("r")
                assert [r.sequence for r in records] == [*range(1, row.sequence + 1)]
                lease = await journal.claim("r", print)
                assert isinstance(lease, Lease)
            assert await journal.check() == []


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_cancellation_at_any_moment_leaves_no_lease_in_memory(backend):
    """Cancelled at every moment, in every way, and twice: all is settled, and no lease is left."""
    store = MemoryStore()
    uses = Uses(lambda: store.open())

    report = sweep(uses, backends=backend, twice=True, check=uses.check, limit=40)

    assert report.runs > 40


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_cancellation_at_any_moment_leaves_no_lease_in_a_file(backend):
    """The same for SQLite, with its threads."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "runs.db"
        uses = Uses(lambda: open_sqlite_journal(path, durability="process"))

        sweep(uses, backends=backend, check=uses.check, limit=40)
