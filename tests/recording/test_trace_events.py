"""Traces for Perfetto: the events follow Chrome's trace event format."""

from __future__ import annotations

import json

import pytest

from sluicegate import records as r
from sluicegate.recording import Recording
from tests.recording import by_hand


def trace_of(*runs):
    trace = Recording.from_records(runs).to_trace_events()
    assert json.loads(json.dumps(trace)) == trace
    return trace["traceEvents"]


def of_phase(events, phase):
    return [one for one in events if one["ph"] == phase]


#: The keys that each phase must have, by the format.
REQUIRED = {
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "M": {"name", "pid", "tid", "args"},
    "i": {"name", "cat", "pid", "tid", "ts", "s"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
    "b": {"name", "cat", "id", "pid", "tid", "ts"},
    "e": {"name", "cat", "id", "pid", "tid", "ts"},
}
METADATA = {
    "process_name",
    "process_labels",
    "process_sort_index",
    "thread_name",
    "thread_sort_index",
}


def check_format(events):
    """Check what the format asks for, and what Perfetto needs to show all of it."""
    for one in events:
        assert REQUIRED[one["ph"]] <= set(one), one
        assert isinstance(one["pid"], int)
        assert isinstance(one["tid"], int)
    assert {one["name"] for one in of_phase(events, "M")} <= METADATA
    named = {(one["pid"], one["tid"]) for one in events if one["name"] == "thread_name"}
    bars = of_phase(events, "X")
    assert {(one["pid"], one["tid"]) for one in events if one["ph"] != "M"} <= named
    assert all(one["dur"] > 0 for one in bars)
    # Slices of one track lie beside or inside each other.
    for one in bars:
        for other in bars:
            if (one["pid"], one["tid"]) == (other["pid"], other["tid"]) and one is not other:
                first, second = sorted([one, other], key=lambda x: (x["ts"], -x["dur"]))
                end = first["ts"] + first["dur"]
                # Times are rounded to a nanosecond.
                is_beside = second["ts"] >= end - 0.001
                assert is_beside or second["ts"] + second["dur"] <= end + 0.011
    # An arrow begins and ends in a slice, is used once, and does not run back in time.
    starts = {one["id"]: one for one in of_phase(events, "s")}
    ends = {one["id"]: one for one in of_phase(events, "f")}
    assert starts.keys() == ends.keys()
    assert len(starts) == len(of_phase(events, "s"))
    for one in [*starts.values(), *ends.values()]:
        assert any(
            (bar["pid"], bar["tid"]) == (one["pid"], one["tid"])
            and bar["ts"] <= one["ts"] < bar["ts"] + bar["dur"]
            for bar in bars
        ), one

    # The two ends of an asynchronous span match by category, identifier and name.
    def key_of(one):
        return (one["cat"], one["id"], one["name"], one["pid"])

    begun = {key_of(one): one["ts"] for one in of_phase(events, "b")}
    ended = {key_of(one): one["ts"] for one in of_phase(events, "e")}
    assert begun.keys() == ended.keys()
    assert all(ended[key] >= at for key, at in begun.items())


@pytest.mark.parametrize("name", by_hand.ALL)
@pytest.mark.parametrize("length", [1, 5, 9, 12, 16, 100])
def test_the_format(name, length):
    """Every recording, also one that ends in the middle, gives a valid trace."""
    check_format(trace_of(by_hand.ALL[name]()[:length]))


def test_no_time_at_all():
    """Invocations that take no time, as in virtual time, have bars, and arrows are bound to them."""
    records = [
        by_hand.started(0.0),
        r.EventEmitted(0.0, 1, "StartEvent", "outside", None, ("begin",), {}),
        r.InvocationQueued(0.0, 1, "begin", (1,)),
        r.InvocationStarted(0.0, 1, 1),
        r.EventEmitted(0.0, 2, "Item", "step", 1, ("work",), {}),
        r.InvocationEnded(0.0, 1, "completed"),
        r.InvocationQueued(0.0, 2, "work", (2,)),
        r.InvocationStarted(0.0, 2, 1),
        r.InvocationEnded(0.0, 2, "completed"),
        by_hand.ended(0.0, "completed"),
    ]
    events = trace_of(records)

    check_format(events)
    assert len(of_phase(events, "s")) == 1


def test_tracks_and_bars():
    """Each worker of a step has a track, in the order of the workflow, with a bar for each invocation."""
    events = trace_of(by_hand.fan_out())
    tracks = {one["tid"]: one["args"]["name"] for one in events if one["name"] == "thread_name"}
    bars = [(tracks[one["tid"]], one["ts"], one["dur"]) for one in of_phase(events, "X")]

    assert list(tracks.values()) == [
        "run",
        "begin, worker 1",
        "work, worker 1",
        "work, worker 2",
        "end, worker 1",
    ]
    assert bars == [
        ("run", 0.0, 7.5e6),
        ("begin, worker 1", 0.5e6, 0.5e6),
        ("work, worker 1", 1e6, 2e6),
        ("work, worker 2", 1.5e6, 5e6),
        ("end, worker 1", 6.5e6, 0.5e6),
    ]
    (progress,) = of_phase(events, "i")
    assert (progress["name"], tracks[progress["tid"]]) == ("Progress", "work, worker 1")
    queued = [(one["name"], one["ts"]) for one in of_phase(events, "b")]
    assert queued == [("queued: begin", 0.25e6), ("queued: work", 1e6)]


def test_arrows_lead_from_emission_to_where_it_was_taken():
    """An arrow leads from the moment of emission to the invocation, or to the end of the wait."""
    events = trace_of(by_hand.question())
    starts = {one["id"]: one for one in of_phase(events, "s")}
    arrows = [(one["name"], starts[one["id"]]["ts"], one["ts"]) for one in of_phase(events, "f")]

    assert arrows == [("Find", 5e6, 6e6), ("Found", pytest.approx(8e6), 8e6)]
    waits = [one["name"] for one in of_phase(events, "b") if one["cat"] == "wait"]
    assert waits == ["waiting for event Answer", "waiting for event Found"]


def test_a_child_is_a_process_of_its_own():
    """Each run is a process that is named for it; a child says whose child it is."""
    events = trace_of(*by_hand.family())

    check_format(events)
    assert [one["args"]["name"] for one in events if one["name"] == "process_name"] == [
        "Parent parent",
        "Child child",
    ]
    (label,) = (one for one in events if one["name"] == "process_labels")
    assert label["args"]["labels"] == "child of outer #1"
    assert label["pid"] == 2


def test_a_cancellation_is_shown():
    """A cancellation is an instant with its reason, and what unwinds is a bar within the invocation."""
    events = trace_of(by_hand.cancelled())
    instants = [(one["name"], one["args"]["reason"]) for one in of_phase(events, "i")]
    bars = [(one["ts"], one["dur"]) for one in of_phase(events, "X") if one["name"] == "unwinding"]

    assert instants == [("cancelled by owner", "enough")]
    assert bars == [(2e6, 0.25e6), (2.5e6, 2.5e6)]
