"""OpenAI's models, and every server that speaks their chat format, on Trio and on asyncio."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from sluicegate._loop import current_backend, in_event_loop

from ._assembly import Assembly
from ._clients import Clients
from ._streams import ChatStream, CompletionStream
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

    from ._clients import Hold
    from ._types import ChatMessage, ChatResponse, CompletionResponse


__all__ = ["OpenAI", "SyncChatStream", "SyncCompletionStream"]

_OFFICIAL_HOST = "api.openai.com"

#: Servers on one's own machine ask for no key, the SDK does.
_NO_KEY = "not-needed"


class OpenAI:
    """
    A model behind OpenAI's chat completions, on any server that offers them.

    ::

        llm = OpenAI(model="gpt-4o-mini")
        async with await llm.astream_complete("What is a sluicegate?") as stream:
            async for response in stream:
                print(response.delta, end="")

    **Ownership.** Connections belong to somebody, always: in a workflow step to the step, in
    ``async with llm`` to the block, elsewhere to the single call. Calls in a loop share connections
    within a step and within a block. Nothing is left open when the owner is done, so a program in
    which every call is made in steps need close nothing itself.

    **Retries** are the SDK's (`max_retries`) and nobody else's; they cover the request up to the
    first piece of a reply. **Timeouts**: `timeout` bounds each phase of a request (connecting,
    every wait for a piece), and so does the time that the cancel scopes around leave.

    One object may be used by any number of tasks at once, and in one event loop after the other.

    Args:
        model: The model's name, as the server knows it.
        temperature: Left to the server unless given.
        max_tokens: The longest reply; left to the server unless given.
        api_key: ``OPENAI_API_KEY`` unless given. Needed at the first request, and not at all by a
            server of one's own.
        base_url: ``OPENAI_BASE_URL`` unless given, then ``OPENAI_API_BASE``, then OpenAI's.
        api_base: Another name for `base_url`.
        timeout: Seconds; ``None`` waits for ever.
        max_retries: How often the SDK tries again after 408, 409, 429, 5xx or a broken connection.
        default_headers: Go with every request.
        system_prompt: Goes before messages that have no system message of their own.
        additional_kwargs: Further arguments of every request, in the SDK's spelling; those of a
            single call are given to the call.
        http_client: Used by the blocking calls instead of the SDK's own; its maker closes it.
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
        Have the model go on from ``prompt``; wait for the whole reply.

        A checkpoint; cancelled, it closes the connection. What the model has written by then is
        billed all the same.

        Args:
            prompt: The user's words.
            kwargs: Options of this one request, in the SDK's spelling; they win over the object's.

        Raises:
            openai.OpenAIError: As it comes from the SDK.
        """
        messages = from_prompt(prompt, self.system_prompt)
        return (await self._ask(messages, kwargs)).completion()

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Have the model take its turn; see `acomplete` for the rest."""
        return (await self._ask(from_messages(messages, self.system_prompt), kwargs)).chat()

    async def astream_complete(self, prompt: str, **kwargs: Any) -> CompletionStream:
        """
        Have the model go on from ``prompt``; give the reply as it is written.

        ``await`` sends the request and returns when the server has accepted it; then read the
        stream with ``async for``. Its last response has the whole text.

        Raises:
            openai.OpenAIError: As it comes from the SDK; also while the stream is read.
        """
        messages = from_prompt(prompt, self.system_prompt)
        hold, source = await self._open(messages, kwargs)
        stream = CompletionStream(source)
        hold.used_by(stream)
        return stream

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatStream:
        """Have the model take its turn; see `astream_complete` for the rest."""
        hold, source = await self._open(from_messages(messages, self.system_prompt), kwargs)
        stream = ChatStream(source)
        hold.used_by(stream)
        return stream

    async def aclose(self) -> None:
        """
        Close what this object has open in the running event loop: streams first, then connections.

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
        hold = self._clients.hold()
        try:
            with own_errors():
                reply = await _create(hold.client, request)
        finally:
            await hold.aclose()
        return _whole(reply.http_response)

    async def _open(
        self, messages: list[dict[str, Any]], kwargs: dict[str, Any]
    ) -> tuple[Hold[openai.AsyncOpenAI], ResponseSource]:
        request = self._stream_request(messages, kwargs)
        request["timeout"] = _within(request["timeout"], _seconds_left())
        hold = self._clients.hold()
        try:
            try:
                stream = await _create(hold.client, request)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as exc:
                request = self._without_stream_options(request, kwargs, exc)
                stream = await _create(hold.client, request)
        except BaseException:  # nobody will have the stream that would let go
            await hold.aclose()
            raise
        return hold, ResponseSource(stream.response, hold)

    # -- the blocking calls ------------------------------------------------------------------------

    def complete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        """Do as `acomplete` does, blocking. Raises `RuntimeError` where an event loop runs."""
        self._refuse_in_loop("complete")
        return self._ask_sync(from_prompt(prompt, self.system_prompt), kwargs).completion()

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Do as `achat` does, blocking. Raises `RuntimeError` where an event loop runs."""
        self._refuse_in_loop("chat")
        return self._ask_sync(from_messages(messages, self.system_prompt), kwargs).chat()

    def stream_complete(self, prompt: str, **kwargs: Any) -> SyncCompletionStream:
        """Do as `astream_complete` does, blocking. Raises `RuntimeError` where a loop runs."""
        self._refuse_in_loop("stream_complete")
        messages = from_prompt(prompt, self.system_prompt)
        return SyncCompletionStream(self._open_sync(messages, kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> SyncChatStream:
        """Do as `astream_chat` does, blocking. Raises `RuntimeError` where an event loop runs."""
        self._refuse_in_loop("stream_chat")
        wire = from_messages(messages, self.system_prompt)
        return SyncChatStream(self._open_sync(wire, kwargs))

    def close(self) -> None:
        """Close the connections of the blocking calls; dropping the object does the same."""
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
        with own_errors():
            reply = _create(self._sync(), request)
        return _whole(reply.http_response)

    def _open_sync(self, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> Any:
        request = self._stream_request(messages, kwargs)
        try:
            stream = _create(self._sync(), request)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as exc:
            request = self._without_stream_options(request, kwargs, exc)
            stream = _create(self._sync(), request)
        return stream.response

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
        request |= self.additional_kwargs | kwargs
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
        # Older servers know no stream_options and say so. What the caller asked for stays refused.
        asked_for = {**self.additional_kwargs, **kwargs}
        if (
            "stream_options" not in request
            or "stream_options" in asked_for
            or "stream_options" not in f"{refusal.message} {refusal.body}"
        ):
            raise refusal
        self._refuses_stream_options = True
        return {name: value for name, value in request.items() if name != "stream_options"}

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
        # The environment is read here, when the first request is made, and not when the object is.
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
            f'OpenAI(model={self.model!r}, api_key="..."); a server of your own needs no key, write '
            f'OpenAI(model={self.model!r}, base_url="http://127.0.0.1:8000/v1")'
        )
        raise openai.OpenAIError(msg)


def _seconds_left() -> float:
    backend = current_backend()
    return backend.current_effective_deadline() - backend.current_time()


def _within(timeout: Any, seconds_left: float) -> Any:
    """Bound a timeout by a deadline; one that is over leaves the next checkpoint to say so."""
    if not isinstance(timeout, int | float | None):
        return timeout  # the SDK knows a more detailed kind
    bounds = [bound for bound in (timeout, seconds_left) if bound is not None]
    shortest = max(min(bounds), 0.001)
    return None if shortest == float("inf") else shortest


def _create(client: openai.AsyncOpenAI | openai.OpenAI, request: dict[str, Any]) -> Any:
    # The SDK has one overload for each way to ask, and none for a request that is made up elsewhere.
    # It reads a reply without looking at it, so a whole one is taken as it came and read here.
    completions: Any = client.chat.completions
    if not request.get("stream"):
        completions = completions.with_raw_response
    create = cast("Callable[..., Any]", completions.create)
    return create(**request)


def _whole(response: Any) -> Assembly:
    fields = read_whole(response)
    assembly = Assembly()
    assembly.add(to_piece(fields, to_completion(fields)))
    return assembly.whole()
