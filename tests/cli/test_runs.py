"""``sluicegate runs``: stored runs, looked at and acted on, in an SQLite file."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tests.helpers import on_each_backend


HOSTILE = "bad\x1b[2J\nx\u202e"
FLOWS = "stored_flows_for_cli"


@pytest.fixture
def runs(cli, store):
    """Run a command of ``sluicegate runs`` on the store."""

    def run(*arguments):
        return cli("runs", *arguments, "--store", store.url)

    return run


# -- list ----------------------------------------------------------------------------------------


def test_list(runs, store, flows):
    """The newest first, with what each waits for, and the counts of all that match."""
    store.put(("claim", flows.Approve(), {"amount": 3}), (HOSTILE, flows.Break(), {}))
    store.submit("later", flows.Approve())
    code, out, err = runs("list")

    assert (code, err) == (0, "")
    header, *rows, counts = out.splitlines()
    assert header.split() == ["RUN", "WORKFLOW", "STATUS", "BEGUN", "CHANGED", "WAITS", "FOR"]
    assert [row.split()[0] for row in rows] == ["later", r"bad\x1b[2J\nx\u202e", "claim"]
    assert rows[0].endswith("an owner")
    assert rows[2].endswith("1 answer")
    assert counts == "3 runs: 1 failed, 1 parked, 1 running"


def test_list_with_filters(runs, store, flows):
    """Status, workflow, questions and age; the counts are those of the filtered runs."""
    store.put(("old", flows.Approve(), {}), ("broken", flows.Break(), {}))
    store.age(7200)
    store.put(("new", flows.Approve(), {}))

    def listed(*options):
        code, out, _ = runs("list", "--json", *options)
        assert code == 0
        return [json.loads(line)["run_id"] for line in out.splitlines()]

    assert listed() == ["new", "broken", "old"]
    assert listed("--older-than", "1h") == ["broken", "old"]
    assert listed("--newer-than", "90m") == ["new"]
    assert listed("--asking", "--older-than", "1h") == ["old"]
    assert listed("--status", "failed", "--status", "completed") == ["broken"]
    assert listed("--workflow", "Approve", "--limit", "1") == ["new"]
    _, out, _ = runs("list", "--workflow", "Approve", "--limit", "1")
    assert out.splitlines()[-1] == "2 runs: 2 parked; 1 shown"
    assert runs("list", "--workflow", "Nothing") == (0, "0 runs\n", "")


def test_a_store_that_is_not_there_is_not_made(cli, tmp_path):
    """A mistyped address is an error that shows one, and leaves no file."""
    path = tmp_path / "typo.db"
    code, out, err = cli("runs", "list", "--store", f"sqlite:///{path}")

    assert (code, out) == (2, "")
    assert f"there is no file {str(path)!r}" in err
    assert not list(tmp_path.iterdir())
    code, _, err = cli("runs", "list", "--store", "runs.db")
    assert code == 2
    assert "expected --store sqlite:///runs.db" in err


def test_a_file_that_is_no_store(cli, tmp_path):
    """It is refused in one line, and not touched."""
    path = tmp_path / "notes.db"
    path.write_text("notes, and no database at all; long enough to be one, though" * 20)
    code, out, err = cli("runs", "list", "--store", f"sqlite:///{path}")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("sluicegate: ")
    assert path.read_text().startswith("notes")


# -- show ----------------------------------------------------------------------------------------


def test_show(runs, store, flows):
    """What a person needs to know: the question with its id, and where the run stands."""
    store.put(("claim", flows.Approve(), {"amount": 3}))
    code, out, err = runs("show", "claim")

    assert (code, err) == (0, "")
    assert "workflow   Approve, begun with Claim(amount=3)\n" in out
    assert "status     parked\n" in out
    assert "owner      none\n" in out
    assert 'question   q1: Approval {"prompt":"Pay 3?"}, open for 0s, answered by Decision' in out


def test_show_a_failure(runs, store, flows):
    """The last error, with the step, and nothing in it that a terminal would obey."""
    store.put((HOSTILE, flows.Break(), {}))
    code, out, _ = runs("show", HOSTILE)

    assert code == 0
    assert "error      in the step fail: ValueError: no\\x1b[2J way" in out
    assert "\x1b" not in out
    assert "\u202e" not in out
    _, out, _ = runs("show", HOSTILE, "--json")
    found = json.loads(out)
    assert (found["run"]["run_id"], found["run"]["status"]) == (HOSTILE, "failed")


def test_show_events_and_snapshot(runs, store, flows):
    """Both need the workflow, and say so; events are the lines that `run` prints."""
    store.put(("claim", flows.Approve(), {"amount": 3}))

    assert runs("show", "claim", f"{FLOWS}:Approve", "--events") == (
        0,
        '{"event":"Approval","prompt":"Pay 3?"}\n',
        "",
    )
    code, out, _ = runs("show", "claim", f"{FLOWS}:Approve", "--snapshot")
    assert code == 0
    assert json.loads(out)["workflow"] == "Approve"
    code, _, err = runs("show", "claim", "--events")
    assert code == 2
    assert "expected `sluicegate runs show claim module:Name --events --store" in err
    code, _, err = runs("show", "claim", f"{FLOWS}:Break", "--events")
    assert code == 2
    assert "the run 'claim' is of 'Approve', and the TARGET is 'Break'" in err


@pytest.mark.parametrize(
    "command",
    [
        ("show", "none"),
        ("cancel", "none"),
        ("resume", "none", f"{FLOWS}:Approve"),
        ("answer", "none", f"{FLOWS}:Approve", "--event", "x"),
        ("fork", "none", f"{FLOWS}:Approve"),
    ],
)
def test_a_run_that_is_not_there(runs, store, flows, command):
    """Exit code 2, and one line that names it."""
    store.submit("claim", flows.Approve())
    code, out, err = runs(*command)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has no run 'none'" in err


# -- run --store ---------------------------------------------------------------------------------


@on_each_backend
def test_run_in_a_store(cli, store, flows, tmp_path, backend):
    """The id is the idempotency key: the same command again prints the result, and runs no step."""
    gate, ledger = tmp_path / "gate", tmp_path / "ledger"
    gate.touch()
    command = ("run", f"{FLOWS}:Gated", "-i", f"gate={gate}", "--events", "none")
    command += ("--store", store.url, "--id", "job", "--backend", backend)

    assert cli(*command, "-i", f"ledger={ledger}") == (0, "through\n", "")
    assert cli(*command, "-i", f"ledger={ledger}") == (0, "through\n", "")
    assert ledger.read_text().split() == ["first", "second"]
    code, _, err = cli(*command, "-i", "ledger=another")
    assert (code, err.count("\n")) == (2, 1)
    assert "the store has one that began with Files(" in err


def test_run_needs_a_store_for_an_id(cli):
    """--id alone is an error that shows what is missing."""
    code, _, err = cli("run", f"{FLOWS}:Approve", "--id", "job")

    assert code == 2
    assert "expected --store sqlite:///runs.db, too" in err


# -- answer, resume, cancel ----------------------------------------------------------------------


@on_each_backend
def test_answer_and_resume(runs, store, flows, backend):
    """D7: the answer is stored when the command ends; resume applies it, and prints what `run` prints."""
    store.put(("claim", flows.Approve(), {"amount": 3}))
    code, out, err = runs(
        "answer", "claim", f"{FLOWS}:Approve", "--event", '{"approved": true, "by": "Ada"}'
    )

    assert (code, out) == (0, "")
    assert err.startswith("sluicegate: q1 of 'claim' is answered; no process has the run")
    code, out, err = runs("resume", "claim", f"{FLOWS}:Approve", "--backend", backend)
    assert (code, err) == (0, "")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["Approval", "StopEvent"]
    assert json.loads(out.splitlines()[-1])["result"] == "True by Ada"
    code, _, err = runs("answer", "claim", f"{FLOWS}:Approve", "--event", "{}")
    assert (code, err) == (2, "sluicegate: the run 'claim' has ended: completed\n")


def test_an_answer_with_a_key_counts_once(runs, store, flows):
    """--id makes a repeated command harmless, and other content under it an error."""
    store.put(("claim", flows.Approve(), {}))
    command = ("answer", "claim", f"{FLOWS}:Approve", "--id", "mail-7", "--event")
    yes, no = '{"approved": true}', '{"approved": false}'

    assert runs(*command, yes)[0] == 0
    assert "had been answered before" in runs(*command, yes)[2]
    code, _, err = runs(*command, no)
    assert code == 2
    assert "mail-7" in err


def test_an_answer_that_does_not_fit(runs, store, flows):
    """It is refused before anything is stored, and the line shows the fields."""
    store.put(("claim", flows.Approve(), {}))
    code, _, err = runs("answer", "claim", f"{FLOWS}:Approve", "--event", "yes")

    assert code == 2
    assert 'expected as answer {"approved": ..., "by": ...}' in err
    assert json.loads(runs("show", "claim", "--json")[1])["run"]["messages"] == 0


def test_a_question_has_to_be_named_where_there_are_several(runs, store, flows):
    """The error lists them; a named one is answered."""
    store.put(("claim", flows.AskTwo(), {}))
    target = f"{FLOWS}:AskTwo"
    code, _, err = runs("answer", "claim", target, "--event", "yes")

    assert code == 2
    assert "has 2 open questions; expected one of q1, q2: " in err
    assert f"`sluicegate runs answer claim {target} q1 ...`" in err
    assert runs("answer", "claim", target, "q2", "--event", "yes")[0] == 0
    code, _, err = runs("answer", "claim", target, "q7", "--event", "yes")
    assert code == 2
    assert "has no open question 'q7'" in err


@on_each_backend
def test_resume_asks_only_what_is_open(runs, store, flows, backend, typed):
    """A question that was answered before is printed again, and not asked again."""
    store.put(("talk", flows.Interview(), {}))
    typed("first\n")
    code, out, err = runs("resume", "talk", f"{FLOWS}:Interview", "--backend", backend)

    assert (code, out.count("Approval")) == (2, 2)
    assert "standard input has ended" in err
    assert store.statuses() == {"talk": "idle"}
    typed("second\n")
    code, out, err = runs("resume", "talk", f"{FLOWS}:Interview", "--backend", backend)
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["result"] == "first second"


@pytest.fixture
def typed(monkeypatch):
    """Put a text where standard input is read."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_an_answer_from_standard_input(runs, store, flows, typed):
    """Without --event a line is read."""
    store.put(("talk", flows.Interview(), {}))
    typed("hello\n")
    assert runs("answer", "talk", f"{FLOWS}:Interview")[0] == 0
    typed("")
    code, _, err = runs("answer", "talk", f"{FLOWS}:Interview")
    assert code == 2
    assert "expected a line, or --event ANSWER" in err


def test_cancel(runs, store, flows):
    """D5: it is stored when the command ends; the next owner ends the run without a step."""
    store.put(("claim", flows.Approve(), {}))
    code, out, err = runs("cancel", "claim", "--reason", "too late")

    assert (code, out) == (0, "")
    assert err.startswith("sluicegate: the cancellation of 'claim' is stored; no process has")
    assert runs("resume", "claim", f"{FLOWS}:Approve")[0] == 1
    assert store.statuses() == {"claim": "cancelled"}
    assert "cancelled  too late" in runs("show", "claim")[1]
    code, _, err = runs("cancel", "claim")
    assert code == 2
    assert "is over (cancelled)" in err


# -- fork and prune ------------------------------------------------------------------------------


def test_fork(runs, store, flows):
    """The id of the copy is the output; the copy waits for the same answer, and the run is unchanged."""
    store.put(("claim", flows.Approve(), {"amount": 3}))
    target = f"{FLOWS}:Approve"

    assert runs("fork", "claim", target, "--as", "copy") == (0, "copy\n", "")
    code, _, err = runs("fork", "claim", target, "--as", "copy")
    assert (code, "has a run 'copy' already" in err) == (2, True)
    code, _, err = runs("fork", "claim", target, "--at", "999")
    assert (code, "999 was asked for" in err) == (2, True)
    code, out, _ = runs("fork", "claim", target)
    assert code == 0
    assert out.startswith("claim-")
    assert store.statuses() == {"claim": "parked", "copy": "running", out.strip(): "running"}


def test_prune(runs, store, flows):
    """Old ended runs go; --dry-run counts them; others stay unless their status is named."""
    store.put(("claim", flows.Approve(), {}), ("broken", flows.Break(), {}))
    store.age(3 * 86_400)
    store.put(("fresh", flows.Break(), {}))

    assert runs("prune", "--older-than", "2d", "--dry-run") == (0, "1 run would be deleted\n", "")
    assert runs("prune", "--older-than", "2d") == (0, "1 run deleted\n", "")
    assert store.statuses() == {"claim": "parked", "fresh": "failed"}
    assert runs("prune", "--older-than", "2d", "--status", "parked")[1] == "1 run deleted\n"
    assert store.statuses() == {"fresh": "failed"}
    code, _, err = runs("prune", "--older-than", "soon")
    assert code == 2
    assert "expected 90s, 15m, 12h, 30d or 2w" in err


# -- timeline --------------------------------------------------------------------------------------


def test_timeline(runs, store, flows, tmp_path):
    """A page, a trace, or text, of the run as its journal has it."""
    store.put(("order/17", flows.Break(), {}))
    page, trace = tmp_path / "run.html", tmp_path / "run.json"
    target = f"{FLOWS}:Break"

    code, out, err = runs("timeline", "order/17", target, "--text")
    assert (code, err) == (0, "")
    assert out.startswith("Break order/17: failed")
    assert "fail" in out
    assert runs("timeline", "order/17", target, "-o", page) == (0, f"{page}\n", "")
    assert page.read_text().startswith("<!doctype html>")
    assert runs("timeline", "order/17", target, "-o", trace) == (0, f"{trace}\n", "")
    assert json.loads(trace.read_text())["traceEvents"]


def test_timelines_that_cannot_be_drawn(runs, store, flows):
    """Another form, workflow or run is refused."""
    store.put(("one", flows.Break(), {}))

    code, _, err = runs("timeline", "one", f"{FLOWS}:Break", "-o", "one.png")
    assert code == 2
    assert "expected a name that ends in .html or .json" in err
    assert runs("timeline", "one", f"{FLOWS}:Approve")[0] == 2
    assert runs("timeline", "two", f"{FLOWS}:Break")[0] == 2
