"""Responses that are sent whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sluicegate._asgi import HungUpError
from sluicegate._data.json import json_of


if TYPE_CHECKING:
    from collections.abc import Mapping

    from sluicegate._asgi import Send

#: The headers of every response with data of a run.
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


def raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def respond_with(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """Send a response with this body. A checkpoint.

    Raises:
        HungUpError: The client has gone.
    """
    start = {"type": "http.response.start", "status": status, "headers": raw_headers(headers)}
    try:
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": False})
    except OSError as error:
        raise HungUpError from error


def as_json(data: Any) -> bytes:
    """Return data as JSON."""
    return json_of(data).encode("utf-8", "backslashreplace")


async def respond(
    send: Send, data: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Send an answer of JSON; none where ``data`` is None, and bytes as they are. A checkpoint.

    Raises:
        HungUpError: The client has gone.
    """
    body = data if isinstance(data, bytes) else b"" if data is None else as_json(data)
    made = {**HEADERS, **(headers or {})}
    if data is not None:
        made |= {"content-type": "application/json", "content-length": str(len(body))}
    await respond_with(send, status, body, made)
