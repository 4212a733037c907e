"""Joining the pieces of a streamed reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from ._types import ChatMessage, ChatResponse, CompletionResponse, MessageRole, ToolCall, Usage


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@attrs.frozen(kw_only=True)
class ToolCallPiece:
    """The part of one tool call that one piece of a stream contains."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@attrs.frozen(kw_only=True)
class Piece:
    """The part of the reply in one message of a stream, in the same form for every server."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCallPiece] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str = ""
    raw: Any = None


class Assembly:
    """The reply so far."""

    def __init__(self) -> None:
        self._text = ""
        self._reasoning = ""
        self._calls: dict[int, ToolCall] = {}
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._model = ""
        self._last = Piece()

    @property
    def text(self) -> str:
        """The text so far."""
        return self._text

    def add(self, piece: Piece) -> None:
        """Add one piece."""
        self._text += piece.text
        self._reasoning += piece.reasoning
        for part in piece.tool_calls:
            self._add_call(part)
        self._finish_reason = piece.finish_reason or self._finish_reason
        self._usage = piece.usage or self._usage
        self._model = piece.model or self._model
        self._last = piece

    def _add_call(self, part: ToolCallPiece) -> None:
        # The first piece of a call has the whole id and name. Some servers repeat them in every
        # piece, so they replace the earlier ones and are not appended.
        so_far = self._calls.get(part.index, ToolCall())
        self._calls[part.index] = ToolCall(
            id=part.id or so_far.id,
            name=part.name or so_far.name,
            arguments=so_far.arguments + part.arguments,
        )

    def whole(self) -> Assembly:
        """Mark the reply as received whole, so that it has no delta."""
        self._last = attrs.evolve(self._last, text="", reasoning="")
        return self

    def completion(self) -> CompletionResponse:
        """Return the reply so far as a completion."""
        return CompletionResponse(text=self._text, tool_calls=self._tool_calls(), **self._common())

    def chat(self) -> ChatResponse:
        """Return the reply so far as a chat message."""
        message = ChatMessage(MessageRole.ASSISTANT, self._text, tool_calls=self._tool_calls())
        return ChatResponse(message=message, **self._common())

    def _tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(self._calls[index] for index in sorted(self._calls))

    def _common(self) -> dict[str, Any]:
        return {
            "delta": self._last.text,
            "reasoning": self._reasoning,
            "reasoning_delta": self._last.reasoning,
            "usage": self._usage,
            "finish_reason": self._finish_reason,
            "model": self._model,
            "raw": self._last.raw,
            "additional_kwargs": _token_counts(self._usage),
        }


def _token_counts(usage: Usage | None) -> Mapping[str, Any]:
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
