"""What a step may expect of a language model, whoever makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._streams import ChatStream, CompletionStream
    from ._types import ChatMessage, ChatResponse, CompletionResponse


@runtime_checkable
class LLM(Protocol):
    """
    A language model, asked from a task.

    The four calls are checkpoints, may be made from any number of tasks at once, and leave no
    connection behind when they are cancelled. ``kwargs`` are options of the one request; which
    there are is the model's business.
    """

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    async def acomplete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        """Go on from ``prompt``; give the whole reply."""
        ...

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Take a turn after ``messages``; give the whole reply."""
        ...

    async def astream_complete(self, prompt: str, **kwargs: Any) -> CompletionStream:
        """Go on from ``prompt``; ``await`` gives the stream, ``async for`` the reply so far."""
        ...

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatStream:
        """Take a turn after ``messages``; ``await`` gives the stream, ``async for`` the reply."""
        ...

    async def aclose(self) -> None:
        """Close what is open in the running event loop; works in a cancelled scope."""
        ...
