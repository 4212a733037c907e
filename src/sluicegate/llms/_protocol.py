"""The interface of a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._streams import ChatStream, CompletionStream
    from ._types import ChatMessage, ChatResponse, CompletionResponse


@runtime_checkable
class LLM(Protocol):
    """
    A language model, for calls from a task.

    The four calls are checkpoints, may be made from any number of tasks at once, and leave no
    connection open when they are cancelled. ``kwargs`` are options of the single request; each
    model has its own.
    """

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    async def acomplete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        """Complete ``prompt``; return the whole reply."""
        ...

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Reply to ``messages``; return the whole reply."""
        ...

    async def astream_complete(self, prompt: str, **kwargs: Any) -> CompletionStream:
        """Complete ``prompt``; ``await`` returns the stream, ``async for`` yields the reply so far."""
        ...

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatStream:
        """Reply to ``messages``; ``await`` returns the stream, ``async for`` yields the reply."""
        ...

    async def aclose(self) -> None:
        """Close all connections of the running event loop; works in a cancelled scope."""
        ...
