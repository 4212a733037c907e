"""The local model server as an ASGI application for Trio."""

from __future__ import annotations

import json
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs
import trio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Route

from sluicegate._loop import current_backend

from ._local_request import check, is_own_host
from ._markov import MarkovWriter


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ._behaviour import Behaviour


MODEL = "sluicegate-markov"

_CARD = {"id": MODEL, "object": "model", "created": 0, "owned_by": "sluicegate"}

#: Says in every reply that no language model was involved.
FINGERPRINT = "sluicegate-markov-stand-in"

#: The header with which a request asks for another behaviour.
BEHAVIOUR_HEADER = "x-sluicegate-behaviour"


@attrs.define(kw_only=True, eq=False)
class Exchange:
    """A request that the server was sent, and what became of it; for tests to look at."""

    path: str
    headers: Mapping[str, str] = attrs.field(repr=False)

    client: str
    """Address and port of the other side: the same for requests on the same connection."""

    body: Mapping[str, Any] = attrs.field(factory=dict[str, Any], repr=False)
    status: int = 0

    pieces: int = 0
    """How many pieces of a reply were sent."""

    outcome: Literal["open", "completed", "disconnected", "cut", "stopped"] = "open"
    """``"disconnected"``: the client left before its reply was complete."""

    started: float = attrs.field(factory=time.monotonic, repr=False)
    ended: float | None = attrs.field(default=None, repr=False)

    _over: threading.Event = attrs.field(factory=threading.Event, repr=False)

    def end(self, outcome: Literal["completed", "disconnected", "cut", "stopped"]) -> None:
        """Note how it ended; the first to say so is right."""
        if not self._over.is_set():
            self.outcome, self.ended = outcome, time.monotonic()
            self._over.set()

    async def wait_over(self) -> Exchange:
        """Wait, in whichever event loop, until the server has done with the request."""
        # The server runs in another thread and another loop. A wait that looks again and again can be
        # cancelled in either, and a thread that waits cannot.
        while not self._over.is_set():
            await current_backend().sleep(0.001)
        return self


class LocalApp:
    """What the server knows: how to behave, and what it has seen."""

    def __init__(self, behaviour: Behaviour, seed: int, host: str) -> None:
        self.behaviour = behaviour
        self.seed = seed
        self._host = host
        self.exchanges: list[Exchange] = []
        self._failures: dict[tuple[str, str], int] = {}

    def asgi(self) -> ASGIApp:
        """Make the application."""
        app = Starlette(
            routes=[
                Route("/health", JSONResponse({"status": "ok"})),
                Route("/v1/models", JSONResponse({"object": "list", "data": [_CARD]})),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            # HTTP/1.1 has exactly one; the server below refuses a request without it.
            hosts = [value for name, value in scope.get("headers", ()) if name == b"host"]
            if all(is_own_host(host.decode("latin-1"), self._host) for host in hosts):
                await app(scope, receive, send)
                return
            message = f"this server is not {hosts[0].decode('latin-1')!r}"
            error = {"message": message, "type": "invalid_request_error"}
            await JSONResponse({"error": error}, 400)(scope, receive, send)

        return guarded

    async def _chat(self, request: Request) -> ASGIApp:
        exchange = self._note(request)
        try:
            body = check(await request.json())
            behaviour, prompt = self._read(request, body)
            reply = Reply(body, behaviour, MarkovWriter(self.seed, prompt), prompt)
            reply.check(MarkovWriter(self.seed, prompt))
        except ClientDisconnect:
            exchange.end("disconnected")
            return JSONResponse({})  # for nobody
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            return _refusal(exchange, 400, f"not a chat completion request: {str(exc)[:500]}")
        exchange.body = body
        if status := self._failing(behaviour, prompt):
            return _refusal(exchange, status, "the local server was told to fail")
        if "stream_options" in body and not behaviour.stream_options:
            return _refusal(exchange, 400, "unrecognized request argument: stream_options")
        return _Answer(exchange, reply)

    def _note(self, request: Request) -> Exchange:
        host, port = request.client or ("", 0)
        exchange = Exchange(
            path=request.url.path, headers=dict(request.headers), client=f"{host}:{port}"
        )
        self.exchanges.append(exchange)
        return exchange

    def _read(self, request: Request, body: Mapping[str, Any]) -> tuple[Behaviour, str]:
        _, _, suffix = str(body["model"]).partition("?")
        header = request.headers.get(BEHAVIOUR_HEADER, "")
        behaviour = self.behaviour.changed(header).changed(suffix)
        return behaviour, "\n".join(_text_of(message["content"]) for message in body["messages"])

    def _failing(self, behaviour: Behaviour, prompt: str) -> int | None:
        if (failure := behaviour.failure()) is None:
            return None
        status, times = failure
        key = behaviour.fail, prompt
        failed = self._failures[key] = self._failures.get(key, 0) + 1
        return status if failed <= times else None


class Reply:
    """What the server says to one request, in OpenAI's words."""

    def __init__(
        self, body: Mapping[str, Any], behaviour: Behaviour, writer: MarkovWriter, prompt: str
    ) -> None:
        self.streamed = bool(body.get("stream"))
        self.behaviour = behaviour
        self._writer = writer
        self._tool = _tool_to_call(body, behaviour)
        self._number = sum(message.get("role") == "tool" for message in body["messages"])
        options: Mapping[str, Any] = body.get("stream_options") or {}
        self._with_usage = bool(options.get("include_usage"))
        self._prompt_tokens = len(prompt.split())
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        self._limit = int(limit) if limit else None
        self._frame = {
            "id": f"chatcmpl-{zlib.crc32(prompt.encode()):08x}",
            "created": int(time.time()),
            "model": MODEL,
            "system_fingerprint": FINGERPRINT,
        }
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._finish_reason = "stop"

    def check(self, writer: MarkovWriter) -> None:
        """
        Make up the arguments of the tool once, with another writer, to see that its schema is one.

        Raises:
            Exception: It is not.
        """
        if self._tool is not None:
            json.dumps(writer.value(self._tool.get("parameters") or {}))

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Make the reply up, one piece of its message at a time."""
        for _, word in zip(range(self.behaviour.reasoning), self._words(), strict=False):
            self._reasoning.append(word)
            yield {self.behaviour.reasoning_field: word}
        if self._tool is not None:
            yield from self._call(self._tool)
            return
        for word in self._writer.tokens():
            if len(self._text) == self._limit:
                self._finish_reason = "length"
                return
            self._text.append(word)
            yield {"content": word}

    def _words(self) -> Iterator[str]:
        while True:
            for word in self._writer.sentence():
                yield word + " "

    def _call(self, tool: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        self._finish_reason = "tool_calls"
        arguments = json.dumps(self._writer.value(tool.get("parameters") or {}))
        call = {"id": f"call_{self._number}", "type": "function"}
        function = {"name": tool["name"], "arguments": arguments}
        self._calls.append(call | {"function": function})
        # As OpenAI does it: a head with the name, then the arguments in pieces cut anywhere.
        yield {"tool_calls": [{"index": 0} | call | {"function": function | {"arguments": ""}}]}
        for start in range(0, len(arguments), 5):
            part = {"arguments": arguments[start : start + 5]}
            yield {"tool_calls": [{"index": 0, "function": part}]}

    def chunk(self, delta: Mapping[str, Any]) -> bytes:
        """Put a piece of the message into an event."""
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def last_chunks(self) -> Iterator[bytes]:
        """Make the events after the text: why it ends, what it cost, and that it has ended."""
        yield self._chunk([{"index": 0, "delta": {}, "finish_reason": self._finish_reason}])
        if self._with_usage:
            yield self._chunk([], usage=self._usage())
        if self.behaviour.done:
            yield event("[DONE]")

    def _chunk(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        frame = {"object": "chat.completion.chunk", "choices": choices}
        return event(json.dumps(self._frame | frame | fields))

    def whole(self) -> dict[str, Any]:
        """Make the reply to a request that does not want it streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text)}
        if self._reasoning:
            message[self.behaviour.reasoning_field] = "".join(self._reasoning)
        if self._calls:
            message |= {"content": None, "tool_calls": self._calls}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        frame = {"object": "chat.completion", "choices": [choice], "usage": self._usage()}
        return self._frame | frame

    def _usage(self) -> dict[str, Any]:
        written = len(self._text) + len(self._reasoning)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
            "completion_tokens_details": {"reasoning_tokens": len(self._reasoning)},
        }


class _Answer:
    """Sends a reply, and stops where the client has gone."""

    def __init__(self, exchange: Exchange, reply: Reply) -> None:
        self._exchange = exchange
        self._reply = reply

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette would poll for the disconnect, which Hypercorn on Trio never reports to somebody
        # who does not wait for it; so there is a task that does nothing but wait.
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, receive, nursery.cancel_scope)
                await (self._stream(send) if self._reply.streamed else self._send_whole(send))
                nursery.cancel_scope.cancel()
        finally:
            self._exchange.end("stopped")  # unless it has ended otherwise

    async def _watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._exchange.outcome == "open":
            self._exchange.end("disconnected")
            scope.cancel()
        # Else the reply is out, and the server is just closing: it was asked to, and must not be hit.

    async def _stream(self, send: Send) -> None:
        behaviour = self._reply.behaviour
        await self._start(send, "text/event-stream")
        async for delta in _Paced(self._reply, self._exchange):
            if self._exchange.pieces == behaviour.cut:
                self._exchange.end("cut")
                return  # with the body open: the server has to close the connection
            if self._exchange.pieces == behaviour.error:
                error = {"error": {"message": "the local server was told to fail", "code": 500}}
                self._exchange.end("completed")
                await send(_body(event(json.dumps(error)), last=True))
                return
            comment = b": still here\n\n" if behaviour.comments else b""
            await send(_body(comment + self._reply.chunk(delta)))
            self._exchange.pieces += 1
        await self._finish(send)

    async def _finish(self, send: Send) -> None:
        for chunk in self._reply.last_chunks():
            await send(_body(chunk))
        if self._reply.behaviour.linger:
            await trio.sleep_forever()
        # Before the last byte: who has read it may look here at once.
        self._exchange.end("completed")
        await send(_body(b"", last=True))

    async def _send_whole(self, send: Send) -> None:
        async for _ in _Paced(self._reply, self._exchange):
            self._exchange.pieces += 1
        self._exchange.end("completed")
        await self._start(send, "application/json")
        await send(_body(json.dumps(self._reply.whole()).encode(), last=True))

    async def _start(self, send: Send, kind: str) -> None:
        self._exchange.status = 200
        headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


class _Paced:
    """The pieces of a reply, each in its time."""

    def __init__(self, reply: Reply, exchange: Exchange) -> None:
        self._deltas = reply.deltas()
        self._behaviour = reply.behaviour
        self._exchange = exchange

    def __aiter__(self) -> _Paced:
        return self

    async def __anext__(self) -> dict[str, Any]:
        delta = next(self._deltas, None)
        if self._exchange.pieces == self._behaviour.stall:
            await trio.sleep_forever()
        if delta is None:
            raise StopAsyncIteration
        await trio.sleep(self._behaviour.delay)
        return delta


def event(data: str) -> bytes:
    """Frame the data of one server-sent event."""
    return f"data: {data}\n\n".encode()


def _body(body: bytes, *, last: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": not last}


def _refusal(exchange: Exchange, status: int, message: str) -> ASGIApp:
    exchange.status = status
    exchange.end("completed")
    error = {"message": message, "type": "invalid_request_error", "code": None, "param": None}
    # The SDK waits as long as this says; a test should not wait for real.
    return JSONResponse({"error": error}, status_code=status, headers={"retry-after-ms": "1"})


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[dict[str, Any]]", content or [])
    return " ".join(part.get("text", "") for part in parts)


def _tool_to_call(body: Mapping[str, Any], behaviour: Behaviour) -> Mapping[str, Any] | None:
    choice = body.get("tool_choice")
    offered: list[dict[str, Any]] = body.get("tools") or []
    tools = [tool["function"] for tool in offered if tool.get("function")]
    if isinstance(choice, dict):
        wanted = cast("dict[str, Any]", choice)["function"]["name"]
        tools = [tool for tool in tools if tool["name"] == wanted]
    elif choice == "none" or (
        choice != "required" and not (behaviour.tools and _asks(body["messages"]))
    ):
        return None
    return tools[0] if tools else None


def _asks(messages: list[dict[str, Any]]) -> bool:
    # A model that has been given what its tool found answers; one that called again would do so
    # for ever.
    return messages[-1].get("role") not in {"tool", "function"}
