"""A streamed response of the openai SDK, read and closed so that nothing is left behind."""

from __future__ import annotations

import contextlib
import functools
import json
import ssl
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import openai
from openai.types.chat import ChatCompletionChunk

from . import _loop
from ._assembly import Assembly
from ._sse import EventDecoder
from ._types import ChatResponse, CompletionResponse, StreamClosedError
from ._wire import to_piece


if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator
    from types import TracebackType
    from typing import Self

    from ._assembly import Piece
    from ._clients import Hold


# openai 2 is built on httpx, openai 3 on httpx2; both hand out their response object, and the
# names used of it are the same. The SDK's own iterator over it is a nest of async generators: an
# outer one that stops early leaves the inner ones to the garbage collector, which closes the
# connection late, and Trio warns about each. So the bytes are read here.

#: How long the end of a response may take after the last event before the connection is given up.
_END_SECONDS = 0.1

#: Closing is a matter of microseconds; a peer that makes it longer does not hold up a step's end.
_CLOSE_SECONDS = 1.0

_END = "[DONE]"


_R = TypeVar("_R", CompletionResponse, ChatResponse)


class EventReader:
    """The bytes of a response, read as pieces of a reply."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._decoder = EventDecoder()
        self._events: deque[str] = deque()
        self._finished = False  # the model has said why it stopped
        self.at_end = False

    def feed(self, received: bytes) -> None:
        """Take in what has arrived."""
        self._events.extend(self._decoder.feed(received))

    def feed_end(self) -> None:
        """
        Take in that nothing more will arrive.

        Raises:
            openai.APIConnectionError: That is too early: the reply is not complete.
        """
        self._events.extend(self._decoder.flush())
        if self._events:
            return
        self.at_end = True
        if not self._finished:
            msg = "the server ended the stream before the model had finished its reply"
            raise openai.APIConnectionError(message=msg, request=self._request)

    def next_piece(self) -> Piece | None:
        """
        Give the next piece; ``None`` when bytes are wanted first, or at the end.

        Raises:
            openai.APIError: The server reports an error, or writes what is not the chat format.
        """
        if not self._events or self.at_end:
            return None
        data = self._events.popleft()
        if data.strip().startswith(_END):
            self.at_end = True
            return None
        piece = self._read(data)
        self._finished = self._finished or piece.finish_reason is not None
        return piece

    def _read(self, data: str) -> Piece:
        try:
            chunk: object = json.loads(data)
        except ValueError as exc:
            msg = f"the server sent an event that is not JSON: {data[:200]!r}"
            raise openai.APIError(msg, self._request, body=data) from exc
        if not isinstance(chunk, dict):
            msg = f"the server sent an event that is not a chunk of a reply: {data[:200]!r}"
            raise openai.APIError(msg, self._request, body=chunk)
        fields = cast("dict[str, Any]", chunk)
        if error := fields.get("error"):
            raise openai.APIError(_error_text(error), self._request, body=error)
        # `model_construct` is what the SDK itself does: it takes a chunk as the server sent it.
        return to_piece(fields, ChatCompletionChunk.model_construct(**fields))


def _error_text(error: object) -> str:
    fields = cast("dict[str, object]", error) if isinstance(error, dict) else {"message": error}
    return str(fields.get("message") or fields)


class ResponseSource:
    """The pieces of a reply out of a response; closing it closes the connection, on every path."""

    def __init__(self, response: Any, hold: Hold[openai.AsyncOpenAI]) -> None:
        self._response = response
        self._hold = hold
        self._bytes: AsyncIterator[bytes] = response.aiter_bytes()
        self._reader = EventReader(response.request)
        self._closed = False

    async def receive(self) -> Piece | None:
        """Wait for the next piece; ``None`` is the end. A checkpoint in every case."""
        piece = self._reader.next_piece()
        if piece is not None or self._reader.at_end:
            await _loop.checkpoint()
            return piece
        with translated_errors(self._response):
            while piece is None and not self._reader.at_end:
                try:
                    self._reader.feed(await anext(self._bytes))
                except StopAsyncIteration:
                    self._reader.feed_end()
                piece = self._reader.next_piece()
        return piece

    async def aclose(self) -> None:
        """Close the connection, or give it back when the whole response has been read."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._finish()
        finally:
            await self._hold.aclose()

    async def _finish(self) -> None:
        # `aiter_bytes` is the outermost of five async generators that read from each other. Closing
        # it would end it alone. Going on inside a cancelled scope ends all of them: the cancellation
        # is raised where the innermost waits for the socket, and each of them closes what it holds
        # while it passes, from the inside out. After the last event there is only the end of the
        # response left to read, and reading it gives the connection back to the pool.
        with _loop.open_scope(shield=True, seconds=_END_SECONDS) as scope:
            if not self._reader.at_end:
                scope.cancel()
            with contextlib.suppress(*network_errors(self._response)):
                async for _ in self._bytes:
                    pass
        with _loop.open_scope(shield=True, seconds=_CLOSE_SECONDS):
            await self._response.aclose()


class _SyncStream(Generic[_R]):
    """What both kinds of blocking stream are: an iterator, closed by ``with`` or when dropped."""

    def __init__(self, response: Any) -> None:
        self._http_response = response
        self._bytes: Iterator[bytes] = response.iter_bytes()
        self._reader = EventReader(response.request)
        self._assembly = Assembly()
        self._response: _R | None = None
        self._closed = False

    def _so_far(self) -> _R:
        raise NotImplementedError

    @property
    def response(self) -> _R | None:
        """The last reply that the stream gave, which has all of the text until then."""
        return self._response

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _R:
        if self._closed:
            if self._reader.at_end:
                raise StopIteration
            msg = f"this {type(self).__name__} was closed before its end"
            raise StreamClosedError(msg)
        try:
            piece = self._receive()
        except BaseException:  # restores the promise: a stream that failed holds no connection
            self.close()
            raise
        if piece is None:
            self.close()
            raise StopIteration
        self._assembly.add(piece)
        self._response = self._so_far()
        return self._response

    def _receive(self) -> Piece | None:
        piece = self._reader.next_piece()
        with translated_errors(self._http_response):
            while piece is None and not self._reader.at_end:
                try:
                    self._reader.feed(next(self._bytes))
                except StopIteration:
                    self._reader.feed_end()
                piece = self._reader.next_piece()
        return piece

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._closed = True
        self._http_response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        text = "" if self._response is None else self._response.text
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {state}, {len(text)} characters so far>"

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


class SyncCompletionStream(_SyncStream[CompletionResponse]):
    """The stream of `CompletionResponse` that ``llm.stream_complete(prompt)`` gives."""

    def _so_far(self) -> CompletionResponse:
        return self._assembly.completion()


class SyncChatStream(_SyncStream[ChatResponse]):
    """The stream of `ChatResponse` that ``llm.stream_chat(messages)`` gives."""

    def _so_far(self) -> ChatResponse:
        return self._assembly.chat()


@contextlib.contextmanager
def translated_errors(response: Any) -> Generator[None]:
    """Have a broken connection come out of a stream as the SDK has it come out of a request."""
    http = _library_of(type(response))
    try:
        yield
    except http.TimeoutException as exc:
        raise openai.APITimeoutError(request=response.request) from exc
    except network_errors(response) as exc:
        raise openai.APIConnectionError(request=response.request) from exc


def network_errors(response: Any) -> tuple[type[Exception], ...]:
    """List what reading ``response`` raises when the connection is not what it should be."""
    return (_library_of(type(response)).RequestError, ssl.SSLError)


@functools.cache
def shared_ssl() -> ssl.SSLContext:
    """Make the TLS context that all clients share; making one takes longer than a whole request."""
    context: ssl.SSLContext = _library_of(openai.DefaultAsyncHttpxClient).create_ssl_context()
    return context


def _library_of(kind: Any) -> Any:
    # The root class of a client or a response is httpx's or httpx2's own, whoever derives from it.
    root = kind.__mro__[-2]
    return sys.modules[root.__module__.partition(".")[0]]
