"""Messages and replies: what goes to a language model, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

import attrs
import trio


#: Text, or a list of parts in OpenAI's shape (``{"type": "image_url", ...}``) for what is not text.
Content: TypeAlias = str | Sequence[Mapping[str, Any]]

#: So many characters of what a model wrote are shown in an error.
_SHOWN = 200


class StreamClosedError(trio.ClosedResourceError):
    """Raised when a stream of replies is read that has been closed before its end."""


class MessageRole(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    FUNCTION = "function"


@attrs.frozen(kw_only=True)
class ToolCall:
    """A model's wish to have a function called."""

    id: str = ""
    """Goes back as the ``tool_call_id`` of the message that carries the function's result."""

    name: str = ""
    """The function, as named in the request's ``tools``."""

    arguments: str = ""
    """The arguments as the model wrote them: JSON text, incomplete until the stream has ended."""

    @property
    def parsed(self) -> Any:
        """
        The arguments as Python objects; no text at all counts as no arguments, ``{}``.

        Raises:
            ValueError: What the model wrote is not JSON.
        """
        if not self.arguments.strip():
            return {}
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError) as exc:
            got = (
                self.arguments if len(self.arguments) <= _SHOWN else f"{self.arguments[:_SHOWN]}..."
            )
            msg = f"the arguments for tool {self.name!r} are not valid JSON: {exc}; got {got!r}"
            raise ValueError(msg) from exc


@attrs.frozen(kw_only=True)
class Usage:
    """What a request cost, in tokens, as the server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    reasoning_tokens: int = 0
    """The part of `completion_tokens` that went into reasoning nobody is shown."""

    cached_tokens: int = 0
    """The part of `prompt_tokens` that the server had seen before."""


def _to_calls(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    return tuple(calls)


def _to_dict(fields: Mapping[str, Any]) -> dict[str, Any]:
    # A read-only view could not be pickled, copied or kept in a snapshot.
    return dict(fields)


def _to_content(content: Content | None) -> Content:
    return "" if content is None else content


@attrs.frozen
class ChatMessage:
    """
    One turn of a conversation: ``ChatMessage(role="user", content="What is a sluicegate?")``.

    The role may be left out for the user's own turns; ``str(message)`` is ``"user: ..."``.
    """

    role: MessageRole = attrs.field(default=MessageRole.USER, converter=MessageRole)

    content: Content = attrs.field(default="", converter=_to_content)

    name: str | None = attrs.field(default=None, kw_only=True)
    """Tells speakers of the same role apart."""

    tool_calls: Sequence[ToolCall] = attrs.field(default=(), converter=_to_calls, kw_only=True)
    """What an assistant wants called."""

    tool_call_id: str | None = attrs.field(default=None, kw_only=True)
    """The call that a ``tool`` message answers."""

    additional_kwargs: Mapping[str, Any] = attrs.field(
        factory=dict[str, Any], converter=_to_dict, kw_only=True
    )
    """Further fields of the message on the wire, for servers that know some."""

    @property
    def text(self) -> str:
        """The content without what is not text."""
        if isinstance(self.content, str):
            return self.content
        texts = (part.get("text", "") for part in self.content if part.get("type") == "text")
        return "".join(texts)

    def __str__(self) -> str:
        return f"{self.role}: {self.text}"


@attrs.frozen(kw_only=True)
class _Response:
    """What both kinds of reply have in common."""

    delta: str = ""
    """The text that this piece of a stream adds; never ``None``, and empty in a reply got whole."""

    reasoning: str = ""
    """The reasoning so far, where the model shows it."""

    reasoning_delta: str = ""
    """The reasoning that this piece of a stream adds."""

    usage: Usage | None = None
    """Known at the end only, and not from every server."""

    finish_reason: str | None = None
    """``"stop"``, ``"length"``, ``"tool_calls"``, ...; ``None`` while the model is writing."""

    model: str = ""
    """The model that wrote, by the server's own account."""

    raw: Any = attrs.field(default=None, repr=False, eq=False)
    """What the server sent, as an object of the ``openai`` package."""

    additional_kwargs: Mapping[str, Any] = attrs.field(
        factory=dict[str, Any], converter=_to_dict, repr=False, eq=False
    )
    """The token counts once more, under the names that programs for LlamaIndex look for."""


@attrs.frozen(kw_only=True)
class CompletionResponse(_Response):
    """A completion, whole or so far; ``str(response)`` is its text."""

    text: str = ""
    """All of the text so far."""

    tool_calls: Sequence[ToolCall] = attrs.field(default=(), converter=_to_calls)
    """What the model wants called, put together from all pieces so far."""

    def __str__(self) -> str:
        return self.text


@attrs.frozen(kw_only=True)
class ChatResponse(_Response):
    """An assistant's turn, whole or so far; ``str(response)`` is ``"assistant: ..."``."""

    message: ChatMessage
    """All of the turn so far, ready to be appended to the conversation."""

    @property
    def text(self) -> str:
        """All of the message's text so far."""
        return self.message.text

    @property
    def tool_calls(self) -> Sequence[ToolCall]:
        """What the model wants called, put together from all pieces so far."""
        return self.message.tool_calls

    def __str__(self) -> str:
        return str(self.message)
