"""The event loop under a call: the few operations that talking to a model needs of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio
from trio.lowlevel import in_trio_task


if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self


_T = TypeVar("_T")


# asyncio and AnyIO are imported where Trio is found not to be running, so that a Trio program never
# pays for them here.


class Scope(Protocol):
    """A cancel scope, Trio's or AnyIO's."""

    @property
    def cancelled_caught(self) -> bool: ...

    def cancel(self) -> object: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> bool | None: ...


class Flag(Protocol):
    """An event that happens once, Trio's or AnyIO's."""

    def set(self) -> object: ...

    async def wait(self) -> object: ...


def current_run() -> object:
    """Identify the running event loop; the object can be hashed and weakly referenced."""
    if in_trio_task():
        return trio.lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415

    return asyncio.get_running_loop()


def is_running() -> bool:
    """Tell whether this thread runs an event loop, which a blocking call would stop."""
    if in_trio_task():
        return True
    import asyncio  # noqa: PLC0415

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def open_scope(*, shield: bool = False, seconds: float = math.inf) -> Scope:
    """Make a cancel scope, shielded or not, that ends after ``seconds``."""
    if in_trio_task():
        return trio.CancelScope(shield=shield, deadline=trio.current_time() + seconds)
    import anyio  # noqa: PLC0415

    return anyio.CancelScope(shield=shield, deadline=anyio.current_time() + seconds)


def open_flag() -> Flag:
    """Make an event that happens once."""
    if in_trio_task():
        return trio.Event()
    import anyio  # noqa: PLC0415

    return anyio.Event()


def seconds_left() -> float:
    """Tell how long the scopes around the caller will let it go on; infinity where none ends."""
    if in_trio_task():
        return trio.current_effective_deadline() - trio.current_time()
    import anyio  # noqa: PLC0415

    return anyio.current_effective_deadline() - anyio.current_time()


async def checkpoint() -> None:
    """Give other tasks a turn, and a cancellation the chance to be seen."""
    if in_trio_task():
        await trio.lowlevel.checkpoint()
    else:
        import anyio.lowlevel  # noqa: PLC0415

        await anyio.lowlevel.checkpoint()


async def sleep(seconds: float) -> None:
    """Wait on the loop's own clock; a checkpoint also with nothing to wait for."""
    if in_trio_task():
        await trio.sleep(seconds)
    else:
        import anyio  # noqa: PLC0415

        await anyio.sleep(seconds)


async def run_in_thread(sync_fn: Callable[[], _T]) -> _T:
    """Run a blocking call in a thread of the loop's own pool."""
    if in_trio_task():
        return await trio.to_thread.run_sync(sync_fn)
    import anyio.to_thread  # noqa: PLC0415

    return await anyio.to_thread.run_sync(sync_fn)
