"""Spans and measurements of model calls that steps make."""

from __future__ import annotations

import json

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from sluicegate import StartEvent, StopEvent, Workflow, step
from sluicegate.llms import ChatMessage, MockLLM
from sluicegate.llms.local import LocalServer
from sluicegate.llms.openai import OpenAI


pytestmark = pytest.mark.anyio


class Asks(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ev.how(ev.llm))


class AsksInThread(Workflow):
    @step
    def ask(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.how(ev.llm))


async def read_whole(llm):
    async with await llm.astream_chat([ChatMessage(content="what is a sluicegate")]) as stream:
        async for _ in stream:
            assert trace.get_current_span().name == "step ask"  # never the span of the call
    return str(stream)


async def ask_once(llm):
    reply = await llm.acomplete("what is a sluicegate", temperature=0.5, max_tokens=7)
    assert trace.get_current_span().name == "step ask"  # as before the call
    return str(reply)


@pytest.mark.parametrize("how", [read_whole, ask_once])
async def test_a_call_is_a_client_span_inside_its_step(traced, how):
    """Model, tokens and the reason of the end are attributes; the first chunk's time is a stream's."""
    await Asks(observers=[traced.observer]).run(llm=MockLLM(["A gate of a canal."]), how=how)

    span = traced.one("chat mock")
    assert traced.parent(span) == "step ask"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mock",
        "gen_ai.request.model": "mock",
        "gen_ai.response.model": "mock",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 5,
        "sluicegate.outcome": "completed",
    }
    if how is read_whole:
        assert span.attributes["gen_ai.response.time_to_first_chunk"] > 0
        expected["gen_ai.request.stream"] = True
    else:
        expected |= {"gen_ai.request.temperature": 0.5, "gen_ai.request.max_tokens": 7}
    shown = dict(span.attributes)
    shown.pop("gen_ai.response.time_to_first_chunk", None)
    assert shown == expected

    tokens = {
        attributes["gen_ai.token.type"]: point.sum
        for attributes, point in traced.points("gen_ai.client.token.usage")
    }
    assert tokens == {"input": 4, "output": 5}
    ((attributes, duration),) = traced.points("gen_ai.client.operation.duration")
    assert duration.count == 1
    assert attributes["gen_ai.request.model"] == "mock"
    first = traced.points("gen_ai.client.operation.time_to_first_chunk")
    assert len(first) == (how is read_whole)


async def test_a_stream_that_is_left_early_is_cancelled(traced):
    """The step closes it, so nobody has read the reply to its end: no error, and no tokens."""

    async def leave(llm):
        stream = await llm.astream_complete("tell me")
        await anext(stream)
        return "left"

    await Asks(observers=[traced.observer]).run(llm=MockLLM(["one two three"]), how=leave)

    span = traced.one("chat mock")
    assert span.attributes["sluicegate.outcome"] == "cancelled"
    assert span.attributes["sluicegate.cancellation.reason"] == (
        "the stream was closed before its end"
    )
    assert span.status.status_code is StatusCode.UNSET
    assert "gen_ai.usage.output_tokens" not in span.attributes
    assert traced.points("gen_ai.client.token.usage") == []


@pytest.mark.parametrize("how", [read_whole, ask_once])
async def test_a_cancelled_call_is_no_error(traced, how):
    """The cancellation of the run reaches the call while it waits for the model."""
    llm = MockLLM(["one two"], delay=3600)
    async with Asks(observers=[traced.observer]).run(llm=llm, how=how) as handler:
        while not llm.requests:
            await anyio.sleep(0)
        handler.cancel("the user has left")

    span = traced.one("chat mock")
    assert span.attributes["sluicegate.outcome"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET
    assert traced.one("step ask").attributes["sluicegate.outcome"] == "cancelled"


@pytest.mark.parametrize(
    ("llm", "how"),
    [
        (lambda: MockLLM([TimeoutError("slow")]), ask_once),
        (lambda: MockLLM([TimeoutError("slow")]), read_whole),
        (lambda: MockLLM(["one two"], fail_after=1, error=TimeoutError("slow")), ask_once),
        (lambda: MockLLM(["one two"], fail_after=1, error=TimeoutError("slow")), read_whole),
    ],
)
async def test_a_failed_call_has_the_exception_and_the_step_has_not(traced, llm, how):
    """The exception is recorded where it was raised; step and run only say which it was."""
    with pytest.raises(TimeoutError):
        await Asks(observers=[traced.observer]).run(llm=llm(), how=how)

    span = traced.one("chat mock")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "TimeoutError"
    assert [event.name for event in span.events] == ["exception"]
    for name in ("step ask", "invoke_workflow Asks"):
        assert traced.one(name).status.status_code is StatusCode.ERROR
        assert [e.name for e in traced.one(name).events] == []
    ((attributes, _),) = traced.points("gen_ai.client.operation.duration")
    assert attributes["error.type"] == "TimeoutError"


async def test_messages_are_shown_where_they_are_asked_for(make_traced):
    """In the form of the conventions: roles, and parts with their types."""
    traced = make_traced(capture_values=True)
    await Asks(observers=[traced.observer]).run(llm=MockLLM(["A gate."]), how=read_whole)

    span = traced.one("chat mock")
    assert json.loads(span.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "what is a sluicegate"}]}
    ]
    assert json.loads(span.attributes["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "A gate."}],
            "finish_reason": "stop",
        }
    ]


async def test_calls_of_a_server_with_the_openai_api(traced):
    """Streamed and whole, from the loop and from a thread: identifier, model and address of the server."""

    def ask(llm):
        with llm.stream_complete("hello") as stream:
            text = [reply.delta for reply in stream]
        return llm.complete("hello").text and "".join(text)

    async with LocalServer() as server:
        llm = OpenAI(base_url=server.base_url, model="sluicegate-markov")
        await Asks(observers=[traced.observer]).run(llm=llm, how=read_whole)
        await Asks(observers=[traced.observer]).run(llm=llm, how=ask_once)
        await AsksInThread(observers=[traced.observer]).run(llm=llm, how=ask)
        llm.close()
        port = int(server.base_url.rpartition(":")[2].partition("/")[0])

    spans = traced.named("chat sluicegate-markov")
    assert len(spans) == 4
    for span in spans:
        assert traced.parent(span) == "step ask"
        assert span.attributes["gen_ai.provider.name"] == "openai"
        assert span.attributes["server.address"] == "127.0.0.1"
        assert span.attributes["server.port"] == port
        assert span.attributes["gen_ai.usage.output_tokens"] > 0
        assert span.attributes["gen_ai.response.id"]
        assert span.attributes["sluicegate.outcome"] == "completed"
