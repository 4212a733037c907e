"""A call while it runs: progress, cancellation, and what is left however it ends."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp import types
from mcp.shared.exceptions import MCPError

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.mcp import mcp_server
from sluicegate.testing import sweep
from tests.helpers import limit, nothing_left, run_virtually, wait_until_idle
from tests.mcp.flows import Essay, Page, Topic, client_of, text_of


class Cleaned(Workflow[str]):
    """Reports how its step was left."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.has_begun = anyio.Event()
        self.happened: list[str] = []

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.has_begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                self.happened.append("cancelled")
                await anyio.sleep(0.001)
                self.happened.append("cleaned up")
        return StopEvent()


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_events_of_the_stream_are_progress(mode):
    """Each event is a notification with its class and fields, numbered from 1."""
    told = []

    async def progress(*values):
        told.append(values)

    async with client_of(Essay(), mode=mode) as client:
        arguments = {"topic": "a", "pages": 2}
        result = await client.call_tool("Essay", arguments, progress_callback=progress)

    assert told == [
        (1, None, '{"event":"Page","number":1}'),
        (2, None, '{"event":"Page","number":2}'),
    ]
    assert text_of(result) == "2 pages on a"


@pytest.mark.anyio
async def test_reported_progress_is_text():
    """What a step reports with ``ctx.progress()`` is shown for a person, and long events are cut."""

    class Reporting(Workflow[None]):
        @step
        async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.progress(3, 10, "reading")
            ctx.write_event_to_stream(Event(text="x" * 5_000))
            return StopEvent()

    told = []

    async def progress(_number, _total, message):
        told.append(message)

    async with client_of(Reporting()) as client:
        await client.call_tool("Reporting", {}, progress_callback=progress)

    assert told[0] == "count: reading (3 of 10)"
    assert len(told[1]) == 2_000
    assert told[1].endswith("xxx...")


@pytest.mark.anyio
async def test_a_client_that_is_slow_to_take_progress_does_not_hold_up_steps():
    """Steps send without waiting for the client, and the run ends while the client reads."""
    ended = anyio.Event()

    class Fast(Workflow[str]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for number in range(500):
                await ctx.stream.send(Page(number=number))
            ended.set()
            return StopEvent(result="done")

    async def progress(*_values):
        await ended.wait()

    with limit():
        async with client_of(Fast()) as client:
            result = await client.call_tool("Fast", {}, progress_callback=progress)

    assert text_of(result) == "done"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_cancelled_call_cancels_the_run(mode):
    """The step sees the cancellation, and its shielded clean-up completes."""
    flow = Cleaned()
    with limit():
        async with client_of(flow, mode=mode) as client:
            with nothing_left():
                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(client.call_tool, "Cleaned", {})
                    await flow.has_begun.wait()
                    nursery.cancel_scope.cancel()
                while len(flow.happened) < 2:  # over streams, the client does not wait for it
                    await anyio.sleep(0.001)
                await wait_until_idle()

    assert flow.happened == ["cancelled", "cleaned up"]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_timeout_of_a_client_cancels_the_run(backend):
    """A client that waits no longer for a result ends the run."""
    flow = Cleaned()

    async def main():
        async with client_of(flow, mode="legacy") as client:
            with pytest.raises(MCPError):
                await client.call_tool("Cleaned", {}, read_timeout_seconds=20)
            while len(flow.happened) < 2:
                await anyio.sleep(0.001)

    run_virtually(backend, main)

    assert flow.happened == ["cancelled", "cleaned up"]


@pytest.mark.anyio
async def test_leaving_the_server_cancels_the_runs():
    """When the client's connection ends, the runs of its requests have ended."""
    flow = Cleaned()
    with limit(), nothing_left():
        async with anyio.create_task_group() as nursery, client_of(flow, mode="legacy") as client:
            nursery.start_soon(_call_to_the_end, client)
            await flow.has_begun.wait()

    assert flow.happened == ["cancelled", "cleaned up"]


async def _call_to_the_end(client):
    with pytest.raises(MCPError):
        await client.call_tool("Cleaned", {})


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_nothing_of_a_run_is_left_wherever_a_request_is_cancelled(backend):
    """At each position, by a scope or natively, the steps have unwound when the request ends."""

    async def scenario(trial):
        opened = []

        class Pair(Workflow[str]):
            @step
            async def begin(self, ctx: Context, ev: Topic) -> list[Page]:
                return [Page(number=number) for number in range(2)]

            @step
            async def write(self, ctx: Context, ev: Page) -> StopEvent | None:
                opened.append(ev.number)
                try:
                    await anyio.sleep(ev.number + 1)
                    ctx.write_event_to_stream(ev)
                    return StopEvent(result="done") if ev.number else None
                finally:
                    opened.remove(ev.number)

        serve = mcp_server(Pair()).get_request_handler("tools/call").handler
        params = types.CallToolRequestParams(name="Pair", arguments={"topic": "a"})
        try:
            result = await serve(Request(), params)
        finally:
            assert not opened
        assert result.structured_content == {"result": "done"}

    report = sweep(scenario, backends=backend)

    assert report.runs > 10


class Request:
    """What a handler uses of a request's context, where there is no client."""

    protocol_version = "2026-07-28"

    @property
    def session(self):
        return self

    async def report_progress(self, _number, *, message):
        await anyio.sleep(1)
