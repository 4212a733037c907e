"""The time of a run: its timeout, what it has taken, and when the clock stands still."""

from __future__ import annotations

from math import inf, nextafter
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from sluicegate._loop import Backend


class Clock:
    """The time of one run, on the backend's clock."""

    __slots__ = (
        "_left",
        "_started_at",
        "_taken",
        "_timeout",
        "deadline",
        "ended_at",
        "outer",
        "scope",
    )

    def __init__(self, timeout: float | None, taken: float) -> None:
        self._timeout = timeout
        #: Seconds that the run had taken before it began here; in the end, those of all of it.
        self._taken = taken
        self._started_at: float | None = None
        #: Seconds left while the clock stands still.
        self._left: float | None = None
        #: The cancel scope that the timeout cancels; None without a timeout and after the end.
        self.scope: Any = None
        #: The last moment that belongs to the run.
        self.deadline = inf
        #: The nearest deadline around the run.
        self.outer = inf
        #: When the run ended, on the backend's clock.
        self.ended_at = 0.0

    def begin(self, backend: Backend, scope: Any, *, has_branches: bool) -> None:
        """Have ``scope`` cancelled when the timeout passes."""
        self._started_at = backend.current_time()
        if has_branches:  # only who waits for a branch asks
            self.outer = backend.current_effective_deadline()
        if self._timeout is not None:
            self.scope = scope
            self._set(self._started_at + max(self._timeout - self._taken, 0.0))

    def _set(self, deadline: float) -> None:
        self.deadline = deadline
        # The deadline itself still belongs to the run: a stop event at that very moment wins.
        self.scope.deadline = nextafter(deadline, inf)

    def is_nearer(self, deadline: float) -> bool:
        """Whether a deadline comes before the timeout and before all that is around the run."""
        return deadline < min(self.outer, nextafter(self.deadline, inf))

    def stand(self, backend: Backend, *, still: bool) -> None:
        """Have the clock of the timeout stand still, or go on; not once the timeout has passed."""
        now = backend.current_time()
        if self.scope is None or now > self.deadline:
            return
        if still and self._left is None:
            self._left = self.deadline - now
            self._set(inf)
        elif self._left is not None and not still:
            self._set(now + self._left)
            self._left = None

    def taken(self, backend: Backend | None) -> float:
        """Return the seconds that the run has taken, but for those in which the clock stood."""
        if self._started_at is None or backend is None:
            return self._taken
        return self._taken_at(backend.current_time())

    def _taken_at(self, now: float) -> float:
        if self._started_at is None:
            return self._taken
        if self._timeout is None:
            return self._taken + now - self._started_at
        return max(self._timeout - (self.deadline - now if self._left is None else self._left), 0.0)

    def end(self, backend: Backend) -> None:
        """Keep what was taken, and let go of everything."""
        self.ended_at = backend.current_time()
        self._taken = self._taken_at(self.ended_at)
        self._started_at = self.scope = None
