"""The seam to the two event loops: about a dozen operations, native on Trio, AnyIO on asyncio.

Outside this package nothing of the engine imports ``trio`` or ``anyio``. Under Trio no AnyIO call
is made, and neither AnyIO nor asyncio is imported before a run first starts under asyncio.
"""

from __future__ import annotations

import sys

from outcome import Error
from trio.abc import ReceiveChannel, SendChannel
from trio.lowlevel import (
    currently_ki_protected,
    disable_ki_protection,
    enable_ki_protection,
    in_trio_task,
)

from sluicegate._loop.seam import Backend, Inbox, Nursery, Waiter


__all__ = [
    "Backend",
    "Error",
    "Inbox",
    "Nursery",
    "ReceiveChannel",
    "SendChannel",
    "Waiter",
    "backend_named",
    "current_backend",
    "currently_ki_protected",
    "disable_ki_protection",
    "enable_ki_protection",
    "in_event_loop",
    "is_current_loop",
]


def current_backend() -> Backend:
    """Return the backend of the event loop that the caller runs in.

    :raises RuntimeError: outside any event loop.
    """
    if in_trio_task():
        return backend_named("trio")
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            return backend_named("asyncio")
    msg = (
        "a workflow runs in an event loop, and there is none here; "
        "expected a call from inside trio.run(main), asyncio.run(main()) or sluicegate.run(main)"
    )
    raise RuntimeError(msg)


def in_event_loop() -> bool:
    """Whether the caller runs in an event loop, which a blocking call would stop."""
    try:
        current_backend()
    except RuntimeError:
        return False
    return True


def is_current_loop(loop: object) -> bool:
    """Whether the caller runs in this event loop, as ``backend.current_loop()`` returned it.

    It does not where the coroutines of an abandoned loop are closed.
    """
    try:
        return current_backend().current_loop() is loop
    except RuntimeError:
        return False


_loaded: dict[str, Backend] = {}


def backend_named(name: str) -> Backend:
    """Return the backend called ``"trio"`` or ``"asyncio"``, imported on first use."""
    backend = _loaded.get(name)
    if backend is None:
        if name == "trio":
            from sluicegate._loop.trio import TrioBackend  # noqa: PLC0415

            backend = TrioBackend()
        else:
            from sluicegate._loop.asyncio import AsyncioBackend  # noqa: PLC0415

            backend = AsyncioBackend()
        _loaded[name] = backend
    return backend
