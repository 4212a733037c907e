"""Workflows: a class of steps, built once, run any number of times."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, Literal, Never, Self, TypeVar, cast

from sluicegate._annotations import class_of, is_count, is_seconds
from sluicegate._context import run_of_context
from sluicegate._definition.checks import DISABLED, SKIPPABLE, check_graph
from sluicegate._definition.decorators import add_step
from sluicegate._definition.graph import Graph, forget_graph, graph_of
from sluicegate._engine.run import Run, RunOptions
from sluicegate._engine.step_operations import StepOperations
from sluicegate._errors import (
    SnapshotError,
    WorkflowRuntimeError,
    WorkflowValidationError,
    brief,
    unknown_name,
    unknown_options,
)
from sluicegate._events.generics import fitting, give_arguments
from sluicegate._handler import WorkflowHandler
from sluicegate._loop.limits import MAX_THREADS, ConcurrencyLimit
from sluicegate._observers import Observer, Verbose, checked, print_line
from sluicegate._streams import EventLog


if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import TypeVar as TypeVarWithDefault

    from sluicegate._context import Context
    from sluicegate._engine.resource_scopes import ResourceScope
    from sluicegate._engine.snapshot_read import SavedRun
    from sluicegate._events import StartEvent

    # A plain ``Workflow`` is a ``Workflow[Any]`` for the strictest type checker too.
    R = TypeVarWithDefault("R", default=Any)
else:
    R = TypeVar("R")


#: Names of LlamaIndex Workflows that a workflow does not have, and their replacements.
_OLDER = {
    "events": "`sluicegate check` and the drawing, which show them",
    "run_step": "`sluicegate.testing.step_through(workflow, ...)`",
    "runtime": "the event loop that runs",
    "send_event": "`ctx.send_event(event)` in a step, and `handler.send_event(event)` outside",
    "start_event_class": "`sluicegate check`, which shows it",
    "stop_event_class": "`sluicegate check`, which shows it",
    "stream_events": "`handler = workflow.run(...)` and `handler.stream_events()`",
    "workflow_name": "`type(workflow).__name__`",
}
_OLDER_OPTIONS = {
    "resource_manager": "`Annotated[T, Resource(factory)]` in the steps",
    "runtime": "no runtime: the run belongs to the event loop that runs",
    "serializer": "`serializable=[MyClass, ...]`",
    "service_manager": "`Annotated[T, Resource(factory)]` in the steps",
    "workflow_name": "the name of the class",
}


class Workflow(Generic[R]):
    """The base class of workflows: subclass it and decorate its steps with ``@step``.

    A workflow object is checked when it is built, is immutable, and supports any number of
    concurrent runs. ``Workflow[str]`` declares that the result of a run is a ``str``.

    Args:
        timeout: Seconds that a run may take; None means no limit.
        verbose: Print a line to standard error for each step and each published event.
        stream_buffer: How many events a reader may lag before ``await ctx.stream.send()`` waits.
        stream_history: How many events are kept for late readers.
        stream: What happens to the events that steps send with ``ctx.stream.send()`` in a durable run:
            ``"live"``, they are shown at once, and end with the process; or ``"durable"``, they are kept
            in the run's store, and shown once it has them. Runs without a store ignore it.
        skip_graph_checks: Checks to skip, of ``"reachability"``, ``"terminal_event"`` and
            ``"dead_end"``.
        observers: The observers of the runs; see :class:`Observer`.
        timeout_excludes_waiting: Whether the clock of the timeout pauses while the run is
            idle: no step runs, and the run waits for a person.
        num_concurrent_runs: How many runs of this object may be active in one event loop;
            further runs queue in order, and their timeouts start after the queue. None means no limit.
        max_threads: The number of threads for ``def`` steps in an event loop from which a step of
            this object gets no new thread. It then waits for one that computes; if all threads wait
            inside calls of their context, the step fails.
        serializable: Classes whose objects a snapshot may contain, in addition to the classes in the
            annotations of its events and its state.
        disable_validation: Skip all optional checks, and deliver undeclared events that
            steps return or send.
        strict_none: Whether a step that returns None without ``| None`` in its signature fails
            the run. By default its branch ends there, and the logger ``sluicegate`` warns.
        **older: Accepts no value: options of LlamaIndex Workflows raise an error with the new spelling.

    Raises:
        WorkflowValidationError: The steps and events do not fit together (the message lists every
            problem with its fix), or an option is not valid.
        TypeError: There is no such option.
    """

    def __init__(
        self,
        *,
        timeout: float | None = None,
        verbose: bool = False,
        stream_buffer: int = 64,
        stream_history: int = 10_000,
        stream: Literal["live", "durable"] = "live",
        skip_graph_checks: Iterable[str] = (),
        observers: Iterable[Observer] = (),
        timeout_excludes_waiting: bool = False,
        num_concurrent_runs: int | None = None,
        max_threads: int = MAX_THREADS,
        serializable: Iterable[type] = (),
        disable_validation: bool = False,
        strict_none: bool = False,
        **older: Never,
    ) -> None:
        if older:
            name = type(self).__name__
            raise TypeError(unknown_options(f"{name}()", older, _OLDER_OPTIONS))
        if isinstance(skip_graph_checks, str) or not isinstance(skip_graph_checks, Iterable):
            msg = (
                f"{type(self).__name__}(skip_graph_checks={brief(skip_graph_checks)}); expected a list "
                f"of names: [{brief(skip_graph_checks)}]"
            )
            raise WorkflowValidationError(msg)
        skip = frozenset(skip_graph_checks)
        self._check_options(timeout, stream_buffer, stream_history, skip)
        if disable_validation:
            skip = frozenset(DISABLED)
        name = type(self).__name__
        if not (num_concurrent_runs is None or is_count(num_concurrent_runs)):
            msg = f"{name}(num_concurrent_runs={brief(num_concurrent_runs)}); expected an int of at least 1, or None"
            raise WorkflowValidationError(msg)
        if stream not in ("live", "durable"):
            msg = f"{name}(stream={brief(stream)}); expected 'live' or 'durable': `{name}(stream='durable')`"
            raise WorkflowValidationError(msg)
        if not is_count(max_threads):
            msg = f"{name}(max_threads={max_threads!r}); expected an int of at least 1"
            raise WorkflowValidationError(msg)
        graph = graph_of(type(self), is_strict=strict_none, is_lenient=disable_validation)
        check_graph(graph, skip)
        self.__skip = skip
        watching = (*((Verbose(print_line),) if verbose else ()), *_checked(name, observers))
        classes = _checked_classes(type(self).__name__, serializable, graph)
        self.__graph = graph
        self.__buffer = stream_buffer
        self.__history = stream_history
        self.__options = RunOptions(
            timeout=timeout,
            excludes_waiting=timeout_excludes_waiting and timeout is not None,
            run_limit=None
            if num_concurrent_runs is None
            else ConcurrencyLimit(num_concurrent_runs),
            max_threads=max_threads,
            resources=_open_scope() if graph.needs_scope else None,
            observers=watching,
            classes=classes,
            stream=stream,
        )

    def _check_options(
        self, timeout: float | None, buffer: int, history: int, skip: frozenset[str]
    ) -> None:
        name = type(self).__name__
        if not (timeout is None or is_seconds(timeout)):
            msg = (
                f"{name}(timeout={brief(timeout)}); expected seconds above 0, or None for no limit"
            )
            raise WorkflowValidationError(msg)
        for option, value in (("stream_buffer", buffer), ("stream_history", history)):
            if not is_count(value):
                msg = f"{name}({option}={brief(value)}); expected an int of at least 1"
                raise WorkflowValidationError(msg)
        unknown = skip.difference(SKIPPABLE)
        if unknown:
            msg = (
                f"{name}(skip_graph_checks=...) names {', '.join(sorted(map(repr, unknown)))}; "
                f"expected some of {', '.join(map(repr, SKIPPABLE))}"
            )
            raise WorkflowValidationError(msg)

    @classmethod
    def add_step(cls, function: Callable[..., Any]) -> None:
        """Make a function a step of this class, as ``@step(workflow=...)`` does.

        It is called with its events and its context, without ``self``. Subclasses inherit it.
        Existing workflow objects do not change.

        Raises:
            WorkflowValidationError: It is not marked ``@step``, or the class already has its name.
        """
        add_step(cls, function)
        forget_graph(cls)

    def validate(self) -> bool:
        """Check the graph again, with all checks that are not skipped.

        Returns:
            Whether its runs may wait for answers from outside.

        Raises:
            WorkflowValidationError: As the constructor.
        """
        graph = self._built()
        check_graph(graph, self.__skip)
        return graph.asks

    def run(
        self,
        *,
        start_event: StartEvent | None = None,
        run_id: str | None = None,
        ctx: Context[Any] | None = None,
        **fields: Any,
    ) -> WorkflowHandler[R]:
        """Create a run without starting it. Not a checkpoint; needs no event loop.

        Args:
            start_event: The start event; by default it is created from ``fields``.
            run_id: Your identifier of the run; by default a new one.
            ctx: A context with the initial state: ``Context(workflow)``, or
                ``handler.ctx`` of a run that has ended. A context from ``Context.from_dict()`` of an
                unfinished run resumes that run and takes no start event.
            **fields: The fields of the workflow's start event.

        Returns:
            A handler; await it, enter it, or give it to a nursery.

        Raises:
            TypeError: The fields do not fit the start event, or it is not of the class that this
                workflow begins with.
            WorkflowRuntimeError: ``super().__init__()`` was not called; or ``ctx`` belongs to an
                active run or to another workflow.
        """
        graph = self._built()
        _check_run_id(run_id)
        seed = None if ctx is None else self._saved_of(ctx)
        if seed is not None and not isinstance(seed, StepOperations) and seed.is_running:
            if start_event is not None or fields:
                msg = (
                    "run() was given a start event and the context of an unfinished run; expected "
                    "run(ctx=...) alone, because that run has already started"
                )
                raise TypeError(msg)
            return self._resume(seed, run_id)
        expected = graph.start_event
        if start_event is None:
            start_event = expected(**fields)
        elif fields:
            names = ", ".join(fields)
            msg = f"run() was given both a start_event and {names}; expected one or the other"
            raise TypeError(msg)
        elif fitting(start_event, [expected]) is not None:
            give_arguments(start_event, expected)
        elif not isinstance(start_event, expected):
            msg = (
                f"{graph.name} begins with {expected.__name__}, and was given "
                f"{type(start_event).__name__}; expected "
                f"run(start_event={expected.__name__}(...)) or its fields as keywords"
            )
            raise TypeError(msg)
        return WorkflowHandler(
            Run(
                self,
                graph,
                run_id=new_run_id() if run_id is None else run_id,
                start_event=start_event,
                log=EventLog(window=self.__buffer, history=self.__history),
                options=self.__options,
                state_store=None if seed is None else seed.store,
            )
        )

    def resume(
        self,
        snapshot: dict[str, Any],
        *,
        run_id: str | None = None,
        drop_removed_fields: bool = False,
    ) -> WorkflowHandler[R]:
        """Create a run that continues from a snapshot, without starting it. Not a checkpoint.

        It is a run like any other: await it, enter it, or give it to a nursery. Completed steps are
        not repeated; steps in progress start again.

        Args:
            snapshot: The return value of ``handler.snapshot()``, possibly from another process and
                decoded from JSON.
            run_id: An identifier; by default the one in the snapshot.
            drop_removed_fields: Whether to drop values of fields that the classes of events and
                state no longer have. By default they are an error. A new field gets its
                default.

        Raises:
            SnapshotError: The snapshot does not belong to this workflow in its current shape, or
                contains damaged data or an unknown class. It is only ever decoded into classes that
                the workflow declares.
            WorkflowRuntimeError: The run had completed, so there is nothing left to do.
        """
        _check_run_id(run_id)
        seed = self.__open_saved_run__(snapshot or {}, drops_removed=drop_removed_fields)
        if not seed.is_running:
            msg = (
                f"the run {seed.run_id} was completed when the snapshot was taken; expected one of "
                "a run under way, or run(ctx=Context.from_dict(workflow, snapshot)) for a new run "
                "with its state"
            )
            raise WorkflowRuntimeError(msg)
        return self._resume(seed, run_id)

    def _resume(self, saved: SavedRun, run_id: str | None) -> WorkflowHandler[R]:
        return WorkflowHandler(self.__open_run__(saved, run_id))

    def __open_run__(self, saved: Any, run_id: str | None) -> Any:  # a Run, as in WorkflowHandler
        saved.take()
        log = EventLog(window=self.__buffer, history=self.__history)
        if saved.progress is not None:
            log.begin_after(saved.progress.sequence)
        return Run(
            self,
            self._built(),
            run_id=run_id or saved.run_id or new_run_id(),
            start_event=saved.start_event,
            log=log,
            options=self.__options,
            state_store=saved.store,
            resumed=saved.progress,
            early=saved.arrived,
            keys=saved.keys,
            carrier=saved.carrier,
        )

    def __open_saved_run__(
        self, data: dict[str, Any] | None, *, drops_removed: bool = False, adapts: bool = False
    ) -> Any:  # a SavedRun, which is no part of the typed API
        from sluicegate._engine.snapshot_read import SavedRun  # noqa: PLC0415 - imports msgspec

        graph, classes = self._built(), self.__options.classes
        return SavedRun(graph, classes, data, drops_removed=drops_removed, adapts=adapts)

    def _saved_of(self, ctx: Any) -> Any:
        if getattr(ctx, "_is_sluicegate_context", False) is not True:
            msg = f"run(ctx=...) was given {brief(ctx)}; expected Context(workflow), or handler.ctx"
            raise TypeError(msg)
        seed = run_of_context(ctx)
        if isinstance(seed, StepOperations) and not seed.run.outcome.is_over:
            msg = (
                f"run(ctx=...) was given the context of the run {seed.run_id}, which is not over; "
                "expected `await handler` before, or Context(workflow)"
            )
            raise WorkflowRuntimeError(msg)
        if not seed.graph.is_like(self._built()):
            msg = (
                f"run(ctx=...) of {self._built().name} was given a context of {seed.graph.name}; "
                "expected Context(workflow) with this workflow"
            )
            raise WorkflowRuntimeError(msg)
        return seed

    async def __aenter__(self) -> Self:
        """Open the scope of the workflow's resources. Not a checkpoint."""
        self._built()
        if self.__options.resources is not None:
            await self.__options.resources.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the resources, shielded, in reverse order. A checkpoint."""
        resources = self.__options.resources
        if resources is not None:
            await resources.__aexit__(kind, error, trace)  # noqa: ASYNC102 - it shields itself

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

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(unknown_name(type(self).__name__, name, _OLDER))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self._built().steps)} steps>"


def graph_in(workflow: Workflow[Any]) -> Graph:
    """Return the graph of a workflow object; the rest of the package uses this."""
    return workflow._built()


def saved_run(workflow: Workflow[Any], snapshot: dict[str, Any]) -> Any:
    """Return a snapshot decoded for a workflow: a ``SavedRun``. Internal to the package."""
    return workflow.__open_saved_run__(snapshot, adapts=True)


def run_without_owner(workflow: Workflow[Any], run_id: str) -> Any:
    """Return a run whose beginning is loaded later: a ``Run``. Internal to the package."""
    return workflow.__open_run__(workflow.__open_saved_run__(None), run_id)


def _open_scope() -> ResourceScope:
    from sluicegate._engine.resource_scopes import ResourceScope  # noqa: PLC0415 - not always needed

    return ResourceScope("workflow")


def _check_run_id(run_id: object) -> None:
    if not (run_id is None or isinstance(run_id, str)):
        msg = f"run_id is {brief(run_id)}; expected a str, or None for a new one"
        raise TypeError(msg)


def _checked(name: str, observers: Any) -> tuple[Observer, ...]:
    """Return the observers as a tuple, or refuse what is no list of observers."""
    what = f"{name}(observers={brief(observers)})"
    if isinstance(observers, Observer) or not isinstance(observers, Iterable):
        return checked((None,), what, WorkflowValidationError)
    return checked(tuple(cast("Iterable[Any]", observers)), what, WorkflowValidationError)


def _checked_classes(name: str, serializable: Any, graph: Graph) -> tuple[type, ...]:
    listed: list[Any] = [None]
    if isinstance(serializable, Iterable):
        listed = list(cast("Iterable[Any]", serializable))
    if not all(isinstance(class_of(each), type) for each in listed):
        msg = (
            f"{name}(serializable={brief(cast('object', serializable))}); expected a list of classes: "
            f"{name}(serializable=[Money])"
        )
        raise WorkflowValidationError(msg)
    classes = tuple(listed)
    if classes:
        try:
            graph.codec(classes)
        except SnapshotError as error:
            msg = f"{name}(serializable=[...]): {error}"
            raise WorkflowValidationError(msg) from None
    return classes


# One random part per process, and a number: an identifier takes 1 % of the time of a run this way.
_process = os.urandom(6).hex()
_numbers = count(1)


def _begin_process() -> None:
    global _process  # noqa: PLW0603 - a forked process must not continue its parent's numbers
    _process = os.urandom(6).hex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_process)


def new_run_id() -> str:
    """Return a new identifier of a run. Internal to the package."""
    return f"{_process}-{next(_numbers)}"
