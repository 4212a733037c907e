"""The works, in the order in which they are measured and shown."""

from benchmarks._model import Work
from benchmarks.works import (
    cancel,
    chain,
    concurrent_runs,
    fairness,
    fan_out,
    idle_runs,
    importing,
    latency,
    short_run,
    slow_reader,
    snapshot,
    state,
    stream,
    timeout,
)


WORKS: tuple[Work, ...] = (
    *chain.WORKS,
    *fairness.WORKS,
    *fan_out.WORKS,
    *stream.WORKS,
    *slow_reader.WORKS,
    *latency.WORKS,
    *short_run.WORKS,
    *concurrent_runs.WORKS,
    *idle_runs.WORKS,
    *cancel.WORKS,
    *timeout.WORKS,
    *state.WORKS,
    *snapshot.WORKS,
    *importing.WORKS,
)
BY_ID = {work.id: work for work in WORKS}
