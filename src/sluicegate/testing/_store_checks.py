"""The conformance checks for implementations of :class:`sluicegate.durable.Journal`.

Each check is an async function of a harness. It opens the store as several owners, as processes would,
and raises ``AssertionError`` if the store breaks the rule in the docstring of the check.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, final

from msgspec import structs

from sluicegate._errors import EventConflictError, WorkflowError
from sluicegate._loop import current_backend
from sluicegate.durable import (
    Batch,
    Due,
    JournalConflictError,
    Lease,
    MemoryStore,
    NewRun,
    RunEndedError,
    RunFilter,
    RunOwnedError,
    RunRow,
    StaleLeaseError,
    StoreClosedError,
    StoredRecord,
    Summary,
    UnknownRunError,
)


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sluicegate.durable import Journal, StoreError

T = TypeVar("T")


class StoreHarness(Protocol):
    """A store under test: an empty one for each check, opened several times by it."""

    def open(self) -> AbstractAsyncContextManager[Journal]:
        """Open the store as a separate owner, like another process."""
        ...

    async def kill(self, journal: Journal) -> None:
        """End an owner as ``kill -9`` ends a process: without a further commit or release.

        Its block is left later, which must not raise. If the store cannot detect that an owner has
        ended, wait here until its leases have expired.
        """
        ...

    async def expire(self, journal: Journal) -> None:
        """Let the leases of an owner expire while it keeps running, as after a suspension."""
        ...


@final
class StoreCheck:
    """A check of :func:`store_checks`: ``await check(harness)``.

    Attributes:
        name: Its name.
        rule: The rule that it checks.
    """

    def __init__(self, function: Callable[[StoreHarness], Awaitable[None]]) -> None:
        self._function = function
        self.name: str = str(getattr(function, "__name__", "")).strip("_")
        self.rule: str = str(function.__doc__)

    def __repr__(self) -> str:
        return f"<StoreCheck {self.name}>"

    async def __call__(self, store: StoreHarness) -> None:
        """Check a store.

        Args:
            store: An empty store.

        Raises:
            AssertionError: It breaks the rule.
        """
        try:
            await self._function(store)
        except AssertionError as error:
            error.add_note(f"the rule {self.name}: {self.rule}")
            raise


def store_checks() -> list[StoreCheck]:
    """Return the checks that every implementation of a store of runs has to pass.

    With pytest, on Trio::

        @pytest.mark.parametrize("check", store_checks(), ids=lambda check: check.name)
        def test_my_store(check, tmp_path):
            trio.run(check, MyHarness(tmp_path))

    They need an event loop of Trio or asyncio, and no particular one of these.
    """
    return [StoreCheck(function) for function in _CHECKS]


_CHECKS: list[Callable[[StoreHarness], Awaitable[None]]] = []


def _check(
    function: Callable[[StoreHarness], Awaitable[None]],
) -> Callable[[StoreHarness], Awaitable[None]]:
    _CHECKS.append(function)
    return function


# -- helpers -------------------------------------------------------------------------------------


def expect(actual: Any, expected: Any) -> None:
    """Raise unless two values are equal."""
    if actual != expected:
        msg = f"got {actual!r}\nexpected {expected!r}"
        raise AssertionError(msg)


async def refused(kind: type[T], call: Awaitable[object]) -> T:
    """Return the exception of this class that a call raises."""
    try:
        result = await call
    except WorkflowError as error:
        if isinstance(error, kind):
            return error
        raise
    msg = f"got {result!r}; expected {kind.__name__}"
    raise AssertionError(msg)


def a_run(run_id: str, workflow: str = "Flow", at: float = 1.0) -> NewRun:
    """Return a run to be created."""
    return NewRun(run_id, workflow, "start", at, b'{"t":"base"}')


def records(first: int, last: int, *, shown: int = 0) -> list[StoredRecord]:
    """Return records with these sequences; with ``shown``, all are in the stream from that number on."""
    return [
        StoredRecord(n, float(n), "in", b'{"n":%d}' % n, shown + n - first if shown else 0)
        for n in range(first, last + 1)
    ]


@final
class Owner:
    """An open store that records its callbacks."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.settled: list[tuple[object, StoreError | None]] = []
        self.lost: list[StoreError] = []

    async def create(self, run_id: str, workflow: str = "Flow") -> Lease:
        """Create a run and return the lease."""
        made = await self.journal.create(a_run(run_id, workflow), self.lost.append)
        if isinstance(made, Lease):
            return made
        msg = f"the run {run_id!r} is there already: {made!r}; expected a lease"
        raise AssertionError(msg)

    async def claim(self, run_id: str) -> Lease | None:
        """Claim a run."""
        return await self.journal.claim(run_id, self.lost.append)

    async def take_over(self, run_id: str) -> Lease:
        """Claim a run that must be free."""
        lease = await self.claim(run_id)
        if lease is None:
            msg = f"the run {run_id!r} was not free; expected a lease"
            raise AssertionError(msg)
        return lease

    def append(self, batch: Batch, mark: object = None) -> None:
        """Append a batch, and note the outcome with a mark."""
        self.journal.append_nowait(batch, lambda error: self.settled.append((mark, error)))

    async def write(self, batch: Batch) -> StoreError | None:
        """Append a batch, wait until it is settled, and return the error."""
        backend = current_backend()
        waiter, outcome = backend.waiter(), list[Any]()

        def settle(error: object) -> None:
            outcome.append(error)
            waiter.wake()

        self.journal.append_nowait(batch, settle)
        while not outcome:
            await waiter.wait()
        return cast("StoreError | None", outcome[0])

    async def summarise(self, lease: Lease, status: str, **summary: Any) -> None:
        """Write a summary, and nothing else."""
        told = Summary(cast("Any", status), 2.0, **summary)
        expect(await self.write(Batch(lease.run_id, lease.fence, summary=told)), None)


@asynccontextmanager
async def opened(store: StoreHarness) -> AsyncGenerator[Owner]:
    """Open a store as an :class:`Owner`."""
    async with store.open() as journal:
        yield Owner(journal)


async def turns(count: int) -> None:
    """Let other tasks run for a number of turns of the event loop."""
    for _ in range(count):
        await current_backend().checkpoint()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true; fail after ten seconds."""
    backend = current_backend()
    deadline = backend.current_time() + 10
    while not condition():
        if backend.current_time() > deadline:
            msg = "it did not happen within ten seconds"
            raise AssertionError(msg)
        await backend.sleep(0.005)


async def together(*calls: Callable[[], Awaitable[T]]) -> list[T]:
    """Make calls at the same time; return their results in the order in which they returned."""
    results: list[T] = []

    async def call(one: Callable[[], Awaitable[T]]) -> None:
        results.append(await one())

    async with current_backend().open_nursery() as nursery:
        for one in calls:
            nursery.start_soon(call, one)
    return results


async def cancelled_after(count: int, call: Callable[[], Awaitable[T]]) -> list[T]:
    """Make a call and cancel it after a number of turns; return its result if it has one."""
    backend = current_backend()
    results: list[T] = []

    async def make() -> None:
        results.append(await call())

    async with backend.open_nursery() as nursery:
        nursery.start_soon(make)
        await turns(count)
        backend.cancel(nursery.cancel_scope, "the check cancels this call")
    return results


# -- creation and ownership ----------------------------------------------------------------------


@_check
async def created_runs_are_claimed(store: StoreHarness) -> None:
    """A created run has a lease, a first record with its base, and the status running."""
    async with opened(store) as owner:
        journal = owner.journal
        lease = await owner.create("r")

        expect(lease, Lease("r", journal.owner, 1, 1, 0))
        expect(await journal.read("r"), [StoredRecord(1, 1.0, "base", b'{"t":"base"}')])
        row = await journal.get("r")
        assert row is not None
        expect((row.run_id, row.workflow, row.start_key), ("r", "Flow", "start"))
        expect((row.created_at, row.summary), (1.0, Summary("running", 1.0)))
        expect((row.sequence, row.base, row.shown), (1, 1, 0))
        expect((row.fence, row.owner, row.messages), (1, journal.owner, 0))
        expect((row.is_ended, await journal.get("other")), (False, None))


@_check
async def a_run_is_created_once(store: StoreHarness) -> None:
    """Of several creations with one id, at the same time or not, one gets the lease, the others the run."""
    async with opened(store) as one, opened(store) as two:
        calls = [
            partial(owner.journal.create, a_run("r", f"Flow{n}"), owner.lost.append)
            for n, owner in enumerate([one, two] * 4)
        ]
        results = await together(*calls)

        leases = [result for result in results if isinstance(result, Lease)]
        rows = {row.workflow for row in results if isinstance(row, RunRow)}
        expect(len(leases), 1)
        expect(len(rows), 1)
        expect(await one.journal.count(RunFilter()), {"running": 1})
        expect(len(await two.journal.read("r")), 1)


@_check
async def texts_and_data_are_kept(store: StoreHarness) -> None:
    """Ids, names and keys may be any text, and data any JSON, of a megabyte as well."""
    texts = [
        "a b",
        "ünï-☃-𝄞",
        "o'hara\"; --",
        "%_*?",
        "x" * 500,
        "line\nbreak",
        "../up",
        "null\0byte",
    ]
    data = ['{"a":"ünï ☃ 𝄞"}'.encode(), b'"\\u0000"', b"[]", b'"%s"' % (b"x" * 1_000_000)]
    async with opened(store) as owner:
        journal = owner.journal
        for text in texts:
            run = NewRun(text, text, text, 1.0, data[0])
            lease = await journal.create(run, owner.lost.append)
            assert isinstance(lease, Lease)
            kept = [StoredRecord(n, 1.5, text, one) for n, one in enumerate(data, 2)]
            expect(await owner.write(Batch(text, lease.fence, kept)), None)
            expect((await journal.read(text))[1:], kept)
            expect(await journal.send(text, "event", text, data[0]), True)
            expect([(m.key, m.data) for m in await journal.inbox([text])], [(text, data[0])])
        expect([row.run_id for row in await journal.find(RunFilter())], texts)


@_check
async def a_run_has_one_owner(store: StoreHarness) -> None:
    """A run that has a living owner cannot be claimed, nor by itself; nor can one that has ended."""
    async with opened(store) as one, opened(store) as two:
        lease = await one.create("r")

        expect([await one.claim("r"), await two.claim("r")], [None, None])
        await refused(UnknownRunError, two.claim("other"))
        await one.summarise(lease, "completed")
        await one.journal.release(lease)
        expect([await one.claim("r"), await two.claim("r")], [None, None])
        expect([one.lost, two.lost], [[], []])


@_check
async def a_released_run_can_be_claimed(store: StoreHarness) -> None:
    """After a release, alone or with a batch, another owner gets the run, with a higher fence."""
    async with opened(store) as one, opened(store) as two:
        first = await one.create("r")
        one.append(Batch("r", 1, records(2, 3, shown=1)))
        await one.journal.release(first)
        second = await two.take_over("r")
        expect(second, Lease("r", two.journal.owner, 2, 3, 2))

        expect(await two.write(Batch("r", 2, records(4, 4), release=True)), None)
        third = await one.take_over("r")
        expect((third.fence, third.sequence, third.shown), (3, 4, 2))
        await two.journal.release(second)  # it is not two's any more, and that is no error
        expect(await two.claim("r"), None)
        expect([one.lost, two.lost], [[], []])


@_check
async def a_released_lease_writes_nothing(store: StoreHarness) -> None:
    """Batches under a released lease are refused."""
    async with opened(store) as owner:
        lease = await owner.create("r")
        await owner.journal.release(lease)

        error = await owner.write(Batch("r", lease.fence, records(2, 2)))

        expect(type(error), StaleLeaseError)
        expect(len(await owner.journal.read("r")), 1)


@_check
async def one_of_several_claims_wins(store: StoreHarness) -> None:
    """Of several owners that claim a run at the same time, exactly one gets it."""
    async with opened(store) as one, opened(store) as two, opened(store) as three:
        for n in range(5):
            lease = await one.create(f"r{n}")
            await one.journal.release(lease)
            claims = [partial(owner.claim, f"r{n}") for owner in [one, two, three] * 2]
            leases = [lease for lease in await together(*claims) if lease is not None]
            expect([lease.fence for lease in leases], [2])


@_check
async def an_expired_lease_can_be_replaced(store: StoreHarness) -> None:
    """After its lease has expired, an owner can lose its run: it is notified once, and its writes are refused."""
    async with opened(store) as one, opened(store) as two:
        await one.create("r")
        await one.create("kept")
        expect(await one.write(Batch("r", 1, records(2, 2))), None)
        await store.expire(one.journal)
        lease = await two.take_over("r")
        expect((lease.fence, lease.sequence), (2, 2))

        one.append(Batch("r", 1, records(3, 3)), "stale")
        one.append(Batch("r", 1, records(4, 4)), "behind")
        expect(await two.write(Batch("r", 2, records(3, 3))), None)
        await until(lambda: len(one.settled) == 2 and one.lost)

        expect([type(error) for _, error in one.settled], [StaleLeaseError] * 2)
        (lost,) = one.lost
        assert isinstance(lost, StaleLeaseError)
        expect((lost.run_id, lost.fence), ("r", 1))
        expect([r.sequence for r in await two.journal.read("r")], [1, 2, 3])
        expect(await one.write(Batch("kept", 1, records(2, 2))), None)


@_check
async def an_owner_that_writes_nothing_is_told_too(store: StoreHarness) -> None:
    """An owner is notified of a lost lease even if it appends nothing."""
    async with opened(store) as one, opened(store) as two:
        await one.create("r")
        await store.expire(one.journal)
        await two.take_over("r")

        await until(lambda: one.lost)
        expect([type(error) for error in one.lost], [StaleLeaseError])
        expect(two.lost, [])


@_check
async def an_expired_lease_that_nobody_claims_goes_on(store: StoreHarness) -> None:
    """Safety rests on the fence alone: an owner that was late, and was not replaced, may write."""
    async with opened(store) as owner:
        await owner.create("r")
        await store.expire(owner.journal)

        expect(await owner.write(Batch("r", 1, records(2, 2))), None)
        expect(owner.lost, [])


@_check
async def a_killed_owner_is_replaced(store: StoreHarness) -> None:
    """After `kill -9` all settled batches are there, then a prefix of the others; another owner continues."""
    async with opened(store) as two:
        async with opened(store) as one:
            await one.create("r")
            expect(await one.write(Batch("r", 1, records(2, 4))), None)
            for n in range(5, 25):
                one.append(Batch("r", 1, records(n, n)), n)
            await store.kill(one.journal)
            lease = await two.take_over("r")
            kept = [record.sequence for record in await two.journal.read("r")]
            expect(kept, [*range(1, len(kept) + 1)])
            acknowledged = [n for n, error in one.settled if error is None]
            assert 4 + len(acknowledged) <= len(kept) <= 24, (kept, acknowledged)
            expect((lease.fence, lease.sequence), (2, len(kept)))
            more = records(len(kept) + 1, len(kept) + 1)
            expect(await two.write(Batch("r", 2, more)), None)
        # Leaving its block changes nothing any more.
        expect(await two.write(Batch("r", 2, records(more[0].sequence + 1, 30))), None)
        expect(await two.journal.check(), [])


# -- the journal ---------------------------------------------------------------------------------


@_check
async def records_are_read_in_order(store: StoreHarness) -> None:
    """Records come back as they were appended, after any of them and as many as are asked for."""
    async with opened(store) as owner:
        journal = owner.journal
        await owner.create("r")
        for first, last in [(2, 2), (3, 7), (8, 8), (9, 20)]:
            owner.append(Batch("r", 1, records(first, last)))
        expect(await owner.write(Batch("r", 1, records(21, 21))), None)

        everything = await journal.read("r")
        expect(everything[1:], records(2, 21))
        expect(await journal.read("r", after=5), everything[5:])
        expect(await journal.read("r", after=5, limit=3), everything[5:8])
        expect(await journal.read("r", after=21), [])
        expect(await journal.read("r", limit=2), everything[:2])
        await refused(UnknownRunError, journal.read("other"))
        await refused(UnknownRunError, journal.read_shown("other"))


@_check
async def a_journal_has_no_gaps(store: StoreHarness) -> None:
    """A batch that does not continue the journal is refused as a whole, and the right one is taken."""
    wrong = [
        records(3, 3),
        records(1, 1),
        [*records(2, 2), *records(4, 4)],
        [*records(2, 2), *records(2, 2)],
        records(2, 2, shown=2),
        [*records(2, 2, shown=1), *records(3, 3, shown=3)],
    ]
    async with opened(store) as owner:
        await owner.create("r")
        for batch in wrong:
            error = await owner.write(Batch("r", 1, batch, summary=Summary("failed", 9.0)))
            expect(type(error), JournalConflictError)
        row = await owner.journal.get("r")
        assert row is not None
        expect((row.sequence, row.summary.status), (1, "running"))
        expect(await owner.write(Batch("r", 1, records(2, 2))), None)
        owner.append(Batch("r", 1, records(4, 4)))
        owner.append(Batch("r", 1, records(5, 5)))
        expect(await owner.write(Batch("r", 1, records(3, 3))), None)
        expect([record.sequence for record in await owner.journal.read("r")], [1, 2, 3])
        expect(owner.lost, [])


@_check
async def a_refusal_harms_no_other_run(store: StoreHarness) -> None:
    """Batches that are committed together with one that is refused are written."""
    async with opened(store) as owner:
        for n in range(4):
            await owner.create(f"r{n}")
        for n in range(4):
            owner.append(Batch(f"r{n}", 1 + (n == 1), records(2 + (n == 2), 3 + (n == 2))), n)
        owner.append(Batch("no such run", 1, records(2, 2)), 4)
        await until(lambda: len(owner.settled) == 5)

        kinds = [None if error is None else type(error) for _, error in owner.settled]
        expect(kinds, [None, StaleLeaseError, JournalConflictError, None, StaleLeaseError])
        lengths = [len(await owner.journal.read(f"r{n}")) for n in range(4)]
        expect(lengths, [3, 1, 1, 3])


@_check
async def batches_are_settled_once_and_in_order(store: StoreHarness) -> None:
    """However many batches of however many runs wait: each is settled once, in the order of the calls."""
    async with opened(store) as owner:
        journal = owner.journal
        for n in range(10):
            await owner.create(f"r{n}")
        chosen = random.Random(5)  # noqa: S311
        last = dict.fromkeys(range(10), 1)
        for mark in range(500):
            n = chosen.randrange(10)
            count = chosen.randrange(4)
            owner.append(Batch(f"r{n}", 1, records(last[n] + 1, last[n] + count)), mark)
            last[n] += count
            if chosen.random() < 0.02:
                await journal.wait_for_room()
        await until(lambda: len(owner.settled) >= 500)
        await turns(10)

        expect(owner.settled, [(mark, None) for mark in range(500)])
        for n in range(10):
            kept = [record.sequence for record in await journal.read(f"r{n}")]
            expect(kept, [*range(1, last[n] + 1)])


@_check
async def lazy_batches_are_settled_too(store: StoreHarness) -> None:
    """A lazy batch keeps its place among the others, and is settled soon even if no other follows."""
    async with opened(store) as owner:
        await owner.create("r")
        for n in range(2, 30):
            owner.append(Batch("r", 1, records(n, n), lazy=n % 3 != 0), n)
            if n % 10 == 0:
                await _settled(owner, n - 1)
        owner.append(Batch("r", 1, records(30, 30), lazy=True), 30)
        await _settled(owner, 29)

        expect(owner.settled, [(n, None) for n in range(2, 31)])
        owner.append(Batch("r", 1, records(31, 31), lazy=True), 31)
    expect(len(owner.settled), 30)


async def _settled(owner: Owner, count: int) -> None:
    await until(lambda: len(owner.settled) == count)


@_check
async def a_settled_batch_can_be_read(store: StoreHarness) -> None:
    """Once a batch is settled, every owner reads it."""
    async with opened(store) as one, opened(store) as two:
        await one.create("r")
        for n in range(2, 12):
            expect(await one.write(Batch("r", 1, records(n, n))), None)
            for owner in (one, two):
                expect(len(await owner.journal.read("r")), n)


@_check
async def reading_begins_with_the_newest_base(store: StoreHarness) -> None:
    """A run is read from its newest base; pruning drops what is before, without the durable stream."""
    async with opened(store) as owner:
        journal = owner.journal
        await owner.create("r")
        base = StoredRecord(6, 6.0, "base", b'{"t":"base","n":6}')
        shown = [StoredRecord(3, 3.0, "pub", b"{}", 1), StoredRecord(5, 5.0, "pub", b"{}", 2)]
        first = [*records(2, 2), shown[0], *records(4, 4), shown[1], base]
        expect(await owner.write(Batch("r", 1, first)), None)
        expect(await owner.write(Batch("r", 1, records(7, 8))), None)

        expect(await journal.read("r"), [base, *records(7, 8)])
        expect(len(await journal.read("r", after=0)), 8)
        expect(await owner.write(Batch("r", 1, prune_before=5)), None)
        expect([r.sequence for r in await journal.read("r", after=0)], [3, 5, 6, 7, 8])
        expect(await owner.write(Batch("r", 1, prune_before=100)), None)
        expect([r.sequence for r in await journal.read("r", after=0)], [3, 5, 6, 7, 8])
        expect(await journal.read_shown("r"), shown)
        row = await journal.get("r")
        assert row is not None
        expect((row.base, row.sequence, row.shown), (6, 8, 2))
        expect(await journal.check(), [])


@_check
async def the_durable_stream_has_its_own_numbers(store: StoreHarness) -> None:
    """Records of the stream are numbered without a gap, and are read by these numbers."""
    async with opened(store) as owner:
        journal = owner.journal
        await owner.create("r")
        mixed = [
            StoredRecord(n, 1.0, "pub", b"%d" % n, n // 3 if n % 3 == 0 else 0)
            for n in range(2, 32)
        ]
        expect(await owner.write(Batch("r", 1, mixed)), None)

        shown = [record for record in mixed if record.shown]
        expect(await journal.read_shown("r"), shown)
        expect(await journal.read_shown("r", after=4), shown[4:])
        expect(await journal.read_shown("r", after=4, limit=2), shown[4:6])
        expect(await journal.read_shown("r", after=10), [])


@_check
async def appending_waits_for_room(store: StoreHarness) -> None:
    """`wait_for_room` returns when there is room, also after very much was appended at once."""
    async with opened(store) as owner:
        await owner.create("r")
        await owner.journal.wait_for_room()
        for n in range(2, 6002):
            owner.append(Batch("r", 1, records(n, n)), n)
        await owner.journal.wait_for_room()
        assert owner.settled, "there was room for everything; expected a bound"
        await until(lambda: len(owner.settled) == 6000)
        expect([error for _, error in owner.settled if error], [])


# -- the inbox -----------------------------------------------------------------------------------


@_check
async def a_message_is_received_once(store: StoreHarness) -> None:
    """A message is known by its key: sent again it is not received again, consumed or not."""
    async with opened(store) as one, opened(store) as two:
        await one.create("r")
        await one.create("other")
        send = two.journal.send
        expect(await send("r", "event", "a", b'{"n":1}'), True)
        expect(await send("r", "event", "a", b'{"n":1}'), False)
        await refused(EventConflictError, send("r", "event", "a", b'{"n":2}'))
        await refused(EventConflictError, send("r", "cancel", "a", b'{"n":1}'))
        expect(await send("other", "event", "a", b'{"n":2}'), True)
        await refused(UnknownRunError, send("none", "event", "a", b"{}"))

        (message,) = await one.journal.inbox(["r"])
        expect((message.run_id, message.kind, message.key), ("r", "event", "a"))
        expect(message.data, b'{"n":1}')
        expect(await one.write(Batch("r", 1, records(2, 2), consumes=[message.id])), None)
        expect(await one.journal.inbox(["r"]), [])
        expect(await send("r", "event", "a", b'{"n":1}'), False)
        await refused(EventConflictError, send("r", "event", "a", b'{"n":2}'))
        expect(len(await one.journal.inbox(["r", "other", "none"])), 1)


@_check
async def of_equal_messages_one_is_received(store: StoreHarness) -> None:
    """Of several equal messages at the same time, exactly one is received."""
    async with opened(store) as one, opened(store) as two:
        await one.create("r")
        calls = [partial(owner.journal.send, "r", "event", "a", b"{}") for owner in [one, two] * 4]

        expect(sorted(await together(*calls)), [False] * 7 + [True])
        expect(len(await one.journal.inbox(["r"])), 1)


@_check
async def messages_are_consumed_with_a_batch(store: StoreHarness) -> None:
    """Messages keep their order, and are consumed with a batch or not at all, each once."""
    async with opened(store) as owner:
        journal = owner.journal
        await owner.create("r")
        await owner.create("other")
        for n in range(5):
            await journal.send("r", "event", f"k{n}", b"%d" % n)
        await journal.send("other", "event", "k", b"{}")
        inbox = await journal.inbox(["r"])
        expect([message.key for message in inbox], [f"k{n}" for n in range(5)])
        first, second, *_ = (message.id for message in inbox)
        (foreign,) = await journal.inbox(["other"])

        for consumed in ([first, first], [foreign.id], [10_000], [first, foreign.id]):
            error = await owner.write(Batch("r", 1, records(2, 2), consumes=consumed))
            expect(type(error), JournalConflictError)
        expect(type(await owner.write(Batch("r", 7, consumes=[first]))), StaleLeaseError)
        expect(await journal.inbox(["r"]), inbox)
        expect(await owner.write(Batch("r", 1, records(2, 2), consumes=[second, first])), None)
        expect(type(await owner.write(Batch("r", 1, consumes=[first]))), JournalConflictError)
        expect(await journal.inbox(["r"]), inbox[2:])
        row = await journal.get("r")
        assert row is not None
        expect(row.messages, 3)


@_check
async def an_ended_run_receives_nothing(store: StoreHarness) -> None:
    """A run that has ended refuses messages, except one that it has received before."""
    async with opened(store) as owner:
        lease = await owner.create("r")
        await owner.journal.send("r", "event", "a", b"{}")
        await owner.summarise(lease, "failed")

        expect(await owner.journal.send("r", "event", "a", b"{}"), False)
        await refused(RunEndedError, owner.journal.send("r", "event", "b", b"{}"))


@_check
async def changes_are_noticed(store: StoreHarness) -> None:
    """`changed` returns after what others do and after a message, also if that was between two calls."""
    async with opened(store) as one, opened(store) as two:
        lease = await one.create("r")
        since = await two.journal.changed(0)
        since = await _noticed(two, since, partial(one.create, "s"))
        since = await _noticed(two, since, partial(one.write, Batch("r", 1, records(2, 2))))
        since = await _noticed(two, since, partial(two.journal.send, "r", "event", "a", b"{}"))
        since = await _noticed(two, since, partial(one.journal.release, lease))
        await one.journal.delete("r")
        # It happened between two calls.
        since = await two.journal.changed(since)
        expect(await cancelled_after(3, partial(two.journal.changed, since + 100)), [])
        await _noticed(two, since, partial(one.create, "t"))


async def _noticed(owner: Owner, since: int, change: Callable[[], Awaitable[object]]) -> int:
    """Make a change while an owner waits for one; return what that gets."""
    numbers: list[int] = []

    async def wait() -> None:
        numbers.append(await owner.journal.changed(since))

    async with current_backend().open_nursery() as nursery:
        nursery.start_soon(wait)
        await turns(3)
        await change()
    assert numbers[0] > since, (numbers, since)
    return numbers[0]


# -- what is due, and lists ----------------------------------------------------------------------


async def _due(owner: Owner, now: float, **options: Any) -> tuple[list[str], float | None]:
    due = await owner.journal.due(now, options.pop("limit", 100), **options)
    return [row.run_id for row in due.runs], due.next_at


@_check
async def a_parked_run_is_due_at_its_time(store: StoreHarness) -> None:
    """A run that waits needs an owner when its timer is due or a message is there, and not before."""
    async with opened(store) as owner:
        for name, wake_at in [("late", 300.0), ("soon", 200.0), ("never", None)]:
            lease = await owner.create(name)
            summary = Summary("parked", 2.0, wake_at)
            batch = Batch(name, lease.fence, records(2, 2), summary=summary, release=True)
            expect(await owner.write(batch), None)

        expect(await _due(owner, 199.0), ([], 200.0))
        expect(await _due(owner, 200.0), (["soon"], 300.0))
        expect(await _due(owner, 400.0), (["soon", "late"], None))
        expect(await _due(owner, 400.0, limit=1), (["soon"], None))
        await owner.journal.send("never", "event", "a", b"{}")
        expect((await _due(owner, 199.0))[0], ["never"])
        await owner.take_over("soon")
        expect((await _due(owner, 400.0))[0], ["never", "late"])


@_check
async def an_abandoned_run_is_due(store: StoreHarness) -> None:
    """A run that was left while it worked is due at once; one that has a living owner or has ended is not."""
    async with opened(store) as two:
        async with opened(store) as one:
            await one.create("working", "A")
            waiting = await one.create("waiting", "A")
            await one.summarise(waiting, "idle")
            ended = await one.create("ended", "A")
            await one.summarise(ended, "cancelled")
            released = await one.create("released", "B")
            await one.journal.release(released)
            expect((await _due(two, 50.0))[0], ["released"])
            await store.kill(one.journal)
            expect((await _due(two, 50.0))[0], ["working", "released"])
            expect((await _due(two, 50.0, workflows=["A", "C"]))[0], ["working"])
            await two.journal.send("waiting", "event", "a", b"{}")
            expect((await _due(two, 50.0))[0], ["working", "waiting", "released"])
        await two.take_over("working")
        expect((await _due(two, 50.0))[0], ["waiting", "released"])


@_check
async def a_consumed_message_wakes_nobody(store: StoreHarness) -> None:
    """A run that has consumed its messages and waits again is due at its timer."""
    async with opened(store) as owner:
        await owner.create("r")
        await owner.journal.send("r", "event", "a", b"{}")
        (message,) = await owner.journal.inbox(["r"])
        await owner.journal.send("r", "event", "b", b"{}")
        parked = Summary("parked", 2.0, 70.0)
        expect(await owner.write(Batch("r", 1, consumes=[message.id], summary=parked)), None)
        (message,) = await owner.journal.inbox(["r"])
        expect(await owner.write(Batch("r", 1, consumes=[message.id], release=True)), None)

        expect(await _due(owner, 60.0), ([], 70.0))


@_check
async def runs_are_listed(store: StoreHarness) -> None:
    """Runs are listed and counted by what is asked for, page by page, in both orders."""
    async with opened(store) as owner:
        journal = owner.journal
        statuses = ["running", "idle", "parked", "completed", "failed", "timed_out", "cancelled"]
        for n in range(14):
            new = a_run(f"r{n:02}", "AB"[n % 2], float(n))
            lease = await journal.create(new, owner.lost.append)
            assert isinstance(lease, Lease)
            asked = b'[{"id":"q"}]' if n % 3 == 0 else b"[]"
            told = Summary(cast("Any", statuses[n % 7]), float(20 + n), None, asked)
            expect(await owner.write(Batch(new.run_id, 1, summary=told)), None)

        async def found(**which: Any) -> list[int]:
            return [int(row.run_id[1:]) for row in await journal.find(RunFilter(**which))]

        everything = [*range(14)]
        expect(await found(), everything)
        expect(await found(workflows=["B"]), everything[1::2])
        expect(await found(statuses=["idle", "failed"]), [1, 4, 8, 11])
        expect(await found(statuses=[]), [])
        expect(await found(asking=True), [0, 3, 6, 9, 12])
        expect(await found(asking=False, workflows=["A"]), [2, 4, 8, 10])
        expect(await found(created_after=3.0, created_before=6.0), [3, 4, 5])
        expect(await found(updated_before=22.0), [0, 1])
        expect(await journal.count(RunFilter(workflows=["A"])), dict.fromkeys(statuses, 1))
        expect(await journal.count(RunFilter(statuses=["idle"])), {"idle": 2})
        await _check_pages(journal, everything)


async def _check_pages(journal: Journal, everything: Sequence[int]) -> None:
    for newest_first in (False, True):
        pages: list[int] = []
        after = None
        while rows := await journal.find(
            RunFilter(), after=after, limit=4, newest_first=newest_first
        ):
            pages += [int(row.run_id[1:]) for row in rows]
            after = rows[-1].number
        expect(pages, [*reversed(everything)] if newest_first else everything)


@_check
async def runs_are_deleted(store: StoreHarness) -> None:
    """A run without an owner can be deleted with its records and inbox, and its id can be used again."""
    async with opened(store) as one, opened(store) as two:
        lease = await one.create("r")
        await one.create("other")
        await one.journal.send("r", "event", "a", b"{}")
        for owner in (one, two):
            await refused(RunOwnedError, owner.journal.delete("r"))
        await one.journal.release(lease)

        expect([await two.journal.delete("r"), await two.journal.delete("r")], [True, False])
        expect(await two.journal.get("r"), None)
        await refused(UnknownRunError, two.journal.send("r", "event", "a", b"{}"))
        again = await two.create("r")
        expect((again.fence, again.sequence), (1, 1))
        expect(await two.journal.inbox(["r"]), [])
        expect(len(await two.journal.read("r")), 1)
        expect(type(await one.write(Batch("r", 1, records(2, 2)))), StaleLeaseError)
        expect(await one.journal.check(), [])


@_check
async def old_runs_are_pruned(store: StoreHarness) -> None:
    """Pruning deletes runs of these statuses that are old enough and have no owner, and no others."""
    async with opened(store) as owner:
        journal = owner.journal
        for n in range(250):
            lease = await owner.create(f"r{n}")
            status = cast("Any", "completed" if n % 5 else "parked")
            told = Summary(status, float(n))
            owner.append(Batch(f"r{n}", lease.fence, summary=told, release=n != 1), n)
        await until(lambda: len(owner.settled) == 250)

        expect(await journal.prune(200.0), 159)
        expect(await journal.count(RunFilter()), {"parked": 50, "completed": 41})
        expect(await journal.prune(200.0), 0)
        expect(await journal.prune(3.0, ["parked"]), 1)
        expect(await journal.check(), [])


# -- leaving and cancellation --------------------------------------------------------------------


@_check
async def leaving_commits_and_releases(store: StoreHarness) -> None:
    """Leaving the store settles what was appended and ends the leases; then nothing is taken."""
    async with opened(store) as two:
        async with opened(store) as one:
            await one.create("r")
            for n in range(2, 52):
                one.append(Batch("r", 1, records(n, n)), n)

        expect(one.settled, [(n, None) for n in range(2, 52)])
        expect(one.lost, [])
        lease = await two.take_over("r")
        expect((lease.fence, lease.sequence), (2, 51))
        await refused(StoreClosedError, one.journal.get("r"))
        await refused(StoreClosedError, one.claim("r"))
        await refused(StoreClosedError, one.journal.wait_for_room())
        await refused(StoreClosedError, one.journal.changed(0))
        try:
            one.append(Batch("r", 1, records(52, 52)))
        except StoreClosedError:
            return
        msg = "a batch was taken after the store was left; expected StoreClosedError"
        raise AssertionError(msg)


@_check
async def leaving_wakes_who_waits(store: StoreHarness) -> None:
    """A task that waits for a change gets `StoreClosedError` when the store is left."""
    async with current_backend().open_nursery() as nursery, opened(store) as owner:
        since = await owner.journal.changed(0)
        nursery.start_soon(refused, StoreClosedError, owner.journal.changed(since + 100))
        await turns(3)


@_check
async def leaving_by_a_cancellation_commits_and_releases(store: StoreHarness) -> None:
    """Leaving the store by a cancellation settles what was appended and ends the leases, too."""
    backend = current_backend()
    async with opened(store) as two:
        one: Owner | None = None
        with backend.cancel_scope() as scope:
            async with opened(store) as one:
                await one.create("r")
                for n in range(2, 52):
                    one.append(Batch("r", 1, records(n, n)), n)
                backend.cancel(scope, "the check cancels")
                await backend.checkpoint()
        assert one is not None
        expect(one.settled, [(n, None) for n in range(2, 52)])
        expect((await two.take_over("r")).sequence, 51)


@_check
async def opening_may_be_cancelled(store: StoreHarness) -> None:
    """Opening the store may be cancelled at any turn, and leaves nothing that is in the way."""

    async def enter() -> None:
        async with opened(store):
            pass

    for count in range(6):
        await cancelled_after(count, enter)
        async with opened(store) as owner:
            lease = await owner.create(f"r{count}")
            await owner.journal.release(lease)


@_check
async def a_cancelled_claim_holds_nothing(store: StoreHarness) -> None:
    """A creation or a claim that is cancelled, at any turn, leaves no lease behind."""
    async with opened(store) as one, opened(store) as two:
        for count in range(8):
            create = partial(one.journal.create, a_run(f"r{count}"), one.lost.append)
            await _expect_free(one, two, f"r{count}", await cancelled_after(count, create))
        for count in range(8):
            lease = await one.create(f"s{count}")
            await one.journal.release(lease)
            claim = partial(one.claim, f"s{count}")
            await _expect_free(one, two, f"s{count}", await cancelled_after(count, claim))
        expect([one.lost, two.lost], [[], []])


async def _expect_free(one: Owner, two: Owner, run_id: str, got: list[Any]) -> None:
    """Check that a run can be claimed: after its release, if the call was not cancelled in time."""
    for lease in got:
        assert isinstance(lease, Lease)
        await one.journal.release(lease)
    deadline = current_backend().current_time() + 10
    while current_backend().current_time() < deadline:
        if await two.journal.get(run_id) is None:
            return
        lease = await two.claim(run_id)
        if lease is not None:
            await two.journal.release(lease)
            return
    msg = f"the run {run_id!r} is still owned; expected that a cancelled call holds no lease"
    raise AssertionError(msg)


@_check
async def a_cancelled_call_does_nothing_by_halves(store: StoreHarness) -> None:
    """Each call that is cancelled, at any turn, has happened or not; the store works as before."""
    async with opened(store) as owner:
        journal = owner.journal
        await owner.create("r")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: journal.read("r"),
            lambda: journal.read_shown("r"),
            lambda: journal.inbox(["r"]),
            lambda: journal.due(1.0, 10),
            lambda: journal.get("r"),
            lambda: journal.find(RunFilter()),
            lambda: journal.count(RunFilter()),
            journal.check,
            lambda: journal.delete("r2"),
            lambda: journal.prune(0.0),
            journal.wait_for_room,
        ]
        for count in range(4):
            for call in calls:
                await cancelled_after(count, call)
            await cancelled_after(count, partial(journal.send, "r", "event", f"k{count}", b"{}"))
        for count in range(4):
            await journal.send("r", "event", f"k{count}", b"{}")
        keys = [message.key for message in await journal.inbox(["r"])]
        expect(sorted(keys), [f"k{count}" for count in range(4)])
        expect(await owner.write(Batch("r", 1, records(2, 2))), None)
        expect(await journal.check(), [])


@_check
async def every_call_is_a_checkpoint(store: StoreHarness) -> None:
    """Each async call raises a cancellation that is there already, and then has not happened."""
    backend = current_backend()
    async with opened(store) as owner:
        journal = owner.journal
        lease = await owner.create("r")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: journal.create(a_run("s"), owner.lost.append),
            lambda: journal.claim("r", owner.lost.append),
            lambda: journal.send("r", "event", "a", b"{}"),
            lambda: journal.delete("r"),
            lambda: journal.prune(9e9),
            lambda: journal.read("r"),
            lambda: journal.read_shown("r"),
            lambda: journal.inbox([]),
            lambda: journal.due(1.0, 1),
            lambda: journal.get("r"),
            lambda: journal.find(RunFilter()),
            lambda: journal.count(RunFilter()),
            journal.check,
            lambda: journal.changed(0),
            journal.wait_for_room,
        ]
        for call in calls:
            returned: list[object] = []
            with backend.cancel_scope() as scope:
                backend.cancel(scope, "before the call")
                returned.append(await call())
            expect(returned, [])
        expect(await journal.get("s"), None)
        expect(await journal.inbox(["r"]), [])
        expect(await owner.write(Batch("r", lease.fence, records(2, 2))), None)


# -- against the store in memory -----------------------------------------------------------------


@_check
async def random_programs_agree(store: StoreHarness) -> None:
    """Three owners that do anything in any order get the same answers as from the store in memory."""
    chosen = random.Random(11)  # noqa: S311
    model = MemoryStore()
    async with (
        opened(store) as a,
        opened(store) as b,
        opened(store) as c,
        model.open() as x,
        model.open() as y,
        model.open() as z,
    ):
        pairs = [(a, Owner(x)), (b, Owner(y)), (c, Owner(z))]
        program = _Program(chosen)
        for n in range(600):
            real, twin = pairs[chosen.randrange(3)]
            call = program.next_call()
            got, wanted = await _answer(real, call), await _answer(twin, call)
            program.learn(wanted)
            if got != wanted:
                msg = f"call {n}, {call}: got {got!r}\nexpected {wanted!r}"
                raise AssertionError(msg)
        expect(await a.journal.check(), [])
        expect([real.lost for real, _ in pairs], [[], [], []])


class _Program:
    """Chooses calls that are often right, by what the earlier ones have returned."""

    def __init__(self, chosen: random.Random) -> None:
        self._chosen = chosen
        self._rows: dict[str, RunRow] = {}

    def next_call(self) -> tuple[str, Any]:
        chosen = self._chosen
        run_id = f"r{chosen.randrange(6)}"
        name = chosen.choice(
            ["create", "claim", "release", "send", "delete", "look", "prune", "due"]
            + ["append"] * 8
        )
        row = self._rows.get(run_id)
        return name, (run_id, self._batch(run_id, row), chosen.randrange(4))

    def learn(self, answer: Any) -> None:
        if isinstance(answer, dict):
            self._rows = {row.run_id: row for row in cast("Any", answer)["rows"]}

    def _batch(self, run_id: str, row: RunRow | None) -> Batch:
        chosen = self._chosen
        fence, sequence, shown = (1, 1, 0) if row is None else (row.fence, row.sequence, row.shown)
        written: list[StoredRecord] = []
        for _ in range(chosen.randrange(4)):
            sequence += 1 + (chosen.random() < 0.02)
            number = 0
            if chosen.random() < 0.3:
                number = shown = shown + 1
            kind = "base" if chosen.random() < 0.1 else "in"
            written.append(StoredRecord(sequence, 1.0, kind, b"{}", number))
        statuses = ["running", "idle", "parked", "parked", "completed"]
        summary = Summary(
            cast("Any", chosen.choice(statuses)),
            float(chosen.randrange(100)),
            chosen.choice([None, 10.0, 20.0]),
            chosen.choice([b"[]", b"[1]"]),
        )
        return Batch(
            run_id,
            fence - (chosen.random() < 0.05),
            written,
            consumes=[chosen.randrange(1, 9)] if chosen.random() < 0.2 else [],
            summary=summary if chosen.random() < 0.3 else None,
            prune_before=sequence if chosen.random() < 0.2 else None,
            release=chosen.random() < 0.2,
        )


async def _answer(owner: Owner, call: tuple[str, Any]) -> Any:
    """Return what a call returns, in a form that two stores have in common."""
    name, (run_id, batch, number) = call
    journal = owner.journal
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "create": lambda: journal.create(a_run(run_id), owner.lost.append),
        "claim": lambda: owner.claim(run_id),
        "release": lambda: journal.release(Lease(run_id, journal.owner, batch.fence, 0, 0)),
        "append": lambda: owner.write(batch),
        "send": lambda: journal.send(run_id, "event", f"k{number}", b"%d" % (number % 3)),
        "delete": lambda: journal.delete(run_id),
        "prune": lambda: journal.prune(float(number * 10)),
        "due": lambda: journal.due(number * 8.0, 10),
        "look": lambda: _contents(journal),
    }
    try:
        return _plain(await calls[name]())
    except WorkflowError as error:
        return type(error)


async def _contents(journal: Journal) -> dict[str, Any]:
    rows = await journal.find(RunFilter())
    ids = [row.run_id for row in rows]
    return {
        "rows": [_plain(row) for row in rows],
        "records": [await journal.read(run_id, after=0) for run_id in ids],
        "recent": [await journal.read(run_id) for run_id in ids],
        "shown": [await journal.read_shown(run_id) for run_id in ids],
        "inbox": [(m.run_id, m.key, m.data) for m in await journal.inbox(ids)],
        "counts": await journal.count(RunFilter(statuses=["running", "parked"])),
        "asking": [r.run_id for r in await journal.find(RunFilter(asking=True))],
    }


def _plain(answer: Any) -> Any:
    """Return an answer without what differs from store to store."""
    match answer:
        case Lease(run_id=run_id, fence=fence, sequence=sequence, shown=shown):
            return ("lease", run_id, fence, sequence, shown)
        case RunRow(owner=owner):
            return structs.replace(answer, number=0, owner=None if owner is None else "somebody")
        case Due(runs=runs):
            return [row.run_id for row in runs]
        case Exception():
            return type(answer)
        case _:
            return answer
