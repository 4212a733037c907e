"""Recordings: what they tell of the records of a run."""

from __future__ import annotations

import pytest

from sluicegate import records as r
from sluicegate.recording import Recording
from tests.recording import by_hand


def recording_of(*runs):
    return Recording.from_records(runs)


def parts(path):
    return [(p.kind, p.started_at, p.ended_at) for p in path.parts]


def numbered(nodes):
    return [(type(n).__name__.removeprefix("Recorded"), n.number) for n in nodes]


def test_invocations_have_their_times_and_events():
    """An invocation has when it was queued, began and ended, its events and those that it made."""
    run = recording_of(by_hand.fan_out()).run
    begin, first, second, end = run.invocations

    assert [begin.step, first.step, second.step, end.step] == ["begin", "work", "work", "end"]
    assert (second.queued_at, second.started_at, second.ended_at) == (1.0, 1.5, 6.5)
    assert second.took == 5.0
    assert second.worker == 2
    assert begin.emitted == run.events[1:3]
    assert end.events == (run.events[3], run.events[4])
    assert run.events[3].source is first
    assert run.events[3].consumers == [end]
    assert run.stop_event is run.events[5]
    assert (run.status, run.started_at, run.ended_at) == ("completed", 0.0, 7.5)


def test_what_has_not_happened_is_none():
    """A run whose records end in the middle is running, and so are its invocations."""
    run = recording_of(by_hand.fan_out()[:12]).run

    assert run.status == "running"
    assert run.ended_at is None
    assert run.took is None
    assert run.last_at == 2.0
    assert [one.outcome for one in run.invocations] == ["completed", None, None]
    assert run.invocations[1].took is None


def test_waits_and_questions():
    """A wait has what it waits for, until when, and the event that ended it; so has a question."""
    run = recording_of(by_hand.question()).run
    ask = run.invocations[0]
    people, step = ask.waits

    assert (people.kind, people.subject, people.until, people.outcome) == (
        "event",
        "Answer",
        60.0,
        "done",
    )
    assert people.event is run.events[1]
    assert step.event is not None
    assert step.event.source is run.invocations[1]
    assert step.event.waits == [step]
    (question,) = run.questions
    assert (question.asked_at, question.closed_at, question.answer) == (1.0, 4.0, run.events[1])
    assert question.invocation is ask
    assert run.stream[0].invocation is ask


def test_attempts_are_linked():
    """Each attempt is an invocation that knows the one before and the one after."""
    run = recording_of(by_hand.retry()).run
    first, second = run.invocations

    assert second.previous is first
    assert first.next is second
    assert (second.attempt, second.not_before) == (2, 4.0)
    assert isinstance(first.error, ValueError)
    assert run.error is second.error


def test_a_cancellation_lists_whom_it_held_up_longest():
    """A cancellation lists its invocations, the slowest to unwind first, with their times."""
    recording = recording_of(by_hand.cancelled())
    (cancellation,) = recording.cancellations
    found = cancellation.invocations

    assert [(one.invocation.number, one.delivered_at, one.took) for one in found] == [
        (2, 2.5, 3.0),
        (3, None, 2.0),
        (1, 2.0, 0.25),
    ]
    assert (cancellation.by, cancellation.reason) == ("owner", "enough")
    assert [one.outcome for one in recording.invocations] == [
        "cancelled",
        "cancelled",
        "completed",
        "dropped",
    ]


def test_those_that_still_unwind_come_first():
    """An invocation that a cancellation reached and that has not ended comes before the others."""
    records = [
        one for one in by_hand.cancelled() if getattr(one, "invocation", 0) != 3 or one.at < 3
    ]
    (cancellation,) = recording_of(records).cancellations

    assert [one.invocation.number for one in cancellation.invocations] == [3, 2, 1]


def test_a_later_delivery_joins_the_cancellation():
    """An invocation that had not begun when the cancellation was requested is in its list, once."""
    records = by_hand.cancelled()
    records.insert(-1, r.CancellationDelivered(4.5, 4, 1))
    records.insert(-1, r.CancellationDelivered(4.5, 4, 1))
    (cancellation,) = recording_of(records).cancellations

    assert sorted(one.invocation.number for one in cancellation.invocations) == [1, 2, 3, 4]


def test_children_hang_under_the_invocation_that_runs_them():
    """The run of a child is a child of its parent's run and of the invocation that runs it."""
    recording = recording_of(*by_hand.family())
    (parent,) = recording.runs
    child = recording.find("child")

    assert recording.run is parent
    assert parent.children == [child]
    assert child.parent is parent.invocations[0]
    assert parent.invocations[0].children == [child]
    assert recording.all_runs == [parent, child]


def test_resources_edits_and_collections():
    """Resources, edits of the state, collected events and snapshots are kept."""
    error = OSError("no")
    records = [
        *by_hand.fan_out()[:12],
        r.ResourceOpened(2.0, 1, "connect", "run", 2, 0.5),
        r.ResourceClosed(2.5, 1, 0.25),
        r.ResourceFailed(2.5, 2, "other", "opening", error),
        r.StateEditStarted(2.5, 1, 2),
        r.StateEditEnded(2.6, 1, "committed"),
        r.EventsCollected(2.7, 2, (1, 2), "buffer"),
        r.SnapshotTaken(2.8, 0.001),
    ]
    run = recording_of(records).run
    opened, failed = run.resources
    second = run.invocations[1]

    assert (opened.name, opened.opened_at, opened.closed_at) == ("connect", 2.0, 2.5)
    assert opened.invocation is second
    assert (failed.error, failed.opened_at) == (error, None)
    assert (run.edits[0].invocation, run.edits[0].outcome) == (second, "committed")
    assert second.collected[0][1] == (run.events[0], run.events[1])
    assert run.events[0].collectors == [second]
    assert run.snapshots[0].took == 0.001


def test_a_missing_beginning():
    """Records whose run, step or wait is not known are kept, and what they do not tell is unknown."""
    run = recording_of([*by_hand.fan_out()[13:], r.WaitEnded(8.0, 9)]).run

    assert (run.run_id, run.workflow) == ("0", "?")
    assert [(one.step, one.outcome) for one in run.invocations][:2] == [
        ("?", "completed"),
        ("?", "completed"),
    ]
    assert run.status == "completed"


def test_a_recording_without_runs():
    """An empty recording has no run, and says how to get one."""
    recording = recording_of()

    assert recording.all_runs == []
    with pytest.raises(LookupError, match="the recording has no run; expected one of a workflow"):
        _ = recording.run
    with pytest.raises(LookupError, match="no run 'x'; it has none"):
        recording.find("x")


# -- causes -----------------------------------------------------------------------------------


def test_descendants_of_an_event():
    """The descendants of an event are the invocations that took it, and what came of them."""
    recording = recording_of(by_hand.fan_out())
    found = recording.descendants(recording.events[1])

    assert numbered(found) == [
        ("Invocation", 2),
        ("Event", 4),
        ("Invocation", 4),
        ("Event", 6),
    ]


def test_ancestors_of_a_join():
    """The ancestors of a joined event are all events of the join, and what they came of."""
    recording = recording_of(by_hand.fan_out())

    assert numbered(recording.ancestors(recording.events[5])) == [
        ("Event", 1),
        ("Invocation", 1),
        ("Event", 2),
        ("Event", 3),
        ("Invocation", 2),
        ("Invocation", 3),
        ("Event", 4),
        ("Event", 5),
        ("Invocation", 4),
    ]


def test_what_came_before_a_wait_is_not_its_descendant():
    """An event that ends a wait has caused only what the invocation makes afterwards."""
    recording = recording_of(by_hand.question())
    _start, answer, find, found, stop = recording.events
    after_found = recording.descendants(found)

    assert find not in after_found
    assert stop in after_found
    assert find in recording.descendants(answer)
    assert found not in recording.ancestors(find)
    assert answer in recording.ancestors(find)


def test_causes_cross_children():
    """A child's events come of the invocation that runs the child."""
    recording = recording_of(*by_hand.family())
    child_stop = recording.find("child").events[-1]

    assert recording.events[0] in recording.ancestors(child_stop)
    assert child_stop in recording.descendants(recording.events[0])


@pytest.mark.parametrize("name", by_hand.ALL)
def test_causes_and_effects_are_inverse(name):
    """A node is among another's descendants exactly if the other is among its ancestors."""
    recording = recording_of(by_hand.ALL[name]())
    nodes = [*recording.events, *recording.invocations]
    forth = {(a, b) for a in recording.events for b in recording.descendants(a)}
    back = {(a, b) for b in nodes for a in recording.ancestors(b) if a in recording.events}

    assert back == {pair for pair in forth if pair[0] in recording.events} & back
    assert {p for p in forth if p[1] in recording.events} == {
        p for p in back if p[1] in recording.events
    }


# -- the critical path ------------------------------------------------------------------------


def test_the_path_of_a_fan_out_goes_through_the_slowest():
    """The path goes through the last event of a join, and counts queueing apart."""
    path = recording_of(by_hand.fan_out()).critical_path()

    assert parts(path) == [
        ("starting", 0.0, 0.25),
        ("queued", 0.25, 0.5),
        ("running", 0.5, 1.0),
        ("queued", 1.0, 1.5),
        ("running", 1.5, 6.5),
        ("running", 6.5, 7.0),
        ("ending", 7.0, 7.5),
    ]
    assert [one.number for one in path.invocations] == [1, 3, 4]
    assert path.seconds == 7.5
    assert path.by_step() == {"work": 5.5, "begin": 0.75, "end": 0.5}


def test_the_path_goes_through_what_ended_a_wait():
    """A wait that a step's event ended leads to that step; one for a person is waiting."""
    path = recording_of(by_hand.question()).critical_path()

    assert [(str(p), p.started_at, p.ended_at) for p in path.parts] == [
        ("ask #1 running", 0.0, 1.0),
        ("ask #1 waiting for event Answer", 1.0, 4.0),
        ("ask #1 running", 4.0, 5.0),
        ("find #2 queued", 5.0, 6.0),
        ("find #2 running", 6.0, 8.0),
        ("ask #1 running", 8.0, 9.0),
    ]


def test_the_path_of_a_failure_and_a_retry():
    """The path ends at the failed invocation, and tells the delay of a retry from its queueing."""
    path = recording_of(by_hand.retry()).critical_path()

    assert parts(path) == [
        ("running", 0.0, 1.0),
        ("delayed", 1.0, 4.0),
        ("queued", 4.0, 5.0),
        ("running", 5.0, 6.0),
        ("ending", 6.0, 6.5),
    ]


def test_the_path_of_a_cancelled_run_ends_with_the_slowest_to_unwind():
    """The path of a cancelled run shows who unwound last, and for how long."""
    path = recording_of(by_hand.cancelled()).critical_path()

    assert parts(path) == [("running", 0.0, 2.5), ("unwinding", 2.5, 5.0)]
    assert [one.number for one in path.invocations] == [2]


def test_the_path_goes_through_a_child():
    """A wait for a child is the path of the child's run."""
    recording = recording_of(*by_hand.family())
    path = recording.critical_path()

    assert [(p.run.run_id, p.kind, p.started_at, p.ended_at) for p in path.parts] == [
        ("parent", "running", 0.0, 1.0),
        ("child", "queued", 1.0, 2.0),
        ("child", "running", 2.0, 4.0),
        ("parent", "running", 4.0, 5.0),
    ]


def test_the_path_goes_through_a_branch():
    """A wait for a branch leads to the invocation of the branch that ended last."""
    records = [
        by_hand.started(0.0),
        r.EventEmitted(0.0, 1, "StartEvent", "outside", None, ("begin",), {}),
        r.InvocationQueued(0.0, 1, "begin", (1,)),
        r.InvocationStarted(0.0, 1, 1),
        r.EventEmitted(1.0, 2, "Item", "step", 1, ("work",), {}),
        r.InvocationQueued(1.0, 2, "work", (2,)),
        r.WaitStarted(2.0, 1, 1, "branch"),
        r.InvocationStarted(3.0, 2, 1),
        r.InvocationEnded(5.0, 2, "completed"),
        r.WaitEnded(6.0, 1),
        r.EventEmitted(7.0, 3, "StopEvent", "step", 1, (), {}),
        r.InvocationEnded(7.0, 1, "completed"),
        by_hand.ended(7.0, "completed", None, 3),
    ]
    path = recording_of(records).critical_path()

    assert [(p.invocation.number, p.kind, p.started_at, p.ended_at) for p in path.parts] == [
        (1, "running", 0.0, 2.0),
        (2, "queued", 2.0, 3.0),
        (2, "running", 3.0, 5.0),
        (1, "waiting", 5.0, 6.0),
        (1, "running", 6.0, 7.0),
    ]


@pytest.mark.parametrize("name", by_hand.ALL)
@pytest.mark.parametrize("length", range(1, 22))
def test_the_parts_of_a_path_have_no_gap(name, length):
    """The parts cover the time of the run, also of one that has not ended."""
    records = by_hand.ALL[name]()[:length]
    recording = recording_of(records)
    run = recording.run
    path = recording.critical_path()
    end = run.last_at if run.ended_at is None else run.ended_at

    edges = [run.started_at, *(p.ended_at for p in path.parts)]
    assert [p.started_at for p in path.parts] == edges[:-1]
    assert edges[-1] == end


def test_a_queue_names_what_kept_the_worker_busy():
    """A part in a queue names the invocation that the same worker ran meanwhile."""
    records = [
        by_hand.started(0.0),
        r.EventEmitted(0.0, 1, "StartEvent", "outside", None, ("work",), {}),
        r.EventEmitted(0.0, 2, "Other", "outside", None, ("work",), {}),
        r.InvocationQueued(0.0, 1, "work", (1,)),
        r.InvocationQueued(0.0, 2, "work", (2,)),
        r.InvocationStarted(0.0, 1, 1),
        r.InvocationEnded(4.0, 1, "completed"),
        r.InvocationStarted(4.0, 2, 1),
        r.EventEmitted(5.0, 3, "StopEvent", "step", 2, (), {}),
        r.InvocationEnded(5.0, 2, "completed"),
        by_hand.ended(5.0, "completed", None, 3),
    ]
    path = recording_of(records).critical_path()

    assert [str(part) for part in path.parts] == [
        "work #2 queued behind work #1",
        "work #2 running",
    ]
    assert path.parts[0].behind is path.run.invocations[0]
