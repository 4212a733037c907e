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


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("page.svg", "<svg "),
        ("page.mmd", "flowchart TD"),
        ("page.dot", "digraph "),
        ("page.txt", "Shout\n"),
        ("page.json", "{"),
    ],
)
def test_the_suffix_names_the_form(cli, tmp_path, name, beginning):
    """-o takes the form from the suffix."""
    path = tmp_path / name

    assert (0, f"{path}\n", "") == cli("draw", "flows_for_cli:Shout", "-o", path)
    assert path.read_text().startswith(beginning)


def test_an_unknown_suffix_is_refused(cli, tmp_path):
    """The line lists the suffixes that there are, and no file is written."""
    code, out, err = cli("draw", "flows_for_cli:Shout", "-o", tmp_path / "page.png")

    assert (code, out) == (2, "")
    assert "has the suffix '.png', which names no form of a picture; expected one of .html" in err
    assert err.endswith(", or --form\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "beginning", "default"),
    [
        ("html", "<!DOCTYPE html>", "Shout.html"),
        ("svg", "<svg ", "Shout.svg"),
        ("mermaid", "flowchart TD", "Shout.mmd"),
        ("dot", "digraph ", "Shout.dot"),
        ("text", "Shout\n", "Shout.txt"),
        ("json", "{", "Shout.json"),
    ],
)
def test_the_form_can_be_named(cli, tmp_path, monkeypatch, form, beginning, default):
    """--form holds for standard output, for any suffix, and for the default name."""
    path = tmp_path / "picture.of.mine"
    printed = cli("draw", "flows_for_cli:Shout", "-o", "-", "--form", form)
    written = cli("draw", "flows_for_cli:Shout", "-o", path, "--form", form)
    monkeypatch.chdir(tmp_path)

    assert printed == (0, path.read_text(), "")
    assert printed[1].startswith(beginning)
    assert written == (0, f"{path}\n", "")
    assert cli("draw", "flows_for_cli:Shout", "--form", form) == (0, f"{default}\n", "")
    assert (tmp_path / default).read_text() == printed[1]


HELD = """
from sluicegate import *
from flows_for_cli import Shout

class Parent(Workflow):
    def __init__(self, child):
        super().__init__()
        self.child = child

    @step
    async def go(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ctx.run_child(self.child))

def make():
    return Parent(Shout())
"""


def test_an_object_is_drawn_with_the_children_that_it_holds(cli, tmp_path):
    """What a function builds is drawn as the object that it is; a class alone does not show it."""
    path = tmp_path / "held.py"
    path.write_text(HELD)
    built = cli("draw", f"{path}:make", "-o", "-", "--form", "text")[1]
    plain = cli("draw", f"{path}:Parent", "-o", "-", "--form", "text")[1]

    assert "  runs Shout\n" in built
    assert "  runs self.child\n" in plain


FLOWS = """
from sluicegate import *
from flows_for_cli import Shout

class Plain(Event):
    n: int

class Base(Workflow):
    pass

class Good(Base):
    @step
    async def go(self, ev: StartEvent) -> StopEvent:
        return StopEvent()

class Bad(Base):
    @step
    async def go(self, ev: StartEvent) -> Plain:
        return Plain(n=1)
"""


def test_check_a_file(cli, tmp_path):
    """A file without a name is checked whole: what it defines, without bare base classes."""
    path = tmp_path / "several.py"
    path.write_text(FLOWS)
    code, out, err = cli("check", path)
    good, bad, *_ = out.splitlines()

    assert (code, err) == (1, "")
    assert good == "ok: Good, 1 step, 2 events, begins with StartEvent, ends with StopEvent"
    assert bad.startswith("Bad has ")
    assert "no step takes Plain" in out
    assert "Shout" not in out
    assert "Base" not in out


def test_check_a_file_without_faults(cli, tmp_path):
    """The exit code is 0 where every workflow of the file is sound; objects are checked as built."""
    path = tmp_path / "sound.py"
    path.write_text(FLOWS.partition("class Bad")[0] + "\ngood = Good()\n")

    assert cli("check", path)[0] == 0
    assert cli("check", path)[1].count("ok: ") == 1


def test_check_a_module(cli):
    """A module without a name is checked like a file."""
    code, out, _ = cli("check", "flows_for_cli")

    assert code == 1
    assert "ok: Shout, 1 step, 2 events and 3 published, begins with Begin" in out
    assert "Faulty has 3 faults" in out


def test_check_a_file_of_nothing(cli, tmp_path):
    """A file that defines no workflow is an error of usage."""
    path = tmp_path / "empty.py"
    path.write_text("from flows_for_cli import Shout\n")

    assert cli("check", path) == (
        2,
        "",
        f"sluicegate: {path} defines no workflow; expected a class derived from Workflow in it\n",
    )


@pytest.mark.parametrize("command", ["draw", "run"])
def test_a_file_without_a_name_lists_its_workflows(cli, tmp_path, command):
    """Where one workflow is meant, the error names those of the file as they are to be written."""
    path = tmp_path / "choice.py"
    path.write_text(FLOWS)
    code, _, err = cli(command, path)

    assert code == 2
    assert (
        f"expected one of its workflows: {path}:Shout, {path}:Base, {path}:Good, {path}:Bad" in err
    )


def test_check_and_draw_count_alike(cli, tmp_path):
    """Both tell the same numbers of steps and events."""
    for name in ("Shout", "Fails", "Strange"):
        summary = cli("check", f"flows_for_cli:{name}")[1].partition(", begins")[0]
        told = summary.removeprefix(f"ok: {name}, ")

        assert told in cli("draw", f"flows_for_cli:{name}", "-o", "-")[1]


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


@pytest.mark.parametrize("command", ["run", "record", "summary", "draw", "check", "completion"])
def test_help_shows_an_example(cli, command):
    """Each command explains itself, with an example."""
    code, out, _ = cli(command, "--help")

    assert code == 0
    assert f"example:\n  sluicegate {command} " in out


def test_version(cli):
    """--version is that of the package."""
    assert (0, f"sluicegate {metadata.version('sluicegate')}\n", "") == cli("--version")
