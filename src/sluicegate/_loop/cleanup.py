"""What a step has opened and nobody closed: remembered here, closed when the step ends."""

from __future__ import annotations

from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from collections.abc import Awaitable


class Closable(Protocol):
    """Anything with an ``aclose`` that may be called twice."""

    def aclose(self) -> Awaitable[None]:
        """Close at once; with the current task cancelled too, nothing may be left open."""
        ...


class CleanupList(Protocol):
    """The end of a step as the things that it opens see it."""

    def add(self, resource: Closable) -> None:
        """Have ``resource`` closed when the step ends, for whatever reason it ends."""
        ...

    def discard(self, resource: Closable) -> None:
        """Forget ``resource``: it has been closed already. Unknown resources are ignored."""
        ...


#: Set by the engine for every invocation of a step, in that invocation's own context.
current_cleanup: ContextVar[CleanupList | None] = ContextVar("sluicegate_cleanup", default=None)


def shielded_scope(seconds: float = inf) -> Any:
    """Return a cancel scope for a clean-up: shielded, and over after so many seconds."""
    backend = current_backend()
    return backend.cancel_scope(shield=True, deadline=backend.current_time() + seconds)
