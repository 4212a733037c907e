"""Steps and observers for tests of what observers enter in a worker process, which imports this."""

from __future__ import annotations

import functools
import json
import logging
import os
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from sluicegate import Context, Event, Observer, StartEvent, StopEvent, Workflow, step


#: What observers have bound for the body, outermost first.
BOUND = ContextVar("BOUND", default=())

LOGGER = logging.getLogger("tests.observed")


class Shard(Event):
    what: str = "return"


class Shown(Exception):
    pass


class Crunch(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Shard:
        return Shard(what=getattr(ev, "what", "return"))

    @step(in_process=True)
    @staticmethod
    def crunch(ev: Shard) -> StopEvent:
        LOGGER.warning("crunching")
        if ev.what == "raise":
            raise Shown(str(BOUND.get()))
        return StopEvent(result=BOUND.get())


@contextmanager
def bind(name):
    """Bind a name around the body."""
    token = BOUND.set((*BOUND.get(), name))
    try:
        yield
    finally:
        BOUND.reset(token)


@contextmanager
def leak(name):
    """Bind a name, and leave it bound."""
    BOUND.set((*BOUND.get(), name))
    yield


class Binds(Observer):
    """Binds names that tell the run and the step."""

    def __init__(self, name="a", manager=bind):
        self.name = name
        self.manager = manager

    def in_process(self, invocation):
        return functools.partial(self.manager, f"{self.name} {invocation.step}")


class Faulty:
    """A context manager that raises in one of its methods."""

    def __init__(self, where):
        self.where = where

    def __call__(self):
        if self.where == "call":
            raise OSError(self.where)
        return self

    def __enter__(self):
        if self.where == "enter":
            raise SystemExit(self.where)

    def __exit__(self, *_):
        if self.where == "exit":
            raise OSError(self.where)
        return True

    def __reduce__(self):
        if self.where == "pickle":
            raise OSError(self.where)
        if self.where == "import":
            return json.loads, ("no json",)
        return Faulty, (self.where,)


class Faults(Observer):
    """Puts a faulty context manager around the body."""

    def __init__(self, where):
        self.where = where

    def in_process(self, invocation):
        if self.where == "method":
            raise OSError(self.where)
        return Faulty(self.where)


def export_to_a_file(path):
    """Install a tracer provider in this process that writes its spans to a file."""
    from opentelemetry import trace  # noqa: PLC0415 - only in processes that trace
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class ToFile(SpanExporter):
        def export(self, spans):
            with Path(path).open("a") as file:
                for span in spans:
                    found = (
                        span.name,
                        span.context.span_id,
                        span.context.trace_id,
                        span.parent.span_id,
                    )
                    file.write(json.dumps(found) + "\n")
            return SpanExportResult.SUCCESS

    with Path(f"{path}.processes").open("a") as file:
        file.write(f"{os.getpid()}\n")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)


class TracedCrunch(Workflow):
    @step(in_process=True)
    @staticmethod
    def crunch(ctx: Context, ev: StartEvent) -> StopEvent:
        import trio  # noqa: PLC0415 - only here
        from opentelemetry import baggage, trace  # noqa: PLC0415 - only in processes that trace

        from sluicegate.llms import MockLLM  # noqa: PLC0415

        with trace.get_tracer("user").start_as_current_span("in the process"):
            trio.run(MockLLM().acomplete, "hello")
            return StopEvent(result=baggage.get_baggage("tenant"))
