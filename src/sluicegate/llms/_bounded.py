"""Bodies of responses: inflated in pieces, so that none blocks the event loop or fills memory."""

from __future__ import annotations

import contextlib
import functools
import sys
import zlib
from typing import TYPE_CHECKING, Any

import openai

from sluicegate._loop import current_backend
from sluicegate._loop.cleanup import shielded_scope


if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


#: The bytes of a reply that is not a stream, and of one event of a stream, once inflated.
MOST_BYTES = 32 * 2**20

#: The encodings that a request accepts; those of other names cannot be inflated in pieces.
ENCODINGS = "gzip, deflate"

#: The number of bytes inflated between two checkpoints.
_PIECE = 64 * 2**10

_EVENT_STREAM = "text/event-stream"


def library_of(kind: Any) -> Any:
    """Return the library (httpx or httpx2) of a class of clients or responses."""
    # The root class belongs to the library, even if a subclass does not.
    root = kind.__mro__[-2]
    return sys.modules[root.__module__.partition(".")[0]]


def content_type(response: Any) -> str:
    """Return the content type of a response, without its parameters."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def is_event_stream(response: Any) -> bool:
    """Return whether a response declares a stream of events."""
    return content_type(response) == _EVENT_STREAM


async def bound(response: Any) -> None:  # noqa: ASYNC124 - a hook is awaited
    """Deliver the body of a response in pieces; a hook of an async client of httpx or httpx2."""
    response.stream = _async_stream(library_of(type(response)))(response.stream, _Body(response))


def bound_sync(response: Any) -> None:
    """Do as `bound` does in a blocking client."""
    response.stream = _sync_stream(library_of(type(response)))(response.stream, _Body(response))


class _Body:
    """The received part of a body, and its size so far."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._most = None if is_event_stream(response) else MOST_BYTES
        self._size = 0
        self._received = b""
        self._inflater: Any = None
        self._encoding = str(response.headers.pop("content-encoding", "")).strip().lower()
        if self._encoding in {"gzip", "x-gzip"}:
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def feed(self, received: bytes) -> None:
        """Add received bytes."""
        if self._encoding == "deflate" and self._inflater is None and received:
            # Most servers mean zlib's format, as the standard does, and some the raw one.
            is_zlib = received[0] & 0x0F == zlib.DEFLATED
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        self._received = received

    @property
    def has_more(self) -> bool:
        """Whether received bytes are left."""
        return bool(self._received)

    def next_piece(self) -> bytes:
        """
        Return the next piece of the received bytes, of limited size; empty if none is left.

        Raises:
            openai.APIError: The body is too large, or its encoding is wrong.
        """
        if self._encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            msg = (
                f"has the content encoding {self._encoding!r}, and only {ENCODINGS} were asked for"
            )
            raise self._error(msg)
        piece = self._inflate()
        self._size += len(piece)
        if self._most is not None and self._size > self._most:
            msg = f"is larger than {self._most >> 20} MiB"
            raise self._error(msg)
        return piece

    def _inflate(self) -> bytes:
        if self._inflater is None:
            received, self._received = self._received, b""
            return received
        try:
            piece: bytes = self._inflater.decompress(self._received, _PIECE)
        except zlib.error as exc:
            msg = f"is not {self._encoding}, as its header says: {exc}"
            raise self._error(msg) from exc
        # Bytes after the end of the compressed data do not belong to the body.
        self._received = b"" if self._inflater.eof else self._inflater.unconsumed_tail
        return piece

    def _error(self, what: str) -> openai.APIError:
        request = self._response.request
        return openai.APIError(f"the reply of {request.url} {what}", request, body=None)


class _Chunks:
    """The body of a response for an async client, with a checkpoint between two pieces."""

    def __init__(self, stream: Any, body: _Body) -> None:
        self._stream = stream
        self._chunks: AsyncIterator[bytes] = stream.__aiter__()
        self._body = body

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> bytes:
        body = self._body
        try:
            if body.has_more:
                await current_backend().checkpoint()
            while not (piece := body.next_piece()):
                if body.has_more:
                    await current_backend().checkpoint()
                else:
                    body.feed(await anext(self._chunks))
        except StopAsyncIteration:
            raise
        except BaseException:  # close the chunks, as a failed read of them does
            await self._end_chunks()  # noqa: ASYNC102 - it shields itself, and is cancelled at once
            raise
        return piece

    async def _end_chunks(self) -> None:
        # These are nested async generators; a cancellation ends all of them, see `ResponseSource`.
        with shielded_scope() as scope:
            scope.cancel()
            with contextlib.suppress(Exception):
                async for _ in self._chunks:
                    pass

    async def aclose(self) -> None:
        await self._stream.aclose()


class _SyncChunks:
    """The body of a response for a blocking client."""

    def __init__(self, stream: Any, body: _Body) -> None:
        self._stream = stream
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._body.feed(chunk)
            while self._body.has_more:
                yield self._body.next_piece()

    def close(self) -> None:
        self._stream.close()


@functools.cache
def _async_stream(library: Any) -> Any:
    return type("BoundedStream", (_Chunks, library.AsyncByteStream), {})


@functools.cache
def _sync_stream(library: Any) -> Any:
    return type("BoundedStream", (_SyncChunks, library.SyncByteStream), {})
