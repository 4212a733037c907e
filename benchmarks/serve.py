"""``python -m benchmarks.serve``: what serving costs, and how soon a step knows that its client has gone.

* ``hang-ups``: clients that leave one after another, in four ways; the time from the client's close to the
  cancellation in the step. Client and server share an event loop, so nothing else runs between the two.
* ``streams``: a thousand clients that each read a run of their own to its end; the server and the clients
  are two processes.
* ``stuck``: a thousand clients that read nothing of a run that sends and sends; the memory of the server.

The exit status is 1 if a hang-up takes more than 10 ms in one case of 100, or if the stuck readers let the memory grow.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import multiprocessing
import os
import socket
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import anyio
import anyio.lowlevel

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.serve import asgi_app
from sluicegate.serve._server import serving


#: By name: the event loop of each server, and its options.
SERVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Hypercorn, Trio": ("trio", {}),
    "Hypercorn, asyncio": ("asyncio", {}),
    "uvicorn": ("asyncio", {}),
    "uvicorn, uvloop": ("asyncio", {"use_uvloop": True}),
}
WAYS = ("idle", "busy", "slow reader", "plain request")
GOAL_MS = 10.0
GOAL_GROWTH_MIB = 16.0

MIB = 1024 * 1024


class Piece(Event):
    sent_at: float = 0.0
    padding: str = ""


class Job(StartEvent):
    how: str = "idle"
    count: int = 0
    pause: float = 0.0
    size: int = 0


class Work(Workflow[str]):
    """Waits, or sends; notes when it was cancelled."""

    def __init__(self) -> None:
        super().__init__(stream_history=100)
        self.sent = 0
        self.cancelled_at: float | None = None

    @step
    async def work(self, ctx: Context, ev: Job) -> StopEvent:
        padding = "x" * ev.size
        try:
            for _ in range(ev.count):
                await ctx.stream.send(Piece(sent_at=perf_counter(), padding=padding))
                self.sent += 1
                await anyio.sleep(ev.pause)
            if not ev.count:
                ctx.write_event_to_stream(Piece())
                self.sent += 1
                await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled_at = perf_counter()
            raise
        return StopEvent(result="done")


@contextlib.asynccontextmanager
async def hosted(server: str, app: Any) -> AsyncIterator[int]:
    """Serve an application; yields the port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    if server.startswith("Hypercorn"):
        async with app.lifespan(), serving(app, listener):
            yield port
        return
    import uvicorn  # noqa: PLC0415 - a child that serves with Hypercorn needs none

    listener.listen(1024)
    running = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1, ws="none")
    )
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(running.serve, [listener])
        yield port
        running.should_exit = True


def request(body: dict[str, Any], *, accept: str = "text/event-stream") -> bytes:
    data = json.dumps({"start_event": body}).encode()
    lines = [
        "POST /workflows/work/run HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"accept: {accept}",
        f"content-length: {len(data)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


# -- hang-ups -------------------------------------------------------------------------------------


async def hang_ups(server: str, way: str, count: int) -> list[tuple[float, float]]:
    """Return the milliseconds of each hang-up, and how many of them this thread has computed."""
    jobs = {"busy": {"count": 10**9}, "slow reader": {"count": 10**9, "size": 50_000}}
    work = Work()
    taken = []
    async with hosted(server, asgi_app({"work": work}, heartbeat=None)) as port:
        accept = "application/json" if way == "plain request" else "text/event-stream"
        for _ in range(count):
            work.cancelled_at, work.sent = None, 0
            async with await anyio.connect_tcp("127.0.0.1", port) as client:
                await client.send(request(jobs.get(way, {}), accept=accept))
                least = {"busy": 20, "slow reader": 300}.get(way, 1)
                while work.sent < least:
                    if way == "busy":
                        await client.receive()
                    await anyio.lowlevel.checkpoint()
                if way == "idle":
                    await client.receive()
                began, computed = perf_counter(), thread_time()
            while work.cancelled_at is None:
                await anyio.lowlevel.checkpoint()
            taken.append(((work.cancelled_at - began) * 1000, (thread_time() - computed) * 1000))
    return taken


def measure_hang_ups(count: int) -> bool:
    print(f"hang-ups: {count} each, milliseconds until the step is cancelled\n")
    print("| server | client | median | p99 | most | p99 of the processor time |")
    print("| --- | --- | --- | --- | --- | --- |")
    is_met = True
    for server, (backend, options) in SERVERS.items():
        if options and importlib.util.find_spec("uvloop") is None:
            continue
        for way in WAYS:
            both = anyio.run(hang_ups, server, way, count, backend=backend, backend_options=options)
            taken, computed = (sorted(each) for each in zip(*both, strict=True))
            at = int(count * 0.99)
            is_met = is_met and taken[at] <= GOAL_MS
            found = (statistics.median(taken), taken[at], taken[-1], computed[at])
            figures = " | ".join(f"{x:.2f}" for x in found)
            print(f"| {server} | {way} | {figures} |", flush=True)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"\np99 at most {GOAL_MS:g} ms: {'met' if is_met else 'MISSED'} (load of the machine: {load})\n"
    )
    return is_met


# -- many clients ---------------------------------------------------------------------------------


def resident(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    text = Path(f"/proc/{pid}/statm").read_text(encoding="ascii")
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def serve_in_process(server: str, pipe: Any) -> None:
    """Serve until the other end of the pipe is closed; tells the port first."""

    async def main() -> None:
        # Few records for the timeline are kept, which grow with the events whoever reads them.
        app = asgi_app({"work": Work()}, max_runs=10_000, max_records=1_000, heartbeat=None)
        async with hosted(server, app) as port:
            pipe.send(port)
            while not pipe.poll():
                await anyio.sleep(0.1)

    backend, options = SERVERS[server]
    with contextlib.suppress(EOFError):
        anyio.run(main, backend=backend, backend_options=options)


async def in_server(server: str, use: Callable[[int, int], Awaitable[Any]]) -> Any:
    """Start a server in a process, and call a function with its port and its process id."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve_in_process, args=(server, theirs), daemon=True
    )
    process.start()
    theirs.close()
    try:
        port = await asyncio.to_thread(ours.recv)
        assert process.pid is not None
        return await use(port, process.pid)
    finally:
        ours.close()
        process.terminate()
        process.join()


async def read_stream(port: int, body: dict[str, Any], delays: list[float]) -> int:
    """Read a run to its end; return how many events came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(body))
    count = 0
    first = await reader.readline()
    assert first.startswith(b"HTTP/1.1 200 "), f"the server answered {first!r}"
    async for line in reader:
        if line.startswith(b'data: {"value":{"sent_at"'):
            sent_at = json.loads(line[6:])["value"]["sent_at"]
            delays.append((perf_counter() - sent_at) * 1000)
            count += 1
        elif line.startswith(b"event: StopEvent"):
            break
    writer.close()
    return count


async def streams(count: int, events: int, pause: float, port: int, pid: int) -> dict[str, float]:
    before = resident(pid)
    delays: list[float] = []
    began = perf_counter()
    body = {"count": events, "pause": pause}
    counts = await asyncio.gather(*[read_stream(port, body, delays) for _ in range(count)])
    seconds = perf_counter() - began
    assert sum(counts) == count * events, f"{sum(counts)} of {count * events} events came"
    delays.sort()
    return {
        "events/s": sum(counts) / seconds,
        "median ms": statistics.median(delays),
        "p99 ms": delays[int(len(delays) * 0.99)],
        "KiB a stream": (resident(pid) - before) * 1024 / count,
    }


def measure_streams(count: int) -> None:
    print(f"streams: {count} clients at once, each with a run of 20 events, one in 500 ms\n")
    print(
        "| server | events/s | median ms | p99 ms | KiB a stream |\n| --- | --- | --- | --- | --- |"
    )
    for server, (_, options) in SERVERS.items():
        if options and importlib.util.find_spec("uvloop") is None:
            continue
        found = asyncio.run(in_server(server, partial(streams, count, 20, 0.5)))
        print(f"| {server} | " + " | ".join(f"{x:.0f}" for x in found.values()) + " |", flush=True)
    print()


async def stuck(count: int, port: int, pid: int) -> list[float]:
    """Return the memory of the server, while a run sends to readers that read nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps({"start_event": {"count": 10**9, "pause": 0.001, "size": 1000}}).encode()
    writer.write(
        b"POST /workflows/work/run-nowait HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data)
    )
    text = await reader.readuntil(b"}")
    run_id = json.loads(text[text.index(b"{") :])["handler_id"]
    clients = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(f"GET /events/{run_id} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        client.setblocking(False)
        clients.append(client)
    for client in clients:  # each has its stream
        await asyncio.get_running_loop().sock_recv(client, 64)
    found = []
    for _ in range(8):
        await asyncio.sleep(3)
        found.append(resident(pid))
    for client in clients:
        client.close()
    writer.close()
    return found


def measure_stuck(count: int) -> bool:
    print(f"stuck: {count} readers that read nothing, MiB of the server every 3 s\n")
    print("| server | MiB | growth of the second half |\n| --- | --- | --- |")
    is_met = True
    for server in ("Hypercorn, Trio", "Hypercorn, asyncio", "uvicorn"):
        found = asyncio.run(in_server(server, partial(stuck, count)))
        growth = found[-1] - found[len(found) // 2]
        is_met = is_met and growth <= GOAL_GROWTH_MIB
        print(f"| {server} | {', '.join(f'{x:.0f}' for x in found)} | {growth:.1f} |", flush=True)
    print(f"\nat most {GOAL_GROWTH_MIB:g} MiB: {'met' if is_met else 'MISSED'}")
    return is_met


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["hang-ups", "streams", "stuck"])
    parser.add_argument("--count", type=int, default=300, help="hang-ups of each kind")
    parser.add_argument("--clients", type=int, default=1000, help="clients at once")
    options = parser.parse_args()
    is_met = True
    if "hang-ups" in options.parts:
        is_met = measure_hang_ups(options.count)
    if "streams" in options.parts:
        measure_streams(options.clients)
    if "stuck" in options.parts:
        is_met = measure_stuck(options.clients) and is_met
    return not is_met


if __name__ == "__main__":
    sys.exit(main())
