"""A language model that says what it is told to: for tests, examples and documentation."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from sluicegate._loop import current_backend

from ._assembly import Assembly, Piece, ToolCallPiece
from ._streams import ChatStream, CompletionStream
from ._types import ChatMessage, ChatResponse, CompletionResponse, ToolCall, Usage
from ._wire import from_messages, from_prompt


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self, TypeAlias

    #: Text, tool calls, both in a message, or an exception to raise instead of a reply.
    Reply: TypeAlias = str | ToolCall | Sequence[ToolCall] | ChatMessage | BaseException


# A token is a word with the space before it; the tokens of a text make up the text again.
_TOKEN = re.compile(r"\s*\S+|\s+$")


class MockLLM:
    """
    A model that answers from a script, or with the user's own words when the script is over.

    ::

        llm = MockLLM(["First reply.", TimeoutError("no second")], delay=0.01)

    Args:
        replies: One for each request, in order: a text, a `ToolCall` or several, a `ChatMessage`,
            or an exception, which is raised instead. Requests beyond the last are echoed.
        delay: Seconds before each token, on the event loop's clock, so that a test's clock may
            drive it. Without it every token is a checkpoint still.
        fail_after: Raise this many tokens into each reply, for a failure in mid-stream.
        error: What `fail_after` raises; a `ConnectionError` unless given.
        model: The name to go by.
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
        self.error: BaseException = error or ConnectionError("the mock was told to fail")
        self._replies: deque[Reply] = deque(replies)

        self.requests: list[tuple[ChatMessage, ...]] = []
        """The messages of every request so far, a prompt as one user message."""

        self.kwargs: list[dict[str, Any]] = []
        """The options of every request so far."""

        self.open_streams = 0
        """How many streams have been opened and not yet closed."""

    def __repr__(self) -> str:
        return f"<MockLLM {len(self.requests)} requests, {len(self._replies)} replies left>"

    @property
    def prompts(self) -> list[str]:
        """What the user last said in each request so far."""
        return [messages[-1].text if messages else "" for messages in self.requests]

    async def acomplete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        """Give the next reply whole, after all of its delays."""
        return (await self._whole(self._ask_prompt(prompt, kwargs))).completion()

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Give the next reply whole, after all of its delays."""
        return (await self._whole(self._ask(messages, kwargs))).chat()

    async def astream_complete(self, prompt: str, **kwargs: Any) -> CompletionStream:
        """Give the next reply token by token."""
        source = self._ask_prompt(prompt, kwargs)
        await current_backend().checkpoint()
        return CompletionStream(source.opened())

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatStream:
        """Give the next reply token by token."""
        source = self._ask(messages, kwargs)
        await current_backend().checkpoint()
        return ChatStream(source.opened())

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close but streams, which have their owners."""
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

    def _ask_prompt(self, prompt: str, kwargs: dict[str, Any]) -> _Script:
        from_prompt(prompt, None)  # refuses what the real thing refuses
        return self._ask([ChatMessage(content=prompt)], kwargs)

    def _ask(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> _Script:
        from_messages(messages, None)
        self.requests.append(tuple(messages))
        self.kwargs.append(kwargs)
        reply = self._replies.popleft() if self._replies else self.prompts[-1]
        if isinstance(reply, BaseException):
            raise reply
        return _Script(self, list(_pieces(reply, self.prompts[-1], self.model)))

    async def _whole(self, source: _Script) -> Assembly:
        assembly = Assembly()
        while (piece := await source.receive()) is not None:
            assembly.add(piece)
        return assembly.whole()


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
