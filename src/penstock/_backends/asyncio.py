"""The backend for asyncio: AnyIO's task groups and scopes, so that cancellation means the same.

The exceptions raised at the ends of a stream are AnyIO's and Trio's at once: whoever runs a
workflow under asyncio may catch the names of either library.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import trio


if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream


class EndOfChannel(trio.EndOfChannel, anyio.EndOfStream):
    """Raised when a stream has ended: Trio's and AnyIO's exception in one."""


class ClosedResourceError(trio.ClosedResourceError, anyio.ClosedResourceError):
    """Raised when a closed stream is used: Trio's and AnyIO's exception in one."""


class BusyResourceError(trio.BusyResourceError, anyio.BusyResourceError):
    """Raised when two tasks read one reader: Trio's and AnyIO's exception in one."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0])


class WouldBlock(trio.WouldBlock, anyio.WouldBlock):
    """Raised by ``send_nowait`` where ``send`` would wait: Trio's and AnyIO's in one."""


_open_stream = anyio.create_memory_object_stream[Any]


class AsyncioInbox:
    """An AnyIO memory stream with both ends in one hand."""

    __slots__ = ("_receive", "_send", "put", "take")

    def __init__(self) -> None:
        ends: tuple[MemoryObjectSendStream[Any], MemoryObjectReceiveStream[Any]] = _open_stream(inf)
        self._send, self._receive = ends
        self.put = self._send.send_nowait
        self.take = self._receive.receive_nowait

    def close(self) -> None:
        # Both ends: AnyIO warns about an end that is collected open, and keeps the items of a
        # receiver that was closed first.
        self._send.close()
        while self._receive.statistics().current_buffer_used:
            self._receive.receive_nowait()
        self._receive.close()


class AsyncioWaiter:
    """Park and wake one task."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class AsyncioBackend:
    """See :class:`penstock._backends.Backend`."""

    name = "asyncio"
    runs_steps_in_host = False
    Cancelled: type[BaseException] = asyncio.CancelledError
    EndOfChannel: type[Exception] = EndOfChannel
    ClosedResourceError: type[Exception] = ClosedResourceError
    BusyResourceError: type[Exception] = BusyResourceError
    WouldBlock: type[Exception] = WouldBlock

    checkpoint = staticmethod(anyio.lowlevel.checkpoint)
    checkpoint_if_cancelled = staticmethod(anyio.lowlevel.checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(anyio.lowlevel.cancel_shielded_checkpoint)
    current_time = staticmethod(anyio.current_time)
    open_inbox = AsyncioInbox
    waiter = AsyncioWaiter

    open_nursery = staticmethod(anyio.create_task_group)

    @staticmethod
    def cancel_scope(*, deadline: float = inf, shield: bool = False) -> anyio.CancelScope:
        return anyio.CancelScope(deadline=deadline, shield=shield)

    @staticmethod
    def cancel(scope: anyio.CancelScope, reason: str) -> None:
        try:
            scope.cancel(reason)
        except TypeError:  # AnyIO before 4.11 takes no reason
            scope.cancel()

    @staticmethod
    def caller_from_threads() -> Callable[[Callable[[], object]], object]:
        return asyncio.get_running_loop().call_soon_threadsafe

    @staticmethod
    def is_cancelled() -> bool:
        return anyio.current_effective_deadline() == -inf

    @staticmethod
    def is_natively_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    @staticmethod
    def current_task() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    @staticmethod
    def rename_task(task: asyncio.Task[Any], name: str) -> None:
        task.set_name(name)

    @staticmethod
    def task_name(task: asyncio.Task[Any]) -> str:
        return task.get_name()
