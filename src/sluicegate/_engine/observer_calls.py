"""The calls of the observers of one run. What an observer raises stays here."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sluicegate._exceptions import URGENT, is_a, links_of, set_links, set_trace, trace_of
from sluicegate._observers import Observer


if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context as ContextVars

    from sluicegate._events import Event
    from sluicegate._observers import Invocation, RunInfo
    from sluicegate.records import Record


LOGGER = logging.getLogger("sluicegate")

#: Context managers that were entered, each with its observer; innermost last.
Entered = list[tuple[Observer, Any]]


class ObserverCalls:
    """Calls the observers of one run.

    An observer that raises is logged and not called again in the run, except that the context
    managers that it has opened are left. So no exception leaves a method of this class. The exception
    of a strict observer, ``KeyboardInterrupt`` and ``SystemExit`` fail the run instead, through
    ``fail``: the engine may be in the middle of a change when it calls an observer.

    Args:
        observers: The observers, in the order in which they are called.
        info: The run, as they see it.
        fail: Makes an exception the outcome of the run.
    """

    __slots__ = (
        "_around_run",
        "_around_step",
        "_entered",
        "_fail",
        "_in_process",
        "_listeners",
        "_published",
        "_run_ended",
        "_run_started",
        "_step_ended",
        "_step_started",
        "_takers",
        "info",
        "tells_steps",
    )

    def __init__(
        self,
        observers: tuple[Observer, ...],
        info: RunInfo,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.info = info
        self._fail = fail
        self._around_run = _with(observers, "around_run")
        self._around_step = _with(observers, "around_step")
        self._run_started = _with(observers, "run_started")
        self._run_ended = _with(observers, "run_ended")
        self._step_started = _with(observers, "step_started")
        self._step_ended = _with(observers, "step_ended")
        self._published = _with(observers, "event_published")
        self._listeners = _with(observers, "listen")
        #: Those that want something entered around the bodies of process steps.
        self._in_process = _with(observers, "in_process")
        #: Whether any of them hears of single steps, other than by records.
        self.tells_steps = bool(
            self._around_step or self._step_started or self._step_ended or self._in_process
        )
        #: The functions that take the records, each with its observer.
        self._takers: list[tuple[Observer, Callable[[Record], object]]] = []
        #: The context managers that were entered around the run.
        self._entered: Entered = []

    # -- records

    def listen(self) -> Callable[[Record], object]:
        """Ask the observers for the functions that take records; return what to call with each."""

        def add(observer: Observer) -> None:
            take = observer.listen(self.info)
            if take is not None:
                self._takers.append((observer, take))

        for observer in self._listeners:
            self._tell(observer, "listen", add, observer)
        if len(self._takers) == 1 and getattr(self._takers[0][1], "__name__", "") == "append":
            taker = self._takers[0][1]
            if isinstance(getattr(taker, "__self__", None), list):
                return taker  # it cannot raise
        return self._give

    def _give(self, record: Record) -> None:
        for observer, take in self._takers:
            try:
                take(record)
            except BaseException as error:  # noqa: ASYNC103, BLE001 - logged
                self._note_fault(observer, "listen", error)

    # -- the run

    def begin_run(self, variables: ContextVars) -> None:
        """Enter what the observers put around the run, and tell them of its start."""
        self._entered = self._enter(self._around_run, "around_run", self.info, variables)
        for observer in self._run_started:
            self._tell(observer, "run_started", variables.run, observer.run_started, self.info)

    def end_run(self, variables: ContextVars) -> None:
        """Leave what is around the run, and tell the observers of its end."""
        self.leave(self._entered, variables, self.info.error)
        for observer in self._run_ended:
            self._tell(observer, "run_ended", observer.run_ended, self.info)

    def published(self, event: Event) -> None:
        """Tell the observers of an event on the stream."""
        for observer in self._published:
            self._tell(observer, "event_published", observer.event_published, self.info, event)

    # -- steps

    def begin_step(self, invocation: Invocation, variables: ContextVars) -> Entered:
        """Enter what the observers put around a step, and tell them of it; return what was entered."""
        entered = self._enter(self._around_step, "around_step", invocation, variables)
        for observer in self._step_started:
            self._tell(observer, "step_started", variables.run, observer.step_started, invocation)
        return entered

    def around_in_process(
        self, invocation: Invocation, pickled: Callable[[object], bytes]
    ) -> tuple[tuple[str, bytes], ...]:
        """Return what to enter around a body in a worker process, each with the observer's name.

        Called in the context of the step. An object that cannot be pickled is a fault of the observer.
        """
        found: list[tuple[str, bytes]] = []

        def add(observer: Observer) -> None:
            around = observer.in_process(invocation)
            if around is not None:
                found.append((type(observer).__name__, pickled(around)))

        for observer in self._in_process:
            self._tell(observer, "in_process", add, observer)
        return tuple(found)

    def end_step(self, invocation: Invocation) -> None:
        """Tell the observers that a step has ended."""
        for observer in self._step_ended:
            self._tell(observer, "step_ended", observer.step_ended, invocation)

    # -- context managers, and faults

    def _tell(
        self, observer: Observer, method: str, function: Callable[..., object], *about: object
    ) -> None:
        """Call a method of an observer; log what it raises, and mute it."""
        try:
            function(*about)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - logged
            self._note_fault(observer, method, error)

    def _enter(
        self, observers: tuple[Observer, ...], method: str, about: object, variables: ContextVars
    ) -> Entered:
        """Enter what a method of the observers returns; return what was entered."""
        entered: Entered = []

        def enter(observer: Observer) -> None:
            manager: Any = getattr(observer, method)(about)
            if manager is not None:
                manager.__enter__()
                entered.append((observer, manager))

        for observer in observers:
            self._tell(observer, method, variables.run, enter, observer)
        return entered

    def leave(self, entered: Entered, variables: ContextVars, error: BaseException | None) -> None:
        """Leave context managers, in reverse order; neither what they return nor what they raise changes ``error``."""
        if not entered:
            return
        kind = None if error is None else type(error)
        trace = None if error is None else trace_of(error)
        links = None if error is None else links_of(error)
        while entered:
            observer, manager = entered.pop()
            try:
                if variables.run(manager.__exit__, kind, error, trace) and error is not None:
                    LOGGER.error(
                        "the context manager of the observer %s returned a true value for %s, which "
                        "is ignored: an observer cannot suppress an exception",
                        type(observer).__name__,
                        type(error).__name__,
                    )
            except BaseException as fault:  # noqa: ASYNC103, BLE001 - logged
                if fault is not error:  # a generator that lets it pass raises the same object
                    self._note_fault(observer, "__exit__", fault)
        if error is not None and links is not None:
            set_links(error, links)
            set_trace(error, trace)

    def _note_fault(self, observer: Observer, method: str, error: BaseException) -> None:
        """Log what an observer has raised, and mute it."""
        try:
            if observer.strict or is_a(error, URGENT):
                self._fail(error)
                return
            LOGGER.error(
                "the observer %s raised %s in %s; it is not called again in the run %s",
                type(observer).__name__,
                type(error).__name__,
                method,
                self.info.run_id,
                exc_info=error,
            )
        finally:
            self._mute(observer)

    def _mute(self, observer: Observer) -> None:
        for name in (
            "_around_run",
            "_around_step",
            "_run_started",
            "_run_ended",
            "_step_started",
            "_step_ended",
            "_published",
            "_in_process",
        ):
            setattr(self, name, tuple(o for o in getattr(self, name) if o is not observer))
        self._takers = [taker for taker in self._takers if taker[0] is not observer]


def _with(observers: tuple[Observer, ...], method: str) -> tuple[Observer, ...]:
    """Return the observers that override a method."""
    default = getattr(Observer, method)
    return tuple(
        o for o in observers if getattr(getattr(o, method), "__func__", None) is not default
    )
