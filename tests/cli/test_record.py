"""``sluicegate record`` and ``sluicegate summary``."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sluicegate.recording import Recorder
from tests.recording import by_hand


@pytest.fixture
def recorded(tmp_path):
    """The file of a recording."""
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        hear = recorder.listen(SimpleNamespace(run_id="run"))
        for one in by_hand.fan_out():
            hear(one)
    return path


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
