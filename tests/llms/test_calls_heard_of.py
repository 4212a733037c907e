"""Calls of a model, as who traces them hears of them."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import anyio
import pytest

from sluicegate.llms import MockLLM
from sluicegate.llms._calls import call_listeners


pytestmark = pytest.mark.anyio


class Hears:
    """Notes what it is told, and raises where it is asked to."""

    def __init__(self, raises=None):
        self.raises = raises
        self.told = []

    def __call__(self, call):
        self._note("call", call.model, call.is_stream)
        return self

    def _note(self, *what):
        self.told.append(what)
        if what[0] == self.raises:
            raise RuntimeError(what[0])

    def enter(self):
        self._note("enter")

    def leave(self):
        self._note("leave")

    def received(self, piece):
        self._note("received", piece.text)

    def end(self, outcome, error):
        self._note("end", outcome, error)


@contextmanager
def heard_by(*listeners):
    """Have listeners hear of the calls of the block."""
    token = call_listeners.set(listeners)
    try:
        yield
    finally:
        call_listeners.reset(token)


async def test_a_whole_reply():
    """The request is entered and left, and the call ends with the reply."""
    hears = Hears()
    with heard_by(hears):
        await MockLLM(["one two"]).acomplete("x")

    assert hears.told == [
        ("call", "mock", False),
        ("enter",),
        ("received", "one"),
        ("received", " two"),
        ("received", ""),
        ("leave",),
        ("end", "completed", None),
    ]


async def test_a_stream_is_left_before_it_is_read():
    """The request is over when the stream is there; the call ends with the stream, once."""
    hears = Hears()
    with heard_by(hears):
        async with await MockLLM(["one two"]).astream_complete("x") as stream:
            assert hears.told == [("call", "mock", True), ("enter",), ("leave",)]
            await anext(stream)
        await stream.aclose()

    assert hears.told[3:] == [("received", "one"), ("end", "cancelled", None)]


async def test_a_failure_and_a_cancellation():
    """A failed call ends with its exception; a cancelled one is told apart."""
    hears = Hears()
    failure = TimeoutError("slow")

    with heard_by(hears), pytest.raises(TimeoutError):
        await MockLLM([failure]).acomplete("x")
    assert hears.told[-2:] == [("leave",), ("end", "failed", failure)]

    with heard_by(hears), anyio.move_on_after(0):
        await MockLLM(["one"], delay=3600).acomplete("x")
    assert hears.told[-2] == ("leave",)
    assert hears.told[-1][:2] == ("end", "cancelled")


@pytest.mark.parametrize("method", ["call", "enter", "leave", "received", "end"])
async def test_a_listener_that_raises_is_muted_and_harms_no_call(method, caplog):
    """What it raises is logged once; the call, and other listeners, go on."""
    faulty, other = Hears(method), Hears()
    with heard_by(faulty, other), caplog.at_level(logging.ERROR, "sluicegate"):
        async with await MockLLM(["one two"]).astream_complete("x") as stream:
            assert [reply.delta async for reply in stream] == ["one", " two", ""]

    assert len(caplog.records) == 1
    assert faulty.told[-1][0] == method
    assert other.told[-1] == ("end", "completed", None)
