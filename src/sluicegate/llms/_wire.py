"""OpenAI's chat format: messages into requests, chunks and whole replies into pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from ._assembly import Piece, ToolCallPiece
from ._types import ChatMessage, MessageRole, Usage


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


# Servers differ in all optional fields, and in some required ones. So chunks are read as dicts, each
# of whose fields may be missing, and not through a model that requires fields.

#: Models that refuse `max_tokens` and need `max_completion_tokens`.
_REASONING_MODEL = re.compile(r"(o\d|gpt-5)")


def max_tokens_name(model: str) -> str:
    """Return the name of the option that limits a reply of ``model``."""
    return "max_completion_tokens" if _REASONING_MODEL.match(model) else "max_tokens"


def from_prompt(prompt: str, system_prompt: str | None) -> list[dict[str, Any]]:
    """Make the messages of a request to complete ``prompt``."""
    if not isinstance(prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = (
            f"a prompt is a str, got {type(prompt).__name__}; "
            "for messages use achat() or astream_chat()"
        )
        raise TypeError(msg)
    return from_messages([ChatMessage(content=prompt)], system_prompt)


def from_messages(
    messages: Iterable[ChatMessage], system_prompt: str | None
) -> list[dict[str, Any]]:
    """Make the ``messages`` of a request, with the system prompt first unless they contain one."""
    if isinstance(messages, str | ChatMessage):
        msg = (
            f"messages are a list of ChatMessage, got one {type(messages).__name__}; "
            'write [ChatMessage(role="user", content=...)]'
        )
        raise TypeError(msg)
    messages = list(messages)
    own = any(message.role in {MessageRole.SYSTEM, MessageRole.DEVELOPER} for message in messages)
    if system_prompt and not own:
        messages.insert(0, ChatMessage(MessageRole.SYSTEM, system_prompt))
    return [_from_message(message) for message in messages]


def _from_message(message: ChatMessage) -> dict[str, Any]:
    content = message.content
    wire: dict[str, Any] = {
        "role": message.role.value,
        "content": content if isinstance(content, str) else [dict(part) for part in content],
    }
    if message.name is not None:
        wire["name"] = message.name
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        wire["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return wire | dict(message.additional_kwargs)


def to_piece(data: Mapping[str, Any], raw: object) -> Piece:
    """Read a chunk of a stream, or a whole reply, which is a stream of one."""
    choice = _first_choice(data.get("choices"))
    said = _mapping(choice.get("delta") or choice.get("message"))
    return Piece(
        text=_text(said.get("content")) or _text(said.get("refusal")),
        reasoning=_text(said.get("reasoning_content")) or _text(said.get("reasoning")),
        tool_calls=[_to_call(n, call) for n, call in enumerate(_mappings(said.get("tool_calls")))],
        finish_reason=_text(choice.get("finish_reason")) or None,
        usage=_to_usage(data.get("usage")),
        model=_text(data.get("model")),
        raw=raw,
    )


def _first_choice(choices: object) -> Mapping[str, Any]:
    # The chunk with the usage has no choices; with n > 1 the other choices are only in `raw`.
    chosen = [c for c in _mappings(choices) if c.get("index") in {0, None}]
    return chosen[0] if chosen else {}


def _to_call(position: int, call: Mapping[str, Any]) -> ToolCallPiece:
    function = _mapping(call.get("function"))
    index = call.get("index")
    return ToolCallPiece(
        index=index if isinstance(index, int) else position,
        id=_text(call.get("id")),
        name=_text(function.get("name")),
        arguments=_text(function.get("arguments")),
    )


def _to_usage(usage: object) -> Usage | None:
    counts = _mapping(usage)
    if not counts:
        return None
    prompt = _number(counts.get("prompt_tokens"))
    completion = _number(counts.get("completion_tokens"))
    written = _mapping(counts.get("completion_tokens_details"))
    read = _mapping(counts.get("prompt_tokens_details"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=_number(counts.get("total_tokens")) or prompt + completion,
        reasoning_tokens=_number(written.get("reasoning_tokens")),
        cached_tokens=_number(read.get("cached_tokens")),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _mappings(value: object) -> Sequence[Mapping[str, Any]]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Mapping[str, Any]", item) for item in items if isinstance(item, Mapping)]
