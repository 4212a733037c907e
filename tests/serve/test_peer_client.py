"""The client of llama-agents, unchanged, against our server, on uvicorn and on Hypercorn."""

from __future__ import annotations

import anyio
import httpx
import pytest

from sluicegate import Context, StartEvent, StopEvent, Workflow, step
from sluicegate.serve import StreamGap, asgi_app
from tests.serve.flows import Asking, Essay, Failing, Progress, Waiting
from tests.test_web_servers import served


peer = pytest.importorskip(
    "llama_agents.client",
    reason="llama-agents-client is not installed: pip install llama-agents-client",
)
from llama_agents.client.protocol.serializable_events import (  # noqa: E402
    EventEnvelopeWithMetadata,
)
from workflows import events as peer_events  # noqa: E402

from sluicegate.serve._data import envelope_json  # noqa: E402


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*httptools:DeprecationWarning"),
    pytest.mark.parametrize("server", ["uvicorn", "hypercorn-asyncio"]),
]


class Gated(Workflow[str]):
    """Publishes when it is told to."""

    def __init__(self):
        super().__init__()
        self.gate = anyio.Event()

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for number in range(3):
            await ctx.stream.send(Progress(message=f"early {number}"))
        await self.gate.wait()
        for number in range(3):
            await ctx.stream.send(Progress(message=f"late {number}"))
        return StopEvent(result="done")


def on_server(server, test, **workflows):
    """Run a test with the peer's client of a server."""

    async def main():
        with anyio.fail_after(20):
            async with (
                served(server, asgi_app(workflows)) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
            ):
                await test(peer.WorkflowClient(httpx_client=http), http)

    anyio.run(main, backend="asyncio")


def test_what_it_lists(server):
    """It finds the workflows, their schemas, their events and their graphs."""

    async def test(client, _http):
        assert (await client.is_healthy()).status == "healthy"
        assert (await client.list_workflows()).workflows == ["essay", "asking"]
        schema = await client.get_workflow_schema("essay")
        assert schema.start["required"] == ["topic"]
        listed = await client.get_workflow_events_schema("asking")
        assert {"Topic", "Approval", "StopEvent"} <= {each["title"] for each in listed.events}
        graph = (await client.get_workflow_graph("asking")).graph
        assert {"ask"} <= {node.label for node in graph.nodes}
        assert graph.edges

    on_server(server, test, essay=Essay(), asking=Asking())


@pytest.mark.parametrize("start", ["dict", "event"])
def test_it_runs_a_workflow(server, start):
    """It waits for the result, and loads it as an event of its own."""

    async def test(client, _http):
        given = {"topic": "locks"} if start == "dict" else peer_events.StartEvent(topic="locks")
        data = await client.run_workflow("essay", start_event=given, handler_id=f"of-{start}")
        assert (data.handler_id, data.status) == (f"of-{start}", "completed")
        event = data.result.load_event([peer_events.StopEvent])
        assert event.result == "LOCKS"

    on_server(server, test, essay=Essay())


def test_a_run_that_fails(server):
    """It is told of the failure, but not of its text."""

    async def test(client, _http):
        begun = await client.run_workflow_nowait("failing")
        data = await client.wait_for_handler(begun.handler_id, poll_interval=0.01)
        assert data.status == "failed"
        assert "LookupError" in data.error
        assert "hunter2" not in data.error
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            await client.run_workflow("nothing")

    on_server(server, test, failing=Failing())


def test_it_streams_with_a_cursor(server):
    """It stops in the middle, continues behind the last event, and finds nothing behind the end."""
    gated = Gated()

    async def test(client, _http):
        run = (await client.run_workflow_nowait("gated")).handler_id
        first = []
        stream = client.get_workflow_events(run)
        async for event in stream:
            first.append(event.value["message"])
            if len(first) == 2:
                break
        await stream.aclose()
        gated.gate.set()
        rest = client.get_workflow_events(run, after_sequence=stream.last_sequence)
        found = [event async for event in rest]
        assert first == ["early 0", "early 1"]
        assert [event.value["message"] for event in found[:-1]] == [
            "early 2",
            *(f"late {number}" for number in range(3)),
        ]
        assert (found[-1].type, found[-1].value) == ("StopEvent", {"result": "done"})
        assert [
            e async for e in client.get_workflow_events(run, after_sequence=rest.last_sequence)
        ] == []
        assert [e.type async for e in client.get_workflow_events(run, after_sequence="now")] == []
        assert len([e async for e in client.get_workflow_events(run)]) == 7

    on_server(server, test, gated=gated)


class Breaking(httpx.AsyncBaseTransport):
    """A network that breaks each of the first responses that stream, at a line."""

    def __init__(self, times):
        self.times = times
        self.broken = 0
        self.inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request):
        response = await self.inner.handle_async_request(request)
        if request.method == "GET" and "/events/" in request.url.path and self.broken < self.times:
            self.broken += 1
            return httpx.Response(
                response.status_code, headers=response.headers, stream=BrokenStream(response.stream)
            )
        return response

    async def aclose(self):
        await self.inner.aclose()


class BrokenStream(httpx.AsyncByteStream):
    def __init__(self, inner):
        self.inner = inner

    async def __aiter__(self):
        seen = b""
        async for part in self.inner:
            seen += part
            yield part
            if seen.count(b"\n\n") >= 1:
                raise httpx.ReadError("the network broke")

    async def aclose(self):
        await self.inner.aclose()


def test_it_reconnects(server):
    """Cut off again and again, it misses nothing and gets nothing twice."""
    gated = Gated()

    async def test(_client, http):
        transport = Breaking(times=5)
        async with httpx.AsyncClient(base_url=http.base_url, transport=transport) as flaky:
            client = peer.WorkflowClient(httpx_client=flaky)
            run = (await client.run_workflow_nowait("gated")).handler_id
            messages = []
            async for event in client.get_workflow_events(run):
                messages.append(event.value.get("message"))
                if len(messages) == 3:
                    gated.gate.set()
        assert messages == [
            *(f"early {number}" for number in range(3)),
            *(f"late {number}" for number in range(3)),
            None,
        ]
        assert transport.broken > 1

    on_server(server, test, gated=gated)


@pytest.mark.parametrize("form", ["dict", "event", "step"])
def test_it_answers(server, form):
    """An answer arrives as a dictionary with its class, or as an event of its own."""

    class Approval(peer_events.HumanResponseEvent):
        yes: bool

    async def test(client, _http):
        run = (await client.run_workflow_nowait("asking", start_event={"topic": "a"})).handler_id
        async for event in client.get_workflow_events(run):
            if event.type == "Question":
                assert event.types == ["InputRequiredEvent"]
                answer = {"type": "Approval", "value": {"yes": True}}
                sent = await client.send_event(
                    run, Approval(yes=True) if form == "event" else answer, None
                )
                assert sent.status == "sent"
        data = await client.get_result(run)
        assert (data.status, data.result.value) == ("completed", {"result": "published"})
        with pytest.raises(httpx.HTTPStatusError, match="409"):
            await client.send_event(run, Approval(yes=True))

    on_server(server, test, asking=Asking())


def test_it_cancels(server):
    """A cancelled run has unwound; purged, it is gone; the list can be filtered."""
    waiting = Waiting()

    async def test(client, _http):
        run = (await client.run_workflow_nowait("waiting")).handler_id
        await waiting.began.wait()
        (listed,) = (
            await client.get_handlers(status=["running"], workflow_name=["waiting"])
        ).handlers
        assert listed.handler_id == run
        assert (await client.cancel_handler(run)).status == "cancelled"
        assert waiting.seen == ["cancelled", "cleaned up"]
        assert (await client.get_handler(run)).status == "cancelled"
        assert (await client.get_handlers(status=["running"])).handlers == []
        assert (await client.cancel_handler(run, purge=True)).status == "deleted"
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            await client.get_handler(run)

    on_server(server, test, waiting=waiting)


def test_notices_of_the_server(server):
    """A notice in the stream, which its own server does not send, is an event to it as any other."""
    envelope = EventEnvelopeWithMetadata.model_validate_json(envelope_json(StreamGap(missed=3)))

    assert server
    assert (envelope.type, envelope.value) == ("StreamGap", {"missed": 3})
