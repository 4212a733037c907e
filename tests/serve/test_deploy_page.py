"""The page "Deploy": its commands exist, its configurations are valid, and its programs stop as it says."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys

import anyio
import pytest
import trio
import uvicorn

from sluicegate.cli._parser import build_parser
from tests.serve.hosting import connected, free_listener, head, read_all
from tests.test_documentation import BLOCK, ROOT, programs


PAGE = ROOT / "docs/deploy.md"


def blocks(kind):
    return [block[2] for block in BLOCK.finditer(PAGE.read_text()) if block[1] == kind]


def commands():
    """Yield every command line of the page, as its words."""
    for block in blocks("console"):
        for line in block.splitlines():
            yield shlex.split(line)
    for block in blocks("dockerfile"):
        yield json.loads(re.search(r"^CMD (.*)$", block, re.MULTILINE)[1])
    for block in blocks("ini"):
        parsed = configparser.RawConfigParser(strict=True)
        parsed.optionxform = str
        parsed.read_string(block)
        if parsed.has_section("Service"):
            yield shlex.split(parsed["Service"]["ExecStart"])


def test_the_commands_exist():
    """Every command of this program is accepted by its parser; the options of the others exist."""
    own = [words[1:] for words in commands() if words[0].endswith("sluicegate")]
    assert len(own) == 3
    for words in own:
        given = build_parser().parse_args(words)
        assert given.command == "serve"
    others = [words for words in commands() if words[0] in ("uvicorn", "hypercorn")]
    assert len(others) == 2
    for program, *words in others:
        shown = subprocess.run(
            [sys.executable, "-m", program, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for word in words:
            assert not word.startswith("--") or f"{word} " in shown or f"{word}\n" in shown


def test_the_times_of_systemd_and_docker_are_longer_than_the_grace():
    """Otherwise a drain would be cut off."""
    (service,) = [block for block in blocks("ini") if "[Service]" in block]
    grace = float(re.search(r"--grace (\d+)", service)[1])
    assert float(re.search(r"TimeoutStopSec=(\d+)", service)[1]) > grace
    (container,) = blocks("dockerfile")
    grace = float(re.search(r'"--grace", "(\d+)"', container)[1])
    assert float(re.search(r"docker stop -t (\d+)", PAGE.read_text())[1]) > grace


def test_systemd_accepts_its_units(tmp_path):
    """As ``systemd-analyze verify`` says."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    service, sockets = blocks("ini")
    # The program is not installed where the page has it.
    service = service.replace("/opt/flows/venv/bin/sluicegate", "/bin/true")
    service = service.replace("WorkingDirectory=/opt/flows", f"WorkingDirectory={tmp_path}")
    (tmp_path / "flows.service").write_text(service)
    (tmp_path / "flows.socket").write_text(sockets)
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            str(tmp_path / "flows.service"),
            str(tmp_path / "flows.socket"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert str(tmp_path) not in done.stderr
    assert "flows." not in done.stderr


def test_nginx_accepts_its_configuration(tmp_path):
    """As ``nginx -t`` says; and its times fit those of the server."""
    (block,) = blocks("nginx")
    read_timeout = float(re.search(r"proxy_read_timeout (\d+)s", block)[1])
    assert read_timeout > 15
    assert float(re.search(r"keepalive_timeout (\d+)s", block)[1]) < 5
    if shutil.which("nginx") is None:
        pytest.skip("there is no nginx here")
    whole = f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{block}\n}}\n"
    (tmp_path / "nginx.conf").write_text(whole)
    done = subprocess.run(
        ["nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.fixture
def page():
    """The names of the page."""
    namespace = {"__name__": "__main__"}
    for _, code, _ in programs(PAGE):
        exec(compile(code, "deploy.md", "exec"), namespace)
    return namespace


async def start_run(port):
    body = b'{"start_event": {"topic": "locks"}}'
    async with connected(port) as client:
        await client.send(head("POST", "/flows/workflows/essay/run", body, connection="close"))
        return (await read_all(client)).decode()


@pytest.mark.filterwarnings("ignore:.*httptools:DeprecationWarning")
def test_the_guest_of_uvicorn(page):
    """It serves, and drains before uvicorn closes anything."""

    async def main():
        listener = free_listener()
        listener.listen()
        config = uvicorn.Config(page["app"], log_config=None, ws="none")
        server = page["Server"](config)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(server.serve, [listener])
                assert "On locks." in await start_run(listener.getsockname()[1])
                server.should_exit = True
        assert "stopping" in repr(page["flows"])

    anyio.run(main)


def test_the_guest_of_hypercorn(page, monkeypatch):
    """It serves until the signal, and drains."""
    listener = free_listener()
    port = listener.getsockname()[1]
    bound = f"fd://{listener.detach()}"

    class OnFreePort(page["Config"]):
        bind = property(lambda _: [bound], lambda _self, _value: None)

    monkeypatch.setitem(page, "Config", OnFreePort)

    async def main():
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(page["serve_until_a_signal"])
                assert "On locks." in await start_run(port)
                signal.raise_signal(signal.SIGTERM)
        assert "stopping" in repr(page["flows"])

    trio.run(main)
