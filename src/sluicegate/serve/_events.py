"""Notices of the server in the streams that it sends, as events."""

from __future__ import annotations

from sluicegate._events import InternalEvent


class StreamGap(InternalEvent):
    """A reader was too slow, and missed events; the next event follows behind them.

    Attributes:
        missed: How many events it missed.
    """

    missed: int


class ServerStopping(InternalEvent):
    """The server stops. A stream that ends without a terminal event afterwards can be read on later.

    Attributes:
        grace: The most seconds for which the stream continues.
    """

    grace: float
