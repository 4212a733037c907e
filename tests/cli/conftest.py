"""The command line under test: in this process, and as a program."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from sluicegate.cli import main
from sluicegate.durable import open_run_store
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


# -- stored runs ----------------------------------------------------------------------------------


class Store:
    """A store in a file, and what the tests put into it."""

    def __init__(self, path):
        self.path = path
        self.url = f"sqlite:///{path}"

    def open(self):
        return open_run_store(self.url, durability="process", release_idle=0)

    def put(self, *runs):
        """Run each run, given as its id, its workflow and its fields, until it has ended or waits."""

        async def main():
            async with self.open() as store:
                for run_id, workflow, fields in runs:
                    await store.submit(workflow.run(**fields), run_id=run_id)
                await store.resume_all({type(w): w for _, w, _ in runs}.values())

        trio.run(main)

    def submit(self, run_id, workflow, **fields):
        """Store a run that nobody has begun."""

        async def main():
            async with self.open() as store:
                await store.submit(workflow.run(**fields), run_id=run_id)

        trio.run(main)

    def statuses(self):
        connection = sqlite3.connect(self.path)
        try:
            return dict(connection.execute("SELECT run_id, status FROM runs"))
        finally:
            connection.close()

    def age(self, seconds):
        """Make all runs older."""
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute(
                "UPDATE runs SET created_at = created_at - ?, updated_at = updated_at - ?",
                (seconds, seconds),
            )
        connection.close()


@pytest.fixture
def flows(cli):
    """The module of the workflows, as the commands import it."""
    sys.path.insert(0, str(HERE))
    import stored_flows_for_cli  # noqa: PLC0415

    return stored_flows_for_cli


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs.db")
