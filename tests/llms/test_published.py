"""Events that carry a model's reply on the stream of a run."""

from __future__ import annotations

import pytest

from sluicegate import Context, StartEvent, StopEvent, Workflow, step
from sluicegate.llms import MockLLM, ReasoningDelta, TextDelta, ToolCalled, ToolReturned


class Poet(Workflow[str]):
    @step
    async def write(self, ctx: Context, ev: StartEvent) -> StopEvent:
        reply = await MockLLM(["Water, held back."]).astream_complete(ev.topic)
        async for piece in reply:
            await ctx.stream.send(TextDelta(message=ctx.delivery_key, text=piece.delta))
        return StopEvent(result=str(reply))


async def collect() -> tuple[str, str, set[str]]:
    async with Poet().run(topic="sluicegates", run_id="r") as handler:
        pieces = [event async for event in handler.stream_events() if isinstance(event, TextDelta)]
        return (
            "".join(piece.text for piece in pieces),
            await handler,
            {piece.message for piece in pieces},
        )


@pytest.mark.anyio
async def test_a_reply_travels_on_the_stream_piece_by_piece():
    """The pieces add up to the reply, and are of one message."""
    text, result, messages = await collect()

    assert text == result == "Water, held back."
    assert len(messages) == 1


def test_what_has_a_default():
    """A message is the assistant's, a call belongs to no message, a tool has not failed."""
    assert TextDelta(message="m", text="a").role == "assistant"
    assert ToolCalled(id="c", name="add").message is None
    assert ToolReturned(id="c", content="3").is_error is False
    with pytest.raises(TypeError, match="ReasoningDelta lacks 'text'"):
        ReasoningDelta(message="m")
