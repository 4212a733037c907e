"""A logging filter that adds the run and the step to each line."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, cast

from sluicegate._loop.cleanup import current_cleanup


if TYPE_CHECKING:
    from collections.abc import MutableMapping


class _Named(Protocol):
    """A graph or a step."""

    name: str


class _Run(Protocol):
    """The attributes of a run that the filter reads."""

    run_id: str
    graph: _Named


class _Worker(Protocol):
    """The attributes of the engine's worker that the filter reads. It is which is in the context of its step.

    ``number`` is that of the invocation, or 0 where nobody observes the run. A worker that has ended
    has no ``run`` any more.
    """

    run: _Run
    step: _Named | None
    number: int

    def delivered(self) -> tuple[Any, int]: ...


#: The attributes that each line gets, in this order.
FIELDS = ("run_id", "workflow", "step", "invocation", "attempt")


class RunLogFilter(logging.Filter):
    """Adds ``run_id``, ``workflow``, ``step``, ``invocation`` and ``attempt`` to each log line of a step.

    ::

        handler = logging.StreamHandler()
        handler.addFilter(RunLogFilter())
        handler.setFormatter(logging.Formatter("%(run_id)s %(step)s: %(message)s"))

    Add it to a handler. On a logger, it concerns only the lines that are logged with that very logger.
    It works in a step, in the tasks that the step starts and in the thread of a ``def`` step. Lines of a step
    in a worker process come to the handlers of the program, and so to this filter.

    It can also be one of structlog's processors: ``structlog.configure(processors=[RunLogFilter(), ...])``.

    The filter drops no line, adds nothing to the cost of a run, and is no checkpoint.

    Args:
        outside: The value of the attributes in lines that no step has logged, so that a format can
            name them in any case; also that of ``invocation`` where the run has no observer, because
            its invocations have no numbers then.
    """

    def __init__(self, *, outside: object = "-") -> None:
        super().__init__()
        self._outside = outside

    def __repr__(self) -> str:
        return f"RunLogFilter(outside={self._outside!r})"

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes to a record; return True."""
        found = _find()
        for name in FIELDS:
            setattr(record, name, self._outside if found is None else found[name])
        if found is not None and found["invocation"] is None:
            record.invocation = self._outside
        return True

    def __call__(
        self,
        logger: Any,  # noqa: ARG002 - structlog's interface
        method_name: str,  # noqa: ARG002
        event_dict: MutableMapping[str, Any],
    ) -> MutableMapping[str, Any]:
        """Add the fields to an event of structlog, unless it has them; outside of steps, add nothing."""
        for name, value in (_find() or {}).items():
            if value is not None:
                event_dict.setdefault(name, value)
        return event_dict


def _find() -> dict[str, Any] | None:
    """Return the fields for the current context; None outside of a step."""
    worker = cast("_Worker | None", current_cleanup.get())
    run, step = getattr(worker, "run", None), getattr(worker, "step", None)
    if worker is None or run is None or step is None:
        return None
    values = (
        run.run_id,
        run.graph.name,
        step.name,
        worker.number or None,
        worker.delivered()[1],
    )
    return dict(zip(FIELDS, values, strict=True))
