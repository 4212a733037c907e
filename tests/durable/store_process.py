"""What a process of its own does with a store, for the tests that kill, stop and starve it.

``python -m tests.durable.store_process ROLE PATH [ARGUMENT]`` prints a line for each thing that happens.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys

import trio

from sluicegate._loop import current_backend
from sluicegate.durable import Batch, Lease, NewRun, StoredRecord, StoreError, open_sqlite_journal


def say(*words):
    print(*words, flush=True)


async def append(journal, lease, sequence, data=b"{}"):
    """Append a record and return the error."""
    waiter, told = current_backend().waiter(), []

    def settle(error):
        told.append(error)
        waiter.wake()

    journal.append_nowait(
        Batch(lease.run_id, lease.fence, [StoredRecord(sequence, 1.0, "in", data)]), settle
    )
    while not told:
        await waiter.wait()
    return told[0]


def a_run(run_id):
    return NewRun(run_id, "Flow", "start", 1.0, b"{}")


async def write_when_told(path, _argument):
    """Append a record for each line of stdin, as :func:`write` does."""
    await write(path, 1_000_000, sys.stdin.readline)


async def write(path, count, may_go_on=lambda: True):
    """Append to a run, and say what is durable; end when it is refused, or after so many."""
    async with open_sqlite_journal(path, lease=1) as journal:
        lease = await journal.create(a_run("r"), lambda error: say("lost", type(error).__name__))
        for sequence in range(2, int(count) + 2):
            await current_backend().run_in_thread(may_go_on, abandon_on_cancel=False)
            error = await append(journal, lease, sequence)
            if error is not None:
                say("refused", type(error).__name__)
                break
            say("durable", sequence)
        await current_backend().checkpoint()


async def compete(path, name):
    """Create runs that others create too, write those that it gets, and send to all."""
    won = 0
    async with open_sqlite_journal(path) as journal:
        for n in range(40):
            lease = await journal.create(a_run(f"r{n}"), lambda error: say("lost", error))
            if isinstance(lease, Lease):
                won += 1
                for sequence in range(2, 5):
                    assert await append(journal, lease, sequence) is None
                await journal.release(lease)
            assert await journal.send(f"r{n}", "event", name, b'"%s"' % name.encode())
            is_first = await journal.send(f"r{n}", "event", "shared", b"{}")
            say("shared", is_first)
    say("won", won)


async def starve(path, _argument):
    """Write more than the process may, and go on when it may."""
    async with open_sqlite_journal(path) as journal:
        lease = await journal.create(a_run("r"), lambda error: say("lost", error))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        error = await append(journal, lease, 2, b'"%s"' % (b"x" * 500_000))
        say(type(error).__name__, isinstance(error, OSError), error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        say(await append(journal, lease, 2))
        say(len(await journal.read("r")), await journal.check())


async def open_as_nobody(path, _argument):
    """Open the file as a user that may only read it."""
    os.setuid(65534)
    try:
        async with open_sqlite_journal(path):
            say("opened")
    except StoreError as error:
        say(type(error).__name__, error)


async def fork(path, _argument):
    """Fork a child that lives on, while the parent is killed."""
    async with open_sqlite_journal(path, lease=60) as journal:
        await journal.create(a_run("r"), lambda error: say("lost", error))
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        say("forked", child)
        await current_backend().sleep(60)


ROLES = {f.__name__: f for f in (write, write_when_told, compete, starve, open_as_nobody, fork)}


def main(role, path, argument="", library="trio"):
    if library == "trio":
        trio.run(ROLES[role], path, argument)
    else:
        asyncio.run(ROLES[role](path, argument))


if __name__ == "__main__":
    main(*sys.argv[1:])
