"""What a work is: its programs' parameters, its sizes, and the numbers that it answers with."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


Library = Literal["trio", "asyncio"]

# Who takes part besides the peers, those that are compared next to each other.
SYSTEMS = ("sluicegate-trio", "trio", "sluicegate-asyncio", "anyio", "asyncio")
BY_HAND: dict[Library, str] = {"trio": "trio", "asyncio": "anyio"}


def about(total: int) -> Callable[[int], int]:
    """So many rounds that all together do *total*, from 3 to 20."""
    return lambda size: max(3, min(20, total // max(size, 1)))


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a work's answer, and what is told of those of several processes."""

    key: str
    unit: str
    title: str = ""
    of_all: Callable[[Sequence[float]], float] = statistics.median


@dataclass(frozen=True, slots=True)
class Work:
    """
    The module *name* with its parameters, of which *size* grows.

    Goals are judged at the sizes in *judged*, or at those of a quick run. A work whose numbers
    jump from process to process has several *turns* in each repeat. Of one that is *watched* the
    resident memory is recorded over time.
    """

    id: str
    name: str
    title: str
    size: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    metrics: tuple[Metric, ...]
    judged: tuple[int, ...]
    fixed: Mapping[str, int] = field(default_factory=dict)
    rounds: Callable[[int], int] | None = None
    systems: tuple[str, ...] = SYSTEMS
    peers: bool = True
    turns: int = 1
    repeats: int | None = None
    watched: bool = False

    def of_all(self, number: str) -> Callable[[Sequence[float]], float]:
        """What is told of a number of several processes: the median, if its metric says nothing else."""
        return next((m.of_all for m in self.metrics if m.key == number), statistics.median)

    def parameters(self, size: int, *, peer: bool = False) -> dict[str, int]:
        """What a program is called with; a peer has one round, and of what is long no warm-up."""
        rounds = {} if self.rounds is None else {"rounds": self.rounds(size)}
        if peer and rounds:
            rounds["rounds"] = 1 if size <= 1_000 else 0
        elif peer and "rounds" in self.fixed:
            rounds["rounds"] = 1
        return {**({self.size: size} if self.size else {}), **self.fixed, **rounds}
