"""Steps: the decorator, and what a step's signature says."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, overload

import attrs

from penstock._errors import WorkflowValidationError
from penstock._events import Event


if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    AsyncMethod = Callable[..., Coroutine[Any, Any, Any]]

F = TypeVar("F", bound="Callable[..., Coroutine[Any, Any, Any]]")

_MARK = "__penstock_step__"


@attrs.frozen
class StepOptions:
    """What ``@step(...)`` was given, kept on the function until its workflow is built."""

    num_workers: int
    timeout: float | None
    #: What names in string annotations mean in the functions around the step.
    names: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen(eq=False)
class Step:
    """One step of a workflow, read from its signature once."""

    name: str
    #: Its number within the workflow, and its name in the task tree.
    index: int
    label: str
    function: AsyncMethod = attrs.field(repr=False)
    num_workers: int
    timeout: float | None
    #: The event classes taken, in the order of the parameters.
    accepts: tuple[type[Event], ...]
    #: How the events come: ``"one"``, a ``"list"`` of all in a fan-out, or one for each ``"slot"``.
    takes: str
    #: The event classes that are returned, sent, or put into a list that is returned.
    returns: tuple[type[Event], ...]
    #: Those of them that come in a list.
    fans_out: tuple[type[Event], ...]
    #: Whether the step may return None.
    may_end: bool
    #: Where the context stands among the parameters (0 is the first after ``self``), or None.
    context_at: int | None

    def allows(self, kind: type, *, in_list: bool) -> bool:
        """Whether an event of class ``kind`` may come out of this step."""
        return issubclass(kind, self.fans_out if in_list else self.returns)


@overload
def step(function: F, /) -> F: ...


@overload
def step(*, num_workers: int = 4, timeout: float | None = None) -> Callable[[F], F]: ...


def step(
    function: F | None = None, /, *, num_workers: int = 4, timeout: float | None = None
) -> F | Callable[[F], F]:
    """Make an async method of a workflow a step.

    The annotations say what the step takes and what it may return or send:
    ``async def polish(self, ctx: Context, ev: Draft) -> Final | Retry``. The context is
    optional. ``-> list[E]`` fans out, a parameter ``evs: list[E]`` takes all that came of a
    fan-out at once, ``a: A, b: B`` takes one of each.

    Args:
        function: The method, where the decorator stands without parentheses.
        num_workers: How many invocations of this step may run at a time within one run.
        timeout: Seconds after which an invocation is cancelled and the run fails with
            :exc:`StepTimeoutError`; None means no limit.

    Raises:
        WorkflowValidationError: The function is not an async method, or an option is not valid.
            Faults in the annotations are reported when the workflow is built.
    """

    def mark(function: F) -> F:
        _check(function, num_workers, timeout)
        options = StepOptions(num_workers, timeout, _names_around(function))
        setattr(function, _MARK, options)
        return function

    return mark if function is None else mark(function)


def is_seconds(value: object) -> bool:
    """Whether ``value`` is a number of seconds that a timeout may have."""
    return isinstance(value, int | float) and value > 0


def _check(function: Any, num_workers: int, timeout: float | None) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isasyncgenfunction(function):
        msg = (
            f"the step {name} is an async generator; expected an async method that returns its "
            "event and streams with ctx.write_event_to_stream(event)"
        )
        raise WorkflowValidationError(msg)
    if not inspect.iscoroutinefunction(function):
        msg = (
            f"@step needs an async method, and {name} is not one; expected "
            f"`async def {getattr(function, '__name__', 'name')}(self, ev: ...) -> ...`"
        )
        raise WorkflowValidationError(msg)
    if type(num_workers) is not int or num_workers < 1:
        msg = f"num_workers of the step {name} is {num_workers!r}; expected an int of at least 1"
        raise WorkflowValidationError(msg)
    if not (timeout is None or is_seconds(timeout)):
        msg = f"timeout of the step {name} is {timeout!r}; expected seconds above 0, or None"
        raise WorkflowValidationError(msg)


def _names_around(function: Any) -> dict[str, Any]:
    """Return what the annotations name in the functions around the class, while these still run.

    With ``from __future__ import annotations`` the annotations are strings, and those that name
    classes of a function body cannot be resolved any more once the function has returned. Only
    what they name is kept.
    """
    wanted: set[str] = set()
    notes = [note for note in function.__annotations__.values() if isinstance(note, str)]
    while notes:
        try:
            parsed = ast.parse(notes.pop(), mode="eval")
        except SyntaxError:
            continue  # told with the other faults, when the workflow is built
        for node in ast.walk(parsed):
            if isinstance(node, ast.Name):
                wanted.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                notes.append(node.value)  # a quoted name within a string
    names: dict[str, Any] = {}
    own = function.__name__  # whose class body is one of the places to look
    frame: types.FrameType | None = sys._getframe(3) if wanted else None  # past mark() and step()
    while frame is not None:
        around = frame.f_code.co_qualname
        if function.__qualname__.startswith((f"{around}.<locals>.", f"{around}.{own}")):
            names = {n: v for n, v in frame.f_locals.items() if n in wanted} | names
        frame = frame.f_back
    return names


def find_steps(cls: type) -> tuple[list[Step], list[str]]:
    """Read all steps of a workflow class, in the order in which they are written.

    Returns:
        The steps, and the faults of signatures, each with its fix.
    """
    steps: list[Step] = []
    problems: list[str] = []
    for name in _step_names(cls):
        function = inspect.getattr_static(cls, name)
        if name == "run":
            problems.append(
                f"{cls.__name__}.run is a step, and the name of the method that runs a workflow; "
                "expected another name"
            )
            continue
        options = getattr(function, _MARK, None)
        if isinstance(function, classmethod | staticmethod):
            kind = "classmethod" if isinstance(function, classmethod) else "staticmethod"
            problems.append(
                f"{cls.__name__}.{name} is a {kind}; expected a method `async def {name}(self, "
                "...)`, for a step belongs to a workflow object"
            )
            continue
        if options is None:
            problems.append(
                f"{cls.__name__}.{name} overrides a step without being one; expected `@step` "
                "above it"
            )
            continue
        try:
            steps.append(_read(cls, len(steps), name, function, options))
        except _SignatureError as fault:
            problems.append(f"{cls.__name__}.{name} {fault}")
    return steps, problems


def _step_names(cls: type) -> Iterable[str]:
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if hasattr(getattr(value, "__func__", value), _MARK):
                names[name] = None
    return names


class _SignatureError(Exception):
    """Raised when a signature cannot be read; the text goes on from the name of the step."""


def _read(cls: type, index: int, name: str, function: Any, options: StepOptions) -> Step:
    try:
        hints = typing.get_type_hints(function, localns=options.names, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        msg = (
            f"has an annotation that cannot be resolved ({error}); expected the class to be "
            "defined before the workflow, and not only under `if TYPE_CHECKING`"
        )
        raise _SignatureError(msg) from error
    parameters = list(inspect.signature(function).parameters.values())[1:]
    takes, accepts, context_at = _read_parameters(parameters, hints)
    if "return" not in hints:
        msg = "has no return annotation; expected `-> SomeEvent`, `-> A | B` or `-> None`"
        raise _SignatureError(msg)
    returns, fans_out, may_end = _read_return(hints["return"])
    return Step(
        name=name,
        index=index,
        label=f"{cls.__name__}.{name}",
        function=function,
        num_workers=options.num_workers,
        timeout=options.timeout,
        accepts=accepts,
        takes=takes,
        returns=returns,
        fans_out=fans_out,
        may_end=may_end,
        context_at=context_at,
    )


def _read_parameters(
    parameters: list[inspect.Parameter], hints: dict[str, Any]
) -> tuple[str, tuple[type[Event], ...], int | None]:
    events: list[tuple[str, tuple[type[Event], ...]]] = []
    lists: list[tuple[type[Event], ...]] = []
    context_at: int | None = None
    extra = ""
    for position, parameter in enumerate(parameters):
        hint = hints.get(parameter.name, parameter.empty)
        if _is_context(hint):
            _check_positional(parameter, extra)
            if context_at is not None:
                msg = (
                    f"takes the context twice, the second time as {parameter.name!r}; "
                    "expected one parameter `ctx: Context`"
                )
                raise _SignatureError(msg)
            context_at = position
            continue
        element = _element(hint)
        kinds = _event_classes(hint if element is None else element)
        if kinds is None:
            if parameter.default is not parameter.empty or parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            ):
                extra = extra or parameter.name
                continue
            msg = (
                f"has a parameter {parameter.name!r} that is neither an event nor the context; "
                f"expected `{parameter.name}: SomeEvent`, `{parameter.name}: Context` or a default"
            )
            raise _SignatureError(msg)
        _check_positional(parameter, extra)
        if element is None:
            events.append((parameter.name, kinds))
        else:
            lists.append(kinds)
    return (*_shape(events, lists), context_at)


def _check_positional(parameter: inspect.Parameter, extra: str) -> None:
    if extra:
        msg = (
            f"takes {parameter.name!r} after {extra!r}; expected it before, for steps are called by "
            "position with their events and the context alone"
        )
        raise _SignatureError(msg)
    if parameter.kind is parameter.KEYWORD_ONLY:
        msg = (
            f"takes {parameter.name!r} by keyword only; expected it before the `*`, "
            "for steps are called by position"
        )
        raise _SignatureError(msg)


def _shape(
    events: list[tuple[str, tuple[type[Event], ...]]], lists: list[tuple[type[Event], ...]]
) -> tuple[str, tuple[type[Event], ...]]:
    if len(lists) == 1 and not events:
        return "list", lists[0]
    if lists:
        msg = (
            "joins a list and takes other events as well; expected one parameter "
            "`evs: list[E]` and nothing beside it but the context"
        )
        raise _SignatureError(msg)
    if not events:
        msg = "takes no event; expected a parameter like `ev: SomeEvent`"
        raise _SignatureError(msg)
    if len(events) == 1:
        return "one", events[0][1]
    wide = [name for name, kinds in events if len(kinds) > 1]
    if wide:
        msg = (
            f"takes one of each of several events, so {wide[0]!r} cannot be a union; "
            "expected one class for each parameter"
        )
        raise _SignatureError(msg)
    return "slot", tuple(kinds[0] for _, kinds in events)


def _read_return(hint: Any) -> tuple[tuple[type[Event], ...], tuple[type[Event], ...], bool]:
    returns: list[type[Event]] = []
    fans_out: list[type[Event]] = []
    may_end = False
    for part in _members(hint):
        if part is None or part is type(None):
            may_end = True
            continue
        element = _element(part)
        kinds = _event_classes(part if element is None else element)
        if kinds is None:
            shown = getattr(part, "__name__", part)
            msg = f"says that it returns {shown}; expected event classes, lists of them, or None"
            raise _SignatureError(msg)
        (returns if element is None else fans_out).extend(kinds)
    return tuple(dict.fromkeys(returns)), tuple(dict.fromkeys(fans_out)), may_end


def _is_context(hint: Any) -> bool:
    hint = _strip(hint)
    # Context lies on a floor above; it carries a mark, so that it need not be imported here.
    return getattr(typing.get_origin(hint) or hint, "_is_penstock_context", False) is True


def _strip(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _members(hint: Any) -> tuple[Any, ...]:
    hint = _strip(hint)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(_strip(part) for part in typing.get_args(hint))
    return (hint,)


def _element(hint: Any) -> Any:
    """Return ``E`` of ``list[E]``, or None for anything else."""
    hint = _strip(hint)
    if typing.get_origin(hint) is list:
        return next(iter(typing.get_args(hint)), Any)
    return None


def _event_classes(hint: Any) -> tuple[type[Event], ...] | None:
    """Return the event classes of a class or a union, or None if anything else is in it."""
    kinds: list[type[Event]] = []
    for part in _members(hint):
        origin = typing.get_origin(part) or part
        if not (isinstance(origin, type) and issubclass(origin, Event)):
            return None
        kinds.append(origin)
    return tuple(kinds)
