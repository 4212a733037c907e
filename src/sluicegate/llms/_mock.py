"""A language model with scripted replies, for tests, examples and documentation."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from sluicegate._loop import current_backend

from ._assembly import Assembly, Piece, ToolCallPiece
from ._calls import ModelCall, watch_call, watched
from ._streams import ChatStream, CompletionStream
from ._tools import to_options
from ._types import ChatMessage, ChatResponse, CompletionResponse, ToolCall, Usage
from ._wire import from_messages, from_prompt


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self, TypeAlias

    from ._calls import WatchedCall
    from ._streams import Source

    #: Text, tool calls, both in a message, or an exception to raise instead of a reply.
    Reply: TypeAlias = str | ToolCall | Sequence[ToolCall] | ChatMessage | BaseException


# A token is a word with the space before it; the tokens of a text make up the text again.
_TOKEN = re.compile(r"\s*\S+|\s+$")


class MockLLM:
    """
    A model that answers from a script, and repeats the user's message after the script's end.

    ::

        llm = MockLLM(["First reply.", TimeoutError("no second")], delay=0.01)

    Args:
        replies: One reply to each request, in order: a text, a `ToolCall` or several, a
            `ChatMessage`, or an exception to raise. Further requests are answered with the user's
            message.
        delay: Seconds before each token, on the event loop's clock, so that a test's clock can
            drive it. With 0 every token is still a checkpoint.
        fail_after: Raise after this number of tokens of each reply, to test a failure mid-stream.
        error: The exception that `fail_after` raises; by default a `ConnectionError`.
        model: The name of the model.
    """

    def __init__(
        self,
        replies: Iterable[Reply] = (),
        *,
        delay: float = 0.0,
        fail_after: int | None = None,
        error: BaseException | None = None,
        model: str = "mock",
    ) -> None:
        if isinstance(replies, str):
            msg = f"replies are a list, one for each request; write MockLLM([{replies!r}])"
            raise TypeError(msg)
        self.model = model
        self.delay = delay
        self.fail_after = fail_after
        self.error: BaseException = error or ConnectionError("a scripted failure of MockLLM")
        self._replies: deque[Reply] = deque(replies)

        self.requests: list[tuple[ChatMessage, ...]] = []
        """The messages of every request so far, a prompt as one user message."""

        self.kwargs: list[dict[str, Any]] = []
        """The options of every request so far."""

        self.open_streams = 0
        """The number of open streams."""

    def __repr__(self) -> str:
        return f"<MockLLM {len(self.requests)} requests, {len(self._replies)} replies left>"

    @property
    def prompts(self) -> list[str]:
        """The last message of the user in each request so far."""
        return [messages[-1].text if messages else "" for messages in self.requests]

    async def acomplete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        """Return the whole next reply, after all of its delays."""
        return (await self._whole(_from_prompt(prompt), kwargs)).completion()

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the whole next reply, after all of its delays."""
        return (await self._whole(messages, kwargs)).chat()

    async def astream_complete(self, prompt: str, **kwargs: Any) -> CompletionStream:
        """Return the next reply as a stream of tokens."""
        return CompletionStream(await self._open(_from_prompt(prompt), kwargs))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatStream:
        """Return the next reply as a stream of tokens."""
        return ChatStream(await self._open(messages, kwargs))

    async def aclose(self) -> None:
        """Do nothing but a checkpoint, because streams have their own owners."""
        await current_backend().checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _whole(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Assembly:
        assembly = Assembly()
        with self._watch(messages, kwargs, is_stream=False) as call:
            source = watched(self._ask(messages, kwargs), call)
            while (piece := await source.receive()) is not None:
                assembly.add(piece)
        return assembly.whole()

    async def _open(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Source:
        with self._watch(messages, kwargs, is_stream=True) as call:
            source = self._ask(messages, kwargs)
            await current_backend().checkpoint()
            return watched(source.opened(), call)

    def _ask(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> _Script:
        from_messages(messages, None)
        to_options(kwargs)  # refuses the same tools as a real model
        self.requests.append(tuple(messages))
        self.kwargs.append(kwargs)
        reply = self._replies.popleft() if self._replies else self.prompts[-1]
        if isinstance(reply, BaseException):
            raise reply
        return _Script(self, list(_pieces(reply, self.prompts[-1], self.model)))

    def _watch(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], *, is_stream: bool
    ) -> WatchedCall:
        def describe() -> ModelCall:
            return ModelCall(
                provider="mock",
                model=self.model,
                messages=from_messages(messages, None),
                options=to_options(kwargs),
                is_stream=is_stream,
            )

        return watch_call(describe)


def _from_prompt(prompt: str) -> list[ChatMessage]:
    from_prompt(prompt, None)  # refuses the same arguments as a real model
    return [ChatMessage(content=prompt)]


class _Script:
    """The pieces of one scripted reply."""

    def __init__(self, llm: MockLLM, pieces: list[Piece]) -> None:
        self._llm = llm
        self._pieces = deque(pieces)
        self._given = 0
        self._open = False

    def opened(self) -> _Script:
        self._open = True
        self._llm.open_streams += 1
        return self

    async def receive(self) -> Piece | None:
        await current_backend().sleep(self._llm.delay)
        if self._given == self._llm.fail_after:
            raise self._llm.error
        self._given += 1
        return self._pieces.popleft() if self._pieces else None

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._llm.open_streams -= 1


def _pieces(
    reply: str | ToolCall | Sequence[ToolCall] | ChatMessage, prompt: str, model: str
) -> Iterable[Piece]:
    calls: tuple[ToolCall, ...]
    if isinstance(reply, ChatMessage):
        text, calls = reply.text, tuple(reply.tool_calls)
    elif isinstance(reply, str):
        text, calls = reply, ()
    elif isinstance(reply, ToolCall):
        text, calls = "", (reply,)
    else:
        text, calls = "", tuple(reply)
    words = _TOKEN.findall(text)
    for word in words:
        yield Piece(text=word, model=model)
    for index, call in enumerate(calls):
        part = ToolCallPiece(index=index, id=call.id, name=call.name, arguments=call.arguments)
        yield Piece(tool_calls=[part], model=model)
    read = len(_TOKEN.findall(prompt))
    usage = Usage(prompt_tokens=read, completion_tokens=len(words), total_tokens=read + len(words))
    yield Piece(finish_reason="tool_calls" if calls else "stop", usage=usage, model=model)
