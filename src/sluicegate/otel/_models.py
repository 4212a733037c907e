"""Spans and metrics of calls to a model."""

from __future__ import annotations

import json
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, final

from opentelemetry import context as context_api
from opentelemetry.trace import SpanKind, set_span_in_context

from ._failures import error_type, mark_failed
from ._names import (
    CACHED_TOKENS,
    CANCELLATION_REASON,
    CHAT,
    ERROR_TYPE,
    FINISH_REASONS,
    INPUT_MESSAGES,
    INPUT_TOKENS,
    OPERATION,
    OUTCOME,
    OUTPUT_MESSAGES,
    OUTPUT_TOKENS,
    PROVIDER,
    REASONING_TOKENS,
    REQUEST_MODEL,
    REQUEST_OPTIONS,
    REQUEST_STREAM,
    RESPONSE_ID,
    RESPONSE_MODEL,
    SERVER_ADDRESS,
    SERVER_PORT,
    TIME_TO_FIRST_CHUNK,
    TOKEN_TYPE,
)


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.trace import Tracer

    from sluicegate.llms._assembly import Piece
    from sluicegate.llms._calls import CallOutcome, ModelCall
    from sluicegate.llms._types import Usage

    from ._instruments import Instruments


class Owner(Protocol):
    """The step or the run that makes a call."""

    #: The exception that a span inside it has recorded.
    recorded: BaseException | None


@final
class CallSpan:
    """The span of one call, a child of the span that is current where the call begins.

    It is current while the request is sent, so that the spans of the HTTP client are its children. It
    is never current while a stream is read: the tasks that read may be others.

    Args:
        tracer: Makes the span.
        instruments: Measure the call.
        call: The request.
        owner: The step or the run that makes it; None for none.
        captures_values: Whether the span shows the messages.
    """

    __slots__ = (
        "_attributes",
        "_began",
        "_captures",
        "_finish_reason",
        "_first",
        "_instruments",
        "_is_stream",
        "_model",
        "_owner",
        "_response_id",
        "_span",
        "_text",
        "_token",
        "_usage",
    )

    def __init__(
        self,
        tracer: Tracer,
        instruments: Instruments,
        call: ModelCall,
        owner: Owner | None,
        *,
        captures_values: bool,
    ) -> None:
        self._instruments = instruments
        self._owner = owner
        self._captures = captures_values
        self._is_stream = call.is_stream
        self._attributes = attributes = _identity(call)
        self._span = tracer.start_span(
            f"{CHAT} {call.model}",
            kind=SpanKind.CLIENT,
            attributes={**attributes, **_options(call)},
        )
        if captures_values and self._span.is_recording():
            self._span.set_attribute(INPUT_MESSAGES, messages_as_json(call.messages))
        self._token: Any = None
        self._began = perf_counter()
        self._first: float | None = None
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._model = self._response_id = ""
        self._text: list[str] = []

    def enter(self) -> None:
        """Make the span current."""
        self._token = context_api.attach(set_span_in_context(self._span))

    def leave(self) -> None:
        """Make the former span current again."""
        context_api.detach(self._token)
        self._token = None

    def received(self, piece: Piece) -> None:
        """Note a piece of the reply."""
        if self._first is None:
            self._first = perf_counter() - self._began
        self._usage = piece.usage or self._usage
        self._finish_reason = piece.finish_reason or self._finish_reason
        self._model = piece.model or self._model
        self._response_id = self._response_id or str(getattr(piece.raw, "id", None) or "")
        if self._captures and piece.text:
            self._text.append(piece.text)

    def end(self, outcome: CallOutcome, error: BaseException | None) -> None:
        """End the span, and measure the call."""
        took = perf_counter() - self._began
        span = self._span
        span.set_attributes(self._response())
        span.set_attribute(OUTCOME, outcome)
        if outcome == "failed" and error is not None:
            mark_failed(span, error, is_recorded=False)
            if self._owner is not None:
                self._owner.recorded = error
        elif outcome == "cancelled":
            why = (
                "the stream was closed before its end"
                if error is None
                else "the call was cancelled"
            )
            span.set_attribute(CANCELLATION_REASON, why)
        self._measure(took, error if outcome == "failed" else None)
        self._owner = None
        span.end()

    def _response(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._model:
            found[RESPONSE_MODEL] = self._model
        if self._response_id:
            found[RESPONSE_ID] = self._response_id
        if self._finish_reason is not None:
            found[FINISH_REASONS] = [self._finish_reason]
        if self._is_stream and self._first is not None:
            found[TIME_TO_FIRST_CHUNK] = self._first
        usage = self._usage
        if usage is not None:
            found[INPUT_TOKENS] = usage.prompt_tokens
            found[OUTPUT_TOKENS] = usage.completion_tokens
            if usage.reasoning_tokens:
                found[REASONING_TOKENS] = usage.reasoning_tokens
            if usage.cached_tokens:
                found[CACHED_TOKENS] = usage.cached_tokens
        if self._text:
            message = {"role": "assistant", "content": "".join(self._text)}
            found[OUTPUT_MESSAGES] = messages_as_json([message], self._finish_reason)
        return found

    def _measure(self, took: float, failure: BaseException | None) -> None:
        attributes, instruments = self._attributes, self._instruments
        if self._model:
            attributes[RESPONSE_MODEL] = self._model
        if self._usage is not None:
            for kind, tokens in (
                ("input", self._usage.prompt_tokens),
                ("output", self._usage.completion_tokens),
            ):
                instruments.token_usage.record(tokens, {**attributes, TOKEN_TYPE: kind})
        if self._is_stream and self._first is not None:
            instruments.first_chunk.record(self._first, attributes)
        if failure is not None:
            attributes = {**attributes, ERROR_TYPE: error_type(failure)}
        instruments.call_duration.record(took, attributes)


def _identity(call: ModelCall) -> dict[str, Any]:
    found: dict[str, Any] = {
        OPERATION: CHAT,
        PROVIDER: call.provider,
        REQUEST_MODEL: call.model,
    }
    if call.address is not None:
        found[SERVER_ADDRESS] = call.address
        if call.port is not None:
            found[SERVER_PORT] = call.port
    return found


def _options(call: ModelCall) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: call.options[option]
        for option, name in REQUEST_OPTIONS.items()
        if isinstance(call.options.get(option), int | float)
    }
    if call.is_stream:
        found[REQUEST_STREAM] = True
    return found


def messages_as_json(
    messages: Sequence[Mapping[str, Any]], finish_reason: str | None = None
) -> str:
    """Return messages in the form of the conventions: a role, and parts, each with its type."""
    found: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            parts: list[Any] = [{"type": "text", "content": content}] if content else []
        else:
            parts = list(content or ())
        for call in message.get("tool_calls") or ():
            function = call.get("function", {})
            parts.append({"type": "tool_call", "id": call.get("id"), **function})
        entry: dict[str, Any] = {"role": message.get("role", "user"), "parts": parts}
        if finish_reason is not None:
            entry["finish_reason"] = finish_reason
        found.append(entry)
    return json.dumps(found, default=str)
