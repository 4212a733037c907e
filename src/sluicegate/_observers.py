"""Observers: objects that the engine calls when a run begins, ends, runs a step or publishes."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TYPE_CHECKING

from sluicegate._errors import brief


if TYPE_CHECKING:
    from sluicegate._events import Event


class Observer:
    """A base class for observers of runs: override the methods that you need.

    The engine calls the methods synchronously; they must return quickly and must not raise.
    ``invocation`` numbers the step invocations of a run from 1, in the order in which they begin.
    """

    def run_started(self, run_id: str, workflow: str, event: Event | None) -> None:
        """A run has begun with ``event``; None if it continues from a snapshot."""

    def step_started(self, run_id: str, step: str, invocation: int, event: object) -> None:
        """A step has begun. The ``event`` of a join is the list or tuple of its events."""

    def step_ended(
        self, run_id: str, step: str, invocation: int, result: object, error: BaseException | None
    ) -> None:
        """A step has returned ``result`` or raised ``error``."""

    def event_published(self, run_id: str, event: Event) -> None:
        """An event was published on the stream."""

    def run_ended(self, run_id: str, status: str, error: BaseException | None) -> None:
        """A run has ended, and all of its tasks have."""


class Verbose(Observer):
    """Prints a line to standard error for each call, with the time since the run began."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._running: dict[tuple[str, int], float] = {}

    def _print(self, run_id: str, text: str) -> None:
        since = perf_counter() - self._began.get(run_id, perf_counter())
        print(f"[{run_id} {since:9.4f}s] {text}", file=sys.stderr)  # noqa: T201

    def run_started(self, run_id: str, workflow: str, event: Event | None) -> None:
        self._began[run_id] = perf_counter()
        begins = "resumes" if event is None else f"begins with {brief(event)}"
        self._print(run_id, f"{workflow} {begins}")

    def step_started(self, run_id: str, step: str, invocation: int, event: object) -> None:
        self._running[run_id, invocation] = perf_counter()
        self._print(run_id, f"{step} #{invocation} takes {brief(event)}")

    def step_ended(
        self, run_id: str, step: str, invocation: int, result: object, error: BaseException | None
    ) -> None:
        took = perf_counter() - self._running.pop((run_id, invocation), perf_counter())
        what = f"returns {brief(result)}" if error is None else f"raises {brief(error)}"
        self._print(run_id, f"{step} #{invocation} {what} after {took * 1e3:.1f} ms")

    def event_published(self, run_id: str, event: Event) -> None:
        self._print(run_id, f"stream: {brief(event)}")

    def run_ended(self, run_id: str, status: str, error: BaseException | None) -> None:
        why = "" if error is None else f": {brief(error)}"
        self._print(run_id, f"{status}{why}")
        self._began.pop(run_id, None)


class Several(Observer):
    """Calls several observers in order."""

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers

    def run_started(self, run_id: str, workflow: str, event: Event | None) -> None:
        for observer in self._observers:
            observer.run_started(run_id, workflow, event)

    def step_started(self, run_id: str, step: str, invocation: int, event: object) -> None:
        for observer in self._observers:
            observer.step_started(run_id, step, invocation, event)

    def step_ended(
        self, run_id: str, step: str, invocation: int, result: object, error: BaseException | None
    ) -> None:
        for observer in self._observers:
            observer.step_ended(run_id, step, invocation, result, error)

    def event_published(self, run_id: str, event: Event) -> None:
        for observer in self._observers:
            observer.event_published(run_id, event)

    def run_ended(self, run_id: str, status: str, error: BaseException | None) -> None:
        for observer in self._observers:
            observer.run_ended(run_id, status, error)
