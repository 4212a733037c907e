"""Records made by hand: the recordings that the tests of this folder read."""

from __future__ import annotations

from sluicegate import records as r


def started(at=0.0, run_id="run", workflow="Flow", **options):
    steps = options.pop("steps", {"begin": 1, "work": 4, "end": 1})
    return r.RunStarted(
        at,
        run_id=run_id,
        workflow=workflow,
        steps=steps,
        backend="trio",
        wall_offset=1_000.0,
        **options,
    )


def ended(at, status, error=None, event=None):
    return r.RunEnded(at, status=status, error=error, event=event)


def fan_out():
    """begin makes two events for work, whose workers take 2 s and 5 s; end joins them.

    begin: 0.5 - 1; work 2: 1 - 3, work 3: queued 1, 1.5 - 6.5; end: 6.5 - 7; run: 0 - 7.5
    """
    return [
        started(0.0),
        r.EventEmitted(0.25, 1, "StartEvent", "outside", None, ("begin",), {"n": 2}),
        r.InvocationQueued(0.25, 1, "begin", (1,)),
        r.InvocationStarted(0.5, 1, 1),
        r.EventEmitted(1.0, 2, "Item", "step", 1, ("work",), {"n": 1}),
        r.EventEmitted(1.0, 3, "Item", "step", 1, ("work",), {"n": 2}),
        r.InvocationEnded(1.0, 1, "completed"),
        r.InvocationQueued(1.0, 2, "work", (2,)),
        r.InvocationQueued(1.0, 3, "work", (3,)),
        r.InvocationStarted(1.0, 2, 1),
        r.InvocationStarted(1.5, 3, 2),
        r.EventStreamed(2.0, 1, "Progress", 2, {"done": 1}),
        r.EventEmitted(3.0, 4, "Done", "step", 2, ("end",), {}),
        r.InvocationEnded(3.0, 2, "completed"),
        r.EventEmitted(6.5, 5, "Done", "step", 3, ("end",), {}),
        r.InvocationEnded(6.5, 3, "completed"),
        r.InvocationQueued(6.5, 4, "end", (4, 5)),
        r.InvocationStarted(6.5, 4, 1),
        r.EventEmitted(7.0, 6, "StopEvent", "step", 4, (), {"result": 2}),
        r.InvocationEnded(7.0, 4, "completed"),
        ended(7.5, "completed", None, 6),
    ]


def question():
    """ask sends two events, waits for a person, then for a step; both answer.

    ask: 0 - 9: wait for Answer 1 - 4 (from outside), runs 4 - 5, wait for Found 5 - 8 (made by find,
    which runs 6 - 8 after Answer's copy), stop at 9.
    """
    return [
        started(0.0, steps={"ask": 1, "find": 1}),
        r.EventEmitted(0.0, 1, "StartEvent", "outside", None, ("ask",), {}),
        r.InvocationQueued(0.0, 1, "ask", (1,)),
        r.InvocationStarted(0.0, 1, 1),
        r.QuestionAsked(1.0, "q1", "Question", 1, {"text": "?"}),
        r.EventStreamed(1.0, 1, "Question", 1, {"text": "?"}),
        r.WaitStarted(1.0, 1, 1, "event", "Answer", 60.0),
        r.EventEmitted(4.0, 2, "Answer", "outside", None, (), {"text": "!"}),
        r.QuestionAnswered(4.0, "q1", 2),
        r.WaitEnded(4.0, 1, "done", 2),
        r.EventEmitted(5.0, 3, "Find", "step", 1, ("find",), {}),
        r.InvocationQueued(5.0, 2, "find", (3,)),
        r.WaitStarted(5.0, 2, 1, "event", "Found"),
        r.InvocationStarted(6.0, 2, 1),
        r.EventEmitted(8.0, 4, "Found", "step", 2, (), {}),
        r.WaitEnded(8.0, 2, "done", 4),
        r.InvocationEnded(8.0, 2, "completed"),
        r.EventEmitted(9.0, 5, "StopEvent", "step", 1, (), {}),
        r.InvocationEnded(9.0, 1, "completed"),
        ended(9.0, "completed", None, 5),
    ]


def retry():
    """work fails at 1, is retried with a delay of 3 s, is queued until 5, and fails at 6."""
    error = ValueError("not a number")
    return [
        started(0.0, steps={"work": 1}),
        r.EventEmitted(0.0, 1, "StartEvent", "outside", None, ("work",), {}),
        r.InvocationQueued(0.0, 1, "work", (1,)),
        r.InvocationStarted(0.0, 1, 1),
        r.InvocationEnded(1.0, 1, "failed", error),
        r.InvocationQueued(1.0, 2, "work", (1,), 2, 1, 4.0),
        r.InvocationStarted(5.0, 2, 1),
        r.InvocationEnded(6.0, 2, "failed", error),
        r.CancellationRequested(6.0, 1, "failure", "work raised ValueError", "run", 2, ()),
        ended(6.5, "failed", error),
    ]


def cancelled():
    """Three workers; the owner cancels at 2; one ends at once, one unwinds until 5, one is in a thread."""
    return [
        started(0.0),
        r.EventEmitted(0.0, 1, "StartEvent", "outside", None, ("begin",), {}),
        r.InvocationQueued(0.0, 1, "work", (1,)),
        r.InvocationQueued(0.0, 2, "work", (1,)),
        r.InvocationQueued(0.0, 3, "work", (1,)),
        r.InvocationQueued(0.0, 4, "work", (1,)),
        r.InvocationStarted(0.0, 1, 1),
        r.InvocationStarted(0.0, 2, 2),
        r.InvocationStarted(0.0, 3, 3),
        r.CancellationRequested(2.0, 1, "owner", "enough", "run", None, (1, 2, 3)),
        r.CancellationDelivered(2.0, 1, 1),
        r.CancellationDelivered(2.5, 2, 1),
        r.InvocationEnded(2.25, 1, "cancelled"),
        r.InvocationEnded(5.0, 2, "cancelled"),
        r.InvocationEnded(4.0, 3, "completed"),
        r.InvocationEnded(5.0, 4, "dropped"),
        ended(5.0, "cancelled"),
    ]


def family():
    """A parent whose only step runs a child from 1 to 4; the child's only step runs from 2 to 4."""
    parent = [
        started(0.0, "parent", "Parent", steps={"outer": 1}),
        r.EventEmitted(0.0, 1, "StartEvent", "outside", None, ("outer",), {}),
        r.InvocationQueued(0.0, 1, "outer", (1,)),
        r.InvocationStarted(0.0, 1, 1),
        r.ChildStarted(1.0, 1, "child", "Child"),
        r.WaitStarted(1.0, 1, 1, "child", "child"),
        r.ChildEnded(4.0, "child", "completed"),
        r.WaitEnded(4.0, 1),
        r.EventEmitted(5.0, 2, "StopEvent", "step", 1, (), {}),
        r.InvocationEnded(5.0, 1, "completed"),
        ended(5.0, "completed", None, 2),
    ]
    child = [
        started(
            1.0,
            "child",
            "Child",
            steps={"inner": 1},
            parent_run="parent",
            parent_invocation=1,
        ),
        r.EventEmitted(1.0, 1, "StartEvent", "outside", None, ("inner",), {}),
        r.InvocationQueued(1.0, 1, "inner", (1,)),
        r.InvocationStarted(2.0, 1, 1),
        r.EventEmitted(4.0, 2, "StopEvent", "step", 1, (), {}),
        r.InvocationEnded(4.0, 1, "completed"),
        ended(4.0, "completed", None, 2),
    ]
    return [parent, child]


ALL = {"fan_out": fan_out, "question": question, "retry": retry, "cancelled": cancelled}
