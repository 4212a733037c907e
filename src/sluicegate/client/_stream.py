"""Readers of a run's events."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, cast, final

from sluicegate._errors import brief
from sluicegate._loop import ReceiveChannel, current_backend, enable_ki_protection
from sluicegate._streams import EventStream
from sluicegate.client._feed import is_cursor


if TYPE_CHECKING:
    from sluicegate._events import Event
    from sluicegate.client._feed import Feed, Item


@final
class RemoteStream(ReceiveChannel["Event"]):
    """One reader of the events of a run on a server: an async iterator that ends with the run.

    It gets every event after its start position that the server has kept, in order, each once, also
    across lost connections; then the terminal event; then the iteration stops. A reader that is
    cancelled while it waits loses no event and can continue. A slow reader does not hold up the run:
    the server drops events that it cannot keep, and :attr:`missed` counts them.

    Closing it (``aclose``, the exit of ``async with``, or dropping it) closes its connection, unless
    that belongs to the block of the run. It never affects the run.
    """

    __slots__ = (
        "__weakref__",
        "_before",
        "_call_soon",
        "_cursor",
        "_events",
        "_feed",
        "_missed",
        "_owns",
        "_skip",
    )

    @enable_ki_protection
    def __init__(
        self, feed: Feed, *, owns: bool, skip: str = "", events: EventStream | None = None
    ) -> None:
        backend = current_backend()
        self._feed = feed
        self._owns = owns
        self._call_soon = backend.caller_into(backend.current_loop())
        self._events = EventStream(feed.log) if events is None else events
        #: Events up to this cursor are left out.
        self._skip = skip
        begins_at_feed = owns or events is not None
        start = feed.cursor if begins_at_feed else skip
        self._cursor = start if is_cursor(start) else "0"
        self._missed = 0
        #: How many events the feed had missed where this reader begins.
        self._before = feed.missed if events is not None else 0

    @property
    def cursor(self) -> str:
        """The position behind the last event taken; ``stream_events(after=...)`` takes it.

        It is that of :attr:`sluicegate.EventStream.cursor`, and as valid in any process.
        """
        return self._cursor

    @property
    def missed(self) -> int:
        """How many events the server has dropped before this reader took them.

        After the exit of the block that owns the run, the client may drop some as well.
        """
        return self._missed + self._events.missed

    async def receive(self) -> Event:
        """Return the next event, waiting for it if necessary. A checkpoint.

        If it is cancelled, it has taken no event.

        Raises:
            trio.EndOfChannel: The run has ended and all events have been taken (under asyncio the
                exception is also an ``anyio.EndOfStream``, and likewise below).
            trio.ClosedResourceError: This reader, the block of the run or the client was closed.
            trio.BusyResourceError: Another task is waiting on this reader.
            NotFoundError: The server does not know the run.
            ServerUnreachableError: The connection was lost and could not be made again in time.
            ClientError: The server has refused the request, or sent something else than events.
        """
        while True:
            item = cast("Item", await self._events.receive())
            if item.event is None:
                if item.failure is not None:
                    raise item.failure
                raise current_backend().EndOfChannel
            if not self._skip or int(item.cursor) > int(self._skip):
                self._skip = ""  # cursors only grow
                break
            self._before = item.missed
        self._cursor = item.cursor
        self._missed = item.missed - self._before
        return item.event

    async def __anext__(self) -> Event:
        try:
            return await self.receive()
        except current_backend().EndOfChannel:
            raise StopAsyncIteration from None

    @enable_ki_protection
    def close(self) -> None:
        """Stop reading. Not a checkpoint: its connection is closed soon after."""
        self._events.close()
        if self._owns:
            current_backend().cancel(self._feed.scope, "its reader was closed")

    async def aclose(self) -> None:
        """Stop reading, and wait until the connection is closed. A checkpoint.

        Cancelled, the connection is closed nevertheless.
        """
        self.close()
        if self._owns:
            await self._feed.wait_until_left()
        else:
            await current_backend().checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self  # noqa: ASYNC910 - as a channel of Trio

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()  # noqa: ASYNC102 - the connection is closed in any case

    @enable_ki_protection
    def __del__(self) -> None:
        # The garbage collector may run in any thread, and the event loop closes the connection.
        if getattr(self, "_owns", False) and not self._feed.log.closed:
            with suppress(RuntimeError):  # the event loop has ended, and the feed with it
                self._call_soon(self._feed.scope.cancel)

    def __repr__(self) -> str:
        missed = f", {self.missed} missed" if self.missed else ""
        state = "ended" if self._feed.log.closed else "open"
        return f"<RemoteStream {state}, at {self._cursor}{missed}>"


def checked_after(after: object) -> str:
    """Return the argument of ``stream_events(after=...)`` as a cursor, or ``"now"``.

    Raises:
        ValueError: It is neither.
    """
    if type(after) is int and after >= 0:
        after = str(after)
    if isinstance(after, str) and (after == "now" or is_cursor(after)):
        return after
    msg = (
        f"after is {brief(after)}; expected the `stream.cursor` of a reader, 0 for the beginning, or "
        '"now" for the end'
    )
    raise ValueError(msg)


def read_log(feed: Feed, after: str) -> RemoteStream | None:
    """Return a reader of what a feed keeps; None if it has dropped something that is wanted."""
    log: Any = feed.log
    if after == "now":
        return RemoteStream(feed, owns=False, events=EventStream(log, after=log.next - 1))
    if log.oldest() > 1:
        return None
    return RemoteStream(feed, owns=False, skip="" if after == "0" else after)
