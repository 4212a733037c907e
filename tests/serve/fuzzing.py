"""schemathesis over the server's own OpenAPI document: ``python -m tests.serve.fuzzing --seed 0``.

It needs ``pip install schemathesis``, and serves on loopback. It prints what was found, and fails if
anything was.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import threading
from typing import Any

import anyio
from hypercorn.config import Config

from sluicegate import Context, StartEvent, StopEvent, Workflow, WorkflowTimeoutError, step
from sluicegate.serve import asgi_app
from tests.serve.flows import Approval, Essay, Question, Topic


class Shape(StartEvent):
    name: str
    size: int = 1
    sides: list[float] | None = None
    names: dict[str, str] | None = None


class Shaping(Workflow[Any]):
    """Takes fields of many types."""

    @step
    async def shape(self, ev: Shape) -> StopEvent:
        return StopEvent(result=[ev.name, ev.size, ev.sides, ev.names])


class Asking(Workflow[str]):
    """Asks, but not for long: nobody may answer, and its readers wait as long."""

    @step
    async def ask(self, ctx: Context, ev: Topic) -> StopEvent:
        try:
            found = await ctx.wait_for_event(Approval, Question(text=ev.topic), timeout=0.2)
        except WorkflowTimeoutError:
            return StopEvent(result="nobody")
        return StopEvent(result="published" if found.yes else "dropped")


def serve(backend: str, listener: socket.socket, stopping: threading.Event) -> None:
    """Serve until the event is set."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = None
    config.graceful_timeout = 0.1
    workflows = {"essay": Essay(), "asking": Asking(), "shaping": Shaping()}
    app = asgi_app(workflows, max_runs=1_000)

    async def main() -> None:
        if backend == "trio":
            from hypercorn.trio import serve as serve_app  # noqa: PLC0415
        else:
            from hypercorn.asyncio import serve as serve_app  # noqa: PLC0415

        async def stop() -> None:
            while not stopping.is_set():  # noqa: ASYNC110 - it is set in another thread
                await anyio.sleep(0.05)

        await serve_app(app, config, shutdown_trigger=stop, mode="asgi")  # type: ignore[arg-type]

    anyio.run(main, backend=backend)


def main() -> int:
    """Serve, and let schemathesis call; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.serve.fuzzing", description=__doc__)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--examples", default="20", help="for each operation")
    parser.add_argument("--backend", choices=("trio", "asyncio"), default="trio")
    arguments = parser.parse_args()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    stopping = threading.Event()
    thread = threading.Thread(target=serve, args=(arguments.backend, listener, stopping))
    thread.start()
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run"),
        f"http://127.0.0.1:{port}/openapi.json",
        *("--seed", arguments.seed, "--max-examples", arguments.examples),
        *(
            "--checks",
            "all",
            "--request-timeout",
            "10",
            "--no-color",
            "--generation-database",
            "none",
        ),
    ]
    try:
        with tempfile.TemporaryDirectory() as folder:  # it keeps notes where it runs
            return subprocess.run(command, cwd=folder, check=False).returncode
    finally:
        stopping.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
