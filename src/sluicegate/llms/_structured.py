"""Replies of a declared class: its schema for the model, and the reply's text as a value."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Generic, TypeGuard, TypeVar, cast

import attrs
import msgspec

from sluicegate._annotations import class_of, text_of
from sluicegate._data.from_outside import decode_event, decode_value
from sluicegate._data.json import schema_of, schema_of_value
from sluicegate._data.refusals import DecodingError
from sluicegate._errors import brief
from sluicegate._events import Event

from ._types import ChatMessage, ChatResponse, CompletionResponse, MessageRole, Usage


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._protocol import LLM

T = TypeVar("T")

#: The fence that some models put around JSON.
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


class OutputError(ValueError):
    """Raised when a model's reply is not the value that was asked for. The text names the place."""


@attrs.frozen(kw_only=True)
class StructuredResponse(Generic[T]):
    """A value that a model has made."""

    value: T

    response: ChatResponse
    """The reply that the value was read from."""

    usage: Usage
    """The tokens of all attempts."""


def response_format(kind: type[Any]) -> dict[str, Any]:
    """
    Return the option that has a model reply with the JSON of a class.

    ::

        response = await llm.achat(messages, response_format=response_format(Verdict))
        verdict = read_response(Verdict, response)

    Args:
        kind: A class with fields: an event, a pydantic model, an attrs class, a dataclass, a struct
            or a typed dict. A list or a union is a field of one.

    Returns:
        The option in OpenAI's form, not strict: OpenAI's strict mode allows no optional fields.

    Raises:
        TypeError: The class has no fields, or an annotation that cannot be resolved.
    """
    schema = schema_of(kind) if _is_event(kind) else schema_of_value(kind)
    reference = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    schema = {**schema, **schema.get("$defs", {}).get(reference, {})}
    schema.pop("$ref", None)
    if schema.get("type") != "object" or "properties" not in schema:
        msg = (
            f"a model cannot reply with {text_of(kind)}; expected a class with fields, such as "
            f"`class Reply(Event): items: {text_of(kind)}`"
        )
        raise TypeError(msg)
    name = _NOT_IN_A_NAME.sub("_", text_of(kind))[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def read_response(kind: type[T], response: ChatResponse | CompletionResponse | str) -> T:
    """
    Return the value in a model's reply: JSON, which may be in a Markdown fence.

    It is decoded by the annotations of the class, as the arguments of a tool are.

    Args:
        kind: The class, as for `response_format`.
        response: The reply, or its text.

    Raises:
        OutputError: The text is not JSON, or does not fit.
    """
    text = response if isinstance(response, str) else response.text
    fenced = _FENCE.fullmatch(text)
    name = text_of(kind)
    try:
        data: Any = msgspec.json.decode(fenced[1] if fenced else text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        msg = f"the reply is not the JSON of a {name}: {error}; got {brief(text)}"
        raise OutputError(msg) from error
    try:
        made: Any = decode_event(kind, data) if _is_event(kind) else decode_value(kind, data)
    except (DecodingError, TypeError) as error:
        msg = f"the reply is not a {name}: {error}"
        raise OutputError(msg) from error
    return cast("T", made)


def _is_event(kind: Any) -> TypeGuard[type[Event]]:
    cls = class_of(kind)
    return isinstance(cls, type) and issubclass(cls, Event)


async def structured_chat(
    llm: LLM,
    kind: type[T],
    messages: Sequence[ChatMessage],
    *,
    attempts: int = 2,
    **kwargs: Any,
) -> StructuredResponse[T]:
    """
    Have a model reply with a value of a class, and tell it what is wrong with a reply that is none.

    Every attempt is a request. A checkpoint, as `LLM.achat`; cancelled, it leaves nothing.

    Args:
        llm: The model.
        kind: The class, as for `response_format`.
        messages: The conversation; it is not changed.
        attempts: The number of replies, at least 1. After a faulty one the model is shown its reply
            and the error.
        kwargs: Further options of the requests.

    Raises:
        OutputError: The last reply is no such value.
        TypeError: The class has no fields.
        Exception: The model's own exception.
    """
    if attempts < 1:
        msg = f"attempts is {attempts}; expected a number of at least 1"
        raise ValueError(msg)
    options = {"response_format": response_format(kind), **kwargs}
    conversation = list(messages)
    usage = Usage()
    while True:
        response = await llm.achat(conversation, **options)
        usage += response.usage or Usage()
        attempts -= 1
        try:
            value = read_response(kind, response)
        except OutputError as error:
            if not attempts:
                raise
            correction = f"{error}. Reply with the corrected JSON only."
            conversation += [response.message, ChatMessage(MessageRole.USER, correction)]
        else:
            return StructuredResponse(value=value, response=response, usage=usage)
