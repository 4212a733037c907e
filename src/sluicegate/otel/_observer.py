"""The observer that makes spans and measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from opentelemetry import metrics, propagate, trace

from sluicegate._observers import Observer

from ._in_flight import counts_of
from ._instruments import Instruments
from ._names import SCOPE, captures_values, workflow_names
from ._process import ProcessSpan
from ._run import RunTrace


if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from sluicegate._observers import Invocation, RunInfo
    from sluicegate.records import Record


@final
class OpenTelemetryObserver(Observer):
    """Traces and measures runs with OpenTelemetry.

    ::

        workflow = Writer(observers=[OpenTelemetryObserver()])
        with sluicegate.observe(OpenTelemetryObserver()):  # or every run that begins in the block
            ...

    **Spans.** A run is ``invoke_workflow {class}``, a child of the span that is current where the run
    begins. Its steps are its children, ``step {name}``, and each is linked to the spans of the steps
    that emitted its events. A step's span is current in the step, in its tasks, in the thread of a
    ``def`` step and in its worker process, so spans that the step opens, the run of a child workflow
    and model calls, ``chat {model}``, are inside it. So are its waits, from a millisecond on:
    ``wait for person``, ``wait for event``, ``wait for limiter`` and so on.

    **Outcomes.** ``sluicegate.outcome`` is ``"completed"``, ``"failed"``, ``"cancelled"`` or, for a run,
    ``"timed_out"``, ``"detached"`` or ``"parked"``. Failures and timeouts have the status ``ERROR`` and ``error.type``;
    the exception is recorded once, in the innermost span. A cancelled span has no error: its attributes
    show who asked for the cancellation and why. The span of a durable run that continues elsewhere has an
    error only if its lease was lost or its store has failed.

    **Resuming.** A snapshot contains the context of its run's trace. The resumed run begins a new
    trace, or continues the one that is current where it begins, and is linked to the span of the run
    before: a trace that stays open for days is more than most systems keep.

    **Measurements** are histograms of the durations of runs, steps, queues, waits and model calls, of
    the tokens used, and counts of the runs, steps and questions that are active.

    Args:
        tracer_provider: Makes the spans; by default OpenTelemetry's global one.
        meter_provider: Makes the measurements; by default the global one.
        capture_values: Show events and results in the spans of steps, and messages in those of model
            calls. By default only if ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is true: they
            may contain personal data.
        set_up_process: A function of a module, called once in each worker process before its first
            step; it installs the providers there, because a new process has none. Spans of a worker
            process are exported before the step's result is returned.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        capture_values: bool | None = None,
        set_up_process: Callable[[], object] | None = None,
    ) -> None:
        names = workflow_names()
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
        self._instruments = Instruments(meter, names.duration_metric)
        self._counts = counts_of(meter_provider)
        self._workflow_name = names.name
        self._captures = captures_values() if capture_values is None else capture_values
        self._set_up_process = set_up_process
        self._runs: dict[RunInfo, RunTrace] = {}

    def __repr__(self) -> str:
        return f"<OpenTelemetryObserver, {len(self._runs)} runs>"

    def listen(self, run: RunInfo) -> Callable[[Record], object]:
        """Return the function that makes spans of the records of a run."""
        parent = None if run.parent is None else self._runs.get(run.parent.run)
        self._runs[run] = trace_of_run = RunTrace(
            self,
            run,
            self._tracer,
            self._instruments,
            None if parent is None or run.parent is None else parent.steps.get(run.parent.number),
            counts=self._counts,
            workflow_name=self._workflow_name,
            captures_values=self._captures,
            on_end=self._runs.pop,
        )
        return trace_of_run.take

    def around_run(self, run: RunInfo) -> AbstractContextManager[object] | None:
        """Open the span of a run, and make it current in the run's context."""
        return self._runs.get(run)

    def around_step(self, invocation: Invocation) -> AbstractContextManager[object] | None:
        """Make the span of a step current in the step's context."""
        trace_of_run = self._runs.get(invocation.run)
        return None if trace_of_run is None else trace_of_run.around(invocation)

    def in_process(
        self, invocation: Invocation
    ) -> Callable[[], AbstractContextManager[object]] | None:
        """Return what makes the span of a step the parent of the spans in its worker process."""
        if invocation.run not in self._runs:
            return None
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return ProcessSpan(carrier, self._set_up_process, captures_values=self._captures)
