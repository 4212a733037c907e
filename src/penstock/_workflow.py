"""Workflows: a class of steps, built once, run any number of times."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from uuid import uuid4

from penstock._errors import WorkflowRuntimeError, WorkflowValidationError
from penstock._graph import SKIPPABLE, Graph, graph_of
from penstock._handler import WorkflowHandler
from penstock._observe import Observer, Several, Verbose
from penstock._steps import is_seconds
from penstock._streams import EventLog


if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    from penstock._events import StartEvent

    # A plain ``Workflow`` is a ``Workflow[Any]``, to the strictest checker too.
    R = TypeVarWithDefault("R", default=Any)
else:
    R = TypeVar("R")


class Workflow(Generic[R]):
    """A definition of event-driven work: subclass it, and make async methods steps by ``@step``.

    An object of it is checked when it is built, never changes, and may be run any number of
    times at once. ``Workflow[str]`` says that ``await workflow.run()`` gives a ``str``.

    Args:
        timeout: Seconds that a run may take; None means no limit.
        verbose: Print a line to standard error for everything that happens.
        stream_buffer: How many events a reader may lag before ``await ctx.stream.send()`` waits.
        stream_history: How many events are kept for readers that come late.
        skip_graph_checks: Checks to leave out, of ``"reachability"``, ``"terminal_event"`` and
            ``"dead_end"``.
        observers: What to tell of everything that happens.

    Raises:
        WorkflowValidationError: The steps and events do not fit together (every fault is in the
            message, with its fix), or an option is not valid.
    """

    def __init__(
        self,
        *,
        timeout: float | None = None,
        verbose: bool = False,
        stream_buffer: int = 64,
        stream_history: int = 10_000,
        skip_graph_checks: Iterable[str] = (),
        observers: Iterable[Observer] = (),
    ) -> None:
        if isinstance(skip_graph_checks, str):
            msg = (
                f"{type(self).__name__}(skip_graph_checks={skip_graph_checks!r}); expected a list "
                f"of names: [{skip_graph_checks!r}]"
            )
            raise WorkflowValidationError(msg)
        skip = frozenset(skip_graph_checks)
        self._check_options(timeout, stream_buffer, stream_history, skip)
        graph = graph_of(type(self))
        graph.check(skip)
        watching = (*((Verbose(),) if verbose else ()), *_checked(type(self).__name__, observers))
        self.__graph = graph
        self.__timeout = timeout
        self.__buffer = stream_buffer
        self.__history = stream_history
        self.__observer: Observer | None = (
            None if not watching else watching[0] if len(watching) == 1 else Several(watching)
        )

    def _check_options(
        self, timeout: float | None, buffer: int, history: int, skip: frozenset[str]
    ) -> None:
        name = type(self).__name__
        if not (timeout is None or is_seconds(timeout)):
            msg = f"{name}(timeout={timeout!r}); expected seconds above 0, or None for no limit"
            raise WorkflowValidationError(msg)
        for option, value in (("stream_buffer", buffer), ("stream_history", history)):
            if type(value) is not int or value < 1:
                msg = f"{name}({option}={value!r}); expected an int of at least 1"
                raise WorkflowValidationError(msg)
        unknown = skip.difference(SKIPPABLE)
        if unknown:
            msg = (
                f"{name}(skip_graph_checks=...) names {', '.join(sorted(map(repr, unknown)))}; "
                f"expected some of {', '.join(map(repr, SKIPPABLE))}"
            )
            raise WorkflowValidationError(msg)

    def run(
        self, *, start_event: StartEvent | None = None, run_id: str | None = None, **fields: Any
    ) -> WorkflowHandler[R]:
        """Make a run, not yet started. Not a checkpoint; needs no event loop.

        Args:
            start_event: The event to begin with; else it is made from ``fields``.
            run_id: An identifier of your own; by default a new one.
            **fields: The fields of the workflow's start event.

        Returns:
            A handler; await it, enter it, or hand it a nursery.

        Raises:
            TypeError: The fields do not fit the start event, or it is not of the class that this
                workflow begins with.
            WorkflowRuntimeError: ``super().__init__()`` was not called.
        """
        graph = self._built()
        expected = graph.start_event
        if start_event is None:
            start_event = expected(**fields)
        elif fields:
            names = ", ".join(fields)
            msg = f"run() was given both a start_event and {names}; expected one or the other"
            raise TypeError(msg)
        elif not isinstance(start_event, expected):
            msg = (
                f"{graph.name} begins with {expected.__name__}, and was given "
                f"{type(start_event).__name__}; expected "
                f"run(start_event={expected.__name__}(...)) or its fields as keywords"
            )
            raise TypeError(msg)
        return WorkflowHandler(
            self,
            graph,
            run_id=_new_run_id() if run_id is None else run_id,
            start_event=start_event,
            timeout=self.__timeout,
            log=EventLog(window=self.__buffer, history=self.__history),
            observer=self.__observer,
        )

    def _built(self) -> Graph:
        try:
            return self.__graph
        except AttributeError:
            name = type(self).__name__
            msg = (
                f"{name}.__init__ does not call its parent's; expected "
                "`super().__init__(timeout=...)` in it"
            )
            raise WorkflowRuntimeError(msg) from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self._built().steps)} steps>"


def _checked(name: str, observers: Any) -> list[Observer]:
    listed: list[Any] = [observers]
    if isinstance(observers, Iterable):
        listed = list(cast("Iterable[Any]", observers))
    if isinstance(observers, Observer) or not all(isinstance(o, Observer) for o in listed):
        msg = (
            f"{name}(observers={observers!r}); expected a list of objects whose classes are "
            "derived from penstock.Observer"
        )
        raise WorkflowValidationError(msg)
    return listed


# An identifier costs a hundredth of a run this way: one random part for the process, and a number.
_process = uuid4().hex[:12]
_numbers = count(1)


def _begin_process() -> None:
    global _process  # noqa: PLW0603 - a forked process must not go on with its parent's numbers
    _process = uuid4().hex[:12]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_process)


def _new_run_id() -> str:
    return f"{_process}-{next(_numbers)}"
