"""``sluicegate worker``: real processes that share a store, are killed, and drain."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from tests.helpers import on_each_backend


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
#: No test waits that long; a hang fails instead of holding up the suite.
LIMIT = 30
TARGET = "stored_flows_for_cli:Gated"


@pytest.fixture
def worker(program, store):
    """Start a worker on the store, and wait until it takes runs."""

    def start(backend, *options):
        process = program(
            "worker",
            TARGET,
            "--store",
            store.url,
            "--backend",
            backend,
            "--durability",
            "process",
            *options,
        )
        line = process.stderr.readline().decode()
        assert line == f"sluicegate: a worker of Gated for {store.url}; SIGTERM drains it\n"
        return process

    return start


def wait_until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


class Job:
    """A run of a workflow that waits for a file, and what it has noted."""

    def __init__(self, store, flows, folder):
        self.store, self.ledger, self.gate = store, folder / "ledger", folder / "gate"
        store.submit("job", flows.Gated(), ledger=str(self.ledger), gate=str(self.gate))

    @property
    def began(self):
        return self.ledger.read_text().split() if self.ledger.exists() else []

    @property
    def status(self):
        return self.store.statuses()["job"]


@pytest.fixture
def job(store, flows, tmp_path):
    return Job(store, flows, tmp_path)


def ended(process):
    _, err = process.communicate(timeout=LIMIT)
    return process.returncode, err.decode()


@on_each_backend
def test_another_worker_continues_what_a_killed_one_left(worker, job, backend):
    """D2 and D4: after SIGKILL the step that was running begins again, and the one before does not."""
    killed = worker(backend)
    wait_until(lambda: job.began == ["first", "second"])
    killed.kill()
    killed.wait(LIMIT)
    other = worker(backend)
    wait_until(lambda: job.began == ["first", "second", "second"])
    job.gate.touch()
    wait_until(lambda: job.status == "completed")
    other.send_signal(signal.SIGTERM)

    code, told = ended(other)
    assert code == 0
    # What the store has of a run is complete before its worker has let go of it.
    assert told in [
        f"sluicegate: draining {runs} for at most 30 s\n" for runs in ("0 runs", "1 run")
    ]
    assert job.began == ["first", "second", "second"]


@on_each_backend
def test_sigterm_drains(worker, job, backend):
    """P22: the first signal lets the run end, takes no further one, and the exit code is 0."""
    process = worker(backend)
    wait_until(lambda: job.began == ["first", "second"])
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == b"sluicegate: draining 1 run for at most 30 s\n"
    assert job.status == "running"
    job.gate.touch()

    assert ended(process) == (0, "")
    assert (job.status, job.began) == ("completed", ["first", "second"])


@pytest.mark.slow
@on_each_backend
def test_a_second_signal_ends_the_drain(worker, job, backend):
    """P22: it unwinds as the first one of another command does; the run stays in the store."""
    process = worker(backend)
    wait_until(lambda: job.began == ["first", "second"])
    process.send_signal(signal.SIGTERM)
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)

    assert ended(process)[0] == 143
    assert job.status == "running"


@pytest.mark.slow
@on_each_backend
def test_the_grace_ends_the_drain(worker, job, backend):
    """A run that does not end in time is detached, and the exit code tells that."""
    process = worker(backend, "--grace", "0.05")
    wait_until(lambda: job.began == ["first", "second"])
    process.send_signal(signal.SIGTERM)
    code, err = ended(process)

    assert code == 143
    assert err.endswith("the grace period is over; other workers continue the remaining runs\n")
    assert job.status == "running"


def test_two_workflows_of_one_name(cli, tmp_path):
    """Stored runs are told apart by the name of the workflow."""
    url = f"sqlite:///{tmp_path}/runs.db"
    code, _, err = cli("worker", TARGET, TARGET, "--store", url)

    assert (code, err.count("\n")) == (2, 1)
    assert "second workflow with the name Gated" in err
