"""``sluicegate run --live``: the timeline of a run, served while it runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest


def opened(program, backend="trio"):
    process = program(
        "run", "flows_for_cli:Greeter", "--live", "--backend", backend, stdin=subprocess.PIPE
    )
    process.stdout.readline()  # the question: the run waits
    line = process.stderr.readline().decode()
    assert line.startswith("sluicegate: the timeline is at http://127.0.0.1:")
    return process, line.split()[-1]


def get(url, **options):
    with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=20) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_page_shows_the_run_so_far_and_the_port_is_closed_at_the_end(program, backend):
    process, url = opened(program, backend)
    page, state = get(url), json.loads(get(url + "data"))
    assert "connect-src 'self'" in page
    assert "Greeter" in page
    assert state["ended"] is False
    assert state["data"]["inv"]["step"]
    process.stdin.write(b"Ada\n")
    process.stdin.flush()
    while not (state := json.loads(get(url + "data")))["ended"]:
        pass
    assert state["data"]["runs"][0]["status"] == "completed"
    assert process.wait(20) == 0
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(url)


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("", {"headers": {"Host": "evil.example"}}, 421),
        ("", {"data": b"", "method": "POST"}, 405),
        ("../etc/passwd", {}, 404),
    ],
)
def test_other_requests_are_refused(program, path, options, status):
    _, url = opened(program)
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(url + path, **options)
    with refused.value as answer:
        assert answer.code == status


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is sent")
def test_ctrl_c_closes_the_server(program):
    process, url = opened(program)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(url)
