"""Spans made of records that no engine has made: their order and their times are the test's own."""

from __future__ import annotations

from contextvars import copy_context
from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from sluicegate.otel._run import CAUSES_KEPT
from sluicegate.records import (
    CancellationDelivered,
    CancellationRequested,
    EventEmitted,
    InvocationEnded,
    InvocationQueued,
    InvocationStarted,
    QuestionAnswered,
    QuestionAsked,
    RunEnded,
    RunStarted,
    WaitEnded,
    WaitStarted,
)


class Info(SimpleNamespace):
    """What an observer is told of a run."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Drive:
    """A run whose records and calls are made by hand."""

    def __init__(self, observer, parent=None):
        self.info = Info(
            run_id="run-1",
            workflow="Flow",
            is_resumed=False,
            parent=parent,
            carrier={},
            status=None,
            error=None,
        )
        self.take = observer.listen(self.info)
        self.give(
            0,
            RunStarted,
            run_id="run-1",
            workflow="Flow",
            steps={},
            backend="trio",
            wall_offset=0.0,
        )
        self.around = observer.around_run(self.info)
        self.context = copy_context()
        self.context.run(self.around.__enter__)

    def give(self, at, kind, *values, **fields):
        self.take(kind(at, *values, **fields))

    def end(self, at, status="completed", error=None):
        self.give(at, RunEnded, status=status, error=error)
        self.info.status, self.info.error = status, error
        self.context.run(self.around.__exit__, None, None, None)


@pytest.fixture
def drive(traced):
    """A run that has begun."""
    return Drive(traced.observer)


def test_the_time_in_the_queue_begins_when_an_attempt_may_begin(drive, traced):
    """A retry's delay is no queue: ``not_before`` is when it began to wait for a worker."""
    drive.give(1, EventEmitted, 1, "Draft", "outside", None, ("work",), None)
    drive.give(1, InvocationQueued, 1, "work", (1,))
    drive.give(3, InvocationStarted, 1, 1)
    drive.give(4, InvocationQueued, 2, "work", (1,), 2, 1, 10.0)
    drive.give(4, InvocationEnded, 1, "failed", OSError("no"))
    drive.give(11, InvocationStarted, 2, 1)
    drive.give(12, InvocationEnded, 2, "completed")
    drive.end(12)

    first, second = traced.named("step work")
    assert first.attributes["sluicegate.step.queue.duration"] == 2
    assert second.attributes["sluicegate.step.queue.duration"] == 1
    assert second.attributes["sluicegate.step.attempt"] == 2
    assert traced.links(second) == ["step work"]
    ((_, point),) = [
        p for p in traced.points("sluicegate.step.duration") if "error.type" not in p[0]
    ]
    assert point.sum == 1


def test_what_asked_for_a_cancellation_and_how_long_it_took(drive, traced):
    """The clean-up is the time from the delivery to the end of the step."""
    drive.give(1, InvocationQueued, 1, "work", ())
    drive.give(1, InvocationQueued, 2, "work", ())
    drive.give(1, InvocationStarted, 1, 1)
    drive.give(2, CancellationRequested, 1, "branch", "enough", "branch", 7, (1,))
    drive.give(2, InvocationEnded, 2, "dropped")
    drive.give(3, CancellationDelivered, 1, 1)
    drive.give(8, InvocationEnded, 1, "cancelled", None)
    drive.end(9)

    span = traced.one("step work")
    assert span.status.status_code is StatusCode.UNSET
    shown = {k: v for k, v in span.attributes.items() if "cancellation" in k}
    assert shown == {
        "sluicegate.cancellation.by": "branch",
        "sluicegate.cancellation.reason": "enough",
        "sluicegate.cancellation.invocation": 7,
        "sluicegate.cancellation.unwind.duration": 5,
    }
    assert {point.value for _, point in traced.points("sluicegate.step.queued")} == {0}


def test_waits_of_one_step_that_overlap_are_counted_once(drive, traced):
    """A step that waits in two tasks at once has waited for as long as one of them did."""
    drive.give(0, InvocationQueued, 1, "work", ())
    drive.give(0, InvocationStarted, 1, 1)
    drive.give(1, WaitStarted, 1, 1, "event", "Answer")
    drive.give(2, WaitStarted, 2, 1, "branch")
    drive.give(4, WaitEnded, 1, "timed_out")
    drive.give(6, WaitEnded, 2)
    drive.give(7, WaitStarted, 3, 1, "thread")
    drive.give(7.0005, WaitEnded, 3)  # too short for a span
    drive.give(8, WaitStarted, 4, 1, "limiter")
    drive.give(9, InvocationEnded, 1, "cancelled")
    drive.end(9)

    assert traced.one("step work").attributes["sluicegate.step.wait.duration"] == pytest.approx(
        6.0005
    )
    outcomes = {
        span.name: span.attributes["sluicegate.wait.outcome"]
        for span in traced.spans
        if span.name.startswith("wait for")
    }
    assert outcomes == {
        "wait for event": "timed_out",
        "wait for branch": "done",
        "wait for limiter": "cancelled",
    }


def test_questions_that_are_open_at_once_are_counted_once(drive, traced):
    """The run waited for people while at least one question was open."""
    drive.give(1, QuestionAsked, "q1", "Question", None, None)
    drive.give(2, QuestionAsked, "q2", "Question", None, None)
    drive.give(4, QuestionAnswered, "q1", 5)
    drive.give(7, QuestionAnswered, "q2")
    drive.give(8, QuestionAsked, "q3", "Question", None, None)
    drive.end(9, "cancelled")

    assert traced.one("invoke_workflow Flow").attributes["sluicegate.run.people.duration"] == 7
    assert [s.attributes["sluicegate.wait.outcome"] for s in traced.named("wait for person")] == [
        "done",
        "cancelled",
        "cancelled",
    ]
    assert [point.value for _, point in traced.points("sluicegate.question.open")] == [0]


def test_causes_that_are_long_past_are_no_links(drive, traced):
    """Memory is bounded: of an event thousands of events ago, nothing is known any more."""
    drive.give(0, InvocationQueued, 1, "split", ())
    drive.give(0, InvocationStarted, 1, 1)
    for number in range(1, CAUSES_KEPT + 2):
        drive.give(1, EventEmitted, number, "Part", "step", 1, ("work",), None)
    drive.give(1, InvocationQueued, 2, "old", (1,))
    drive.give(1, InvocationQueued, 3, "new", (2,))
    for number in (2, 3):
        drive.give(1, InvocationStarted, number, number)
    for number in (1, 2, 3):
        drive.give(2, InvocationEnded, number, "completed")
    drive.end(2)

    assert traced.links(traced.one("step old")) == []
    assert traced.links(traced.one("step new")) == ["step split"]


def test_spans_that_are_open_when_a_run_ends_are_ended(drive, traced):
    """Whatever was lost of the records, no span stays open, and the caller's span is as before."""
    before = trace.get_current_span()
    drive.give(0, InvocationQueued, 1, "work", ())
    drive.give(0, InvocationStarted, 1, 1)
    drive.give(1, WaitStarted, 1, 1, "event", "Answer")
    drive.end(2, "failed", ValueError("no"))

    assert [span.name for span in traced.spans] == [
        "wait for event",
        "step work",
        "invoke_workflow Flow",
    ]
    assert trace.get_current_span() is before
    assert repr(traced.observer) == "<OpenTelemetryObserver, 0 runs>"
