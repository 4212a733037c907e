"""OpenAI's models, and every server with their chat format, on Trio and on asyncio."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from sluicegate._loop import current_backend, in_event_loop

from ._assembly import Assembly
from ._calls import ModelCall, watch_call, watched
from ._clients import Clients
from ._streams import ChatStream, CompletionStream
from ._tools import to_options
from ._wire import from_messages, from_prompt, max_tokens_name, to_piece


try:
    import openai
except ModuleNotFoundError as _exc:
    if (_exc.name or "").partition(".")[0] != "openai":
        raise
    _msg = 'sluicegate.llms.openai needs the openai package: pip install "sluicegate[openai]"'
    raise ModuleNotFoundError(_msg, name="openai") from _exc

from ._openai_http import (
    ResponseSource,
    SyncChatStream,
    SyncCompletionStream,
    make_http_client,
    make_sync_http_client,
    own_errors,
    read_whole,
    to_completion,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from ._calls import WatchedCall
    from ._clients import Hold
    from ._streams import Source
    from ._types import ChatMessage, ChatResponse, CompletionResponse


__all__ = ["OpenAI", "SyncChatStream", "SyncCompletionStream"]

_OFFICIAL_HOST = "api.openai.com"

#: Local servers need no key, but the SDK requires one.
_NO_KEY = "not-needed"


class OpenAI:
    """
    A model with OpenAI's chat completions, on any server that implements them.

    ::

        llm = OpenAI(model="gpt-4o-mini")
        async with await llm.astream_complete("What is a sluicegate?") as stream:
            async for response in stream:
                print(response.delta, end="")

    **Ownership.** Every connection has an owner: in a workflow step the step, in ``async with llm``
    the block, elsewhere the single call. Calls in an event loop share connections within a step and
    within a block. The end of the owner closes its connections, so a program that makes every call
    in a step does not have to close anything.

    **Retries** are made by the SDK only (`max_retries`). They cover a request up to the first piece
    of its reply. **Timeouts**: `timeout` bounds each phase of a request (connecting, every wait for
    a piece), and so does the nearest deadline of the cancel scopes around the call.

    One object may be used by any number of tasks at once, and in several event loops in turn.

    Args:
        model: The name of the model on the server.
        temperature: By default the server's.
        max_tokens: The longest reply; by default the server's.
        api_key: By default ``OPENAI_API_KEY``. Needed at the first request, except by a server
            other than OpenAI's.
        base_url: By default ``OPENAI_BASE_URL``, then ``OPENAI_API_BASE``, then OpenAI's.
        api_base: Another name for `base_url`.
        timeout: Seconds; ``None`` for no limit.
        max_retries: The number of retries after 408, 409, 429, 5xx or a broken connection.
        default_headers: Headers of every request.
        system_prompt: Added to messages without a system message.
        additional_kwargs: Further arguments of every request, in the SDK's spelling; arguments of a
            single request are given to the call.
        http_client: The client for the blocking calls instead of the SDK's; this object does not
            close it.
        async_http_client: The same for the async calls; belongs to one event loop.
    """

    def __init__(
        self,
        model: str = "gpt-4o-mini",
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api_base: str | None = None,
        timeout: float | None = 60.0,
        max_retries: int = 2,
        default_headers: Mapping[str, str] | None = None,
        system_prompt: str | None = None,
        additional_kwargs: Mapping[str, Any] | None = None,
        http_client: Any = None,
        async_http_client: Any = None,
    ) -> None:
        if base_url and api_base and base_url != api_base:
            msg = f"base_url={base_url!r} and api_base={api_base!r} mean the same thing; give one"
            raise TypeError(msg)
        self.model = model
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.timeout = timeout
        self.max_retries = max_retries
        self.system_prompt = system_prompt
        self.additional_kwargs: dict[str, Any] = dict(additional_kwargs or {})
        self._api_key = api_key
        self._base_url = base_url or api_base
        self._default_headers = dict(default_headers or {})
        self._http_client = http_client
        self._async_http_client = async_http_client
        self._clients = Clients(self._make_client, owned=async_http_client is None)
        self._sync_client: openai.OpenAI | None = None
        self._refuses_stream_options = False

    def __repr__(self) -> str:
        where = self._find_base_url() or _OFFICIAL_HOST
        return f"<OpenAI model={self.model!r} at {where}>"

    # -- the async calls ---------------------------------------------------------------------------

    async def acomplete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        """
        Complete ``prompt``, and wait for the whole reply.

        A checkpoint; cancelled, it closes the connection. The server still bills the text that the
        model has written by then.

        Args:
            prompt: The user's text.
            kwargs: Options of this request, in the SDK's spelling; they override the object's. `Tool`
                objects in ``tools`` are given to the server in its form.

        Raises:
            openai.OpenAIError: The SDK's exception.
        """
        messages = from_prompt(prompt, self.system_prompt)
        return (await self._ask(messages, kwargs)).completion()

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Reply to ``messages``; otherwise like `acomplete`."""
        return (await self._ask(from_messages(messages, self.system_prompt), kwargs)).chat()

    async def astream_complete(self, prompt: str, **kwargs: Any) -> CompletionStream:
        """
        Complete ``prompt``, and stream the reply.

        ``await`` sends the request and returns when the server has accepted it; then read the
        stream with ``async for``. Its last response has the whole text.

        Raises:
            openai.OpenAIError: The SDK's exception; also while the stream is read.
        """
        messages = from_prompt(prompt, self.system_prompt)
        hold, source = await self._open(messages, kwargs)
        stream = CompletionStream(source)
        hold.used_by(stream)
        return stream

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatStream:
        """Reply to ``messages``; otherwise like `astream_complete`."""
        hold, source = await self._open(from_messages(messages, self.system_prompt), kwargs)
        stream = ChatStream(source)
        hold.used_by(stream)
        return stream

    async def aclose(self) -> None:
        """
        Close the streams, then the connections, of this object in the running event loop.

        Works in a cancelled scope. A later call opens a new connection.
        """
        await self._clients.aclose()

    async def __aenter__(self) -> Self:
        self._clients.enter_block()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        hold = self._clients.leave_block()
        if hold is not None:
            await hold.aclose()

    async def _ask(self, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> Assembly:
        request = self._request(messages, kwargs)
        request["timeout"] = _within(request["timeout"], _seconds_left())
        with self._watch(request) as call:
            hold = self._clients.hold()
            try:
                with own_errors():
                    reply = await _create(hold.client, request)
            finally:
                await hold.aclose()
            return _whole(reply.http_response, call)

    async def _open(
        self, messages: list[dict[str, Any]], kwargs: dict[str, Any]
    ) -> tuple[Hold[openai.AsyncOpenAI], Source]:
        request = self._stream_request(messages, kwargs)
        request["timeout"] = _within(request["timeout"], _seconds_left())
        with self._watch(request) as call:
            hold = self._clients.hold()
            try:
                try:
                    stream = await _create(hold.client, request)
                except (openai.BadRequestError, openai.UnprocessableEntityError) as exc:
                    request = self._without_stream_options(request, kwargs, exc)
                    stream = await _create(hold.client, request)
            except BaseException:  # no stream will release the hold
                await hold.aclose()
                raise
            return hold, watched(ResponseSource(stream.response, hold), call)

    # -- the blocking calls ------------------------------------------------------------------------

    def complete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        """Like `acomplete`, but blocking. Raises `RuntimeError` where an event loop runs."""
        self._refuse_in_loop("complete")
        return self._ask_sync(from_prompt(prompt, self.system_prompt), kwargs).completion()

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Like `achat`, but blocking. Raises `RuntimeError` where an event loop runs."""
        self._refuse_in_loop("chat")
        return self._ask_sync(from_messages(messages, self.system_prompt), kwargs).chat()

    def stream_complete(self, prompt: str, **kwargs: Any) -> SyncCompletionStream:
        """Like `astream_complete`, but blocking. Raises `RuntimeError` where a loop runs."""
        self._refuse_in_loop("stream_complete")
        messages = from_prompt(prompt, self.system_prompt)
        return SyncCompletionStream(*self._open_sync(messages, kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> SyncChatStream:
        """Like `astream_chat`, but blocking. Raises `RuntimeError` where an event loop runs."""
        self._refuse_in_loop("stream_chat")
        wire = from_messages(messages, self.system_prompt)
        return SyncChatStream(*self._open_sync(wire, kwargs))

    def close(self) -> None:
        """Close the connections of the blocking calls; deleting the object does the same."""
        client, self._sync_client = self._sync_client, None
        if client is not None and self._http_client is None:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _ask_sync(self, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> Assembly:
        request = self._request(messages, kwargs)
        with self._watch(request) as call:
            with own_errors():
                reply = _create(self._sync(), request)
            return _whole(reply.http_response, call)

    def _open_sync(
        self, messages: list[dict[str, Any]], kwargs: dict[str, Any]
    ) -> tuple[Any, WatchedCall]:
        request = self._stream_request(messages, kwargs)
        with self._watch(request) as call:
            try:
                stream = _create(self._sync(), request)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as exc:
                request = self._without_stream_options(request, kwargs, exc)
                stream = _create(self._sync(), request)
            return stream.response, call

    def _refuse_in_loop(self, name: str) -> None:
        if in_event_loop():
            msg = (
                f"{name}() would block the event loop that runs in this thread; "
                f"write: await llm.a{name}(...)"
            )
            raise RuntimeError(msg)

    # -- requests ----------------------------------------------------------------------------------

    def _request(self, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self.model, "timeout": self.timeout}
        if self.temperature is not None:
            request["temperature"] = self.temperature
        if self.max_tokens is not None:
            request["max_tokens"] = self.max_tokens
        request |= to_options(self.additional_kwargs | kwargs)
        if "max_tokens" in request:
            request[max_tokens_name(request["model"])] = request.pop("max_tokens")
        return request | {"messages": messages}

    def _stream_request(
        self, messages: list[dict[str, Any]], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        request = self._request(messages, kwargs) | {"stream": True}
        if not self._refuses_stream_options:
            request.setdefault("stream_options", {"include_usage": True})
        return request

    def _without_stream_options(
        self, request: dict[str, Any], kwargs: dict[str, Any], refusal: openai.APIStatusError
    ) -> dict[str, Any]:
        # Older servers refuse stream_options. The refusal stands if the caller has set them.
        asked_for = {**self.additional_kwargs, **kwargs}
        if (
            "stream_options" not in request
            or "stream_options" in asked_for
            or "stream_options" not in f"{refusal.message} {refusal.body}"
        ):
            raise refusal
        self._refuses_stream_options = True
        return {name: value for name, value in request.items() if name != "stream_options"}

    def _watch(self, request: dict[str, Any]) -> WatchedCall:
        def describe() -> ModelCall:
            where = urlsplit(self._find_base_url() or f"https://{_OFFICIAL_HOST}")
            return ModelCall(
                provider="openai",
                model=request["model"],
                messages=request["messages"],
                options=request,
                is_stream=bool(request.get("stream")),
                address=where.hostname,
                port=where.port or (80 if where.scheme == "http" else 443),
            )

        return watch_call(describe)

    # -- clients -----------------------------------------------------------------------------------

    def _make_client(self) -> openai.AsyncOpenAI:
        http_client = self._async_http_client
        if http_client is None:
            http_client = make_http_client()
        return openai.AsyncOpenAI(http_client=http_client, **self._client_options())

    def _sync(self) -> openai.OpenAI:
        if self._sync_client is None:
            http_client = self._http_client
            if http_client is None:
                http_client = make_sync_http_client()
            self._sync_client = openai.OpenAI(http_client=http_client, **self._client_options())
        return self._sync_client

    def _client_options(self) -> dict[str, Any]:
        # The environment is read at the first request, not when the object is made.
        base_url = self._find_base_url()
        return {
            "api_key": self._find_key(base_url),
            "base_url": base_url,
            "max_retries": self.max_retries,
            "default_headers": self._default_headers,
        }

    def _find_base_url(self) -> str | None:
        given = os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_BASE")
        return self._base_url or given or None

    def _find_key(self, base_url: str | None) -> str:
        key = self._api_key or os.environ.get("OPENAI_API_KEY")
        if key:
            return key
        if base_url is not None and urlsplit(base_url).hostname != _OFFICIAL_HOST:
            return _NO_KEY
        msg = (
            "no API key: set the environment variable OPENAI_API_KEY, or write "
            f'OpenAI(model={self.model!r}, api_key="..."); a local server needs no key, write '
            f'OpenAI(model={self.model!r}, base_url="http://127.0.0.1:8000/v1")'
        )
        raise openai.OpenAIError(msg)


def _seconds_left() -> float:
    backend = current_backend()
    return backend.current_effective_deadline() - backend.current_time()


def _within(timeout: Any, seconds_left: float) -> Any:
    """Bound a timeout by a deadline; if that has passed, the next checkpoint raises."""
    if not isinstance(timeout, int | float | None):
        return timeout  # the SDK also accepts httpx.Timeout
    bounds = [bound for bound in (timeout, seconds_left) if bound is not None]
    shortest = max(min(bounds), 0.001)
    return None if shortest == float("inf") else shortest


def _create(client: openai.AsyncOpenAI | openai.OpenAI, request: dict[str, Any]) -> Any:
    # The SDK has overloads for each kind of request, but none for a dict of arguments. It does not
    # validate a whole reply, so the raw response is read here.
    completions: Any = client.chat.completions
    if not request.get("stream"):
        completions = completions.with_raw_response
    create = cast("Callable[..., Any]", completions.create)
    return create(**request)


def _whole(response: Any, call: WatchedCall) -> Assembly:
    fields = read_whole(response)
    piece = to_piece(fields, to_completion(fields))
    call.received(piece)
    call.end()
    assembly = Assembly()
    assembly.add(piece)
    return assembly.whole()
