"""The scripted model."""

from __future__ import annotations

import pytest
import trio

from sluicegate.llms import ChatMessage, MockLLM, StreamClosedError, ToolCall

from .conftest import Step


@pytest.mark.anyio
async def test_script_then_echo():
    """Replies come in the order of the script; after it the user's words come back."""
    llm = MockLLM(["One, two.", "Three."])

    assert str(await llm.acomplete("first")) == "One, two."
    assert str(await llm.achat([ChatMessage(content="second")])) == "assistant: Three."
    assert str(await llm.acomplete("third")) == "third"
    assert llm.prompts == ["first", "second", "third"]


@pytest.mark.anyio
async def test_tokens_make_up_the_text():
    """A stream gives words with their spaces, whose sum is the text with nothing lost."""
    text = "  Two  spaces,\n\nand a line. "
    stream = await MockLLM([text]).astream_complete("x")
    replies = [response async for response in stream]

    assert text == "".join(response.delta for response in replies) == replies[-1].text
    assert replies[0].delta == "  Two"
    assert (replies[-1].finish_reason, replies[-1].usage.completion_tokens) == ("stop", 6)


@pytest.mark.anyio
async def test_errors_on_demand():
    """An exception in the script is raised as it is, and the script continues behind it."""
    error = TimeoutError("not today")
    llm = MockLLM([error, error, "fine"])
    for call in (llm.acomplete, llm.astream_complete):
        with pytest.raises(TimeoutError) as caught:
            await call("x")
        assert caught.value is error

    assert str(await llm.acomplete("x")) == "fine"


@pytest.mark.anyio
async def test_failure_in_mid_stream():
    """`fail_after` breaks a stream off behind so many tokens and closes it."""
    error = OSError("gone")
    llm = MockLLM(["a b c d"], fail_after=2, error=error)
    stream = await llm.astream_complete("x")
    seen = []
    with pytest.raises(OSError, match="gone") as caught:
        async for response in stream:
            seen.append(response.text)

    assert caught.value is error
    assert seen == ["a", "a b"]
    assert llm.open_streams == 0
    with pytest.raises(ConnectionError, match="a scripted failure"):
        await MockLLM(fail_after=0).acomplete("x")


@pytest.mark.anyio
async def test_tool_calls():
    """A scripted tool call arrives as one, alone, in a list, or in a message with text."""
    call = ToolCall(id="c", name="f", arguments='{"a": 1}')
    llm = MockLLM([call, [call, call], ChatMessage("assistant", "Well", tool_calls=[call])])

    for text, calls in (("", [call]), ("", [call, call]), ("Well", [call])):
        response = await llm.achat([ChatMessage(content="x")])
        assert (text, calls) == (response.text, list(response.tool_calls))
        assert response.finish_reason == "tool_calls"


@pytest.mark.anyio
async def test_what_was_asked_is_kept():
    """Requests and their options can be looked at."""
    llm = MockLLM()
    messages = [ChatMessage("system", "s"), ChatMessage(content="u")]
    async with await llm.astream_chat(messages, temperature=1):
        assert llm.open_streams == 1

    assert [tuple(messages)] == llm.requests
    assert llm.kwargs == [{"temperature": 1}]
    assert llm.open_streams == 0
    assert "1 requests" in repr(llm)


@pytest.mark.anyio
async def test_streams_end_with_their_step():
    """A stream of the mock is closed by its step as a real one is."""
    llm = MockLLM(["a b c"])
    async with Step().running() as step:
        stream = await llm.astream_complete("x")
        await anext(stream)
        assert [stream] == step.resources

    assert llm.open_streams == 0
    with pytest.raises(StreamClosedError):
        await anext(stream)


@pytest.mark.trio
async def test_delay_is_on_the_loops_clock(autojump_clock):
    """A minute between tokens takes no time under a mock clock, and can be cancelled."""
    llm = MockLLM(["a b c", "a b c"], delay=60)
    stream = await llm.astream_complete("x")
    start = trio.current_time()
    times = [trio.current_time() - start async for _ in stream]

    assert [round(at) for at in times] == [60, 120, 180, 240]
    with trio.move_on_after(90) as scope:
        await llm.acomplete("x")
    assert scope.cancelled_caught


@pytest.mark.trio
async def test_every_call_is_a_checkpoint():
    """Calls and every piece of a stream give others a turn, without a delay too."""
    llm = MockLLM(["a b"])
    with trio.testing.assert_checkpoints():
        stream = await llm.astream_complete("x")
    for _ in range(3):
        with trio.testing.assert_checkpoints():
            await anext(stream)
    with trio.testing.assert_checkpoints():
        await llm.acomplete("x")
    async with llm:
        pass
    await stream.aclose()


def test_one_text_is_no_script():
    """A text in the place of a list of texts is refused with the right line."""
    with pytest.raises(TypeError, match=r"MockLLM\(\['Hello'\]\)"):
        MockLLM("Hello")


@pytest.mark.anyio
async def test_it_refuses_what_a_model_refuses():
    """The mock does not take prompts for messages, or the other way round."""
    with pytest.raises(TypeError, match="achat"):
        await MockLLM().acomplete([ChatMessage(content="x")])
    with pytest.raises(TypeError, match="ChatMessage"):
        await MockLLM().achat("x")
