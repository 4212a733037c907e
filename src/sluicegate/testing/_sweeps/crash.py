"""Simulated crashes of a scenario's process: writes that are lost, and data that survives."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, final


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from sluicegate.durable import RunStore
    from sluicegate.durable._memory import MemoryJournal, MemoryStore


#: The share of the unconfirmed writes that a cut loses: all, half or none.
Loss = Literal["pending", "half", "nothing"]
LOSSES: Final = ("pending", "half", "nothing")

#: The fraction of the unconfirmed writes that is written all the same.
_KEPT: Final[dict[Loss, float]] = {"pending": 0.0, "half": 0.5, "nothing": 1.0}

#: The wall clock at the beginning of virtual time.
EPOCH: Final = 1_800_000_000.0


@final
class CrashLedger:
    """The external effects of a scenario, which survive its crashes; ``trial.crash.ledger``.

    Let the scenario append an entry for each effect that others would notice. The entries of all
    lives are in one list. A life that was cut off appends nothing, so its clean-up, which a dead
    process would not have run, leaves no trace.
    """

    __slots__ = ("_crash", "_entries")

    def __init__(self, crash: Crash, entries: list[Any]) -> None:
        self._crash = crash
        self._entries = entries

    def append(self, entry: Any) -> None:
        """Append an entry. In a life that was cut off, this has no effect."""
        if not self._crash.is_cut:
            self._entries.append(entry)

    def __iter__(self) -> Iterator[Any]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<CrashLedger of {len(self._entries)} entries>"


@final
class CrashStore:
    """A store of durable runs that survives the crashes of a sweep; ``trial.crash.store``.

    It is in memory and shared by all lives of a scenario. Pass it to ``open_run_store``. After the cut,
    writes of that life have no effect, its reads fail, and its runs can be claimed immediately.
    """

    __slots__ = ("_crash",)

    def __init__(self, crash: Crash) -> None:
        self._crash = crash

    def open(self) -> AbstractAsyncContextManager[MemoryJournal]:
        """Open the store for this life."""
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[MemoryJournal]:
        crash = self._crash
        store: MemoryStore = crash.disk("sluicegate runs", crash.new_store)
        async with store.open() as journal:
            crash.at_cut(lambda: journal.cut(_KEPT[crash.loses]))
            yield journal

    def wall(self) -> float:
        """Return the wall-clock time, which follows virtual time."""
        return self._crash.wall()


@final
class Crash:
    """One life of a scenario under ``sweep(kinds="crash")``; ``trial.crash``.

    A life ends where the sweep cuts it off; from then on its store and its ledger ignore writes. The
    scenario is then called again, with a trial whose ``crash`` is the next life.
    """

    __slots__ = ("_at_cut", "_disk", "_entries", "_now", "is_cut", "ledger", "life", "loses")

    def __init__(
        self,
        loses: Loss = "pending",
        now: Callable[[], float] = float,
        *,
        life: int = 1,
        disk: dict[str, Any] | None = None,
        entries: list[Any] | None = None,
    ) -> None:
        #: The number of this life; the first is 1.
        self.life: int = life
        #: The external effects of this life and all earlier ones.
        self._entries: list[Any] = [] if entries is None else entries
        self.ledger: CrashLedger = CrashLedger(self, self._entries)
        #: Whether this life was cut off, and only unwinds.
        self.is_cut: bool = False
        #: The share of the unconfirmed writes that the cut loses.
        self.loses: Loss = loses
        self._now = now
        self._disk: dict[str, Any] = {} if disk is None else disk
        self._at_cut: list[Callable[[], None]] = []

    def disk(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the object kept under a name in all lives of the scenario; ``make`` creates it."""
        if name not in self._disk:
            self._disk[name] = make()
        return self._disk[name]

    @property
    def store(self) -> CrashStore:
        """The store for the durable runs of the scenario."""
        return CrashStore(self)

    def open_runs(self, **options: Any) -> RunStore:
        """Open the store of durable runs for this life: ``async with trial.crash.open_runs() as runs:``.

        Args:
            **options: As for :func:`sluicegate.durable.open_run_store`.
        """
        from sluicegate.durable import open_run_store  # noqa: PLC0415 - imported on demand

        return open_run_store(self.store.open(), wall=self.wall, **options)

    def new_store(self) -> MemoryStore:
        """Return a new store in memory, whose clock follows virtual time."""
        from sluicegate.durable._memory import MemoryStore  # noqa: PLC0415 - imported on demand

        return MemoryStore(clock=self.wall)

    def wall(self) -> float:
        """Return the wall-clock time, in seconds since the epoch; it follows virtual time."""
        return EPOCH + self._now()

    def at_cut(self, call: Callable[[], None]) -> None:
        """Call a function when this life is cut off, to disable its writes."""
        self._at_cut.append(call)

    def cut(self) -> None:
        """Cut this life off; called by the sweep."""
        if self.is_cut:
            return
        self.is_cut = True
        for call in self._at_cut:
            call()
        self._at_cut.clear()

    def next_life(self) -> Crash:
        """Return the life that begins after this one was cut off; called by the sweep."""
        return Crash(
            self.loses, self._now, life=self.life + 1, disk=self._disk, entries=self._entries
        )
