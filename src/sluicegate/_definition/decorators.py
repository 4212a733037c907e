"""The decorators that make a method a step, and the checks of their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Never, TypeVar, overload

import attrs

from sluicegate._annotations import class_of, is_count, is_seconds
from sluicegate._definition.local_names import names_around
from sluicegate._definition.steps import MARK, Catching, StepOptions
from sluicegate._errors import WorkflowValidationError, brief, unknown_options
from sluicegate._events import Event, StartEvent, StopEvent


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sluicegate._definition.retries import Retry


F = TypeVar("F", bound="Callable[..., Any]")

#: Step options of LlamaIndex Workflows that do not exist here, and their replacements.
_OLDER = {
    "accept_event_subclasses": "`@step` without it: a step gets the subclasses that no other takes",
    "on": "the class in the annotation: `ev: MyEvent`",
    "pass_context": "`@step` without it, and a parameter `ctx: Context`",
    "retry_policy": "`@step(retry=Retry(...))`",
    "skip_graph_checks": "`MyWorkflow(skip_graph_checks=[...])`",
}


@overload
def step(function: F, /) -> F: ...


@overload
def step(
    *,
    workflow: type | None = None,
    num_workers: int = 4,
    timeout: float | None = None,
    idle_timeout: float | None = None,
    retry: Retry | None = None,
    send_at_once: bool = False,
    limiter: AbstractAsyncContextManager[object] | None = None,
    in_process: bool = False,
    abandon_on_cancel: bool = False,
    waits_for: Sequence[type[Event]] = (),
    release_while_waiting: bool = True,
) -> Callable[[F], F]: ...


def step(
    function: F | None = None,
    /,
    *,
    workflow: type | None = None,
    num_workers: int = 4,
    timeout: float | None = None,
    idle_timeout: float | None = None,
    retry: Retry | None = None,
    send_at_once: bool = False,
    limiter: AbstractAsyncContextManager[object] | None = None,
    in_process: bool = False,
    abandon_on_cancel: bool = False,
    waits_for: Sequence[type[Event]] = (),
    release_while_waiting: bool = True,
    **older: Never,
) -> F | Callable[[F], F]:
    """Make a method of a workflow a step.

    The annotations declare which events the step takes and which it can return or send:
    ``async def polish(self, ctx: Context, ev: Draft) -> Final | Retry``. The context is
    optional. ``-> list[E]`` fans out; a parameter ``evs: list[E]`` joins all events of a
    fan-out; ``a: A, b: B`` takes one event of each class. ``Annotated[T, Resource(factory)]``
    asks for a resource.

    An ``async def`` runs in the event loop. A plain ``def`` runs in a worker thread; the context
    works there too.

    Args:
        function: The method, if the decorator is used without parentheses.
        workflow: For a function outside the class: the workflow to which the step is added.
        num_workers: How many invocations of this step can run at the same time within one run.
        timeout: Seconds after which an invocation is cancelled and fails with
            :exc:`StepTimeoutError`; None means no limit.
        idle_timeout: Seconds without progress after which an invocation is cancelled in the same
            way. Every call of the context counts as progress; ``ctx.report_progress()`` does
            only this.
        retry: When to retry an invocation that failed. Events that the failed attempt sent are
            dropped; events that it wrote to the stream have already been seen.
        send_at_once: Deliver the events that an attempt sends immediately, before the attempt
            has succeeded; a further attempt then sends them again.
        limiter: An async context manager that is entered around every invocation: a
            ``CapacityLimiter``, a :class:`RateLimiter`, or a similar object. Steps and runs can
            share it.
        in_process: Run a plain ``def`` in a worker process instead. It is then a static method
            that takes its event and optionally a context with ``send_event`` and
            ``write_event_to_stream``; events are pickled in both directions. On cancellation the
            process is killed. POSIX only.
        abandon_on_cancel: When the step is cancelled, leave the thread of a plain ``def`` running
            and continue without it; by default the thread is awaited. If the program exits
            meanwhile, asyncio waits for the thread and Trio does not.
        waits_for: The event classes that this step waits for with ``ctx.wait_for_event``.
            ``handler.send_event`` then accepts such an event at any time, and keeps one that
            arrives early. A ``HumanResponseEvent`` needs no declaration.
        release_while_waiting: While the step waits for an event from outside, or for a child
            that does, or sleeps with ``ctx.sleep``, let another invocation run in its place (and
            release its place in ``limiter``); the step takes a place again before it continues.
            Use False if ``num_workers=1`` serves as a lock.
        **older: None; an option of LlamaIndex Workflows raises an error with the new spelling.

    Raises:
        WorkflowValidationError: The function cannot be a step, or an option is not valid.
            Faults in the annotations are reported when the workflow is built.
        TypeError: There is no such option.
    """
    if older:
        raise TypeError(unknown_options("@step", older, _OLDER))
    options = StepOptions(
        num_workers=num_workers,
        timeout=timeout,
        idle_timeout=idle_timeout,
        retry=retry,
        send_at_once=send_at_once,
        limiter=limiter,
        in_process=in_process,
        abandon_on_cancel=abandon_on_cancel,
        waits_for=_event_classes(waits_for),
        release_while_waiting=release_while_waiting,
        is_free=workflow is not None,
    )

    def mark(function: F) -> F:
        # The frames are those of step() or of its caller, then of the class body.
        depth = 3 if decorated is not None else 2
        _mark(function, options, depth)
        if workflow is not None:
            _attach(workflow, function)
        return function

    decorated = function
    return mark if function is None else mark(function)


@overload
def catch_error(function: F, /) -> F: ...


@overload
def catch_error(
    *, for_steps: Sequence[str] | None = None, max_recoveries: int = 1
) -> Callable[[F], F]: ...


def catch_error(
    function: F | None = None,
    /,
    *,
    for_steps: Sequence[str] | None = None,
    max_recoveries: int = 1,
) -> F | Callable[[F], F]:
    """Make a method of a workflow the handler of failures of its steps.

    The handler takes a :class:`StepFailedEvent`. The events that it returns replace those that
    the failed step would have returned. It is called when all retries are used up, and for step
    timeouts. Run timeouts and cancellations do not count as failures of a step.

    Args:
        function: The method, if the decorator is used without parentheses.
        for_steps: The names of the steps whose failures it handles; by default all steps that no
            other handler names. Failures of handlers are never handled.
        max_recoveries: How many failures it can handle among the events that one event led to;
            the next failure fails the run with the step's own exception.

    Raises:
        WorkflowValidationError: The function cannot be a step, or an option is not valid.
    """
    if isinstance(for_steps, str) or not (for_steps is None or isinstance(for_steps, Iterable)):
        msg = f"for_steps is {for_steps!r}; expected a list of names: [{str(for_steps)!r}]"
        raise WorkflowValidationError(msg)
    if not is_count(max_recoveries):
        msg = f"max_recoveries is {max_recoveries!r}; expected an int of at least 1"
        raise WorkflowValidationError(msg)
    names = None if for_steps is None else tuple(for_steps)
    options = StepOptions(num_workers=1, catches=Catching(names, max_recoveries))

    def mark(function: F) -> F:
        _mark(function, options, 3 if decorated is not None else 2)
        return function

    decorated = function
    return mark if function is None else mark(function)


def _mark(function: Any, options: StepOptions, depth: int) -> None:
    written = getattr(function, "__func__", function)
    _check(written, options)
    names = names_around(written, depth + 1)
    setattr(function, MARK, attrs.evolve(options, names=names))


def _check(function: Any, options: StepOptions) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        kind = "an async generator" if inspect.isasyncgenfunction(function) else "a generator"
        msg = (
            f"the step {name} is {kind}; expected an async method that returns its "
            "event and streams with ctx.write_event_to_stream(event)"
        )
        raise WorkflowValidationError(msg)
    if not inspect.isfunction(function):
        msg = (
            f"@step needs a method, but {name} is not one; expected "
            f"`async def {getattr(function, '__name__', 'name')}(self, ev: ...) -> ...`"
        )
        raise WorkflowValidationError(msg)
    if not is_count(options.num_workers):
        msg = (
            f"num_workers of the step {name} is {options.num_workers!r}; expected an int of at "
            "least 1"
        )
        raise WorkflowValidationError(msg)
    for option in ("timeout", "idle_timeout"):
        value = getattr(options, option)
        if not (value is None or is_seconds(value)):
            msg = f"{option} of the step {name} is {value!r}; expected seconds above 0, or None"
            raise WorkflowValidationError(msg)
    if options.retry is not None:
        _check_retry(options.retry, name)
    is_class = isinstance(options.limiter, type)
    if is_class or not (options.limiter is None or hasattr(options.limiter, "__aenter__")):
        msg = (
            f"limiter of the step {name} is {options.limiter!r}; expected an async context manager "
            "like trio.CapacityLimiter(10) or sluicegate.RateLimiter(10)"
        )
        raise WorkflowValidationError(msg)
    _check_place(function, options, name)


def _event_classes(waits_for: Any) -> tuple[type[Event], ...]:
    """Check the classes in ``waits_for``, and return them as a tuple."""
    given: object = waits_for
    listed = isinstance(given, list | tuple | set | frozenset)
    kinds: list[Any] = [*waits_for] if listed else []
    plain: tuple[Any, ...] = tuple(class_of(kind) for kind in kinds)
    if not listed or not all(isinstance(k, type) and issubclass(k, Event) for k in plain):
        shown = waits_for.__name__ if isinstance(waits_for, type) else brief(waits_for)
        msg = (
            f"waits_for is {shown}; expected a list of event classes: `@step(waits_for=[Approved])`"
        )
        raise WorkflowValidationError(msg)
    for kind in plain:
        if issubclass(kind, StartEvent | StopEvent):
            msg = (
                f"waits_for has {kind.__name__}, but no step can wait for the event "
                "that begins or ends a run; expected another event class"
            )
            raise WorkflowValidationError(msg)
    return plain


def _check_retry(retry: object, name: str) -> None:
    from sluicegate._definition.retries import Retry  # noqa: PLC0415 - not every program needs it

    if not isinstance(retry, Retry):
        msg = (
            f"retry of the step {name} is {retry!r}; expected "
            "`retry=Retry(stop=..., wait=..., when=...)`"
        )
        raise WorkflowValidationError(msg)


def _check_place(function: Any, options: StepOptions, name: str) -> None:
    is_async = inspect.iscoroutinefunction(function)
    for option in ("in_process", "abandon_on_cancel"):
        if is_async and getattr(options, option):
            msg = (
                f"the step {name} is an async method, but {option} is for plain ones; expected "
                f"`def {function.__name__}(...)`, or `@step` without {option}"
            )
            raise WorkflowValidationError(msg)
    if options.in_process and options.abandon_on_cancel:
        msg = (
            f"the step {name} has both in_process and abandon_on_cancel; expected in_process "
            "alone, because a cancelled process is killed"
        )
        raise WorkflowValidationError(msg)


def _attach(workflow: type, function: Any) -> None:
    add_step = getattr(workflow, "add_step", None)
    if add_step is None:
        msg = f"@step(workflow={workflow!r}); expected a subclass of Workflow"
        raise WorkflowValidationError(msg)
    add_step(function)


def add_step(cls: type, function: Any) -> None:
    """Make a marked function a step of a workflow class; see :meth:`sluicegate.Workflow.add_step`."""
    options = getattr(function, MARK, None)
    name = getattr(function, "__name__", repr(function))
    if options is None:
        msg = f"{name} is not a step; expected `@step(workflow={cls.__name__})` above it"
        raise WorkflowValidationError(msg)
    if hasattr(cls, name):
        msg = (
            f"{cls.__name__} already has an attribute {name!r}; expected another name for the step"
        )
        raise WorkflowValidationError(msg)
    setattr(function, MARK, attrs.evolve(options, is_free=True))
    setattr(cls, name, staticmethod(function))
