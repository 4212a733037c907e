"""Streams of the OpenAI class: every way out of one closes its connection at once, without a warning."""

from __future__ import annotations

import asyncio

import anyio
import openai
import pytest
import trio

from sluicegate._loop.cleanup import current_cleanup
from sluicegate.llms import ChatMessage, CompletionStream, StreamClosedError
from sluicegate.llms.openai import OpenAI

from .conftest import Step, guard


pytestmark = pytest.mark.anyio

STALLED = "any?stall=3"  # three words, and then nothing until the client leaves


async def read_three(stream):
    """Read what the stalled server has to say."""
    return [(await anext(stream)).delta for _ in range(3)]


async def read(stream):
    """Read to the end; give the last reply."""
    async for _ in stream:
        pass
    return stream.response


async def left(server):
    """Wait until the server has noticed that the last client has gone."""
    with guard():
        exchange = await server.exchanges[-1].wait_over()
    assert exchange.outcome == "disconnected"


async def test_read_to_the_end(server, llm):
    """A stream read to its end has the whole text in its last reply, and why it ended."""
    with guard():
        deltas = [response.delta async for response in await llm.astream_complete("Hi")]
        stream = await llm.astream_complete("Hi")
        response = await read(stream)

    assert "".join(deltas) == str(response) == stream.response.text == str(stream)
    assert response.finish_reason == "stop"
    assert response.usage.completion_tokens == len(response.text.split())
    assert response.raw.system_fingerprint == "sluicegate-markov-stand-in"
    assert server.exchanges[-1].outcome == "completed"


async def test_after_the_end(llm):
    """A stream that is over says so as often as it is asked."""
    with guard():
        stream = await llm.astream_complete("Hi", max_tokens=2)
        assert len([r.delta for r in [r async for r in stream] if r.delta]) == 2
        assert [r async for r in stream] == []
        await stream.aclose()

    assert "at its end" in repr(stream)


async def test_it_is_no_generator(llm):
    """The stream is an object of ours: no asynchronous generator waits for the collector."""
    async with await llm.astream_complete("Hi") as stream:
        assert not hasattr(stream, "athrow")
        assert stream is aiter(stream)


async def test_break(server, llm):
    """A loop left by `break` inside of `async with` leaves no connection."""
    async with await llm.astream_complete("Hi", model=STALLED) as stream:
        async for response in stream:
            if len(response.text.split()) == 3:
                break

    await left(server)


async def test_break_with_more_in_the_buffers(server, llm):
    """Text that has arrived and was not read does not keep the connection open."""
    async with await llm.astream_complete("20 paragraphs", model="any?linger=1") as stream:
        await anext(stream)

    await left(server)


async def test_close_unread(server, llm):
    """A stream that was never read is closed like any other."""
    stream = await llm.astream_complete("Hi", model=STALLED)
    await stream.aclose()
    await stream.aclose()

    await left(server)


async def test_exception_in_the_body(server, llm):
    """An exception leaves `async with` as itself and no connection behind."""
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with await llm.astream_complete("Hi", model=STALLED) as stream:
            await read_three(stream)
            raise error

    assert caught.value is error
    await left(server)


@pytest.mark.parametrize("where", ["body", "next"])
async def test_cancelled(server, llm, where):
    """Cancelled in the loop's body or while waiting for text: the connection goes first."""
    with guard(), anyio.CancelScope() as scope:
        async with await llm.astream_complete("Hi", model=STALLED) as stream:
            await read_three(stream)
            if where == "body":
                scope.cancel()
                await anyio.sleep(0)
            else:
                await cancel_while_waiting(scope, stream)

    assert scope.cancelled_caught
    await left(server)


async def cancel_while_waiting(scope, stream):
    async with anyio.create_task_group() as group:
        group.start_soon(cancel_when_blocked, scope)
        await anext(stream)


async def cancel_when_blocked(scope):
    await anyio.wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize("newest_first", [True, False], ids=["newest first", "oldest first"])
@pytest.mark.parametrize("cancelled", [False, True], ids=["shielded", "cancelled"])
async def test_abandoned_in_a_step(server, llm, cancelled, newest_first):
    """A stream that a step leaves half-read is closed with the step, in whatever order and scope."""
    step = Step(newest_first=newest_first)
    async with step.running(cancelled=cancelled):
        stream = await llm.astream_complete("Hi", model=STALLED)
        await read_three(stream)
        assert stream in step.resources

    await left(server)
    assert step.resources == []
    with pytest.raises(StreamClosedError, match="read it in the step that opens it"):
        await anext(stream)


@pytest.mark.parametrize("where", ["body", "next"])
async def test_step_cancelled(server, llm, where):
    """A step that is cancelled, in its body or while it waits for text, leaves no connection."""
    with guard(), anyio.CancelScope() as scope:
        async with Step().running() as step:
            stream = await llm.astream_complete("Hi", model=STALLED)
            await read_three(stream)
            if where == "body":
                scope.cancel()
                await anyio.sleep(0)
            else:
                await cancel_while_waiting(scope, stream)

    await left(server)
    assert step.resources == []


async def test_closed_streams_leave_the_list(llm):
    """What is closed before the step ends is forgotten by the step, so that lists do not grow."""
    async with Step().running() as step:
        for _ in range(3):
            async for _ in await llm.astream_complete("Hi", max_tokens=1):
                pass
        assert len(step.resources) == 1  # the connection itself, for the next call


async def test_closed_while_another_task_reads(server, llm):
    """Whoever waits for text when the stream is closed gets an error at once, and not an end."""
    outcome = []

    async def read(stream):
        try:
            await anext(stream)
        except StreamClosedError as exc:
            outcome.append(exc)

    with guard():
        stream = await llm.astream_complete("Hi", model=STALLED)
        await read_three(stream)
        async with anyio.create_task_group() as group:
            group.start_soon(read, stream)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await anext(stream)
            await stream.aclose()

    assert len(outcome) == 1
    await left(server)


async def test_cut_connection(llm):
    """A connection that breaks in mid-stream is the SDK's error, never the end of the text."""
    with guard(), pytest.raises(openai.APIConnectionError) as caught:
        async with await llm.astream_complete("Hi", model="any?cut=3") as stream:
            async for _ in stream:
                pass

    assert type(caught.value.__cause__).__name__ == "RemoteProtocolError"
    assert len(stream.response.text.split()) == 3
    assert "closed" in repr(stream)


async def test_error_in_the_stream(llm):
    """An error that the server reports in mid-stream is raised with its words."""
    with guard(), pytest.raises(openai.APIError, match="told to fail") as caught:
        async for _ in await llm.astream_complete("Hi", model="any?error=3"):
            pass

    assert caught.value.body["code"] == 500


async def test_timeout_between_pieces(llm):
    """`timeout` bounds the wait for each piece; the error is the SDK's."""
    llm.max_retries = 0
    with guard(), pytest.raises(openai.APITimeoutError):
        async for _ in await llm.astream_complete("Hi", model=STALLED, timeout=0.01):
            pass


async def test_without_done(llm):
    """A stream that ends without [DONE] is complete when the model has said why it stopped."""
    with guard():
        response = await read(await llm.astream_complete("Hi", model="any?done=0"))

    assert response.finish_reason == "stop"


async def test_server_that_lingers_after_done(server, llm):
    """After [DONE] the stream is over, though the server does not end its response."""
    with guard():
        response = await read(await llm.astream_complete("Hi", model="any?linger=1"))

    assert response.finish_reason == "stop"
    await left(server)


async def test_comments_are_not_text(llm):
    """Comments that keep the connection alive change nothing."""
    with guard():
        plain = [r.text async for r in await llm.astream_complete("Hi")]
        commented = [r.text async for r in await llm.astream_complete("Hi", model="any?comments=1")]

    assert plain == commented


async def test_chat_with_reasoning_and_tools(llm):
    """A streamed chat collects reasoning and tool calls; the message can go back as it is."""
    tool = {
        "type": "function",
        "function": {
            "name": "open_gate",
            "parameters": {
                "type": "object",
                "properties": {"metres": {"type": "integer"}, "gate": {"enum": ["north"]}},
            },
        },
    }
    messages = [ChatMessage(content="Open the gate.")]
    with guard():
        stream = await llm.astream_chat(
            messages, model="any?reasoning=4", tools=[tool], tool_choice="required"
        )
        thoughts = [response.reasoning_delta async for response in stream]
        response = stream.response
        answer = ChatMessage("tool", "done", tool_call_id=response.tool_calls[0].id)
        await llm.achat([*messages, response.message, answer])

    assert len(response.reasoning.split()) == 4
    assert response.reasoning == "".join(thoughts)
    assert response.tool_calls[0].name == "open_gate"
    assert {"metres", "gate"} == response.tool_calls[0].parsed.keys()
    assert response.finish_reason == "tool_calls"
    assert str(response) == "assistant: "


async def test_refused_stream_options(server, llm):
    """A server that knows no stream_options is asked again without, and remembered."""
    with guard():
        for _ in range(2):
            response = await read(await llm.astream_complete("Hi", model="any?stream_options=0"))

    assert [exchange.status for exchange in server.exchanges] == [400, 200, 200]
    assert response.usage is None
    assert response.text


async def test_refused_stream_options_of_the_caller(server, llm):
    """stream_options that the caller asked for are not dropped behind the caller's back."""
    with guard(), pytest.raises(openai.BadRequestError, match="stream_options"):
        await llm.astream_complete(
            "Hi", model="any?stream_options=0", stream_options={"include_usage": True}
        )

    assert len(server.exchanges) == 1


async def test_other_refusals_are_not_repeated(server, llm):
    """A 400 for another reason comes out as it is, after one request."""
    with guard(), pytest.raises(openai.BadRequestError):
        await llm.astream_complete("Hi", model="any?fail=400")

    assert len(server.exchanges) == 1


async def test_many_at_once(server, llm):
    """Streams of one object at the same time do not disturb each other, nor do early ends."""

    async def read_one(number):
        async with await llm.astream_complete(f"{number}", model="any?delay=0.001") as stream:
            async for response in stream:
                if number % 2 and len(response.text.split()) == 3:
                    break
            else:
                finished.append(number)

    finished = []
    with guard():
        async with llm, anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(read_one, number)
    with guard():
        for exchange in server.exchanges:
            await exchange.wait_over()

    assert sorted(finished) == [0, 2, 4, 6]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_native_cancellation(server, llm):
    """asyncio's own cancellation of the reading task closes the connection too."""

    async def read():
        async with await llm.astream_complete("Hi", model=STALLED) as stream:
            async for _ in stream:
                if len(stream.response.text.split()) == 3:
                    ready.set()

    ready = asyncio.Event()
    task = asyncio.create_task(read())
    await ready.wait()
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await left(server)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_native_timeout(server, llm):
    """`asyncio.timeout` around a loop over a stream times out as usual and leaves nothing."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout, Step().running():
            async for response in await llm.astream_complete("Hi", model=STALLED):
                if len(response.text.split()) == 3:
                    timeout.reschedule(asyncio.get_running_loop().time())

    await left(server)
    assert asyncio.current_task().cancelling() == 0


async def test_dropped_outside_of_a_step(server):
    """A stream that no one owns and no one closes says so when it is collected."""

    class Source:
        async def receive(self):
            """Never called."""

        async def aclose(self):
            """Never called."""

    stream = CompletionStream(Source())
    with pytest.warns(ResourceWarning, match="async with await llm.astream_"):
        del stream


async def test_no_step_no_list(llm):
    """Outside of a step nothing is looked for that is not there."""
    assert current_cleanup.get() is None
    async with OpenAI("any", base_url=llm._base_url) as other:
        assert (await other.acomplete("Hi")).text
