"""A server as a program: ``python -m tests.mcp.serving {stdio,http} {trio,asyncio}``.

Over HTTP it serves on loopback, port 0, and prints the port; it ends when its standard input is closed.
"""

from __future__ import annotations

import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from sluicegate import Context, StartEvent, StopEvent, Workflow, step
from sluicegate.mcp import mcp_server, run_stdio
from tests.mcp.flows import KEY, Book, Essay


class Wait(StartEvent):
    note: str


class Waiting(Workflow[str]):
    """Waits until it is cancelled, and says in a file how it was left."""

    @step
    async def only(self, ctx: Context, ev: Wait) -> StopEvent:
        await ctx.stream.send(ev)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
                Path(ev.note).write_text("cancelled, and cleaned up")
        return StopEvent()


class Chatty(Workflow[str]):
    """Prints, which over stdio must not disturb the protocol."""

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        print("this is no message of the protocol")
        return StopEvent(result="printed")


def server():
    """Return the server of the program."""
    return mcp_server(
        Essay(), Book(), Waiting(), Chatty(), {"hurried": Waiting(timeout=0.5)}, state_keys=[KEY]
    )


@asynccontextmanager
async def served(app, backend):
    """Serve an application, by uvicorn on asyncio and by Hypercorn on Trio; give its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    async with anyio.create_task_group() as nursery:
        if backend == "trio":
            from hypercorn.config import Config  # noqa: PLC0415 - a server over stdio needs neither
            from hypercorn.trio import serve as serve_on_trio  # noqa: PLC0415

            config, stop = Config(), anyio.Event()
            config.bind = [f"fd://{listener.detach()}"]
            config.accesslog = config.errorlog = None
            config.graceful_timeout = 0.05

            async def run():
                await serve_on_trio(app, config, shutdown_trigger=stop.wait, mode="asgi")

            end = stop.set
            nursery.start_soon(run)
        else:
            import uvicorn  # noqa: PLC0415

            options = uvicorn.Config(
                app, log_config=None, lifespan="on", timeout_graceful_shutdown=0, ws="none"
            )
            running = uvicorn.Server(options)
            nursery.start_soon(running.serve, [listener])

            def end():
                running.should_exit = True

        try:
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            end()


async def main(transport, backend):
    """Serve until the other side closes standard input."""
    if transport == "stdio":
        await run_stdio(server())
        return
    async with served(server().streamable_http_app(), backend) as url:
        print(url, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:3], backend=sys.argv[2])
