"""The parser of event streams."""

from __future__ import annotations

import pytest

from sluicegate._sse import EventDecoder


def decode(*received: bytes) -> list[str]:
    decoder = EventDecoder()
    events = [event for piece in received for event in decoder.feed(piece)] + decoder.flush()
    return [event.data for event in events]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends(end):
    """Each of the three line ends of the format ends a line, and two end an event."""
    assert decode(end.join([b"data: one", b"", b"data: two", b"", b""])) == ["one", "two"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_cut_anywhere(end):
    """Events are the same wherever the network cuts the bytes, also within a character or line end."""
    stream = end.join(
        ["data: größer ✓".encode(), b"", b": comment", b"data:x", b"data: y", b"", b""]
    )
    expected = ["größer ✓", "x\ny"]

    assert expected == decode(stream)
    assert expected == decode(*(stream[i : i + 1] for i in range(len(stream))))
    for cut in range(len(stream)):
        assert expected == decode(stream[:cut], stream[cut:])


def test_events_come_as_soon_as_they_are_complete():
    """The blank line completes an event; nothing that follows is waited for."""
    decoder = EventDecoder()

    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [("a", "", "")]
    assert decoder.feed(b"data: b\n\ndata: c\n\ndata: d") == [("b", "", ""), ("c", "", "")]


def test_comments_and_other_fields_are_passed_over():
    """Keep-alive comments, event names, ids and retry times are no data, alone or around some."""
    assert decode(
        b": ping\n\n:\n\nevent: message\nid: 7\nretry: 10\ndata: x\n\nevent: only\n\n"
    ) == ["x"]


def test_one_space_belongs_to_the_format():
    """One space behind the colon is not data, further ones are, and a field needs no colon."""
    assert decode(b"data:a\n\ndata:  b\n\ndata\n\n") == ["a", " b", ""]


def test_json_may_contain_unicode_line_ends():
    """U+2028 and its like do not end a line, though Python's splitlines thinks so."""
    text = "a\u2028b\u0085c\x0bd"

    assert [text] == decode(f"data: {text}\n\n".encode())


def test_last_event_without_blank_line():
    """The end of the stream completes an event that only lacks its blank line."""
    assert decode(b"data: x") == ["x"]
    assert decode(b"data: x\r") == ["x"]
    assert decode(b"") == []


def test_byte_order_mark():
    """A byte order mark in front is not data."""
    assert decode(b"\xef\xbb\xbfdata: x\n\n") == ["x"]


def test_broken_utf8_is_replaced():
    """Bytes that are not UTF-8 cost a character and not the stream."""
    assert decode(b"data: a\xffb\n\n") == ["a\ufffdb"]


def test_names_and_ids():
    """A name is that of one event; an id holds until the next one, and comes of an empty event too."""
    decoder = EventDecoder()
    received = (
        b"id: 1\nevent: Draft\ndata: a\n\ndata: b\n\nid: 2\n\nid: x\0\ndata: c\n\nid\ndata: d\n\n"
    )

    assert decoder.feed(received) == [
        ("a", "Draft", "1"),
        ("b", "", "1"),
        ("c", "", "2"),
        ("d", "", ""),
    ]
