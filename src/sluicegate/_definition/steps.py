"""The steps of a workflow class, read once."""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from sluicegate._definition.signatures import Signature, SignatureError, read_signature
from sluicegate._events import StepFailedEvent
from sluicegate._events.generics import meanings_of
from sluicegate._loop.run_in_context import let_interrupts_in
from sluicegate._loop.threads import ThreadStep


if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from sluicegate._definition.resources import ResourcePlan
    from sluicegate._definition.retries import Retry
    from sluicegate._events import Event

    AsyncMethod = Callable[..., Coroutine[Any, Any, Any]]

#: The attribute of a function that marks it as a step, and holds its options.
MARK = "__sluicegate_step__"


class Elsewhere(Protocol):
    """Runs a step outside the event loop's thread: in a thread or in a process."""

    def place(self, limit: int = ..., /) -> AbstractAsyncContextManager[Any]:
        """Return an async context manager that is entered when the step can begin there.

        ``limit`` is the greatest number of threads.
        """
        ...

    def call(self, place: Any, workflow: object, /, *arguments: Any) -> Coroutine[Any, Any, Any]:
        """Run the step there."""
        ...


@attrs.frozen
class Catching:
    """Which failures a handler handles."""

    #: The names of the steps, or None for all that no other handler names.
    for_steps: tuple[str, ...] | None
    #: How many failures it can handle among the events that one event led to.
    max_recoveries: int


@attrs.frozen
class StepOptions:
    """The arguments of ``@step(...)``, kept on the function until its workflow is built."""

    num_workers: int = 4
    timeout: float | None = None
    idle_timeout: float | None = None
    retry: Retry | None = None
    send_at_once: bool = False
    limiter: AbstractAsyncContextManager[object] | None = None
    in_process: bool = False
    abandon_on_cancel: bool = False
    #: The classes that it waits for with ``ctx.wait_for_event``; they can come from outside.
    waits_for: tuple[type[Event], ...] = ()
    #: Whether another invocation gets its place while it waits for an event from outside.
    release_while_waiting: bool = True
    catches: Catching | None = None
    #: Whether it is a function outside the class, without ``self``.
    is_free: bool = False
    #: The names that string annotations use from the functions around the step.
    names: dict[str, Any] = attrs.field(repr=False, factory=dict[str, Any])


@attrs.frozen(eq=False)
class Fault:
    """One fault of a workflow class; ``check`` names the check that can be switched off."""

    text: str
    check: str | None = None


@attrs.frozen(eq=False)
class Step:
    """One step of a workflow, read from its signature once."""

    name: str
    #: Its number within the workflow, and its name in the task tree.
    index: int
    label: str
    #: The function that the engine calls, and the one that the user wrote.
    function: AsyncMethod = attrs.field(repr=False)
    source: Callable[..., Any] = attrs.field(repr=False)
    options: StepOptions
    signature: Signature
    #: The resources to inject: the position of the parameter, and how to make it.
    resources: tuple[tuple[int, ResourcePlan], ...] = attrs.field(repr=False)
    #: Where the step runs: ``"loop"``, ``"thread"`` or ``"process"``.
    runs_in: str
    #: Runs the step outside the event loop; None in the loop.
    elsewhere: Elsewhere | None = attrs.field(repr=False)

    # Copies of options and signature for the lookups at every invocation.
    num_workers: int = attrs.field(init=False)
    timeout: float | None = attrs.field(init=False)
    accepts: tuple[type[Event], ...] = attrs.field(init=False)
    takes: str = attrs.field(init=False)
    take: int | None = attrs.field(init=False)
    returns: tuple[type[Event], ...] = attrs.field(init=False)
    fans_out: tuple[type[Event], ...] = attrs.field(init=False)
    may_end: bool = attrs.field(init=False)
    context_at: int | None = attrs.field(init=False)
    #: Whether the engine can call it plainly, perhaps with a timeout.
    is_plain: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        options, signature = self.options, self.signature
        is_plain = (
            options.retry is None
            and options.limiter is None
            and options.idle_timeout is None
            and not self.resources
            and self.runs_in == "loop"
        )
        values = {
            "num_workers": options.num_workers,
            "timeout": options.timeout,
            "accepts": signature.accepts,
            "takes": signature.takes,
            "take": signature.take,
            "returns": signature.returns,
            "fans_out": signature.fans_out,
            "may_end": signature.may_end,
            "context_at": signature.context_at,
            "is_plain": is_plain,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def holds_sends(self) -> bool:
        """Whether the events that an attempt sends are held until the attempt has succeeded."""
        return self.options.retry is not None and not self.options.send_at_once

    def allows(self, kind: type, *, in_list: bool) -> bool:
        """Whether this step may return or send an event of class ``kind``."""
        return issubclass(kind, self.fans_out if in_list else self.returns)

    def allows_any(self, kind: type) -> bool:
        """Whether this step may return or send an event of class ``kind``, in a list or not."""
        return issubclass(kind, (*self.returns, *self.fans_out))


def find_steps(cls: type) -> tuple[list[Step], list[str]]:
    """Read all steps of a workflow class, in the order in which they are defined.

    Returns:
        The steps, and the faults of signatures, each with its fix.
    """
    steps: list[Step] = []
    problems: list[str] = []
    meanings = meanings_of(cls)
    # The class of all workflows is in a higher layer; its module identifies it.
    taken = {
        name
        for base in cls.__mro__
        if base.__module__ == "sluicegate._workflow"
        for name, value in vars(base).items()
        if _options_of(value) is None
    }
    for name in _step_names(cls):
        function = inspect.getattr_static(cls, name)
        if name in taken:
            problems.append(
                f"{cls.__name__}.{name} is a step, and every workflow has a method of that name; "
                "expected another name"
            )
            continue
        options = _options_of(function)
        if options is None:
            problems.append(
                f"{cls.__name__}.{name} overrides a step but is not a step itself; expected "
                "`@step` above it"
            )
            continue
        is_bare = options.is_free or options.in_process
        if isinstance(function, classmethod | staticmethod) and not is_bare:
            kind = "classmethod" if isinstance(function, classmethod) else "staticmethod"
            problems.append(
                f"{cls.__name__}.{name} is a {kind}; expected a method `async def {name}(self, "
                "...)`, because a step belongs to a workflow object"
            )
            continue
        try:
            steps.append(_read(cls, len(steps), name, function, options, meanings))
        except SignatureError as fault:
            problems.append(f"{cls.__name__}.{name} {fault}")
        except _Faults as faults:
            problems += [f"{cls.__name__}.{name} {text}" for text in faults.args[0]]
    return steps, problems


def _options_of(function: Any) -> StepOptions | None:
    options = getattr(function, MARK, None)
    return getattr(getattr(function, "__func__", None), MARK, None) if options is None else options


def _step_names(cls: type) -> Iterable[str]:
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if _options_of(value) is not None:
                names[name] = None
    return names


class _Faults(Exception):  # noqa: N818 - it carries faults
    """Raised with several texts, each of which continues from the name of the step."""


def _read(  # noqa: PLR0917 - everything that is known about a step
    cls: type,
    index: int,
    name: str,
    function: Any,
    options: StepOptions,
    meanings: Mapping[type, Mapping[Any, Any]],
) -> Step:
    written = getattr(function, "__func__", function)
    has_self = not isinstance(function, staticmethod)
    home = next((base for base in cls.__mro__ if name in base.__dict__), cls)
    meaning = meanings.get(home)
    signature = read_signature(written, options.names, has_self=has_self, meaning=meaning)
    resources, faults = _plan_resources(signature)
    if options.in_process:
        from sluicegate._loop.processes import process_faults  # noqa: PLC0415 - not every program needs it

        made = (*signature.returns, *signature.fans_out)
        faults += process_faults(written, signature.accepts, made)
        if signature.resources:
            faults.append("runs in a process and asks for resources; expected only its event")
    fails = [kind for kind in signature.accepts if issubclass(kind, StepFailedEvent)]
    if options.catches is not None and (not fails or signature.takes != "one"):
        faults.append("handles failures but takes none; expected a parameter `ev: StepFailedEvent`")
    if options.catches is None and fails:
        faults.append(
            "takes StepFailedEvent but does not handle failures; expected `@catch_error` instead "
            "of `@step`"
        )
    if faults:
        raise _Faults(faults)
    is_async = inspect.iscoroutinefunction(written)
    called = written if has_self else _without_self(written)
    elsewhere: Elsewhere | None = None
    if options.in_process:
        from sluicegate._loop.processes import ProcessStep  # noqa: PLC0415 - not every program needs it

        called = elsewhere = ProcessStep(written, signature.context_at)
    elif not is_async:
        called = elsewhere = ThreadStep(called, abandon_on_cancel=options.abandon_on_cancel)
    else:
        called = _interruptible(called, written)
    return Step(
        name=name,
        index=index,
        label=f"{cls.__name__}.{name}",
        function=called,
        source=written,
        options=options,
        signature=signature,
        resources=resources,
        runs_in="loop" if is_async else "process" if options.in_process else "thread",
        elsewhere=elsewhere,
    )


def _interruptible(function: Callable[..., Any], written: Any) -> Callable[..., Any]:
    """Let Ctrl-C interrupt an async step that computes, even if the function is wrapped."""
    inner = written
    while isinstance(inner, functools.partial | types.MethodType):
        inner = inner.func if isinstance(inner, functools.partial) else inner.__func__
    code: types.CodeType | None = getattr(inner, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_COROUTINE:
        let_interrupts_in(code)
        return function

    @functools.wraps(function)
    async def call(*arguments: Any) -> Any:
        coroutine = function(*arguments)
        let_interrupts_in(getattr(coroutine, "cr_code", None))
        return await coroutine

    return call


def _without_self(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(_workflow: object, *arguments: Any) -> Any:
        return function(*arguments)

    call.__name__ = function.__name__
    call.__qualname__ = function.__qualname__
    return call


def _plan_resources(signature: Signature) -> tuple[tuple[tuple[int, ResourcePlan], ...], list[str]]:
    if not signature.resources:
        return (), []
    from sluicegate._definition.resources import plan_resource  # noqa: PLC0415 - not every program needs it

    plans: list[tuple[int, ResourcePlan]] = []
    faults: list[str] = []
    for position, name, hint in signature.resources:
        plan = plan_resource(name, hint)
        if isinstance(plan, list):
            faults += plan
        else:
            plans.append((position, plan))
    return tuple(plans), faults
