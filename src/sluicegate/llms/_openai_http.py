"""Responses of the openai SDK, read and closed so that nothing stays open."""

from __future__ import annotations

import contextlib
import functools
import json
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sluicegate._loop import current_backend
from sluicegate._loop.cleanup import shielded_scope
from sluicegate._sse import EventDecoder, EventTooLargeError, ServerSentEvent

from ._assembly import Assembly
from ._bounded import (
    ENCODINGS,
    MOST_BYTES,
    bound,
    bound_sync,
    content_type,
    is_event_stream,
    library_of,
)
from ._types import ChatResponse, CompletionResponse, StreamClosedError
from ._wire import to_piece


if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator
    from types import TracebackType
    from typing import Self

    from ._assembly import Piece
    from ._calls import WatchedCall
    from ._clients import Hold


# openai 2 is built on httpx, openai 3 on httpx2; both give access to the response object, with the
# same names. The SDK's own iterator over it consists of nested async generators. If the outer one
# stops early, the inner ones are closed by the garbage collector, which closes the connection late,
# and Trio warns about each. So the bytes are read here.

#: Seconds to wait for the end of a response after its last event, before the connection is closed.
_END_SECONDS = 0.1

#: Closing takes microseconds; a peer that delays it must not delay the end of a step.
_CLOSE_SECONDS = 1.0

_END = "[DONE]"

#: The number of characters that an error shows of an invalid reply, and of a server's error.
_SHOWN = 200
_MOST_SHOWN = 2000


_R = TypeVar("_R", CompletionResponse, ChatResponse)


class EventReader:
    """Reads the bytes of a response as pieces of a reply."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._request = response.request
        self._decoder = EventDecoder(MOST_BYTES)
        self._beginning = b""
        self._has_events = False
        self._events: deque[str] = deque()
        self._finished = False  # a finish reason was received
        self.at_end = False

    def feed(self, received: bytes) -> None:
        """
        Add received bytes.

        Raises:
            openai.APIError: An event is too large.
        """
        if not self._has_events and len(self._beginning) < _SHOWN:
            self._beginning += received[:_SHOWN]
        try:
            self._take(self._decoder.feed(received))
        except EventTooLargeError as exc:
            msg = f"the stream of {self._request.url} cannot be read: {exc}"
            raise openai.APIError(msg, self._request, body=None) from exc

    def _take(self, events: list[ServerSentEvent]) -> None:
        self._has_events = self._has_events or bool(events)
        self._events.extend(event.data for event in events)

    def feed_end(self) -> None:
        """
        Note the end of the response.

        Raises:
            openai.APIConnectionError: The reply is not complete.
            openai.APIResponseValidationError: The response had no event, and is no event stream.
        """
        self._take(self._decoder.flush())
        if self._events:
            return
        self.at_end = True
        if not self._has_events and not is_event_stream(self._response):
            text = self._beginning.decode(errors="replace")
            raise no_reply(self._response, text, "a stream of events (text/event-stream)")
        if not self._finished:
            msg = "the server ended the stream before the model had finished its reply"
            raise openai.APIConnectionError(message=msg, request=self._request)

    def next_piece(self) -> Piece | None:
        """
        Return the next piece; ``None`` if more bytes are needed, or at the end.

        Raises:
            openai.APIError: The server reports an error, or does not use the chat format.
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
            fields = cast("dict[str, Any]", chunk) if isinstance(chunk, dict) else None
            if fields is not None and not fields.get("error"):
                # Like the SDK, `model_construct` accepts a chunk without validation.
                return to_piece(fields, ChatCompletionChunk.model_construct(**fields))
        except RecursionError as exc:
            raise self._bad_event(data, "is nested too deeply") from exc
        except ValueError as exc:
            raise self._bad_event(data, "is not JSON") from exc
        if fields is not None:
            raise server_error(self._request, fields["error"])
        raise self._bad_event(data, "is not a chunk of a reply")

    def _bad_event(self, data: str, what: str) -> openai.APIError:
        kind = content_type(self._response)
        where = "" if is_event_stream(self._response) else f", in a response of type {kind!r}"
        msg = f"the server sent an event that {what}{where}: {data[:_SHOWN]!r}"
        return openai.APIError(msg, self._request, body=data)


def read_whole(response: Any) -> dict[str, Any]:
    """
    Read a reply that was received whole.

    Raises:
        openai.APIError: The server reports an error with a status of success.
        openai.APIResponseValidationError: It is not the chat format.
    """
    expected = "a chat completion as JSON"
    try:
        reply: object = json.loads(response.content)
    except RecursionError as exc:
        raise no_reply(
            response, response.text, f"{expected}, and this is nested too deeply"
        ) from exc
    except ValueError as exc:
        raise no_reply(response, response.text, expected) from exc
    fields = cast("dict[str, Any]", reply) if isinstance(reply, dict) else {}
    if error := fields.get("error"):
        raise server_error(response.request, error)
    if not isinstance(fields.get("choices"), list):
        raise no_reply(response, response.text, expected)
    return fields


def to_completion(fields: dict[str, Any]) -> ChatCompletion | None:
    """Make the SDK's object for a reply; None if the reply is nested too deeply."""
    try:
        return ChatCompletion.model_construct(**fields)
    except RecursionError:
        return None


def no_reply(response: Any, text: str, expected: str) -> openai.APIResponseValidationError:
    """Make the error for a response that is not a model's reply."""
    kind = content_type(response) or "no content type"
    msg = (
        f"{response.request.url} answered {response.status_code} with {kind}: {text[:_SHOWN]!r}; "
        f"expected {expected}. A base_url usually ends in /v1: "
        'OpenAI(base_url="http://127.0.0.1:8000/v1")'
    )
    return openai.APIResponseValidationError(response, text, message=msg)


def server_error(request: Any, error: object) -> openai.APIError:
    """Make the error that a server reports in a response with a status of success."""
    return openai.APIError(_error_text(error), request, body=error)


def _error_text(error: object) -> str:
    fields = cast("dict[str, object]", error) if isinstance(error, dict) else {"message": error}
    return str(fields.get("message") or fields)[:_MOST_SHOWN]


class ResponseSource:
    """The pieces of a reply from a response; closing it always closes the connection."""

    def __init__(self, response: Any, hold: Hold[openai.AsyncOpenAI]) -> None:
        self._response = response
        self._hold = hold
        self._bytes: AsyncIterator[bytes] = response.aiter_bytes()
        self._reader = EventReader(response)
        self._closed = False

    async def receive(self) -> Piece | None:
        """Wait for the next piece; ``None`` is the end. A checkpoint in every case."""
        piece = self._reader.next_piece()
        if piece is not None or self._reader.at_end:
            await current_backend().checkpoint()
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
        """Close the connection, or return it to the pool if the whole response was read."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._finish()
        finally:
            await self._hold.aclose()

    async def _finish(self) -> None:
        # `aiter_bytes` is the outermost of five async generators that read from each other. Closing
        # it would end only that one. Iterating in a cancelled scope ends all of them: the innermost
        # raises the cancellation where it waits for the socket, and each one closes its resources
        # as the exception passes. After the last event only the end of the response is left to
        # read, and reading it returns the connection to the pool.
        with shielded_scope(_END_SECONDS) as scope:
            if not self._reader.at_end:
                scope.cancel()
            with contextlib.suppress(*network_errors(self._response)):
                async for _ in self._bytes:
                    pass
        with shielded_scope(_CLOSE_SECONDS):
            await self._response.aclose()


class _SyncStream(Generic[_R]):
    """The base of both kinds of blocking stream: an iterator, closed by ``with`` or on deletion."""

    def __init__(self, response: Any, call: WatchedCall) -> None:
        self._http_response = response
        self._call = call
        self._bytes: Iterator[bytes] = response.iter_bytes()
        self._reader = EventReader(response)
        self._assembly = Assembly()
        self._response: _R | None = None
        self._closed = False

    def _so_far(self) -> _R:
        raise NotImplementedError

    @property
    def response(self) -> _R | None:
        """The last reply that the stream yielded, with the whole text so far."""
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
        except BaseException as error:  # a stream that failed must hold no connection
            self._call.end(error)
            self.close()
            raise
        if piece is None:
            self._call.end()
            self.close()
            raise StopIteration
        self._call.received(piece)
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
        self._call.end(is_abandoned=True)
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
    """The stream of `CompletionResponse` from ``llm.stream_complete(prompt)``."""

    def _so_far(self) -> CompletionResponse:
        return self._assembly.completion()


class SyncChatStream(_SyncStream[ChatResponse]):
    """The stream of `ChatResponse` from ``llm.stream_chat(messages)``."""

    def _so_far(self) -> ChatResponse:
        return self._assembly.chat()


@contextlib.contextmanager
def own_errors() -> Generator[None]:
    """Raise the errors of `bound` unchanged; openai 2 wraps every exception of a hook."""
    try:
        yield
    except openai.APIConnectionError as exc:
        if isinstance(exc.__cause__, openai.APIError):
            raise exc.__cause__ from None
        raise


@contextlib.contextmanager
def translated_errors(response: Any) -> Generator[None]:
    """Raise the SDK's exceptions for a connection that breaks while a stream is read."""
    http = library_of(type(response))
    try:
        yield
    except http.TimeoutException as exc:
        raise openai.APITimeoutError(request=response.request) from exc
    except network_errors(response) as exc:
        raise openai.APIConnectionError(request=response.request) from exc


def network_errors(response: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions that reading ``response`` raises when the connection is broken."""
    return (library_of(type(response)).RequestError, ssl.SSLError)


def make_http_client() -> Any:
    """Make the client for the async calls: the SDK's own, with a limit on the size of replies."""
    return openai.DefaultAsyncHttpxClient(
        verify=_shared_ssl(),
        headers={"accept-encoding": ENCODINGS},
        event_hooks={"response": [bound]},
    )


def make_sync_http_client() -> Any:
    """Make the client for the blocking calls, which closes when it is deleted."""
    return _SyncHttpClient(
        headers={"accept-encoding": ENCODINGS}, event_hooks={"response": [bound_sync]}
    )


class _SyncHttpClient(openai.DefaultHttpxClient):
    """Closes when it is deleted, like the client that the SDK makes for itself."""

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


@functools.cache
def _shared_ssl() -> ssl.SSLContext:
    """Make the TLS context for all clients; making one takes longer than a whole request."""
    context: ssl.SSLContext = library_of(openai.DefaultAsyncHttpxClient).create_ssl_context()
    return context
