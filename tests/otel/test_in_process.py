"""The trace of a step that runs in a worker process."""

from __future__ import annotations

import functools
import json

import pytest
from opentelemetry import baggage, context

from tests.observed_in_process import TracedCrunch, export_to_a_file


@pytest.mark.anyio
@pytest.mark.slow_for("asyncio")
async def test_spans_of_a_worker_process_are_inside_the_step(make_traced, tmp_path):
    """The process installs its own provider; its spans belong to the step's, and are exported at once."""
    path = tmp_path / "spans"
    traced = make_traced(set_up_process=functools.partial(export_to_a_file, str(path)))
    token = context.attach(baggage.set_baggage("tenant", "7"))
    try:
        workflow = TracedCrunch(observers=[traced.observer])
        assert [await workflow.run(), await workflow.run()] == ["7", "7"]
    finally:
        context.detach(token)

    steps = [[s.context.trace_id, s.context.span_id] for s in traced.named("step crunch")]
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [name for name, *_ in found] == ["chat mock", "in the process"] * 2
    assert [ids for _, _, *ids in found[1::2]] == steps
    assert [call[3] for call in found[::2]] == [outer[1] for outer in found[1::2]]
    set_up = (tmp_path / "spans.processes").read_text().split()
    assert len(set_up) == len(set(set_up))


@pytest.mark.anyio
@pytest.mark.slow_for("asyncio")
async def test_a_worker_process_without_providers_traces_nothing(traced):
    """The step runs as without tracing; its own span is made by the program."""
    assert await TracedCrunch(observers=[traced.observer]).run() is None
    assert dict(traced.tree())["step crunch"] == "invoke_workflow TracedCrunch"
    assert traced.named("in the process") == []
