"""The local model server: its words, its manners, and how it starts and stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import anyio
import pytest
import trio

from sluicegate.llms import ChatMessage
from sluicegate.llms._local_request import is_own_host
from sluicegate.llms._markov import MarkovWriter, paragraphs_asked_for
from sluicegate.llms.local import LocalServer, main, stand_in_model
from sluicegate.llms.openai import OpenAI

from .conftest import GUARD_SECONDS, guard
from .misbehaving import MisbehavingServer


def text(seed, prompt):
    return "".join(MarkovWriter(seed, prompt).tokens())


def server_threads():
    return [thread for thread in threading.enumerate() if thread.name == "sluicegate-local-llm"]


# -- the words -------------------------------------------------------------------------------------


def test_same_seed_same_words():
    """Seed and prompt decide the text, and either changes it."""
    assert text(1, "Hi") == text(1, "Hi")
    assert len({text(1, "Hi"), text(2, "Hi"), text(1, "Ho")}) == 3


@pytest.mark.slow
def test_same_words_in_another_process():
    """The text does not depend on the process: no hash seed goes into it."""
    program = "from sluicegate.llms._markov import MarkovWriter; print(''.join(MarkovWriter(1, 'Hi').tokens()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )

    assert text(1, "Hi") == done.stdout.rstrip("\n")


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("Please give me the first 3 paragraphs of Moby Dick, a book.", 3),
        ("Write two paragraphs.", 2),
        ("One paragraph!", 1),
        ("0 paragraphs", 1),
        ("9999 paragraphs", 100),
        ("A line about the sea", 1),
    ],
)
def test_paragraphs(prompt, count):
    """The prompt says how many paragraphs it wants, within reason."""
    assert count == paragraphs_asked_for(prompt)
    assert count == len(text(0, prompt).split("\n\n"))


def test_sentences():
    """Paragraphs are made of whole sentences, whatever the dice say."""
    for seed in range(200):
        written = text(seed, "2 paragraphs")
        assert re.match(r"[A-Z]", written)
        assert "  " not in written


def test_values_for_tools():
    """Arguments of tools are made up to fit their schema."""
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "array", "items": {"type": "number"}},
            "c": {"enum": ["x"]},
            "d": {"type": "boolean"},
        },
    }
    value = MarkovWriter(0, "").value(schema)

    assert isinstance(value["a"], str)
    assert isinstance(value["b"][0], int)
    assert value["c"] == "x"
    assert isinstance(value["d"], bool)


# -- the manners -----------------------------------------------------------------------------------


def get(url, body=None):
    request = urllib.request.Request(url, body and json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def test_other_pages(server):
    """There are a page of models and one of health, and 400 for what is not a request."""
    assert get(server.base_url.removesuffix("/v1") + "/health") == {"status": "ok"}
    assert get(server.base_url + "/models")["data"][0]["id"] == "sluicegate-markov"
    for body in ({}, [1], {"model": "x", "messages": 1}, {"model": "x?a=b", "messages": []}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(server.base_url + "/chat/completions", body)
        with caught.value as answer:
            assert answer.code == 400
            assert "message" in json.load(answer)["error"]


def test_it_says_what_it_is(server):
    """Every reply names the stand-in, whatever model was asked for."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
    reply = get(server.base_url + "/chat/completions", body)

    assert reply["model"] == "sluicegate-markov"
    assert "stand-in" in reply["system_fingerprint"]


@pytest.mark.anyio
async def test_reasoning_on_request():
    """With ``reasoning=2`` a reply has two words of reasoning before the text."""
    with guard():
        async with LocalServer(reasoning=2, seed=3) as server:
            reply = await OpenAI("any", base_url=server.base_url).acomplete("Hi")

    assert len(reply.reasoning.split()) == 2


@pytest.mark.trio
@pytest.mark.parametrize("sent", [b"", b'{"model": '])
async def test_client_that_leaves_in_the_middle_of_its_request(server, sent):
    """A request that never becomes whole is over when its client has gone."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n"
    host, port = server.base_url.split("/")[2].split(":")
    with guard():
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(head + sent)
            while not server.exchanges:
                await trio.sleep(0.001)
        assert (await server.exchanges[0].wait_over()).outcome == "disconnected"


# -- what it refuses -------------------------------------------------------------------------------


def send(server, body, *headers, path="/v1/chat/completions", version="1.1"):
    """Send one request; return its status and what came back until the server closed."""
    host, port = server.base_url.split("/")[2].split(":")
    if not any(header.startswith("host:") for header in headers):
        headers = [f"host: {host}:{port}", *headers]
    with socket.create_connection((host, int(port)), timeout=GUARD_SECONDS) as client:
        lines = [f"POST {path} HTTP/{version}", *headers, f"content-length: {len(body)}"]
        client.sendall("\r\n".join([*lines, "\r\n"]).encode() + body)
        received = b""
        while data := client.recv(65536):
            received += data
    return int(received.split()[1]), received


def request(**fields):
    fields = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2,
    } | fields
    return json.dumps(fields).encode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("headers", "version"),
    [
        (["connection: close"], "1.1"),
        (["Connection: Close"], "1.1"),
        (["connection: x, close"], "1.1"),
        ([], "1.0"),
    ],
)
def test_it_closes_the_connection_when_it_is_asked(server, stream, headers, version):
    """The reply is whole, and then the connection ends."""
    status, received = send(server, request(stream=stream), *headers, version=version)

    assert status == 200
    assert (b"[DONE]" if stream else b"finish_reason") in received
    assert [exchange.outcome for exchange in server.exchanges] == ["completed"]


TOOL = {"type": "function", "function": {"name": "look"}}


def with_tool(**function):
    return {"tools": [TOOL | {"function": function}], "tool_choice": "required"}


BAD_VALUES = [
    *({"max_tokens": value} for value in ("abc", 0, -1, 1.5, [], True)),
    {"max_completion_tokens": "abc"},
    *({"messages": value} for value in ("x", None, [], [1], [None], {"role": "user"})),
    *({"messages": [value]} for value in ({}, {"role": "user"}, {"content": "x"})),
    *({"messages": [{"role": "user", "content": value}]} for value in (5, None, [5], [{}])),
    {"messages": [{"role": "robot", "content": "x"}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    *({"model": value} for value in ("", 5, None, "m?delay=-1", "m?delay=nan", "m?delay=inf")),
    *({"model": f"m?{what}=-1"} for what in ("cut", "stall", "error", "reasoning")),
    {"stream": "yes"},
    *({"stream_options": value} for value in (5, {"include_usage": "x"})),
    *({"temperature": value} for value in ("hot", -1, 99)),
    {"top_p": 2},
    {"n": 0},
    *({"tools": value} for value in ("x", [5], [{}], [{"type": "function", "function": 5}])),
    *({"tool_choice": value} for value in (5, "x", "required", {"function": 5}, {})),
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    with_tool(),
    with_tool(name=""),
    with_tool(name="f", parameters=5),
    with_tool(name="f", parameters={"properties": 5}),
    with_tool(name="f", parameters={"properties": {"x": 5}}),
    with_tool(name="f", parameters={"enum": 5}),
]


@pytest.mark.parametrize("stream", [False, True])
def test_bad_values_are_refused(server, stream):
    """A value that the API does not take is a 400 that says so, and nothing is sent before it."""
    for fields in BAD_VALUES:
        body = request(**({"stream": stream} | fields))
        status, received = send(server, body, "connection: close")

        assert status == 400, fields
        assert b"not a chat completion request" in received, fields


def test_a_body_that_is_no_request_is_refused(server):
    """However it is broken."""
    for body in (b"", b"{", b"[]", b"null", b"5", b"\xff", b"[" * 200_000, b'{"a":' * 100_000):
        assert send(server, body, "connection: close")[0] == 400, body[:20]


@pytest.mark.parametrize(
    ("host", "bound_to", "is_own"),
    [
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:8000", "127.0.0.1", True),
        ("localhost.", "127.0.0.1", True),
        ("127.0.0.1:80", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", True),
        ("[::1]:8000", "::1", True),
        ("[::1]", "127.0.0.1", True),
        ("models.localhost:1", "127.0.0.1", True),
        ("box.example:8000", "box.example", True),
        ("192.0.2.1:8000", "0.0.0.0", True),
        ("[2001:db8::1]", "::", True),
        ("192.0.2.1", "127.0.0.1", False),
        ("evil.example", "127.0.0.1", False),
        ("evil.example", "0.0.0.0", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example:80", "127.0.0.1", False),
        ("evil.example:localhost", "127.0.0.1", False),
        ("", "127.0.0.1", False),
    ],
)
def test_whose_host_a_request_names(host, bound_to, is_own):
    """Its own names and addresses, and none that someone else's page may have resolve to it."""
    assert is_own_host(host, bound_to) is is_own


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health", "/"])
def test_a_foreign_host_is_refused(server, path):
    """On every path, before anything is done."""
    headers = ["host: evil.example", "connection: close"]
    status, received = send(server, request(), *headers, path=path)

    assert status == 400
    assert b"this server is not 'evil.example'" in received
    assert server.exchanges == []


# -- tools -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_agent_on_the_stand_in_ends():
    """With ``tools=True`` a tool is called once for each turn of the user, and then words come."""
    async with LocalServer(tools=True) as server:
        llm, calls = OpenAI("any", base_url=server.base_url), []
        history = []
        with guard():
            for question in ("First?", "Second?"):
                history.append(ChatMessage(content=question))
                while (reply := await llm.achat(history, tools=[TOOL])).tool_calls:
                    calls += reply.tool_calls
                    history.append(reply.message)
                    (call,) = reply.tool_calls
                    history.append(ChatMessage("tool", "found", tool_call_id=call.id))
                history.append(reply.message)
                assert reply.text
            silent = await llm.achat(history[:1], tools=[TOOL], tool_choice="none")
            # What is required is done, as often as it is: so do the others.
            forced = await llm.achat(history[:3], tools=[TOOL], tool_choice="required")

    assert [(call.id, call.name) for call in calls] == [("call_0", "look"), ("call_1", "look")]
    assert silent.text
    assert forced.tool_calls


# -- starting and stopping -------------------------------------------------------------------------


@pytest.mark.anyio
async def test_start_and_stop_in_a_loop():
    """On either loop the server runs for the length of a block and leaves no thread."""
    with guard():
        async with LocalServer() as server:
            assert len(server_threads()) == 1
            assert (await OpenAI(base_url=server.base_url).acomplete("Hi")).text
            assert "1 requests" in repr(server)

    assert server_threads() == []
    with pytest.raises(RuntimeError, match="async with LocalServer"):
        _ = server.base_url


@pytest.mark.anyio
async def test_stop_in_a_cancelled_scope():
    """A block that is left by a cancellation has stopped its server all the same."""
    with guard(), anyio.CancelScope() as scope:
        async with LocalServer():
            scope.cancel()
            await anyio.sleep(1)

    assert scope.cancelled_caught
    assert server_threads() == []


@pytest.mark.anyio
async def test_stop_with_a_stream_open():
    """Stopping does not wait for replies that never end, and their readers learn of it."""
    with guard():
        async with MisbehavingServer(stall=3) as server:
            stream = await OpenAI("any", base_url=server.base_url).astream_complete("Hi")
            await anext(stream)
        assert server.exchanges[0].outcome == "stopped"
        with pytest.raises(Exception, match="Connection error"):
            async for _ in stream:
                pass

    assert server_threads() == []


def test_port_in_use():
    """A server that cannot start says so where its block is entered."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = LocalServer(port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"), server:
            pass

    assert server_threads() == []


def test_used_once():
    """A server object is for one block."""
    with LocalServer() as server:
        pass
    with pytest.raises(RuntimeError, match="used once"), server:
        pass


def test_stand_in_without_a_key(monkeypatch, capsys):
    """Without a key an unchanged program talks to the stand-in, and a note says so."""

    async def program():
        return str(await OpenAI(model="gpt-4o-mini").acomplete("Hi"))

    with stand_in_model(seed=5) as server:
        assert text(5, "Hi") == trio.run(program)
        assert len(server.exchanges) == 1
    captured = capsys.readouterr()

    assert "OPENAI_API_KEY is not set" in captured.err
    assert captured.out == ""
    assert "OPENAI_BASE_URL" not in os.environ


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_no_stand_in_where_there_is_a_model(monkeypatch, capsys, name):
    """Where someone has set a key or a server, the stand-in stays away."""
    monkeypatch.setenv(name, "mine")
    with stand_in_model() as server:
        assert server is None

    assert os.environ[name] == "mine"
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_command_line(how):
    """`python -m sluicegate.llms.local` prints its address, serves, and stops when it is told to."""
    command = [
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        "-m",
        "sluicegate.llms.local",
        "--seed=4",
    ]
    with subprocess.Popen(
        [*command, "--reasoning=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = process.stdout.readline()
            base_url = re.search(r"http://\S+", line)[0]
            llm = OpenAI(base_url=base_url)
            with llm:
                reply = llm.complete("Hi")
        finally:
            process.send_signal(how)
        rest = process.communicate(timeout=20)

    assert len(reply.reasoning.split()) == 2
    assert "stand-in" in line
    assert rest == ("", "")
    assert process.returncode == 0


def test_command_line_mistakes(capsys):
    """A delay that is no time ends the program with usage and reason."""
    with pytest.raises(SystemExit) as caught:
        main(["--delay", "-1"])

    assert caught.value.code == 2
    assert "delay=-1.0; expected seconds, 0 or more" in capsys.readouterr().err
