"""An open client: its requests, the classes that it knows, and the tasks that follow runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sluicegate._errors import WorkflowRuntimeError
from sluicegate._loop import current_backend
from sluicegate.client._feed import Feed
from sluicegate.client._stream import RemoteStream


if TYPE_CHECKING:
    from sluicegate._loop import Nursery
    from sluicegate.client._events import Classes
    from sluicegate.client._feed import Start
    from sluicegate.client._http import Transport

#: How many events the block of a run keeps for its late readers.
HISTORY = 1_000


class Session:
    """What handlers use of their client.

    Args:
        transport: Sends requests.
        classes: The classes of events that it was given.
        reconnect_for: Seconds for which a reader tries to connect again.
    """

    def __init__(self, transport: Transport, classes: Classes, reconnect_for: float) -> None:
        self._transport = transport
        self.classes: Classes = classes
        self._reconnect_for = reconnect_for
        #: The nursery of the feeds of single readers; None while the client is not open.
        self.nursery: Nursery | None = None
        self._feeds: set[Feed] = set()

    @property
    def transport(self) -> Transport:
        """Sends requests.

        Raises:
            WorkflowRuntimeError: The client is not open.
        """
        self._open_nursery()
        return self._transport

    def _open_nursery(self) -> Nursery:
        if self.nursery is None:
            msg = "the client is not open; expected its use in `async with Client(url) as client: ...`"
            raise WorkflowRuntimeError(msg)
        return self.nursery

    def feed(self, run_id: str, start: Start | None) -> Feed:
        """Return the feed of a run that a block is about to start."""
        return Feed(
            self.transport,
            self.classes,
            run_id,
            start=start,
            history=HISTORY,
            reconnect_for=self._reconnect_for,
        )

    def open_stream(self, run_id: str, *, after: str, internal: bool = False) -> RemoteStream:
        """Return a reader with a separate connection."""
        nursery = self._open_nursery()
        feed = Feed(
            self.transport,
            self.classes,
            run_id,
            after=after,
            internal=internal,
            reconnect_for=self._reconnect_for,
        )
        stream = RemoteStream(feed, owns=True)
        self._feeds.add(feed)
        nursery.start_soon(self._follow, feed, name=f"read the run {run_id}")
        return stream

    async def _follow(self, feed: Feed) -> None:
        try:
            await feed.follow()
        finally:
            self._feeds.discard(feed)

    def stop(self) -> None:
        """Refuse further use, and end the readers. Not a checkpoint."""
        self.nursery = None
        for feed in self._feeds:
            current_backend().cancel(feed.scope, "the client was closed")

    async def wait_for_readers(self) -> None:
        """Wait until the readers have ended. A checkpoint."""
        for feed in tuple(self._feeds):
            await feed.wait_until_left()
