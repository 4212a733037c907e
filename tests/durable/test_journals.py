"""Journals of released versions are continued by the present one; and the tool by which users check theirs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from sluicegate.durable import Batch, NewRun, StoreFormatError, open_run_store
from sluicegate.durable._exported import read_run
from sluicegate.testing import ReplayError, replay
from tests.durable.driving import World
from tests.durable.flows import FLOWS
from tests.durable.ledger import Entry, Ledger, faults_in
from tests.durable.make_journals import JOURNALS, PARTS
from tests.durable.stored import EPOCH, Asking, Counting, Stores
from tests.durable.test_upgrades import made, old, without_the_last_step
from tests.helpers import on_each_backend, run_virtually


RELEASES = sorted(path.name for path in JOURNALS.iterdir())


async def import_run(stores: Stores, path: Path) -> None:
    """Put an exported run into a store, as the process that was killed had left it."""
    found = read_run(path)
    base, *records = found.records
    async with stores.open() as runs:
        journal = runs._hub.journal
        new = NewRun(found.run_id, found.workflow, "key #", EPOCH, base.data)
        lease = await journal.create(new, lambda _: None)
        settled = anyio.Event()
        journal.append_nowait(
            Batch(new.run_id, lease.fence, tuple(records)), lambda _: settled.set()
        )
        await settled.wait()
        await journal.release(lease)


@on_each_backend
@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part < 1])
@pytest.mark.parametrize("release", RELEASES)
def test_journals_of_each_release_are_continued(release, name, backend):
    """D8: the run ends as it should; no recorded step runs again, and none is missing."""
    folder = JOURNALS / release
    if not (folder / f"{name}.ledger.json").exists():
        pytest.skip("this release had no such flow")
    lines = json.loads((folder / f"{name}.ledger.json").read_text())
    entries = [
        Entry(life, what, who, tuple(causes), *rest) for life, what, who, causes, *rest in lines
    ]
    ledger = Ledger(2, entries)

    async def main() -> Any:
        stores, flow = Stores(), FLOWS[name](ledger)
        await import_run(stores, folder / f"{name}-{name}.jsonl")
        async with stores.open(release_idle=None) as runs:
            handler = runs.resume(name, flow)
            return await World(flow, handler, ledger).run(), handler.status

    result, status = run_virtually(backend, main)

    assert (result, status) == (FLOWS[name].result, FLOWS[name].status)
    assert faults_in(ledger.entries(), FLOWS[name].expected) == []
    assert len(entries) > len(lines)


@pytest.mark.parametrize("release", RELEASES)
def test_replay_finds_that_journals_of_each_release_can_be_continued(release):
    """The check for the CI of users, on our own journals: no difference."""
    for name in PARTS:
        report = replay(JOURNALS / release, FLOWS[name]())
        assert [run.run_id for run in report.runs] == [name]
        assert report.differences == ()


async def keep(url: str, folder: Path, workflow: Any) -> list[Path]:
    """Store a run that has ended and one that waits; export both."""
    async with open_run_store(url) as runs:
        await runs.submit(workflow.run(), run_id="waits/1")
        with anyio.move_on_after(0.3):
            await runs.resume("waits/1", workflow)
        await runs.run(Counting().run(n=1), run_id="ended")
        return await runs.export(folder)


def test_replay_tells_each_difference(tmp_path):
    """It takes files, folders, SQLite files and URLs; no step runs, and no run changes."""
    ran: list[str] = []
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    files = anyio.run(partial(keep, url, tmp_path, made(old(), ran)))
    ran.clear()

    assert sorted(path.name for path in files) == ["Counting-ended.jsonl", "Order-waits%2F1.jsonl"]
    for source in (files, tmp_path, tmp_path / "runs.db", url, [str(path) for path in files]):
        report = replay(source, made(old(), ran))
        assert (len(report.runs), report.others, report.differences) == (1, 1, ())
        assert str(report) == "Order can continue all of 1 stored runs"
        with pytest.raises(ReplayError, match="the step approve is gone") as refused:
            replay(source, made(without_the_last_step(), ran))
        assert str(refused.value).startswith(
            "Order cannot continue 1 of 1 stored runs:\n* waits/1 ("
        )
        assert (
            replay(source, made(without_the_last_step(), ran), raises=False).runs[0].difference
            is not None
        )
    assert replay(files, Counting()).runs[0].status == "completed"
    assert ran == []


def test_replay_within_an_event_loop(tmp_path):
    """A test that is a coroutine can call it as well; it does not need the loop."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"

    async def main():
        await keep(url, tmp_path, made(old(), []))
        return replay(url, made(old(), []))

    assert len(anyio.run(main).runs) == 1


def test_replay_refuses_what_it_cannot_check(tmp_path):
    """A check of nothing is none: no file, no run of the workflow, another file, a later format."""
    path = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match=r"found no run of Asking in .* \(runs of: none\)"):
        replay(tmp_path, Asking())
    with pytest.raises(FileNotFoundError):
        replay(tmp_path / "none.db", Asking())
    with pytest.raises(TypeError, match="expected a workflow object"):
        replay(tmp_path, Asking)
    path.write_text("nothing")
    with pytest.raises(StoreFormatError, match="cannot be read as the journal of a run"):
        replay(path, Asking())
    path.write_text('{"sluicegate": 2}\n')
    with pytest.raises(
        StoreFormatError, match="is of format 2, and this release reads formats up to 1"
    ):
        replay(path, Asking())
