"""Signatures: the events that a step takes and makes, and the resources that it asks for."""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import attrs

from sluicegate._annotations import (
    UNRESOLVED,
    is_context,
    is_count,
    is_union,
    resolve,
    without_extras,
)
from sluicegate._errors import WorkflowValidationError
from sluicegate._events import Event
from sluicegate._events.generics import plain_class, substituted


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class SignatureError(Exception):
    """Raised when a signature cannot be read; the text continues from the name of the step."""


@attrs.frozen
class Take:
    """Make a join run as soon as it has ``n`` events, and cancel the rest of the fan-out.

    It is part of the annotation: ``evs: Annotated[list[Answer], Take(1)]``. If fewer events
    arrive, the join runs with these when the fan-out has ended.

    Args:
        n: The number of events.

    Raises:
        WorkflowValidationError: ``n`` is not an int of at least 1.
    """

    n: int

    def __attrs_post_init__(self) -> None:
        if not is_count(self.n):
            msg = f"Take({self.n!r}); expected an int of at least 1: Take(1)"
            raise WorkflowValidationError(msg)


@attrs.frozen
class Signature:
    """The annotations of a step, read."""

    #: How events arrive: ``"one"``, a ``"list"`` of all in a fan-out, or one for each ``"slot"``.
    takes: str
    #: The event classes taken, in the order of the parameters.
    accepts: tuple[type[Event], ...]
    #: How many events a join of a list needs, or None if it waits for all.
    take: int | None
    #: The position of the context among the parameters (0 is the first after ``self``), or None.
    context_at: int | None
    #: The class ``State`` of ``ctx: Context[State]``.
    state: Any
    #: The resources: position among the parameters, name and annotation.
    resources: tuple[tuple[int, str, Any], ...]
    #: The event classes that the step can return or send on their own.
    returns: tuple[type[Event], ...]
    #: The event classes that it can return in a list.
    fans_out: tuple[type[Event], ...]
    #: Whether the step may return None.
    may_end: bool


def read_signature(
    function: Callable[..., Any],
    names: dict[str, Any],
    *,
    has_self: bool,
    meaning: Mapping[Any, Any] | None = None,
) -> Signature:
    """Read the annotations of a step.

    Args:
        function: The step.
        names: The names that string annotations use from the functions around it.
        has_self: Whether the first parameter is the workflow.
        meaning: The values of the type variables of its class.

    Raises:
        SignatureError: They cannot be read, or do not make a step.
    """
    try:
        hints = resolve(function, names)
    except UNRESOLVED as error:
        msg = (
            f"has an annotation that cannot be resolved ({error}); expected the class to be "
            "defined before the workflow, and not only under `if TYPE_CHECKING`"
        )
        raise SignatureError(msg) from error
    if meaning:
        hints = {name: substituted(hint, meaning) for name, hint in hints.items()}
    parameters = list(inspect.signature(function).parameters.values())[int(has_self) :]
    inputs = _Inputs()
    for position, parameter in enumerate(parameters):
        inputs.add(position, parameter, hints.get(parameter.name, parameter.empty))
    takes, accepts = inputs.shape()
    if "return" not in hints:
        msg = "has no return annotation; expected `-> SomeEvent`, `-> A | B` or `-> None`"
        raise SignatureError(msg)
    returns, fans_out, may_end = _read_return(hints["return"])
    return Signature(
        takes,
        accepts,
        inputs.take,
        inputs.context_at,
        inputs.state,
        tuple(inputs.resources),
        returns,
        fans_out,
        may_end,
    )


class _Inputs:
    """The parameters of a step, read one by one."""

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple[type[Event], ...]]] = []
        self.lists: list[tuple[type[Event], ...]] = []
        self.resources: list[tuple[int, str, Any]] = []
        self.context_at: int | None = None
        self.state: Any = None
        self.take: int | None = None
        #: The first parameter that keeps its default.
        self._extra = ""

    def add(self, position: int, parameter: inspect.Parameter, hint: Any) -> None:
        """Take the next parameter.

        Raises:
            SignatureError: A step cannot have such a parameter.
        """
        name = parameter.name
        if _is_resource(hint):
            _check_positional(parameter, self._extra)
            self.resources.append((position, name, hint))
        elif is_context(hint):
            _check_positional(parameter, self._extra)
            if self.context_at is not None:
                msg = (
                    f"takes the context twice, the second time as {name!r}; "
                    "expected one parameter `ctx: Context`"
                )
                raise SignatureError(msg)
            self.context_at = position
            self.state = next(iter(typing.get_args(without_extras(hint))), None)
        else:
            self._add_events(parameter, hint)

    def _add_events(self, parameter: inspect.Parameter, hint: Any) -> None:
        name = parameter.name
        is_list, kinds = _read_events(hint, f"has a parameter {name!r} annotated with")
        if kinds is None:
            if parameter.default is not parameter.empty or parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            ):
                self._extra = self._extra or name
                return
            msg = (
                f"has a parameter {name!r} that is neither an event nor the context; "
                f"expected `{name}: SomeEvent`, `{name}: Context`, "
                f"`{name}: Annotated[T, Resource(factory)]` or a default"
            )
            raise SignatureError(msg)
        _check_positional(parameter, self._extra)
        takes = [part for part in typing.get_args(hint)[1:] if isinstance(part, Take)]
        if takes and not is_list:
            msg = (
                f"takes the first {takes[0].n} of {name!r}, which is not a list; expected "
                f"`{name}: Annotated[list[{kinds[0].__name__}], Take({takes[0].n})]`"
            )
            raise SignatureError(msg)
        if is_list:
            self.lists.append(kinds)
            self.take = takes[0].n if takes else None
        else:
            self.events.append((name, kinds))

    def shape(self) -> tuple[str, tuple[type[Event], ...]]:
        """Return how the events arrive, and their classes.

        Raises:
            SignatureError: There are none, or they cannot be combined.
        """
        return _shape(self.events, self.lists)


def _check_positional(parameter: inspect.Parameter, extra: str) -> None:
    if extra:
        msg = (
            f"takes {parameter.name!r} after {extra!r}; expected it before, because steps are "
            "called by position, with only their events and the context"
        )
        raise SignatureError(msg)
    if parameter.kind is parameter.KEYWORD_ONLY:
        msg = (
            f"takes {parameter.name!r} by keyword only; expected it before the `*`, "
            "because steps are called by position"
        )
        raise SignatureError(msg)


def _shape(
    events: list[tuple[str, tuple[type[Event], ...]]], lists: list[tuple[type[Event], ...]]
) -> tuple[str, tuple[type[Event], ...]]:
    if len(lists) == 1 and not events:
        return "list", lists[0]
    if lists:
        msg = (
            "joins a list and takes other events as well; expected one parameter "
            "`evs: list[E]` and no other event"
        )
        raise SignatureError(msg)
    if not events:
        msg = "takes no event; expected a parameter like `ev: SomeEvent`"
        raise SignatureError(msg)
    if len(events) == 1:
        return "one", events[0][1]
    wide = [name for name, kinds in events if len(kinds) > 1]
    if wide:
        msg = (
            f"takes one of each of several events, so {wide[0]!r} cannot be a union; "
            "expected one class for each parameter"
        )
        raise SignatureError(msg)
    return "slot", tuple(kinds[0] for _, kinds in events)


def _read_return(hint: Any) -> tuple[tuple[type[Event], ...], tuple[type[Event], ...], bool]:
    returns: list[type[Event]] = []
    fans_out: list[type[Event]] = []
    may_end = False
    for part in _members(hint):
        if part is None or part is type(None):
            may_end = True
            continue
        is_list, kinds = _read_events(part, "is annotated as returning")
        if kinds is None:
            is_plain = isinstance(part, type) and not typing.get_args(part)
            shown = part.__name__ if is_plain else part
            msg = (
                f"is annotated as returning {shown}; expected event classes, lists of them, or None"
            )
            raise SignatureError(msg)
        (fans_out if is_list else returns).extend(kinds)
    return tuple(dict.fromkeys(returns)), tuple(dict.fromkeys(fans_out)), may_end


def _read_events(hint: Any, described: str) -> tuple[bool, tuple[type[Event], ...] | None]:
    """Return whether an annotation is a list, and its event classes; None if it has others.

    Raises:
        SignatureError: It has a type variable; ``described`` begins the message.
    """
    element = _element(hint)
    variable = _variable_in(hint)
    if variable:
        msg = (
            f"{described} the type variable {variable}; expected a subclass that gives it a "
            "class: `class MyEcho(Echo[MyEvent])`, and an object of that subclass"
        )
        raise SignatureError(msg)
    return element is not None, _event_classes(hint if element is None else element)


def _variable_in(hint: Any) -> str:
    """Return the name of a type variable that has no value, or an empty string."""
    hint = without_extras(hint)
    if isinstance(hint, TypeVar):
        return hint.__name__
    parameters = () if isinstance(hint, type) else getattr(hint, "__parameters__", ())
    return parameters[0].__name__ if parameters else ""


def _is_resource(hint: Any) -> bool:
    if typing.get_origin(hint) is not Annotated:
        return False
    from sluicegate._definition.resources import is_resource  # noqa: PLC0415 - not every program needs it

    return is_resource(hint)


def _members(hint: Any) -> tuple[Any, ...]:
    hint = without_extras(hint)
    if is_union(hint):
        return tuple(without_extras(part) for part in typing.get_args(hint))
    return (hint,)


def _element(hint: Any) -> Any:
    """Return ``E`` of ``list[E]``, or None for anything else."""
    hint = without_extras(hint)
    if typing.get_origin(hint) is list:
        return next(iter(typing.get_args(hint)), Any)
    return None


def _event_classes(hint: Any) -> tuple[type[Event], ...] | None:
    """Return the event classes of a class or a union, or None if anything else is in it."""
    kinds: list[type[Event]] = []
    for part in _members(hint):
        kind = plain_class(part)
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            return None
        kinds.append(kind)
    return tuple(kinds)
