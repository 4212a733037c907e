"""``sluicegate check``, ``sluicegate draw``, and the help."""

from __future__ import annotations

from importlib import metadata

import pytest


def test_check_says_ok(cli):
    """A workflow that fits together is ok, with a summary of one line."""
    assert cli("check", "flows_for_cli:Fails") == (
        0,
        "ok: Fails, 2 steps, 3 events, begins with StartEvent, ends with StopEvent\n",
        "",
    )


@pytest.mark.parametrize("skip", [[], ["--skip", "reachability"]])
def test_check_tells_every_fault(cli, skip):
    """Faults are listed with their fixes, and the exit code is 1."""
    code, out, err = cli("check", "flows_for_cli:Faulty", *skip)

    assert (code, err) == (1, "")
    assert out.startswith("Faulty has ")
    assert "no step takes Middle, which the step begin makes; expected" in out
    assert "no step takes Pair, which the step begin makes; expected" in out


def test_a_function_that_builds_a_faulty_workflow(cli):
    """A function's workflow is checked like a class."""
    code, out, err = cli("check", "flows_for_cli:make_faulty")

    assert code == 1
    assert "no step takes Pair, which the step begin makes" in out + err
    assert "Traceback" not in err


def test_skipped_checks(cli):
    """--skip leaves a check out; what a workflow's own constructor switches off stays so."""
    assert cli("check", "flows_for_cli:Loose")[0] == 1

    for arguments in (
        ("flows_for_cli:Loose", "--skip", "reachability"),
        ("flows_for_cli:make_loose",),
    ):
        code, out, _ = cli("check", *arguments)

        assert code == 0
        assert out.startswith("ok: Loose, 2 steps")
        assert "switched off: reachability: the step island cannot be reached" in out


def test_check_notes_each_step_that_may_return_an_undeclared_none(cli):
    """Such a step is no fault and is told with its line; with --strict the exit code is 1."""
    code, out, err = cli("check", "flows_for_cli:Forgets")
    ok, note = out.splitlines()

    assert (code, err) == (0, "")
    assert ok.startswith("ok: Forgets, 1 step")
    assert note == (
        "  note: the step echo may return None (at its end), which its signature does not declare; "
        "expected `-> StopEvent | None`, or an event there"
    )
    assert cli("check", "flows_for_cli:Forgets", "--strict") == (1, out, "")
    assert cli("check", "flows_for_cli:Fails", "--strict")[0] == 0


def test_draw_to_a_file(cli, tmp_path):
    """The page is written where -o says, and its path printed."""
    page = tmp_path / "page.html"

    assert (0, f"{page}\n", "") == cli("draw", "flows_for_cli:Shout", "-o", page)
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_draw_names_the_file_after_the_class(cli, tmp_path, monkeypatch):
    """Without -o the page lies in the current directory, under the name of the class."""
    cli("check", "flows_for_cli:Shout")
    monkeypatch.chdir(tmp_path)

    assert cli("draw", "flows_for_cli:Shout") == (0, "Shout.html\n", "")
    assert (tmp_path / "Shout.html").exists()


def test_draw_to_standard_output(cli, tmp_path):
    """With -o - the page itself is printed, the same as in a file."""
    page = tmp_path / "page.html"
    cli("draw", "flows_for_cli:Shout", "-o", page)

    assert (0, page.read_text(), "") == cli("draw", "flows_for_cli:Shout", "-o", "-")


def test_draw_a_faulty_workflow(cli, tmp_path):
    """A workflow with faults is drawn, and a line says that it has some."""
    page = tmp_path / "page.html"
    code, _, err = cli("draw", "flows_for_cli:Faulty", "-o", page)

    assert code == 0
    assert err.startswith("sluicegate: Faulty has 3 faults; see `sluicegate check")
    assert "no step takes " in page.read_text()


def test_draw_where_nothing_can_be_written(cli, tmp_path):
    """A page that cannot be written is one line and exit code 2."""
    code, _, err = cli("draw", "flows_for_cli:Shout", "-o", tmp_path / "no" / "page.html")

    assert code == 2
    assert "cannot write" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "draw", "check"])
def test_help_shows_an_example(cli, command):
    """Each command explains itself, with an example."""
    code, out, _ = cli(command, "--help")

    assert code == 0
    assert f"example:\n  sluicegate {command} " in out


def test_version(cli):
    """--version is that of the package."""
    assert (0, f"sluicegate {metadata.version('sluicegate')}\n", "") == cli("--version")
