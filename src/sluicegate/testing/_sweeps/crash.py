"""What a crash of the scenario's process takes away, and what it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, final


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


#: What the cut drops of the writes that had not been confirmed: all, none, or half of them.
Loss = Literal["pending", "half", "nothing"]
LOSSES: Final = ("pending", "half", "nothing")


@final
class CrashLedger:
    """What the world has seen of a scenario: entries that no crash takes back; ``trial.crash.ledger``.

    Let the scenario append an entry for each effect that others would notice. The entries of all
    lives are in one list. A life that was cut off appends nothing any more, so its clean-up,
    which a dead process would not have made, leaves no trace.
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
class Crash:
    """One life of a scenario under ``sweep(kinds="crash")``; ``trial.crash``.

    A life ends where the sweep cuts it off: its store and its ledger take nothing any more. The
    scenario is called again, with a trial whose ``crash`` is the next life.
    """

    __slots__ = ("_at_cut", "_disk", "_entries", "is_cut", "ledger", "life", "loses")

    def __init__(
        self,
        loses: Loss = "pending",
        *,
        life: int = 1,
        disk: dict[str, Any] | None = None,
        entries: Iterable[Any] = (),
    ) -> None:
        #: The number of this life; the first is 1.
        self.life: int = life
        #: What the world has seen, in this life and before.
        self._entries = entries if isinstance(entries, list) else list(entries)
        self.ledger: CrashLedger = CrashLedger(self, self._entries)
        #: Whether this life was cut off, and only unwinds.
        self.is_cut: bool = False
        #: What the cut drops of the writes that had not been confirmed.
        self.loses: Loss = loses
        self._disk: dict[str, Any] = {} if disk is None else disk
        self._at_cut: list[Callable[[], None]] = []

    def disk(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what the scenario keeps under a name, in all its lives; ``make`` makes it."""
        if name not in self._disk:
            self._disk[name] = make()
        return self._disk[name]

    def at_cut(self, call: Callable[[], None]) -> None:
        """Have a function called when this life is cut off: it makes its writes have no effect."""
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
        return Crash(self.loses, life=self.life + 1, disk=self._disk, entries=self._entries)
