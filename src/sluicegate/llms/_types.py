"""Messages to a language model, and its replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

import attrs
import trio


#: Text, or a list of parts in OpenAI's form (``{"type": "image_url", ...}``) for other content.
Content: TypeAlias = str | Sequence[Mapping[str, Any]]

#: The number of characters of a model's text that an error shows.
_SHOWN = 200


class StreamClosedError(trio.ClosedResourceError):
    """Raised when a stream of replies is read that was closed before its end."""


class MessageRole(StrEnum):
    """The author of a message."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    FUNCTION = "function"


@attrs.frozen(kw_only=True)
class ToolCall:
    """A model's request to call a function."""

    id: str = ""
    """The ``tool_call_id`` of the message with the function's result."""

    name: str = ""
    """The name of the function in the request's ``tools``."""

    arguments: str = ""
    """The arguments as the model wrote them: JSON text, incomplete until the stream has ended."""

    @property
    def parsed(self) -> Any:
        """
        The arguments as Python objects; ``{}`` if the text is empty.

        Raises:
            ValueError: The text of the model is not JSON.
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
    """The number of tokens of a request, as the server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    reasoning_tokens: int = 0
    """The part of `completion_tokens` used for hidden reasoning."""

    cached_tokens: int = 0
    """The part of `prompt_tokens` that the server had cached."""

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of both, so that ``usage += response.usage or Usage()`` counts a run."""
        if not isinstance(other, Usage):
            return NotImplemented
        pairs = zip(attrs.astuple(self), attrs.astuple(other), strict=True)
        return Usage(**dict(zip(_COUNTS, (one + more for one, more in pairs), strict=True)))


_COUNTS = tuple(field.name for field in attrs.fields(Usage))


def _to_calls(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    return tuple(calls)


def _to_dict(fields: Mapping[str, Any]) -> dict[str, Any]:
    # A read-only view could not be pickled, copied or stored in a snapshot.
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
    """Distinguishes authors with the same role."""

    tool_calls: Sequence[ToolCall] = attrs.field(default=(), converter=_to_calls, kw_only=True)
    """The calls that an assistant requests."""

    tool_call_id: str | None = attrs.field(default=None, kw_only=True)
    """The call that a ``tool`` message answers."""

    additional_kwargs: Mapping[str, Any] = attrs.field(
        factory=dict[str, Any], converter=_to_dict, kw_only=True
    )
    """Further fields of the message on the wire, for servers that know some."""

    @property
    def text(self) -> str:
        """The text of the content."""
        if isinstance(self.content, str):
            return self.content
        texts = (part.get("text", "") for part in self.content if part.get("type") == "text")
        return "".join(texts)

    def __str__(self) -> str:
        return f"{self.role}: {self.text}"


@attrs.frozen(kw_only=True)
class _Response:
    """The common fields of both kinds of reply."""

    delta: str = ""
    """The text that this piece of a stream adds; never ``None``, empty in a reply received whole."""

    reasoning: str = ""
    """The reasoning so far, if the model shows it."""

    reasoning_delta: str = ""
    """The reasoning that this piece of a stream adds."""

    usage: Usage | None = None
    """Known only at the end, and not sent by every server."""

    finish_reason: str | None = None
    """``"stop"``, ``"length"``, ``"tool_calls"``, ...; ``None`` while the model is writing."""

    model: str = ""
    """The name of the model, as the server reports it."""

    raw: Any = attrs.field(default=None, repr=False, eq=False)
    """The server's reply, as an object of the ``openai`` package."""

    additional_kwargs: Mapping[str, Any] = attrs.field(
        factory=dict[str, Any], converter=_to_dict, repr=False, eq=False
    )
    """The token counts again, under the names that programs for LlamaIndex use."""


@attrs.frozen(kw_only=True)
class CompletionResponse(_Response):
    """A completion, whole or so far; ``str(response)`` is its text."""

    text: str = ""
    """The text so far."""

    tool_calls: Sequence[ToolCall] = attrs.field(default=(), converter=_to_calls)
    """The calls that the model requests, joined from all pieces so far."""

    def __str__(self) -> str:
        return self.text


@attrs.frozen(kw_only=True)
class ChatResponse(_Response):
    """An assistant's turn, whole or so far; ``str(response)`` is ``"assistant: ..."``."""

    message: ChatMessage
    """The whole turn so far, ready to be appended to the conversation."""

    @property
    def text(self) -> str:
        """The text of the message so far."""
        return self.message.text

    @property
    def tool_calls(self) -> Sequence[ToolCall]:
        """The calls that the model requests, joined from all pieces so far."""
        return self.message.tool_calls

    def __str__(self) -> str:
        return str(self.message)
