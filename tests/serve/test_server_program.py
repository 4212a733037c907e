"""``sluicegate serve``: real processes that are asked over HTTP, drained, and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from sluicegate.cli import main
from tests.helpers import on_each_backend


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
]

HERE = Path(__file__).parent
FLOWS = HERE / "flows_for_programs.py"
#: No test waits that long; a hang fails instead of holding up the suite.
LIMIT = 30


class Program:
    """A running ``sluicegate serve``."""

    def __init__(self, process):
        self.process = process
        line = process.stderr.readline().decode()
        self.line = line
        found = re.search(r"http://[^;\s]+", line)
        assert found, line + process.stderr.read().decode()
        # On a busy machine a kept connection may be closed just as it is used again.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=found[0], timeout=LIMIT, trust_env=False, limits=limits)

    def start(self, workflow, **fields):
        answer = self.client.post(f"/workflows/{workflow}/run-nowait", json={"start_event": fields})
        assert answer.status_code == 200, answer.text
        return answer.json()["handler_id"]

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def ended(self):
        """Return the exit code and the rest of standard error."""
        _, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, err.decode()


@pytest.fixture
def serve():
    """Start the program; what still runs at the end of the test is killed."""
    started = []

    def start(*arguments, **environment):
        command = [sys.executable, "-m", "sluicegate", "serve", *map(str, arguments), "--port", "0"]
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        program = Program(process)
        started[-1] = program
        return program

    yield start
    for each in started:
        process = each if isinstance(each, subprocess.Popen) else each.process
        process.kill()
        process.communicate()
        if isinstance(each, Program):
            each.client.close()


def wait_until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


@pytest.fixture
def job(tmp_path):
    """The files of a run that waits."""

    class Job:
        ledger, gate = tmp_path / "ledger", tmp_path / "gate"
        fields = {"ledger": str(ledger), "gate": str(gate)}

        @property
        def lines(self):
            return self.ledger.read_text().split("\n")[:-1] if self.ledger.exists() else []

    return Job()


@on_each_backend
def test_sigterm_lets_runs_end(serve, job, backend):
    """P22: no new run is taken, what runs may end and is read to its end, and the exit code is 0."""
    program = serve(f"{FLOWS}:Gated", f"ask={FLOWS}:Asking", "--backend", backend)
    assert program.line.startswith("sluicegate: serving Gated, ask at http://127.0.0.1:")
    assert program.client.get("/workflows").json() == {"workflows": ["Gated", "ask"]}
    run_id = program.start("Gated", **job.fields)
    wait_until(lambda: job.lines == ["began"])
    with program.client.stream("GET", f"/events/{run_id}?after_sequence=-1") as reading:
        program.stop()
        assert program.process.stderr.readline() == b"sluicegate: draining for at most 30 s\n"
        assert program.client.get("/health").status_code == 503
        refused = program.client.post("/workflows/ask/run-nowait", json={})
        assert refused.status_code == 503
        job.gate.touch()
        text = reading.read().decode()
    assert "event: StopEvent" in text
    program.client.close()

    assert program.ended() == (0, "")
    assert job.lines == ["began", "ended", "cleaned up"]


@on_each_backend
def test_the_grace_ends_the_drain(serve, job, backend):
    """P22: a run that does not end in time is cancelled and cleans up, and the exit code tells that."""
    program = serve(f"{FLOWS}:Gated", "--backend", backend, "--grace", "0.05")
    program.start("Gated", **job.fields)
    wait_until(lambda: job.lines == ["began"])
    program.stop(signal.SIGINT)
    program.client.close()

    code, err = program.ended()
    assert (code, job.lines) == (130, ["began", "cancelled", "cleaned up"])
    assert err.endswith("the grace period is over; the server cancelled the remaining runs\n")


@on_each_backend
def test_a_second_signal_ends_the_drain(serve, job, backend):
    """P22: it unwinds as the first one of another command does."""
    program = serve(f"{FLOWS}:Gated", "--backend", backend)
    program.start("Gated", **job.fields)
    wait_until(lambda: job.lines == ["began"])
    program.stop()
    program.process.stderr.readline()
    program.stop()

    assert program.ended()[0] == 143
    assert job.lines == ["began", "cancelled", "cleaned up"]


def test_runs_in_a_store_continue_at_the_next_start(serve, job, tmp_path):
    """D2: one that waits is left at once, one that the grace interrupts begins its step again."""
    options = ["--store", f"sqlite:///{tmp_path}/runs.db", "--durability", "process"]
    targets = [f"{FLOWS}:Gated", f"{FLOWS}:Asking"]
    first = serve(*targets, *options, "--grace", "0.05")
    asking, working = first.start("Asking"), first.start("Gated", **job.fields)
    wait_until(lambda: job.lines == ["began"])
    wait_until(lambda: first.client.get(f"/handlers/{asking}/questions").json()["questions"])
    first.stop()
    first.client.close()
    code, err = first.ended()
    assert code == 143
    assert err.endswith("the grace period is over; the store has the remaining runs\n")

    second = serve(*targets, *options)
    job.gate.touch()
    answer = {"event": {"type": "Approved", "value": {"yes": True}}}
    assert second.client.post(f"/events/{asking}", json=answer).status_code == 200
    for run_id, result in [(asking, "published"), (working, "through")]:
        wait_until(lambda at=run_id: second.client.get(f"/results/{at}").status_code == 200)
        assert second.client.get(f"/results/{run_id}").json()["result"]["value"]["result"] == result
    second.stop()
    second.client.close()
    assert second.ended()[0] == 0


def test_a_token(serve):
    """Only /health is open to everybody."""
    program = serve(f"{FLOWS}:Asking", "--token-env", "THE_TOKEN", THE_TOKEN="sesame")
    assert program.client.get("/health").status_code == 200
    assert program.client.get("/workflows").status_code == 401
    admitted = program.client.get("/workflows", headers={"authorization": "Bearer sesame"})
    assert admitted.status_code == 200


@on_each_backend
def test_a_changed_file_starts_it_again(serve, tmp_path, backend):
    """Runs are cancelled and clean up; the address stays; a file that cannot be loaded waits for the next change."""
    ledger = tmp_path / "ledger"
    flows = tmp_path / "changing.py"
    text = FLOWS.read_text()
    flows.write_text(text)
    program = serve(f"{flows}:Gated", "--reload", "--backend", backend)
    program.start("Gated", ledger=str(ledger), gate=str(tmp_path / "never"))
    wait_until(lambda: ledger.exists() and "began" in ledger.read_text())

    time.sleep(0.01)  # so that the time of the file is another one
    flows.write_text("this is no Python\n")
    told = program.process.stderr.readline().decode()
    assert told == "sluicegate: changing.py has changed; starting again\n"
    assert b"cannot import" in program.process.stderr.readline()
    assert ledger.read_text().split() == ["began", "cancelled", "cleaned", "up"]
    time.sleep(0.01)
    flows.write_text(text)
    assert b"has changed" in program.process.stderr.readline()
    assert program.process.stderr.readline().decode() == program.line
    assert program.client.get("/health").status_code == 200
    program.stop()
    program.client.close()
    assert program.ended()[0] == 0


def test_an_inherited_socket(serve):
    """``--fd`` takes the socket that systemd, or another parent, has opened."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sluicegate",
                "serve",
                f"{FLOWS}:Asking",
                "--fd",
                str(listener.fileno()),
            ],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        port = listener.getsockname()[1]
    try:
        program = Program(process)
        assert f":{port};" in program.line
        assert program.client.get("/health").status_code == 200
        program.client.close()
        program.stop()
        assert program.ended()[0] == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            [f"{FLOWS}:Asking", f"{FLOWS}:Asking"],
            "second workflow with the name Asking; expected other_name=",
        ),
        (
            [f"a={FLOWS}:Asking", f"a={FLOWS}:Gated"],
            "second workflow with the name a; expected other_name=",
        ),
        ([f"{FLOWS}:Nothing"], "has no 'Nothing'"),
        ([f"{FLOWS}:Asking", "--token-env", "NO_SUCH"], "the environment has no NO_SUCH"),
        ([f"{FLOWS}:Asking", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1 port 8000"),
        (
            [f"{FLOWS}:Asking", "--port", "99999"],
            "is not a port; expected a number from 0 to 65535",
        ),
        ([f"{FLOWS}:Asking", "--fd", "987"], "--fd 987 is no open socket"),
        ([f"{FLOWS}:Asking", "--store", "runs.db"], "names no store"),
    ],
)
def test_wrong_usage(capsys, arguments, told):
    """One line says what is wrong; the exit code is 2, and no traceback is printed."""
    port = [] if {"--port", "--host"} & {*arguments} else ["--port", "0"]
    code = main(["serve", *arguments, *port])
    err = capsys.readouterr().err

    assert (code, err.count("\n")) == (2, 1)
    assert told in err


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code = main(["serve", f"{FLOWS}:Asking", "--port", str(taken.getsockname()[1])])
    err = capsys.readouterr().err

    assert code == 2
    assert "Address already in use" in err
    assert "--port 0 finds one" in err


def test_what_is_told_where_others_can_reach_it(serve):
    """Beyond the loopback it says what is missing, once for each."""
    program = serve(f"{FLOWS}:Asking", "--host", "0.0.0.0")
    assert b"anyone who reaches this address may start runs" in program.process.stderr.readline()
    assert b"--allow-host NAME" in program.process.stderr.readline()
    assert json.loads(
        httpx.get(f"http://127.0.0.1:{program.client.base_url.port}/health", trust_env=False).text
    )
