"""The span of a step whose body runs in a worker process."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, final

from opentelemetry import context as context_api
from opentelemetry import metrics, propagate, trace

from sluicegate.llms._calls import call_listeners

from ._instruments import Instruments
from ._models import CallSpan
from ._names import SCOPE, workflow_names


if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sluicegate.llms._calls import CallReport, ModelCall


#: Milliseconds that the exporters of a worker process may take for the spans of one step.
FLUSH_TIMEOUT = 5_000


@final
class ProcessSpan:
    """Makes the span of a step current in a worker process. It is pickled, with the context of the trace.

    Args:
        carrier: The context of the trace, as the propagator writes it.
        set_up: Called once in the process, before the first step.
        captures_values: Whether spans of model calls show the messages.
    """

    def __init__(
        self,
        carrier: dict[str, str],
        set_up: Callable[[], object] | None,
        *,
        captures_values: bool,
    ) -> None:
        self._carrier = carrier
        self._set_up = set_up
        self._captures = captures_values

    def __getstate__(self) -> Any:
        return self._carrier, self._set_up, self._captures

    def __setstate__(self, state: Any) -> None:
        self._carrier, self._set_up, self._captures = state

    @contextmanager
    def __call__(self) -> Generator[None]:
        """Make the step's span the parent of the spans that the body opens here."""
        if self._set_up is not None:
            _set_up_once(self._set_up)
        token = context_api.attach(propagate.extract(self._carrier))
        listening = call_listeners.set((self._begin_call,))
        try:
            yield
        finally:
            call_listeners.reset(listening)
            context_api.detach(token)
            # The engine kills idle and cancelled processes, so nothing may wait for a later batch.
            flush = getattr(trace.get_tracer_provider(), "force_flush", None)
            if flush is not None:
                flush(FLUSH_TIMEOUT)

    def _begin_call(self, call: ModelCall) -> CallReport:
        tracer = trace.get_tracer(SCOPE)
        return CallSpan(tracer, _instruments(), call, None, captures_values=self._captures)


#: The names of the functions that have set up this process: a partial is a new object each time.
_was_set_up: set[str] = set()


def _set_up_once(function: Callable[[], object]) -> None:
    plain = getattr(function, "func", function)
    key = f"{plain.__module__}.{plain.__qualname__}"
    if key not in _was_set_up:
        _was_set_up.add(key)
        function()


@cache
def _instruments() -> Instruments:
    return Instruments(metrics.get_meter(SCOPE), workflow_names().duration_metric)
