"""Spans over the wire: OTLP to a collector on loopback."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import trio
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from sluicegate import Event, StartEvent, StopEvent, Workflow, step
from sluicegate.otel import OpenTelemetryObserver


class Draft(Event):
    pass


class Writer(Workflow):
    @step
    async def write(self, ev: StartEvent) -> Draft:
        return Draft()

    @step
    async def polish(self, ev: Draft) -> StopEvent:
        raise ValueError("no words")


@pytest.fixture
def collector(monkeypatch):
    """A collector's address, and the requests that it has received."""
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            received.append(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()
        thread.join()


def test_a_run_arrives_at_a_collector(collector):
    """Names, parents, links, status and exception are in the protobuf that a collector receives."""
    address, received = collector
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(address, compression=Compression.Gzip)
    provider.add_span_processor(BatchSpanProcessor(exporter))

    async def main():
        with pytest.raises(ValueError, match="no words"):
            await Writer(observers=[OpenTelemetryObserver(provider)]).run()

    trio.run(main)
    provider.shutdown()

    spans = {
        span.name: span
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    run, write, polish = (
        spans[name] for name in ("invoke_workflow Writer", "step write", "step polish")
    )
    assert len(spans) == 3
    assert run.parent_span_id == b""
    assert write.parent_span_id == polish.parent_span_id == run.span_id
    assert {span.trace_id for span in spans.values()} == {run.trace_id}
    assert [link.span_id for link in polish.links] == [write.span_id]
    attributes = {item.key: item.value for item in polish.attributes}
    assert attributes["sluicegate.step.name"].string_value == "polish"
    assert attributes["sluicegate.step.attempt"].int_value == 1
    assert attributes["error.type"].string_value == "ValueError"
    assert polish.status.code == 2
    assert [event.name for event in polish.events] == ["exception"]
    assert [event.name for event in run.events] == []
