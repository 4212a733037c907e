"""``python -m tests.serve.killing_server``: a server with a store is killed at random, while clients read.

Every client starts a run and reads its events to the end; when its connection breaks, it goes on behind the
last event that it has. What each has read is compared with the stream in the store: no event of that
may be missing, and none may come twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
import anyio.to_thread
import httpx

from sluicegate.durable import open_run_store
from tests.serve.counting_flow import Counting, Piece


FLOW = Path(__file__).with_name("counting_flow.py")
HOPS = 20
PAUSE = 0.1


class Server:
    """The program, which is killed and started again; its socket stays open."""

    def __init__(self, url, backend):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._command = [sys.executable, "-m", "sluicegate", "serve", f"{FLOW}:Counting"]
        self._command += ["--store", url, "--durability", "process", "--backend", backend]
        self._command += ["--max-runs", "10000", "--max-crashes", "1000"]
        self._command += ["--fd", str(self.listener.fileno())]
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            self._command,
            pass_fds=[self.listener.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    async def wait_until_it_serves(self):
        line = await anyio.to_thread.run_sync(self.process.stderr.readline)
        assert b"serving" in line, line + self.process.stderr.read()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    async def stop(self):
        """Drain it, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await anyio.to_thread.run_sync(self.process.wait)


class Client:
    """Starts one run, and reads it to its end over any number of connections."""

    def __init__(self, http, run_id):
        self.http = http
        self.run_id = run_id
        self.pieces = []
        self.result = None
        self.cursor = None
        self.connections = 0

    async def start(self):
        fields = {"total": HOPS, "pause": PAUSE}
        body = {"start_event": fields, "handler_id": self.run_id}
        while True:
            try:
                answer = await self.http.post("/workflows/Counting/run-nowait", json=body)
            except httpx.TransportError:
                await anyio.sleep(0.01)
                continue
            assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
            return

    async def read(self):
        await self.start()
        while self.result is None:
            headers = {} if self.cursor is None else {"last-event-id": self.cursor}
            try:
                path = f"/events/{self.run_id}?after_sequence=-1"
                async with self.http.stream("GET", path, headers=headers) as response:
                    self.connections += 1
                    assert response.status_code == 200, (
                        f"{response.status_code}: {await response.aread()}"
                    )
                    await self._read_events(response)
            except httpx.TransportError:
                await anyio.sleep(0.01)

    async def _read_events(self, response):
        fields = {}
        async for line in response.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                self._take(fields)
            fields = {}

    def _take(self, fields):
        if "id" in fields:
            assert self.cursor is None or int(fields["id"]) >= int(self.cursor), (
                "a cursor went back"
            )
            self.cursor = fields["id"]
        value = json.loads(fields["data"])["value"]
        kind = fields["event"]
        if kind == "Piece":
            self.pieces.append((value["n"], value["uid"]))
        elif kind == "StopEvent":
            self.result = value["result"]
        else:
            msg = f"{self.run_id} got {fields}"
            raise AssertionError(msg)


async def stored_pieces(store, workflow, run_id):
    """Return the durable events of a run, from its store."""
    async with await store.attach(run_id, workflow) as handler:
        events = [event async for event in handler.stream_events(after="0")]
        assert await handler == HOPS
    return [(event.n, event.uid) for event in events if isinstance(event, Piece)]


async def check(clients, url):
    """Compare what the clients have read with the store; return how many events that were."""
    workflow = Counting()
    async with open_run_store(url, workflows=[workflow], durability="process") as store:
        for client in clients:
            kept = await stored_pieces(store, workflow, client.run_id)
            missed = [piece for piece in kept if piece not in client.pieces]
            assert not missed, f"{client.run_id} missed {missed}"
            assert client.pieces == kept, f"{client.run_id} read {client.pieces}, stored {kept}"
            assert {n for n, _ in kept} == set(range(HOPS))
            assert client.result == HOPS
    return sum(len(client.pieces) for client in clients)


async def run(seed, runs, kills, backend, url):
    """Kill a server while clients read; return the clients."""
    source = random.Random(seed)
    server = Server(url, backend)
    server.start()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    # A connection that the killed server has never accepted waits for the next one.
    http = httpx.AsyncClient(base_url=server.address, limits=limits, timeout=60, trust_env=False)
    clients = [Client(http, f"run-{number}") for number in range(runs)]
    waves = [clients[part :: kills + 1] for part in range(kills + 1)]
    try:
        async with http, anyio.create_task_group() as reading:
            for wave in waves:
                for client in wave:
                    reading.start_soon(client.read)
                if wave is waves[-1]:
                    await server.wait_until_it_serves()
                    break
                if source.random() < 0.8:  # else it is killed while it starts
                    await server.wait_until_it_serves()
                await anyio.sleep(source.uniform(0, 1))
                server.kill()
                server.start()
        code = await server.stop()
        assert code == 0, f"the exit code is {code}"
    finally:
        server.kill()
        server.listener.close()
    return clients


def kill_and_check(seed, *, runs, kills, backend, url):
    """Carry out one trial; return what it consisted of."""
    clients = anyio.run(run, seed, runs, kills, backend, url)
    events = anyio.run(check, clients, url)
    connections = sum(client.connections for client in clients)
    return f"{runs} runs, {kills} kills, {connections} connections, {events} events"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.serve.killing_server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--backend", choices=("trio", "asyncio"), default="trio")
    given = parser.parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "error")
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/runs.db"
        print(
            kill_and_check(
                given.seed, runs=given.runs, kills=given.kills, backend=given.backend, url=url
            )
        )


if __name__ == "__main__":
    main()
