"""The clock of a run: its timeout, its elapsed time, and the pauses of the timeout."""

from __future__ import annotations

from math import inf, nextafter
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from sluicegate._loop import Backend


class Clock:
    """The time of one run, on the backend's clock."""

    __slots__ = (
        "_left",
        "_taken",
        "_timeout",
        "deadline",
        "ended_at",
        "outer",
        "scope",
        "started_at",
    )

    def __init__(self, timeout: float | None, taken: float) -> None:
        self._timeout = timeout
        #: Seconds that the run had taken before it began here; in the end, those of all of it.
        self._taken = taken
        #: When it began here, on the backend's clock; None before and after.
        self.started_at: float | None = None
        #: Seconds left while the clock is paused.
        self._left: float | None = None
        #: The cancel scope that the timeout cancels; None without a timeout and after the end.
        self.scope: Any = None
        #: The last moment that belongs to the run.
        self.deadline = inf
        #: The nearest deadline around the run.
        self.outer = inf
        #: When the run ended, on the backend's clock.
        self.ended_at = 0.0

    @property
    def is_paused(self) -> bool:
        """Whether the timeout is paused, because the run is idle."""
        return self._left is not None

    def begin(self, backend: Backend, scope: Any, *, has_branches: bool) -> None:
        """Have ``scope`` cancelled when the timeout passes."""
        self.started_at = backend.current_time()
        if has_branches:  # only who waits for a branch asks
            self.outer = backend.current_effective_deadline()
        if self._timeout is not None:
            self.scope = scope
            self._set(self.started_at + max(self._timeout - self._taken, 0.0))

    def _set(self, deadline: float) -> None:
        self.deadline = deadline
        # A stop event exactly at the deadline is in time, so the scope expires just after it.
        self.scope.deadline = nextafter(deadline, inf)

    def is_nearer(self, deadline: float) -> bool:
        """Whether a deadline is earlier than the timeout and the deadlines of the scopes around the run."""
        return deadline < min(self.outer, nextafter(self.deadline, inf))

    def stand(self, backend: Backend, *, still: bool) -> None:
        """Pause or resume the clock of the timeout; no effect after the timeout has passed."""
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
        """Return the seconds that the run has taken, without those in which the clock was paused."""
        if self.started_at is None or backend is None:
            return self._taken
        return self._taken_at(backend.current_time())

    def _taken_at(self, now: float) -> float:
        if self.started_at is None:
            return self._taken
        if self._timeout is None:
            return self._taken + now - self.started_at
        return max(self._timeout - (self.deadline - now if self._left is None else self._left), 0.0)

    def end(self, backend: Backend) -> None:
        """Keep what was taken, and let go of everything."""
        self.ended_at = backend.current_time()
        self._taken = self._taken_at(self.ended_at)
        self.started_at = self.scope = None
