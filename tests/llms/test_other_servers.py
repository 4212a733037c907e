"""Servers that send something else than a model's reply: what the client makes of it."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread

import anyio
import anyio.to_thread
import openai
import pytest
import trio

from sluicegate._loop import current_backend
from sluicegate._sse import EventDecoder, EventTooLargeError
from sluicegate.llms import ChatMessage, _bounded
from sluicegate.llms.openai import OpenAI

from .conftest import guard


on_each_loop = pytest.mark.anyio

PAGE = b"<!doctype html><title>It works</title>"
CHUNK = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
WHOLE = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}


@contextmanager
def answering(*replies, status=200, headers=()):
    """Have a server in a thread answer each request with the next body and type; give a model."""

    async def answer(stream):
        async with stream:
            received = b""
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some()
            head, _, rest = received.partition(b"\r\n\r\n")
            body, kind = replies[len(seen)]
            seen.append(head.decode().lower())
            length = int(seen[-1].split("content-length: ")[1].split("\r\n")[0])
            while len(rest) < length:
                rest += await stream.receive_some()
            lines = [f"HTTP/1.1 {status} Fine", "connection: close", *headers]
            lines += [f"content-type: {kind}"] if kind else []
            with suppress(trio.BrokenResourceError):  # the client has seen enough
                await stream.send_all("\r\n".join([*lines, "\r\n"]).encode() + body)

    async def serve():
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            ready.append((listener.socket.getsockname()[1], nursery.cancel_scope))
            ready.append(trio.lowlevel.current_trio_token())
            await trio.serve_listeners(answer, [listener])

    ready, seen = [], []
    thread = Thread(target=partial(trio.run, serve))
    thread.start()
    while len(ready) < 2:
        time.sleep(0.001)
    (port, scope), token = ready
    try:
        yield OpenAI("any", base_url=f"http://127.0.0.1:{port}", max_retries=0), seen
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join()


async def ask(llm, how):
    """Ask in one of the four ways; return the text."""
    if how == "complete":
        return (await llm.acomplete("Hi")).text
    if how == "chat":
        return (await llm.achat([ChatMessage(content="Hi")])).text
    if how == "blocking":
        return (await anyio.to_thread.run_sync(partial(llm.complete, "Hi"))).text
    if how == "blocking stream":
        return await anyio.to_thread.run_sync(lambda: list(llm.stream_complete("Hi"))[-1].text)
    async with await llm.astream_complete("Hi") as stream:
        async for _ in stream:
            pass
        return stream.text


def event(chunk):
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


WHOLES, STREAMS = ("complete", "chat", "blocking"), ("stream", "blocking stream")


NO_REPLIES = [
    (PAGE, "text/html; charset=utf-8"),
    (PAGE, "application/json"),
    (b"Ollama is running", "text/plain"),
    (b"", "application/json"),
    (b"", ""),
    (b"\xff\xfe", "application/octet-stream"),
    (b'"a text"', "application/json"),
    (b"null", "application/json"),
    (b"[{}]", "application/json"),
    (b'{"detail": "no such page"}', "application/json"),
    (b'{"choices": null}', "application/json"),
    (b"[" * 200_000, "application/json"),
    (b'{"choices": [' + b"[" * 200_000, "application/json"),
]


@on_each_loop
@pytest.mark.parametrize("how", WHOLES + STREAMS)
async def test_a_response_that_is_no_reply(how):
    """It is an error of the SDK that has the address, the content type and how the body begins."""
    with guard(), answering(*NO_REPLIES) as (llm, _):
        for body, kind in NO_REPLIES:
            with pytest.raises(openai.APIResponseValidationError) as caught:
                await ask(llm, how)

            message = str(caught.value)
            assert "127.0.0.1" in message
            assert (kind.partition(";")[0] or "no content type") in message
            assert repr(body.decode(errors="replace")[:200]) in message
            assert "/v1" in message
            assert len(message) < 1000


@on_each_loop
@pytest.mark.parametrize("how", WHOLES)
async def test_a_reply_is_read_whatever_its_content_type(how):
    """Servers that forget the type have replied all the same."""
    kinds = ["application/json", "text/plain", ""]
    with guard(), answering(*((json.dumps(WHOLE).encode(), kind) for kind in kinds)) as (llm, _):
        assert [await ask(llm, how) for _ in kinds] == ["Hi"] * 3


@on_each_loop
@pytest.mark.parametrize("how", WHOLES)
async def test_an_error_with_a_status_of_success(how):
    """A proxy that reports an error with a 200 has reported it."""
    body = json.dumps({"error": {"message": "out of credit", "code": 402}}).encode()
    with (
        guard(),
        answering((body, "application/json")) as (llm, _),
        pytest.raises(openai.APIError, match="out of credit") as caught,
    ):
        await ask(llm, how)

    assert str(caught.value.code) == "402"  # openai 2 leaves the number


@on_each_loop
@pytest.mark.parametrize("how", STREAMS)
async def test_a_stream_is_read_whatever_its_content_type(how):
    """What counts are its events."""
    body, kinds = event(CHUNK) + b"data: [DONE]\n\n", ["text/event-stream", "text/plain", ""]
    with guard(), answering(*((body, kind) for kind in kinds)) as (llm, _):
        assert [await ask(llm, how) for _ in kinds] == ["Hi"] * 3


NO_PIECES = [
    (b"[" * 200_000, "nested too deeply"),
    (b'{"choices": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    (b"nonsense", "not JSON"),
    (b"[]", "not a chunk"),
]


@on_each_loop
@pytest.mark.parametrize("how", STREAMS)
@pytest.mark.parametrize("kind", ["text/event-stream", "text/html"])
async def test_an_event_that_is_no_piece(how, kind):
    """It is the SDK's error; where the response is no stream of events, that is said as well."""
    bodies = [event(CHUNK) + b"data: " + data + b"\n\n" for data, _ in NO_PIECES]
    with guard(), answering(*((body, kind) for body in bodies)) as (llm, _):
        for _, what in NO_PIECES:
            with pytest.raises(openai.APIError, match=what) as caught:
                await ask(llm, how)

            assert ("text/html" in str(caught.value)) == (kind == "text/html")
            assert len(str(caught.value)) < 1000


# -- size ------------------------------------------------------------------------------------------


def compressed(encoding, body):
    if encoding == "gzip":
        return gzip.compress(body)
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return zlib.compress(body) if encoding == "deflate" else bare.compress(body) + bare.flush()


@on_each_loop
@pytest.mark.parametrize("how", WHOLES + STREAMS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "bare deflate"])
async def test_a_compressed_reply_is_read(how, encoding):
    """What was asked for is taken; servers know two forms of one of them."""
    body = event(CHUNK) if "stream" in how else json.dumps(WHOLE | {"x": "y" * 300_000}).encode()
    kind = "text/event-stream" if "stream" in how else "application/json"
    header = f"content-encoding: {encoding.split()[-1]}"
    with guard(), answering((compressed(encoding, body), kind), headers=[header]) as (llm, seen):
        assert await ask(llm, how) == "Hi"

    assert "accept-encoding: gzip, deflate\r\n" in seen[0] + "\r\n"


@on_each_loop
@pytest.mark.parametrize("how", WHOLES + STREAMS)
@pytest.mark.parametrize("status", [200, 418])
async def test_a_bomb_is_refused(how, status, monkeypatch):
    """A body that inflates beyond every measure costs bounded memory, and is an error."""
    monkeypatch.setattr(_bounded, "MOST_BYTES", 2**20)
    monkeypatch.setattr("sluicegate.llms._openai_http.MOST_BYTES", 2**20)
    bomb = gzip.compress(bytes(2**22))
    kinds = ["application/json"]
    if how in STREAMS and status == 200:
        kinds.append("text/event-stream")  # has no bound, but its events have
    replies = [(bomb, kind) for kind in kinds]
    headers = ["content-encoding: gzip"]
    with guard(), answering(*replies, status=status, headers=headers) as (llm, _):
        for what in ("1 MiB", "1048576 characters")[: len(kinds)]:
            with pytest.raises(openai.APIError, match=what):
                await ask(llm, how)


@on_each_loop
@pytest.mark.parametrize("how", ["complete", "stream"])
async def test_a_bomb_does_not_hold_up_the_loop(how, monkeypatch):
    """Between two pieces of it other tasks have their turn, and a cancellation is seen."""
    monkeypatch.setattr(_bounded, "MOST_BYTES", 10**12)
    monkeypatch.setattr("sluicegate.llms._openai_http.MOST_BYTES", 10**12)
    turns, backend = 0, current_backend()

    async def checkpoint(own=backend.checkpoint):
        nonlocal turns
        turns += 1
        if turns == 20:
            scope.cancel()
        await own()

    monkeypatch.setattr(backend, "checkpoint", checkpoint)
    kind = "text/event-stream" if how == "stream" else "application/json"
    bomb = gzip.compress(bytes(30 * 2**20), compresslevel=1)
    headers = ["content-encoding: gzip"]
    with (
        guard(),
        answering((bomb, kind), headers=headers) as (llm, _),
        anyio.CancelScope() as scope,
    ):
        await ask(llm, how)

    assert scope.cancelled_caught
    assert turns < 40


@on_each_loop
@pytest.mark.parametrize("how", WHOLES + STREAMS)
@pytest.mark.parametrize(
    ("encoding", "what"), [("br", "'br'"), ("gzip", "is not gzip"), ("deflate", "is not deflate")]
)
async def test_a_body_that_is_not_what_its_encoding_says(how, encoding, what):
    """It is an error of the SDK, and so is an encoding that was not asked for."""
    headers = [f"content-encoding: {encoding}"]
    with (
        guard(),
        answering((PAGE, "text/event-stream"), headers=headers) as (llm, _),
        pytest.raises(openai.APIError, match=what),
    ):
        await ask(llm, how)


# -- events ----------------------------------------------------------------------------------------


@pytest.mark.slow
@on_each_loop
@pytest.mark.parametrize("how", STREAMS)
async def test_an_event_of_eight_megabytes(how):
    """A long line is a line."""
    text = "x" * 8_000_000
    choice = CHUNK["choices"][0] | {"delta": {"content": text}}
    with guard(), answering((event({"choices": [choice]}), "text/event-stream")) as (llm, _):
        assert await ask(llm, how) == text


@pytest.mark.parametrize("text", ["data: " + "x" * 200, "data: x\n" * 60, "ab\n" + "x" * 101])
def test_an_event_that_has_no_end(text):
    """An event is refused as soon as it is too large, in whatever it is cut."""
    decoder = EventDecoder(most=100)
    decoder.feed(b"data: fine\n: a comment of some length\n\n" * 10)
    with pytest.raises(EventTooLargeError, match="100"):
        for character in text:
            decoder.feed(character.encode())
