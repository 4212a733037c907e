"""The printer: which texts join, and what never reaches a terminal."""

from __future__ import annotations

import io
import json

import pytest

from sluicegate import Event, StopEvent
from sluicegate.cli._output import Printer, encode


class Progress(Event):
    msg: str


class Delta(Event):
    delta: str


class Other(Event):
    delta: str


class Two(Event):
    msg: str
    delta: str


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(*events, out=None):
    out = io.StringIO() if out is None else out
    printer = Printer("pretty", prompts=False, out=out)
    for event in events:
        printer.event(event)
    printer.end_line()
    return out.getvalue()


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([Delta(delta="a"), Delta(delta="b")], "ab\n"),
        ([Delta(delta="a"), Other(delta="b")], "a\nb\n"),
        ([Progress(msg="one"), Progress(msg="two")], "one\ntwo\n"),
        ([Progress(msg="one"), Progress(msg=" two"), Progress(msg=" three")], "one two three\n"),
        ([Progress(msg="one "), Progress(msg="two")], "one two\n"),
        ([Progress(msg="one\n"), Progress(msg="two")], "one\ntwo\n"),
        ([Progress(msg="one"), Progress(msg=""), Progress(msg="two")], "one\ntwo\n"),
        ([Delta(delta="a"), Two(msg="m", delta="d")], "a\nTwo(msg='m', delta='d')\n"),
        ([Progress(msg=3)], "Progress(msg=3)\n"),
        ([StopEvent(result="x")], ""),
    ],
)
def test_texts_join_by_rule(events, expected):
    """Tokens always join, messages where there is a blank at the seam; classes never mix."""
    assert expected == printed(*events)


def test_nothing_steers_the_terminal():
    """Control characters in an event are shown, not sent."""
    assert printed(Delta(delta="\x1b[2J\x07ok\tnow")) == "\\x1b[2J\\x07ok\tnow\n"


def test_no_colour_where_the_terminal_has_none(monkeypatch):
    """Colour is for terminals that can show it, and for people who want it."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[36mTwo\x1b[0m(" in printed(Two(msg="", delta=""), out=Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in printed(Two(msg="", delta=""), out=Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(Two(msg="", delta=""), out=Terminal())


def test_a_terminal_of_few_letters():
    """What the encoding of the output cannot hold is escaped, not raised."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Printer("pretty", prompts=False, out=out).event(Delta(delta="é!"))

    assert raw.getvalue() == b"\\xe9!"


class Grumpy:
    def __repr__(self):
        raise RuntimeError


def test_json_of_anything():
    """Encoding an event never fails, whatever its fields hold."""
    endless = []
    endless.append(endless)
    line = encode(Event(event="e", event_="f", a=Grumpy(), b="\ud800", c=endless, _d=1))

    assert "\n" not in line
    assert json.loads(line) == {
        "event": "Event",
        "event_": "e",
        "event__": "f",
        "a": "<Grumpy whose repr fails>",
        "b": "'\\ud800'",
        "c": "[[...]]",
    }
