"""Traces across HTTP: a run continues the trace of its request, and the response says in which it is.

Nothing of OpenTelemetry is imported here: without it in the program there is nothing to continue.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sluicegate._handler import run_of
from sluicegate._loop import current_backend


if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sluicegate._handler import WorkflowHandler

#: The header of a response that names the span of its run.
HEADER = "traceparent"


@contextmanager
def trace_of(headers: Mapping[str, str]) -> Generator[None]:
    """Make the trace of a request current in the block, unless one is current already."""
    if "opentelemetry.trace" not in sys.modules or HEADER not in headers:
        yield
        return
    from opentelemetry import context, propagate, trace  # noqa: PLC0415 - it is in use

    if trace.get_current_span().get_span_context().is_valid:  # a middleware has opened a span
        yield
        return
    token = context.attach(propagate.extract(dict(headers)))
    try:
        yield
    finally:
        context.detach(token)


async def wait_for_trace(handler: WorkflowHandler[Any]) -> None:
    """Wait until a run that has just been started has its span, if it is going to have one. A checkpoint."""
    backend = current_backend()
    await backend.checkpoint()
    if "opentelemetry.trace" in sys.modules:
        for _ in range(5):
            if run_of(handler).carrier:
                return
            await backend.checkpoint()


def trace_header(handler: WorkflowHandler[Any]) -> dict[str, str]:
    """Return the header that names the span of a run; none for a run without one."""
    value = run_of(handler).carrier.get(HEADER)
    return {} if value is None else {HEADER: value}
