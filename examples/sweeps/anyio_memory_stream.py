"""AnyIO 4.16.0 on asyncio: a native cancellation loses an item of a memory object stream.

One task waits in ``receive()``, another sends an item, the first is cancelled by ``Task.cancel()``.
The item should have been received, be left in the stream, or have been refused. It is gone.
"""

import asyncio

import anyio

from sluicegate.testing import sweep


async def scenario():
    send, receive = anyio.create_memory_object_stream(max_buffer_size=1)
    received = []

    async def take():
        received.append(await receive.receive())

    with send, receive:
        taker = asyncio.create_task(take(), name="taker")
        await anyio.sleep(1)
        send.send_nowait("item")
        await asyncio.wait([taker])
        if receive.statistics().current_buffer_used:
            received.append(receive.receive_nowait())

    assert received == ["item"], f"sent ['item'], received {received}"


if __name__ == "__main__":
    sweep(scenario, backends="asyncio", kinds="native", target="taker")
