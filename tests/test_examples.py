"""The examples run, alone and without warnings, and show what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name, *arguments, cwd, stdin=""):
    """Run an example as its user would, with warnings as errors and no key in the environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", EXAMPLES / name, *arguments],
        cwd=cwd,
        input=stdin,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_streaming(backend, tmp_path):
    """The main job: progress and tokens stream, the result follows, the graph is drawn."""
    printed = run_example("streaming.py", "--backend", backend, "canals", cwd=tmp_path)

    assert "-- planning an essay on canals" in printed
    assert "-- writing" in printed
    assert " words\n" in printed
    assert "<svg" in (tmp_path / "streaming.html").read_text()


def test_fan_out(tmp_path):
    """Every file of a tree is hashed, and the duplicates are found."""
    for name, text in {"a": "one", "b": "two", "c/d": "one"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    printed = run_example("fan_out.py", str(tmp_path), cwd=tmp_path)

    assert "3 files, 9 bytes, 1 duplicates" in printed
    assert str(tmp_path / "a") in printed.partition("the same:")[2]
    assert str(tmp_path / "c" / "d") in printed.partition("the same:")[2]


def test_human(tmp_path):
    """The person is asked until the answer fits."""
    printed = run_example("human.py", cwd=tmp_path, stdin="fish\nsoup\n")

    assert "We have no fish" in printed
    assert printed.endswith("One soup, here you are.\n")


def test_human_with_nobody_there(tmp_path):
    """The end of the input ends the run, and not in an error."""
    assert run_example("human.py", cwd=tmp_path).endswith("Nobody there. Good night.\n")


def test_cancel(tmp_path):
    """After a timeout every clean-up is done, and no file is open and no task left."""
    printed = run_example("cancel.py", cwd=tmp_path)

    assert "clean-ups done: 20 of 20" in printed
    assert "files open:     0" in printed
    assert "tasks left:     0" in printed


def test_under_asyncio(tmp_path):
    """Each way to own a run works under asyncio, and its timeout reaches the step."""
    printed = run_example("under_asyncio.py", cwd=tmp_path)

    assert "in place: lift-off" in printed
    assert "['lift-off', 'lift-off']" in printed
    assert "  stopped at " in printed
    assert "tasks: 1" in printed


def test_every_example_is_tested():
    """No example is without a test here."""
    tested = Path(__file__).read_text()

    assert all(f'"{path.name}"' in tested for path in EXAMPLES.glob("*.py"))
