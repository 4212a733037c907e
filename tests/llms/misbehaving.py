"""
The stand-in server with a misbehaviour for each request, for the tests of the clients.

A request asks for it with a query, as ``Behaviour.changed`` reads it: after the model's name
(``"any?cut=3&tools=1"``) or in the header ``BEHAVIOUR_HEADER``.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, Literal
from urllib.parse import parse_qsl

import attrs
import msgspec
import trio

from sluicegate.llms._local_app import Answer, LocalApp, MarkovWriter, Reply, body, event, refusal
from sluicegate.llms.local import LocalServer


BEHAVIOUR_HEADER = "x-sluicegate-behaviour"

_FAILURE = re.compile(r"(?P<status>[45]\d\d)(x(?P<times>\d+))?")


def _check_failure(_instance: object, _attribute: object, value: str) -> None:
    if value and not _FAILURE.fullmatch(value):
        msg = f'fail={value!r} is not a failure; write "429x2" (twice) or "503" (always)'
        raise ValueError(msg)


def _check_seconds(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value < float("inf"):
        msg = f"{attribute.name}={value!r}; expected seconds, 0 or more"
        raise ValueError(msg)


def _check_count(_instance: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and value < 0:
        msg = f"{attribute.name}={value!r}; expected a count, 0 or more"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class Behaviour:
    """
    What the server does with a request.

    Counts of pieces count the pieces of text or reasoning sent until then.
    """

    delay: float = attrs.field(default=0.0, validator=_check_seconds)
    """Seconds before each piece of a reply."""

    fail: str = attrs.field(default="", validator=_check_failure)
    """A status to answer with, always (``"503"``) or so many times first (``"429x2"``)."""

    cut: int | None = attrs.field(default=None, validator=_check_count)
    """After so many pieces the connection is closed, in the middle of the reply."""

    stall: int | None = attrs.field(default=None, validator=_check_count)
    """After so many pieces nothing comes any more, and the connection stays open."""

    error: int | None = attrs.field(default=None, validator=_check_count)
    """After so many pieces an error object comes instead of the next."""

    tools: bool = False
    """
    Call the first tool of the request, if it has one, as with ``tool_choice="required"``; but
    answer in words where the last message is what a tool has found.
    """

    reasoning: int = attrs.field(default=0, validator=_check_count)
    """So many words of reasoning go before the text."""

    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    """Servers disagree about its name."""

    stream_options: bool = True
    """Otherwise requests with ``stream_options`` are refused with a 400, as old servers do."""

    done: bool = True
    """Otherwise the stream ends without its ``[DONE]``, as some servers do."""

    linger: bool = False
    """The response stays open after its last event."""

    comments: bool = False
    """A comment goes before each piece, as servers do to keep a connection alive."""

    def changed(self, query: str) -> Behaviour:
        """
        Apply changes, written like a query: ``"delay=0.01&fail=429x2"``.

        Raises:
            ValueError: No such option, or not with that value.
        """
        changes = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        if unknown := changes.keys() - attrs.fields_dict(Behaviour).keys():
            known = ", ".join(attrs.fields_dict(Behaviour))
            msg = f"unknown behaviour: {', '.join(sorted(unknown))}; there are {known}"
            raise ValueError(msg)
        try:
            return msgspec.convert(attrs.asdict(self) | changes, Behaviour, strict=False)
        except msgspec.ValidationError as exc:  # a ValueError in newer releases only
            msg = f"behaviour {query!r}: {exc}"
            raise ValueError(msg) from exc

    def failure(self) -> tuple[int, float] | None:
        """Give the status to fail with and how many times."""
        found = _FAILURE.fullmatch(self.fail)
        if found is None:
            return None
        return int(found["status"]), float(found["times"] or "inf")


class MisbehavingServer(LocalServer):
    """The stand-in server; ``behaviour`` are the fields of `Behaviour` for all requests."""

    def __init__(self, *, seed=0, **behaviour):
        super().__init__(seed=seed)
        self._app = MisbehavingApp(seed, "127.0.0.1")
        self._app.behaviour = Behaviour(**behaviour)


class MisbehavingApp(LocalApp):
    def __init__(self, seed, host):
        super().__init__(seed, host)
        self._failures = {}

    def reply(self, request, body, prompt):
        _, _, suffix = str(body["model"]).partition("?")
        header = request.headers.get(BEHAVIOUR_HEADER, "")
        behaviour = self.behaviour.changed(header).changed(suffix)
        return MisbehavingReply(self, body, behaviour, prompt)

    def answer(self, exchange, reply):
        behaviour = reply.behaviour
        if (failure := behaviour.failure()) is not None:
            status, times = failure
            key = behaviour.fail, reply.prompt
            failed = self._failures[key] = self._failures.get(key, 0) + 1
            if failed <= times:
                return refusal(exchange, status, "the local server was told to fail")
        if "stream_options" in reply.body and not behaviour.stream_options:
            return refusal(exchange, 400, "unrecognized request argument: stream_options")
        return MisbehavingAnswer(exchange, reply, behaviour.delay)


class MisbehavingReply(Reply):
    def __init__(self, app, body, behaviour, prompt):
        tools, reasoning = behaviour.tools, behaviour.reasoning
        writer = MarkovWriter(app.seed, prompt)
        super().__init__(body, writer, prompt, tools=tools, reasoning=reasoning)
        self.behaviour, self.prompt = behaviour, prompt
        self.reasoning_field = behaviour.reasoning_field

    def chunk(self, delta):
        comment = b": still here\n\n" if self.behaviour.comments else b""
        return comment + super().chunk(delta)

    def last_chunks(self):
        chunks = list(super().last_chunks())
        return chunks if self.behaviour.done else chunks[:-1]


class _BrokenOff(Exception):
    """Ends a stream before its end."""


class MisbehavingAnswer(Answer):
    async def pause(self, send):
        behaviour, pieces = self.reply.behaviour, self.exchange.pieces
        if pieces == behaviour.stall:
            await trio.sleep_forever()
        await super().pause(send)
        if self.reply.streamed and pieces == behaviour.cut:
            self.exchange.end("cut")
            raise _BrokenOff  # with the body open: the server has to close the connection
        if self.reply.streamed and pieces == behaviour.error:
            error = {"error": {"message": "the local server was told to fail", "code": 500}}
            self.exchange.end("completed")
            await send(body(event(json.dumps(error)), last=True))
            raise _BrokenOff

    async def _stream(self, send):
        with contextlib.suppress(_BrokenOff):
            await super()._stream(send)

    async def finish(self, send):
        if self.reply.behaviour.linger:
            for chunk in self.reply.last_chunks():
                await send(body(chunk))
            await trio.sleep_forever()
        await super().finish(send)
