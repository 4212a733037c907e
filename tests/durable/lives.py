"""Lives of a run without a store: a disk that is cut before or after any record.

``live_on(...)`` runs a flow or a random program, cuts its disk at given records, unwinds the old life
unobserved, rebuilds the run from what is on the disk, and goes on in a new life until the end.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from sluicegate._engine.journal_records import Child, Done, Failed, decode_record
from sluicegate._engine.replay import PastRun
from sluicegate._engine.run_journal import JournalWriter, RunJournal
from sluicegate._engine.snapshot_write import take_snapshot
from sluicegate._handler import run_of
from tests.durable.stored import EPOCH, wall
from tests.helpers import through_json


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sluicegate import Workflow, WorkflowHandler


@attrs.frozen
class Cut:
    """Where a life ends: at its n-th record, which is on the disk then or not."""

    record: int
    keeps: bool
    #: How many of the records before it that were not confirmed are lost.
    loses: int = 0


@attrs.define
class Disk:
    """What survives: a snapshot, the time of it, and the records since."""

    base: dict[str, Any] | None = None
    at: float = EPOCH
    children: int = 0
    records: list[bytes] = attrs.Factory(list)
    #: Every record of all lives that was durable at the end of its life.
    history: list[bytes] = attrs.Factory(list)
    lives: int = 0

    def done(self) -> set[str]:
        """Return the attempts whose outcome is recorded: the key of a delivery, or of an attempt."""
        found: set[str] = set()
        runs: dict[int, str] = {}
        if self.base is not None:
            runs[0] = self.base["run_id"]
        for data in self.history:
            record = decode_record(data)
            if isinstance(record, Child):
                runs[record.child] = record.id
            elif isinstance(record, Done):
                found.add(f"{runs[record.c]}/{record.k}")
            elif isinstance(record, Failed):
                key = f"{runs[record.c]}/{record.k}"
                found.add(f"{key}/{record.n}" if record.do == "retry" else key)
        return found


class Life:
    """One life: the sink of its journal."""

    def __init__(self, disk: Disk, cut: Cut | None, seed: int, at_cut: Callable[[], None]) -> None:
        self.disk = disk
        self.cut = cut
        self.is_cut = False
        self.scope = anyio.CancelScope()
        self.appended: list[bytes] = []
        self.chance = random.Random(f"life {disk.lives} of {seed}")
        self._at_cut = at_cut
        self._unconfirmed = anyio.Event()
        self.writer = JournalWriter(self, wall=wall, life=disk.lives + 1, children=disk.children)

    def append(
        self, sequence: int, at: float, kind: str, data: bytes, shown: int, consumes: int | None
    ) -> None:
        """Take a record, unless the disk is cut; cut it here if it is time."""
        if self.is_cut:
            return
        self.appended.append(data)
        if self.cut is not None and len(self.appended) == self.cut.record:
            self._end(self.cut)
        self._unconfirmed.set()

    def _end(self, cut: Cut) -> None:
        self.is_cut = True
        if not cut.keeps:
            self.appended.pop()
        lost = min(cut.loses, len(self.appended) - self.writer.durable)
        if lost:
            del self.appended[-lost:]
        self._at_cut()
        self.scope.cancel()

    async def confirm(self) -> None:
        """Confirm records after a random while, and a random number of them at a time."""
        while not self.is_cut:
            await self._unconfirmed.wait()
            self._unconfirmed = anyio.Event()
            while self.writer.durable < len(self.appended) and not self.is_cut:
                for _ in range(self.chance.choice((0, 0, 1, 2, 5))):
                    await anyio.lowlevel.checkpoint()
                if self.chance.random() < 0.1:
                    await anyio.sleep(self.chance.choice((0.001, 0.01)))
                if not self.is_cut:
                    self.writer.commit_reached(
                        self.chance.randint(self.writer.durable + 1, len(self.appended))
                    )

    def open(self, workflow: Workflow[Any], begin: Callable[[], WorkflowHandler[Any]]) -> Any:
        """Return the handler of this life, with a journal: of a new run, or of the rebuilt one.

        Where the journal has what decides the end of the run, return its result and its status.
        """
        disk = self.disk
        disk.lives += 1
        if disk.base is None:
            handler = begin()
            run = run_of(handler)
            disk.base = through_json(take_snapshot(run))
        else:
            classes = workflow._Workflow__options.classes  # type: ignore[attr-defined]
            past = PastRun(workflow._built(), classes, disk.base, disk.at)
            for data in disk.records:
                past.apply(decode_record(data))
            if past.machine.stop is not None:
                return past.machine.stop.result, "completed"
            if past.cancelled is not None or past.end is not None:
                return None, "cancelled" if past.end is None else past.end.status
            disk.base = through_json(past.snapshot(wall(), has_crashed=True))
            handler = workflow.resume(disk.base)
            run = run_of(handler)
        disk.at, disk.records = wall(), []
        run.journal = RunJournal(self.writer, run)
        return handler

    def close(self) -> None:
        """Put what was appended on the disk."""
        self.disk.records = self.appended
        found = [decode_record(data) for data in self.appended]
        self.disk.children += sum(isinstance(record, Child) for record in found)
        self.disk.history += self.appended


async def live_on(
    make: Callable[[], tuple[Workflow[Any], Callable[[], WorkflowHandler[Any]]]],
    drive: Callable[[Any, Any], Awaitable[Any]],
    cuts: list[Cut],
    seed: int,
    new_life: Callable[[Disk], Callable[[], None]],
) -> tuple[Any, Disk, int]:
    """Run until the end of the run, in as many lives as there are cuts that hit.

    Args:
        make: Returns the workflow of a life, and what begins a run of it.
        drive: Drives a run to its end, and returns what came of it.
        cuts: Where the lives end.
        seed: Decides when records are confirmed.
        new_life: Called at the beginning of each life; returns what to call at its cut.

    Returns:
        What came of the last life, the disk, and how many records that life had.
    """
    disk = Disk()
    for cut in [*cuts, None]:
        life = Life(disk, cut, seed, new_life(disk))
        found = None
        workflow, begin = make()
        async with anyio.create_task_group() as group:
            with life.scope:
                group.start_soon(life.confirm)
                handler = life.open(workflow, begin)
                try:
                    found = (
                        handler if isinstance(handler, tuple) else await drive(workflow, handler)
                    )
                except Exception:
                    if not life.is_cut:  # what a dead life raises, nobody sees
                        raise
            group.cancel_scope.cancel()
        life.close()
        if not life.is_cut:
            return found, disk, len(life.appended)
    raise AssertionError("the last life is cut nowhere")
