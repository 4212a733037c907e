"""A server that is replaced while clients read: with a store, runs continue and no event is lost or repeated.

Time is virtual. Servers that are killed are the subject of ``tests/serve/test_restarts.py``.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.durable import MemoryStore, open_run_store
from sluicegate.serve import asgi_app
from tests.client.in_process import InProcess
from tests.helpers import on_each_backend, run_virtually
from tests.serve.flows import Approval, Asking, Progress, Question


TIMES = 8


class Step(Event):
    n: int


class Counting(Workflow[int]):
    """Publishes a durable event in each step, a second apart."""

    @step
    async def begin(self, ev: StartEvent) -> Step:
        return Step(n=0)

    @step
    async def count(self, ctx: Context, ev: Step) -> Step | StopEvent:
        await anyio.sleep(1)
        await ctx.stream.send(Progress(message=str(ev.n)))
        return Step(n=ev.n + 1) if ev.n + 1 < TIMES else StopEvent(result=ev.n)


class Servers:
    """Servers one after another, on one store and one network."""

    def __init__(self, nursery):
        self.store = MemoryStore()
        self.network = InProcess(None, nursery)

    async def serve(self, seconds, *, then_away=0.0):
        """Serve for so many seconds, then stop, and be away for a while."""
        runs = open_run_store(self.store.open(), release_idle=60)
        flows = {
            "counting": Counting(stream="durable", serializable=[Progress]),
            "asking": Asking(),
        }
        app = asgi_app(flows, runs, shutdown_grace=0)
        async with app.lifespan():
            self.network.app, self.network.refuse = app, 0
            await anyio.sleep(seconds)
            self.network.refuse = 1_000_000
        self.network.lose_all()
        await anyio.sleep(then_away)


@on_each_backend
def test_readers_follow_their_runs_from_server_to_server(backend):
    """P5: five servers in turn; ten readers get each event once, and the result."""

    async def main():
        found = {}

        async def follow(client, number):
            handler = await client.submit("counting", run_id=f"run-{number}")
            found[number] = [event.get("message") async for event in handler.stream_events()]
            assert await handler == TIMES - 1

        async with anyio.create_task_group() as nursery, AsyncExitStack() as stack:
            servers = Servers(nursery)
            http = servers.network.client(events=[Progress])
            client = await stack.enter_async_context(http)
            async with anyio.create_task_group() as readers:

                async def begin():
                    for number in range(10):
                        readers.start_soon(follow, client, number)

                servers.network.nursery.start_soon(_later, begin)
                for _ in range(4):
                    await servers.serve(2.3, then_away=1.1)
                readers.start_soon(servers.serve, 30)
            nursery.cancel_scope.cancel()

        assert found == {n: [*map(str, range(TIMES)), None] for n in range(10)}

    run_virtually(backend, main)


@on_each_backend
def test_a_question_is_answered_at_the_next_server(backend):
    """A run that waits is parked, is awaited meanwhile, and gets its answer at the next server."""

    async def main():
        async with anyio.create_task_group() as nursery:
            servers = Servers(nursery)
            async with servers.network.client(events=[Question, Approval]) as client:
                nursery.start_soon(servers.serve, 3.0)
                await anyio.sleep(1)
                handler = await client.submit("asking", run_id="a", topic="print?")
                async with handler.stream_events() as stream:
                    assert type(await stream.receive()) is Question
                    await anyio.sleep(2.5)
                    nursery.start_soon(servers.serve, 30)
                    await anyio.sleep(1)
                    [question] = await handler.questions()
                    await handler.send_event(Approval(yes=True), question=question.id)
                    assert [type(event) async for event in stream] == [StopEvent]
                assert await handler == "published"
            nursery.cancel_scope.cancel()

    run_virtually(backend, main)


async def _later(function):
    await anyio.sleep(0.1)
    await function()
