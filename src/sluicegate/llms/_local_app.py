"""The local model server as an ASGI application for Trio."""

from __future__ import annotations

import json
import math
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

MODEL = "sluicegate-markov"

_CARD = {"id": MODEL, "object": "model", "created": 0, "owned_by": "sluicegate"}

#: Marks every reply as not written by a language model.
FINGERPRINT = "sluicegate-markov-stand-in"


@attrs.define(kw_only=True, eq=False)
class Exchange:
    """A request that the server received, and its outcome; for tests."""

    path: str
    headers: Mapping[str, str] = attrs.field(repr=False)

    client: str
    """Address and port of the other side: the same for requests on the same connection."""

    body: Mapping[str, Any] = attrs.field(factory=dict[str, Any], repr=False)
    status: int = 0

    pieces: int = 0
    """The number of pieces of the reply that were sent."""

    outcome: Literal["open", "completed", "disconnected", "stopped"] = "open"
    """``"disconnected"``: the client disconnected before its reply was complete."""

    started: float = attrs.field(factory=time.monotonic, repr=False)
    ended: float | None = attrs.field(default=None, repr=False)

    _over: threading.Event = attrs.field(factory=threading.Event, repr=False)

    def end(self, outcome: Literal["completed", "disconnected", "stopped"]) -> None:
        """Note the outcome; only the first call counts."""
        if not self._over.is_set():
            self.outcome, self.ended = outcome, time.monotonic()
            self._over.set()

    async def wait_over(self) -> Exchange:
        """Wait, in any event loop, until the server has finished with the request."""
        # The server runs in another thread and another loop. Polling can be cancelled in any loop,
        # and a waiting thread cannot.
        while not self._over.is_set():
            await current_backend().sleep(0.001)
        return self


class LocalApp:
    """
    The application, and the requests that it has received.

    Args:
        seed: The same seed and prompt give the same reply.
        host: The address that the server listens on.
        delay: Seconds before each piece of a reply.
        tools: Call the first tool of a request, if it has one, as with ``tool_choice="required"``;
            but answer in words if the last message is the result of a tool.
        reasoning: The number of words of reasoning before the text.
    """

    def __init__(
        self, seed: int, host: str, *, delay: float = 0, tools: bool = False, reasoning: int = 0
    ) -> None:
        if not 0 <= delay < math.inf:
            msg = f"delay={delay!r}; expected seconds, 0 or more"
            raise ValueError(msg)
        self.seed = seed
        self.delay = delay
        self.tools = tools
        self.reasoning = reasoning
        self._host = host
        self.exchanges: list[Exchange] = []

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
            # HTTP/1.1 requires exactly one; Hypercorn refuses a request without it.
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
            prompt = "\n".join(_text_of(message["content"]) for message in body["messages"])
            reply = self.reply(request, body, prompt)
            reply.check(MarkovWriter(self.seed, prompt))
        except ClientDisconnect:
            exchange.end("disconnected")
            return JSONResponse({})  # which no client receives
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            return refusal(exchange, 400, f"not a chat completion request: {str(exc)[:500]}")
        exchange.body = body
        return self.answer(exchange, reply)

    def reply(self, _request: Request, body: Mapping[str, Any], prompt: str) -> Reply:
        """Make the reply to a request."""
        writer = MarkovWriter(self.seed, prompt)
        return Reply(body, writer, prompt, tools=self.tools, reasoning=self.reasoning)

    def answer(self, exchange: Exchange, reply: Reply) -> ASGIApp:
        """Make the application that sends a reply."""
        return Answer(exchange, reply, self.delay)

    def _note(self, request: Request) -> Exchange:
        host, port = request.client or ("", 0)
        exchange = Exchange(
            path=request.url.path, headers=dict(request.headers), client=f"{host}:{port}"
        )
        self.exchanges.append(exchange)
        return exchange


class Reply:
    """The reply to one request, in OpenAI's format."""

    #: The name of the field with the reasoning; servers disagree about it.
    reasoning_field = "reasoning_content"

    def __init__(
        self,
        body: Mapping[str, Any],
        writer: MarkovWriter,
        prompt: str,
        *,
        tools: bool = False,
        reasoning: int = 0,
    ) -> None:
        self.body = body
        self.streamed = bool(body.get("stream"))
        self._writer = writer
        self._most_reasoning = reasoning
        self._tool = _tool_to_call(body, prefers_tools=tools)
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
        Write the arguments of the tool once, with another writer, to check its schema.

        Raises:
            Exception: It is not a schema.
        """
        if self._tool is not None:
            json.dumps(writer.value(self._tool.get("parameters") or {}))

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Write the reply, one piece of its message at a time."""
        for _, word in zip(range(self._most_reasoning), self._words(), strict=False):
            self._reasoning.append(word)
            yield {self.reasoning_field: word}
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
        # As OpenAI does it: first the name, then the arguments, cut at any place.
        yield {"tool_calls": [{"index": 0} | call | {"function": function | {"arguments": ""}}]}
        for start in range(0, len(arguments), 5):
            part = {"arguments": arguments[start : start + 5]}
            yield {"tool_calls": [{"index": 0, "function": part}]}

    def chunk(self, delta: Mapping[str, Any]) -> bytes:
        """Put a piece of the message into an event."""
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def last_chunks(self) -> Iterator[bytes]:
        """Make the events after the text: the finish reason, the usage, and the end."""
        yield self._chunk([{"index": 0, "delta": {}, "finish_reason": self._finish_reason}])
        if self._with_usage:
            yield self._chunk([], usage=self._usage())
        yield event("[DONE]")

    def _chunk(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        frame = {"object": "chat.completion.chunk", "choices": choices}
        return event(json.dumps(self._frame | frame | fields))

    def whole(self) -> dict[str, Any]:
        """Make the reply to a request that does not want it streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text)}
        if self._reasoning:
            message[self.reasoning_field] = "".join(self._reasoning)
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


class Answer:
    """Sends a reply, and stops when the client has disconnected."""

    def __init__(self, exchange: Exchange, reply: Reply, delay: float) -> None:
        self.exchange = exchange
        self.reply = reply
        self._delay = delay

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette polls for the disconnect, which Hypercorn on Trio reports only to a task that
        # waits for it. So a task here does nothing else.
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, receive, nursery.cancel_scope)
                await (self._stream(send) if self.reply.streamed else self._send_whole(send))
                nursery.cancel_scope.cancel()
        finally:
            self.exchange.end("stopped")  # unless it has ended otherwise

    async def _watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self.exchange.outcome == "open":
            self.exchange.end("disconnected")
            scope.cancel()
        # Else the reply is sent, and the server closes; that must not be cancelled.

    async def _stream(self, send: Send) -> None:
        await self._start(send, "text/event-stream")
        for delta in self.reply.deltas():
            await self.pause(send)
            await send(body(self.reply.chunk(delta)))
            self.exchange.pieces += 1
        await self.finish(send)

    async def pause(self, _send: Send) -> None:
        """Wait before the next piece."""
        await trio.sleep(self._delay)

    async def finish(self, send: Send) -> None:
        """Send the end of a stream."""
        for chunk in self.reply.last_chunks():
            await send(body(chunk))
        # Before the last byte, because a client that has read it may look here at once.
        self.exchange.end("completed")
        await send(body(b"", last=True))

    async def _send_whole(self, send: Send) -> None:
        for _ in self.reply.deltas():
            await self.pause(send)
            self.exchange.pieces += 1
        self.exchange.end("completed")
        await self._start(send, "application/json")
        await send(body(json.dumps(self.reply.whole()).encode(), last=True))

    async def _start(self, send: Send, kind: str) -> None:
        self.exchange.status = 200
        headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


def event(data: str) -> bytes:
    """Frame the data of one server-sent event."""
    return f"data: {data}\n\n".encode()


def body(data: bytes, *, last: bool = False) -> dict[str, Any]:
    """Make the message with the next part of a response."""
    return {"type": "http.response.body", "body": data, "more_body": not last}


def refusal(exchange: Exchange, status: int, message: str) -> ASGIApp:
    """Refuse a request with an error."""
    exchange.status = status
    exchange.end("completed")
    error = {"message": message, "type": "invalid_request_error", "code": None, "param": None}
    # The SDK retries after this time; a test should not wait for it.
    return JSONResponse({"error": error}, status_code=status, headers={"retry-after-ms": "1"})


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[dict[str, Any]]", content or [])
    return " ".join(part.get("text", "") for part in parts)


def _tool_to_call(body: Mapping[str, Any], *, prefers_tools: bool) -> Mapping[str, Any] | None:
    choice = body.get("tool_choice")
    offered: list[dict[str, Any]] = body.get("tools") or []
    tools = [tool["function"] for tool in offered if tool.get("function")]
    if isinstance(choice, dict):
        wanted = cast("dict[str, Any]", choice)["function"]["name"]
        tools = [tool for tool in tools if tool["name"] == wanted]
    elif choice == "none" or (
        choice != "required" and not (prefers_tools and _asks(body["messages"]))
    ):
        return None
    return tools[0] if tools else None


def _asks(messages: list[dict[str, Any]]) -> bool:
    # A model answers after it has received the result of its tool; otherwise it would call the tool
    # without end.
    return messages[-1].get("role") not in {"tool", "function"}
