"""``sluicegate record`` and ``sluicegate summary``."""

from __future__ import annotations

import json

from sluicegate.recording import load_recording
from tests.helpers import on_each_backend


def test_summary(cli, recorded):
    """The summary of a recording is printed."""
    code, out, err = cli("summary", str(recorded))

    assert (code, err) == (0, "")
    assert out.startswith("run run of Flow: completed after 7.5 s\n")
    assert "critical path" in out
    assert cli("summary", str(recorded), "--run", "run") == (0, out, "")


def test_a_trace(cli, recorded, tmp_path):
    """The trace goes into a file, whose name is printed, or to standard output."""
    trace = tmp_path / "trace.json"

    assert cli("summary", str(recorded), "--perfetto", str(trace)) == (0, f"{trace}\n", "")
    code, out, err = cli("summary", str(recorded), "--perfetto", "-")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(trace.read_text())
    assert json.loads(out)["traceEvents"]


def test_the_trace_of_one_run(cli, recorded, tmp_path):
    """``--run`` chooses the run of a trace too; a recording without a run is named as such."""
    two = tmp_path / "two.jsonl"
    two.write_text(
        recorded.read_text() + recorded.read_text().replace('"run":"run"', '"run":"other"')
    )
    whole = json.loads(cli("summary", str(two), "--perfetto", "-")[1])["traceEvents"]
    one = json.loads(cli("summary", str(two), "--run", "run", "--perfetto", "-")[1])["traceEvents"]
    assert {event["pid"] for event in one} < {event["pid"] for event in whole}

    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert cli("summary", str(empty)) == (0, "the recording has no run\n", "")


def test_wrong_files(cli, recorded, tmp_path):
    """A file that is missing or no recording, and a run that it does not have, are told in a line."""
    (tmp_path / "notes.txt").write_text("text\n")

    code, out, err = cli("summary", str(tmp_path / "none"))
    assert (code, out) == (2, "")
    assert err == f"sluicegate: cannot read {tmp_path / 'none'}: No such file or directory\n"
    code, out, err = cli("summary", str(tmp_path / "notes.txt"))
    assert (code, out) == (2, "")
    assert "is no recording; expected a file that a Recorder has written" in err
    code, out, err = cli("summary", str(recorded), "--run", "x")
    assert (code, err) == (2, "sluicegate: the recording has no run 'x'; it has 'run'\n")
    code, out, err = cli("summary", str(recorded), "--perfetto", str(tmp_path / "no" / "x"))
    assert code == 2
    assert "cannot write" in err


@on_each_backend
def test_record(cli, tmp_path, backend):
    """A run is recorded with its output and exit code as those of ``run``; the file says what happened."""
    path = tmp_path / "run.jsonl"
    arguments = ["flows_for_cli:Shout", "-i", "topic=ab", "--events", "none", "--backend", backend]
    code, out, err = cli("record", *arguments, "-o", path)

    assert (code, out) == (0, "AB\n")
    assert err == f"sluicegate: recorded in {path}; see `sluicegate summary {path}`\n"
    found = load_recording(path)
    assert (found.run.workflow, found.run.status, found.run.backend) == (
        "Shout",
        "completed",
        backend,
    )
    assert [one.event_type for one in found.stream][:2] == ["Progress", "Token"]
    assert found.run.events[0].fields["topic"] == "ab"


def test_record_replaces_and_appends(cli, tmp_path):
    """An earlier recording is replaced; with --append the run is added to it."""
    path = tmp_path / "run.jsonl"
    for options, count in [((), 1), ((), 1), (("--append",), 2)]:
        cli("record", "flows_for_cli:Shout", "-i", "topic=ab", "-o", path, *options)
        assert len(load_recording(path).runs) == count


def test_a_run_that_fails_is_recorded(cli, tmp_path):
    """A run that raises has the exit code 1, and its recording has the exception."""
    path = tmp_path / "run.jsonl"
    code, _, err = cli("record", "flows_for_cli:Fails", "-o", path)
    run = load_recording(path).run

    assert code == 1
    assert err.endswith(f"see `sluicegate summary {path}`\n")
    assert run.status == "failed"
    assert run.failure.traceback


def test_record_into_a_wrong_file(cli, tmp_path):
    """A file that is no recording is not touched, and nothing runs."""
    (tmp_path / "notes.txt").write_text("text")
    code, out, err = cli(
        "record", "flows_for_cli:Shout", "-i", "topic=a", "-o", tmp_path / "notes.txt"
    )

    assert (code, out) == (2, "")
    assert "is no recording, and is not overwritten" in err
    assert (tmp_path / "notes.txt").read_text() == "text"
    code, _, err = cli(
        "record", "flows_for_cli:Shout", "-i", "topic=a", "-o", tmp_path / "no" / "x"
    )
    assert code == 2
    assert err == f"sluicegate: cannot write {tmp_path / 'no' / 'x'}: No such file or directory\n"
