"""The histograms of runs, steps, waits and model calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from ._names import (
    CALL_SECONDS,
    FIRST_CHUNK_METRIC,
    OPERATION_DURATION_METRIC,
    QUEUE_DURATION_METRIC,
    SECONDS,
    STEP_DURATION_METRIC,
    TOKEN_USAGE_METRIC,
    TOKENS,
    WAIT_DURATION_METRIC,
)


if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.metrics import Histogram, Meter


@final
class Instruments:
    """The histograms of one meter.

    Args:
        meter: The meter.
        run_duration: The name of the histogram of the durations of runs.
    """

    def __init__(self, meter: Meter, run_duration: str) -> None:
        def seconds(name: str, what: str, bounds: Sequence[float] = SECONDS) -> Histogram:
            return meter.create_histogram(
                name, unit="s", description=what, explicit_bucket_boundaries_advisory=bounds
            )

        self.run_duration = seconds(run_duration, "How long runs take.")
        self.step_duration = seconds(
            STEP_DURATION_METRIC, "How long invocations of a step take, their waits included."
        )
        self.queue_duration = seconds(
            QUEUE_DURATION_METRIC, "How long invocations are queued before a worker takes them."
        )
        self.wait_duration = seconds(
            WAIT_DURATION_METRIC, "How long steps wait for people, events, branches and limiters."
        )
        self.call_duration = seconds(
            OPERATION_DURATION_METRIC, "How long calls of a model take.", CALL_SECONDS
        )
        self.first_chunk = seconds(
            FIRST_CHUNK_METRIC, "How long the first chunk of a reply takes.", CALL_SECONDS
        )
        self.token_usage = meter.create_histogram(
            TOKEN_USAGE_METRIC,
            unit="{token}",
            description="Tokens of a request and of its reply.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )
