"""Real processes over SQLite: killed at an append, at random, and stopped beyond their lease.

A part of what `.ci/long` runs.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from functools import partial

import anyio
import pytest

from tests.durable.driving import World
from tests.durable.flows import FLOWS, Chain, Human
from tests.durable.killing import (
    Place,
    end_of,
    in_loop,
    kill_at_random,
    kill_everywhere,
    live,
    spawn,
)
from tests.durable.ledger import Ledger, read_ledger
from tests.durable.moments import compare_some
from tests.durable.stored import Stores
from tests.helpers import on_each_backend, run_virtually


#: Of the points before and after the appends of a flow, one of so many is tried here.
EVERY = 20
#: How many moments of each flow are tried with a real kill; .ci/long tries forty.
MOMENTS = 1
#: A twentieth of the runs of .ci/long.
RUNS = 25


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_a_process_that_is_killed_at_an_append_loses_nothing(name):
    """Killed before and after a commit, each flow ends right, and its ledger has no fault."""
    offset = len(name) % EVERY
    backend = ("trio", "asyncio")[len(name) % 2]

    killed, found = kill_everywhere(name, backend, EVERY, offset)

    assert found == []
    assert killed


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_a_killed_process_and_a_life_that_was_cut_off_leave_the_same_ledger(name):
    """A crash of the sweep is as ``kill -9`` at the same moment: the same effects, the same end."""
    backend = ("asyncio", "trio")[len(name) % 2]

    compared, found = compare_some(name, backend, MOMENTS)

    assert found == []
    assert compared == MOMENTS


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "processes"), [("trio", 1), ("asyncio", 2)])
def test_no_run_is_lost_by_random_kills(backend, processes):
    """The owner of many runs, or all of a group of processes, is killed again and again."""
    assert kill_at_random(RUNS, backend, 0, processes=processes) == []


def stop_between_commits(pid, path):
    """Stop a process; one that is stopped in a transaction would keep the lock of the file."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        with closing(sqlite3.connect(path, timeout=0.1, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.002)
                continue
            connection.execute("ROLLBACK")
            return


@pytest.mark.slow
@on_each_backend
def test_a_stopped_owner_is_refused_when_it_goes_on(backend, tmp_path):
    """D4: another process takes over after the lease; the stale owner's part is cancelled and says so."""
    place = Place(tmp_path)
    one = partial(live, place, {"one": "Chain"}, lease=0.5)
    told = tmp_path / "told"

    async def tell():
        await one(1)
        told.write_text("left")

    stale = spawn(partial(in_loop, backend, tell))
    while not any(entry.name == "begin/" for entry in read_ledger(place.ledger("one"))):
        time.sleep(0.001)
    stop_between_commits(stale, tmp_path / "runs.db")
    status = end_of(spawn(partial(in_loop, backend, partial(one, 2))))
    finished = place.result("one").exists()
    os.kill(stale, signal.SIGCONT)

    assert (status, end_of(stale)) == (0, 0)
    assert finished
    assert told.read_text() == "left"
    assert json.loads(place.result("one").read_text()) == [Chain.result, Chain.status]
    # A body whose cause was durable may begin in the stale owner before it hears of the fence.
    problems = place.problems("one", Chain)
    assert [each for each in problems if "began again in life 1" not in each] == []


@on_each_backend
def test_a_message_between_the_claim_and_the_life_is_not_left_in_the_inbox(backend):
    """D7: an answer that arrives after the claim has read the inbox is applied by the life that begins."""
    stores = Stores()

    async def send(journal, key):
        answer = {"e": {"$": "Answer", "v": {"key": key, "response": key.upper()}}}
        await journal.send("one", "event", key, json.dumps(answer).encode())

    async def main():
        async with stores.open() as other:
            async with stores.open(release_idle=None) as runs, anyio.create_task_group() as group:
                flow = Forgetful(Ledger())
                handler = runs.run(flow.run(), run_id="one")
                handler.start_soon(group)
                group.start_soon(World(flow, handler, flow.ledger).live)
                while {each.event.key for each in handler.questions} != {"town", "road"}:
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
            await send(other._hub.journal, "town")
            async with stores.open(release_idle=None) as runs:
                read, count = runs._hub.journal.inbox, 0

                async def inbox(run_ids):
                    nonlocal count
                    found = await read(run_ids)
                    count += 1
                    if count == 1:
                        await send(other._hub.journal, "road")
                    return found

                runs._hub.journal.inbox = inbox
                with anyio.fail_after(1000):
                    return await runs.run(Forgetful(Ledger()).run(), run_id="one")

    assert run_virtually(backend, main) == Forgetful.result


class Forgetful(FLOWS["Interview"]):
    """Two of the questions are answered by another process."""

    unanswered = frozenset({"town", "road"})


@on_each_backend
def test_a_follower_reads_an_end_that_is_newer_than_the_row(backend):
    """The process that follows a run tells how it ended, although the row it has read says it runs."""
    stores = Stores()

    async def main():
        async with stores.open() as first, stores.open() as second:
            get, count = second._hub.journal.get, 0

            async def late(run_id):
                nonlocal count
                found = await get(run_id)
                count += 1
                if count == 1:  # the run ends while the row is on its way
                    await anyio.sleep(100)
                return found

            second._hub.journal.get = late
            async with anyio.create_task_group() as group:
                flow = Human(Ledger())
                handler = first.run(flow.run(), run_id="one")
                handler.start_soon(group)
                while not handler.questions:
                    await anyio.sleep(0.01)
                follower = second.run(Human(Ledger()).run(), run_id="one")
                async with follower:
                    with follower.stream_events(after="0") as reader:
                        group.start_soon(World(flow, handler, flow.ledger).live)
                        kinds = [type(event).__name__ async for event in reader]
                    return kinds, await follower, follower.status

    kinds = ["Question", "Question", "Question", "StopEvent"]
    assert run_virtually(backend, main) == (kinds, Human.result, "completed")
