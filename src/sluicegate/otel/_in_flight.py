"""Counts of what is in flight: added up here, and read when a meter provider collects.

A measurement of OpenTelemetry's SDK costs about as much as a hop of a run with all of its records. Each
hop changes four of these counts, so they are observable instruments: a change costs an addition.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, final
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from ._names import (
    ACTIVE_RUNS_METRIC,
    ACTIVE_STEPS_METRIC,
    OPEN_QUESTIONS_METRIC,
    QUEUED_STEPS_METRIC,
    SCOPE,
)


if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import CallbackOptions, MeterProvider


#: Attributes of a measurement, as a key.
Labels: TypeAlias = tuple[tuple[str, str], ...]


@final
class InFlight:
    """A count for each set of attributes. Any thread may call the methods.

    A set of attributes stays, with the count 0: a series that ended would look as if it kept its
    last value. There is one for each step of each workflow.
    """

    __slots__ = ("_counts", "_lock")

    def __init__(self) -> None:
        self._counts: dict[Labels, int] = {}
        self._lock = Lock()

    def add(self, amount: int, labels: Labels) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + amount

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        """Return the counts; called by the meter provider."""
        with self._lock:
            counts = tuple(self._counts.items())
        return [Observation(count, dict(labels)) for labels, count in counts]


@final
class Counts:
    """The counts of all observers with the same meter provider."""

    def __init__(self) -> None:
        self.runs = InFlight()
        self.steps = InFlight()
        self.queued = InFlight()
        self.questions = InFlight()


# A provider keeps the first instrument of a name, with its callbacks, and gives it to all who ask for
# that name later. So the counts belong to the provider and not to the observer.
_of_providers: WeakKeyDictionary[Any, Counts] = WeakKeyDictionary()
_of_global = Counts()


def counts_of(provider: MeterProvider | None) -> Counts:
    """Return the counts that a meter provider reports; None stands for the global one."""
    if provider is None or provider is metrics.get_meter_provider():
        counts = _of_global
    else:
        counts = _of_providers.setdefault(provider, Counts())
    meter = metrics.get_meter(SCOPE, meter_provider=provider)
    for name, unit, what, count in (
        (ACTIVE_RUNS_METRIC, "{run}", "Runs that have begun and not ended.", counts.runs),
        (
            ACTIVE_STEPS_METRIC,
            "{invocation}",
            "Invocations that have begun and not ended.",
            counts.steps,
        ),
        (QUEUED_STEPS_METRIC, "{invocation}", "Queued invocations.", counts.queued),
        (OPEN_QUESTIONS_METRIC, "{question}", "Open questions to people.", counts.questions),
    ):
        meter.create_observable_up_down_counter(name, [count.observe], unit, what)
    return counts
