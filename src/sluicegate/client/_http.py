"""Requests over HTTP: repeated where that is safe, and streams whose connection is always closed."""

from __future__ import annotations

import contextlib
import logging
import ssl
from functools import cache
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any, Self

from sluicegate._loop import current_backend
from sluicegate._loop.cleanup import shielded_scope
from sluicegate.client._errors import (
    ServerUnreachableError,
    UnavailableError,
    error_of,
    json_of_answer,
    unexpected,
)
from sluicegate.client._events import json_bytes
from sluicegate.client._library import httpx, library_of


if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Mapping
    from types import TracebackType

LOGGER = logging.getLogger("sluicegate")

#: Seconds before a request is repeated: at first, and at most.
FIRST_DELAY = 0.1
MOST_DELAY = 5.0
#: The longest time for which the server can make a client wait with ``Retry-After``, in seconds.
_MOST_RETRY_AFTER = 60.0
#: Seconds to wait for the end of a response after its last event, before the connection is closed.
_END_SECONDS = 0.1
#: Closing takes microseconds; a peer that delays it must not delay the end of a task.
_CLOSE_SECONDS = 1.0
#: The most bytes of an answer with an error that are read from a stream.
_MOST_ERROR = 1_000_000


class Backoff:
    """The delays between attempts: each up to twice the last, half of it by chance.

    Args:
        seed: Determines the chances, so that a test repeats.
    """

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)  # noqa: S311 - no secret
        self.attempts: int = 0

    def reset(self) -> None:
        """Begin again with the shortest delay."""
        self.attempts = 0

    def next_delay(self, error: BaseException | None = None) -> float:
        """Return the seconds to wait before the next attempt, not less than the server asked for."""
        longest = min(MOST_DELAY, FIRST_DELAY * 2 ** min(self.attempts, 16))
        self.attempts += 1
        delay: float = longest * (0.5 + self._random.random() / 2)
        if isinstance(error, UnavailableError) and error.retry_after is not None:
            delay = max(delay, min(error.retry_after, _MOST_RETRY_AFTER))
        return delay


def make_http_client(url: str, **options: Any) -> httpx.AsyncClient:
    """Return a new HTTP client, without a limit of connections: each stream has one."""
    # A TLS context with the system's certificates takes longer to make than a request takes.
    verify = True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The pool loses the place of a request that is cancelled while it connects, so places are not counted.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(verify=verify, limits=limits, **options)


class Transport:
    """Sends the requests of one client.

    Args:
        url: The URL of the server.
        http: The client of httpx2 or httpx.
        headers: Headers of each request.
        timeout: Seconds that a request may take to be answered.
        idle_timeout: Seconds that a stream may be silent; heartbeats count.
        max_retries: How often a request is repeated.
    """

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        headers: Mapping[str, str],
        *,
        timeout: float,
        idle_timeout: float,
        max_retries: int,
    ) -> None:
        self.url: str = url.rstrip("/")
        self._http = http
        self._library = library = library_of(http)
        self._headers = dict(headers)
        self._timeout = library.Timeout(timeout)
        self._long_timeout = library.Timeout(timeout, read=None)
        silence = None if idle_timeout == inf else idle_timeout
        self._stream_timeout = library.Timeout(timeout, read=silence)
        self.max_retries: int = max_retries
        self._requests = 0

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        retries: int | None = None,
        allow: tuple[int, ...] = (),
        is_long: bool = False,
    ) -> dict[str, Any]:
        """Send a request, and return the JSON object that it is answered with. A checkpoint.

        All requests of the client can be repeated: those that change something carry an id.

        Args:
            method: The method.
            path: The path below the URL.
            params: The query.
            body: What to send as JSON.
            retries: How often to repeat it; by default as often as the client does.
            allow: Statuses of errors whose answer is returned, too.
            is_long: Whether the answer may take any time.

        Raises:
            ClientError: The server has refused it, or was not reached.
            TypeError: JSON cannot hold a value in the body.
        """
        content = None if body is None else json_bytes(body)
        timeout = self._long_timeout if is_long else self._timeout
        head = {"accept": "application/json"}
        self._requests += 1
        backoff = Backoff(f"{path} {self._requests}")
        while True:
            try:
                with translated_errors(self._library, self.url):
                    request = self._build(method, path, params, content, head, timeout=timeout)
                    response = await self._http.send(request, follow_redirects=False)
                return _read_answer(response, allow)
            except (ServerUnreachableError, UnavailableError) as error:
                delay = backoff.next_delay(error)
                if backoff.attempts > (self.max_retries if retries is None else retries):
                    raise
                LOGGER.info("%s; trying again in %.1f s", error, delay)
            await current_backend().sleep(delay)

    def open(
        self, method: str, path: str, *, params: Mapping[str, Any], body: bytes | None = None
    ) -> StreamedResponse:
        """Return a request for an event stream, to be entered."""
        # A proxy that compresses a stream delays its events.
        head = {"accept": "text/event-stream", "accept-encoding": "identity"}
        request = self._build(method, path, params, body, head, timeout=self._stream_timeout)
        return StreamedResponse(self._library, self._http, request, self.url)

    def _build(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        body: bytes | None,
        head: Mapping[str, str],
        *,
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        headers = {**self._headers, **head}
        if body is not None:
            headers |= {"content-type": "application/json", "content-length": str(len(body))}
        request = self._http.build_request(
            method, self.url + path, params=params, headers=headers, timeout=timeout
        )
        request.stream = _body_class(self._library)(body)
        return request


@cache
def _body_class(library: Any) -> Any:
    """Return the class of request bodies of a library.

    The library's own iterates by an async generator, which stays open if the request is cancelled while
    it is sent.
    """

    class Body(library.AsyncByteStream):  # type: ignore[misc] # of either library
        def __init__(self, body: bytes | None) -> None:
            self._body = body

        def __aiter__(self) -> _Pieces:
            return _Pieces([self._body] if self._body else [])

    return Body


class _Pieces:
    """The pieces of a body."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()  # noqa: ASYNC910 - the connection that it is written to is a checkpoint


def _read_answer(response: httpx.Response, allow: tuple[int, ...]) -> dict[str, Any]:
    data = json_of_answer(response)
    if data is not None and (response.is_success or response.status_code in allow):
        return data
    if response.is_success or response.is_redirect:
        raise unexpected(response, "an answer of a server of sluicegate")
    raise error_of(response)


class StreamedResponse:
    """A request whose answer is read piece by piece, in the block that sends it.

    Leaving the block always closes the connection, or returns it to the pool if all was read.
    """

    def __init__(
        self, library: Any, http: httpx.AsyncClient, request: httpx.Request, url: str
    ) -> None:
        self._library = library
        self._http = http
        self._request = request
        self._server = url
        self._response: httpx.Response | None = None
        self._bytes: AsyncIterator[bytes] | None = None
        self._at_end = False
        #: Whether the last event was received, so that only the end of the response is left to read.
        self.is_complete: bool = False

    async def __aenter__(self) -> Self:
        """Send the request, and wait for the head of its answer. A checkpoint.

        Raises:
            ClientError: The server has refused it, or was not reached.
        """
        with translated_errors(self._library, self._server):
            self._response = await self._http.send(
                self._request, stream=True, follow_redirects=False
            )
        self._bytes = self._response.aiter_bytes()
        try:
            await self._check(self._response)
        except BaseException:
            await self._close()  # noqa: ASYNC102, ASYNC120 - it shields itself
            raise
        return self

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code == 204 or (
            response.is_success
            and response.headers.get("content-type", "").startswith("text/event-stream")
        ):
            return
        read = b""
        while len(read) < _MOST_ERROR and (piece := await self.receive()):
            read += piece
        whole: httpx.Response = self._library.Response(
            response.status_code,
            headers=[
                (name, value)
                for name, value in response.headers.items()
                if name not in ("content-encoding", "content-length", "transfer-encoding")
            ],
            content=read,
            request=response.request,
        )
        if response.is_success or response.is_redirect:
            raise unexpected(whole, "a stream of events of a server of sluicegate")
        raise error_of(whole)

    @property
    def is_empty(self) -> bool:
        """Whether the server has nothing to stream (204)."""
        return self._response is not None and self._response.status_code == 204

    @property
    def cursor(self) -> str:
        """The position at which the stream begins; empty if the server does not tell."""
        return "" if self._response is None else self._response.headers.get("x-cursor", "")

    async def receive(self) -> bytes:
        """Return the next piece; ``b""`` at the end. A checkpoint.

        Cancelled, it closes the connection, which can then not be read any more.

        Raises:
            ServerUnreachableError: The connection is lost.
        """
        assert self._bytes is not None
        if self._at_end:
            await current_backend().checkpoint()
            return b""
        with translated_errors(self._library, self._server):
            piece = await anext(self._bytes, b"")
        self._at_end = not piece
        return piece

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()  # noqa: ASYNC102 - it shields itself

    async def _close(self) -> None:
        # `aiter_bytes` is the outermost of several async generators that read from each other. Closing
        # it would end only that one. Iterating in a cancelled scope ends all of them: the innermost
        # raises the cancellation where it waits for the socket, and each one closes its resources
        # as the exception passes. After the last event only the end of the response is left to
        # read, and reading it returns the connection to the pool.
        response, self._response = self._response, None
        if response is None or self._bytes is None:
            return
        try:
            with (
                shielded_scope(_END_SECONDS) as scope,
                contextlib.suppress(self._library.HTTPError, self._library.StreamError, OSError),
            ):
                if not self.is_complete:
                    scope.cancel()
                while not self._at_end:
                    self._at_end = not await anext(self._bytes, b"")
        finally:
            with shielded_scope(_CLOSE_SECONDS):
                await response.aclose()


@contextlib.contextmanager
def translated_errors(library: Any, url: str) -> Generator[None]:
    """Raise the client's exception for a connection that cannot be made, or breaks."""
    try:
        yield
    except library.TransportError as error:
        what = str(error) or "no reason was given"
        if isinstance(error, (library.ConnectError, library.ConnectTimeout)):
            msg = f"there is no server at {url} ({type(error).__name__}: {what})"
        else:
            msg = f"the connection to {url} was lost ({type(error).__name__}: {what})"
        raise ServerUnreachableError(msg) from error
