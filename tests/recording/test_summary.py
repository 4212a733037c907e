"""Summaries: a recording as a table; and the counts for the picture of a run."""

from __future__ import annotations

import inspect

import pytest

import sluicegate
from sluicegate import Event, StartEvent, StopEvent, Workflow, step
from sluicegate import records as r
from sluicegate.drawing import Passage, StepCounts
from sluicegate.recording import (
    Recorder,
    Recording,
    draw_most_recent_execution,
    draw_most_recent_execution_mermaid,
    graph_of_execution,
)
from tests.recording import by_hand
from tests.recording.test_recorder import record


def recording_of(*runs):
    return Recording.from_records(runs)


def test_the_table_of_a_run():
    """The summary has a line for each step, the slowest first, and the path in the order of time."""
    text = recording_of(by_hand.fan_out()).summary()

    assert (
        text
        == inspect.cleandoc(
            """
        run run of Flow: completed after 7.5 s

          step   count   total    mean     max  queued  failed  cancelled  retried
          work       2   7.0 s   3.5 s   5.0 s  500 ms
          begin      1  500 ms  500 ms  500 ms  250 ms
          end        1  500 ms  500 ms  500 ms

          critical path, 7.5 s: work 73%, begin 10%, end 7%
            +0.0 ms     250 ms  starting StartEvent
            +250 ms     250 ms  begin #1 queued
            +500 ms     500 ms  begin #1 running
             +1.0 s     500 ms  work #3 queued
             +1.5 s      5.0 s  work #3 running
             +6.5 s     500 ms  end #4 running
             +7.0 s     500 ms  ending
        """
        )
        + "\n"
    )


def test_failures_and_cancellations_are_told():
    """The summary says why a run failed, and who held up a cancellation."""
    failed = recording_of(by_hand.retry()).summary()
    cancelled = recording_of(by_hand.cancelled()).summary()

    assert "run run of Flow: failed after 6.5 s\n  ValueError: not a number\n" in failed
    assert "work      2  2.0 s  1.0 s  1.0 s   4.0 s       2                   1\n" in failed
    assert (
        "  run cancelled after 2.0 s by owner: enough\n"
        "    work #2 unwound in 3.0 s\n"
        "    work #3 unwound in 2.0 s, told only by its end\n"
        "    work #1 unwound in 250 ms\n"
    ) in cancelled


def test_children_are_in_the_table():
    """The steps of children stand in the table of their parent, with the name of their workflow."""
    text = recording_of(*by_hand.family()).summary()

    assert text.count("run parent of Parent: completed") == 1
    assert "Child.inner      1  2.0 s" in text
    assert "Child.inner #1 running" in text


def test_incomplete_recordings_say_so():
    """A file that is cut off or damaged says so in its summary."""
    lines = [b'{"run":"a","record":"RunEnded","at":1.0,"status":"completed"}\n', b"{}\n", b'{"run']
    recording = Recording()
    for line in lines:
        recording.feed(line)

    assert recording.summary().endswith(
        "lines of the file that could not be read: 1\nthe last line of the file is cut off\n"
    )


def test_many_runs_and_long_paths_are_shortened():
    """Of many runs the last are told, and of a long path the parts that took longest."""
    runs = []
    for number in range(25):
        records = by_hand.fan_out()
        records[0] = by_hand.started(run_id=f"run-{number}")
        runs.append(records)
    text = recording_of(*runs).summary()

    assert text.startswith("5 earlier runs\n\nrun run-5 of Flow")
    chain = [
        by_hand.started(),
        r.EventEmitted(0.0, 1, "E", "outside", None, ("work",), {}),
    ]
    for n in range(1, 101):
        chain += [
            r.InvocationQueued(float(n - 1), n, "work", (n,)),
            r.InvocationStarted(float(n - 1), n, 1),
            r.EventEmitted(float(n), n + 1, "E", "step", n, ("work",), {}),
            r.InvocationEnded(float(n), n, "completed"),
        ]
    text = recording_of(chain).summary()
    assert "85 shorter parts take 85.0 s" in text
    assert text.count(" running\n") == 15


# -- the picture --------------------------------------------------------------------------------


def test_counts_for_the_picture():
    """An execution has the counts of each step, and how many events went each way."""
    execution = recording_of(by_hand.fan_out()).execution()

    assert execution.steps == {
        "begin": StepCounts(1, 1, seconds=0.5),
        "work": StepCounts(2, 2, seconds=7.0),
        "end": StepCounts(1, 1, seconds=0.5),
    }
    assert set(execution.passages) == {
        Passage(None, "StartEvent", "begin", 1),
        Passage("begin", "Item", "work", 2),
        Passage("work", "Done", "end", 2),
        Passage("end", "StopEvent", None, 1),
    }
    assert execution.published == (Passage("work", "Progress", None, 1),)
    assert (execution.outcome, execution.seconds, execution.run_id) == ("completed", 7.5, "run")


def test_attempts_are_one_invocation_in_the_picture():
    """Retries are counted apart: an invocation that was retried and failed has failed once."""
    execution = recording_of(by_hand.retry()).execution()

    assert execution.steps == {"work": StepCounts(1, 0, 1, retried=1, seconds=2.0)}
    assert execution.passages == (Passage(None, "StartEvent", "work", 1),)


def test_waits_and_questions_in_the_picture():
    """An event that ended a wait went to the step that waited; a question left the run."""
    execution = recording_of(by_hand.question()).execution()

    assert set(execution.passages) == {
        Passage(None, "StartEvent", "ask", 1),
        Passage(None, "Answer", "ask", 1),
        Passage("ask", "Find", "find", 1),
        Passage("find", "Found", "ask", 1),
        Passage("ask", "StopEvent", None, 1),
    }
    assert execution.published == ()


def test_a_dropped_invocation_never_ran():
    """An invocation that was dropped before it began is not counted."""
    execution = recording_of(by_hand.cancelled()).execution()

    assert execution.steps == {"work": StepCounts(3, 1, 0, 2, seconds=11.25)}


def test_children_in_the_picture():
    """The runs of children are counted together by workflow."""
    parent, child = by_hand.family()
    second = [by_hand.started(4.5, "two", "Child", parent_run="parent", parent_invocation=1)]
    second += [r.InvocationQueued(4.5, 1, "inner", ()), r.InvocationStarted(4.5, 1, 1)]
    execution = recording_of(parent, child, second).execution()

    (found,) = execution.children
    assert found.workflow == "Child"
    assert found.steps == {"inner": StepCounts(2, 1, seconds=2.0)}


class Item(Event):
    n: int


class Flow(Workflow[int]):
    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=1), Item(n=2)]

    @step
    async def work(self, ev: Item) -> StopEvent:
        return StopEvent()


def test_drawing_a_recording(tmp_path):
    """A recording is drawn with its workflow, or, without that, as what happened."""
    recording = recording_of(by_hand.fan_out())
    path = draw_most_recent_execution(recording, tmp_path / "run.html", workflow=Flow)
    chart = draw_most_recent_execution_mermaid(recording, tmp_path / "run.mermaid")

    assert path == tmp_path / "run.html"
    assert "completed after 7.5 s" in path.read_text()
    text = graph_of_execution(recording, Flow).to_text()
    assert "work  (2 completed, 7.0 s)" in text
    assert "StopEvent 0  -> (end)" in text  # declared, and never returned
    assert chart == (tmp_path / "run.mermaid").read_text()
    assert graph_of_execution(recording).name == "Flow"
    assert "work" in chart
    with pytest.raises(LookupError, match="the recording has no run"):
        graph_of_execution(recording_of())
    with pytest.raises(TypeError, match="there is no execution in a str; expected a Recording"):
        graph_of_execution("run.jsonl")


@pytest.mark.anyio
async def test_drawing_a_handler(anyio_backend, tmp_path):
    """A handler is drawn with the recorder that has recorded its run, and with its workflow."""
    recorder, other = Recorder(), Recorder(tmp_path / "run.jsonl")
    handler = Flow().run(run_id="by hand")
    with pytest.raises(
        ValueError, match="the run by hand of Flow was not recorded; expected a recorder"
    ):
        graph_of_execution(handler)
    records = by_hand.fan_out()
    records[0] = by_hand.started(run_id="by hand")
    for one in (other, recorder):
        record(one, records)
        text = graph_of_execution(handler).to_text()
        assert "run by hand completed after 7.5 s" in text
        assert "StopEvent 0  -> (end)" in text
    other.close()
    handler.cancel()


def test_names_at_the_top():
    """The names that LlamaIndex programs import are importable from the package."""
    assert sluicegate.draw_most_recent_execution is draw_most_recent_execution
    assert sluicegate.draw_most_recent_execution_mermaid is draw_most_recent_execution_mermaid
