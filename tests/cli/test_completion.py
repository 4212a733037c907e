"""``sluicegate completion``: what bash, zsh and fish complete, asked of the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sluicegate.cli._parser import build_parser


SHELLS = ("bash", "zsh", "fish")
FLOWS = '''\
"""Workflows of which nothing is imported: an import would end the program."""
raise SystemExit
import sluicegate
from sluicegate import Event, Workflow

class Note(Event):
    pass

class Base(Workflow):
    pass

class Review(Base):
    pass

class Typed(sluicegate.Workflow[str]):
    pass

review = Review(timeout=3)
typed: Typed = Typed()
note = Note()

def make() -> Review:
    return Review()

def other() -> int:
    return 1

def quoted() -> "Typed":
    return Typed()
'''


@pytest.fixture
def shell(tmp_path):
    """Run a program of a shell with its completion script; give the lines that it prints."""
    (tmp_path / "flows.py").write_text(FLOWS)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "sub").mkdir()
    program = tmp_path / "bin" / "sluicegate"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sluicegate "$@"\n')
    program.chmod(0o755)

    def run(name, text, *options):
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"there is no {name} here")
        environment = {
            **os.environ,
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(tmp_path),
        }
        done = subprocess.run(
            [path, *options, "-c", text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return run


@pytest.fixture
def script(cli, tmp_path):
    """Write the script of a shell; give its path."""

    def write(name):
        code, out, err = cli("completion", name)
        assert (code, err) == (0, "")
        path = tmp_path / f"script.{name}"
        path.write_text(out)
        return path

    return write


@pytest.mark.parametrize("name", SHELLS)
def test_every_command_and_option_is_in_the_script(script, name):
    """The script is made of the parser: it has each command, flag and choice."""
    text = script(name).read_text()
    (commands,) = (action for action in build_parser()._actions if action.choices)

    assert {"run", "draw", "check", "completion"} <= set(commands.choices)
    for command, parser in commands.choices.items():
        assert command in text
        for action in parser._actions:
            if action.option_strings and action.help != "==SUPPRESS==":
                for flag in action.option_strings:
                    assert flag.lstrip("-") in text
                for choice in action.choices or ():
                    assert str(choice) in text
    assert "--targets[" not in text


BASH = """
source {script}
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
COMP_LINE='{line}' COMP_POINT=${{#COMP_LINE}}
_sluicegate
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sluicegate ", {"run", "record", "summary", "draw", "check", "completion"}),
        ("sluicegate summary no", {"notes.txt"}),
        ("sluicegate ru", {"run", "runs"}),
        (
            "sluicegate runs ",
            {"list", "show", "timeline", "resume", "cancel", "answer", "fork", "prune"},
        ),
        ("sluicegate runs timeline order-17 flows.py:R", {"Review"}),
        ("sluicegate runs li", {"list"}),
        ("sluicegate runs list --status p", {"parked"}),
        ("sluicegate runs prune --dry", {"--dry-run"}),
        ("sluicegate runs resume order-17 flows.py:R", {"Review"}),
        ("sluicegate worker fl", {"flows.py"}),
        ("sluicegate draw --fo", {"--form"}),
        ("sluicegate draw flows.py:Review --form m", {"mermaid"}),
        ("sluicegate run --backend ", {"trio", "asyncio"}),
        ("sluicegate run -i ", {""}),
        ("sluicegate completion z", {"zsh"}),
        ("sluicegate check fl", {"flows.py"}),
        ("sluicegate check no", {""}),
        ("sluicegate check su", {"sub/"}),
        ("sluicegate draw flows.py:Review -o no", {"notes.txt"}),
        ("sluicegate run flows.py:R", {"Review"}),
    ],
)
def test_bash_completes(shell, script, line, expected):
    """Commands, options, their values, files and workflows."""
    found = shell("bash", BASH.format(script=script("bash"), line=line), "--norc")

    assert expected <= set(found)
    assert len(found) == len(set(found))
    if line.endswith(("ru", " li", " p", "--dry", "--fo", " m", " fl", " no", " su", ":R", " z")):
        assert set(found) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sluicegate ru", {"run", "runs"}),
        ("sluicegate runs li", {"list"}),
        ("sluicegate runs list --status par", {"parked"}),
        ("sluicegate runs resume --back", {"--backend"}),
        ("sluicegate run --backend ", {"trio", "asyncio"}),
        ("sluicegate check fl", {"flows.py"}),
        ("sluicegate run flows.py:R", {"flows.py:Review"}),
        ("sluicegate draw flows.py:Review --for", {"--form"}),
    ],
)
def test_fish_completes(shell, script, line, expected):
    """The same in fish, which is asked what it would complete."""
    found = shell("fish", f"source {script('fish')}; complete -C '{line}'", "--no-config")

    assert {text.split("\t")[0] for text in found} == expected


def test_zsh_reads_the_script(shell, script):
    """The script is one that zsh can read; as it is loaded it registers itself."""
    path = script("zsh")
    found = shell(
        "zsh", f"autoload -U compinit; compinit -D; source {path}; print $_comps[sluicegate]", "-f"
    )

    assert found == ["_sluicegate"]


def test_targets_are_found_without_an_import(cli, tmp_path):
    """Classes, objects and functions that the source shows to be workflows, and nothing is run."""
    path = tmp_path / "flows.py"
    path.write_text(FLOWS)
    code, out, err = cli("completion", "--targets", f"{path}:")

    assert (code, err) == (0, "")
    assert [line.rpartition(":")[2] for line in out.splitlines()] == [
        "Base",
        "Review",
        "Typed",
        "review",
        "typed",
        "make",
        "quoted",
    ]
    assert cli("completion", "--targets", f"{path}:re")[1] == f"{path}:review\n"


@pytest.mark.parametrize("begun", ["flows", "missing.py:", "broken.py:", "binary.py:"])
def test_there_is_no_noise_while_typing(cli, tmp_path, monkeypatch, begun):
    """A file that is missing or broken completes to nothing."""
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("class (")
    Path("binary.py").write_bytes(b"\x00\xff")

    assert cli("completion", "--targets", begun) == (0, "", "")


def test_a_shell_has_to_be_named(cli):
    """Without one the error lists those that there are."""
    code, out, err = cli("completion")

    assert (code, out) == (2, "")
    assert "expected one of bash, zsh, fish" in err
