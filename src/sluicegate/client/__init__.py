"""A client for workflows on a server: the handlers of their runs, over HTTP, on Trio and asyncio.

Requires httpx2: ``pip install "sluicegate[client]"``.
"""

from __future__ import annotations

from sluicegate.client._client import Client
from sluicegate.client._data import AnswerKind, RemoteQuestion, RemoteRun
from sluicegate.client._errors import (
    ClientError,
    ConflictError,
    InvalidRequestError,
    NotAllowedError,
    NotFoundError,
    RunFailedError,
    ServerUnreachableError,
    UnavailableError,
)
from sluicegate.client._events import RemoteEvent, RemoteQuestionEvent, RemoteStopEvent
from sluicegate.client._handler import RemoteHandler
from sluicegate.client._stream import RemoteStream


__all__ = [
    "AnswerKind",
    "Client",
    "ClientError",
    "ConflictError",
    "InvalidRequestError",
    "NotAllowedError",
    "NotFoundError",
    "RemoteEvent",
    "RemoteHandler",
    "RemoteQuestion",
    "RemoteQuestionEvent",
    "RemoteRun",
    "RemoteStopEvent",
    "RemoteStream",
    "RunFailedError",
    "ServerUnreachableError",
    "UnavailableError",
]
