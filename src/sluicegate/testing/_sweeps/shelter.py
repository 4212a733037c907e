"""Shielded clean-up with a time limit: how far the clock may jump without ending one.

While such a clean-up waits for nothing but its turn, no time passes in truth. A clock that jumped
past its limit would report a clean-up that took too long where there is none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator


def seconds_to_jump(now: float, most: float, deadlines: Iterable[float]) -> float:
    """Return how many seconds the clock may jump: half of the way to the first deadline.

    Args:
        now: The time.
        most: How many seconds at most.
        deadlines: Those of shielded clean-up.
    """
    left = (when - now for when in deadlines if now < when < math.inf)
    return min(most, min(left, default=math.inf) / 2)


def sheltered_on_trio(runner: Any) -> Iterator[float]:
    """Yield the deadlines of scopes that are shielded, or inside of one that is.

    The one place that knows how Trio keeps its deadlines.
    """
    for _, _, scope in runner.deadlines._heap:
        status: Any = scope._cancel_status
        while status is not None:
            if status._scope.shield:
                yield scope.deadline
                break
            status = status._parent


def sheltered_on_asyncio(loop: asyncio.AbstractEventLoop) -> Iterator[float]:
    """Yield the deadlines of AnyIO's scopes that are shielded, or inside of one that is.

    The one place that knows how AnyIO keeps its deadlines: each is a timer of the loop.
    """
    timers: Any = getattr(loop, "_scheduled", ())
    for timer in timers:
        scope: Any = getattr(timer._callback, "__self__", None)
        if timer.cancelled() or type(scope).__name__ != "CancelScope":
            continue
        outer = scope
        while outer is not None:
            if outer.shield:
                yield scope.deadline
                break
            outer = outer._parent_scope
