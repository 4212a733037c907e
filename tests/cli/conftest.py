"""The command line under test: in this process, and as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sluicegate.cli import main
from sluicegate.recording import Recorder
from tests.recording import by_hand


HERE = Path(__file__).parent


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run a command in this process; give its exit code, standard output and standard error."""
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)

    def run(*arguments):
        code = main([str(a) for a in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    yield run
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and "flows_for_cli" in name:
            del sys.modules[name]


@pytest.fixture
def recorded(tmp_path):
    """The file of a recording."""
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        hear = recorder.listen(SimpleNamespace(run_id="run"))
        for one in by_hand.fan_out():
            hear(one)
    return path


@pytest.fixture
def program():
    """Start the command line as a program; what still runs at the end of the test is killed."""
    started = []

    def start(*arguments, **options):
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "PYTHONPATH")}
        environment.update(options.pop("env", {}))
        process = subprocess.Popen(
            [sys.executable, "-m", "sluicegate", *map(str, arguments)],
            cwd=HERE,
            env=environment,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **options,
            },
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()
