"""httpcore 1.0.9 (under httpx 0.28): a request that is cancelled keeps its place in the pool.

A request is cancelled when its connection has just been made. The next one should be served; it
waits for ever. No socket is needed: the network is httpcore's own mock, whose ``connect_tcp`` here
ends like Trio's sockets do, connected although a cancellation has come meanwhile. The same happens
with real sockets, and in httpcore2 2.16.2.
"""

import anyio.lowlevel
import httpcore

from sluicegate.testing import sweep


RESPONSE = [b"HTTP/1.1 200 OK\r\n", b"Content-Length: 4\r\n", b"\r\n", b"body"]


class Network(httpcore.AsyncMockBackend):
    async def connect_tcp(self, *args, **options):
        await anyio.lowlevel.checkpoint_if_cancelled()
        stream = await super().connect_tcp(*args, **options)
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return stream


async def scenario(trial):
    network = Network(RESPONSE * 2)
    async with httpcore.AsyncConnectionPool(max_connections=1, network_backend=network) as pool:
        with trial.target("first"):
            await pool.request("GET", "http://example.org/")
        response = await pool.request("GET", "http://example.org/")
        assert response.content == b"body"


if __name__ == "__main__":
    sweep(scenario, backends=["trio", "asyncio"], kinds="scope", target="first")
