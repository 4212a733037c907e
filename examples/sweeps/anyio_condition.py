"""AnyIO 4.16.0 on asyncio: ``Condition.wait()``, cancelled natively, returns without the lock.

A task was notified and waits for the lock, which the notifier still holds. It is cancelled by
``Task.cancel()``. As with asyncio's and Trio's conditions it should get the lock back before the
cancellation leaves ``wait()``. It does not, so the end of ``async with condition`` fails.
"""

import asyncio

import anyio

from sluicegate.testing import sweep


async def scenario():
    condition = anyio.Condition()

    async def wait():
        async with condition:
            await condition.wait()

    waiter = asyncio.create_task(wait(), name="waiter")
    await anyio.sleep(1)
    async with condition:
        condition.notify()
        await anyio.sleep(1)
    await asyncio.wait([waiter])
    if not waiter.cancelled():
        waiter.result()


if __name__ == "__main__":
    sweep(scenario, backends="asyncio", kinds="native", target="waiter")
