"""What the tests of tracing share: OpenTelemetry's own SDK, with everything kept in memory."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sluicegate.otel import OpenTelemetryObserver


class Traced:
    """An observer, and what it has made."""

    def __init__(self, **options):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.observer = OpenTelemetryObserver(self.provider, self.meters, **options)

    @property
    def spans(self):
        """The spans, in the order in which they ended."""
        return self.exporter.get_finished_spans()

    def named(self, name):
        """Return the spans of a name, in the order in which they began."""
        found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.start_time)

    def one(self, name):
        """Return the only span of a name."""
        (found,) = self.named(name)
        return found

    def parent(self, span):
        """Return the name of the span's parent; None if it has none."""
        if span.parent is None:
            return None
        names = {other.context.span_id: other.name for other in self.spans}
        return names.get(span.parent.span_id, "a span of others")

    def links(self, span):
        """Return the names of the linked spans, sorted."""
        names = {other.context.span_id: other.name for other in self.spans}
        return sorted(names[link.context.span_id] for link in span.links)

    def tree(self):
        """Return the names of all spans, each with its parent's, sorted."""
        return sorted((span.name, self.parent(span) or "") for span in self.spans)

    def points(self, metric):
        """Return the points of a metric, as pairs of attributes and the point."""
        data = self.reader.get_metrics_data()
        return [
            (dict(point.attributes), point)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric
            for point in found.data.data_points
        ]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """Keep the settings of the person who runs the tests out of them."""
    for name in (
        "OTEL_SEMCONV_STABILITY_OPT_IN",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "OPENAI_API_BASE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def traced():
    """An observer with the SDK behind it."""
    return Traced()


@pytest.fixture
def make_traced():
    """The class itself, for other options."""
    return Traced
