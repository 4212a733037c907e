"""Requests of the OpenAI class: settings, errors, retries, and the blocking forms."""

from __future__ import annotations

import subprocess
import sys

import anyio
import anyio.to_thread
import openai
import pytest
import trio

from sluicegate.llms import LLM, ChatMessage, MockLLM, StreamClosedError
from sluicegate.llms.local import LocalServer
from sluicegate.llms.openai import OpenAI

from .conftest import guard
from .misbehaving import BEHAVIOUR_HEADER


on_each_loop = pytest.mark.anyio


@on_each_loop
async def test_complete_and_chat(llm):
    """The whole replies are the same text, as a completion and as a message."""
    with guard():
        completion = await llm.acomplete("Hi")
        chat = await llm.achat([ChatMessage(content="Hi")])

    assert str(completion) == completion.text == chat.message.content
    assert f"assistant: {completion.text}" == str(chat)
    assert "" == completion.delta == chat.delta
    assert (completion.finish_reason, completion.model) == ("stop", "sluicegate-markov")
    assert chat.usage.total_tokens == chat.additional_kwargs["total_tokens"] > 0
    assert chat.raw.system_fingerprint == "sluicegate-markov-stand-in"


def test_it_is_an_llm():
    """Both models keep to the protocol."""
    assert isinstance(OpenAI(), LLM)
    assert isinstance(MockLLM(), LLM)


@on_each_loop
async def test_options_reach_the_server(server):
    """What is given to the object goes with every request, and what is given to a call wins."""
    llm = OpenAI(
        "first",
        base_url=server.base_url,
        temperature=0.5,
        max_tokens=7,
        system_prompt="Be brief.",
        default_headers={"x-mine": "yes"},
        additional_kwargs={"seed": 1, "top_p": 0.5},
    )
    with guard():
        response = await llm.acomplete("Hi", seed=2, stop=["x"], extra_headers={"x-call": "too"})
        await llm.acomplete("Hi", model="o3", max_tokens=3)
    first, second = server.exchanges

    assert first.body == {
        "model": "first",
        "temperature": 0.5,
        "max_tokens": 7,
        "seed": 2,
        "top_p": 0.5,
        "stop": ["x"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ],
    }
    assert (first.headers["x-mine"], first.headers["x-call"]) == ("yes", "too")
    assert (len(response.text.split()), response.finish_reason) == (7, "length")
    assert (second.body["model"], second.body["max_completion_tokens"]) == ("o3", 3)
    assert "max_tokens" not in second.body


@on_each_loop
async def test_nothing_is_sent_unasked(server, llm):
    """Temperature and the like are the server's business unless they are given."""
    with guard():
        await llm.acomplete("Hi")

    assert {"model", "messages"} == server.exchanges[0].body.keys()


@on_each_loop
async def test_one_layer_of_retries(server, llm):
    """The SDK tries again as often as it was told, and no one on top of it."""
    with guard():
        assert (await llm.acomplete("Hi", model="any?fail=429x2")).text
        assert len(server.exchanges) == 3
        with pytest.raises(openai.RateLimitError):
            await llm.acomplete("Hi", model="any?fail=429")
        assert len(server.exchanges) == 6
        async with await llm.astream_complete("Hi", model="any?fail=503x1") as stream:
            await anext(stream)
        assert len(server.exchanges) == 8


@on_each_loop
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (500, openai.InternalServerError),
    ],
)
async def test_errors_come_out_as_they_are(server, status, error):
    """A server's refusal is the SDK's exception, with everything it knows."""
    llm = OpenAI(base_url=server.base_url, max_retries=0)
    header = {BEHAVIOUR_HEADER: f"fail={status}"}
    with guard():
        for call in (llm.acomplete, llm.astream_complete):
            with pytest.raises(error, match="told to fail") as caught:
                await call("Hi", extra_headers=header)

            assert status == caught.value.status_code
            assert caught.value.__cause__ is None


@on_each_loop
async def test_nobody_there():
    """A server that is not there is the SDK's connection error."""
    with LocalServer() as server:
        llm = OpenAI(base_url=server.base_url, max_retries=0)
    with guard(), pytest.raises(openai.APIConnectionError):
        await llm.acomplete("Hi")


@on_each_loop
async def test_deadline_bounds_the_timeout(server, llm):
    """No request may take longer than the cancel scopes around leave it, nor longer than `timeout`."""

    def allowed():
        return float(server.exchanges[-1].headers["x-stainless-read-timeout"])

    with guard(), anyio.move_on_after(5):
        await llm.acomplete("Hi")
        assert allowed() <= 5
        async with await llm.astream_complete("Hi"):
            assert allowed() <= 5
        await llm.acomplete("Hi", timeout=2)
        assert allowed() == 2
        await llm.acomplete("Hi", timeout=None)
        assert allowed() <= 5


@on_each_loop
async def test_timeout(llm):
    """`timeout` ends a request with the SDK's error."""
    llm.max_retries = 0
    with guard(), pytest.raises(openai.APITimeoutError):
        await llm.acomplete("Hi", model="any?stall=0", timeout=0.01)


@on_each_loop
async def test_cancelled_while_the_model_thinks(server, llm):
    """A cancelled call closes its connection at once."""

    async def cancel_when_asked():
        while not server.exchanges:
            await anyio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()  # the request is out, and only the reply is awaited
        scope.cancel()

    with guard():
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel_when_asked)
                await llm.acomplete("Hi", model="any?stall=0", timeout=None)
        assert scope.cancelled_caught
        assert (await server.exchanges[-1].wait_over()).outcome == "disconnected"


@on_each_loop
async def test_a_key_is_needed_at_the_first_request_only():
    """Without a key the object can be made; the request says which variable, argument or server."""
    llm = OpenAI("gpt-4o-mini")
    with pytest.raises(openai.OpenAIError) as caught:
        await llm.astream_complete("Hi")

    for part in ("OPENAI_API_KEY", "model='gpt-4o-mini', api_key=\"...\"", 'base_url="http://'):
        assert part in str(caught.value)
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        await OpenAI(base_url="https://api.openai.com/v1").acomplete("Hi")


@on_each_loop
async def test_a_server_of_ones_own_needs_no_key(server, llm):
    """With another server's address a made-up key goes out, and a given one as it is."""
    with guard():
        await llm.acomplete("Hi")
        await OpenAI(base_url=server.base_url, api_key="mine").acomplete("Hi")

    assert [exchange.headers["authorization"] for exchange in server.exchanges] == [
        "Bearer not-needed",
        "Bearer mine",
    ]


@on_each_loop
@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
async def test_environment(server, monkeypatch, name):
    """Key and address are read from the environment when the first request is made."""
    llm = OpenAI()
    monkeypatch.setenv(name, server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "from-outside")
    with guard():
        await llm.acomplete("Hi")

    assert server.exchanges[0].headers["authorization"] == "Bearer from-outside"
    assert server.base_url in repr(llm)


@on_each_loop
async def test_arguments_win_over_the_environment(server, monkeypatch):
    """What is written in the program wins; api_base is another name for base_url."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "from-outside")
    with guard():
        await OpenAI(api_base=server.base_url, api_key="mine").acomplete("Hi")

    assert server.exchanges[0].headers["authorization"] == "Bearer mine"


def test_two_addresses():
    """base_url and api_base that differ are a mistake, said at once."""
    with pytest.raises(TypeError, match="mean the same thing"):
        OpenAI(base_url="http://a/v1", api_base="http://b/v1")


@on_each_loop
async def test_http_client_of_the_caller(server):
    """A client that the caller brings is used, and is the caller's to close."""
    async with openai.DefaultAsyncHttpxClient(headers={"x-mine": "yes"}) as http_client:
        llm = OpenAI(base_url=server.base_url, async_http_client=http_client)
        with guard():
            async with llm:
                await llm.acomplete("Hi")
            await llm.acomplete("Hi")
        assert not http_client.is_closed

    assert [exchange.headers["x-mine"] for exchange in server.exchanges] == ["yes", "yes"]


# -- the blocking forms ----------------------------------------------------------------------------


def test_blocking_calls(server, llm):
    """The blocking forms give what the others give; whole replies share a connection."""
    with llm:
        text = llm.complete("Hi").text
        assert f"assistant: {text}" == str(llm.chat([ChatMessage(content="Hi")]))
        assert text == "".join(response.delta for response in llm.stream_complete("Hi"))
        stream = llm.stream_chat([ChatMessage(content="Hi")])
        assert text == [response.text for response in stream][-1] == stream.response.text

    assert len({exchange.client for exchange in server.exchanges[:3]}) == 1


def test_blocking_stream_left_early(server, llm):
    """A blocking stream closes its connection with its block, or when it is dropped."""
    with llm.stream_complete("Hi", model="any?stall=3") as stream:
        next(stream)
    with pytest.raises(StreamClosedError):
        next(stream)
    stream = llm.stream_complete("Hi", model="any?stall=3")
    next(stream)
    del stream

    async def outcomes():
        with guard():
            return [(await exchange.wait_over()).outcome for exchange in server.exchanges]

    assert trio.run(outcomes) == ["disconnected", "disconnected"]


def test_blocking_stream_that_breaks(llm):
    """A blocking stream that is cut off raises the SDK's error and is closed."""
    stream = llm.stream_complete("Hi", model="any?cut=3")
    with pytest.raises(openai.APIConnectionError):
        list(stream)

    assert "closed" in repr(stream)


def test_blocking_refused_stream_options(server, llm):
    """The blocking stream asks again without stream_options too."""
    assert list(llm.stream_complete("Hi", model="any?stream_options=0"))
    assert [exchange.status for exchange in server.exchanges] == [400, 200]


@on_each_loop
@pytest.mark.parametrize("name", ["complete", "chat", "stream_complete", "stream_chat"])
async def test_blocking_calls_in_a_loop(server, llm, name):
    """A blocking call in an event loop is refused, with the line to write instead."""
    with pytest.raises(RuntimeError, match=rf"await llm\.a{name}\("):
        getattr(llm, name)("Hi")

    assert server.exchanges == []


@on_each_loop
async def test_blocking_call_in_a_thread_of_a_loop(llm):
    """A worker thread may block."""
    with guard():
        assert (await anyio.to_thread.run_sync(lambda: llm.complete("Hi"))).text


# -- importing -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "module", "extra"),
    [
        ("openai", "openai", "openai"),
        ("hypercorn", "local", "local"),
        ("starlette", "local", "local"),
    ],
)
def test_missing_extra(missing, module, extra):
    """Without its extra a module says which one to install; sluicegate.llms itself needs none."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import sluicegate.llms\n"
        f"import sluicegate.llms.{module}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert f'pip install "sluicegate[{extra}]"' in done.stderr.splitlines()[-1]


def test_importing_is_light():
    """Importing sluicegate.llms, and a mock under Trio, import neither the SDK nor AnyIO."""
    program = (
        "import sys, trio, sluicegate.llms as llms\n"
        "async def main():\n"
        "    async for response in await llms.MockLLM().astream_complete('a b'): pass\n"
        "    print(response)\n"
        "trio.run(main)\n"
        "print([m for m in ('openai', 'anyio', 'httpx', 'starlette') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == ["a b", "[]"]
