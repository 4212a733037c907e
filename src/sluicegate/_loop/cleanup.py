"""Resources that a step opened: registered here, and closed when the step ends."""

from __future__ import annotations

from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from collections.abc import Awaitable


class Closable(Protocol):
    """An object with an ``aclose`` that may be called twice."""

    def aclose(self) -> Awaitable[None]:
        """Close at once; nothing stays open, even if the current task is cancelled."""
        ...


class CleanupList(Protocol):
    """The list of resources to close when a step ends."""

    def add(self, resource: Closable) -> None:
        """Close ``resource`` when the step ends, however it ends."""
        ...

    def discard(self, resource: Closable) -> None:
        """Remove ``resource``, which is closed already. Unknown resources are ignored."""
        ...


#: Set by the engine for every invocation of a step, in the context variables of that invocation.
current_cleanup: ContextVar[CleanupList | None] = ContextVar("sluicegate_cleanup", default=None)


def shielded_scope(seconds: float = inf) -> Any:
    """Return a cancel scope for a clean-up: shielded, and over after so many seconds."""
    backend = current_backend()
    return backend.cancel_scope(shield=True, deadline=backend.current_time() + seconds)
